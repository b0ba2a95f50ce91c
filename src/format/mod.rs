//! The bytes on disk: Linux bcache's own format, read and written.
//!
//! Pure functions over byte slices: no I/O, no clock, no global state. Whatever stands on the
//! disk, nothing here panics; lengths are checked before arithmetic, and every way in which a
//! structure can be damaged is an error variant of its own whose text says what is wrong.
//! Every magic number and byte offset of the project lives below this module.
//!
//! | module | structure | where it stands |
//! |---|---|---|
//! | [`superblock`] | what a device is | sector 8 |
//! | [`jset`] | a journal entry | the journal buckets |
//! | [`bset`] | a sorted run of keys; a btree node is a log of them | the node's bucket |
//! | [`merge`] | what the runs of one node amount to | (memory) |
//! | [`linux`] | what Linux makes of the runs of a leaf, and whether that has room | (memory) |
//! | [`prio`] | priorities and generations of all buckets | a chain of buckets |
//! | [`uuids`] | the volumes of a set | one bucket |
//! | [`key`] | an extent, a child, or a deletion | within the others |
//! | [`crc`] | the checksum of all of them | |
//!
//! All integers are little-endian. A sector is 512 bytes.

pub mod bset;
pub mod crc;
pub mod jset;
pub mod key;
pub mod linux;
pub mod merge;
pub mod prio;
pub mod superblock;
pub mod uuids;

/// Reads an u16 at `offset`, which the caller knows to be inside.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// Reads an u32 at `offset`, which the caller knows to be inside.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

/// Reads an u64 at `offset`, which the caller knows to be inside.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// Reads `N` bytes at `offset`, which the caller knows to be inside.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

/// Overwrites the bytes at `offset`, which the caller knows to be inside.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// Whether `n` is an allowed block size in sectors: a power of two up to a page.
pub(crate) fn is_block_size(sectors: u32) -> bool {
    sectors.is_power_of_two() && sectors <= crate::limits::PAGE_SECTORS
}
