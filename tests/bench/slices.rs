//! How long the owner's poller is held at once: `cargo bench --bench slices -- [keys] [buckets]`.
//!
//! First a set of many buckets, 16 million unless told otherwise: made, swept, stopped, started,
//! dropped, and what it takes of memory a bucket. Then a smaller one with many keys.
//!
//! One set on a device in memory that answers after everybody else had a turn. Every step of every
//! task is timed, in phases: nothing to do; random inserts of dirty extents into an empty map
//! (nodes split, the journal wraps); the same extents overwritten in random order; half of them
//! made clean as write-back does; three quarters deleted and a full gc pass; data moved out of
//! mostly empty buckets. Times are those of the wall; a step in which the kernel took the processor
//! away is left out, and counted.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use spdk_bcache::alloc::Purpose;
use spdk_bcache::gc;
use spdk_bcache::index::Extent;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::task::{Executor, yield_now};
use spdk_bcache::units::{Gen, Inode, Sector};

mod memory;
use memory::{BUCKET, SECTORS, device, resident_bytes, start, start_on, switches};

const INODE: Inode = Inode(1);
/// Keys that the load puts in before it lets others run, as a batch of host I/O does.
const BATCH: usize = 64;

struct Rig {
    exec: Executor,
    set: Option<Rc<CacheSet>>,
    rng: Rc<Rng>,
    began: Instant,
}

impl Rig {
    /// Runs a job and times every step until it is done; prints the distribution.
    fn phase(&self, name: &str, job: impl Future<Output = ()> + 'static) {
        let done = Rc::new(RefCell::new(false));
        let out = done.clone();
        self.exec.spawn(async move {
            job.await;
            *out.borrow_mut() = true;
        });
        let (mut steps, mut left_out) = (Vec::new(), 0);
        let mut before = switches();
        while !*done.borrow() {
            let now_us = self.began.elapsed().as_micros() as u64;
            let step = Instant::now();
            let worked = self.exec.poll(now_us, 1) > 0;
            let ns = step.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32;
            let after = switches();
            match (worked, after == before) {
                (true, true) => steps.push(ns),
                (true, false) => left_out += 1,
                (false, _) => {}
            }
            before = after;
        }
        steps.push(0);
        steps.sort_unstable();
        let at = |share: f64| {
            let place = (steps.len() as f64 * share) as usize;
            f64::from(steps[place.min(steps.len() - 1)]) / 1e3
        };
        println!(
            "{name:>22} {:>10} {left_out:>8} {:>8.1} {:>8.1} {:>8.1} {:>9.1} {:>9.1}",
            steps.len(),
            at(0.5),
            at(0.99),
            at(0.999),
            at(0.9999),
            at(1.0),
        );
    }

    fn set(&self) -> Rc<CacheSet> {
        self.set.clone().expect("it runs")
    }
}

/// Buckets for host data, one after the other.
#[derive(Default)]
struct Space {
    at: Sector,
    end: Sector,
    open: Option<(spdk_bcache::units::BucketNr, Gen)>,
}

impl Space {
    async fn take(&mut self, set: &CacheSet) -> (Sector, Gen) {
        if self.at == self.end {
            self.close(set);
            let taken = loop {
                match set.alloc.take(Purpose::Data) {
                    Some(taken) => break taken,
                    None => set.alloc.freed.wait().await,
                }
            };
            (self.at, self.end) = set.alloc.range_of(taken.0);
            self.open = Some(taken);
        }
        let (at, generation) = (self.at, self.open.expect("a bucket is open").1);
        self.at += u64::from(SECTORS);
        (at, generation)
    }

    fn close(&mut self, set: &CacheSet) {
        if let Some((bucket, _)) = self.open.take() {
            set.alloc.unpin(bucket);
        }
    }
}

/// Dirty extents at random places of a volume of `keys` of them.
async fn insert(set: Rc<CacheSet>, rng: Rc<Rng>, keys: u64, count: u64) {
    let mut space = Space::default();
    for i in 0..count {
        let (at, generation) = space.take(&set).await;
        let extent = Extent {
            start: Sector(rng.below(keys) * u64::from(SECTORS)),
            sectors: SECTORS,
            at,
            generation,
            dirty: true,
        };
        while set.tree.insert(INODE, extent).is_err() {
            set.journal.room().await.expect("the set runs");
        }
        if i % BATCH as u64 == 0 {
            yield_now().await;
        }
    }
    space.close(&set);
}

/// Marks as clean what `choose` says, in order, as write-back does.
async fn clean(set: Rc<CacheSet>, choose: fn(u64) -> bool) {
    let mut from = Some(Sector(0));
    while let Some(start) = from.take() {
        let mut batch = Vec::new();
        set.tree.scan(INODE, start, Sector::MAX, &mut |e| {
            if batch.len() == BATCH {
                from = Some(e.start);
                return false;
            }
            batch.push(e);
            true
        });
        for extent in batch.iter().filter(|e| choose(e.start.0)) {
            while set.tree.clean(INODE, extent).is_err() {
                set.journal.room().await.expect("the set runs");
            }
        }
        yield_now().await;
    }
}

/// Deletes three of four extents.
async fn thin_out(set: Rc<CacheSet>, keys: u64) {
    for i in (0..keys).step_by(4) {
        let (start, end) = (i * u64::from(SECTORS), (i + 3) * u64::from(SECTORS));
        let done = set.tree.delete(INODE, Sector(start), Sector(end), false);
        done.await.expect("the set runs");
        if i % (4 * BATCH as u64) == 0 {
            yield_now().await;
        }
    }
}

/// A set of so many buckets, from its making to its end.
fn many_buckets(rig: &mut Rig, buckets: u64) {
    let (disk, slot) = (device(buckets), Rc::new(RefCell::new(None)));
    let before = resident_bytes();
    for name in ["make", "start"] {
        let (exec, rng, on) = (rig.exec.clone(), rig.rng.clone(), disk.clone());
        let out = slot.clone();
        rig.phase(&format!("{name}, {buckets} buckets"), async move {
            *out.borrow_mut() = Some(start_on(exec, rng, on).await);
        });
        let grown = resident_bytes().saturating_sub(before) as f64;
        let set: Rc<CacheSet> = slot.take().expect("it runs");
        // What the device holds is not the set's: priorities, 3 bytes a bucket for each writing.
        println!(
            "{:>22} {:.1} bytes a bucket, the device's included",
            "",
            grown / buckets as f64
        );
        let swept = set.clone();
        rig.phase("sweep", async move {
            gc::sweep(&swept.tree).await.expect("the set runs");
        });
        let reported = set.clone();
        rig.phase("report", async move {
            std::hint::black_box(reported.alloc.census());
        });
        let stopping = set.clone();
        rig.phase("stop", async move {
            stopping.stop().await.expect("the set runs");
        });
        let exec = rig.exec.clone();
        rig.phase("drop", async move {
            // What its timers hold goes with the last of them.
            exec.sleep_us(2_000_000).await;
            drop(set);
            for _ in 0..100_000 {
                yield_now().await;
            }
        });
    }
}

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let keys: u64 = numbers.next().unwrap_or(400_000);
    let many: u64 = numbers.next().unwrap_or(16_000_000);
    let exec = Executor::new();
    let mut rig = Rig {
        exec: exec.clone(),
        set: None,
        rng: Rc::new(Rng::new(1)),
        began: Instant::now(),
    };
    println!(
        "{:>22} {:>10} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "steps in µs", "steps", "left out", "median", "99 %", "99.9 %", "99.99 %", "worst"
    );
    many_buckets(&mut rig, many);
    // Room for the keys one and a half times, so that overwriting leaves thin buckets.
    let buckets = keys * u64::from(SECTORS) / u64::from(BUCKET) * 3 / 2 + 1024;
    let slot: Rc<RefCell<Option<Rc<CacheSet>>>> = Rc::default();
    let (out, rng) = (slot.clone(), rig.rng.clone());
    rig.phase("start", async move {
        let set = start(exec, rng, buckets).await;
        *out.borrow_mut() = Some(set);
    });
    rig.set = slot.take();
    let (set, rng) = (rig.set(), rig.rng.clone());
    rig.phase("insert", insert(set, rng, keys, keys));
    let (set, rng) = (rig.set(), rig.rng.clone());
    rig.phase("overwrite, move", insert(set, rng, keys, keys));
    rig.phase("clean", clean(rig.set(), |at| at % 16 == 0));
    rig.phase("delete", thin_out(rig.set(), keys));
    let set = rig.set();
    rig.phase("gc", async move {
        gc::sweep(&set.tree).await.expect("the set runs");
    });
    let (set, moved) = (rig.set(), rig.set().mover.moved_sectors.get());
    let stats = set.tree.stats();
    println!("{stats:?}, {moved} sectors moved");
    rig.exec.abandon();
}
