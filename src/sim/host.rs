//! The simulated world as the lifecycle sees it: devices by name, entropy, the date.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::disk::SimDisk;
use super::stage::Stage;
use crate::disk::{Disk, DoneFuture};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::set::host::{Host, OpenError};

/// A host whose devices are simulated. Volumes are shown on its stage.
pub struct SimHost {
    rng: Rc<Rng>,
    disks: RefCell<BTreeMap<String, Rc<SimDisk>>>,
    stage: Rc<Stage>,
}

impl SimHost {
    /// A host without devices, whose volumes have no fronts.
    pub fn new(rng: Rc<Rng>) -> SimHost {
        Self::with_reactors(rng, 0)
    }

    /// A host without devices, whose volumes have so many fronts each.
    pub fn with_reactors(rng: Rc<Rng>, reactors: usize) -> SimHost {
        SimHost {
            stage: Stage::new(reactors, rng.clone()),
            rng,
            disks: RefCell::default(),
        }
    }

    /// Where volumes are shown.
    pub fn stage(&self) -> &Rc<Stage> {
        &self.stage
    }

    fn sim(&self, disk: Option<Rc<dyn Disk>>) -> Option<Rc<SimDisk>> {
        let name = disk?.name();
        self.disks.borrow().get(&name).cloned()
    }

    /// Adds a device under its name.
    pub fn add(&self, disk: Rc<SimDisk>) {
        self.disks.borrow_mut().insert(disk.name(), disk);
    }

    /// The volumes that are shown.
    pub fn shown(&self) -> Vec<Arc<VolumeShared>> {
        self.stage.volumes()
    }
}

impl Host for SimHost {
    fn open(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        match self.disks.borrow().get(name) {
            Some(disk) => Ok(disk.clone()),
            None => Err(OpenError::NotFound),
        }
    }

    fn peek(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        self.open(name)
    }

    fn resolve(&self, name: &str) -> Option<String> {
        self.is_taken(name).then(|| name.to_string())
    }

    fn is_open(&self, name: &str) -> bool {
        self.stage.volume(name).is_some()
    }

    fn is_taken(&self, name: &str) -> bool {
        self.disks.borrow().contains_key(name) || self.stage.volume(name).is_some()
    }

    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<dyn Disk>>,
        cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32> {
        const EEXIST: i32 = 17;
        let (backing, cache) = (self.sim(backing), self.sim(cache));
        match self.stage.show(volume, backing, cache) {
            true => Ok(()),
            false => Err(EEXIST),
        }
    }

    fn hide(&self, name: &str) -> DoneFuture {
        self.stage.hide(name)
    }

    fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<dyn Disk>>) -> DoneFuture {
        self.stage.replace(volume, self.sim(cache))
    }

    fn resize(&self, _name: &str, _size_sectors: u64) -> Result<(), i32> {
        Ok(())
    }

    fn panic(&self, why: &str) {
        log::error!("the process would end: {why}");
    }

    fn entropy(&self) -> u64 {
        self.rng.next()
    }

    fn now_s(&self) -> u32 {
        1_700_000_000
    }
}
