//! What the request path asks of the world on one reactor: the hot half of the boundary.
//!
//! A *front* ([`super::front::Front`]) serves one volume on one thread. It decides; the lane moves
//! the bytes. The SPDK boundary and the simulator each implement [`Lane`]. Every operation that is
//! started ends in exactly one call of [`Front::part_done`](super::front::Front::part_done) or
//! [`Front::fill_done`](super::front::Front::fill_done), never from within the starting call.
//! A lane that runs out of resources for an operation (SPDK's -ENOMEM) queues it and tries again, as
//! it does, a bounded number of times, with one that a reset aborted. What it reports in the end is
//! typed: only a device's own errors count against the device ([`IoError::is_device_error`]).

use std::ops::Deref;

use super::Request;
use crate::disk::IoError;
use crate::units::Sector;

/// Which device a transfer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The cache device; positions are sectors of that device.
    Cache,
    /// The backing device; positions are sectors of that device, its data offset included.
    Backing,
}

/// The direction of a transfer, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Device to host memory.
    Read,
    /// Host memory to device.
    Write,
}

/// How a transfer ends.
pub type Ended = Result<(), IoError>;

/// How a host I/O ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Success,
    /// A device failed, or the data are out of reach.
    Failed,
    /// The cache is full of what cannot be written back; nothing failed.
    NoSpace,
}

/// One reactor's way to the devices and to the host's memory.
pub trait Lane {
    /// A host I/O in flight: leads to its [`Request`], which lives beside it.
    type Io: Clone + Deref<Target = Request>;

    /// A number that stands for the I/O in messages to the owner, until the I/O is completed.
    fn token(&self, io: &Self::Io) -> u64;

    /// The I/O of a token that [`token`](Self::token) gave out on this lane.
    fn io(&self, token: u64) -> Self::Io;

    /// Moves `sectors` between the host's memory, from `host_sectors` into the I/O, and the device
    /// at `at`. Ends in `part_done(io, part, ended)`.
    #[allow(clippy::too_many_arguments)]
    fn transfer(
        &self,
        io: &Self::Io,
        part: u8,
        side: Side,
        direction: Direction,
        at: Sector,
        host_sectors: u32,
        sectors: u32,
    );

    /// Fills part of the host's memory with zeros, at once.
    fn zero_host(&self, io: &Self::Io, host_sectors: u32, sectors: u32);

    /// Makes a range of the backing device read as zeros. Ends in `part_done`.
    fn backing_zeroes(&self, io: &Self::Io, part: u8, at: Sector, sectors: u64);

    /// Discards a range of the backing device. Ends in `part_done`; a backing device that cannot
    /// discard counts as done.
    fn backing_unmap(&self, io: &Self::Io, part: u8, at: Sector, sectors: u64);

    /// Flushes the backing device. Ends in `part_done`; done where it has no volatile cache.
    fn backing_flush(&self, io: &Self::Io, part: u8);

    /// Answers the host. The I/O and its request are not touched afterwards.
    fn complete(&self, io: Self::Io, outcome: Outcome);

    /// Takes a bounce buffer of so many sectors for fill number `fill` (0..[`FILLS_MAX`]); false
    /// when none is free, and the read goes on without a fill.
    ///
    /// [`FILLS_MAX`]: super::front::FILLS_MAX
    fn fill_begin(&self, fill: u16, sectors: u32) -> bool;

    /// Reads the backing device into the fill's buffer. Ends in `fill_done(fill, ended)`.
    fn fill_read(&self, fill: u16, at: Sector, sectors: u32);

    /// Copies the fill's buffer into the host's memory, at once.
    fn fill_copy(&self, fill: u16, io: &Self::Io, host_sectors: u32, sectors: u32);

    /// Writes the fill's buffer to the cache device. Ends in `fill_done(fill, ended)`.
    fn fill_write(&self, fill: u16, at: Sector, sectors: u32);

    /// Gives the fill's buffer back.
    fn fill_end(&self, fill: u16);
}
