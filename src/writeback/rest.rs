//! Dirty extents that could not be read: when each is tried again.
//!
//! The first time after a second, then after twice as long each time, up to about a minute. Their
//! number is bounded; an extent that was overwritten meanwhile is forgotten.

use std::collections::BTreeMap;

use crate::index::Extent;
use crate::units::Sector;

/// Extents that can rest at once.
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

/// What rests, by volume and place.
#[derive(Default)]
pub struct Resting(BTreeMap<(u32, Sector), Rest>);

impl Resting {
    /// Lays an extent to rest. Tells how often it has been tried, or `None` when too many rest.
    pub fn rest(&mut self, volume: u32, extent: &Extent, now_us: u64) -> Option<u32> {
        let full = self.0.len() >= RESTING_MAX;
        let key = (volume, extent.start);
        let tries = match self.0.get(&key) {
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
        self.0.insert(key, rest);
        Some(tries)
    }

    /// Whether an extent rests.
    pub fn has(&self, volume: u32, extent: &Extent, now_us: u64) -> bool {
        let rest = self.0.get(&(volume, extent.start));
        rest.is_some_and(|rest| rest.until_us > now_us && rest.extent == *extent)
    }

    /// Lets all extents of a volume be tried at once.
    pub fn wake(&mut self, volume: u32) {
        let own = self.0.iter_mut().filter(|(key, _)| key.0 == volume);
        own.for_each(|(_, rest)| rest.until_us = 0);
    }

    /// The sectors of a volume that rest. Forgets those that are no more what they were.
    pub fn sectors(&mut self, volume: u32, now_us: u64, is_same: impl Fn(&Extent) -> bool) -> u64 {
        self.0
            .retain(|key, rest| key.0 != volume || is_same(&rest.extent));
        let own = self.0.iter().filter(|(key, _)| key.0 == volume);
        let resting = own.filter(|(_, rest)| rest.until_us > now_us);
        resting
            .map(|(_, rest)| u64::from(rest.extent.sectors))
            .sum()
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
        assert_eq!(resting.rest(0, &extent(0), 0), Some(1));
        assert!(resting.has(0, &extent(0), FIRST_US - 1) && !resting.has(0, &extent(0), FIRST_US));
        assert_eq!(resting.rest(0, &extent(0), FIRST_US), Some(2));
        assert!(resting.has(0, &extent(0), 3 * FIRST_US - 1));
        assert_eq!(resting.sectors(0, 2 * FIRST_US, |_| true), 8);
        assert_eq!(resting.sectors(1, 2 * FIRST_US, |_| true), 0);
        resting.wake(0);
        assert!(!resting.has(0, &extent(0), 0));
        for _ in 0..100 {
            resting.rest(0, &extent(0), 0);
        }
        assert!(!resting.has(0, &extent(0), 65 * FIRST_US));
        resting.sectors(0, 0, |_| false);
        assert!(resting.0.is_empty());
    }

    #[test]
    fn no_more_rest_than_there_is_room_for() {
        let mut resting = Resting::default();
        for i in 0..RESTING_MAX as u64 {
            assert_eq!(resting.rest(0, &extent(8 * i), 0), Some(1));
        }
        assert_eq!(resting.rest(1, &extent(0), 0), None);
        assert_eq!(resting.rest(0, &extent(8), 0), Some(2));
    }
}
