//! Simulated time: events in their order, and nothing else moves the clock.
//!
//! One scheduler is one life of the machine: what was under way when the power went never happens.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::rng::Rng;
use crate::task::Executor;

type Event = Box<dyn FnOnce()>;

struct Inner {
    now_us: Cell<u64>,
    nr: Cell<u64>,
    events: RefCell<BTreeMap<(u64, u64), Event>>,
    rng: Rc<Rng>,
}

/// A handle to the scheduler; clones share it.
#[derive(Clone)]
pub struct Sched(Rc<Inner>);

impl Sched {
    /// A scheduler at `now_us` whose chances come from `rng`.
    pub fn new(now_us: u64, rng: Rc<Rng>) -> Sched {
        Sched(Rc::new(Inner {
            now_us: Cell::new(now_us),
            nr: Cell::new(0),
            events: RefCell::default(),
            rng,
        }))
    }

    /// The time now, in µs.
    pub fn now_us(&self) -> u64 {
        self.0.now_us.get()
    }

    /// The source of all chance.
    pub fn rng(&self) -> &Rng {
        &self.0.rng
    }

    /// Lets `event` happen after so many µs.
    pub fn after(&self, us: u64, event: impl FnOnce() + 'static) {
        let nr = self.0.nr.get();
        self.0.nr.set(nr + 1);
        let key = (self.now_us() + us, nr);
        self.0.events.borrow_mut().insert(key, Box::new(event));
    }

    /// When the next event is due.
    pub fn next_us(&self) -> Option<u64> {
        self.0.events.borrow().keys().next().map(|key| key.0)
    }

    /// Moves the clock on, never back.
    pub fn set_now(&self, now_us: u64) {
        self.0.now_us.set(self.now_us().max(now_us));
    }

    /// Moves the clock on to the next event or the next timer of a thread; false when there is neither.
    pub fn skip_to_next(&self, exec: &Executor) -> bool {
        let next = [self.next_us(), exec.next_timer_us()];
        let next = next.into_iter().flatten().min();
        next.inspect(|&at| self.set_now(at)).is_some()
    }

    /// Runs what is due; returns how much that was.
    pub fn run_due(&self) -> usize {
        let mut done = 0;
        while self.next_us().is_some_and(|at| at <= self.now_us()) {
            let event = self.0.events.borrow_mut().pop_first();
            if let Some((_, event)) = event {
                event();
                done += 1;
            }
        }
        done
    }

    /// Forgets everything that has not happened.
    pub fn clear(&self) {
        let events = self.0.events.take();
        drop(events);
    }
}
