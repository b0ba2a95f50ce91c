//! Moving gc: live data leave mostly empty buckets, so that these become free.
//!
//! A pass chooses the buckets ([`crate::alloc::thin`]), walks all maps in slices, and copies what
//! it finds in them to new buckets, a batch at a time: read, look again whether the source bucket
//! is still what it was, write, then replace each key that still says what it said when it was
//! read. Data that were overwritten, written back or deleted meanwhile keep the key that did
//! it. The source buckets are empty after that and are reused as any empty bucket is: raised
//! generation on disk first, so a reader of the old place notices, and a crash finds either the
//! old key with the old data or the new key with the new.
//!
//! A key of dirty data is journalled, and an entry is durable only with all that was written before
//! it. A key of clean data is not: the backing device may not have flushed them yet, and a crash may
//! forget them. The tree remembers that the disk may still name the place they came from.
//!
//! Targets are buckets that only moves may take, and each pass frees more than it takes, so full
//! volumes without a backing device never bring the cache to a halt while they leave it some room.
//!
//! Bounds: a step looks at `SLICE_EXTENTS` extents; a batch is at most `BATCH_EXTENTS` extents and
//! `BATCH_SECTORS` sectors long.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::alloc::Purpose;
use crate::alloc::thin::Thin;
use crate::btree::Tree;
use crate::disk::{Buf, Latch, Stopped, answers};
use crate::index::Extent;
use crate::stats::Counter;
use crate::task::{Executor, Notify, Work, breathe, work, yield_now};
use crate::units::{BucketNr, Gen, Inode, SECTOR_BYTES, Sector};

/// Extents looked at in one step.
const SLICE_EXTENTS: usize = Work::Keys.slice();
/// Extents moved at once.
const BATCH_EXTENTS: usize = 64;
/// Sectors moved at once: 1 MiB, or one extent.
const BATCH_SECTORS: u64 = 2048;

/// A bucket that is being filled.
#[derive(Clone, Copy)]
struct Target {
    bucket: BucketNr,
    generation: Gen,
    at: Sector,
    end: Sector,
}

/// A copy under way.
struct Copy {
    from: Extent,
    at: Sector,
    generation: Gen,
}

/// The moving gc of one set.
pub struct Mover {
    tree: Rc<Tree>,
    latch: Rc<Latch>,
    exec: Executor,
    /// Whether it works at all; the kernel's `copy_gc_enabled`.
    enabled: Cell<bool>,
    stopping: Cell<bool>,
    running: Cell<bool>,
    ended: Notify,
    /// Where clean data and dirty data go.
    targets: RefCell<[Option<Target>; 2]>,
    /// Sectors moved.
    pub moved_sectors: Counter,
}

impl Mover {
    /// The moving gc of a set's map.
    pub fn new(tree: Rc<Tree>, latch: Rc<Latch>, exec: Executor) -> Rc<Mover> {
        Rc::new(Mover {
            tree,
            latch,
            exec,
            enabled: Cell::new(true),
            stopping: Cell::new(false),
            running: Cell::new(false),
            ended: Notify::default(),
            targets: RefCell::default(),
            moved_sectors: Counter::default(),
        })
    }

    /// The task. Ends on [`stop`](Self::stop) or when the latch trips.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while !self.is_over() {
            let due = self.tree.alloc.move_due.wait();
            if self.enabled.get() && self.tree.alloc.move_wanted() {
                let began_us = self.exec.now_us();
                // A failure has tripped the latch.
                let moved = self.pass().await;
                let wakes = &self.tree.alloc.move_due;
                super::rest(&self.exec, began_us, wakes, || self.is_roused()).await;
                if moved.is_ok_and(|sectors| sectors > 0) {
                    continue;
                }
            }
            if !self.is_over() {
                due.await;
            }
        }
        self.running.set(false);
        self.ended.notify();
    }

    /// Whether it may not rest: it is to end, or nothing else makes room.
    fn is_roused(&self) -> bool {
        let alloc = &self.tree.alloc;
        self.is_over() || !self.enabled.get() || alloc.is_starving() && !alloc.is_cleaning()
    }

    fn is_over(&self) -> bool {
        self.latch.check().is_err() || self.stopping.get()
    }

    /// Whether it works when space is wanted.
    pub fn is_enabled(&self) -> bool {
        self.enabled.get()
    }

    /// Has it work, or not, from the next pass on.
    pub fn enable(&self, on: bool) {
        self.enabled.set(on);
        self.tree.alloc.move_due.notify();
    }

    /// Ends [`run`](Self::run) after the batch that it is in.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.tree.alloc.move_due.notify();
    }

    /// Waits until [`run`](Self::run) has ended, with it the last change that it makes to the map.
    pub async fn ended(&self) {
        while self.running.get() {
            self.ended.wait().await;
        }
    }

    /// One pass over all maps, whether space is wanted or not. Returns how many sectors were moved.
    ///
    /// # Errors
    /// The set stopped.
    pub async fn pass(&self) -> Result<u64, Stopped> {
        let thin = self.tree.alloc.thinnest().await;
        if thin.buckets.is_empty() {
            return Ok(0);
        }
        let before = self.moved_sectors.get();
        for inode in self.tree.inodes() {
            let mut at = Some(Sector(0));
            while let Some(from) = at {
                breathe().await;
                let (batch, next) = self.gather(inode, from, &thin);
                if self.is_over() || !self.move_batch(inode, batch).await? {
                    at = None;
                } else {
                    at = next;
                    yield_now().await;
                }
            }
        }
        for target in self.targets.take().into_iter().flatten() {
            self.tree.alloc.unpin(target.bucket);
        }
        Ok(self.moved_sectors.get() - before)
    }

    /// What is to be moved of one slice of a map, and where the next slice begins.
    fn gather(&self, inode: Inode, from: Sector, thin: &Thin) -> (Vec<Extent>, Option<Sector>) {
        let (mut batch, mut looked, mut sectors) = (Vec::new(), 0, 0);
        let mut next = None;
        let gens = &self.tree.alloc.gens;
        self.tree.scan(inode, from, Sector::MAX, &mut |e| {
            let full = batch.len() == BATCH_EXTENTS || sectors >= BATCH_SECTORS;
            if full || looked == SLICE_EXTENTS {
                next = Some(e.start.max(from));
                return false;
            }
            looked += 1;
            let wanted = e.dirty || !thin.dirty_only && self.tree.may_move_clean();
            if wanted && thin.contains(gens.bucket_of(e.at)) && self.tree.is_fresh(&e) {
                sectors += u64::from(e.sectors);
                batch.push(e);
            }
            true
        });
        work(Work::Keys, looked);
        (batch, next)
    }

    /// A place for up to `sectors`; `None` when moves may take no more buckets.
    fn place(&self, sectors: u32, dirty: bool) -> Option<(Sector, Gen, u32)> {
        let alloc = &self.tree.alloc;
        let slot = &mut self.targets.borrow_mut()[usize::from(dirty)];
        if slot.is_none_or(|target| target.at == target.end) {
            let (bucket, generation) = alloc.take(Purpose::Move)?;
            if let Some(full) = slot.take() {
                alloc.unpin(full.bucket);
            }
            let (at, end) = alloc.range_of(bucket);
            *slot = Some(Target {
                bucket,
                generation,
                at,
                end,
            });
        }
        let target = slot.as_mut()?;
        let taken = (target.end - target.at).min(u64::from(sectors)) as u32;
        let at = target.at;
        target.at += u64::from(taken);
        Some((at, target.generation, taken))
    }

    /// Copies extents and replaces their keys; false when there is no more space.
    async fn move_batch(&self, inode: Inode, batch: Vec<Extent>) -> Result<bool, Stopped> {
        // A target that is full is unpinned with the next one taken, so keys must be in by then.
        let (mut copies, mut held) = (Vec::new(), Vec::new());
        let mut room = true;
        for extent in batch {
            let mut from = extent.start;
            while room && from < extent.end() {
                let rest = extent.cut(from, extent.end());
                let Some((at, generation, sectors)) = self.place(rest.sectors, rest.dirty) else {
                    room = false;
                    break;
                };
                let bucket = self.tree.alloc.gens.bucket_of(at);
                self.tree.alloc.pin(bucket);
                held.push(bucket);
                let to = from + u64::from(sectors);
                copies.push(Copy {
                    from: rest.cut(from, to),
                    at,
                    generation,
                });
                from = to;
            }
        }
        let done = self.copy(inode, copies).await;
        for bucket in held {
            self.tree.alloc.unpin(bucket);
        }
        done.map(|()| room)
    }

    async fn copy(&self, inode: Inode, copies: Vec<Copy>) -> Result<(), Stopped> {
        let disk = self.tree.cache_disk();
        let reads = copies.iter().map(|copy| {
            let bytes = copy.from.sectors as usize * SECTOR_BYTES;
            disk.read(copy.from.at, disk.alloc(bytes))
        });
        let read: Vec<(Buf, _)> = answers(reads).await;
        // What failed or was overwritten under the read stays where it is.
        let good = copies
            .into_iter()
            .zip(read)
            .filter_map(|(copy, (buf, done))| {
                (done.is_ok() && self.tree.is_fresh(&copy.from)).then_some((copy, buf))
            });
        let (copies, bufs): (Vec<Copy>, Vec<Buf>) = good.unzip();
        let writes = copies.iter().zip(bufs);
        let writes = writes.map(|(copy, buf)| disk.write(copy.at, buf));
        let written = answers(writes).await;
        for (copy, (_, done)) in copies.iter().zip(written) {
            if done.is_err() {
                log::warn!("data were not moved to sector {}", copy.at);
                continue;
            }
            loop {
                match self
                    .tree
                    .relocate(inode, &copy.from, copy.at, copy.generation)
                {
                    Ok(sectors) => {
                        self.moved_sectors.add(sectors);
                        break;
                    }
                    Err(_) => self.tree.journal.room().await?,
                }
            }
        }
        Ok(())
    }
}
