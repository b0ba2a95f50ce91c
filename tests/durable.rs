//! Writes that are to be durable when they are answered (FUA), in every mode and on every way.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::{Faults, Medium};
use spdk_bcache::sim::machine::{Machine, blank};

const MODES: [&str; 4] = ["writeback", "writethrough", "writearound", "none"];
const PIECES: u64 = 16;

fn lab(mode: &str) -> ([Rc<Medium>; 2], Machine) {
    let media = ["fast", "slow"].map(blank);
    let m = Machine::new(&media.each_ref());
    let made = m.create("fast", "slow", json!({"mode": mode}));
    made.expect("blank devices");
    let params = json!({"name": "Vol0", "writeback_running": false});
    m.must("bdev_bcache_set_options", params);
    (media, m)
}

fn write_durably(m: &Machine, at: u64, sectors: u64, byte: u8) -> Outcome {
    let tag = m.issue_durable("Vol0", at, sectors, byte);
    m.until("a durable write", || m.has_ended(tag));
    m.ended(tag).expect("it has ended").0
}

/// What was answered, and nothing else was ever flushed, outlives a power cut.
fn outlives_power_cuts(mode: &str, prepare: impl Fn(&Machine)) {
    let (media, m) = lab(mode);
    prepare(&m);
    for piece in 0..PIECES {
        let done = write_durably(&m, piece * 64, 24, piece as u8 + 1);
        assert_eq!(done, Outcome::Success, "{mode}");
    }
    m.lose_power(&media.each_ref());
    let m = Machine::new(&media.each_ref());
    for bdev in ["fast", "slow"] {
        m.register(bdev).expect("a device with a volume");
    }
    for piece in 0..PIECES {
        let holds = m.holds("Vol0", piece * 64, 24, piece as u8 + 1);
        assert!(holds, "{mode}: piece {piece} is lost");
    }
    m.die();
}

#[test]
fn a_durable_write_outlives_a_power_cut_in_every_mode() {
    for mode in MODES {
        outlives_power_cuts(mode, |_| {});
    }
}

#[test]
fn a_durable_write_over_dirty_data_outlives_a_power_cut_in_every_mode() {
    for mode in MODES {
        outlives_power_cuts("writeback", |m| {
            for piece in 0..PIECES {
                let done = m.write("Vol0", piece * 64 + 8, 24, 0x77);
                assert_eq!(done, Outcome::Success);
            }
            let params = json!({"name": "Vol0", "mode": mode});
            m.must("bdev_bcache_set_cache_mode", params);
        });
    }
}

#[test]
fn a_durable_write_without_a_cache_outlives_a_power_cut() {
    outlives_power_cuts("writeback", |m| {
        m.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    });
}

#[test]
fn a_durable_write_fails_where_the_flush_behind_it_does() {
    for mode in ["writethrough", "none"] {
        let (media, m) = lab(mode);
        media[1].faults.set(Faults {
            flush: 1,
            ..Faults::default()
        });
        let params = json!({"name": "Vol0", "io_error_limit": 100});
        m.must("bdev_bcache_set_options", params);
        assert_eq!(m.write("Vol0", 0, 8, 1), Outcome::Success, "{mode}");
        assert!(m.holds("Vol0", 0, 8, 1), "a read is followed by no flush");
        assert_eq!(write_durably(&m, 0, 8, 2), Outcome::Failed, "{mode}");
        media[1].faults.set(Faults::default());
        assert_eq!(write_durably(&m, 0, 8, 3), Outcome::Success, "{mode}");
        assert!(m.holds("Vol0", 0, 8, 3));
        m.die();
    }
}
