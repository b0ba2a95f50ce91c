//! Which cache or backing device lies on the volume of a backing device.
//!
//! A host may write whatever it likes into a volume, a superblock too. Only what an operator has
//! once made a device of bcache's in there is brought up again by itself, and is known by this note:
//! the first half of the UUID of the device inside. It stands in the last word of the superblock's
//! padding, which kernels keep.

use super::BackingSuper;
use crate::units::Uuid;

/// The word of the note.
const AT_CARRIES: usize = 7;

/// The note about a device; never 0, which means that there is none.
pub fn note_of(uuid: Uuid) -> u64 {
    let half = uuid.0.iter().take(8).rev();
    half.fold(0, |note, &byte| note << 8 | u64::from(byte))
        .max(1)
}

impl BackingSuper {
    /// The note about what lies on the volume; 0 for none.
    pub fn carries(&self) -> u64 {
        self.words[AT_CARRIES]
    }

    /// Changes that.
    pub fn set_carries(&mut self, note: u64) {
        self.words[AT_CARRIES] = note;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Sector;

    #[test]
    fn a_note_is_kept_with_the_superblock() {
        let mut sb = BackingSuper::new(Uuid([3; 16]), 1, Sector(16)).expect("right sizes");
        assert_eq!(sb.carries(), 0);
        let note = note_of(Uuid([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]));
        assert_eq!(note.to_le_bytes(), [0, 1, 2, 3, 4, 5, 6, 7]);
        sb.set_carries(note);
        match crate::format::superblock::parse(&sb.encode()) {
            Ok(crate::format::superblock::Super::Backing(read)) => assert_eq!(read.carries(), note),
            other => panic!("{other:?}"),
        }
        assert_eq!(note_of(Uuid([0; 16])), 1);
    }
}
