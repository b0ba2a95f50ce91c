//! A host's I/O on its way through a lane: the context that SPDK keeps beside it, lists of such, and
//! the host's memory.
//!
//! An [`Io`] stands for an I/O that the bdev layer was not given back yet; it is on one list at most. Its
//! context belongs to the thread of its channel, and is used by nobody after
//! [`Lane::complete`](crate::request::lane::Lane::complete).

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::{self, NonNull};

use super::super::sys;
use crate::request::admit::{self, Admitted, Refusal};
use crate::request::hold::Line;
use crate::request::{Kind, Request};

/// The context that SPDK keeps beside each I/O of a volume.
#[repr(C)]
pub struct IoCtx {
    head: sys::bcache_io,
    /// The next on the list that the I/O is on: held, or completed.
    next: Cell<*mut IoCtx>,
    pub(super) outcome: Cell<sys::bcache_outcome>,
    /// Whether the I/O's memory ends where its list does.
    pub(super) fills_list: Cell<bool>,
    /// The bits that are set in any length of a piece of memory, in bytes.
    pub(super) length_bits: Cell<usize>,
    request: Request,
}

const _: () = assert!(align_of::<IoCtx>() <= align_of::<sys::bcache_io>());

/// A host I/O in flight: a pointer to its context.
#[derive(Clone, Copy)]
pub struct Io(pub(super) NonNull<IoCtx>);

impl Io {
    /// Takes an I/O over from the bdev layer; its request is new.
    ///
    /// # Safety
    /// `io` is the head of a context of `size_of::<IoCtx>()` bytes, filled by glue.c, and the I/O
    /// was not completed.
    pub unsafe fn take(io: *mut sys::bcache_io) -> Io {
        let ctx = io.cast::<IoCtx>();
        // SAFETY: the context is big enough and aligned (asserted here and in glue.c), and
        // nobody else uses it before the I/O is completed.
        unsafe {
            (&raw mut (*ctx).request).write(Request::new());
            (&raw mut (*ctx).next).write(Cell::new(ptr::null_mut()));
            (&raw mut (*ctx).outcome).write(Cell::new(sys::BCACHE_FAILED));
            (&raw mut (*ctx).fills_list).write(Cell::new(false));
            (&raw mut (*ctx).length_bits).write(Cell::new(0));
            Io(NonNull::new_unchecked(ctx))
        }
    }

    /// A pointer for a callback, to come back through [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> *mut IoCtx {
        self.0.as_ptr()
    }

    /// The I/O that [`into_raw`](Self::into_raw) gave the pointer of.
    ///
    /// # Safety
    /// The I/O was not completed since.
    pub unsafe fn from_raw(ctx: *mut IoCtx) -> Io {
        // SAFETY: the pointer came from an Io, so it is not null.
        Io(unsafe { NonNull::new_unchecked(ctx) })
    }

    pub(super) fn ctx(&self) -> &IoCtx {
        // SAFETY: an Io stands for an I/O that was not completed, so its context is there and
        // initialised; all that changes in it is in cells.
        unsafe { self.0.as_ref() }
    }

    /// What the bdev layer wants.
    pub fn head(&self) -> &sys::bcache_io {
        &self.ctx().head
    }

    /// Checks what the host wants of a volume with blocks of `1 << block_shift` sectors, and fits the
    /// memory to it: nothing below here sees more of it than the I/O has blocks.
    #[inline]
    pub fn admit(
        &mut self,
        kind: Kind,
        block_shift: u32,
        size_sectors: u64,
    ) -> Result<Admitted, Refusal> {
        let head = self.head();
        let blocks = (head.offset_blocks, head.num_blocks);
        let list = self.host().0.iter();
        let list = list.map(|iov| (iov.iov_base.addr(), iov.iov_len));
        let admitted = admit::admit(kind, blocks, block_shift, size_sectors, list)?;
        if let Some(fit) = admitted.fit {
            self.ctx().fills_list.set(fit.is_exact);
            self.ctx().length_bits.set(fit.length_bits);
            // SAFETY: no reference into the context is held, and nobody else has one: the I/O is not
            // started yet.
            unsafe { (*self.0.as_ptr()).head.iovcnt = fit.pieces as u32 };
        }
        Ok(admitted)
    }

    pub(super) fn host(&self) -> HostMemory<'_> {
        let head = self.head();
        if head.iovcnt == 0 || head.iovs.is_null() {
            return HostMemory(&[]);
        }
        // SAFETY: the bdev layer keeps `iovcnt` elements at `iovs` until the I/O is completed.
        HostMemory(unsafe { std::slice::from_raw_parts(head.iovs, head.iovcnt as usize) })
    }
}

impl Deref for Io {
    type Target = Request;
    fn deref(&self) -> &Request {
        &self.ctx().request
    }
}

/// A list of I/Os through their contexts, first in first out.
pub struct IoList {
    first: Cell<*mut IoCtx>,
    last: Cell<*mut IoCtx>,
}

impl Default for IoList {
    fn default() -> Self {
        IoList {
            first: Cell::new(ptr::null_mut()),
            last: Cell::new(ptr::null_mut()),
        }
    }
}

impl Line for IoList {
    type Io = Io;

    fn push(&self, io: Io) {
        let ctx = io.0.as_ptr();
        io.ctx().next.set(ptr::null_mut());
        match NonNull::new(self.last.replace(ctx)) {
            Some(last) => Io(last).ctx().next.set(ctx),
            None => self.first.set(ctx),
        }
    }

    fn pop(&self) -> Option<Io> {
        let io = Io(NonNull::new(self.first.get())?);
        let next = io.ctx().next.get();
        self.first.set(next);
        if next.is_null() {
            self.last.set(ptr::null_mut());
        }
        Some(io)
    }

    fn take(&self) -> IoList {
        let taken = IoList::default();
        taken.first.set(self.first.replace(ptr::null_mut()));
        taken.last.set(self.last.replace(ptr::null_mut()));
        taken
    }
}

impl IoList {
    /// Whether nothing is on it.
    pub fn is_empty(&self) -> bool {
        self.first.get().is_null()
    }
}

/// The host's memory of one I/O: after [`Io::admit`] no shorter than the I/O.
pub(super) struct HostMemory<'a>(&'a [sys::iovec]);

impl HostMemory<'_> {
    /// Calls `each` with every piece of the `bytes` from `offset`, in order.
    pub(super) fn pieces(&self, offset: usize, bytes: usize, mut each: impl FnMut(*mut u8, usize)) {
        let lengths = self.0.iter().map(|iov| iov.iov_len);
        admit::pieces(lengths, offset, bytes, |piece, skip, bytes| {
            let start = self.0[piece].iov_base.cast::<u8>();
            each(start.wrapping_add(skip), bytes);
        });
    }
}
