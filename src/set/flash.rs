//! Volumes that live on a cache set alone: made, given another size, and taken away for good.
//!
//! The entry of the uuid table is what makes such a volume. It is written before the volume is
//! shown, and marked as gone before the data are dropped: a crash in between leaves dirty keys of an
//! entry that is gone, which the next start drops. Where a volume shrinks, the smaller size is
//! durable before what lies beyond is dropped; the next start drops what a crash leaves of that.

use super::cache::CacheSet;
use super::claims::Key;
use super::error::SetError;
use super::format;
use super::hub::Hub;
use super::join::{drop_beyond, drop_keys};
use super::turns::Place;
use super::volume::{Link, Volume};
use crate::alloc::Purpose;
use crate::format::uuids::UuidEntry;
use crate::units::{Inode, Sector};

/// What the bdev layer answers when a bdev that is open would shrink.
const EBUSY: i32 = 16;

impl Hub {
    /// Makes a volume that lives on a set alone.
    ///
    /// # Errors
    /// See [`SetError`].
    pub async fn create_flash(
        &self,
        set: &str,
        name: &str,
        size_mb: u64,
    ) -> Result<String, SetError> {
        let (_turn, set) = self.turn_of_set(set).await?;
        set.check_open()?;
        let label = format::label(name)?;
        let mut claim = self.claims.none();
        claim.add(Key::Name(name.into()))?;
        self.check_name(name)?;
        self.check_name_of_absent(Some(&set), name, None, |_| true)?;
        let sectors = flash_sectors(&set, size_mb, None)?;
        let inode = set
            .free_uuid()
            .ok_or_else(|| SetError::NoRoom(set.set_uuid()))?;
        drop_keys(&set, inode).await?;
        let uuid = crate::rng::Rng::new(self.host.entropy()).uuid();
        let entry = UuidEntry::flash_only(uuid, label, self.host.now_s(), sectors);
        let written = entry;
        set.change_uuids(|table| table[inode.0 as usize] = written)
            .await?;
        drop(claim);
        self.show_flash(&set, inode, &entry).await
    }

    /// Takes a volume that lives on a set alone away, with its data.
    ///
    /// # Errors
    /// It has data and `discard_dirty` is not said, or is no such volume; see [`SetError`].
    pub async fn delete_flash(&self, name: &str, discard_dirty: bool) -> Result<(), SetError> {
        let (turn, volume) = self.turn_of(name).await?;
        let link = flash_link(&volume)?;
        self.check_no_user(&volume)?;
        let bytes = volume.dirty_bytes();
        if bytes > 0 && !discard_dirty {
            return Err(SetError::WouldLose(format!(
                "{name} holds {bytes} bytes that are nowhere else"
            )));
        }
        // Nothing brings it up again while no turn is held.
        let mut claim = self.claims.none();
        claim.add(Key::Uuid(volume.uuid))?;
        let (uuid, closing) = (volume.uuid, self.begin_close(&volume));
        drop((turn, volume));
        self.closed(name, &closing).await?;
        let _turn = self.turns.take(&[Place::Set(link.set.set_uuid())]).await;
        self.later.borrow_mut().volumes.remove(name);
        self.drop_figures(uuid);
        log::info!("volume {name} is deleted with its {bytes} bytes of data");
        self.drop_member(&link.set, link.volume.inode, Some(uuid))
            .await
    }

    /// Gives a volume that lives on a set alone another size.
    ///
    /// # Errors
    /// It would lose data and `discard_dirty` is not said; somebody has it open and it would
    /// shrink; or it is no such volume. See [`SetError`].
    pub async fn resize_flash(
        &self,
        name: &str,
        size_mb: u64,
        discard_dirty: bool,
    ) -> Result<(), SetError> {
        let (_turn, volume) = self.turn_of(name).await?;
        let name = &volume.name();
        let link = flash_link(&volume)?;
        let shared = volume.shared.borrow().clone();
        let shared = shared.ok_or_else(|| SetError::Busy(format!("{name} is not running")))?;
        let (set, inode) = (&link.set, link.volume.inode);
        let (old, wanted) = (shared.size_sectors(), size_mb.saturating_mul(2048));
        let new = match wanted > 0 && wanted <= old {
            // Even where the kernel has made it larger than it may be here.
            true => wanted,
            false => flash_sectors(set, size_mb, Some(inode))?,
        };
        let write = async || {
            set.change_uuids(|table| table[inode.0 as usize].sectors = new)
                .await
        };
        let refused = |errno| match errno {
            EBUSY => SetError::Busy(format!("{name} cannot shrink while somebody has it open")),
            _ => SetError::Register(name.clone(), errno),
        };
        if new >= old {
            // What a crash may have left there when it shrank once.
            drop_beyond(set, inode, Sector(old)).await?;
            write().await?;
            shared.set_size_sectors(new);
            return self.host.resize(name, new).map_err(refused);
        }
        let mut beyond = false;
        set.tree.scan(inode, Sector(new), Sector::MAX, &mut |_| {
            beyond = true;
            false
        });
        if beyond && !discard_dirty {
            return Err(SetError::WouldLose(format!(
                "{name} holds data beyond {size_mb} MiB that are nowhere else"
            )));
        }
        // Refused while somebody has it open, who may have I/O there under way.
        self.host.resize(name, new).map_err(refused)?;
        shared.set_size_sectors(new);
        write().await?;
        drop_beyond(set, inode, Sector(new)).await
    }
}

fn flash_link(volume: &Volume) -> Result<Link, SetError> {
    let link = volume.link.borrow().clone();
    link.filter(|_| volume.backing.is_none()).ok_or_else(|| {
        SetError::Invalid(format!(
            "{} has a backing device: this is for volumes that live on a set alone",
            volume.name()
        ))
    })
}

/// The sectors of a volume of so many MiB, if the set has room for it. That of `instead` counts as
/// free: it gets another size.
///
/// All data of such volumes are dirty for good. So that the set can always make room for its own
/// structures and for moving data, and other volumes keep some cache, they may take three quarters
/// of what hosts' data can take in all.
fn flash_sectors(set: &CacheSet, size_mb: u64, instead: Option<Inode>) -> Result<u64, SetError> {
    let sectors = size_mb.saturating_mul(2048);
    let table = set.uuids();
    let others = table.iter().enumerate().filter(|(i, entry)| {
        entry.is_live() && entry.is_flash_only() && instead != Some(Inode(*i as u32))
    });
    let taken = others.fold(0u64, |sum, (_, entry)| sum.saturating_add(entry.sectors));
    let own = set.alloc.reserve(Purpose::Data) as u64 * u64::from(set.superblock().bucket_sectors);
    let most = set.alloc.data_sectors().saturating_sub(own) / 4 * 3;
    let room = most.saturating_sub(taken);
    if sectors == 0 || sectors > room {
        return Err(SetError::Invalid(format!(
            "size_mb {size_mb} cannot be: the set has room for {} MiB; volumes on the cache alone may \
             take {} MiB of it in all, and have {}",
            room / 2048,
            most / 2048,
            taken / 2048
        )));
    }
    Ok(sectors)
}
