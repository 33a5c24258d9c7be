//! Reading what a medium may have lost: sector by sector where it refuses, so that what cannot be
//! read is damage of what lay there, and of nothing else.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{FileId, Vfs, VfsError};
use crate::segment::SECTOR_BYTES;

/// In place of what cannot be read: no checksum holds over it, and it is not free space either.
const UNREADABLE: u8 = 0xEE;
/// Sectors that fail in one read before the others of it count as unreadable without being tried:
/// each may take a device seconds.
const FAILURES_MAX: usize = 256;

/// Reads as [`Vfs::read_shared`] does, and goes on where the medium fails. Returns the sectors that
/// could not be read too, by their numbers in the file.
pub(crate) fn read_through(
    vfs: &dyn Vfs,
    file: FileId,
    offset: u64,
    len: usize,
) -> Result<(Bytes, Vec<u64>), VfsError> {
    match vfs.read_shared(file, offset, len) {
        Ok(bytes) => Ok((bytes, Vec::new())),
        Err(error) if error.is_of_medium() => {
            let end = vfs.len(file)?.min(offset.saturating_add(to_u64(len)));
            by_sector(vfs, file, offset..end)
        }
        Err(error) => Err(error),
    }
}

fn by_sector(
    vfs: &dyn Vfs,
    file: FileId,
    range: Range<u64>,
) -> Result<(Bytes, Vec<u64>), VfsError> {
    let sector_bytes = to_u64(SECTOR_BYTES);
    let mut bytes = BytesMut::new();
    let mut unreadable = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let sector = at / sector_bytes;
        let end = ((sector + 1) * sector_bytes).min(range.end);
        let len = usize::try_from(end - at).expect("a sector is small");
        let read = (unreadable.len() < FAILURES_MAX).then(|| vfs.read(file, at, len));
        match read {
            Some(Ok(part)) => bytes.extend_from_slice(&part),
            Some(Err(error)) if !error.is_of_medium() => return Err(error),
            _ => {
                unreadable.push(sector);
                bytes.resize(bytes.len() + len, UNREADABLE);
            }
        }
        at = end;
    }
    Ok((bytes.freeze(), unreadable))
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
