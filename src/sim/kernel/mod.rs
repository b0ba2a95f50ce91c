//! A small model of Linux's bcache as a reader: what it would serve of the devices of a set.
//!
//! [`open`] does what Linux does when it registers a cache device: it finds the newest journal entry
//! by the same search, reads priorities, root and uuid table from it, walks the tree, merges the runs
//! of each node, marks buckets, and puts the journal's keys over what the tree says. Where Linux
//! would refuse the set, stop the machine, hang, or misread something without a message, `open`
//! returns a [`Refusal`] that names the [`Rule`] of `docs/kernel-rules.md` that does not hold.
//! Otherwise a [`View`] answers what each sector of each volume would read as.
//!
//! The model shares nothing but `format`, `limits` and `units` with the engine, and is written from
//! what Linux does, not from what the engine does. It reads; what Linux does after its replay (new
//! keys, garbage collection, write-back) is not part of it, except that the journal and the free
//! buckets must let it begin.
//!
//! | file | what |
//! |---|---|
//! | [`rule`] | the rules, and how a refusal is told |
//! | [`journal`] | which entries Linux finds, and whether it can write the next one |
//! | [`tree`] | nodes: their runs, merged; the walk |
//! | [`buckets`] | generations and marks; free buckets |
//! | [`volumes`] | what becomes of backing devices and flash volumes, and what they read as |
//! | [`judge`] | the view against the oracle and the engine |

pub mod buckets;
pub mod journal;
pub mod judge;
pub mod rule;
pub mod tree;
pub mod volumes;

use std::borrow::Cow;

use crate::format::jset::Jset;
use crate::format::key::{Geometry, Key, encoded_bytes};
use crate::format::merge::merge_keeping_deletions;
use crate::format::superblock::{CacheSuper, SUPER_BYTES, SUPER_SECTOR, Super, parse};
use crate::format::uuids::{self, UuidEntry};
use crate::limits::{
    MAX_GEN_DISTANCE, MIN_NBUCKETS_STARTED, fresh_node_sectors, meta_bucket_sectors,
};
use crate::sim::bytes::Image;
use crate::units::{Gen, SECTOR_BYTES, Sector};

use buckets::Buckets;
use rule::refuse;
pub use rule::{Refusal, Rule};

/// Whether the sizes of a cache device are judged too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sizes {
    /// As Linux does: under 1024 buckets it starts no set, and nodes of one block hang it.
    Judged,
    /// Any size that a superblock can say, as simulated devices have.
    Any,
}

/// What Linux would serve of a set.
pub struct View<'a> {
    pub(super) cache: &'a dyn Image,
    pub(super) sb: CacheSuper,
    pub(super) backings: Vec<&'a dyn Image>,
    pub(super) uuids: Vec<UuidEntry>,
    /// Fresh extents with data, in order, none overlapping another.
    pub(super) extents: Vec<Key>,
    stale_dirty: usize,
}

impl View<'_> {
    /// The superblock of the cache device.
    pub fn cache_super(&self) -> &CacheSuper {
        &self.sb
    }

    /// The extents that are served from the cache device, in order.
    pub fn extents(&self) -> &[Key] {
        &self.extents
    }

    /// Dirty keys whose bucket has been used again: Linux logs each, and treats it as absent.
    pub fn stale_dirty(&self) -> usize {
        self.stale_dirty
    }
}

/// Opens a set as Linux would: the bytes of its cache device, and those of the backing devices that
/// are there.
///
/// # Errors
/// The rule of which Linux would notice first that it does not hold, or not notice at all. What is
/// wrong with one backing device alone is told by [`View::volume`].
pub fn open<'a>(
    cache: &'a dyn Image,
    backings: &[&'a dyn Image],
    sizes: Sizes,
) -> Result<View<'a>, Refusal> {
    let sb = cache_super(cache)?;
    check_sizes(&sb, sizes)?;
    let mut view = View {
        cache,
        sb,
        backings: backings.to_vec(),
        uuids: Vec::new(),
        extents: Vec::new(),
        stale_dirty: 0,
    };
    // Without the flag Linux starts an empty set, whatever else stands on the device.
    if view.sb.sync() {
        view.recover()?;
    }
    Ok(view)
}

impl View<'_> {
    /// What Linux does when the cache device says that its metadata are valid.
    fn recover(&mut self) -> Result<(), Refusal> {
        let geometry = self.sb.geometry();
        let journal = journal::read(self.cache, &self.sb)?;
        let newest = journal.newest();
        let mut buckets = Buckets::read(self.cache, &self.sb, newest.prio_bucket[0])?;
        check_root(newest, &geometry, &buckets)?;
        self.uuids = read_uuids(self.cache, newest, &geometry)?;
        let tree = tree::read(self.cache, &self.sb, newest, &mut buckets)?;
        let keys = journal_keys(&journal.entries, &geometry, &mut buckets)?;
        if let Some(uuids) = newest.uuid_bucket.and_then(|key| key.ptr) {
            buckets.is_meta(
                geometry
                    .bucket_of(uuids)
                    .map_err(|e| refuse(Rule::Uuids, e))?,
            )?;
        }
        buckets.check_free((!keys.is_empty()).then_some(newest.level))?;
        journal.check_room()?;

        let map = merge_keeping_deletions(&[tree, keys]);
        for key in map {
            let Some(ptr) = key.data() else { continue };
            let bucket = geometry
                .bucket_of(ptr)
                .map_err(|e| refuse(Rule::NodeKey, e))?;
            let behind = stale(buckets.generation(bucket), ptr.generation());
            if behind > MAX_GEN_DISTANCE {
                let what = format!("{key:?} is {behind} generations behind its bucket");
                return Err(refuse(Rule::GenBehind, what));
            }
            match behind {
                0 => self.extents.push(key),
                _ => self.stale_dirty += usize::from(key.dirty),
            }
        }
        Ok(())
    }
}

/// How far Linux takes a pointer to be behind its bucket: 0 where it is not.
pub(super) fn stale(bucket: Gen, ptr: Gen) -> u8 {
    match bucket.0.wrapping_sub(ptr.0) {
        behind @ 0..=128 => behind,
        _ => 0,
    }
}

/// The bytes of some sectors of a device, or nothing where it ends before.
pub(super) fn sectors(device: &dyn Image, at: Sector, count: u64) -> Option<Cow<'_, [u8]>> {
    let from = usize::try_from(at.bytes()).ok()?;
    device.get(from..from + count as usize * SECTOR_BYTES)
}

fn cache_super(cache: &dyn Image) -> Result<CacheSuper, Refusal> {
    let bytes = sectors(cache, SUPER_SECTOR, (SUPER_BYTES / SECTOR_BYTES) as u64);
    let sb = match parse(&bytes.unwrap_or_default()) {
        Ok(Super::Cache(sb)) => sb,
        Ok(Super::Backing(_)) => return Err(refuse(Rule::Super, "it is a backing device")),
        Err(why) => return Err(refuse(Rule::Super, why)),
    };
    let fits = sb.check_device((cache.size_bytes() / SECTOR_BYTES) as u64);
    fits.map_err(|why| refuse(Rule::Super, why))?;
    Ok(sb)
}

fn check_sizes(sb: &CacheSuper, sizes: Sizes) -> Result<(), Refusal> {
    if sizes == Sizes::Any {
        return Ok(());
    }
    if sb.nbuckets < MIN_NBUCKETS_STARTED {
        let what = format!("{} buckets are too few", sb.nbuckets);
        return Err(refuse(Rule::Sizes, what));
    }
    if fresh_node_sectors(sb.bucket_sectors) < 2 * u32::from(sb.block_sectors) {
        return Err(refuse(
            Rule::Sizes,
            "a node has one block, and is split for ever",
        ));
    }
    Ok(())
}

fn check_root(newest: &Jset, geometry: &Geometry, buckets: &Buckets) -> Result<(), Refusal> {
    let root = newest.root;
    root.check_child(geometry)
        .map_err(|e| refuse(Rule::Root, e))?;
    let ptr = root
        .ptr
        .ok_or_else(|| refuse(Rule::Root, "it has no pointer"))?;
    let bucket = geometry.bucket_of(ptr).map_err(|e| refuse(Rule::Root, e))?;
    if stale(buckets.generation(bucket), ptr.generation()) > 0 {
        let what = "its bucket's generation has moved on: Linux takes the bucket for free";
        return Err(refuse(Rule::Root, what));
    }
    if root.position() != Key::MAX.position() {
        return Err(refuse(
            Rule::Root,
            "it does not end at the highest position",
        ));
    }
    Ok(())
}

fn read_uuids(
    cache: &dyn Image,
    newest: &Jset,
    geometry: &Geometry,
) -> Result<Vec<UuidEntry>, Refusal> {
    let key = newest
        .uuid_bucket
        .ok_or_else(|| refuse(Rule::Uuids, "the journal names none"))?;
    key.check_child(geometry)
        .map_err(|e| refuse(Rule::Uuids, e))?;
    if key.size_sectors > meta_bucket_sectors(geometry.bucket_sectors) {
        let what = format!(
            "{} sectors go past the end of Linux's buffer",
            key.size_sectors
        );
        return Err(refuse(Rule::Uuids, what));
    }
    let at = key.ptr.map(|ptr| ptr.sector()).unwrap_or_default();
    let table = sectors(cache, at, key.size_sectors.into());
    Ok(uuids::parse(&table.unwrap_or_default()))
}

/// The keys of the journal in the order of their replay, marked as Linux marks them before it.
fn journal_keys(
    entries: &[Jset],
    geometry: &Geometry,
    buckets: &mut Buckets,
) -> Result<Vec<Key>, Refusal> {
    for entry in entries.iter().rev() {
        for key in &entry.keys {
            let seq = entry.seq.0;
            if key.size_sectors == 0 || key.end.0 == 0 {
                let what = format!("{key:?} in entry {seq} stops the machine");
                return Err(refuse(Rule::JournalKey, what));
            }
            let sound = key.check_extent(geometry);
            sound.map_err(|why| refuse(Rule::JournalKey, format!("in entry {seq}: {why}")))?;
            buckets.pin(key)?;
            buckets.mark(key, 0)?;
        }
    }
    Ok(entries
        .iter()
        .flat_map(|entry| &entry.keys)
        .copied()
        .collect())
}

/// The bytes of a run of these keys, header included.
pub(super) fn run_bytes(keys: &[Key]) -> usize {
    crate::format::bset::set_bytes(encoded_bytes(keys))
}
