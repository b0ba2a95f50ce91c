//! What can go wrong with sets and volumes, each with what to do about it. errno and RPC codes are
//! made of these in [`crate::rpc`].

use std::fmt;

use super::host::OpenError;
use crate::alloc::prios::PrioReadError;
use crate::btree::LoadError;
use crate::disk::IoError;
use crate::format::key::KeyError;
use crate::format::superblock::SuperError;
use crate::journal::replay::ReplayError;
use crate::units::{BucketNr, JournalSeq, Uuid};

/// Why a set or volume cannot do what was asked.
#[derive(Debug)]
pub enum SetError {
    /// A parameter that cannot be, and why.
    Invalid(String),
    /// The device cannot be opened.
    Open(String, OpenError),
    /// The device failed.
    Io(String, IoError),
    /// The device has no superblock of bcache.
    NoSuper(String),
    /// Its superblock is damaged or says what cannot be.
    Super(String, SuperError),
    /// The device holds something else.
    Occupied(String),
    /// The device is bcache's, but belongs elsewhere.
    Elsewhere(String, String),
    /// The device has dirty data that would be lost.
    Dirty(String),
    /// Data would be lost that are nowhere else, and which.
    WouldLose(String),
    /// The set's block is smaller than the device's.
    BlockTooSmall {
        /// The device.
        device: String,
        /// Sectors of the set's block.
        set_sectors: u32,
        /// Sectors of the device's block.
        device_sectors: u32,
    },
    /// The set's block is larger than the backing device's.
    BlockTooLarge {
        /// The backing device.
        device: String,
        /// Sectors of the set's block.
        set_sectors: u32,
        /// Sectors of the backing device's block.
        device_sectors: u32,
    },
    /// The journal cannot be replayed.
    Journal(String, ReplayError),
    /// A key in the journal is bad.
    JournalKey {
        /// The device.
        device: String,
        /// The entry.
        seq: JournalSeq,
        /// The bucket that it stands in.
        bucket: BucketNr,
        /// Where the key begins, from the start of the bucket.
        byte: usize,
        /// What is wrong with it.
        error: KeyError,
    },
    /// The priorities cannot be read.
    Prios(String, PrioReadError),
    /// The journal names no uuid table, or one that cannot be.
    NoUuids(String),
    /// The key of the uuid table is bad.
    UuidKey(String, KeyError),
    /// The tree cannot be loaded.
    Tree(String, LoadError),
    /// A backing device is dirty, and its cache is not here.
    CacheMissing {
        /// The backing device.
        device: String,
        /// The set that has its data.
        set: Uuid,
    },
    /// A backing device is dirty, but its set does not know it.
    NotInSet {
        /// The backing device.
        device: String,
        /// The set.
        set: Uuid,
    },
    /// The set has no free entry for another volume.
    NoRoom(Uuid),
    /// No bucket is free.
    NoSpace(String),
    /// The set has stopped because of a failure.
    Stopped(String),
    /// A name that is taken.
    NameTaken(String),
    /// A name that nothing has.
    NoVolume(String),
    /// A set that does not run.
    NoSet(String),
    /// Something that cannot be done in the state that things are in, and why.
    Busy(String),
    /// The bdev could not be registered (errno).
    Register(String, i32),
}

impl SetError {
    /// Whether what the device holds is at fault, and a device formatted anew would do.
    pub fn is_damage(&self) -> bool {
        use SetError::*;
        matches!(
            self,
            Super(..)
                | Journal(..)
                | JournalKey { .. }
                | Prios(..)
                | NoUuids(_)
                | UuidKey(..)
                | Tree(..)
                | NoSpace(_)
        )
    }
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SetError::*;
        match self {
            Invalid(why) | Busy(why) => f.write_str(why),
            Open(name, error) => write!(f, "{name}: {error}"),
            Io(name, error) => write!(f, "{name}: {error}"),
            NoSuper(name) => write!(
                f,
                "{name} has no bcache superblock; bdev_bcache_create formats a blank device"
            ),
            Super(name, error) => {
                write!(f, "{name}: bad superblock (byte {}): {error}", error.byte())
            }
            Occupied(name) => write!(
                f,
                "{name} holds other data (its first MiB is not zero, and it is no bcache device); \
                 to overwrite them, say force"
            ),
            Elsewhere(name, where_) => {
                write!(f, "{name} {where_}; to take it from there, say force")
            }
            Dirty(name) => write!(
                f,
                "{name} has dirty data that are nowhere else; start its set, or, to lose them, say \
                 force and discard_dirty"
            ),
            WouldLose(what) => write!(f, "{what}; to lose them, say discard_dirty"),
            BlockTooSmall {
                device,
                set_sectors,
                device_sectors,
            } => write!(
                f,
                "{device} has blocks of {} bytes, but the set is formatted with blocks of {}: \
                 use a device with smaller blocks",
                device_sectors * 512,
                set_sectors * 512
            ),
            BlockTooLarge {
                device,
                set_sectors,
                device_sectors,
            } => write!(
                f,
                "the cache's block size of {} bytes is larger than that of {device}, {} bytes: \
                 format the cache with a smaller block_size, or the backing device with a larger",
                set_sectors * 512,
                device_sectors * 512
            ),
            Journal(name, error) => write!(f, "{name}: {error}"),
            JournalKey {
                device,
                seq,
                bucket,
                byte,
                error,
            } => write!(
                f,
                "{device}: journal entry {} in bucket {bucket} has a bad key at byte {byte}: {error}",
                seq.0
            ),
            Prios(name, error) => write!(f, "{name}: {error}"),
            NoUuids(name) => write!(f, "{name}: the journal names no uuid table"),
            UuidKey(name, error) => write!(f, "{name}: the uuid table's place: {error}"),
            Tree(name, error) => write!(f, "{name}: {error}"),
            CacheMissing { device, set } => write!(
                f,
                "{device} has dirty data on cache set {set}, which is not running: attach its \
                 cache device (bdev_bcache_register); the volume starts when the set does"
            ),
            NotInSet { device, set } => write!(
                f,
                "{device} has dirty data, but cache set {set} does not know it: its data are \
                 elsewhere, it is not started"
            ),
            NoRoom(set) => write!(
                f,
                "cache set {set} has no room for another volume in its uuid table: detach one, or \
                 forget one that will not come back (bdev_bcache_forget_volume)"
            ),
            NoSpace(name) => write!(f, "{name}: no free bucket"),
            Stopped(why) => write!(f, "the cache set has stopped: {why}"),
            NameTaken(name) => write!(f, "the name {name} is taken; choose another"),
            NoVolume(name) => write!(f, "there is no bcache volume {name}"),
            NoSet(set) => write!(f, "cache set {set} is not running"),
            Register(name, errno) => {
                write!(f, "bdev {name} could not be registered (errno {errno})")
            }
        }
    }
}

impl std::error::Error for SetError {}
