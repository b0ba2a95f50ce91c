//! What cuts the power of a machine, or lets one of its devices fail, at one moment that a sweep chooses.

use std::cell::Cell;
use std::rc::Rc;

/// What goes wrong with the devices of a machine at one moment, counted in what they are told.
///
/// It may cut the power at a step, which is a write or a flush: that one still reaches its device's
/// volatile cache, no later one does, and nothing is answered any more. Or it lets an operation fail,
/// which is a read, a write or a flush.
pub struct Fuse {
    steps: Cell<u64>,
    last: u64,
    operations: Cell<u64>,
    fault: Cell<Option<Fault>>,
}

/// An operation that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which, counted from 0.
    pub operation: u64,
    /// Whether all later ones of the same device fail too.
    pub lasting: bool,
}

impl Fuse {
    /// A fuse that blows at step `last`, counted from 0.
    pub fn new(last: u64) -> Rc<Fuse> {
        Rc::new(Fuse {
            steps: Cell::new(0),
            last,
            operations: Cell::new(0),
            fault: Cell::new(None),
        })
    }

    /// One that never blows.
    pub fn sound() -> Rc<Fuse> {
        Self::new(u64::MAX - 1)
    }

    /// One that never blows, with a fault.
    pub fn with(fault: Fault) -> Rc<Fuse> {
        let fuse = Self::sound();
        fuse.fault.set(Some(fault));
        fuse
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.operations.get()
    }

    /// No operation fails from here on, but on a device that has failed for good.
    pub fn disarm(&self) {
        self.fault.set(None);
    }

    /// Takes an operation; tells of the fault if it is the one.
    pub(super) fn operation(&self) -> Option<Fault> {
        let nr = self.operations.get();
        self.operations.set(nr + 1);
        self.fault.get().filter(|fault| fault.operation == nr)
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Whether the power is gone.
    pub fn is_blown(&self) -> bool {
        self.steps.get() > self.last
    }

    /// Takes a step; false when there is no power for it.
    pub(super) fn step(&self) -> bool {
        let powered = !self.is_blown();
        self.steps.set(self.steps.get() + u64::from(powered));
        powered
    }
}
