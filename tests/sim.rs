//! The engine in the simulator: many short lives, each from its seed.
//!
//! `SIM_SEED=n cargo test --test sim` replays one seed (add `SIM_TRACE=1` for every host I/O);
//! `SIM_SEEDS=n` runs so many, from `SIM_FIRST`. `make sim` is for many more.

use std::cell::RefCell;
use std::rc::Rc;

use spdk_bcache::format::superblock::CacheMode;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::{Faults, Fuse};
use spdk_bcache::sim::script::{Books, Layout, Machine, Media, VolumeKind};
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
    lives_lose_nothing(Draw::Any, 400);
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
    lives_lose_nothing(Draw::Ill, 150);
}

#[test]
fn a_cache_device_that_lies_is_survived() {
    lives_lose_nothing(Draw::Lying, 100);
}

/// A machine with a life to live to its end.
fn switch_on(layout: Layout, media: &Media, books: &Rc<RefCell<Books>>) -> Rc<Machine> {
    let uncut = Fuse::sound();
    Machine::new(layout, media.clone(), books.clone(), 1, uncut)
}

#[test]
fn a_set_that_failed_stays_down_until_it_is_started_again() {
    let layout = Layout {
        nbuckets: 256,
        bucket_kb: 8,
        volumes: &[VolumeKind::Backed(4096)],
    };
    let media = Media::new(&layout);
    let books = Rc::new(RefCell::new(Books::new(&layout)));
    let machine = switch_on(layout, &media, &books);
    let m = machine.clone();
    let done = machine.run(async move {
        let created = m.create(0, CacheMode::WriteBack, Default::default());
        created.await.map_err(|e| e.to_string())?;
        m.burst(0, 32, 8).await?;
        m.flush(0).await?;
        m.write(0, 0, 64).await?;
        let no_flush = Faults {
            flush: 1,
            ..Faults::default()
        };
        m.media.fast.faults.set(no_flush);
        assert!(m.flush(0).await.is_err(), "no journal entry is durable");
        assert!(m.set()?.latch.why().is_some());
        // The device works again, but memory may be ahead of it.
        m.media.fast.cure();
        m.exec.sleep_us(10_000_000).await;
        assert!(m.write(0, 8, 8).await.is_err() && m.flush(0).await.is_err());
        Ok::<(), String>(())
    });
    assert_eq!(done, Ok(Some(Ok(()))));
    machine.die(&Rng::new(1), false);
    let machine = switch_on(layout, &media, &books);
    let m = machine.clone();
    let done = machine.run(async move {
        m.register_all().await?;
        m.read_all(0).await?;
        m.burst(0, 16, 4).await?;
        m.flush(0).await
    });
    assert_eq!(done, Ok(Some(Ok(()))));
}
