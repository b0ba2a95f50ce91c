//! Sets and volumes: how they come up, are joined, parted and stopped.
//!
//! [`hub`] knows all of them and does what the RPCs ask, with [`create`], [`register`], [`join`],
//! `detach`, `closing` and [`options`], in `turns`; [`job`] is what of that can be cancelled;
//! [`cache`] is one running set, [`volume`] one volume, [`identity`] tells copies and parts of a device
//! from it and names volumes, `rename` changes a name in use, `claims` keeps two operations from taking the same, `failure` says what
//! becomes of volumes when their cache device fails, `figures` keeps their statistics, [`explain`] words
//! failures, [`mod@format`] makes devices of bcache's and tells what a device holds; [`host`] is what they
//! ask of the world.

pub mod backings;
pub mod cache;
mod claims;
mod closing;
pub mod create;
mod detach;
pub mod error;
pub mod explain;
mod failure;
mod figures;
mod flash;
pub mod format;
pub mod host;
pub mod hub;
pub mod identity;
pub mod job;
pub mod join;
pub mod lost;
pub mod members;
pub mod options;
pub mod register;
mod rename;
mod stack;
mod turns;
pub mod volume;
pub mod waiting;
