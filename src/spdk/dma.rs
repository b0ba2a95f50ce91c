//! Memory that devices can reach, for the owner thread's I/O.

use std::ptr::NonNull;
use std::rc::Rc;

use super::bounce::{ALIGN_BYTES, Bounce, BouncePool};
use super::sys;
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

/// A zeroed buffer for a device. When the huge pages are used up it comes from ordinary memory,
/// with which files and malloc bdevs go on; a real device then answers with an I/O error.
pub fn alloc(pool: &Rc<BouncePool>, bytes: usize, align_bytes: usize) -> Buf {
    match DmaBuf::zeroed(pool, bytes, align_bytes) {
        Some(memory) => Buf::new(Box::new(memory)),
        None => {
            log::warn!("no huge page memory left for {bytes} bytes");
            Buf::new(Box::new(vec![0u8; bytes]))
        }
    }
}
