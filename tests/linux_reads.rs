//! The model of Linux as a reader (`sim::kernel`): what Linux wrote it serves as Linux does, what
//! Linux misreads it refuses, and of a set in which one rule is broken it names that rule.

mod fixtures;

use fixtures::lab::Lab;
use fixtures::{CASES, Golden, load, pattern};
use spdk_bcache::format::bset::HEADER_BYTES;
use spdk_bcache::format::key::{Key, Ptr};
use spdk_bcache::format::prio;
use spdk_bcache::format::superblock::BackingState;
use spdk_bcache::sim::bytes::Image;
use spdk_bcache::sim::kernel::judge::{Judged, judge};
use spdk_bcache::sim::kernel::volumes::backing_super;
use spdk_bcache::sim::kernel::{Refusal, Rule, Sizes, View, open};
use spdk_bcache::sim::oracle::Oracle;
use spdk_bcache::units::{BucketNr, Gen, JournalSeq, Sector, Uuid};

fn opened(golden: &Golden) -> Result<View<'_>, Refusal> {
    let backings: Vec<&dyn Image> = golden.backings.iter().map(|image| image as _).collect();
    open(&golden.cache, &backings, Sizes::Judged)
}

/// The UUIDs of the volumes: those on backing devices, then those on the flash.
fn uuids(golden: &Golden, view: &View<'_>) -> Vec<Uuid> {
    let backed = golden.backings.iter();
    let backed = backed.map(|image| backing_super(image).expect("a superblock").uuid);
    let flash = view.flash_volumes().map(|entry| entry.uuid);
    backed.chain(flash).collect()
}

/// The rule that does not hold of a set or one of its volumes.
fn broken(golden: &Golden) -> Option<Refusal> {
    let view = match opened(golden) {
        Ok(view) => view,
        Err(why) => return Some(why),
    };
    let volumes = uuids(golden, &view).into_iter();
    volumes.into_iter().find_map(|uuid| view.volume(uuid).err())
}

#[test]
fn what_linux_left_is_served_as_it_must_be() {
    for case in CASES {
        let golden = load(case);
        let view = opened(&golden).unwrap_or_else(|why| panic!("{case}: {why}"));
        let uuids = uuids(&golden, &view);
        assert_eq!(uuids.len(), golden.expected.len(), "{case}");
        for (uuid, expected) in uuids.iter().zip(&golden.expected) {
            let volume = view.volume(*uuid).expect("attached").expect("there");
            let seen = volume.each_sector(0, expected.len() as u64, |sector, bytes| {
                match bytes == pattern(sector, expected[sector as usize]) {
                    true => Ok(()),
                    false => Err(format!("sector {sector} is wrong")),
                }
            });
            assert_eq!(seen, Ok(()), "{case}");
        }
    }
}

#[test]
fn a_set_that_linux_misreads_is_refused() {
    let why = broken(&load("kernel-splits")).expect("a rule");
    assert_eq!(why.rule, Rule::NodeRoom, "{why}");
    assert!(why.what.contains("more than the blocks"), "{why}");
}

/// What is broken, in which golden case, the rule, and how.
type Broken = (&'static str, &'static str, Rule, fn(&mut Lab));

fn are_told(all: &[Broken]) {
    for (name, case, rule, breaks) in all {
        let mut lab = Lab::new(case);
        breaks(&mut lab);
        let why = broken(&lab.golden);
        let why = why.unwrap_or_else(|| panic!("{name}: nothing is noticed"));
        assert_eq!(why.rule, *rule, "{name}: {why}");
    }
}

const OF_SUPERBLOCKS: &[Broken] = &[
    ("checksum", "clean-dirty", Rule::Super, |l| {
        l.patch_super(112, &[99], false)
    }),
    ("a device cut short", "clean-dirty", Rule::Super, |l| {
        let half = l.golden.cache.len() / 2;
        l.golden.cache.truncate(half);
    }),
    ("few buckets", "clean-dirty", Rule::Sizes, |l| {
        l.edit_super(|sb| sb.nbuckets = 1000)
    }),
    ("clean with dirty keys", "clean-dirty", Rule::Backing, |l| {
        l.set_state(BackingState::Clean)
    }),
    ("dirty and unknown", "clean-dirty", Rule::Backing, |l| {
        l.edit_uuids(Vec::clear)
    }),
    (
        "a copy beside the device",
        "clean-dirty",
        Rule::Backing,
        |l| {
            let copy = l.golden.backings[0].clone();
            l.golden.backings.push(copy);
        },
    ),
];

const OF_THE_JOURNAL: &[Broken] = &[
    ("no entry", "clean-dirty", Rule::JournalEmpty, |l| {
        let bytes = l.bucket_bytes();
        for bucket in l.reader.cache.journal_buckets.clone() {
            let at = bucket.index() * bytes;
            l.golden.cache[at..at + bytes].fill(0);
        }
    }),
    ("an entry lost", "power-cut", Rule::JournalGap, |l| {
        let at = l.reader.entries[&l.middle_entry()].0;
        l.golden.cache[at..at + 512].fill(0);
        // What follows in the bucket is lost with it; the newest stands in a later one.
        let newest = l.reader.newest.clone();
        let mut bytes = Vec::new();
        let cache = &l.reader.cache;
        newest.encode(cache.set_magic(), cache.block_sectors.into(), &mut bytes);
        let next = l.old_journal_bucket().index() * l.bucket_bytes();
        l.golden.cache[next..next + bytes.len()].copy_from_slice(&bytes);
    }),
    (
        "an entry of another version",
        "clean-dirty",
        Rule::JournalEntry,
        |l| {
            let at = l.reader.entries[&l.reader.newest.seq.0].0;
            l.golden.cache[at + 24] = 7;
            spdk_bcache::format::jset::reseal(&mut l.golden.cache[at..]);
        },
    ),
    ("a key without size", "power-cut", Rule::JournalKey, |l| {
        let seq = newest_with_keys(l);
        l.edit_entry(seq, |e| e.keys[0].size_sectors = 0);
    }),
    (
        "a key across a bucket",
        "power-cut",
        Rule::JournalKey,
        |l| {
            let seq = newest_with_keys(l);
            let bucket = u64::from(l.reader.geometry.bucket_sectors);
            l.edit_entry(seq, |e| {
                let key = &mut e.keys[0];
                let ptr = key.ptr.expect("a pointer");
                let last = ptr.sector().0 / bucket * bucket + bucket - 1;
                key.ptr = Some(Ptr::new(0, Sector(last), ptr.generation()));
                key.size_sectors = key.size_sectors.max(2);
                key.end = key.end.max(Sector(2));
            });
        },
    ),
    (
        "the next bucket is needed",
        "wrapped",
        Rule::JournalRoom,
        |l| {
            // The oldest entry that is still needed stands alone in the bucket that comes next.
            let (journal, bytes) = (l.reader.cache.journal_buckets.clone(), l.bucket_bytes());
            let newest = l.reader.newest.clone();
            let current = l.reader.entries[&newest.seq.0].0 / bytes;
            let at = journal
                .iter()
                .position(|bucket| bucket.index() == current)
                .expect("one");
            for bucket in &journal {
                let at = bucket.index() * bytes;
                l.golden.cache[at..at + bytes].fill(0);
            }
            let count = journal.len() as u64;
            for i in 0..count {
                let mut entry = newest.clone();
                entry.seq = JournalSeq(1000 + i);
                entry.last_seq = JournalSeq(1000);
                entry.keys.clear();
                let mut out = Vec::new();
                let cache = &l.reader.cache;
                entry.encode(cache.set_magic(), cache.block_sectors.into(), &mut out);
                let place = journal[(at + 1 + i as usize) % journal.len()].index() * bytes;
                l.golden.cache[place..place + out.len()].copy_from_slice(&out);
            }
        },
    ),
];

const OF_ROOT_PRIORITIES_AND_UUIDS: &[Broken] = &[
    ("a root beyond the device", "clean-dirty", Rule::Root, |l| {
        l.edit_newest(|e| e.root.ptr = Some(Ptr::new(0, Sector(1 << 40), Gen(0))));
    }),
    ("a root that ends early", "clean-dirty", Rule::Root, |l| {
        l.edit_newest(|e| e.root.end.0 -= 1);
    }),
    (
        "a root whose bucket has moved on",
        "clean-dirty",
        Rule::Root,
        |l| l.raise_gen(l.bucket_of(l.reader.newest.root.ptr), 1),
    ),
    ("no uuid table", "clean-dirty", Rule::Uuids, |l| {
        l.edit_newest(|e| e.uuid_bucket = None)
    }),
    (
        "priorities beyond the device",
        "clean-dirty",
        Rule::Prios,
        |l| l.edit_newest(|e| e.prio_bucket[0] = 1 << 40),
    ),
    ("priorities damaged", "clean-dirty", Rule::Prios, |l| {
        let at = l.reader.prio_places()[0];
        l.golden.cache[at + 1000] ^= 1;
    }),
    (
        "priorities of another set",
        "clean-dirty",
        Rule::Prios,
        |l| {
            let at = l.reader.prio_places()[0];
            l.golden.cache[at + 8] ^= 1;
            let bytes = l.bucket_bytes();
            prio::reseal(&mut l.golden.cache[at..at + bytes]);
        },
    ),
];

const OF_NODES: &[Broken] = &[
    ("magic", "clean-dirty", Rule::Node, |l| {
        l.patch_set(l.root(), 0, 8, &[1], true)
    }),
    ("an empty run", "deep-tree", Rule::Node, |l| {
        let node = l.node(|node| node.image.sets.len() > 1);
        l.patch_set(node, 1, 28, &[0; 4], true);
    }),
    ("no key", "clean-dirty", Rule::NodeKey, |l| {
        let (node, set, _) = l.live_key();
        l.patch_set(node, set, HEADER_BYTES + 7, &[0], true);
    }),
    ("two keys swapped", "clean-dirty", Rule::NodeOrder, |l| {
        let (a, b) = l.live_pair();
        l.edit_set(a, |keys| keys.swap(a.2, b.2));
    }),
    (
        "two keys that overlap",
        "clean-dirty",
        Rule::NodeOrder,
        |l| {
            let (a, b) = l.live_pair();
            let end = l.key(a).end;
            l.edit_key(b, |key| key.end = end + 1);
        },
    ),
    (
        "an extent across a bucket",
        "clean-dirty",
        Rule::NodeKey,
        |l| {
            let bucket = u64::from(l.reader.geometry.bucket_sectors);
            l.edit_key(l.live_key(), |key| {
                let ptr = key.ptr.expect("a pointer");
                let last = ptr.sector().0 / bucket * bucket + bucket - 1;
                key.ptr = Some(Ptr::new(0, Sector(last), ptr.generation()));
            });
        },
    ),
    (
        "a key behind its node's",
        "deep-tree",
        Rule::NodeRange,
        |l| {
            let (node, set, _) = l.live_key();
            let last = l.reader.nodes[node].image.sets[set].len() - 1;
            l.edit_key((node, set, last), |key| key.end.0 += 1 << 40);
        },
    ),
    (
        "a node that is its own child",
        "deep-tree",
        Rule::Children,
        |l| {
            let (at, own) = (l.child(), l.reader.newest.root.ptr);
            l.edit_key(at, |key| key.ptr = own);
        },
    ),
    ("data in the journal", "clean-dirty", Rule::BucketUse, |l| {
        let journal = l.reader.cache.journal_buckets[0];
        point_to(l, journal);
    }),
    (
        "data where priorities are",
        "clean-dirty",
        Rule::BucketUse,
        |l| {
            let first = l.reader.newest.prio_bucket[0];
            point_to(l, BucketNr(first as u32));
        },
    ),
    ("data in a node", "clean-dirty", Rule::BucketUse, |l| {
        let root = l.bucket_of(l.reader.newest.root.ptr);
        point_to(l, root);
    }),
    (
        "a key too far behind",
        "clean-dirty",
        Rule::GenBehind,
        |l| {
            let at = l.live_key();
            let bucket = l.bucket_of(l.key(at).ptr);
            l.raise_gen(bucket, 97);
        },
    ),
];

/// The newest entry of the journal that has keys.
fn newest_with_keys(l: &Lab) -> u64 {
    let needed = l.reader.entries.range(l.reader.newest.last_seq.0..);
    let mut with_keys = needed.rev().filter(|(_, entry)| !entry.1.keys.is_empty());
    *with_keys.next().expect("an entry with keys").0
}

/// Lets a live extent point to another bucket.
fn point_to(l: &mut Lab, bucket: BucketNr) {
    let sectors = u64::from(l.reader.geometry.bucket_sectors);
    let generation = l.reader.generations[bucket.index()];
    let at = Sector(u64::from(bucket.0) * sectors);
    l.edit_key(l.live_key(), |key| {
        key.ptr = Some(Ptr::new(0, at, generation));
        key.size_sectors = key.size_sectors.min(8);
    });
}

#[test]
fn broken_superblocks_are_told() {
    are_told(OF_SUPERBLOCKS);
}

#[test]
fn broken_journals_are_told() {
    are_told(OF_THE_JOURNAL);
}

#[test]
fn a_broken_root_priorities_and_uuid_table_are_told() {
    are_told(OF_ROOT_PRIORITIES_AND_UUIDS);
}

#[test]
fn broken_nodes_are_told() {
    are_told(OF_NODES);
}

#[test]
fn a_set_without_a_free_bucket_is_told() {
    // Keys of the journal pin whatever they point to.
    let mut lab = Lab::new("clean-dirty");
    let geometry = lab.reader.geometry;
    let nodes = lab.reader.nodes.iter().map(|node| Some(node.ptr));
    let table = lab.reader.newest.uuid_bucket.and_then(|key| key.ptr);
    let mut meta: Vec<BucketNr> = nodes.chain([table]).map(|ptr| lab.bucket_of(ptr)).collect();
    let chain = lab.reader.prio_places().into_iter();
    meta.extend(chain.map(|at| BucketNr((at / lab.bucket_bytes()) as u32)));
    let first = geometry.first_bucket.0 + lab.reader.cache.journal_buckets.len() as u32;
    let buckets = (first..geometry.nbuckets as u32).map(BucketNr);
    let key = |bucket: BucketNr| {
        let sector = Sector(u64::from(bucket.0) * u64::from(geometry.bucket_sectors));
        let generation = lab.reader.generations[bucket.index()];
        Key {
            inode: lab.reader.inode(0),
            end: Sector(24 + 8 * u64::from(bucket.0)),
            size_sectors: 8,
            dirty: true,
            ptr: Some(Ptr::new(0, sector, generation)),
        }
    };
    let data = buckets.filter(|bucket| !meta.contains(bucket));
    let keys: Vec<Key> = data.map(key).collect();
    write_keys(&mut lab, &keys);
    let why = broken(&lab.golden).expect("a rule");
    assert_eq!(why.rule, Rule::Free, "{why}");
}

/// Journals keys behind the newest entry, in as many more as they take, each in a bucket of its own.
fn write_keys(lab: &mut Lab, keys: &[Key]) {
    let (bytes, journal) = (lab.bucket_bytes(), lab.reader.cache.journal_buckets.clone());
    let newest = lab.reader.newest.clone();
    let block = u32::from(lab.reader.cache.block_sectors);
    let most = (bytes.min(32 << 10) - 240) / 24;
    for bucket in &journal {
        let at = bucket.index() * bytes;
        lab.golden.cache[at..at + bytes].fill(0);
    }
    let first = newest.last_seq.0;
    let needed = lab
        .reader
        .entries
        .range(first..)
        .map(|(_, e)| e.1.keys.clone());
    let old: Vec<_> = needed.flatten().collect();
    let all = [old, keys.to_vec()].concat();
    for (i, keys) in all.chunks(most).enumerate() {
        let mut entry = newest.clone();
        entry.seq = JournalSeq(first + i as u64);
        entry.last_seq = newest.last_seq;
        entry.keys = keys.to_vec();
        let mut out = Vec::new();
        entry.encode(lab.reader.cache.set_magic(), block, &mut out);
        let at = journal[i].index() * bytes;
        lab.golden.cache[at..at + out.len()].copy_from_slice(&out);
    }
}

#[test]
fn what_the_oracle_does_not_allow_is_told() {
    let golden = load("crash-dirty");
    let backings: Vec<&dyn Image> = golden.backings.iter().map(|image| image as _).collect();
    let sb = backing_super(&golden.backings[0]).expect("a superblock");
    let size = golden.expected[0].len() as u64;
    let judged = [Judged {
        nr: 0,
        uuid: sb.uuid,
        same: false,
    }];
    // The oracle knows of no write.
    let oracle = Oracle::new(&[size]);
    let told = judge(&golden.cache, &backings, &judged, &oracle).err();
    let told = told.expect("the volume has data");
    assert!(told.contains("serve something else"), "{told}");
    let gone = [Judged {
        nr: 0,
        uuid: Uuid([9; 16]),
        same: false,
    }];
    let told = judge(&golden.cache, &backings, &gone, &oracle).err();
    assert_eq!(told.as_deref(), Some("Linux finds no volume 0"));
}
