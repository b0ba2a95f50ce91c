//! What becomes of errors of the devices.
//!
//! Those of a cache device's data: they are counted, what is clean is dropped from
//! the map, what is dirty makes the set say so loudly.
//!
//! As in the kernel the count decays: after `io_error_halflife` I/Os half of it is forgotten. At
//! `io_error_limit` errors the device is given up: the set stops as for an error of its metadata.
//! Errors of metadata stop it at once and are not counted.
//!
//! An unreadable clean extent is dropped by a deletion that is durable before anything else touches
//! its range; so its range is held meanwhile, as a write past the cache holds its own.
//!
//! Those of a backing device are counted too, all of them, as in the kernel. At `io_error_limit` of
//! them the volume is disabled (the kernel's `io_disable`): what needs the backing device ends in an
//! error at once, and so do all writes, so that no more data become dirty that cannot be written back.
//! What is cached can be read, what is dirty stays dirty and is still written back if the device
//! lets it. Somebody must say that the device works again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::owner::{Owner, Volume};
use crate::index::Extent;
use crate::options::{SetOption, VolumeOption};
use crate::stats::Counter;
use crate::units::Inode;

/// Errors at which a cache device is given up unless told otherwise, as in the kernel.
pub const IO_ERROR_LIMIT: u64 = SetOption::IoErrorLimit.number();

/// Errors at which a backing device is given up unless told otherwise, as in the kernel.
pub const BACKING_ERROR_LIMIT: u64 = VolumeOption::IoErrorLimit.number();

/// How well a backing device serves. Reactors and the owner count.
pub struct BackingHealth {
    errors: AtomicU64,
    limit: AtomicU64,
    disabled: AtomicBool,
    /// The volume and its backing device, for messages.
    names: Mutex<(String, String)>,
    last: Mutex<Option<String>>,
}

impl Default for BackingHealth {
    fn default() -> Self {
        BackingHealth {
            errors: AtomicU64::new(0),
            limit: AtomicU64::new(BACKING_ERROR_LIMIT),
            disabled: AtomicBool::new(false),
            names: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

impl BackingHealth {
    /// Errors since the volume came up, or since it was said that the device works.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Errors at which the device is given up.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes that; at least 1. Counts from the next error on.
    pub fn set_limit(&self, errors: u64) {
        self.limit.store(errors, Ordering::Relaxed);
    }

    /// Whether the device is given up.
    #[inline]
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// Gives the device up, or says that it works: then errors count from zero.
    pub fn disable(&self, disabled: bool) {
        if !disabled {
            self.errors.store(0, Ordering::Relaxed);
        }
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    /// Says whose errors these are: a volume's, and its backing device's.
    pub fn belongs_to(&self, volume: &str, device: &str) {
        *lock(&self.names) = (volume.into(), device.into());
    }

    /// The last error of the device with its place, as `device: what failed: error`.
    pub fn last_failure(&self) -> Option<String> {
        let last = lock(&self.last).clone()?;
        Some(format!("{}: {last}", lock(&self.names).1))
    }

    /// Counts an error of the device: what it failed to do, where, and why.
    pub fn failed(&self, what: String) {
        let errors = self.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if errors >= self.limit() && !self.disabled.swap(true, Ordering::Relaxed) {
            let (volume, device) = &*lock(&self.names);
            log::error!(
                "volume {volume}: its backing device {device} has failed {errors} times \
                 (io_error_limit), last {what}; what needs it ends in errors until \
                 bdev_bcache_set_options {volume} io_disable=false"
            );
        }
        *lock(&self.last) = Some(what);
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(|e| e.into_inner())
}

/// How well a cache device serves its data.
pub struct Health {
    /// Errors at which the device is given up; at least 1.
    pub limit: Cell<u64>,
    /// I/Os after which half of the errors are forgotten; 0: none ever is.
    pub halflife: Cell<u64>,
    /// Errors that count, decayed up to `counted_at`.
    recent: Cell<f64>,
    counted_at: Cell<u64>,
    /// Reads that failed.
    pub read_errors: Counter,
    /// Writes that failed.
    pub write_errors: Counter,
    /// The first dirty data that could not be read.
    lost: RefCell<Option<String>>,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            limit: Cell::new(IO_ERROR_LIMIT),
            halflife: Cell::new(SetOption::IoErrorHalflife.number()),
            recent: Cell::new(0.0),
            counted_at: Cell::new(0),
            read_errors: Counter::default(),
            write_errors: Counter::default(),
            lost: RefCell::default(),
        }
    }
}

impl Health {
    /// Errors that count when `ios` I/Os have been done.
    pub fn recent(&self, ios: u64) -> f64 {
        let since = ios.saturating_sub(self.counted_at.get());
        match self.halflife.get() {
            0 => self.recent.get(),
            halflife => self.recent.get() * (-(since as f64) / halflife as f64).exp2(),
        }
    }

    /// Counts an error; true when that is one too many.
    fn count(&self, ios: u64, write: bool) -> bool {
        let recent = self.recent(ios) + 1.0;
        self.recent.set(recent);
        self.counted_at.set(ios);
        match write {
            true => self.write_errors.add(1),
            false => self.read_errors.add(1),
        }
        // A sum of decayed ones is never quite whole.
        recent + 1e-6 >= self.limit.get() as f64
    }

    /// Which dirty data could not be read first since the set started.
    pub fn lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }
}

impl Owner {
    /// The cache device failed to read or write data.
    pub fn cache_failed(&self, write: bool) {
        if self.health.count(self.set.ios(), write) && self.latch.check().is_ok() {
            self.latch.trip(format!(
                "{} failed too often: {} reads and {} writes, io_error_limit is {}",
                self.tree.cache_disk().name(),
                self.health.read_errors.get(),
                self.health.write_errors.get(),
                self.health.limit.get()
            ));
        }
    }

    /// Dirty data cannot be read: the set says so from now on.
    pub fn dirty_unreadable(&self, inode: Inode, extent: &Extent) {
        let why = format!(
            "{} sectors of dirty data cannot be read from sector {} of {}: those of inode {} from sector {}",
            extent.sectors,
            extent.at,
            self.tree.cache_disk().name(),
            inode.0,
            extent.start
        );
        log::error!("{why}");
        self.health.lost.borrow_mut().get_or_insert(why);
    }

    /// A front met an error of the cache device.
    pub(super) fn cache_error(self: &Rc<Self>, number: u32, extent: Extent, write: bool) {
        let volume = self.volume(number);
        self.cache_failed(write);
        match (write, extent.dirty) {
            (true, _) => {}
            (false, true) => self.dirty_unreadable(volume.inode, &extent),
            (false, false) => self.drop_unreadable(volume, extent),
        }
    }

    /// Drops what is clean in an extent's range. Where somebody else is at work there the extent
    /// stays, to be dropped when it fails again.
    fn drop_unreadable(self: &Rc<Self>, volume: Rc<Volume>, extent: Extent) {
        let (start, end) = (extent.start, extent.end());
        let busy =
            volume.is_writing_back(start, end) || volume.throughs.borrow().overlaps(start, end);
        if busy || self.latch.check().is_err() {
            return;
        }
        volume.throughs.borrow_mut().hold(start, end);
        let owner = self.clone();
        self.spawn(async move {
            // A failure has tripped the latch.
            let _ = owner.forget(&volume, start, end).await;
            owner.release(&volume, start, end);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backing_device_is_given_up_with_the_error_that_reaches_the_limit() {
        let health = BackingHealth::default();
        health.set_limit(2);
        health.failed("a read".into());
        assert!(!health.is_disabled());
        health.failed("a write".into());
        assert!(health.is_disabled());
        let last = health.last_failure().expect("there was one");
        assert!(last.ends_with("a write"), "{last}");
        health.disable(false);
        health.failed("a flush".into());
        assert!(!health.is_disabled(), "errors count from zero");
    }

    #[test]
    fn errors_count_up_to_the_limit_and_are_forgotten_by_halves() {
        let health = Health::default();
        health.limit.set(3);
        assert!(!health.count(0, true) && !health.count(1_000_000, false));
        assert!(
            health.count(2_000_000, false),
            "without a half-life none is forgotten"
        );
        assert_eq!(
            (health.write_errors.get(), health.read_errors.get()),
            (1, 2)
        );
        let health = Health::default();
        health.limit.set(3);
        health.halflife.set(100);
        for ios in (0..10_000).step_by(100) {
            assert!(!health.count(ios, false), "never more than two");
        }
        assert!(health.recent(9_900) > 1.99 && health.recent(10_000) < 1.01);
        assert!(health.count(9_900, false));
    }
}
