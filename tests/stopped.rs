//! A set stops by itself because of a failure: whatever waits for something in it is told.

use std::cell::Cell;
use std::rc::Rc;

use serde_json::json;
use spdk_bcache::request::Kind;
use spdk_bcache::sim::disk::{Lag, Medium};
use spdk_bcache::sim::machine::Machine;

/// Writes in flight.
const DEPTH: usize = 16;

#[test]
fn what_waits_for_room_in_a_journal_ends_when_the_set_stops() {
    let (fast, slow) = (
        Medium::new("fast", 16_384, 8),
        Medium::new("slow", 65_536, 8),
    );
    let machine = Machine::new(&[&fast, &slow]);
    let params = json!({"mode": "writeback", "bucket_size_kb": 16, "block_size": 4096});
    let made = machine.create("fast", "slow", params);
    made.expect("blank devices");
    let set = machine.hub.sets().pop().expect("it is up");
    // No leaf is written before the backing device was flushed, so that the journal fills up.
    slow.lag.set(Lag::of_all(3_600_000_000));
    let (mut tags, mut start) = (Vec::new(), 0);
    let is_full = || {
        let is_full = || !set.journal.has_room(1);
        is_full() && {
            machine.pass(1_000_000);
            is_full()
        }
    };
    while !is_full() {
        if tags.len() < DEPTH {
            start += 16;
            tags.push(machine.issue("Vol0", Kind::Write, start, vec![1; 4096], 8));
            tags.push(machine.issue("Vol0", Kind::Flush, 0, Vec::new(), 0));
        }
        machine.turn();
        tags.retain(|&tag| machine.ended(tag).is_none());
    }
    let (journal, ended) = (set.journal.clone(), Rc::new(Cell::new(None)));
    let answer = ended.clone();
    machine.exec.spawn(async move {
        let done = journal.room().await;
        answer.set(Some(done.is_ok()));
    });
    machine.pass(5_000_000);
    assert_eq!(ended.get(), None);
    set.latch.trip("a test".into());
    machine.pass(5_000_000);
    assert_eq!(ended.get(), Some(false));
}
