//! The offline check: nothing to find on what Linux and this engine leave, and every one of a list
//! of seeded corruptions found under its own name.
//!
//! What a checksum would give away by itself is sealed anew, so that the finding is the one meant.

mod fixtures;

use std::collections::BTreeSet;

use fixtures::lab::{At, Lab, check_images, patch_super};
use fixtures::reader::{Reader, SUPER};
use fixtures::{CASES, load};
use spdk_bcache::check::report::Kind;
use spdk_bcache::check::{Image, Source, check};
use spdk_bcache::format::bset::HEADER_BYTES;
use spdk_bcache::format::jset;
use spdk_bcache::format::key::{Key, Ptr, encoded_bytes};
use spdk_bcache::format::prio;
use spdk_bcache::format::superblock::{BackingState, CacheSuper};
use spdk_bcache::units::{Gen, Inode, SECTOR_BYTES, Sector, Uuid};

#[test]
fn nothing_is_wrong_with_what_linux_left() {
    for case in CASES {
        let golden = load(case);
        let report = check_images(&golden.cache, &golden.backings).expect("a cache device");
        assert!(report.clean, "{case}: {:#?}", report.findings);
        assert!(
            report.summary.extents > 0 && report.summary.nodes > 0,
            "{case}"
        );
        let reader = Reader::of(golden);
        let dirty = reader.extents().iter().filter(|key| key.dirty).count();
        assert!(dirty as u64 <= report.summary.extents, "{case}");
    }
}

/// A corruption: what it is called, in which case it is made, what must be found, how it is made.
type Corruption = (&'static str, &'static str, Kind, fn(&mut Lab));

const OF_SUPERBLOCKS: &[Corruption] = &[
    ("magic", "clean-dirty", Kind::SuperMagic, |l| {
        l.patch_super(24, &[0], true)
    }),
    ("offset", "clean-dirty", Kind::SuperOffset, |l| {
        l.patch_super(8, &[9], true)
    }),
    (
        "a bit of the label",
        "clean-dirty",
        Kind::SuperChecksum,
        |l| l.patch_super(80, &[1], false),
    ),
    ("version", "clean-dirty", Kind::SuperVersion, |l| {
        l.patch_super(16, &[99], true)
    }),
    ("features", "clean-dirty", Kind::SuperVersion, |l| {
        l.patch_super(16, &[5], false);
        l.patch_super(128, &[0x80], true);
    }),
    ("no set uuid", "clean-dirty", Kind::SuperUuid, |l| {
        l.patch_super(56, &[0; 16], true)
    }),
    ("bucket size", "clean-dirty", Kind::SuperGeometry, |l| {
        l.patch_super(194, &[48, 0], true)
    }),
    ("block size", "clean-dirty", Kind::SuperGeometry, |l| {
        l.patch_super(192, &[16, 0], true)
    }),
    (
        "journal not in a row",
        "clean-dirty",
        Kind::SuperJournal,
        |l| l.patch_super(216, &[9], true),
    ),
    (
        "a journal forgotten",
        "clean-dirty",
        Kind::SuperJournal,
        |l| l.edit_super(|sb| sb.journal_buckets.clear()),
    ),
    ("a journal of one", "clean-dirty", Kind::SuperJournal, |l| {
        l.patch_super(206, &[1], true)
    }),
    (
        "device cut short",
        "clean-dirty",
        Kind::DeviceTooSmall,
        |l| {
            l.golden.cache.truncate(l.golden.cache.len() - 4096);
        },
    ),
    ("a cache mode", "clean-dirty", Kind::SuperMode, |l| {
        patch_super(&mut l.golden.backings[0], 104, &[9], true);
    }),
    ("never started", "clean-dirty", Kind::NotStarted, |l| {
        l.edit_super(|sb| sb.set_sync(false));
    }),
    (
        "clean with dirty keys",
        "clean-dirty",
        Kind::StateNotDirty,
        |l| {
            l.set_state(BackingState::Clean);
        },
    ),
    (
        "none with dirty keys",
        "crash-dirty",
        Kind::StateNotDirty,
        |l| {
            l.set_state(BackingState::None);
        },
    ),
    (
        "stale with dirty keys",
        "clean-dirty",
        Kind::StateStale,
        |l| {
            l.set_state(BackingState::Stale);
        },
    ),
    (
        "of another set",
        "clean-dirty",
        Kind::BackingElsewhere,
        |l| {
            patch_super(&mut l.golden.backings[0], 56, &[1; 16], true);
        },
    ),
    (
        "a cache as backing",
        "clean-dirty",
        Kind::BackingElsewhere,
        |l| {
            l.golden.backings[0] = l.golden.cache.clone();
        },
    ),
    (
        "an unknown uuid",
        "clean-dirty",
        Kind::BackingUnknown,
        |l| {
            patch_super(&mut l.golden.backings[0], 40, &[1; 16], true);
        },
    ),
    ("the same twice", "clean-dirty", Kind::BackingTwice, |l| {
        l.golden.backings.push(l.golden.backings[0].clone());
    }),
    (
        "smaller blocks than the cache's",
        "clean-dirty",
        Kind::BlockSize,
        |l| {
            l.edit_super(|sb| sb.block_sectors = 8);
            patch_super(&mut l.golden.backings[0], 192, &[1, 0], true);
        },
    ),
];

const OF_THE_JOURNAL: &[Corruption] = &[
    ("wiped", "crash-dirty", Kind::JournalEmpty, |l| {
        for bucket in l.reader.cache.journal_buckets.clone() {
            let at = bucket.index() * l.bucket_bytes();
            let bytes = l.bucket_bytes();
            l.golden.cache[at..at + bytes].fill(0);
        }
    }),
    ("an entry lost", "crash-dirty", Kind::JournalGap, |l| {
        let at = l.reader.entries[&l.middle_entry()].0;
        l.golden.cache[at + 8..at + 16].fill(0);
    }),
    ("an entry damaged", "crash-dirty", Kind::JournalGap, |l| {
        let at = l.reader.entries[&l.middle_entry()].0;
        l.golden.cache[at + 240] ^= 1;
    }),
    (
        "needs what is long gone",
        "crash-dirty",
        Kind::JournalGap,
        |l| {
            l.edit_newest(|e| e.last_seq.0 = 0);
        },
    ),
    ("brimful", "wrapped", Kind::JournalBrim, |l| {
        let oldest = *l.reader.entries.keys().next().expect("an entry");
        l.edit_newest(|e| e.last_seq.0 = oldest);
    }),
    ("too many", "clean-dirty", Kind::JournalBrim, |l| {
        l.edit_newest(|e| e.seq.0 += 40_000)
    }),
    (
        "a number from the future",
        "crash-dirty",
        Kind::JournalGap,
        |l| {
            l.edit_newest(|e| e.seq.0 += 1000);
        },
    ),
    (
        "the same number again",
        "clean-dirty",
        Kind::JournalTwice,
        |l| {
            let (at, _) = l.reader.entries[&l.reader.newest.seq.0];
            let to = l.old_journal_bucket().index() * l.bucket_bytes();
            l.golden.cache.copy_within(at..at + 4096, to);
        },
    ),
    ("an absurd level", "crash-dirty", Kind::JournalEntry, |l| {
        let (at, _) = l.reader.entries[&l.middle_entry()];
        l.golden.cache[at + 168] = 200;
        jset::reseal(&mut l.golden.cache[at..]);
    }),
    (
        "bytes that are no key",
        "crash-dirty",
        Kind::JournalEntry,
        |l| {
            let (at, _) = l.reader.entries[&l.middle_entry()];
            l.golden.cache[at + 247] = 0;
            jset::reseal(&mut l.golden.cache[at..]);
        },
    ),
    (
        "a key beyond the device",
        "crash-dirty",
        Kind::JournalKey,
        |l| {
            let seq = l.middle_entry();
            l.edit_entry(seq, |e| {
                let key = e
                    .keys
                    .iter_mut()
                    .find(|key| key.ptr.is_some())
                    .expect("a key");
                key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)));
            });
        },
    ),
    (
        "a root beyond the device",
        "clean-dirty",
        Kind::RootKey,
        |l| {
            l.edit_newest(|e| e.root.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0))));
        },
    ),
    (
        "a root that ends early",
        "clean-dirty",
        Kind::RootKey,
        |l| {
            l.edit_newest(|e| e.root.end.0 -= 1);
        },
    ),
    ("a level too much", "clean-dirty", Kind::RootLevel, |l| {
        l.edit_newest(|e| e.level += 1)
    }),
    ("a level too few", "deep-tree", Kind::RootLevel, |l| {
        l.edit_newest(|e| e.level -= 1)
    }),
    ("leaves for a root", "deep-tree", Kind::RootLevel, |l| {
        l.edit_newest(|e| e.level = 0)
    }),
];

const OF_PRIORITIES_AND_UUIDS: &[Corruption] = &[
    (
        "prios beyond the device",
        "clean-dirty",
        Kind::PrioPlace,
        |l| {
            l.edit_newest(|e| e.prio_bucket[0] = 1 << 40);
        },
    ),
    (
        "prios in the journal",
        "clean-dirty",
        Kind::PrioPlace,
        |l| {
            let journal = l.reader.cache.journal_buckets[0];
            l.edit_newest(|e| e.prio_bucket[0] = journal.0.into());
        },
    ),
    (
        "a chain that bites its tail",
        "deep-tree",
        Kind::PrioCycle,
        |l| {
            let first = l.reader.newest.prio_bucket[0];
            l.edit_prio(1, |set| set.next_bucket = first);
        },
    ),
    ("a chain of one", "deep-tree", Kind::PrioCycle, |l| {
        let first = l.reader.newest.prio_bucket[0];
        l.edit_prio(0, |set| set.next_bucket = first);
    }),
    (
        "prios of another set",
        "clean-dirty",
        Kind::PrioMagic,
        |l| {
            let at = l.reader.prio_places()[0];
            l.golden.cache[at + 8] ^= 1;
            let bytes = l.bucket_bytes();
            prio::reseal(&mut l.golden.cache[at..at + bytes]);
        },
    ),
    ("prios damaged", "clean-dirty", Kind::PrioChecksum, |l| {
        let at = l.reader.prio_places()[0];
        l.golden.cache[at + 1000] ^= 1;
    }),
    ("prios of two writings", "deep-tree", Kind::PrioSeq, |l| {
        l.edit_prio(1, |set| set.seq += 1)
    }),
    ("no uuid table", "clean-dirty", Kind::UuidPlace, |l| {
        l.edit_newest(|e| e.uuid_bucket = None)
    }),
    (
        "a uuid table beyond the device",
        "clean-dirty",
        Kind::UuidPlace,
        |l| {
            l.edit_newest(|e| {
                let key = e.uuid_bucket.as_mut().expect("a key");
                key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)));
            });
        },
    ),
    (
        "uuids where prios are",
        "clean-dirty",
        Kind::BucketTwice,
        |l| {
            let sector = Sector(l.reader.prio_places()[0] as u64 / 512);
            l.edit_newest(|e| {
                let key = e.uuid_bucket.as_mut().expect("a key");
                key.ptr = Some(Ptr::new(0, sector, Gen(0)));
            });
        },
    ),
    ("a uuid twice", "two-backing", Kind::UuidTwice, |l| {
        l.edit_uuids(|t| t[1].uuid = t[0].uuid)
    }),
    ("unknown flags", "clean-dirty", Kind::UuidEntry, |l| {
        l.edit_uuids(|t| t[0].flags = 0x80)
    }),
    ("no size", "flash-volume", Kind::UuidEntry, |l| {
        l.edit_uuids(|t| t[1].sectors = 0)
    }),
    ("a table of zeros", "clean-dirty", Kind::KeyVolume, |l| {
        l.edit_uuids(Vec::clear)
    }),
    (
        "a volume gone with dirty data",
        "clean-dirty",
        Kind::KeyVolume,
        |l| {
            l.edit_uuids(|t| t[0].invalidate(7));
        },
    ),
    ("a volume cut short", "flash-volume", Kind::KeyBeyond, |l| {
        l.edit_uuids(|t| t[1].sectors = 8);
    }),
    (
        "a backing device cut short",
        "clean-dirty",
        Kind::KeyBeyond,
        |l| {
            l.golden.backings[0].truncate(64 << 10);
        },
    ),
];

const OF_NODES: &[Corruption] = &[
    ("blank", "clean-dirty", Kind::NodeBlank, |l| {
        l.patch_set(l.root(), 0, 16, &[0; 8], true)
    }),
    ("magic", "clean-dirty", Kind::NodeMagic, |l| {
        l.patch_set(l.root(), 0, 8, &[1], true)
    }),
    ("version", "clean-dirty", Kind::NodeVersion, |l| {
        l.patch_set(l.root(), 0, 24, &[7], true)
    }),
    ("length", "clean-dirty", Kind::NodeLength, |l| {
        l.patch_set(l.root(), 0, 28, &[0xff; 4], false)
    }),
    ("a bit of a key", "clean-dirty", Kind::NodeChecksum, |l| {
        let (node, set, _) = l.live_key();
        l.patch_set(node, set, HEADER_BYTES + 8, &[0xff], false);
    }),
    ("an empty run", "deep-tree", Kind::NodeEmptySet, |l| {
        let node = l.node(|node| node.image.sets.len() > 1);
        l.patch_set(node, 1, 28, &[0; 4], true);
    }),
    ("no key", "clean-dirty", Kind::NodeKey, |l| {
        let (node, set, _) = l.live_key();
        l.patch_set(node, set, HEADER_BYTES + 7, &[0], true);
    }),
    ("two keys swapped", "clean-dirty", Kind::NodeOrder, |l| {
        let (a, b) = l.live_pair();
        l.edit_set(a, |keys| keys.swap(a.2, b.2));
    }),
    (
        "two keys that overlap",
        "clean-dirty",
        Kind::NodeOverlap,
        |l| {
            let (a, b) = l.live_pair();
            let end = l.key(a).end;
            l.edit_key(b, |key| key.end = end + 1);
        },
    ),
    (
        "a run that lost its predecessor",
        "clean-dirty",
        Kind::NodeStray,
        |l| {
            let root = l.root();
            let (at, end) = (l.set_at(root, 0), l.reader.nodes[root].bytes.end);
            let block = l.reader.geometry.block_sectors as usize * SECTOR_BYTES;
            l.golden.cache.copy_within(at..at + 32, end - block);
        },
    ),
    ("inside of keys", "kernel-splits", Kind::NodeMisread, |_| ()),
    (
        "a node that is its own child",
        "deep-tree",
        Kind::NodeTwice,
        |l| {
            let (at, own) = (l.child(), l.reader.newest.root.ptr);
            l.edit_key(at, |key| key.ptr = own);
        },
    ),
    ("two parents", "deep-tree", Kind::NodeTwice, |l| {
        let (at, other) = (l.child(), l.key(l.children()[1]).ptr);
        l.edit_key(at, |key| key.ptr = other);
    }),
    (
        "a child beyond the device",
        "deep-tree",
        Kind::ChildKey,
        |l| {
            let at = l.child();
            l.edit_key(at, |key| {
                key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)))
            });
        },
    ),
    ("a child without size", "deep-tree", Kind::ChildKey, |l| {
        let at = l.child();
        l.edit_key(at, |key| key.size_sectors = 0);
    }),
    (
        "a child whose bucket was reused",
        "deep-tree",
        Kind::ChildStale,
        |l| {
            let bucket = l.bucket_of(l.key(l.child()).ptr);
            l.raise_gen(bucket, 1);
        },
    ),
    (
        "the last child is gone",
        "deep-tree",
        Kind::ChildRange,
        |l| {
            let root = l.root();
            for (i, keys) in l.reader.nodes[root].image.sets.clone().iter().enumerate() {
                let is_last = |key: &&Key| key.position() != Key::MAX.position();
                let kept: Vec<Key> = keys.iter().filter(is_last).copied().collect();
                if kept.len() < keys.len() {
                    l.write_set(root, i, &kept);
                }
            }
        },
    ),
];

const OF_KEYS: &[Corruption] = &[
    ("beyond its node", "deep-tree", Kind::KeyRange, |l| {
        let (node, set, _) = l.live_key();
        let last = l.reader.nodes[node].image.sets[set].len() - 1;
        l.edit_key((node, set, last), |key| key.end.0 += 1 << 40);
    }),
    ("longer than its end", "clean-dirty", Kind::KeyStart, |l| {
        let (node, set, _) = l.live_key();
        l.edit_key((node, set, 0), |key| {
            (key.end, key.size_sectors) = (Sector(8), 16)
        });
    }),
    (
        "of another device",
        "clean-dirty",
        Kind::PointerDevice,
        |l| {
            let at = l.live_key();
            l.edit_key(at, |key| key.ptr = Some(Ptr::new(3, Sector(5000), Gen(0))));
        },
    ),
    (
        "beyond the device",
        "clean-dirty",
        Kind::PointerOutside,
        |l| {
            let at = l.live_key();
            l.edit_key(at, |key| {
                key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)))
            });
        },
    ),
    (
        "across two buckets",
        "clean-dirty",
        Kind::PointerCrosses,
        |l| {
            let (at, last) = (l.live_key(), l.reader.cache.bucket_sectors as u64 - 1);
            l.edit_key(at, |key| {
                key.ptr = key
                    .ptr
                    .map(|ptr| ptr.advance(last - ptr.sector().0 % (last + 1)))
            });
        },
    ),
    ("of half a block", "two-backing", Kind::KeyUnaligned, |l| {
        let at = l.live_key();
        l.edit_super(|sb| assert_eq!(sb.block_sectors, 8));
        l.edit_key(at, |key| key.ptr = key.ptr.map(|ptr| ptr.advance(1)));
    }),
    ("of no volume", "flash-volume", Kind::KeyVolume, |l| {
        let (node, set, _) = l.live_key();
        let last = l.reader.nodes[node].image.sets[set].len() - 1;
        l.edit_key((node, set, last), |key| key.inode = Inode(77));
    }),
    (
        "of an absurd volume",
        "flash-volume",
        Kind::KeyVolume,
        |l| {
            let (node, set, _) = l.live_key();
            let last = l.reader.nodes[node].image.sets[set].len() - 1;
            l.edit_key((node, set, last), |key| key.inode = Inode(0xf_fff0));
        },
    ),
    (
        "clean, and nowhere else",
        "flash-volume",
        Kind::FlashClean,
        |l| {
            let is_flash = |at: &&At| l.key(**at).inode == Inode(1);
            let at = *l
                .live()
                .iter()
                .find(is_flash)
                .expect("a key of the flash volume");
            l.edit_key(at, |key| key.dirty = false);
        },
    ),
    ("from the future", "clean-dirty", Kind::GenAhead, |l| {
        let at = l.live_key();
        let bucket = l.bucket_of(l.key(at).ptr);
        l.raise_gen(bucket, 0u8.wrapping_sub(3));
    }),
    ("a node from the future", "deep-tree", Kind::GenAhead, |l| {
        let bucket = l.bucket_of(l.key(l.child()).ptr);
        l.raise_gen(bucket, 0u8.wrapping_sub(2));
    }),
    ("older than can be", "clean-dirty", Kind::GenBehind, |l| {
        let at = l.live_key();
        let bucket = l.bucket_of(l.key(at).ptr);
        l.raise_gen(bucket, 110);
    }),
    (
        "data in the uuid table",
        "clean-dirty",
        Kind::DataInMeta,
        |l| {
            let (at, table) = (
                l.live_key(),
                l.reader.newest.uuid_bucket.expect("a key").ptr,
            );
            let bucket = l.bucket_of(table);
            let generation = l.reader.generations[bucket.index()];
            let sector = table.expect("a pointer").sector();
            l.edit_key(at, |key| key.ptr = Some(Ptr::new(0, sector, generation)));
        },
    ),
    ("data in a node", "clean-dirty", Kind::DataInMeta, |l| {
        let (at, root) = (l.live_key(), l.reader.newest.root.ptr);
        l.edit_key(at, |key| key.ptr = root);
    }),
    (
        "data in the journal",
        "clean-dirty",
        Kind::DataInMeta,
        |l| {
            let journal = l.reader.cache.journal_buckets[0];
            let sector = u64::from(journal.0) * u64::from(l.reader.cache.bucket_sectors);
            let generation = l.reader.generations[journal.index()];
            let at = l.live_key();
            l.edit_key(at, |key| {
                key.ptr = Some(Ptr::new(0, Sector(sector), generation))
            });
        },
    ),
    (
        "two keys of the same sectors",
        "clean-dirty",
        Kind::DataOverlap,
        |l| {
            let (a, b) = l.live_pair();
            let ptr = l.key(a).ptr;
            l.edit_key(b, |key| key.ptr = ptr);
        },
    ),
    ("more than fits", "clean-dirty", Kind::BucketOverfull, |l| {
        let (node, set, i) = l.live_key();
        let ptr = l.key((node, set, i)).ptr;
        l.edit_set((node, set, i), |keys| {
            keys.iter_mut().for_each(|key| key.ptr = key.ptr.and(ptr));
        });
    }),
];

/// Makes the corruption and asserts that it is found, with a place that exists.
fn assert_found(&(name, case, kind, spoil): &Corruption) {
    let mut lab = Lab::new(case);
    spoil(&mut lab);
    let report = check_images(&lab.golden.cache, &lab.golden.backings).expect("a cache device");
    assert!(!report.clean, "{name}: nothing was found");
    let found: Vec<_> = report.findings.iter().filter(|f| f.kind == kind).collect();
    assert!(
        !found.is_empty(),
        "{name}: not {kind:?} but {:#?}",
        report.findings
    );
    for finding in found {
        let place = &finding.place;
        let image = match place.device.strip_prefix("back") {
            Some(i) => &lab.golden.backings[i.parse::<usize>().expect("a number")],
            None => &lab.golden.cache,
        };
        let byte = place.byte.expect("a place") as usize;
        assert!(byte < image.len(), "{name}: {finding:?}");
        if place.device == "cache" && kind != Kind::DeviceTooSmall {
            assert!(place.bucket.is_some(), "{name}: {finding:?}");
        }
    }
}

#[test]
fn spoiled_superblocks_are_found() {
    OF_SUPERBLOCKS.iter().for_each(assert_found);
}

#[test]
fn a_spoiled_journal_is_found() {
    OF_THE_JOURNAL.iter().for_each(assert_found);
}

#[test]
fn spoiled_priorities_and_uuids_are_found() {
    OF_PRIORITIES_AND_UUIDS.iter().for_each(assert_found);
}

#[test]
fn spoiled_nodes_are_found() {
    OF_NODES.iter().for_each(assert_found);
}

#[test]
fn spoiled_keys_are_found() {
    OF_KEYS.iter().for_each(assert_found);
}

/// No kind but one is without a corruption that shows it; that one has the test below.
#[test]
fn every_kind_of_finding_is_seeded() {
    let lists = [
        OF_SUPERBLOCKS,
        OF_THE_JOURNAL,
        OF_PRIORITIES_AND_UUIDS,
        OF_NODES,
        OF_KEYS,
    ];
    let seeded: BTreeSet<Kind> = lists.iter().flat_map(|l| l.iter().map(|c| c.2)).collect();
    let missing: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|k| !seeded.contains(k))
        .collect();
    assert_eq!(missing, [Kind::Unreadable]);
}

/// The place of a finding is that of the damage, to the byte.
#[test]
fn places_are_exact() {
    let mut lab = Lab::new("clean-dirty");
    let at = lab.live_key();
    let sets = &lab.reader.nodes[at.0].image.sets;
    let before = encoded_bytes(&sets[at.1][..at.2]);
    let byte = lab.set_at(at.0, at.1) + HEADER_BYTES + before;
    lab.edit_key(at, |key| {
        key.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0)))
    });
    let report = check_images(&lab.golden.cache, &lab.golden.backings).expect("a cache");
    let finding = &report.findings[0];
    assert_eq!(finding.kind, Kind::PointerOutside);
    assert_eq!(finding.place.byte, Some(byte as u64));
    assert_eq!(
        finding.place.bucket,
        Some((byte / lab.bucket_bytes()) as u64)
    );
    assert!(
        finding.text.contains(&(1u64 << 40).to_string()),
        "{finding:?}"
    );
}

/// Several things that are wrong are all said.
#[test]
fn one_finding_does_not_hide_the_others() {
    let mut lab = Lab::new("two-backing");
    lab.patch_super(80, &[1], false);
    lab.set_state(BackingState::Clean);
    lab.edit_uuids(|table| table[1].flags = 0x80);
    let at = lab.live_key();
    lab.edit_key(at, |key| key.ptr = Some(Ptr::new(3, Sector(5000), Gen(0))));
    let report = check_images(&lab.golden.cache, &lab.golden.backings).expect("a cache");
    for kind in [
        Kind::SuperChecksum,
        Kind::StateNotDirty,
        Kind::UuidEntry,
        Kind::PointerDevice,
    ] {
        assert!(report.has(kind), "{kind:?} in {:#?}", report.findings);
    }
}

/// An image of which a part cannot be read.
struct Torn<'a>(Image<'a>, std::ops::Range<u64>);

impl Source for Torn<'_> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), String> {
        if at < self.1.end && at + buf.len() as u64 > self.1.start {
            return Err("medium error".to_string());
        }
        self.0.read(at, buf)
    }
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_checked() {
    let lab = Lab::new("deep-tree");
    let bytes = lab.golden.cache.as_slice();
    let node = &lab.reader.nodes[lab.node(|node| node.level == 0)].bytes;
    let image = Image {
        name: "cache",
        bytes,
    };
    let torn = Torn(image, node.start as u64..node.start as u64 + 1);
    let report = check(&torn, &[], &mut |_| ()).expect("a superblock");
    assert!(report.is_incomplete() && !report.clean);
    let finding = &report.findings[0];
    assert_eq!(
        (finding.kind, finding.place.byte),
        (Kind::Unreadable, Some(node.start as u64))
    );
    assert!(report.summary.nodes > 300);
    let super_gone = Torn(
        Image {
            name: "cache",
            bytes,
        },
        4096..4097,
    );
    let error = check(&super_gone, &[], &mut |_| ()).expect_err("no superblock");
    assert!(
        error.to_string().contains("byte 4096: medium error"),
        "{error}"
    );
}

/// A device that was formatted and never started holds nothing, which is fine.
#[test]
fn a_fresh_device_is_fine() {
    let sb = CacheSuper::new(Uuid([1; 16]), Uuid([2; 16]), 65536, 8, 64).expect("sizes");
    let mut bytes = vec![0; 65536 * SECTOR_BYTES];
    bytes[SUPER].copy_from_slice(&sb.encode());
    let report = check_images(&bytes, &[]).expect("a cache");
    assert!(report.clean && report.notes.len() == 1, "{report:#?}");
}
