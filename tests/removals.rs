//! Devices that go while something else is done to what lies on them: each call and each removal
//! ends, and nothing comes back on a device that has gone.

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::format::superblock::BackingState;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc::{self, RpcError};
use spdk_bcache::sim::disk::{Faults, Medium};
use spdk_bcache::sim::machine::{Machine, backing_super, blank};
use spdk_bcache::stats::TICK_S;

type Call = Rc<RefCell<Option<Result<Value, RpcError>>>>;

/// Volumes on one cache device, with clean data, or dirty ones that stay so.
struct Lab {
    machine: Machine,
    slow: Vec<Rc<Medium>>,
}

impl Lab {
    fn new(volumes: usize, mode: &str) -> Lab {
        let fast = blank("fast");
        let slow: Vec<_> = (0..volumes).map(|nr| blank(&format!("slow{nr}"))).collect();
        let media: Vec<_> = std::iter::once(&fast).chain(&slow).collect();
        let machine = Machine::new(&media);
        for nr in 0..volumes {
            let name = format!("Vol{nr}");
            let more = json!({"name": name, "mode": mode});
            let made = machine.create("fast", &format!("slow{nr}"), more);
            made.expect("blank devices");
            let off = json!({"name": name, "writeback_running": false});
            machine.must("bdev_bcache_set_options", off);
            assert_eq!(machine.write(&name, 0, 64, 7), Outcome::Success);
        }
        Lab { machine, slow }
    }

    fn begin(&self, method: &'static str, params: Value) -> Call {
        let hub = self.machine.hub.clone();
        self.machine.start(rpc::call(hub, method, params))
    }

    /// A device is asked for back, and works until it is closed.
    fn begin_removal(&self, bdev: &'static str) -> Rc<RefCell<Option<()>>> {
        let hub = self.machine.hub.clone();
        self.machine.start(async move { hub.removed(bdev).await })
    }

    fn silence(&self, bdev: &str, silent: bool) {
        self.machine.host.silence(bdev).set(silent);
    }

    fn is_let_go(&self, bdev: &str) -> bool {
        !self.machine.host.holds_open(bdev)
    }
}

#[test]
fn a_silent_backing_device_holds_up_no_other_volume_when_the_cache_device_goes() {
    let lab = Lab::new(2, "writethrough");
    lab.silence("slow0", true);
    let removal = lab.begin_removal("fast");
    lab.machine.until("the other volume", || {
        backing_super(&lab.slow[1]).state() == BackingState::Stale
    });
    assert_eq!(lab.machine.write("Vol1", 0, 8, 9), Outcome::Success);
    lab.silence("slow0", false);
    lab.machine
        .until("the removal", || removal.borrow().is_some());
    assert!(lab.is_let_go("fast"));
    assert!(lab.machine.holds("Vol0", 0, 64, 7) && lab.machine.holds("Vol1", 8, 56, 7));
    lab.machine.die();
}

#[test]
fn a_silent_backing_device_holds_up_no_other_volume_when_the_set_fails() {
    let lab = Lab::new(2, "writethrough");
    lab.silence("slow0", true);
    lab.machine.hub.sets()[0].latch.trip("a test".into());
    lab.machine.until("the other volume", || {
        backing_super(&lab.slow[1]).state() == BackingState::None
            && lab.machine.volume_of("Vol1")["set"] == Value::Null
    });
    lab.machine
        .must("bdev_bcache_delete", json!({"name": "Vol1"}));
    assert!(lab.is_let_go("slow1"), "while Vol0 is still at it");
    lab.silence("slow0", false);
    lab.machine.die();
}

#[test]
fn a_silent_backing_device_holds_no_other_volume_when_its_set_is_back() {
    let lab = Lab::new(2, "writethrough");
    lab.machine
        .must("bdev_bcache_detach", json!({"name": "Vol1"}));
    let stop = json!({"set": lab.machine.uuid()});
    lab.machine.must("bdev_bcache_stop_set", stop);
    lab.machine
        .must("bdev_bcache_register", json!({"bdev_name": "slow0"}));
    lab.silence("slow0", true);
    let back = lab.begin("bdev_bcache_register", json!({"bdev_name": "fast"}));
    lab.machine
        .until("the set", || !lab.machine.hub.sets().is_empty());
    lab.machine.pass(1_000_000);
    lab.machine
        .must("bdev_bcache_delete", json!({"name": "Vol1"}));
    assert!(lab.is_let_go("slow1") && back.borrow().is_none());
    lab.silence("slow0", false);
    lab.machine.until("its return", || back.borrow().is_some());
    lab.machine.die();
}

#[test]
fn a_cache_device_that_goes_while_its_set_is_being_stopped_is_let_go() {
    let lab = Lab::new(1, "writethrough");
    let stop = json!({"set": lab.machine.uuid()});
    lab.silence("slow0", true);
    let stop = lab.begin("bdev_bcache_stop_set", stop);
    lab.machine.pass(1_000_000);
    let removal = lab.begin_removal("fast");
    lab.machine.until("the stop", || stop.borrow().is_some());
    lab.silence("slow0", false);
    lab.machine
        .until("the removal", || removal.borrow().is_some());
    lab.machine.until("its close", || lab.is_let_go("fast"));
    lab.machine.die();
}

#[test]
fn a_volume_that_comes_between_two_stops_of_its_set_is_taken_down_with_it() {
    // It comes by itself, or is brought by a call.
    for method in ["bdev_bcache_register", "bdev_bcache_attach"] {
        let lab = Lab::new(2, "writethrough");
        let uuid = lab.machine.uuid();
        let params = match method {
            "bdev_bcache_register" => json!({"bdev_name": "slow1"}),
            _ => json!({"name": "Vol1", "set": uuid}),
        };
        if method == "bdev_bcache_attach" {
            lab.machine
                .must("bdev_bcache_detach", json!({"name": "Vol1"}));
        }
        lab.silence("slow0", true);
        let first = lab.begin("bdev_bcache_stop_set", json!({"set": uuid}));
        lab.machine.pass(5_000_000);
        let second = lab.begin("bdev_bcache_stop_set", json!({"set": uuid}));
        lab.machine
            .until("the first stop", || first.borrow().is_some());
        let given_up = first.borrow_mut().take().expect("it has ended");
        given_up.expect_err("Vol0 does not go");
        // The set runs on, and the other call still waits for Vol0.
        lab.machine.must(method, params);
        lab.silence("slow0", false);
        lab.machine
            .until("the second stop", || second.borrow().is_some());
        let stopped = second.borrow_mut().take().expect("it has ended");
        stopped.expect("everything answers");
        assert!(lab.is_let_go("fast"), "{method}");
        let tag = lab.machine.issue("Vol1", Kind::Write, 0, vec![1; 4096], 8);
        lab.machine.until("a write", || lab.machine.has_ended(tag));
        lab.machine.die();
    }
}

#[test]
fn a_volume_on_the_cache_alone_does_not_come_up_while_it_is_deleted() {
    for turns in 0..40 {
        let (fast, slow) = (blank("fast"), blank("slow0"));
        let machine = Machine::new(&[&fast, &slow]);
        let made = machine.create("fast", "slow0", json!({"mode": "writeback"}));
        made.expect("blank devices");
        let flash = json!({"set": machine.uuid(), "name": "Fla0", "size_mb": 1});
        machine.must("bdev_bcache_create_flash_volume", flash.clone());
        assert_eq!(machine.write("Fla0", 0, 64, 7), Outcome::Success);
        let params = json!({"name": "Fla0", "discard_dirty": true});
        let delete = rpc::call(
            machine.hub.clone(),
            "bdev_bcache_delete_flash_volume",
            params,
        );
        let delete = machine.start(delete);
        (0..turns).for_each(|_| machine.turn());
        machine.register("fast").expect("its set runs");
        machine.until("the deletion", || delete.borrow().is_some());
        let deleted = delete.borrow_mut().take().expect("it has ended");
        deleted.expect("nothing has it open");
        assert_eq!(machine.host.shown(), ["Vol0"], "after {turns} turns");
        machine.must("bdev_bcache_create_flash_volume", flash);
        assert!(machine.holds("Fla0", 0, 64, 0), "after {turns} turns");
        machine.die();
    }
}

#[test]
fn a_set_that_failed_shows_no_volume_whose_entry_was_not_written() {
    let fast = blank("fast");
    let slow = blank("slow0");
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow0", json!({"mode": "writeback"}));
    made.expect("blank devices");
    fast.faults.set(Faults {
        flush: 1,
        ..Faults::default()
    });
    let flash = json!({"set": machine.uuid(), "name": "Fla0", "size_mb": 1});
    let made = machine.call("bdev_bcache_create_flash_volume", flash);
    made.expect_err("its entry is not durable");
    fast.faults.take();
    let _ = machine.register("fast");
    assert!(!machine.host.shown().contains(&"Fla0".into()));
    machine.die();
}

#[test]
fn a_backing_device_that_goes_while_its_volume_is_being_attached_is_let_go() {
    let lab = Lab::new(1, "writethrough");
    let machine = &lab.machine;
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    for busy in ["fast", "slow0"] {
        let attach = json!({"name": "Vol0", "set": machine.uuid()});
        lab.silence(busy, true);
        let attach = lab.begin("bdev_bcache_attach", attach);
        machine.pass(100_000);
        let removal = lab.begin_removal("slow0");
        machine.pass(100_000);
        lab.silence(busy, false);
        machine.until("both", || {
            attach.borrow().is_some() && removal.borrow().is_some()
        });
        assert!(attach.borrow().as_ref().is_some_and(Result::is_err));
        assert!(lab.is_let_go("slow0"), "{busy}");
        let set = machine.uuid();
        machine.register("slow0").expect("it is there again");
        if backing_super(&lab.slow[0]).set_uuid.to_string() == set {
            machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
        }
        assert!(machine.holds("Vol0", 0, 64, 7));
    }
    lab.machine.die();
}

#[test]
fn what_waits_for_a_cache_device_that_goes_fails_when_the_backing_device_goes_too() {
    for steps in 0..40 {
        let lab = Lab::new(1, "writeback");
        let machine = &lab.machine;
        let write = |at| machine.issue("Vol0", Kind::Write, at, vec![9; 4096], 8);
        let mut ios: Vec<u64> = (16..32).map(|nr| write(nr * 8)).collect();
        let cache = lab.begin_removal("fast");
        (0..steps).for_each(|_| machine.turn());
        ios.push(write(512));
        let backing = lab.begin_removal("slow0");
        machine.turn();
        ios.push(write(520));
        machine.until("the removals", || {
            cache.borrow().is_some() && backing.borrow().is_some()
        });
        assert!(ios.iter().all(|&io| machine.has_ended(io)), "{steps}");
        assert!(lab.is_let_go("fast") && lab.is_let_go("slow0"));
        lab.machine.die();
    }
}

#[test]
fn a_device_that_goes_while_it_is_being_brought_up_is_let_go() {
    for bdev in ["fast", "slow0"] {
        let lab = Lab::new(1, "writethrough");
        let machine = &lab.machine;
        let stop = json!({"set": machine.uuid()});
        machine.must("bdev_bcache_stop_set", stop);
        if bdev == "slow0" {
            machine.register("fast").expect("the set");
        }
        lab.silence(bdev, true);
        let register = lab.begin("bdev_bcache_register", json!({"bdev_name": bdev}));
        machine.pass(100_000);
        assert!(
            register.borrow().is_none() && !lab.is_let_go(bdev),
            "{bdev}"
        );
        let removal = lab.begin_removal(bdev);
        machine.pass(100_000);
        lab.silence(bdev, false);
        machine.until("both", || {
            register.borrow().is_some() && removal.borrow().is_some()
        });
        machine.pass(100_000);
        assert!(lab.is_let_go(bdev), "{bdev}");
        lab.machine.die();
    }
}

#[test]
fn a_volume_that_is_being_renamed_goes_with_its_device() {
    for bdev in ["fast", "slow0"] {
        for steps in (0..24).step_by(3) {
            let lab = Lab::new(1, "writethrough");
            let machine = &lab.machine;
            // The volume runs under another name than it wants, until that becomes free.
            machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
            let taken = blank("Vol0");
            machine.plug(&taken);
            machine.register("slow0").expect("its set runs");
            let name = machine.host.shown()[0].clone();
            assert_ne!(name, "Vol0");
            machine.host.withdraw("Vol0");
            let look_us = 1_000_000 * TICK_S;
            machine.pass(look_us - machine.sched.now_us() % look_us - 20_000);
            let mut io = 0;
            while !machine.host.is_going(&name) {
                if io == 0 || machine.has_ended(io) {
                    io = machine.issue(&name, Kind::Write, 0, vec![9; 4096], 8);
                }
                machine.turn();
            }
            (0..steps).for_each(|_| machine.turn());
            let removal = lab.begin_removal(bdev);
            machine.until("the removal", || removal.borrow().is_some());
            machine.pass(1_000_000);
            assert!(
                machine.has_ended(io) && lab.is_let_go(bdev),
                "{bdev} {steps}"
            );
            if bdev == "fast" {
                let shown = machine.host.shown();
                assert!(machine.holds(&shown[0], 8, 56, 7), "{steps}");
                assert_eq!(machine.write(&shown[0], 0, 8, 3), Outcome::Success);
            } else {
                assert!(machine.host.shown().is_empty());
            }
            lab.machine.die();
        }
    }
}

#[test]
fn a_device_that_grows_while_fronts_are_made_anew_is_used_to_its_end() {
    for attaches in [true, false] {
        for steps in (0..60).step_by(3) {
            let lab = Lab::new(1, "writethrough");
            let machine = &lab.machine;
            let params = json!({"name": "Vol0", "set": machine.uuid()});
            if attaches {
                machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
            }
            let end = machine.volume()["size_bytes"].as_u64().expect("a size") >> 9;
            let write = |at| machine.issue("Vol0", Kind::Write, at, vec![9; 4096], 8);
            let ios: Vec<u64> = (16..32).map(|nr| write(nr * 8)).collect();
            let call = match attaches {
                true => lab.begin("bdev_bcache_attach", params),
                false => lab.begin("bdev_bcache_detach", json!({"name": "Vol0"})),
            };
            (0..steps).for_each(|_| machine.turn());
            lab.slow[0].grow(2048);
            // What tells of the growth may be late.
            if steps % 4 == 0 {
                machine.until("the call", || call.borrow().is_some());
            }
            let hub = machine.hub.clone();
            machine.run(async move { hub.resized("slow0").await });
            // Hosts use the new end as soon as they are told.
            let beyond = write(end);
            machine.until("the call", || call.borrow().is_some());
            machine.until("the I/O", || ios.iter().all(|&io| machine.has_ended(io)));
            machine.until("a write", || machine.has_ended(beyond));
            let (outcome, _) = machine.ended(beyond).expect("it has ended");
            assert_eq!(outcome, Outcome::Success, "{attaches} {steps}");
            assert_eq!(
                machine.host.resized.take(),
                [("Vol0".to_string(), end + 2048)]
            );
            assert_eq!(machine.write("Vol0", end, 2048, 5), Outcome::Success);
            let volume = machine.hub.volume("Vol0").expect("it runs");
            let shared = volume.shared.borrow().clone().expect("it runs");
            assert_eq!(shared.size_sectors(), end + 2048, "{attaches} {steps}");
            drop((volume, shared));
            lab.machine.die();
        }
    }
}

#[test]
fn a_volume_comes_up_with_its_set_although_another_call_for_it_is_refused() {
    let other = blank("other");
    for steps in (0..60).step_by(2) {
        let lab = Lab::new(1, "writethrough");
        let machine = &lab.machine;
        machine.plug(&other);
        machine.must("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
        machine.register("slow0").expect("it waits");
        let register = lab.begin("bdev_bcache_register", json!({"bdev_name": "fast"}));
        machine.until("the set's start", || lab.machine.host.holds_open("fast"));
        (0..steps * 4).for_each(|_| machine.turn());
        let create = json!({"name": "Vol0", "cache_bdev": "other", "backing_bdev": "slow0"});
        let create = lab.begin("bdev_bcache_create", create);
        machine.until("both", || {
            register.borrow().is_some() && create.borrow().is_some()
        });
        assert!(create.borrow().as_ref().is_some_and(Result::is_err));
        machine.pass(1_000_000);
        assert!(machine.host.shown() == ["Vol0"], "{steps}");
        lab.machine.die();
    }
}

#[test]
fn a_volume_whose_cache_is_gone_keeps_its_name_and_reads_nothing_old() {
    let lab = Lab::new(1, "writeback");
    let machine = &lab.machine;
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    machine.plug(&blank("Vol0"));
    machine.register("slow0").expect("its set runs");
    let name = machine.host.shown()[0].clone();
    let set = |key: &str, value: Value| {
        let mut params = json!({"name": name});
        params[key] = value;
        machine.must("bdev_bcache_set_options", params);
    };
    set("writeback_running", json!(false));
    set("cache_missing_io", json!("fail"));
    assert!(machine.holds(&name, 0, 64, 7));
    let removal = lab.begin_removal("fast");
    machine.until("the removal", || removal.borrow().is_some());
    machine.host.withdraw("Vol0");
    machine.pass(3 * TICK_S * 1_000_000);
    let shown = machine.host.shown();
    assert!(machine.read(&shown[0], 0, 8).is_none(), "it is not here");
    assert_eq!(machine.write(&shown[0], 0, 8, 5), Outcome::Failed);
    let hub = machine.hub.clone();
    machine.run(async move { hub.examine("fast").await });
    assert!(machine.holds(&machine.host.shown()[0], 0, 64, 7));
    machine.pass(3 * TICK_S * 1_000_000);
    assert_eq!(machine.host.shown(), ["Vol0"]);
    assert!(machine.holds("Vol0", 0, 64, 7));
    lab.machine.die();
}

#[test]
fn a_volume_whose_cache_is_gone_gives_its_name_up_to_no_other() {
    let media: Vec<[Rc<Medium>; 2]> = (0..2)
        .map(|nr| [blank(&format!("fast{nr}")), blank(&format!("slow{nr}"))])
        .collect();
    for [fast, slow] in &media {
        let machine = Machine::new(&[fast, slow, &media[0][1]]);
        let name = |medium: &Rc<Medium>| {
            if Rc::ptr_eq(medium, &media[0][1]) {
                0
            } else {
                1
            }
        };
        let (fast, slow) = (format!("fast{}", name(slow)), format!("slow{}", name(slow)));
        let made = machine.create(&fast, &slow, json!({"mode": "writeback"}));
        made.expect("blank devices");
        let off = json!({"name": "Vol0", "writeback_running": false});
        machine.must("bdev_bcache_set_options", off);
        assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
        assert_eq!(machine.flush("Vol0"), Outcome::Success);
        machine.die();
    }
    let uuid = |nr: usize| backing_super(&media[nr][1]).uuid;
    let (first, other) = if uuid(0) > uuid(1) { (0, 1) } else { (1, 0) };
    let all: Vec<&Rc<Medium>> = media.iter().flatten().collect();
    let machine = Machine::new(&all);
    let register = |kind: &str, nr: usize| machine.register(&format!("{kind}{nr}"));
    register("fast", first).expect("a set");
    register("slow", first).expect("its volume");
    let options = json!({"name": "Vol0", "cache_missing_io": "fail", "writeback_running": false});
    machine.must("bdev_bcache_set_options", options);
    let (hub, bdev) = (machine.hub.clone(), format!("fast{first}"));
    machine.run(async move { hub.removed(&bdev).await });
    register("fast", other).expect("the other set");
    register("slow", other).expect("its volume");
    let first = machine.host.shown().into_iter().find(|name| {
        let volume = machine.hub.volume(name).expect("it runs");
        volume.uuid == uuid(first)
    });
    let first = first.expect("it stays");
    assert!(machine.read(&first, 0, 8).is_none() && machine.holds(&first, 64, 8, 0));
    assert_eq!(machine.write(&first, 0, 8, 5), Outcome::Failed);
    machine.die();
}

#[test]
fn a_call_that_waits_for_the_turn_of_its_set_holds_no_device_that_goes() {
    let calls = [
        ("bdev_bcache_detach", json!({"name": "Vol0"})),
        (
            "bdev_bcache_set_cache_mode",
            json!({"name": "Vol0", "mode": "none"}),
        ),
    ];
    for (method, params) in calls {
        let lab = Lab::new(1, "writethrough");
        let machine = &lab.machine;
        lab.silence("fast", true);
        let flash = json!({"set": machine.uuid(), "name": "Flash0", "size_mb": 1});
        let flash = lab.begin("bdev_bcache_create_flash_volume", flash);
        machine.pass(100_000);
        let call = lab.begin(method, params);
        machine.pass(100_000);
        let removal = lab.begin_removal("slow0");
        machine.pass(1_000_000);
        assert!(flash.borrow().is_none() && removal.borrow().is_some());
        assert!(lab.is_let_go("slow0"), "{method}");
        lab.silence("fast", false);
        machine.until("the calls", || {
            flash.borrow().is_some() && call.borrow().is_some()
        });
        assert!(call.borrow().as_ref().is_some_and(Result::is_err));
        lab.machine.die();
    }
}

#[test]
fn a_volume_that_was_taken_down_with_its_cache_does_not_hold_a_device_that_goes() {
    for steps in (0..40).step_by(2) {
        let lab = Lab::new(1, "writeback");
        let machine = &lab.machine;
        let always = json!({"name": "Vol0", "stop_when_cache_set_failed": "always"});
        machine.must("bdev_bcache_set_options", always);
        let cache = lab.begin_removal("fast");
        (0..steps).for_each(|_| machine.turn());
        let backing = lab.begin_removal("slow0");
        machine.until("the removals", || {
            cache.borrow().is_some() && backing.borrow().is_some()
        });
        machine.pass(1_000_000);
        assert!(lab.is_let_go("slow0") && lab.is_let_go("fast"), "{steps}");
        lab.machine.die();
    }
}
