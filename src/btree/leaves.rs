//! Which leaf covers a position: all leaves of a tree, which partition the space of keys.
//!
//! Every insert asks. So the leaves that were found last are kept in a small table under a hash of
//! the region asked for; where that does not help, the map answers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::Pos;
use super::nodes::NodeId;

/// A leaf: it covers the positions behind `start` up to `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    pub start: Pos,
    pub end: Pos,
    pub id: NodeId,
}

impl Leaf {
    fn holds_behind(&self, pos: Pos) -> bool {
        self.start <= pos && pos < self.end
    }
}

/// Leaves remembered: 4 KiB.
const FOUND: usize = 64;
/// log2 of the sectors of a region: 16 MiB, about a leaf of extents of 4 KiB.
const REGION_SHIFT: u32 = 15;

/// The leaves of a tree.
#[derive(Debug)]
pub struct Leaves {
    by_end: BTreeMap<Pos, (Pos, NodeId)>,
    /// Emptied when a leaf is removed: what is in it is in the map.
    found: Box<[Cell<Option<Leaf>>; FOUND]>,
}

impl Leaves {
    /// No leaves.
    pub fn new() -> Leaves {
        Leaves {
            by_end: BTreeMap::new(),
            found: Box::new([const { Cell::new(None) }; FOUND]),
        }
    }

    /// Adds a leaf.
    pub fn insert(&mut self, leaf: Leaf) {
        self.by_end.insert(leaf.end, (leaf.start, leaf.id));
    }

    /// Removes the leaf that ends there.
    pub fn remove(&mut self, end: Pos) {
        self.by_end.remove(&end);
        for slot in self.found.iter() {
            slot.set(None);
        }
    }

    /// The leftmost leaf.
    pub fn first(&self) -> Option<NodeId> {
        Some(self.by_end.first_key_value()?.1.1)
    }

    /// The leaf whose range holds the position just behind `pos`, if there is one.
    #[inline]
    pub fn behind(&self, pos: Pos) -> Option<Leaf> {
        let region = pos.1.0 >> REGION_SHIFT ^ u64::from(pos.0.0).wrapping_mul(31);
        let slot = &self.found[region as usize % FOUND];
        if let Some(leaf) = slot.get() {
            if leaf.holds_behind(pos) {
                return Some(leaf);
            }
        }
        let mut behind = self.by_end.range((Excluded(pos), Unbounded));
        let (&end, &(start, id)) = behind.next()?;
        let leaf = Leaf { start, end, id };
        slot.set(Some(leaf));
        Some(leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Inode, Sector};

    #[test]
    fn a_leaf_that_is_gone_is_not_found_again() {
        let pos = |sector| (Inode(1), Sector(sector));
        let (a, b, c) = (NodeId(1), NodeId(2), NodeId(3));
        let leaf = |start, end, id| Leaf {
            start: pos(start),
            end: pos(end),
            id,
        };
        let mut leaves = Leaves::new();
        leaves.insert(leaf(0, 100, a));
        leaves.insert(leaf(100, 200, b));
        assert_eq!(leaves.behind(pos(99)), Some(leaf(0, 100, a)));
        assert_eq!(leaves.behind(pos(99)), Some(leaf(0, 100, a)));
        assert_eq!(leaves.behind(pos(100)), Some(leaf(100, 200, b)));
        assert_eq!(leaves.behind(pos(200)), None);
        leaves.remove(pos(100));
        leaves.remove(pos(200));
        leaves.insert(leaf(0, 200, c));
        for at in [0, 99, 100, 199] {
            assert_eq!(leaves.behind(pos(at)), Some(leaf(0, 200, c)));
        }
        assert_eq!(leaves.first(), Some(c));
    }
}
