//! Which bit was flipped, by what it did to a checksum.
//!
//! A CRC is linear: a flipped bit changes it by a value that depends on the bit's place alone, and
//! in less than 2^31 bits no two places have the same, nor do any three together. So a checksum
//! that fails by such a value tells the bit; two flipped bits are never taken for one. Of other
//! damage so many in 2^32 look like a flipped bit as there are bits: whoever uses this looks at
//! what comes out too.

/// The polynomial of CRC-32C, lowest bit first.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// What eight zero bits make of each low byte of a checksum.
static STEPS: [u32; 256] = steps();
/// In more bytes than this no bit is looked for. The longer, the more other damage looks like a
/// flipped bit: of three bits that were flipped, one in some 60,000 here.
pub(crate) const MENDED_BYTES_MAX: usize = 4 << 10;

const fn steps() -> [u32; 256] {
    let mut steps = [0; 256];
    let (mut byte, mut of) = (0, 0);
    while byte < 256 {
        let mut left: u32 = of;
        let mut bit = 0;
        while bit < 8 {
            left = left >> 1 ^ if left & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        steps[byte] = left;
        byte += 1;
        of += 1;
    }
    steps
}

/// What a byte that follows makes of the difference between two checksums.
fn step(difference: u32) -> u32 {
    let [low, ..] = difference.to_le_bytes();
    STEPS[usize::from(low)] ^ difference >> 8
}

/// The byte, of `len`, and the bit in it, whose flip makes a `difference` to the checksum over them
/// and the `behind` bytes that follow.
pub(crate) fn find_flip(difference: u32, len: usize, behind: usize) -> Option<(usize, u8)> {
    if difference == 0 || len > MENDED_BYTES_MAX {
        return None;
    }
    let mut flips = [1, 2, 4, 8, 16, 32, 64, 128];
    for _ in 0..behind {
        flips = flips.map(step);
    }
    for byte in (0..len).rev() {
        flips = flips.map(step);
        if let Some(bit) = flips.iter().position(|flip| *flip == difference) {
            return Some((byte, u8::try_from(bit).expect("of eight")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_proto::crc32c_append;

    #[test]
    fn every_flipped_bit_is_found_and_no_two_are_taken_for_one() {
        for (len, behind) in [(1, 0), (60, 16), (700, 16), (4_000, 3)] {
            let mut bytes: Vec<u8> = (0..len + behind)
                .map(|at: usize| (at * 37 % 251).to_le_bytes()[0])
                .collect();
            let whole = crc32c_append(0, &bytes);
            for byte in (0..len).step_by(1 + len / 500) {
                for bit in 0..8 {
                    bytes[byte] ^= 1 << bit;
                    let found = find_flip(whole ^ crc32c_append(0, &bytes), len, behind);
                    assert_eq!(found, Some((byte, bit)));
                    let other = (byte * 7 + 3) % len;
                    bytes[other] ^= 1;
                    let found = find_flip(whole ^ crc32c_append(0, &bytes), len, behind);
                    let is_same = other == byte && bit == 0;
                    assert!(is_same || found.is_none() || other == byte, "{found:?}");
                    bytes[other] ^= 1;
                    bytes[byte] ^= 1 << bit;
                }
            }
        }
        assert_eq!(find_flip(0, 100, 16), None);
    }
}
