//! What befalls the devices of the operator's world.
//!
//! A device that is *removed* works until nothing holds it; one that is *torn out* fails at everything
//! from then on, and may lose what was not flushed. Both come back once nothing holds them, and are
//! examined then. Silence, lag, faults and superblocks that cannot be written
//! last for a while; blocks that turn bad stay so until they are written, or the life ends.

use std::rc::Rc;

use serde_json::json;

use super::plan::{Feature, Plan};
use super::{Floor, Slot, World};
use crate::format::superblock::BackingState;
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rpc;
use crate::sim::bytes::Bytes;
use crate::sim::disk::{Faults, Lag, Medium};
use crate::sim::machine::{BROKEN, Machine, backing_super};
use crate::units::{SECTOR_BYTES, Sector};

/// The volume of a copy that has a UUID of its own.
const CLONE: &str = "Clone0";

/// Where a device is.
pub(super) enum Place {
    /// There.
    Here,
    /// The lifecycle is told that it goes.
    Going(Slot<()>),
    /// Away.
    Away,
}

/// A device.
pub(super) struct Device {
    pub(super) medium: Rc<Medium>,
    pub(super) is_fast: bool,
    pub(super) place: Place,
    /// Torn out: it fails at everything.
    torn: bool,
    /// It loses what was not flushed before it comes back.
    loses: bool,
    /// Something is wrong with it until then.
    sick_until_us: Option<u64>,
    /// The set that is on it.
    pub(super) set: Option<String>,
    /// How often it was opened in this life, and what it had failed at then.
    opens: u64,
    failed: u64,
}

impl Device {
    pub(super) fn new(name: &str, bytes: Bytes, is_fast: bool, plan: &Plan) -> Device {
        let medium = Medium::with_bytes(name, bytes, plan.block_sectors);
        if !is_fast {
            medium.unmapped.set(plan.unmapped);
            medium.pace_us.set(plan.slow_pace_us);
        }
        Device {
            medium,
            is_fast,
            place: Place::Here,
            torn: false,
            loses: false,
            sick_until_us: None,
            set: None,
            opens: 0,
            failed: 0,
        }
    }

    /// Whether it is there and does what it should.
    pub(super) fn is_sound(&self, machine: &Machine) -> bool {
        let silent = machine.host.silence(self.medium.name()).is_on();
        matches!(self.place, Place::Here) && self.sick_until_us.is_none() && !silent
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self.place, Place::Here)
    }

    /// A new life begins: whatever was wrong with it is over.
    pub(super) fn is_reborn(&mut self) {
        self.medium.cure();
        self.medium.hidden_sectors.set(0);
        self.place = Place::Here;
        (self.torn, self.loses) = (false, false);
        self.sick_until_us = None;
        self.opens = 0;
        self.failed = self.medium.faulted.get();
    }
}

impl World {
    /// Something befalls a device.
    pub(super) fn draw_event(&mut self) -> Result<(), String> {
        let on: Vec<Feature> = [
            Feature::Idle,
            Feature::Removals,
            Feature::Removals,
            Feature::Tears,
            Feature::Silence,
            Feature::Lag,
            Feature::Faults,
            Feature::BadSectors,
            Feature::SuperFaults,
            Feature::Regions,
            Feature::Sizes,
            Feature::Copies,
            Feature::Rests,
        ]
        .into_iter()
        .filter(|&feature| self.plan.has(feature))
        .collect();
        // As likely as that something begins is that something ends.
        if on.is_empty() || self.chance(2) {
            return self.return_one();
        }
        let d = self.rng.below(self.devices.len() as u64) as usize;
        match self.any(&on) {
            Feature::Idle => {
                let us = self.any(&[100_000, 1_000_000, 6_000_000, 40_000_000]);
                self.note(|| format!("hosts do nothing for {us} us"));
                return self.pass(us);
            }
            Feature::Copies => return self.copy(d),
            Feature::Rests => return self.rest(),
            Feature::Sizes => self.grow(d),
            _ if !self.devices[d].is_here() => {}
            Feature::Removals => self.remove(d, false),
            Feature::Tears => self.remove(d, true),
            Feature::BadSectors => self.turn_bad(d),
            kind => self.sicken(d, kind),
        }
        Ok(())
    }

    /// A device is removed, or torn out.
    pub(super) fn remove(&mut self, d: usize, torn: bool) {
        let (name, medium) = (self.bdev(d), self.devices[d].medium.clone());
        self.disturb();
        self.note(|| format!("{name} is {}", if torn { "torn out" } else { "removed" }));
        self.end_sickness(d);
        if torn {
            medium.faults.set(BROKEN);
            medium.faulted.set(medium.faulted.get() + 1);
        }
        let loses = torn && self.plan.has(Feature::TornPower) && self.chance(2);
        let machine = self.m();
        machine.host.leaving.borrow_mut().insert(name.clone());
        let hub = machine.hub.clone();
        let gone = machine.start(async move { hub.removed(&name).await });
        let device = &mut self.devices[d];
        device.place = Place::Going(gone);
        (device.torn, device.loses) = (torn, loses);
    }

    pub(super) fn bdev(&self, d: usize) -> String {
        self.devices[d].medium.name().to_string()
    }

    /// Takes note of removals that are over, and of sicknesses.
    pub(super) fn take_events(&mut self) -> Result<(), String> {
        let now = self.now();
        for d in 0..self.devices.len() {
            let device = &mut self.devices[d];
            if let Place::Going(gone) = &device.place {
                if gone.borrow().is_some() {
                    device.place = Place::Away;
                    let name = self.bdev(d);
                    self.note(|| format!("{name} is gone"));
                }
            } else if device.sick_until_us.is_some_and(|until| until <= now) {
                self.end_sickness(d);
            }
        }
        for (d, set) in self.running_sets() {
            self.devices[d].set = Some(set);
        }
        Ok(())
    }

    fn running_sets(&self) -> Vec<(usize, String)> {
        let sets = self.sets.iter().filter_map(|set| {
            let bdev = set["devices"][0]["bdev_name"].as_str()?;
            Some((self.device(bdev)?, set["set"].as_str()?.to_string()))
        });
        sets.collect()
    }

    /// Something ends: a removed device comes back, a silent one answers.
    fn return_one(&mut self) -> Result<(), String> {
        let d = self.rng.below(self.devices.len() as u64) as usize;
        match self.devices[d].place {
            Place::Here => self.end_sickness(d),
            Place::Going(_) => {}
            Place::Away => self.come_back(d),
        }
        Ok(())
    }

    /// A device comes back, unless something still holds it.
    pub(super) fn come_back(&mut self, d: usize) {
        let name = self.bdev(d);
        if !matches!(self.devices[d].place, Place::Away) || self.m().host.holds_open(&name) {
            return;
        }
        if self.devices[d].loses {
            self.note(|| format!("{name} has lost what was not flushed"));
            self.devices[d].medium.crash(&self.rng, true);
            self.volumes_lose(d);
        }
        self.note(|| format!("{name} is back"));
        let device = &mut self.devices[d];
        if device.torn {
            device.medium.faults.set(Faults::default());
        }
        self.perhaps_smaller(d);
        let device = &mut self.devices[d];
        (device.torn, device.loses) = (false, false);
        device.place = Place::Here;
        let machine = self.m();
        machine.host.leaving.borrow_mut().remove(&name);
        self.examine(name);
    }

    /// What was not flushed may be lost of the volumes of a device.
    fn volumes_lose(&mut self, d: usize) {
        let set = self.devices[d].set.clone();
        for (i, known) in self.known.iter().enumerate() {
            if known.device == Some(d) || set.is_some() && known.set == set {
                self.oracle.may_lose(i);
            }
        }
    }

    /// Cache devices that were opened again: what their set did not know durably may be lost, if the
    /// device had failed since it was opened last.
    pub(super) fn notice_opens(&mut self) {
        for d in 0..self.plan.fast.len() {
            let host = &self.m().host;
            let device = &self.devices[d];
            let (opens, name) = (host.opens(device.medium.name()), device.medium.name());
            if opens == device.opens {
                continue;
            }
            let failed = device.medium.faulted.get() + host.flaws(name).failed.get();
            let lost = failed > device.failed && device.opens > 0;
            (self.devices[d].opens, self.devices[d].failed) = (opens, failed);
            if lost {
                let name = self.bdev(d);
                self.note(|| format!("{name} is opened again, and had failed"));
                self.volumes_lose(d);
            }
        }
    }

    // --- sickness ---

    fn sicken(&mut self, d: usize, kind: Feature) {
        if self.devices[d].sick_until_us.is_some() {
            return;
        }
        let name = self.bdev(d);
        let us = self.any(&[20_000, 400_000, 3_000_000, 20_000_000, 70_000_000]);
        self.disturb();
        self.note(|| format!("{name} has {} for {us} us", kind.name()));
        let medium = self.devices[d].medium.clone();
        let flaws = self.m().host.flaws(&name);
        match kind {
            Feature::Silence => flaws.silence.set(true),
            Feature::Lag => medium.lag.set(Lag {
                reads: !self.chance(3),
                changes: !self.chance(3),
                ..Lag::of_all(self.any(&[3_000, 100_000, 2_000_000]))
            }),
            Feature::Regions => self.sicken_region(d),
            Feature::Faults => {
                let rate = |world: &World| world.any(&[0, 0, 2, 10, 40]);
                medium.faults.set(Faults {
                    read: rate(self),
                    write: rate(self),
                    flush: rate(self),
                });
            }
            _ => {
                let supers = (Sector(0), Sector(16));
                flaws.unwritable.borrow_mut().push(supers);
            }
        }
        self.devices[d].sick_until_us = Some(self.now() + us);
    }

    /// Blocks of a device cannot be read any more until they are written.
    fn turn_bad(&mut self, d: usize) {
        let (medium, name) = (self.devices[d].medium.clone(), self.bdev(d));
        self.disturb();
        for _ in 0..1 + self.rng.below(4) {
            let at = self.sector_in_use(&medium);
            self.note(|| format!("{name} has a bad block at {at}"));
            medium.turn_bad(at, u64::from(self.plan.block_sectors));
        }
        medium.faulted.set(medium.faulted.get() + 1);
    }

    /// A block of a device, mostly one that was written.
    fn sector_in_use(&self, medium: &Medium) -> Sector {
        let block = u64::from(self.plan.block_sectors);
        let any = || Sector(self.rng.below(medium.sectors() / block) * block);
        let is_used = |&at: &Sector| medium.peek(at, block).iter().any(|&byte| byte != 0);
        (0..30).map(|_| any()).find(is_used).unwrap_or_else(any)
    }

    /// A part of a device answers late, or takes none of the engine's writes.
    fn sicken_region(&mut self, d: usize) {
        let medium = self.devices[d].medium.clone();
        let sectors = medium.sectors();
        let from = self.rng.below(sectors);
        let to = from + sectors / self.any(&[4, 16, 64]);
        if self.chance(2) {
            let flaws = self.m().host.flaws(medium.name());
            flaws
                .unwritable
                .borrow_mut()
                .push((Sector(from), Sector(to)));
        } else {
            medium.lag.set(Lag {
                range: (from, to),
                ..Lag::of_all(self.any(&[100_000, 2_000_000, 8_000_000]))
            });
        }
    }

    pub(super) fn end_sickness(&mut self, d: usize) {
        if self.devices[d].sick_until_us.take().is_none() {
            return;
        }
        let name = self.bdev(d);
        self.note(|| format!("{name} is well again"));
        let flaws = self.m().host.flaws(&name);
        flaws.mend();
        flaws.silence.set(false);
        let faulted = self.devices[d].medium.faulted.get();
        self.devices[d].medium.recover();
        self.devices[d].medium.faulted.set(faulted);
    }

    // --- sizes and copies ---

    /// A backing device that appears may be smaller than it was, until it appears again.
    pub(super) fn perhaps_smaller(&mut self, d: usize) {
        let device = &self.devices[d];
        device.medium.hidden_sectors.set(0);
        if device.is_fast || !self.plan.has(Feature::Shrinks) || !self.chance(3) {
            return;
        }
        let less = 8 * (1 + self.rng.below(64));
        device.medium.hidden_sectors.set(less);
        self.disturb();
        let name = self.bdev(d);
        self.note(|| format!("{name} is {less} sectors smaller"));
        self.met.note("a backing device that is smaller");
    }

    /// A backing device grows.
    fn grow(&mut self, d: usize) {
        let more = 8 * (1 + self.rng.below(64));
        let device = &self.devices[d];
        if device.is_fast || device.medium.sectors() > 40_000 {
            return;
        }
        let (name, medium) = (self.bdev(d), device.medium.clone());
        if device.is_here() {
            medium.grow(more);
            self.note(|| format!("{name} grows by {more} sectors"));
            let (hub, bdev) = (self.m().hub.clone(), name);
            self.m().exec.spawn(async move { hub.resized(&bdev).await });
        }
    }

    /// A copy of a device in use appears, is examined and registered, and goes again: it must be left
    /// alone, unless it gets a UUID of its own. Nothing else is done meanwhile, and no set is about to let its device go.
    fn copy(&mut self, d: usize) -> Result<(), String> {
        let name = self.bdev(d);
        let used = match self.devices[d].is_fast {
            true => self
                .sets
                .iter()
                .any(|set| set["devices"][0]["bdev_name"] == name.as_str()),
            false => {
                let on = |v: &&super::Listed| v.backing.as_deref() == Some(&name);
                self.list.iter().find(on).is_some_and(|v| v.running)
            }
        };
        // A copy of what carries a volume shows that one's superblock, too.
        let stacked = self.known.iter().any(|k| k.floor != Floor::Ground);
        let sets = self.m().hub.sets();
        let goes = sets.iter().any(|set| set.unregistering.is_running());
        if !used
            || goes
            || stacked
            || !self.calls.is_empty()
            || !self.devices.iter().all(|d| d.is_sound(self.m()))
        {
            return Ok(());
        }
        let copy = self.devices[d].medium.copy_as(&format!("copy-of-{name}"));
        self.note(|| format!("{} appears", copy.name()));
        self.m().plug(&copy);
        let examined = self.examine(copy.name().to_string());
        self.until("examine", |_| examined.borrow().is_some())?;
        self.look()?;
        let params = json!({"bdev_name": copy.name()});
        let call = rpc::call(self.m().hub.clone(), "bdev_bcache_register", params);
        let answer = self.wait("register", call)?;
        self.look()?;
        if answer.is_ok() {
            return Err(format!("{} is registered beside {name}", copy.name()));
        }
        self.met.note("a copy was refused");
        if !self.devices[d].is_fast {
            self.make_clone(&copy)?;
        }
        self.m().host.withdraw(copy.name());
        Ok(())
    }

    /// A copy of a backing device in use becomes a device of its own, if it is clean: a volume of no
    /// set that holds what the copy holds. It is deleted again.
    fn make_clone(&mut self, copy: &Rc<Medium>) -> Result<(), String> {
        let sb = backing_super(copy);
        let params = json!({"bdev_name": copy.name(), "name": CLONE, "new_uuid": true});
        let call = rpc::call(self.m().hub.clone(), "bdev_bcache_register", params);
        match self.wait("a clone's register", call)? {
            Err(_) if sb.state() == BackingState::Dirty => {
                self.met.note("a dirty copy got no UUID of its own");
                return Ok(());
            }
            Err(error) => return Err(format!("{} gets no UUID: {}", copy.name(), error.message)),
            Ok(made) => {
                let uuid = super::text(&made["uuid"]).unwrap_or_default();
                let known = self.known.iter().any(|known| known.uuid == uuid);
                if known || !made["set"].is_null() || sb.state() == BackingState::Dirty {
                    return Err(format!("{} has become {made}", copy.name()));
                }
            }
        }
        let shown = self.m().host.stage.volume(CLONE);
        let sectors = shown.ok_or("a clone is not shown")?.size_sectors();
        // A multiple of every block that a plan has.
        let whole = |at: u64| at - at % 8;
        for at in [0, self.rng.below(sectors - 8), sectors - 8].map(whole) {
            let memory = vec![0; 8 * SECTOR_BYTES];
            let tag = self.m().issue(CLONE, Kind::Read, at, memory, 8);
            self.until("a clone's read", |world| world.m().has_ended(tag))?;
            let read = self.m().ended(tag);
            if read != Some((Outcome::Success, copy.peek(sb.data_offset + at, 8))) {
                return Err(format!("a clone has other data than the copy at {at}"));
            }
        }
        let params = json!({"name": CLONE});
        let call = rpc::call(self.m().hub.clone(), "bdev_bcache_delete", params);
        let gone = self.wait("a clone's end", call)?;
        gone.map_err(|error| format!("a clone stays: {}", error.message))?;
        self.met.note("a clean copy got a UUID of its own");
        Ok(())
    }

    /// The operator waits until all that was called for is done, with all devices there.
    fn rest(&mut self) -> Result<(), String> {
        self.note(|| "the operator waits".into());
        self.all_calls_end()?;
        self.met.note("all calls had ended");
        Ok(())
    }

    /// Waits, with all devices there, until every call has its answer.
    pub(super) fn all_calls_end(&mut self) -> Result<(), String> {
        self.all_are_well()?;
        self.until("a call", |world| {
            world.calls.iter().all(|c| c.answer.borrow().is_some())
        })
    }

    /// All devices are well; those that are away come back.
    pub(super) fn all_are_well(&mut self) -> Result<(), String> {
        for d in 0..self.devices.len() {
            self.end_sickness(d);
        }
        self.until("a removal", |world| {
            let gone = |device: &Device| match &device.place {
                Place::Going(gone) => gone.borrow().is_some(),
                _ => true,
            };
            world.devices.iter().all(gone)
        })?;
        self.take_events()?;
        for d in 0..self.devices.len() {
            let away = matches!(self.devices[d].place, Place::Away);
            let name = self.bdev(d);
            self.until(&format!("{name}, which is away and held"), |world| {
                !away || !world.m().host.holds_open(&name)
            })?;
            self.come_back(d);
        }
        Ok(())
    }
}
