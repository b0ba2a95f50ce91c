//! Why a superblock is refused, one reason each.

use std::fmt;

use super::*;
use crate::limits::{MIN_JOURNAL_BUCKETS, MIN_NBUCKETS, PAGE_SECTORS};

/// Why a superblock is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuperError {
    /// Fewer than 4096 bytes were given.
    Truncated,
    /// The magic number is another: not a bcache device.
    BadMagic,
    /// It says that it stands elsewhere.
    BadOffset {
        /// The sector it names.
        offset: u64,
    },
    /// More journal buckets than the list has room for.
    TooManyJournalBuckets {
        /// How many.
        count: u16,
    },
    /// The checksum is another.
    BadChecksum {
        /// As it stands.
        stored: u64,
        /// As it should be.
        computed: u64,
    },
    /// A version that nobody has defined.
    UnknownVersion {
        /// The version.
        version: u64,
    },
    /// A feature without which it cannot be read.
    UnknownIncompatFeature {
        /// The unknown bits.
        bits: u64,
    },
    /// A feature without which it must not be written.
    UnknownRoCompatFeature {
        /// The unknown bits.
        bits: u64,
    },
    /// The layout of large buckets that was given up.
    ObsoleteLargeBucket,
    /// The device's uuid is zero.
    ZeroUuid,
    /// The set's uuid is zero.
    ZeroSetUuid,
    /// The block size is no power of two, or over a page.
    BadBlockSize {
        /// In sectors.
        sectors: u16,
    },
    /// The bucket size is no power of two, or under a page.
    BadBucketSize {
        /// In sectors; the logarithm where that does not fit.
        sectors: u32,
    },
    /// Too few buckets.
    TooFewBuckets {
        /// How many.
        nbuckets: u64,
    },
    /// More buckets, or more sectors, than can be pointed to.
    TooManyBuckets {
        /// How many.
        nbuckets: u64,
    },
    /// Number of devices in the set, or number within it, that cannot be.
    BadSetNumber {
        /// Devices in the set.
        nr_in_set: u16,
        /// This one.
        nr_this_dev: u16,
    },
    /// The set has several cache devices.
    SeveralCaches {
        /// Devices in the set.
        nr_in_set: u16,
    },
    /// Fewer journal buckets than a ring takes, but not none.
    TooFewJournalBuckets {
        /// How many.
        count: u64,
    },
    /// The metadata are said to be valid, but there is no journal.
    NoJournal,
    /// A journal bucket is not the one that follows.
    JournalNotConsecutive {
        /// Its place in the list.
        index: usize,
    },
    /// The journal reaches beyond the last bucket.
    JournalBeyondEnd,
    /// The first bucket would cover the superblock.
    FirstBucketTooLow {
        /// Its number.
        first_bucket: u16,
    },
    /// The device is smaller than its superblock says.
    DeviceTooSmall {
        /// Sectors there are.
        has: u64,
        /// Sectors there must be.
        needs: u64,
    },
    /// A backing device whose data would begin within the superblock.
    BadDataOffset {
        /// The sector.
        sector: u64,
    },
    /// A cache mode that nobody has defined.
    UnknownCacheMode {
        /// The number.
        mode: u8,
    },
}

impl fmt::Display for SuperError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SuperError::*;
        match self {
            Truncated => f.write_str("superblock is cut short"),
            BadMagic => f.write_str("not a bcache device: wrong magic number"),
            BadOffset { offset } => {
                write!(
                    f,
                    "superblock says that it stands at sector {offset}, not 8"
                )
            }
            TooManyJournalBuckets { count } => {
                write!(
                    f,
                    "superblock lists {count} journal buckets; 256 is the most"
                )
            }
            BadChecksum { stored, computed } => write!(
                f,
                "superblock is damaged: checksum {stored:016x}, should be {computed:016x}"
            ),
            UnknownVersion { version } => write!(f, "unknown superblock version {version}"),
            UnknownIncompatFeature { bits } => {
                write!(f, "superblock needs unknown features (incompat {bits:#x})")
            }
            UnknownRoCompatFeature { bits } => {
                write!(
                    f,
                    "superblock has features that forbid writing (ro_compat {bits:#x})"
                )
            }
            ObsoleteLargeBucket => {
                f.write_str("superblock uses the obsolete layout of large buckets")
            }
            ZeroUuid => f.write_str("superblock has a zero device uuid"),
            ZeroSetUuid => f.write_str("superblock has a zero set uuid"),
            _ => self.fmt_shape(f),
        }
    }
}

impl SuperError {
    /// Where on the device the field stands that is wrong, in bytes from its start.
    pub const fn byte(&self) -> u64 {
        use SuperError::*;
        let within = match self {
            Truncated | DeviceTooSmall { .. } | BadChecksum { .. } => 0,
            BadMagic => AT_MAGIC,
            BadOffset { .. } => AT_OFFSET,
            UnknownVersion { .. } => AT_VERSION,
            UnknownIncompatFeature { .. } | ObsoleteLargeBucket => AT_FEATURES + 8,
            UnknownRoCompatFeature { .. } => AT_FEATURES + 16,
            ZeroUuid => AT_UUID,
            ZeroSetUuid => AT_SET_UUID,
            BadBlockSize { .. } => AT_BLOCK_SIZE,
            BadBucketSize { .. } => AT_BUCKET_SIZE,
            TooFewBuckets { .. } | TooManyBuckets { .. } => AT_NBUCKETS,
            BadSetNumber { .. } | SeveralCaches { .. } => AT_NR_IN_SET,
            TooManyJournalBuckets { .. } | TooFewJournalBuckets { .. } | NoJournal => AT_KEYS,
            JournalNotConsecutive { index } => AT_JOURNAL + 8 * *index,
            JournalBeyondEnd => AT_KEYS,
            FirstBucketTooLow { .. } => AT_FIRST_BUCKET,
            BadDataOffset { .. } => AT_DATA_OFFSET,
            UnknownCacheMode { .. } => AT_FLAGS,
        };
        SUPER_SECTOR.bytes() + within as u64
    }

    /// The texts about sizes, places and counts.
    fn fmt_shape(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use SuperError::*;
        match self {
            BadBlockSize { sectors } => write!(
                f,
                "bad block size of {sectors} sectors: must be a power of two up to {PAGE_SECTORS}"
            ),
            BadBucketSize { sectors } => write!(
                f,
                "bad bucket size of {sectors} sectors: must be a power of two from {PAGE_SECTORS} on"
            ),
            TooFewBuckets { nbuckets } => {
                write!(
                    f,
                    "too few buckets: {nbuckets}, at least {MIN_NBUCKETS} are needed"
                )
            }
            TooManyBuckets { nbuckets } => write!(f, "too many buckets: {nbuckets}"),
            BadSetNumber {
                nr_in_set,
                nr_this_dev,
            } => {
                write!(
                    f,
                    "bad place in the set: device {nr_this_dev} of {nr_in_set}"
                )
            }
            SeveralCaches { nr_in_set } => write!(
                f,
                "the set has {nr_in_set} cache devices; sets of more than one are not supported"
            ),
            TooFewJournalBuckets { count } => write!(
                f,
                "the journal has {count} bucket, at least {MIN_JOURNAL_BUCKETS} are needed"
            ),
            NoJournal => f.write_str(
                "superblock says that the set has data, but lists no journal buckets to find them by",
            ),
            JournalNotConsecutive { index } => {
                write!(
                    f,
                    "journal bucket number {index} does not follow the one before it"
                )
            }
            JournalBeyondEnd => f.write_str("the journal reaches beyond the last bucket"),
            FirstBucketTooLow { first_bucket } => {
                write!(f, "first bucket {first_bucket} would cover the superblock")
            }
            DeviceTooSmall { has, needs } => write!(
                f,
                "the device is too small: it has {has} sectors, its superblock needs {needs}"
            ),
            BadDataOffset { sector } => {
                write!(
                    f,
                    "data offset {sector} lies within the superblock's sectors"
                )
            }
            UnknownCacheMode { mode } => write!(f, "unknown cache mode {mode}"),
            // The others have their texts in `fmt`.
            _ => fmt::Debug::fmt(self, f),
        }
    }
}

impl std::error::Error for SuperError {}
