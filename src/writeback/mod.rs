//! Write-back: carries dirty data to the backing devices, in the order of their sectors.
//!
//! A round takes neighbouring dirty extents of one volume from where the last round stopped, joins
//! those that touch into one write, and ends with a flush of the backing device. It begins with a
//! commit of the journal, so that no crash brings back what was there before the data written. Only
//! after the flush are the extents marked clean, and only as far as they are still the same. So a crash at any point
//! leaves data dirty that might have been clean, never the other way round.
//!
//! When it works: always for data that a caller waits for (a flush request, a detach, a cache that
//! is full of dirty data); else, while the volume's `writeback_running` says so, when more than its
//! `writeback_percent` of the cache is dirty or the volume has been idle for a while.
//!
//! What fails fails alone: an extent that the cache device cannot read rests, longer each time, while
//! the others go on; what the backing device did not take stays dirty, and the volume rests.
//!
//! Volumes do not wait for each other: one task looks at all of them and waits for no device; a
//! volume with something to do gets a task of its own, which alone holds its backing device, and
//! which ends when nothing is left to do or nothing can be taken. What is known of a volume goes with
//! it (`line::Line`).
//!
//! Bounds: a task a volume; rounds as in `round`; 256 extents of a volume rest.

mod line;
mod rest;
mod round;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use line::Line;
pub use line::Wanted;

use crate::canary::{self, Bug};
use crate::disk::{IoError, Latch};
use crate::index::Extent;
use crate::request::owner::{Owner, Volume, VolumeId};
use crate::stats::Counter;
use crate::task::{Executor, Notify, either, yield_now};

/// How long a volume must be without changes to count as idle.
const IDLE_US: u64 = 2_000_000;
/// How often it looks whether there is something to do.
const LOOK_US: u64 = 50_000;

/// The write-back of one set.
pub struct Writeback {
    owner: Rc<Owner>,
    exec: Executor,
    latch: Rc<Latch>,
    lines: RefCell<BTreeMap<VolumeId, Rc<Line>>>,
    work: Notify,
    moved: Notify,
    stopping: Cell<bool>,
    running: Cell<bool>,
    /// Volumes whose tasks run.
    at_work: Cell<usize>,
    /// Sectors written back.
    pub done_sectors: Counter,
    /// Rounds that failed.
    pub failures: Counter,
}

impl Writeback {
    /// The write-back of a set's volumes.
    pub fn new(owner: Rc<Owner>, exec: Executor, latch: Rc<Latch>) -> Rc<Writeback> {
        Rc::new(Writeback {
            owner,
            exec,
            latch,
            lines: RefCell::default(),
            work: Notify::default(),
            moved: Notify::default(),
            stopping: Cell::new(false),
            running: Cell::new(false),
            at_work: Cell::new(0),
            done_sectors: Counter::default(),
            failures: Counter::default(),
        })
    }

    /// The task. Ends on [`stop`](Self::stop) or when the latch trips.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while !self.is_over() {
            self.look();
            self.moved.notify();
            self.owner.tree.reclaim();
            either(self.exec.sleep_us(LOOK_US), self.work.wait()).await;
        }
        while self.at_work.get() > 0 {
            self.moved.wait().await;
        }
        // What waits for write-back waits no longer.
        for volume in self.owner.volumes() {
            self.owner.stay(&volume);
        }
        self.running.set(false);
        self.moved.notify();
    }

    fn is_over(&self) -> bool {
        self.latch.check().is_err() || self.stopping.get()
    }

    /// Ends [`run`](Self::run) after the rounds that are under way.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.work.notify();
    }

    /// Waits until [`run`](Self::run) has ended: no key changes because of it any more.
    pub async fn ended(&self) {
        while self.running.get() {
            self.moved.wait().await;
        }
    }

    /// Waits until write-back holds nothing of a volume that was removed from the set.
    pub async fn left(&self, volume: &Volume) {
        self.moved.notify();
        let line = self.lines.borrow_mut().remove(&volume.id);
        while line.as_ref().is_some_and(|line| line.busy.get()) {
            self.moved.wait().await;
        }
    }

    fn line(&self, volume: &Volume) -> Rc<Line> {
        match volume.is_removed() {
            true => Rc::default(),
            false => self
                .lines
                .borrow_mut()
                .entry(volume.id)
                .or_default()
                .clone(),
        }
    }

    /// Looks at all volumes, and has those with something to do served.
    fn look(self: &Rc<Self>) {
        for volume in self.owner.volumes() {
            let line = self.line(&volume);
            let due = self.is_due(&line, &volume) || self.may_say_clean(&line, &volume);
            if volume.backing.is_some() && due && !line.busy.replace(true) {
                self.at_work.set(self.at_work.get() + 1);
                self.exec.spawn(self.clone().serve(line, volume));
            }
        }
    }

    /// The task of one volume, as long as there is something to do.
    async fn serve(self: Rc<Self>, line: Rc<Line>, volume: Rc<Volume>) {
        let mut fruitless_since = None;
        while !self.is_over() && !volume.is_removed() {
            if !self.is_due(&line, &volume) {
                self.say_clean(&line, &volume).await;
                break;
            }
            self.owner.tree.alloc.set_cleaning(true);
            if self.round(&line, &volume).await {
                fruitless_since = None;
            } else {
                // After a whole pass in vain time must go on: what holds the data waits for a device.
                let passes = line.passes.get();
                if passes > 1 + *fruitless_since.get_or_insert(passes) {
                    break;
                }
            }
            self.moved.notify();
            yield_now().await;
        }
        drop(volume);
        line.busy.set(false);
        let others = self.at_work.get() - 1;
        self.at_work.set(others);
        self.owner.tree.alloc.set_cleaning(others > 0);
        self.moved.notify();
    }

    fn is_due(&self, line: &Line, volume: &Volume) -> bool {
        let now_us = self.exec.now_us();
        let idle_us = line.idle_us(volume, now_us);
        if self.owner.tree.dirty_sectors(volume.inode) <= self.left_alone(line, volume) {
            return false;
        }
        if line.is_backing_off(now_us) {
            return false;
        }
        let alloc = &self.owner.tree.alloc;
        if line.is_wanted() || alloc.is_starving() {
            return true;
        }
        let over =
            alloc.dirty_sectors() * 100 > alloc.data_sectors() * volume.writeback_percent.get();
        volume.writeback_running.get() && (over || idle_us > IDLE_US)
    }

    /// Whether the superblock should say clean, now that the volume is calm.
    fn may_say_clean(&self, line: &Line, volume: &Volume) -> bool {
        let now_us = self.exec.now_us();
        let calm = volume.writeback_running.get() && line.idle_us(volume, now_us) > IDLE_US;
        (calm || line.is_wanted())
            && self.owner.tree.dirty_sectors(volume.inode) == 0
            && !self.says_clean(volume)
            && !line.is_backing_off(now_us)
    }

    async fn say_clean(&self, line: &Line, volume: &Volume) {
        if !self.may_say_clean(line, volume) {
            return;
        }
        if let Err(why) = self.owner.backings.mark_clean(volume.inode).await {
            log::warn!("a backing device could not be marked clean: {why}; it is tried again");
            self.note_end(line, false);
        }
    }

    fn says_clean(&self, volume: &Volume) -> bool {
        self.owner.backings.says_clean(volume.inode)
    }

    /// Notes how a round or a change of the superblock has ended.
    fn note_end(&self, line: &Line, ok: bool) {
        line.ended(ok, self.exec.now_us());
        self.failures.add(u64::from(!ok));
    }

    /// Has a volume written back as long as the result lives. What rests is tried again.
    pub fn want(&self, volume: &Volume) -> Wanted {
        let line = self.line(volume);
        line.resting.borrow_mut().wake();
        self.work.notify();
        Wanted::new(line)
    }

    /// Writes back until nothing is dirty. For a volume that gets no new dirty data.
    ///
    /// # Errors
    /// The set stopped, the volume was removed from it, or one of the devices fails.
    pub async fn clean_all(&self, volume: &Volume) -> Result<(), IoError> {
        let (line, _wanted) = (self.line(volume), self.want(volume));
        let failures = line.failures.get();
        while self.owner.tree.dirty_sectors(volume.inode) > 0 || !self.says_clean(volume) {
            self.check(&line, volume, failures)?;
            self.moved.wait().await;
        }
        Ok(())
    }

    /// Writes back everything that is dirty now, however much comes meanwhile: two passes over the
    /// volume without a failure, for the first may have begun in its middle.
    ///
    /// # Errors
    /// The set stopped, the volume was removed from it, or one of the devices fails.
    pub async fn clean_pass(&self, volume: &Volume) -> Result<(), IoError> {
        let (line, _wanted) = (self.line(volume), self.want(volume));
        let failures = line.failures.get();
        let (mut failed, mut since) = (failures, line.passes.get());
        let is_left = || self.owner.tree.dirty_sectors(volume.inode) <= line.out_of_reach(volume);
        while !is_left() && line.passes.get() < since + 2 {
            self.check(&line, volume, failures)?;
            self.moved.wait().await;
            if line.failures.get() > failed {
                (failed, since) = (line.failures.get(), line.passes.get());
            }
        }
        match self.resting_sectors(&line, volume) {
            0 => Ok(()),
            _ => Err(IoError::Failed),
        }
    }

    /// Whether it makes sense to wait for a volume to be written back, which had so many failures
    /// when the wait began.
    fn check(&self, line: &Line, volume: &Volume, failures: u64) -> Result<(), IoError> {
        let is_gone = volume.is_removed() && !canary::has(Bug::JobOutlives);
        if self.is_over() || is_gone {
            return Err(IoError::Gone);
        }
        let dirty = self.owner.tree.dirty_sectors(volume.inode);
        let stuck = dirty > 0 && dirty <= self.left_alone(line, volume);
        match stuck || line.failures.get() > failures + 3 {
            true => Err(IoError::Failed),
            false => Ok(()),
        }
    }

    /// Dirty sectors that are left alone for now, because they could not be read, or lie beyond the end
    /// of the backing device.
    fn left_alone(&self, line: &Line, volume: &Volume) -> u64 {
        self.resting_sectors(line, volume) + line.out_of_reach(volume)
    }

    /// Begins a pass over a volume anew: dirty data beyond the end of its device were given up.
    pub fn begin_anew(&self, volume: &Volume) {
        self.line(volume).begin_anew();
        self.work.notify();
    }

    /// Dirty sectors that could not be read, and are not tried again yet.
    fn resting_sectors(&self, line: &Line, volume: &Volume) -> u64 {
        let (tree, now_us) = (&self.owner.tree, self.exec.now_us());
        let is_same = |extent: &Extent| {
            let mut same = false;
            tree.scan(volume.inode, extent.start, extent.end(), &mut |e| {
                let whole = e.start <= extent.start && e.end() >= extent.end();
                same = whole && e.cut(extent.start, extent.end()) == *extent;
                false
            });
            same
        };
        line.resting.borrow_mut().sectors(now_us, is_same)
    }
}
