//! Canaries: bugs that the simulator must find, each by random lives and by the crash sweep.
//!
//! `cargo test --features canary --test canary`. A test prints where the bug was found.

use std::panic::{AssertUnwindSafe, catch_unwind};

use spdk_bcache::canary::{self, Bug};
use spdk_bcache::sim::plan::Plan;
use spdk_bcache::sim::scenario::ALL;
use spdk_bcache::sim::sweep::{Spoil, Sweep};
use spdk_bcache::sim::world::World;

/// Random lives that must be enough to find any of them.
const SEEDS: u64 = 200;

/// What is wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// In the engine.
    Seeded(Bug),
    /// Flushes of the cache device do nothing.
    FastFlush,
    /// Flushes of the backing devices do nothing.
    SlowFlush,
}

const ALL_WRONG: [Wrong; 4] = [
    Wrong::Seeded(Bug::ReuseBeforeGens),
    Wrong::Seeded(Bug::CleanBeforeFlush),
    Wrong::FastFlush,
    Wrong::SlowFlush,
];

/// An error or a panic, whichever it is.
fn complaint<T>(run: impl FnOnce() -> Result<T, String>) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => done.err(),
        Err(_) => Some("it panicked".to_string()),
    }
}

/// The random lives in which it is found, one after the other, of so many.
fn found_by_seeds(wrong: Option<Wrong>, seeds: u64) -> impl Iterator<Item = (u64, String)> {
    (1..=seeds).filter_map(move |seed| {
        let mut plan = Plan::from_seed(seed);
        match wrong {
            Some(Wrong::Seeded(bug)) => canary::seed(Some(bug)),
            Some(Wrong::FastFlush) => plan.ignore_cache_flush = true,
            Some(Wrong::SlowFlush) => plan.ignore_backing_flush = true,
            None => canary::seed(None),
        }
        Some((seed, complaint(|| World::new(seed, plan).run())?))
    })
}

/// Where the power was cut in a scenario when it was found first, and what was.
fn found_by_cuts(wrong: Wrong, name: &str) -> Option<(String, String)> {
    let scenario = ALL.iter().find(|s| s.name == name);
    let mut sweep = Sweep::new(scenario.expect("a scenario"), 1).expect("nothing is wrong yet");
    match wrong {
        Wrong::Seeded(bug) => canary::seed(Some(bug)),
        Wrong::FastFlush => {
            sweep.spoil = Spoil {
                fast: true,
                ..Spoil::default()
            }
        }
        Wrong::SlowFlush => {
            sweep.spoil = Spoil {
                slow: true,
                ..Spoil::default()
            }
        }
    }
    // The power goes at the end of the script too: what is found then need not be found by a cut.
    let mut steps = 0;
    let at_end = complaint(|| {
        steps = sweep.steps()?;
        Ok(())
    });
    let found = match at_end {
        Some(why) => Some(("end".to_string(), why)),
        None => (0..steps).find_map(|n| Some((format!("cut {n}"), complaint(|| sweep.cut(n))?))),
    };
    canary::seed(None);
    found
}

#[test]
fn random_lives_find_each() {
    for wrong in ALL_WRONG {
        let found = found_by_seeds(Some(wrong), SEEDS).next();
        canary::seed(None);
        let (seed, why) = found.unwrap_or_else(|| panic!("{wrong:?} is not found"));
        eprintln!("{wrong:?}: found by seed {seed}: {why:.200}");
    }
}

#[test]
fn the_sweep_finds_each() {
    for wrong in ALL_WRONG {
        let mut names = ALL.iter().map(|s| s.name);
        let found = names.find_map(|name| Some((name, found_by_cuts(wrong, name)?)));
        let (name, (place, why)) = found.unwrap_or_else(|| panic!("{wrong:?} is not found"));
        eprintln!("{wrong:?}: found by the {place} of {name}: {why:.200}");
    }
}

#[test]
fn a_build_with_canaries_in_which_none_is_seeded_has_no_bug() {
    assert_eq!(found_by_seeds(None, 20).next(), None);
}
