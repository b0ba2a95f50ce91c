//! Statistics of volumes and sets: what their counters say over time.
//!
//! A volume's counters live as long as the volume, a set's as long as the set; what either had
//! counted when it was taken down is kept under its UUID, and it goes on from there when it comes up
//! again in this process. What is kept is one [`Spans`] for each UUID that ever ran here.

use std::rc::Rc;

use super::cache::CacheSet;
use super::hub::Hub;
use super::volume::Volume;
use crate::stats::Spans;
use crate::units::Uuid;

impl Volume {
    /// Its statistics.
    pub fn spans(&self) -> Spans {
        self.windows.borrow().spans(self.totals.sum())
    }

    /// Starts its statistics from zero.
    pub fn reset_spans(&self) {
        self.windows.borrow_mut().reset(self.totals.sum());
    }
}

impl CacheSet {
    /// The statistics of all I/O that was cached by it.
    pub fn spans(&self) -> Spans {
        self.windows.borrow().spans(self.owner.set.totals.sum())
    }

    /// Starts its statistics from zero.
    pub fn reset_spans(&self) {
        self.windows.borrow_mut().reset(self.owner.set.totals.sum());
    }
}

impl Hub {
    /// Lets the windows of all statistics decay; called every [`TICK_S`](crate::stats::TICK_S)
    /// seconds.
    pub(super) fn tick(&self) {
        for volume in self.volumes() {
            volume.windows.borrow_mut().tick(volume.totals.sum());
        }
        for set in self.sets() {
            set.windows.borrow_mut().tick(set.owner.set.totals.sum());
        }
    }

    fn keep_spans(&self, uuid: Uuid, spans: Spans) {
        self.kept_spans.borrow_mut().insert(uuid, spans);
    }

    /// Keeps the statistics of a volume that is taken down.
    pub(super) fn keep_figures(&self, volume: &Volume) {
        self.keep_spans(volume.uuid, volume.spans());
    }

    /// Keeps the statistics of a set that is stopped.
    pub(super) fn keep_set_figures(&self, set: &CacheSet) {
        self.keep_spans(set.set_uuid(), set.spans());
    }

    /// Lists a volume: it runs, or waits for its set. Its statistics go on from where they were.
    pub(super) fn admit(&self, volume: &Rc<Volume>) {
        if let Some(earlier) = self.kept_spans.borrow_mut().remove(&volume.uuid) {
            volume.windows.borrow_mut().resume(earlier);
        }
        let mut volumes = self.volumes.borrow_mut();
        volumes.insert(volume.name(), volume.clone());
    }

    /// As [`admit`](Self::admit), for a set.
    pub(super) fn admit_set(&self, set: &Rc<CacheSet>) {
        if let Some(earlier) = self.kept_spans.borrow_mut().remove(&set.set_uuid()) {
            set.windows.borrow_mut().resume(earlier);
        }
        self.sets.borrow_mut().push(set.clone());
    }

    /// Forgets the statistics of a volume that is gone for good.
    pub(super) fn drop_figures(&self, uuid: Uuid) {
        self.kept_spans.borrow_mut().remove(&uuid);
    }
}
