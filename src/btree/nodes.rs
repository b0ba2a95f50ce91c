//! The table of nodes in memory. Bookkeeping alone: nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::leaves::{Leaf, Leaves};
use super::runs::Runs;
use super::{PENDING_SPANS, Pos};
use crate::format::bset::HEADER_BYTES;
use crate::format::key::{Key, MAX_BYTES, Ptr};
use crate::index::Extent;
use crate::task::{Work, scrap, work};
use crate::units::{BucketNr, Inode, JournalSeq, SECTOR_BYTES, Sector};

/// Names a node in the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(pub(super) u32);

/// A range of one volume that changed since the leaf was last written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span {
    pub inode: Inode,
    pub start: Sector,
    pub end: Sector,
}

impl Span {
    /// The range of an extent.
    pub fn of(inode: Inode, extent: &Extent) -> Span {
        Span {
            inode,
            start: extent.start,
            end: extent.end(),
        }
    }
}

/// What changed in a leaf since it was last written.
#[derive(Debug, Default)]
pub struct Pending {
    /// Where. Bounded by [`PENDING_SPANS`], and by what the journal can hold while it waits its turn.
    pub spans: Vec<Span>,
    /// It is to be written anew for so many changes that where they were is not noted any more.
    pub whole: bool,
    /// The oldest entry with a key of it.
    pub pin: Option<JournalSeq>,
    changes: usize,
    /// Extents that came, less none of those that went.
    risen: i64,
}

impl Pending {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty() && !self.whole
    }

    /// Changes from now on are of the whole leaf.
    fn become_whole(&mut self) {
        self.spans = Vec::new();
        self.whole = true;
    }
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// 0 for a leaf.
    pub level: u16,
    /// It covers the positions behind `start` up to `end`.
    pub start: Pos,
    pub end: Pos,
    /// By this pointer its parent, or the journal, knows it.
    pub ptr: Ptr,
    pub bucket: BucketNr,
    pub sectors: u32,
    /// The number that all its runs carry.
    pub seq: u64,
    /// What stands on disk.
    pub runs: Runs,
    pub parent: Option<NodeId>,
    /// Of an inner node: its children by their ends.
    pub children: BTreeMap<Pos, NodeId>,
    /// Of an inner node: keys of replaced children that stand in its runs.
    pub freed_keys: u32,
    /// Of a leaf.
    pub pending: Pending,
    /// Of a leaf: how many fresh extents there are in its range beyond what a fresh node holds, at most.
    pub grown: i64,
    /// Of a leaf: it, or what it took the place of, was last written for very many changes.
    hot: bool,
    queued: bool,
    /// Of a leaf with something pending that no entry has, and for which it was not yet asked: the tick
    /// since when.
    unlogged: Option<u32>,
    /// Nodes that its next writing takes, when it is due and does not fit behind its last run.
    debt: u32,
    /// Of a leaf: Linux would misread its runs (see [`crate::format::linux`]). It is to be written anew,
    /// whatever is pending.
    pub misread: bool,
}

impl Node {
    pub fn new(level: u16, start: Pos, end: Pos, ptr: Ptr, bucket: BucketNr, sectors: u32) -> Node {
        Node {
            level,
            start,
            end,
            ptr,
            bucket,
            sectors,
            seq: 0,
            runs: Runs::default(),
            parent: None,
            children: BTreeMap::new(),
            freed_keys: 0,
            pending: Pending::default(),
            grown: 0,
            hot: false,
            queued: false,
            unlogged: None,
            debt: 0,
            misread: false,
        }
    }

    /// The key under which the parent has it.
    pub fn key(&self) -> Key {
        Key {
            inode: self.end.0,
            end: self.end.1,
            size_sectors: self.sectors,
            dirty: false,
            ptr: Some(self.ptr),
        }
    }
}

/// What is to be done about a mark.
#[derive(Default, Debug)]
pub struct Marked {
    /// A leaf has just become due for writing.
    pub due: bool,
    /// Entries to be pinned, once each time.
    pub pins: Vec<JournalSeq>,
}

impl Marked {
    fn add(&mut self, other: Marked) {
        self.due |= other.due;
        self.pins.extend(other.pins);
    }
}

/// What is to be done about leaves that took the place of others: first what is `new`.
#[derive(Default, Debug)]
pub struct Swapped {
    pub new: Marked,
    /// Pins of the old ones, to be given back.
    pub unpins: Vec<JournalSeq>,
}

/// What the bookkeeping must know of the format.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sectors of a block: each run takes whole ones.
    pub block_sectors: u32,
    /// Bytes of keys that a fresh node starts with at most.
    pub fill_bytes: usize,
}

impl Room {
    /// How many extents fit behind the last run of a node.
    fn keys_left(&self, node: &Node) -> usize {
        let used = node.runs.blocks * self.block_sectors;
        let bytes = node.sectors.saturating_sub(used) as usize * SECTOR_BYTES;
        bytes.saturating_sub(HEADER_BYTES) / MAX_BYTES
    }

    /// How many extents a fresh node holds at most.
    fn keys_fresh(&self) -> usize {
        (self.fill_bytes / MAX_BYTES).max(1)
    }

    /// Whether a leaf is due. It collects as many spans as fit behind its last run, so that what is
    /// due is as a rule a run and at worst two nodes; but no fewer than a fourth of a fresh node, for
    /// a leaf is not written anew for a handful of keys.
    ///
    /// What is more than fits has it written anew, for the same price whatever changed. So then it
    /// waits until as much changed as two fresh nodes hold, as long as it would not become three of
    /// them: of writes over the same blocks only the last ones are written. Where that came about, no
    /// runs are written behind the new node's first either.
    fn is_due(&self, node: &mut Node) -> bool {
        let may_wait = node.grown < self.keys_fresh() as i64;
        let left = match node.hot && may_wait {
            true => 0,
            false => self.keys_left(node),
        };
        let pending = &mut node.pending;
        if !pending.whole {
            let least = (self.keys_fresh() / 4).max(1);
            if pending.spans.len() < left.max(least).min(PENDING_SPANS) {
                return false;
            }
            if pending.spans.len() <= left || !may_wait {
                return true;
            }
            pending.become_whole();
        }
        !may_wait || self.is_much(pending)
    }

    /// Whether as much changed as two fresh nodes hold.
    fn is_much(&self, pending: &Pending) -> bool {
        pending.changes >= 2 * self.keys_fresh()
    }

    /// Nodes that a writing takes of a leaf that is due, beyond [`PARTS_MAX`]'s.
    ///
    /// [`PARTS_MAX`]: crate::alloc::PARTS_MAX
    fn debt(&self, node: &Node) -> u32 {
        let (spans, left) = (node.pending.spans.len(), self.keys_left(node));
        // A span takes a second key where it lies in the middle of an older one: then what would fit
        // may not, and the leaf is written anew with all its extents.
        let (keys, most) = match node.pending.whole || spans <= left && left < 2 * spans {
            true => (node.grown.max(0) as usize, self.keys_fresh()),
            false => (spans, left),
        };
        match keys <= most {
            true => 0,
            false => (1 + keys * MAX_BYTES / self.fill_bytes) as u32,
        }
    }
}

/// What is to be done about nodes that hold too little, or too much that means nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Job {
    /// Write neighbours under one parent as one node; one alone is written anew.
    Join(Vec<NodeId>),
    /// Make the only child of the root the root.
    Shrink,
}

/// All nodes of a tree.
#[derive(Debug)]
pub struct Nodes {
    room: Room,
    slots: Vec<Option<Node>>,
    free: Vec<NodeId>,
    /// All leaves: they partition the space of keys.
    pub leaves: Leaves,
    by_pin: BTreeSet<(JournalSeq, NodeId)>,
    full: VecDeque<NodeId>,
    /// Leaves that have, or had, something pending that no entry has, with the tick after which to look
    /// at them again: each once, as `in_line` says by its id.
    aging: VecDeque<(u32, NodeId)>,
    in_line: Vec<bool>,
    tick: u32,
    demand: BTreeSet<NodeId>,
    demand_inner: BTreeSet<NodeId>,
    /// Of all leaves.
    debt: u32,
    /// Bounded by [`JOBS_MAX`].
    jobs: VecDeque<Job>,
}

/// Jobs that wait for the writer at most: gc asks for no more before these are done.
pub const JOBS_MAX: usize = 32;

/// What one look at the line of leaves came to.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Aged {
    /// Some leaf was asked for.
    pub any: bool,
    /// More are to be looked at in this tick.
    pub more: bool,
}

impl Nodes {
    /// No nodes.
    pub fn new(room: Room) -> Nodes {
        Nodes {
            room,
            slots: Vec::new(),
            free: Vec::new(),
            leaves: Leaves::new(),
            by_pin: BTreeSet::new(),
            full: VecDeque::new(),
            aging: VecDeque::new(),
            in_line: Vec::new(),
            tick: 0,
            demand: BTreeSet::new(),
            demand_inner: BTreeSet::new(),
            debt: 0,
            jobs: VecDeque::new(),
        }
    }

    /// Nodes that the leaves due for writing take beyond one step's.
    pub fn debt(&self) -> usize {
        self.debt as usize
    }

    /// Says that a leaf has at most so many extents.
    pub fn set_extents(&mut self, id: NodeId, extents: usize) {
        self.get_mut(id).grown = extents as i64 - self.room.keys_fresh() as i64;
    }

    /// The node, if the id names one still.
    pub fn find(&self, id: NodeId) -> Option<&Node> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    /// The node without a parent.
    pub fn root(&self) -> Option<NodeId> {
        let mut id = self.leaves.first()?;
        while let Some(parent) = self.get(id).parent {
            id = parent;
        }
        Some(id)
    }

    /// Adds a job, unless too many wait.
    pub fn ask(&mut self, job: Job) -> bool {
        if self.jobs.len() == JOBS_MAX {
            return false;
        }
        self.jobs.push_back(job);
        true
    }

    /// The next job.
    pub fn next_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Makes a node that is in the table a leaf of the tree.
    pub fn add_leaf(&mut self, id: NodeId) {
        let (start, end) = (self.get(id).start, self.get(id).end);
        self.leaves.insert(Leaf { start, end, id });
    }

    pub fn add(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.slots.push(Some(node));
                NodeId((self.slots.len() - 1) as u32)
            }
        }
    }

    pub fn get(&self, id: NodeId) -> &Node {
        self.slots[id.0 as usize].as_ref().expect("node is live")
    }

    pub fn get_mut(&mut self, id: NodeId) -> &mut Node {
        self.slots[id.0 as usize].as_mut().expect("node is live")
    }

    pub fn remove(&mut self, id: NodeId) -> Node {
        let node = self.slots[id.0 as usize].take().expect("node is live");
        if let Some(seq) = node.pending.pin {
            self.by_pin.remove(&(seq, id));
        }
        self.full.retain(|&other| other != id);
        self.debt -= node.debt;
        self.free.push(id);
        node
    }

    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Notes that a range changed, and that there are so many extents more in it (fewer, when
    /// negative). The leaves need the entry `seq`; without one they are written before long.
    pub fn mark(&mut self, span: Span, seq: Option<JournalSeq>, grown: i64) -> Marked {
        let mut marked = Marked::default();
        let mut at = span.start;
        while at < span.end {
            let leaf = self.leaves.behind((span.inode, at));
            let leaf = leaf.expect("the last leaf ends at MAX_KEY");
            let stop = match leaf.end.0 == span.inode {
                true => span.end.min(leaf.end.1),
                false => span.end,
            };
            let part = Span {
                start: at,
                end: stop,
                ..span
            };
            // Who knows in which of several leaves; and what crosses their bounds is a key in each.
            let grown = match part == span {
                true => grown,
                false => grown.max(0) + 1,
            };
            marked.due |= self.note(leaf.id, part, grown);
            match seq {
                None => self.note_unlogged(leaf.id),
                Some(seq) if self.pin(leaf.id, seq) => marked.pins.push(seq),
                Some(_) => {}
            }
            at = stop;
        }
        marked
    }

    /// True when the leaf has just become due for writing.
    fn note(&mut self, id: NodeId, span: Span, grown: i64) -> bool {
        let room = self.room;
        let node = self.get_mut(id);
        node.grown += grown;
        let pending = &mut node.pending;
        pending.changes += 1;
        pending.risen += grown.max(0);
        if !pending.whole {
            if let Some(last) = pending.spans.last_mut() {
                if last.inode == span.inode && last.end == span.start {
                    last.end = span.end;
                    return false;
                }
            }
            pending.spans.push(span);
        }
        if !room.is_due(node) && !node.queued {
            return false;
        }
        let (before, after) = (node.debt, room.debt(node));
        node.debt = after;
        let first = !std::mem::replace(&mut node.queued, true);
        self.debt = self.debt - before + after;
        if first {
            self.full.push_back(id);
        }
        first
    }

    /// Puts new leaves in the place of old ones. What was noted in those, since their extents were
    /// gathered, goes on to the new ones; so many stale extents were beside them.
    pub fn swap(&mut self, old: &[NodeId], new: &[NodeId], stale: i64) -> Swapped {
        let unlogged = old.iter().any(|&id| self.get(id).unlogged.is_some());
        let hot = old.iter().all(|&id| self.get(id).hot);
        let mut left: Vec<Pending> = Vec::new();
        for &id in old {
            left.push(self.take_pending(id));
            let end = self.get(id).end;
            self.leaves.remove(end);
            self.pass_demand(id, new);
            self.remove(id);
        }
        // In which of the new ones nobody knows.
        let grown = stale + left.iter().map(|pending| pending.risen).sum::<i64>();
        for &id in new {
            self.add_leaf(id);
            let node = self.get_mut(id);
            node.grown += grown;
            node.hot = hot;
            if unlogged {
                self.note_unlogged(id);
            }
        }
        // A leaf keeps the entry that it needs first.
        left.sort_by_key(|pending| pending.pin);
        let mut swapped = Swapped::default();
        for pending in left {
            for &span in &pending.spans {
                swapped.new.add(self.mark(span, pending.pin, 0));
            }
            for &id in new.iter().filter(|_| pending.whole) {
                self.get_mut(id).pending.become_whole();
                let pinned = pending.pin.filter(|&seq| self.pin(id, seq));
                swapped.new.pins.extend(pinned);
            }
            swapped.unpins.extend(pending.pin);
        }
        swapped
    }

    /// Remembers that the leaf needs an entry; true when it has to be pinned for that.
    fn pin(&mut self, id: NodeId, seq: JournalSeq) -> bool {
        let pin = &mut self.get_mut(id).pending.pin;
        if pin.is_some() {
            return false;
        }
        *pin = Some(seq);
        self.by_pin.insert((seq, id));
        true
    }

    /// Remembers that the leaf has something pending that no entry has.
    fn note_unlogged(&mut self, id: NodeId) {
        let tick = self.tick;
        let node = self.get_mut(id);
        if node.unlogged.is_none() {
            node.unlogged = Some(tick);
            self.stand_in_line(id);
        }
    }

    fn stand_in_line(&mut self, id: NodeId) {
        self.in_line.resize(self.slots.len(), false);
        if !std::mem::replace(&mut self.in_line[id.0 as usize], true) {
            self.aging.push_back((self.tick, id));
        }
    }

    /// Counts a tick.
    pub fn tick(&mut self) {
        self.tick += 1;
    }

    /// Asks for leaves that have had something pending that no entry has for so many ticks, of some for
    /// up to twice as many: it looks at a leaf once in that time, and at a slice of leaves a call.
    pub fn age(&mut self, ticks: u32) -> Aged {
        let mut any = false;
        for _ in 0..Work::Keys.slice() {
            let next = self.aging.front().copied();
            let Some((_, id)) = next.filter(|next| next.0 + ticks <= self.tick) else {
                return Aged { any, more: false };
            };
            work(Work::Keys, 1);
            self.aging.pop_front();
            self.in_line[id.0 as usize] = false;
            let Some(node) = self.slots[id.0 as usize].as_mut() else {
                continue;
            };
            match node.unlogged {
                Some(since) if since + ticks <= self.tick => {
                    // Asked for once: there may be nothing to write, and nobody who says so.
                    node.unlogged = None;
                    self.demand.insert(id);
                    any = true;
                }
                Some(_) => self.stand_in_line(id),
                None => {}
            }
        }
        Aged { any, more: true }
    }

    /// Takes what is pending, and the pin that goes with it.
    pub fn take_pending(&mut self, id: NodeId) -> Pending {
        let room = self.room;
        let node = self.get_mut(id);
        node.queued = false;
        node.unlogged = None;
        node.hot = room.is_much(&node.pending);
        let debt = std::mem::take(&mut node.debt);
        let taken = std::mem::take(&mut node.pending);
        self.debt -= debt;
        if let Some(seq) = taken.pin {
            self.by_pin.remove(&(seq, id));
        }
        taken
    }

    /// At most `n` leaves that should be written: those that were asked for, those that pin
    /// entries up to `upto`, oldest first, then those that collected much.
    pub fn due(&mut self, upto: Option<JournalSeq>, n: usize) -> Vec<NodeId> {
        let mut due: Vec<NodeId> = Vec::new();
        while due.len() < n {
            let Some(id) = self.demand.pop_first() else {
                break;
            };
            if self.is_leaf(id) {
                due.push(id);
            }
        }
        if let Some(upto) = upto {
            let pinning = self.by_pin.iter().take_while(|(seq, _)| *seq <= upto);
            let pinning = pinning.map(|&(_, id)| id).filter(|id| !due.contains(id));
            let pinning: Vec<NodeId> = pinning.take(n - due.len()).collect();
            due.extend(pinning);
        }
        while due.len() < n {
            let Some(id) = self.full.pop_front() else {
                break;
            };
            if !due.contains(&id) {
                due.push(id);
            }
        }
        due
    }

    fn is_leaf(&self, id: NodeId) -> bool {
        let slot = &self.slots[id.0 as usize];
        slot.as_ref().is_some_and(|node| node.level == 0)
    }

    /// Asks for leaves with something pending to be written, and for those that Linux misreads: of those behind `from`, a slice. Returns
    /// where to go on, `None` at the end.
    pub fn demand_leaves(&mut self, from: Pos) -> Option<Pos> {
        let mut at = from;
        for _ in 0..Work::Keys.slice() {
            let leaf = self.leaves.behind(at)?;
            let node = self.get(leaf.id);
            if node.misread || !node.pending.is_empty() {
                self.demand.insert(leaf.id);
            }
            at = leaf.end;
            work(Work::Keys, 1);
        }
        Some(at)
    }

    /// Asks for a leaf to be written anew if Linux misreads it.
    pub fn demand_misread(&mut self, id: NodeId) {
        if self.get(id).misread {
            self.demand.insert(id);
        }
    }

    /// Passes on to `new` that `old` was asked for.
    fn pass_demand(&mut self, old: NodeId, new: &[NodeId]) {
        if self.demand.remove(&old) {
            self.demand.extend(new);
        }
    }

    /// Asks for inner nodes with keys of freed children to be written anew: of those from a place in
    /// the table on, a slice. Returns where to go on, `None` at the end. A node that is written anew
    /// meanwhile has no such keys of before.
    pub fn demand_freed(&mut self, from: usize) -> Option<usize> {
        let to = self.slots.len().min(from + Work::Keys.slice());
        let slots = self.slots[from..to].iter().enumerate();
        let stale = slots.filter(|(_, slot)| slot.as_ref().is_some_and(|n| n.freed_keys > 0));
        self.demand_inner
            .extend(stale.map(|(i, _)| NodeId((from + i) as u32)));
        work(Work::Keys, to - from);
        (to < self.slots.len()).then_some(to)
    }

    /// An inner node that was asked for and still carries keys of freed children.
    pub fn due_inner(&mut self) -> Option<NodeId> {
        while let Some(id) = self.demand_inner.pop_first() {
            let slot = self.slots[id.0 as usize].as_ref();
            if slot.is_some_and(|node| node.freed_keys > 0) {
                return Some(id);
            }
        }
        None
    }

    /// Whether something that was asked for has not been taken up yet.
    pub fn has_demand(&self) -> bool {
        !self.demand.is_empty() || !self.demand_inner.is_empty() || !self.jobs.is_empty()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        scrap(std::mem::take(&mut self.slots), 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of one leaf.
    fn one_leaf() -> (Nodes, NodeId) {
        let mut nodes = Nodes::new(Room {
            block_sectors: 8,
            fill_bytes: 4096,
        });
        let (start, end) = ((Inode(0), Sector(0)), Key::MAX.position());
        let ptr = Ptr::new(0, Sector(1024), crate::units::Gen(0));
        let id = nodes.add(Node::new(0, start, end, ptr, BucketNr(1), 512));
        nodes.add_leaf(id);
        (nodes, id)
    }

    #[test]
    fn a_leaf_is_asked_for_each_time_that_something_unlogged_has_waited() {
        let (mut nodes, id) = one_leaf();
        let age = |nodes: &mut Nodes| {
            nodes.tick();
            nodes.age(3).any
        };
        let asked = |nodes: &mut Nodes| {
            (1..=10).find_map(|tick| age(nodes).then(|| (tick, nodes.due(None, 8))))
        };
        assert_eq!(asked(&mut nodes), None);
        // The second time nothing was pending any more, so that nothing was written.
        for _ in 0..3 {
            nodes.note_unlogged(id);
            nodes.note_unlogged(id);
            assert_eq!(asked(&mut nodes), Some((3, vec![id])));
            assert_eq!(asked(&mut nodes), None);
        }
        // What was written meanwhile, and noted again, waits anew, for twice as long at most.
        nodes.note_unlogged(id);
        assert!(!age(&mut nodes) && !age(&mut nodes));
        nodes.take_pending(id);
        nodes.note_unlogged(id);
        let (tick, due) = asked(&mut nodes).expect("it is asked for");
        assert!((3..=4).contains(&tick) && due == [id], "{tick} {due:?}");
    }

    const FRESH: u64 = 4096 / MAX_BYTES as u64;

    fn block(nr: u64) -> Span {
        Span {
            inode: Inode(0),
            start: Sector(nr * 8),
            end: Sector(nr * 8 + 8),
        }
    }

    /// Marks blocks, every second of so many in turn, until a leaf is due; how many those are.
    fn marked_until_due(nodes: &mut Nodes, blocks: u64, grown: i64) -> Option<u64> {
        let mut marks = 0..10 * FRESH;
        marks.find(|i| {
            let span = block(i % blocks * 2);
            nodes.mark(span, Some(JournalSeq(7)), grown).due
        })
    }

    #[test]
    fn a_leaf_that_is_full_waits_for_more_changes_but_not_for_more_extents() {
        let (mut nodes, id) = one_leaf();
        // What fits behind the last run is written soon, as a run.
        nodes.get_mut(id).sectors = 16;
        nodes.set_extents(id, FRESH as usize);
        let room = nodes.room.keys_left(nodes.get(id)) as u64;
        assert!(room > FRESH);
        assert_eq!(marked_until_due(&mut nodes, 100, 0), Some(room - 1));
        assert!(!nodes.take_pending(id).whole && nodes.debt() == 0);
        // Where nothing fits, it waits.
        nodes.get_mut(id).runs.blocks = 2;
        assert_eq!(marked_until_due(&mut nodes, 100, 0), Some(2 * FRESH - 1));
        let pending = nodes.take_pending(id);
        assert!(pending.whole && pending.spans.is_empty());
        assert!(pending.pin == Some(JournalSeq(7)) && nodes.debt() == 0);
        // But not until it would become more than three nodes.
        assert_eq!(marked_until_due(&mut nodes, 1000, 1), Some(FRESH - 1));
        assert!(nodes.take_pending(id).whole);
        let due = marked_until_due(&mut nodes, 1000, 1).expect("a fourth of a fresh node");
        assert_eq!((due, nodes.take_pending(id).whole), (FRESH / 4 - 1, false));
        // Extents that go make room for others.
        for i in 0..FRESH {
            nodes.mark(block(i), Some(JournalSeq(8)), -1);
        }
        nodes.take_pending(id);
        let due = marked_until_due(&mut nodes, 1000, 1);
        assert_eq!(due, Some(FRESH - FRESH / 4 - 1));
    }

    #[test]
    fn leaves_in_the_place_of_others_keep_what_was_noted_and_the_oldest_pin() {
        for whole in [false, true] {
            let (mut nodes, left) = one_leaf();
            let halves = |nodes: &mut Nodes| {
                let (start, end, ptr) = {
                    let node = nodes.get(left);
                    (node.start, node.end, node.ptr)
                };
                let middle = (Inode(0), Sector(800));
                [(start, middle), (middle, end)]
                    .map(|(from, to)| nodes.add(Node::new(0, from, to, ptr, BucketNr(1), 8)))
            };
            let two = halves(&mut nodes);
            let swapped = nodes.swap(&[left], &two, 0);
            assert!(swapped.new.pins.is_empty() && swapped.unpins.is_empty());
            // The one in front needs a later entry than the one behind.
            nodes.mark(block(1), Some(JournalSeq(9)), 0);
            nodes.mark(block(200), Some(JournalSeq(5)), 0);
            if whole {
                nodes.get_mut(two[0]).pending.become_whole();
            }
            let (start, end) = (nodes.get(two[0]).start, nodes.get(two[1]).end);
            let ptr = nodes.get(two[0]).ptr;
            let one = nodes.add(Node::new(0, start, end, ptr, BucketNr(1), 8));
            let swapped = nodes.swap(&two, &[one], 3);
            assert_eq!(swapped.new.pins, [JournalSeq(5)]);
            assert_eq!(swapped.unpins, [JournalSeq(5), JournalSeq(9)]);
            let pending = &nodes.get(one).pending;
            assert_eq!((pending.pin, pending.whole), (Some(JournalSeq(5)), whole));
            assert!(whole || pending.spans == [block(200), block(1)]);
            assert_eq!(nodes.due(Some(JournalSeq(5)), 8), [one]);
        }
    }
}
