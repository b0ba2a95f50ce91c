//! One life of a machine: simulated devices that can be unplugged and can fail, a host that serves
//! volumes through fronts, and RPCs as people call them.
//!
//! Tests of the lifecycle drive it step by step; random worlds do, too. What outlives it are the
//! [`Medium`]s.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use serde_json::{Value, json};

use super::check;
use super::disk::{Faults, Medium, SimDisk};
use super::host::{Seen, SimHost};
use super::sched::Sched;
use super::stage::{Ended, HostIo};
use crate::disk::IoError;
use crate::format::superblock::{BackingSuper, CacheSuper, Super};
use crate::request::Kind;
use crate::request::lane::{Outcome, Side};
use crate::rng::Rng;
use crate::rpc::{self, RpcError};
use crate::set::hub::Hub;
use crate::task::Executor;
use crate::units::Sector;

/// Simulated time that a call may take: 10 min.
pub const PATIENCE_US: u64 = 600_000_000;
/// A device that fails at everything.
pub const BROKEN: Faults = Faults {
    read: 1,
    write: 1,
    flush: 1,
};

/// One life of a machine.
pub struct Machine {
    /// The clock.
    pub sched: Sched,
    /// The owner thread.
    pub exec: Executor,
    /// Devices, and what hosts see.
    pub host: Rc<SimHost>,
    /// The lifecycle.
    pub hub: Rc<Hub>,
}

impl Machine {
    /// A machine with these devices.
    pub fn new(media: &[&Rc<Medium>]) -> Machine {
        // Another for each life: were two nodes' numbers the same, what a bucket held in the last
        // life would look like more of its new node.
        let rng = Rc::new(Rng::new(
            7 + media.iter().map(|m| m.writes.get()).sum::<u64>(),
        ));
        Self::with(media, rng, 0, 1)
    }

    /// A machine with these devices, so many reactors and this source of chance, at a time in µs.
    pub fn with(media: &[&Rc<Medium>], rng: Rc<Rng>, now_us: u64, reactors: usize) -> Machine {
        let exec = Executor::new();
        let sched = Sched::new(now_us, rng.clone());
        let host = Rc::new(SimHost::new(sched.clone(), rng, reactors));
        let machine = Machine {
            sched,
            hub: Hub::new(host.clone(), exec.clone()),
            exec,
            host,
        };
        for medium in media {
            machine.plug(medium);
        }
        machine
    }

    /// From now on volumes are devices too, which are examined when they come. As at SPDK's boundary,
    /// what lies on one that goes is taken down, but not in the end of the process, which takes down all.
    pub fn stack(&self) {
        let (hub, exec) = (Rc::downgrade(&self.hub), self.exec.clone());
        *self.host.on_volume.borrow_mut() = Some(Box::new(move |name, seen| {
            let (Some(hub), name) = (hub.upgrade(), name.to_string()) else {
                return;
            };
            exec.spawn(async move {
                match seen {
                    Seen::Comes => hub.examine(&name).await,
                    Seen::Goes if hub.is_ending() => {}
                    Seen::Goes => hub.removed(&name).await,
                }
            });
        }));
    }

    /// Makes a device known under its name.
    pub fn plug(&self, medium: &Rc<Medium>) {
        let queue = self.host.queue.borrow();
        let entrance = queue.as_ref().map(|queue| queue.entrance(medium.name()));
        self.host
            .add(SimDisk::at(medium.clone(), self.sched.clone(), entrance));
    }

    /// Tears a device out: it fails at everything from now on, and the hub is told.
    pub fn unplug(&self, medium: &Rc<Medium>) {
        let name = medium.name().to_string();
        medium.faults.set(BROKEN);
        self.host.withdraw(&name);
        let hub = self.hub.clone();
        self.run(async move { hub.removed(&name).await });
    }

    /// Brings a device back, and has it examined.
    pub fn replug(&self, medium: &Rc<Medium>) {
        medium.faults.set(Faults::default());
        self.plug(medium);
        let name = medium.name().to_string();
        let hub = self.hub.clone();
        self.run(async move { hub.examine(&name).await });
    }

    /// Makes the engine's own reads of a range fail.
    pub fn spoil(&self, disk: &str, from: Sector, to: Sector) {
        let flaws = self.host.flaws(disk);
        flaws.unreadable.borrow_mut().push((from, to));
    }

    /// Makes all ranges of all devices readable again.
    pub fn mend(&self) {
        self.host.mend();
    }

    /// One step of everything. Time goes on a little, and to the next event when there is nothing
    /// else to do.
    pub fn turn(&self) {
        let now = self.sched.now_us();
        let done =
            self.sched.run_due() + self.exec.poll(now, 64) + self.hub.poll() + self.host.poll();
        if done > 0 {
            return self.sched.set_now(now + 1);
        }
        self.skip();
    }

    fn skip(&self) {
        let moved = self.sched.skip_to_next(&self.exec);
        assert!(moved, "the hub's clock always ticks");
    }

    /// As [`turn`](Self::turn), in an order and with omissions drawn from the seed.
    pub fn turn_any(&self) {
        let (now, rng) = (self.sched.now_us(), self.sched.rng());
        let (first, lazy) = (rng.below(3), rng.below(4) > 0);
        let mut done = self.sched.run_due();
        let mut all = true;
        for i in 0..3 {
            if lazy && rng.below(4) == 0 {
                all = false;
                continue;
            }
            done += match (first + i) % 3 {
                0 => self.exec.poll(now, 1 + rng.below(16) as usize),
                1 => self.hub.poll(),
                _ => self.host.poll(),
            };
        }
        if done > 0 {
            return self.sched.set_now(now + rng.below(3));
        }
        if all {
            self.skip();
        }
    }

    /// Lets so much simulated time pass.
    pub fn pass(&self, us: u64) {
        let end = self.sched.now_us() + us;
        while self.sched.now_us() < end {
            self.turn();
        }
    }

    /// Starts a job; the slot returned holds what it came to once it has ended.
    pub fn start<T: 'static>(
        &self,
        job: impl Future<Output = T> + 'static,
    ) -> Rc<RefCell<Option<T>>> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let out = slot.clone();
        self.exec.spawn(async move {
            let value = job.await;
            *out.borrow_mut() = Some(value);
        });
        slot
    }

    /// Runs a job to its end.
    pub fn run<T: 'static>(&self, job: impl Future<Output = T> + 'static) -> T {
        let slot = self.start(job);
        self.until("a call", || slot.borrow().is_some());
        let value = slot.borrow_mut().take();
        value.expect("it is there")
    }

    /// Goes on until something is so.
    pub fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = self.sched.now_us() + PATIENCE_US;
        while !is_so() {
            assert!(self.sched.now_us() < end, "{what} hangs");
            self.turn();
        }
    }

    /// Calls a method and waits for the answer.
    ///
    /// # Errors
    /// What the method answers.
    pub fn call(&self, method: &'static str, params: Value) -> Result<Value, RpcError> {
        self.run(rpc::call(self.hub.clone(), method, params))
    }

    /// Calls what must go well.
    pub fn must(&self, method: &'static str, params: Value) -> Value {
        let done = self.call(method, params);
        done.unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    /// Creates "Vol0" of two devices, with these parameters besides.
    ///
    /// # Errors
    /// What the method answers.
    pub fn create(&self, cache: &str, backing: &str, more: Value) -> Result<Value, RpcError> {
        let mut params = json!({"name": "Vol0", "cache_bdev": cache, "backing_bdev": backing});
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        self.call("bdev_bcache_create", params)
    }

    /// Registers a device.
    ///
    /// # Errors
    /// What the method answers.
    pub fn register(&self, bdev: &str) -> Result<Value, RpcError> {
        self.call("bdev_bcache_register", json!({"bdev_name": bdev}))
    }

    /// The only volume, as the list shows it.
    pub fn volume(&self) -> Value {
        let list = self.must("bdev_bcache_get_bdevs", Value::Null);
        let list = list.as_array().expect("a list").clone();
        assert_eq!(list.len(), 1, "{list:?}");
        list[0].clone()
    }

    /// One volume, as the list shows it.
    pub fn volume_of(&self, name: &str) -> Value {
        self.must("bdev_bcache_get_bdevs", json!({"name": name}))[0].clone()
    }

    /// The first set.
    pub fn set(&self) -> Value {
        self.must("bdev_bcache_get_sets", Value::Null)[0].clone()
    }

    /// The UUID of the first set.
    pub fn uuid(&self) -> Value {
        self.set()["set"].clone()
    }

    /// Starts a host I/O; ask [`ended`](Self::ended) for its end.
    pub fn issue(&self, name: &str, kind: Kind, start: u64, memory: Vec<u8>, sectors: u64) -> u64 {
        self.issue_as(name, kind, start, memory, sectors, false)
    }

    /// Starts a write that is to be durable when it is answered.
    pub fn issue_durable(&self, name: &str, start: u64, sectors: u64, byte: u8) -> u64 {
        let memory = vec![byte; sectors as usize * 512];
        self.issue_as(name, Kind::Write, start, memory, sectors, true)
    }

    fn issue_as(
        &self,
        name: &str,
        kind: Kind,
        start: u64,
        memory: Vec<u8>,
        sectors: u64,
        durable: bool,
    ) -> u64 {
        let mut io = HostIo::new(kind, start, sectors, memory);
        io.durable = durable;
        self.host.stage.issue(name, io)
    }

    /// Whether a host I/O has ended.
    pub fn has_ended(&self, tag: u64) -> bool {
        self.host.stage.has_ended(tag)
    }

    /// What a host I/O came to, if it has ended.
    pub fn ended(&self, tag: u64) -> Option<Ended> {
        self.host.stage.ended(tag)
    }

    fn io(&self, name: &str, kind: Kind, start: u64, memory: Vec<u8>, sectors: u64) -> Ended {
        let tag = self.issue(name, kind, start, memory, sectors);
        self.until("a host I/O", || self.host.stage.has_ended(tag));
        self.ended(tag).expect("it has ended")
    }

    /// Discards so many sectors.
    pub fn unmap(&self, name: &str, start: u64, sectors: u64) -> Outcome {
        self.io(name, Kind::Unmap, start, Vec::new(), sectors).0
    }

    /// Zeroes so many sectors.
    pub fn write_zeroes(&self, name: &str, start: u64, sectors: u64) -> Outcome {
        self.io(name, Kind::WriteZeroes, start, Vec::new(), sectors)
            .0
    }

    /// Writes so many sectors full of `byte`.
    pub fn write(&self, name: &str, start: u64, sectors: u64, byte: u8) -> Outcome {
        let memory = vec![byte; sectors as usize * 512];
        self.io(name, Kind::Write, start, memory, sectors).0
    }

    /// Reads so many sectors; `None` when that failed.
    pub fn read(&self, name: &str, start: u64, sectors: u64) -> Option<Vec<u8>> {
        let memory = vec![0xee; sectors as usize * 512];
        let (outcome, memory) = self.io(name, Kind::Read, start, memory, sectors);
        (outcome == Outcome::Success).then_some(memory)
    }

    /// Lets every transfer of a volume's front with one side end so, or none any more.
    pub fn transfers_end(&self, name: &str, ends: Option<(Side, IoError)>) {
        self.host.stage.transfers_end(name, ends);
    }

    /// Whether so many sectors are full of `byte`.
    pub fn holds(&self, name: &str, start: u64, sectors: u64, byte: u8) -> bool {
        let data = self.read(name, start, sectors);
        data.is_some_and(|data| data.iter().all(|&b| b == byte))
    }

    /// Flushes a volume.
    pub fn flush(&self, name: &str) -> Outcome {
        self.io(name, Kind::Flush, 0, Vec::new(), 0).0
    }

    /// Writes the leaves of all sets, durably.
    pub fn write_leaves(&self) {
        for set in self.hub.sets() {
            let done = self.run(async move {
                let done = set.tree.flush().await;
                done.is_ok() && set.disk.flush().await.is_ok()
            });
            assert!(done, "the cache device works");
        }
    }

    /// The end of this life, without a word to anybody.
    pub fn die(self) {
        self.sched.clear();
        self.exec.abandon();
        self.sched.clear();
    }

    /// The end of this life by a power cut.
    pub fn lose_power(self, media: &[&Rc<Medium>]) {
        let rng = Rng::new(self.sched.now_us());
        self.die();
        for medium in media {
            medium.crash(&rng, true);
        }
    }
}

/// The superblock of a device.
///
/// # Panics
/// It has none.
pub fn superblock(medium: &Medium) -> Super {
    check::superblock(medium).expect("a superblock")
}

/// The superblock of a backing device.
///
/// # Panics
/// It has none.
pub fn backing_super(medium: &Medium) -> BackingSuper {
    check::backing_super(medium).expect("a superblock of a backing device")
}

/// The superblock of a cache device.
///
/// # Panics
/// It has none.
pub fn cache_super(medium: &Medium) -> CacheSuper {
    check::cache_super(medium).expect("a superblock of a cache device")
}

/// A device of 32 MiB of zeros.
pub fn blank(name: &str) -> Rc<Medium> {
    Medium::new(name, 65536, 1)
}
