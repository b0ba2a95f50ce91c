//! A medium opened for one life: what it is asked for begins now and is answered later.

use std::rc::Rc;

use super::super::queue::Entrance;
use super::super::sched::Sched;
use super::{Medium, Unmapped};
use crate::disk::{Buf, BufFuture, Disk, DoneFuture, IoError};
use crate::task::{OnceSender, once};
use crate::units::{SECTOR_BYTES, Sector};

/// A medium opened for one life.
pub struct SimDisk {
    medium: Rc<Medium>,
    sched: Sched,
    /// Where its queue is shared with other devices.
    queue: Option<Entrance>,
}

impl SimDisk {
    /// Opens a medium.
    pub fn new(medium: Rc<Medium>, sched: Sched) -> Rc<SimDisk> {
        Self::at(medium, sched, None)
    }

    /// Opens a medium whose requests go through a queue, if through any.
    pub fn at(medium: Rc<Medium>, sched: Sched, queue: Option<Entrance>) -> Rc<SimDisk> {
        Rc::new(SimDisk {
            medium,
            sched,
            queue,
        })
    }

    /// Answers a transfer of so many sectors, after a time that begins when it has its places.
    fn after(&self, sectors: u64, delay_us: u64, answer: impl FnOnce() + 'static) {
        match &self.queue {
            None => self.sched.after(delay_us, answer),
            Some(queue) => queue.go(sectors, self.sched.clone(), delay_us, answer),
        }
    }

    /// The medium.
    pub fn medium(&self) -> &Rc<Medium> {
        &self.medium
    }

    /// After how long a request is answered that goes to a range, and changes it or does not.
    fn delay_us(&self, at: Sector, sectors: u64, changes: bool) -> u64 {
        let rng = self.sched.rng();
        let slow = self.medium.ills.get().slow;
        if slow > 0 && rng.below(slow) == 0 {
            return 1_000_000 + rng.below(90_000_000);
        }
        let usual = match rng.below(64) {
            0 => 2_000 + rng.below(20_000),
            1..=8 => 200 + rng.below(1_000),
            _ => 5 + rng.below(100),
        };
        let pace = self.medium.pace_us.get();
        let more = if pace > 0 { rng.below(pace) } else { 0 };
        self.medium.lag.get().of(at, sectors, changes) + usual + more
    }

    fn check(&self, at: Sector, sectors: u64) -> Result<(), IoError> {
        let block = u64::from(self.medium.block_sectors);
        let fits =
            at.0.checked_add(sectors)
                .is_some_and(|e| e <= self.medium.sectors());
        if fits && at.0 % block == 0 && sectors % block == 0 && sectors > 0 {
            Ok(())
        } else {
            log::error!("{}: {sectors} sectors at {at} do not fit", self.medium.name);
            Err(IoError::OutOfRange)
        }
    }

    fn fails(&self, one_in: u64) -> bool {
        let fails = one_in > 0 && self.sched.rng().below(one_in) == 0;
        let faulted = &self.medium.faulted;
        faulted.set(faulted.get() + u64::from(fails));
        fails
    }

    /// Where a write really goes; `None` is nowhere.
    fn astray(&self, at: Sector, sectors: u64) -> Option<Sector> {
        let ills = self.medium.ills.get();
        if self.fails(ills.lost) {
            return None;
        }
        if !self.fails(ills.misdirected) {
            return Some(at);
        }
        let block = u64::from(self.medium.block_sectors);
        let room = (self.medium.sectors() - sectors) / block + 1;
        Some(Sector(self.sched.rng().below(room) * block))
    }

    /// Starts a read; `done` is called later.
    pub fn start_read(
        &self,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<Vec<u8>, IoError>) + 'static,
    ) {
        if self.medium.stuck.get() {
            return;
        }
        let checked = self.check(at, sectors);
        let mut failed = self.fails(self.medium.faults.get().read) | self.medium.errs();
        failed |= checked.is_ok() && self.medium.is_bad(at, sectors);
        // What it returns is what was visible at its beginning or at its end.
        let early = (checked.is_ok() && self.sched.rng().below(2) == 0)
            .then(|| self.medium.peek(at, sectors));
        let medium = self.medium.clone();
        let delay_us = self.delay_us(at, sectors, false);
        self.after(sectors, delay_us, move || {
            let data = checked.map(|()| early.unwrap_or_else(|| medium.peek(at, sectors)));
            done(if failed { Err(IoError::Failed) } else { data });
        });
    }

    /// Starts a write; `done` is called later.
    pub fn start_write(
        &self,
        at: Sector,
        data: Vec<u8>,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        if let Err(why) = self.check(at, (data.len() / SECTOR_BYTES) as u64) {
            return self.sched.after(1, move || done(Err(why)));
        }
        if !self.medium.step() {
            return;
        }
        let failed = self.fails(self.medium.faults.get().write) | self.medium.errs();
        let sectors = (data.len() / SECTOR_BYTES) as u64;
        let Some(at) = self.astray(at, sectors) else {
            let delay_us = self.delay_us(at, sectors, true);
            return self.sched.after(delay_us, move || done(Ok(())));
        };
        self.medium.bad.borrow_mut().written(at, sectors);
        let nr = self.medium.give(at, data);
        let (medium, sched) = (self.medium.clone(), self.sched.clone());
        if !failed && sched.rng().below(2) == 0 {
            medium.show(nr);
        }
        let delay_us = self.delay_us(at, sectors, true);
        self.after(sectors, delay_us, move || {
            if failed {
                medium.spoil(nr, sched.rng());
                return done(Err(IoError::Failed));
            }
            medium.answer(nr);
            let latent = medium.ills.get().latent;
            if latent > 0 && sched.rng().below(latent) == 0 {
                medium.spoil_some(at, sectors, sched.rng());
            }
            done(Ok(()));
        });
    }

    /// Starts a flush; `done` is called later.
    pub fn start_flush(&self, done: impl FnOnce(Result<(), IoError>) + 'static) {
        if !self.medium.step() {
            return;
        }
        let mut covered = self.medium.answered();
        covered.sort_unstable();
        let failed = self.fails(self.medium.faults.get().flush) | self.medium.errs();
        let medium = self.medium.clone();
        let delay_us = self.delay_us(Sector(0), self.medium.sectors(), true);
        self.sched.after(delay_us, move || {
            if failed {
                return done(Err(IoError::Failed));
            }
            if !medium.ignore_flush.get() {
                medium.settle(&covered);
            }
            done(Ok(()));
        });
    }

    /// Starts a discard: see [`Unmapped`].
    pub fn start_unmap(
        &self,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        let block = u64::from(self.medium.block_sectors);
        let zeroed = match self.medium.unmapped.get() {
            Unmapped::Old => 0,
            Unmapped::Zeros => sectors,
            Unmapped::Mixture => self.sched.rng().below(sectors / block + 1) * block,
        };
        match zeroed {
            0 => {
                let delay_us = self.delay_us(at, sectors, true);
                self.sched.after(delay_us, move || done(Ok(())));
            }
            some => self.start_write(at, vec![0; some as usize * SECTOR_BYTES], done),
        }
    }
}

/// Memory of a simulated device.
pub(in crate::sim) fn buf_of(bytes: usize) -> Buf {
    Buf::new(Box::new(vec![0u8; bytes]))
}

/// Reads so many sectors as memory has: `start` has them sent, which fill it then.
pub(in crate::sim) fn read_into(
    mut buf: Buf,
    start: impl FnOnce(u64, OnceSender<Result<Vec<u8>, IoError>>),
) -> BufFuture {
    let (tx, rx) = once();
    start((buf.len() / SECTOR_BYTES) as u64, tx);
    Box::pin(async move {
        let done = rx.await.map(|data| buf.copy_from_slice(&data));
        (buf, done)
    })
}

/// Writes what memory has: `start` has the end of that sent.
pub(in crate::sim) fn write_from(
    buf: Buf,
    start: impl FnOnce(Vec<u8>, OnceSender<Result<(), IoError>>),
) -> BufFuture {
    let (tx, rx) = once();
    start(buf.to_vec(), tx);
    Box::pin(async move { (buf, rx.await) })
}

impl Disk for SimDisk {
    fn name(&self) -> String {
        self.medium.name.clone()
    }

    fn kind(&self) -> &str {
        self.medium.kind.get()
    }

    fn size_sectors(&self) -> u64 {
        self.medium.sectors()
    }

    fn block_sectors(&self) -> u32 {
        self.medium.block_sectors
    }

    fn alloc(&self, bytes: usize) -> Buf {
        buf_of(bytes)
    }

    fn read(&self, at: Sector, buf: Buf) -> BufFuture {
        read_into(buf, |sectors, tx| {
            self.start_read(at, sectors, move |data| tx.send(data));
        })
    }

    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        write_from(buf, |data, tx| {
            self.start_write(at, data, move |done| tx.send(done));
        })
    }

    fn flush(&self) -> DoneFuture {
        let (tx, rx) = once();
        self.start_flush(move |done| tx.send(done));
        Box::pin(rx)
    }

    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        let (tx, rx) = once();
        self.start_unmap(at, sectors, move |done| tx.send(done));
        Box::pin(rx)
    }

    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        let (tx, rx) = once();
        let zeros = vec![0; sectors as usize * SECTOR_BYTES];
        self.start_write(at, zeros, move |done| tx.send(done));
        Box::pin(rx)
    }

    fn unmap_reads_zeros(&self) -> bool {
        self.medium.unmapped.get() == Unmapped::Zeros
    }
}
