//! Memory that devices can reach, for the owner thread's I/O.

use std::alloc::Layout;
use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use super::bounce::{ALIGN_BYTES, Bounce, BouncePool};
use super::sys;
use crate::disk::{Buf, BufFuture, IoError, Memory};
use crate::task::Lock;
use crate::units::{SECTOR_BYTES, Sector};

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

/// Bytes that the owner reads or writes in one step when the huge pages are used up.
const STEP_BYTES: usize = 64 << 10;

/// Memory that is put by when the module starts, so that a set's metadata can be read and written
/// whatever becomes of the huge pages: 64 KiB, through which one I/O at a time goes in steps.
#[derive(Default)]
pub struct Reserve {
    step: RefCell<Option<Buf>>,
    turn: Lock,
}

impl Reserve {
    /// Puts the memory by. False when there is none.
    pub fn fill(&self, pool: &Rc<BouncePool>) -> bool {
        let memory = DmaBuf::zeroed(pool, STEP_BYTES, ALIGN_BYTES);
        let is_there = memory.is_some();
        *self.step.borrow_mut() = memory.map(|memory| Buf::new(Box::new(memory)));
        is_there
    }

    /// Carries out a transfer of `buf`, memory that devices do not reach, at `at` of a device. `step`
    /// carries out one of so many sectors at a place, with the beginning of the buffer it is given.
    ///
    /// # Errors
    /// That of the first step that failed; those before it are done.
    pub async fn through(
        &self,
        writes: bool,
        at: Sector,
        buf: &mut [u8],
        step: impl Fn(Sector, u64, Buf) -> BufFuture,
    ) -> Result<(), IoError> {
        let _turn = self.turn.lock().await;
        let Some(mut memory) = self.step.borrow_mut().take() else {
            return Err(IoError::NoMemory);
        };
        let mut done = Ok(());
        for (i, part) in buf.chunks_mut(STEP_BYTES).enumerate() {
            if writes {
                memory[..part.len()].copy_from_slice(part);
            }
            let at = at + (i * STEP_BYTES / SECTOR_BYTES) as u64;
            (memory, done) = step(at, (part.len() / SECTOR_BYTES) as u64, memory).await;
            if done.is_err() {
                break;
            }
            if !writes {
                part.copy_from_slice(&memory[..part.len()]);
            }
        }
        *self.step.borrow_mut() = Some(memory);
        done
    }
}
