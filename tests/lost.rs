//! The cache device of a running set goes, and comes back: hosts keep their volumes, no old data are
//! read, and no dirty data are forgotten.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::format::superblock::BackingState;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{Machine, backing_super, blank};

struct Lab {
    machine: Machine,
    fast: Rc<Medium>,
    slow: Rc<Medium>,
}

impl Lab {
    /// A volume, and what it holds: 8-sector pieces full of 1 to 8.
    fn new(mode: &str) -> Lab {
        let (fast, slow) = (blank("fast"), blank("slow"));
        let machine = Machine::new(&[&fast, &slow]);
        let made = machine.create("fast", "slow", json!({"mode": mode}));
        made.expect("blank devices");
        let off = json!({"name": "Vol0", "writeback_running": false});
        machine.must("bdev_bcache_set_options", off);
        for piece in 0..8 {
            let done = machine.write("Vol0", piece * 8, 8, piece as u8 + 1);
            assert_eq!(done, Outcome::Success);
        }
        Lab {
            machine,
            fast,
            slow,
        }
    }

    fn option(&self, name: &str, value: serde_json::Value) {
        let mut params = json!({"name": "Vol0"});
        params[name] = value;
        self.machine.must("bdev_bcache_set_options", params);
    }

    /// The device is asked for back, and works until it is closed.
    fn remove(&self) {
        let hub = self.machine.hub.clone();
        self.machine.run(async move { hub.removed("fast").await });
        assert!(!self.machine.host.holds_open("fast"), "it is let go");
    }

    fn give_back(&self) {
        let hub = self.machine.hub.clone();
        self.machine.run(async move { hub.examine("fast").await });
    }

    fn holds_all(&self, but: u64) -> bool {
        let mut pieces = (0..8).filter(|&piece| piece != but);
        pieces.all(|piece| self.machine.holds("Vol0", piece * 8, 8, piece as u8 + 1))
    }

    fn running(&self) -> bool {
        self.machine.volume()["running"] == true && self.machine.host.shown() == ["Vol0"]
    }
}

#[test]
fn what_is_clean_on_a_cache_device_that_goes_is_durable_on_the_backing_device() {
    let lab = Lab::new("writeback");
    lab.machine.must(
        "bdev_bcache_set_cache_mode",
        json!({"name": "Vol0", "mode": "writethrough"}),
    );
    assert_eq!(lab.machine.write("Vol0", 800, 8, 9), Outcome::Success);
    lab.remove();
    assert!(lab.running(), "it goes on for its dirty data");
    let at = backing_super(&lab.slow).data_offset + 800;
    for seed in 0..32 {
        let after_a_power_cut = lab.slow.fork();
        after_a_power_cut.crash(&Rng::new(seed), true);
        let bytes = after_a_power_cut.peek(at, 8);
        assert!(bytes.iter().all(|&byte| byte == 9), "seed {seed}");
    }
    lab.machine.die();
}

#[test]
fn a_clean_volume_goes_on_without_its_cache_and_reads_nothing_old_when_that_is_back() {
    for mode in ["writethrough", "writearound", "writeback"] {
        for pulled in [false, true] {
            let lab = Lab::new(mode);
            if mode == "writeback" {
                lab.option("writeback_running", json!(true));
                lab.machine
                    .must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
                lab.machine
                    .until("written back", || lab.machine.volume()["dirty_bytes"] == 0);
            }
            assert!(lab.holds_all(9), "and the cache has it");
            match pulled {
                true => lab.machine.unplug(&lab.fast),
                false => lab.remove(),
            }
            assert!(lab.running(), "{mode}");
            assert_eq!(backing_super(&lab.slow).state(), BackingState::Stale);
            assert!(lab.holds_all(9));
            assert_eq!(lab.machine.write("Vol0", 0, 8, 77), Outcome::Success);
            assert_eq!(lab.machine.flush("Vol0"), Outcome::Success);
            match pulled {
                true => lab.machine.replug(&lab.fast),
                false => lab.give_back(),
            }
            let volume = lab.machine.volume();
            assert_eq!(volume["state"], "clean", "{mode}");
            assert!(volume["inode"].is_number() && lab.running());
            assert!(lab.machine.holds("Vol0", 0, 8, 77) && lab.holds_all(0));
            lab.machine.die();
        }
    }
}

#[test]
fn a_crash_while_the_cache_is_away_brings_back_nothing_old() {
    let lab = Lab::new("writethrough");
    assert!(lab.holds_all(9));
    lab.remove();
    assert_eq!(lab.machine.write("Vol0", 0, 8, 77), Outcome::Success);
    assert_eq!(lab.machine.flush("Vol0"), Outcome::Success);
    let Lab {
        machine,
        fast,
        slow,
    } = lab;
    machine.lose_power(&[&fast, &slow]);
    let machine = Machine::new(&[&fast, &slow]);
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    assert!(machine.holds("Vol0", 0, 8, 77));
    let attach = json!({"name": "Vol0", "set": machine.uuid()});
    machine.must("bdev_bcache_attach", attach);
    assert!(machine.holds("Vol0", 0, 8, 77));
    machine.die();
}

#[test]
fn io_that_needs_the_cache_waits_for_it_and_the_rest_goes_on() {
    let lab = Lab::new("writeback");
    lab.remove();
    assert!(lab.running());
    let machine = &lab.machine;
    assert_eq!(machine.volume()["dirty_bytes"], 64 * 512);
    assert_eq!(backing_super(&lab.slow).state(), BackingState::Dirty);
    let refused = machine.call("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(refused.is_err(), "its data are not here");
    let read = machine.issue("Vol0", Kind::Read, 8, vec![0; 4096], 8);
    let write = machine.issue("Vol0", Kind::Write, 16, vec![99; 4096], 8);
    assert!(
        machine.holds("Vol0", 64, 8, 0),
        "what was never written is read"
    );
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    machine.pass(100_000_000);
    assert!(!machine.has_ended(read) && !machine.has_ended(write));
    lab.give_back();
    machine.until("the reads", || {
        machine.has_ended(read) && machine.has_ended(write)
    });
    let (outcome, data) = machine.ended(read).expect("it has");
    assert!(outcome == Outcome::Success && data.iter().all(|&b| b == 2));
    assert_eq!(machine.ended(write).expect("it has").0, Outcome::Success);
    assert!(machine.holds("Vol0", 16, 8, 99) && lab.holds_all(2));
    // Options outlive the loss.
    assert_eq!(machine.volume()["options"]["writeback_running"], false);
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(machine.holds("Vol0", 16, 8, 99) && lab.holds_all(2));
    lab.machine.die();
}

#[test]
fn io_that_needs_the_cache_fails_where_that_is_wanted() {
    let lab = Lab::new("writeback");
    lab.option("cache_missing_io", json!("fail"));
    lab.remove();
    let machine = &lab.machine;
    assert!(lab.running() && machine.read("Vol0", 8, 8).is_none());
    assert_eq!(machine.write("Vol0", 16, 8, 99), Outcome::Failed);
    assert_eq!(machine.write("Vol0", 640, 8, 99), Outcome::Failed);
    assert!(machine.holds("Vol0", 64, 8, 0));
    lab.give_back();
    assert!(lab.holds_all(9) && machine.holds("Vol0", 640, 8, 0));
    assert_eq!(machine.write("Vol0", 16, 8, 99), Outcome::Success);
    lab.machine.die();
}

#[test]
fn a_cache_that_does_not_come_back_in_time_takes_its_dirty_volume_down() {
    let lab = Lab::new("writeback");
    lab.option("cache_missing_timeout_s", json!(30));
    lab.remove();
    let machine = &lab.machine;
    let write = machine.issue("Vol0", Kind::Write, 16, vec![99; 4096], 8);
    machine.pass(25_000_000);
    assert!(lab.running());
    machine.until("the end", || machine.host.shown().is_empty());
    assert_eq!(machine.ended(write).expect("it failed").0, Outcome::Failed);
    machine.until("it is listed", || {
        machine.hub.volume("Vol0").is_ok_and(|v| !v.is_running())
    });
    lab.give_back();
    assert!(lab.running() && lab.holds_all(9));
    lab.machine.die();
}

#[test]
fn dirty_data_on_a_cache_that_is_gone_are_given_up_only_when_that_is_said() {
    let lab = Lab::new("writeback");
    lab.remove();
    let machine = &lab.machine;
    let run = |discard: bool| json!({"name": "Vol0", "discard_dirty": discard});
    let refused = machine.call("bdev_bcache_run", run(false));
    assert!(refused.expect_err("dirty").message.contains("32768"));
    machine.must("bdev_bcache_run", run(true));
    assert!(lab.running() && machine.holds("Vol0", 0, 64, 0));
    assert_eq!(machine.write("Vol0", 0, 8, 5), Outcome::Success);
    lab.give_back();
    assert!(machine.holds("Vol0", 0, 8, 5) && machine.holds("Vol0", 8, 56, 0));
    lab.machine.die();
}

#[test]
fn a_shutdown_while_the_cache_is_away_ends_and_loses_nothing() {
    let lab = Lab::new("writeback");
    lab.remove();
    let machine = &lab.machine;
    let write = machine.issue("Vol0", Kind::Write, 16, vec![99; 4096], 8);
    let hub = machine.hub.clone();
    assert!(machine.run(async move { hub.stop_all().await }));
    assert_eq!(machine.ended(write).expect("it failed").0, Outcome::Failed);
    let Lab {
        machine,
        fast,
        slow,
    } = lab;
    machine.die();
    let machine = Machine::new(&[&fast, &slow]);
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    for piece in 0..8 {
        assert!(machine.holds("Vol0", piece * 8, 8, piece as u8 + 1));
    }
    machine.die();
}

#[test]
fn no_host_io_fails_while_a_cache_is_taken_away_and_brought_back() {
    let lab = Lab::new("writethrough");
    let machine = &lab.machine;
    let mut ios = Vec::new();
    for round in 0..6u64 {
        for at in 0..32 {
            let memory = vec![round as u8; 4096];
            ios.push(machine.issue("Vol0", Kind::Write, 1024 + at * 8, memory, 8));
            ios.push(machine.issue("Vol0", Kind::Read, at * 8, vec![0; 4096], 8));
        }
        match round % 2 {
            0 => lab.remove(),
            _ => lab.give_back(),
        }
    }
    machine.until("all I/O", || ios.iter().all(|&io| machine.has_ended(io)));
    for io in ios {
        assert_eq!(machine.ended(io).expect("it has").0, Outcome::Success);
    }
    assert!(machine.holds("Vol0", 1024, 256, 5) && lab.holds_all(9));
    lab.machine.die();
}

/// A volume that has lost its cache device with nothing dirty, and that a call made leave its set.
fn left_while_missing(method: &'static str) -> Lab {
    let lab = Lab::new("writethrough");
    lab.remove();
    lab.machine.must(method, json!({"name": "Vol0"}));
    lab.machine.pass(1_000_000);
    lab
}

#[test]
fn a_volume_that_is_detached_while_its_cache_device_is_gone_does_not_come_back_to_it() {
    for method in ["bdev_bcache_detach", "bdev_bcache_detach_start"] {
        let lab = left_while_missing(method);
        assert_eq!(backing_super(&lab.slow).state(), BackingState::None);
        lab.give_back();
        lab.machine.pass(1_000_000);
        assert_eq!(lab.machine.volume()["set"], json!(null), "{method}");
        let written = lab.machine.write("Vol0", 0, 8, 77);
        assert_eq!(written, Outcome::Success);
        let set = lab.machine.uuid();
        let both = json!({"name": "Vol0", "set": set, "discard_dirty": true});
        lab.machine.must("bdev_bcache_attach", both);
        assert!(lab.machine.holds("Vol0", 0, 8, 77), "nothing old is read");
        assert!(lab.holds_all(0));
        lab.machine.die();
    }
}

#[test]
fn options_of_a_volume_that_is_deleted_without_its_cache_are_kept_all() {
    let lab = Lab::new("writeback");
    lab.option("writeback_percent", json!(40));
    lab.option("io_error_limit", json!(5));
    lab.remove();
    let name = json!({"name": "Vol0"});
    lab.machine.must("bdev_bcache_delete", name);
    lab.give_back();
    lab.machine.register("slow").expect("its set runs");
    let options = &lab.machine.volume()["options"];
    assert_eq!(options["io_error_limit"], 5);
    assert_eq!(options["writeback_percent"], 40);
    assert_eq!(options["writeback_running"], false);
    lab.machine.die();
}
