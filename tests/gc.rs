//! Garbage collection on a set without hosts: thin nodes are joined, the root gives way to its only
//! child, data leave mostly empty buckets; and a power cut at any write of it loses no key.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use spdk_bcache::alloc::Purpose;
use spdk_bcache::disk::Disk;
use spdk_bcache::format::superblock::{CacheSuper, SUPER_SECTOR, Super, parse};
use spdk_bcache::gc;
use spdk_bcache::index::Extent;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::{CacheSet, read_super};
use spdk_bcache::sim::check;
use spdk_bcache::sim::disk::{Medium, SimDisk};
use spdk_bcache::sim::host::SimHost;
use spdk_bcache::sim::sched::Sched;
use spdk_bcache::task::Executor;
use spdk_bcache::units::{BucketNr, Inode, Sector};

const INODE: Inode = Inode(3);

/// A cache device over several lives.
struct Rig {
    rng: Rc<Rng>,
    medium: Rc<Medium>,
}

/// One life of it.
struct Life {
    sched: Sched,
    exec: Executor,
    medium: Rc<Medium>,
    /// The power goes at this many writes.
    cut_at: Option<u64>,
}

impl Rig {
    fn new(seed: u64, nbuckets: u64, bucket_sectors: u32) -> Rig {
        Rig::with_blocks(seed, nbuckets, bucket_sectors, 1)
    }

    fn with_blocks(seed: u64, nbuckets: u64, bucket_sectors: u32, block: u16) -> Rig {
        let rng = Rc::new(Rng::new(seed));
        let sectors = nbuckets * u64::from(bucket_sectors);
        let medium = Medium::new("cache", sectors, 1);
        let sb = CacheSuper::new(rng.uuid(), rng.uuid(), sectors, block, bucket_sectors);
        medium.poke(SUPER_SECTOR, &sb.unwrap().encode());
        Rig { rng, medium }
    }

    fn sb(&self) -> CacheSuper {
        let bytes = self.medium.peek(SUPER_SECTOR, 8);
        match parse(&bytes) {
            Ok(Super::Cache(sb)) => sb,
            other => panic!("{other:?}"),
        }
    }

    fn boot(&self) -> (Life, Rc<CacheSet>) {
        let life = Life {
            sched: Sched::new(0, self.rng.clone()),
            exec: Executor::new(),
            medium: self.medium.clone(),
            cut_at: None,
        };
        let disk: Rc<dyn Disk> = SimDisk::new(self.medium.clone(), life.sched.clone());
        let (host, exec) = (SimHost::bare(self.rng.clone()), life.exec.clone());
        let started = life.run(async move {
            let Super::Cache(sb) = read_super(&disk).await.unwrap() else {
                panic!("no cache device");
            };
            CacheSet::start(&host, exec, disk, sb).await
        });
        let set = started.unwrap().unwrap_or_else(|e| panic!("{e}"));
        check::counts(&set).unwrap();
        (life, set)
    }

    fn cut_power(&self) {
        self.medium.crash(&self.rng, true);
    }
}

impl Life {
    /// Runs a job to its end; `None` when the power goes before.
    fn run<T: 'static>(&self, job: impl Future<Output = T> + 'static) -> Option<T> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let out = slot.clone();
        self.exec.spawn(async move {
            let value = job.await;
            *out.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = slot.borrow_mut().take() {
                return Some(value);
            }
            if self.cut_at.is_some_and(|n| self.medium.writes.get() >= n) {
                return None;
            }
            self.sched.run_due();
            if self.exec.poll(self.sched.now_us(), 1) == 0 {
                let moved = self.sched.skip_to_next(&self.exec);
                assert!(moved, "something happens");
            }
        }
    }
}

/// Writes dirty single sectors at 0, 2, 4 …, through buckets of which only every `spread`th sector
/// is used.
async fn fill(set: Rc<CacheSet>, count: u64, spread: u64) {
    let (mut at, mut end, mut open) = (Sector(0), Sector(0), None);
    for i in 0..count {
        if at >= end {
            if let Some((bucket, _)) = open.take() {
                set.alloc.unpin(bucket);
            }
            let taken = loop {
                match set.alloc.take(Purpose::Data) {
                    Some(taken) => break taken,
                    None => set.alloc.freed.wait().await,
                }
            };
            (at, end) = set.alloc.range_of(taken.0);
            open = Some(taken);
        }
        let (_, generation) = open.unwrap();
        let extent = Extent {
            start: Sector(i * 2),
            sectors: 1,
            at,
            generation,
            dirty: true,
        };
        at += spread;
        while set.tree.insert(INODE, extent).is_err() {
            set.journal.room().await.unwrap();
        }
    }
    if let Some((bucket, _)) = open {
        set.alloc.unpin(bucket);
    }
    set.tree.flush().await.unwrap();
    set.journal.commit().await.unwrap();
}

/// Deletes all but every `n`th key.
async fn thin_out(set: Rc<CacheSet>, count: u64, n: u64) {
    for i in 0..count {
        if i % n != 0 {
            let start = Sector(i * 2);
            let done = set.tree.delete(INODE, start, start + 1, false).await;
            done.unwrap();
        }
    }
    set.tree.flush().await.unwrap();
    set.journal.commit().await.unwrap();
}

fn stop(life: &Life, set: &Rc<CacheSet>) {
    let set = set.clone();
    life.run(async move { set.stop().await }).unwrap().unwrap();
}

fn keys(set: &CacheSet) -> Vec<(Sector, Sector)> {
    let mut keys = Vec::new();
    set.tree.scan(INODE, Sector(0), Sector::MAX, &mut |e| {
        if set.tree.is_fresh(&e) {
            keys.push((e.start, e.at));
        }
        true
    });
    keys
}

#[test]
fn thin_nodes_are_joined_until_the_root_is_a_leaf() {
    let rig = Rig::new(1, 4096, 8);
    let (life, set) = rig.boot();
    life.run(fill(set.clone(), 16_000, 1)).unwrap();
    let full = set.tree.stats();
    assert!(full.depth >= 2, "{full:?}");
    life.run(thin_out(set.clone(), 16_000, 200)).unwrap();
    let before = keys(&set);
    for _ in 0..5 {
        let set = set.clone();
        let swept = life.run(async move { gc::sweep(&set.tree).await });
        swept.unwrap().unwrap();
    }
    let thin = set.tree.stats();
    assert!(thin.nodes <= 3 && thin.depth <= 1, "{full:?} → {thin:?}");
    stop(&life, &set);
    let (nodes, metadata) = (set.tree.stats().nodes, set.alloc.census().metadata);
    let (life, set) = rig.boot();
    assert_eq!(keys(&set), before);
    assert_eq!(set.tree.stats().nodes, nodes);
    // The priorities may be just being written.
    let more = set.alloc.census().metadata - metadata;
    assert!(more == 0 || more == set.alloc.prio_buckets() as u64);
    stop(&life, &set);
}

#[test]
fn a_power_cut_at_any_write_of_a_sweep_loses_no_key() {
    let rig = Rig::new(2, 1024, 8);
    let (life, set) = rig.boot();
    life.run(fill(set.clone(), 3_000, 1)).unwrap();
    life.run(thin_out(set.clone(), 3_000, 20)).unwrap();
    let before = keys(&set);
    stop(&life, &set);
    let bytes = rig.medium.bytes();
    for n in 0.. {
        let rig = Rig {
            rng: Rc::new(Rng::new(n)),
            medium: Medium::with_bytes("cache", bytes.clone(), 1),
        };
        let (mut life, set) = rig.boot();
        life.cut_at = Some(rig.medium.writes.get() + n * 3);
        let swept = life.run(async move { gc::sweep(&set.tree).await });
        rig.cut_power();
        let (_life, set) = rig.boot();
        assert_eq!(keys(&set), before, "power cut at write {n}");
        if swept.is_some() {
            assert!(n > 5, "the sweep is too short to be cut");
            break;
        }
    }
}

#[test]
fn data_leave_buckets_that_are_mostly_empty() {
    let rig = Rig::new(3, 256, 16);
    let (life, set) = rig.boot();
    // Four sectors in each bucket of sixteen: no bucket is free in the end.
    life.run(fill(set.clone(), 1_200, 4)).unwrap();
    let census = set.alloc.census();
    assert!(set.mover.moved_sectors.get() > 0, "{census:?}");
    assert_eq!(keys(&set).len(), 1_200);
    check::counts(&set).unwrap();
    let before: Vec<Sector> = keys(&set).into_iter().map(|k| k.0).collect();
    stop(&life, &set);
    let (_life, set) = rig.boot();
    let after: Vec<Sector> = keys(&set).into_iter().map(|k| k.0).collect();
    assert_eq!(before, after);
}

#[test]
fn only_keys_that_are_unchanged_move() {
    let rig = Rig::new(4, 256, 16);
    let (life, set) = rig.boot();
    life.run(fill(set.clone(), 64, 1)).unwrap();
    let mut found = Vec::new();
    set.tree.scan(INODE, Sector(0), Sector(8), &mut |e| {
        found.push(e);
        true
    });
    let (bucket, generation) = set.alloc.take(Purpose::Move).unwrap();
    let (to, _) = set.alloc.range_of(bucket);
    let newer = Extent {
        at: to + 8,
        generation,
        ..found[1]
    };
    set.tree.insert(INODE, newer).unwrap();
    let clean = set.tree.clean(INODE, &found[2]);
    assert_eq!(clean, Ok(1));
    let moved: Vec<u64> = (0..3)
        .map(|i| {
            let at = to + i as u64;
            set.tree.relocate(INODE, &found[i], at, generation).unwrap()
        })
        .collect();
    assert_eq!(moved, [1, 0, 1]);
    let mut now = Vec::new();
    set.tree.scan(INODE, Sector(0), Sector(6), &mut |e| {
        now.push((e.at, e.dirty));
        true
    });
    assert_eq!(now, [(to, true), (to + 8, true), (to + 2, false)]);
    check::counts(&set).unwrap();
    set.alloc.unpin(bucket);
}

#[test]
fn generations_wrap_without_a_pointer_left_behind() {
    let rig = Rig::new(5, 128, 16);
    let (life, set) = rig.boot();
    // The same few sectors again and again: every bucket is reused some hundred times.
    let mut most = 0;
    let mut reused = 0u64;
    let gens = set.alloc.gens.clone();
    let mut last: Vec<u8> = (0..128).map(|b| gens.generation(BucketNr(b)).0).collect();
    for _ in 0..900 {
        life.run(fill(set.clone(), 480, 1)).unwrap();
        check::counts(&set).unwrap();
        for b in 0..128 {
            let now = gens.generation(BucketNr(b)).0;
            reused += u64::from(now.wrapping_sub(last[b as usize]));
            last[b as usize] = now;
            most = most.max(set.alloc.gen_distance(BucketNr(b)));
        }
    }
    assert!(reused > 100 * 256, "{reused}");
    assert!(
        (1..=96).contains(&most),
        "{most} ahead of the oldest pointer"
    );
    let before = keys(&set);
    stop(&life, &set);
    let (_life, set) = rig.boot();
    assert_eq!(keys(&set), before);
}

#[test]
fn a_journal_that_is_too_short_is_refused() {
    let rig = Rig::with_blocks(6, 128, 8, 8);
    let disk: Rc<dyn Disk> = SimDisk::new(rig.medium.clone(), Sched::new(0, rig.rng.clone()));
    let life = Life {
        sched: Sched::new(0, rig.rng.clone()),
        exec: Executor::new(),
        medium: rig.medium.clone(),
        cut_at: None,
    };
    let (host, exec, sb) = (SimHost::bare(rig.rng.clone()), life.exec.clone(), rig.sb());
    let started = life.run(async move { CacheSet::start(&host, exec, disk, sb).await });
    let why = started.unwrap().err().map(|e| e.to_string());
    assert!(why.unwrap().contains("a journal of 2 blocks is too short"));
}

#[test]
fn a_stop_in_the_middle_of_a_sweep_leaves_nothing_behind() {
    for patience in [0, 3, 10, 40] {
        let rig = Rig::new(7, 1024, 8);
        let (life, set) = rig.boot();
        life.run(fill(set.clone(), 3_000, 1)).unwrap();
        life.run(thin_out(set.clone(), 3_000, 20)).unwrap();
        let before = keys(&set);
        let sweeping = set.clone();
        life.exec.spawn(async move {
            let _ = gc::sweep(&sweeping.tree).await;
        });
        let exec = life.exec.clone();
        life.run(async move { exec.sleep_us(patience * 100).await });
        stop(&life, &set);
        let (tree, exec) = (Rc::downgrade(&set.tree), life.exec.clone());
        drop(set);
        life.run(async move { exec.sleep_us(1_000_000).await });
        assert!(tree.upgrade().is_none(), "somebody still holds the tree");
        let (_life, set) = rig.boot();
        assert_eq!(keys(&set), before);
    }
}
