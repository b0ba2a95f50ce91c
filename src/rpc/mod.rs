//! The RPC methods: parameters in, results out, and the one place where errors get their codes.
//!
//! Unknown parameters are refused. A bad parameter is -32602; everything else a negative errno with
//! a message that says what is wrong and what to do.

mod report;

use std::rc::Rc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::format::superblock::CacheMode;
use crate::gc;
use crate::set::create::Create;
use crate::set::error::SetError;
use crate::set::format::Permission;
use crate::set::host::OpenError;
use crate::set::hub::Hub;
use crate::set::options;
use crate::units::{Inode, Uuid};

/// All methods.
pub const METHODS: &[&str] = &[
    "bdev_bcache_attach",
    "bdev_bcache_create",
    "bdev_bcache_create_flash_volume",
    "bdev_bcache_delete",
    "bdev_bcache_delete_flash_volume",
    "bdev_bcache_detach",
    "bdev_bcache_flush_start",
    "bdev_bcache_flush_status",
    "bdev_bcache_forget_volume",
    "bdev_bcache_gc",
    "bdev_bcache_get_bdevs",
    "bdev_bcache_get_sets",
    "bdev_bcache_get_stats",
    "bdev_bcache_register",
    "bdev_bcache_reset_stats",
    "bdev_bcache_resize_flash_volume",
    "bdev_bcache_run",
    "bdev_bcache_set_cache_mode",
    "bdev_bcache_set_module_options",
    "bdev_bcache_set_options",
    "bdev_bcache_set_set_options",
    "bdev_bcache_stop_set",
    "bdev_bcache_unregister_set",
];

/// The methods that may be called only before the framework starts.
pub const STARTUP_METHODS: &[&str] = &["bdev_bcache_set_module_options"];

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

impl From<SetError> for RpcError {
    fn from(error: SetError) -> RpcError {
        use SetError::*;
        let code = match &error {
            Invalid(_) => INVALID_PARAMS,
            Open(_, OpenError::NotFound) | NoVolume(_) | NoSet(_) => -ENODEV,
            Open(_, OpenError::Busy) | Busy(_) | Elsewhere(..) | Dirty(_) | WouldLose(_) => -EBUSY,
            Open(_, OpenError::Os(errno)) | Register(_, errno) => -errno,
            Io(..) | Stopped(_) => -EIO,
            Occupied(_) | NameTaken(_) => -EEXIST,
            NoSuper(_) | BlockTooSmall { .. } | BlockTooLarge { .. } => -EINVAL,
            Super(..)
            | Journal(..)
            | JournalKey { .. }
            | Prios(..)
            | NoUuids(_)
            | UuidKey(..)
            | Tree(..) => -EILSEQ,
            CacheMissing { .. } | NotInSet { .. } => -ENODEV,
            NoRoom(_) | NoSpace(_) => -ENOSPC,
        };
        RpcError {
            code,
            message: error.to_string(),
        }
    }
}

type Answer = Result<Value, RpcError>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateParams {
    name: String,
    cache_bdev: String,
    backing_bdev: String,
    mode: Option<String>,
    bucket_size_kb: Option<u32>,
    block_size: Option<u32>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    discard_dirty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleOptions {
    examine: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlashParams {
    set: String,
    name: String,
    size_mb: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizeParams {
    name: String,
    size_mb: u64,
    #[serde(default)]
    discard_dirty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DiscardParams {
    name: String,
    #[serde(default)]
    discard_dirty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForgetParams {
    set: String,
    uuid: Option<String>,
    inode: Option<u32>,
    #[serde(default)]
    discard_dirty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterParams {
    bdev_name: String,
    #[serde(default)]
    when_up: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    set: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachParams {
    name: String,
    set: String,
    #[serde(default)]
    discard_dirty: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NameOrSet {
    name: Option<String>,
    set: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeParams {
    name: String,
    mode: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeOptions {
    name: String,
    writeback_running: Option<bool>,
    writeback_percent: Option<u64>,
    io_error_limit: Option<u64>,
    io_disable: Option<bool>,
    #[serde(default)]
    when_up: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetOptions {
    set: String,
    journal_delay_ms: Option<u64>,
    io_error_limit: Option<u64>,
    io_error_halflife: Option<u64>,
    errors: Option<String>,
    copy_gc_enabled: Option<bool>,
    #[serde(default)]
    when_up: bool,
}

fn parse<T: DeserializeOwned>(params: Value) -> Result<T, RpcError> {
    let params = match params {
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    serde_json::from_value(params).map_err(|e| invalid(format!("bad parameters: {e}")))
}

fn mode(name: &str) -> Result<CacheMode, RpcError> {
    CacheMode::from_name(name).ok_or_else(|| {
        invalid(format!(
            "unknown mode {name:?}: writethrough, writeback, writearound and none are possible"
        ))
    })
}

/// Calls a method.
///
/// # Errors
/// What the caller is to be told.
pub async fn call(hub: Rc<Hub>, method: &str, params: Value) -> Answer {
    match method {
        "bdev_bcache_create" => create(&hub, parse(params)?).await,
        "bdev_bcache_set_module_options" => {
            let options: ModuleOptions = parse(params)?;
            if let Some(examine) = options.examine {
                hub.examine_enabled.set(examine);
            }
            Ok(json!(true))
        }
        "bdev_bcache_create_flash_volume" => {
            let p: FlashParams = parse(params)?;
            let name = hub.create_flash(&p.set, &p.name, p.size_mb).await?;
            Ok(json!(name))
        }
        "bdev_bcache_register" => register(&hub, parse(params)?).await,
        "bdev_bcache_attach" => {
            let p: AttachParams = parse(params)?;
            done(hub.attach(&p.name, &p.set, p.discard_dirty).await)
        }
        "bdev_bcache_detach" => done(hub.detach(&parse::<Name>(params)?.name).await),
        "bdev_bcache_delete" => done(hub.delete(&parse::<Name>(params)?.name).await),
        "bdev_bcache_stop_set" => done(hub.stop_set(&parse::<Set>(params)?.set).await),
        "bdev_bcache_unregister_set" => done(hub.unregister_set(&parse::<Set>(params)?.set).await),
        "bdev_bcache_set_cache_mode" => {
            let p: ModeParams = parse(params)?;
            done(hub.set_cache_mode(&p.name, mode(&p.mode)?).await)
        }
        "bdev_bcache_set_options" => set_options(&hub, parse(params)?),
        "bdev_bcache_set_set_options" => set_set_options(&hub, parse(params)?),
        "bdev_bcache_gc" => {
            let set = hub.set(&parse::<Set>(params)?.set)?;
            let swept = gc::sweep(&set.tree).await;
            done(swept.map_err(|_| SetError::Stopped(set.latch.why().unwrap_or_default())))
        }
        "bdev_bcache_flush_start" => done(hub.flush_start(&parse::<Name>(params)?.name)),
        "bdev_bcache_flush_status" => {
            let volume = hub.volume(&parse::<Name>(params)?.name)?;
            Ok(json!({
                "in_progress": volume.flushing.get(),
                "dirty_bytes": volume.dirty_bytes(),
            }))
        }
        "bdev_bcache_get_bdevs" => report::bdevs(&hub, parse::<NameOrSet>(params)?.only_name()?),
        "bdev_bcache_get_sets" => report::sets(&hub, parse::<NameOrSet>(params)?.only_set()?),
        "bdev_bcache_get_stats" => {
            let p: NameOrSet = parse(params)?;
            report::stats(&hub, &p.either()?)
        }
        "bdev_bcache_reset_stats" => {
            let p: NameOrSet = parse(params)?;
            report::reset(&hub, &p.either()?)
        }
        _ => give_up(hub, method, params).await,
    }
}

/// The methods by which data may be given up, each only when told so.
async fn give_up(hub: Rc<Hub>, method: &str, params: Value) -> Answer {
    match method {
        "bdev_bcache_delete_flash_volume" => {
            let p: DiscardParams = parse(params)?;
            done(hub.delete_flash(&p.name, p.discard_dirty).await)
        }
        "bdev_bcache_resize_flash_volume" => {
            let p: ResizeParams = parse(params)?;
            done(hub.resize_flash(&p.name, p.size_mb, p.discard_dirty).await)
        }
        "bdev_bcache_run" => {
            let p: DiscardParams = parse(params)?;
            done(hub.run_alone(&p.name, p.discard_dirty).await)
        }
        "bdev_bcache_forget_volume" => {
            let p: ForgetParams = parse(params)?;
            let uuid = match (&p.uuid, p.inode) {
                (Some(text), None) => {
                    Some(Uuid::parse(text).ok_or_else(|| invalid(format!("{text:?} is no UUID")))?)
                }
                (None, Some(_)) => None,
                _ => return Err(invalid("give either uuid or inode")),
            };
            let inode = p.inode.map(Inode);
            done(hub.forget(&p.set, uuid, inode, p.discard_dirty).await)
        }
        _ => Err(RpcError {
            code: METHOD_NOT_FOUND,
            message: format!("there is no method {method}"),
        }),
    }
}

/// What a method was asked about.
pub(crate) enum About {
    /// A volume.
    Volume(String),
    /// A set.
    Set(String),
}

impl NameOrSet {
    fn only_name(self) -> Result<Option<String>, RpcError> {
        match self.set {
            None => Ok(self.name),
            Some(_) => Err(invalid("bad parameters: unknown field `set`")),
        }
    }

    fn only_set(self) -> Result<Option<String>, RpcError> {
        match self.name {
            None => Ok(self.set),
            Some(_) => Err(invalid("bad parameters: unknown field `name`")),
        }
    }

    fn either(self) -> Result<About, RpcError> {
        match (self.name, self.set) {
            (Some(name), None) => Ok(About::Volume(name)),
            (None, Some(set)) => Ok(About::Set(set)),
            _ => Err(invalid("give either name or set")),
        }
    }
}

fn done(result: Result<(), SetError>) -> Answer {
    result?;
    Ok(json!(true))
}

async fn create(hub: &Rc<Hub>, p: CreateParams) -> Answer {
    let mode = match p.mode {
        Some(name) => Some(mode(&name)?),
        None => None,
    };
    if let Some(kb) = p.bucket_size_kb {
        if !kb.is_power_of_two() || !(4..=16384).contains(&kb) {
            return Err(invalid(format!(
                "bucket_size_kb {kb} cannot be: powers of two from 4 to 16384 are possible"
            )));
        }
    }
    let name = hub
        .create(Create {
            name: p.name,
            cache_bdev: p.cache_bdev,
            backing_bdev: p.backing_bdev,
            mode,
            bucket_size_kb: p.bucket_size_kb,
            block_size: p.block_size,
            may: Permission {
                force: p.force,
                discard_dirty: p.discard_dirty,
            },
        })
        .await?;
    Ok(json!(name))
}

async fn register(hub: &Rc<Hub>, p: RegisterParams) -> Answer {
    if p.when_up {
        return done(hub.register_when_up(&p.bdev_name).await);
    }
    let found = hub.register(&p.bdev_name).await?;
    let kind = if found.is_cache { "cache" } else { "backing" };
    Ok(json!({
        "kind": kind,
        "uuid": found.uuid.to_string(),
        "set": found.set.to_string(),
    }))
}

fn set_options(hub: &Hub, p: VolumeOptions) -> Answer {
    let options = options::VolumeOptions {
        writeback_running: p.writeback_running,
        writeback_percent: p.writeback_percent,
        io_error_limit: p.io_error_limit,
        io_disable: p.io_disable,
    };
    done(hub.set_options(&p.name, options, p.when_up))
}

fn set_set_options(hub: &Hub, p: SetOptions) -> Answer {
    let on_error = |name: String| {
        options::OnError::from_name(&name)
            .ok_or_else(|| invalid(format!("errors {name} cannot be: unregister or panic")))
    };
    let options = options::SetOptions {
        journal_delay_ms: p.journal_delay_ms,
        io_error_limit: p.io_error_limit,
        io_error_halflife: p.io_error_halflife,
        errors: p.errors.map(on_error).transpose()?,
        copy_gc_enabled: p.copy_gc_enabled,
    };
    done(hub.set_set_options(&p.set, options, p.when_up))
}

/// What [`call`] says of one volume with `bdev_bcache_get_bdevs`; null when there is none.
pub fn describe(hub: &Hub, name: &str) -> Value {
    match report::bdevs(hub, Some(name.into())) {
        Ok(Value::Array(mut volumes)) => volumes.pop().unwrap_or_default(),
        _ => Value::Null,
    }
}

/// The calls that bring back what is not on disk, as (method, parameters). They are called before
/// there are bdevs, so each says `when_up`.
pub fn config(hub: &Hub) -> Vec<(&'static str, Value)> {
    let mut calls = Vec::new();
    let later = hub.later();
    if !hub.examine_enabled.get() {
        calls.push(("bdev_bcache_set_module_options", json!({"examine": false})));
        for bdev in report::devices(hub).iter().chain(&later.bdevs) {
            let params = json!({"bdev_name": bdev, "when_up": true});
            calls.push(("bdev_bcache_register", params));
        }
    }
    let now = hub.volumes().into_iter();
    let now = now.filter_map(|v| Some((v.name.clone(), options::VolumeOptions::changed(&v)?)));
    for (name, options) in now.chain(later.volumes) {
        calls.push((
            "bdev_bcache_set_options",
            report::volume_params(&name, options),
        ));
    }
    let now = hub.sets().into_iter();
    let now = now.filter_map(|s| Some((s.set_uuid(), options::SetOptions::changed(&s)?)));
    for (uuid, options) in now.chain(later.sets) {
        calls.push((
            "bdev_bcache_set_set_options",
            report::set_params(uuid, options),
        ));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_missing_parameters_are_refused() {
        let error = parse::<Name>(json!({"name": "a", "nam": 1})).map(|_| ());
        assert_eq!(error.unwrap_err().code, INVALID_PARAMS);
        assert!(parse::<Name>(Value::Null).is_err());
        assert!(parse::<NameOrSet>(Value::Null).is_ok());
        assert!(mode("write-back").is_err());
        assert_eq!(mode("writearound").unwrap(), CacheMode::WriteAround);
    }
}
