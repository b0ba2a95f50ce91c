//! Options that hold for this run, and those that wait for what they are meant for.
//!
//! A saved configuration is loaded before there are bdevs, let alone volumes. What it says of
//! something that is not there yet is kept in [`Later`] and holds as soon as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::hub::Hub;
use super::volume::Volume;
use crate::journal::JOURNAL_DELAY_MS;
use crate::request::owner::{self, WRITEBACK_PERCENT};
use crate::request::trouble::{BACKING_ERROR_LIMIT, BackingHealth, IO_ERROR_LIMIT};
use crate::units::Uuid;

/// The highest `writeback_percent`, in percent of the cache.
const WRITEBACK_PERCENT_MAX: u64 = 40;
/// The highest `journal_delay_ms`, in ms.
const JOURNAL_DELAY_MS_MAX: u64 = 60_000;
/// The highest `io_error_limit`.
const IO_ERROR_LIMIT_MAX: u64 = 1 << 31;
/// The highest `io_error_halflife`, in I/Os.
const IO_ERROR_HALFLIFE_MAX: u64 = 1 << 40;

/// What becomes of a set whose cache device failed, in the kernel's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Volumes without dirty data go on without it, the others can be read as far as that is right.
    #[default]
    Unregister,
    /// The process ends at once.
    Panic,
}

impl OnError {
    /// Its name: `unregister` or `panic`.
    pub const fn name(self) -> &'static str {
        match self {
            OnError::Unregister => "unregister",
            OnError::Panic => "panic",
        }
    }

    /// What has that name.
    pub fn from_name(name: &str) -> Option<OnError> {
        let all = [OnError::Unregister, OnError::Panic];
        all.into_iter().find(|what| what.name() == name)
    }
}

/// Options of a volume; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Whether write-back works without being asked.
    pub writeback_running: Option<bool>,
    /// Dirty data, in percent of the cache, that write-back leaves alone; 0 to 40.
    pub writeback_percent: Option<u64>,
    /// Errors of the backing device at which it is given up; at least 1.
    pub io_error_limit: Option<u64>,
    /// Whether it is given up; false: it works again, and errors count from zero.
    pub io_disable: Option<bool>,
}

impl VolumeOptions {
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), SetError> {
        in_range(
            "writeback_percent",
            self.writeback_percent,
            0,
            WRITEBACK_PERCENT_MAX,
        )?;
        in_range("io_error_limit", self.io_error_limit, 1, IO_ERROR_LIMIT_MAX)
    }

    /// Those of a backing device, and those of a volume's place in a set.
    fn split(self) -> (VolumeOptions, VolumeOptions) {
        let none = VolumeOptions::default();
        let of_backing = VolumeOptions {
            io_error_limit: self.io_error_limit,
            io_disable: self.io_disable,
            ..none
        };
        let of_link = VolumeOptions {
            writeback_running: self.writeback_running,
            writeback_percent: self.writeback_percent,
            ..none
        };
        (of_backing, of_link)
    }

    fn is_empty(&self) -> bool {
        *self == VolumeOptions::default()
    }

    /// Those of a volume that are not the default, if any is not.
    pub fn changed(volume: &Volume) -> Option<VolumeOptions> {
        let mut changed = VolumeOptions::default();
        if let Some(backing) = &volume.backing {
            let limit = backing.health.limit();
            changed.io_error_limit = (limit != BACKING_ERROR_LIMIT).then_some(limit);
        }
        if let Some(link) = &*volume.link.borrow() {
            let owned = &link.volume;
            let (running, percent) = (owned.writeback_running.get(), owned.writeback_percent.get());
            if !running || percent != WRITEBACK_PERCENT {
                changed.writeback_running = Some(running);
                changed.writeback_percent = Some(percent);
            }
        }
        (!changed.is_empty()).then_some(changed)
    }

    fn apply_to_backing(self, health: &BackingHealth) {
        if let Some(limit) = self.io_error_limit {
            health.set_limit(limit);
        }
        if let Some(disabled) = self.io_disable {
            health.disable(disabled);
        }
    }

    fn apply(self, volume: &owner::Volume) {
        if let Some(percent) = self.writeback_percent {
            volume.writeback_percent.set(percent);
        }
        if let Some(running) = self.writeback_running {
            volume.writeback_running.set(running);
        }
    }

    /// These, where `newer` says nothing else.
    fn and(self, newer: VolumeOptions) -> VolumeOptions {
        VolumeOptions {
            writeback_running: newer.writeback_running.or(self.writeback_running),
            writeback_percent: newer.writeback_percent.or(self.writeback_percent),
            io_error_limit: newer.io_error_limit.or(self.io_error_limit),
            io_disable: newer.io_disable.or(self.io_disable),
        }
    }
}

fn in_range(name: &str, value: Option<u64>, least: u64, most: u64) -> Result<(), SetError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => Err(SetError::Invalid(format!(
            "{name} {value} cannot be: {least} to {most} are possible"
        ))),
        _ => Ok(()),
    }
}

/// Options of a set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// How long a change waits for its journal entry without a flush, in ms; 1 to 60000.
    pub journal_delay_ms: Option<u64>,
    /// Errors of the cache device's data at which it is given up; at least 1.
    pub io_error_limit: Option<u64>,
    /// I/Os after which half of the errors are forgotten; 0: none ever is.
    pub io_error_halflife: Option<u64>,
    /// What then becomes of the set.
    pub errors: Option<OnError>,
    /// Whether moving gc works.
    pub copy_gc_enabled: Option<bool>,
}

impl SetOptions {
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), SetError> {
        let (delay, limit) = (self.journal_delay_ms, self.io_error_limit);
        in_range("journal_delay_ms", delay, 1, JOURNAL_DELAY_MS_MAX)?;
        in_range("io_error_limit", limit, 1, IO_ERROR_LIMIT_MAX)?;
        let halflife = self.io_error_halflife;
        in_range("io_error_halflife", halflife, 0, IO_ERROR_HALFLIFE_MAX)
    }

    /// Those of a set that are not the default, if any is not.
    pub fn changed(set: &CacheSet) -> Option<SetOptions> {
        let health = &set.owner.health;
        let other = |value: u64, default: u64| (value != default).then_some(value);
        let errors = set.on_error.get();
        let changed = SetOptions {
            journal_delay_ms: other(set.journal.delay_ms(), JOURNAL_DELAY_MS),
            io_error_limit: other(health.limit.get(), IO_ERROR_LIMIT),
            io_error_halflife: other(health.halflife.get(), 0),
            errors: (errors != OnError::default()).then_some(errors),
            copy_gc_enabled: (!set.mover.is_enabled()).then_some(false),
        };
        (changed != SetOptions::default()).then_some(changed)
    }

    pub(super) fn apply(self, set: &CacheSet) {
        if let Some(ms) = self.journal_delay_ms {
            set.journal.set_delay_ms(ms);
        }
        if let Some(limit) = self.io_error_limit {
            set.owner.health.limit.set(limit);
        }
        if let Some(ios) = self.io_error_halflife {
            set.owner.health.halflife.set(ios);
        }
        if let Some(errors) = self.errors {
            set.on_error.set(errors);
        }
        if let Some(on) = self.copy_gc_enabled {
            set.mover.enable(on);
        }
    }

    /// These, where `newer` says nothing else.
    fn and(self, newer: SetOptions) -> SetOptions {
        SetOptions {
            journal_delay_ms: newer.journal_delay_ms.or(self.journal_delay_ms),
            io_error_limit: newer.io_error_limit.or(self.io_error_limit),
            io_error_halflife: newer.io_error_halflife.or(self.io_error_halflife),
            errors: newer.errors.or(self.errors),
            copy_gc_enabled: newer.copy_gc_enabled.or(self.copy_gc_enabled),
        }
    }
}

/// What was asked for before there was anything that it could be done to.
#[derive(Clone, Debug, Default)]
pub struct Later {
    /// Bdevs to be registered when they appear.
    pub bdevs: BTreeSet<String>,
    /// Options of volumes, by name.
    pub volumes: BTreeMap<String, VolumeOptions>,
    /// Options of sets.
    pub sets: BTreeMap<Uuid, SetOptions>,
}

impl Hub {
    /// Changes options of a volume; with `when_up`, as soon as it is there and has a cache.
    ///
    /// # Errors
    /// A value that cannot be, or (without `when_up`) there is no such volume with a cache.
    pub fn set_options(
        &self,
        name: &str,
        options: VolumeOptions,
        when_up: bool,
    ) -> Result<(), SetError> {
        options.check()?;
        let volume = self.volume(name);
        let rest = match &volume {
            Ok(volume) => apply_now(volume, options)?,
            Err(_) => options,
        };
        if rest.is_empty() {
            return volume.map(|_| ());
        }
        if !when_up {
            volume?;
            return Err(SetError::Busy(format!("{name} has no cache")));
        }
        let mut later = self.later.borrow_mut();
        let known = later.volumes.entry(name.into()).or_default();
        *known = known.and(rest);
        Ok(())
    }

    /// Changes options of a set; with `when_up`, as soon as it runs.
    ///
    /// # Errors
    /// A value that cannot be, or (without `when_up`) no such set runs.
    pub fn set_set_options(
        &self,
        uuid: &str,
        options: SetOptions,
        when_up: bool,
    ) -> Result<(), SetError> {
        options.check()?;
        match (self.set(uuid), Uuid::parse(uuid)) {
            (Ok(set), _) => options.apply(&set),
            (Err(SetError::NoSet(_)), Some(uuid)) if when_up => {
                let mut later = self.later.borrow_mut();
                let known = later.sets.entry(uuid).or_default();
                *known = known.and(options);
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// Gives a volume that has just come up, or got its cache, the options that waited for it.
    pub(super) fn apply_later(&self, volume: &Rc<Volume>) {
        let mut later = self.later.borrow_mut();
        let Some(options) = later.volumes.remove(&volume.name) else {
            return;
        };
        match apply_now(volume, options) {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => {
                later.volumes.insert(volume.name.clone(), rest);
            }
            Err(error) => log::warn!("{}: {error}", volume.name),
        }
    }

    /// Keeps the options of a volume that is taken down, for when it comes back.
    pub(super) fn keep_options(&self, volume: &Volume) {
        if let Some(options) = VolumeOptions::changed(volume) {
            let mut later = self.later.borrow_mut();
            later.volumes.insert(volume.name.clone(), options);
        }
    }

    /// Keeps the options of a set that is stopped, for when it is started again.
    pub(super) fn keep_set_options(&self, set: &CacheSet) {
        if let Some(options) = SetOptions::changed(set) {
            let mut later = self.later.borrow_mut();
            later.sets.insert(set.set_uuid(), options);
        }
    }

    /// What waits.
    pub fn later(&self) -> Later {
        self.later.borrow().clone()
    }
}

/// Changes what can be changed of a volume now; returns what it takes a cache for.
fn apply_now(volume: &Volume, options: VolumeOptions) -> Result<VolumeOptions, SetError> {
    let (of_backing, of_link) = options.split();
    match &volume.backing {
        Some(backing) => of_backing.apply_to_backing(&backing.health),
        None if of_backing.is_empty() => {}
        None => {
            return Err(SetError::Invalid(format!(
                "{} lives on its set alone: io_error_limit and io_disable are of backing devices",
                volume.name
            )));
        }
    }
    let link = volume.link.borrow();
    let Some(link) = link.as_ref() else {
        return Ok(of_link);
    };
    of_link.apply(&link.volume);
    Ok(VolumeOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept() {
        let percent = |p| VolumeOptions {
            writeback_percent: Some(p),
            ..VolumeOptions::default()
        };
        assert!(percent(0).check().is_ok() && percent(40).check().is_ok());
        assert!(percent(41).check().is_err());
        let delay = |ms| SetOptions {
            journal_delay_ms: Some(ms),
            ..SetOptions::default()
        };
        let limit = |n| SetOptions {
            io_error_limit: Some(n),
            ..SetOptions::default()
        };
        assert!(limit(1).check().is_ok() && limit(0).check().is_err());
        assert!(delay(1).check().is_ok() && delay(60_000).check().is_ok());
        assert!(delay(0).check().is_err() && delay(60_001).check().is_err());
    }

    #[test]
    fn what_is_said_later_counts() {
        let first = VolumeOptions {
            writeback_running: Some(false),
            writeback_percent: Some(3),
            ..VolumeOptions::default()
        };
        let second = VolumeOptions {
            writeback_percent: Some(4),
            ..VolumeOptions::default()
        };
        let both = first.and(second);
        assert_eq!(both.writeback_running, Some(false));
        assert_eq!(both.writeback_percent, Some(4));
    }
}
