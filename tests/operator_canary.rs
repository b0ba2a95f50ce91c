//! Bugs that the operator's random lives must find, each seeded into the engine by itself.
//!
//! `cargo test --features canary --test operator_canary`. A test prints how many seeds each took.
//! `CANARY_RANGES=20` measures instead: the median over so many disjoint ranges of seeds, from which
//! the budgets below were made; `CANARY_BUG` measures one that has none yet.

mod fixtures;

use fixtures::linux_gallery;
use spdk_bcache::canary::{self, Bug};
use spdk_bcache::sim::operator::aged::Gallery;
use spdk_bcache::sim::operator::plan::Cut;
use spdk_bcache::sim::operator::runs::live;

/// Seeds that must be enough to find each: seven times the median, and a hundred more.
const BUDGETS: [(Bug, u64); 9] = [
    (Bug::ReuseBeforeGens, 107),
    (Bug::CleanBeforeFlush, 646),
    (Bug::RunInside, 534),
    (Bug::TwinTaken, 156),
    (Bug::NameOfAbsent, 303),
    (Bug::SetTurnForgotten, 163),
    (Bug::ResetForgetsHeld, 205),
    (Bug::ListUnclipped, 114),
    (Bug::StopsFromBelow, 142),
];
/// Seeds of a range that are tried at most.
const MOST: u64 = 1500;
/// Where ranges begin: at multiples of this.
const RANGE: u64 = 100_000;

/// How many seeds it takes from a first one on, and what is wrong then.
fn found(bug: Bug, first: u64, most: u64, gallery: &Gallery) -> Option<(u64, String)> {
    canary::seed(Some(bug));
    let mut seeds = first..first + most;
    let found = seeds.find_map(|seed| {
        let failure = live(seed, &Cut::default(), gallery).err()?;
        Some((seed - first + 1, failure.wrong.why))
    });
    canary::seed(None);
    found
}

#[test]
fn random_lives_find_each() {
    let gallery = linux_gallery();
    let ranges = std::env::var("CANARY_RANGES").ok();
    let ranges: Option<u64> = ranges.and_then(|text| text.parse().ok());
    let asked = std::env::var("CANARY_BUG").ok();
    let asked = Bug::ALL
        .into_iter()
        .find(|bug| asked == Some(format!("{bug:?}")));
    let asked = asked.map(|bug| vec![(bug, MOST)]);
    for (bug, budget) in asked.unwrap_or(BUDGETS.to_vec()) {
        let Some(ranges) = ranges else {
            let found = found(bug, 1, budget, &gallery);
            let (took, why) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
            eprintln!("{bug:?}: found by seed {took} of {budget}: {why:.160}");
            continue;
        };
        let mut took: Vec<u64> = (1..=ranges)
            .map(|range| {
                let found = found(bug, range * RANGE, MOST, &gallery);
                let (took, why) = found.unwrap_or((u64::MAX, String::new()));
                eprintln!("  {bug:?} {took}: {why:.200}");
                took
            })
            .collect();
        took.sort_unstable();
        let median = took[took.len() / 2];
        eprintln!("{bug:?}: median {median}, {took:?}, budget {budget}");
    }
}
