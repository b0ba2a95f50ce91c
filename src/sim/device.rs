//! A device as the engine's own I/O sees it: opened by name, with failures that fronts do not meet.
//!
//! A [`SimDisk`](super::disk::SimDisk) fails for everybody at once. Here only what the engine does of
//! its own (metadata, write-back, superblocks) fails or waits: some ranges are unreadable, others take
//! no write, and a *silent* device answers writes and flushes only when its silence ends. [`Flaws`]
//! belong to the device's name and outlive each opening.

use std::cell::{Cell, RefCell};
use std::future::ready;
use std::rc::Rc;

use super::lower::Lower;
use crate::disk::{Buf, BufFuture, Disk, DoneFuture, IoError};
use crate::task::Notify;
use crate::units::{SECTOR_BYTES, Sector};

/// Whether a device answers the engine's own writes and flushes now, or later.
#[derive(Default)]
pub struct Silence {
    silent: Cell<bool>,
    ended: Notify,
}

impl Silence {
    /// Begins, or ends: what waits is then done.
    pub fn set(&self, silent: bool) {
        self.silent.set(silent);
        self.ended.notify();
    }

    /// Whether it has begun.
    pub fn is_on(&self) -> bool {
        self.silent.get()
    }

    async fn over(&self) {
        while self.silent.get() {
            self.ended.wait().await;
        }
    }
}

/// Ranges of a device: from, to.
type Ranges = RefCell<Vec<(Sector, Sector)>>;

fn hits(ranges: &Ranges, at: Sector, sectors: u64) -> bool {
    let end = at + sectors;
    ranges
        .borrow()
        .iter()
        .any(|&(from, to)| from < end && at < to)
}

/// What is wrong with a device for the engine's own I/O.
#[derive(Default)]
pub struct Flaws {
    /// Whether it answers.
    pub silence: Rc<Silence>,
    /// Reads of these fail.
    pub unreadable: Ranges,
    /// Writes of these fail, and change nothing.
    pub unwritable: Ranges,
    /// Reads and writes that failed so.
    pub failed: Cell<u64>,
}

impl Flaws {
    /// All ranges can be read and written again.
    pub fn mend(&self) {
        self.unreadable.borrow_mut().clear();
        self.unwritable.borrow_mut().clear();
    }

    fn fails(&self, ranges: &Ranges, at: Sector, buf: &Buf) -> bool {
        let fails = hits(ranges, at, (buf.len() / SECTOR_BYTES) as u64);
        self.failed.set(self.failed.get() + u64::from(fails));
        fails
    }
}

/// A device that the engine has open.
pub struct OpenDevice {
    inner: Lower,
    flaws: Rc<Flaws>,
}

impl OpenDevice {
    /// Opens a device with its flaws.
    pub fn new(inner: Lower, flaws: Rc<Flaws>) -> OpenDevice {
        OpenDevice { inner, flaws }
    }

    /// The device itself, as fronts use it.
    pub fn sim(&self) -> &Lower {
        &self.inner
    }
}

impl Disk for OpenDevice {
    fn name(&self) -> String {
        self.inner.disk().name()
    }

    fn kind(&self) -> &str {
        self.inner.disk().kind()
    }

    fn size_sectors(&self) -> u64 {
        self.inner.disk().size_sectors()
    }

    fn block_sectors(&self) -> u32 {
        self.inner.disk().block_sectors()
    }

    fn alloc(&self, bytes: usize) -> Buf {
        self.inner.disk().alloc(bytes)
    }

    fn read(&self, at: Sector, buf: Buf) -> BufFuture {
        match self.flaws.fails(&self.flaws.unreadable, at, &buf) {
            true => Box::pin(ready((buf, Err(IoError::Failed)))),
            false => self.inner.disk().read(at, buf),
        }
    }

    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        if self.flaws.fails(&self.flaws.unwritable, at, &buf) {
            return Box::pin(ready((buf, Err(IoError::Failed))));
        }
        if !self.flaws.silence.is_on() {
            return self.inner.disk().write(at, buf);
        }
        let (flaws, inner) = (self.flaws.clone(), self.inner.clone());
        Box::pin(async move {
            flaws.silence.over().await;
            inner.disk().write(at, buf).await
        })
    }

    fn flush(&self) -> DoneFuture {
        if !self.flaws.silence.is_on() {
            return self.inner.disk().flush();
        }
        let (flaws, inner) = (self.flaws.clone(), self.inner.clone());
        Box::pin(async move {
            flaws.silence.over().await;
            inner.disk().flush().await
        })
    }

    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.inner.disk().unmap(at, sectors)
    }

    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.inner.disk().write_zeroes(at, sectors)
    }

    fn unmap_reads_zeros(&self) -> bool {
        self.inner.disk().unmap_reads_zeros()
    }
}
