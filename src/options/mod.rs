//! Options as data: names, types, ranges, defaults and help, and values that have been checked.
//!
//! Everything that depends on which options exist is derived from the tables in `rows`: parsing and
//! checks, the `options` objects of the reports, `save_config`, what `when_up` keeps, the rpc.py plugin
//! and docs/rpc.md. This module knows no set and no volume; `set::options` reads and applies values.
//!
//! # To add an option
//! 1. Add a row to the table of what it belongs to, in `rows.rs`: [`VolumeOption`], [`SetOption`] or
//!    [`ModuleOption`]. A default that the engine needs is taken from there, as a constant:
//!    `const LIMIT: u64 = SetOption::IoErrorLimit.number();`
//! 2. The compiler then asks for one arm in `set::options`, which says how the value is read and how
//!    it is applied.
//! 3. `make docs` writes docs/rpc.md and spdk/bcache_rpc.json anew; `tests/reference.rs` fails until then.
//!
//! `tests/options.rs` applies every value that a row allows at its limits, and expects the report and
//! the saved configuration to show it. To add a method, see `rpc::methods`.

mod kind;
mod rows;

use std::collections::BTreeMap;
use std::fmt::Debug;

pub use kind::{Kind, LABEL_BYTES, Value, is_name};
pub use rows::{
    BLOCK_SIZE, BUCKET_SIZE_KB, FORMAT_ROWS, MODE, ModuleOption, SetOption, VolumeOption,
};

/// What an option belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A volume, by name.
    Volume,
    /// A cache set, by UUID.
    Set,
    /// The whole module.
    Module,
}

/// Where the value of an option is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In memory, and in the configuration that `save_config` writes.
    Config,
    /// In memory alone.
    Run,
    /// On the device.
    Disk,
}

/// One option.
#[derive(Debug)]
pub struct Row {
    /// Its name in RPCs, reports and messages.
    pub name: &'static str,
    /// What it belongs to.
    pub of: Of,
    /// Its type and range.
    pub kind: Kind,
    /// The unit of a number, for people; empty where there is none.
    pub unit: &'static str,
    /// Its value unless it is changed.
    pub default: Value,
    /// Where it is kept.
    pub kept: Kept,
    /// What it does: a sentence without a full stop.
    pub help: &'static str,
}

/// The options of one kind of thing: an enum with a row for each variant.
pub trait Table: Copy + Ord + Debug + 'static {
    /// All of them, in the order of the table.
    const ALL: &'static [Self];

    /// Its row.
    fn row(self) -> &'static Row;

    /// The option of this name.
    fn by_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|option| option.row().name == name)
    }
}

/// New values for some options; the others stay as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct Values<O: Table>(BTreeMap<O, Value>);

impl<O: Table> Default for Values<O> {
    fn default() -> Self {
        Values(BTreeMap::new())
    }
}

impl<O: Table> Values<O> {
    /// Whether no option is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one; the value is one that its row allows.
    pub fn set(&mut self, option: O, value: Value) {
        self.0.insert(option, value);
    }

    /// The new value of an option, if it gets one.
    pub fn get(&self, option: O) -> Option<&Value> {
        self.0.get(&option)
    }

    /// All that get one, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (O, &Value)> {
        self.0.iter().map(|(option, value)| (*option, value))
    }

    /// Adds `newer`, which wins where both have a value.
    pub fn update(&mut self, newer: Values<O>) {
        self.0.extend(newer.0);
    }

    /// Keeps those for which `keep` holds.
    pub fn retain(&mut self, keep: impl Fn(O) -> bool) {
        self.0.retain(|option, _| keep(*option));
    }

    /// What of it belongs into a saved configuration.
    pub fn saved(mut self) -> Values<O> {
        self.retain(|option| option.row().kept == Kept::Config);
        self
    }

    /// Those of the values that are not the default. `read` gives the value of an option, or `None`
    /// where it does not apply.
    pub fn changed(read: impl Fn(O) -> Option<Value>) -> Values<O> {
        let mut changed = Values::default();
        for &option in O::ALL {
            match read(option) {
                Some(value) if value != option.row().default => changed.set(option, value),
                _ => {}
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_table<O: Table>() {
        for &option in O::ALL {
            let row = option.row();
            assert_eq!(O::by_name(row.name), Some(option));
            let default = row.kind.check(row.name, &row.default.to_json());
            assert_eq!(default.as_ref(), Ok(&row.default), "{}", row.name);
            assert!(!row.help.is_empty() && !row.help.ends_with('.'));
        }
    }

    #[test]
    fn every_default_is_in_its_range() {
        check_table::<VolumeOption>();
        check_table::<SetOption>();
        check_table::<ModuleOption>();
    }

    #[test]
    fn a_later_value_wins() {
        let mut first = Values::default();
        first.set(VolumeOption::WritebackRunning, Value::Bool(false));
        first.set(VolumeOption::WritebackPercent, Value::Uint(3));
        let mut second = Values::default();
        second.set(VolumeOption::WritebackPercent, Value::Uint(4));
        first.update(second);
        let get = |option| first.get(option).cloned();
        assert_eq!(
            get(VolumeOption::WritebackRunning),
            Some(Value::Bool(false))
        );
        assert_eq!(get(VolumeOption::WritebackPercent), Some(Value::Uint(4)));
    }

    #[test]
    fn only_what_is_kept_and_not_the_default_is_saved() {
        let all = Values::changed(|option| match option {
            VolumeOption::WritebackPercent => Some(Value::Uint(9)),
            VolumeOption::IoDisable => Some(Value::Bool(true)),
            VolumeOption::WritebackRunning => Some(Value::Bool(true)),
            _ => None,
        });
        assert_eq!(all.iter().count(), 2);
        let saved = all.saved();
        let saved: Vec<_> = saved.iter().map(|(option, _)| option).collect();
        assert_eq!(saved, [VolumeOption::WritebackPercent]);
    }
}
