//! UNMAP and WRITE_ZEROES over dirty data: these are given up where it is known what the backing
//! device holds then, and only there; no older data than those unmapped ever come up.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::{Medium, Unmapped};
use spdk_bcache::sim::machine::{Machine, blank};

/// A volume with ones on its backing device, and twos over them that are dirty.
fn overwritten(unmapped: Unmapped, sectors: u64) -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    slow.unmapped.set(unmapped);
    let m = Machine::new(&[&fast, &slow]);
    let made = m.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    for byte in [1, 2] {
        for at in (0..sectors).step_by(128) {
            assert_eq!(m.write("Vol0", at, 64, byte), Outcome::Success);
        }
        if byte == 1 {
            m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
            m.until("written back", || dirty(&m) == 0);
            let params = json!({"name": "Vol0", "writeback_running": false});
            m.must("bdev_bcache_set_options", params);
        }
    }
    assert_eq!(m.flush("Vol0"), Outcome::Success);
    (fast, slow, m)
}

fn dirty(m: &Machine) -> u64 {
    m.hub.sets()[0].alloc.dirty_sectors()
}

/// The bytes that sectors 0..64 hold, each once.
fn held(m: &Machine) -> Vec<u8> {
    let mut held = m.read("Vol0", 0, 64).expect("it can be read");
    held.sort_unstable();
    held.dedup();
    held
}

fn reboot(m: Machine, media: &[&Rc<Medium>]) -> Machine {
    m.lose_power(media);
    let m = Machine::new(media);
    media.iter().for_each(|medium| m.replug(medium));
    m
}

#[test]
fn what_is_unmapped_is_not_written_back_where_it_reads_as_zeros() {
    let (fast, slow, m) = overwritten(Unmapped::Zeros, 8192);
    assert_eq!(m.unmap("Vol0", 0, 8192), Outcome::Success);
    assert_eq!((dirty(&m), held(&m)), (0, vec![0]));
    // It was answered: a power cut brings nothing back.
    let m = reboot(m, &[&fast, &slow]);
    assert_eq!((dirty(&m), held(&m)), (0, vec![0]));
    m.die();
}

#[test]
fn elsewhere_dirty_data_stay_and_nothing_older_comes_up() {
    for unmapped in [Unmapped::Old, Unmapped::Mixture] {
        let (fast, slow, m) = overwritten(unmapped, 1024);
        assert_eq!(m.unmap("Vol0", 0, 1024), Outcome::Success);
        assert!(!held(&m).contains(&1), "{unmapped:?}");
        let m = reboot(m, &[&fast, &slow]);
        assert!(!held(&m).contains(&1), "{unmapped:?}");
        m.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        m.until("written back", || dirty(&m) == 0);
        assert!(!held(&m).contains(&1), "{unmapped:?}");
        m.die();
    }
}

/// As when a snapshot is taken of a thin volume: what it unmaps from then on reads as the snapshot.
#[test]
fn a_device_that_ceases_to_read_as_zeros_under_an_unmap_keeps_the_dirty_data() {
    let mut kept = 0;
    for turns in (0..60).step_by(2) {
        let (_fast, slow, m) = overwritten(Unmapped::Zeros, 1024);
        let tag = m.issue("Vol0", Kind::Unmap, 0, Vec::new(), 1024);
        (0..turns).for_each(|_| m.turn());
        let began = m.has_ended(tag);
        slow.unmapped.set(Unmapped::Old);
        m.until("the UNMAP", || m.has_ended(tag));
        assert!(!held(&m).contains(&1), "after {turns} turns");
        kept += u32::from(!began && dirty(&m) > 0);
        m.die();
    }
    assert!(kept > 0, "some UNMAP is overtaken");
}

#[test]
fn zeroes_over_dirty_data_are_durable_when_they_are_answered() {
    let (fast, slow, m) = overwritten(Unmapped::Old, 8192);
    assert_eq!(m.write_zeroes("Vol0", 0, 8192), Outcome::Success);
    assert_eq!((dirty(&m), held(&m)), (0, vec![0]));
    let m = reboot(m, &[&fast, &slow]);
    assert_eq!((dirty(&m), held(&m)), (0, vec![0]));
    m.die();
}
