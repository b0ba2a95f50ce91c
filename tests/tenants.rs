//! What one host can do to the others of its set with I/Os that fail for reasons of their own: nothing.

use serde_json::{Value, json};
use spdk_bcache::disk::IoError;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::{Outcome, Side};
use spdk_bcache::sim::machine::{Machine, blank};

/// More than any limit of errors: 8 for a cache device, 64 for a backing device.
const OFTEN: u64 = 66;
/// Sectors of a volume's that are dirty in the cache, clean in it, and not in it.
const DIRTY: u64 = 0;
const CLEAN: u64 = 4096;
const ABSENT: u64 = 8192;

/// A set with two volumes, each with the same data: dirty, clean and absent ones.
fn two_tenants(mode: &str) -> Machine {
    let media = [blank("fast"), blank("slow0"), blank("slow1")];
    let machine = Machine::new(&media.each_ref());
    for (volume, backing) in [("Vol0", "slow0"), ("Vol1", "slow1")] {
        let params = json!({"name": volume, "cache_bdev": "fast", "backing_bdev": backing,
                            "mode": "none"});
        machine.must("bdev_bcache_create", params);
        assert_eq!(machine.write(volume, ABSENT, 64, 3), Outcome::Success);
        set_mode(&machine, volume, "writethrough");
        while machine.set()["cached_extents"] == 0 {
            assert_eq!(machine.write(volume, CLEAN, 64, 2), Outcome::Success);
        }
        assert_eq!(machine.write(volume, CLEAN, 64, 2), Outcome::Success);
        let params = json!({"name": volume, "writeback_running": false});
        machine.must("bdev_bcache_set_options", params);
        set_mode(&machine, volume, "writeback");
        assert_eq!(machine.write(volume, DIRTY, 64, 1), Outcome::Success);
        assert_eq!(machine.flush(volume), Outcome::Success);
        set_mode(&machine, volume, mode);
    }
    machine
}

fn set_mode(machine: &Machine, volume: &str, mode: &str) {
    let params = json!({"name": volume, "mode": mode});
    machine.must("bdev_bcache_set_cache_mode", params);
}

/// Reads and writes everywhere. Returns which of the reads and writes, from `DIRTY` on, succeeded.
fn io(machine: &Machine, volume: &str) -> ([bool; 3], [bool; 3]) {
    let all = [(DIRTY, 1), (CLEAN, 2), (ABSENT, 3)];
    let reads = all.map(|(at, byte)| {
        let data = machine.read(volume, at, 8);
        assert!(data.iter().flatten().all(|&b| b == byte), "stale data");
        data.is_some()
    });
    let writes = all.map(|(at, byte)| machine.write(volume, at + 32, 8, byte) == Outcome::Success);
    (reads, writes)
}

/// Nothing counts as an error of a device, and both volumes hold their data.
fn unharmed(machine: &Machine) {
    let set = machine.set();
    assert_eq!(set["state"], "running", "{set}");
    assert_eq!(set["failure"], Value::Null, "{set}");
    assert_eq!(set["io_errors"]["reads"], 0, "{set}");
    assert_eq!(set["io_errors"]["writes"], 0, "{set}");
    for volume in ["Vol0", "Vol1"] {
        let entry = machine.volume_of(volume);
        assert_eq!(entry["io_errors"], 0, "{entry}");
        assert_eq!(entry["options"]["io_disable"], false, "{entry}");
        for (at, byte) in [(DIRTY, 1), (CLEAN, 2), (ABSENT, 3)] {
            assert!(machine.holds(volume, at, 64, byte), "{volume} at {at}");
        }
    }
}

#[test]
fn malformed_ios_fail_alone_in_every_mode() {
    for mode in ["writeback", "writethrough", "writearound", "none"] {
        let machine = two_tenants(mode);
        for why in [IoError::Invalid, IoError::OutOfRange] {
            for side in [Side::Cache, Side::Backing] {
                machine.transfers_end("Vol0", Some((side, why)));
                for _ in 0..OFTEN {
                    let (reads, writes) = io(&machine, "Vol0");
                    let expected = match side {
                        Side::Cache => [false, false, true],
                        Side::Backing => [true, true, false],
                    };
                    // What was absent may have been filled, and clean data written past the cache.
                    assert_eq!(reads[..1], expected[..1], "{mode}");
                    assert_eq!(writes[0], side == Side::Backing, "{mode}");
                }
                machine.transfers_end("Vol0", None);
                unharmed(&machine);
            }
        }
        machine.die();
    }
}

#[test]
fn ios_that_are_aborted_or_find_no_memory_are_no_errors_of_a_device() {
    for why in [IoError::Aborted, IoError::NoMemory] {
        let machine = two_tenants("writeback");
        machine.transfers_end("Vol0", Some((Side::Cache, why)));
        for _ in 0..OFTEN {
            let (reads, writes) = io(&machine, "Vol0");
            // Clean data come from the backing device, which takes all writes; dirty ones come from
            // nowhere else until a write of the same data goes there.
            assert_eq!((reads, writes), ([false, true, true], [true; 3]));
        }
        machine.transfers_end("Vol0", None);
        unharmed(&machine);
        machine.transfers_end("Vol0", Some((Side::Backing, why)));
        for _ in 0..OFTEN {
            let end = machine.issue("Vol0", Kind::Unmap, ABSENT + 1024, Vec::new(), 8);
            io(&machine, "Vol0");
            machine.until("an unmap", || machine.has_ended(end));
        }
        machine.transfers_end("Vol0", None);
        unharmed(&machine);
        machine.die();
    }
}

#[test]
fn a_volume_alone_counts_no_malformed_io_either() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({}));
    made.expect("two blank devices");
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    machine.transfers_end("Vol0", Some((Side::Backing, IoError::Invalid)));
    for _ in 0..OFTEN {
        assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Failed);
        assert_eq!(machine.read("Vol0", 0, 8), None);
    }
    machine.transfers_end("Vol0", None);
    let entry = machine.volume();
    assert_eq!(
        (&entry["io_errors"], &entry["options"]["io_disable"]),
        (&json!(0), &json!(false))
    );
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}
