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
use crate::request::owner;
use crate::units::Uuid;

/// The highest `writeback_percent`, in percent of the cache.
const WRITEBACK_PERCENT_MAX: u64 = 40;
/// The highest `journal_delay_ms`, in ms.
const JOURNAL_DELAY_MS_MAX: u64 = 60_000;

/// Options of a volume; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeOptions {
    /// Whether write-back works without being asked.
    pub writeback_running: Option<bool>,
    /// Dirty data, in percent of the cache, that write-back leaves alone; 0 to 40.
    pub writeback_percent: Option<u64>,
}

impl VolumeOptions {
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), SetError> {
        match self.writeback_percent {
            Some(percent) if percent > WRITEBACK_PERCENT_MAX => Err(SetError::Invalid(format!(
                "writeback_percent {percent} cannot be: 0 to {WRITEBACK_PERCENT_MAX} are possible"
            ))),
            _ => Ok(()),
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
        }
    }
}

/// Options of a set; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// How long a change waits for its journal entry without a flush, in ms; 1 to 60000.
    pub journal_delay_ms: Option<u64>,
}

impl SetOptions {
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), SetError> {
        match self.journal_delay_ms {
            Some(ms) if !(1..=JOURNAL_DELAY_MS_MAX).contains(&ms) => {
                Err(SetError::Invalid(format!(
                    "journal_delay_ms {ms} cannot be: 1 to {JOURNAL_DELAY_MS_MAX} are possible"
                )))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn apply(self, set: &CacheSet) {
        if let Some(ms) = self.journal_delay_ms {
            set.journal.set_delay_ms(ms);
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
        let link = volume.as_ref().ok().and_then(|v| v.link.borrow().clone());
        if let Some(link) = link {
            options.apply(&link.volume);
            return Ok(());
        }
        if !when_up {
            volume?;
            return Err(SetError::Busy(format!("{name} has no cache")));
        }
        let mut later = self.later.borrow_mut();
        let known = later.volumes.entry(name.into()).or_default();
        *known = known.and(options);
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
                self.later.borrow_mut().sets.insert(uuid, options);
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// Gives a volume that has just got its cache the options that waited for it.
    pub(super) fn apply_later(&self, volume: &Rc<Volume>) {
        let options = self.later.borrow_mut().volumes.remove(&volume.name);
        let link = volume.link.borrow();
        if let (Some(options), Some(link)) = (options, link.as_ref()) {
            options.apply(&link.volume);
        }
    }

    /// What waits.
    pub fn later(&self) -> Later {
        self.later.borrow().clone()
    }
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
        };
        assert!(delay(1).check().is_ok() && delay(60_000).check().is_ok());
        assert!(delay(0).check().is_err() && delay(60_001).check().is_err());
    }

    #[test]
    fn what_is_said_later_counts() {
        let first = VolumeOptions {
            writeback_running: Some(false),
            writeback_percent: Some(3),
        };
        let second = VolumeOptions {
            writeback_running: None,
            writeback_percent: Some(4),
        };
        let both = first.and(second);
        assert_eq!(both.writeback_running, Some(false));
        assert_eq!(both.writeback_percent, Some(4));
    }
}
