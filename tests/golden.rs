//! The format against what Linux wrote: an offline reader opens every golden case with nothing
//! but `format`, reads every sector of every volume, and writes each structure back to the byte.

mod fixtures;

use fixtures::reader::{Reader, SUPER, backing_super, cache_super, journal_entries, sectors_of};
use fixtures::{CASES, load};
use spdk_bcache::format::merge::merge_inner;
use spdk_bcache::format::superblock::{BackingState, CacheMode, CacheSuper};
use spdk_bcache::format::{bset, jset, key, prio, uuids};
use spdk_bcache::limits::{fresh_node_sectors, meta_bucket_bytes};
use spdk_bcache::units::SECTOR_BYTES;

fn reads_back(case: &str) {
    let reader = Reader::open(case);
    assert_eq!(
        reader.wrong_sectors(&reader.extents()),
        0,
        "{case}: wrong sectors"
    );
}

#[test]
fn clean_dirty_reads_back() {
    reads_back("clean-dirty");
}

#[test]
fn crash_dirty_reads_back() {
    reads_back("crash-dirty");
}

#[test]
fn power_cut_reads_back() {
    reads_back("power-cut");
}

#[test]
fn overlaps_crash_reads_back() {
    reads_back("overlaps-crash");
}

#[test]
fn two_backing_reads_back() {
    reads_back("two-backing");
}

#[test]
fn wrapped_reads_back() {
    reads_back("wrapped");
}

#[test]
fn deep_tree_reads_back() {
    reads_back("deep-tree");
}

#[test]
fn flash_volume_reads_back() {
    reads_back("flash-volume");
}

/// A canary: the reads above prove something only where leaving a step of recovery out shows.
#[test]
fn without_replay_or_generations_old_bytes_are_read() {
    for case in ["power-cut", "overlaps-crash", "two-backing", "wrapped"] {
        let reader = Reader::open(case);
        assert_ne!(
            reader.wrong_sectors(&reader.tree),
            0,
            "{case}: journal alone"
        );
    }
    let reader = Reader::open("wrapped");
    assert_ne!(
        reader.wrong_sectors(&reader.replayed_tree()),
        0,
        "stale pointers"
    );
}

#[test]
fn superblocks_are_written_back_to_the_byte() {
    for case in CASES {
        let golden = load(case);
        let cache = cache_super(&golden);
        assert_eq!(cache.encode()[..], golden.cache[SUPER], "{case}");
        assert!(cache.sync());
        assert_eq!(cache.check_device(sectors_of(&golden.cache)), Ok(()));
        for image in &golden.backings {
            let backing = backing_super(image);
            assert_eq!(backing.encode()[..], image[SUPER], "{case}");
            assert_eq!(backing.set_uuid, cache.set_uuid);
            assert_eq!(backing.cache_mode(), CacheMode::WriteBack);
            assert_eq!(backing.state(), BackingState::Dirty);
            assert_eq!(backing.check_device(sectors_of(image)), Ok(()));
        }
    }
}

/// What make-bcache formatted, and the kernel's first run, come out of our own constructors.
#[test]
fn a_fresh_device_has_the_geometry_of_a_golden_one() {
    for case in CASES {
        let golden = load(case);
        let theirs = cache_super(&golden);
        let mut ours = CacheSuper::new(
            theirs.set_uuid,
            theirs.uuid,
            sectors_of(&golden.cache),
            theirs.block_sectors,
            theirs.bucket_sectors,
        )
        .expect("sizes that Linux takes");
        ours.prepare_first_run();
        ours.set_sync(true);
        (ours.seq, ours.last_mount) = (theirs.seq, theirs.last_mount);
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn journal_entries_are_written_back_to_the_byte() {
    for case in CASES {
        let golden = load(case);
        let cache = cache_super(&golden);
        for (at, entry) in journal_entries(&golden, &cache).into_values() {
            let mut bytes = Vec::new();
            entry.encode(cache.set_magic(), cache.block_sectors.into(), &mut bytes);
            let used = jset::HEADER_BYTES + key::encoded_bytes(&entry.keys);
            assert_eq!(
                bytes[..used],
                golden.cache[at..at + used],
                "{case} {:?}",
                entry.seq
            );
        }
    }
}

#[test]
fn nodes_are_written_back_to_the_byte() {
    for case in CASES {
        let reader = Reader::open(case);
        let block_sectors = reader.geometry.block_sectors;
        for node in &reader.nodes {
            let theirs = &reader.golden.cache[node.bytes.clone()];
            assert_eq!(
                theirs.len() / SECTOR_BYTES,
                fresh_node_sectors(reader.geometry.bucket_sectors) as usize
            );
            let mut ours = Vec::new();
            for keys in &node.image.sets {
                let at = ours.len();
                let magic = reader.cache.set_magic();
                bset::set_encode(
                    node.image.seq,
                    node.ptr,
                    magic,
                    keys,
                    block_sectors,
                    &mut ours,
                );
                let used = at..at + bset::set_bytes(key::encoded_bytes(keys));
                assert_eq!(
                    ours[used.clone()],
                    theirs[used],
                    "{case} level {}",
                    node.level
                );
            }
            let blocks = ours.len() / SECTOR_BYTES / block_sectors as usize;
            assert_eq!(blocks as u32, node.image.written_blocks);
        }
    }
}

#[test]
fn prios_and_uuids_are_written_back_to_the_byte() {
    for case in CASES {
        let reader = Reader::open(case);
        let magic = reader.cache.set_magic();
        let mut ours = vec![0xff; meta_bucket_bytes(reader.cache.bucket_sectors)];
        let mut seqs = Vec::new();
        for at in reader.prio_places() {
            let theirs = &reader.golden.cache[at..at + ours.len()];
            let set = prio::parse(theirs, magic).unwrap();
            set.encode(magic, &mut ours);
            assert!(ours == theirs, "{case}: prio set at byte {at}");
            seqs.push(set.seq);
        }
        assert!(
            seqs.windows(2).all(|pair| pair[0] == pair[1]),
            "{case}: one writing, one number"
        );
        let at = reader.uuid_place();
        uuids::encode(&reader.uuids, &mut ours);
        assert!(
            ours == reader.golden.cache[at..at + ours.len()],
            "{case}: uuid table"
        );
    }
}

#[test]
fn the_deep_tree_is_deep_and_its_freed_children_are_told() {
    let reader = Reader::open("deep-tree");
    assert_eq!(reader.newest.level, 2);
    let inner = reader.nodes.iter().filter(|node| node.level > 0);
    let freed: usize = inner
        .map(|n| merge_inner(&n.image.sets, |_| false).freed.len())
        .sum();
    assert!(freed > 0);
}

/// Whatever single byte of a node, a journal entry or a prio set is lost, it is noticed.
#[test]
fn one_wrong_byte_is_found_anywhere() {
    let reader = Reader::open("clean-dirty");
    let (magic, block_sectors) = (reader.cache.set_magic(), reader.geometry.block_sectors);
    for node in &reader.nodes {
        let mut bytes = reader.golden.cache[node.bytes.clone()].to_vec();
        let first = bset::set_bytes(key::encoded_bytes(&node.image.sets[0]));
        for at in (0..first).step_by(7) {
            bytes[at] ^= 0x40;
            let read = bset::node_read(&bytes, magic, node.ptr, block_sectors);
            assert!(read.is_err(), "byte {at} of a node");
            bytes[at] ^= 0x40;
        }
    }
    let (at, entry) = &reader.entries[&reader.newest.seq.0];
    let mut bytes = reader.golden.cache[*at..at + 4096].to_vec();
    for i in 0..jset::HEADER_BYTES + key::encoded_bytes(&entry.keys) {
        bytes[i] ^= 1;
        assert!(
            jset::parse(&bytes, magic, block_sectors).is_err(),
            "byte {i} of an entry"
        );
        bytes[i] ^= 1;
    }
    let at = reader.prio_places()[0];
    let mut bytes = reader.golden.cache[at..at + reader.bucket_bytes()].to_vec();
    for i in (0..bytes.len()).step_by(61) {
        bytes[i] ^= 0x80;
        assert!(
            prio::parse(&bytes, magic).is_err(),
            "byte {i} of a prio set"
        );
        bytes[i] ^= 0x80;
    }
}
