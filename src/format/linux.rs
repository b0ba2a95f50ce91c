//! What Linux makes of a leaf's runs when it reads them, and whether that has room.
//!
//! Linux reads a node into a buffer of the node's size, merges its runs into one run at the
//! buffer's start, and puts the empty header of the next run behind the last block that is in use
//! on disk. It does not look whether the merged run ends before that block. So this must hold of
//! every leaf, after every run that is appended to it:
//!
//! > **The runs of a leaf, merged as Linux merges them, take no more bytes (one header included) than
//! > the blocks that the runs occupy.**
//!
//! A leaf that breaks the rule is refused or, when the header happens to look like a key, misread
//! without a message; in a leaf with no block left the merge writes past the buffer (which has
//! exactly the node's size for nodes of [`fresh_node_sectors`]).
//!
//! How Linux merges a leaf (`bch_extent_sort_fixup`, told here in our own words):
//! - Keys of all runs are taken in the order of their starts, of equal starts the newest run first. A
//!   newer key cuts what it covers of an older one. An older key that a newer one covers in its
//!   middle becomes **two** keys. That is the only way in which the merge grows.
//! - Keys of size zero are dropped. Everything else stays: deletions (keys without a pointer) and keys
//!   whose pointers are stale count like others.
//! - Neighbours that continue each other, in the volume and within one bucket, become one key.
//!
//! Linux's own writer keeps the rule without naming it: when it overwrites the middle of a key that
//! is on disk already, it writes the top piece of that key too, in the same run
//! (`bch_extent_insert_fixup`). The run then reaches to the old key's end, and nothing is split.
//!
//! An inner node keeps all keys of all its runs, each as it stands, so its merge never grows.
//!
//! [`fresh_node_sectors`]: crate::limits::fresh_node_sectors

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::slice::Iter;

use crate::format::bset::{set_blocks, set_bytes};
use crate::format::key::{Geometry, Key, encoded_bytes};
use crate::format::merge::merge_keeping_deletions;
use crate::limits::MAX_KEY_SECTORS;
use crate::units::{Inode, SECTOR_BYTES, Sector};

/// The bytes that a leaf's merged run takes, and those that there are for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fit {
    /// Bytes of the merged run, its header included.
    pub merged_bytes: usize,
    /// Bytes of the blocks that the runs occupy on disk.
    pub room_bytes: usize,
}

impl Fit {
    /// Whether Linux reads the leaf as it was meant.
    pub fn is_right(&self) -> bool {
        self.merged_bytes <= self.room_bytes
    }
}

/// Measures a leaf whose runs are `sets`, oldest first. `geometry` is that of the cache device.
pub fn fit(sets: &[Vec<Key>], geometry: &Geometry) -> Fit {
    let merged = merge(sets, geometry.bucket_sectors);
    Fit {
        merged_bytes: set_bytes(encoded_bytes(&merged)),
        room_bytes: room_bytes(sets, geometry),
    }
}

/// Whether Linux reads a leaf whose runs are `sets`, oldest first, as it was meant.
pub fn is_right(sets: &[Vec<Key>], geometry: &Geometry) -> bool {
    sets.len() < 2 || is_right_in_pieces(&merge_keeping_deletions(sets), sets, geometry)
}

/// The same, where what the runs amount to is known: `pieces` are what
/// [`merge_keeping_deletions`] makes of them. Only where these do not tell, is Linux's merge done.
pub fn is_right_in_pieces(pieces: &[Key], sets: &[Vec<Key>], geometry: &Geometry) -> bool {
    // They are Linux's keys before neighbours are joined.
    set_bytes(encoded_bytes(pieces)) <= room_bytes(sets, geometry) || fit(sets, geometry).is_right()
}

/// Whether each run is in order and free of overlaps, as Linux's merge takes for granted.
pub fn is_in_order(sets: &[Vec<Key>]) -> bool {
    let apart = |pair: &[Key]| pair[0].position() <= (pair[1].inode, pair[1].start());
    sets.iter().all(|set| set.windows(2).all(apart))
}

fn room_bytes(sets: &[Vec<Key>], geometry: &Geometry) -> usize {
    let blocks = |set: &Vec<Key>| set_blocks(encoded_bytes(set), geometry.block_sectors);
    let block_bytes = geometry.block_sectors as usize * SECTOR_BYTES;
    sets.iter().map(blocks).sum::<u32>() as usize * block_bytes
}

/// The merged run that Linux makes of a leaf's runs, oldest first. Buckets of the cache device have
/// `bucket_sectors`: keys are not joined across their bounds.
pub fn merge(sets: &[Vec<Key>], bucket_sectors: u32) -> Vec<Key> {
    let mut heap: BinaryHeap<Reverse<Cursor<'_>>> = BinaryHeap::with_capacity(sets.len());
    for (set, keys) in sets.iter().enumerate() {
        let mut rest = keys.iter();
        if let Some(&key) = rest.next() {
            heap.push(Reverse(Cursor { key, set, rest }));
        }
    }
    let mut merged: Vec<Key> = Vec::new();
    while let Some(mut key) = next(&mut heap) {
        if key.size_sectors == 0 {
            continue;
        }
        let joined = merged
            .last_mut()
            .is_some_and(|last| join(last, &mut key, bucket_sectors));
        if !joined {
            merged.push(key);
        }
    }
    merged
}

/// The next key of a run, as far as it has not been cut, and those behind it.
struct Cursor<'a> {
    key: Key,
    /// Which run it is of; higher is newer.
    set: usize,
    rest: Iter<'a, Key>,
}

impl Cursor<'_> {
    fn start(&self) -> (Inode, Sector) {
        (self.key.inode, self.key.start())
    }
}

impl Ord for Cursor<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let starts = self.start().cmp(&other.start());
        starts.then(other.set.cmp(&self.set))
    }
}

impl PartialOrd for Cursor<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Cursor<'_> {}

/// Takes the first key, cut by newer ones, and cuts older ones by it.
fn next(heap: &mut BinaryHeap<Reverse<Cursor<'_>>>) -> Option<Key> {
    let Reverse(mut first) = heap.pop()?;
    let mut front = None;
    while let Some(mut second) = heap.peek_mut() {
        let over = &mut second.0;
        if first.key.position() <= over.start() {
            break;
        }
        let first_is_newer = first.set > over.set;
        let hides = first_is_newer && first.key.position() >= over.key.position();
        if over.key.size_sectors == 0 || hides {
            match over.rest.next() {
                Some(&key) => over.key = key,
                None => drop(PeekMut::pop(second)),
            }
        } else if first_is_newer {
            over.key = over.key.cut_front(first.key.end);
        } else if over.key.position() < first.key.position() {
            // In the middle: the piece in front goes out, the one behind stays.
            front = Some(first.key.cut_back(over.key.start()));
            first.key = first.key.cut_front(over.key.end);
            break;
        } else {
            first.key = first.key.cut_back(over.key.start());
        }
    }
    if front.is_some() {
        heap.push(Reverse(first));
        return front;
    }
    let taken = first.key;
    if let Some(&key) = first.rest.next() {
        first.key = key;
        heap.push(Reverse(first));
    }
    Some(taken)
}

/// Makes `key` a part of `last` if it continues it. Of two that are too long together, `last` becomes
/// as long as a key can be, and `key` is what is left: false.
fn join(last: &mut Key, key: &mut Key, bucket_sectors: u32) -> bool {
    let touches = last.position() == (key.inode, key.start());
    let continues = match (last.ptr, key.ptr) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let bucket = |sector: Sector| sector.0 / u64::from(bucket_sectors.max(1));
            a.advance(last.size_sectors.into()) == b && bucket(a.sector()) == bucket(b.sector())
        }
        _ => false,
    };
    if !touches || !continues || last.dirty != key.dirty {
        return false;
    }
    let moved = key.size_sectors.min(MAX_KEY_SECTORS - last.size_sectors);
    last.end += u64::from(moved);
    last.size_sectors += moved;
    if moved == key.size_sectors {
        return true;
    }
    *key = key.cut_front(last.end);
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::key::Ptr;
    use crate::format::merge::merge as meant;
    use crate::units::{BucketNr, Gen};
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        block_sectors: 1,
        bucket_sectors: 1024,
        first_bucket: BucketNr(1),
        nbuckets: 4096,
    };

    fn key(start: u64, size: u32, at: Option<u64>) -> Key {
        Key {
            inode: Inode(1),
            end: Sector(start + u64::from(size)),
            size_sectors: size,
            dirty: true,
            ptr: at.map(|at| Ptr::new(0, Sector(at), Gen(1))),
        }
    }

    #[test]
    fn a_key_in_the_middle_of_an_older_one_makes_three() {
        let old = vec![key(0, 100, Some(2000))];
        let new = vec![key(40, 10, Some(5000))];
        let expected = [
            key(0, 40, Some(2000)),
            key(40, 10, Some(5000)),
            key(50, 50, Some(2050)),
        ];
        assert_eq!(merge(&[old.clone(), new.clone()], 1024), expected);
        // With the top piece in the run, as Linux writes it, there are no more than were written.
        let top = vec![new[0], expected[2]];
        assert_eq!(merge(&[old, top], 1024), expected);
    }

    #[test]
    fn deletions_stay_and_keys_of_no_size_do_not() {
        let sets = [
            vec![key(0, 100, None), key(200, 0, Some(3000))],
            vec![key(10, 5, Some(4000))],
        ];
        let expected = [key(0, 10, None), key(10, 5, Some(4000)), key(15, 85, None)];
        assert_eq!(merge(&sets, 1024), expected);
    }

    #[test]
    fn neighbours_are_joined_within_a_bucket_and_a_keys_length() {
        let set = vec![
            key(0, 24, Some(1000)),
            key(24, 8, Some(1024)),
            key(32, 8, Some(1032)),
            key(40, 8, Some(1041)),
        ];
        let joined = [set[0], key(24, 16, Some(1024)), set[3]];
        assert_eq!(merge(&[set], 1024), joined);
        let long = vec![key(0, 65000, None), key(65000, 1000, None)];
        let moved = [key(0, 65535, None), key(65535, 465, None)];
        assert_eq!(merge(&[long], 1024), moved);
    }

    #[test]
    fn splits_outgrow_the_blocks_that_were_written() {
        // Extents of 40 sectors, 40 of them: 992 bytes, two blocks. A run of 20 keys, each in the
        // middle of one: 512 bytes, one block.
        let old: Vec<Key> = (0..40)
            .map(|i| key(i * 48, 40, Some(2048 + i * 48)))
            .collect();
        let new: Vec<Key> = (0..20)
            .map(|i| key(i * 48 + 8, 8, Some(9000 + i * 16)))
            .collect();
        let measured = fit(&[old.clone(), new.clone()], &GEOMETRY);
        assert_eq!(
            (measured.merged_bytes, measured.room_bytes),
            (32 + 80 * 24, 1536)
        );
        assert!(!measured.is_right());
        let tops = new
            .iter()
            .flat_map(|k| [*k, key(k.end.0, 24, Some(2048 + k.end.0))]);
        assert!(fit(&[old, tops.collect()], &GEOMETRY).is_right());
        assert!(fit(&[Vec::new()], &GEOMETRY).is_right());
    }

    prop_compose! {
        /// A run as it may stand on disk: sorted, free of overlaps.
        fn any_set()(
            raw in proptest::collection::vec(
                (0..80u64, 0..12u32, proptest::option::of(1024..9000u64)), 0..9,
            ),
        ) -> Vec<Key> {
            let mut keys: Vec<Key> = raw.into_iter().map(|(s, n, at)| key(s, n, at)).collect();
            keys.sort_by_key(Key::position);
            keys.dedup_by(|b, a| b.start() < a.end);
            keys
        }
    }

    proptest! {
        /// Linux reads what was meant, and every key that there are more of than were written is the
        /// piece behind a split.
        #[test]
        fn says_what_the_runs_amount_to(sets in proptest::collection::vec(any_set(), 1..7)) {
            let merged = merge(&sets, 1024);
            prop_assert_eq!(is_right(&sets, &GEOMETRY), fit(&sets, &GEOMETRY).is_right());
            for pair in merged.windows(2) {
                prop_assert!(pair[0].position() <= (pair[1].inode, pair[1].start()));
            }
            let mut extents = merged.clone();
            extents.retain(|key| key.ptr.is_some());
            // Both, with neighbours joined.
            prop_assert_eq!(merge(&[extents], 1024), merge(&[meant(&sets)], 1024));
            let written: usize = sets.iter().map(Vec::len).sum();
            let newer: usize = sets.iter().skip(1).map(Vec::len).sum();
            prop_assert!(merged.len() <= written + newer);
        }

        #[test]
        fn no_keys_panic(raw in proptest::collection::vec(
            proptest::collection::vec(
                (0..3u32, 0..9u64, 0..=0xffffu32, proptest::option::of(any::<u64>())), 0..5,
            ), 0..4,
        )) {
            let sets: Vec<Vec<Key>> = raw.into_iter().map(|set| set.into_iter().map(
                |(inode, end, size_sectors, ptr)| Key {
                    inode: Inode(inode), end: Sector(end), size_sectors, dirty: false,
                    ptr: ptr.map(Ptr::from_raw),
                }).collect()).collect();
            let _ = fit(&sets, &GEOMETRY);
        }
    }
}
