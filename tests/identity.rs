//! Which device is which: copies, bdevs below the real one, smaller ones, absent ones, foreign ones,
//! and the names of volumes. What is refused is refused before anything is written, by every call and
//! by examine, in whichever order devices arrive.

mod fixtures;

use std::rc::Rc;

use fixtures::load;
use serde_json::{Value, json};
use spdk_bcache::disk::Disk;
use spdk_bcache::format::superblock::{BackingState, BackingSuper, SUPER_SECTOR};
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc;
use spdk_bcache::sim::disk::{Medium, SimDisk};
use spdk_bcache::sim::machine::{Machine, backing_super, blank, cache_super};
use spdk_bcache::units::{Sector, Uuid};

/// A medium with the bytes of another, under another name.
fn copy(of: &Medium, name: &str) -> Rc<Medium> {
    of.copy_as(name)
}

/// A write-back set whose volume Vol0 writes nothing back unasked, with 64 dirty sectors of sevens.
fn dirty() -> (Rc<Medium>, Rc<Medium>, Machine) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    let params = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", params);
    assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    (fast, slow, machine)
}

/// A volume without a cache under `label`, its device's UUID all `byte`.
fn labelled(name: &str, label: &str, uuid: Uuid) -> Rc<Medium> {
    let medium = blank(name);
    let mut sb = BackingSuper::new(uuid, 1, Sector(16)).expect("a superblock");
    sb.label[..label.len()].copy_from_slice(label.as_bytes());
    medium.poke(SUPER_SECTOR, &sb.encode());
    medium
}

fn stop(machine: Machine) {
    for set in machine.hub.sets() {
        let set = json!({"set": set.set_uuid().to_string()});
        machine.must("bdev_bcache_stop_set", set);
    }
    for volume in machine.hub.volumes() {
        machine.must("bdev_bcache_delete", json!({"name": volume.name()}));
    }
    machine.die();
}

/// A machine in which these devices appeared one after the other.
fn appeared(media: &[&Rc<Medium>]) -> Machine {
    let machine = Machine::new(&[]);
    media.iter().for_each(|medium| machine.replug(medium));
    machine
}

fn message(done: Result<Value, rpc::RpcError>) -> String {
    done.expect_err("it must be refused").message
}

fn listed(machine: &Machine) -> Vec<Value> {
    let all = machine.must("bdev_bcache_get_bdevs", json!({}));
    all.as_array().expect("a list").clone()
}

/// What runs: name and device, by name.
fn running(machine: &Machine) -> Vec<(String, String)> {
    let all = listed(machine).into_iter().filter(|v| v["running"] == true);
    let text = |v: &Value| v.as_str().expect("a text").to_string();
    all.map(|v| (text(&v["name"]), text(&v["backing_bdev"])))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |&(a, b): &(&str, &str)| (a.to_string(), b.to_string());
    expected.iter().map(own).collect()
}

#[test]
fn a_second_bdev_with_the_uuid_of_a_volume_is_refused_by_every_call() {
    let (fast, slow, machine) = dirty();
    let (twin, other) = (copy(&slow, "twin"), blank("fast2"));
    machine.plug(&other);
    machine.replug(&twin);
    let before = (fast.writes.get(), other.writes.get());
    let both = json!({"name": "Vol9", "force": true, "discard_dirty": true});
    let calls = [
        machine.register("twin"),
        machine.create("fast", "twin", json!({"name": "Vol9"})),
        machine.create("fast", "twin", both.clone()),
        machine.create("fast2", "twin", both),
    ];
    for done in calls {
        let why = message(done);
        let names = why.contains("twin has the UUID of volume Vol0 on slow");
        assert!(names && why.contains("new_uuid"), "{why}");
    }
    assert_eq!(twin.writes.get(), 0);
    assert_eq!((fast.writes.get(), other.writes.get()), before);
    assert_eq!(running(&machine), pairs(&[("Vol0", "slow")]));
    let left = listed(&machine)
        .into_iter()
        .find(|v| v["backing_bdev"] == "twin");
    let left = left.expect("what examine left alone is listed");
    assert!(
        left["reason"].as_str().expect("a text").contains("slow"),
        "{left}"
    );
    assert_ne!(left["name"], "Vol0");
    machine.die();
}

#[test]
fn a_copy_of_a_device_that_waits_for_its_cache_is_refused_too() {
    let (fast, slow, machine) = dirty();
    stop(machine);
    let twin = copy(&slow, "twin");
    let machine = appeared(&[&slow, &twin]);
    assert!(message(machine.register("twin")).contains("volume Vol0 on slow"));
    machine.replug(&fast);
    assert_eq!(running(&machine), pairs(&[("Vol0", "slow")]));
    assert_eq!(twin.writes.get(), 0);
    machine.die();
}

#[test]
fn a_second_copy_of_a_cache_device_is_refused() {
    let (fast, slow, machine) = dirty();
    let set = machine.uuid();
    let twin = copy(&fast, "fast2");
    machine.replug(&twin);
    machine.plug(&blank("slow2"));
    let made = machine.create("fast2", "slow2", json!({"name": "Vol9"}));
    for why in [message(machine.register("fast2")), message(made)] {
        assert!(why.contains("fast2 has the UUID of cache set"), "{why}");
        assert!(
            why.contains("on fast ") && why.contains(set.as_str().expect("a text")),
            "{why}"
        );
    }
    assert_eq!(twin.writes.get(), 0);
    assert!(machine.holds("Vol0", 0, 64, 7));
    drop(slow);
    machine.die();
}

#[test]
fn a_clean_copy_gets_a_uuid_of_its_own_and_a_dirty_one_does_not() {
    let (_fast, slow, machine) = dirty();
    let params = json!({"bdev_name": "twin", "new_uuid": true, "name": "Clone"});
    let twin = copy(&slow, "twin");
    machine.replug(&twin);
    let why = message(machine.call("bdev_bcache_register", params.clone()));
    assert!(why.contains("clean"), "{why}");
    assert_eq!(twin.writes.get(), 0);
    machine.must(
        "bdev_bcache_set_options",
        json!({"name": "Vol0", "writeback_running": true}),
    );
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    let made = machine.create("fast", "slow", json!({}));
    made.expect("attached again, clean");
    let twin = copy(&slow, "twin");
    machine.replug(&twin);
    machine.must("bdev_bcache_register", params);
    assert_eq!(
        running(&machine),
        pairs(&[("Clone", "twin"), ("Vol0", "slow")])
    );
    assert!(machine.holds("Clone", 0, 64, 7));
    let sb = backing_super(&twin);
    assert_ne!(sb.uuid, backing_super(&slow).uuid);
    assert_eq!((sb.state(), sb.set_uuid), (BackingState::None, Uuid::NIL));
    machine.die();
    // It is durable, and the same in either order.
    for media in [[&slow, &twin], [&twin, &slow]] {
        let machine = appeared(&media);
        assert_eq!(running(&machine), pairs(&[("Clone", "twin")]));
        machine.die();
    }
}

#[test]
fn a_device_that_says_clean_over_dirty_data_is_marked_dirty_and_opened() {
    let (fast, slow, machine) = dirty();
    stop(machine);
    // As a kernel's crash leaves it: keys that became clean are not in its journal.
    let mut sb = backing_super(&slow);
    sb.set_state(BackingState::Clean);
    slow.poke(SUPER_SECTOR, &sb.encode());
    let machine = appeared(&[&fast, &slow]);
    assert_eq!(running(&machine), pairs(&[("Vol0", "slow")]));
    assert_eq!(backing_super(&slow).state(), BackingState::Dirty);
    assert_eq!(machine.volume()["dirty_bytes"], 64 * 512);
    assert!(machine.holds("Vol0", 0, 64, 7));
    machine.die();
}

#[test]
fn an_older_copy_in_the_place_of_the_device_is_refused() {
    let (fast, slow, machine) = dirty();
    stop(machine);
    let old = slow.bytes();
    let machine = appeared(&[&fast, &slow]);
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    machine
        .create("fast", "slow", json!({}))
        .expect("attached again");
    for mode in ["writethrough", "writearound", "none", "writeback"] {
        let params = json!({"name": "Vol0", "mode": mode});
        machine.must("bdev_bcache_set_cache_mode", params);
    }
    stop(machine);
    let machine = appeared(&[&fast, &slow]);
    machine.pass(1_000_000);
    assert_eq!(machine.write("Vol0", 0, 64, 8), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    stop(machine);
    let rolled_back = Medium::with_bytes("slow", old, 1);
    let machine = appeared(&[&fast, &rolled_back]);
    assert_eq!(running(&machine), pairs(&[]));
    let why = message(machine.register("slow"));
    assert!(
        why.contains("older") && why.contains("discard_dirty"),
        "{why}"
    );
    assert_eq!(rolled_back.writes.get(), 0);
    stop(machine);
    for set_runs in [true, false] {
        let (fast, slow) = (copy(&fast, "fast"), copy(&rolled_back, "slow"));
        let machine = Machine::new(&[&slow]);
        match set_runs {
            true => machine.replug(&fast),
            false => machine.plug(&fast),
        }
        let said = json!({"force": true, "discard_dirty": true});
        machine.create("fast", "slow", said).expect("it was said");
        machine.die();
        // Said once, it is the device.
        let machine = appeared(&[&fast, &slow]);
        let expected = pairs(&[("Vol0", "slow")]);
        assert_eq!(running(&machine), expected, "set runs: {set_runs}");
        machine.die();
    }
}

#[test]
fn a_copy_from_before_the_last_start_is_refused_clean_or_dirty() {
    for is_dirty in [true, false] {
        let (fast, slow, machine) = dirty();
        if !is_dirty {
            let on = json!({"name": "Vol0", "writeback_running": true});
            machine.must("bdev_bcache_set_options", on);
            machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
            machine.until("write-back", || machine.volume()["state"] == "clean");
        }
        stop(machine);
        let old = Medium::with_bytes("slow", slow.bytes(), 1);
        let machine = appeared(&[&fast, &slow]);
        machine.pass(1_000_000);
        assert_eq!(machine.write("Vol0", 0, 64, 8), Outcome::Success);
        stop(machine);
        let machine = appeared(&[&fast, &old]);
        assert_eq!(running(&machine), pairs(&[]), "dirty: {is_dirty}");
        let why = message(machine.register("slow"));
        assert!(why.contains("older"), "{why}");
        assert_eq!(old.writes.get(), 0);
        let machine = appeared(&[&fast, &slow]);
        assert!(machine.holds("Vol0", 0, 64, 8));
        machine.die();
    }
}

/// The devices of a volume that ran on a bdev of kind `raid`, of a set on a bdev of kind `split`.
fn stacked() -> (Rc<Medium>, Rc<Medium>) {
    let (fast, slow) = (blank("fast"), blank("slow"));
    fast.kind.set("split");
    slow.kind.set("raid");
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
    made.expect("two blank devices");
    stop(machine);
    (fast, slow)
}

#[test]
fn examine_does_not_take_a_bdev_of_another_kind_and_register_does() {
    let (fast, slow) = stacked();
    let (base, leg) = (copy(&fast, "base"), copy(&slow, "leg"));
    base.kind.set("aio");
    leg.kind.set("aio");
    let machine = appeared(&[&base, &leg]);
    assert!(machine.hub.sets().is_empty() && machine.hub.volumes().is_empty());
    assert!(!machine.host.holds_open("leg") && !machine.host.holds_open("base"));
    let left = listed(&machine);
    let reason = |bdev: &str| {
        let found = left.iter().find(|v| v["backing_bdev"] == bdev);
        found.expect("it is listed")["reason"]
            .as_str()
            .expect("a text")
            .to_string()
    };
    assert!(reason("leg").contains("raid") && reason("leg").contains("bdev_bcache_register leg"));
    assert!(reason("base").contains("split") && reason("base").contains("aio"));
    assert_eq!(base.writes.get() + leg.writes.get(), 0);
    // The devices themselves come up, and nothing is said of their parts any more.
    machine.replug(&fast);
    machine.replug(&slow);
    assert_eq!(running(&machine), pairs(&[("Vol0", "slow")]));
    assert_eq!(listed(&machine).len(), 1);
    machine.die();
    // Whoever names a bdev has it, and it is remembered.
    let machine = appeared(&[&base, &leg]);
    machine.register("base").expect("it was named");
    machine.register("leg").expect("it was named");
    assert_eq!(running(&machine), pairs(&[("Vol0", "leg")]));
    stop(machine);
    let machine = appeared(&[&base, &leg]);
    assert_eq!(running(&machine), pairs(&[("Vol0", "leg")]));
    machine.die();
}

#[test]
fn a_smaller_bdev_is_left_alone_and_a_larger_one_is_not() {
    let (fast, slow) = stacked();
    let mut bytes = slow.bytes();
    let half = Medium::with_bytes("half", bytes[..bytes.len() / 2].to_vec(), 1);
    bytes.resize(bytes.len() * 2, 0);
    let double = Medium::with_bytes("double", bytes, 1);
    half.kind.set("raid");
    double.kind.set("raid");
    let machine = appeared(&[&fast, &half]);
    assert_eq!(running(&machine), pairs(&[]));
    machine.replug(&double);
    assert_eq!(running(&machine), pairs(&[("Vol0", "double")]));
    machine.die();
}

#[test]
fn what_a_device_ran_on_is_unknown_after_a_kernel_and_no_reason_to_refuse() {
    let mut golden = load("clean-dirty");
    let fast = Medium::with_bytes("fast", golden.cache, 1);
    let slow = Medium::with_bytes("slow", golden.backings.remove(0), 1);
    fast.kind.set("nvme");
    slow.kind.set("raid");
    assert!(cache_super(&fast).ran_on().is_none() && backing_super(&slow).ran_on().is_none());
    let machine = appeared(&[&slow, &fast]);
    assert_eq!(running(&machine).len(), 1);
    let notes = [cache_super(&fast).ran_on(), backing_super(&slow).ran_on()];
    let kinds = notes.map(|note| note.expect("it is noted").kind);
    assert_eq!(kinds, ["nvme", "raid"]);
    machine.die();
}

#[test]
fn a_volume_without_a_cache_remembers_what_it_ran_on_too() {
    let slow = labelled("slow", "Alone", Uuid([5; 16]));
    slow.kind.set("raid");
    let machine = appeared(&[&slow]);
    assert_eq!(running(&machine), pairs(&[("Alone", "slow")]));
    stop(machine);
    slow.kind.set("aio");
    let machine = appeared(&[&slow]);
    assert_eq!(running(&machine), pairs(&[]));
    machine.die();
}

#[test]
fn bdevs_that_an_option_names_are_left_alone_and_the_option_is_saved() {
    let (_fast, slow, machine) = dirty();
    stop(machine);
    let machine = Machine::new(&[]);
    let params = json!({"examine_exclude": ["alias-of-slow", "other"]});
    machine.must("bdev_bcache_set_module_options", params.clone());
    let aliases = &machine.host.aliases;
    aliases
        .borrow_mut()
        .insert("alias-of-slow".into(), "slow".into());
    machine.replug(&slow);
    assert!(machine.hub.volumes().is_empty() && listed(&machine).is_empty());
    let saved = rpc::config(&machine.hub);
    assert_eq!(saved, [("bdev_bcache_set_module_options", params)]);
    message(machine.register("slow"));
    assert_eq!(machine.hub.volumes().len(), 1, "a call takes it");
    machine.die();
}

#[test]
fn nothing_takes_the_name_of_a_volume_on_the_cache_alone_that_is_not_up() {
    let (fast, slow, blank_one) = (blank("fast"), blank("slow"), blank("blank"));
    let machine = Machine::new(&[&fast, &slow, &blank_one]);
    machine
        .create("fast", "slow", json!({}))
        .expect("blank devices");
    let flash = json!({"set": machine.uuid(), "name": "Fla0", "size_mb": 1});
    machine.must("bdev_bcache_create_flash_volume", flash.clone());
    assert_eq!(machine.write("Fla0", 0, 8, 5), Outcome::Success);
    machine.must("bdev_bcache_delete", json!({"name": "Fla0"}));
    let refused = [
        machine.create("fast", "blank", json!({"name": "Fla0"})),
        machine.create(
            "fast",
            "blank",
            json!({"name": "Fla0", "discard_dirty": true}),
        ),
        machine.call("bdev_bcache_create_flash_volume", flash),
    ];
    for answer in refused {
        let error = answer.expect_err("Fla0 has data");
        assert!(error.message.contains("lives there alone"), "{error:?}");
    }
    assert_eq!(blank_one.writes.get(), 0);
    machine.register("fast").expect("its set runs");
    assert!(machine.holds("Fla0", 0, 8, 5));
    machine.die();
}

#[test]
fn a_blank_disk_does_not_take_the_name_of_an_absent_volume_with_dirty_data() {
    let (fast, slow, machine) = dirty();
    stop(machine);
    let (new, fast2) = (blank("new"), blank("fast2"));
    for set_runs in [true, false] {
        let machine = Machine::new(&[&new, &fast2]);
        match set_runs {
            true => machine.replug(&fast),
            false => machine.plug(&fast),
        }
        // Of this set, or of another one that runs.
        let caches: &[&str] = if set_runs {
            &["fast", "fast2"]
        } else {
            &["fast"]
        };
        for cache in caches {
            let why = message(machine.create(cache, "new", json!({"force": true})));
            let uuid = backing_super(&slow).uuid.to_string();
            assert!(
                why.contains(&uuid) && why.contains("32768 dirty bytes"),
                "{why}"
            );
            assert!(
                why.contains("discard_dirty") && why.contains("forget_volume"),
                "{why}"
            );
        }
        assert_eq!(new.writes.get() + fast2.writes.get(), 0);
        machine.die();
    }
    let machine = appeared(&[&fast]);
    let set = machine.uuid();
    let params = json!({"set": set, "name": "Vol0", "size_mb": 1});
    let why = message(machine.call("bdev_bcache_create_flash_volume", params));
    assert!(why.contains("absent"), "{why}");
    machine.plug(&new);
    let said = json!({"discard_dirty": true});
    machine.create("fast", "new", said).expect("it was said");
    let known = machine.set()["known_volumes"].clone();
    assert_eq!(known.as_array().expect("a list").len(), 1, "{known}");
    machine.die();
}

#[test]
fn another_name_or_no_dirty_data_is_no_reason_to_refuse() {
    let (fast, _slow, machine) = dirty();
    stop(machine);
    let machine = appeared(&[&fast]);
    machine.plug(&blank("new"));
    let made = machine.create("fast", "new", json!({"name": "Vol1"}));
    made.expect("another name");
    machine.die();
}

#[test]
fn data_that_begin_within_a_block_of_the_device_are_refused() {
    for (offset, block) in [(17, 8), (20, 8), (17, 2)] {
        let slow = Medium::new("slow", 65536, block);
        let sb = BackingSuper::new(Uuid([5; 16]), 8, Sector(offset)).expect("a superblock");
        slow.poke(SUPER_SECTOR, &sb.encode());
        let machine = Machine::new(&[&slow, &blank("fast")]);
        let registered = message(machine.register("slow"));
        let made = message(machine.create("fast", "slow", json!({})));
        for why in [registered, made] {
            assert!(why.contains("slow") && why.contains("multiple"), "{why}");
        }
        assert_eq!(slow.writes.get(), 0);
        machine.die();
    }
    // Where the device's blocks are small it is right.
    let slow = Medium::new("slow", 65536, 1);
    let sb = BackingSuper::new(Uuid([5; 16]), 8, Sector(17)).expect("a superblock");
    slow.poke(SUPER_SECTOR, &sb.encode());
    let machine = Machine::new(&[&slow, &blank("fast")]);
    machine.create("fast", "slow", json!({})).expect("it fits");
    assert_eq!(machine.write("Vol0", 0, 8, 7), Outcome::Success);
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert_eq!(slow.peek(Sector(17), 8), vec![7; 4096]);
    machine.die();
}

#[test]
fn a_device_with_larger_blocks_than_the_superblock_says_is_refused_of_either_kind() {
    let (fast, slow, machine) = dirty();
    stop(machine);
    let fast = Medium::with_bytes("fast", fast.bytes(), 8);
    let slow = Medium::with_bytes("slow", slow.bytes(), 8);
    let machine = Machine::new(&[&fast, &slow]);
    for bdev in ["fast", "slow"] {
        let why = message(machine.register(bdev));
        assert!(why.contains("blocks of 4096 bytes"), "{why}");
    }
    let why = message(machine.create("fast", "slow", json!({})));
    assert!(why.contains("blocks of 4096 bytes"), "{why}");
    assert_eq!(fast.writes.get() + slow.writes.get(), 0);
    machine.die();
}

/// A volume whose sectors 0 to 63 and 65,000 to 65,063 are dirty, stopped; its backing device of 65,536
/// sectors, the first 16 of which are its own.
fn dirty_at_the_end() -> (Rc<Medium>, Rc<Medium>) {
    let (fast, slow, machine) = dirty();
    assert_eq!(machine.write("Vol0", 65_000, 64, 8), Outcome::Success);
    assert_eq!(machine.flush("Vol0"), Outcome::Success);
    stop(machine);
    (fast, slow)
}

fn shrunk(slow: &Medium, sectors: usize) -> Rc<Medium> {
    Medium::with_bytes("slow", slow.bytes()[..sectors * 512].to_vec(), 1)
}

#[test]
fn a_volume_whose_dirty_data_lie_beyond_its_device_starts_only_when_that_is_said() {
    let (fast, slow) = dirty_at_the_end();
    // 32 of the 64 sectors are beyond the end.
    let cut = shrunk(&slow, 65_048);
    let machine = appeared(&[&fast, &cut]);
    let volume = machine.volume();
    assert_eq!(
        (&volume["name"], &volume["running"]),
        (&json!("Vol0"), &json!(false))
    );
    assert_eq!(volume["dirty_bytes_beyond_end"], 32 * 512);
    for method in ["bdev_bcache_run", "bdev_bcache_detach"] {
        let why = message(machine.call(method, json!({"name": "Vol0"})));
        assert!(why.contains("16384 dirty bytes beyond"), "{method}: {why}");
        assert!(
            why.contains("65048") && why.contains("accept_size"),
            "{method}: {why}"
        );
    }
    let why = message(machine.register("slow"));
    assert!(why.contains("16384 dirty bytes beyond"), "{why}");
    assert_eq!(cut.writes.get(), 0);
    let params = json!({"name": "Vol0", "accept_size": true});
    machine.must("bdev_bcache_run", params);
    machine.must(
        "bdev_bcache_set_options",
        json!({"name": "Vol0", "writeback_running": true}),
    );
    machine.pass(20_000_000);
    // What fits is written back, across the end too; the rest stays.
    assert_eq!(cut.peek(Sector(16), 64), vec![7; 64 * 512]);
    assert_eq!(cut.peek(Sector(65_016), 32), vec![8; 32 * 512]);
    let volume = machine.volume();
    assert_eq!(volume["dirty_bytes"], 32 * 512);
    assert_eq!(backing_super(&cut).state(), BackingState::Dirty);
    let why = message(machine.call("bdev_bcache_detach", json!({"name": "Vol0"})));
    assert!(why.contains("16384 dirty bytes beyond"), "{why}");
    stop(machine);
    // With the size they return.
    let mut bytes = cut.bytes();
    bytes.resize(65_536 * 512, 0);
    let grown = Medium::with_bytes("slow", bytes, 1);
    let machine = appeared(&[&fast, &grown]);
    assert!(machine.holds("Vol0", 65_000, 64, 8));
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert_eq!(grown.peek(Sector(65_016), 64), vec![8; 64 * 512]);
    machine.die();
}

#[test]
fn dirty_data_beyond_the_end_are_given_up_when_that_is_said() {
    let (fast, slow) = dirty_at_the_end();
    let cut = shrunk(&slow, 65_000);
    let machine = appeared(&[&fast, &cut]);
    machine.must(
        "bdev_bcache_run",
        json!({"name": "Vol0", "accept_size": true}),
    );
    let params = json!({"name": "Vol0", "discard_dirty": true});
    machine.must("bdev_bcache_detach", params);
    assert_eq!(cut.peek(Sector(16), 64), vec![7; 64 * 512]);
    assert_eq!(machine.volume()["state"], "no cache");
    assert_eq!(machine.set()["dirty_bytes"], 0);
    machine.die();
}

#[test]
fn a_device_that_shrinks_under_a_running_volume_keeps_its_dirty_data_on_the_cache() {
    let (fast, slow) = dirty_at_the_end();
    let machine = appeared(&[&fast, &slow]);
    let params = json!({"name": "Vol0", "writeback_running": false});
    machine.must("bdev_bcache_set_options", params);
    slow.shrink(65_048);
    let hub = machine.hub.clone();
    machine.run(async move { hub.resized("slow").await });
    assert_eq!(machine.volume()["dirty_bytes_beyond_end"], 32 * 512);
    machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
    machine.pass(20_000_000);
    let volume = machine.volume();
    assert_eq!(
        (&volume["dirty_bytes"], &volume["running"]),
        (&json!(32 * 512), &json!(true))
    );
    let why = message(machine.call("bdev_bcache_detach", json!({"name": "Vol0"})));
    assert!(why.contains("beyond"), "{why}");
    assert!(machine.holds("Vol0", 65_000, 64, 8));
    machine.die();
}

#[test]
fn of_two_labels_alike_the_lower_uuid_has_the_name_in_either_order() {
    let (low, high) = (Uuid([1; 16]), Uuid([9; 16]));
    for order in [[0, 1], [1, 0]] {
        let media = [labelled("a", "Same", low), labelled("b", "Same", high)];
        let machine = appeared(&order.map(|i| &media[i]));
        let expected = pairs(&[("Same", "a"), ("Same-09090909", "b")]);
        assert_eq!(running(&machine), expected);
        let other = machine.volume_of("Same-09090909");
        assert!(
            other["reason"].as_str().expect("a text").contains("Same"),
            "{other}"
        );
        // The name becomes free.
        machine.must("bdev_bcache_delete", json!({"name": "Same"}));
        machine.pass(30_000_000);
        assert_eq!(running(&machine), pairs(&[("Same", "b")]));
        machine.die();
    }
}

#[test]
fn a_volume_that_a_host_has_open_keeps_its_name() {
    let media = [
        labelled("a", "Same", Uuid([1; 16])),
        labelled("b", "Same", Uuid([9; 16])),
    ];
    let machine = appeared(&[&media[1]]);
    machine.host.open.borrow_mut().insert("Same".into());
    machine.replug(&media[0]);
    let expected = pairs(&[("Same", "b"), ("Same-01010101", "a")]);
    assert_eq!(running(&machine), expected);
    machine.die();
}

#[test]
fn a_label_like_another_bdev_or_its_own_device_gives_a_longer_name() {
    let other = blank("Same");
    let own = labelled("own", "own", Uuid([2; 16]));
    let same = labelled("b", "Same", Uuid([1; 16]));
    let machine = appeared(&[&other, &own, &same]);
    let expected = pairs(&[("Same-01010101", "b"), ("own-02020202", "own")]);
    assert_eq!(running(&machine), expected);
    // A call gives it another, for good.
    machine.must("bdev_bcache_delete", json!({"name": "own-02020202"}));
    let params = json!({"bdev_name": "own", "name": "Mine"});
    machine.must("bdev_bcache_register", params);
    assert_eq!(machine.volume_of("Mine")["running"], true);
    machine.die();
    let machine = appeared(&[&own]);
    assert_eq!(running(&machine), pairs(&[("Mine", "own")]));
    machine.die();
}

#[test]
fn the_same_first_digits_of_two_uuids_give_one_of_them_the_whole() {
    let (low, mut high) = (Uuid([1; 16]), Uuid([1; 16]));
    high.0[15] = 2;
    for order in [[0, 1], [1, 0]] {
        let media = [labelled("a", "", low), labelled("b", "", high)];
        let machine = appeared(&order.map(|i| &media[i]));
        let names: Vec<(String, String)> = running(&machine);
        assert_eq!(names[0], ("bcache-01010101".to_string(), "a".to_string()));
        assert!(
            names[1].0.len() > names[0].0.len() && names[1].1 == "b",
            "{names:?}"
        );
        machine.die();
    }
}

#[test]
fn a_magic_number_in_another_programs_superblock_is_other_data() {
    let sb = BackingSuper::new(Uuid([5; 16]), 1, Sector(16)).expect("a superblock");
    // Zeros where bcache says where it stands; a version of another's, under either checksum.
    let mut zero_offset = sb.encode();
    zero_offset[8..16].fill(0);
    let mut version = sb.encode();
    version[16..24].copy_from_slice(&0x0400_0409_u64.to_le_bytes());
    let mut resealed = version;
    spdk_bcache::format::superblock::reseal(&mut resealed);
    for bytes in [zero_offset, version, resealed] {
        let other = blank("other");
        other.poke(SUPER_SECTOR, &bytes);
        let machine = appeared(&[&other]);
        machine.plug(&blank("fast"));
        assert!(listed(&machine).is_empty());
        let calls = [
            machine.register("other"),
            machine.create("fast", "other", json!({})),
        ];
        for why in calls.map(message) {
            assert!(why.contains("other holds other data"), "{why}");
            let advice = ["damaged", "bad superblock", "force", "format"];
            assert!(!advice.iter().any(|word| why.contains(word)), "{why}");
        }
        let made = machine.create("other", "fast", json!({}));
        assert!(message(made).contains("other data"));
        assert_eq!(other.writes.get(), 0);
        machine
            .create("fast", "other", json!({"force": true}))
            .expect("it was said");
        machine.die();
    }
}

#[test]
fn an_alias_is_the_bdev_that_it_names() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[]);
    let alias = |machine: &Machine| {
        let mut aliases = machine.host.aliases.borrow_mut();
        aliases.insert("lvs/fast".into(), "fast".into());
        aliases.insert("lvs/slow".into(), "slow".into());
    };
    machine.plug(&fast);
    machine.plug(&slow);
    alias(&machine);
    for cache in ["lvs/fast", "fast"] {
        for backing in ["lvs/slow", "slow"] {
            let made = machine.create(cache, backing, json!({}));
            assert_eq!(made.expect("the same devices"), "Vol0");
        }
    }
    let why = message(machine.create("fast", "lvs/fast", json!({"name": "Vol1"})));
    assert!(why.contains("at once"), "{why}");
    machine.register("lvs/slow").expect("it runs already");
    machine.die();
    // What is waited for by an alias comes up, in a start of its own again and again.
    for _ in 0..2 {
        let machine = Machine::new(&[]);
        machine.hub.examine_enabled.set(false);
        for bdev in ["lvs/fast", "lvs/slow"] {
            let params = json!({"bdev_name": bdev, "when_up": true});
            machine.must("bdev_bcache_register", params);
        }
        alias(&machine);
        machine.replug(&fast);
        machine.replug(&slow);
        assert_eq!(running(&machine), pairs(&[("Vol0", "slow")]));
        assert!(machine.hub.later().bdevs.is_empty());
        machine.die();
    }
    let name = SimDisk::new(slow.clone(), Machine::new(&[]).sched.clone()).name();
    assert_eq!(name, "slow");
}
