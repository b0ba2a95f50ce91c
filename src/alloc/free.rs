//! The free list, and in which order its buckets are taken.
//!
//! Linux starts a set with the free buckets that it finds, except those that a needed journal entry
//! names: it pins these until it has replayed the entry, and a leaf that splits before then waits for
//! ever. So what stays behind on the free list, where a cache is full, must be what no needed entry
//! names:
//!
//! - The bucket that became free last is taken first. An entry that names a bucket is older than the
//!   moment in which the bucket became free, so those that have been free longest are the first that
//!   none names any more.
//! - After a start the entries that were replayed are needed for a while. The buckets that they name
//!   become free last ([`Replayed`]).
//! - Buckets that were never used since the set was made are named by none, and are taken last. They
//!   stand here as one range, so the list of a new set takes no memory.

use std::ops::Range;

use crate::units::{BucketNr, JournalSeq};

/// Free buckets.
#[derive(Default)]
pub(super) struct FreeList {
    fresh: Range<u32>,
    others: Vec<BucketNr>,
}

impl FreeList {
    /// A list of the buckets in a range of numbers, which were never used.
    pub(super) fn of(fresh: Range<u32>) -> FreeList {
        FreeList {
            fresh,
            others: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.others.len()
    }

    pub(super) fn push(&mut self, bucket: BucketNr) {
        self.others.push(bucket);
    }

    pub(super) fn pop(&mut self) -> Option<BucketNr> {
        let last = self.others.pop();
        last.or_else(|| self.fresh.next().map(BucketNr))
    }
}

/// Some of all buckets: one bit each.
#[derive(Default)]
pub(super) struct Marked {
    bits: Vec<u64>,
}

impl Marked {
    /// One more, of a device of so many.
    pub(super) fn add(&mut self, bucket: BucketNr, nbuckets: usize) {
        if self.bits.is_empty() {
            self.bits = vec![0; nbuckets.div_ceil(64)];
        }
        self.bits[bucket.index() / 64] |= 1 << (bucket.index() % 64);
    }

    /// Whether a bucket is one of them.
    pub(super) fn has(&self, bucket: BucketNr) -> bool {
        let word = self.bits.get(bucket.index() / 64);
        word.is_some_and(|word| word >> (bucket.index() % 64) & 1 != 0)
    }
}

/// The buckets that the entries name which were replayed at the start.
#[derive(Default)]
pub(super) struct Replayed {
    buckets: Marked,
    newest: JournalSeq,
}

impl Replayed {
    /// An entry names a bucket of a device of so many.
    pub(super) fn note(&mut self, bucket: BucketNr, seq: JournalSeq, nbuckets: usize) {
        self.buckets.add(bucket, nbuckets);
        self.newest = self.newest.max(seq);
    }

    /// Whether one of the entries names a bucket.
    pub(super) fn names(&self, bucket: BucketNr) -> bool {
        self.buckets.has(bucket)
    }

    /// A crash would replay the journal from entry `first` on: forgets the entries before.
    pub(super) fn needed_from(&mut self, first: JournalSeq) {
        if first > self.newest {
            self.buckets = Marked::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_that_became_free_last_is_taken_first_and_one_never_used_last() {
        let mut list = FreeList::of(7..9);
        list.push(BucketNr(3));
        list.push(BucketNr(2));
        assert_eq!(list.len(), 4);
        let taken: Vec<u32> = std::iter::from_fn(|| list.pop()).map(|b| b.0).collect();
        assert_eq!(taken, [2, 3, 7, 8]);
    }

    #[test]
    fn buckets_are_named_until_the_last_entry_that_was_replayed_is_not_needed() {
        let mut replayed = Replayed::default();
        assert!(!replayed.names(BucketNr(70)));
        replayed.note(BucketNr(70), JournalSeq(4), 100);
        replayed.note(BucketNr(99), JournalSeq(5), 100);
        let named = |replayed: &Replayed| (0..100).filter(|&b| replayed.names(BucketNr(b))).count();
        replayed.needed_from(JournalSeq(5));
        assert!(replayed.names(BucketNr(70)) && named(&replayed) == 2);
        replayed.needed_from(JournalSeq(6));
        assert_eq!(named(&replayed), 0);
    }
}
