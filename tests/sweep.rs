//! The crash sweep: the power is cut at every write and flush of scripted scenarios.
//!
//! Each scenario is swept with a few seeds, which draw what is written and how the cuts tear it; of
//! each seed as many cuts are tried as fit the time of the tests, spread over all of it. `SIM_CUTS`
//! sets how many (`all`: every one), `SIM_SEEDS` how many seeds.
//! `SIM_SEED=s SIM_CUT=n cargo test --test sweep ‹scenario›` replays one cut.

use spdk_bcache::rng::Rng;
use spdk_bcache::sim::scenario::ALL;
use spdk_bcache::sim::sweep::{Scenario, Sweep};

/// Cuts of a scenario with one seed, unless told otherwise.
const CUTS: u64 = 400;
/// Seeds of a scenario, unless told otherwise.
const SEEDS: u64 = 3;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    variable(name)?.parse().ok()
}

fn scenario(name: &str) -> &'static Scenario {
    let found = ALL.iter().find(|s| s.name == name);
    found.expect("a scenario of this name")
}

/// The cuts to be tried: all, or one from each part of the scenario.
fn chosen(steps: u64, most: u64, seed: u64) -> Vec<u64> {
    if steps <= most {
        return (0..steps).collect();
    }
    let rng = Rng::new(seed);
    let part = |i| i * steps / most;
    let some = |i| part(i) + rng.below(part(i + 1) - part(i));
    (0..most).map(some).collect()
}

/// What goes wrong, with the command that shows it again.
fn complaint(name: &str, seed: u64, cut: Option<u64>, why: &str) -> String {
    let (at, again) = match cut {
        Some(n) => (format!("cut {n}"), format!("SIM_CUT={n} ")),
        None => ("uncut".to_string(), String::new()),
    };
    format!(
        "{name}, seed {seed}, {at}: {why}\n  replay: SIM_SEED={seed} {again}cargo test --test sweep {name}"
    )
}

/// Sweeps with one seed; returns the steps and cuts that there were, and what is wrong.
fn sweep_one(name: &str, seed: u64, most: u64) -> (u64, u64, Vec<String>) {
    let steps = Sweep::new(scenario(name), seed).and_then(|s| Ok((s.steps()?, s)));
    let (steps, sweep) = match steps {
        Ok(both) => both,
        Err(why) => return (0, 0, vec![complaint(name, seed, None, &why)]),
    };
    let cuts = match number("SIM_CUT") {
        Some(n) => vec![n],
        None => chosen(steps, most, seed),
    };
    let wrong = cuts.iter().filter_map(|&n| {
        let why = sweep.cut(n).err()?;
        Some(complaint(name, seed, Some(n), &why))
    });
    (steps, cuts.len() as u64, wrong.collect())
}

fn sweep(name: &str) {
    let most = match variable("SIM_CUTS").as_deref() {
        Some("all") => u64::MAX,
        Some(n) => n.parse().expect("a number of cuts"),
        None => CUTS,
    };
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (began, mut total, mut wrong) = (std::time::Instant::now(), (0, 0), Vec::new());
    for seed in seeds {
        let (steps, cuts, some) = sweep_one(name, seed, most);
        total = (total.0 + steps, total.1 + cuts);
        for line in &some {
            eprintln!("{line}");
        }
        wrong.extend(some);
    }
    let took = began.elapsed();
    eprintln!("{name}: {} steps, {} cuts in {took:.1?}", total.0, total.1);
    assert!(
        wrong.is_empty(),
        "{name}: {} cuts lose something",
        wrong.len()
    );
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(#[test] fn $name() { sweep(stringify!($name)); })*
    };
}

scenarios!(format first_run attach new_root split journal_wrap prio_write gc_sweep moving_gc write_back detach flash_volume
           stop mode_change recovery clear);

#[test]
fn every_scenario_is_swept() {
    let names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
    assert_eq!(names, NAMES);
}
