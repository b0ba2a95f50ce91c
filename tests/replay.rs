//! Reading journals: whole ones, and all that a crash, a wrapped ring or damage makes of them.

use std::cell::RefCell;
use std::rc::Rc;

use spdk_bcache::disk::Disk;
use spdk_bcache::format::jset::Jset;
use spdk_bcache::format::key::{Geometry, Key, Ptr};
use spdk_bcache::journal::Shape;
use spdk_bcache::journal::replay::{Replay, ReplayError, read};
use spdk_bcache::rng::Rng;
use spdk_bcache::sim::disk::{Medium, SimDisk};
use spdk_bcache::sim::sched::Sched;
use spdk_bcache::task::Executor;
use spdk_bcache::units::{BucketNr, Gen, Inode, JournalSeq, Sector};

const MAGIC: u64 = 0x0123_4567_89ab_cdef;
/// Sectors of a bucket; a block is one sector.
const BUCKET: u64 = 64;
const FIRST: u32 = 2;

/// A journal of four buckets on a device of its own.
struct Rig {
    medium: Rc<Medium>,
}

fn key(n: u64) -> Key {
    Key {
        inode: Inode(1),
        end: Sector(8 * n + 8),
        size_sectors: 8,
        dirty: true,
        ptr: Some(Ptr::new(0, Sector(BUCKET * 8), Gen(0))),
    }
}

impl Rig {
    fn new() -> Rig {
        Rig {
            medium: Medium::new("cache", BUCKET * 32, 1),
        }
    }

    /// Writes an entry of so many keys to a block of a bucket; returns the block behind it.
    fn put(&self, bucket: u32, block: u64, seq: u64, last_seq: u64, keys: u64) -> u64 {
        let entry = Jset {
            seq: JournalSeq(seq),
            last_seq: JournalSeq(last_seq),
            uuid_bucket: None,
            root: Key::MAX,
            level: 0,
            prio_bucket: [0; 8],
            keys: (0..keys).map(key).collect(),
        };
        let mut bytes = Vec::new();
        let blocks = entry.encode(MAGIC, 1, &mut bytes);
        let at = Sector(u64::from(FIRST + bucket) * BUCKET + block);
        self.medium.poke(at, &bytes);
        block + u64::from(blocks)
    }

    fn spoil(&self, bucket: u32, block: u64) {
        let at = Sector(u64::from(FIRST + bucket) * BUCKET + block);
        self.medium.poke(at, &[0x5a; 512]);
    }

    fn read(&self) -> Result<Replay, ReplayError> {
        let sched = Sched::new(0, Rc::new(Rng::new(1)));
        let exec = Executor::new();
        let disk: Rc<dyn Disk> = SimDisk::new(self.medium.clone(), sched.clone());
        let shape = Shape {
            geometry: Geometry {
                block_sectors: 1,
                bucket_sectors: BUCKET as u32,
                first_bucket: BucketNr(1),
                nbuckets: 32,
            },
            set_magic: MAGIC,
        };
        let slot: Rc<RefCell<Option<Result<Replay, ReplayError>>>> = Rc::default();
        let out = slot.clone();
        exec.spawn(async move {
            let buckets: Vec<BucketNr> = (FIRST..FIRST + 4).map(BucketNr).collect();
            let done = read(&disk, &shape, &buckets).await;
            *out.borrow_mut() = Some(done);
        });
        loop {
            sched.run_due();
            exec.poll(sched.now_us(), 64);
            if let Some(done) = slot.borrow_mut().take() {
                return done;
            }
            if let Some(at) = sched.next_us() {
                sched.set_now(at);
            }
        }
    }

    /// The numbers of the entries that are needed.
    fn seqs(&self) -> Vec<u64> {
        let replay = self.read().unwrap_or_else(|e| panic!("{e}"));
        replay.entries.iter().map(|e| e.entry.seq.0).collect()
    }

    fn gap(&self) -> (u64, u64, u64) {
        match self.read() {
            Err(ReplayError::Gap {
                missing,
                first,
                newest,
                ..
            }) => (missing.0, first.0, newest.0),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("no gap"),
        }
    }
}

#[test]
fn an_empty_journal_and_anothers_hold_no_entry() {
    let rig = Rig::new();
    assert_eq!(rig.read().err(), Some(ReplayError::Empty));
    rig.spoil(0, 0);
    rig.spoil(3, 0);
    assert_eq!(rig.read().err(), Some(ReplayError::Empty));
}

#[test]
fn the_needed_entries_come_in_order_and_older_ones_not_at_all() {
    let rig = Rig::new();
    let next = rig.put(0, 0, 1, 1, 100);
    let next = rig.put(0, next, 2, 1, 3);
    rig.put(0, next, 3, 2, 0);
    assert_eq!(rig.seqs(), [2, 3]);
    let replay = rig.read().unwrap();
    assert_eq!(replay.entries[0].entry.keys.len(), 3);
    assert_eq!(replay.ring.durable_last, JournalSeq(2));
}

#[test]
fn a_torn_tail_is_as_if_it_had_never_been() {
    // In the middle of a bucket, at its last block, and the first of the next bucket.
    for torn_block in [0, 1, 2] {
        let rig = Rig::new();
        let next = rig.put(0, 0, 1, 1, 10);
        let tail = rig.put(0, next, 2, 1, 1);
        assert_eq!(rig.put(0, tail, 3, 1, 60), tail + 4);
        rig.spoil(0, tail + torn_block);
        assert_eq!(rig.seqs(), [1, 2]);
        // What comes next is written over the torn one.
        let place = rig.read().unwrap().ring.place_keys(JournalSeq(1)).unwrap();
        let at = rig.read().unwrap().ring.sector(place);
        assert_eq!(at, Sector(u64::from(FIRST) * BUCKET + tail));
    }
    let rig = Rig::new();
    rig.put(0, 0, 1, 1, 10);
    rig.put(1, 0, 2, 1, 60);
    rig.spoil(1, 2);
    assert_eq!(rig.seqs(), [1]);
}

#[test]
fn a_wrapped_ring_is_read_from_its_oldest_needed_bucket() {
    let rig = Rig::new();
    for (bucket, first) in [(2, 5), (3, 7), (0, 9), (1, 11)] {
        let next = rig.put(bucket, 0, first, first - 2, 4);
        rig.put(bucket, next, first + 1, first - 2, 4);
    }
    assert_eq!(rig.seqs(), [9, 10, 11, 12]);
    // Bucket 2 is being written over: what was behind is of the earlier round.
    rig.put(2, 0, 13, 12, 0);
    assert_eq!(rig.seqs(), [12, 13]);
    // The newest needs what was written over in the meantime.
    rig.put(2, 1, 14, 6, 0);
    assert_eq!(rig.gap(), (6, 6, 14));
}

#[test]
fn a_gap_is_never_passed_over() {
    let rig = Rig::new();
    let mut at = Vec::new();
    let mut next = 0;
    for seq in 1..=5 {
        at.push(next);
        next = rig.put(0, next, seq, seq.min(2), 20);
    }
    assert_eq!(rig.seqs(), [2, 3, 4, 5]);
    rig.spoil(0, at[3]);
    assert_eq!(rig.gap(), (4, 2, 5));
    let rig = Rig::new();
    rig.put(0, 0, 1, 1, 1);
    rig.put(1, 0, 3, 1, 1);
    assert_eq!(rig.gap(), (2, 1, 3));
}
