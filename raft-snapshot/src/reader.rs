//! A committed snapshot, read block by block, each checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::{FileId, Vfs};
use raft_proto::crc32c_append;

use crate::error::{Damage, SnapshotError};
use crate::layout::{
    self, DATA_NAME, HEADER_BYTES, Header, TRAILER_BYTES, VERSION, decode_header, decode_trailer,
};
use crate::manifest::{BlockEntry, Manifest};

/// Reads a snapshot block by block, each checked before it is handed out.
///
/// It holds the manifest in memory and reads one block at a time. Opened, it goes on reading even
/// if the snapshot is removed meanwhile.
#[derive(Debug)]
pub struct SnapshotReader {
    vfs: Arc<dyn Vfs>,
    file: FileId,
    path: PathBuf,
    manifest: Manifest,
    next: usize,
}

impl SnapshotReader {
    /// Opens the snapshot that lies in `dir`, the directory itself. Header, manifest and the
    /// file's length are checked now, blocks when they are read.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Missing`], [`SnapshotError::Damaged`], [`SnapshotError::Version`],
    /// [`SnapshotError::Io`].
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self, SnapshotError> {
        let path = dir.join(DATA_NAME);
        // A link, whoever planted it, is not a file of ours.
        let is_file = |entry: &raft_log::vfs::DirEntry| entry.name == DATA_NAME && entry.is_file;
        if !vfs.list(dir)?.iter().any(is_file) {
            return Err(SnapshotError::Missing {
                path: dir.to_owned(),
            });
        }
        let file = vfs.open(&path, false)?;
        match open_manifest(vfs.as_ref(), file, &path) {
            Ok(manifest) => Ok(Self {
                vfs,
                file,
                path,
                manifest,
                next: 0,
            }),
            Err(error) => {
                vfs.close(file);
                Err(error)
            }
        }
    }

    /// The table of contents.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next block, checked by length and CRC-32C; `None` after the last.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Damaged`]: use an older snapshot, or a peer's. [`SnapshotError::Io`].
    #[expect(clippy::should_implement_trait, reason = "it can fail")]
    pub fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let Some(block) = self.manifest.blocks.get(self.next) else {
            return Ok(None);
        };
        let bytes = self.vfs.read(self.file, block.offset, block.len_bytes())?;
        if bytes.len() != block.len_bytes() || crc32c_append(0, &bytes) != block.crc {
            return Err(self.damaged_block());
        }
        self.next += 1;
        Ok(Some(bytes))
    }

    /// Reads all blocks that are left and checks their hashes too.
    fn verify(mut self) -> Result<Manifest, SnapshotError> {
        while let Some(bytes) = self.next()? {
            let block = &self.manifest.blocks[self.next - 1];
            if BlockEntry::of(block.offset, &bytes) != *block {
                self.next -= 1;
                return Err(self.damaged_block());
            }
        }
        Ok(self.manifest.clone())
    }

    fn damaged_block(&self) -> SnapshotError {
        SnapshotError::Damaged {
            path: self.path.clone(),
            offset_bytes: self.manifest.blocks[self.next].offset,
            damage: Damage::Block { block: self.next },
        }
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.vfs.close(self.file);
    }
}

/// Reads every byte of the snapshot that lies in `dir` and checks it: header, every block by
/// checksum and hash, manifest, and that nothing else is in the file.
///
/// It needs no log and no group: an exported directory is verified wherever it lies.
///
/// # Errors
///
/// As [`SnapshotReader::open`] and [`SnapshotReader::next`]: do not use the snapshot.
pub fn verify(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Manifest, SnapshotError> {
    SnapshotReader::open(vfs, dir)?.verify()
}

/// From the end: trailer, manifest; then the header, and that the blocks fill all in between.
fn open_manifest(vfs: &dyn Vfs, file: FileId, path: &Path) -> Result<Manifest, SnapshotError> {
    let damaged = |offset_bytes, damage| SnapshotError::Damaged {
        path: path.to_owned(),
        offset_bytes,
        damage,
    };
    let len = vfs.len(file)?;
    if len < HEADER_BYTES + TRAILER_BYTES {
        return Err(damaged(len, Damage::CutShort));
    }
    let header = match decode_header(&vfs.read(file, 0, small(HEADER_BYTES))?) {
        Header::Sound(header) => header,
        Header::Damaged => return Err(damaged(0, Damage::Header)),
        Header::OtherVersion(found) => {
            return Err(SnapshotError::Version {
                path: path.to_owned(),
                found,
                supported: VERSION,
            });
        }
    };
    let trailer_at = len - TRAILER_BYTES;
    let trailer = vfs.read(file, trailer_at, small(TRAILER_BYTES))?;
    let Some((manifest_bytes, crc)) = decode_trailer(&trailer) else {
        return Err(damaged(trailer_at, Damage::Trailer));
    };
    let manifest_at = u64::try_from(manifest_bytes)
        .ok()
        .and_then(|bytes| trailer_at.checked_sub(bytes))
        .filter(|&at| at >= HEADER_BYTES)
        .ok_or_else(|| damaged(trailer_at, Damage::Trailer))?;
    let bytes = vfs.read(file, manifest_at, manifest_bytes)?;
    if bytes.len() != manifest_bytes || crc32c_append(0, &bytes) != crc {
        return Err(damaged(manifest_at, Damage::Manifest));
    }
    let manifest = Manifest::decode(&bytes)
        .filter(|manifest| manifest.blocks_end() == manifest_at)
        .ok_or_else(|| damaged(manifest_at, Damage::Manifest))?;
    if !layout::agrees(header, &manifest.meta) {
        return Err(damaged(0, Damage::Disagreement));
    }
    Ok(manifest)
}

fn small(bytes: u64) -> usize {
    usize::try_from(bytes).expect("header and trailer are small")
}
