//! What the superblock of a backing device says of dirty data, whatever became of the change before:
//! never clean while something is dirty.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::format::superblock::BackingState;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::{Faults, Ills, Medium};
use spdk_bcache::sim::machine::{Machine, backing_super, blank};

/// A clean write-back volume, long idle.
fn calm() -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let m = Machine::new(&[&fast, &slow]);
    let made = m.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    assert_eq!(m.write("Vol0", 0, 8, 1), Outcome::Success);
    m.until("clean", || {
        backing_super(&slow).state() == BackingState::Clean
    });
    m.pass(5_000_000);
    (fast, slow, m)
}

/// Dirty data that the superblock denies, in words.
fn denied(m: &Machine, slow: &Medium) -> Option<String> {
    let dirty = m.volume()["dirty_bytes"].as_u64().expect("a number");
    let state = backing_super(slow).state();
    let denied = dirty > 0 && state != BackingState::Dirty;
    denied.then(|| format!("{dirty} bytes are dirty, the superblock says {state}"))
}

/// A host tries again some time after the superblock could not be written, and that takes its time.
fn retry_after(wait_us: u64) -> Option<String> {
    let (_fast, slow, m) = calm();
    slow.faults.set(Faults {
        write: 1,
        ..Faults::default()
    });
    assert_eq!(m.write("Vol0", 0, 8, 2), Outcome::Failed);
    slow.faults.set(Faults::default());
    m.pass(wait_us);
    slow.ills.set(Ills {
        slow: 1,
        ..Ills::default()
    });
    let tag = m.issue("Vol0", Kind::Write, 0, vec![2; 4096], 8);
    m.pass(10_000);
    slow.ills.set(Ills::default());
    m.until("the write", || m.has_ended(tag));
    assert_eq!(m.ended(tag).expect("it has ended").0, Outcome::Success);
    assert_eq!(m.flush("Vol0"), Outcome::Success);
    m.pass(100_000);
    let denied = denied(&m, &slow);
    m.die();
    denied.map(|why| format!("after {wait_us} µs: {why}"))
}

#[test]
fn a_mark_that_failed_is_not_followed_by_a_clean_one_over_dirty_data() {
    let bad: Vec<String> = (0..25).filter_map(|n| retry_after(n * 2000)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

/// The superblock that says clean reached the device, but its flush failed: memory still has the one
/// that says dirty. The cache device is then away for a while.
#[test]
fn what_memory_has_of_a_superblock_is_not_believed_after_a_change_that_failed() {
    let (fast, slow, m) = calm();
    assert_eq!(m.write("Vol0", 0, 8, 2), Outcome::Success);
    m.until("written back", || {
        m.hub.sets()[0].alloc.dirty_sectors() == 0
    });
    slow.faults.set(Faults {
        flush: 1,
        ..Faults::default()
    });
    m.until("clean", || {
        backing_super(&slow).state() == BackingState::Clean
    });
    m.unplug(&fast);
    slow.faults.set(Faults::default());
    m.replug(&fast);
    let params = json!({"name": "Vol0", "writeback_running": false});
    m.must("bdev_bcache_set_options", params);
    assert_eq!(m.write("Vol0", 0, 8, 3), Outcome::Success);
    assert_eq!(m.flush("Vol0"), Outcome::Success);
    assert_eq!(denied(&m, &slow), None);
    assert!(m.volume()["dirty_bytes"].as_u64() > Some(0));
    m.die();
}

/// Clean, for the last data are written back, and dirty again before that stands on the device.
#[test]
fn a_write_that_meets_a_clean_mark_under_way_waits_for_the_next_one() {
    for wait_us in (0..200_000).step_by(20_000) {
        let (_fast, slow, m) = calm();
        assert_eq!(m.write("Vol0", 0, 8, 2), Outcome::Success);
        m.until("written back", || {
            m.hub.sets()[0].alloc.dirty_sectors() == 0
        });
        slow.ills.set(Ills {
            slow: 1,
            ..Ills::default()
        });
        m.pass(wait_us);
        let tag = m.issue("Vol0", Kind::Write, 8, vec![3; 4096], 8);
        m.until("the write", || m.has_ended(tag));
        assert_eq!(m.ended(tag).expect("it has ended").0, Outcome::Success);
        assert_eq!(denied(&m, &slow), None, "after {wait_us} µs");
        m.die();
    }
}
