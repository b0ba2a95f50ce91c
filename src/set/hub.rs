//! All sets and volumes of this process: what comes up, is joined, parted, taken down.
//!
//! Operations take turns (`turns`); each looks at everything first and refuses before it
//! writes. Steps are ordered so that a crash between any two leaves a state that the next start brings up,
//! at worst with an entry in the uuid table that nothing uses. How volumes are made stands in
//! [`super::create`], how they come up by themselves in [`super::register`], how they come to a set
//! in [`super::join`] and leave it in `detach`, how they are taken down in `closing`, those that live on a set alone in `flash`, and whose data a set
//! holds in [`super::members`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::cache::CacheSet;
use super::claims::Claims;
use super::error::SetError;
use super::explain::write_back_failed;
use super::host::Host;
use super::identity::LeftAlone;
use super::options::Later;
use super::turns::{Place, Turns};
use super::volume::{Link, Volume};
use super::waiting::Waits;
use crate::disk::Disk;
use crate::format::superblock::CacheMode;
use crate::request::volume::VolumeShared;
use crate::stats::{Spans, TICK_S};
use crate::task::{Executor, Notify, either, measured};
use crate::units::Uuid;

/// How long the end of the process waits for all sets to stop in good order: 30 s.
pub const STOP_LIMIT_US: u64 = 30_000_000;

/// What a volume that would come up is answered when the process ends.
const ECANCELED: i32 = 125;

/// All sets and volumes of this process.
pub struct Hub {
    pub(super) me: Weak<Hub>,
    pub(super) host: Rc<dyn Host>,
    pub(super) exec: Executor,
    pub(super) sets: RefCell<Vec<Rc<CacheSet>>>,
    pub(super) volumes: RefCell<BTreeMap<String, Rc<Volume>>>,
    pub(super) turns: Rc<Turns>,
    /// Notified when a volume comes up, and when a volume or a set is gone.
    pub(super) changed: Notify,
    /// The process ends: nothing comes up any more.
    pub(super) ending: Cell<bool>,
    /// When what has not stopped by then is given up.
    pub(super) stop_by_us: Cell<Option<u64>>,
    pub(super) waits: Waits,
    pub(super) later: RefCell<Later>,
    /// Statistics of volumes and sets that were taken down.
    pub(super) kept_spans: RefCell<BTreeMap<Uuid, Spans>>,
    pub(super) claims: Claims,
    /// Devices that examine found and did not bring up, by bdev.
    pub(super) left: RefCell<BTreeMap<String, LeftAlone>>,
    /// Bdevs that examine leaves alone.
    pub examine_exclude: RefCell<Vec<String>>,
    /// Whether superblocks found by examine are brought up.
    pub examine_enabled: Cell<bool>,
}

impl Hub {
    /// A hub without sets.
    pub fn new(host: Rc<dyn Host>, exec: Executor) -> Rc<Hub> {
        let hub = Rc::new_cyclic(|me| Hub {
            me: me.clone(),
            host,
            exec,
            sets: RefCell::default(),
            volumes: RefCell::default(),
            turns: Rc::default(),
            changed: Notify::default(),
            ending: Cell::new(false),
            stop_by_us: Cell::new(None),
            waits: Waits::default(),
            later: RefCell::default(),
            kept_spans: RefCell::default(),
            claims: Claims::default(),
            left: RefCell::default(),
            examine_exclude: RefCell::default(),
            examine_enabled: Cell::new(true),
        });
        let ticking = Rc::downgrade(&hub);
        let exec = hub.exec.clone();
        hub.exec.spawn(async move {
            loop {
                exec.sleep_us(TICK_S * 1_000_000).await;
                let Some(hub) = ticking.upgrade() else { return };
                hub.tick();
            }
        });
        hub.exec
            .spawn(super::identity::keep_names(Rc::downgrade(&hub)));
        hub
    }

    /// Whether the process ends: nothing comes up any more.
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Drives the owners of all sets; called by a poller of the owner thread. Returns how much was
    /// done.
    pub fn poll(&self) -> usize {
        let sets = self.sets.borrow();
        sets.iter().map(|set| measured(|| set.owner.poll())).sum()
    }

    /// All volumes, by name.
    pub fn volumes(&self) -> Vec<Rc<Volume>> {
        self.volumes.borrow().values().cloned().collect()
    }

    /// The volumes that are attached to a set, by name.
    pub fn volumes_of(&self, set: &Rc<CacheSet>) -> Vec<Rc<Volume>> {
        let mut volumes = self.volumes();
        volumes.retain(|volume| {
            let link = volume.link.borrow();
            link.as_ref().is_some_and(|l| Rc::ptr_eq(&l.set, set))
        });
        volumes
    }

    /// All running sets.
    pub fn sets(&self) -> Vec<Rc<CacheSet>> {
        self.sets.borrow().clone()
    }

    /// The volume of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn volume(&self, name: &str) -> Result<Rc<Volume>, SetError> {
        let volumes = self.volumes.borrow();
        let found = volumes.get(name).cloned();
        found.ok_or_else(|| self.no_volume(name))
    }

    /// The running set of a UUID.
    ///
    /// # Errors
    /// None runs.
    pub fn set(&self, uuid: &str) -> Result<Rc<CacheSet>, SetError> {
        let parsed = Uuid::parse(uuid)
            .ok_or_else(|| SetError::Invalid(format!("{uuid:?} is not a set's UUID")))?;
        self.find_set(parsed)
            .ok_or_else(|| SetError::NoSet(uuid.into()))
    }

    pub(super) fn find_set(&self, uuid: Uuid) -> Option<Rc<CacheSet>> {
        let sets = self.sets.borrow();
        sets.iter().find(|set| set.set_uuid() == uuid).cloned()
    }

    pub(super) fn set_on(&self, bdev: &str) -> Option<Rc<CacheSet>> {
        let sets = self.sets.borrow();
        sets.iter().find(|set| set.disk.name() == bdev).cloned()
    }

    pub(super) fn volume_on(&self, bdev: &str) -> Option<Rc<Volume>> {
        let volumes = self.volumes.borrow();
        let on = |v: &&Rc<Volume>| v.backing.as_ref().is_some_and(|b| b.disk.name() == bdev);
        volumes.values().find(on).cloned()
    }

    /// Opens a device for something that comes up on it.
    pub(super) fn open(&self, bdev: &str) -> Result<Rc<dyn Disk>, SetError> {
        if self.ending.get() {
            return Err(SetError::Busy(
                "the process ends: nothing is started".into(),
            ));
        }
        self.host
            .open(bdev)
            .map_err(|e| SetError::Open(bdev.into(), e))
    }

    /// Whether a new volume may have this name.
    pub(super) fn check_name(&self, name: &str) -> Result<(), SetError> {
        if self.volumes.borrow().contains_key(name) {
            return Err(SetError::NameTaken(name.into()));
        }
        self.check_unused(name)
    }

    /// Whether no bdev has this name: so that it is found out before anything is written.
    pub(super) fn check_unused(&self, name: &str) -> Result<(), SetError> {
        match self.host.is_taken(name) {
            true => Err(SetError::NameTaken(name.into())),
            false => Ok(()),
        }
    }

    /// Shows a volume to hosts, cached or not as it is.
    pub(super) fn show(&self, volume: &Rc<Volume>) -> Result<(), SetError> {
        let link = volume.link.borrow().clone();
        let shared = volume.view(link.as_ref(), 0);
        self.expose(volume, shared)
    }

    pub(super) fn expose(
        &self,
        volume: &Rc<Volume>,
        shared: Arc<VolumeShared>,
    ) -> Result<(), SetError> {
        let link = volume.link.borrow().clone();
        let backing = volume.backing.as_ref().map(|b| b.disk.clone());
        let cache = link.as_ref().map(|l| l.set.disk.clone());
        let done = match self.ending.get() || volume.check_open().is_err() {
            true => Err(ECANCELED),
            false => self.host.expose(shared.clone(), backing, cache),
        };
        if let Err(errno) = done {
            if let Some(link) = volume.link.take() {
                link.set.drop_volume(&link.volume);
            }
            return Err(match errno {
                17 => SetError::NameTaken(volume.name()),
                _ => SetError::Register(volume.name(), errno),
            });
        }
        if let Some(link) = link {
            link.volume.unflushed.fronts_exchanged();
        }
        *volume.shared.borrow_mut() = Some(shared);
        if volume.name() == volume.wanted_name() {
            volume.reason.take();
        }
        self.apply_later(volume);
        self.admit(volume);
        log::info!("volume {} is up", volume.name());
        self.waits.has_come(&volume.name());
        self.changed.notify();
        Ok(())
    }

    /// Makes hosts see a volume as it is now.
    pub(super) async fn reshape(&self, volume: &Rc<Volume>) -> Result<(), SetError> {
        let link = volume.link.borrow().clone();
        let shared = volume.view(link.as_ref(), 0);
        self.exchange_fronts(volume, shared, link.as_ref()).await
    }

    /// Exchanges the fronts of a volume for those of another shape: the one place in which the way
    /// of host I/O that is under way changes. What the old fronts wrote counts as unflushed then.
    ///
    /// # Errors
    /// The host could not; the old fronts go on.
    pub(super) async fn exchange_fronts(
        &self,
        volume: &Volume,
        shared: Arc<VolumeShared>,
        link: Option<&Link>,
    ) -> Result<(), SetError> {
        let _turn = volume.exchanging.lock().await;
        self.exchange_in_turn(volume, shared, link).await
    }

    /// As [`exchange_fronts`](Self::exchange_fronts), for a caller that holds [`Volume::exchanging`].
    pub(super) async fn exchange_in_turn(
        &self,
        volume: &Volume,
        shared: Arc<VolumeShared>,
        link: Option<&Link>,
    ) -> Result<(), SetError> {
        let cache = link.map(|l| l.set.disk.clone());
        // The backing device may have grown since the shape was made, or grows meanwhile: hosts are told.
        if let (Some(backing), Some(old)) = (&volume.backing, &*volume.shared.borrow()) {
            let told = old.size_sectors().min(backing.volume_sectors());
            shared.set_size_sectors(told.max(shared.size_sectors()));
        }
        *volume.coming.borrow_mut() = Some(shared.clone());
        let done = self.host.replace(shared.clone(), cache).await;
        volume.coming.take();
        done.map_err(|e| SetError::Io(volume.name(), e))?;
        if let Some(link) = link {
            link.volume.unflushed.fronts_exchanged();
        }
        *volume.shared.borrow_mut() = Some(shared);
        Ok(())
    }

    /// Changes a volume's cache mode, on disk too.
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn set_cache_mode(&self, name: &str, mode: CacheMode) -> Result<(), SetError> {
        let (_turn, volume) = self.turn_of(name).await?;
        let Some(backing) = &volume.backing else {
            return Err(SetError::Invalid(format!(
                "{name} lives on its set alone and has no cache mode"
            )));
        };
        backing
            .change(|sb| sb.set_cache_mode(mode))
            .await
            .map_err(|e| SetError::Io(backing.disk.name(), e))?;
        // A volume that is being detached takes no dirty data; it gets its mode back if it stays.
        if let Some(shared) = volume
            .shared
            .borrow()
            .as_ref()
            .filter(|_| !volume.detaching.is_running())
        {
            shared.set_mode(mode);
        }
        Ok(())
    }

    /// Starts to write a volume's dirty data back.
    ///
    /// # Errors
    /// There is no such volume, or nothing to write back to.
    pub fn flush_start(&self, name: &str) -> Result<(), SetError> {
        let volume = self.volume(name)?;
        volume.check_open()?;
        let link = volume.link.borrow().clone();
        let Some(link) = link.filter(|_| volume.backing.is_some()) else {
            return Ok(());
        };
        if volume.flushing.is_running() {
            return Ok(());
        }
        self.exec.spawn(async move {
            let Some(run) = volume.flushing.begin() else {
                return;
            };
            let ended = Cell::new(None);
            let pass = async { ended.set(Some(link.set.writeback.clean_pass(&link.volume).await)) };
            either(pass, volume.flushing.cancelled()).await;
            let done = match ended.into_inner() {
                Some(done) => done.map_err(|e| write_back_failed(&volume, &link.set, e)),
                None => Err(SetError::Busy("it was cancelled".into())),
            };
            if let Err(error) = run.end(done) {
                match link.volume.is_removed() {
                    true => log::info!("flush of {} ends: it was taken away", volume.name()),
                    false => log::error!("flush of {}: {error}", volume.name()),
                }
            }
        });
        Ok(())
    }

    /// A device has another size. A volume grows with its backing device; sets keep their size.
    pub async fn resized(&self, bdev: &str) {
        let Some(volume) = self.volume_on(bdev) else {
            return log::warn!("{bdev} has another size; its cache set keeps the one it has");
        };
        let (backing, shared) = (volume.backing.clone(), volume.shared.borrow().clone());
        let (Some(backing), Some(shared)) = (backing, shared) else {
            return;
        };
        let (old, new) = (shared.size_sectors(), backing.volume_sectors());
        if new < old {
            let beyond = self.dirty_beyond_end(&volume);
            return log::error!(
                "{bdev} has shrunk under {}: what lies beyond sector {} is out of reach, \
                 {beyond} dirty bytes of it on the cache; they stay there until the size is back, or \
                 are given up (bdev_bcache_detach discard_dirty=true)",
                volume.name(),
                backing.end().0
            );
        }
        // Fronts that were made anew may have that size before hosts are told of it.
        volume.set_size_sectors(new);
        match self.host.resize(&volume.name(), new) {
            Ok(()) => log::info!("{} has {new} sectors now", volume.name()),
            Err(errno) => {
                volume.set_size_sectors(old);
                log::error!("{} keeps its size (errno {errno})", volume.name());
            }
        }
    }

    /// A device is going away: what is on it is taken down. What becomes of volumes whose cache
    /// device goes stands in [`super::lost`]. Where examine is off, the device is remembered. What an
    /// operation is just bringing up on the device is taken down when that has ended.
    pub async fn removed(&self, bdev: &str) {
        let place = Place::Device(bdev.into());
        loop {
            let (set, volume) = (self.set_on(bdev), self.volume_on(bdev));
            let used = set.is_some() || volume.is_some();
            if used && !self.examine_enabled.get() {
                self.later.borrow_mut().bdevs.insert(bdev.into());
            }
            if let Some(set) = set {
                log::warn!("cache device {bdev} is removed: its set stops");
                self.cache_removed(set).await;
            }
            if let Some(volume) = volume {
                log::warn!("backing device {bdev} is removed: {} stops", volume.name());
                volume.backing.iter().for_each(|b| b.goes.set(true));
                let closing = self.begin_close(&volume);
                drop(volume);
                closing.wait().await;
            } else if !self.turns.is_taken(&place) {
                return;
            } else {
                self.turns.freed().await;
            }
        }
    }
}
