//! The owner's table of buckets, and exact counts of them.
//!
//! 12 bytes a bucket, in pieces that are made and dropped one a step.

use super::{Census, Use};
use crate::task::{Work, breathe, scrap, work};
use crate::units::{BucketNr, Gen};

/// log2 of the buckets of a piece: 96 KiB, less where steps are checked.
const PIECE_SHIFT: u32 = if cfg!(debug_assertions) { 8 } else { 13 };
const PIECE: usize = 1 << PIECE_SHIFT;

/// What the owner knows of a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) live_sectors: u32,
    pub(super) dirty_sectors: u32,
    pub(super) pins: u16,
    pub(super) state: Use,
    /// No pointer to this bucket, in memory or on disk, has an older generation.
    pub(super) oldest: Gen,
}

const _: () = assert!(size_of::<Bucket>() == 12);
const _: () = assert!(size_of::<Bucket>() * PIECE <= Work::Bytes.slice());

/// What buckets are counted by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Free, or about to be.
    Free,
    /// Of data, without any.
    Empty,
    Clean,
    Dirty,
    Meta,
}

impl Bucket {
    fn kind(&self) -> Kind {
        match self.state {
            Use::Meta => Kind::Meta,
            Use::Free | Use::Invalid => Kind::Free,
            Use::Data if self.dirty_sectors > 0 => Kind::Dirty,
            Use::Data if self.live_sectors > 0 => Kind::Clean,
            Use::Data => Kind::Empty,
        }
    }
}

/// All buckets.
pub(super) struct Table {
    pieces: Vec<Box<[Bucket]>>,
    /// Buckets of each [`Kind`].
    counts: [u64; 5],
}

impl Table {
    /// A table in which the buckets before `data_start` are metadata and all others `rest`, made in
    /// bounded steps. `oldest` tells the generation of a bucket.
    pub(super) async fn make(
        nbuckets: usize,
        data_start: BucketNr,
        rest: Use,
        oldest: impl Fn(BucketNr) -> Gen,
    ) -> Table {
        let begins_as = |b: usize| Bucket {
            live_sectors: 0,
            dirty_sectors: 0,
            pins: 0,
            state: if b < data_start.index() {
                Use::Meta
            } else {
                rest
            },
            oldest: oldest(BucketNr(b as u32)),
        };
        let mut table = Table {
            pieces: Vec::with_capacity(nbuckets.div_ceil(PIECE)),
            counts: [0; 5],
        };
        for from in (0..nbuckets).step_by(PIECE) {
            let buckets = from..nbuckets.min(from + PIECE);
            work(Work::Bytes, buckets.len() * size_of::<Bucket>());
            table.pieces.push(buckets.map(begins_as).collect());
            breathe().await;
        }
        let meta = data_start.index().min(nbuckets) as u64;
        table.counts[Kind::Meta as usize] = meta;
        let rest = match rest {
            Use::Data => Kind::Empty,
            Use::Meta => Kind::Meta,
            Use::Free | Use::Invalid => Kind::Free,
        };
        table.counts[rest as usize] += nbuckets as u64 - meta;
        table
    }

    pub(super) fn get(&self, bucket: BucketNr) -> &Bucket {
        &self.pieces[bucket.index() >> PIECE_SHIFT][bucket.index() % PIECE]
    }

    /// Changes a bucket, and the counts with it.
    pub(super) fn change<R>(&mut self, bucket: BucketNr, f: impl FnOnce(&mut Bucket) -> R) -> R {
        let slot = &mut self.pieces[bucket.index() >> PIECE_SHIFT][bucket.index() % PIECE];
        let before = slot.kind();
        let result = f(slot);
        let after = slot.kind();
        if before != after {
            self.counts[before as usize] -= 1;
            self.counts[after as usize] += 1;
        }
        result
    }

    /// Buckets from a number on, to the end of their piece at most; `None` behind the last.
    pub(super) fn some_from(&self, from: usize, most: usize) -> Option<&[Bucket]> {
        let piece = self.pieces.get(from >> PIECE_SHIFT)?;
        let at = from % PIECE;
        let end = piece.len().min(at.saturating_add(most));
        (at < end).then(|| &piece[at..end])
    }

    pub(super) fn census(&self) -> Census {
        let count = |kind: Kind| self.counts[kind as usize];
        Census {
            free: count(Kind::Free) + count(Kind::Empty),
            clean: count(Kind::Clean),
            dirty: count(Kind::Dirty),
            metadata: count(Kind::Meta),
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        scrap(std::mem::take(&mut self.pieces), 2);
    }
}
