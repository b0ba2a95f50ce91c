//! Reading the journal of a set that was stopped, or was not.
//!
//! The newest entry tells from which entry on keys are needed (`last_seq`). All from there to the
//! newest must be there; one that is missing means that keys of acknowledged flushes are lost, and
//! the set is refused rather than opened with old data.
//!
//! Buckets are ordered by their first entry, for the ring is written in order. Only those that can
//! hold needed entries are read whole.

use std::fmt;
use std::rc::Rc;

use super::Shape;
use super::ring::{Ring, Slot};
use crate::disk::{Disk, IoError};
use crate::format::jset::{Jset, JsetError, parse};
use crate::limits::MAX_JSET_BYTES;
use crate::task::join_all;
use crate::units::{BucketNr, JournalSeq};

/// Why a journal cannot be replayed.
#[derive(Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The device failed at a journal bucket.
    Io(BucketNr, IoError),
    /// No bucket starts with a whole entry.
    Empty,
    /// An entry between the oldest needed and the newest is missing.
    Gap {
        /// The missing one.
        missing: JournalSeq,
        /// The oldest needed.
        first: JournalSeq,
        /// The newest.
        newest: JournalSeq,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Io(bucket, error) => {
                write!(f, "journal bucket {bucket} cannot be read: {error}")
            }
            ReplayError::Empty => f.write_str("the journal holds no whole entry"),
            ReplayError::Gap {
                missing,
                first,
                newest,
            } => write!(
                f,
                "journal entry {} is missing (entries {} to {} are needed): the set would open \
                 with old data, so it is not opened",
                missing.0, first.0, newest.0
            ),
        }
    }
}

impl std::error::Error for ReplayError {}

/// What the journal says.
pub struct Replay {
    /// The needed entries, oldest first, without a gap; the last is the newest.
    pub entries: Vec<Jset>,
    /// The ring, placed behind the newest entry.
    pub ring: Ring,
}

struct Found {
    slot: usize,
    /// Blocks up to the end of the last whole entry.
    used_blocks: u32,
    entries: Vec<Jset>,
}

/// Reads the journal in `buckets` (the superblock's list).
///
/// # Errors
/// See [`ReplayError`].
pub async fn read(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    buckets: &[BucketNr],
) -> Result<Replay, ReplayError> {
    let heads = read_heads(disk, shape, buckets).await?;
    // Newest first.
    let mut order: Vec<usize> = (0..buckets.len()).filter(|&i| heads[i].is_some()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(heads[i]));
    let mut found: Vec<Found> = Vec::new();
    let mut first_needed = JournalSeq(u64::MAX);
    for slot in order {
        let bucket = read_bucket(disk, shape, buckets[slot], slot).await?;
        if found.is_empty() {
            first_needed = match bucket.entries.last() {
                Some(newest) => newest.last_seq,
                None => continue,
            };
        }
        let reaches = bucket.entries[0].seq <= first_needed;
        found.push(bucket);
        if reaches {
            break;
        }
    }
    let Some(newest) = found.first() else {
        return Err(ReplayError::Empty);
    };
    let (current, used_blocks) = (newest.slot, newest.used_blocks);
    let slots = slots(buckets, &heads, &found);
    found.reverse();
    let entries: Vec<Jset> = found.into_iter().flat_map(|f| f.entries).collect();
    let entries = needed(entries, first_needed)?;
    let geometry = &shape.geometry;
    let ring = Ring::new(
        slots,
        current,
        used_blocks,
        geometry.block_sectors,
        geometry.bucket_sectors,
        first_needed,
    );
    Ok(Replay { entries, ring })
}

/// What is known of the newest entry of every bucket: exact for those read whole; of others the
/// first entry's number, which is below what is needed as all of theirs are.
fn slots(buckets: &[BucketNr], heads: &[Option<JournalSeq>], found: &[Found]) -> Vec<Slot> {
    let newest_of = |i: usize| {
        let whole = found.iter().find(|f| f.slot == i);
        match whole.and_then(|f| f.entries.last()) {
            Some(entry) => entry.seq,
            None => heads[i].unwrap_or_default(),
        }
    };
    let slot = |(i, &bucket)| Slot {
        bucket,
        newest: newest_of(i),
    };
    buckets.iter().enumerate().map(slot).collect()
}

fn needed(entries: Vec<Jset>, first: JournalSeq) -> Result<Vec<Jset>, ReplayError> {
    let newest = entries.last().map(|e| e.seq).unwrap_or_default();
    let mut kept: Vec<Jset> = Vec::new();
    let mut want = first;
    for entry in entries {
        if entry.seq < want {
            continue;
        }
        if entry.seq != want {
            break;
        }
        want = want.next();
        kept.push(entry);
    }
    if want <= newest {
        return Err(ReplayError::Gap {
            missing: want,
            first,
            newest,
        });
    }
    Ok(kept)
}

async fn read_heads(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    buckets: &[BucketNr],
) -> Result<Vec<Option<JournalSeq>>, ReplayError> {
    let bytes = MAX_JSET_BYTES.min(shape.bucket_bytes());
    let mut heads = Vec::with_capacity(buckets.len());
    for some in buckets.chunks(32) {
        let reads = some
            .iter()
            .map(|&b| disk.read(shape.sector_of(b), disk.alloc(bytes)))
            .collect();
        for ((buf, done), &bucket) in join_all(reads).await.into_iter().zip(some) {
            done.map_err(|e| ReplayError::Io(bucket, e))?;
            let entry = parse(&buf, shape.set_magic, shape.geometry.block_sectors);
            heads.push(entry.ok().map(|(entry, _)| entry.seq));
        }
    }
    Ok(heads)
}

async fn read_bucket(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    bucket: BucketNr,
    slot: usize,
) -> Result<Found, ReplayError> {
    let buf = disk.alloc(shape.bucket_bytes());
    let (buf, done) = disk.read(shape.sector_of(bucket), buf).await;
    done.map_err(|e| ReplayError::Io(bucket, e))?;
    let mut found = Found {
        slot,
        used_blocks: 0,
        entries: Vec::new(),
    };
    let (block_bytes, block_sectors) = (shape.block_bytes(), shape.geometry.block_sectors);
    let mut block = 0;
    while let Some(bytes) = buf.get(block * block_bytes..).filter(|b| !b.is_empty()) {
        match parse(bytes, shape.set_magic, block_sectors) {
            // What is older than its predecessor is of an earlier round of the ring.
            Ok((entry, blocks)) if found.entries.last().is_none_or(|e| entry.seq > e.seq) => {
                found.entries.push(entry);
                block += blocks as usize;
                found.used_blocks = block as u32;
                continue;
            }
            Ok(_) | Err(JsetError::NotAnEntry | JsetError::BadChecksum { .. }) => {}
            Err(error) => log::warn!("journal bucket {bucket}, block {block}: {error}"),
        }
        // A whole entry further on that is newer still would show that this one was not merely
        // torn: the gap is noticed by its number.
        block += 1;
    }
    Ok(found)
}
