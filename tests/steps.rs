//! No step of the owner's thread grows with the device or the map: a set of many buckets and one with
//! many keys are made, changed, swept, stopped, started, and dropped. The executor checks every step
//! (`task::Work`).

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use spdk_bcache::alloc::{Census, Purpose, Use};
use spdk_bcache::disk::Disk;
use spdk_bcache::gc;
use spdk_bcache::index::Extent;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::task::{Executor, Work, breathe, work};
use spdk_bcache::units::{BucketNr, Inode, Sector};

#[path = "bench/memory.rs"]
mod memory;
use memory::{SECTORS, device, start_on};

const INODE: Inode = Inode(1);

struct Rig {
    exec: Executor,
    rng: Rc<Rng>,
    disk: Rc<dyn Disk>,
}

impl Rig {
    fn new(buckets: u64) -> Rig {
        Rig {
            exec: Executor::new(),
            rng: Rc::new(Rng::new(3)),
            disk: device(buckets),
        }
    }

    /// Runs a job to its end, one step at a time. Returns how many steps of all tasks that took.
    fn run<T: 'static>(&self, job: impl Future<Output = T> + 'static) -> (T, usize) {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let out = slot.clone();
        self.exec.spawn(async move {
            let value = job.await;
            *out.borrow_mut() = Some(value);
        });
        let mut steps = 0;
        while slot.borrow().is_none() {
            steps += self.exec.poll(steps as u64 * 10, 1).max(1);
        }
        let value = slot.borrow_mut().take();
        (value.expect("it is there"), steps)
    }

    fn start(&self) -> (Rc<CacheSet>, usize) {
        self.run(start_on(
            self.exec.clone(),
            self.rng.clone(),
            self.disk.clone(),
        ))
    }
}

/// The census as the states of all buckets tell it.
fn walk(set: &CacheSet) -> Census {
    let mut census = Census::default();
    for b in 0..set.superblock().nbuckets as u32 {
        let bucket = BucketNr(b);
        match (set.alloc.state(bucket), set.alloc.sectors(bucket)) {
            (Use::Meta, _) => census.metadata += 1,
            (Use::Data, (_, dirty)) if dirty > 0 => census.dirty += 1,
            (Use::Data, (live, _)) if live > 0 => census.clean += 1,
            _ => census.free += 1,
        }
    }
    census
}

/// Inserts extents one behind the other, every second of them dirty, at every second place.
async fn fill(set: Rc<CacheSet>, keys: u64) {
    let mut space = (Sector(0), Sector(0), None);
    for i in 0..keys {
        if space.0 == space.1 {
            let (bucket, generation) = loop {
                match set.alloc.take(Purpose::Data) {
                    Some(taken) => break taken,
                    None => set.alloc.freed.wait().await,
                }
            };
            let full = space.2.replace((bucket, generation));
            full.iter().for_each(|&(bucket, _)| set.alloc.unpin(bucket));
            (space.0, space.1) = set.alloc.range_of(bucket);
        }
        let extent = Extent {
            start: Sector(2 * i * u64::from(SECTORS)),
            sectors: SECTORS,
            at: space.0,
            generation: space.2.expect("a bucket is open").1,
            dirty: i % 2 == 0,
        };
        space.0 += u64::from(SECTORS);
        while set.tree.insert(INODE, extent).is_err() {
            set.journal.room().await.expect("the set runs");
        }
        work(Work::Keys, 1);
        breathe().await;
    }
    space
        .2
        .iter()
        .for_each(|&(bucket, _)| set.alloc.unpin(bucket));
}

#[test]
fn steps_do_not_grow_with_the_buckets() {
    const BUCKETS: u64 = 60_000;
    let rig = Rig::new(BUCKETS);
    // In whole slices of buckets, or of the bytes of a bucket.
    let least = BUCKETS as usize / Work::Buckets.slice();
    let (set, steps) = rig.start();
    assert!(steps > least, "made in {steps} steps");
    assert_eq!(set.alloc.census(), walk(&set));
    for _ in 0..2 {
        let swept = set.clone();
        let (done, steps) = rig.run(async move { gc::sweep(&swept.tree).await });
        assert!(done.is_ok() && steps > 2 * least, "swept in {steps} steps");
    }
    let stopping = set.clone();
    let (done, steps) = rig.run(async move { stopping.stop().await });
    assert!(done.is_ok() && steps > least, "stopped in {steps} steps");
    drop(set);
    let (set, steps) = rig.start();
    assert!(steps > 2 * least, "started in {steps} steps");
    assert_eq!(set.alloc.census(), walk(&set));
}

#[test]
fn steps_do_not_grow_with_the_keys() {
    const KEYS: u64 = 60_000;
    let rig = Rig::new(4096);
    let least = KEYS as usize / Work::Keys.slice();
    let (set, _) = rig.start();
    rig.run(fill(set.clone(), KEYS));
    let census = set.alloc.census();
    assert_eq!(census, walk(&set));
    assert!(census.dirty > 0, "{census:?}");
    // Nothing is written any more: the journal is replayed.
    let committed = set.clone();
    let (done, _) = rig.run(async move { committed.journal.commit().await });
    assert!(done.is_ok());
    rig.exec.abandon();
    for crashed in [true, false] {
        let (set, steps) = rig.start();
        assert!(steps > 2 * least, "started in {steps} steps");
        assert_eq!(set.tree.stats().extents, KEYS);
        assert_eq!(set.alloc.census(), walk(&set));
        let swept = set.clone();
        let (done, _) = rig.run(async move { gc::sweep(&swept.tree).await });
        assert!(done.is_ok());
        if !crashed {
            let dropped = set.clone();
            let delete = async move {
                let end = Sector(KEYS * u64::from(SECTORS));
                dropped.tree.delete(INODE, Sector(0), end, false).await
            };
            let (done, steps) = rig.run(delete);
            assert!(
                done.is_ok() && steps > least / 2,
                "deleted in {steps} steps"
            );
            assert_eq!(set.tree.stats().extents, KEYS / 2);
        }
        let stopping = set.clone();
        let (done, _) = rig.run(async move { stopping.stop().await });
        assert!(done.is_ok());
    }
}
