//! The operator's world: random calls, host I/O and failing devices, each run from its seed.
//!
//! `OPERATOR_SEED=n cargo test --test operator` replays one seed (add `SIM_TRACE=1` for all that
//! happens, `OPERATOR_OFF` and `OPERATOR_SKIP` to leave things out, `OPERATOR_ON` to have features in
//! whatever the seed says); `OPERATOR_SEEDS=n` runs so many, from `OPERATOR_FIRST`, and shrinks the
//! first that fail. With `OPERATOR_SECONDS=n` no seed begins after that time.

mod fixtures;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use fixtures::linux_gallery;
use spdk_bcache::sim::operator::plan::Plan;
use spdk_bcache::sim::operator::runs::{Failure, cut_of, live, live_all, shrink};

/// Seeds that must meet all that is to be met.
const MANY: u64 = 500;
/// Failures that are shrunk, of those that differ: each takes up to a minute.
const SHRUNK_MAX: usize = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Prints what the engine logs.
struct Loud;

impl log::Log for Loud {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, record: &log::Record) {
        eprintln!("             {}: {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

fn show(failure: &Failure) {
    for line in &failure.wrong.log {
        eprintln!("    {line}");
    }
    eprintln!("{failure}");
}

#[test]
fn random_calls_io_and_failures_lose_nothing_and_end() {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let gallery = linux_gallery();
    let cut = ["ON", "OFF", "SKIP"].map(|what| text(&format!("OPERATOR_{what}")));
    let cut = cut_of(&cut[0], &cut[1], &cut[2]).expect("flags");
    if let Some(seed) = number("OPERATOR_SEED") {
        eprintln!("{:#?}", Plan::from_seed(seed, &cut));
        if std::env::var_os("SIM_TRACE").is_some() && log::set_logger(&Loud).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
        if let Err(failure) = live(seed, &cut, &gallery) {
            show(&failure);
            panic!("it fails");
        }
        return;
    }
    let first = number("OPERATOR_FIRST").unwrap_or(1);
    let seeds = number("OPERATOR_SEEDS").unwrap_or(60);
    let seconds = number("OPERATOR_SECONDS").unwrap_or(u64::MAX);
    let (began, lived) = (Instant::now(), AtomicU64::new(0));
    let in_time = |_: &u64| began.elapsed().as_secs() < seconds;
    let (met, failed) = live_all(
        (first..first + seeds).take_while(in_time),
        &cut,
        &gallery,
        |done| {
            lived.fetch_add(1, Ordering::Relaxed);
            if let Err(failure) = done {
                eprintln!("{failure}");
            }
        },
    );
    let seeds = lived.into_inner();
    let per_min = seeds as f64 * 60.0 / began.elapsed().as_secs_f64();
    eprintln!(
        "{met}{seeds} seeds, {per_min:.0} a minute, {} fail",
        failed.len()
    );
    let kinds: BTreeMap<&str, &Failure> = failed.iter().map(|f| (&*f.wrong.why, f)).collect();
    for why in kinds.keys() {
        eprintln!("  {why:.300}");
    }
    for failure in kinds.into_values().take(SHRUNK_MAX) {
        eprintln!("seed {} is shrunk to:", failure.seed);
        show(&shrink(failure.clone(), &gallery));
    }
    assert!(failed.is_empty(), "{} seeds fail", failed.len());
    let missing = met.missing();
    let many = seeds >= MANY;
    assert!(!many || missing.is_empty(), "never met: {missing:?}");
}
