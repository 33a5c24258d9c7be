//! Lanes that share one simulated disk: each hears of its own operations alone.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_log::vfs::{DirEntry, FileId, Op, OpDone, OpId, SimVfs, Vfs, VfsError};
use raft_proto::Time;

/// What one lane sees of the disk.
#[derive(Debug)]
pub struct OfLane {
    disk: Arc<SimVfs>,
    own: Mutex<BTreeSet<OpId>>,
    /// What has ended and was not taken yet, of all lanes.
    ended: Arc<Mutex<Vec<OpDone>>>,
}

impl OfLane {
    /// As many as there are lanes.
    pub fn all(disk: &Arc<SimVfs>, lanes: usize) -> Vec<Arc<Self>> {
        let ended = Arc::<Mutex<Vec<OpDone>>>::default();
        let one = |_| {
            Arc::new(Self {
                disk: Arc::clone(disk),
                own: Mutex::default(),
                ended: Arc::clone(&ended),
            })
        };
        (0..lanes).map(one).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vfs for OfLane {
    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
        self.disk.open(path, create)
    }

    fn create(&self, path: &Path) -> Result<FileId, VfsError> {
        self.disk.create(path)
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

    fn random(&self) -> Result<u64, VfsError> {
        self.disk.random()
    }

    fn submit(&self, op: Op) -> OpId {
        let id = self.disk.submit(op);
        lock(&self.own).insert(id);
        id
    }

    fn completions(&self, now: Time) -> Vec<OpDone> {
        let mut ended = lock(&self.ended);
        ended.extend(self.disk.completions(now));
        let mut own = lock(&self.own);
        let (mine, others) = ended.drain(..).partition(|done| own.remove(&done.op));
        *ended = others;
        mine
    }
}
