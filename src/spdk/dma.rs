//! Memory that devices can reach, for the owner thread's I/O.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::rc::Rc;

use super::bounce::{ALIGN_BYTES, Bounce, BouncePool};
use super::sys;
use crate::disk::steps::{Reserve, STEP_BYTES};
use crate::disk::{Buf, Memory};
use crate::units::SECTOR_BYTES;

/// Memory from SPDK's huge pages.
pub struct DmaBuf {
    start: NonNull<u8>,
    bytes: usize,
    /// Where it goes back to, when it came from there.
    pooled: Option<(Rc<BouncePool>, Bounce)>,
}

impl DmaBuf {
    /// Zeroed memory, or `None` when the huge pages are used up.
    pub fn zeroed(pool: &Rc<BouncePool>, bytes: usize, align_bytes: usize) -> Option<DmaBuf> {
        let sectors = bytes.div_ceil(SECTOR_BYTES);
        if align_bytes <= ALIGN_BYTES {
            if let Some(bounce) = pool.take(sectors as u32) {
                // SAFETY: the buffer has the sectors that were asked for, and is in nobody else's
                // hands until it is given back.
                unsafe { bounce.start().write_bytes(0, bytes) };
                return Some(DmaBuf {
                    start: NonNull::new(bounce.start())?,
                    bytes,
                    pooled: Some((pool.clone(), bounce)),
                });
            }
        }
        let align = align_bytes.max(ALIGN_BYTES);
        // SAFETY: allocates; the alignment is a power of two (the larger of two such).
        let start = unsafe { sys::spdk_dma_zmalloc(bytes.max(1), align, std::ptr::null_mut()) };
        NonNull::new(start.cast::<u8>()).map(|start| DmaBuf {
            start,
            bytes,
            pooled: None,
        })
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        match self.pooled.take() {
            Some((pool, bounce)) => pool.give(bounce),
            // SAFETY: `start` came from spdk_dma_zmalloc and is freed once.
            None => unsafe { sys::spdk_dma_free(self.start.as_ptr().cast()) },
        }
    }
}

impl Memory for DmaBuf {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` initialised bytes from `start` belong to this value alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

/// Ordinary memory, for when the huge pages are used up: devices do not reach it.
struct HeapBuf {
    start: NonNull<u8>,
    layout: Layout,
}

impl HeapBuf {
    /// Zeroed memory.
    fn zeroed(bytes: usize, align_bytes: usize) -> HeapBuf {
        let layout = Layout::from_size_align(bytes.max(1), align_bytes.max(ALIGN_BYTES));
        let layout =
            layout.expect("an alignment is a power of two, and a buffer is no larger than memory");
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        HeapBuf { start, layout }
    }
}

impl Drop for HeapBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Memory for HeapBuf {
    fn bytes(&self) -> &[u8] {
        // SAFETY: initialised bytes from `start` that belong to this value alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    fn is_device_memory(&self) -> bool {
        false
    }
}

/// A zeroed buffer for the owner's I/O. When the huge pages are used up it comes from ordinary memory,
/// and its I/O goes through the [`Reserve`].
pub fn alloc(pool: &Rc<BouncePool>, bytes: usize, align_bytes: usize) -> Buf {
    match DmaBuf::zeroed(pool, bytes, align_bytes) {
        Some(memory) => Buf::new(Box::new(memory)),
        None => {
            log::warn!(
                "no {bytes} bytes of huge page memory are left in one piece: metadata are read and written in \
                 steps, which is slower; start the target with more memory (-s)"
            );
            Buf::new(Box::new(HeapBuf::zeroed(bytes, align_bytes)))
        }
    }
}

/// Puts memory by for when there is none left. False when there is none now.
pub fn reserve(reserve: &Reserve, pool: &Rc<BouncePool>) -> bool {
    let memory = DmaBuf::zeroed(pool, STEP_BYTES, ALIGN_BYTES);
    let is_there = memory.is_some();
    if let Some(memory) = memory {
        reserve.fill(Buf::new(Box::new(memory)));
    }
    is_there
}
