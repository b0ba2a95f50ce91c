//! What one step of a poller may do: the budget of a step, and the reports against it.
//!
//! A loop over buckets, keys, bytes or nodes reports each unit with [`work`] and calls [`breathe`]
//! between units. [`breathe`] yields once the step has used a slice of any kind, in whichever
//! functions. So the length of a step does not depend on the size of a device or a map.
//!
//! The executor checks each step of each task against [`Work::limit`] in builds with debug
//! assertions: all tests, and the simulator. Slices are smaller there, because simulated devices
//! are small too: a loop over all buckets of one exceeds the limit.

use std::cell::Cell;

use super::yield_now;

/// What a step is measured in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Buckets looked at or changed; about 5 ns each in order, 100 ns in random order.
    Buckets,
    /// Keys or extents looked up, inserted or checked; up to 500 ns each in a large map.
    Keys,
    /// Bytes encoded, decoded or summed.
    Bytes,
    /// Btree nodes gathered, encoded or decoded, each of 1 MiB at most (as a rule 256 KiB).
    Nodes,
    /// Messages of fronts that the owner handled.
    Messages,
}

const KINDS: [Work; 5] = [
    Work::Buckets,
    Work::Keys,
    Work::Bytes,
    Work::Nodes,
    Work::Messages,
];

/// Slices are smaller by this factor where steps are checked.
const SHRINK: usize = if cfg!(debug_assertions) { 16 } else { 1 };

impl Work {
    /// Units after which a step ends at the next [`breathe`].
    pub const fn slice(self) -> usize {
        match self {
            Work::Buckets => 2048 / SHRINK,
            Work::Keys => 1024 / SHRINK,
            // No smaller than the longest journal entry.
            Work::Bytes => (256 << 10) / (if SHRINK > 8 { 8 } else { SHRINK }),
            Work::Nodes => 1,
            Work::Messages => 512,
        }
    }

    /// Units that no step may exceed: a slice, and the largest unit that is not divided. That is a
    /// slice more, or the four nodes that become one.
    pub const fn limit(self) -> usize {
        match self {
            Work::Nodes => 4,
            // Those that waited for the journal, those that waited for a range, and new ones.
            Work::Messages => 3 * self.slice(),
            _ => 2 * self.slice(),
        }
    }
}

thread_local! {
    /// Work of the step that runs on this system thread; no step moves to another.
    static DONE: [Cell<usize>; 5] = const { [const { Cell::new(0) }; 5] };
}

/// Reports work of the step that runs.
#[inline]
pub fn work(kind: Work, units: usize) {
    DONE.with(|done| done[kind as usize].set(done[kind as usize].get() + units));
}

/// Whether the step has used a slice of some kind: it should end.
#[inline]
pub fn is_spent() -> bool {
    DONE.with(|done| {
        let mut kinds = KINDS.iter();
        kinds.any(|&kind| done[kind as usize].get() >= kind.slice())
    })
}

/// Ends the step if it is spent: called between two units of a long job.
#[inline]
pub async fn breathe() {
    if is_spent() {
        yield_now().await;
    }
}

/// Runs one step, and checks what it reported.
///
/// # Panics
/// The step exceeded a limit, in builds with debug assertions.
pub fn measured<R>(step: impl FnOnce() -> R) -> R {
    DONE.with(|done| done.iter().for_each(|units| units.set(0)));
    let result = step();
    if cfg!(debug_assertions) {
        for kind in KINDS {
            let units = DONE.with(|done| done[kind as usize].get());
            let limit = kind.limit();
            assert!(units <= limit, "a step of {units} {kind:?}, limit {limit}");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Executor;

    #[test]
    fn a_job_that_breathes_ends_its_steps_in_time() {
        let exec = Executor::new();
        exec.spawn(async {
            for _ in 0..10 * Work::Keys.slice() {
                work(Work::Keys, 1);
                breathe().await;
            }
        });
        assert_eq!(exec.poll(0, 1000), 11);
    }

    #[test]
    #[should_panic(expected = "a step of")]
    fn a_step_that_does_too_much_is_found() {
        let exec = Executor::new();
        exec.spawn(async { work(Work::Buckets, Work::Buckets.limit() + 1) });
        exec.poll(0, 1);
    }
}
