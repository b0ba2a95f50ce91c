//! The RPC methods: parameters in, results out, and the one place where errors get their codes.
//!
//! [`methods`] is the table of methods; its head says how to add one. A bad parameter is -32602;
//! everything else a negative errno with a message that says what is wrong and what to do.

mod calls;
pub mod methods;
pub mod params;
mod report;

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::options::{ModuleOption, Table, Values};
use crate::set::error::SetError;
use crate::set::host::OpenError;
use crate::set::hub::Hub;
use crate::set::options;
use methods::METHODS;
use params::Args;

/// What a failed call answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// A JSON-RPC code, or a negative errno.
    pub code: i32,
    /// What is wrong and what to do.
    pub message: String,
}

const INVALID_PARAMS: i32 = -32602;
const METHOD_NOT_FOUND: i32 = -32601;
const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EILSEQ: i32 = 84;

fn invalid(message: impl Into<String>) -> RpcError {
    RpcError {
        code: INVALID_PARAMS,
        message: message.into(),
    }
}

/// The JSON-RPC code, or negative errno, of an error.
fn code_of(error: &SetError) -> i32 {
    use SetError::*;
    match error {
        Invalid(_) => INVALID_PARAMS,
        Open(_, OpenError::NotFound) | NoVolume(_) | NoSet(_) => -ENODEV,
        Open(_, OpenError::Busy) | Busy(_) | Elsewhere(..) | Dirty(_) | WouldLose(_) => -EBUSY,
        Open(_, OpenError::Unfit(_)) => -EINVAL,
        Open(_, OpenError::Os(errno)) | Register(_, errno) => -errno,
        Io(..) | Stopped(_) | WriteBack(_) => -EIO,
        Occupied(_) | Foreign(..) | NameTaken(_) | Twin { .. } => -EEXIST,
        OlderCopy { .. } | Misfit(..) | AbsentVolume { .. } | Beyond { .. } | JournalFull(_) => {
            -EBUSY
        }
        LeftAlone { .. } => -ENODEV,
        NoSuper(_) | Misaligned { .. } | BlockTooSmall { .. } | BlockTooLarge { .. } => -EINVAL,
        Super(..)
        | Journal(..)
        | JournalKey { .. }
        | Prios(..)
        | NoUuids(_)
        | UuidKey(..)
        | Tree(..) => -EILSEQ,
        CacheMissing { .. } | NotInSet { .. } => -ENODEV,
        NoRoom(_) | NoSpace(_) => -ENOSPC,
        HalfWay(half) => code_of(&half.error),
    }
}

impl From<SetError> for RpcError {
    fn from(error: SetError) -> RpcError {
        RpcError {
            code: code_of(&error),
            message: error.to_string(),
        }
    }
}

type Answer = Result<Value, RpcError>;

/// Calls a method.
///
/// # Errors
/// What the caller is to be told.
pub async fn call(hub: Rc<Hub>, method: &str, params: Value) -> Answer {
    let known = METHODS.iter().find(|known| known.name == method);
    let method = known.ok_or_else(|| RpcError {
        code: METHOD_NOT_FOUND,
        message: format!("there is no method {method}"),
    })?;
    (method.run)(hub, Args::parse(method, params)?).await
}

/// What [`call`] says of one volume with `bdev_bcache_get_bdevs`; null when there is none.
pub fn describe(hub: &Hub, name: &str) -> Value {
    match report::bdevs(hub, Some(name)) {
        Ok(Value::Array(mut volumes)) => volumes.pop().unwrap_or_default(),
        _ => Value::Null,
    }
}

/// The calls that bring back what is not on disk, as (method, parameters). They are called before
/// there are bdevs, so each says `when_up`.
pub fn config(hub: &Hub) -> Vec<(&'static str, Value)> {
    let mut calls = Vec::new();
    let later = hub.later();
    let read = |option: ModuleOption| Some(options::read_module(hub, option));
    let changed = Values::changed(read).saved();
    if !changed.is_empty() {
        let params = with_options(Map::new(), changed);
        calls.push(("bdev_bcache_set_module_options", params));
    }
    if !hub.examine_enabled.get() {
        for bdev in report::devices(hub).iter().chain(&later.bdevs) {
            let params = json!({"bdev_name": bdev, "when_up": true});
            calls.push(("bdev_bcache_register", params));
        }
    }
    let up = hub.volumes().into_iter();
    let up = up.map(|v| (v.name(), options::changed_of_volume(&v)));
    for (name, values) in up.chain(later.volumes) {
        calls.extend(when_up("bdev_bcache_set_options", "name", name, values));
    }
    let up = hub.sets().into_iter();
    let up = up.map(|s| (s.set_uuid(), options::changed_of_set(&s)));
    for (uuid, values) in up.chain(later.sets) {
        let uuid = uuid.to_string();
        calls.extend(when_up("bdev_bcache_set_set_options", "set", uuid, values));
    }
    calls
}

/// The call that gives something its options as soon as it is there, if any is to be saved.
fn when_up<O: Table>(
    method: &'static str,
    key: &str,
    name: String,
    values: Values<O>,
) -> Option<(&'static str, Value)> {
    let values = values.saved();
    if values.is_empty() {
        return None;
    }
    let mut params = Map::new();
    params.insert(key.into(), json!(name));
    params.insert("when_up".into(), json!(true));
    Some((method, with_options(params, values)))
}

fn with_options<O: Table>(mut params: Map<String, Value>, values: Values<O>) -> Value {
    for (option, value) in values.iter() {
        params.insert(option.row().name.into(), value.to_json());
    }
    params.into()
}

#[cfg(test)]
mod tests {
    use crate::format::superblock::CacheMode;
    use crate::options::{Kind, MODE};

    #[test]
    fn every_cache_mode_of_the_table_is_one_of_the_format() {
        let Kind::Word(words) = MODE.kind else {
            panic!("{MODE:?}");
        };
        for word in words {
            let mode = CacheMode::from_name(word).expect(word);
            assert_eq!(mode.name(), *word);
        }
        assert_eq!(words.len(), 4);
    }
}
