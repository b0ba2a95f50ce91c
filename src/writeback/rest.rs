//! Dirty extents that could not be read: when each is tried again.
//!
//! The first time after a second, then after twice as long each time, up to about a minute. Their
//! number in a volume is bounded; an extent that was overwritten meanwhile is forgotten.

use std::collections::BTreeMap;

use crate::index::Extent;
use crate::units::Sector;

/// Extents of a volume that can rest at once.
pub const RESTING_MAX: usize = 256;
/// The first rest.
const FIRST_US: u64 = 1_000_000;
/// How often a rest is doubled.
const DOUBLED_MAX: u32 = 6;

struct Rest {
    extent: Extent,
    tries: u32,
    until_us: u64,
}

/// What rests of a volume, by place.
#[derive(Default)]
pub struct Resting(BTreeMap<Sector, Rest>);

impl Resting {
    /// Lays an extent to rest. Tells how often it has been tried, or `None` when too many rest.
    pub fn rest(&mut self, extent: &Extent, now_us: u64) -> Option<u32> {
        let full = self.0.len() >= RESTING_MAX;
        let tries = match self.0.get(&extent.start) {
            Some(rest) if rest.extent == *extent => rest.tries + 1,
            None if full => return None,
            _ => 1,
        };
        let until_us = now_us + (FIRST_US << (tries - 1).min(DOUBLED_MAX));
        let rest = Rest {
            extent: *extent,
            tries,
            until_us,
        };
        self.0.insert(extent.start, rest);
        Some(tries)
    }

    /// Whether an extent rests.
    pub fn has(&self, extent: &Extent, now_us: u64) -> bool {
        let rest = self.0.get(&extent.start);
        rest.is_some_and(|rest| rest.until_us > now_us && rest.extent == *extent)
    }

    /// Lets all extents be tried at once.
    pub fn wake(&mut self) {
        self.0.values_mut().for_each(|rest| rest.until_us = 0);
    }

    /// The sectors that rest. Forgets those that are no more what they were.
    pub fn sectors(&mut self, now_us: u64, is_same: impl Fn(&Extent) -> bool) -> u64 {
        self.0.retain(|_, rest| is_same(&rest.extent));
        let resting = self.0.values().filter(|rest| rest.until_us > now_us);
        resting.map(|rest| u64::from(rest.extent.sectors)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Gen;

    fn extent(start: u64) -> Extent {
        Extent {
            start: Sector(start),
            sectors: 8,
            at: Sector(1000),
            generation: Gen(0),
            dirty: true,
        }
    }

    #[test]
    fn rests_grow_longer_and_end() {
        let mut resting = Resting::default();
        assert_eq!(resting.rest(&extent(0), 0), Some(1));
        assert!(resting.has(&extent(0), FIRST_US - 1) && !resting.has(&extent(0), FIRST_US));
        assert_eq!(resting.rest(&extent(0), FIRST_US), Some(2));
        assert!(resting.has(&extent(0), 3 * FIRST_US - 1));
        assert_eq!(resting.sectors(2 * FIRST_US, |_| true), 8);
        resting.wake();
        assert!(!resting.has(&extent(0), 0));
        for _ in 0..100 {
            resting.rest(&extent(0), 0);
        }
        assert!(!resting.has(&extent(0), 65 * FIRST_US));
        resting.sectors(0, |_| false);
        assert!(resting.0.is_empty());
    }

    #[test]
    fn no_more_rest_than_there_is_room_for() {
        let mut resting = Resting::default();
        for i in 0..RESTING_MAX as u64 {
            assert_eq!(resting.rest(&extent(8 * i), 0), Some(1));
        }
        let one_more = extent(8 * RESTING_MAX as u64);
        assert_eq!(resting.rest(&one_more, 0), None);
        assert_eq!(resting.rest(&extent(8), 0), Some(2));
    }
}
