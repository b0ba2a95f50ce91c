//! What each bucket is used for, its generation, and which of its sectors extents name.

use std::collections::HashMap;

use super::Check;
use super::describe;
use super::report::{BucketSum, Kind};
use crate::format::key::{Geometry, Key};
use crate::limits::MAX_GEN_DISTANCE;
use crate::units::{BucketNr, Gen};

/// Memory for maps of sectors in use. Buckets beyond that are only counted, not mapped.
pub const MAPS_MAX_BYTES: usize = 256 << 20;

/// What a map takes besides its bits, in the table and on the heap.
const MAP_OVERHEAD_BYTES: usize = 64;

/// What a bucket can be used for; a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// The superblock's.
    Super = 1,
    /// The journal's.
    Journal = 2,
    /// Priorities.
    Prio = 4,
    /// The uuid table.
    Uuids = 8,
    /// A btree node.
    Node = 16,
    /// Extents.
    Data = 32,
    /// Extents that are dirty.
    Dirty = 64,
}

/// Those that are the set's own.
const META: [Use; 5] = [Use::Super, Use::Journal, Use::Prio, Use::Uuids, Use::Node];

impl Use {
    fn name(self) -> &'static str {
        match self {
            Use::Super => "the superblock",
            Use::Journal => "the journal",
            Use::Prio => "priorities",
            Use::Uuids => "the uuid table",
            Use::Node => "a btree node",
            Use::Data | Use::Dirty => "data",
        }
    }
}

/// All buckets.
pub(super) struct Space {
    uses: Vec<u8>,
    gens: Vec<Option<Gen>>,
    live: Vec<u32>,
    /// Priorities say that a btree node or other metadata stand there.
    pub nodes_expected: u64,
    maps: HashMap<u32, Box<[u64]>>,
    maps_bytes: usize,
    map_words: usize,
    block_sectors: u32,
    bucket_sectors: u32,
}

/// How a pointer's generation stands to its bucket's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Age {
    /// The same.
    Fresh,
    /// So far behind.
    Behind(u8),
    /// So far ahead.
    Ahead(u8),
    /// The bucket's is not known.
    Unknown,
}

impl Space {
    pub fn new(geometry: &Geometry) -> Space {
        let n = geometry.nbuckets as usize;
        let blocks = geometry.bucket_sectors / geometry.block_sectors.max(1);
        Space {
            uses: vec![0; n],
            gens: vec![None; n],
            live: vec![0; n],
            nodes_expected: 0,
            maps: HashMap::new(),
            maps_bytes: 0,
            map_words: blocks.div_ceil(64) as usize,
            block_sectors: geometry.block_sectors.max(1),
            bucket_sectors: geometry.bucket_sectors,
        }
    }

    /// The generations of buckets from `first` on.
    pub fn set_gens(&mut self, first: u64, entries: &[(u16, Gen)]) {
        let first = first as usize;
        let slots = self.gens.iter_mut().skip(first);
        for (slot, &(prio, generation)) in slots.zip(entries) {
            *slot = Some(generation);
            self.nodes_expected += u64::from(prio == crate::limits::BTREE_PRIO);
        }
    }

    pub fn is_used(&self, bucket: BucketNr, what: Use) -> bool {
        self.uses[bucket.index()] & what as u8 != 0
    }

    /// The structure of the set that stands in a bucket.
    pub fn meta(&self, bucket: BucketNr) -> Option<Use> {
        META.into_iter().find(|&what| self.is_used(bucket, what))
    }

    pub fn age(&self, bucket: BucketNr, generation: Gen) -> Age {
        match self.gens[bucket.index()].map(|known| generation.ahead_of(known)) {
            None => Age::Unknown,
            Some(0) => Age::Fresh,
            Some(ahead) if ahead > 0 => Age::Ahead(ahead.unsigned_abs()),
            Some(behind) => Age::Behind(behind.unsigned_abs()),
        }
    }

    /// Raises a generation to that of a pointer.
    pub fn raise(&mut self, bucket: BucketNr, generation: Gen) {
        if let Age::Ahead(_) = self.age(bucket, generation) {
            self.gens[bucket.index()] = Some(generation);
        }
    }

    fn mark(&mut self, bucket: BucketNr, what: Use) {
        self.uses[bucket.index()] |= what as u8;
    }

    /// Notes sectors of a bucket; true when some of them were noted before.
    fn occupy(&mut self, bucket: BucketNr, within: u32, sectors: u32) -> bool {
        let bytes = self.map_words * 8 + MAP_OVERHEAD_BYTES;
        if !self.maps.contains_key(&bucket.0) && self.maps_bytes + bytes > MAPS_MAX_BYTES {
            return false;
        }
        let map = self.maps.entry(bucket.0).or_insert_with(|| {
            self.maps_bytes += bytes;
            vec![0; self.map_words].into_boxed_slice()
        });
        let (from, to) = (
            within / self.block_sectors,
            (within + sectors).div_ceil(self.block_sectors),
        );
        let mut twice = false;
        for block in from..to {
            let (word, bit) = (&mut map[block as usize / 64], 1u64 << (block % 64));
            twice |= *word & bit != 0;
            *word |= bit;
        }
        twice
    }

    pub fn sum(&self) -> BucketSum {
        let mut sum = BucketSum {
            total: self.uses.len() as u64,
            ..BucketSum::default()
        };
        for uses in &self.uses {
            match *uses {
                0 => sum.free += 1,
                uses if uses & (Use::Data as u8 | Use::Dirty as u8) == 0 => sum.metadata += 1,
                uses if uses & Use::Dirty as u8 != 0 => sum.dirty += 1,
                _ => sum.clean += 1,
            }
        }
        sum
    }
}

impl Check<'_> {
    /// Buckets of the superblock and the journal.
    pub(super) fn claim_fixed(&mut self) {
        for b in 0..self.cache.geometry.first_bucket.0 {
            // `first_bucket` may be beyond a device of few buckets.
            if u64::from(b) < self.cache.geometry.nbuckets {
                self.space.mark(BucketNr(b), Use::Super);
            }
        }
        for bucket in self.cache.sb.journal_buckets.clone() {
            self.space.mark(bucket, Use::Journal);
        }
    }

    /// Takes a bucket for a structure of the set. False when it belongs to another one.
    pub(super) fn claim(&mut self, bucket: BucketNr, what: Use) -> bool {
        let byte = self.cache.byte_of(bucket);
        let other = self.space.meta(bucket);
        let has_data = self.space.is_used(bucket, Use::Data);
        self.space.mark(bucket, what);
        if let Some(other) = other {
            let kind = match (what, other) {
                (Use::Node, Use::Node) => Kind::NodeTwice,
                _ => Kind::BucketTwice,
            };
            let text = format!(
                "bucket {bucket} is named as {}, but is {} already",
                what.name(),
                other.name()
            );
            self.find(kind, byte, text);
            return false;
        }
        if has_data {
            let text = format!(
                "bucket {bucket} is named as {}, but extents name it too",
                what.name()
            );
            self.find(Kind::DataInMeta, byte, text);
        }
        true
    }

    /// Takes an extent that counts, if its bucket has not been reused.
    pub(super) fn account(&mut self, key: &Key) {
        let (Some(ptr), true) = (key.data(), key.size_sectors > 0) else {
            return;
        };
        let Ok(bucket) = self.cache.geometry.bucket_of(ptr) else {
            return;
        };
        match self.space.age(bucket, ptr.generation()) {
            Age::Fresh => {}
            Age::Unknown => return,
            Age::Behind(by) => {
                if by > MAX_GEN_DISTANCE {
                    let text = format!(
                        "pointer {by} generations behind its bucket {bucket}, {MAX_GEN_DISTANCE} \
                         is the most: {}",
                        describe(key)
                    );
                    self.find_key(Kind::GenBehind, key, text);
                }
                self.report.summary.stale_extents += 1;
                self.report.summary.stale_dirty_extents += u64::from(key.dirty);
                return;
            }
            Age::Ahead(by) => {
                let text = format!(
                    "pointer {by} generations ahead of its bucket {bucket}: {}",
                    describe(key)
                );
                self.find_key(Kind::GenAhead, key, text);
                self.space.raise(bucket, ptr.generation());
            }
        }
        self.check_volume(key);
        self.occupy(key, bucket);
    }

    fn occupy(&mut self, key: &Key, bucket: BucketNr) {
        if let Some(other) = self.space.meta(bucket) {
            let text = format!(
                "extent in bucket {bucket}, which is {}: {}",
                other.name(),
                describe(key)
            );
            self.find_key(Kind::DataInMeta, key, text);
        }
        let sector = key.ptr.map_or(0, |ptr| ptr.sector().0);
        let within = (sector % u64::from(self.space.bucket_sectors)) as u32;
        let block = self.space.block_sectors;
        if within % block != 0 || key.size_sectors % block != 0 {
            let text = format!("extent not of whole blocks: {}", describe(key));
            self.find_key(Kind::KeyUnaligned, key, text);
        } else if self.space.occupy(bucket, within, key.size_sectors) {
            let text = format!(
                "another extent names sectors of bucket {bucket} too: {}",
                describe(key)
            );
            self.find_key(Kind::DataOverlap, key, text);
        }
        let live = &mut self.space.live[bucket.index()];
        let before = *live;
        *live = live.saturating_add(key.size_sectors);
        let now_full = before <= self.space.bucket_sectors && *live > self.space.bucket_sectors;
        if now_full {
            let text = format!("more data than fit into bucket {bucket}: {}", describe(key));
            self.find_key(Kind::BucketOverfull, key, text);
        }
        self.space.mark(bucket, Use::Data);
        if key.dirty {
            self.space.mark(bucket, Use::Dirty);
        }
    }

    /// Whether the volume of an extent exists and reaches so far; counts the extent for it.
    fn check_volume(&mut self, key: &Key) {
        self.report.summary.extents += 1;
        if self.uuids.is_empty() {
            return;
        }
        let i = key.inode.0 as usize;
        let (Some(entry), Some(sum)) = (self.uuids.get(i), self.volumes.get_mut(i)) else {
            let text = format!(
                "the uuid table has {} entries: {}",
                self.uuids.len(),
                describe(key)
            );
            return self.find_key(Kind::KeyVolume, key, text);
        };
        let bytes = u64::from(key.size_sectors) * 512;
        sum.extents += 1;
        sum.cached_bytes += bytes;
        sum.dirty_bytes += if key.dirty { bytes } else { 0 };
        // Clean keys of a volume that was detached may still stand there; nobody looks them up.
        if !entry.is_live() && key.dirty {
            let what = if entry.is_free() {
                "never was"
            } else {
                "is gone"
            };
            let text = format!("extent of a volume that {what}: {}", describe(key));
            return self.find_key(Kind::KeyVolume, key, text);
        }
        if !entry.is_live() {
            return;
        }
        let is_flash = entry.is_flash_only();
        let (from, to) = self.bounds[i];
        if key.start() < from || key.end > to {
            let text = format!(
                "extent outside of its volume, which has sectors {from} to {to}: {}",
                describe(key)
            );
            self.find_key(Kind::KeyBeyond, key, text);
        }
        if is_flash && !key.dirty {
            let text = format!(
                "clean extent of a volume that lives on the flash alone, so it may be evicted: {}",
                describe(key)
            );
            self.find_key(Kind::FlashClean, key, text);
        }
    }

    /// Counts what was seen, at the end.
    pub(super) fn sum_up(&mut self) {
        let buckets = self.space.sum();
        if self.space.nodes_expected > buckets.metadata {
            self.report.note(format!(
                "{} buckets bear the priority of metadata, {} are in use as such; the difference \
                 comes back when the set runs",
                self.space.nodes_expected, buckets.metadata
            ));
        }
        if self.space.maps_bytes + self.space.map_words * 8 + MAP_OVERHEAD_BYTES > MAPS_MAX_BYTES {
            self.report.note(format!(
                "only {} buckets were checked for sectors that two extents name, for want of memory",
                self.space.maps.len()
            ));
        }
        self.report.summary.buckets = buckets;
        let is_seen = |sum: &super::VolumeSum| sum.kind != "gone" || sum.extents > 0;
        let volumes = std::mem::take(&mut self.volumes);
        self.report.summary.volumes = volumes.into_iter().filter(is_seen).collect();
    }
}
