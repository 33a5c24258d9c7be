//! The fixed parts of a snapshot file: header and trailer. See `FORMAT.md`.

use bytes::{Buf, BufMut, BytesMut};
use raft_proto::crc32c_append;

use crate::manifest::{MANIFEST_BYTES_MAX, SnapshotFileMeta};

/// The one version there is.
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_BYTES: u64 = 64;
pub(crate) const TRAILER_BYTES: u64 = 24;
/// The data file's name in its directory.
pub(crate) const DATA_NAME: &str = "data";
/// The flag's name beside it.
pub(crate) const FLAG_NAME: &str = "flag";

/// "FTSNAP01", little-endian.
const HEADER_MAGIC: u64 = 0x3130_5041_4e53_5446;
/// "FTSNEND1", little-endian.
const TRAILER_MAGIC: u64 = 0x3144_4e45_4e53_5446;

const HEADER_LEN: usize = 64;
const TRAILER_LEN: usize = 24;
const _: () = assert!(HEADER_LEN as u64 == HEADER_BYTES && TRAILER_LEN as u64 == TRAILER_BYTES);

/// What a file's first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A header of this version that names this snapshot: group, epoch, term, index.
    Sound([u64; 4]),
    /// A sound header of a version that is not known here.
    OtherVersion(u32),
    /// No header.
    Damaged,
}

fn names(meta: &SnapshotFileMeta) -> [u64; 4] {
    let id = meta.id;
    [meta.group.get(), meta.epoch, id.term.get(), id.index.get()]
}

pub(crate) fn encode_header(meta: &SnapshotFileMeta) -> [u8; HEADER_LEN] {
    let mut out = BytesMut::with_capacity(HEADER_LEN);
    out.put_u64_le(HEADER_MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(0);
    names(meta)
        .into_iter()
        .for_each(|name| out.put_u64_le(name));
    out.put_bytes(0, HEADER_LEN - 4 - out.len());
    out.put_u32_le(crc32c_append(0, &out));
    out[..].try_into().expect("it was filled to its length")
}

pub(crate) fn decode_header(bytes: &[u8]) -> Header {
    if bytes.len() != HEADER_LEN {
        return Header::Damaged;
    }
    let (mut fields, mut crc) = bytes.split_at(HEADER_LEN - 4);
    if crc32c_append(0, fields) != crc.get_u32_le() || fields.get_u64_le() != HEADER_MAGIC {
        return Header::Damaged;
    }
    let version = fields.get_u32_le();
    if version != VERSION {
        return Header::OtherVersion(version);
    }
    fields.advance(4);
    Header::Sound(std::array::from_fn(|_| fields.get_u64_le()))
}

/// Whether a header's names are those of `meta`.
pub(crate) fn agrees(header: [u64; 4], meta: &SnapshotFileMeta) -> bool {
    header == names(meta)
}

pub(crate) fn encode_trailer(manifest: &[u8]) -> [u8; TRAILER_LEN] {
    let mut out = BytesMut::with_capacity(TRAILER_LEN);
    out.put_u64_le(u64::try_from(manifest.len()).expect("a manifest is bounded"));
    out.put_u32_le(crc32c_append(0, manifest));
    out.put_u32_le(crc32c_append(0, &out));
    out.put_u64_le(TRAILER_MAGIC);
    out[..].try_into().expect("it was filled to its length")
}

/// Length and CRC-32C of the manifest, if the trailer is sound and the length within bounds.
pub(crate) fn decode_trailer(mut bytes: &[u8]) -> Option<(usize, u32)> {
    if bytes.len() != TRAILER_LEN {
        return None;
    }
    let own_crc = crc32c_append(0, &bytes[..12]);
    let len = bytes.get_u64_le();
    let crc = bytes.get_u32_le();
    if bytes.get_u32_le() != own_crc || bytes.get_u64_le() != TRAILER_MAGIC {
        return None;
    }
    let len = usize::try_from(len).ok()?;
    (len <= MANIFEST_BYTES_MAX).then_some((len, crc))
}
