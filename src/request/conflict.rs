//! Who may not overlap whom: ranges written through, and what a fill must not have missed.

use crate::index::prefetch;
use crate::units::Sector;

/// Ranges of a volume that somebody holds: through writes, or write-back. None overlaps another.
#[derive(Default)]
pub struct Ranges(Vec<(Sector, Sector)>);

impl Ranges {
    /// The place of the first range that ends behind `start`.
    #[inline]
    fn place(&self, start: Sector) -> usize {
        self.0.partition_point(|held| held.1 <= start)
    }

    /// Whether something of a range is held.
    #[inline]
    pub fn overlaps(&self, start: Sector, end: Sector) -> bool {
        let next = self.0.get(self.place(start));
        next.is_some_and(|held| held.0 < end)
    }

    /// Takes a range that nobody holds.
    pub fn hold(&mut self, start: Sector, end: Sector) {
        assert!(start < end && !self.overlaps(start, end), "held twice");
        self.0.insert(self.place(start), (start, end));
    }

    /// Gives a range back.
    pub fn release(&mut self, start: Sector, end: Sector) {
        let place = self.place(start);
        assert_eq!(self.0.get(place), Some(&(start, end)), "not held");
        self.0.remove(place);
    }

    /// Gives all back.
    pub fn release_all(&mut self) {
        self.0.clear();
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// When each region of a volume last changed, by the volume's count of changes.
///
/// A table of fixed size under a hash of the region: a collision drops a fill that could have been
/// kept, which costs a later miss and nothing else.
pub struct Versions {
    table: Box<[u64]>,
}

/// 128 KiB: fills rarely span more than two regions.
const REGION_SHIFT: u32 = 8;
const SLOTS: usize = 16384;

impl Default for Versions {
    fn default() -> Self {
        Versions {
            table: vec![0; SLOTS].into_boxed_slice(),
        }
    }
}

impl Versions {
    fn slots(start: Sector, end: Sector) -> impl Iterator<Item = usize> {
        let (first, last) = (
            start.0 >> REGION_SHIFT,
            (end.0.max(start.0 + 1) - 1) >> REGION_SHIFT,
        );
        // A range over more regions than there are slots touches every slot.
        let last = last.min(first + SLOTS as u64 - 1);
        (first..=last).map(|r| (r.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as usize)
    }

    /// Notes change number `nr` of a range.
    pub fn changed(&mut self, start: Sector, end: Sector, nr: u64) {
        if (end.0 - start.0) >> REGION_SHIFT >= SLOTS as u64 {
            self.table.fill(nr);
            return;
        }
        for slot in Self::slots(start, end) {
            self.table[slot] = nr;
        }
    }

    /// Fetches what [`changed`](Self::changed) and [`changed_since`](Self::changed_since) look at
    /// for a position: the table is larger than the caches that data leave alone.
    #[inline]
    pub fn prefetch(&self, at: Sector) {
        Self::slots(at, at).for_each(|slot| prefetch(&self.table[slot]));
    }

    /// Whether a range may have changed after change number `seen`.
    pub fn changed_since(&self, start: Sector, end: Sector, seen: u64) -> bool {
        Self::slots(start, end).any(|slot| self.table[slot] > seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_held_until_they_are_given_back() {
        let mut held = Ranges::default();
        let range = |start: u64| (Sector(start), Sector(start + 8));
        for start in [24, 8, 40] {
            held.hold(range(start).0, range(start).1);
        }
        for (start, end, taken) in [(0, 8, false), (0, 9, true), (15, 20, true), (16, 24, false)] {
            assert_eq!(held.overlaps(Sector(start), Sector(end)), taken, "{start}");
        }
        assert!(held.overlaps(Sector(0), Sector(100)) && !held.overlaps(Sector(48), Sector(100)));
        held.release(range(24).0, range(24).1);
        assert!(!held.overlaps(Sector(16), Sector(40)) && held.overlaps(Sector(16), Sector(41)));
        held.release_all();
        assert!(held.is_empty());
    }

    #[test]
    #[should_panic(expected = "held twice")]
    fn nothing_is_held_twice() {
        let mut held = Ranges::default();
        held.hold(Sector(8), Sector(16));
        held.hold(Sector(0), Sector(9));
    }

    #[test]
    fn changes_are_seen_in_their_region_and_huge_ones_everywhere() {
        let mut v = Versions::default();
        v.changed(Sector(1000), Sector(1008), 5);
        assert!(v.changed_since(Sector(1004), Sector(1012), 4));
        assert!(!v.changed_since(Sector(1004), Sector(1012), 5));
        v.changed(Sector(0), Sector(1 << 40), 6);
        assert!(v.changed_since(Sector(1 << 41), Sector((1 << 41) + 8), 5));
    }
}

/// The count of changes that a fill carries, with every interleaving: the owner changes the map or
/// the backing device and then counts, the front looks at the count and then at both.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    const START: Sector = Sector(0);
    const END: Sector = Sector(8);

    /// A range of a volume: whether it is in the map, what is on the backing device, and
    /// [`crate::request::volume::Attached::changes`].
    struct Volume {
        cached: AtomicU64,
        backing: AtomicU64,
        changes: AtomicU64,
    }

    impl Volume {
        /// A reactor reads, and fills what it missed: the count that it saw, and the data.
        fn read(&self) -> Option<(u64, u64)> {
            let seen = self.changes.load(Ordering::Acquire);
            if self.cached.load(Ordering::Acquire) == 1 {
                return None;
            }
            Some((seen, self.backing.load(Ordering::Relaxed)))
        }

        /// The owner, after it has changed the range.
        fn changed(&self, versions: &mut Versions) {
            let nr = self.changes.load(Ordering::Relaxed) + 1;
            versions.changed(START, END, nr);
            self.changes.store(nr, Ordering::Release);
        }
    }

    /// A reader beside `change`; says of the fill it sends, if any, whether the owner takes it, and
    /// what it read.
    fn fill_beside(change: fn(&Volume, &mut Versions)) -> Option<(bool, u64)> {
        let volume = Arc::new(Volume {
            cached: AtomicU64::new(0),
            backing: AtomicU64::new(0),
            changes: AtomicU64::new(1),
        });
        let theirs = volume.clone();
        let reader = thread::spawn(move || theirs.read());
        let mut versions = Versions::default();
        change(&volume, &mut versions);
        let (seen, data) = reader.join().unwrap()?;
        Some((!versions.changed_since(START, END, seen), data))
    }

    #[test]
    fn a_fill_that_did_not_see_a_write_to_the_cache_is_dropped() {
        loom::model(|| {
            let fill = fill_beside(|volume, versions| {
                volume.cached.store(1, Ordering::Release);
                volume.changed(versions);
            });
            assert!(fill.is_none_or(|(taken, _)| !taken));
        });
    }

    #[test]
    fn a_fill_with_what_was_there_before_a_through_write_is_dropped() {
        loom::model(|| {
            let fill = fill_beside(|volume, versions| {
                volume.changed(versions);
                volume.backing.store(1, Ordering::Relaxed);
                volume.changed(versions);
            });
            assert!(fill.is_none_or(|(taken, data)| !taken || data == 1));
        });
    }
}
