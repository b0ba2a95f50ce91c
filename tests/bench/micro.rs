//! The engine's smallest steps, one by one: `cargo bench --bench micro -- [filter]`.
//!
//! What a request is made of: looking an extent up and checking its bucket (a read hit), putting one
//! into the map, adding its key to the journal (with all that follows from it: the entry's checksum,
//! its write to a device in memory, room made), a checksum, a piece of an open bucket, a bucket.
//! Criterion says how sure each figure is, and how it compares with the last run's.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use spdk_bcache::alloc::Purpose;
use spdk_bcache::alloc::gens::Gens;
use spdk_bcache::format::crc::crc64;
use spdk_bcache::format::key::{Key, Ptr};
use spdk_bcache::index::{Domain, Extent, Lookup, Reader, Writer};
use spdk_bcache::request::space::Stream;
use spdk_bcache::rng::Rng;
use spdk_bcache::set::cache::CacheSet;
use spdk_bcache::task::Executor;
use spdk_bcache::units::{BucketNr, Gen, Inode, Sector};

mod memory;
use memory::{BUCKET, SECTORS, start};

const COUNTS: [u64; 2] = [1 << 16, 1 << 20];
/// Buckets of the set that the journal and the allocator are timed on.
const BUCKETS: u64 = 4096;

fn extent(place: u64, version: u64) -> Extent {
    Extent {
        start: Sector(place * u64::from(SECTORS)),
        sectors: SECTORS,
        at: Sector((place * 77 + version) % (1 << 30)),
        generation: Gen(0),
        dirty: version % 2 == 0,
    }
}

/// A map of so many extents, put in in random order.
fn map(count: u64, rng: &Rng) -> (Writer, Reader) {
    let domain = Domain::new(64);
    let reader = domain.reader().expect("a slot");
    let mut writer = Writer::new(domain);
    let mut places: Vec<u64> = (0..count).collect();
    for i in (1..count).rev() {
        places.swap(i as usize, rng.below(i + 1) as usize);
    }
    for place in places {
        writer.insert(extent(place, 0), &mut |_| {});
        reader.quiesce();
    }
    while writer.reclaim() > 0 {}
    (writer, reader)
}

fn index(c: &mut Criterion) {
    let rng = Rng::new(1);
    for count in COUNTS {
        let (mut writer, reader) = map(count, &rng);
        let (index, span) = (writer.index(), count * u64::from(SECTORS));
        c.bench_function(&format!("index/lookup/{count}"), |b| {
            b.iter(|| {
                let found = index.lookup(&reader, Sector(rng.below(span)));
                assert!(matches!(black_box(found), Lookup::Hit(_)));
            });
        });
        let mut version = 0;
        c.bench_function(&format!("index/insert/{count}"), |b| {
            b.iter(|| {
                version += 1;
                writer.insert(extent(rng.below(count), version), &mut |piece| {
                    black_box(piece);
                });
                reader.quiesce();
            });
        });
    }
}

/// What a read hit asks of a bucket: its generation before and after, and a note of its use.
fn generation(c: &mut Criterion) {
    let (gens, rng) = (Gens::new(1 << 20, BUCKET), Rng::new(2));
    c.bench_function("alloc/generation", |b| {
        b.iter(|| {
            let bucket = BucketNr(rng.below(1 << 20) as u32);
            let before = gens.generation(bucket);
            gens.touch(bucket);
            assert_eq!(before, gens.generation(black_box(bucket)));
        });
    });
}

fn checksum(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc64");
    for bytes in [512_usize, 4096, 65536] {
        let data: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(bytes.to_string(), |b| b.iter(|| crc64(black_box(&data))));
    }
    group.finish();
}

/// A set that runs, and the executor to turn.
struct Rig {
    exec: Executor,
    set: Rc<CacheSet>,
    began: Instant,
}

impl Rig {
    fn new() -> Rig {
        let (exec, rng) = (Executor::new(), Rc::new(Rng::new(3)));
        let began = Instant::now();
        let slot: Rc<RefCell<Option<Rc<CacheSet>>>> = Rc::default();
        let (out, run) = (slot.clone(), exec.clone());
        exec.spawn(async move {
            let set = start(run, rng, BUCKETS).await;
            *out.borrow_mut() = Some(set);
        });
        while slot.borrow().is_none() {
            exec.poll(began.elapsed().as_micros() as u64, 64);
        }
        let set = slot.take().expect("it has started");
        Rig { exec, set, began }
    }

    fn turn(&self) {
        self.exec.poll(self.began.elapsed().as_micros() as u64, 64);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.exec.abandon();
    }
}

fn journal(c: &mut Criterion) {
    let (rig, rng) = (Rig::new(), Rng::new(4));
    c.bench_function("journal/append", |b| {
        b.iter(|| {
            let bucket = 1024 + rng.below(BUCKETS - 1024);
            let key = Key {
                inode: Inode(1),
                end: Sector((rng.below(1 << 20) + 1) * u64::from(SECTORS)),
                size_sectors: SECTORS,
                dirty: true,
                ptr: Some(Ptr::new(0, Sector(bucket * u64::from(BUCKET)), Gen(0))),
            };
            while rig.set.journal.add(&key).is_none() {
                rig.turn();
            }
        });
    });
}

fn allocation(c: &mut Criterion) {
    let stream = Stream::default();
    let mut next = 0;
    c.bench_function("alloc/piece", |b| {
        b.iter(|| {
            let piece = loop {
                match stream.take(SECTORS) {
                    Some(piece) => break piece,
                    None => {
                        next = (next + 1) % BUCKETS;
                        let (bucket, at) = (BucketNr(next as u32), next * u64::from(BUCKET));
                        stream.granted(bucket, Gen(0), Sector(at), BUCKET);
                    }
                }
            };
            let bucket = BucketNr((black_box(piece).at.0 / u64::from(BUCKET)) as u32);
            black_box(stream.reported(bucket));
        });
    });
    let rig = Rig::new();
    c.bench_function("alloc/bucket", |b| {
        b.iter(|| {
            let (bucket, _) = loop {
                match rig.set.alloc.take(Purpose::Data) {
                    Some(taken) => break taken,
                    None => rig.turn(),
                }
            };
            rig.set.alloc.unpin(bucket);
        });
    });
}

fn main() {
    // Short, for the machine's own noise is larger than what more samples would tell.
    let mut c = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    for target in [index, generation, checksum, journal, allocation] {
        target(&mut c);
    }
    c.final_summary();
}
