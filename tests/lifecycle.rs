//! Volumes and their sets over time: made, given up, forgotten, missing and found again, larger and
//! smaller, torn out under I/O. What is refused is refused before anything is written, and nothing
//! dirty is given up unasked.

use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::format::superblock::{BackingState, SUPER_SECTOR};
use spdk_bcache::format::uuids::UuidEntry;
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc;
use spdk_bcache::set::hub::STOP_LIMIT_US;
use spdk_bcache::sim::disk::{Faults, Medium};
use spdk_bcache::sim::machine::{Machine, backing_super, blank};
use spdk_bcache::units::{SECTOR_BYTES, Sector, Uuid};

/// A write-back set with one volume, which writes nothing back unasked, of two blank devices.
fn running() -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    let params = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", params);
    (fast, slow, machine)
}

/// The same with 64 dirty sectors of sevens, durable.
fn dirty() -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow, machine) = running();
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    (fast, slow, machine)
}

fn refused(machine: &Machine, method: &'static str, params: Value, code: i32) -> String {
    let error = machine
        .call(method, params)
        .expect_err("it must be refused");
    assert_eq!(error.code, code, "{error:?}");
    error.message
}

fn known(machine: &Machine) -> Vec<Value> {
    let known = machine.set()["known_volumes"].clone();
    known.as_array().expect("a list").clone()
}

fn reboot(machine: Machine, media: &[&Rc<Medium>], present: &[&Rc<Medium>]) -> Machine {
    machine.lose_power(media);
    let machine = Machine::new(present);
    for medium in present {
        machine.replug(medium);
    }
    machine
}

fn create_flash(machine: &Machine, name: &str) -> Result<Value, rpc::RpcError> {
    let params = json!({"set": machine.uuid(), "name": name, "size_mb": 1});
    machine.call("bdev_bcache_create_flash_volume", params)
}

const BUSY: i32 = -16;

#[test]
fn a_flash_volume_is_removed_with_its_data_when_that_is_said() {
    let (fast, slow, machine) = running();
    create_flash(&machine, "Flash0").expect("there is room");
    assert_eq!(machine.write("Flash0", 0, 64, 7), Outcome::Success);
    let params = json!({"name": "Flash0"});
    let why = refused(&machine, "bdev_bcache_delete_flash_volume", params, BUSY);
    assert!(why.contains("discard_dirty"), "{why}");
    assert!(
        machine.holds("Flash0", 0, 64, 7),
        "what is refused changes nothing"
    );
    refused(
        &machine,
        "bdev_bcache_delete_flash_volume",
        json!({"name": "Vol0"}),
        -32602,
    );
    let params = json!({"name": "Flash0", "discard_dirty": true});
    machine.must("bdev_bcache_delete_flash_volume", params);
    assert_eq!(machine.set()["dirty_bytes"], 0);
    assert_eq!(known(&machine).len(), 1);
    let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
    assert_eq!(machine.hub.volumes().len(), 1);
    create_flash(&machine, "Flash1").expect("there is room");
    assert!(machine.holds("Flash1", 0, 64, 0), "a new volume is empty");
    machine.die();
}

#[test]
fn a_crash_while_a_flash_volume_is_removed_leaves_all_of_it_or_nothing() {
    let mut ends = [false; 2];
    for turns in (0..3000).step_by(67) {
        let (fast, slow, machine) = running();
        create_flash(&machine, "Flash0").expect("there is room");
        assert_eq!(machine.write("Flash0", 0, 64, 7), Outcome::Success);
        assert_eq!(machine.flush("Flash0"), Outcome::Success);
        let hub = machine.hub.clone();
        let removing = machine.start(async move { hub.delete_flash("Flash0", true).await });
        for _ in 0..turns {
            machine.turn();
        }
        let ended = removing.borrow().is_some();
        let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
        let there = machine.hub.volume("Flash0").is_ok();
        ends[usize::from(there)] = true;
        if there {
            assert!(!ended && machine.holds("Flash0", 0, 64, 7));
        } else {
            machine.until("the end of its data", || machine.set()["dirty_bytes"] == 0);
            create_flash(&machine, "Flash1").expect("there is room");
            assert!(machine.holds("Flash1", 0, 64, 0));
        }
        machine.die();
        if ended {
            break;
        }
    }
    assert_eq!(ends, [true; 2]);
}

#[test]
fn a_crash_while_a_flash_volume_shrinks_leaves_nothing_beyond_its_end() {
    let mut ends = [false; 2];
    for turns in (0..3000).step_by(5) {
        let (fast, slow, machine) = running();
        create_flash(&machine, "Flash0").expect("there is room");
        let resize = |machine: &Machine, size_mb: u64| {
            let params = json!({"name": "Flash0", "size_mb": size_mb, "discard_dirty": true});
            rpc::call(
                machine.hub.clone(),
                "bdev_bcache_resize_flash_volume",
                params,
            )
        };
        machine.run(resize(&machine, 2)).expect("it grows");
        for at in [0, 4000] {
            assert_eq!(machine.write("Flash0", at, 64, 7), Outcome::Success);
        }
        assert_eq!(machine.flush("Flash0"), Outcome::Success);
        let shrinking = machine.start(resize(&machine, 1));
        for _ in 0..turns {
            machine.turn();
        }
        let ended = shrinking.borrow().is_some();
        let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
        let shrank = machine.volume_of("Flash0")["size_bytes"] == 1 << 20;
        ends[usize::from(shrank)] = true;
        let kept = if shrank { 64 } else { 128 } * SECTOR_BYTES;
        machine.until("what is kept", || machine.set()["dirty_bytes"] == kept);
        assert!(machine.holds("Flash0", 0, 64, 7) && (shrank || !ended));
        machine.die();
        if ended {
            break;
        }
    }
    assert_eq!(ends, [true; 2]);
}

#[test]
fn slots_of_the_uuid_table_are_used_again_and_run_out_with_a_clear_error() {
    let (_fast, _slow, machine) = running();
    let set = machine.hub.sets()[0].clone();
    let slots = set.uuids().len();
    for i in 1..=3 {
        create_flash(&machine, &format!("Flash{i}")).expect("there is a slot");
    }
    // Volumes that will never come back.
    let gone = UuidEntry::backing(Uuid([7; 16]), [0; 32], 1);
    let filling = set.clone();
    let filled = machine.run(async move {
        let fill = |table: &mut Vec<UuidEntry>| table[4..slots].fill(gone);
        filling.change_uuids(fill).await
    });
    filled.expect("there is a bucket");
    let full = create_flash(&machine, "OneMore").expect_err("there is none");
    assert_eq!(full.code, -28);
    assert!(
        full.message.contains("bdev_bcache_forget_volume"),
        "{full:?}"
    );
    assert_eq!(machine.write("Flash3", 0, 8, 7), Outcome::Success);
    let params = json!({"name": "Flash3", "discard_dirty": true});
    machine.must("bdev_bcache_delete_flash_volume", params);
    create_flash(&machine, "OneMore").expect("its slot is free");
    let volume = machine.volume_of("OneMore");
    assert_eq!(volume["inode"], 3);
    assert!(
        machine.holds("OneMore", 0, 8, 0),
        "nothing of its predecessor is left"
    );
    machine.die();
}

#[test]
fn a_volume_runs_without_its_missing_cache_when_its_dirty_data_are_given_up() {
    let (fast, slow, machine) = dirty();
    let machine = reboot(machine, &[&fast, &slow], &[&slow]);
    let waiting = machine.volume();
    assert_eq!(
        (&waiting["running"], &waiting["state"]),
        (&json!(false), &json!("dirty"))
    );
    let before = slow.bytes();
    let why = refused(&machine, "bdev_bcache_run", json!({"name": "Vol0"}), BUSY);
    assert!(why.contains("discard_dirty"), "{why}");
    assert!(slow.bytes() == before, "what is refused is not written to");
    let params = json!({"name": "Vol0", "discard_dirty": true});
    machine.must("bdev_bcache_run", params);
    assert_eq!(backing_super(&slow).state(), BackingState::Stale);
    let volume = machine.volume();
    assert_eq!(
        (&volume["running"], &volume["state"]),
        (&json!(true), &json!("inconsistent"))
    );
    assert!(machine.holds("Vol0", 0, 64, 0));
    assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
    // Its cache comes back: what that has is old, and is not taken for its data.
    machine.replug(&fast);
    assert_eq!(known(&machine)[0]["dirty_bytes"], 64 * 512);
    assert!(machine.holds("Vol0", 0, 8, 9));
    let attach = json!({"name": "Vol0", "set": machine.uuid()});
    refused(&machine, "bdev_bcache_attach", attach.clone(), BUSY);
    let mut attach = attach;
    attach["discard_dirty"] = json!(true);
    machine.must("bdev_bcache_attach", attach);
    assert_eq!(machine.volume()["state"], "clean");
    assert!(machine.holds("Vol0", 0, 8, 9) && machine.holds("Vol0", 8, 56, 0));
    machine.die();
}

#[test]
fn a_clean_volume_runs_without_its_missing_cache_and_stays_inconsistent_over_a_restart() {
    let (fast, slow, machine) = dirty();
    machine.must("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    let params = json!({"name": "Vol0", "writeback_running": true});
    machine.must("bdev_bcache_set_options", params);
    machine.until("write-back", || {
        backing_super(&slow).state() == BackingState::Clean
    });
    // Until it is flushed, too.
    machine.pass(1_000_000);
    refused(
        &machine,
        "bdev_bcache_forget_volume",
        json!({"set": machine.uuid(), "inode": 0, "discard_dirty": true}),
        BUSY,
    );
    let machine = reboot(machine, &[&fast, &slow], &[&slow]);
    assert_eq!(machine.volume()["running"], false);
    machine.must("bdev_bcache_run", json!({"name": "Vol0"}));
    assert_eq!(machine.write("Vol0", 0, 8, 9), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
    let volume = machine.volume();
    assert_eq!(
        (&volume["running"], &volume["state"]),
        (&json!(true), &json!("inconsistent"))
    );
    machine.must(
        "bdev_bcache_attach",
        json!({"name": "Vol0", "set": machine.uuid()}),
    );
    assert!(machine.holds("Vol0", 0, 8, 9) && machine.holds("Vol0", 8, 56, 7));
    machine.die();
}

#[test]
fn a_missing_backing_device_keeps_its_dirty_data_until_it_comes_or_is_forgotten() {
    let (fast, slow, machine) = dirty();
    let machine = reboot(machine, &[&fast, &slow], &[&fast]);
    let missing = known(&machine)[0].clone();
    assert_eq!(
        (
            &missing["name"],
            &missing["attached"],
            &missing["dirty_bytes"]
        ),
        (&json!("Vol0"), &json!(false), &json!(64 * 512))
    );
    machine.replug(&slow);
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.unplug(&slow);
    assert_eq!(known(&machine)[0]["dirty_bytes"], 64 * 512);
    let mut params = json!({"set": machine.uuid(), "uuid": missing["uuid"]});
    refused(&machine, "bdev_bcache_forget_volume", params.clone(), BUSY);
    params["discard_dirty"] = json!(true);
    machine.must("bdev_bcache_forget_volume", params.clone());
    refused(&machine, "bdev_bcache_forget_volume", params, -32602);
    assert_eq!(
        (known(&machine).len(), &machine.set()["dirty_bytes"]),
        (0, &json!(0))
    );
    // Should it come back nevertheless, it is not taken for whole.
    machine.replug(&slow);
    assert!(machine.hub.volumes().iter().all(|v| !v.is_running()));
    let why = machine.register("slow").expect_err("its data are gone");
    assert!(why.message.contains("does not know it"), "{why:?}");
    let both = json!({"force": true, "discard_dirty": true});
    machine.create("fast", "slow", both).expect("it was said");
    assert!(machine.holds("Vol0", 0, 64, 0));
    machine.die();
}

#[test]
fn flash_volumes_leave_a_quarter_of_the_cache_to_others() {
    let (_fast, _slow, machine) = running();
    let create = |name: &str, size_mb: u64| {
        let params = json!({"set": machine.uuid(), "name": name, "size_mb": size_mb});
        machine.call("bdev_bcache_create_flash_volume", params)
    };
    let resize = |name: &str, size_mb: u64| {
        let params = json!({"name": name, "size_mb": size_mb});
        machine.call("bdev_bcache_resize_flash_volume", params)
    };
    let refused = create("Flash0", 32).expect_err("that is all");
    assert_eq!(refused.code, -32602);
    // 32 MiB less a journal and reserves, three quarters of it.
    assert!(refused.message.contains("room for 23 MiB"), "{refused:?}");
    create("Flash0", 20).expect("there is room");
    let refused = create("Flash1", 4).expect_err("both are too much");
    assert!(refused.message.contains("room for 3 MiB"), "{refused:?}");
    create("Flash1", 2).expect("there is room");
    resize("Flash0", 22).expect_err("both are too much");
    resize("Flash0", 21).expect("there is room");
    resize("Flash0", 1).expect("nothing was written");
    resize("Flash1", 20).expect("there is room");
    // Full of it, the other volume still is cached.
    for start in (0..20 * 2048).step_by(128) {
        assert_eq!(machine.write("Flash1", start, 128, 7), Outcome::Success);
    }
    for start in (0..8192).step_by(64) {
        assert_eq!(machine.write("Vol0", start, 64, 8), Outcome::Success);
    }
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    for _ in 0..3 {
        assert!(machine.holds("Vol0", 0, 64, 8) && machine.holds("Flash1", 640, 64, 7));
    }
    assert_eq!(machine.set()["state"], "running");
    let stats = machine.must("bdev_bcache_get_stats", json!({"name": "Vol0"}));
    assert!(stats["total"]["cache_hits"].as_u64() > Some(0), "{stats}");
    machine.die();
}

#[test]
fn a_flash_volume_grows_and_shrinks_and_never_shows_old_data() {
    let (fast, slow, machine) = running();
    create_flash(&machine, "Flash0").expect("there is room");
    let resize = |machine: &Machine, size_mb: u64, more: Value| {
        let mut params = json!({"name": "Flash0", "size_mb": size_mb});
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        machine.call("bdev_bcache_resize_flash_volume", params)
    };
    resize(&machine, 2, json!({})).expect("it grows");
    assert_eq!(machine.host.resized.take(), [("Flash0".to_string(), 4096)]);
    assert_eq!(machine.volume_of("Flash0")["size_bytes"], 2 << 20);
    assert_eq!(machine.write("Flash0", 4000, 64, 7), Outcome::Success);
    let error = resize(&machine, 1, json!({})).expect_err("there are data");
    assert_eq!(error.code, BUSY);
    resize(&machine, 1, json!({"discard_dirty": true})).expect("it was said");
    assert_eq!(machine.set()["dirty_bytes"], 0);
    assert_eq!(
        resize(&machine, 0, json!({})).expect_err("no size").code,
        -32602
    );
    let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
    assert_eq!(machine.volume_of("Flash0")["size_bytes"], 1 << 20);
    resize(&machine, 3, json!({})).expect("it grows");
    assert!(machine.holds("Flash0", 4000, 64, 0));
    let refused = machine.call(
        "bdev_bcache_resize_flash_volume",
        json!({"name": "Vol0", "size_mb": 1}),
    );
    assert_eq!(refused.expect_err("it has a backing device").code, -32602);
    machine.die();
}

#[test]
fn a_volume_grows_with_its_backing_device() {
    let (_fast, slow, machine) = dirty();
    let before = machine.volume()["size_bytes"].as_u64().expect("a size");
    slow.grow(2048);
    let hub = machine.hub.clone();
    machine.run(async move { hub.resized("slow").await });
    assert_eq!(machine.volume()["size_bytes"], before + (1 << 20));
    assert_eq!(
        machine.host.resized.take(),
        [("Vol0".to_string(), (before >> 9) + 2048)]
    );
    let end = before >> 9;
    assert_eq!(machine.write("Vol0", end, 64, 9), Outcome::Success);
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert!(machine.holds("Vol0", end, 64, 9) && machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

#[test]
fn options_come_back_with_what_they_are_of() {
    let (_fast, _slow, machine) = running();
    let uuid = machine.uuid();
    let params = json!({"set": uuid, "io_error_limit": 3, "copy_gc_enabled": false});
    machine.must("bdev_bcache_set_set_options", params);
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    machine.register("slow").expect("the volume");
    assert_eq!(machine.volume()["options"]["writeback_running"], false);
    machine.must("bdev_bcache_stop_set", json!({"set": uuid}));
    machine.register("fast").expect("the set");
    machine.register("slow").expect("the volume");
    assert_eq!(machine.volume()["options"]["writeback_running"], false);
    let options = machine.set()["options"].clone();
    assert_eq!(
        (&options["io_error_limit"], &options["copy_gc_enabled"]),
        (&json!(3), &json!(false))
    );
    assert!(machine.hub.later().volumes.is_empty() && machine.hub.later().sets.is_empty());
    machine.die();
}

#[test]
fn without_examine_devices_that_go_are_remembered() {
    let (fast, slow, machine) = dirty();
    machine.hub.examine_enabled.set(false);
    machine.unplug(&fast);
    machine.unplug(&slow);
    assert!(machine.hub.volumes().is_empty());
    machine.replug(&slow);
    machine.replug(&fast);
    assert!(machine.holds("Vol0", 0, 64, 7));
    // One that was given up in good order is not.
    machine.must("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
    let other = blank("other");
    other.poke(SUPER_SECTOR, &fast.peek(SUPER_SECTOR, 8));
    machine.replug(&fast);
    assert!(machine.hub.sets().is_empty());
    machine.die();
}

#[test]
fn a_stop_that_takes_too_long_is_given_up_and_loses_nothing() {
    let (fast, slow, machine) = dirty();
    assert_eq!(machine.write("Vol0", 64, 64, 8), Outcome::Success);
    // A read of the backing device that is never answered: the volume cannot be taken away.
    slow.stuck.set(true);
    machine.issue("Vol0", Kind::Read, 6400, vec![0; 4096], 8);
    let (hub, begun_us) = (machine.hub.clone(), machine.sched.now_us());
    machine.run(async move { hub.stop_all().await });
    assert!(machine.sched.now_us() - begun_us <= STOP_LIMIT_US + 1_000_000);
    slow.stuck.set(false);
    let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

#[test]
fn the_cache_device_may_be_torn_out_under_io() {
    let (fast, slow, machine) = dirty();
    let tags: Vec<u64> = (0..32)
        .map(|i| match i % 3 {
            0 => machine.issue("Vol0", Kind::Read, i * 8, vec![0; 4096], 8),
            1 => machine.issue("Vol0", Kind::Write, 640 + i * 8, vec![9; 4096], 8),
            _ => machine.issue("Vol0", Kind::Flush, 0, Vec::new(), 0),
        })
        .collect();
    machine.unplug(&fast);
    assert!(
        tags.iter().all(|&tag| machine.has_ended(tag)),
        "all are answered"
    );
    assert_eq!(machine.volume()["running"], false);
    machine.replug(&fast);
    assert!(machine.holds("Vol0", 0, 64, 7));
    // What no flush covered is old or new.
    for i in (0..32).filter(|i| i % 3 == 1) {
        let data = machine.read("Vol0", 640 + i * 8, 8).expect("all is well");
        assert!(data.iter().all(|&b| b == 9 || b == 0));
    }
    drop(slow);
    machine.die();
}

#[test]
fn the_backing_device_may_be_torn_out_under_io() {
    let (_fast, slow, machine) = dirty();
    machine.must(
        "bdev_bcache_set_cache_mode",
        json!({"name": "Vol0", "mode": "writethrough"}),
    );
    let tags: Vec<u64> = (0..32)
        .map(|i| match i % 4 {
            0 => machine.issue("Vol0", Kind::Read, i * 8, vec![0; 4096], 8),
            1 => machine.issue("Vol0", Kind::Write, 640 + i * 8, vec![9; 4096], 8),
            2 => machine.issue("Vol0", Kind::WriteZeroes, 1280 + i * 8, Vec::new(), 8),
            _ => machine.issue("Vol0", Kind::Flush, 0, Vec::new(), 0),
        })
        .collect();
    machine.unplug(&slow);
    assert!(
        tags.iter().all(|&tag| machine.has_ended(tag)),
        "all are answered"
    );
    assert!(machine.hub.volumes().is_empty());
    let set = machine.set();
    assert_eq!(
        (&set["state"], &set["dirty_bytes"]),
        (&json!("running"), &json!(64 * 512))
    );
    machine.replug(&slow);
    assert!(machine.holds("Vol0", 0, 64, 7));
    for (i, tag) in tags.into_iter().enumerate().filter(|(i, _)| i % 4 == 1) {
        let (outcome, _) = machine.ended(tag).expect("it has ended");
        let data = machine
            .read("Vol0", 640 + i as u64 * 8, 8)
            .expect("all is well");
        assert!(
            data.iter()
                .all(|&b| b == 9 || b == 0 && outcome == Outcome::Failed)
        );
    }
    machine.die();
}

#[test]
fn both_devices_may_be_torn_out_in_either_order_while_data_are_written_back() {
    for fast_first in [false, true] {
        let (fast, slow, machine) = dirty();
        for start in (64..4096).step_by(64) {
            assert_eq!(machine.write("Vol0", start, 64, 8), Outcome::Success);
        }
        assert_eq!(machine.flush("Vol0"), Outcome::Success);
        machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        (0..200).for_each(|_| machine.turn());
        let order = if fast_first {
            [&fast, &slow]
        } else {
            [&slow, &fast]
        };
        order.iter().for_each(|medium| machine.unplug(medium));
        assert!(machine.hub.sets().is_empty() && machine.hub.volumes().is_empty());
        order.iter().for_each(|medium| machine.replug(medium));
        assert!(machine.holds("Vol0", 0, 64, 7) && machine.holds("Vol0", 64, 4032, 8));
        slow.faults.set(Faults::default());
        machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
        assert_eq!(slow.peek(Sector(16 + 640), 1), [8; 512]);
        machine.die();
    }
}

#[test]
fn a_set_that_has_stopped_lets_its_devices_go_at_once() {
    let (_fast, _slow, machine) = running();
    let uuid = machine.uuid();
    let params = json!({"set": uuid, "journal_delay_ms": 60000});
    machine.must("bdev_bcache_set_set_options", params);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert!(machine.host.holds_open("fast") && machine.host.holds_open("slow"));
    machine.must("bdev_bcache_stop_set", json!({"set": uuid}));
    machine.pass(1_000_000);
    assert!(!machine.host.holds_open("fast") && !machine.host.holds_open("slow"));
    machine.die();
}

#[test]
fn the_uuid_table_says_when_a_volume_was_brought_up_last() {
    let (fast, slow, machine) = dirty();
    let entry = |machine: &Machine| machine.hub.sets()[0].uuids()[0];
    let made = entry(&machine);
    assert_eq!(made.first_reg, made.last_reg);
    machine.lose_power(&[&fast, &slow]);
    let machine = Machine::new(&[]);
    machine.pass(100_000_000);
    machine.replug(&fast);
    assert_eq!(entry(&machine).last_reg, made.last_reg);
    machine.replug(&slow);
    let now = entry(&machine);
    assert!(now.last_reg >= made.last_reg + 99, "{now:?}");
    assert_eq!((now.first_reg, now.uuid), (made.first_reg, made.uuid));
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.lose_power(&[&fast, &slow]);
    let machine = Machine::new(&[]);
    machine.replug(&fast);
    assert_eq!(entry(&machine).last_reg, now.last_reg, "it is durable");
    machine.die();
}

#[test]
fn what_was_filled_half_a_minute_ago_outlives_a_power_cut() {
    let (fast, slow, machine) = running();
    let hits = |machine: &Machine| {
        let stats = machine.must("bdev_bcache_get_stats", json!({"name": "Vol0"}));
        stats["total"]["cache_hits"].as_u64().expect("a count")
    };
    // More and more, so that there is always a leaf with something young.
    for second in 0..40 {
        assert!(machine.holds("Vol0", second * 64, 8, 0));
        machine.pass(1_000_000);
    }
    assert_eq!(hits(&machine), 0);
    let machine = reboot(machine, &[&fast, &slow], &[&fast, &slow]);
    for second in 0..5 {
        assert!(machine.holds("Vol0", second * 64, 8, 0));
        assert_eq!(hits(&machine), second + 1);
    }
    machine.die();
}

#[test]
fn nothing_starts_once_the_end_of_the_process_has_begun() {
    // What is under way when everything stops: a device that is examined, or a call.
    let begun: [fn(&Machine); 3] = [
        |machine| {
            let hub = machine.hub.clone();
            machine.start(async move { hub.examine("fast").await });
        },
        |machine| {
            let params = json!({"bdev_name": "fast"});
            let register = rpc::call(machine.hub.clone(), "bdev_bcache_register", params);
            machine.start(register);
        },
        |machine| {
            let params = json!({"name": "New", "cache_bdev": "fast", "backing_bdev": "other"});
            machine.start(rpc::call(machine.hub.clone(), "bdev_bcache_create", params));
        },
    ];
    for (i, begin) in begun.into_iter().enumerate() {
        for turns in 0..24 {
            let (fast, slow, other) = (blank("fast"), blank("slow"), blank("other"));
            let (fast2, slow2) = (blank("fast2"), blank("slow2"));
            let machine = Machine::new(&[&fast, &slow, &other, &fast2, &slow2]);
            let made = machine.create("fast", "slow", json!({}));
            made.expect("blank devices");
            machine.must("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
            // Another set, which takes its time to stop.
            let made = machine.create("fast2", "slow2", json!({"name": "Vol1"}));
            made.expect("blank devices");
            begin(&machine);
            (0..turns).for_each(|_| machine.turn());
            let hub = machine.hub.clone();
            assert!(machine.run(async move { hub.stop_all().await }));
            machine.pass(2_000_000);
            assert!(machine.hub.sets().is_empty(), "{i}, after {turns} turns");
            let held = ["fast", "slow", "other"].map(|bdev| machine.host.holds_open(bdev));
            assert_eq!(held, [false; 3], "{i}, after {turns} turns");
        }
    }
}
