//! Which device is which: copies, bdevs below the real one, and the names of volumes.
//!
//! A superblock may be seen through several bdevs: a copy, a snapshot, a second path, a leg of an
//! array. One of them at most is used at a time. A second one with a UUID that is in use is refused
//! ([`SetError::Twin`]). Where only one is there, the superblock's note of what it last ran on tells:
//! examine does not take a smaller bdev, nor one of another kind (`Hub::misfit`); a call that names
//! the bdev does. What examine left alone is kept in a list with the reason, without being opened,
//! so that it can still be made part of the bdev that it belongs to.
//!
//! A volume is named by its label, or by the first eight digits of its UUID. Where two want the same
//! name the one with the lower UUID has it, in whichever order they arrive; the other runs under a
//! longer name. A volume that a host has open keeps the name it has.

use std::rc::{Rc, Weak};

use super::cache::CacheSet;
use super::claims::Key;
use super::error::SetError;
use super::format::{self, LABEL_BYTES};
use super::hub::Hub;
use super::members::Member;
use super::turns::Place;
use super::volume::Volume;
use crate::canary::{self, Bug};
use crate::disk::Disk;
use crate::format::superblock::{BackingSuper, RanOn, Super};
use crate::stats::TICK_S;
use crate::units::{SECTOR_BYTES, Sector, Uuid};

/// Extents that a look at what lies beyond a device's end takes at most.
const LOOK_EXTENTS: usize = 4096;

/// A device that examine found and did not bring up.
#[derive(Clone, Debug)]
pub struct LeftAlone {
    /// The bdev.
    pub bdev: String,
    /// What it would be called.
    pub name: String,
    /// What stands on it.
    pub superblock: Super,
    /// The sectors of the bdev.
    pub size_sectors: u64,
    /// Why it was left alone, and what to do.
    pub reason: String,
    /// Dirty sectors that its running set has beyond its end.
    pub beyond_sectors: u64,
    /// It is left alone because its UUID is in use; else it disappears from the list when its UUID
    /// comes up elsewhere.
    is_twin: bool,
}

impl LeftAlone {
    /// The device's UUID.
    pub fn uuid(&self) -> Uuid {
        match &self.superblock {
            Super::Cache(sb) => sb.uuid,
            Super::Backing(sb) => sb.uuid,
        }
    }
}

/// The name of a volume that has no label: the kernel's devices have none.
fn short_name(uuid: Uuid) -> String {
    format!("bcache-{}", &uuid.to_string()[..8])
}

/// The name that a volume wants.
pub(super) fn wanted_name(label: &[u8; LABEL_BYTES], uuid: Uuid) -> String {
    format::name_of(label).unwrap_or_else(|| short_name(uuid))
}

/// Longer names for a volume that cannot have the one it wants, in the order they are tried; each is
/// one that a volume can have.
fn longer_names(wanted: &str, uuid: Uuid) -> Vec<String> {
    let digits = uuid.to_string().replace('-', "");
    let base = match *wanted == short_name(uuid) {
        true => "bcache",
        false => wanted,
    };
    let with = |digits: &str| format!("{}-{digits}", cut(base, LABEL_BYTES - 1 - digits.len()));
    let names = [with(&digits[..8]), with(&digits[..16]), digits.clone()];
    names.into_iter().filter(|name| name != wanted).collect()
}

/// As much of a text as fits into so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev();
    let end = end.into_iter().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// What a superblock says, for people.
fn describe(superblock: &Super, name: &str) -> String {
    match superblock {
        Super::Cache(sb) => format!("cache set {}", sb.set_uuid),
        Super::Backing(_) => format!("volume {name}"),
    }
}

impl Hub {
    /// The bdev's own name, where `name` is an alias of it or that name; `name` where there is no
    /// such bdev.
    pub fn own_name(&self, name: &str) -> String {
        self.host.resolve(name).unwrap_or_else(|| name.into())
    }

    /// Whether the UUID of a device is in use on another bdev. `set` is that of a cache device.
    ///
    /// # Errors
    /// [`SetError::Twin`].
    pub(super) fn check_twin(
        &self,
        bdev: &str,
        uuid: Uuid,
        set: Option<Uuid>,
    ) -> Result<(), SetError> {
        if canary::has(Bug::TwinTaken) {
            return Ok(());
        }
        let twin = |of: String, on: String| {
            Err(SetError::Twin {
                device: bdev.into(),
                uuid,
                of,
                on,
                is_cache: set.is_some(),
            })
        };
        for volume in self.volumes() {
            let on = volume.backing.as_ref().map(|b| b.disk.name());
            let on = on.unwrap_or_else(|| "its cache set".into());
            if volume.uuid == uuid && on != bdev {
                return twin(format!("volume {}", volume.name()), on);
            }
        }
        for running in self.sets() {
            let (sb, on) = (running.superblock(), running.disk.name());
            let same = sb.uuid == uuid || set == Some(sb.set_uuid);
            if same && on != bdev {
                return twin(format!("cache set {}", sb.set_uuid), on);
            }
        }
        Ok(())
    }

    /// Why examine does not take a bdev for the device whose superblock it shows; `None` where it
    /// may be that device.
    pub(super) fn misfit(&self, disk: &Rc<dyn Disk>, superblock: &Super) -> Option<String> {
        let note = match superblock {
            Super::Cache(sb) => sb.ran_on(),
            Super::Backing(sb) => sb.ran_on(),
        }?;
        let (kind, sectors) = (disk.kind(), disk.size_sectors());
        if note.suits(kind, sectors) {
            return None;
        }
        let bdev = disk.name();
        let text = |note: &RanOn| match note.kind.is_empty() {
            true => format!(
                "a bdev of {} bytes",
                note.size_sectors * SECTOR_BYTES as u64
            ),
            false => format!(
                "a bdev of module {} and {} bytes",
                note.kind,
                note.size_sectors.saturating_mul(SECTOR_BYTES as u64)
            ),
        };
        let now = text(&RanOn::new(kind, sectors));
        Some(format!(
            "it is {now} and last ran on {}: perhaps a part of the device that it belongs to \
             (a leg of an array, the base of a split); if it is the device itself, \
             bdev_bcache_register {bdev} takes it",
            text(&note)
        ))
    }

    /// Notes a device that examine does not bring up.
    pub(super) fn leave_alone(
        &self,
        bdev: &str,
        size_sectors: u64,
        superblock: Super,
        why: &SetError,
    ) {
        let is_twin = matches!(why, SetError::Twin { .. });
        let (label, uuid) = match &superblock {
            Super::Cache(sb) => (&sb.label, sb.uuid),
            Super::Backing(sb) => (&sb.label, sb.uuid),
        };
        let name = wanted_name(label, uuid);
        let of = describe(&superblock, &name);
        log::warn!("{bdev} bears the superblock of {of} and is left alone: {why}");
        let left = LeftAlone {
            name,
            superblock,
            size_sectors,
            reason: why.to_string(),
            beyond_sectors: 0,
            is_twin,
            bdev: bdev.into(),
        };
        self.warn_beyond(&left);
        self.left.borrow_mut().insert(bdev.into(), left);
    }

    /// Logs what the running set of a device that was left alone has beyond its end.
    fn warn_beyond(&self, left: &LeftAlone) {
        if let Some(beyond) = self.beyond_error(left) {
            log::warn!("{}: {beyond}", left.bdev);
        }
    }

    /// Logs the same of all that were left alone, when their set has come up after them.
    pub(super) fn warn_beyond_of(&self, set: Uuid) {
        let left = self.left_alone().into_iter();
        let of_set =
            left.filter(|l| matches!(&l.superblock, Super::Backing(sb) if sb.set_uuid == set));
        of_set.for_each(|left| self.warn_beyond(&left));
    }

    fn beyond_error(&self, left: &LeftAlone) -> Option<SetError> {
        let sectors = self.beyond_left(left);
        (sectors > 0).then(|| SetError::Beyond {
            name: left.name.clone(),
            bytes: sectors * SECTOR_BYTES as u64,
            end: Sector(left.size_sectors),
        })
    }

    /// The devices that examine found and did not bring up, as far as that still holds, each under a
    /// name that nothing else has.
    pub fn left_alone(&self) -> Vec<LeftAlone> {
        let is_up = |uuid: Uuid| {
            let volumes = self.volumes();
            let sets = self.sets();
            volumes.iter().any(|v| v.uuid == uuid)
                || sets.iter().any(|s| s.superblock().uuid == uuid)
        };
        self.left.borrow_mut().retain(|bdev, left| {
            let there = self.host.resolve(bdev).as_ref() == Some(bdev);
            let used = self.set_on(bdev).is_some() || self.volume_on(bdev).is_some();
            there && !used && (is_up(left.uuid()) == left.is_twin)
        });
        let mut names: Vec<String> = Vec::new();
        let left = self.left.borrow();
        let listed = left.values().cloned().map(|mut left| {
            let free =
                |name: &str| self.check_name(name).is_ok() && !names.iter().any(|n| n == name);
            if !free(&left.name) {
                let mut longer = longer_names(&left.name, left.uuid()).into_iter();
                let longest = format!("{}-{}", cut(&left.name, 8), cut(&left.bdev, 23));
                left.name = longer.find(|name| free(name)).unwrap_or(longest);
            }
            left.beyond_sectors = self.beyond_left(&left);
            if let Some(beyond) = self.beyond_error(&left) {
                left.reason = format!("{}; {beyond}", left.reason);
            }
            names.push(left.name.clone());
            left
        });
        listed.collect()
    }

    /// What is said of a name that no volume has: perhaps its device was left alone.
    pub(super) fn no_volume(&self, name: &str) -> SetError {
        let left = self.left_alone();
        match left.into_iter().find(|left| left.name == name) {
            Some(left) => SetError::LeftAlone {
                name: left.name,
                device: left.bdev,
                why: left.reason,
            },
            None => SetError::NoVolume(name.into()),
        }
    }

    /// Dirty sectors that its running set has of a device that was left alone beyond its end.
    fn beyond_left(&self, left: &LeftAlone) -> u64 {
        match &left.superblock {
            Super::Backing(sb) => self.beyond(sb, Sector(left.size_sectors)),
            Super::Cache(_) => 0,
        }
    }

    /// Bytes that the running set of a volume has beyond the end of its backing device.
    pub fn dirty_beyond_end(&self, volume: &Volume) -> u64 {
        let backing = volume.backing.as_ref();
        let sectors = backing.map_or(0, |b| self.beyond(&b.superblock(), b.end()));
        sectors * SECTOR_BYTES as u64
    }

    fn beyond(&self, sb: &BackingSuper, end: Sector) -> u64 {
        let set = self.find_set(sb.set_uuid);
        let found = set.and_then(|set| Some((set.find_uuid(sb.uuid)?, set)));
        found.map_or(0, |(inode, set)| dirty_beyond(&set, inode, end))
    }

    /// Whether a volume could have this name, which none has now nor is about to have.
    fn is_free(&self, name: &str) -> bool {
        let claimed = self.claims.check(&Key::Name(name.into()));
        self.check_name(name).is_ok() && claimed.is_ok()
    }

    /// The name for a volume that comes up, and why it is not the one it wants. The caller has the
    /// turn of the set `in_turn`, if it has any set's.
    pub(super) async fn name_for(
        &self,
        label: &[u8; LABEL_BYTES],
        uuid: Uuid,
        in_turn: Option<Uuid>,
    ) -> Result<(String, Option<String>), SetError> {
        let wanted = wanted_name(label, uuid);
        if self.is_free(&wanted) {
            return Ok((wanted, None));
        }
        let holder = self.volume(&wanted).ok();
        let holder = holder.filter(|h| h.uuid > uuid && !self.host.is_open(&wanted));
        if let Some(holder) = holder {
            if self.give_name_up(&holder, &wanted, in_turn).await? {
                return Ok((wanted, None));
            }
        }
        let by = match self.volume(&wanted) {
            Ok(volume) => format!("volume {wanted} (UUID {})", volume.uuid),
            Err(_) if self.host.is_taken(&wanted) => format!("bdev {wanted}"),
            Err(_) => "another call".into(),
        };
        let mut longer = longer_names(&wanted, uuid).into_iter();
        let name = longer.find(|name| self.is_free(name));
        let name = name.ok_or_else(|| SetError::NameTaken(wanted.clone()))?;
        let reason = format!("the name {wanted} is taken by {by}");
        log::warn!("the volume with UUID {uuid} comes up as {name}: {reason}");
        Ok((name, Some(reason)))
    }

    /// Gives a volume a longer name, because one with a lower UUID wants the one it has. False when
    /// no longer one is free.
    async fn give_name_up(
        &self,
        holder: &Rc<Volume>,
        wanted: &str,
        in_turn: Option<Uuid>,
    ) -> Result<bool, SetError> {
        let mut longer = longer_names(wanted, holder.uuid).into_iter();
        let Some(name) = longer.find(|name| self.is_free(name)) else {
            return Ok(false);
        };
        let reason = format!("the name {wanted} goes to the volume with the lower UUID");
        log::warn!(
            "volume {wanted} (UUID {}) is called {name} now: {reason}",
            holder.uuid
        );
        self.rename_idle(holder, name, Some(reason), in_turn).await
    }

    /// Gives a volume that no host has open another name. What is on disk stays. False when something
    /// else is done to it or its set now; the caller may have the turn of the set `in_turn`.
    async fn rename_idle(
        &self,
        volume: &Rc<Volume>,
        name: String,
        reason: Option<String>,
        in_turn: Option<Uuid>,
    ) -> Result<bool, SetError> {
        let old = volume.name();
        let mut places = Self::places_of(volume);
        places.retain(|place| !matches!(place, Place::Set(set) if Some(*set) == in_turn));
        // Nothing is just being made of it, and nothing else gets the name.
        places.extend([Place::Device(old.clone()), Place::Volume(name.clone())]);
        let mut claim = self.claims.none();
        if claim.add(Key::Name(name.clone())).is_err() {
            return Ok(false);
        }
        let Some(_turn) = self.turns.try_take(&places) else {
            return Ok(false);
        };
        if volume.check_open().is_err() || volume.check_stays().is_err() {
            return Ok(false);
        }
        // Hosts must not see it without what it lacks.
        if self.check_not_missing(volume).is_err() {
            return Ok(false);
        }
        let was_running = volume.is_running();
        if was_running {
            let hidden = self.host.hide(&old).await;
            hidden.map_err(|e| SetError::Io(old.clone(), e))?;
            // Its device may have gone meanwhile, or the process ends: it is not to come up again.
            if volume.check_open().is_err() {
                return Ok(false);
            }
        }
        let flash_sectors = volume
            .shared
            .take()
            .map_or(0, |shared| shared.size_sectors());
        // A bdev of that name may have come meanwhile.
        let is_free = self.check_name(&name).is_ok();
        let (name, reason) = match is_free {
            true => (name, reason),
            false => (old.clone(), volume.reason.take()),
        };
        self.volumes.borrow_mut().remove(&old);
        let again = volume.renamed(&name);
        *again.reason.borrow_mut() = reason;
        if !was_running {
            let mut volumes = self.volumes.borrow_mut();
            volumes.insert(again.name(), again);
            return Ok(is_free);
        }
        let link = again.link.borrow().clone();
        let shared = again.view(link.as_ref(), flash_sectors);
        self.expose(&again, shared)?;
        Ok(is_free)
    }

    /// Gives volumes that run under a longer name the one they want, where that has become free and
    /// no host has them open.
    pub(super) async fn settle_names(&self) {
        for volume in self.volumes() {
            let wanted = volume.wanted_name();
            let idle = !volume.is_running() || !self.host.is_open(&volume.name());
            if volume.name() == wanted || volume.reason.borrow().is_none() || !idle {
                continue;
            }
            if self.is_free(&wanted) {
                log::info!("volume {} is called {wanted} now", volume.name());
                if let Err(error) = self.rename_idle(&volume, wanted, None, None).await {
                    log::error!("{error}");
                }
            }
        }
    }

    /// Refuses a new volume under the name of an absent one whose dirty data `set`, or any running
    /// set, has. `uuid` is the new volume's own, if it has one; `keeps` tells of which the data must stay.
    ///
    /// # Errors
    /// [`SetError::AbsentVolume`].
    pub(super) fn check_name_of_absent(
        &self,
        set: Option<&Rc<CacheSet>>,
        name: &str,
        uuid: Option<Uuid>,
        keeps: impl Fn(&Member) -> bool,
    ) -> Result<(), SetError> {
        let mut absent = self.absent(set, name, uuid);
        let kept = absent.find(|(_, member)| keeps(member));
        match kept.filter(|_| !canary::has(Bug::NameOfAbsent)) {
            Some((set, member)) => Err(SetError::AbsentVolume {
                name: name.into(),
                is_flash: member.is_flash,
                uuid: member.uuid.unwrap_or(Uuid::NIL),
                set: set.set_uuid(),
                bytes: member.dirty_sectors * SECTOR_BYTES as u64,
            }),
            None => Ok(()),
        }
    }

    /// Drops what running sets have of absent volumes of that name, but for those that live on their
    /// set alone.
    pub(super) async fn forget_absent(&self, name: &str, uuid: Uuid) -> Result<(), SetError> {
        let next = || {
            let mut absent = self.absent(None, name, Some(uuid));
            absent.find(|(_, member)| !member.is_flash)
        };
        while let Some((set, member)) = next() {
            log::warn!(
                "{} dirty bytes of the absent volume {name} on cache set {} are given up",
                member.dirty_sectors * SECTOR_BYTES as u64,
                set.set_uuid()
            );
            self.drop_member(&set, member.inode, member.uuid).await?;
        }
        Ok(())
    }

    fn absent(
        &self,
        set: Option<&Rc<CacheSet>>,
        name: &str,
        uuid: Option<Uuid>,
    ) -> impl Iterator<Item = (Rc<CacheSet>, Member)> {
        let sets = self.sets().into_iter().chain(set.cloned());
        let all = sets.flat_map(|set| {
            let members = self.members(&set).into_iter();
            members.map(move |member| (set.clone(), member))
        });
        all.filter(move |(_, member)| {
            let same = member.name.as_deref() == Some(name) && member.uuid != uuid;
            same && !member.is_attached && member.dirty_sectors > 0
        })
    }
}

/// Gives volumes the names that they want as these become free, for as long as the hub is there.
pub(super) async fn keep_names(hub: Weak<Hub>) {
    loop {
        let Some(exec) = hub.upgrade().map(|hub| hub.exec.clone()) else {
            return;
        };
        exec.sleep_us(TICK_S * 1_000_000).await;
        let Some(hub) = hub.upgrade() else { return };
        if hub.volumes().iter().any(|v| v.reason.borrow().is_some()) {
            hub.settle_names().await;
        }
    }
}

/// Dirty sectors that a set holds of an inode from `end` on, a sector of the backing device. Where
/// there are very many extents, at least so many.
pub(super) fn dirty_beyond(set: &CacheSet, inode: crate::units::Inode, end: Sector) -> u64 {
    let (mut sectors, mut looked) = (0, 0);
    set.tree.scan(inode, end, Sector::MAX, &mut |extent| {
        if extent.dirty && set.tree.is_fresh(&extent) {
            sectors += extent.end() - extent.start.max(end);
        }
        looked += 1;
        looked < LOOK_EXTENTS
    });
    sectors
}
