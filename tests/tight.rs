//! Caches without room, in the simulator: full of dirty data, full of metadata, overwritten all
//! over, filled by volumes of their own, as small as they get. Every host I/O must be answered, in
//! time, and nothing may be lost.
//!
//! `SIM_PLAN=full SIM_SEED=n cargo test --test tight` replays one seed, `SIM_SEEDS=n` runs so many.

use spdk_bcache::sim::plan::{Plan, Report};
use spdk_bcache::sim::world::World;

type Make = fn(u64) -> Plan;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn live(make: Make, seed: u64) -> Result<Report, String> {
    let run = std::panic::catch_unwind(|| World::new(seed, make(seed)).run());
    run.unwrap_or_else(|panic| match panic.downcast::<String>() {
        Ok(text) => Err(format!("panic: {text}")),
        Err(panic) => Err(format!("panic: {:?}", panic.downcast::<&str>().ok())),
    })
}

fn lives(name: &str, make: Make, seeds: u64) {
    if std::env::var("SIM_PLAN").is_ok_and(|plan| plan != name) {
        return;
    }
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("SIM_SEEDS").unwrap_or(seeds),
    };
    let (mut total, mut failed) = (Report::default(), 0);
    for seed in seeds {
        let began = std::time::Instant::now();
        match live(make, seed) {
            Ok(report) => total += report,
            Err(why) => {
                eprintln!(
                    "{why}\n  replay: SIM_PLAN={name} SIM_SEED={seed} cargo test --test tight"
                );
                failed += 1;
            }
        }
        if began.elapsed().as_secs() >= 10 {
            eprintln!("slow: {name} {seed} took {:?}", began.elapsed());
        }
    }
    eprintln!("{name}: {total:?}");
    assert_eq!(failed, 0, "seeds of {name} fail");
}

#[test]
fn full_of_dirty_data() {
    lives("full", Plan::full, 8);
}

#[test]
fn full_of_metadata() {
    lives("meta", Plan::meta, 2);
}

#[test]
fn overwritten_all_over() {
    lives("overwrite", Plan::overwrite, 3);
}

#[test]
fn filled_by_volumes_of_its_own() {
    lives("flash", Plan::flash, 4);
}

#[test]
fn filled_beyond_what_they_may() {
    lives("beyond", Plan::beyond, 4);
}

#[test]
fn as_small_as_it_gets() {
    lives("smallest", Plan::smallest, 8);
}
