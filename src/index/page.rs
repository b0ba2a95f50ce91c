//! Pages: what a node of the tree looks like in memory.
//!
//! Two kinds, both [`PAGE_BYTES`] long and on cache lines of their own. Once a reader can reach one,
//! it changes in one way only, in one store: in a [`Leaf`] an extent by another of exactly the same
//! sectors of the volume, in an [`Inner`] a child by another of exactly the same range.
//!
//! Searching is counting. `rank` counts the keys at or below a position over all 64, without a
//! branch, which compilers turn into vector code even where the machine cannot compare 64-bit
//! integers in vectors: for numbers below 2^63 the sign of a difference is the comparison. Unused
//! keys are [`PAD`], above every position, so no length is needed.

use std::cell::UnsafeCell;
use std::sync::atomic::AtomicU64;

use super::Extent;
use super::primitive::{AtomicPtr, Ordering};
use crate::units::{Gen, Sector};

/// Entries of a page of either kind.
pub(super) const FAN: usize = 64;
/// Keys that are on one cache line.
const GROUP: usize = 8;
const GROUPS: usize = FAN / GROUP;
/// Bytes of a page: 18 cache lines.
pub(super) const PAGE_BYTES: usize = 18 * 64;
/// The key of an unused entry; also the upper bound of what has none. Above every position that an
/// extent can end at: 2^63 - 1 sectors.
pub(super) const PAD: u64 = i64::MAX as u64;

const AT_BITS: u32 = 43;
const GENERATION_SHIFT: u32 = AT_BITS;
const DIRTY_SHIFT: u32 = GENERATION_SHIFT + 8;
const LEVEL_MASK: usize = 63;

const _: () = assert!(size_of::<Leaf>() == PAGE_BYTES);
const _: () = assert!(size_of::<Page>() == PAGE_BYTES && align_of::<Page>() == 64);
// Loom's atomics are larger.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Inner>() <= PAGE_BYTES);

/// Memory for a [`Leaf`] or an [`Inner`].
#[repr(C, align(64))]
pub(super) struct Page([u64; PAGE_BYTES / 8]);

/// Up to 64 extents in order, none overlapping another.
#[repr(C, align(64))]
pub(super) struct Leaf {
    /// Where each one ends.
    ends: [u64; FAN],
    /// Where it lies: `at`, generation and dirty bit.
    words: Words,
    /// Its sectors; 0 for an unused entry.
    sizes: [u16; FAN],
}

/// What a leaf says of each place in one word, which the writer may replace while others read it.
struct Words(UnsafeCell<[u64; FAN]>);

/// Up to 64 children. Child `i` has the range from `keys[i - 1]` to `keys[i]`, and no extent
/// crosses a key.
#[repr(C, align(64))]
pub(super) struct Inner {
    /// The upper bounds of the children; that of the last one is [`PAD`] (it ends where its
    /// parent does).
    keys: [u64; FAN],
    children: [AtomicPtr<Page>; FAN],
    len: usize,
}

/// How many keys are at or below `at`, which is below [`PAD`].
#[inline(always)]
fn rank(keys: &[u64; FAN], at: u64) -> usize {
    debug_assert!(at < PAD);
    let below = |key: u64| (key.wrapping_sub(at + 1) >> 63) as usize;
    // First how many groups of eight are passed as a whole, then how many keys in the next.
    let groups: usize = (0..GROUPS - 1)
        .map(|group| below(keys[group * GROUP + GROUP - 1]))
        .sum();
    let rest = &keys[groups * GROUP..groups * GROUP + GROUP];
    groups * GROUP + rest.iter().map(|&key| below(key)).sum::<usize>()
}

/// Asks for the cache line of a value, of which something will be read soon.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    prefetch_line(std::ptr::from_ref(value).cast());
}

/// Asks for the cache line at an address, whatever is there.
#[inline(always)]
fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching has no effect but on caches, nor does it fault, and the instruction is in
    // every x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

fn pack(extent: &Extent) -> u64 {
    extent.at.0
        | u64::from(extent.generation.0) << GENERATION_SHIFT
        | u64::from(extent.dirty) << DIRTY_SHIFT
}

#[inline(always)]
fn unpack(end: u64, word: u64, sectors: u16) -> Extent {
    Extent {
        start: Sector(end - u64::from(sectors)),
        sectors: u32::from(sectors),
        at: Sector(word & ((1 << AT_BITS) - 1)),
        generation: Gen((word >> GENERATION_SHIFT) as u8),
        dirty: word >> DIRTY_SHIFT & 1 != 0,
    }
}

impl Words {
    /// A word, with all that was done before it was [`set`](Self::set).
    #[inline(always)]
    fn get(&self, place: usize) -> u64 {
        self.atomic(place).load(Ordering::Acquire)
    }

    /// Replaces a word, at once for all readers.
    #[inline(always)]
    fn set(&self, place: usize, word: u64) {
        self.atomic(place).store(word, Ordering::Release);
    }

    #[inline(always)]
    fn atomic(&self, place: usize) -> &AtomicU64 {
        assert!(place < FAN);
        // SAFETY: the word is within the array and aligned. Who shares it goes through this
        // function, but for the writer's copies, which only read, and it is the writer who sets.
        unsafe { AtomicU64::from_ptr(self.0.get().cast::<u64>().add(place)) }
    }

    /// Makes these the copy of others.
    ///
    /// # Safety
    /// The caller is the writer: nobody sets any of `source` meanwhile.
    #[inline(always)]
    unsafe fn copy_from(&mut self, source: &Words) {
        // SAFETY: by the contract there are no other accesses than loads.
        *self.0.get_mut() = unsafe { *source.0.get() };
    }
}

impl Leaf {
    /// The place of the first extent that ends behind `at`; 64 if there is none in a full leaf.
    #[inline(always)]
    pub(super) fn rank(&self, at: u64) -> usize {
        rank(&self.ends, at)
    }

    /// The extent in a place, `None` behind the last.
    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> Option<Extent> {
        if place >= FAN || self.sizes[place] == 0 {
            return None;
        }
        Some(unpack(
            self.ends[place],
            self.words.get(place),
            self.sizes[place],
        ))
    }

    /// How many extents there are.
    pub(super) fn len(&self) -> usize {
        rank(&self.ends, PAD - 1)
    }

    /// The extents from a place on.
    pub(super) fn extents(&self, from: usize) -> impl Iterator<Item = Extent> + '_ {
        (from..FAN).map_while(|place| self.get(place))
    }

    /// Asks for all lines but those of the keys.
    #[inline(always)]
    pub(super) fn prefetch_rest(&self) {
        for place in (0..FAN).step_by(GROUP) {
            prefetch(self.words.atomic(place));
        }
        prefetch(&self.sizes[0]);
        prefetch(&self.sizes[FAN / 2]);
    }

    /// Asks for the lines of one place.
    #[inline(always)]
    pub(super) fn prefetch_entry(&self, place: usize) {
        let place = place.min(FAN - 1);
        prefetch(self.words.atomic(place));
        prefetch(&self.sizes[place]);
    }

    /// The first place at or behind `from` whose extent starts at or behind `position`.
    #[inline]
    pub(super) fn place_from(&self, from: usize, position: u64) -> usize {
        let mut place = from;
        while place < FAN
            && self.sizes[place] != 0
            && self.ends[place] - u64::from(self.sizes[place]) < position
        {
            place += 1;
        }
        place
    }

    /// Whether an extent in this place has exactly these sectors of the volume.
    #[inline(always)]
    pub(super) fn is_exactly(&self, place: usize, extent: &Extent) -> bool {
        place < FAN
            && self.ends[place] == extent.end().0
            && u32::from(self.sizes[place]) == extent.sectors
    }

    /// Says where the sectors of the extent in a place are from now on, at once for all readers.
    ///
    /// # Panics
    /// When `extent` does not have exactly these sectors.
    #[inline(always)]
    pub(super) fn replace(&self, place: usize, extent: &Extent) {
        assert!(self.is_exactly(place, extent));
        self.words.set(place, pack(extent));
    }

    /// Makes this the copy of another.
    ///
    /// # Safety
    /// The caller is the writer: nobody replaces anything in `source` meanwhile.
    pub(super) unsafe fn copy_from(&mut self, source: &Leaf) {
        self.ends = source.ends;
        // SAFETY: by contract.
        unsafe { self.words.copy_from(&source.words) };
        self.sizes = source.sizes;
    }

    /// Makes this the copy of `source` with the extents from `first` to before `last` replaced by
    /// `middle`. The result must fit.
    ///
    /// # Safety
    /// As for [`Leaf::copy_from`].
    pub(super) unsafe fn splice(
        &mut self,
        source: &Leaf,
        first: usize,
        last: usize,
        middle: &[Extent],
    ) {
        // One copy of known length is quicker than several of just what is needed.
        // SAFETY: by contract.
        unsafe { self.copy_from(source) };
        let behind = first + middle.len();
        let words = self.words.0.get_mut();
        if behind > last {
            let moved = FAN - behind;
            self.ends.copy_within(last..last + moved, behind);
            words.copy_within(last..last + moved, behind);
            self.sizes.copy_within(last..last + moved, behind);
        } else if behind < last {
            self.ends.copy_within(last.., behind);
            words.copy_within(last.., behind);
            self.sizes.copy_within(last.., behind);
            self.pad(FAN - (last - behind));
        }
        self.put(first, middle);
    }

    /// Makes this a leaf of exactly `extents`, 64 at most.
    pub(super) fn fill(&mut self, extents: &[Extent]) {
        self.put(0, extents);
        self.pad(extents.len());
    }

    #[inline]
    fn put(&mut self, place: usize, extents: &[Extent]) {
        let words = self.words.0.get_mut();
        for (i, extent) in extents.iter().enumerate() {
            self.ends[place + i] = extent.end().0;
            words[place + i] = pack(extent);
            self.sizes[place + i] = extent.sectors as u16;
        }
    }

    #[inline]
    fn pad(&mut self, len: usize) {
        self.ends[len..].fill(PAD);
        self.sizes[len..].fill(0);
    }
}

impl Inner {
    /// The place of the child in whose range `at` is. There is always one.
    #[inline(always)]
    pub(super) fn rank(&self, at: u64) -> usize {
        rank(&self.keys, at)
    }

    /// The upper bound of a child, [`PAD`] for the last.
    #[inline(always)]
    pub(super) fn key(&self, place: usize) -> u64 {
        self.keys[place]
    }

    /// A child, with all that was written to it.
    #[inline(always)]
    pub(super) fn child(&self, place: usize) -> Node {
        Node(self.children[place].load(Ordering::Acquire))
    }

    /// Asks for the line that names a child.
    #[inline(always)]
    pub(super) fn prefetch_child(&self, place: usize) {
        prefetch(&self.children[place]);
    }

    /// The children from one place to before another, with their lower bounds (0 for the first
    /// child, whose bound is its parent's).
    pub(super) fn children(
        &self,
        from: usize,
        to: usize,
    ) -> impl Iterator<Item = (Node, u64)> + '_ {
        (from..to).map(|place| {
            (
                self.child(place),
                if place > 0 { self.keys[place - 1] } else { 0 },
            )
        })
    }

    /// Puts another child of the same range in a place, at once for all readers.
    pub(super) fn replace(&self, place: usize, child: Node) {
        self.children[place].store(child.0, Ordering::Release);
    }

    /// How many children there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Makes this a node of exactly `children`, 1 to 64, each with its lower bound (the first
    /// one's is not looked at).
    pub(super) fn fill(&mut self, children: &[(Node, u64)]) {
        self.len = children.len();
        self.keys.fill(PAD);
        for (place, &(child, low)) in children.iter().enumerate() {
            if place > 0 {
                self.keys[place - 1] = low;
            }
            self.children[place] = AtomicPtr::new(child.0);
        }
    }
}

/// A pointer to a page, with its level (0 for a leaf) in the bits that alignment leaves free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Node(pub(super) *mut Page);

impl Node {
    /// Names a page that holds a node of that level.
    pub(super) fn new(page: *mut Page, level: usize) -> Node {
        debug_assert!(level <= LEVEL_MASK);
        Node(page.map_addr(|addr| addr | level))
    }

    /// 0 for a leaf, else one more than its children's.
    #[inline(always)]
    pub(super) fn level(self) -> usize {
        self.0.addr() & LEVEL_MASK
    }

    /// The page itself.
    #[inline(always)]
    pub(super) fn page(self) -> *mut Page {
        self.0.map_addr(|addr| addr & !LEVEL_MASK)
    }

    /// Asks for the lines that every search looks at, in a page of either kind.
    #[inline(always)]
    pub(super) fn prefetch(self) {
        let keys = self.page().cast_const().cast::<u8>();
        for group in 0..GROUPS {
            prefetch_line(keys.wrapping_add(group * GROUP * size_of::<u64>()));
        }
    }

    /// The leaf that it names.
    ///
    /// # Safety
    /// * The level is 0 and the page was filled as a leaf.
    /// * For `'a` nobody writes to the page or frees it: the caller is the writer, or a reader
    ///   that found the node after it last quiesced.
    #[inline(always)]
    pub(super) unsafe fn leaf<'a>(self) -> &'a Leaf {
        debug_assert_eq!(self.level(), 0);
        // SAFETY: the page is a valid leaf for 'a by the contract above; what the writer replaces in
        // it meanwhile is in a cell and goes through atomics.
        unsafe { &*self.page().cast::<Leaf>() }
    }

    /// The inner node that it names.
    ///
    /// # Safety
    /// As for [`Node::leaf`], with a level above 0.
    #[inline(always)]
    pub(super) unsafe fn inner<'a>(self) -> &'a Inner {
        debug_assert_ne!(self.level(), 0);
        // SAFETY: the page is a valid inner node for 'a by the contract above; its children are
        // atomics, so that their replacement is no write in the sense of the contract.
        unsafe { &*self.page().cast::<Inner>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_the_keys_at_or_below() {
        let mut keys = [PAD; FAN];
        for (i, key) in keys.iter_mut().take(10).enumerate() {
            *key = 10 * (i as u64 + 1);
        }
        for at in 0..120 {
            assert_eq!(rank(&keys, at), 10.min(at as usize / 10));
        }
        assert_eq!(rank(&keys, PAD - 1), 10);
        keys[10] = PAD - 1;
        assert_eq!(rank(&keys, PAD - 2), 10);
        assert_eq!(rank(&keys, PAD - 1), 11);
    }

    #[test]
    fn every_field_of_an_extent_survives_packing() {
        for (at, generation, dirty) in [
            (0, 0, false),
            ((1 << AT_BITS) - 1, 255, true),
            (1 << 42, 128, false),
            (77, 1, true),
        ] {
            let extent = Extent {
                start: Sector(PAD - 1 - 65_535),
                sectors: 65_535,
                at: Sector(at),
                generation: Gen(generation),
                dirty,
            };
            assert_eq!(unpack(extent.end().0, pack(&extent), 65_535), extent);
        }
    }
}
