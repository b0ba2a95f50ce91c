//! The atomics of the index, in one place.
//!
//! Everything in `index` that two threads touch goes through these names, so that a build with
//! `--cfg loom` can put loom's checked versions in their place.
//! A leaf's words do not: plain memory for who builds it, atomics for who shares it, which loom does
//! not have. ThreadSanitizer watches them.

#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
