//! What a check found, for eyes and for scripts.

use std::collections::BTreeMap;

use serde::Serialize;

/// Findings of one kind that a report keeps. More are only counted: one wrong field can make
/// thousands, which nobody reads.
pub const FINDINGS_MAX: u64 = 20;

/// Notes that a report keeps.
const NOTES_MAX: usize = 1000;

/// What is wrong, one kind for each way. The names in a report are these in snake case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// No superblock of bcache.
    SuperMagic,
    /// The superblock says that it stands elsewhere.
    SuperOffset,
    /// The superblock's checksum is another.
    SuperChecksum,
    /// A version or feature that is unknown.
    SuperVersion,
    /// A uuid is zero.
    SuperUuid,
    /// Sizes or counts in the superblock that cannot be.
    SuperGeometry,
    /// The superblock's list of journal buckets cannot be.
    SuperJournal,
    /// A cache mode that is unknown.
    SuperMode,
    /// The device is smaller than its superblock says.
    DeviceTooSmall,
    /// The set was never started, but a backing device says that it has its dirty data.
    NotStarted,
    /// The device could not be read; what stands there was not checked.
    Unreadable,
    /// The journal has no whole entry.
    JournalEmpty,
    /// A needed journal entry is missing.
    JournalGap,
    /// Linux may hang over this journal, or lose keys of it, although nothing in it is damaged.
    JournalBrim,
    /// Two entries bear the same number.
    JournalTwice,
    /// An entry with a right checksum says what cannot be.
    JournalEntry,
    /// A key in an entry cannot be.
    JournalKey,
    /// The root, as the newest entry names it, cannot be.
    RootKey,
    /// The root's level is not the depth of the tree.
    RootLevel,
    /// The priorities are said to be where they cannot.
    PrioPlace,
    /// The chain of priorities comes back to a bucket.
    PrioCycle,
    /// No priorities stand where they must.
    PrioMagic,
    /// The checksum of priorities is another.
    PrioChecksum,
    /// The buckets of the chain were not written together.
    PrioSeq,
    /// The uuid table is said to be where it cannot.
    UuidPlace,
    /// Two entries of the uuid table bear the same uuid.
    UuidTwice,
    /// An entry of the uuid table says what cannot be.
    UuidEntry,
    /// Where a btree node must be none was ever written.
    NodeBlank,
    /// The magic number of a btree node is another.
    NodeMagic,
    /// A btree node of an unknown version.
    NodeVersion,
    /// The keys of a btree node run over its end.
    NodeLength,
    /// The checksum of a btree node is another.
    NodeChecksum,
    /// A run of no keys where some must be.
    NodeEmptySet,
    /// Bytes of a btree node that are no key.
    NodeKey,
    /// Keys out of order.
    NodeOrder,
    /// Keys of one run that overlap.
    NodeOverlap,
    /// A part of a node whose predecessor is lost.
    NodeStray,
    /// A leaf that Linux misreads, although nothing in it is damaged.
    NodeMisread,
    /// A bucket that is reached as a btree node twice: a cycle, or two parents.
    NodeTwice,
    /// A child's key that names nothing that can be a node.
    ChildKey,
    /// A child whose bucket has been given to something else since.
    ChildStale,
    /// Children that do not cover their parent's range.
    ChildRange,
    /// A key outside of the range of its node.
    KeyRange,
    /// A key that is longer than the position of its end.
    KeyStart,
    /// A pointer to another device than the set's.
    PointerDevice,
    /// A pointer outside of the device's buckets.
    PointerOutside,
    /// An extent that runs from one bucket into the next.
    PointerCrosses,
    /// An extent that is not of whole blocks.
    KeyUnaligned,
    /// A key of a volume that does not exist.
    KeyVolume,
    /// A key beyond the end of its volume, or before its data.
    KeyBeyond,
    /// A clean key of a volume that has no backing device: what it names may be evicted.
    FlashClean,
    /// A pointer whose generation its bucket has not reached.
    GenAhead,
    /// A pointer so old that its generation may come round again.
    GenBehind,
    /// A bucket that serves two structures of the set.
    BucketTwice,
    /// Data in a bucket of the set's own structures.
    DataInMeta,
    /// Two keys that name the same sectors of the cache device.
    DataOverlap,
    /// More data in a bucket than fit.
    BucketOverfull,
    /// A backing device of another set.
    BackingElsewhere,
    /// A backing device that has dirty data in the set, which does not know it.
    BackingUnknown,
    /// The same backing device twice.
    BackingTwice,
    /// A backing device that says it lacks nothing, while the set has dirty data of it.
    StateNotDirty,
    /// A backing device that was written without its set, which has dirty data of it.
    StateStale,
    /// The set's block is larger than the backing device's.
    BlockSize,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 63] = [
        Kind::SuperMagic,
        Kind::SuperOffset,
        Kind::SuperChecksum,
        Kind::SuperVersion,
        Kind::SuperUuid,
        Kind::SuperGeometry,
        Kind::SuperJournal,
        Kind::SuperMode,
        Kind::DeviceTooSmall,
        Kind::NotStarted,
        Kind::Unreadable,
        Kind::JournalEmpty,
        Kind::JournalGap,
        Kind::JournalBrim,
        Kind::JournalTwice,
        Kind::JournalEntry,
        Kind::JournalKey,
        Kind::RootKey,
        Kind::RootLevel,
        Kind::PrioPlace,
        Kind::PrioCycle,
        Kind::PrioMagic,
        Kind::PrioChecksum,
        Kind::PrioSeq,
        Kind::UuidPlace,
        Kind::UuidTwice,
        Kind::UuidEntry,
        Kind::NodeBlank,
        Kind::NodeMagic,
        Kind::NodeVersion,
        Kind::NodeLength,
        Kind::NodeChecksum,
        Kind::NodeEmptySet,
        Kind::NodeKey,
        Kind::NodeOrder,
        Kind::NodeOverlap,
        Kind::NodeStray,
        Kind::NodeMisread,
        Kind::NodeTwice,
        Kind::ChildKey,
        Kind::ChildStale,
        Kind::ChildRange,
        Kind::KeyRange,
        Kind::KeyStart,
        Kind::PointerDevice,
        Kind::PointerOutside,
        Kind::PointerCrosses,
        Kind::KeyUnaligned,
        Kind::KeyVolume,
        Kind::KeyBeyond,
        Kind::FlashClean,
        Kind::GenAhead,
        Kind::GenBehind,
        Kind::BucketTwice,
        Kind::DataInMeta,
        Kind::DataOverlap,
        Kind::BucketOverfull,
        Kind::BackingElsewhere,
        Kind::BackingUnknown,
        Kind::BackingTwice,
        Kind::StateNotDirty,
        Kind::StateStale,
        Kind::BlockSize,
    ];

    /// Its name as reports have it.
    pub fn name(self) -> String {
        let mut name = String::new();
        for (i, c) in format!("{self:?}").chars().enumerate() {
            if c.is_ascii_uppercase() && i > 0 {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}

/// Where something is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Place {
    /// The device's name.
    pub device: String,
    /// The bucket, on a cache device.
    pub bucket: Option<u64>,
    /// Bytes from the start of the device.
    pub byte: Option<u64>,
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// In words.
    pub text: String,
}

/// What the set holds of one volume.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct VolumeSum {
    /// Its index in the uuid table.
    pub inode: u32,
    /// Its uuid; the one of its backing device.
    pub uuid: String,
    /// Its name in the table.
    pub label: String,
    /// `backing`, `flash`, or `gone`.
    pub kind: &'static str,
    /// The backing device that was given, if it was.
    pub backing: Option<String>,
    /// Extents that are cached.
    pub extents: u64,
    /// Bytes of them.
    pub cached_bytes: u64,
    /// Bytes that the backing device lacks.
    pub dirty_bytes: u64,
}

/// How many buckets are of each kind.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct BucketSum {
    /// All.
    pub total: u64,
    /// The set's own structures.
    pub metadata: u64,
    /// With dirty data.
    pub dirty: u64,
    /// With data, none of them dirty.
    pub clean: u64,
    /// With nothing that counts.
    pub free: u64,
}

/// What was seen on the way.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Summary {
    /// The set's uuid.
    pub set: String,
    /// The number of the newest journal entry.
    pub journal_newest: u64,
    /// Entries that a start replays.
    pub journal_entries: u64,
    /// Keys in them.
    pub journal_keys: u64,
    /// Levels of the tree above its leaves.
    pub depth: u16,
    /// Btree nodes.
    pub nodes: u64,
    /// Extents that count.
    pub extents: u64,
    /// Extents whose buckets have been reused: they mean nothing.
    pub stale_extents: u64,
    /// Of those, extents that say the backing device lacks them. Linux leaves such when it crashes,
    /// for it writes extents back without a word in the journal; this engine never does.
    pub stale_dirty_extents: u64,
    /// Buckets.
    pub buckets: BucketSum,
    /// What is known of volumes.
    pub volumes: Vec<VolumeSum>,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub clean: bool,
    /// What is wrong, the first [`FINDINGS_MAX`] of each kind.
    pub findings: Vec<Finding>,
    /// How many findings of each kind there are.
    pub counts: BTreeMap<Kind, u64>,
    /// What is worth knowing but not wrong.
    pub notes: Vec<String>,
    /// What was seen.
    pub summary: Summary,
}

impl Report {
    /// Whether something could not be read, so that the check is not complete.
    pub fn is_incomplete(&self) -> bool {
        self.findings.iter().any(|f| f.kind == Kind::Unreadable)
    }

    /// Whether there is a finding of that kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.findings.iter().any(|f| f.kind == kind)
    }

    pub(super) fn add(&mut self, kind: Kind, place: Place, text: String) {
        if self.keeps(kind) {
            self.findings.push(Finding { kind, place, text });
        }
        *self.counts.entry(kind).or_default() += 1;
    }

    /// Whether one more finding of that kind is kept, so that it is worth looking for its place.
    pub(super) fn keeps(&self, kind: Kind) -> bool {
        self.counts.get(&kind).is_none_or(|&n| n < FINDINGS_MAX)
    }

    pub(super) fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_json_has() {
        for kind in [Kind::SuperMagic, Kind::NodeEmptySet, Kind::BlockSize] {
            assert_eq!(serde_json::json!(kind), kind.name());
        }
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let mut report = Report::default();
        for _ in 0..FINDINGS_MAX + 3 {
            report.add(Kind::NodeKey, Place::default(), String::new());
        }
        report.add(Kind::NodeOrder, Place::default(), String::new());
        assert_eq!(report.findings.len() as u64, FINDINGS_MAX + 1);
        assert_eq!(report.counts[&Kind::NodeKey], FINDINGS_MAX + 3);
        assert!(serde_json::json!(report)["counts"]["node_order"] == 1);
    }
}
