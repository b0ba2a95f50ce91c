//! What must be true of a set at rest, counted anew from the map.

use crate::alloc::Use;
use crate::alloc::gens::Gens;
use crate::index::Extent;
use crate::set::cache::CacheSet;
use crate::units::{BucketNr, Gen, Inode, Sector};

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
