//! CRC-32C (Castagnoli): by hardware with the feature `std`, by table without it.

/// Continues the CRC-32C `crc` of earlier bytes over `data`; start with 0.
#[must_use]
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    #[cfg(feature = "std")]
    {
        ::crc32c::crc32c_append(crc, data)
    }
    #[cfg(not(feature = "std"))]
    {
        table_crc32c_append(crc, data)
    }
}

/// The reflected polynomial 0x1EDC6F41. Source: RFC 3720, appendix B.4.
#[cfg(any(test, not(feature = "std")))]
const POLYNOMIAL: u32 = 0x82F6_3B78;

#[cfg(any(test, not(feature = "std")))]
const TABLE: [u32; 256] = {
    let mut table = [0_u32; 256];
    let mut byte = 0_u32;
    let mut slot = 0;
    while slot < 256 {
        let mut crc = byte;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ POLYNOMIAL
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[slot] = crc;
        slot += 1;
        byte += 1;
    }
    table
};

#[cfg(any(test, not(feature = "std")))]
fn table_crc32c_append(crc: u32, data: &[u8]) -> u32 {
    let mut crc = !crc;
    for &byte in data {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ TABLE[usize::from(low ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer_of_rfc_3720() {
        assert_eq!(crc32c_append(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c_append(0, b"123456789"), 0xE306_9283);
    }

    #[test]
    fn table_equals_the_hardware_form_at_every_length_and_split() {
        let data: Vec<u8> = (0..300_u32)
            .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
            .collect();
        for len in 0..data.len() {
            let whole = table_crc32c_append(0, &data[..len]);
            assert_eq!(whole, crc32c_append(0, &data[..len]));
            let (head, tail) = data[..len].split_at(len / 3);
            assert_eq!(
                whole,
                table_crc32c_append(table_crc32c_append(0, head), tail)
            );
        }
    }
}
