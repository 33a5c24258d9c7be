//! A snapshot being written: blocks into a temporary directory, then the commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use raft_log::vfs::{FileId, Vfs};
use raft_proto::Index;

use crate::dir_name;
use crate::error::SnapshotError;
use crate::layout::{DATA_NAME, FLAG_NAME, HEADER_BYTES, encode_header, encode_trailer};
use crate::manifest::{
    BLOCK_ENTRY_BYTES, BlockEntry, MANIFEST_BYTES_MAX, Manifest, SnapshotFileMeta,
};

/// Where and how a snapshot is to be written.
pub(crate) struct WriterOptions<'a> {
    /// The directory that the final directory will lie in.
    pub(crate) parent: &'a Path,
    /// The temporary directory's name.
    pub(crate) temporary: String,
    pub(crate) index: Index,
    pub(crate) block_bytes: usize,
    /// Whether the log will have a record of it: then a flag stands until it has.
    pub(crate) is_flagged: bool,
}

/// A snapshot being written. Dropped unfinished, it removes what it wrote.
///
/// It holds one block in memory, and 56 bytes for each block written.
#[derive(Debug)]
pub struct SnapshotWriter {
    vfs: Arc<dyn Vfs>,
    parent: PathBuf,
    temporary: PathBuf,
    index: Index,
    is_flagged: bool,
    file: FileId,
    buffer: BytesMut,
    block_bytes: usize,
    /// Where the next block goes.
    offset: u64,
    blocks: Vec<BlockEntry>,
    /// Whether the directory has its final name, so that it is not to be removed.
    is_renamed: bool,
}

impl SnapshotWriter {
    pub(crate) fn begin(
        vfs: &Arc<dyn Vfs>,
        options: WriterOptions<'_>,
    ) -> Result<Self, SnapshotError> {
        let WriterOptions {
            parent,
            temporary,
            index,
            block_bytes,
            is_flagged,
        } = options;
        let here = vfs.list(parent)?;
        if here
            .iter()
            .any(|entry| entry.name == dir_name::committed(index))
        {
            return Err(SnapshotError::OutOfDate(index));
        }
        let path = parent.join(&temporary);
        // Left behind by an attempt that could not remove it, or planted: nothing in it is used.
        if let Some(found) = here.iter().find(|entry| entry.name == temporary) {
            if found.is_dir {
                vfs.remove_dir_all(&path)?;
            } else {
                vfs.remove_file(&path)?;
            }
        }
        vfs.create_dir_all(&path)?;
        let file = match vfs.open(&path.join(DATA_NAME), true) {
            Ok(file) => file,
            Err(error) => {
                // What cannot be removed now is swept at the next start.
                drop(vfs.remove_dir_all(&path));
                return Err(error.into());
            }
        };
        Ok(Self {
            vfs: Arc::clone(vfs),
            parent: parent.to_owned(),
            temporary: path,
            index,
            is_flagged,
            file,
            buffer: BytesMut::new(),
            block_bytes,
            offset: HEADER_BYTES,
            blocks: Vec::new(),
            is_renamed: false,
        })
    }

    /// Appends bytes of the saved state.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`]; [`SnapshotError::TooLarge`] when the manifest would pass
    /// [`MANIFEST_BYTES_MAX`]. Drop the writer then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut rest = bytes;
        // Whole blocks go to the file as they are, without a copy.
        while !rest.is_empty() {
            if self.buffer.is_empty() && rest.len() >= self.block_bytes {
                let (block, tail) = rest.split_at(self.block_bytes);
                self.put_block(block)?;
                rest = tail;
                continue;
            }
            let room = self.block_bytes - self.buffer.len();
            let (head, tail) = rest.split_at(rest.len().min(room));
            self.buffer.extend_from_slice(head);
            rest = tail;
            if self.buffer.len() == self.block_bytes {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.put_block(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        written
    }

    /// Writes one block as it is.
    pub(crate) fn put_block(&mut self, block: &[u8]) -> Result<(), SnapshotError> {
        let table_bytes = (self.blocks.len() + 1) * BLOCK_ENTRY_BYTES;
        if table_bytes > MANIFEST_BYTES_MAX {
            return Err(SnapshotError::TooLarge {
                what: "manifest",
                size: u64::try_from(table_bytes).unwrap_or(u64::MAX),
                bound: u64::try_from(MANIFEST_BYTES_MAX).unwrap_or(u64::MAX),
            });
        }
        self.vfs.write(self.file, self.offset, block)?;
        let entry = BlockEntry::of(self.offset, block);
        self.offset += u64::from(entry.len);
        self.blocks.push(entry);
        Ok(())
    }

    /// Commits: the data file, the flag and the temporary directory are made durable in this
    /// order, then the directory gets its final name, and then that is made durable.
    ///
    /// The flag stays until [`SnapshotEnv::remove_flag`](crate::SnapshotEnv::remove_flag): record
    /// the snapshot in the log first.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::OutOfDate`] if the final name has been taken meanwhile;
    /// [`SnapshotError::Mismatch`] if `meta` is of another index than the writer was begun for;
    /// [`SnapshotError::TooLarge`]; [`SnapshotError::Io`]. In all cases what was written is
    /// removed; what the disk does not let go now,
    /// [`SnapshotEnv::sweep`](crate::SnapshotEnv::sweep) removes at the next start, because no log
    /// names it.
    pub fn finish(mut self, meta: SnapshotFileMeta) -> Result<Manifest, SnapshotError> {
        if meta.id.index != self.index {
            return Err(SnapshotError::Mismatch {
                field: "index",
                wanted: self.index.get(),
                found: meta.id.index.get(),
            });
        }
        self.flush()?;
        let header = encode_header(&meta);
        let manifest = Manifest {
            meta,
            blocks: std::mem::take(&mut self.blocks),
        };
        let mut footer = manifest.try_encode()?.to_vec();
        footer.extend_from_slice(&encode_trailer(&footer));
        let vfs = Arc::clone(&self.vfs);
        vfs.write(self.file, 0, &header)?;
        vfs.write(self.file, self.offset, &footer)?;
        vfs.sync(self.file)?;
        if self.is_flagged {
            self.raise_flag(&footer)?;
        }
        vfs.sync_dir(&self.temporary)?;
        let name = dir_name::committed(self.index);
        if vfs
            .list(&self.parent)?
            .iter()
            .any(|entry| entry.name == name)
        {
            return Err(SnapshotError::OutOfDate(self.index));
        }
        let target = self.parent.join(name);
        vfs.rename(&self.temporary, &target)?;
        self.is_renamed = true;
        if let Err(error) = vfs.sync_dir(&self.parent) {
            // Nobody was told of it. What cannot be removed now is swept at the next start.
            drop(vfs.remove_dir_all(&target));
            return Err(error.into());
        }
        Ok(manifest)
    }

    /// The flag carries the record until the log has it: the manifest, framed as in the footer.
    fn raise_flag(&self, footer: &[u8]) -> Result<(), SnapshotError> {
        let flag = self.vfs.open(&self.temporary.join(FLAG_NAME), true)?;
        let written = self
            .vfs
            .write(flag, 0, footer)
            .and_then(|()| self.vfs.sync(flag));
        self.vfs.close(flag);
        Ok(written?)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        self.vfs.close(self.file);
        if !self.is_renamed {
            // What cannot be removed now is swept at the next start.
            drop(self.vfs.remove_dir_all(&self.temporary));
        }
    }
}
