//! The journal: what makes an acknowledged flush durable.
//!
//! Keys are collected in the *open* entry; one writer task puts entries on the disk, one after the
//! other: flush of the cache device, entry, flush. So whatever an entry refers to, and every write
//! that was answered before, is durable before the entry is; and entry n + 1 exists only when
//! entry n does.
//!
//! An entry is needed until all its keys stand in btree nodes on the disk. The owner of such a key
//! *pins* the entry; `last_seq` of an entry is the oldest pinned one at the time of its writing.
//! The flush before an entry covers the node writes that released the pins which it leaves out.
//!
//! After a crash: all entries up to some n are there, each whole, where n is at least the newest
//! one that [`Journal::commit`] has promised; entry n + 1 may be torn and then counts as absent.
//!
//! Bounds: the open entry holds at most 32 KiB; while the writer is busy or the ring is full it
//! fills up and [`Journal::add`] refuses. Callers keep what was refused, in their own bounds.

pub mod replay;
pub mod ring;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;

use crate::disk::{Disk, Latch, Stopped};
use crate::format::jset::{HEADER_BYTES, Jset};
use crate::format::key::{Geometry, Key};
use crate::options::SetOption;
use crate::task::{Executor, Notify};
use crate::units::{BucketNr, JournalSeq, SECTOR_BYTES, Sector};
use ring::{Place, Ring};

/// What every structure of a set must know about it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Blocks and buckets of the cache device.
    pub geometry: Geometry,
    /// The set's part of every magic number.
    pub set_magic: u64,
}

impl Shape {
    /// Bytes of a bucket.
    pub fn bucket_bytes(&self) -> usize {
        self.geometry.bucket_sectors as usize * SECTOR_BYTES
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.geometry.block_sectors as usize * SECTOR_BYTES
    }

    /// The first sector of a bucket.
    pub fn sector_of(&self, bucket: BucketNr) -> Sector {
        Sector(u64::from(bucket.0) * u64::from(self.geometry.bucket_sectors))
    }

    /// The bucket of a sector that is known to lie on the device.
    pub fn bucket_of(&self, sector: Sector) -> BucketNr {
        BucketNr((sector.0 / u64::from(self.geometry.bucket_sectors)) as u32)
    }
}

/// What every entry repeats, so that the newest alone tells where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The key of the btree's root.
    pub root: Key,
    /// Its level; 0 when it is a leaf.
    pub level: u16,
    /// The bucket of the uuid table.
    pub uuid_bucket: Key,
    /// The first bucket of the priorities.
    pub prio_bucket: BucketNr,
}

struct State {
    roots: Roots,
    /// Counts changes of `roots`; an entry on disk carries one of them.
    roots_version: u64,
    roots_durable: u64,
    /// The number that the next entry to be written gets.
    seq: JournalSeq,
    keys: Vec<Key>,
    bytes: usize,
    /// Where the open entry will go; `None` while the ring has no room for keys.
    place: Option<Place>,
    /// Everything up to here is durable.
    durable: JournalSeq,
    /// Somebody waits for entries up to here.
    wanted: JournalSeq,
    wanted_roots: u64,
    /// How many holders pin `pins_first`, `pins_first + 1`, …
    pins: VecDeque<u32>,
    pins_first: JournalSeq,
    ring: Ring,
    stopping: bool,
    /// The writer is told to write no more: who waits for an entry waits in vain.
    abandoned: bool,
}

/// The journal of a running set.
pub struct Journal {
    disk: Rc<dyn Disk>,
    exec: Executor,
    shape: Shape,
    latch: Rc<Latch>,
    delay_us: Cell<u64>,
    state: RefCell<State>,
    work: Notify,
    progress: Notify,
    /// Notified when nodes should be flushed to make room.
    pub reclaim: Notify,
}

/// Milliseconds after which keys go to the disk although nobody asked; the kernel's default.
pub const JOURNAL_DELAY_MS: u64 = SetOption::JournalDelayMs.number();

/// What is known of the journal when it starts.
pub struct Start {
    /// The roots as they are now.
    pub roots: Roots,
    /// The next entry's number.
    pub seq: JournalSeq,
    /// The oldest entry that still holds keys of no node: pins may be taken from here on.
    pub pins_first: JournalSeq,
    /// The ring, placed behind the newest entry.
    pub ring: Ring,
}

impl Journal {
    /// A journal that goes on where `start` says. [`run`](Self::run) must be spawned for it.
    pub fn new(
        disk: Rc<dyn Disk>,
        exec: Executor,
        shape: Shape,
        latch: Rc<Latch>,
        start: Start,
    ) -> Rc<Journal> {
        let place = start.ring.place_keys(start.pins_first);
        let pinnable = start.seq.0 - start.pins_first.0 + 1;
        Rc::new(Journal {
            disk,
            exec,
            shape,
            latch,
            delay_us: Cell::new(JOURNAL_DELAY_MS * 1000),
            state: RefCell::new(State {
                roots: start.roots,
                roots_version: 1,
                roots_durable: 0,
                seq: start.seq,
                keys: Vec::new(),
                bytes: HEADER_BYTES,
                place,
                durable: JournalSeq(start.seq.0 - 1),
                wanted: JournalSeq(0),
                wanted_roots: 0,
                pins: VecDeque::from(vec![0; pinnable as usize]),
                pins_first: start.pins_first,
                ring: start.ring,
                stopping: false,
                abandoned: false,
            }),
            work: Notify::default(),
            progress: Notify::default(),
            reclaim: Notify::default(),
        })
    }

    /// Milliseconds after which keys go to the disk although nobody asked.
    pub fn delay_ms(&self) -> u64 {
        self.delay_us.get() / 1000
    }

    /// Changes [`delay_ms`](Self::delay_ms), from the next entry on.
    pub fn set_delay_ms(&self, ms: u64) {
        self.delay_us.set(ms * 1000);
    }

    /// Adds a key to the open entry and tells which that is, or `None` when it has no room now:
    /// wait for [`room`](Self::room).
    pub fn add(self: &Rc<Self>, key: &Key) -> Option<JournalSeq> {
        let mut s = self.state.borrow_mut();
        let need = key.encoded_bytes();
        let limit = s.limit_bytes(&self.shape);
        if s.bytes + need > limit || s.stopping {
            self.work.notify();
            return None;
        }
        s.keys.push(*key);
        s.bytes += need;
        let seq = s.seq;
        if s.keys.len() == 1 {
            self.arm_delay();
        } else if s.bytes + 2 * need > limit {
            self.work.notify();
        }
        Some(seq)
    }

    /// Whether so many keys would be taken by [`add`](Self::add) now.
    pub fn has_room(&self, keys: usize) -> bool {
        let s = self.state.borrow();
        !s.stopping && s.bytes + 24 * keys <= s.limit_bytes(&self.shape)
    }

    /// Waits until [`add`](Self::add) may succeed.
    pub async fn room(&self) -> Result<(), Stopped> {
        while !self.has_room(1) {
            self.check()?;
            self.work.notify();
            self.progress.wait().await;
        }
        self.latch.check()
    }

    fn arm_delay(self: &Rc<Self>) {
        // Weak: the device of a set that has stopped is not to be held open by its last timer.
        let (journal, sleep) = (Rc::downgrade(self), self.exec.sleep_us(self.delay_us.get()));
        let seq = self.exec.now_us();
        self.exec.spawn(async move {
            sleep.await;
            let Some(journal) = journal.upgrade() else {
                return;
            };
            let due = {
                let mut s = journal.state.borrow_mut();
                let late = journal.exec.now_us() >= seq + journal.delay_us.get();
                if late && !s.keys.is_empty() {
                    s.wanted = s.wanted.max(s.seq);
                }
                late
            };
            if due {
                journal.work.notify();
            }
        });
    }

    /// Whether everything that was added so far is durable.
    pub fn is_durable(&self) -> bool {
        let s = self.state.borrow();
        s.keys.is_empty() && s.durable.0 + 1 == s.seq.0
    }

    /// Makes everything that was added before this call durable.
    pub async fn commit(&self) -> Result<(), Stopped> {
        let upto = {
            let mut s = self.state.borrow_mut();
            let upto = if s.keys.is_empty() {
                JournalSeq(s.seq.0 - 1)
            } else {
                s.seq
            };
            s.wanted = s.wanted.max(upto);
            upto
        };
        self.work.notify();
        while self.state.borrow().durable < upto {
            self.check()?;
            self.progress.wait().await;
        }
        self.latch.check()
    }

    /// Changes what every entry repeats, from the next entry to be written on.
    pub fn set_roots(&self, change: impl FnOnce(&mut Roots)) {
        let mut s = self.state.borrow_mut();
        change(&mut s.roots);
        s.roots_version += 1;
    }

    /// The roots as they are in memory.
    pub fn roots(&self) -> Roots {
        self.state.borrow().roots
    }

    /// Whether the ring is so full that new roots which can wait must, until entries that nodes still
    /// need are given back. Those of the btree's writer, who makes room, cannot wait; nor can any where
    /// no entry is needed any more, for nothing would make room then.
    pub fn is_low(&self) -> bool {
        let s = self.state.borrow();
        s.ring.is_low() && s.pins_first < s.seq
    }

    /// Waits while the ring is so full that new roots which can wait must, and has leaves written.
    pub async fn not_low(&self) {
        while self.is_low() && self.check().is_ok() {
            self.reclaim.notify();
            self.progress.wait().await;
        }
    }

    /// Whether new roots would wait for more pins to be given back, because the ring has no block left
    /// for an entry that needs as much as now.
    pub fn holds_roots(&self) -> bool {
        let s = self.state.borrow();
        s.place.is_none() && s.ring.place_meta(s.last_seq()).is_none()
    }

    /// The first entry that a crash now would have replayed.
    pub fn replayed_from(&self) -> JournalSeq {
        self.state.borrow().ring.durable_last
    }

    /// Waits for the next entry to be durable.
    pub fn entry_written(&self) -> impl Future<Output = ()> + '_ {
        self.progress.wait()
    }

    /// Makes the roots as they are now durable.
    pub async fn commit_roots(&self) -> Result<(), Stopped> {
        let version = {
            let mut s = self.state.borrow_mut();
            s.wanted_roots = s.roots_version;
            s.roots_version
        };
        self.work.notify();
        while self.state.borrow().roots_durable < version {
            self.check()?;
            self.progress.wait().await;
        }
        self.latch.check()
    }

    /// Keeps entry `seq` needed until a matching [`unpin`](Self::unpin).
    pub fn pin(&self, seq: JournalSeq) {
        let mut s = self.state.borrow_mut();
        let at = (seq.0 - s.pins_first.0) as usize;
        s.pins[at] += 1;
    }

    /// Gives a pin back.
    pub fn unpin(&self, seq: JournalSeq) {
        let mut s = self.state.borrow_mut();
        let at = (seq.0 - s.pins_first.0) as usize;
        assert!(s.pins[at] > 0, "journal entry {} is not pinned", seq.0);
        s.pins[at] -= 1;
        // The newest slot stays: it is the open entry's.
        while s.pins.len() > 1 && s.pins[0] == 0 {
            s.pins.pop_front();
            s.pins_first = s.pins_first.next();
        }
        drop(s);
        self.work.notify();
    }

    /// Nodes that pin entries up to this one should be flushed now, to make room in the ring.
    pub fn reclaim_target(&self) -> Option<JournalSeq> {
        let s = self.state.borrow();
        let target = s.ring.reclaim_target()?;
        (s.pins_first <= target && s.pins_first < s.seq).then_some(target)
    }

    /// (free, total) blocks of the ring, for statistics.
    pub fn space_blocks(&self) -> (u32, u32) {
        let s = self.state.borrow();
        (s.ring.free_blocks(), s.ring.total_blocks())
    }

    /// (the oldest needed entry, the entry now open), for statistics.
    pub fn window(&self) -> (JournalSeq, JournalSeq) {
        let s = self.state.borrow();
        (s.pins_first, s.seq)
    }

    /// Refuses further keys and ends the writer once all that was added is durable.
    pub async fn stop(&self) -> Result<(), Stopped> {
        self.commit().await?;
        self.state.borrow_mut().stopping = true;
        self.work.notify();
        Ok(())
    }

    /// Ends the writer at once.
    pub fn abandon(&self) {
        {
            let mut s = self.state.borrow_mut();
            (s.stopping, s.abandoned) = (true, true);
        }
        self.work.notify();
        self.progress.notify();
    }

    /// Has all that wait look again.
    pub fn wake(&self) {
        self.work.notify();
        self.progress.notify();
        self.reclaim.notify();
    }

    /// Whether an entry may still be written.
    fn check(&self) -> Result<(), Stopped> {
        if self.state.borrow().abandoned {
            return Err(Stopped);
        }
        self.latch.check()
    }

    /// The writer: ends after [`stop`](Self::stop) or when the latch has tripped.
    pub async fn run(self: Rc<Self>) {
        loop {
            if self.latch.check().is_err() {
                self.progress.notify();
                return;
            }
            let (next, has_opened) = {
                let mut s = self.state.borrow_mut();
                let was_full = s.place.is_none();
                let next = s.next_entry(&self.shape);
                (next, was_full && s.place.is_some())
            };
            if has_opened {
                // Leaves were written, so that the next bucket may be entered: keys have room.
                self.progress.notify();
            }
            match next {
                Some(entry) => {
                    if self.write(entry).await.is_err() {
                        self.progress.notify();
                        return;
                    }
                    if self.reclaim_target().is_some() {
                        self.reclaim.notify();
                    }
                }
                None => {
                    if self.state.borrow().stopping {
                        return;
                    }
                    if self.state.borrow().place.is_none() {
                        self.reclaim.notify();
                    }
                    self.work.wait().await;
                }
            }
        }
    }

    async fn write(&self, entry: Entry) -> Result<(), Stopped> {
        let mut buf = self.disk.alloc(entry.bytes.len());
        buf.copy_from_slice(&entry.bytes);
        let mut done = self.disk.flush().await;
        if done.is_ok() {
            done = self.disk.write(entry.sector, buf).await.1;
        }
        if done.is_ok() {
            done = self.disk.flush().await;
        }
        if let Err(why) = done {
            return Err(self.latch.trip(format!(
                "journal entry {} at sector {} of {} was not written: {why}",
                entry.seq.0,
                entry.sector,
                self.disk.name()
            )));
        }
        let mut s = self.state.borrow_mut();
        s.durable = entry.seq;
        s.roots_durable = s.roots_durable.max(entry.roots_version);
        s.ring.durable_last = entry.last_seq;
        if s.place.is_none() {
            s.place = s.ring.place_keys(s.last_seq());
        }
        drop(s);
        self.progress.notify();
        Ok(())
    }
}

struct Entry {
    seq: JournalSeq,
    last_seq: JournalSeq,
    roots_version: u64,
    sector: Sector,
    bytes: Vec<u8>,
}

impl State {
    fn limit_bytes(&self, shape: &Shape) -> usize {
        match self.place {
            Some(place) => place.blocks_max as usize * shape.block_bytes(),
            None => 0,
        }
    }

    fn last_seq(&self) -> JournalSeq {
        // `pins_first` names the oldest pinned entry, or the open one when none is pinned.
        self.pins_first
    }

    /// Takes the next entry out of the state if one is due.
    fn next_entry(&mut self, shape: &Shape) -> Option<Entry> {
        if self.place.is_none() {
            self.place = self.ring.place_keys(self.last_seq());
        }
        let roots_due = self.wanted_roots > self.roots_durable;
        let frees = self.ring.would_free(self.last_seq());
        match self.place {
            Some(place) => {
                // A place for keys leaves the blocks that entries without them need.
                let full = self.bytes + 48 > place.blocks_max as usize * shape.block_bytes();
                let due = !self.keys.is_empty() && (self.wanted >= self.seq || full);
                (due || roots_due || frees && self.ring.is_low())
                    .then(|| self.take_entry(place, shape))
            }
            None => {
                if !roots_due && !frees {
                    return None;
                }
                assert!(self.keys.is_empty(), "keys without a place in the ring");
                let place = self.ring.place_meta(self.last_seq())?;
                Some(self.take_entry(place, shape))
            }
        }
    }

    fn take_entry(&mut self, place: Place, shape: &Shape) -> Entry {
        let (seq, last_seq) = (self.seq, self.last_seq());
        let mut prio_bucket = [0; 8];
        prio_bucket[0] = self.roots.prio_bucket.0.into();
        let jset = Jset {
            seq,
            last_seq,
            uuid_bucket: Some(self.roots.uuid_bucket),
            root: self.roots.root,
            level: self.roots.level,
            prio_bucket,
            keys: std::mem::take(&mut self.keys),
        };
        let mut bytes = Vec::new();
        let blocks = jset.encode(shape.set_magic, shape.geometry.block_sectors, &mut bytes);
        let sector = self.ring.sector(place);
        self.ring.take(place, blocks, seq, last_seq);
        self.keys = jset.keys;
        self.keys.clear();
        self.bytes = HEADER_BYTES;
        self.seq = seq.next();
        self.pins.push_back(0);
        while self.pins.len() > 1 && self.pins[0] == 0 {
            self.pins.pop_front();
            self.pins_first = self.pins_first.next();
        }
        self.place = self.ring.place_keys(self.last_seq());
        Entry {
            seq,
            last_seq,
            roots_version: self.roots_version,
            sector,
            bytes,
        }
    }
}
