//! What there is, as JSON.

use std::rc::Rc;

use serde_json::{Value, json};

use super::Answer;
use crate::format::superblock::{BackingState, CacheMode, Super};
use crate::options::{Table, Value as OptionValue};
use crate::set::cache::CacheSet;
use crate::set::hub::Hub;
use crate::set::identity::LeftAlone;
use crate::set::options::{read_set, read_volume};
use crate::set::volume::Volume;
use crate::stats::Counts;
use crate::units::{SECTOR_BYTES, Uuid};

const BYTES: u64 = SECTOR_BYTES as u64;

fn state(volume: &Volume) -> &'static str {
    let Some(backing) = &volume.backing else {
        return "dirty";
    };
    if volume.dirty_bytes() > 0 {
        return "dirty";
    }
    match backing.superblock().state() {
        BackingState::None => "no cache",
        BackingState::Clean => "clean",
        BackingState::Dirty if volume.link.borrow().is_some() => "clean",
        BackingState::Dirty => "dirty",
        BackingState::Stale => "inconsistent",
    }
}

fn options<O: Table>(read: impl Fn(O) -> Option<OptionValue>) -> Value {
    let rows = O::ALL.iter();
    let values = rows.filter_map(|&o| Some((o.row().name.to_string(), read(o)?.to_json())));
    Value::Object(values.collect())
}

/// The dirty bytes of a volume; null where only its set knows, which is not running.
pub fn dirty_bytes(volume: &Volume) -> Value {
    match volume.is_waiting() {
        true => Value::Null,
        false => json!(volume.dirty_bytes()),
    }
}

/// The bdevs that hold sets and volumes, caches first.
pub fn devices(hub: &Hub) -> Vec<String> {
    let caches = hub.sets().into_iter().map(|set| set.disk.name());
    let backing = hub.volumes().into_iter();
    let backing = backing.filter_map(|v| v.backing.as_ref().map(|b| b.disk.name()));
    caches.chain(backing).collect()
}

fn bdev(hub: &Hub, volume: &Volume) -> Value {
    let size_sectors = match (&*volume.shared.borrow(), &volume.backing) {
        (Some(shared), _) => shared.size_sectors(),
        (None, Some(backing)) => backing.volume_sectors(),
        (None, None) => 0,
    };
    let mode = volume.shared.borrow().as_ref().map(|s| s.mode());
    let mode = volume.mode().or(mode).unwrap_or(CacheMode::WriteBack);
    let set = volume.link.borrow().as_ref().map(|l| l.set.set_uuid());
    let set = set.or_else(|| {
        let backing = volume.backing.as_ref()?;
        let uuid = backing.superblock().set_uuid;
        (!uuid.is_nil()).then_some(uuid)
    });
    json!({
        "name": volume.name(),
        "uuid": volume.uuid.to_string(),
        "kind": if volume.backing.is_some() { "cached" } else { "flash" },
        "state": state(volume),
        "cache_mode": mode.name(),
        "running": volume.is_running(),
        "absent": false,
        "backing_bdev": volume.backing.as_ref().map(|b| b.disk.name()),
        "set": set.map(|s| s.to_string()),
        "inode": volume.inode().map(|i| i.0),
        "size_bytes": size_sectors * BYTES,
        "dirty_bytes": dirty_bytes(volume),
        "io_errors": volume.backing.as_ref().map(|b| b.health.errors()),
        "options": options(|o| read_volume(volume, o)),
        "reason": *volume.reason.borrow(),
        "dirty_bytes_beyond_end": hub.dirty_beyond_end(volume),
    })
}

/// A device that examine left alone, in the place of the volume that it would be.
fn left_alone(left: &LeftAlone) -> Value {
    let (kind, mode, state, set) = match &left.superblock {
        Super::Cache(sb) => ("cache", None, None, sb.set_uuid),
        Super::Backing(sb) => {
            let state = match sb.state() {
                BackingState::None => "no cache",
                BackingState::Clean => "clean",
                BackingState::Dirty => "dirty",
                BackingState::Stale => "inconsistent",
            };
            let mode = sb.cache_mode().name();
            ("cached", Some(mode), Some(state), sb.set_uuid)
        }
    };
    json!({
        "name": left.name,
        "uuid": left.uuid().to_string(),
        "kind": kind,
        "state": state,
        "cache_mode": mode,
        "running": false,
        "backing_bdev": left.bdev,
        "set": (!set.is_nil()).then(|| set.to_string()),
        "inode": null,
        "size_bytes": left.size_sectors * BYTES,
        "dirty_bytes": null,
        "io_errors": null,
        "options": {},
        "reason": left.reason,
        "dirty_bytes_beyond_end": left.beyond_sectors * BYTES,
    })
}

/// All volumes, or one.
pub fn bdevs(hub: &Hub, name: Option<&str>) -> Answer {
    let absent = hub.absentees().into_iter();
    let absent = absent.map(|(name, uuid)| absent_bdev(&name, uuid));
    let Some(name) = name else {
        let (volumes, left) = (hub.volumes(), hub.left_alone());
        let volumes = volumes.iter().map(|v| bdev(hub, v));
        let left = left.iter().map(left_alone);
        return Ok(volumes.chain(left).chain(absent).collect());
    };
    match hub.volume(name) {
        Ok(volume) => Ok(json!([bdev(hub, &volume)])),
        Err(error) => match hub.left_alone().iter().find(|left| left.name == name) {
            Some(left) => Ok(json!([left_alone(left)])),
            None => match { absent }.find(|absent| absent["name"] == name) {
                Some(absent) => Ok(json!([absent])),
                None => Err(error.into()),
            },
        },
    }
}

/// A volume of which nothing is known but its name: a start has waited for it in vain.
fn absent_bdev(name: &str, uuid: Option<Uuid>) -> Value {
    let uuid = uuid.map(|uuid| uuid.to_string());
    json!({
        "name": name, "uuid": uuid, "absent": true, "running": false, "kind": null, "state": null,
        "cache_mode": null, "backing_bdev": null, "set": null, "inode": null, "size_bytes": null,
        "dirty_bytes": null, "io_errors": null, "options": {},
    })
}

/// Whose data a set holds, here or not.
fn known_volumes(hub: &Hub, set: &Rc<CacheSet>) -> Value {
    let known = hub.members(set).into_iter().map(|m| {
        json!({
            "uuid": m.uuid.map(|uuid| uuid.to_string()),
            "name": m.name,
            "kind": if m.is_flash { "flash" } else { "cached" },
            "inode": m.inode.0,
            "attached": m.is_attached,
            "dirty_bytes": m.dirty_sectors * BYTES,
        })
    });
    known.collect()
}

fn set(hub: &Hub, set: &Rc<CacheSet>) -> Value {
    let sb = set.superblock();
    let (census, tree) = (set.alloc.census(), set.tree.stats());
    let (free_blocks, blocks) = set.journal.space_blocks();
    let (oldest, open) = set.journal.window();
    let data = census.free + census.clean + census.dirty;
    let available = (census.free + census.clean) * 100 / data.max(1);
    let volumes = hub.volumes_of(set);
    let volumes: Vec<String> = volumes.iter().map(|v| v.name()).collect();
    let health = &set.owner.health;
    let (state, failure) = match (set.latch.why(), health.lost()) {
        (Some(why), _) => ("failed", Some(why)),
        (None, Some(why)) => ("degraded", Some(why)),
        (None, None) => ("running", None),
    };
    json!({
        "set": set.set_uuid().to_string(),
        "state": state,
        "failure": failure,
        "devices": [{
            "bdev_name": set.disk.name(),
            "uuid": sb.uuid.to_string(),
            "index": sb.nr_this_dev,
            "nbuckets": sb.nbuckets,
            "bucket_size_kb": sb.bucket_sectors / 2,
            "block_size": u32::from(sb.block_sectors) * SECTOR_BYTES as u32,
            "buckets": {
                "free": census.free,
                "clean": census.clean,
                "dirty": census.dirty,
                "metadata": census.metadata,
            },
        }],
        "volumes": volumes,
        "known_volumes": known_volumes(hub, set),
        "tree_depth": tree.depth,
        "btree_nodes": tree.nodes,
        "cached_extents": tree.extents,
        "index_bytes": tree.index_bytes,
        "dirty_bytes": set.alloc.dirty_sectors() * BYTES,
        "cache_available_percent": available,
        "written_back_bytes": set.writeback.done_sectors.get() * BYTES,
        "journal": {
            "blocks": blocks,
            "free_blocks": free_blocks,
            "oldest_seq": oldest.0,
            "open_seq": open.0,
        },
        "io_errors": {
            "recent": health.recent(set.owner.set.ios()).round() as u64,
            "reads": health.read_errors.get(),
            "writes": health.write_errors.get(),
        },
        "writeback_failures": set.writeback.failures.get(),
        "options": options(|o| Some(read_set(set, o))),
    })
}

/// All sets, or one.
pub fn sets(hub: &Hub, uuid: Option<&str>) -> Answer {
    let sets = match uuid {
        Some(uuid) => vec![hub.set(uuid)?],
        None => hub.sets(),
    };
    Ok(sets.iter().map(|s| set(hub, s)).collect())
}

fn counts(c: &Counts) -> Value {
    json!({
        "cache_hits": c.cache_hits,
        "cache_misses": c.cache_misses,
        "cache_hit_ratio": c.hit_ratio(),
        "cache_bypass_hits": c.cache_bypass_hits,
        "cache_bypass_misses": c.cache_bypass_misses,
        "cache_miss_collisions": c.cache_miss_collisions,
        "bypassed_bytes": c.bypassed_sectors * BYTES,
        "reads": c.reads,
        "writes": c.writes,
        "read_bytes": c.read_sectors * BYTES,
        "written_bytes": c.written_sectors * BYTES,
        "flushes": c.flushes,
    })
}

/// The statistics of a volume, or, without a name, of a set.
pub fn stats(hub: &Hub, name: Option<&str>, set: &str) -> Answer {
    let spans = match name {
        Some(name) => hub.volume(name)?.spans(),
        None => hub.set(set)?.spans(),
    };
    Ok(json!({
        "total": counts(&spans.total),
        "five_minute": counts(&spans.five_minute),
        "hour": counts(&spans.hour),
        "day": counts(&spans.day),
    }))
}

/// Starts the statistics of a volume, or of a set and all its volumes, from zero.
pub fn reset(hub: &Hub, name: Option<&str>, set: &str) -> Answer {
    match name {
        Some(name) => hub.volume(name)?.reset_spans(),
        None => {
            let set = hub.set(set)?;
            set.reset_spans();
            hub.volumes_of(&set).iter().for_each(|v| v.reset_spans());
        }
    }
    Ok(json!(true))
}
