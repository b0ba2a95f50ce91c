//! Pools of buffers that devices can reach: one a channel, through which missed reads fill the
//! cache, and one for the owner thread's own I/O ([`super::dma`]).
//!
//! A buffer is taken for an I/O and comes back afterwards. They come in a few sizes and are kept
//! for the next, because the allocator of huge pages takes a lock that all reactors share, and walks
//! lists. A pool never holds more than `BYTES_MAX`: that is sixteen buffers of the largest size, or
//! four thousand of the smallest, far more than a backing device has in flight. When the budget is
//! used up by idle buffers of other sizes these are given back; when it is used up by those that
//! are taken, a read goes on without a fill, and the owner thread asks the allocator.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use super::sys;
use crate::units::SECTOR_SHIFT;

/// Bytes of huge pages that a pool may use.
const BYTES_MAX: usize = 16 << 20;
/// log2 of the bytes of each size.
const SHIFTS: [u32; 5] = [12, 14, 16, 18, 20];
/// Alignment in bytes of all buffers: every device that SPDK knows is content with it.
pub const ALIGN_BYTES: usize = 4096;

/// A buffer that is taken.
#[derive(Clone, Copy)]
pub struct Bounce {
    start: NonNull<u8>,
    class: u8,
}

impl Bounce {
    /// Its memory: 4 KiB to 1 MiB, as many as were asked for at least.
    pub fn start(self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// The buffers of one channel, or of the owner thread.
#[derive(Default)]
pub struct BouncePool {
    idle: [RefCell<Vec<NonNull<u8>>>; SHIFTS.len()],
    bytes: Cell<usize>,
}

impl BouncePool {
    /// A buffer of so many sectors at least, if there is one to be had.
    pub fn take(&self, sectors: u32) -> Option<Bounce> {
        let bytes = (sectors as usize) << SECTOR_SHIFT;
        let class = SHIFTS.iter().position(|shift| bytes <= 1 << shift)?;
        // The cell is free again before the pool grows: that may give back what is idle.
        let idle = self.idle[class].borrow_mut().pop();
        let start = match idle {
            Some(start) => start,
            None => self.grow(1 << SHIFTS[class])?,
        };
        let class = class as u8;
        Some(Bounce { start, class })
    }

    /// Takes a buffer back.
    pub fn give(&self, bounce: Bounce) {
        self.idle[usize::from(bounce.class)]
            .borrow_mut()
            .push(bounce.start);
    }

    fn grow(&self, bytes: usize) -> Option<NonNull<u8>> {
        while self.bytes.get() + bytes > BYTES_MAX {
            self.shrink()?;
        }
        // SAFETY: allocates; the alignment is a power of two.
        let start = unsafe { sys::spdk_dma_malloc(bytes, ALIGN_BYTES, std::ptr::null_mut()) };
        let start = NonNull::new(start.cast::<u8>())?;
        self.bytes.set(self.bytes.get() + bytes);
        Some(start)
    }

    /// Gives the largest idle buffer back to SPDK.
    fn shrink(&self) -> Option<()> {
        let (class, start) = (0..SHIFTS.len()).rev().find_map(|class| {
            let start = self.idle[class].borrow_mut().pop()?;
            Some((class, start))
        })?;
        self.bytes.set(self.bytes.get() - (1 << SHIFTS[class]));
        // SAFETY: the buffer came from spdk_dma_malloc and is in nobody's hands.
        unsafe { sys::spdk_dma_free(start.as_ptr().cast()) };
        Some(())
    }
}

impl Drop for BouncePool {
    fn drop(&mut self) {
        while self.shrink().is_some() {}
        debug_assert_eq!(self.bytes.get(), 0, "somebody still has a buffer");
    }
}
