//! Another name for a volume in use: its exports stay connected.
//!
//! The name on disk is changed first, then that of the bdev and of the hub's tables, in one step
//! without a wait. A call that was answered has changed both. After a crash in between, or where what
//! stands on disk could not be put back, the volume comes up under the new name.
//!
//! The names that a bdev had stay aliases of it until it is taken down, so that what was told one of
//! them still finds it; until then no other volume gets them.

use std::rc::Rc;

use super::claims::Key;
use super::error::SetError;
use super::format::{self, LABEL_BYTES};
use super::hub::Hub;
use super::turns::{Place, Turn};
use super::volume::Volume;

/// What the bdev layer answers when a name is another bdev's.
const EEXIST: i32 = 17;

impl Hub {
    /// Gives a volume another name, on disk too.
    ///
    /// # Errors
    /// There is no such volume, or the name cannot be its; see [`SetError`]. Then it keeps the one
    /// that it has.
    pub async fn rename(&self, name: &str, new: &str) -> Result<(), SetError> {
        let label = format::label(new)?;
        let (_turn, volume) = self.turn_to_rename(name, new).await?;
        let mut claim = self.claims.none();
        claim.add(Key::Name(new.into()))?;
        self.check_new_name(&volume, new)?;
        let old_label = volume.label();
        if old_label != label {
            self.write_label(&volume, label).await?;
        }
        if let Err(error) = self.take_name(&volume, new) {
            if let Err(why) = self.write_label(&volume, old_label).await {
                log::error!("{error}, and on disk its name stays {new}: {why}");
            }
            return Err(error);
        }
        let link = volume.link.borrow().clone();
        if let (Some(link), Some(backing)) = (link, &volume.backing) {
            let noted = self.note_now(&link.set, link.volume.inode, backing).await;
            if !noted {
                self.note_soon(&volume);
            }
        }
        Ok(())
    }

    /// A turn on a volume, on the name that it is to have, and on its bdev as a device: nothing is just
    /// being made of it under the name that it has.
    async fn turn_to_rename(&self, name: &str, new: &str) -> Result<(Turn, Rc<Volume>), SetError> {
        let mut own = name.to_string();
        loop {
            let more = [Place::Volume(new.into()), Place::Device(own.clone())];
            let (turn, volume) = self.turn_of_with(&own, &more).await?;
            if volume.name() == own {
                return Ok((turn, volume));
            }
            own = volume.name();
        }
    }

    /// # Errors
    /// A volume, another bdev or an absent volume with dirty data has that name; or the volume is a
    /// device of another set, which knows its devices by name.
    fn check_new_name(&self, volume: &Volume, new: &str) -> Result<(), SetError> {
        let own = volume.name();
        if new == own {
            return Ok(());
        }
        if self.set_on(&own).is_some() || self.volume_on(&own).is_some() {
            self.check_no_user(volume)?;
        }
        let had_it = volume.is_shown() && self.host.resolve(new) == Some(own);
        if !had_it {
            self.check_name(new)?;
        }
        self.check_name_of_absent(None, new, Some(volume.uuid), |_| true)
    }

    /// Writes what names a volume on disk.
    async fn write_label(&self, volume: &Volume, label: [u8; LABEL_BYTES]) -> Result<(), SetError> {
        if let Some(backing) = &volume.backing {
            let changed = backing.change(|sb| sb.label = label).await;
            return changed.map_err(|e| SetError::Io(backing.disk.name(), e));
        }
        let link = volume.link.borrow().clone();
        let link = link.ok_or_else(|| SetError::NoVolume(volume.name()))?;
        let inode = link.volume.inode.0 as usize;
        let change = link.set.change_uuids(|table| table[inode].label = label);
        change.await
    }

    /// Options that wait for a volume stay its own under its new name; so become those that wait for one
    /// of that name.
    fn take_options(&self, volume: &Rc<Volume>, old: &str) {
        let mut later = self.later.borrow_mut();
        if let Some(mut options) = later.volumes.remove(old) {
            let of_name = later.volumes.remove(&volume.name());
            options.update(of_name.unwrap_or_default());
            later.volumes.insert(volume.name(), options);
        }
        drop(later);
        self.apply_later(volume);
    }

    /// Gives the bdev and the tables a volume's new name.
    fn take_name(&self, volume: &Rc<Volume>, new: &str) -> Result<(), SetError> {
        volume.check_open()?;
        let old = volume.name();
        if new != old {
            self.check_new_name(volume, new)?;
            if volume.is_shown() {
                self.host.rename(&old, new).map_err(|errno| match errno {
                    EEXIST => SetError::NameTaken(new.into()),
                    _ => SetError::Register(new.into(), errno),
                })?;
            }
            let mut volumes = self.volumes.borrow_mut();
            volumes.remove(&old);
            volumes.insert(new.into(), volume.clone());
            volume.set_name(new);
            self.take_options(volume, &old);
            log::info!("volume {old} is called {new} now");
            self.waits.has_come(new);
        }
        // It waits for another reason than its name.
        if volume.is_shown() {
            volume.reason.take();
        }
        self.changed.notify();
        Ok(())
    }
}
