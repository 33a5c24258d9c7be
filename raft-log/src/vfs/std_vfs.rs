//! The real file system.
//!
//! Submitted writes and syncs run when their completions are asked for, on the thread that asks:
//! the only place that waits for the disk. Files are prepared and recycled on a thread of the
//! file system's own, so that no append waits for that.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use raft_proto::Time;
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::claims::{Claim, is_claimed};
use super::handles::{Handles, Retired, unshared};
use super::map::Map;
use super::{DirEntry, FileId, FileLock, Op, OpDone, OpId, Vfs, VfsError, Waker, unfinished_path};
use crate::sync::Arc;

/// How many buffers one vectored write takes (the system's own limit is 1,024).
const BUFFERS_MAX: usize = 1_024;
static ZEROES: [u8; 1 << 18] = [0; 1 << 18];
/// How much of a prepared file is written between two syncs, so that the syncs of appends beside
/// it never queue behind a whole segment: a MiB takes the device less than a millisecond.
const PREPARE_SYNC_BYTES: u64 = 1 << 20;

/// How [`Vfs::read_shared`] reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// Through read-only maps, without a copy.
    #[default]
    Map,
    /// By `pread` into memory of its own: a file truncated by somebody else is a short read, not
    /// a signal.
    Pread,
}

/// The operating system's file system.
#[derive(Debug, Default)]
pub struct StdVfs {
    read_mode: ReadMode,
    is_read_only: bool,
    files: Handles<OpenFile>,
    state: Mutex<State>,
    ended: Arc<Ended>,
    background: OnceLock<Mutex<Sender<(OpId, Op)>>>,
}

/// What the background thread has done.
#[derive(Debug, Default)]
struct Ended {
    state: Mutex<EndedState>,
    changed: Condvar,
    wakers: Mutex<Wakers>,
}

#[derive(Default)]
struct Wakers(Vec<Weak<Waker>>);

impl std::fmt::Debug for Wakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wakers", self.0.len())
    }
}

#[derive(Debug, Default)]
struct EndedState {
    /// Submitted, and not done.
    under_way: usize,
    done: Vec<OpDone>,
}

impl Ended {
    fn lock(&self) -> MutexGuard<'_, EndedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakers(&self) -> MutexGuard<'_, Wakers> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, done: OpDone) {
        let mut state = self.lock();
        state.under_way -= 1;
        state.done.push(done);
        drop(state);
        self.changed.notify_all();
        let wakers: Vec<_> = self.wakers().0.iter().filter_map(Weak::upgrade).collect();
        for waker in wakers {
            // It is somebody else's: a panic of it must not end what others wait for.
            drop(catch_unwind(AssertUnwindSafe(|| waker())));
        }
    }
}

#[derive(Debug, Default)]
struct State {
    next_op: u64,
    submitted: VecDeque<(OpId, Op)>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    /// Made at the first shared read; `None` if the system refused.
    map: OnceLock<Option<Arc<Map>>>,
    claim: Arc<Claim>,
}

impl StdVfs {
    /// Makes one that reads through maps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one that reads as told.
    #[must_use]
    pub fn with_read_mode(read_mode: ReadMode) -> Self {
        Self {
            read_mode,
            ..Self::default()
        }
    }

    /// Makes one that changes nothing: files are opened for reading alone, and everything else is
    /// an error of the kind [`io::ErrorKind::ReadOnlyFilesystem`] or one of the system's own. For
    /// looking into a directory that somebody else owns.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            is_read_only: true,
            ..Self::default()
        }
    }

    fn check_writable(&self, op: &'static str, path: &Path) -> Result<(), VfsError> {
        if self.is_read_only {
            return Err(at(op, path)(io::ErrorKind::ReadOnlyFilesystem.into()));
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: FileId) -> Result<Arc<OpenFile>, VfsError> {
        self.files.find(id).ok_or_else(|| VfsError {
            op: "use a closed file",
            path: PathBuf::new(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    fn opened(&self, path: &Path, file: io::Result<File>) -> Result<FileId, VfsError> {
        let file = file.map_err(at("open", path))?;
        let claim = Claim::new(&file).map_err(at("measure", path))?;
        Ok(self.files.insert(OpenFile {
            claim: Arc::new(claim),
            file,
            path: path.to_owned(),
            map: OnceLock::new(),
        }))
    }

    fn run(&self, op: Op) -> Result<(), VfsError> {
        self.check_writable("write", Path::new(""))?;
        match op {
            Op::Write {
                file,
                offset,
                buffers,
            } => {
                let open = self.file(file)?;
                write_all(&open.file, offset, &buffers).map_err(at("write", &open.path))
            }
            Op::Sync { file } => self.sync(file),
            op @ (Op::Prepare { .. } | Op::Recycle { .. } | Op::Remove { .. }) => {
                run_in_background(op)
            }
        }
    }

    /// Hands an operation to the background thread, which is started with the first one and ends
    /// when this value is dropped.
    fn send_to_background(&self, id: OpId, op: Op) {
        self.ended.lock().under_way += 1;
        let sender = self.background.get_or_init(|| {
            let (sender, receiver) = channel::<(OpId, Op)>();
            let ended = Arc::clone(&self.ended);
            let thread = std::thread::Builder::new()
                .name("raft-log-prepare".to_owned())
                .spawn(move || {
                    while let Ok((op, work)) = receiver.recv() {
                        let result = run_in_background(work);
                        ended.push(OpDone { op, result });
                    }
                });
            // Without a thread the receiver is gone, and each operation runs where it is sent.
            drop(thread);
            Mutex::new(sender)
        });
        let sent = sender
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send((id, op));
        if let Err(refused) = sent {
            let (op, work) = refused.0;
            let result = run_in_background(work);
            self.ended.push(OpDone { op, result });
        }
    }
}

fn run_in_background(op: Op) -> Result<(), VfsError> {
    match op {
        Op::Prepare { path, len, head } => {
            let unfinished = unfinished_path(&path);
            prepare_file(&unfinished, len, &head)
                .and_then(|()| fs::rename(&unfinished, &path).map_err(at("rename", &path)))
                .and_then(|()| sync_parent(&path))
                .inspect_err(|_| {
                    // A half-made file takes room that somebody needs; if it cannot go, the next
                    // attempt makes it anew.
                    drop(fs::remove_file(&unfinished));
                })
        }
        Op::Recycle { from, to, head } => recycle_file(&from, &to, &head),
        Op::Remove { path } => fs::remove_file(&path).map_err(at("remove", &path)),
        Op::Write { .. } | Op::Sync { .. } => {
            unreachable!("writes and syncs run on the caller's thread")
        }
    }
}

fn prepare_file(path: &Path, len: u64, head: &[u8]) -> Result<(), VfsError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(at("open", path))?;
    fill_with_zeroes(&file, path, len)?;
    file.write_all_at(head, 0).map_err(at("write", path))?;
    file.sync_all().map_err(at("sync", path))
}

fn recycle_file(from: &Path, to: &Path, head: &[u8]) -> Result<(), VfsError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(from)
        .map_err(at("open", from))?;
    file.write_all_at(head, 0).map_err(at("write", from))?;
    file.sync_data().map_err(at("sync", from))?;
    rename_to_free_name(from, to)?;
    sync_parent(to)
}

fn sync_parent(path: &Path) -> Result<(), VfsError> {
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(at("sync directory", parent))
}

fn rename_to_free_name(from: &Path, to: &Path) -> Result<(), VfsError> {
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)
        .map_err(|error| at("rename", to)(error.into()))
}

/// Allocates the file's blocks and writes zeroes over them: an append then changes no metadata.
fn fill_with_zeroes(file: &File, path: &Path, len: u64) -> Result<(), VfsError> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        // Without it the zeroes themselves allocate.
        Ok(()) | Err(Errno::OPNOTSUPP) => {}
        Err(error) => return Err(at("allocate", path)(error.into())),
    }
    let mut offset = 0;
    let mut unsynced = 0;
    while offset < len {
        let part = usize::try_from(len - offset)
            .unwrap_or(usize::MAX)
            .min(ZEROES.len());
        file.write_all_at(&ZEROES[..part], offset)
            .map_err(at("zero", path))?;
        let part = u64::try_from(part).expect("a length fits");
        offset += part;
        unsynced += part;
        if unsynced >= PREPARE_SYNC_BYTES {
            file.sync_data().map_err(at("sync", path))?;
            unsynced = 0;
        }
    }
    Ok(())
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
            Err(Errno::INTR) => continue,
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
    fn random(&self) -> Result<u64, VfsError> {
        let mut bytes = [0; 8];
        let drawn = getrandom(&mut bytes, GetRandomFlags::empty());
        let random = |source: Errno| at("draw a random number", "".as_ref())(source.into());
        // So few are given at once, or none.
        drawn.map(|_| u64::from_le_bytes(bytes)).map_err(random)
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.check_writable("create directory", path)?;
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
            .write(!self.is_read_only)
            .create(create && !self.is_read_only)
            .truncate(false)
            .open(path);
        self.opened(path, file)
    }

    fn create(&self, path: &Path) -> Result<FileId, VfsError> {
        self.check_writable("create", path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path);
        self.opened(path, file)
    }

    fn lock(&self, path: &Path, is_shared: bool) -> Result<Option<FileLock>, VfsError> {
        let file = if is_shared {
            match File::open(path) {
                // Nobody has ever locked it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Some(FileLock::default()));
                }
                opened => opened,
            }
        } else {
            self.check_writable("lock", path)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(path)
        };
        let file = file.map_err(at("open", path))?;
        let operation = if is_shared {
            rustix::fs::FlockOperation::NonBlockingLockShared
        } else {
            rustix::fs::FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(FileLock { file: Some(file) })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(at("lock", path)(error.into())),
        }
    }

    fn close(&self, file: FileId) {
        self.files.close(file);
    }

    fn retire(&self, file: FileId) -> bool {
        match self.files.retire(file) {
            Retired::Unknown => false,
            Retired::InUse => true,
            Retired::Free(open) => {
                let OpenFile { map, claim, .. } = open;
                let name = claim.name();
                drop(claim);
                // Slices of the map may be left, of this one or of another handle's.
                let map = map.into_inner().flatten();
                map.is_some_and(|map| unshared(map).is_none()) || is_claimed(name)
            }
        }
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        let open = self.file(file)?;
        let metadata = open.file.metadata().map_err(at("measure", &open.path))?;
        Ok(metadata.len())
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        let open = self.file(file)?;
        fill_with_zeroes(&open.file, &open.path, len)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        let open = self.file(file)?;
        let size = open.file.metadata().map_err(at("measure", &open.path))?;
        let left = usize::try_from(size.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut data = BytesMut::zeroed(len.min(left));
        open.file
            .read_exact_at(&mut data, offset)
            .map_err(at("read", &open.path))?;
        Ok(data.freeze())
    }

    fn read_shared(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        if self.read_mode == ReadMode::Pread || len == 0 {
            return self.read(file, offset, len);
        }
        let open = self.file(file)?;
        let map = open.map.get_or_init(|| {
            let len = usize::try_from(open.file.metadata().ok()?.len()).ok()?;
            (len > 0).then(|| {
                Map::new(&open.file, &open.path, len, &open.claim)
                    .ok()
                    .map(Arc::new)
            })?
        });
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let slice = map.as_ref().and_then(|map| {
            let end = start.checked_add(len).filter(|&end| end <= map.len())?;
            Map::slice(map, start, end).ok()
        });
        match slice {
            Some(bytes) => Ok(bytes),
            // No map, past its end, or a page that does not come: the plain read says why.
            None => self.read(file, offset, len),
        }
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let open = self.file(file)?;
        open.file
            .write_all_at(data, offset)
            .map_err(at("write", &open.path))
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        let open = self.file(file)?;
        open.file.sync_data().map_err(at("sync", &open.path))
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(at("sync directory", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.check_writable("rename", to)?;
        rename_to_free_name(from, to)
    }

    fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.check_writable("replace", to)?;
        fs::rename(from, to).map_err(at("replace", to))
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        self.check_writable("remove", path)?;
        fs::remove_file(path).map_err(at("remove", path))
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.check_writable("remove", path)?;
        fs::remove_dir_all(path).map_err(at("remove", path))
    }

    fn submit(&self, op: Op) -> OpId {
        let mut state = self.lock();
        state.next_op += 1;
        let id = OpId(state.next_op);
        let is_slow = matches!(
            op,
            Op::Prepare { .. } | Op::Recycle { .. } | Op::Remove { .. }
        );
        if is_slow && !self.is_read_only {
            drop(state);
            self.send_to_background(id, op);
        } else {
            state.submitted.push_back((id, op));
        }
        id
    }

    fn wait(&self) {
        let waits = |state: &mut EndedState| state.done.is_empty() && state.under_way > 0;
        drop(self.ended.changed.wait_while(self.ended.lock(), waits));
    }

    fn wake_by(&self, waker: &Weak<Waker>) -> bool {
        let mut wakers = self.ended.wakers();
        wakers.0.retain(|waker| waker.strong_count() > 0);
        wakers.0.push(Weak::clone(waker));
        true
    }

    fn wait_for_all(&self) {
        let waits = |state: &mut EndedState| state.under_way > 0;
        drop(self.ended.changed.wait_while(self.ended.lock(), waits));
    }

    fn completions(&self, _now: Time) -> Vec<OpDone> {
        let submitted = std::mem::take(&mut self.lock().submitted);
        let mut done = std::mem::take(&mut self.ended.lock().done);
        done.extend(submitted.into_iter().map(|(op, work)| OpDone {
            op,
            result: self.run(work),
        }));
        done
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_waker_that_panics_ends_nothing_that_others_wait_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let vfs = StdVfs::new();
        let woken = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&woken);
        let careless: Arc<Waker> = Arc::new(|| panic!("a careless waker"));
        let waker: Arc<Waker> = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        for waker in [&careless, &waker] {
            assert!(vfs.wake_by(&Arc::downgrade(waker)));
        }
        let submitted: Vec<OpId> = (0..3)
            .map(|number| {
                vfs.submit(Op::Prepare {
                    path: dir.path().join(format!("segment {number}")),
                    len: 4_096,
                    head: Bytes::new(),
                })
            })
            .collect();
        vfs.wait_for_all();
        let done: Vec<OpId> = vfs
            .completions(Time(0))
            .iter()
            .map(|done| done.op)
            .collect();
        assert_eq!(done, submitted);
        // The last one is called behind the end of its operation.
        drop(vfs);
        while Arc::strong_count(&waker) > 1 || woken.load(Ordering::Relaxed) < 3 {
            std::thread::yield_now();
        }
    }

    fn prepared(dir: &Path) -> (StdVfs, FileId) {
        let vfs = StdVfs::new();
        let path = dir.join("segment");
        let op = vfs.submit(Op::Prepare {
            path: path.clone(),
            len: 1 << 20,
            head: Bytes::from_static(b"head"),
        });
        let done = loop {
            if let Some(done) = vfs.completions(Time(0)).pop() {
                break done;
            }
            std::thread::yield_now();
        };
        assert_eq!(done.op, op);
        done.result.expect("there is room");
        let file = vfs.open(&path, false).expect("it was made");
        (vfs, file)
    }

    #[test]
    fn a_prepared_file_owns_all_its_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let (_vfs, _file) = prepared(dir.path());
        let metadata = fs::metadata(dir.path().join("segment")).expect("it is there");
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 >= metadata.len());
    }

    #[test]
    fn slices_stay_valid_when_the_file_is_unlinked() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vfs, file) = prepared(dir.path());
        vfs.write(file, 8192, b"kept").expect("written");
        let slice = vfs.read_shared(file, 8192, 4).expect("read");
        assert!(vfs.retire(file), "a slice is held");
        vfs.remove_file(&dir.path().join("segment")).expect("gone");
        assert_eq!(slice, &b"kept"[..]);
    }

    #[test]
    fn a_shared_file_is_not_recycled() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vfs, file) = prepared(dir.path());
        let slice = vfs.read_shared(file, 0, 4).expect("read");
        let part = slice.slice(1..2);
        drop(slice);
        assert!(vfs.retire(file), "a part of a slice is held");
        let again = vfs.open(&dir.path().join("segment"), false).expect("open");
        drop(part);
        assert!(!vfs.retire(again));
    }

    #[test]
    fn a_file_cut_short_by_somebody_is_an_error_and_no_signal() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vfs, file) = prepared(dir.path());
        vfs.read_shared(file, 0, 4).expect("mapped");
        let outside = OpenOptions::new()
            .write(true)
            .open(dir.path().join("segment"))
            .expect("open");
        outside.set_len(4096).expect("cut");
        let past = vfs.read_shared(file, 1 << 19, 4).expect("a short read");
        assert!(past.is_empty());
    }

    #[test]
    fn a_read_only_file_system_reads_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, b"content").expect("written");
        let vfs = StdVfs::read_only();
        let file = vfs.open(&path, false).expect("open");
        assert_eq!(vfs.read(file, 0, 99).expect("read"), &b"content"[..]);
        assert_eq!(vfs.read_shared(file, 3, 4).expect("read"), &b"tent"[..]);
        let other = dir.path().join("other");
        let refused = [
            vfs.open(&other, true).map(drop),
            vfs.create_dir_all(&other),
            vfs.write(file, 0, b"x"),
            vfs.prepare(file, 99),
            vfs.rename(&path, &other),
            vfs.replace(&path, &other),
            vfs.remove_file(&path),
            vfs.remove_dir_all(dir.path()),
        ];
        for outcome in refused {
            outcome.expect_err("nothing is changed");
        }
        let head = Bytes::from_static(b"x");
        let ops = [
            Op::Write {
                file,
                offset: 0,
                buffers: vec![head.clone()],
            },
            Op::Prepare {
                path: other.clone(),
                len: 9,
                head: head.clone(),
            },
            Op::Recycle {
                from: path.clone(),
                to: other,
                head,
            },
            Op::Remove { path: path.clone() },
        ];
        let submitted: Vec<OpId> = ops.into_iter().map(|op| vfs.submit(op)).collect();
        let done = vfs.completions(Time(0));
        assert_eq!(done.len(), submitted.len());
        for done in done {
            done.result.expect_err("nothing is changed");
        }
        assert_eq!(fs::read(&path).expect("it is there"), b"content");
        assert_eq!(fs::read_dir(dir.path()).expect("it lists").count(), 1);
    }

    #[test]
    fn many_buffers_are_written_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let (vfs, file) = prepared(dir.path());
        let buffers: Vec<Bytes> = (0..3_000_u32)
            .map(|n| Bytes::copy_from_slice(&n.to_le_bytes()[..(n % 5).min(4) as usize]))
            .collect();
        let want: Vec<u8> = buffers.iter().flatten().copied().collect();
        vfs.submit(Op::Write {
            file,
            offset: 100,
            buffers,
        });
        let done = vfs.completions(Time(0)).pop().expect("one");
        done.result.expect("written");
        let found = vfs.read(file, 100, want.len()).expect("read");
        assert_eq!(&found[..], &want[..]);
    }
}
