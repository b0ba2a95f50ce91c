//! A front's connection to its cache set: what is where in the map, space for new data, and the
//! rings to the owner and back.
//!
//! A lookup takes no lock and allocates nothing. What it finds holds for as long as the bucket's
//! generation does, which whoever reads the data looks at again afterwards.

use std::cell::{Cell, RefCell};

use super::front::FILLS_MAX;
use super::msg::{self, FrontRings, Hello, Message};
use super::space::Stream;
use super::volume::{Attached, SetShared};
use crate::disk::IoError;
use crate::index::{Extent, Lookup, Reader, TOGETHER};
use crate::units::{Gen, Sector};

/// Host I/Os that are counted before the others are told.
const COUNT_STEP: u64 = 64;
/// Neighbouring extents that are joined into one transfer at most.
const JOIN_MAX: usize = 32;

/// A read of the backing device on its way into the cache.
#[derive(Clone, Copy)]
pub(super) struct Fill {
    pub(super) token: u64,
    pub(super) part: u8,
    pub(super) writing: bool,
    pub(super) host_sectors: u32,
    pub(super) start: Sector,
    pub(super) seen: u64,
    pub(super) at: Sector,
    pub(super) generation: Gen,
    pub(super) sectors: u32,
}

/// A front's connection to the cache set.
pub(super) struct Link {
    pub(super) attached: Attached,
    pub(super) id: u32,
    pub(super) reader: Reader,
    pub(super) rings: FrontRings,
    pub(super) dirty: Stream,
    pub(super) clean: Stream,
    pub(super) fills: RefCell<Vec<Option<Fill>>>,
    pub(super) free_fills: RefCell<Vec<u16>>,
    pub(super) traffic_sectors: Cell<u64>,
    pub(super) ios: Cell<u64>,
    ios_before: Cell<u64>,
}

/// What a lookup found at a sector.
pub(super) enum Found {
    /// So many sectors at one place on the cache device.
    Cached {
        at: Sector,
        generation: Gen,
        dirty: bool,
        sectors: u32,
    },
    /// So many sectors that are not cached.
    Missing { sectors: u32 },
}

impl Link {
    pub(super) fn new(attached: Attached) -> Option<Link> {
        let reader = attached.set.domain.reader()?;
        let (rings, owner_rings) = msg::rings();
        let link = Link {
            id: attached.set.front_id(),
            attached,
            reader,
            rings,
            dirty: Stream::default(),
            clean: Stream::default(),
            fills: RefCell::new(vec![None; FILLS_MAX.into()]),
            free_fills: RefCell::new((0..FILLS_MAX).rev().collect()),
            traffic_sectors: Cell::new(0),
            ios: Cell::new(0),
            ios_before: Cell::new(0),
        };
        link.set().door.knock(Hello {
            front: link.id,
            volume: link.attached.number,
            rings: owner_rings,
        });
        // So that the first miss is kept already; for dirty data only once some are written.
        link.ask_for_space(false);
        Some(link)
    }

    pub(super) fn set(&self) -> &SetShared {
        &self.attached.set
    }

    #[inline]
    pub(super) fn send(&self, message: Message) {
        self.rings.messages.send(message);
    }

    /// Asks the owner for a bucket for dirty or clean data, if one will be needed soon.
    pub(super) fn ask_for_space(&self, dirty: bool) {
        if self.stream(dirty).wants_more() {
            let front = self.id;
            self.send(Message::WantBucket { front, dirty });
        }
    }

    /// Gives the open buckets back to which no write is under way: others wait for space.
    pub(super) fn give_back_space(&self) {
        for stream in [&self.dirty, &self.clean] {
            for bucket in stream.give_back() {
                self.send(Message::DoneBucket(bucket));
            }
        }
    }

    /// Counts a host I/O, to be told to the others in coarse steps.
    #[inline]
    pub(super) fn count(&self, sectors: u64) {
        self.traffic_sectors
            .set(self.traffic_sectors.get() + sectors);
        self.ios.set(self.ios.get() + 1);
    }

    /// Tells the others what was counted, when it is much or nothing was since the last call.
    #[inline]
    pub(super) fn tell_counts(&self) {
        let ios = self.ios.get();
        let before = self.ios_before.replace(ios);
        if ios == 0 || ios < COUNT_STEP && ios != before {
            return;
        }
        self.ios.set(0);
        self.set().gens.tick(self.traffic_sectors.take());
        self.set().count_ios(ios);
    }

    /// A transfer from or to the cache device failed. The owner hears of it if the device is at
    /// fault.
    #[cold]
    pub(super) fn cache_error(&self, extent: Extent, write: bool, why: IoError) {
        if !why.is_device_error() {
            return;
        }
        self.send(Message::CacheError {
            volume: self.attached.number,
            extent,
            write,
        });
    }

    pub(super) fn stream(&self, dirty: bool) -> &Stream {
        if dirty { &self.dirty } else { &self.clean }
    }

    /// The owner knows of a piece, or never will.
    pub(super) fn reported(&self, dirty: bool, at: Sector) {
        let bucket = self.set().gens.bucket_of(at);
        if let Some(done) = self.stream(dirty).reported(bucket) {
            self.send(Message::DoneBucket(done));
        }
    }

    pub(super) fn fresh(&self, extent: &Extent) -> bool {
        let gens = &self.set().gens;
        gens.generation(gens.bucket_of(extent.at)) == extent.generation
    }

    /// What is at `at`, up to `max` sectors.
    #[inline]
    pub(super) fn find(&self, at: Sector, max: u32) -> Found {
        self.found(self.attached.index.lookup(&self.reader, at), at, max)
    }

    /// Looks up several positions at once, and fetches what [`found`](Self::found) will look at.
    pub(super) fn find_all(&self, at: &[Sector]) -> [Lookup; TOGETHER] {
        let found = self.attached.index.lookup_all(&self.reader, at);
        let gens = &self.set().gens;
        for lookup in &found[..at.len()] {
            if let Lookup::Hit(e) = lookup {
                gens.prefetch(gens.bucket_of(e.at));
            }
        }
        found
    }

    /// What a lookup of `at` just now means, up to `max` sectors.
    #[inline]
    pub(super) fn found(&self, lookup: Lookup, at: Sector, max: u32) -> Found {
        match lookup {
            Lookup::Hit(e) if self.fresh(&e) => {
                let from = e.cut(at, e.end());
                let sectors = if from.sectors >= max {
                    max
                } else {
                    self.join(&from, max)
                };
                Found::Cached {
                    at: from.at,
                    generation: e.generation,
                    dirty: e.dirty,
                    sectors,
                }
            }
            Lookup::Hit(e) => self.missing(at, e.end(), max),
            Lookup::Hole { next } => self.missing(at, next, max),
        }
    }

    /// How far a hit goes on seamlessly in the same bucket.
    pub(super) fn join(&self, first: &Extent, max: u32) -> u32 {
        let gens = &self.set().gens;
        let bucket = gens.bucket_of(first.at);
        let mut sectors = first.sectors;
        for _ in 0..JOIN_MAX {
            if sectors >= max {
                break;
            }
            let next = first.start + u64::from(sectors);
            match self.attached.index.lookup(&self.reader, next) {
                Lookup::Hit(e)
                    if e.start == next
                        && e.at == first.at + u64::from(sectors)
                        && e.generation == first.generation
                        && e.dirty == first.dirty
                        && gens.bucket_of(e.at) == bucket =>
                {
                    sectors += e.sectors;
                }
                _ => break,
            }
        }
        sectors.min(max)
    }

    /// How far a miss goes on, over holes and stale extents.
    pub(super) fn missing(&self, at: Sector, mut end: Sector, max: u32) -> Found {
        let limit = at + u64::from(max);
        for _ in 0..JOIN_MAX {
            if end >= limit {
                break;
            }
            match self.attached.index.lookup(&self.reader, end) {
                Lookup::Hit(e) if self.fresh(&e) => break,
                Lookup::Hit(e) => end = e.end(),
                Lookup::Hole { next } => end = next,
            }
        }
        Found::Missing {
            sectors: (end.min(limit) - at) as u32,
        }
    }
}
