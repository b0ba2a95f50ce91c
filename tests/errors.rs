//! Devices that fail: what the host is told, what is served all the same, and that nothing dirty is
//! forgotten and nothing hangs.

mod machine;

use machine::{BROKEN, Machine, blank};
use serde_json::json;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::Faults;

const NO_FLUSH: Faults = Faults {
    read: 0,
    write: 0,
    flush: 1,
};

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
        assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
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
