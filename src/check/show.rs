//! What a superblock says, for people and for scripts.

use serde::Serialize;

use super::{CannotCheck, Source, read_super};
use crate::format::superblock::{BackingSuper, CacheSuper, Super};
use crate::units::{SECTOR_BYTES, Sector};

/// What stands in the superblock of one device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Shown {
    /// The device.
    pub device: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `cache`, `backing`, `other` for another program's data, or `unknown` where nothing can be
    /// read.
    pub kind: &'static str,
    /// What else there is to say; only of other data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What is wrong with the superblock.
    pub error: Option<String>,
    /// The byte of the device where that is.
    pub error_byte: Option<u64>,
    /// Whether the checksum is right.
    pub checksum_ok: bool,
    /// The checksum as it stands, in hex.
    pub checksum: String,
    /// The rest, where it can be read.
    #[serde(flatten)]
    pub common: Option<Common>,
    /// What only cache devices have.
    #[serde(flatten)]
    pub cache: Option<CachePart>,
    /// What only backing devices have.
    #[serde(flatten)]
    pub backing: Option<BackingPart>,
}

/// What both kinds of device have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Common {
    /// The superblock's version.
    pub version: u64,
    /// The device's uuid.
    pub uuid: String,
    /// The set's uuid; `None` for a device that is in no set.
    pub set_uuid: Option<String>,
    /// The label.
    pub label: String,
    /// Counts writings.
    pub seq: u64,
    /// The flags as they stand, in hex.
    pub flags: String,
    /// Feature words compat, incompat, ro_compat in hex; `null` in versions without.
    pub features: Option<[String; 3]>,
    /// Bytes in a block.
    pub block_bytes: u64,
    /// Seconds of the epoch.
    pub last_mount: u32,
}

/// What only cache devices have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CachePart {
    /// Whether the structures on the device mean something.
    pub sync: bool,
    /// Whether reused buckets are discarded.
    pub discard: bool,
    /// `lru`, `fifo`, `random` or `unknown`.
    pub replacement: &'static str,
    /// Bytes in a bucket.
    pub bucket_bytes: u64,
    /// Buckets on the device.
    pub nbuckets: u64,
    /// Bytes in all buckets.
    pub cache_bytes: u64,
    /// The first bucket behind the superblock.
    pub first_bucket: u64,
    /// Journal buckets; empty before the first start.
    pub journal_buckets: Vec<u64>,
    /// Cache devices in the set.
    pub nr_in_set: u16,
    /// Which of them this is.
    pub nr_this_dev: u16,
}

/// What only backing devices have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct BackingPart {
    /// The byte where the volume's data begin.
    pub data_offset_bytes: u64,
    /// Bytes of the volume.
    pub volume_bytes: u64,
    /// How writes are treated.
    pub cache_mode: &'static str,
    /// `none`, `clean`, `dirty` or `stale`.
    pub state: &'static str,
}

/// A label without its padding; what is no text shows as replacement characters, and what would
/// move a terminal's cursor as dots.
pub fn label_text(label: &[u8; 32]) -> String {
    let end = label.iter().position(|&b| b == 0).unwrap_or(label.len());
    let text = String::from_utf8_lossy(&label[..end]);
    let plain = |c: char| if c.is_control() { '.' } else { c };
    text.chars().map(plain).collect()
}

/// What superblocks of both kinds have: the fields are the same, the types are not.
macro_rules! common {
    ($sb:expr) => {
        Common {
            version: $sb.version,
            uuid: $sb.uuid.to_string(),
            set_uuid: (!$sb.set_uuid.is_nil()).then(|| $sb.set_uuid.to_string()),
            label: label_text(&$sb.label),
            seq: $sb.seq,
            flags: format!("{:#x}", $sb.flags),
            features: features($sb.version, &$sb.words),
            block_bytes: bytes_of($sb.block_sectors.into()),
            last_mount: $sb.last_mount,
        }
    };
}

/// Reads the superblock of a device.
///
/// # Errors
/// The device is too small or cannot be read.
pub fn show(source: &dyn Source) -> Result<Shown, CannotCheck> {
    let found = read_super(source)?;
    if let Some(foreign) = found.foreign {
        return Ok(Shown {
            device: source.name(),
            size_bytes: source.size_bytes(),
            kind: "other",
            note: Some(format!(
                "other data: bears bcache's magic number, as bcachefs does, but {foreign}"
            )),
            ..Shown::default()
        });
    }
    let mut shown = Shown {
        device: source.name(),
        size_bytes: source.size_bytes(),
        kind: "unknown",
        error: found.error.map(|e| e.to_string()),
        error_byte: found.error.map(|e| e.byte()),
        checksum_ok: found.says.is_some()
            && !matches!(
                found.error,
                Some(crate::format::superblock::SuperError::BadChecksum { .. })
            ),
        checksum: format!("{:016x}", found.checksum),
        ..Shown::default()
    };
    match &found.says {
        Some(Super::Cache(sb)) => {
            shown.kind = "cache";
            shown.common = Some(common!(sb));
            shown.cache = Some(cache_part(sb));
        }
        Some(Super::Backing(sb)) => {
            shown.kind = "backing";
            shown.common = Some(common!(sb));
            shown.backing = Some(backing_part(sb, source.size_bytes()));
        }
        None => {}
    }
    Ok(shown)
}

fn features(version: u64, words: &[u64]) -> Option<[String; 3]> {
    let hex = |i: usize| format!("{:#x}", words.get(i).copied().unwrap_or(0));
    (version >= 5).then(|| [hex(0), hex(1), hex(2)])
}

fn bytes_of(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_BYTES as u64)
}

fn cache_part(sb: &CacheSuper) -> CachePart {
    CachePart {
        sync: sb.sync(),
        discard: sb.discard(),
        replacement: match sb.replacement() {
            0 => "lru",
            1 => "fifo",
            2 => "random",
            _ => "unknown",
        },
        bucket_bytes: bytes_of(sb.bucket_sectors.into()),
        nbuckets: sb.nbuckets,
        cache_bytes: bytes_of(sb.nbuckets.saturating_mul(sb.bucket_sectors.into())),
        first_bucket: sb.first_bucket.into(),
        journal_buckets: sb.journal_buckets.iter().map(|b| b.0.into()).collect(),
        nr_in_set: sb.nr_in_set,
        nr_this_dev: sb.nr_this_dev,
    }
}

fn backing_part(sb: &BackingSuper, size_bytes: u64) -> BackingPart {
    let Sector(offset) = sb.data_offset;
    let block = u64::from(sb.block_sectors).max(1);
    let sectors = (size_bytes / SECTOR_BYTES as u64).saturating_sub(offset);
    BackingPart {
        data_offset_bytes: bytes_of(offset),
        volume_bytes: bytes_of(sectors / block * block),
        cache_mode: sb.cache_mode().name(),
        state: sb.state().name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_safe_to_print() {
        let mut label = [0; 32];
        label[..8].copy_from_slice(b"a\x1b[2Jb\xffc");
        assert_eq!(label_text(&label), "a.[2Jb\u{fffd}c");
        assert_eq!(label_text(&[b'x'; 32]).len(), 32);
    }
}
