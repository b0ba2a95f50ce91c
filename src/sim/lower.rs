//! What lies under a simulated volume: a disk, or another volume of the same stage.
//!
//! A volume that is open as a device stays shown until it is let go, as a bdev does. Its reads and
//! writes are host I/O on any of its reactors.

use std::rc::Rc;

use super::disk::{SimDisk, buf_of, read_into, write_from};
use super::reactor::{Answers, Ended, HostIo};
use super::stage::Shown;
use crate::disk::{Buf, BufFuture, Disk, DoneFuture, IoError};
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rng::Rng;
use crate::task::once;
use crate::units::{SECTOR_BYTES, Sector};

/// A device as lanes and the engine's own I/O use it.
#[derive(Clone)]
pub enum Lower {
    /// A disk.
    Disk(Rc<SimDisk>),
    /// A volume.
    Volume(Rc<VolumeDisk>),
}

impl From<Rc<SimDisk>> for Lower {
    fn from(disk: Rc<SimDisk>) -> Lower {
        Lower::Disk(disk)
    }
}

impl Lower {
    /// The device for the engine's own I/O.
    pub fn disk(&self) -> &dyn Disk {
        match self {
            Lower::Disk(disk) => &**disk,
            Lower::Volume(volume) => &**volume,
        }
    }

    /// Starts a read; `done` is called later.
    pub fn start_read(
        &self,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<Vec<u8>, IoError>) + 'static,
    ) {
        match self {
            Lower::Disk(disk) => disk.start_read(at, sectors, done),
            Lower::Volume(volume) => volume.start_read(at, sectors, done),
        }
    }

    /// Starts a write; `done` is called later.
    pub fn start_write(
        &self,
        at: Sector,
        data: Vec<u8>,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        match self {
            Lower::Disk(disk) => disk.start_write(at, data, done),
            Lower::Volume(volume) => volume.start_write(at, data, done),
        }
    }

    /// Starts a flush; `done` is called later.
    pub fn start_flush(&self, done: impl FnOnce(Result<(), IoError>) + 'static) {
        match self {
            Lower::Disk(disk) => disk.start_flush(done),
            Lower::Volume(volume) => volume.start(Kind::Flush, Sector(0), 0, done),
        }
    }

    /// Starts a discard; `done` is called later.
    pub fn start_unmap(
        &self,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        match self {
            Lower::Disk(disk) => disk.start_unmap(at, sectors, done),
            Lower::Volume(volume) => volume.start(Kind::Unmap, at, sectors, done),
        }
    }
}

/// A volume that is open as a device.
pub struct VolumeDisk {
    volume: Rc<Shown>,
    answers: Rc<Answers>,
    rng: Rc<Rng>,
}

impl VolumeDisk {
    /// Opens a volume.
    pub(super) fn new(volume: Rc<Shown>, answers: Rc<Answers>, rng: Rc<Rng>) -> VolumeDisk {
        volume.opens.set(volume.opens.get() + 1);
        VolumeDisk {
            volume,
            answers,
            rng,
        }
    }

    fn issue(&self, io: HostIo, done: impl FnOnce(Ended) + 'static) {
        let tag = self.answers.tag();
        self.answers.call(tag, done);
        self.volume.take(tag, io, &self.rng);
    }

    fn start(
        &self,
        kind: Kind,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        let io = HostIo::new(kind, at.0, sectors, Vec::new());
        self.issue(io, |(outcome, _)| done(result(outcome)));
    }

    fn start_read(
        &self,
        at: Sector,
        sectors: u64,
        done: impl FnOnce(Result<Vec<u8>, IoError>) + 'static,
    ) {
        let memory = vec![0; sectors as usize * SECTOR_BYTES];
        let io = HostIo::new(Kind::Read, at.0, sectors, memory);
        self.issue(io, |(outcome, data)| done(result(outcome).map(|()| data)));
    }

    fn start_write(
        &self,
        at: Sector,
        data: Vec<u8>,
        done: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        let sectors = (data.len() / SECTOR_BYTES) as u64;
        let io = HostIo::new(Kind::Write, at.0, sectors, data);
        self.issue(io, |(outcome, _)| done(result(outcome)));
    }

    fn done(&self, kind: Kind, at: Sector, sectors: u64) -> DoneFuture {
        let (tx, rx) = once();
        self.start(kind, at, sectors, move |done| tx.send(done));
        Box::pin(rx)
    }
}

fn result(outcome: Outcome) -> Result<(), IoError> {
    match outcome {
        Outcome::Success => Ok(()),
        Outcome::Failed | Outcome::NoSpace => Err(IoError::Failed),
    }
}

impl Drop for VolumeDisk {
    fn drop(&mut self) {
        self.volume.opens.set(self.volume.opens.get() - 1);
    }
}

impl Disk for VolumeDisk {
    fn name(&self) -> String {
        self.volume.shared().name.get()
    }

    fn kind(&self) -> &str {
        "bcache"
    }

    fn size_sectors(&self) -> u64 {
        self.volume.shared().size_sectors()
    }

    fn block_sectors(&self) -> u32 {
        self.volume.shared().block_sectors
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
        self.done(Kind::Flush, Sector(0), 0)
    }

    fn unmap(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.done(Kind::Unmap, at, sectors)
    }

    fn write_zeroes(&self, at: Sector, sectors: u64) -> DoneFuture {
        self.done(Kind::WriteZeroes, at, sectors)
    }
}
