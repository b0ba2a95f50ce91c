//! What the lifecycle asks of the world: devices by name, and volumes shown to hosts.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::disk::{Disk, DoneFuture};
use crate::request::volume::VolumeShared;
use crate::units::SECTOR_BYTES;

/// Why a device cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// There is no device of that name.
    NotFound,
    /// Something else uses it.
    Busy,
    /// It cannot be a cache device or a backing device.
    Unfit(Unfit),
    /// Anything else, as a positive errno.
    Os(i32),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::NotFound => f.write_str("there is no bdev of this name"),
            OpenError::Busy => f.write_str("the bdev is in use by something else"),
            OpenError::Unfit(why) => why.fmt(f),
            OpenError::Os(errno) => write!(f, "the bdev cannot be opened (errno {errno})"),
        }
    }
}

/// Why a bdev can be neither a cache device nor a backing device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It takes no writes: a snapshot, or an export for reading.
    ReadOnly,
    /// Its blocks have so many bytes: no power of two of at least 512.
    BlockSize(u32),
    /// It keeps so many bytes of metadata beside each block, which would be lost.
    Metadata(u32),
    /// It writes so many blocks at a time, more than one.
    WriteUnit(u32),
    /// It is written zone after zone.
    Zoned,
}

/// What a bdev is like, where that may make it unfit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Whether it takes writes.
    pub takes_writes: bool,
    /// Whether it is written zone after zone.
    pub is_zoned: bool,
    /// Bytes of a block, with the metadata in it.
    pub block_bytes: u32,
    /// Bytes of metadata beside a block.
    pub md_bytes: u32,
    /// Blocks that are written at a time.
    pub write_unit_blocks: u32,
}

impl Traits {
    /// What this bdev cannot bear: the first reason.
    pub fn unfit(&self) -> Option<Unfit> {
        if let Some(why) = self.unreadable() {
            Some(why)
        } else if self.is_zoned {
            Some(Unfit::Zoned)
        } else if !self.takes_writes {
            Some(Unfit::ReadOnly)
        } else if self.md_bytes > 0 {
            Some(Unfit::Metadata(self.md_bytes))
        } else if self.write_unit_blocks > 1 {
            Some(Unfit::WriteUnit(self.write_unit_blocks))
        } else {
            None
        }
    }

    /// Why not even a superblock can be read from it.
    pub fn unreadable(&self) -> Option<Unfit> {
        let fits = self.block_bytes.is_power_of_two() && self.block_bytes as usize >= SECTOR_BYTES;
        (!fits).then_some(Unfit::BlockSize(self.block_bytes))
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::ReadOnly => f.write_str(
                "the bdev takes no writes (is it a snapshot?): use the live one, or a writable clone",
            ),
            Unfit::BlockSize(bytes) => write!(
                f,
                "the bdev has blocks of {bytes} bytes: format it with blocks of 512 or 4096 bytes and \
                 without metadata"
            ),
            Unfit::Metadata(bytes) => write!(
                f,
                "the bdev keeps {bytes} bytes of metadata beside each block, which a cache cannot keep: \
                 format it without metadata"
            ),
            Unfit::WriteUnit(blocks) => write!(
                f,
                "the bdev is written {blocks} blocks at a time, a cache writes single ones: use another, \
                 such as RAID 1 in place of RAID 5"
            ),
            Unfit::Zoned => f.write_str(
                "the bdev is zoned: put a bdev on it that takes writes anywhere (bdev_ftl_create)",
            ),
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

    /// The own name of the bdev that `name` is the name or an alias of; `None` when there is none.
    fn resolve(&self, name: &str) -> Option<String>;

    /// Whether a host (an export, another module) has a shown volume open.
    fn is_open(&self, name: &str) -> bool;

    /// Whether there is a bdev of this name, a volume's or another.
    fn is_taken(&self, name: &str) -> bool;

    /// The bdevs that a bdev is made of, as far as its module tells.
    fn beneath(&self, _name: &str) -> Vec<String> {
        Vec::new()
    }

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

    /// Gives a shown volume another name. Who has it open keeps it open, and the names that it had find
    /// it too, for as long as it is shown. One of these may become its name again.
    ///
    /// # Errors
    /// A positive errno: EEXIST when another bdev has the name, ENODEV when the volume is not shown or
    /// about to be no more.
    fn rename(&self, name: &str, new: &str) -> Result<(), i32>;

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

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Traits = Traits {
        takes_writes: true,
        is_zoned: false,
        block_bytes: 4096,
        md_bytes: 0,
        write_unit_blocks: 1,
    };

    #[test]
    fn a_bdev_is_unfit_for_the_reason_that_lies_deepest() {
        assert_eq!(PLAIN.unfit(), None);
        let block_bytes = 512;
        assert_eq!(
            Traits {
                block_bytes,
                ..PLAIN
            }
            .unfit(),
            None
        );
        for block_bytes in [0, 256, 520, 4104, 3 << 10] {
            let odd = Traits {
                block_bytes,
                ..PLAIN
            };
            assert_eq!(odd.unfit(), Some(Unfit::BlockSize(block_bytes)));
            assert_eq!(odd.unreadable(), odd.unfit());
        }
        let others = [
            (
                Traits {
                    takes_writes: false,
                    ..PLAIN
                },
                Unfit::ReadOnly,
            ),
            (
                Traits {
                    is_zoned: true,
                    ..PLAIN
                },
                Unfit::Zoned,
            ),
            (
                Traits {
                    md_bytes: 64,
                    ..PLAIN
                },
                Unfit::Metadata(64),
            ),
            (
                Traits {
                    write_unit_blocks: 32,
                    ..PLAIN
                },
                Unfit::WriteUnit(32),
            ),
        ];
        for (traits, why) in others {
            assert_eq!(traits.unfit(), Some(why));
            assert_eq!(traits.unreadable(), None, "its superblock can be looked at");
        }
    }
}
