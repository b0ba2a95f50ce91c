//! Clean keys that nobody vouches for.
//!
//! A clean key says that the backing device has the same data. Before a leaf with such keys counts,
//! the backing devices are flushed; when one of them fails to, a power cut may still take its data
//! back, and a key that outlived them would read as something that the volume never held again. So
//! the clean keys of that volume are not written: what stands in their place on disk is nothing. In
//! memory they stay, and their ranges are noted to be written later.

use super::DELETE_SECTORS_MAX;
use super::nodes::Span;
use crate::format::key::Key;
use crate::units::Inode;

fn is_unvouched(key: &Key, failed: &[Inode]) -> bool {
    key.ptr.is_some() && !key.dirty && failed.contains(&key.inode)
}

/// Ranges no further apart are noted as one: what lies between takes a few deletions at most.
const GAP_SECTORS_MAX: u64 = 16 * DELETE_SECTORS_MAX;

/// Notes a struck key's range. Neighbours are joined, so that they are few.
fn note(key: &Key, struck: &mut Vec<Span>) {
    let near = |last: &Span| {
        let gap = key.start().0.checked_sub(last.end.0);
        last.inode == key.inode && gap.is_some_and(|gap| gap <= GAP_SECTORS_MAX)
    };
    match struck.last_mut() {
        Some(last) if near(last) => last.end = key.end,
        _ => struck.push(Span {
            inode: key.inode,
            start: key.start(),
            end: key.end,
        }),
    }
}

/// Makes deletions of the clean keys of the volumes in `failed`, in a run over older ones.
pub fn delete(keys: &mut [Key], failed: &[Inode], struck: &mut Vec<Span>) {
    for key in keys.iter_mut().filter(|key| is_unvouched(key, failed)) {
        note(key, struck);
        key.ptr = None;
    }
}

/// Leaves the clean keys of the volumes in `failed` out of a node that begins anew.
pub fn leave_out(keys: &mut Vec<Key>, failed: &[Inode], struck: &mut Vec<Span>) {
    keys.retain(|key| {
        let strike = is_unvouched(key, failed);
        if strike {
            note(key, struck);
        }
        !strike
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::key::Ptr;
    use crate::units::{Gen, Sector};

    fn key(inode: u32, end: u64, dirty: bool) -> Key {
        Key {
            inode: Inode(inode),
            end: Sector(end),
            size_sectors: 8,
            dirty,
            ptr: Some(Ptr::new(0, Sector(4096), Gen(1))),
        }
    }

    #[test]
    fn only_clean_keys_of_the_volume_that_failed_are_struck() {
        let before = [
            key(1, 8, false),
            key(2, 8, true),
            key(2, 16, false),
            key(2, 40, false),
        ];
        let (mut run, mut node) = (before.to_vec(), before.to_vec());
        let (mut struck, mut again) = (Vec::new(), Vec::new());
        delete(&mut run, &[Inode(2)], &mut struck);
        assert_eq!(run[..2], before[..2]);
        assert!(
            run[2..]
                .iter()
                .all(|k| k.ptr.is_none() && k.size_sectors == 8)
        );
        leave_out(&mut node, &[Inode(2)], &mut again);
        assert_eq!(node[..], before[..2]);
        let span = Span {
            inode: Inode(2),
            start: Sector(8),
            end: Sector(40),
        };
        assert_eq!((struck, again), (vec![span], vec![span]));
    }
}
