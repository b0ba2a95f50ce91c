//! The map against a plain model, its tree against its own rules, its memory against its bounds.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::page::{FAN, Node, PAD};
use super::{Domain, Extent, Lookup, TOGETHER, Writer};
use crate::units::{Gen, Sector};

impl Writer {
    /// Checks every rule of the tree and that every page is accounted for.
    fn verify(&self) {
        let root = self.index.root();
        let (mut pages, mut extents) = (0, 0);
        if root.level() > 0 || !self.is_empty() {
            self.verify_node(root, 0, PAD, &mut pages, &mut extents);
        } else {
            pages = 1;
        }
        assert_eq!(extents, self.len());
        let idle = self.open.len() + self.waiting.len() + self.ready.len();
        assert_eq!(pages + idle, self.slab.live, "pages lost or counted twice");
    }

    fn verify_node(&self, node: Node, low: u64, high: u64, pages: &mut usize, extents: &mut u64) {
        *pages += 1;
        if node.level() == 0 {
            // SAFETY: we hold the writer, so the tree does not change.
            let leaf = unsafe { node.leaf() };
            assert!(leaf.len() > 0, "an empty leaf");
            assert_eq!(leaf.extents(0).count(), leaf.len());
            let mut from = low;
            for extent in leaf.extents(0) {
                assert!(
                    from <= extent.start.0 && extent.end().0 <= high,
                    "out of order or range"
                );
                from = extent.end().0;
            }
            *extents += leaf.len() as u64;
            return;
        }
        // SAFETY: as above.
        let inner = unsafe { node.inner() };
        let least = if node == self.index.root() { 2 } else { 1 };
        assert!((least..=FAN).contains(&inner.len()));
        let mut from = low;
        for place in 0..inner.len() {
            let to = inner.key(place).min(high);
            assert!(from < to && (inner.key(place) == PAD) == (place + 1 == inner.len()));
            let child = inner.child(place);
            assert_eq!(child.level() + 1, node.level());
            self.verify_node(child, from, to, pages, extents);
            from = to;
        }
    }

    fn all(&self) -> Vec<Extent> {
        let mut all = Vec::new();
        self.scan(Sector(0), Sector::MAX, &mut |extent| {
            all.push(extent);
            true
        });
        all
    }
}

/// What the map is to do, in the simplest way.
struct Model {
    by_start: BTreeMap<u64, Extent>,
    /// No extent has more sectors.
    longest: u64,
}

impl Model {
    fn change(&mut self, start: u64, end: u64, new: Option<Extent>) -> Vec<Extent> {
        let old = self.scan(start, end);
        let (start, end) = (Sector(start), Sector(end));
        for extent in &old {
            self.by_start.remove(&extent.start.0);
            if extent.start < start {
                self.by_start
                    .insert(extent.start.0, extent.cut(extent.start, start));
            }
            if extent.end() > end {
                self.by_start.insert(end.0, extent.cut(end, extent.end()));
            }
        }
        self.by_start
            .extend(new.map(|extent| (extent.start.0, extent)));
        old.iter().map(|extent| extent.cut(start, end)).collect()
    }

    fn scan(&self, start: u64, end: u64) -> Vec<Extent> {
        let near = self
            .by_start
            .range(start.saturating_sub(self.longest)..end.max(start));
        near.map(|(_, e)| *e)
            .filter(|e| e.end().0 > start && start < end)
            .collect()
    }

    fn lookup(&self, at: u64) -> Lookup {
        if let Some((_, extent)) = self.by_start.range(..=at).next_back() {
            if extent.end().0 > at {
                return Lookup::Hit(*extent);
            }
        }
        let next = self.by_start.range(at..).next();
        Lookup::Hole {
            next: next.map_or(Sector::MAX, |(start, _)| Sector(*start)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Extent),
    Remove(u64, u64),
    Lookup(u64),
    Scan(u64, u64),
    /// Takes out all extents of a generation like this one, modulo 4.
    Sift(u8),
    Reclaim,
}

/// A map and its model, told the same.
struct Pair {
    writer: Writer,
    model: Model,
    reader: super::Reader,
}

impl Pair {
    fn new(longest: u64) -> Pair {
        let domain = Domain::new(2);
        let reader = domain.reader().unwrap();
        let model = Model {
            by_start: BTreeMap::new(),
            longest,
        };
        Pair {
            writer: Writer::new(domain),
            model,
            reader,
        }
    }

    fn step(&mut self, step: &Step) {
        let mut pieces = Vec::new();
        match *step {
            Step::Insert(extent) => {
                self.writer.insert(extent, &mut |piece| pieces.push(piece));
                let end = extent.end().0;
                assert_eq!(pieces, self.model.change(extent.start.0, end, Some(extent)));
            }
            Step::Remove(start, end) => {
                self.writer
                    .remove(Sector(start), Sector(end), &mut |piece| pieces.push(piece));
                assert_eq!(pieces, self.model.change(start, end, None));
            }
            Step::Lookup(at) => {
                let expected = self.model.lookup(at);
                assert_eq!(self.writer.lookup(Sector(at)), expected);
                let index = self.writer.index();
                assert_eq!(index.lookup(&self.reader, Sector(at)), expected);
                let many: Vec<_> = (0..TOGETHER as u64)
                    .map(|i| Sector(at.saturating_add(i * i * 7)))
                    .collect();
                let found = index.lookup_all(&self.reader, &many);
                for (at, found) in many.iter().zip(found) {
                    assert_eq!(found, self.model.lookup(at.0));
                }
            }
            Step::Scan(start, end) => {
                self.writer.scan(Sector(start), Sector(end), &mut |extent| {
                    pieces.push(extent);
                    true
                });
                assert_eq!(pieces, self.model.scan(start, end));
            }
            Step::Sift(like) => {
                let goes = |extent: &Extent| extent.generation.0 % 4 == like % 4;
                let mut at = Some(Sector(0));
                while let Some(from) = at {
                    at = self.writer.sift(from, &mut |extent| {
                        if pieces
                            .last()
                            .is_none_or(|last: &Extent| last.start < extent.start)
                        {
                            pieces.push(*extent);
                        }
                        goes(extent)
                    });
                    assert!(at.is_none_or(|at| at > from));
                }
                assert!(
                    pieces.iter().eq(self.model.by_start.values()),
                    "who was asked about"
                );
                self.model.by_start.retain(|_, extent| !goes(extent));
            }
            Step::Reclaim => {
                self.reader.quiesce();
                self.writer.reclaim();
            }
        }
        assert_eq!(self.writer.len(), self.model.by_start.len() as u64);
    }

    fn check(&self) {
        self.writer.verify();
        assert!(self.writer.all().iter().eq(self.model.by_start.values()));
    }
}

pub(super) fn extent(start: u64, sectors: u32, version: u64) -> Extent {
    Extent {
        start: Sector(start),
        sectors,
        at: Sector(version << 20 | start & 0xf_ffff),
        generation: Gen(version as u8),
        dirty: version % 3 == 0,
    }
}

fn steps(space: u64, longest: u32, count: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..20u8, 0..space, 1..=longest, 0..1u64 << 20).prop_map(
        |(kind, start, sectors, version)| match kind {
            0..=10 => Step::Insert(extent(start, sectors, version)),
            11..=14 => Step::Remove(start, start + u64::from(sectors)),
            15 => Step::Remove(start, start + 30 * u64::from(sectors)),
            16 => Step::Scan(start, start + 10 * u64::from(sectors)),
            17 => Step::Reclaim,
            18 => Step::Sift(version as u8),
            _ => Step::Lookup(start),
        },
    );
    proptest::collection::vec(step, 1..count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn a_crowded_map_does_as_the_model(steps in steps(3000, 40, 400)) {
        let mut pair = Pair::new(40);
        steps.iter().for_each(|step| pair.step(step));
        pair.check();
    }

    #[test]
    fn a_wide_map_does_as_the_model(steps in steps(1 << 40, 65_535, 600)) {
        let mut pair = Pair::new(65_535);
        steps.iter().for_each(|step| pair.step(step));
        pair.check();
    }

    #[test]
    fn changes_to_a_full_map_do_as_the_model(
        seed in any::<u64>(),
        steps in steps(60_000, 3000, 60),
    ) {
        let mut pair = Pair::new(3000);
        let mut random = Random(seed | 1);
        for start in (0..60_000).step_by(8) {
            let new = extent(start, 1 + random.below(8) as u32, start);
            pair.writer.insert(new, &mut |_| unreachable!());
            pair.model.by_start.insert(start, new);
        }
        for step in &steps {
            pair.step(step);
        }
        pair.check();
    }
}

/// xorshift64*: enough to scatter positions.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[test]
fn long_histories_over_three_levels_do_as_the_model() {
    let mut pair = Pair::new(2000);
    let mut random = Random(7);
    let space = 400_000;
    let mut levels = 0;
    for round in 0..4 {
        // Rounds of growth in small pieces, then of shrinking by large ones.
        for i in 0..15_000 {
            let start = random.below(space);
            let version = random.below(1 << 20);
            let long = 1 + random.below(if i % 500 == 0 { 2000 } else { 12 }) as u32;
            pair.step(&match random.below(16) {
                0..=9 => Step::Insert(extent(start / 8 * 8, long, version)),
                10 if round % 2 == 1 => Step::Remove(start, start + 2000),
                10..=12 => Step::Remove(start, start + u64::from(long)),
                13 => Step::Lookup(start),
                14 => Step::Scan(start, start + 500),
                _ => Step::Reclaim,
            });
            if i % 1000 == 0 {
                pair.check();
            }
            levels = levels.max(pair.writer.index.root().level() + 1);
        }
    }
    assert!(levels >= 3);
    pair.step(&Step::Remove(0, space * 2));
    pair.check();
    assert_eq!(pair.writer.len(), 0);
    assert_eq!(pair.writer.index.root().level(), 0);
}

#[test]
fn no_sector_is_forgotten_on_four_levels() {
    let mut writer = Writer::new(Domain::new(1));
    let mut random = Random(21);
    let count = 200_000;
    for i in 0..count {
        // Every place once, far from the one before.
        let place = i * 77_773 % count;
        writer.insert(extent(place * 8, 7, 1), &mut |_| unreachable!());
    }
    assert_eq!(writer.index.root().level(), 3);
    let mut covered = count * 7;
    for version in 2..300 {
        let start = random.below(count * 8);
        let long = 1 + random.below(if version % 4 == 0 { 65_535 } else { 2000 }) as u32;
        let mut displaced = 0;
        let mut count_piece = |piece: Extent| displaced += u64::from(piece.sectors);
        if version % 3 == 0 {
            writer.remove(
                Sector(start),
                Sector(start + 5 * u64::from(long)),
                &mut count_piece,
            );
            covered -= displaced;
        } else {
            writer.insert(extent(start, long, version), &mut count_piece);
            covered = covered + u64::from(long) - displaced;
        }
        if version % 20 == 0 {
            writer.verify();
            let found: u64 = writer
                .all()
                .iter()
                .map(|extent| u64::from(extent.sectors))
                .sum();
            assert_eq!(found, covered);
        }
    }
}

#[test]
fn the_sides_may_go_where_they_are_used() {
    fn send<T: Send>() {}
    fn share<T: Send + Sync>() {}
    send::<Writer>();
    send::<super::Reader>();
    share::<super::Index>();
    share::<Domain>();
}

#[test]
fn an_extent_in_the_middle_of_another_makes_three() {
    let mut writer = Writer::new(Domain::new(1));
    let old = extent(100, 50, 3);
    writer.insert(old, &mut |_| panic!("nothing to displace"));
    let new = extent(110, 20, 4);
    let mut pieces = Vec::new();
    writer.insert(new, &mut |piece| pieces.push(piece));
    assert_eq!(pieces, [old.cut(Sector(110), Sector(130))]);
    let (left, right) = (
        old.cut(old.start, Sector(110)),
        old.cut(Sector(130), old.end()),
    );
    assert_eq!(writer.all(), [left, new, right]);
    assert_eq!(right.at, old.at + 30);
    assert_eq!(
        writer.lookup(Sector(99)),
        Lookup::Hole { next: Sector(100) }
    );
    assert_eq!(writer.lookup(Sector(149)), Lookup::Hit(right));
    assert_eq!(
        writer.lookup(Sector(150)),
        Lookup::Hole { next: Sector::MAX }
    );
}

#[test]
fn the_first_and_last_positions_can_be_used() {
    let mut pair = Pair::new(65_535);
    let last = PAD - 1 - 65_535;
    let at = Sector((1 << 43) - 1);
    pair.step(&Step::Insert(Extent {
        at,
        ..extent(0, 1, 1)
    }));
    pair.step(&Step::Insert(Extent {
        at,
        ..extent(last, 65_535, 2)
    }));
    for at in [
        0,
        1,
        last - 1,
        last,
        PAD - 2,
        PAD - 1,
        PAD,
        PAD + 1,
        u64::MAX - 1,
        u64::MAX,
    ] {
        pair.step(&Step::Lookup(at));
    }
    pair.step(&Step::Remove(PAD - 2, u64::MAX));
    pair.step(&Step::Scan(PAD - 3, u64::MAX));
    pair.step(&Step::Remove(0, u64::MAX));
    pair.check();
    assert!(pair.writer.is_empty());
}

#[test]
#[should_panic(expected = "out of range")]
fn an_extent_behind_the_last_position_is_refused() {
    let mut writer = Writer::new(Domain::new(1));
    writer.insert(extent(PAD - 1, 1, 0), &mut |_| {});
}

#[test]
#[should_panic(expected = "another domain")]
fn a_reader_of_another_domain_is_refused() {
    let writer = Writer::new(Domain::new(1));
    let reader = Domain::new(1).reader().unwrap();
    writer.index().lookup(&reader, Sector(0));
}

#[test]
fn a_callback_that_panics_leaves_the_map_as_it_was() {
    let mut writer = Writer::new(Domain::new(1));
    for i in 0..1000 {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
    }
    let before = writer.all();
    for sectors in [4, 4000] {
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            writer.insert(extent(804, sectors, 1), &mut |_| panic!("on purpose"));
        }));
        assert!(attempt.is_err());
        assert_eq!(writer.all(), before);
        writer.verify();
    }
}

#[test]
fn readers_keep_what_the_writer_left() {
    let domain = Domain::new(1);
    let reader = domain.reader().unwrap();
    let mut writer = Writer::new(domain);
    for i in 0..1000 {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
    }
    let index = writer.index();
    drop(writer);
    for i in 0..1000 {
        assert_eq!(
            index.lookup(&reader, Sector(i * 8 + 7)),
            Lookup::Hit(extent(i * 8, 8, i))
        );
    }
}

/// Bytes an extent, with all readers quiescent.
fn density(writer: &mut Writer) -> f64 {
    while writer.reclaim() > 0 {}
    writer.bytes() as f64 / writer.len() as f64
}

#[test]
fn memory_is_at_most_32_bytes_an_extent_in_any_order() {
    let count: u64 = 200_000;
    let mut random = Random(3);
    let mut scattered: Vec<u64> = (0..count).collect();
    for i in (1..count).rev() {
        scattered.swap(i as usize, random.below(i + 1) as usize);
    }
    let upwards = (0..count).collect();
    let downwards = (0..count).rev().collect();
    // Eight streams side by side.
    let streams = (0..count).map(|i| i % 8 * (count / 8) + i / 8).collect();
    let orders: [(&str, Vec<u64>, f64); 4] = [
        ("random", scattered, 32.0),
        ("upwards", upwards, 20.5),
        ("downwards", downwards, 32.0),
        ("streams", streams, 32.0),
    ];
    for (name, order, limit) in orders {
        let mut writer = Writer::new(Domain::new(1));
        for i in order {
            writer.insert(extent(i * 8, 8, i), &mut |_| {});
        }
        assert_eq!(writer.len(), count);
        let bytes = density(&mut writer);
        println!("{name}: {bytes:.1} bytes an extent");
        writer.verify();
        assert!(bytes <= limit, "{name}: {bytes:.1} bytes an extent");
    }
}

/// Has the writer give back what it can, with a reader that quiesces.
fn settle(writer: &mut Writer, reader: &super::Reader) {
    let mut step = || {
        reader.quiesce();
        writer.reclaim()
    };
    // A call that only begins an epoch has dealt with nothing.
    while step() + step() > 0 {}
    writer.verify();
    assert_eq!(
        writer.open.len() + writer.waiting.len() + writer.ready.len(),
        0
    );
}

#[test]
fn memory_comes_back_when_a_range_goes() {
    let domain = Domain::new(1);
    let reader = domain.reader().unwrap();
    let mut writer = Writer::new(Arc::clone(&domain));
    for i in 0..100_000 {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
        reader.quiesce();
    }
    let full = writer.bytes();
    writer.remove(Sector(0), Sector(99_000 * 8), &mut |_| {});
    // The reader has not quiesced: it may be anywhere in the pages that were taken out.
    while writer.reclaim() > 0 {}
    assert!(writer.bytes() >= full);
    reader.quiesce();
    settle(&mut writer, &reader);
    assert!(
        writer.bytes() < 300_000,
        "{} of {full} bytes left",
        writer.bytes()
    );
}

#[test]
fn memory_comes_back_when_extents_go_here_and_there() {
    let domain = Domain::new(1);
    let reader = domain.reader().unwrap();
    let mut writer = Writer::new(Arc::clone(&domain));
    let mut random = Random(11);
    let count = 100_000;
    for i in 0..count {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
    }
    let full = writer.bytes();
    for i in 0..count {
        if random.below(50) > 0 {
            writer.remove(Sector(i * 8), Sector(i * 8 + 8), &mut |_| {});
        }
    }
    let left = writer.all();
    settle(&mut writer, &reader);
    assert_eq!(writer.all(), left);
    let needed = writer.len() * 26 * 2 + 5 * 32 * 1024;
    assert!(
        writer.bytes() <= needed,
        "{} of {full} bytes left",
        writer.bytes()
    );
}

#[test]
fn rewriting_needs_no_more_memory_when_readers_quiesce() {
    let domain = Domain::new(2);
    let (reader, away) = (domain.reader().unwrap(), domain.reader().unwrap());
    away.offline();
    let mut writer = Writer::new(domain);
    for i in 0..1000 {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
        reader.quiesce();
    }
    let mut high = 0;
    for i in 0..50_000 {
        // Each time half a block further or back, so that no extent is just another's place.
        let start = i % 1000 * 8 + i / 1000 % 2 * 4;
        writer.insert(extent(start, 8, i), &mut |_| {});
        if i % 50 == 0 {
            reader.quiesce();
        }
        high = high.max(writer.bytes());
    }
    assert!(high <= 8 * 64 * 1024, "{high} bytes");
}

#[test]
fn rewriting_the_same_sectors_needs_no_page_and_waits_for_no_reader() {
    let domain = Domain::new(2);
    let reader = domain.reader().unwrap();
    let mut writer = Writer::new(domain);
    for i in 0..1000 {
        writer.insert(extent(i * 8, 8, i), &mut |_| {});
        reader.quiesce();
    }
    let (index, bytes, open) = (writer.index(), writer.bytes(), writer.open.len());
    for i in 1000..50_000 {
        let (old, new) = (
            extent(i % 1000 * 8, 8, i - 1000),
            extent(i % 1000 * 8, 8, i),
        );
        let mut displaced = Vec::new();
        writer.insert(new, &mut |extent| displaced.push(extent));
        assert_eq!(displaced, [old]);
        assert_eq!(index.lookup(&reader, new.start + 7), Lookup::Hit(new));
    }
    assert_eq!(
        (writer.bytes(), writer.open.len(), writer.len()),
        (bytes, open, 1000)
    );
    writer.verify();
}

#[test]
fn an_extent_with_only_one_bound_of_another_does_not_take_its_place() {
    for (start, sectors) in [(8, 4), (12, 4), (4, 12), (8, 12), (10, 4)] {
        let mut pair = Pair::new(16);
        for step in [
            Step::Insert(extent(8, 8, 1)),
            Step::Insert(extent(start, sectors, 2)),
        ] {
            pair.step(&step);
        }
        (0..32).for_each(|at| pair.step(&Step::Lookup(at)));
        pair.writer.verify();
    }
}
