//! The one thread that changes a volume's map.
//!
//! A change comes in three steps. First the extents it displaces are reported, piece by piece, from
//! the tree as it is; nothing has been touched when the callback runs (nor if it panics). Then
//! pages are built that no reader can see. Last, one store replaces a pointer, and the pages that
//! it made unreachable are retired. An extent that takes the place of one of exactly the same sectors
//! needs no page: the store replaces a word of the leaf.
//!
//! Retired pages go round: `open` collects them; a batch of them becomes `waiting` when the epoch
//! is advanced; when every reader has passed the epoch they are `ready`, which is where new pages
//! come from; what is too much there goes back to the slab. Each insert and remove pushes a few
//! pages along this path, [`Writer::reclaim`] more of them.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::compact::Compaction;
use super::page::{FAN, Leaf, Node, PAD, Page};
use super::primitive::{AtomicPtr, Ordering};
use super::slab::Slab;
use super::{AT_END, Domain, Extent, Index, Lookup, MAX_LEVELS, descend};
use crate::units::Sector;

/// A leaf or inner node this full or less joins a neighbour when it loses something.
pub(super) const THIN: usize = FAN / 4;
/// Retired pages that are worth an epoch of their own.
const BATCH_PAGES: usize = 64;
/// Ready pages to keep from the slab: a batch, so that it can be used in turn with the next.
const READY_PAGES: usize = 64;
/// Slots of readers that an insert or remove looks at, at most.
const STEP_SLOTS: usize = 8;
/// Pages that an insert or remove moves on, at most: more than it retires, as a rule.
const STEP_PAGES: usize = 4;
/// Pages that a call of `reclaim` moves on, at most.
const RECLAIM_PAGES: usize = 1024;
/// Leaves that a call of `reclaim` considers moving in memory, at most.
const RECLAIM_LEAVES: usize = 32;

/// What every extent ends before.
pub(super) const PADDED_END: u64 = PAD;

/// Changes and owns the map of one volume. It may be moved to another thread but is used by one
/// at a time.
pub struct Writer {
    pub(super) index: Arc<Index>,
    pub(super) slab: Slab,
    /// Unreachable since the last epoch was advanced or later.
    pub(super) open: Vec<Node>,
    /// Unreachable since before `target` began.
    pub(super) waiting: Vec<Node>,
    /// The epoch that all readers must have reached before `waiting` is ready, and which of their
    /// slots was looked at; `None` when all have.
    target: Option<(u64, usize)>,
    /// Out of everyone's sight.
    pub(super) ready: Vec<*mut Page>,
    len: u64,
    pub(super) scratch: Scratch,
    pub(super) compaction: Compaction,
}

/// Room for building nodes, kept from one change to the next.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) extents: Vec<Extent>,
    /// New nodes with their lower bounds, from left to right.
    pub(super) children: Vec<(Node, u64)>,
    /// Those of the level below, while their parents are made.
    pub(super) below: Vec<(Node, u64)>,
}

/// The way from the root to the leaf of a position.
pub(super) struct Path {
    /// The node on each level, and from level 1 on the place in it of the child taken.
    pub(super) steps: [(Node, usize); MAX_LEVELS],
    /// The level of the root.
    pub(super) top: usize,
    /// The upper bound of the leaf's range.
    pub(super) upper: u64,
}

// SAFETY: the pages that the pointers name belong to this writer (readers only read them, on any
// thread); nothing about them belongs to a thread. The domain is `Sync`.
unsafe impl Send for Writer {}

impl Writer {
    /// An empty map, whose readers are those of `domain`. Takes 32 KiB.
    pub fn new(domain: Arc<Domain>) -> Writer {
        let mut slab = Slab::new();
        let page = slab.alloc();
        // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
        unsafe { (*page.cast::<Leaf>()).fill(&[]) };
        let root = AtomicPtr::new(Node::new(page, 0).0);
        Writer {
            index: Arc::new(Index {
                root,
                domain,
                pages: Mutex::new(None),
            }),
            slab,
            open: Vec::new(),
            waiting: Vec::new(),
            target: None,
            ready: Vec::new(),
            len: 0,
            scratch: Scratch::default(),
            compaction: Compaction::default(),
        }
    }

    /// The readers' side. When the writer is dropped it stays as it is then.
    pub fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    /// Puts an extent into the map, in place of whatever it overlaps. Each overlapped part goes to
    /// `displaced`, in order, before the change is made: readers may find it until they have all
    /// quiesced after this returned. The work is bounded by the parts displaced, at most 65535.
    ///
    /// # Panics
    /// When a field of the extent is out of its range, or it ends at 2^63 - 1 or behind.
    pub fn insert(&mut self, extent: Extent, displaced: &mut dyn FnMut(Extent)) {
        assert!(
            (1..=0xffff).contains(&extent.sectors)
                && extent.at.0 < AT_END
                && extent.start.0 < PAD - u64::from(extent.sectors),
            "an extent out of range: {extent:?}"
        );
        self.change(extent.start.0, extent.end().0, Some(extent), displaced);
    }

    /// Takes the sectors from `start` to before `end` out of the map. As with [`Writer::insert`],
    /// the overlapped parts go to `displaced` first. The work is bounded by their number alone:
    /// whoever has no bound for that takes smaller ranges, with [`Writer::scan`].
    pub fn remove(&mut self, start: Sector, end: Sector, displaced: &mut dyn FnMut(Extent)) {
        let end = end.0.min(PAD - 1);
        if start.0 < end {
            self.change(start.0, end, None, displaced);
        }
    }

    /// Takes what `goes` says out of the leaf in whose range `from` is: one copy of it, however many
    /// those are. Asks about every extent of the leaf, in order, before the change is made; about some
    /// of them again in the next call, when what is left joins the next leaf. Returns where that
    /// begins, `None` behind the last one.
    pub fn sift(&mut self, from: Sector, goes: &mut dyn FnMut(&Extent) -> bool) -> Option<Sector> {
        if from.0 >= PAD {
            return None;
        }
        self.tidy(BATCH_PAGES, STEP_SLOTS, STEP_PAGES);
        let path = self.path(from.0);
        let next = (path.upper < PAD).then_some(Sector(path.upper));
        let old = path.steps[0].0;
        // SAFETY: we are the writer, and the leaf is retired only at the end of this function.
        let leaf = unsafe { old.leaf() };
        leaf.prefetch_rest();
        let mut gone = 0u64;
        for (place, extent) in leaf.extents(0).enumerate() {
            gone |= u64::from(goes(&extent)) << place;
        }
        if gone == 0 {
            return next;
        }
        let extents = leaf.extents(0).enumerate();
        let is_going = |place: usize| gone >> place & 1 == 1;
        let gone_len = gone.count_ones() as usize;
        if leaf.len() - gone_len <= THIN && path.top > 0 {
            // Copied, because the leaf is replaced with the first of them.
            let going = extents.filter(|(place, _)| is_going(*place));
            for (_, extent) in going.collect::<Vec<_>>() {
                self.remove(extent.start, extent.end(), &mut |_| ());
            }
            return next;
        }
        let mut kept = std::mem::take(&mut self.scratch.extents);
        kept.clear();
        kept.extend(
            extents
                .filter(|(place, _)| !is_going(*place))
                .map(|(_, extent)| extent),
        );
        let page = self.page();
        // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
        unsafe { (*page.cast::<Leaf>()).fill(&kept) };
        self.scratch.extents = kept;
        self.replace(&path, 0, Node::new(page, 0));
        self.retire(old);
        self.recount(gone_len as u64, 0);
        next
    }

    /// What there is at a position.
    pub fn lookup(&self, at: Sector) -> Lookup {
        // SAFETY: we are the writer: pages are only retired and used again in calls with `&mut
        // self`.
        unsafe { self.index.find(at) }
    }

    /// Calls `f` with every extent that has a sector from `start` to before `end`, whole and in
    /// order, until it returns `false`.
    pub fn scan(&self, start: Sector, end: Sector, f: &mut dyn FnMut(Extent) -> bool) {
        let end = end.0.min(PAD - 1);
        let mut from = start.0;
        while from < end {
            // SAFETY: as in `lookup`; `from` is below PAD.
            let (leaf, upper) = unsafe { descend(self.index.root(), from) };
            let mut place = leaf.rank(from);
            while let Some(extent) = leaf.get(place) {
                if extent.start.0 >= end || !f(extent) {
                    return;
                }
                place += 1;
            }
            from = upper;
        }
    }

    /// How many extents there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no extent.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory held for pages: in use, waiting for readers, and free.
    pub fn bytes(&self) -> u64 {
        self.slab.bytes() as u64
    }

    /// Moves retired pages on, and nodes together if that frees memory: to be called now and then
    /// from a poller, so that memory also comes back when nothing is inserted. Returns how many
    /// pages it dealt with; 0 means that there is nothing to do until readers quiesce or the map
    /// changes. Looks at each reader's slot once, at 1024 pages and at 32 leaves, at most.
    pub fn reclaim(&mut self) -> usize {
        let slots = self.index.domain.slots();
        let moved = self.tidy(1, slots, RECLAIM_PAGES);
        if moved == 0 {
            // Nothing happens here, or nothing can: others need the memory more.
            self.release(0, RECLAIM_PAGES);
        }
        moved + self.compact(RECLAIM_LEAVES)
    }

    /// Carries out an insert or a remove of `start` to before `end`.
    fn change(
        &mut self,
        start: u64,
        end: u64,
        new: Option<Extent>,
        displaced: &mut dyn FnMut(Extent),
    ) {
        let path = self.path(start);
        // SAFETY: we are the writer, and the leaf is retired only at the end of this function.
        let leaf = unsafe { path.steps[0].0.leaf() };
        let first = leaf.rank(start);
        if let Some(new) = new.filter(|new| leaf.is_exactly(first, new)) {
            leaf.get(first).into_iter().for_each(displaced);
            leaf.replace(first, &new);
            return;
        }
        self.tidy(BATCH_PAGES, STEP_SLOTS, STEP_PAGES);
        if end > path.upper {
            let mut found = false;
            self.scan(Sector(start), Sector(end), &mut |extent| {
                found = true;
                displaced(extent.cut(Sector(start), Sector(end)));
                true
            });
            if found || new.is_some() {
                self.rebuild(start, end, new);
            }
            return;
        }
        leaf.prefetch_rest();
        let last = leaf.place_from(first, end);
        if first == last && new.is_none() {
            return;
        }
        let (middle, count) = pieces(leaf, first, last, start, end, new, displaced);
        let gone = last - first;
        let rebuild = if count > gone {
            leaf.len() + count - gone > FAN
        } else {
            count < gone && leaf.len() + count - gone <= THIN && path.top > 0
        };
        if rebuild {
            self.rebuild(start, end, new);
            return;
        }
        let page = self.page();
        // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
        let copy = unsafe { &mut *page.cast::<Leaf>() };
        // SAFETY: we are the writer.
        unsafe { copy.splice(leaf, first, last, &middle[..count]) };
        self.replace(&path, 0, Node::new(page, 0));
        self.retire(path.steps[0].0);
        self.recount(gone as u64, count as u64);
    }

    /// The way to the leaf of `at`, which is below [`PAD`].
    pub(super) fn path(&self, at: u64) -> Path {
        let mut node = self.index.root();
        let top = node.level();
        let mut path = Path {
            steps: [(node, 0); MAX_LEVELS],
            top,
            upper: PAD,
        };
        while node.level() > 0 {
            // SAFETY: we are the writer and do not retire pages while we walk.
            let inner = unsafe { node.inner() };
            let place = inner.rank(at);
            path.steps[node.level()] = (node, place);
            path.upper = if inner.key(place) < PAD {
                inner.key(place)
            } else {
                path.upper
            };
            node = inner.child(place);
        }
        path.steps[0] = (node, 0);
        path
    }

    /// Publishes `node` in place of the one that `path` has on `level`, and whose range it has.
    pub(super) fn replace(&mut self, path: &Path, level: usize, node: Node) {
        if level == path.top {
            self.set_root(node);
        } else {
            let (parent, place) = path.steps[level + 1];
            // SAFETY: we are the writer; the parent is part of the tree.
            unsafe { parent.inner() }.replace(place, node);
        }
    }

    /// Publishes another tree.
    pub(super) fn set_root(&mut self, node: Node) {
        self.index.root.store(node.0, Ordering::Release);
    }

    /// Publishes a tree of `len` extents, made of this writer's pages, in place of an empty one.
    pub(super) fn adopt(&mut self, root: Node, len: u64) {
        debug_assert_eq!(self.len, 0);
        let empty = self.index.root();
        self.set_root(root);
        self.retire(empty);
        self.len = len;
    }

    /// Counts extents that came or went by a rebuild.
    pub(super) fn recount(&mut self, before: u64, after: u64) {
        self.len = self.len + after - before;
    }

    /// An initialised page for us alone.
    pub(super) fn page(&mut self) -> *mut Page {
        self.ready.pop().unwrap_or_else(|| self.slab.alloc())
    }

    /// Takes back a page that was never published.
    pub(super) fn unpage(&mut self, node: Node) {
        self.ready.push(node.page());
    }

    /// Takes note of a node that is not reachable from the root any more.
    pub(super) fn retire(&mut self, node: Node) {
        self.open.push(node);
    }

    /// Moves retired pages on, in bounds: begins an epoch when that many are `open`, looks at so
    /// many slots and moves so many pages. Returns how many became ready.
    fn tidy(&mut self, batch: usize, slots: usize, pages: usize) -> usize {
        if self.waiting.is_empty() && self.open.len() >= batch {
            std::mem::swap(&mut self.open, &mut self.waiting);
            self.target = Some((self.index.domain.advance(), 0));
        }
        if let Some((target, cursor)) = &mut self.target {
            if self.index.domain.passed(*target, cursor, slots) {
                self.target = None;
            }
        }
        let mut moved = 0;
        if self.target.is_none() {
            moved = pages.min(self.waiting.len());
            let rest = self.waiting.len() - moved;
            self.ready
                .extend(self.waiting.drain(rest..).map(Node::page));
        }
        self.release(READY_PAGES, pages);
        moved
    }

    /// Gives ready pages back to the slab, at most so many, until no more than `keep` are left.
    fn release(&mut self, keep: usize, pages: usize) {
        let surplus = self.ready.len().saturating_sub(keep).min(pages);
        for page in self.ready.drain(self.ready.len() - surplus..) {
            // SAFETY: every page is the slab's, and a ready one is in nobody's sight.
            unsafe { self.slab.free(page) };
        }
    }
}

/// What comes in the place of the extents from `first` to before `last` of a leaf when `start`
/// to `end` is replaced by `new`: three pieces at most. What is displaced is reported.
fn pieces(
    leaf: &Leaf,
    first: usize,
    last: usize,
    start: u64,
    end: u64,
    new: Option<Extent>,
    displaced: &mut dyn FnMut(Extent),
) -> ([Extent; 3], usize) {
    let (mut middle, mut count) = ([EMPTY; 3], 0);
    let (start, end) = (Sector(start), Sector(end));
    let mut right = None;
    for place in first..last {
        let Some(old) = leaf.get(place) else { break };
        if old.start < start {
            middle[count] = old.cut(old.start, start);
            count += 1;
        }
        if old.end() > end {
            right = Some(old.cut(end, old.end()));
        }
        displaced(old.cut(start, end));
    }
    for piece in [new, right].into_iter().flatten() {
        middle[count] = piece;
        count += 1;
    }
    (middle, count)
}

/// Fills arrays.
const EMPTY: Extent = Extent {
    start: Sector(0),
    sectors: 0,
    at: Sector(0),
    generation: crate::units::Gen(0),
    dirty: false,
};

impl Drop for Writer {
    fn drop(&mut self) {
        // Readers may be looking: the pages live as long as the index.
        let slab = std::mem::replace(&mut self.slab, Slab::new());
        *self
            .index
            .pages
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(slab);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("len", &self.len)
            .field("bytes", &self.bytes())
            .field("levels", &(self.index.root().level() + 1))
            .field("open", &self.open.len())
            .field("waiting", &self.waiting.len())
            .field("ready", &self.ready.len())
            .finish_non_exhaustive()
    }
}
