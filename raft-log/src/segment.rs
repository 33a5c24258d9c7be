//! A segment file: its name, its header, its trailer. See FORMAT.md, "Segments".

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::crc32c_append;

use crate::record::Place;

/// The header and its copy, a sector each.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 1024;
/// What a disk loses as one.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Everything before the zeroes that fill the sector up to its checksum.
const HEADER_FIELDS_BYTES: usize = 48;
const HEADER_MAGIC: u64 = 0x3147_4553_464C_5446;
const TRAILER_MAGIC: u64 = 0x3144_4E45_464C_5446;
const VERSION: u32 = 1;
pub(crate) const TRAILER_BYTES: usize = 64;
const SUFFIX: &str = ".seg";
/// The highest number of a segment: room is left to count on from any.
pub(crate) const NUMBER_MAX: u64 = u64::MAX / 2;
pub(crate) const UNFINISHED_SUFFIX: &str = ".seg.new";

/// What a segment file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) lane: u16,
    /// Of the whole log: a segment of another one is told apart.
    pub(crate) identity: u64,
    pub(crate) number: u64,
    /// Never the same for two lives of a file.
    pub(crate) incarnation: u64,
    /// Of the whole file, which has it before it gets this header: one that is shorter was cut.
    pub(crate) len: u64,
    /// What lies behind the records may be anything of an earlier life, not only zeroes.
    pub(crate) is_recycled: bool,
    /// It is not one of those that the lane appends to in turn: it holds moved entries alone.
    pub(crate) is_apart: bool,
}

/// What the first bytes of a segment file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFound {
    Whole(SegmentHeader),
    /// The other copy is not whole, or says something else.
    Half(SegmentHeader),
    /// Neither the header nor its copy is whole.
    Unreadable,
    /// Whole, and written by a later version.
    Newer(u32),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(SEGMENT_HEADER_BYTES);
        for _ in 0..2 {
            let at = out.len();
            out.put_u64_le(HEADER_MAGIC);
            out.put_u32_le(VERSION);
            out.put_u16_le(self.lane);
            out.put_u16_le(u16::from(self.is_recycled) | u16::from(self.is_apart) << 1);
            out.put_u64_le(self.identity);
            out.put_u64_le(self.number);
            out.put_u64_le(self.incarnation);
            out.put_u64_le(self.len);
            out.put_bytes(0, SECTOR_BYTES - HEADER_FIELDS_BYTES - 4);
            let crc = crc32c_append(0, &out[at..]);
            out.put_u32_le(crc);
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> HeaderFound {
        let mut newer = None;
        let mut copies = bytes.chunks_exact(SECTOR_BYTES).map(|sector| {
            Self::decode_sector(sector).unwrap_or_else(|version| {
                newer = newer.max(Some(version));
                None
            })
        });
        let (first, second) = (copies.next().flatten(), copies.next().flatten());
        match (first, second) {
            (Some(first), Some(second)) if first == second => HeaderFound::Whole(first),
            (Some(header), _) | (None, Some(header)) => HeaderFound::Half(header),
            (None, None) => newer.map_or(HeaderFound::Unreadable, HeaderFound::Newer),
        }
    }

    /// The header in one sector; a later version's number if it is one.
    fn decode_sector(sector: &[u8]) -> Result<Option<Self>, u32> {
        let (covered, mut crc) = sector.split_at(SECTOR_BYTES - 4);
        let mut fields = covered;
        if crc.get_u32_le() != crc32c_append(0, covered) || fields.get_u64_le() != HEADER_MAGIC {
            return Ok(None);
        }
        let version = fields.get_u32_le();
        if version != VERSION {
            return Err(version);
        }
        let (lane, flags) = (fields.get_u16_le(), fields.get_u16_le());
        Ok(Some(Self {
            lane,
            is_recycled: flags & 1 != 0,
            is_apart: flags & 2 != 0,
            identity: fields.get_u64_le(),
            number: fields.get_u64_le(),
            incarnation: fields.get_u64_le(),
            len: fields.get_u64_le(),
        }))
    }
}

/// Where a sealed segment's footer lies: the last bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) footer_offset: u64,
    pub(crate) footer_lsn: u64,
}

impl Trailer {
    pub(crate) fn encode(&self, place: Place) -> Bytes {
        let mut out = BytesMut::with_capacity(TRAILER_BYTES);
        out.put_u64_le(TRAILER_MAGIC);
        out.put_u64_le(self.footer_offset);
        out.put_u64_le(self.footer_lsn);
        out.put_bytes(0, TRAILER_BYTES - 28);
        let crc = place.checksum(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8], place: Place) -> Option<Self> {
        let covered = bytes.get(..TRAILER_BYTES - 4)?;
        let mut crc = bytes.get(TRAILER_BYTES - 4..TRAILER_BYTES)?;
        let mut fields = covered;
        let is_whole =
            crc.get_u32_le() == place.checksum(covered) && fields.get_u64_le() == TRAILER_MAGIC;
        is_whole.then(|| Self {
            footer_offset: fields.get_u64_le(),
            footer_lsn: fields.get_u64_le(),
        })
    }
}

pub(crate) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    // No log ever gets so far.
    let is_number = (1..=NUMBER_MAX).contains(&number);
    (is_number && format!("{number:016x}") == digits).then_some(number)
}

/// A new life's incarnation, from everything that tells it from others.
pub(crate) fn incarnation(identity: u64, lane: u16, number: u64, before: u64) -> u64 {
    let mut mixed = identity ^ 0x9E37_79B9_7F4A_7C15;
    for word in [u64::from(lane), number, before] {
        // The finisher of SplitMix64.
        mixed = (mixed ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        lane: 2,
        identity: 5,
        number: 7,
        incarnation: 9,
        len: 65_536,
        is_recycled: true,
        is_apart: true,
    };

    #[test]
    fn either_copy_of_the_header_is_enough_and_both_are_needed_to_lose_it() {
        let bytes = HEADER.encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES);
        assert_eq!(SegmentHeader::decode(&bytes), HeaderFound::Whole(HEADER));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = SegmentHeader::decode(&flipped);
            assert_eq!(found, HeaderFound::Half(HEADER), "bit {bit}");
            flipped[700] ^= 0xFF;
            flipped[100] ^= 0xFF;
            let (first, second) = (bit / 8 < 512, bit / 8 >= 512);
            if first != second {
                assert_eq!(SegmentHeader::decode(&flipped), HeaderFound::Unreadable);
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_trailer_is_found() {
        let place = Place {
            incarnation: 3,
            offset: 65_472,
        };
        let trailer = Trailer {
            footer_offset: 4096,
            footer_lsn: 17,
        };
        let bytes = trailer.encode(place);
        assert_eq!(bytes.len(), TRAILER_BYTES);
        assert_eq!(Trailer::decode(&bytes, place), Some(trailer));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Trailer::decode(&flipped, place), None, "bit {bit}");
        }
    }

    #[test]
    fn names_are_numbers_and_nothing_else() {
        assert_eq!(segment_number("00000000000000ff.seg"), Some(255));
        for name in [
            "0000000000000000.seg",
            "ff.seg",
            "00000000000000FF.seg",
            "00000000000000ff.seg~",
            "+0000000000000ff.seg",
            "lost+found",
        ] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
