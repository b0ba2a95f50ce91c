//! The simulated world as the lifecycle sees it: devices by name, volumes on a stage, entropy, the date.
//!
//! A device can be added, withdrawn, and made to *leave*: it then still works for who has it open, and
//! cannot be opened. Its [`Flaws`] and how often it was opened belong to its name.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::device::{Flaws, OpenDevice, Silence};
use super::disk::SimDisk;
use super::lower::Lower;
use super::queue::Queue;
use super::sched::Sched;
use super::stage::Stage;
use crate::disk::{Disk, DoneFuture};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::set::host::{Host, OpenError};

const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// Told whenever a volume is about to be made of something else, and whether with a cache.
type Look = Box<dyn Fn(bool)>;
/// Told of a volume by its name.
type OfVolume = Box<dyn Fn(&str, Seen)>;

/// What who may use a volume as a device sees of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there.
    Comes,
    /// It is about to be no more, and waits for those that have it open.
    Goes,
}

/// A host whose devices are simulated. Volumes are shown on its stage.
pub struct SimHost {
    rng: Rc<Rng>,
    sched: Sched,
    disks: RefCell<BTreeMap<String, Rc<SimDisk>>>,
    flaws: RefCell<BTreeMap<String, Rc<Flaws>>>,
    opened: RefCell<Vec<Weak<OpenDevice>>>,
    opens: RefCell<BTreeMap<String, u64>>,
    /// Where volumes are shown.
    pub stage: Stage,
    /// Called when a volume comes or goes; without it volumes are no devices.
    pub on_volume: RefCell<Option<OfVolume>>,
    /// Called when a volume is about to be made of something else, and whether with a cache.
    pub on_replace: RefCell<Option<Look>>,
    /// The sizes that hosts were told of, in sectors.
    pub resized: RefCell<Vec<(String, u64)>>,
    /// Other names of bdevs.
    pub aliases: RefCell<BTreeMap<String, String>>,
    /// The volumes that a host has open.
    pub open: RefCell<BTreeSet<String>>,
    /// Why the process would have ended itself.
    pub died: RefCell<Option<String>>,
    /// The queue that devices which are plugged in share, if any.
    pub queue: RefCell<Option<Rc<Queue>>>,
    /// Devices that are being removed: they work, and cannot be opened.
    pub leaving: RefCell<BTreeSet<String>>,
}

impl SimHost {
    /// A host without devices, whose volumes have so many fronts each.
    pub fn new(sched: Sched, rng: Rc<Rng>, reactors: usize) -> SimHost {
        SimHost {
            stage: Stage::new(reactors, rng.clone()),
            rng,
            sched,
            disks: RefCell::default(),
            flaws: RefCell::default(),
            opened: RefCell::default(),
            opens: RefCell::default(),
            on_replace: RefCell::default(),
            on_volume: RefCell::default(),
            resized: RefCell::default(),
            aliases: RefCell::default(),
            open: RefCell::default(),
            died: RefCell::default(),
            queue: RefCell::default(),
            leaving: RefCell::default(),
        }
    }

    /// A host that gives nothing but entropy, to start a set with: its volumes have no fronts.
    pub fn bare(rng: Rc<Rng>) -> SimHost {
        Self::new(Sched::new(0, rng.clone()), rng, 0)
    }

    // --- devices ---

    /// Adds a device under its name.
    pub fn add(&self, disk: Rc<SimDisk>) {
        self.disks.borrow_mut().insert(disk.name(), disk);
    }

    /// Takes a device away. Who has it open keeps it.
    pub fn withdraw(&self, name: &str) {
        self.disks.borrow_mut().remove(name);
    }

    /// Whether there is a device of this name.
    pub fn has_device(&self, name: &str) -> bool {
        self.disks.borrow().contains_key(name)
    }

    fn disk(&self, name: &str) -> Option<Rc<SimDisk>> {
        self.disks.borrow().get(name).cloned()
    }

    /// What fronts use of a device that the engine has open.
    fn sim(&self, disk: Option<Rc<dyn Disk>>) -> Option<Lower> {
        let address = Rc::as_ptr(&disk?).cast::<()>();
        let opened = self.opened.borrow();
        let mut opened = opened.iter().filter_map(Weak::upgrade);
        let found = opened.find(|open| Rc::as_ptr(open).cast::<()>() == address);
        Some(found.expect("the engine opened it here").sim().clone())
    }

    /// What is wrong with the device of a name, for the engine's own I/O.
    pub fn flaws(&self, name: &str) -> Rc<Flaws> {
        let mut flaws = self.flaws.borrow_mut();
        flaws.entry(name.into()).or_default().clone()
    }

    /// What makes a device silent.
    pub fn silence(&self, name: &str) -> Rc<Silence> {
        self.flaws(name).silence.clone()
    }

    /// All ranges of all devices can be read and written again.
    pub fn mend(&self) {
        self.flaws.borrow().values().for_each(|flaws| flaws.mend());
    }

    /// Whether somebody has a device open.
    pub fn holds_open(&self, name: &str) -> bool {
        let opened = self.opened.borrow();
        let mut opened = opened.iter().filter_map(Weak::upgrade);
        opened.any(|disk| disk.name() == name)
    }

    /// How often a device was opened for writing.
    pub fn opens(&self, name: &str) -> u64 {
        self.opens.borrow().get(name).copied().unwrap_or(0)
    }

    // --- volumes ---

    /// The volumes that are shown.
    pub fn shown(&self) -> Vec<String> {
        self.stage.names()
    }

    /// Whether a volume is shown and about to be no more.
    pub fn is_going(&self, name: &str) -> bool {
        self.stage.is_going(name)
    }

    fn tell(&self, volume: &str, seen: Seen) {
        if let Some(tell) = &*self.on_volume.borrow() {
            tell(volume, seen);
        }
    }

    fn is_there(&self, bdev: &str) -> bool {
        self.has_device(bdev) || self.stage.volume(bdev).is_some()
    }

    /// Every reactor runs once. Returns how much was done.
    pub fn poll(&self) -> usize {
        let done = self.stage.poll();
        for name in self.stage.take_gone() {
            self.aliases.borrow_mut().retain(|_, own| *own != name);
        }
        done
    }

    fn look_at(&self, name: &str) -> Result<Rc<OpenDevice>, OpenError> {
        let inner = match self.disk(name) {
            Some(disk) => Some(Lower::Disk(disk)),
            None if self.on_volume.borrow().is_some() => self.stage.open(name),
            None => None,
        };
        let inner = inner.ok_or(OpenError::NotFound)?;
        if self.leaving.borrow().contains(name) {
            return Err(OpenError::NotFound);
        }
        let disk = Rc::new(OpenDevice::new(inner, self.flaws(name)));
        let mut opened = self.opened.borrow_mut();
        opened.retain(|disk| disk.strong_count() > 0);
        opened.push(Rc::downgrade(&disk));
        Ok(disk)
    }
}

impl Host for SimHost {
    fn open(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        let disk = self.look_at(name)?;
        *self.opens.borrow_mut().entry(name.into()).or_default() += 1;
        Ok(disk)
    }

    fn peek(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        Ok(self.look_at(name)?)
    }

    fn resolve(&self, name: &str) -> Option<String> {
        let aliases = self.aliases.borrow();
        let own = aliases.get(name).map_or(name, String::as_str);
        self.is_there(own).then(|| own.to_string())
    }

    fn is_open(&self, name: &str) -> bool {
        self.open.borrow().contains(name) || self.stage.is_open(name)
    }

    fn is_taken(&self, name: &str) -> bool {
        self.resolve(name).is_some()
    }

    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<dyn Disk>>,
        cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32> {
        let name = volume.name.get();
        if !self.stage.show(volume, self.sim(backing), self.sim(cache)) {
            return Err(EEXIST);
        }
        self.tell(&name, Seen::Comes);
        Ok(())
    }

    fn hide(&self, name: &str) -> DoneFuture {
        let hidden = self.stage.hide(name);
        if self.stage.is_open(name) {
            self.tell(name, Seen::Goes);
        }
        hidden
    }

    fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<dyn Disk>>) -> DoneFuture {
        if let Some(look) = &*self.on_replace.borrow() {
            look(cache.is_some());
        }
        self.stage.replace(volume, self.sim(cache))
    }

    fn rename(&self, name: &str, new: &str) -> Result<(), i32> {
        if self.resolve(new).is_some_and(|own| own != name) {
            return Err(EEXIST);
        }
        if !self.stage.rename(name, new) {
            return Err(ENODEV);
        }
        let mut aliases = self.aliases.borrow_mut();
        aliases.remove(new);
        aliases.insert(name.into(), name.into());
        let own = aliases.values_mut().filter(|own| *own == name);
        own.for_each(|own| *own = new.into());
        let mut open = self.open.borrow_mut();
        if open.remove(name) {
            open.insert(new.into());
        }
        Ok(())
    }

    fn resize(&self, name: &str, size_sectors: u64) -> Result<(), i32> {
        if self.stage.volume(name).is_none() {
            return Err(ENODEV);
        }
        self.resized.borrow_mut().push((name.into(), size_sectors));
        Ok(())
    }

    fn panic(&self, why: &str) {
        *self.died.borrow_mut() = Some(why.into());
    }

    fn entropy(&self) -> u64 {
        self.rng.next()
    }

    fn now_s(&self) -> u32 {
        1_700_000_000 + (self.sched.now_us() / 1_000_000) as u32
    }
}
