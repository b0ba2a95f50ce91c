//! Counters. Each front writes its own, without any atomic read-modify-write; readers sum them up.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A value on a pair of cache lines of its own (processors fetch lines in pairs): for what some
/// reactors write while others read what would lie beside it.
#[derive(Default)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// A counter with one writer.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the one writer may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(n), Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of one front.
        #[derive(Default)]
        #[repr(align(128))]
        pub struct FrontStats { $($(#[$doc])* pub $name: Counter,)* }

        /// The values of the counters at one time.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl FrontStats {
            /// Reads all counters.
            pub fn read(&self) -> Counts {
                Counts { $($name: self.$name.get(),)* }
            }
        }

        impl Add for Counts {
            type Output = Counts;
            fn add(self, other: Counts) -> Counts {
                Counts { $($name: self.$name.wrapping_add(other.$name),)* }
            }
        }

        impl Sub for Counts {
            type Output = Counts;
            fn sub(self, other: Counts) -> Counts {
                Counts { $($name: self.$name.wrapping_sub(other.$name),)* }
            }
        }

        impl Counts {
            /// Scales all values by a fraction, for decaying averages.
            pub fn scaled(self, numerator: u64, denominator: u64) -> Counts {
                let scale = |n: u64| {
                    (u128::from(n) * u128::from(numerator) / u128::from(denominator)) as u64
                };
                Counts { $($name: scale(self.$name),)* }
            }
        }
    };
}

counts! {
    /// Reads served from the cache alone.
    cache_hits,
    /// Reads that needed the backing device.
    cache_misses,
    /// Reads past the cache (mode none) whose data were in it.
    cache_bypass_hits,
    /// Reads past the cache (mode none) whose data were not in it.
    cache_bypass_misses,
    /// Fills that were dropped because something changed under them.
    cache_miss_collisions,
    /// Sectors written past the cache.
    bypassed_sectors,
    /// Host reads.
    reads,
    /// Host writes.
    writes,
    /// Sectors read by hosts.
    read_sectors,
    /// Sectors written by hosts.
    written_sectors,
    /// Host flushes.
    flushes,
}

/// The counters of all fronts that a volume has or had.
#[derive(Default)]
pub struct Totals(Mutex<(Vec<Arc<FrontStats>>, Counts)>);

impl Totals {
    /// Counters for a new front.
    pub fn front(&self) -> Arc<FrontStats> {
        let stats = Arc::new(FrontStats::default());
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let (live, gone) = &mut *all;
        // Those of fronts that are gone are kept as a sum.
        live.retain(|stats| {
            let used = Arc::strong_count(stats) > 1;
            if !used {
                *gone = *gone + stats.read();
            }
            used
        });
        live.push(stats.clone());
        stats
    }

    /// The sum.
    pub fn sum(&self) -> Counts {
        let all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.0.iter().fold(all.1, |sum, stats| sum + stats.read())
    }
}

impl Counts {
    /// Hits in percent of hits and misses, rounded; 0 when there were none.
    pub fn hit_ratio(&self) -> u64 {
        let all = self.cache_hits + self.cache_misses;
        (self.cache_hits * 100 + all / 2)
            .checked_div(all)
            .unwrap_or(0)
    }
}

/// Counters since the last reset, and decayed over three spans, as the kernel's statistics are.
#[derive(Default)]
pub struct Windows {
    base: Counts,
    last: Counts,
    /// What the last five minutes brought, decaying.
    pub five_minute: Counts,
    /// What the last hour brought, decaying.
    pub hour: Counts,
    /// What the last day brought, decaying.
    pub day: Counts,
}

/// Seconds between two calls of [`Windows::tick`].
pub const TICK_S: u64 = 10;

impl Windows {
    /// Takes the counters in; called every [`TICK_S`] seconds.
    pub fn tick(&mut self, now: Counts) {
        let fresh = now - self.last;
        self.last = now;
        for (window, span_s) in [
            (&mut self.five_minute, 300),
            (&mut self.hour, 3600),
            (&mut self.day, 86400),
        ] {
            let ticks = span_s / TICK_S;
            *window = window.scaled(ticks - 1, ticks) + fresh;
        }
    }

    /// The counts since the last reset.
    pub fn total(&self, now: Counts) -> Counts {
        now - self.base
    }

    /// Starts anew from zero.
    pub fn reset(&mut self, now: Counts) {
        *self = Windows {
            base: now,
            last: now,
            ..Windows::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_decay_and_reset() {
        let mut windows = Windows::default();
        let mut now = Counts {
            cache_hits: 300,
            ..Counts::default()
        };
        windows.tick(now);
        assert_eq!(windows.five_minute.cache_hits, 300);
        windows.tick(now);
        assert_eq!(windows.five_minute.cache_hits, 290);
        now.cache_misses = 100;
        assert_eq!(windows.total(now).hit_ratio(), 75);
        windows.reset(now);
        assert_eq!(windows.total(now), Counts::default());
    }
}
