//! Readers on threads of their own, while the writer does not stop.
//!
//! Every extent says in `at` where on the volume it belongs and which version it is (see `extent`
//! in the tests beside), so a reader that is shown a page of another place or time, half of one, or
//! one that was used again too early notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::tests::{Random, extent};
use super::{Domain, Extent, Index, Lookup, Reader, TOGETHER, Writer};
use crate::units::Sector;

/// Sectors of the volume. Every 64th block of 8 is written once and then left alone.
const SPACE: u64 = 1 << 15;
const BLOCK: u64 = 8;
const STILL_EVERY: u64 = 64 * BLOCK;

/// What the writer has made known: the version that each block had when an insert returned.
struct Shared {
    index: Arc<Index>,
    versions: Vec<AtomicU64>,
    done: AtomicBool,
}

fn version_of(extent: &Extent) -> u64 {
    let version = extent.at.0 >> 20;
    assert_eq!(
        extent.at.0 & 0xf_ffff,
        extent.start.0,
        "an extent of another place"
    );
    assert_eq!(
        extent.generation.0, version as u8,
        "an extent of two versions"
    );
    assert_eq!(extent.dirty, version % 3 == 0, "an extent of two versions");
    version
}

fn block_of(at: Sector) -> usize {
    (at.0 / BLOCK) as usize
}

/// Looks until told to stop, and notices whatever is wrong. Returns how often it looked.
fn read(shared: &Shared, reader: &Reader, seed: u64, rounds: u64) -> u64 {
    let mut random = Random(seed);
    let mut seen = vec![0; shared.versions.len()];
    let mut looks = 0;
    while !shared.done.load(Ordering::Relaxed) && looks < rounds {
        // Alone and together, in turn.
        let at = [(); TOGETHER].map(|()| Sector(random.below(SPACE)));
        let n = 1 + random.below(TOGETHER as u64) as usize;
        let known = at.map(|at| shared.versions[block_of(at)].load(Ordering::Acquire));
        let at = &at[..n];
        let found = match looks % 2 {
            0 => shared.index.lookup_all(reader, at)[..n].to_vec(),
            _ => {
                let look = |&at: &Sector| shared.index.lookup(reader, at);
                at.iter().map(look).collect()
            }
        };
        looks += n as u64;
        for ((&at, known), found) in at.iter().zip(known).zip(found) {
            let Lookup::Hit(extent) = found else {
                panic!("{at} is gone");
            };
            assert!(extent.start <= at && at < extent.end());
            let version = version_of(&extent);
            assert!(version >= known, "an insert that had returned was not seen");
            let seen = &mut seen[block_of(at)];
            assert!(version >= *seen, "a version went back");
            *seen = version;
            let is_still = at.0 % STILL_EVERY < BLOCK;
            assert!(!is_still || (version == 1 && extent.sectors == BLOCK as u32));
        }
        reader.quiesce();
    }
    looks
}

/// Writes over everything but the still blocks, in pieces of all lengths.
fn write(
    writer: &mut Writer,
    shared: &Shared,
    versions: std::ops::Range<u64>,
    random: &mut Random,
) {
    for version in versions {
        let stripe = random.below(SPACE / STILL_EVERY) * STILL_EVERY + BLOCK;
        let blocks = STILL_EVERY / BLOCK - 1;
        let first = random.below(blocks);
        // Mostly single blocks, so that there are many pages, and now and then a whole stripe.
        let most = if random.below(16) == 0 { blocks } else { 1 };
        let count = 1 + random.below(most.min(blocks - first));
        let start = stripe + first * BLOCK;
        writer.insert(extent(start, (count * BLOCK) as u32, version), &mut |_| {});
        let first = (start / BLOCK) as usize;
        for block in &shared.versions[first..first + count as usize] {
            block.store(version, Ordering::Release);
        }
        if version % 1000 == 0 {
            writer.reclaim();
        }
    }
}

fn start(domain: &Arc<Domain>) -> (Writer, Arc<Shared>) {
    let mut writer = Writer::new(Arc::clone(domain));
    for block in 0..SPACE / BLOCK {
        writer.insert(extent(block * BLOCK, BLOCK as u32, 1), &mut |_| {});
    }
    let shared = Arc::new(Shared {
        index: writer.index(),
        versions: (0..SPACE / BLOCK).map(|_| AtomicU64::new(1)).collect(),
        done: AtomicBool::new(false),
    });
    (writer, shared)
}

/// Ends the readers also when the writer panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_never_miss_what_is_there_nor_see_what_is_not() {
    let domain = Domain::new(8);
    let (mut writer, shared) = start(&domain);
    thread::scope(|scope| {
        let _done = Done(&shared.done);
        for seed in 1..4 {
            let (shared, domain) = (&shared, &domain);
            scope.spawn(move || read(shared, &domain.reader().unwrap(), seed, u64::MAX));
        }
        write(&mut writer, &shared, 2..60_000, &mut Random(99));
    });
    while writer.reclaim() > 0 {}
    assert!(writer.bytes() < 512 * 1024, "{} bytes", writer.bytes());
}

#[test]
fn readers_come_and_go_while_the_writer_writes() {
    let domain = Domain::new(3);
    let (mut writer, shared) = start(&domain);
    thread::scope(|scope| {
        let _done = Done(&shared.done);
        for seed in 1..5 {
            let (shared, domain) = (&shared, &domain);
            scope.spawn(move || {
                let mut turn = seed;
                while !shared.done.load(Ordering::Relaxed) {
                    turn += 4;
                    // Four threads share three slots.
                    let Some(reader) = domain.reader() else {
                        thread::yield_now();
                        continue;
                    };
                    read(shared, &reader, turn, 50);
                    reader.offline();
                    thread::yield_now();
                    read(shared, &reader, turn + 1, 50);
                }
            });
        }
        write(&mut writer, &shared, 2..40_000, &mut Random(5));
    });
    assert_eq!(
        (0..3)
            .filter_map(|_| domain.reader())
            .collect::<Vec<_>>()
            .len(),
        3
    );
}

#[test]
fn sectors_beside_a_removal_stay() {
    let domain = Domain::new(4);
    let (mut writer, shared) = start(&domain);
    thread::scope(|scope| {
        let _done = Done(&shared.done);
        for seed in 1..3 {
            let (shared, domain) = (&shared, &domain);
            scope.spawn(move || {
                let (reader, mut random) = (domain.reader().unwrap(), Random(seed));
                while !shared.done.load(Ordering::Relaxed) {
                    let still = random.below(SPACE / STILL_EVERY) * STILL_EVERY;
                    let at = Sector(still + random.below(BLOCK));
                    let expected = Lookup::Hit(extent(still, BLOCK as u32, 1));
                    assert_eq!(shared.index.lookup(&reader, at), expected);
                    // From anywhere, the next still block is the furthest there is to see.
                    let from = random.below(SPACE - STILL_EVERY);
                    match shared.index.lookup(&reader, Sector(from)) {
                        Lookup::Hit(extent) => drop(version_of(&extent)),
                        Lookup::Hole { next } => {
                            assert!(next.0 > from && next.0 <= from.next_multiple_of(STILL_EVERY));
                        }
                    }
                    reader.quiesce();
                }
            });
        }
        let mut random = Random(77);
        for version in 2..400 {
            writer.reclaim();
            // Whole stripes go and come back, so that pages empty, merge and split all the time.
            let first = random.below(SPACE / STILL_EVERY);
            let count = 1 + random.below(8).min(SPACE / STILL_EVERY - first - 1);
            for stripe in first..first + count {
                let start = stripe * STILL_EVERY + BLOCK;
                writer.remove(
                    Sector(start),
                    Sector(start - BLOCK + STILL_EVERY),
                    &mut |_| {},
                );
            }
            for stripe in first..first + count {
                for block in 1..STILL_EVERY / BLOCK {
                    let start = stripe * STILL_EVERY + block * BLOCK;
                    writer.insert(extent(start, BLOCK as u32, version), &mut |_| {});
                }
            }
        }
    });
}
