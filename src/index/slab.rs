//! Where pages come from: spans of 28 pages.
//!
//! A span is a little less than 32 KiB (so that allocators can set one beside the other) and lies
//! at a multiple of that, so the span of a page is found by masking its address: a header with a
//! bit for each free page, then the pages. Pages are taken from spans that are at least half used,
//! if there are any, so that the others may empty. An empty span goes back to the global allocator,
//! as long as a few free pages remain: a tree at a boundary must not fetch and return one in turn.
//!
//! One thread at a time: nothing here is atomic. Each call is bounded; the worst one takes a span
//! from the global allocator and clears it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

use super::page::{PAGE_BYTES, Page};
use crate::task::scrap;

const SPAN_ALIGN: usize = 32 * 1024;
const SPAN_BYTES: usize = SPAN_ALIGN - 64;
const HEADER_BYTES: usize = 448;
const SPAN_PAGES: usize = (SPAN_BYTES - HEADER_BYTES) / PAGE_BYTES;
const ALL_FREE: u32 = (1 << SPAN_PAGES) - 1;
/// Free pages that stay when a span is empty.
const SPARE_PAGES: usize = 4 * SPAN_PAGES;

const LAYOUT: Layout = match Layout::from_size_align(SPAN_BYTES, SPAN_ALIGN) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and a power of two"),
};
const _: () = assert!(size_of::<Span>() <= HEADER_BYTES && HEADER_BYTES % 64 == 0);
const _: () = assert!(HEADER_BYTES + SPAN_PAGES * PAGE_BYTES == SPAN_BYTES && SPAN_PAGES == 28);

/// How many of a span's pages are in use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Half of them or more, but not all.
    Dense = 0,
    /// Less.
    Sparse = 1,
    /// All. Not listed.
    Full,
}

/// The header of a span.
#[repr(C)]
struct Span {
    /// A bit for each page that is free.
    free: u32,
    /// Where the span is in its list in [`Slab::listed`].
    place: usize,
    /// Where it is in [`Slab::spans`].
    index: usize,
}

impl Span {
    fn usage(&self) -> Use {
        match self.free.count_ones() as usize {
            0 => Use::Full,
            free if free <= SPAN_PAGES / 2 => Use::Dense,
            _ => Use::Sparse,
        }
    }
}

/// The pages of one index.
pub(super) struct Slab {
    spans: Vec<*mut Span>,
    /// The dense ones and the sparse ones. Pages are taken from the last.
    listed: [Vec<*mut Span>; 2],
    /// Pages in use.
    pub(super) live: usize,
}

// SAFETY: a slab owns its spans; nothing about them belongs to a thread.
unsafe impl Send for Slab {}

impl Slab {
    pub(super) fn new() -> Slab {
        Slab {
            spans: Vec::new(),
            listed: [Vec::new(), Vec::new()],
            live: 0,
        }
    }

    /// Bytes held from the global allocator.
    pub(super) fn bytes(&self) -> usize {
        self.spans.len() * SPAN_ALIGN
    }

    /// Pages that are free.
    fn spare_pages(&self) -> usize {
        self.spans.len() * SPAN_PAGES - self.live
    }

    /// Whether more than half of the memory is free, beyond what stays anyway.
    pub(super) fn is_thin(&self) -> bool {
        self.spare_pages() > self.live + SPARE_PAGES
    }

    /// Whether the span of a page that is in use is less than half used.
    pub(super) fn is_sparse(&self, page: *mut Page) -> bool {
        // SAFETY: the page is ours and in use, so the mask leads to the header of its span, to
        // which no reference is alive.
        unsafe { (*span_of(page)).usage() == Use::Sparse }
    }

    /// Whether two pages are in the same span.
    pub(super) fn is_beside(&self, page: *mut Page, other: *mut Page) -> bool {
        span_of(page) == span_of(other)
    }

    /// A page for the caller alone. It was either cleared or holds what it was freed with.
    pub(super) fn alloc(&mut self) -> *mut Page {
        let [dense, sparse] = &self.listed;
        let span = match dense.last().or(sparse.last()) {
            Some(&span) => span,
            None => self.grow(),
        };
        self.live += 1;
        // SAFETY: `span` is the header of a span of ours, to which no reference is alive.
        let page = unsafe { (*span).free.trailing_zeros() as usize };
        self.set_free(span, |free| free & !(1 << page));
        // SAFETY: `page` is below SPAN_PAGES, as a listed span has a free page, so this is in it.
        unsafe {
            span.byte_add(HEADER_BYTES + page * PAGE_BYTES)
                .cast::<Page>()
        }
    }

    /// Takes a page back.
    ///
    /// # Safety
    /// It came from this slab's `alloc`, was not freed since, and nobody uses it any more.
    pub(super) unsafe fn free(&mut self, page: *mut Page) {
        let span = span_of(page);
        let index = (page.addr() - span.addr() - HEADER_BYTES) / PAGE_BYTES;
        self.live -= 1;
        let free = self.set_free(span, |free| {
            debug_assert!(free & 1 << index == 0, "a page was freed twice");
            free | 1 << index
        });
        if free == ALL_FREE && self.spare_pages() >= SPARE_PAGES + SPAN_PAGES {
            self.shrink(span);
        }
    }

    /// Changes which pages of a span of ours are free, and lists it accordingly.
    fn set_free(&mut self, span: *mut Span, change: impl FnOnce(u32) -> u32) -> u32 {
        // SAFETY: the callers pass spans of ours, and no reference to their headers is alive but
        // this one and, one at a time, those in `unlist` and `list`, after its last use.
        let (free, before, after) = unsafe {
            let header = &mut *span;
            let before = header.usage();
            header.free = change(header.free);
            (header.free, before, header.usage())
        };
        if before != after {
            self.unlist(span, before);
            self.list(span, after);
        }
        free
    }

    fn list(&mut self, span: *mut Span, usage: Use) {
        if let Some(list) = self.listed.get_mut(usage as usize) {
            // SAFETY: the span is ours and no reference to its header is alive.
            unsafe { (*span).place = list.len() };
            list.push(span);
        }
    }

    fn unlist(&mut self, span: *mut Span, usage: Use) {
        if let Some(list) = self.listed.get_mut(usage as usize) {
            // SAFETY: the spans are ours and no reference to their headers is alive.
            unsafe {
                let place = (*span).place;
                list.swap_remove(place);
                if let Some(&moved) = list.get(place) {
                    (*moved).place = place;
                }
            }
        }
    }

    /// Fetches a span.
    #[cold]
    fn grow(&mut self) -> *mut Span {
        // Cleared, so that a page is initialised memory from the start.
        // SAFETY: the layout has a size.
        let span = unsafe { alloc_zeroed(LAYOUT) }.cast::<Span>();
        if span.is_null() {
            handle_alloc_error(LAYOUT);
        }
        // SAFETY: the span is ours, aligned, and longer than a header.
        unsafe {
            span.write(Span {
                free: ALL_FREE,
                place: 0,
                index: self.spans.len(),
            })
        };
        self.spans.push(span);
        self.list(span, Use::Sparse);
        span
    }

    /// Gives an empty span back.
    #[cold]
    fn shrink(&mut self, span: *mut Span) {
        self.unlist(span, Use::Sparse);
        // SAFETY: the spans are ours and no reference to their headers is alive. The caller found
        // that no page of this one is used; after these lines nothing of ours points to it.
        unsafe {
            let index = (*span).index;
            self.spans.swap_remove(index);
            if let Some(&moved) = self.spans.get(index) {
                (*moved).index = index;
            }
            dealloc(span.cast(), LAYOUT);
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let spans = std::mem::take(&mut self.spans);
        scrap(spans.into_iter().map(Unused).collect(), UNUSED_A_STEP);
    }
}

/// A span of a slab that was dropped: no page of it is used.
struct Unused(*mut Span);

/// Such spans that go back in one step: half a MiB.
const UNUSED_A_STEP: usize = 16;

// SAFETY: the pointer is the only one to its span, and nothing about a span belongs to a thread.
unsafe impl Send for Unused {}

impl Drop for Unused {
    fn drop(&mut self) {
        // SAFETY: the span came from `alloc_zeroed` with this layout, and whoever dropped its slab
        // says that no page is used.
        unsafe { dealloc(self.0.cast(), LAYOUT) };
    }
}

/// The span of a page.
fn span_of(page: *mut Page) -> *mut Span {
    page.map_addr(|addr| addr & !(SPAN_ALIGN - 1)).cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_apart_and_come_back() {
        let mut slab = Slab::new();
        let count = 5000;
        let mut pages: Vec<_> = (0..count).map(|_| slab.alloc()).collect();
        let full = slab.bytes();
        assert!(full <= count * PAGE_BYTES * 21 / 20);
        let mut sorted: Vec<_> = pages.iter().map(|page| page.addr()).collect();
        sorted.sort_unstable();
        assert!(
            sorted
                .windows(2)
                .all(|pair| pair[0] + PAGE_BYTES <= pair[1])
        );
        assert!(sorted.iter().all(|addr| addr % 64 == 0));
        // In an order that empties spans all over the place.
        for i in 0..count {
            pages.swap(i, (i * 7919) % count);
        }
        for page in pages.drain(..) {
            // SAFETY: from `alloc` above, freed once.
            unsafe { slab.free(page) };
        }
        assert_eq!(slab.live, 0);
        assert_eq!(slab.bytes(), SPARE_PAGES / SPAN_PAGES * SPAN_ALIGN);
        let again: Vec<_> = (0..count).map(|_| slab.alloc()).collect();
        assert_eq!((again.len(), slab.bytes()), (count, full));
    }

    #[test]
    fn pages_come_from_dense_spans_first() {
        let mut slab = Slab::new();
        let pages: Vec<_> = (0..2 * SPAN_PAGES).map(|_| slab.alloc()).collect();
        // One span keeps a single page, the other all but one.
        for &page in pages[1..SPAN_PAGES]
            .iter()
            .chain(&pages[2 * SPAN_PAGES - 1..])
        {
            // SAFETY: from `alloc` above, freed once.
            unsafe { slab.free(page) };
        }
        assert!(slab.is_sparse(pages[0]) && !slab.is_sparse(pages[SPAN_PAGES]));
        assert_eq!(slab.alloc(), pages[2 * SPAN_PAGES - 1]);
    }
}
