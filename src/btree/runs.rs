//! What is known in memory of the runs that a node has on disk.
//!
//! The rule that these serve is that of [`crate::format::linux`]: the runs of a leaf, merged as Linux
//! merges them, must have room in the blocks that they occupy. It is kept run by run: no part of a new
//! run lies strictly inside of a key of an older one, because the run goes on to that key's end (see
//! [`append`](super::append)). Then each run adds to the merge no more than the keys that it brings,
//! and these have their room in its own blocks.
//!
//! With debug assertions the keys themselves are kept, and every appended run is held to the rule by
//! doing the merge.

use crate::format::bset::NodeImage;
use crate::format::key::{Geometry, Key};
#[cfg(debug_assertions)]
use crate::format::linux;

/// The runs of one node.
#[derive(Debug, Default)]
pub struct Runs {
    /// Blocks in use: the next run goes behind them.
    pub blocks: u32,
    /// Of a leaf: keys in its runs, those that mean nothing any more included.
    pub keys: u32,
    /// Of a leaf: sectors of the longest key in its runs that deletes. Such keys are in no map, so
    /// this is all that is known of where they are.
    pub longest_deletion: u32,
    #[cfg(debug_assertions)]
    sets: Vec<Vec<Key>>,
}

impl Runs {
    /// Those of a node that was read.
    pub fn loaded(image: &NodeImage) -> Runs {
        let mut runs = Runs::default();
        for set in &image.sets {
            runs.note(set);
        }
        runs.blocks = image.written_blocks;
        runs
    }

    /// The first run of a new node, in so many blocks.
    pub fn first(keys: &[Key], blocks: u32) -> Runs {
        let mut runs = Runs::default();
        runs.note(keys);
        runs.blocks = blocks;
        runs
    }

    /// A run was appended to a leaf, in so many blocks.
    ///
    /// # Panics
    /// With debug assertions, when Linux would not read the leaf as it is meant.
    pub fn append(&mut self, keys: &[Key], blocks: u32, geometry: &Geometry) {
        self.note(keys);
        self.blocks += blocks;
        #[cfg(debug_assertions)]
        if !linux::is_right(&self.sets, geometry) {
            let fit = linux::fit(&self.sets, geometry);
            panic!("a run was appended to a leaf that Linux then misreads: {fit:?}");
        }
        #[cfg(not(debug_assertions))]
        let _ = geometry;
    }

    fn note(&mut self, keys: &[Key]) {
        self.keys += keys.len() as u32;
        let deletions = keys.iter().filter(|key| key.data().is_none());
        let longest = deletions.map(|key| key.size_sectors).max();
        self.longest_deletion = self.longest_deletion.max(longest.unwrap_or(0));
        #[cfg(debug_assertions)]
        self.sets.push(keys.to_vec());
    }
}
