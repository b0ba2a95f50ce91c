//! Devices that hold a cache set when a run begins: one that Linux left, one of very many keys, or a
//! worn one, whose full cache was used again and again.
//!
//! What its volumes hold is what the model of Linux ([`kernel`](crate::sim::kernel)) reads: for a set
//! that Linux left, that is what Linux would serve; for one that the engine left, what the engine must
//! agree with.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::OnceLock;

use serde_json::json;

use super::plan::{Feature, Plan};
use crate::format::superblock::DEFAULT_DATA_OFFSET;
use crate::request::Kind;
use crate::request::lane::Outcome;
use crate::rng::Rng;
use crate::sim::bytes::{Bytes, Image};
use crate::sim::disk::Medium;
use crate::sim::kernel::volumes::backing_super;
use crate::sim::kernel::{Sizes, open};
use crate::sim::machine::Machine;
use crate::units::{SECTOR_BYTES, Sector, Uuid};

/// I/Os under way while a set is made.
const DEPTH: usize = 32;

/// Writes of one sector that a large set has seen, each into the middle of three that lay in one key:
/// twice as many keys.
const LARGE_WRITES: u64 = 52_000;
/// The sectors of its volume, and of its cache device.
const LARGE_SECTORS: [u64; 2] = [3 * LARGE_WRITES, 8 * LARGE_WRITES];
/// Sectors of each of the writes that fill it.
const FILL_SECTORS: u64 = 240;

/// Sectors of each of the two volumes of a worn set.
const WORN_SECTORS: u64 = 8192;
/// The worn sets: sectors of a block and of the cache device, and KiB of a bucket. The volumes do not
/// fit into the cache.
const WORN: [(u32, u64, u64); 5] = [
    (1, 16_384, 64),
    (1, 8192, 8),
    (1, 12_288, 16),
    (1, 12_288, 4),
    (8, 16_384, 16),
];
/// How much of the cache device's size is written before a worn set is killed.
const WORN_TIMES: u64 = 4;

/// Devices with a set.
pub struct Aged {
    /// What it is.
    pub name: &'static str,
    /// The cache device.
    pub cache: Bytes,
    /// The backing devices.
    pub backings: Vec<Bytes>,
    /// Sectors of its blocks.
    pub block_sectors: u32,
    /// Bytes of its buckets, in KiB.
    pub bucket_kb: u64,
    /// What its volumes hold, by UUID.
    pub contents: BTreeMap<String, Bytes>,
}

/// Those that Linux left, by name; each is loaded when it is first drawn.
pub struct Gallery {
    cases: Vec<(&'static str, OnceLock<Aged>)>,
    load: fn(&'static str) -> Aged,
}

impl Gallery {
    /// A gallery of these cases.
    pub fn new(cases: &[&'static str], load: fn(&'static str) -> Aged) -> Gallery {
        let cases = cases.iter().map(|&case| (case, OnceLock::new()));
        Gallery {
            cases: cases.collect(),
            load,
        }
    }

    /// What a run begins with, if not with blank devices.
    pub fn pick(&self, plan: &Plan) -> Option<&Aged> {
        if plan.has(Feature::Large) {
            return Some(LARGE.get_or_init(|| apart(large)));
        }
        if plan.has(Feature::Worn) {
            let nr = plan.aged as usize % WORN.len();
            return Some(WORN_SETS[nr].get_or_init(|| apart(|| worn(nr))));
        }
        let nr = plan.aged.checked_rem(self.cases.len() as u64)?;
        let (case, aged) = &self.cases[nr as usize];
        plan.has(Feature::Linux)
            .then(|| aged.get_or_init(|| (self.load)(case)))
    }
}

static LARGE: OnceLock<Aged> = OnceLock::new();
static WORN_SETS: [OnceLock<Aged>; WORN.len()] = [const { OnceLock::new() }; WORN.len()];

/// What a thread of its own makes: no bug is seeded there, and all runs share it.
fn apart(make: impl FnOnce() -> Aged + Send) -> Aged {
    let made = std::thread::scope(|scope| scope.spawn(make).join());
    made.expect("a set without faults is made without faults")
}

impl Aged {
    /// A set on these devices.
    ///
    /// # Errors
    /// Linux would not open it, or would not serve one of its volumes.
    pub fn new(name: &'static str, cache: Bytes, backings: Vec<Bytes>) -> Result<Aged, String> {
        let devices: Vec<&dyn Image> = backings.iter().map(|bytes| bytes as _).collect();
        let view = open(&cache, &devices, Sizes::Any).map_err(|why| why.to_string())?;
        let sb = view.cache_super();
        let (block_sectors, bucket_sectors) = (sb.block_sectors, sb.bucket_sectors);
        let backed = devices.iter().filter_map(|device| backing_super(*device));
        let mut uuids: Vec<Uuid> = backed.map(|sb| sb.uuid).collect();
        uuids.extend(view.flash_volumes().map(|entry| entry.uuid));
        let mut contents = BTreeMap::new();
        for uuid in uuids {
            let volume = view.volume(uuid).map_err(|why| why.to_string())?;
            let volume = volume.ok_or_else(|| format!("{uuid} is not served"))?;
            let mut bytes = Bytes::zeros(volume.sectors as usize * SECTOR_BYTES);
            volume.each_sector(0, volume.sectors, |sector, seen| {
                if seen.iter().any(|&byte| byte != 0) {
                    bytes.write(Sector(sector).bytes() as usize, seen);
                }
                Ok(())
            })?;
            contents.insert(uuid.to_string(), bytes);
        }
        drop(view);
        Ok(Aged {
            name,
            cache,
            backings,
            block_sectors: block_sectors.into(),
            bucket_kb: u64::from(bucket_sectors) / 2,
            contents,
        })
    }
}

/// A machine on which a set is made.
struct Maker {
    media: Vec<Rc<Medium>>,
    machine: Machine,
    rng: Rc<Rng>,
    open: Vec<u64>,
    /// I/Os so far.
    count: u64,
}

impl Maker {
    /// A set on blank devices: a cache device of so many sectors, and volumes.
    fn new(seed: u64, block: u32, cache: u64, bucket_kb: u64, volumes: &[u64]) -> Maker {
        let slow = volumes.iter().enumerate().map(|(i, sectors)| {
            let sectors = sectors + DEFAULT_DATA_OFFSET.0;
            Medium::new(&format!("slow{i}"), sectors, block)
        });
        let fast = std::iter::once(Medium::new("fast", cache, block));
        let media: Vec<Rc<Medium>> = fast.chain(slow).collect();
        let rng = Rc::new(Rng::new(seed));
        let all: Vec<&Rc<Medium>> = media.iter().collect();
        let machine = Machine::with(&all, rng.clone(), 0, 1);
        for i in 0..volumes.len() {
            let more = json!({
                "name": format!("Vol{i}"), "mode": "writeback", "bucket_size_kb": bucket_kb,
                "block_size": block as usize * SECTOR_BYTES,
            });
            let made = machine.create("fast", &format!("slow{i}"), more);
            made.expect("blank devices");
        }
        Maker {
            media,
            machine,
            rng,
            open: Vec::new(),
            count: 0,
        }
    }

    /// Begins an I/O; what a write writes nothing else has written.
    fn io(&mut self, volume: usize, kind: Kind, start: u64, sectors: u64) {
        self.count += 1;
        let memory = (self.count << 8 | 0x55).to_le_bytes();
        let memory = memory.repeat(sectors as usize * SECTOR_BYTES / 8);
        let name = format!("Vol{volume}");
        let tag = self.machine.issue(&name, kind, start, memory, sectors);
        self.open.push(tag);
        self.wait(DEPTH);
    }

    /// Waits until so many are under way at most.
    fn wait(&mut self, most: usize) {
        while self.open.len() > most {
            self.machine.turn();
            self.open.retain(|&tag| match self.machine.ended(tag) {
                Some((outcome, _)) => {
                    assert_eq!(outcome, Outcome::Success, "sound devices");
                    false
                }
                None => true,
            });
        }
    }

    /// The power is cut after a flush.
    fn end(mut self, name: &'static str) -> Aged {
        self.wait(0);
        for i in 0..self.media.len() - 1 {
            assert_eq!(self.machine.flush(&format!("Vol{i}")), Outcome::Success);
        }
        self.machine.die();
        for medium in &self.media {
            medium.crash(&self.rng, true);
        }
        let bytes = |medium: &Rc<Medium>| medium.look().clone();
        let backings = self.media[1..].iter().map(bytes).collect();
        let made = Aged::new(name, bytes(&self.media[0]), backings);
        made.expect("Linux opens what the engine left")
    }
}

/// A set of more than a hundred thousand keys: few of its leaves on the device hold what the journal
/// does.
fn large() -> Aged {
    let [volume, cache] = LARGE_SECTORS;
    let mut maker = Maker::new(LARGE_WRITES, 1, cache, 64, &[volume]);
    let off = json!({"name": "Vol0", "writeback_running": false});
    maker.machine.must("bdev_bcache_set_options", off);
    for start in (0..volume).step_by(FILL_SECTORS as usize) {
        maker.io(0, Kind::Write, start, FILL_SECTORS);
    }
    maker.wait(0);
    let mut places: Vec<u64> = (0..LARGE_WRITES).map(|nr| 3 * nr + 1).collect();
    maker.rng.shuffle(&mut places);
    for start in places {
        maker.io(0, Kind::Write, start, 1);
    }
    maker.end("many keys")
}

/// A set whose cache is full, of clean and dirty data in pieces, and whose buckets were used again and
/// again.
fn worn(nr: usize) -> Aged {
    let (block, cache, bucket_kb) = WORN[nr];
    let mut maker = Maker::new(nr as u64, block, cache, bucket_kb, &[WORN_SECTORS; 2]);
    let blocks = WORN_SECTORS / u64::from(block);
    let mut left = WORN_TIMES * cache;
    while left > 0 {
        let kind = *maker.rng.any(&[Kind::Write, Kind::Write, Kind::Read]);
        let volume = maker.rng.below(2) as usize;
        let many = 1 + maker.rng.below(1 + maker.rng.below(16));
        let start = maker.rng.below(blocks - many + 1);
        let sectors = many * u64::from(block);
        maker.io(volume, kind, start * u64::from(block), sectors);
        left = left.saturating_sub(sectors);
    }
    maker.end("a worn set")
}
