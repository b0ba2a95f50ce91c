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
use crate::request::msg::{Message, Reply, Through, Verdict};
use crate::task::yield_now;
use crate::units::Sector;

/// The longest range that is deleted at once: every sector of it might be an extent.
const AT_ONCE_SECTORS_MAX: u64 = 2048;

/// Writes that are let go in one step.
const LET_GO_A_STEP: usize = 256;

/// A write for which the cache has forgotten its range, not yet durably.
struct Leave {
    front: u32,
    token: u64,
    volume: Rc<Volume>,
    start: Sector,
    end: Sector,
}

/// Such writes: one task waits for the journal on behalf of all. Bounded by the host I/Os in flight.
#[derive(Default)]
pub(super) struct Going {
    waiting: RefCell<Vec<Leave>>,
    /// Whether there is that task.
    is_watched: Cell<bool>,
}

impl Owner {
    pub(super) fn begin_through(
        self: &Rc<Self>,
        front: u32,
        token: u64,
        number: u32,
        (start, end): (Sector, Sector),
        kind: Through,
    ) {
        let verdict = move |verdict| Reply::Verdict { token, verdict };
        if self.latch.check().is_err() {
            return self.reply(front, verdict(Verdict::Failed));
        }
        let volume = self.volume(number);
        let written_back = volume.is_writing_back(start, end);
        let (cached, dirty) = self.finds(&volume, start, end, kind);
        if kind == Through::Write && (written_back || dirty) && !volume.leaving.get() {
            return self.reply(front, verdict(Verdict::Cache));
        }
        if written_back || dirty || volume.throughs.borrow().overlaps(start, end) {
            let message = Message::BeginThrough {
                front,
                token,
                volume: number,
                start,
                sectors: end - start,
                kind,
            };
            return self.parked.borrow_mut().push(message);
        }
        volume.throughs.borrow_mut().hold(start, end);
        volume.changed(start, end);
        if !cached {
            return self.reply(front, verdict(Verdict::Go { flush: false }));
        }
        let is_short = kind == Through::Write && end - start <= AT_ONCE_SECTORS_MAX;
        if is_short && self.tree.delete_now(volume.inode, start, end).is_ok() {
            return self.go_when_durable(Leave {
                front,
                token,
                volume,
                start,
                end,
            });
        }
        let owner = self.clone();
        self.spawn(async move {
            let flush = kind.is_over_dirty() && owner.tree.dirty_sectors(volume.inode) > 0;
            let done = owner.forget(&volume, start, end).await;
            let word = match done {
                Ok(()) => Verdict::Go { flush },
                Err(Stopped) => {
                    // Who waits for the range is told so too.
                    owner.release(&volume, start, end);
                    Verdict::Failed
                }
            };
            owner.reply(front, verdict(word));
        });
    }

    /// Whether there is anything in a range that the cache has, or would have after a crash; and, for host
    /// data, whether some of it is dirty.
    fn finds(&self, volume: &Volume, start: Sector, end: Sector, kind: Through) -> (bool, bool) {
        let (mut cached, mut dirty) = (false, false);
        self.tree.scan(volume.inode, start, end, &mut |e| {
            cached |= !self.tree.is_stale_for_good(&e);
            dirty = kind == Through::Write && e.dirty && self.tree.is_fresh(&e);
            !dirty && (kind == Through::Write || !cached)
        });
        (cached, dirty)
    }

    /// Lets a write go once all that is in the journal now is durable.
    fn go_when_durable(self: &Rc<Self>, leave: Leave) {
        self.going.waiting.borrow_mut().push(leave);
        if self.going.is_watched.replace(true) {
            return;
        }
        let owner = self.clone();
        self.spawn(async move {
            loop {
                let leaves = owner.going.waiting.take();
                if leaves.is_empty() {
                    break;
                }
                let done = owner.tree.journal.commit().await;
                for some in leaves.chunks(LET_GO_A_STEP) {
                    some.iter().for_each(|leave| owner.let_go(leave, done));
                    yield_now().await;
                }
            }
            owner.going.is_watched.set(false);
        });
    }

    fn let_go(self: &Rc<Self>, leave: &Leave, done: Result<(), Stopped>) {
        let verdict = match done {
            Ok(()) => Verdict::Go { flush: false },
            Err(Stopped) => {
                // Who waits for the range is told so too.
                self.release(&leave.volume, leave.start, leave.end);
                Verdict::Failed
            }
        };
        let token = leave.token;
        self.reply(leave.front, Reply::Verdict { token, verdict });
    }

    /// Deletes all clean extents in a range from the map, durably.
    pub(in crate::request) async fn forget(
        &self,
        volume: &Volume,
        start: Sector,
        end: Sector,
    ) -> Result<(), Stopped> {
        self.tree.delete(volume.inode, start, end, true).await?;
        self.tree.journal.commit().await
    }

    pub(super) fn end_through(
        self: &Rc<Self>,
        front: u32,
        token: u64,
        number: u32,
        (start, end): (Sector, Sector),
        kind: Through,
        ok: bool,
    ) {
        let volume = self.volume(number);
        // Even a failed write may have changed something.
        volume.written_through.set(volume.written_through.get() + 1);
        if ok && kind.is_over_dirty() {
            let owner = self.clone();
            return self.spawn(async move {
                let inode = volume.inode;
                let ok = owner.tree.delete(inode, start, end, false).await.is_ok();
                owner.release(&volume, start, end);
                owner.reply(front, Reply::Ended { token, ok });
            });
        }
        self.release(&volume, start, end);
        // A failed transfer is known to the front already.
        self.reply(front, Reply::Ended { token, ok: true });
    }
}
