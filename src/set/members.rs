//! Whose data a set holds: those that are here and those that are not.
//!
//! An entry of the uuid table stays for as long as its volume may come back. Who never will is
//! forgotten on request: the entry is marked as gone first, then its keys are dropped; a crash in
//! between leaves keys of an entry that is gone. The dirty ones of these are dropped when the set is
//! started next, as is what a crash left beyond the end of a flash volume that shrank; the others
//! when they are evicted or the entry is used again. An entry is used again only when no key names
//! it any more, durably.

use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::format;
use super::hub::Hub;
use super::join::{drop_beyond, drop_keys, has_beyond};
use crate::format::uuids::UuidEntry;
use crate::limits::MAX_KEY_OFFSET;
use crate::units::{Inode, Sector, Uuid};

/// Somebody whose data a set holds, or may hold.
pub struct Member {
    /// The index of its entry.
    pub inode: Inode,
    /// `None` where the table has no entry for the dirty data: it was damaged.
    pub uuid: Option<Uuid>,
    /// The name that its label said when that was noted last, if it said one.
    pub name: Option<String>,
    /// It lives on the set alone.
    pub is_flash: bool,
    /// It is attached now.
    pub is_attached: bool,
    /// Sectors that are nowhere else.
    pub dirty_sectors: u64,
}

impl Hub {
    /// Everybody whose data a set holds, by inode.
    pub fn members(&self, set: &Rc<CacheSet>) -> Vec<Member> {
        let attached: Vec<Option<Inode>> = self.volumes_of(set).iter().map(|v| v.inode()).collect();
        let table = set.uuids().into_iter().enumerate();
        let members = table.filter_map(|(i, entry)| {
            let inode = Inode(i as u32);
            let dirty_sectors = set.tree.dirty_sectors(inode);
            (entry.is_live() || dirty_sectors > 0).then(|| Member {
                inode,
                uuid: entry.is_live().then_some(entry.uuid),
                name: format::name_of(&entry.label).filter(|_| entry.is_live()),
                is_flash: entry.is_live() && entry.is_flash_only(),
                is_attached: attached.contains(&Some(inode)),
                dirty_sectors,
            })
        });
        members.collect()
    }

    /// Drops all that a set holds of a volume which will never come back, named by its UUID or by
    /// its inode.
    ///
    /// # Errors
    /// It is attached, or has dirty data and `discard_dirty` is not said; see [`SetError`].
    pub async fn forget(
        &self,
        set: &str,
        uuid: Option<Uuid>,
        inode: Option<Inode>,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        let (_turn, set) = self.turn_of_set(set).await?;
        let mut members = self.members(&set).into_iter();
        let found = members.find(|m| match uuid {
            Some(uuid) => m.uuid == Some(uuid),
            None => Some(m.inode) == inode,
        });
        let Some(member) = found else {
            return Err(SetError::Invalid(format!(
                "cache set {} holds nothing of such a volume",
                set.set_uuid()
            )));
        };
        if member.is_attached {
            return Err(SetError::Busy(
                "the volume is attached: detach it, or, if it lives on the set alone, use \
                 bdev_bcache_delete_flash_volume"
                    .into(),
            ));
        }
        if member.dirty_sectors > 0 && !discard_dirty {
            return Err(SetError::WouldLose(format!(
                "the set holds {} bytes of it that are nowhere else",
                member.dirty_sectors * 512
            )));
        }
        self.drop_member(&set, member.inode, member.uuid).await
    }

    /// Marks an entry as gone, and drops its keys.
    pub(super) async fn drop_member(
        &self,
        set: &CacheSet,
        inode: Inode,
        uuid: Option<Uuid>,
    ) -> Result<(), SetError> {
        if uuid.is_some() {
            let now_s = self.host.now_s();
            set.change_uuids(|table| table[inode.0 as usize].invalidate(now_s))
                .await?;
        }
        drop_keys(set, inode).await
    }

    /// Drops the dirty data that the table says are given up, and that a crash left: those of entries
    /// that are marked as gone, and what lies beyond the size of a volume that lives on the set alone.
    pub(super) async fn drop_gone(&self, set: &CacheSet) -> Result<(), SetError> {
        for (i, entry) in set.uuids().iter().enumerate() {
            let inode = Inode(i as u32);
            let flash_end = flash_end(set, entry);
            if entry.is_invalidated() && set.tree.dirty_sectors(inode) > 0 {
                let text = "dirty data of a volume that was given up are dropped";
                log::warn!("{}: {text}", set.disk.name());
                drop_keys(set, inode).await?;
            } else if let Some(end) = flash_end.filter(|&end| has_beyond(set, inode, end)) {
                let text = "data beyond the end of a flash volume that shrank are dropped";
                log::warn!("{}: volume {}: {text}", set.disk.name(), entry.uuid);
                drop_beyond(set, inode, end).await?;
            }
        }
        Ok(())
    }
}

/// The end of a volume that lives on the set alone, where the table says one that a volume can have.
pub(super) fn flash_end(set: &CacheSet, entry: &UuidEntry) -> Option<Sector> {
    let possible = set.superblock().block_sectors.into()..MAX_KEY_OFFSET;
    let is_flash = entry.is_live() && entry.is_flash_only() && possible.contains(&entry.sectors);
    is_flash.then_some(Sector(entry.sectors))
}

impl CacheSet {
    /// The index of an entry for another volume: one that never was used, or else the one that has
    /// been gone longest. Where keys still name it they are to be dropped first.
    pub fn free_uuid(&self) -> Option<Inode> {
        let table = self.uuids();
        let unused =
            |&i: &usize| table[i].is_free() && self.tree.dirty_sectors(Inode(i as u32)) == 0;
        let gone = || {
            let gone = (0..table.len()).filter(|&i| table[i].is_invalidated());
            gone.min_by_key(|&i| table[i].invalidated)
        };
        let found = (0..table.len()).find(unused).or_else(gone);
        found.map(|i| Inode(i as u32))
    }
}
