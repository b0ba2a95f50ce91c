//! Long operations that can be asked after and cancelled: detach, unregister, flush.

use std::cell::{Cell, RefCell};

use super::error::SetError;
use crate::task::Notify;

/// One such operation of a volume or set; at most one of a kind runs at a time.
#[derive(Default)]
pub struct Job {
    running: Cell<bool>,
    cancelled: Cell<bool>,
    changed: Notify,
    failure: RefCell<Option<String>>,
}

/// The run of a job. Dropping it ends the job.
pub struct Run<'a>(&'a Job);

impl Job {
    /// Begins to run; `None` while it runs already.
    pub fn begin(&self) -> Option<Run<'_>> {
        if self.running.replace(true) {
            return None;
        }
        self.cancelled.set(false);
        self.failure.take();
        Some(Run(self))
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.running.get()
    }

    /// Asks it to end early. It may still succeed, when it is past the point of return.
    pub fn cancel(&self) {
        if self.running.get() {
            self.cancelled.set(true);
            self.changed.notify();
        }
    }

    /// Whether it has been asked to end early.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Waits until it is asked to end early.
    pub async fn cancelled(&self) {
        while !self.cancelled.get() {
            self.changed.wait().await;
        }
    }

    /// Waits until it does not run.
    pub async fn ended(&self) {
        while self.running.get() {
            self.changed.wait().await;
        }
    }

    /// Why the last run failed; `None` when it succeeded, runs, or never was.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }
}

impl Run<'_> {
    /// Ends the run with its result, which is passed on.
    pub fn end(self, result: Result<(), SetError>) -> Result<(), SetError> {
        if let Err(error) = &result {
            *self.0.failure.borrow_mut() = Some(error.to_string());
        }
        result
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
        self.0.changed.notify();
    }
}
