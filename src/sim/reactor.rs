//! A volume on one simulated reactor: its front, what is held of its host I/O, the steps under way.
//!
//! It is to the simulator what a channel is to SPDK. Host I/O comes in where a host is; a step over all
//! reactors ([`Step`]) comes as a message, which is taken when the reactor runs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::lane::SimLane;
use super::lower::Lower;
use crate::request::Kind;
use crate::request::admit::{Admitted, Refusal, Way, admit};
use crate::request::front::Front;
use crate::request::hold::{Fronts, Hold, Line, Reactor, Shape, Step};
use crate::request::lane::Outcome;
use crate::rng::Rng;

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
    /// The bytes of its pieces; all of it together, which may be more or less than the I/O needs.
    pub list: Vec<usize>,
    /// A write that is durable when it is answered (FUA).
    pub durable: bool,
}

impl HostIo {
    /// A host I/O with its memory in one piece.
    pub fn new(kind: Kind, start: u64, sectors: u64, memory: Vec<u8>) -> HostIo {
        HostIo {
            kind,
            start,
            sectors,
            list: vec![memory.len()],
            memory,
            durable: false,
        }
    }

    /// Checks it as SPDK's boundary does.
    fn admit(&self, block_shift: u32, size_sectors: u64) -> Result<Admitted, Refusal> {
        let blocks = (self.start >> block_shift, self.sectors >> block_shift);
        let list = self.list.iter().scan(1, |next, &length| {
            *next += length;
            Some((*next - length, length))
        });
        admit(self.kind, blocks, block_shift, size_sectors, list)
    }
}

/// How a host I/O ended, and the host's memory.
pub type Ended = (Outcome, Vec<u8>);

/// Who waits for the end of a host I/O: called then.
type Waiting = Box<dyn FnOnce(Ended)>;

/// The answers to host I/O, by tag.
#[derive(Default)]
pub struct Answers {
    last_tag: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    ended: RefCell<BTreeMap<u64, Ended>>,
}

impl Answers {
    /// A tag for a new host I/O.
    pub fn tag(&self) -> u64 {
        self.last_tag.set(self.last_tag.get() + 1);
        self.last_tag.get()
    }

    /// Has something called at the end of a host I/O, in the place of an answer to be taken.
    pub fn call(&self, tag: u64, done: impl FnOnce(Ended) + 'static) {
        self.waiting.borrow_mut().insert(tag, Box::new(done));
    }

    /// Answers a host I/O.
    pub fn give(&self, tag: u64, ended: Ended) {
        let waiting = self.waiting.borrow_mut().remove(&tag);
        match waiting {
            Some(waiting) => waiting(ended),
            None => {
                self.ended.borrow_mut().insert(tag, ended);
            }
        }
    }

    /// Whether there is an answer that was not taken.
    pub fn has(&self, tag: u64) -> bool {
        self.ended.borrow().contains_key(&tag)
    }

    /// Takes an answer, if it is there.
    pub fn take(&self, tag: u64) -> Option<Ended> {
        self.ended.borrow_mut().remove(&tag)
    }

    /// Nobody waits any more.
    pub fn forget(&self) {
        drop(self.waiting.take());
    }
}

/// Host I/Os that are held, each with its tag.
#[derive(Default)]
pub struct HeldIos(RefCell<VecDeque<(u64, HostIo)>>);

impl Line for HeldIos {
    type Io = (u64, HostIo);

    fn push(&self, io: (u64, HostIo)) {
        self.0.borrow_mut().push_back(io);
    }

    fn pop(&self) -> Option<(u64, HostIo)> {
        self.0.borrow_mut().pop_front()
    }

    fn take(&self) -> HeldIos {
        HeldIos(RefCell::new(self.0.take()))
    }
}

/// A volume on one reactor.
pub struct SimReactor {
    answers: Rc<Answers>,
    fronts: Rc<Fronts<Lower>>,
    front: RefCell<Option<Front<SimLane>>>,
    hold: Hold<HeldIos, u64>,
    /// Steps that are on their way here.
    coming: RefCell<VecDeque<(Step, u64)>>,
    /// Steps that have ended here.
    over: RefCell<Vec<u64>>,
}

impl SimReactor {
    /// A reactor with a front.
    pub fn new(fronts: Rc<Fronts<Lower>>, answers: Rc<Answers>) -> SimReactor {
        let reactor = SimReactor {
            answers,
            fronts,
            front: RefCell::default(),
            hold: Hold::default(),
            coming: RefCell::default(),
            over: RefCell::default(),
        };
        reactor.hold.begin(&reactor);
        reactor
    }

    /// Takes a host I/O.
    pub fn take(&self, tag: u64, io: HostIo) {
        if self.hold.is_on() {
            return self.hold.keep((tag, io));
        }
        let front = self.front.borrow();
        let Some(front) = &*front else {
            return self.fail((tag, io));
        };
        let volume = front.volume();
        let Ok(admitted) = io.admit(self.fronts.block_shift, volume.size_sectors()) else {
            return self.fail((tag, io));
        };
        match admitted.way(io.kind, volume) {
            Way::Done => self.answers.give(tag, (Outcome::Success, io.memory)),
            Way::Held => self.hold.keep((tag, io)),
            Way::Front => {
                let (mut list, fit) = (io.list, admitted.fit);
                list.truncate(fit.map_or(0, |fit| fit.pieces));
                let fills_list = fit.is_some_and(|fit| fit.is_exact);
                let request = front.lane().host_io_of(tag, io.memory, list, fills_list);
                request.start(io.kind, admitted.at, admitted.sectors);
                request.must_be_durable(io.durable);
                front.submit(request);
            }
        }
    }

    /// A step comes.
    pub fn send(&self, step: Step, number: u64) {
        self.coming.borrow_mut().push_back((step, number));
    }

    /// The steps that have ended here since this was last asked for.
    pub fn take_over(&self) -> Vec<u64> {
        self.over.take()
    }

    /// Calls `f` with the front, if there is one.
    pub fn with_front<T>(&self, f: impl FnOnce(&Front<SimLane>) -> T) -> Option<T> {
        self.front.borrow().as_ref().map(f)
    }

    /// Whether new host I/O waits.
    pub fn holds(&self) -> bool {
        self.hold.is_on()
    }

    /// How many host I/Os are held.
    pub fn held(&self) -> usize {
        self.hold.line().0.borrow().len()
    }

    /// Whether nothing is in flight, held, or to be done.
    pub fn is_at_rest(&self) -> bool {
        self.is_idle() && self.held() == 0 && !self.hold.is_awaited()
    }

    /// Closes the front for good. False: try again.
    pub fn end(&self) -> bool {
        !self.has_front() || self.hold.end(self)
    }

    /// Runs once. Returns how much was done.
    pub fn poll(&self, rng: &Rng) -> usize {
        let step = self.coming.borrow_mut().pop_front();
        let mut done = usize::from(step.is_some());
        if let Some((step, number)) = step {
            self.hold.come(self, step, number);
        }
        if let Some(front) = &*self.front.borrow() {
            let most = 1 + rng.below(8) as usize;
            done += SimLane::deliver(front, most) + front.poll();
            while let Some((io, outcome)) = front.lane().finished() {
                let memory = io.host().memory.take();
                self.answers.give(io.host().tag, (outcome, memory));
                done += 1;
            }
        }
        if self.hold.is_awaited() {
            self.hold.go_on(self);
            done += self.over.borrow().len();
        }
        done
    }
}

impl Reactor for SimReactor {
    type Line = HeldIos;
    type Token = u64;
    type Device = Lower;

    fn hold(&self) -> &Hold<HeldIos, u64> {
        &self.hold
    }

    fn fronts(&self) -> &Fronts<Lower> {
        &self.fronts
    }

    fn is_idle(&self) -> bool {
        let idle = |front: &Front<SimLane>| front.is_idle() && front.lane().is_idle();
        self.with_front(idle).unwrap_or(true)
    }

    fn has_front(&self) -> bool {
        self.front.borrow().is_some()
    }

    fn build(&self, shape: &Shape<Lower>) -> bool {
        let lane = SimLane::new(shape.cache.clone(), shape.backing.clone());
        let front = Front::new(lane, shape.shared.clone());
        self.front.replace(front);
        assert!(self.has_front(), "a reader's slot");
        true
    }

    fn close_front(&self) -> bool {
        let closed = self.with_front(Front::close).unwrap_or(true);
        if closed {
            self.front.replace(None);
        }
        closed
    }

    fn submit(&self, (tag, io): (u64, HostIo)) {
        self.take(tag, io);
    }

    fn fail(&self, (tag, io): (u64, HostIo)) {
        self.answers.give(tag, (Outcome::Failed, io.memory));
    }

    fn ended(&self, number: u64) {
        self.over.borrow_mut().push(number);
    }
}
