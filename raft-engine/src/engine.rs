//! The engine's handle: opens the log, starts and stops groups, routes calls to their workers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use raft_log::vfs::Vfs;
use raft_log::{Health, Lane, LaneOptions, LogError, RecoveryReport, ReplicaState, Submission};
use raft_proto::{
    BatchBuilder, Config, EntryId, Envelope, GroupId, HardState, HostId, Index, Membership,
    MembershipChange, Raft, ReplicaId, Restored, Session, SnapshotMeta, Term, TermRun,
};
use raft_snapshot::{SnapshotEnv, SnapshotError};

use crate::apply::{ApplyInput, Read};
use crate::config::{ConfigError, EngineConfig};
use crate::group::{BOOTSTRAP_INDEX, Group, OnDurable, Outstanding, Proposal};
use crate::inbox::{Budget, Full, Inbox, Wake};
use crate::jobs::JobQueue;
use crate::lane::LaneWorker;
use crate::outbound::{Events, Outbound};
use crate::request::{
    Applied, Completion, RequestError, Responder, SnapshotOutcome, SnapshotRequest,
};
use crate::route;
use crate::state_machine::StateMachine;
use crate::status::GroupStatus;
use crate::step::{StepInput, StepShared, StepWorker};
use crate::workers::{Alarm, Workers};

/// What a request takes of an inbox besides its own bytes.
const REQUEST_OVERHEAD_BYTES: usize = 128;

/// A life of a replica numbers its submissions in this many bits: ten thousand a second for three
/// years. That leaves sixteen million lives.
const SEQUENCE_BITS: u32 = 40;

/// And so many bits number the lives within an opening of the data directory.
const LIVES_BITS: u32 = u64::BITS - SEQUENCE_BITS;

/// What an engine is made of.
pub struct Parts {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// The data directory. `log/`, `votes` and `snapshots/` lie in it; it exists and is locked.
    pub data_dir: PathBuf,
    /// The log lane's settings.
    pub lane: LaneOptions,
    /// The way to other hosts.
    pub outbound: Arc<dyn Outbound>,
    /// Who hears of events.
    pub events: Arc<dyn Events>,
}

/// Why an engine did not open. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is out of bounds: mend it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log did not open; its own words say what to do.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How a group comes to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The group is founded, with these voters and their hosts, the same on every founding host.
    Bootstrap {
        /// The founding voters.
        members: BTreeMap<ReplicaId, HostId>,
    },
    /// The replica's state is on this host's disk.
    Restart,
    /// The replica is empty and will be fed by the group's leader, which has added it or will.
    Join,
}

/// What a group's start needs.
pub struct StartGroup {
    /// The group.
    pub group: GroupId,
    /// This host's replica. An id is never used again once it was removed.
    pub replica: ReplicaId,
    /// The group's epoch; messages of another are refused. 1 until an import raises it.
    pub epoch: u64,
    /// How it comes to be.
    pub start: Start,
    /// The state machine, empty.
    pub machine: Box<dyn StateMachine>,
}

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
    /// Opens the log and makes the workers, which the caller then drives: [`Workers::spawn`] in
    /// production, poll by poll under simulation.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: a setting is out of bounds, or the log does not open.
    pub fn open(config: EngineConfig, parts: Parts) -> Result<(Self, Workers), OpenError> {
        config.check()?;
        let record_bytes_max = parts.lane.record_bytes_max;
        let (lane, recovery) = Lane::open(Arc::clone(&parts.vfs), &parts.data_dir, parts.lane)?;
        let wakes: Vec<Arc<Wake>> = (0..config.step_workers).map(|_| Arc::default()).collect();
        let steps: Vec<_> = wakes
            .iter()
            .map(|wake| Arc::new(Inbox::new(config.inbox_bytes_max, Arc::clone(wake))))
            .collect();
        let apply_wakes: Vec<Arc<Wake>> =
            (0..config.apply_workers).map(|_| Arc::default()).collect();
        let applies: Vec<Arc<Inbox<ApplyInput>>> = apply_wakes
            .iter()
            .map(|wake| Arc::new(Inbox::new(usize::MAX, Arc::clone(wake))))
            .collect();
        let lane_wake: Arc<Wake> = Arc::default();
        let lane_inbox = Arc::new(Inbox::new(usize::MAX, Arc::clone(&lane_wake)));
        let jobs = Arc::new(JobQueue::new(config.saves_max));
        let reader = lane.reader();
        let step_shared = Arc::new(StepShared {
            config: config.clone(),
            record_bytes_max,
            lane: Arc::clone(&lane_inbox),
            steps: steps.clone(),
            applies: applies.clone(),
            jobs: Arc::clone(&jobs),
            space: reader.space(),
            reader: reader.clone(),
            outbound: parts.outbound,
            events: parts.events,
        });
        let workers = Workers::new(
            steps
                .iter()
                .zip(wakes)
                .map(|(inbox, wake)| {
                    (
                        StepWorker::new(Arc::clone(&step_shared), Arc::clone(inbox)),
                        wake,
                    )
                })
                .collect(),
            (LaneWorker::new(lane, lane_inbox, steps.clone()), lane_wake),
            applies
                .iter()
                .zip(apply_wakes)
                .map(|(inbox, wake)| {
                    let worker = crate::apply::ApplyWorker::new(
                        Arc::clone(inbox),
                        steps.clone(),
                        Arc::clone(&jobs),
                    );
                    (worker, wake)
                })
                .collect(),
            (0..config.job_workers)
                .map(|_| crate::jobs::JobWorker {
                    jobs: Arc::clone(&jobs),
                    reader: reader.clone(),
                    steps: steps.clone(),
                    applies: applies.clone(),
                })
                .collect(),
            jobs,
            Alarm {
                steps: steps.clone(),
                events: Arc::clone(&step_shared.events),
            },
        );
        let shared = EngineShared {
            reads: Budget::new(config.reads_bytes_max),
            messages_dropped: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            config,
            vfs: parts.vfs,
            snapshots_dir: parts.data_dir.join("snapshots"),
            steps,
            step_shared,
            recovered: Mutex::new(recovery.replicas),
            running: Mutex::default(),
            report: recovery.report,
        };
        Ok((
            Self {
                shared: Arc::new(shared),
            },
            workers,
        ))
    }

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

    /// Starts a group on this host. Reads the replica's directories; the responder hears when the
    /// replica's existence is durable.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::AlreadyRunning`], [`RequestError::StateExists`],
    /// [`RequestError::NoState`]; [`RequestError::Damaged`]: the replica neither votes nor
    /// acknowledges, and the other groups of this host go on; [`RequestError::Storage`];
    /// [`RequestError::Invalid`] for members that make no sense.
    pub fn start_group(&self, start: StartGroup, responder: Responder<()>) {
        if let Err(error) = self.claim(&start) {
            return responder.respond(Err(error));
        }
        let id = start.group;
        match self.prepare(start) {
            Ok(mut group) => {
                // A founder answers once its first record is durable, the others at once.
                let mut responder = Some(responder);
                if let Some(Outstanding {
                    then:
                        Some(OnDurable::Founded {
                            responder: when_durable,
                        }),
                    ..
                }) = group.outstanding.front_mut()
                {
                    *when_durable = responder.take();
                }
                self.step(id).notice(StepInput::Start { group, responder });
            }
            Err(error) => {
                lock(&self.shared.running).remove(&id);
                responder.respond(Err(error));
            }
        }
    }

    /// Takes the group's place, so that it is started once.
    fn claim(&self, start: &StartGroup) -> Result<(), RequestError> {
        match lock(&self.shared.running).entry(start.group) {
            Entry::Occupied(_) => Err(RequestError::AlreadyRunning(start.group)),
            Entry::Vacant(place) => {
                place.insert(Running {
                    replica: start.replica,
                    epoch: start.epoch,
                    phase: Phase::Starting,
                });
                Ok(())
            }
        }
    }

    fn prepare(&self, start: StartGroup) -> Result<Box<Group>, RequestError> {
        let StartGroup {
            group: id,
            replica,
            epoch,
            start,
            machine,
        } = start;
        let known = self.shared.step_shared.reader.replicas_of(id);
        let has_state = known
            .iter()
            .any(|(_, state)| !matches!(state.health, Health::Tombstone));
        let env = self.env(id, replica).map_err(|error| storage(&error))?;
        let state = match &start {
            Start::Restart => Some(
                known
                    .iter()
                    .find(|(known, _)| *known == replica)
                    .map(|(_, state)| state)
                    .ok_or(RequestError::NoState(id))?,
            ),
            _ if has_state => return Err(RequestError::StateExists(id)),
            _ => None,
        };
        let damaged = |reason| RequestError::Damaged {
            group: id,
            replica,
            reason,
        };
        if let Some(reason) = state.and_then(|state| damage(&state.health)) {
            return Err(damaged(reason));
        }
        let mut origin = match (&start, state) {
            (Start::Restart, Some(state)) => Origin::recovered(id, state)?,
            (Start::Bootstrap { members }, _) => Origin::founded(id, replica, members)?,
            _ => Origin::default(),
        };
        let named: Vec<Index> = origin.snapshots.iter().map(|meta| meta.id.index).collect();
        let swept = env.sweep(&named, false).map_err(|error| storage(&error))?;
        if !swept.removed.is_empty() {
            tracing::info!(group = id.get(), removed = ?swept.removed, "swept");
        }
        origin
            .fall_back_to_sound(&self.shared.vfs, &env)
            .map_err(damaged)?;
        let starts = self.shared.starts.fetch_add(1, Ordering::Relaxed) + 1;
        let core_config = self.core_config(id, replica, starts);
        let raft = Raft::new(core_config, origin.restored.clone()).map_err(|error| {
            RequestError::Invalid {
                reason: error.to_string(),
            }
        })?;
        let applied = origin.restored.applied;
        let mut group = Box::new(Group::new(id, replica, epoch, raft, env, origin.snapshots));
        group.handed = origin.handed;
        group.hard_state = origin.restored.hard_state;
        group.learn_hosts();
        // Numbers of an earlier life of the replica in this process vouch for nothing of this one.
        group.sequence = starts << SEQUENCE_BITS;
        if let Start::Bootstrap { .. } = start {
            group.sequence += 1;
            group.founding = Some(Submission {
                hard_state: Some(origin.restored.hard_state),
                snapshots: Some(group.snapshots_record()),
                restart_after: Some(group.handed),
                ..Submission::new(id, replica, group.sequence)
            });
            group.outstanding.push_back(Outstanding {
                sequence: Some(group.sequence),
                submission: None,
                release: Vec::new(),
                then: Some(OnDurable::Founded { responder: None }),
            });
        }
        lock(&self.shared.recovered).remove(&(id, replica));
        if let Some(running) = lock(&self.shared.running).get_mut(&id) {
            running.phase = Phase::Serving;
        }
        let apply = &self.shared.step_shared.applies;
        let apply = &apply[route(id, apply.len())];
        let restore = group.newest_stored().map(|meta| meta.id.index);
        // A machine starts empty: what a stored snapshot covers comes from there.
        let machine_applied = if restore.is_some() {
            Index::ZERO
        } else {
            applied
        };
        apply.notice(ApplyInput::Start {
            group: id,
            machine,
            applied: machine_applied,
        });
        if let Some(index) = restore {
            apply.notice(ApplyInput::Task {
                group: id,
                task: group.restore_task(index),
            });
        }
        Ok(group)
    }

    /// Stops a group on this host; its state stays on disk. A save under way is aborted. Answered
    /// when its state machine is gone; until then the group counts as running. A group whose start
    /// is under way does not run yet.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::UnknownGroup`]; [`RequestError::Terminated`] if the
    /// engine ends first.
    pub fn stop_group(&self, group: GroupId, responder: Responder<()>) {
        match lock(&self.shared.running).get_mut(&group) {
            Some(running) if running.phase == Phase::Serving => running.phase = Phase::Stopping,
            _ => return responder.respond(Err(RequestError::UnknownGroup(group))),
        }
        let stopped = Stopped {
            shared: Arc::downgrade(&self.shared),
            group,
            then: Mutex::new(Some(responder)),
        };
        let responder = Responder::new(Arc::new(stopped));
        self.step(group)
            .notice(StepInput::Stop { group, responder });
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

    /// The core's settings in the life that this is, the `starts`-th group started since the data
    /// directory was opened.
    fn core_config(&self, group: GroupId, replica: ReplicaId, starts: u64) -> Config {
        let config = &self.shared.config;
        let life = config.open_count << LIVES_BITS | starts;
        let seed = [config.seed, group.get(), replica.get(), life]
            .into_iter()
            .fold(0, mixed);
        Config {
            life,
            election_timeout_ticks_min: config.election_timeout_ticks_min,
            election_timeout_ticks_max: config.election_timeout_ticks_max,
            heartbeat_ticks: config.heartbeat_ticks,
            message_bytes_max: config.message_bytes_max,
            inflight_messages_max: config.inflight_messages_max,
            inflight_bytes_max: config.inflight_bytes_max,
            uncommitted_bytes_max: config.uncommitted_bytes_max,
            committed_bytes_per_ready_max: config.applying_bytes_max,
            cache_bytes_max: config.cache_bytes_max,
            ..Config::new(group, replica, seed)
        }
    }
}

/// One step of a hash in which every bit counts (splitmix64's).
const fn mixed(hash: u64, word: u64) -> u64 {
    let z = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Where a replica starts from.
#[derive(Default)]
struct Origin {
    restored: Restored,
    snapshots: Vec<SnapshotMeta>,
    handed: EntryId,
}

impl Origin {
    fn founded(
        group: GroupId,
        replica: ReplicaId,
        members: &BTreeMap<ReplicaId, HostId>,
    ) -> Result<Self, RequestError> {
        let hosts: BTreeSet<HostId> = members.values().copied().collect();
        if !members.contains_key(&replica) || hosts.len() != members.len() {
            let reason = format!(
                "the founding members of group {group} must name replica {replica}, \
                 and each a host of its own"
            );
            return Err(RequestError::Invalid { reason });
        }
        let membership = Membership {
            index: BOOTSTRAP_INDEX,
            voters: members.keys().copied().collect(),
            hosts: members.clone(),
            ..Membership::default()
        };
        let id = EntryId::new(Term::new(1), BOOTSTRAP_INDEX);
        let meta = SnapshotMeta {
            id,
            membership: membership.clone(),
        };
        let restored = Restored {
            hard_state: HardState {
                term: id.term,
                vote: None,
                commit: id.index,
            },
            snapshot: Some(meta.clone()),
            first: id.index.next(),
            last: id,
            terms: vec![TermRun {
                first: id.index,
                term: id.term,
            }],
            applied: id.index,
            membership,
            membership_entries: Vec::new(),
        };
        Ok(Self {
            restored,
            snapshots: vec![meta],
            handed: id,
        })
    }

    /// Reads the newest stored snapshot through, and falls back to an older one if it is damaged
    /// and the log goes back that far. Nothing is restored from, or sent to a peer, that was not
    /// found whole.
    fn fall_back_to_sound(&mut self, vfs: &Arc<dyn Vfs>, env: &SnapshotEnv) -> Result<(), String> {
        let mut newest_damage = None;
        while let Some(meta) = self.snapshots.last() {
            let index = meta.id.index;
            if index > BOOTSTRAP_INDEX
                && let Err(error) = raft_snapshot::verify(Arc::clone(vfs), &env.path(index))
            {
                tracing::error!(index = index.get(), %error, "a stored snapshot cannot be used");
                newest_damage.get_or_insert_with(|| error.to_string());
                self.snapshots.pop();
                continue;
            }
            if let Some(reason) = newest_damage {
                if self.restored.first > index.next() {
                    return Err(reason);
                }
                self.restored.snapshot = Some(meta.clone());
                self.restored.applied = index;
                self.restored.membership = meta.membership.clone();
                self.handed = meta.id;
            }
            return Ok(());
        }
        newest_damage.map_or(Ok(()), Err)
    }

    fn recovered(group: GroupId, state: &ReplicaState) -> Result<Self, RequestError> {
        let unreadable = |error: &dyn std::fmt::Display| RequestError::GroupFailed {
            group,
            reason: format!("a snapshot record holds an unreadable membership: {error}"),
        };
        let mut snapshots = Vec::new();
        for record in &state.snapshots {
            let membership =
                Membership::decode(&record.membership).map_err(|error| unreadable(&error))?;
            snapshots.push(SnapshotMeta {
                id: record.id,
                membership,
            });
        }
        let newest = snapshots.last().cloned();
        let base = newest.as_ref().map_or(EntryId::ZERO, |meta| meta.id);
        let mut hard_state = state.hard_state;
        hard_state.commit = hard_state
            .commit
            .max(base.index)
            .min(state.last.index.max(base.index));
        let restored = Restored {
            hard_state,
            snapshot: newest.clone(),
            first: state.first,
            last: state.last,
            terms: state.terms.clone(),
            applied: base.index,
            membership: newest.map(|meta| meta.membership).unwrap_or_default(),
            membership_entries: state.membership_entries.clone(),
        };
        Ok(Self {
            restored,
            snapshots,
            handed: base,
        })
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

/// Forgets a group when it has stopped, and passes the answer on.
struct Stopped {
    /// Not owned: the engine's own inboxes hold this.
    shared: Weak<EngineShared>,
    group: GroupId,
    then: Mutex<Option<Responder<()>>>,
}

impl Completion<()> for Stopped {
    fn complete(&self, outcome: Result<(), RequestError>) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.running).remove(&self.group);
        }
        if let Some(responder) = lock(&self.then).take() {
            responder.respond(outcome);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
