//! One volume as the lifecycle knows it: its backing device's superblock, its place in a set, and
//! the form in which hosts see it.
//!
//! The superblock of a backing device is changed by one task at a time, each change durable before
//! the next. Its state goes none → clean when attached, → dirty before the first dirty data are
//! acknowledged, → clean when the journal says that the last are clean. Whether a change still makes
//! sense is looked at when its turn has come; and before anything but dirty is written, no more data
//! can become dirty ([`Backing::attachment`]). After a failed change what the device says is *in
//! doubt*, and the next change is written whatever memory says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::cache::{CacheSet, write_super};
use super::closing::Closing;
use super::format::LABEL_BYTES;
use super::identity::wanted_name;
use super::job::Job;
use super::lost::{Lost, OnLoss};
use crate::btree::Tree;
use crate::canary::{self, Bug};
use crate::disk::{Disk, IoError, Watched};
use crate::format::superblock::{BackingState, BackingSuper, CacheMode};
use crate::request::missing::Missing;
use crate::request::owner::{self, Attachment};
use crate::request::trouble::BackingHealth;
use crate::request::volume::{Name, VolumeShared};
use crate::stats::{Totals, Windows};
use crate::task::Lock;
use crate::units::{Inode, Sector, Uuid};

/// A backing device and its superblock.
pub struct Backing {
    /// The device.
    pub disk: Rc<dyn Disk>,
    /// The same, for the owner, whose errors count.
    pub watched: Rc<dyn Disk>,
    /// Its errors.
    pub health: Arc<BackingHealth>,
    /// What becomes of its volume when the cache device goes.
    pub on_loss: OnLoss,
    /// The device is being removed.
    pub(super) goes: Cell<bool>,
    /// As it was last written.
    superblock: RefCell<BackingSuper>,
    /// The last change failed: it may be on the device, in part or whole, or not.
    in_doubt: Cell<bool>,
    /// See [`Attachment::says_dirty`].
    says_dirty: Rc<Cell<bool>>,
    /// See [`Attachment::dirty_awaited`].
    dirty_awaited: Rc<Cell<bool>>,
    turn: Lock,
}

impl Backing {
    /// A backing device whose superblock is as given on disk.
    pub fn new(disk: Rc<dyn Disk>, superblock: BackingSuper) -> Rc<Backing> {
        let health: Arc<BackingHealth> = Arc::default();
        let counted = health.clone();
        Rc::new(Backing {
            watched: Rc::new(Watched::new(disk.clone(), move |failure| {
                counted.failed(failure.to_string())
            })),
            health,
            on_loss: OnLoss::default(),
            disk,
            goes: Cell::new(false),
            in_doubt: Cell::new(false),
            says_dirty: Rc::new(Cell::new(superblock.state() == BackingState::Dirty)),
            dirty_awaited: Rc::default(),
            superblock: RefCell::new(superblock),
            turn: Lock::default(),
        })
    }

    /// The superblock as it was last written.
    pub fn superblock(&self) -> BackingSuper {
        self.superblock.borrow().clone()
    }

    /// Notes when the device was brought up; on disk with the next change, as in the kernel.
    pub(super) fn note_mount(&self, now_s: u32) {
        self.superblock.borrow_mut().last_mount = now_s;
    }

    /// Whether the last change failed, so that the device may say something else than
    /// [`superblock`](Self::superblock).
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.get()
    }

    /// What the owner of a set's volumes gets of it.
    pub fn attachment(&self) -> Attachment {
        Attachment {
            disk: self.watched.clone(),
            says_dirty: self.says_dirty.clone(),
            dirty_awaited: self.dirty_awaited.clone(),
        }
    }

    /// Changes the superblock, durably. On failure memory keeps what was there.
    ///
    /// # Errors
    /// The device failed.
    pub async fn change(&self, change: impl FnOnce(&mut BackingSuper)) -> Result<(), IoError> {
        self.change_if(|| true, change).await.map(|_| ())
    }

    /// As [`change`](Self::change), if `may` says so when the turn for it has come; tells whether it
    /// did. From that moment on no data become dirty unless the superblock goes on to say dirty.
    ///
    /// # Errors
    /// The device failed.
    pub async fn change_if(
        &self,
        may: impl FnOnce() -> bool,
        change: impl FnOnce(&mut BackingSuper),
    ) -> Result<bool, IoError> {
        let _turn = self.turn.lock().await;
        if !may() {
            return Ok(false);
        }
        let mut next = self.superblock();
        change(&mut next);
        self.write(next).await.map(|()| true)
    }

    /// Writes the next superblock; the caller has the turn.
    async fn write(&self, mut next: BackingSuper) -> Result<(), IoError> {
        let says_dirty = next.state() == BackingState::Dirty;
        self.says_dirty.set(self.says_dirty.get() && says_dirty);
        self.in_doubt.set(true);
        next.seq = next.seq.wrapping_add(1);
        let written = write_super(&self.watched, &next.encode()).await;
        if !canary::has(Bug::SuperBelieved) {
            written?;
        }
        *self.superblock.borrow_mut() = next;
        self.in_doubt.set(false);
        self.says_dirty.set(says_dirty);
        Ok(())
    }

    /// Makes it say dirty, unless it has left the set meanwhile.
    ///
    /// # Errors
    /// The device failed, or is none of the set's.
    pub async fn mark_dirty(&self, set: Uuid) -> Result<(), IoError> {
        let _turn = self.turn.lock().await;
        let mut next = self.superblock();
        if !is_member(&next, set) {
            return Err(IoError::Gone);
        }
        if self.says_dirty.get() && !self.in_doubt.get() {
            return Ok(());
        }
        next.set_state(BackingState::Dirty);
        self.write(next).await
    }

    /// Makes it say clean once the journal knows that it is, unless something is dirty or it has left
    /// the set meanwhile.
    ///
    /// # Errors
    /// The device failed, or the set has stopped.
    pub async fn mark_clean(&self, set: Uuid, inode: Inode, tree: &Tree) -> Result<(), IoError> {
        let _turn = self.turn.lock().await;
        let mut next = self.superblock();
        let is_dirty = tree.dirty_sectors(inode) > 0 || self.dirty_awaited.get();
        if !is_member(&next, set) || is_dirty {
            return Ok(());
        }
        // Nothing becomes dirty from here on: a crash must not find dirty keys of a device that says
        // that it is clean.
        self.says_dirty.set(false);
        tree.journal.commit().await.map_err(|_| IoError::Gone)?;
        next.set_state(BackingState::Clean);
        self.write(next).await
    }

    /// Whether it says clean, durably, as a member of that set.
    pub fn says_clean(&self, set: Uuid) -> bool {
        let superblock = self.superblock.borrow();
        let clean = superblock.set_uuid == set && superblock.state() == BackingState::Clean;
        clean && !self.in_doubt.get()
    }

    /// The first sector that the device does not have, or not whole blocks of: keys of the volume
    /// name the device's sectors, and those from here on cannot be written back.
    pub fn end(&self) -> Sector {
        self.superblock.borrow().data_offset + self.volume_sectors()
    }

    /// Sectors of the volume on it.
    pub fn volume_sectors(&self) -> u64 {
        let superblock = self.superblock.borrow();
        let block = u64::from(superblock.block_sectors);
        let raw = self
            .disk
            .size_sectors()
            .saturating_sub(superblock.data_offset.0);
        raw / block * block
    }
}

/// Whether a superblock says that the keys in a set hold: it has not left the set, nor run without it.
pub(super) fn is_member(sb: &BackingSuper, set: Uuid) -> bool {
    sb.set_uuid == set && matches!(sb.state(), BackingState::Clean | BackingState::Dirty)
}

/// A volume's place in a set.
#[derive(Clone)]
pub struct Link {
    /// The set.
    pub set: Rc<CacheSet>,
    /// The volume as the set's owner knows it.
    pub volume: Rc<owner::Volume>,
}

impl Link {
    /// A volume's place in a set. What the set's owner counts of the volume is the volume's, too.
    pub fn new(set: &Rc<CacheSet>, owned: Rc<owner::Volume>, totals: &Totals) -> Link {
        totals.add(&owned.counting);
        Link {
            set: set.clone(),
            volume: owned,
        }
    }
}

/// A volume.
pub struct Volume {
    /// The name of its bdev.
    pub(super) name: Name,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its backing device; `None` for one that lives on the cache alone.
    pub backing: Option<Rc<Backing>>,
    /// Where it is cached.
    pub link: RefCell<Option<Link>>,
    /// What hosts see; `None` while the volume waits for its set.
    pub shared: RefCell<Option<Arc<VolumeShared>>>,
    /// What its fronts are being exchanged for: some have it already, and hosts I/O through them.
    pub(super) coming: RefCell<Option<Arc<VolumeShared>>>,
    /// Held while that is exchanged.
    pub(super) exchanging: Lock,
    /// The counters of all its fronts.
    pub totals: Arc<Totals>,
    /// Its statistics over time.
    pub windows: RefCell<Windows>,
    /// A flush that was asked for.
    pub flushing: Job,
    /// Its detachment.
    pub detaching: Job,
    /// Its cache device is gone, and it goes on without.
    pub(super) lost: RefCell<Option<Rc<Lost>>>,
    /// Once it is taken down it waits for its set.
    pub(super) comes_back: Cell<bool>,
    /// The end of its bdev, once it is taken down.
    pub(super) closing: RefCell<Option<Rc<Closing>>>,
    /// Why it does not run, or not under the name that it wants.
    pub reason: RefCell<Option<String>>,
    /// A task waits until it can be noted in its set's table.
    pub(super) noting: Rc<Cell<bool>>,
    /// It was started although the cache has dirty data beyond the end of its backing device.
    pub accept_size: Cell<bool>,
}

impl Volume {
    /// A volume that is not shown yet.
    pub fn new(name: String, uuid: Uuid, backing: Option<Rc<Backing>>) -> Rc<Volume> {
        if let Some(backing) = &backing {
            backing.health.belongs_to(&name, &backing.disk.name());
        }
        Rc::new(Volume {
            name: Name::new(name),
            uuid,
            backing,
            link: RefCell::default(),
            shared: RefCell::default(),
            coming: RefCell::default(),
            exchanging: Lock::default(),
            totals: Arc::default(),
            windows: RefCell::default(),
            flushing: Job::default(),
            detaching: Job::default(),
            lost: RefCell::default(),
            comes_back: Cell::default(),
            closing: RefCell::default(),
            reason: RefCell::default(),
            noting: Rc::default(),
            accept_size: Cell::new(false),
        })
    }

    /// The same volume under another name, not shown; this one has no link any more. What has the
    /// cell of its name follows it.
    pub(super) fn renamed(&self, name: &str) -> Rc<Volume> {
        self.set_name(name);
        Rc::new(Volume {
            name: self.name.clone(),
            uuid: self.uuid,
            backing: self.backing.clone(),
            link: RefCell::new(self.link.take()),
            shared: RefCell::default(),
            coming: RefCell::default(),
            exchanging: Lock::default(),
            totals: self.totals.clone(),
            windows: RefCell::new(self.windows.take()),
            flushing: Job::default(),
            detaching: Job::default(),
            lost: RefCell::new(self.lost.take()),
            comes_back: Cell::default(),
            closing: RefCell::default(),
            reason: RefCell::default(),
            noting: self.noting.clone(),
            accept_size: self.accept_size.clone(),
        })
    }

    /// The name of its bdev.
    pub fn name(&self) -> String {
        self.name.get()
    }

    /// Changes the name of its bdev wherever it is shown or logged; its key in the hub's table is the
    /// caller's.
    pub(super) fn set_name(&self, name: &str) {
        self.name.set(name);
        if let Some(backing) = &self.backing {
            backing.health.belongs_to(name, &backing.disk.name());
        }
    }

    /// What stands on disk of its name; empty where it has none.
    pub(super) fn label(&self) -> [u8; LABEL_BYTES] {
        let of_table = || {
            let link = self.link.borrow();
            let link = link.as_ref()?;
            let table = link.set.uuids();
            table.get(link.volume.inode.0 as usize).map(|e| e.label)
        };
        match &self.backing {
            Some(backing) => backing.superblock.borrow().label,
            None => of_table().unwrap_or_default(),
        }
    }

    /// The name that its label asks for, or its UUID where it has none.
    pub fn wanted_name(&self) -> String {
        wanted_name(&self.label(), self.uuid)
    }

    /// Whether hosts can use it.
    pub fn is_running(&self) -> bool {
        self.is_shown() && self.closing.borrow().is_none()
    }

    /// Whether it has a bdev, which may be about to go.
    pub(super) fn is_shown(&self) -> bool {
        self.shared.borrow().is_some()
    }

    /// Whether it waits for a cache set, which is not running.
    pub fn is_waiting(&self) -> bool {
        !self.is_running() && self.link.borrow().is_none()
    }

    /// Dirty bytes on the cache device; 0 where they are not known, because it waits for its set.
    pub fn dirty_bytes(&self) -> u64 {
        let link = self.link.borrow();
        let held = link
            .as_ref()
            .map(|l| l.set.tree.dirty_sectors(l.volume.inode));
        let lost = || self.lost.borrow().as_ref().map_or(0, |l| l.dirty_sectors);
        held.unwrap_or_else(lost) * 512
    }

    /// The inode under which its set knows it.
    pub fn inode(&self) -> Option<Inode> {
        self.link.borrow().as_ref().map(|l| l.volume.inode)
    }

    /// The mode that its superblock says; a volume on the cache alone has none.
    pub fn mode(&self) -> Option<CacheMode> {
        self.backing
            .as_ref()
            .map(|b| b.superblock.borrow().cache_mode())
    }

    /// What hosts shall see of it, cached as `link` says.
    pub fn view(&self, link: Option<&Link>, flash_sectors: u64) -> Arc<VolumeShared> {
        let attached = link.map(|l| l.set.owner.attached(&l.volume));
        let (block, size, offset, mode) = match &self.backing {
            Some(backing) => {
                let superblock = backing.superblock.borrow();
                (
                    u32::from(superblock.block_sectors),
                    backing.volume_sectors(),
                    Some(superblock.data_offset),
                    superblock.cache_mode(),
                )
            }
            None => {
                let block = link.map_or(8, |l| l.set.superblock().block_sectors.into());
                (block, flash_sectors, None, CacheMode::WriteBack)
            }
        };
        let shared = VolumeShared::new(
            self.name.clone(),
            self.uuid,
            block,
            size,
            offset,
            attached,
            mode,
            self.totals.clone(),
        );
        Arc::new(match &self.backing {
            Some(backing) => shared.with_health(backing.health.clone()),
            None => shared,
        })
    }

    /// Hosts may use so many sectors from now on.
    pub(super) fn set_size_sectors(&self, sectors: u64) {
        for shared in [&self.shared, &self.coming] {
            if let Some(shared) = &*shared.borrow() {
                shared.set_size_sectors(sectors);
            }
        }
    }

    /// What hosts shall see of it while its cache device is gone.
    pub(super) fn view_missing(&self, missing: Option<Missing>) -> Arc<VolumeShared> {
        let shared = self.view(None, 0);
        match missing {
            None => shared,
            Some(missing) => Arc::new(Arc::into_inner(shared).expect("it is new").without(missing)),
        }
    }
}
