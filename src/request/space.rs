//! A reactor's own open buckets: allocating space is a local bump.
//!
//! Two streams, so that dirty and clean data do not share buckets. Each has a bucket that is
//! written to and, once that is half used, the next one asked for ahead. A bucket that is used up
//! is given back when the last write to it has been reported to the owner, who holds it pinned
//! until then.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crate::units::{BucketNr, Gen, Sector};

/// A granted bucket.
#[derive(Clone, Copy, Debug)]
struct Open {
    bucket: BucketNr,
    generation: Gen,
    at: Sector,
    end: Sector,
    /// Pieces handed out that the owner has not been told of.
    pieces: u32,
}

/// A piece of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first sector on the cache device.
    pub at: Sector,
    /// The generation for pointers to it.
    pub generation: Gen,
    /// Its length.
    pub sectors: u32,
}

/// A stream of open buckets. At most `AHEAD` are held that nothing was written to.
#[derive(Default)]
pub struct Stream {
    open: RefCell<VecDeque<Open>>,
    used_up: RefCell<Vec<Open>>,
    asked: Cell<bool>,
}

/// Buckets held ahead of the one in use.
const AHEAD: usize = 1;

impl Stream {
    /// Takes up to `want` sectors in one piece; `None` when no bucket is open.
    pub fn take(&self, want: u32) -> Option<Piece> {
        let mut open = self.open.borrow_mut();
        let front = open.front_mut()?;
        let sectors = (front.end - front.at).min(u64::from(want)) as u32;
        let piece = Piece {
            at: front.at,
            generation: front.generation,
            sectors,
        };
        front.at += u64::from(sectors);
        front.pieces += 1;
        if front.at == front.end {
            if let Some(full) = open.pop_front() {
                self.used_up.borrow_mut().push(full);
            }
        }
        Some(piece)
    }

    /// Whether the owner should be asked for a bucket now; if so, it counts as asked.
    pub fn wants_more(&self) -> bool {
        if self.asked.get() || self.open.borrow().len() > AHEAD {
            return false;
        }
        self.asked.set(true);
        true
    }

    /// A bucket has come.
    pub fn granted(&self, bucket: BucketNr, generation: Gen, start: Sector, sectors: u32) {
        self.asked.set(false);
        self.open.borrow_mut().push_back(Open {
            bucket,
            generation,
            at: start,
            end: start + u64::from(sectors),
            pieces: 0,
        });
    }

    /// None has come.
    pub fn dry(&self) {
        self.asked.set(false);
    }

    /// The owner has been told of a piece at `at` (or it came to nothing). Returns the bucket if
    /// that was the last piece of a used-up one.
    pub fn reported(&self, bucket: BucketNr) -> Option<BucketNr> {
        if let Some(o) = self
            .open
            .borrow_mut()
            .iter_mut()
            .find(|o| o.bucket == bucket)
        {
            o.pieces -= 1;
            return None;
        }
        let mut used_up = self.used_up.borrow_mut();
        let i = used_up.iter().position(|o| o.bucket == bucket)?;
        used_up[i].pieces -= 1;
        if used_up[i].pieces > 0 {
            return None;
        }
        Some(used_up.swap_remove(i).bucket)
    }

    /// Lets go of the open buckets without pieces that were not reported, however full they are.
    pub fn give_back(&self) -> Vec<BucketNr> {
        let mut given = Vec::new();
        self.open.borrow_mut().retain(|open| {
            let stays = open.pieces > 0;
            given.extend((!stays).then_some(open.bucket));
            stays
        });
        given
    }

    /// Closes the stream: all its buckets, none of which has pieces that were not reported.
    pub fn close(&self) -> Vec<BucketNr> {
        let open = self.open.take();
        assert!(open.iter().all(|o| o.pieces == 0) && self.used_up.borrow().is_empty());
        open.into_iter().map(|o| o.bucket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_given_back_after_its_last_piece() {
        let s = Stream::default();
        assert!(s.take(8).is_none() && s.wants_more() && !s.wants_more());
        s.granted(BucketNr(3), Gen(1), Sector(64), 16);
        let a = s.take(8).unwrap();
        let b = s.take(100).unwrap();
        assert_eq!((a.at, a.sectors), (Sector(64), 8));
        assert_eq!((b.at, b.sectors), (Sector(72), 8));
        assert!(s.take(8).is_none());
        assert_eq!(s.reported(BucketNr(3)), None);
        assert_eq!(s.reported(BucketNr(3)), Some(BucketNr(3)));
        s.granted(BucketNr(4), Gen(0), Sector(80), 16);
        s.take(8).unwrap();
        s.granted(BucketNr(5), Gen(0), Sector(96), 16);
        assert_eq!(s.give_back(), [BucketNr(5)], "the other one is written to");
        s.reported(BucketNr(4));
        assert_eq!(s.give_back(), [BucketNr(4)]);
        s.granted(BucketNr(6), Gen(0), Sector(128), 16);
        assert_eq!(s.close(), [BucketNr(6)]);
    }
}
