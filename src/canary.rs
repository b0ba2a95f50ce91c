//! Seeded bugs, by which the tests see that the simulator would find such ones.
//!
//! They are there only in builds with the feature `canary`, and there only in a thread that asks for
//! one; in all others the question is a constant and costs nothing.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Buckets are used again before their raised generations are on the disk.
    ReuseBeforeGens,
    /// Keys become clean before the backing device was flushed.
    CleanBeforeFlush,
    /// A run may lie strictly inside of a key of an older run, which Linux misreads.
    RunInside,
    /// A volume whose fronts are exchanged does not count as unflushed.
    ExchangeForgotten,
    /// What the disk may still say of moved data is not recorded.
    RemnantForgotten,
    /// A superblock counts as written although its write has failed.
    SuperBelieved,
    /// A second device with a UUID in use is taken.
    TwinTaken,
    /// A new volume may have the name of an absent one with dirty data.
    NameOfAbsent,
    /// Operations on one set do not wait for each other.
    SetTurnForgotten,
    /// A write-back by request goes on when its volume is removed.
    JobOutlives,
    /// A reset leaves what is held where it is.
    ResetForgetsHeld,
    /// A list of memory that is longer than its I/O fits as it is.
    ListUnclipped,
    /// At the end of the process volumes are taken down one after the other, the lower one first.
    StopsFromBelow,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 13] = [
        Bug::ReuseBeforeGens,
        Bug::CleanBeforeFlush,
        Bug::RunInside,
        Bug::ExchangeForgotten,
        Bug::RemnantForgotten,
        Bug::SuperBelieved,
        Bug::TwinTaken,
        Bug::NameOfAbsent,
        Bug::SetTurnForgotten,
        Bug::JobOutlives,
        Bug::ResetForgetsHeld,
        Bug::ListUnclipped,
        Bug::StopsFromBelow,
    ];
}

#[cfg(feature = "canary")]
thread_local! {
    static SEEDED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Seeds a bug in this thread, or none.
#[cfg(feature = "canary")]
pub fn seed(bug: Option<Bug>) {
    SEEDED.set(bug);
}

/// Whether this thread has the bug.
#[cfg(feature = "canary")]
pub fn has(bug: Bug) -> bool {
    SEEDED.get() == Some(bug)
}

/// Whether this thread has the bug: never.
#[cfg(not(feature = "canary"))]
#[inline(always)]
pub const fn has(_bug: Bug) -> bool {
    false
}
