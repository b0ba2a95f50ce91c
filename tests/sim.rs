//! The engine in the simulator: many short lives, each from its seed.
//!
//! `SIM_SEED=n cargo test --test sim` replays one seed (add `SIM_TRACE=1` for every host I/O);
//! `SIM_SEEDS=n` runs so many, from `SIM_FIRST`.

use spdk_bcache::sim::plan::{Plan, Report};
use spdk_bcache::sim::world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The plan of `SIM_PLAN` (deep, churn), or any.
fn plan_of(kind: &str, seed: u64) -> Plan {
    match kind {
        "deep" => Plan::deep(seed),
        "churn" => Plan::churn(seed),
        _ => Plan::from_seed(seed),
    }
}

fn live(kind: &str, seed: u64) -> Result<Report, String> {
    let plan = plan_of(kind, seed);
    if number("SIM_SEED").is_some() {
        eprintln!("{plan:#?}");
    }
    let run = std::panic::catch_unwind(|| World::new(seed, plan).run());
    let text = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => format!("panic: {text}"),
        Err(panic) => format!("panic: {:?}", panic.downcast::<&str>().ok()),
    };
    run.unwrap_or_else(|panic| Err(text(panic)))
}

/// Runs seeds on as many threads as there are processors.
fn live_all(kind: &str, seeds: std::ops::Range<u64>) -> (Report, Vec<(u64, String)>) {
    let next = std::sync::atomic::AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let (mut total, mut failed) = (Report::default(), Vec::new());
        loop {
            let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if seed >= seeds.end {
                return (total, failed);
            }
            let began = std::time::Instant::now();
            match live(kind, seed) {
                Ok(report) => total += report,
                Err(why) => {
                    eprintln!(
                        "seed {seed}: {why}\n  replay: SIM_PLAN={kind} SIM_SEED={seed} cargo test --test sim"
                    );
                    failed.push((seed, why));
                }
            }
            if began.elapsed().as_secs() >= 5 {
                eprintln!("slow: {seed} took {:?}", began.elapsed());
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = (Report::default(), Vec::new());
        for thread in running {
            let (report, failed) = thread.join().expect("a thread of seeds");
            all.0 += report;
            all.1.extend(failed);
        }
        all
    })
}

fn lives_lose_nothing(kind: &str, seeds: u64) {
    if let Some(seed) = number("SIM_SEED") {
        if std::env::var("SIM_PLAN").as_deref().unwrap_or("any") == kind {
            eprintln!("{:?}", live(kind, seed).unwrap());
        }
        return;
    }
    let first = number("SIM_FIRST").unwrap_or(1);
    let (total, failed) = live_all(kind, first..first + number("SIM_SEEDS").unwrap_or(seeds));
    eprintln!("{kind}: {total:?}");
    assert!(failed.is_empty(), "{} seeds fail", failed.len());
}

#[test]
fn random_lives_lose_nothing() {
    lives_lose_nothing("any", 200);
}

#[test]
fn lives_with_a_deep_tree_lose_nothing() {
    lives_lose_nothing("deep", 2);
}

#[test]
fn lives_in_which_generations_wrap_lose_nothing() {
    lives_lose_nothing("churn", 4);
}
