//! Generations and marks of buckets, as Linux has them before it replays the journal.
//!
//! Generations come from the priorities and are raised by every pointer met. Marks say what a bucket
//! is used for. Linux fills its list for priorities with buckets that bear no mark; everything that
//! it allocates afterwards waits for priorities to be written first.

use super::rule::{Refusal, Rule, refuse};
use super::{sectors, stale};
use crate::format::key::{Geometry, Key};
use crate::format::prio;
use crate::format::superblock::CacheSuper;
use crate::limits::{MAX_GEN_DISTANCE, meta_bucket_bytes, meta_bucket_sectors};
use crate::sim::bytes::Image;
use crate::units::{BucketNr, Gen, Sector};

/// What a bucket is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mark {
    /// Nothing that is known.
    None,
    /// Nodes, journal, priorities, the uuid table.
    Meta,
    /// Extents, all of them clean.
    Clean,
    /// Extents, some of them dirty.
    Dirty,
}

#[derive(Clone, Copy)]
struct Bucket {
    generation: Gen,
    /// That of the oldest pointer met.
    oldest: Gen,
    mark: Mark,
    /// The journal has a pointer to it.
    pinned: bool,
}

/// All buckets of a cache device.
pub struct Buckets {
    geometry: Geometry,
    buckets: Vec<Bucket>,
    /// Buckets that the priorities take.
    chain: Vec<BucketNr>,
    fixed: Vec<BucketNr>,
}

impl Buckets {
    /// Reads the priorities, whose chain begins in bucket `first`.
    ///
    /// # Errors
    /// A link of the chain is outside of the device or damaged.
    pub fn read(cache: &dyn Image, sb: &CacheSuper, first: u64) -> Result<Buckets, Refusal> {
        let geometry = sb.geometry();
        let mut found = Buckets {
            geometry,
            buckets: Vec::with_capacity(sb.nbuckets as usize),
            chain: Vec::new(),
            fixed: sb.journal_buckets.clone(),
        };
        let count = meta_bucket_sectors(sb.bucket_sectors);
        let per_bucket = prio::per_bucket(meta_bucket_bytes(sb.bucket_sectors));
        let mut link = first;
        for nr in 0..prio::buckets_needed(sb.nbuckets, per_bucket) {
            if link < geometry.first_bucket.0.into() || link >= sb.nbuckets {
                let what = format!("link {nr} is bucket {link}, outside of the device");
                return Err(refuse(Rule::Prios, what));
            }
            let at = Sector(link * u64::from(sb.bucket_sectors));
            let bytes = sectors(cache, at, count.into()).unwrap_or_default();
            let set = prio::parse(&bytes, sb.set_magic())
                .map_err(|why| refuse(Rule::Prios, format!("link {nr}, bucket {link}: {why}")))?;
            found.chain.push(BucketNr(link as u32));
            let missing = sb.nbuckets as usize - found.buckets.len();
            let entries = set.entries.iter().take(missing);
            found.buckets.extend(entries.map(|&(_, generation)| Bucket {
                generation,
                oldest: generation,
                mark: Mark::None,
                pinned: false,
            }));
            link = set.next_bucket;
        }
        Ok(found)
    }

    /// The generation of a bucket.
    pub fn generation(&self, bucket: BucketNr) -> Gen {
        self.buckets[bucket.index()].generation
    }

    /// Marks the bucket that a key of a node at `level` points to, and raises its generation.
    ///
    /// # Errors
    /// The bucket is used for something else.
    pub fn mark(&mut self, key: &Key, level: u16) -> Result<(), Refusal> {
        let Some(ptr) = key.data() else { return Ok(()) };
        let nr = self.geometry.bucket_of(ptr);
        let nr = nr.map_err(|why| refuse(Rule::NodeKey, why))?;
        let bucket = &mut self.buckets[nr.index()];
        if stale(bucket.generation, ptr.generation()) == 0 {
            bucket.generation = ptr.generation();
        }
        // What is left of a replaced child only tells the generation.
        if key.is_zero_position() {
            return Ok(());
        }
        if stale(bucket.oldest, ptr.generation()) > 0 {
            bucket.oldest = ptr.generation();
        }
        if stale(bucket.generation, ptr.generation()) > 0 {
            return Ok(());
        }
        let is_meta = level > 0;
        if bucket.mark != Mark::None && is_meta != (bucket.mark == Mark::Meta) {
            let what = format!(
                "{key:?} at level {level}, but bucket {nr} is {:?}",
                bucket.mark
            );
            return Err(refuse(Rule::BucketUse, what));
        }
        bucket.mark = match bucket.mark {
            _ if is_meta => Mark::Meta,
            _ if key.dirty => Mark::Dirty,
            Mark::Dirty => Mark::Dirty,
            _ => Mark::Clean,
        };
        Ok(())
    }

    /// Notes that the journal has a pointer to a bucket, stale or not.
    ///
    /// # Errors
    /// The pointer is outside of the device.
    pub fn pin(&mut self, key: &Key) -> Result<(), Refusal> {
        if let Some(ptr) = key.data() {
            let bucket = self.geometry.bucket_of(ptr);
            let bucket = bucket.map_err(|why| refuse(Rule::JournalKey, why))?;
            self.buckets[bucket.index()].pinned = true;
        }
        Ok(())
    }

    /// Takes a bucket for one that no extent may stand in.
    ///
    /// # Errors
    /// Extents stand in it.
    pub fn is_meta(&mut self, nr: BucketNr) -> Result<(), Refusal> {
        let bucket = &mut self.buckets[nr.index()];
        if matches!(bucket.mark, Mark::Clean | Mark::Dirty) {
            let what = format!("extents stand in bucket {nr}, which the set uses itself");
            return Err(refuse(Rule::BucketUse, what));
        }
        bucket.mark = Mark::Meta;
        Ok(())
    }

    /// Whether Linux finds the buckets that it needs. Without those for its priorities it can free no
    /// other and waits for ever. Where it has keys to replay (`level` is the root's then), a leaf may
    /// split, up to the root: the buckets for that may hold clean data now.
    ///
    /// # Errors
    /// They are too few, or extents stand in a bucket of the journal or the priorities.
    pub fn check_free(&mut self, level: Option<u16>) -> Result<(), Refusal> {
        for nr in [self.fixed.clone(), self.chain.clone()].concat() {
            self.is_meta(nr)?;
        }
        let first = self.geometry.first_bucket.index();
        let count = |mark| {
            let can_move_on =
                |b: &&Bucket| stale(b.generation, b.oldest) < MAX_GEN_DISTANCE && !b.pinned;
            let some = self.buckets.iter().skip(first).filter(can_move_on);
            some.filter(|b| b.mark == mark).count()
        };
        let (free, clean) = (count(Mark::None), count(Mark::Clean));
        let for_prios = self.chain.len();
        if free < for_prios {
            let what = format!("{free} buckets hold no live data, priorities take {for_prios}");
            return Err(refuse(Rule::Free, what));
        }
        let for_nodes = level.map_or(0, |level| 2 * usize::from(level) + 1);
        if free + clean < for_prios + for_nodes {
            let what = format!(
                "{free} buckets hold no live data and {clean} clean ones, \
                 priorities take {for_prios} and a split {for_nodes}"
            );
            return Err(refuse(Rule::Free, what));
        }
        Ok(())
    }
}
