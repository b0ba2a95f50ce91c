//! Priorities and generations on disk: written as a chain of buckets, read back at start. Both in
//! bounded steps, and with the memory of one bucket's worth, however many buckets there are.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::{Alloc, Use};
use crate::disk::{Disk, IoError, LongWrite, Stopped, read_long};
use crate::format::prio::{AT_NEXT, Decoder, Encoder, PrioError, per_bucket};
use crate::journal::Shape;
use crate::limits::{BTREE_PRIO, INITIAL_PRIO, meta_bucket_bytes};
use crate::task::{Work, breathe, work};
use crate::units::{BucketNr, Gen};

/// Why the priorities could not be read.
#[derive(Debug)]
pub enum PrioReadError {
    /// The chain names a bucket that is not on the device, or of the superblock or journal.
    OutOfRange {
        /// What it names.
        bucket: u64,
        /// Where it stands that says so; `None` for the journal.
        named_in: Option<BucketNr>,
    },
    /// The chain comes back to a bucket.
    Cycle {
        /// Which one.
        bucket: BucketNr,
        /// Where it stands that says so; `None` for the journal.
        named_in: Option<BucketNr>,
    },
    /// The device failed.
    Io(BucketNr, IoError),
    /// What stands there is no set of priorities.
    Damaged(BucketNr, PrioError),
}

/// Who names the next bucket of a chain.
fn place(named_in: Option<BucketNr>) -> String {
    match named_in {
        Some(bucket) => format!("bucket {bucket} says so at byte {AT_NEXT}"),
        None => "the journal says so".to_string(),
    }
}

impl std::fmt::Display for PrioReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OutOfRange { bucket, named_in } => write!(
                f,
                "the priorities are said to be in bucket {bucket}, which cannot be ({})",
                place(*named_in)
            ),
            Self::Cycle { bucket, named_in } => write!(
                f,
                "the chain of priorities comes back to bucket {bucket} ({})",
                place(*named_in)
            ),
            Self::Io(bucket, error) => {
                write!(
                    f,
                    "the priorities in bucket {bucket} cannot be read: {error}"
                )
            }
            Self::Damaged(bucket, error) => {
                write!(
                    f,
                    "the priorities in bucket {bucket} (byte 0) are damaged: {error}"
                )
            }
        }
    }
}

impl std::error::Error for PrioReadError {}

/// Where the priorities and generations of all buckets stood.
#[derive(Debug)]
pub struct Prios {
    /// The buckets of the chain.
    pub places: Vec<BucketNr>,
    /// The number of the writing.
    pub seq: u64,
}

/// Reads the chain that starts at bucket `first`, and shows the priority and generation of each bucket
/// in order. All of it stands from bucket `data_start` on, behind the journal.
///
/// # Errors
/// See [`PrioReadError`]. Some may have been shown by then.
pub async fn read(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    first: u64,
    data_start: BucketNr,
    mut show: impl FnMut(BucketNr, u16, Gen),
) -> Result<Prios, PrioReadError> {
    let nbuckets = shape.geometry.nbuckets as u32;
    let mut prios = Prios {
        places: Vec::new(),
        seq: 0,
    };
    let (mut next, mut seen, mut shown) = (first, BTreeSet::new(), 0);
    while shown < nbuckets {
        let named_in = prios.places.last().copied();
        if next < u64::from(data_start.0) || next >= shape.geometry.nbuckets {
            let bucket = next;
            return Err(PrioReadError::OutOfRange { bucket, named_in });
        }
        let bucket = BucketNr(next as u32);
        if !seen.insert(bucket) {
            return Err(PrioReadError::Cycle { bucket, named_in });
        }
        let bytes = meta_bucket_bytes(shape.geometry.bucket_sectors);
        let read = read_long(disk, shape.sector_of(bucket), bytes).await;
        let set = read.map_err(|e| PrioReadError::Io(bucket, e))?;
        let damaged = |e| PrioReadError::Damaged(bucket, e);
        let mut set = Decoder::new(&set, shape.set_magic).map_err(damaged)?;
        while set.check(Work::Bytes.slice()) {
            work(Work::Bytes, Work::Bytes.slice());
            breathe().await;
        }
        set.is_sound().map_err(damaged)?;
        prios.places.push(bucket);
        prios.seq = prios.seq.max(set.seq());
        for (prio, generation) in set.entries().take((nbuckets - shown) as usize) {
            show(BucketNr(shown), prio, generation);
            shown += 1;
            work(Work::Buckets, 1);
            breathe().await;
        }
        next = set.next_bucket();
    }
    Ok(prios)
}

impl Alloc {
    /// Takes over where the priorities stand, when a set is loaded.
    pub fn adopt_prios(&self, places: Vec<BucketNr>, seq: u64) {
        for &bucket in &places {
            self.claim_meta(bucket);
        }
        self.prio_seq.set(seq);
        *self.prios.borrow_mut() = places;
    }

    fn priority(&self, bucket: BucketNr, state: Use) -> u16 {
        match state {
            Use::Meta => BTREE_PRIO,
            _ => INITIAL_PRIO.saturating_sub(self.gens.age(bucket)).max(1),
        }
    }

    /// The set for the buckets from `from` to before `to`.
    async fn prio_set(&self, next: Option<&BucketNr>, (from, to): (usize, usize)) -> Vec<u8> {
        let bytes = meta_bucket_bytes(self.shape.geometry.bucket_sectors);
        let next = next.map_or(0, |bucket| bucket.0.into());
        let mut set = Encoder::new(bytes, self.shape.set_magic, self.prio_seq.get(), next);
        for part in (from..to).step_by(Work::Buckets.slice()) {
            // What is freed by this writing was raised before it.
            let part = part..to.min(part + Work::Buckets.slice());
            work(Work::Buckets, part.len());
            set.add(part.map(|b| {
                let bucket = BucketNr(b as u32);
                let state = self.state(bucket);
                (self.priority(bucket, state), self.gens.generation(bucket))
            }));
            breathe().await;
        }
        set.finish()
    }

    pub(super) async fn write_prio_chain(&self, places: &[BucketNr]) -> Result<(), Stopped> {
        let failed = |(place, why): (BucketNr, IoError)| {
            let name = self.disk.name();
            self.latch.trip(format!(
                "the priorities were not written to bucket {place} of {name}: {why}"
            ))
        };
        let bytes = meta_bucket_bytes(self.shape.geometry.bucket_sectors);
        let each = per_bucket(bytes);
        let mut chain = LongWrite::new(self.disk.clone());
        for (i, &place) in places.iter().enumerate() {
            let range = (i * each, ((i + 1) * each).min(self.gens.len()));
            let set = self.prio_set(places.get(i + 1), range).await;
            let at = self.shape.sector_of(place);
            chain.add(place, at, &set, bytes).await.map_err(failed)?;
        }
        chain.end().await.map_err(failed)
    }
}
