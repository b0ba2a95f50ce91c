//! Writes that go past the cache: which may, and what the map forgets for them.
//!
//! A range is held from the verdict to the end of the write: nobody fills it, writes it back or writes
//! it meanwhile. What is cached of it is deleted first, and the write begins once the deletion is in the
//! journal for good: no crash may bring back old data over a write that was acknowledged, whether
//! anyone flushed or not. Until then reads find the old data in the cache or on the backing device, and
//! after a crash either those, the new ones, or as with any device a mixture of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::{Owner, Volume};
use crate::disk::Stopped;
use crate::request::msg::{Message, Passage, Reply, Through, Verdict};
use crate::task::yield_now;
use crate::units::Sector;

/// The longest range that is deleted at once: every sector of it might be an extent.
const AT_ONCE_SECTORS_MAX: u64 = 2048;

/// Writes that are let go in one step.
const LET_GO_A_STEP: usize = 256;

/// Writes for which the cache has forgotten their ranges, not yet durably: one task waits for the journal
/// on behalf of all. Bounded by the host I/Os in flight.
#[derive(Default)]
pub(super) struct Going {
    waiting: RefCell<Vec<Passage>>,
    /// Whether there is that task.
    is_watched: Cell<bool>,
}

impl Owner {
    pub(super) fn begin_through(self: &Rc<Self>, passage: Passage) {
        if self.latch.check().is_err() {
            return self.judge(&passage, Verdict::Failed);
        }
        let volume = self.volume(passage.volume);
        let (start, end, is_write) = (passage.start, passage.end(), passage.kind == Through::Write);
        let written_back = volume.is_writing_back(start, end);
        let dirty = is_write && self.finds_dirty(&volume, &passage);
        if is_write && (written_back || dirty) && !volume.leaving.get() {
            return self.judge(&passage, Verdict::Cache);
        }
        if written_back || dirty || volume.throughs.borrow().overlaps(start, end) {
            let message = Message::BeginThrough(passage);
            return self.parked.borrow_mut().push(message);
        }
        volume.throughs.borrow_mut().hold(start, end);
        volume.changed(start, end);
        // A longer one is looked at in steps.
        let is_short = passage.sectors <= AT_ONCE_SECTORS_MAX;
        if is_short && !self.tree.may_come_back(volume.inode, start, end) {
            return self.judge(&passage, Verdict::Go { flush: false });
        }
        let at_once = is_short && is_write;
        if at_once && self.tree.delete_now(volume.inode, start, end).is_ok() {
            return self.go_when_durable(passage);
        }
        let owner = self.clone();
        self.spawn(async move {
            let flush = owner.goes_under_dirty(&volume, passage.kind);
            if flush {
                volume.under_dirty.borrow_mut().insert(start);
            }
            let done = owner.forget(&volume, start, end).await;
            owner.let_go(&passage, flush, done);
        });
    }

    /// Whether a write goes under dirty data, which are forgotten once it is durable: there are some in
    /// the volume, and what it leaves on the backing device is known.
    fn goes_under_dirty(&self, volume: &Volume, kind: Through) -> bool {
        self.tree.dirty_sectors(volume.inode) > 0
            && match kind {
                Through::Write => false,
                Through::Zeroes | Through::Rescue => true,
                Through::Unmap => unmap_clears(volume),
            }
    }

    fn judge(&self, passage: &Passage, verdict: Verdict) {
        let token = passage.token;
        self.reply(passage.front, Reply::Verdict { token, verdict });
    }

    /// Whether something in a range is dirty.
    fn finds_dirty(&self, volume: &Volume, passage: &Passage) -> bool {
        let (start, end, mut dirty) = (passage.start, passage.end(), false);
        self.tree.scan(volume.inode, start, end, &mut |e| {
            dirty = e.dirty && self.tree.is_fresh(&e);
            !dirty
        });
        dirty
    }

    /// Lets a write go once all that is in the journal now is durable.
    fn go_when_durable(self: &Rc<Self>, passage: Passage) {
        self.going.waiting.borrow_mut().push(passage);
        if self.going.is_watched.replace(true) {
            return;
        }
        let owner = self.clone();
        self.spawn(async move {
            loop {
                let passages = owner.going.waiting.take();
                if passages.is_empty() {
                    break;
                }
                let done = owner.tree.journal.commit().await;
                for some in passages.chunks(LET_GO_A_STEP) {
                    some.iter().for_each(|it| owner.let_go(it, false, done));
                    yield_now().await;
                }
            }
            owner.going.is_watched.set(false);
        });
    }

    /// Lets a write go whose range was forgotten, if that is durable.
    fn let_go(self: &Rc<Self>, passage: &Passage, flush: bool, done: Result<(), Stopped>) {
        let verdict = match done {
            Ok(()) => Verdict::Go { flush },
            Err(Stopped) => {
                // Who waits for the range is told so too.
                let volume = self.volume(passage.volume);
                volume.under_dirty.borrow_mut().remove(&passage.start);
                self.release(&volume, passage.start, passage.end());
                Verdict::Failed
            }
        };
        self.judge(passage, verdict);
    }

    /// Deletes all clean extents in a range from the map, durably.
    pub(in crate::request) async fn forget(
        &self,
        volume: &Volume,
        start: Sector,
        end: Sector,
    ) -> Result<(), Stopped> {
        self.delete_durably(volume, start, end, true).await
    }

    /// Deletes what is in a range from the map, durably, but for what is dirty if that is said. With the
    /// deletions everything is durable that came before them: what is dirty may lie over clean keys
    /// that the disk still has.
    pub(super) async fn delete_durably(
        &self,
        volume: &Volume,
        start: Sector,
        end: Sector,
        keep_dirty: bool,
    ) -> Result<(), Stopped> {
        let (tree, inode) = (&self.tree, volume.inode);
        tree.delete(inode, start, end, keep_dirty).await?;
        tree.journal.commit().await
    }

    pub(super) fn end_through(self: &Rc<Self>, passage: Passage, ok: bool) {
        let (front, token) = (passage.front, passage.token);
        let (start, end) = (passage.start, passage.end());
        let volume = self.volume(passage.volume);
        // Even a failed write may have changed something.
        volume.unflushed.wrote();
        let under_dirty = volume.under_dirty.borrow_mut().remove(&start);
        // A device may have become one of which that is not known: a snapshot was taken of it.
        let is_known = passage.kind != Through::Unmap || unmap_clears(&volume);
        if ok && under_dirty && is_known {
            let owner = self.clone();
            return self.spawn(async move {
                // Durable before it is answered: the write may stand on the device for good.
                let done = owner.delete_durably(&volume, start, end, false).await;
                owner.release(&volume, start, end);
                let ok = done.is_ok();
                owner.reply(front, Reply::Ended { token, ok });
            });
        }
        self.release(&volume, start, end);
        // A failed transfer is known to the front already.
        self.reply(front, Reply::Ended { token, ok: true });
    }
}

/// Whether the backing device reads as zeros what was unmapped.
fn unmap_clears(volume: &Volume) -> bool {
    let backing = volume.backing.as_ref();
    backing.is_some_and(|disk| disk.unmap_reads_zeros())
}
