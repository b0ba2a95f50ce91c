//! `bcachectl new-uuid`: gives a clean copy of a backing device a UUID of its own, so that it can be
//! used beside the original. The one command that writes to a device.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use spdk_bcache::check::{Source, read_super};
use spdk_bcache::format::superblock::{BackingState, BackingSuper, SUPER_SECTOR, Super};
use spdk_bcache::rng::Rng;

use super::Outcome;
use super::device::Device;

/// Changes the UUID, once that was confirmed; durable when it returns.
///
/// # Errors
/// The output cannot be written.
pub fn run(path: &Path, yes: bool, out: &mut dyn Write) -> io::Result<Outcome> {
    let device = match Device::open_to_write(path) {
        Ok(device) => device,
        Err(why) => return fail(&why, Outcome::Unreadable),
    };
    let old = match backing_of(&device) {
        Ok(sb) => sb,
        Err((why, outcome)) => return fail(&why, outcome),
    };
    let uuid = match random() {
        Ok(bits) => Rng::new(bits).uuid(),
        Err(error) => return fail(&format!("/dev/urandom: {error}"), Outcome::Unreadable),
    };
    let mut new = old.clone();
    new.become_clone(uuid);
    let name = device.name();
    writeln!(out, "{name}: backing device {}, {}", old.uuid, old.state())?;
    writeln!(out, "  uuid      {} -> {uuid}", old.uuid)?;
    writeln!(out, "  set uuid  {} -> none", old.set_uuid)?;
    writeln!(
        out,
        "  label     removed; give it a name with bdev_bcache_register"
    )?;
    writeln!(out, "  data      stay as they are")?;
    out.flush()?;
    if !yes && !confirmed()? {
        return fail(&format!("{name} was left as it is"), Outcome::Unreadable);
    }
    if let Err(why) = device.write(SUPER_SECTOR.bytes(), &new.encode()) {
        return fail(&format!("{name}: {why}"), Outcome::Unreadable);
    }
    writeln!(out, "{name}: has UUID {uuid} now")?;
    Ok(Outcome::Fine)
}

/// The superblock of a backing device that may get another UUID.
fn backing_of(device: &Device) -> Result<BackingSuper, (String, Outcome)> {
    let name = device.name();
    let found = read_super(device).map_err(|e| (e.to_string(), Outcome::Unreadable))?;
    if let Some(error) = found.error {
        return Err((format!("{name}: {error}"), Outcome::Wrong));
    }
    let sb = match found.says {
        Some(Super::Backing(sb)) => sb,
        Some(Super::Cache(_)) => {
            let why = "is a cache device: only backing devices can get another UUID";
            return Err((format!("{name} {why}"), Outcome::Wrong));
        }
        None => return Err((format!("{name}: no bcache superblock"), Outcome::Wrong)),
    };
    if sb.state() == BackingState::Dirty {
        let why = format!(
            "{name} has dirty data on cache set {}, which knows it by its UUID: only a clean copy \
             can get another; write the original back first, then copy it again",
            sb.set_uuid
        );
        return Err((why, Outcome::Wrong));
    }
    Ok(sb)
}

/// Asks on the terminal.
fn confirmed() -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        eprintln!("bcachectl: this changes the device: say --yes");
        return Ok(false);
    }
    eprint!("Change the device? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn random() -> io::Result<u64> {
    use std::io::Read;
    let mut bits = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(u64::from_ne_bytes(bits))
}

fn fail(why: &str, outcome: Outcome) -> io::Result<Outcome> {
    eprintln!("bcachectl: {why}");
    Ok(outcome)
}
