//! A start waits for its volumes, for a bounded time.
//!
//! Volumes come up by themselves, some time after their devices. A configuration that goes on to
//! export them waits for each ([`Hub::wait_for`]). A volume whose disk is dead must not keep the
//! others down: after `start_wait_s` the wait is over, and the volume is listed as absent until it
//! comes up. Waits that follow one another share that time, unless one of them brought a volume.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::hub::Hub;
use crate::options::ModuleOption;
use crate::task::either;
use crate::units::Uuid;

/// How long a start waits for a volume unless told otherwise, in s.
const START_WAIT_S: u64 = ModuleOption::StartWaitS.number();

/// The waits of a start.
pub(super) struct Waits {
    /// How long one lasts at most, in s.
    pub(super) limit_s: Cell<u64>,
    until_us: Cell<u64>,
    ended_us: Cell<u64>,
    absent: RefCell<BTreeMap<String, Option<Uuid>>>,
}

impl Default for Waits {
    fn default() -> Self {
        Waits {
            limit_s: Cell::new(START_WAIT_S),
            until_us: Cell::new(0),
            ended_us: Cell::new(0),
            absent: RefCell::default(),
        }
    }
}

impl Waits {
    /// A volume of this name has come up.
    pub(super) fn has_come(&self, name: &str) {
        self.absent.borrow_mut().remove(name);
    }

    /// Until when a wait that begins now lasts.
    fn begin(&self, now_us: u64) -> u64 {
        let limit_us = self.limit_s.get() * 1_000_000;
        if self.until_us.get() == 0 || now_us > self.ended_us.get() + limit_us {
            self.until_us.set(now_us + limit_us);
        }
        self.until_us.get()
    }

    fn end(&self, now_us: u64, came: bool) {
        self.ended_us.set(now_us);
        if came {
            self.until_us.set(now_us + self.limit_s.get() * 1_000_000);
        }
    }
}

impl Hub {
    /// Waits until a volume is up, or the time for that is over.
    pub async fn wait_for(&self, name: &str, uuid: Option<Uuid>) {
        let is_up = || self.volume(name).is_ok_and(|volume| volume.is_running());
        let until_us = self.waits.begin(self.exec.now_us());
        while !is_up() && !self.ending.get() && self.exec.now_us() < until_us {
            let rest_us = until_us - self.exec.now_us();
            either(self.changed.wait(), self.exec.sleep_us(rest_us)).await;
        }
        let came = is_up();
        self.waits.end(self.exec.now_us(), came);
        if !came && !self.ending.get() {
            log::warn!(
                "volume {name} has not come up within {} s (start_wait_s): the start goes on without it",
                self.waits.limit_s.get()
            );
            self.waits.absent.borrow_mut().insert(name.into(), uuid);
        }
    }

    /// Volumes that a start has waited for in vain, with their UUIDs where these are known.
    pub fn absentees(&self) -> Vec<(String, Option<Uuid>)> {
        let absent = self.waits.absent.borrow();
        let listed = |name: &str| self.volumes.borrow().contains_key(name);
        let absent = absent.iter().filter(|(name, _)| !listed(name));
        absent.map(|(name, uuid)| (name.clone(), *uuid)).collect()
    }

    /// How long a start waits for a volume at most, in s.
    pub fn start_wait_s(&self) -> u64 {
        self.waits.limit_s.get()
    }

    /// Changes that.
    pub fn set_start_wait_s(&self, seconds: u64) {
        self.waits.limit_s.set(seconds);
    }

    /// What a start that brings back the bdevs in this order waits for, and where: pairs of a
    /// volume, behind whose bdev the wait stands, and the volume that is waited for. A volume whose
    /// devices come after it is waited for behind the last of all.
    pub fn waits(&self, order: &[String]) -> Vec<(String, String, Uuid)> {
        let place = |name: &str| order.iter().position(|other| other == name);
        let mut volumes = self.volumes();
        volumes.retain(|volume| volume.is_running() && place(&volume.name()).is_some());
        volumes.sort_by_key(|volume| place(&volume.name()));
        let Some(last) = volumes.last().map(|volume| volume.name()) else {
            return Vec::new();
        };
        let waits = volumes.iter().map(|volume| {
            let link = volume.link.borrow();
            let cache = link.as_ref().and_then(|l| place(&l.set.disk.name()));
            let backing = volume.backing.as_ref().and_then(|b| place(&b.disk.name()));
            let behind = match cache.max(backing) > place(&volume.name()) {
                true => last.clone(),
                false => volume.name(),
            };
            (behind, volume.name(), volume.uuid)
        });
        waits.collect()
    }
}
