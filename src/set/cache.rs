//! One cache set: its device, and the machinery that runs on it.
//!
//! Start, in steps: superblock → journal → priorities → uuids → tree → replay → count → go. Nothing
//! is written before all of it has been read and found right; a device that is refused is left as
//! it was.
//!
//! A fresh device becomes a set in steps that a crash may cut anywhere: until the superblock says
//! SYNC, which comes last, the device is still fresh and is begun anew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::backings::SetBackings;
use super::error::SetError;
use super::host::Host;
use super::job::Job;
use super::options::OnError;
use super::volume::Backing;
use crate::alloc::gens::Gens;
use crate::alloc::{Alloc, Purpose, Use, prios};
use crate::btree::Tree;
use crate::disk::{Disk, IoError, Latch, LongWrite, read_long};
use crate::format::jset::Jset;
use crate::format::key::{Key, Ptr};
use crate::format::superblock::{
    CacheSuper, RanOn, SUPER_BYTES, SUPER_SECTOR, Super, foreign, parse,
};
use crate::format::uuids::{self, UuidEntry};
use crate::gc;
use crate::gc::moving::Mover;
use crate::index::Domain;
use crate::journal::replay::{self, Placed, Replay};
use crate::journal::ring::{Ring, Slot};
use crate::journal::{Journal, Roots, Shape, Start};
use crate::limits::{
    INITIAL_PRIO, MIN_JOURNAL_BLOCKS, journal_buckets, meta_bucket_bytes, meta_bucket_sectors,
};
use crate::request::owner::{self, Owner};
use crate::request::volume::SetShared;
use crate::rng::Rng;
use crate::stats::Windows;
use crate::task::{Executor, Work, breathe, either, work};
use crate::units::{BucketNr, Inode, JournalSeq, SECTOR_BYTES, Sector, Uuid};
use crate::writeback::Writeback;

/// Fronts that a set can have at the same time: one for each volume on each thread that serves it.
/// 256 volumes on 256 threads; 128 bytes each, taken in chunks.
const READERS_A_CHUNK: usize = 1024;
const READER_CHUNKS: usize = 64;
/// How long a change of the uuid table waits for a bucket: 10 s.
const BUCKET_WAIT_US: u64 = 10_000_000;
/// How long a start that failed waits for its tasks to let the device go: 10 s.
const GIVE_UP_US: u64 = 10_000_000;
/// How often it looks whether they have: 0.1 ms.
const GIVE_UP_LOOK_US: u64 = 100;

/// A running cache set.
pub struct CacheSet {
    /// The cache device.
    pub disk: Rc<dyn Disk>,
    superblock: RefCell<CacheSuper>,
    shape: Shape,
    /// Tripped when the set had to stop.
    pub latch: Rc<Latch>,
    /// The journal.
    pub journal: Rc<Journal>,
    /// The allocator.
    pub alloc: Rc<Alloc>,
    /// The map.
    pub tree: Rc<Tree>,
    backings: Rc<SetBackings>,
    /// The owner of its volumes.
    pub owner: Rc<Owner>,
    /// Its write-back.
    pub writeback: Rc<Writeback>,
    /// What becomes of it when its device fails.
    pub on_error: Cell<OnError>,
    /// Its moving gc.
    pub mover: Rc<Mover>,
    /// Its statistics over time.
    pub windows: RefCell<Windows>,
    uuids: RefCell<Vec<UuidEntry>>,
    /// It is about to stop: no volume comes to it any more.
    pub(super) closing: Cell<bool>,
    /// Its device is being removed: it stops for good.
    pub(super) device_goes: Cell<bool>,
    /// Its end with all volumes written back.
    pub unregistering: Job,
    stopped: Cell<bool>,
}

/// Reads the superblock of a device, which may be of either kind.
///
/// # Errors
/// The device is too small, cannot be read, or has no valid superblock.
pub async fn read_super(disk: &Rc<dyn Disk>) -> Result<Super, SetError> {
    let sectors = (SUPER_BYTES / SECTOR_BYTES) as u64;
    if disk.size_sectors() < SUPER_SECTOR.0 + sectors {
        return Err(SetError::NoSuper(disk.name()));
    }
    let buf = disk.alloc(SUPER_BYTES);
    let (buf, done) = disk.read(SUPER_SECTOR, buf).await;
    done.map_err(|e| SetError::Io(disk.name(), e))?;
    if let Some(error) = foreign(&buf) {
        return Err(SetError::Foreign(disk.name(), error));
    }
    if !crate::format::superblock::has_magic(&buf) {
        return Err(SetError::NoSuper(disk.name()));
    }
    parse(&buf).map_err(|e| SetError::Super(disk.name(), e))
}

/// Writes a superblock, durably.
pub async fn write_super(disk: &Rc<dyn Disk>, bytes: &[u8; SUPER_BYTES]) -> Result<(), IoError> {
    let mut buf = disk.alloc(SUPER_BYTES);
    buf.copy_from_slice(bytes);
    disk.write(SUPER_SECTOR, buf).await.1?;
    disk.flush().await
}

struct Engine {
    gens: Arc<Gens>,
    latch: Rc<Latch>,
    rng: Rc<Rng>,
    exec: Executor,
    disk: Rc<dyn Disk>,
    shape: Shape,
}

impl Engine {
    async fn new(host: &dyn Host, exec: Executor, disk: Rc<dyn Disk>, sb: &CacheSuper) -> Engine {
        let gens = Gens::make(sb.nbuckets as usize, sb.bucket_sectors).await;
        Engine {
            gens: Arc::new(gens),
            latch: Rc::default(),
            rng: Rc::new(Rng::new(host.entropy())),
            exec,
            disk,
            shape: Shape {
                geometry: sb.geometry(),
                set_magic: sb.set_magic(),
            },
        }
    }

    /// The machinery of a set whose buckets from `data_start` on are `rest`.
    async fn build(
        &self,
        start: Start,
        data_start: BucketNr,
        rest: Use,
    ) -> (Rc<Journal>, Rc<Alloc>, Rc<Tree>) {
        let (disk, shape, latch) = (&self.disk, &self.shape, &self.latch);
        let journal = Journal::new(
            disk.clone(),
            self.exec.clone(),
            shape.clone(),
            latch.clone(),
            start,
        );
        let alloc = Alloc::make(
            self.gens.clone(),
            disk.clone(),
            shape.clone(),
            latch.clone(),
            journal.clone(),
            data_start,
            rest,
        )
        .await;
        let tree = Tree::new(
            disk.clone(),
            shape.clone(),
            latch.clone(),
            journal.clone(),
            alloc.clone(),
            Domain::growing(READERS_A_CHUNK, READER_CHUNKS),
            self.rng.clone(),
        );
        (journal, alloc, tree)
    }
}

impl CacheSet {
    /// Starts the set on a device with a valid superblock: recovers it, or, if it never ran, begins
    /// it.
    ///
    /// # Errors
    /// See [`SetError`]; nothing has been written then, unless the device was fresh.
    pub async fn start(
        host: &dyn Host,
        exec: Executor,
        disk: Rc<dyn Disk>,
        mut sb: CacheSuper,
    ) -> Result<Rc<CacheSet>, SetError> {
        let bad = |e| SetError::Super(disk.name(), e);
        sb.check_device(disk.size_sectors()).map_err(bad)?;
        if u32::from(sb.block_sectors) < disk.block_sectors() {
            return Err(SetError::BlockTooSmall {
                device: disk.name(),
                set_sectors: sb.block_sectors.into(),
                device_sectors: disk.block_sectors(),
            });
        }
        let journal_blocks = journal_buckets(sb.nbuckets) * u64::from(sb.bucket_sectors)
            / u64::from(sb.block_sectors);
        if journal_blocks < MIN_JOURNAL_BLOCKS {
            return Err(SetError::Invalid(format!(
                "{}: a journal of {journal_blocks} blocks is too short, {MIN_JOURNAL_BLOCKS} are \
                 needed: format the device with larger buckets or smaller blocks",
                disk.name()
            )));
        }
        sb.last_mount = host.now_s();
        sb.set_ran_on(&RanOn::new(disk.kind(), disk.size_sectors()));
        if sb.sync() && !sb.journal_buckets.is_empty() {
            Self::recover(host, exec, disk, sb).await
        } else {
            Self::begin(host, exec, disk, sb).await
        }
    }

    async fn begin(
        host: &dyn Host,
        exec: Executor,
        disk: Rc<dyn Disk>,
        old: CacheSuper,
    ) -> Result<Rc<CacheSet>, SetError> {
        let handles = Rc::strong_count(&disk);
        let mut sb = old.clone();
        sb.prepare_first_run();
        sb.set_sync(false);
        let io = |e| SetError::Io(disk.name(), e);
        let engine = Engine::new(host, exec, disk.clone(), &sb).await;
        let first = engine.shape.sector_of(sb.journal_buckets[0]);
        let length = sb.journal_buckets.len() as u64 * u64::from(sb.bucket_sectors);
        // Entries of an earlier life of this set would be taken for newer ones.
        disk.write_zeroes(first, length).await.map_err(io)?;
        let slots = sb.journal_buckets.iter().map(|&bucket| Slot {
            bucket,
            newest: JournalSeq(0),
        });
        let (block, bucket) = (sb.block_sectors.into(), sb.bucket_sectors);
        let ring = Ring::new(slots.collect(), 0, 0, block, bucket, JournalSeq(1));
        let start = Start {
            roots: Roots {
                root: Key::MAX,
                level: 0,
                uuid_bucket: Key::ZERO,
                prio_bucket: BucketNr(0),
            },
            seq: JournalSeq(1),
            pins_first: JournalSeq(1),
            ring,
        };
        let data_start = BucketNr(sb.journal_buckets[0].0 + sb.journal_buckets.len() as u32);
        let (journal, alloc, tree) = engine.build(start, data_start, Use::Free).await;
        let latch = engine.latch.clone();
        let stopped = |_| SetError::Stopped(latch.why().unwrap_or_default());
        tree.create().await.map_err(stopped)?;
        let entries = uuids::per_table(meta_bucket_bytes(sb.bucket_sectors));
        let set = Self::assemble(engine, sb, journal, alloc, tree, entries);
        set.uuids
            .borrow_mut()
            .resize(entries, UuidEntry::decode(&[0; uuids::ENTRY_BYTES]));
        set.place_uuids().await?;
        let first = async {
            set.exec_spawn_journal();
            set.alloc.write_prios().await.map_err(stopped)?;
            set.vouch(&old).await.map_err(io)?;
            set.spawn_tasks();
            Ok(())
        };
        match first.await {
            Ok(()) => Ok(set),
            Err(error) => Err(Self::give_up(set, &disk, handles, error).await),
        }
    }

    /// Ends what a start that failed has begun: its tasks, which hold the device. `handles` of it
    /// were there before.
    async fn give_up(
        set: Rc<CacheSet>,
        disk: &Rc<dyn Disk>,
        handles: usize,
        error: SetError,
    ) -> SetError {
        set.latch
            .trip(format!("{}: the start failed: {error}", disk.name()));
        // The latch is tripped, so this ends in an error; what it is for is that all tasks end.
        let _ = set.stop().await;
        let exec = set.exec().clone();
        drop(set);
        let until_us = exec.now_us() + GIVE_UP_US;
        while Rc::strong_count(disk) > handles && exec.now_us() < until_us {
            exec.sleep_us(GIVE_UP_LOOK_US).await;
        }
        error
    }

    /// Writes the superblock of a set whose metadata are durable. The list of journal buckets goes
    /// first, under the old header, so that no torn write can damage the header.
    async fn vouch(&self, old: &CacheSuper) -> Result<(), IoError> {
        let new = {
            let mut sb = self.superblock.borrow_mut();
            sb.set_sync(true);
            sb.seq = sb.seq.wrapping_add(1);
            sb.encode()
        };
        if old.journal_buckets.is_empty() {
            let mut step = new;
            let header = uuids_header_end();
            step[..header].copy_from_slice(&old.encode()[..header]);
            write_super(&self.disk, &step).await?;
        }
        write_super(&self.disk, &new).await
    }

    async fn recover(
        host: &dyn Host,
        exec: Executor,
        disk: Rc<dyn Disk>,
        sb: CacheSuper,
    ) -> Result<Rc<CacheSet>, SetError> {
        let handles = Rc::strong_count(&disk);
        let engine = Engine::new(host, exec, disk.clone(), &sb).await;
        let Replay { entries, ring } = replay::read(&disk, &engine.shape, &sb.journal_buckets)
            .await
            .map_err(|e| SetError::Journal(disk.name(), e))?;
        let newest = entries.last().expect("a replay has entries").entry.clone();
        let uuid_bucket = newest
            .uuid_bucket
            .ok_or_else(|| SetError::NoUuids(disk.name()))?;
        let data_start = BucketNr(sb.journal_buckets[0].0 + sb.journal_buckets.len() as u32);
        let first = newest.prio_bucket[0];
        let gens = engine.gens.clone();
        let show = |bucket, prio, generation| {
            gens.set_generation(bucket, generation);
            gens.set_age(bucket, INITIAL_PRIO.saturating_sub(prio));
        };
        let prios = prios::read(&disk, &engine.shape, first, data_start, show)
            .await
            .map_err(|e| SetError::Prios(disk.name(), e))?;
        let start = Start {
            roots: Roots {
                root: newest.root,
                level: newest.level,
                uuid_bucket,
                prio_bucket: prios.places[0],
            },
            seq: newest.seq.next(),
            pins_first: newest.last_seq,
            ring,
        };
        let (journal, alloc, tree) = engine.build(start, data_start, Use::Data).await;
        alloc.adopt_prios(prios.places, prios.seq);
        let table = Self::read_uuids(&engine, &alloc, &uuid_bucket).await?;
        Self::load(&disk, &tree, &newest, entries, table.len() as u32).await?;
        // After a crash that spared the device's own cache, what was read may not be durable. From
        // here on things are written that rely on it.
        disk.flush()
            .await
            .map_err(|e| SetError::Io(disk.name(), e))?;
        if !alloc.start_from_empty().await {
            return Err(SetError::NoSpace(disk.name()));
        }
        let set = Self::assemble(engine, sb, journal, alloc, tree, table.len());
        *set.uuids.borrow_mut() = table;
        set.spawn_all();
        let mut written = set.superblock.borrow().clone();
        written.seq = written.seq.wrapping_add(1);
        *set.superblock.borrow_mut() = written.clone();
        if let Err(error) = write_super(&set.disk, &written.encode()).await {
            let error = SetError::Io(disk.name(), error);
            return Err(Self::give_up(set, &disk, handles, error).await);
        }
        Ok(set)
    }

    /// Reads the tree, and puts over it what the journal brings. Keys are of the first `volumes`
    /// volumes.
    async fn load(
        disk: &Rc<dyn Disk>,
        tree: &Tree,
        newest: &Jset,
        entries: Vec<Placed>,
        volumes: u32,
    ) -> Result<(), SetError> {
        let tree_error = |e| SetError::Tree(disk.name(), e);
        tree.load(newest.root, newest.level, volumes)
            .await
            .map_err(tree_error)?;
        for placed in entries {
            let seq = placed.entry.seq;
            work(Work::Keys, 1);
            breathe().await;
            for (byte, key) in placed.keys() {
                tree.meet_key(key, volumes)
                    .map_err(|error| SetError::JournalKey {
                        device: disk.name(),
                        seq,
                        bucket: placed.bucket,
                        byte,
                        error,
                    })?;
                tree.replay(key.inode, key, seq);
                work(Work::Keys, 1);
                breathe().await;
            }
        }
        tree.count_all().await.map_err(tree_error)
    }

    fn assemble(
        engine: Engine,
        sb: CacheSuper,
        journal: Rc<Journal>,
        alloc: Rc<Alloc>,
        tree: Rc<Tree>,
        uuids: usize,
    ) -> Rc<CacheSet> {
        let shared = SetShared::new(engine.gens.clone(), tree.domain(), sb.bucket_sectors);
        let backings = SetBackings::new(sb.set_uuid, &tree);
        let owner = Owner::new(
            Arc::new(shared),
            tree.clone(),
            backings.clone(),
            engine.exec.clone(),
            engine.latch.clone(),
        );
        let writeback = Writeback::new(owner.clone(), engine.exec.clone(), engine.latch.clone());
        let mover = Mover::new(tree.clone(), engine.latch.clone(), engine.exec.clone());
        Rc::new(CacheSet {
            disk: engine.disk,
            superblock: RefCell::new(sb),
            shape: engine.shape,
            latch: engine.latch,
            journal,
            alloc,
            tree,
            backings,
            owner,
            writeback,
            on_error: Cell::default(),
            mover,
            windows: RefCell::default(),
            uuids: RefCell::new(Vec::with_capacity(uuids)),
            closing: Cell::new(false),
            device_goes: Cell::new(false),
            unregistering: Job::default(),
            stopped: Cell::new(false),
        })
    }

    fn exec(&self) -> &Executor {
        self.owner.exec()
    }

    fn exec_spawn_journal(&self) {
        self.exec().spawn_first(self.journal.clone().run());
    }

    fn spawn_tasks(&self) {
        let exec = self.exec();
        exec.spawn(self.alloc.clone().run());
        exec.spawn(self.tree.clone().run());
        exec.spawn(self.writeback.clone().run());
        exec.spawn(self.mover.clone().run());
        exec.spawn(gc::run(self.tree.clone(), self.latch.clone(), exec.clone()));
        self.wake_when_tripped();
        // Weak: a set that has stopped is not to be held by its last timer.
        let (tree, clock) = (Rc::downgrade(&self.tree), exec.clone());
        exec.spawn(async move {
            loop {
                clock.sleep_us(1_000_000).await;
                match tree.upgrade() {
                    Some(tree) if !tree.is_stopping() => tree.age().await,
                    _ => return,
                }
            }
        });
    }

    /// Whatever waits in the set looks again once the latch has tripped: what it waits for may come no
    /// more, and only one task knows why the set has stopped.
    fn wake_when_tripped(&self) {
        let (latch, journal) = (self.latch.clone(), Rc::downgrade(&self.journal));
        let (alloc, tree) = (Rc::downgrade(&self.alloc), Rc::downgrade(&self.tree));
        let owner = Rc::downgrade(&self.owner);
        self.exec().spawn(async move {
            latch.tripped().await;
            journal.upgrade().inspect(|journal| journal.wake());
            alloc.upgrade().inspect(|alloc| alloc.wake());
            tree.upgrade().inspect(|tree| tree.wake());
            owner.upgrade().inspect(|owner| owner.released.notify());
        });
    }

    fn spawn_all(&self) {
        self.exec_spawn_journal();
        self.spawn_tasks();
    }

    /// The set's UUID (not the device's).
    pub fn set_uuid(&self) -> Uuid {
        self.superblock.borrow().set_uuid
    }

    /// The superblock as it was last written.
    pub fn superblock(&self) -> CacheSuper {
        self.superblock.borrow().clone()
    }

    /// # Errors
    /// It is about to stop, or has stopped.
    pub(super) fn check_open(&self) -> Result<(), SetError> {
        match self.closing.get() || self.is_stopped() {
            true => Err(SetError::Busy(format!(
                "cache set {} is being stopped",
                self.set_uuid()
            ))),
            false => Ok(()),
        }
    }

    /// Whether [`stop`](Self::stop) has been called.
    pub fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Brings up a volume of an inode of this set; without a backing device it has all its data on
    /// the cache device.
    pub fn add_volume(&self, inode: Inode, backing: Option<&Rc<Backing>>) -> Rc<owner::Volume> {
        let attachment = backing.map(|backing| backing.attachment());
        let volume = self.owner.add_volume(inode, attachment);
        if let Some(backing) = backing {
            let unflushed = volume.unflushed.clone();
            self.backings.add(inode, backing.clone(), unflushed);
        }
        volume
    }

    /// Forgets a volume of which no host I/O is under way. It may have been forgotten before.
    pub fn drop_volume(&self, volume: &owner::Volume) {
        if !volume.is_removed() {
            self.backings.remove(volume.inode);
            self.owner.remove_volume(volume);
        }
    }

    /// As [`drop_volume`](Self::drop_volume); its backing device is held by nothing of the set's when
    /// this is done.
    pub async fn remove_volume(&self, volume: &owner::Volume) {
        self.drop_volume(volume);
        self.writeback.left(volume).await;
    }

    // --- uuids ---

    async fn read_uuids(
        engine: &Engine,
        alloc: &Alloc,
        key: &Key,
    ) -> Result<Vec<UuidEntry>, SetError> {
        let name = engine.disk.name();
        let bad = |e| SetError::UuidKey(name.clone(), e);
        key.check_child(&engine.shape.geometry).map_err(bad)?;
        let ptr = key.ptr.ok_or_else(|| SetError::NoUuids(name.clone()))?;
        let bucket = engine.shape.bucket_of(ptr.sector());
        if alloc.state(bucket) != crate::alloc::Use::Data {
            return Err(SetError::NoUuids(name));
        }
        alloc.claim_meta(bucket);
        let bytes = meta_bucket_bytes(engine.shape.geometry.bucket_sectors);
        let read = read_long(&engine.disk, ptr.sector(), bytes).await;
        let bytes = read.map_err(|e| SetError::Io(name, e))?;
        let mut table = Vec::with_capacity(uuids::per_table(bytes.len()));
        for part in bytes.chunks(Work::Bytes.slice()) {
            work(Work::Bytes, part.len());
            breathe().await;
            table.extend(uuids::parse(part));
        }
        Ok(table)
    }

    /// The uuid table.
    pub fn uuids(&self) -> Vec<UuidEntry> {
        self.uuids.borrow().clone()
    }

    /// Waits for the bucket that the table goes to, and for a journal that has more than its last blocks:
    /// as long as they are on their way, however slow the cache device is, and for [`BUCKET_WAIT_US`] at
    /// most while nothing can be reused. No volume of the set is changed meanwhile, and a cache full of
    /// dirty data has no bucket as long as its backing devices fail.
    ///
    /// The last blocks of a journal are for the roots of leaves that make room in it: at each start every
    /// volume changes the table.
    async fn uuid_bucket_ready(&self) -> Result<(), SetError> {
        let stopped = |_| SetError::Stopped(self.latch.why().unwrap_or_default());
        let ready = Cell::new(None);
        loop {
            let wait = async {
                self.journal.not_low().await;
                ready.set(Some(self.alloc.nodes_ready(1).await));
            };
            either(wait, self.exec().sleep_us(BUCKET_WAIT_US)).await;
            if let Some(done) = ready.get() {
                return done.map_err(stopped);
            }
            if self.journal.is_low() {
                return Err(SetError::JournalFull(self.disk.name()));
            }
            if self.alloc.is_starving() {
                return Err(SetError::NoSpace(self.disk.name()));
            }
        }
    }

    /// Writes the table to a bucket of its own and makes the roots in memory name it. Returns the
    /// bucket that held it before.
    async fn place_uuids(&self) -> Result<Option<Ptr>, SetError> {
        self.uuid_bucket_ready().await?;
        let taken = self.alloc.take(Purpose::Node);
        let (bucket, generation) = taken.ok_or(SetError::NoSpace(self.disk.name()))?;
        let geometry = self.shape.geometry;
        let table = uuids::encode_used(&self.uuids.borrow());
        let at = self.shape.sector_of(bucket);
        let mut write = LongWrite::new(self.disk.clone());
        let bytes = meta_bucket_bytes(geometry.bucket_sectors);
        let mut done = write.add((), at, &table, bytes).await;
        if done.is_ok() {
            done = write.end().await;
        }
        done.map_err(|((), e)| {
            self.latch
                .trip(format!("the uuid table was not written: {e}"));
            SetError::Io(self.disk.name(), e)
        })?;
        let key = Key {
            inode: Inode(0),
            end: Sector(0),
            size_sectors: meta_bucket_sectors(geometry.bucket_sectors),
            dirty: false,
            ptr: Some(Ptr::new(0, at, generation)),
        };
        let mut old = None;
        self.journal.set_roots(|r| {
            old = r.uuid_bucket.ptr;
            r.uuid_bucket = key;
        });
        Ok(old)
    }

    /// Changes the table, durably.
    ///
    /// # Errors
    /// The set has stopped, in good order too, or has no bucket left.
    pub async fn change_uuids(
        &self,
        change: impl FnOnce(&mut Vec<UuidEntry>),
    ) -> Result<(), SetError> {
        if self.is_stopped() {
            return Err(SetError::Stopped("it was stopped".into()));
        }
        let before = self.uuids();
        change(&mut self.uuids.borrow_mut());
        let old = match self.place_uuids().await {
            Ok(old) => old,
            Err(error) => {
                *self.uuids.borrow_mut() = before;
                return Err(error);
            }
        };
        let stopped = |_| SetError::Stopped(self.latch.why().unwrap_or_default());
        self.journal.commit_roots().await.map_err(stopped)?;
        if let Some(ptr) = old {
            // Only entries named it, and the newest names another.
            self.alloc
                .free_unreferenced(self.shape.bucket_of(ptr.sector()));
        }
        Ok(())
    }

    /// The index of a volume's entry in the table.
    pub fn find_uuid(&self, uuid: Uuid) -> Option<Inode> {
        let table = self.uuids.borrow();
        let found = table.iter().position(|e| e.is_live() && e.uuid == uuid);
        found.map(|i| Inode(i as u32))
    }

    // --- stop ---

    /// Stops in good order: everything that is dirty stays dirty on the cache device, and all that
    /// memory knows is in the btree and the priorities. There must be no front left.
    ///
    /// # Errors
    /// The set had stopped by itself: the journal then says what was durable last.
    pub async fn stop(&self) -> Result<(), SetError> {
        if self.stopped.replace(true) {
            return Ok(());
        }
        let stopped = |_| SetError::Stopped(self.latch.why().unwrap_or_default());
        self.writeback.stop();
        self.mover.stop();
        let result = async {
            while self.owner.tasks.get() > 0 {
                self.latch.check()?;
                self.owner.released.wait().await;
            }
            self.writeback.ended().await;
            self.mover.ended().await;
            // First, so that the last entries name no key: there is nothing to replay then.
            self.journal.commit().await?;
            self.tree.flush().await?;
            self.alloc.stop_and_write().await?;
            self.journal.stop().await
        }
        .await;
        self.tree.stop();
        self.alloc.stop();
        self.alloc.sweep_due.notify();
        self.journal.abandon();
        self.latch.close();
        result.map_err(stopped)
    }
}

/// Where the part of a superblock ends that a header without journal buckets vouches for.
const fn uuids_header_end() -> usize {
    208
}
