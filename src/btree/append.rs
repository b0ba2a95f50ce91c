//! Appending runs to nodes.
//!
//! A run of a leaf says what the map has where it changed since the leaf was last written, and deletes
//! where the map has nothing. It says one thing more: **a run never lies strictly inside of a key of
//! an older run.** Where a change lies in the middle of such a key, the run goes on to the key's end,
//! with what the map has there: the *top piece*. Linux's own writer does the same, and its reader
//! relies on it ([`crate::format::linux`]).
//!
//! Which keys the older runs have is not kept in memory. Outside of what changed the map and the runs
//! agree, so the neighbours of a change tell:
//! - what the map has right before and right behind the change may be one key in an older run if both
//!   are parts of the same data;
//! - where the map has nothing that counts on both sides, a deletion may lie across the change, no
//!   longer than the longest deletion in the leaf's runs ([`Runs::longest_deletion`]).
//!
//! In doubt the top piece is written: it says what the disk says already.
//!
//! How a run reaches the disk, and when it counts: see [`write`](super::write).
//!
//! [`Runs::longest_deletion`]: super::runs::Runs::longest_deletion

use super::nodes::{NodeId, Span};
use super::remnants::Gathered;
use super::{DELETE_SECTORS_MAX, Pos, Tree, key_of, vouch};
use crate::canary::{self, Bug};
use crate::disk::{Stopped, answers};
use crate::format::bset;
use crate::format::key::{Key, Ptr, encoded_bytes};
use crate::index::Extent;
use crate::units::{Inode, JournalSeq, SECTOR_BYTES, Sector};

/// A run on its way to the disk.
pub(super) struct Append {
    id: NodeId,
    ptr: Ptr,
    seq: u64,
    sector: Sector,
    bytes: Vec<u8>,
    blocks: u32,
    pin: Option<JournalSeq>,
    /// Of a leaf: what the bytes say.
    keys: Vec<Key>,
    /// Of a leaf.
    gathered: Option<Gathered>,
}

/// How a leaf is written.
pub(super) enum Plan {
    /// There is nothing to write.
    Nothing,
    /// As a run behind its last.
    Append(Append),
    /// Anew.
    Rewrite,
}

/// What the map has right before and right behind a change, stale or not.
#[derive(Default)]
struct Neighbours {
    before: Option<Extent>,
    behind: Option<Extent>,
}

impl Tree {
    /// Decides how a leaf is written. For a run it takes what is pending, the pin included.
    pub(super) fn plan_append(&self, id: NodeId) -> Plan {
        let mut nodes = self.nodes.borrow_mut();
        let node = nodes.get(id);
        if node.misread || node.pending.whole {
            return Plan::Rewrite;
        }
        if node.pending.is_empty() && node.pending.pin.is_none() {
            return Plan::Nothing;
        }
        let spans = merge_spans(node.pending.spans.clone());
        let longest_deletion = node.runs.longest_deletion.into();
        let keys = self.keys_of_spans(&spans, (node.start, node.end), longest_deletion);
        if !self.fits(node, encoded_bytes(&keys)) {
            return Plan::Rewrite;
        }
        let gathered = self.remnants.borrow().gather(node.start, node.end);
        let pin = nodes.take_pending(id).pin;
        self.alloc.set_node_debt(nodes.debt());
        drop(nodes);
        if keys.is_empty() {
            if let Some(seq) = pin {
                self.journal.unpin(seq);
            }
            return Plan::Nothing;
        }
        let mut append = self.append_of(id, &keys);
        append.pin = pin;
        append.keys = keys;
        append.gathered = Some(gathered);
        Plan::Append(append)
    }

    /// A run of these keys behind a node's last.
    pub(super) fn append_of(&self, id: NodeId, keys: &[Key]) -> Append {
        let nodes = self.nodes.borrow();
        let node = nodes.get(id);
        let (ptr, seq, block_sectors) = (node.ptr, node.seq, self.block_sectors());
        let mut bytes = Vec::new();
        let magic = self.shape.set_magic;
        let blocks = bset::set_encode(seq, ptr, magic, keys, block_sectors, &mut bytes);
        Append {
            id,
            ptr,
            seq,
            sector: ptr.sector() + u64::from(node.runs.blocks * block_sectors),
            bytes,
            blocks,
            pin: None,
            keys: Vec::new(),
            gathered: None,
        }
    }

    /// A leaf's run: what the map has in the spans, with deletions where it has nothing, and the top
    /// pieces of older keys that a span may lie in. Spans are in order and apart from each other; the
    /// leaf covers `range`, and has deletions of `longest_deletion` sectors at most.
    fn keys_of_spans(&self, spans: &[Span], range: (Pos, Pos), longest_deletion: u64) -> Vec<Key> {
        let mut keys = Vec::new();
        for (i, span) in spans.iter().enumerate() {
            let inode = span.inode;
            let next = spans.get(i + 1).filter(|next| next.inode == inode);
            let to = match range.1 {
                (last, end) if last == inode => end,
                _ => Sector::MAX,
            };
            let to = next.map_or(to, |next| next.start);
            let from = match range.0 {
                (first, start) if first == inode => start,
                _ => Sector(0),
            };
            let near = self.keys_of_span(span, (from, to), &mut keys);
            let is_inside = span.start > from && span.end < to;
            let is_inside = is_inside && !canary::has(Bug::RunInside);
            if is_inside && self.may_be_one(&near, span, longest_deletion) {
                let reach = longest_deletion.max(span.end - span.start);
                let deleted_to = to.min(span.start + reach);
                self.push_top(&near, span, (to, deleted_to), &mut keys);
            }
        }
        keys
    }

    /// What the map has in one span. Its neighbours are looked at within `bounds`.
    fn keys_of_span(
        &self,
        span: &Span,
        bounds: (Sector, Sector),
        keys: &mut Vec<Key>,
    ) -> Neighbours {
        let mut near = Neighbours::default();
        let mut at = span.start;
        let before = Sector(span.start.0.saturating_sub(1)).max(bounds.0);
        let behind = Sector(span.end.0.saturating_add(1)).min(bounds.1);
        self.scan(span.inode, before, behind, &mut |e| {
            if e.start < span.start {
                near.before = Some(e);
            }
            if e.end() > span.end {
                near.behind = Some(e);
            }
            let (start, end) = (e.start.max(span.start), e.end().min(span.end));
            if start < end && self.is_fresh(&e) {
                let cut = e.cut(start, end);
                push_deletions(keys, span.inode, at, cut.start);
                keys.push(key_of(span.inode, &cut));
                at = cut.end();
            }
            true
        });
        push_deletions(keys, span.inode, at, span.end);
        near
    }

    /// Whether what stands on both sides of a span may be one key of an older run.
    fn may_be_one(&self, near: &Neighbours, span: &Span, longest_deletion: u64) -> bool {
        if let (Some(a), Some(b)) = (&near.before, &near.behind) {
            let offset = |e: &Extent| e.at.0.wrapping_sub(e.start.0);
            let same = a.generation == b.generation && a.dirty == b.dirty && offset(a) == offset(b);
            if same {
                return true;
            }
        }
        let counts = |e: &Option<Extent>| e.as_ref().is_some_and(|e| self.is_fresh(e));
        let nothing = !counts(&near.before) && !counts(&near.behind);
        nothing && longest_deletion > span.end - span.start + 1
    }

    /// The top piece behind a span: what the map has there, up to the first bound, or a deletion up to
    /// the second and no further than what the map has next.
    fn push_top(
        &self,
        near: &Neighbours,
        span: &Span,
        (to, deleted_to): (Sector, Sector),
        keys: &mut Vec<Key>,
    ) {
        match near.behind.filter(|e| self.is_fresh(e)) {
            Some(e) => {
                let top = e.cut(span.end, e.end().min(to));
                keys.push(key_of(span.inode, &top));
            }
            None => {
                // A stale key lies across the span, or a deletion.
                let stale_to = near.behind.map_or(span.end, |e| e.end().min(to));
                let mut end = deleted_to.max(stale_to);
                self.scan(span.inode, span.end, end, &mut |e| {
                    if self.is_fresh(&e) {
                        end = e.start;
                        return false;
                    }
                    true
                });
                push_deletions(keys, span.inode, span.end, end);
            }
        }
    }

    pub(super) async fn write_appends(&self, mut appends: Vec<Append>) -> Result<(), Stopped> {
        self.write_tails(&appends).await?;
        let speaks_of_data = appends.iter().any(|a| !a.keys.is_empty());
        let failed = self.flush_data(speaks_of_data).await?;
        if !failed.is_empty() && self.strike_appends(&mut appends, &failed) {
            self.write_tails(&appends).await?;
            self.flush_data(false).await?;
        }
        let head_bytes = self.disk.block_sectors() as usize * SECTOR_BYTES;
        let heads = appends.iter().map(|a| {
            let mut buf = self.disk.alloc(head_bytes);
            buf.copy_from_slice(&a.bytes[..head_bytes]);
            self.disk.write(a.sector, buf)
        });
        for (_, done) in answers(heads).await {
            self.written(done)?;
        }
        for append in appends {
            let mut nodes = self.nodes.borrow_mut();
            let runs = &mut nodes.get_mut(append.id).runs;
            runs.append(&append.keys, append.blocks, &self.shape.geometry);
            drop(nodes);
            self.deferred.borrow_mut().written.extend(append.gathered);
            if let Some(seq) = append.pin {
                self.journal.unpin(seq);
            }
        }
        Ok(())
    }

    /// Writes all of the runs but their first blocks: none of them counts yet.
    async fn write_tails(&self, appends: &[Append]) -> Result<(), Stopped> {
        let head_bytes = self.disk.block_sectors() as usize * SECTOR_BYTES;
        let tails = appends.iter().filter(|a| a.bytes.len() > head_bytes);
        let tails = tails.map(|a| {
            let mut buf = self.disk.alloc(a.bytes.len() - head_bytes);
            buf.copy_from_slice(&a.bytes[head_bytes..]);
            let at = a.sector + u64::from(self.disk.block_sectors());
            self.disk.write(at, buf)
        });
        for (_, done) in answers(tails).await {
            self.written(done)?;
        }
        Ok(())
    }

    /// Takes out of the runs what nobody vouches for: see [`vouch`]. Returns whether there was any.
    fn strike_appends(&self, appends: &mut [Append], failed: &[Inode]) -> bool {
        let mut any = false;
        for append in appends {
            let mut struck = Vec::new();
            vouch::delete(&mut append.keys, failed, &mut struck);
            if struck.is_empty() {
                continue;
            }
            any = true;
            append.bytes.clear();
            // A deletion is shorter than what it stands for: the run does not grow. It covers the
            // same range, so that it lies inside of no older key either.
            append.blocks = bset::set_encode(
                append.seq,
                append.ptr,
                self.shape.set_magic,
                &append.keys,
                self.block_sectors(),
                &mut append.bytes,
            );
            self.deferred.borrow_mut().unvouched.extend(struck);
        }
        any
    }
}

/// Deletion keys over [start, end).
fn push_deletions(keys: &mut Vec<Key>, inode: Inode, start: Sector, end: Sector) {
    let mut at = start;
    while at < end {
        let size = (end - at).min(DELETE_SECTORS_MAX);
        at += size;
        keys.push(Key {
            inode,
            end: at,
            size_sectors: size as u32,
            dirty: false,
            ptr: None,
        });
    }
}

/// Sorts spans and joins those that touch.
fn merge_spans(mut spans: Vec<Span>) -> Vec<Span> {
    // As one number each, so that sorting does not branch; the end matters to no one here.
    spans.sort_unstable_by_key(|span| u128::from(span.inode.0) << 64 | u128::from(span.start.0));
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if last.inode == span.inode && span.start <= last.end => {
                last.end = last.end.max(span.end);
            }
            _ => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_that_touch_or_overlap_become_one() {
        let span = |start, end| Span {
            inode: Inode(1),
            start: Sector(start),
            end: Sector(end),
        };
        let merged = merge_spans(vec![span(8, 16), span(0, 8), span(40, 48), span(12, 20)]);
        assert_eq!(merged, [span(0, 20), span(40, 48)]);
    }

    #[test]
    fn long_holes_become_several_deletions() {
        let mut keys = Vec::new();
        push_deletions(&mut keys, Inode(0), Sector(8), Sector(70_000));
        assert_eq!(keys.len(), 3);
        assert_eq!(keys[0].start(), Sector(8));
        assert_eq!(keys[2].end, Sector(70_000));
    }
}
