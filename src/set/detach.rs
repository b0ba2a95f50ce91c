//! Volumes leave their set with all their data.
//!
//! In three phases. With its turn, the volume stops to take dirty data: its fronts are made anew,
//! with writes going past the cache. Without a turn, which may take hours, what is dirty is written
//! back. With its turn again, after a second look, its superblock says that it has left, durably,
//! before the first I/O goes past the set. Until then the detachment can be cancelled; a failure or
//! a cancellation leaves the volume attached, in the mode that its superblock says.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::cache::CacheSet;
use super::error::SetError;
use super::explain::{half_way, write_back_failed};
use super::hub::Hub;
use super::identity::dirty_beyond;
use super::join::{drop_beyond, drop_keys, leave};
use super::turns::Turn;
use super::volume::{Backing, Link, Volume};
use crate::disk::IoError;
use crate::format::superblock::CacheMode;
use crate::request::volume::{Name, VolumeShared};
use crate::task::either;
use crate::units::SECTOR_BYTES;

/// A volume that takes no dirty data any more.
struct Leaving {
    link: Link,
    around: Arc<VolumeShared>,
}

impl Volume {
    /// # Errors
    /// It is being detached.
    pub(super) fn check_stays(&self) -> Result<(), SetError> {
        match self.detaching.is_running() {
            false => Ok(()),
            true => Err(SetError::Busy(format!(
                "{} is being detached: wait for its end, or cancel it \
                 (bdev_bcache_detach_cancel)",
                self.name
            ))),
        }
    }
}

impl Hub {
    /// Writes a volume's dirty data back and runs it without a cache. Those that lie beyond the end of
    /// its backing device are given up with `discard_dirty`. Where that is under way, waits for its end.
    ///
    /// # Errors
    /// See [`SetError`]; the volume stays attached then.
    pub async fn detach(&self, name: &str, discard_dirty: bool) -> Result<(), SetError> {
        let volume = self.volume_soon(name).await?;
        let Some(run) = volume.detaching.begin() else {
            volume.detaching.ended().await;
            let failure = volume.detaching.failure();
            return failure.map_or(Ok(()), |why| Err(SetError::Busy(why)));
        };
        run.end(self.part(&volume, discard_dirty).await)
    }

    /// As [`detach`](Self::detach), without waiting for the end.
    ///
    /// # Errors
    /// There is no such volume, or it cannot be detached.
    pub fn detach_start(&self, name: &str, discard_dirty: bool) -> Result<(), SetError> {
        let volume = self.volume(name)?;
        volume.check_open()?;
        check_backed(&volume)?;
        let (me, name) = (self.me.clone(), volume.name.clone());
        self.exec.spawn(async move {
            let Some(hub) = me.upgrade() else { return };
            if let Err(error) = hub.detach(&name.get(), discard_dirty).await {
                log::error!("detaching {name}: {error}");
            }
        });
        Ok(())
    }

    /// Writes all volumes of a set back, detaches them, and stops the set. Where that is under way,
    /// waits for its end.
    ///
    /// # Errors
    /// See [`SetError`]; volumes detached so far stay so.
    pub async fn unregister_set(&self, set: &str) -> Result<(), SetError> {
        let found = self.set(set)?;
        let Some(run) = found.unregistering.begin() else {
            found.unregistering.ended().await;
            let failure = found.unregistering.failure();
            return failure.map_or(Ok(()), |why| Err(SetError::Busy(why)));
        };
        run.end(self.unregister(&found, set).await)
    }

    async fn unregister(&self, set: &Rc<CacheSet>, uuid: &str) -> Result<(), SetError> {
        let volumes = self.volumes_of(set);
        for flash in volumes.iter().filter(|volume| volume.backing.is_none()) {
            self.check_no_user(flash)?;
        }
        let goes = |v: &&Rc<Volume>| v.backing.is_some() && v.check_open().is_ok();
        let backed = volumes.iter().filter(goes);
        let names: Vec<Name> = backed.map(|v| v.name.clone()).collect();
        drop(volumes);
        for (nth, name) in names.iter().enumerate() {
            let (done, left) = names.split_at(nth);
            if set.unregistering.is_cancelled() {
                return Err(half_way(set, done, left, cancelled("unregistering", uuid)));
            }
            let detached = self.detach(&name.get(), false).await;
            detached.map_err(|error| half_way(set, done, &left[1..], error))?;
        }
        self.stop_set(uuid).await
    }

    /// As [`unregister_set`](Self::unregister_set), without waiting for the end.
    ///
    /// # Errors
    /// No such set runs.
    pub fn unregister_start(&self, set: &str) -> Result<(), SetError> {
        self.set(set)?;
        let (me, set) = (self.me.clone(), set.to_string());
        self.exec.spawn(async move {
            let Some(hub) = me.upgrade() else { return };
            if let Err(error) = hub.unregister_set(&set).await {
                log::error!("unregistering cache set {set}: {error}");
            }
        });
        Ok(())
    }

    /// Gives up to unregister a set, and the detachment that is under way for it.
    ///
    /// # Errors
    /// No such set runs.
    pub fn unregister_cancel(&self, set: &str) -> Result<(), SetError> {
        let set = self.set(set)?;
        if set.unregistering.is_running() {
            set.unregistering.cancel();
            let volumes = self.volumes_of(&set);
            volumes.iter().for_each(|volume| volume.detaching.cancel());
        }
        Ok(())
    }

    /// Detaches a volume, whose job runs.
    async fn part(&self, volume: &Rc<Volume>, discard_dirty: bool) -> Result<(), SetError> {
        let Some(leaving) = self.begin_leaving(volume, discard_dirty).await? else {
            return Ok(());
        };
        let link = leaving.link.clone();
        // As long as this lives: writes over dirty data wait for these to be written back.
        let _wanted = link.set.writeback.want(&link.volume);
        match self.write_back(volume, &link).await {
            Ok(turn) => self.finish_leaving(volume, &link, turn).await,
            Err(error) => {
                stay(volume, &leaving);
                Err(error)
            }
        }
    }

    /// No new dirty data from here on, neither by the mode, once the fronts are made anew, nor over
    /// dirty data. Else such a write could end after the superblock has left the set.
    async fn begin_leaving(
        &self,
        volume: &Rc<Volume>,
        discard_dirty: bool,
    ) -> Result<Option<Leaving>, SetError> {
        let name = &volume.name();
        let (_turn, now) = self.turn_to_leave(volume).await?;
        if !Rc::ptr_eq(&now, volume) {
            return Err(SetError::NoVolume(name.clone()));
        }
        let backing = check_backed(volume)?;
        self.check_not_missing(volume)?;
        let Some(link) = volume.link.borrow().clone() else {
            let reason = volume.reason.borrow().clone();
            return match reason {
                Some(why) if !volume.is_running() => Err(SetError::Busy(why)),
                _ => forget_set(volume, &backing).await.map(|()| None),
            };
        };
        let (end, inode) = (backing.end(), link.volume.inode);
        let beyond = dirty_beyond(&link.set, inode, end);
        if beyond > 0 && !discard_dirty {
            return Err(SetError::Beyond {
                name: name.clone(),
                bytes: beyond * SECTOR_BYTES as u64,
                end,
            });
        }
        if !volume.is_running() {
            return Err(SetError::Busy(format!("{name} is not running")));
        }
        let wanted = link.set.writeback.want(&link.volume);
        link.set.owner.begin_leaving(&link.volume);
        let around = volume.view(Some(&link), 0);
        around.set_mode(CacheMode::WriteAround);
        let leaving = Leaving {
            link: link.clone(),
            around: around.clone(),
        };
        let exchanged = self.exchange_fronts(volume, around, Some(&link)).await;
        exchanged.inspect_err(|_| stay(volume, &leaving))?;
        if beyond > 0 {
            let dropped = drop_beyond(&link.set, inode, end).await;
            dropped.inspect_err(|_| stay(volume, &leaving))?;
            link.set.writeback.begin_anew(&link.volume);
        }
        drop(wanted);
        Ok(Some(leaving))
    }

    /// The turn of a volume, unless its detachment is cancelled before.
    async fn turn_to_leave(&self, volume: &Volume) -> Result<(Turn, Rc<Volume>), SetError> {
        let turn = Cell::new(None);
        let taken = async { turn.set(Some(self.turn_of(&volume.name()).await)) };
        either(taken, volume.detaching.cancelled()).await;
        let cancelled = || Err(cancelled("detaching", &volume.name()));
        turn.into_inner().unwrap_or_else(cancelled)
    }

    /// Waits until nothing is dirty. Returns the volume's turn, with which nothing becomes dirty and
    /// the backing device is flushed.
    async fn write_back(&self, volume: &Rc<Volume>, link: &Link) -> Result<Turn, SetError> {
        let failed = |e| write_back_failed(volume, &link.set, e);
        let done = Cell::new(None);
        let clean = async { done.set(Some(link.set.writeback.clean_all(&link.volume).await)) };
        either(clean, volume.detaching.cancelled()).await;
        match done.into_inner() {
            Some(done) => done.map_err(failed)?,
            None => return Err(cancelled("detaching", &volume.name())),
        }
        let (turn, now) = self.turn_to_leave(volume).await?;
        let same = volume
            .link
            .borrow()
            .as_ref()
            .is_some_and(|l| Rc::ptr_eq(&l.volume, &link.volume));
        if !Rc::ptr_eq(&now, volume) || !same {
            return Err(SetError::NoVolume(volume.name()));
        }
        if volume.detaching.is_cancelled() {
            return Err(cancelled("detaching", &volume.name()));
        }
        if !link.volume.is_leaving() || volume.dirty_bytes() > 0 {
            // A round failed meanwhile.
            return Err(failed(IoError::Failed));
        }
        link.volume.flush_backing().await.map_err(failed)?;
        Ok(turn)
    }

    /// The volume leaves: from here on a start runs it without the set.
    async fn finish_leaving(
        &self,
        volume: &Rc<Volume>,
        link: &Link,
        _turn: Turn,
    ) -> Result<(), SetError> {
        let backing = volume.backing.as_ref().expect("it was looked at");
        // Durable while the keys still hold. Data that became dirty before its turn came stay with the
        // set, and the volume too.
        let is_clean = || link.volume.is_leaving() && volume.dirty_bytes() == 0;
        let left = match backing.change_if(is_clean, leave).await {
            Ok(false) => Err(IoError::Failed),
            done => done.map(|_| ()),
        };
        if let Err(error) = left {
            let around = volume.shared.borrow().clone();
            if let Some(around) = around {
                let link = link.clone();
                stay(volume, &Leaving { link, around });
            }
            return Err(write_back_failed(volume, &link.set, error));
        }
        volume.link.take();
        self.reshape(volume).await?;
        link.set.owner.settled(&link.volume).await;
        link.set.remove_volume(&link.volume).await;
        let (inode, now_s) = (link.volume.inode, self.host.now_s());
        link.set
            .change_uuids(|table| table[inode.0 as usize].invalidate(now_s))
            .await?;
        drop_keys(&link.set, inode).await
    }
}

/// A volume that runs without a cache, and whose device may still name a set (its cache device went):
/// it does not come back to it.
async fn forget_set(volume: &Volume, backing: &Backing) -> Result<(), SetError> {
    if volume.is_running() && !backing.superblock().set_uuid.is_nil() {
        let left = backing.change(leave).await;
        left.map_err(|e| SetError::Io(backing.disk.name(), e))?;
    }
    volume.lost.take();
    Ok(())
}

/// The volume goes on as it was.
fn stay(volume: &Volume, leaving: &Leaving) {
    if let Some(mode) = volume.mode() {
        leaving.around.set_mode(mode);
    }
    leaving.link.set.owner.stay(&leaving.link.volume);
}

fn cancelled(what: &str, name: &str) -> SetError {
    SetError::Busy(format!("{what} {name} was cancelled"))
}

fn check_backed(volume: &Volume) -> Result<Rc<Backing>, SetError> {
    match &volume.backing {
        Some(backing) => Ok(backing.clone()),
        None => Err(SetError::Invalid(format!(
            "{} lives on its set alone and cannot be detached",
            volume.name()
        ))),
    }
}
