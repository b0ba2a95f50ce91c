//! Volumes of one set beside each other: what becomes of one, its device or its number in the set
//! does not touch the others, nor what comes after it.

use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::{Faults, Ills, Medium};
use spdk_bcache::sim::machine::{Machine, blank};

/// One volume with 20 MiB of dirty data that are not written back unasked.
fn much_dirty() -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let m = Machine::new(&[&fast, &slow]);
    let made = m.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    keep_dirty(&m, "Vol0");
    for i in 0..160 {
        assert_eq!(m.write("Vol0", i * 400, 256, 1), Outcome::Success);
    }
    (fast, slow, m)
}

fn keep_dirty(m: &Machine, name: &str) {
    let params = json!({"name": name, "writeback_running": false});
    m.must("bdev_bcache_set_options", params);
}

fn dirty(m: &Machine, name: &str) -> u64 {
    m.volume_of(name)["dirty_bytes"].as_u64().expect("a number")
}

#[test]
fn a_flush_request_ends_when_its_volume_is_deleted() {
    let (_fast, _slow, m) = much_dirty();
    let owner = m.hub.sets()[0].owner.clone();
    m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    m.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    assert_eq!(owner.tasks.get(), 0, "nothing of the volume is left");
    // It comes back, and is to write nothing back unasked.
    m.register("slow").expect("its set runs");
    keep_dirty(&m, "Vol0");
    let before = dirty(&m, "Vol0");
    m.pass(20_000_000);
    assert_eq!(dirty(&m, "Vol0"), before);
    m.die();
}

#[test]
fn a_volume_with_the_number_of_one_that_was_being_flushed_is_not() {
    let (_fast, _slow, m) = much_dirty();
    let other = blank("other");
    m.plug(&other);
    m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    m.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    let more = json!({"name": "Vol1", "mode": "writeback"});
    m.create("fast", "other", more).expect("a blank device");
    keep_dirty(&m, "Vol1");
    assert_eq!(m.write("Vol1", 0, 256, 2), Outcome::Success);
    m.pass(20_000_000);
    assert_eq!(dirty(&m, "Vol1"), 256 * 512);
    m.die();
}

/// Two volumes with dirty data; the device of the first takes a second and more for everything from
/// now on, and its write-back is under way.
fn beside_a_slow_one() -> (Vec<Rc<Medium>>, Machine) {
    let media: Vec<Rc<Medium>> = ["fast", "slow", "sound"].map(blank).into();
    let m = Machine::new(&media.iter().collect::<Vec<_>>());
    for (name, disk) in [("Vol0", "slow"), ("Vol1", "sound")] {
        let made = m.create("fast", disk, json!({"name": name, "mode": "writeback"}));
        made.expect("blank devices");
        keep_dirty(&m, name);
        assert_eq!(m.write(name, 0, 64, 1), Outcome::Success);
    }
    media[1].ills.set(Ills {
        slow: 1,
        ..Ills::default()
    });
    m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    m.pass(200_000);
    (media, m)
}

/// Whether the slow round is still under way.
fn is_stuck(m: &Machine) -> bool {
    dirty(m, "Vol0") > 0
}

#[test]
fn a_delete_gives_the_device_back_while_another_one_is_slow() {
    let (_media, m) = beside_a_slow_one();
    m.must("bdev_bcache_delete", json!({"name": "Vol1"}));
    assert!(
        !m.host.holds_open("sound"),
        "it was answered, so it is free"
    );
    assert!(is_stuck(&m) && m.host.holds_open("slow"));
    m.die();
}

#[test]
fn a_delete_of_a_clean_volume_does_not_wait_for_the_idle_write_back_of_another() {
    let media: Vec<Rc<Medium>> = ["fast", "slow", "sound"].map(blank).into();
    let m = Machine::new(&media.iter().collect::<Vec<_>>());
    for (name, disk) in [("Vol0", "slow"), ("Vol1", "sound")] {
        let made = m.create("fast", disk, json!({"name": name, "mode": "writeback"}));
        made.expect("blank devices");
    }
    assert_eq!(m.write("Vol0", 0, 64, 1), Outcome::Success);
    m.host.silence("slow").set(true);
    m.pass(5_000_000);
    m.must("bdev_bcache_delete", json!({"name": "Vol1"}));
    assert!(!m.host.holds_open("sound"));
    assert!(is_stuck(&m));
    m.die();
}

#[test]
fn a_device_that_is_pulled_is_given_back_while_another_one_is_slow() {
    let (media, m) = beside_a_slow_one();
    m.unplug(&media[2]);
    assert!(!m.host.holds_open("sound"));
    assert!(is_stuck(&m));
    m.die();
}

#[test]
fn a_volume_is_written_back_and_detached_while_another_one_is_slow() {
    let (_media, m) = beside_a_slow_one();
    m.must("bdev_bcache_detach", json!({"name": "Vol1"}));
    assert_eq!(m.volume_of("Vol1")["set"], Value::Null);
    assert!(is_stuck(&m));
    m.die();
}

#[test]
fn a_flush_request_does_not_fail_for_the_device_of_another_volume() {
    let (media, m) = beside_a_slow_one();
    m.until("the slow round", || !is_stuck(&m));
    // Now the first fails again and again, and the second takes its time.
    media[1].ills.set(Ills::default());
    assert_eq!(m.write("Vol0", 0, 64, 2), Outcome::Success);
    media[1].faults.set(Faults {
        write: 1,
        ..Faults::default()
    });
    media[2].ills.set(Ills {
        slow: 1,
        ..Ills::default()
    });
    let params = json!({"name": "Vol0", "writeback_running": true, "writeback_percent": 0});
    m.must("bdev_bcache_set_options", params);
    let set = m.hub.sets()[0].clone();
    m.must("bdev_bcache_flush_start", json!({"name": "Vol1"}));
    let before = set.writeback.failures.get();
    m.until("failures", || set.writeback.failures.get() > before + 5);
    m.until("the other's flush", || dirty(&m, "Vol1") == 0);
    drop(set);
    m.die();
}
