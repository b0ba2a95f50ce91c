//! Making bcache devices of blank ones, and telling what a device holds.
//!
//! A device is looked at whole before anything is written to it or to the other device of the same
//! request.

use std::rc::Rc;

use super::cache::write_super;
use super::error::SetError;
use super::host::Host;
use crate::disk::Disk;
use crate::format::superblock::{
    BackingState, BackingSuper, CacheSuper, DEFAULT_DATA_OFFSET, RanOn, SUPER_BYTES, SUPER_SECTOR,
    Super, SuperError, foreign, has_magic, parse,
};
use crate::limits::{MIN_NBUCKETS_STARTED, PAGE_SECTORS, journal_buckets};
pub use crate::options::LABEL_BYTES;
use crate::options::is_name;
use crate::rng::Rng;
use crate::units::{SECTOR_BYTES, Sector};

/// What is looked at to tell whether a device is blank: 1 MiB.
const BLANK_BYTES: u64 = 1 << 20;
/// A device smaller than this is no cache and no backing device: 2 MiB.
const DEVICE_SECTORS_MIN: u64 = 4096;
/// Blocks that a new set's journal has at least: fewer leave no room for what makes room.
const JOURNAL_BLOCKS_MIN: u64 = 16;

/// What a device holds.
pub enum Content {
    /// Zeros, as far as was looked.
    Blank,
    /// Something that is not bcache's.
    Other,
    /// Something that is not bcache's, with its magic number.
    Foreign(SuperError),
    /// bcache's, but damaged.
    Damaged(SetError),
    /// A cache device.
    Cache(CacheSuper),
    /// A backing device.
    Backing(BackingSuper),
}

/// Looks at the first MiB of a device.
///
/// # Errors
/// The device is too small or cannot be read.
pub async fn look(disk: &Rc<dyn Disk>) -> Result<Content, SetError> {
    if disk.size_sectors() < DEVICE_SECTORS_MIN {
        return Err(SetError::Invalid(format!(
            "{} is too small: it has {} KiB, {} are the least",
            disk.name(),
            disk.size_sectors() / 2,
            DEVICE_SECTORS_MIN / 2
        )));
    }
    let bytes = BLANK_BYTES.min(disk.size_sectors() * SECTOR_BYTES as u64) as usize;
    let (buf, done) = disk.read(Sector(0), disk.alloc(bytes)).await;
    done.map_err(|e| SetError::Io(disk.name(), e))?;
    let at = SUPER_SECTOR.bytes() as usize;
    let sb = &buf[at..at + SUPER_BYTES];
    if let Some(error) = foreign(sb) {
        return Ok(Content::Foreign(error));
    }
    if has_magic(sb) {
        return Ok(match parse(sb) {
            Ok(Super::Cache(sb)) => Content::Cache(sb),
            Ok(Super::Backing(sb)) => Content::Backing(sb),
            Err(error) => Content::Damaged(SetError::Super(disk.name(), error)),
        });
    }
    if buf.iter().all(|&b| b == 0) {
        Ok(Content::Blank)
    } else {
        Ok(Content::Other)
    }
}

/// What may be overwritten.
#[derive(Clone, Copy, Debug, Default)]
pub struct Permission {
    /// Other data, and bcache devices that belong elsewhere.
    pub force: bool,
    /// Dirty data.
    pub discard_dirty: bool,
}

impl Permission {
    /// Whether everything may be overwritten: dirty data are lost only when both are said.
    pub fn all(self) -> bool {
        self.force && self.discard_dirty
    }
}

/// Whether a device with this content may be formatted as a backing device.
///
/// # Errors
/// Why not, and what would have to be said.
pub fn may_format(name: &str, content: Content, may: Permission) -> Result<(), SetError> {
    let all = may.all();
    match content {
        Content::Blank => Ok(()),
        Content::Other | Content::Foreign(_) if may.force => Ok(()),
        Content::Foreign(error) => Err(SetError::Foreign(name.into(), error)),
        Content::Other => Err(SetError::Occupied(name.into())),
        Content::Damaged(_) if all => Ok(()),
        Content::Damaged(error) => Err(error),
        Content::Cache(_) | Content::Backing(_) if all => Ok(()),
        Content::Backing(sb) if may.force && sb.state() != BackingState::Dirty => Ok(()),
        Content::Cache(_) if may.force => Err(SetError::Dirty(name.into())),
        Content::Backing(_) if may.force => Err(SetError::Dirty(name.into())),
        Content::Cache(_) => Err(SetError::Elsewhere(name.into(), "is a cache device".into())),
        Content::Backing(_) => Err(SetError::Elsewhere(
            name.into(),
            "is a backing device".into(),
        )),
    }
}

/// Whether a device suits its backing superblock: it has room behind the data offset, its blocks are
/// not larger than the volume's, and the data begin at a multiple of them.
///
/// # Errors
/// What does not fit.
pub fn check_geometry(disk: &Rc<dyn Disk>, sb: &BackingSuper) -> Result<(), SetError> {
    let (device, device_sectors) = (disk.name(), disk.block_sectors());
    if let Err(error) = sb.check_device(disk.size_sectors()) {
        return Err(SetError::Super(device, error));
    }
    if u32::from(sb.block_sectors) < device_sectors {
        return Err(SetError::BlockTooSmall {
            device,
            set_sectors: sb.block_sectors.into(),
            device_sectors,
        });
    }
    if sb.data_offset.0 % u64::from(device_sectors) != 0 {
        return Err(SetError::Misaligned {
            device,
            offset: sb.data_offset.0,
            device_sectors,
        });
    }
    Ok(())
}

/// Whether a copy of a backing device may get a UUID of its own: only when nothing of it is dirty on
/// a cache, for a cache knows it by its UUID.
///
/// # Errors
/// It is dirty.
pub fn check_clone(device: &str, sb: &BackingSuper) -> Result<(), SetError> {
    if sb.state() != BackingState::Dirty {
        return Ok(());
    }
    Err(SetError::Busy(format!(
        "{device} has dirty data on cache set {}, which knows it by its UUID: only a clean copy can \
         get another; write the original back first (bdev_bcache_detach), then copy it again",
        sb.set_uuid
    )))
}

/// A name as a label.
///
/// # Errors
/// It is empty, too long, or has characters that do not print.
pub fn label(name: &str) -> Result<[u8; LABEL_BYTES], SetError> {
    if !is_name(name) {
        return Err(SetError::Invalid(format!(
            "bad name {name:?}: 1 to {LABEL_BYTES} bytes without spaces are allowed"
        )));
    }
    let mut out = [0; LABEL_BYTES];
    out[..name.len()].copy_from_slice(name.as_bytes());
    Ok(out)
}

/// A label as a name; `None` when it is empty or no text.
pub fn name_of(label: &[u8; LABEL_BYTES]) -> Option<String> {
    let end = label.iter().position(|&b| b == 0).unwrap_or(LABEL_BYTES);
    let text = std::str::from_utf8(&label[..end]).ok()?;
    self::label(text).ok().map(|_| text.to_string())
}

/// The bucket size for a device: what was asked for, or 512 KiB, or less where that would give
/// fewer than the 1024 buckets that the kernel wants; two blocks at least.
pub fn bucket_sectors(device_sectors: u64, block_sectors: u32, asked_kb: Option<u32>) -> u32 {
    if let Some(kb) = asked_kb {
        return kb.saturating_mul(2);
    }
    let mut bucket = 1024;
    while bucket > PAGE_SECTORS.max(2 * block_sectors)
        && device_sectors / u64::from(bucket) < MIN_NBUCKETS_STARTED
    {
        bucket /= 2;
    }
    bucket
}

/// A superblock for a new cache device; nothing is written.
///
/// # Errors
/// The device is too small, or the sizes cannot be.
pub fn new_cache(
    host: &dyn Host,
    disk: &Rc<dyn Disk>,
    block_sectors: u32,
    bucket_kb: Option<u32>,
    may: Permission,
) -> Result<CacheSuper, SetError> {
    let rng = Rng::new(host.entropy());
    let bucket = bucket_sectors(disk.size_sectors(), block_sectors, bucket_kb);
    let mut sb = CacheSuper::new(
        rng.uuid(),
        rng.uuid(),
        disk.size_sectors(),
        block_sectors as u16,
        bucket,
    )
    .map_err(|e| match (e, bucket_kb) {
        (SuperError::TooFewBuckets { nbuckets }, Some(kb)) => {
            let most = (disk.size_sectors() / MIN_NBUCKETS_STARTED / 2).max(4);
            let most = 1u64 << most.ilog2();
            SetError::Invalid(format!(
                "{}: bucket_size_kb {kb} is too large: the device of {} KiB would have {nbuckets} \
                 buckets; choose at most {most}",
                disk.name(),
                disk.size_sectors() / 2
            ))
        }
        (error, _) => SetError::Super(disk.name(), error),
    })?;
    sb.set_ran_on(&RanOn::new(disk.kind(), disk.size_sectors()));
    let journal_blocks = journal_buckets(sb.nbuckets) * u64::from(bucket / block_sectors);
    if journal_blocks < JOURNAL_BLOCKS_MIN {
        return Err(SetError::Invalid(format!(
            "{}: buckets of {} KiB would give a journal of {journal_blocks} blocks, \
             {JOURNAL_BLOCKS_MIN} are the least: choose a larger bucket_size_kb",
            disk.name(),
            bucket / 2
        )));
    }
    if bucket == block_sectors && !may.force {
        return Err(SetError::Invalid(format!(
            "{}: a bucket of {} KiB has one block only, and Linux hangs on such a set: choose a \
             larger bucket_size_kb or a smaller block_size, or give force=true for a set that Linux \
             is never to open",
            disk.name(),
            bucket / 2
        )));
    }
    Ok(sb)
}

/// A superblock for a new backing device; nothing is written.
///
/// # Errors
/// The sizes cannot be.
pub fn new_backing(
    host: &dyn Host,
    disk: &Rc<dyn Disk>,
    block_sectors: u32,
    label: [u8; LABEL_BYTES],
) -> Result<BackingSuper, SetError> {
    let uuid = Rng::new(host.entropy()).uuid();
    let mut sb = BackingSuper::new(uuid, block_sectors as u16, DEFAULT_DATA_OFFSET)
        .map_err(|e| SetError::Super(disk.name(), e))?;
    sb.label = label;
    sb.set_ran_on(&RanOn::new(disk.kind(), disk.size_sectors()));
    Ok(sb)
}

/// Writes a new superblock over what the device held.
///
/// # Errors
/// The device failed.
pub async fn write(disk: &Rc<dyn Disk>, sb: &[u8; SUPER_BYTES]) -> Result<(), SetError> {
    let wipe = disk.alloc(SUPER_SECTOR.bytes() as usize);
    let io = |e| SetError::Io(disk.name(), e);
    // What stands before it (a partition table, say) would have others take the device for theirs.
    disk.write(Sector(0), wipe).await.1.map_err(io)?;
    write_super(disk, sb).await.map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Uuid;

    #[test]
    fn what_is_not_blank_is_overwritten_when_that_is_said_and_not_else() {
        let sb = BackingSuper::new(Uuid([7; 16]), 1, DEFAULT_DATA_OFFSET).expect("a superblock");
        let backing = |state| {
            let mut sb = sb.clone();
            sb.set_state(state);
            Content::Backing(sb)
        };
        let foreign = || Content::Foreign(SuperError::BadMagic);
        let (no, force) = (
            Permission::default(),
            Permission {
                force: true,
                ..Permission::default()
            },
        );
        let all = Permission {
            discard_dirty: true,
            ..force
        };
        let may = |content, may| may_format("slow", content, may).is_ok();
        assert!(may(Content::Blank, no));
        for content in [|| Content::Other, foreign] {
            assert!(!may(content(), no) && may(content(), force));
        }
        let clean = || backing(BackingState::Clean);
        assert!(!may(clean(), no) && may(clean(), force));
        let dirty = || backing(BackingState::Dirty);
        assert!(!may(dirty(), no) && !may(dirty(), force) && may(dirty(), all));
    }
}
