//! What a run of the simulator does, drawn from a seed, and what it reports.

use super::disk::{Faults, Ills, Unmapped};
use crate::format::superblock::CacheMode;
use crate::rng::Rng;

/// One volume of a plan.
#[derive(Clone, Debug)]
pub struct VolumePlan {
    /// Its size.
    pub sectors: u64,
    /// Whether it has no backing device.
    pub flash: bool,
    /// The mode that it begins with.
    pub mode: CacheMode,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All I/O answered, fronts closed, set stopped.
    Stop,
    /// In the middle of it, the disks keep what they have.
    Kill,
    /// In the middle of it, the disks lose what was not flushed.
    Power,
}

/// What a run does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the cache device.
    pub nbuckets: u64,
    /// Of the cache device.
    pub bucket_sectors: u32,
    /// Of the set and its volumes.
    pub block_sectors: u32,
    /// Of all devices; at most the set's.
    pub device_block_sectors: u32,
    /// Fronts of each volume.
    pub reactors: usize,
    /// The volumes.
    pub volumes: Vec<VolumePlan>,
    /// The ends of the lives.
    pub lives: Vec<End>,
    /// Host I/Os of a life.
    pub ops: u64,
    /// Host I/Os in flight at most.
    pub depth: usize,
    /// The longest host I/O.
    pub io_sectors_max: u64,
    /// Reads in a hundred operations.
    pub reads: u64,
    /// Flushes in a hundred operations.
    pub flushes: u64,
    /// Discards and zeroes in a hundred operations.
    pub clears: u64,
    /// Operations in a hundred that go to a small part of the volume.
    pub hot: u64,
    /// Whether modes change under way.
    pub mode_changes: bool,
    /// Whether write-back works without being asked.
    pub writeback: bool,
    /// Whether flushes of the cache device do nothing (a canary).
    pub ignore_cache_flush: bool,
    /// Whether flushes of the backing devices do nothing (a canary).
    pub ignore_backing_flush: bool,
    /// Failures of the backing devices.
    pub backing_faults: Faults,
    /// Failures of the cache device.
    pub cache_faults: Faults,
    /// Illnesses of all devices.
    pub ills: Ills,
    /// What the backing devices make of discards.
    pub unmapped: Unmapped,
    /// Whether the cache device loses and misdirects writes. What hosts read is not looked at then:
    /// data have no checksums. But the set's own structures must be found damaged, or be right.
    pub lies: bool,
    /// Whether the volumes without a backing device are larger than the cache, so that writes may
    /// find no space.
    pub outgrown: bool,
}

impl Plan {
    /// A plan drawn from a seed: small devices, everything mixed.
    pub fn from_seed(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x706c_616e);
        let pick = |choices: &[u64]| *rng.any(choices);
        let block_sectors = pick(&[1, 8]) as u32;
        let bucket_sectors = pick(&[16, 16, 32, 64, 128]) as u32;
        // A journal of fewer blocks than sixteen has no room to work in.
        let least = match bucket_sectors / block_sectors {
            0..4 => 1024,
            4..8 => 512,
            _ => 256,
        };
        let nbuckets = pick(&[256, 512, 1024]).max(least);
        let cache_sectors = nbuckets * u64::from(bucket_sectors);
        let size = |rng: &Rng| {
            let share = [1, 2, 4, 8, 16][rng.below(5) as usize];
            (cache_sectors * share / 4).min(32768) / 8 * 8
        };
        let mode = |rng: &Rng| CacheMode::ALL[[1, 1, 1, 0, 2, 3][rng.below(6) as usize]];
        let mut volumes = vec![VolumePlan {
            sectors: size(&rng),
            flash: false,
            mode: mode(&rng),
        }];
        if rng.below(2) == 0 {
            volumes.push(VolumePlan {
                sectors: size(&rng),
                flash: false,
                mode: mode(&rng),
            });
        }
        if rng.below(3) == 0 {
            volumes.push(VolumePlan {
                sectors: (cache_sectors / 8).min(4096) / 8 * 8,
                flash: true,
                mode: CacheMode::WriteBack,
            });
        }
        let ends = [End::Stop, End::Kill, End::Power, End::Power];
        let lives = 2 + rng.below(4);
        Plan {
            nbuckets,
            bucket_sectors,
            block_sectors,
            device_block_sectors: pick(&[1, block_sectors.into()]) as u32,
            reactors: 1 + rng.below(3) as usize,
            volumes,
            lives: (0..lives).map(|_| ends[rng.below(4) as usize]).collect(),
            ops: pick(&[50, 200, 200, 500]),
            depth: pick(&[1, 4, 16, 48]) as usize,
            io_sectors_max: pick(&[8, 8, 64, 256, 2048]),
            reads: pick(&[10, 40, 70]),
            flushes: pick(&[0, 2, 10]),
            clears: pick(&[0, 0, 5]),
            hot: pick(&[0, 50, 90]),
            mode_changes: rng.below(3) == 0,
            writeback: rng.below(3) > 0,
            ignore_cache_flush: false,
            ignore_backing_flush: false,
            backing_faults: Faults::default(),
            cache_faults: Faults::default(),
            ills: Ills::default(),
            unmapped: [Unmapped::Old, Unmapped::Zeros, Unmapped::Mixture][rng.below(3) as usize],
            lies: false,
            outgrown: false,
        }
    }

    /// As any, with devices that fail and are ill: latent and passing errors, slow answers.
    pub fn ill(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x0069_6c6c_0000);
        let pick = |choices: &[u64]| *rng.any(choices);
        let faults = || Faults {
            read: pick(&[0, 0, 30, 300]),
            write: pick(&[0, 0, 100, 1000]),
            flush: pick(&[0, 0, 100, 1000]),
        };
        Plan {
            backing_faults: faults(),
            cache_faults: faults(),
            ills: Ills {
                latent: pick(&[0, 50, 500]),
                slow: pick(&[0, 0, 200]),
                ..Ills::default()
            },
            ..Plan::from_seed(seed)
        }
    }

    /// Whether devices may do anything but what they are told.
    pub fn is_ill(&self) -> bool {
        let fails = |f: &Faults| f.read + f.write + f.flush > 0;
        let Ills {
            latent,
            slow,
            misdirected,
            lost,
        } = self.ills;
        fails(&self.cache_faults)
            || fails(&self.backing_faults)
            || latent + slow + misdirected + lost > 0
    }

    /// As any, with a cache device that lies.
    pub fn lying(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x006c_6965_0000);
        let pick = |choices: &[u64]| *rng.any(choices);
        Plan {
            lies: true,
            ills: Ills {
                misdirected: pick(&[0, 50, 500]),
                lost: pick(&[0, 50, 500]),
                ..Ills::default()
            },
            ..Plan::from_seed(seed)
        }
    }
}

impl Plan {
    /// Short writes all over a small cache of tiny buckets: a tree of three levels.
    pub fn deep(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x64_6565_7000);
        Plan {
            nbuckets: 4096,
            bucket_sectors: 8,
            block_sectors: 1,
            device_block_sectors: 1,
            volumes: vec![VolumePlan {
                sectors: 65536,
                flash: false,
                mode: CacheMode::WriteBack,
            }],
            lives: vec![End::Power, End::Power, End::Stop],
            ops: 16_000 + rng.below(8_000),
            depth: 48,
            io_sectors_max: 2,
            reads: 5,
            hot: 0,
            ..Plan::from_seed(seed)
        }
    }

    /// Long I/O through a cache much smaller than the volume: every bucket is used again and again,
    /// so that generations wrap.
    pub fn churn(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x63_6875_726e);
        Plan {
            nbuckets: 256,
            bucket_sectors: 16,
            block_sectors: 1,
            device_block_sectors: 1,
            volumes: vec![VolumePlan {
                sectors: 32768,
                flash: false,
                mode: CacheMode::ALL[rng.below(3) as usize],
            }],
            lives: vec![End::Power, End::Stop, End::Kill, End::Stop],
            ops: 5_000,
            depth: 16,
            io_sectors_max: 2048,
            reads: 40,
            hot: 20,
            ..Plan::from_seed(seed)
        }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Host I/Os answered.
    pub ops: u64,
    /// Lives lived.
    pub lives: u64,
    /// Simulated time.
    pub us: u64,
    /// The deepest tree.
    pub depth: u16,
    /// Rounds of write-back moved so many sectors.
    pub written_back_sectors: u64,
    /// Read hits.
    pub hits: u64,
    /// Starts that were refused for what a device did.
    pub refused: u64,
    /// Lives in which the set stopped by itself.
    pub stopped: u64,
    /// Host I/Os answered with an error.
    pub failed: u64,
    /// The most times that one bucket was used again in one life.
    pub reuses: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.ops += other.ops;
        self.lives += other.lives;
        self.us += other.us;
        self.hits += other.hits;
        self.refused += other.refused;
        self.stopped += other.stopped;
        self.failed += other.failed;
        self.written_back_sectors += other.written_back_sectors;
        self.depth = self.depth.max(other.depth);
        self.reuses = self.reuses.max(other.reuses);
    }
}
