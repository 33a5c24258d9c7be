//! A disk that loses power at a chosen operation.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use raft_log::vfs::{DirEntry, FileId, Op, OpDone, OpId, SimVfs, Vfs, VfsError};
use raft_proto::Time;

/// Passes a number of operations on, then none: as far as the caller can tell, every one fails.
/// The disk below then crashes.
#[derive(Debug)]
pub struct Dying {
    disk: Arc<SimVfs>,
    left: AtomicU64,
}

impl Dying {
    pub fn after(disk: &Arc<SimVfs>, operations: u64) -> Arc<Self> {
        let (disk, left) = (Arc::clone(disk), AtomicU64::new(operations));
        Arc::new(Self { disk, left })
    }

    /// Whether an operation was asked for after the last one that was passed on.
    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::Relaxed) == DEAD
    }

    fn alive(&self, op: &'static str) -> Result<(), VfsError> {
        match self.left.load(Ordering::Relaxed) {
            0 | DEAD => {
                self.left.store(DEAD, Ordering::Relaxed);
                Err(VfsError {
                    op,
                    path: PathBuf::new(),
                    source: io::Error::other("the power is gone"),
                })
            }
            left => {
                self.left.store(left - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

const DEAD: u64 = u64::MAX;

impl Vfs for Dying {
    fn random(&self) -> Result<u64, VfsError> {
        self.alive("random")?;
        self.disk.random()
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.alive("create")?;
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
        self.alive("list")?;
        self.disk.list(path)
    }

    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
        self.alive("open")?;
        self.disk.open(path, create)
    }

    fn close(&self, file: FileId) {
        self.disk.close(file);
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        self.alive("measure")?;
        self.disk.len(file)
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        self.alive("prepare")?;
        self.disk.prepare(file, len)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        self.alive("read")?;
        self.disk.read(file, offset, len)
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let was_dead = self.is_dead();
        let alive = self.alive("write");
        if alive.is_err() && !was_dead {
            // The write under way when the power went may have reached the disk in part.
            drop(self.disk.write(file, offset, data));
        }
        alive?;
        self.disk.write(file, offset, data)
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        self.alive("sync")?;
        self.disk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        self.alive("sync directory")?;
        self.disk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.alive("rename")?;
        self.disk.rename(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.alive("replace")?;
        self.disk.replace(from, to)
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        self.alive("remove")?;
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.alive("remove")?;
        self.disk.remove_dir_all(path)
    }

    fn submit(&self, _op: Op) -> OpId {
        unreachable!("snapshots are written by plain calls")
    }

    fn completions(&self, _now: Time) -> Vec<OpDone> {
        Vec::new()
    }
}
