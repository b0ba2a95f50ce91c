//! Memory that devices can reach.

use std::ptr::NonNull;

use super::sys;
use crate::disk::{Buf, Memory};

/// Every buffer is aligned to a page at least: all devices that SPDK knows are content with it.
const ALIGN_BYTES_MIN: usize = 4096;

/// Memory from SPDK's huge pages.
pub struct DmaBuf {
    start: NonNull<u8>,
    bytes: usize,
}

impl DmaBuf {
    /// Zeroed memory, or `None` when the huge pages are used up.
    pub fn zeroed(bytes: usize, align_bytes: usize) -> Option<DmaBuf> {
        let align = align_bytes.max(ALIGN_BYTES_MIN);
        // SAFETY: allocates; the alignment is a power of two (the larger of two such).
        let start = unsafe { sys::spdk_dma_zmalloc(bytes.max(1), align, std::ptr::null_mut()) };
        NonNull::new(start.cast::<u8>()).map(|start| DmaBuf { start, bytes })
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: `start` came from spdk_dma_zmalloc and is freed once.
        unsafe { sys::spdk_dma_free(self.start.as_ptr().cast()) };
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
pub fn alloc(bytes: usize, align_bytes: usize) -> Buf {
    match DmaBuf::zeroed(bytes, align_bytes) {
        Some(memory) => Buf::new(Box::new(memory)),
        None => {
            log::warn!("no huge page memory left for {bytes} bytes");
            Buf::new(Box::new(vec![0u8; bytes]))
        }
    }
}
