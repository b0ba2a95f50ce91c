//! The table of nodes in memory. Bookkeeping alone: nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::leaves::{Leaf, Leaves};
use super::{PENDING_SPANS, Pos};
use crate::format::bset::HEADER_BYTES;
use crate::format::key::{Key, MAX_BYTES, Ptr};
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
    pub written_blocks: u32,
    pub parent: Option<NodeId>,
    /// Of an inner node: its children by their ends.
    pub children: BTreeMap<Pos, NodeId>,
    /// Of an inner node: keys of replaced children that stand in its runs.
    pub freed_keys: u32,
    /// Of a leaf: what changed. Bounded by what the journal can hold.
    pub pending: Vec<Span>,
    /// Of a leaf: the oldest entry with a key of `pending`.
    pub pin: Option<JournalSeq>,
    /// Of a leaf: keys that stand in its runs, those that mean nothing any more included.
    pub written_keys: u32,
    queued: bool,
    /// Of a leaf with something pending that no entry has, and for which it was not yet asked: the tick
    /// since when.
    unlogged: Option<u32>,
    /// Nodes that its next writing takes, when it is due and does not fit behind its last run.
    debt: u32,
    /// It is to be written anew even if what is pending would fit behind its last run.
    pub stale: bool,
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
            written_blocks: 0,
            parent: None,
            children: BTreeMap::new(),
            freed_keys: 0,
            pending: Vec::new(),
            pin: None,
            written_keys: 0,
            queued: false,
            unlogged: None,
            debt: 0,
            stale: false,
        }
    }

    /// Of a leaf: whether it has something pending that no entry has, and for which it was not yet asked.
    pub fn unlogged(&self) -> bool {
        self.unlogged.is_some()
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
        let used = node.written_blocks * self.block_sectors;
        let bytes = node.sectors.saturating_sub(used) as usize * SECTOR_BYTES;
        bytes.saturating_sub(HEADER_BYTES) / MAX_BYTES
    }

    /// How many spans a leaf collects before it is due: as many as fit behind its last run, so that
    /// what is due is as a rule a run and at worst two nodes; but no fewer than a fourth of a fresh
    /// node, for a leaf is not written anew for a handful of keys.
    fn spans_due(&self, node: &Node) -> usize {
        let least = (self.fill_bytes / MAX_BYTES / 4).max(1);
        self.keys_left(node).max(least).min(PENDING_SPANS)
    }

    /// Nodes that a writing takes of a leaf with so many spans pending, beyond [`PARTS_MAX`]'s.
    ///
    /// [`PARTS_MAX`]: crate::alloc::PARTS_MAX
    fn debt(&self, node: &Node) -> u32 {
        if node.pending.len() <= self.keys_left(node) {
            return 0;
        }
        (1 + node.pending.len() * MAX_BYTES / self.fill_bytes) as u32
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

/// Leaves that one tick looks at, at most.
const AGED_MAX: usize = 8192;

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
        if let Some(seq) = node.pin {
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

    /// Notes a span; true when the leaf has just become due for writing.
    pub fn note(&mut self, id: NodeId, span: Span) -> bool {
        let room = self.room;
        let node = self.get_mut(id);
        if let Some(last) = node.pending.last_mut() {
            if last.inode == span.inode && last.end == span.start {
                last.end = span.end;
                return false;
            }
        }
        node.pending.push(span);
        let due = node.queued || node.pending.len() >= room.spans_due(node);
        if !due {
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

    /// Remembers that the leaf needs an entry; true when it has to be pinned for that.
    pub fn pin(&mut self, id: NodeId, seq: JournalSeq) -> bool {
        let node = self.get_mut(id);
        if node.pin.is_some() {
            return false;
        }
        node.pin = Some(seq);
        self.by_pin.insert((seq, id));
        true
    }

    /// Remembers that the leaf has something pending that no entry has.
    pub fn note_unlogged(&mut self, id: NodeId) {
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

    /// Counts a tick, and asks for leaves that have had something pending that no entry has for so
    /// many ticks, of some for up to twice as many: it looks at a leaf once in that time, and at
    /// [`AGED_MAX`] leaves a tick. Returns whether there was any.
    pub fn age(&mut self, ticks: u32) -> bool {
        self.tick += 1;
        let mut any = false;
        for _ in 0..AGED_MAX {
            let next = self.aging.front().copied();
            let Some((_, id)) = next.filter(|next| next.0 + ticks <= self.tick) else {
                break;
            };
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
        any
    }

    /// Takes what is pending, and the pin that goes with it.
    pub fn take_pending(&mut self, id: NodeId) -> (Vec<Span>, Option<JournalSeq>) {
        let node = self.get_mut(id);
        node.queued = false;
        node.unlogged = None;
        let debt = std::mem::take(&mut node.debt);
        let taken = (std::mem::take(&mut node.pending), node.pin.take());
        self.debt -= debt;
        if let Some(seq) = taken.1 {
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

    fn live(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(i, slot)| Some((NodeId(i as u32), slot.as_ref()?)))
    }

    /// Asks for all leaves with something pending to be written.
    pub fn demand_leaves(&mut self) {
        let pending = self.live().filter(|(_, node)| !node.pending.is_empty());
        self.demand = pending.map(|(id, _)| id).collect();
    }

    /// Passes on to `new` that `old` was asked for.
    pub fn pass_demand(&mut self, old: NodeId, new: &[NodeId]) {
        if self.demand.remove(&old) {
            self.demand.extend(new);
        }
    }

    /// Asks for all inner nodes with keys of freed children to be written anew.
    pub fn demand_freed(&mut self) {
        let stale = self.live().filter(|(_, node)| node.freed_keys > 0);
        self.demand_inner = stale.map(|(id, _)| id).collect();
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
        let asked = |nodes: &mut Nodes| {
            (1..=10).find_map(|tick| nodes.age(3).then(|| (tick, nodes.due(None, 8))))
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
        assert!(!nodes.age(3) && !nodes.age(3));
        nodes.take_pending(id);
        nodes.note_unlogged(id);
        let (tick, due) = asked(&mut nodes).expect("it is asked for");
        assert!((3..=4).contains(&tick) && due == [id], "{tick} {due:?}");
    }
}
