//! The engine on what Linux wrote: every golden case is opened on simulated disks and read back
//! through a front, sector by sector; then stopped, and read by the offline reader, and opened again.
//! What we leave is checked in the three ways that there are: stopped in good order, cut off from
//! power right after recovery, and with everything written back; the offline check finds nothing
//! wrong with any of it.

mod fixtures;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use fixtures::reader::{Reader, backing_super};
use fixtures::{CASES, Golden, load, pattern};
use spdk_bcache::check::report::Kind as FindingKind;
use spdk_bcache::check::{Source, check as offline_check};
use spdk_bcache::disk::Disk;
use spdk_bcache::format::superblock::{CacheMode, Super};
use spdk_bcache::request::Kind;
use spdk_bcache::request::front::Front;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::request::owner::Volume;
use spdk_bcache::request::volume::{Name, VolumeShared};
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::{CacheSet, read_super};
use spdk_bcache::set::volume::Backing;
use spdk_bcache::sim::check;
use spdk_bcache::sim::disk::{Medium, SimDisk};
use spdk_bcache::sim::host::SimHost;
use spdk_bcache::sim::lane::SimLane;
use spdk_bcache::sim::sched::Sched;
use spdk_bcache::task::Executor;
use spdk_bcache::units::{Inode, SECTOR_BYTES, Sector};

/// Steps in which everything here must be done.
const STEPS_MAX: u64 = 5_000_000;
/// Sectors read at once.
const READ_SECTORS: u64 = 2048;

/// The devices of a case.
struct Media {
    cache: Rc<Medium>,
    backings: Vec<Rc<Medium>>,
    expected: Vec<Vec<u32>>,
}

impl Media {
    fn of(golden: &Golden) -> Media {
        let named = |(i, bytes): (usize, &Vec<u8>)| {
            Medium::with_bytes(&format!("backing{i}"), bytes.clone(), 1)
        };
        Media {
            cache: Medium::with_bytes("cache", golden.cache.clone(), 1),
            backings: golden.backings.iter().enumerate().map(named).collect(),
            expected: golden.expected.clone(),
        }
    }

    fn golden(&self) -> Golden {
        Golden {
            cache: self.cache.bytes(),
            backings: self.backings.iter().map(|b| b.bytes()).collect(),
            expected: self.expected.clone(),
        }
    }
}

/// The engine running on them.
struct Engine {
    sched: Sched,
    exec: Executor,
    set: Rc<CacheSet>,
    fronts: Vec<Front<SimLane>>,
    volumes: Vec<Rc<Volume>>,
}

fn turn(sched: &Sched, exec: &Executor) {
    if exec.poll(sched.now_us(), 64) == 0 {
        sched.skip_to_next(exec);
    }
    sched.set_now(sched.now_us() + 1);
    sched.run_due();
}

fn wait<T: 'static>(
    sched: &Sched,
    exec: &Executor,
    mut others: impl FnMut(),
    job: impl Future<Output = T> + 'static,
) -> T {
    let slot: Rc<RefCell<Option<T>>> = Rc::default();
    let out = slot.clone();
    exec.spawn(async move {
        let value = job.await;
        *out.borrow_mut() = Some(value);
    });
    for _ in 0..STEPS_MAX {
        if let Some(value) = slot.borrow_mut().take() {
            return value;
        }
        turn(sched, exec);
        others();
    }
    panic!("it hangs");
}

impl Engine {
    fn start(media: &Media) -> Engine {
        // Another for each life: were two nodes' numbers the same, what a bucket held in the last
        // life would look like more of its new node.
        let rng = Rc::new(Rng::new(3 + media.cache.writes.get()));
        let (sched, exec) = (Sched::new(0, rng.clone()), Executor::new());
        let cache = SimDisk::new(media.cache.clone(), sched.clone());
        let starting = {
            let (exec, disk): (_, Rc<dyn Disk>) = (exec.clone(), cache.clone());
            async move {
                match read_super(&disk).await.expect("a superblock") {
                    Super::Cache(sb) => {
                        let host = SimHost::bare(rng);
                        CacheSet::start(&host, exec, disk, sb).await
                    }
                    Super::Backing(_) => panic!("a backing device"),
                }
            }
        };
        let set = wait(&sched, &exec, || (), starting);
        let set = set.unwrap_or_else(|e| panic!("{e}"));
        check::counts(&set).expect("sound counts");
        let mut engine = Engine {
            sched,
            exec,
            set,
            fronts: Vec::new(),
            volumes: Vec::new(),
        };
        for i in 0..media.expected.len() {
            engine.attach(media, i, cache.clone());
        }
        engine
    }

    fn attach(&mut self, media: &Media, i: usize, cache: Rc<SimDisk>) {
        let set = &self.set;
        let backing = media.backings.get(i);
        let opened = backing.map(|medium| SimDisk::new(medium.clone(), self.sched.clone()));
        let disk: Option<Rc<dyn Disk>> = opened.clone().map(|disk| disk as Rc<dyn Disk>);
        let (inode, uuid, offset, backing) = match backing.zip(disk.clone()) {
            Some((medium, disk)) => {
                let sb = backing_super(&medium.bytes());
                let inode = set.find_uuid(sb.uuid).expect("an entry of the volume");
                let backing = Backing::new(disk, sb.clone());
                (inode, sb.uuid, Some(sb.data_offset), Some(backing))
            }
            None => {
                let table = set.uuids();
                let flash = table.iter().position(|e| e.is_live() && e.is_flash_only());
                let at = flash.expect("a volume on the flash");
                (Inode(at as u32), table[at].uuid, None, None)
            }
        };
        let volume = set.add_volume(inode, backing.as_ref());
        volume.unflushed.fronts_exchanged();
        let shared = Arc::new(VolumeShared::new(
            Name::new(format!("volume{i}")),
            uuid,
            set.superblock().block_sectors.into(),
            media.expected[i].len() as u64,
            offset,
            Some(set.owner.attached(&volume)),
            CacheMode::WriteBack,
            Arc::default(),
        ));
        let front = Front::new(SimLane::new(Some(cache), opened), shared);
        self.fronts.push(front.expect("a reader's slot"));
        self.volumes.push(volume);
    }

    fn turn(&self) {
        turn(&self.sched, &self.exec);
        self.poll();
    }

    fn poll(&self) {
        self.set.owner.poll();
        for front in &self.fronts {
            SimLane::deliver(front, 64);
            front.poll();
        }
    }

    fn read(&self, volume: usize, at: u64, sectors: u64) -> Vec<u8> {
        let front = &self.fronts[volume];
        let memory = vec![0xee; sectors as usize * SECTOR_BYTES];
        let io = front.lane().host_io(0, memory);
        io.start(Kind::Read, Sector(at), sectors);
        front.submit(io);
        for _ in 0..STEPS_MAX {
            if let Some((io, outcome)) = front.lane().finished() {
                assert_eq!(outcome, Outcome::Success);
                return io.host().memory.borrow().clone();
            }
            self.turn();
        }
        panic!("a read hangs");
    }

    /// How many sectors of all volumes are not what they must be.
    fn wrong_sectors(&self, media: &Media) -> usize {
        let mut wrong = 0;
        for (volume, expected) in media.expected.iter().enumerate() {
            let size = expected.len() as u64;
            for at in (0..size).step_by(READ_SECTORS as usize) {
                let data = self.read(volume, at, READ_SECTORS.min(size - at));
                let found = data.chunks_exact(SECTOR_BYTES).zip(at..);
                wrong += found
                    .filter(|&(bytes, at)| bytes != pattern(at, expected[at as usize]))
                    .count();
            }
        }
        wrong
    }

    fn write_back(&self) {
        for volume in self.volumes.iter().filter(|v| v.backing.is_some()) {
            let (set, volume) = (self.set.clone(), volume.clone());
            let job = async move { set.writeback.clean_all(&volume).await };
            let done = wait(&self.sched, &self.exec, || self.poll(), job);
            done.expect("a healthy backing device");
        }
    }

    fn stop(mut self) {
        while !self.fronts.iter().all(Front::is_idle) {
            self.turn();
        }
        assert!(self.fronts.iter().all(Front::close));
        while self.set.owner.has_fronts() {
            self.turn();
        }
        self.fronts.clear();
        let set = self.set.clone();
        let job = async move { set.stop().await };
        wait(&self.sched, &self.exec, || (), job).unwrap_or_else(|e| panic!("{e}"));
        check::counts(&self.set).expect("sound counts");
        check::no_pins(&self.set).expect("no pins");
        self.vanish();
    }

    fn vanish(self) {
        self.sched.clear();
        self.exec.abandon();
        self.sched.clear();
    }
}

fn offline(case: &str, media: &Media) {
    let reader = Reader::of(media.golden());
    let backings: Vec<_> = media.backings.iter().cloned().map(Some).collect();
    check::offline(&media.cache, &backings).unwrap_or_else(|why| panic!("{case}: {why}"));
    let wrong = reader.wrong_sectors(&reader.extents());
    assert_eq!(wrong, 0, "{case}: wrong sectors in what we left");
}

fn opens(case: &str) {
    let media = Media::of(&load(case));
    for round in 0..2 {
        let engine = Engine::start(&media);
        assert_eq!(engine.wrong_sectors(&media), 0, "{case}: round {round}");
        engine.stop();
        offline(case, &media);
    }
}

#[test]
fn clean_dirty_opens() {
    opens("clean-dirty");
}

#[test]
fn crash_dirty_opens() {
    opens("crash-dirty");
}

#[test]
fn power_cut_opens() {
    opens("power-cut");
}

#[test]
fn overlaps_crash_opens() {
    opens("overlaps-crash");
}

#[test]
fn two_backing_opens() {
    opens("two-backing");
}

#[test]
fn wrapped_opens() {
    opens("wrapped");
}

#[test]
fn deep_tree_opens() {
    opens("deep-tree");
}

#[test]
fn flash_volume_opens() {
    opens("flash-volume");
}

/// Recovery may be cut off at any moment, and again.
#[test]
fn a_recovery_that_is_cut_off_loses_nothing() {
    for case in CASES {
        let media = Media::of(&load(case));
        for nr in 0..3 {
            let engine = Engine::start(&media);
            for _ in 0..nr * 200 {
                engine.turn();
            }
            engine.vanish();
            let rng = Rng::new(nr);
            for medium in media.backings.iter().chain([&media.cache]) {
                medium.crash(&rng, true);
            }
            offline(case, &media);
        }
    }
}

#[test]
fn what_is_written_back_stands_on_the_backing_devices() {
    for case in CASES {
        let media = Media::of(&load(case));
        let engine = Engine::start(&media);
        engine.write_back();
        engine.stop();
        for (medium, expected) in media.backings.iter().zip(&media.expected) {
            let (bytes, mut wrong) = (medium.bytes(), 0);
            let data = backing_super(&bytes).data_offset.bytes() as usize;
            for (at, &version) in (0u64..).zip(expected) {
                let from = data + at as usize * SECTOR_BYTES;
                wrong += usize::from(bytes[from..from + SECTOR_BYTES] != pattern(at, version));
            }
            assert_eq!(wrong, 0, "{case}: wrong sectors after write-back");
        }
        offline(case, &media);
    }
}

fn misread(media: &Media) -> bool {
    let backings: Vec<&dyn Source> = media.backings.iter().map(|b| &**b as &dyn Source).collect();
    let report = offline_check(&*media.cache, &backings, &mut |_| ()).expect("a cache device");
    let found = report.has(FindingKind::NodeMisread);
    // Nothing else is wrong.
    assert_eq!(report.findings.len(), usize::from(found), "{report:#?}");
    found
}

/// A set that an engine without this rule left: every start writes such leaves anew, when they have
/// been read, whether or not it is stopped in good order then.
#[test]
fn leaves_that_linux_misreads_are_written_anew() {
    let media = Media::of(&load("kernel-splits"));
    assert!(misread(&media));
    opens("kernel-splits");
    let media = Media::of(&load("kernel-splits"));
    let (mut turns, mut lives) = (0, 0);
    while misread(&media) {
        let engine = Engine::start(&media);
        for _ in 0..turns {
            engine.turn();
        }
        assert_eq!(engine.wrong_sectors(&media), 0, "life {lives}");
        engine.vanish();
        let rng = Rng::new(turns);
        for medium in media.backings.iter().chain([&media.cache]) {
            medium.crash(&rng, true);
        }
        let reader = Reader::of(media.golden());
        assert_eq!(reader.wrong_sectors(&reader.extents()), 0, "life {lives}");
        (turns, lives) = (turns + 25, lives + 1);
        assert!(lives < 100, "it is never written anew");
    }
}
