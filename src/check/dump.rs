//! The structures of a set one by one, as rows of a table or objects of a script.
//!
//! Rows are handed over as they are read, so that a dump takes no more memory than a node.

use serde::Serialize;

use super::journal::{replay, scan};
use super::meta::{read_uuids, walk_prios};
use super::show::label_text;
use super::tree::walk_leaves;
use super::{Cache, CannotCheck};
use crate::format::key::Key;

/// An extent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct KeyRow {
    /// `tree`, or `journal` for keys that a start replays over those of the tree.
    pub from: &'static str,
    /// The bucket of the node, or of the journal entry.
    pub bucket: u64,
    /// The volume.
    pub inode: u32,
    /// Its first sector on the volume (of a backing device: on that device).
    pub start: u64,
    /// How many sectors.
    pub sectors: u32,
    /// The sector of the cache device where the data are; `null` for a deletion.
    pub at: Option<u64>,
    /// The generation of the pointer.
    #[serde(rename = "gen")]
    pub generation: Option<u8>,
    /// Whether the backing device lacks the data.
    pub dirty: bool,
}

/// A journal entry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct JournalRow {
    /// The bucket.
    pub bucket: u64,
    /// Bytes from the start of the device.
    pub byte: u64,
    /// Its number; `null` where it is damaged.
    pub seq: Option<u64>,
    /// The oldest entry that it needs.
    pub last_seq: Option<u64>,
    /// `needed`, `old`, or what is wrong with it.
    pub status: String,
    /// Keys in it.
    pub keys: usize,
    /// The root's level.
    pub level: Option<u16>,
    /// The root's bucket.
    pub root_bucket: Option<u64>,
    /// The uuid table's bucket.
    pub uuid_bucket: Option<u64>,
    /// The first bucket of the priorities.
    pub prio_bucket: Option<u64>,
}

/// The priority and generation of a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PrioRow {
    /// The bucket.
    pub bucket: u64,
    /// Its priority; 65535 for metadata.
    pub prio: u16,
    /// Its generation.
    #[serde(rename = "gen")]
    pub generation: u8,
    /// The bucket in which that stands.
    pub stands_in: u64,
}

/// An entry of the uuid table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UuidRow {
    /// Its index, which is the inode of the volume's keys.
    pub inode: usize,
    /// The uuid.
    pub uuid: String,
    /// The label.
    pub label: String,
    /// `backing`, `flash` or `gone`.
    pub kind: &'static str,
    /// Bytes of a volume that lives on the flash alone.
    pub bytes: u64,
    /// When it was first attached, in seconds of the epoch.
    pub first_reg: u32,
    /// When it was last attached, in seconds of the epoch.
    pub last_reg: u32,
    /// When it went, in seconds of the epoch; 0 while it has not.
    pub invalidated: u32,
}

fn key_row(from: &'static str, bucket: u64, key: &Key) -> KeyRow {
    KeyRow {
        from,
        bucket,
        inode: key.inode.0,
        start: key.start().0,
        sectors: key.size_sectors,
        at: key.data().map(|ptr| ptr.sector().0),
        generation: key.data().map(|ptr| ptr.generation().0),
        dirty: key.dirty,
    }
}

/// The keys of all leaves, then those of the journal that a start replays over them.
///
/// # Errors
/// The first damage on the way.
pub fn keys(cache: &Cache<'_>, each: &mut dyn FnMut(KeyRow)) -> Result<(), CannotCheck> {
    let journal = replay(cache)?;
    let (root, level) = (journal.newest.root, journal.newest.level);
    walk_leaves(cache, root, level, &mut |bucket, keys| {
        for key in &keys {
            each(key_row("tree", bucket.0.into(), key));
        }
    })?;
    for &byte in journal.needed.values() {
        let entry = super::journal::read_entry(cache, byte)?;
        for key in &entry.keys {
            each(key_row("journal", byte / cache.bucket_bytes(), key));
        }
    }
    Ok(())
}

/// What stands in the journal, bucket by bucket.
///
/// # Errors
/// The device cannot be read.
pub fn journal(cache: &Cache<'_>, each: &mut dyn FnMut(JournalRow)) -> Result<(), CannotCheck> {
    let first_needed = match replay(cache) {
        Ok(journal) => journal.newest.last_seq.0,
        Err(CannotCheck::Damaged(_)) => u64::MAX,
        Err(error) => return Err(error),
    };
    let bucket_of = |key: Option<&Key>| {
        let ptr = key.and_then(|key| key.ptr);
        ptr.map(|ptr| ptr.sector().0 / u64::from(cache.geometry.bucket_sectors))
    };
    for &bucket in &cache.sb.journal_buckets {
        scan(cache, bucket, &mut |seen| {
            let entry = seen.entry.as_ref().ok();
            let status = match &seen.entry {
                Err(error) => error.to_string(),
                Ok(entry) if seen.accepted && entry.seq.0 >= first_needed => "needed".to_string(),
                Ok(_) => "old".to_string(),
            };
            each(JournalRow {
                bucket: bucket.0.into(),
                byte: seen.byte,
                seq: entry.map(|e| e.seq.0),
                last_seq: entry.map(|e| e.last_seq.0),
                status,
                keys: entry.map_or(0, |e| e.keys.len()),
                level: entry.map(|e| e.level),
                root_bucket: bucket_of(entry.map(|e| &e.root)),
                uuid_bucket: bucket_of(entry.and_then(|e| e.uuid_bucket.as_ref())),
                prio_bucket: entry.map(|e| e.prio_bucket[0]),
            });
        })?;
    }
    Ok(())
}

/// Priority and generation of every bucket.
///
/// # Errors
/// The first damage on the way.
pub fn prios(cache: &Cache<'_>, each: &mut dyn FnMut(PrioRow)) -> Result<(), CannotCheck> {
    let first = replay(cache)?.newest.prio_bucket[0];
    let mut bucket = 0;
    walk_prios(cache, first, &mut |place, set| {
        for (prio, generation) in set.entries {
            if bucket < cache.geometry.nbuckets {
                each(PrioRow {
                    bucket,
                    prio,
                    generation: generation.0,
                    stands_in: place.0.into(),
                });
            }
            bucket += 1;
        }
    })
}

/// The entries of the uuid table that are or were in use.
///
/// # Errors
/// The journal or the table cannot be read.
pub fn uuids(cache: &Cache<'_>, each: &mut dyn FnMut(UuidRow)) -> Result<(), CannotCheck> {
    let table = read_uuids(cache, &replay(cache)?.newest)?;
    for (inode, entry) in table.iter().enumerate().filter(|(_, e)| !e.is_free()) {
        each(UuidRow {
            inode,
            uuid: entry.uuid.to_string(),
            label: label_text(&entry.label),
            kind: match (entry.is_live(), entry.is_flash_only()) {
                (false, _) => "gone",
                (true, true) => "flash",
                (true, false) => "backing",
            },
            bytes: match entry.is_flash_only() {
                true => entry.sectors.saturating_mul(512),
                false => 0,
            },
            first_reg: entry.first_reg,
            last_reg: entry.last_reg,
            invalidated: entry.invalidated,
        });
    }
    Ok(())
}
