//! A volume whose backing device is another volume: it comes up with it, and both are taken down from
//! the top.

use std::rc::Rc;

use serde_json::json;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{Machine, blank};

/// Devices of Vol0, and the cache device of Top0 on Vol0.
fn media() -> [Rc<Medium>; 3] {
    [blank("fast0"), blank("slow0"), blank("fast1")]
}

fn machine(media: &[Rc<Medium>; 3]) -> Machine {
    let machine = Machine::new(&media.iter().collect::<Vec<_>>());
    machine.stack();
    machine
}

fn built(media: &[Rc<Medium>; 3]) -> Machine {
    let m = machine(media);
    let mode = json!({"mode": "writeback"});
    m.create("fast0", "slow0", mode).expect("the lower one");
    let top = json!({
        "name": "Top0", "cache_bdev": "fast1", "backing_bdev": "Vol0", "mode": "writeback",
    });
    m.must("bdev_bcache_create", top);
    assert_eq!(m.write("Top0", 8, 16, 7), Outcome::Success);
    assert_eq!(m.flush("Top0"), Outcome::Success);
    m
}

fn stop(m: &Machine) {
    let hub = m.hub.clone();
    assert!(m.run(async move { hub.stop_all().await }), "in good order");
    for device in ["fast0", "slow0", "fast1"] {
        assert!(!m.host.holds_open(device), "{device}");
    }
}

fn examine(m: &Machine, device: &str) {
    let (hub, device) = (m.hub.clone(), device.to_string());
    m.run(async move { hub.examine(&device).await });
}

/// All devices appear, the lower volume's last.
fn comes_up(media: &[Rc<Medium>; 3]) {
    let m = machine(media);
    for device in ["fast1", "slow0", "fast0"] {
        examine(&m, device);
    }
    m.until("the upper one", || m.host.shown() == ["Top0", "Vol0"]);
    assert!(m.holds("Top0", 8, 16, 7));
    stop(&m);
}

#[test]
fn both_stop_from_the_top_and_come_up() {
    let media = media();
    stop(&built(&media));
    comes_up(&media);
}

#[test]
fn both_come_up_after_a_power_cut() {
    let media = media();
    built(&media).lose_power(&media.each_ref());
    comes_up(&media);
}

#[test]
fn the_lower_one_is_not_taken_down_under_the_upper_one() {
    let media = media();
    let m = built(&media);
    let set = m.volume_of("Vol0")["set"].clone();
    for (method, params) in [
        ("bdev_bcache_delete", json!({"name": "Vol0"})),
        ("bdev_bcache_stop_set", json!({"set": set})),
    ] {
        let refused = m.call(method, params).expect_err("it is used");
        assert!(refused.message.contains("is used by Top0"), "{refused:?}");
    }
    m.must("bdev_bcache_delete", json!({"name": "Top0"}));
    m.must("bdev_bcache_delete", json!({"name": "Vol0"}));
    stop(&m);
}

#[test]
fn no_set_rests_on_itself() {
    let media = media();
    let m = built(&media);
    let more = [blank("slow1"), blank("fast2")];
    more.iter().for_each(|medium| m.plug(medium));
    let set = m.volume_of("Top0")["set"].clone();
    let create = |name: &str, cache: &str, backing: &str| {
        let params = json!({
            "name": name, "cache_bdev": cache, "backing_bdev": backing, "force": true,
        });
        m.call("bdev_bcache_create", params)
    };
    let refused = |done: Result<serde_json::Value, spdk_bcache::rpc::RpcError>| {
        let message = done.expect_err("it would wait for itself").message;
        assert!(message.contains("would wait for itself"), "{message}");
    };
    refused(create("Top1", "fast1", "Top0"));
    // The lower one's set, through the upper one's.
    refused(create("Top1", "fast0", "Top0"));
    // The lower one comes to the set of what lies on it.
    m.must("bdev_bcache_detach", json!({"name": "Vol0"}));
    refused(m.call("bdev_bcache_attach", json!({"name": "Vol0", "set": set})));
    // A device beside the stack may be served by either set, and one on top by a third.
    create("Vol1", "fast1", "slow1").expect("beside it");
    create("Top1", "fast2", "Top0").expect("on top");
    assert_eq!(m.host.shown(), ["Top0", "Top1", "Vol0", "Vol1"]);
    stop(&m);
}

#[test]
fn what_lies_at_the_bottom_takes_all_with_it() {
    let media = media();
    let m = built(&media);
    m.unplug(&media[1]);
    assert!(m.host.shown().is_empty());
    stop(&m);
}
