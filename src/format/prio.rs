//! Prio sets: the priority and generation of every bucket.
//!
//! As many buckets as it takes, each naming the next; the journal names the first. Generations
//! are what makes eviction safe: a bucket's must be here, durably, before the bucket is used
//! again, or a pointer from before could be taken for one of now. Priorities are hints.
//! The set is written anew into other buckets and the journal switched over, so a torn one is
//! one that nothing refers to.
//!
//! A set may be as long as 4 MiB, so it can be encoded and checked in parts ([`Encoder`], [`Decoder`]).

use std::fmt;

use crate::format::crc::{Running, crc64};
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
    let mut decoder = Decoder::new(bytes, set_magic)?;
    while decoder.check(bytes.len()) {}
    decoder.is_sound()?;
    Ok(PrioSet {
        seq: decoder.seq(),
        version: u32_at(bytes, AT_VERSION),
        next_bucket: decoder.next_bucket(),
        entries: decoder.entries().collect(),
    })
}

/// Reads a prio set in parts: first all of it goes through [`check`](Self::check), then what it says
/// counts.
pub struct Decoder<'a> {
    bytes: &'a [u8],
    checked: usize,
    sum: Running,
}

impl<'a> Decoder<'a> {
    /// Looks at the header of a prio set that fills `bytes`.
    ///
    /// # Errors
    /// It is cut short, or another set's.
    pub fn new(bytes: &'a [u8], set_magic: u64) -> Result<Decoder<'a>, PrioError> {
        if bytes.len() < HEADER_BYTES {
            return Err(PrioError::Truncated);
        }
        if u64_at(bytes, AT_MAGIC) != set_magic ^ MAGIC {
            return Err(PrioError::BadMagic);
        }
        Ok(Decoder {
            bytes,
            checked: AT_MAGIC,
            sum: Running::default(),
        })
    }

    /// Sums up to `most` more bytes; false when none are left.
    pub fn check(&mut self, most: usize) -> bool {
        let end = self.bytes.len().min(self.checked + most);
        self.sum.add(&self.bytes[self.checked..end]);
        self.checked = end;
        end < self.bytes.len()
    }

    /// Compares the checksum, once all has been summed.
    ///
    /// # Errors
    /// It is another than the one stored.
    pub fn is_sound(&self) -> Result<(), PrioError> {
        let (stored, computed) = (u64_at(self.bytes, 0), self.sum.sum());
        match stored == computed {
            true => Ok(()),
            false => Err(PrioError::BadChecksum { stored, computed }),
        }
    }

    /// The number of the writing.
    pub fn seq(&self) -> u64 {
        u64_at(self.bytes, AT_SEQ)
    }

    /// See [`PrioSet::next_bucket`].
    pub fn next_bucket(&self) -> u64 {
        u64_at(self.bytes, AT_NEXT)
    }

    /// See [`PrioSet::entries`].
    pub fn entries(&self) -> impl Iterator<Item = (u16, Gen)> + use<'a> {
        let entries = self.bytes[HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
        entries.map(|entry| (u16_at(entry, 0), Gen(entry[2])))
    }
}

/// Writes a prio set in parts.
pub struct Encoder {
    out: Vec<u8>,
    bytes: usize,
    sum: Running,
    summed: usize,
}

impl Encoder {
    /// A set that fills `bytes`, without entries yet.
    pub fn new(bytes: usize, set_magic: u64, seq: u64, next_bucket: u64) -> Encoder {
        let mut out = Vec::with_capacity(bytes);
        out.resize(HEADER_BYTES, 0);
        put(&mut out, AT_MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
        put(&mut out, AT_SEQ, &seq.to_le_bytes());
        put(&mut out, AT_NEXT, &next_bucket.to_le_bytes());
        Encoder {
            out,
            bytes,
            sum: Running::default(),
            summed: AT_MAGIC,
        }
    }

    /// Adds entries, no more than [`per_bucket`] in all.
    pub fn add(&mut self, entries: impl Iterator<Item = (u16, Gen)>) {
        for (prio, generation) in entries {
            self.out.extend_from_slice(&prio.to_le_bytes());
            self.out.push(generation.0);
        }
        assert!(self.out.len() <= self.bytes, "prio set too long");
        self.sum.add(&self.out[self.summed..]);
        self.summed = self.out.len();
    }

    /// The set: what is missing behind it are zeros.
    pub fn finish(mut self) -> Vec<u8> {
        let zeros = self.bytes - self.out.len();
        self.sum.add(&self.out[self.summed..]);
        let sum = self.sum.sum_padded(zeros);
        put(&mut self.out, 0, &sum.to_le_bytes());
        self.out
    }
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
        let mut encoder = Encoder::new(out.len(), set_magic, self.seq, self.next_bucket);
        put(&mut encoder.out, AT_VERSION, &self.version.to_le_bytes());
        encoder.add(self.entries.iter().copied());
        let set = encoder.finish();
        let (used, rest) = out.split_at_mut(set.len());
        used.copy_from_slice(&set);
        rest.fill(0);
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
    fn a_set_encoded_and_checked_in_parts_is_the_same() {
        let (whole, mut bytes) = (set(), vec![0xff; 4096]);
        whole.encode(MAGIC_OF_SET, &mut bytes);
        let mut encoder = Encoder::new(4096, MAGIC_OF_SET, whole.seq, whole.next_bucket);
        for part in whole.entries.chunks(100) {
            encoder.add(part.iter().copied());
        }
        let mut parts = encoder.finish();
        parts.resize(4096, 0);
        assert_eq!(parts, bytes);
        let mut decoder = Decoder::new(&bytes, MAGIC_OF_SET).unwrap();
        while decoder.check(100) {}
        assert_eq!(decoder.is_sound(), Ok(()));
        assert_eq!(decoder.entries().collect::<Vec<_>>(), whole.entries);
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
