//! The simulated file system: one thread, one seed, what was not synced is lost sector by sector.
//!
//! Each file has a live and a durable image, each directory live and durable entries. A crash
//! keeps of what was not durable a subset: drawn from the seed ([`SimVfs::crash`]) or chosen
//! ([`SimVfs::crash_keeping`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_proto::{Time, crc32c_append};

use super::{DirEntry, FileId, Op, OpDone, OpId, Vfs, VfsError, unfinished_path};

mod faults;
mod image;

pub use faults::Fault;
use faults::{EIO, Faults};
use image::Image;

/// What a disk writes whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// A file system in memory that fails as disks do.
#[derive(Debug)]
pub struct SimVfs {
    state: Mutex<State>,
    /// What has ended while somebody waited for it.
    ended: Mutex<Vec<OpDone>>,
}

#[derive(Clone, Debug)]
struct State {
    rng: u64,
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    /// Open files, and the path each was opened by.
    open: BTreeMap<FileId, (u64, PathBuf)>,
    next_file: u64,
    next_op: u64,
    pending: BTreeMap<(Time, OpId), Op>,
    now: Time,
    latency_nanos: u64,
    is_hung: bool,
    trace: u64,
    calls: u64,
    bytes_read: u64,
    faults: Faults,
    capacity_bytes: Option<u64>,
    /// The state after each call that changed something, if asked for.
    points: Option<Vec<Self>>,
}

#[derive(Clone, Debug)]
enum Node {
    Dir {
        live: BTreeMap<String, u64>,
        durable: BTreeMap<String, u64>,
    },
    File {
        live: Image,
        durable: Image,
        dirty: BTreeSet<usize>,
        /// Sectors that the medium does not give back, until they are written again.
        lost: BTreeSet<usize>,
    },
}

const ROOT: u64 = 0;

impl SimVfs {
    /// Makes an empty one.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(State {
            rng: seed,
            nodes: BTreeMap::from([(ROOT, empty_dir())]),
            next_node: 1,
            open: BTreeMap::new(),
            next_file: 0,
            next_op: 0,
            pending: BTreeMap::new(),
            now: Time(0),
            latency_nanos: 100_000,
            is_hung: false,
            trace: 0,
            calls: 0,
            bytes_read: 0,
            faults: Faults::default(),
            capacity_bytes: None,
            points: None,
        })
    }

    const fn with(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            ended: Mutex::new(Vec::new()),
        }
    }

    /// Moves time: what is due ends at the next [`Vfs::completions`].
    pub fn set_now(&self, now: Time) {
        self.lock().now = now;
    }

    /// How long a submitted operation takes at most.
    pub fn set_sync_latency(&self, nanos: u64) {
        self.lock().latency_nanos = nanos.max(1);
    }

    /// While hung, no submitted operation ends, and nobody waits for one: so power is lost in the
    /// midst of what is dropped before the crash.
    pub fn set_hung(&self, is_hung: bool) {
        self.lock().is_hung = is_hung;
    }

    /// When the next submitted operation ends.
    #[must_use]
    pub fn next_completion_time(&self) -> Option<Time> {
        let state = self.lock();
        let next = state.pending.keys().next().map(|key| key.0);
        next.filter(|_| !state.is_hung)
    }

    /// Covers every call so far, in order.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.lock().trace
    }

    /// The number of calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Files that are open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.lock().open.len()
    }

    /// The bytes read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.lock().bytes_read
    }

    /// Bounds the bytes of all files.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// The bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Keeps a copy of the disk after each call that changes something, from now on.
    pub fn record_crash_points(&self) {
        self.lock().points = Some(Vec::new());
    }

    /// Takes the copies kept.
    #[must_use]
    pub fn take_crash_points(&self) -> Vec<Self> {
        let mut state = self.lock();
        let points = state.points.as_mut().map(std::mem::take);
        let points = points.unwrap_or_default();
        points.into_iter().map(Self::with).collect()
    }

    /// A copy of the disk as it is.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut state = self.lock().clone();
        state.points = None;
        Self::with(state)
    }

    /// How many sectors and directory entries are not durable: what a crash may keep or lose, each
    /// for itself. Writes under way count as written.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        let mut count = 0;
        self.fork().crash_keeping(|_| {
            count += 1;
            true
        });
        count
    }

    /// The process dies and the system lives on: files are closed, writes under way are done, and
    /// what was not synced is still read back.
    pub fn kill_process(&self) {
        let mut state = self.lock();
        self.ended().clear();
        let pending = std::mem::take(&mut state.pending);
        for op in pending.into_values() {
            if let Op::Write { .. } = op {
                drop(state.run(&op));
            }
        }
        state.open.clear();
        state.is_hung = false;
    }

    /// Loses power: open files are gone, and so is of what was not synced a part drawn from the
    /// seed.
    pub fn crash(&self) {
        let mut rng = self.lock().rng;
        self.crash_keeping(|_| next(&mut rng).is_multiple_of(2));
        self.lock().rng = rng;
    }

    /// Loses power and keeps of what was not synced what `keep` says, asked once for each sector
    /// and directory entry in a fixed order.
    pub fn crash_keeping(&self, mut keep: impl FnMut(usize) -> bool) {
        let mut state = self.lock();
        self.ended().clear();
        let pending = std::mem::take(&mut state.pending);
        for op in pending.into_values() {
            // An operation under way may have reached the disk in part.
            if let Op::Write { .. } = op {
                drop(state.run(&op));
            }
        }
        state.open.clear();
        state.is_hung = false;
        let mut unit = 0;
        let mut keep = || {
            unit += 1;
            keep(unit - 1)
        };
        for node in state.nodes.values_mut() {
            match node {
                Node::Dir { live, durable } => {
                    let names: BTreeSet<String> =
                        live.keys().chain(durable.keys()).cloned().collect();
                    for name in names {
                        if live.get(&name) != durable.get(&name) && keep() {
                            match live.get(&name) {
                                Some(&node) => durable.insert(name, node),
                                None => durable.remove(&name),
                            };
                        }
                    }
                    live.clone_from(durable);
                }
                Node::File {
                    live,
                    durable,
                    dirty,
                    ..
                } => {
                    for sector in std::mem::take(dirty) {
                        if keep() {
                            let start = sector * SECTOR;
                            durable.copy_from(live, start, (start + SECTOR).min(live.len()));
                        }
                    }
                    live.clone_from(durable);
                }
            }
        }
        state.drop_unreachable();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> MutexGuard<'_, Vec<OpDone>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// SplitMix64.
fn next(rng: &mut u64) -> u64 {
    *rng = rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *rng;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The open file that an operation is on; what has none runs in the background elsewhere.
const fn file_of(op: &Op) -> Option<FileId> {
    match op {
        Op::Write { file, .. } | Op::Sync { file } => Some(*file),
        Op::Prepare { .. } | Op::Recycle { .. } | Op::Remove { .. } => None,
    }
}

const fn empty_dir() -> Node {
    Node::Dir {
        live: BTreeMap::new(),
        durable: BTreeMap::new(),
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a simulated file fits in memory")
}

fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("a length fits")
}

impl State {
    /// Counts and hashes a call; fails it if it is the one to fail.
    fn call(&mut self, op: &'static str, path: &Path, detail: u64) -> Result<(), VfsError> {
        match self.count(op, path, detail) {
            None => Ok(()),
            Some(fault) => Err(fault.error(op, path)),
        }
    }

    fn count(&mut self, op: &'static str, path: &Path, detail: u64) -> Option<Fault> {
        self.note(op, path, detail);
        self.calls += 1;
        let calls = self.calls;
        self.faults.of_call(calls, op)
    }

    /// Takes a call into the trace.
    fn note(&mut self, op: &'static str, path: &Path, detail: u64) {
        let crc = crc32c_append(0, op.as_bytes());
        let crc = crc32c_append(crc, path.as_os_str().as_encoded_bytes());
        let word = u64::from(crc) ^ detail.rotate_left(32) ^ self.now.0;
        self.trace = (self.trace ^ word)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(17);
    }

    /// Something has changed: a crash may come now.
    fn changed(&mut self) {
        if let Some(mut points) = self.points.take() {
            points.push(self.clone());
            self.points = Some(points);
        }
    }

    fn find(&self, path: &Path) -> Option<u64> {
        let mut at = ROOT;
        for component in path.components() {
            if let Component::Normal(name) = component {
                let Node::Dir { live, .. } = self.nodes.get(&at)? else {
                    return None;
                };
                at = *live.get(name.to_str()?)?;
            }
        }
        Some(at)
    }

    /// The node of the parent and the last name of `path`.
    fn parent(&self, op: &'static str, path: &Path) -> Result<(u64, String), VfsError> {
        let missing = || error(op, path, io::ErrorKind::NotFound);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(missing)?;
        let parent = path
            .parent()
            .and_then(|parent| self.find(parent))
            .filter(|node| matches!(self.nodes.get(node), Some(Node::Dir { .. })))
            .ok_or_else(missing)?;
        Ok((parent, name.to_owned()))
    }

    fn entries(&mut self, dir: u64) -> &mut BTreeMap<String, u64> {
        match self.nodes.get_mut(&dir) {
            Some(Node::Dir { live, .. }) => live,
            _ => unreachable!("parents are directories"),
        }
    }

    fn node(&self, file: FileId) -> Result<(u64, PathBuf), VfsError> {
        self.open
            .get(&file)
            .cloned()
            .ok_or_else(|| error("use a closed file", Path::new(""), io::ErrorKind::NotFound))
    }

    /// The files that a name leads to, or that are open.
    fn reachable(&self, with_durable: bool) -> BTreeSet<u64> {
        let mut found = BTreeSet::from([ROOT]);
        let mut rest = vec![ROOT];
        while let Some(node) = rest.pop() {
            if let Some(Node::Dir { live, durable }) = self.nodes.get(&node) {
                let durable = durable.values().filter(|_| with_durable);
                rest.extend(live.values().chain(durable).filter(|&&n| found.insert(n)));
            }
        }
        found.extend(self.open.values().map(|(node, _)| *node));
        found
    }

    fn drop_unreachable(&mut self) {
        let reachable = self.reachable(true);
        self.nodes.retain(|node, _| reachable.contains(node));
    }

    fn used_bytes(&self) -> u64 {
        let reachable = self.reachable(false);
        let lens = reachable.iter().map(|node| match self.nodes.get(node) {
            Some(Node::File { live, .. }) => to_u64(live.len()),
            _ => 0,
        });
        lens.sum()
    }

    fn open(&mut self, path: &Path, create: bool) -> Result<u64, VfsError> {
        match self.find(path) {
            Some(node) => Ok(node),
            None if create => {
                let (parent, name) = self.parent("open", path)?;
                let node = self.next_node;
                self.next_node += 1;
                let file = Node::File {
                    live: Image::default(),
                    durable: Image::default(),
                    dirty: BTreeSet::new(),
                    lost: BTreeSet::new(),
                };
                self.nodes.insert(node, file);
                self.entries(parent).insert(name, node);
                self.changed();
                Ok(node)
            }
            None => Err(error("open", path, io::ErrorKind::NotFound)),
        }
    }

    /// Opens a file that is there, or is not, and leaves nothing in it.
    fn create(&mut self, path: &Path) -> Result<u64, VfsError> {
        let node = self.open(path, true)?;
        let Some(Node::File { live, dirty, .. }) = self.nodes.get_mut(&node) else {
            return Err(error("open", path, io::ErrorKind::NotFound));
        };
        live.resize(0);
        dirty.clear();
        Ok(node)
    }

    /// One write call.
    fn write(&mut self, node: u64, path: &Path, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let detail = offset ^ u64::from(crc32c_append(0, data)) << 32;
        match self.count("write", path, detail) {
            None => self.write_bytes(node, path, offset, data),
            Some(fault) => {
                if fault == Fault::Short {
                    self.write_bytes(node, path, offset, &data[..data.len() / 2])?;
                }
                Err(fault.error("write", path))
            }
        }
    }

    fn write_bytes(
        &mut self,
        node: u64,
        path: &Path,
        offset: u64,
        data: &[u8],
    ) -> Result<(), VfsError> {
        let start = to_usize(offset);
        let end = start + data.len();
        let used = self.capacity_bytes.map(|_| self.used_bytes());
        let capacity = self.capacity_bytes;
        let Some(Node::File {
            live, dirty, lost, ..
        }) = self.nodes.get_mut(&node)
        else {
            return Err(error("write", path, io::ErrorKind::NotFound));
        };
        if let (Some(used), Some(capacity)) = (used, capacity)
            && end > live.len()
            && used + to_u64(end - live.len()) > capacity
        {
            return Err(error("write", path, io::ErrorKind::StorageFull));
        }
        if data.is_empty() {
            return Ok(());
        }
        let is_whole = |sector: &usize| start <= sector * SECTOR && (sector + 1) * SECTOR <= end;
        let mut touched = lost.range(start / SECTOR..end.div_ceil(SECTOR));
        if !touched.all(is_whole) {
            // A part of one cannot be put in place: the rest is not known.
            return Err(Fault::Errno(EIO).error("write", path));
        }
        live.write(start, data);
        dirty.extend(start / SECTOR..=(end - 1) / SECTOR);
        lost.retain(|sector| !is_whole(sector));
        self.changed();
        Ok(())
    }

    fn sync(&mut self, node: u64, path: &Path) -> Result<(), VfsError> {
        let called = self.call("sync", path, 0);
        if let Some(Node::File {
            live,
            durable,
            dirty,
            ..
        }) = self.nodes.get_mut(&node)
        {
            if called.is_ok() && durable.len() > live.len() {
                durable.resize(live.len());
            }
            for sector in std::mem::take(dirty) {
                if called.is_ok() {
                    let start = sector * SECTOR;
                    durable.copy_from(live, start, (start + SECTOR).min(live.len()));
                }
            }
        }
        if called.is_ok() {
            self.changed();
        }
        called
    }

    fn sync_dir(&mut self, path: &Path) -> Result<(), VfsError> {
        self.call("sync directory", path, 0)?;
        let node = self.find(path);
        match node.and_then(|node| self.nodes.get_mut(&node)) {
            Some(Node::Dir { live, durable }) => durable.clone_from(live),
            _ => return Err(error("sync directory", path, io::ErrorKind::NotFound)),
        }
        self.drop_unreachable();
        self.changed();
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path, may_replace: bool) -> Result<(), VfsError> {
        self.call("rename", to, 0)?;
        if !may_replace && self.find(to).is_some() {
            return Err(error("rename", to, io::ErrorKind::AlreadyExists));
        }
        let (old_parent, old_name) = self.parent("rename", from)?;
        let (new_parent, new_name) = self.parent("rename", to)?;
        let missing = || error("rename", from, io::ErrorKind::NotFound);
        let node = self
            .entries(old_parent)
            .remove(&old_name)
            .ok_or_else(missing)?;
        self.entries(new_parent).insert(new_name, node);
        self.changed();
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), VfsError> {
        self.call("remove", path, 0)?;
        let (parent, name) = self.parent("remove", path)?;
        match self.entries(parent).remove(&name) {
            Some(_) => {
                self.changed();
                Ok(())
            }
            None => Err(error("remove", path, io::ErrorKind::NotFound)),
        }
    }

    fn prepare(&mut self, node: u64, path: &Path, len: u64) -> Result<(), VfsError> {
        self.call("prepare", path, len)?;
        let size = to_usize(len);
        let used = self.capacity_bytes.map(|_| self.used_bytes());
        let capacity = self.capacity_bytes;
        let Some(Node::File {
            live,
            durable,
            dirty,
            ..
        }) = self.nodes.get_mut(&node)
        else {
            return Err(error("prepare", path, io::ErrorKind::NotFound));
        };
        if let (Some(used), Some(capacity)) = (used, capacity)
            && size > live.len()
            && used + to_u64(size - live.len()) > capacity
        {
            return Err(error("prepare", path, io::ErrorKind::StorageFull));
        }
        if size < live.len() {
            live.resize(size);
            dirty.retain(|&sector| sector * SECTOR < size);
            dirty.insert((size - 1) / SECTOR);
        }
        if size > live.len() {
            live.resize(size);
            // Growth is one unit of its own: the length is durable with the first sector kept.
            dirty.insert((size - 1) / SECTOR);
        }
        let zeroes = vec![0; size.min(1 << 16)];
        let mut at = 0;
        while at < size {
            let part = zeroes.len().min(size - at);
            let is_used = |image: &Image| image.read(at, at + part).iter().any(|&byte| byte != 0);
            if is_used(live) || is_used(durable) {
                live.write(at, &zeroes[..part]);
                dirty.extend(at / SECTOR..=(at + part - 1) / SECTOR);
            }
            at += part;
        }
        self.changed();
        Ok(())
    }

    fn run(&mut self, op: &Op) -> Result<(), VfsError> {
        match op {
            Op::Write {
                file,
                offset,
                buffers,
            } => {
                let (node, path) = self.node(*file)?;
                let mut at = *offset;
                for buffer in buffers {
                    self.write(node, &path, at, buffer)?;
                    at += to_u64(buffer.len());
                }
                Ok(())
            }
            Op::Sync { file } => {
                let (node, path) = self.node(*file)?;
                self.sync(node, &path)
            }
            Op::Prepare { path, len, head } => {
                let unfinished = unfinished_path(path);
                let result = self
                    .run_prepare(&unfinished, *len, head)
                    .and_then(|()| self.rename(&unfinished, path, true))
                    .and_then(|()| self.sync_dir(path.parent().unwrap_or_else(|| Path::new("/"))));
                if result.is_err() && self.find(&unfinished).is_some() {
                    drop(self.remove(&unfinished));
                }
                result
            }
            Op::Remove { path } => self.remove(path),
            Op::Recycle { from, to, head } => {
                self.call("open", from, 0)?;
                let node = self.open(from, false)?;
                self.write(node, from, 0, head)?;
                self.sync(node, from)?;
                self.rename(from, to, false)?;
                self.sync_dir(to.parent().unwrap_or_else(|| Path::new("/")))
            }
        }
    }

    fn run_prepare(&mut self, path: &Path, len: u64, head: &[u8]) -> Result<(), VfsError> {
        self.call("open", path, 0)?;
        let node = self.create(path)?;
        self.prepare(node, path, len)?;
        self.write(node, path, 0, head)?;
        self.sync(node, path)
    }
}

fn error(op: &'static str, path: &Path, kind: io::ErrorKind) -> VfsError {
    VfsError {
        op,
        path: path.to_owned(),
        source: kind.into(),
    }
}

impl Vfs for SimVfs {
    fn random(&self) -> Result<u64, VfsError> {
        Ok(next(&mut self.lock().rng))
    }

    fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        let mut state = self.lock();
        state.call("create directory", path, 0)?;
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            let name = name.to_string_lossy().into_owned();
            let next = state.entries(at).get(&name).copied();
            at = match next {
                Some(node) => node,
                None => {
                    let node = state.next_node;
                    state.next_node += 1;
                    state.nodes.insert(node, empty_dir());
                    state.entries(at).insert(name, node);
                    state.changed();
                    node
                }
            };
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
        let mut state = self.lock();
        state.call("list", path, 0)?;
        let Some(Node::Dir { live, .. }) = state.find(path).and_then(|node| state.nodes.get(&node))
        else {
            return Ok(Vec::new());
        };
        Ok(live
            .iter()
            .map(|(name, node)| {
                let is_dir = matches!(state.nodes.get(node), Some(Node::Dir { .. }));
                DirEntry {
                    name: name.clone(),
                    is_dir,
                    is_file: !is_dir,
                }
            })
            .collect())
    }

    fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
        let mut state = self.lock();
        state.call("open", path, 0)?;
        let node = state.open(path, create)?;
        state.next_file += 1;
        let file = FileId(state.next_file);
        state.open.insert(file, (node, path.to_owned()));
        Ok(file)
    }

    fn create(&self, path: &Path) -> Result<FileId, VfsError> {
        let mut state = self.lock();
        state.call("open", path, 0)?;
        let node = state.create(path)?;
        state.next_file += 1;
        let file = FileId(state.next_file);
        state.open.insert(file, (node, path.to_owned()));
        Ok(file)
    }

    fn close(&self, file: FileId) {
        let mut state = self.lock();
        state.note("close", Path::new(""), file.0);
        // A write that is under way goes on, as it does where a thread is at it.
        let is_written = |op: &Op| matches!(op, Op::Write { file: to, .. } if *to == file);
        if !state.pending.values().any(is_written) {
            state.open.remove(&file);
        }
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.note("measure", &path, 0);
        match state.nodes.get(&node) {
            Some(Node::File { live, .. }) => Ok(to_u64(live.len())),
            _ => Err(error("measure", &path, io::ErrorKind::NotFound)),
        }
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.prepare(node, &path, len)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.call("read", &path, offset)?;
        let Some(Node::File { live, lost, .. }) = state.nodes.get(&node) else {
            return Err(error("read", &path, io::ErrorKind::NotFound));
        };
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(live.len());
        let end = start.saturating_add(len).min(live.len());
        if start < end
            && lost
                .range(start / SECTOR..end.div_ceil(SECTOR))
                .next()
                .is_some()
        {
            return Err(Fault::Errno(EIO).error("read", &path));
        }
        let bytes = live.read(start, start.saturating_add(len));
        state.bytes_read += to_u64(bytes.len());
        Ok(Bytes::from(bytes))
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.write(node, &path, offset, data)
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        self.lock().run(&Op::Sync { file })
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        self.lock().sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.lock().rename(from, to, false)
    }

    fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        self.lock().rename(from, to, true)
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        self.lock().remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.lock().remove(path)
    }

    fn submit(&self, op: Op) -> OpId {
        let mut state = self.lock();
        state.next_op += 1;
        let id = OpId(state.next_op);
        state.note("submit", Path::new(""), id.0);
        // Operations on one file end in the order they were submitted.
        let file = file_of(&op);
        let last = state
            .pending
            .iter()
            .rev()
            .find(|(_, pending)| file.is_some() && file_of(pending) == file)
            .map_or(state.now, |(key, _)| key.0);
        let bound = state.latency_nanos;
        let latency = 1 + next(&mut state.rng) % bound;
        let due = state.now.max(last).plus_nanos(latency);
        state.pending.insert((due, id), op);
        id
    }

    /// In the order in which it would have ended; no time passes.
    fn wait_for_all(&self) {
        let mut state = self.lock();
        if state.is_hung {
            return;
        }
        let pending = state.pending.iter();
        let slow = pending.filter(|(_, op)| file_of(op).is_none());
        let slow: Vec<(Time, OpId)> = slow.map(|(key, _)| *key).collect();
        for key in slow {
            if let Some(op) = state.pending.remove(&key) {
                let (op, result) = (key.1, state.run(&op));
                self.ended().push(OpDone { op, result });
            }
        }
    }

    fn completions(&self, now: Time) -> Vec<OpDone> {
        let mut state = self.lock();
        let now = now.max(state.now);
        let mut done = std::mem::take(&mut *self.ended());
        while let Some((&(due, id), _)) = state.pending.first_key_value()
            && due <= now
            && !state.is_hung
        {
            let op = state.pending.remove(&(due, id)).expect("it was just seen");
            let result = state.run(&op);
            done.push(OpDone { op: id, result });
        }
        done
    }
}
