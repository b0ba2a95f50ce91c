//! The tables of options and methods against a running volume: whatever a row says is what happens.

use serde_json::{Value as Json, json};
use spdk_bcache::options::{Kept, Kind, Row, SetOption, Table, Value, VolumeOption};
use spdk_bcache::rpc::methods::METHODS;
use spdk_bcache::rpc::{self, RpcError};
use spdk_bcache::sim::machine::{Machine, blank};

const UUID: &str = "e3b97f1f-d932-466a-8902-c3e095bb0974";

fn rows<O: Table>() -> Vec<&'static Row> {
    O::ALL.iter().map(|option| option.row()).collect()
}

/// Values at the limits of a row, not the default, and values that it must refuse.
fn probes(row: &Row) -> (Vec<Json>, Vec<Json>) {
    let (good, mut bad) = match row.kind {
        Kind::Bool => (
            vec![json!(true), json!(false)],
            vec![json!(1), json!("true")],
        ),
        Kind::Uint(least, most) => {
            let below = least.checked_sub(1).map_or(json!(-1), |n| json!(n));
            (
                vec![json!(least), json!(most)],
                vec![below, json!(most + 1), json!("1")],
            )
        }
        Kind::PowerOfTwo(least, most) => (
            vec![json!(least), json!(most)],
            vec![json!(least + 1), json!(most * 2)],
        ),
        Kind::Word(words) => (words.iter().map(|w| json!(w)).collect(), vec![json!("x")]),
        Kind::Bdevs => (
            vec![json!(["a", "b"]), json!([])],
            vec![json!("a"), json!([""])],
        ),
        Kind::Name | Kind::Bdev => (vec![json!("x")], vec![json!("")]),
        Kind::Uuid => (vec![json!(UUID)], vec![json!("x")]),
    };
    bad.extend([json!([]), json!({}), json!(1.5)]);
    (good, bad)
}

/// Every value at the limits of every row is taken, reported and saved; no other is.
fn check_rows(
    machine: &Machine,
    rows: Vec<&Row>,
    set: impl Fn(&str, &Json) -> Result<Json, RpcError>,
    report: impl Fn() -> Json,
) {
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    let reported = report();
    let reported: Vec<&String> = reported.as_object().expect("an object").keys().collect();
    assert_eq!(reported.len(), names.len(), "{reported:?}");
    for row in rows {
        let fresh = report()[row.name].clone();
        assert_eq!(
            fresh,
            row.default.to_json(),
            "{} is not its default",
            row.name
        );
        let (good, bad) = probes(row);
        for value in &good {
            assert_eq!(
                set(row.name, value),
                Ok(json!(true)),
                "{} = {value}",
                row.name
            );
            assert_eq!(&report()[row.name], value, "{}", row.name);
            let saved = format!("{:?}", rpc::config(&machine.hub));
            let wanted = row.kept == Kept::Config && *value != row.default.to_json();
            assert_eq!(
                saved.contains(row.name),
                wanted,
                "{} = {value}: {saved}",
                row.name
            );
        }
        for value in &bad {
            let before = report();
            let refused = set(row.name, value).expect_err(&format!("{} = {value}", row.name));
            assert_eq!(refused.code, -32602);
            assert!(refused.message.contains(row.name), "{refused:?}");
            assert!(
                refused.message.contains(&row.kind.to_string()),
                "{refused:?}"
            );
            assert_eq!(report(), before);
        }
        assert_eq!(set(row.name, &row.default.to_json()), Ok(json!(true)));
    }
}

#[test]
fn every_option_of_a_volume_does_what_its_row_says() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    machine
        .create("fast", "slow", Json::Null)
        .expect("blank devices");
    let set = |name: &str, value: &Json| {
        machine.call(
            "bdev_bcache_set_options",
            json!({"name": "Vol0", name: value}),
        )
    };
    check_rows(&machine, rows::<VolumeOption>(), set, || {
        machine.volume()["options"].clone()
    });
}

#[test]
fn every_option_of_a_set_does_what_its_row_says() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    machine
        .create("fast", "slow", Json::Null)
        .expect("blank devices");
    let uuid = machine.uuid();
    let set = |name: &str, value: &Json| {
        machine.call(
            "bdev_bcache_set_set_options",
            json!({"set": uuid, name: value}),
        )
    };
    check_rows(&machine, rows::<SetOption>(), set, || {
        machine.set()["options"].clone()
    });
}

#[test]
fn options_are_changed_all_or_none() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    machine
        .create("fast", "slow", Json::Null)
        .expect("blank devices");
    machine.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    let before = machine.volume();
    // one that could be changed now, and one that needs a cache
    let mut params = json!({"name": "Vol0", "io_error_limit": 3, "writeback_percent": 7});
    let refused = machine.call("bdev_bcache_set_options", params.clone());
    assert!(refused.expect_err("no cache").message.contains("when_up"));
    assert_eq!(machine.volume(), before);
    params["when_up"] = json!(true);
    machine.must("bdev_bcache_set_options", params);
    assert_eq!(machine.volume()["options"]["io_error_limit"], 3);
    machine.must(
        "bdev_bcache_attach",
        json!({"name": "Vol0", "set": machine.uuid()}),
    );
    assert_eq!(machine.volume()["options"]["writeback_percent"], 7);
}

#[test]
fn nothing_is_kept_for_names_that_nothing_can_have() {
    let machine = Machine::new(&[]);
    let long = "n".repeat(33);
    let names = ["", "a b", "tab\t", "nul\0", &long];
    for name in names {
        let params = json!({"name": name, "writeback_percent": 7, "when_up": true});
        let refused = machine
            .call("bdev_bcache_set_options", params)
            .expect_err(name);
        assert_eq!(refused.code, -32602, "{name:?}");
        assert!(refused.message.contains("32 bytes"), "{refused:?}");
    }
    for uuid in ["", "x", "00000000-0000-0000-0000-000000000000", &UUID[1..]] {
        let params = json!({"set": uuid, "journal_delay_ms": 5, "when_up": true});
        let refused = machine
            .call("bdev_bcache_set_set_options", params)
            .expect_err(uuid);
        assert_eq!(refused.code, -32602, "{uuid:?}");
    }
    for bdev in ["", "nul\0"] {
        let params = json!({"bdev_name": bdev, "when_up": true});
        let refused = machine
            .call("bdev_bcache_register", params)
            .expect_err(bdev);
        assert_eq!(refused.code, -32602, "{bdev:?}");
    }
    // Without an option there is nothing to wait with.
    for (method, params) in [
        (
            "bdev_bcache_set_options",
            json!({"name": "Vol0", "when_up": true}),
        ),
        (
            "bdev_bcache_set_set_options",
            json!({"set": UUID, "when_up": true}),
        ),
    ] {
        assert_eq!(machine.call(method, params).expect_err(method).code, -19);
    }
    let later = machine.hub.later();
    assert!(later.volumes.is_empty() && later.sets.is_empty() && later.bdevs.is_empty());
    assert!(rpc::config(&machine.hub).is_empty());
}

#[test]
fn reports_have_the_members_that_the_table_lists() {
    let (fast, slow) = (blank("fast"), blank("slow"));
    let machine = Machine::new(&[&fast, &slow]);
    machine
        .create("fast", "slow", Json::Null)
        .expect("blank devices");
    for method in METHODS {
        let params = match method.name {
            "bdev_bcache_get_bdevs" | "bdev_bcache_get_sets" => Json::Null,
            "bdev_bcache_register" => json!({"bdev_name": "fast"}),
            _ if method.fields.is_empty() => continue,
            "bdev_bcache_unregister_set_status" => json!({"set": machine.uuid()}),
            _ => json!({"name": "Vol0"}),
        };
        let mut answer = machine.must(method.name, params);
        if method.name == "bdev_bcache_get_stats" {
            answer = answer["total"].take();
        }
        if answer.is_array() {
            answer = answer[0].take();
        }
        let found: Vec<&str> = answer
            .as_object()
            .expect(method.name)
            .keys()
            .map(|k| &**k)
            .collect();
        let mut listed: Vec<&str> = method.fields.iter().map(|(name, _)| *name).collect();
        listed.sort();
        assert_eq!(found, listed, "{}", method.name);
    }
}

#[test]
fn the_value_of_a_row_is_one_of_its_type() {
    assert_eq!(VolumeOption::WritebackPercent.number(), 10);
    assert_eq!(SetOption::Errors.row().default, Value::Word("unregister"));
}
