//! Buckets: who owns each, what it holds, and which are free.
//!
//! A bucket is in one of four states. *Free*: on the free list, its generation durable. *Data*:
//! holds extents, or is being filled, or has just become empty. *Meta*: superblock, journal,
//! priorities, uuids or a btree node. *Invalid*: its generation was raised, and waits until the
//! raised generation is on disk; then it is free.
//!
//! Laws:
//! - The generations on disk are never behind those of a bucket that was reused: Data → Invalid →
//!   (priorities written, journal entry with their place durable) → Free. Since that journal entry
//!   comes after all entries with keys that emptied the bucket, a crash never revives an old
//!   pointer to new data nor forgets the newer copy of dirty data. Nodes that are written before a
//!   start has written the priorities are the exception: see [`Alloc::start_from_empty`].
//! - Only a bucket without dirty sectors and without pins is invalidated. A pin is held by
//!   whoever has I/O to the bucket under way that no key speaks of yet.
//! - No generation runs more than 96 ahead of the oldest pointer to its bucket: such a bucket
//!   waits for a sweep ([`Alloc::sweep_wanted`]).
//! - Reserves ([`Alloc::reserve`]): data never take the last buckets, which are for moving data out
//!   of mostly empty buckets; those moves never take what btree nodes may need; nodes never take
//!   what one writing of the priorities needs. So a full cache can always write what it needs in
//!   order to make room.
//! - What stays on the free list is what Linux could take, too: the module `free` says in which order
//!   buckets are taken.
//! - Who needs several nodes takes them all at once ([`Alloc::take_nodes`]) and holds none while it
//!   waits, so no two of them can each have half of what they need.
//!
//! Live and dirty sectors are counted exactly for pointers of the current generation.

mod free;
pub mod gens;
pub mod prios;
mod refill;
mod table;
pub mod thin;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::disk::{Disk, Latch, Stopped};
use crate::format::prio::{buckets_needed, per_bucket};
use crate::index::Extent;
use crate::journal::{Journal, Shape};
use crate::limits::{MAX_GEN_DISTANCE, meta_bucket_bytes};
use crate::task::{Notify, Work, breathe, scrap, work};
use crate::units::{BucketNr, Gen, JournalSeq, Sector};
use free::{FreeList, Marked, Replayed};
use gens::Gens;
use table::{Bucket, Table};

/// What a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// On the free list.
    Free,
    /// Waits for its generation to be durable.
    Invalid,
    /// Extents.
    Data,
    /// The set's own structures.
    Meta,
}

/// What a bucket is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Host data.
    Data,
    /// Data moved out of other buckets, so that these become free.
    Move,
    /// A btree node or the uuid table.
    Node,
    /// Priorities and generations.
    Prio,
}

/// How many buckets are of each kind, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Free, empty or about to be free.
    pub free: u64,
    /// Clean data, with nothing dirty.
    pub clean: u64,
    /// At least one dirty sector.
    pub dirty: u64,
    /// Superblock, journal, priorities, uuids, btree.
    pub metadata: u64,
}

/// The most nodes that one node becomes when it is written anew, if what is pending for it fits
/// into a fresh node. A node is at most as full as its bytes (the keys of an inner one, with those
/// of replaced children that it still holds, never exceed them), a fresh one is filled to half of
/// that or more, and one key may be added: two halves and a rest.
pub const PARTS_MAX: usize = 3;

/// The most nodes that one step of the btree's writer takes when the root is so many levels above
/// the leaves: it replaces one node (or joins several), then at worst every node above it, each by
/// [`PARTS_MAX`], and puts a new root over what became of the old one. Leaves with more pending
/// than a fresh node holds are counted besides, as *debt* ([`Alloc::set_node_debt`]). There is one
/// such writer.
pub const fn step_nodes(level: u16) -> usize {
    PARTS_MAX * (level as usize + 1) + 1
}

/// Buckets of the uuid table's next copy: its writer is the only one besides the btree's.
const UUID_RESERVE: usize = 1;

/// The allocator of a running set's cache device.
pub struct Alloc {
    /// What reactors see.
    pub gens: Arc<Gens>,
    disk: Rc<dyn Disk>,
    shape: Shape,
    latch: Rc<Latch>,
    journal: Rc<Journal>,
    table: RefCell<Table>,
    free: RefCell<FreeList>,
    replayed: RefCell<Replayed>,
    /// While a set is loaded: the buckets that leaves or entries name in their generation.
    named: RefCell<Marked>,
    /// A start has freed buckets whose generations are not on the disk yet.
    gens_lag: Cell<bool>,
    prios: RefCell<Vec<BucketNr>>,
    prio_seq: Cell<u64>,
    /// Nodes that somebody waits for at once.
    asked: Cell<usize>,
    /// Nodes that the leaves due for writing take beyond one step's.
    node_debt: Cell<usize>,
    dirty_sectors: Cell<u64>,
    /// Notified when the free list is short, or somebody found it too short.
    wanted: Notify,
    /// Notified when buckets have become free.
    pub freed: Notify,
    /// Notified when a data bucket became empty or lost its last dirty sector or pin.
    reclaimable: Notify,
    /// Notified when generations near their limit: a sweep of stale keys is due.
    pub sweep_due: Notify,
    sweep_wanted: Cell<bool>,
    sweep_urgent: Cell<bool>,
    starving: Cell<bool>,
    /// Whether the last look found fewer buckets to reuse than were wanted.
    scarce: Cell<bool>,
    /// Whether write-back makes room.
    cleaning: Cell<bool>,
    stopping: Cell<bool>,
    running: Cell<bool>,
    invalidated_since_sweep: Cell<u64>,
    /// Notified when moving data may make room.
    pub move_due: Notify,
    /// Buckets with live data that were invalidated since data were last moved.
    evicted_since_move: Cell<u64>,
    /// Somebody has wanted a bucket for data since the set started.
    data_wanted: Cell<bool>,
}

impl Alloc {
    /// An allocator whose buckets up to the end of the journal are metadata. All others are `rest`:
    /// [`Use::Free`] in a new set, [`Use::Data`] (empty until accounted) in one that is loaded. Made
    /// in bounded steps.
    pub async fn make(
        gens: Arc<Gens>,
        disk: Rc<dyn Disk>,
        shape: Shape,
        latch: Rc<Latch>,
        journal: Rc<Journal>,
        data_start: BucketNr,
        rest: Use,
    ) -> Rc<Alloc> {
        let table = Table::make(gens.len(), data_start, rest, |b| gens.generation(b)).await;
        let free = match rest {
            Use::Free => FreeList::of(data_start.0..gens.len() as u32),
            _ => FreeList::default(),
        };
        Rc::new(Alloc {
            gens,
            disk,
            shape,
            latch,
            journal,
            table: RefCell::new(table),
            free: RefCell::new(free),
            replayed: RefCell::default(),
            named: RefCell::default(),
            gens_lag: Cell::new(false),
            prios: RefCell::new(Vec::new()),
            prio_seq: Cell::new(0),
            asked: Cell::new(0),
            node_debt: Cell::new(0),
            dirty_sectors: Cell::new(0),
            wanted: Notify::default(),
            freed: Notify::default(),
            reclaimable: Notify::default(),
            sweep_due: Notify::default(),
            sweep_wanted: Cell::new(false),
            sweep_urgent: Cell::new(false),
            starving: Cell::new(false),
            scarce: Cell::new(false),
            cleaning: Cell::new(false),
            stopping: Cell::new(false),
            running: Cell::new(false),
            invalidated_since_sweep: Cell::new(0),
            move_due: Notify::default(),
            evicted_since_move: Cell::new(0),
            data_wanted: Cell::new(false),
        })
    }

    /// Changes what is known of a bucket.
    fn change<R>(&self, bucket: BucketNr, f: impl FnOnce(&mut Bucket) -> R) -> R {
        self.table.borrow_mut().change(bucket, f)
    }

    fn slot(&self, bucket: BucketNr) -> Bucket {
        *self.table.borrow().get(bucket)
    }

    fn set_state(&self, bucket: BucketNr, state: Use) {
        self.change(bucket, |slot| slot.state = state);
    }

    /// Marks a bucket as metadata while a set is loaded.
    pub fn claim_meta(&self, bucket: BucketNr) {
        self.set_state(bucket, Use::Meta);
    }

    /// There is a pointer of this generation on disk: noted while a set is loaded.
    pub fn note_pointer(&self, bucket: BucketNr, generation: Gen) {
        self.change(bucket, |slot| {
            if slot.oldest.ahead_of(generation) > 0 {
                slot.oldest = generation;
            }
        });
    }

    /// A leaf or an entry of the journal names a bucket in its generation, or in one ahead of it: noted
    /// while a set is loaded.
    pub fn note_named(&self, bucket: BucketNr) {
        self.named.borrow_mut().add(bucket, self.gens.len());
    }

    /// A journal entry that is replayed names a bucket: noted while a set is loaded.
    pub fn note_replayed(&self, bucket: BucketNr, seq: JournalSeq) {
        let nbuckets = self.gens.len();
        self.replayed.borrow_mut().note(bucket, seq, nbuckets);
    }

    /// The first sector of a bucket, and the one behind its last.
    pub fn range_of(&self, bucket: BucketNr) -> (Sector, Sector) {
        let start = self.shape.sector_of(bucket);
        (start, start + u64::from(self.shape.geometry.bucket_sectors))
    }

    /// What a bucket is now.
    pub fn state(&self, bucket: BucketNr) -> Use {
        self.slot(bucket).state
    }

    /// Puts a bucket on the free list without raising its generation: one that no pointer with a
    /// generation ever named (a new set's, or one that held priorities).
    pub fn free_unreferenced(&self, bucket: BucketNr) {
        self.set_state(bucket, Use::Free);
        self.free.borrow_mut().push(bucket);
        self.freed.notify();
    }

    /// Buckets that one writing of the priorities takes.
    pub fn prio_buckets(&self) -> usize {
        let bytes = meta_bucket_bytes(self.shape.geometry.bucket_sectors);
        buckets_needed(self.shape.geometry.nbuckets, per_bucket(bytes)) as usize
    }

    /// Buckets that moving data may take when hosts may not: enough that one move pays, few enough
    /// not to be missed.
    fn move_reserve(&self) -> usize {
        (self.gens.len() / 128).clamp(4, 256)
    }

    /// Buckets that must stay free behind one taken for `purpose`.
    pub fn reserve(&self, purpose: Purpose) -> usize {
        let prios = self.prio_buckets();
        let nodes = || step_nodes(self.journal.roots().level) + UUID_RESERVE + self.node_debt.get();
        match purpose {
            Purpose::Data => prios + nodes() + self.move_reserve(),
            Purpose::Move => prios + nodes(),
            Purpose::Node => prios,
            Purpose::Prio => 0,
        }
    }

    /// Says how many nodes the leaves that are due take beyond one step's; no more than an eighth
    /// of the device is held back for them, the rest comes as they are written.
    pub fn set_node_debt(&self, nodes: usize) {
        self.node_debt.set(nodes.min(self.gens.len() / 8));
    }

    /// Takes a free bucket. A data bucket comes pinned once. `None`: wait for `freed`.
    pub fn take(&self, purpose: Purpose) -> Option<(BucketNr, Gen)> {
        if purpose == Purpose::Data {
            self.note_data_wanted();
        }
        let left = self.free.borrow().len();
        if left < self.low_water() {
            self.wanted.notify();
        }
        let is_for_data = matches!(purpose, Purpose::Data | Purpose::Move);
        if left <= self.reserve(purpose) || is_for_data && self.gens_lag.get() {
            return None;
        }
        let bucket = self.free.borrow_mut().pop()?;
        match purpose {
            Purpose::Data | Purpose::Move => {
                self.change(bucket, |slot| (slot.state, slot.pins) = (Use::Data, 1));
            }
            Purpose::Node | Purpose::Prio => self.set_state(bucket, Use::Meta),
        }
        self.gens.touch(bucket);
        Some((bucket, self.gens.generation(bucket)))
    }

    /// Waits until `n` nodes can be taken.
    pub async fn nodes_ready(&self, n: usize) -> Result<(), Stopped> {
        while !self.take_ready(n) {
            self.latch.check()?;
            self.asked.set(self.asked.get().max(n));
            self.wanted.notify();
            self.freed.wait().await;
        }
        self.asked.set(0);
        self.latch.check()
    }

    /// Whether `n` nodes can be taken now.
    pub fn take_ready(&self, n: usize) -> bool {
        self.free.borrow().len() >= self.reserve(Purpose::Node) + n
    }

    /// Takes `n` nodes, all or none. `None`: wait for [`nodes_ready`](Self::nodes_ready).
    pub fn take_nodes(&self, n: usize) -> Option<Vec<(BucketNr, Gen)>> {
        if !self.take_ready(n) {
            return None;
        }
        (0..n).map(|_| self.take(Purpose::Node)).collect()
    }

    /// Gives back a node's bucket that nothing was written to.
    pub fn give_back(&self, bucket: BucketNr) {
        self.free_unreferenced(bucket);
    }

    /// Free buckets that data may take.
    pub fn data_ready(&self) -> usize {
        if self.gens_lag.get() {
            return 0;
        }
        let free = self.free.borrow().len();
        free.saturating_sub(self.reserve(Purpose::Data))
    }

    /// Says that somebody waits for a data bucket.
    pub fn want_data(&self) {
        self.wanted.notify();
        self.note_data_wanted();
    }

    fn note_data_wanted(&self) {
        if !self.data_wanted.replace(true) {
            self.move_due.notify();
        }
    }

    /// Whether nothing can be invalidated although buckets are wanted: dirty data must go.
    pub fn is_starving(&self) -> bool {
        self.starving.get()
    }

    /// Whether fewer buckets can be reused than are wanted, or none.
    pub fn is_scarce(&self) -> bool {
        self.scarce.get()
    }

    /// Whether write-back makes room just now.
    pub fn is_cleaning(&self) -> bool {
        self.cleaning.get()
    }

    /// Says so; write-back does after each round.
    pub fn set_cleaning(&self, cleaning: bool) {
        self.cleaning.set(cleaning);
    }

    /// Buckets that a cache in which they are scarce keeps for writes that cannot go past it, those over dirty
    /// data: they would wait until write-back has emptied a bucket.
    pub fn data_kept(&self) -> usize {
        (self.gens.len() / 64).min(64)
    }

    /// A btree node or uuid bucket is no longer named by anything durable. `generation` is one that
    /// no pointer to it has.
    pub fn release_meta(&self, bucket: BucketNr, generation: Gen) {
        assert_eq!(self.state(bucket), Use::Meta, "release of {bucket:?}");
        self.gens.set_generation(bucket, generation);
        self.set_state(bucket, Use::Data);
        self.reclaimable.notify();
    }

    /// How far the generation is ahead of the oldest pointer there may be, at most 96.
    pub fn gen_distance(&self, bucket: BucketNr) -> i8 {
        let oldest = self.slot(bucket).oldest;
        self.gens.generation(bucket).ahead_of(oldest)
    }

    /// A generation further ahead than the format allows would make old pointers look fresh.
    fn check_gen(&self, bucket: BucketNr) {
        let ahead = self.gen_distance(bucket);
        assert!(
            (0..=MAX_GEN_DISTANCE as i8).contains(&ahead),
            "{bucket:?} is {ahead} generations ahead of its oldest pointer"
        );
    }

    /// Holds a bucket against invalidation.
    pub fn pin(&self, bucket: BucketNr) {
        self.change(bucket, |slot| slot.pins += 1);
    }

    /// Gives a pin back.
    pub fn unpin(&self, bucket: BucketNr) {
        let slot = self.change(bucket, |slot| {
            assert!(slot.pins > 0, "{bucket:?} is not pinned");
            slot.pins -= 1;
            *slot
        });
        if slot.pins == 0 && slot.dirty_sectors == 0 {
            self.reclaimable.notify();
        }
    }

    /// Counts an extent in. One of an older generation counts nothing.
    pub fn add(&self, bucket: BucketNr, generation: Gen, sectors: u32, dirty: bool) {
        if self.gens.generation(bucket) != generation {
            return;
        }
        let most = self.shape.geometry.bucket_sectors;
        self.change(bucket, |slot| {
            slot.live_sectors += sectors;
            assert!(
                slot.live_sectors <= most,
                "{bucket:?} holds more than it can"
            );
            slot.dirty_sectors += if dirty { sectors } else { 0 };
        });
        if dirty {
            self.dirty_sectors
                .set(self.dirty_sectors.get() + u64::from(sectors));
        }
    }

    /// Counts an extent out.
    pub fn sub(&self, bucket: BucketNr, generation: Gen, sectors: u32, dirty: bool) {
        if self.gens.generation(bucket) != generation {
            return;
        }
        let slot = self.change(bucket, |slot| {
            slot.live_sectors -= sectors;
            slot.dirty_sectors -= if dirty { sectors } else { 0 };
            *slot
        });
        if dirty {
            self.dirty_sectors
                .set(self.dirty_sectors.get() - u64::from(sectors));
        }
        if slot.pins == 0 && slot.dirty_sectors == 0 && (dirty || slot.live_sectors == 0) {
            self.reclaimable.notify();
        }
    }

    /// (live, dirty) sectors of a bucket, counting the current generation alone.
    pub fn sectors(&self, bucket: BucketNr) -> (u32, u32) {
        let slot = self.slot(bucket);
        (slot.live_sectors, slot.dirty_sectors)
    }

    /// How many hold a bucket against invalidation.
    pub fn pins(&self, bucket: BucketNr) -> u16 {
        self.slot(bucket).pins
    }

    /// Dirty sectors in all buckets.
    pub fn dirty_sectors(&self) -> u64 {
        self.dirty_sectors.get()
    }

    /// Sectors in buckets that can hold data.
    pub fn data_sectors(&self) -> u64 {
        let Census {
            free, clean, dirty, ..
        } = self.census();
        (free + clean + dirty) * u64::from(self.shape.geometry.bucket_sectors)
    }

    /// The buckets by what they hold: counted as they change.
    pub fn census(&self) -> Census {
        self.table.borrow().census()
    }

    /// Whether an extent is stale in memory alone: its bucket is just being invalidated, and on disk
    /// the generation of the pointer is still the bucket's.
    pub fn is_invalid_in_memory_only(&self, extent: &Extent) -> bool {
        let bucket = self.gens.bucket_of(extent.at);
        let ahead = self.gens.generation(bucket).ahead_of(extent.generation);
        self.state(bucket) == Use::Invalid && ahead == 1
    }

    /// Whether stale keys should be swept before more buckets can be reused.
    pub fn sweep_wanted(&self) -> bool {
        self.sweep_wanted.get()
    }

    /// Whether buckets, or the btree's writer, wait for nothing else.
    pub fn sweep_is_urgent(&self) -> bool {
        self.sweep_urgent.get()
    }

    fn want_sweep(&self, urgent: bool) {
        self.sweep_wanted.set(true);
        self.sweep_urgent.set(urgent || self.sweep_urgent.get());
        self.sweep_due.notify();
    }

    /// The generations that a sweep starting now may rely on: those of buckets that are not in
    /// the middle of being invalidated. In bounded steps.
    pub async fn sweep_start(&self) -> Swept {
        self.invalidated_since_sweep.set(0);
        self.sweep_wanted.set(false);
        self.sweep_urgent.set(false);
        let (mut swept, mut at) = (Swept::default(), 0);
        while at < self.gens.len() {
            let piece: Vec<Gen> = {
                let table = self.table.borrow();
                let some = table.some_from(at, Work::Buckets.slice()).unwrap_or(&[]);
                let some = some.iter().enumerate();
                some.map(|(i, slot)| match slot.state {
                    Use::Invalid => slot.oldest,
                    _ => self.gens.generation(BucketNr((at + i) as u32)),
                })
                .collect()
            };
            work(Work::Buckets, piece.len());
            at += piece.len();
            swept.pieces.push(piece);
            breathe().await;
        }
        swept
    }

    /// A sweep is done: no pointer is older than what [`sweep_start`](Self::sweep_start) returned.
    pub async fn sweep_end(&self, mut swept: Swept) {
        let mut bucket = BucketNr(0);
        for piece in std::mem::take(&mut swept.pieces) {
            for &oldest in &piece {
                self.change(bucket, |slot| slot.oldest = oldest);
                bucket.0 += 1;
            }
            work(Work::Buckets, piece.len());
            breathe().await;
        }
        self.reclaimable.notify();
        self.wanted.notify();
    }

    fn low_water(&self) -> usize {
        let n = self.gens.len();
        let asked = self.asked.get() + self.reserve(Purpose::Node);
        ((n / 32).clamp(4, 4096) + self.reserve(Purpose::Data)).max(asked)
    }

    /// Whether the generation may not be raised before the next sweep. One step before the limit, for
    /// a bucket that becomes a btree node is raised once more when the node is let go.
    fn near_gen_limit(&self, slot: &Bucket, bucket: BucketNr) -> bool {
        let ahead = self.gens.generation(bucket).ahead_of(slot.oldest);
        // Below zero: what was loaded was damaged, and a sweep sets it right.
        !(0..MAX_GEN_DISTANCE as i8 - 1).contains(&ahead)
    }
}

/// The generations of all buckets when a sweep began.
#[derive(Default)]
pub struct Swept {
    pieces: Vec<Vec<Gen>>,
}

impl Drop for Swept {
    fn drop(&mut self) {
        scrap(std::mem::take(&mut self.pieces), 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bset::HEADER_BYTES;
    use crate::format::key::MAX_BYTES;
    use crate::limits::fresh_node_sectors;
    use crate::units::SECTOR_BYTES;

    /// What [`PARTS_MAX`] says, for every legal geometry.
    #[test]
    fn a_node_becomes_three_at_most() {
        for bucket_shift in 3..16 {
            for block_shift in 0..=3 {
                let (bucket, block) = (1u32 << bucket_shift, 1u32 << block_shift);
                let node = fresh_node_sectors(bucket) as usize * SECTOR_BYTES;
                let block = block as usize * SECTOR_BYTES;
                let fill = (node * 2 / 3).min(node - block.min(node / 2)) - HEADER_BYTES;
                let most = node - HEADER_BYTES + PARTS_MAX * MAX_BYTES;
                assert!(most.div_ceil(fill) <= PARTS_MAX, "{bucket} {block}");
            }
        }
        assert_eq!((step_nodes(0), step_nodes(2)), (4, 10));
    }
}
