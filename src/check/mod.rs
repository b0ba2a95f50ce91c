//! Verifies a set on its devices, without writing to them.
//!
//! What a start of the set would do is done here in memory: newest journal entry, priorities, uuids,
//! tree, replay. Where a start refuses at the first damage, this goes on and says what else is
//! wrong, each with device, bucket and byte. It checks more than a start needs: every run of keys of
//! every node, generations, who uses which bucket, that no sector of the cache device is named
//! twice, and that backing devices say what the set says of them.
//!
//! - A set that was stopped, killed or cut off from power has no finding, whether Linux ran it or
//!   this engine. (One that is *running* changes while it is read; its findings mean nothing.)
//! - Everything on a device is hostile. Nothing here panics or runs for ever: the chain of
//!   priorities and the tree take each bucket once, levels are bounded by the format.
//! - Memory: for each bucket 16 bytes, the keys that the journal replays, the nodes from the root to one
//!   leaf, [`MAPS_MAX_BYTES`] for telling which sectors are in use, and a bounded report.
//!
//! The engine never uses this: what it refuses it finds by itself.
//!
//! | file | what |
//! |---|---|
//! | [`report`] | findings and their kinds |
//! | [`show`] | what a superblock says, for people |
//! | [`journal`] | entries in the journal's buckets |
//! | [`meta`] | priorities and the uuid table |
//! | [`tree`] | nodes from the root to the leaves |
//! | `space` | what buckets are used for; extents |
//! | `backing` | the backing devices |
//! | [`dump`] | the set's structures one by one |

mod backing;
pub mod dump;
pub mod journal;
pub mod meta;
pub mod report;
pub mod show;
mod space;
pub mod tree;

use crate::format::key::{Geometry, Key, KeyError};
use crate::format::superblock::{
    self, CacheSuper, SUPER_BYTES, SUPER_SECTOR, Super, SuperError, parse,
};
use crate::format::uuids::UuidEntry;
use crate::units::{BucketNr, SECTOR_BYTES, Sector};
use report::{Kind, Place, Report, VolumeSum};
use space::Space;
use tree::Leaf;

pub use space::MAPS_MAX_BYTES;

/// A device or an image, to be read only.
pub trait Source {
    /// What people call it.
    fn name(&self) -> String;
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;
    /// Fills `buf` with the bytes from `at` on, which lie on the device.
    ///
    /// # Errors
    /// Why they cannot be read.
    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), String>;
}

/// An image in memory.
pub struct Image<'a> {
    /// What people call it.
    pub name: &'a str,
    /// What stands on it.
    pub bytes: &'a [u8],
}

impl Source for Image<'_> {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), String> {
        let from = usize::try_from(at).map_err(|e| e.to_string())?;
        let bytes = from
            .checked_add(buf.len())
            .and_then(|to| self.bytes.get(from..to));
        buf.copy_from_slice(bytes.ok_or("beyond the end")?);
        Ok(())
    }
}

/// Why nothing can be said of a device at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CannotCheck {
    /// It cannot be read.
    Unreadable {
        /// The device.
        device: String,
        /// Bytes from its start.
        byte: u64,
        /// Why.
        why: String,
    },
    /// It is too small for a superblock.
    TooSmall(String),
    /// A backing device was given where a cache device must be.
    NotACache(String),
    /// No cache device of a set that can be read: what its superblock lacks.
    BadSuper(String, SuperError),
    /// Another program's data, with a superblock that bears bcache's magic number.
    NotOurs(String),
    /// The set was never started, so it has no structures.
    NotStarted(String),
    /// A structure that others stand on is damaged; `check` says more.
    Damaged(String),
}

impl std::fmt::Display for CannotCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable { device, byte, why } => {
                write!(f, "{device}: cannot be read at byte {byte}: {why}")
            }
            Self::TooSmall(device) => write!(f, "{device}: too small for a superblock"),
            Self::NotACache(device) => write!(
                f,
                "{device} is a backing device; name the cache device first, then its backing devices"
            ),
            Self::BadSuper(device, error) => {
                write!(f, "{device}: byte {}: {error}", error.byte())
            }
            Self::NotOurs(device) => write!(
                f,
                "{device} holds other data: its superblock bears bcache's magic number, as that of \
                 bcachefs does, but is none of bcache's"
            ),
            Self::NotStarted(device) => write!(
                f,
                "{device}: the set was formatted but never started, so it has no journal yet"
            ),
            Self::Damaged(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for CannotCheck {}

/// How far a check has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// What is being read.
    pub what: &'static str,
    /// How much of it has been.
    pub done: u64,
    /// How much there is, as far as is known; 0 where it is not.
    pub total: u64,
}

/// Reads so many bytes, which the caller has bounded.
fn read(source: &dyn Source, at: u64, bytes: usize) -> Result<Vec<u8>, CannotCheck> {
    let fail = |why: String| CannotCheck::Unreadable {
        device: source.name(),
        byte: at,
        why,
    };
    let fits = at
        .checked_add(bytes as u64)
        .is_some_and(|end| end <= source.size_bytes());
    if !fits {
        return Err(fail("beyond the end of the device".to_string()));
    }
    let mut buf = vec![0; bytes];
    source.read(at, &mut buf).map_err(fail)?;
    Ok(buf)
}

/// A superblock as it stands on a device.
pub struct Found {
    /// What is wrong with it, first.
    pub error: Option<SuperError>,
    /// It is another program's, which bears bcache's magic number, and how that can be told.
    pub foreign: Option<SuperError>,
    /// What it says, even where its checksum is wrong.
    pub says: Option<Super>,
    /// The checksum as it stands.
    pub checksum: u64,
}

/// Reads the superblock of a device.
///
/// # Errors
/// The device is too small or cannot be read.
pub fn read_super(source: &dyn Source) -> Result<Found, CannotCheck> {
    if source.size_bytes() < SUPER_SECTOR.bytes() + SUPER_BYTES as u64 {
        return Err(CannotCheck::TooSmall(source.name()));
    }
    let mut bytes = [0; SUPER_BYTES];
    bytes.copy_from_slice(&read(source, SUPER_SECTOR.bytes(), SUPER_BYTES)?);
    let checksum = crate::format::u64_at(&bytes, 0);
    // With a right checksum a small number is more likely a version of bcache's that is not known
    // here than another program's, and is a finding.
    let is_newer = |error: &SuperError| match error {
        SuperError::UnknownVersion { version } => {
            *version < 256 && matches!(parse(&bytes), Err(SuperError::UnknownVersion { .. }))
        }
        _ => false,
    };
    if let Some(foreign) = superblock::foreign(&bytes).filter(|error| !is_newer(error)) {
        return Ok(Found {
            error: Some(SuperError::BadMagic),
            foreign: Some(foreign),
            says: None,
            checksum,
        });
    }
    let parsed = parse(&bytes);
    let sectors = source.size_bytes() / SECTOR_BYTES as u64;
    let fits = |s: &Super| match s {
        Super::Cache(sb) => sb.check_device(sectors),
        Super::Backing(sb) => sb.check_device(sectors),
    };
    Ok(match parsed {
        Ok(says) => Found {
            error: fits(&says).err(),
            foreign: None,
            says: Some(says),
            checksum,
        },
        Err(error) => {
            let is_damaged = matches!(error, SuperError::BadChecksum { .. });
            let says = is_damaged.then(|| {
                superblock::reseal(&mut bytes);
                parse(&bytes).ok()
            });
            Found {
                error: Some(error),
                foreign: None,
                says: says.flatten(),
                checksum,
            }
        }
    })
}

/// The kind of finding that a bad superblock is.
fn kind_of_super(error: &SuperError) -> Kind {
    use SuperError::*;
    match error {
        BadMagic | Truncated => Kind::SuperMagic,
        BadOffset { .. } => Kind::SuperOffset,
        BadChecksum { .. } => Kind::SuperChecksum,
        UnknownVersion { .. }
        | UnknownIncompatFeature { .. }
        | UnknownRoCompatFeature { .. }
        | ObsoleteLargeBucket => Kind::SuperVersion,
        ZeroUuid | ZeroSetUuid => Kind::SuperUuid,
        BadBlockSize { .. }
        | BadBucketSize { .. }
        | TooFewBuckets { .. }
        | TooManyBuckets { .. }
        | BadSetNumber { .. }
        | SeveralCaches { .. }
        | FirstBucketTooLow { .. }
        | BadDataOffset { .. } => Kind::SuperGeometry,
        TooManyJournalBuckets { .. }
        | TooFewJournalBuckets { .. }
        | NoJournal
        | JournalNotConsecutive { .. }
        | JournalBeyondEnd => Kind::SuperJournal,
        DeviceTooSmall { .. } => Kind::DeviceTooSmall,
        UnknownCacheMode { .. } => Kind::SuperMode,
    }
}

/// A cache device whose superblock could be read.
pub struct Cache<'a> {
    /// The device.
    pub source: &'a dyn Source,
    /// Its superblock.
    pub sb: CacheSuper,
    /// Its shape.
    pub geometry: Geometry,
    /// The set's part of all magic numbers.
    pub set_magic: u64,
}

impl<'a> Cache<'a> {
    fn new(source: &'a dyn Source, sb: CacheSuper) -> Cache<'a> {
        Cache {
            source,
            geometry: sb.geometry(),
            set_magic: sb.set_magic(),
            sb,
        }
    }

    /// A cache device that is whole enough to be looked into.
    ///
    /// # Errors
    /// Its superblock is bad, or it has no structures yet.
    pub fn open(source: &'a dyn Source) -> Result<Cache<'a>, CannotCheck> {
        let found = read_super(source)?;
        match (found.says, found.error) {
            (Some(Super::Backing(_)), _) => Err(CannotCheck::NotACache(source.name())),
            _ if found.foreign.is_some() => Err(CannotCheck::NotOurs(source.name())),
            (_, Some(error)) => Err(CannotCheck::BadSuper(source.name(), error)),
            (Some(Super::Cache(sb)), None) if is_started(&sb) => Ok(Cache::new(source, sb)),
            _ => Err(CannotCheck::NotStarted(source.name())),
        }
    }

    fn bucket_bytes(&self) -> u64 {
        u64::from(self.geometry.bucket_sectors) * SECTOR_BYTES as u64
    }

    fn byte_of(&self, bucket: BucketNr) -> u64 {
        u64::from(bucket.0) * self.bucket_bytes()
    }

    fn bucket_of(&self, sector: Sector) -> BucketNr {
        BucketNr((sector.0 / u64::from(self.geometry.bucket_sectors)) as u32)
    }

    /// A place on the device, by its byte.
    fn place(&self, byte: u64) -> Place {
        Place {
            device: self.source.name(),
            bucket: Some(byte / self.bucket_bytes()),
            byte: Some(byte),
        }
    }
}

/// Whether the set's structures on the device mean anything.
fn is_started(sb: &CacheSuper) -> bool {
    sb.sync() && !sb.journal_buckets.is_empty()
}

/// A check under way.
struct Check<'a> {
    cache: Cache<'a>,
    report: Report,
    space: Space,
    uuids: Vec<UuidEntry>,
    /// What is known of volumes, by inode.
    volumes: Vec<VolumeSum>,
    /// By inode: from where to where keys may reach, in sectors.
    bounds: Vec<(Sector, Sector)>,
    /// The leaf whose keys are being looked at.
    leaf: Leaf,
    progress: &'a mut dyn FnMut(Progress),
}

impl Check<'_> {
    fn find(&mut self, kind: Kind, byte: u64, text: impl Into<String>) {
        let place = self.cache.place(byte);
        self.report.add(kind, place, text.into());
    }

    /// Reads bytes of the cache device; what cannot be read is a finding.
    fn read(&mut self, at: u64, bytes: usize) -> Option<Vec<u8>> {
        match read(self.cache.source, at, bytes) {
            Ok(buf) => Some(buf),
            Err(error) => {
                self.find(Kind::Unreadable, at, error.to_string());
                None
            }
        }
    }

    fn tell(&mut self, what: &'static str, done: u64, total: u64) {
        (self.progress)(Progress { what, done, total });
    }
}

/// The kind of finding that a bad key of a leaf is.
fn kind_of_extent(error: &KeyError) -> Kind {
    match error {
        KeyError::StartsBeforeZero => Kind::KeyStart,
        KeyError::EndTooFar { .. } => Kind::KeyBeyond,
        KeyError::ForeignDevice { .. } => Kind::PointerDevice,
        KeyError::OutsideBuckets { .. } => Kind::PointerOutside,
        KeyError::CrossesBucket { .. } => Kind::PointerCrosses,
        KeyError::NoVolume { .. } => Kind::KeyVolume,
        _ => Kind::NodeKey,
    }
}

/// A key in words.
fn describe(key: &Key) -> String {
    let Key {
        inode,
        end,
        size_sectors,
        ..
    } = key;
    let range = format!("volume {} sectors {}+{size_sectors}", inode.0, key.start());
    match key.ptr {
        Some(ptr) if !ptr.is_check() => format!(
            "{range} at sector {} gen {}{}",
            ptr.sector(),
            ptr.generation().0,
            if key.dirty { " dirty" } else { "" }
        ),
        _ => format!("{range} deleted (end {end})"),
    }
}

/// Checks a set: its cache device and those of its backing devices that are there.
///
/// # Errors
/// The cache device's superblock cannot be read, or the device is not a cache at all. Everything
/// else that is wrong is in the report.
pub fn check(
    source: &dyn Source,
    backings: &[&dyn Source],
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, CannotCheck> {
    let found = read_super(source)?;
    if found.foreign.is_some() {
        return Err(CannotCheck::NotOurs(source.name()));
    }
    let mut report = Report::default();
    if let Some(error) = &found.error {
        let place = Place {
            device: source.name(),
            bucket: Some(0),
            byte: Some(error.byte()),
        };
        report.add(kind_of_super(error), place, error.to_string());
    }
    let fatal = matches!(found.error, Some(SuperError::DeviceTooSmall { .. }));
    let report = match found.says {
        Some(Super::Backing(_)) => return Err(CannotCheck::NotACache(source.name())),
        Some(Super::Cache(sb)) if !fatal => {
            let cache = Cache::new(source, sb);
            let sectors = source.size_bytes() / SECTOR_BYTES as u64;
            match cache.sb.check_device(sectors) {
                Ok(()) => check_set(cache, report, backings, progress),
                Err(error) => {
                    let place = cache.place(error.byte());
                    report.add(Kind::DeviceTooSmall, place, error.to_string());
                    report
                }
            }
        }
        _ => report,
    };
    Ok(Report {
        clean: report.findings.is_empty(),
        ..report
    })
}

fn check_set(
    cache: Cache<'_>,
    report: Report,
    backings: &[&dyn Source],
    progress: &mut dyn FnMut(Progress),
) -> Report {
    let space = Space::new(&cache.geometry);
    let mut check = Check {
        cache,
        report,
        space,
        uuids: Vec::new(),
        volumes: Vec::new(),
        bounds: Vec::new(),
        leaf: Leaf::default(),
        progress,
    };
    check.report.summary.set = check.cache.sb.set_uuid.to_string();
    if !is_started(&check.cache.sb) {
        check.report.note(
            "the set was formatted but never started: it holds nothing, and is begun anew when it \
             starts"
                .to_string(),
        );
        check.backings_of_nothing(backings);
        return check.report;
    }
    check.claim_fixed();
    if let Some(journal) = check.journal() {
        check.prios(&journal);
        let uuids_known = check.uuids(&journal);
        let given = check.take_backings(backings, uuids_known);
        let replayed = check.replay_keys(&journal);
        check.tree(&journal, &replayed);
        check.states(&given);
        check.sum_up();
    }
    check.report
}
