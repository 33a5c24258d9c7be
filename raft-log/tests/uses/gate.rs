//! A disk whose syncs can be held up.

use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use raft_log::vfs::{DirEntry, FileId, Op, OpDone, OpId, StdVfs, Vfs, VfsError};
use raft_proto::Time;

/// While it is shut, whoever asks for completions when a sync was submitted waits.
#[derive(Debug, Default)]
pub struct Gate {
    disk: StdVfs,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_shut: bool,
    has_sync: bool,
    is_waiting: bool,
    writes: Vec<Vec<Place>>,
}

/// Where in memory bytes lie, and how many.
pub type Place = (usize, usize);

pub fn place(bytes: &Bytes) -> Place {
    (bytes.as_ptr().addr(), bytes.len())
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics")
    }

    /// Shuts the gate, until what it returns is dropped.
    pub fn shut(&self) -> Shut<'_> {
        self.lock().is_shut = true;
        Shut(self)
    }

    /// Takes the writes submitted since the last call: where the buffers of each lie.
    pub fn take_writes(&self) -> Vec<Vec<Place>> {
        std::mem::take(&mut self.lock().writes)
    }

    /// Returns when somebody waits at the gate.
    pub fn wait_until_somebody_waits(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| !state.is_waiting));
    }

    fn pass(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.has_sync) && state.is_shut {
            state.is_waiting = true;
            self.changed.notify_all();
            let passed = self.changed.wait_while(state, |state| state.is_shut);
            passed.expect("nobody panics").is_waiting = false;
        }
    }
}

/// A gate that is shut.
#[derive(Debug)]
pub struct Shut<'a>(&'a Gate);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.lock().is_shut = false;
        self.0.changed.notify_all();
    }
}

impl Vfs for Gate {
    fn random(&self) -> Result<u64, VfsError> {
        self.disk.random()
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
        self.disk.open(path, create)
    }

    fn close(&self, file: FileId) {
        self.disk.close(file);
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        self.disk.len(file)
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        self.disk.prepare(file, len)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        self.disk.read(file, offset, len)
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        self.disk.write(file, offset, data)
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        self.disk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        self.disk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.disk.rename(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.disk.replace(from, to)
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        self.disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.disk.remove_dir_all(path)
    }

    fn submit(&self, op: Op) -> OpId {
        match &op {
            Op::Sync { .. } => self.lock().has_sync = true,
            Op::Write { buffers, .. } => {
                let places = buffers.iter().map(place).collect();
                self.lock().writes.push(places);
            }
            _ => {}
        }
        self.disk.submit(op)
    }

    fn wait_for_all(&self) {
        self.disk.wait_for_all();
    }

    fn wait(&self) {
        self.disk.wait();
    }

    fn completions(&self, now: Time) -> Vec<OpDone> {
        self.pass();
        self.disk.completions(now)
    }
}
