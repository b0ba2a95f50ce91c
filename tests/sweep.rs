//! The crash sweep: the power is cut at every write and flush of scripted scenarios, and every read,
//! write and flush of them fails, once or for good.
//!
//! Each scenario is swept with a few seeds, which draw what is written and how the cuts tear it; of
//! each seed as many cuts and faults are tried as fit the time of the tests, spread over all of it.
//! `SIM_CUTS` sets how many (`all`: every one), `SIM_SEEDS` how many seeds.
//! `SIM_SEED=s SIM_CUT=n cargo test --test sweep cut::‹scenario›` replays one cut, and
//! `… fault::‹scenario›` one fault: n is twice the operation, and one more when its device fails for
//! good.

use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::Fault;
use spdk_bcache::sim::scenario::ALL;
use spdk_bcache::sim::sweep::{Scenario, Sweep};

/// What goes wrong in a run.
#[derive(Clone, Copy)]
enum Wrong {
    Cut,
    Fault,
}

impl Wrong {
    fn name(self) -> &'static str {
        match self {
            Wrong::Cut => "cut",
            Wrong::Fault => "fault",
        }
    }

    /// Cuts or faults of a scenario with one seed, and seeds, unless told otherwise.
    fn tries(self) -> (u64, u64) {
        match self {
            Wrong::Cut => (400, 3),
            Wrong::Fault => (300, 2),
        }
    }

    /// How many there can be.
    fn all(self, sweep: &Sweep) -> Result<u64, String> {
        match self {
            Wrong::Cut => sweep.steps(),
            Wrong::Fault => Ok(sweep.operations()? * 2),
        }
    }

    /// Runs number `n`.
    fn run(self, sweep: &Sweep, n: u64) -> Result<u64, String> {
        match self {
            Wrong::Cut => sweep.cut(n),
            Wrong::Fault => sweep.fail(Fault {
                operation: n / 2,
                lasting: n % 2 == 1,
            }),
        }
    }
}

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

/// What a run complains of, with the command that shows it again.
fn complaint(wrong: Wrong, name: &str, seed: u64, n: Option<u64>, why: &str) -> String {
    let kind = wrong.name();
    let (at, again) = match n {
        Some(n) => (format!("{kind} {n}"), format!("SIM_CUT={n} ")),
        None => ("nothing wrong".to_string(), String::new()),
    };
    format!(
        "{name}, seed {seed}, {at}: {why}\n  replay: SIM_SEED={seed} {again}cargo test --test sweep {kind}::{name}"
    )
}

/// Sweeps with one seed; returns how many runs there can be and were, and what they complain of.
fn sweep_one(wrong: Wrong, name: &str, seed: u64, most: u64) -> (u64, u64, Vec<String>) {
    let all = Sweep::new(scenario(name), seed).and_then(|s| Ok((wrong.all(&s)?, s)));
    let (all, sweep) = match all {
        Ok(both) => both,
        Err(why) => return (0, 0, vec![complaint(wrong, name, seed, None, &why)]),
    };
    let numbers = match number("SIM_CUT") {
        Some(n) => vec![n],
        None => chosen(all, most, seed),
    };
    let complaints = numbers.iter().filter_map(|&n| {
        let why = wrong.run(&sweep, n).err()?;
        Some(complaint(wrong, name, seed, Some(n), &why))
    });
    (all, numbers.len() as u64, complaints.collect())
}

fn sweep(wrong: Wrong, name: &str) {
    let (tries, seeds) = wrong.tries();
    let most = match variable("SIM_CUTS").as_deref() {
        Some("all") => u64::MAX,
        Some(n) => n.parse().expect("a number of cuts"),
        None => tries,
    };
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SIM_SEEDS").unwrap_or(seeds),
    };
    let (began, mut total, mut complaints) = (std::time::Instant::now(), (0, 0), Vec::new());
    for seed in seeds {
        let (all, runs, some) = sweep_one(wrong, name, seed, most);
        total = (total.0 + all, total.1 + runs);
        for line in &some {
            eprintln!("{line}");
        }
        complaints.extend(some);
    }
    let (took, kind) = (began.elapsed(), wrong.name());
    eprintln!("{kind}::{name}: {} of {} in {took:.1?}", total.1, total.0);
    let bad = complaints.len();
    assert_eq!(bad, 0, "{kind}::{name}: so many lose something");
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        mod cut { $(#[test] fn $name() { super::sweep(super::Wrong::Cut, stringify!($name)); })* }
        mod fault { $(#[test] fn $name() { super::sweep(super::Wrong::Fault, stringify!($name)); })* }
    };
}

scenarios!(format first_run attach new_root split journal_wrap prio_write gc_sweep moving_gc write_back detach flash_volume
           stop mode_change recovery clear);

#[test]
fn every_scenario_is_swept() {
    let names: Vec<&str> = ALL.iter().map(|s| s.name).collect();
    assert_eq!(names, NAMES);
}
