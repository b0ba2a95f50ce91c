//! A volume whose cache device is gone: which of its I/O cannot be served meanwhile.
//!
//! What was dirty is on the cache device alone, so it can be neither read nor written past the cache.
//! Nor can anything else be written: the cache may hold a clean copy of it, which would be old when
//! the device comes back. Everything else is read from the backing device, and flushed there.
//!
//! Positions are those of the volume, in sectors.

use super::Kind;

/// What such a volume cannot serve.
pub struct Missing {
    /// Ranges (from, to) whose data are on the cache device alone; sorted, apart from each other.
    ranges: Vec<(u64, u64)>,
    /// Nothing at all can be served: it is being found out what can.
    all: bool,
    /// Whether I/O that cannot be served waits; else it fails.
    pub waits: bool,
}

impl Missing {
    /// Holds everything back, for a moment.
    pub const fn everything() -> Missing {
        Missing {
            ranges: Vec::new(),
            all: true,
            waits: true,
        }
    }

    /// Holds back what needs one of these ranges, given in order, and all writes.
    pub fn of(ranges: impl IntoIterator<Item = (u64, u64)>, waits: bool) -> Missing {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (from, to) in ranges {
            match joined.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        Missing {
            ranges: joined,
            all: false,
            waits,
        }
    }

    /// The same, but nothing waits.
    pub fn failing(&self) -> Missing {
        Missing {
            ranges: self.ranges.clone(),
            all: self.all,
            waits: false,
        }
    }

    /// Sectors that are on the cache device alone.
    pub fn sectors(&self) -> u64 {
        self.ranges.iter().map(|(from, to)| to - from).sum()
    }

    /// Whether an I/O cannot be served.
    #[cold]
    pub fn stops(&self, kind: Kind, start: u64, sectors: u64) -> bool {
        match kind {
            _ if self.all => true,
            Kind::Flush => false,
            Kind::Read => {
                let next = self.ranges.partition_point(|&(_, to)| to <= start);
                let next = self.ranges.get(next);
                next.is_some_and(|&(from, _)| from < start + sectors)
            }
            Kind::Write | Kind::Unmap | Kind::WriteZeroes => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_dirty_is_read_and_nothing_is_written() {
        let missing = Missing::of([(8, 16), (16, 24), (40, 48)], true);
        assert_eq!(missing.sectors(), 24);
        let read = |start, sectors| missing.stops(Kind::Read, start, sectors);
        assert!(!read(0, 8) && !read(24, 16) && !read(48, 100));
        assert!(read(0, 9) && read(23, 1) && read(30, 11) && read(47, 1) && read(0, 100));
        for kind in [Kind::Write, Kind::Unmap, Kind::WriteZeroes] {
            assert!(missing.stops(kind, 24, 8));
        }
        assert!(!missing.stops(Kind::Flush, 0, 0));
        assert!(Missing::everything().stops(Kind::Flush, 0, 0));
    }
}
