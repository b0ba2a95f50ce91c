//! What write-back knows of one volume. It goes with the volume: one that comes back, or another in
//! its place, begins anew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::rest::Resting;
use crate::request::owner::Volume;
use crate::stats::Counter;
use crate::units::Sector;

/// The wait after a backing device has failed.
const BACKOFF_US: u64 = 1_000_000;

/// The state of one volume's write-back.
#[derive(Default)]
pub struct Line {
    /// Where the next round begins.
    pub cursor: Cell<Sector>,
    /// Passes over the volume that have ended, with their last rounds.
    pub passes: Cell<u64>,
    /// Dirty sectors met in this pass that lie beyond the end of the backing device.
    beyond: Cell<u64>,
    /// Those of the last whole pass, with the end of the device and the volume's activity then.
    out_of_reach: Cell<Option<(Sector, u64, u64)>>,
    activity: Cell<u64>,
    changed_us: Cell<u64>,
    failed_us: Cell<Option<u64>>,
    /// Rounds, and changes of the superblock, that failed.
    pub failures: Counter,
    /// Dirty extents that could not be read.
    pub resting: RefCell<Resting>,
    /// How many want everything written back.
    wanted: Cell<usize>,
    /// Its task runs, and holds the backing device.
    pub busy: Cell<bool>,
}

impl Line {
    /// Looks whether the volume has changed. Returns µs without changes.
    pub fn idle_us(&self, volume: &Volume, now_us: u64) -> u64 {
        let activity = volume.activity.get();
        if self.activity.replace(activity) != activity || self.changed_us.get() == 0 {
            self.changed_us.set(now_us.max(1));
        }
        now_us.saturating_sub(self.changed_us.get())
    }

    /// A round looked at a part of the volume and met so many dirty sectors beyond the end of the device;
    /// the next part begins at `next`, at the start of the volume when there is none: the round is the
    /// last of its pass.
    pub fn looked(&self, volume: &Volume, beyond: u64, next: Option<Sector>) {
        let before = match self.cursor.get() {
            Sector(0) => 0,
            _ => self.beyond.get(),
        };
        self.beyond.set(before + beyond);
        self.cursor.set(next.unwrap_or(Sector(0)));
        if next.is_none() {
            let whole = (end_of(volume), volume.activity.get(), self.beyond.get());
            self.out_of_reach.set(Some(whole));
        }
    }

    /// The last round of a pass has ended.
    pub fn pass_ended(&self) {
        self.passes.set(self.passes.get() + 1);
    }

    /// Dirty sectors beyond the end of the backing device, as far as they are known: it has shrunk.
    /// They stay dirty until it has its size back, or they are given up.
    pub fn out_of_reach(&self, volume: &Volume) -> u64 {
        self.out_of_reach
            .get()
            .map_or(0, |(end, activity, sectors)| {
                let holds = end == end_of(volume) && activity == volume.activity.get();
                if holds { sectors } else { 0 }
            })
    }

    /// Begins a pass anew.
    pub fn begin_anew(&self) {
        self.cursor.set(Sector(0));
        self.out_of_reach.set(None);
    }

    /// Whether its backing device has failed so lately that it is left alone.
    pub fn is_backing_off(&self, now_us: u64) -> bool {
        let failed_us = self.failed_us.get();
        failed_us.is_some_and(|at| now_us < at + BACKOFF_US)
    }

    /// Notes whether the backing device has failed.
    pub fn ended(&self, ok: bool, now_us: u64) {
        if !ok {
            self.failures.add(1);
        }
        self.failed_us.set((!ok).then_some(now_us));
    }

    /// Whether a caller waits for everything to be written back.
    pub fn is_wanted(&self) -> bool {
        self.wanted.get() > 0
    }
}

/// The first sector that a volume's backing device does not have.
pub fn end_of(volume: &Volume) -> Sector {
    let backing = volume.backing.as_ref();
    backing.map_or(Sector::MAX, |disk| Sector(disk.size_sectors()))
}

/// A caller waits for a volume to be written back, as long as this lives.
pub struct Wanted(Rc<Line>);

impl Wanted {
    /// From now on.
    pub fn new(line: Rc<Line>) -> Wanted {
        line.wanted.set(line.wanted.get() + 1);
        Wanted(line)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.wanted.set(self.0.wanted.get() - 1);
    }
}
