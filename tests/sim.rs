//! The engine in the simulator: many short lives, each from its seed.
//!
//! `SIM_SEED=n cargo test --test sim` replays one seed (add `SIM_TRACE=1` for every host I/O);
//! `SIM_SEEDS=n` runs so many, from `SIM_FIRST`. `make sim` is for many more.

use spdk_bcache::sim::seeds::{Draw, live, live_all};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn lives_lose_nothing(draw: Draw, seeds: u64) {
    if let Some(seed) = number("SIM_SEED") {
        if std::env::var("SIM_PLAN").as_deref().unwrap_or("any") == draw.name() {
            eprintln!("{:#?}", draw.plan(seed));
            let done = live(draw, seed);
            eprintln!("{:?}", done.unwrap_or_else(|failure| panic!("{failure}")));
        }
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let seeds = number("SIM_SEEDS").unwrap_or(seeds);
    let began = std::time::Instant::now();
    let (total, failed) = live_all(
        |_| draw,
        first..first + seeds,
        |done| {
            if let Err(failure) = done {
                eprintln!("{failure}");
            }
        },
    );
    let name = draw.name();
    let per_min = seeds as f64 * 60.0 / began.elapsed().as_secs_f64();
    eprintln!("{name}: {seeds} seeds, {per_min:.0} a minute: {total:?}");
    assert!(failed.is_empty(), "{} seeds fail", failed.len());
}

#[test]
fn random_lives_lose_nothing() {
    lives_lose_nothing(Draw::Any, 300);
}

#[test]
fn lives_with_a_deep_tree_lose_nothing() {
    lives_lose_nothing(Draw::Deep, 2);
}

#[test]
fn lives_in_which_generations_wrap_lose_nothing() {
    lives_lose_nothing(Draw::Churn, 4);
}

#[test]
fn lives_with_ill_devices_lose_nothing() {
    lives_lose_nothing(Draw::Ill, 100);
}

#[test]
fn a_cache_device_that_lies_is_survived() {
    lives_lose_nothing(Draw::Lying, 100);
}
