//! The engine's handle: routes calls to the workers of the groups they concern.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use raft_log::vfs::Vfs;
use raft_log::{Health, RecoveryReport, ReplicaState};
use raft_proto::{
    BatchBuilder, Envelope, GroupId, HostId, Index, MembershipChange, ReplicaId, Session,
    SnapshotMeta, Term,
};
use raft_snapshot::{SnapshotEnv, SnapshotError};

use crate::apply::Read;
use crate::config::EngineConfig;
use crate::group::Proposal;
use crate::inbox::{Budget, Full, Inbox};
use crate::lane::LaneInput;
use crate::request::{Applied, RequestError, Responder, SnapshotOutcome, SnapshotRequest};
use crate::route;
use crate::status::GroupStatus;
use crate::step::{StepInput, StepShared};

mod open;
mod origin;
mod start;

pub use open::{OpenError, Parts};
pub use start::{Start, StartGroup};

/// What a request takes of an inbox besides its own bytes.
const REQUEST_OVERHEAD_BYTES: usize = 128;

/// A snapshot that came from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedSnapshot {
    /// The group.
    pub group: GroupId,
    /// The host it came from, as the connection proved it.
    pub host: HostId,
    /// The replica that sent it.
    pub from: ReplicaId,
    /// The replica it was meant for.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// What it covers.
    pub meta: SnapshotMeta,
}

/// A replica whose state was found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredReplica {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// The last index of its log.
    pub last: Index,
    /// Why it cannot be started, if it cannot.
    pub damage: Option<String>,
}

/// The handle: cheap to clone, callable from any thread. No call waits for a disk or a peer, save
/// [`Engine::start_group`], which reads the replica's directories.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<EngineShared>,
}

struct EngineShared {
    config: EngineConfig,
    vfs: Arc<dyn Vfs>,
    snapshots_dir: PathBuf,
    steps: Vec<Arc<Inbox<StepInput>>>,
    step_shared: Arc<StepShared>,
    reads: Budget,
    messages_dropped: AtomicU64,
    /// Groups started so far.
    starts: AtomicU64,
    recovered: Mutex<BTreeMap<(GroupId, ReplicaId), ReplicaState>>,
    /// The groups of this host. Held for a look-up, never while a disk is read.
    running: Mutex<BTreeMap<GroupId, Running>>,
    report: RecoveryReport,
}

#[derive(Clone, Copy)]
struct Running {
    replica: ReplicaId,
    epoch: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its directories are being read.
    Starting,
    Serving,
    Stopping,
}

impl Engine {
    /// What opening the log found.
    #[must_use]
    pub fn recovery_report(&self) -> &RecoveryReport {
        &self.shared.report
    }

    /// The replicas whose state was found on disk and which were not started since.
    #[must_use]
    pub fn recovered(&self) -> Vec<RecoveredReplica> {
        lock(&self.shared.recovered)
            .iter()
            .filter(|(_, state)| !matches!(state.health, Health::Tombstone))
            .map(|(&(group, replica), state)| RecoveredReplica {
                group,
                replica,
                last: state.last.index,
                damage: damage(&state.health),
            })
            .collect()
    }

    /// The first of those of one group.
    #[must_use]
    pub fn recovered_replica(&self, group: GroupId) -> Option<ReplicaId> {
        let first = ReplicaId::try_from(1).ok()?;
        lock(&self.shared.recovered)
            .range((group, first)..)
            .take_while(|((of, _), _)| *of == group)
            .find(|(_, state)| !matches!(state.health, Health::Tombstone))
            .map(|((_, replica), _)| *replica)
    }

    /// Proposes a command.
    pub fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        session: Option<Session>,
        responder: Responder<Applied>,
    ) {
        let record = self.shared.step_shared.record_bytes_max;
        let bound = record.saturating_sub(BatchBuilder::frame_bytes(0, session.is_some()));
        let bound = bound.min(self.shared.config.proposal_bytes_max);
        let size = command.len();
        if size > bound {
            let error = RequestError::TooLarge {
                what: "command",
                size,
                bound,
            };
            return responder.respond(Err(error));
        }
        let proposal = Proposal {
            command,
            session,
            responder,
        };
        let input = StepInput::Propose { group, proposal };
        if let Err(Full(StepInput::Propose { proposal, .. })) =
            self.step(group).push(input, size + REQUEST_OVERHEAD_BYTES)
        {
            proposal
                .responder
                .respond(Err(RequestError::Busy { queue: "proposal" }));
        }
    }

    /// Queries the state machine linearizably, through ReadIndex, on any replica.
    pub fn read(&self, group: GroupId, query: Bytes, responder: Responder<Bytes>) {
        self.push_read(group, query, responder, |group, read| StepInput::Read {
            group,
            read,
        });
    }

    /// Queries whatever state this host has.
    pub fn read_stale(&self, group: GroupId, query: Bytes, responder: Responder<Bytes>) {
        self.push_read(group, query, responder, |group, read| {
            StepInput::StaleRead { group, read }
        });
    }

    fn push_read(
        &self,
        group: GroupId,
        query: Bytes,
        responder: Responder<Bytes>,
        input: fn(GroupId, Read) -> StepInput,
    ) {
        let size = query.len() + REQUEST_OVERHEAD_BYTES;
        let Some(room) = self.shared.reads.take(size) else {
            return responder.respond(Err(RequestError::Busy { queue: "read" }));
        };
        let read = Read {
            query,
            responder,
            _room: room,
        };
        if let Err(Full(StepInput::Read { read, .. } | StepInput::StaleRead { read, .. })) =
            self.step(group).push(input(group, read), size)
        {
            read.responder
                .respond(Err(RequestError::Busy { queue: "read" }));
        }
    }

    /// Hands a request of fixed size to the group's worker, if there is room for it.
    fn ask<T>(
        &self,
        group: GroupId,
        responder: Responder<T>,
        input: impl FnOnce(Responder<T>) -> StepInput,
    ) {
        let step = self.step(group);
        if step.reserve(REQUEST_OVERHEAD_BYTES) {
            step.notice(input(responder));
        } else {
            responder.respond(Err(RequestError::Busy { queue: "request" }));
        }
    }

    /// Proposes a membership change; answered once it is committed and applied here.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::NotLeader`]; [`RequestError::Busy`] while another
    /// change is pending or the term has no committed entry yet;
    /// [`RequestError::MembershipRefused`] for one that makes no sense.
    pub fn change_membership(
        &self,
        group: GroupId,
        change: MembershipChange,
        responder: Responder<Applied>,
    ) {
        self.ask(group, responder, |responder| StepInput::ChangeMembership {
            group,
            change,
            responder,
        });
    }

    /// Hands the leadership to `to`; answered once `to` leads.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::NotLeader`]; [`RequestError::Busy`] while another
    /// transfer is under way; [`RequestError::Invalid`] for a replica that cannot lead;
    /// [`RequestError::TransferFailed`] if it did not take over in time.
    pub fn transfer_leadership(&self, group: GroupId, to: ReplicaId, responder: Responder<()>) {
        self.ask(group, responder, |responder| StepInput::Transfer {
            group,
            to,
            responder,
        });
    }

    /// Saves a snapshot of the group's state, as of everything committed before, and compacts the
    /// log behind it; or exports one. What became of it is the outcome.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::Busy`], [`RequestError::UnknownGroup`],
    /// [`RequestError::GroupFailed`], [`RequestError::HostFailed`], [`RequestError::Terminated`].
    pub fn request_snapshot(
        &self,
        group: GroupId,
        request: SnapshotRequest,
        responder: Responder<SnapshotOutcome>,
    ) {
        self.ask(group, responder, |responder| StepInput::Snapshot {
            group,
            request,
            responder,
        });
    }

    /// Gives up the save under way, if there is one: whoever asked for it hears
    /// [`SnapshotOutcome::Aborted`], and nothing is left of it. If its record is on the way to the
    /// log already it completes instead.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::Busy`], [`RequestError::UnknownGroup`],
    /// [`RequestError::GroupFailed`], [`RequestError::HostFailed`].
    pub fn cancel_snapshot(&self, group: GroupId, responder: Responder<()>) {
        self.ask(group, responder, |responder| StepInput::CancelSnapshot {
            group,
            responder,
        });
    }

    /// Asks how a group stands; answered behind what its state machine has to do.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::Busy`], [`RequestError::UnknownGroup`].
    pub fn status(&self, group: GroupId, responder: Responder<GroupStatus>) {
        self.ask(group, responder, |responder| StepInput::Status {
            group,
            responder,
        });
    }

    /// The replica of a group that runs here.
    #[must_use]
    pub fn replica_of(&self, group: GroupId) -> Option<ReplicaId> {
        lock(&self.shared.running)
            .get(&group)
            .filter(|running| running.phase == Phase::Serving)
            .map(|running| running.replica)
    }

    /// The groups that run here.
    #[must_use]
    pub fn groups(&self) -> Vec<(GroupId, ReplicaId)> {
        lock(&self.shared.running)
            .iter()
            .filter(|(_, run)| run.phase == Phase::Serving)
            .map(|(&group, run)| (group, run.replica))
            .collect()
    }

    /// Takes messages that arrived from `from`. Over the inbox's bound they are dropped and
    /// counted: Raft sends again.
    pub fn deliver(&self, from: HostId, envelopes: Vec<Envelope>) {
        let workers = self.shared.steps.len();
        if workers == 1 {
            return self.deliver_to(0, from, envelopes);
        }
        let mut by_worker: Vec<Vec<Envelope>> = (0..workers).map(|_| Vec::new()).collect();
        for envelope in envelopes {
            by_worker[route(envelope.group, workers)].push(envelope);
        }
        for (worker, envelopes) in by_worker.into_iter().enumerate() {
            if !envelopes.is_empty() {
                self.deliver_to(worker, from, envelopes);
            }
        }
    }

    fn deliver_to(&self, worker: usize, from: HostId, envelopes: Vec<Envelope>) {
        let bytes = envelopes.iter().map(Envelope::encoded_bytes).sum();
        let count = u64::try_from(envelopes.len()).unwrap_or(u64::MAX);
        let input = StepInput::Messages { from, envelopes };
        if self.shared.steps[worker].push(input, bytes).is_err() {
            self.shared
                .messages_dropped
                .fetch_add(count, Ordering::Relaxed);
            tracing::debug!(from = from.get(), bytes, "inbox full: messages dropped");
        }
    }

    /// Messages that arrived and found no room since the engine opened.
    #[must_use]
    pub fn messages_dropped(&self) -> u64 {
        self.shared.messages_dropped.load(Ordering::Relaxed)
    }

    /// Says that messages to these replicas were dropped.
    pub fn unreachable(&self, replicas: Vec<(GroupId, ReplicaId)>) {
        let workers = self.shared.steps.len();
        let mut by_worker: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for replica in replicas {
            by_worker[route(replica.0, workers)].push(replica);
        }
        for (step, replicas) in self.shared.steps.iter().zip(by_worker) {
            if !replicas.is_empty() {
                step.notice(StepInput::Unreachable { replicas });
            }
        }
    }

    /// Where a snapshot offered by a peer goes, if the replica it is meant for runs here.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownGroup`], [`RequestError::Invalid`] or [`RequestError::Storage`]:
    /// refuse the offer.
    pub fn receive_env(
        &self,
        group: GroupId,
        epoch: u64,
        to: ReplicaId,
    ) -> Result<SnapshotEnv, RequestError> {
        let running = lock(&self.shared.running).get(&group).copied();
        let running = running
            .filter(|running| running.phase == Phase::Serving)
            .ok_or(RequestError::UnknownGroup(group))?;
        if running.replica != to || running.epoch != epoch {
            let reason = format!("meant for replica {to} of epoch {epoch}");
            return Err(RequestError::Invalid { reason });
        }
        self.env(group, to).map_err(|error| storage(&error))
    }

    /// Begins to verify everything durable in the log, the payloads too, at the rate set by
    /// [`LaneOptions::scrub_bytes_per_s`](raft_log::LaneOptions); a pass under way begins again. A
    /// replica that lost something fails, alone: [`Event::GroupFailed`](crate::Event) says so. How
    /// far it has come is among the workers' [`stats`](crate::RunningWorkers::stats).
    pub fn scrub(&self) {
        self.shared.step_shared.lane.notice(LaneInput::Scrub);
    }

    /// Says that a host can no longer be reached. Groups that have fallen quiet under a leader there
    /// wake and look for another.
    pub fn host_lost(&self, host: HostId) {
        for step in &self.shared.steps {
            step.notice(StepInput::HostLost { host });
        }
    }

    /// Hands a received snapshot, committed in its final directory, to the group, which removes it
    /// again if it is of no use or its sender does not live where it came from.
    pub fn snapshot_received(&self, received: ReceivedSnapshot) {
        let received = Box::new(received);
        self.step(received.group)
            .notice(StepInput::SnapshotReceived(received));
    }

    fn env(&self, group: GroupId, replica: ReplicaId) -> Result<SnapshotEnv, SnapshotError> {
        let shared = &self.shared;
        SnapshotEnv::open(
            Arc::clone(&shared.vfs),
            &shared.snapshots_dir,
            group,
            replica,
        )
    }

    fn step(&self, group: GroupId) -> &Inbox<StepInput> {
        &self.shared.steps[route(group, self.shared.steps.len())]
    }
}

fn damage(health: &Health) -> Option<String> {
    match health {
        Health::Sound => None,
        other => Some(other.to_string()),
    }
}

fn storage(error: &SnapshotError) -> RequestError {
    RequestError::Storage {
        reason: error.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
