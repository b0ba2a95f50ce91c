//! One life of a machine for tests of the lifecycle: simulated devices that can be unplugged and
//! can fail, a host that serves volumes through fronts, and RPCs as people call them.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, ready};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use serde_json::{Value, json};
use spdk_bcache::disk::{Buf, BufFuture, Disk, DoneFuture, IoError};
use spdk_bcache::format::superblock::{BackingSuper, CacheSuper, SUPER_SECTOR, Super, parse};
use spdk_bcache::request::Kind;
use spdk_bcache::request::front::Front;
use spdk_bcache::request::lane::{Outcome, Side};
use spdk_bcache::request::volume::VolumeShared;
use spdk_bcache::rng::Rng;
use spdk_bcache::rpc::{self, RpcError};
use spdk_bcache::set::host::{Host, OpenError};
use spdk_bcache::set::hub::Hub;
use spdk_bcache::sim::disk::{Faults, Medium, SimDisk};
use spdk_bcache::sim::lane::SimLane;
use spdk_bcache::sim::sched::Sched;
use spdk_bcache::task::{Executor, Notify, OnceSender, once};
use spdk_bcache::units::Sector;

/// Simulated time that a call may take: 10 min.
pub const PATIENCE_US: u64 = 600_000_000;
/// A device that fails at everything.
pub const BROKEN: Faults = Faults {
    read: 1,
    write: 1,
    flush: 1,
};

/// Ranges of a device, shared with whoever changes them.
type Ranges = Rc<RefCell<Vec<(Sector, Sector)>>>;
type Look = Box<dyn Fn(bool)>;

/// Whether a device answers the engine's own writes and flushes now, or later.
#[derive(Default)]
pub struct Silence {
    silent: Cell<bool>,
    ended: Notify,
}

impl Silence {
    /// Begins, or ends: what waits is then done.
    pub fn set(&self, silent: bool) {
        self.silent.set(silent);
        self.ended.notify();
    }

    async fn over(self: Rc<Self>) {
        while self.silent.get() {
            self.ended.wait().await;
        }
    }
}

/// A device as the engine's own I/O sees it: some ranges of it may not be readable, and it may be
/// silent.
struct Flaky {
    inner: Rc<SimDisk>,
    bad: Ranges,
    silence: Rc<Silence>,
}

impl Disk for Flaky {
    fn name(&self) -> String {
        self.inner.name()
    }
    fn kind(&self) -> &str {
        self.inner.kind()
    }
    fn size_sectors(&self) -> u64 {
        self.inner.size_sectors()
    }
    fn block_sectors(&self) -> u32 {
        self.inner.block_sectors()
    }
    fn alloc(&self, bytes: usize) -> Buf {
        self.inner.alloc(bytes)
    }
    fn read(&self, at: Sector, buf: Buf) -> BufFuture {
        let end = at + (buf.len() / 512) as u64;
        let bad = self.bad.borrow();
        match bad.iter().any(|&(from, to)| from < end && at < to) {
            true => Box::pin(ready((buf, Err(IoError::Failed)))),
            false => self.inner.read(at, buf),
        }
    }
    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        if self.silence.silent.get() {
            let (silence, inner) = (self.silence.clone(), self.inner.clone());
            return Box::pin(async move {
                silence.over().await;
                inner.write(at, buf).await
            });
        }
        self.inner.write(at, buf)
    }
    fn flush(&self) -> DoneFuture {
        if self.silence.silent.get() {
            let (silence, inner) = (self.silence.clone(), self.inner.clone());
            return Box::pin(async move {
                silence.over().await;
                inner.flush().await
            });
        }
        self.inner.flush()
    }
    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.inner.unmap(at, sectors)
    }
    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.inner.write_zeroes(at, sectors)
    }
    fn unmap_reads_zeros(&self) -> bool {
        self.inner.unmap_reads_zeros()
    }
}

/// A host I/O that has not reached a front.
struct HostIo {
    tag: u64,
    kind: Kind,
    start: u64,
    sectors: u64,
    memory: Vec<u8>,
    durable: bool,
}

/// What a volume is to be made of.
struct Change {
    shared: Arc<VolumeShared>,
    cache: Option<String>,
    done: OnceSender<Result<(), IoError>>,
}

/// A volume that hosts see.
struct Shown {
    shared: Arc<VolumeShared>,
    backing: Option<String>,
    front: Option<Front<SimLane>>,
    held: VecDeque<HostIo>,
    /// One after the other; new I/O waits meanwhile.
    changes: VecDeque<Change>,
    /// Those that wait for the volume to be gone, which it is when hosts have their answers.
    going: Vec<OnceSender<Result<(), IoError>>>,
}

impl Shown {
    /// Gives an I/O to the front, unless it waits for the cache device.
    fn take(&mut self, io: HostIo) {
        match self
            .shared
            .holds_back(io.kind, Sector(io.start), io.sectors)
        {
            true => self.held.push_back(io),
            false => submit(self.front.as_ref().expect("a shown volume"), io),
        }
    }
}

/// What a host I/O came to: how it ended, and the memory.
pub type Ended = (Outcome, Vec<u8>);

/// The world as the hub sees it.
pub struct TestHost {
    rng: Rc<Rng>,
    sched: Sched,
    disks: RefCell<BTreeMap<String, Rc<SimDisk>>>,
    bad: RefCell<BTreeMap<String, Ranges>>,
    silences: RefCell<BTreeMap<String, Rc<Silence>>>,
    opened: RefCell<Vec<Weak<Flaky>>>,
    shown: RefCell<BTreeMap<String, Shown>>,
    ended: RefCell<BTreeMap<u64, Ended>>,
    next_tag: Cell<u64>,
    /// Called when a volume is about to be made of something else, and whether with a cache.
    pub on_replace: RefCell<Option<Look>>,
    /// The sizes that hosts were told of, in sectors.
    pub resized: RefCell<Vec<(String, u64)>>,
    /// Other names of bdevs, and the volumes that a host has open.
    pub aliases: RefCell<BTreeMap<String, String>>,
    pub open: RefCell<BTreeSet<String>>,
    /// Why the process would have ended itself.
    pub died: RefCell<Option<String>>,
    /// Devices that are being removed: they work, and cannot be opened.
    pub leaving: RefCell<BTreeSet<String>>,
}

impl TestHost {
    fn disk(&self, name: &str) -> Option<Rc<SimDisk>> {
        self.disks.borrow().get(name).cloned()
    }

    /// What makes a device silent.
    pub fn silence(&self, name: &str) -> Rc<Silence> {
        self.silences
            .borrow_mut()
            .entry(name.into())
            .or_default()
            .clone()
    }

    /// Whether somebody has a device open.
    pub fn holds_open(&self, name: &str) -> bool {
        let opened = self.opened.borrow();
        let mut opened = opened.iter().filter_map(Weak::upgrade);
        opened.any(|disk| disk.name() == name)
    }

    /// The volumes that are shown.
    pub fn shown(&self) -> Vec<String> {
        self.shown.borrow().keys().cloned().collect()
    }

    /// Takes a device away that nothing uses.
    pub fn withdraw(&self, name: &str) {
        self.disks.borrow_mut().remove(name);
    }

    /// Whether a volume is shown and about to be no more.
    pub fn is_going(&self, name: &str) -> bool {
        let shown = self.shown.borrow();
        shown.get(name).is_some_and(|v| !v.going.is_empty())
    }

    fn front(
        &self,
        shared: &Arc<VolumeShared>,
        cache: Option<String>,
        backing: &Option<String>,
    ) -> Front<SimLane> {
        let cache = cache.and_then(|name| self.disk(&name));
        let backing = backing.as_ref().and_then(|name| self.disk(name));
        Front::new(SimLane::new(cache, backing), shared.clone()).expect("a reader's slot")
    }

    fn fail(&self, io: HostIo) {
        let mut ended = self.ended.borrow_mut();
        ended.insert(io.tag, (Outcome::Failed, io.memory));
    }

    fn begin(&self, name: &str, io: HostIo) {
        let mut shown = self.shown.borrow_mut();
        match shown.get_mut(name) {
            None => self.fail(io),
            Some(volume) if !volume.changes.is_empty() => volume.held.push_back(io),
            Some(volume) => volume.take(io),
        }
    }

    /// Everybody's front runs once. Returns how much was done.
    fn poll(&self) -> usize {
        let names: Vec<String> = self.shown();
        names.iter().map(|name| self.poll_one(name)).sum()
    }

    fn poll_one(&self, name: &str) -> usize {
        let mut shown = self.shown.borrow_mut();
        let Some(volume) = shown.get_mut(name) else {
            return 0;
        };
        let front = volume.front.as_ref().expect("a shown volume");
        let mut done = SimLane::deliver(front, 8) + front.poll();
        while let Some((io, outcome)) = front.lane().finished() {
            let memory = io.host().memory.borrow().clone();
            self.ended
                .borrow_mut()
                .insert(io.host().tag, (outcome, memory));
            done += 1;
        }
        let goes = !volume.going.is_empty() && volume.held.is_empty();
        if volume.changes.is_empty() && !goes || !front.is_idle() || !front.close() {
            return done;
        }
        if let Some(Change {
            shared,
            cache,
            done,
        }) = volume.changes.pop_front()
        {
            volume.front = Some(self.front(&shared, cache, &volume.backing));
            volume.shared = shared;
            if volume.changes.is_empty() {
                for io in std::mem::take(&mut volume.held) {
                    volume.take(io);
                }
            }
            done.send(Ok(()));
        } else if let Some(volume) = shown.remove(name) {
            volume.going.into_iter().for_each(|gone| gone.send(Ok(())));
        }
        done + 1
    }
}

fn submit(front: &Front<SimLane>, io: HostIo) {
    let HostIo {
        tag,
        kind,
        start,
        sectors,
        memory,
        durable,
    } = io;
    let io = front.lane().host_io(tag, memory);
    io.start(kind, Sector(start), sectors);
    io.must_be_durable(durable);
    front.submit(io);
}

impl Host for TestHost {
    fn open(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        let inner = self.disk(name).ok_or(OpenError::NotFound)?;
        if self.leaving.borrow().contains(name) {
            return Err(OpenError::NotFound);
        }
        let bad = self
            .bad
            .borrow_mut()
            .entry(name.into())
            .or_default()
            .clone();
        let silence = self.silence(name);
        let disk = Rc::new(Flaky {
            inner,
            bad,
            silence,
        });
        self.opened.borrow_mut().push(Rc::downgrade(&disk));
        Ok(disk)
    }
    fn peek(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError> {
        self.open(name)
    }
    fn resolve(&self, name: &str) -> Option<String> {
        let aliases = self.aliases.borrow();
        let own = aliases.get(name).map_or(name, String::as_str);
        self.is_taken(own).then(|| own.to_string())
    }
    fn is_open(&self, name: &str) -> bool {
        self.open.borrow().contains(name)
    }
    fn is_taken(&self, name: &str) -> bool {
        self.disks.borrow().contains_key(name) || self.shown.borrow().contains_key(name)
    }
    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<dyn Disk>>,
        cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32> {
        const EEXIST: i32 = 17;
        if self.shown.borrow().contains_key(&volume.name) {
            return Err(EEXIST);
        }
        let backing = backing.map(|disk| disk.name());
        let front = self.front(&volume, cache.map(|disk| disk.name()), &backing);
        let shown = Shown {
            shared: volume.clone(),
            backing,
            front: Some(front),
            held: VecDeque::new(),
            changes: VecDeque::new(),
            going: Vec::new(),
        };
        self.shown.borrow_mut().insert(volume.name.clone(), shown);
        Ok(())
    }
    fn hide(&self, name: &str) -> DoneFuture {
        let (sender, gone) = once();
        match self.shown.borrow_mut().get_mut(name) {
            Some(volume) => {
                volume.going.push(sender);
                // What has not begun is not done any more.
                let late = volume.changes.drain(1.min(volume.changes.len())..);
                volume.going.extend(late.map(|change| change.done));
            }
            None => sender.send(Ok(())),
        }
        Box::pin(gone)
    }
    fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<dyn Disk>>) -> DoneFuture {
        if let Some(look) = &*self.on_replace.borrow() {
            look(cache.is_some());
        }
        let (sender, done) = once();
        match self.shown.borrow_mut().get_mut(&volume.name) {
            Some(shown) if !shown.going.is_empty() => shown.going.push(sender),
            Some(shown) => shown.changes.push_back(Change {
                shared: volume,
                cache: cache.map(|disk| disk.name()),
                done: sender,
            }),
            None => sender.send(Ok(())),
        }
        Box::pin(done)
    }
    fn resize(&self, name: &str, size_sectors: u64) -> Result<(), i32> {
        self.resized.borrow_mut().push((name.into(), size_sectors));
        Ok(())
    }
    fn panic(&self, why: &str) {
        *self.died.borrow_mut() = Some(why.into());
    }
    fn entropy(&self) -> u64 {
        self.rng.next()
    }
    fn now_s(&self) -> u32 {
        1_700_000_000 + (self.sched.now_us() / 1_000_000) as u32
    }
}

/// One life of a machine.
pub struct Machine {
    pub sched: Sched,
    pub exec: Executor,
    pub host: Rc<TestHost>,
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
        let exec = Executor::new();
        let sched = Sched::new(0, rng.clone());
        let host = Rc::new(TestHost {
            rng,
            sched: sched.clone(),
            disks: RefCell::default(),
            bad: RefCell::default(),
            silences: RefCell::default(),
            opened: RefCell::default(),
            shown: RefCell::default(),
            ended: RefCell::default(),
            next_tag: Cell::new(1),
            on_replace: RefCell::default(),
            resized: RefCell::default(),
            aliases: RefCell::default(),
            open: RefCell::default(),
            died: RefCell::default(),
            leaving: RefCell::default(),
        });
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

    /// Makes a device known under its name.
    pub fn plug(&self, medium: &Rc<Medium>) {
        let disk = SimDisk::new(medium.clone(), self.sched.clone());
        self.host.disks.borrow_mut().insert(disk.name(), disk);
    }

    /// Tears a device out: it fails at everything from now on, and the hub is told.
    pub fn unplug(&self, medium: &Rc<Medium>) {
        let name = SimDisk::new(medium.clone(), self.sched.clone()).name();
        medium.faults.set(BROKEN);
        self.host.disks.borrow_mut().remove(&name);
        let hub = self.hub.clone();
        self.run(async move { hub.removed(&name).await });
    }

    /// Brings a device back, and has it examined.
    pub fn replug(&self, medium: &Rc<Medium>) {
        medium.faults.set(Faults::default());
        self.plug(medium);
        let name = SimDisk::new(medium.clone(), self.sched.clone()).name();
        let hub = self.hub.clone();
        self.run(async move { hub.examine(&name).await });
    }

    /// Makes the engine's own reads of a range fail.
    pub fn spoil(&self, disk: &str, from: Sector, to: Sector) {
        let mut bad = self.host.bad.borrow_mut();
        bad.entry(disk.into())
            .or_default()
            .borrow_mut()
            .push((from, to));
    }

    /// Makes all ranges of all devices readable again.
    pub fn mend(&self) {
        let bad = self.host.bad.borrow();
        bad.values().for_each(|ranges| ranges.borrow_mut().clear());
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
        let next = [self.sched.next_us(), self.exec.next_timer_us()];
        let next = next.into_iter().flatten().min();
        self.sched
            .set_now(next.expect("the hub's clock always ticks"));
    }

    /// Lets so much simulated time pass.
    pub fn pass(&self, us: u64) {
        let end = self.sched.now_us() + us;
        while self.sched.now_us() < end {
            self.turn();
        }
    }

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

    pub fn call(&self, method: &'static str, params: Value) -> Result<Value, RpcError> {
        self.run(rpc::call(self.hub.clone(), method, params))
    }

    /// Calls what must go well.
    pub fn must(&self, method: &'static str, params: Value) -> Value {
        let done = self.call(method, params);
        done.unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    pub fn create(&self, cache: &str, backing: &str, more: Value) -> Result<Value, RpcError> {
        let mut params = json!({"name": "Vol0", "cache_bdev": cache, "backing_bdev": backing});
        for (key, value) in more.as_object().into_iter().flatten() {
            params[key] = value.clone();
        }
        self.call("bdev_bcache_create", params)
    }

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
        let tag = self.host.next_tag.get();
        self.host.next_tag.set(tag + 1);
        let io = HostIo {
            tag,
            kind,
            start,
            sectors,
            memory,
            durable,
        };
        self.host.begin(name, io);
        tag
    }

    /// Whether a host I/O has ended.
    pub fn has_ended(&self, tag: u64) -> bool {
        self.host.ended.borrow().contains_key(&tag)
    }

    /// What a host I/O came to, if it has ended.
    pub fn ended(&self, tag: u64) -> Option<Ended> {
        self.host.ended.borrow_mut().remove(&tag)
    }

    fn io(&self, name: &str, kind: Kind, start: u64, memory: Vec<u8>, sectors: u64) -> Ended {
        let tag = self.issue(name, kind, start, memory, sectors);
        self.until("a host I/O", || self.host.ended.borrow().contains_key(&tag));
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
        let shown = self.host.shown.borrow();
        let front = shown[name].front.as_ref().expect("a shown volume");
        front.lane().ends.set(ends);
    }

    /// Whether so many sectors are full of `byte`.
    pub fn holds(&self, name: &str, start: u64, sectors: u64, byte: u8) -> bool {
        let data = self.read(name, start, sectors);
        data.is_some_and(|data| data.iter().all(|&b| b == byte))
    }

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
            medium.kill(&rng);
            medium.cut_power(&rng);
        }
    }
}

pub fn superblock(medium: &Medium) -> Super {
    parse(&medium.peek(SUPER_SECTOR, 8)).expect("a superblock")
}

pub fn backing_super(medium: &Medium) -> BackingSuper {
    match superblock(medium) {
        Super::Backing(sb) => sb,
        Super::Cache(_) => panic!("a cache device"),
    }
}

pub fn cache_super(medium: &Medium) -> CacheSuper {
    match superblock(medium) {
        Super::Cache(sb) => sb,
        Super::Backing(_) => panic!("a backing device"),
    }
}

/// A device of 32 MiB of zeros.
pub fn blank(name: &str) -> Rc<Medium> {
    Medium::new(name, 65536, 1)
}
