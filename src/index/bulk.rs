//! Making a map from extents that come in order, without an insert for each.
//!
//! Pages are filled one after the other, from the leaves up, and the finished tree is published at
//! once: no page is copied, none is retired. They are filled to seven eighths, so that the first
//! changes afterwards do not split them all.

use std::sync::Arc;

use super::page::{FAN, Leaf, Node};
use super::writer::{PADDED_END, Writer};
use super::{AT_END, Domain, Extent};

/// Entries that a page gets.
const FILL: usize = FAN - FAN / 8;

/// A map in the making.
pub struct Bulk {
    writer: Writer,
    /// The leaf being filled.
    leaf: Vec<Extent>,
    /// The nodes being filled on the levels above, with the lower bounds of their children.
    levels: Vec<Vec<(Node, u64)>>,
    len: u64,
    end: u64,
}

impl Bulk {
    /// An empty map, whose readers will be those of `domain`.
    pub fn new(domain: Arc<Domain>) -> Bulk {
        Bulk {
            writer: Writer::new(domain),
            leaf: Vec::with_capacity(FILL),
            levels: Vec::new(),
            len: 0,
            end: 0,
        }
    }

    /// Adds an extent, which begins at or behind the end of the one before. The work is bounded by
    /// one page a level.
    ///
    /// # Panics
    /// When a field is out of its range, as with [`Writer::insert`], or it is out of order.
    pub fn push(&mut self, extent: Extent) {
        assert!(
            (1..=0xffff).contains(&extent.sectors)
                && extent.at.0 < AT_END
                && extent.start.0 >= self.end
                && extent.start.0 < PADDED_END - u64::from(extent.sectors),
            "an extent out of range or order: {extent:?} behind {}",
            self.end
        );
        self.end = extent.end().0;
        self.len += 1;
        self.leaf.push(extent);
        if self.leaf.len() == FILL {
            self.end_leaf();
        }
    }

    fn end_leaf(&mut self) {
        let page = self.writer.page();
        // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
        unsafe { (*page.cast::<Leaf>()).fill(&self.leaf) };
        let low = self.leaf[0].start.0;
        self.leaf.clear();
        let mut child = (Node::new(page, 0), low);
        for level in 1.. {
            if self.levels.len() < level {
                self.levels.push(Vec::with_capacity(FILL));
            }
            self.levels[level - 1].push(child);
            if self.levels[level - 1].len() < FILL {
                break;
            }
            child = self.end_node(level);
        }
    }

    /// Makes a node of what was collected on a level.
    fn end_node(&mut self, level: usize) -> (Node, u64) {
        let list = &mut self.levels[level - 1];
        let low = list[0].1;
        let node = self.writer.inner(level, list);
        list.clear();
        (node, low)
    }

    /// Publishes the map.
    pub fn finish(mut self) -> Writer {
        if !self.leaf.is_empty() {
            self.end_leaf();
        }
        for level in 1.. {
            let is_top = level >= self.levels.len();
            match self.levels.get(level - 1).map_or(0, Vec::len) {
                0 if is_top => break,
                0 => {}
                1 if is_top => {
                    let root = self.levels[level - 1][0].0;
                    self.writer.adopt(root, self.len);
                    break;
                }
                _ => {
                    let child = self.end_node(level);
                    if is_top {
                        self.levels.push(Vec::new());
                    }
                    self.levels[level].push(child);
                }
            }
        }
        self.writer
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::index::Lookup;
    use crate::units::{Gen, Sector};

    fn extent(i: u64) -> Extent {
        Extent {
            start: Sector(i * 10),
            sectors: 8,
            at: Sector(i * 8),
            generation: Gen(3),
            dirty: i % 3 == 0,
        }
    }

    fn all(writer: &Writer) -> Vec<Extent> {
        let mut found = Vec::new();
        writer.scan(Sector(0), Sector::MAX, &mut |e| {
            found.push(e);
            true
        });
        found
    }

    #[test]
    fn what_went_in_is_there_and_can_be_changed() {
        let fill = FILL as u64;
        let sizes = [0, 1, fill - 1, fill, fill + 1, 2 * fill];
        let larger = [fill * fill - 1, fill * fill, fill * fill + 1, 20_000];
        for n in sizes.into_iter().chain(larger) {
            let domain = Domain::new(2);
            let mut bulk = Bulk::new(domain.clone());
            (0..n).for_each(|i| bulk.push(extent(i)));
            let mut writer = bulk.finish();
            let expected: Vec<Extent> = (0..n).map(extent).collect();
            assert!(all(&writer) == expected && writer.len() == n, "{n}");
            // Changes all over it, against one that was made by inserts.
            let mut other = Writer::new(domain);
            (0..n).for_each(|i| other.insert(extent(i), &mut |_| ()));
            for i in (0..n + 2).step_by(7) {
                for map in [&mut writer, &mut other] {
                    let start = Sector(i * 10 + 5);
                    match i % 3 {
                        0 => map.remove(start, start + 300, &mut |_| ()),
                        _ => map.insert(Extent { start, ..extent(i) }, &mut |_| ()),
                    }
                }
            }
            assert!(all(&writer) == all(&other) && writer.len() == other.len());
            writer.remove(Sector(0), Sector::MAX, &mut |_| ());
            let none = Lookup::Hole { next: Sector::MAX };
            assert!(writer.is_empty() && writer.lookup(Sector(0)) == none);
        }
    }

    #[test]
    fn an_extent_takes_less_than_24_bytes() {
        let mut bulk = Bulk::new(Domain::new(2));
        (0..200_000).for_each(|i| bulk.push(extent(i)));
        assert!(bulk.finish().bytes() < 24 * 200_000);
    }

    #[test]
    #[should_panic(expected = "out of range or order")]
    fn what_overlaps_is_refused() {
        let mut bulk = Bulk::new(Domain::new(2));
        bulk.push(extent(1));
        bulk.push(Extent {
            start: Sector(17),
            ..extent(1)
        });
    }
}
