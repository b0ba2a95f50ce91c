//! Fewer and fuller nodes: neighbours that hold little become one, a node that holds much which
//! means nothing any more is written anew, a root with a single child gives way to it.
//!
//! Gc looks at the tree in slices ([`Tree::survey_leaves`], [`Tree::survey_inner`]) and leaves jobs
//! for the writer, who looks again before he does one, for the tree may have changed. A join is a
//! replacement of several nodes by one and as safe as a split: the new node is durable before the
//! parent's run names it; that run, which is there whole or not at all, also carries for each old
//! node what tells that it is superseded; the old buckets are let go after that, and after the root
//! that leads there is durable.
//!
//! Bounds: a slice looks at [`SURVEY_NODES`] nodes and at about [`SURVEY_EXTENTS`] extents; a join
//! takes at most [`JOIN_MAX`] nodes.

use super::nodes::{Job, NodeId};
use super::write::split;
use super::{Pos, Tree};
use crate::alloc::{PARTS_MAX, step_nodes};
use crate::disk::Stopped;
use crate::format::key::{Key, MAX_BYTES};
use crate::task::{Work, breathe, work, yield_now};
use crate::units::{JournalSeq, Sector};

/// Nodes that are joined at most; as many as the kernel joins.
const JOIN_MAX: usize = 4;
/// Nodes that one slice of a survey looks at.
const SURVEY_NODES: usize = 64;
/// Extents that one slice of a survey looks at, and those of one more leaf.
const SURVEY_EXTENTS: usize = Work::Keys.slice();
/// A leaf with so many keys beyond twice its extents is stale.
const STALE_KEYS: usize = 64;

/// A run of neighbours under one parent that would fit into one node.
struct Group {
    parent: Option<NodeId>,
    ids: Vec<NodeId>,
    keys: usize,
}

impl Group {
    fn new() -> Group {
        Group {
            parent: None,
            ids: Vec::new(),
            keys: 0,
        }
    }

    /// Adds a node; returns the group that ends before it, if that is worth a job.
    fn add(&mut self, parent: Option<NodeId>, id: NodeId, keys: usize, most: usize) -> Option<Job> {
        let joins = self.parent == parent && parent.is_some();
        if joins && self.ids.len() < JOIN_MAX && self.keys + keys <= most {
            self.ids.push(id);
            self.keys += keys;
            return None;
        }
        let done = self.end();
        *self = Group {
            parent,
            ids: vec![id],
            keys,
        };
        done
    }

    fn end(&mut self) -> Option<Job> {
        let ids = std::mem::take(&mut self.ids);
        (ids.len() > 1).then_some(Job::Join(ids))
    }
}

impl Tree {
    /// Keys that a joined node may have: three quarters of a fresh node's, so that it does not
    /// split at once.
    fn join_keys(&self) -> usize {
        self.fill_bytes() * 3 / 4 / MAX_BYTES
    }

    /// Looks at the leaves behind `from` and asks for what should be done about them. Returns where
    /// to go on, `None` at the end. Jobs that find no place are left for the next pass.
    pub(crate) fn survey_leaves(&self, from: Pos) -> Option<Pos> {
        let (mut at, mut looked) = (from, 0);
        let (mut jobs, mut group) = (Vec::new(), Group::new());
        for _ in 0..SURVEY_NODES {
            let next = {
                let nodes = self.nodes.borrow();
                nodes.leaves.behind(at).map(|leaf| {
                    let node = nodes.get(leaf.id);
                    let written = node.runs.keys as usize;
                    (leaf.end, leaf.id, node.start, node.parent, written)
                })
            };
            let Some((end, id, start, parent, written)) = next else {
                jobs.extend(group.end());
                self.ask(jobs);
                return None;
            };
            let live = self.count_range(start, end);
            looked += live;
            jobs.extend(group.add(parent, id, live, self.join_keys()));
            if written > 2 * live + STALE_KEYS {
                jobs.push(Job::Join(vec![id]));
            }
            at = end;
            if looked >= SURVEY_EXTENTS {
                break;
            }
        }
        jobs.extend(group.end());
        self.ask(jobs);
        Some(at)
    }

    /// Looks at the inner nodes, in bounded steps, and asks for what should be done about them.
    pub(crate) async fn survey_inner(&self) {
        let mut parents: Vec<(NodeId, u16)> = {
            let nodes = self.nodes.borrow();
            let root = nodes.root();
            root.map(|id| (id, nodes.get(id).level))
                .into_iter()
                .collect()
        };
        while let Some((id, level)) = parents.pop() {
            breathe().await;
            let Some(children) = self.inner_children(id, level) else {
                continue;
            };
            let (mut jobs, most, mut group) = (Vec::new(), self.join_keys(), Group::new());
            for &child in &children {
                // What changed meanwhile is looked at again before the job is done.
                let keys = self.nodes.borrow().find(child).map(|n| n.children.len());
                if let Some(keys) = keys {
                    jobs.extend(group.add(Some(id), child, keys, most));
                }
                work(Work::Keys, 1);
                breathe().await;
            }
            jobs.extend(group.end());
            self.ask(jobs);
            parents.extend(children.into_iter().map(|child| (child, level - 1)));
        }
    }

    /// The children of a node on `level` that are inner nodes; asks for a root with a single child to
    /// give way. `None` when the node is not there any more.
    fn inner_children(&self, id: NodeId, level: u16) -> Option<Vec<NodeId>> {
        work(Work::Nodes, 1);
        let nodes = self.nodes.borrow();
        let node = nodes.find(id).filter(|node| node.level == level)?;
        let shrinks = node.parent.is_none() && node.children.len() == 1;
        let children = (node.level >= 2).then(|| node.children.values().copied().collect());
        drop(nodes);
        if shrinks {
            self.ask(vec![Job::Shrink]);
        }
        children
    }

    fn ask(&self, jobs: Vec<Job>) {
        let mut nodes = self.nodes.borrow_mut();
        for job in jobs {
            if !nodes.ask(job) {
                break;
            }
        }
        drop(nodes);
        self.work.notify();
    }

    /// Waits until the writer has done what was asked for.
    pub(crate) async fn jobs_done(&self) -> Result<(), Stopped> {
        self.drain_demand().await
    }

    /// How many extents lie in a range of positions; at most one more than a full leaf's.
    fn count_range(&self, start: Pos, end: Pos) -> usize {
        let (mut count, most) = (0, 2 * self.fill_bytes() / MAX_BYTES);
        let spaces = self.spaces.borrow();
        for (&inode, space) in spaces.range(start.0..=end.0) {
            let from = if inode == start.0 { start.1 } else { Sector(0) };
            let to = if inode == end.0 { end.1 } else { Sector::MAX };
            space.writer.scan(from, to, &mut |e| {
                count += usize::from(self.is_fresh(&e));
                count <= most
            });
        }
        count
    }

    /// Does what was asked for, if it still makes sense.
    pub(super) async fn do_job(&self, job: Job) -> Result<(), Stopped> {
        match job {
            Job::Shrink => {
                self.shrink_root();
                Ok(())
            }
            Job::Join(ids) if !self.are_neighbours(&ids) => Ok(()),
            Job::Join(ids) => {
                let leaves = self.nodes.borrow().get(ids[0]).level == 0;
                if leaves {
                    self.join_leaves(ids).await
                } else {
                    self.join_inner(ids).await
                }
            }
        }
    }

    /// Whether they are all there, in order, next to each other, under one parent.
    fn are_neighbours(&self, ids: &[NodeId]) -> bool {
        let nodes = self.nodes.borrow();
        let Some(first) = ids.first().and_then(|&id| nodes.find(id)) else {
            return false;
        };
        let mut end = first.start;
        ids.iter().all(|&id| {
            let next = nodes.find(id).filter(|node| {
                node.start == end && node.parent == first.parent && node.level == first.level
            });
            end = next.map_or(end, |node| node.end);
            next.is_some()
        }) && (ids.len() == 1 || first.parent.is_some())
    }

    /// Writes leaves anew, all that is live in their ranges, as one or as many as it takes.
    pub(super) async fn join_leaves(&self, ids: Vec<NodeId>) -> Result<(), Stopped> {
        let (start, end, parent) = {
            let nodes = self.nodes.borrow();
            let (first, last) = (nodes.get(ids[0]), nodes.get(ids[ids.len() - 1]));
            (first.start, last.end, first.parent)
        };
        let (parts, stale) = loop {
            let (keys, stale) = self.keys_of_range(start, end);
            let parts = split(keys, self.fill_bytes());
            if ids.len() > 1 && parts.len() >= ids.len() {
                // They have filled up since.
                return Ok(());
            }
            let need = parts.len() + self.nodes_above(parent, ids.len(), parts.len());
            let level = self.journal.roots().level;
            assert!(
                parts.len() > PARTS_MAX || need <= step_nodes(level),
                "a step takes {need} nodes at depth {level}"
            );
            // Planned anew after a wait: what is in the map then must all be in the keys.
            if self.take_buckets(need).await? {
                break (parts, stale);
            }
        };
        let done = self
            .replace_leaves(ids, (start, end), parent, (parts, stale))
            .await;
        self.leave_buckets();
        done
    }

    async fn replace_leaves(
        &self,
        ids: Vec<NodeId>,
        (start, end): (Pos, Pos),
        parent: Option<NodeId>,
        (parts, stale): (Vec<Vec<Key>>, i64),
    ) -> Result<(), Stopped> {
        let pins: Vec<JournalSeq> = {
            let mut nodes = self.nodes.borrow_mut();
            let pins = ids.iter().filter_map(|&id| nodes.take_pending(id).pin);
            let pins = pins.collect();
            self.alloc.set_node_debt(nodes.debt());
            pins
        };
        let gathered = self.remnants.borrow().gather(start, end);
        // Gathering the keys was a step, making nodes of them is another.
        yield_now().await;
        let new = self.write_new(0, start, end, parts).await?;
        self.replace(parent, ids.clone(), &new).await?;
        self.swap_leaves(&ids, &new, stale);
        let mut deferred = self.deferred.borrow_mut();
        deferred.pins.extend(pins);
        deferred.written.push(gathered);
        Ok(())
    }

    async fn join_inner(&self, ids: Vec<NodeId>) -> Result<(), Stopped> {
        loop {
            let (keys, parent) = {
                let nodes = self.nodes.borrow();
                let keys: usize = ids.iter().map(|&id| nodes.get(id).children.len()).sum();
                (keys, nodes.get(ids[0]).parent)
            };
            let parts = (keys * MAX_BYTES).div_ceil(self.fill_bytes());
            if parts >= ids.len() {
                return Ok(());
            }
            let need = parts + self.nodes_above(parent, ids.len(), parts);
            if self.take_buckets(need).await? {
                break;
            }
        }
        let done = self.rewrite_inner(ids).await;
        self.leave_buckets();
        done
    }

    /// Makes the only child of the root the root, level by level.
    fn shrink_root(&self) {
        loop {
            let mut nodes = self.nodes.borrow_mut();
            let Some(root) = nodes.root() else { return };
            let only = match nodes.get(root).children.values().collect::<Vec<_>>()[..] {
                [&only] => only,
                _ => return,
            };
            let old = nodes.remove(root);
            nodes.get_mut(only).parent = None;
            let (key, level) = (nodes.get(only).key(), nodes.get(only).level);
            drop(nodes);
            self.journal.set_roots(|r| (r.root, r.level) = (key, level));
            let mut deferred = self.deferred.borrow_mut();
            deferred.root_changed = true;
            let generation = old.ptr.generation().next();
            deferred.buckets.push((old.bucket, generation));
        }
    }
}
