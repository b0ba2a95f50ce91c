//! What a run of the operator's world draws: its devices, its features, its lives. A function of the
//! seed, and of what the run was told to leave out.
//!
//! *Swarm*: each feature is on or off in a run, by its own weight, so that rare combinations get lives
//! of their own. What is off is never drawn in that run.

use std::collections::BTreeSet;

use super::aged::Aged;
use super::calls::DRAWN;
use crate::rng::Rng;
use crate::sim::bytes::Image;
use crate::sim::disk::Unmapped;

macro_rules! features {
    ($($(#[$doc:meta])* $variant:ident $name:literal $percent:literal,)*) => {
        /// What a run may draw, or not at all.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Feature {
            $($(#[$doc])* $variant,)*
        }

        impl Feature {
            /// All of them.
            pub const ALL: &'static [Feature] = &[$(Feature::$variant,)*];

            /// Its name, as flags have it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Feature::$variant => $name,)*
                }
            }

            /// In how many of a hundred runs it is on.
            pub fn percent(self) -> u64 {
                match self {
                    $(Feature::$variant => $percent,)*
                }
            }
        }
    };
}

features! {
    /// A second cache device.
    TwoSets "two-sets" 40,
    /// Volumes on the cache alone.
    Flash "flash" 40,
    /// More reactors than one.
    Reactors "reactors" 60,
    /// Other cache modes than write-back.
    Modes "modes" 60,
    /// Options of volumes and sets.
    Options "options" 50,
    /// Volumes leave their set and come to one.
    Attach "attach" 60,
    /// Volumes and sets are taken down and come up.
    Lifecycle "lifecycle" 60,
    /// Volumes get other names.
    Names "names" 40,
    /// Write-back and garbage collection by request.
    Jobs "jobs" 60,
    /// Discards and zeroes.
    Clears "clears" 60,
    /// Writes that are durable when they are answered.
    Fua "fua" 50,
    /// Resets of volumes.
    Resets "resets" 30,
    /// The memory of writes changes under way.
    Memory "memory" 25,
    /// Memory in pieces of any length, which have more in all than their I/O needs, or less.
    Lists "lists" 40,
    /// Volumes on other volumes.
    Stacks "stacks" 20,
    /// Seconds in which hosts do nothing.
    Idle "idle" 60,
    /// Devices are removed in good order, and come back.
    Removals "removals" 35,
    /// Devices are torn out, and come back.
    Tears "tears" 25,
    /// Torn devices lose what was not flushed.
    TornPower "torn-power" 50,
    /// Devices do not answer for a while.
    Silence "silence" 25,
    /// Devices answer late for a while.
    Lag "lag" 25,
    /// Backing devices are as slow as disks.
    Disks "disks" 40,
    /// All devices share a queue of few places.
    Queue "queue" 20,
    /// Devices fail at some requests for a while.
    Faults "faults" 25,
    /// Sectors turn bad.
    BadSectors "bad-sectors" 25,
    /// Superblocks cannot be written for a while.
    SuperFaults "super-faults" 25,
    /// Backing devices grow.
    Sizes "sizes" 25,
    /// Backing devices come back smaller than they were, and later as large.
    Shrinks "shrinks" 15,
    /// A part of a device answers late, or takes none of the engine's writes, for a while.
    Regions "regions" 20,
    /// The operator waits for all calls.
    Rests "rests" 40,
    /// Copies of devices appear.
    Copies "copies" 20,
    /// Blank devices are to become volumes.
    Blanks "blanks" 35,
    /// Dirty data are given up by request.
    GiveUps "give-ups" 15,
    /// Devices are not there when a life begins.
    Missing "missing" 35,
    /// Lives end by a kill.
    Kills "kills" 70,
    /// Lives end by a power cut, perhaps while sets recover.
    Cuts "cuts" 80,
    /// What the devices hold is recovered beside the life.
    Shadows "shadows" 60,
    /// The run begins with a set that Linux left.
    Linux "linux" 1,
    /// The run begins with a set of very many keys.
    Large "large" 1,
    /// The run begins with a set that was used for long.
    Worn "worn" 25,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Everything is stopped in good order.
    Stop,
    /// The process is gone, the devices keep what they have.
    Kill,
    /// The devices lose what was not flushed.
    Power,
    /// The same, soon after the start.
    Recovering,
}

/// What is left out of a run, to find the least that still fails, or is to be in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Features that are on, whatever the seed says.
    pub on: BTreeSet<Feature>,
    /// Features that are off, whatever the seed says.
    pub off: BTreeSet<Feature>,
    /// Steps, counted over all lives, that are not taken.
    pub skip: BTreeSet<u64>,
}

/// A cache device.
#[derive(Clone, Copy, Debug)]
pub struct FastPlan {
    /// Its buckets.
    pub nbuckets: u64,
    /// Their size.
    pub bucket_kb: u64,
}

/// What a run is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The features that are on.
    pub on: BTreeSet<Feature>,
    /// The cache devices.
    pub fast: Vec<FastPlan>,
    /// The sectors of the backing devices, of which some are blank at first.
    pub slow_sectors: Vec<u64>,
    /// How many µs a request takes at most of backing devices, beside what it takes of cache devices.
    pub slow_pace_us: u64,
    /// The places of the queue that all devices share, if they do.
    pub queue_places: Option<usize>,
    /// Sectors of a block, of sets and of devices.
    pub block_sectors: u32,
    /// Fronts of a volume.
    pub reactors: usize,
    /// The ends of the lives.
    pub ends: Vec<End>,
    /// Steps of a life.
    pub steps: u64,
    /// Host I/Os in flight at most.
    pub depth: usize,
    /// What backing devices make of discards.
    pub unmapped: Unmapped,
    /// Of a hundred steps: those with a call, and those with something that befalls a device.
    pub calls: u64,
    /// See `calls`.
    pub events: u64,
    /// Which of the sets that there are for that the run begins with.
    pub aged: u64,
    /// How often each method is called in this run, beside its weight.
    pub tastes: Vec<u64>,
}

impl Plan {
    /// The plan of a seed, changed by what a run is told.
    pub fn from_seed(seed: u64, cut: &Cut) -> Plan {
        let rng = Rng::new(seed ^ 0x6f70_6572_6174_6f72);
        let drawn = Feature::ALL
            .iter()
            .filter(|f| rng.below(100) < f.percent())
            .copied();
        let mut on: BTreeSet<Feature> = drawn.chain(cut.on.iter().copied()).collect();
        on.retain(|feature| !cut.off.contains(feature));
        let has = |feature| on.contains(&feature);
        let block_sectors = *rng.any(&[1, 1, 8]);
        let fast = (0..2).map(|_| fast(&rng, block_sectors));
        let fast: Vec<FastPlan> = fast.collect();
        let volumes = 1 + rng.below(3) as usize;
        let slow = (0..5)
            .map(|_| 4096 + rng.below(4) * 2048)
            .collect::<Vec<u64>>();
        let blanks = blanks(&on);
        let ends = [
            End::Stop,
            End::Kill,
            End::Power,
            End::Power,
            End::Recovering,
        ];
        let ends = (0..2 + rng.below(3)).map(|_| *rng.any(&ends));
        let allowed = |end: End| match end {
            End::Stop => end,
            End::Kill if !has(Feature::Kills) => End::Stop,
            End::Power | End::Recovering if !has(Feature::Cuts) => End::Stop,
            end => end,
        };
        let reactors = 2 + rng.below(3) as usize;
        // No set rests on itself: a volume on a volume is of another one.
        let sets = 1 + usize::from(has(Feature::TwoSets) || has(Feature::Stacks));
        Plan {
            seed,
            ends: ends.map(allowed).collect(),
            fast: fast[..sets].to_vec(),
            slow_sectors: slow[..volumes + blanks].to_vec(),
            slow_pace_us: match has(Feature::Disks) {
                true => *rng.any(&[1_000, 10_000, 50_000]),
                false => 0,
            },
            queue_places: has(Feature::Queue).then(|| *rng.any(&[32, 64, 128])),
            block_sectors,
            reactors: if has(Feature::Reactors) { reactors } else { 1 },
            steps: *rng.any(&[40, 120, 120, 300]),
            depth: *rng.any(&[1, 4, 12, 32]),
            unmapped: *rng.any(&[Unmapped::Old, Unmapped::Zeros, Unmapped::Mixture]),
            calls: *rng.any(&[5, 20, 40]),
            events: *rng.any(&[2, 8, 20]),
            aged: rng.next(),
            tastes: DRAWN.iter().map(|_| *rng.any(&[1, 1, 1, 8])).collect(),
            on,
        }
    }

    /// Whether a feature is on.
    pub fn has(&self, feature: Feature) -> bool {
        self.on.contains(&feature)
    }

    /// The run begins with devices that hold a set.
    pub(super) fn begin_with(&mut self, aged: &Aged) {
        self.block_sectors = aged.block_sectors;
        let first = FastPlan {
            nbuckets: (aged.cache.size_bytes() >> 10) as u64 / aged.bucket_kb,
            bucket_kb: aged.bucket_kb,
        };
        self.fast[0] = first;
        for other in &mut self.fast[1..] {
            // Possible with blocks of any size.
            (other.nbuckets, other.bucket_kb) = (128, 64);
        }
    }

    /// How many of the backing devices are blank when the run begins to be one.
    pub fn blanks(&self) -> usize {
        blanks(&self.on)
    }
}

fn blanks(on: &BTreeSet<Feature>) -> usize {
    if on.contains(&Feature::Blanks) { 2 } else { 0 }
}

fn fast(rng: &Rng, block_sectors: u32) -> FastPlan {
    let bucket_kb = match rng.below(80) {
        0 => *rng.any(&[256, 512, 1024]),
        1..=4 => 128,
        _ => *rng.any(&[4, 8, 8, 16, 32, 64, 64]),
    };
    // A bucket of one block is refused, and so is a journal of fewer blocks than sixteen.
    let bucket_kb = if block_sectors == 8 {
        bucket_kb.max(16)
    } else {
        bucket_kb
    };
    let least = (2048 / bucket_kb).max(128);
    let blocks = bucket_kb * 2 / u64::from(block_sectors);
    let least = if blocks < 8 { least.max(512) } else { least };
    let nbuckets = least * *rng.any(&[1, 1, 2, 4]);
    // Of large buckets few, so that a run is quick.
    let most = if bucket_kb >= 64 { 128 } else { 1024 };
    FastPlan {
        nbuckets: nbuckets.min(most.max(least)),
        bucket_kb,
    }
}
