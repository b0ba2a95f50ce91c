//! The reactor's side of a volume: takes host I/O, decides, and drives the lane.
//!
//! A front belongs to one thread. Its state is in cells; nothing here blocks, takes a lock or, on a
//! read hit, allocates or sends a message. Every way through it ends in exactly one
//! [`Lane::complete`]. A request that cannot go on waits in one of these places: a part in flight
//! at the lane, an answer of the owner, a lookup together with others (`Front::fresh`, until the next
//! poll at the latest), or the line for space (`Front::line`, bounded by the host I/Os in flight).

mod read;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::lane::{Direction, Ended, Lane, Outcome, Side};
use super::link::Link;
use super::msg::{Message, Passage, Reply, Through, Verdict};
use super::volume::VolumeShared;
use super::{Kind, Part, Phase, Request, Step};
use crate::disk::IoError;
use crate::format::superblock::CacheMode;
use crate::index::{Extent, TOGETHER};
use crate::stats::Counting;
use crate::units::Sector;

pub use read::{FILL_SECTORS_MAX, FILLS_MAX};

/// Replies handled in one poll.
const REPLIES_A_POLL: usize = 256;
/// Serves one volume on one thread.
pub struct Front<L: Lane> {
    lane: L,
    volume: Arc<VolumeShared>,
    link: Option<Link>,
    stats: Counting,
    /// Host I/Os and fills in flight.
    in_flight: Cell<usize>,
    /// Reads that are about to be looked up together, [`TOGETHER`] at most.
    fresh: RefCell<Vec<L::Io>>,
    /// Writes that wait for space in the cache.
    line: RefCell<VecDeque<u64>>,
    /// What turns a sector of the volume into a position of keys and of the backing device.
    base_sectors: u64,
}

impl<L: Lane> Front<L> {
    /// A front for a volume. `None` when the set has as many readers as it can have.
    pub fn new(lane: L, volume: Arc<VolumeShared>) -> Option<Front<L>> {
        let link = match volume.cache.clone() {
            Some(attached) => Some(Link::new(attached)?),
            None => None,
        };
        Some(Front {
            stats: volume.new_stats(),
            base_sectors: volume.data_offset.map_or(0, |offset| offset.0),
            lane,
            volume,
            link,
            in_flight: Cell::new(0),
            fresh: RefCell::new(Vec::with_capacity(TOGETHER)),
            line: RefCell::default(),
        })
    }

    /// The lane.
    pub fn lane(&self) -> &L {
        &self.lane
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<VolumeShared> {
        &self.volume
    }

    /// Takes a request that has been [`start`](Request::start)ed.
    #[inline]
    pub fn submit(&self, io: L::Io) {
        self.in_flight.set(self.in_flight.get() + 1);
        let sectors = io.sectors.get();
        if let Some(missing) = &self.volume.missing {
            if missing.stops(io.kind.get(), io.start.get().0, sectors) {
                return self.refuse(io);
            }
        }
        // From here on positions are those of keys: a cached volume's are the backing device's
        // sectors, as in the kernel.
        io.start.set(io.start.get() + self.base_sectors);
        match io.kind.get() {
            Kind::Read => {
                self.stats.reads.add(1);
                self.stats.read_sectors.add(sectors);
                self.take_read(io);
            }
            Kind::Write => {
                self.stats.writes.add(1);
                self.stats.written_sectors.add(sectors);
                self.start_write(io);
            }
            Kind::Flush => {
                self.stats.flushes.add(1);
                self.start_flush(io);
            }
            Kind::Unmap => self.start_clear(io, Through::Unmap),
            Kind::WriteZeroes => self.start_clear(io, Through::Zeroes),
        }
    }

    /// Whether no host I/O and no fill is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Gives everything back to the owner. The front must be idle, and is not used afterwards.
    /// False when the ring to the owner is full: call again.
    pub fn close(&self) -> bool {
        assert!(self.is_idle());
        let Some(link) = &self.link else { return true };
        for stream in [&link.dirty, &link.clean] {
            for bucket in stream.close() {
                link.send(Message::DoneBucket(bucket));
            }
        }
        link.send(Message::Bye(link.id));
        link.rings.messages.flush();
        link.rings.messages.is_flushed()
    }

    /// Handles what the owner answered. To be called by a poller of this thread, with nothing of
    /// this front on the stack. Returns how much was done.
    pub fn poll(&self) -> usize {
        let Some(link) = &self.link else { return 0 };
        link.reader.quiesce();
        link.rings.messages.flush();
        if link.set().stopped.load(Ordering::Relaxed) && !self.line.borrow().is_empty() {
            self.fail_line(false);
        }
        let looked_up = self.look_up_fresh(link);
        let mut done = 0;
        while done < REPLIES_A_POLL {
            let Some(reply) = link.rings.take() else {
                break;
            };
            self.replied(link, reply);
            done += 1;
        }
        link.tell_counts();
        done + looked_up
    }

    fn replied(&self, link: &Link, reply: Reply) {
        match reply {
            Reply::Inserted { token, ok } => {
                let io = self.lane.io(token);
                if !ok {
                    io.failed.set(true);
                }
                self.settle(io);
            }
            Reply::Verdict { token, verdict } => {
                let io = self.lane.io(token);
                io.outstanding.set(io.outstanding.get() - 1);
                self.judged(link, io, verdict);
            }
            Reply::Ended { token, ok } | Reply::Flushed { token, ok } => {
                let io = self.lane.io(token);
                if !ok {
                    io.failed.set(true);
                }
                self.settle(io);
            }
            Reply::Grant {
                dirty,
                bucket,
                generation,
            } => {
                let sectors = link.set().bucket_sectors;
                link.set().gens.granted();
                let start = Sector(u64::from(bucket.0) * u64::from(sectors));
                link.stream(dirty)
                    .granted(bucket, generation, start, sectors);
                if dirty {
                    self.move_line();
                }
            }
            Reply::Dry => link.clean.dry(),
            Reply::GiveBack => link.give_back_space(),
            Reply::Full => {
                link.dirty.dry();
                self.fail_line(true);
            }
        }
    }

    /// One thing that a request waited for has come.
    #[inline]
    fn settle(&self, io: L::Io) {
        io.outstanding.set(io.outstanding.get() - 1);
        self.proceed(io);
    }

    /// Goes on with a request whose parts or answers have come in.
    fn proceed(&self, io: L::Io) {
        let link = self.link.as_ref();
        if !io.failed.get() && !io.again.get() {
            match (io.phase.get(), link) {
                (Phase::Reading, _) => self.pump_read(&io, None),
                (Phase::Caching, Some(link)) if !io.rescue.get() => self.pump_caching(link, &io),
                (Phase::Through, Some(link)) if io.outstanding.get() == 0 => {
                    return self.end_through(link, io, true);
                }
                _ => {}
            }
        }
        if io.outstanding.get() > 0 || io.queued.get() {
            return;
        }
        match io.phase.get() {
            Phase::Reading if io.again.get() && !io.failed.get() => {
                io.again.set(false);
                io.cursor.set(0);
                self.proceed(io);
            }
            Phase::Through => match link {
                Some(link) => self.end_through(link, io, false),
                None => self.finish(io),
            },
            Phase::Caching if io.rescue.get() && !io.failed.get() => match link {
                Some(link) => self.ask(link, io, Through::Rescue),
                None => self.finish(io),
            },
            _ => self.finish(io),
        }
    }

    /// What a part of an I/O stands for.
    fn extent_of(io: &L::Io, part: &Part) -> Extent {
        Extent {
            start: io.start.get() + u64::from(part.host_sectors),
            sectors: part.sectors,
            at: part.at,
            generation: part.generation,
            dirty: part.dirty,
        }
    }

    fn finish(&self, io: L::Io) {
        let is_written = io.kind.get() == Kind::Write && !io.failed.get();
        if is_written && io.durable.replace(false) {
            // The volume's flush covers all writes that are done, this one too.
            io.kind.set(Kind::Flush);
            return self.start_flush(io);
        }
        self.in_flight.set(self.in_flight.get() - 1);
        io.phase.set(Phase::Idle);
        let outcome = match (io.failed.get(), io.no_space.get()) {
            (false, _) => Outcome::Success,
            (true, false) => Outcome::Failed,
            (true, true) => Outcome::NoSpace,
        };
        self.lane.complete(io, outcome);
    }

    /// Starts a part. There is a free one.
    #[allow(clippy::too_many_arguments)]
    fn begin_part(
        &self,
        io: &L::Io,
        step: Step,
        side: Side,
        direction: Direction,
        part: Part,
    ) -> u8 {
        let slot = io.free_part().expect("a part is free");
        io.parts[usize::from(slot)].set(Part { step, ..part });
        io.outstanding.set(io.outstanding.get() + 1);
        let (at, host, sectors) = (part.at, part.host_sectors, part.sectors);
        self.lane
            .transfer(io, slot, side, direction, at, host, sectors);
        slot
    }

    /// The lane has finished part `part` of a request.
    #[inline]
    pub fn part_done(&self, io: L::Io, part: u8, ended: Ended) {
        let slot = &io.parts[usize::from(part)];
        let done = slot.replace(Part::FREE);
        match done.step {
            Step::CacheRead => self.cache_read_done(io, &done, ended),
            Step::BackingRead | Step::BackingFlush => {
                if let Err(why) = ended {
                    self.backing_failed(&io, why);
                }
                self.settle(io);
            }
            Step::CacheWrite => self.cache_write_done(io, &done, ended),
            Step::CacheCopy => {
                match (&self.link, ended) {
                    (_, Ok(())) => slot.set(Part {
                        step: Step::CacheCopied,
                        ..done
                    }),
                    (Some(link), Err(why)) => {
                        link.cache_error(Self::extent_of(&io, &done), true, why);
                        link.reported(false, done.at);
                    }
                    (None, Err(_)) => {}
                }
                self.settle(io);
            }
            Step::Backing => self.backing_done(io, ended),
            Step::Free | Step::Fill | Step::CacheCopied => {
                unreachable!("no transfer of such a part")
            }
        }
    }

    #[cold]
    fn backing_failed(&self, io: &L::Io, why: IoError) {
        if why.is_device_error() {
            let (at, sectors) = (io.start.get().0, io.sectors.get());
            let what = "a host's I/O of";
            let what = format!("{what} {sectors} sectors at sector {at} of the volume: {why}");
            self.volume.health.failed(what);
        }
        io.failed.set(true);
    }

    fn backing_done(&self, io: L::Io, ended: Ended) {
        if let Err(why) = ended {
            self.backing_failed(&io, why);
        } else if io.flush_after.replace(false) {
            return self.flush_part(io);
        }
        self.settle(io);
    }

    /// Goes on with a flush of the backing device in the place of a part that has just ended.
    fn flush_part(&self, io: L::Io) {
        let slot = io.free_part().expect("a part has just ended");
        io.parts[usize::from(slot)].set(Part {
            step: Step::BackingFlush,
            ..Part::FREE
        });
        self.lane.backing_flush(&io, slot);
    }

    // --- writes ---

    /// Answers at once: the backing device is given up, or the data are on a cache device that is gone.
    #[cold]
    fn refuse(&self, io: L::Io) {
        io.failed.set(true);
        self.finish(io);
    }

    fn start_write(&self, io: L::Io) {
        if self.volume.health.is_disabled() {
            return self.refuse(io);
        }
        let Some(link) = &self.link else {
            return self.write_backing(io, Phase::Direct);
        };
        link.count(io.sectors.get());
        let cached = self.volume.data_offset.is_none()
            || self.volume.mode() == CacheMode::WriteBack
                && link.set().writeback_ok.load(Ordering::Relaxed);
        if cached {
            io.phase.set(Phase::Caching);
            self.proceed(io);
        } else {
            self.ask(link, io, Through::Write);
        }
    }

    /// Starts as many parts of a write into the cache as can be under way.
    fn pump_caching(&self, link: &Link, io: &L::Io) {
        while io.rest() > 0 && !io.queued.get() {
            if io.free_part().is_none() {
                return;
            }
            let Some(piece) = link.dirty.take(io.rest()) else {
                io.queued.set(true);
                self.line.borrow_mut().push_back(self.lane.token(io));
                link.ask_for_space(true);
                return;
            };
            link.ask_for_space(true);
            let part = Part {
                step: Step::CacheWrite,
                dirty: true,
                generation: piece.generation,
                host_sectors: io.cursor.get(),
                sectors: piece.sectors,
                at: piece.at,
            };
            io.cursor.set(io.cursor.get() + piece.sectors);
            self.begin_part(io, Step::CacheWrite, Side::Cache, Direction::Write, part);
        }
    }

    /// Lets writes that waited for space go on.
    fn move_line(&self) {
        let waiting = self.line.borrow().len();
        for _ in 0..waiting {
            let Some(token) = self.line.borrow_mut().pop_front() else {
                break;
            };
            let others = self.line.borrow().len();
            let io = self.lane.io(token);
            io.queued.set(false);
            self.proceed(io);
            if self.line.borrow().len() > others {
                // It stands in line again, at the end: there is no more space. The order among
                // writes that are under way at once means nothing.
                break;
            }
        }
    }

    /// No space will come: the set has stopped, or is full of what cannot be written back.
    fn fail_line(&self, full: bool) {
        let waiting = self.line.take();
        for token in waiting {
            let io = self.lane.io(token);
            io.queued.set(false);
            let failed_before = io.failed.replace(true);
            io.no_space.set(full && !failed_before);
            self.proceed(io);
        }
    }

    fn cache_write_done(&self, io: L::Io, part: &Part, ended: Ended) {
        let link = self.link.as_ref().expect("cache writes need a cache");
        if let Err(why) = ended {
            link.cache_error(Self::extent_of(&io, part), true, why);
            link.reported(true, part.at);
            // The host's data are still at hand, and where there is a backing device it takes them,
            // unless the request itself is at fault.
            match self.volume.data_offset {
                Some(_) if !why.is_bad_request() => io.rescue.set(true),
                _ => io.failed.set(true),
            }
            return self.settle(io);
        }
        // The part is free for another transfer; the request waits for the owner's answer.
        link.send(Message::Insert {
            front: link.id,
            token: self.lane.token(&io),
            volume: link.attached.number,
            extent: Self::extent_of(&io, part),
        });
        link.reported(true, part.at);
        if io.rest() > 0 && !io.rescue.get() {
            self.pump_caching(link, &io);
        }
    }

    /// Asks the owner for a range of the backing device.
    fn ask(&self, link: &Link, io: L::Io, kind: Through) {
        io.phase.set(Phase::Asking);
        io.outstanding.set(io.outstanding.get() + 1);
        link.send(Message::BeginThrough(self.passage(link, &io, kind)));
    }

    fn passage(&self, link: &Link, io: &L::Io, kind: Through) -> Passage {
        Passage {
            front: link.id,
            token: self.lane.token(io),
            volume: link.attached.number,
            start: io.start.get(),
            sectors: io.sectors.get(),
            kind,
        }
    }

    fn judged(&self, link: &Link, io: L::Io, verdict: Verdict) {
        match (verdict, io.kind.get()) {
            (Verdict::Failed, _) => {
                io.failed.set(true);
                self.finish(io);
            }
            (Verdict::Cache, _) => {
                io.phase.set(Phase::Caching);
                self.proceed(io);
            }
            (Verdict::Go { flush }, Kind::Write) => {
                io.flush_after.set(flush);
                let copy = self.volume.mode() == CacheMode::WriteThrough
                    && !io.rescue.get()
                    && link.set().fill_ok.load(Ordering::Relaxed);
                if !copy {
                    self.stats.bypassed_sectors.add(io.sectors.get());
                }
                io.phase.set(Phase::Through);
                if copy {
                    self.copy_to_cache(link, &io);
                }
                self.write_backing(io, Phase::Through);
            }
            (Verdict::Go { flush }, _) => {
                io.phase.set(Phase::Through);
                io.flush_after.set(flush);
                self.clear_backing(io);
            }
        }
    }

    /// Writes all of a request's data to the backing device.
    fn write_backing(&self, io: L::Io, phase: Phase) {
        io.phase.set(phase);
        let part = Part {
            at: io.start.get(),
            sectors: io.sectors.get() as u32,
            ..Part::FREE
        };
        self.begin_part(&io, Step::Backing, Side::Backing, Direction::Write, part);
    }

    /// Writes what fits into the parts of a request to the cache too, but for the last part.
    fn copy_to_cache(&self, link: &Link, io: &L::Io) {
        for _ in 0..super::PARTS - 1 {
            if io.rest() == 0 {
                break;
            }
            let Some(piece) = link.clean.take(io.rest()) else {
                break;
            };
            let part = Part {
                step: Step::CacheCopy,
                dirty: false,
                generation: piece.generation,
                host_sectors: io.cursor.get(),
                sectors: piece.sectors,
                at: piece.at,
            };
            io.cursor.set(io.cursor.get() + piece.sectors);
            self.begin_part(io, Step::CacheCopy, Side::Cache, Direction::Write, part);
        }
        link.ask_for_space(false);
    }

    /// All transfers of a through write have ended.
    fn end_through(&self, link: &Link, io: L::Io, ok: bool) {
        let ok = ok && !io.failed.get();
        for slot in &io.parts {
            let part = slot.replace(Part::FREE);
            if part.step != Step::CacheCopied {
                continue;
            }
            if ok {
                link.send(Message::Copied {
                    volume: link.attached.number,
                    extent: Self::extent_of(&io, &part),
                });
            }
            link.reported(false, part.at);
        }
        io.phase.set(Phase::Ending);
        io.outstanding.set(1);
        let kind = match io.kind.get() {
            Kind::WriteZeroes => Through::Zeroes,
            Kind::Unmap => Through::Unmap,
            _ if io.rescue.get() => Through::Rescue,
            _ => Through::Write,
        };
        let passage = self.passage(link, &io, kind);
        link.send(Message::EndThrough { passage, ok });
    }

    // --- the rest ---

    fn start_clear(&self, io: L::Io, kind: Through) {
        if self.volume.health.is_disabled() {
            return self.refuse(io);
        }
        match (&self.link, self.volume.data_offset) {
            (Some(link), Some(_)) => self.ask(link, io, kind),
            (Some(link), None) => {
                io.phase.set(Phase::Ending);
                io.outstanding.set(1);
                link.send(Message::Discard {
                    front: link.id,
                    token: self.lane.token(&io),
                    volume: link.attached.number,
                    start: io.start.get(),
                    sectors: io.sectors.get(),
                });
            }
            (None, _) => {
                io.phase.set(Phase::Direct);
                self.clear_backing(io);
            }
        }
    }

    /// Zeroes or discards a request's range of the backing device.
    fn clear_backing(&self, io: L::Io) {
        let slot = io.free_part().expect("no part is in use");
        io.parts[usize::from(slot)].set(Part {
            step: Step::Backing,
            ..Part::FREE
        });
        io.outstanding.set(io.outstanding.get() + 1);
        let at = io.start.get();
        match io.kind.get() {
            Kind::Unmap => self.lane.backing_unmap(&io, slot, at, io.sectors.get()),
            _ => self.lane.backing_zeroes(&io, slot, at, io.sectors.get()),
        }
    }

    fn start_flush(&self, io: L::Io) {
        io.outstanding.set(1);
        match &self.link {
            Some(link) => {
                io.phase.set(Phase::Ending);
                link.send(Message::Flush {
                    front: link.id,
                    token: self.lane.token(&io),
                    volume: link.attached.number,
                });
            }
            None => {
                io.phase.set(Phase::Direct);
                self.flush_part(io);
            }
        }
    }
}

/// For the boundary: the request of a handle, to be started.
pub fn request_of<L: Lane>(io: &L::Io) -> &Request {
    io
}
