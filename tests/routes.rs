//! The way of a volume's host I/O changes while I/O runs: it is attached, made part of a set by
//! create, detached. What a flush answers for does not depend on which way a write went.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rpc;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{Machine, blank};

/// How a running volume without a cache comes to a set.
#[derive(Clone, Copy, Debug)]
enum Way {
    Attach,
    Create,
}

impl Way {
    fn call(self, m: &Machine) -> (&'static str, Value) {
        match self {
            Way::Attach => (
                "bdev_bcache_attach",
                json!({"name": "Vol1", "set": m.uuid()}),
            ),
            Way::Create => (
                "bdev_bcache_create",
                json!({"name": "Vol1", "cache_bdev": "fast", "backing_bdev": "slow1"}),
            ),
        }
    }
}

/// Writes of 8 sectors that are under way when the fronts are exchanged.
const WRITES: u64 = 32;

/// Two volumes, the second without a cache; the first has keys that no leaf has yet. `nth` makes
/// for another order of events each time.
fn ready(media: [&Rc<Medium>; 3], nth: u64) -> Rc<Machine> {
    let m = Rc::new(Machine::new(&media));
    for (name, slow) in [("Vol0", "slow"), ("Vol1", "slow1")] {
        let made = m.create("fast", slow, json!({"name": name, "mode": "writeback"}));
        made.expect("blank devices");
    }
    m.must("bdev_bcache_detach", json!({"name": "Vol1"}));
    for i in 0..nth {
        assert_eq!(m.write("Vol1", 1000 + i * 8, 8, 5), Outcome::Success);
    }
    assert_eq!(m.flush("Vol1"), Outcome::Success);
    for i in 0..16 {
        assert_eq!(m.write("Vol0", i * 16, 8, 3), Outcome::Success);
    }
    m
}

/// Has writes begun at the moment in which the fronts are about to be exchanged, and with `flushed`
/// a flush behind them, which waits for the new fronts.
fn issue_at_exchange(m: &Rc<Machine>, flushed: bool) -> Rc<RefCell<Vec<u64>>> {
    let tags: Rc<RefCell<Vec<u64>>> = Rc::default();
    let (weak, issued) = (Rc::downgrade(m), tags.clone());
    let asked = Cell::new(false);
    *m.host.on_replace.borrow_mut() = Some(Box::new(move |cached| {
        let Some(m) = weak.upgrade().filter(|_| cached && !asked.replace(true)) else {
            return;
        };
        let write = |i| m.issue("Vol1", Kind::Write, i * 8, vec![9; 4096], 8);
        issued.borrow_mut().extend((0..WRITES).map(write));
        if flushed {
            let (weak, issued) = (Rc::downgrade(&m), issued.clone());
            let (host, exec) = (Rc::downgrade(&m.host), m.exec.clone());
            m.exec.spawn(async move {
                while host.upgrade().is_some_and(|host| !host.stage.holds("Vol1")) {
                    exec.sleep_us(1).await;
                }
                let flush = |m: Rc<Machine>| m.issue("Vol1", Kind::Flush, 0, Vec::new(), 0);
                issued.borrow_mut().extend(weak.upgrade().map(flush));
            });
        }
    }));
    tags
}

/// How many of the writes are lost in a power cut after a flush that was answered behind them.
fn lost(way: Way, nth: u64, held_flush: bool) -> usize {
    let (fast, slow, slow1) = (blank("fast"), blank("slow"), blank("slow1"));
    let media = [&fast, &slow, &slow1];
    let m = ready(media, nth);
    let tags = issue_at_exchange(&m, held_flush);
    let (method, params) = way.call(&m);
    let joining = m.start(rpc::call(m.hub.clone(), method, params));
    m.until("the exchange", || !tags.borrow().is_empty());
    // As in a set that is busy, a leaf is written just then.
    let tree = m.hub.sets()[0].tree.clone();
    let written = m.start(async move { tree.flush().await.is_ok() });
    let ended = || tags.borrow().iter().all(|&tag| m.has_ended(tag));
    m.until("all of it", || {
        joining.borrow().is_some() && written.borrow().is_some() && ended()
    });
    let joined = joining.borrow_mut().take().expect("it has ended");
    joined.unwrap_or_else(|e| panic!("{way:?}: {e:?}"));
    for tag in tags.borrow().iter() {
        assert_eq!(m.ended(*tag).expect("it has ended").0, Outcome::Success);
    }
    if !held_flush {
        assert_eq!(m.flush("Vol1"), Outcome::Success);
    }
    m.host.on_replace.borrow_mut().take();
    Rc::into_inner(m)
        .expect("nothing else holds it")
        .lose_power(&media);
    let m = Machine::new(&media);
    media.iter().for_each(|medium| m.replug(medium));
    let lost = (0..WRITES)
        .filter(|i| !m.holds("Vol1", i * 8, 8, 9))
        .count();
    m.die();
    lost
}

fn nothing_is_lost(way: Way, held_flush: bool) {
    let lost: Vec<usize> = (0..12).map(|nth| lost(way, nth, held_flush)).collect();
    assert_eq!(lost, [0; 12], "{way:?}: writes that a flush covered");
}

#[test]
fn a_flush_after_attach_covers_what_was_written_before_it() {
    nothing_is_lost(Way::Attach, false);
}

#[test]
fn a_flush_after_create_on_a_running_volume_covers_what_was_written_before_it() {
    nothing_is_lost(Way::Create, false);
}

#[test]
fn a_flush_that_waits_for_the_new_fronts_covers_what_the_old_ones_wrote() {
    nothing_is_lost(Way::Attach, true);
}
