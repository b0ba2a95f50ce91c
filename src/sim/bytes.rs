//! What a simulated device holds, in pages that copies share until one of them is written.
//!
//! A device is copied at every look at what it would recover to, and little of a copy changes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a page.
const PAGE_BYTES: usize = 16 << 10;

type Page = [u8; PAGE_BYTES];

/// Bytes that are read by range: those of a device, or of an image of one.
pub trait Image {
    /// How many there are.
    fn size_bytes(&self) -> usize;

    /// Those of a range, or nothing where it is not inside.
    fn get(&self, range: Range<usize>) -> Option<Cow<'_, [u8]>>;
}

impl Image for Vec<u8> {
    fn size_bytes(&self) -> usize {
        self.len()
    }

    fn get(&self, range: Range<usize>) -> Option<Cow<'_, [u8]>> {
        self[..].get(range).map(Cow::Borrowed)
    }
}

/// Bytes in pages.
#[derive(Clone)]
pub struct Bytes {
    pages: Vec<Arc<Page>>,
    size_bytes: usize,
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let mut all = Bytes::zeros(bytes.len());
        for (nr, piece) in bytes.chunks(PAGE_BYTES).enumerate() {
            // Zeros stay one page.
            if piece.iter().any(|&byte| byte != 0) {
                all.write(nr * PAGE_BYTES, piece);
            }
        }
        all
    }
}

impl Image for Bytes {
    fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    fn get(&self, range: Range<usize>) -> Option<Cow<'_, [u8]>> {
        if range.start > range.end || range.end > self.size_bytes {
            return None;
        }
        let page = range.start / PAGE_BYTES;
        let skip = page * PAGE_BYTES;
        if range.end <= skip + PAGE_BYTES && page < self.pages.len() {
            return Some(Cow::Borrowed(
                &self.pages[page][range.start - skip..range.end - skip],
            ));
        }
        let mut bytes = Vec::with_capacity(range.len());
        for (page, within) in pieces(range) {
            bytes.extend_from_slice(&self.pages[page][within]);
        }
        Some(Cow::Owned(bytes))
    }
}

impl Bytes {
    /// So many zeros.
    pub fn zeros(size_bytes: usize) -> Bytes {
        let page = Arc::new([0; PAGE_BYTES]);
        Bytes {
            pages: vec![page; size_bytes.div_ceil(PAGE_BYTES)],
            size_bytes,
        }
    }

    /// Those of a range.
    ///
    /// # Panics
    /// It is not inside.
    pub fn read(&self, range: Range<usize>) -> Cow<'_, [u8]> {
        self.get(range).expect("a range inside")
    }

    /// Writes from a byte on.
    ///
    /// # Panics
    /// It would go beyond the end.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let range = at..at + bytes.len();
        assert!(range.end <= self.size_bytes, "a write beyond the end");
        let mut rest = bytes;
        for (page, within) in pieces(range) {
            let (piece, left) = rest.split_at(within.len());
            Arc::make_mut(&mut self.pages[page])[within].copy_from_slice(piece);
            rest = left;
        }
    }

    /// There are so many from now on; new ones are zeros.
    pub fn resize(&mut self, size_bytes: usize) {
        let kept = self.size_bytes.min(size_bytes);
        self.pages.truncate(kept.div_ceil(PAGE_BYTES));
        let within = kept % PAGE_BYTES;
        if let Some(last) = self.pages.last_mut().filter(|_| within > 0) {
            Arc::make_mut(last)[within..].fill(0);
        }
        let zeros = Arc::new([0; PAGE_BYTES]);
        self.pages.resize(size_bytes.div_ceil(PAGE_BYTES), zeros);
        self.size_bytes = size_bytes;
    }
}

/// The pages of a range, each with the part of it.
fn pieces(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
    pages.map(move |page| {
        let skip = page * PAGE_BYTES;
        let from = range.start.max(skip) - skip;
        (page, from..(range.end - skip).min(PAGE_BYTES))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn copies_and_sizes_are_those_of_plain_bytes() {
        let rng = Rng::new(7);
        let mut plain = vec![0; 100_000];
        let mut bytes = Bytes::from(plain.clone());
        for round in 0..3000u64 {
            let copy = (plain.clone(), bytes.clone());
            if rng.below(20) == 0 {
                let size = rng.below(150_000) as usize;
                plain.resize(size, 0);
                bytes.resize(size);
            }
            let from = rng.below(plain.len() as u64 + 1) as usize;
            let to = from + rng.below((plain.len() - from) as u64 + 1) as usize;
            assert_eq!(*bytes.read(from..to), plain[from..to]);
            plain[from..to].fill(round as u8);
            bytes.write(from, &plain[from..to]);
            assert_eq!(bytes.read(0..plain.len()), plain);
            assert!(bytes.get(from..plain.len() + 1).is_none());
            assert_eq!(copy.1.read(0..copy.0.len()), copy.0, "a copy stays");
        }
        assert_eq!(Bytes::from(plain.clone()).read(0..plain.len()), plain);
    }
}
