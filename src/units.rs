//! The numbers that must never be mixed up, each a type of its own.
//!
//! A sector is 512 bytes everywhere, whatever the block size of a device. Lengths are plain
//! integers whose names end in their unit (`_sectors`, `_bytes`, `_us`).

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// log2 of the bytes in a sector.
pub const SECTOR_SHIFT: u32 = 9;
/// Bytes in a sector.
pub const SECTOR_BYTES: usize = 1 << SECTOR_SHIFT;

/// A position on a device or a volume, in sectors of 512 bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sector(pub u64);

impl Sector {
    /// Above every position that occurs.
    pub const MAX: Sector = Sector(u64::MAX);

    /// The position in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 << SECTOR_SHIFT
    }
}

impl Add<u64> for Sector {
    type Output = Sector;
    fn add(self, sectors: u64) -> Sector {
        Sector(self.0 + sectors)
    }
}

impl AddAssign<u64> for Sector {
    fn add_assign(&mut self, sectors: u64) {
        self.0 += sectors;
    }
}

impl Sub for Sector {
    type Output = u64;
    /// The distance in sectors; `other` must not be behind `self`.
    fn sub(self, other: Sector) -> u64 {
        self.0 - other.0
    }
}

impl fmt::Debug for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A bucket of the cache device: `BucketNr * bucket_size` is its first sector.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BucketNr(pub u32);

impl BucketNr {
    /// The number as an index into a table of buckets.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for BucketNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

impl fmt::Display for BucketNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The generation of a bucket. Eight bits that wrap: only the signed distance of two means anything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Gen(pub u8);

impl Gen {
    /// The next one, after 255 comes 0.
    pub const fn next(self) -> Gen {
        Gen(self.0.wrapping_add(1))
    }

    /// How far `self` is ahead of `other` (negative when behind).
    pub const fn ahead_of(self, other: Gen) -> i8 {
        self.0.wrapping_sub(other.0) as i8
    }
}

/// The sequence number of a journal entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct JournalSeq(pub u64);

impl JournalSeq {
    /// The next one.
    pub const fn next(self) -> JournalSeq {
        JournalSeq(self.0 + 1)
    }
}

/// The index of a volume in the uuid table, which is the inode of its keys (20 bits).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Inode(pub u32);

/// A UUID as 16 bytes in the order in which they are printed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The UUID of nothing.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// Whether all bytes are zero.
    pub fn is_nil(self) -> bool {
        self == Uuid::NIL
    }

    /// Reads the form 8-4-4-4-12; hex digits of either case. `None` for anything else.
    pub fn parse(text: &str) -> Option<Uuid> {
        let b = text.as_bytes();
        if b.len() != 36 {
            return None;
        }
        let (mut out, mut nibbles) = ([0u8; 16], 0);
        for (i, &c) in b.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if c != b'-' {
                    return None;
                }
                continue;
            }
            let digit = (c as char).to_digit(16)? as u8;
            out[nibbles / 2] |= digit << (if nibbles % 2 == 0 { 4 } else { 0 });
            nibbles += 1;
        }
        Some(Uuid(out))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_compare_across_the_wrap() {
        assert_eq!(Gen(2).ahead_of(Gen(254)), 4);
        assert_eq!(Gen(254).ahead_of(Gen(2)), -4);
        assert_eq!(Gen(255).next(), Gen(0));
    }

    #[test]
    fn uuids_print_as_they_parse() {
        let text = "e3b97f1f-d932-466a-8902-c3e095bb0974";
        assert_eq!(Uuid::parse(text).unwrap().to_string(), text);
        assert!(Uuid::parse("e3b97f1f-d932-466a-8902-c3e095bb097").is_none());
        assert!(Uuid::parse("e3b97f1fxd932-466a-8902-c3e095bb0974").is_none());
    }
}
