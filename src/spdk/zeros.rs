//! Which bdevs read as zeros what was unmapped. UNMAP is advice to most: an AIO file ignores it, a
//! drive may or may not return zeros, a clone of a snapshot shows what the snapshot holds.
//!
//! | module | reads zeros of what was unmapped |
//! |---|---|
//! | `malloc` | always: it clears its memory |
//! | `lvol` | as its store's base bdev does, where the volume has no parent now; a snapshot that is taken of it makes it a clone |
//! | all others | not known: no |

use std::ffi::CStr;

use serde_json::Value;

use super::{json, sys};

/// Modules whose bdevs clear what is unmapped, whatever lies below them.
const CLEARING: &[&str] = &["malloc"];
/// Stores of logical volumes do not lie on each other deeper than this.
const DEPTH_MAX: u32 = 4;

/// Whether a bdev is of a kind that reads as zeros what was unmapped, and is so now.
///
/// # Safety
/// The bdev is there; this is the thread on which bdevs come and go.
pub unsafe fn reads_zeros(bdev: *mut sys::spdk_bdev) -> bool {
    // SAFETY: by contract.
    unsafe { clears(bdev, DEPTH_MAX) }
}

/// # Safety
/// As [`reads_zeros`].
unsafe fn clears(bdev: *mut sys::spdk_bdev, depth: u32) -> bool {
    // SAFETY: by contract; the name of a module stays for ever.
    let (supported, module) = unsafe {
        let module = CStr::from_ptr(sys::bcache_module_name(bdev));
        (sys::bcache_supports(bdev, sys::BCACHE_UNMAP), module)
    };
    match module.to_str() {
        Ok(module) if supported && CLEARING.contains(&module) => true,
        Ok("lvol") if supported && depth > 0 => {
            // SAFETY: by contract.
            let base = unsafe { json::describe(bdev) }.and_then(|info| base_of(&info));
            // SAFETY: the name ends in NUL and is read during the call; a bdev that is found is there
            // until this thread does something else.
            base.is_some_and(|base| unsafe {
                let base = sys::spdk_bdev_get_by_name(base.as_ptr());
                !base.is_null() && clears(base, depth - 1)
            })
        }
        _ => false,
    }
}

/// The base bdev of a logical volume that has no parent, from what its module says of it.
fn base_of(info: &Value) -> Option<std::ffi::CString> {
    let lvol = info.get("lvol")?;
    let is = |what: &str| lvol.get(what).and_then(Value::as_bool).unwrap_or(false);
    if is("clone") || is("esnap_clone") || is("snapshot") {
        return None;
    }
    std::ffi::CString::new(lvol.get("base_bdev")?.as_str()?).ok()
}
