//! Volumes as hosts see them: fronts on simulated reactors for each volume that the lifecycle shows.
//!
//! - A host I/O goes to any of its volume's reactors ([`super::reactor`]). What holds it there is the
//!   engine's own ([`crate::request::hold`]). One that finds no volume of its name fails at once.
//! - As at SPDK's boundary a step over all reactors of a volume is a *walk*: it comes to the next one
//!   when it has ended on the one before. A volume is made anew by one walk after which it is quiet, and
//!   a second one with which it goes on; a reset is a walk, too.
//! - Changes are made one after the other; those that have not begun when the volume goes are dropped,
//!   and answered once it is gone. It is gone when its reactors are at rest and its fronts are closed.
//! - Every answer is given once: to the caller of [`Stage::io`], or to [`Stage::ended`] by its tag.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::lower::{Lower, VolumeDisk};
use super::reactor::{Answers, SimReactor};
use crate::disk::{DoneFuture, IoError};
use crate::request::hold::{Fronts, Step};
use crate::request::lane::{Outcome, Side};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::task::{Once, OnceSender, once};

pub use super::reactor::{Ended, HostIo};

type Gone = OnceSender<Result<(), IoError>>;

/// What a volume is to be made of.
struct Change {
    shared: Arc<VolumeShared>,
    cache: Option<Lower>,
    done: Gone,
}

/// A step on its way over the reactors of a volume.
struct Walk {
    number: u64,
    step: Step,
    /// The reactors that it has not come to yet.
    left: Vec<usize>,
    /// The reset that it answers.
    tag: Option<u64>,
}

/// A change under way.
enum Phase {
    /// The reactors are told to hold host I/O.
    Holding(Change),
    /// All of them were told.
    Held(Change),
    /// They become what the volume is to be.
    Resuming(Gone),
}

/// A volume that hosts see.
pub(super) struct Shown {
    fronts: Rc<Fronts<Lower>>,
    reactors: Vec<SimReactor>,
    walks: RefCell<Vec<Walk>>,
    walked: Cell<u64>,
    /// Changes that have not begun.
    changes: RefCell<VecDeque<Change>>,
    phase: RefCell<Option<Phase>>,
    /// Those that wait for the volume to be gone, which it is when hosts have their answers.
    going: RefCell<Vec<Gone>>,
    /// Its fronts are being closed for good.
    closing: Cell<bool>,
    /// How many have it open as a device.
    pub(super) opens: Cell<usize>,
    answers: Rc<Answers>,
}

impl Shown {
    pub(super) fn shared(&self) -> Arc<VolumeShared> {
        self.fronts.shape().shared.clone()
    }

    /// Takes a host I/O to any of the reactors.
    pub(super) fn take(&self, tag: u64, io: HostIo, rng: &Rng) {
        if self.closing.get() {
            return self.answers.give(tag, (Outcome::Failed, io.memory));
        }
        let reactor = match self.reactors.len() {
            1 => 0,
            count => rng.below(count as u64) as usize,
        };
        self.reactors[reactor].take(tag, io);
    }

    fn is_going(&self) -> bool {
        !self.going.borrow().is_empty()
    }

    /// Begins to walk over all reactors, from any of them on.
    fn walk(&self, step: Step, first: usize, tag: Option<u64>) {
        let number = self.walked.get() + 1;
        self.walked.set(number);
        let count = self.reactors.len();
        let left = (0..count).rev().map(|i| (first + i) % count).collect();
        let walk = Walk {
            number,
            step,
            left,
            tag,
        };
        self.walks.borrow_mut().push(walk);
        self.step_on(number);
    }

    /// A walk goes on to the next reactor; when there is none it is over, and returned.
    fn step_on(&self, number: u64) -> Option<Walk> {
        let mut walks = self.walks.borrow_mut();
        let at = walks.iter().position(|walk| walk.number == number);
        let at = at.expect("a walk under way");
        match walks[at].left.pop() {
            Some(next) => {
                self.reactors[next].send(walks[at].step, number);
                None
            }
            None => Some(walks.remove(at)),
        }
    }

    /// Goes on with walks and changes. Returns how much was done.
    fn go_on(&self, answers: &Answers, any: impl Fn(usize) -> usize) -> usize {
        let over = self.reactors.iter().flat_map(SimReactor::take_over);
        let over: Vec<u64> = over.collect();
        let mut done = over.len();
        for number in over {
            let Some(walk) = self.step_on(number) else {
                continue;
            };
            if let Some(tag) = walk.tag {
                answers.give(tag, (Outcome::Success, Vec::new()));
                continue;
            }
            let phase = self.phase.take();
            self.phase.replace(match phase {
                Some(Phase::Holding(change)) => Some(Phase::Held(change)),
                Some(Phase::Resuming(gone)) => {
                    gone.send(Ok(()));
                    None
                }
                other => other,
            });
        }
        let first = || any(self.reactors.len());
        let phase = self.phase.take();
        let next = match phase {
            None => {
                let change = self.changes.borrow_mut().pop_front();
                change.map(|change| {
                    done += 1;
                    self.fronts.hold();
                    self.walk(Step::Quiet, first(), None);
                    Phase::Holding(change)
                })
            }
            Some(Phase::Held(change)) if self.fronts.busy() == 0 => {
                done += 1;
                self.fronts.become_of(change.shared, change.cache);
                self.walk(Step::Resume, first(), None);
                Some(Phase::Resuming(change.done))
            }
            other => other,
        };
        self.phase.replace(next);
        done
    }

    /// Whether hosts have their answers, and nothing of the volume is under way.
    fn is_at_rest(&self) -> bool {
        let calm = self.walks.borrow().is_empty() && self.phase.borrow().is_none();
        calm && self.opens.get() == 0 && self.reactors.iter().all(SimReactor::is_at_rest)
    }
}

/// The hosts' side of one machine.
pub struct Stage {
    reactors: usize,
    rng: Rc<Rng>,
    shown: RefCell<BTreeMap<String, Rc<Shown>>>,
    answers: Rc<Answers>,
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
            answers: Rc::default(),
            gone: RefCell::default(),
        }
    }

    fn find(&self, name: &str) -> Option<Rc<Shown>> {
        self.shown.borrow().get(name).cloned()
    }

    // --- volumes ---

    /// Shows a volume; false when its name is taken.
    pub fn show(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Lower>,
        cache: Option<Lower>,
    ) -> bool {
        let mut shown = self.shown.borrow_mut();
        let name = volume.name.get();
        if shown.contains_key(&name) {
            return false;
        }
        let fronts = Rc::new(Fronts::new(volume, cache, backing));
        let reactor = |_| SimReactor::new(fronts.clone(), self.answers.clone());
        let new = Shown {
            reactors: (0..self.reactors).map(reactor).collect(),
            fronts,
            walks: RefCell::default(),
            walked: Cell::new(0),
            changes: RefCell::default(),
            phase: RefCell::default(),
            going: RefCell::default(),
            closing: Cell::new(false),
            opens: Cell::new(0),
            answers: self.answers.clone(),
        };
        shown.insert(name, Rc::new(new));
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
        self.find(name).map(|volume| volume.shared())
    }

    /// The names of the volumes that are shown, in order.
    pub fn names(&self) -> Vec<String> {
        self.shown.borrow().keys().cloned().collect()
    }

    /// Whether all reactors of a volume hold new host I/O.
    pub fn holds(&self, name: &str) -> bool {
        let holds = |volume: Rc<Shown>| volume.reactors.iter().all(SimReactor::holds);
        self.find(name).is_some_and(holds)
    }

    /// Opens a shown volume as a device; none when it is about to be no more.
    pub fn open(&self, name: &str) -> Option<Lower> {
        let volume = self.find(name).filter(|volume| !volume.is_going())?;
        let disk = VolumeDisk::new(volume, self.answers.clone(), self.rng.clone());
        Some(Lower::Volume(Rc::new(disk)))
    }

    /// Whether a volume is open as a device.
    pub fn is_open(&self, name: &str) -> bool {
        self.find(name).is_some_and(|volume| volume.opens.get() > 0)
    }

    /// Whether a volume is shown and about to be no more.
    pub fn is_going(&self, name: &str) -> bool {
        self.find(name).is_some_and(|volume| volume.is_going())
    }

    /// The volumes that are gone since this was last asked for.
    pub fn take_gone(&self) -> Vec<String> {
        self.gone.take()
    }

    /// Takes a volume away once hosts have their answers.
    pub fn hide(&self, name: &str) -> DoneFuture {
        let (sender, gone) = once();
        match self.find(name) {
            Some(volume) => {
                let mut going = volume.going.borrow_mut();
                going.push(sender);
                // What has not begun is not done any more.
                let late = volume.changes.take();
                going.extend(late.into_iter().map(|change| change.done));
            }
            None => sender.send(Ok(())),
        }
        Box::pin(gone)
    }

    /// Makes a volume's fronts anew.
    pub fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Lower>) -> DoneFuture {
        let (sender, done) = once();
        match self.find(&volume.name.get()) {
            Some(shown) if shown.is_going() => shown.going.borrow_mut().push(sender),
            Some(shown) => shown.changes.borrow_mut().push_back(Change {
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
        let volume = self.find(name).expect("a shown volume");
        for reactor in &volume.reactors {
            reactor.with_front(|front| front.lane().ends.set(ends));
        }
    }

    // --- host I/O ---

    fn begin(&self, name: &str, tag: u64, io: HostIo) {
        match self.find(name) {
            None => self.answers.give(tag, (Outcome::Failed, io.memory)),
            Some(volume) => volume.take(tag, io, &self.rng),
        }
    }

    /// Starts a host I/O on a volume; ask [`ended`](Self::ended) for its end by the tag returned.
    pub fn issue(&self, volume: &str, io: HostIo) -> u64 {
        let tag = self.answers.tag();
        self.begin(volume, tag, io);
        tag
    }

    /// Does a host I/O on a volume.
    pub fn io(&self, volume: &str, io: HostIo) -> Once<Ended> {
        let (tag, (sender, ended)) = (self.answers.tag(), once());
        self.answers.call(tag, |ended| sender.send(ended));
        self.begin(volume, tag, io);
        ended
    }

    /// The host changes the memory of a write that a front has; false when no front has it.
    pub fn change_memory(&self, tag: u64, memory: &[u8]) -> bool {
        let shown = self.shown.borrow();
        let mut reactors = shown.values().flat_map(|volume| &volume.reactors);
        let change = |reactor: &SimReactor| {
            reactor.with_front(|front| front.lane().change_memory(tag, memory))
        };
        reactors.any(|reactor| change(reactor) == Some(true))
    }

    /// Resets a volume: what came before has its answer before the tag returned has.
    pub fn reset(&self, volume: &str) -> u64 {
        let tag = self.answers.tag();
        match self.find(volume).filter(|volume| !volume.closing.get()) {
            None => self.answers.give(tag, (Outcome::Failed, Vec::new())),
            Some(volume) => {
                let first = self.any(volume.reactors.len());
                volume.walk(Step::Reset, first, Some(tag));
            }
        }
        tag
    }

    /// Whether a host I/O has ended, and its end was not asked for yet.
    pub fn has_ended(&self, tag: u64) -> bool {
        self.answers.has(tag)
    }

    /// What a host I/O came to, if it has ended.
    pub fn ended(&self, tag: u64) -> Option<Ended> {
        self.answers.take(tag)
    }

    // --- reactors ---

    /// Every reactor runs once, beginning at any volume and at any of its fronts. Returns how much was
    /// done.
    pub fn poll(&self) -> usize {
        let volumes: Vec<Rc<Shown>> = self.shown.borrow().values().cloned().collect();
        let first = self.any(volumes.len());
        let turned = volumes[first..].iter().chain(&volumes[..first]);
        turned.map(|volume| self.poll_one(volume)).sum()
    }

    fn any(&self, n: usize) -> usize {
        match n {
            0 | 1 => 0,
            n => self.rng.below(n as u64) as usize,
        }
    }

    fn poll_one(&self, volume: &Rc<Shown>) -> usize {
        let (count, first) = (volume.reactors.len(), self.any(volume.reactors.len()));
        let reactors = (0..count).map(|i| &volume.reactors[(first + i) % count]);
        let mut done: usize = reactors.map(|reactor| reactor.poll(&self.rng)).sum();
        done += volume.go_on(&self.answers, |n| self.any(n));
        if !volume.is_going() || !volume.closing.get() && !volume.is_at_rest() {
            return done;
        }
        volume.closing.set(true);
        if !volume.reactors.iter().all(SimReactor::end) {
            return done;
        }
        self.shown.borrow_mut().retain(|name, shown| {
            let stays = !Rc::ptr_eq(shown, volume);
            if !stays {
                self.gone.borrow_mut().push(name.clone());
            }
            stays
        });
        let gone = volume.going.take();
        gone.into_iter().for_each(|gone| gone.send(Ok(())));
        done + 1
    }

    /// Where each volume stands, for whoever looks for what hangs.
    pub fn describe(&self) -> String {
        let shown = self.shown.borrow();
        let each = shown.iter().map(|(name, volume)| {
            let at_rest = volume.reactors.iter().filter(|r| r.is_at_rest()).count();
            let held: usize = volume.reactors.iter().map(SimReactor::held).sum();
            let shared = volume.shared();
            let missing = shared.missing.as_ref().map(|missing| missing.waits);
            format!(
                "{name}: {at_rest} of {} reactors at rest, {held} held, {} changes, {} wait for its end, \
                 {} walks, open {} times, missing {missing:?}, cached {}",
                volume.reactors.len(),
                volume.changes.borrow().len(),
                volume.going.borrow().len(),
                volume.walks.borrow().len(),
                volume.opens.get(),
                shared.cache.is_some(),
            )
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Forgets everything, as a crash does.
    pub fn clear(&self) {
        drop(self.shown.take());
        self.answers.forget();
    }
}
