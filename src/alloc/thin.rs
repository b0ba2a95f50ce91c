//! Which buckets are worth emptying by moving their data, and when.
//!
//! Two occasions. *Starving*: nothing can be reused, because every bucket holds some dirty data;
//! then the dirty data of the buckets with the least of them are moved, and what is clean in them is
//! evicted with the bucket. *Thrift*: live clean data were evicted to make room, as much as a
//! sixteenth of the device since the last time, while other buckets may be mostly dead; then all of
//! the emptiest buckets is moved.
//!
//! Bounds: a step looks at a slice of buckets; at most `CHOSEN_MAX` are chosen at once.

use std::collections::BinaryHeap;

use super::{Alloc, Purpose};
use crate::units::BucketNr;

/// Buckets emptied in one pass over the map.
const CHOSEN_MAX: usize = 4096;

/// What is to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thin {
    /// The buckets to be emptied, in order.
    pub buckets: Vec<BucketNr>,
    /// Only their dirty data: the rest is evicted.
    pub dirty_only: bool,
}

impl Thin {
    /// Whether a bucket is to be emptied.
    pub fn contains(&self, bucket: BucketNr) -> bool {
        self.buckets.binary_search(&bucket).is_ok()
    }
}

impl Alloc {
    /// Whether data should be moved: never before anybody has wanted space.
    pub fn move_wanted(&self) -> bool {
        if !self.data_wanted.get() {
            return false;
        }
        let rotated = self.evicted_since_move.get() > self.gens.len() as u64 / 16;
        self.starving.get() || rotated
    }

    /// Buckets that moves may take now.
    pub fn move_room(&self) -> usize {
        let free = self.free.borrow().len();
        free.saturating_sub(self.reserve(Purpose::Move))
    }

    /// The buckets whose data, moved into at most as many buckets as moves may take now, free the
    /// most; none when it would not pay.
    pub async fn thinnest(&self) -> Thin {
        let dirty_only = self.starving.get();
        self.evicted_since_move.set(0);
        let bucket_sectors = self.shape.geometry.bucket_sectors;
        // Clean data and dirty ones go to buckets of their own.
        let targets = if dirty_only { 1 } else { 2 };
        let room = self.move_room().min(self.move_reserve());
        let capacity = room.saturating_sub(targets - 1) as u64 * u64::from(bucket_sectors);
        let most = if dirty_only {
            bucket_sectors - bucket_sectors / 8
        } else {
            bucket_sectors / 2
        };
        let (mut heap, mut sum) = (BinaryHeap::new(), 0u64);
        self.each_data_bucket(|bucket, slot| {
            let sectors = if dirty_only {
                slot.dirty_sectors
            } else {
                slot.live_sectors
            };
            if sectors == 0 || sectors > most {
                return;
            }
            heap.push((sectors, bucket));
            sum += u64::from(sectors);
            while sum > capacity || heap.len() > CHOSEN_MAX {
                let Some((largest, _)) = heap.pop() else {
                    break;
                };
                sum -= u64::from(largest);
            }
        })
        .await;
        let takes = sum.div_ceil(u64::from(bucket_sectors)) as usize + targets - 1;
        let mut buckets: Vec<BucketNr> = heap.into_iter().map(|(_, b)| b).collect();
        if buckets.len() <= takes {
            buckets.clear();
        }
        buckets.sort_unstable();
        Thin {
            buckets,
            dirty_only,
        }
    }
}
