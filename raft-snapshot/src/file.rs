//! The snapshot file: blocks, then a footer with the block table. See FORMAT.md.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_log::vfs::{FileId, Vfs, VfsError};
use raft_proto::{EntryId, GroupId, Index, Term, crc32c_append};

pub(crate) const DATA_NAME: &str = "data";
pub(crate) const FLAG_NAME: &str = "flag";
pub(crate) const BLOCK_BYTES: usize = 1 << 20;
const MAGIC: u64 = 0x3150_414E_5346_5446;
const TRAILER_BYTES: usize = 24;
const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// Why a snapshot could not be written, read or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] VfsError),
    /// A snapshot of this index exists already.
    #[error("snapshot {0} exists already")]
    OutOfDate(Index),
    /// What was read is not what was written.
    #[error("damage in {path:?}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A received block is not the one announced.
    #[error("block {block} is not the one announced: {reason}")]
    Block {
        /// Which.
        block: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Whose snapshot it is, and of what place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFileMeta {
    /// The group.
    pub group: GroupId,
    /// Its epoch.
    pub epoch: u64,
    /// The last entry covered.
    pub id: EntryId,
    /// The membership there, encoded.
    pub membership: Bytes,
}

/// One block in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Where it lies.
    pub offset: u64,
    /// Its length.
    pub len: u32,
    /// Its CRC-32C.
    pub crc: u32,
    /// The BLAKE3 hash of its bytes.
    pub hash: [u8; 32],
}

/// A snapshot's table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose, and of what place.
    pub meta: SnapshotFileMeta,
    /// The blocks.
    pub blocks: Vec<BlockEntry>,
}

impl Manifest {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(MAGIC);
        out.put_u64_le(self.meta.group.get());
        out.put_u64_le(self.meta.epoch);
        out.put_u64_le(self.meta.id.term.get());
        out.put_u64_le(self.meta.id.index.get());
        out.put_u32_le(u32::try_from(self.meta.membership.len()).expect("bounded"));
        out.put_slice(&self.meta.membership);
        out.put_u32_le(u32::try_from(self.blocks.len()).expect("bounded"));
        for block in &self.blocks {
            out.put_u64_le(block.offset);
            out.put_u32_le(block.len);
            out.put_u32_le(block.crc);
            out.put_slice(&block.hash);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MANIFEST_BYTES_MAX || bytes.try_get_u64_le().ok()? != MAGIC {
            return None;
        }
        let group = GroupId::new(bytes.try_get_u64_le().ok()?)?;
        let epoch = bytes.try_get_u64_le().ok()?;
        let term = Term::new(bytes.try_get_u64_le().ok()?);
        let index = Index::new(bytes.try_get_u64_le().ok()?);
        let len = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        let membership = Bytes::copy_from_slice(bytes.get(..len)?);
        bytes.advance(len);
        let count = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        if bytes.len() != count.checked_mul(48)? {
            return None;
        }
        let mut blocks = Vec::new();
        for _ in 0..count {
            let (offset, len, crc) = (bytes.get_u64_le(), bytes.get_u32_le(), bytes.get_u32_le());
            let mut hash = [0; 32];
            bytes.copy_to_slice(&mut hash);
            blocks.push(BlockEntry {
                offset,
                len,
                crc,
                hash,
            });
        }
        let id = EntryId::new(term, index);
        Some(Self {
            meta: SnapshotFileMeta {
                group,
                epoch,
                id,
                membership,
            },
            blocks,
        })
    }

    /// The sum of the blocks.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len)).sum()
    }
}

pub(crate) fn entry(offset: u64, block: &[u8]) -> BlockEntry {
    BlockEntry {
        offset,
        len: u32::try_from(block.len()).expect("a block is bounded"),
        crc: crc32c_append(0, block),
        hash: *blake3::hash(block).as_bytes(),
    }
}

pub(crate) fn footer(manifest: &Manifest) -> Bytes {
    let body = manifest.encode();
    let mut out = BytesMut::from(&body[..]);
    out.put_u64_le(u64::try_from(body.len()).expect("a length fits"));
    out.put_u32_le(crc32c_append(0, &body));
    out.put_u32_le(0);
    out.put_u64_le(MAGIC);
    out.freeze()
}

/// Reads a snapshot block by block, each checked.
#[derive(Debug)]
pub struct SnapshotReader {
    vfs: Arc<dyn Vfs>,
    file: FileId,
    path: PathBuf,
    manifest: Manifest,
    next: usize,
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        self.vfs.close(self.file);
    }
}

impl SnapshotReader {
    pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self, SnapshotError> {
        let path = dir.join(DATA_NAME);
        let file = vfs.open(&path, false)?;
        let damaged = |reason: &str| SnapshotError::Damaged {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let len = vfs.len(file)?;
        let trailer_bytes = u64::try_from(TRAILER_BYTES).expect("small");
        let trailer_at = len
            .checked_sub(trailer_bytes)
            .ok_or_else(|| damaged("too short"))?;
        let mut trailer = &vfs.read(file, trailer_at, TRAILER_BYTES)?[..];
        let body_bytes = trailer.get_u64_le();
        let crc = trailer.get_u32_le();
        let zero = trailer.get_u32_le();
        if trailer.get_u64_le() != MAGIC || zero != 0 {
            return Err(damaged("no trailer"));
        }
        let bytes = usize::try_from(body_bytes)
            .ok()
            .filter(|&bytes| bytes <= MANIFEST_BYTES_MAX);
        let at = trailer_at.checked_sub(body_bytes);
        let (Some(bytes), Some(at)) = (bytes, at) else {
            return Err(damaged("the footer's length is out of range"));
        };
        let body = vfs.read(file, at, bytes)?;
        if crc32c_append(0, &body) != crc {
            return Err(damaged("the footer fails its checksum"));
        }
        let manifest = Manifest::decode(&body).ok_or_else(|| damaged("unreadable footer"))?;
        Ok(Self {
            vfs,
            file,
            path,
            manifest,
            next: 0,
        })
    }

    /// The table of contents.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The next block.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Damaged`]: use an older snapshot, or a peer's.
    #[expect(clippy::should_implement_trait, reason = "it can fail")]
    pub fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let Some(block) = self.manifest.blocks.get(self.next) else {
            return Ok(None);
        };
        let len = usize::try_from(block.len).expect("it fits");
        let bytes = self.vfs.read(self.file, block.offset, len)?;
        if bytes.len() != len || entry(block.offset, &bytes) != *block {
            let reason = format!("block {} fails its checksum", self.next);
            return Err(SnapshotError::Damaged {
                path: self.path.clone(),
                reason,
            });
        }
        self.next += 1;
        Ok(Some(bytes))
    }
}

/// Reads all of a snapshot directory and checks it.
///
/// # Errors
///
/// [`SnapshotError`]: do not use it.
pub fn verify(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Manifest, SnapshotError> {
    let mut reader = SnapshotReader::open(vfs, dir)?;
    while reader.next()?.is_some() {}
    Ok(reader.manifest.clone())
}
