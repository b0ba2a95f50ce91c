//! How fast and how large the index is: `cargo bench --bench index -- [extents ...]`.
//!
//! One core, keys in random order, extents of 8 sectors. Lookups are timed with all of them
//! independent of each other (as those of different requests are) and in chains (where each
//! position comes from the last answer: the latency of one). Inserts replace extents one for
//! one, with a reader that quiesces all the time and with none.

use std::hint::black_box;
use std::time::Instant;

use spdk_bcache::index::{Domain, Extent, Lookup, TOGETHER, Writer};
use spdk_bcache::units::{Gen, Sector};

const SECTORS: u32 = 8;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        ((u128::from(high) * u128::from(bound)) >> 48) as u64
    }
}

fn extent(place: u64, version: u64) -> Extent {
    Extent {
        start: Sector(place * u64::from(SECTORS)),
        sectors: SECTORS,
        at: Sector((place * 77 + version) % (1 << 40)),
        generation: Gen(version as u8),
        dirty: version % 2 == 0,
    }
}

/// Nanoseconds a call, in the best of five rounds: others may be using the machine.
fn best(count: u64, mut call: impl FnMut(u64)) -> f64 {
    (0..5)
        .map(|_| time(count / 5, &mut call))
        .fold(f64::INFINITY, f64::min)
}

/// Nanoseconds a call.
fn time(count: u64, mut call: impl FnMut(u64)) -> f64 {
    let begin = Instant::now();
    for i in 0..count {
        call(i);
    }
    begin.elapsed().as_nanos() as f64 / count as f64
}

fn measure(count: u64, in_order: bool) {
    let domain = Domain::new(64);
    let reader = domain.reader().expect("a slot");
    let mut writer = Writer::new(domain);
    let index = writer.index();
    let mut places: Vec<u64> = (0..count).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    if !in_order {
        for i in (1..count).rev() {
            places.swap(i as usize, random.below(i + 1) as usize);
        }
    }
    let fill = time(count, |i| {
        writer.insert(extent(places[i as usize], i), &mut |_| {});
        reader.quiesce();
    });
    while writer.reclaim() > 0 {}
    let bytes = writer.bytes() as f64 / count as f64;

    let looks = 2_000_000;
    let span = count * u64::from(SECTORS);
    let lookup = best(looks, |_| {
        let found = index.lookup(&reader, Sector(random.below(span)));
        assert!(matches!(black_box(found), Lookup::Hit(_)));
    });
    let mut last = 0;
    let chained = best(looks, |_| {
        let Lookup::Hit(found) = index.lookup(&reader, Sector((random.below(span) + last) % span))
        else {
            panic!("a hole")
        };
        last = found.at.0 & 1;
    });
    let batched = best(looks / TOGETHER as u64, |_| {
        let positions = [(); TOGETHER].map(|()| Sector(random.below(span)));
        black_box(index.lookup_all(&reader, &positions));
    }) / TOGETHER as f64;
    let writes = 1_000_000;
    let replace = best(writes, |i| {
        writer.insert(extent(random.below(count), i), &mut |piece| {
            black_box(piece);
        });
        reader.quiesce();
    });
    let order = if in_order { "in order" } else { "random" };
    println!(
        "{count:>9} {order:>9} {fill:>9.0} {bytes:>9.1} {lookup:>9.0} {chained:>9.0} \
         {batched:>9.0} {replace:>9.0}"
    );
}

fn main() {
    let mut counts: Vec<u64> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    if counts.is_empty() {
        counts = vec![1 << 16, 1 << 20, 1 << 24];
    }
    println!(
        "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "extents", "filled", "fill ns", "bytes", "lookup ns", "chain ns", "batch ns", "insert ns"
    );
    for count in counts {
        measure(count, false);
        measure(count, true);
    }
}
