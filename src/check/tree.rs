//! The tree, from the root to every leaf, left to right.
//!
//! All runs of every node are looked at key by key, also what later runs hide. What a leaf and the
//! journal amount to is then accounted for (`space`). A bucket is taken as a node once, so
//! a cycle ends where it closes.

use super::journal::Journal;
use super::report::Kind;
use super::space::{Age, Use};
use super::{Cache, CannotCheck, Check, describe, kind_of_extent, read};
use crate::format::bset::{BsetError, NodeImage, byte_of_part, each_key, node_salvage};
use crate::format::jset::MAX_LEVEL;
use crate::format::key::Key;
use crate::format::linux;
use crate::format::merge::{merge, merge_inner, merge_keeping_deletions, overlay};
use crate::limits::NODE_GEN_AHEAD_MAX;
use crate::units::{BucketNr, Inode, SECTOR_BYTES, Sector};

type Pos = (Inode, Sector);

const FIRST: Pos = (Inode(0), Sector(0));

/// A node to be looked at.
#[derive(Clone, Copy)]
struct Want {
    key: Key,
    level: u16,
    start: Pos,
    end: Pos,
}

/// The leaf whose keys are being looked at.
#[derive(Default)]
pub(super) struct Leaf {
    /// Its first byte on the device.
    byte: u64,
    sets: Vec<Vec<Key>>,
}

/// Reads a node as far as it is whole. `key` passed [`Key::check_child`].
pub(super) fn read_node(
    cache: &Cache<'_>,
    key: &Key,
) -> Result<(NodeImage, Option<BsetError>), CannotCheck> {
    let ptr = key.ptr.unwrap_or(crate::format::key::Ptr::from_raw(0));
    let bytes = key.size_sectors as usize * SECTOR_BYTES;
    let bytes = read(cache.source, ptr.sector().bytes(), bytes)?;
    let block_sectors = cache.geometry.block_sectors;
    Ok(node_salvage(&bytes, cache.set_magic, ptr, block_sectors))
}

/// The kind of finding that damage of a node is, and where in the node.
fn kind_of_node(error: &BsetError) -> (Kind, u64) {
    use BsetError::*;
    let (kind, byte) = match *error {
        BadLength { .. } => (Kind::ChildKey, 0),
        NoSeq => (Kind::NodeBlank, 0),
        BadMagic { byte } => (Kind::NodeMagic, byte),
        UnknownVersion { byte, .. } => (Kind::NodeVersion, byte),
        TooLong { byte } => (Kind::NodeLength, byte),
        BadChecksum { byte, .. } => (Kind::NodeChecksum, byte),
        EmptySet { byte } => (Kind::NodeEmptySet, byte),
        BadKey { byte, .. } => (Kind::NodeKey, byte),
        Unordered { byte } => (Kind::NodeOrder, byte),
        StraySet { byte } => (Kind::NodeStray, byte),
    };
    (kind, byte.into())
}

/// How deep the tree is: leaves are found by their having no child that ends where all keys end.
/// `None` where that cannot be told.
fn depth(cache: &Cache<'_>, root: Key) -> Option<u16> {
    let mut key = root;
    for depth in 0..=MAX_LEVEL {
        let (node, error) = read_node(cache, &key).ok()?;
        if error.is_some() {
            return None;
        }
        let children = merge_inner(&node.sets, |_| false).children;
        let is_child = |key: &Key| key.check_child(&cache.geometry).is_ok();
        match children.last() {
            Some(last) if last.position() == Key::MAX.position() => {
                if !is_child(last) {
                    return None;
                }
                key = *last;
            }
            // An inner node that has lost its last child is no leaf.
            Some(_) if node.sets.iter().flatten().all(is_child) => return None,
            _ => return Some(depth),
        }
    }
    None
}

impl Check<'_> {
    /// A finding about a key of the leaf that is being looked at, or of the journal.
    pub(super) fn find_key(&mut self, kind: Kind, key: &Key, text: String) {
        let mut byte = None;
        if self.report.keeps(kind) {
            let block_sectors = self.cache.geometry.block_sectors;
            let at = byte_of_part(&self.leaf.sets, block_sectors, key);
            byte = at.map(|at| self.leaf.byte + u64::from(at));
        }
        match byte {
            Some(byte) => self.find(kind, byte, text),
            None => {
                let at = key.ptr.map_or(0, |ptr| ptr.sector().bytes());
                self.find(kind, at, format!("{text} (from the journal)"));
            }
        }
    }

    /// Looks at the whole tree, with what the journal brings.
    pub(super) fn tree(&mut self, journal: &Journal, replayed: &[Key]) {
        let root = journal.newest.root;
        let byte = journal.newest_byte;
        if let Err(error) = root.check_child(&self.cache.geometry) {
            return self.find(Kind::RootKey, byte, format!("the root's key: {error}"));
        }
        if root.position() != Key::MAX.position() {
            let text = format!(
                "the root's key ends at volume {} sector {}, not where all keys end",
                root.inode.0, root.end
            );
            self.find(Kind::RootKey, byte, text);
        }
        let mut level = journal.newest.level;
        if let Some(depth) = depth(&self.cache, root).filter(|&depth| depth != level) {
            let text =
                format!("the journal says that the root is at level {level}; it is at {depth}");
            self.find(Kind::RootLevel, byte, text);
            level = depth;
        }
        self.report.summary.depth = level;
        self.meet_child(&root, &[(byte, 0, root)]);
        // Those of one node lie in order, the first on top.
        let mut wants = vec![Want {
            key: root,
            level,
            start: FIRST,
            end: Key::MAX.position(),
        }];
        while let Some(want) = wants.pop() {
            self.visit(want, replayed, &mut wants);
        }
    }

    fn visit(&mut self, want: Want, replayed: &[Key], wants: &mut Vec<Want>) {
        let Some(ptr) = want.key.ptr else { return };
        let bucket = self.cache.bucket_of(ptr.sector());
        if !self.claim(bucket, Use::Node) {
            return;
        }
        let nodes = self.report.summary.nodes;
        self.tell("btree", nodes, self.space.nodes_expected.max(nodes));
        self.report.summary.nodes += 1;
        let at = self.cache.byte_of(bucket);
        let node = match read_node(&self.cache, &want.key) {
            Ok((node, error)) => {
                if let Some(error) = error {
                    let (kind, byte) = kind_of_node(&error);
                    self.find(kind, at + byte, format!("btree node: {error}"));
                }
                node
            }
            Err(error) => return self.find(Kind::Unreadable, at, error.to_string()),
        };
        if want.level == 0 {
            self.leaf(&want, at, node.sets, replayed);
        } else {
            self.inner(&want, at, node.sets, wants);
        }
    }

    /// Whether a key of a node lies in the node's range.
    fn in_range(&mut self, want: &Want, key: &Key, byte: u64) -> bool {
        let starts = match want.level {
            0 => (key.inode, key.start()) >= want.start,
            _ => key.position() > want.start,
        };
        if starts && key.position() <= want.end {
            return true;
        }
        let text = format!(
            "key outside of its node, which covers volume {} sector {} to volume {} sector {}: {}",
            want.start.0.0,
            want.start.1,
            want.end.0.0,
            want.end.1,
            describe(key)
        );
        self.find(Kind::KeyRange, byte, text);
        false
    }

    /// Looks at the generation of a child's pointer. False when it is behind.
    /// `raw` is what stands in the parent, with places.
    fn meet_child(&mut self, key: &Key, raw: &[(u64, usize, Key)]) -> bool {
        let Some(ptr) = key.ptr else { return false };
        let bucket = self.cache.bucket_of(ptr.sector());
        let age = self.space.age(bucket, ptr.generation());
        let byte = || {
            let kept = self.report.keeps(Kind::ChildStale) || self.report.keeps(Kind::GenAhead);
            let place = raw.iter().filter(|_| kept).find(|raw| raw.2 == *key);
            place.map_or(0, |raw| raw.0)
        };
        match age {
            Age::Fresh | Age::Unknown => true,
            Age::Behind(by) => {
                let text = format!(
                    "the btree node in bucket {bucket} is named by a pointer {by} generations \
                     behind: the bucket has been reused"
                );
                self.find(Kind::ChildStale, byte(), text);
                false
            }
            Age::Ahead(by) => {
                if by > NODE_GEN_AHEAD_MAX {
                    let text = format!(
                        "the btree node in bucket {bucket} is named by a pointer {by} generations \
                         ahead of the bucket"
                    );
                    self.find(Kind::GenAhead, byte(), text);
                }
                self.space.raise(bucket, ptr.generation());
                true
            }
        }
    }

    fn inner(&mut self, want: &Want, at: u64, sets: Vec<Vec<Key>>, wants: &mut Vec<Want>) {
        let geometry = self.cache.geometry;
        let mut raw = Vec::new();
        each_key(&sets, geometry.block_sectors, |byte, set, key| {
            raw.push((at + u64::from(byte), set, *key));
        });
        let mut good = vec![Vec::new(); sets.len()];
        for &(byte, set, key) in &raw {
            if key.is_zero_position() {
                good[set].push(key);
                continue;
            }
            match key.check_child(&geometry) {
                Err(error) => {
                    let text = format!("{error}: {}", describe(&key));
                    self.find(Kind::ChildKey, byte, text);
                }
                Ok(()) => {
                    if self.in_range(want, &key, byte) {
                        good[set].push(key);
                    }
                }
            }
        }
        let inner = merge_inner(&good, |_| false);
        for freed in inner
            .freed
            .iter()
            .filter(|key| key.check_child(&geometry).is_ok())
        {
            if let Some(ptr) = freed.ptr {
                let bucket = self.cache.bucket_of(ptr.sector());
                self.space.raise(bucket, ptr.generation());
            }
        }
        let (mut start, first_new) = (want.start, wants.len());
        for &key in &inner.children {
            if self.meet_child(&key, &raw) {
                let (level, end) = (want.level - 1, key.position());
                wants.push(Want {
                    key,
                    level,
                    start,
                    end,
                });
            }
            start = key.position();
        }
        wants[first_new..].reverse();
        if start != want.end {
            let text = format!(
                "the children end at volume {} sector {}, the node at volume {} sector {}",
                start.0.0, start.1, want.end.0.0, want.end.1
            );
            self.find(Kind::ChildRange, at, text);
        }
    }

    /// Whether Linux reads a leaf as it is meant: see [`linux`].
    fn linux_reads(&mut self, at: u64, sets: &[Vec<Key>]) {
        let geometry = &self.cache.geometry;
        if linux::is_right(sets, geometry) {
            return;
        }
        let fit = linux::fit(sets, geometry);
        let text = format!(
            "Linux refuses or misreads this btree node: it merges its keys into {} bytes, where there \
             is room for {}. No data are damaged; do not open the set with Linux before spdk-bcache \
             has started it and stopped it in good order, which writes the node anew",
            fit.merged_bytes, fit.room_bytes
        );
        self.find(Kind::NodeMisread, at, text);
    }

    fn leaf(&mut self, want: &Want, at: u64, sets: Vec<Vec<Key>>, replayed: &[Key]) {
        let mut raw = Vec::new();
        each_key(
            &sets,
            self.cache.geometry.block_sectors,
            |byte, set, key| {
                raw.push((at + u64::from(byte), set, *key));
            },
        );
        let mut good: Vec<Vec<Key>> = vec![Vec::new(); sets.len()];
        for (byte, set, key) in raw {
            // A key of no size says nothing.
            if key.size_sectors == 0 {
                continue;
            }
            if let Err(error) = key.check_extent(&self.cache.geometry) {
                let text = format!("{error}: {}", describe(&key));
                self.find(kind_of_extent(&error), byte, text);
                continue;
            }
            if let Some(last) = good[set].last() {
                if last.position() > (key.inode, key.start()) {
                    let text = format!("{} overlaps {}", describe(&key), describe(last));
                    self.find(Kind::NodeOverlap, byte, text);
                }
            }
            if self.in_range(want, &key, byte) {
                good[set].push(key);
            }
        }
        self.linux_reads(at, &sets);
        self.leaf = Leaf { byte: at, sets };
        let mut keys = merge_keeping_deletions(&good);
        let news = within(replayed, want.start, want.end);
        if !news.is_empty() {
            keys = overlay(keys, &news);
        }
        for key in keys.iter().filter(|key| key.data().is_some()) {
            self.account(key);
        }
        self.leaf = Leaf::default();
    }
}

/// Those of sorted ranges that lie between two positions, cut to fit.
fn within(keys: &[Key], start: Pos, end: Pos) -> Vec<Key> {
    let from = keys.partition_point(|key| key.position() <= start);
    let rest = keys[from..].iter();
    let inside = rest.take_while(|key| (key.inode, key.start()) < end);
    let cut = |key: &Key| {
        let mut key = *key;
        if key.inode == start.0 && key.start() < start.1 {
            key = key.cut_front(start.1);
        }
        if key.inode == end.0 && key.end > end.1 {
            key = key.cut_back(end.1);
        }
        key
    };
    inside.map(cut).filter(|key| key.size_sectors > 0).collect()
}

/// Goes through the leaves of a tree, left to right: the bucket of each, and what it amounts to, or
/// all that stands in its runs.
///
/// # Errors
/// The first damage, with its place.
pub fn walk_leaves(
    cache: &Cache<'_>,
    root: Key,
    level: u16,
    each: &mut dyn FnMut(BucketNr, Vec<Key>),
) -> Result<(), CannotCheck> {
    let damaged = |byte: u64, why: &dyn std::fmt::Display| {
        let bucket = byte / cache.bucket_bytes();
        let name = cache.source.name();
        CannotCheck::Damaged(format!("{name}: bucket {bucket} byte {byte}: {why}"))
    };
    let mut seen = vec![false; cache.geometry.nbuckets as usize];
    let mut wants = vec![(root, level)];
    while let Some((key, level)) = wants.pop() {
        let at = key.ptr.map_or(0, |ptr| ptr.sector().bytes());
        key.check_child(&cache.geometry)
            .map_err(|error| damaged(at, &error))?;
        let bucket = cache.bucket_of(Sector(at / SECTOR_BYTES as u64));
        if std::mem::replace(&mut seen[bucket.index()], true) {
            return Err(damaged(at, &"this btree node is reached twice"));
        }
        let (node, error) = read_node(cache, &key)?;
        if let Some(error) = error {
            return Err(damaged(at, &error));
        }
        if level == 0 {
            each(bucket, merge(&node.sets));
        } else {
            let children = merge_inner(&node.sets, |_| false).children;
            wants.extend(children.into_iter().rev().map(|key| (key, level - 1)));
        }
    }
    Ok(())
}
