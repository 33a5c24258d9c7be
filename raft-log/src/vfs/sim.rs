//! The simulated file system: one thread, one seed, what was not synced is lost sector by sector.
//!
//! Each file has a live and a durable image, each directory live and durable entries. A crash
//! keeps of what was not durable a subset drawn from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_proto::{Time, crc32c_append};

use super::{DirEntry, FileId, Op, OpDone, OpId, Vfs, VfsError};

const SECTOR: usize = 512;

/// A file system in memory that fails as disks do.
#[derive(Debug)]
pub struct SimVfs {
    state: Mutex<State>,
}

#[derive(Debug)]
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
    trace: u64,
    calls: u64,
    fail: Option<(u64, io::ErrorKind)>,
    capacity_bytes: Option<u64>,
}

#[derive(Debug)]
enum Node {
    Dir {
        live: BTreeMap<String, u64>,
        durable: BTreeMap<String, u64>,
    },
    File {
        live: Vec<u8>,
        durable: Vec<u8>,
        dirty: BTreeSet<usize>,
    },
}

const ROOT: u64 = 0;

impl SimVfs {
    /// Makes an empty one.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let root = Node::Dir {
            live: BTreeMap::new(),
            durable: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(State {
                rng: seed,
                nodes: BTreeMap::from([(ROOT, root)]),
                next_node: 1,
                open: BTreeMap::new(),
                next_file: 0,
                next_op: 0,
                pending: BTreeMap::new(),
                now: Time(0),
                latency_nanos: 100_000,
                trace: 0,
                calls: 0,
                fail: None,
                capacity_bytes: None,
            }),
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

    /// When the next submitted operation ends.
    #[must_use]
    pub fn next_completion_time(&self) -> Option<Time> {
        self.lock().pending.keys().next().map(|key| key.0)
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

    /// Lets the call with this number fail, once.
    pub fn fail_at(&self, call: u64, kind: io::ErrorKind) {
        self.lock().fail = Some((call, kind));
    }

    /// Bounds the bytes of all files.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity_bytes = bytes;
    }

    /// Loses power: open files are gone, and so is of what was not synced a part drawn from the
    /// seed.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.open.clear();
        let pending = std::mem::take(&mut state.pending);
        for op in pending.into_values() {
            // An operation under way may have reached the disk in part.
            if let Op::Write { .. } = op {
                drop(state.run(&op));
            }
        }
        let State { nodes, rng, .. } = &mut *state;
        for node in nodes.values_mut() {
            match node {
                Node::Dir { live, durable } => {
                    let names: BTreeSet<String> =
                        live.keys().chain(durable.keys()).cloned().collect();
                    for name in names {
                        if live.get(&name) != durable.get(&name) && next(rng).is_multiple_of(2) {
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
                } => {
                    for &sector in dirty.iter() {
                        if next(rng).is_multiple_of(2) {
                            let start = sector * SECTOR;
                            let end = (start + SECTOR).min(live.len());
                            if durable.len() < end {
                                durable.resize(end, 0);
                            }
                            durable[start..end].copy_from_slice(&live[start..end]);
                        }
                    }
                    dirty.clear();
                    live.clone_from(durable);
                }
            }
        }
    }

    /// Flips one bit of a file, in both images: damage.
    ///
    /// # Panics
    ///
    /// If there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, byte: usize, bit: u8) {
        let mut state = self.lock();
        let node = state.find(path).expect("the file exists");
        let Some(Node::File { live, durable, .. }) = state.nodes.get_mut(&node) else {
            panic!("{path:?} is no file");
        };
        live[byte] ^= 1 << bit;
        durable[byte] ^= 1 << bit;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

impl State {
    fn call(&mut self, op: &'static str, path: &Path, detail: u64) -> Result<(), VfsError> {
        let crc = crc32c_append(0, op.as_bytes());
        let crc = crc32c_append(crc, path.as_os_str().as_encoded_bytes());
        let word = u64::from(crc) ^ detail.rotate_left(32) ^ self.now.0;
        self.trace = (self.trace ^ word)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(17);
        self.calls += 1;
        match self.fail.take_if(|(call, _)| *call == self.calls) {
            Some((_, kind)) => Err(error(op, path, kind)),
            None => Ok(()),
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

    fn used_bytes(&self) -> u64 {
        let lens = self.nodes.values().map(|node| match node {
            Node::File { live, .. } => u64::try_from(live.len()).expect("a length fits"),
            Node::Dir { .. } => 0,
        });
        lens.sum()
    }

    fn write(&mut self, node: u64, path: &Path, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let start = usize::try_from(offset).expect("an offset fits");
        let end = start + data.len();
        let capacity = self.capacity_bytes;
        let used = self.used_bytes();
        let Some(Node::File { live, dirty, .. }) = self.nodes.get_mut(&node) else {
            return Err(error("write", path, io::ErrorKind::NotFound));
        };
        if end > live.len() {
            let growth = u64::try_from(end - live.len()).expect("a length fits");
            if capacity.is_some_and(|capacity| used + growth > capacity) {
                return Err(error("write", path, io::ErrorKind::StorageFull));
            }
            live.resize(end, 0);
        }
        live[start..end].copy_from_slice(data);
        if !data.is_empty() {
            dirty.extend(start / SECTOR..=(end - 1) / SECTOR);
        }
        Ok(())
    }

    fn sync(&mut self, node: u64) {
        if let Some(Node::File {
            live,
            durable,
            dirty,
        }) = self.nodes.get_mut(&node)
        {
            if durable.len() != live.len() {
                durable.resize(live.len(), 0);
            }
            for sector in std::mem::take(dirty) {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(live.len());
                durable[start..end].copy_from_slice(&live[start..end]);
            }
        }
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
                    self.call("write", &path, at)?;
                    self.write(node, &path, at, buffer)?;
                    at += u64::try_from(buffer.len()).expect("a length fits");
                }
            }
            Op::Sync { file } => {
                let (node, path) = self.node(*file)?;
                self.call("sync", &path, 0)?;
                self.sync(node);
            }
        }
        Ok(())
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
                    let dir = Node::Dir {
                        live: BTreeMap::new(),
                        durable: BTreeMap::new(),
                    };
                    state.nodes.insert(node, dir);
                    state.entries(at).insert(name, node);
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
        let node = match state.find(path) {
            Some(node) => node,
            None if create => {
                let (parent, name) = state.parent("open", path)?;
                let node = state.next_node;
                state.next_node += 1;
                let file = Node::File {
                    live: Vec::new(),
                    durable: Vec::new(),
                    dirty: BTreeSet::new(),
                };
                state.nodes.insert(node, file);
                state.entries(parent).insert(name, node);
                node
            }
            None => return Err(error("open", path, io::ErrorKind::NotFound)),
        };
        state.next_file += 1;
        let file = FileId(state.next_file);
        state.open.insert(file, (node, path.to_owned()));
        Ok(file)
    }

    fn close(&self, file: FileId) {
        self.lock().open.remove(&file);
    }

    fn len(&self, file: FileId) -> Result<u64, VfsError> {
        let state = self.lock();
        let (node, path) = state.node(file)?;
        match state.nodes.get(&node) {
            Some(Node::File { live, .. }) => Ok(u64::try_from(live.len()).expect("it fits")),
            _ => Err(error("measure", &path, io::ErrorKind::NotFound)),
        }
    }

    fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.call("prepare", &path, len)?;
        let zeroes = vec![0; usize::try_from(len).expect("a length fits")];
        state.write(node, &path, 0, &zeroes)
    }

    fn read(&self, file: FileId, offset: u64, len: usize) -> Result<Bytes, VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.call("read", &path, offset)?;
        let Some(Node::File { live, .. }) = state.nodes.get(&node) else {
            return Err(error("read", &path, io::ErrorKind::NotFound));
        };
        let start = usize::try_from(offset)
            .expect("an offset fits")
            .min(live.len());
        let end = start.saturating_add(len).min(live.len());
        Ok(Bytes::copy_from_slice(&live[start..end]))
    }

    fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
        let mut state = self.lock();
        let (node, path) = state.node(file)?;
        state.call("write", &path, offset)?;
        state.write(node, &path, offset, data)
    }

    fn sync(&self, file: FileId) -> Result<(), VfsError> {
        self.lock().run(&Op::Sync { file })
    }

    fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
        let mut state = self.lock();
        state.call("sync directory", path, 0)?;
        let node = state.find(path);
        match node.and_then(|node| state.nodes.get_mut(&node)) {
            Some(Node::Dir { live, durable }) => durable.clone_from(live),
            _ => return Err(error("sync directory", path, io::ErrorKind::NotFound)),
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
        let mut state = self.lock();
        state.call("rename", to, 0)?;
        if state.find(to).is_some() {
            return Err(error("rename", to, io::ErrorKind::AlreadyExists));
        }
        let (old_parent, old_name) = state.parent("rename", from)?;
        let (new_parent, new_name) = state.parent("rename", to)?;
        let missing = || error("rename", from, io::ErrorKind::NotFound);
        let node = state
            .entries(old_parent)
            .remove(&old_name)
            .ok_or_else(missing)?;
        state.entries(new_parent).insert(new_name, node);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
        let mut state = self.lock();
        state.call("remove", path, 0)?;
        let (parent, name) = state.parent("remove", path)?;
        match state.entries(parent).remove(&name) {
            Some(_) => Ok(()),
            None => Err(error("remove", path, io::ErrorKind::NotFound)),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
        self.remove_file(path)
    }

    fn submit(&self, op: Op) -> OpId {
        let mut state = self.lock();
        state.next_op += 1;
        let id = OpId(state.next_op);
        // Operations end in the order they were submitted.
        let last = state
            .pending
            .keys()
            .next_back()
            .map_or(state.now, |key| key.0);
        let bound = state.latency_nanos;
        let latency = 1 + next(&mut state.rng) % bound;
        let due = state.now.max(last).plus_nanos(latency);
        state.pending.insert((due, id), op);
        id
    }

    fn completions(&self, _now: Time) -> Vec<OpDone> {
        let mut state = self.lock();
        let mut done = Vec::new();
        while let Some(entry) = state.pending.first_entry()
            && entry.key().0 <= entry.key().0.min(Time(u64::MAX))
        {
            let (due, id) = *entry.key();
            if due > state.now {
                break;
            }
            let op = state.pending.remove(&(due, id)).expect("it was just seen");
            let result = state.run(&op);
            done.push(OpDone { op: id, result });
        }
        done
    }
}
