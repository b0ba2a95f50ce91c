//! Recovery beside the life: what the devices hold now, copied with the power cut, must be in order.
//!
//! Of the copies each unflushed write is lost, kept or torn. Then the offline check finds nothing, the
//! model of Linux ([`kernel`](crate::sim::kernel)) would serve what the oracle allows after a crash, and
//! a second machine starts on them, perhaps without a device, and reads what the oracle allows.

use std::collections::VecDeque;
use std::rc::Rc;

use serde_json::{Value, json};

use super::plan::Feature;
use super::{Floor, Known, World};
use crate::check::report::Kind as FindingKind;
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rng::Rng;
use crate::rpc;
use crate::sim::check;
use crate::sim::disk::Medium;
use crate::sim::kernel::judge::{Judged, judge_media};
use crate::sim::machine::Machine;
use crate::sim::oracle::{Oracle, ZERO};
use crate::units::Uuid;

/// Turns that a second machine may take to start.
const TURNS: u64 = 300_000;
/// Reads of a second machine in flight.
const READS: usize = 16;

impl World {
    /// Perhaps judges copies of the devices; in one of so many cases a second machine starts on them.
    pub(super) fn draw_shadow(&mut self, started: u64) -> Result<(), String> {
        if !self.plan.has(Feature::Shadows) || self.known.is_empty() {
            return Ok(());
        }
        self.look()?;
        for set in self.m().hub.sets() {
            check::counts(&set)?;
        }
        let rng = Rc::new(Rng::new(self.rng.next()));
        let media: Vec<Rc<Medium>> = self.devices.iter().map(|d| d.medium.fork()).collect();
        for medium in &media {
            medium.crash(&rng, true);
        }
        let mut oracle = self.oracle.clone();
        oracle.crash(true);
        self.note(|| "a shadow".into());
        let (kept, dropping) = (self.kept_volumes(), self.is_dropping());
        self.judge(&media, &oracle, &kept, dropping)
            .map_err(|why| format!("a shadow: {why}"))?;
        if self.chance(started) {
            self.second_machine(&media, oracle, rng)
                .map_err(|why| format!("a shadow: {why}"))?;
        }
        self.met.note("a shadow was recovered");
        Ok(())
    }

    /// The volumes that must be found: shown, and nothing is about to change that.
    pub(super) fn kept_volumes(&self) -> Vec<usize> {
        if !self.calls.is_empty() {
            return Vec::new();
        }
        let kept = |&i: &usize| {
            let known: &Known = &self.known[i];
            let listed = self.listed(i);
            let attached = |name: &str| {
                self.sets.iter().any(|set| {
                    let volumes = set["volumes"].as_array().into_iter().flatten();
                    set["state"] == "running" && volumes.into_iter().any(|v| v == name)
                })
            };
            !known.gone
                && known.floor == Floor::Ground
                && !known.in_doubt
                && !self.is_leaving(i)
                && listed.is_some_and(|v| v.running && attached(&v.name))
        };
        (0..self.known.len()).filter(kept).collect()
    }

    /// Whether a job takes a volume out of its set.
    fn is_leaving(&self, i: usize) -> bool {
        let (known, listed) = (&self.known[i], self.listed(i));
        let of = |method: &str, params: Value| {
            let status = self.ask(method, params).unwrap_or_default();
            status["in_progress"] == true
        };
        let detach =
            listed.is_some_and(|v| of("bdev_bcache_detach_status", json!({"name": v.name})));
        let set = json!({"set": known.set});
        detach || of("bdev_bcache_unregister_set_status", set)
    }

    /// What the offline check and the model of Linux say of devices at rest.
    pub(super) fn judge(
        &mut self,
        media: &[Rc<Medium>],
        oracle: &Oracle,
        kept: &[usize],
        dropping: bool,
    ) -> Result<(), String> {
        for d in self.fasts() {
            let medium = &media[d];
            if check::has_no_set(medium) {
                continue;
            }
            let slow: Vec<Option<Rc<Medium>>> = (self.plan.fast.len()..media.len())
                .filter(|&slow| check::is_of_set(&media[slow], medium))
                .map(|slow| Some(media[slow].clone()))
                .collect();
            let found = check::findings(medium, &slow)?;
            let found = found.iter().find(|f| !self.is_excused(f.kind, dropping));
            if let Some(found) = found {
                return Err(format!(
                    "{}: the offline check found {found:?}",
                    medium.name()
                ));
            }
            let set = check::cache_super(medium).map(|sb| sb.set_uuid.to_string());
            let judged: Vec<Judged> = kept
                .iter()
                .filter(|&&i| self.known[i].set == set)
                .filter(|&&i| !self.disturbed || self.says_member(i, media, medium))
                .filter_map(|&i| {
                    let uuid = Uuid::parse(&self.known[i].uuid)?;
                    // A write whose memory changes under way leaves what it likes in both places.
                    let same = !self.ever_disturbed && !self.plan.has(Feature::Memory);
                    Some(Judged { nr: i, uuid, same })
                })
                .collect();
            judge_media(medium, &slow, &judged, oracle)
                .map_err(|why| format!("{}: {why}", medium.name()))?;
            self.met.note("Linux was asked");
        }
        Ok(())
    }

    /// Whether the superblock of a volume's backing device names a set: where a device has failed, its
    /// superblock may say less than the set knows, as long as nothing is dirty.
    fn says_member(&self, i: usize, media: &[Rc<Medium>], cache: &Medium) -> bool {
        let device = self.known[i].device;
        device.is_none_or(|d| check::is_of_set(&media[d], cache))
    }

    /// Whether the offline check may find this. What it finds of a device that is stale, or that its set
    /// does not know any more, comes of a lost cache device or of data that were given up; keys of a
    /// volume that is gone are left by a crash in the middle of its removal, until the next start.
    fn is_excused(&self, kind: FindingKind, dropping: bool) -> bool {
        let given_up = self.known.iter().any(|known| known.given_up);
        match kind {
            FindingKind::StateStale => given_up || self.ever_disturbed,
            FindingKind::BackingUnknown => given_up,
            FindingKind::KeyVolume | FindingKind::KeyBeyond => dropping,
            _ => false,
        }
    }

    /// A second machine starts on the copies, and reads.
    fn second_machine(
        &mut self,
        media: &[Rc<Medium>],
        mut oracle: Oracle,
        rng: Rc<Rng>,
    ) -> Result<(), String> {
        let without = self
            .chance(3)
            .then(|| rng.below(media.len() as u64) as usize);
        let here = media
            .iter()
            .enumerate()
            .filter(|(d, _)| Some(*d) != without);
        let here: Vec<&Rc<Medium>> = here.map(|(_, medium)| medium).collect();
        let machine = Machine::with(&here, rng.clone(), self.now(), self.plan.reactors);
        for medium in &here {
            let (hub, bdev) = (machine.hub.clone(), medium.name().to_string());
            run(&machine, async move { hub.examine(&bdev).await })?;
        }
        let known = self.known.iter().enumerate();
        for (nr, known) in known.filter(|(_, known)| known.floor == Floor::Ground) {
            let call = rpc::call(machine.hub.clone(), "bdev_bcache_get_bdevs", Value::Null);
            let list = run(&machine, call)?.map_err(|e| e.message)?;
            let listed = list.as_array().into_iter().flatten();
            let listed = listed.into_iter().find(|v| v["uuid"] == json!(known.uuid));
            let Some(listed) = listed else { continue };
            let name = listed["name"].as_str().unwrap_or_default().to_string();
            if listed["running"] != true {
                // Without what is missing it must not run, unless nothing of it is missing.
                let call = rpc::call(
                    machine.hub.clone(),
                    "bdev_bcache_run",
                    json!({"name": name}),
                );
                if run(&machine, call)?.is_err() {
                    continue;
                }
            }
            let sectors = listed["size_bytes"].as_u64().unwrap_or(0) / 512;
            read_some(&machine, &name, nr, sectors, &mut oracle, &rng)
                .map_err(|why| format!("without {without:?}: {why}"))?;
        }
        machine.die();
        Ok(())
    }
}

/// Runs a job of a second machine to its end.
fn run<T: 'static>(
    machine: &Machine,
    job: impl std::future::Future<Output = T> + 'static,
) -> Result<T, String> {
    let slot = machine.start(job);
    for _ in 0..TURNS {
        if let Some(value) = slot.borrow_mut().take() {
            return Ok(value);
        }
        machine.turn_any();
    }
    Err("a start hangs".into())
}

fn read_some(
    machine: &Machine,
    name: &str,
    nr: usize,
    sectors: u64,
    oracle: &mut Oracle,
    rng: &Rng,
) -> Result<(), String> {
    let end = sectors.min(oracle.sectors(nr));
    let mut reads = VecDeque::new();
    let (mut at, mut turns) = (0, 0);
    while at < end || !reads.is_empty() {
        while at < end && reads.len() < READS {
            let n = (*rng.any(&[8, 64, 256, 256])).min(end - at);
            let (io, memory) = oracle.begins(Kind::Read, nr, at, n, ZERO);
            reads.push_back((machine.issue(name, Kind::Read, at, memory, n), io));
            at += n;
        }
        machine.turn_any();
        turns += 1;
        while let Some(&(tag, io)) = reads.front().filter(|(tag, _)| machine.has_ended(*tag)) {
            reads.pop_front();
            turns = 0;
            let (outcome, data) = machine.ended(tag).expect("it has ended");
            if outcome != Outcome::Success {
                let (n, at) = (io.sectors, io.start);
                return Err(format!("a read of {n} sectors at {at} of {name} fails"));
            }
            oracle.ends(&io, Some(&data))?;
        }
        if turns > TURNS {
            return Err("a read hangs".into());
        }
    }
    Ok(())
}
