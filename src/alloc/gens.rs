//! What a read hit needs to know of buckets: their generations, and the time of their last use.
//!
//! Shared by all reactors. Generations are written by the owner alone, the time of use by anyone:
//! it is a hint, and a lost update of it harms nothing.
//!
//! Why the generation is enough: a bucket's generation is raised *before* the bucket can be
//! written over. A reader that finds the generation of its pointer before its read and again after
//! the data have arrived has read what the pointer meant.
//!
//! Data may be plain memory that one reactor copies from and another one to, without any atomic
//! between them, so both sides have a fence: the reader before it looks at the generation again, the
//! one who was given the bucket before it writes there ([`Gens::granted`]). On x86 they cost nothing
//! but an order that the compiler has to keep.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, fence};

use crate::index::prefetch;
use crate::stats::Apart;
use crate::task::{Work, breathe, scrap, work};
use crate::units::{BucketNr, Gen};

/// log2 of the buckets of a piece, which is made and dropped in one step: 96 KiB of memory, less where
/// steps are checked.
const PIECE_SHIFT: u32 = if cfg!(debug_assertions) { 8 } else { 15 };
const PIECE: usize = 1 << PIECE_SHIFT;
const _: () = assert!(3 * PIECE <= Work::Bytes.slice());

/// Generations and times of use of some buckets.
struct Piece {
    generations: Box<[AtomicU8]>,
    used_at: Box<[AtomicU16]>,
}

impl Piece {
    fn new(buckets: usize) -> Piece {
        Piece {
            generations: (0..buckets).map(|_| AtomicU8::new(0)).collect(),
            used_at: (0..buckets).map(|_| AtomicU16::new(0)).collect(),
        }
    }
}

/// Generations and times of use of all buckets: 3 bytes each.
pub struct Gens {
    pieces: Vec<Piece>,
    nbuckets: usize,
    clock: AtomicU16,
    /// Sectors of I/O since the clock last moved.
    traffic_sectors: Apart<AtomicU64>,
    bucket_shift: u32,
}

impl Gens {
    /// All generations 0, for `nbuckets` buckets of a power of two of sectors. For few buckets:
    /// see [`make`](Self::make).
    pub fn new(nbuckets: usize, bucket_sectors: u32) -> Gens {
        let mut gens = Gens::begin(nbuckets, bucket_sectors);
        while gens.grow() > 0 {}
        gens
    }

    /// As [`new`](Self::new), in bounded steps.
    pub async fn make(nbuckets: usize, bucket_sectors: u32) -> Gens {
        let mut gens = Gens::begin(nbuckets, bucket_sectors);
        loop {
            let buckets = gens.grow();
            if buckets == 0 {
                return gens;
            }
            work(Work::Bytes, 3 * buckets);
            breathe().await;
        }
    }

    fn begin(nbuckets: usize, bucket_sectors: u32) -> Gens {
        Gens {
            pieces: Vec::with_capacity(nbuckets.div_ceil(PIECE)),
            nbuckets,
            clock: AtomicU16::new(0),
            traffic_sectors: Apart(AtomicU64::new(0)),
            bucket_shift: bucket_sectors.trailing_zeros(),
        }
    }

    /// Adds a piece. Returns of how many buckets; 0 when all are there.
    fn grow(&mut self) -> usize {
        let left = self.nbuckets.saturating_sub(self.pieces.len() * PIECE);
        let buckets = left.min(PIECE);
        if buckets > 0 {
            self.pieces.push(Piece::new(buckets));
        }
        buckets
    }

    #[inline]
    fn generation_of(&self, bucket: BucketNr) -> &AtomicU8 {
        &self.pieces[bucket.index() >> PIECE_SHIFT].generations[bucket.index() % PIECE]
    }

    #[inline]
    fn used_at(&self, bucket: BucketNr) -> &AtomicU16 {
        &self.pieces[bucket.index() >> PIECE_SHIFT].used_at[bucket.index() % PIECE]
    }

    /// The bucket that holds a sector of the cache device.
    #[inline]
    pub fn bucket_of(&self, sector: crate::units::Sector) -> BucketNr {
        BucketNr((sector.0 >> self.bucket_shift) as u32)
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.nbuckets
    }

    /// Whether there is no bucket at all.
    pub fn is_empty(&self) -> bool {
        self.nbuckets == 0
    }

    /// The generation now. All reads of this thread before it come before, those after it after it.
    #[inline]
    pub fn generation(&self, bucket: BucketNr) -> Gen {
        fence(Ordering::Acquire);
        Gen(self.generation_of(bucket).load(Ordering::Acquire))
    }

    /// Fetches what is known of a bucket.
    #[inline]
    pub fn prefetch(&self, bucket: BucketNr) {
        prefetch(self.generation_of(bucket));
        prefetch(self.used_at(bucket));
    }

    /// Sets a generation: the owner, before the bucket is given away anew.
    pub fn set_generation(&self, bucket: BucketNr, generation: Gen) {
        self.generation_of(bucket)
            .store(generation.0, Ordering::Release);
    }

    /// To be called by who was given buckets, before it writes to them: who reads what it writes
    /// finds the generation raised.
    #[inline]
    pub fn granted(&self) {
        fence(Ordering::Release);
    }

    /// Notes that the bucket is of use.
    #[inline]
    pub fn touch(&self, bucket: BucketNr) {
        let now = self.clock.load(Ordering::Relaxed);
        let slot = self.used_at(bucket);
        // A store only when something changes: the line stays shared between reactors.
        if slot.load(Ordering::Relaxed) != now {
            slot.store(now, Ordering::Relaxed);
        }
    }

    /// How long ago, in ticks of the clock, the bucket was last of use.
    pub fn age(&self, bucket: BucketNr) -> u16 {
        let used = self.used_at(bucket).load(Ordering::Relaxed);
        self.clock.load(Ordering::Relaxed).wrapping_sub(used)
    }

    /// Sets an age, when priorities are read from the disk.
    pub fn set_age(&self, bucket: BucketNr, age: u16) {
        let now = self.clock.load(Ordering::Relaxed);
        self.used_at(bucket)
            .store(now.wrapping_sub(age), Ordering::Relaxed);
    }

    /// Counts I/O; the clock ticks once for every 1024th of the cache's size, as priorities of the
    /// kernel do. Called by the owner in coarse steps.
    pub fn tick(&self, sectors: u64) {
        let step = ((self.len() as u64) << self.bucket_shift) / 1024;
        let traffic = &self.traffic_sectors.0;
        let sum = traffic.fetch_add(sectors, Ordering::Relaxed) + sectors;
        if sum >= step.max(1) {
            traffic.store(0, Ordering::Relaxed);
            self.clock.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Gens {
    fn drop(&mut self) {
        scrap(std::mem::take(&mut self.pieces), 1);
    }
}

/// The argument at the head, with every interleaving and every value that a load may return.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64};
    use loom::thread;

    const BUCKET: BucketNr = BucketNr(0);

    /// A bucket, the word of data in it, and the ring that its grant goes through.
    struct Cache {
        gens: Gens,
        data: AtomicU64,
        grant: AtomicBool,
    }

    impl Cache {
        fn new() -> Arc<Cache> {
            Arc::new(Cache {
                gens: Gens::new(1, 8),
                data: AtomicU64::new(0),
                grant: AtomicBool::new(false),
            })
        }

        /// A read hit through a pointer of generation 0: what was read, if it counts.
        fn read(&self) -> Option<u64> {
            if self.gens.generation(BUCKET) != Gen(0) {
                return None;
            }
            let data = self.data.load(Ordering::Relaxed);
            (self.gens.generation(BUCKET) == Gen(0)).then_some(data)
        }

        /// The owner takes the bucket away and gives it to a reactor.
        fn give_away(&self) {
            self.gens.set_generation(BUCKET, Gen(1));
            self.grant.store(true, Ordering::Release);
        }

        /// The reactor writes to it, if it has come.
        fn write_over(&self) {
            if self.grant.load(Ordering::Acquire) {
                self.gens.granted();
                self.data.store(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn a_read_counts_only_if_the_bucket_was_not_written_over() {
        loom::model(|| {
            let cache = Cache::new();
            let theirs = cache.clone();
            let reader = thread::spawn(move || assert!(matches!(theirs.read(), None | Some(0))));
            cache.give_away();
            cache.write_over();
            reader.join().unwrap();
        });
    }

    #[test]
    fn nor_by_a_third_reactor() {
        loom::model(|| {
            let cache = Cache::new();
            let (one, other) = (cache.clone(), cache.clone());
            let reader = thread::spawn(move || assert!(matches!(one.read(), None | Some(0))));
            let writer = thread::spawn(move || other.write_over());
            cache.give_away();
            reader.join().unwrap();
            writer.join().unwrap();
        });
    }
}
