//! Volumes as the cache or backing devices of others.
//!
//! The lower volume notes, durably, which device was made of it, by create or register. After a
//! restart examine brings up a device on a volume only if it is the one of the note: a host may have
//! written any superblock into a volume of its own.

use std::rc::Rc;

use super::error::SetError;
use super::hub::Hub;
use super::turns::Place;
use super::volume::Volume;
use crate::format::superblock::{Super, note_of};
use crate::units::Uuid;

impl Hub {
    /// Notes on a bdev, if it is one of our volumes, that it carries a device. No turn on a set is
    /// held.
    ///
    /// # Errors
    /// The note could not be written.
    pub(super) async fn note_carried(&self, bdev: &str, uuid: Uuid) -> Result<(), SetError> {
        let Ok(volume) = self.volume(bdev) else {
            return Ok(());
        };
        let note = note_of(uuid);
        if carries(&volume) == note {
            return Ok(());
        }
        if let Some(backing) = &volume.backing {
            let changed = backing.change(|sb| sb.set_carries(note)).await;
            return changed.map_err(|e| SetError::Io(backing.disk.name(), e));
        }
        let link = volume.link.borrow().clone();
        let Some(link) = link else { return Ok(()) };
        let _turn = self.turns.take(&[Place::Set(link.set.set_uuid())]).await;
        let index = link.volume.inode.0 as usize;
        let changed = link.set.change_uuids(|table| table[index].carries = note);
        changed.await
    }

    /// Whether what was found on a bdev comes up without being asked for: on a volume of ours only
    /// what it is known to carry.
    pub(super) fn is_known_on(&self, bdev: &str, found: &Super) -> bool {
        let uuid = match found {
            Super::Cache(sb) => sb.uuid,
            Super::Backing(sb) => sb.uuid,
        };
        self.volume(bdev)
            .map_or(true, |volume| carries(&volume) == note_of(uuid))
    }
}

/// The note of a volume.
fn carries(volume: &Rc<Volume>) -> u64 {
    match (&volume.backing, &*volume.link.borrow()) {
        (Some(backing), _) => backing.superblock().carries(),
        (None, Some(link)) => link.set.uuids()[link.volume.inode.0 as usize].carries,
        (None, None) => 0,
    }
}
