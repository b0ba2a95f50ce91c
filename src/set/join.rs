//! Volumes come to a set.
//!
//! What must never be: a backing device whose superblock says that its keys in a set hold (clean or
//! dirty, and the set's UUID) while they do not. So, before a volume runs without its set, its
//! superblock says so; and the keys of a volume whose superblock does not name the set are dropped
//! when it joins. A crash between any two steps leaves, at worst, an entry in the uuid table and
//! clean keys that nobody uses.

use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::hub::Hub;
use super::identity::dirty_beyond;
use super::register::RegisterAs;
use super::turns::Place;
use super::volume::{self, Backing, Link, Volume};
use crate::format::superblock::{BackingState, BackingSuper, RanOn};
use crate::format::uuids::UuidEntry;
use crate::units::{Inode, SECTOR_BYTES, Sector, Uuid};

/// How soon the note of a volume in its set's table is tried again at first: 10 ms.
const NOTE_FIRST_US: u64 = 10_000;
/// How often it is tried later: 1 s.
const NOTE_AGAIN_US: u64 = 1_000_000;

/// Whether a superblock says that the keys in this set hold.
fn is_member(sb: &BackingSuper, set: &CacheSet) -> bool {
    volume::is_member(sb, set.set_uuid())
}

/// The sequence number that the set has seen, where the superblock of a member has a lower one: it
/// is an older copy, and what the set holds may be newer or of data that it does not have.
fn is_older(sb: &BackingSuper, set: &CacheSet) -> Option<u64> {
    let inode = set.find_uuid(sb.uuid).filter(|_| is_member(sb, set))?;
    let seen = set.uuids()[inode.0 as usize].backing_seq;
    (sb.seq < seen).then_some(seen)
}

impl Hub {
    /// Whether a backing device may join a set; writes nothing.
    pub(super) fn check_join(
        &self,
        sb: &BackingSuper,
        device: &str,
        set: &Rc<CacheSet>,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        check_blocks(device, sb, set.superblock().block_sectors.into())?;
        set.check_open()?;
        if let Some(why) = set.latch.why() {
            return Err(SetError::Stopped(why));
        }
        let (member, known) = (is_member(sb, set), set.find_uuid(sb.uuid));
        self.check_no_loop(device, set)?;
        if let Some(seen) = is_older(sb, set).filter(|_| !discard_dirty) {
            return Err(SetError::OlderCopy {
                device: device.into(),
                seq: sb.seq,
                seen,
                set: set.set_uuid(),
            });
        }
        let dirty = sb.state() == BackingState::Dirty;
        if dirty && !member && !discard_dirty {
            return Err(SetError::CacheMissing {
                device: device.into(),
                set: sb.set_uuid,
            });
        }
        if dirty && known.is_none() && !discard_dirty {
            return Err(SetError::NotInSet {
                device: device.into(),
                set: set.set_uuid(),
            });
        }
        match known {
            Some(inode) if !member && set.tree.dirty_sectors(inode) > 0 && !discard_dirty => {
                Err(SetError::Dirty(device.into()))
            }
            None if set.free_uuid().is_none() => Err(SetError::NoRoom(set.set_uuid())),
            _ => Ok(()),
        }
    }

    /// Makes a volume with a backing device part of a set, on disk and in memory; it is not shown
    /// by this.
    pub(super) async fn join(
        &self,
        volume: &Rc<Volume>,
        set: &Rc<CacheSet>,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        let backing = volume.backing.clone().expect("only backed volumes join");
        let sb = backing.superblock();
        let name = backing.disk.name();
        self.check_join(&sb, &name, set, discard_dirty)?;
        let end = backing.end();
        self.check_end(volume, set, discard_dirty)?;
        let io = |e| SetError::Io(name.clone(), e);
        // What a clean key says is on the backing device must be durable there.
        backing.disk.flush().await.map_err(io)?;
        let (known, seen) = (set.find_uuid(sb.uuid), is_older(&sb, set));
        let kept = known.is_some() && is_member(&sb, set) && seen.is_none();
        let inode = match known {
            Some(inode) => inode,
            None => self.new_entry(set, volume, &sb).await?,
        };
        if !kept && known.is_some() {
            // It was without this cache since: its keys mean nothing any more.
            drop_keys(set, inode).await?;
        } else if kept && has_beyond(set, inode, end) {
            // Clean data that the device does not have any more are of no device; dirty data wait
            // for its size to come back, unless they are given up.
            drop_some(set, inode, end, !discard_dirty).await?;
        }
        self.say_member(set, &backing, inode, kept, seen).await?;
        // A new entry says all that already.
        let noted = known.is_none() || self.note_now(set, inode, &backing).await;
        // Its device may have gone meanwhile, and the volume with it.
        volume.check_open()?;
        let owned = set.add_volume(inode, Some(&backing));
        *volume.link.borrow_mut() = Some(Link::new(set, owned, &volume.totals));
        volume.lost.take();
        if !noted {
            self.note_soon(volume);
        }
        self.apply_later(volume);
        Ok(())
    }

    /// Makes the superblock of a backing device say that it is of a set. It is written each time, so
    /// that a copy which was made before has a lower sequence number. That of an older copy which was
    /// accepted gets past what the set has `seen`: it is the device from now on.
    async fn say_member(
        &self,
        set: &CacheSet,
        backing: &Backing,
        inode: Inode,
        kept: bool,
        seen: Option<u64>,
    ) -> Result<(), SetError> {
        let (sb, name) = (backing.superblock(), backing.disk.name());
        let note = RanOn::new(backing.disk.kind(), backing.disk.size_sectors());
        let dirty = set.tree.dirty_sectors(inode) > 0;
        let says_dirty = sb.state() == BackingState::Dirty && !backing.is_in_doubt();
        if kept && dirty && sb.state() == BackingState::Clean {
            log::warn!(
                "{name} says that it is clean, but cache set {} has dirty data of it: a kernel \
                 that crashed leaves that; it is marked dirty, and its volume starts with them",
                set.set_uuid()
            );
        }
        let set_it = |sb: &mut BackingSuper| {
            sb.set_ran_on(&note);
            sb.seq = sb.seq.max(seen.unwrap_or_default());
            sb.set_uuid = set.set_uuid();
            let stays = kept && sb.state() == BackingState::Dirty;
            sb.set_state(match dirty || stays {
                true => BackingState::Dirty,
                false => BackingState::Clean,
            });
        };
        let said = backing.change(set_it).await;
        match said {
            // What is dirty on the cache can be read all the same.
            Err(error) if kept && says_dirty && sb.ran_on().as_ref() == Some(&note) => {
                log::warn!("{name}: its superblock was not renewed: {error}");
                Ok(())
            }
            said => said.map_err(|e| SetError::Io(name, e)),
        }
    }

    /// Whether all dirty data that a set has of a volume lie within its backing device, or it was
    /// said that they need not.
    ///
    /// # Errors
    /// [`SetError::Beyond`].
    pub(super) fn check_end(
        &self,
        volume: &Volume,
        set: &CacheSet,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        let Some(backing) = &volume.backing else {
            return Ok(());
        };
        let (sb, end) = (backing.superblock(), backing.end());
        let known = set.find_uuid(sb.uuid).filter(|_| is_member(&sb, set));
        let sectors = known.map_or(0, |inode| dirty_beyond(set, inode, end));
        if sectors == 0 || discard_dirty {
            return Ok(());
        }
        let error = SetError::Beyond {
            name: volume.name(),
            bytes: sectors * SECTOR_BYTES as u64,
            end,
        };
        if !volume.accept_size.get() {
            return Err(error);
        }
        log::warn!("{error}; it is started, as was asked for");
        Ok(())
    }

    /// Notes in the uuid table what the set was told of a volume that is here: the sequence number of
    /// its superblock, so that an older copy is known for one, its label, and, as the kernel does, when
    /// that was. Nothing waits for it: false where the cache has no free bucket now, or hardly a block
    /// in its journal.
    pub(super) async fn note_now(&self, set: &CacheSet, inode: Inode, backing: &Backing) -> bool {
        if !set.alloc.take_ready(1) || set.journal.is_low() {
            return false;
        }
        let (now_s, sb) = (self.host.now_s(), backing.superblock());
        let noted = set.change_uuids(|table| {
            let entry = &mut table[inode.0 as usize];
            (entry.last_reg, entry.backing_seq, entry.label) = (now_s, sb.seq, sb.label);
        });
        if let Err(error) = noted.await {
            log::warn!("volume {} was not noted: {error}", inode.0);
        }
        true
    }

    /// The same once the cache has a free bucket: one that has just been started has none yet. Ends
    /// when the volume is in no set. One task does it for all that is to be noted of a volume.
    pub(super) fn note_soon(&self, volume: &Rc<Volume>) {
        // A volume that gives its name up is another one in the table, with the same flag.
        let (noting, uuid) = (volume.noting.clone(), volume.uuid);
        if noting.replace(true) {
            return;
        }
        let (me, exec, mut wait_us) = (self.me.clone(), self.exec.clone(), NOTE_FIRST_US);
        self.exec.spawn(async move {
            loop {
                exec.sleep_us(wait_us).await;
                wait_us = (wait_us * 2).min(NOTE_AGAIN_US);
                let Some(hub) = me.upgrade() else { break };
                if hub.note_of(uuid).await {
                    break;
                }
            }
            noting.set(false);
        });
    }

    /// Notes a volume in the table of its set; true when it is noted, or in no set any more.
    async fn note_of(&self, uuid: Uuid) -> bool {
        let place = |volume: &Rc<Volume>| {
            let (link, backing) = (volume.link.borrow().clone(), volume.backing.clone());
            link.zip(backing).filter(|_| volume.uuid == uuid)
        };
        let found = self.volumes.borrow().values().find_map(place);
        let Some((link, backing)) = found else {
            return true;
        };
        let place = Place::Set(link.set.set_uuid());
        let Some(_turn) = self.turns.try_take(&[place]) else {
            return false;
        };
        self.note_now(&link.set, link.volume.inode, &backing).await
    }

    async fn new_entry(
        &self,
        set: &CacheSet,
        volume: &Volume,
        sb: &BackingSuper,
    ) -> Result<Inode, SetError> {
        let inode = set
            .free_uuid()
            .ok_or_else(|| SetError::NoRoom(set.set_uuid()))?;
        let mut entry = UuidEntry::backing(volume.uuid, sb.label, self.host.now_s());
        entry.backing_seq = sb.seq;
        // Keys of a volume that had the entry before would be taken for this one's.
        drop_keys(set, inode).await?;
        set.change_uuids(|table| table[inode.0 as usize] = entry)
            .await?;
        Ok(inode)
    }

    /// Attaches a volume that runs without a cache, or waits for one, to a running set. With
    /// `discard_dirty`, dirty data of it that its set, or this one, has are given up.
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn attach(&self, name: &str, set: &str, discard_dirty: bool) -> Result<(), SetError> {
        let set = self.set(set)?;
        let (_turn, volume) = self
            .turn_of_with(name, &[Place::Set(set.set_uuid())])
            .await?;
        if volume.backing.is_none() {
            return Err(SetError::Invalid(format!(
                "{name} lives on its set alone and cannot be attached"
            )));
        }
        volume.check_stays()?;
        if let Some(link) = &*volume.link.borrow() {
            if link.set.set_uuid() == set.set_uuid() {
                return Ok(());
            }
            return Err(SetError::Busy(format!(
                "{name} is attached to cache set {}; detach it first",
                link.set.set_uuid()
            )));
        }
        if !volume.is_running() {
            self.check_unused(&volume.name())?;
        }
        self.join(&volume, &set, discard_dirty).await?;
        if volume.is_running() {
            self.reshape(&volume).await
        } else {
            self.show(&volume)
        }
    }

    /// Runs a volume that waits, for good: see [`run_alone`](Self::run_alone); with `accept_size`,
    /// one whose backing device is smaller than what its running set has of it, or than it was.
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn run(
        self: &Rc<Self>,
        name: &str,
        discard_dirty: bool,
        accept_size: bool,
    ) -> Result<(), SetError> {
        let waiting = match self.volume(name) {
            Ok(volume) => Some(volume).filter(|v| !v.is_running() && self.set_of(v).is_some()),
            Err(SetError::LeftAlone { device, .. }) if accept_size => {
                let how = RegisterAs {
                    accept_size: true,
                    ..RegisterAs::default()
                };
                return self.register_as(&device, &how).await.map(|_| ());
            }
            Err(error) => return Err(error),
        };
        if let Some(volume) = waiting.as_ref().filter(|_| !accept_size) {
            if let Some(set) = self.set_of(volume) {
                self.check_end(volume, &set, false)?;
            }
        }
        let Some(volume) = waiting.filter(|_| accept_size) else {
            return self.run_alone(name, discard_dirty).await;
        };
        drop(volume);
        let (_turn, volume) = self.turn_of(name).await?;
        if volume.is_running() {
            return Ok(());
        }
        let Some(set) = self.set_of(&volume) else {
            return Err(SetError::Busy(format!(
                "the cache set of {name} has stopped"
            )));
        };
        self.check_unused(&volume.name())?;
        volume.accept_size.set(true);
        self.join(&volume, &set, discard_dirty).await?;
        self.show(&volume)
    }

    /// The running set that a waiting volume's superblock names.
    fn set_of(&self, volume: &Volume) -> Option<Rc<CacheSet>> {
        let set = volume.backing.as_ref()?.superblock().set_uuid;
        self.find_set(set)
    }

    /// Runs a volume that waits for its cache set without it, for good: what the set holds of it is
    /// old from then on, and its superblock says so (stale) before the first host I/O.
    ///
    /// # Errors
    /// Its set runs, or has dirty data of it and `discard_dirty` is not said; see [`SetError`].
    pub async fn run_alone(&self, name: &str, discard_dirty: bool) -> Result<(), SetError> {
        let (_turn, volume) = self.turn_of(name).await?;
        if volume.is_running() {
            return self.give_up_missing(&volume, discard_dirty).await;
        }
        let backing = volume.backing.clone().expect("only backed volumes wait");
        let sb = backing.superblock();
        let set = self.find_set(sb.set_uuid);
        if set.is_some_and(|set| set.latch.check().is_ok()) {
            return Err(SetError::Busy(format!(
                "cache set {} of {name} runs: attach it, or detach it there",
                sb.set_uuid
            )));
        }
        if sb.state() == BackingState::Dirty && !discard_dirty {
            return Err(SetError::WouldLose(format!(
                "{name} has dirty data on cache set {}, which is not running; without them its \
                 backing device holds old data",
                sb.set_uuid
            )));
        }
        self.check_unused(&volume.name())?;
        backing
            .change(|sb| sb.set_state(BackingState::Stale))
            .await
            .map_err(|e| SetError::Io(backing.disk.name(), e))?;
        self.show(&volume)
    }
}

/// What a superblock says of a device that has left its set with all its data.
pub(super) fn leave(sb: &mut BackingSuper) {
    sb.set_uuid = Uuid::NIL;
    sb.set_state(BackingState::None);
}

/// Whether a backing device's blocks suit a set's.
pub(super) fn check_blocks(
    device: &str,
    sb: &BackingSuper,
    set_sectors: u32,
) -> Result<(), SetError> {
    if u32::from(sb.block_sectors) < set_sectors {
        return Err(SetError::BlockTooLarge {
            device: device.into(),
            set_sectors,
            device_sectors: sb.block_sectors.into(),
        });
    }
    Ok(())
}

/// Whether a set has any key of an inode from a sector on.
pub(super) fn has_beyond(set: &CacheSet, inode: Inode, end: Sector) -> bool {
    let mut any = false;
    set.tree.scan(inode, end, Sector::MAX, &mut |_| {
        any = true;
        false
    });
    any
}

/// Deletes all keys of an inode, durably.
pub(super) async fn drop_keys(set: &CacheSet, inode: Inode) -> Result<(), SetError> {
    drop_beyond(set, inode, Sector(0)).await
}

/// Deletes the keys of an inode from a sector on, durably.
pub(super) async fn drop_beyond(
    set: &CacheSet,
    inode: Inode,
    start: Sector,
) -> Result<(), SetError> {
    drop_some(set, inode, start, false).await
}

/// Deletes the keys of an inode that are clean, durably.
pub(super) async fn drop_clean(set: &CacheSet, inode: Inode) -> Result<(), SetError> {
    drop_some(set, inode, Sector(0), true).await
}

async fn drop_some(
    set: &CacheSet,
    inode: Inode,
    start: Sector,
    keep_dirty: bool,
) -> Result<(), SetError> {
    let stopped = |_| SetError::Stopped(set.latch.why().unwrap_or_default());
    set.tree
        .delete(inode, start, Sector(u64::MAX), keep_dirty)
        .await
        .map_err(stopped)?;
    set.journal.commit().await.map_err(stopped)
}
