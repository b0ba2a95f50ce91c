//! What must be true of a set at rest, counted anew from the map and looked up on the devices.

use std::rc::Rc;

use super::disk::Medium;
use crate::alloc::Use;
use crate::alloc::gens::Gens;
use crate::check::report::{Finding, Report};
use crate::check::{self, Source};
use crate::format::superblock::{
    BackingState, BackingSuper, CacheSuper, SUPER_BYTES, SUPER_SECTOR, Super, parse,
};
use crate::index::Extent;
use crate::set::cache::CacheSet;
use crate::units::{BucketNr, Gen, Inode, SECTOR_BYTES, Sector};

/// All fresh extents, those that touch joined.
pub fn extents(set: &CacheSet) -> Vec<(Inode, Extent)> {
    let gens = &set.alloc.gens;
    let mut all: Vec<(Inode, Extent)> = Vec::new();
    for inode in set.tree.inodes() {
        set.tree.scan(inode, Sector(0), Sector::MAX, &mut |e| {
            if !set.tree.is_fresh(&e) {
                return true;
            }
            match all.last_mut() {
                Some((i, last))
                    if *i == inode
                        && last.end() == e.start
                        && last.at + u64::from(last.sectors) == e.at
                        && last.dirty == e.dirty
                        && gens.bucket_of(last.at) == gens.bucket_of(e.at) =>
                {
                    last.sectors += e.sectors;
                }
                _ => all.push((inode, e)),
            }
            true
        });
    }
    all
}

/// Which ranges of which volume are dirty (true) or clean, wherever they lie: (volume, first sector,
/// the one behind the last, dirty).
pub fn ranges(extents: &[(Inode, Extent)]) -> Vec<(Inode, Sector, Sector, bool)> {
    let mut ranges: Vec<(Inode, Sector, Sector, bool)> = Vec::new();
    for &(inode, e) in extents {
        match ranges.last_mut() {
            Some(last) if last.0 == inode && last.2 == e.start && last.3 == e.dirty => {
                last.2 = e.end();
            }
            _ => ranges.push((inode, e.start, e.end(), e.dirty)),
        }
    }
    ranges
}

/// Compares the allocator's counts with the map's.
///
/// # Errors
/// The first difference.
pub fn counts(set: &CacheSet) -> Result<(), String> {
    let (alloc, gens) = (&set.alloc, &set.alloc.gens);
    let mut counted = vec![(0u32, 0u32); gens.len()];
    let mut dirty_by_inode = std::collections::BTreeMap::<Inode, u64>::new();
    for (inode, e) in extents(set) {
        let bucket = gens.bucket_of(e.at);
        if gens.bucket_of(e.at + u64::from(e.sectors - 1)) != bucket {
            return Err(format!("{e:?} crosses a bucket"));
        }
        if alloc.state(bucket) != Use::Data {
            let state = alloc.state(bucket);
            return Err(format!(
                "{e:?} of volume {} in a bucket of {state:?}",
                inode.0
            ));
        }
        counted[bucket.index()].0 += e.sectors;
        if e.dirty {
            counted[bucket.index()].1 += e.sectors;
            *dirty_by_inode.entry(inode).or_default() += u64::from(e.sectors);
        }
    }
    for (b, &count) in counted.iter().enumerate() {
        let known = alloc.sectors(BucketNr(b as u32));
        if known != count {
            return Err(format!(
                "bucket {b} has (live, dirty) {count:?}, the allocator says {known:?}"
            ));
        }
    }
    let total: u64 = counted.iter().map(|c| u64::from(c.1)).sum();
    if alloc.dirty_sectors() != total {
        let known = alloc.dirty_sectors();
        return Err(format!(
            "{total} sectors are dirty, the allocator says {known}"
        ));
    }
    for inode in set.tree.inodes() {
        let (known, count) = (
            set.tree.dirty_sectors(inode),
            dirty_by_inode.get(&inode).copied().unwrap_or(0),
        );
        if known != count {
            let inode = inode.0;
            return Err(format!(
                "volume {inode} has {count} dirty sectors, the tree says {known}"
            ));
        }
    }
    Ok(())
}

/// The map is that with which the set was stopped, but for clean data: the allocator may have taken
/// them since, and the last deletion in the journal, read again, may have hit newer ones.
///
/// # Errors
/// The first difference.
pub fn same_map(set: &CacheSet, before: &[(Inode, Extent)]) -> Result<(), String> {
    let now = extents(set);
    let dirty = |all: &[(Inode, Extent)]| {
        let all: Vec<_> = all.iter().filter(|(_, e)| e.dirty).copied().collect();
        ranges(&all)
    };
    let (old, new) = (dirty(before), dirty(&now));
    if old != new {
        let i = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
        return Err(format!(
            "the map changed over a restart: {:?} became {:?} (number {i} of {} and {})",
            old.get(i),
            new.get(i),
            old.len(),
            new.len()
        ));
    }
    let old = ranges(before);
    for (inode, start, end, dirty) in ranges(&now) {
        let last = old.partition_point(|r| (r.0, r.1) <= (inode, start));
        let same = old[..last].last();
        if !same.is_some_and(|r| r.0 == inode && end <= r.2 && r.3 == dirty) {
            return Err(format!(
                "sectors {start:?} to {end:?} of volume {} came up over a restart",
                inode.0
            ));
        }
    }
    Ok(())
}

/// The superblock of a device, if it has one.
pub fn superblock(medium: &Medium) -> Option<Super> {
    let bytes = medium.peek(SUPER_SECTOR, (SUPER_BYTES / SECTOR_BYTES) as u64);
    parse(&bytes).ok()
}

/// The superblock of a backing device, if it has one.
pub fn backing_super(medium: &Medium) -> Option<BackingSuper> {
    match superblock(medium)? {
        Super::Backing(sb) => Some(sb),
        Super::Cache(_) => None,
    }
}

/// The superblock of a cache device, if it has one.
pub fn cache_super(medium: &Medium) -> Option<CacheSuper> {
    match superblock(medium)? {
        Super::Cache(sb) => Some(sb),
        Super::Backing(_) => None,
    }
}

/// Whether a cache device has no set that ever ran.
pub fn has_no_set(medium: &Medium) -> bool {
    !cache_super(medium).is_some_and(|sb| sb.sync())
}

/// Whether the superblock of a backing device names the set of a cache device.
pub fn is_of_set(backing: &Medium, cache: &Medium) -> bool {
    let (backing, cache) = (backing_super(backing), cache_super(cache));
    let set = cache.map(|sb| sb.set_uuid);
    set.is_some() && set == backing.map(|sb| sb.set_uuid)
}

/// The volumes of a set that are on these devices, as their superblocks say.
fn members<'a>(
    set: &CacheSet,
    backings: impl IntoIterator<Item = &'a Medium>,
) -> Vec<(Inode, BackingSuper, &'a Medium)> {
    let member = |medium: &'a Medium| {
        let sb = backing_super(medium)?;
        Some((set.find_uuid(sb.uuid)?, sb, medium))
    };
    backings.into_iter().filter_map(member).collect()
}

/// No backing device of which something is dirty in the cache says anything but dirty, or stale: that
/// it was written to since without the cache. To be called before a volume joins, which would put
/// that right.
///
/// # Errors
/// The first device that does.
pub fn marks<'a>(
    set: &CacheSet,
    backings: impl IntoIterator<Item = &'a Medium>,
) -> Result<(), String> {
    for (inode, sb, medium) in members(set, backings) {
        let dirty = set.tree.dirty_sectors(inode);
        let says_so = matches!(sb.state(), BackingState::Dirty | BackingState::Stale);
        if dirty > 0 && !(says_so && sb.set_uuid == set.set_uuid()) {
            return Err(format!(
                "{} has {dirty} dirty sectors in the cache, its superblock says {}",
                medium.name(),
                sb.state()
            ));
        }
    }
    Ok(())
}

/// Clean data are the same on the backing device. To be called before any write.
///
/// # Errors
/// The first extent of which they are not.
pub fn clean_data<'a>(
    set: &CacheSet,
    cache: &Medium,
    backings: impl IntoIterator<Item = &'a Medium>,
) -> Result<(), String> {
    let mut members = members(set, backings);
    // Of one that has left, or has not joined yet, keys mean nothing.
    members.retain(|(_, sb, _)| {
        let state = matches!(sb.state(), BackingState::Clean | BackingState::Dirty);
        state && sb.set_uuid == set.set_uuid()
    });
    for (inode, e) in extents(set) {
        let Some((_, _, medium)) = members.iter().find(|m| m.0 == inode) else {
            continue;
        };
        if !e.dirty && !cache.is_same(e.at, medium, e.start, e.sectors.into()) {
            let device = medium.name();
            let values = |m: &Medium, at| super::oracle::values(&m.peek(at, e.sectors.into()));
            let (here, there) = (values(cache, e.at), values(medium, e.start));
            return Err(format!(
                "{e:?} of volume {} is clean, but {device} holds something else: {there:?}, not {here:?}",
                inode.0
            ));
        }
    }
    Ok(())
}

/// Looks for buckets that somebody still holds although nothing is under way.
///
/// # Errors
/// The first such bucket.
pub fn no_pins(set: &CacheSet) -> Result<(), String> {
    for b in 0..set.alloc.gens.len() as u32 {
        let pins = set.alloc.pins(BucketNr(b));
        if pins > 0 {
            return Err(format!("bucket {b} is pinned {pins} times at rest"));
        }
    }
    Ok(())
}

impl Source for Medium {
    fn name(&self) -> String {
        Medium::name(self).to_string()
    }

    fn size_bytes(&self) -> u64 {
        Sector(self.sectors()).bytes()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), String> {
        let (first, last) = (at / 512, (at + buf.len() as u64).div_ceil(512));
        let bytes = self.peek(Sector(first), last - first);
        let skip = (at % 512) as usize;
        buf.copy_from_slice(&bytes[skip..skip + buf.len()]);
        Ok(())
    }
}

/// What the offline check says of the devices of a set that does not run.
///
/// # Errors
/// Its first finding.
pub fn offline(cache: &Medium, backings: &[Option<Rc<Medium>>]) -> Result<(), String> {
    report(cache, backings).map(|_| ())
}

/// The same of a set that Linux never wrote to: besides, no dirty key is left whose bucket has been used
/// again. A key that covers it is durable before the bucket's new generation is.
///
/// # Errors
/// The first finding, or how many such keys there are.
pub fn offline_own(cache: &Medium, backings: &[Option<Rc<Medium>>]) -> Result<(), String> {
    match report(cache, backings)?.summary.stale_dirty_extents {
        0 => Ok(()),
        n => Err(stale_dirty(n)),
    }
}

/// All that the offline check finds, of a set that Linux never wrote to.
///
/// # Errors
/// It cannot look, or dirty keys are stale: see [`offline_own`].
pub fn findings(cache: &Medium, backings: &[Option<Rc<Medium>>]) -> Result<Vec<Finding>, String> {
    let report = whole_report(cache, backings)?;
    match report.summary.stale_dirty_extents {
        0 => Ok(report.findings),
        n => Err(stale_dirty(n)),
    }
}

fn stale_dirty(n: u64) -> String {
    format!("{n} dirty extents are stale and covered by no later key")
}

fn report(cache: &Medium, backings: &[Option<Rc<Medium>>]) -> Result<Report, String> {
    let report = whole_report(cache, backings)?;
    match report.findings.first() {
        None => Ok(report),
        Some(finding) => Err(format!(
            "the offline check has {} findings: {finding:?}",
            report.findings.len()
        )),
    }
}

fn whole_report(cache: &Medium, backings: &[Option<Rc<Medium>>]) -> Result<Report, String> {
    let backings: Vec<&dyn Source> = backings
        .iter()
        .flatten()
        .map(|medium| &**medium as &dyn Source)
        .collect();
    check::check(cache, &backings, &mut |_| ()).map_err(|e| e.to_string())
}

/// How often each bucket was used again, by what its generation did.
#[derive(Default)]
pub struct GenWatch {
    seen: Vec<(Gen, u64)>,
}

impl GenWatch {
    /// Takes a sample; between two of them no generation may wrap.
    pub fn note(&mut self, gens: &Gens) {
        for b in 0..gens.len() {
            let now = gens.generation(BucketNr(b as u32));
            match self.seen.get_mut(b) {
                Some((last, sum)) => {
                    *sum += u64::from(now.0.wrapping_sub(last.0));
                    *last = now;
                }
                None => self.seen.push((now, 0)),
            }
        }
    }

    /// Of the bucket used again most often.
    pub fn most(&self) -> u64 {
        self.seen.iter().map(|s| s.1).max().unwrap_or(0)
    }
}
