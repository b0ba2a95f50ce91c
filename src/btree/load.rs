//! Reading the tree of an existing set into memory, checking everything on the way.
//!
//! Level by level from the root, in the order of keys, some reads in flight at once; a node is decoded
//! in one step, its keys are taken in in slices. So the extents of all leaves come in order, and the maps in memory are made from
//! them page by page ([`Bulk`]) rather than insert by insert. A pointer on disk may be ahead of its bucket's
//! generation as the priorities have it (the priorities are written rarely): the bucket's is then
//! raised. Extents whose pointers are behind are stale; they are loaded like others and mean
//! nothing, as in a running set. A leaf that Linux would misread ([`crate::format::linux`]) is read like
//! others, and asked for: the writer of nodes writes it anew as soon as it runs.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::nodes::{Node, NodeId};
use super::runs::Runs;
use super::{Pos, Space, Tree, extent_of};
use crate::alloc::Use;
use crate::disk::{Buf, BufFuture, IoError};
use crate::format::bset::{BsetError, byte_of_part, each_key, node_read};
use crate::format::key::{Key, KeyError, MAX_BYTES, Ptr};
use crate::format::linux;
use crate::format::merge::{merge_inner, merge_keeping_deletions};
use crate::index::{Bulk, Domain, Extent, Writer};
use crate::limits::MAX_KEY_OFFSET;
use crate::task::{Work, breathe, work, yield_now};
use crate::units::{BucketNr, Inode, SECTOR_BYTES, Sector};

/// Nodes being read at once: enough to keep a device busy while one is taken in, and not too much
/// memory (a node has 2 MiB at most).
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

/// A node being read.
struct Flying {
    want: Want,
    ptr: Ptr,
    bucket: BucketNr,
    read: BufFuture,
}

/// The maps in the making: extents come in order of their volumes.
struct Maps {
    /// Keys are of the first so many volumes.
    volumes: u32,
    open: Option<(Inode, Bulk)>,
    done: Vec<(Inode, Writer)>,
}

impl Maps {
    fn push(&mut self, domain: &Arc<Domain>, inode: Inode, extent: Extent) {
        if self.open.as_ref().is_none_or(|(open, _)| *open != inode) {
            self.end();
        }
        let open = &mut self.open;
        let (_, bulk) = open.get_or_insert_with(|| (inode, Bulk::new(domain.clone())));
        bulk.push(extent);
    }

    fn end(&mut self) {
        if let Some((inode, bulk)) = self.open.take() {
            self.done.push((inode, bulk.finish()));
        }
    }
}

impl Tree {
    /// Reads the tree under `root`, which is `level` above the leaves. Keys are of the first
    /// `volumes` volumes.
    ///
    /// # Errors
    /// The first thing that is wrong; see [`LoadError`]. Nothing is written.
    pub(crate) async fn load(&self, root: Key, level: u16, volumes: u32) -> Result<(), LoadError> {
        let mut maps = Maps {
            volumes,
            open: None,
            done: Vec::new(),
        };
        let mut wants = vec![Want {
            key: root,
            level,
            start: (Inode(0), Sector(0)),
            end: Key::MAX.position(),
            parent: None,
        }];
        while !wants.is_empty() {
            wants = self.load_level(wants, &mut maps).await?;
        }
        maps.end();
        let mut spaces = self.spaces.borrow_mut();
        for (inode, writer) in maps.done {
            let space = Space {
                writer,
                dirty_sectors: 0,
            };
            spaces.insert(inode, space);
        }
        Ok(())
    }

    /// Reads the nodes of one level; returns what is to be read of the next.
    async fn load_level(&self, wants: Vec<Want>, maps: &mut Maps) -> Result<Vec<Want>, LoadError> {
        let (mut below, mut wants) = (Vec::new(), wants.into_iter());
        let mut flying: VecDeque<Flying> = VecDeque::with_capacity(AT_ONCE);
        loop {
            while flying.len() < AT_ONCE {
                let Some(want) = wants.next() else { break };
                flying.push_back(self.start_read(want)?);
            }
            let Some(next) = flying.pop_front() else {
                return Ok(below);
            };
            let (buf, done) = next.read.await;
            done.map_err(|e| LoadError::Io(next.bucket, e))?;
            let (want, ptr, bucket) = (next.want, next.ptr, next.bucket);
            below.extend(self.take_in(want, ptr, bucket, buf, maps).await?);
            yield_now().await;
        }
    }

    fn start_read(&self, want: Want) -> Result<Flying, LoadError> {
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
        let read = self.disk.read(ptr.sector(), self.disk.alloc(bytes));
        Ok(Flying {
            want,
            ptr,
            bucket,
            read,
        })
    }

    /// Raises the generation of a pointer's bucket to that of the pointer, and remembers the oldest.
    fn meet(&self, ptr: Ptr) {
        let gens = &self.alloc.gens;
        let bucket = self.shape.bucket_of(ptr.sector());
        let ahead = ptr.generation().ahead_of(gens.generation(bucket));
        if ahead > 0 {
            gens.set_generation(bucket, ptr.generation());
        }
        if ahead >= 0 {
            self.alloc.note_named(bucket);
        }
        self.alloc.note_pointer(bucket, ptr.generation());
    }

    /// Checks a key of a leaf or of the journal, and meets its pointer.
    pub(crate) fn meet_key(&self, key: &Key, volumes: u32) -> Result<(), KeyError> {
        key.check_extent(&self.shape.geometry)?;
        key.check_volume(volumes)?;
        // The index has no position for the very last sector, which no device has.
        if key.end.0 >= MAX_KEY_OFFSET {
            return Err(KeyError::EndTooFar { end: key.end.0 });
        }
        if let Some(ptr) = key.data() {
            self.meet(ptr);
        }
        Ok(())
    }

    async fn take_in(
        &self,
        want: Want,
        ptr: Ptr,
        bucket: BucketNr,
        bytes: Buf,
        maps: &mut Maps,
    ) -> Result<Vec<Want>, LoadError> {
        let geometry = &self.shape.geometry;
        let image = node_read(&bytes, self.shape.set_magic, ptr, geometry.block_sectors)
            .map_err(|e| LoadError::Node(bucket, e))?;
        drop(bytes);
        work(Work::Nodes, 1);
        breathe().await;
        self.meet(ptr);
        let sectors = want.key.size_sectors;
        let mut node = Node::new(want.level, want.start, want.end, ptr, bucket, sectors);
        node.seq = image.seq;
        node.runs = Runs::loaded(&image);
        node.parent = want.parent;
        if want.level == 0 {
            node.misread = !self.take_in_extents(&node, &image.sets, maps).await?;
        }
        let id = {
            let mut nodes = self.nodes.borrow_mut();
            let id = nodes.add(node);
            nodes.set_extents(id, sectors as usize * SECTOR_BYTES / MAX_BYTES);
            if let Some(parent) = want.parent {
                nodes.get_mut(parent).children.insert(want.end, id);
            }
            if want.level == 0 {
                nodes.add_leaf(id);
                nodes.demand_misread(id);
            }
            id
        };
        if want.level == 0 {
            return Ok(Vec::new());
        }
        self.children(&want, id, bucket, &image.sets).await
    }

    async fn children(
        &self,
        want: &Want,
        id: NodeId,
        bucket: BucketNr,
        sets: &[Vec<Key>],
    ) -> Result<Vec<Want>, LoadError> {
        let gens = &self.alloc.gens;
        work(Work::Nodes, 1);
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
            work(Work::Keys, 1);
            breathe().await;
        }
        if start != want.end {
            return Err(LoadError::Range(InNode { bucket, byte: 0 }));
        }
        Ok(wants)
    }

    /// Takes in what a leaf amounts to. Returns whether Linux reads the leaf as it is meant.
    async fn take_in_extents(
        &self,
        node: &Node,
        sets: &[Vec<Key>],
        maps: &mut Maps,
    ) -> Result<bool, LoadError> {
        let place = |key: &Key| {
            let byte = byte_of_part(sets, self.shape.geometry.block_sectors, key);
            InNode {
                bucket: node.bucket,
                byte: byte.unwrap_or(0),
            }
        };
        let pieces = merge_keeping_deletions(sets);
        work(Work::Nodes, 1);
        for key in &pieces {
            work(Work::Keys, 1);
            breathe().await;
            let Some(ptr) = key.data() else { continue };
            self.meet_key(key, maps.volumes)
                .map_err(|e| LoadError::Extent(place(key), e))?;
            let starts_inside = (key.inode, key.start()) >= node.start;
            if key.position() > node.end || !starts_inside {
                return Err(LoadError::Range(place(key)));
            }
            maps.push(&self.domain, key.inode, extent_of(key, ptr));
        }
        let geometry = &self.shape.geometry;
        let has_room = sets.len() < 2 || linux::is_right_in_pieces(&pieces, sets, geometry);
        Ok(has_room && linux::is_in_order(sets))
    }

    /// Counts all fresh extents into the allocator: once, when a set has been loaded.
    ///
    /// # Errors
    /// An extent that lies in a bucket of metadata, or a bucket with more than it can hold.
    pub(crate) async fn count_all(&self) -> Result<(), LoadError> {
        for inode in self.inodes() {
            let mut at = Some(Sector(0));
            while let Some(from) = at {
                at = self.count_some(inode, from)?;
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Counts some extents from a position on; returns where to go on.
    fn count_some(&self, inode: Inode, from: Sector) -> Result<Option<Sector>, LoadError> {
        let (alloc, gens) = (&self.alloc, &self.alloc.gens);
        let (mut dirty, mut bad, mut next, mut looked) = (0, None, None, 0);
        self.scan(inode, from, Sector::MAX, &mut |e| {
            if looked == Work::Keys.slice() {
                next = Some(e.start);
                return false;
            }
            looked += 1;
            let bucket = gens.bucket_of(e.at);
            if gens.generation(bucket) != e.generation {
                return true;
            }
            if alloc.state(bucket) != Use::Data {
                bad = Some(LoadError::DataInMeta { inode, bucket });
                return false;
            }
            let (live, _) = alloc.sectors(bucket);
            if live + e.sectors > self.shape.geometry.bucket_sectors {
                bad = Some(LoadError::Overfull { inode, bucket });
                return false;
            }
            alloc.add(bucket, e.generation, e.sectors, e.dirty);
            dirty += if e.dirty { u64::from(e.sectors) } else { 0 };
            true
        });
        work(Work::Keys, looked);
        self.with_space(inode, |space| space.dirty_sectors += dirty);
        match bad {
            Some(bad) => Err(bad),
            None => Ok(next),
        }
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
