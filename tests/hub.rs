//! The lifecycle of sets and volumes in the simulator: what is refused, what is lost only when that
//! is said, in which order things reach the disks. The data are what Linux left in the fixtures.

mod fixtures;

use std::cell::Cell;
use std::rc::Rc;

use fixtures::{load, pattern};
use serde_json::{Value, json};
use spdk_bcache::disk::Disk;
use spdk_bcache::format::superblock::{BackingState, SUPER_SECTOR};
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rng::Rng;
use spdk_bcache::rpc;
use spdk_bcache::set::error::SetError;
use spdk_bcache::sim::check::offline;
use spdk_bcache::sim::device::Silence;
use spdk_bcache::sim::disk::{Fault, Fuse, Medium, SimDisk};
use spdk_bcache::sim::machine::{Machine, backing_super, blank, cache_super};
use spdk_bcache::units::{Inode, Sector};

/// The devices of a set that has dirty data: cache and backing.
fn dirty_pair() -> (Rc<Medium>, Rc<Medium>, Vec<u32>) {
    let mut golden = load("clean-dirty");
    let cache = Medium::with_bytes("fast", golden.cache, 1);
    let backing = Medium::with_bytes("slow", golden.backings.remove(0), 1);
    (cache, backing, golden.expected.remove(0))
}

#[test]
fn dirty_data_of_another_set_are_not_lost_unasked() {
    let (_, slow, _) = dirty_pair();
    let (fast2, slow2) = (blank("fast2"), blank("slow2"));
    let machine = Machine::new(&[&slow, &fast2, &slow2]);
    let made = machine.create("fast2", "slow2", json!({"name": "Other"}));
    made.expect("a volume of two blank devices");
    let set = machine.set()["set"].clone();
    let missing = machine.register("slow").expect_err("its cache is not here");
    assert!(missing.message.contains("is not running"), "{missing:?}");
    let waiting = machine.hub.volumes();
    let waiting = waiting
        .iter()
        .find(|v| v.name() != "Other")
        .expect("it waits");
    let before = slow.bytes();
    let attach = json!({"name": waiting.name(), "set": set});
    let refused = machine
        .call("bdev_bcache_attach", attach)
        .expect_err("dirty");
    assert!(refused.message.contains("is not running"), "{refused:?}");
    for more in [
        json!({}),
        json!({"discard_dirty": true}),
        json!({"force": true}),
    ] {
        let refused = machine.create("fast2", "slow", more).expect_err("dirty");
        assert!(refused.message.contains("dirty data"), "{refused:?}");
    }
    assert!(slow.bytes() == before, "what is refused is not written to");
    let both = json!({"force": true, "discard_dirty": true});
    let made = machine.create("fast2", "slow", both);
    made.expect("it was said twice");
    let names: Vec<String> = machine.hub.volumes().iter().map(|v| v.name()).collect();
    assert_eq!(names, ["Other", "Vol0"]);
    assert_eq!(backing_super(&slow).state(), BackingState::Clean);
    assert_eq!(json!(backing_super(&slow).set_uuid.to_string()), set);
}

#[test]
fn a_volume_that_waits_is_created_under_a_new_name_and_keeps_its_data() {
    let (fast, slow, _) = dirty_pair();
    let machine = Machine::new(&[&fast, &slow]);
    machine.register("slow").expect_err("it waits");
    let made = machine.create("fast", "slow", Value::Null);
    made.expect("its own set");
    let volume = machine.volume();
    assert_eq!(volume["name"], "Vol0");
    assert_eq!(volume["running"], true);
    assert!(volume["dirty_bytes"].as_u64() > Some(0), "{volume}");
    let again = machine.create("fast", "slow", Value::Null);
    assert_eq!(again.expect("nothing to do"), "Vol0");
}

#[test]
fn detaching_says_so_on_disk_before_the_cache_is_passed_by() {
    let (fast, slow, expected) = dirty_pair();
    let machine = Machine::new(&[&fast, &slow]);
    let said: Rc<Cell<Option<BackingState>>> = Rc::default();
    {
        let (said, slow) = (said.clone(), slow.clone());
        let look = move |cached: bool| {
            if !cached {
                said.set(Some(backing_super(&slow).state()));
            }
        };
        *machine.host.on_replace.borrow_mut() = Some(Box::new(look));
    }
    let made = machine.create("fast", "slow", Value::Null);
    made.expect("its own set");
    let params = json!({"name": "Vol0"});
    let done = machine.call("bdev_bcache_detach", params);
    done.expect("the devices work");
    assert_eq!(said.get(), Some(BackingState::None));
    assert_eq!(machine.volume()["state"], "no cache");
    let offset = backing_super(&slow).data_offset.0;
    for (sector, &version) in expected.iter().enumerate() {
        let found = slow.peek(Sector(offset + sector as u64), 1);
        let right = found == pattern(sector as u64, version);
        assert!(right, "sector {sector} is not what it was");
    }
    // Running uncached, it is taken into its set again by create.
    let made = machine.create("fast", "slow", Value::Null);
    made.expect("attached again");
    assert_eq!(machine.volume()["state"], "clean");
    assert_eq!(machine.set()["cached_extents"], 0);
}

#[test]
fn a_crash_while_detaching_leaves_no_keys_that_seem_to_hold() {
    for turns in (0..20_000).step_by(331) {
        let (fast, slow, _) = dirty_pair();
        let machine = Machine::new(&[&fast, &slow]);
        let made = machine.create("fast", "slow", Value::Null);
        made.expect("its own set");
        let detaching = {
            let hub = machine.hub.clone();
            machine.start(async move { hub.detach("Vol0", false).await.is_ok() })
        };
        for _ in 0..turns {
            machine.turn();
        }
        let ended = detaching.borrow().is_some();
        machine.die();
        let rng = Rng::new(turns);
        for medium in [&fast, &slow] {
            medium.crash(&rng, true);
        }
        offline(&fast, &[Some(slow.clone())]).expect("nothing wrong on the devices");
        let machine = Machine::new(&[&fast, &slow]);
        machine.register("fast").expect("the set");
        machine.register("slow").expect("the volume");
        if backing_super(&slow).state() == BackingState::None {
            assert_eq!(machine.volume()["set"], Value::Null);
            let params = json!({"name": "Vol0", "set": machine.set()["set"]});
            let done = machine.call("bdev_bcache_attach", params);
            done.expect("its old set takes it");
            // Clean keys of an entry that was given up may be left; of this one there are none.
            let inode = machine.volume()["inode"].as_u64().expect("a number");
            let mut found = 0;
            let set = machine.hub.sets().remove(0);
            let inode = Inode(inode as u32);
            set.tree.scan(inode, Sector(0), Sector::MAX, &mut |_| {
                found += 1;
                true
            });
            assert_eq!(found, 0, "turn {turns}");
        } else {
            assert!(!ended, "it was detached, and is not");
            assert_ne!(machine.volume()["set"], Value::Null);
        }
        machine.die();
        if ended {
            return;
        }
    }
    panic!("detaching never ended");
}

#[test]
fn a_name_that_is_taken_is_found_out_before_anything_is_written() {
    let (fast, slow, other) = (blank("fast"), blank("slow"), blank("Vol0"));
    let machine = Machine::new(&[&fast, &slow, &other]);
    let refused = machine.create("fast", "slow", Value::Null);
    let refused = refused.expect_err("there is a bdev of that name");
    assert!(refused.message.contains("Vol0"), "{refused:?}");
    assert_eq!(fast.writes.get() + slow.writes.get(), 0);
}

#[test]
fn a_set_that_cannot_be_opened_is_formatted_only_when_that_is_said_twice() {
    let (fast, slow, _) = dirty_pair();
    let sb = cache_super(&fast);
    let old = sb.set_uuid;
    for bucket in &sb.journal_buckets {
        let at = Sector(u64::from(bucket.0) * u64::from(sb.bucket_sectors));
        fast.poke(at, &vec![0; sb.bucket_sectors as usize * 512]);
    }
    let before = (fast.bytes(), slow.bytes());
    let machine = Machine::new(&[&fast, &slow]);
    for more in [
        json!({}),
        json!({"force": true}),
        json!({"discard_dirty": true}),
    ] {
        let refused = machine
            .create("fast", "slow", more)
            .expect_err("no journal");
        assert!(refused.message.contains("journal"), "{refused:?}");
    }
    assert!(
        (fast.bytes(), slow.bytes()) == before,
        "refused, and written to"
    );
    let both = json!({"force": true, "discard_dirty": true});
    machine.create("fast", "slow", both).expect("it was said");
    assert_ne!(cache_super(&fast).set_uuid, old);
    assert_eq!(machine.volume()["dirty_bytes"], 0);
}

#[test]
fn volumes_wait_for_a_cache_device_that_goes_and_comes_back() {
    let (fast, slow, _) = dirty_pair();
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", Value::Null);
    made.expect("its own set");
    let before = machine.volume()["dirty_bytes"].clone();
    let always = json!({"name": "Vol0", "stop_when_cache_set_failed": "always"});
    machine.must("bdev_bcache_set_options", always);
    let hub = machine.hub.clone();
    machine.run(async move { hub.removed("fast").await });
    let volume = machine.volume();
    assert_eq!(
        (&volume["name"], &volume["running"]),
        (&json!("Vol0"), &json!(false))
    );
    assert_eq!(volume["state"], "dirty");
    assert!(machine.host.shown().is_empty());
    let hub = machine.hub.clone();
    machine.run(async move { hub.examine("fast").await });
    let volume = machine.volume();
    assert_eq!(
        (&volume["running"], &volume["dirty_bytes"]),
        (&json!(true), &before)
    );
}

#[test]
fn what_is_said_of_things_to_come_holds_when_they_come() {
    let (fast, slow, _) = dirty_pair();
    let machine = Machine::new(&[]);
    let set = json!(cache_super(&fast).set_uuid.to_string());
    machine.hub.examine_enabled.set(false);
    let calls = [
        ("bdev_bcache_register", json!({"bdev_name": "fast"})),
        ("bdev_bcache_register", json!({"bdev_name": "slow"})),
        (
            "bdev_bcache_set_options",
            json!({"name": "Vol0", "writeback_running": false, "writeback_percent": 7, "io_error_limit": 9}),
        ),
        (
            "bdev_bcache_set_set_options",
            json!({"set": set, "journal_delay_ms": 5}),
        ),
    ];
    for (method, params) in calls {
        let mut params = params;
        let refused = machine.call(method, params.clone());
        assert_eq!(refused.expect_err("nothing is there").code, -19);
        params["when_up"] = json!(true);
        let kept = machine.call(method, params);
        assert_eq!(kept.expect("it is kept"), true);
    }
    let saved = rpc::config(&machine.hub);
    assert_eq!(saved.len(), 5, "{saved:?}");
    // The label is what the volume is called.
    let mut sb = backing_super(&slow);
    sb.label[..4].copy_from_slice(b"Vol0");
    slow.poke(SUPER_SECTOR, &sb.encode());
    for medium in [&slow, &fast] {
        machine.plug(medium);
        let (hub, name) = (
            machine.hub.clone(),
            SimDisk::new(medium.clone(), machine.sched.clone()),
        );
        machine.run(async move { hub.examine(&name.name()).await });
    }
    let options = machine.volume()["options"].clone();
    let wanted = json!({
        "writeback_running": false, "writeback_percent": 7, "io_error_limit": 9, "io_disable": false,
        "stop_when_cache_set_failed": "auto", "cache_missing_io": "wait",
        "cache_missing_timeout_s": 600,
    });
    assert_eq!(options, wanted);
    assert_eq!(machine.set()["options"]["journal_delay_ms"], 5);
    assert!(machine.hub.later().bdevs.is_empty());
    // What runs is saved as what was to come.
    let sorted = |mut calls: Vec<(&'static str, Value)>| {
        calls.sort_by_key(|(method, params)| format!("{method} {params}"));
        calls
    };
    assert_eq!(sorted(rpc::config(&machine.hub)), sorted(saved));
}

#[test]
fn options_out_of_range_are_refused_before_they_are_kept() {
    let machine = Machine::new(&[]);
    let params = json!({"name": "Vol0", "writeback_percent": 41, "when_up": true});
    let refused = machine.call("bdev_bcache_set_options", params);
    assert_eq!(refused.expect_err("41 %").code, -32602);
    let params = json!({"set": "no uuid", "journal_delay_ms": 5, "when_up": true});
    let refused = machine.call("bdev_bcache_set_set_options", params);
    assert_eq!(refused.expect_err("no UUID").code, -32602);
    assert!(machine.hub.later().volumes.is_empty());
    assert!(matches!(
        machine.hub.volume("Vol0"),
        Err(SetError::NoVolume(_))
    ));
}

/// A fault of each device's n-th operation, while `job` runs.
fn with_fault<T>(media: &[&Rc<Medium>], nth: u64, job: impl FnOnce() -> T) -> (T, bool) {
    let fault = Fault {
        operation: nth,
        lasting: false,
    };
    let fuse = Fuse::with(fault);
    for medium in media {
        *medium.fuse.borrow_mut() = Some(fuse.clone());
    }
    let done = job();
    fuse.disarm();
    (done, fuse.operations() > nth)
}

#[test]
fn a_start_that_failed_holds_no_device_and_works_when_it_is_tried_again() {
    let (fast, slow, _) = dirty_pair();
    let bytes = [fast.bytes(), slow.bytes()];
    let mut failed = 0;
    for nth in 0.. {
        let fast = Medium::with_bytes("fast", bytes[0].clone(), 1);
        let slow = Medium::with_bytes("slow", bytes[1].clone(), 1);
        let machine = Machine::new(&[&fast, &slow]);
        let (done, met) = with_fault(&[&fast], nth, || machine.register("fast"));
        if let Err(error) = done {
            failed += 1;
            assert!(machine.hub.sets().is_empty(), "operation {nth}: {error:?}");
            assert!(
                !machine.host.holds_open("fast"),
                "operation {nth}: {error:?}"
            );
            machine.register("fast").expect("a second try");
        }
        // What failed may have been a task of the set that has started.
        machine.pass(1_000_000);
        if machine.set()["state"] == "failed" {
            let stopped = machine.call("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
            stopped.expect_err("it had failed");
            machine.register("fast").expect("a new start");
        }
        machine.register("slow").expect("its set runs");
        assert_eq!(machine.volume()["running"], true, "operation {nth}");
        let hub = machine.hub.clone();
        assert!(
            machine.run(async move { hub.stop_all().await }),
            "operation {nth}"
        );
        assert!(!machine.host.holds_open("fast") && !machine.host.holds_open("slow"));
        if !met {
            break;
        }
    }
    assert!(failed > 5, "only {failed} operations of a start failed it");
}

#[test]
fn a_create_that_failed_anywhere_works_when_it_is_called_again() {
    let mut failed = 0;
    for nth in 0.. {
        let (fast, slow) = (blank("fast"), blank("slow"));
        let machine = Machine::new(&[&fast, &slow]);
        let create = || machine.create("fast", "slow", json!({"mode": "writeback"}));
        let (done, met) = with_fault(&[&fast, &slow], nth, create);
        if let Err(error) = done {
            failed += 1;
            let listed = !machine.hub.sets().is_empty();
            assert_eq!(machine.host.holds_open("fast"), listed, "{nth}: {error:?}");
            machine.create("fast", "slow", Value::Null).expect("again");
            assert_eq!(machine.volume()["running"], true, "operation {nth}");
        }
        let hub = machine.hub.clone();
        assert!(
            machine.run(async move { hub.stop_all().await }),
            "operation {nth}"
        );
        if !met {
            break;
        }
    }
    assert!(failed > 5, "only {failed} operations of a create failed it");
}

#[test]
fn a_stop_or_a_detachment_that_failed_leaves_nothing_that_hangs() {
    for method in [
        "bdev_bcache_stop_set",
        "bdev_bcache_detach",
        "bdev_bcache_delete",
    ] {
        for nth in 0.. {
            let (fast, slow) = (blank("fast"), blank("slow"));
            let machine = Machine::new(&[&fast, &slow]);
            let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
            made.expect("blank devices");
            assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
            assert_eq!(machine.flush("Vol0"), Outcome::Success);
            let params = match method {
                "bdev_bcache_stop_set" => json!({"set": machine.uuid()}),
                _ => json!({"name": "Vol0"}),
            };
            let (_, met) = with_fault(&[&fast, &slow], nth, || machine.call(method, params));
            let hub = machine.hub.clone();
            assert!(
                machine.run(async move { hub.stop_all().await }),
                "{method} {nth}"
            );
            assert!(!machine.host.holds_open("fast") && !machine.host.holds_open("slow"));
            machine.die();
            let machine = Machine::new(&[&fast, &slow]);
            let hub = machine.hub.clone();
            machine.run(async move {
                hub.examine("fast").await;
                hub.examine("slow").await;
            });
            assert!(machine.holds("Vol0", 0, 64, 7), "{method} {nth}");
            if !met {
                break;
            }
        }
    }
}

/// Two sets, one of which has a backing device that answers nothing.
fn stuck_beside_sound() -> (Machine, Rc<Silence>) {
    let media = ["fast0", "slow0", "fast1", "slow1"].map(blank);
    let machine = Machine::new(&media.each_ref());
    let made = machine.create("fast0", "slow0", json!({"mode": "writeback"}));
    made.expect("blank devices");
    let made = machine.create(
        "fast1",
        "slow1",
        json!({"name": "Vol1", "mode": "writeback"}),
    );
    made.expect("blank devices");
    let off = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", off);
    for name in ["Vol0", "Vol1"] {
        assert_eq!(machine.write(name, 0, 64, 5), Outcome::Success);
    }
    let slow = machine.host.silence("slow0");
    slow.set(true);
    (machine, slow)
}

#[test]
fn a_device_that_never_answers_holds_up_its_own_set_alone() {
    let (machine, slow) = stuck_beside_sound();
    let detach = rpc::call(
        machine.hub.clone(),
        "bdev_bcache_detach",
        json!({"name": "Vol0"}),
    );
    let detaching = machine.start(detach);
    machine.pass(2_000_000);
    let mode = |name: &str| json!({"name": name, "mode": "writethrough"});
    machine.must("bdev_bcache_set_cache_mode", mode("Vol1"));
    machine.must("bdev_bcache_detach", json!({"name": "Vol1"}));
    machine
        .create("fast1", "slow1", json!({"name": "Vol1"}))
        .expect("attached again");
    let hub = machine.hub.clone();
    machine.run(async move {
        hub.removed("slow1").await;
    });
    machine.until("the volume away", || machine.hub.volume("Vol1").is_err());
    let hub = machine.hub.clone();
    machine.run(async move { hub.examine("slow1").await });
    assert_eq!(machine.volume_of("Vol1")["running"], true);
    assert!(detaching.borrow().is_none());
    slow.set(false);
    machine.die();
}

#[test]
fn a_shutdown_gives_up_what_does_not_stop_and_stops_the_rest_in_good_order() {
    let (machine, _slow) = stuck_beside_sound();
    let detach = rpc::call(
        machine.hub.clone(),
        "bdev_bcache_detach",
        json!({"name": "Vol0"}),
    );
    let _detaching = machine.start(detach);
    machine.pass(2_000_000);
    let set = machine
        .hub
        .volume("Vol1")
        .expect("it runs")
        .link
        .borrow()
        .clone();
    let set = set.expect("it is attached").set;
    let (hub, began_us) = (machine.hub.clone(), machine.sched.now_us());
    assert!(!machine.run(async move { hub.stop_all().await }));
    assert!(machine.sched.now_us() - began_us < 31_000_000);
    assert!(set.is_stopped() && set.latch.check().is_ok());
    machine.die();
}

#[test]
fn a_detachment_can_be_asked_after_and_cancelled() {
    let (machine, slow) = stuck_beside_sound();
    machine
        .hub
        .detach_start("Vol0", false)
        .expect("it is attached");
    machine.pass(2_000_000);
    let volume = machine.hub.volume("Vol0").expect("it runs");
    assert!(volume.detaching.is_running());
    let refused = machine.call(
        "bdev_bcache_attach",
        json!({"name": "Vol0", "set": machine.volume_of("Vol0")["set"]}),
    );
    assert!(
        refused
            .expect_err("it leaves")
            .message
            .contains("being detached")
    );
    volume.detaching.cancel();
    machine.until("the end", || !volume.detaching.is_running());
    assert!(
        volume
            .detaching
            .failure()
            .is_some_and(|why| why.contains("cancelled"))
    );
    slow.set(false);
    // It goes on in its mode, and can be detached later.
    assert_eq!(machine.write("Vol0", 64, 64, 6), Outcome::Success);
    assert!(machine.volume_of("Vol0")["dirty_bytes"].as_u64() >= Some(64 * 512));
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(machine.holds("Vol0", 0, 64, 5) && machine.holds("Vol0", 64, 64, 6));
    machine.die();
}

#[test]
fn unregistering_a_set_can_be_cancelled() {
    let (machine, slow) = stuck_beside_sound();
    let uuid = machine.volume_of("Vol0")["set"].clone();
    let set = machine
        .hub
        .set(uuid.as_str().expect("text"))
        .expect("it runs");
    machine
        .hub
        .unregister_start(uuid.as_str().expect("text"))
        .expect("it runs");
    machine.pass(2_000_000);
    assert!(set.unregistering.is_running());
    machine
        .hub
        .unregister_cancel(uuid.as_str().expect("text"))
        .expect("it runs");
    machine.until("the end", || !set.unregistering.is_running());
    slow.set(false);
    assert_eq!(machine.volume_of("Vol0")["running"], true);
    assert!(machine.holds("Vol0", 0, 64, 5));
    machine.must("bdev_bcache_unregister_set", json!({"set": uuid}));
    assert_eq!(machine.volume_of("Vol0")["state"], "no cache");
    assert!(machine.holds("Vol0", 0, 64, 5));
    machine.die();
}

#[test]
fn a_start_waits_for_its_volumes_and_not_for_dead_ones() {
    let (fast, slow, _) = dirty_pair();
    let machine = Machine::new(&[&slow]);
    machine.register("slow").expect_err("its cache is not here");
    let name = machine.volume()["name"].as_str().expect("text").to_string();
    let wait = |name: &str| {
        let params = json!({"name": name, "uuid": "00000000-0000-4000-8000-000000000001"});
        rpc::call(machine.hub.clone(), "bdev_bcache_wait_for_volume", params)
    };
    let waiting = machine.start(wait(&name));
    machine.turn();
    assert!(waiting.borrow().is_none());
    machine.plug(&fast);
    let hub = machine.hub.clone();
    machine.run(async move { hub.examine("fast").await });
    machine.until("the wait", || waiting.borrow().is_some());
    assert_eq!(machine.volume()["running"], true);
    // All that never come cost one wait together.
    let began_us = machine.sched.now_us();
    for dead in ["Dead0", "Dead1", "Dead2"] {
        assert_eq!(machine.run(wait(dead)).expect("it goes on"), true);
    }
    let took_us = machine.sched.now_us() - began_us;
    assert!((9_000_000..11_000_000).contains(&took_us), "{took_us}");
    assert_eq!(machine.hub.absentees().len(), 3);
    assert_eq!(machine.run(wait(&name)).expect("it is up"), true);
    machine.die();
}

#[test]
fn calls_about_a_volume_that_is_being_made_wait_for_it() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let call = |method, params| machine.start(rpc::call(machine.hub.clone(), method, params));
    let devices = json!({"name": "Vol0", "cache_bdev": "fast", "backing_bdev": "slow"});
    let calls = [
        call("bdev_bcache_create", devices),
        call("bdev_bcache_detach", json!({"name": "Vol0"})),
        call("bdev_bcache_delete", json!({"name": "Vol0"})),
    ];
    machine.until("all calls", || calls.iter().all(|c| c.borrow().is_some()));
    for nth in [0, 2] {
        assert!(
            calls[nth]
                .borrow()
                .as_ref()
                .is_some_and(|done| done.is_ok())
        );
    }
    assert!(machine.hub.volumes().is_empty() && machine.host.shown().is_empty());
    machine.die();
}
