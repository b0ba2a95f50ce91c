//! Large structures whose memory goes back a piece at a time.
//!
//! To drop the map of ten million extents, or the tables of a large device, takes milliseconds. The
//! `Drop` of such a structure hands its pieces over to [`scrap`]; each poll of any executor drops
//! one of them. What is left at the end of the process goes with it.
//!
//! The lock is taken where a large structure ends and while pieces are left, on no other path.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory in pieces.
trait Scrap: Send {
    /// Drops a piece; false when nothing is left.
    fn drop_some(&mut self) -> bool;
}

struct Pieces<T> {
    pieces: Vec<T>,
    a_step: usize,
}

impl<T: Send> Scrap for Pieces<T> {
    fn drop_some(&mut self) -> bool {
        let left = self.pieces.len().saturating_sub(self.a_step);
        self.pieces.truncate(left);
        left > 0
    }
}

static HEAP: Mutex<VecDeque<Box<dyn Scrap>>> = Mutex::new(VecDeque::new());
static ANY: AtomicBool = AtomicBool::new(false);

/// Structures that wait at once: a set has a few, and one for each volume. What is beyond is dropped
/// at once, as where no executor runs.
const WAITING_MAX: usize = 256;

/// Drops `pieces` later, `a_step` of them in a step; at once where they are no more than that.
pub fn scrap<T: Send + 'static>(pieces: Vec<T>, a_step: usize) {
    if pieces.len() <= a_step {
        return;
    }
    let mut heap = HEAP.lock().unwrap_or_else(|e| e.into_inner());
    heap.push_back(Box::new(Pieces { pieces, a_step }));
    ANY.store(true, Ordering::Release);
    let oldest = (heap.len() > WAITING_MAX).then(|| heap.pop_front());
    drop(heap);
    drop(oldest);
}

/// Drops one step's worth of what was scrapped.
#[inline]
pub(super) fn drop_some() {
    if ANY.load(Ordering::Acquire) {
        drop_piece();
    }
}

#[cold]
fn drop_piece() {
    let mut heap = HEAP.lock().unwrap_or_else(|e| e.into_inner());
    let Some(mut first) = heap.pop_front() else {
        return ANY.store(false, Ordering::Release);
    };
    // Not under the lock: a piece may hold what is scrapped in turn.
    drop(heap);
    if first.drop_some() {
        let mut heap = HEAP.lock().unwrap_or_else(|e| e.into_inner());
        heap.push_front(first);
        // Another thread may have found the heap empty meanwhile.
        ANY.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn pieces_are_dropped_step_by_step() {
        let piece = Arc::new(());
        scrap((0..100).map(|_| piece.clone()).collect(), 200);
        assert_eq!(Arc::strong_count(&piece), 1);
        scrap((0..100).map(|_| piece.clone()).collect(), 30);
        // Other tests of this process may scrap and drop too.
        assert!(Arc::strong_count(&piece) > 1);
        while Arc::strong_count(&piece) > 1 {
            drop_some();
        }
    }
}
