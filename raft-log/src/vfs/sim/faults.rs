//! How the simulated file system fails, and how it is damaged.

use std::io;
use std::path::Path;

use super::{Node, SimVfs, VfsError};

pub(super) const EIO: i32 = 5;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With an error, nothing done. What a sync was to make durable counts as clean from then on,
    /// as some systems have it: only what is written again is made durable by a later one.
    Error(io::ErrorKind),
    /// The same with a number of the operating system: `EMFILE` has no kind of its own.
    Errno(i32),
    /// A write is done in part, then ends with an error; other calls fail with nothing done.
    Short,
}

/// The calls that are to fail.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    at: Option<(u64, Fault)>,
    next: Option<(&'static str, Fault)>,
    every: Option<(&'static str, Fault)>,
    read_only_from: Option<u64>,
}

impl Faults {
    /// How the call with this number and name fails, if it does.
    pub(super) fn of_call(&mut self, call: u64, op: &'static str) -> Option<Fault> {
        let is_change = !matches!(op, "read" | "list");
        if is_change && self.read_only_from.is_some_and(|from| from <= call) {
            return Some(Fault::Error(io::ErrorKind::ReadOnlyFilesystem));
        }
        if let Some((_, fault)) = self.next.take_if(|(name, _)| *name == op) {
            return Some(fault);
        }
        if let Some((_, fault)) = self.every.filter(|(name, _)| *name == op) {
            return Some(fault);
        }
        let at = self.at.take_if(|(at, _)| *at == call);
        at.map(|(_, fault)| fault)
    }
}

impl Fault {
    pub(super) fn error(self, op: &'static str, path: &Path) -> VfsError {
        let source = match self {
            Self::Error(kind) => kind.into(),
            Self::Errno(number) => io::Error::from_raw_os_error(number),
            Self::Short => io::ErrorKind::WriteZero.into(),
        };
        VfsError {
            op,
            path: path.to_owned(),
            source,
        }
    }
}

impl SimVfs {
    /// Lets the call with this number fail, once.
    pub fn fail_at(&self, call: u64, kind: io::ErrorKind) {
        self.fault_at(call, Fault::Error(kind));
    }

    /// Lets the call with this number fail in the given way, once.
    pub fn fault_at(&self, call: u64, fault: Fault) {
        self.lock().faults.at = Some((call, fault));
    }

    /// Lets the next call of this name fail, once: `open`, `write`, `sync` and so on.
    pub fn fail_next(&self, op: &'static str, kind: io::ErrorKind) {
        self.fault_next(op, Fault::Error(kind));
    }

    /// Lets the next call of this name fail in the given way, once.
    pub fn fault_next(&self, op: &'static str, fault: Fault) {
        self.lock().faults.next = Some((op, fault));
    }

    /// Lets every call of this name fail in the given way, until told otherwise.
    pub fn fault_every(&self, op: &'static str, fault: Option<Fault>) {
        self.lock().faults.every = fault.map(|fault| (op, fault));
    }

    /// While read-only, all is refused but reading, opening for writing too.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.lock().faults.read_only_from = is_read_only.then_some(0);
    }

    /// Turns read-only with the call of this number.
    pub fn read_only_from(&self, call: u64) {
        self.lock().faults.read_only_from = Some(call);
    }

    /// Changes a file's content in both images: damage.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let node = state.find(path).expect("the file exists");
        let Some(Node::File {
            live,
            durable,
            dirty,
            ..
        }) = state.nodes.get_mut(&node)
        else {
            panic!("{path:?} is no file");
        };
        let mut content = live.read(0, live.len());
        change(&mut content);
        live.resize(content.len());
        live.write(0, &content);
        durable.clone_from(live);
        dirty.clear();
    }

    /// Lets every read of a sector of a file fail with `EIO` until it is written again: damage.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn lose_sector(&self, path: &Path, sector: usize) {
        let mut state = self.lock();
        let node = state.find(path).expect("the file exists");
        let Some(Node::File { lost, .. }) = state.nodes.get_mut(&node) else {
            panic!("{path:?} is no file");
        };
        lost.insert(sector);
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
        for image in [live, durable] {
            let found = image.read(byte, byte + 1)[0];
            image.write(byte, &[found ^ (1 << bit)]);
        }
    }

    /// Renames, removes or swaps names at once and durably: an operator's mistake. `to` of `None`
    /// removes; a taken name is swapped.
    ///
    /// # Panics
    ///
    /// If there is no such file, or no such directory.
    pub fn misplace(&self, from: &Path, to: Option<&Path>) {
        let mut state = self.lock();
        let (parent, name) = state.parent("misplace", from).expect("a name");
        let node = state
            .entries(parent)
            .remove(&name)
            .expect("the file exists");
        if let Some(to) = to {
            let (to_parent, to_name) = state.parent("misplace", to).expect("a name");
            if let Some(other) = state.entries(to_parent).insert(to_name, node) {
                state.entries(parent).insert(name, other);
            }
        }
        for node in state.nodes.values_mut() {
            if let Node::Dir { live, durable } = node {
                durable.clone_from(live);
            }
        }
    }
}
