//! The bindings of `spdk/bcache.h`, as bindgen makes them at build time.
//!
//! Structs of SPDK are opaque: Rust only ever holds pointers to them.
#![allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    clippy::all,
    unreachable_pub,
    dead_code
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

/// No such device.
pub const ENODEV: i32 = 19;
/// No memory, which SPDK also says when a channel has no I/O left to give.
pub const ENOMEM: i32 = 12;
/// Not permitted, which SPDK says of a bdev that is claimed.
pub const EPERM: i32 = 1;
/// The name is taken.
pub const EEXIST: i32 = 17;
/// Invalid argument.
pub const EINVAL: i32 = 22;
