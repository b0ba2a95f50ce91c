//! CRC-64/WE, the checksum of every structure on disk.
//!
//! Polynomial 0x42F0E1EBA9EA3693, most significant bit first, started from all ones and inverted
//! at the end. The SIMD crate computes the reflected sibling (CRC-64/XZ): feeding it bytes whose
//! bits are reversed and reversing its result is the same function, exactly.

use crc64fast::Digest;

const POLYNOMIAL: u64 = 0x42F0_E1EB_A9EA_3693;

/// The state from which a plain checksum starts.
pub const START: u64 = !0;

/// Bytes that are bit-reversed at a time: they stay in the first-level cache, and no heap is needed.
const CHUNK: usize = 2048;

/// Aligned, so that the crate's quick way takes all of it: what is not in whole groups of 128 bytes
/// it does byte by byte.
#[repr(align(128))]
struct Chunk([u8; CHUNK]);

/// The CRC-64/WE of `data`.
pub fn crc64(data: &[u8]) -> u64 {
    let mut digest = Digest::new();
    feed(&mut digest, data);
    digest.sum64().reverse_bits()
}

/// The CRC-64/WE of data that come in parts, as [`crc64`] computes it of the whole.
pub struct Running(Digest);

impl Default for Running {
    fn default() -> Self {
        Running(Digest::new())
    }
}

impl Running {
    /// Adds the next part.
    pub fn add(&mut self, data: &[u8]) {
        feed(&mut self.0, data);
    }

    /// The checksum of what was added.
    pub fn sum(&self) -> u64 {
        self.0.sum64().reverse_bits()
    }

    /// The checksum of what was added with so many zeros behind it, which take no time of their own.
    pub fn sum_padded(&self, zeros: usize) -> u64 {
        padded(self.sum(), zeros)
    }
}

/// The checksum of data with so many zeros behind them, from the checksum of the data.
fn padded(sum: u64, zeros: usize) -> u64 {
    // A zero byte multiplies the register, as a polynomial, by x^8.
    let (mut register, mut factor, mut left) = (!sum, 1 << 8, zeros);
    while left > 0 {
        if left & 1 == 1 {
            register = multiply(register, factor);
        }
        factor = multiply(factor, factor);
        left >>= 1;
    }
    !register
}

/// The product of two polynomials, modulo that of the checksum; the highest power first.
fn multiply(a: u64, b: u64) -> u64 {
    let mut product = 0;
    for bit in (0..64).rev() {
        product = (product << 1) ^ (POLYNOMIAL * (product >> 63));
        product ^= b * (a >> bit & 1);
    }
    product
}

/// The CRC-64 of `data` with `start` in place of all ones; still inverted at the end.
pub fn crc64_from(start: u64, data: &[u8]) -> u64 {
    let Some((head, tail)) = data.split_first_chunk::<8>() else {
        return bitwise(start, data);
    };
    // The register is xored into the first eight bytes it meets, so another start is other bytes.
    let head = u64::from_be_bytes(*head) ^ start ^ START;
    let mut digest = Digest::new();
    feed(&mut digest, &head.to_be_bytes());
    feed(&mut digest, tail);
    digest.sum64().reverse_bits()
}

/// Gives `digest` the bytes of `data`, the bits of each in reverse.
fn feed(digest: &mut Digest, data: &[u8]) {
    let mut buffer = Chunk([0; CHUNK]);
    for chunk in data.chunks(CHUNK) {
        let reversed = &mut buffer.0[..chunk.len()];
        for (to, from) in reversed.iter_mut().zip(chunk) {
            *to = reverse_byte(*from);
        }
        digest.write(reversed);
    }
}

/// The bits of a byte in reverse, by three swaps that the compiler can do to many bytes at once.
fn reverse_byte(b: u8) -> u8 {
    let b = b.rotate_left(4);
    let b = ((b >> 2) & 0x33) | ((b & 0x33) << 2);
    ((b >> 1) & 0x55) | ((b & 0x55) << 1)
}

/// The definition, a bit at a time; for inputs of less than eight bytes.
fn bitwise(start: u64, data: &[u8]) -> u64 {
    let mut register = start;
    for byte in data {
        register ^= u64::from(*byte) << 56;
        for _ in 0..8 {
            let carry = register >> 63;
            register = (register << 1) ^ (POLYNOMIAL * carry);
        }
    }
    !register
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_published_check_value_holds() {
        assert_eq!(crc64(b"123456789"), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(bitwise(START, b"123456789"), 0x62EC_59E3_F1A4_F00A);
        assert_eq!(crc64(b""), 0);
    }

    #[test]
    fn chunk_edges_do_not_show() {
        let data: Vec<u8> = (0..3 * CHUNK + 9)
            .map(|i| (i * 7 + i / 251) as u8)
            .collect();
        for len in [
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            2 * CHUNK,
            2 * CHUNK + 8,
            data.len(),
        ] {
            assert_eq!(crc64(&data[..len]), bitwise(START, &data[..len]), "{len}");
            assert_eq!(
                crc64_from(5, &data[..len]),
                bitwise(5, &data[..len]),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn equals_the_definition(start: u64, data in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert_eq!(crc64(&data), bitwise(START, &data));
            prop_assert_eq!(crc64_from(START, &data), crc64(&data));
            prop_assert_eq!(crc64_from(start, &data), bitwise(start, &data));
        }

        #[test]
        fn zeros_behind_count_as_if_they_were_there(
            mut data in proptest::collection::vec(any::<u8>(), 0..600),
            zeros in 0usize..70_000,
        ) {
            let mut parts = Running::default();
            data.chunks(101).for_each(|part| parts.add(part));
            prop_assert_eq!(parts.sum(), crc64(&data));
            let padded = parts.sum_padded(zeros);
            data.resize(data.len() + zeros, 0);
            prop_assert_eq!(padded, crc64(&data));
        }
    }
}
