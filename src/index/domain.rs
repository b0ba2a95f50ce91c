//! Who may still be looking: the quiescent states of the reading threads.
//!
//! A page that was taken out of a tree may be used again once no lookup that began before can
//! still be under way. Readers do not announce their lookups, they announce the *gaps* between
//! them ([`Reader::quiesce`], which a poller calls once a round): one load of a line that rarely
//! changes, and a store to a line of their own only when it did.
//!
//! # The argument
//!
//! The epoch is a counter that only writers advance. A writer unlinks pages (a store with
//! `Release`), then advances the epoch to `t` ([`Domain::advance`]). The pages are free once every
//! slot is seen at `t` or later ([`Domain::passed`]).
//!
//! * *A registered reader.* Its slot says `t` only after it loaded `t` from the epoch with
//!   `Acquire`, so the unlinking happened before everything that the reader does from then on: it
//!   cannot find the pages any more. What it did before is ordered before the `Release` store to
//!   its slot, and so before the writer's reuse of the pages, which follows the `Acquire` load.
//! * *A reader that registers or comes back online meanwhile.* It stores to its slot, then runs a
//!   sequentially consistent fence, then looks at a tree; the writer unlinks, then runs such a
//!   fence (in `advance`), then looks at the slots. Whichever fence is first, either the writer
//!   sees the slot or the reader sees the unlinking. This holds for each slot by itself, so the
//!   slots may be looked at one by one, over many calls, and each one passes once and for all.
//! * *A slot that is free or offline* counts as passed: its value is above every epoch.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::primitive::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::stats::Apart;

/// A slot that no reader has.
const FREE: u64 = u64::MAX;
/// A slot whose reader looks at nothing until it comes back.
const OFFLINE: u64 = u64::MAX - 1;

/// What the indexes of a cache set share: the epoch, and how far each reading thread has come.
pub struct Domain {
    epoch: Apart<AtomicU64>,
    /// Slots at and above this were never used.
    used: AtomicUsize,
    /// How far each reader has come.
    first: Slots,
    /// More slots, in chunks as long as the first, each made when all before it are taken.
    more: Box<[OnceLock<Slots>]>,
}

type Slots = Box<[Apart<AtomicU64>]>;

fn free_slots(n: usize) -> Slots {
    (0..n).map(|_| Apart(AtomicU64::new(FREE))).collect()
}

impl Domain {
    /// A domain for at most `max_readers` threads at a time (128 bytes each).
    pub fn new(max_readers: usize) -> Arc<Domain> {
        Domain::growing(max_readers, 1)
    }

    /// A domain for at most `chunks` times `a_chunk` threads at a time (at least 1 each). It takes
    /// memory for as many chunks as were ever needed.
    pub fn growing(a_chunk: usize, chunks: usize) -> Arc<Domain> {
        Arc::new(Domain {
            epoch: Apart(AtomicU64::new(1)),
            used: AtomicUsize::new(0),
            first: free_slots(a_chunk),
            more: (1..chunks).map(|_| OnceLock::new()).collect(),
        })
    }

    /// A slot, which must have been made: those that are in use have.
    fn slot(&self, slot: usize) -> &AtomicU64 {
        let a_chunk = self.first.len();
        match slot.checked_sub(a_chunk) {
            None => &self.first[slot].0,
            Some(behind) => {
                let chunk = self.more[behind / a_chunk].get().expect("slots in use");
                &chunk[behind % a_chunk].0
            }
        }
    }

    /// All slots, made as they are asked for.
    fn each_slot(&self) -> impl Iterator<Item = &AtomicU64> {
        let more = self.more.iter();
        let more = more.flat_map(|chunk| chunk.get_or_init(|| free_slots(self.first.len())));
        self.first.iter().chain(more).map(|slot| &slot.0)
    }

    /// Registers a reader for the calling thread. `None` when all slots are taken.
    pub fn reader(self: &Arc<Self>) -> Option<Reader> {
        for (slot, state) in self.each_slot().enumerate() {
            if state.load(Ordering::Relaxed) != FREE {
                continue;
            }
            // After the slot was made: who sees the number sees the slot.
            self.used.fetch_max(slot + 1, Ordering::AcqRel);
            let epoch = self.epoch.0.load(Ordering::Acquire);
            if state
                .compare_exchange(FREE, epoch, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                fence(Ordering::SeqCst);
                return Some(Reader {
                    domain: Arc::clone(self),
                    slot,
                    seen: Cell::new(epoch),
                });
            }
        }
        None
    }

    /// Ends an epoch. All that was unlinked before is free once [`Domain::passed`] says so for
    /// the number returned.
    pub(super) fn advance(&self) -> u64 {
        let target = self.epoch.0.fetch_add(1, Ordering::AcqRel) + 1;
        fence(Ordering::SeqCst);
        target
    }

    /// Looks at no more than `budget` slots from `cursor` on, which it moves past those that have
    /// reached `target`. `true` when none is left. Start with 0 for every new `target`.
    pub(super) fn passed(&self, target: u64, cursor: &mut usize, budget: usize) -> bool {
        let used = self.used.load(Ordering::Acquire);
        let stop = used.min(cursor.saturating_add(budget));
        while *cursor < stop {
            if self.slot(*cursor).load(Ordering::Acquire) < target {
                return false;
            }
            *cursor += 1;
        }
        *cursor >= used
    }

    /// How many slots one call of [`passed`](Self::passed) should look at, where nothing is urgent.
    pub(super) fn slots(&self) -> usize {
        self.first.len()
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("max_readers", &(self.first.len() * (1 + self.more.len())))
            .finish_non_exhaustive()
    }
}

/// A thread's right to look into the indexes of a domain. It can move to another thread, but
/// never serves two at a time. Dropping it gives the slot back.
///
/// A reader that neither quiesces nor goes offline keeps every page that was replaced since from
/// being used again: memory then grows by a page for each insert.
pub struct Reader {
    domain: Arc<Domain>,
    slot: usize,
    /// What our slot says. The cell also makes the type `!Sync`.
    seen: Cell<u64>,
}

impl Reader {
    /// Says that this thread is between two lookups. To be called once a poller's round.
    #[inline]
    pub fn quiesce(&self) {
        let epoch = self.domain.epoch.0.load(Ordering::Acquire);
        let seen = self.seen.get();
        if epoch != seen && seen != OFFLINE {
            self.seen.set(epoch);
            self.state().store(epoch, Ordering::Release);
        }
    }

    /// Says that this thread will not look for a while (before it sleeps, say), so that no page
    /// waits for it. The next lookup brings it back by itself.
    pub fn offline(&self) {
        self.seen.set(OFFLINE);
        self.state().store(OFFLINE, Ordering::Release);
    }

    /// Takes part again after [`Reader::offline`]; of no effect otherwise.
    pub fn online(&self) {
        if self.seen.get() == OFFLINE {
            let epoch = self.domain.epoch.0.load(Ordering::Acquire);
            self.seen.set(epoch);
            self.state().store(epoch, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// Makes sure that pages of `domain` which this thread finds from here to its next quiescent
    /// state stay what they are.
    ///
    /// # Panics
    /// When the reader is another domain's.
    #[inline]
    pub(super) fn enter(&self, domain: &Arc<Domain>) {
        assert!(
            Arc::ptr_eq(&self.domain, domain),
            "a reader of another domain"
        );
        if self.seen.get() == OFFLINE {
            self.online();
        }
    }

    fn state(&self) -> &AtomicU64 {
        self.domain.slot(self.slot)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.state().store(FREE, Ordering::Release);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_ends_when_every_reader_quiesced() {
        let domain = Domain::new(4);
        let (a, b) = (domain.reader().unwrap(), domain.reader().unwrap());
        let target = domain.advance();
        let mut cursor = 0;
        assert!(!domain.passed(target, &mut cursor, 9));
        a.quiesce();
        assert!(!domain.passed(target, &mut cursor, 9));
        assert_eq!(cursor, 1);
        b.quiesce();
        assert!(domain.passed(target, &mut cursor, 9));
    }

    #[test]
    fn neither_the_offline_nor_the_gone_are_waited_for() {
        let domain = Domain::new(4);
        let (a, b) = (domain.reader().unwrap(), domain.reader().unwrap());
        a.offline();
        a.quiesce();
        drop(b);
        let target = domain.advance();
        assert!(domain.passed(target, &mut 0, 9));
        a.online();
        assert!(
            domain.passed(target, &mut 0, 9),
            "it came back after the epoch had ended"
        );
        assert!(!domain.passed(domain.advance(), &mut 0, 9));
    }

    #[test]
    fn a_domain_grows_by_chunks_and_waits_for_readers_in_all_of_them() {
        let domain = Domain::growing(2, 3);
        let mut readers: Vec<_> = (0..6).map(|_| domain.reader().unwrap()).collect();
        assert!(domain.reader().is_none());
        let (target, mut cursor) = (domain.advance(), 0);
        readers[..5].iter().for_each(Reader::quiesce);
        assert!(!domain.passed(target, &mut cursor, 9) && cursor == 5);
        readers[5].quiesce();
        assert!(domain.passed(target, &mut cursor, 9));
        readers.remove(3);
        readers.push(domain.reader().expect("a slot was given back"));
        assert!(domain.reader().is_none());
    }

    #[test]
    fn a_pass_looks_at_no_more_slots_than_its_budget() {
        let domain = Domain::new(4);
        let readers: Vec<_> = (0..4).map(|_| domain.reader().unwrap()).collect();
        assert!(domain.reader().is_none());
        let target = domain.advance();
        readers.iter().for_each(Reader::quiesce);
        let mut cursor = 0;
        assert!(!domain.passed(target, &mut cursor, 3));
        assert!(domain.passed(target, &mut cursor, 1));
        drop(readers);
        assert!(domain.reader().is_some());
    }
}

/// The argument at the head, with every interleaving and every value that a load may return: a
/// page that a reader looks at is never written to. Loom notices if it is.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// A map of one pointer, with two pages to point to.
    struct Map {
        domain: Arc<Domain>,
        root: AtomicUsize,
        pages: [UnsafeCell<u64>; 2],
    }

    // SAFETY: what the tests are about; loom watches the cells.
    unsafe impl Sync for Map {}
    // SAFETY: as above.
    unsafe impl Send for Map {}

    impl Map {
        fn new() -> Arc<Map> {
            let pages = [UnsafeCell::new(1), UnsafeCell::new(0)];
            Arc::new(Map {
                domain: Domain::new(2),
                root: AtomicUsize::new(0),
                pages,
            })
        }

        fn look(&self, reader: &Reader) -> u64 {
            reader.enter(&self.domain);
            let page = self.root.load(Ordering::Acquire);
            // SAFETY: the page was in the map after the reader last quiesced.
            self.pages[page].with(|page| unsafe { *page })
        }

        /// Publishes page 1 in the place of page 0, and uses page 0 again if it is free after
        /// so many looks at the readers.
        fn change(&self, looks: usize) {
            // SAFETY: page 1 was never in the map.
            self.pages[1].with_mut(|page| unsafe { *page = 2 });
            self.root.store(1, Ordering::Release);
            let (target, mut cursor) = (self.domain.advance(), 0);
            for _ in 0..looks {
                if self.domain.passed(target, &mut cursor, 1) {
                    // SAFETY: no reader can see page 0 any more.
                    self.pages[0].with_mut(|page| unsafe { *page = 3 });
                    return;
                }
                thread::yield_now();
            }
        }
    }

    fn check(read: fn(&Map)) {
        loom::model(move || {
            let map = Map::new();
            let theirs = Arc::clone(&map);
            let other = thread::spawn(move || read(&theirs));
            map.change(3);
            other.join().unwrap();
        });
    }

    #[test]
    fn a_reader_that_quiesces_is_waited_for() {
        loom::model(|| {
            let map = Map::new();
            let (theirs, reader) = (Arc::clone(&map), map.domain.reader().unwrap());
            let other = thread::spawn(move || {
                let first = theirs.look(&reader);
                reader.quiesce();
                let second = theirs.look(&reader);
                assert!(matches!((first, second), (1, 1) | (1, 2) | (2, 2)));
            });
            map.change(3);
            other.join().unwrap();
        });
    }

    #[test]
    fn a_reader_that_registers_meanwhile_is_safe() {
        check(|map| {
            let reader = map.domain.reader().unwrap();
            assert!(matches!(map.look(&reader), 1 | 2));
        });
    }

    #[test]
    fn a_reader_that_was_offline_meanwhile_is_safe() {
        check(|map| {
            let reader = map.domain.reader().unwrap();
            reader.offline();
            assert!(matches!(map.look(&reader), 1 | 2));
        });
    }

    #[test]
    fn a_slot_that_changes_hands_is_safe() {
        check(|map| {
            let reader = map.domain.reader().unwrap();
            map.look(&reader);
            drop(reader);
            let reader = map.domain.reader().unwrap();
            assert!(matches!(map.look(&reader), 1 | 2));
        });
    }
}
