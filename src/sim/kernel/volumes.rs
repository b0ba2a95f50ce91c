//! What becomes of backing devices and flash volumes when their set runs, and what they read as.
//!
//! Linux serves a sector from the cache device where a fresh extent covers it, dirty or clean, and
//! from the backing device elsewhere; a flash volume reads zeros there. A backing device that says
//! *none* or *stale* is no longer the one that the set knows: its entry in the uuid table is given up,
//! and all that is cached of it with it.

use std::borrow::Cow;

use super::rule::{Refusal, Rule, refuse};
use super::{View, sectors};
use crate::format::superblock::{
    BackingState, BackingSuper, SUPER_BYTES, SUPER_SECTOR, Super, parse,
};
use crate::format::uuids::UuidEntry;
use crate::sim::bytes::Image;
use crate::sim::oracle::values;
use crate::units::{Inode, SECTOR_BYTES, Sector, Uuid};

static ZEROS: [u8; SECTOR_BYTES] = [0; SECTOR_BYTES];

/// A volume that Linux would serve.
pub struct Volume<'a> {
    view: &'a View<'a>,
    /// The index of its entry in the uuid table, where that is used.
    pub inode: Option<Inode>,
    /// Its size.
    pub sectors: u64,
    /// Its backing device, and where its data begin there.
    backing: Option<(&'a dyn Image, Sector)>,
}

impl<'a> View<'a> {
    /// The volume of a UUID: that of a backing device, or of an entry that lives on the flash alone.
    /// `None` where there is no such device or entry.
    ///
    /// # Errors
    /// The backing device is there, and Linux would not attach it, or lose what is dirty of it.
    pub fn volume(&'a self, uuid: Uuid) -> Result<Option<Volume<'a>>, Refusal> {
        let devices = self.backings.iter().filter_map(|device| {
            let sb = backing_super(*device)?;
            (sb.uuid == uuid).then_some((*device, sb))
        });
        let devices: Vec<(&dyn Image, BackingSuper)> = devices.collect();
        match &devices[..] {
            [] => Ok(self.flash(uuid)),
            [(device, sb)] => self.backed(*device, sb).map(Some),
            _ => Err(refuse(
                Rule::Backing,
                format!("two devices have the UUID {uuid}"),
            )),
        }
    }

    /// The UUIDs of the volumes that live on the flash alone, with their labels.
    pub fn flash_volumes(&self) -> impl Iterator<Item = &UuidEntry> {
        let live = |entry: &&UuidEntry| entry.is_live() && entry.is_flash_only();
        self.uuids.iter().filter(live)
    }

    fn entry(&self, uuid: Uuid) -> Option<(Inode, &UuidEntry)> {
        let place = self.uuids.iter().position(|entry| entry.uuid == uuid)?;
        Some((Inode(place as u32), &self.uuids[place]))
    }

    fn flash(&'a self, uuid: Uuid) -> Option<Volume<'a>> {
        let (inode, entry) = self.entry(uuid)?;
        entry.is_flash_only().then_some(Volume {
            view: self,
            inode: Some(inode),
            sectors: entry.sectors,
            backing: None,
        })
    }

    fn backed(&'a self, device: &'a dyn Image, sb: &BackingSuper) -> Result<Volume<'a>, Refusal> {
        let uuid = sb.uuid;
        let at = |what: &str| refuse(Rule::Backing, format!("device {uuid}: {what}"));
        let size = (device.size_bytes() / SECTOR_BYTES) as u64;
        sb.check_device(size).map_err(|why| at(&why.to_string()))?;
        let alone = Volume {
            view: self,
            inode: None,
            sectors: size - sb.data_offset.0,
            backing: Some((device, sb.data_offset)),
        };
        if sb.set_uuid != self.sb.set_uuid {
            return Ok(alone);
        }
        if sb.block_sectors < self.sb.block_sectors {
            return Err(at("its block size is smaller than the set's"));
        }
        let known = self.entry(uuid).map(|(inode, _)| inode);
        let inode = match (sb.state(), known) {
            (BackingState::Dirty, None) => {
                return Err(at("it is dirty, and the set does not know it"));
            }
            (BackingState::None | BackingState::Stale, _) => None,
            (_, known) => known,
        };
        let is_dirty = |inode| {
            self.extents
                .iter()
                .any(|key| key.inode == inode && key.dirty)
        };
        if sb.state() == BackingState::Clean && inode.is_some_and(is_dirty) {
            return Err(at("it says clean, and the set has dirty data of it"));
        }
        Ok(Volume { inode, ..alone })
    }
}

impl Volume<'_> {
    /// Calls `f` for sectors `first` to `end` of the volume, with what Linux would read.
    ///
    /// # Errors
    /// That of `f`, or that a sector is outside of its device.
    pub fn each_sector(
        &self,
        first: u64,
        end: u64,
        mut f: impl FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let offset = self.backing.map_or(0, |(_, offset)| offset.0);
        let extents = self.extents();
        let mut next = extents.partition_point(|key| key.end.0 <= first + offset);
        for sector in first..end {
            let place = sector + offset;
            while extents.get(next).is_some_and(|key| key.end.0 <= place) {
                next += 1;
            }
            let cached = extents.get(next).filter(|key| key.start().0 <= place);
            let bytes = match (cached, self.backing) {
                (Some(key), _) => {
                    let ptr = key.ptr.map(|ptr| ptr.sector()).unwrap_or_default();
                    sectors(self.view.cache, ptr + (place - key.start().0), 1)
                }
                (None, Some((device, _))) => sectors(device, Sector(place), 1),
                (None, None) => Some(Cow::Borrowed(&ZEROS[..])),
            };
            let bytes = bytes.ok_or_else(|| format!("sector {sector} is outside of its device"))?;
            f(sector, &bytes)?;
        }
        Ok(())
    }

    /// Whether what is clean in the cache is the same on the backing device, which reads return once the
    /// cache has let go of it.
    ///
    /// # Errors
    /// The first extent that is not, or that is outside of its device.
    pub fn clean_is_same(&self) -> Result<(), String> {
        let Some((device, _)) = self.backing else {
            return Ok(());
        };
        for key in self.extents().iter().filter(|key| !key.dirty) {
            let count = key.size_sectors.into();
            let place = key.ptr.map(|ptr| ptr.sector()).unwrap_or_default();
            let here = sectors(self.view.cache, place, count);
            let there = sectors(device, key.start(), count);
            if here.is_none() || here != there {
                let values = |bytes: Option<Cow<[u8]>>| bytes.map(|bytes| values(&bytes));
                let (start, here, there) = (key.start(), values(here), values(there));
                return Err(format!(
                    "{count} sectors at {start} of the device are clean and hold {here:?} in the cache, {there:?} there"
                ));
            }
        }
        Ok(())
    }

    /// The volume's extents, in sectors of its backing device.
    pub fn extents(&self) -> &[crate::format::key::Key] {
        let all = &self.view.extents;
        let Some(inode) = self.inode else { return &[] };
        let from = all.partition_point(|key| key.inode < inode);
        let to = all.partition_point(|key| key.inode <= inode);
        &all[from..to]
    }
}

/// The superblock of a backing device, where there is a sound one.
pub fn backing_super(device: &dyn Image) -> Option<BackingSuper> {
    let bytes = sectors(device, SUPER_SECTOR, (SUPER_BYTES / SECTOR_BYTES) as u64)?;
    match parse(&bytes) {
        Ok(Super::Backing(sb)) => Some(sb),
        _ => None,
    }
}
