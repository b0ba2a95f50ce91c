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
use crate::disk::{Disk, IoError, answers};
use crate::format::jset::{HEADER_BYTES, Jset, JsetError, parse};
use crate::format::key::Key;
use crate::limits::MAX_JSET_BYTES;
use crate::task::{Work, breathe, work};
use crate::units::{BucketNr, JournalSeq, SECTOR_BYTES};

/// Bytes of a journal bucket that are read at once, so that large buckets take no more memory.
const WINDOW_BYTES: usize = 1 << 20;

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
        /// The bucket of the entry that stands in its place, and where that begins, in bytes from
        /// the bucket's start.
        found: (BucketNr, usize),
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
                found: (bucket, byte),
            } => write!(
                f,
                "journal entry {} is missing (entries {} to {} are needed; a later one stands in \
                 bucket {bucket} at byte {byte}): the set would open with old data, so it is not \
                 opened",
                missing.0, first.0, newest.0
            ),
        }
    }
}

impl std::error::Error for ReplayError {}

/// A journal entry where it stands.
pub struct Placed {
    /// The entry.
    pub entry: Jset,
    /// Its bucket.
    pub bucket: BucketNr,
    /// Where it begins, in bytes from the bucket's start.
    pub byte: usize,
}

impl Placed {
    /// Its keys, each with where it begins, in bytes from the bucket's start.
    pub fn keys(&self) -> impl Iterator<Item = (usize, &Key)> {
        let mut at = self.byte + HEADER_BYTES;
        self.entry.keys.iter().map(move |key| {
            let byte = at;
            at += key.encoded_bytes();
            (byte, key)
        })
    }
}

/// What the journal says.
pub struct Replay {
    /// The needed entries, oldest first, without a gap; the last is the newest.
    pub entries: Vec<Placed>,
    /// The ring, placed behind the newest entry.
    pub ring: Ring,
}

struct Found {
    slot: usize,
    /// Blocks up to the end of the last whole entry.
    used_blocks: u32,
    entries: Vec<Placed>,
}

impl Found {
    fn newest(&self) -> Option<JournalSeq> {
        self.entries.last().map(|e| e.entry.seq)
    }
}

/// How often the journal is read when an entry appears between two reads of it: a write that failed,
/// and that nobody relied on, may land late.
const READS_MAX: usize = 3;

/// Reads the journal in `buckets` (the superblock's list).
///
/// # Errors
/// See [`ReplayError`].
pub async fn read(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    buckets: &[BucketNr],
) -> Result<Replay, ReplayError> {
    let mut reads = 1;
    loop {
        match read_once(disk, shape, buckets).await {
            // What is the newest itself is not missing: it was not there a moment ago.
            Err(ReplayError::Gap {
                missing, newest, ..
            }) if missing == newest && reads < READS_MAX => reads += 1,
            done => return done,
        }
    }
}

async fn read_once(
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
        let Some(oldest) = bucket.entries.first().map(|e| e.entry.seq) else {
            continue;
        };
        if let (true, Some(newest)) = (found.is_empty(), bucket.entries.last()) {
            first_needed = newest.entry.last_seq;
        }
        found.push(bucket);
        if oldest <= first_needed {
            break;
        }
    }
    let Some(newest) = found.first() else {
        return Err(ReplayError::Empty);
    };
    let (current, used_blocks) = (newest.slot, newest.used_blocks);
    if let Some(hidden) = hidden_newer(disk, shape, buckets, newest).await? {
        return Err(hidden);
    }
    let slots = slots(buckets, &heads, &found);
    found.reverse();
    let entries = needed(found, first_needed).await?;
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

/// Newer entries behind a damaged one at the start of the next bucket. A head that was merely torn
/// has none behind it: entries are written one after the other.
async fn hidden_newer(
    disk: &Rc<dyn Disk>,
    shape: &Shape,
    buckets: &[BucketNr],
    newest: &Found,
) -> Result<Option<ReplayError>, ReplayError> {
    let next = (newest.slot + 1) % buckets.len();
    let bucket = read_bucket(disk, shape, buckets[next], next).await?;
    let known = newest.newest().unwrap_or_default();
    let hidden = bucket.entries.iter().find(|e| e.entry.seq > known);
    Ok(hidden.map(|hidden| ReplayError::Gap {
        missing: known.next(),
        first: known.next(),
        newest: bucket.newest().unwrap_or_default(),
        found: (hidden.bucket, hidden.byte),
    }))
}

/// What is known of the newest entry of every bucket: exact for those read whole; of others the
/// first entry's number, which is below what is needed as all of theirs are.
fn slots(buckets: &[BucketNr], heads: &[Option<JournalSeq>], found: &[Found]) -> Vec<Slot> {
    let newest_of = |i: usize| {
        let whole = found.iter().find(|f| f.slot == i);
        whole
            .and_then(Found::newest)
            .unwrap_or(heads[i].unwrap_or_default())
    };
    let slot = |(i, &bucket)| Slot {
        bucket,
        newest: newest_of(i),
    };
    buckets.iter().enumerate().map(slot).collect()
}

/// The entries from `first` on, of buckets in the order of the ring. Buckets are let go as their
/// entries are taken over.
async fn needed(found: Vec<Found>, first: JournalSeq) -> Result<Vec<Placed>, ReplayError> {
    let newest = found.last().and_then(Found::newest).unwrap_or_default();
    let mut kept: Vec<Placed> = Vec::with_capacity(found.iter().map(|f| f.entries.len()).sum());
    let mut want = first;
    for placed in found.into_iter().flat_map(|f| f.entries) {
        work(Work::Keys, 1);
        breathe().await;
        if placed.entry.seq < want {
            continue;
        }
        if placed.entry.seq != want {
            return Err(ReplayError::Gap {
                missing: want,
                first,
                newest,
                found: (placed.bucket, placed.byte),
            });
        }
        want = want.next();
        kept.push(placed);
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
            .map(|&b| disk.read(shape.sector_of(b), disk.alloc(bytes)));
        for ((buf, done), &bucket) in answers(reads).await.into_iter().zip(some) {
            done.map_err(|e| ReplayError::Io(bucket, e))?;
            let entry = parse(&buf, shape.set_magic, shape.geometry.block_sectors);
            work(Work::Bytes, buf.len());
            breathe().await;
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
    let mut found = Found {
        slot,
        used_blocks: 0,
        entries: Vec::new(),
    };
    let (block_bytes, bucket_bytes) = (shape.block_bytes(), shape.bucket_bytes());
    let mut window = (0, disk.alloc(0));
    let mut at = 0;
    while at < bucket_bytes {
        let (from, buf) = &window;
        if from + buf.len() < bucket_bytes.min(at + MAX_JSET_BYTES) {
            let buf = disk.alloc(WINDOW_BYTES.min(bucket_bytes - at));
            let sector = shape.sector_of(bucket) + (at / SECTOR_BYTES) as u64;
            let (buf, done) = disk.read(sector, buf).await;
            done.map_err(|e| ReplayError::Io(bucket, e))?;
            window = (at, buf);
        }
        let (from, buf) = &window;
        let bytes = &buf[at - from..];
        work(Work::Bytes, block_bytes);
        match parse(bytes, shape.set_magic, shape.geometry.block_sectors) {
            // What is older than its predecessor is of an earlier round of the ring.
            Ok((entry, blocks)) if found.newest().is_none_or(|seq| entry.seq > seq) => {
                found.entries.push(Placed {
                    entry,
                    bucket,
                    byte: at,
                });
                at += blocks as usize * block_bytes;
                found.used_blocks = (at / block_bytes) as u32;
                work(Work::Bytes, blocks as usize * block_bytes);
                breathe().await;
                continue;
            }
            Ok(_) | Err(JsetError::NotAnEntry | JsetError::BadChecksum { .. }) => {}
            Err(error) => log::warn!("journal bucket {bucket}, byte {at}: {error}"),
        }
        // A whole entry further on that is newer still would show that this one was not merely
        // torn: the gap is noticed by its number.
        at += block_bytes;
        breathe().await;
    }
    Ok(found)
}
