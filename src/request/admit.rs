//! What a host asks for, checked before a front takes it: the range against the volume, the memory
//! against the range.
//!
//! An NVMe-oF host may send a list of memory that is longer than its command, a guest one in pieces of
//! any length. Drivers differ in what they make of it: some transfer the whole list, beyond the range
//! that was asked for. So nothing below this module sees a list that does not fit its transfer exactly.

use super::Kind;
use super::volume::VolumeShared;
use crate::canary::{self, Bug};
use crate::units::{SECTOR_SHIFT, Sector};

/// Why an I/O is answered with an error before a front sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The range ends beyond the volume, or is longer than one I/O can be.
    Range,
    /// The memory is shorter than the range, or a piece of it has no address.
    Memory,
}

/// The part of a memory list that an I/O uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Pieces that are used, from the first on.
    pub pieces: usize,
    /// Whether they end where the I/O does; else only the beginning of the last one is used.
    pub is_exact: bool,
    /// The bits that are set in any of the lengths used, in bytes: their common alignment.
    pub length_bits: usize,
}

/// An I/O whose range and memory were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Where it begins.
    pub at: Sector,
    /// How long it is.
    pub sectors: u64,
    /// The memory that it uses; none if it has no data.
    pub fit: Option<Fit>,
}

/// What becomes of an I/O that is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is answered at once: there is nothing to do.
    Done,
    /// It is held: it waits for a cache device that is gone.
    Held,
    /// A front takes it.
    Front,
}

impl Admitted {
    /// What becomes of it on a volume.
    #[inline]
    pub fn way(&self, kind: Kind, volume: &VolumeShared) -> Way {
        if self.sectors == 0 && kind != Kind::Flush {
            Way::Done
        } else if volume.holds_back(kind, self.at, self.sectors) {
            Way::Held
        } else {
            Way::Front
        }
    }
}

/// Checks an I/O on `blocks` blocks from block `at`: see [`range`], and [`fit`] for its memory.
///
/// # Errors
/// See [`Refusal`].
#[inline]
pub fn admit(
    kind: Kind,
    (at, blocks): (u64, u64),
    block_shift: u32,
    size_sectors: u64,
    list: impl Iterator<Item = (usize, usize)>,
) -> Result<Admitted, Refusal> {
    let (at, sectors) = range(kind, (at, blocks), block_shift, size_sectors)?;
    let fit = match kind {
        Kind::Read | Kind::Write => Some(fit(list, sectors << SECTOR_SHIFT)?),
        Kind::Flush | Kind::Unmap | Kind::WriteZeroes => None,
    };
    Ok(Admitted { at, sectors, fit })
}

/// The range in sectors of an I/O on `blocks` blocks from block `at`, on a volume of
/// `size_sectors` whose blocks have `1 << block_shift` sectors. A flush has no range: 0, 0.
///
/// # Errors
/// [`Refusal::Range`].
pub fn range(
    kind: Kind,
    (at, blocks): (u64, u64),
    block_shift: u32,
    size_sectors: u64,
) -> Result<(Sector, u64), Refusal> {
    if kind == Kind::Flush {
        return Ok((Sector(0), 0));
    }
    let end = at.checked_add(blocks).ok_or(Refusal::Range)?;
    if end > size_sectors >> block_shift {
        return Err(Refusal::Range);
    }
    let (start, sectors) = (Sector(at << block_shift), blocks << block_shift);
    let has_data = matches!(kind, Kind::Read | Kind::Write);
    if has_data && sectors > u64::from(u32::MAX) {
        return Err(Refusal::Range);
    }
    Ok((start, sectors))
}

/// Fits a list of memory, as (address, bytes) of each piece, to an I/O of `bytes` bytes.
///
/// # Errors
/// [`Refusal::Memory`].
#[inline]
pub fn fit(list: impl Iterator<Item = (usize, usize)>, bytes: u64) -> Result<Fit, Refusal> {
    let mut fit = Fit {
        pieces: 0,
        is_exact: true,
        length_bits: 0,
    };
    let mut left = bytes;
    for (address, length) in list {
        if left == 0 && !canary::has(Bug::ListUnclipped) {
            break;
        }
        let used = left.min(length as u64);
        if address == 0 && used > 0 || address.checked_add(used as usize).is_none() {
            return Err(Refusal::Memory);
        }
        fit.pieces += 1;
        fit.is_exact = used == length as u64 || canary::has(Bug::ListUnclipped);
        fit.length_bits |= used as usize;
        left -= used;
    }
    if left > 0 {
        return Err(Refusal::Memory);
    }
    Ok(fit)
}

/// Calls `each` with every part of a list, of pieces of these lengths, that makes up the `bytes` from
/// `offset` on, in order: the piece's number, the bytes before the part in it, and the part's.
#[inline]
pub fn pieces(
    lengths: impl Iterator<Item = usize>,
    offset: usize,
    bytes: usize,
    mut each: impl FnMut(usize, usize, usize),
) {
    let (mut skip, mut left) = (offset, bytes);
    for (piece, length) in lengths.enumerate() {
        if left == 0 {
            break;
        }
        if skip >= length {
            skip -= length;
            continue;
        }
        let part = left.min(length - skip);
        each(piece, skip, part);
        left -= part;
        skip = 0;
    }
    debug_assert_eq!(left, 0, "a part goes beyond its I/O");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_within_the_volume() {
        let size = 1 << 20;
        let of = |at, blocks| range(Kind::Write, (at, blocks), 3, size);
        assert_eq!(of(1, 2), Ok((Sector(8), 16)));
        assert_eq!(of((size >> 3) - 1, 1), Ok((Sector(size - 8), 8)));
        for (at, blocks) in [
            (size >> 3, 1),
            (0, (size >> 3) + 1),
            (1, u64::MAX),
            (u64::MAX, 1),
        ] {
            assert_eq!(of(at, blocks), Err(Refusal::Range), "{blocks} from {at}");
        }
        // Blocks that a shift would carry out of 64 bits.
        assert_eq!(
            range(Kind::Unmap, (0, 1 << 62), 3, u64::MAX),
            Err(Refusal::Range)
        );
    }

    #[test]
    fn ranges_without_data_may_be_longer_than_one_transfer() {
        let (size, long) = (1 << 40, 1 << 33);
        for kind in [Kind::Unmap, Kind::WriteZeroes] {
            assert_eq!(range(kind, (8, long), 0, size), Ok((Sector(8), long)));
        }
        for kind in [Kind::Read, Kind::Write] {
            assert_eq!(range(kind, (8, long), 0, size), Err(Refusal::Range));
        }
        // What a flush says of its range is not looked at.
        assert_eq!(range(Kind::Flush, (u64::MAX, 9), 3, 8), Ok((Sector(0), 0)));
    }

    #[test]
    fn lists_are_cut_to_the_length_of_the_io() {
        let of = |list: &[(usize, usize)], bytes| fit(list.iter().copied(), bytes);
        let cut = |pieces, is_exact, length_bits| {
            Ok(Fit {
                pieces,
                is_exact,
                length_bits,
            })
        };
        assert_eq!(of(&[(4096, 4096)], 4096), cut(1, true, 4096));
        assert_eq!(of(&[(4096, 1 << 17)], 4096), cut(1, false, 4096));
        assert_eq!(
            of(&[(1, 512), (2, 1024), (3, 4096)], 1536),
            cut(2, true, 1536)
        );
        assert_eq!(of(&[(1, 512), (2, 4096)], 1024), cut(2, false, 512));
        // A piece of no length counts, one beyond the end does not: not even for its address.
        assert_eq!(of(&[(0, 0), (2, 512), (0, 512)], 512), cut(2, true, 512));
        assert_eq!(of(&[(1, 100), (2, 412)], 512), cut(2, true, 100 | 412));
        assert_eq!(of(&[], 0), cut(0, true, 0));
    }

    #[test]
    fn a_part_of_an_io_is_found_in_its_list() {
        let of = |offset, bytes| {
            let mut all = Vec::new();
            let list = [100, 0, 412, 512];
            pieces(list.into_iter(), offset, bytes, |piece, from, bytes| {
                all.push((piece, from, bytes));
            });
            all
        };
        assert_eq!(of(0, 512), [(0, 0, 100), (2, 0, 412)]);
        assert_eq!(of(99, 2), [(0, 99, 1), (2, 0, 1)]);
        assert_eq!(of(512, 512), [(3, 0, 512)]);
        assert_eq!(of(7, 0), []);
    }

    #[test]
    fn lists_that_are_too_short_or_lead_nowhere_are_refused() {
        let of = |list: &[(usize, usize)], bytes| fit(list.iter().copied(), bytes);
        for list in [&[][..], &[(1, 511)], &[(0, 512)], &[(1, 256), (0, 256)]] {
            assert_eq!(of(list, 512), Err(Refusal::Memory), "{list:?}");
        }
        assert_eq!(of(&[(usize::MAX - 100, 512)], 512), Err(Refusal::Memory));
    }
}
