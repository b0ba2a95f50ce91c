//! Plans that leave a cache no room: whatever a host does, it must go on and answer in time.

use super::plan::{End, Plan, VolumePlan};
use crate::format::superblock::CacheMode;
use crate::rng::Rng;

fn writeback(sectors: u64) -> VolumePlan {
    VolumePlan {
        sectors,
        flash: false,
        mode: CacheMode::WriteBack,
    }
}

fn flash(sectors: u64) -> VolumePlan {
    VolumePlan {
        sectors,
        flash: true,
        mode: CacheMode::WriteBack,
    }
}

impl Plan {
    fn tight(seed: u64) -> Plan {
        let rng = Rng::new(seed ^ 0x7469_6768_7400);
        Plan {
            nbuckets: 256,
            bucket_sectors: 16,
            block_sectors: 1,
            device_block_sectors: 1,
            lives: vec![End::Power, End::Stop, End::Kill, End::Stop],
            ops: 4_000,
            depth: 1 + rng.below(48) as usize,
            reads: 5,
            flushes: rng.below(3),
            clears: 0,
            hot: 0,
            mode_changes: false,
            ..Plan::from_seed(seed)
        }
    }

    /// Dirty data up to the brim: write-back volumes twice as large as the cache, and write-back
    /// works only when there is no other way.
    pub fn full(seed: u64) -> Plan {
        Plan {
            volumes: vec![writeback(8192)],
            writeback: seed % 4 == 0,
            io_sectors_max: [1, 8, 64, 512][(seed % 4) as usize],
            ..Plan::tight(seed)
        }
    }

    /// More metadata than data: tiny buckets and single sectors all over the volume.
    pub fn meta(seed: u64) -> Plan {
        Plan {
            nbuckets: 1024,
            bucket_sectors: 8,
            volumes: vec![writeback(16384)],
            writeback: seed % 2 == 0,
            io_sectors_max: 1,
            clears: 3 * (seed % 2),
            ops: 8_000,
            ..Plan::tight(seed)
        }
    }

    /// A cache that is all dirty and overwritten all over, one sector here, one there.
    pub fn overwrite(seed: u64) -> Plan {
        Plan {
            volumes: vec![writeback([2048, 2500, 3000][(seed % 3) as usize])],
            io_sectors_max: 1,
            writeback: false,
            reads: 0,
            ops: 12_000,
            ..Plan::tight(seed)
        }
    }

    /// Volumes without a backing device that fill what they may, overwritten in small pieces.
    pub fn flash(seed: u64) -> Plan {
        let volumes = match seed % 2 {
            0 => vec![flash(2560)],
            _ => vec![flash(1280), writeback(4096), flash(1280)],
        };
        Plan {
            volumes,
            io_sectors_max: [1, 8][(seed / 2 % 2) as usize],
            clears: 2 * (seed % 2),
            ops: 8_000,
            ..Plan::tight(seed)
        }
    }

    /// Volumes without a backing device that are larger than the cache: writes fail when there is no
    /// more space, all else goes on.
    pub fn beyond(seed: u64) -> Plan {
        Plan {
            volumes: match seed % 2 {
                0 => vec![flash(6000)],
                _ => vec![writeback(2048), flash(6000)],
            },
            io_sectors_max: [1, 64][(seed / 2 % 2) as usize],
            clears: 5,
            outgrown: true,
            ..Plan::tight(seed)
        }
    }

    /// The smallest caches that can start: the fewest buckets, the shortest journals.
    pub fn smallest(seed: u64) -> Plan {
        let (nbuckets, bucket_sectors, block_sectors) =
            [(128, 8, 1), (128, 32, 8), (1024, 8, 8), (128, 16, 2)][(seed % 4) as usize];
        Plan {
            nbuckets,
            bucket_sectors,
            block_sectors,
            device_block_sectors: block_sectors,
            volumes: vec![writeback(4096)],
            io_sectors_max: [8, 64][(seed / 4 % 2) as usize],
            reactors: 1 + (seed / 8 % 2) as usize,
            ops: 2_000,
            ..Plan::tight(seed)
        }
    }
}
