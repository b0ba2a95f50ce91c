//! A small seeded generator: sequence numbers of btree nodes, new uuids. Not for secrets.

use std::cell::Cell;

use crate::units::Uuid;

/// SplitMix64: every seed gives a different, full-period sequence.
pub struct Rng(Cell<u64>);

impl Rng {
    /// A generator that is a function of its seed.
    pub fn new(seed: u64) -> Rng {
        Rng(Cell::new(seed))
    }

    /// One of these.
    ///
    /// # Panics
    /// There is none.
    pub fn any<'a, T>(&self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Goes on as a generator of this seed would.
    pub fn reseed(&self, seed: u64) {
        self.0.set(seed);
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next 64 bits that are not all zero.
    pub fn nonzero(&self) -> u64 {
        loop {
            match self.next() {
                0 => {}
                n => return n,
            }
        }
    }

    /// A number below `n`, which is not 0.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    /// Puts values into any order.
    pub fn shuffle<T>(&self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            values.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// A random (version 4) UUID.
    pub fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_le_bytes());
        bytes[8..].copy_from_slice(&self.next().to_le_bytes());
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }
}
