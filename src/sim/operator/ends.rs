//! Starts and ends of the lives of the operator's world.

use serde_json::{Value, json};

use super::calls::{any_mode, pair_of};
use super::mix::Mix;
use super::plan::{End, Feature};
use super::{Floor, World};
use crate::sim::check;
use crate::sim::machine::Machine;
use crate::sim::queue::Queue;

impl World {
    /// One life.
    pub(super) fn live(&mut self, i: usize, end: End) -> Result<(), String> {
        self.note(|| format!("life {i} will end in {end:?}"));
        self.switch_on();
        self.mix = Mix::draw(&self.rng);
        match i {
            0 => self.set_up()?,
            _ => self.start(end)?,
        }
        if end == End::Recovering && i > 0 {
            for _ in 0..self.rng.below(500) {
                self.turn()?;
            }
        } else {
            self.steps()?;
        }
        self.met.note(format!("a start after {end:?}"));
        self.rng
            .reseed(super::mix(self.plan.seed, (i as u64 + 1) << 40));
        match end {
            End::Stop => self.stop(),
            End::Kill => self.crash(false),
            End::Power | End::Recovering => self.crash(true),
        }
    }

    fn switch_on(&mut self) {
        self.devices
            .iter_mut()
            .for_each(|device| device.is_reborn());
        let media = self.media();
        let (rng, now_us) = (self.rng.clone(), self.now_us);
        let machine = Machine::with(&[], rng, now_us, self.plan.reactors);
        *machine.host.queue.borrow_mut() = self.plan.queue_places.map(Queue::new);
        media.iter().for_each(|medium| machine.plug(medium));
        self.machine = Some(machine);
        if self.plan.has(Feature::Stacks) {
            self.m().stack();
        }
        self.disturbed = false;
        self.noise_us = now_us;
        self.list.clear();
        self.sets.clear();
    }

    /// Makes the volumes of the first life, beside those that are there.
    fn set_up(&mut self) -> Result<(), String> {
        let fast = self.plan.fast.len();
        let volumes = self.devices.len() - fast - self.plan.blanks();
        let old = self.bring_up_aged()?;
        for i in old..volumes {
            let cache = i % fast;
            let mut params = pair_of(self, &format!("Vol{i}"), cache, fast + i);
            params["mode"] = json!(any_mode(self));
            self.must("bdev_bcache_create", params)?;
            if self.chance(3) {
                let params = json!({"name": format!("Vol{i}"), "writeback_running": false});
                self.must("bdev_bcache_set_options", params)?;
            }
        }
        self.look()?;
        if self.plan.has(Feature::Stacks) {
            if let Some(params) = super::calls::upper(self) {
                self.call("bdev_bcache_create", params);
            }
        }
        self.look()
    }

    /// Brings up what the run begins with, if anything; its backing devices.
    fn bring_up_aged(&mut self) -> Result<usize, String> {
        let Some((name, backings)) = self.aged else {
            return Ok(0);
        };
        let fast = self.plan.fast.len();
        for d in std::iter::once(0).chain(fast..fast + backings) {
            let examined = self.examine(self.bdev(d));
            self.until("examine", |_| examined.borrow().is_some())?;
        }
        self.look()?;
        let is_up = |uuid: &&String| self.list.iter().any(|v| v.uuid == **uuid && v.running);
        if let Some(uuid) = self.contents.keys().find(|uuid| !is_up(uuid)) {
            return Err(format!("volume {uuid} of {name} is not up"));
        }
        self.met.note(format!("a run that begins with {name}"));
        if !self.plan.has(Feature::Large) && !self.plan.has(Feature::Worn) {
            self.met.note("a run that begins with a set of Linux");
        }
        Ok(backings)
    }

    /// Calls what must go well.
    fn must(&mut self, method: &'static str, params: Value) -> Result<Value, String> {
        let what = format!("{method} {params}");
        self.note(|| what.clone());
        let call = crate::rpc::call(self.m().hub.clone(), method, params);
        let answer = self.wait(&what, call)?;
        answer.map_err(|error| format!("{what}: {}", error.message))
    }

    /// The devices appear, in any order; some of them later, perhaps.
    fn start(&mut self, end: End) -> Result<(), String> {
        let mut order: Vec<usize> = (0..self.devices.len()).collect();
        self.rng.shuffle(&mut order);
        for d in order {
            if self.plan.has(Feature::Missing) && end != End::Recovering && self.chance(5) {
                self.is_missing(d);
                continue;
            }
            self.perhaps_smaller(d);
            let bdev = self.bdev(d);
            self.note(|| format!("{bdev} appears"));
            let examined = self.examine(bdev);
            if self.chance(2) && end != End::Recovering {
                self.until("examine", |_| examined.borrow().is_some())?;
            }
        }
        Ok(())
    }

    fn is_missing(&mut self, d: usize) {
        let name = self.bdev(d);
        self.note(|| format!("{name} is not there"));
        self.m().host.leaving.borrow_mut().insert(name);
        self.devices[d].place = super::events::Place::Away;
        self.disturb();
        self.met.note("a start without a device");
    }

    // --- ends ---

    /// The machine is gone, with what hosts had under way.
    fn switch_off(&mut self) {
        let machine = self.machine.take().expect("a life is going on");
        self.now_us = machine.sched.now_us();
        machine.host.stage.clear();
        let queue = machine.host.queue.take();
        if queue.is_some_and(|queue| queue.waited.get() > 0) {
            self.met.note("transfers that waited at a queue");
        }
        machine.die();
        // At rest a device is judged by all that it holds.
        let media = self.devices.iter().map(|device| &device.medium);
        media.for_each(|medium| medium.hidden_sectors.set(0));
        self.ops.clear();
        self.calls.clear();
        for known in &mut self.known {
            known.limit = None;
        }
    }

    /// Whether a call is under way that drops what a set has of a volume, step by step, or was broken
    /// off by a failure of the cache device, which may be away since.
    pub(super) fn is_dropping(&self) -> bool {
        self.broken_off || self.calls.iter().any(|call| call.drops())
    }

    fn crash(&mut self, power: bool) -> Result<(), String> {
        self.look()?;
        let kept = self.kept_volumes();
        let (sound, dropping) = (!self.disturbed, self.is_dropping());
        self.note(|| format!("the end, power cut: {power}"));
        self.forget_resizes();
        self.switch_off();
        self.crash_media(power);
        self.oracle.crash(power);
        self.judge_at_rest(sound, &kept, dropping)
    }

    fn crash_media(&self, power: bool) {
        let media = self.media().into_iter();
        media.for_each(|medium| medium.crash(&self.rng, power));
    }

    /// A life has ended while flash volumes were about to get another size, or to be removed or made.
    fn forget_resizes(&mut self) {
        for i in 0..self.known.len() {
            if let Some(limit) = self.known[i].limit {
                self.oracle.give_up(i, limit);
            }
        }
    }

    /// What the devices hold is judged where no device was disturbed.
    fn judge_at_rest(&mut self, sound: bool, kept: &[usize], dropping: bool) -> Result<(), String> {
        let (media, oracle) = (self.media(), self.oracle.clone());
        let kept = if sound { kept } else { &[] };
        media.iter().for_each(|medium| medium.cure());
        self.judge(&media, &oracle, kept, dropping)
    }

    /// Everything is stopped in good order, with calls and host I/O under way.
    fn stop(&mut self) -> Result<(), String> {
        if self.chance(2) {
            self.all_calls_end()?;
            self.take_calls()?;
        }
        self.look()?;
        let sound = self.devices.iter().all(|device| device.is_sound(self.m()));
        let calm = sound && !self.disturbed;
        let (kept, dropping) = (self.kept_volumes(), self.is_dropping());
        self.note(|| "everything stops".into());
        let hub = self.m().hub.clone();
        let stopped = self.wait("the stop", async move { hub.stop_all().await })?;
        self.forget_resizes();
        if !stopped && calm {
            let calls: Vec<String> = self.calls.iter().map(super::Call::describe).collect();
            let stage = self.m().host.stage.describe();
            return Err(format!(
                "the stop was given up, and all devices answer; calls under way: {calls:?}; {stage}"
            ));
        }
        if stopped && sound {
            let quiet = |world: &World| world.ops.is_empty();
            self.until("a host I/O of a volume that is gone", quiet)?;
            self.pass(1_000_000)?;
            for d in 0..self.devices.len() {
                let name = self.bdev(d);
                if self.m().host.holds_open(&name) {
                    return Err(format!("{name} is held after the stop"));
                }
            }
        }
        self.switch_off();
        let power = self.chance(2);
        self.crash_media(power);
        if power || !stopped || !calm {
            self.oracle.crash(power);
        }
        self.judge_at_rest(calm, &kept, dropping)
    }

    /// All devices are well and there; all volumes must come up, and hold what they should.
    pub(super) fn last_life(&mut self) -> Result<(), String> {
        self.note(|| "the last life".into());
        self.switch_on();
        for d in 0..self.devices.len() {
            let examined = self.examine(self.bdev(d));
            self.until("examine", |_| examined.borrow().is_some())?;
        }
        self.pass(3_000_000)?;
        self.look()?;
        for i in 0..self.known.len() {
            self.must_be_up(i)?;
        }
        self.read_each()?;
        self.pass(30_000_000)?;
        self.read_each()?;
        self.stop_well()
    }

    fn read_each(&mut self) -> Result<(), String> {
        for i in 0..self.known.len() {
            let is_up = self.listed(i).is_some_and(|v| v.running);
            if is_up && self.known[i].floor != Floor::Lower {
                self.read_all(i)?;
            }
        }
        Ok(())
    }

    fn stop_well(&mut self) -> Result<(), String> {
        self.look()?;
        let kept = self.kept_volumes();
        let (hub, sets) = (self.m().hub.clone(), self.m().hub.sets());
        if !self.wait("the stop", async move { hub.stop_all().await })? {
            return Err("the stop was given up".into());
        }
        for set in sets {
            check::counts(&set)?;
            check::no_pins(&set)?;
        }
        self.switch_off();
        self.judge_at_rest(true, &kept, false)
    }

    fn must_be_up(&mut self, i: usize) -> Result<(), String> {
        let (uuid, gone) = (self.known[i].uuid.clone(), self.known[i].gone);
        let listed = self.listed(i).cloned();
        if gone || listed.as_ref().is_some_and(|v| v.running) {
            return Ok(());
        }
        if self.rests_on_itself(i)? {
            return Ok(());
        }
        let doubtful = |i: usize| self.known[i].given_up || self.known[i].in_doubt;
        let excused = match self.known[i].floor {
            Floor::Upper(lower) => doubtful(i) || doubtful(lower),
            _ => doubtful(i),
        };
        let Some(listed) = listed.filter(|_| excused) else {
            return match excused {
                true => Ok(()),
                false => Err(format!("volume {uuid} is not up: {:?}", self.raw_list())),
            };
        };
        // Its data were given up, in part: by itself it waits for what is not there any more.
        self.oracle.give_up(i, 0);
        let params = json!({"name": listed.name, "discard_dirty": true});
        let call = crate::rpc::call(self.m().hub.clone(), "bdev_bcache_run", params);
        let _ = self.wait("bdev_bcache_run", call)?;
        self.look()
    }

    /// Whether a volume is not up because its set would need it then: what lies beneath has come to
    /// that set while it was down.
    fn rests_on_itself(&mut self, i: usize) -> Result<bool, String> {
        let Floor::Upper(lower) = self.known[i].floor else {
            return Ok(false);
        };
        let Some(name) = self.listed(lower).map(|v| v.name.clone()) else {
            return Ok(false);
        };
        let params = json!({"bdev_name": name});
        let call = crate::rpc::call(self.m().hub.clone(), "bdev_bcache_register", params);
        let answer = self.wait("bdev_bcache_register", call)?;
        Ok(answer.is_err_and(|error| error.message.contains("would wait for itself")))
    }

    fn raw_list(&self) -> Value {
        self.ask("bdev_bcache_get_bdevs", Value::Null)
            .unwrap_or_default()
    }
}
