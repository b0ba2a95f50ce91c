//! A volume in use gets another name: its hosts notice nothing, its disk says so before the answer,
//! and a call that is refused or fails leaves the name that it has, everywhere.

use std::cell::RefCell;
use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::format::superblock::{BackingSuper, SUPER_SECTOR};
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc::{self, RpcError};
use spdk_bcache::set::host::Host;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{Machine, backing_super, blank};
use spdk_bcache::stats::TICK_S;
use spdk_bcache::units::{Sector, Uuid};

type Call = Rc<RefCell<Option<Result<Value, RpcError>>>>;

/// A write-back set with a volume Vol0, which has dirty data that stay dirty.
struct Lab {
    fast: Rc<Medium>,
    slow: Rc<Medium>,
    machine: Machine,
}

impl Lab {
    fn new() -> Lab {
        let (fast, slow) = (blank("fast"), blank("slow"));
        let machine = Machine::new(&[&fast, &slow]);
        let made = machine.create("fast", "slow", json!({"mode": "writeback"}));
        made.expect("two blank devices");
        let params = json!({"name": "Vol0", "writeback_running": false});
        machine.must("bdev_bcache_set_options", params);
        assert_eq!(machine.write("Vol0", 0, 64, 7), Outcome::Success);
        assert_eq!(machine.flush("Vol0"), Outcome::Success);
        Lab {
            fast,
            slow,
            machine,
        }
    }

    /// With a second volume, Vol1 on slow1.
    fn with_other() -> (Lab, Rc<Medium>) {
        let (lab, other) = (Lab::new(), blank("slow1"));
        lab.machine.plug(&other);
        let more = json!({"name": "Vol1", "mode": "writeback"});
        let made = lab.machine.create("fast", "slow1", more);
        made.expect("a blank device");
        (lab, other)
    }

    fn begin(&self, method: &'static str, params: Value) -> Call {
        let hub = self.machine.hub.clone();
        self.machine.start(rpc::call(hub, method, params))
    }

    fn begin_rename(&self, new: &str) -> Call {
        let params = json!({"name": "Vol0", "new_name": new});
        self.begin("bdev_bcache_rename", params)
    }

    fn end(&self, call: &Call) -> Result<Value, RpcError> {
        self.machine.until("the call", || call.borrow().is_some());
        call.borrow_mut().take().expect("it has ended")
    }

    fn make_clean(&self) {
        let machine = &self.machine;
        let on = json!({"name": "Vol0", "writeback_running": true});
        machine.must("bdev_bcache_set_options", on);
        machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        machine.until("write-back", || machine.volume()["state"] == "clean");
    }

    fn silence(&self, bdev: &str, silent: bool) {
        self.machine.host.silence(bdev).set(silent);
    }

    /// As [`after_a_cut`](Self::after_a_cut), with its volume up before the set has a free bucket.
    fn after_a_cut_without_buckets(self) -> Machine {
        self.machine.lose_power(&[&self.fast, &self.slow]);
        let machine = Machine::new(&[]);
        machine.replug(&self.slow);
        machine.replug(&self.fast);
        machine
    }

    /// The same devices after a power cut, examined by another machine.
    fn after_a_cut(self) -> Machine {
        let media = [&self.fast, &self.slow];
        self.machine.lose_power(&media);
        let machine = Machine::new(&[]);
        media.iter().for_each(|medium| machine.replug(medium));
        machine
    }
}

fn rename(machine: &Machine, name: &str, new: &str) -> Result<Value, RpcError> {
    machine.call("bdev_bcache_rename", json!({"name": name, "new_name": new}))
}

fn message(done: Result<Value, RpcError>) -> String {
    done.expect_err("it must be refused").message
}

fn names(machine: &Machine) -> Vec<String> {
    let all = machine.must("bdev_bcache_get_bdevs", json!({}));
    let all = all.as_array().expect("a list").clone();
    let name = |v: Value| v["name"].as_str().expect("a text").to_string();
    all.into_iter().map(name).collect()
}

fn label(medium: &Medium) -> String {
    let label = backing_super(medium).label;
    let text = String::from_utf8_lossy(&label);
    text.trim_end_matches('\0').to_string()
}

/// What the set says a volume was called, by its place in the table.
fn known_name(machine: &Machine, inode: usize) -> Value {
    machine.set()["known_volumes"][inode]["name"].clone()
}

#[test]
fn a_volume_in_use_keeps_its_hosts_and_what_they_have_under_way() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.silence("slow", true);
    let call = lab.begin_rename("Fresh");
    let mut ios = Vec::new();
    for nr in 0..20 {
        ios.push(machine.issue("Vol0", Kind::Write, 64 + nr * 8, vec![9; 4096], 8));
        machine.turn();
    }
    lab.silence("slow", false);
    assert_eq!(lab.end(&call), Ok(json!(true)));
    for io in ios {
        machine.until("a write", || machine.has_ended(io));
        assert_eq!(machine.ended(io).expect("it has").0, Outcome::Success);
    }
    assert_eq!(names(machine), ["Fresh"]);
    assert!(machine.holds("Fresh", 0, 64, 7) && machine.holds("Fresh", 64, 160, 9));
    assert_eq!(machine.host.shown(), ["Fresh"]);
    assert_eq!(label(&lab.slow), "Fresh");
    assert_eq!(known_name(machine, 0), "Fresh");
    let machine = lab.after_a_cut();
    assert_eq!(names(&machine), ["Fresh"]);
    assert!(machine.holds("Fresh", 0, 64, 7));
    machine.die();
}

#[test]
fn the_old_name_finds_the_volume_and_is_nobody_elses_until_it_is_taken_down() {
    let lab = Lab::new();
    let machine = &lab.machine;
    rename(machine, "Vol0", "Fresh").expect("a free name");
    let found = || machine.host.resolve("Vol0");
    assert_eq!(found().as_deref(), Some("Fresh"));
    let other = blank("slow1");
    machine.plug(&other);
    let more = || json!({"name": "Vol0", "mode": "writeback"});
    let why = message(machine.create("fast", "slow1", more()));
    assert!(why.contains("is taken"), "{why}");
    assert_eq!(other.writes.get(), 0);
    machine.must("bdev_bcache_delete", json!({"name": "Fresh"}));
    assert_eq!(found(), None);
    let made = machine.create("fast", "slow1", more());
    made.expect("the name is free");
    machine.register("slow").expect("its set runs");
    assert_eq!(names(machine), ["Fresh", "Vol0"]);
    lab.machine.die();
}

#[test]
fn a_volume_gets_a_name_back_that_it_had() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let steps = ["A", "B", "Vol0", "A", "A", "B", "Vol0"];
    let mut name = "Vol0";
    for new in steps {
        rename(machine, name, new).expect("it is its own");
        name = new;
        assert_eq!(names(machine), [name]);
        assert_eq!(label(&lab.slow), name);
        for had in ["Vol0", "A"] {
            assert_eq!(machine.host.resolve(had).as_deref(), Some(name));
        }
    }
    assert!(machine.holds("Vol0", 0, 64, 7));
    lab.machine.die();
}

#[test]
fn a_name_that_is_another_ones_or_none_is_refused_before_anything_is_written() {
    let (lab, other) = Lab::with_other();
    let machine = &lab.machine;
    let third = blank("Disk");
    machine.plug(&third);
    let written = || {
        (
            lab.fast.writes.get(),
            lab.slow.writes.get(),
            other.writes.get(),
        )
    };
    machine.pass(1_000_000);
    let before = written();
    let long = "x".repeat(33);
    let refused = [
        ("Vol1", "is taken"),
        ("Disk", "is taken"),
        ("slow", "is taken"),
        ("", "new_name"),
        ("a b", "new_name"),
        ("line\nbreak", "new_name"),
        (&long, "new_name"),
    ];
    for (new, says) in refused {
        let why = message(rename(machine, "Vol0", new));
        assert!(why.contains(says), "{new:?}: {why}");
    }
    let why = message(rename(machine, "Nobody", "Fresh"));
    assert!(why.contains("Nobody"), "{why}");
    assert_eq!(names(machine), ["Vol0", "Vol1"]);
    assert_eq!(written(), before);
    lab.machine.die();
}

#[test]
fn the_name_of_an_absent_volume_with_dirty_data_is_refused() {
    let (lab, _other) = Lab::with_other();
    let machine = &lab.machine;
    let off = json!({"name": "Vol1", "writeback_running": false});
    machine.must("bdev_bcache_set_options", off);
    rename(machine, "Vol1", "Away").expect("a free name");
    assert_eq!(machine.write("Away", 0, 8, 5), Outcome::Success);
    machine.must("bdev_bcache_delete", json!({"name": "Away"}));
    let why = message(rename(machine, "Vol0", "Away"));
    assert!(why.contains("dirty bytes of an absent volume"), "{why}");
    rename(machine, "Vol0", "Vol1").expect("nothing of that name is left");
    machine.register("slow1").expect("its set runs");
    assert_eq!(names(machine), ["Away", "Vol1"]);
    lab.machine.die();
}

#[test]
fn a_volume_on_the_cache_alone_is_renamed_in_its_sets_table() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let params = json!({"set": machine.uuid(), "name": "Fla0", "size_mb": 1});
    machine.must("bdev_bcache_create_flash_volume", params);
    assert_eq!(machine.write("Fla0", 0, 8, 3), Outcome::Success);
    rename(machine, "Fla0", "Flint").expect("a free name");
    assert!(machine.holds("Flint", 0, 8, 3));
    assert_eq!(machine.flush("Flint"), Outcome::Success);
    assert_eq!(machine.volume_of("Flint")["kind"], "flash");
    let machine = lab.after_a_cut();
    assert_eq!(names(&machine), ["Flint", "Vol0"]);
    assert!(machine.holds("Flint", 0, 8, 3));
    machine.die();
}

#[test]
fn a_volume_whose_device_takes_no_label_keeps_its_name() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let flaws = machine.host.flaws("slow");
    flaws.unwritable.borrow_mut().push((Sector(0), Sector(16)));
    message(rename(machine, "Vol0", "Fresh"));
    assert_eq!(names(machine), ["Vol0"]);
    assert_eq!(machine.host.shown(), ["Vol0"]);
    assert!(!machine.host.is_taken("Fresh"));
    machine.mend();
    rename(machine, "Vol0", "Fresh").expect("it takes writes again");
    assert_eq!(label(&lab.slow), "Fresh");
    lab.machine.die();
}

#[test]
fn a_name_that_is_taken_while_the_label_is_written_is_given_back() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.silence("slow", true);
    let call = lab.begin_rename("Fresh");
    machine.pass(10_000);
    machine.plug(&blank("Fresh"));
    lab.silence("slow", false);
    let why = message(lab.end(&call));
    assert!(why.contains("is taken"), "{why}");
    assert_eq!(names(machine), ["Vol0"]);
    assert_eq!(label(&lab.slow), "Vol0");
    assert!(machine.holds("Vol0", 0, 64, 7));
    lab.machine.die();
}

#[test]
fn a_volume_that_goes_while_it_is_renamed_is_taken_down() {
    for bdev in ["fast", "slow"] {
        for steps in (0..20).step_by(2) {
            let lab = Lab::new();
            let machine = &lab.machine;
            let call = lab.begin_rename("Fresh");
            (0..steps).for_each(|_| machine.turn());
            let (hub, removed) = (machine.hub.clone(), bdev);
            let removal = machine.start(async move { hub.removed(removed).await });
            machine.until("the removal", || removal.borrow().is_some());
            let done = lab.end(&call);
            machine.pass(1_000_000);
            assert!(!machine.host.holds_open(bdev), "{bdev} {steps}: {done:?}");
            let shown = machine.host.shown();
            let name = if done.is_ok() { "Fresh" } else { "Vol0" };
            match bdev {
                "fast" => assert_eq!(shown, [name], "{steps}: {done:?}"),
                _ => assert!(shown.is_empty(), "{steps}: {done:?}"),
            }
            lab.machine.die();
        }
    }
}

#[test]
fn a_call_that_waits_for_its_turn_follows_the_volume_to_its_new_name() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.silence("slow", true);
    let call = lab.begin_rename("Fresh");
    machine.pass(10_000);
    let mode = json!({"name": "Vol0", "mode": "writethrough"});
    let mode = lab.begin("bdev_bcache_set_cache_mode", mode);
    let detach = lab.begin("bdev_bcache_detach", json!({"name": "Vol0"}));
    machine.pass(10_000);
    lab.silence("slow", false);
    lab.end(&call).expect("a free name");
    lab.end(&mode).expect("the same volume");
    let on = json!({"name": "Fresh", "writeback_running": true});
    machine.must("bdev_bcache_set_options", on);
    lab.end(&detach).expect("the same volume");
    assert_eq!(machine.volume_of("Fresh")["set"], Value::Null);
    assert_eq!(machine.volume_of("Fresh")["cache_mode"], "writethrough");
    assert!(machine.holds("Fresh", 0, 64, 7));
    lab.machine.die();
}

#[test]
fn a_volume_is_renamed_while_it_is_detached_or_its_set_unregistered() {
    for method in ["bdev_bcache_detach", "bdev_bcache_unregister_set"] {
        let lab = Lab::new();
        let machine = &lab.machine;
        let params = match method {
            "bdev_bcache_detach" => json!({"name": "Vol0"}),
            _ => json!({"set": machine.uuid()}),
        };
        lab.silence("slow", true);
        let job = lab.begin(method, params);
        machine.pass(100_000);
        lab.silence("slow", false);
        machine.pass(10);
        let renamed = rename(machine, "Vol0", "Fresh");
        assert!(renamed.is_ok(), "{method}: {renamed:?}");
        lab.end(&job).expect("the same volume");
        assert_eq!(names(machine), ["Fresh"], "{method}");
        assert!(machine.holds("Fresh", 0, 64, 7));
        assert_eq!(label(&lab.slow), "Fresh");
        lab.machine.die();
    }
}

#[test]
fn a_volume_that_waits_for_its_set_comes_up_under_its_new_name() {
    let lab = Lab::new();
    let (fast, slow) = (lab.fast.clone(), lab.slow.clone());
    lab.machine.lose_power(&[&fast, &slow]);
    let machine = Machine::new(&[]);
    machine.replug(&slow);
    assert_eq!(machine.volume()["running"], false);
    let options = json!({"name": "Vol0", "writeback_running": false, "when_up": true});
    machine.must("bdev_bcache_set_options", options);
    rename(&machine, "Vol0", "Fresh").expect("a free name");
    assert_eq!(label(&slow), "Fresh");
    assert_eq!(machine.host.shown(), [""; 0]);
    machine.replug(&fast);
    machine.until("the volume", || machine.volume()["running"] == true);
    assert_eq!(names(&machine), ["Fresh"]);
    assert!(machine.holds("Fresh", 0, 64, 7));
    assert_eq!(known_name(&machine, 0), "Fresh");
    let options = &machine.volume()["options"];
    assert_eq!(options["writeback_running"], false, "kept for it");
    machine.die();
}

#[test]
fn a_volume_without_its_cache_is_renamed_and_has_it_again() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let stays =
        json!({"name": "Vol0", "stop_when_cache_set_failed": "auto", "cache_missing_io": "wait"});
    machine.must("bdev_bcache_set_options", stays);
    machine.unplug(&lab.fast);
    machine.pass(1_000_000);
    let read = machine.issue("Vol0", Kind::Read, 0, vec![0; 4096], 8);
    machine.pass(1_000_000);
    assert!(!machine.has_ended(read), "its data are on the cache");
    rename(machine, "Vol0", "Fresh").expect("a free name");
    machine.replug(&lab.fast);
    machine.until("the read", || machine.has_ended(read));
    assert_eq!(machine.ended(read), Some((Outcome::Success, vec![7; 4096])));
    assert_eq!(names(machine), ["Fresh"]);
    assert_eq!(machine.volume()["dirty_bytes"], 64 * 512);
    machine.pass(1_000_000);
    assert_eq!(
        known_name(machine, 0),
        "Fresh",
        "noted once a bucket was free"
    );
    lab.machine.die();
}

#[test]
fn a_volume_under_a_longer_name_has_the_one_it_is_given_and_no_reason() {
    let lab = Lab::new();
    let machine = &lab.machine;
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    machine.plug(&blank("Vol0"));
    machine.register("slow").expect("its set runs");
    let long = names(machine)[0].clone();
    assert!(long.starts_with("Vol0-"), "{long}");
    assert_ne!(machine.volume()["reason"], Value::Null);
    rename(machine, &long, "Fresh").expect("a free name");
    assert_eq!(machine.volume()["reason"], Value::Null);
    machine.host.withdraw("Vol0");
    machine.pass(60_000_000);
    assert_eq!(names(machine), ["Fresh"]);
    let kept = lab.slow.writes.get();
    rename(machine, "Fresh", "Fresh").expect("it is its name");
    assert_eq!(lab.slow.writes.get(), kept, "nothing changes");
    lab.machine.die();
}

#[test]
fn of_two_calls_for_one_name_one_gets_it() {
    let (lab, _other) = Lab::with_other();
    let machine = &lab.machine;
    let calls = ["Vol0", "Vol1"].map(|name| {
        let params = json!({"name": name, "new_name": "Fresh"});
        lab.begin("bdev_bcache_rename", params)
    });
    let done = calls.map(|call| lab.end(&call).is_ok());
    assert_eq!(done, [true, false]);
    assert_eq!(names(machine), ["Fresh", "Vol1"]);
    lab.machine.die();
}

#[test]
fn a_volume_that_is_resized_behind_its_renaming_has_its_size() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let params = json!({"set": machine.uuid(), "name": "Fla0", "size_mb": 1});
    machine.must("bdev_bcache_create_flash_volume", params);
    lab.silence("fast", true);
    let params = json!({"name": "Fla0", "new_name": "Flint"});
    let call = lab.begin("bdev_bcache_rename", params);
    machine.pass(10_000);
    let sizes = [2, 1].map(|size_mb| {
        let params = json!({"name": "Fla0", "size_mb": size_mb});
        lab.begin("bdev_bcache_resize_flash_volume", params)
    });
    machine.pass(10_000);
    lab.silence("fast", false);
    lab.end(&call).expect("a free name");
    for call in sizes {
        lab.end(&call).expect("the same volume");
    }
    let told = [4096, 2048].map(|sectors| ("Flint".to_string(), sectors));
    assert_eq!(*machine.host.resized.borrow(), told);
    lab.machine.die();
}

#[test]
fn a_volume_that_is_run_behind_its_renaming_needs_its_old_name_no_more() {
    let lab = Lab::new();
    let slow = lab.slow.clone();
    lab.machine.lose_power(&[&lab.fast, &slow]);
    let machine = Machine::new(&[]);
    machine.replug(&slow);
    let lab = Lab {
        fast: lab.fast,
        slow,
        machine,
    };
    let machine = &lab.machine;
    lab.silence("slow", true);
    let call = lab.begin_rename("Fresh");
    machine.pass(10_000);
    let params = json!({"name": "Vol0", "discard_dirty": true});
    let run = lab.begin("bdev_bcache_run", params);
    machine.pass(10_000);
    machine.plug(&blank("Vol0"));
    lab.silence("slow", false);
    lab.end(&call).expect("a free name");
    lab.end(&run).expect("the same volume");
    assert_eq!(machine.volume_of("Fresh")["running"], true);
    lab.machine.die();
}

#[test]
fn options_that_wait_for_the_new_name_are_the_volumes() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let options = json!({"name": "Fresh", "writeback_percent": 40, "when_up": true});
    machine.must("bdev_bcache_set_options", options);
    rename(machine, "Vol0", "Fresh").expect("a free name");
    let options = &machine.volume()["options"];
    assert_eq!(options["writeback_percent"], 40);
    assert_eq!(options["writeback_running"], false, "it had that");
    assert!(machine.hub.later().volumes.is_empty());
    // Of one that waits, its own are not forgotten.
    machine.unplug(&lab.fast);
    machine.must(
        "bdev_bcache_set_options",
        json!({"name": "Other", "writeback_percent": 30, "when_up": true}),
    );
    rename(machine, "Fresh", "Other").expect("a free name");
    machine.replug(&lab.fast);
    machine.until("its cache", || machine.volume()["set"] != Value::Null);
    let options = &machine.volume()["options"];
    assert_eq!(options["writeback_percent"], 30);
    assert_eq!(options["writeback_running"], false);
    lab.machine.die();
}

#[test]
fn a_device_with_that_label_that_appears_meanwhile_comes_up() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.silence("slow", true);
    let call = lab.begin_rename("Fresh");
    machine.pass(10_000);
    labelled(machine, "slow1", "Fresh", [5; 16]);
    assert_eq!(names(machine), ["Fresh-05050505", "Vol0"]);
    // Who names a volume so is told to try again.
    machine.must("bdev_bcache_delete", json!({"name": "Fresh-05050505"}));
    let params = json!({"bdev_name": "slow1", "name": "Fresh"});
    let why = message(machine.call("bdev_bcache_register", params));
    assert!(why.contains("try again"), "{why}");
    let params = json!({"set": machine.uuid(), "name": "Fresh", "size_mb": 1});
    let flash = lab.begin("bdev_bcache_create_flash_volume", params);
    lab.silence("slow", false);
    lab.end(&call).expect("a free name");
    message(lab.end(&flash));
    assert_eq!(names(machine), ["Fresh"]);
    lab.machine.die();
}

/// A device without a cache that appears, with a label.
fn labelled(machine: &Machine, bdev: &str, label: &str, uuid: [u8; 16]) {
    let medium = blank(bdev);
    let mut sb = BackingSuper::new(Uuid(uuid), 1, Sector(16)).expect("a superblock");
    sb.label[..label.len()].copy_from_slice(label.as_bytes());
    medium.poke(SUPER_SECTOR, &sb.encode());
    machine.replug(&medium);
}

/// The lowest UUID.
const LOW: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn a_volume_that_went_on_without_its_cache_is_noted_when_it_has_it_again() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.make_clean();
    machine.unplug(&lab.fast);
    rename(machine, "Vol0", "Fresh").expect("a free name");
    machine.replug(&lab.fast);
    machine.until("its cache", || machine.volume()["set"] != Value::Null);
    machine.pass(2_000_000);
    assert_eq!(known_name(machine, 0), "Fresh");
    assert_noted(&lab.machine, &lab.slow);
    lab.machine.die();
}

/// The first entry of the set's table has the sequence number of a device.
fn assert_noted(machine: &Machine, medium: &Medium) {
    let noted = machine.hub.sets()[0].uuids()[0].backing_seq;
    assert_eq!(noted, backing_super(medium).seq);
}

#[test]
fn a_volume_that_gives_its_name_up_is_noted_all_the_same() {
    let lab = Lab::new();
    let slow = lab.slow.clone();
    let machine = lab.after_a_cut_without_buckets();
    labelled(&machine, "low", "Vol0", LOW);
    assert_eq!(machine.volume_of("Vol0")["backing_bdev"], "low");
    machine.pass(2_000_000);
    assert_noted(&machine, &slow);
    machine.die();
}

/// A volume that runs under a longer name, because a device has the one that it wants.
fn longer(lab: &Lab) -> String {
    let machine = &lab.machine;
    machine.plug(&blank("Same"));
    labelled(machine, "slow1", "Same", [9; 16]);
    assert_eq!(names(machine)[0], "Same-09090909");
    machine.host.withdraw("Same");
    names(machine)[0].clone()
}

/// Goes on until the bdev of a volume is about to go, with I/O under way.
fn until_it_goes(machine: &Machine, name: &str) {
    let (exec, tick_us) = (machine.exec.clone(), TICK_S * 1_000_000);
    let rest_us = tick_us - machine.sched.now_us() % tick_us - 500;
    machine.run(async move { exec.sleep_us(rest_us).await });
    for _ in 0..10_000 {
        if machine.host.is_going(name) {
            return;
        }
        machine.issue(name, Kind::Read, 0, vec![0; 4096], 8);
        machine.turn();
    }
    panic!("{name} keeps its name");
}

#[test]
fn a_name_that_a_volume_is_about_to_have_is_refused() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let long = longer(&lab);
    until_it_goes(machine, &long);
    let call = lab.begin_rename("Same");
    message(lab.end(&call));
    assert_eq!(names(machine), ["Same", "Vol0"]);
    assert_eq!(machine.host.shown(), ["Same", "Vol0"]);
    lab.machine.die();
}

#[test]
fn a_volume_whose_name_is_taken_while_it_is_about_to_have_it_keeps_the_one_it_has() {
    let lab = Lab::new();
    let machine = &lab.machine;
    let long = longer(&lab);
    until_it_goes(machine, &long);
    machine.plug(&blank("Same"));
    machine.pass(1_000_000);
    assert_eq!(machine.host.shown(), [&*long, "Vol0"]);
    assert_ne!(machine.volume_of(&long)["reason"], Value::Null);
    machine.host.withdraw("Same");
    machine.pass(30_000_000);
    assert_eq!(machine.host.shown(), ["Same", "Vol0"]);
    lab.machine.die();
}

#[test]
fn a_call_that_waits_follows_a_volume_that_gives_its_name_up() {
    let lab = Lab::new();
    let machine = &lab.machine;
    labelled(machine, "high", "Same", [9; 16]);
    lab.silence("slow", true);
    let mode = json!({"name": "Vol0", "mode": "writethrough"});
    let mode = lab.begin("bdev_bcache_set_cache_mode", mode);
    machine.pass(10_000);
    let attach = json!({"name": "Same", "set": machine.set()["set"]});
    let attach = lab.begin("bdev_bcache_attach", attach);
    machine.pass(10_000);
    labelled(machine, "low", "Same", LOW);
    assert_eq!(machine.volume_of("Same")["backing_bdev"], "low");
    lab.silence("slow", false);
    lab.end(&mode).expect("a volume");
    lab.end(&attach).expect("a volume");
    let attached = |name: &str| machine.volume_of(name)["set"] != Value::Null;
    assert!(attached("Same-09090909"), "it was meant");
    assert!(!attached("Same"));
    lab.machine.die();
}

#[test]
fn a_set_is_unregistered_while_a_volume_of_it_gets_the_name_that_it_wants() {
    let (lab, _other) = Lab::with_other();
    let machine = &lab.machine;
    machine.must("bdev_bcache_delete", json!({"name": "Vol1"}));
    machine.plug(&blank("Vol1"));
    machine.register("slow1").expect("its set runs");
    assert!(names(machine)[1].starts_with("Vol1-"));
    lab.silence("slow", true);
    let job = json!({"set": machine.uuid()});
    let job = lab.begin("bdev_bcache_unregister_set", job);
    machine.pass(100_000);
    machine.host.withdraw("Vol1");
    machine.pass(30_000_000);
    assert_eq!(names(machine), ["Vol0", "Vol1"]);
    lab.silence("slow", false);
    lab.end(&job).expect("both volumes are there");
    assert_eq!(names(machine), ["Vol0", "Vol1"]);
    assert!(machine.hub.sets().is_empty());
    lab.machine.die();
}

#[test]
fn a_volume_that_is_taken_down_to_wait_is_listed_whatever_has_its_name() {
    let lab = Lab::new();
    let machine = &lab.machine;
    lab.make_clean();
    labelled(machine, "slow1", "Vol0", [0xff; 16]);
    let stops = json!({"name": "Vol0", "stop_when_cache_set_failed": "always"});
    machine.must("bdev_bcache_set_options", stops);
    let hub = machine.hub.clone();
    let removal = machine.start(async move { hub.removed("fast").await });
    while removal.borrow().is_none() {
        let params = json!({"name": "Vol0-ffffffff", "new_name": "Vol0"});
        lab.begin("bdev_bcache_rename", params);
        machine.turn();
    }
    machine.pass(1_000_000);
    let all = machine.hub.volumes().into_iter();
    let mut bdevs: Vec<_> = all
        .filter_map(|v| v.backing.as_ref().map(|b| b.disk.name()))
        .collect();
    bdevs.sort();
    assert_eq!(bdevs, ["slow", "slow1"], "{:?}", names(machine));
    lab.machine.die();
}
