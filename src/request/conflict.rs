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
