//! The atomics of the index, in one place.
//!
//! Everything in `index` that two threads touch goes through these names, so that a build with
//! `--cfg loom` can put loom's checked versions in their place.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
