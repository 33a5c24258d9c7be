//! The directory of one replica's snapshots: what lies there, what may go, what a crash left.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{DirEntry, Vfs};
use raft_proto::{GroupId, Index, ReplicaId};

use crate::dir_name::{self, DirName};
use crate::error::SnapshotError;
use crate::layout::FLAG_NAME;
use crate::manifest::{BLOCK_BYTES, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, Manifest};
use crate::reader::SnapshotReader;
use crate::receiver::SnapshotReceiver;
use crate::writer::{SnapshotWriter, WriterOptions};

mod retention;
mod sweep;

pub use sweep::SweepReport;

/// Where one replica's snapshots lie: `<root>/<group>/<replica>/snapshot-<index>/`.
///
/// Cheap to clone; replicas share no lock. Calls for one replica may come from several threads:
/// they meet in the file system, whose rename decides who commits an index.
#[derive(Clone, Debug)]
pub struct SnapshotEnv {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    group: GroupId,
    replica: ReplicaId,
    block_bytes: usize,
}

impl SnapshotEnv {
    /// Opens the directory of a replica, or makes it and makes its name durable.
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
        Ok(Self {
            vfs,
            dir,
            group,
            replica,
            block_bytes: BLOCK_BYTES,
        })
    }

    /// Sets the size of the blocks that snapshots are written in from now on; [`BLOCK_BYTES`]
    /// unless set. Snapshots that exist keep theirs. Values out of bounds are brought to the
    /// nearest, [`BLOCK_BYTES_MIN`] or [`BLOCK_BYTES_MAX`].
    #[must_use]
    pub const fn with_block_bytes(mut self, block_bytes: usize) -> Self {
        self.block_bytes = if block_bytes < BLOCK_BYTES_MIN {
            BLOCK_BYTES_MIN
        } else if block_bytes > BLOCK_BYTES_MAX {
            BLOCK_BYTES_MAX
        } else {
            block_bytes
        };
        self
    }

    /// Begins a snapshot at `index`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::OutOfDate`], [`SnapshotError::Io`].
    pub fn begin_save(&self, index: Index) -> Result<SnapshotWriter, SnapshotError> {
        let temporary = dir_name::generating(index, self.replica);
        self.begin(&self.dir, temporary, index, true)
    }

    /// Begins a self-contained copy in `path`, an existing directory: nothing there but
    /// `snapshot-<index>` is touched, no flag is raised, and no log needs to know of it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NoSuchDirectory`]; [`SnapshotError::OutOfDate`] if a copy of this index
    /// lies there; [`SnapshotError::Io`].
    pub fn begin_export(&self, path: &Path, index: Index) -> Result<SnapshotWriter, SnapshotError> {
        // Listing a directory that is not there finds nothing; syncing it tells.
        if let Err(error) = self.vfs.sync_dir(path) {
            return Err(match error.source.kind() {
                ErrorKind::NotFound => SnapshotError::NoSuchDirectory {
                    path: path.to_owned(),
                },
                _ => error.into(),
            });
        }
        let temporary = dir_name::generating(index, self.replica);
        self.begin(path, temporary, index, false)
    }

    /// Begins to receive the snapshot of `manifest`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Mismatch`] if it is another group's; [`SnapshotError::OutOfDate`];
    /// [`SnapshotError::Io`].
    pub fn begin_receive(&self, manifest: Manifest) -> Result<SnapshotReceiver, SnapshotError> {
        if manifest.meta.group != self.group {
            return Err(SnapshotError::Mismatch {
                field: "group",
                wanted: self.group.get(),
                found: manifest.meta.group.get(),
            });
        }
        let index = manifest.index();
        let temporary = dir_name::receiving(index, &manifest.hash().into());
        let writer = self.begin(&self.dir, temporary, index, true)?;
        Ok(SnapshotReceiver::new(writer, manifest))
    }

    fn begin(
        &self,
        parent: &Path,
        temporary: String,
        index: Index,
        is_flagged: bool,
    ) -> Result<SnapshotWriter, SnapshotError> {
        let block_bytes = self.block_bytes;
        let options = WriterOptions {
            parent,
            temporary,
            index,
            block_bytes,
            is_flagged,
        };
        SnapshotWriter::begin(&self.vfs, options)
    }

    /// Opens the committed snapshot at `index`.
    ///
    /// # Errors
    ///
    /// Those of [`SnapshotReader::open`]; [`SnapshotError::Mismatch`] if the file is of another
    /// group or place than its name says.
    pub fn open_snapshot(&self, index: Index) -> Result<SnapshotReader, SnapshotError> {
        let reader = SnapshotReader::open(Arc::clone(&self.vfs), &self.path(index))?;
        let meta = &reader.manifest().meta;
        for (field, wanted, found) in [
            ("group", self.group.get(), meta.group.get()),
            ("index", index.get(), meta.id.index.get()),
        ] {
            if wanted != found {
                return Err(SnapshotError::Mismatch {
                    field,
                    wanted,
                    found,
                });
            }
        }
        Ok(reader)
    }

    /// Removes the flag: the log has the record. Harmless if it is gone already.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn remove_flag(&self, index: Index) -> Result<(), SnapshotError> {
        let dir = self.path(index);
        if self.has_flag(index)? {
            self.vfs.remove_file(&dir.join(FLAG_NAME))?;
            self.vfs.sync_dir(&dir)?;
        }
        Ok(())
    }

    /// Removes the committed snapshot at `index`. Harmless if it is gone already.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`]; what is left of it is swept at the next start.
    pub fn remove(&self, index: Index) -> Result<(), SnapshotError> {
        let name = dir_name::committed(index);
        let here = self.vfs.list(&self.dir)?;
        if here.iter().any(|entry| entry.is_dir && entry.name == name) {
            self.vfs.remove_dir_all(&self.dir.join(name))?;
            self.vfs.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// The indexes of the committed snapshots that lie here, ascending, whether the log names
    /// them or not.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn committed(&self) -> Result<Vec<Index>, SnapshotError> {
        let entries = self.vfs.list(&self.dir)?;
        let index = |entry: &DirEntry| match DirName::parse(&entry.name)? {
            DirName::Committed(index) => entry.is_dir.then_some(index),
            DirName::Temporary => None,
        };
        Ok(entries.iter().filter_map(index).collect())
    }

    /// Where the committed snapshot at `index` lies, or would lie.
    #[must_use]
    pub fn path(&self, index: Index) -> PathBuf {
        self.dir.join(dir_name::committed(index))
    }

    fn has_flag(&self, index: Index) -> Result<bool, SnapshotError> {
        let is_flag = |entry: &DirEntry| entry.name == FLAG_NAME && entry.is_file;
        Ok(self.vfs.list(&self.path(index))?.iter().any(is_flag))
    }
}
