//! Clean data that were moved, and whose copy was evicted: the disk still names the place they came
//! from. They do not come back over what was written past the cache since.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::index::{Extent, Lookup};
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::Machine;
use spdk_bcache::units::{BucketNr, Inode, Sector};

/// A machine with one volume, and one extent of 2 sectors whose clean data were moved.
struct Lab {
    fast: Rc<Medium>,
    slow: Rc<Medium>,
    m: Machine,
    set: Rc<CacheSet>,
    inode: Inode,
    /// Where the extent is in the volume.
    moved: u64,
}

impl Lab {
    fn new() -> Lab {
        let (fast, slow) = (
            Medium::new("fast", 16384, 1),
            Medium::new("slow", 131_072, 1),
        );
        let m = Machine::new(&[&fast, &slow]);
        let more = json!({"mode": "writeback", "bucket_size_kb": 8});
        m.create("fast", "slow", more).expect("two blank devices");
        let params = json!({"name": "Vol0", "writeback_running": false});
        m.must("bdev_bcache_set_options", params);
        let set = m.hub.sets()[0].clone();
        let inode = m.hub.volume("Vol0").expect("it is up").inode();
        let mut lab = Lab {
            fast,
            slow,
            m,
            set,
            inode: inode.expect("it is attached"),
            moved: 0,
        };
        lab.moved = lab.move_one();
        lab
    }

    fn write(&self, at: u64, sectors: u64, byte: u8) {
        assert_eq!(self.m.write("Vol0", at, sectors, byte), Outcome::Success);
    }

    /// The extent of a sector of the volume; keys are of the backing device's sectors.
    fn place(&self, at: u64) -> Option<Extent> {
        match self.set.tree.lookup(self.inode, Sector(16 + at)) {
            Lookup::Hit(e) => Some(e),
            Lookup::Hole { .. } => None,
        }
    }

    fn bucket(&self, at: u64) -> BucketNr {
        let extent = self.place(at).expect("it is cached");
        self.set.alloc.gens.bucket_of(extent.at)
    }

    /// Writes extents until one stands beside another, which stays dirty for it cannot be read; has
    /// everything else written back, and the one moved out of their bucket.
    fn move_one(&self) -> u64 {
        // A tree of several leaves.
        (0..400).for_each(|i| self.write(4000 + i * 8, 4, 4));
        (0..16).for_each(|i| self.write(i * 8, 2, 1));
        let (kept, stuck) = (0..15)
            .map(|i| (i * 8, i * 8 + 8))
            .find(|&(a, b)| self.bucket(a) == self.bucket(b))
            .expect("a bucket holds several");
        let (old, unreadable) = (self.bucket(kept), self.place(stuck).expect("cached").at);
        // The other data of that bucket go elsewhere, and others are left mostly empty.
        let others = (0..16)
            .map(|i| i * 8)
            .filter(|&at| at != kept && at != stuck);
        others
            .filter(|&at| self.bucket(at) == old)
            .for_each(|at| self.write(at, 2, 1));
        (0..64).for_each(|i| self.write(12_000 + i * 4, 4, 1));
        (0..64)
            .filter(|i| i % 4 != 0)
            .for_each(|i| self.write(12_000 + i * 4, 4, 1));
        self.m.spoil("fast", unreadable, unreadable + 2);
        self.m
            .must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        self.m.pass(1_000_000);
        self.m.write_leaves();
        let mover = self.set.mover.clone();
        self.m
            .run(async move { mover.pass().await })
            .expect("the set runs");
        assert_ne!(self.bucket(kept), old, "it was moved");
        kept
    }

    /// Reads elsewhere until the copy is given away for good.
    fn evict(&self) {
        let is_there = |e: Extent| !self.set.tree.is_stale_for_good(&e);
        let mut reads = 0;
        while self.place(self.moved).is_some_and(is_there) {
            let at = 20_000 + reads % 6000 * 16;
            assert!(self.m.read("Vol0", at, 16).is_some());
            reads += 1;
            assert!(reads < 60_000, "it stays");
        }
    }

    /// Runs a sweep up to the moment in which the map has forgotten the extent.
    fn forget(&self) {
        let set = self.set.clone();
        self.m
            .start(async move { spdk_bcache::gc::sweep(&set.tree).await.is_ok() });
        self.m
            .until("forgotten", || self.place(self.moved).is_none());
    }

    /// Cuts the power, and tells what the extent holds then.
    fn read_after_power_cut(self) -> Vec<u8> {
        let (media, moved) = ([&self.fast, &self.slow], self.moved);
        drop(self.set);
        self.m.lose_power(&media);
        let m = Machine::new(&media);
        media.iter().for_each(|medium| m.replug(medium));
        let read = m.read("Vol0", moved, 2).expect("it can be read");
        m.die();
        read
    }
}

fn mode(lab: &Lab, mode: &str) {
    let params = json!({"name": "Vol0", "mode": mode});
    lab.m.must("bdev_bcache_set_cache_mode", params);
}

#[test]
fn moved_data_do_not_come_back_over_a_write_past_the_cache() {
    for in_map in [true, false] {
        let lab = Lab::new();
        lab.evict();
        if !in_map {
            lab.forget();
        }
        mode(&lab, "writearound");
        lab.write(lab.moved, 2, 2);
        assert_eq!(lab.m.flush("Vol0"), Outcome::Success);
        let read = lab.read_after_power_cut();
        assert!(read.iter().all(|&b| b == 2), "{}, {in_map}", read[0]);
    }
}

#[test]
fn moved_data_do_not_come_back_over_zeroes() {
    let lab = Lab::new();
    lab.evict();
    assert_eq!(lab.m.write_zeroes("Vol0", lab.moved, 2), Outcome::Success);
    assert_eq!(lab.m.flush("Vol0"), Outcome::Success);
    let read = lab.read_after_power_cut();
    assert!(read.iter().all(|&b| b == 0), "{}", read[0]);
}

/// What had the entry in the uuid table before is not what a volume reads that has it now.
#[test]
fn moved_data_of_a_volume_that_left_do_not_come_up_in_the_next_one() {
    let lab = Lab::new();
    lab.evict();
    lab.forget();
    lab.m.mend();
    lab.m.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert_eq!(lab.m.write("Vol0", lab.moved, 2, 5), Outcome::Success);
    assert_eq!(lab.m.flush("Vol0"), Outcome::Success);
    let params = json!({"name": "Vol0", "set": lab.m.uuid()});
    lab.m.must("bdev_bcache_attach", params);
    assert_eq!(lab.m.flush("Vol0"), Outcome::Success);
    let read = lab.read_after_power_cut();
    assert!(read.iter().all(|&b| b == 5), "{}", read[0]);
}
