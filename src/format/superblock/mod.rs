//! The superblock: 4096 bytes at sector 8 that say what a device is.
//!
//! A cache device's names the set, its geometry and its journal buckets; a backing device's names
//! the set it is attached to, its cache mode and whether the set holds data that it lacks.
//! What a field means is checked here; whether the device is as large as it says needs the
//! device, hence [`CacheSuper::check_device`]. Words that this engine does not understand are
//! kept and written back. The block is written in one piece over the old one: a torn write is
//! found by the checksum, and then the device is refused, never guessed at.

mod backing;
mod cache;
mod carries;
mod error;
mod ran_on;

use crate::format::crc::crc64;
use crate::format::{array_at, is_block_size, put, u16_at, u32_at, u64_at};
use crate::limits::MAX_JOURNAL_BUCKETS;
use crate::units::{Sector, Uuid};

pub use backing::{BackingState, BackingSuper, CacheMode};
pub use cache::CacheSuper;
pub use carries::note_of;
pub use error::SuperError;
pub use ran_on::RanOn;

/// Where it stands, on every device.
pub const SUPER_SECTOR: Sector = Sector(8);
/// Its length.
pub const SUPER_BYTES: usize = 4096;
/// Where data begin on a backing device, unless it says otherwise.
pub const DEFAULT_DATA_OFFSET: Sector = Sector(16);

const MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];

const AT_OFFSET: usize = 8;
const AT_VERSION: usize = 16;
const AT_MAGIC: usize = 24;
const AT_UUID: usize = 40;
const AT_SET_UUID: usize = 56;
const AT_LABEL: usize = 72;
const AT_FLAGS: usize = 104;
const AT_SEQ: usize = 112;
const AT_FEATURES: usize = 120;
const AT_NBUCKETS: usize = 184;
const AT_DATA_OFFSET: usize = 184;
const AT_BLOCK_SIZE: usize = 192;
const AT_BUCKET_SIZE: usize = 194;
const AT_NR_IN_SET: usize = 196;
const AT_NR_THIS_DEV: usize = 198;
const AT_LAST_MOUNT: usize = 200;
const AT_FIRST_BUCKET: usize = 204;
const AT_KEYS: usize = 206;
const AT_JOURNAL: usize = 208;
/// Three feature words and five of padding, kept as they are.
const WORDS: usize = 8;

const VERSION_CACHE: u64 = 0;
const VERSION_BACKING: u64 = 1;
const VERSION_CACHE_UUIDS: u64 = 3;
const VERSION_BACKING_OFFSET: u64 = 4;
const VERSION_CACHE_FEATURES: u64 = 5;
const VERSION_BACKING_FEATURES: u64 = 6;

/// Bucket size of over 16 bits with its high half behind the journal list: given up by Linux too.
const INCOMPAT_OBSOLETE_LARGE_BUCKET: u64 = 1 << 0;
/// The bucket size field holds the logarithm.
const INCOMPAT_LOG_LARGE_BUCKET: u64 = 1 << 1;
/// The largest bucket size that fits the field as it is.
const MAX_PLAIN_BUCKET_SECTORS: u32 = 1 << 15;

const FLAG_SYNC: u64 = 1 << 0;
const FLAG_DISCARD: u64 = 1 << 1;
const REPLACEMENT_SHIFT: u32 = 2;
const REPLACEMENT_MASK: u64 = 7;
const MODE_MASK: u64 = 15;
const STATE_SHIFT: u32 = 61;
const STATE_MASK: u64 = 3;

/// A superblock that passed every check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Super {
    /// Of a cache device.
    Cache(CacheSuper),
    /// Of a backing device.
    Backing(BackingSuper),
}

/// Whether the 4096 bytes (or more) bear bcache's magic number, damaged or not otherwise.
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.get(AT_MAGIC..AT_MAGIC + 16) == Some(&MAGIC[..])
}

/// Whether the magic number stands in another program's superblock: bcachefs bears the same one. Such
/// a block is other data, not a damaged superblock: it has zeros where bcache says which sector it
/// stands at, or a version that bcache does not have.
/// Says how it can be told.
pub fn foreign(bytes: &[u8]) -> Option<SuperError> {
    if !has_magic(bytes) || bytes.len() < SUPER_BYTES {
        return None;
    }
    let (offset, version) = (u64_at(bytes, AT_OFFSET), u64_at(bytes, AT_VERSION));
    if offset == 0 {
        return Some(SuperError::BadOffset { offset });
    }
    (!is_known_version(version)).then_some(SuperError::UnknownVersion { version })
}

const fn is_known_version(version: u64) -> bool {
    matches!(
        version,
        VERSION_CACHE
            | VERSION_BACKING
            | VERSION_CACHE_UUIDS
            | VERSION_BACKING_OFFSET
            | VERSION_CACHE_FEATURES
            | VERSION_BACKING_FEATURES
    )
}

/// Whether nothing at all stands in `bytes`.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// The number that a set's uuid puts into the magic of all its other structures.
pub fn set_magic(set_uuid: Uuid) -> u64 {
    u64_at(&set_uuid.0, 0)
}

/// Reads the 4096 bytes at sector 8 of a device.
///
/// # Errors
/// What is wrong first: the magic, then offset and checksum, then each field; see [`SuperError`].
pub fn parse(bytes: &[u8]) -> Result<Super, SuperError> {
    let Some(bytes) = bytes.get(..SUPER_BYTES) else {
        return Err(SuperError::Truncated);
    };
    if !has_magic(bytes) {
        return Err(SuperError::BadMagic);
    }
    let offset = u64_at(bytes, AT_OFFSET);
    if offset != SUPER_SECTOR.0 {
        return Err(SuperError::BadOffset { offset });
    }
    let count = u16_at(bytes, AT_KEYS);
    if usize::from(count) > MAX_JOURNAL_BUCKETS {
        return Err(SuperError::TooManyJournalBuckets { count });
    }
    let covered = &bytes[8..AT_JOURNAL + 8 * usize::from(count)];
    let (stored, computed) = (u64_at(bytes, 0), crc64(covered));
    if stored != computed {
        return Err(SuperError::BadChecksum { stored, computed });
    }
    match u64_at(bytes, AT_VERSION) {
        VERSION_CACHE | VERSION_CACHE_UUIDS | VERSION_CACHE_FEATURES => {
            CacheSuper::parse(bytes).map(Super::Cache)
        }
        VERSION_BACKING | VERSION_BACKING_OFFSET | VERSION_BACKING_FEATURES => {
            BackingSuper::parse(bytes).map(Super::Backing)
        }
        version => Err(SuperError::UnknownVersion { version }),
    }
}

impl Super {
    /// The 4096 bytes that stand at sector 8.
    pub fn encode(&self) -> [u8; SUPER_BYTES] {
        match self {
            Super::Cache(s) => s.encode(),
            Super::Backing(s) => s.encode(),
        }
    }
}

impl BackingSuper {
    /// What the device last ran on, where that is known.
    pub fn ran_on(&self) -> Option<RanOn> {
        RanOn::decode(&self.words)
    }

    /// Notes what the device runs on.
    pub fn set_ran_on(&mut self, note: &RanOn) {
        note.encode(&mut self.words);
    }

    /// Makes a copy of a device one of its own: another UUID, of no set, without a label, so that it
    /// does not compete for the original's name. Its data stay.
    pub fn become_clone(&mut self, uuid: Uuid) {
        self.uuid = uuid;
        self.set_uuid = Uuid::NIL;
        self.set_state(BackingState::None);
        self.label = [0; 32];
        self.seq = self.seq.wrapping_add(1);
    }
}

impl CacheSuper {
    /// What the device last ran on, where that is known.
    pub fn ran_on(&self) -> Option<RanOn> {
        RanOn::decode(&self.words)
    }

    /// Notes what the device runs on.
    pub fn set_ran_on(&mut self, note: &RanOn) {
        note.encode(&mut self.words);
    }
}

/// What both kinds have in the same places.
struct Common {
    version: u64,
    uuid: Uuid,
    set_uuid: Uuid,
    label: [u8; 32],
    flags: u64,
    seq: u64,
    words: [u64; WORDS],
    block_sectors: u16,
    last_mount: u32,
}

impl Common {
    fn parse(bytes: &[u8]) -> Result<Common, SuperError> {
        let common = Common {
            version: u64_at(bytes, AT_VERSION),
            uuid: Uuid(array_at(bytes, AT_UUID)),
            set_uuid: Uuid(array_at(bytes, AT_SET_UUID)),
            label: array_at(bytes, AT_LABEL),
            flags: u64_at(bytes, AT_FLAGS),
            seq: u64_at(bytes, AT_SEQ),
            words: std::array::from_fn(|i| u64_at(bytes, AT_FEATURES + 8 * i)),
            block_sectors: u16_at(bytes, AT_BLOCK_SIZE),
            last_mount: u32_at(bytes, AT_LAST_MOUNT),
        };
        common.check_features()?;
        if common.uuid.is_nil() {
            return Err(SuperError::ZeroUuid);
        }
        if !is_block_size(common.block_sectors.into()) {
            return Err(SuperError::BadBlockSize {
                sectors: common.block_sectors,
            });
        }
        Ok(common)
    }

    fn check_features(&self) -> Result<(), SuperError> {
        if self.version < VERSION_CACHE_FEATURES {
            return Ok(());
        }
        let [_, incompat, ro_compat, ..] = self.words;
        let known = INCOMPAT_OBSOLETE_LARGE_BUCKET | INCOMPAT_LOG_LARGE_BUCKET;
        if incompat & !known != 0 {
            return Err(SuperError::UnknownIncompatFeature {
                bits: incompat & !known,
            });
        }
        if ro_compat != 0 {
            return Err(SuperError::UnknownRoCompatFeature { bits: ro_compat });
        }
        if incompat & INCOMPAT_OBSOLETE_LARGE_BUCKET != 0 {
            return Err(SuperError::ObsoleteLargeBucket);
        }
        Ok(())
    }

    fn encode(&self) -> [u8; SUPER_BYTES] {
        let mut out = [0; SUPER_BYTES];
        put(&mut out, AT_OFFSET, &SUPER_SECTOR.0.to_le_bytes());
        put(&mut out, AT_VERSION, &self.version.to_le_bytes());
        put(&mut out, AT_MAGIC, &MAGIC);
        put(&mut out, AT_UUID, &self.uuid.0);
        put(&mut out, AT_SET_UUID, &self.set_uuid.0);
        put(&mut out, AT_LABEL, &self.label);
        put(&mut out, AT_FLAGS, &self.flags.to_le_bytes());
        put(&mut out, AT_SEQ, &self.seq.to_le_bytes());
        for (i, word) in self.words.iter().enumerate() {
            put(&mut out, AT_FEATURES + 8 * i, &word.to_le_bytes());
        }
        put(&mut out, AT_BLOCK_SIZE, &self.block_sectors.to_le_bytes());
        put(&mut out, AT_LAST_MOUNT, &self.last_mount.to_le_bytes());
        out
    }
}

/// Writes the right checksum over the 4096 bytes of a superblock, whatever it says otherwise: for
/// who changes one by hand, and for who wants to know what else is wrong with a damaged one.
pub fn reseal(bytes: &mut [u8; SUPER_BYTES]) {
    if usize::from(u16_at(bytes, AT_KEYS)) <= MAX_JOURNAL_BUCKETS {
        seal(bytes);
    }
}

/// Writes the checksum over the words that `keys` says are there.
fn seal(out: &mut [u8; SUPER_BYTES]) {
    let end = AT_JOURNAL + 8 * usize::from(u16_at(out, AT_KEYS));
    let sum = crc64(&out[8..end]);
    put(out, 0, &sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BucketNr;
    use proptest::prelude::*;

    fn cache() -> CacheSuper {
        let (set_uuid, uuid) = (Uuid([1; 16]), Uuid([2; 16]));
        let mut fresh = CacheSuper::new(set_uuid, uuid, 65_600, 8, 64).unwrap();
        fresh.prepare_first_run();
        fresh.set_sync(true);
        fresh
    }

    fn backing() -> BackingSuper {
        BackingSuper::new(Uuid([3; 16]), 8, Sector(2048)).unwrap()
    }

    /// What is said of `bytes` with `value` at `offset`, under a right checksum.
    fn damaged(mut bytes: [u8; SUPER_BYTES], offset: usize, value: &[u8]) -> SuperError {
        put(&mut bytes, offset, value);
        if usize::from(u16_at(&bytes, AT_KEYS)) <= MAX_JOURNAL_BUCKETS {
            seal(&mut bytes);
        }
        parse(&bytes).unwrap_err()
    }

    fn bad_cache(offset: usize, value: &[u8]) -> SuperError {
        damaged(cache().encode(), offset, value)
    }

    fn bad_backing(offset: usize, value: &[u8]) -> SuperError {
        damaged(backing().encode(), offset, value)
    }

    /// A cache superblock of version 5 with that feature word, under a right checksum.
    fn with_feature(word: usize, bits: u64) -> CacheSuper {
        let mut featured = CacheSuper {
            version: VERSION_CACHE_FEATURES,
            ..cache()
        };
        featured.words[word] = bits;
        featured
    }

    #[test]
    fn a_fresh_cache_device_is_what_formatting_leaves() {
        let fresh = CacheSuper::new(Uuid([1; 16]), Uuid([2; 16]), 65_600, 8, 64).unwrap();
        assert_eq!(
            (fresh.version, fresh.nbuckets, fresh.first_bucket),
            (0, 1025, 1)
        );
        assert!(!fresh.sync() && fresh.journal_buckets.is_empty());
        assert_eq!(parse(&fresh.encode()), Ok(Super::Cache(fresh)));
        let cache = cache();
        assert_eq!((cache.version, cache.sync(), cache.seq), (3, true, 0));
        assert_eq!(
            cache.journal_buckets,
            (1..9).map(BucketNr).collect::<Vec<_>>()
        );
        assert_eq!(parse(&cache.encode()), Ok(Super::Cache(cache)));
        let first = |bucket| CacheSuper::new(Uuid([1; 16]), Uuid([2; 16]), 1 << 20, 1, bucket);
        assert_eq!(
            [8, 16, 32].map(|b| first(b).unwrap().first_bucket),
            [3, 2, 1]
        );
    }

    #[test]
    fn a_fresh_backing_device_is_attached_to_nothing() {
        let backing = backing();
        assert_eq!((backing.version, backing.set_uuid), (4, Uuid::NIL));
        assert_eq!(backing.state(), BackingState::None);
        assert_eq!(backing.cache_mode(), CacheMode::WriteThrough);
        assert_eq!(parse(&backing.encode()), Ok(Super::Backing(backing)));
        let plain = BackingSuper::new(Uuid([3; 16]), 1, DEFAULT_DATA_OFFSET).unwrap();
        assert_eq!(
            (plain.version, u64_at(&plain.encode(), AT_DATA_OFFSET)),
            (1, 0)
        );
        assert_eq!(parse(&plain.encode()), Ok(Super::Backing(plain)));
    }

    #[test]
    fn flags_change_one_at_a_time() {
        let mut backing = BackingSuper {
            flags: 0xa5a0,
            ..backing()
        };
        for mode in CacheMode::ALL {
            for state in [
                BackingState::None,
                BackingState::Clean,
                BackingState::Dirty,
                BackingState::Stale,
            ] {
                backing.set_cache_mode(mode);
                backing.set_state(state);
                assert_eq!((backing.cache_mode(), backing.state()), (mode, state));
                assert_eq!(backing.flags & 0xffff_fff0, 0xa5a0);
                assert_eq!(CacheMode::from_name(mode.name()), Some(mode));
            }
        }
        let mut cache = CacheSuper {
            flags: 1 << 40,
            ..cache()
        };
        cache.set_discard(true);
        cache.set_replacement(2);
        cache.set_sync(true);
        assert_eq!((cache.flags, cache.replacement()), (1 << 40 | 0b01011, 2));
        cache.set_sync(false);
        cache.set_discard(false);
        assert_eq!(
            (cache.discard(), cache.sync(), cache.flags),
            (false, false, 1 << 40 | 8)
        );
    }

    #[test]
    fn damage_that_both_kinds_share_has_its_own_errors() {
        use SuperError::*;
        assert_eq!(parse(&cache().encode()[..4095]), Err(Truncated));
        assert_eq!(parse(&[0; SUPER_BYTES]), Err(BadMagic));
        assert_eq!(bad_cache(AT_MAGIC, &[0]), BadMagic);
        assert_eq!(bad_cache(AT_OFFSET, &[16]), BadOffset { offset: 16 });
        assert_eq!(
            bad_cache(AT_KEYS, &[1, 1]),
            TooManyJournalBuckets { count: 257 }
        );
        let mut torn = cache().encode();
        torn[AT_SEQ] ^= 1;
        assert!(matches!(parse(&torn), Err(BadChecksum { .. })));
        for version in [2u64, 7, u64::MAX] {
            let error = bad_cache(AT_VERSION, &version.to_le_bytes());
            assert_eq!(error, UnknownVersion { version });
        }
        assert_eq!(bad_cache(AT_UUID, &[0; 16]), ZeroUuid);
        assert_eq!(bad_backing(AT_UUID, &[0; 16]), ZeroUuid);
        for sectors in [0u16, 3, 16] {
            let value = sectors.to_le_bytes();
            assert_eq!(bad_cache(AT_BLOCK_SIZE, &value), BadBlockSize { sectors });
            assert_eq!(bad_backing(AT_BLOCK_SIZE, &value), BadBlockSize { sectors });
        }
    }

    #[test]
    fn damage_of_a_cache_device_has_its_own_errors() {
        use SuperError::*;
        assert_eq!(bad_cache(AT_SET_UUID, &[0; 16]), ZeroSetUuid);
        for sectors in [0u16, 4, 48] {
            let error = bad_cache(AT_BUCKET_SIZE, &sectors.to_le_bytes());
            assert_eq!(
                error,
                BadBucketSize {
                    sectors: sectors.into()
                }
            );
        }
        let nbuckets = |n: u64| bad_cache(AT_NBUCKETS, &n.to_le_bytes());
        assert_eq!(nbuckets(127), TooFewBuckets { nbuckets: 127 });
        assert_eq!(nbuckets(1 << 32), TooManyBuckets { nbuckets: 1 << 32 });
        assert_eq!(nbuckets(u64::MAX), TooManyBuckets { nbuckets: u64::MAX });
        let number = |nr_in_set, nr_this_dev| BadSetNumber {
            nr_in_set,
            nr_this_dev,
        };
        assert_eq!(bad_cache(AT_NR_IN_SET, &[0]), number(0, 0));
        assert_eq!(bad_cache(AT_NR_IN_SET, &[9]), number(9, 0));
        assert_eq!(bad_cache(AT_NR_THIS_DEV, &[1]), number(1, 1));
        assert_eq!(
            bad_cache(AT_NR_IN_SET, &[2]),
            SeveralCaches { nr_in_set: 2 }
        );
        assert_eq!(
            bad_cache(AT_FIRST_BUCKET, &[0]),
            FirstBucketTooLow { first_bucket: 0 }
        );
        assert_eq!(
            bad_cache(AT_JOURNAL + 16, &[9]),
            JournalNotConsecutive { index: 2 }
        );
        assert_eq!(
            bad_cache(AT_JOURNAL + 7, &[1]),
            JournalNotConsecutive { index: 0 }
        );
        let late = CacheSuper {
            first_bucket: 1020,
            journal_buckets: Vec::new(),
            ..cache()
        };
        let late = CacheSuper {
            journal_buckets: (1020..1028).map(BucketNr).collect(),
            ..late
        };
        assert_eq!(parse(&late.encode()), Err(JournalBeyondEnd));
        let too_small = DeviceTooSmall {
            has: 65_599,
            needs: 65_600,
        };
        assert_eq!(cache().check_device(65_599), Err(too_small));
        assert_eq!(cache().check_device(65_600), Ok(()));
    }

    #[test]
    fn damage_of_a_backing_device_has_its_own_errors() {
        use SuperError::*;
        assert_eq!(
            bad_backing(AT_DATA_OFFSET, &[15, 0]),
            BadDataOffset { sector: 15 }
        );
        assert_eq!(bad_backing(AT_FLAGS, &[4]), UnknownCacheMode { mode: 4 });
        let too_small = DeviceTooSmall {
            has: 2048,
            needs: 2056,
        };
        assert_eq!(backing().check_device(2048), Err(too_small));
        let absurd = BackingSuper {
            data_offset: Sector::MAX,
            ..backing()
        };
        assert!(absurd.check_device(1 << 40).is_err());
    }

    #[test]
    fn a_journal_of_one_bucket_is_no_ring() {
        let mut one = cache();
        one.prepare_first_run();
        one.journal_buckets.truncate(1);
        let error = parse(&one.encode()).unwrap_err();
        assert_eq!(error, SuperError::TooFewJournalBuckets { count: 1 });
        assert_eq!(error.byte(), 4096 + AT_KEYS as u64);
    }

    #[test]
    fn a_damaged_one_can_be_sealed_and_read() {
        let mut bytes = cache().encode();
        bytes[3] ^= 1;
        assert!(parse(&bytes).is_err());
        reseal(&mut bytes);
        assert_eq!(parse(&bytes), Ok(Super::Cache(cache())));
        bytes[AT_KEYS + 1] = 0xff;
        let before = bytes;
        reseal(&mut bytes);
        assert!(
            bytes == before,
            "what is listed does not fit, so nothing is sealed"
        );
    }

    #[test]
    fn features_are_known_or_refused() {
        use SuperError::*;
        let parsed = |s: CacheSuper| parse(&s.encode());
        assert_eq!(
            parsed(with_feature(0, 8)),
            Ok(Super::Cache(with_feature(0, 8)))
        );
        let unknown = Err(UnknownIncompatFeature { bits: 4 });
        assert_eq!(parsed(with_feature(1, 6)), unknown);
        assert_eq!(parsed(with_feature(1, 1)), Err(ObsoleteLargeBucket));
        assert_eq!(
            parsed(with_feature(2, 2)),
            Err(UnknownRoCompatFeature { bits: 2 })
        );
        // Before version 5 these words are padding.
        let old = CacheSuper {
            version: 3,
            ..with_feature(1, 4)
        };
        assert_eq!(parsed(old.clone()), Ok(Super::Cache(old)));
    }

    #[test]
    fn large_buckets_stand_as_a_logarithm() {
        let large = CacheSuper::new(Uuid([1; 16]), Uuid([2; 16]), 1 << 30, 8, 1 << 17).unwrap();
        assert_eq!((large.version, large.nbuckets), (5, 8192));
        assert_eq!(u16_at(&large.encode(), AT_BUCKET_SIZE), 17);
        assert_eq!(parse(&large.encode()), Ok(Super::Cache(large.clone())));
        for log in [2, 32, 255u8] {
            let error = damaged(large.encode(), AT_BUCKET_SIZE, &[log, 0]);
            assert!(matches!(error, SuperError::BadBucketSize { .. }), "{log}");
        }
    }

    #[test]
    fn what_cannot_be_formatted_is_refused() {
        use SuperError::*;
        let (a, b) = (Uuid([1; 16]), Uuid([2; 16]));
        let refused = |sectors, block, bucket| CacheSuper::new(a, b, sectors, block, bucket);
        assert_eq!(refused(8191, 8, 64), Err(TooFewBuckets { nbuckets: 127 }));
        assert_eq!(refused(1 << 20, 5, 64), Err(BadBlockSize { sectors: 5 }));
        assert_eq!(refused(1 << 20, 8, 0), Err(BadBucketSize { sectors: 0 }));
        assert_eq!(refused(1 << 20, 8, 65), Err(BadBucketSize { sectors: 65 }));
        let many = Err(TooManyBuckets {
            nbuckets: u64::MAX / 8,
        });
        assert_eq!(refused(u64::MAX, 8, 8), many);
        assert_eq!(
            CacheSuper::new(Uuid::NIL, b, 1 << 20, 8, 64),
            Err(ZeroSetUuid)
        );
        assert_eq!(CacheSuper::new(a, Uuid::NIL, 1 << 20, 8, 64), Err(ZeroUuid));
        assert_eq!(BackingSuper::new(Uuid::NIL, 8, Sector(16)), Err(ZeroUuid));
        assert_eq!(
            BackingSuper::new(a, 9, Sector(16)),
            Err(BadBlockSize { sectors: 9 })
        );
        assert_eq!(
            BackingSuper::new(a, 8, Sector(8)),
            Err(BadDataOffset { sector: 8 })
        );
    }

    #[test]
    fn other_devices_are_told_from_damaged_ones() {
        assert!(is_blank(&[0; 64]) && !is_blank(&[0, 1]));
        let mut torn = cache().encode();
        torn[0] ^= 1;
        assert!(has_magic(&torn) && !has_magic(&[0; SUPER_BYTES]) && !has_magic(&[]));
        assert_eq!(cache().set_magic(), 0x0101_0101_0101_0101);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            at in 0..400usize, value in proptest::collection::vec(any::<u8>(), 1..20),
            noise in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let _ = (parse(&noise), has_magic(&noise));
            for bytes in [cache().encode(), backing().encode(), with_feature(1, 2).encode()] {
                let mut bytes = bytes;
                put(&mut bytes, at, &value);
                if usize::from(u16_at(&bytes, AT_KEYS)) <= MAX_JOURNAL_BUCKETS {
                    seal(&mut bytes);
                }
                if let Ok(found) = parse(&bytes) {
                    prop_assert_eq!(parse(&found.encode()), Ok(found));
                }
            }
        }
    }
}
