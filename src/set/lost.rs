//! Volumes whose cache device goes away, and comes back.
//!
//! A volume with nothing dirty goes on without its cache: its bdev and what hosts have of it stay.
//! Before the first write goes past the set, its superblock says that what the set holds is old
//! (stale). One with dirty data stays too, for `cache_missing_timeout_s`: what can be served without
//! the cache is ([`crate::request::missing`]), the rest waits or fails, as `cache_missing_io` says.
//! Then it is taken down, and waits for its cache as after a start.
//!
//! When the device comes back, the set is started, and its volumes join it again: the keys of a
//! stale one are dropped first, a dirty one finds all that the journal knew when the device went.
//!
//! All host I/O is held while a volume changes over, so none of it meets a set that stops.

use std::cell::Cell;
use std::rc::Rc;

use super::cache::CacheSet;
use super::closing::make_clean_durable;
use super::error::SetError;
use super::hub::Hub;
use super::turns::Place;
use super::volume::{Link, Volume};
use crate::format::superblock::BackingState;
use crate::options::VolumeOption;
use crate::request::missing::Missing;
use crate::task::{Once, join_all, once};
use crate::units::{Sector, Uuid};

/// What becomes of a volume when its cache device goes.
pub struct OnLoss {
    /// It is taken down, whatever it has.
    pub stops: Cell<bool>,
    /// With dirty data: I/O that needs the cache waits; else it fails.
    pub waits: Cell<bool>,
    /// With dirty data: how long its bdev stays, in s; 0: for ever.
    pub stays_s: Cell<u64>,
}

impl Default for OnLoss {
    fn default() -> Self {
        OnLoss {
            stops: Cell::new(false),
            waits: Cell::new(true),
            stays_s: Cell::new(VolumeOption::CacheMissingTimeoutS.number()),
        }
    }
}

/// A set that a volume was in when its device went.
pub struct Lost {
    set: Uuid,
    /// Sectors that are on the device alone.
    pub dirty_sectors: u64,
}

impl Hub {
    /// The cache device of a set goes: volumes that can go on do, the others are taken down and wait
    /// for its return, and the set stops.
    pub(super) async fn cache_removed(&self, set: Rc<CacheSet>) {
        // A stop that is under way, and gives up, does not open the set again.
        set.device_goes.set(true);
        let turn = self.turns.take(&[Place::Set(set.set_uuid())]).await;
        let mut waiting = Vec::new();
        if !set.closing.replace(true) {
            // All at once: a volume whose backing device is silent holds up no other one.
            let volumes = self.volumes_of(&set).into_iter();
            let moves = volumes.map(|volume| self.lose_cache(volume, &set));
            let down = join_all(moves.collect()).await;
            waiting.extend(down.into_iter().flatten());
        }
        drop(turn);
        while self.close_volumes(&set).await.is_err() {}
        if let Err(error) = self.stop_empty(&set).await {
            log::error!("{}: {error}", set.disk.name());
        }
        join_all(waiting).await;
    }

    /// Takes a volume out of a set whose device goes. One that cannot go on is taken down, and listed
    /// as waiting: returns the end of that, without a hold on the volume.
    async fn lose_cache(&self, volume: Rc<Volume>, set: &Rc<CacheSet>) -> Option<Once<()>> {
        let open = volume.check_open().is_ok();
        let backing = volume.backing.as_ref().filter(|_| open)?;
        let goes_on = !backing.on_loss.stops.get() && volume.is_running();
        let done = match goes_on {
            true => self.go_on_missing(&volume, set).await,
            false => Err(SetError::Busy(
                "stop_when_cache_set_failed is always".into(),
            )),
        };
        let error = done.err()?;
        log::warn!("volume {} is taken down: {error}", volume.name());
        volume.comes_back.set(true);
        let (me, (sender, ended)) = (self.me.clone(), once());
        self.exec.spawn(async move {
            if let Some(hub) = me.upgrade() {
                hub.take_down_to_wait(volume).await;
            }
            sender.send(());
        });
        Some(ended)
    }

    /// Takes a volume down, and lists it as one that waits for its set, unless its own device goes too.
    async fn take_down_to_wait(&self, volume: Rc<Volume>) {
        volume.comes_back.set(true);
        self.begin_close(&volume).wait().await;
    }

    /// Lists a volume that is taken down as one that waits for its set, in the step in which it leaves
    /// the table: a removal of its device finds one or the other.
    pub(super) fn list_again(&self, volume: &Volume) {
        let goes = volume.backing.as_ref().is_none_or(|b| b.goes.get());
        if volume.comes_back.get() && !goes {
            self.admit(&Volume::new(
                volume.name(),
                volume.uuid,
                volume.backing.clone(),
            ));
        }
    }

    /// Takes a volume out of a set whose device goes, with its bdev untouched.
    async fn go_on_missing(&self, volume: &Rc<Volume>, set: &Rc<CacheSet>) -> Result<(), SetError> {
        let (Some(backing), Some(link)) = (volume.backing.clone(), volume.link.borrow().clone())
        else {
            return Err(SetError::Busy("it lives on the set alone".into()));
        };
        volume.detaching.cancel();
        volume.flushing.cancel();
        self.show_missing(volume, Some(Missing::everything()))
            .await?;
        link.set.owner.settled(&link.volume).await;
        let ranges = self.dirty_ranges(volume, &link);
        let dirty_sectors = link.set.tree.dirty_sectors(link.volume.inode);
        let missing = match dirty_sectors {
            0 => {
                let stale = backing.change(|sb| sb.set_state(BackingState::Stale)).await;
                stale.map_err(|e| SetError::Io(backing.disk.name(), e))?;
                None
            }
            _ => {
                // What hosts were told is written must be there when the device comes back.
                let known = set.journal.commit().await;
                known.map_err(|_| SetError::Stopped(set.latch.why().unwrap_or_default()))?;
                make_clean_durable(volume, &link).await;
                Some(Missing::of(ranges, backing.on_loss.waits.get()))
            }
        };
        self.keep_options(volume);
        volume.link.take();
        link.set.remove_volume(&link.volume).await;
        let lost = Rc::new(Lost {
            set: set.set_uuid(),
            dirty_sectors,
        });
        *volume.lost.borrow_mut() = Some(lost.clone());
        self.show_missing(volume, missing).await?;
        match dirty_sectors {
            0 => log::warn!("volume {} goes on without a cache", volume.name()),
            _ => {
                log::error!(
                    "volume {} goes on without its cache, on which {} bytes of it are: what needs \
                     them, and all writes, wait or fail until {} is back",
                    volume.name(),
                    dirty_sectors * 512,
                    set.disk.name()
                );
                self.expire(volume, &lost, backing.on_loss.stays_s.get());
            }
        }
        Ok(())
    }

    /// The dirty ranges of a volume, in its own sectors.
    fn dirty_ranges(&self, volume: &Volume, link: &Link) -> Vec<(u64, u64)> {
        let backing = volume.backing.as_ref();
        let base = backing.map_or(0, |b| b.superblock().data_offset.0);
        let mut ranges = Vec::new();
        link.set
            .tree
            .scan(link.volume.inode, Sector(0), Sector::MAX, &mut |e| {
                if e.dirty {
                    let (from, to) = (e.start.0, e.end().0);
                    ranges.push((from.saturating_sub(base), to.saturating_sub(base)));
                }
                true
            });
        ranges
    }

    /// Makes hosts see a volume that has no cache, and lacks what is missing. Nothing waits for that
    /// on a volume which is being taken down: hosts could not let go of it.
    async fn show_missing(
        &self,
        volume: &Rc<Volume>,
        missing: Option<Missing>,
    ) -> Result<(), SetError> {
        let _turn = volume.exchanging.lock().await;
        let missing = missing.map(|missing| match volume.check_open() {
            Ok(()) => missing,
            Err(_) => missing.failing(),
        });
        let shared = volume.view_missing(missing);
        self.exchange_in_turn(volume, shared, None).await
    }

    /// Takes a volume down when its cache device does not come back in time.
    fn expire(&self, volume: &Rc<Volume>, lost: &Rc<Lost>, stays_s: u64) {
        if stays_s == 0 {
            return;
        }
        let (me, exec) = (self.me.clone(), self.exec.clone());
        let (volume, lost) = (Rc::downgrade(volume), Rc::downgrade(lost));
        self.exec.spawn(async move {
            exec.sleep_us(stays_s * 1_000_000).await;
            let (Some(hub), Some(volume)) = (me.upgrade(), volume.upgrade()) else {
                return;
            };
            let Ok((turn, _)) = hub.turn_of(&volume.name()).await else {
                return;
            };
            let same = |now: &Rc<Lost>| std::ptr::eq(Rc::as_ptr(now), lost.as_ptr());
            if !volume.lost.borrow().as_ref().is_some_and(same) {
                return;
            }
            log::error!(
                "volume {} is taken down: its cache device was not back within {stays_s} s \
                 (cache_missing_timeout_s)",
                volume.name()
            );
            drop(turn);
            hub.take_down_to_wait(volume).await;
        });
    }

    /// Lets nothing of a volume wait for its cache device any more.
    pub(super) async fn fail_missing(&self, volume: &Rc<Volume>) {
        // An exchange that has begun may still make I/O wait.
        let _turn = volume.exchanging.lock().await;
        let shared = volume.shared.borrow().clone();
        let missing = shared.as_ref().and_then(|shared| shared.missing.as_ref());
        if let Some(missing) = missing.filter(|missing| missing.waits) {
            let shared = volume.view_missing(Some(missing.failing()));
            if let Err(error) = self.exchange_in_turn(volume, shared, None).await {
                log::error!("{error}");
            }
        }
    }

    /// Whether a running volume wants to come back to a set.
    pub(super) fn has_lost(&self, volume: &Volume, set: Uuid) -> bool {
        volume.is_running() && volume.lost.borrow().as_ref().is_some_and(|l| l.set == set)
    }

    /// A set is back: a volume that went on without it joins it again.
    pub(super) async fn rejoin(
        &self,
        volume: &Rc<Volume>,
        set: &Rc<CacheSet>,
    ) -> Result<(), SetError> {
        // With nothing dirty when it went, what the set takes for dirty has been written back since.
        let lost = volume.lost.borrow().clone();
        let is_old = lost.is_some_and(|lost| lost.dirty_sectors == 0);
        self.join(volume, set, is_old).await?;
        self.reshape(volume).await?;
        log::info!("volume {} has its cache again", volume.name());
        Ok(())
    }

    /// Gives up the dirty data of a volume that are on a cache device which is gone, if there are any.
    ///
    /// # Errors
    /// There are, and `discard_dirty` is not said; or the backing device failed.
    pub(super) async fn give_up_missing(
        &self,
        volume: &Rc<Volume>,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        if self.check_not_missing(volume).is_ok() {
            return Ok(());
        }
        if !discard_dirty {
            return Err(SetError::WouldLose(format!(
                "{} has {} dirty bytes on a cache device that is gone",
                volume.name(),
                volume.dirty_bytes()
            )));
        }
        if let Some(backing) = &volume.backing {
            let stale = backing.change(|sb| sb.set_state(BackingState::Stale)).await;
            stale.map_err(|e| SetError::Io(backing.disk.name(), e))?;
        }
        volume.lost.take();
        self.show_missing(volume, None).await
    }

    /// # Errors
    /// The volume has dirty data on a cache device that is gone.
    pub(super) fn check_not_missing(&self, volume: &Volume) -> Result<(), SetError> {
        match &*volume.lost.borrow() {
            Some(lost) if lost.dirty_sectors > 0 => Err(SetError::CacheMissing {
                device: volume.name(),
                set: lost.set,
            }),
            _ => Ok(()),
        }
    }
}
