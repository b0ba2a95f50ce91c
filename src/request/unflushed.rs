//! Writes that a backing device has answered and may still lose in a power cut.
//!
//! Two ways lead to a backing device. What goes through the owner is counted here, write by write,
//! so that a flush which would cover nothing new is left out. What goes past the owner, because the
//! fronts of an earlier shape of the volume still have I/O in flight, cannot be counted: until those
//! fronts are drained every flush reaches the device, and from then on the volume counts as
//! unflushed once. So a volume is made [`Unflushed::new`] with fronts of an unknown kind, and
//! whatever exchanges its fronts calls [`Unflushed::fronts_exchanged`] when the old ones are drained.
//!
//! Write-back flushes for itself and is not counted.

use std::cell::Cell;

use crate::canary::{self, Bug};
use crate::disk::{DoneFuture, IoError};
use crate::task::Lock;

/// What is unflushed on one backing device.
pub struct Unflushed {
    /// Counts writes that ended.
    written: Cell<u64>,
    /// The count that the last flush covers.
    flushed: Cell<u64>,
    /// Fronts that the owner does not know may have writes in flight.
    strange_fronts: Cell<bool>,
    turn: Lock,
}

impl Default for Unflushed {
    fn default() -> Self {
        Self::new()
    }
}

impl Unflushed {
    /// Of a device to which an earlier run, or fronts without a cache, may have written.
    pub fn new() -> Unflushed {
        Unflushed {
            written: Cell::new(1),
            flushed: Cell::new(0),
            strange_fronts: Cell::new(!canary::has(Bug::ExchangeForgotten)),
            turn: Lock::default(),
        }
    }

    /// A write has ended.
    pub fn wrote(&self) {
        self.written.set(self.written.get() + 1);
    }

    /// The volume's fronts were exchanged: those before have nothing in flight any more, and what
    /// they wrote counts as one unflushed write.
    pub fn fronts_exchanged(&self) {
        self.strange_fronts.set(false);
        if !canary::has(Bug::ExchangeForgotten) {
            self.wrote();
        }
    }

    /// Whether the device may hold writes that are not durable.
    pub fn needs_flush(&self) -> bool {
        self.strange_fronts.get() || self.flushed.get() < self.written.get()
    }

    /// Makes durable all writes that have ended, by `flush` of the device if that covers anything.
    ///
    /// # Errors
    /// The device failed; what was unflushed still is.
    pub async fn flush(&self, flush: impl FnOnce() -> DoneFuture) -> Result<(), IoError> {
        let upto = self.written.get();
        let is_covered = || !self.strange_fronts.get() && self.flushed.get() >= upto;
        if is_covered() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if is_covered() {
            return Ok(());
        }
        let covers = self.written.get();
        flush().await?;
        self.flushed.set(covers);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::rc::Rc;

    use super::*;
    use crate::task::Executor;

    /// Flushes; tells whether that reached the device.
    fn reaches_device(unflushed: &Rc<Unflushed>) -> bool {
        let (exec, reached) = (Executor::new(), Rc::new(Cell::new(false)));
        let (unflushed, seen) = (unflushed.clone(), reached.clone());
        exec.spawn(async move {
            let flush = || -> DoneFuture {
                seen.set(true);
                Box::pin(ready(Ok(())))
            };
            unflushed.flush(flush).await.expect("the device works");
        });
        exec.poll(0, 8);
        reached.get()
    }

    #[test]
    fn every_flush_reaches_the_device_until_the_fronts_are_exchanged_and_once_after() {
        let unflushed = Rc::new(Unflushed::new());
        assert!(reaches_device(&unflushed) && reaches_device(&unflushed));
        unflushed.fronts_exchanged();
        assert!(reaches_device(&unflushed) && !reaches_device(&unflushed));
        unflushed.wrote();
        assert!(reaches_device(&unflushed) && !reaches_device(&unflushed));
    }

    #[test]
    fn a_write_that_ends_during_a_flush_is_not_covered_by_it() {
        let (exec, unflushed) = (Executor::new(), Rc::new(Unflushed::new()));
        unflushed.fronts_exchanged();
        let (flushing, during) = (unflushed.clone(), unflushed.clone());
        exec.spawn(async move {
            let flush = || -> DoneFuture {
                during.wrote();
                Box::pin(ready(Ok(())))
            };
            flushing.flush(flush).await.expect("the device works");
        });
        exec.poll(0, 8);
        assert!(unflushed.needs_flush());
    }
}
