//! What the owner has of each front, and whose message comes next.
//!
//! Fronts take turns; a message stays in its front's ring until it is handled. What is in a ring is
//! looked at a few messages ahead, for the sake of memory alone.

use std::cell::RefCell;

use super::Owner;
use crate::request::msg::{Hello, Message, OwnerRings};
use crate::units::{BucketNr, Sector};

/// Messages of one front that are handled before another's turn comes.
const MESSAGES_A_TURN: usize = 64;
/// Messages for which memory is fetched at a time.
const MESSAGES_AHEAD: usize = 8;

/// The turn of a front.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    /// Its number.
    front: usize,
    /// How many messages of it are still handled.
    left: usize,
    /// For so many of them what they look at has been fetched.
    known: usize,
}

impl Turn {
    pub(super) fn of(front: usize) -> Turn {
        Turn {
            front,
            left: MESSAGES_A_TURN,
            known: 0,
        }
    }
}

pub(super) struct FrontEnd {
    /// The number of the volume that it serves.
    pub(super) volume: u32,
    pub(super) rings: OwnerRings,
    /// Buckets that it writes to, pinned.
    pub(super) granted: RefCell<Vec<BucketNr>>,
}

impl Owner {
    /// Takes in the fronts that have come up.
    pub(super) fn let_in(&self) {
        let mut fronts = self.fronts.borrow_mut();
        for Hello {
            front,
            volume,
            rings,
        } in self.set.door.open()
        {
            let slot = front as usize;
            if fronts.len() <= slot {
                fronts.resize_with(slot + 1, || None);
            }
            fronts[slot] = Some(FrontEnd {
                volume,
                rings,
                granted: RefCell::default(),
            });
        }
    }

    /// The next message of the front whose turn it is, or of the next that has one.
    pub(super) fn next_message(&self) -> Option<Message> {
        let fronts = self.fronts.borrow();
        let mut turn = self.turn.get();
        // Each front once, and the first one again: its share may have been used up.
        for _ in 0..=fronts.len() {
            if let Some(Some(front)) = fronts.get(turn.front) {
                if turn.left > 0 {
                    if turn.known == 0 {
                        turn.known = self.prefetch(front);
                    }
                    if let Some(message) = front.rings.take() {
                        turn.left -= 1;
                        turn.known = turn.known.saturating_sub(1);
                        self.turn.set(turn);
                        return Some(message);
                    }
                }
            }
            turn = Turn::of(if turn.front + 1 < fronts.len() {
                turn.front + 1
            } else {
                0
            });
        }
        self.turn.set(turn);
        None
    }

    /// Fetches what the next messages of a front will look at, all at once: one after the other
    /// each would wait for memory. Returns how many messages those are.
    fn prefetch(&self, front: &FrontEnd) -> usize {
        let volumes = self.volumes.borrow();
        let Some(Some(volume)) = volumes.get(front.volume as usize) else {
            return 0;
        };
        let (mut starts, mut n) = ([Sector(0); MESSAGES_AHEAD], 0);
        let known = front.rings.look_ahead(MESSAGES_AHEAD, |message| {
            let start = match message {
                Message::Insert { extent, .. } | Message::Fill { extent, .. } => extent.start,
                Message::BeginThrough(passage) => passage.start,
                _ => return,
            };
            volume.versions.borrow().prefetch(start);
            starts[n] = start;
            n += 1;
        });
        self.tree.prefetch(volume.inode, &starts[..n]);
        known
    }
}
