//! Where journal entries go: the journal's buckets as a ring of blocks. Pure bookkeeping.
//!
//! Invariants:
//! - Entries stand one after another in a bucket, buckets follow each other in the ring's order,
//!   so that a reader finds the newest by the buckets' first entries.
//! - A bucket is written over only when an entry *on disk* says that everything in it is no longer
//!   needed ([`Ring::durable_last`]); what memory knows beyond that is not enough, because the
//!   entry that would say so may be torn.
//! - **The bucket behind the one in use holds nothing that the newest entry on disk needs**, also in a
//!   journal of two buckets. Linux never goes on in a bucket that it did not begin: after a replay it
//!   writes to the next one, and it may have to before it can free any (a root that splits, priorities).
//!   So the next bucket is entered only by an entry that needs nothing of the bucket after that.
//! - **No entry leaves more than [`LIVE_MAX`] entries needed.** Linux counts the holders of an entry in
//!   a table that takes 32,767; keys of entries beyond are replayed without a holder, and are lost if
//!   Linux then crashes.
//! - Entries with keys leave `Ring::meta_reserve` blocks, so that entries without keys, which
//!   move `durable_last` on and carry a new root, can be written until leaves have been.
//!
//! A journal that comes with the next bucket in use (kernels before 5.19 leave such) is gone on with as
//! it is until the invariant holds again.

use crate::limits::MAX_JSET_BYTES;
use crate::units::{BucketNr, JournalSeq, SECTOR_BYTES, Sector};

/// Blocks, and entries, kept for entries without keys, but never more blocks than three quarters of
/// what can be free at once. A round of the
/// btree's writer needs one for a new root, and one for every writing of the priorities that it
/// waits for; each such entry moves `durable_last` on as far as the leaves written until then
/// allow.
const META_RESERVE: u32 = 64;

/// Entries that are needed at once, at most, the newest included. Half of what Linux's table of holders
/// takes: the other half is for the entries that Linux writes while it replays these.
pub const LIVE_MAX: u64 = 16_384;

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
    /// The journal came with the next bucket in use, and that is still so.
    tight: bool,
    /// [`LIVE_MAX`], or more where the journal came with more.
    live_max: u64,
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
        let mut ring = Ring {
            slots,
            current,
            used_blocks,
            bucket_blocks: bucket_sectors / block_sectors,
            block_sectors,
            bucket_sectors,
            durable_last,
            tight: false,
            live_max: LIVE_MAX,
        };
        ring.tight = !ring.reusable(ring.next(current));
        let came_with = ring.live_with_next(durable_last);
        if came_with > LIVE_MAX {
            ring.live_max = came_with + u64::from(META_RESERVE);
        }
        ring
    }

    /// All blocks of the ring.
    pub fn total_blocks(&self) -> u32 {
        self.slots.len() as u32 * self.bucket_blocks
    }

    /// Blocks that are free at once at most: besides the bucket in use and the one behind it, or in
    /// one that was just begun.
    fn can_be_free(&self) -> u32 {
        (self.total_blocks() - 2 * self.bucket_blocks).max(self.bucket_blocks)
    }

    fn meta_reserve(&self) -> u32 {
        META_RESERVE.min(self.can_be_free() * 3 / 4).max(1)
    }

    /// How many entries are needed when one more is written that says `last` is the oldest.
    fn live_with_next(&self, last: JournalSeq) -> u64 {
        let next = self.slots[self.current].newest.0.max(self.durable_last.0) + 1;
        (next + 1).saturating_sub(last.0)
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

    /// How many buckets behind the one in use may be filled, so that one is left behind them.
    fn buckets_ahead(&self) -> u32 {
        let reusable = self.reusable_after(self.current);
        match self.tight {
            true => reusable,
            false => reusable.saturating_sub(1),
        }
    }

    /// Whether an entry that says `last` is the oldest needed may go to the next bucket.
    fn may_enter_next(&self, last: JournalSeq) -> bool {
        let next = self.next(self.current);
        self.reusable(next) && (self.tight || self.unneeded(self.next(next), last))
    }

    /// Blocks that could be written now.
    pub fn free_blocks(&self) -> u32 {
        self.bucket_blocks - self.used_blocks + self.buckets_ahead() * self.bucket_blocks
    }

    /// Whether so little is free that what can wait must.
    pub fn is_low(&self) -> bool {
        self.free_blocks() <= self.meta_reserve() / 2 + 1
    }

    /// A place for an entry with keys that says `last`, or a later one, is the oldest needed; `None`
    /// when the ring is too full for one.
    pub fn place_keys(&self, last: JournalSeq) -> Option<Place> {
        if self.live_with_next(last) + u64::from(META_RESERVE) > LIVE_MAX {
            return None;
        }
        let entry_max = MAX_JSET_BYTES as u32 / (self.block_sectors * SECTOR_BYTES as u32);
        let entry_max = entry_max.clamp(1, self.bucket_blocks);
        let (rest, ahead) = (self.bucket_blocks - self.used_blocks, self.buckets_ahead());
        let place = |slot, block, rest: u32, ahead: u32| {
            let free = rest + ahead * self.bucket_blocks;
            let most = free.saturating_sub(self.meta_reserve());
            let blocks_max = entry_max.min(rest).min(most);
            (blocks_max > 0).then_some(Place {
                slot,
                block,
                blocks_max,
            })
        };
        // A short rest of a bucket is left, rather than chopping a full buffer into small entries.
        let current = match rest >= entry_max.div_ceil(4) {
            true => place(self.current, self.used_blocks, rest, ahead),
            false => None,
        };
        current.or_else(|| {
            let ahead = ahead.saturating_sub(1);
            let next = || place(self.next(self.current), 0, self.bucket_blocks, ahead);
            self.may_enter_next(last).then(next).flatten()
        })
    }

    /// A place for an entry of one block without keys that says `last`, or a later one, is the oldest
    /// needed; may use the reserve.
    pub fn place_meta(&self, last: JournalSeq) -> Option<Place> {
        let (slot, block) = if self.live_with_next(last) > self.live_max {
            return None;
        } else if self.used_blocks < self.bucket_blocks {
            (self.current, self.used_blocks)
        } else if self.may_enter_next(last) {
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

    /// The entry `seq` of so many blocks, which says `last` is the oldest needed, is about to be written
    /// at `place`.
    pub fn take(&mut self, place: Place, blocks: u32, seq: JournalSeq, last: JournalSeq) {
        assert!(blocks <= place.blocks_max && blocks > 0);
        if place.slot != self.current {
            assert!(self.reusable(place.slot), "journal bucket still needed");
            self.current = place.slot;
            self.used_blocks = 0;
        }
        assert_eq!(place.block, self.used_blocks);
        self.used_blocks += blocks;
        self.slots[place.slot].newest = seq;
        let leaves_one = self.unneeded(self.next(self.current), last);
        assert!(
            leaves_one || self.tight,
            "no journal bucket is left to Linux"
        );
        self.tight &= !leaves_one;
        assert!(
            seq.0 - last.0 < self.live_max,
            "more entries than Linux pins"
        );
    }

    /// The newest entry that would have to be unneeded for about a quarter of the ring to become
    /// free; `None` while half of what keys may use is, of blocks and of entries.
    pub fn reclaim_target(&self) -> Option<JournalSeq> {
        let by_entries = (self.live_with_next(self.durable_last) > LIVE_MAX / 2)
            .then(|| JournalSeq(self.durable_last.0 + LIVE_MAX / 4));
        self.reclaim_blocks().max(by_entries)
    }

    fn reclaim_blocks(&self) -> Option<JournalSeq> {
        let reserve = self.meta_reserve();
        let for_keys = self.free_blocks().saturating_sub(reserve);
        if for_keys > self.can_be_free().saturating_sub(reserve) / 2 {
            return None;
        }
        if self.slots.len() == 2 {
            // The other bucket is always free; it can be entered when nothing here is needed.
            return Some(self.slots[self.current].newest).filter(|newest| newest.0 > 0);
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

    fn slots(buckets: u32) -> Vec<Slot> {
        let slot = |b| Slot {
            bucket: BucketNr(b + 1),
            newest: JournalSeq(0),
        };
        (0..buckets).map(slot).collect()
    }

    fn ring(buckets: u32) -> Ring {
        Ring::new(slots(buckets), 0, 0, 8, 64, JournalSeq(1))
    }

    /// Writes entries of keys, of so many blocks at most, while there is a place. None of them is
    /// ever written to leaves. Returns the number of the next.
    fn fill(r: &mut Ring, blocks: u32, mut seq: u64) -> u64 {
        while let Some(p) = r.place_keys(JournalSeq(1)) {
            r.take(p, p.blocks_max.min(blocks), JournalSeq(seq), JournalSeq(1));
            seq += 1;
        }
        seq
    }

    #[test]
    fn keys_leave_the_reserve_and_meta_entries_use_it() {
        for buckets in [2, 3, 8] {
            let mut r = ring(buckets);
            let seq = fill(&mut r, 8, 1);
            let reserve = r.meta_reserve();
            assert!(r.free_blocks() >= reserve && reserve > 0);
            for i in 0..u64::from(reserve) {
                let p = r.place_meta(JournalSeq(1)).unwrap();
                r.take(p, 1, JournalSeq(seq + i), JournalSeq(1));
            }
        }
    }

    /// What Linux finds after a crash at any moment: the bucket behind the newest entry's is free.
    #[test]
    fn a_whole_bucket_stays_free_for_linux() {
        for buckets in [2, 3, 4, 8] {
            for bucket_sectors in [16, 64, 1024] {
                let first = JournalSeq(1);
                let mut r = Ring::new(slots(buckets), 0, 0, 8, bucket_sectors, first);
                let mut seq = fill(&mut r, 1, 1);
                while let Some(p) = r.place_meta(first) {
                    r.take(p, 1, JournalSeq(seq), first);
                    assert!(
                        r.reusable_after(r.current) > 0,
                        "{buckets} {bucket_sectors}"
                    );
                    seq += 1;
                }
                // Full: it goes on as soon as leaves have been written, without an entry in between.
                let p = r
                    .place_meta(JournalSeq(seq))
                    .expect("room in the next bucket");
                r.take(p, 1, JournalSeq(seq), JournalSeq(seq));
            }
        }
    }

    #[test]
    fn a_journal_of_two_buckets_changes_over_when_nothing_is_needed() {
        let mut r = ring(2);
        let seq = fill(&mut r, 8, 1);
        assert_eq!(r.reclaim_target(), Some(JournalSeq(seq - 1)));
        let p = r.place_keys(JournalSeq(seq)).expect("the other bucket");
        assert_eq!((p.slot, p.block), (1, 0));
        r.take(p, 1, JournalSeq(seq), JournalSeq(seq));
        r.durable_last = JournalSeq(seq);
        // The first one is free now, but only for what needs nothing of the second.
        assert!(r.reusable(0) && !r.may_enter_next(JournalSeq(seq)));
        assert!(r.may_enter_next(JournalSeq(seq + 1)));
    }

    #[test]
    fn no_more_entries_than_linux_pins() {
        // Buckets of 512 KiB, blocks of 512 bytes, 256 of them.
        let mut r = Ring::new(slots(256), 0, 0, 1, 1024, JournalSeq(1));
        let seq = fill(&mut r, 1, 1);
        assert!(seq - 1 <= LIVE_MAX - u64::from(META_RESERVE), "{seq}");
        assert_eq!(r.reclaim_target(), Some(JournalSeq(1 + LIVE_MAX / 4)));
        let mut more = 0;
        while let Some(p) = r.place_meta(JournalSeq(1)) {
            r.take(p, 1, JournalSeq(seq + more), JournalSeq(1));
            more += 1;
        }
        assert_eq!(seq - 1 + more, LIVE_MAX);
        assert!(r.place_keys(JournalSeq(1000)).is_some());
    }

    #[test]
    fn a_bucket_is_reused_only_after_an_entry_on_disk_allows_it() {
        let mut r = ring(4);
        let p = r.place_keys(JournalSeq(1)).unwrap();
        assert_eq!(r.sector(p), Sector(64));
        let seq = fill(&mut r, 8, 1);
        assert_eq!(r.reclaim_target(), Some(JournalSeq(1)));
        while let Some(p) = r.place_meta(JournalSeq(1)) {
            r.take(p, 1, JournalSeq(seq), JournalSeq(1));
        }
        assert_eq!(r.current, 2);
        assert!(r.would_free(JournalSeq(3)));
        let p = r
            .place_meta(JournalSeq(3))
            .expect("nothing of the first is needed");
        r.take(p, 1, JournalSeq(seq + 1), JournalSeq(3));
        assert!(!r.reusable(0));
        r.durable_last = JournalSeq(3);
        assert!(r.reusable(0));
    }

    #[test]
    fn a_journal_that_came_tight_is_gone_on_with() {
        let mut all = slots(4);
        for (i, slot) in all.iter_mut().enumerate() {
            slot.newest = JournalSeq(10 + i as u64);
        }
        all[2].newest = JournalSeq(9);
        let mut r = Ring::new(all, 1, 8, 8, 64, JournalSeq(10));
        assert!(!r.tight && !r.may_enter_next(JournalSeq(10)));
        assert!(r.may_enter_next(JournalSeq(14)));
        r = Ring::new(r.slots, 0, 2, 8, 64, JournalSeq(5));
        assert!(r.tight);
        let p = r
            .place_meta(JournalSeq(12))
            .expect("the rest of the bucket");
        r.take(p, 1, JournalSeq(14), JournalSeq(12));
        assert!(!r.tight);
    }
}
