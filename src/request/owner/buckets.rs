//! Who gets which bucket for data: the fronts, each for its own open buckets.
//!
//! Buckets for dirty data are given in the order in which they were asked for; who finds none stands
//! in line, which the host writes in flight bound. Clean data get one only when there are some to
//! spare. A bucket is pinned until its front says that it is full and all its data are in the map,
//! or goes. While somebody stands in line and nothing can be reused, fronts are asked to give back
//! what they do not write to: many idle ones would else hold all of a small cache.

use super::Owner;
use crate::alloc::Purpose;
use crate::request::msg::Reply;
use crate::units::{BucketNr, Gen};

/// How long writes wait for space when nothing makes any; no write-back, no moving of data.
const STUCK_US: u64 = 10_000_000;
/// How often fronts are asked to give buckets back while writes wait.
const GIVE_BACK_US: u64 = 100_000;

/// A moment of the line for space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck {
    since_us: u64,
    /// What changes when anything makes space.
    dirty_sectors: u64,
    waiting: usize,
}

impl Owner {
    pub(super) fn want_bucket(&self, front: u32, dirty: bool) {
        if dirty {
            self.wanting.borrow_mut().push_back(front);
            self.tree.alloc.want_data();
            return self.grant_wanting();
        }
        // Clean data are a luxury: what is left is for dirty data.
        let alloc = &self.tree.alloc;
        let taken = if alloc.data_ready() > 2 && self.tree.journal.has_room(1) {
            alloc.take(Purpose::Data)
        } else {
            alloc.want_data();
            None
        };
        match taken {
            Some(taken) => self.grant(front, false, taken),
            None => self.reply(front, Reply::Dry),
        }
    }

    fn grant(&self, front: u32, dirty: bool, taken: (BucketNr, Gen)) {
        let (bucket, generation) = taken;
        let known = match self.fronts.borrow().get(front as usize) {
            Some(Some(end)) => {
                end.granted.borrow_mut().push(bucket);
                true
            }
            _ => false,
        };
        if known {
            self.reply(
                front,
                Reply::Grant {
                    dirty,
                    bucket,
                    generation,
                },
            );
        } else {
            self.tree.alloc.unpin(bucket);
        }
    }

    pub(super) fn grant_wanting(&self) {
        loop {
            let next = self.wanting.borrow().front().copied();
            let Some(front) = next else { break };
            // Looked at in every poll: the allocator knows already that somebody waits.
            if self.tree.alloc.data_ready() == 0 {
                break;
            }
            let Some(taken) = self.tree.alloc.take(Purpose::Data) else {
                break;
            };
            self.wanting.borrow_mut().pop_front();
            self.grant(front, true, taken);
        }
    }

    /// Asks all fronts for the buckets that they do not write to, when writes wait for space and no
    /// bucket can be reused.
    pub(super) fn ask_back(&self) {
        let alloc = &self.tree.alloc;
        let waits = !self.wanting.borrow().is_empty();
        let now_us = self.exec.now_us();
        if !waits || !alloc.is_scarce() || alloc.data_ready() > 0 || now_us < self.ask_back_us.get()
        {
            return;
        }
        self.ask_back_us.set(now_us + GIVE_BACK_US);
        for front in self.fronts.borrow().iter().flatten() {
            front.rings.replies.send(Reply::GiveBack);
        }
    }

    /// Tells those in line for space that there is none, when for a long time nothing was written
    /// back and no bucket became free: volumes without a backing device have filled the cache, or
    /// the backing devices fail. A host must have its answer.
    pub(super) fn give_up(&self) {
        let alloc = &self.tree.alloc;
        let now = Stuck {
            since_us: self.exec.now_us(),
            dirty_sectors: alloc.dirty_sectors(),
            waiting: self.wanting.borrow().len(),
        };
        let waits = now.waiting > 0 && alloc.is_starving() && alloc.data_ready() == 0;
        let before = self.stuck.get().filter(|before| {
            waits && before.dirty_sectors == now.dirty_sectors && before.waiting <= now.waiting
        });
        let Some(before) = before else {
            return self.stuck.set(waits.then_some(now));
        };
        if now.since_us < before.since_us + STUCK_US {
            return;
        }
        self.stuck.set(None);
        log::error!("the cache is full of dirty data that cannot be written back: writes fail");
        for front in self.wanting.take() {
            self.reply(front, Reply::Full);
        }
    }

    pub(super) fn done_bucket(&self, bucket: BucketNr) {
        for front in self.fronts.borrow().iter().flatten() {
            let mut granted = front.granted.borrow_mut();
            if let Some(i) = granted.iter().position(|&b| b == bucket) {
                granted.swap_remove(i);
                drop(granted);
                return self.tree.alloc.unpin(bucket);
            }
        }
    }
}
