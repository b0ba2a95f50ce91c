//! The owner's side: every change of the map, in the order in which it takes effect.
//!
//! Messages are handled one by one, each in a bounded step; what must wait does so in one of these
//! places, all bounded by the host I/Os in flight: the *backlog* (the journal has no room; order is
//! kept), *parked* (a through write or write-back holds the range), *going* (what the map forgot for a
//! through write is not durable yet), a volume's *unmarked* list (its superblock does not say dirty
//! yet), the line for buckets. A message that waits keeps its bucket pinned.
//!
//! An insert is acknowledged once it is in the index and in a journal entry; the entry is written
//! later, and by a flush at the latest.

mod buckets;
mod intake;
mod through;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use buckets::Stuck;
use intake::{FrontEnd, Turn};

use super::conflict::{Ranges, Versions};
use super::msg::{Message, Reply};
use super::trouble::Health;
use super::unflushed::Unflushed;
use super::volume::{Attached, SetShared};
use crate::btree::{Backings, JournalFull, Tree};
use crate::disk::{Disk, IoError, Latch};
use crate::index::Extent;
use crate::options::VolumeOption;
use crate::stats::Counting;
use crate::task::{Executor, Notify, Work, either, work};
use crate::units::{Inode, Sector};

/// How often [`Owner::settled`] looks again unasked: 10 ms. A device that never answers may hold it up
/// for good.
const SETTLED_LOOK_US: u64 = 10_000;
/// Messages handled in one poll.
const MESSAGES_A_POLL: usize = 512;
/// Dirty data in percent of the cache above which writes go past it; the kernel's limit.
const DIRTY_PERCENT_MAX: u64 = 70;

/// Dirty data that write-back leaves alone unless told otherwise, as in the kernel.
pub const WRITEBACK_PERCENT: u64 = VolumeOption::WritebackPercent.number();

/// Names a volume of a running set for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeId(u64);

/// A backing device as it comes with a volume.
pub struct Attachment {
    /// The device.
    pub disk: Rc<dyn Disk>,
    /// Whether its superblock says dirty, durably, and is not being made to say anything else: data
    /// may become dirty. Changed by what is behind [`Backings`] alone.
    pub says_dirty: Rc<Cell<bool>>,
    /// Whether data wait to become dirty: the superblock is not made to say clean meanwhile. Changed by
    /// the owner alone.
    pub dirty_awaited: Rc<Cell<bool>>,
}

/// A volume as its owner sees it.
pub struct Volume {
    /// Its number among those of the set that have fronts: another volume's, once it is removed.
    pub number: u32,
    /// No other volume ever has it while the set runs.
    pub id: VolumeId,
    removed: Cell<bool>,
    /// Under which its keys stand.
    pub inode: Inode,
    /// The backing device.
    pub backing: Option<Rc<dyn Disk>>,
    /// See [`Attachment::says_dirty`].
    says_dirty: Rc<Cell<bool>>,
    /// See [`Attachment::dirty_awaited`].
    dirty_awaited: Rc<Cell<bool>>,
    /// Its superblock is being made to say dirty.
    marking: Cell<bool>,
    unmarked: RefCell<Vec<Message>>,
    changes: Arc<AtomicU64>,
    versions: RefCell<Versions>,
    /// What the backing device may still lose.
    pub unflushed: Rc<Unflushed>,
    /// The volume is about to leave the set: nothing may become dirty any more. A write over dirty
    /// data waits until they are written back.
    leaving: Cell<bool>,
    /// Ranges that through writes hold. Bounded by the host I/Os in flight.
    pub(super) throughs: RefCell<Ranges>,
    /// Where ranges begin that through writes hold which go under dirty data.
    under_dirty: RefCell<BTreeSet<Sector>>,
    /// Ranges that write-back is writing: those of a round.
    writing_back: RefCell<Ranges>,
    /// What the owner counts of the volume: fills that came to nothing. The volume adds these
    /// counters to its own, so that they outlive its place in the set.
    pub counting: Counting,
    /// Counts changes, so that write-back can tell an idle volume.
    pub activity: Cell<u64>,
    /// Whether write-back works without being asked.
    pub writeback_running: Cell<bool>,
    /// Dirty data, in percent of the cache, that write-back leaves alone.
    pub writeback_percent: Cell<u64>,
}

impl Volume {
    /// Whether write-back is writing somewhere in a range.
    pub fn is_writing_back(&self, start: Sector, end: Sector) -> bool {
        self.writing_back.borrow().overlaps(start, end)
    }

    /// Whether it was removed from its set.
    pub fn is_removed(&self) -> bool {
        self.removed.get()
    }

    /// Whether the volume is still about to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    fn changed(&self, start: Sector, end: Sector) {
        // The map was changed before: who sees the new count sees the new map.
        let nr = self.changes.load(Ordering::Relaxed) + 1;
        self.versions.borrow_mut().changed(start, end, nr);
        self.changes.store(nr, Ordering::Release);
        self.activity.set(self.activity.get() + 1);
    }

    /// Makes durable all writes to the backing device that have ended.
    ///
    /// # Errors
    /// The device failed.
    pub async fn flush_backing(&self) -> Result<(), IoError> {
        match &self.backing {
            Some(disk) => self.unflushed.flush(|| disk.flush()).await,
            None => Ok(()),
        }
    }

    fn needs_flush(&self) -> bool {
        self.backing.is_some() && self.unflushed.needs_flush()
    }
}

/// Owns the state of one cache set's volumes.
pub struct Owner {
    /// What the reactors share.
    pub set: Arc<SetShared>,
    /// The map.
    pub tree: Rc<Tree>,
    /// The volumes' backing devices.
    pub backings: Rc<dyn Backings>,
    exec: Executor,
    pub(super) latch: Rc<Latch>,
    /// The errors of the cache device.
    pub health: Health,
    volumes: RefCell<Vec<Option<Rc<Volume>>>>,
    next_id: Cell<u64>,
    fronts: RefCell<Vec<Option<FrontEnd>>>,
    /// Whose messages are handled.
    turn: Cell<Turn>,
    parked: RefCell<Vec<Message>>,
    /// Parked messages that are tried again, a bounded number in each poll: hosts may have thousands of
    /// writes to one range in flight, and each that ends lets go of the range.
    retried: RefCell<VecDeque<Message>>,
    /// Writes past the cache that wait for deletions in the journal.
    going: through::Going,
    backlog: RefCell<VecDeque<Message>>,
    wanting: RefCell<VecDeque<u32>>,
    /// Since when the first in that line waits while nothing is freed or written back.
    stuck: Cell<Option<Stuck>>,
    /// When fronts may be asked next to give buckets back.
    ask_back_us: Cell<u64>,
    /// Tasks of this owner that hold a range or a host I/O.
    pub tasks: Cell<usize>,
    /// Calls of [`settled`](Self::settled) that wait.
    settling: Cell<usize>,
    /// Notified when a range is released or a task ends.
    pub released: Notify,
}

impl Owner {
    /// The owner of a set without volumes.
    pub fn new(
        set: Arc<SetShared>,
        tree: Rc<Tree>,
        backings: Rc<dyn Backings>,
        exec: Executor,
        latch: Rc<Latch>,
    ) -> Rc<Owner> {
        tree.set_backings(backings.clone());
        Rc::new(Owner {
            set,
            tree,
            backings,
            exec,
            latch,
            health: Health::default(),
            volumes: RefCell::default(),
            next_id: Cell::new(0),
            fronts: RefCell::default(),
            turn: Cell::new(Turn::of(0)),
            parked: RefCell::default(),
            retried: RefCell::default(),
            going: through::Going::default(),
            backlog: RefCell::default(),
            wanting: RefCell::default(),
            stuck: Cell::new(None),
            ask_back_us: Cell::new(0),
            tasks: Cell::new(0),
            settling: Cell::new(0),
            released: Notify::default(),
        })
    }

    /// Adds a volume; one without a backing device has all its data on the cache device.
    pub fn add_volume(&self, inode: Inode, backing: Option<Attachment>) -> Rc<Volume> {
        let (backing, says_dirty, dirty_awaited) = match backing {
            Some(it) => (Some(it.disk), it.says_dirty, it.dirty_awaited),
            None => (None, Rc::new(Cell::new(true)), Rc::default()),
        };
        dirty_awaited.set(false);
        let mut volumes = self.volumes.borrow_mut();
        let free = volumes.iter().position(Option::is_none);
        let number = free.unwrap_or(volumes.len());
        if number == volumes.len() {
            volumes.push(None);
        }
        let id = VolumeId(self.next_id.get());
        self.next_id.set(id.0 + 1);
        let counting = Counting::default();
        self.set.totals.add(&counting);
        let volume = Rc::new(Volume {
            number: number as u32,
            id,
            removed: Cell::new(false),
            inode,
            backing,
            says_dirty,
            dirty_awaited,
            marking: Cell::new(false),
            unmarked: RefCell::default(),
            changes: Arc::new(AtomicU64::new(1)),
            versions: RefCell::default(),
            unflushed: Rc::default(),
            leaving: Cell::new(false),
            throughs: RefCell::default(),
            under_dirty: RefCell::default(),
            writing_back: RefCell::default(),
            counting,
            activity: Cell::new(0),
            writeback_running: Cell::new(true),
            writeback_percent: Cell::new(WRITEBACK_PERCENT),
        });
        volumes[number] = Some(volume.clone());
        volume
    }

    /// What the reactors need of a volume.
    pub fn attached(&self, volume: &Volume) -> Attached {
        Attached {
            set: self.set.clone(),
            number: volume.number,
            index: self.tree.index(volume.inode),
            changes: volume.changes.clone(),
        }
    }

    /// Forgets a volume that no front serves any more. One that was removed already is not touched:
    /// its number may be another's.
    pub fn remove_volume(&self, volume: &Volume) {
        if !volume.removed.replace(true) {
            self.volumes.borrow_mut()[volume.number as usize] = None;
        }
    }

    /// Waits until nothing of a volume is under way that has no front any more: what its fronts
    /// sent has been handled, and its ranges are released. In a set that has stopped too: what is
    /// under way there ends in errors.
    pub async fn settled(&self, volume: &Volume) {
        self.settling.set(self.settling.get() + 1);
        loop {
            let quiet = self.set.door.is_empty()
                && !self.has_fronts_of(volume)
                && self.backlog.borrow().is_empty()
                && volume.throughs.borrow().is_empty()
                && volume.writing_back.borrow().is_empty();
            if quiet {
                self.settling.set(self.settling.get() - 1);
                return;
            }
            // Time must go on: what is under way may wait for a device.
            either(self.released.wait(), self.exec.sleep_us(SETTLED_LOOK_US)).await;
        }
    }

    /// All volumes.
    pub fn volumes(&self) -> Vec<Rc<Volume>> {
        self.volumes.borrow().iter().flatten().cloned().collect()
    }

    pub(super) fn volume(&self, number: u32) -> Rc<Volume> {
        let volumes = self.volumes.borrow();
        let volume = volumes.get(number as usize).and_then(Option::as_ref);
        volume.expect("a front's volume exists").clone()
    }

    fn has_fronts_of(&self, volume: &Volume) -> bool {
        let fronts = self.fronts.borrow();
        fronts.iter().flatten().any(|f| f.volume == volume.number)
    }

    /// Whether a front serves any volume of the set.
    pub fn has_fronts(&self) -> bool {
        self.fronts.borrow().iter().any(Option::is_some)
    }

    fn reply(&self, front: u32, reply: Reply) {
        if let Some(Some(front)) = self.fronts.borrow().get(front as usize) {
            front.rings.replies.send(reply);
        }
    }

    /// Handles what the reactors sent. Returns how much was done.
    pub fn poll(self: &Rc<Self>) -> usize {
        let mut done = self.work_off_backlog() + self.try_again();
        if !self.set.door.is_empty() {
            self.let_in();
        }
        for _ in 0..MESSAGES_A_POLL {
            // Behind a backlog nothing overtakes: its bound is that of the rings.
            if !self.backlog.borrow().is_empty() {
                break;
            }
            let Some(message) = self.next_message() else {
                break;
            };
            self.handle(message);
            done += 1;
        }
        if !self.wanting.borrow().is_empty() {
            self.grant_wanting();
            self.ask_back();
            self.give_up();
        }
        for front in self.fronts.borrow().iter().flatten() {
            front.rings.replies.flush();
        }
        self.publish();
        if done > 0 && self.settling.get() > 0 {
            self.released.notify();
        }
        done
    }

    /// Tells the reactors how full the cache is.
    pub fn publish(&self) {
        let alloc = &self.tree.alloc;
        let full = alloc.dirty_sectors() * 100 > alloc.data_sectors() * DIRTY_PERCENT_MAX;
        let stuck = alloc.is_scarce() && alloc.data_ready() <= alloc.data_kept();
        let stopped = self.latch.check().is_err();
        // Fills take buckets, and buckets take journal entries: none while the ring is full.
        let fill = !stopped && self.tree.journal.has_room(1);
        let set = &self.set;
        tell(&set.writeback_ok, !full && !stuck);
        tell(&set.fill_ok, fill);
        tell(&set.stopped, stopped);
    }

    fn work_off_backlog(self: &Rc<Self>) -> usize {
        let mut done = 0;
        while done < MESSAGES_A_POLL && !self.backlog.borrow().is_empty() {
            if self.latch.check().is_ok() && !self.tree.journal.has_room(1) {
                break;
            }
            let message = self.backlog.borrow_mut().pop_front();
            if let Some(message) = message {
                self.again(message);
            }
            done += 1;
        }
        done
    }

    fn handle(self: &Rc<Self>, message: Message) {
        work(Work::Messages, 1);
        match message {
            Message::Insert {
                front,
                token,
                volume,
                extent,
            } => self.insert(front, token, volume, extent),
            Message::BeginThrough(passage) => self.begin_through(passage),
            Message::Copied { volume, extent } => self.copied(volume, extent),
            Message::EndThrough { passage, ok } => self.end_through(passage, ok),
            Message::Fill {
                volume,
                extent,
                seen,
            } => self.fill(volume, extent, seen),
            Message::Flush {
                front,
                token,
                volume,
            } => self.flush(front, token, volume),
            Message::Discard {
                front,
                token,
                volume,
                start,
                sectors,
            } => self.discard(front, token, volume, start, start + sectors),
            Message::CacheError {
                volume,
                extent,
                write,
            } => self.cache_error(volume, extent, write),
            Message::WantBucket { front, dirty } => self.want_bucket(front, dirty),
            Message::DoneBucket(bucket) => self.done_bucket(bucket),
            Message::Bye(id) => self.bye(id),
        }
    }

    /// Keeps a message for later, and its bucket with it.
    fn keep(&self, message: Message, place: impl FnOnce(Message)) {
        if let Message::Insert { extent, .. } = &message {
            let bucket = self.set.gens.bucket_of(extent.at);
            self.tree.alloc.pin(bucket);
        }
        place(message);
    }

    /// Handles a kept message.
    fn again(self: &Rc<Self>, message: Message) {
        let pinned = match &message {
            Message::Insert { extent, .. } => Some(self.set.gens.bucket_of(extent.at)),
            _ => None,
        };
        self.handle(message);
        if let Some(bucket) = pinned {
            self.tree.alloc.unpin(bucket);
        }
    }

    fn insert(self: &Rc<Self>, front: u32, token: u64, number: u32, extent: Extent) {
        let message = Message::Insert {
            front,
            token,
            volume: number,
            extent,
        };
        if self.latch.check().is_err() {
            return self.reply(front, Reply::Inserted { token, ok: false });
        }
        let volume = self.volume(number);
        volume.dirty_awaited.set(!volume.says_dirty.get());
        if volume.dirty_awaited.get() {
            self.keep(message, |m| volume.unmarked.borrow_mut().push(m));
            return self.mark_dirty(volume);
        }
        let (start, end) = (extent.start, extent.end());
        if volume.throughs.borrow().overlaps(start, end) {
            return self.keep(message, |m| self.parked.borrow_mut().push(m));
        }
        match self.tree.insert(volume.inode, extent) {
            Ok(()) => {
                volume.changed(start, end);
                self.reply(front, Reply::Inserted { token, ok: true });
            }
            Err(JournalFull) => {
                self.keep(message, |m| self.backlog.borrow_mut().push_back(m));
            }
        }
    }

    /// The executor of the owner thread.
    pub fn exec(&self) -> &Executor {
        &self.exec
    }

    /// Runs a task that counts as this owner's.
    pub fn spawn(self: &Rc<Self>, job: impl std::future::Future<Output = ()> + 'static) {
        let owner = self.clone();
        self.tasks.set(self.tasks.get() + 1);
        self.exec.spawn_first(async move {
            job.await;
            owner.tasks.set(owner.tasks.get() - 1);
            owner.released.notify();
        });
    }

    fn mark_dirty(self: &Rc<Self>, volume: Rc<Volume>) {
        if volume.marking.replace(true) {
            return;
        }
        let owner = self.clone();
        self.spawn(async move {
            let done = owner.backings.mark_dirty(volume.inode).await;
            volume.marking.set(false);
            let waiting = volume.unmarked.take();
            match done {
                // Those that come too late, because it is to say clean again, wait again.
                Ok(()) => owner.retried.borrow_mut().extend(waiting),
                Err(why) => {
                    volume.dirty_awaited.set(false);
                    log::error!("a backing device could not be marked dirty: {why}");
                    for message in waiting {
                        owner.refuse(message);
                    }
                }
            }
        });
    }

    /// Answers a kept insert with a failure. The data stay unreferenced in their bucket.
    fn refuse(&self, message: Message) {
        if let Message::Insert {
            front,
            token,
            extent,
            ..
        } = message
        {
            self.tree.alloc.unpin(self.set.gens.bucket_of(extent.at));
            self.reply(front, Reply::Inserted { token, ok: false });
        }
    }

    fn copied(&self, number: u32, extent: Extent) {
        if self.latch.check().is_ok() && self.tree.is_fresh(&extent) {
            let volume = self.volume(number);
            // From here on the backing device must be flushed before the key is written.
            volume.unflushed.wrote();
            self.tree.insert_unlogged(volume.inode, extent);
        }
    }

    pub(super) fn release(self: &Rc<Self>, volume: &Volume, start: Sector, end: Sector) {
        volume.changed(start, end);
        volume.throughs.borrow_mut().release(start, end);
        self.unpark();
    }

    /// Has all parked messages tried again, in the order of their coming, before what comes now.
    fn unpark(&self) {
        let parked = self.parked.take();
        self.retried.borrow_mut().extend(parked);
        self.released.notify();
    }

    /// Tries messages again that were parked. Returns how many.
    fn try_again(self: &Rc<Self>) -> usize {
        let tries = self.retried.borrow().len().min(MESSAGES_A_POLL);
        for _ in 0..tries {
            let message = self.retried.borrow_mut().pop_front();
            if let Some(message) = message {
                self.again(message);
            }
        }
        tries
    }

    fn fill(&self, number: u32, extent: Extent, seen: u64) {
        let volume = self.volume(number);
        let (start, end) = (extent.start, extent.end());
        let changed = volume.throughs.borrow().overlaps(start, end)
            || volume.versions.borrow().changed_since(start, end, seen);
        let mut cached = false;
        self.tree.scan(volume.inode, start, end, &mut |e| {
            cached = self.tree.is_fresh(&e);
            !cached
        });
        if changed || cached || self.latch.check().is_err() || !self.tree.is_fresh(&extent) {
            return volume.counting.cache_miss_collisions.add(1);
        }
        // Not in the journal, which is for what must not be lost; the tree's own runs are flushed
        // for, also on the backing device, which may still lose what was read from it.
        self.tree.insert_unlogged(volume.inode, extent);
    }

    fn flush(self: &Rc<Self>, front: u32, token: u64, number: u32) {
        let volume = self.volume(number);
        let ok = self.latch.check().is_ok();
        if !ok || self.tree.journal.is_durable() && !volume.needs_flush() {
            return self.reply(front, Reply::Flushed { token, ok });
        }
        let owner = self.clone();
        self.spawn(async move {
            let backing = volume.flush_backing().await;
            let journal = owner.tree.journal.commit().await;
            let ok = backing.is_ok() && journal.is_ok();
            owner.reply(front, Reply::Flushed { token, ok });
        });
    }

    fn discard(self: &Rc<Self>, front: u32, token: u64, number: u32, start: Sector, end: Sector) {
        let (owner, volume) = (self.clone(), self.volume(number));
        self.spawn(async move {
            let ok = owner
                .delete_durably(&volume, start, end, false)
                .await
                .is_ok();
            volume.changed(start, end);
            owner.reply(front, Reply::Ended { token, ok });
        });
    }

    fn bye(&self, id: u32) {
        let gone = self.fronts.borrow_mut()[id as usize].take();
        self.wanting.borrow_mut().retain(|&front| front != id);
        for bucket in gone.into_iter().flat_map(|f| f.granted.take()) {
            self.tree.alloc.unpin(bucket);
        }
        self.set.front_gone(id);
        self.released.notify();
    }

    // --- write-back ---

    /// From here on no write past the cache is sent into it for the dirty data under it. Somebody
    /// must want the volume written back as long as this holds, or such writes wait for ever.
    pub fn begin_leaving(&self, volume: &Volume) {
        volume.leaving.set(true);
    }

    /// The volume stays: writes that waited go into the cache.
    pub fn stay(self: &Rc<Self>, volume: &Volume) {
        if volume.leaving.replace(false) {
            self.unpark();
        }
    }

    /// Takes a range for write-back; false while a through write is in it.
    pub fn begin_writeback(&self, volume: &Volume, start: Sector, end: Sector) -> bool {
        if volume.throughs.borrow().overlaps(start, end) {
            return false;
        }
        volume.writing_back.borrow_mut().hold(start, end);
        true
    }

    /// Gives back all that was taken for write-back.
    pub fn end_writeback(self: &Rc<Self>, volume: &Volume) {
        volume.writing_back.borrow_mut().release_all();
        self.unpark();
    }
}

/// Says yes or no to the reactors. A store only when it changes: the line stays shared between them.
fn tell(flag: &AtomicBool, yes: bool) {
    if flag.load(Ordering::Relaxed) != yes {
        flag.store(yes, Ordering::Relaxed);
    }
}
