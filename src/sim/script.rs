//! One life of a whole machine with a script: devices, the lifecycle, volumes with fronts.
//!
//! A script is a task beside the engine's own; it calls the lifecycle and does host I/O whose
//! results an oracle judges. A machine ends when its script does or when the power is cut at a
//! step of its devices ([`Fuse`]). Up to that step, a run is a function of its seed, wherever it is
//! cut. What outlives a machine is on the media and in the [`Books`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::check;
use super::disk::{Fuse, Medium, SimDisk};
use super::host::SimHost;
use super::oracle::{Io, Oracle};
use super::sched::Sched;
use super::stage::HostIo;
use crate::format::superblock::{BackingState, CacheMode};
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rng::Rng;
use crate::set::cache::CacheSet;
use crate::set::create::Create;
use crate::set::error::SetError;
use crate::set::format::Permission;
use crate::set::hub::Hub;
use crate::task::{Executor, join_all};

/// Simulated time that a script may take.
const PATIENCE_US: u64 = 3_600_000_000;
/// Turns after which nothing must be left to do at one moment.
const BUSY_MAX: u64 = 1_000_000;
/// How long write-back may take until a backing device says clean: ten minutes.
const CALM_US: u64 = 600_000_000;
/// Fronts of a volume.
const REACTORS: usize = 2;

/// What a script comes to.
pub type Job = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// A volume of a script. Number i is called "v‹i›"; its backing device, if any, "slow‹i›".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeKind {
    /// With a backing device that has so many sectors of data.
    Backed(u64),
    /// On the cache alone, of so many MiB.
    Flash(u64),
}

impl VolumeKind {
    /// Its size in sectors.
    pub fn sectors(self) -> u64 {
        match self {
            VolumeKind::Backed(sectors) => sectors,
            VolumeKind::Flash(mib) => mib * 2048,
        }
    }
}

/// The devices and volumes of a script.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Of the cache device, "fast".
    pub nbuckets: u64,
    /// Of the cache device.
    pub bucket_kb: u32,
    /// The volumes that there will be.
    pub volumes: &'static [VolumeKind],
}

/// Where the data of a backing device begin, by default.
const DATA_OFFSET: u64 = crate::format::superblock::DEFAULT_DATA_OFFSET.0;

/// The devices themselves.
#[derive(Clone)]
pub struct Media {
    /// The cache device.
    pub fast: Rc<Medium>,
    /// The backing devices, by volume.
    pub slow: Vec<Option<Rc<Medium>>>,
}

impl Media {
    /// Blank devices.
    pub fn new(layout: &Layout) -> Media {
        let fast = layout.nbuckets * u64::from(layout.bucket_kb) * 2;
        let slow = |(i, kind): (usize, &VolumeKind)| match kind {
            VolumeKind::Backed(n) => Some(Medium::new(&format!("slow{i}"), n + DATA_OFFSET, 1)),
            VolumeKind::Flash(_) => None,
        };
        Media {
            fast: Medium::new("fast", fast, 1),
            slow: layout.volumes.iter().enumerate().map(slow).collect(),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Rc<Medium>> {
        self.slow.iter().flatten().chain([&self.fast])
    }

    /// The backing devices.
    pub fn backings(&self) -> impl Iterator<Item = &Medium> {
        self.slow.iter().flatten().map(|medium| &**medium)
    }

    /// Devices of their own that hold the same.
    pub fn copy(&self) -> Media {
        let copy = |m: &Rc<Medium>| m.copy_as(m.name());
        Media {
            fast: copy(&self.fast),
            slow: self.slow.iter().map(|m| m.as_ref().map(copy)).collect(),
        }
    }

    /// The end of a life: what was under way ends somehow, and `power`: what was not flushed is
    /// lost in part.
    pub fn crash(&self, rng: &Rng, power: bool) {
        for medium in self.all() {
            medium.fuse.take();
            medium.crash(rng, power);
        }
    }
}

/// What is known of the volumes from life to life.
#[derive(Clone)]
pub struct Books {
    /// What sectors may hold.
    pub oracle: Oracle,
    next_value: u32,
    /// Which volumes were acknowledged to be there.
    pub made: Vec<bool>,
}

impl Books {
    /// Of volumes that nobody has written to.
    pub fn new(layout: &Layout) -> Books {
        let sizes: Vec<u64> = layout.volumes.iter().map(|v| v.sectors()).collect();
        Books {
            oracle: Oracle::new(&sizes),
            next_value: 1,
            made: vec![false; sizes.len()],
        }
    }
}

/// A machine that is up.
pub struct Machine {
    /// The devices and volumes.
    pub layout: Layout,
    /// The devices.
    pub media: Media,
    /// The clock.
    pub sched: Sched,
    /// The owner thread.
    pub exec: Executor,
    /// The lifecycle.
    pub hub: Rc<Hub>,
    /// Devices, and what hosts see.
    pub host: Rc<SimHost>,
    /// What is known of the volumes.
    pub books: Rc<RefCell<Books>>,
    /// What cuts the power.
    pub fuse: Rc<Fuse>,
    /// The source of chance.
    pub rng: Rc<Rng>,
    /// What a read returned that cannot be: no error of a device excuses it.
    pub wrong: RefCell<Option<String>>,
    busy: Cell<u64>,
}

impl Machine {
    /// Switches a machine on; nothing is registered yet.
    pub fn new(
        layout: Layout,
        media: Media,
        books: Rc<RefCell<Books>>,
        seed: u64,
        fuse: Rc<Fuse>,
    ) -> Rc<Machine> {
        let rng = Rc::new(Rng::new(seed));
        let (exec, sched) = (Executor::new(), Sched::new(0, rng.clone()));
        let host = Rc::new(SimHost::new(sched.clone(), rng.clone(), REACTORS));
        for medium in media.all() {
            *medium.fuse.borrow_mut() = Some(fuse.clone());
            host.add(SimDisk::new(medium.clone(), sched.clone()));
        }
        Rc::new(Machine {
            layout,
            media,
            hub: Hub::new(host.clone(), exec.clone()),
            host,
            sched,
            exec,
            books,
            fuse,
            rng,
            wrong: RefCell::default(),
            busy: Cell::new(0),
        })
    }

    /// One step of everything; time moves on when there is nothing else to do.
    fn turn(&self) -> Result<(), String> {
        let now = self.sched.now_us();
        let steps = 1 + self.rng.below(4) as usize;
        let mut done = self.sched.run_due() + self.exec.poll(now, steps);
        done += self.hub.poll() + self.host.poll();
        if done > 0 {
            self.busy.set(self.busy.get() + 1);
            self.sched.set_now(now + self.rng.below(2));
            return match self.busy.get() > BUSY_MAX {
                true => Err("busy for ever".to_string()),
                false => Ok(()),
            };
        }
        self.busy.set(0);
        match self.sched.skip_to_next(&self.exec) {
            true => Ok(()),
            false => Err("nothing will ever happen".to_string()),
        }
    }

    /// Runs a job to its end; `None` when the power went before.
    ///
    /// # Errors
    /// It hangs.
    pub fn run<T: 'static>(
        &self,
        job: impl Future<Output = T> + 'static,
    ) -> Result<Option<T>, String> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let out = slot.clone();
        self.exec.spawn(async move {
            let value = job.await;
            *out.borrow_mut() = Some(value);
        });
        let end = self.sched.now_us() + PATIENCE_US;
        loop {
            if self.fuse.is_blown() {
                return Ok(None);
            }
            if let Some(value) = slot.borrow_mut().take() {
                return Ok(Some(value));
            }
            self.turn()?;
            if self.sched.now_us() > end {
                return Err("a script hangs".to_string());
            }
        }
    }

    /// The end of this life, without a word to anybody.
    pub fn die(&self, rng: &Rng, power: bool) {
        self.sched.clear();
        self.host.stage.clear();
        self.exec.abandon();
        self.sched.clear();
        self.media.crash(rng, power);
        self.books.borrow_mut().oracle.crash(power);
    }

    // --- the lifecycle ---

    /// The only set.
    ///
    /// # Errors
    /// None runs.
    pub fn set(&self) -> Result<Rc<CacheSet>, String> {
        self.hub.sets().first().cloned().ok_or("no set".to_string())
    }

    /// Creates volume `i`, or does what is still to be done for it.
    ///
    /// # Errors
    /// As the lifecycle says.
    pub async fn create(&self, i: usize, mode: CacheMode, may: Permission) -> Result<(), SetError> {
        let call = Create {
            name: name(i),
            cache_bdev: "fast".into(),
            backing_bdev: format!("slow{i}"),
            mode: Some(mode),
            bucket_size_kb: Some(self.layout.bucket_kb),
            block_size: Some(512),
            may,
        };
        self.hub.create(call).await?;
        self.books.borrow_mut().made[i] = true;
        Ok(())
    }

    /// Creates flash volume `i`.
    ///
    /// # Errors
    /// As the lifecycle says.
    pub async fn create_flash(&self, i: usize) -> Result<(), String> {
        let VolumeKind::Flash(mib) = self.layout.volumes[i] else {
            return Err(format!("{} has a backing device", name(i)));
        };
        let set = self.set()?.set_uuid().to_string();
        let made = self.hub.create_flash(&set, &name(i), mib).await;
        made.map_err(|e| e.to_string())?;
        self.books.borrow_mut().made[i] = true;
        Ok(())
    }

    /// Registers all devices.
    ///
    /// # Errors
    /// One cannot be brought up.
    pub async fn register_all(&self) -> Result<(), String> {
        for medium in [&self.media.fast]
            .into_iter()
            .chain(self.media.slow.iter().flatten())
        {
            self.register(medium.name()).await?;
        }
        Ok(())
    }

    /// Registers a device.
    ///
    /// # Errors
    /// It cannot be brought up.
    pub async fn register(&self, bdev: &str) -> Result<(), String> {
        let done = self.hub.register(bdev).await;
        done.map(|_| ())
            .map_err(|e| format!("register {bdev}: {e}"))
    }

    // --- host I/O ---

    /// One host I/O, which must succeed, and whose data must be right.
    ///
    /// # Errors
    /// It failed, or what it read cannot be.
    pub async fn io(&self, kind: Kind, i: usize, start: u64, n: u64) -> Result<(), String> {
        let (io, memory) = self.begin(kind, i, start, n);
        let host_io = HostIo::new(kind, start, n, memory);
        let (outcome, memory) = self.host.stage.io(&name(i), host_io).await;
        let ok = outcome == Outcome::Success;
        let seen = ok.then_some(&memory[..]);
        let seen = self.books.borrow_mut().oracle.ends(&io, seen);
        if let Err(why) = seen {
            self.wrong.borrow_mut().get_or_insert(why.clone());
            return Err(why);
        }
        match ok {
            true => Ok(()),
            false => Err(format!("{kind:?} of {n} at {start} of {} failed", name(i))),
        }
    }

    fn begin(&self, kind: Kind, i: usize, start: u64, n: u64) -> (Io, Vec<u8>) {
        let mut books = self.books.borrow_mut();
        let value = books.next_value;
        books.next_value += u32::from(kind == Kind::Write);
        books.oracle.begins(kind, i, start, n, value)
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`io`](Self::io).
    pub async fn write(&self, i: usize, start: u64, n: u64) -> Result<(), String> {
        self.io(Kind::Write, i, start, n).await
    }

    /// Reads.
    ///
    /// # Errors
    /// See [`io`](Self::io).
    pub async fn read(&self, i: usize, start: u64, n: u64) -> Result<(), String> {
        self.io(Kind::Read, i, start, n).await
    }

    /// Flushes.
    ///
    /// # Errors
    /// See [`io`](Self::io).
    pub async fn flush(&self, i: usize) -> Result<(), String> {
        self.io(Kind::Flush, i, 0, 0).await
    }

    /// Any I/O anywhere on a volume: `n` of them, `depth` at a time.
    ///
    /// # Errors
    /// See [`io`](Self::io).
    pub async fn burst(&self, i: usize, n: u64, depth: u64) -> Result<(), String> {
        for _ in 0..n.div_ceil(depth) {
            let some = (0..depth).map(|_| self.any(i)).collect();
            join_all(some)
                .await
                .into_iter()
                .collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    async fn any(&self, i: usize) -> Result<(), String> {
        const KINDS: [Kind; 16] = {
            let mut kinds = [Kind::Write; 16];
            (kinds[0], kinds[1], kinds[2]) = (Kind::Flush, Kind::Unmap, Kind::WriteZeroes);
            (kinds[3], kinds[4], kinds[5]) = (Kind::Read, Kind::Read, Kind::Read);
            kinds
        };
        let kind = KINDS[self.rng.below(16) as usize];
        if kind == Kind::Flush {
            return self.flush(i).await;
        }
        let size = self.layout.volumes[i].sectors();
        let n = 1 + self.rng.below(24);
        // Mostly in a part of the volume, so that things meet.
        let room = if self.rng.below(4) > 0 {
            size / 8
        } else {
            size
        };
        let start = self.rng.below(room - n + 1);
        self.io(kind, i, start, n).await
    }

    /// Waits until the backing device of a volume does not say dirty any more.
    ///
    /// # Errors
    /// It does not within ten minutes, or there is no such volume.
    pub async fn calm(&self, i: usize) -> Result<(), String> {
        let medium = self.media.slow[i].clone().ok_or("no backing device")?;
        let end = self.sched.now_us() + CALM_US;
        while self.sched.now_us() < end {
            let sb = check::backing_super(&medium).ok_or("no superblock")?;
            if sb.state() != BackingState::Dirty {
                return Ok(());
            }
            self.exec.sleep_us(100_000).await;
        }
        Err(format!("{} stays dirty", medium.name()))
    }

    /// Reads a whole volume.
    ///
    /// # Errors
    /// See [`io`](Self::io).
    pub async fn read_all(&self, i: usize) -> Result<(), String> {
        let size = self.layout.volumes[i].sectors();
        for start in (0..size).step_by(1024) {
            let some = (start..size.min(start + 1024)).step_by(128);
            let some = some
                .map(|at| self.read(i, at, 128.min(size - at)))
                .collect();
            join_all(some)
                .await
                .into_iter()
                .collect::<Result<(), _>>()?;
        }
        Ok(())
    }
}

/// The name of volume `i`.
pub fn name(i: usize) -> String {
    format!("v{i}")
}
