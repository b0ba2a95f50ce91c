//! What reactors and the owner say to each other, and the rings that carry it.
//!
//! Bounds: each ring has a fixed size. A front has at most one message under way for each host I/O
//! and part; what does not fit waits in a list of the sender, which is bounded by the host I/Os in
//! flight ([`crate::request::PARTS`] each) and sent at its next poll.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::index::Extent;
use crate::units::{BucketNr, Gen, Sector};

/// Messages that a set's owner has waiting at most.
pub const INBOX_MESSAGES: usize = 16384;
/// Replies that a front has waiting at most.
pub const MAILBOX_REPLIES: usize = 4096;

/// A write to the backing device that the owner must know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Host data.
    Write,
    /// Zeros.
    Zeroes,
    /// A discard.
    Unmap,
    /// Host data that the cache device did not take.
    Rescue,
}

impl Through {
    /// Whether it goes under dirty data, which are forgotten once it is durable.
    pub fn is_over_dirty(self) -> bool {
        matches!(self, Through::Zeroes | Through::Rescue)
    }
}

/// From a reactor to the owner.
pub enum Message {
    /// A front has come up; its replies go there.
    Hello(u32, Arc<Mailbox>),
    /// A front is gone.
    Bye(u32),
    /// Dirty data are on the cache device. Answered by [`Reply::Inserted`].
    Insert {
        /// Who asks.
        front: u32,
        /// Of the host I/O.
        token: u64,
        /// The volume's number.
        volume: u32,
        /// What was written.
        extent: Extent,
    },
    /// A range of the backing device is about to be changed. Answered by [`Reply::Verdict`].
    BeginThrough {
        /// Who asks.
        front: u32,
        /// Of the host I/O.
        token: u64,
        /// The volume's number.
        volume: u32,
        /// Where it begins.
        start: Sector,
        /// How long it is.
        sectors: u64,
        /// What is to be done.
        kind: Through,
    },
    /// A copy of through data is on the cache device; comes before the `EndThrough`.
    Copied {
        /// The volume's number.
        volume: u32,
        /// What was written.
        extent: Extent,
    },
    /// The range has been changed, or that failed. Answered by [`Reply::Ended`].
    EndThrough {
        /// Who asks.
        front: u32,
        /// Of the host I/O.
        token: u64,
        /// The volume's number.
        volume: u32,
        /// Where it begins.
        start: Sector,
        /// How long it is.
        sectors: u64,
        /// What was done.
        kind: Through,
        /// Whether it went well.
        ok: bool,
    },
    /// Data read from the backing device are on the cache device.
    Fill {
        /// The volume's number.
        volume: u32,
        /// What was written.
        extent: Extent,
        /// The count of changes before the range was looked up.
        seen: u64,
    },
    /// Answered by [`Reply::Flushed`].
    Flush {
        /// Who asks.
        front: u32,
        /// Of the host I/O.
        token: u64,
        /// The volume's number.
        volume: u32,
    },
    /// Forget a range of a volume without a backing device. Answered by [`Reply::Ended`].
    Discard {
        /// Who asks.
        front: u32,
        /// Of the host I/O.
        token: u64,
        /// The volume's number.
        volume: u32,
        /// Where it begins.
        start: Sector,
        /// How long it is.
        sectors: u64,
    },
    /// A bucket is wanted. Answered by [`Reply::Grant`], in time.
    WantBucket {
        /// Who asks.
        front: u32,
        /// For dirty data: may wait until write-back has made room. Else answered by
        /// [`Reply::Dry`] when there is none.
        dirty: bool,
    },
    /// The cache device failed to read or write an extent.
    CacheError {
        /// The volume's number.
        volume: u32,
        /// What was read, or was to be written.
        extent: Extent,
        /// Whether it was a write.
        write: bool,
    },
    /// A granted bucket will not be written to any more.
    DoneBucket(BucketNr),
}

/// What the owner decides about a through write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The range is yours. `flush` says that dirty data lie under it: flush before you end.
    Go {
        /// See above.
        flush: bool,
    },
    /// Write into the cache instead.
    Cache,
    /// The set has stopped.
    Failed,
}

/// From the owner to a reactor.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// The extent is in the map (or, not `ok`, the set has stopped).
    Inserted {
        /// Of the host I/O.
        token: u64,
        /// Whether it is.
        ok: bool,
    },
    /// What to do.
    Verdict {
        /// Of the host I/O.
        token: u64,
        /// This.
        verdict: Verdict,
    },
    /// The range is released.
    Ended {
        /// Of the host I/O.
        token: u64,
        /// Whether all went well.
        ok: bool,
    },
    /// Everything acknowledged before the flush is durable, if `ok`.
    Flushed {
        /// Of the host I/O.
        token: u64,
        /// Whether it is.
        ok: bool,
    },
    /// A bucket to write to.
    Grant {
        /// For dirty data or for clean.
        dirty: bool,
        /// Which.
        bucket: BucketNr,
        /// Its generation.
        generation: Gen,
    },
    /// No bucket for clean data now.
    Dry,
    /// No bucket for dirty data, and none will come: who waits for space fails.
    Full,
}

/// The ring of replies to one front.
pub struct Mailbox(ArrayQueue<Reply>);

impl Default for Mailbox {
    fn default() -> Self {
        Mailbox(ArrayQueue::new(MAILBOX_REPLIES))
    }
}

impl Mailbox {
    /// The next reply.
    #[inline]
    pub fn take(&self) -> Option<Reply> {
        self.0.pop()
    }
}

/// The owner's end of a mailbox.
pub struct Outbox {
    mailbox: Arc<Mailbox>,
    waiting: RefCell<VecDeque<Reply>>,
}

impl Outbox {
    /// Sends to this mailbox.
    pub fn new(mailbox: Arc<Mailbox>) -> Outbox {
        Outbox {
            mailbox,
            waiting: RefCell::default(),
        }
    }

    /// Sends, now or at the next [`flush`](Self::flush).
    pub fn send(&self, reply: Reply) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() {
            if let Err(reply) = self.mailbox.0.push(reply) {
                waiting.push_back(reply);
            }
        } else {
            waiting.push_back(reply);
        }
    }

    /// Sends what waited.
    pub fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(reply) = waiting.pop_front() {
            if let Err(reply) = self.mailbox.0.push(reply) {
                waiting.push_front(reply);
                return;
            }
        }
    }
}

/// The ring of messages to a set's owner.
pub struct Inbox(ArrayQueue<Message>);

impl Default for Inbox {
    fn default() -> Self {
        Inbox(ArrayQueue::new(INBOX_MESSAGES))
    }
}

impl Inbox {
    /// The next message.
    pub fn take(&self) -> Option<Message> {
        self.0.pop()
    }

    /// Whether no message waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a message, or gives it back when the ring is full.
    pub fn push(&self, message: Message) -> Result<(), Message> {
        self.0.push(message)
    }
}
