//! The real file system. Submitted operations run when their completions are asked for, on the
//! thread that asks: the only place that may wait.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use raft_proto::Time;

use super::{DirEntry, FileId, Op, OpDone, OpId, Vfs, VfsError};

/// How many buffers one vectored write takes (the system's own limit is 1,024).
const BUFFERS_MAX: usize = 512;
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// The operating system's file system.
#[derive(Debug, Default)]
pub struct StdVfs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<FileId, (Arc<File>, PathBuf)>,
    next_file: u64,
    next_op: u64,
    submitted: VecDeque<(OpId, Op)>,
}

impl StdVfs {
    /// Makes one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: FileId) -> Result<(Arc<File>, PathBuf), VfsError> {
        self.lock().files.get(&id).cloned().ok_or_else(|| VfsError {
            op: "use a closed file",
            path: PathBuf::new(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn run(&self, op: Op) -> Result<(), VfsError> {
        match op {
            Op::Write {
                file,
                offset,
                buffers,
            } => {
                let (file, path) = self.file(file)?;
                write_all(&file, offset, &buffers).map_err(at("write", &path))
            }
            Op::Sync { file } => self.sync(file),
        }
    }
}

fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VfsError {
    let path = path.to_owned();
    move |source| VfsError { op, path, source }
}

fn write_all(file: &File, mut offset: u64, buffers: &[Bytes]) -> io::Result<()> {
    let mut rest: &[Bytes] = buffers;
    let mut skip = 0;
    while let Some(first) = rest.first() {
        if skip == first.len() {
            rest = &rest[1..];
            skip = 0;
            continue;
        }
        let head = IoSlice::new(&first[skip..]);
        let slices: Vec<IoSlice<'_>> = std::iter::once(head)
            .chain(rest[1..].iter().map(|buffer| IoSlice::new(buffer)))
            .take(BUFFERS_MAX)
            .collect();
        let mut written = match rustix::io::pwritev(file, &slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += u64::try_from(written).expect("a length fits");
        while let Some(first) = rest.first() {
            let left = first.len() - skip;
            if written < left {
                skip += written;
                break;
            }
            written -= left;
            rest = &rest[1..];
            skip = 0;
        }
    }
    Ok(())
}

impl Vfs for StdVfs {
    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        fs::create_dir_all(path).map_err(at("create directory", path))
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("list", path)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("list", path))?;
            let kind = entry.file_type().map_err(at("list", path))?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push(DirEntry {
                    name,
                    is_dir: kind.is_dir(),
                    is_file: kind.is_file(),
                });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .open(path)
            .map_err(at("open", path))?;
        let mut state = self.lock();
        state.next_file += 1;
        let id = FileId(state.next_file);
        state.files.insert(id, (Arc::new(file), path.to_owned()));
        Ok(id)
    }

    fn close(&self, file: FileId) {
        self.lock().files.remove(&file);
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        let (file, path) = self.file(file)?;
        Ok(file.metadata().map_err(at("measure", &path))?.len())
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        let (file, path) = self.file(file)?;
        rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, len)
            .map_err(|error| at("allocate", &path)(error.into()))?;
        let mut offset = 0;
        while offset < len {
            let left = usize::try_from(len - offset)
                .unwrap_or(usize::MAX)
                .min(ZEROES.len());
            file.write_all_at(&ZEROES[..left], offset)
                .map_err(at("zero", &path))?;
            offset += u64::try_from(left).expect("a length fits");
        }
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        let (file, path) = self.file(file)?;
        let size = file.metadata().map_err(at("measure", &path))?.len();
        let len = len.min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let mut data = BytesMut::zeroed(len);
        file.read_exact_at(&mut data, offset)
            .map_err(at("read", &path))?;
        Ok(data.freeze())
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let (file, path) = self.file(file)?;
        file.write_all_at(data, offset).map_err(at("write", &path))
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        let (file, path) = self.file(file)?;
        file.sync_data().map_err(at("sync", &path))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(at("sync directory", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
            .map_err(|error| at("rename", to)(error.into()))
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        fs::remove_file(path).map_err(at("remove", path))
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        fs::remove_dir_all(path).map_err(at("remove", path))
    }

    fn submit(&self, op: Op) -> OpId {
        let mut state = self.lock();
        state.next_op += 1;
        let id = OpId(state.next_op);
        state.submitted.push_back((id, op));
        id
    }

    fn completions(&self, _now: Time) -> Vec<OpDone> {
        let submitted = std::mem::take(&mut self.lock().submitted);
        submitted
            .into_iter()
            .map(|(id, op)| OpDone {
                op: id,
                result: self.run(op),
            })
            .collect()
    }
}
