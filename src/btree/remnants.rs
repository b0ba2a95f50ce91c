//! What the disk may still say: ranges for which a crash may bring back an older key than the map has.
//!
//! After a crash the map is made of the leaves on the disk and of the journal over them. In memory
//! it may be ahead of both where it changed without an entry. As a rule that does no harm: what the
//! disk says then is a key that the map has too, or had until its bucket was given away for good. A
//! clean extent that was *moved* is the exception. The disk names the old bucket, the map the new
//! one; the new one may be given away and the extent forgotten while the old bucket, held by other
//! data, is as fresh as ever. So the map alone cannot tell that nothing would come back.
//!
//! Once the journal is durable, the disk says of a range at most what the map says there, stale
//! extents included whose bucket is not yet given away on the disk, and what is recorded here. Until
//! then it may have what a key in the open entry covers, too: where the map has such a key, the
//! answer is yes, and the deletion that follows is durable only with all that came before it. [`Tree::may_come_back`] asks both, and
//! is the only source for the decision that a range of the backing device may change without a
//! deletion in the journal. A tree that has just been loaded needs no record: its map was made of
//! all that the disk says.
//!
//! A range is recorded when its extent is moved. It is no longer needed
//! - once a key in the journal covers it: whatever relies on that waits for the entry, and a replay
//!   applies it last;
//! - or once its leaf was written since, and the journal is replayed from behind all entries that
//!   may name the range. An entry with a key that was journalled before the move would be applied
//!   over the leaf.
//!
//! Bounds: [`REMNANTS_MAX`] ranges, about 64 bytes each; clean data are not moved while there are as
//! many. Nothing is looked up on a read.
//!
//! [`Tree::may_come_back`]: super::Tree::may_come_back

use std::collections::BTreeMap;

use super::Pos;
use super::nodes::Span;
use crate::canary::{self, Bug};
use crate::units::{Inode, JournalSeq, Sector};

/// Ranges beyond which no clean data are moved: 4 MiB of memory.
pub const REMNANTS_MAX: usize = 65536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its leaf was not written since it was recorded, as number so many.
    Recorded(u64),
    /// Its leaf was written when this entry of the journal was open.
    Written(JournalSeq),
}

#[derive(Clone, Copy, Debug)]
struct Remnant {
    end: Sector,
    stage: Stage,
}

/// The leaves of a range that are being written, with what was recorded before they were gathered.
#[derive(Clone, Copy, Debug)]
pub struct Gathered {
    start: Pos,
    end: Pos,
    before: u64,
}

/// All recorded ranges of a tree; none overlaps another.
pub struct Remnants {
    ranges: BTreeMap<Pos, Remnant>,
    recorded: u64,
    /// The first entry that a crash would have replayed, when that was looked at last.
    replayed_from: JournalSeq,
}

impl Default for Remnants {
    fn default() -> Self {
        Remnants {
            ranges: BTreeMap::new(),
            recorded: 0,
            replayed_from: JournalSeq(0),
        }
    }
}

impl Remnants {
    /// Whether clean data may be moved.
    pub fn has_room(&self) -> bool {
        self.ranges.len() < REMNANTS_MAX
    }

    /// The first recorded range that intersects one, cut to it.
    pub fn first_in(&self, inode: Inode, start: Sector, end: Sector) -> Option<(Sector, Sector)> {
        if self.ranges.is_empty() || start >= end {
            return None;
        }
        let before = self.ranges.range(..=(inode, start)).next_back();
        let before = before.filter(|(pos, remnant)| pos.0 == inode && remnant.end > start);
        let next = || self.ranges.range((inode, start)..(inode, end)).next();
        let (pos, remnant) = before.or_else(next)?;
        Some((pos.1.max(start), remnant.end.min(end)))
    }

    /// The extent of a range is moved without an entry in the journal.
    pub fn record(&mut self, span: Span) {
        if canary::has(Bug::RemnantForgotten) {
            return;
        }
        self.cover(span);
        self.recorded += 1;
        let remnant = Remnant {
            end: span.end,
            stage: Stage::Recorded(self.recorded),
        };
        self.ranges.insert((span.inode, span.start), remnant);
    }

    /// A key in the journal covers a range.
    pub fn cover(&mut self, span: Span) {
        while let Some((from, _)) = self.first_in(span.inode, span.start, span.end) {
            let upto = (span.inode, from);
            let found = self.ranges.range(..=upto).next_back().map(|(&pos, _)| pos);
            let Some((pos, remnant)) = found.and_then(|pos| Some((pos, self.ranges.remove(&pos)?)))
            else {
                return;
            };
            if pos.1 < span.start {
                let left = Remnant {
                    end: span.start,
                    ..remnant
                };
                self.ranges.insert(pos, left);
            }
            if remnant.end > span.end {
                self.ranges.insert((span.inode, span.end), remnant);
            }
        }
    }

    /// What the leaves between two positions say is being gathered now, to be written.
    pub fn gather(&self, start: Pos, end: Pos) -> Gathered {
        Gathered {
            start,
            end,
            before: self.recorded,
        }
    }

    /// Those leaves have been written, in a tree whose root is durable or did not change; the journal
    /// now collects the keys of entry `open`.
    pub fn written(&mut self, leaves: &Gathered, open: JournalSeq) {
        let parts = self.ranges.range_mut(leaves.start..leaves.end);
        for ((inode, _), remnant) in parts {
            // One that goes on in the next leaf stays until it is covered.
            let within = (*inode, remnant.end) <= leaves.end;
            if matches!(remnant.stage, Stage::Recorded(nr) if nr <= leaves.before) && within {
                remnant.stage = Stage::Written(open);
            }
        }
    }

    /// A crash would replay the journal from entry `first` on: forgets what no entry may name.
    pub fn replayed_from(&mut self, first: JournalSeq) {
        if std::mem::replace(&mut self.replayed_from, first) == first {
            return;
        }
        self.ranges.retain(|_, remnant| match remnant.stage {
            Stage::Recorded(_) => true,
            Stage::Written(open) => open >= first,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span {
            inode: Inode(3),
            start: Sector(start),
            end: Sector(end),
        }
    }

    /// The recorded sectors of 0..100, by asking for each.
    fn recorded(remnants: &Remnants) -> Vec<u64> {
        let is_in = |&at: &u64| {
            let found = remnants.first_in(Inode(3), Sector(at), Sector(at + 1));
            found == Some((Sector(at), Sector(at + 1)))
        };
        (0..100).filter(is_in).collect()
    }

    fn all(ranges: &[(u64, u64)]) -> Vec<u64> {
        ranges.iter().flat_map(|&(from, to)| from..to).collect()
    }

    #[test]
    fn what_a_journalled_key_covers_is_cut_out() {
        let mut remnants = Remnants::default();
        remnants.record(span(10, 30));
        remnants.record(span(40, 50));
        remnants.cover(span(15, 20));
        assert_eq!(recorded(&remnants), all(&[(10, 15), (20, 30), (40, 50)]));
        let first = |from, to| remnants.first_in(Inode(3), Sector(from), Sector(to));
        assert_eq!(first(12, 100), Some((Sector(12), Sector(15))));
        assert_eq!((first(15, 20), first(50, 90)), (None, None));
        assert_eq!(remnants.first_in(Inode(2), Sector(0), Sector(100)), None);
        assert_eq!(remnants.first_in(Inode(4), Sector(0), Sector(100)), None);
        remnants.cover(span(0, 45));
        assert_eq!(recorded(&remnants), all(&[(45, 50)]));
        remnants.record(span(0, 100));
        assert_eq!(recorded(&remnants), all(&[(0, 100)]));
    }

    #[test]
    fn a_range_is_needed_until_its_leaf_is_written_and_no_older_entry_is_replayed() {
        let (start, end) = ((Inode(0), Sector(0)), (Inode(9), Sector(0)));
        let mut remnants = Remnants::default();
        remnants.record(span(0, 8));
        let leaves = remnants.gather(start, end);
        // Moved again while the leaf is on its way to the disk.
        remnants.record(span(16, 24));
        remnants.replayed_from(JournalSeq(9));
        remnants.written(&leaves, JournalSeq(7));
        remnants.replayed_from(JournalSeq(7));
        assert_eq!(recorded(&remnants), all(&[(0, 8), (16, 24)]));
        remnants.replayed_from(JournalSeq(8));
        assert_eq!(recorded(&remnants), all(&[(16, 24)]));
    }

    #[test]
    fn a_range_in_two_leaves_is_not_forgotten_for_one_of_them() {
        let mut remnants = Remnants::default();
        remnants.record(span(0, 8));
        let (start, middle) = ((Inode(3), Sector(0)), (Inode(3), Sector(4)));
        let left = remnants.gather(start, middle);
        remnants.written(&left, JournalSeq(1));
        remnants.replayed_from(JournalSeq(5));
        assert_eq!(recorded(&remnants), all(&[(0, 8)]));
    }
}
