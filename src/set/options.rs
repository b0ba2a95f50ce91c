//! How options are read and applied, and what waits for the volume or set that it is meant for.
//!
//! Which options exist, with their types, ranges and defaults, stands in [`crate::options`]; here
//! each has one arm: in `of_volume`, `of_set` or `of_module`.
//!
//! A saved configuration is loaded before there are bdevs, let alone volumes. Options of what does
//! not exist yet are kept in [`Later`] and applied when it comes up.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::cache::CacheSet;
use super::error::SetError;
use super::hub::Hub;
use super::volume::{Backing, Volume};
use crate::options::{ModuleOption, SetOption, Table, Value, Values, VolumeOption};
use crate::request::owner;
use crate::units::Uuid;

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

    fn from_name(name: &str) -> OnError {
        match name {
            "panic" => OnError::Panic,
            _ => OnError::Unregister,
        }
    }
}

type Apply<T> = Box<dyn Fn(&T, &Value)>;

/// How an option is read and applied, as two functions of what it belongs to.
struct Access<T> {
    read: Box<dyn Fn(&T) -> Value>,
    apply: Apply<T>,
}

/// A closure that takes values of one variant; [`crate::options`] has checked the type.
macro_rules! access {
    ($name:ident, $variant:ident, $given:ty, $taken:ty) => {
        fn $name<T>(
            read: impl Fn(&T) -> $given + 'static,
            apply: impl Fn(&T, $taken) + 'static,
        ) -> Access<T> {
            Access {
                read: Box::new(move |of| Value::$variant(read(of))),
                apply: Box::new(move |of, value| match value {
                    Value::$variant(value) => apply(of, value.clone()),
                    other => log::error!("an option of another type was given {other:?}"),
                }),
            }
        }
    };
}
access!(switch, Bool, bool, bool);
access!(number, Uint, u64, u64);
access!(word, Word, &'static str, &'static str);
access!(texts, Texts, Vec<String>, Vec<String>);

/// What an option of a volume needs.
enum VolumeAccess {
    /// A backing device: volumes that live on a set alone do not have these options.
    Backing(Access<Backing>),
    /// A cache: the option can wait until the volume is attached.
    Cached(Access<owner::Volume>),
}

fn of_volume(option: VolumeOption) -> VolumeAccess {
    match option {
        VolumeOption::WritebackRunning => VolumeAccess::Cached(switch(
            |v: &owner::Volume| v.writeback_running.get(),
            |v, on| v.writeback_running.set(on),
        )),
        VolumeOption::WritebackPercent => VolumeAccess::Cached(number(
            |v: &owner::Volume| v.writeback_percent.get(),
            |v, percent| v.writeback_percent.set(percent),
        )),
        VolumeOption::IoErrorLimit => VolumeAccess::Backing(number(
            |b: &Backing| b.health.limit(),
            |b, errors| b.health.set_limit(errors),
        )),
        VolumeOption::IoDisable => VolumeAccess::Backing(switch(
            |b: &Backing| b.health.is_disabled(),
            |b, disabled| b.health.disable(disabled),
        )),
        VolumeOption::StopWhenCacheSetFailed => VolumeAccess::Backing(word(
            |b: &Backing| {
                if b.on_loss.stops.get() {
                    "always"
                } else {
                    "auto"
                }
            },
            |b, name| b.on_loss.stops.set(name == "always"),
        )),
        VolumeOption::CacheMissingIo => VolumeAccess::Backing(word(
            |b: &Backing| {
                if b.on_loss.waits.get() {
                    "wait"
                } else {
                    "fail"
                }
            },
            |b, name| b.on_loss.waits.set(name == "wait"),
        )),
        VolumeOption::CacheMissingTimeoutS => VolumeAccess::Backing(number(
            |b: &Backing| b.on_loss.stays_s.get(),
            |b, seconds| b.on_loss.stays_s.set(seconds),
        )),
    }
}

fn of_set(option: SetOption) -> Access<CacheSet> {
    match option {
        SetOption::JournalDelayMs => number(
            |s: &CacheSet| s.journal.delay_ms(),
            |s, ms| s.journal.set_delay_ms(ms),
        ),
        SetOption::IoErrorLimit => number(
            |s: &CacheSet| s.owner.health.limit.get(),
            |s, errors| s.owner.health.limit.set(errors),
        ),
        SetOption::IoErrorHalflife => number(
            |s: &CacheSet| s.owner.health.halflife.get(),
            |s, ios| s.owner.health.halflife.set(ios),
        ),
        SetOption::Errors => word(
            |s: &CacheSet| s.on_error.get().name(),
            |s, name| s.on_error.set(OnError::from_name(name)),
        ),
        SetOption::CopyGcEnabled => switch(
            |s: &CacheSet| s.mover.is_enabled(),
            |s, on| s.mover.enable(on),
        ),
    }
}

fn of_module(option: ModuleOption) -> Access<Hub> {
    match option {
        ModuleOption::Examine => switch(
            |hub: &Hub| hub.examine_enabled.get(),
            |hub, on| hub.examine_enabled.set(on),
        ),
        ModuleOption::ExamineExclude => texts(
            |hub: &Hub| hub.examine_exclude.borrow().clone(),
            |hub, names| {
                hub.examine_exclude.replace(names);
            },
        ),
        ModuleOption::StartWaitS => number(
            |hub: &Hub| hub.start_wait_s(),
            |hub, seconds| hub.set_start_wait_s(seconds),
        ),
    }
}

/// The value of an option of a volume, or `None` where the volume does not have the option now.
pub fn read_volume(volume: &Volume, option: VolumeOption) -> Option<Value> {
    match of_volume(option) {
        VolumeAccess::Backing(access) => {
            let backing = volume.backing.as_ref()?;
            Some((access.read)(backing))
        }
        VolumeAccess::Cached(access) => {
            let link = volume.link.borrow();
            Some((access.read)(&link.as_ref()?.volume))
        }
    }
}

/// The value of an option of a set.
pub fn read_set(set: &CacheSet, option: SetOption) -> Value {
    (of_set(option).read)(set)
}

/// The value of an option of the module.
pub fn read_module(hub: &Hub, option: ModuleOption) -> Value {
    (of_module(option).read)(hub)
}

/// The options of a volume that are saved, where they are not the default.
pub fn changed_of_volume(volume: &Volume) -> Values<VolumeOption> {
    Values::changed(|option| read_volume(volume, option)).saved()
}

/// The options of a set that are saved, where they are not the default.
pub fn changed_of_set(set: &CacheSet) -> Values<SetOption> {
    Values::changed(|option| Some(read_set(set, option))).saved()
}

/// Applies what can be applied to a volume now; returns what needs a cache.
///
/// # Errors
/// The volume has no backing device, and an option needs one. Nothing is applied then.
fn apply_to_volume(
    volume: &Volume,
    options: &Values<VolumeOption>,
) -> Result<Values<VolumeOption>, SetError> {
    for (option, _) in options.iter() {
        let needs_backing = matches!(of_volume(option), VolumeAccess::Backing(_));
        if needs_backing && volume.backing.is_none() {
            return Err(SetError::Invalid(format!(
                "{} lives on its set alone: {} is an option of backing devices",
                volume.name(),
                option.row().name
            )));
        }
    }
    let (link, mut rest) = (volume.link.borrow(), Values::default());
    for (option, value) in options.iter() {
        match (of_volume(option), &volume.backing, &*link) {
            (VolumeAccess::Backing(access), Some(backing), _) => (access.apply)(backing, value),
            (VolumeAccess::Cached(access), _, Some(link)) => (access.apply)(&link.volume, value),
            _ => rest.set(option, value.clone()),
        }
    }
    Ok(rest)
}

pub(super) fn apply_to_set(set: &CacheSet, options: &Values<SetOption>) {
    for (option, value) in options.iter() {
        (of_set(option).apply)(set, value);
    }
}

/// What was asked for before there was anything that it could be done to.
#[derive(Clone, Debug, Default)]
pub struct Later {
    /// Bdevs to be registered when they appear.
    pub bdevs: BTreeSet<String>,
    /// Options of volumes, by name.
    pub volumes: BTreeMap<String, Values<VolumeOption>>,
    /// Options of sets.
    pub sets: BTreeMap<Uuid, Values<SetOption>>,
}

impl Hub {
    /// Changes options of a volume; with `when_up`, as soon as it is there and has a cache. All
    /// that are given are changed or kept, or none is.
    ///
    /// # Errors
    /// There is no such volume or it has no cache (both without `when_up`), or it lives on its set
    /// alone and an option needs a backing device.
    pub fn set_options(
        &self,
        name: &str,
        options: Values<VolumeOption>,
        when_up: bool,
    ) -> Result<(), SetError> {
        let volume = self.volume(name);
        let needs_cache = |option| matches!(of_volume(option), VolumeAccess::Cached(_));
        if !when_up || options.is_empty() {
            let volume = volume
                .as_ref()
                .map_err(|_| SetError::NoVolume(name.into()))?;
            let lacking = options.iter().find(|(option, _)| needs_cache(*option));
            if let Some((option, _)) = lacking.filter(|_| volume.link.borrow().is_none()) {
                return Err(SetError::Busy(format!(
                    "{name} has no cache, which {} needs: attach it first, or say when_up",
                    option.row().name
                )));
            }
        }
        let rest = match &volume {
            Ok(volume) => apply_to_volume(volume, &options)?,
            Err(_) => options,
        };
        if !rest.is_empty() {
            let mut later = self.later.borrow_mut();
            later.volumes.entry(name.into()).or_default().update(rest);
        }
        Ok(())
    }

    /// Changes options of a set; with `when_up`, as soon as it runs.
    ///
    /// # Errors
    /// No such set runs (without `when_up`, or without options), or what is given is no UUID.
    pub fn set_set_options(
        &self,
        uuid: &str,
        options: Values<SetOption>,
        when_up: bool,
    ) -> Result<(), SetError> {
        match (self.set(uuid), Uuid::parse(uuid)) {
            (Ok(set), _) => apply_to_set(&set, &options),
            (Err(SetError::NoSet(_)), Some(uuid)) if when_up && !options.is_empty() => {
                let mut later = self.later.borrow_mut();
                later.sets.entry(uuid).or_default().update(options);
            }
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }

    /// Changes options of the module.
    pub fn set_module_options(&self, options: &Values<ModuleOption>) {
        for (option, value) in options.iter() {
            (of_module(option).apply)(self, value);
        }
    }

    /// Gives a volume that has just come up, or got its cache, the options that waited for it.
    pub(super) fn apply_later(&self, volume: &Rc<Volume>) {
        let mut later = self.later.borrow_mut();
        let Some(options) = later.volumes.remove(&volume.name()) else {
            return;
        };
        match apply_to_volume(volume, &options) {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => {
                later.volumes.insert(volume.name(), rest);
            }
            Err(error) => log::warn!("options of {} are dropped: {error}", volume.name()),
        }
    }

    /// Keeps the options of a volume that is taken down, for when it comes back.
    pub(super) fn keep_options(&self, volume: &Volume) {
        let options = changed_of_volume(volume);
        if !options.is_empty() {
            let mut later = self.later.borrow_mut();
            // Those that need a cache may wait for it still.
            let kept = later.volumes.entry(volume.name()).or_default();
            kept.update(options);
        }
    }

    /// Keeps the options of a set that is stopped, for when it is started again.
    pub(super) fn keep_set_options(&self, set: &CacheSet) {
        let options = changed_of_set(set);
        if !options.is_empty() {
            let mut later = self.later.borrow_mut();
            later.sets.insert(set.set_uuid(), options);
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
    use crate::options::Kind;

    #[test]
    fn every_word_of_errors_has_a_meaning() {
        let row = SetOption::Errors.row();
        let Kind::Word(words) = row.kind else {
            panic!("{row:?}");
        };
        for word in words {
            assert_eq!(OnError::from_name(word).name(), *word);
        }
        assert_eq!(row.default, Value::Word(OnError::default().name()));
    }
}
