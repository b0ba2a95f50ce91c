//! What the runs of one node amount to.
//!
//! Across the runs of a node the later wins. In a leaf that is a matter of ranges: a later key
//! hides whatever of the older ones it covers, whether it is an extent, a deletion, or an extent
//! whose data have been evicted since. In an inner node it is a matter of children: whoever
//! replaced a child left a key at position (0, 0) with the child's bucket and the generation
//! after, in the same run as the new children, so the old one can be told by it.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::format::key::{Key, Ptr};
use crate::units::Gen;

/// What an inner node amounts to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inner {
    /// The children, by end, no two with the same end.
    pub children: Vec<Key>,
    /// What is left of replaced children: keys at (0, 0) whose pointers bear the generation that
    /// the freed bucket has at least. Recovery must raise the bucket to it.
    pub freed: Vec<Key>,
}

/// The live extents of a leaf whose runs are `sets`, oldest first: sorted, none overlapping
/// another, deletions applied and gone. Stale pointers are not looked at: an evicted extent
/// still hides what it had replaced, and the caller drops it afterwards.
pub fn merge(sets: &[Vec<Key>]) -> Vec<Key> {
    let mut merged = merge_keeping_deletions(sets);
    merged.retain(|key| key.data().is_some());
    merged
}

/// Like [`merge`], but deletions stay as keys: what the sets amount to when they are put over
/// something else. The keys of a set may be in any order; the later wins among them too.
pub fn merge_keeping_deletions(sets: &[Vec<Key>]) -> Vec<Key> {
    // Neighbours first: n keys in s runs take n log s steps, not n × s.
    match sets {
        [] => Vec::new(),
        [set] => {
            let kept = set.iter().copied().filter(|key| key.size_sectors != 0);
            normalise(kept.collect())
        }
        _ => {
            let (older, newer) = sets.split_at(sets.len() / 2);
            overlay(
                merge_keeping_deletions(older),
                &merge_keeping_deletions(newer),
            )
        }
    }
}

/// Keys, none of them empty, as sorted ranges. Runs whose ranges overlap (Linux writes none) or are
/// out of order are taken in halves: n log n steps whatever stands there.
fn normalise(keys: Vec<Key>) -> Vec<Key> {
    let apart = |a: &Key, b: &Key| a.position() <= (b.inode, b.start());
    if keys.windows(2).all(|pair| apart(&pair[0], &pair[1])) {
        return keys;
    }
    let (older, newer) = keys.split_at(keys.len() / 2);
    overlay(normalise(older.to_vec()), &normalise(newer.to_vec()))
}

/// Puts `newer` over `older`, each sorted and free of overlaps; deletions stay as keys.
pub fn overlay(older: Vec<Key>, newer: &[Key]) -> Vec<Key> {
    let mut out = Vec::with_capacity(older.len() + newer.len());
    let mut rest = older.into_iter();
    let mut current = rest.next();
    for new in newer {
        while let Some(old) = current {
            if old.position() <= (new.inode, new.start()) {
                out.push(old);
            } else if (old.inode, old.start()) >= new.position() {
                break;
            } else {
                if old.start() < new.start() {
                    out.push(old.cut_back(new.start()));
                }
                if old.end > new.end {
                    current = Some(old.cut_front(new.end));
                    break;
                }
            }
            current = rest.next();
        }
        out.push(*new);
    }
    out.extend(current);
    out.extend(rest);
    out
}

/// The children of an inner node whose runs are `sets`, oldest first.
///
/// `is_stale` tells pointers whose bucket has moved on, where the caller knows the generations;
/// say no to all where it does not. A child that one of the node's (0, 0) keys supersedes is
/// left out in any case. Of several with the same end the latest stays.
pub fn merge_inner(sets: &[Vec<Key>], is_stale: impl Fn(Ptr) -> bool) -> Inner {
    let mut inner = Inner::default();
    let mut freed: HashMap<(u16, u64), Gen> = HashMap::new();
    for key in sets.iter().flatten().filter(|key| key.is_zero_position()) {
        let Some(ptr) = key.ptr else { continue };
        let newest = freed
            .entry((ptr.dev(), ptr.sector().0))
            .or_insert(ptr.generation());
        if ptr.generation().ahead_of(*newest) > 0 {
            *newest = ptr.generation();
        }
        inner.freed.push(*key);
    }
    let superseded = |ptr: Ptr| {
        freed
            .get(&(ptr.dev(), ptr.sector().0))
            .is_some_and(|newest| newest.ahead_of(ptr.generation()) > 0)
    };
    // Newest run first; within a run Linux puts a new key before its equals. The sort is stable.
    let candidates = sets
        .iter()
        .rev()
        .flatten()
        .filter(|key| !key.is_zero_position());
    inner.children = candidates
        .filter(|key| {
            key.ptr
                .is_some_and(|ptr| !superseded(ptr) && !is_stale(ptr))
        })
        .copied()
        .collect();
    inner.children.sort_by(Key::cmp_position);
    inner
        .children
        .dedup_by(|later, kept| later.cmp_position(kept) == Ordering::Equal);
    inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Inode, Sector};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(inode: u32, start: u64, size: u32, at: Option<u64>) -> Key {
        let ptr = at.map(|at| Ptr::new(0, Sector(at), Gen(1)));
        let (inode, end) = (Inode(inode), Sector(start + u64::from(size)));
        Key {
            inode,
            end,
            size_sectors: size,
            dirty: true,
            ptr,
        }
    }

    fn child(end: u64, bucket: u64, generation: u8) -> Key {
        let ptr = Some(Ptr::new(0, Sector(bucket * 64), Gen(generation)));
        Key {
            inode: Inode(0),
            end: Sector(end),
            size_sectors: 64,
            dirty: false,
            ptr,
        }
    }

    fn freed(bucket: u64, generation: u8) -> Key {
        child(0, bucket, generation)
    }

    #[test]
    fn a_later_key_cuts_what_it_covers() {
        let old = vec![key(1, 0, 10, Some(100)), key(1, 20, 10, Some(200))];
        let new = vec![key(1, 4, 2, Some(300)), key(1, 8, 14, None)];
        let expected = [
            key(1, 0, 4, Some(100)),
            key(1, 4, 2, Some(300)),
            key(1, 6, 2, Some(106)),
            key(1, 22, 8, Some(202)),
        ];
        assert_eq!(merge(&[old, new]), expected);
    }

    #[test]
    fn a_deletion_brings_nothing_older_back() {
        let sets = [
            vec![key(1, 0, 8, Some(8))],
            vec![key(1, 0, 8, Some(64))],
            vec![key(1, 0, 8, None)],
        ];
        assert_eq!(merge(&sets), []);
        let mark = Key {
            ptr: Some(Ptr::from_raw(u64::MAX)),
            ..key(1, 2, 2, None)
        };
        let left = [key(1, 0, 2, Some(8)), key(1, 4, 4, Some(12))];
        assert_eq!(merge(&[sets[0].clone(), vec![mark]]), left);
    }

    #[test]
    fn volumes_and_empty_keys_do_not_touch_each_other() {
        let old = vec![key(1, 0, 8, Some(8)), key(2, 0, 8, Some(16))];
        let new = vec![key(1, 4, 0, Some(99)), key(1, 100, 8, Some(24))];
        let expected = [old[0], new[1], old[1]];
        assert_eq!(merge(&[old, new]), expected);
    }

    #[test]
    fn a_replaced_child_is_left_out_and_its_bucket_told() {
        let first = vec![child(50, 2, 7), child(90, 3, 1)];
        let second = vec![freed(2, 8), child(20, 4, 1), child(50, 5, 1)];
        let inner = merge_inner(&[first, second], |_| false);
        assert_eq!(
            inner.children,
            [child(20, 4, 1), child(50, 5, 1), child(90, 3, 1)]
        );
        assert_eq!(inner.freed, [freed(2, 8)]);
    }

    #[test]
    fn a_child_that_moved_back_into_its_old_bucket_stays() {
        let sets = [vec![child(50, 2, 255)], vec![freed(2, 0), child(50, 4, 1)]];
        assert_eq!(merge_inner(&sets, |_| false).children, [child(50, 4, 1)]);
        let again = vec![freed(4, 2), child(50, 2, 0)];
        let sets = [sets[0].clone(), sets[1].clone(), again];
        assert_eq!(merge_inner(&sets, |_| false).children, [child(50, 2, 0)]);
    }

    #[test]
    fn of_equal_ends_the_latest_or_the_one_not_stale_stays() {
        let sets = [
            vec![child(50, 2, 1)],
            vec![child(50, 3, 1), child(50, 4, 1)],
        ];
        assert_eq!(merge_inner(&sets, |_| false).children, [child(50, 3, 1)]);
        let only = |bucket: u64| move |ptr: Ptr| ptr.sector().0 != bucket * 64;
        assert_eq!(merge_inner(&sets, only(2)).children, [child(50, 2, 1)]);
    }

    /// What sectors hold, one by one.
    fn model(sets: &[Vec<Key>]) -> BTreeMap<(u32, u64), u64> {
        let mut sectors = BTreeMap::new();
        for key in sets.iter().flatten() {
            for i in 0..u64::from(key.size_sectors) {
                let place = (key.inode.0, key.start().0 + i);
                match key.data() {
                    Some(ptr) => sectors.insert(place, ptr.advance(i).sector().0),
                    None => sectors.remove(&place),
                };
            }
        }
        sectors
    }

    prop_compose! {
        fn any_key()(
            inode in 0..2u32, start in 0..40u64, size in 0..12u32,
            at in proptest::option::of(0..10_000u64),
        ) -> Key {
            key(inode, start, size, at)
        }
    }

    prop_compose! {
        /// A run: sorted, and free of overlaps unless `raw`.
        fn any_set()(
            mut keys in proptest::collection::vec(any_key(), 0..8), raw in any::<bool>(),
        ) -> Vec<Key> {
            keys.sort_by(Key::cmp_position);
            if !raw {
                keys.dedup_by(|b, a| (b.inode, b.start()) < a.position());
            }
            keys
        }
    }

    /// As many keys as the largest node holds, all over each other: hours, if taken one by one.
    #[test]
    fn a_run_of_overlaps_takes_no_longer_than_it_must() {
        let run: Vec<Key> = (0..100_000).map(|i| key(1, i, 1000, Some(i))).collect();
        let merged = merge(&[run]);
        assert_eq!(merged.len(), 100_000);
        assert_eq!(merged[7].start().0, 7);
    }

    proptest! {
        #[test]
        fn equals_the_model(sets in proptest::collection::vec(any_set(), 0..7)) {
            let merged = merge(&sets);
            for pair in merged.windows(2) {
                prop_assert!(pair[0].position() <= (pair[1].inode, pair[1].start()));
            }
            prop_assert!(merged.iter().all(|key| key.size_sectors > 0));
            prop_assert_eq!(model(&[merged]), model(&sets));
        }

        #[test]
        fn no_keys_panic(raw in proptest::collection::vec(
            (0..3u32, 0..9u64, 0..=0xffffu32, proptest::option::of(any::<u64>())), 0..12,
        )) {
            let keys = raw.into_iter().map(|(inode, end, size_sectors, ptr)| Key {
                inode: Inode(inode), end: Sector(end), size_sectors, dirty: false,
                ptr: ptr.map(Ptr::from_raw),
            });
            let sets: Vec<Vec<Key>> = keys.map(|key| vec![key]).collect();
            let flat = vec![sets.concat()];
            let _ = (merge(&sets), merge(&flat), merge_inner(&sets, |_| false));
        }
    }
}
