//! What each method does: its parameters are given to the [`Hub`], whose answer becomes the result.

use std::rc::Rc;

use serde_json::json;

use super::params::Args;
use super::{Answer, invalid, report};
use crate::format::superblock::CacheMode;
use crate::set::create::Create;
use crate::set::error::SetError;
use crate::set::format::Permission;
use crate::set::hub::Hub;
use crate::set::register::RegisterAs;
use crate::units::{Inode, Uuid};

fn done(result: Result<(), SetError>) -> Answer {
    result?;
    Ok(json!(true))
}

fn mode(args: &Args) -> Option<CacheMode> {
    args.maybe_text("mode").and_then(CacheMode::from_name)
}

pub(super) async fn attach(hub: Rc<Hub>, args: Args) -> Answer {
    let (name, set) = (args.text("name"), args.text("set"));
    done(hub.attach(name, set, args.is_set("discard_dirty")).await)
}

pub(super) async fn create(hub: Rc<Hub>, args: Args) -> Answer {
    let size = |name| args.number(name).map(|n| n as u32);
    let name = hub
        .create(Create {
            name: args.text("name").into(),
            cache_bdev: args.text("cache_bdev").into(),
            backing_bdev: args.text("backing_bdev").into(),
            mode: mode(&args),
            bucket_size_kb: size("bucket_size_kb"),
            block_size: size("block_size"),
            may: Permission {
                force: args.is_set("force"),
                discard_dirty: args.is_set("discard_dirty"),
            },
        })
        .await?;
    Ok(json!(name))
}

pub(super) async fn create_flash(hub: Rc<Hub>, args: Args) -> Answer {
    let size_mb = args.number("size_mb").unwrap_or_default();
    let made = hub.create_flash(args.text("set"), args.text("name"), size_mb);
    Ok(json!(made.await?))
}

pub(super) async fn delete(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.delete(args.text("name")).await)
}

pub(super) async fn delete_flash(hub: Rc<Hub>, args: Args) -> Answer {
    let discard_dirty = args.is_set("discard_dirty");
    done(hub.delete_flash(args.text("name"), discard_dirty).await)
}

pub(super) async fn detach(hub: Rc<Hub>, args: Args) -> Answer {
    let discard_dirty = args.is_set("discard_dirty");
    done(hub.detach(args.text("name"), discard_dirty).await)
}

pub(super) async fn detach_start(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.detach_start(args.text("name"), args.is_set("discard_dirty")))
}

pub(super) async fn detach_status(hub: Rc<Hub>, args: Args) -> Answer {
    let volume = hub.volume(args.text("name"))?;
    Ok(json!({
        "in_progress": volume.detaching.is_running(),
        "failure": volume.detaching.failure(),
        "attached": volume.link.borrow().is_some(),
        "dirty_bytes": volume.dirty_bytes(),
    }))
}

pub(super) async fn detach_cancel(hub: Rc<Hub>, args: Args) -> Answer {
    hub.volume(args.text("name"))?.detaching.cancel();
    Ok(json!(true))
}

pub(super) async fn flush_cancel(hub: Rc<Hub>, args: Args) -> Answer {
    hub.volume(args.text("name"))?.flushing.cancel();
    Ok(json!(true))
}

pub(super) async fn unregister_start(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.unregister_start(args.text("set")))
}

pub(super) async fn unregister_status(hub: Rc<Hub>, args: Args) -> Answer {
    let set = hub.set(args.text("set"))?;
    let volumes = hub.volumes_of(&set);
    let left = volumes.iter().filter(|volume| volume.backing.is_some());
    Ok(json!({
        "in_progress": set.unregistering.is_running(),
        "failure": set.unregistering.failure(),
        "volumes": left.clone().map(|volume| volume.name()).collect::<Vec<_>>(),
        "dirty_bytes": left.map(|volume| volume.dirty_bytes()).sum::<u64>(),
    }))
}

pub(super) async fn unregister_cancel(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.unregister_cancel(args.text("set")))
}

pub(super) async fn wait_for_volume(hub: Rc<Hub>, args: Args) -> Answer {
    let uuid = args.maybe_text("uuid").and_then(Uuid::parse);
    hub.wait_for(args.text("name"), uuid).await;
    Ok(json!(true))
}

pub(super) async fn flush_start(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.flush_start(args.text("name")))
}

pub(super) async fn flush_status(hub: Rc<Hub>, args: Args) -> Answer {
    let volume = hub.volume(args.text("name"))?;
    Ok(json!({
        "in_progress": volume.flushing.is_running(),
        "failure": volume.flushing.failure(),
        "dirty_bytes": report::dirty_bytes(&volume),
    }))
}

pub(super) async fn forget(hub: Rc<Hub>, args: Args) -> Answer {
    let uuid = args.maybe_text("uuid").and_then(Uuid::parse);
    let inode = args.number("inode").map(|inode| Inode(inode as u32));
    let discard_dirty = args.is_set("discard_dirty");
    done(
        hub.forget(args.text("set"), uuid, inode, discard_dirty)
            .await,
    )
}

pub(super) async fn gc(hub: Rc<Hub>, args: Args) -> Answer {
    let set = hub.set(args.text("set"))?;
    let swept = crate::gc::sweep(&set.tree).await;
    done(swept.map_err(|_| SetError::Stopped(set.latch.why().unwrap_or_default())))
}

pub(super) async fn get_bdevs(hub: Rc<Hub>, args: Args) -> Answer {
    report::bdevs(&hub, args.maybe_text("name"))
}

pub(super) async fn get_sets(hub: Rc<Hub>, args: Args) -> Answer {
    report::sets(&hub, args.maybe_text("set"))
}

pub(super) async fn get_stats(hub: Rc<Hub>, args: Args) -> Answer {
    report::stats(&hub, args.maybe_text("name"), args.text("set"))
}

pub(super) async fn register(hub: Rc<Hub>, args: Args) -> Answer {
    let bdev = args.text("bdev_name");
    if args.is_set("when_up") {
        if args.maybe_text("name").is_some() || args.is_set("new_uuid") {
            return Err(invalid("name and new_uuid cannot be given with when_up"));
        }
        return done(hub.register_when_up(bdev).await);
    }
    let how = RegisterAs {
        name: args.maybe_text("name").map(str::to_string),
        new_uuid: args.is_set("new_uuid"),
        accept_size: false,
    };
    let found = hub.register_as(bdev, &how).await?;
    let kind = if found.is_cache { "cache" } else { "backing" };
    Ok(json!({
        "kind": kind,
        "uuid": found.uuid.to_string(),
        "set": (!found.set.is_nil()).then(|| found.set.to_string()),
    }))
}

pub(super) async fn rename(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.rename(args.text("name"), args.text("new_name")).await)
}

pub(super) async fn reset_stats(hub: Rc<Hub>, args: Args) -> Answer {
    report::reset(&hub, args.maybe_text("name"), args.text("set"))
}

pub(super) async fn resize_flash(hub: Rc<Hub>, args: Args) -> Answer {
    let size_mb = args.number("size_mb").unwrap_or_default();
    let discard_dirty = args.is_set("discard_dirty");
    let name = args.text("name");
    done(hub.resize_flash(name, size_mb, discard_dirty).await)
}

pub(super) async fn run(hub: Rc<Hub>, args: Args) -> Answer {
    let (discard_dirty, accept_size) = (args.is_set("discard_dirty"), args.is_set("accept_size"));
    let done_so = hub.run(args.text("name"), discard_dirty, accept_size);
    done(done_so.await)
}

pub(super) async fn set_cache_mode(hub: Rc<Hub>, args: Args) -> Answer {
    let mode = mode(&args).ok_or_else(|| invalid("mode is missing"))?;
    done(hub.set_cache_mode(args.text("name"), mode).await)
}

pub(super) async fn set_module_options(hub: Rc<Hub>, args: Args) -> Answer {
    hub.set_module_options(&args.options());
    Ok(json!(true))
}

pub(super) async fn set_options(hub: Rc<Hub>, args: Args) -> Answer {
    let (options, when_up) = (args.options(), args.is_set("when_up"));
    done(hub.set_options(args.text("name"), options, when_up))
}

pub(super) async fn set_set_options(hub: Rc<Hub>, args: Args) -> Answer {
    let (options, when_up) = (args.options(), args.is_set("when_up"));
    done(hub.set_set_options(args.text("set"), options, when_up))
}

pub(super) async fn stop_set(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.stop_set(args.text("set")).await)
}

pub(super) async fn unregister_set(hub: Rc<Hub>, args: Args) -> Answer {
    done(hub.unregister_set(args.text("set")).await)
}
