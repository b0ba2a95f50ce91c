//! Reading the tree of an existing set into memory, checking everything on the way.
//!
//! Level by level from the root, some nodes at once. A pointer on disk may be ahead of its bucket's
//! generation as the priorities have it (the priorities are written rarely): the bucket's is then
//! raised. Extents whose pointers are behind are stale; they are loaded like others and mean
//! nothing, as in a running set.

use std::fmt;

use super::nodes::{Node, NodeId};
use super::{Pos, Tree, extent_of};
use crate::alloc::Use;
use crate::disk::IoError;
use crate::format::bset::{BsetError, byte_of_part, each_key, node_read};
use crate::format::key::{Key, KeyError, Ptr};
use crate::format::merge::{merge, merge_inner};
use crate::task::join_all;
use crate::units::{BucketNr, Inode, SECTOR_BYTES, Sector};

/// Nodes read at once.
const AT_ONCE: usize = 16;

/// A place in a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InNode {
    /// The node's bucket.
    pub bucket: BucketNr,
    /// Bytes from its start.
    pub byte: u32,
}

impl fmt::Display for InNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bucket {} (byte {})", self.bucket, self.byte)
    }
}

/// Why a tree cannot be loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The device failed at a node.
    Io(BucketNr, IoError),
    /// A node is damaged.
    Node(BucketNr, BsetError),
    /// The root's key, or a child's, names nothing that can be a node.
    Child(Option<InNode>, KeyError),
    /// An extent's key cannot be.
    Extent(InNode, KeyError),
    /// A node's bucket belongs to something else, or to another node too.
    TakenTwice(BucketNr),
    /// A node holds a key outside of its range, or children that do not cover it.
    Range(InNode),
    /// An extent lies in a bucket of the set's own structures.
    DataInMeta {
        /// Of the extent.
        inode: Inode,
        /// The bucket.
        bucket: BucketNr,
    },
    /// The extents of a bucket are longer than the bucket.
    Overfull {
        /// Of the last extent.
        inode: Inode,
        /// The bucket.
        bucket: BucketNr,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(bucket, error) => {
                write!(
                    f,
                    "the btree node in bucket {bucket} cannot be read: {error}"
                )
            }
            Self::Node(bucket, error) => {
                write!(f, "the btree node in bucket {bucket} is damaged: {error}")
            }
            Self::Child(None, error) => write!(f, "the journal names a bad btree root: {error}"),
            Self::Child(Some(place), error) => {
                write!(f, "the btree node in {place} names a bad child: {error}")
            }
            Self::Extent(place, error) => {
                write!(f, "the btree node in {place} has a bad extent: {error}")
            }
            Self::TakenTwice(bucket) => {
                write!(
                    f,
                    "bucket {bucket} is named as a btree node but serves for another"
                )
            }
            Self::Range(place) => write!(
                f,
                "the btree node in {place} does not keep to the range it stands for"
            ),
            Self::DataInMeta { inode, bucket } => write!(
                f,
                "volume {} claims data in bucket {bucket}, which holds metadata",
                inode.0
            ),
            Self::Overfull { inode, bucket } => write!(
                f,
                "volume {} claims more data in bucket {bucket} than fit",
                inode.0
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// A node to be read.
struct Want {
    key: Key,
    level: u16,
    start: Pos,
    end: Pos,
    parent: Option<NodeId>,
}

impl Tree {
    /// Reads the tree under `root`, which is `level` above the leaves. Keys are of the first
    /// `volumes` volumes.
    ///
    /// # Errors
    /// The first thing that is wrong; see [`LoadError`]. Nothing is written.
    pub(crate) async fn load(&self, root: Key, level: u16, volumes: u32) -> Result<(), LoadError> {
        let mut wants = vec![Want {
            key: root,
            level,
            start: (Inode(0), Sector(0)),
            end: Key::MAX.position(),
            parent: None,
        }];
        // Depth first, so that at most a level's fan-out times the depth waits here.
        while !wants.is_empty() {
            let some = wants.split_off(wants.len().saturating_sub(AT_ONCE));
            let reads = self.start_reads(&some)?;
            for ((buf, done), want) in join_all(reads).await.into_iter().zip(some) {
                let not_a_child = LoadError::Child(None, KeyError::NotAChild);
                let ptr = want.key.ptr.ok_or(not_a_child)?;
                let bucket = self.shape.bucket_of(ptr.sector());
                done.map_err(|e| LoadError::Io(bucket, e))?;
                wants.extend(self.take_in(want, ptr, bucket, &buf, volumes)?);
            }
        }
        Ok(())
    }

    fn start_reads(&self, wants: &[Want]) -> Result<Vec<crate::disk::BufFuture>, LoadError> {
        let mut reads = Vec::with_capacity(wants.len());
        for want in wants {
            want.key
                .check_child(&self.shape.geometry)
                .map_err(|e| LoadError::Child(None, e))?;
            let not_a_child = LoadError::Child(None, KeyError::NotAChild);
            let ptr = want.key.ptr.ok_or(not_a_child)?;
            let bucket = self.shape.bucket_of(ptr.sector());
            if self.alloc.state(bucket) != Use::Data {
                return Err(LoadError::TakenTwice(bucket));
            }
            self.alloc.claim_meta(bucket);
            let bytes = want.key.size_sectors as usize * SECTOR_BYTES;
            reads.push(self.disk.read(ptr.sector(), self.disk.alloc(bytes)));
        }
        Ok(reads)
    }

    /// Raises the generation of a pointer's bucket to that of the pointer, and remembers the oldest.
    fn meet(&self, ptr: Ptr) {
        let gens = &self.alloc.gens;
        let bucket = self.shape.bucket_of(ptr.sector());
        if ptr.generation().ahead_of(gens.generation(bucket)) > 0 {
            gens.set_generation(bucket, ptr.generation());
        }
        self.alloc.note_pointer(bucket, ptr.generation());
    }

    /// Checks a key of a leaf or of the journal, and meets its pointer.
    pub(crate) fn meet_key(&self, key: &Key, volumes: u32) -> Result<(), KeyError> {
        key.check_extent(&self.shape.geometry)?;
        key.check_volume(volumes)?;
        if let Some(ptr) = key.data() {
            self.meet(ptr);
        }
        Ok(())
    }

    fn take_in(
        &self,
        want: Want,
        ptr: Ptr,
        bucket: BucketNr,
        bytes: &[u8],
        volumes: u32,
    ) -> Result<Vec<Want>, LoadError> {
        let geometry = &self.shape.geometry;
        let image = node_read(bytes, self.shape.set_magic, ptr, geometry.block_sectors)
            .map_err(|e| LoadError::Node(bucket, e))?;
        self.meet(ptr);
        let sectors = want.key.size_sectors;
        let mut node = Node::new(want.level, want.start, want.end, ptr, bucket, sectors);
        node.seq = image.seq;
        node.written_blocks = image.written_blocks;
        node.parent = want.parent;
        if want.level == 0 {
            self.take_in_extents(&node, &image.sets, volumes)?;
        }
        let id = {
            let mut nodes = self.nodes.borrow_mut();
            let id = nodes.add(node);
            if let Some(parent) = want.parent {
                nodes.get_mut(parent).children.insert(want.end, id);
            }
            if want.level == 0 {
                nodes.leaves.insert(want.end, id);
            }
            id
        };
        if want.level == 0 {
            return Ok(Vec::new());
        }
        self.children(&want, id, bucket, &image.sets)
    }

    fn children(
        &self,
        want: &Want,
        id: NodeId,
        bucket: BucketNr,
        sets: &[Vec<Key>],
    ) -> Result<Vec<Want>, LoadError> {
        let gens = &self.alloc.gens;
        let inner = merge_inner(sets, |ptr| {
            // Only of buckets that exist; the others are reported when the child is read.
            let at = self.shape.bucket_of(ptr.sector());
            at.index() < gens.len() && ptr.generation().ahead_of(gens.generation(at)) < 0
        });
        for freed in &inner.freed {
            if freed.check_child(&self.shape.geometry).is_ok() {
                freed.ptr.iter().for_each(|&ptr| self.meet(ptr));
            }
        }
        self.nodes.borrow_mut().get_mut(id).freed_keys = inner.freed.len() as u32;
        let (mut wants, mut start) = (Vec::new(), want.start);
        for key in &inner.children {
            let end = key.position();
            if end <= start || end > want.end {
                return Err(LoadError::Range(self.place_of(bucket, sets, key)));
            }
            // The root's key has been checked by who reads it, a child's is checked while it is
            // known where it stands.
            key.check_child(&self.shape.geometry)
                .map_err(|e| LoadError::Child(Some(self.place_of(bucket, sets, key)), e))?;
            wants.push(Want {
                key: *key,
                level: want.level - 1,
                start,
                end,
                parent: Some(id),
            });
            start = end;
        }
        if start != want.end {
            return Err(LoadError::Range(InNode { bucket, byte: 0 }));
        }
        Ok(wants)
    }

    fn take_in_extents(
        &self,
        node: &Node,
        sets: &[Vec<Key>],
        volumes: u32,
    ) -> Result<(), LoadError> {
        let place = |key: &Key| {
            let byte = byte_of_part(sets, self.shape.geometry.block_sectors, key);
            InNode {
                bucket: node.bucket,
                byte: byte.unwrap_or(0),
            }
        };
        for key in merge(sets) {
            self.meet_key(&key, volumes)
                .map_err(|e| LoadError::Extent(place(&key), e))?;
            let starts_inside = (key.inode, key.start()) >= node.start;
            if key.position() > node.end || !starts_inside {
                return Err(LoadError::Range(place(&key)));
            }
            if let Some(ptr) = key.data().filter(|_| key.size_sectors > 0) {
                let extent = extent_of(&key, ptr);
                self.with_space(key.inode, |s| s.writer.insert(extent, &mut |_| ()));
            }
        }
        Ok(())
    }

    /// Where a child's key stands: looked for only when something is wrong with it.
    fn place_of(&self, bucket: BucketNr, sets: &[Vec<Key>], wanted: &Key) -> InNode {
        let mut place = InNode { bucket, byte: 0 };
        each_key(sets, self.shape.geometry.block_sectors, |at, _, key| {
            if key == wanted {
                place.byte = at;
            }
        });
        place
    }
}
