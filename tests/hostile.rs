//! Hostile devices: golden images with bytes changed at random, by the thousand.
//!
//! Each run changes some structures of a set, mostly with checksums that are right again, and gives
//! the result to the offline check and to the engine's open path. Neither may panic, go on for
//! ever, or ask for more memory at once than its structures take; a device that is refused has had
//! nothing written to it, and the reason names the device. A set that opens all the same must run
//! and stop.
//!
//! `HOSTILE_SEED=n` runs one seed, `HOSTILE_RUNS=n` so many.

mod fixtures;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use fixtures::hostile::{Target, open, register};
use fixtures::lab::Lab;
use fixtures::load;
use fixtures::reader::SUPER;
use spdk_bcache::format::key::{Key, Ptr};
use spdk_bcache::format::superblock::{SUPER_BYTES, reseal};
use spdk_bcache::limits::MAX_KEY_OFFSET;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::units::{BucketNr, Gen, Inode, Sector};

/// Runs of each case in the fixed budget: about 15 s of one processor in all.
const RUNS: &[(&str, u64)] = &[
    ("clean-dirty", 200),
    ("crash-dirty", 150),
    ("flash-volume", 150),
    ("overlaps-crash", 100),
    ("deep-tree", 40),
];

/// Changes a structure somewhere, in one of several ways.
fn spoil(bytes: &mut [u8], rng: &Rng) {
    // Half of all changes go to the header and the first keys, where most is decided.
    let len = bytes.len() as u64;
    let within = if rng.below(2) == 0 { len.min(300) } else { len };
    let at = rng.below(within) as usize;
    let aligned = |at: usize| at.min(bytes.len() - 8) / 8 * 8;
    let (word, next_key) = (aligned(at), aligned(at + 24));
    let any = aligned(rng.below(len) as usize);
    let read = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let new = match rng.below(10) {
        0..4 => read(word) ^ 1 << rng.below(64),
        4 => [0, u64::MAX, i64::MAX as u64][rng.below(3) as usize],
        5 => rng.next(),
        // Small numbers look like counts, levels and buckets.
        6 => rng.below(1 << (1 + rng.below(16))),
        7 => read(any),
        8 => {
            // Two keys change places, in part.
            let (old, other) = (read(word), read(next_key));
            bytes[next_key..next_key + 8].copy_from_slice(&old.to_le_bytes());
            other
        }
        _ => read(word).wrapping_add(1 << rng.below(64)),
    };
    bytes[word..word + 8].copy_from_slice(&new.to_le_bytes());
}

/// How runs ended.
#[derive(Debug, Default)]
struct Tally {
    runs: u64,
    refused: u64,
    opened: u64,
    clean: u64,
    /// The engine refused what the check finds nothing wrong with.
    missed: Vec<String>,
}

fn run(target: &mut Target, seed: u64, tally: &mut Tally) {
    let rng = Rng::new(seed);
    for _ in 0..1 + rng.below(3) {
        let which = rng.below(target.structures.len() as u64) as usize;
        let (seal, twice) = (rng.below(8) > 0, rng.below(2) == 0);
        target.change(which, seal, |bytes| {
            spoil(bytes, &rng);
            if twice {
                spoil(bytes, &rng);
            }
        });
    }
    let clean = target.check();
    tally.runs += 1;
    tally.clean += u64::from(clean);
    match target.open(seed) {
        Ok(()) => tally.opened += 1,
        Err(why) => {
            tally.refused += 1;
            if clean {
                tally.missed.push(format!("seed {seed}: {why}"));
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_on_a_device_panics_hangs_or_is_written_over_when_refused() {
    let (mut tally, mut failed) = (Tally::default(), Vec::new());
    for (i, &(case, runs)) in RUNS.iter().enumerate() {
        let mut target = Target::new(case);
        let first = (i as u64 + 1) << 32;
        let seeds = match number("HOSTILE_SEED") {
            Some(seed) if seed >> 32 == first >> 32 => seed..seed + 1,
            Some(_) => 0..0,
            None => first..first + number("HOSTILE_RUNS").unwrap_or(runs),
        };
        for seed in seeds {
            let ran = catch_unwind(AssertUnwindSafe(|| run(&mut target, seed, &mut tally)));
            target.reset();
            if ran.is_err() {
                eprintln!("{case}: replay with HOSTILE_SEED={seed} cargo test --test hostile");
                failed.push(seed);
            }
        }
    }
    eprintln!("{tally:#?}");
    assert!(failed.is_empty(), "{} seeds fail: {failed:?}", failed.len());
    assert!(
        tally.missed.is_empty(),
        "the check sees nothing wrong: {:#?}",
        tally.missed
    );
}

/// A damage that must be refused: where, how it is made, and the words that must be said of it.
type Refused = (&'static str, fn(&mut Lab), &'static [&'static str]);

/// A key for a block of each bucket that holds nothing.
fn fill_every_bucket(l: &mut Lab) {
    let (reader, bytes) = (&l.reader, l.bucket_bytes());
    let mut used = reader.prio_places();
    used.push(reader.uuid_place());
    used.extend(
        reader
            .nodes
            .iter()
            .map(|node| node.ptr.sector().bytes() as usize),
    );
    let extents = reader.extents();
    let behind = extents.iter().map(|key| key.end.0).max().unwrap_or(0);
    used.extend(
        extents
            .iter()
            .map(|key| key.ptr.expect("an extent").sector().bytes() as usize),
    );
    let used: BTreeSet<usize> = used.into_iter().map(|at| at / bytes).collect();
    let first = reader
        .cache
        .journal_buckets
        .last()
        .expect("a journal")
        .index()
        + 1;
    let (block, inode) = (u32::from(reader.cache.block_sectors), reader.inode(0));
    let buckets = (first..reader.cache.nbuckets as usize).filter(|b| !used.contains(b));
    let keys: Vec<Key> = buckets
        .enumerate()
        .map(|(i, b)| Key {
            inode,
            end: Sector(behind + (i as u64 + 1) * u64::from(block)),
            size_sectors: block,
            dirty: true,
            ptr: Some(Ptr::new(
                0,
                Sector((b * bytes / 512) as u64),
                reader.generations[b],
            )),
        })
        .collect();
    // As the first entry of the next journal bucket: there is room for all of them.
    let (mut entry, cache) = (reader.newest.clone(), &reader.cache);
    (entry.seq, entry.keys) = (entry.seq.next(), keys);
    let here = BucketNr((reader.entries[&reader.newest.seq.0].0 / bytes) as u32);
    let mut ring = cache.journal_buckets.iter().cycle();
    ring.find(|&&b| b == here).expect("it is in the ring");
    let at = ring.next().expect("a ring has no end").index() * bytes;
    let mut out = Vec::new();
    entry.encode(cache.set_magic(), block, &mut out);
    assert!(out.len() <= bytes, "it fits");
    l.golden.cache[at..at + out.len()].copy_from_slice(&out);
}

const REFUSED: &[Refused] = &[
    // A ring of one bucket.
    (
        "clean-dirty",
        |l| l.patch_super(206, &[1], true),
        &["byte 4302", "the journal has 1 bucket"],
    ),
    // Every bucket holds something: what would make room cannot be written.
    ("crash-dirty", fill_every_bucket, &["no free bucket"]),
    // The set would be begun anew, over its data.
    (
        "clean-dirty",
        |l| l.edit_super(|sb| sb.journal_buckets.clear()),
        &["byte 4302", "lists no journal"],
    ),
    // An extent that ends where all keys end has no place in the index.
    (
        "crash-dirty",
        |l| {
            let seq = l.middle_entry();
            l.edit_entry(seq, |e| e.keys[0].end = Sector(MAX_KEY_OFFSET));
        },
        &["bucket", "byte", "beyond the last"],
    ),
    // The first of several entries in a bucket is lost, so the bucket seems old.
    (
        "crash-dirty",
        |l| {
            let bucket_bytes = l.bucket_bytes();
            let at = l.reader.entries[&l.reader.newest.seq.0].0 / bucket_bytes * bucket_bytes;
            l.golden.cache[at + 100] ^= 1;
        },
        &["is missing", "bucket", "byte"],
    ),
    (
        "crash-dirty",
        |l| {
            let at = l.reader.entries[&l.middle_entry()].0;
            l.golden.cache[at + 240] ^= 1;
        },
        &["is missing", "bucket", "byte"],
    ),
    // The allocator would reuse the journal's bucket when the priorities are written next.
    (
        "clean-dirty",
        |l| {
            let journal = l.old_journal_bucket();
            let from = l.reader.prio_places()[0];
            let (to, bytes) = (journal.index() * l.bucket_bytes(), l.bucket_bytes());
            l.edit_newest(|e| e.prio_bucket[0] = journal.0.into());
            l.golden.cache.copy_within(from..from + bytes, to);
        },
        &["said to be in bucket", "cannot be", "the journal says so"],
    ),
    (
        "deep-tree",
        |l| l.edit_prio(0, |set| set.next_bucket = 3),
        &["bucket 3, which cannot be", "says so at byte 32"],
    ),
    (
        "deep-tree",
        |l| {
            let first = l.reader.newest.prio_bucket[0];
            l.edit_prio(0, |set| set.next_bucket = first);
        },
        &["comes back to bucket", "says so at byte 32"],
    ),
    // A table of its own in memory for every volume that a key names.
    (
        "flash-volume",
        |l| {
            let (node, set, _) = l.live_key();
            let last = l.reader.nodes[node].image.sets[set].len() - 1;
            l.edit_key((node, set, last), |key| key.inode = Inode(0xf_fff0));
        },
        &["bad extent", "bucket", "byte", "volume 1048560"],
    ),
    (
        "crash-dirty",
        |l| {
            let seq = l.middle_entry();
            l.edit_entry(seq, |e| e.keys[0].inode = Inode(0xf_fff0));
        },
        &["journal entry", "bucket", "byte", "volume 1048560"],
    ),
    (
        "deep-tree",
        |l| {
            let at = l.child();
            l.edit_key(at, |key| {
                key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)))
            });
        },
        &["bad child", "bucket", "byte", "1099511627776"],
    ),
    (
        "clean-dirty",
        |l| {
            let (a, b) = l.live_pair();
            l.edit_set(a, |keys| keys.swap(a.2, b.2));
        },
        &["btree node in bucket", "at byte", "out of order"],
    ),
];

#[test]
fn what_is_refused_is_said_with_its_place_and_not_written_to() {
    for (i, (case, spoil, words)) in REFUSED.iter().enumerate() {
        let mut lab = Lab::new(case);
        spoil(&mut lab);
        let medium = Medium::with_bytes("cache", lab.golden.cache.clone(), 1);
        let why = open(1, &medium).expect_err("it is damaged");
        for word in words.iter().chain(&["cache"]) {
            assert!(why.contains(word), "number {i}: {word:?} in {why:?}");
        }
        assert!(
            medium.bytes() == lab.golden.cache,
            "number {i} was written to"
        );
    }
}

/// Superblocks of both devices changed at random, and the whole way that devices come in by.
#[test]
fn hostile_superblocks_are_taken_or_refused_whole() {
    let golden = load("clean-dirty");
    let mut taken = [0u64; 2];
    for seed in 0..number("HOSTILE_RUNS").unwrap_or(24) {
        let rng = Rng::new(seed ^ 0x7375_7065);
        let mut images = [golden.cache.clone(), golden.backings[0].clone()];
        for image in &mut images {
            for _ in 0..rng.below(3) {
                let mut bytes: [u8; SUPER_BYTES] = image[SUPER].try_into().expect("its length");
                spoil(&mut bytes[..280], &rng);
                reseal(&mut bytes);
                image[SUPER].copy_from_slice(&bytes);
            }
        }
        let names = ["fast", "slow"].into_iter();
        let media = names
            .zip(images)
            .map(|(n, bytes)| Medium::with_bytes(n, bytes, 1));
        let mut media: Vec<Rc<Medium>> = media.collect();
        if rng.below(2) == 0 {
            media.reverse();
        }
        for (medium, is_taken) in media.iter().zip(register(seed, &media)) {
            taken[usize::from(medium.name() == "slow")] += u64::from(is_taken);
        }
    }
    eprintln!("caches taken: {}, backing devices: {}", taken[0], taken[1]);
    assert!(taken[0] > 0 && taken[1] > 0);
}
