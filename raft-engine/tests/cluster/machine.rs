//! The state machine of the deterministic cluster: a list of the commands it was given, hashed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_engine::{Command, SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError};
use raft_proto::{GroupId, HostId, Index};

/// What every applied entry of the whole cluster is held against.
#[derive(Debug, Default)]
pub struct Applications {
    /// The state hash of each group at each index, as first seen.
    hashes: BTreeMap<(GroupId, Index), u64>,
    /// What went wrong.
    pub violations: Vec<String>,
    /// Applied entries, replicas counted apart.
    pub count: u64,
    /// Covers every applied entry in the order of the run.
    pub trace: u64,
}

impl Applications {
    fn note(&mut self, host: HostId, group: GroupId, index: Index, hash: u64) {
        self.count += 1;
        for word in [host.get(), group.get(), index.get(), hash] {
            self.trace = mix(self.trace, word);
        }
        let first = *self.hashes.entry((group, index)).or_insert(hash);
        if first != hash {
            self.violations.push(format!(
                "group {group} index {index}: host {host} has state {hash:x}, another had {first:x}"
            ));
        }
    }
}

/// One step of an order-dependent hash.
pub fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

/// What a command holds behind its number: never zeros, which lie in a file wherever nothing is.
pub fn filler(number: u64) -> u8 {
    number.to_le_bytes()[0] | 1
}

/// Keeps every command's number, in order.
pub struct ListMachine {
    host: HostId,
    group: GroupId,
    list: Vec<u64>,
    hash: u64,
    applications: Arc<Mutex<Applications>>,
}

impl ListMachine {
    pub fn new(host: HostId, group: GroupId, applications: Arc<Mutex<Applications>>) -> Self {
        Self {
            host,
            group,
            list: Vec::new(),
            hash: 0,
            applications,
        }
    }
}

impl StateMachine for ListMachine {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        let mut payload = command.payload;
        if payload.len() < 8 {
            return Err(StateMachineError(format!(
                "command of {} bytes",
                payload.len()
            )));
        }
        let number = payload.get_u64_le();
        if payload.iter().any(|byte| *byte != filler(number)) {
            return Err(StateMachineError(format!(
                "command {number} is not as proposed"
            )));
        }
        self.list.push(number);
        self.hash = mix(self.hash, number);
        let mut applications = self
            .applications
            .lock()
            .expect("no test panics under this lock");
        applications.note(self.host, self.group, command.index, self.hash);
        Ok(Bytes::copy_from_slice(&self.list.len().to_le_bytes()))
    }

    fn query(&mut self, _query: &[u8]) -> Result<Bytes, StateMachineError> {
        let mut answer = BytesMut::new();
        self.list
            .iter()
            .for_each(|&number| answer.put_u64_le(number));
        Ok(answer.freeze())
    }

    fn save_next(
        &mut self,
        cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        let mut at = cursor.0.len();
        for &number in self.list.iter().skip(at).take(100) {
            out.put_u64_le(number);
            at += 1;
        }
        // The cursor's length is the place.
        cursor.0.resize(at, 0);
        Ok(if at == self.list.len() {
            SaveStep::Done
        } else {
            SaveStep::More
        })
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        self.list.clear();
        self.hash = 0;
        while let Some(mut bytes) = source.next()? {
            while bytes.remaining() >= 8 {
                let number = bytes.get_u64_le();
                self.list.push(number);
                self.hash = mix(self.hash, number);
            }
            if bytes.has_remaining() {
                return Err(StateMachineError("a number is cut".to_owned()));
            }
        }
        let mut applications = self
            .applications
            .lock()
            .expect("no test panics under this lock");
        for word in [self.host.get(), self.group.get(), self.hash] {
            applications.trace = mix(applications.trace, word);
        }
        Ok(())
    }

    fn state_hash(&mut self) -> u64 {
        self.hash
    }
}
