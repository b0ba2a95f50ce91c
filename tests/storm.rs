//! Random calls, removals and silences of devices, against host I/O: no stale byte is read, none that
//! was answered is lost, every call ends, and what goes is let go. A power cut leaves what flushes
//! covered, or something newer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::{Value, json};
use spdk_bcache::request::Kind;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rng::Rng;
use spdk_bcache::rpc::{self, RpcError};
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{Machine, blank};

const VOLUMES: [(&str, &str); 2] = [("Vol0", "slow0"), ("Vol1", "slow1")];
const DEVICES: [&str; 3] = ["fast", "slow0", "slow1"];
const BLOCKS: u64 = 12;

type Slot<T> = Rc<RefCell<Option<T>>>;

/// What a block may hold, now and after a power cut, and the I/O that is under way there.
#[derive(Clone)]
struct Block {
    may: Vec<u8>,
    after_cut: Vec<u8>,
    io: Option<(u64, Kind, u8)>,
    /// Writes so far.
    writes: u64,
    /// The set has failed under the I/O.
    failed_under: bool,
}

impl Block {
    /// A write or discard has ended.
    fn written(&mut self, kind: Kind, byte: u8, outcome: Outcome) {
        match (kind, outcome) {
            _ if self.failed_under => self.may.push(byte),
            // What was discarded may read as before.
            (Kind::Unmap, _) => self.may.push(byte),
            (_, Outcome::Success) => self.may = vec![byte],
            (_, _) => self.may.push(byte),
        }
        self.after_cut.push(byte);
    }
}

/// A flush under way: of which volume, and the writes of each of its blocks that had ended.
struct Flush {
    tag: u64,
    volume: usize,
    covers: Vec<Option<u64>>,
}

struct Storm {
    machine: Machine,
    rng: Rng,
    blocks: BTreeMap<(usize, u64), Block>,
    calls: Vec<(String, Slot<Result<Value, RpcError>>)>,
    removals: Vec<(&'static str, Slot<()>)>,
    flushes: Vec<Flush>,
    media: [Rc<Medium>; 3],
    next_byte: u8,
    set: Value,
    log: Vec<String>,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let media = DEVICES.map(blank);
        let machine = Machine::new(&media.each_ref());
        for (name, slow) in VOLUMES {
            let made = machine.create("fast", slow, json!({"name": name, "mode": "writeback"}));
            made.expect("blank devices");
            let params = json!({"name": name, "cache_missing_timeout_s": 3600});
            machine.must("bdev_bcache_set_options", params);
        }
        let block = Block {
            may: vec![0],
            after_cut: vec![0],
            io: None,
            writes: 0,
            failed_under: false,
        };
        let set = machine.uuid();
        Storm {
            machine,
            rng: Rng::new(seed),
            blocks: (0..2)
                .flat_map(|v| (0..BLOCKS).map(move |b| (v, b)))
                .map(|at| (at, block.clone()))
                .collect(),
            calls: Vec::new(),
            removals: Vec::new(),
            flushes: Vec::new(),
            media,
            next_byte: 0,
            set,
            log: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        let at = self.machine.sched.now_us();
        self.log.push(format!("{at} {what}"));
    }

    fn call(&mut self, method: &'static str, params: Value) {
        self.note(format!("{method} {params}"));
        let call = self
            .machine
            .start(rpc::call(self.machine.hub.clone(), method, params.clone()));
        self.calls.push((format!("{method} {params}"), call));
    }

    fn host_io(&mut self) {
        let v = self.rng.below(2) as usize;
        let b = self.rng.below(BLOCKS);
        if self.blocks[&(v, b)].io.is_some() {
            return;
        }
        let (kind, byte) = match self.rng.below(24) {
            0 => return self.flush(v),
            1 => (Kind::Unmap, 0),
            2 => (Kind::WriteZeroes, 0),
            3..=12 => {
                self.next_byte = self.next_byte.wrapping_add(1).max(1);
                (Kind::Write, self.next_byte)
            }
            _ => (Kind::Read, 0xee),
        };
        let memory = match kind {
            Kind::Read | Kind::Write => vec![byte; 4096],
            _ => Vec::new(),
        };
        let name = VOLUMES[v].0;
        let tag = self.machine.issue(name, kind, b * 8, memory, 8);
        let block = self.blocks.get_mut(&(v, b)).expect("a block");
        block.io = Some((tag, kind, byte));
        if kind != Kind::Read {
            block.writes += 1;
            block.after_cut.push(byte);
        }
    }

    fn flush(&mut self, volume: usize) {
        let blocks = (0..BLOCKS).map(|b| &self.blocks[&(volume, b)]);
        let is_written = |b: &Block| b.io.is_some_and(|(_, kind, _)| kind != Kind::Read);
        let covers = blocks.map(|b| (!is_written(b)).then_some(b.writes));
        let covers = covers.collect();
        let name = VOLUMES[volume].0;
        let tag = self.machine.issue(name, Kind::Flush, 0, Vec::new(), 0);
        self.flushes.push(Flush {
            tag,
            volume,
            covers,
        });
    }

    fn take_flushes(&mut self) {
        let flushes = std::mem::take(&mut self.flushes);
        for flush in flushes {
            match self.machine.ended(flush.tag) {
                None => self.flushes.push(flush),
                Some((Outcome::Success, _)) => {
                    for (b, covers) in flush.covers.iter().enumerate() {
                        let block = self.blocks.get_mut(&(flush.volume, b as u64));
                        let block = block.expect("a block");
                        if *covers == Some(block.writes) {
                            block.after_cut = block.may.clone();
                        }
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn take_answers(&mut self) {
        let mut bad = Vec::new();
        for (at, block) in &mut self.blocks {
            let Some((tag, kind, byte)) = block.io else {
                continue;
            };
            let Some((outcome, data)) = self.machine.ended(tag) else {
                continue;
            };
            block.io = None;
            let failed_under = std::mem::take(&mut block.failed_under);
            block.failed_under = failed_under && kind != Kind::Read;
            if kind != Kind::Read {
                block.written(kind, byte, outcome);
                block.failed_under = false;
            } else if outcome == Outcome::Success && data.iter().any(|b| !block.may.contains(b)) {
                bad.push(format!("{at:?}: {} not in {:?}", data[0], block.may));
            }
        }
        assert!(bad.is_empty(), "stale: {bad:?}\n{}", self.log.join("\n"));
        self.take_flushes();
    }

    fn take_removals(&mut self) {
        let (done, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.removals)
            .into_iter()
            .partition(|(_, slot)| slot.borrow().is_some());
        self.removals = left;
        for (bdev, _) in done {
            self.note(format!("{bdev} is gone"));
        }
    }

    fn is_going(&self, bdev: &str) -> bool {
        self.removals.iter().any(|(name, _)| *name == bdev)
    }

    fn act(&mut self) {
        let (name, slow) = VOLUMES[self.rng.below(2) as usize];
        let of = json!({"name": name});
        let set = json!({"set": self.set});
        let both = json!({"name": name, "set": self.set});
        match self.rng.below(26) {
            0 | 1 => self.call("bdev_bcache_attach", both),
            2 | 3 => self.call("bdev_bcache_detach", of),
            4 => self.call("bdev_bcache_detach_cancel", of),
            5 | 6 => {
                let modes = ["writeback", "writethrough", "writearound", "none"];
                let mode = modes[self.rng.below(4) as usize];
                let params = json!({"name": name, "mode": mode});
                self.call("bdev_bcache_set_cache_mode", params);
            }
            7 => self.call("bdev_bcache_flush_start", of),
            8 => {
                let on = self.rng.below(2) == 0;
                let params = json!({"name": name, "writeback_running": on});
                self.call("bdev_bcache_set_options", params);
            }
            9 => self.call("bdev_bcache_stop_set", set),
            10 => self.call("bdev_bcache_delete", of),
            11 => self.call("bdev_bcache_unregister_set", set),
            12 => self.call("bdev_bcache_register", json!({"bdev_name": "fast"})),
            13 => self.call("bdev_bcache_register", json!({"bdev_name": slow})),
            14..=16 => {
                let bdev = DEVICES[self.rng.below(3) as usize];
                if !self.is_going(bdev) && !self.machine.host.leaving.borrow().contains(bdev) {
                    self.note(format!("{bdev} is removed"));
                    self.machine.host.leaving.borrow_mut().insert(bdev.into());
                    let hub = self.machine.hub.clone();
                    let removal = self.machine.start(async move { hub.removed(bdev).await });
                    self.removals.push((bdev, removal));
                }
            }
            17..=21 => {
                let bdev = DEVICES[self.rng.below(3) as usize];
                self.give_back(bdev);
            }
            22 if self.rng.below(3) == 0 => self.fail(),
            22 | 23 => {
                let bdev = DEVICES[self.rng.below(3) as usize];
                self.note(format!("{bdev} is silent"));
                self.machine.host.silence(bdev).set(true);
            }
            _ => self.speak(),
        }
    }

    /// The set fails: what it did not know durably is lost.
    fn fail(&mut self) {
        let Some(set) = self.machine.hub.sets().first().cloned() else {
            return;
        };
        if set.latch.check().is_err() {
            return;
        }
        self.note("the set fails".into());
        set.latch.trip("a test".into());
        for block in self.blocks.values_mut() {
            block.may.extend(block.after_cut.clone());
            block.failed_under = block.io.is_some();
        }
    }

    fn give_back(&mut self, bdev: &'static str) {
        let held = self.is_going(bdev) || self.machine.host.holds_open(bdev);
        if held || !self.machine.host.leaving.borrow_mut().remove(bdev) {
            return;
        }
        self.note(format!("{bdev} is back"));
        let hub = self.machine.hub.clone();
        self.machine
            .exec
            .spawn(async move { hub.examine(bdev).await });
    }

    fn speak(&mut self) {
        for bdev in DEVICES {
            self.machine.host.silence(bdev).set(false);
        }
    }

    fn step(&mut self) {
        let turns = [0, 1, 3, 10, 40, 200][self.rng.below(6) as usize];
        for _ in 0..turns {
            self.machine.turn();
        }
        self.take_answers();
        self.take_removals();
        self.calls.retain(|(_, slot)| slot.borrow().is_none());
        if self.calls.len() < 6 && self.rng.below(4) == 0 {
            self.act();
        } else {
            self.host_io();
        }
    }

    fn wait(&mut self, what: &str, is_so: impl Fn(&Storm) -> bool) {
        let end = self.machine.sched.now_us() + 600_000_000;
        while !is_so(self) {
            if self.machine.sched.now_us() > end {
                let calls: Vec<_> = self.calls.iter().map(|(name, _)| name.clone()).collect();
                panic!("{what} hangs: {calls:?}\n{}", self.log.join("\n"));
            }
            self.machine.turn();
            self.take_answers();
            self.take_removals();
            self.calls.retain(|(_, slot)| slot.borrow().is_none());
        }
    }

    /// The power is cut, and all devices are there again.
    fn cut(self) {
        let log = self.log.join("\n");
        self.machine.lose_power(&self.media.each_ref());
        let machine = Machine::new(&self.media.each_ref());
        for bdev in DEVICES {
            let done = machine.register(bdev);
            done.unwrap_or_else(|error| panic!("{bdev}: {error:?}\n{log}"));
        }
        for ((v, b), block) in &self.blocks {
            let name = VOLUMES[*v].0;
            let data = machine.read(name, b * 8, 8);
            let data = data.unwrap_or_else(|| panic!("{name} {b}\n{log}"));
            let may = &block.after_cut;
            let right = data.iter().all(|byte| may.contains(byte));
            assert!(right, "{name} {b}: {} not in {may:?}\n{log}", data[0]);
        }
        machine.die();
    }

    /// Everything comes back, and is what it should be.
    fn end(mut self) {
        self.speak();
        self.note("the end".into());
        let failed = |s: &Storm| {
            s.machine
                .hub
                .sets()
                .iter()
                .any(|s| s.latch.check().is_err())
        };
        if failed(&self) && !self.is_going("fast") {
            self.machine.host.leaving.borrow_mut().insert("fast".into());
            let hub = self.machine.hub.clone();
            let removal = self.machine.start(async move { hub.removed("fast").await });
            self.removals.push(("fast", removal));
        }
        self.wait("a removal", |s| s.removals.is_empty());
        for bdev in DEVICES {
            let goes = self.machine.host.leaving.borrow().contains(bdev);
            self.wait(bdev, |s| !goes || !s.machine.host.holds_open(bdev));
        }
        for bdev in DEVICES {
            self.give_back(bdev);
        }
        self.wait("a call", |s| s.calls.is_empty());
        self.machine.pass(20_000_000);
        for bdev in DEVICES {
            self.call("bdev_bcache_register", json!({"bdev_name": bdev}));
            self.wait("a call", |s| s.calls.is_empty());
        }
        self.wait("host I/O", |s| s.blocks.values().all(|b| b.io.is_none()));
        for (v, (name, _)) in VOLUMES.iter().enumerate() {
            let shown = self.machine.host.shown();
            assert!(
                shown.contains(&name.to_string()),
                "{name} is not up: {}\n{}",
                self.machine.volume_of(name),
                self.log.join("\n")
            );
            for b in 0..BLOCKS {
                let data = self.machine.read(name, b * 8, 8);
                let data = data.unwrap_or_else(|| panic!("{name} {b}\n{}", self.log.join("\n")));
                let may = &self.blocks[&(v, b)].may;
                let right = data.iter().all(|byte| may.contains(byte));
                assert!(
                    right,
                    "{name} {b}: {} not in {may:?}\n{}",
                    data[0],
                    self.log.join("\n")
                );
            }
        }
        let hub = self.machine.hub.clone();
        let stop = self.machine.start(async move { hub.stop_all().await });
        self.wait("the stop", |_| stop.borrow().is_some());
        assert_eq!(*stop.borrow(), Some(true), "{}", self.log.join("\n"));
        for bdev in DEVICES {
            let held = self.machine.host.holds_open(bdev);
            assert!(!held, "{bdev} is held\n{}", self.log.join("\n"));
        }
        self.machine.die();
    }
}

#[test]
fn calls_and_removals_in_any_order_lose_nothing_and_end() {
    let number = |name: &str, otherwise: u64| {
        let value = std::env::var(name).ok();
        value.map_or(otherwise, |v| v.parse().expect("a number"))
    };
    let first = number("FIRST", 1);
    for seed in first..first + number("SEEDS", 20) {
        let run = std::panic::catch_unwind(|| {
            let mut storm = Storm::new(seed);
            let steps = 100 + storm.rng.below(400);
            for _ in 0..steps {
                storm.step();
            }
            match storm.rng.below(2) {
                0 => storm.cut(),
                _ => storm.end(),
            }
        });
        assert!(run.is_ok(), "seed {seed}");
    }
}
