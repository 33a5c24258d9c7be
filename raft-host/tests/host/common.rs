//! Certificates, a state machine, and a fleet of hosts in temporary directories.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_host::{
    Bytes, BytesMut, Command, GroupHandle, GroupId, GroupStart, GroupStatus, HostConfig, HostId,
    NodeHost, OpenError, ProposeError, ReplicaId, SaveCursor, SaveStep, SnapshotRead, Start,
    StateMachine, StateMachineError, TransportError,
};
use tempfile::TempDir;

use crate::authority::Authority;

/// Nothing here takes long: a wait that lasts this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn host(id: u64) -> HostId {
    HostId::new(id).expect("an id")
}

pub(crate) fn group(id: u64) -> GroupId {
    GroupId::new(id).expect("an id")
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("an id")
}

/// Founding members: on each host the replica of the same number.
pub(crate) fn members(hosts: &[u64]) -> BTreeMap<ReplicaId, HostId> {
    hosts.iter().map(|&id| (replica(id), host(id))).collect()
}

/// Remembers every command, in order.
#[derive(Default)]
pub(crate) struct Ledger {
    lines: Vec<Bytes>,
}

/// A command that no state machine survives.
pub(crate) const POISON: &[u8] = b"poison";
/// A command that is said to make the machine give up.
pub(crate) const ERROR: &[u8] = b"error";

impl StateMachine for Ledger {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        assert_ne!(command.payload, POISON, "poisoned");
        if command.payload == ERROR {
            return Err(StateMachineError("told to give up".to_owned()));
        }
        self.lines.push(Bytes::copy_from_slice(command.payload));
        Ok(self.lines.len().to_string().into())
    }

    fn query(&mut self, _query: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(self.lines.join(&b'\n').into())
    }

    fn save_next(
        &mut self,
        cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        let mut at = cursor.0.len();
        for line in self.lines.iter().skip(at).take(64) {
            out.extend_from_slice(&u32::try_from(line.len()).expect("short").to_le_bytes());
            out.extend_from_slice(line);
            at += 1;
        }
        cursor.0.resize(at, 0);
        Ok(if at == self.lines.len() {
            SaveStep::Done
        } else {
            SaveStep::More
        })
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        self.lines.clear();
        let mut rest = BytesMut::new();
        while let Some(block) = source.next()? {
            rest.extend_from_slice(&block);
            while let Some(length) = rest.get(..4) {
                let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
                let end = 4 + usize::try_from(length).expect("it fits");
                if rest.len() < end {
                    break;
                }
                self.lines.push(rest.split_to(end).freeze().slice(4..));
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(StateMachineError("a line is cut".to_owned()))
        }
    }

    fn state_hash(&mut self) -> u64 {
        self.lines.iter().fold(1, |hash, line| {
            line.iter().fold(hash, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
        })
    }
}

/// A deployment in one directory: an authority, and a data directory for each host.
pub(crate) struct Fleet {
    dir: TempDir,
    authority: Authority,
    addresses: BTreeMap<HostId, SocketAddr>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self {
            authority: Authority::in_dir(dir.path()),
            dir,
            addresses: BTreeMap::new(),
        }
    }

    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("host-{id}"))
    }

    /// Writes a certificate for `name`, under the file names of host `id`.
    pub(crate) fn certify(&self, id: u64, name: &str) {
        self.authority.certify(id, name);
    }

    /// The configuration of a host, with a certificate of its own.
    pub(crate) fn config(&self, id: u64) -> HostConfig {
        self.certify(id, &format!("h{id}.demo.raft"));
        let mut config = HostConfig::new(self.data_dir(id), host(id), "demo");
        config.certificates =
            raft_host::CertificateFiles::in_dir(self.dir.path().to_owned(), host(id));
        config.addresses = self.addresses.clone();
        config.log.segment_size_bytes = 1 << 20;
        config.log.record_bytes_max = 256 << 10;
        config.engine.message_bytes_max = 128 << 10;
        config.engine.proposal_bytes_max = 128 << 10;
        config.engine.compaction_overhead = 5;
        if let Some(address) = self.addresses.get(&host(id)) {
            config.listen = *address;
        }
        config
    }

    /// Opens a host. It keeps its address over restarts.
    pub(crate) async fn open(&mut self, id: u64) -> NodeHost {
        self.try_open(id).await.expect("it opens")
    }

    pub(crate) async fn try_open(&mut self, id: u64) -> Result<NodeHost, OpenError> {
        let config = self.config(id);
        // The port of a host that was just closed is free a moment later.
        let opened = until("a free port", || async {
            match NodeHost::open(config.clone()).await {
                Err(OpenError::Network(TransportError::Listen(_))) => None,
                opened => Some(opened),
            }
        });
        let opened = opened.await?;
        self.addresses.insert(host(id), opened.raft_addr());
        Ok(opened)
    }

    /// Opens several hosts that know of each other.
    pub(crate) async fn open_all(&mut self, ids: &[u64]) -> BTreeMap<u64, NodeHost> {
        let mut hosts = BTreeMap::new();
        for &id in ids {
            hosts.insert(id, self.open(id).await);
        }
        self.introduce(&hosts);
        hosts
    }

    pub(crate) fn introduce(&self, hosts: &BTreeMap<u64, NodeHost>) {
        for node in hosts.values() {
            for (&other, &address) in &self.addresses {
                if other != node.host() {
                    node.registry().set(other, address);
                }
            }
        }
    }

    /// Remembers where a host listens that was opened otherwise.
    pub(crate) fn know(&mut self, id: u64, address: SocketAddr) {
        self.addresses.insert(host(id), address);
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Starts a group of three, or of as many as there are hosts.
pub(crate) async fn found(hosts: &BTreeMap<u64, NodeHost>, id: u64) -> BTreeMap<u64, GroupHandle> {
    let ids: Vec<u64> = hosts.keys().copied().collect();
    start(
        hosts,
        id,
        &Start::Bootstrap {
            members: members(&ids),
        },
    )
    .await
}

pub(crate) async fn start(
    hosts: &BTreeMap<u64, NodeHost>,
    id: u64,
    how: &Start,
) -> BTreeMap<u64, GroupHandle> {
    let mut handles = BTreeMap::new();
    for (&host, node) in hosts {
        let started = start_on(node, id, host, how.clone()).await;
        handles.insert(host, started);
    }
    handles
}

pub(crate) async fn start_on(node: &NodeHost, id: u64, replica_id: u64, how: Start) -> GroupHandle {
    node.start_group(a_start(id, replica_id, how))
        .await
        .expect("it starts")
}

pub(crate) fn a_start(id: u64, replica_id: u64, start: Start) -> GroupStart {
    GroupStart {
        group: group(id),
        replica: replica(replica_id),
        start,
        machine: Box::new(Ledger::default()),
    }
}

/// Asks until the answer is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// The host whose replica leads.
pub(crate) async fn leader(handles: &BTreeMap<u64, GroupHandle>) -> u64 {
    until("a leader", || async {
        for (&host, handle) in handles {
            if let Ok(status) = handle.status().await
                && status.role == raft_host::Role::Leader
                && status.failed.is_none()
            {
                return Some(host);
            }
        }
        None
    })
    .await
}

/// Proposes on whichever host leads, until it is acknowledged. Only for commands that may be
/// applied twice.
pub(crate) async fn propose(handles: &BTreeMap<u64, GroupHandle>, command: &[u8]) -> Bytes {
    until("an acknowledged command", || async {
        let handle = &handles[&leader(handles).await];
        match handle.propose(Bytes::copy_from_slice(command)).await {
            Ok(applied) => Some(applied.result),
            Err(ProposeError::Refused { reason }) => panic!("{reason}"),
            Err(_) => None,
        }
    })
    .await
}

/// Reads linearizably, from any host.
pub(crate) async fn read(handle: &GroupHandle) -> String {
    let answer = until("an answer", || async {
        handle.read(Bytes::new()).await.ok()
    })
    .await;
    String::from_utf8(answer.to_vec()).expect("text")
}

/// Waits until all replicas have applied the same, and returns what they are at.
pub(crate) async fn settle(handles: &BTreeMap<u64, GroupHandle>) -> GroupStatus {
    until("equal replicas", || async {
        let mut statuses = Vec::new();
        for handle in handles.values() {
            statuses.push(handle.status().await.ok()?);
        }
        let first = statuses.first()?;
        let is_settled = statuses.iter().all(|status| {
            (status.applied, status.state_hash) == (first.applied, first.state_hash)
                && status.commit == first.commit
                && status.applied == status.commit
        });
        is_settled.then(|| first.clone())
    })
    .await
}

/// Closes all hosts in good order.
pub(crate) async fn close(hosts: BTreeMap<u64, NodeHost>) {
    for (_, host) in hosts {
        host.close().await.expect("it closes");
    }
}
