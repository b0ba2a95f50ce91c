//! A random operator: hosts, devices that fail and move, and every method of the RPC, from one seed.
//!
//! A run is a few lives of one [`Machine`] on the same devices. All that the
//! world knows of the product comes from JSON answers, from what hosts read, and, at rest and in
//! [`shadow`]s, from what stands on the devices; it never looks into the engine.
//!
//! - Each *step* of a life lets the machine run for a while, then does one thing: host I/O, a call, or
//!   something that befalls a device. A step draws from a generator seeded by its number, so a run in
//!   which steps are left out ([`plan::Cut`]) still does the others.
//! - A volume is known by its UUID. An [`Oracle`] knows what each sector may hold; see there for what
//!   crashes, failed sets and data that were given up make of it.
//! - A life ends by a stop in good order, a kill, or a power cut, perhaps while sets recover. After each
//!   the devices are judged at rest ([`ends`]); after the last, all volumes must be up again.
//!
//! | file | what |
//! |---|---|
//! | [`plan`] | features, and what a seed draws |
//! | [`aged`] | sets that are there when a run begins |
//! | [`load`] | host I/O |
//! | [`mix`] | its phases |
//! | [`calls`] | the methods |
//! | [`events`] | what befalls devices |
//! | [`shadow`] | recovery of copies of the devices while the life goes on |
//! | [`ends`] | starts and ends of lives |
//! | [`met`] | what lives met |
//! | [`runs`] | many seeds; the least that still fails |

pub mod aged;
pub mod calls;
pub mod ends;
pub mod events;
pub mod load;
pub mod met;
pub mod mix;
pub mod plan;
pub mod runs;
pub mod shadow;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use serde_json::{Value, json};

use super::bytes::Bytes;
use super::disk::Medium;
use super::machine::Machine;
use super::oracle::Oracle;
use crate::rng::Rng;
use crate::rpc::{self, RpcError};
use crate::units::SECTOR_BYTES;
use aged::Gallery;
use events::Device;
use load::Op;
use met::Met;
use mix::Mix;
use plan::{Cut, Plan};

/// Simulated time in which a call or a host I/O must end where all devices answer: as long as two I/Os,
/// one for the other, wait for cache devices that are away (`cache_missing_timeout_s`), and a minute.
const PATIENCE_US: u64 = 1_260_000_000;
/// Turns that a wait may take.
const TURNS_MAX: u64 = 4_000_000;
/// Of so many flushes that are answered, one is tried at once: what the devices hold is judged.
const PROMISES_TRIED: u64 = 4;
/// Of so many of those, a second machine starts in one.
const PROMISES_STARTED: u64 = 8;
/// A second machine starts in one of so many other shadows.
const SHADOWS_STARTED: u64 = 2;
/// Host I/O begins in one of so many turns, beside that of steps.
const TURNS_AN_IO: u64 = 12;
/// Lines of the log that are kept.
const LOG_MAX: usize = 400;

type Slot<T> = Rc<RefCell<Option<T>>>;

/// A call under way.
struct Call {
    method: &'static str,
    params: Value,
    answer: Slot<Result<Value, RpcError>>,
    began_us: u64,
    /// The volume that its name was then.
    uuid: Option<String>,
    /// The dirty volumes that were absent when it began, by name.
    absent: BTreeSet<String>,
}

/// A volume, as the world knows it. Its place in the list of known ones is its number with the oracle.
struct Known {
    uuid: String,
    /// Its backing device; none for one on the cache alone.
    device: Option<usize>,
    /// The set that it is on, or was in last.
    set: Option<String>,
    /// Whether it may be missing at the end: its making or removal may have been cut short.
    in_doubt: bool,
    /// It was removed for good.
    gone: bool,
    /// Its data, or a part, may have been given up by request.
    given_up: bool,
    /// Sectors that hosts may use now; all if none.
    limit: Option<u64>,
    /// Where it stands in a stack of volumes; what such ones hold is not followed.
    floor: Floor,
    /// Where a host I/O in order goes next.
    next: u64,
}

/// Where a volume stands in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Floor {
    /// In none.
    Ground,
    /// It carries another one, or may: hosts leave it alone.
    Lower,
    /// It lies on this one.
    Upper(usize),
}

/// A volume as `bdev_bcache_get_bdevs` lists it.
#[derive(Clone)]
struct Listed {
    name: String,
    uuid: String,
    running: bool,
    mode: String,
    set: Option<String>,
    backing: Option<String>,
    kind: String,
    sectors: u64,
}

/// The world.
pub struct World {
    plan: Plan,
    cut: Cut,
    rng: Rc<Rng>,
    devices: Vec<Device>,
    /// What the run begins with, and its backing devices.
    aged: Option<(&'static str, usize)>,
    /// What volumes hold that are there when the run begins, by UUID.
    contents: BTreeMap<String, Bytes>,
    known: Vec<Known>,
    oracle: Oracle,
    machine: Option<Machine>,
    list: Vec<Listed>,
    sets: Vec<Value>,
    ops: BTreeMap<u64, Op>,
    calls: Vec<Call>,
    next_value: u32,
    now_us: u64,
    /// Steps so far, over all lives.
    step: u64,
    /// Whether devices or the operator may be the cause of a failed host I/O in this life.
    disturbed: bool,
    /// The same of any life so far.
    ever_disturbed: bool,
    /// A call that drops data of a set has ended in the middle, with the set: a start goes on with it.
    broken_off: bool,
    /// When a device last did not do what it should.
    noise_us: u64,
    /// Bytes that hosts have written in this run.
    written: u64,
    /// What hosts do now.
    mix: Mix,
    /// A flush, or a durable write, was answered well in this turn.
    promised: bool,
    /// The volume that was last named in a call.
    focus: Option<String>,
    /// The nodes that each set's btree had last.
    nodes: BTreeMap<String, u64>,
    met: Met,
    log: VecDeque<String>,
    trace: bool,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub struct Wrong {
    /// The step in which it was seen.
    pub step: u64,
    /// What.
    pub why: String,
    /// The last lines of the log.
    pub log: Vec<String>,
}

fn mix(seed: u64, nr: u64) -> u64 {
    Rng::new(seed ^ nr.wrapping_mul(0xd6e8_feb8_6659_fd93)).next()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_string)
}

impl World {
    /// A world of blank devices, or of some with a set if the plan wants it.
    pub fn new(mut plan: Plan, cut: Cut, gallery: &Gallery) -> World {
        let rng = Rc::new(Rng::new(plan.seed));
        let aged = gallery.pick(&plan);
        let old = aged.map_or(&[][..], |aged| &aged.backings);
        if let Some(aged) = aged {
            plan.begin_with(aged);
        }
        let mut devices = Vec::new();
        let blank = |sectors: u64| Bytes::zeros(sectors as usize * SECTOR_BYTES);
        for (i, fast) in plan.fast.iter().enumerate() {
            let bytes = match aged.filter(|_| i == 0) {
                Some(aged) => aged.cache.clone(),
                None => blank(fast.nbuckets * fast.bucket_kb * 2),
            };
            devices.push(Device::new(&format!("fast{i}"), bytes, true, &plan));
        }
        let slow = plan.slow_sectors.iter().map(|&sectors| blank(sectors));
        for (i, bytes) in old.iter().cloned().chain(slow).enumerate() {
            devices.push(Device::new(&format!("slow{i}"), bytes, false, &plan));
        }
        World {
            aged: aged.map(|aged| (aged.name, aged.backings.len())),
            contents: aged.map(|aged| aged.contents.clone()).unwrap_or_default(),
            plan,
            cut,
            rng,
            devices,
            known: Vec::new(),
            oracle: Oracle::new(&[]),
            machine: None,
            list: Vec::new(),
            sets: Vec::new(),
            ops: BTreeMap::new(),
            calls: Vec::new(),
            next_value: 1,
            now_us: 0,
            step: 0,
            disturbed: false,
            ever_disturbed: false,
            broken_off: false,
            noise_us: 0,
            written: 0,
            mix: Mix::draw(&Rng::new(0)),
            promised: false,
            focus: None,
            nodes: BTreeMap::new(),
            met: Met::default(),
            log: VecDeque::new(),
            trace: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    /// Lives all lives; what they met.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn run(&mut self) -> Result<Met, Wrong> {
        let done = self.lives();
        done.map_err(|why| self.wrong(why))?;
        Ok(std::mem::take(&mut self.met))
    }

    /// What is wrong, at which step, and what the run did last.
    pub(super) fn wrong(&self, why: String) -> Wrong {
        Wrong {
            step: self.step,
            why,
            log: self.log.iter().cloned().collect(),
        }
    }

    fn lives(&mut self) -> Result<(), String> {
        let ends = self.plan.ends.clone();
        for (i, &end) in ends.iter().enumerate() {
            self.rng.reseed(mix(self.plan.seed, (i as u64 + 1) << 32));
            let lived = self.live(i, end);
            lived.map_err(|why| format!("life {i} ({end:?}): {why}"))?;
        }
        self.rng.reseed(mix(self.plan.seed, 1 << 60));
        self.last_life().map_err(|why| format!("last life: {why}"))
    }

    fn steps(&mut self) -> Result<(), String> {
        for _ in 0..self.plan.steps {
            self.step += 1;
            if self.cut.skip.contains(&self.step) {
                continue;
            }
            self.rng.reseed(mix(self.plan.seed, self.step));
            self.one_step()?;
        }
        Ok(())
    }

    fn one_step(&mut self) -> Result<(), String> {
        // Hosts do not wait for the operator: what calls do in between meets their I/O, too.
        for _ in 0..[0, 1, 3, 10, 40, 150][self.rng.below(6) as usize] {
            self.turn()?;
            if self.chance(TURNS_AN_IO) {
                self.draw_io();
            }
        }
        self.look()?;
        self.take_calls()?;
        self.take_events()?;
        self.check_patience()?;
        if self.chance(40) {
            self.mix = Mix::draw(&self.rng);
        }
        let what = self.rng.below(100);
        if what < self.plan.calls {
            if self.calls.len() < 6 {
                self.draw_call();
            }
        } else if what < self.plan.calls + self.plan.events {
            self.draw_event()?;
        } else if what < self.plan.calls + self.plan.events + 3 {
            self.draw_shadow(SHADOWS_STARTED)?;
        } else {
            for _ in 0..1 + self.rng.below(self.mix.burst) {
                self.draw_io();
            }
        }
        Ok(())
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self
            .machine
            .as_ref()
            .map_or(self.now_us, |m| m.sched.now_us());
        let line = format!("{now:>12} #{} {}", self.step, what());
        if self.trace {
            eprintln!("{line}");
        }
        if self.log.len() >= LOG_MAX {
            self.log.pop_front();
        }
        self.log.push_back(line);
    }

    fn m(&self) -> &Machine {
        self.machine.as_ref().expect("a life is going on")
    }

    fn now(&self) -> u64 {
        self.m().sched.now_us()
    }

    fn media(&self) -> Vec<Rc<Medium>> {
        self.devices.iter().map(|d| d.medium.clone()).collect()
    }

    // --- time ---

    fn turn(&mut self) -> Result<(), String> {
        self.m().turn_any();
        self.notice_opens();
        self.take_answers()?;
        // What was promised must hold from the first moment on.
        if std::mem::take(&mut self.promised) && self.chance(PROMISES_TRIED) {
            self.draw_shadow(PROMISES_STARTED)?;
        }
        Ok(())
    }

    /// Goes on until something is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&World) -> bool) -> Result<(), String> {
        let end = self.now() + PATIENCE_US;
        for _ in 0..TURNS_MAX {
            if is_so(self) {
                return Ok(());
            }
            if self.now() > end {
                break;
            }
            self.turn()?;
        }
        let calls: Vec<String> = self.calls.iter().map(Call::describe).collect();
        let stage = self.m().host.stage.describe();
        Err(format!("{what} hangs; calls under way: {calls:?}; {stage}"))
    }

    fn pass(&mut self, us: u64) -> Result<(), String> {
        let end = self.now() + us;
        while self.now() < end {
            self.turn()?;
        }
        Ok(())
    }

    /// Runs a job to its end.
    fn wait<T: 'static>(
        &mut self,
        what: &str,
        job: impl Future<Output = T> + 'static,
    ) -> Result<T, String> {
        let slot = self.m().start(job);
        self.until(what, |_| slot.borrow().is_some())?;
        let value = slot.borrow_mut().take();
        Ok(value.expect("it is there"))
    }

    // --- what the product says ---

    /// Asks a method that answers at once.
    fn ask(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let call = pin!(rpc::call(self.m().hub.clone(), method, params));
        match call.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("{method} waits for something"),
        }
    }

    /// Takes the lists of volumes and sets, and checks what they say.
    fn look(&mut self) -> Result<(), String> {
        let list = self.ask("bdev_bcache_get_bdevs", Value::Null);
        let list = list.map_err(|e| e.message)?;
        let listed = |v: &Value| Listed {
            name: text(&v["name"]).unwrap_or_default(),
            uuid: text(&v["uuid"]).unwrap_or_default(),
            running: v["running"] == true,
            mode: text(&v["cache_mode"]).unwrap_or_default(),
            set: text(&v["set"]),
            backing: text(&v["backing_bdev"]),
            kind: text(&v["kind"]).unwrap_or_default(),
            sectors: v["size_bytes"].as_u64().unwrap_or(0) / SECTOR_BYTES as u64,
        };
        self.list = list.as_array().into_iter().flatten().map(listed).collect();
        let sets = self.ask("bdev_bcache_get_sets", Value::Null);
        let sets = sets.map_err(|e| e.message)?;
        self.sets = sets.as_array().cloned().unwrap_or_default();
        self.adopt()?;
        self.check_figures()?;
        self.note_sets();
        Ok(())
    }

    /// Volumes that have come up for the first time.
    fn adopt(&mut self) -> Result<(), String> {
        for volume in self.list.clone() {
            if !volume.running {
                continue;
            }
            let device = volume.backing.as_ref().and_then(|b| self.device(b));
            let found = self.known.iter().position(|k| k.uuid == volume.uuid);
            let Some(i) = found else {
                let other = self
                    .known
                    .iter()
                    .find(|k| device.is_some() && k.device == device && !k.in_doubt);
                if let Some(other) = other {
                    return Err(format!(
                        "{} shows volume {} in the place of {}",
                        volume.name, volume.uuid, other.uuid
                    ));
                }
                let floor = self.floor_of(&volume);
                if floor != Floor::Ground {
                    self.met.note("a volume on a volume");
                }
                self.note(|| format!("{} is volume {}, {floor:?}", volume.name, volume.uuid));
                let contents = self.contents.get(&volume.uuid).cloned();
                let nr = self.oracle.add(volume.sectors, contents);
                assert_eq!(nr, self.known.len());
                self.known.push(Known {
                    uuid: volume.uuid,
                    device,
                    set: volume.set,
                    // Its superblock may not be durable where a device has failed.
                    in_doubt: self.disturbed,
                    gone: false,
                    given_up: false,
                    limit: None,
                    floor,
                    next: 0,
                });
                continue;
            };
            let known = &mut self.known[i];
            if known.gone {
                return Err(format!("volume {} is back, and was deleted", volume.uuid));
            }
            known.set = volume.set.clone().or(known.set.take());
            if volume.kind == "cached" && known.device != device {
                return Err(format!(
                    "volume {} runs on {:?}, a copy of its device",
                    volume.name, volume.backing
                ));
            }
            if volume.sectors > self.oracle.sectors(i) {
                self.oracle.resize(i, volume.sectors);
            }
        }
        Ok(())
    }

    /// Where a volume that has come up stands.
    fn floor_of(&self, volume: &Listed) -> Floor {
        let on = |v: &&Listed| volume.backing.as_ref() == Some(&v.name);
        let lower = self.list.iter().find(on);
        let lower = lower.and_then(|v| self.known.iter().position(|k| k.uuid == v.uuid));
        lower.map_or(Floor::Ground, Floor::Upper)
    }

    fn check_figures(&mut self) -> Result<(), String> {
        let mut uuids = BTreeSet::new();
        for volume in self.list.iter().filter(|v| v.running) {
            if !uuids.insert(&volume.uuid) {
                return Err(format!("the UUID {} runs twice", volume.uuid));
            }
        }
        for set in &self.sets {
            if set["state"] == "failed" && !self.disturbed {
                return Err(format!("a set has failed: {}", set["failure"]));
            }
            let device = &set["devices"][0];
            let figure = |name: &str| device[name].as_u64().unwrap_or(0);
            let room = figure("nbuckets") * figure("bucket_size_kb") << 10;
            let dirty = set["dirty_bytes"].as_u64().unwrap_or(u64::MAX);
            let each = set["known_volumes"].as_array().into_iter().flatten();
            let sum: u64 = each.filter_map(|v| v["dirty_bytes"].as_u64()).sum();
            if dirty > room || dirty != sum {
                return Err(format!("{dirty} bytes are dirty of {room}: {set}"));
            }
        }
        Ok(())
    }

    fn note_sets(&mut self) {
        for set in self.sets.clone() {
            let uuid = text(&set["set"]).unwrap_or_default();
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            let nodes = number(&set["btree_nodes"]);
            let before = self.nodes.insert(uuid, nodes).unwrap_or(nodes);
            if nodes > before {
                self.met.note("a btree node was split");
            }
            if number(&set["tree_depth"]) > 1 {
                self.met
                    .note(format!("a tree of {} levels", set["tree_depth"]));
            }
            let journal = &set["journal"];
            if number(&journal["open_seq"]) > number(&journal["blocks"]) {
                self.met.note("a journal that has wrapped");
            }
            if set["state"] == "failed" {
                self.met.note("a set that failed");
            }
            let device = &set["devices"][0];
            let room = number(&device["nbuckets"]) * number(&device["bucket_size_kb"]) << 10;
            if self.written > room {
                self.met.note("more written than the cache holds");
            }
        }
    }

    /// Nothing that could have ended is still under way.
    fn check_patience(&mut self) -> Result<(), String> {
        let now = self.now();
        if self.devices.iter().any(|device| !device.is_sound(self.m())) {
            self.noise_us = now;
        }
        let late = |began: u64| now > began.max(self.noise_us) + PATIENCE_US;
        if let Some(call) = self.calls.iter().find(|call| late(call.began_us)) {
            let stage = self.m().host.stage.describe();
            return Err(format!("{} hangs; {stage}", call.describe()));
        }
        match self.ops.values().find(|op| late(op.issued_us)) {
            Some(op) => {
                let stage = self.m().host.stage.describe();
                Err(format!("{} hangs; {stage}", op.describe()))
            }
            None => Ok(()),
        }
    }

    // --- volumes and devices by name ---

    fn device(&self, bdev: &str) -> Option<usize> {
        self.devices.iter().position(|d| d.medium.name() == bdev)
    }

    /// The entry of the list that shows a volume on its own device.
    fn listed(&self, i: usize) -> Option<&Listed> {
        let known = &self.known[i];
        self.list
            .iter()
            .find(|v| v.uuid == known.uuid && !v.name.is_empty())
    }

    /// The set that runs on a cache device, or ran there last.
    fn set_on(&self, bdev: &str) -> Option<String> {
        let on = |set: &&Value| set["devices"][0]["bdev_name"] == bdev;
        let running = self.sets.iter().find(on).and_then(|set| text(&set["set"]));
        running.or_else(|| self.device(bdev).and_then(|d| self.devices[d].set.clone()))
    }

    /// A device does not do what it should, or is not there.
    fn disturb(&mut self) {
        (self.disturbed, self.ever_disturbed) = (true, true);
    }

    /// A device is examined; the slot returned is filled when that has ended.
    fn examine(&self, bdev: String) -> Slot<()> {
        let hub = self.m().hub.clone();
        self.m().start(async move { hub.examine(&bdev).await })
    }

    fn fasts(&self) -> Vec<usize> {
        (0..self.devices.len())
            .filter(|&d| self.devices[d].is_fast)
            .collect()
    }

    fn any<T: Clone>(&self, choices: &[T]) -> T {
        self.rng.any(choices).clone()
    }

    fn chance(&self, one_in: u64) -> bool {
        self.rng.below(one_in) == 0
    }
}

impl Call {
    fn describe(&self) -> String {
        format!("{} {}", self.method, self.params)
    }

    /// Whether it drops what a set has of a volume, step by step.
    fn drops(&self) -> bool {
        let drops = [
            "bdev_bcache_delete_flash_volume",
            "bdev_bcache_forget_volume",
            "bdev_bcache_resize_flash_volume",
        ];
        drops.contains(&self.method)
    }

    fn names(&self, volume: &str) -> bool {
        self.params["name"] == json!(volume)
    }
}
