//! Writes a first corpus for every target into `corpus/`, from the golden images.
//!
//! `cargo run --bin corpus`, then `cargo +nightly fuzz run open`. A stable compiler will do too, with
//! the flags that cargo-fuzz sets:
//!
//! ```text
//! RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!   -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table" \
//!   cargo build --release --target x86_64-unknown-linux-gnu --bin open
//! target/x86_64-unknown-linux-gnu/release/open corpus/open
//! ```

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::fs;
use std::path::Path;

use fixtures::hostile::Target;
use fixtures::reader::{Reader, SUPER};
use fixtures::{CASES, load};
use spdk_bcache::format::key::{Key, Ptr, encoded_bytes};
use spdk_bcache::format::{bset, prio};
use spdk_bcache::units::{Gen, Sector};

/// As in the target `structures`.
const SET_MAGIC: u64 = 0x1122_3344_5566_7788;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(name), bytes).expect("a file");
}

fn structures(case: &str, reader: &Reader) {
    let (mut node, ptr) = (vec![0], Ptr::new(0, Sector(640), Gen(3)));
    for set in &reader.nodes[0].image.sets {
        let keys: &[Key] = &set[..set.len().min(64)];
        if !keys.is_empty() && encoded_bytes(keys) < 4096 {
            bset::set_encode(77, ptr, SET_MAGIC, keys, 1, &mut node);
        }
    }
    write("structures", &format!("{case}-node"), &node);
    let mut entry = vec![1];
    reader.newest.encode(SET_MAGIC, 1, &mut entry);
    write("structures", &format!("{case}-entry"), &entry);
    let set = prio::PrioSet {
        seq: 3,
        version: 0,
        next_bucket: 9,
        entries: reader
            .generations
            .iter()
            .take(100)
            .map(|&g| (7, g))
            .collect(),
    };
    let mut prios = vec![0; 1 + 512];
    set.encode(SET_MAGIC, &mut prios[1..]);
    prios[0] = 2;
    write("structures", &format!("{case}-prios"), &prios);
    let at = reader.uuid_place();
    let table = [&[3], &reader.golden.cache[at..at + 512]].concat();
    write("structures", &format!("{case}-uuids"), &table);
}

fn main() {
    for case in CASES {
        let golden = load(case);
        write("superblock", case, &golden.cache[SUPER]);
        for (i, image) in golden.backings.iter().enumerate() {
            write("superblock", &format!("{case}-back{i}"), &image[SUPER]);
        }
        structures(case, &Reader::of(golden));
    }
    // One change of each structure: which, sealed or not, where, the bytes.
    let count = Target::new("clean-dirty").structures.len();
    for which in 0..count.min(255) as u8 {
        for at in [8u8, 16, 24, 28, 32, 40, 56] {
            let change = [which, 1, at, 0, 8, 1, 2, 3, 4, 0, 0, 0, 0];
            for target in ["image", "open"] {
                write(target, &format!("{which}-{at}"), &change);
            }
        }
    }
}
