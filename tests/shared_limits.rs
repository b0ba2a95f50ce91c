//! What volumes of one set share has bounds. What one of them uses up slows the others, but neither
//! ends nor hangs their I/O.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::request::Kind;
use spdk_bcache::request::front::Front;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::{Medium, SimDisk};
use spdk_bcache::sim::lane::SimLane;
use spdk_bcache::sim::machine::{self, Machine, blank};
use spdk_bcache::units::Sector;

/// A set of two volumes, and its devices.
fn two(mode: &str) -> (Machine, [Rc<Medium>; 3]) {
    let media = [blank("fast"), blank("slow0"), blank("slow1")];
    let machine = Machine::new(&media.each_ref());
    for (volume, backing) in [("Vol0", "slow0"), ("Vol1", "slow1")] {
        let params = json!({"name": volume, "cache_bdev": "fast", "backing_bdev": backing,
                            "mode": mode});
        machine.must("bdev_bcache_create", params);
    }
    (machine, media)
}

/// Further threads that serve a volume.
struct Threads(Vec<Front<SimLane>>);

impl Threads {
    /// So many, of the volume on the second backing device.
    fn of_second(machine: &Machine, media: &[Rc<Medium>; 3], n: usize) -> Threads {
        let disk = |medium: &Rc<Medium>| SimDisk::new(medium.clone(), machine.sched.clone());
        let (cache, backing) = (disk(&media[0]), disk(&media[2]));
        let volume = machine.hub.volume("Vol1").expect("it is there");
        let shared = volume.shared.borrow().clone().expect("it is shown");
        let front = |i| {
            let lane = SimLane::new(Some(cache.clone()), Some(backing.clone()));
            Front::new(lane, shared.clone()).unwrap_or_else(|| panic!("no place for thread {i}"))
        };
        Threads((0..n).map(front).collect())
    }

    /// One step of the machine and of all threads.
    fn turn(&self, machine: &Machine) {
        machine.turn();
        for front in &self.0 {
            SimLane::deliver(front, 8);
            front.poll();
        }
    }

    /// Each thread does one host I/O; how they end.
    fn each(&self, machine: &Machine, kind: Kind) -> Vec<Outcome> {
        for (i, front) in self.0.iter().enumerate() {
            let io = front.lane().host_io(i as u64, vec![7; 8 * 512]);
            io.start(kind, Sector(i as u64 * 8), 8);
            front.submit(io);
        }
        let mut ends = Vec::new();
        while ends.len() < self.0.len() {
            self.turn(machine);
            for front in &self.0 {
                ends.extend(front.lane().finished().map(|(_, end)| end));
            }
        }
        ends
    }
}

#[test]
fn more_threads_serve_volumes_of_a_set_than_one_chunk_of_readers() {
    let (machine, media) = two("writethrough");
    let threads = Threads::of_second(&machine, &media, 1100);
    let ends = threads.each(&machine, Kind::Read);
    assert!(ends.iter().all(|&end| end == Outcome::Success));
    assert_eq!(machine.write("Vol0", 0, 8, 3), Outcome::Success);
    assert!(machine.holds("Vol0", 0, 8, 3));
}

/// Buckets of the set are used up by threads that wrote once and hold an open one each.
#[test]
fn idle_threads_give_their_open_buckets_back_to_those_who_wait() {
    let (machine, media) = two("writeback");
    let buckets = machine.set()["devices"][0]["nbuckets"]
        .as_u64()
        .expect("a number");
    let threads = Threads::of_second(&machine, &media, buckets as usize / 2);
    let ends = threads.each(&machine, Kind::Write);
    assert!(ends.iter().all(|&end| end == Outcome::Success));
    // All of it goes into the cache, a bucket after the other.
    let wide = machine.set()["devices"][0]["bucket_size_kb"]
        .as_u64()
        .expect("a number")
        * 2;
    for i in 0..buckets / 2 {
        let tag = machine.issue(
            "Vol0",
            Kind::Write,
            i * wide,
            vec![3; wide as usize * 512],
            wide,
        );
        let limit = machine.sched.now_us() + machine::PATIENCE_US;
        while !machine.has_ended(tag) {
            assert!(machine.sched.now_us() < limit, "a write waits for ever");
            threads.turn(&machine);
        }
        let (end, _) = machine.ended(tag).expect("it has ended");
        assert_eq!(end, Outcome::Success, "write {i} of {buckets} buckets");
    }
}

#[test]
fn thousands_of_writes_to_one_block_hold_nobody_up() {
    let (machine, _media) = two("writethrough");
    // The owner's steps are checked: none handles more than its share of them.
    let flood: Vec<u64> = (0..1200)
        .map(|_| machine.issue("Vol1", Kind::Write, 0, vec![1; 512], 1))
        .collect();
    assert_eq!(machine.write("Vol0", 0, 8, 3), Outcome::Success);
    let others = flood.iter().filter(|&&tag| !machine.has_ended(tag)).count();
    assert!(others > 0, "the other volume waited for all of them");
    machine.until("the flood", || {
        flood.iter().all(|&tag| machine.has_ended(tag))
    });
    let all_went_well = flood.iter().all(|&tag| {
        let end = machine.ended(tag);
        end.is_some_and(|(end, _)| end == Outcome::Success)
    });
    assert!(all_went_well && machine.holds("Vol0", 0, 8, 3));
}
