//! How fast a set starts and what its map takes: `cargo bench --bench recovery -- [keys ...]`.
//!
//! A cache device of the size that the keys need, which exists in no memory: its leaves are made when
//! they are read. Keys are extents of 8 sectors in the order of a volume, spread over buckets in
//! random order; leaves are two thirds full in nodes of 256 KiB. The time that making the leaves
//! takes is left out (`made`): the device is infinitely fast.
//!
//! In the same run, for comparison: the same map made insert by insert, as a ratio.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;
use std::time::{Duration, Instant};

use spdk_bcache::disk::{Buf, BufFuture, Disk, DoneFuture};
use spdk_bcache::format::bset::{HEADER_BYTES, set_encode};
use spdk_bcache::format::jset::Jset;
use spdk_bcache::format::key::{Key, Ptr, encoded_bytes};
use spdk_bcache::format::prio::{PrioSet, buckets_needed, per_bucket};
use spdk_bcache::format::superblock::{CacheSuper, SUPER_SECTOR};
use spdk_bcache::index::{Domain, Extent, Writer};
use spdk_bcache::limits::{INITIAL_PRIO, fresh_node_sectors, meta_bucket_bytes};
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::{CacheSet, read_super};
use spdk_bcache::sim::host::SimHost;
use spdk_bcache::task::Executor;
use spdk_bcache::units::{Gen, Inode, JournalSeq, SECTOR_BYTES, Sector};

mod memory;
use memory::{read_from, resident_bytes, switches};

const BUCKET: u64 = 1024;
const BLOCK: u32 = 8;
const KEY_SECTORS: u64 = 8;
const KEYS_A_BUCKET: u64 = BUCKET / KEY_SECTORS;
const INODE: Inode = Inode(1);

/// Where everything is on the device.
struct Layout {
    sb: CacheSuper,
    keys: u64,
    keys_a_leaf: u64,
    /// The bucket of the first leaf; the others follow it.
    leaves_at: u64,
    data_at: u64,
    data_buckets: u64,
}

impl Layout {
    fn new(keys: u64) -> Layout {
        let node_bytes = u64::from(fresh_node_sectors(BUCKET as u32)) * SECTOR_BYTES as u64;
        let keys_a_leaf = (node_bytes * 2 / 3 - HEADER_BYTES as u64) / 24;
        let leaves = keys.div_ceil(keys_a_leaf);
        let data_buckets = keys.div_ceil(KEYS_A_BUCKET);
        let inner = leaves / 4000 + 2;
        let nbuckets = 2048 + leaves + inner + data_buckets * 9 / 8;
        let rng = Rng::new(keys);
        let sectors = nbuckets * BUCKET;
        let sb = CacheSuper::new(rng.uuid(), rng.uuid(), sectors, BLOCK as u16, BUCKET as u32);
        let mut sb = sb.unwrap();
        sb.prepare_first_run();
        sb.set_sync(true);
        Layout {
            sb,
            keys,
            keys_a_leaf,
            leaves_at: 1024,
            data_at: 1024 + leaves + inner,
            data_buckets,
        }
    }

    fn key(&self, i: u64) -> Key {
        let (nth, within) = (i / KEYS_A_BUCKET, i % KEYS_A_BUCKET * KEY_SECTORS);
        // A number without a common factor with any below 2^32 that occurs here.
        let bucket = self.data_at + nth * 4_294_967_291 % self.data_buckets;
        Key {
            inode: INODE,
            end: Sector((i + 1) * KEY_SECTORS),
            size_sectors: KEY_SECTORS as u32,
            dirty: i % 16 == 0,
            ptr: Some(Ptr::new(0, Sector(bucket * BUCKET + within), Gen(0))),
        }
    }

    fn leaves(&self) -> u64 {
        self.keys.div_ceil(self.keys_a_leaf)
    }

    fn node_ptr(&self, bucket: u64) -> Ptr {
        Ptr::new(0, Sector(bucket * BUCKET), Gen(0))
    }

    fn node(&self, bucket: u64, keys: &[Key]) -> Vec<u8> {
        let (ptr, magic) = (self.node_ptr(bucket), self.sb.set_magic());
        let mut bytes = Vec::new();
        set_encode(bucket, ptr, magic, keys, BLOCK, &mut bytes);
        bytes
    }

    fn leaf(&self, nth: u64) -> Vec<u8> {
        let (from, to) = (nth * self.keys_a_leaf, (nth + 1) * self.keys_a_leaf);
        let keys: Vec<Key> = (from..to.min(self.keys)).map(|i| self.key(i)).collect();
        self.node(self.leaves_at + nth, &keys)
    }

    /// The key of a node whose last position is `last`'s.
    fn child(&self, bucket: u64, last: Key) -> Key {
        Key {
            inode: last.inode,
            end: last.end,
            size_sectors: fresh_node_sectors(BUCKET as u32),
            dirty: false,
            ptr: Some(self.node_ptr(bucket)),
        }
    }

    /// Writes the nodes above the leaves; returns the root's key and level.
    fn inner_nodes(&self, out: &mut BTreeMap<u64, Vec<u8>>) -> (Key, u16) {
        let last = |nth: u64| self.key(((nth + 1) * self.keys_a_leaf).min(self.keys) - 1);
        let mut below: Vec<Key> = (0..self.leaves())
            .map(|n| self.child(self.leaves_at + n, last(n)))
            .collect();
        let (mut level, mut next) = (0, self.leaves_at + self.leaves());
        if let Some(key) = below.last_mut() {
            (key.inode, key.end) = Key::MAX.position();
        }
        while below.len() > 1 {
            let mut above = Vec::new();
            for part in below.chunks(7000) {
                assert!(encoded_bytes(part) < 250_000);
                out.insert(next * BUCKET, self.node(next, part));
                above.push(self.child(next, part[part.len() - 1]));
                next += 1;
            }
            assert!(next <= self.data_at);
            (below, level) = (above, level + 1);
        }
        (below[0], level)
    }
}

/// The device: what was written to it, and leaves that are made when they are read.
struct Sparse {
    layout: Layout,
    written: RefCell<BTreeMap<u64, Vec<u8>>>,
    made: Cell<Duration>,
}

impl Sparse {
    fn new(keys: u64) -> Rc<Sparse> {
        let layout = Layout::new(keys);
        let (sb, mut written) = (layout.sb.clone(), BTreeMap::new());
        written.insert(SUPER_SECTOR.0, sb.encode().to_vec());
        let (root, level) = layout.inner_nodes(&mut written);
        let bytes = meta_bucket_bytes(BUCKET as u32);
        let each = per_bucket(bytes) as u64;
        // Priorities from bucket 512 on, uuids in bucket 600.
        let prios = buckets_needed(sb.nbuckets, each as usize);
        for i in 0..prios {
            let count = each.min(sb.nbuckets - i * each) as usize;
            let set = PrioSet {
                seq: 1,
                version: 0,
                next_bucket: if i + 1 < prios { 513 + i } else { 0 },
                entries: vec![(INITIAL_PRIO, Gen(0)); count],
            };
            let mut buf = vec![0; bytes];
            set.encode(sb.set_magic(), &mut buf);
            written.insert((512 + i) * BUCKET, buf);
        }
        let mut prio_bucket = [0; 8];
        prio_bucket[0] = 512;
        let entry = Jset {
            seq: JournalSeq(1),
            last_seq: JournalSeq(1),
            uuid_bucket: Some(Key {
                size_sectors: BUCKET as u32,
                ..layout.child(600, Key::ZERO)
            }),
            root,
            level,
            prio_bucket,
            keys: Vec::new(),
        };
        let mut bytes = Vec::new();
        entry.encode(sb.set_magic(), BLOCK, &mut bytes);
        written.insert(u64::from(sb.journal_buckets[0].0) * BUCKET, bytes);
        Rc::new(Sparse {
            layout,
            written: RefCell::new(written),
            made: Cell::default(),
        })
    }
}

impl Disk for Sparse {
    fn name(&self) -> String {
        "sparse".to_string()
    }
    fn size_sectors(&self) -> u64 {
        self.layout.sb.nbuckets * BUCKET
    }
    fn block_sectors(&self) -> u32 {
        BLOCK
    }
    fn alloc(&self, bytes: usize) -> Buf {
        Buf::new(Box::new(vec![0u8; bytes]))
    }
    fn read(&self, at: Sector, mut buf: Buf) -> BufFuture {
        let began = Instant::now();
        let layout = &self.layout;
        let nth = (at.0 / BUCKET).wrapping_sub(layout.leaves_at);
        let written = self.written.borrow();
        if nth < layout.leaves() && !written.contains_key(&at.0) {
            let leaf = layout.leaf(nth);
            buf[..leaf.len()].copy_from_slice(&leaf);
        } else {
            read_from(&written, at.0, &mut buf);
        }
        self.made.set(self.made.get() + began.elapsed());
        Box::pin(ready((buf, Ok(()))))
    }
    fn write(&self, at: Sector, buf: Buf) -> BufFuture {
        self.written.borrow_mut().insert(at.0, buf.to_vec());
        Box::pin(ready((buf, Ok(()))))
    }
    fn flush(&self) -> DoneFuture {
        Box::pin(ready(Ok(())))
    }
    fn unmap(&self, _: Sector, _: u64) -> DoneFuture {
        Box::pin(ready(Ok(())))
    }
    fn write_zeroes(&self, _: Sector, _: u64) -> DoneFuture {
        Box::pin(ready(Ok(())))
    }
}

/// Seconds that the map alone takes, insert by insert.
fn by_inserts(layout: &Layout) -> (f64, f64) {
    let mut writer = Writer::new(Domain::new(2));
    let began = Instant::now();
    for i in 0..layout.keys {
        let key = layout.key(i);
        let ptr = key.data().unwrap();
        let extent = Extent {
            start: key.start(),
            sectors: key.size_sectors,
            at: ptr.sector(),
            generation: ptr.generation(),
            dirty: key.dirty,
        };
        writer.insert(extent, &mut |_| ());
    }
    let seconds = began.elapsed().as_secs_f64();
    (seconds, writer.bytes() as f64 / layout.keys as f64)
}

/// The longest step in which the memory of a set goes back.
fn drop_step(exec: &Executor) -> Duration {
    let mut worst = Duration::ZERO;
    for _ in 0..100_000 {
        let (step, switched) = (Instant::now(), switches());
        exec.poll(0, 1);
        if switches() == switched {
            worst = worst.max(step.elapsed());
        }
    }
    worst
}

fn measure(keys: u64) {
    let disk = Sparse::new(keys);
    let before = resident_bytes();
    let exec = Executor::new();
    let host = SimHost::bare(Rc::new(Rng::new(1)));
    let slot: Rc<RefCell<Option<Rc<CacheSet>>>> = Rc::default();
    let (out, on, run) = (slot.clone(), disk.clone(), exec.clone());
    exec.spawn(async move {
        let on: Rc<dyn Disk> = on;
        let Ok(spdk_bcache::format::superblock::Super::Cache(sb)) = read_super(&on).await else {
            panic!("no cache device");
        };
        let set = CacheSet::start(&host, run, on, sb).await;
        *out.borrow_mut() = Some(set.unwrap_or_else(|e| panic!("{e}")));
    });
    let began = Instant::now();
    let (mut worst, mut worst_made) = (Duration::ZERO, Duration::ZERO);
    while slot.borrow().is_none() {
        let switched = switches();
        let (step, made) = (Instant::now(), disk.made.get());
        exec.poll(began.elapsed().as_micros() as u64, 1);
        let (took, made) = (step.elapsed(), disk.made.get() - made);
        // A step in which the kernel took the processor away is left out.
        if switches() == switched {
            worst = worst.max(took.saturating_sub(made));
        }
        worst_made = worst_made.max(made);
    }
    let (total, made) = (began.elapsed(), disk.made.get());
    let set = slot.take().unwrap();
    let stats = set.tree.stats();
    assert_eq!(stats.extents, keys);
    let (engine, index) = (
        (total - made).as_secs_f64(),
        stats.index_bytes as f64 / keys as f64,
    );
    let memory = (resident_bytes() - before) as f64 / keys as f64;
    exec.abandon();
    drop(set);
    let dropping = drop_step(&exec);
    let (inserts, insert_bytes) = by_inserts(&disk.layout);
    println!(
        "{keys:>10} {engine:>9.3} {:>8.3} {:>9.1} {:>7} {index:>8.1} {memory:>8.1} {:>9.2} \
         {:>9.2} {inserts:>9.3} {insert_bytes:>8.1} {:>7.2}",
        made.as_secs_f64(),
        engine * 1e9 / keys as f64,
        stats.nodes,
        worst.as_secs_f64() * 1e3,
        dropping.as_secs_f64() * 1e3,
        inserts / engine,
    );
    assert!(index <= 32.0, "an extent takes {index} bytes");
}

fn main() {
    let mut counts: Vec<u64> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    if counts.is_empty() {
        counts = vec![1_000_000, 10_000_000];
    }
    println!(
        "{:>10} {:>9} {:>8} {:>9} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {:>7}",
        "keys",
        "start s",
        "made s",
        "ns a key",
        "nodes",
        "map B",
        "all B",
        "step ms",
        "drop ms",
        "inserts s",
        "their B",
        "ratio"
    );
    for keys in counts {
        measure(keys);
    }
}
