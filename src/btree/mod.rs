//! The btree: which sectors of which volume are cached where, in memory and on disk.
//!
//! In memory the whole map is in lockless indexes, one a volume ([`crate::index`]); they are the
//! truth. Nodes are the disk's view of it. A *leaf* covers a range of positions and remembers only
//! which spans of it have changed since its bucket was written, and the journal entry that it
//! pins. Writing a leaf means: look the spans up in the index, write what stands there now, and
//! deletions where nothing does. So a set of keys that is written is always sorted, free of
//! overlaps, and as new as memory.
//!
//! ```text
//! insert ─▶ journal entry (pinned by the leaf) ─▶ index ─▶ span noted in the leaf
//!                                   flush of the leaf: index ─▶ bset ─▶ pin given back
//! ```
//!
//! What is journalled: everything that concerns dirty data, and every removal that a later write to
//! the backing device relies on. Clean data may enter the index without an entry: losing them in a
//! crash loses nothing.
//!
//! After a crash each leaf on disk is one of its past states; the journal from `last_seq` on brings
//! every range at least to the state of the last commit.

mod append;
mod backings;
mod leaves;
mod load;
mod merge;
mod nodes;
mod remnants;
mod runs;
mod vouch;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::alloc::Alloc;
use crate::disk::{Disk, Latch, Stopped};
use crate::format::key::{Key, Ptr};
use crate::index::{Domain, Extent, Index, Lookup, Writer};
use crate::journal::{Journal, Shape};
use crate::rng::Rng;
use crate::task::{Notify, Work, breathe, work, yield_now};
use crate::units::{BucketNr, Gen, Inode, JournalSeq, Sector};

pub use backings::{Backings, Failed, NoBackings};
pub use load::LoadError;
use nodes::{Marked, Nodes, Room, Span};
use remnants::{Gathered, Remnants};
use write::{Deferred, fill_bytes};

/// A position in the order of keys.
pub type Pos = (Inode, Sector);

/// Spans that a leaf collects before it is written although nothing presses: some 2000 keys are a
/// run of 48 KiB, a good write.
const PENDING_SPANS: usize = 2048;

/// The longest range that one deletion key covers: the largest power of two that a key's size holds.
const DELETE_SECTORS_MAX: u64 = 32768;

/// Seconds after which a leaf is written because of what stands in no journal entry, or up to twice as
/// many; the kernel writes it after 30.
const UNLOGGED_S: u32 = 15;

/// Extents that one step of a deletion looks at.
const DELETE_EXTENTS: usize = Work::Keys.slice();

/// Maps of which one call of [`Tree::reclaim`] frees memory, and pages after which it ends.
const RECLAIM_SPACES: usize = 64;
const RECLAIM_PAGES: usize = 1024;

/// The journal has no room: nothing was changed, wait for [`Journal::room`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFull;

/// What is cached of one volume.
struct Space {
    writer: Writer,
    dirty_sectors: u64,
}

/// The btree of a running set.
pub struct Tree {
    disk: Rc<dyn Disk>,
    shape: Shape,
    latch: Rc<Latch>,
    /// The journal that pins are taken in.
    pub journal: Rc<Journal>,
    /// Where buckets come from.
    pub alloc: Rc<Alloc>,
    domain: Arc<Domain>,
    rng: Rc<Rng>,
    spaces: RefCell<BTreeMap<Inode, Space>>,
    nodes: RefCell<Nodes>,
    /// The map whose memory is freed next.
    reclaimed: Cell<Inode>,
    backings: RefCell<Rc<dyn Backings>>,
    /// What the disk may say beyond the map.
    remnants: RefCell<Remnants>,
    /// What waits for the root in memory to be durable.
    deferred: RefCell<Deferred>,
    /// Buckets for the nodes of the step that the writer is in.
    granted: RefCell<Vec<(BucketNr, Gen)>>,
    work: Notify,
    idle: Notify,
    /// The writer is in the middle of a round.
    busy: Cell<bool>,
    /// Rounds that the writer has finished.
    rounds: Cell<u64>,
    stopping: Cell<bool>,
}

/// Size of the tree, for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct TreeStats {
    /// Levels above the leaves.
    pub depth: u16,
    /// Nodes on disk.
    pub nodes: u64,
    /// Extents in memory, stale ones included.
    pub extents: u64,
    /// Bytes of memory for them.
    pub index_bytes: u64,
}

impl Tree {
    /// A tree without nodes: [`create`](Self::create) or `load` one.
    pub fn new(
        disk: Rc<dyn Disk>,
        shape: Shape,
        latch: Rc<Latch>,
        journal: Rc<Journal>,
        alloc: Rc<Alloc>,
        domain: Arc<Domain>,
        rng: Rc<Rng>,
    ) -> Rc<Tree> {
        let room = Room {
            block_sectors: shape.geometry.block_sectors,
            fill_bytes: fill_bytes(&shape),
        };
        Rc::new(Tree {
            disk,
            shape,
            latch,
            journal,
            alloc,
            domain,
            rng,
            spaces: RefCell::default(),
            nodes: RefCell::new(Nodes::new(room)),
            reclaimed: Cell::new(Inode(0)),
            backings: RefCell::new(Rc::new(NoBackings)),
            remnants: RefCell::default(),
            deferred: RefCell::default(),
            granted: RefCell::default(),
            work: Notify::default(),
            idle: Notify::default(),
            busy: Cell::new(false),
            rounds: Cell::new(0),
            stopping: Cell::new(false),
        })
    }

    /// Says whose data must be durable before clean keys are.
    pub fn set_backings(&self, backings: Rc<dyn Backings>) {
        *self.backings.borrow_mut() = backings;
    }

    /// The readers' side of a volume's map.
    pub fn index(&self, inode: Inode) -> Arc<Index> {
        self.with_space(inode, |space| space.writer.index())
    }

    /// The domain in which readers of the indexes register.
    pub fn domain(&self) -> Arc<Domain> {
        self.domain.clone()
    }

    /// The bytes of memory that a reader sees, and how many nodes there are.
    pub fn stats(&self) -> TreeStats {
        let spaces = self.spaces.borrow();
        TreeStats {
            depth: self.journal.roots().level,
            nodes: self.nodes.borrow().count() as u64,
            extents: spaces.values().map(|s| s.writer.len()).sum(),
            index_bytes: spaces.values().map(|s| s.writer.bytes()).sum(),
        }
    }

    /// The dirty sectors of a volume.
    pub fn dirty_sectors(&self, inode: Inode) -> u64 {
        self.spaces
            .borrow()
            .get(&inode)
            .map_or(0, |s| s.dirty_sectors)
    }

    /// The inodes that have extents.
    pub fn inodes(&self) -> Vec<Inode> {
        let spaces = self.spaces.borrow();
        spaces
            .iter()
            .filter(|(_, s)| !s.writer.is_empty())
            .map(|(&i, _)| i)
            .collect()
    }

    fn with_space<R>(&self, inode: Inode, f: impl FnOnce(&mut Space) -> R) -> R {
        let mut spaces = self.spaces.borrow_mut();
        f(spaces.entry(inode).or_insert_with(|| Space {
            writer: Writer::new(self.domain.clone()),
            dirty_sectors: 0,
        }))
    }

    /// Changes what is cached of a volume, and returns how many extents more there are then.
    fn change(&self, inode: Inode, change: impl FnOnce(&mut Space)) -> i64 {
        self.with_space(inode, |space| {
            let before = space.writer.len() as i64;
            change(space);
            space.writer.len() as i64 - before
        })
    }

    /// Whether a pointer still means what it meant.
    pub fn is_fresh(&self, extent: &Extent) -> bool {
        let gens = &self.alloc.gens;
        gens.generation(gens.bucket_of(extent.at)) == extent.generation
    }

    /// Whether a pointer means nothing any more, nor would after a crash: its bucket was given away, and
    /// that is so on disk too. Another pointer for the same range may come back all the same: ask
    /// [`may_come_back`](Self::may_come_back).
    pub fn is_stale_for_good(&self, extent: &Extent) -> bool {
        !self.is_fresh(extent) && !self.alloc.is_invalid_in_memory_only(extent)
    }

    /// Whether a crash may bring back a key in a range, of this map or an older one: then a deletion
    /// must be durable before anything relies on the range not being cached. See `remnants`.
    pub fn may_come_back(&self, inode: Inode, start: Sector, end: Sector) -> bool {
        if self.remnants.borrow().first_in(inode, start, end).is_some() {
            return true;
        }
        let mut found = false;
        self.scan(inode, start, end, &mut |e| {
            found = !self.is_stale_for_good(&e);
            !found
        });
        found
    }

    /// Leaves were written, in a tree whose root is durable: what the disk says of them is known again
    /// once the journal is replayed from behind.
    fn leaves_written(&self, written: &[Gathered]) {
        let (open, mut remnants) = (self.journal.window().1, self.remnants.borrow_mut());
        for leaves in written {
            remnants.written(leaves, open);
        }
        remnants.replayed_from(self.journal.replayed_from());
    }

    /// Whether clean data may be moved now: what the disk says of them must be remembered.
    pub fn may_move_clean(&self) -> bool {
        self.remnants.borrow().has_room()
    }

    /// What covers a sector; a stale extent is reported like any other.
    pub fn lookup(&self, inode: Inode, at: Sector) -> Lookup {
        self.with_space(inode, |space| space.writer.lookup(at))
    }

    /// Fetches the memory that changes at these positions soon will look at.
    #[inline]
    pub fn prefetch(&self, inode: Inode, at: &[Sector]) {
        if let Some(space) = self.spaces.borrow().get(&inode) {
            space.writer.prefetch_all(at);
        }
    }

    /// Calls `f` for every extent that intersects the range, in order, until it returns false.
    /// `f` must not call back into the tree.
    pub fn scan(
        &self,
        inode: Inode,
        start: Sector,
        end: Sector,
        f: &mut dyn FnMut(Extent) -> bool,
    ) {
        if let Some(space) = self.spaces.borrow().get(&inode) {
            space.writer.scan(start, end, f);
        }
    }

    /// Inserts an extent and journals it.
    ///
    /// # Errors
    /// [`JournalFull`], and then nothing has changed.
    pub fn insert(&self, inode: Inode, extent: Extent) -> Result<(), JournalFull> {
        let key = key_of(inode, &extent);
        let seq = self.journal.add(&key).ok_or(JournalFull)?;
        let (grown, span) = (self.apply(inode, extent), Span::of(inode, &extent));
        self.remnants.borrow_mut().cover(span);
        self.mark(span, Some(seq), grown);
        Ok(())
    }

    /// Inserts a clean extent that a crash may forget.
    pub fn insert_unlogged(&self, inode: Inode, extent: Extent) {
        assert!(!extent.dirty);
        let grown = self.apply(inode, extent);
        self.mark(Span::of(inode, &extent), None, grown);
    }

    /// Inserts an extent from the journal: its entry is pinned already or will be by this.
    pub(crate) fn replay(&self, inode: Inode, key: &Key, seq: JournalSeq) {
        let (start, end) = (key.start(), key.end);
        if let Some(ptr) = key.data() {
            let bucket = self.shape.bucket_of(ptr.sector());
            self.alloc.note_replayed(bucket, seq);
        }
        let grown = self.change(inode, |space| match key.data() {
            Some(ptr) if key.size_sectors > 0 => {
                space.writer.insert(extent_of(key, ptr), &mut |_| ());
            }
            _ => space.writer.remove(start, end, &mut |_| ()),
        });
        if key.size_sectors > 0 {
            self.mark(Span { inode, start, end }, Some(seq), grown);
        }
    }

    /// Returns how many extents more there are.
    fn apply(&self, inode: Inode, extent: Extent) -> i64 {
        let (alloc, gens) = (&self.alloc, &self.alloc.gens);
        self.change(inode, |space| {
            let dirty = &mut space.dirty_sectors;
            space.writer.insert(extent, &mut |old: Extent| {
                count_out(alloc, &old, dirty);
            });
            let bucket = gens.bucket_of(extent.at);
            alloc.add(bucket, extent.generation, extent.sectors, extent.dirty);
            if extent.dirty {
                *dirty += u64::from(extent.sectors);
            }
        })
    }

    /// Removes what the map has in a range and what may come back there, a bounded part of it a step,
    /// each part with its deletion in the journal. What is dirty is kept when `keep_dirty` says so.
    pub async fn delete(
        &self,
        inode: Inode,
        start: Sector,
        end: Sector,
        keep_dirty: bool,
    ) -> Result<(), Stopped> {
        let mut at = start;
        while at < end {
            breathe().await;
            let (runs, next) = self.deletions_of(inode, at, end, keep_dirty);
            for &(from, to) in &runs {
                self.delete_run(inode, from, to).await?;
            }
            at = next.max(at);
            if at < end {
                yield_now().await;
            }
        }
        // None lies under dirty data: their keys are journalled.
        loop {
            let left = self.remnants.borrow().first_in(inode, start, end);
            let Some((from, to)) = left else { break };
            let to = to.min(from + DELETE_SECTORS_MAX);
            self.delete_run(inode, from, to).await?;
            yield_now().await;
        }
        Ok(())
    }

    /// The ranges of the next deletions behind `at`, and where to go on. What nothing is in between
    /// two extents is deleted with them.
    fn deletions_of(
        &self,
        inode: Inode,
        at: Sector,
        end: Sector,
        keep_dirty: bool,
    ) -> (Vec<(Sector, Sector)>, Sector) {
        let mut runs: Vec<(Sector, Sector)> = Vec::new();
        let (mut next, mut looked, mut joins) = (end, 0, false);
        self.scan(inode, at, end, &mut |e| {
            if runs.len() == 64 || looked == DELETE_EXTENTS {
                next = e.start;
                return false;
            }
            looked += 1;
            if keep_dirty && e.dirty && self.is_fresh(&e) {
                joins = false;
                return true;
            }
            let (from, to) = (e.start.max(at), e.end().min(end));
            match runs.last_mut() {
                Some(run) if joins && to.0 - run.0.0 <= DELETE_SECTORS_MAX => run.1 = to,
                _ => runs.push((from, to)),
            }
            joins = true;
            true
        });
        work(Work::Keys, looked);
        (runs, next)
    }

    async fn delete_run(&self, inode: Inode, start: Sector, end: Sector) -> Result<(), Stopped> {
        while self.delete_now(inode, start, end).is_err() {
            self.journal.room().await?;
        }
        Ok(())
    }

    /// Removes all that the index has in a range of 16 MiB at most (what one key can delete), with its
    /// deletion in the journal.
    ///
    /// # Errors
    /// [`JournalFull`], and then nothing has changed.
    pub fn delete_now(&self, inode: Inode, start: Sector, end: Sector) -> Result<(), JournalFull> {
        assert!(end - start <= DELETE_SECTORS_MAX);
        let key = Key {
            inode,
            end,
            size_sectors: (end - start) as u32,
            dirty: false,
            ptr: None,
        };
        let seq = self.journal.add(&key).ok_or(JournalFull)?;
        let grown = self.remove_counted(inode, start, end);
        let span = Span { inode, start, end };
        self.remnants.borrow_mut().cover(span);
        self.mark(span, Some(seq), grown);
        Ok(())
    }

    /// Returns how many extents more there are.
    fn remove_counted(&self, inode: Inode, start: Sector, end: Sector) -> i64 {
        let alloc = &self.alloc;
        self.change(inode, |space| {
            let dirty = &mut space.dirty_sectors;
            space.writer.remove(start, end, &mut |old: Extent| {
                count_out(alloc, &old, dirty);
            });
        })
    }

    /// Removes stale extents behind `from`, without a word in the journal (see [`crate::gc`]); looks
    /// at `most` of them, or a leaf's more. Returns where to go on, `None` at the end.
    pub(crate) fn forget_stale(&self, inode: Inode, from: Sector, most: usize) -> Option<Sector> {
        let (mut looked, mut at) = (0, Some(from));
        // Neighbours are one run, with what nothing is in between them: one deletion on disk.
        let mut runs: Vec<(Span, i64)> = Vec::new();
        let mut beside = false;
        self.with_space(inode, |space| {
            while let Some(from) = at.filter(|_| looked < most) {
                at = space.writer.sift(from, &mut |e| {
                    looked += 1;
                    // No longer counted anywhere: nothing is to be counted out.
                    let goes = self.is_stale_for_good(e);
                    match runs.last_mut() {
                        Some((run, grown))
                            if goes && beside && e.end() - run.start <= DELETE_SECTORS_MAX =>
                        {
                            run.end = e.end();
                            *grown -= 1;
                        }
                        _ if goes => runs.push((Span::of(inode, e), -1)),
                        _ => {}
                    }
                    beside = goes;
                    goes
                });
            }
        });
        for (run, grown) in runs {
            self.mark(run, None, grown);
        }
        work(Work::Keys, looked);
        at
    }

    /// What of an extent is still in the map as it says, dirty or clean.
    fn still(&self, inode: Inode, extent: &Extent) -> Vec<Extent> {
        let mut pieces: Vec<Extent> = Vec::new();
        let (start, end) = (extent.start, extent.end());
        self.scan(inode, start, end, &mut |e| {
            let same = e.generation == extent.generation
                && e.at.0.wrapping_sub(e.start.0) == extent.at.0.wrapping_sub(extent.start.0);
            if same && self.is_fresh(&e) {
                pieces.push(e.cut(e.start.max(start), e.end().min(end)));
            }
            true
        });
        pieces
    }

    /// Marks as clean what is still at `extent.at`. To be called once the data are durable on the
    /// backing device.
    ///
    /// # Errors
    /// [`JournalFull`]: some pieces may be clean by then; call again.
    pub fn clean(&self, inode: Inode, extent: &Extent) -> Result<u64, JournalFull> {
        let mut cleaned = 0;
        let pieces = self.still(inode, extent);
        for mut piece in pieces.into_iter().filter(|piece| piece.dirty) {
            piece.dirty = false;
            self.insert(inode, piece)?;
            cleaned += u64::from(piece.sectors);
        }
        Ok(cleaned)
    }

    /// Makes keys that are still as `extent` says point to a copy of its data at `at`, in a bucket
    /// that the caller has pinned. Returns how many sectors those are. Clean ones stay where they are
    /// while [`may_move_clean`](Self::may_move_clean) says no.
    ///
    /// # Errors
    /// [`JournalFull`]: some pieces may point there by then; call again.
    pub fn relocate(
        &self,
        inode: Inode,
        extent: &Extent,
        at: Sector,
        generation: Gen,
    ) -> Result<u64, JournalFull> {
        let mut moved = 0;
        for mut piece in self.still(inode, extent) {
            piece.at = at + (piece.start - extent.start);
            piece.generation = generation;
            if piece.dirty {
                self.insert(inode, piece)?;
            } else if self.may_move_clean() {
                self.remnants.borrow_mut().record(Span::of(inode, &piece));
                self.insert_unlogged(inode, piece);
            } else {
                continue;
            }
            moved += u64::from(piece.sectors);
        }
        Ok(moved)
    }

    /// Notes that a range has changed, by so many keys more (see [`Nodes::mark`]), and pins the entry
    /// that says so.
    fn mark(&self, span: Span, seq: Option<JournalSeq>, grown: i64) {
        let marked = self.nodes.borrow_mut().mark(span, seq, grown);
        self.marked(marked);
    }

    /// Does what the table of nodes asks for.
    fn marked(&self, marked: Marked) {
        for seq in marked.pins {
            self.journal.pin(seq);
        }
        self.alloc.set_node_debt(self.nodes.borrow().debt());
        if marked.due {
            self.work.notify();
        }
    }

    /// To be called once a second: has what no entry has written before long, so that a crash forgets
    /// the fills of the last half minute and no more.
    pub async fn age(&self) {
        self.nodes.borrow_mut().tick();
        loop {
            let aged = self.nodes.borrow_mut().age(UNLOGGED_S);
            if aged.any {
                self.work.notify();
            }
            if !aged.more {
                return;
            }
            yield_now().await;
        }
    }

    /// Frees memory that no reader can see any more: a bounded part of it, the next part in the next
    /// call.
    pub fn reclaim(&self) {
        let mut spaces = self.spaces.borrow_mut();
        let (from, mut pages) = (self.reclaimed.take(), 0);
        for (&inode, space) in spaces.range_mut(from..).take(RECLAIM_SPACES) {
            pages += space.writer.reclaim();
            self.reclaimed.set(Inode(inode.0 + 1));
            if pages >= RECLAIM_PAGES {
                return;
            }
        }
        if spaces.range(self.reclaimed.get()..).next().is_none() {
            self.reclaimed.take();
        }
    }

    /// The cache device.
    pub fn cache_disk(&self) -> Rc<dyn Disk> {
        self.disk.clone()
    }

    /// Whether the tree is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Ends [`run`](Self::run).
    pub fn stop(&self) {
        self.stopping.set(true);
        self.work.notify();
        self.idle.notify();
    }
}

fn count_out(alloc: &Alloc, old: &Extent, dirty: &mut u64) {
    let bucket = alloc.gens.bucket_of(old.at);
    if alloc.gens.generation(bucket) == old.generation {
        alloc.sub(bucket, old.generation, old.sectors, old.dirty);
        if old.dirty {
            *dirty -= u64::from(old.sectors);
        }
    }
}

/// The key of an extent.
pub fn key_of(inode: Inode, extent: &Extent) -> Key {
    Key {
        inode,
        end: extent.end(),
        size_sectors: extent.sectors,
        dirty: extent.dirty,
        ptr: Some(Ptr::new(0, extent.at, extent.generation)),
    }
}

/// The extent of a key.
pub fn extent_of(key: &Key, ptr: Ptr) -> Extent {
    Extent {
        start: key.start(),
        sectors: key.size_sectors,
        at: ptr.sector(),
        generation: ptr.generation(),
        dirty: key.dirty,
    }
}
