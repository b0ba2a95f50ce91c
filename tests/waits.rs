//! What waits for a device sleeps: nothing of the engine goes round and round until the device has
//! answered.

mod machine;

use std::cell::RefCell;
use std::rc::Rc;

use machine::{Machine, blank};
use serde_json::json;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc;
use spdk_bcache::sim::disk::{Ills, Medium};

/// Turns of everything that a wait may take. The device answers after a second and a half minute at
/// most; in that time write-back looks some 2000 times whether it has something to do, and in vain.
const TURNS_MAX: u32 = 100_000;

/// A volume with dirty data, and a device that takes its time from now on.
fn slow_with_dirty_data() -> (Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let m = Machine::new(&[&fast, &slow]);
    let made = m.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    let params = json!({"name": "Vol0", "writeback_running": false});
    m.must("bdev_bcache_set_options", params);
    for at in (0..4096).step_by(64) {
        assert_eq!(m.write("Vol0", at, 32, 1), Outcome::Success);
    }
    slow.ills.set(Ills {
        slow: 1,
        ..Ills::default()
    });
    (slow, m)
}

/// How many turns it takes until something is so.
fn turns(m: &Machine, is_so: impl Fn() -> bool) -> u32 {
    let mut turns = 0;
    while !is_so() && turns < TURNS_MAX {
        m.turn();
        turns += 1;
    }
    turns
}

#[test]
fn write_back_sleeps_while_zeroes_hold_all_that_is_dirty() {
    let (_slow, m) = slow_with_dirty_data();
    let tag = m.issue("Vol0", Kind::WriteZeroes, 0, Vec::new(), 4096);
    m.pass(10_000);
    m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    let turns = turns(&m, || m.has_ended(tag));
    assert!(turns < TURNS_MAX, "it does not sleep");
    assert_eq!(m.ended(tag).expect("it has ended").0, Outcome::Success);
    m.die();
}

#[test]
fn a_delete_sleeps_while_a_round_of_write_back_is_under_way() {
    let (_slow, m) = slow_with_dirty_data();
    m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    m.pass(100_000);
    let params = json!({"name": "Vol0"});
    let call = rpc::call(m.hub.clone(), "bdev_bcache_delete", params);
    let deleted: Rc<RefCell<Option<_>>> = m.start(call);
    let turns = turns(&m, || deleted.borrow().is_some());
    assert!(turns < TURNS_MAX, "it does not sleep");
    m.die();
}
