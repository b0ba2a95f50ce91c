//! Counters. Each front writes its own, without any atomic read-modify-write; readers sum them up.
//!
//! What a front counts belongs to its volume and to the set that caches it: both list the same
//! counters ([`Totals`]), and keep their sum when the front is gone. So no figure falls when a volume
//! is attached, detached or made anew; only a reset ([`Windows::reset`]) starts it from zero.

use std::ops::{Add, Deref, Sub};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
        pub struct FrontStats { $($(#[$doc])* pub $name: Counter,)* closed: AtomicBool }

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
                Counts { $($name: self.$name.saturating_sub(other.$name),)* }
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

/// The right to count: one front's, or one owner's. Nothing is counted after it is dropped.
#[derive(Default)]
pub struct Counting(Arc<FrontStats>);

impl Deref for Counting {
    type Target = FrontStats;
    fn deref(&self) -> &FrontStats {
        &self.0
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Whoever sees this sees all that was counted.
        self.0.closed.store(true, Ordering::Release);
    }
}

/// All counters that a volume or a set has or had.
#[derive(Default)]
pub struct Totals(Mutex<(Vec<Arc<FrontStats>>, Counts)>);

impl Totals {
    /// Adds counters that have just been made, and keeps of those that are closed the sum alone.
    pub fn add(&self, counting: &Counting) {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let (open, sum) = &mut *all;
        open.retain(|stats| {
            let closed = stats.closed.load(Ordering::Acquire);
            if closed {
                *sum = *sum + stats.read();
            }
            !closed
        });
        open.push(counting.0.clone());
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

/// Counts over four spans: since the last reset, and the last five minutes, hour and day, decaying
/// as the kernel's statistics do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Since the last reset.
    pub total: Counts,
    /// The last five minutes.
    pub five_minute: Counts,
    /// The last hour.
    pub hour: Counts,
    /// The last day.
    pub day: Counts,
}

impl Add for Spans {
    type Output = Spans;
    fn add(self, other: Spans) -> Spans {
        Spans {
            total: self.total + other.total,
            five_minute: self.five_minute + other.five_minute,
            hour: self.hour + other.hour,
            day: self.day + other.day,
        }
    }
}

/// The statistics of a volume or a set, made of counters that only grow.
#[derive(Default)]
pub struct Windows {
    /// What the spans held at `last`.
    spans: Spans,
    last: Counts,
}

/// Seconds between two calls of [`Windows::tick`].
pub const TICK_S: u64 = 10;

impl Windows {
    /// Takes the counters in and lets the windows decay; called every [`TICK_S`] seconds.
    pub fn tick(&mut self, now: Counts) {
        let fresh = now - self.last;
        self.spans.total = self.spans.total + fresh;
        self.last = now;
        for (window, span_s) in [
            (&mut self.spans.five_minute, 300),
            (&mut self.spans.hour, 3600),
            (&mut self.spans.day, 86400),
        ] {
            let ticks = span_s / TICK_S;
            *window = window.scaled(ticks - 1, ticks) + fresh;
        }
    }

    /// The statistics now, with what was counted since the last tick.
    pub fn spans(&self, now: Counts) -> Spans {
        let fresh = now - self.last;
        self.spans
            + Spans {
                total: fresh,
                five_minute: fresh,
                hour: fresh,
                day: fresh,
            }
    }

    /// Starts anew from zero.
    pub fn reset(&mut self, now: Counts) {
        *self = Windows {
            last: now,
            ..Windows::default()
        };
    }

    /// Goes on from earlier statistics: those of a volume that was gone meanwhile.
    pub fn resume(&mut self, earlier: Spans) {
        self.spans = self.spans + earlier;
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
        // They count from the first second, not from the first tick.
        assert_eq!(windows.spans(now).five_minute.cache_hits, 300);
        windows.tick(now);
        assert_eq!(windows.spans(now).five_minute.cache_hits, 300);
        windows.tick(now);
        now.cache_misses = 100;
        let spans = windows.spans(now);
        assert_eq!(spans.five_minute.cache_hits, 290);
        assert_eq!(spans.day.cache_misses, 100);
        assert_eq!(spans.total.hit_ratio(), 75);
        windows.reset(now);
        assert_eq!(windows.spans(now), Spans::default());
        windows.resume(spans);
        assert_eq!(windows.spans(now), spans);
    }

    #[test]
    fn a_sum_never_falls_when_a_front_goes() {
        let (volume, set) = (Totals::default(), Totals::default());
        for n in 1..=3 {
            let counting = Counting::default();
            volume.add(&counting);
            set.add(&counting);
            counting.reads.add(n);
        }
        let last = Counting::default();
        volume.add(&last);
        assert_eq!((volume.sum().reads, set.sum().reads), (6, 6));
        assert_eq!(
            volume.0.lock().unwrap().0.len(),
            1,
            "closed ones are not kept"
        );
    }
}
