//! How SPDK says that an I/O ended, and what is tried again.
//!
//! A reset of a device, by its driver or by an administrator, aborts what it has under way; a virtual
//! bdev may run out of memory. Neither says anything about the data, so such an I/O is given to the
//! device again, `TRIES_MAX` times at most, each time after twice the time: 4 s in all.

use super::sys;
use crate::disk::IoError;
use crate::request::lane::Ended;

/// How often an I/O is given to the device again.
const TRIES_MAX: u8 = 12;
/// How long the first of these waits.
const FIRST_DELAY_US: u64 = 1000;

/// How an I/O ended that SPDK has completed.
///
/// # Safety
/// `bdev_io` was completed with `ok` and is not freed yet.
#[inline]
pub unsafe fn of(bdev_io: *mut sys::spdk_bdev_io, ok: bool) -> Ended {
    if ok {
        return Ok(());
    }
    // SAFETY: by contract.
    Err(match unsafe { sys::bcache_why(bdev_io) } {
        sys::BCACHE_WHY_ABORTED => IoError::Aborted,
        sys::BCACHE_WHY_NO_MEMORY => IoError::NoMemory,
        sys::BCACHE_WHY_INVALID => IoError::Invalid,
        _ => IoError::Failed,
    })
}

/// Why SPDK did not take an I/O, from the negative errno that it returned.
pub fn refused(rc: i32) -> IoError {
    match -rc {
        sys::ENOMEM => IoError::NoMemory,
        sys::EINVAL => IoError::Invalid,
        sys::ENODEV => IoError::Gone,
        _ => IoError::Failed,
    }
}

/// After how many µs an I/O that ended so is given to the device again; `None`: not at all. `tries`
/// says how often it was.
pub fn again_after_us(ended: Ended, tries: u8) -> Option<u64> {
    let passes = matches!(ended, Err(IoError::Aborted | IoError::NoMemory));
    (passes && tries < TRIES_MAX).then(|| FIRST_DELAY_US << tries)
}
