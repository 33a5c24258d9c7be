//! The record: header, table, data. See FORMAT.md, "Records".

use bytes::Buf;
use raft_proto::crc32c_append;

use crate::flip::find_flip;
use crate::owners::{OWNERS_BYTES, Owners};

pub(crate) const RECORD_HEADER_BYTES: usize = 64;
/// Records begin at multiples of this.
pub(crate) const RECORD_ALIGN: usize = 64;
/// Far more records than any lane writes: a next one always has a number.
const LSN_MAX: u64 = u64::MAX / 2;
/// The largest table or data a record may claim, whatever the options: nothing larger is believed.
pub(crate) const RECORD_BYTES_HARD_MAX: usize = 256 << 20;
pub(crate) const RECORD_MAGIC: u32 = 0x314C_5246;
pub(crate) const VERSION: u8 = 3;
/// No segment lies apart.
const VERSION_WITHOUT_APART: u8 = 2;
/// Its headers do not say whose records they are.
const VERSION_WITHOUT_OWNERS: u8 = 1;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Submissions.
    Data = 1,
    /// All replicas' state, at the start of a segment.
    Checkpoint = 2,
    /// Little but a watermark: at the end of a burst, of an open, and of a clean close.
    Watermark = 3,
    /// The runs of each replica, at the end of a sealed segment.
    Footer = 4,
}

/// What a place adds to the bytes under a checksum.
pub(crate) const PLACE_BYTES: usize = 16;

/// Where bytes belong: mixed into each of their checksums, so that they validate nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) incarnation: u64,
    pub(crate) offset: u64,
}

impl Place {
    pub(crate) fn seal(self, crc: u32) -> u32 {
        let mut place = [0; PLACE_BYTES];
        place[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        place[8..].copy_from_slice(&self.offset.to_le_bytes());
        crc32c_append(crc, &place)
    }

    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        self.seal(crc32c_append(0, bytes))
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) lane: u16,
    pub(crate) lsn: u64,
    pub(crate) synced_lsn: u64,
    pub(crate) table_len: usize,
    /// Without the padding.
    pub(crate) data_len: usize,
    /// Of the table, sealed with the place.
    pub(crate) table_crc: u32,
    /// Of the data and its padding, sealed with the place.
    pub(crate) data_crc: u32,
    /// `None` in records of version 1: anybody may be in them.
    pub(crate) owners: Option<Owners>,
}

/// Why bytes are no header of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// Not a header of this place.
    Invalid,
    /// Whole, and of a version or kind that this program does not know.
    Newer { version: u8, kind: u8 },
}

impl RecordHeader {
    /// The bytes the record takes in its segment.
    pub(crate) const fn total(&self) -> usize {
        (RECORD_HEADER_BYTES + self.table_len + self.data_len).next_multiple_of(RECORD_ALIGN)
    }

    pub(crate) fn encode(&self, place: Place) -> [u8; RECORD_HEADER_BYTES] {
        let len = |len: usize| u32::try_from(len).expect("a record is bounded far below 4 GiB");
        let mut out = [0; RECORD_HEADER_BYTES];
        out[0..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        out[4] = match self.owners {
            Some(_) => VERSION,
            None => VERSION_WITHOUT_OWNERS,
        };
        out[5] = self.kind as u8;
        out[6..8].copy_from_slice(&self.lane.to_le_bytes());
        out[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced_lsn.to_le_bytes());
        out[24..28].copy_from_slice(&len(self.table_len).to_le_bytes());
        out[28..32].copy_from_slice(&len(self.data_len).to_le_bytes());
        out[32..36].copy_from_slice(&self.table_crc.to_le_bytes());
        out[36..40].copy_from_slice(&self.data_crc.to_le_bytes());
        if let Some(owners) = &self.owners {
            out[40..60].copy_from_slice(&owners.encode());
        }
        let crc = place.checksum(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Whether the bytes, wherever they belong, look like a header that says that the record `lsn`,
    /// which is another, was durable.
    pub(crate) fn claims_to_prove(bytes: &[u8], lsn: u64) -> bool {
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        bytes.starts_with(&RECORD_MAGIC.to_le_bytes())
            && number(8).is_some_and(|own| own > lsn)
            && number(16).is_some_and(|synced| synced >= lsn)
    }

    /// The header of which one bit was flipped.
    pub(crate) fn mend(bytes: &[u8], place: Place) -> Option<Self> {
        const COVERED: usize = RECORD_HEADER_BYTES - 4;
        let mut mended: [u8; RECORD_HEADER_BYTES] =
            bytes.get(..RECORD_HEADER_BYTES)?.try_into().ok()?;
        let mut fields = bytes;
        let magic_bits = (fields.get_u32_le() ^ RECORD_MAGIC).count_ones();
        if magic_bits > 1 {
            return None;
        }
        let mut crc = &bytes[COVERED..];
        let difference = crc.get_u32_le() ^ place.checksum(&bytes[..COVERED]);
        let (byte, bit) = match difference.count_ones() {
            // In the checksum itself.
            1 => {
                let bit = difference.trailing_zeros();
                (COVERED + usize::try_from(bit / 8).ok()?, bit % 8)
            }
            _ => find_flip(difference, COVERED, PLACE_BYTES).map(|(at, bit)| (at, bit.into()))?,
        };
        mended[byte] ^= 1 << bit;
        Self::decode(&mended, place).ok()
    }

    pub(crate) fn decode(bytes: &[u8], place: Place) -> Result<Self, NoHeader> {
        let all = bytes.get(..RECORD_HEADER_BYTES).ok_or(NoHeader::Invalid)?;
        let mut fields = all;
        if fields.get_u32_le() != RECORD_MAGIC {
            return Err(NoHeader::Invalid);
        }
        let (version, kind) = (fields.get_u8(), fields.get_u8());
        let (lane, lsn, synced_lsn) = (
            fields.get_u16_le(),
            fields.get_u64_le(),
            fields.get_u64_le(),
        );
        let (table_len, data_len) = (fields.get_u32_le(), fields.get_u32_le());
        let (table_crc, data_crc) = (fields.get_u32_le(), fields.get_u32_le());
        let mut owners = [0; OWNERS_BYTES];
        fields.copy_to_slice(&mut owners);
        if fields.get_u32_le() != place.checksum(&all[..60]) {
            return Err(NoHeader::Invalid);
        }
        let newer = NoHeader::Newer { version, kind };
        let kind = match kind {
            1 => RecordKind::Data,
            2 => RecordKind::Checkpoint,
            3 => RecordKind::Watermark,
            4 => RecordKind::Footer,
            _ => return Err(newer),
        };
        let owners = match version {
            VERSION | VERSION_WITHOUT_APART => Some(Owners::decode(&owners)),
            VERSION_WITHOUT_OWNERS if is_zero(&owners) => None,
            _ => return Err(newer),
        };
        let len = |len: u32| {
            let len = usize::try_from(len).ok()?;
            (len <= RECORD_BYTES_HARD_MAX).then_some(len)
        };
        let lens = len(table_len).zip(len(data_len));
        let (table_len, data_len) = lens.ok_or(NoHeader::Invalid)?;
        if lsn == 0 || lsn > LSN_MAX || synced_lsn >= lsn {
            return Err(NoHeader::Invalid);
        }
        Ok(Self {
            kind,
            lane,
            lsn,
            synced_lsn,
            table_len,
            data_len,
            table_crc,
            data_crc,
            owners,
        })
    }
}

/// The padding behind `len` bytes of a record.
pub(crate) fn padding(len: usize) -> &'static [u8] {
    static ZEROES: [u8; RECORD_ALIGN] = [0; RECORD_ALIGN];
    &ZEROES
        [..(RECORD_HEADER_BYTES + len).next_multiple_of(RECORD_ALIGN) - RECORD_HEADER_BYTES - len]
}

/// Whether there is nothing but zeroes.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; 256] = [0; 256];
    bytes
        .chunks(ZEROES.len())
        .all(|chunk| *chunk == ZEROES[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> RecordHeader {
        RecordHeader {
            kind: RecordKind::Data,
            lane: 3,
            lsn: 9,
            synced_lsn: 8,
            table_len: 100,
            data_len: 5_000,
            table_crc: 1,
            data_crc: 2,
            owners: Some(Owners::decode(&[0x5A; OWNERS_BYTES])),
        }
    }

    const PLACE: Place = Place {
        incarnation: 77,
        offset: 512,
    };

    #[test]
    fn headers_survive_the_round_trip_and_lie_in_their_place_alone() {
        let of_version_1 = RecordHeader {
            owners: None,
            ..header()
        };
        let bytes = of_version_1.encode(PLACE);
        assert_eq!(RecordHeader::decode(&bytes, PLACE), Ok(of_version_1));
        let bytes = header().encode(PLACE);
        assert_eq!(RecordHeader::decode(&bytes, PLACE), Ok(header()));
        for other in [
            Place {
                offset: 576,
                ..PLACE
            },
            Place {
                incarnation: 78,
                ..PLACE
            },
        ] {
            let found = RecordHeader::decode(&bytes, other);
            assert_eq!(found, Err(NoHeader::Invalid));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_found() {
        let bytes = header().encode(PLACE);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = RecordHeader::decode(&flipped, PLACE);
            assert_eq!(found, Err(NoHeader::Invalid), "bit {bit}");
        }
    }

    #[test]
    fn fault_12_lengths_out_of_bounds_are_invalid() {
        for len in [u32::MAX, u32::MAX / 2, 0x1000_0001] {
            let mut bytes = header().encode(PLACE);
            bytes[24..28].copy_from_slice(&len.to_le_bytes());
            let crc = PLACE.checksum(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            let found = RecordHeader::decode(&bytes, PLACE);
            assert_eq!(found, Err(NoHeader::Invalid));
        }
    }

    #[test]
    fn fault_13_a_whole_header_of_a_later_version_is_told_apart() {
        // What the spare bytes of version 1 may be for, it does not know.
        for (at, value) in [(4, 4_u8), (5, 9), (4, 1)] {
            let mut bytes = header().encode(PLACE);
            bytes[at] = value;
            let crc = PLACE.checksum(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            let found = RecordHeader::decode(&bytes, PLACE);
            assert!(matches!(found, Err(NoHeader::Newer { .. })), "byte {at}");
        }
    }

    #[test]
    fn padding_fills_to_the_next_boundary() {
        for len in 0..300 {
            let all = RECORD_HEADER_BYTES + len + padding(len).len();
            assert_eq!(all % RECORD_ALIGN, 0);
            assert!(padding(len).len() < RECORD_ALIGN);
        }
    }
}
