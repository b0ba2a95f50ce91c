//! The methods that the operator calls, with parameters drawn from what there is.
//!
//! [`DRAWN`] has every method of the product's table but those in [`NOT_DRAWN`]; a test holds the two
//! against it. Names, sets and devices are mostly right and sometimes not: a call that cannot be is
//! refused, and changes nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::plan::Feature;
use super::{Call, Floor, Known, World, text};
use crate::rpc::{self, RpcError};

/// Parameters of a call; none where it makes no sense now.
type Draw = fn(&World) -> Option<Value>;

/// A method, how often it is drawn beside the others, the feature that it needs, and its parameters.
pub struct Drawn {
    /// Its name.
    pub method: &'static str,
    /// Its weight.
    pub weight: u64,
    feature: Option<Feature>,
    draw: Draw,
}

const fn drawn(method: &'static str, weight: u64, feature: Option<Feature>, draw: Draw) -> Drawn {
    Drawn {
        method,
        weight,
        feature,
        draw,
    }
}

use Feature::{Attach, Blanks, Flash, Jobs, Lifecycle, Modes, Names, Options, Stacks};

/// The methods that are drawn.
pub const DRAWN: &[Drawn] = &[
    drawn("bdev_bcache_attach", 10, Some(Attach), attach),
    drawn("bdev_bcache_create", 6, None, create),
    drawn(
        "bdev_bcache_create_flash_volume",
        3,
        Some(Flash),
        create_flash,
    ),
    drawn("bdev_bcache_delete", 3, Some(Lifecycle), of_volume),
    drawn(
        "bdev_bcache_delete_flash_volume",
        1,
        Some(Flash),
        discard_flash,
    ),
    drawn("bdev_bcache_detach", 5, Some(Attach), of_volume),
    drawn("bdev_bcache_detach_cancel", 1, Some(Attach), of_volume),
    drawn("bdev_bcache_detach_start", 4, Some(Attach), of_volume),
    drawn("bdev_bcache_detach_status", 1, Some(Attach), of_volume),
    drawn("bdev_bcache_flush_cancel", 1, Some(Jobs), of_volume),
    drawn("bdev_bcache_flush_start", 4, Some(Jobs), of_volume),
    drawn("bdev_bcache_flush_status", 1, Some(Jobs), of_volume),
    drawn("bdev_bcache_forget_volume", 1, Some(Attach), forget),
    drawn("bdev_bcache_gc", 3, Some(Jobs), of_set),
    drawn("bdev_bcache_get_stats", 1, None, of_volume),
    drawn("bdev_bcache_register", 8, None, register),
    drawn("bdev_bcache_rename", 3, Some(Names), rename),
    drawn("bdev_bcache_reset_stats", 1, None, of_volume),
    drawn(
        "bdev_bcache_resize_flash_volume",
        2,
        Some(Flash),
        resize_flash,
    ),
    drawn("bdev_bcache_run", 3, None, run),
    drawn("bdev_bcache_set_cache_mode", 8, Some(Modes), mode),
    drawn("bdev_bcache_set_options", 4, Some(Options), options),
    drawn("bdev_bcache_set_set_options", 3, Some(Options), set_options),
    drawn("bdev_bcache_stop_set", 3, Some(Lifecycle), of_set),
    drawn("bdev_bcache_unregister_set", 2, Some(Attach), of_set),
    drawn("bdev_bcache_unregister_set_cancel", 1, Some(Attach), of_set),
    drawn("bdev_bcache_unregister_set_start", 1, Some(Attach), of_set),
    drawn("bdev_bcache_unregister_set_status", 1, Some(Attach), of_set),
    drawn("bdev_bcache_wait_for_volume", 1, Some(Lifecycle), of_volume),
];

/// Those that are not: lists that the world takes at every step, and what only a start can set.
pub const NOT_DRAWN: &[&str] = &[
    "bdev_bcache_get_bdevs",
    "bdev_bcache_get_sets",
    "bdev_bcache_set_module_options",
];

/// What a call answers whose device or set has failed.
const EIO: i32 = 5;

/// Sectors that a volume must have to carry another one.
const UPPER_SECTORS: u64 = 4096;

/// Names of volumes.
const NAMES: [&str; 6] = ["Vol0", "Vol1", "Vol2", "New0", "New1", "Fla0"];

/// Often the volume of the call before: what is under way there meets the next call.
fn name(world: &World) -> String {
    if let Some(focus) = world.focus.as_ref().filter(|_| world.chance(3)) {
        return focus.clone();
    }
    let listed: Vec<String> = world.list.iter().map(|v| v.name.clone()).collect();
    match listed.is_empty() || world.chance(12) {
        true => world.any(&NAMES).into(),
        false => world.any(&listed),
    }
}

fn set(world: &World) -> Option<String> {
    let sets: Vec<String> = world
        .fasts()
        .into_iter()
        .filter_map(|d| world.set_on(&world.bdev(d)))
        .collect();
    (!sets.is_empty()).then(|| world.any(&sets))
}

fn of_volume(world: &World) -> Option<Value> {
    Some(json!({"name": name(world)}))
}

fn of_set(world: &World) -> Option<Value> {
    Some(json!({"set": set(world)?}))
}

fn discards(world: &World) -> bool {
    world.plan.has(Feature::GiveUps) && world.chance(3)
}

fn attach(world: &World) -> Option<Value> {
    let mut params = json!({"name": name(world), "set": set(world)?});
    if discards(world) {
        params["discard_dirty"] = json!(true);
    }
    Some(params)
}

fn create(world: &World) -> Option<Value> {
    if world.plan.has(Stacks) && world.chance(3) {
        return upper(world);
    }
    let fast = world.any(&world.fasts());
    let slow = slow(world);
    Some(create_of(world, world.any(&NAMES), fast, slow))
}

/// A volume on one that is shown and carries none; never on one that lies on another.
pub(super) fn upper(world: &World) -> Option<Value> {
    let carries = |i: usize| {
        let mut known = world.known.iter();
        known.any(|k| k.floor == Floor::Upper(i))
    };
    let free = (0..world.known.len()).filter(|&i| {
        let known = &world.known[i];
        let may = known.device.is_some() && !known.gone && !carries(i);
        may && world
            .listed(i)
            .is_some_and(|v| v.running && v.sectors >= UPPER_SECTORS)
    });
    let free: Vec<usize> = free.collect();
    let create = |call: &Call| call.method == "bdev_bcache_create";
    if free.is_empty() || world.calls.iter().any(create) {
        return None;
    }
    let lower = world.listed(world.any(&free))?;
    let others = world.fasts().into_iter();
    let others: Vec<usize> = others
        .filter(|&d| world.set_on(&world.bdev(d)) != lower.set)
        .collect();
    // Now and then of the lower one's own set, which is refused.
    let fast = match others.is_empty() || world.chance(8) {
        true => world.any(&world.fasts()),
        false => world.any(&others),
    };
    let mut params = pair_of(world, world.any(&["Top0", "Top1"]), fast, fast);
    params["backing_bdev"] = json!(lower.name);
    params["mode"] = json!(any_mode(world));
    params["force"] = json!(true);
    Some(params)
}

fn slow(world: &World) -> usize {
    let (from, to) = (world.plan.fast.len(), world.devices.len());
    let mut slow = from + world.rng.below((to - from) as u64) as usize;
    if world.plan.has(Blanks) && world.chance(2) {
        slow = to - 1 - world.rng.below(world.plan.blanks() as u64) as usize;
    }
    slow
}

/// What a volume of two devices must be made with.
pub(super) fn pair_of(world: &World, name: &str, fast: usize, slow: usize) -> Value {
    json!({
        "name": name, "cache_bdev": world.bdev(fast), "backing_bdev": world.bdev(slow),
        "bucket_size_kb": world.plan.fast[fast].bucket_kb,
        "block_size": world.plan.block_sectors * 512,
    })
}

fn create_of(world: &World, name: &str, fast: usize, slow: usize) -> Value {
    let mut params = pair_of(world, name, fast, slow);
    if world.chance(3) {
        params["mode"] = json!(any_mode(world));
    }
    if world.chance(8) {
        params["force"] = json!(true);
    }
    params
}

pub(super) fn any_mode(world: &World) -> &'static str {
    match world.plan.has(Modes) {
        true => world.any(&[
            "writeback",
            "writeback",
            "writethrough",
            "writearound",
            "none",
        ]),
        false => "writeback",
    }
}

fn create_flash(world: &World) -> Option<Value> {
    let flash = world.known.iter().filter(|k| k.device.is_none() && !k.gone);
    if flash.count() > 2 {
        return None;
    }
    let name = world.any(&["Fla0", "Fla1", "New0"]);
    Some(json!({"set": set(world)?, "name": name, "size_mb": 1 + world.rng.below(3)}))
}

/// A flash volume that nothing else is called for.
fn flash(world: &World) -> Option<String> {
    let flash = world.list.iter().filter(|v| v.kind == "flash" && v.running);
    let free = flash.filter(|v| !world.calls.iter().any(|call| call.names(&v.name)));
    let names: Vec<String> = free.map(|v| v.name.clone()).collect();
    (!names.is_empty()).then(|| world.any(&names))
}

fn discard_flash(world: &World) -> Option<Value> {
    Some(json!({"name": flash(world)?, "discard_dirty": world.chance(2)}))
}

fn resize_flash(world: &World) -> Option<Value> {
    let size_mb = 1 + world.rng.below(4);
    Some(json!({"name": flash(world)?, "size_mb": size_mb, "discard_dirty": world.chance(2)}))
}

fn forget(world: &World) -> Option<Value> {
    let known: Vec<&Known> = world.known.iter().filter(|k| k.device.is_some()).collect();
    if known.is_empty() {
        return None;
    }
    let uuid = &world.rng.any(&known).uuid;
    Some(json!({"set": set(world)?, "uuid": uuid, "discard_dirty": discards(world)}))
}

fn register(world: &World) -> Option<Value> {
    let d = world.rng.below(world.devices.len() as u64) as usize;
    let mut params = json!({"bdev_name": world.bdev(d)});
    let lower = |k: &&Known| k.floor == Floor::Lower;
    if world.known.iter().any(|k| lower(&k)) && world.chance(3) {
        return Some(json!({"bdev_name": name(world)}));
    }
    if world.plan.has(Names) && world.chance(8) {
        params["name"] = json!(world.any(&NAMES));
    } else if world.chance(8) {
        params["when_up"] = json!(true);
    }
    Some(params)
}

fn rename(world: &World) -> Option<Value> {
    Some(json!({"name": name(world), "new_name": world.any(&NAMES)}))
}

fn run(world: &World) -> Option<Value> {
    let mut params = json!({"name": name(world)});
    if discards(world) {
        params["discard_dirty"] = json!(true);
    }
    if world.plan.has(Feature::Shrinks) && world.chance(2) {
        params["accept_size"] = json!(true);
    }
    Some(params)
}

fn mode(world: &World) -> Option<Value> {
    Some(json!({"name": name(world), "mode": any_mode(world)}))
}

fn options(world: &World) -> Option<Value> {
    let (option, value) = match world.rng.below(6) {
        0 => ("writeback_running", json!(world.chance(2))),
        1 => ("writeback_percent", json!(world.any(&[0, 1, 10, 40]))),
        2 => ("io_error_limit", json!(world.any(&[1, 4, 64, 100_000]))),
        3 => (
            "stop_when_cache_set_failed",
            json!(world.any(&["auto", "always"])),
        ),
        4 => ("cache_missing_io", json!(world.any(&["wait", "fail"]))),
        _ => (
            "cache_missing_timeout_s",
            json!(world.any(&[0, 1, 20, 600])),
        ),
    };
    Some(json!({"name": name(world), option: value}))
}

fn set_options(world: &World) -> Option<Value> {
    let (option, value) = match world.rng.below(4) {
        0 => ("journal_delay_ms", json!(world.any(&[1, 10, 100, 5_000]))),
        1 => ("io_error_limit", json!(world.any(&[1, 8, 100_000]))),
        2 => ("io_error_halflife", json!(world.any(&[0, 100, 10_000]))),
        _ => ("copy_gc_enabled", json!(world.chance(2))),
    };
    Some(json!({"set": set(world)?, option: value}))
}

/// Where all devices do what they should, no call ends as if one did not, nor does a job of which one
/// is asked.
fn has_no_failure(answer: &Result<Value, RpcError>) -> Result<(), String> {
    let failure = match answer {
        Err(error) if error.code == -EIO => error.message.clone(),
        Err(_) => return Ok(()),
        Ok(status) => text(&status["failure"]).unwrap_or_default(),
    };
    // A set may be stopped under it, and a job that was refused has not failed.
    let is_stopped = failure.contains("has stopped");
    let failed = answer.is_err() || failure.contains("write-back failed");
    match failed && !is_stopped {
        true => Err(failure),
        false => Ok(()),
    }
}

impl World {
    /// Calls a method.
    pub(super) fn draw_call(&mut self) {
        let on = |d: &Drawn| d.feature.is_none_or(|feature| self.plan.has(feature));
        let all = DRAWN.iter().zip(&self.plan.tastes);
        let choices: Vec<(&Drawn, u64)> = all
            .filter(|(d, _)| on(d))
            .map(|(d, taste)| (d, d.weight * taste))
            .collect();
        let sum: u64 = choices.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.below(sum);
        let chosen = choices.into_iter().find(|&(_, weight)| {
            let hit = at < weight;
            at = at.saturating_sub(weight);
            hit
        });
        let (chosen, _) = chosen.expect("the weights sum up");
        if let Some(params) = (chosen.draw)(self) {
            self.call(chosen.method, params);
        }
    }

    /// Begins a call.
    pub(super) fn call(&mut self, method: &'static str, params: Value) {
        if !self.may_call(method, &params) {
            return;
        }
        self.note(|| format!("{method} {params}"));
        self.before(method, &params);
        self.focus = text(&params["name"]).or(self.focus.take());
        let call = rpc::call(self.m().hub.clone(), method, params.clone());
        let call = Call {
            answer: self.m().start(call),
            began_us: self.now(),
            uuid: self.named_uuid(&params),
            absent: self.absent_for(&params),
            method,
            params,
        };
        self.calls.push(call);
    }

    /// Where a volume shrinks, hosts have stopped to use it.
    fn may_call(&self, method: &str, params: &Value) -> bool {
        let volume = params["name"]
            .as_str()
            .and_then(|name| self.volume_named(name));
        method != "bdev_bcache_resize_flash_volume"
            || volume.is_some_and(|v| !self.ops.values().any(|op| op.io.volume == v))
    }

    fn named_uuid(&self, params: &Value) -> Option<String> {
        let volume = self.volume_named(params["name"].as_str()?)?;
        Some(self.known[volume].uuid.clone())
    }

    fn volume_named(&self, name: &str) -> Option<usize> {
        let listed = self.list.iter().find(|v| v.name == name)?;
        self.known.iter().position(|k| k.uuid == listed.uuid)
    }

    /// What may be so from the beginning of a call on.
    pub(super) fn before(&mut self, method: &str, params: &Value) {
        let name = params["name"].as_str();
        let volume = name.and_then(|name| self.volume_named(name));
        match method {
            "bdev_bcache_resize_flash_volume" => {
                let (Some(v), Some(size_mb)) = (volume, params["size_mb"].as_u64()) else {
                    return;
                };
                let sectors = size_mb * 2048;
                if sectors < self.oracle.sectors(v) {
                    self.known[v].limit = Some(sectors);
                    if Self::is_true(&params["discard_dirty"]) {
                        self.oracle.give_up(v, sectors);
                    }
                }
            }
            "bdev_bcache_create" => {
                let backing = params["backing_bdev"].as_str();
                if let Some(lower) = backing.and_then(|name| self.volume_named(name)) {
                    self.is_left_alone(lower);
                }
            }
            "bdev_bcache_delete_flash_volume" => {
                volume
                    .into_iter()
                    .for_each(|v| self.known[v].in_doubt = true);
            }
            _ if Self::is_true(&params["discard_dirty"]) => {
                let of = text(&params["uuid"]);
                let by_uuid = of.and_then(|uuid| self.known.iter().position(|k| k.uuid == uuid));
                for v in volume.into_iter().chain(by_uuid) {
                    self.known[v].given_up = true;
                    self.oracle.give_up(v, 0);
                }
            }
            "bdev_bcache_forget_volume" => {
                // Without dirty data there: only the volume's membership goes.
                let of = text(&params["uuid"]);
                let known = self
                    .known
                    .iter_mut()
                    .filter(|k| Some(&k.uuid) == of.as_ref());
                known.for_each(|known| known.given_up = true);
            }
            _ => {}
        }
    }

    /// A volume is to carry another one: what hosts have under way there may see that.
    fn is_left_alone(&mut self, lower: usize) {
        self.known[lower].floor = Floor::Lower;
        let ops = self.ops.values_mut();
        ops.filter(|op| op.io.volume == lower)
            .for_each(super::load::Op::is_lost);
    }

    /// The same, for a call that makes a volume of a blank device; none for another.
    fn absent_for(&self, params: &Value) -> BTreeSet<String> {
        let device = params["backing_bdev"].as_str();
        let device = device.and_then(|bdev| self.device(bdev));
        match device.is_some() && self.known.iter().all(|k| k.device != device) {
            true => self.absent(),
            false => BTreeSet::new(),
        }
    }

    /// The absent volumes of which running sets have dirty data, by name.
    fn absent(&self) -> BTreeSet<String> {
        let members = |set: &Value| set["known_volumes"].as_array().cloned().unwrap_or_default();
        let all = self.sets.iter().flat_map(members);
        let absent = all.filter(|member| {
            let uuid = text(&member["uuid"]);
            let shown = self.list.iter().any(|v| Some(&v.uuid) == uuid.as_ref());
            !shown && member["attached"] == false && member["dirty_bytes"].as_u64() > Some(0)
        });
        absent.filter_map(|member| text(&member["name"])).collect()
    }

    /// Takes the answers to calls.
    pub(super) fn take_calls(&mut self) -> Result<(), String> {
        let calls = std::mem::take(&mut self.calls);
        let is_alone = calls.len() == 1;
        for call in calls {
            let answer = call.answer.borrow_mut().take();
            match answer {
                None => self.calls.push(call),
                Some(answer) => {
                    if is_alone && answer.is_ok() && call.method == "bdev_bcache_delete" {
                        self.is_released(&call)?;
                    }
                    self.called(&call, &answer)?;
                }
            }
        }
        Ok(())
    }

    fn called(&mut self, call: &Call, answer: &Result<Value, RpcError>) -> Result<(), String> {
        let took = self.now() - call.began_us;
        self.note(|| format!("{}: {answer:?} after {took} us", call.describe()));
        let ok = answer.is_ok();
        self.broken_off |= call.drops() && matches!(answer, Err(error) if error.code == -EIO);
        if !self.disturbed {
            has_no_failure(answer).map_err(|why| format!("{}: {why}", call.describe()))?;
        }
        self.met.note(match answer {
            Ok(_) => format!("{}: done", call.method),
            Err(error) => format!("{}: {}", call.method, error.code),
        });
        let name = text(&call.params["name"]).unwrap_or_default();
        match call.method {
            "bdev_bcache_gc" if ok => self.met.note("gc was asked for"),
            "bdev_bcache_create" if ok => {
                let backing = text(&call.params["backing_bdev"]).unwrap_or_default();
                let shown =
                    |v: &&super::Listed| v.name == name && v.backing.as_ref() == Some(&backing);
                let absent = self.absent();
                let own = self.list.iter().find(shown);
                if own.is_some() && call.absent.contains(&name) && absent.contains(&name) {
                    return Err(format!(
                        "{name} was made, and is an absent volume of which a set has dirty data"
                    ));
                }
            }
            "bdev_bcache_delete_flash_volume" => self.flash_deleted(call.uuid.as_deref(), ok),
            "bdev_bcache_resize_flash_volume" => {
                self.flash_resized(call.uuid.as_deref(), &call.params, ok)
            }
            _ => {}
        }
        Ok(())
    }

    /// A volume whose delete is answered holds its device no more, unless it is to come up again.
    fn is_released(&mut self, call: &Call) -> Result<(), String> {
        let of = |known: &&Known| Some(&known.uuid) == call.uuid.as_ref();
        let device = self.known.iter().find(of).and_then(|known| known.device);
        let Some(device) = device.map(|d| self.bdev(d)) else {
            return Ok(());
        };
        let shown = self
            .list
            .iter()
            .any(|v| v.running && v.backing.as_ref() == Some(&device));
        if !shown && !self.disturbed && self.m().host.holds_open(&device) {
            return Err(format!("{device} is held after {}", call.describe()));
        }
        Ok(())
    }

    fn flash_deleted(&mut self, uuid: Option<&str>, ok: bool) {
        let mut known = self.known.iter_mut();
        if let Some(known) = known.find(|k| Some(&*k.uuid) == uuid) {
            known.gone |= ok;
            let shown = self.list.iter().any(|v| v.uuid == known.uuid && v.running);
            known.in_doubt = !ok && !shown;
        }
    }

    fn flash_resized(&mut self, uuid: Option<&str>, params: &Value, ok: bool) {
        let Some(v) = self.known.iter().position(|k| Some(&*k.uuid) == uuid) else {
            return;
        };
        let sectors = params["size_mb"].as_u64().unwrap_or(0) * 2048;
        if ok {
            self.oracle.resize(v, sectors);
        }
        self.known[v].limit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::methods::METHODS;

    #[test]
    fn every_method_is_drawn_or_named_as_one_that_is_not() {
        let drawn = DRAWN.iter().map(|d| d.method);
        let mut listed: Vec<&str> = drawn.chain(NOT_DRAWN.iter().copied()).collect();
        listed.sort_unstable();
        let methods: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        assert_eq!(listed, methods);
    }
}
