//! The rules that Linux's reader relies on, and how a refusal is told.

use std::fmt;

/// A rule of `docs/kernel-rules.md`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// The superblock of the cache device.
    Super,
    /// Enough buckets, and nodes of two blocks.
    Sizes,
    /// There is a journal entry.
    JournalEmpty,
    /// What looks like an entry is one.
    JournalEntry,
    /// No entry is missing from the oldest needed to the newest.
    JournalGap,
    /// No more entries are needed than Linux can pin.
    JournalPins,
    /// The bucket behind the newest entry's holds nothing that is needed.
    JournalRoom,
    /// Keys in the journal have a size, and are extents.
    JournalKey,
    /// The root's key.
    Root,
    /// The uuid table's key.
    Uuids,
    /// The chain of priorities.
    Prios,
    /// The runs of a node: headers, checksums, none empty or lost.
    Node,
    /// Keys within a run are in order and do not overlap.
    NodeOrder,
    /// The runs of a node, merged, have room in the blocks that they occupy.
    NodeRoom,
    /// A node has room in the buffer that Linux reads it into.
    NodeBuffer,
    /// Keys of a node are extents, or children.
    NodeKey,
    /// Keys lie in the range of their node.
    NodeRange,
    /// The children of a node cover its range, each part once.
    Children,
    /// A bucket has one use.
    BucketUse,
    /// No key is more than 96 generations behind its bucket.
    GenBehind,
    /// There are buckets without live data for the priorities.
    Free,
    /// The superblock of a backing device, and how it stands to the set.
    Backing,
}

impl Rule {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::Super => "superblock",
            Rule::Sizes => "sizes",
            Rule::JournalEmpty => "journal_empty",
            Rule::JournalEntry => "journal_entry",
            Rule::JournalGap => "journal_gap",
            Rule::JournalPins => "journal_pins",
            Rule::JournalRoom => "journal_room",
            Rule::JournalKey => "journal_key",
            Rule::Root => "root",
            Rule::Uuids => "uuid_table",
            Rule::Prios => "priorities",
            Rule::Node => "node",
            Rule::NodeOrder => "node_order",
            Rule::NodeRoom => "node_room",
            Rule::NodeBuffer => "node_buffer",
            Rule::NodeKey => "node_key",
            Rule::NodeRange => "node_range",
            Rule::Children => "children",
            Rule::BucketUse => "bucket_use",
            Rule::GenBehind => "gen_behind",
            Rule::Free => "free_buckets",
            Rule::Backing => "backing",
        }
    }
}

/// Why Linux would refuse a set, stop the machine, hang, or misread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The rule that does not hold.
    pub rule: Rule,
    /// Where, and in what way.
    pub what: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Linux's rule {} does not hold: {}",
            self.rule.name(),
            self.what
        )
    }
}

impl std::error::Error for Refusal {}

/// A refusal.
pub(super) fn refuse(rule: Rule, what: impl fmt::Display) -> Refusal {
    let what = what.to_string();
    Refusal { rule, what }
}
