//! Owned-buffer I/O on one device, for everything but the hot path.
//!
//! A buffer is given away with the request and comes back with its answer, so nothing can touch
//! it while a device does. The SPDK boundary and the simulator implement [`Disk`]; the engine sees
//! nothing else of a device. All methods are called on the owner thread.
//!
//! What a device promises: a write that was answered may still be lost in a power cut until a
//! flush that was *started after that answer* has been answered. Blocks of one write may land in
//! any order and any subset of them may be lost, each block (of the device) is whole.

pub mod places;
pub mod steps;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;

use crate::task::{Notify, Work, breathe, work};
use crate::units::{SECTOR_BYTES, Sector};

/// Why an I/O on a device failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The device answered with an error.
    Failed,
    /// The device is gone or was closed.
    Gone,
    /// The range does not fit the device, or is not a multiple of its block.
    OutOfRange,
    /// The device cannot do this.
    Unsupported,
    /// The request is malformed: its memory does not fit it, or the driver refused to take it.
    Invalid,
    /// The device was reset under the I/O again and again.
    Aborted,
    /// There is no memory for the I/O.
    NoMemory,
}

impl IoError {
    /// Whether the device is at fault. No other error counts toward its limit of errors: a host can
    /// cause those at will.
    pub fn is_device_error(self) -> bool {
        matches!(self, IoError::Failed | IoError::Gone)
    }

    /// Whether the request itself is at fault: it fails on any device.
    pub fn is_bad_request(self) -> bool {
        matches!(
            self,
            IoError::OutOfRange | IoError::Unsupported | IoError::Invalid
        )
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoError::Failed => "I/O error",
            IoError::Gone => "device gone",
            IoError::OutOfRange => "out of the device's range",
            IoError::Unsupported => "not supported by the device",
            IoError::Invalid => "malformed request",
            IoError::Aborted => "aborted by a reset",
            IoError::NoMemory => "no memory for the I/O",
        })
    }
}

impl std::error::Error for IoError {}

/// The memory behind a [`Buf`].
pub trait Memory {
    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// The bytes, to be changed.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Whether devices reach it, or its data must be copied for them.
    fn is_device_memory(&self) -> bool {
        true
    }
}

impl Memory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// A buffer that a device can read from and write to.
pub struct Buf(Box<dyn Memory>);

impl Buf {
    /// Wraps memory that the device accepts.
    pub fn new(memory: Box<dyn Memory>) -> Buf {
        Buf(memory)
    }

    /// Whether devices reach it, or its data must be copied for them.
    pub fn is_device_memory(&self) -> bool {
        self.0.is_device_memory()
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len())
    }
}

/// The answer to a request that gave a buffer away.
pub type BufFuture = Pin<Box<dyn Future<Output = (Buf, Result<(), IoError>)>>>;
/// The answer to any other request.
pub type DoneFuture = Pin<Box<dyn Future<Output = Result<(), IoError>>>>;

/// Requests that a task has under way at once; the kernel's write-back has as many. More would not
/// be faster, and what a host waits for stands in line behind them.
const AT_ONCE_MAX: usize = 32;

/// Makes requests, `AT_ONCE_MAX` at a time, and waits for them; their answers in the order given.
/// The iterator starts a request when it is asked for one, and reports the bytes that it copies for it.
/// Who waits is woken for the request that is next in line, not for each one that ends.
pub async fn answers<T>(
    requests: impl IntoIterator<Item = Pin<Box<dyn Future<Output = T>>>>,
) -> Vec<T> {
    let mut requests = requests.into_iter();
    let (mut under_way, mut all) = (VecDeque::with_capacity(AT_ONCE_MAX), Vec::new());
    loop {
        while under_way.len() < AT_ONCE_MAX {
            let Some(request) = requests.next() else {
                break;
            };
            under_way.push_back(request);
            breathe().await;
        }
        let Some(next) = under_way.pop_front() else {
            return all;
        };
        all.push(next.await);
    }
}

/// Bytes that one request moves at most of what is longer: priorities, the uuid table. So these take
/// no more of the devices' memory than the requests under way, however large a bucket is.
const WINDOW_BYTES: usize = Work::Bytes.slice();

/// Reads `bytes` from `at`, a window at a time.
///
/// # Errors
/// The device failed.
pub async fn read_long(disk: &Rc<dyn Disk>, at: Sector, bytes: usize) -> Result<Vec<u8>, IoError> {
    let mut all = Vec::with_capacity(bytes);
    while all.len() < bytes {
        let sector = at + (all.len() / SECTOR_BYTES) as u64;
        let buf = disk.alloc(WINDOW_BYTES.min(bytes - all.len()));
        let (buf, done) = disk.read(sector, buf).await;
        done?;
        work(Work::Bytes, buf.len());
        all.extend_from_slice(&buf);
        breathe().await;
    }
    Ok(all)
}

/// Writes what is longer than a window, a few windows at a time. `T` says of what each is.
pub struct LongWrite<T> {
    disk: Rc<dyn Disk>,
    under_way: VecDeque<(T, BufFuture)>,
}

/// Windows that are written at once.
const WINDOWS_MAX: usize = 8;

impl<T: Copy> LongWrite<T> {
    /// Nothing to write yet.
    pub fn new(disk: Rc<dyn Disk>) -> LongWrite<T> {
        LongWrite {
            disk,
            under_way: VecDeque::new(),
        }
    }

    /// Starts to write `data` from `at` on and zeros behind them, `bytes` in all.
    ///
    /// # Errors
    /// The device failed, perhaps at something added before.
    pub async fn add(
        &mut self,
        of: T,
        at: Sector,
        data: &[u8],
        bytes: usize,
    ) -> Result<(), (T, IoError)> {
        let mut from = 0;
        while from < bytes {
            if self.under_way.len() == WINDOWS_MAX {
                self.next().await?;
            }
            let mut buf = self.disk.alloc(WINDOW_BYTES.min(bytes - from));
            let sector = at + (from / SECTOR_BYTES) as u64;
            let part = &data[from.min(data.len())..data.len().min(from + buf.len())];
            buf[..part.len()].copy_from_slice(part);
            from += buf.len();
            work(Work::Bytes, buf.len());
            self.under_way.push_back((of, self.disk.write(sector, buf)));
            breathe().await;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<(), (T, IoError)> {
        match self.under_way.pop_front() {
            Some((of, write)) => write.await.1.map_err(|why| (of, why)),
            None => Ok(()),
        }
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// The device failed.
    pub async fn end(mut self) -> Result<(), (T, IoError)> {
        while !self.under_way.is_empty() {
            self.next().await?;
        }
        Ok(())
    }
}

/// One opened device. Requests start when they are called, not when they are first polled;
/// dropping a future abandons the answer, not the I/O.
pub trait Disk {
    /// What people call the device (the bdev's name).
    fn name(&self) -> String;
    /// The kind of device: the name of the bdev module that makes it, such as `aio`, `nvme` or
    /// `raid`. Empty where that is unknown. It stays the same while the device is open.
    fn kind(&self) -> &str {
        ""
    }
    /// Its size in sectors.
    fn size_sectors(&self) -> u64;
    /// Its smallest addressable unit in sectors: a power of two.
    fn block_sectors(&self) -> u32;
    /// A zeroed buffer of so many bytes that this device accepts.
    fn alloc(&self, bytes: usize) -> Buf;
    /// Reads `buf.len()` bytes from `at`.
    fn read(&self, at: Sector, buf: Buf) -> BufFuture;
    /// Writes the whole of `buf` at `at`.
    fn write(&self, at: Sector, buf: Buf) -> BufFuture;
    /// Makes durable all writes that were answered before this call. A device without a volatile
    /// cache, or whose driver has no flush, answers at once.
    fn flush(&self) -> DoneFuture;
    /// Tells the device that the range is not needed. Advice: what a read returns afterwards is
    /// not defined, unless [`unmap_reads_zeros`](Self::unmap_reads_zeros). Answers [`IoError::Unsupported`] where the device has no such thing.
    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture;
    /// Makes the range read as zeros.
    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture;
    /// Whether the device is of a kind that reads as zeros whatever is unmapped, and is so now.
    fn unmap_reads_zeros(&self) -> bool {
        false
    }
}

/// A device whose errors are counted: those that [`IoError::is_device_error`] names.
pub struct Watched {
    disk: Rc<dyn Disk>,
    failed: Rc<dyn Fn(Failure)>,
}

/// An I/O that a device failed, for messages.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    what: &'static str,
    /// The first sector and how many; `None` for the whole device.
    range: Option<(Sector, u64)>,
    error: IoError,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, error) = (self.what, self.error);
        match self.range {
            Some((at, sectors)) => {
                write!(f, "{what} {sectors} sectors at sector {}: {error}", at.0)
            }
            None => write!(f, "{what}: {error}"),
        }
    }
}

impl Watched {
    /// A device of which each error calls `failed`.
    pub fn new(disk: Rc<dyn Disk>, failed: impl Fn(Failure) + 'static) -> Watched {
        let failed = Rc::new(failed);
        Watched { disk, failed }
    }

    fn look(&self, what: &'static str, range: Range, done: DoneFuture) -> DoneFuture {
        let failed = self.failed.clone();
        Box::pin(async move {
            let done = done.await;
            note(what, range, done, &*failed);
            done
        })
    }

    fn look_buf(&self, what: &'static str, at: Sector, bytes: usize, done: BufFuture) -> BufFuture {
        let failed = self.failed.clone();
        Box::pin(async move {
            let (buf, done) = done.await;
            let sectors = (bytes / SECTOR_BYTES) as u64;
            note(what, Some((at, sectors)), done, &*failed);
            (buf, done)
        })
    }
}

type Range = Option<(Sector, u64)>;

fn note(what: &'static str, range: Range, done: Result<(), IoError>, failed: &dyn Fn(Failure)) {
    if let Some(error) = done.err().filter(|error| error.is_device_error()) {
        failed(Failure { what, range, error });
    }
}

impl Disk for Watched {
    fn name(&self) -> String {
        self.disk.name()
    }
    fn kind(&self) -> &str {
        self.disk.kind()
    }
    fn size_sectors(&self) -> u64 {
        self.disk.size_sectors()
    }
    fn block_sectors(&self) -> u32 {
        self.disk.block_sectors()
    }
    fn alloc(&self, bytes: usize) -> Buf {
        self.disk.alloc(bytes)
    }
    fn read(&self, at: Sector, buf: Buf) -> BufFuture {
        let bytes = buf.len();
        self.look_buf("reading", at, bytes, self.disk.read(at, buf))
    }
    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        let bytes = buf.len();
        self.look_buf("writing", at, bytes, self.disk.write(at, buf))
    }
    fn flush(&self) -> DoneFuture {
        self.look("flushing", None, self.disk.flush())
    }
    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        let range = Some((at, sectors));
        self.look("unmapping", range, self.disk.unmap(at, sectors))
    }
    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        let range = Some((at, sectors));
        self.look("zeroing", range, self.disk.write_zeroes(at, sectors))
    }
    fn unmap_reads_zeros(&self) -> bool {
        self.disk.unmap_reads_zeros()
    }
}

/// The first deep failure of a set's own device, kept for everyone who must stop because of it.
///
/// A failed write of metadata leaves memory ahead of the disk for good; from then on nothing may
/// be acknowledged that relies on it. Whoever meets the failure trips the latch, everyone else
/// looks at it before acting and fails fast.
#[derive(Default)]
pub struct Latch {
    why: RefCell<Option<String>>,
    tripped: Notify,
    closed: Cell<bool>,
}

/// The set has stopped; the latch says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl Latch {
    /// Records the failure, if it is the first, and wakes who waits for one.
    pub fn trip(&self, why: String) -> Stopped {
        let mut slot = self.why.borrow_mut();
        if slot.is_none() {
            log::error!("cache set stops: {why}");
            *slot = Some(why);
        }
        drop(slot);
        self.tripped.notify();
        Stopped
    }

    /// `Err` once the latch has tripped.
    pub fn check(&self) -> Result<(), Stopped> {
        match *self.why.borrow() {
            None => Ok(()),
            Some(_) => Err(Stopped),
        }
    }

    /// What went wrong first.
    pub fn why(&self) -> Option<String> {
        self.why.borrow().clone()
    }

    /// Waits until the latch trips or is closed.
    pub async fn tripped(&self) {
        while self.check().is_ok() && !self.closed.get() {
            self.tripped.wait().await;
        }
    }

    /// Ends the waiting: the set is no more.
    pub fn close(&self) {
        self.closed.set(true);
        self.tripped.notify();
    }
}
