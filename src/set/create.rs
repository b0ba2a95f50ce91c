//! `bdev_bcache_create`: one call that does whatever is still to be done for a volume.
//!
//! Everything is looked at first. A call that is refused has written nothing, but for one case: a
//! set that is there and does not run is started to be asked whether it takes the volume, and
//! stopped again when it does not. After the first write a crash leaves a cache set without a
//! volume, or a backing device that is formatted and of no set; the same call goes on from there.

use std::rc::Rc;

use super::cache::CacheSet;
use super::claims::{Claim, Key};
use super::error::SetError;
use super::format::{self, Content, Permission};
use super::hub::Hub;
use super::join::check_blocks;
use super::members::Member;
use super::turns::{Place, Turn};
use super::volume::{Backing, Volume};
use crate::disk::Disk;
use crate::format::superblock::{BackingState, BackingSuper, CacheMode, CacheSuper};
use crate::units::{SECTOR_BYTES, Uuid};

/// What `bdev_bcache_create` was given.
pub struct Create {
    /// The volume's name.
    pub name: String,
    /// The cache device.
    pub cache_bdev: String,
    /// The backing device.
    pub backing_bdev: String,
    /// The cache mode; writethrough if none is given, or what the superblock says.
    pub mode: Option<CacheMode>,
    /// Bucket size of a new set in KiB.
    pub bucket_size_kb: Option<u32>,
    /// Block size of a new set in bytes, a power of two from 512 to 4096.
    pub block_size: Option<u32>,
    /// What may be overwritten.
    pub may: Permission,
}

impl Create {
    fn places(&self) -> [Place; 3] {
        [
            Place::Volume(self.name.clone()),
            Place::Device(self.cache_bdev.clone()),
            Place::Device(self.backing_bdev.clone()),
        ]
    }
}

/// Where the set comes from.
enum CachePlan {
    Running(Rc<CacheSet>),
    Start(CacheSuper),
    Format(CacheSuper),
}

impl CachePlan {
    fn uuid(&self) -> Uuid {
        match self {
            CachePlan::Running(set) => set.set_uuid(),
            CachePlan::Start(sb) | CachePlan::Format(sb) => sb.set_uuid,
        }
    }

    /// Whether a volume can come to it.
    fn check_open(&self) -> Result<(), SetError> {
        match self {
            CachePlan::Running(set) => set.check_open(),
            CachePlan::Start(_) | CachePlan::Format(_) => Ok(()),
        }
    }

    fn block_sectors(&self) -> u32 {
        match self {
            CachePlan::Running(set) => set.superblock().block_sectors.into(),
            CachePlan::Start(sb) | CachePlan::Format(sb) => sb.block_sectors.into(),
        }
    }
}

/// Where the backing device comes from.
enum Source {
    /// It is a volume of ours already, which runs without a cache or waits for one.
    Volume(Rc<Volume>, Rc<Backing>),
    /// Nobody has it.
    Device(Rc<dyn Disk>),
}

impl Source {
    fn disk(&self) -> &Rc<dyn Disk> {
        match self {
            Source::Volume(_, backing) => &backing.disk,
            Source::Device(disk) => disk,
        }
    }

    /// The volume, when hosts use it now.
    fn running(&self) -> Option<Rc<Volume>> {
        match self {
            Source::Volume(volume, _) if volume.is_running() => Some(volume.clone()),
            _ => None,
        }
    }
}

struct Plan {
    cache: CachePlan,
    backing: BackingSuper,
    write_backing: bool,
}

impl Hub {
    /// Brings up a volume with all that it takes: see `bdev_bcache_create`.
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn create(self: &Rc<Self>, mut c: Create) -> Result<String, SetError> {
        let label = format::label(&c.name)?;
        let mut turn = self.turn_to_create(&mut c).await?;
        let mut claim = self.claim_for(&c).await?;
        if self.is_created(&c) {
            return Ok(c.name);
        }
        let source = self.source(&c)?;
        let (cache_disk, cache) = self.plan_cache(&c).await?;
        let mut plan = self
            .plan_backing(&c, &cache_disk, cache, &source, label)
            .await?;
        claim.add(Key::Uuid(plan.cache.uuid()))?;
        claim.add(Key::Uuid(plan.backing.uuid))?;
        self.check_absent(&c, plan.backing.uuid, None)?;
        if let CachePlan::Running(set) = &plan.cache {
            self.check_no_loop(&c.backing_bdev, set)?;
        }
        self.note_both(&c, &plan).await?;
        turn.widen(Place::Set(plan.cache.uuid())).await;
        plan.cache.check_open()?;
        let started = match &plan.cache {
            CachePlan::Start(sb) => self.start_planned(&c, &cache_disk, sb).await?,
            _ => None,
        };
        if started.is_none() && matches!(plan.cache, CachePlan::Start(_)) {
            plan = self
                .plan_backing(&c, &cache_disk, None, &source, label)
                .await?;
        }
        let fresh = started.is_some();
        let ran = matches!(plan.cache, CachePlan::Running(_));
        let set = match (started, plan.cache) {
            (Some(set), _) | (None, CachePlan::Running(set)) => set,
            (None, CachePlan::Start(sb) | CachePlan::Format(sb)) => {
                format::write(&cache_disk, &sb.encode()).await?;
                self.start_set(cache_disk, sb).await?
            }
        };
        let asked = self.check_join(&plan.backing, &c.backing_bdev, &set, c.may.all());
        let asked = asked.and_then(|()| self.check_absent(&c, plan.backing.uuid, Some(&set)));
        if let Err(error) = asked {
            if fresh {
                self.stop_in_turn(&set).await?;
            }
            return Err(error);
        }
        let disk = source.disk().clone();
        let joined = async {
            self.forget_absent(&c.name, plan.backing.uuid).await?;
            if plan.write_backing {
                format::write(&disk, &plan.backing.encode()).await?;
            }
            self.assemble(&c, source, plan.backing, &set, label).await
        };
        if let Err(error) = joined.await {
            self.drop_failed(ran, &set).await;
            return Err(error);
        }
        if fresh {
            self.bring_up_flash(&set).await;
        }
        // The set may have been waited for by others.
        self.bring_up_waiting(&set).await;
        Ok(c.name)
    }

    /// A turn on the bdevs, under their own names, and on the volume's name. Where a bdev is one of our
    /// volumes it may get another name before.
    async fn turn_to_create(&self, c: &mut Create) -> Result<Turn, SetError> {
        loop {
            c.cache_bdev = self.own_name(&c.cache_bdev);
            c.backing_bdev = self.own_name(&c.backing_bdev);
            check_two(c)?;
            let turn = self.turns.take(&c.places()).await;
            let is_own = |name: &String| self.own_name(name) == *name;
            if is_own(&c.cache_bdev) && is_own(&c.backing_bdev) {
                return Ok(turn);
            }
        }
    }

    /// Reserves the bdevs and the name.
    async fn claim_for(&self, c: &Create) -> Result<Claim, SetError> {
        let bdevs = [&*c.cache_bdev, &*c.backing_bdev];
        let mut claim = self.claims.bdevs(&bdevs).await;
        claim.add(Key::Name(c.name.clone()))?;
        Ok(claim)
    }

    /// Starts the set that a cache device holds. `None` when it is damaged and may be given up.
    async fn start_planned(
        &self,
        c: &Create,
        disk: &Rc<dyn Disk>,
        sb: &CacheSuper,
    ) -> Result<Option<Rc<CacheSet>>, SetError> {
        match self.start_set(disk.clone(), sb.clone()).await {
            Ok(set) => Ok(Some(set)),
            Err(error) if c.may.all() && error.is_damage() => {
                log::warn!("the set is given up, as was asked for: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the devices are volumes of ours, these note what they carry.
    async fn note_both(&self, c: &Create, plan: &Plan) -> Result<(), SetError> {
        if let CachePlan::Start(sb) | CachePlan::Format(sb) = &plan.cache {
            self.note_carried(&c.cache_bdev, sb.uuid).await?;
        }
        let uuid = plan.backing.uuid;
        self.note_carried(&c.backing_bdev, uuid).await
    }

    /// A set that this operation has started, and that has failed since, is stopped: so the same call
    /// can be made again.
    async fn drop_failed(&self, ran: bool, set: &Rc<CacheSet>) {
        if !ran && set.latch.check().is_err() && self.volumes_of(set).is_empty() {
            // It had failed: there is nothing more to say.
            let _ = self.stop_in_turn(set).await;
        }
    }

    /// Writes what is new to the backing device, joins it to the set and shows the volume.
    async fn assemble(
        self: &Rc<Self>,
        c: &Create,
        source: Source,
        planned: BackingSuper,
        set: &Rc<CacheSet>,
        label: [u8; format::LABEL_BYTES],
    ) -> Result<(), SetError> {
        let running = source.running();
        let backing = match source {
            Source::Volume(_, backing) => backing,
            Source::Device(disk) => Backing::new(disk, planned.clone()),
        };
        let now_s = self.host.now_s();
        let written = |sb: &mut BackingSuper| {
            let seq = sb.seq;
            *sb = planned;
            sb.seq = sb.seq.max(seq);
            sb.label = label;
            sb.last_mount = now_s;
            if let Some(mode) = c.mode {
                sb.set_cache_mode(mode);
            }
        };
        let changed = backing.change(written).await;
        changed.map_err(|e| SetError::Io(c.backing_bdev.clone(), e))?;
        if let Some(volume) = running {
            self.join(&volume, set, c.may.all()).await?;
            return self.reshape(&volume).await;
        }
        let waiting = self.volume_on(&c.backing_bdev);
        let uuid = backing.superblock().uuid;
        let volume = Volume::new(c.name.clone(), uuid, Some(backing));
        self.join(&volume, set, c.may.all()).await?;
        self.show(&volume)?;
        if let Some(waiting) = waiting.filter(|w| w.name() != c.name) {
            self.volumes.borrow_mut().remove(&waiting.name());
        }
        Ok(())
    }

    /// Refuses to take the name of an absent volume of which a running set, or `set`, has dirty data,
    /// unless these may be lost. Those of a volume on its set alone are never given up so.
    fn check_absent(
        &self,
        c: &Create,
        own: Uuid,
        set: Option<&Rc<CacheSet>>,
    ) -> Result<(), SetError> {
        let keeps = |member: &Member| member.is_flash || !c.may.discard_dirty;
        self.check_name_of_absent(set, &c.name, Some(own), keeps)
    }

    /// Whether the very volume runs already.
    fn is_created(&self, c: &Create) -> bool {
        let Ok(volume) = self.volume(&c.name) else {
            return false;
        };
        let link = volume.link.borrow();
        let cache = link.as_ref().map(|l| l.set.disk.name());
        let backing = volume.backing.as_ref().map(|b| b.disk.name());
        volume.is_running()
            && cache.as_ref() == Some(&c.cache_bdev)
            && backing.as_ref() == Some(&c.backing_bdev)
    }

    /// Opens the backing device, if it is not in use, or finds the volume that it is.
    fn source(&self, c: &Create) -> Result<Source, SetError> {
        let Some(volume) = self.volume_on(&c.backing_bdev) else {
            self.check_name(&c.name)?;
            return Ok(Source::Device(self.open(&c.backing_bdev)?));
        };
        volume.check_open()?;
        volume.check_stays()?;
        let (link, backing) = (volume.link.borrow().clone(), volume.backing.clone());
        if let Some(link) = link.filter(|_| volume.name() == c.name) {
            return Err(SetError::Busy(format!(
                "volume {} is attached to cache set {} on {}; detach it first",
                c.name,
                link.set.set_uuid(),
                link.set.disk.name()
            )));
        }
        if volume.is_running() && volume.name() != c.name {
            return Err(SetError::Busy(format!(
                "{} is the backing device of volume {}",
                c.backing_bdev,
                volume.name()
            )));
        }
        if volume.name() != c.name {
            self.check_name(&c.name)?;
        } else if !volume.is_running() {
            self.check_unused(&c.name)?;
        }
        let backing = backing.expect("volume_on finds volumes with a backing device");
        Ok(Source::Volume(volume, backing))
    }

    async fn plan_cache(&self, c: &Create) -> Result<(Rc<dyn Disk>, Option<CachePlan>), SetError> {
        if let Some(set) = self.set_on(&c.cache_bdev) {
            return Ok((set.disk.clone(), Some(CachePlan::Running(set))));
        }
        let disk = self.open(&c.cache_bdev)?;
        let plan = match format::look(&disk).await? {
            Content::Cache(sb) => {
                self.check_twin(&c.cache_bdev, sb.uuid, Some(sb.set_uuid))?;
                Some(CachePlan::Start(sb))
            }
            other => {
                format::may_format(&c.cache_bdev, other, c.may)?;
                None
            }
        };
        Ok((disk, plan))
    }

    async fn plan_backing(
        &self,
        c: &Create,
        cache_disk: &Rc<dyn Disk>,
        cache: Option<CachePlan>,
        source: &Source,
        label: [u8; format::LABEL_BYTES],
    ) -> Result<Plan, SetError> {
        let disk = source.disk();
        let content = match source {
            Source::Volume(_, backing) => Content::Backing(backing.superblock()),
            Source::Device(disk) => format::look(disk).await?,
        };
        if let Content::Backing(sb) = &content {
            self.check_twin(&c.backing_bdev, sb.uuid, None)?;
        }
        let own_block = match &content {
            Content::Backing(sb) => sb.block_sectors.into(),
            _ => disk.block_sectors(),
        };
        let set_block = match &cache {
            Some(plan) => plan.block_sectors(),
            None => block_sectors(c, cache_disk, own_block)?,
        };
        let cache = match cache {
            Some(plan) => plan,
            None => CachePlan::Format(format::new_cache(
                &*self.host,
                cache_disk,
                set_block,
                c.bucket_size_kb,
                c.may,
            )?),
        };
        let set_uuid = cache.uuid();
        let (backing, write_backing) = match content {
            Content::Backing(sb) => (may_join(c, sb, set_uuid)?, false),
            other => {
                format::may_format(&c.backing_bdev, other, c.may)?;
                let block = set_block.max(disk.block_sectors());
                let sb = format::new_backing(&*self.host, disk, block, label)?;
                (sb, true)
            }
        };
        check_blocks(&c.backing_bdev, &backing, set_block)?;
        format::check_geometry(disk, &backing)?;
        Ok(Plan {
            cache,
            backing,
            write_backing,
        })
    }
}

fn check_two(c: &Create) -> Result<(), SetError> {
    if c.cache_bdev == c.backing_bdev {
        return Err(SetError::Invalid(format!(
            "{} cannot be cache and backing device at once",
            c.cache_bdev
        )));
    }
    Ok(())
}

/// The block of a new set: what was asked for, or the larger of the two devices'.
fn block_sectors(c: &Create, cache: &Rc<dyn Disk>, backing_block: u32) -> Result<u32, SetError> {
    let Some(bytes) = c.block_size else {
        return Ok(cache.block_sectors().max(backing_block));
    };
    let sectors = bytes / SECTOR_BYTES as u32;
    if sectors < cache.block_sectors() {
        return Err(SetError::BlockTooSmall {
            device: c.cache_bdev.clone(),
            set_sectors: sectors,
            device_sectors: cache.block_sectors(),
        });
    }
    Ok(sectors)
}

/// Whether a formatted backing device may come to a set, and what its superblock says before it
/// does. Leaving another set makes it one that has no set; with dirty data there, that loses them.
fn may_join(c: &Create, mut sb: BackingSuper, set: Uuid) -> Result<BackingSuper, SetError> {
    let name = c.backing_bdev.clone();
    let free = matches!(sb.state(), BackingState::None | BackingState::Stale);
    if free || sb.set_uuid == set {
        return Ok(sb);
    }
    let dirty = sb.state() == BackingState::Dirty;
    match (dirty, c.may.force) {
        (true, true) if c.may.discard_dirty => {}
        (true, true) => return Err(SetError::Dirty(name)),
        (true, false) => {
            return Err(SetError::CacheMissing {
                device: name,
                set: sb.set_uuid,
            });
        }
        (false, true) => {}
        (false, false) if sb.set_uuid.is_nil() => {}
        (false, false) => {
            let where_ = format!("belongs to cache set {}", sb.set_uuid);
            return Err(SetError::Elsewhere(name, where_));
        }
    }
    sb.set_uuid = Uuid::NIL;
    sb.set_state(BackingState::None);
    Ok(sb)
}
