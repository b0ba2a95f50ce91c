//! Where each cached sector of a volume lies: one ordered map of extents in memory, which one
//! thread changes and any number of threads read without a lock.
//!
//! # Data path
//! ```text
//!  reactor:  Reader ── Index::lookup ──▶ root ─▶ inner ─▶ inner ─▶ leaf ─▶ Extent
//!               │ quiesce, once a round             ▲ one atomic store a change
//!               ▼                                   │
//!  owner:    Domain ◀── advance, passed ── Writer ──┴─ insert, remove (copies of pages)
//!                                             └─ retired pages ─▶ ready ─▶ slab
//! ```
//! A B+tree with a fan-out of 64 (`page`). To insert, the writer copies a leaf with the change made
//! (`writer`) and replaces the pointer to it. Only an extent that takes the place of one of exactly the
//! same sectors is changed where it is, as where those lie is one word. When the change does not stay
//! inside of one leaf (it splits, merges, or the extent crosses the range of one), the leaves it
//! touches are built anew, then their parents over them, upwards until what was built covers just
//! the range of one old node (`rebuild`); the pointer to that is replaced. So **every change is one
//! store**, however much it displaces: a lookup sees the map before it or after it, and sectors
//! that a change is not about are never missing in between.
//!
//! # Why a lookup is right
//! * *It sees whole pages.* A pointer is stored with `Release` after its page was written and
//!   loaded with `Acquire`; a page that is reachable is never written again, but for such stores. Of
//!   an entry of a leaf one word changes, which a lookup loads once: it has the old or the new one.
//! * *It sees a map that was true while it ran.* A node that is replaced is never changed
//!   afterwards. A reader in it came there before that, so the children it finds there were right
//!   at some moment since the lookup began. No extent crosses from the range of one leaf into
//!   another's, so an answer `Hit` comes from one leaf. `Hole` may have looked at two leaves, at
//!   two moments: each sector of it was a hole at some moment of the lookup.
//! * *What it sees stays.* Replaced pages are used again only after every reader has quiesced
//!   (`domain`). Lookups hand out copies, so between two of them nothing is held.
//! * *The memory outlives it.* The pages belong to the [`Index`]: when the [`Writer`] is dropped
//!   they stay as they are until the last handle is.
//!
//! # What it costs
//! A leaf holds 64 extents in 1152 bytes. Random inserts leave pages three quarters full (25 bytes
//! an extent), inserts in order fill them (19 bytes). Changed pages that wait for readers come on
//! top. A lookup touches a page a level, and four to ten cache lines of it; `tests/bench/index.rs`
//! measures both.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::units::{Gen, Sector};

mod bulk;
mod compact;
mod domain;
mod page;
mod primitive;
mod rebuild;
mod slab;
#[cfg(test)]
mod stress;
#[cfg(test)]
mod tests;
mod together;
mod writer;

pub use bulk::Bulk;
pub use domain::{Domain, Reader};
pub use page::prefetch;
pub use together::TOGETHER;
pub use writer::Writer;

use page::{Leaf, Node, PAD, Page};
use primitive::{AtomicPtr, Ordering};
use slab::Slab;

/// Positions on the cache device have 43 bits.
const AT_END: u64 = 1 << 43;
/// No tree is higher. A node splits only after 32 inserts into it, each of them a split below, so
/// a height of n takes 32^(n - 1) inserts.
const MAX_LEVELS: usize = 16;

/// Sectors `start` to before `start + sectors` of the volume, which lie at `at` on the cache
/// device, in a bucket that had the generation when they were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first sector on the volume.
    pub start: Sector,
    /// How many sectors, 1 to 65535.
    pub sectors: u32,
    /// The first sector on the cache device, below 2^43.
    pub at: Sector,
    /// The generation of the bucket.
    pub generation: Gen,
    /// Whether the backing device does not have these data yet.
    pub dirty: bool,
}

impl Extent {
    /// The first sector of the volume behind it.
    pub fn end(&self) -> Sector {
        self.start + u64::from(self.sectors)
    }

    /// The part between two positions of the volume, which must overlap the extent.
    pub fn cut(&self, start: Sector, end: Sector) -> Extent {
        let (start, end) = (start.max(self.start), end.min(self.end()));
        debug_assert!(start < end, "the part is empty");
        Extent {
            start,
            sectors: (end - start) as u32,
            at: self.at + (start - self.start),
            ..*self
        }
    }
}

/// What there is at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The whole extent that covers it.
    Hit(Extent),
    /// Nothing.
    Hole {
        /// The start of the next extent behind it, [`Sector::MAX`] if there is none.
        next: Sector,
    },
}

impl Lookup {
    /// What the first extent that ends behind `at` says of that position.
    #[inline(always)]
    fn by(extent: Extent, at: Sector) -> Lookup {
        match extent.start <= at {
            true => Lookup::Hit(extent),
            false => Lookup::Hole { next: extent.start },
        }
    }
}

/// The readers' side of one volume's map.
pub struct Index {
    /// Never null: an empty map is an empty leaf.
    root: AtomicPtr<Page>,
    domain: Arc<Domain>,
    /// The pages, once the writer is gone.
    pages: Mutex<Option<Slab>>,
}

impl Index {
    /// What there is at a position of the volume. Takes no lock, allocates nothing, and waits for
    /// nobody.
    ///
    /// # Panics
    /// When `reader` is of another domain than the writer.
    #[inline]
    pub fn lookup(&self, reader: &Reader, at: Sector) -> Lookup {
        reader.enter(&self.domain);
        // SAFETY: the reader is of our domain and online, and quiesces (as that takes a call)
        // after this lookup at the earliest.
        unsafe { self.find(at) }
    }

    fn root(&self) -> Node {
        Node(self.root.load(Ordering::Acquire))
    }

    /// See [`Index::lookup`].
    ///
    /// # Safety
    /// The caller is the writer, or a reader of the domain that is online and does not quiesce
    /// before this returns.
    #[inline(always)]
    unsafe fn find(&self, at: Sector) -> Lookup {
        let mut from = at.0;
        while from < PAD {
            // SAFETY: by the contract above; `from` is below PAD.
            let (leaf, upper) = unsafe { descend(self.root(), from) };
            // Which of these lines it will be is known only once those of the ends are here.
            leaf.prefetch_rest();
            if let Some(extent) = leaf.get(leaf.rank(from)) {
                return Lookup::by(extent, at);
            }
            // The rest of the leaf's range is a hole: the next extent is in the next leaf.
            from = upper;
        }
        Lookup::Hole { next: Sector::MAX }
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("levels", &self.root().level())
            .finish_non_exhaustive()
    }
}

/// The leaf in whose range `at` (below [`PAD`]) is, and the upper bound of that range.
///
/// # Safety
/// `root` is the root of a tree and the pages found from it stay: see [`Node::leaf`].
#[inline(always)]
unsafe fn descend<'a>(root: Node, at: u64) -> (&'a Leaf, u64) {
    let (mut node, mut upper) = (root, PAD);
    while node.level() > 0 {
        // SAFETY: by the contract above; the level says what the page is.
        let inner = unsafe { node.inner() };
        let place = inner.rank(at);
        let key = inner.key(place);
        upper = if key < PAD { key } else { upper };
        node = inner.child(place);
    }
    // SAFETY: as above.
    (unsafe { node.leaf() }, upper)
}
