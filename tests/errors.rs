//! Devices that fail: what the host is told, what is served all the same, and that nothing dirty is
//! forgotten and nothing hangs.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::format::superblock::BackingState;
use spdk_bcache::index::Lookup;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::{Faults, Medium};
use spdk_bcache::sim::machine::{BROKEN, Machine, backing_super, blank};
use spdk_bcache::units::{Inode, Sector};

const fn faults(read: u64, write: u64, flush: u64) -> Faults {
    Faults { read, write, flush }
}
const NO_READ: Faults = faults(1, 0, 0);
const NO_WRITE: Faults = faults(0, 1, 0);
const NO_FLUSH: Faults = faults(0, 0, 1);

#[test]
fn clean_keys_are_not_written_for_a_backing_device_that_was_not_flushed() {
    for rewritten in [false, true] {
        let (fast, slow) = (blank("fast"), blank("slow"));
        let machine = Machine::new(&[&fast, &slow]);
        let made = machine.create("fast", "slow", json!({}));
        made.expect("two blank devices");
        slow.faults.set(NO_FLUSH);
        let step = if rewritten { 8 } else { 64 };
        for start in (0..4096).step_by(step) {
            assert_eq!(machine.write("Vol0", start, 4, 7), Outcome::Success);
            if rewritten && start % 512 == 0 {
                // Run after run, until the node is full and written anew.
                machine.write_leaves();
            }
        }
        machine.write_leaves();
        assert!(machine.holds("Vol0", 64, 4, 7));
        machine.lose_power(&[&fast, &slow]);
        slow.faults.set(Faults::default());
        let machine = Machine::new(&[&fast, &slow]);
        machine.register("fast").expect("the set");
        machine.register("slow").expect("the volume");
        assert_eq!(machine.set()["cached_extents"], 0, "{rewritten}");
        // Without a fault in between they are kept.
        // (What is written before the allocator of a new life has a bucket to give is not cached.)
        while machine.set()["cached_extents"] == 0 {
            assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
        }
        assert_eq!(machine.flush("Vol0"), Outcome::Success);
        machine.write_leaves();
        machine.lose_power(&[&fast, &slow]);
        let machine = Machine::new(&[&fast, &slow]);
        machine.register("fast").expect("the set");
        machine.register("slow").expect("the volume");
        assert_eq!(machine.set()["cached_extents"], 1, "{rewritten}");
        assert!(machine.holds("Vol0", 0, 8, 9));
        machine.die();
    }
}

#[test]
fn clean_keys_are_written_once_the_backing_device_is_flushed_again() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({}));
    made.expect("two blank devices");
    slow.faults.set(NO_FLUSH);
    assert_eq!(machine.write("Vol0", 0, 8, 7), Outcome::Success);
    machine.write_leaves();
    assert_eq!(machine.flush("Vol0"), Outcome::Failed);
    slow.faults.set(Faults::default());
    machine.write_leaves();
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    machine.lose_power(&[&fast, &slow]);
    let machine = Machine::new(&[&fast, &slow]);
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    assert_eq!(machine.set()["cached_extents"], 1);
    slow.faults.set(BROKEN);
    assert!(machine.holds("Vol0", 0, 8, 7), "it is a hit");
    machine.die();
}

/// A set with one volume of two blank devices of 32 MiB.
fn running(mode: &str) -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": mode}));
    made.expect("two blank devices");
    (fast, slow, machine)
}

/// Write-back does nothing unasked.
fn no_writeback(machine: &Machine) {
    let params = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", params);
}

fn restart(machine: Machine, media: &[&Rc<Medium>]) -> Machine {
    machine.lose_power(media);
    for medium in media {
        medium.faults.set(Faults::default());
    }
    let machine = Machine::new(media);
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    machine
}

#[test]
fn a_clean_extent_that_cannot_be_read_is_served_by_the_backing_device_and_dropped() {
    let (fast, _, machine) = running("writethrough");
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.set()["cached_extents"], 1);
    fast.faults.set(NO_READ);
    assert!(machine.holds("Vol0", 8, 16, 7));
    fast.faults.set(Faults::default());
    machine.pass(1_000_000);
    let set = machine.set();
    assert_eq!(
        (&set["state"], &set["io_errors"]["reads"]),
        (&json!("running"), &json!(1))
    );
    // What was around it is still there.
    assert_eq!(set["cached_extents"], 2);
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

#[test]
fn dirty_data_that_cannot_be_read_are_an_error_and_not_forgotten() {
    let (fast, slow, machine) = running("writeback");
    no_writeback(&machine);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    fast.faults.set(NO_READ);
    assert_eq!(machine.read("Vol0", 8, 16), None);
    machine.pass(1_000_000);
    let set = machine.set();
    assert_eq!(set["state"], "degraded");
    assert!(
        set["failure"].as_str().expect("a text").contains("dirty"),
        "{set}"
    );
    assert_eq!(machine.volume()["dirty_bytes"], 64 * 512);
    fast.faults.set(Faults::default());
    assert!(machine.holds("Vol0", 0, 64, 7));
    let machine = restart(machine, &[&fast, &slow]);
    assert_eq!(machine.set()["state"], "running");
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

#[test]
fn a_write_that_the_cache_does_not_take_goes_to_the_backing_device() {
    for over_dirty in [false, true] {
        let (fast, slow, machine) = running("writeback");
        no_writeback(&machine);
        if over_dirty {
            assert_eq!(machine.write("Vol0", 0, 64, 5), Outcome::Success);
        }
        // The first write asks for a bucket, and a later one begins at once.
        assert_eq!(machine.write("Vol0", 640, 8, 1), Outcome::Success);
        fast.faults.set(NO_WRITE);
        let tag = machine.issue("Vol0", Kind::Write, 8, vec![7; 16 * 512], 16);
        fast.faults.set(Faults::default());
        machine.until("a write", || machine.has_ended(tag));
        let (outcome, _) = machine.ended(tag).expect("it has ended");
        assert_eq!(outcome, Outcome::Success);
        let set = machine.set();
        assert_eq!(
            (&set["state"], &set["io_errors"]["writes"]),
            (&json!("running"), &json!(1))
        );
        let kept = if over_dirty { 56 * 512 } else { 8 * 512 };
        assert_eq!(machine.volume()["dirty_bytes"], kept);
        assert_eq!(machine.flush("Vol0"), Outcome::Success);
        let machine = restart(machine, &[&fast, &slow]);
        assert!(machine.holds("Vol0", 8, 16, 7), "{over_dirty}");
        let around = if over_dirty { 5 } else { 0 };
        assert!(machine.holds("Vol0", 0, 8, around) && machine.holds("Vol0", 24, 40, around));
        machine.die();
    }
}

#[test]
fn a_flash_volume_has_nothing_to_fall_back_to() {
    let (fast, _, machine) = running("writeback");
    let params = json!({"set": machine.uuid(), "name": "Flash0", "size_mb": 1});
    machine.must("bdev_bcache_create_flash_volume", params);
    // The first write asks for a bucket, and a later one begins at once.
    assert_eq!(machine.write("Flash0", 640, 8, 1), Outcome::Success);
    fast.faults.set(NO_WRITE);
    let tag = machine.issue("Flash0", Kind::Write, 8, vec![7; 16 * 512], 16);
    fast.faults.set(Faults::default());
    machine.until("a write", || machine.has_ended(tag));
    let (outcome, _) = machine.ended(tag).expect("it has ended");
    assert_eq!(outcome, Outcome::Failed);
    assert!(machine.holds("Flash0", 0, 64, 0));
    machine.die();
}

/// A second volume on the set, of mode `writethrough`.
fn second(machine: &Machine) -> Rc<Medium> {
    let slow = blank("slow1");
    machine.plug(&slow);
    let made = machine.create("fast", "slow1", json!({"name": "Vol1"}));
    made.expect("a blank device");
    slow
}

#[test]
fn at_the_limit_clean_volumes_go_on_without_the_cache_and_dirty_ones_can_be_read() {
    let (fast, slow, machine) = running("writeback");
    no_writeback(&machine);
    let slow1 = second(&machine);
    let limit = json!({"set": machine.uuid(), "io_error_limit": 3});
    machine.must("bdev_bcache_set_set_options", limit);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    assert_eq!(machine.write("Vol1", 0, 64, 8), Outcome::Success);
    fast.faults.set(NO_READ);
    for _ in 0..3 {
        assert_ne!(machine.set()["state"], "failed");
        machine.read("Vol0", 0, 8);
        machine.pass(1000);
    }
    fast.faults.set(Faults::default());
    machine.until("the failure", || {
        machine.volume_of("Vol1")["state"] == "no cache"
    });
    let set = machine.set();
    assert_eq!(
        (&set["state"], &set["volumes"]),
        (&json!("failed"), &json!(["Vol0"]))
    );
    assert!(
        set["failure"]
            .as_str()
            .expect("a text")
            .contains("io_error_limit"),
        "{set}"
    );
    assert_eq!(backing_super(&slow1).state(), BackingState::None);
    assert_eq!(machine.write("Vol1", 8, 8, 9), Outcome::Success);
    assert_eq!(machine.flush("Vol1"), Outcome::Success);
    assert!(machine.holds("Vol1", 0, 8, 8) && machine.holds("Vol1", 8, 8, 9));
    assert!(machine.holds("Vol0", 0, 64, 7) && machine.holds("Vol0", 64, 64, 0));
    assert_eq!(machine.write("Vol0", 8, 8, 9), Outcome::Failed);
    assert_eq!(machine.write("Vol0", 800, 8, 9), Outcome::Failed);
    assert_eq!(machine.flush("Vol0"), Outcome::Failed);
    let stop = machine.call("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
    stop.expect_err("it has failed");
    assert!(machine.hub.sets().is_empty());
    let machine = restart(machine, &[&fast, &slow, &slow1]);
    assert!(machine.holds("Vol0", 0, 64, 7) && machine.holds("Vol0", 800, 8, 0));
    machine.register("slow1").expect("it has no set");
    let attach = json!({"name": "Vol1", "set": machine.uuid()});
    machine.must("bdev_bcache_attach", attach);
    assert!(
        machine.holds("Vol1", 8, 8, 9),
        "what the cache had of it is old"
    );
    machine.die();
}

#[test]
fn a_journal_that_cannot_be_written_stops_the_set_at_the_last_durable_state() {
    let (fast, slow, machine) = running("writeback");
    no_writeback(&machine);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
    fast.faults.set(NO_WRITE);
    assert_eq!(machine.flush("Vol0"), Outcome::Failed);
    let set = machine.set();
    assert_eq!(set["state"], "failed");
    assert!(
        set["failure"].as_str().expect("a text").contains("journal"),
        "{set}"
    );
    assert!(machine.holds("Vol0", 0, 8, 9) && machine.holds("Vol0", 8, 56, 7));
    assert_eq!(machine.write("Vol0", 0, 8, 1), Outcome::Failed);
    let detach = machine.call("bdev_bcache_detach", json!({"name": "Vol0"}));
    detach.expect_err("nothing can be written back");
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    let machine = restart(machine, &[&fast, &slow]);
    assert!(machine.holds("Vol0", 8, 56, 7));
    let head = machine.read("Vol0", 0, 8).expect("all is well");
    assert!(head.iter().all(|&b| b == 7 || b == 9));
    machine.die();
}

#[test]
fn errors_panic_ends_the_process() {
    let (fast, _, machine) = running("writeback");
    let wrong = json!({"set": machine.uuid(), "errors": "continue"});
    let refused = machine.call("bdev_bcache_set_set_options", wrong);
    assert_eq!(refused.expect_err("no such word").code, -32602);
    let params = json!({"set": machine.uuid(), "errors": "panic"});
    machine.must("bdev_bcache_set_set_options", params);
    assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
    fast.faults.set(NO_WRITE);
    assert_eq!(machine.flush("Vol0"), Outcome::Failed);
    machine.until("the end", || machine.host.died.borrow().is_some());
    machine.die();
}

#[test]
fn write_back_goes_on_around_what_it_cannot_read() {
    let (_fast, slow, machine) = running("writeback");
    no_writeback(&machine);
    for start in (0..512).step_by(16) {
        // Neighbours are joined to one write: one of them must not hold up the others.
        assert_eq!(machine.write("Vol0", start, 16, 7), Outcome::Success);
    }
    let set = machine.hub.sets()[0].clone();
    let Lookup::Hit(bad) = set.tree.lookup(Inode(0), Sector(128)) else {
        panic!("it was written");
    };
    machine.spoil("fast", bad.at, bad.at + 16);
    machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    machine.until("write-back", || machine.volume()["dirty_bytes"] == 16 * 512);
    machine.pass(60_000_000);
    assert_eq!(machine.volume()["dirty_bytes"], 16 * 512);
    let detach = machine.call("bdev_bcache_detach", json!({"name": "Vol0"}));
    detach.expect_err("it would lose data");
    assert!(machine.holds("Vol0", 0, 512, 7), "hosts still can read it");
    machine.mend();
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(machine.holds("Vol0", 0, 512, 7));
    assert_eq!(slow.peek(Sector(16 + 128), 1), [7; 512]);
    machine.die();
}

#[test]
fn what_write_back_cannot_read_for_long_makes_the_set_say_so() {
    let (_fast, _slow, machine) = running("writeback");
    assert_eq!(machine.write("Vol0", 0, 16, 7), Outcome::Success);
    machine.spoil("fast", Sector(0), Sector(65536));
    machine.until("the state", || machine.set()["state"] == "degraded");
    machine.pass(600_000_000);
    let set = machine.set();
    // One bad place is one error, however often it is tried.
    assert_eq!(
        (&set["state"], &set["io_errors"]["reads"]),
        (&json!("degraded"), &json!(1))
    );
    machine.mend();
    machine.until("write-back", || machine.volume()["dirty_bytes"] == 0);
    machine.die();
}

#[test]
fn a_backing_device_that_fails_hangs_nothing() {
    let (_fast, slow, machine) = running("writeback");
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    slow.faults.set(BROKEN);
    assert!(machine.holds("Vol0", 0, 64, 7));
    assert_eq!(machine.read("Vol0", 640, 8), None);
    assert_eq!(machine.write("Vol0", 64, 64, 8), Outcome::Success);
    let detach = machine.call("bdev_bcache_detach", json!({"name": "Vol0"}));
    detach.expect_err("nothing can be written back");
    assert_eq!(machine.volume()["dirty_bytes"], 128 * 512);
    slow.faults.set(Faults::default());
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(machine.holds("Vol0", 0, 64, 7) && machine.holds("Vol0", 64, 64, 8));
    machine.die();
}

#[test]
fn a_backing_device_that_goes_unflushed_leaves_nothing_clean_behind() {
    let (fast, slow, machine) = running("writeback");
    no_writeback(&machine);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    machine.must(
        "bdev_bcache_set_cache_mode",
        json!({"name": "Vol0", "mode": "writethrough"}),
    );
    assert_eq!(machine.write("Vol0", 640, 64, 8), Outcome::Success);
    machine.unplug(&slow);
    assert_eq!(
        (
            machine.set()["cached_extents"].clone(),
            machine.set()["dirty_bytes"].clone()
        ),
        (json!(1), json!(64 * 512))
    );
    // Its volatile cache is lost with it.
    slow.cut_power(&Rng::new(3));
    machine.replug(&slow);
    assert!(machine.holds("Vol0", 0, 64, 7));
    assert_eq!(machine.set()["state"], "running");
    drop(fast);
    machine.die();
}

#[test]
fn a_backing_device_that_fails_too_often_is_given_up_loudly_until_it_is_said_to_work() {
    for mode in ["writeback", "writethrough"] {
        let (_fast, slow, machine) = running(mode);
        no_writeback(&machine);
        let options = |change: serde_json::Value| {
            let mut params = change;
            params["name"] = json!("Vol0");
            machine.must("bdev_bcache_set_options", params);
        };
        assert_eq!(machine.volume()["options"]["io_error_limit"], 64);
        options(json!({"io_error_limit": 3}));
        assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
        slow.faults.set(BROKEN);
        for errors in 1..=3 {
            assert_eq!(machine.volume()["options"]["io_disable"], false);
            assert_eq!(machine.read("Vol0", 640, 8), None);
            assert_eq!(machine.volume()["io_errors"], errors);
        }
        assert_eq!(machine.volume()["options"]["io_disable"], true);
        let before = slow.faulted.get();
        assert_eq!(machine.read("Vol0", 640, 8), None);
        assert_eq!(machine.write("Vol0", 0, 8, 8), Outcome::Failed);
        assert_eq!(machine.unmap("Vol0", 0, 8), Outcome::Failed);
        assert_eq!(slow.faulted.get(), before, "it is not asked any more");
        assert!(
            machine.holds("Vol0", 0, 64, 7),
            "what is cached can be read"
        );
        // It works again; somebody must say so.
        slow.faults.set(Faults::default());
        assert_eq!(machine.write("Vol0", 0, 8, 8), Outcome::Failed);
        let dirty = machine.volume()["dirty_bytes"].clone();
        assert_eq!(dirty, if mode == "writeback" { 64 * 512 } else { 0 });
        options(json!({"io_disable": false}));
        assert_eq!(machine.volume()["io_errors"], 0);
        assert_eq!(machine.write("Vol0", 0, 8, 8), Outcome::Success);
        machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
        assert!(machine.holds("Vol0", 0, 8, 8) && machine.holds("Vol0", 8, 56, 7));
        // Without a cache it is counted too.
        slow.faults.set(BROKEN);
        for _ in 0..3 {
            assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Failed);
        }
        assert_eq!(machine.volume()["options"]["io_disable"], true);
        machine.die();
    }
}

#[test]
fn write_back_that_fails_counts_and_forgets_nothing() {
    let (_fast, slow, machine) = running("writeback");
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    slow.faults.set(BROKEN);
    machine.until("the limit", || {
        machine.volume()["options"]["io_disable"] == true
    });
    assert_eq!(machine.volume()["dirty_bytes"], 64 * 512);
    assert_eq!(machine.write("Vol0", 64, 64, 8), Outcome::Failed);
    slow.faults.set(Faults::default());
    machine.until("write-back", || machine.volume()["dirty_bytes"] == 0);
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

/// A write-back volume of two blank devices with some dirty data, written back by request alone.
fn asked_alone() -> (Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    let params = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", params);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    (slow, machine)
}

fn flush_status(machine: &Machine) -> serde_json::Value {
    machine.must("bdev_bcache_flush_status", json!({"name": "Vol0"}))
}

#[test]
fn a_flush_by_request_has_not_ended_while_its_last_round_is_under_way() {
    let (slow, machine) = asked_alone();
    // A round fails and is done again: that one waits for the device.
    slow.faults.set(NO_WRITE);
    machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    machine.pass(500_000);
    slow.faults.take();
    machine.host.silence("slow").set(true);
    machine.pass(5_000_000);
    let status = flush_status(&machine);
    assert_eq!(status["in_progress"], true, "{status}");
    machine.host.silence("slow").set(false);
    machine.until("the flush", || {
        flush_status(&machine)["in_progress"] == false
    });
    let status = flush_status(&machine);
    assert_eq!(status["dirty_bytes"], 0, "{status}");
    machine.die();
}

#[test]
fn a_flush_by_request_has_not_ended_after_rounds_that_failed() {
    for failing in [NO_WRITE, NO_FLUSH] {
        let (slow, machine) = asked_alone();
        slow.faults.set(failing);
        machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        // Two rounds, of which each is a whole pass.
        machine.pass(2_500_000);
        let status = flush_status(&machine);
        assert_eq!(status["in_progress"], true, "{status}");
        slow.faults.take();
        machine.until("the flush", || {
            flush_status(&machine)["in_progress"] == false
        });
        let status = flush_status(&machine);
        assert_eq!(
            (&status["dirty_bytes"], &status["failure"]),
            (&json!(0), &json!(null))
        );
        machine.die();
    }
}

#[test]
fn a_flush_by_request_that_left_what_cannot_be_read_says_so_beside_new_writes() {
    let (_, machine) = asked_alone();
    let set = machine.hub.sets().remove(0);
    let mut at = None;
    set.tree.scan(Inode(0), Sector(0), Sector::MAX, &mut |e| {
        at = Some(e.at);
        false
    });
    let at = at.expect("dirty data");
    drop(set);
    machine.spoil("fast", at, at + 64);
    assert_eq!(machine.write("Vol0", 128, 8, 8), Outcome::Success);
    machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    for i in 0.. {
        if flush_status(&machine)["in_progress"] == false {
            break;
        }
        assert!(i < 100_000, "it hangs");
        machine.write("Vol0", 128 + i % 64 * 8, 8, 9);
    }
    let status = flush_status(&machine);
    assert_ne!(status["failure"], json!(null), "{status}");
    machine.die();
}
