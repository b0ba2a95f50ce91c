//! How buckets become free again: choice, invalidation, and the writing that makes it safe.
//!
//! One task does all of it, in rounds: scan the table in slices, raise the generations of the
//! chosen buckets, write the priorities, and only then put them on the free list. A crash at any
//! point leaves either the old generations with all old data, or the new ones.
//!
//! Bounds: a step looks at a slice of buckets ([`Work::Buckets`]); a round takes at most 16384.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

use super::{Alloc, Bucket, Purpose, Use};
use crate::canary::{self, Bug};
use crate::disk::Stopped;
use crate::task::{Work, breathe, either, work};
use crate::units::BucketNr;

/// Buckets of a round at least, if they are no more than a 16th of the device: a round writes the
/// priorities, which take a whole bucket however few they are.
const FEW: usize = 256;

impl Alloc {
    /// The task that keeps the free list filled. Ends when the latch trips or on `stop`.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        loop {
            if self.latch.check().is_err() || self.stopping.get() {
                self.running.set(false);
                self.freed.notify();
                return;
            }
            if self.gens_lag.get() {
                self.wait_for_journal().await;
                if self.latch.check().is_ok() && self.write_prios().await.is_ok() {
                    self.freed.notify();
                }
                continue;
            }
            if self.free.borrow().len() >= self.low_water() {
                self.wanted.wait().await;
                continue;
            }
            // From before the look at the table: what changes under it must not be missed.
            let changed = self.reclaimable.wait();
            let round = self.round();
            let chosen = self.choose(round).await;
            self.scarce.set(chosen.len() < round);
            let chosen = self.invalidate(chosen).await;
            if chosen.is_empty() {
                self.starve();
                changed.await;
                continue;
            }
            self.starving.set(false);
            self.wait_for_journal().await;
            if !canary::has(Bug::ReuseBeforeGens) && self.write_prios().await.is_err() {
                continue;
            }
            self.free_all(chosen).await;
        }
    }

    /// Puts buckets on the free list whose generations are durable; those that needed entries of the
    /// journal name last, so that they are taken first.
    async fn free_all(&self, mut buckets: Vec<BucketNr>) {
        {
            let mut replayed = self.replayed.borrow_mut();
            replayed.needed_from(self.journal.replayed_from());
            buckets.sort_by_key(|&bucket| replayed.names(bucket));
        }
        for bucket in buckets {
            self.free_unreferenced(bucket);
            work(Work::Buckets, 1);
            breathe().await;
        }
        self.freed.notify();
    }

    /// Lets the btree's writer make room in a journal that is nearly full, rather than take the last
    /// of it; unless it is that writer who waits for buckets.
    async fn wait_for_journal(&self) {
        let cannot_wait = async {
            while self.asked.get() == 0 && !self.stopping.get() {
                self.wanted.wait().await;
            }
        };
        either(self.journal.not_low(), cannot_wait).await;
    }

    /// Writes the priorities for the last time, after the round that may be under way.
    pub async fn stop_and_write(&self) -> Result<(), Stopped> {
        self.stop();
        while self.running.get() {
            self.latch.check()?;
            self.freed.wait().await;
        }
        self.write_prios().await
    }

    /// Has all that wait look again.
    pub fn wake(&self) {
        self.wanted.notify();
        self.reclaimable.notify();
        self.freed.notify();
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        self.stopping.set(true);
        self.wanted.notify();
        self.reclaimable.notify();
    }

    /// Fills the free list with empty buckets: once, when a set has been loaded. Without them the first
    /// round could not write what makes its buckets free; and in a journal without a block for that
    /// round's entry, leaves must be written anew first, into some of these.
    ///
    /// Their raised generations are not on the disk, so these buckets are for nodes, the uuid table and
    /// priorities alone until the priorities have been written. Linux does the same
    /// (`bch_initial_gc_finish`), and like Linux this takes none that a leaf on the disk or an entry of
    /// the journal still names, although later ones cover that: Linux marks what they name as data
    /// before it replays. Those are for the priorities, if there are too few others: what makes
    /// priorities count raises the generation, too.
    ///
    /// False when there are not enough for the priorities.
    pub async fn start_from_empty(&self) -> bool {
        let (needed, wanted) = (self.prio_buckets(), self.low_water());
        let (mut chosen, mut named) = (Vec::with_capacity(wanted), Vec::new());
        let named_buckets = self.named.take();
        self.each_data_bucket(|bucket, slot| {
            if slot.live_sectors > 0 || self.near_gen_limit(slot, bucket) {
                return;
            }
            let (some, most) = match named_buckets.has(bucket) {
                true => (&mut named, needed),
                false => (&mut chosen, wanted),
            };
            if some.len() < most {
                some.push(bucket);
            }
        })
        .await;
        named.truncate(needed.saturating_sub(chosen.len()));
        chosen.extend(named);
        for &bucket in &chosen {
            let next = self.gens.generation(bucket).next();
            self.gens.set_generation(bucket, next);
        }
        let is_enough = chosen.len() >= needed;
        self.gens_lag.set(true);
        self.free_all(chosen).await;
        is_enough
    }

    fn round(&self) -> usize {
        let missing = self.low_water().saturating_sub(self.free.borrow().len());
        let n = self.gens.len();
        missing.max(n / 64).max((n / 16).min(FEW)).clamp(4, 16384)
    }

    fn starve(&self) {
        let free = self.free.borrow().len();
        self.starving.set(true);
        if self.invalidated_since_sweep.get() > 0 {
            self.want_sweep(self.asked.get() > 0);
        }
        self.move_due.notify();
        self.freed.notify();
        log::debug!("no bucket can be reused now; {free} are free");
    }

    /// Shows every bucket of data that nobody pins, in bounded steps.
    pub(super) async fn each_data_bucket(&self, mut visit: impl FnMut(BucketNr, &Bucket)) {
        let mut start = 0;
        while start < self.gens.len() {
            breathe().await;
            let table = self.table.borrow();
            let some = table.some_from(start, Work::Buckets.slice()).unwrap_or(&[]);
            for (at, slot) in some.iter().enumerate() {
                if slot.state == Use::Data && slot.pins == 0 {
                    visit(BucketNr((start + at) as u32), slot);
                }
            }
            work(Work::Buckets, some.len());
            start += some.len();
        }
        breathe().await;
    }

    /// The best buckets to reuse: empty ones first, then those longest without use.
    async fn choose(&self, n: usize) -> Vec<BucketNr> {
        let mut best: BinaryHeap<Reverse<(u32, u32)>> = BinaryHeap::with_capacity(n + 1);
        let mut limited = 0u64;
        self.each_data_bucket(|bucket, slot| {
            if slot.dirty_sectors > 0 {
                return;
            }
            if self.near_gen_limit(slot, bucket) {
                limited += 1;
                return;
            }
            let score = match slot.live_sectors {
                0 => u32::MAX,
                _ => self.gens.age(bucket).into(),
            };
            if best.len() < n {
                best.push(Reverse((score, bucket.0)));
            } else if best.peek().is_some_and(|w| w.0.0 < score) {
                best.pop();
                best.push(Reverse((score, bucket.0)));
            }
        })
        .await;
        if limited > 0 {
            self.want_sweep(true);
        }
        best.into_iter().map(|r| BucketNr(r.0.1)).collect()
    }

    /// Raises the generations of those that may still be invalidated.
    async fn invalidate(&self, chosen: Vec<BucketNr>) -> Vec<BucketNr> {
        let mut done = Vec::with_capacity(chosen.len());
        for bucket in chosen {
            work(Work::Buckets, 1);
            breathe().await;
            let slot = self.slot(bucket);
            if slot.state != Use::Data || slot.pins > 0 || slot.dirty_sectors > 0 {
                continue;
            }
            if slot.live_sectors > 0 {
                self.evicted_since_move
                    .set(self.evicted_since_move.get() + 1);
            }
            self.change(bucket, |slot| {
                (slot.state, slot.live_sectors) = (Use::Invalid, 0);
            });
            let next = self.gens.generation(bucket).next();
            self.gens.set_generation(bucket, next);
            self.check_gen(bucket);
            done.push(bucket);
        }
        if self.move_wanted() {
            self.move_due.notify();
        }
        let since = self.invalidated_since_sweep.get() + done.len() as u64;
        self.invalidated_since_sweep.set(since);
        // Stale keys cost memory and node space: half a device's worth of them is enough.
        if since > self.gens.len() as u64 / 2 {
            self.want_sweep(false);
        }
        done
    }

    /// Writes priorities and generations as they are now, and makes them the ones that count.
    pub async fn write_prios(&self) -> Result<(), Stopped> {
        let n = self.prio_buckets();
        let mut places = Vec::with_capacity(n);
        for _ in 0..n {
            work(Work::Buckets, 1);
            breathe().await;
            match self.take(Purpose::Prio) {
                Some((bucket, _)) => places.push(bucket),
                None => {
                    for bucket in places {
                        self.free_unreferenced(bucket);
                    }
                    let why = "no bucket left for the priorities".to_string();
                    return Err(self.latch.trip(why));
                }
            }
        }
        self.prio_seq.set(self.prio_seq.get().wrapping_add(1));
        self.write_prio_chain(&places).await?;
        self.journal.set_roots(|r| r.prio_bucket = places[0]);
        self.journal.commit_roots().await?;
        self.gens_lag.set(false);
        for old in self.prios.replace(places) {
            self.free_unreferenced(old);
            work(Work::Buckets, 1);
            breathe().await;
        }
        Ok(())
    }
}
