//! What can go wrong with sets and volumes, each with what to do about it. errno and RPC codes are
//! made of these in [`crate::rpc`].

use std::fmt;

use super::explain::{HalfWay, WriteBackFailed};
use super::host::OpenError;
use crate::alloc::prios::PrioReadError;
use crate::btree::LoadError;
use crate::disk::IoError;
use crate::format::key::KeyError;
use crate::format::superblock::SuperError;
use crate::journal::replay::ReplayError;
use crate::units::{BucketNr, JournalSeq, Sector, Uuid};

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
    /// The device holds another program's data, with a superblock that bears bcache's magic number.
    Foreign(String, SuperError),
    /// The device's UUID is in use on another device.
    Twin {
        /// The device.
        device: String,
        /// The UUID.
        uuid: Uuid,
        /// What has the UUID: a volume or a set.
        of: String,
        /// The other device.
        on: String,
        /// They are cache devices.
        is_cache: bool,
    },
    /// The superblock is older than what its set has seen of the device.
    OlderCopy {
        /// The device.
        device: String,
        /// Its superblock's sequence number.
        seq: u64,
        /// The least that the set's table has.
        seen: u64,
        /// The set.
        set: Uuid,
    },
    /// Examine does not take the bdev for the device whose superblock it shows, and why.
    Misfit(String, String),
    /// A device that examine left alone, asked for by the name of its volume.
    LeftAlone {
        /// The volume's name.
        name: String,
        /// The device.
        device: String,
        /// Why it was left alone.
        why: String,
    },
    /// A set has dirty data of an absent volume of that name.
    AbsentVolume {
        /// The name.
        name: String,
        /// The absent volume's UUID; nil where its set does not know it.
        uuid: Uuid,
        /// The set.
        set: Uuid,
        /// Its dirty bytes.
        bytes: u64,
        /// It lives on the set alone.
        is_flash: bool,
    },
    /// The volume's data do not begin at a multiple of the device's block.
    Misaligned {
        /// The device.
        device: String,
        /// Where its data begin, in sectors.
        offset: u64,
        /// Sectors of the device's block.
        device_sectors: u32,
    },
    /// The cache holds dirty data beyond the end of the backing device.
    Beyond {
        /// The volume.
        name: String,
        /// Dirty bytes there.
        bytes: u64,
        /// The first sector that the device does not have.
        end: Sector,
    },
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
    /// A cache device whose journal is full, because leaves cannot be written.
    JournalFull(String),
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
    /// Dirty data could not be written back; they stay on the cache device.
    WriteBack(WriteBackFailed),
    /// An operation on all volumes of a set ended before the last one.
    HalfWay(HalfWay),
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
            Foreign(..)
            | Twin { .. }
            | OlderCopy { .. }
            | Misfit(..)
            | LeftAlone { .. }
            | AbsentVolume { .. }
            | Misaligned { .. }
            | Beyond { .. } => self.fmt_identity(f),
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
            NoRoom(_) | NoSpace(_) | JournalFull(_) => self.fmt_room(f),
            Stopped(why) => write!(f, "the cache set has stopped: {why}"),
            NameTaken(name) => write!(f, "the name {name} is taken; choose another"),
            NoVolume(name) => write!(f, "there is no bcache volume {name}"),
            WriteBack(failed) => failed.fmt(f),
            HalfWay(half) => half.fmt(f),
            NoSet(set) => write!(f, "cache set {set} is not running"),
            Register(name, errno) => {
                write!(f, "bdev {name} could not be registered (errno {errno})")
            }
        }
    }
}

impl SetError {
    /// The texts about what has no room.
    fn fmt_room(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SetError::*;
        match self {
            NoRoom(set) => write!(
                f,
                "cache set {set} has no room for another volume in its uuid table: detach one, or \
                 forget one that will not come back (bdev_bcache_forget_volume)"
            ),
            NoSpace(name) => write!(f, "{name}: no free bucket"),
            JournalFull(name) => write!(
                f,
                "{name}: its journal is full until the btree is written, which waits for the backing \
                 devices; try again when all of them answer"
            ),
            _ => unreachable!("a text of its own"),
        }
    }

    /// The texts about which device is which, and what of it fits.
    fn fmt_identity(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SetError::*;
        match self {
            Twin {
                device,
                uuid,
                of,
                on,
                is_cache,
            } => {
                write!(
                    f,
                    "{device} has the UUID of {of} on {on} ({uuid}): a copy, a snapshot or a second \
                     path of it, of which only one can be used at a time; "
                )?;
                f.write_str(match is_cache {
                    true => "to use this one, stop the set first (bdev_bcache_stop_set)",
                    false => {
                        "to use a clean copy beside the original, give it a UUID of its own \
                         (bdev_bcache_register new_uuid=true, or bcachectl new-uuid)"
                    }
                })
            }
            OlderCopy {
                device,
                seq,
                seen,
                set,
            } => write!(
                f,
                "{device} is older than what cache set {set} has seen of this volume (superblock \
                 sequence {seq}, seen {seen}): an older copy, or a snapshot that was rolled back; \
                 attach the newest, or, to run this one without what the set holds, drop that \
                 (bdev_bcache_create with its devices, force=true and discard_dirty=true)"
            ),
            Misfit(name, why) => write!(f, "{name}: {why}"),
            LeftAlone { name, device, why } => {
                write!(f, "volume {name} on {device} is not started: {why}")
            }
            _ => self.fmt_held(f),
        }
    }

    /// The texts about what a device or a set holds.
    fn fmt_held(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SetError::*;
        match self {
            Foreign(name, error) => write!(
                f,
                "{name} holds other data: it bears a magic number that bcache shares with others \
                 (bcachefs has the same), but {error}; it is left as it is"
            ),
            AbsentVolume {
                name,
                uuid,
                set,
                bytes,
                is_flash: true,
            } => write!(
                f,
                "cache set {set} has {bytes} bytes of volume {name} (UUID {uuid}), which lives there alone \
                 and is not up: bring it up (bdev_bcache_register of the cache device), or choose \
                 another name"
            ),
            AbsentVolume {
                name,
                uuid,
                set,
                bytes,
                is_flash: false,
            } => write!(
                f,
                "cache set {set} has {bytes} dirty bytes of an absent volume {name} (UUID {uuid}): \
                 attach its backing device, or choose another name; to lose them, say \
                 discard_dirty, or call bdev_bcache_forget_volume"
            ),
            Misaligned {
                device,
                offset,
                device_sectors,
            } => write!(
                f,
                "{device} has blocks of {} bytes, but its data begin at byte {}, which is no \
                 multiple of that: use a bdev with smaller blocks",
                device_sectors * 512,
                offset.saturating_mul(512)
            ),
            Beyond { name, bytes, end } => write!(
                f,
                "{name}: the cache has {bytes} dirty bytes beyond the end of its backing device, \
                 which is at sector {} now: give the device its size back; or start it all the \
                 same, which keeps them on the cache (bdev_bcache_run accept_size=true); or give \
                 them up (discard_dirty=true)",
                end.0
            ),
            // The others have their texts in `fmt`.
            _ => fmt::Debug::fmt(self, f),
        }
    }
}

impl std::error::Error for SetError {}
