//! Volumes as the cache or backing devices of others.
//!
//! The lower volume notes, durably, which device was made of it, by create or register. After a
//! restart examine brings up a device on a volume only if it is the one of the note: a host may have
//! written any superblock into a volume of its own.
//!
//! A set writes a btree node after a flush of all its backing devices. Where one of those lies on a
//! volume, that is a commit of the set that serves the volume. So no set rests on itself, directly or
//! through others: its journal would wait for a node, and the node for its journal.

use std::rc::Rc;

use super::cache::CacheSet;
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

    /// Whether a set may come to serve a backing device, without resting on itself then.
    ///
    /// # Errors
    /// The device lies on a volume that needs the set, or the set on the volume of the device.
    pub(super) fn check_no_loop(&self, device: &str, set: &Rc<CacheSet>) -> Result<(), SetError> {
        let of_set = |volume: &Rc<Volume>| {
            let link = volume.link.borrow();
            link.as_ref().is_some_and(|link| Rc::ptr_eq(&link.set, set))
        };
        let own = self.volume_on(device);
        let is_own = |volume: &Rc<Volume>| own.as_ref().is_some_and(|own| Rc::ptr_eq(own, volume));
        let beneath = self.first_beneath(vec![device.into()], of_set);
        let found = beneath.or_else(|| self.first_beneath(self.devices_of(set), is_own));
        let Some(volume) = found else { return Ok(()) };
        Err(SetError::Invalid(format!(
            "cache set {} would wait for itself with {device}, because it would need {} and serve it: \
             use another cache device",
            set.set_uuid(),
            volume.name()
        )))
    }

    /// The first volume that these bdevs need, for which something is so. A bdev needs those that it is
    /// made of; a volume of ours all devices of its set, too.
    fn first_beneath(
        &self,
        bdevs: Vec<String>,
        is_it: impl Fn(&Rc<Volume>) -> bool,
    ) -> Option<Rc<Volume>> {
        let (mut seen, mut next) = (bdevs, 0);
        while next < seen.len() {
            let mut needed = self.host.beneath(&seen[next]);
            if let Ok(volume) = self.volume(&seen[next]) {
                if is_it(&volume) {
                    return Some(volume);
                }
                needed.extend(volume.backing.iter().map(|backing| backing.disk.name()));
                let link = volume.link.borrow();
                needed.extend(link.iter().flat_map(|link| self.devices_of(&link.set)));
            }
            for name in needed {
                // A module may know it by a name that it had.
                let name = self.own_name(&name);
                if !seen.contains(&name) {
                    seen.push(name);
                }
            }
            next += 1;
        }
        None
    }

    /// The cache device of a set, and the backing devices of its volumes.
    fn devices_of(&self, set: &Rc<CacheSet>) -> Vec<String> {
        let volumes = self.volumes_of(set);
        let backings = volumes.iter().filter_map(|volume| volume.backing.as_ref());
        let backings = backings.map(|backing| backing.disk.name());
        std::iter::once(set.disk.name()).chain(backings).collect()
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
