//! The file-system seam, shared with raft-snapshot.
//!
//! What the log does while it runs is submitted and completed ([`Vfs::submit`],
//! [`Vfs::completions`]), so that a simulated disk can be slow. Everything else is a plain call,
//! made at open or on threads that may wait.
//!
//! ```text
//!                        Vfs
//!          ┌──────────────┴──────────────┐
//!       StdVfs                        SimVfs (feature `sim`)
//!  pwritev, fdatasync, maps      one seed: latency, lost sectors, errors
//! ```

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use raft_proto::Time;

mod claims;
mod handles;
mod map;
mod medium;
#[cfg(feature = "sim")]
mod sim;
mod std_vfs;

pub use map::install_sigbus_handler;
pub(crate) use medium::read_through;
#[cfg(feature = "sim")]
pub use sim::{Fault, SimVfs};
pub use std_vfs::{ReadMode, StdVfs};

/// Names an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

/// Names a submitted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// An operation that may take its time. Operations on one file end in the order they were
/// submitted; across files there is no order.
#[derive(Clone, Debug)]
pub enum Op {
    /// Writes the buffers one after the other from `offset` on.
    Write {
        /// The file.
        file: FileId,
        /// Where.
        offset: u64,
        /// What.
        buffers: Vec<Bytes>,
    },
    /// Makes the file's content durable.
    Sync {
        /// The file.
        file: FileId,
    },
    /// Makes a file of `len` bytes in the background: allocated, zeroes written, `head` at its
    /// start, all of it durable under another name, which ends in `.new`; then renamed, then the
    /// directory durable: a file that has its name is whole. What had the name before is gone only
    /// then. If it fails, what was made of it is removed again.
    Prepare {
        /// Its path; the directory exists.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// What it begins with.
        head: Bytes,
    },
    /// Gives a closed file a second life in the background: `head` overwrites its start and is
    /// durable before the file is renamed, then the directory is made durable.
    Recycle {
        /// Its old path.
        from: PathBuf,
        /// Its new path, not taken, in the same directory.
        to: PathBuf,
        /// What it begins with from now on.
        head: Bytes,
    },
    /// Removes a file in the background; the directory is not made durable.
    Remove {
        /// Its path.
        path: PathBuf,
    },
}

/// What became of a submitted operation.
#[derive(Debug)]
pub struct OpDone {
    /// Which.
    pub op: OpId,
    /// How it ended.
    pub result: Result<(), VfsError>,
}

/// A file-system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {path:?}: {source}")]
pub struct VfsError {
    /// What was tried.
    pub op: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl VfsError {
    /// Whether the device is full: room has to be made, then the same call may succeed.
    #[must_use]
    pub fn is_storage_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    /// Whether the medium does not give back what lies there: reading it again is no help.
    pub(crate) fn is_of_medium(&self) -> bool {
        self.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    }

    /// Whether the same call may succeed later, because it did nothing for want of space, of
    /// descriptors or of memory.
    pub(crate) fn may_pass(&self) -> bool {
        use rustix::io::Errno;
        let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
        let code = self.source.raw_os_error();
        self.is_storage_full() || code.is_some_and(|code| passing.contains(&code))
    }
}

/// The name under which a file is made that is to have `path` when it is whole; one left over is
/// nobody's.
pub(crate) fn unfinished_path(path: &Path) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(".new");
    PathBuf::from(path)
}

/// An open file, closed when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnedFile {
    vfs: Arc<dyn Vfs>,
    id: FileId,
}

impl OwnedFile {
    pub(crate) fn new(vfs: &Arc<dyn Vfs>, id: FileId) -> Self {
        let vfs = Arc::clone(vfs);
        Self { vfs, id }
    }

    pub(crate) const fn id(&self) -> FileId {
        self.id
    }
}

impl Drop for OwnedFile {
    fn drop(&mut self) {
        self.vfs.close(self.id);
    }
}

/// What is called when there is something to look at: it must not wait. A panic of it goes no
/// further than the panic hook.
pub type Waker = dyn Fn() + Send + Sync;

/// A lock that ends when it is dropped, or with the process.
#[derive(Debug, Default)]
pub struct FileLock {
    file: Option<std::fs::File>,
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Not by closing it: a child that was just forked still has it open.
        if let Some(file) = &self.file {
            rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock).ok();
        }
    }
}

/// What a directory holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name.
    pub name: String,
    /// Whether it is a directory; a symbolic link is neither.
    pub is_dir: bool,
    /// Whether it is a plain file.
    pub is_file: bool,
}

/// A file system.
pub trait Vfs: Send + Sync + Debug {
    /// Makes a directory and those above it.
    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError>;
    /// Lists a directory, in order of names; empty if there is none.
    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError>;
    /// Opens a file that exists, or makes an empty one.
    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError>;
    /// Makes an empty file and opens it; what had the name before is gone.
    fn create(&self, path: &Path) -> Result<FileId, VfsError> {
        match self.remove_file(path) {
            Err(error) if error.source.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.open(path, true),
        }
    }
    /// A number that nobody else draws: from the operating system, or from the simulation's seed.
    fn random(&self) -> Result<u64, VfsError>;
    /// Locks a file against other processes, and against whoever locks it again in this one, until
    /// the lock is dropped; `None` if it is taken. A shared one only looks: it makes no file and
    /// keeps no other shared one away. A file system that no other process sees has nothing to lock.
    fn lock(&self, path: &Path, is_shared: bool) -> Result<Option<FileLock>, VfsError> {
        let _ = (path, is_shared);
        Ok(Some(FileLock::default()))
    }
    /// Closes it.
    fn close(&self, file: FileId);
    /// Closes it, and returns whether bytes that [`Vfs::read_shared`] gave out are still held: if
    /// so, the content must not be overwritten; the file may be unlinked.
    fn retire(&self, file: FileId) -> bool {
        self.close(file);
        false
    }
    /// The length.
    fn len(&self, file: FileId) -> Result<u64, VfsError>;
    /// Gives the file `len` bytes of zeroes, really written.
    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError>;
    /// Reads at most `len` bytes at `offset`; fewer at the end.
    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError>;
    /// Reads as [`Vfs::read`] does, without a copy where the system can: only for a range that is
    /// not written again while the file is open. Its pages are in memory on return.
    fn read_shared(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        self.read(file, offset, len)
    }
    /// Writes and waits.
    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError>;
    /// Makes the content durable and waits.
    fn sync(&self, file: FileId) -> Result<(), VfsError>;
    /// Makes a directory's entries durable and waits.
    fn sync_dir(&self, path: &Path) -> Result<(), VfsError>;
    /// Renames; fails if the new name is taken by a file or a non-empty directory.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError>;
    /// Renames a file; what had the new name is gone.
    fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<(), VfsError>;
    /// Removes a directory and all below it.
    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError>;
    /// Begins an operation.
    fn submit(&self, op: Op) -> OpId;
    /// Waits until something that was submitted and runs in the background has ended, if anything
    /// does. On a simulated file system nothing does beside its callers.
    fn wait(&self) {}
    /// Waits until nothing that was submitted runs in the background any more; what has ended is
    /// still to be taken.
    fn wait_for_all(&self) {}
    /// Has `waker` called, on any thread, whenever something that runs in the background has ended,
    /// as long as it lives. `false`: there is no background, or nobody is told of it.
    fn wake_by(&self, waker: &Weak<Waker>) -> bool {
        let _ = waker;
        false
    }
    /// Takes what has ended. A real file system does writes and syncs here and now, on the calling
    /// thread; preparing and recycling run on a thread of its own.
    fn completions(&self, now: Time) -> Vec<OpDone>;
}
