//! Write-back: carries dirty data to the backing devices, in the order of their sectors.
//!
//! A round takes neighbouring dirty extents of one volume from where the last round stopped, joins
//! those that touch into one write, and ends with a flush of the backing device. It begins with a
//! commit of the journal, so that no crash brings back what was there before the data written. Only
//! after the flush are the extents marked clean, and only as far as they are still the same. So a crash at any point
//! leaves data dirty that might have been clean, never the other way round.
//!
//! When it works: always for data that somebody waits for (a flush request, a detach, a cache that
//! is full of dirty data); else, while the volume's `writeback_running` says so, when more than its
//! `writeback_percent` of the cache is dirty or the volume has been idle for a while.
//!
//! What fails fails alone: an extent that the cache device cannot read rests, longer each time, while
//! the others go on; what the backing device did not take stays dirty, and the volume rests.
//!
//! Bounds: a round moves at most `ROUND_SECTORS` and looks at `SCAN_EXTENTS` extents; 256 extents
//! rest.

mod rest;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use rest::Resting;

use crate::canary::{self, Bug};
use crate::disk::{Disk, IoError, Latch, Stopped, answers};
use crate::index::Extent;
use crate::request::owner::{Owner, Volume};
use crate::stats::Counter;
use crate::task::{Executor, Notify, either, yield_now};
use crate::units::{SECTOR_BYTES, Sector};

/// Sectors moved in one round: 4 MiB.
const ROUND_SECTORS: u64 = 8192;
/// The longest single write: 1 MiB.
const RUN_SECTORS: u64 = 2048;
/// Extents looked at in one step.
const SCAN_EXTENTS: usize = 4096;
/// Extents moved in one round.
const ROUND_EXTENTS: usize = 256;
/// Extents that become clean in one step.
const CLEANED_A_STEP: usize = 64;
/// How long a volume must be without changes to count as idle.
const IDLE_US: u64 = 2_000_000;
/// How often it looks whether there is something to do.
const LOOK_US: u64 = 50_000;
/// The wait after a backing device has failed.
const BACKOFF_US: u64 = 1_000_000;
/// So many attempts to read dirty data must fail before the set says so.
const TRIES_QUIET: u32 = 3;

/// Neighbouring extents that go out in one write.
struct Run {
    start: Sector,
    end: Sector,
    extents: Vec<Extent>,
}

#[derive(Default)]
struct Progress {
    cursor: Sector,
    activity: u64,
    changed_us: u64,
    passes: u64,
    /// Dirty sectors met in this pass that lie beyond the end of the backing device.
    beyond: u64,
    /// Those of the last whole pass, with the end of the device and the volume's activity then.
    out_of_reach: Option<(Sector, u64, u64)>,
    failed_us: Option<u64>,
}

/// The write-back of one set.
pub struct Writeback {
    owner: Rc<Owner>,
    exec: Executor,
    latch: Rc<Latch>,
    progress: RefCell<BTreeMap<u32, Progress>>,
    resting: RefCell<Resting>,
    /// Volumes of which somebody wants everything written back.
    wanted: RefCell<BTreeMap<u32, usize>>,
    work: Notify,
    moved: Notify,
    stopping: Cell<bool>,
    running: Cell<bool>,
    /// Sectors written back.
    pub done_sectors: Counter,
    /// Rounds that failed.
    pub failures: Counter,
}

/// Somebody waits for a volume to be written back, as long as this lives.
pub struct Wanted<'a>(&'a Writeback, u32);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = self.0.wanted.borrow_mut();
        if let Some(n) = wanted.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                wanted.remove(&self.1);
            }
        }
    }
}

impl Writeback {
    /// The write-back of a set's volumes.
    pub fn new(owner: Rc<Owner>, exec: Executor, latch: Rc<Latch>) -> Rc<Writeback> {
        Rc::new(Writeback {
            owner,
            exec,
            latch,
            progress: RefCell::default(),
            resting: RefCell::default(),
            wanted: RefCell::default(),
            work: Notify::default(),
            moved: Notify::default(),
            stopping: Cell::new(false),
            running: Cell::new(false),
            done_sectors: Counter::default(),
            failures: Counter::default(),
        })
    }

    /// The task. Ends on [`stop`](Self::stop) or when the latch trips.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while self.latch.check().is_ok() && !self.stopping.get() {
            let mut worked = false;
            for volume in self.owner.volumes() {
                if volume.backing.is_none() {
                    continue;
                }
                if self.is_due(&volume) {
                    worked |= self.round(&volume).await;
                } else {
                    self.settle(&volume).await;
                }
                if self.stopping.get() {
                    break;
                }
            }
            self.moved.notify();
            self.owner.tree.alloc.set_cleaning(worked);
            self.owner.tree.reclaim();
            if worked {
                yield_now().await;
            } else {
                self.rest().await;
            }
        }
        self.owner.tree.alloc.set_cleaning(false);
        // Who waits for write-back waits no longer.
        for volume in self.owner.volumes() {
            self.owner.stay(&volume);
        }
        self.running.set(false);
        self.moved.notify();
    }

    /// Ends [`run`](Self::run) after the round it is in.
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

    async fn rest(&self) {
        either(self.exec.sleep_us(LOOK_US), self.work.wait()).await
    }

    /// Looks at a volume: whether it is idle. Returns µs without changes.
    fn idle_us(&self, volume: &Volume) -> u64 {
        let mut progress = self.progress.borrow_mut();
        let p = progress.entry(volume.number).or_default();
        let (now_us, activity) = (self.exec.now_us(), volume.activity.get());
        if p.activity != activity || p.changed_us == 0 {
            p.activity = activity;
            p.changed_us = now_us.max(1);
        }
        now_us.saturating_sub(p.changed_us)
    }

    fn is_due(&self, volume: &Volume) -> bool {
        let idle_us = self.idle_us(volume);
        let left = self.resting_sectors(volume) + self.out_of_reach(volume);
        if self.owner.tree.dirty_sectors(volume.inode) <= left {
            return false;
        }
        if self.is_backing_off(volume) {
            return false;
        }
        let alloc = &self.owner.tree.alloc;
        let wanted = self.wanted.borrow().contains_key(&volume.number);
        if wanted || alloc.is_starving() {
            return true;
        }
        let over =
            alloc.dirty_sectors() * 100 > alloc.data_sectors() * volume.writeback_percent.get();
        volume.writeback_running.get() && (over || idle_us > IDLE_US)
    }

    /// Whether its backing device has failed so lately that it is left alone.
    fn is_backing_off(&self, volume: &Volume) -> bool {
        let progress = self.progress.borrow();
        let failed_us = progress.get(&volume.number).and_then(|p| p.failed_us);
        failed_us.is_some_and(|at| self.exec.now_us() < at + BACKOFF_US)
    }

    /// Nothing to write back: says so on the backing device, once that is calm.
    async fn settle(&self, volume: &Rc<Volume>) {
        let dirty = self.owner.tree.dirty_sectors(volume.inode) > 0;
        let calm = volume.writeback_running.get() && self.idle_us(volume) > IDLE_US
            || self.wanted.borrow().contains_key(&volume.number);
        if !dirty && calm && !volume.is_marked_clean() && !self.is_backing_off(volume) {
            // A crash must not find dirty keys of a device that says it is clean.
            let known = self.owner.tree.journal.commit().await;
            if known.is_err() || self.owner.tree.dirty_sectors(volume.inode) > 0 {
                return;
            }
            if let Err(why) = volume.mark_clean().await {
                log::warn!("a backing device could not be marked clean: {why}; it is tried again");
                self.failures.add(1);
                let now_us = self.exec.now_us();
                self.progress_of(volume, |p| p.failed_us = Some(now_us));
            }
        }
    }

    /// Has a volume written back as long as the result lives. What rests is tried again.
    pub fn want(&self, volume: &Volume) -> Wanted<'_> {
        *self.wanted.borrow_mut().entry(volume.number).or_default() += 1;
        self.resting.borrow_mut().wake(volume.number);
        self.work.notify();
        Wanted(self, volume.number)
    }

    /// Writes back until nothing is dirty. For a volume that gets no new dirty data.
    ///
    /// # Errors
    /// The set stopped, or one of the devices fails.
    pub async fn clean_all(&self, volume: &Volume) -> Result<(), IoError> {
        let _wanted = self.want(volume);
        let failures = self.failures.get();
        while self.owner.tree.dirty_sectors(volume.inode) > 0 || !volume.is_marked_clean() {
            if self.latch.check().is_err() || self.stopping.get() {
                return Err(IoError::Gone);
            }
            let dirty = self.owner.tree.dirty_sectors(volume.inode);
            let left = self.resting_sectors(volume) + self.out_of_reach(volume);
            let stuck = dirty > 0 && dirty <= left;
            if stuck || self.failures.get() > failures + 3 {
                return Err(IoError::Failed);
            }
            self.moved.wait().await;
        }
        Ok(())
    }

    /// Dirty sectors beyond the end of the backing device, as far as they are known: it has shrunk.
    /// They stay dirty until it has its size back, or they are given up.
    fn out_of_reach(&self, volume: &Volume) -> u64 {
        let progress = self.progress.borrow();
        let known = progress.get(&volume.number).and_then(|p| p.out_of_reach);
        known.map_or(0, |(end, activity, sectors)| {
            let holds = end == end_of(volume) && activity == volume.activity.get();
            if holds { sectors } else { 0 }
        })
    }

    /// Begins a pass over a volume anew: dirty data beyond the end of its device were given up.
    pub fn begin_anew(&self, volume: &Volume) {
        self.progress_of(volume, |p| {
            (p.cursor, p.beyond, p.out_of_reach) = (Sector(0), 0, None);
        });
        self.work.notify();
    }

    /// Dirty sectors that are left alone for now, because they could not be read.
    fn resting_sectors(&self, volume: &Volume) -> u64 {
        let (tree, now_us) = (&self.owner.tree, self.exec.now_us());
        let mut resting = self.resting.borrow_mut();
        resting.sectors(volume.number, now_us, |extent| {
            let mut same = false;
            tree.scan(volume.inode, extent.start, extent.end(), &mut |e| {
                let whole = e.start <= extent.start && e.end() >= extent.end();
                same = whole && e.cut(extent.start, extent.end()) == *extent;
                false
            });
            same
        })
    }

    /// Writes back everything that is dirty now, however much comes meanwhile: two passes over the
    /// volume, for the first may have begun in its middle.
    ///
    /// # Errors
    /// The set stopped, or one of the devices fails.
    pub async fn clean_pass(&self, volume: &Volume) -> Result<(), IoError> {
        let _wanted = self.want(volume);
        self.idle_us(volume);
        let passes = || self.progress.borrow()[&volume.number].passes;
        let (upto, failures) = (passes() + 2, self.failures.get());
        while self.owner.tree.dirty_sectors(volume.inode) > 0 && passes() < upto {
            if self.latch.check().is_err() || self.stopping.get() {
                return Err(IoError::Gone);
            }
            let dirty = self.owner.tree.dirty_sectors(volume.inode);
            let beyond = self.out_of_reach(volume);
            if dirty <= beyond {
                return Ok(());
            }
            if dirty <= self.resting_sectors(volume) + beyond || self.failures.get() > failures + 3
            {
                return Err(IoError::Failed);
            }
            self.moved.wait().await;
        }
        Ok(())
    }

    /// The next dirty extents behind the cursor, each within one run.
    fn gather(&self, volume: &Volume) -> Vec<Run> {
        let tree = &self.owner.tree;
        let (resting, now_us) = (self.resting.borrow(), self.exec.now_us());
        let mut progress = self.progress.borrow_mut();
        let p = progress.entry(volume.number).or_default();
        let (mut found, mut sectors, mut looked) = (Vec::new(), 0, 0);
        let (mut next, end) = (None, end_of(volume));
        if p.cursor == Sector(0) {
            p.beyond = 0;
        }
        tree.scan(volume.inode, p.cursor, Sector::MAX, &mut |e| {
            if looked == SCAN_EXTENTS || found.len() == ROUND_EXTENTS || sectors >= ROUND_SECTORS {
                next = Some(e.start);
                return false;
            }
            looked += 1;
            if e.dirty && tree.is_fresh(&e) {
                let reach = e.end().min(end);
                p.beyond += e.end() - e.start.max(reach);
                let mut at = e.start;
                while at < reach {
                    let to = (at + RUN_SECTORS).min(reach);
                    let piece = e.cut(at, to);
                    if !resting.has(volume.number, &piece, now_us) {
                        found.push(piece);
                    }
                    at = to;
                }
                sectors += reach.0.saturating_sub(e.start.0);
            }
            true
        });
        match next {
            Some(next) => p.cursor = next,
            None => {
                p.cursor = Sector(0);
                p.passes += 1;
                p.out_of_reach = Some((end, volume.activity.get(), p.beyond));
            }
        }
        join_runs(found)
    }

    /// One round; false when there was nothing to do.
    async fn round(&self, volume: &Rc<Volume>) -> bool {
        let mut runs = self.gather(volume);
        let Some((disk, _)) = volume.backing.clone() else {
            return false;
        };
        runs.retain(|r| self.owner.begin_writeback(volume, r.start, r.end));
        if runs.is_empty() {
            // The pass goes on behind what was looked at.
            return true;
        }
        // The keys first: were they lost after the backing device has the data, an older clean copy
        // in the cache would come back and differ from it.
        let mut done = Ok(());
        if self.owner.tree.journal.commit().await.is_ok() {
            let written;
            (written, done) = self.copy(volume, &runs, &disk).await;
            let flushed = match canary::has(Bug::CleanBeforeFlush) {
                true => Ok(()),
                false => disk.flush().await,
            };
            if flushed.is_ok() {
                for (nth, extent) in written.into_iter().enumerate() {
                    if nth > 0 && nth % CLEANED_A_STEP == 0 {
                        yield_now().await;
                    }
                    if self.clean(volume, &extent).await.is_err() {
                        break;
                    }
                }
            }
            done = done.and(flushed);
        }
        if let Err(why) = done {
            log::error!("write-back to {}: {why}; it is tried again", disk.name());
            self.failures.add(1);
            // Its writes do not wait for a device that fails.
            self.owner.stay(volume);
        }
        let failed_us = done.err().map(|_| self.exec.now_us());
        self.progress_of(volume, |p| p.failed_us = failed_us);
        self.owner.end_writeback(volume);
        true
    }

    fn progress_of(&self, volume: &Volume, f: impl FnOnce(&mut Progress)) {
        f(self.progress.borrow_mut().entry(volume.number).or_default());
    }

    /// Copies runs to the backing device. Returns the extents that it has now, and whether it took
    /// all that could be read.
    async fn copy(
        &self,
        volume: &Volume,
        runs: &[Run],
        backing: &Rc<dyn Disk>,
    ) -> (Vec<Extent>, Result<(), IoError>) {
        let extents: Vec<Extent> = runs.iter().flat_map(|run| run.extents.clone()).collect();
        let cache = self.owner.tree.cache_disk();
        let reads = extents.iter().map(|e| {
            let buf = cache.alloc(e.sectors as usize * SECTOR_BYTES);
            cache.read(e.at, buf)
        });
        let (mut good, mut data, mut result) = (Vec::new(), Vec::new(), Ok(()));
        for (extent, (buf, done)) in extents.iter().zip(answers(reads).await) {
            match done {
                // Its bucket was reused meanwhile: it was overwritten.
                _ if !self.owner.tree.is_fresh(extent) => {}
                Ok(()) => {
                    good.push(*extent);
                    data.push(buf);
                }
                Err(_) => result = result.and(self.unreadable(volume, extent)),
            }
        }
        let (runs, mut data) = (join_runs(good), data.into_iter());
        let writes = runs.iter().filter_map(|run| {
            let mut parts = run.extents.iter().zip(data.by_ref());
            let whole = if let [_] = run.extents[..] {
                parts.next().map(|(_, part)| part)
            } else {
                let mut whole = backing.alloc((run.end - run.start) as usize * SECTOR_BYTES);
                for (extent, part) in parts {
                    let at = (extent.start - run.start) as usize * SECTOR_BYTES;
                    whole[at..at + part.len()].copy_from_slice(&part);
                }
                Some(whole)
            };
            whole.map(|whole| backing.write(run.start, whole))
        });
        // The ranges are held until the last write has landed, whatever failed.
        let mut written = Vec::new();
        for (run, (_, done)) in runs.iter().zip(answers(writes).await) {
            if done.is_ok() {
                self.done_sectors.add(run.end - run.start);
                written.extend(&run.extents);
            }
            result = result.and(done);
        }
        (written, result)
    }

    /// Dirty data that the cache device cannot read now: they stay dirty, and rest. An error when
    /// too many do.
    fn unreadable(&self, volume: &Volume, extent: &Extent) -> Result<(), IoError> {
        // Writes over these data do not wait until they can be read.
        self.owner.stay(volume);
        let now_us = self.exec.now_us();
        let tries = self
            .resting
            .borrow_mut()
            .rest(volume.number, extent, now_us);
        // One bad place is one error, however often it is tried.
        if tries.is_none_or(|tries| tries == 1) {
            self.owner.cache_failed(false);
        }
        if tries == Some(TRIES_QUIET) {
            self.owner.dirty_unreadable(volume.inode, extent);
        }
        tries.map(|_| ()).ok_or(IoError::Failed)
    }

    async fn clean(&self, volume: &Volume, extent: &Extent) -> Result<(), Stopped> {
        while self.owner.tree.clean(volume.inode, extent).is_err() {
            self.owner.tree.journal.room().await?;
        }
        Ok(())
    }
}

/// The first sector that a volume's backing device does not have.
fn end_of(volume: &Volume) -> Sector {
    let backing = volume.backing.as_ref();
    backing.map_or(Sector::MAX, |(disk, _)| Sector(disk.size_sectors()))
}

fn join_runs(extents: Vec<Extent>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(run) if run.end == extent.start && extent.end() - run.start <= RUN_SECTORS => {
                run.end = extent.end();
                run.extents.push(extent);
            }
            _ => runs.push(Run {
                start: extent.start,
                end: extent.end(),
                extents: vec![extent],
            }),
        }
    }
    runs
}
