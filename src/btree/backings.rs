//! What the map and its owner ask of the backing devices of a set's volumes.

use std::future::Future;
use std::pin::Pin;

use crate::disk::DoneFuture;
use crate::units::Inode;

/// The inodes of the volumes whose backing devices failed.
pub type Failed = Pin<Box<dyn Future<Output = Vec<Inode>>>>;

/// The backing devices of a set's volumes. The set implements this and gives it to the owner of its
/// volumes when that is made.
///
/// What the superblock of a backing device says of dirty data is known in one place, behind this
/// trait: its transitions are made one after the other, each durable before the next, and each is
/// decided when its turn has come, not when it was asked for.
pub trait Backings {
    /// Makes the superblock say dirty, durably. Done at once where it says so already.
    fn mark_dirty(&self, inode: Inode) -> DoneFuture;

    /// Makes the superblock say clean, durably, after the journal has all that made it clean. Where
    /// something is dirty when its turn comes, the superblock stays as it is, and that is no error.
    fn mark_clean(&self, inode: Inode) -> DoneFuture;

    /// Whether the superblock surely says clean, durably.
    fn says_clean(&self, inode: Inode) -> bool;

    /// Makes durable what clean keys of all volumes claim to be on their backing devices. Answers
    /// with the volumes of which that failed: their clean keys must not be written.
    fn flush(&self) -> Failed;
}

/// No backing devices: of a set whose volumes all live on the cache device.
pub struct NoBackings;

impl Backings for NoBackings {
    fn mark_dirty(&self, _: Inode) -> DoneFuture {
        Box::pin(std::future::ready(Ok(())))
    }

    fn mark_clean(&self, _: Inode) -> DoneFuture {
        Box::pin(std::future::ready(Ok(())))
    }

    fn says_clean(&self, _: Inode) -> bool {
        false
    }

    fn flush(&self) -> Failed {
        Box::pin(std::future::ready(Vec::new()))
    }
}
