//! Devices that have appeared: what is on them is brought up.
//!
//! A cache device brings its set up, its flash volumes, and the volumes that waited for it. A
//! backing device that is of no set is shown as it is; one of a set that does not run waits for it,
//! clean or dirty: writes past a cache that comes back later would make the cache stale.

use std::rc::{Rc, Weak};

use super::cache::{CacheSet, read_super};
use super::claims::{Claim, Key};
use super::error::SetError;
use super::format;
use super::host::OpenError;
use super::hub::Hub;
use super::identity::wanted_name;
use super::members::flash_end;
use super::options::apply_to_set;
use super::turns::{Place, Turn};
use super::volume::{Backing, Link, Volume};
use crate::disk::Disk;
use crate::format::superblock::{BackingState, BackingSuper, CacheSuper, RanOn, Super};
use crate::format::uuids::UuidEntry;
use crate::rng::Rng;
use crate::units::{Inode, Uuid};

/// What a device turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// A cache device, not a backing device.
    pub is_cache: bool,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its set's UUID; nil for a backing device of none.
    pub set: Uuid,
}

/// How a device is to be brought up.
#[derive(Clone, Debug, Default)]
pub struct RegisterAs {
    /// The name of the volume, written to the device as its label.
    pub name: Option<String>,
    /// It is a copy: it gets a UUID of its own.
    pub new_uuid: bool,
    /// It may be smaller than what the cache holds of it.
    pub accept_size: bool,
}

impl RegisterAs {
    fn is_plain(&self) -> bool {
        self.name.is_none() && !self.new_uuid
    }
}

impl Hub {
    /// Brings up what a device holds.
    ///
    /// # Errors
    /// See [`register_as`](Self::register_as).
    pub async fn register(self: &Rc<Self>, bdev: &str) -> Result<Registered, SetError> {
        self.register_as(bdev, &RegisterAs::default()).await
    }

    /// Brings up what a device holds, as is said.
    ///
    /// # Errors
    /// It holds nothing of bcache's, or what it holds cannot be brought up.
    pub async fn register_as(
        self: &Rc<Self>,
        bdev: &str,
        how: &RegisterAs,
    ) -> Result<Registered, SetError> {
        let (mut turn, bdev) = self.turn_of_bdev(bdev).await;
        let mut claim = self.claims.bdevs(&[&bdev]).await;
        if let Some(set) = self.set_on(&bdev) {
            how.check_cache(&bdev)?;
            turn.widen(Place::Set(set.set_uuid())).await;
            set.check_open()?;
            self.bring_up_flash(&set).await;
            return Ok(registered_cache(&set));
        }
        if let Some(volume) = self.volume_on(&bdev) {
            if !how.is_plain() && (how.new_uuid || how.name.as_ref() != Some(&volume.name())) {
                return Err(SetError::Busy(format!(
                    "{bdev} is the backing device of volume {}: delete the volume first \
                     (bdev_bcache_delete; its data stay), then register the device",
                    volume.name()
                )));
            }
            volume.check_open()?;
            turn.widen(Place::Volume(volume.name())).await;
            turn.widen_by_set_of(&volume).await;
            volume.check_open()?;
            return self.bring_up(volume, how.accept_size).await;
        }
        let disk = self.open(&bdev)?;
        match read_super(&disk).await? {
            Super::Cache(sb) => {
                how.check_cache(&bdev)?;
                self.check_twin(&bdev, sb.uuid, Some(sb.set_uuid))?;
                claim.add(Key::Uuid(sb.set_uuid))?;
                self.note_carried(&bdev, sb.uuid).await?;
                turn.widen(Place::Set(sb.set_uuid)).await;
                let set = self.start_set(disk, sb).await?;
                self.bring_up_flash(&set).await;
                self.bring_up_waiting(&set).await;
                Ok(registered_cache(&set))
            }
            Super::Backing(sb) => self.register_backing(turn, disk, sb, how, claim).await,
        }
    }

    /// A turn on a bdev, which may get another name before, and its own name.
    async fn turn_of_bdev(&self, bdev: &str) -> (Turn, String) {
        loop {
            let own = self.own_name(bdev);
            let turn = self.turns.take(&[Place::Device(own.clone())]).await;
            if self.own_name(bdev) == own {
                return (turn, own);
            }
        }
    }

    /// As [`register`](Self::register), or when a bdev of that name appears. A missing cache is no
    /// error either: the volume waits for it.
    ///
    /// # Errors
    /// What is there now cannot be brought up.
    pub async fn register_when_up(self: &Rc<Self>, bdev: &str) -> Result<(), SetError> {
        match self.register(bdev).await {
            Ok(_) => Ok(()),
            Err(SetError::Open(_, OpenError::NotFound)) => {
                let mut later = self.later.borrow_mut();
                later.bdevs.insert(bdev.into());
                Ok(())
            }
            Err(SetError::CacheMissing { device, set }) => {
                log_waiting(&device, set);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn register_backing(
        &self,
        mut turn: Turn,
        disk: Rc<dyn Disk>,
        mut sb: BackingSuper,
        how: &RegisterAs,
        mut claim: Claim,
    ) -> Result<Registered, SetError> {
        let bdev = disk.name();
        format::check_geometry(&disk, &sb)?;
        if how.new_uuid {
            format::check_clone(&bdev, &sb)?;
        } else {
            self.check_twin(&bdev, sb.uuid, None)?;
            claim.add(Key::Uuid(sb.uuid))?;
        }
        let label = match &how.name {
            Some(name) => {
                self.check_name(name)?;
                self.claims.check(&Key::Name(name.clone()))?;
                Some(format::label(name)?)
            }
            None => None,
        };
        let old = sb.clone();
        if how.new_uuid {
            sb.become_clone(Rng::new(self.host.entropy()).uuid());
        }
        if let Some(label) = label {
            sb.label = label;
        }
        self.note_carried(&bdev, sb.uuid).await?;
        let (name, reason) = self.name_for(&sb.label, sb.uuid, None).await?;
        claim.add(Key::Name(name.clone()))?;
        turn.widen(Place::Volume(name.clone())).await;
        // On disk with the next change, as in the kernel.
        sb.last_mount = self.host.now_s();
        let (uuid, label) = (sb.uuid, sb.label);
        let backing = Backing::new(disk, old);
        if !how.is_plain() {
            let changed = backing.change(|on_disk| *on_disk = sb).await;
            changed.map_err(|e| SetError::Io(bdev.clone(), e))?;
            let of = wanted_name(&label, uuid);
            log::info!("{bdev} has UUID {uuid} now, and its volume is called {of}");
        } else {
            backing.note_mount(self.host.now_s());
        }
        let volume = Volume::new(name, uuid, Some(backing));
        *volume.reason.borrow_mut() = reason;
        turn.widen_by_set_of(&volume).await;
        self.bring_up(volume, how.accept_size).await
    }

    /// Shows a volume, or lets it wait.
    pub(super) async fn bring_up(
        &self,
        volume: Rc<Volume>,
        accept_size: bool,
    ) -> Result<Registered, SetError> {
        let backing = volume.backing.clone().expect("it was found by its device");
        let sb = backing.superblock();
        let answer = Registered {
            is_cache: false,
            uuid: sb.uuid,
            set: sb.set_uuid,
        };
        if volume.is_running() {
            return Ok(answer);
        }
        if !matches!(sb.state(), BackingState::Clean | BackingState::Dirty) {
            self.note_ran_on(&backing).await;
            self.show(&volume)?;
        } else if let Some(set) = self.find_set(sb.set_uuid) {
            self.check_unused(&volume.name())?;
            volume
                .accept_size
                .set(accept_size || volume.accept_size.get());
            if let Err(error) = self.check_end(&volume, &set, false) {
                // It waits, and keeps its name, until it is told to run or has its size back.
                *volume.reason.borrow_mut() = Some(error.to_string());
                self.admit(&volume);
                return Err(error);
            }
            self.join(&volume, &set, false).await?;
            self.show(&volume)?;
        } else {
            self.admit(&volume);
            if sb.state() == BackingState::Dirty {
                return Err(SetError::CacheMissing {
                    device: backing.disk.name(),
                    set: sb.set_uuid,
                });
            }
            let bdev = backing.disk.name();
            log::info!(
                "volume {} on {bdev} waits for cache set {}",
                volume.name(),
                sb.set_uuid
            );
        }
        Ok(answer)
    }

    /// Notes on a backing device what it runs on. Where that fails the volume runs all the same:
    /// examine then knows less at the next start.
    async fn note_ran_on(&self, backing: &Rc<Backing>) {
        let note = RanOn::new(backing.disk.kind(), backing.disk.size_sectors());
        if backing.superblock().ran_on().as_ref() == Some(&note) {
            return;
        }
        if let Err(error) = backing.change(|sb| sb.set_ran_on(&note)).await {
            let bdev = backing.disk.name();
            log::warn!("{bdev}: what it runs on could not be noted: {error}");
        }
    }

    /// Starts the set on a device.
    pub(super) async fn start_set(
        &self,
        disk: Rc<dyn Disk>,
        sb: CacheSuper,
    ) -> Result<Rc<CacheSet>, SetError> {
        self.check_twin(&disk.name(), sb.uuid, Some(sb.set_uuid))?;
        let name = disk.name();
        log::info!("{name}: starting cache set {}", sb.set_uuid);
        let set = CacheSet::start(&*self.host, self.exec.clone(), disk, sb).await?;
        self.admit_set(&set);
        self.watch(&set);
        let options = self.later.borrow_mut().sets.remove(&set.set_uuid());
        if let Some(options) = options {
            apply_to_set(&set, &options);
        }
        if let Err(error) = self.drop_gone(&set).await {
            log::error!("{name}: {error}");
        }
        Ok(set)
    }

    /// Brings up the volumes that waited for a set.
    pub(super) async fn bring_up_waiting(&self, set: &Rc<CacheSet>) {
        self.warn_beyond_of(set.set_uuid());
        // Held no longer than it is looked at: one that is deleted while another comes lets its device go.
        let volumes: Vec<_> = self.volumes().iter().map(Rc::downgrade).collect();
        for volume in volumes.iter().filter_map(Weak::upgrade) {
            if !self.waits_for(&volume, set) {
                continue;
            }
            let mut places = Self::places_of(&volume);
            places.retain(|place| !matches!(place, Place::Set(_)));
            match self.turns.try_take(&places) {
                Some(_turn) => self.come_to(&volume, set).await,
                None => self.bring_up_later(&volume, set),
            }
        }
    }

    /// Whether a volume would be up, or have its cache again, with that set.
    fn waits_for(&self, volume: &Volume, set: &CacheSet) -> bool {
        let backing = volume.backing.as_ref().map(|b| b.superblock());
        let waits = backing.is_some_and(|sb| sb.set_uuid == set.set_uuid());
        waits && (!volume.is_shown() || self.has_lost(volume, set.set_uuid()))
    }

    /// Brings up a volume that waits for a set. The caller has the turns of both.
    async fn come_to(&self, volume: &Rc<Volume>, set: &Rc<CacheSet>) {
        let done = match self.has_lost(volume, set.set_uuid()) {
            true => self.rejoin(volume, set).await,
            false => self.bring_up(volume.clone(), false).await.map(|_| ()),
        };
        if let Err(error) = done {
            log::error!("volume {} was not brought up: {error}", volume.name());
            *volume.reason.borrow_mut() = Some(error.to_string());
        }
    }

    /// Another operation is at a volume that waits for a set. It may bring the volume to the set by
    /// itself, or be refused: when it has ended the volume is looked at again.
    fn bring_up_later(&self, volume: &Volume, set: &CacheSet) {
        let (me, name, uuid) = (self.me.clone(), volume.name.clone(), set.set_uuid());
        self.exec.spawn(async move {
            let Some(hub) = me.upgrade() else { return };
            let Ok((_turn, volume)) = hub.turn_of(&name.get()).await else {
                return;
            };
            if let Some(set) = hub.find_set(uuid) {
                if hub.waits_for(&volume, &set) {
                    hub.come_to(&volume, &set).await;
                }
            }
        });
    }

    /// Brings up the volumes that live on a set alone and are not up.
    pub(super) async fn bring_up_flash(&self, set: &Rc<CacheSet>) {
        // What a set that failed has in its table may not be on the disk.
        if set.closing.get() || set.latch.check().is_err() {
            return;
        }
        let up: Vec<Uuid> = self.volumes_of(set).iter().map(|v| v.uuid).collect();
        for (i, entry) in set.uuids().into_iter().enumerate() {
            if entry.is_live() && entry.is_flash_only() && !up.contains(&entry.uuid) {
                let mut claim = self.claims.none();
                if claim.add(Key::Uuid(entry.uuid)).is_err() {
                    log::info!("flash volume {} is being deleted", entry.uuid);
                    continue;
                }
                if let Err(error) = self.show_flash(set, Inode(i as u32), &entry).await {
                    log::error!("flash volume {} was not brought up: {error}", entry.uuid);
                }
            }
        }
    }

    pub(super) async fn show_flash(
        &self,
        set: &Rc<CacheSet>,
        inode: Inode,
        entry: &UuidEntry,
    ) -> Result<String, SetError> {
        let in_turn = Some(set.set_uuid());
        let (name, reason) = self.name_for(&entry.label, entry.uuid, in_turn).await?;
        if flash_end(set, entry).is_none() {
            return Err(SetError::Invalid(format!(
                "{}: volume {} of the uuid table cannot have {} sectors",
                set.disk.name(),
                inode.0,
                entry.sectors
            )));
        }
        let volume = Volume::new(name.clone(), entry.uuid, None);
        *volume.reason.borrow_mut() = reason;
        let owned = set.add_volume(inode, None);
        let link = Link::new(set, owned, &volume.totals);
        let shared = volume.view(Some(&link), entry.sectors);
        *volume.link.borrow_mut() = Some(link);
        self.apply_later(&volume);
        self.expose(&volume, shared)?;
        Ok(name)
    }

    /// Looks at a device that has appeared, and brings up what it holds, if that is wanted. Errors
    /// are logged. What is not bcache's is no error, and what cannot bear a superblock neither.
    pub async fn examine(self: &Rc<Self>, bdev: &str) {
        let asked = self.take_asked(bdev);
        let wanted = self.examine_enabled.get() && !self.is_excluded(bdev);
        if !(asked || wanted) || self.set_on(bdev).is_some() {
            return;
        }
        let disk = match self.host.peek(bdev) {
            Ok(disk) => disk,
            Err(error) if asked => return log::error!("{bdev}: {error}"),
            Err(_) => return,
        };
        let found = match read_super(&disk).await {
            Ok(found) if !asked && !self.is_known_on(bdev, &found) => return,
            Ok(found) => found,
            Err(SetError::Super(name, error)) => {
                return log::error!("{name} bears bcache's magic number, but: {error}");
            }
            Err(error) if asked => return log::error!("{error}"),
            Err(_) => return,
        };
        let (why, size_sectors) = (self.misfit(&disk, &found), disk.size_sectors());
        // Not held while others are waited for: whoever removes the bdev waits for its close.
        drop(disk);
        if let Some(why) = why.filter(|_| !asked) {
            let why = SetError::Misfit(bdev.into(), why);
            return self.leave_alone(bdev, size_sectors, found, &why);
        }
        match self.register(bdev).await {
            Ok(_) | Err(SetError::Open(_, OpenError::Busy)) => {}
            Err(error @ (SetError::Twin { .. } | SetError::OlderCopy { .. })) => {
                self.leave_alone(bdev, size_sectors, found, &error);
            }
            Err(SetError::CacheMissing { device, set }) => log_waiting(&device, set),
            Err(SetError::Open(name, OpenError::Unfit(why))) => {
                log::warn!("{name} bears a superblock of bcache and is not started: {why}");
            }
            Err(error) => log::error!("{error}"),
        }
    }

    /// Whether a bdev that has appeared was waited for, under its own name or an alias; it is not any
    /// more.
    fn take_asked(&self, bdev: &str) -> bool {
        let mut later = self.later.borrow_mut();
        let before = later.bdevs.len();
        let is_it = |name: &String| name == bdev || self.own_name(name) == bdev;
        later.bdevs.retain(|name| !is_it(name));
        later.bdevs.len() < before
    }

    /// Whether examine is to leave a bdev alone.
    fn is_excluded(&self, bdev: &str) -> bool {
        let excluded = self.examine_exclude.borrow();
        excluded
            .iter()
            .any(|name| name == bdev || self.own_name(name) == bdev)
    }
}

impl RegisterAs {
    /// Whether this can be asked of a cache device.
    fn check_cache(&self, bdev: &str) -> Result<(), SetError> {
        match self.is_plain() {
            true => Ok(()),
            false => Err(SetError::Invalid(format!(
                "{bdev} is a cache device: name and new_uuid are for backing devices"
            ))),
        }
    }
}

/// A backing device came before its cache device, as at many a boot: no reason to warn.
fn log_waiting(device: &str, set: Uuid) {
    log::info!("{device} has dirty data on cache set {set}, and waits for it");
}

fn registered_cache(set: &CacheSet) -> Registered {
    Registered {
        is_cache: true,
        uuid: set.superblock().uuid,
        set: set.set_uuid(),
    }
}
