//! How a device is flushed, and what that is worth. `docs/flush.md` has the table by module and release.
//!
//! SPDK's NVMe driver answers a flush without sending it (up to 25.05 always, later unless it is told
//! otherwise), so a drive with a volatile cache gets an NVMe flush command of ours. Whether a bdev passes
//! such commands on cannot be asked: a virtual one hands the question to the bdev below and then fails
//! the command. So one is tried when the device is opened, and until it has ended flushes wait.
//!
//! Other bdevs get SPDK's flush, if they take any. Where it may do less than it says, a warning names
//! the device whenever it is opened.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};

use super::sys;
use crate::disk::IoError;

/// How a device is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// An NVMe command is being tried: flushes wait.
    Trying,
    /// By NVMe's own command, which goes past SPDK's driver.
    Command,
    /// By the bdev layer.
    Plain,
    /// Not at all: it takes no flush.
    None,
}

/// A device's way, which reactors read: settled soon after it was opened.
pub struct Flushing(AtomicU8);

impl Default for Flushing {
    /// By the bdev layer.
    fn default() -> Flushing {
        Flushing(AtomicU8::new(Way::Plain as u8))
    }
}

impl Flushing {
    fn set(&self, way: Way) {
        self.0.store(way as u8, Ordering::Relaxed);
    }

    /// The way now.
    #[inline]
    pub fn way(&self) -> Way {
        const WAYS: [Way; 4] = [Way::Trying, Way::Command, Way::Plain, Way::None];
        WAYS[usize::from(self.0.load(Ordering::Relaxed)) & 3]
    }

    /// Looks at a bdev that has just been opened as `name`. Warns of what a flush of it is not worth.
    ///
    /// # Safety
    /// The bdev is there.
    pub unsafe fn look(&self, bdev: *mut sys::spdk_bdev, name: &str) {
        // SAFETY: by contract; a module's name is a constant.
        let (worth, module) = unsafe {
            let module = CStr::from_ptr(sys::bcache_module_name(bdev));
            (sys::bcache_flush_worth(bdev), module.to_string_lossy())
        };
        match worth {
            sys::BCACHE_FLUSH_COMMAND => self.set(Way::Trying),
            sys::BCACHE_FLUSH_ABSENT => {
                log::warn!(
                    "{name}: its module {module} takes no flush: data that its device caches are lost in a \
                     power cut, also after hosts have flushed (docs/flush.md)"
                );
                self.set(Way::None);
            }
            sys::BCACHE_FLUSH_ONE_THREAD => log::warn!(
                "{name}: a flush of module {module} in this release covers the writes of one thread alone: use \
                 21.10 or later, or one core (docs/flush.md)"
            ),
            sys::BCACHE_FLUSH_BELOW => log::warn!(
                "{name}: module {module} hands flushes down, perhaps to an NVMe drive with a volatile cache, \
                 whose driver answers them without sending them unless bdev_nvme_set_options says \
                 enable_flush=true (25.09 and later): use the NVMe bdev itself, or switch the drive's cache \
                 off (docs/flush.md)"
            ),
            _ => {}
        }
    }

    /// The command that was tried on the device `name` has ended; `takes_plain` says whether the bdev
    /// takes SPDK's flush.
    pub fn tried(&self, name: &str, ended: Result<(), IoError>, takes_plain: bool) {
        let way = match (ended, takes_plain) {
            (Ok(()), _) => Way::Command,
            (Err(_), true) => Way::Plain,
            (Err(_), false) => Way::None,
        };
        if let Err(why) = ended {
            log::warn!(
                "{name}: it says that it takes NVMe commands, but fails a flush ({why}): its volatile cache is \
                 flushed through SPDK's driver, which may not send it: use the NVMe bdev itself, or switch \
                 the drive's cache off (docs/flush.md)"
            );
        }
        self.set(way);
    }
}
