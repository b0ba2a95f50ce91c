//! Places at a kernel queue that several devices share.
//!
//! All AIO bdevs of a thread share one queue of the kernel's. An operation that finds it full is kept
//! by the bdev layer until another one *of the same device* on this thread ends: for ever, in SPDK
//! 20.07, when it was other devices that filled the queue. A cache device and its backing device,
//! both on AIO, get there with a few dozen fragmented reads. So operations enter the queue through
//! this gate, one for each SPDK thread, and the queue never is full.
//!
//! The bdev layer cuts a transfer on a device that wants aligned memory, as every AIO bdev does, at
//! multiples of 64 KiB, and gives the device up to 32 pieces at once. A bdev that stands on AIO bdevs
//! (a split, a RAID, a logical volume) ends in the same queue and may cut at other places; glue.c says
//! which bdevs those are, and how small their pieces get. Each piece has its own place
//! ([`places`]). What such a bdev does of its own, as a thin volume that copies a cluster, is not
//! counted: a tree that setup.sh builds bears that, because its AIO keeps what finds the queue full.
//!
//! An operation that finds too few places waits in its device's line. Each device has a share of the
//! places, so that one that is slow, or never answers, leaves some to the others: [`crate::disk::places`].

use std::cell::Cell;
use std::ffi::c_void;
use std::rc::{Rc, Weak};
use std::sync::Mutex;

use super::{sys, thread};
use crate::disk::places::{Places, User};

/// What SPDK's AIO module asks the kernel for.
const PLACES: usize = 128;
/// Pieces of one transfer that the bdev layer has under way at a time.
const PIECES_MAX: u64 = 32;

/// How many places a transfer of `bytes` bytes at byte `at` of its device needs, when it is cut at
/// multiples of `1 << cut_shift` bytes: 1 to 32.
pub fn places(at: u64, bytes: u64, cut_shift: u32) -> usize {
    let last = at + bytes.max(1) - 1;
    ((last >> cut_shift) - (at >> cut_shift) + 1).min(PIECES_MAX) as usize
}

/// In the place of a thread, of a gate that is not the thread's own.
const NO_THREAD: usize = 0;

/// Called with its argument once it has a place.
pub type Admitted = unsafe extern "C" fn(*mut c_void);

/// The gate of one SPDK thread.
pub struct Gate {
    places: Places<Waiting>,
    admitting: Cell<bool>,
    thread: usize,
}

/// A device at a gate.
pub struct Entrance {
    gate: Rc<Gate>,
    /// There until it is dropped.
    user: Option<Rc<User<Waiting>>>,
}

/// An operation in line.
#[derive(Clone, Copy)]
struct Waiting {
    admitted: Admitted,
    arg: *mut c_void,
}

/// An entry of the list of all gates.
struct Known {
    thread: usize,
    gate: Weak<Gate>,
}

// SAFETY: the pointer is only followed, copied and dropped on the SPDK thread that it stands for:
// by `here`, which looks for its own thread's, and by the drop of that thread's gate. Such a thread
// runs in one place at a time, whichever system thread carries it.
unsafe impl Send for Known {}

static GATES: Mutex<Vec<Known>> = Mutex::new(Vec::new());

impl Gate {
    /// The gate of the SPDK thread that runs. Not on the path of an I/O.
    pub fn here() -> Rc<Gate> {
        let thread = thread::current() as usize;
        let mut gates = GATES.lock().unwrap_or_else(|e| e.into_inner());
        let known = gates.iter().find(|known| known.thread == thread);
        if let Some(gate) = known.and_then(|known| known.gate.upgrade()) {
            return gate;
        }
        let gate = Rc::new(Gate::new(thread, PLACES, PIECES_MAX as usize));
        gates.push(Known {
            thread,
            gate: Rc::downgrade(&gate),
        });
        gate
    }

    /// A device's own gate of so many places, at no queue of the kernel's.
    pub fn of(places: usize) -> Entrance {
        const THE_ONLY_ONE: usize = 0;
        let gate = Gate::new(NO_THREAD, places, 1);
        Rc::new(gate).entrance_of(THE_ONLY_ONE)
    }

    fn new(thread: usize, places: usize, most: usize) -> Gate {
        Gate {
            places: Places::new(places, most),
            admitting: Cell::new(false),
            thread,
        }
    }

    /// A bdev's way through this gate; all of one bdev's have one share of it.
    pub fn entrance(self: &Rc<Gate>, bdev: *mut sys::spdk_bdev) -> Entrance {
        self.entrance_of(bdev as usize)
    }

    fn entrance_of(self: &Rc<Gate>, key: usize) -> Entrance {
        Entrance {
            gate: self.clone(),
            user: Some(self.places.join(key)),
        }
    }

    /// Gives places that are free to what waits. An operation that is admitted here may leave at once;
    /// that is why this is a loop and not a recursion.
    fn admit(&self) {
        if self.admitting.replace(true) {
            return;
        }
        while let Some(next) = self.places.next() {
            // SAFETY: as `enter` was promised; each entry is called once.
            unsafe { (next.admitted)(next.arg) };
        }
        self.admitting.set(false);
    }
}

impl Entrance {
    fn user(&self) -> &User<Waiting> {
        self.user.as_ref().expect("there until the drop")
    }

    /// Takes that many places, at most 32, to be given back with [`leave`](Self::leave). False: there
    /// are too few; `admitted` is called with `arg` when this one's turn has come, and has them then.
    ///
    /// # Safety
    /// `arg` is what `admitted` wants, until it is called.
    pub unsafe fn enter(&self, places: usize, admitted: Admitted, arg: *mut c_void) -> bool {
        let waiting = Waiting { admitted, arg };
        self.gate.places.enter(self.user(), places, waiting)
    }

    /// Gives places back, and those that are free to what waits.
    pub fn leave(&self, places: usize) {
        self.gate.places.leave(self.user(), places);
        self.gate.admit();
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Some(user) = self.user.take() {
            self.gate.places.part(user);
            self.gate.admit();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        debug_assert!(self.places.is_idle(), "somebody still waits");
        let mut gates = GATES.lock().unwrap_or_else(|e| e.into_inner());
        gates.retain(|known| known.thread != self.thread);
    }
}
