//! What hosts do for a while: how large their I/O is, what it is, and where it goes.
//!
//! A mix is drawn when a life begins and again now and then, so that a run has phases: long writes in
//! order, then short ones in the middle of what they left; writes alone, then flushes alone.

use crate::rng::Rng;

/// One phase of the load.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Sectors of a host I/O at most.
    pub io_sectors_max: u64,
    /// Host I/Os that a step begins at most.
    pub burst: u64,
    /// Of a hundred host I/Os: reads, flushes.
    pub reads: u64,
    /// See `reads`.
    pub flushes: u64,
    /// Host I/Os in a hundred that go to a small part of the volume, and where that begins: in
    /// thousandths of the volume.
    pub hot: u64,
    /// See `hot`.
    pub hot_at: u64,
    /// Host I/Os in a hundred that go on where the one before ended.
    pub in_order: u64,
    /// Whether lengths are as large as they may be.
    pub is_full: bool,
}

impl Mix {
    /// A mix of the generator.
    pub fn draw(rng: &Rng) -> Mix {
        Mix {
            io_sectors_max: *rng.any(&[8, 8, 64, 256]),
            burst: *rng.any(&[2, 6, 6, 30]),
            reads: *rng.any(&[0, 10, 40, 70]),
            flushes: *rng.any(&[0, 4, 12, 30]),
            hot: *rng.any(&[0, 50, 95]),
            hot_at: *rng.any(&[0, 0, 300, 700]),
            in_order: *rng.any(&[0, 0, 0, 80]),
            is_full: rng.below(4) == 0,
        }
    }
}
