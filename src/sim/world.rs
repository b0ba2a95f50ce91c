//! A cache set with its volumes and load, over several lives, all from one seed.
//!
//! Each life starts the set on what the disks hold, attaches the volumes, runs a random load
//! through fronts on several reactors, and ends in one of three ways: stopped in good order,
//! killed, or cut off from power. The order in which owner, tasks and reactors run is drawn from
//! the seed; only when none of them has anything to do does time move to the next event.

mod load;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use super::check::{self, GenWatch};
use super::disk::{Medium, SimDisk};
use super::host::SimHost;
use super::kernel::judge::{Judged, Map, judge_media};
use super::lane::SimLane;
use super::oracle::{Io, Oracle};
use super::plan::{End, Plan, Report};
use super::sched::Sched;
use crate::disk::Disk;
use crate::format::superblock::{BackingState, BackingSuper, CacheSuper, SUPER_SECTOR, Super};
use crate::format::uuids::UuidEntry;
use crate::index::Extent;
use crate::request::front::Front;
use crate::request::owner::Volume;
use crate::request::volume::{Name, VolumeShared};
use crate::rng::Rng;
use crate::set::cache::{CacheSet, read_super};
use crate::set::error::SetError;
use crate::set::volume::Backing;
use crate::task::Executor;
use crate::units::{Inode, Sector, Uuid};

/// Where the data of a simulated backing device begin.
const DATA_OFFSET: Sector = Sector(16);
/// Simulated time in which every host I/O must have been answered: two minutes.
const PATIENCE_US: u64 = 120_000_000;
/// The same where devices fail and are slow, so that things take many tries: two hours.
const LONG_PATIENCE_US: u64 = 7_200_000_000;
/// Steps after which somebody must have had nothing to do.
const BUSY_MAX: u64 = 1_000_000;

/// A host I/O in flight.
struct Op {
    io: Io,
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
    /// Which volumes the set has an entry for.
    made: Vec<bool>,
    /// The map that Linux would have of what the last life left.
    linux: Option<Map>,
    patience_us: u64,
    /// What the devices had done wrong when this life began.
    faulted_before: u64,
}

impl World {
    /// A world of fresh devices.
    pub fn new(seed: u64, plan: Plan) -> World {
        let rng = Rc::new(Rng::new(seed));
        let block = plan.block_sectors;
        let cache_sectors = plan.nbuckets * u64::from(plan.bucket_sectors);
        let cache = Medium::new("cache", cache_sectors, plan.device_block_sectors);
        cache.ignore_flush.set(plan.ignore_cache_flush);
        cache.faults.set(plan.cache_faults);
        cache.ills.set(plan.ills);
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
            medium.unmapped.set(plan.unmapped);
            if !plan.lies {
                medium.ills.set(plan.ills);
            }
            let sb = BackingSuper::new(uuids[i], block as u16, DATA_OFFSET);
            let mut sb = sb.expect("a plan that a superblock can say");
            sb.set_uuid = set_uuid;
            sb.set_state(BackingState::Clean);
            medium.poke(SUPER_SECTOR, &sb.encode());
            backings.push(Some(medium));
        }
        let sizes: Vec<u64> = plan.volumes.iter().map(|v| v.sectors).collect();
        let made = plan.volumes.iter().map(|volume| !volume.flash).collect();
        World {
            oracle: Oracle::new(&sizes),
            patience_us: match plan.is_ill() {
                true => LONG_PATIENCE_US,
                false => PATIENCE_US,
            },
            faulted_before: 0,
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
            made,
            linux: None,
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
        for medium in self.media() {
            medium.cure();
        }
        self.live(End::Stop, 0)
            .map_err(|why| format!("last life: {why}"))?;
        self.report.us = self.now_us;
        Ok(self.report)
    }

    fn faulted(&self) -> u64 {
        self.media().map(|medium| medium.faulted.get()).sum()
    }

    /// Whether a device may be the cause of an error in this life. What a lie has damaged stays so.
    fn may_fail(&self) -> bool {
        let before = if self.plan.lies {
            0
        } else {
            self.faulted_before
        };
        self.faulted() > before
    }

    /// Takes an error of the lifecycle for what it is: false if a device is the cause.
    fn refused(&mut self, why: &SetError) -> Result<bool, String> {
        if !self.may_fail() {
            return Err(why.to_string());
        }
        self.trace(|| format!("refused: {why}"));
        self.report.refused += 1;
        Ok(false)
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
        self.faulted_before = self.faulted();
        let result = if doomed {
            self.start_in_vain(&mut life).map(|()| true)
        } else {
            self.start(&mut life).and_then(|up| {
                if up {
                    self.run_load(&mut life, end, ops)?;
                }
                Ok(up)
            })
        };
        let us = life.sched.now_us();
        self.now_us = us;
        self.report.lives += 1;
        let result = result.and_then(|up| match end {
            End::Stop if up => self.stop(&mut life),
            End::Stop => {
                self.crash(false);
                Ok(())
            }
            End::Kill | End::Power => {
                self.stopped_with = None;
                self.crash(end == End::Power);
                Ok(())
            }
        });
        // Of a device that lies, much may be damaged.
        let result = result.and_then(|()| match self.plan.lies {
            true => Ok(()),
            false => {
                check::offline_own(&self.cache, &self.backings).and_then(|()| self.ask_linux())
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

    /// What Linux would make of what this life leaves.
    fn ask_linux(&mut self) -> Result<(), String> {
        let made = (0..)
            .zip(&self.uuids)
            .zip(&self.made)
            .filter(|(_, made)| **made);
        let volumes: Vec<Judged> = made
            .map(|((nr, &uuid), _)| Judged {
                nr,
                uuid,
                same: false,
            })
            .collect();
        let map = judge_media(&self.cache, &self.backings, &volumes, &self.oracle)?;
        // What cannot be read any more is no part of the model.
        self.linux = (!self.plan.is_ill()).then_some(map);
        Ok(())
    }

    fn media(&self) -> impl Iterator<Item = &Rc<Medium>> {
        self.backings.iter().flatten().chain([&self.cache])
    }

    /// What is under way on the devices ends somehow.
    fn end_of_process(&self) {
        for medium in self.media() {
            medium.kill(&self.rng);
        }
    }

    fn crash(&mut self, power: bool) {
        self.end_of_process();
        if power {
            for medium in self.media() {
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
        let (host, exec) = (Rc::new(SimHost::bare(self.rng.clone())), life.exec.clone());
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

    /// Starts the set and its volumes; false when that was refused for what a device did.
    fn start(&mut self, life: &mut Life) -> Result<bool, String> {
        let (cache, disks) = self.open(life);
        let starting = self.starting(life, cache.clone());
        let set = match self.wait(life, starting)? {
            Ok(set) => set,
            Err(why) => {
                self.stopped_with = None;
                return self.refused(&why);
            }
        };
        life.set = Some(set.clone());
        check::counts(&set).map_err(|why| format!("after the start: {why}"))?;
        let before = self.stopped_with.take();
        if !self.plan.lies {
            let backings = || self.backings.iter().flatten().map(|medium| &**medium);
            check::marks(&set, backings())?;
            check::clean_data(&set, &self.cache, backings())?;
            self.linux.take().map_or(Ok(()), |map| map.is_of(&set))?;
            before.map_or(Ok(()), |before| check::same_map(&set, &before))?;
        }
        for (i, backing) in disks.into_iter().enumerate() {
            let Some(inode) = self.inode(life, &set, i)? else {
                return Ok(false);
            };
            if !self.attach(life, &set, i, inode, cache.clone(), backing)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn inode(
        &mut self,
        life: &mut Life,
        set: &Rc<CacheSet>,
        i: usize,
    ) -> Result<Option<Inode>, String> {
        if let Some(inode) = set.find_uuid(self.uuids[i]) {
            self.made[i] = true;
            return Ok(Some(inode));
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
        if let Err(why) = self.wait(life, adding)? {
            self.refused(&why)?;
            return Ok(None);
        }
        self.made[i] = true;
        Ok(Some(inode))
    }

    fn attach(
        &mut self,
        life: &mut Life,
        set: &Rc<CacheSet>,
        i: usize,
        inode: Inode,
        cache: Rc<SimDisk>,
        backing: Option<Rc<SimDisk>>,
    ) -> Result<bool, String> {
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
                let sb = match self.wait(life, reading)? {
                    Ok(Super::Backing(sb)) => sb,
                    Ok(Super::Cache(_)) => return Err("a backing device changed its kind".into()),
                    Err(why) => return self.refused(&why),
                };
                set.add_volume(inode, Some(&Backing::new(disk, sb)))
            }
            None => set.add_volume(inode, None),
        };
        owner_side.writeback_running.set(self.plan.writeback);
        owner_side.unflushed.fronts_exchanged();
        let shared = Arc::new(VolumeShared::new(
            Name::new(format!("volume{i}")),
            self.uuids[i],
            self.plan.block_sectors,
            plan.sectors,
            backing.as_ref().map(|_| DATA_OFFSET),
            Some(set.owner.attached(&owner_side)),
            plan.mode,
            Arc::default(),
        ));
        if i % 2 == 0 {
            // One that never gives its device up sees more of what that does.
            shared.health.set_limit(u64::MAX);
        }
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
        Ok(true)
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
        if !life.sched.skip_to_next(&life.exec) {
            return Ok(false);
        }
        self.now_us = life.sched.now_us();
        let late = |op: &&Op| self.now_us > op.issued_us + self.patience_us;
        match life.ops.values().find(late) {
            Some(op) => Err(format!(
                "{:?} of {} sectors at {} of volume {} hangs; {}",
                op.io.kind,
                op.io.sectors,
                op.io.start,
                op.io.volume,
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
            if !self.turn(life)? || life.sched.now_us() > began + self.patience_us {
                return Err(format!("a task of the owner hangs; {}", state(life)));
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
            if !self.turn(life)? {
                return Err(format!("a front does not go; {}", state(life)));
            }
        }
        for volume in &mut life.volumes {
            volume.fronts.clear();
        }
        self.halt(life, set)
    }

    fn halt(&mut self, life: &mut Life, set: Rc<CacheSet>) -> Result<(), String> {
        let volumes = std::mem::take(&mut life.volumes);
        if set.latch.check().is_ok() {
            check::counts(&set)?;
        }
        if self.rng.below(4) == 0 {
            for volume in &volumes {
                let (set, volume) = (set.clone(), volume.owner_side.clone());
                if volume.backing.is_some() {
                    let job = async move { set.writeback.clean_all(&volume).await };
                    let done = self.wait(life, job)?;
                    if done.is_err() && !self.may_fail() {
                        return Err(format!("write-back of everything: {done:?}"));
                    }
                }
            }
        }
        let stopping = set.clone();
        let job = async move { stopping.stop().await };
        if let Err(why) = self.wait(life, job)? {
            self.refused(&why)?;
            // It recovers to what was durable when it failed.
            self.report.stopped += 1;
            self.crash(false);
            return Ok(());
        }
        check::counts(&set)?;
        check::no_pins(&set)?;
        self.stopped_with = Some(check::extents(&set));
        match self.rng.below(2) {
            // What was stopped in good order needs no power.
            0 => self.crash(true),
            _ => self.end_of_process(),
        }
        Ok(())
    }
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
