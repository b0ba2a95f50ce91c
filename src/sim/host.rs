//! The simulated world as the lifecycle sees it: devices by name, entropy, the date.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::disk::SimDisk;
use crate::disk::{Disk, DoneFuture};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::set::host::{Host, OpenError};

/// A host whose devices are simulated. Volumes shown are kept by name; fronts for them are made by
/// whoever drives the world.
pub struct SimHost {
    rng: Rc<Rng>,
    disks: RefCell<BTreeMap<String, Rc<SimDisk>>>,
    shown: RefCell<BTreeMap<String, Arc<VolumeShared>>>,
}

impl SimHost {
    /// A host without devices.
    pub fn new(rng: Rc<Rng>) -> SimHost {
        SimHost {
            rng,
            disks: RefCell::default(),
            shown: RefCell::default(),
        }
    }

    /// Adds a device under its name.
    pub fn add(&self, disk: Rc<SimDisk>) {
        self.disks.borrow_mut().insert(disk.name(), disk);
    }

    /// The volumes that are shown.
    pub fn shown(&self) -> Vec<Arc<VolumeShared>> {
        self.shown.borrow().values().cloned().collect()
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

    fn is_taken(&self, name: &str) -> bool {
        self.disks.borrow().contains_key(name) || self.shown.borrow().contains_key(name)
    }

    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        _backing: Option<Rc<dyn Disk>>,
        _cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32> {
        const EEXIST: i32 = 17;
        let mut shown = self.shown.borrow_mut();
        if shown.contains_key(&volume.name) {
            return Err(EEXIST);
        }
        shown.insert(volume.name.clone(), volume);
        Ok(())
    }

    fn hide(&self, name: &str) -> DoneFuture {
        self.shown.borrow_mut().remove(name);
        Box::pin(async { Ok(()) })
    }

    fn replace(&self, volume: Arc<VolumeShared>, _cache: Option<Rc<dyn Disk>>) -> DoneFuture {
        self.shown.borrow_mut().insert(volume.name.clone(), volume);
        Box::pin(async { Ok(()) })
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
