//! A start of a set whose cache is full: the buckets in which leaves are written anew are there before an
//! entry of the journal is, for which a full journal may have no block until those leaves are written.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::alloc::step_nodes;
use spdk_bcache::request::Kind;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::{Lag, Medium};
use spdk_bcache::sim::machine::Machine;

const BLOCK: u64 = 8;
/// Of the cache device: 512 buckets of 16 KiB, with a journal of 16 blocks.
const SECTORS: u64 = 16_384;
/// Writes of a block: twice what the cache takes.
const WRITES: u64 = 2 * SECTORS / BLOCK;
/// How late the cache device answers writes and flushes, so that a start is over before the first writing
/// of the priorities is.
const LATE: Lag = Lag {
    reads: false,
    ..Lag::of_all(5_000_000)
};

/// A set full of dirty data that is killed.
fn full() -> [Rc<Medium>; 2] {
    let fast = Medium::new("fast", SECTORS, BLOCK as u32);
    let slow = Medium::new("slow", 2 * SECTORS, BLOCK as u32);
    let (machine, rng) = (Machine::new(&[&fast, &slow]), Rng::new(1));
    let made = json!({"mode": "writeback", "bucket_size_kb": 16, "block_size": 4096});
    machine.create("fast", "slow", made).expect("blank devices");
    let off = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", off);
    let mut tags = Vec::new();
    for nr in 0..WRITES {
        let start = rng.below(2 * SECTORS / BLOCK - 2) * BLOCK;
        let memory = vec![nr as u8; BLOCK as usize * 512];
        tags.push(machine.issue("Vol0", Kind::Write, start, memory, BLOCK));
        while tags.len() > 24 {
            machine.turn();
            tags.retain(|&tag| machine.ended(tag).is_none());
        }
    }
    machine.die();
    for medium in [&fast, &slow] {
        medium.crash(&rng, false);
    }
    [fast, slow]
}

#[test]
fn leaves_can_be_written_anew_before_the_journal_takes_an_entry() {
    let [fast, slow] = full();
    let machine = Machine::new(&[&fast, &slow]);
    fast.lag.set(LATE);
    let hub = machine.hub.clone();
    let _examined = machine.start(async move { hub.examine("fast").await });
    machine.until("the start", || !machine.hub.sets().is_empty());
    let set = machine.hub.sets().pop().expect("it is up");
    let census = set.alloc.census();
    assert!(census.dirty > 400, "{census:?}");
    let nodes = step_nodes(set.journal.roots().level);
    assert!(set.alloc.take_ready(nodes), "{nodes} of {census:?}");
}
