//! Priorities with generations, and the uuid table.

use std::collections::HashMap;

use super::journal::Journal;
use super::report::{Kind, VolumeSum};
use super::space::Use;
use super::{Cache, CannotCheck, Check, read};
use crate::format::jset::Jset;
use crate::format::key::{Key, KeyError};
use crate::format::prio::{self, PrioError, PrioSet};
use crate::format::uuids::{self, UuidEntry};
use crate::limits::{MAX_KEY_OFFSET, meta_bucket_bytes};
use crate::units::{BucketNr, SECTOR_BYTES, Sector, Uuid};

/// The flags of an entry that are known.
const FLAGS_KNOWN: u32 = 1;

/// Why a bucket of priorities cannot be taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum PrioFault {
    Unreadable(CannotCheck),
    Bad(PrioError),
}

/// Reads one bucket of priorities.
fn read_prio(cache: &Cache<'_>, bucket: BucketNr) -> Result<PrioSet, PrioFault> {
    let bytes = meta_bucket_bytes(cache.geometry.bucket_sectors);
    let bytes = read(cache.source, cache.byte_of(bucket), bytes).map_err(PrioFault::Unreadable)?;
    prio::parse(&bytes, cache.set_magic).map_err(PrioFault::Bad)
}

/// Whether priorities may stand in a bucket: behind the journal, on the device.
pub(super) fn can_hold(cache: &Cache<'_>, bucket: u64) -> bool {
    let journal_end = cache
        .sb
        .journal_buckets
        .last()
        .map_or(0, |b| u64::from(b.0) + 1);
    bucket >= journal_end.max(cache.geometry.first_bucket.0.into())
        && bucket < cache.geometry.nbuckets
}

/// Goes along the chain of priorities: each bucket of it once, as many as the device takes.
///
/// # Errors
/// The first bucket that cannot be, in words.
pub fn walk_prios(
    cache: &Cache<'_>,
    first: u64,
    each: &mut dyn FnMut(BucketNr, PrioSet),
) -> Result<(), CannotCheck> {
    let per = prio::per_bucket(meta_bucket_bytes(cache.geometry.bucket_sectors));
    let (mut next, mut left) = (first, prio::buckets_needed(cache.geometry.nbuckets, per));
    while left > 0 {
        if !can_hold(cache, next) {
            let name = cache.source.name();
            let text = format!("{name}: the priorities are said to be in bucket {next}");
            return Err(CannotCheck::Damaged(text));
        }
        let bucket = BucketNr(next as u32);
        let set = read_prio(cache, bucket).map_err(|fault| match fault {
            PrioFault::Unreadable(error) => error,
            PrioFault::Bad(error) => CannotCheck::Damaged(format!(
                "{}: bucket {bucket} byte {}: {error}",
                cache.source.name(),
                cache.byte_of(bucket)
            )),
        })?;
        (next, left) = (set.next_bucket, left - 1);
        each(bucket, set);
    }
    Ok(())
}

/// Reads the uuid table that a journal entry names.
///
/// # Errors
/// It names none, or a place where none can be, or that cannot be read.
pub fn read_uuids(cache: &Cache<'_>, newest: &Jset) -> Result<Vec<UuidEntry>, CannotCheck> {
    let key = uuid_key(cache, newest)
        .map_err(|why| CannotCheck::Damaged(format!("{}: {why}", cache.source.name())))?;
    let bytes = meta_bucket_bytes(cache.geometry.bucket_sectors);
    let at = key.ptr.map_or(0, |ptr| ptr.sector().bytes());
    Ok(uuids::parse(&read(cache.source, at, bytes)?))
}

fn uuid_key(cache: &Cache<'_>, newest: &Jset) -> Result<Key, String> {
    let Some(key) = newest.uuid_bucket else {
        return Err("the journal names no uuid table".to_string());
    };
    let place = |e: KeyError| format!("the uuid table's place: {e}");
    key.check_child(&cache.geometry).map_err(place)?;
    Ok(key)
}

impl Check<'_> {
    /// Reads generations along the chain.
    pub(super) fn prios(&mut self, journal: &Journal) {
        let per = prio::per_bucket(meta_bucket_bytes(self.cache.geometry.bucket_sectors));
        let total = prio::buckets_needed(self.cache.geometry.nbuckets, per);
        let (mut next, mut byte) = (journal.newest.prio_bucket[0], journal.newest_byte);
        let mut seq = None;
        for i in 0..total {
            self.tell("priorities", i, total);
            if !can_hold(&self.cache, next) {
                let text = format!(
                    "the priorities of buckets from {} on are said to be in bucket {next}",
                    i * per as u64
                );
                return self.find(Kind::PrioPlace, byte, text);
            }
            let bucket = BucketNr(next as u32);
            if self.space.is_used(bucket, Use::Prio) {
                let text = format!("the chain of priorities comes back to bucket {bucket}");
                return self.find(Kind::PrioCycle, byte, text);
            }
            self.claim(bucket, Use::Prio);
            let at = self.cache.byte_of(bucket);
            let set = match read_prio(&self.cache, bucket) {
                Ok(set) => set,
                Err(PrioFault::Unreadable(error)) => {
                    return self.find(Kind::Unreadable, at, error.to_string());
                }
                Err(PrioFault::Bad(error)) => {
                    let kind = match error {
                        PrioError::BadChecksum { .. } => Kind::PrioChecksum,
                        _ => Kind::PrioMagic,
                    };
                    return self.find(kind, at, error.to_string());
                }
            };
            if *seq.get_or_insert(set.seq) != set.seq {
                let text = format!(
                    "bucket {bucket} of the priorities was written in round {}, the first in {}",
                    set.seq,
                    seq.unwrap_or_default()
                );
                self.find(Kind::PrioSeq, at + prio::AT_SEQ as u64, text);
            }
            self.space.set_gens(i * per as u64, &set.entries);
            (next, byte) = (set.next_bucket, at + prio::AT_NEXT as u64);
        }
    }

    /// Reads the uuid table. False when it is not known which volumes there are.
    pub(super) fn uuids(&mut self, journal: &Journal) -> bool {
        let key = match uuid_key(&self.cache, &journal.newest) {
            Ok(key) => key,
            Err(why) => {
                self.find(Kind::UuidPlace, journal.newest_byte, why);
                return false;
            }
        };
        let at = key.ptr.map_or(0, |ptr| ptr.sector().bytes());
        let bucket = self.cache.bucket_of(Sector(at / SECTOR_BYTES as u64));
        self.claim(bucket, Use::Uuids);
        let bytes = meta_bucket_bytes(self.cache.geometry.bucket_sectors);
        let Some(table) = self.read(at, bytes) else {
            return false;
        };
        self.uuids = uuids::parse(&table);
        self.check_entries(at);
        true
    }

    fn check_entries(&mut self, table_at: u64) {
        let mut seen: HashMap<Uuid, usize> = HashMap::new();
        for (i, entry) in self.uuids.clone().into_iter().enumerate() {
            let at = table_at + (i * uuids::ENTRY_BYTES) as u64;
            self.volumes.push(sum_of(i, &entry));
            self.bounds.push((Sector(0), Sector(MAX_KEY_OFFSET)));
            if !entry.is_live() {
                continue;
            }
            let uuid = entry.uuid;
            if let Some(other) = seen.insert(uuid, i) {
                let text = format!("volumes {other} and {i} bear the same uuid {uuid}");
                self.find(Kind::UuidTwice, at, text);
            }
            let wrong = if entry.flags & !FLAGS_KNOWN != 0 {
                format!("has unknown flags {:#x}", entry.flags)
            } else if entry.is_flash_only() && entry.sectors == 0 {
                "lives on the flash alone and has no size".to_string()
            } else {
                self.bounds[i] = bounds_of(&entry);
                continue;
            };
            let text = format!("volume {i}, {uuid}, {wrong}");
            self.find(Kind::UuidEntry, at, text);
        }
    }
}

fn sum_of(i: usize, entry: &UuidEntry) -> VolumeSum {
    VolumeSum {
        inode: i as u32,
        uuid: entry.uuid.to_string(),
        label: super::show::label_text(&entry.label),
        kind: match (entry.is_live(), entry.is_flash_only()) {
            (false, _) => "gone",
            (true, true) => "flash",
            (true, false) => "backing",
        },
        ..VolumeSum::default()
    }
}

fn bounds_of(entry: &UuidEntry) -> (Sector, Sector) {
    let end = match entry.is_flash_only() {
        true => entry.sectors,
        false => MAX_KEY_OFFSET,
    };
    (Sector(0), Sector(end))
}
