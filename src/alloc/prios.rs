//! Priorities and generations on disk: written as a chain of buckets, read back at start.

use std::rc::Rc;

use super::{Alloc, Use};
use crate::disk::{Disk, IoError, Stopped, answers};
use crate::format::prio::{AT_NEXT, PrioError, PrioSet, parse, per_bucket};
use crate::journal::Shape;
use crate::limits::{BTREE_PRIO, INITIAL_PRIO, meta_bucket_bytes};
use crate::task::yield_now;
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

/// Priorities and generations of all buckets, and where they stood.
#[derive(Debug)]
pub struct Prios {
    /// By bucket.
    pub entries: Vec<(u16, Gen)>,
    /// The buckets of the chain.
    pub places: Vec<BucketNr>,
    /// The number of the writing.
    pub seq: u64,
}

/// Reads the chain that starts at bucket `first`. All of it stands from bucket `data_start` on,
/// behind the journal.
///
/// # Errors
/// See [`PrioReadError`].
pub async fn read(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    first: u64,
    data_start: BucketNr,
) -> Result<Prios, PrioReadError> {
    let nbuckets = shape.geometry.nbuckets as usize;
    let mut prios = Prios {
        entries: Vec::new(),
        places: Vec::new(),
        seq: 0,
    };
    let mut next = first;
    while prios.entries.len() < nbuckets {
        let named_in = prios.places.last().copied();
        if next < u64::from(data_start.0) || next >= shape.geometry.nbuckets {
            let bucket = next;
            return Err(PrioReadError::OutOfRange { bucket, named_in });
        }
        let bucket = BucketNr(next as u32);
        if prios.places.contains(&bucket) {
            return Err(PrioReadError::Cycle { bucket, named_in });
        }
        let buf = disk.alloc(meta_bucket_bytes(shape.geometry.bucket_sectors));
        let (buf, done) = disk.read(shape.sector_of(bucket), buf).await;
        done.map_err(|e| PrioReadError::Io(bucket, e))?;
        let set = parse(&buf, shape.set_magic).map_err(|e| PrioReadError::Damaged(bucket, e))?;
        prios.places.push(bucket);
        prios.seq = prios.seq.max(set.seq);
        prios.entries.extend(set.entries);
        next = set.next_bucket;
    }
    prios.entries.truncate(nbuckets);
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

    pub(super) async fn write_prio_chain(&self, places: &[BucketNr]) -> Result<(), Stopped> {
        let bytes = meta_bucket_bytes(self.shape.geometry.bucket_sectors);
        let each = per_bucket(bytes);
        let mut writes = Vec::with_capacity(places.len());
        for (i, &place) in places.iter().enumerate() {
            let (from, to) = (i * each, ((i + 1) * each).min(self.gens.len()));
            let set = PrioSet {
                seq: self.prio_seq.get(),
                version: 0,
                next_bucket: places.get(i + 1).map_or(0, |b| b.0.into()),
                entries: (from..to)
                    .map(|b| {
                        let bucket = BucketNr(b as u32);
                        let state = self.state(bucket);
                        (self.priority(bucket, state), self.gens.generation(bucket))
                    })
                    .collect(),
            };
            let mut buf = self.disk.alloc(bytes);
            set.encode(self.shape.set_magic, &mut buf);
            writes.push(self.disk.write(self.shape.sector_of(place), buf));
            // A bucket of priorities a step. What is freed by this writing was raised before it.
            yield_now().await;
        }
        for ((_, done), place) in answers(writes).await.into_iter().zip(places) {
            done.map_err(|why| {
                let name = self.disk.name();
                self.latch.trip(format!(
                    "the priorities were not written to bucket {place} of {name}: {why}"
                ))
            })?;
        }
        Ok(())
    }
}
