//! Volumes as hosts see them: fronts on simulated reactors for each volume that the lifecycle shows.
//!
//! - A host I/O goes to any of its volume's fronts. It is *held* while the volume is made anew, and
//!   while it waits for a cache device that is gone ([`VolumeShared::holds_back`]). One that finds no
//!   volume of its name fails at once.
//! - A volume is made anew, or is gone, when its fronts are idle and closed, as at SPDK's boundary.
//!   Changes are made one after the other; those that have not begun when the volume goes are dropped,
//!   and answered once it is gone.
//! - A reset fails what is held and is answered when nothing is in flight.
//! - Every answer is given once: to the caller of [`Stage::io`], or to [`Stage::ended`] by its tag.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::disk::SimDisk;
use super::lane::SimLane;
use crate::disk::{DoneFuture, IoError};
use crate::request::Kind;
use crate::request::front::Front;
use crate::request::lane::{Outcome, Side};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::task::{Once, OnceSender, once};
use crate::units::Sector;

/// A host I/O that has not reached a front.
pub struct HostIo {
    /// What is wanted.
    pub kind: Kind,
    /// The first sector.
    pub start: u64,
    /// How many.
    pub sectors: u64,
    /// The host's memory.
    pub memory: Vec<u8>,
    /// A write that is durable when it is answered (FUA).
    pub durable: bool,
}

/// How a host I/O ended, and the host's memory.
pub type Ended = (Outcome, Vec<u8>);

type Gone = OnceSender<Result<(), IoError>>;

/// What a volume is to be made of.
struct Change {
    shared: Arc<VolumeShared>,
    cache: Option<Rc<SimDisk>>,
    done: Gone,
}

/// A volume that hosts see.
struct Shown {
    shared: Arc<VolumeShared>,
    backing: Option<Rc<SimDisk>>,
    fronts: Vec<Front<SimLane>>,
    held: VecDeque<(u64, HostIo)>,
    /// One after the other; new I/O waits meanwhile.
    changes: VecDeque<Change>,
    /// Those that wait for the volume to be gone, which it is when hosts have their answers.
    going: Vec<Gone>,
    /// Resets that wait until nothing is in flight.
    resets: Vec<u64>,
}

impl Shown {
    fn front_of(&self, rng: &Rng) -> &Front<SimLane> {
        &self.fronts[rng.below(self.fronts.len() as u64) as usize]
    }

    /// Gives an I/O to a front, unless it waits for the cache device.
    fn take(&mut self, tag: u64, io: HostIo, rng: &Rng) {
        let start = Sector(io.start);
        match self.shared.holds_back(io.kind, start, io.sectors) {
            true => self.held.push_back((tag, io)),
            false => submit(self.front_of(rng), tag, io),
        }
    }

    fn is_idle(&self) -> bool {
        self.fronts.iter().all(Front::is_idle)
    }

    /// Closes the fronts, if all of them are idle; true when none is left.
    fn close(&mut self) -> bool {
        if self.is_idle() {
            self.fronts.retain(|front| !front.close());
        }
        self.fronts.is_empty()
    }
}

fn submit(front: &Front<SimLane>, tag: u64, io: HostIo) {
    let request = front.lane().host_io(tag, io.memory);
    request.start(io.kind, Sector(io.start), io.sectors);
    request.must_be_durable(io.durable);
    front.submit(request);
}

/// The hosts' side of one machine.
pub struct Stage {
    reactors: usize,
    rng: Rc<Rng>,
    shown: RefCell<BTreeMap<String, Shown>>,
    next_tag: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, OnceSender<Ended>>>,
    ended: RefCell<BTreeMap<u64, Ended>>,
    /// The volumes that are gone since they were last asked for.
    gone: RefCell<Vec<String>>,
}

impl Stage {
    /// A stage with so many fronts for each volume.
    pub fn new(reactors: usize, rng: Rc<Rng>) -> Stage {
        Stage {
            reactors,
            rng,
            shown: RefCell::default(),
            next_tag: Cell::new(1),
            waiting: RefCell::default(),
            ended: RefCell::default(),
            gone: RefCell::default(),
        }
    }

    fn fronts(
        &self,
        volume: &Arc<VolumeShared>,
        backing: &Option<Rc<SimDisk>>,
        cache: &Option<Rc<SimDisk>>,
    ) -> Vec<Front<SimLane>> {
        let fronts = (0..self.reactors).map(|_| {
            let lane = SimLane::new(cache.clone(), backing.clone());
            Front::new(lane, volume.clone()).expect("a reader's slot")
        });
        fronts.collect()
    }

    // --- volumes ---

    /// Shows a volume; false when its name is taken.
    pub fn show(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<SimDisk>>,
        cache: Option<Rc<SimDisk>>,
    ) -> bool {
        let mut shown = self.shown.borrow_mut();
        let name = volume.name.get();
        if shown.contains_key(&name) {
            return false;
        }
        let fronts = self.fronts(&volume, &backing, &cache);
        let new = Shown {
            shared: volume,
            backing,
            fronts,
            held: VecDeque::new(),
            changes: VecDeque::new(),
            going: Vec::new(),
            resets: Vec::new(),
        };
        shown.insert(name, new);
        true
    }

    /// Gives a shown volume another name, which none has; false when it is not shown or about to be no
    /// more. Its host I/O goes on.
    pub fn rename(&self, name: &str, new: &str) -> bool {
        if self.is_going(name) {
            return false;
        }
        let mut shown = self.shown.borrow_mut();
        let volume = shown.remove(name);
        volume.is_some_and(|volume| shown.insert(new.into(), volume).is_none())
    }

    /// The volume shown under a name.
    pub fn volume(&self, name: &str) -> Option<Arc<VolumeShared>> {
        self.shown.borrow().get(name).map(|s| s.shared.clone())
    }

    /// The names of the volumes that are shown, in order.
    pub fn names(&self) -> Vec<String> {
        self.shown.borrow().keys().cloned().collect()
    }

    /// Whether a volume is shown and about to be no more.
    pub fn is_going(&self, name: &str) -> bool {
        let shown = self.shown.borrow();
        shown.get(name).is_some_and(|v| !v.going.is_empty())
    }

    /// The volumes that are gone since this was last asked for.
    pub fn take_gone(&self) -> Vec<String> {
        self.gone.take()
    }

    /// Takes a volume away once hosts have their answers.
    pub fn hide(&self, name: &str) -> DoneFuture {
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

    /// Makes a volume's fronts anew.
    pub fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<SimDisk>>) -> DoneFuture {
        let (sender, done) = once();
        match self.shown.borrow_mut().get_mut(&volume.name.get()) {
            Some(shown) if !shown.going.is_empty() => shown.going.push(sender),
            Some(shown) => shown.changes.push_back(Change {
                shared: volume,
                cache,
                done: sender,
            }),
            None => sender.send(Ok(())),
        }
        Box::pin(done)
    }

    /// Lets every transfer of a volume's fronts with one side end so, or none any more.
    ///
    /// # Panics
    /// No volume of the name is shown.
    pub fn transfers_end(&self, name: &str, ends: Option<(Side, IoError)>) {
        let shown = self.shown.borrow();
        let fronts = &shown.get(name).expect("a shown volume").fronts;
        fronts.iter().for_each(|front| front.lane().ends.set(ends));
    }

    // --- host I/O ---

    fn tag(&self) -> u64 {
        let tag = self.next_tag.get();
        self.next_tag.set(tag + 1);
        tag
    }

    fn begin(&self, name: &str, tag: u64, io: HostIo) {
        let mut shown = self.shown.borrow_mut();
        match shown.get_mut(name) {
            None => self.answer(tag, (Outcome::Failed, io.memory)),
            Some(volume) if !volume.changes.is_empty() => volume.held.push_back((tag, io)),
            Some(volume) => volume.take(tag, io, &self.rng),
        }
    }

    /// Starts a host I/O on a volume; ask [`ended`](Self::ended) for its end by the tag returned.
    pub fn issue(&self, volume: &str, io: HostIo) -> u64 {
        let tag = self.tag();
        self.begin(volume, tag, io);
        tag
    }

    /// Does a host I/O on a volume.
    pub fn io(&self, volume: &str, io: HostIo) -> Once<Ended> {
        let (tag, (sender, ended)) = (self.tag(), once());
        self.waiting.borrow_mut().insert(tag, sender);
        self.begin(volume, tag, io);
        ended
    }

    /// The host changes the memory of a write that a front has; false when no front has it.
    pub fn change_memory(&self, tag: u64, memory: &[u8]) -> bool {
        let shown = self.shown.borrow();
        let mut fronts = shown.values().flat_map(|volume| &volume.fronts);
        fronts.any(|front| front.lane().change_memory(tag, memory))
    }

    /// Resets a volume: what is held fails; answered, with the tag returned, when nothing is in flight.
    pub fn reset(&self, volume: &str) -> u64 {
        let tag = self.tag();
        let mut shown = self.shown.borrow_mut();
        let Some(volume) = shown.get_mut(volume) else {
            self.answer(tag, (Outcome::Failed, Vec::new()));
            return tag;
        };
        for (held, io) in std::mem::take(&mut volume.held) {
            self.answer(held, (Outcome::Failed, io.memory));
        }
        volume.resets.push(tag);
        tag
    }

    /// Whether a host I/O has ended, and its end was not asked for yet.
    pub fn has_ended(&self, tag: u64) -> bool {
        self.ended.borrow().contains_key(&tag)
    }

    /// What a host I/O came to, if it has ended.
    pub fn ended(&self, tag: u64) -> Option<Ended> {
        self.ended.borrow_mut().remove(&tag)
    }

    fn answer(&self, tag: u64, ended: Ended) {
        match self.waiting.borrow_mut().remove(&tag) {
            Some(waiting) => waiting.send(ended),
            None => {
                self.ended.borrow_mut().insert(tag, ended);
            }
        }
    }

    // --- reactors ---

    /// Every reactor runs once, beginning at any volume and at any of its fronts. Returns how much was
    /// done.
    pub fn poll(&self) -> usize {
        let names = self.names();
        let first = self.any(names.len());
        let turned = names[first..].iter().chain(&names[..first]);
        turned.map(|name| self.poll_one(name)).sum()
    }

    fn any(&self, n: usize) -> usize {
        match n {
            0 | 1 => 0,
            n => self.rng.below(n as u64) as usize,
        }
    }

    fn poll_one(&self, name: &str) -> usize {
        let mut shown = self.shown.borrow_mut();
        let Some(volume) = shown.get_mut(name) else {
            return 0;
        };
        let (count, first) = (volume.fronts.len(), self.any(volume.fronts.len()));
        let fronts = (0..count).map(|i| &volume.fronts[(first + i) % count]);
        let mut done: usize = fronts.map(|front| self.poll_front(front)).sum();
        if !volume.resets.is_empty() && volume.is_idle() {
            let resets = std::mem::take(&mut volume.resets);
            done += resets.len();
            let ended = || (Outcome::Success, Vec::new());
            resets.into_iter().for_each(|tag| self.answer(tag, ended()));
        }
        let goes = !volume.going.is_empty() && volume.held.is_empty();
        if volume.changes.is_empty() && !goes || !volume.close() {
            return done;
        }
        match volume.changes.pop_front() {
            Some(change) => self.change(volume, change),
            None => {
                let gone = shown.remove(name).map(|volume| volume.going);
                self.gone.borrow_mut().push(name.into());
                let gone = gone.into_iter().flatten();
                gone.for_each(|gone| gone.send(Ok(())));
            }
        }
        done + 1
    }

    fn poll_front(&self, front: &Front<SimLane>) -> usize {
        let most = 1 + self.rng.below(8) as usize;
        let mut done = SimLane::deliver(front, most) + front.poll();
        while let Some((io, outcome)) = front.lane().finished() {
            let memory = io.host().memory.take();
            self.answer(io.host().tag, (outcome, memory));
            done += 1;
        }
        done
    }

    fn change(&self, volume: &mut Shown, change: Change) {
        volume.fronts = self.fronts(&change.shared, &volume.backing, &change.cache);
        volume.shared = change.shared;
        if volume.changes.is_empty() {
            for (tag, io) in std::mem::take(&mut volume.held) {
                volume.take(tag, io, &self.rng);
            }
        }
        change.done.send(Ok(()));
    }

    /// Where each volume stands, for whoever looks for what hangs.
    pub fn describe(&self) -> String {
        let shown = self.shown.borrow();
        let each = shown.iter().map(|(name, volume)| {
            let idle = volume.fronts.iter().filter(|front| front.is_idle()).count();
            let waits = volume.shared.missing.as_ref().map(|missing| missing.waits);
            format!(
                "{name}: {idle} of {} fronts idle, {} held, {} changes, {} wait for its end, {} resets, \
                 missing {waits:?}, cached {}",
                volume.fronts.len(),
                volume.held.len(),
                volume.changes.len(),
                volume.going.len(),
                volume.resets.len(),
                volume.shared.cache.is_some(),
            )
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Forgets everything, as a crash does.
    pub fn clear(&self) {
        let gone = (self.shown.take(), self.waiting.take());
        drop(gone);
    }
}
