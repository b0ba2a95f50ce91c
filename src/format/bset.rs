//! Btree nodes on disk: a log of sorted runs of keys ("bsets"), each from a block boundary on.
//!
//! Whoever writes a node appends a run; nothing that stands is changed. A run belongs to the node
//! as long as it carries the sequence number of the first, which is random, so that what an older
//! node left in the same bucket is never taken for a part. The checksum starts from the pointer
//! by which the parent knows the node: a node read through a stale or wrong pointer fails.
//!
//! After a crash the last run may be torn. [`node_read`] then refuses the node and names the
//! byte; [`node_salvage`] gives the runs before it, for a caller who knows from the journal that
//! no more was durable.

use std::fmt;

use crate::format::crc::{START, crc64_from};
use crate::format::key::{self, Key, KeyError, Ptr};
use crate::format::{put, u32_at, u64_at};
use crate::units::SECTOR_BYTES;

/// Bytes before the keys of a run.
pub const HEADER_BYTES: usize = 32;

const MAGIC: u64 = 0x9013_5c78_b99e_07f5;
/// The run's checksum starts from all ones.
const VERSION_PLAIN: u32 = 0;
/// The run's checksum starts from the node's pointer; what is written.
const VERSION_SEEDED: u32 = 1;

const AT_MAGIC: usize = 8;
const AT_SEQ: usize = 16;
const AT_VERSION: usize = 24;
const AT_KEYS: usize = 28;

/// Why a node is refused. Bytes count from the start of the node, which is that of its bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BsetError {
    /// The bytes are no whole number of blocks, or none.
    BadLength {
        /// How many bytes.
        bytes: usize,
    },
    /// The first run has no sequence number: no node was ever written here.
    NoSeq,
    /// The magic number is another.
    BadMagic {
        /// Where the run begins.
        byte: u32,
    },
    /// A version that nobody has defined.
    UnknownVersion {
        /// Where the run begins.
        byte: u32,
        /// The version.
        version: u32,
    },
    /// The run is longer than what is left of the node.
    TooLong {
        /// Where the run begins.
        byte: u32,
    },
    /// The checksum is another.
    BadChecksum {
        /// Where the run begins.
        byte: u32,
        /// As it stands.
        stored: u64,
        /// As it should be.
        computed: u64,
    },
    /// A run without keys that is not the first.
    EmptySet {
        /// Where the run begins.
        byte: u32,
    },
    /// A key is none.
    BadKey {
        /// Where the key begins.
        byte: u32,
        /// What is wrong with the key.
        error: KeyError,
    },
    /// The keys of a run are not in order.
    Unordered {
        /// Where the first key begins that should stand before its predecessor.
        byte: u32,
    },
    /// A block behind the last run carries the node's sequence number: a run in between is lost.
    StraySet {
        /// Where the block begins.
        byte: u32,
    },
}

impl fmt::Display for BsetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use BsetError::*;
        match self {
            BadLength { bytes } => write!(f, "btree node of {bytes} bytes is not of whole blocks"),
            NoSeq => f.write_str("btree node was never written: its sequence number is zero"),
            BadMagic { byte } => write!(f, "wrong magic number of the keys at byte {byte}"),
            UnknownVersion { byte, version } => {
                write!(f, "unknown version {version} of the keys at byte {byte}")
            }
            TooLong { byte } => write!(f, "the keys at byte {byte} run over the node's end"),
            BadChecksum {
                byte,
                stored,
                computed,
            } => write!(
                f,
                "the keys at byte {byte} are damaged: checksum {stored:016x}, should be {computed:016x}"
            ),
            EmptySet { byte } => write!(f, "no keys at byte {byte}, where some must be"),
            BadKey { byte, error } => write!(f, "bad key at byte {byte}: {error}"),
            Unordered { byte } => write!(f, "the keys at byte {byte} are out of order"),
            StraySet { byte } => {
                write!(
                    f,
                    "the block at byte {byte} belongs to the node, but what precedes it is lost"
                )
            }
        }
    }
}

impl std::error::Error for BsetError {}

/// A btree node as it stands on disk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeImage {
    /// The number that all its runs carry; not zero.
    pub seq: u64,
    /// Blocks in use; the next run goes behind them.
    pub written_blocks: u32,
    /// The runs, oldest first. Within one, keys are in order of their ends.
    pub sets: Vec<Vec<Key>>,
}

/// The bytes of a run whose keys take `key_bytes`, without the padding to a block.
pub const fn set_bytes(key_bytes: usize) -> usize {
    HEADER_BYTES + key_bytes
}

/// The blocks of a run whose keys take `key_bytes`.
pub const fn set_blocks(key_bytes: usize, block_sectors: u32) -> u32 {
    set_bytes(key_bytes).div_ceil(block_sectors as usize * SECTOR_BYTES) as u32
}

/// Reads a whole node. `bytes` are as long as the parent's key says, `ptr` is that key's pointer.
/// `block_sectors` must be a power of two.
///
/// # Errors
/// The first thing that is wrong; see [`BsetError`].
pub fn node_read(
    bytes: &[u8],
    set_magic: u64,
    ptr: Ptr,
    block_sectors: u32,
) -> Result<NodeImage, BsetError> {
    match node_salvage(bytes, set_magic, ptr, block_sectors) {
        (node, None) => Ok(node),
        (_, Some(error)) => Err(error),
    }
}

/// Reads a node up to the first damage, and says what that is.
///
/// The node has the runs before the damaged one; none (and no seq) when the first is damaged.
pub fn node_salvage(
    bytes: &[u8],
    set_magic: u64,
    ptr: Ptr,
    block_sectors: u32,
) -> (NodeImage, Option<BsetError>) {
    let mut node = NodeImage::default();
    let block_bytes = block_sectors as usize * SECTOR_BYTES;
    if bytes.is_empty() || block_bytes == 0 || bytes.len() % block_bytes != 0 {
        return (node, Some(BsetError::BadLength { bytes: bytes.len() }));
    }
    let seq = u64_at(bytes, AT_SEQ);
    if seq == 0 {
        return (node, Some(BsetError::NoSeq));
    }
    let mut rest = bytes;
    while !rest.is_empty() && u64_at(rest, AT_SEQ) == seq {
        let at = (bytes.len() - rest.len()) as u32;
        let (keys, key_bytes) = match set_read(rest, set_magic, ptr, at) {
            Ok(read) => read,
            Err(error) => return (node, Some(error)),
        };
        let blocks = set_blocks(key_bytes, block_sectors);
        node.seq = seq;
        node.sets.push(keys);
        node.written_blocks += blocks;
        rest = &rest[blocks as usize * block_bytes..];
    }
    let stray = rest
        .chunks_exact(block_bytes)
        .position(|block| u64_at(block, AT_SEQ) == seq);
    let stray = stray.map(|i| BsetError::StraySet {
        byte: (bytes.len() - rest.len() + i * block_bytes) as u32,
    });
    (node, stray)
}

/// Reads the run at the start of `bytes` (which is whole blocks, at byte `byte` of the node);
/// returns its keys and their bytes.
fn set_read(
    bytes: &[u8],
    set_magic: u64,
    ptr: Ptr,
    byte: u32,
) -> Result<(Vec<Key>, usize), BsetError> {
    let version = u32_at(bytes, AT_VERSION);
    if u64_at(bytes, AT_MAGIC) != set_magic ^ MAGIC {
        return Err(BsetError::BadMagic { byte });
    }
    if version > VERSION_SEEDED {
        return Err(BsetError::UnknownVersion { byte, version });
    }
    let key_bytes = u64::from(u32_at(bytes, AT_KEYS)) * 8;
    if key_bytes > (bytes.len() - HEADER_BYTES) as u64 {
        return Err(BsetError::TooLong { byte });
    }
    let key_bytes = key_bytes as usize;
    let start = if version == VERSION_PLAIN {
        START
    } else {
        ptr.raw()
    };
    let stored = u64_at(bytes, 0);
    let computed = crc64_from(start, &bytes[8..set_bytes(key_bytes)]);
    if stored != computed {
        return Err(BsetError::BadChecksum {
            byte,
            stored,
            computed,
        });
    }
    if key_bytes == 0 && byte != 0 {
        return Err(BsetError::EmptySet { byte });
    }
    let keys = decode_keys(
        &bytes[HEADER_BYTES..set_bytes(key_bytes)],
        byte + HEADER_BYTES as u32,
    )?;
    Ok((keys, key_bytes))
}

/// Reads the keys that fill `bytes`, which begin at byte `at` of the node.
fn decode_keys(bytes: &[u8], at: u32) -> Result<Vec<Key>, BsetError> {
    let mut keys: Vec<Key> = Vec::with_capacity(bytes.len() / key::MAX_BYTES);
    let mut used = 0;
    while used < bytes.len() {
        let byte = at + used as u32;
        let (key, consumed) =
            Key::decode(&bytes[used..]).map_err(|error| BsetError::BadKey { byte, error })?;
        if keys
            .last()
            .is_some_and(|last| last.cmp_position(&key).is_gt())
        {
            return Err(BsetError::Unordered { byte });
        }
        keys.push(key);
        used += consumed;
    }
    Ok(keys)
}

/// Calls `f` for every key of a node's runs: the byte where it begins, from the start of the node,
/// and which run it is of.
pub fn each_key(sets: &[Vec<Key>], block_sectors: u32, mut f: impl FnMut(u32, usize, &Key)) {
    let block_bytes = block_sectors * SECTOR_BYTES as u32;
    let mut set_at = 0;
    for (i, set) in sets.iter().enumerate() {
        let mut at = set_at + HEADER_BYTES as u32;
        for key in set {
            f(at, i, key);
            at += key.encoded_bytes() as u32;
        }
        set_at += set_blocks(key::encoded_bytes(set), block_sectors) * block_bytes;
    }
}

/// Where the key begins, from the start of the node, of which `part` is all or a part.
pub fn byte_of_part(sets: &[Vec<Key>], block_sectors: u32, part: &Key) -> Option<u32> {
    let is_it = |key: &Key| {
        key.inode == part.inode
            && key.start() <= part.start()
            && key.end >= part.end
            && key.cut_front(part.start()).ptr == part.ptr
    };
    let mut found = None;
    each_key(sets, block_sectors, |at, _, key| {
        if is_it(key) {
            found = Some(at);
        }
    });
    found
}

/// Writes the right checksum over the run at the start of `bytes`, as long as its header says or
/// as there are bytes: for who changes a node by hand.
pub fn reseal(bytes: &mut [u8], ptr: Ptr) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let end = HEADER_BYTES as u64 + 8 * u64::from(u32_at(bytes, AT_KEYS));
    let end = end.min(bytes.len() as u64) as usize;
    let start = match u32_at(bytes, AT_VERSION) {
        VERSION_PLAIN => START,
        _ => ptr.raw(),
    };
    let sum = crc64_from(start, &bytes[8..end]);
    put(bytes, 0, &sum.to_le_bytes());
}

/// The header of a run without keys that bears the number of a node, as it stands in memory before the
/// run is written: without a checksum, of version 0.
pub fn empty_header(set_magic: u64, seq: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    put(&mut header, AT_MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
    put(&mut header, AT_SEQ, &seq.to_le_bytes());
    header
}

/// Appends one run to `out`, padded with zeros to whole blocks; returns the blocks it took.
///
/// `seq` is the node's (not zero), `ptr` the pointer by which the parent knows the node. `keys`
/// are in order, and not empty unless the run is the node's first.
pub fn set_encode(
    seq: u64,
    ptr: Ptr,
    set_magic: u64,
    keys: &[Key],
    block_sectors: u32,
    out: &mut Vec<u8>,
) -> u32 {
    debug_assert!(seq != 0, "a node's sequence number is never zero");
    debug_assert!(
        keys.windows(2)
            .all(|pair| pair[0].cmp_position(&pair[1]).is_le()),
        "keys out of order"
    );
    let key_bytes = key::encoded_bytes(keys);
    let blocks = set_blocks(key_bytes, block_sectors);
    let base = out.len();
    let end = base + blocks as usize * block_sectors as usize * SECTOR_BYTES;
    out.reserve(end - base);
    out.resize(base + HEADER_BYTES, 0);
    for key in keys {
        key.encode(out);
    }
    let set = &mut out[base..];
    put(set, AT_MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
    put(set, AT_SEQ, &seq.to_le_bytes());
    put(set, AT_VERSION, &VERSION_SEEDED.to_le_bytes());
    put(set, AT_KEYS, &((key_bytes / 8) as u32).to_le_bytes());
    let sum = crc64_from(ptr.raw(), &set[8..]);
    put(set, 0, &sum.to_le_bytes());
    out.resize(end, 0);
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Gen, Inode, Sector};
    use proptest::prelude::*;

    const MAGIC_OF_SET: u64 = 0x1122_3344_5566_7788;
    const BLOCK: usize = SECTOR_BYTES;

    fn node_ptr() -> Ptr {
        Ptr::new(0, Sector(640), Gen(3))
    }

    fn extent(end: u64) -> Key {
        let ptr = Some(Ptr::new(0, Sector(64 + end), Gen(1)));
        Key {
            inode: Inode(1),
            end: Sector(end),
            size_sectors: 4,
            dirty: true,
            ptr,
        }
    }

    /// A node of eight blocks: a run of 30 keys (two blocks), one of a single key, free space.
    fn node() -> Vec<u8> {
        let mut bytes = Vec::new();
        let first: Vec<Key> = (1..=30).map(|i| extent(i * 8)).collect();
        assert_eq!(
            set_encode(77, node_ptr(), MAGIC_OF_SET, &first, 1, &mut bytes),
            2
        );
        assert_eq!(
            set_encode(77, node_ptr(), MAGIC_OF_SET, &[extent(9)], 1, &mut bytes),
            1
        );
        bytes.resize(8 * BLOCK, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<NodeImage, BsetError> {
        node_read(bytes, MAGIC_OF_SET, node_ptr(), 1)
    }

    /// Writes a right checksum over the run at `block`.
    fn reseal(bytes: &mut [u8], block: usize) {
        super::reseal(&mut bytes[block * BLOCK..], node_ptr());
    }

    /// The error of a node in which `value` was written at `offset` of the run at `block`.
    fn damaged(block: usize, offset: usize, value: &[u8], seal: bool) -> Option<BsetError> {
        let mut bytes = node();
        put(&mut bytes, block * BLOCK + offset, value);
        if seal {
            reseal(&mut bytes, block);
        }
        read(&bytes).err()
    }

    #[test]
    fn a_node_comes_back_as_it_went() {
        let node = read(&node()).unwrap();
        assert_eq!((node.seq, node.written_blocks), (77, 3));
        assert_eq!(node.sets.iter().map(Vec::len).collect::<Vec<_>>(), [30, 1]);
        assert_eq!(node.sets[1], [extent(9)]);
    }

    #[test]
    fn a_full_node_has_no_free_space_to_look_at() {
        let bytes = node();
        assert_eq!(read(&bytes[..3 * BLOCK]).unwrap().written_blocks, 3);
        let cut = read(&bytes[..BLOCK]);
        assert_eq!(cut, Err(BsetError::TooLong { byte: 0 }));
    }

    #[test]
    fn the_plain_checksum_of_version_0_is_read() {
        let mut bytes = node();
        for block in [0, 2] {
            put(&mut bytes, block * BLOCK + AT_VERSION, &[0]);
            reseal(&mut bytes, block);
        }
        assert_eq!(read(&bytes), read(&node()));
    }

    #[test]
    fn every_damage_has_its_own_error() {
        assert_eq!(read(&[]), Err(BsetError::BadLength { bytes: 0 }));
        assert_eq!(
            read(&node()[..700]),
            Err(BsetError::BadLength { bytes: 700 })
        );
        assert_eq!(damaged(0, AT_SEQ, &[0], true), Some(BsetError::NoSeq));
        assert_eq!(
            damaged(2, AT_MAGIC, &[1], true),
            Some(BsetError::BadMagic { byte: 1024 })
        );
        let unknown = BsetError::UnknownVersion {
            byte: 1024,
            version: 2,
        };
        assert_eq!(damaged(2, AT_VERSION, &[2], true), Some(unknown));
        let huge = u32::MAX.to_le_bytes();
        assert_eq!(
            damaged(2, AT_KEYS, &huge, false),
            Some(BsetError::TooLong { byte: 1024 })
        );
        assert_eq!(
            damaged(2, AT_KEYS, &[0], true),
            Some(BsetError::EmptySet { byte: 1024 })
        );
        assert!(matches!(
            damaged(2, HEADER_BYTES, &[9], false),
            Some(BsetError::BadChecksum { byte: 1024, .. })
        ));
        let bad_key = BsetError::BadKey {
            byte: 1024 + HEADER_BYTES as u32,
            error: KeyError::NotAKey,
        };
        assert_eq!(damaged(2, HEADER_BYTES + 7, &[0], true), Some(bad_key));
        let unordered = BsetError::Unordered {
            byte: (HEADER_BYTES + 24) as u32,
        };
        assert_eq!(damaged(0, HEADER_BYTES + 8, &[200], true), Some(unordered));
    }

    #[test]
    fn a_run_that_lost_its_predecessor_is_noticed() {
        let mut bytes = node();
        bytes.copy_within(2 * BLOCK..3 * BLOCK, 6 * BLOCK);
        assert_eq!(read(&bytes), Err(BsetError::StraySet { byte: 3072 }));
    }

    #[test]
    fn another_pointer_or_set_reads_nothing() {
        let moved = Ptr::new(0, Sector(640), Gen(4));
        let read = node_read(&node(), MAGIC_OF_SET, moved, 1);
        assert!(matches!(read, Err(BsetError::BadChecksum { byte: 0, .. })));
        let read = node_read(&node(), MAGIC_OF_SET + 1, node_ptr(), 1);
        assert_eq!(read, Err(BsetError::BadMagic { byte: 0 }));
    }

    #[test]
    fn what_an_older_node_left_behind_is_not_taken_for_a_part() {
        let mut bytes = node();
        bytes.truncate(3 * BLOCK);
        set_encode(76, node_ptr(), MAGIC_OF_SET, &[extent(8)], 1, &mut bytes);
        assert_eq!(read(&bytes).unwrap().sets.len(), 2);
    }

    #[test]
    fn a_torn_tail_leaves_the_runs_before_it() {
        let mut bytes = node();
        bytes[2 * BLOCK + HEADER_BYTES + 3] ^= 1;
        let (node, error) = node_salvage(&bytes, MAGIC_OF_SET, node_ptr(), 1);
        assert_eq!((node.seq, node.written_blocks, node.sets.len()), (77, 2, 1));
        assert!(matches!(
            error,
            Some(BsetError::BadChecksum { byte: 1024, .. })
        ));
    }

    #[test]
    fn keys_are_found_where_they_stand() {
        let node = read(&node()).unwrap();
        let mut places = Vec::new();
        each_key(&node.sets, 1, |at, set, _| places.push((at, set)));
        assert_eq!(places.len(), 31);
        assert_eq!((places[1], places[30]), ((32 + 24, 0), (1024 + 32, 1)));
        let half = extent(16).cut_front(Sector(14));
        assert_eq!(byte_of_part(&node.sets, 1, &half), Some(32 + 24));
        assert_eq!(byte_of_part(&node.sets, 1, &extent(7)), None);
    }

    #[test]
    fn an_empty_first_run_is_a_node_without_keys() {
        let mut bytes = Vec::new();
        assert_eq!(
            set_encode(5, node_ptr(), MAGIC_OF_SET, &[], 8, &mut bytes),
            1
        );
        bytes.resize(16 * BLOCK, 0);
        let node = node_read(&bytes, MAGIC_OF_SET, node_ptr(), 8).unwrap();
        assert_eq!((node.written_blocks, node.sets), (1, vec![vec![]]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2048), blocks in 0..4usize,
            block_sectors in 0..4u32, at in 0..3 * BLOCK, value: u8, seal: bool,
        ) {
            let _ = node_read(&bytes, MAGIC_OF_SET, node_ptr(), block_sectors);
            let _ = node_read(&vec![value; blocks * BLOCK], MAGIC_OF_SET, node_ptr(), 1);
            let mut bytes = node();
            bytes[at] = value;
            if seal && u32_at(&bytes, AT_KEYS) < 100 {
                reseal(&mut bytes, 0);
            }
            let _ = read(&bytes);
        }
    }
}
