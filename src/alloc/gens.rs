//! What a read hit needs to know of buckets: their generations, and the time of their last use.
//!
//! Shared by all reactors. Generations are written by the owner alone, the time of use by anyone:
//! it is a hint, and a lost update of it harms nothing.
//!
//! Why the generation is enough: a bucket's generation is raised *before* the bucket can be
//! written over. A reader that finds the generation of its pointer before its read and again after
//! the data have arrived has read what the pointer meant.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use crate::units::{BucketNr, Gen};

/// Generations and times of use of all buckets.
pub struct Gens {
    generations: Box<[AtomicU8]>,
    used_at: Box<[AtomicU16]>,
    clock: AtomicU16,
    /// Sectors of I/O since the clock last moved.
    traffic_sectors: AtomicU64,
    bucket_shift: u32,
}

impl Gens {
    /// All generations 0, for `nbuckets` buckets of a power of two of sectors.
    pub fn new(nbuckets: usize, bucket_sectors: u32) -> Gens {
        Gens {
            generations: (0..nbuckets).map(|_| AtomicU8::new(0)).collect(),
            used_at: (0..nbuckets).map(|_| AtomicU16::new(0)).collect(),
            clock: AtomicU16::new(0),
            traffic_sectors: AtomicU64::new(0),
            bucket_shift: bucket_sectors.trailing_zeros(),
        }
    }

    /// The bucket that holds a sector of the cache device.
    #[inline]
    pub fn bucket_of(&self, sector: crate::units::Sector) -> BucketNr {
        BucketNr((sector.0 >> self.bucket_shift) as u32)
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.generations.len()
    }

    /// Whether there is no bucket at all.
    pub fn is_empty(&self) -> bool {
        self.generations.is_empty()
    }

    /// The generation now. Orders all later reads of this thread behind it.
    #[inline]
    pub fn generation(&self, bucket: BucketNr) -> Gen {
        Gen(self.generations[bucket.index()].load(Ordering::Acquire))
    }

    /// Sets a generation: the owner, before the bucket is given away anew.
    pub fn set_generation(&self, bucket: BucketNr, generation: Gen) {
        self.generations[bucket.index()].store(generation.0, Ordering::Release);
    }

    /// Notes that the bucket is of use.
    #[inline]
    pub fn touch(&self, bucket: BucketNr) {
        let now = self.clock.load(Ordering::Relaxed);
        let slot = &self.used_at[bucket.index()];
        // A store only when something changes: the line stays shared between reactors.
        if slot.load(Ordering::Relaxed) != now {
            slot.store(now, Ordering::Relaxed);
        }
    }

    /// How long ago, in ticks of the clock, the bucket was last of use.
    pub fn age(&self, bucket: BucketNr) -> u16 {
        let used = self.used_at[bucket.index()].load(Ordering::Relaxed);
        self.clock.load(Ordering::Relaxed).wrapping_sub(used)
    }

    /// Sets an age, when priorities are read from the disk.
    pub fn set_age(&self, bucket: BucketNr, age: u16) {
        let now = self.clock.load(Ordering::Relaxed);
        self.used_at[bucket.index()].store(now.wrapping_sub(age), Ordering::Relaxed);
    }

    /// Counts I/O; the clock ticks once for every 1024th of the cache's size, as priorities of the
    /// kernel do. Called by the owner in coarse steps.
    pub fn tick(&self, sectors: u64) {
        let step = ((self.len() as u64) << self.bucket_shift) / 1024;
        let sum = self.traffic_sectors.fetch_add(sectors, Ordering::Relaxed) + sectors;
        if sum >= step.max(1) {
            self.traffic_sectors.store(0, Ordering::Relaxed);
            self.clock.fetch_add(1, Ordering::Relaxed);
        }
    }
}
