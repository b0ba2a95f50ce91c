//! Writing nodes: one task, so nothing but it ever changes what is on disk of the tree.
//!
//! Appending a run to a node on disk happens in two steps: all but its first disk block, then —
//! after a flush — that block, which carries the checksum and makes the run count. So a run is
//! there whole or not at all, for us and for the kernel, and the flush between also makes durable
//! the data that its keys point to. A node that is full is written anew, in one bucket or several;
//! its parent learns of it by a run that is written in the same way, up to the root, whose place
//! stands in the journal. Only at the end of the round are pins given back and, when the root is
//! durable, old buckets released.
//!
//! Between the two steps the backing devices are flushed too, for the sake of clean keys. Where that
//! fails the run is written without them ([`vouch`]).
//!
//! A step that writes nodes anew knows beforehand how many buckets it takes up to the root, for
//! nobody else changes nodes: it takes them all at once and gives back what is left, so it never
//! stands half done without a bucket.
//!
//! Bounds: a round writes at most [`ROUND`] leaves; a run is at most a node long.

use std::rc::Rc;

use super::append::Plan;
use super::nodes::{Node, NodeId, Span};
use super::remnants::Gathered;
use super::runs::Runs;
use super::{Pos, Tree, key_of, vouch};
use crate::disk::{IoError, Stopped, answers};
use crate::format::bset::{self, set_blocks};
use crate::format::key::{Key, MAX_BYTES, Ptr, encoded_bytes};
use crate::journal::Shape;
use crate::limits::fresh_node_sectors;
use crate::task::{breathe, either, yield_now};
use crate::units::{BucketNr, Gen, Inode, JournalSeq, SECTOR_BYTES, Sector};

/// Leaves that are written with one flush.
const ROUND: usize = 32;

/// What a round holds back until the newest root is named by all further journal entries (the pins)
/// or durable (the buckets: nodes under the old root must stay as they are until then). One journal
/// entry serves a whole round, however many nodes it rewrote.
#[derive(Default)]
pub(super) struct Deferred {
    pub(super) root_changed: bool,
    /// Buckets of replaced nodes, with the generations that no pointer to them has.
    pub(super) buckets: Vec<(BucketNr, Gen)>,
    pub(super) pins: Vec<JournalSeq>,
    /// Clean extents that were not written, because what they say was not durable: later.
    pub(super) unvouched: Vec<Span>,
    /// Leaves that were written.
    pub(super) written: Vec<Gathered>,
}

/// A child that its parent is about to lose.
struct Freed {
    id: NodeId,
    /// The generation that no pointer to the old node has.
    generation: Gen,
}

impl Tree {
    /// The writer of nodes. Ends when the latch trips or on [`stop`](Tree::stop).
    pub async fn run(self: Rc<Self>) {
        loop {
            if self.latch.check().is_err() || self.stopping.get() {
                self.idle.notify();
                return;
            }
            let upto = self.journal.reclaim_target();
            let due = self.nodes.borrow_mut().due(upto, ROUND);
            self.busy.set(true);
            // What fails trips the latch, which ends the loop.
            if due.is_empty() {
                if !self.tidy_up().await {
                    self.busy.set(false);
                    self.idle.notify();
                    self.wait_for_work().await;
                }
            } else {
                let _ = self.write_leaves(due).await;
            }
            self.busy.set(false);
            self.rounds.set(self.rounds.get() + 1);
            self.idle.notify();
            yield_now().await;
        }
    }

    /// One thing besides writing leaves that was asked for; false when there is none.
    async fn tidy_up(&self) -> bool {
        let (job, inner) = {
            let mut nodes = self.nodes.borrow_mut();
            match nodes.next_job() {
                Some(job) => (Some(job), None),
                None => (None, nodes.due_inner()),
            }
        };
        let done = match (job, inner) {
            (Some(job), _) => self.do_job(job).await,
            (None, Some(id)) => self.renew_inner(id).await,
            (None, None) if self.deferred.borrow().root_changed && !self.is_held() => Ok(()),
            (None, None) => return false,
        };
        if done.is_ok() {
            let _ = self.settle().await;
        }
        true
    }

    async fn wait_for_work(&self) {
        let asked = either(self.work.wait(), self.journal.reclaim.wait());
        if self.deferred.borrow().root_changed {
            either(asked, self.journal.entry_written()).await
        } else {
            asked.await
        }
    }

    /// Has all that wait look again.
    pub(crate) fn wake(&self) {
        self.work.notify();
        self.idle.notify();
    }

    /// Writes everything that is pending now.
    pub async fn flush(&self) -> Result<(), Stopped> {
        // By position: what takes the place of a leaf is behind the same one.
        let mut at = Some((Inode(0), Sector(0)));
        while let Some(from) = at {
            at = self.nodes.borrow_mut().demand_leaves(from);
            breathe().await;
        }
        self.drain_demand().await
    }

    /// Writes anew all inner nodes that carry keys of freed children now.
    pub(crate) async fn flush_inner(&self) -> Result<(), Stopped> {
        let mut at = Some(0);
        while let Some(from) = at {
            at = self.nodes.borrow_mut().demand_freed(from);
            breathe().await;
        }
        self.drain_demand().await
    }

    pub(super) async fn drain_demand(&self) -> Result<(), Stopped> {
        self.work.notify();
        while self.nodes.borrow().has_demand() {
            self.latch.check()?;
            if self.stopping.get() {
                // Nobody will do it.
                return Err(Stopped);
            }
            self.idle.wait().await;
        }
        // What was taken last may still be on its way.
        let round = self.rounds.get();
        while self.busy.get() && self.rounds.get() == round {
            self.latch.check()?;
            self.idle.wait().await;
        }
        self.latch.check()
    }

    fn node_sectors(&self) -> u32 {
        fresh_node_sectors(self.shape.geometry.bucket_sectors)
    }

    pub(super) fn block_sectors(&self) -> u32 {
        self.shape.geometry.block_sectors
    }

    /// How many bytes of keys a fresh node may start with, so that there is room to append.
    pub(super) fn fill_bytes(&self) -> usize {
        fill_bytes(&self.shape)
    }

    async fn write_leaves(&self, due: Vec<NodeId>) -> Result<(), Stopped> {
        let (mut appends, mut full) = (Vec::new(), Vec::new());
        for id in due {
            match self.plan_append(id) {
                Plan::Nothing => {}
                Plan::Append(append) => appends.push(append),
                Plan::Rewrite => full.push(id),
            }
            // A leaf a step.
            yield_now().await;
        }
        if !appends.is_empty() {
            self.write_appends(appends).await?;
        }
        for id in full {
            self.rewrite_leaf(id).await?;
        }
        self.settle().await
    }

    /// Whether a new root must wait for room in the journal.
    fn is_held(&self) -> bool {
        self.deferred.borrow().root_changed && self.journal.holds_roots()
    }

    /// Makes the newest root durable if it changed, and lets go of what had to wait for that.
    pub(super) async fn settle(&self) -> Result<(), Stopped> {
        let pins = std::mem::take(&mut self.deferred.borrow_mut().pins);
        // First, so that the entry which names the new root says too what it makes superfluous: no
        // entry that is written from now on names the old one.
        for seq in pins {
            self.journal.unpin(seq);
        }
        if self.is_held() {
            // More leaves must be written before an entry can make room in the ring. The old nodes
            // stay until then.
            return self.latch.check();
        }
        let done = self.deferred.take();
        if done.root_changed {
            self.journal.commit_roots().await?;
        }
        for (bucket, generation) in done.buckets {
            self.alloc.release_meta(bucket, generation);
        }
        for span in done.unvouched {
            self.mark(span, None, 0);
        }
        self.leaves_written(&done.written);
        Ok(())
    }

    /// Takes so many buckets for nodes, for [`write_new`](Self::write_new) to use, or waits until
    /// there may be so many: then false, and what was planned must be planned again.
    pub(super) async fn take_buckets(&self, need: usize) -> Result<bool, Stopped> {
        assert!(self.granted.borrow().is_empty(), "one step at a time");
        if let Some(buckets) = self.alloc.take_nodes(need) {
            *self.granted.borrow_mut() = buckets;
            return Ok(true);
        }
        // What the round holds back may be what is missing.
        self.settle().await?;
        self.alloc.nodes_ready(need).await?;
        Ok(false)
    }

    /// Gives back the buckets that a step did not use.
    pub(super) fn leave_buckets(&self) {
        for (bucket, _) in self.granted.take() {
            self.alloc.give_back(bucket);
        }
    }

    /// The most nodes that the levels above may take when `gone` children of `parent` are replaced
    /// by `new` ones.
    pub(super) fn nodes_above(&self, parent: Option<NodeId>, gone: usize, new: usize) -> usize {
        let (mut at, mut gone, mut new, mut need) = (parent, gone, new, 0);
        let nodes = self.nodes.borrow();
        while let Some(id) = at {
            let node = nodes.get(id);
            if self.fits(node, (gone + new) * MAX_BYTES) {
                return need;
            }
            let keys = node.children.len() + new - gone;
            // One more than needed by bytes: parts are of equal numbers of keys.
            new = (keys * MAX_BYTES).div_ceil(self.fill_bytes()).max(1);
            gone = 1;
            need += new;
            at = node.parent;
        }
        need + usize::from(new > 1)
    }

    /// Whether a run of so many bytes of keys fits behind a node's last.
    pub(super) fn fits(&self, node: &Node, key_bytes: usize) -> bool {
        let blocks = set_blocks(key_bytes, self.block_sectors());
        (node.runs.blocks + blocks) * self.block_sectors() <= node.sectors
    }

    pub(super) fn written(&self, done: Result<(), IoError>) -> Result<(), Stopped> {
        done.map_err(|why| {
            let name = self.disk.name();
            self.latch
                .trip(format!("a btree node was not written to {name}: {why}"))
        })
    }

    /// Makes durable what the keys about to be written speak of: data on the cache device and, for
    /// keys of leaves (`speaks_of_data`), on the backing devices what clean keys claim to be there.
    /// Returns the volumes whose backing devices failed to: their clean keys are not to be written.
    pub(super) async fn flush_data(&self, speaks_of_data: bool) -> Result<Vec<Inode>, Stopped> {
        let backing = speaks_of_data.then(|| self.backings.borrow().flush());
        let cache = self.disk.flush();
        let failed = match backing {
            Some(backing) => backing.await,
            None => Vec::new(),
        };
        let done = cache.await;
        self.written(done).map(|()| failed)
    }

    async fn rewrite_leaf(&self, id: NodeId) -> Result<(), Stopped> {
        self.join_leaves(vec![id]).await
    }

    /// All fresh extents in a range of positions as keys, and how many stale ones there are besides.
    pub(super) fn keys_of_range(&self, start: Pos, end: Pos) -> (Vec<Key>, i64) {
        let (mut keys, mut stale) = (Vec::new(), 0);
        let inodes: Vec<Inode> = {
            let spaces = self.spaces.borrow();
            spaces.range(start.0..=end.0).map(|(&i, _)| i).collect()
        };
        for inode in inodes {
            let from = if inode == start.0 { start.1 } else { Sector(0) };
            let to = if inode == end.0 { end.1 } else { Sector::MAX };
            self.scan(inode, from, to, &mut |e| {
                if self.is_fresh(&e) {
                    let cut = e.cut(e.start.max(from), e.end().min(to));
                    keys.push(key_of(inode, &cut));
                } else {
                    stale += 1;
                }
                true
            });
        }
        (keys, stale)
    }

    /// Writes new nodes of one level that together cover a range; they are in no parent yet.
    pub(super) async fn write_new(
        &self,
        level: u16,
        start: Pos,
        end: Pos,
        mut parts: Vec<Vec<Key>>,
    ) -> Result<Vec<NodeId>, Stopped> {
        let (mut ids, mut from) = (Vec::new(), start);
        let last = parts.len() - 1;
        for (i, keys) in parts.iter().enumerate() {
            let bucket = self.granted.borrow_mut().pop();
            let (bucket, generation) = bucket.expect("a step takes what it needs beforehand");
            let ptr = Ptr::new(0, self.shape.sector_of(bucket), generation);
            let to = match keys.last() {
                Some(key) if i < last => key.position(),
                _ => end,
            };
            let mut node = Node::new(level, from, to, ptr, bucket, self.node_sectors());
            node.seq = self.rng.nonzero();
            let mut nodes = self.nodes.borrow_mut();
            let id = nodes.add(node);
            nodes.set_extents(id, keys.len());
            ids.push(id);
            from = to;
        }
        self.write_first_sets(&ids, &parts).await?;
        let failed = self.flush_data(level == 0).await?;
        if !failed.is_empty() {
            let mut all = Vec::new();
            for keys in &mut parts {
                let mut struck = Vec::new();
                vouch::leave_out(keys, &failed, &mut struck);
                all.extend(struck);
            }
            if !all.is_empty() {
                self.deferred.borrow_mut().unvouched.extend(all);
                self.write_first_sets(&ids, &parts).await?;
                self.flush_data(false).await?;
            }
        }
        Ok(ids)
    }

    /// Writes the first sets of new nodes.
    async fn write_first_sets(&self, ids: &[NodeId], parts: &[Vec<Key>]) -> Result<(), Stopped> {
        let mut writes = Vec::new();
        for (&id, keys) in ids.iter().zip(parts) {
            let mut nodes = self.nodes.borrow_mut();
            let node = nodes.get_mut(id);
            let mut bytes = Vec::new();
            let blocks = bset::set_encode(
                node.seq,
                node.ptr,
                self.shape.set_magic,
                keys,
                self.block_sectors(),
                &mut bytes,
            );
            assert!(blocks * self.block_sectors() <= node.sectors);
            node.runs = Runs::first(keys, blocks);
            let mut buf = self.disk.alloc(bytes.len());
            buf.copy_from_slice(&bytes);
            writes.push(self.disk.write(node.ptr.sector(), buf));
        }
        for (_, done) in answers(writes).await {
            self.written(done)?;
        }
        Ok(())
    }

    /// Puts `new` (durable) in the place of `old` in their parent; the buckets of `old` are free at
    /// the end of the round. The old nodes themselves stay in the table.
    pub(super) async fn replace(
        &self,
        parent: Option<NodeId>,
        old: Vec<NodeId>,
        new: &[NodeId],
    ) -> Result<(), Stopped> {
        let freed: Vec<Freed> = {
            let nodes = self.nodes.borrow();
            old.iter()
                .map(|&id| Freed {
                    id,
                    generation: nodes.get(id).ptr.generation().next(),
                })
                .collect()
        };
        match parent {
            None => self.replace_root(new).await?,
            Some(parent) => self.replace_children(parent, &freed, new).await?,
        }
        let nodes = self.nodes.borrow();
        let freed = freed
            .iter()
            .map(|old| (nodes.get(old.id).bucket, old.generation));
        self.deferred.borrow_mut().buckets.extend(freed);
        Ok(())
    }

    async fn replace_root(&self, new: &[NodeId]) -> Result<(), Stopped> {
        let root = if new.len() == 1 {
            new[0]
        } else {
            let (keys, level, start, end) = {
                let nodes = self.nodes.borrow();
                let keys: Vec<Key> = new.iter().map(|&id| nodes.get(id).key()).collect();
                let (first, last) = (nodes.get(new[0]), nodes.get(new[new.len() - 1]));
                (keys, first.level + 1, first.start, last.end)
            };
            let root = self.write_new(level, start, end, vec![keys]).await?[0];
            self.adopt(root, new);
            root
        };
        let (key, level) = {
            let mut nodes = self.nodes.borrow_mut();
            nodes.get_mut(root).parent = None;
            (nodes.get(root).key(), nodes.get(root).level)
        };
        self.journal.set_roots(|r| (r.root, r.level) = (key, level));
        self.deferred.borrow_mut().root_changed = true;
        Ok(())
    }

    /// Makes `children` the children of `parent` in memory, next to those it has.
    fn adopt(&self, parent: NodeId, children: &[NodeId]) {
        let mut nodes = self.nodes.borrow_mut();
        for &child in children {
            nodes.get_mut(child).parent = Some(parent);
            let end = nodes.get(child).end;
            nodes.get_mut(parent).children.insert(end, child);
        }
    }

    async fn replace_children(
        &self,
        parent: NodeId,
        freed: &[Freed],
        new: &[NodeId],
    ) -> Result<(), Stopped> {
        let keys = {
            let mut nodes = self.nodes.borrow_mut();
            let mut keys: Vec<Key> = Vec::new();
            for old in freed {
                let node = nodes.get(old.id);
                let (end, mut key) = (node.end, node.key());
                key.inode = Inode(0);
                key.end = Sector(0);
                key.ptr = Some(Ptr::new(0, node.ptr.sector(), old.generation));
                keys.push(key);
                nodes.get_mut(parent).children.remove(&end);
            }
            keys.extend(new.iter().map(|&id| nodes.get(id).key()));
            keys
        };
        self.adopt(parent, new);
        let fits = self.fits(self.nodes.borrow().get(parent), encoded_bytes(&keys));
        if !fits {
            return Box::pin(self.rewrite_inner(vec![parent])).await;
        }
        let append = {
            let mut nodes = self.nodes.borrow_mut();
            let node = nodes.get_mut(parent);
            node.freed_keys += freed.len() as u32;
            drop(nodes);
            self.append_of(parent, &keys)
        };
        self.write_appends(vec![append]).await
    }

    /// Writes an inner node anew, as a step of its own.
    async fn renew_inner(&self, id: NodeId) -> Result<(), Stopped> {
        loop {
            let need = {
                let nodes = self.nodes.borrow();
                let node = nodes.get(id);
                let parts = (node.children.len() * MAX_BYTES).div_ceil(self.fill_bytes());
                parts + self.nodes_above(node.parent, 1, parts)
            };
            if self.take_buckets(need).await? {
                break;
            }
        }
        let done = self.rewrite_inner(vec![id]).await;
        self.leave_buckets();
        done
    }

    /// Writes neighbouring inner nodes of one parent anew, from their children in memory.
    pub(super) async fn rewrite_inner(&self, ids: Vec<NodeId>) -> Result<(), Stopped> {
        let (level, start, end, parent, children) = {
            let nodes = self.nodes.borrow();
            let (first, last) = (nodes.get(ids[0]), nodes.get(ids[ids.len() - 1]));
            let children = ids.iter().flat_map(|&id| nodes.get(id).children.values());
            let children: Vec<NodeId> = children.copied().collect();
            (first.level, first.start, last.end, first.parent, children)
        };
        let keys: Vec<Key> = {
            let nodes = self.nodes.borrow();
            children.iter().map(|&c| nodes.get(c).key()).collect()
        };
        let parts = split(keys, self.fill_bytes());
        let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
        let new = self.write_new(level, start, end, parts).await?;
        let mut rest = &children[..];
        for (&node, size) in new.iter().zip(sizes) {
            let (some, others) = rest.split_at(size);
            self.adopt(node, some);
            rest = others;
        }
        Box::pin(self.replace(parent, ids.clone(), &new)).await?;
        for id in ids {
            self.nodes.borrow_mut().remove(id);
        }
        Ok(())
    }

    /// Puts new leaves in the place of old ones in memory: see [`Nodes::swap`].
    ///
    /// [`Nodes::swap`]: super::nodes::Nodes::swap
    pub(super) fn swap_leaves(&self, old: &[NodeId], new: &[NodeId], stale: i64) {
        let swapped = self.nodes.borrow_mut().swap(old, new, stale);
        self.marked(swapped.new);
        for seq in swapped.unpins {
            self.journal.unpin(seq);
        }
    }

    /// The first node of a new set: an empty leaf that is the root.
    pub async fn create(&self) -> Result<(), Stopped> {
        let end = Key::MAX.position();
        let start = (Inode(0), Sector(0));
        while !self.take_buckets(1).await? {}
        let new = self.write_new(0, start, end, vec![Vec::new()]).await?;
        self.nodes.borrow_mut().add_leaf(new[0]);
        let key = self.nodes.borrow().get(new[0]).key();
        self.journal.set_roots(|r| (r.root, r.level) = (key, 0));
        Ok(())
    }
}

/// How many bytes of keys a fresh node may start with, so that there is room to append.
pub(super) fn fill_bytes(shape: &Shape) -> usize {
    let sectors = fresh_node_sectors(shape.geometry.bucket_sectors);
    let node_bytes = sectors as usize * SECTOR_BYTES;
    let one_block = shape.block_bytes();
    // Two thirds, but in a node of very few blocks at least a block is left for a run.
    let fill = (node_bytes * 2 / 3).min(node_bytes - one_block.min(node_bytes / 2));
    fill - bset::HEADER_BYTES
}

/// Divides keys into as few parts as hold at most `bytes` each, of about equal size; at least one.
pub(super) fn split(keys: Vec<Key>, bytes: usize) -> Vec<Vec<Key>> {
    let total = encoded_bytes(&keys);
    if total <= bytes {
        return vec![keys];
    }
    // Halves (or thirds, …) of what one part may hold leave room for what comes next.
    let parts = total.div_ceil(bytes).max(2);
    let each = keys.len().div_ceil(parts);
    keys.chunks(each).map(<[Key]>::to_vec).collect()
}
