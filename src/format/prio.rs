//! Prio sets: the priority and generation of every bucket.
//!
//! As many buckets as it takes, each naming the next; the journal names the first. Generations
//! are what makes eviction safe: a bucket's must be here, durably, before the bucket is used
//! again, or a pointer from before could be taken for one of now. Priorities are hints.
//! The set is written anew into other buckets and the journal switched over, so a torn one is
//! one that nothing refers to.

use std::fmt;

use crate::format::crc::{crc64, crc64_padded};
use crate::format::{put, u16_at, u32_at, u64_at};
use crate::units::Gen;

/// Bytes before the entries.
pub const HEADER_BYTES: usize = 40;
/// Bytes of an entry: priority, generation.
const ENTRY_BYTES: usize = 3;

const MAGIC: u64 = 0x6750_e15f_8733_7f91;
const AT_MAGIC: usize = 8;
/// Where the number of the writing stands, from the start of a set.
pub const AT_SEQ: usize = 16;
const AT_VERSION: usize = 24;
/// Where the next bucket is named, from the start of a set.
pub const AT_NEXT: usize = 32;

/// Why bytes are no prio set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrioError {
    /// Too few bytes for a header.
    Truncated,
    /// The magic number is another.
    BadMagic,
    /// The checksum is another.
    BadChecksum {
        /// As it stands.
        stored: u64,
        /// As it should be.
        computed: u64,
    },
}

impl fmt::Display for PrioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrioError::Truncated => f.write_str("prio set is cut short"),
            PrioError::BadMagic => f.write_str("no prio set of this set: wrong magic number"),
            PrioError::BadChecksum { stored, computed } => write!(
                f,
                "prio set is damaged: checksum {stored:016x}, should be {computed:016x}"
            ),
        }
    }
}

impl std::error::Error for PrioError {}

/// One bucket's worth of priorities and generations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrioSet {
    /// Counts the writings of the whole chain, whose sets all bear the same number.
    pub seq: u64,
    /// 0 so far.
    pub version: u32,
    /// The bucket with the next entries. Of the last one it means nothing: stop when every bucket
    /// of the device has had its entry.
    pub next_bucket: u64,
    /// Priority and generation, by bucket, continuing where the set before stopped.
    pub entries: Vec<(u16, Gen)>,
}

/// The entries that a prio set of `bytes` holds ([`meta_bucket_bytes`] of the bucket size).
///
/// [`meta_bucket_bytes`]: crate::limits::meta_bucket_bytes
pub const fn per_bucket(bytes: usize) -> usize {
    bytes.saturating_sub(HEADER_BYTES) / ENTRY_BYTES
}

/// The prio buckets that a device of `nbuckets` takes, each holding `per_bucket` (not 0).
pub const fn buckets_needed(nbuckets: u64, per_bucket: usize) -> u64 {
    nbuckets.div_ceil(per_bucket as u64)
}

/// Reads a prio set that fills `bytes`.
///
/// # Errors
/// See [`PrioError`].
pub fn parse(bytes: &[u8], set_magic: u64) -> Result<PrioSet, PrioError> {
    if bytes.len() < HEADER_BYTES {
        return Err(PrioError::Truncated);
    }
    if u64_at(bytes, AT_MAGIC) != set_magic ^ MAGIC {
        return Err(PrioError::BadMagic);
    }
    let (stored, computed) = (u64_at(bytes, 0), crc64(&bytes[8..]));
    if stored != computed {
        return Err(PrioError::BadChecksum { stored, computed });
    }
    Ok(PrioSet {
        seq: u64_at(bytes, AT_SEQ),
        version: u32_at(bytes, AT_VERSION),
        next_bucket: u64_at(bytes, AT_NEXT),
        entries: bytes[HEADER_BYTES..]
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| (u16_at(entry, 0), Gen(entry[2])))
            .collect(),
    })
}

/// Writes the right checksum over a prio set that fills `bytes`: for who changes one by hand.
pub fn reseal(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_BYTES {
        let sum = crc64(&bytes[8..]);
        put(bytes, 0, &sum.to_le_bytes());
    }
}

impl PrioSet {
    /// Writes the set over the whole of `out`, which has room for the entries; entries that are
    /// missing are zero.
    pub fn encode(&self, set_magic: u64, out: &mut [u8]) {
        assert!(
            self.entries.len() <= per_bucket(out.len()),
            "prio set too long"
        );
        out.fill(0);
        put(out, AT_MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
        put(out, AT_SEQ, &self.seq.to_le_bytes());
        put(out, AT_VERSION, &self.version.to_le_bytes());
        put(out, AT_NEXT, &self.next_bucket.to_le_bytes());
        let places = out[HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES);
        for (place, (prio, generation)) in places.zip(&self.entries) {
            place[..2].copy_from_slice(&prio.to_le_bytes());
            place[2] = generation.0;
        }
        let used = HEADER_BYTES + self.entries.len() * ENTRY_BYTES;
        let sum = crc64_padded(&out[8..used], out.len() - used);
        put(out, 0, &sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAGIC_OF_SET: u64 = 0x1122_3344_5566_7788;

    fn set() -> PrioSet {
        let entries = (0..per_bucket(4096))
            .map(|i| (i as u16, Gen(i as u8)))
            .collect();
        PrioSet {
            seq: 9,
            version: 0,
            next_bucket: 17,
            entries,
        }
    }

    #[test]
    fn a_set_comes_back_as_it_went() {
        let mut bytes = [0xff; 4096];
        set().encode(MAGIC_OF_SET, &mut bytes);
        assert_eq!(parse(&bytes, MAGIC_OF_SET), Ok(set()));
        assert_eq!(per_bucket(4096), 1352);
        assert_eq!(
            (per_bucket(0), buckets_needed(12288, per_bucket(8192))),
            (0, 5)
        );
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let mut bytes = [0; 4096];
        assert_eq!(parse(&bytes[..39], MAGIC_OF_SET), Err(PrioError::Truncated));
        assert_eq!(parse(&bytes, MAGIC_OF_SET), Err(PrioError::BadMagic));
        set().encode(MAGIC_OF_SET, &mut bytes);
        assert_eq!(parse(&bytes, MAGIC_OF_SET ^ 1), Err(PrioError::BadMagic));
        bytes[4095] ^= 1;
        assert!(matches!(
            parse(&bytes, MAGIC_OF_SET),
            Err(PrioError::BadChecksum { .. })
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, MAGIC_OF_SET);
        }
    }
}
