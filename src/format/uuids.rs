//! The uuid table: the volumes of a set.
//!
//! One bucket of 128-byte entries, named by the journal. The index of an entry is the inode of
//! that volume's keys, so an entry keeps its place for as long as any key of it may exist: a
//! volume that is gone leaves an invalidated entry. The table bears no checksum; it is written
//! into another bucket every time and the journal switched over when it is durable.

use crate::format::{array_at, put, u32_at, u64_at};
use crate::units::Uuid;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 128;
/// The uuid that marks the entry of a volume that is gone.
pub const INVALIDATED: Uuid = Uuid([
    0xa0, 0x3e, 0xf8, 0xed, 0x3e, 0xe1, 0xb8, 0x78, 0xc8, 0x50, 0xfc, 0x5e, 0xcb, 0x16, 0xcd, 0x99,
]);

const FLAG_FLASH_ONLY: u32 = 1 << 0;

const AT_LABEL: usize = 16;
const AT_FIRST_REG: usize = 48;
const AT_LAST_REG: usize = 52;
const AT_INVALIDATED: usize = 56;
const AT_FLAGS: usize = 60;
const AT_SECTORS: usize = 64;
const AT_BACKING_SEQ: usize = 72;
const AT_CARRIES: usize = 80;

/// An entry of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UuidEntry {
    /// Of the backing device, or of a volume that lives on the flash alone.
    pub uuid: Uuid,
    /// A name, padded with zeros.
    pub label: [u8; 32],
    /// When it was attached first, in seconds of the epoch.
    pub first_reg: u32,
    /// When it was attached last, in seconds of the epoch.
    pub last_reg: u32,
    /// When it went, in seconds of the epoch; 0 while it has not.
    pub invalidated: u32,
    /// As on disk; see [`UuidEntry::is_flash_only`].
    pub flags: u32,
    /// The size of a volume that lives on the flash alone.
    pub sectors: u64,
    /// The sequence number that the backing device's superblock had at least when the set saw it
    /// last: one with a lower number is an older copy. It stands in what is padding for the kernel,
    /// which keeps it; 0 where it is unknown.
    pub backing_seq: u64,
    /// The note about a device that lies on such a volume; see [`super::superblock::note_of`]. It
    /// stands in what is padding for the kernel, which keeps it.
    pub carries: u64,
}

impl UuidEntry {
    /// Of a volume that lives on the flash alone.
    pub fn flash_only(uuid: Uuid, label: [u8; 32], now_s: u32, sectors: u64) -> UuidEntry {
        let flags = FLAG_FLASH_ONLY;
        UuidEntry {
            uuid,
            label,
            first_reg: now_s,
            last_reg: now_s,
            invalidated: 0,
            flags,
            sectors,
            backing_seq: 0,
            carries: 0,
        }
    }

    /// Of a backing device.
    pub fn backing(uuid: Uuid, label: [u8; 32], now_s: u32) -> UuidEntry {
        UuidEntry {
            flags: 0,
            ..UuidEntry::flash_only(uuid, label, now_s, 0)
        }
    }

    /// Whether no volume was ever here.
    pub fn is_free(&self) -> bool {
        self.uuid.is_nil()
    }

    /// Whether the volume that was here is gone.
    pub fn is_invalidated(&self) -> bool {
        self.uuid == INVALIDATED
    }

    /// Whether there is a volume here.
    pub fn is_live(&self) -> bool {
        !self.is_free() && !self.is_invalidated()
    }

    /// Whether the volume lives on the flash alone.
    pub const fn is_flash_only(&self) -> bool {
        self.flags & FLAG_FLASH_ONLY != 0
    }

    /// Marks the volume as gone.
    pub fn invalidate(&mut self, now_s: u32) {
        self.uuid = INVALIDATED;
        self.invalidated = now_s;
    }

    /// Reads an entry. Any 128 bytes are one.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> UuidEntry {
        UuidEntry {
            uuid: Uuid(array_at(bytes, 0)),
            label: array_at(bytes, AT_LABEL),
            first_reg: u32_at(bytes, AT_FIRST_REG),
            last_reg: u32_at(bytes, AT_LAST_REG),
            invalidated: u32_at(bytes, AT_INVALIDATED),
            flags: u32_at(bytes, AT_FLAGS),
            sectors: u64_at(bytes, AT_SECTORS),
            backing_seq: u64_at(bytes, AT_BACKING_SEQ),
            carries: u64_at(bytes, AT_CARRIES),
        }
    }

    /// The 128 bytes on disk.
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        put(&mut out, 0, &self.uuid.0);
        put(&mut out, AT_LABEL, &self.label);
        put(&mut out, AT_FIRST_REG, &self.first_reg.to_le_bytes());
        put(&mut out, AT_LAST_REG, &self.last_reg.to_le_bytes());
        put(&mut out, AT_INVALIDATED, &self.invalidated.to_le_bytes());
        put(&mut out, AT_FLAGS, &self.flags.to_le_bytes());
        put(&mut out, AT_SECTORS, &self.sectors.to_le_bytes());
        put(&mut out, AT_BACKING_SEQ, &self.backing_seq.to_le_bytes());
        put(&mut out, AT_CARRIES, &self.carries.to_le_bytes());
        out
    }
}

/// The entries that a table of `bytes` holds ([`meta_bucket_bytes`] of the bucket size).
///
/// [`meta_bucket_bytes`]: crate::limits::meta_bucket_bytes
pub const fn per_table(bytes: usize) -> usize {
    bytes / ENTRY_BYTES
}

/// Reads a table; the index of an entry is its inode.
pub fn parse(bytes: &[u8]) -> Vec<UuidEntry> {
    bytes
        .chunks_exact(ENTRY_BYTES)
        .map(|entry| UuidEntry::decode(&array_at(entry, 0)))
        .collect()
}

/// Writes the table over the whole of `out`, which has room for the entries; those missing are free.
pub fn encode(entries: &[UuidEntry], out: &mut [u8]) {
    assert!(entries.len() <= per_table(out.len()), "uuid table too long");
    out.fill(0);
    for (place, entry) in out.chunks_exact_mut(ENTRY_BYTES).zip(entries) {
        place.copy_from_slice(&entry.encode());
    }
}

/// The table up to its last entry that is in use or was: behind it are zeros.
pub fn encode_used(entries: &[UuidEntry]) -> Vec<u8> {
    let used = entries.iter().rposition(|entry| !entry.is_free());
    let used = &entries[..used.map_or(0, |last| last + 1)];
    let mut out = vec![0; used.len() * ENTRY_BYTES];
    encode(used, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: Uuid = Uuid([7; 16]);

    #[test]
    fn an_entry_says_what_it_is() {
        let free = UuidEntry::default();
        assert!(free.is_free() && !free.is_live() && !free.is_invalidated());
        let mut entry = UuidEntry::flash_only(UUID, [0; 32], 5, 4096);
        assert!(entry.is_live() && entry.is_flash_only());
        assert!(!UuidEntry::backing(UUID, [0; 32], 5).is_flash_only());
        entry.invalidate(6);
        assert!(entry.is_invalidated() && !entry.is_live() && !entry.is_free());
        assert_eq!((entry.first_reg, entry.invalidated), (5, 6));
    }

    #[test]
    fn a_table_comes_back_as_it_went() {
        let mut table = [0xff; 8192];
        let entries = [
            UuidEntry::backing(UUID, [1; 32], 2),
            UuidEntry::flash_only(UUID, [3; 32], 4, 5),
        ];
        encode(&entries, &mut table);
        let read = parse(&table);
        assert_eq!(read.len(), per_table(8192));
        assert_eq!(read[..2], entries);
        assert!(read[2..].iter().all(UuidEntry::is_free));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_known_fields_survive(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            for entry in parse(&bytes) {
                prop_assert_eq!(UuidEntry::decode(&entry.encode()), entry);
            }
        }
    }
}
