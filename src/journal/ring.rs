//! Where journal entries go: the journal's buckets as a ring of blocks. Pure bookkeeping.
//!
//! Invariants:
//! - Entries stand one after another in a bucket, buckets follow each other in the ring's order,
//!   so that a reader finds the newest by the buckets' first entries.
//! - A bucket is written over only when an entry *on disk* says that everything in it is no longer
//!   needed ([`Ring::durable_last`]); what memory knows beyond that is not enough, because the
//!   entry that would say so may be torn.
//! - Entries with keys leave `Ring::meta_reserve` blocks, so that entries without keys, which
//!   move `durable_last` on and carry a new root, can always be written.

use crate::limits::MAX_JSET_BYTES;
use crate::units::{BucketNr, JournalSeq, SECTOR_BYTES, Sector};

/// Blocks kept for entries without keys, but never more than three quarters of all buckets but one
/// (which is the most that can be free). A round of the
/// btree's writer needs one for a new root, and one for every writing of the priorities that it
/// waits for; each such entry moves `durable_last` on as far as the leaves written until then
/// allow.
const META_RESERVE_BLOCKS: u32 = 64;

/// One bucket of the ring.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The bucket.
    pub bucket: BucketNr,
    /// The newest entry in it; 0 when it holds none.
    pub newest: JournalSeq,
}

/// A place for one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    slot: usize,
    /// First block within the bucket.
    block: u32,
    /// How long the entry may be at most.
    pub blocks_max: u32,
}

/// The ring of journal buckets.
#[derive(Debug)]
pub struct Ring {
    slots: Vec<Slot>,
    current: usize,
    used_blocks: u32,
    bucket_blocks: u32,
    block_sectors: u32,
    bucket_sectors: u32,
    /// The oldest entry that the newest entry on disk still needs.
    pub durable_last: JournalSeq,
}

impl Ring {
    /// A ring whose next entry goes behind `used_blocks` of slot `current`.
    pub fn new(
        slots: Vec<Slot>,
        current: usize,
        used_blocks: u32,
        block_sectors: u32,
        bucket_sectors: u32,
        durable_last: JournalSeq,
    ) -> Ring {
        assert!(slots.len() >= 2, "a journal has at least two buckets");
        Ring {
            slots,
            current,
            used_blocks,
            bucket_blocks: bucket_sectors / block_sectors,
            block_sectors,
            bucket_sectors,
            durable_last,
        }
    }

    /// All blocks of the ring.
    pub fn total_blocks(&self) -> u32 {
        self.slots.len() as u32 * self.bucket_blocks
    }

    fn meta_reserve(&self) -> u32 {
        let can_be_free = self.total_blocks() - self.bucket_blocks;
        META_RESERVE_BLOCKS.min(can_be_free * 3 / 4).max(1)
    }

    fn reusable(&self, slot: usize) -> bool {
        self.unneeded(slot, self.durable_last)
    }

    fn unneeded(&self, slot: usize, last: JournalSeq) -> bool {
        self.slots[slot].newest < last || self.slots[slot].newest.0 == 0
    }

    fn next(&self, slot: usize) -> usize {
        (slot + 1) % self.slots.len()
    }

    /// How many buckets after `slot` may be written over.
    fn reusable_after(&self, slot: usize) -> u32 {
        self.unneeded_after(slot, self.durable_last)
    }

    fn unneeded_after(&self, slot: usize, last: JournalSeq) -> u32 {
        let (mut n, mut at) = (0, self.next(slot));
        while at != slot && at != self.current && self.unneeded(at, last) {
            n += 1;
            at = self.next(at);
        }
        n
    }

    /// Blocks that could be written now.
    pub fn free_blocks(&self) -> u32 {
        self.bucket_blocks - self.used_blocks
            + self.reusable_after(self.current) * self.bucket_blocks
    }

    /// Whether so little is free that what can wait must.
    pub fn is_low(&self) -> bool {
        self.free_blocks() <= self.meta_reserve() / 2 + 1
    }

    /// A place for an entry with keys, or `None` when the ring is too full for one.
    pub fn place_keys(&self) -> Option<Place> {
        let entry_max = MAX_JSET_BYTES as u32 / (self.block_sectors * SECTOR_BYTES as u32);
        let entry_max = entry_max.clamp(1, self.bucket_blocks);
        let rest = self.bucket_blocks - self.used_blocks;
        // A short rest of a bucket is left, rather than chopping a full buffer into small entries.
        let in_current = rest >= entry_max.div_ceil(4);
        let (slot, block, rest) = if in_current {
            (self.current, self.used_blocks, rest)
        } else if self.reusable_after(self.current) > 0 {
            (self.next(self.current), 0, self.bucket_blocks)
        } else {
            return None;
        };
        let behind = rest
            + if in_current {
                self.reusable_after(self.current) * self.bucket_blocks
            } else {
                (self.reusable_after(self.current) - 1) * self.bucket_blocks
            };
        let blocks_max = entry_max
            .min(rest)
            .min(behind.saturating_sub(self.meta_reserve()));
        (blocks_max > 0).then_some(Place {
            slot,
            block,
            blocks_max,
        })
    }

    /// A place for an entry of one block without keys; may use the reserve.
    pub fn place_meta(&self) -> Option<Place> {
        let (slot, block) = if self.used_blocks < self.bucket_blocks {
            (self.current, self.used_blocks)
        } else if self.reusable_after(self.current) > 0 {
            (self.next(self.current), 0)
        } else {
            return None;
        };
        Some(Place {
            slot,
            block,
            blocks_max: 1,
        })
    }

    /// Whether an entry that says `last` is the oldest needed would make room.
    pub fn would_free(&self, last: JournalSeq) -> bool {
        self.unneeded_after(self.current, last) > self.reusable_after(self.current)
    }

    /// The first sector of a place on the device.
    pub fn sector(&self, place: Place) -> Sector {
        let bucket = self.slots[place.slot].bucket;
        Sector(
            u64::from(bucket.0) * u64::from(self.bucket_sectors)
                + u64::from(place.block) * u64::from(self.block_sectors),
        )
    }

    /// The entry `seq` of so many blocks is about to be written at `place`.
    pub fn take(&mut self, place: Place, blocks: u32, seq: JournalSeq) {
        assert!(blocks <= place.blocks_max && blocks > 0);
        if place.slot != self.current {
            assert!(self.reusable(place.slot), "journal bucket still needed");
            self.current = place.slot;
            self.used_blocks = 0;
        }
        assert_eq!(place.block, self.used_blocks);
        self.used_blocks += blocks;
        self.slots[place.slot].newest = seq;
    }

    /// The newest entry that would have to be unneeded for about a quarter of the ring to become
    /// free; `None` while half of what keys may use is.
    pub fn reclaim_target(&self) -> Option<JournalSeq> {
        let reserve = self.meta_reserve();
        let for_keys = self.free_blocks().saturating_sub(reserve);
        if for_keys > (self.total_blocks() - reserve) / 2 {
            return None;
        }
        let (mut at, mut wanted) = (self.next(self.current), self.slots.len() / 4 + 1);
        let mut target = None;
        while at != self.current && wanted > 0 {
            if !self.reusable(at) {
                target = Some(self.slots[at].newest);
                wanted -= 1;
            }
            at = self.next(at);
        }
        target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(buckets: u32) -> Ring {
        let slots = (0..buckets)
            .map(|b| Slot {
                bucket: BucketNr(b + 1),
                newest: JournalSeq(0),
            })
            .collect();
        Ring::new(slots, 0, 0, 8, 64, JournalSeq(1))
    }

    #[test]
    fn keys_leave_the_reserve_and_meta_entries_use_it() {
        let mut r = ring(2);
        let mut seq = 1;
        while let Some(p) = r.place_keys() {
            r.take(p, p.blocks_max, JournalSeq(seq));
            seq += 1;
        }
        let reserve = r.meta_reserve();
        assert!(r.free_blocks() >= reserve && reserve > 0);
        for _ in 0..reserve {
            let p = r.place_meta().unwrap();
            r.take(p, 1, JournalSeq(seq));
            seq += 1;
        }
    }

    #[test]
    fn room_beyond_a_bucket_that_is_free_already_counts() {
        let mut r = ring(4);
        let mut seq = 1;
        while let Some(p) = r.place_keys() {
            r.take(p, p.blocks_max, JournalSeq(seq));
            seq += 1;
        }
        // The next bucket is free, but belongs to the reserve.
        assert!(r.reusable_after(r.current) > 0 && r.would_free(JournalSeq(seq)));
    }

    #[test]
    fn a_bucket_is_reused_only_after_an_entry_on_disk_allows_it() {
        let mut r = ring(2);
        let p = r.place_keys().unwrap();
        assert_eq!(r.sector(p), Sector(64));
        r.take(p, 8, JournalSeq(1));
        let p = r.place_keys().unwrap();
        r.take(p, p.blocks_max, JournalSeq(2));
        assert!(r.place_keys().is_none());
        assert!(r.would_free(JournalSeq(2)));
        assert_eq!(r.reclaim_target(), Some(JournalSeq(1)));
        r.durable_last = JournalSeq(2);
        assert!(r.place_keys().is_some());
    }
}
