//! Btree nodes as Linux reads them: the runs of each merged in place, and the walk over all.
//!
//! Linux reads a node into a buffer, checks each run's header and checksum, merges the runs at the
//! buffer's start, and puts the header of an empty run behind the last block that is in use on disk.
//! In a leaf a newer key hides what it covers, and a key that is hidden in its middle becomes two;
//! in an inner node every key stays. Keys that are stale stay in both.

use std::collections::BTreeSet;

use super::buckets::Buckets;
use super::rule::{Refusal, Rule, refuse};
use super::{run_bytes, sectors, stale};
use crate::format::bset::{self, BsetError, NodeImage, set_blocks};
use crate::format::jset::Jset;
use crate::format::key::{Geometry, Key, Ptr, decode_all, encoded_bytes};
use crate::format::linux;
use crate::format::superblock::CacheSuper;
use crate::limits::{PAGE_SECTORS, fresh_node_sectors};
use crate::sim::bytes::Image;
use crate::units::{Inode, SECTOR_BYTES, Sector};

/// Where the fields of a run's header that Linux writes begin: the checksum stays as it was.
const HEADER_FROM: usize = 8;

/// Reads the tree below the root that `newest` names; returns the keys of its leaves, merged, in order.
/// Generations and marks of `buckets` are those before the replay afterwards.
///
/// # Errors
/// The rule that a node does not keep.
pub fn read(
    cache: &dyn Image,
    sb: &CacheSuper,
    newest: &Jset,
    buckets: &mut Buckets,
) -> Result<Vec<Key>, Refusal> {
    let mut walk = Walk {
        cache,
        sb,
        geometry: sb.geometry(),
        buckets,
        seen: BTreeSet::new(),
        keys: Vec::new(),
    };
    walk.node(newest.root, newest.level, (Inode(0), Sector(0)))?;
    Ok(walk.keys)
}

struct Walk<'a> {
    cache: &'a dyn Image,
    sb: &'a CacheSuper,
    geometry: Geometry,
    buckets: &'a mut Buckets,
    /// Where the nodes stand that were read.
    seen: BTreeSet<u64>,
    keys: Vec<Key>,
}

impl Walk<'_> {
    /// Reads the node that `child` names, which begins behind position `low`, and all below it.
    fn node(&mut self, child: Key, level: u16, low: (Inode, Sector)) -> Result<(), Refusal> {
        let at = |rule, why: String| refuse(rule, format!("node of {child:?}: {why}"));
        let ptr = child
            .ptr
            .ok_or_else(|| at(Rule::NodeKey, "no pointer".into()))?;
        if !self.seen.insert(ptr.sector().0) {
            return Err(at(Rule::Children, "it stands in the tree twice".into()));
        }
        let image = self.read_runs(child, ptr)?;
        let merged = match level {
            0 => self
                .merge_leaf(&image, child)
                .map_err(|(rule, why)| at(rule, why))?,
            _ => merge_inner(&image),
        };
        for key in &merged {
            let sound = match level {
                0 => key.check_extent(&self.geometry),
                _ => key.check_child(&self.geometry),
            };
            sound.map_err(|why| at(Rule::NodeKey, format!("{key:?}: {why}")))?;
            let is_below = level == 0 && (key.inode, key.start()) < low;
            if key.position() > child.position() || is_below {
                return Err(at(Rule::NodeRange, format!("{key:?} is out of its range")));
            }
            self.buckets.mark(key, level)?;
        }
        self.buckets.mark(&child, level + 1)?;
        if level == 0 {
            self.keys.extend(merged);
            return Ok(());
        }
        self.children(&merged, child, level, low)
    }

    fn children(
        &mut self,
        merged: &[Key],
        node: Key,
        level: u16,
        mut low: (Inode, Sector),
    ) -> Result<(), Refusal> {
        for key in merged {
            if key.is_zero_position() || self.is_stale(key)? {
                continue;
            }
            if key.position() <= low {
                let what = format!("node of {node:?} has two children up to {key:?}");
                return Err(refuse(Rule::Children, what));
            }
            self.node(*key, level - 1, low)?;
            low = key.position();
        }
        if low != node.position() {
            let what = format!("the children of the node of {node:?} end at {low:?}");
            return Err(refuse(Rule::Children, what));
        }
        Ok(())
    }

    fn is_stale(&self, key: &Key) -> Result<bool, Refusal> {
        let Some(ptr) = key.data() else {
            return Ok(true);
        };
        let bucket = self.geometry.bucket_of(ptr);
        let bucket = bucket.map_err(|why| refuse(Rule::NodeKey, why))?;
        Ok(stale(self.buckets.generation(bucket), ptr.generation()) > 0)
    }

    /// The runs of a node.
    fn read_runs(&self, child: Key, ptr: Ptr) -> Result<NodeImage, Refusal> {
        let at = |rule, why: String| refuse(rule, format!("node of {child:?}: {why}"));
        let room = buffer_sectors(&self.geometry, child.size_sectors);
        if child.size_sectors > room {
            let why = format!("it goes past the end of a buffer of {room} sectors");
            return Err(at(Rule::NodeBuffer, why));
        }
        let bytes = sectors(self.cache, ptr.sector(), child.size_sectors.into());
        let block = self.geometry.block_sectors;
        let image = bset::node_read(&bytes.unwrap_or_default(), self.sb.set_magic(), ptr, block);
        let image = image.map_err(|why| match why {
            BsetError::Unordered { .. } => at(Rule::NodeOrder, why.to_string()),
            BsetError::BadKey { .. } => at(Rule::NodeKey, why.to_string()),
            _ => at(Rule::Node, why.to_string()),
        })?;
        Ok(image)
    }

    /// What Linux makes of the runs of a leaf.
    fn merge_leaf(&self, image: &NodeImage, child: Key) -> Result<Vec<Key>, (Rule, String)> {
        if !linux::is_in_order(&image.sets) {
            return Err((Rule::NodeOrder, "keys of a run overlap".into()));
        }
        let merged = linux::merge(&image.sets, self.geometry.bucket_sectors);
        let buffer = buffer_sectors(&self.geometry, child.size_sectors) as usize * SECTOR_BYTES;
        if run_bytes(&merged) > buffer {
            let why = format!("merged, it takes {} bytes of {buffer}", run_bytes(&merged));
            return Err((Rule::NodeBuffer, why));
        }
        let block = self.geometry.block_sectors;
        let blocks = |set: &Vec<Key>| set_blocks(encoded_bytes(set), block);
        let used = image.sets.iter().map(blocks).sum::<u32>() * block;
        // Where the node is full, no header is written.
        if used < child.size_sectors && run_bytes(&merged) > used as usize * SECTOR_BYTES {
            return Err((Rule::NodeRoom, self.overwrite(&merged, image.seq, used)));
        }
        Ok(merged)
    }

    /// What becomes of a merged run when the header of the next falls onto its keys.
    fn overwrite(&self, merged: &[Key], seq: u64, used_sectors: u32) -> String {
        let mut bytes = Vec::new();
        merged.iter().for_each(|key| key.encode(&mut bytes));
        let at = used_sectors as usize * SECTOR_BYTES - bset::HEADER_BYTES;
        let header = bset::empty_header(self.sb.set_magic(), seq);
        let end = bytes.len().min(at + header.len());
        if let Some(hit) = bytes.get_mut(at + HEADER_FROM..end) {
            let len = hit.len();
            hit.copy_from_slice(&header[HEADER_FROM..HEADER_FROM + len]);
        }
        let over = run_bytes(merged) - used_sectors as usize * SECTOR_BYTES;
        let fate = match decode_all(&bytes) {
            Err((_, why)) => format!("a key is none any more ({why})"),
            Ok(keys) if keys == merged => "by chance nothing changes".to_string(),
            Ok(keys) => match keys
                .iter()
                .find_map(|k| k.check_extent(&self.geometry).err())
            {
                Some(why) => format!("Linux refuses it ({why})"),
                None => "Linux serves other data without a message".to_string(),
            },
        };
        format!("merged, its runs take {over} bytes more than the blocks that they occupy: {fate}")
    }
}

/// The sectors of the buffer that Linux reads a node of so many sectors into.
fn buffer_sectors(geometry: &Geometry, node_sectors: u32) -> u32 {
    let pages = |sectors: u32| (sectors / PAGE_SECTORS).max(1).ilog2();
    let order = pages(fresh_node_sectors(geometry.bucket_sectors)).max(pages(node_sectors));
    PAGE_SECTORS << order
}

/// All keys of all runs in order, of equal positions the newest first. Keys of size zero name no
/// child, and are refused by the caller.
fn merge_inner(image: &NodeImage) -> Vec<Key> {
    let mut keys: Vec<Key> = image.sets.iter().rev().flatten().copied().collect();
    keys.sort_by(Key::cmp_position);
    keys
}
