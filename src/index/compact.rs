//! Giving memory back when a map has become much smaller.
//!
//! Nodes stay where they are in memory until they change, and a span goes back only when it is
//! empty. So when most extents of a large map are gone, the rest may hold on to many spans by a few
//! pages each. As long as more than half of the memory is free, `reclaim` therefore walks through
//! the tree, a few nodes a call, and moves each node that lies in a sparse span to a denser one: it
//! is replaced by a copy of itself, as any change replaces a node.

use super::page::{Inner, Leaf, Node, PAD};
use super::writer::{Path, Writer};

/// How far a walk has come.
#[derive(Default)]
pub(super) struct Compaction {
    /// The position to go on from, while a walk is under way.
    from: Option<u64>,
    /// The memory held when the last walk ended: another one is of use only if that has changed.
    bytes_after: u64,
}

impl Writer {
    /// Walks on through at most so many leaves. Returns through how many.
    pub(super) fn compact(&mut self, leaves: usize) -> usize {
        for walked in 0..leaves {
            let from = match self.compaction.from {
                Some(from) => from,
                None if self.slab.is_thin() && self.compaction.bytes_after != self.bytes() => 0,
                None => return walked,
            };
            let mut path = self.path(from);
            // The inner nodes that begin with this leaf have their turn with it, parents first.
            let begun = (1..=path.top)
                .take_while(|&level| path.steps[level].1 == 0)
                .count();
            for level in (0..=begun).rev() {
                if self.slab.is_sparse(path.steps[level].0.page()) {
                    self.relocate(&mut path, level);
                }
            }
            if path.upper < PAD {
                self.compaction.from = Some(path.upper);
            } else {
                self.compaction = Compaction {
                    from: None,
                    bytes_after: self.bytes(),
                };
                return walked + 1;
            }
        }
        leaves
    }

    /// Replaces a node of the tree by a copy of itself that lies elsewhere.
    fn relocate(&mut self, path: &mut Path, level: usize) {
        let old = path.steps[level].0;
        let page = self.slab.alloc();
        if self.slab.is_beside(page, old.page()) {
            // SAFETY: just allocated, and nobody has seen it.
            unsafe { self.slab.free(page) };
            return;
        }
        // SAFETY: the page is ours alone, initialised, and large enough for either kind of node;
        // the old node is in the tree, whose writer we are.
        unsafe {
            if level == 0 {
                (*page.cast::<Leaf>()).copy_from(old.leaf());
            } else {
                let inner = old.inner();
                let list = &mut self.scratch.children;
                list.clear();
                list.extend(inner.children(0, inner.len()));
                (*page.cast::<Inner>()).fill(list);
            }
        }
        let new = Node::new(page, level);
        self.replace(path, level, new);
        self.retire(old);
        path.steps[level].0 = new;
    }
}
