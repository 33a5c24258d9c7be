//! A snapshot being received: each block held against the manifest, then the same commit.

use bytes::Bytes;

use crate::error::{BlockReason, SnapshotError};
use crate::manifest::{BlockEntry, Manifest};
use crate::writer::SnapshotWriter;

/// A snapshot being received, block by block. Dropped unfinished, it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotReceiver {
    writer: SnapshotWriter,
    manifest: Manifest,
    /// How many blocks have been taken.
    taken: usize,
}

impl SnapshotReceiver {
    pub(crate) const fn new(writer: SnapshotWriter, manifest: Manifest) -> Self {
        Self {
            writer,
            manifest,
            taken: 0,
        }
    }

    /// What was announced.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How many blocks have been taken: the number of the one to come.
    #[must_use]
    pub const fn blocks_taken(&self) -> usize {
        self.taken
    }

    /// Takes block number `at`, counted from 0. Blocks come in order; any holder of a snapshot
    /// with the same manifest may send them.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Block`]: it is not the one announced, and nothing was written;
    /// [`SnapshotError::Io`]. Drop the receiver then.
    pub fn block(&mut self, at: usize, bytes: Bytes) -> Result<(), SnapshotError> {
        let wrong = |reason| SnapshotError::Block { block: at, reason };
        if at != self.taken {
            return Err(wrong(BlockReason::OutOfOrder));
        }
        let announced = self
            .manifest
            .blocks
            .get(at)
            .ok_or_else(|| wrong(BlockReason::PastTheEnd))?;
        if bytes.len() != announced.len_bytes() {
            return Err(wrong(BlockReason::Length));
        }
        if BlockEntry::of(announced.offset, &bytes) != *announced {
            return Err(wrong(BlockReason::Hash));
        }
        self.writer.put_block(&bytes)?;
        self.taken += 1;
        Ok(())
    }

    /// Commits, as [`SnapshotWriter::finish`] does. Only then may the sender hear that the
    /// snapshot is here, and the core be told of it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Block`] if blocks are missing; those of [`SnapshotWriter::finish`].
    ///
    /// # Panics
    ///
    /// If what was written is not what was announced: every block was checked.
    pub fn finish(self) -> Result<Manifest, SnapshotError> {
        if self.taken != self.manifest.blocks.len() {
            return Err(SnapshotError::Block {
                block: self.taken,
                reason: BlockReason::Missing,
            });
        }
        let written = self.writer.finish(self.manifest.meta.clone())?;
        assert_eq!(written, self.manifest, "every block was held against it");
        Ok(written)
    }
}
