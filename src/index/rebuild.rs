//! Changes that one leaf cannot hold: splits, merges, and extents across several leaves.
//!
//! The leaves from the one where the change starts to the one where it ends (a *run*) become one
//! list of extents with the change made, which new leaves are made of. The children of their
//! parents (a run again) become one list of children, with the new leaves in the place of the old
//! run, which new parents are made of, and so on upwards. It ends on the level where the run was
//! one node and one new node came of it: they have the same range, and a single store replaces the
//! one by the other. If no level has that, a new root is published. Until then no reader can see
//! any of it, and no old node has changed.
//!
//! How pages are filled:
//! * a list that is too long for one page, and whose last entry is the new one, fills pages from
//!   the left and leaves the rest alone in the last: inserts in order make full pages;
//! * otherwise a neighbour that is sparse takes part of a list that is too long, and pages
//!   share evenly;
//! * a list that is thin after a removal joins a neighbour when both fit in three quarters of a
//!   page; one that is empty goes, and its parent loses a child;
//! * a root with one child is left out.

use super::page::{FAN, Inner, Leaf, Node};
use super::writer::{Path, Scratch, THIN, Writer};
use super::{Extent, MAX_LEVELS};
use crate::units::Sector;

/// Two nodes are joined when no more than this comes out.
const JOINED: usize = FAN * 3 / 4;
/// A neighbour with no more than this takes part of a list that is too long. More than half, so
/// that the pages which inserts in falling order leave behind are found.
const SPARSE: usize = FAN * 5 / 8;

/// The nodes that are replaced on each level: from `left`'s to `right`'s.
struct Run {
    left: Path,
    right: Path,
    /// Whether the last entry of the list is the new one.
    append: bool,
}

/// A neighbour that became part of a run, and the bound between the two.
enum Widened {
    Left(Node, u64),
    Right(Node, u64),
}

impl Run {
    /// Whether one node is all of the run on a level below the top.
    fn is_single(&self, level: usize) -> bool {
        self.left.steps[level + 1] == self.right.steps[level + 1]
    }

    /// Adds a neighbour (of the same parent) to a run whose list has `count` entries, if that makes
    /// better pages.
    fn widen(&mut self, level: usize, count: usize) -> Option<Widened> {
        let limit = match count {
            1..=THIN => JOINED - count,
            _ if count > FAN && !self.append => SPARSE,
            _ => return None,
        };
        if level == self.left.top {
            return None;
        }
        let (parent, place) = &mut self.left.steps[level + 1];
        // SAFETY: we are called by the writer, about nodes of its tree that it has not yet
        // replaced.
        let inner = unsafe { parent.inner() };
        if *place > 0 && count_of(inner.child(*place - 1)) <= limit {
            *place -= 1;
            return Some(Widened::Left(inner.child(*place), inner.key(*place)));
        }
        let (parent, place) = &mut self.right.steps[level + 1];
        // SAFETY: as above.
        let inner = unsafe { parent.inner() };
        if *place + 1 < inner.len() && count_of(inner.child(*place + 1)) <= limit {
            *place += 1;
            return Some(Widened::Right(inner.child(*place), inner.key(*place - 1)));
        }
        None
    }
}

impl Writer {
    /// Replaces `start` to before `end` by `new`, whatever that takes.
    #[cold]
    pub(super) fn rebuild(&mut self, start: u64, end: u64, new: Option<Extent>) {
        let mut run = Run {
            left: self.path(start),
            right: self.path(end - 1),
            append: false,
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        self.rebuild_leaves(&mut run, start, end, new, &mut scratch);
        let mut level = 0;
        loop {
            if level == run.left.top {
                self.rebuild_root(level, &mut scratch.children);
                break;
            }
            if let (true, &[(node, _)]) = (run.is_single(level), &scratch.children[..]) {
                self.replace(&run.left, level, node);
                break;
            }
            level += 1;
            self.rebuild_inner(&mut run, level, &mut scratch);
        }
        self.scratch = scratch;
    }

    /// Makes new leaves of the run of leaves, and lists them in `scratch.children`.
    fn rebuild_leaves(
        &mut self,
        run: &mut Run,
        start: u64,
        end: u64,
        new: Option<Extent>,
        scratch: &mut Scratch,
    ) {
        let (start, end) = (Sector(start), Sector(end));
        // SAFETY: we are the writer; pages retired in this change are not used again in it.
        let (left, right) = unsafe { (run.left.steps[0].0.leaf(), run.right.steps[0].0.leaf()) };
        let list = &mut scratch.extents;
        list.clear();
        let before = left.extents(0).take_while(|extent| extent.start < start);
        list.extend(before.map(|extent| extent.cut(extent.start, start)));
        list.extend(new);
        let kept = list.len();
        let behind = right.extents(right.rank(end.0));
        list.extend(behind.map(|extent| extent.cut(end, extent.end())));
        run.append = new.is_some() && list.len() == kept;
        let mut gone = self.retire_run(run, 0);
        match run.widen(0, list.len()) {
            Some(Widened::Left(node, _)) => {
                // SAFETY: as above.
                list.splice(0..0, unsafe { node.leaf() }.extents(0));
                gone += self.retire_tree(node);
            }
            Some(Widened::Right(node, _)) => {
                // SAFETY: as above.
                list.extend(unsafe { node.leaf() }.extents(0));
                gone += self.retire_tree(node);
            }
            None => {}
        }
        self.recount(gone, list.len() as u64);
        scratch.children.clear();
        for part in parts(list, run.append) {
            let page = self.page();
            // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
            unsafe { (*page.cast::<Leaf>()).fill(part) };
            scratch.children.push((Node::new(page, 0), part[0].start.0));
        }
    }

    /// Makes new nodes of the run on a level above the leaves, with `scratch.children` in the
    /// place of the run below, and lists them there.
    fn rebuild_inner(&mut self, run: &mut Run, level: usize, scratch: &mut Scratch) {
        let ((left, first), (right, last)) = (run.left.steps[level], run.right.steps[level]);
        // SAFETY: we are the writer; pages retired in this change are not used again in it.
        let (left, right) = unsafe { (left.inner(), right.inner()) };
        let list = &mut scratch.children;
        if let (Some((_, low)), true) = (list.first_mut(), first > 0) {
            *low = left.key(first - 1);
        }
        list.splice(0..0, left.children(0, first));
        list.extend(right.children(last + 1, right.len()));
        run.append &= last + 1 == right.len();
        let gone = self.retire_run(run, level);
        match run.widen(level, list.len()) {
            Some(Widened::Left(node, low)) => {
                list[0].1 = low;
                // SAFETY: as above.
                let inner = unsafe { node.inner() };
                list.splice(0..0, inner.children(0, inner.len()));
                self.retire(node);
            }
            Some(Widened::Right(node, low)) => {
                let behind = list.len();
                // SAFETY: as above.
                let inner = unsafe { node.inner() };
                list.extend(inner.children(0, inner.len()));
                list[behind].1 = low;
                self.retire(node);
            }
            None => {}
        }
        std::mem::swap(&mut scratch.children, &mut scratch.below);
        scratch.children.clear();
        for part in parts(&scratch.below, run.append) {
            scratch.children.push((self.inner(level, part), part[0].1));
        }
        self.recount(gone, 0);
    }

    /// Publishes a tree of the nodes of `level` that are left.
    fn rebuild_root(&mut self, level: usize, children: &mut [(Node, u64)]) {
        let root = match *children {
            [] => {
                let page = self.page();
                // SAFETY: the page is ours alone, initialised, and large enough for a leaf.
                unsafe { (*page.cast::<Leaf>()).fill(&[]) };
                Node::new(page, 0)
            }
            [(mut node, _)] => {
                let mut was_published = false;
                while node.level() > 0 {
                    // SAFETY: the node is new, or in the tree that we are the writer of.
                    let inner = unsafe { node.inner() };
                    if inner.len() > 1 {
                        break;
                    }
                    let only = inner.child(0);
                    // Only the first of these is sure to be new.
                    if was_published {
                        self.retire(node);
                    } else {
                        self.unpage(node);
                    }
                    was_published = true;
                    node = only;
                }
                node
            }
            _ => self.inner(level + 1, children),
        };
        self.set_root(root);
    }

    /// A new node of `children`.
    pub(super) fn inner(&mut self, level: usize, children: &[(Node, u64)]) -> Node {
        assert!(
            level < MAX_LEVELS,
            "a tree that high takes more inserts than there can have been"
        );
        let page = self.page();
        // SAFETY: the page is ours alone, initialised, and large enough for an inner node.
        unsafe { (*page.cast::<Inner>()).fill(children) };
        Node::new(page, level)
    }

    /// Retires the nodes of a run at both its ends, and all between these that is not below a
    /// node still to be retired so. Returns how many extents are gone with it.
    fn retire_run(&mut self, run: &Run, level: usize) -> u64 {
        let ends = [run.left.steps[level].0, run.right.steps[level].0];
        let mut gone = 0;
        for &node in &ends[..if ends[0] == ends[1] { 1 } else { 2 }] {
            gone += if level == 0 { count_of(node) as u64 } else { 0 };
            self.retire(node);
        }
        if level == run.left.top || ends[0] == ends[1] {
            return gone;
        }
        let ((left, first), (right, last)) =
            (run.left.steps[level + 1], run.right.steps[level + 1]);
        // SAFETY: we are the writer; pages retired in this change are not used again in it.
        let (left_inner, right_inner) = unsafe { (left.inner(), right.inner()) };
        if left == right {
            for place in first + 1..last {
                gone += self.retire_tree(left_inner.child(place));
            }
            return gone;
        }
        for place in first + 1..left_inner.len() {
            gone += self.retire_tree(left_inner.child(place));
        }
        for place in 0..last {
            gone += self.retire_tree(right_inner.child(place));
        }
        gone
    }

    /// Retires a node and all below it. Returns how many extents are gone with it.
    fn retire_tree(&mut self, node: Node) -> u64 {
        self.retire(node);
        if node.level() == 0 {
            return count_of(node) as u64;
        }
        // SAFETY: we are the writer; pages retired in this change are not used again in it.
        let inner = unsafe { node.inner() };
        (0..inner.len())
            .map(|place| self.retire_tree(inner.child(place)))
            .sum()
    }
}

/// Entries of a node of the writer's tree.
fn count_of(node: Node) -> usize {
    // SAFETY: only the functions above call this, about nodes of their own writer's tree, which
    // they keep as they are.
    unsafe {
        if node.level() == 0 {
            node.leaf().len()
        } else {
            node.inner().len()
        }
    }
}

/// Shares a list among as few pages as will do: evenly, or from the left as far as it goes.
fn parts<T>(list: &[T], from_left: bool) -> impl Iterator<Item = &[T]> {
    let (len, pages) = (list.len(), list.len().div_ceil(FAN));
    (0..pages).map(move |page| {
        if from_left {
            &list[page * FAN..len.min((page + 1) * FAN)]
        } else {
            &list[len * page / pages..len * (page + 1) / pages]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_or_full_and_never_empty() {
        let list: Vec<usize> = (0..200).collect();
        for len in 0..200 {
            for from_left in [false, true] {
                let cut: Vec<_> = parts(&list[..len], from_left).collect();
                assert_eq!(cut.concat(), &list[..len]);
                assert_eq!(cut.len(), len.div_ceil(FAN));
                assert!(cut.iter().all(|part| (1..=FAN).contains(&part.len())));
                let (min, max) = (
                    cut.iter().map(|p| p.len()).min(),
                    cut.iter().map(|p| p.len()).max(),
                );
                assert!(from_left || max.unwrap_or(0) <= min.unwrap_or(0) + 1);
            }
        }
    }
}
