//! The journal's entries as they stand in its buckets.
//!
//! An entry is accepted as a start accepts it: whole, and of a higher number than the one before it
//! in its bucket; what is older was left by an earlier round of the ring. A damaged entry behind the
//! newest was being written when the power went. One that is needed leaves a gap.

use std::collections::BTreeMap;

use super::report::Kind;
use super::{Cache, CannotCheck, Check, Source, describe, read};
use crate::format::jset::{self, Jset, JsetError, parse};
use crate::format::key::Key;
use crate::format::merge::merge_keeping_deletions;
use crate::limits::MAX_JSET_BYTES;
use crate::units::{BucketNr, SECTOR_BYTES};

/// Bytes of the journal that are read at once, besides what one entry takes.
const WINDOW_BYTES: u64 = 256 << 10;
/// Damaged entries that are remembered.
const DAMAGED_MAX: usize = 1000;

/// Entries that Linux replays with a holder each: its table takes one more, which it needs itself.
const LINUX_PINS_MAX: u64 = 32_766;

/// What stands at a block of the journal that bears its magic number.
pub struct Seen {
    /// Bytes from the start of the device.
    pub byte: u64,
    /// The entry, or why it is none.
    pub entry: Result<Jset, JsetError>,
    /// Whether a start would take it: whole, and newer than the one before it in its bucket.
    pub accepted: bool,
}

/// The newest entry, and where those stand that a start replays.
pub struct Journal {
    /// It tells where everything is.
    pub newest: Jset,
    /// Its byte on the device.
    pub newest_byte: u64,
    /// Those from its `last_seq` on, by number.
    pub needed: BTreeMap<u64, u64>,
}

/// Goes through the entries of a journal bucket.
///
/// # Errors
/// The device cannot be read.
pub fn scan(
    cache: &Cache<'_>,
    bucket: BucketNr,
    each: &mut dyn FnMut(Seen),
) -> Result<(), CannotCheck> {
    let (mut at, end) = (
        cache.byte_of(bucket),
        cache.byte_of(bucket) + cache.bucket_bytes(),
    );
    let block_bytes = u64::from(cache.geometry.block_sectors) * SECTOR_BYTES as u64;
    let (mut window, mut window_at) = (Vec::new(), at);
    let mut newest = 0;
    while at < end {
        let whole = (at + MAX_JSET_BYTES as u64).min(end);
        if window_at + (window.len() as u64) < whole {
            let bytes = (WINDOW_BYTES + MAX_JSET_BYTES as u64).min(end - at);
            window = read(cache.source, at, bytes as usize)?;
            window_at = at;
        }
        let bytes = &window[(at - window_at) as usize..];
        let (blocks, entry) = match parse(bytes, cache.set_magic, cache.geometry.block_sectors) {
            Ok((entry, blocks)) if entry.seq.0 > newest => (blocks, Ok(entry)),
            Ok((entry, _)) => (1, Ok(entry)),
            Err(error) => (1, Err(error)),
        };
        let accepted = entry.as_ref().is_ok_and(|entry| entry.seq.0 > newest);
        if let (Ok(entry), true) = (&entry, accepted) {
            newest = entry.seq.0;
        }
        if !matches!(entry, Err(JsetError::NotAnEntry)) {
            each(Seen {
                byte: at,
                entry,
                accepted,
            });
        }
        at += u64::from(blocks) * block_bytes;
    }
    Ok(())
}

/// Reads the entry at a place where one was seen.
pub(super) fn read_entry(cache: &Cache<'_>, byte: u64) -> Result<Jset, CannotCheck> {
    let end = (byte / cache.bucket_bytes() + 1) * cache.bucket_bytes();
    let bytes = (MAX_JSET_BYTES as u64).min(end - byte);
    let bytes = read(cache.source, byte, bytes as usize)?;
    match parse(&bytes, cache.set_magic, cache.geometry.block_sectors) {
        Ok((entry, _)) => Ok(entry),
        Err(error) => Err(CannotCheck::Unreadable {
            device: Source::name(cache.source),
            byte,
            why: error.to_string(),
        }),
    }
}

/// Where entries stand: numbers and places of all that are accepted, in no order.
#[derive(Default)]
struct Places {
    /// (number, byte, the oldest that it needs)
    accepted: Vec<(u64, u64, u64)>,
    damaged: Vec<(u64, JsetError)>,
}

/// What a needed journal amounts to.
///
/// # Errors
/// The journal is empty or cannot be read, or an entry is missing.
pub fn replay(cache: &Cache<'_>) -> Result<Journal, CannotCheck> {
    let mut places = Places::default();
    for &bucket in &cache.sb.journal_buckets {
        scan(cache, bucket, &mut |seen| places.take(seen))?;
    }
    let newest = places.accepted.iter().max();
    let &(newest, byte, first) = newest.ok_or_else(|| {
        CannotCheck::Damaged(format!(
            "{}: the journal holds no whole entry",
            cache.source.name()
        ))
    })?;
    let needed = places.accepted.iter().filter(|(seq, ..)| *seq >= first);
    let needed: BTreeMap<u64, u64> = needed.map(|&(seq, byte, _)| (seq, byte)).collect();
    debug_assert!(needed.contains_key(&newest));
    Ok(Journal {
        newest: read_entry(cache, byte)?,
        newest_byte: byte,
        needed,
    })
}

impl Places {
    fn take(&mut self, seen: Seen) {
        match seen.entry {
            Ok(entry) if seen.accepted => {
                let place = (entry.seq.0, seen.byte, entry.last_seq.0);
                self.accepted.push(place);
            }
            Ok(_) => {}
            Err(error) => {
                if self.damaged.len() < DAMAGED_MAX {
                    self.damaged.push((seen.byte, error));
                }
            }
        }
    }
}

impl Check<'_> {
    /// Reads the journal and says what is wrong with it. `None` when nothing of the set can be
    /// found without it.
    pub(super) fn journal(&mut self) -> Option<Journal> {
        let mut places = Places::default();
        let buckets = self.cache.sb.journal_buckets.clone();
        for (i, &bucket) in buckets.iter().enumerate() {
            self.tell("journal", i as u64, buckets.len() as u64);
            let scanned = scan(&self.cache, bucket, &mut |seen| places.take(seen));
            if let Err(error) = scanned {
                let byte = self.cache.byte_of(bucket);
                self.find(Kind::Unreadable, byte, error.to_string());
            }
        }
        let Some(&(newest, newest_byte, first)) = places.accepted.iter().max() else {
            let byte = buckets.first().map_or(0, |&b| self.cache.byte_of(b));
            self.damaged(&places, None);
            let text = "the journal holds no whole entry: the set cannot be opened";
            self.find(Kind::JournalEmpty, byte, text);
            return None;
        };
        let mut needed = BTreeMap::new();
        for &(seq, byte, _) in places.accepted.iter().filter(|place| place.0 >= first) {
            if let Some(other) = needed.insert(seq, byte) {
                let text = format!("journal entry {seq} stands here and at byte {other}");
                self.find(Kind::JournalTwice, byte, text);
            }
        }
        self.damaged(&places, Some(newest_byte));
        self.gaps(first, newest, &needed);
        self.brim(first, newest, &needed);
        let summary = &mut self.report.summary;
        summary.journal_newest = newest;
        summary.journal_entries = needed.len() as u64;
        match read_entry(&self.cache, newest_byte) {
            Ok(newest) => Some(Journal {
                newest,
                newest_byte,
                needed,
            }),
            Err(error) => {
                self.find(Kind::Unreadable, newest_byte, error.to_string());
                None
            }
        }
    }

    /// Says which of the entries that are none are more than a write that was cut off.
    fn damaged(&mut self, places: &Places, newest: Option<u64>) {
        for &(byte, error) in &places.damaged {
            match error {
                JsetError::NotAnEntry
                | JsetError::Truncated { .. }
                | JsetError::TooLong { .. }
                | JsetError::BadChecksum { .. } => {
                    let bucket = byte / self.cache.bucket_bytes();
                    let behind = newest.is_some_and(|newest| newest < byte);
                    if behind && newest.map(|n| n / self.cache.bucket_bytes()) == Some(bucket) {
                        self.report.note(format!(
                            "{}: bucket {bucket} byte {byte}: the entry behind the newest was \
                             being written when the set ended: {error}",
                            self.cache.source.name()
                        ));
                    }
                }
                _ => self.find(Kind::JournalEntry, byte, error.to_string()),
            }
        }
    }

    /// Says which entries are missing from the first needed to the newest.
    fn gaps(&mut self, first: u64, newest: u64, needed: &BTreeMap<u64, u64>) {
        let (mut want, mut before) = (first, None);
        for (&seq, &byte) in needed {
            if seq > want {
                let missing = match seq - want {
                    1 => format!("journal entry {want} is missing"),
                    n => format!("journal entries {want} to {} are missing", want + n - 1),
                };
                let text = format!(
                    "{missing} (entries {first} to {newest} are needed; the next one is at byte \
                     {byte}): what they changed is lost"
                );
                self.find(Kind::JournalGap, before.unwrap_or(byte), text);
            }
            (want, before) = (seq + 1, Some(byte));
        }
    }

    /// Whether the journal is within what Linux can replay: see [`ring`](crate::journal::ring).
    fn brim(&mut self, first: u64, newest: u64, needed: &BTreeMap<u64, u64>) {
        let what_to_do = "do not open the set with Linux before spdk-bcache has started it and \
                          stopped it in good order, which takes the keys out of the journal";
        let Some(&newest_byte) = needed.get(&newest) else {
            return;
        };
        let live = newest + 1 - first;
        if live > LINUX_PINS_MAX {
            let text = format!(
                "{live} journal entries are needed; Linux replays {LINUX_PINS_MAX} safely, and may \
                 lose the keys of the others if it crashes: {what_to_do}"
            );
            self.find(Kind::JournalBrim, newest_byte, text);
        }
        let buckets = &self.cache.sb.journal_buckets;
        let bucket_bytes = self.cache.bucket_bytes();
        let bucket_of = |byte: u64| byte / bucket_bytes;
        let at = |bucket: &BucketNr| u64::from(bucket.0) == bucket_of(newest_byte);
        let current = buckets.iter().position(at).unwrap_or(0);
        let next = buckets[(current + 1) % buckets.len()];
        let in_next = |byte: &&u64| bucket_of(**byte) == u64::from(next.0);
        if let Some(&byte) = needed.values().find(in_next) {
            let text = format!(
                "journal bucket {next}, behind that of the newest entry, holds entries that are \
                 needed: Linux may hang while it replays the journal; {what_to_do}"
            );
            self.find(Kind::JournalBrim, byte, text);
        }
    }

    /// The keys that the journal brings, the later over the earlier, deletions included.
    pub(super) fn replay_keys(&mut self, journal: &Journal) -> Vec<Key> {
        let mut sets = Vec::with_capacity(journal.needed.len());
        for (i, (&seq, &byte)) in journal.needed.iter().enumerate() {
            self.tell("journal keys", i as u64, journal.needed.len() as u64);
            let keys = match read_entry(&self.cache, byte) {
                Ok(entry) => entry.keys,
                Err(error) => {
                    self.find(Kind::Unreadable, byte, error.to_string());
                    continue;
                }
            };
            self.report.summary.journal_keys += keys.len() as u64;
            let mut at = byte + jset::HEADER_BYTES as u64;
            let mut good = Vec::with_capacity(keys.len());
            for key in keys {
                match key.check_extent(&self.cache.geometry) {
                    Ok(()) => good.push(key),
                    Err(error) => {
                        let text = format!("journal entry {seq}: {error}: {}", describe(&key));
                        self.find(Kind::JournalKey, at, text);
                    }
                }
                at += key.encoded_bytes() as u64;
            }
            sets.push(good);
        }
        merge_keeping_deletions(&sets)
    }
}
