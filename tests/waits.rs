//! What waits for a device sleeps: nothing of the engine goes round and round until the device has
//! answered.

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc;
use spdk_bcache::sim::disk::{Ills, Medium};
use spdk_bcache::sim::machine::{Machine, blank};

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

/// What a call about the volumes of a set comes to whose cache device answers 60 s late, while all
/// free buckets are those that the priorities need.
fn call_on_a_slow_start(method: &'static str, params: impl Fn(&Machine) -> Value) {
    let media = ["fast", "slow", "other"].map(blank);
    let m = Machine::new(&media.each_ref());
    for (name, slow) in [("Vol0", "slow"), ("Vol1", "other")] {
        let made = m.create("fast", slow, json!({"name": name}));
        made.expect("blank devices");
    }
    m.must("bdev_bcache_detach", json!({"name": "Vol1"}));
    let hub = m.hub.clone();
    m.run(async move { hub.stop_all().await });
    m.die();
    let m = Machine::new(&media.each_ref());
    for bdev in ["slow", "other"] {
        m.register(bdev).expect("a device with a volume");
    }
    let fast = m.start(rpc::call(
        m.hub.clone(),
        "bdev_bcache_register",
        json!({"bdev_name": "fast"}),
    ));
    // The set has started, and its first buckets are being made free.
    m.until("the set starts", || !m.hub.sets().is_empty());
    m.host.silence("fast").set(true);
    let call = m.start(rpc::call(m.hub.clone(), method, params(&m)));
    m.pass(60_000_000);
    assert!(call.borrow().is_none(), "it waits for the device");
    m.host.silence("fast").set(false);
    m.until("the call", || call.borrow().is_some());
    let done = call.borrow_mut().take().expect("it has ended");
    done.expect("the device has answered");
    m.until("the register", || fast.borrow().is_some());
    m.die();
}

#[test]
fn a_volume_is_attached_while_the_first_buckets_are_made_free_on_a_slow_device() {
    call_on_a_slow_start(
        "bdev_bcache_attach",
        |m| json!({"name": "Vol1", "set": m.uuid()}),
    );
}

#[test]
fn a_flash_volume_is_created_while_the_first_buckets_are_made_free_on_a_slow_device() {
    call_on_a_slow_start(
        "bdev_bcache_create_flash_volume",
        |m| json!({"set": m.uuid(), "name": "Flash", "size_mb": 1}),
    );
}
