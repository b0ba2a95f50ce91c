//! What Linux relies on without saying so, held by random lives of this engine: see
//! `docs/kernel-rules.md`.
//!
//! Each appended run is held to the rules by the engine's own assertions, and what a life leaves by the
//! offline check. Small changes in the middle of longer keys are what breaks a writer that does not
//! know the rules: keys of data, deletions, and keys whose data have been evicted since.

use serde_json::json;
use spdk_bcache::request::lane::Outcome;
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::check;
use spdk_bcache::sim::disk::Medium;
use spdk_bcache::sim::machine::{self, Machine};
use std::rc::Rc;

/// Sectors of a volume that a life writes to.
const SPAN: u64 = 24 * 1024;

/// A volume, and what its sectors hold as far as that is known.
struct Life {
    machine: Machine,
    rng: Rng,
    block: u64,
    holds: Vec<Option<u8>>,
}

impl Life {
    fn new(seed: u64, block: u64, media: &[&Rc<Medium>]) -> Life {
        Life {
            machine: Machine::new(media),
            rng: Rng::new(seed),
            block,
            holds: vec![Some(0); SPAN as usize],
        }
    }

    fn note(&mut self, start: u64, sectors: u64, byte: Option<u8>) {
        self.holds[start as usize..][..sectors as usize].fill(byte);
    }

    fn write(&mut self, start: u64, sectors: u64) {
        let byte = self.rng.below(255) as u8 + 1;
        let done = self.machine.write("Vol0", start, sectors, byte);
        assert_eq!(done, Outcome::Success);
        self.note(start, sectors, Some(byte));
    }

    fn unmap(&mut self, start: u64, sectors: u64) {
        assert_eq!(self.machine.unmap("Vol0", start, sectors), Outcome::Success);
        self.note(start, sectors, None);
    }

    /// A range of so many blocks at most.
    fn range(&self, blocks_max: u64) -> (u64, u64) {
        let blocks = 1 + self.rng.below(blocks_max);
        let start = self.rng.below(SPAN / self.block - blocks);
        (start * self.block, blocks * self.block)
    }

    /// Long keys in rows, then small changes in the middle of every other one, of several.
    fn rows(&mut self, deleted: bool) {
        let long = 8 * self.block;
        let rows = SPAN / (long + self.block);
        let first = self.rng.below(rows / 2);
        let all = first..(first + 120).min(rows);
        for row in all.clone() {
            let at = row * (long + self.block);
            match deleted {
                true => self.unmap(at, long),
                false => self.write(at, long),
            }
        }
        self.machine.write_leaves();
        for row in all.filter(|row| row % 4 > 0) {
            let at = row * (long + self.block);
            self.write(at + self.block * (1 + self.rng.below(6)), self.block);
        }
        self.machine.write_leaves();
    }

    fn anything(&mut self, changes: u64) {
        for i in 0..changes {
            let (start, sectors) = self.range(match self.rng.below(3) {
                0 => 64,
                _ => 2,
            });
            match self.rng.below(8) {
                0 => self.unmap(start, sectors),
                _ => self.write(start, sectors),
            }
            if i % 40 == 39 {
                self.machine.write_leaves();
            }
        }
    }

    fn verify(&self, case: &str) {
        for start in (0..SPAN).step_by(2048) {
            let data = self.machine.read("Vol0", start, 2048).expect("a read");
            for (at, sector) in (start..).zip(data.chunks(512)) {
                if let Some(byte) = self.holds[at as usize] {
                    assert!(sector.iter().all(|&b| b == byte), "{case}: sector {at}");
                }
            }
        }
    }
}

/// A life on a cache of so many buckets: every run that it appends, and what it leaves, is right.
fn live(seed: u64, bucket_kb: u64, block_bytes: u64, mode: &str) {
    let case = format!("seed {seed}, buckets of {bucket_kb} KiB, blocks of {block_bytes}, {mode}");
    let cache = Medium::new("cache", 2 * bucket_kb * 24 * 1024 / bucket_kb.min(64), 1);
    let backing = machine::blank("backing");
    let block = block_bytes / 512;
    let mut life = Life::new(seed, block, &[&cache, &backing]);
    let options = json!({"mode": mode, "bucket_size_kb": bucket_kb, "block_size": block_bytes});
    let created = life.machine.create("cache", "backing", options);
    created.unwrap_or_else(|error| panic!("{case}: {error:?}"));
    for round in 0..3 {
        life.rows(false);
        life.rows(true);
        life.anything(200);
        life.verify(&case);
        if round == 1 {
            assert_eq!(life.machine.flush("Vol0"), Outcome::Success);
            life.machine.die();
            let backings = [Some(backing.clone())];
            check::offline_own(&cache, &backings).unwrap_or_else(|why| panic!("{case}: {why}"));
            life.machine = Machine::new(&[&cache, &backing]);
            life.machine.register("cache").expect("it starts");
            life.machine.register("backing").expect("it starts");
            life.verify(&case);
        }
    }
    life.machine.write_leaves();
    life.machine.die();
    check::offline_own(&cache, &[Some(backing)]).unwrap_or_else(|why| panic!("{case}: {why}"));
}

#[test]
fn changes_inside_of_longer_keys_leave_what_linux_reads() {
    for (seed, bucket_kb) in [(1, 8), (2, 16), (3, 64), (4, 256)] {
        live(seed, bucket_kb, 512, "writeback");
    }
    live(5, 64, 4096, "writeback");
}

#[test]
fn deletions_and_fills_inside_of_deletions_leave_what_linux_reads() {
    for (seed, bucket_kb) in [(11, 16), (12, 64)] {
        live(seed, bucket_kb, 512, "writethrough");
    }
    live(13, 16, 4096, "writearound");
}

#[test]
fn a_set_that_linux_hangs_on_is_made_only_when_forced() {
    let (cache, backing) = (machine::blank("cache"), machine::blank("backing"));
    let m = Machine::new(&[&cache, &backing]);
    let one_block = |force| json!({"bucket_size_kb": 4, "block_size": 4096, "force": force});
    let refused = m.create("cache", "backing", one_block(false));
    let why = refused.expect_err("Linux hangs on it").message;
    assert!(
        why.contains("Linux hangs") && why.contains("force=true"),
        "{why}"
    );
    m.create("cache", "backing", one_block(true))
        .expect("forced");
    // Two blocks are enough.
    let (cache, backing) = (machine::blank("cache"), machine::blank("backing"));
    let m = Machine::new(&[&cache, &backing]);
    let two_blocks = json!({"bucket_size_kb": 4, "block_size": 2048});
    m.create("cache", "backing", two_blocks).expect("it starts");
}
