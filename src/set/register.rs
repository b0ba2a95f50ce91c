//! Devices that have appeared: what is on them is brought up.
//!
//! A cache device brings its set up, its flash volumes, and the volumes that waited for it. A
//! backing device that is of no set is shown as it is; one of a set that does not run waits for it,
//! clean or dirty: writes past a cache that comes back later would make the cache stale.

use std::rc::Rc;

use super::cache::{CacheSet, read_super};
use super::error::SetError;
use super::format;
use super::host::OpenError;
use super::hub::Hub;
use super::options::apply_to_set;
use super::volume::{Backing, Link, Volume};
use crate::disk::Disk;
use crate::format::superblock::{BackingState, BackingSuper, CacheSuper, Super};
use crate::format::uuids::UuidEntry;
use crate::limits::MAX_KEY_OFFSET;
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

impl Hub {
    /// Brings up what a device holds.
    ///
    /// # Errors
    /// It holds nothing of bcache's, or what it holds cannot be brought up.
    pub async fn register(self: &Rc<Self>, bdev: &str) -> Result<Registered, SetError> {
        let _turn = self.turn.lock().await;
        if let Some(set) = self.set_on(bdev) {
            self.bring_up_flash(&set);
            return Ok(registered_cache(&set));
        }
        if let Some(volume) = self.volume_on(bdev) {
            return self.bring_up(volume).await;
        }
        let disk = self.open(bdev)?;
        match read_super(&disk).await? {
            Super::Cache(sb) => {
                let set = self.start_set(disk, sb).await?;
                self.bring_up_flash(&set);
                self.bring_up_waiting(&set).await;
                Ok(registered_cache(&set))
            }
            Super::Backing(sb) => self.register_backing(disk, sb).await,
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
            Err(error @ SetError::CacheMissing { .. }) => {
                log::warn!("{error}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn register_backing(
        &self,
        disk: Rc<dyn Disk>,
        mut sb: BackingSuper,
    ) -> Result<Registered, SetError> {
        let bdev = disk.name();
        sb.check_device(disk.size_sectors())
            .map_err(|e| SetError::Super(bdev.clone(), e))?;
        if u32::from(sb.block_sectors) < disk.block_sectors() {
            return Err(SetError::BlockTooSmall {
                device: bdev,
                set_sectors: sb.block_sectors.into(),
                device_sectors: disk.block_sectors(),
            });
        }
        let name = format::name_of(&sb.label).unwrap_or_else(|| short_name(sb.uuid));
        self.check_name(&name)?;
        let uuid = sb.uuid;
        // On disk with the next change, as in the kernel.
        sb.last_mount = self.host.now_s();
        let volume = Volume::new(name, uuid, Some(Backing::new(disk, sb)));
        self.bring_up(volume).await
    }

    /// Shows a volume, or lets it wait.
    async fn bring_up(&self, volume: Rc<Volume>) -> Result<Registered, SetError> {
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
            self.show(&volume)?;
        } else if let Some(set) = self.find_set(sb.set_uuid) {
            self.check_unused(&volume.name)?;
            self.join(&volume, &set, false).await?;
            self.show(&volume)?;
        } else {
            let name = volume.name.clone();
            self.volumes.borrow_mut().insert(name, volume);
            if sb.state() == BackingState::Dirty {
                return Err(SetError::CacheMissing {
                    device: backing.disk.name(),
                    set: sb.set_uuid,
                });
            }
            let bdev = backing.disk.name();
            log::warn!("{bdev} waits for cache set {}", sb.set_uuid);
        }
        Ok(answer)
    }

    /// Starts the set on a device.
    pub(super) async fn start_set(
        &self,
        disk: Rc<dyn Disk>,
        sb: CacheSuper,
    ) -> Result<Rc<CacheSet>, SetError> {
        if let Some(other) = self.find_set(sb.set_uuid) {
            return Err(SetError::Busy(format!(
                "{} claims to be cache set {}, which runs on {}",
                disk.name(),
                sb.set_uuid,
                other.disk.name()
            )));
        }
        let name = disk.name();
        log::info!("{name}: starting cache set {}", sb.set_uuid);
        let set = CacheSet::start(&*self.host, self.exec.clone(), disk, sb).await?;
        self.sets.borrow_mut().push(set.clone());
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
        for volume in self.volumes() {
            let backing = volume.backing.as_ref().map(|b| b.superblock());
            let waits = backing.is_some_and(|sb| sb.set_uuid == set.set_uuid());
            if volume.is_running() || !waits {
                continue;
            }
            if let Err(error) = self.bring_up(volume.clone()).await {
                log::error!("volume {} was not brought up: {error}", volume.name);
            }
        }
    }

    /// Brings up the volumes that live on a set alone and are not up.
    pub(super) fn bring_up_flash(&self, set: &Rc<CacheSet>) {
        let up: Vec<Uuid> = self.volumes_of(set).iter().map(|v| v.uuid).collect();
        for (i, entry) in set.uuids().into_iter().enumerate() {
            if entry.is_live() && entry.is_flash_only() && !up.contains(&entry.uuid) {
                if let Err(error) = self.show_flash(set, Inode(i as u32), &entry) {
                    log::error!("flash volume {} was not brought up: {error}", entry.uuid);
                }
            }
        }
    }

    pub(super) fn show_flash(
        &self,
        set: &Rc<CacheSet>,
        inode: Inode,
        entry: &UuidEntry,
    ) -> Result<String, SetError> {
        let name = format::name_of(&entry.label).unwrap_or_else(|| short_name(entry.uuid));
        self.check_name(&name)?;
        let block = u64::from(set.superblock().block_sectors);
        if entry.sectors < block || entry.sectors >= MAX_KEY_OFFSET {
            return Err(SetError::Invalid(format!(
                "{}: volume {} of the uuid table cannot have {} sectors",
                set.disk.name(),
                inode.0,
                entry.sectors
            )));
        }
        let volume = Volume::new(name.clone(), entry.uuid, None);
        let mark: crate::request::owner::Mark = Box::new(|_| Box::pin(async { Ok(()) }));
        let owned = set.owner.add_volume(inode, None, true, mark);
        let link = Link {
            set: set.clone(),
            volume: owned,
        };
        let shared = volume.view(Some(&link), entry.sectors);
        *volume.link.borrow_mut() = Some(link);
        self.apply_later(&volume);
        self.expose(&volume, shared)?;
        Ok(name)
    }

    /// Looks at a device that has appeared, and brings up what it holds, if that is wanted. Errors
    /// are logged.
    pub async fn examine(self: &Rc<Self>, bdev: &str) {
        let asked = self.later.borrow_mut().bdevs.remove(bdev);
        if !(asked || self.examine_enabled.get()) || self.set_on(bdev).is_some() {
            return;
        }
        let Ok(disk) = self.host.peek(bdev) else {
            return;
        };
        match read_super(&disk).await {
            Ok(_) => drop(disk),
            Err(SetError::Super(name, error)) => {
                return log::error!("{name} bears bcache's magic number, but: {error}");
            }
            Err(error) if asked => return log::error!("{error}"),
            Err(_) => return,
        }
        match self.register(bdev).await {
            Ok(_) | Err(SetError::Open(_, OpenError::Busy)) => {}
            // Its cache device may be examined next.
            Err(error @ SetError::CacheMissing { .. }) => log::warn!("{error}"),
            Err(SetError::Open(name, OpenError::Unfit(why))) => {
                log::warn!("{name} bears a superblock of bcache and is not started: {why}");
            }
            Err(error) => log::error!("{error}"),
        }
    }
}

fn registered_cache(set: &CacheSet) -> Registered {
    Registered {
        is_cache: true,
        uuid: set.superblock().uuid,
        set: set.set_uuid(),
    }
}

/// The name of a volume that has no label: the kernel's devices have none.
fn short_name(uuid: Uuid) -> String {
    let text = uuid.to_string();
    format!("bcache-{}", &text[..8])
}
