//! Reads: what is found where, transfers of hits, and misses that fill the cache.
//!
//! Where many requests are under way, those that come between two polls are looked up together: a
//! lookup in a large map waits for memory on every level, many at once wait for all of it once.

use std::sync::atomic::Ordering;

use super::Front;
use crate::disk::IoError;
use crate::format::superblock::CacheMode;
use crate::index::{Extent, Lookup, TOGETHER};
use crate::request::lane::{Direction, Ended, Lane, Side};
use crate::request::link::{Fill, Found, Link};
use crate::request::msg::Message;
use crate::request::{Part, Phase, Step};
use crate::units::Sector;

/// Fills that a front has under way at most.
pub const FILLS_MAX: u16 = 256;
/// The longest fill: 1 MiB.
pub const FILL_SECTORS_MAX: u32 = 2048;
/// With no more host I/Os and fills under way, a read is looked up by itself: nothing would wait with
/// it, and its answer would be later for nothing.
const LOOKUPS_ALONE: usize = 8;

impl<L: Lane> Front<L> {
    /// Takes a new read: looks it up at once, or where many are under way with the next ones.
    #[inline]
    pub(super) fn take_read(&self, io: L::Io) {
        let Some(link) = &self.link else {
            return self.start_read(io, None);
        };
        link.count(io.sectors.get());
        if self.in_flight.get() <= LOOKUPS_ALONE {
            // Before the first lookup: what changes later must be noticed.
            io.seen.set(link.attached.changes.load(Ordering::Acquire));
            return self.start_read(io, None);
        }
        self.fresh.borrow_mut().push(io);
        if self.fresh.borrow().len() == TOGETHER {
            self.look_up_fresh(link);
        }
    }

    /// Looks up the reads that wait for it, and starts them. Returns how many those were.
    pub(super) fn look_up_fresh(&self, link: &Link) -> usize {
        let n = self.fresh.borrow().len();
        if n == 0 {
            return 0;
        }
        let mut fresh = self.fresh.take();
        let mut at = [Sector(0); TOGETHER];
        // Before the lookups: what changes later must be noticed.
        let seen = link.attached.changes.load(Ordering::Acquire);
        for (at, io) in at.iter_mut().zip(&fresh) {
            *at = io.start.get();
            io.seen.set(seen);
        }
        let found = link.find_all(&at[..n]);
        for (io, found) in fresh.drain(..).zip(found) {
            self.start_read(io, Some(found));
        }
        let meanwhile = self.fresh.replace(fresh);
        assert!(meanwhile.is_empty(), "a front is not entered from within");
        n
    }

    /// Starts a read, of whose first sector `found` says what there is, if that is known.
    #[inline]
    fn start_read(&self, io: L::Io, found: Option<Lookup>) {
        io.phase.set(Phase::Reading);
        self.pump_read(&io, found);
        if io.outstanding.get() == 0 {
            self.finish(io);
        } else {
            self.count_read(&io);
        }
    }

    fn count_read(&self, io: &L::Io) {
        if self.link.is_none() {
            return;
        }
        let past = self.volume.mode() == CacheMode::None;
        match (past, io.missed.get()) {
            (false, false) => self.stats.cache_hits.add(1),
            (false, true) => self.stats.cache_misses.add(1),
            (true, false) => self.stats.cache_bypass_hits.add(1),
            (true, true) => self.stats.cache_bypass_misses.add(1),
        }
    }

    /// Starts as many parts of a read as can be under way. `known` is what a lookup of the next one's
    /// first sector said just now.
    #[inline]
    pub(super) fn pump_read(&self, io: &L::Io, mut known: Option<Lookup>) {
        while io.rest() > 0 {
            if io.free_part().is_none() {
                return;
            }
            let (cursor, rest) = (io.cursor.get(), io.rest());
            let at = io.start.get() + u64::from(cursor);
            let found = match (&self.link, known.take()) {
                (Some(link), Some(lookup)) => link.found(lookup, at, rest),
                (Some(link), None) => link.find(at, rest),
                (None, _) => Found::Missing { sectors: rest },
            };
            let sectors = match found {
                Found::Cached {
                    at,
                    generation,
                    dirty,
                    sectors,
                } => {
                    if let Some(link) = &self.link {
                        let gens = &link.set().gens;
                        gens.touch(gens.bucket_of(at));
                    }
                    let part = Part {
                        step: Step::CacheRead,
                        dirty,
                        generation,
                        host_sectors: cursor,
                        sectors,
                        at,
                    };
                    self.begin_part(io, Step::CacheRead, Side::Cache, Direction::Read, part);
                    sectors
                }
                Found::Missing { sectors } => self.read_missing(io, at, sectors),
            };
            io.cursor.set(cursor + sectors);
        }
    }

    /// Reads what is not cached; returns how much of it was started.
    fn read_missing(&self, io: &L::Io, at: Sector, sectors: u32) -> u32 {
        let cursor = io.cursor.get();
        if self.volume.data_offset.is_none() {
            self.lane.zero_host(io, cursor, sectors);
            return sectors;
        }
        io.missed.set(true);
        if self.volume.health.is_disabled() {
            io.failed.set(true);
            return sectors;
        }
        if let Some(filled) = self.start_fill(io, at, sectors) {
            return filled;
        }
        let part = Part {
            at,
            host_sectors: cursor,
            sectors,
            ..Part::FREE
        };
        self.begin_part(io, Step::BackingRead, Side::Backing, Direction::Read, part);
        sectors
    }

    /// Starts a read that fills the cache, if the mode, space and buffers allow.
    fn start_fill(&self, io: &L::Io, at: Sector, sectors: u32) -> Option<u32> {
        let link = self.link.as_ref()?;
        if self.volume.mode() == CacheMode::None || !link.set().fill_ok.load(Ordering::Relaxed) {
            return None;
        }
        let fill = link.free_fills.borrow_mut().pop()?;
        let want = sectors.min(FILL_SECTORS_MAX);
        let piece = link.clean.take(want);
        link.ask_for_space(false);
        let Some(piece) = piece else {
            link.free_fills.borrow_mut().push(fill);
            return None;
        };
        if !self.lane.fill_begin(fill, piece.sectors) {
            link.reported(false, piece.at);
            link.free_fills.borrow_mut().push(fill);
            return None;
        }
        let part = io.free_part().expect("a part is free");
        io.parts[usize::from(part)].set(Part {
            step: Step::Fill,
            ..Part::FREE
        });
        io.outstanding.set(io.outstanding.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        link.fills.borrow_mut()[usize::from(fill)] = Some(Fill {
            token: self.lane.token(io),
            part,
            writing: false,
            host_sectors: io.cursor.get(),
            start: at,
            seen: io.seen.get(),
            at: piece.at,
            generation: piece.generation,
            sectors: piece.sectors,
        });
        self.lane.fill_read(fill, at, piece.sectors);
        Some(piece.sectors)
    }

    /// The lane has finished the read or the write of a fill.
    pub fn fill_done(&self, nr: u16, ended: Ended) {
        let link = self.link.as_ref().expect("fills need a cache");
        let slot = usize::from(nr);
        let fill = link.fills.borrow()[slot].expect("the fill is under way");
        if fill.writing {
            let extent = Extent {
                start: fill.start,
                sectors: fill.sectors,
                at: fill.at,
                generation: fill.generation,
                dirty: false,
            };
            match ended {
                Ok(()) => link.send(Message::Fill {
                    volume: link.attached.number,
                    extent,
                    seen: fill.seen,
                }),
                Err(why) => link.cache_error(extent, true, why),
            }
            return self.end_fill(link, nr, &fill);
        }
        let io = self.lane.io(fill.token);
        io.parts[usize::from(fill.part)].set(Part::FREE);
        if let Err(why) = ended {
            self.backing_failed(&io, why);
            self.end_fill(link, nr, &fill);
        } else {
            self.lane
                .fill_copy(nr, &io, fill.host_sectors, fill.sectors);
            if let Some(fill) = &mut link.fills.borrow_mut()[slot] {
                fill.writing = true;
            }
            self.lane.fill_write(nr, fill.at, fill.sectors);
        }
        self.settle(io);
    }

    fn end_fill(&self, link: &Link, nr: u16, fill: &Fill) {
        link.reported(false, fill.at);
        link.fills.borrow_mut()[usize::from(nr)] = None;
        link.free_fills.borrow_mut().push(nr);
        self.lane.fill_end(nr);
        self.in_flight.set(self.in_flight.get() - 1);
    }

    #[inline]
    pub(super) fn cache_read_done(&self, io: L::Io, part: &Part, ended: Ended) {
        let link = self.link.as_ref().expect("cache reads need a cache");
        let gens = &link.set().gens;
        if gens.generation(gens.bucket_of(part.at)) != part.generation {
            // The bucket was reused under the read: what came is not what was asked for.
            io.again.set(true);
        } else if let Err(why) = ended {
            link.cache_error(Self::extent_of(&io, part), false, why);
            return self.cache_read_failed(io, part, why);
        }
        self.settle(io);
    }

    /// Clean data are on the backing device too; dirty data are nowhere else. A request that is at
    /// fault itself would fail there as well.
    fn cache_read_failed(&self, io: L::Io, part: &Part, why: IoError) {
        match self.volume.data_offset {
            Some(_) if !part.dirty && !why.is_bad_request() => {
                let back = Part {
                    at: io.start.get() + u64::from(part.host_sectors),
                    host_sectors: part.host_sectors,
                    sectors: part.sectors,
                    ..Part::FREE
                };
                io.outstanding.set(io.outstanding.get() - 1);
                self.begin_part(&io, Step::BackingRead, Side::Backing, Direction::Read, back);
            }
            _ => {
                io.failed.set(true);
                self.settle(io);
            }
        }
    }
}
