//! Linux's view of simulated devices, held against the oracle and against the engine.
//!
//! [`judge`] takes the bytes of the devices as they would be found after a crash, or after a set was
//! stopped, and an oracle that knows of that crash: what Linux would serve of each sector must be one
//! of the values that the oracle allows. [`Map`] keeps what the devices say from the end of one life
//! to the start of the next, where the engine must come to the same.

use std::rc::Rc;

use super::{Sizes, View, open};
use crate::format::key::Key;
use crate::index::Extent;
use crate::set::cache::CacheSet;
use crate::sim::bytes::Image;
use crate::sim::check::extents;
use crate::sim::disk::Medium;
use crate::sim::oracle::Oracle;
use crate::units::{Inode, Uuid};

/// A volume that must be there.
#[derive(Clone, Copy, Debug)]
pub struct Judged {
    /// Its number in the oracle.
    pub nr: usize,
    /// The UUID of its backing device, or of its entry in the set.
    pub uuid: Uuid,
    /// Whether what is clean of it in the cache must be the same on its backing device.
    pub same: bool,
}

/// Opens what the devices hold as Linux would, and compares each sector of the volumes with the oracle.
/// The oracle must know of the crash after which the devices hold this ([`Oracle::crash`]), on a copy
/// while the life goes on.
///
/// # Errors
/// Linux would refuse the set, or serve something that must not be.
pub fn judge<'a>(
    cache: &'a dyn Image,
    backings: &[&'a dyn Image],
    volumes: &[Judged],
    oracle: &Oracle,
) -> Result<View<'a>, String> {
    let view = open(cache, backings, Sizes::Any).map_err(|why| why.to_string())?;
    for judged in volumes {
        let volume = view.volume(judged.uuid).map_err(|why| why.to_string())?;
        let volume = volume.ok_or_else(|| format!("Linux finds no volume {}", judged.nr))?;
        let end = volume.sectors.min(oracle.sectors(judged.nr));
        let seen = |sector, bytes: &[u8]| oracle.allows(judged.nr, sector, bytes);
        let same = volume.each_sector(0, end, seen);
        same.map_err(|why| format!("Linux would serve something else: {why}"))?;
        if judged.same {
            volume.clean_is_same()?;
        }
    }
    Ok(view)
}

/// The same of simulated devices, as a read would find them now; returns the map that Linux has.
///
/// # Errors
/// As [`judge`].
pub fn judge_media(
    cache: &Medium,
    backings: &[Option<Rc<Medium>>],
    volumes: &[Judged],
    oracle: &Oracle,
) -> Result<Map, String> {
    let devices: Vec<_> = backings
        .iter()
        .flatten()
        .map(|medium| medium.look())
        .collect();
    let devices: Vec<&dyn Image> = devices.iter().map(|bytes| &**bytes as _).collect();
    let cache = cache.look();
    let view = judge(&*cache, &devices, volumes, oracle)?;
    Ok(Map(joined(view.extents())))
}

/// What Linux has in its cache, extents that continue each other joined.
pub struct Map(Vec<Key>);

fn joined(keys: &[Key]) -> Vec<Key> {
    let mut all: Vec<Key> = Vec::new();
    for key in keys {
        let last = all.last_mut().filter(|last| {
            last.position() == (key.inode, key.start())
                && last.dirty == key.dirty
                && last
                    .ptr
                    .map(|ptr| ptr.sector() + u64::from(last.size_sectors))
                    == key.ptr.map(|ptr| ptr.sector())
        });
        match last {
            Some(last) => {
                last.end = key.end;
                last.size_sectors += key.size_sectors;
            }
            None => all.push(*key),
        }
    }
    all
}

impl Map {
    /// Whether a set that has just been started from the same devices has the same map, but for clean
    /// data that the engine has forgotten.
    ///
    /// # Errors
    /// The first difference.
    pub fn is_of(&self, set: &CacheSet) -> Result<(), String> {
        let engine = extents(set);
        for (inode, extent) in &engine {
            if !self.has(*inode, extent) {
                let inode = inode.0;
                return Err(format!(
                    "the engine has {extent:?} of volume {inode}, Linux has not"
                ));
            }
        }
        let dirty = |sectors: u64, dirty: bool| if dirty { sectors } else { 0 };
        let ours = engine.iter().map(|(_, e)| dirty(e.sectors.into(), e.dirty));
        let theirs = self
            .0
            .iter()
            .map(|key| dirty(key.size_sectors.into(), key.dirty));
        let (ours, theirs) = (ours.sum::<u64>(), theirs.sum::<u64>());
        match ours == theirs {
            true => Ok(()),
            false => Err(format!(
                "the engine has {ours} dirty sectors, Linux has {theirs}"
            )),
        }
    }

    fn has(&self, inode: Inode, extent: &Extent) -> bool {
        let at = (inode, extent.start);
        let next = self.0.partition_point(|key| key.position() <= at);
        // What the engine has joined may be in pieces here, where a bucket ends.
        let Some(key) = self.0.get(next) else {
            return false;
        };
        let within = extent.start.0.wrapping_sub(key.start().0);
        let place = key.ptr.map(|ptr| ptr.sector() + within);
        key.inode == inode
            && key.start() <= extent.start
            && key.end >= extent.end()
            && key.dirty == extent.dirty
            && place == Some(extent.at)
    }
}
