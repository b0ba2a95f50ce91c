//! Who may not overlap whom: ranges written through, and what a fill must not have missed.

use crate::units::Sector;

/// A through write in flight.
#[derive(Clone, Copy, Debug)]
struct Held {
    volume: u32,
    start: Sector,
    end: Sector,
}

/// The ranges that through writes hold. Bounded by the host I/Os in flight.
#[derive(Default)]
pub struct Throughs(Vec<Held>);

impl Throughs {
    /// Whether a range is touched by a through write.
    #[inline]
    pub fn overlaps(&self, volume: u32, start: Sector, end: Sector) -> bool {
        let mut held = self.0.iter();
        held.any(|h| h.volume == volume && h.start < end && start < h.end)
    }

    /// Takes a range that nobody holds.
    pub fn hold(&mut self, volume: u32, start: Sector, end: Sector) {
        debug_assert!(!self.overlaps(volume, start, end));
        self.0.push(Held { volume, start, end });
    }

    /// Gives a range back.
    pub fn release(&mut self, volume: u32, start: Sector, end: Sector) {
        let same = |h: &Held| h.volume == volume && h.start == start && h.end == end;
        let at = self.0.iter().position(same);
        self.0.swap_remove(at.expect("the range is held"));
    }

    /// Whether any through write of a volume is in flight.
    pub fn any(&self, volume: u32) -> bool {
        self.0.iter().any(|h| h.volume == volume)
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

    /// Whether a range may have changed after change number `seen`.
    pub fn changed_since(&self, start: Sector, end: Sector, seen: u64) -> bool {
        Self::slots(start, end).any(|slot| self.table[slot] > seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughs_hold_their_ranges() {
        let mut t = Throughs::default();
        t.hold(1, Sector(8), Sector(16));
        assert!(t.overlaps(1, Sector(15), Sector(20)));
        assert!(!t.overlaps(1, Sector(16), Sector(20)));
        assert!(!t.overlaps(2, Sector(8), Sector(16)));
        t.release(1, Sector(8), Sector(16));
        assert!(!t.any(1));
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
