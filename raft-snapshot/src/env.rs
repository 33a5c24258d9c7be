//! The directories of one replica's snapshots.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_log::vfs::{FileId, Vfs};
use raft_proto::{GroupId, Index, ReplicaId};

use crate::file::{
    BLOCK_BYTES, DATA_NAME, FLAG_NAME, Manifest, SnapshotError, SnapshotFileMeta, SnapshotReader,
    entry, footer,
};

/// Where one replica's snapshots lie.
#[derive(Clone, Debug)]
pub struct SnapshotEnv {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    replica: ReplicaId,
}

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Names of directories removed.
    pub removed: Vec<String>,
}

fn name(index: Index) -> String {
    format!("snapshot-{:016x}", index.get())
}

impl SnapshotEnv {
    /// Opens the directory of a replica, or makes it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn open(
        vfs: Arc<dyn Vfs>,
        root: &Path,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<Self, SnapshotError> {
        let of_group = root.join(group.to_string());
        let dir = of_group.join(replica.to_string());
        vfs.create_dir_all(&dir)?;
        vfs.sync_dir(&of_group)?;
        vfs.sync_dir(root)?;
        if let Some(above) = root.parent() {
            vfs.sync_dir(above)?;
        }
        Ok(Self { vfs, dir, replica })
    }

    /// Begins a snapshot at `index`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn begin_save(&self, index: Index) -> Result<SnapshotWriter, SnapshotError> {
        let temporary = format!("{}-{}.generating", name(index), self.replica);
        SnapshotWriter::begin(&self.vfs, &self.dir, &temporary, index)
    }

    /// Begins a self-contained copy in `path`, an existing directory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn begin_export(&self, path: &Path, index: Index) -> Result<SnapshotWriter, SnapshotError> {
        let temporary = format!("{}-{}.generating", name(index), self.replica);
        SnapshotWriter::begin(&self.vfs, path, &temporary, index)
    }

    /// Begins to receive the snapshot of `manifest`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn begin_receive(&self, manifest: Manifest) -> Result<SnapshotReceiver, SnapshotError> {
        let index = manifest.meta.id.index;
        let hash = blake3::hash(&manifest.encode()).to_hex();
        let temporary = format!("{}-{}.receiving", name(index), &hash[..16]);
        let writer = SnapshotWriter::begin(&self.vfs, &self.dir, &temporary, index)?;
        Ok(SnapshotReceiver {
            writer,
            manifest,
            next: 0,
        })
    }

    /// Opens a committed snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn open_snapshot(&self, index: Index) -> Result<SnapshotReader, SnapshotError> {
        SnapshotReader::open(Arc::clone(&self.vfs), &self.dir.join(name(index)))
    }

    /// Removes the flag: the log has the record.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn remove_flag(&self, index: Index) -> Result<(), SnapshotError> {
        let dir = self.dir.join(name(index));
        if self
            .vfs
            .list(&dir)?
            .iter()
            .any(|entry| entry.name == FLAG_NAME)
        {
            self.vfs.remove_file(&dir.join(FLAG_NAME))?;
            self.vfs.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Removes a committed snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn remove(&self, index: Index) -> Result<(), SnapshotError> {
        let name = name(index);
        if self
            .vfs
            .list(&self.dir)?
            .iter()
            .any(|entry| entry.name == name)
        {
            self.vfs.remove_dir_all(&self.dir.join(name))?;
            self.vfs.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Removes committed snapshots that are not named and carry no flag.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn retain(&self, named: &[Index]) -> Result<(), SnapshotError> {
        for index in self.committed()? {
            let dir = self.dir.join(name(index));
            let has_flag = self
                .vfs
                .list(&dir)?
                .iter()
                .any(|entry| entry.name == FLAG_NAME);
            if !named.contains(&index) && !has_flag {
                self.remove(index)?;
            }
        }
        Ok(())
    }

    /// Cleans up after a crash: temporary directories go, and so do committed ones that the log
    /// does not name.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn sweep(&self, named: &[Index], log_damaged: bool) -> Result<SweepReport, SnapshotError> {
        let mut report = SweepReport::default();
        for found in self.vfs.list(&self.dir)? {
            let is_temporary =
                found.name.ends_with(".generating") || found.name.ends_with(".receiving");
            if found.is_dir && found.name.starts_with("snapshot-") && is_temporary {
                self.vfs.remove_dir_all(&self.dir.join(&found.name))?;
                report.removed.push(found.name);
            }
        }
        for index in self.committed()? {
            if named.contains(&index) {
                self.remove_flag(index)?;
            } else if !log_damaged {
                self.remove(index)?;
                report.removed.push(name(index));
            }
        }
        if !report.removed.is_empty() {
            self.vfs.sync_dir(&self.dir)?;
        }
        Ok(report)
    }

    fn committed(&self) -> Result<Vec<Index>, SnapshotError> {
        let entries = self.vfs.list(&self.dir)?;
        let index = |entry: &raft_log::vfs::DirEntry| {
            let digits = entry
                .name
                .strip_prefix("snapshot-")
                .filter(|digits| digits.len() == 16)?;
            u64::from_str_radix(digits, 16)
                .ok()
                .map(Index::new)
                .filter(|_| entry.is_dir)
        };
        Ok(entries.iter().filter_map(index).collect())
    }
}

/// A snapshot being written; dropped unfinished, it is removed.
#[derive(Debug)]
pub struct SnapshotWriter {
    vfs: Arc<dyn Vfs>,
    parent: PathBuf,
    temporary: PathBuf,
    index: Index,
    file: FileId,
    buffer: BytesMut,
    offset: u64,
    blocks: Vec<crate::file::BlockEntry>,
    is_finished: bool,
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        self.vfs.close(self.file);
        if !self.is_finished {
            // What cannot be removed now is swept at the next start.
            drop(self.vfs.remove_dir_all(&self.temporary));
        }
    }
}

impl SnapshotWriter {
    fn begin(
        vfs: &Arc<dyn Vfs>,
        parent: &Path,
        temporary: &str,
        index: Index,
    ) -> Result<Self, SnapshotError> {
        let taken = vfs.list(parent)?;
        if taken.iter().any(|entry| entry.name == name(index)) {
            return Err(SnapshotError::OutOfDate(index));
        }
        let path = parent.join(temporary);
        if taken.iter().any(|entry| entry.name == temporary) {
            vfs.remove_dir_all(&path)?;
        }
        vfs.create_dir_all(&path)?;
        let file = vfs.open(&path.join(DATA_NAME), true)?;
        Ok(Self {
            vfs: Arc::clone(vfs),
            parent: parent.to_owned(),
            temporary: path,
            index,
            file,
            buffer: BytesMut::new(),
            offset: 0,
            blocks: Vec::new(),
            is_finished: false,
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(BLOCK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(head);
            rest = tail;
            if self.buffer.len() == BLOCK_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.vfs.write(self.file, self.offset, &self.buffer)?;
        let block = entry(self.offset, &self.buffer);
        self.offset += u64::from(block.len);
        self.blocks.push(block);
        self.buffer.clear();
        Ok(())
    }

    /// Commits: each step durable before the next.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the temporary directory is removed.
    pub fn finish(mut self, meta: SnapshotFileMeta) -> Result<Manifest, SnapshotError> {
        self.flush()?;
        let manifest = Manifest {
            meta,
            blocks: std::mem::take(&mut self.blocks),
        };
        let vfs = Arc::clone(&self.vfs);
        vfs.write(self.file, self.offset, &footer(&manifest))?;
        vfs.sync(self.file)?;
        let flag = vfs.open(&self.temporary.join(FLAG_NAME), true)?;
        let written = vfs
            .write(flag, 0, &footer(&manifest))
            .and_then(|()| vfs.sync(flag));
        vfs.close(flag);
        written?;
        vfs.sync_dir(&self.temporary)?;
        let target = self.parent.join(name(self.index));
        if vfs
            .list(&self.parent)?
            .iter()
            .any(|entry| entry.name == name(self.index))
        {
            return Err(SnapshotError::OutOfDate(self.index));
        }
        vfs.rename(&self.temporary, &target)?;
        self.is_finished = true;
        vfs.sync_dir(&self.parent)?;
        Ok(manifest)
    }
}

/// A snapshot being received, block by block.
#[derive(Debug)]
pub struct SnapshotReceiver {
    writer: SnapshotWriter,
    manifest: Manifest,
    next: usize,
}

impl SnapshotReceiver {
    /// Takes block number `at`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Block`]: it is not the one announced.
    pub fn block(&mut self, at: usize, bytes: Bytes) -> Result<(), SnapshotError> {
        let wrong = |reason| SnapshotError::Block { block: at, reason };
        if at != self.next {
            return Err(wrong("out of order"));
        }
        let announced = self
            .manifest
            .blocks
            .get(at)
            .ok_or_else(|| wrong("past the end"))?;
        if entry(announced.offset, &bytes) != *announced {
            return Err(wrong("its hash differs"));
        }
        self.writer.flush()?;
        self.writer.buffer.extend_from_slice(&bytes);
        self.writer.flush()?;
        self.next += 1;
        Ok(())
    }

    /// Commits.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn finish(self) -> Result<Manifest, SnapshotError> {
        if self.next != self.manifest.blocks.len() {
            return Err(SnapshotError::Block {
                block: self.next,
                reason: "missing",
            });
        }
        self.writer.finish(self.manifest.meta)
    }
}
