//! What reactors and the owner say to each other, and the rings that carry it.
//!
//! Each front has two rings of its own, one in each direction, with one writer and one reader: no
//! operation on them takes more than a load and a store.
//!
//! Bounds: each ring has a fixed size. A front has at most one message under way for each host I/O
//! and part; what does not fit waits in a list of the sender, which is bounded by the host I/Os in
//! flight ([`crate::request::PARTS`] each) and sent at its next poll.

use std::cell::RefCell;
use std::collections::VecDeque;
#[cfg(not(loom))]
use std::sync::Mutex;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(loom)]
use loom::sync::Mutex;
#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};

use rtrb::{Consumer, Producer, PushError, RingBuffer};

use crate::index::Extent;
use crate::units::{BucketNr, Gen, Sector};

/// Messages of a front that its owner has waiting at most: 72 KiB.
const INBOX_MESSAGES: usize = 1024;
/// Replies that a front has waiting at most.
const MAILBOX_REPLIES: usize = 1024;

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

/// One such write, as its front tells of it.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// Who asks.
    pub front: u32,
    /// Of the host I/O.
    pub token: u64,
    /// The volume's number.
    pub volume: u32,
    /// Where it begins.
    pub start: Sector,
    /// How long it is.
    pub sectors: u64,
    /// What is to be done.
    pub kind: Through,
}

impl Passage {
    /// Where it ends.
    pub fn end(&self) -> Sector {
        self.start + self.sectors
    }
}

/// From a reactor to the owner.
pub enum Message {
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
    BeginThrough(Passage),
    /// A copy of through data is on the cache device; comes before the `EndThrough`.
    Copied {
        /// The volume's number.
        volume: u32,
        /// What was written.
        extent: Extent,
    },
    /// The range has been changed, or that failed. Answered by [`Reply::Ended`].
    EndThrough {
        /// As at its beginning.
        passage: Passage,
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
    /// Others wait for space: open buckets that are not written to are wanted back.
    GiveBack,
    /// No bucket for dirty data, and none will come: who waits for space fails.
    Full,
}

/// Makes the rings between a front and its owner: the front's ends, and the owner's.
pub fn rings() -> (FrontRings, OwnerRings) {
    let (messages, inbox) = RingBuffer::new(INBOX_MESSAGES);
    let (replies, mailbox) = RingBuffer::new(MAILBOX_REPLIES);
    let front = FrontRings {
        messages: Sender::new(messages),
        mailbox: RefCell::new(mailbox),
    };
    let owner = OwnerRings {
        inbox: RefCell::new(inbox),
        replies: Sender::new(replies),
    };
    (front, owner)
}

/// A front's ends of its rings.
pub struct FrontRings {
    /// To the owner.
    pub messages: Sender<Message>,
    mailbox: RefCell<Consumer<Reply>>,
}

impl FrontRings {
    /// The next reply.
    #[inline]
    pub fn take(&self) -> Option<Reply> {
        self.mailbox.borrow_mut().pop().ok()
    }
}

/// The owner's ends of a front's rings.
pub struct OwnerRings {
    inbox: RefCell<Consumer<Message>>,
    /// To the front.
    pub replies: Sender<Reply>,
}

impl OwnerRings {
    /// Calls `look` with the next messages, at most `n` of them, and leaves them where they are.
    /// Returns how many there were.
    #[inline]
    pub fn look_ahead(&self, n: usize, look: impl FnMut(&Message)) -> usize {
        let mut inbox = self.inbox.borrow_mut();
        let n = inbox.slots().min(n);
        if let Ok(chunk) = inbox.read_chunk(n) {
            let (first, second) = chunk.as_slices();
            first.iter().chain(second).for_each(look);
        }
        n
    }

    /// The next message.
    #[inline]
    pub fn take(&self) -> Option<Message> {
        self.inbox.borrow_mut().pop().ok()
    }
}

/// The sending end of a ring, with what found it full. Order is kept.
pub struct Sender<T> {
    ring: RefCell<Producer<T>>,
    waiting: RefCell<VecDeque<T>>,
}

impl<T> Sender<T> {
    fn new(ring: Producer<T>) -> Sender<T> {
        Sender {
            ring: RefCell::new(ring),
            waiting: RefCell::default(),
        }
    }

    /// Sends, now or at the next [`flush`](Self::flush).
    #[inline]
    pub fn send(&self, it: T) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.is_empty() {
            waiting.push_back(it);
        } else if let Err(PushError::Full(it)) = self.ring.borrow_mut().push(it) {
            waiting.push_back(it);
        }
    }

    /// Sends what waited.
    #[inline]
    pub fn flush(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(it) = waiting.pop_front() {
            if let Err(PushError::Full(it)) = self.ring.borrow_mut().push(it) {
                waiting.push_front(it);
                return;
            }
        }
    }

    /// Whether nothing waits for room in the ring.
    pub fn is_flushed(&self) -> bool {
        self.waiting.borrow().is_empty()
    }
}

/// A front that has come up.
pub struct Hello {
    /// Its number.
    pub front: u32,
    /// The number of the volume that it serves.
    pub volume: u32,
    /// The owner's ends of its rings.
    pub rings: OwnerRings,
}

/// Where new fronts tell the owner of themselves. Not on the path of an I/O.
#[derive(Default)]
pub struct Door {
    waiting: Mutex<Vec<Hello>>,
    /// Whether anybody may be there: so that the owner need not take the lock to know.
    knocked: AtomicBool,
}

impl Door {
    /// Says hello.
    pub fn knock(&self, hello: Hello) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        waiting.push(hello);
        self.knocked.store(true, Ordering::Release);
    }

    /// Whether nobody is there.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.knocked.load(Ordering::Acquire)
    }

    /// Lets all in.
    pub fn open(&self) -> Vec<Hello> {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        self.knocked.store(false, Ordering::Relaxed);
        std::mem::take(&mut waiting)
    }
}

/// The rings are rtrb's; what is ours beside them is the door, and nobody may be left before it.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    fn hello(front: u32) -> Hello {
        let volume = 0;
        let (_, rings) = rings();
        Hello {
            front,
            volume,
            rings,
        }
    }

    fn let_in(door: &Door) -> usize {
        if door.is_empty() {
            0
        } else {
            door.open().len()
        }
    }

    #[test]
    fn who_knocks_is_let_in_once() {
        loom::model(|| {
            let door = Arc::new(Door::default());
            let fronts = [1, 2].map(|front| {
                let door = door.clone();
                thread::spawn(move || door.knock(hello(front)))
            });
            let early = let_in(&door);
            fronts.map(|front| front.join().unwrap());
            assert_eq!(early + let_in(&door), 2);
        });
    }
}
