//! Journal entries.
//!
//! An entry is whole blocks of one journal bucket, 32 KiB at most. It carries the keys of a group
//! of inserts and, every time, where root, uuid table and prio sets are: recovery takes those
//! from the newest entry and replays the keys from that entry's `last_seq` on. What an entry
//! refers to is durable before it is. A torn entry fails its checksum; it was acknowledged to
//! nobody, so it ends its bucket's log as blank space does.

use std::fmt;

use crate::format::crc::crc64;
use crate::format::key::{self, Key, KeyError, PADDED_BYTES};
use crate::format::{array_at, put, u16_at, u32_at, u64_at};
use crate::limits::MAX_JSET_BYTES;
use crate::units::{JournalSeq, SECTOR_BYTES};

/// Bytes before the keys.
pub const HEADER_BYTES: usize = 240;
/// Bytes of an entry at most, padding included.
pub const MAX_BYTES: usize = MAX_JSET_BYTES;
/// Bytes of keys that fit into one entry.
pub const MAX_KEY_BYTES: usize = MAX_BYTES - HEADER_BYTES;
/// The highest level that a root can have. Nodes of a page, the smallest, hold over 100 children,
/// so even 2^32 of them stand in six levels.
pub const MAX_LEVEL: u16 = 15;

const MAGIC: u64 = 0x2452_35c1_a362_5032;
/// With uuid entries of 128 bytes; what is written.
const VERSION: u32 = 1;
/// Sequence numbers count entries, so no set ever comes near this; it keeps `seq + 1` safe.
const MAX_SEQ: u64 = 1 << 62;

const AT_MAGIC: usize = 8;
const AT_SEQ: usize = 16;
const AT_VERSION: usize = 24;
const AT_KEYS: usize = 28;
const AT_LAST_SEQ: usize = 32;
const AT_UUID_BUCKET: usize = 40;
const AT_ROOT: usize = 104;
const AT_LEVEL: usize = 168;
const AT_PRIO_BUCKETS: usize = 176;

/// Why bytes are no journal entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JsetError {
    /// The magic number is another: nothing was written here, by this set.
    NotAnEntry,
    /// The entry is longer than the bytes at hand.
    Truncated {
        /// Bytes that it takes.
        needs: usize,
    },
    /// The entry would be longer than any can be.
    TooLong {
        /// Bytes that it would take.
        bytes: u64,
    },
    /// The checksum is another: torn or damaged.
    BadChecksum {
        /// As it stands.
        stored: u64,
        /// As it should be.
        computed: u64,
    },
    /// A version that this engine does not read.
    UnknownVersion {
        /// The version.
        version: u32,
    },
    /// Its number is zero or absurd.
    BadSeq {
        /// The number.
        seq: u64,
    },
    /// The oldest entry it needs would be newer than itself.
    LastSeqAhead {
        /// Its number.
        seq: u64,
        /// The oldest needed.
        last_seq: u64,
    },
    /// It names no root.
    NoRoot,
    /// The key of the root is none.
    BadRoot(KeyError),
    /// The root would stand higher than any tree grows.
    BadLevel {
        /// The level.
        level: u16,
    },
    /// The key of the uuid table is none.
    BadUuidBucket(KeyError),
    /// One of its keys is none.
    BadKey {
        /// Where the key begins, from the start of the entry.
        byte: u32,
        /// What is wrong with it.
        error: KeyError,
    },
}

impl fmt::Display for JsetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use JsetError::*;
        match self {
            NotAnEntry => f.write_str("no journal entry of this set"),
            Truncated { needs } => write!(f, "journal entry is cut short: it takes {needs} bytes"),
            TooLong { bytes } => write!(f, "journal entry of {bytes} bytes is too long"),
            BadChecksum { stored, computed } => write!(
                f,
                "journal entry is damaged: checksum {stored:016x}, should be {computed:016x}"
            ),
            UnknownVersion { version } => write!(f, "unknown version {version} of a journal entry"),
            BadSeq { seq } => write!(f, "journal entry has the impossible number {seq}"),
            LastSeqAhead { seq, last_seq } => {
                write!(
                    f,
                    "journal entry {seq} needs entry {last_seq}, which is newer"
                )
            }
            NoRoot => f.write_str("journal entry names no btree root"),
            BadRoot(error) => write!(f, "journal entry names a bad btree root: {error}"),
            BadLevel { level } => write!(f, "journal entry says that the root is at level {level}"),
            BadUuidBucket(error) => write!(f, "journal entry names a bad uuid bucket: {error}"),
            BadKey { byte, error } => {
                write!(f, "bad key at byte {byte} of a journal entry: {error}")
            }
        }
    }
}

impl std::error::Error for JsetError {}

/// A journal entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jset {
    /// Its number; 1 more than the one before.
    pub seq: JournalSeq,
    /// The oldest entry whose keys are not all in btree nodes on disk.
    pub last_seq: JournalSeq,
    /// Where the uuid table is; its size is the table's sectors.
    pub uuid_bucket: Option<Key>,
    /// Where the root is; its size is the node's sectors.
    pub root: Key,
    /// How far the root stands above the leaves, at most [`MAX_LEVEL`].
    pub level: u16,
    /// The number of each device's first prio bucket; 0 where there is none.
    pub prio_bucket: [u64; 8],
    /// Keys for the leaves, in the order in which they were inserted.
    pub keys: Vec<Key>,
}

/// The blocks of an entry whose keys take `key_bytes`.
pub const fn entry_blocks(key_bytes: usize, block_sectors: u32) -> u32 {
    (HEADER_BYTES + key_bytes).div_ceil(block_sectors as usize * SECTOR_BYTES) as u32
}

/// Reads the entry at the start of `bytes`; returns it and the blocks it takes.
/// `block_sectors` must not be 0.
///
/// # Errors
/// [`JsetError::NotAnEntry`] where another magic stands; else what is wrong with the entry.
pub fn parse(bytes: &[u8], set_magic: u64, block_sectors: u32) -> Result<(Jset, u32), JsetError> {
    if bytes.len() < HEADER_BYTES {
        return Err(JsetError::Truncated {
            needs: HEADER_BYTES,
        });
    }
    if u64_at(bytes, AT_MAGIC) != set_magic ^ MAGIC {
        return Err(JsetError::NotAnEntry);
    }
    let used = HEADER_BYTES as u64 + 8 * u64::from(u32_at(bytes, AT_KEYS));
    if used > MAX_BYTES as u64 {
        return Err(JsetError::TooLong { bytes: used });
    }
    let used = used as usize;
    if used > bytes.len() {
        return Err(JsetError::Truncated { needs: used });
    }
    let (stored, computed) = (u64_at(bytes, 0), crc64(&bytes[8..used]));
    if stored != computed {
        return Err(JsetError::BadChecksum { stored, computed });
    }
    let version = u32_at(bytes, AT_VERSION);
    if version != VERSION {
        return Err(JsetError::UnknownVersion { version });
    }
    let entry = parse_fields(&bytes[..used])?;
    Ok((entry, entry_blocks(used - HEADER_BYTES, block_sectors)))
}

/// Reads the fields of an entry whose checksum is right.
fn parse_fields(bytes: &[u8]) -> Result<Jset, JsetError> {
    let (seq, last_seq) = (u64_at(bytes, AT_SEQ), u64_at(bytes, AT_LAST_SEQ));
    if seq == 0 || seq > MAX_SEQ {
        return Err(JsetError::BadSeq { seq });
    }
    if last_seq > seq {
        return Err(JsetError::LastSeqAhead { seq, last_seq });
    }
    let level = u16_at(bytes, AT_LEVEL);
    if level > MAX_LEVEL {
        return Err(JsetError::BadLevel { level });
    }
    let field = |at| Key::decode_padded(&array_at::<PADDED_BYTES>(bytes, at));
    Ok(Jset {
        seq: JournalSeq(seq),
        last_seq: JournalSeq(last_seq),
        uuid_bucket: field(AT_UUID_BUCKET).map_err(JsetError::BadUuidBucket)?,
        root: field(AT_ROOT)
            .map_err(JsetError::BadRoot)?
            .ok_or(JsetError::NoRoot)?,
        level,
        prio_bucket: std::array::from_fn(|i| u64_at(bytes, AT_PRIO_BUCKETS + 8 * i)),
        keys: key::decode_all(&bytes[HEADER_BYTES..]).map_err(|(at, error)| {
            let byte = (HEADER_BYTES + at) as u32;
            JsetError::BadKey { byte, error }
        })?,
    })
}

/// Writes the right checksum over the entry at the start of `bytes`, as long as its header says or
/// as there are bytes: for who changes an entry by hand.
pub fn reseal(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let end = HEADER_BYTES as u64 + 8 * u64::from(u32_at(bytes, AT_KEYS));
    let end = end.min(bytes.len() as u64) as usize;
    let sum = crc64(&bytes[8..end]);
    put(bytes, 0, &sum.to_le_bytes());
}

impl Jset {
    /// Appends the entry to `out`, padded with zeros to whole blocks; returns the blocks it took.
    /// The keys must fit: [`MAX_KEY_BYTES`].
    pub fn encode(&self, set_magic: u64, block_sectors: u32, out: &mut Vec<u8>) -> u32 {
        let mut key_bytes = Vec::with_capacity(key::encoded_bytes(&self.keys));
        for key in &self.keys {
            key.encode(&mut key_bytes);
        }
        self.encode_with(&key_bytes, set_magic, block_sectors, out)
    }

    /// Like [`Jset::encode`], with keys that were encoded as they came in place of `self.keys`.
    pub fn encode_with(
        &self,
        key_bytes: &[u8],
        set_magic: u64,
        block_sectors: u32,
        out: &mut Vec<u8>,
    ) -> u32 {
        assert!(key_bytes.len() <= MAX_KEY_BYTES, "journal entry too long");
        debug_assert!(key_bytes.len() % 8 == 0 && self.last_seq <= self.seq);
        let blocks = entry_blocks(key_bytes.len(), block_sectors);
        let base = out.len();
        out.resize(
            base + blocks as usize * block_sectors as usize * SECTOR_BYTES,
            0,
        );
        let entry = &mut out[base..];
        put(entry, AT_MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
        put(entry, AT_SEQ, &self.seq.0.to_le_bytes());
        put(entry, AT_VERSION, &VERSION.to_le_bytes());
        put(
            entry,
            AT_KEYS,
            &((key_bytes.len() / 8) as u32).to_le_bytes(),
        );
        put(entry, AT_LAST_SEQ, &self.last_seq.0.to_le_bytes());
        put(
            entry,
            AT_UUID_BUCKET,
            &Key::encode_padded(self.uuid_bucket.as_ref()),
        );
        put(entry, AT_ROOT, &Key::encode_padded(Some(&self.root)));
        put(entry, AT_LEVEL, &self.level.to_le_bytes());
        for (i, bucket) in self.prio_bucket.iter().enumerate() {
            put(entry, AT_PRIO_BUCKETS + 8 * i, &bucket.to_le_bytes());
        }
        put(entry, HEADER_BYTES, key_bytes);
        let sum = crc64(&entry[8..HEADER_BYTES + key_bytes.len()]);
        put(entry, 0, &sum.to_le_bytes());
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::key::Ptr;
    use crate::units::{Gen, Inode, Sector};
    use proptest::prelude::*;

    const MAGIC_OF_SET: u64 = 0x1122_3344_5566_7788;

    fn node_key(bucket: u64) -> Key {
        let ptr = Some(Ptr::new(0, Sector(bucket * 64), Gen(1)));
        Key {
            size_sectors: 64,
            ptr,
            ..Key::MAX
        }
    }

    fn entry(keys: u64) -> Jset {
        let extent = |i| Key {
            inode: Inode(2),
            end: Sector(8 + 8 * i),
            size_sectors: 8,
            dirty: true,
            ptr: Some(Ptr::new(0, Sector(640 + 8 * i), Gen(1))),
        };
        Jset {
            seq: JournalSeq(40),
            last_seq: JournalSeq(33),
            uuid_bucket: Some(Key {
                end: Sector(0),
                inode: Inode(0),
                ..node_key(3)
            }),
            root: node_key(4),
            level: 1,
            prio_bucket: [21, 0, 0, 0, 0, 0, 0, 0],
            keys: (0..keys).map(extent).collect(),
        }
    }

    fn bytes_of(entry: &Jset) -> Vec<u8> {
        let mut out = Vec::new();
        entry.encode(MAGIC_OF_SET, 8, &mut out);
        out
    }

    fn read(bytes: &[u8]) -> Result<Jset, JsetError> {
        parse(bytes, MAGIC_OF_SET, 8).map(|(entry, _)| entry)
    }

    /// The error of an entry in which `value` was written at `offset`, under a right checksum.
    fn damaged(offset: usize, value: &[u8]) -> Option<JsetError> {
        let mut bytes = bytes_of(&entry(5));
        put(&mut bytes, offset, value);
        let used = HEADER_BYTES + 8 * u32_at(&bytes, AT_KEYS) as usize;
        if used <= bytes.len() {
            let sum = crc64(&bytes[8..used]);
            put(&mut bytes, 0, &sum.to_le_bytes());
        }
        read(&bytes).err()
    }

    #[test]
    fn an_entry_comes_back_as_it_went() {
        for keys in [0, 5, 160, 161, 1355] {
            let mut out = vec![0xee; 3];
            let blocks = entry(keys).encode(MAGIC_OF_SET, 8, &mut out);
            assert_eq!(out.len(), 3 + blocks as usize * 4096);
            assert_eq!(parse(&out[3..], MAGIC_OF_SET, 8), Ok((entry(keys), blocks)));
        }
        assert_eq!(entry_blocks(160 * 24, 8), 1);
        assert_eq!(entry_blocks(161 * 24, 8), 2);
        assert_eq!(MAX_KEY_BYTES / 24, 1355);
    }

    #[test]
    fn an_entry_needs_no_uuid_table_yet() {
        let bare = Jset {
            uuid_bucket: None,
            prio_bucket: [0; 8],
            ..entry(0)
        };
        assert_eq!(read(&bytes_of(&bare)), Ok(bare));
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let good = bytes_of(&entry(5));
        assert_eq!(
            read(&good[..100]),
            Err(JsetError::Truncated {
                needs: HEADER_BYTES
            })
        );
        assert_eq!(read(&good[..300]), Err(JsetError::Truncated { needs: 360 }));
        assert_eq!(read(&[0; 4096]), Err(JsetError::NotAnEntry));
        assert_eq!(
            parse(&good, MAGIC_OF_SET ^ 1, 8),
            Err(JsetError::NotAnEntry)
        );
        assert_eq!(
            damaged(AT_KEYS, &[0, 16]),
            Some(JsetError::TooLong { bytes: 33008 })
        );
        let huge = JsetError::TooLong {
            bytes: 240 + 8 * u64::from(u32::MAX),
        };
        assert_eq!(damaged(AT_KEYS, &[255; 4]), Some(huge));
        assert_eq!(
            damaged(AT_VERSION, &[0]),
            Some(JsetError::UnknownVersion { version: 0 })
        );
        assert_eq!(damaged(AT_SEQ, &[0]), Some(JsetError::BadSeq { seq: 0 }));
        assert_eq!(
            damaged(AT_SEQ, &[255; 8]),
            Some(JsetError::BadSeq { seq: u64::MAX })
        );
        let ahead = JsetError::LastSeqAhead {
            seq: 40,
            last_seq: 41,
        };
        assert_eq!(damaged(AT_LAST_SEQ, &[41]), Some(ahead));
        assert_eq!(
            damaged(AT_LEVEL, &[16]),
            Some(JsetError::BadLevel { level: 16 })
        );
        assert_eq!(damaged(AT_ROOT, &[0; 64]), Some(JsetError::NoRoot));
        let not_a_key = KeyError::NotAKey;
        assert_eq!(
            damaged(AT_ROOT + 7, &[0]),
            Some(JsetError::BadRoot(not_a_key))
        );
        assert_eq!(
            damaged(AT_UUID_BUCKET + 7, &[0]),
            Some(JsetError::BadUuidBucket(not_a_key))
        );
        assert_eq!(
            damaged(HEADER_BYTES + 7, &[0]),
            Some(JsetError::BadKey {
                byte: HEADER_BYTES as u32,
                error: not_a_key
            })
        );
    }

    #[test]
    fn a_torn_entry_fails_its_checksum() {
        let mut bytes = bytes_of(&entry(400));
        bytes[4096..].fill(0);
        assert!(matches!(read(&bytes), Err(JsetError::BadChecksum { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..360usize, value: u8,
        ) {
            let _ = read(&bytes);
            let _ = damaged(at, &[value]);
        }
    }
}
