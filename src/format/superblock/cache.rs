//! The superblock of a cache device: the set, its geometry, its journal buckets.

use super::*;
use crate::format::key::Geometry;
use crate::limits::{
    MAX_CACHES_PER_SET, MAX_NBUCKETS, MAX_PTR_SECTORS, MIN_JOURNAL_BUCKETS, MIN_NBUCKETS,
    PAGE_SECTORS, RESERVED_SECTORS, journal_buckets,
};
use crate::units::BucketNr;

/// The superblock of a cache device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheSuper {
    /// 0 as formatted, 3 once run, 5 with feature words.
    pub version: u64,
    /// Of the device.
    pub uuid: Uuid,
    /// Of the set.
    pub set_uuid: Uuid,
    /// A name, padded with zeros.
    pub label: [u8; 32],
    /// As on disk; read and changed by the methods.
    pub flags: u64,
    /// Counts up with every writing.
    pub seq: u64,
    /// Feature words (compat, incompat, ro_compat) and five unused words, as on disk.
    pub words: [u64; WORDS],
    /// Buckets on the device.
    pub nbuckets: u64,
    /// Sectors in a block.
    pub block_sectors: u16,
    /// Sectors in a bucket.
    pub bucket_sectors: u32,
    /// Cache devices in the set; 1.
    pub nr_in_set: u16,
    /// Which of them this is; 0.
    pub nr_this_dev: u16,
    /// Seconds of the epoch.
    pub last_mount: u32,
    /// The first bucket behind the superblock.
    pub first_bucket: u16,
    /// Consecutive from `first_bucket` on; empty before the first run.
    pub journal_buckets: Vec<BucketNr>,
}

/// The bucket size that the field means, in sectors.
fn bucket_sectors(field: u16, version: u64, incompat: u64) -> Result<u32, SuperError> {
    let is_log = version >= VERSION_CACHE_FEATURES && incompat & INCOMPAT_LOG_LARGE_BUCKET != 0;
    let sectors = if is_log {
        1u32.checked_shl(field.into())
    } else {
        Some(field.into())
    };
    match sectors {
        Some(sectors) if sectors.is_power_of_two() && sectors >= PAGE_SECTORS => Ok(sectors),
        _ => Err(SuperError::BadBucketSize {
            sectors: sectors.unwrap_or(field.into()),
        }),
    }
}

/// The first bucket that begins behind the superblock, which ends before sector 24.
fn first_bucket(bucket_sectors: u32) -> u16 {
    (23 / bucket_sectors + 1) as u16
}

impl CacheSuper {
    /// A fresh one, as formatting leaves it: version 0 (5 where the bucket size needs it), no
    /// journal buckets, SYNC clear.
    ///
    /// # Errors
    /// The sizes are bad, or the device is too small or too large for them.
    pub fn new(
        set_uuid: Uuid,
        uuid: Uuid,
        device_sectors: u64,
        block_sectors: u16,
        bucket_sectors: u32,
    ) -> Result<CacheSuper, SuperError> {
        let large = bucket_sectors > MAX_PLAIN_BUCKET_SECTORS;
        let mut words = [0; WORDS];
        words[1] = if large { INCOMPAT_LOG_LARGE_BUCKET } else { 0 };
        let fresh = CacheSuper {
            version: if large {
                VERSION_CACHE_FEATURES
            } else {
                VERSION_CACHE
            },
            uuid,
            set_uuid,
            label: [0; 32],
            flags: 0,
            seq: 0,
            words,
            nbuckets: device_sectors / u64::from(bucket_sectors.max(1)),
            block_sectors,
            bucket_sectors,
            nr_in_set: 1,
            nr_this_dev: 0,
            last_mount: 0,
            first_bucket: first_bucket(bucket_sectors.max(1)),
            journal_buckets: Vec::new(),
        };
        if uuid.is_nil() {
            return Err(SuperError::ZeroUuid);
        }
        if !is_block_size(block_sectors.into()) {
            return Err(SuperError::BadBlockSize {
                sectors: block_sectors,
            });
        }
        if !bucket_sectors.is_power_of_two() || bucket_sectors < PAGE_SECTORS {
            return Err(SuperError::BadBucketSize {
                sectors: bucket_sectors,
            });
        }
        fresh.check()?;
        Ok(fresh)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<CacheSuper, SuperError> {
        let c = Common::parse(bytes)?;
        let journal = AT_JOURNAL..AT_JOURNAL + 8 * usize::from(u16_at(bytes, AT_KEYS));
        let found = CacheSuper {
            version: c.version,
            uuid: c.uuid,
            set_uuid: c.set_uuid,
            label: c.label,
            flags: c.flags,
            seq: c.seq,
            words: c.words,
            nbuckets: u64_at(bytes, AT_NBUCKETS),
            block_sectors: c.block_sectors,
            bucket_sectors: bucket_sectors(u16_at(bytes, AT_BUCKET_SIZE), c.version, c.words[1])?,
            nr_in_set: u16_at(bytes, AT_NR_IN_SET),
            nr_this_dev: u16_at(bytes, AT_NR_THIS_DEV),
            last_mount: c.last_mount,
            first_bucket: u16_at(bytes, AT_FIRST_BUCKET),
            // A number over 32 bits is none that follows its neighbour, hence the stand-in.
            journal_buckets: bytes[journal]
                .chunks_exact(8)
                .map(|word| BucketNr(u32::try_from(u64_at(word, 0)).unwrap_or(u32::MAX)))
                .collect(),
        };
        found.check()?;
        Ok(found)
    }

    /// The checks of the cache's own fields, the same for what is read and for what is made.
    fn check(&self) -> Result<(), SuperError> {
        let nbuckets = self.nbuckets;
        if self.set_uuid.is_nil() {
            return Err(SuperError::ZeroSetUuid);
        }
        if nbuckets < MIN_NBUCKETS {
            return Err(SuperError::TooFewBuckets { nbuckets });
        }
        if nbuckets > MAX_NBUCKETS || nbuckets > MAX_PTR_SECTORS / u64::from(self.bucket_sectors) {
            return Err(SuperError::TooManyBuckets { nbuckets });
        }
        let (nr_in_set, nr_this_dev) = (self.nr_in_set, self.nr_this_dev);
        if nr_in_set == 0 || nr_in_set > MAX_CACHES_PER_SET || nr_in_set <= nr_this_dev {
            return Err(SuperError::BadSetNumber {
                nr_in_set,
                nr_this_dev,
            });
        }
        if nr_in_set > 1 {
            return Err(SuperError::SeveralCaches { nr_in_set });
        }
        if u64::from(self.first_bucket) * u64::from(self.bucket_sectors) < RESERVED_SECTORS {
            return Err(SuperError::FirstBucketTooLow {
                first_bucket: self.first_bucket,
            });
        }
        let listed = self.journal_buckets.len() as u64;
        if listed == 0 && self.sync() {
            return Err(SuperError::NoJournal);
        }
        if listed > 0 && listed < MIN_JOURNAL_BUCKETS {
            return Err(SuperError::TooFewJournalBuckets { count: listed });
        }
        for (index, bucket) in self.journal_buckets.iter().enumerate() {
            if u64::from(bucket.0) != u64::from(self.first_bucket) + index as u64 {
                return Err(SuperError::JournalNotConsecutive { index });
            }
        }
        if u64::from(self.first_bucket) + self.journal_buckets.len() as u64 > nbuckets {
            return Err(SuperError::JournalBeyondEnd);
        }
        Ok(())
    }

    /// Whether a device of `device_sectors` has all its buckets.
    ///
    /// # Errors
    /// [`SuperError::DeviceTooSmall`].
    pub fn check_device(&self, device_sectors: u64) -> Result<(), SuperError> {
        // Bounded by `check`: at most 2^43.
        let needs = self.nbuckets * u64::from(self.bucket_sectors);
        if device_sectors < needs {
            return Err(SuperError::DeviceTooSmall {
                has: device_sectors,
                needs,
            });
        }
        Ok(())
    }

    /// The 4096 bytes that stand at sector 8.
    pub fn encode(&self) -> [u8; SUPER_BYTES] {
        assert!(
            self.journal_buckets.len() <= MAX_JOURNAL_BUCKETS,
            "too many journal buckets"
        );
        let mut out = Common {
            version: self.version,
            uuid: self.uuid,
            set_uuid: self.set_uuid,
            label: self.label,
            flags: self.flags,
            seq: self.seq,
            words: self.words,
            block_sectors: self.block_sectors,
            last_mount: self.last_mount,
        }
        .encode();
        let is_log = self.version >= VERSION_CACHE_FEATURES
            && self.words[1] & INCOMPAT_LOG_LARGE_BUCKET != 0;
        let size = if is_log {
            self.bucket_sectors.ilog2()
        } else {
            self.bucket_sectors
        };
        let size = u16::try_from(size).expect("bucket size without its feature");
        put(&mut out, AT_NBUCKETS, &self.nbuckets.to_le_bytes());
        put(&mut out, AT_BUCKET_SIZE, &size.to_le_bytes());
        put(&mut out, AT_NR_IN_SET, &self.nr_in_set.to_le_bytes());
        put(&mut out, AT_NR_THIS_DEV, &self.nr_this_dev.to_le_bytes());
        put(&mut out, AT_FIRST_BUCKET, &self.first_bucket.to_le_bytes());
        put(
            &mut out,
            AT_KEYS,
            &(self.journal_buckets.len() as u16).to_le_bytes(),
        );
        for (i, bucket) in self.journal_buckets.iter().enumerate() {
            put(
                &mut out,
                AT_JOURNAL + 8 * i,
                &u64::from(bucket.0).to_le_bytes(),
            );
        }
        seal(&mut out);
        out
    }

    /// What the first run adds: the version of today's uuid entries and the journal's buckets.
    /// SYNC stays as it is, for it may be set only once the metadata it vouches for are durable.
    pub fn prepare_first_run(&mut self) {
        self.version = self.version.max(VERSION_CACHE_UUIDS);
        let first = u32::from(self.first_bucket);
        let count = journal_buckets(self.nbuckets) as u32;
        self.journal_buckets = (first..first + count).map(BucketNr).collect();
    }

    /// Whether the metadata on disk are valid; without it the set starts empty.
    pub const fn sync(&self) -> bool {
        self.flags & FLAG_SYNC != 0
    }

    /// Says whether the metadata on disk are valid.
    pub fn set_sync(&mut self, sync: bool) {
        self.flags = self.flags & !FLAG_SYNC | if sync { FLAG_SYNC } else { 0 };
    }

    /// Whether freed buckets are to be discarded.
    pub const fn discard(&self) -> bool {
        self.flags & FLAG_DISCARD != 0
    }

    /// Says whether freed buckets are to be discarded.
    pub fn set_discard(&mut self, discard: bool) {
        self.flags = self.flags & !FLAG_DISCARD | if discard { FLAG_DISCARD } else { 0 };
    }

    /// The replacement policy by number: 0 lru, 1 fifo, 2 random.
    pub const fn replacement(&self) -> u8 {
        (self.flags >> REPLACEMENT_SHIFT & REPLACEMENT_MASK) as u8
    }

    /// Sets the replacement policy by number (0 to 7).
    pub fn set_replacement(&mut self, policy: u8) {
        let bits = (u64::from(policy) & REPLACEMENT_MASK) << REPLACEMENT_SHIFT;
        self.flags = self.flags & !(REPLACEMENT_MASK << REPLACEMENT_SHIFT) | bits;
    }

    /// The number in the magic of the set's structures.
    pub fn set_magic(&self) -> u64 {
        set_magic(self.set_uuid)
    }

    /// The device's shape, to hold keys against.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            block_sectors: self.block_sectors.into(),
            bucket_sectors: self.bucket_sectors,
            first_bucket: BucketNr(self.first_bucket.into()),
            nbuckets: self.nbuckets,
        }
    }
}
