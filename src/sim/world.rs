//! A cache set with its volumes and load, over several lives, all from one seed.
//!
//! Each life starts the set on what the disks hold, attaches the volumes, runs a random load
//! through fronts on several reactors, and ends in one of three ways: stopped in good order,
//! killed, or cut off from power. The order in which owner, tasks and reactors run is drawn from
//! the seed; only when none of them has anything to do does time move to the next event.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::check::{self, GenWatch};
use super::disk::{Medium, SimDisk};
use super::host::SimHost;
use super::lane::{SimIo, SimLane};
use super::oracle::{Moment, Oracle, ZERO, sector_of};
use super::plan::{End, Plan, Report};
use super::sched::Sched;
use crate::disk::Disk;
use crate::format::superblock::{
    BackingState, BackingSuper, CacheMode, CacheSuper, SUPER_SECTOR, Super,
};
use crate::format::uuids::UuidEntry;
use crate::index::Extent;
use crate::request::Kind;
use crate::request::front::Front;
use crate::request::lane::Outcome;
use crate::request::owner::{Mark, Volume};
use crate::request::volume::VolumeShared;
use crate::rng::Rng;
use crate::set::cache::{CacheSet, read_super, write_super};
use crate::set::error::SetError;
use crate::task::{Executor, Lock};
use crate::units::{Inode, Sector, Uuid};

/// Where the data of a simulated backing device begin.
const DATA_OFFSET: Sector = Sector(16);
/// Simulated time in which every host I/O must have been answered.
const PATIENCE_US: u64 = 120_000_000;
/// Steps after which somebody must have had nothing to do.
const BUSY_MAX: u64 = 1_000_000;

/// A host I/O in flight.
struct Op {
    kind: Kind,
    volume: usize,
    start: u64,
    sectors: u64,
    begun: Moment,
    issued_us: u64,
}

struct LiveVolume {
    owner_side: Rc<Volume>,
    shared: Arc<VolumeShared>,
    fronts: Vec<Front<SimLane>>,
}

/// One life of the machine.
struct Life {
    sched: Sched,
    exec: Executor,
    set: Option<Rc<CacheSet>>,
    volumes: Vec<LiveVolume>,
    ops: BTreeMap<u64, Op>,
}

/// The world.
pub struct World {
    plan: Plan,
    rng: Rc<Rng>,
    cache: Rc<Medium>,
    backings: Vec<Option<Rc<Medium>>>,
    uuids: Vec<Uuid>,
    oracle: Oracle,
    now_us: u64,
    next_tag: u64,
    next_value: u32,
    gens: GenWatch,
    /// Steps since the world last had nothing to do.
    busy: u64,
    report: Report,
    trace: bool,
    /// What the map held when the set was last stopped in good order.
    stopped_with: Option<Vec<(Inode, Extent)>>,
}

/// Makes a backing device's superblock say dirty or clean, one after the other.
pub fn marker(disk: Rc<dyn Disk>) -> Mark {
    let turn = Rc::new(Lock::default());
    Box::new(move |dirty| {
        let (disk, turn) = (disk.clone(), turn.clone());
        Box::pin(async move {
            let _turn = turn.lock().await;
            let Ok(Super::Backing(mut sb)) = read_super(&disk).await else {
                return Err(crate::disk::IoError::Failed);
            };
            let state = match dirty {
                true => BackingState::Dirty,
                false => BackingState::Clean,
            };
            sb.set_state(state);
            sb.seq += 1;
            write_super(&disk, &sb.encode()).await
        })
    })
}

impl World {
    /// A world of fresh devices.
    pub fn new(seed: u64, plan: Plan) -> World {
        let rng = Rc::new(Rng::new(seed));
        let block = plan.block_sectors;
        let cache_sectors = plan.nbuckets * u64::from(plan.bucket_sectors);
        let cache = Medium::new("cache", cache_sectors, plan.device_block_sectors);
        cache.ignore_flush.set(plan.ignore_cache_flush);
        let set_uuid = rng.uuid();
        let sb = CacheSuper::new(
            set_uuid,
            rng.uuid(),
            cache_sectors,
            block as u16,
            plan.bucket_sectors,
        );
        let sb = sb.expect("a plan that a superblock can say");
        cache.poke(SUPER_SECTOR, &sb.encode());
        let uuids: Vec<Uuid> = plan.volumes.iter().map(|_| rng.uuid()).collect();
        let mut backings = Vec::new();
        for (i, volume) in plan.volumes.iter().enumerate() {
            if volume.flash {
                backings.push(None);
                continue;
            }
            let name = format!("backing{i}");
            let sectors = volume.sectors + DATA_OFFSET.0;
            let medium = Medium::new(&name, sectors, plan.device_block_sectors);
            medium.ignore_flush.set(plan.ignore_backing_flush);
            medium.faults.set(plan.backing_faults);
            let sb = BackingSuper::new(uuids[i], block as u16, DATA_OFFSET);
            let mut sb = sb.expect("a plan that a superblock can say");
            sb.set_uuid = set_uuid;
            sb.set_state(BackingState::Clean);
            medium.poke(SUPER_SECTOR, &sb.encode());
            backings.push(Some(medium));
        }
        let sizes: Vec<u64> = plan.volumes.iter().map(|v| v.sectors).collect();
        World {
            oracle: Oracle::new(&sizes),
            plan,
            rng,
            cache,
            backings,
            uuids,
            now_us: 0,
            next_tag: 1,
            next_value: 1,
            busy: 0,
            gens: GenWatch::default(),
            report: Report::default(),
            trace: std::env::var_os("SIM_TRACE").is_some(),
            stopped_with: None,
        }
    }

    /// Lives all lives of the plan, and one more in which everything is read.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn run(mut self) -> Result<Report, String> {
        let ends = self.plan.lives.clone();
        for (i, &end) in ends.iter().enumerate() {
            self.trace(|| format!("life {i} will end in {end:?}"));
            self.live(end, self.plan.ops)
                .map_err(|why| format!("life {i} ({end:?}): {why}"))?;
        }
        self.live(End::Stop, 0)
            .map_err(|why| format!("last life: {why}"))?;
        self.report.us = self.now_us;
        Ok(self.report)
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("[{:>12}] {}", self.now_us, text());
        }
    }

    fn live(&mut self, end: End, ops: u64) -> Result<(), String> {
        let mut life = Life {
            sched: Sched::new(self.now_us, self.rng.clone()),
            exec: Executor::new(),
            set: None,
            volumes: Vec::new(),
            ops: BTreeMap::new(),
        };
        // The power may go at any time, while the set starts too.
        let doomed = end != End::Stop && self.rng.below(8) == 0;
        let result = if doomed {
            self.start_in_vain(&mut life)
        } else {
            self.start(&mut life)
                .and_then(|()| self.run_load(&mut life, end, ops))
        };
        let us = life.sched.now_us();
        self.now_us = us;
        self.report.lives += 1;
        let result = result.and_then(|()| match end {
            End::Stop => self.stop(&mut life),
            End::Kill | End::Power => {
                self.stopped_with = None;
                self.crash(end == End::Power);
                Ok(())
            }
        });
        self.now_us = life.sched.now_us();
        self.report.reuses = self.report.reuses.max(self.gens.most());
        self.gens = GenWatch::default();
        life.sched.clear();
        life.volumes.clear();
        life.set = None;
        life.exec.abandon();
        life.sched.clear();
        result
    }

    fn crash(&mut self, power: bool) {
        let media = self.backings.iter().flatten().chain([&self.cache]);
        for medium in media {
            medium.kill(&self.rng);
            if power {
                medium.cut_power(&self.rng);
            }
        }
        self.oracle.crash(power);
    }

    // --- start ---

    fn open(&self, life: &Life) -> (Rc<SimDisk>, Vec<Option<Rc<SimDisk>>>) {
        let open = |medium: &Rc<Medium>| SimDisk::new(medium.clone(), life.sched.clone());
        let backings = self.backings.iter().map(|b| b.as_ref().map(open));
        (open(&self.cache), backings.collect())
    }

    fn starting(
        &self,
        life: &Life,
        disk: Rc<SimDisk>,
    ) -> impl Future<Output = Result<Rc<CacheSet>, SetError>> + use<> {
        let (host, exec) = (Rc::new(SimHost::new(self.rng.clone())), life.exec.clone());
        async move {
            let disk: Rc<dyn Disk> = disk;
            match read_super(&disk).await? {
                Super::Cache(sb) => CacheSet::start(&*host, exec, disk, sb).await,
                Super::Backing(_) => Err(SetError::NoSuper(disk.name())),
            }
        }
    }

    fn start_in_vain(&mut self, life: &mut Life) -> Result<(), String> {
        let (disk, _) = self.open(life);
        let starting = self.starting(life, disk);
        life.exec.spawn(async move {
            let _ = starting.await;
        });
        for _ in 0..self.rng.below(400) {
            self.turn(life)?;
        }
        Ok(())
    }

    fn start(&mut self, life: &mut Life) -> Result<(), String> {
        let (cache, backings) = self.open(life);
        let starting = self.starting(life, cache.clone());
        let set = self.wait(life, starting)?.map_err(|e| e.to_string())?;
        life.set = Some(set.clone());
        check::counts(&set).map_err(|why| format!("after the start: {why}"))?;
        if let Some(mut before) = self.stopped_with.take() {
            // The allocator is at work already, and takes what is clean.
            before.retain(|(_, e)| e.dirty || set.tree.is_fresh(e));
            let now = check::extents(&set);
            if before != now {
                return Err(format!(
                    "the map changed over a restart: {}",
                    differ(&before, &now)
                ));
            }
        }
        for (i, backing) in backings.into_iter().enumerate() {
            let inode = self.inode(life, &set, i)?;
            self.attach(life, &set, i, inode, cache.clone(), backing)?;
        }
        Ok(())
    }

    fn inode(&mut self, life: &mut Life, set: &Rc<CacheSet>, i: usize) -> Result<Inode, String> {
        if let Some(inode) = set.find_uuid(self.uuids[i]) {
            return Ok(inode);
        }
        let inode = set.free_uuid().ok_or("no free entry for a volume")?;
        let (uuid, sectors) = (self.uuids[i], self.plan.volumes[i].sectors);
        let entry = match self.plan.volumes[i].flash {
            true => UuidEntry::flash_only(uuid, [0; 32], 1, sectors),
            false => UuidEntry::backing(uuid, [0; 32], 1),
        };
        let set = set.clone();
        let adding = async move {
            set.change_uuids(|table| table[inode.0 as usize] = entry)
                .await
        };
        self.wait(life, adding)?.map_err(|e| e.to_string())?;
        Ok(inode)
    }

    fn attach(
        &mut self,
        life: &mut Life,
        set: &Rc<CacheSet>,
        i: usize,
        inode: Inode,
        cache: Rc<SimDisk>,
        backing: Option<Rc<SimDisk>>,
    ) -> Result<(), String> {
        let plan = self.plan.volumes[i].clone();
        let owner_side = match backing.clone() {
            Some(disk) => {
                let disk: Rc<dyn Disk> = disk;
                let reading = {
                    let disk = disk.clone();
                    async move {
                        // As the lifecycle does: what is relied on here must be durable.
                        disk.flush()
                            .await
                            .map_err(|e| SetError::Io(disk.name(), e))?;
                        read_super(&disk).await
                    }
                };
                let Super::Backing(sb) = self.wait(life, reading)?.map_err(|e| e.to_string())?
                else {
                    return Err("a backing device changed its kind".to_string());
                };
                let dirty = sb.state() == BackingState::Dirty;
                if !dirty && set.tree.dirty_sectors(inode) > 0 {
                    return Err(format!(
                        "volume {i} has dirty data, its superblock says {}",
                        sb.state()
                    ));
                }
                set.owner.add_volume(
                    inode,
                    Some((disk.clone(), DATA_OFFSET)),
                    dirty,
                    marker(disk),
                )
            }
            None => {
                let mark: Mark = Box::new(|_| Box::pin(async { Ok(()) }));
                set.owner.add_volume(inode, None, true, mark)
            }
        };
        owner_side.writeback_running.set(self.plan.writeback);
        let shared = Arc::new(VolumeShared::new(
            format!("volume{i}"),
            self.uuids[i],
            self.plan.block_sectors,
            plan.sectors,
            backing.as_ref().map(|_| DATA_OFFSET),
            Some(set.owner.attached(&owner_side)),
            plan.mode,
            Arc::default(),
        ));
        let fronts = (0..self.plan.reactors).map(|_| {
            let lane = SimLane::new(Some(cache.clone()), backing.clone());
            lane.fills_max.set(self.rng.below(16) as usize);
            Front::new(lane, shared.clone()).expect("a reader's slot")
        });
        life.volumes.push(LiveVolume {
            owner_side,
            fronts: fronts.collect(),
            shared,
        });
        Ok(())
    }

    // --- time ---

    /// Everyone runs once, in a random order. Returns how much was done.
    fn pass(&mut self, life: &mut Life, lazy: bool) -> Result<usize, String> {
        let reactors = self.plan.reactors;
        let actors = 2 + life.volumes.len() * reactors;
        let first = self.rng.below(actors as u64) as usize;
        let mut done = life.sched.run_due();
        for i in 0..actors {
            if lazy && self.rng.below(4) == 0 {
                continue;
            }
            match (first + i) % actors {
                0 => {
                    let steps = 1 + self.rng.below(16) as usize;
                    done += life.exec.poll(life.sched.now_us(), steps);
                }
                1 => {
                    if let Some(set) = &life.set {
                        done += set.owner.poll();
                        if self.rng.below(64) == 0 {
                            set.tree.reclaim();
                            self.gens.note(&set.alloc.gens);
                        }
                    }
                }
                n => {
                    let volume = &life.volumes[(n - 2) / reactors];
                    let front = &volume.fronts[(n - 2) % reactors];
                    done += SimLane::deliver(front, 1 + self.rng.below(8) as usize);
                    done += front.poll();
                    done += self.collect(life, (n - 2) / reactors, (n - 2) % reactors)?;
                }
            }
        }
        Ok(done)
    }

    /// One step of the world; false when nothing will ever happen again.
    fn turn(&mut self, life: &mut Life) -> Result<bool, String> {
        let lazy = self.rng.below(4) > 0;
        if self.pass(life, lazy)? > 0 {
            life.sched.set_now(life.sched.now_us() + self.rng.below(3));
            self.busy += 1;
            if self.busy > BUSY_MAX {
                return Err(format!("busy for ever; {}", state(life)));
            }
            return Ok(true);
        }
        if lazy {
            return Ok(true);
        }
        self.busy = 0;
        let next = [life.sched.next_us(), life.exec.next_timer_us()];
        let Some(next) = next.into_iter().flatten().min() else {
            return Ok(false);
        };
        life.sched.set_now(next);
        self.now_us = life.sched.now_us();
        let late = |op: &&Op| self.now_us > op.issued_us + PATIENCE_US;
        match life.ops.values().find(late) {
            Some(op) => Err(format!(
                "{:?} of {} sectors at {} of volume {} hangs; {}",
                op.kind,
                op.sectors,
                op.start,
                op.volume,
                state(life)
            )),
            None => Ok(true),
        }
    }

    fn wait<T: 'static>(
        &mut self,
        life: &mut Life,
        job: impl Future<Output = T> + 'static,
    ) -> Result<T, String> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let out = slot.clone();
        life.exec.spawn(async move {
            let value = job.await;
            *out.borrow_mut() = Some(value);
        });
        let began = life.sched.now_us();
        loop {
            if let Some(value) = slot.borrow_mut().take() {
                return Ok(value);
            }
            if !self.turn(life)? || life.sched.now_us() > began + PATIENCE_US {
                return Err(format!("a task of the owner hangs; {}", state(life)));
            }
        }
    }

    // --- load ---

    fn run_load(&mut self, life: &mut Life, end: End, ops: u64) -> Result<(), String> {
        let count = if end == End::Stop {
            ops
        } else {
            self.rng.below(ops + 1)
        };
        if self.rng.below(3) == 0 || ops == 0 {
            self.read_all(life)?;
        }
        let mut left = count;
        while left > 0 {
            if life.ops.len() < self.plan.depth && self.rng.below(3) > 0 {
                self.issue_random(life);
                left -= 1;
            }
            self.change_something(life);
            self.turn_with_ops(life)?;
        }
        if end != End::Stop {
            for _ in 0..self.rng.below(60) {
                self.turn(life)?;
            }
            self.note_stats(life);
            return Ok(());
        }
        self.drain(life)?;
        self.read_all(life)?;
        self.read_all(life)
    }

    fn note_stats(&mut self, life: &Life) {
        if let Some(set) = &life.set {
            self.report.depth = self.report.depth.max(set.tree.stats().depth);
            self.report.written_back_sectors += set.writeback.done_sectors.get();
        }
        for volume in &life.volumes {
            self.report.hits += volume.shared.totals().sum().cache_hits;
        }
    }

    fn change_something(&mut self, life: &Life) {
        if self.plan.mode_changes && self.rng.below(200) == 0 {
            let volume = &life.volumes[self.rng.below(life.volumes.len() as u64) as usize];
            let mode = CacheMode::ALL[self.rng.below(4) as usize];
            volume.shared.set_mode(mode);
        }
    }

    fn drain(&mut self, life: &mut Life) -> Result<(), String> {
        while !life.ops.is_empty() {
            self.turn_with_ops(life)?;
        }
        Ok(())
    }

    fn turn_with_ops(&mut self, life: &mut Life) -> Result<(), String> {
        if self.turn(life)? || life.ops.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} host I/Os are never answered; {}",
            life.ops.len(),
            state(life)
        ))
    }

    /// Reads every sector of every volume once.
    fn read_all(&mut self, life: &mut Life) -> Result<(), String> {
        for volume in 0..life.volumes.len() {
            let (mut at, end) = (0, self.plan.volumes[volume].sectors);
            while at < end {
                if life.ops.len() >= self.plan.depth {
                    self.turn_with_ops(life)?;
                    continue;
                }
                let block = u64::from(self.plan.block_sectors);
                let most = self.plan.io_sectors_max.max(64) / block;
                let sectors = ((1 + self.rng.below(most)) * block).min(end - at);
                self.issue(life, Kind::Read, volume, at, sectors);
                at += sectors;
            }
        }
        self.drain(life)
    }

    fn issue_random(&mut self, life: &mut Life) {
        let rng = self.rng.clone();
        let volume = rng.below(self.plan.volumes.len() as u64) as usize;
        let (block, size) = (
            u64::from(self.plan.block_sectors),
            self.plan.volumes[volume].sectors,
        );
        let kind = match rng.below(100) {
            n if n < self.plan.reads => Kind::Read,
            n if n < self.plan.reads + self.plan.flushes => Kind::Flush,
            n if n < self.plan.reads + self.plan.flushes + self.plan.clears => {
                [Kind::Unmap, Kind::WriteZeroes][rng.below(2) as usize]
            }
            _ => Kind::Write,
        };
        if kind == Kind::Flush {
            return self.issue(life, kind, volume, 0, 0);
        }
        let most = (self.plan.io_sectors_max.min(size) / block).max(1);
        // Mostly short ones.
        let most = 1 + rng.below(1 + rng.below(most));
        let sectors = ((1 + rng.below(most)) * block).min(size);
        let room = if rng.below(100) < self.plan.hot {
            (size / 16).max(sectors)
        } else {
            size
        };
        let start = rng.below((room - sectors) / block + 1) * block;
        self.issue(life, kind, volume, start, sectors);
    }

    fn issue(&mut self, life: &mut Life, kind: Kind, volume: usize, start: u64, sectors: u64) {
        let reactor = self.rng.below(self.plan.reactors as u64) as usize;
        let tag = self.next_tag;
        self.next_tag += 1;
        let (mut memory, oracle) = (Vec::new(), &mut self.oracle);
        let begun = match kind {
            Kind::Read => {
                memory.resize(sectors as usize * 512, 0xee);
                oracle.read_begins()
            }
            Kind::Write => {
                let value = self.next_value;
                self.next_value += 1;
                for s in start..start + sectors {
                    memory.extend_from_slice(&sector_of(volume, s, value));
                }
                oracle.write_begins(volume, start, sectors, value, false)
            }
            Kind::Flush => oracle.tick(),
            Kind::Unmap => oracle.write_begins(volume, start, sectors, ZERO, true),
            Kind::WriteZeroes => oracle.write_begins(volume, start, sectors, ZERO, false),
        };
        let value = self.next_value - 1;
        self.trace(|| {
            let value = if kind == Kind::Write { value } else { 0 };
            format!("#{tag} {kind:?} v{volume} {start}+{sectors} r{reactor} value {value} @{begun}")
        });
        let op = Op {
            kind,
            volume,
            start,
            sectors,
            begun,
            issued_us: life.sched.now_us(),
        };
        life.ops.insert(tag, op);
        let front = &life.volumes[volume].fronts[reactor];
        let io = front.lane().host_io(tag, memory);
        io.start(kind, Sector(start), sectors);
        front.submit(io);
    }

    /// Takes what a front has answered.
    fn collect(&mut self, life: &mut Life, volume: usize, reactor: usize) -> Result<usize, String> {
        let lane = life.volumes[volume].fronts[reactor].lane();
        let mut done = Vec::new();
        while let Some(answer) = lane.finished() {
            done.push(answer);
        }
        let n = done.len();
        for (io, outcome) in done {
            self.answered(life, io, outcome)?;
        }
        Ok(n)
    }

    fn answered(&mut self, life: &mut Life, io: SimIo, outcome: Outcome) -> Result<(), String> {
        let tag = io.host().tag;
        let op = life.ops.remove(&tag).expect("an I/O of the load");
        let ok = outcome == Outcome::Success;
        self.report.ops += 1;
        self.trace(|| {
            let values = match op.kind {
                Kind::Read => super::oracle::values(&io.host().memory.borrow()),
                _ => Vec::new(),
            };
            format!("#{tag} {:?} answered {outcome:?} {values:?}", op.kind)
        });
        let faults = self.plan.backing_faults;
        if !ok && faults.read + faults.write + faults.flush == 0 {
            let why = life.set.as_ref().and_then(|set| set.latch.why());
            return Err(format!("#{tag} {:?} failed; the set: {why:?}", op.kind));
        }
        match op.kind {
            Kind::Read => {
                let memory = io.host().memory.borrow();
                let data = ok.then_some(&memory[..]);
                self.oracle
                    .read_ends(op.volume, op.start, op.begun, data)
                    .map_err(|why| format!("#{tag}: {why}"))
            }
            Kind::Flush => {
                if ok {
                    self.oracle.flushed(op.volume, op.begun);
                }
                Ok(())
            }
            Kind::Write | Kind::Unmap | Kind::WriteZeroes => {
                self.oracle
                    .write_ends(op.volume, op.start, op.sectors, op.begun, ok);
                Ok(())
            }
        }
    }

    // --- stop ---

    fn stop(&mut self, life: &mut Life) -> Result<(), String> {
        self.drain(life)?;
        self.note_stats(life);
        let set = life.set.clone().ok_or("no set")?;
        loop {
            let mut fronts = life.volumes.iter().flat_map(|v| &v.fronts);
            if fronts.all(Front::is_idle) {
                break;
            }
            if !self.turn(life)? {
                return Err(format!("a fill hangs; {}", state(life)));
            }
        }
        for front in life.volumes.iter().flat_map(|v| &v.fronts) {
            if !front.close() {
                return Err("the ring to the owner is full".to_string());
            }
        }
        while set.owner.has_fronts() {
            self.turn(life)?;
        }
        for volume in &mut life.volumes {
            volume.fronts.clear();
        }
        self.halt(life, set)
    }

    fn halt(&mut self, life: &mut Life, set: Rc<CacheSet>) -> Result<(), String> {
        let fronts = std::mem::take(&mut life.volumes);
        check::counts(&set)?;
        let (stopping, cleaning) = (set.clone(), self.rng.below(4) == 0);
        if cleaning {
            for volume in &fronts {
                let (set, volume) = (set.clone(), volume.owner_side.clone());
                if volume.backing.is_some() {
                    let job = async move { set.writeback.clean_all(&volume).await };
                    self.wait(life, job)?
                        .map_err(|e| format!("write-back of everything: {e}"))?;
                }
            }
        }
        let job = async move { stopping.stop().await };
        self.wait(life, job)?.map_err(|e| e.to_string())?;
        check::counts(&set)?;
        check::no_pins(&set)?;
        self.stopped_with = Some(check::extents(&set));
        if self.rng.below(2) == 0 {
            // What was stopped in good order needs no power.
            self.crash(true);
        }
        Ok(())
    }
}

fn differ(a: &[(Inode, Extent)], b: &[(Inode, Extent)]) -> String {
    let i = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    format!(
        "{:?} became {:?} (number {i} of {} and {})",
        a.get(i),
        b.get(i),
        a.len(),
        b.len()
    )
}

/// Where a life stands, for whoever looks for what hangs.
fn state(life: &Life) -> String {
    let Some(set) = &life.set else {
        return "the set is starting".to_string();
    };
    format!(
        "latch {:?}, journal window {:?} space {:?} reclaim {:?}, buckets {:?}, ready {}, starving {}, \
         tasks {}, dirty {}, tree {:?}",
        set.latch.why(),
        set.journal.window(),
        set.journal.space_blocks(),
        set.journal.reclaim_target(),
        set.alloc.census(),
        set.alloc.data_ready(),
        set.alloc.is_starving(),
        set.owner.tasks.get(),
        set.alloc.dirty_sectors(),
        set.tree.stats(),
    )
}
