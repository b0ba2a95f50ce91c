//! Many runs of the operator's world, and the least that still fails.
//!
//! A run that fails is shrunk: first the features are switched off one by one, then steps are left out,
//! halves first. What is printed replays with `OPERATOR_SEED`, `OPERATOR_ON`, `OPERATOR_OFF` and
//! `OPERATOR_SKIP`.

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::aged::Gallery;
use super::met::Met;
use super::plan::{Cut, Feature, Plan};
use super::{World, Wrong};
use crate::sim::seeds::{each, panic_text};

/// Runs that shrinking may take.
const TRIES: u64 = 160;

/// A seed in which something is wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What is left out, or in.
    pub cut: Box<Cut>,
    /// What is wrong, and where.
    pub wrong: Wrong,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |features: &BTreeSet<Feature>| {
            let names: Vec<&str> = features.iter().map(|feature| feature.name()).collect();
            names.join(",")
        };
        let (on, off) = (names(&self.cut.on), names(&self.cut.off));
        let skip = ranges(&self.cut.skip);
        writeln!(
            f,
            "seed {}, step {}: {}",
            self.seed, self.wrong.step, self.wrong.why
        )?;
        write!(f, "  replay: OPERATOR_SEED={}", self.seed)?;
        for (name, value) in [("ON", on), ("OFF", off), ("SKIP", skip)] {
            if !value.is_empty() {
                write!(f, " OPERATOR_{name}={value}")?;
            }
        }
        write!(f, " cargo test --test operator")
    }
}

/// Numbers as ranges, like `3,7-9`.
fn ranges(numbers: &BTreeSet<u64>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some(last) if last.1 + 1 == n => last.1 = n,
            _ => runs.push((n, n)),
        }
    }
    let texts = runs.iter().map(|&(from, to)| match from == to {
        true => from.to_string(),
        false => format!("{from}-{to}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

/// What texts of [`Failure`]'s form switch on and off, and leave out.
///
/// # Errors
/// What is no feature, or no number.
pub fn cut_of(on: &str, off: &str, skip: &str) -> Result<Cut, String> {
    let mut cut = Cut::default();
    for (names, features) in [(on, &mut cut.on), (off, &mut cut.off)] {
        for name in names.split(',').filter(|name| !name.is_empty()) {
            let feature = Feature::ALL.iter().find(|feature| feature.name() == name);
            features.insert(*feature.ok_or_else(|| format!("{name} is no feature"))?);
        }
    }
    for run in skip.split(',').filter(|run| !run.is_empty()) {
        let (from, to) = run.split_once('-').unwrap_or((run, run));
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("{text} is no step"))
        };
        cut.skip.extend(number(from)?..=number(to)?);
    }
    Ok(cut)
}

/// Lives the lives of one seed, without what is left out.
///
/// # Errors
/// What is wrong; a panic is, too.
pub fn live(seed: u64, cut: &Cut, gallery: &Gallery) -> Result<Met, Failure> {
    let plan = Plan::from_seed(seed, cut);
    let mut world = World::new(plan, cut.clone(), gallery);
    let run = catch_unwind(AssertUnwindSafe(|| world.run()));
    let done = run.unwrap_or_else(|panic| Err(world.wrong(panic_text(panic))));
    // What a panic left half done may panic again when it is dropped.
    let dropped = catch_unwind(AssertUnwindSafe(move || drop(world)));
    drop(dropped);
    done.map_err(|wrong| Failure {
        seed,
        cut: Box::new(cut.clone()),
        wrong,
    })
}

/// What is wrong without its numbers, so that shrinking stays with one failure.
fn kind(wrong: &Wrong) -> String {
    let why = wrong
        .why
        .split_once("): ")
        .map_or(&*wrong.why, |(_, why)| why);
    let letters = why.chars().filter(|c| !c.is_ascii_digit());
    letters.take(40).collect()
}

/// The least of a failure that still fails in the same way.
pub fn shrink(failure: Failure, gallery: &Gallery) -> Failure {
    let mut best = failure;
    let mut tries = TRIES;
    let attempt = |best: &mut Failure, cut: Cut, tries: &mut u64| {
        *tries = tries.saturating_sub(1);
        match live(best.seed, &cut, gallery) {
            Err(smaller) if kind(&smaller.wrong) == kind(&best.wrong) => {
                *best = smaller;
                true
            }
            _ => false,
        }
    };
    for &feature in Feature::ALL {
        let on = Plan::from_seed(best.seed, &best.cut).has(feature);
        if on && tries > TRIES / 2 {
            let mut cut = Cut::clone(&best.cut);
            cut.off.insert(feature);
            attempt(&mut best, cut, &mut tries);
        }
    }
    let mut size = best.wrong.step.div_ceil(2).max(1);
    while size >= 1 && tries > 0 {
        let mut at = 1;
        while at <= best.wrong.step && tries > 0 {
            let mut cut = Cut::clone(&best.cut);
            cut.skip.extend(at..at + size);
            if cut != *best.cut {
                attempt(&mut best, cut, &mut tries);
            }
            at += size;
        }
        if size == 1 {
            break;
        }
        size /= 2;
    }
    best
}

/// Lives all seeds on as many threads as there are processors; `note` is told of each as it ends.
/// Returns what they met, and what failed.
pub fn live_all(
    seeds: impl Iterator<Item = u64> + Send,
    cut: &Cut,
    gallery: &Gallery,
    note: impl Fn(&Result<Met, Failure>) + Sync,
) -> (Met, Vec<Failure>) {
    let (mut met, mut failed) = (Met::default(), Vec::new());
    let one = |seed| {
        let done = live(seed, cut, gallery);
        note(&done);
        done
    };
    each(seeds, one, |done| match done {
        Ok(other) => met.add(&other),
        Err(failure) => failed.push(failure),
    });
    (met, failed)
}
