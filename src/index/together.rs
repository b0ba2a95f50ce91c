//! Several lookups at once.
//!
//! In a map that is larger than the caches, a lookup waits for memory on each level, and the next
//! line to fetch is known only when the last one has come. Of several lookups those waits are one: all
//! take a step, then all take the next.

use super::page::{Node, PAD};
use super::{Index, Lookup, Reader, Writer};
use crate::units::Sector;

/// Positions that are looked up together at most: their lines fit into the first-level cache.
pub const TOGETHER: usize = 16;

impl Index {
    /// What there is at each of several positions, [`TOGETHER`] at most: as
    /// [`lookup`](Self::lookup) for one after the other. Beyond as many as there are positions the
    /// array says nothing.
    ///
    /// # Panics
    /// When `reader` is of another domain than the writer, or there are too many positions.
    pub fn lookup_all(&self, reader: &Reader, positions: &[Sector]) -> [Lookup; TOGETHER] {
        reader.enter(&self.domain);
        let mut found = [Lookup::Hole { next: Sector::MAX }; TOGETHER];
        let mut ways = [(self.root(), 0); TOGETHER];
        let ways = &mut ways[..positions.len()];
        // SAFETY: the reader is of our domain and online, and quiesces after this at the earliest.
        unsafe { descend_all(ways, positions) };
        for ((node, place), at) in ways.iter_mut().zip(positions) {
            // SAFETY: as above, and these are leaves.
            let leaf = unsafe { node.leaf() };
            *place = leaf.rank(within(*at));
            leaf.prefetch_entry(*place);
        }
        for (((node, place), &at), found) in ways.iter().zip(positions).zip(&mut found) {
            // SAFETY: as above.
            *found = match unsafe { node.leaf() }.get(*place) {
                Some(extent) => Lookup::by(extent, at),
                // The next extent is in another leaf.
                // SAFETY: as above.
                None => unsafe { self.find(at) },
            };
        }
        found
    }
}

impl Writer {
    /// Fetches the lines that changes at these positions soon will look at.
    pub fn prefetch_all(&self, positions: &[Sector]) {
        for positions in positions.chunks(TOGETHER) {
            let mut ways = [(self.index.root(), 0); TOGETHER];
            let ways = &mut ways[..positions.len()];
            // SAFETY: we are the writer: pages are only retired and used again in calls with `&mut
            // self`. What comes out are leaves.
            unsafe {
                descend_all(ways, positions);
                ways.iter()
                    .for_each(|(node, _)| node.leaf().prefetch_rest());
            }
        }
    }
}

/// No extent reaches the last position, which stands for all behind it.
#[inline(always)]
fn within(at: Sector) -> u64 {
    at.0.min(PAD - 1)
}

/// Takes each of `ways`, which all begin with one root, to the leaf of its position, and fetches the
/// keys of the leaves.
///
/// # Safety
/// The pages found from the root stay: see [`Node::leaf`].
#[inline]
unsafe fn descend_all(ways: &mut [(Node, usize)], positions: &[Sector]) {
    let levels = ways.first().map_or(0, |(root, _)| root.level());
    for _ in 0..levels {
        for ((node, place), at) in ways.iter_mut().zip(positions) {
            // SAFETY: by contract; all leaves are on one level, so this is an inner node.
            let inner = unsafe { node.inner() };
            *place = inner.rank(within(*at));
            inner.prefetch_child(*place);
        }
        for (node, place) in ways.iter_mut() {
            // SAFETY: as above.
            let inner = unsafe { node.inner() };
            *node = inner.child(*place);
            node.prefetch();
        }
    }
}
