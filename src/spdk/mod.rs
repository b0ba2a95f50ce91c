//! The boundary to SPDK: the only place that knows C.
//!
//! ```text
//!  bdev layer ── glue.c ── module   what SPDK asks of a bdev module, and its life
//!                          host     volumes as bdevs, devices for the set layer
//!                          channel  a volume on one thread: front, lane, poller
//!                          lane     the hot path's I/O · bounce  buffers of its fills
//!  JSON-RPC   ───────────  rpc      one handler a method, json in and out
//!                          disk     a bdev as the engine's Disk (owner thread, owned buffers)
//!                          gate     places at the kernel queue that AIO bdevs share
//!                          flush    how a device is flushed, and what that is worth
//!                          ended    how SPDK says that an I/O ended, and what is tried again
//!                          zeros    which bdevs read zeros of what was unmapped
//!                          poller · dma · thread · log · app · pages  free huge pages
//!                          sys      what bindgen read in spdk/bcache.h
//! ```
//!
//! The *owner thread* is SPDK's app thread: module callbacks, RPCs, the executor's poller and all
//! I/O through [`disk::SpdkDisk`] happen there, and [`thread::OwnerCell`] checks it.
#![allow(unsafe_code)]

pub mod app;
pub mod bounce;
pub mod channel;
pub mod disk;
pub mod dma;
pub mod ended;
pub mod flush;
pub mod gate;
pub mod host;
pub mod json;
pub mod lane;
pub mod log;
pub mod module;
mod pages;
pub mod poller;
pub mod rpc;
pub mod sys;
pub mod thread;
pub mod zeros;
