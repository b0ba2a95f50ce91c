//! JSON between SPDK and serde_json.
//!
//! Both directions go through text: SPDK writes a parsed value out again, and takes text for a
//! value. So no layout of a token is known here, and configuration is not worth more.

use std::ffi::{CString, c_void};

use serde_json::Value;

use super::sys;
use crate::rpc::{RpcError, params};

unsafe extern "C" fn collect(text: *mut c_void, data: *const c_void, bytes: usize) -> i32 {
    // SAFETY: `text` is the Vec of `collected`, which nobody else uses during the call; SPDK passes
    // `bytes` readable bytes.
    unsafe {
        let text = &mut *text.cast::<Vec<u8>>();
        text.extend_from_slice(std::slice::from_raw_parts(data.cast::<u8>(), bytes));
    }
    0
}

/// What a bdev's module says of it, as bdev_get_bdevs shows it: an object by the kind of bdev.
///
/// # Safety
/// The bdev is there, and this is a thread on which its module may be asked.
pub unsafe fn describe(bdev: *mut sys::spdk_bdev) -> Option<Value> {
    let mut text: Vec<u8> = Vec::new();
    // SAFETY: `text` outlives the writing, which ends with spdk_json_write_end; the rest is this
    // function's contract.
    let failed = unsafe {
        let w = sys::spdk_json_write_begin(Some(collect), (&raw mut text).cast(), 0);
        if w.is_null() {
            return None;
        }
        sys::spdk_json_write_object_begin(w);
        let described = sys::spdk_bdev_dump_info_json(bdev, w);
        sys::spdk_json_write_object_end(w);
        sys::spdk_json_write_end(w) != 0 || described != 0
    };
    let read = serde_json::from_slice(&text).ok();
    read.filter(|_| !failed)
}

/// The value that SPDK parsed; null for a null pointer, as when a request has no parameters.
///
/// # Errors
/// It cannot be written out, or is no good as parameters.
///
/// # Safety
/// `value` is null or points to a value with all that belongs to it, as SPDK hands it out.
pub unsafe fn read(value: *const sys::spdk_json_val) -> Result<Value, RpcError> {
    if value.is_null() {
        return Ok(Value::Null);
    }
    // SAFETY: `value` is valid by this function's contract.
    let text = collected(|w| unsafe { sys::spdk_json_write_val(w, value) == 0 });
    let text = text.ok_or_else(|| params::unreadable("SPDK cannot write them out"))?;
    params::read(&text)
}

/// What a bdev's module tells about it; null where there is no such bdev.
pub fn info_of(bdev: &str) -> Value {
    let Ok(name) = CString::new(bdev) else {
        return Value::Null;
    };
    // SAFETY: the name ends in NUL and is read during the call; `w` is open and empty.
    let text = collected(|w| unsafe { sys::bcache_dump_info(name.as_ptr(), w) });
    text.and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// The text that `write` writes; `None` where it fails.
fn collected(write: impl FnOnce(*mut sys::spdk_json_write_ctx) -> bool) -> Option<Vec<u8>> {
    let mut text: Vec<u8> = Vec::new();
    // SAFETY: `text` outlives the writing, which ends with spdk_json_write_end.
    let done = unsafe {
        let w = sys::spdk_json_write_begin(Some(collect), (&raw mut text).cast(), 0);
        if w.is_null() {
            return None;
        }
        let written = write(w);
        sys::spdk_json_write_end(w) == 0 && written
    };
    done.then_some(text)
}

/// Writes a value where SPDK expects one.
///
/// # Safety
/// `w` is a write context that is open and expects a value.
pub unsafe fn write(w: *mut sys::spdk_json_write_ctx, value: &Value) {
    let text = value.to_string();
    // SAFETY: `text` is read during the call only; `w` by this function's contract. A failure is
    // remembered in `w` and reported by SPDK when the writing ends.
    unsafe { sys::spdk_json_write_val_raw(w, text.as_ptr().cast(), text.len()) };
}
