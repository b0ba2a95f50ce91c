//! The table of nodes in memory. Bookkeeping alone: nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{PENDING_SPANS, Pos};
use crate::format::key::{Key, Ptr};
use crate::units::{BucketNr, Inode, JournalSeq, Sector};

/// Names a node in the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(u32);

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
    queued: bool,
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
            queued: false,
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

/// All nodes of a tree.
#[derive(Default, Debug)]
pub struct Nodes {
    slots: Vec<Option<Node>>,
    free: Vec<NodeId>,
    /// All leaves by their ends: they partition the space of keys.
    pub leaves: BTreeMap<Pos, NodeId>,
    by_pin: BTreeSet<(JournalSeq, NodeId)>,
    full: VecDeque<NodeId>,
    demand: BTreeSet<NodeId>,
    demand_inner: BTreeSet<NodeId>,
}

impl Nodes {
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
        self.free.push(id);
        node
    }

    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Notes a span; true when the leaf has just become due for writing.
    pub fn note(&mut self, id: NodeId, span: Span) -> bool {
        let node = self.get_mut(id);
        if let Some(last) = node.pending.last_mut() {
            if last.inode == span.inode && last.end == span.start {
                last.end = span.end;
                return false;
            }
        }
        node.pending.push(span);
        if node.pending.len() >= PENDING_SPANS && !node.queued {
            node.queued = true;
            self.full.push_back(id);
            return true;
        }
        false
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

    /// Takes what is pending, and the pin that goes with it.
    pub fn take_pending(&mut self, id: NodeId) -> (Vec<Span>, Option<JournalSeq>) {
        let node = self.get_mut(id);
        node.queued = false;
        let taken = (std::mem::take(&mut node.pending), node.pin.take());
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

    /// Asks for an inner node to be written anew.
    pub fn demand_inner(&mut self, id: NodeId) {
        self.demand_inner.insert(id);
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
        !self.demand.is_empty() || !self.demand_inner.is_empty()
    }
}
