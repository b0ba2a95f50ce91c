//! Host I/O that reactors hold back, and the steps over all of them that wait until they are idle.
//!
//! - *Quiet*: each reactor holds new host I/O, in the order of its coming. The volume is quiet when no
//!   front is *busy* ([`Fronts::busy`]), which may be later than the last answer to the step: a reactor
//!   may have a front that the walk over them missed.
//! - *Resume*: each builds its front anew for what the volume is then ([`Shape`]), and lets in what it
//!   holds. A reactor that begins in between begins held.
//! - *Reset*: what is held fails when the step comes and again when nothing is in flight any more,
//!   which ends the step. So of what came before a reset nothing reaches a device after its answer.
//!
//! A step comes to one reactor after the other; how, and what stands for it until it has ended there, is
//! the world's ([`Reactor`]). Steps of one reactor end in the order of their coming. Nothing here takes
//! a lock on the path of an I/O, nor allocates: the line of held I/Os is the world's too ([`Line`]).

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::volume::VolumeShared;
use crate::canary::{self, Bug};

/// What fronts of a volume are built from; `D` names a device.
#[derive(Clone)]
pub struct Shape<D> {
    /// The engine's part.
    pub shared: Arc<VolumeShared>,
    /// The cache device.
    pub cache: Option<D>,
    /// The backing device.
    pub backing: Option<D>,
    /// Counts the shapes.
    pub version: u64,
    /// Whether host I/O is to wait.
    pub held: bool,
}

/// What all reactors know of a volume's fronts.
pub struct Fronts<D> {
    /// log2 of the sectors in a block of the volume.
    pub block_shift: u32,
    shape: Mutex<Shape<D>>,
    /// Those that are not closed.
    open: AtomicUsize,
    /// Those of them that may have I/O under way: they were not told to hold it, or are not idle yet.
    busy: AtomicUsize,
}

impl<D: Clone> Fronts<D> {
    /// No front yet, of a volume of these devices.
    pub fn new(shared: Arc<VolumeShared>, cache: Option<D>, backing: Option<D>) -> Fronts<D> {
        Fronts {
            block_shift: shared.block_sectors.ilog2(),
            shape: Mutex::new(Shape {
                shared,
                cache,
                backing,
                version: 0,
                held: false,
            }),
            open: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }
    }

    /// What they are built from. Not on the path of an I/O.
    pub fn shape(&self) -> MutexGuard<'_, Shape<D>> {
        self.shape.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many reactors have a front that is not closed.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// How many of them may have I/O under way. After [`hold`](Self::hold) this only falls: a front
    /// counts here from before it exists until it is idle and holds all new I/O.
    pub fn busy(&self) -> usize {
        self.busy.load(Ordering::Acquire)
    }

    /// Host I/O is to wait, before a step [`Step::Quiet`] begins.
    pub fn hold(&self) {
        self.shape().held = true;
    }

    /// The volume is something else now, before a step [`Step::Resume`] begins.
    pub fn become_of(&self, shared: Arc<VolumeShared>, cache: Option<D>) {
        let mut shape = self.shape();
        shape.shared = shared;
        shape.cache = cache;
        shape.version += 1;
        shape.held = false;
    }

    /// Counts a new front, and says what it is built from. One step with the look at the shape: a
    /// front that is not told here to hold host I/O is seen as busy by whoever has it held next.
    pub fn enter(&self) -> Shape<D> {
        let shape = self.shape();
        self.open.fetch_add(1, Ordering::AcqRel);
        if !shape.held {
            self.busy.fetch_add(1, Ordering::AcqRel);
        }
        shape.clone()
    }

    /// A front is no more.
    pub fn leave(&self, was_busy: bool) {
        if was_busy {
            self.busy.fetch_sub(1, Ordering::AcqRel);
        }
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A line of host I/Os, first in first out.
pub trait Line: Default {
    /// A host I/O.
    type Io;

    /// Appends one that is on no line.
    fn push(&self, io: Self::Io);

    /// Takes the first.
    fn pop(&self) -> Option<Self::Io>;

    /// Takes all, in the same order.
    fn take(&self) -> Self;
}

/// What a step does with a reactor, once nothing is in flight there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What is held fails.
    Reset,
    /// The front counts as busy no more: it holds all new I/O.
    Quiet,
    /// The new shape is taken on.
    Resume,
}

/// A volume on one reactor, as the world has it.
pub trait Reactor {
    /// Where it holds host I/O.
    type Line: Line;
    /// Stands for a step that has come, until it has ended here.
    type Token: Copy;
    /// Names a device.
    type Device: Clone;

    /// What is held, and the steps that wait.
    fn hold(&self) -> &Hold<Self::Line, Self::Token>;

    /// What all reactors know of the volume's fronts.
    fn fronts(&self) -> &Fronts<Self::Device>;

    /// Whether nothing is in flight.
    fn is_idle(&self) -> bool;

    /// Whether there is a front.
    fn has_front(&self) -> bool;

    /// Builds the front. False when it cannot be had.
    fn build(&self, shape: &Shape<Self::Device>) -> bool;

    /// Closes the front, if there is one, which is idle. False: try again.
    fn close_front(&self) -> bool;

    /// Takes a host I/O that was held.
    fn submit(&self, io: IoOf<Self>);

    /// Answers a host I/O that has touched nothing: it fails.
    fn fail(&self, io: IoOf<Self>);

    /// A step has ended here.
    fn ended(&self, token: Self::Token);
}

/// A host I/O of a reactor.
pub type IoOf<R> = <<R as Reactor>::Line as Line>::Io;

/// What one reactor holds of a volume.
pub struct Hold<L, T> {
    /// Whether new host I/O waits.
    is_on: Cell<bool>,
    /// Whether the reactor counts in [`Fronts::busy`].
    busy: Cell<bool>,
    /// The shape that its front was built from.
    version: Cell<u64>,
    line: L,
    steps: RefCell<Vec<(Step, T)>>,
}

impl<L: Line, T: Copy> Default for Hold<L, T> {
    fn default() -> Self {
        Hold {
            is_on: Cell::new(true),
            busy: Cell::new(false),
            version: Cell::new(0),
            line: L::default(),
            steps: RefCell::default(),
        }
    }
}

impl<L: Line, T: Copy> Hold<L, T> {
    /// Whether new host I/O waits.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// Holds a host I/O.
    pub fn keep(&self, io: L::Io) {
        self.line.push(io);
    }

    /// The line of what is held.
    pub fn line(&self) -> &L {
        &self.line
    }

    /// Whether a step waits for the reactor to be idle.
    pub fn is_awaited(&self) -> bool {
        !self.steps.borrow().is_empty()
    }

    /// Begins: counts the reactor, and builds its front unless host I/O is to wait. False when the
    /// front cannot be had; the reactor counts no more then.
    pub fn begin<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) -> bool {
        let shape = reactor.fronts().enter();
        self.is_on.set(shape.held);
        self.busy.set(!shape.held);
        if shape.held || self.build(reactor, &shape) {
            return true;
        }
        reactor.fronts().leave(true);
        false
    }

    /// Ends, when nothing is in flight and no step waits. False: try again.
    pub fn end<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) -> bool {
        let closed = reactor.close_front();
        if closed {
            reactor.fronts().leave(self.busy.get());
        }
        closed
    }

    /// Builds the front of a reactor that has none; `false` where host I/O fails for that.
    #[cold]
    pub fn build_again<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) -> bool {
        let shape = reactor.fronts().shape().clone();
        !shape.held && self.build(reactor, &shape)
    }

    fn build<R>(&self, reactor: &R, shape: &Shape<R::Device>) -> bool
    where
        R: Reactor<Line = L, Token = T>,
    {
        self.version.set(shape.version);
        reactor.build(shape)
    }

    /// A step comes to the reactor. It ends in [`go_on`](Self::go_on).
    pub fn come<R: Reactor<Line = L, Token = T>>(&self, reactor: &R, step: Step, token: T) {
        match step {
            Step::Reset => self.fail_all(reactor),
            Step::Quiet => self.is_on.set(true),
            Step::Resume => {}
        }
        self.steps.borrow_mut().push((step, token));
    }

    /// Does what waits for nothing to be in flight. To be called by a poller while
    /// [`is_awaited`](Self::is_awaited).
    pub fn go_on<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) {
        while reactor.is_idle() {
            let Some((step, token)) = self.steps.borrow().first().copied() else {
                return;
            };
            match step {
                // What came since the step has come.
                Step::Reset => self.fail_all(reactor),
                Step::Quiet => self.be_quiet(reactor),
                Step::Resume if self.take_on_shape(reactor) => {}
                Step::Resume => return,
            }
            self.steps.borrow_mut().remove(0);
            reactor.ended(token);
        }
    }

    /// Ends all host I/O that is held: it has touched nothing.
    fn fail_all<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) {
        if canary::has(Bug::ResetForgetsHeld) {
            return;
        }
        let held = self.line.take();
        while let Some(io) = held.pop() {
            reactor.fail(io);
        }
    }

    /// Nothing is in flight, and host I/O is held.
    fn be_quiet<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) {
        if self.busy.replace(false) {
            reactor.fronts().busy.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Takes on the volume's new shape and lets the held I/O in. False: try again.
    fn take_on_shape<R: Reactor<Line = L, Token = T>>(&self, reactor: &R) -> bool {
        let shape = reactor.fronts().shape().clone();
        if shape.held {
            return true;
        }
        if !self.busy.replace(true) {
            reactor.fronts().busy.fetch_add(1, Ordering::AcqRel);
        }
        if self.version.get() != shape.version || !reactor.has_front() {
            if !reactor.close_front() {
                return false;
            }
            self.build(reactor, &shape);
        }
        self.is_on.set(false);
        let held = self.line.take();
        while let Some(io) = held.pop() {
            reactor.submit(io);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::superblock::CacheMode;
    use crate::request::volume::Name;
    use crate::units::Uuid;

    #[derive(Default)]
    struct Numbers(RefCell<Vec<u32>>);

    impl Line for Numbers {
        type Io = u32;
        fn push(&self, io: u32) {
            self.0.borrow_mut().push(io);
        }
        fn pop(&self) -> Option<u32> {
            let mut all = self.0.borrow_mut();
            (!all.is_empty()).then(|| all.remove(0))
        }
        fn take(&self) -> Numbers {
            Numbers(RefCell::new(self.0.take()))
        }
    }

    /// A reactor whose host I/Os are in flight until it is told that they have ended.
    struct Rig {
        fronts: Fronts<()>,
        hold: Hold<Numbers, char>,
        front: Cell<bool>,
        in_flight: Cell<usize>,
        /// What has happened, in words.
        log: RefCell<Vec<String>>,
    }

    impl Rig {
        fn new() -> Rig {
            let rig = Rig {
                fronts: Fronts::new(shared(), None, None),
                hold: Hold::default(),
                front: Cell::new(false),
                in_flight: Cell::new(0),
                log: RefCell::default(),
            };
            assert!(rig.hold.begin(&rig));
            rig
        }

        fn note(&self, what: String) {
            self.log.borrow_mut().push(what);
        }

        fn happened(&self) -> String {
            self.log.take().join(" ")
        }
    }

    impl Reactor for Rig {
        type Line = Numbers;
        type Token = char;
        type Device = ();
        fn hold(&self) -> &Hold<Numbers, char> {
            &self.hold
        }
        fn fronts(&self) -> &Fronts<()> {
            &self.fronts
        }
        fn is_idle(&self) -> bool {
            self.in_flight.get() == 0
        }
        fn has_front(&self) -> bool {
            self.front.get()
        }
        fn build(&self, shape: &Shape<()>) -> bool {
            self.note(format!("front{}", shape.version));
            self.front.set(true);
            true
        }
        fn close_front(&self) -> bool {
            self.front.set(false);
            true
        }
        fn submit(&self, io: u32) {
            if self.hold.is_on() {
                return self.hold.keep(io);
            }
            self.in_flight.set(self.in_flight.get() + 1);
            self.note(format!("{io}"));
        }
        fn fail(&self, io: u32) {
            self.note(format!("fail{io}"));
        }
        fn ended(&self, token: char) {
            self.note(token.into());
        }
    }

    fn shared() -> Arc<VolumeShared> {
        let name = Name::new("Vol0".into());
        let mode = CacheMode::WriteBack;
        let totals = Arc::default();
        let shared = VolumeShared::new(name, Uuid([1; 16]), 8, 64, None, None, mode, totals);
        Arc::new(shared)
    }

    #[test]
    fn what_comes_while_it_is_quiet_goes_on_in_order_and_in_a_new_front() {
        let rig = Rig::new();
        rig.submit(1);
        rig.fronts.hold();
        rig.hold.come(&rig, Step::Quiet, 'q');
        rig.submit(2);
        rig.submit(3);
        rig.hold.go_on(&rig);
        assert_eq!(
            (rig.happened().as_str(), rig.fronts.busy()),
            ("front0 1", 1)
        );
        rig.in_flight.set(0);
        rig.hold.go_on(&rig);
        assert_eq!((rig.happened().as_str(), rig.fronts.busy()), ("q", 0));
        rig.fronts.become_of(shared(), None);
        rig.hold.come(&rig, Step::Resume, 'r');
        rig.hold.go_on(&rig);
        assert_eq!(
            (rig.happened().as_str(), rig.fronts.busy()),
            ("front1 2 3 r", 1)
        );
    }

    #[test]
    fn a_reset_ends_when_what_came_before_has() {
        let rig = Rig::new();
        rig.submit(1);
        rig.hold.come(&rig, Step::Quiet, 'q');
        rig.submit(2);
        rig.hold.come(&rig, Step::Reset, 'x');
        rig.submit(3);
        rig.hold.go_on(&rig);
        assert_eq!(rig.happened(), "front0 1 fail2");
        rig.in_flight.set(0);
        rig.hold.go_on(&rig);
        assert_eq!(rig.happened(), "q fail3 x");
        assert!(!rig.hold.is_awaited());
    }

    #[test]
    fn a_reactor_that_begins_meanwhile_begins_held() {
        let rig = Rig::new();
        rig.fronts.hold();
        assert!(rig.hold.end(&rig));
        assert_eq!((rig.fronts.open(), rig.fronts.busy()), (0, 0));
        assert!(rig.hold.begin(&rig) && rig.hold.is_on() && !rig.has_front());
        assert_eq!((rig.fronts.open(), rig.fronts.busy()), (1, 0));
        assert!(
            !rig.hold.build_again(&rig),
            "none is built before it goes on"
        );
        assert!(rig.hold.end(&rig));
        assert_eq!((rig.fronts.open(), rig.fronts.busy()), (0, 0));
    }
}
