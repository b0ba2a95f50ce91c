//! The bounds that the on-disk format sets, in one place.
//!
//! Every number here is part of the format that Linux reads and writes; none is a tunable.

use crate::units::SECTOR_BYTES;

/// Sectors in a page, which is the largest block size and the smallest bucket size.
pub const PAGE_SECTORS: u32 = 8;
/// Cache devices that a set may name. This engine runs sets of exactly one.
pub const MAX_CACHES_PER_SET: u16 = 8;
/// Pointers that a key may carry here: one cache device, one copy.
pub const MAX_KEY_PTRS: u32 = 1;
/// The longest extent or btree node that one key describes, in sectors.
pub const MAX_KEY_SECTORS: u32 = 0xffff;
/// The highest inode, which the key above every key bears.
pub const MAX_INODE: u32 = 0xf_ffff;
/// The end of the key above every key, in sectors.
pub const MAX_KEY_OFFSET: u64 = (1 << 63) - 1;
/// Positions on a cache device lie below this, in sectors: 43 bits of a pointer.
pub const MAX_PTR_SECTORS: u64 = 1 << 43;

/// Buckets below which a superblock is refused. (Linux itself starts no set under
/// [`MIN_NBUCKETS_STARTED`].)
pub const MIN_NBUCKETS: u64 = 128;
/// Buckets below which Linux does not start a set.
pub const MIN_NBUCKETS_STARTED: u64 = 1024;
/// Buckets that a cache device has at most: bucket numbers are 32 bits in this engine.
pub const MAX_NBUCKETS: u64 = u32::MAX as u64;
/// Sectors before the first bucket that belong to nobody, in which the superblock stands.
pub const RESERVED_SECTORS: u64 = 16;
/// Journal buckets that a superblock can list.
pub const MAX_JOURNAL_BUCKETS: usize = 256;
/// Journal buckets that a set gets at least.
pub const MIN_JOURNAL_BUCKETS: u64 = 2;
/// Blocks of the shortest journal that a set can work with. The smallest set that Linux starts has
/// as many: eight buckets of one block. One entry with keys, one for a new root, one for each writing
/// of the priorities that the writer of the btree may wait for before it has a root to write.
pub const MIN_JOURNAL_BLOCKS: u64 = 8;
/// Bytes of the longest journal entry.
pub const MAX_JSET_BYTES: usize = 32 << 10;

/// A prio set and the uuid table fill a bucket, but never more sectors than this (4 MiB).
pub const MAX_META_BUCKET_SECTORS: u32 = 8192;

/// Generations that a bucket may run ahead of the oldest pointer to it.
pub const MAX_GEN_DISTANCE: u8 = 96;
/// Generations that the pointer to a btree node may be ahead of its bucket as the priorities have it. A
/// start takes empty buckets for nodes before it has written the priorities (`bch_initial_gc_finish`).
pub const NODE_GEN_AHEAD_MAX: u8 = 1;
/// The priority that a bucket of fresh data gets.
pub const INITIAL_PRIO: u16 = 32768;
/// The priority that marks a bucket of a btree node.
pub const BTREE_PRIO: u16 = 65535;

/// The sectors that a prio set or the uuid table take of a bucket of `bucket_sectors`.
pub const fn meta_bucket_sectors(bucket_sectors: u32) -> u32 {
    if bucket_sectors < MAX_META_BUCKET_SECTORS {
        bucket_sectors
    } else {
        MAX_META_BUCKET_SECTORS
    }
}

/// The bytes that a prio set or the uuid table take of a bucket of `bucket_sectors`.
pub const fn meta_bucket_bytes(bucket_sectors: u32) -> usize {
    meta_bucket_sectors(bucket_sectors) as usize * SECTOR_BYTES
}

/// The sectors that a fresh btree node takes of a bucket of `bucket_sectors`: a quarter of its
/// metadata part, but 256 KiB where that is more, and never beyond the bucket.
pub const fn fresh_node_sectors(bucket_sectors: u32) -> u32 {
    const FLOOR: u32 = (256 << 10) / SECTOR_BYTES as u32;
    let whole = meta_bucket_sectors(bucket_sectors);
    if whole <= FLOOR {
        whole
    } else if whole / 4 > FLOOR {
        whole / 4
    } else {
        FLOOR
    }
}

/// The journal buckets that a set of `nbuckets` gets on its first run.
pub const fn journal_buckets(nbuckets: u64) -> u64 {
    let share = nbuckets / 128;
    if share < MIN_JOURNAL_BUCKETS {
        MIN_JOURNAL_BUCKETS
    } else if share > MAX_JOURNAL_BUCKETS as u64 {
        MAX_JOURNAL_BUCKETS as u64
    } else {
        share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_sizes_follow_the_bucket() {
        assert_eq!(fresh_node_sectors(16), 16);
        assert_eq!(fresh_node_sectors(1024), 512);
        assert_eq!(fresh_node_sectors(4096), 1024);
        assert_eq!(fresh_node_sectors(1 << 20), 2048);
        assert_eq!(meta_bucket_bytes(64), 32768);
        assert_eq!(meta_bucket_bytes(1 << 15), 4 << 20);
    }

    #[test]
    fn the_journal_gets_its_share() {
        assert_eq!(journal_buckets(128), 2);
        assert_eq!(journal_buckets(1024), 8);
        assert_eq!(journal_buckets(12288), 96);
        assert_eq!(journal_buckets(1 << 20), 256);
    }
}
