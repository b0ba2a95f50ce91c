//! What the lifecycle asks of the world: devices by name, and volumes shown to hosts.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::disk::{Disk, DoneFuture};
use crate::request::volume::VolumeShared;

/// Why a device cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is no device of that name.
    NotFound,
    /// Something else uses it.
    Busy,
    /// Anything else, as a positive errno.
    Os(i32),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NotFound => f.write_str("there is no bdev of this name"),
            OpenError::Busy => f.write_str("the bdev is in use by something else"),
            OpenError::Os(errno) => write!(f, "the bdev cannot be opened (errno {errno})"),
        }
    }
}

/// The world around the engine. All calls come from the owner thread.
pub trait Host {
    /// Opens a device for reading and writing, and claims it: nobody else writes to it. The device
    /// is closed when the last handle is dropped.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError>;

    /// Opens a device for reading alone, without a claim: to look at it.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn peek(&self, name: &str) -> Result<Rc<dyn Disk>, OpenError>;

    /// Whether there is a bdev of this name, a volume's or another.
    fn is_taken(&self, name: &str) -> bool;

    /// Shows a volume to hosts under its name. The devices are those of the volume; fronts open
    /// their own channels to them.
    ///
    /// # Errors
    /// A positive errno: EEXIST when the name is taken.
    fn expose(
        &self,
        volume: Arc<VolumeShared>,
        backing: Option<Rc<dyn Disk>>,
        cache: Option<Rc<dyn Disk>>,
    ) -> Result<(), i32>;

    /// Takes a volume away from hosts. Done when no I/O of it is in flight and no front is left.
    fn hide(&self, name: &str) -> DoneFuture;

    /// Changes what a shown volume is made of: I/O in flight ends, new I/O waits, then all fronts
    /// are made anew for `volume` (of the same name) and go on.
    fn replace(&self, volume: Arc<VolumeShared>, cache: Option<Rc<dyn Disk>>) -> DoneFuture;

    /// Tells hosts that a shown volume has so many sectors now.
    ///
    /// # Errors
    /// A positive errno: it cannot shrink while somebody has it open, or is not shown.
    fn resize(&self, name: &str, size_sectors: u64) -> Result<(), i32>;

    /// Ends the process at once, as a crash would: asked for by a set's option `errors=panic`. A
    /// simulated world only notes it.
    fn panic(&self, why: &str);

    /// Random bits.
    fn entropy(&self) -> u64;

    /// Seconds of the epoch.
    fn now_s(&self) -> u32;
}
