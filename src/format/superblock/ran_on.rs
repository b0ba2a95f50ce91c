//! What a device last ran on: the size and the kind of the bdev that carried its superblock.
//!
//! The note stands in the superblock's padding, inside its checksum. Kernels set named fields of the
//! block that they read and write the rest back as it was, so the note survives them; a superblock
//! that this engine has not written yet bears zeros there, which means unknown. The note tells the
//! real device from a bdev below it that shows the same superblock: a leg of an array, or the base
//! of a split.

use super::{WORDS, u64_at};

/// Marks the note as one: the words behind it mean something.
const TAG: u64 = u64::from_le_bytes(*b"spdkbdev");
/// The word of the tag; the two of the kind and the one of the size follow.
const AT_TAG: usize = 3;
/// Bytes kept of a kind's name.
const KIND_BYTES: usize = 16;

/// Size and kind of a bdev.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RanOn {
    /// The name of the bdev module; empty when unknown. Names longer than 16 bytes are cut.
    pub kind: String,
    /// Its size in sectors.
    pub size_sectors: u64,
}

impl RanOn {
    /// The note about a bdev of this kind and size.
    pub fn new(kind: &str, size_sectors: u64) -> RanOn {
        let cut = kind.len().min(KIND_BYTES);
        let cut = (0..=cut).rev().find(|&at| kind.is_char_boundary(at));
        RanOn {
            kind: kind[..cut.unwrap_or(0)].to_string(),
            size_sectors,
        }
    }

    /// Reads the note; `None` where there is none.
    pub(super) fn decode(words: &[u64; WORDS]) -> Option<RanOn> {
        if words[AT_TAG] != TAG {
            return None;
        }
        let mut kind = [0; KIND_BYTES];
        kind[..8].copy_from_slice(&words[AT_TAG + 1].to_le_bytes());
        kind[8..].copy_from_slice(&words[AT_TAG + 2].to_le_bytes());
        let end = kind.iter().position(|&b| b == 0).unwrap_or(KIND_BYTES);
        Some(RanOn {
            kind: String::from_utf8_lossy(&kind[..end]).into_owned(),
            size_sectors: words[AT_TAG + 3],
        })
    }

    /// Writes the note.
    pub(super) fn encode(&self, words: &mut [u64; WORDS]) {
        let mut kind = [0; KIND_BYTES];
        let bytes = self.kind.as_bytes();
        let cut = bytes.len().min(KIND_BYTES);
        kind[..cut].copy_from_slice(&bytes[..cut]);
        words[AT_TAG] = TAG;
        words[AT_TAG + 1] = u64_at(&kind, 0);
        words[AT_TAG + 2] = u64_at(&kind, 8);
        words[AT_TAG + 3] = self.size_sectors;
    }

    /// Whether a bdev of kind `kind` and `size_sectors` may be the one that the note is about: not
    /// smaller, and of the same kind as far as both are known.
    pub fn suits(&self, kind: &str, size_sectors: u64) -> bool {
        let now = RanOn::new(kind, size_sectors);
        let same_kind = self.kind.is_empty() || now.kind.is_empty() || self.kind == now.kind;
        same_kind && size_sectors >= self.size_sectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeros_and_foreign_words_are_no_note() {
        assert_eq!(RanOn::decode(&[0; WORDS]), None);
        assert_eq!(RanOn::decode(&[u64::MAX; WORDS]), None);
    }

    #[test]
    fn feature_words_stay_as_they_are() {
        let mut words = [7; WORDS];
        RanOn::new("raid", 9).encode(&mut words);
        assert_eq!((words[..AT_TAG].to_vec(), words[7]), (vec![7; 3], 7));
    }

    #[test]
    fn a_smaller_bdev_or_one_of_another_kind_does_not_suit() {
        let note = RanOn::new("raid", 100);
        assert!(note.suits("raid", 100) && note.suits("raid", 101) && note.suits("", 100));
        assert!(!note.suits("raid", 99) && !note.suits("aio", 100) && !note.suits("aio", 200));
        assert!(RanOn::new("", 100).suits("aio", 100));
        let long = "a_module_with_a_long_name";
        assert!(RanOn::new(long, 1).suits(long, 1));
    }

    proptest! {
        #[test]
        fn a_note_comes_back_as_it_went(kind in "\\PC{0,20}", size in any::<u64>()) {
            let note = RanOn::new(&kind.replace('\0', ""), size);
            let mut words = [0; WORDS];
            note.encode(&mut words);
            prop_assert_eq!(RanOn::decode(&words), Some(note));
        }

        #[test]
        fn no_words_panic(words in any::<[u64; WORDS]>()) {
            let _ = RanOn::decode(&words);
        }
    }
}
