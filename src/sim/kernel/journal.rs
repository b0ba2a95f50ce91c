//! Which journal entries Linux finds, in which order it looks, and whether it can write the next.
//!
//! Linux reads no more journal buckets than it must. It takes buckets in an order that scatters them
//! until one holds an entry, narrows down by halves where the newest entry is, and then goes back from
//! there until a bucket has nothing new. While it reads, it keeps the entries in order and forgets
//! those that a newer one does not need. So an entry that stands in the journal is lost when the
//! search passes its bucket by.

use super::rule::{Refusal, Rule, refuse};
use crate::format::jset::{self, Jset, JsetError};
use crate::format::superblock::CacheSuper;
use crate::sim::bytes::Image;
use crate::units::SECTOR_BYTES;

/// Entries that Linux can hold on to at once: a table of 32,767 places, of which one stays free.
pub const PINS_MAX: u64 = 32_766;
/// What scatters the buckets, in 32 bits that wrap.
const SCATTER: u32 = 2_654_435_769;

/// The entries that Linux replays, and what it knows of the journal buckets.
pub struct Journal {
    /// From the oldest needed to the newest.
    pub entries: Vec<Jset>,
    /// The newest entry that was taken from each bucket; 0 for none, or not read.
    newest_of: Vec<u64>,
}

/// Reads the journal.
///
/// # Errors
/// There is no entry, one is missing, one is not what it looks like, or they are too many.
pub fn read(cache: &dyn Image, sb: &CacheSuper) -> Result<Journal, Refusal> {
    let buckets = sb.journal_buckets.len();
    let mut search = Search {
        cache,
        sb,
        list: Vec::new(),
        newest_of: vec![0; buckets],
        was_read: vec![false; buckets],
    };
    let Some(found) = search.find_any()? else {
        return Err(refuse(
            Rule::JournalEmpty,
            "no journal bucket holds an entry",
        ));
    };
    let last = search.narrow(found)?;
    search.go_back(last)?;
    let journal = Journal {
        entries: search.list,
        newest_of: search.newest_of,
    };
    journal.check(sb.discard())?;
    Ok(journal)
}

impl Journal {
    /// The newest entry.
    pub fn newest(&self) -> &Jset {
        // `read` returns no journal without an entry.
        &self.entries[self.entries.len() - 1]
    }

    fn check(&self, discards: bool) -> Result<(), Refusal> {
        let oldest_needed = self.newest().last_seq.0;
        let mut next = oldest_needed;
        for entry in &self.entries {
            // What was discarded may be missing at the front.
            let excused = discards && next == oldest_needed;
            if entry.seq.0 != next && !excused {
                let what = format!("entries {next} to {} are missing", entry.seq.0 - 1);
                return Err(refuse(Rule::JournalGap, what));
            }
            next = entry.seq.0 + 1;
        }
        let needed = self.newest().seq.0 - oldest_needed + 1;
        if needed > PINS_MAX {
            let what = format!("{needed} entries are needed, {PINS_MAX} at most can be held");
            return Err(refuse(Rule::JournalPins, what));
        }
        Ok(())
    }

    /// Whether Linux can enter the bucket behind the newest entry's, which it does with its first
    /// write, before it has freed any.
    ///
    /// # Errors
    /// That bucket holds an entry that is needed.
    pub fn check_room(&self) -> Result<(), Refusal> {
        let (count, oldest) = (self.newest_of.len(), self.newest().last_seq.0);
        let current = (0..count).fold(0, |best, i| {
            if self.newest_of[i] > self.newest_of[best] {
                i
            } else {
                best
            }
        });
        let next = (current + 1) % count;
        if self.newest_of[next] < oldest {
            return Ok(());
        }
        let what = format!(
            "journal bucket {next} comes next and holds entry {}, {oldest} is still needed",
            self.newest_of[next]
        );
        Err(refuse(Rule::JournalRoom, what))
    }
}

struct Search<'a> {
    cache: &'a dyn Image,
    sb: &'a CacheSuper,
    list: Vec<Jset>,
    newest_of: Vec<u64>,
    was_read: Vec<bool>,
}

impl Search<'_> {
    fn newest(&self) -> u64 {
        self.list.last().map_or(0, |entry| entry.seq.0)
    }

    /// A bucket with an entry.
    fn find_any(&mut self) -> Result<Option<usize>, Refusal> {
        let count = self.was_read.len();
        for i in 0..count {
            let bucket = (i as u32).wrapping_mul(SCATTER) as usize % count;
            if self.was_read[bucket] {
                break;
            }
            if self.read(bucket)? {
                return Ok(Some(bucket));
            }
        }
        for bucket in 0..count {
            if !self.was_read[bucket] && self.read(bucket)? {
                return Ok(Some(bucket));
            }
        }
        Ok(None)
    }

    /// Halves what lies behind a bucket with an entry; returns the last one looked at.
    fn narrow(&mut self, found: usize) -> Result<usize, Refusal> {
        let (mut left, mut last) = (found, found);
        let behind = self.was_read.iter().skip(found + 1).position(|&read| read);
        let mut right = behind.map_or(self.was_read.len(), |i| found + 1 + i);
        while left + 1 < right {
            let before = self.newest();
            last = (left + right) / 2;
            self.read(last)?;
            if self.newest() == before {
                right = last;
            } else {
                left = last;
            }
        }
        Ok(last)
    }

    /// Reads the buckets before `from`, in a ring, until one holds nothing new.
    fn go_back(&mut self, from: usize) -> Result<(), Refusal> {
        let mut bucket = from;
        loop {
            bucket = bucket.checked_sub(1).unwrap_or(self.was_read.len() - 1);
            if bucket == from {
                return Ok(());
            }
            if !self.was_read[bucket] && !self.read(bucket)? {
                return Ok(());
            }
        }
    }

    /// Reads a bucket; whether an entry was taken from it.
    fn read(&mut self, index: usize) -> Result<bool, Refusal> {
        self.was_read[index] = true;
        let bucket_bytes = self.sb.bucket_sectors as usize * SECTOR_BYTES;
        let block_sectors = u32::from(self.sb.block_sectors);
        let start = self.sb.journal_buckets[index].index() * bucket_bytes;
        let bytes = self.cache.get(start..start + bucket_bytes);
        let bytes = bytes.unwrap_or_default();
        let mut rest = &bytes[..];
        let mut taken = false;
        while !rest.is_empty() {
            let (entry, blocks) = match jset::parse(rest, self.sb.set_magic(), block_sectors) {
                Ok(found) => found,
                Err(
                    JsetError::NotAnEntry
                    | JsetError::TooLong { .. }
                    | JsetError::Truncated { .. }
                    | JsetError::BadChecksum { .. },
                ) => break,
                Err(why) => {
                    let what = format!("in journal bucket {index}: {why}");
                    return Err(refuse(Rule::JournalEntry, what));
                }
            };
            rest = &rest[blocks as usize * block_sectors as usize * SECTOR_BYTES..];
            let seq = entry.seq.0;
            if self.take(entry) {
                taken = true;
                self.newest_of[index] = self.newest_of[index].max(seq);
            }
        }
        Ok(taken)
    }

    /// Puts an entry into the list, unless it is known or no newer one needs it.
    fn take(&mut self, entry: Jset) -> bool {
        let needed = |old: &Jset| old.seq >= entry.last_seq;
        let expired = self.list.iter().take_while(|old| !needed(old)).count();
        self.list.drain(..expired);
        for at in (0..self.list.len()).rev() {
            let old = &self.list[at];
            if entry.seq == old.seq || entry.seq < old.last_seq {
                return false;
            }
            if entry.seq > old.seq {
                self.list.insert(at + 1, entry);
                return true;
            }
        }
        self.list.insert(0, entry);
        true
    }
}
