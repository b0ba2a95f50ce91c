//! Garbage: keys whose buckets were reused, nodes that hold little, buckets that hold little.
//!
//! A stale key costs memory and node space, and its bucket's generation may not run more than
//! 96 ahead of it. A sweep walks all maps in slices and forgets stale extents, writes the leaves
//! that named them, and the inner nodes that name freed children. Nothing on disk is then older
//! than the generations at the sweep's start. On its way it has thin neighbours among the nodes
//! joined and those written anew that are full of what means nothing any more (`btree::merge`).
//! Buckets are the business of [`moving`].
//!
//! A stale extent is forgotten without a word in the journal. That is safe only once the raised
//! generation is durable: those of buckets on their way to be free are left for the next sweep.
//!
//! Bounds: a step looks at `SLICE_EXTENTS` extents.

pub mod moving;

use std::rc::Rc;

use crate::btree::Tree;
use crate::disk::{Latch, Stopped};
use crate::task::{Executor, Notify, Work, either, yield_now};
use crate::units::{Inode, Sector};

/// Extents looked at in one step.
const SLICE_EXTENTS: usize = Work::Keys.slice();

/// A pass over all keys that nobody waits for begins after so many times what the last one took, at
/// most `REST_US_MAX` later: a cache under pressure asks for one all the time.
const REST_TIMES: u64 = 8;
const REST_US_MAX: u64 = 1_000_000;

/// Sweeps whenever the allocator wants it. Ends when the latch trips.
pub async fn run(tree: Rc<Tree>, latch: Rc<Latch>, exec: Executor) {
    let is_over = || latch.check().is_err() || tree.is_stopping();
    while !is_over() {
        if !tree.alloc.sweep_wanted() {
            tree.alloc.sweep_due.wait().await;
            continue;
        }
        let began_us = exec.now_us();
        // A failure has tripped the latch.
        let _ = sweep(&tree).await;
        let is_roused = || is_over() || tree.alloc.sweep_is_urgent();
        rest(&exec, began_us, &tree.alloc.sweep_due, is_roused).await;
    }
}

/// Leaves the maps alone for a while, after a pass that began then; `is_roused` is asked before, and
/// each time that `wakes` is notified.
async fn rest(exec: &Executor, began_us: u64, wakes: &Notify, is_roused: impl Fn() -> bool) {
    let took_us = exec.now_us() - began_us;
    let until_us = exec.now_us() + (took_us * REST_TIMES).min(REST_US_MAX);
    while !is_roused() && exec.now_us() < until_us {
        let time_is_up = exec.sleep_us(until_us - exec.now_us());
        either(time_is_up, wakes.wait()).await;
    }
}

/// One sweep.
///
/// # Errors
/// The set has stopped.
pub async fn sweep(tree: &Tree) -> Result<(), Stopped> {
    let oldest = tree.alloc.sweep_start().await;
    for inode in tree.inodes() {
        let mut at = Some(Sector(0));
        while let Some(from) = at {
            at = tree.forget_stale(inode, from, SLICE_EXTENTS);
            yield_now().await;
        }
    }
    tidy(tree).await?;
    tree.flush().await?;
    tree.flush_inner().await?;
    // The journal's oldest needed entry moves on with this one.
    tree.journal.set_roots(|_| ());
    tree.journal.commit_roots().await?;
    tree.alloc.sweep_end(oldest).await;
    Ok(())
}

/// Joins thin nodes and writes anew those full of what means nothing, leaves first.
async fn tidy(tree: &Tree) -> Result<(), Stopped> {
    let mut at = Some((Inode(0), Sector(0)));
    while let Some(from) = at {
        at = tree.survey_leaves(from);
        tree.jobs_done().await?;
        yield_now().await;
    }
    tree.survey_inner().await;
    tree.jobs_done().await
}
