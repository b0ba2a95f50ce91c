//! Messages and figures that must not mislead: what failed is named with volume, device, place and
//! reason, what is unknown is null, and the log warns of what is wrong alone.

use std::cell::RefCell;

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::{Value as Json, json};
use spdk_bcache::sim::disk::Faults;
use spdk_bcache::sim::machine::{self, Machine, blank};

thread_local! {
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        LINES.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
    }
    fn flush(&self) {}
}

/// Keeps what this test logs from now on.
fn listen() {
    static LOG: Lines = Lines;
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
    LINES.take();
}

/// The lines of the log so far.
fn lines() -> Vec<(Level, String)> {
    LINES.with_borrow(Clone::clone)
}

/// The level of the line that has all these words.
fn level_of(words: &[&str]) -> Level {
    let lines = lines();
    let found = lines
        .iter()
        .find(|(_, line)| words.iter().all(|word| line.contains(word)));
    found
        .unwrap_or_else(|| panic!("no line has {words:?}: {lines:#?}"))
        .0
}

const NO_WRITES: Faults = Faults {
    read: 0,
    write: 1,
    flush: 0,
};

/// A machine with a volume in write-back for each name, on a backing device `on-NAME`.
fn with_volumes(names: &[&str]) -> (Machine, Vec<std::rc::Rc<spdk_bcache::sim::disk::Medium>>) {
    let fast = blank("fast");
    let machine = Machine::new(&[&fast]);
    let mut media = vec![fast];
    for name in names {
        let slow = blank(&format!("on-{name}"));
        machine.plug(&slow);
        media.push(slow);
        let params = json!({"name": name, "cache_bdev": "fast", "backing_bdev": format!("on-{name}"),
                            "mode": "writeback"});
        machine.must("bdev_bcache_create", params);
        let params = json!({"name": name, "writeback_running": false});
        machine.must("bdev_bcache_set_options", params);
        machine.write(name, 2048, 64, 3);
    }
    (machine, media)
}

#[test]
fn a_detach_that_fails_names_volume_device_place_and_reason() {
    let (machine, media) = with_volumes(&["Vol0"]);
    media[1].faults.set(NO_WRITES);
    let refused = machine.call("bdev_bcache_detach", json!({"name": "Vol0"}));
    let error = refused.expect_err("nothing can be written back");
    assert_eq!(error.code, -5);
    for word in [
        "Vol0",
        "on-Vol0",
        "writing",
        "sector 20",
        "I/O error",
        "32768 bytes",
        "attached",
    ] {
        assert!(error.message.contains(word), "no {word}: {error:?}");
    }
    assert_ne!(machine.volume()["set"], Json::Null);
}

#[test]
fn a_set_that_is_unregistered_half_way_says_which_volumes_are_untouched() {
    let (machine, media) = with_volumes(&["A", "B", "C", "D"]);
    media[2].faults.set(NO_WRITES);
    let refused = machine.call("bdev_bcache_unregister_set", json!({"set": machine.uuid()}));
    let error = refused.expect_err("B cannot be written back");
    assert_eq!(error.code, -5);
    for word in ["on-B", "I/O error", "detached: A;", "untouched: C, D"] {
        assert!(error.message.contains(word), "no {word}: {error:?}");
    }
    assert_eq!(machine.volume_of("A")["set"], Json::Null);
    for name in ["B", "C", "D"] {
        assert_eq!(machine.volume_of(name)["set"], machine.uuid(), "{name}");
    }
    // Once it works the rest is done.
    media[2].faults.set(Faults::default());
    machine.must("bdev_bcache_unregister_set", json!({"set": machine.uuid()}));
    assert_eq!(machine.must("bdev_bcache_get_sets", Json::Null), json!([]));
}

#[test]
fn a_bucket_size_that_is_too_large_for_the_device_is_what_the_message_says() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    for kb in [16384, 512] {
        let refused = machine.create("fast", "slow", json!({"bucket_size_kb": kb}));
        let error = refused.expect_err("a handful of buckets");
        assert_eq!(error.code, -32602);
        for word in ["fast", "too large", &kb.to_string(), "at most 32"] {
            assert!(error.message.contains(word), "no {word}: {error:?}");
        }
    }
    assert_eq!(fast.writes.get() + slow.writes.get(), 0);
    machine
        .create("fast", "slow", json!({"bucket_size_kb": 32}))
        .expect("what it said");
}

#[test]
fn dirty_bytes_are_null_while_only_a_set_that_does_not_run_knows_them() {
    listen();
    let (machine, media) = with_volumes(&["Vol0"]);
    let known = machine.volume()["dirty_bytes"].clone();
    assert_eq!(known, 32768);
    let set = json!({"set": machine.uuid()});
    machine.must("bdev_bcache_stop_set", set.clone());
    machine
        .register("on-Vol0")
        .expect_err("its set does not run");
    let volume = machine.volume();
    assert_eq!(
        (&volume["dirty_bytes"], &volume["state"]),
        (&Json::Null, &json!("dirty"))
    );
    assert_eq!(volume["set"], set["set"]);
    let status = machine.must("bdev_bcache_flush_status", json!({"name": "Vol0"}));
    assert_eq!(status["dirty_bytes"], Json::Null);
    machine.register("fast").expect("the set");
    assert_eq!(machine.volume()["dirty_bytes"], known);
    // Where the cache device goes before it knows all that the volume has, too.
    machine.write("Vol0", 2048, 8, 3);
    assert_eq!(machine.volume()["dirty_bytes"], known);
    machine.unplug(&media[0]);
    assert_eq!(machine.volume()["dirty_bytes"], Json::Null);
    machine.replug(&media[0]);
    assert_eq!(machine.volume()["dirty_bytes"], known);
    // Without a set there is nothing that is not known.
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    assert_eq!(machine.volume()["dirty_bytes"], 0);
}

#[test]
fn a_device_that_is_in_no_set_shows_none() {
    let (machine, _media) = with_volumes(&["Vol0"]);
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    let answer = machine
        .register("on-Vol0")
        .expect("a volume without a cache");
    assert_eq!(
        (&answer["kind"], &answer["set"]),
        (&json!("backing"), &Json::Null)
    );
    assert_eq!(machine.volume()["set"], Json::Null);
}

#[test]
fn waiting_for_a_cache_is_no_warning_and_a_delete_is_logged() {
    let (machine, media) = with_volumes(&["Vol0", "Vol1"]);
    machine.must("bdev_bcache_flush_start", json!({"name": "Vol1"}));
    machine.pass(60_000_000);
    machine.must("bdev_bcache_stop_set", json!({"set": machine.uuid()}));
    machine.die();
    listen();
    // A boot: the backing devices come first, one dirty and one clean.
    let machine = Machine::new(&[]);
    for medium in [&media[1], &media[2], &media[0]] {
        machine.replug(medium);
    }
    assert_eq!(machine.host.shown(), ["Vol0", "Vol1"]);
    for device in ["on-Vol0", "on-Vol1"] {
        assert_eq!(level_of(&[device, "waits for"]), Level::Info);
    }
    let loud: Vec<_> = lines()
        .into_iter()
        .filter(|(level, _)| *level <= Level::Warn)
        .collect();
    assert!(loud.is_empty(), "{loud:#?}");
    machine.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    assert_eq!(level_of(&["Vol0", "deleted", "on-Vol0"]), Level::Info);
    let flash = json!({"set": machine.uuid(), "name": "Flash0", "size_mb": 1});
    machine.must("bdev_bcache_create_flash_volume", flash);
    machine.must("bdev_bcache_delete_flash_volume", json!({"name": "Flash0"}));
    assert_eq!(level_of(&["Flash0", "deleted"]), Level::Info);
}

#[test]
fn where_a_backing_device_is_given_up_volume_and_device_are_named() {
    listen();
    let (machine, media) = with_volumes(&["Vol0"]);
    for params in [
        json!({"io_error_limit": 2}),
        json!({"writeback_running": true}),
    ] {
        let mut params = params;
        params["name"] = json!("Vol0");
        machine.must("bdev_bcache_set_options", params);
    }
    // By write-back, and by a host's reads.
    for by_host in [false, true] {
        listen();
        media[1].faults.set(machine::BROKEN);
        for _ in 0..2 {
            match by_host {
                true => assert!(machine.read("Vol0", 40960, 8).is_none()),
                false => machine.pass(10_000_000),
            }
        }
        let words = [
            "volume Vol0",
            "on-Vol0",
            "failed 2 times",
            "I/O",
            "io_disable=false",
        ];
        assert_eq!(level_of(&words), Level::Error, "by a host: {by_host}");
        media[1].faults.set(Faults::default());
        machine.must(
            "bdev_bcache_set_options",
            json!({"name": "Vol0", "io_disable": false}),
        );
        machine.must("bdev_bcache_flush_start", json!({"name": "Vol0"}));
        machine.pass(30_000_000);
    }
}
