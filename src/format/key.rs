//! Keys and pointers: what the btree, the journal and the parents of nodes are made of.
//!
//! **A key names its end**: it covers `end - size .. end` of its inode. In a leaf a key with a
//! pointer is an extent of cached data, one without is a deletion of its range, and one of size
//! zero says nothing. A pointer to the device that does not exist ([`Ptr::is_check`]) is the mark
//! that Linux leaves while a read is filling the range; on disk it amounts to a deletion.
//! In an inner node a key names a child: its end is the child's last key, its size the sectors of
//! the node.
//!
//! **Positions of a cached volume are sectors of its backing device**, data offset included: the
//! volume's sector 0 is `data_offset` (16 by default). Volumes on the flash alone start at 0.
//!
//! One cache device makes a set here, so a key has one pointer at
//! most; more are refused by name.

use std::cmp::Ordering;
use std::fmt;

use crate::format::u64_at;
use crate::limits::{
    MAX_INODE, MAX_KEY_OFFSET, MAX_KEY_PTRS, MAX_KEY_SECTORS, MAX_META_BUCKET_SECTORS,
    MAX_PTR_SECTORS,
};
use crate::units::{BucketNr, Gen, Inode, Sector};

/// Bytes of a key without pointers.
pub const HEAD_BYTES: usize = 16;
/// Bytes of a key with its pointer.
pub const MAX_BYTES: usize = HEAD_BYTES + 8 * MAX_KEY_PTRS as usize;
/// Bytes of the field that holds one key in a journal entry.
pub const PADDED_BYTES: usize = 64;

/// The bit that every key has set.
const HEADER_BIT: u64 = 1 << 63;
/// The device number of a pointer that is only a check value.
const CHECK_DEV: u16 = 0xfff;

/// Where a key's data stand: sector, device in the set, and the bucket's generation at the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ptr(u64);

impl Ptr {
    /// Makes a pointer. `sector` must be below [`MAX_PTR_SECTORS`] and `dev` below 4096.
    pub fn new(dev: u16, sector: Sector, generation: Gen) -> Ptr {
        assert!(
            sector.0 < MAX_PTR_SECTORS && dev <= CHECK_DEV,
            "pointer out of range"
        );
        Ptr(u64::from(dev) << 51 | sector.0 << 8 | u64::from(generation.0))
    }

    /// The pointer as it stands on disk. Any value is a pointer.
    pub const fn from_raw(raw: u64) -> Ptr {
        Ptr(raw)
    }

    /// The pointer as it stands on disk.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Its first sector on the cache device.
    pub const fn sector(self) -> Sector {
        Sector(self.0 >> 8 & (MAX_PTR_SECTORS - 1))
    }

    /// The generation that its bucket had when it was made.
    pub const fn generation(self) -> Gen {
        Gen(self.0 as u8)
    }

    /// The same bucket's pointer `sectors` further on. (Stays within 43 bits, whatever it held.)
    pub const fn advance(self, sectors: u64) -> Ptr {
        let sector = self.sector().0.wrapping_add(sectors) & (MAX_PTR_SECTORS - 1);
        Ptr(self.0 & !((MAX_PTR_SECTORS - 1) << 8) | sector << 8)
    }

    /// Whether it points to nothing: Linux marks the range of a read that is under way so.
    pub const fn is_check(self) -> bool {
        self.dev() == CHECK_DEV
    }

    /// The device within the set; 0 is the only one that holds data here.
    pub const fn dev(self) -> u16 {
        (self.0 >> 51) as u16 & CHECK_DEV
    }
}

/// The shape of a cache device, against which pointers are checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Sectors in a block; a power of two up to 8.
    pub block_sectors: u32,
    /// Sectors in a bucket; a power of two from 8 on.
    pub bucket_sectors: u32,
    /// The first bucket that is not the superblock's.
    pub first_bucket: BucketNr,
    /// Buckets on the device, those before `first_bucket` included.
    pub nbuckets: u64,
}

impl Geometry {
    /// The bucket in which `ptr` stands.
    ///
    /// # Errors
    /// Another device than 0, or a sector outside of the device's buckets.
    pub fn bucket_of(&self, ptr: Ptr) -> Result<BucketNr, KeyError> {
        let bucket = ptr.sector().0 / u64::from(self.bucket_sectors.max(1));
        if ptr.dev() != 0 {
            return Err(KeyError::ForeignDevice { dev: ptr.dev() });
        }
        if bucket < self.first_bucket.0.into() || bucket >= self.nbuckets {
            return Err(KeyError::OutsideBuckets {
                sector: ptr.sector().0,
            });
        }
        u32::try_from(bucket)
            .map(BucketNr)
            .map_err(|_| KeyError::OutsideBuckets {
                sector: ptr.sector().0,
            })
    }
}

/// Why bytes are no key, or a key is none that can stand where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyError {
    /// Fewer bytes are left than the key needs.
    Truncated,
    /// The bit that marks a key is not set.
    NotAKey,
    /// More pointers than there can be with one cache device.
    TooManyPointers {
        /// How many.
        count: u32,
    },
    /// The end lies beyond the highest position.
    EndTooFar {
        /// The end in sectors.
        end: u64,
    },
    /// It would begin before sector 0.
    StartsBeforeZero,
    /// Its pointer names a device that the set does not have.
    ForeignDevice {
        /// The device.
        dev: u16,
    },
    /// Its pointer stands outside of the buckets.
    OutsideBuckets {
        /// The sector of the cache device.
        sector: u64,
    },
    /// Its data would run from one bucket into the next.
    CrossesBucket {
        /// The sector of the cache device.
        sector: u64,
        /// The length.
        size_sectors: u32,
    },
    /// Its volume is beyond the uuid table.
    NoVolume {
        /// The volume.
        inode: u32,
        /// Entries of the table.
        volumes: u32,
    },
    /// A child of an inner node that has no pointer, no size, or is marked dirty.
    NotAChild,
    /// A child that is longer than any node is.
    NodeTooLong {
        /// The length.
        size_sectors: u32,
    },
    /// A child that does not start where its bucket starts, or is not of whole blocks.
    UnalignedChild {
        /// The sector of the cache device.
        sector: u64,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Truncated => f.write_str("key is cut short"),
            KeyError::NotAKey => f.write_str("not a key: its header bit is clear"),
            KeyError::TooManyPointers { count } => {
                write!(
                    f,
                    "key has {count} pointers; sets of several cache devices are not supported"
                )
            }
            KeyError::EndTooFar { end } => write!(f, "key ends at sector {end}, beyond the last"),
            KeyError::StartsBeforeZero => f.write_str("key is longer than the position of its end"),
            KeyError::ForeignDevice { dev } => {
                write!(
                    f,
                    "key points to cache device {dev}, which the set does not have"
                )
            }
            KeyError::OutsideBuckets { sector } => {
                write!(f, "key points to sector {sector}, outside of the buckets")
            }
            KeyError::CrossesBucket {
                sector,
                size_sectors,
            } => write!(
                f,
                "key of {size_sectors} sectors at sector {sector} crosses the end of its bucket"
            ),
            KeyError::NoVolume { inode, volumes } => {
                write!(f, "key of volume {inode}, but there are {volumes} at most")
            }
            KeyError::NotAChild => {
                f.write_str("key of a child node without pointer or size, or marked dirty")
            }
            KeyError::NodeTooLong { size_sectors } => {
                write!(
                    f,
                    "child node of {size_sectors} sectors; {MAX_META_BUCKET_SECTORS} is the most"
                )
            }
            KeyError::UnalignedChild { sector } => {
                write!(
                    f,
                    "child node at sector {sector} does not fill blocks from a bucket's start"
                )
            }
        }
    }
}

impl std::error::Error for KeyError {}

/// A key. Ordered by inode, then by end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The volume (index in the uuid table), at most [`MAX_INODE`].
    pub inode: Inode,
    /// The first sector that it no longer covers, at most [`MAX_KEY_OFFSET`].
    pub end: Sector,
    /// How many sectors it covers, at most 65535. Of a child: the sectors of its node.
    pub size_sectors: u32,
    /// Whether the backing device lacks these data.
    pub dirty: bool,
    /// Where the data are; `None` deletes the range. See [`Key::data`].
    pub ptr: Option<Ptr>,
}

impl Key {
    /// The key above every key, which is the root's.
    pub const MAX: Key = Key {
        inode: Inode(MAX_INODE),
        end: Sector(MAX_KEY_OFFSET),
        size_sectors: 0,
        dirty: false,
        ptr: None,
    };

    /// The key below every key: inode 0, sector 0, nothing else.
    pub const ZERO: Key = Key {
        inode: Inode(0),
        end: Sector(0),
        size_sectors: 0,
        dirty: false,
        ptr: None,
    };

    /// The first sector that it covers; 0 where a child's size says nothing of its range.
    pub const fn start(&self) -> Sector {
        Sector(self.end.0.saturating_sub(self.size_sectors as u64))
    }

    /// What of it lies from sector `at` on; its pointer moves along. `at` within its range.
    pub fn cut_front(&self, at: Sector) -> Key {
        let kept = self
            .end
            .0
            .saturating_sub(at.0)
            .min(self.size_sectors.into());
        let cut = u64::from(self.size_sectors) - kept;
        Key {
            size_sectors: kept as u32,
            ptr: self.ptr.map(|p| p.advance(cut)),
            ..*self
        }
    }

    /// What of it lies before sector `at`. `at` within its range.
    pub fn cut_back(&self, at: Sector) -> Key {
        let kept =
            at.0.saturating_sub(self.start().0)
                .min(self.size_sectors.into());
        Key {
            size_sectors: kept as u32,
            end: self.end.min(at),
            ..*self
        }
    }

    /// Its place in the order of keys.
    pub const fn position(&self) -> (Inode, Sector) {
        (self.inode, self.end)
    }

    /// Orders by inode, then end. (Not `Ord`: keys of one position may differ.)
    pub fn cmp_position(&self, other: &Key) -> Ordering {
        self.position().cmp(&other.position())
    }

    /// Whether it names position (0, 0), as what is left of a replaced child does.
    pub const fn is_zero_position(&self) -> bool {
        self.inode.0 == 0 && self.end.0 == 0
    }

    /// Where its data are; `None` for a deletion and for the mark of a read that was under way.
    pub fn data(&self) -> Option<Ptr> {
        self.ptr.filter(|ptr| !ptr.is_check())
    }

    /// Bytes on disk.
    pub const fn encoded_bytes(&self) -> usize {
        HEAD_BYTES + if self.ptr.is_some() { 8 } else { 0 }
    }

    /// Whether it can stand in a leaf: extents lie within one bucket of the device.
    ///
    /// # Errors
    /// What is wrong with it; see [`KeyError`].
    pub fn check_extent(&self, geometry: &Geometry) -> Result<(), KeyError> {
        if u64::from(self.size_sectors) > self.end.0 {
            return Err(KeyError::StartsBeforeZero);
        }
        // The place above all keys is the root's; no volume reaches so far.
        if self.size_sectors != 0 && self.end.0 >= MAX_KEY_OFFSET {
            return Err(KeyError::EndTooFar { end: self.end.0 });
        }
        match self.data() {
            Some(ptr) => self.check_within_bucket(ptr, geometry),
            None => Ok(()),
        }
    }

    /// Whether it is of one of the volumes that the uuid table has room for. Without that bound, keys
    /// of ever other volumes would take a table each in memory.
    ///
    /// # Errors
    /// [`KeyError::NoVolume`].
    pub fn check_volume(&self, volumes: u32) -> Result<(), KeyError> {
        let inode = self.inode.0;
        match inode < volumes {
            true => Ok(()),
            false => Err(KeyError::NoVolume { inode, volumes }),
        }
    }

    /// Whether it can name a btree node: clean, from a bucket's first sector, of whole blocks, no
    /// longer than a node can be (who reads it takes so much memory).
    ///
    /// # Errors
    /// What is wrong with it; see [`KeyError`].
    pub fn check_child(&self, geometry: &Geometry) -> Result<(), KeyError> {
        let ptr = match self.ptr {
            Some(ptr) if self.size_sectors != 0 && !self.dirty => ptr,
            _ => return Err(KeyError::NotAChild),
        };
        self.check_within_bucket(ptr, geometry)?;
        if self.size_sectors > MAX_META_BUCKET_SECTORS {
            let size_sectors = self.size_sectors;
            return Err(KeyError::NodeTooLong { size_sectors });
        }
        if ptr.sector().0 % u64::from(geometry.bucket_sectors.max(1)) != 0
            || self.size_sectors % geometry.block_sectors.max(1) != 0
        {
            return Err(KeyError::UnalignedChild {
                sector: ptr.sector().0,
            });
        }
        Ok(())
    }

    fn check_within_bucket(&self, ptr: Ptr, geometry: &Geometry) -> Result<(), KeyError> {
        geometry.bucket_of(ptr)?;
        let within = ptr.sector().0 % u64::from(geometry.bucket_sectors.max(1));
        if within + u64::from(self.size_sectors) > geometry.bucket_sectors.into() {
            let (sector, size_sectors) = (ptr.sector().0, self.size_sectors);
            return Err(KeyError::CrossesBucket {
                sector,
                size_sectors,
            });
        }
        Ok(())
    }

    /// Appends the bytes on disk to `out`. The fields must be in their ranges.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(
            self.size_sectors <= MAX_KEY_SECTORS,
            "key size out of range"
        );
        assert!(
            self.inode.0 <= MAX_INODE && self.end.0 <= MAX_KEY_OFFSET,
            "key out of range"
        );
        let high = HEADER_BIT
            | u64::from(self.ptr.is_some()) << 60
            | u64::from(self.dirty) << 36
            | u64::from(self.size_sectors) << 20
            | u64::from(self.inode.0);
        out.extend_from_slice(&high.to_le_bytes());
        out.extend_from_slice(&self.end.0.to_le_bytes());
        if let Some(ptr) = self.ptr {
            out.extend_from_slice(&ptr.raw().to_le_bytes());
        }
    }

    /// Reads a key from the start of `bytes`; returns it and the bytes it took.
    ///
    /// The checksum type that a key can carry is passed over: Linux reserves no word for it.
    ///
    /// # Errors
    /// [`KeyError::Truncated`], [`KeyError::NotAKey`], [`KeyError::TooManyPointers`] or
    /// [`KeyError::EndTooFar`]. Where it points is not looked at.
    pub fn decode(bytes: &[u8]) -> Result<(Key, usize), KeyError> {
        if bytes.len() < HEAD_BYTES {
            return Err(KeyError::Truncated);
        }
        let (high, end) = (u64_at(bytes, 0), u64_at(bytes, 8));
        if high & HEADER_BIT == 0 {
            return Err(KeyError::NotAKey);
        }
        let count = (high >> 60 & 7) as u32;
        if count > MAX_KEY_PTRS {
            return Err(KeyError::TooManyPointers { count });
        }
        if end > MAX_KEY_OFFSET {
            return Err(KeyError::EndTooFar { end });
        }
        let consumed = HEAD_BYTES + 8 * count as usize;
        if bytes.len() < consumed {
            return Err(KeyError::Truncated);
        }
        let key = Key {
            inode: Inode(high as u32 & MAX_INODE),
            end: Sector(end),
            size_sectors: (high >> 20) as u32 & MAX_KEY_SECTORS,
            dirty: high >> 36 & 1 != 0,
            ptr: (count == 1).then(|| Ptr(u64_at(bytes, HEAD_BYTES))),
        };
        Ok((key, consumed))
    }

    /// The field of 64 bytes that holds `key` in a journal entry; all zeros for none.
    pub fn encode_padded(key: Option<&Key>) -> [u8; PADDED_BYTES] {
        let mut out = [0; PADDED_BYTES];
        if let Some(key) = key {
            let mut bytes = Vec::with_capacity(MAX_BYTES);
            key.encode(&mut bytes);
            out[..bytes.len()].copy_from_slice(&bytes);
        }
        out
    }

    /// Reads such a field; `None` where nothing stands in it.
    ///
    /// # Errors
    /// As [`Key::decode`].
    pub fn decode_padded(field: &[u8; PADDED_BYTES]) -> Result<Option<Key>, KeyError> {
        if field[..HEAD_BYTES].iter().all(|b| *b == 0) {
            return Ok(None);
        }
        Key::decode(field).map(|(key, _)| Some(key))
    }
}

/// Reads `bytes` as keys up to their end.
///
/// # Errors
/// The first key that is none, and at which byte it begins; a key that runs over the end is
/// [`KeyError::Truncated`].
pub fn decode_all(bytes: &[u8]) -> Result<Vec<Key>, (usize, KeyError)> {
    let mut keys = Vec::with_capacity(bytes.len() / MAX_BYTES);
    let mut at = 0;
    while at < bytes.len() {
        let (key, consumed) = Key::decode(&bytes[at..]).map_err(|error| (at, error))?;
        keys.push(key);
        at += consumed;
    }
    Ok(keys)
}

/// The bytes that `keys` take on disk.
pub fn encoded_bytes(keys: &[Key]) -> usize {
    keys.iter().map(Key::encoded_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: Geometry = Geometry {
        block_sectors: 8,
        bucket_sectors: 64,
        first_bucket: BucketNr(1),
        nbuckets: 128,
    };

    fn extent(end: u64, size: u32, at: u64) -> Key {
        Key {
            inode: Inode(3),
            end: Sector(end),
            size_sectors: size,
            dirty: true,
            ptr: Some(Ptr::new(0, Sector(at), Gen(7))),
        }
    }

    fn bytes_of(key: &Key) -> Vec<u8> {
        let mut out = Vec::new();
        key.encode(&mut out);
        out
    }

    #[test]
    fn fields_stand_where_the_format_says() {
        let bytes = bytes_of(&extent(100, 8, 64));
        assert_eq!(u64_at(&bytes, 0), 0x9000_0010_0080_0003);
        assert_eq!(u64_at(&bytes, 8), 100);
        assert_eq!(u64_at(&bytes, 16), 64 << 8 | 7);
        let ptr = Ptr::new(5, Sector(MAX_PTR_SECTORS - 1), Gen(255));
        assert_eq!((ptr.dev(), ptr.sector().0), (5, MAX_PTR_SECTORS - 1));
        assert_eq!(ptr.raw() >> 51, 5);
    }

    #[test]
    fn every_damage_has_its_own_error() {
        let good = bytes_of(&extent(100, 8, 64));
        assert_eq!(Key::decode(&good[..23]), Err(KeyError::Truncated));
        assert_eq!(Key::decode(&good[..15]), Err(KeyError::Truncated));
        let mut bad = good.clone();
        bad[7] = 0x10;
        assert_eq!(Key::decode(&bad), Err(KeyError::NotAKey));
        bad[7] = 0xa0;
        assert_eq!(
            Key::decode(&bad),
            Err(KeyError::TooManyPointers { count: 2 })
        );
        let mut bad = good.clone();
        bad[15] = 0x80;
        assert!(matches!(Key::decode(&bad), Err(KeyError::EndTooFar { .. })));
        assert_eq!(
            decode_all(&[&good[..], &good[..8]].concat()),
            Err((24, KeyError::Truncated))
        );
    }

    #[test]
    fn the_checksum_type_is_passed_over() {
        let mut bytes = bytes_of(&extent(100, 8, 64));
        bytes[7] |= 1;
        assert_eq!(Key::decode(&bytes), Ok((extent(100, 8, 64), 24)));
    }

    #[test]
    fn extents_and_children_are_held_against_the_device() {
        assert_eq!(extent(100, 64, 64).check_extent(&GEOMETRY), Ok(()));
        assert_eq!(
            extent(4, 8, 64).check_extent(&GEOMETRY),
            Err(KeyError::StartsBeforeZero)
        );
        let crossing = KeyError::CrossesBucket {
            sector: 65,
            size_sectors: 64,
        };
        assert_eq!(extent(100, 64, 65).check_extent(&GEOMETRY), Err(crossing));
        let last = extent(MAX_KEY_OFFSET, 64, 64).check_extent(&GEOMETRY);
        let end = MAX_KEY_OFFSET;
        assert_eq!(last, Err(KeyError::EndTooFar { end }));
        let outside = |sector| Err(KeyError::OutsideBuckets { sector });
        assert_eq!(extent(100, 8, 63).check_extent(&GEOMETRY), outside(63));
        assert_eq!(extent(100, 8, 8192).check_extent(&GEOMETRY), outside(8192));
        let mark = Key {
            ptr: Some(Ptr::from_raw(u64::MAX)),
            ..extent(100, 8, 64)
        };
        assert_eq!((mark.check_extent(&GEOMETRY), mark.data()), (Ok(()), None));
        let foreign = Key {
            ptr: Some(Ptr::new(1, Sector(64), Gen(0))),
            ..extent(100, 8, 64)
        };
        assert_eq!(
            foreign.check_extent(&GEOMETRY),
            Err(KeyError::ForeignDevice { dev: 1 })
        );

        let child = Key {
            dirty: false,
            ..extent(9, 64, 64)
        };
        assert_eq!(child.check_child(&GEOMETRY), Ok(()));
        assert_eq!(
            extent(9, 64, 64).check_child(&GEOMETRY),
            Err(KeyError::NotAChild)
        );
        let large = Geometry {
            bucket_sectors: 1 << 15,
            ..GEOMETRY
        };
        let long = Key {
            size_sectors: 1 << 14,
            ..Key {
                dirty: false,
                ..extent(9, 1, 1 << 15)
            }
        };
        let error = Err(KeyError::NodeTooLong {
            size_sectors: 1 << 14,
        });
        assert_eq!(long.check_child(&large), error);
        let unaligned = Key {
            dirty: false,
            ..extent(9, 8, 72)
        };
        let error = Err(KeyError::UnalignedChild { sector: 72 });
        assert_eq!(unaligned.check_child(&GEOMETRY), error);
    }

    #[test]
    fn an_empty_padded_field_holds_no_key() {
        assert_eq!(Key::decode_padded(&Key::encode_padded(None)), Ok(None));
        let key = extent(100, 8, 64);
        assert_eq!(
            Key::decode_padded(&Key::encode_padded(Some(&key))),
            Ok(Some(key))
        );
    }

    proptest! {
        #[test]
        fn keys_come_back_as_they_went(
            inode in 0..=MAX_INODE, end in 0..=MAX_KEY_OFFSET, size in 0..=MAX_KEY_SECTORS,
            dirty: bool, ptr: Option<u64>,
        ) {
            let ptr = ptr.map(Ptr::from_raw);
            let key = Key { inode: Inode(inode), end: Sector(end), size_sectors: size, dirty, ptr };
            let bytes = bytes_of(&key);
            prop_assert_eq!(bytes.len(), key.encoded_bytes());
            prop_assert_eq!(Key::decode(&bytes), Ok((key, bytes.len())));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((key, consumed)) = Key::decode(&bytes) {
                prop_assert!(consumed <= bytes.len());
                let _ = (key.check_extent(&GEOMETRY), key.check_child(&GEOMETRY), key.start());
            }
            let _ = decode_all(&bytes);
        }
    }
}
