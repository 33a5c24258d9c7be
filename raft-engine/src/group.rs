//! A replica's state in its step worker: the core, and what stands between it and the world.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_log::{SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{
    EntryId, GroupId, HardState, HostId, Index, Message, Raft, ReplicaId, Session, SnapshotMeta,
    SubmissionId,
};
use raft_snapshot::SnapshotEnv;

use crate::apply::{Read, Task, Waiter};
use crate::jobs::RestoreJob;
use crate::request::{Applied, Responder, SnapshotOutcome};

/// A command that waits for its pass.
pub(crate) struct Proposal {
    pub(crate) command: Bytes,
    pub(crate) session: Option<Session>,
    pub(crate) responder: Responder<Applied>,
}

/// What the core was promised a notice for, in the order it asked.
///
/// Invariant: completes in order; one without a lane sequence completes with the one before it.
pub(crate) struct Outstanding {
    /// The lane's number for it, or `None` if nothing had to be written.
    pub(crate) sequence: Option<u64>,
    pub(crate) submission: Option<SubmissionId>,
    /// What may leave once it is durable.
    pub(crate) release: Vec<Message>,
    pub(crate) then: Option<OnDurable>,
}

/// What follows when a snapshot record is durable.
pub(crate) enum OnDurable {
    /// The replica's first record: it exists.
    Founded { responder: Option<Responder<()>> },
    /// A snapshot of our own: its flag may go, and its caller hears of it.
    Recorded { index: Index },
    /// A received one: the state machine may be restored from it.
    Installed { meta: SnapshotMeta },
}

/// A snapshot being saved.
pub(crate) struct Saving {
    pub(crate) index: Index,
    pub(crate) responder: Option<Responder<SnapshotOutcome>>,
    pub(crate) overhead: u64,
    pub(crate) is_export: bool,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) epoch: u64,
    pub(crate) raft: Raft,
    /// Already in this pass's list.
    pub(crate) is_touched: bool,
    /// Where the group stands in the timers.
    pub(crate) deadline_tick: Option<u64>,
    /// The number of the last submission given to the lane.
    pub(crate) sequence: u64,
    pub(crate) outstanding: VecDeque<Outstanding>,
    /// What the lane was last given, and what it must be given with the next record.
    pub(crate) hard_state: HardState,
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) reads: Vec<Read>,
    pub(crate) rounds: BTreeMap<u64, Vec<Read>>,
    pub(crate) next_round: u64,
    /// Proposers whose entries are in the log and not yet committed, by index.
    pub(crate) waiters: VecDeque<Waiter>,
    /// Where each replica lives: from the membership, and from the connections its messages
    /// came by.
    pub(crate) hosts: BTreeMap<ReplicaId, HostId>,
    pub(crate) env: SnapshotEnv,
    /// Recorded snapshots, oldest first.
    pub(crate) snapshots: Vec<SnapshotMeta>,
    pub(crate) saving: Option<Saving>,
    /// The last entry handed to the apply worker.
    pub(crate) handed: EntryId,
    pub(crate) transfer: Option<(ReplicaId, Responder<()>)>,
    pub(crate) is_installed_from_stream: bool,
    pub(crate) failed: Option<String>,
    /// The first record of a replica that founds its group.
    pub(crate) founding: Option<Submission>,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        replica: ReplicaId,
        epoch: u64,
        raft: Raft,
        env: SnapshotEnv,
        snapshots: Vec<SnapshotMeta>,
    ) -> Self {
        Self {
            id,
            replica,
            epoch,
            raft,
            is_touched: false,
            deadline_tick: None,
            sequence: 0,
            outstanding: VecDeque::new(),
            hard_state: HardState::default(),
            proposals: Vec::new(),
            reads: Vec::new(),
            rounds: BTreeMap::new(),
            next_round: 1,
            waiters: VecDeque::new(),
            hosts: BTreeMap::new(),
            env,
            snapshots,
            saving: None,
            handed: EntryId::ZERO,
            transfer: None,
            is_installed_from_stream: false,
            failed: None,
            founding: None,
        }
    }

    /// What the log records of the retained snapshots.
    pub(crate) fn snapshots_record(&self) -> SnapshotsRecord {
        let record = |meta: &SnapshotMeta| SnapshotRecord {
            id: meta.id,
            membership: Bytes::from(meta.membership.encode()),
        };
        SnapshotsRecord {
            retained: self.snapshots.iter().map(record).collect(),
        }
    }

    /// The task that replaces the machine's state by the stored snapshot at `index`.
    pub(crate) fn restore_task(&self, index: Index) -> Task {
        let (group, env) = (self.id, self.env.clone());
        Task::Restore(Box::new(RestoreJob {
            group,
            env,
            index,
            machine: None,
        }))
    }

    /// The newest recorded snapshot that lies in a directory.
    pub(crate) fn newest_stored(&self) -> Option<&SnapshotMeta> {
        self.snapshots
            .last()
            .filter(|meta| meta.id.index > BOOTSTRAP_INDEX)
    }

    /// Learns where replicas live from the membership in force.
    pub(crate) fn learn_hosts(&mut self) {
        for (&replica, &host) in &self.raft.membership().hosts {
            self.hosts.insert(replica, host);
        }
    }
}

/// A bootstrapped group's log starts behind this entry, which every founding replica holds by
/// definition: its term is 1 and its content the founding membership, recorded like a snapshot.
/// A replica that joins later is therefore always fed by a snapshot.
pub(crate) const BOOTSTRAP_INDEX: Index = Index::new(1);
