//! One host I/O: how it finds its way between the cache, the backing device and the owner.
//!
//! ```text
//!              reactor (any number)                              owner (one thread a set)
//!  host ─▶ Front ── lookup in the index ─▶ Lane (device I/O)
//!            │                                                 Insert, Fill, BeginThrough, …
//!            ├───────────── Message, bounded ring ────────────▶ Owner ─▶ btree, journal, alloc
//!            ◀───────────── Reply, bounded ring ────────────────┘
//! ```
//!
//! A read hit is a lookup, a read and a second look at the bucket's generation: no lock, no
//! allocation, no message. What changes the map goes to the owner.
//!
//! Modes, as one table; "through" is a write to the backing device under an exclusive range:
//!
//! | | read hit | read miss | write | write over dirty data |
//! |---|---|---|---|---|
//! | writeback | cache | backing, then fill | cache, dirty | cache, dirty |
//! | writethrough | cache | backing, then fill | through, and cache clean | cache, dirty |
//! | writearound | cache | backing, then fill | through | cache, dirty |
//! | none | cache | backing | through | cache, dirty |
//!
//! Rules that keep stale bytes out, all enforced by the owner ([`owner`]):
//! - A through write holds its range: no dirty extent enters it, and no write-back, until it ends.
//! - Before it touches the backing device, every extent in its range is deleted from the map, and
//!   the deletion is durable. There is nothing to delete where no crash could bring a key back; that
//!   is asked of [`crate::btree::Tree::may_come_back`], not of the map.
//! - A fill is dropped if anything in its range changed since the read looked the range up, or a
//!   through write is in it ([`conflict::Versions`]).
//! - A range with dirty data, or with write-back in flight, is never written through. Three
//!   exceptions go under the dirty data: zeroes, data that the cache device did not take (a *rescue*),
//!   and a discard where the backing device surely reads as zeros what is discarded. They are flushed
//!   on the backing device, then the map forgets durably what lies over them, then the host has its
//!   answer. Any other discard leaves dirty data as they are: were they forgotten, the older data
//!   under them might come up.

pub mod admit;
pub mod conflict;
pub mod front;
pub mod hold;
pub mod lane;
mod link;
pub mod missing;
pub mod msg;
pub mod owner;
pub mod space;
pub mod trouble;
pub mod unflushed;
pub mod volume;

use std::cell::Cell;

use crate::units::{Gen, Sector};

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data to the host.
    Read,
    /// Data from the host.
    Write,
    /// All that was acknowledged must be durable.
    Flush,
    /// The range is not needed.
    Unmap,
    /// The range must read as zeros.
    WriteZeroes,
}

/// Transfers that one host I/O has under way at once.
pub const PARTS: usize = 8;

/// What a part of a request is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Free,
    /// Reads the cache device.
    CacheRead,
    /// Reads the backing device.
    BackingRead,
    /// Reads the backing device through a fill's buffer.
    Fill,
    /// Writes the cache device, to become dirty.
    CacheWrite,
    /// Writes the cache device beside a through write.
    CacheCopy,
    /// Is on the cache device, waits for the backing device.
    CacheCopied,
    /// Writes, zeroes or discards on the backing device.
    Backing,
    /// Flushes the backing device.
    BackingFlush,
}

/// One transfer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub step: Step,
    pub dirty: bool,
    pub generation: Gen,
    /// Sectors into the host's I/O.
    pub host_sectors: u32,
    pub sectors: u32,
    /// Where on the device.
    pub at: Sector,
}

impl Part {
    const FREE: Part = Part {
        step: Step::Free,
        dirty: false,
        generation: Gen(0),
        host_sectors: 0,
        sectors: 0,
        at: Sector(0),
    };
}

/// Where a request stands as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not started, or done.
    Idle,
    /// A read.
    Reading,
    /// A write into the cache.
    Caching,
    /// Waits for the owner's word.
    Asking,
    /// A through write, with a copy for the cache or without.
    Through,
    /// Everything goes to the backing device: no cache is attached.
    Direct,
    /// Waits for the owner's last word.
    Ending,
}

/// The state of one host I/O. Lives in memory that the host side provides, as long as the I/O. What
/// every one needs stands together, in front.
#[repr(C)]
pub struct Request {
    pub(crate) start: Cell<Sector>,
    pub(crate) sectors: Cell<u64>,
    /// The count of changes before the first lookup.
    pub(crate) seen: Cell<u64>,
    /// Sectors given to parts so far.
    pub(crate) cursor: Cell<u32>,
    /// Parts in flight and answers of the owner to come.
    pub(crate) outstanding: Cell<u32>,
    pub(crate) kind: Cell<Kind>,
    pub(crate) phase: Cell<Phase>,
    pub(crate) failed: Cell<bool>,
    /// It failed for lack of space alone.
    pub(crate) no_space: Cell<bool>,
    /// A bucket was reused under the read: all of it is done over.
    pub(crate) again: Cell<bool>,
    pub(crate) missed: Cell<bool>,
    /// Stands in the line for space.
    pub(crate) queued: Cell<bool>,
    /// The cache device did not take the data: they go to the backing device.
    pub(crate) rescue: Cell<bool>,
    /// What it writes must be durable before it is answered.
    pub(crate) durable: Cell<bool>,
    /// What was written must be durable on the backing device before the map forgets the dirty data under them.
    pub(crate) flush_after: Cell<bool>,
    pub(crate) parts: [Cell<Part>; PARTS],
}

impl Default for Request {
    fn default() -> Self {
        Self::new()
    }
}

impl Request {
    /// A request that has not been started.
    pub const fn new() -> Request {
        Request {
            kind: Cell::new(Kind::Read),
            start: Cell::new(Sector(0)),
            sectors: Cell::new(0),
            phase: Cell::new(Phase::Idle),
            cursor: Cell::new(0),
            outstanding: Cell::new(0),
            failed: Cell::new(false),
            no_space: Cell::new(false),
            again: Cell::new(false),
            missed: Cell::new(false),
            queued: Cell::new(false),
            rescue: Cell::new(false),
            durable: Cell::new(false),
            flush_after: Cell::new(false),
            seen: Cell::new(0),
            parts: [const { Cell::new(Part::FREE) }; PARTS],
        }
    }

    /// Sets, once, what the host wants: `sectors` from `start` of the volume, within its size and
    /// of whole blocks. Reads and writes are shorter than 2^32 sectors. A flush has no range.
    pub fn start(&self, kind: Kind, start: Sector, sectors: u64) {
        debug_assert!(self.phase.get() == Phase::Idle, "a request starts once");
        self.kind.set(kind);
        self.start.set(start);
        self.sectors.set(sectors);
    }

    /// Says whether a write is to be durable when it is answered, as if a flush had covered it (FUA).
    pub fn must_be_durable(&self, wanted: bool) {
        self.durable.set(wanted);
    }

    pub(crate) fn free_part(&self) -> Option<u8> {
        let free = self.parts.iter().position(|p| p.get().step == Step::Free);
        free.map(|i| i as u8)
    }

    pub(crate) fn rest(&self) -> u32 {
        self.sectors.get() as u32 - self.cursor.get()
    }
}
