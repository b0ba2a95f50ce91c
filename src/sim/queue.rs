//! A queue that all devices of a host share, as AIO bdevs share one of the kernel's.
//!
//! The places at it are given out by the engine's own [`Places`]: a transfer that finds too few waits in
//! its device's line, and a device that does not answer leaves places to the others.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::sched::Sched;
use crate::disk::places::{Places, User};

/// Places that a transfer takes at most.
const MOST: usize = 32;
/// Sectors of a transfer for which it takes one place.
const SECTORS_A_PLACE: u64 = 8;

/// A transfer that waits for its places; it is taken out when it goes on.
type Waiting = Rc<Cell<Option<Box<dyn FnOnce()>>>>;

/// The queue.
pub struct Queue {
    places: Places<Waiting>,
    keys: RefCell<BTreeMap<String, usize>>,
    admitting: Cell<bool>,
    /// Transfers that have waited for their places.
    pub waited: Cell<u64>,
}

/// A device's way to it.
#[derive(Clone)]
pub struct Entrance {
    queue: Rc<Queue>,
    user: Rc<User<Waiting>>,
}

impl Queue {
    /// A queue of so many places, no fewer than a transfer may take.
    pub fn new(places: usize) -> Rc<Queue> {
        Rc::new(Queue {
            places: Places::new(places.max(MOST), MOST),
            keys: RefCell::default(),
            admitting: Cell::new(false),
            waited: Cell::new(0),
        })
    }

    /// The way of the device of a name.
    pub fn entrance(self: &Rc<Queue>, name: &str) -> Entrance {
        let mut keys = self.keys.borrow_mut();
        let next = keys.len();
        let key = *keys.entry(name.to_string()).or_insert(next);
        Entrance {
            queue: self.clone(),
            user: self.places.join(key),
        }
    }

    /// Gives free places to what waits. What goes on may end at once; that is why this is a loop.
    fn admit(&self) {
        if self.admitting.replace(true) {
            return;
        }
        while let Some(next) = self.places.next() {
            run(&next);
        }
        self.admitting.set(false);
    }
}

fn run(transfer: &Waiting) {
    let go = transfer.take().expect("each goes on once");
    go();
}

impl Entrance {
    /// Has a transfer of so many sectors answered, so many µs after it has its places.
    pub fn go(&self, sectors: u64, sched: Sched, delay_us: u64, answer: impl FnOnce() + 'static) {
        let places = MOST.min((1 + sectors / SECTORS_A_PLACE) as usize);
        let (queue, user) = (self.queue.clone(), self.user.clone());
        let go = move || {
            sched.after(delay_us, move || {
                queue.places.leave(&user, places);
                queue.admit();
                answer();
            });
        };
        let transfer: Waiting = Rc::new(Cell::new(Some(Box::new(go))));
        if self
            .queue
            .places
            .enter(&self.user, places, transfer.clone())
        {
            run(&transfer);
        } else {
            self.queue.waited.set(self.queue.waited.get() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn a_device_that_answers_late_leaves_places_to_others_and_gives_its_own_back() {
        let sched = Sched::new(0, Rc::new(Rng::new(1)));
        let queue = Queue::new(64);
        let (late, soon) = (queue.entrance("late"), queue.entrance("soon"));
        let ended: Rc<RefCell<Vec<&str>>> = Rc::default();
        let go = |entrance: &Entrance, name, us| {
            let ended = ended.clone();
            let end = move || ended.borrow_mut().push(name);
            entrance.go(256, sched.clone(), us, end);
        };
        go(&late, "late", 100);
        go(&late, "late, too", 100);
        go(&soon, "soon", 10);
        go(&soon, "soon, too", 10);
        while let Some(at) = sched.next_us() {
            sched.set_now(at);
            sched.run_due();
        }
        assert_eq!(*ended.borrow(), ["soon", "soon, too", "late", "late, too"]);
        assert!(queue.places.is_idle() && queue.waited.get() == 2);
    }
}
