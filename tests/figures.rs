//! No figure of any report is ever negative or absurd, and none that counts falls without a reset:
//! over collisions, ticks, attach, detach, change of the mode, removal and return of devices, and a set
//! that is stopped and started.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use spdk_bcache::request::Kind;
use spdk_bcache::sim::machine::{Machine, blank};

/// No figure of these tests comes near it.
const ABSURD: u64 = 1 << 40;
/// Two ticks of the statistics.
const TICKS_US: u64 = 21_000_000;

/// What may fall: levels, ratios, positions, and options.
const LEVELS: &[&str] = &[
    "cache_hit_ratio",
    "dirty_bytes",
    "free",
    "clean",
    "dirty",
    "metadata",
    "free_blocks",
    "inode",
    "cached_extents",
    "index_bytes",
    "cache_available_percent",
    "btree_nodes",
    "tree_depth",
    "recent",
];

/// Every number of a report with its place; panics at one that cannot be.
fn numbers(place: &str, report: &Json, out: &mut BTreeMap<String, u64>) {
    match report {
        Json::Object(members) => {
            for (name, value) in members.iter().filter(|(name, _)| *name != "options") {
                numbers(&format!("{place}.{name}"), value, out);
            }
        }
        Json::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                numbers(&format!("{place}.{i}"), value, out);
            }
        }
        Json::Number(number) => {
            let number = number.as_u64().filter(|n| *n < ABSURD);
            let number = number.unwrap_or_else(|| panic!("{place} is {report}"));
            out.insert(place.into(), number);
        }
        _ => {}
    }
}

/// All figures, of all reports.
fn figures(machine: &Machine) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for volume in machine
        .must("bdev_bcache_get_bdevs", Json::Null)
        .as_array()
        .unwrap()
    {
        let name = volume["name"].as_str().unwrap();
        numbers(&format!("bdev {name}"), volume, &mut all);
        let stats = machine.must("bdev_bcache_get_stats", json!({"name": name}));
        numbers(&format!("stats {name}"), &stats, &mut all);
        let status = machine.must("bdev_bcache_flush_status", json!({"name": name}));
        numbers(&format!("flush {name}"), &status, &mut all);
    }
    for set in machine
        .must("bdev_bcache_get_sets", Json::Null)
        .as_array()
        .unwrap()
    {
        numbers("set", set, &mut all);
        let stats = machine.must("bdev_bcache_get_stats", json!({"set": set["set"]}));
        numbers("stats of set", &stats, &mut all);
    }
    all
}

struct Watch {
    last: BTreeMap<String, u64>,
}

impl Watch {
    /// Looks at all figures after a step. What counts has not fallen; windows decay, but hold no
    /// more than the total.
    fn look(&mut self, machine: &Machine, step: &str) {
        let now = figures(machine);
        for (place, value) in &now {
            let (of, name) = place.rsplit_once('.').unwrap();
            let before = self.last.get(place).copied().unwrap_or(0);
            let decays = ["five_minute", "hour", "day"]
                .iter()
                .any(|w| of.ends_with(w));
            if decays {
                let total = of.rsplit_once('.').unwrap().0;
                let total = now[&format!("{total}.total.{name}")];
                let ratio = name == "cache_hit_ratio";
                assert!(
                    ratio || *value <= total,
                    "{step}: {place} is {value} of {total}"
                );
            } else if !LEVELS.contains(&name) {
                assert!(
                    *value >= before,
                    "{step}: {place} fell from {before} to {value}"
                );
            }
        }
        // What is not in a report now has not fallen, either: it is compared when it is back.
        self.last.extend(now);
    }
}

/// A read that misses while a write past the cache overlaps it: its fill comes to nothing.
fn collide(machine: &Machine, at: u64) {
    let write = machine.issue("Vol0", Kind::Write, at, vec![7; 4096], 8);
    let read = machine.issue("Vol0", Kind::Read, at, vec![0; 4096], 8);
    machine.until("both", || {
        machine.has_ended(write) && machine.has_ended(read)
    });
    machine.ended(write);
    machine.ended(read);
}

fn some_io(machine: &Machine, round: u64) {
    for i in 0..4 {
        let at = 1024 + round * 512 + i * 64;
        machine.write("Vol0", at, 8, 1);
        machine.read("Vol0", at, 8);
        machine.read("Vol0", at + 8, 8);
        machine.read("Vol0", at + 8, 8);
        machine.flush("Vol0");
        collide(machine, 32768 + round * 512 + i * 64);
    }
}

fn collisions(machine: &Machine, of: &Json) -> u64 {
    let stats = machine.must("bdev_bcache_get_stats", of.clone());
    stats["total"]["cache_miss_collisions"]
        .as_u64()
        .expect("a number")
}

#[test]
fn no_figure_falls_or_is_absurd_whatever_becomes_of_a_volume() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writearound"}));
    made.expect("blank devices");
    let (uuid, mut watch) = (
        machine.uuid(),
        Watch {
            last: BTreeMap::new(),
        },
    );
    let name = json!({"name": "Vol0"});
    let mut attached = name.clone();
    attached["set"] = uuid.clone();
    let mode = |mode: &str| json!({"name": "Vol0", "mode": mode});
    let set = json!({"set": uuid});
    let steps: &[(&str, Json)] = &[
        ("bdev_bcache_set_cache_mode", mode("writeback")),
        ("bdev_bcache_detach", name.clone()),
        ("bdev_bcache_attach", attached.clone()),
        ("bdev_bcache_set_cache_mode", mode("writearound")),
        ("bdev_bcache_detach", name.clone()),
        ("bdev_bcache_attach", attached),
        ("bdev_bcache_gc", set.clone()),
        ("bdev_bcache_delete", name.clone()),
        ("bdev_bcache_register", json!({"bdev_name": "slow"})),
        ("bdev_bcache_stop_set", set.clone()),
        ("bdev_bcache_register", json!({"bdev_name": "slow"})),
        ("bdev_bcache_register", json!({"bdev_name": "fast"})),
    ];
    for (round, (method, params)) in steps.iter().enumerate() {
        let runs = machine.host.shown().contains(&"Vol0".into());
        if runs {
            some_io(&machine, round as u64);
            watch.look(&machine, "I/O");
        }
        if round % 3 == 1 {
            machine.pass(TICKS_US);
            watch.look(&machine, "two ticks");
        }
        machine.must(method, params.clone());
        // written_back_bytes and the like count from the start of a set
        if *method == "bdev_bcache_stop_set" {
            watch.last.retain(|place, _| !place.starts_with("set."));
        }
        watch.look(&machine, method);
    }
    assert!(collisions(&machine, &name) > 4 && collisions(&machine, &set) > 4);
    machine.unplug(&fast);
    watch.last.retain(|place, _| !place.starts_with("set."));
    watch.look(&machine, "the cache device is gone");
    machine.replug(&fast);
    watch.look(&machine, "the cache device is back");
}

#[test]
fn a_reset_starts_every_figure_of_the_statistics_from_zero_and_stays_right() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    let made = machine.create("fast", "slow", json!({"mode": "writearound"}));
    made.expect("blank devices");
    let (name, set) = (json!({"name": "Vol0"}), json!({"set": machine.uuid()}));
    some_io(&machine, 0);
    assert!(collisions(&machine, &name) > 0);
    let seen = collisions(&machine, &set);
    machine.must("bdev_bcache_reset_stats", name.clone());
    assert_eq!(collisions(&machine, &name), 0);
    assert_eq!(
        collisions(&machine, &set),
        seen,
        "only the volume's were reset"
    );
    machine.must("bdev_bcache_reset_stats", set.clone());
    for of in [&name, &set] {
        let stats = machine.must("bdev_bcache_get_stats", of.clone());
        for span in ["total", "five_minute", "hour", "day"] {
            let counts = stats[span].as_object().expect("counts");
            assert!(
                counts.values().all(|n| n == 0),
                "{span} after a reset: {counts:?}"
            );
        }
    }
    let mut watch = Watch {
        last: BTreeMap::new(),
    };
    machine.pass(TICKS_US);
    watch.look(&machine, "two ticks after the reset");
    collide(&machine, 8192);
    machine.pass(TICKS_US);
    let seen = collisions(&machine, &name);
    assert!(seen > 0);
    machine.must("bdev_bcache_detach", name.clone());
    machine.pass(TICKS_US);
    watch.look(&machine, "detached");
    let attached = json!({"name": "Vol0", "set": set["set"]});
    machine.must("bdev_bcache_attach", attached);
    machine.pass(TICKS_US);
    watch.look(&machine, "attached");
    assert_eq!(collisions(&machine, &name), seen);
}

#[test]
fn windows_count_from_the_first_second() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    machine
        .create("fast", "slow", Json::Null)
        .expect("blank devices");
    machine.read("Vol0", 0, 8);
    for of in [json!({"name": "Vol0"}), json!({"set": machine.uuid()})] {
        let stats = machine.must("bdev_bcache_get_stats", of);
        for span in ["total", "five_minute", "hour", "day"] {
            assert_eq!(stats[span]["reads"], 1, "{span}");
        }
    }
}
