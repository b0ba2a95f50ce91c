//! What a simulated device does wrong, or otherwise than others: values that a medium is given.

use crate::units::Sector;

/// How often a device fails, each in one of so many requests; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Reads.
    pub read: u64,
    /// Writes, zeroes and discards.
    pub write: u64,
    /// Flushes.
    pub flush: u64,
}

/// Ways in which a device is ill, each in one of so many requests; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ills {
    /// Some sectors of a write cannot be read until they are written again.
    pub latent: u64,
    /// A request is answered after a second to a minute and a half.
    pub slow: u64,
    /// A write lands elsewhere, and is answered as if it had not.
    pub misdirected: u64,
    /// A write lands nowhere, and is answered as if it had.
    pub lost: u64,
}

/// What a device makes of a discard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmapped {
    /// Nothing: it holds what it held.
    Old,
    /// Zeros, and it says so beforehand.
    Zeros,
    /// Zeros in a part of the range.
    #[default]
    Mixture,
}

/// Answers that come late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// By how much, in µs.
    pub us: u64,
    /// Of requests that meet these sectors: from, to.
    pub range: (u64, u64),
    /// Of reads.
    pub reads: bool,
    /// Of what changes the device, flushes among it.
    pub changes: bool,
}

impl Lag {
    /// Of everything.
    pub const fn of_all(us: u64) -> Lag {
        Lag {
            us,
            range: (0, u64::MAX),
            reads: true,
            changes: true,
        }
    }

    /// By how many µs a request for a range is late.
    pub fn of(&self, at: Sector, sectors: u64, changes: bool) -> u64 {
        let meets = self.range.0 < at.0 + sectors && at.0 < self.range.1;
        let is_meant = if changes { self.changes } else { self.reads };
        if meets && is_meant { self.us } else { 0 }
    }
}

/// Ranges of sectors that cannot be read until they are written: from, to.
#[derive(Default)]
pub(super) struct BadSectors(pub(super) Vec<(u64, u64)>);

impl BadSectors {
    /// Whether one of these sectors cannot be read.
    pub(super) fn has(&self, at: Sector, sectors: u64) -> bool {
        let mut bad = self.0.iter();
        bad.any(|&(from, to)| from < at.0 + sectors && at.0 < to)
    }

    /// Sectors that are written can be read again.
    pub(super) fn written(&mut self, at: Sector, sectors: u64) {
        let (from, to) = (at.0, at.0 + sectors);
        for (start, end) in std::mem::take(&mut self.0) {
            let parts = [(start, from.min(end)), (to.max(start), end)];
            self.0
                .extend(parts.into_iter().filter(|part| part.0 < part.1));
        }
    }
}
