//! The step worker: owns its groups' cores, and turns what they ask for into work for the lane,
//! the apply workers, the job pool and the network.
//!
//! One pass: drain the inbox, step every touched group once, hand on what came out.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use raft_log::{LogReader, Submission};
use raft_proto::{
    Batch, Body, EntryId, Envelope, Fetched, GroupId, HostId, Index, MembershipChange, Message,
    Proposal as CoreProposal, ProposeError, Ready, ReplicaId, Role, SnapshotMeta, SnapshotStatus,
    Term, Time,
};
use rustc_hash::FxHashMap;

use crate::apply::{ApplyInput, Read, Task, Waiter, panic_text};
use crate::config::EngineConfig;
use crate::group::{BOOTSTRAP_INDEX, Group, OnDurable, Outstanding, Proposal, Saving};
use crate::inbox::Inbox;
use crate::jobs::{Job, JobQueue, SaveJob};
use crate::outbound::{Event, Events, Outbound, SnapshotReport, SnapshotTransfer};
use crate::request::{
    Applied, RequestError, Responder, SnapshotOutcome, SnapshotRejected, SnapshotRequest,
};
use crate::status::GroupStatus;
use crate::{Progress, route};

/// Bytes of commands encoded into one batch.
const PROPOSE_BYTES_MAX: usize = 1 << 20;

/// A group and a submission that is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneDone {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) sequence: u64,
}

/// What a step worker is told.
pub(crate) enum StepInput {
    /// A group, made ready outside.
    Start {
        group: Box<Group>,
        responder: Option<Responder<()>>,
    },
    Stop {
        group: GroupId,
        responder: Responder<()>,
    },
    Propose {
        group: GroupId,
        proposal: Proposal,
    },
    Read {
        group: GroupId,
        read: Read,
    },
    StaleRead {
        group: GroupId,
        read: Read,
    },
    ChangeMembership {
        group: GroupId,
        change: MembershipChange,
        responder: Responder<Applied>,
    },
    Transfer {
        group: GroupId,
        to: ReplicaId,
        responder: Responder<()>,
    },
    Snapshot {
        group: GroupId,
        request: SnapshotRequest,
        responder: Option<Responder<SnapshotOutcome>>,
    },
    Status {
        group: GroupId,
        responder: Responder<GroupStatus>,
    },
    Messages {
        from: HostId,
        envelopes: Vec<Envelope>,
    },
    Unreachable {
        replicas: Vec<(GroupId, ReplicaId)>,
    },
    // Notices of our own workers.
    Persisted(Vec<LaneDone>),
    Applied(Vec<(GroupId, Index)>),
    HostFailed {
        reason: String,
    },
    GroupFailed {
        group: GroupId,
        reason: String,
    },
    Fetched {
        group: GroupId,
        first: Index,
        batches: Result<Vec<Batch>, String>,
    },
    Saved {
        group: GroupId,
        result: Result<SnapshotMeta, String>,
    },
    SnapshotSent {
        group: GroupId,
        to: ReplicaId,
        is_finished: bool,
    },
    SnapshotReceived {
        group: GroupId,
        from: ReplicaId,
        term: Term,
        meta: Box<SnapshotMeta>,
    },
}

/// What all step workers share.
pub(crate) struct StepShared {
    pub(crate) config: EngineConfig,
    pub(crate) lane: Arc<Inbox<Vec<Submission>>>,
    pub(crate) steps: Vec<Arc<Inbox<StepInput>>>,
    pub(crate) applies: Vec<Arc<Inbox<ApplyInput>>>,
    pub(crate) jobs: Arc<JobQueue>,
    pub(crate) reader: LogReader,
    pub(crate) outbound: Arc<dyn Outbound>,
    pub(crate) events: Arc<dyn Events>,
}

pub(crate) struct StepWorker {
    shared: Arc<StepShared>,
    inbox: Arc<Inbox<StepInput>>,
    groups: FxHashMap<GroupId, Box<Group>>,
    /// Each group's next deadline, in ticks.
    timers: BTreeSet<(u64, GroupId)>,
    touched: Vec<GroupId>,
    drained: Vec<StepInput>,
    out: Out,
    failed: Option<String>,
}

/// What one pass yields.
#[derive(Default)]
struct Out {
    submissions: Vec<Submission>,
    /// By host, ascending.
    messages: Vec<(HostId, Vec<Envelope>)>,
    tasks: Vec<(GroupId, Task)>,
}

impl Out {
    fn message(&mut self, to: HostId, envelope: Envelope) {
        match self.messages.binary_search_by_key(&to, |(host, _)| *host) {
            Ok(at) => self.messages[at].1.push(envelope),
            Err(at) => self.messages.insert(at, (to, vec![envelope])),
        }
    }
}

impl StepWorker {
    pub(crate) fn new(shared: Arc<StepShared>, inbox: Arc<Inbox<StepInput>>) -> Self {
        Self {
            shared,
            inbox,
            groups: FxHashMap::default(),
            timers: BTreeSet::new(),
            touched: Vec::new(),
            drained: Vec::new(),
            out: Out::default(),
            failed: None,
        }
    }

    /// One pass.
    pub(crate) fn poll(&mut self, now: Time) -> Progress {
        let tick_nanos = self.shared.config.tick_ms * 1_000_000;
        let tick = now.0 / tick_nanos;
        let mut drained = std::mem::take(&mut self.drained);
        self.inbox.drain(&mut drained);
        let has_input = !drained.is_empty();
        for input in drained.drain(..) {
            self.take_in(input);
        }
        self.drained = drained;
        while let Some(&(due, group)) = self.timers.first()
            && due <= tick
        {
            self.timers.remove(&(due, group));
            if let Some(group) = self.groups.get_mut(&group) {
                group.deadline_tick = None;
            }
            self.touch(group);
        }
        let mut touched = std::mem::take(&mut self.touched);
        let wall_ms = self.shared.config.wall_ms_at_start + now.0 / 1_000_000;
        for id in touched.drain(..) {
            self.step_group(id, tick, wall_ms);
        }
        self.touched = touched;
        self.hand_on();
        if has_input {
            return Progress::More;
        }
        let until = self
            .timers
            .first()
            .map(|&(due, _)| Time(due.saturating_mul(tick_nanos)));
        Progress::Idle { until }
    }

    fn touch(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id)
            && !group.is_touched
        {
            group.is_touched = true;
            self.touched.push(id);
        }
    }

    fn hand_on(&mut self) {
        let shared = &self.shared;
        if !self.out.submissions.is_empty() {
            shared
                .lane
                .notice(std::mem::take(&mut self.out.submissions));
        }
        for (host, messages) in &mut self.out.messages {
            if !messages.is_empty() {
                shared.outbound.send(*host, std::mem::take(messages));
            }
        }
        for (group, task) in self.out.tasks.drain(..) {
            let worker = route(group, shared.applies.len());
            shared.applies[worker].notice(ApplyInput::Task { group, task });
        }
    }

    fn take_in(&mut self, input: StepInput) {
        match input {
            StepInput::Start { group, responder } => self.start(group, responder),
            StepInput::Stop { group, responder } => self.stop(group, responder),
            StepInput::Propose { group, proposal } => match self.serving(group) {
                Ok(state) => {
                    state.proposals.push(proposal);
                    self.touch(group);
                }
                Err(error) => proposal.responder.respond(Err(error)),
            },
            StepInput::Read { group, read } => match self.serving(group) {
                Ok(state) => {
                    state.reads.push(read);
                    self.touch(group);
                }
                Err(error) => read.responder.respond(Err(error)),
            },
            StepInput::StaleRead { group, read } => match self.serving(group) {
                Ok(_) => self.out.tasks.push((group, Task::StaleRead(read))),
                Err(error) => read.responder.respond(Err(error)),
            },
            StepInput::ChangeMembership {
                group,
                change,
                responder,
            } => {
                match self.serving(group) {
                    Ok(state) => change_membership(state, change, responder),
                    Err(error) => responder.respond(Err(error)),
                }
                self.touch(group);
            }
            StepInput::Transfer {
                group,
                to,
                responder,
            } => {
                match self.serving(group) {
                    Ok(state) => transfer(state, to, responder),
                    Err(error) => responder.respond(Err(error)),
                }
                self.touch(group);
            }
            StepInput::Snapshot {
                group,
                request,
                responder,
            } => {
                let overhead = self.shared.config.compaction_overhead;
                match self.serving(group) {
                    Ok(state) => {
                        if let Some(task) = request_snapshot(state, request, overhead, responder) {
                            self.out.tasks.push((group, task));
                        }
                    }
                    Err(error) => {
                        if let Some(responder) = responder {
                            responder.respond(Err(error));
                        }
                    }
                }
            }
            StepInput::Status { group, responder } => self.status(group, responder),
            StepInput::Messages { from, envelopes } => {
                for envelope in envelopes {
                    self.message(from, envelope);
                }
            }
            StepInput::Unreachable { replicas } => {
                for (group, replica) in replicas {
                    if let Ok(state) = self.serving(group) {
                        state.raft.report_unreachable(replica);
                        self.touch(group);
                    }
                }
            }
            StepInput::Persisted(done) => {
                for done in done {
                    self.persisted(done);
                }
            }
            StepInput::Applied(applied) => {
                for (group, index) in applied {
                    if let Ok(state) = self.serving(group) {
                        state.raft.applied(index);
                        self.touch(group);
                    }
                }
            }
            StepInput::HostFailed { reason } => self.fail_host(&reason),
            StepInput::GroupFailed { group, reason } => self.fail_group(group, reason),
            StepInput::Fetched {
                group,
                first,
                batches,
            } => {
                if let Ok(state) = self.serving(group) {
                    state.raft.entries_fetched(match batches {
                        Ok(batches) => Fetched::Entries { first, batches },
                        Err(_) => Fetched::Failed { first },
                    });
                    self.touch(group);
                }
            }
            StepInput::Saved { group, result } => {
                self.saved(group, result);
                self.touch(group);
            }
            StepInput::SnapshotSent {
                group,
                to,
                is_finished,
            } => {
                if let Ok(state) = self.serving(group) {
                    let status = if is_finished {
                        SnapshotStatus::Finished
                    } else {
                        SnapshotStatus::Failed
                    };
                    state.raft.report_snapshot(to, status);
                    self.touch(group);
                }
            }
            StepInput::SnapshotReceived {
                group,
                from,
                term,
                meta,
            } => {
                self.snapshot_received(group, from, term, *meta);
                self.touch(group);
            }
        }
    }

    /// The group, if it serves.
    fn serving(&mut self, id: GroupId) -> Result<&mut Group, RequestError> {
        if let Some(reason) = &self.failed {
            return Err(RequestError::HostFailed {
                reason: reason.clone(),
            });
        }
        let group = self
            .groups
            .get_mut(&id)
            .ok_or(RequestError::UnknownGroup(id))?;
        match &group.failed {
            Some(reason) => Err(RequestError::GroupFailed {
                group: id,
                reason: reason.clone(),
            }),
            None => Ok(group),
        }
    }

    fn start(&mut self, mut group: Box<Group>, responder: Option<Responder<()>>) {
        if let Some(reason) = &self.failed {
            let error = RequestError::HostFailed {
                reason: reason.clone(),
            };
            refuse_waiting(&mut group, &error);
            if let Some(responder) = responder {
                responder.respond(Err(error));
            }
            return;
        }
        let id = group.id;
        self.out.submissions.extend(group.founding.take());
        let earlier = self.groups.insert(id, group);
        assert!(
            earlier.is_none(),
            "the engine refuses to start group {id} twice"
        );
        self.touch(id);
        if let Some(responder) = responder {
            responder.respond(Ok(()));
        }
    }

    fn stop(&mut self, id: GroupId, responder: Responder<()>) {
        let Some(group) = self.groups.remove(&id) else {
            return responder.respond(Err(RequestError::UnknownGroup(id)));
        };
        if let Some(tick) = group.deadline_tick {
            self.timers.remove(&(tick, id));
        }
        let worker = route(id, self.shared.applies.len());
        self.shared.applies[worker].notice(ApplyInput::Stop {
            group: id,
            responder,
        });
    }

    fn message(&mut self, from: HostId, envelope: Envelope) {
        let id = envelope.group;
        let Ok(group) = self.serving(id) else { return };
        let sender = envelope.message.from;
        let refusal = if envelope.epoch != group.epoch {
            Some(format!(
                "epoch {} is not ours, {}",
                envelope.epoch, group.epoch
            ))
        } else if envelope.message.to != group.replica {
            Some(format!("meant for replica {}", envelope.message.to))
        } else if *group.hosts.entry(sender).or_insert(from) != from {
            Some(format!("replica {sender} does not live on host {from}"))
        } else {
            group
                .raft
                .handle_message(envelope.message)
                .err()
                .map(|refused| refused.to_string())
        };
        if let Some(reason) = refusal {
            tracing::debug!(group = id.get(), %reason, "message refused");
            self.shared
                .events
                .event(Event::Refused { group: id, reason });
        }
        self.touch(id);
    }

    fn persisted(&mut self, done: LaneDone) {
        let Some(group) = self.groups.get_mut(&done.group) else {
            return;
        };
        if group.replica != done.replica || group.failed.is_some() {
            return;
        }
        while let Some(front) = group.outstanding.front() {
            if front
                .sequence
                .is_some_and(|sequence| sequence > done.sequence)
            {
                break;
            }
            let front = group.outstanding.pop_front().expect("it was just seen");
            complete(&self.shared, &mut self.out, group, front);
        }
        self.touch(done.group);
    }

    fn step_group(&mut self, id: GroupId, tick: u64, wall_ms: u64) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        group.is_touched = false;
        if group.failed.is_some() || self.failed.is_some() {
            return;
        }
        // What a panicking group put out in this pass is taken back.
        let (submissions, tasks) = (self.out.submissions.len(), self.out.tasks.len());
        let shared = &self.shared;
        let out = &mut self.out;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            step_pass(shared, out, group, tick, wall_ms)
        }));
        if let Err(panic) = outcome {
            let reason = format!("panicked: {}", panic_text(&*panic));
            self.out.submissions.truncate(submissions);
            self.out.tasks.truncate(tasks);
            for (_, messages) in &mut self.out.messages {
                messages.retain(|envelope| envelope.group != id);
            }
            return self.fail_group(id, reason);
        }
        let due = group.raft.next_deadline();
        if group.deadline_tick != due {
            if let Some(tick) = group.deadline_tick {
                self.timers.remove(&(tick, id));
            }
            if let Some(tick) = due {
                self.timers.insert((tick, id));
            }
            group.deadline_tick = due;
        }
    }

    fn saved(&mut self, id: GroupId, result: Result<SnapshotMeta, String>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let saving = group
            .saving
            .as_mut()
            .expect("only a save that was asked for ends");
        match result {
            Err(reason) => {
                tracing::warn!(group = id.get(), %reason, "snapshot failed");
                if let Some(responder) = group.saving.take().and_then(|saving| saving.responder) {
                    responder.respond(Ok(SnapshotOutcome::Failed(reason)));
                }
            }
            Ok(meta) if saving.is_export => {
                if let Some(responder) = group.saving.take().and_then(|saving| saving.responder) {
                    responder.respond(Ok(SnapshotOutcome::Completed(meta.id.index)));
                }
            }
            Ok(meta)
                if group
                    .snapshots
                    .last()
                    .is_some_and(|last| last.id >= meta.id) =>
            {
                // A streamed snapshot overtook it.
                self.shared.jobs.push(Job::Discard {
                    env: group.env.clone(),
                    index: meta.id.index,
                });
                if let Some(responder) = group.saving.take().and_then(|saving| saving.responder) {
                    let rejected = SnapshotOutcome::Rejected(SnapshotRejected::OutOfDate);
                    responder.respond(Ok(rejected));
                }
            }
            Ok(meta) => {
                let index = meta.id.index;
                let keep_from = index.get().saturating_sub(saving.overhead).max(1);
                let first = keep_for_followers(group, Index::new(keep_from).next());
                group.snapshots.push(meta.clone());
                let retention = self.shared.config.snapshot_retention;
                let excess = group.snapshots.len().saturating_sub(retention);
                group.snapshots.drain(..excess);
                group.raft.snapshot_stored(meta);
                if first > group.raft.first_index() {
                    group.raft.compacted(first);
                }
                group.sequence += 1;
                self.out.submissions.push(Submission {
                    snapshots: Some(group.snapshots_record()),
                    compact_before: Some(group.raft.first_index()),
                    ..Submission::new(id, group.replica, group.sequence)
                });
                group.outstanding.push_back(Outstanding {
                    sequence: Some(group.sequence),
                    submission: None,
                    release: Vec::new(),
                    then: Some(OnDurable::Recorded { index }),
                });
            }
        }
    }

    fn snapshot_received(&mut self, id: GroupId, from: ReplicaId, term: Term, meta: SnapshotMeta) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let index = meta.id.index;
        let message = Message {
            from,
            to: group.replica,
            term,
            body: Body::Snapshot { meta },
        };
        let is_newer = group
            .snapshots
            .last()
            .is_none_or(|last| last.id.index < index);
        let refused = if group.failed.is_some() || !is_newer {
            Some("not newer than what is here".to_owned())
        } else {
            group
                .raft
                .handle_message(message)
                .err()
                .map(|refused| refused.to_string())
        };
        if refused.is_some() || !group.raft.is_installing(index) {
            tracing::debug!(
                group = id.get(),
                ?refused,
                "received snapshot not installed"
            );
            if is_newer {
                self.shared.jobs.push(Job::Discard {
                    env: group.env.clone(),
                    index,
                });
            }
        }
    }

    fn status(&mut self, id: GroupId, responder: Responder<GroupStatus>) {
        let Some(group) = self.groups.get_mut(&id) else {
            return responder.respond(Err(RequestError::UnknownGroup(id)));
        };
        let raft = &group.raft;
        let leader = raft.leader();
        let status = GroupStatus {
            group: id,
            replica: group.replica,
            role: raft.role(),
            term: raft.term(),
            leader,
            leader_host: leader.and_then(|leader| group.hosts.get(&leader).copied()),
            first: raft.first_index(),
            last: raft.last_index(),
            commit: raft.commit(),
            applied: raft.applied_index(),
            snapshot: group.snapshots.last().map_or(EntryId::ZERO, |meta| meta.id),
            membership: raft.membership().clone(),
            log_bytes: self.shared.reader.log_bytes(id, group.replica),
            state_hash: 0,
            installed_from_stream: group.is_installed_from_stream,
            memory_bytes: raft.memory_bytes(),
            failed: group.failed.clone().or_else(|| self.failed.clone()),
        };
        self.out.tasks.push((
            id,
            Task::Status {
                status: Box::new(status),
                responder,
            },
        ));
    }

    fn fail_group(&mut self, id: GroupId, reason: String) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        if group.failed.is_some() {
            return;
        }
        tracing::error!(group = id.get(), %reason, "group failed");
        group.failed = Some(reason.clone());
        if let Some(tick) = group.deadline_tick.take() {
            self.timers.remove(&(tick, id));
        }
        refuse_waiting(
            group,
            &RequestError::GroupFailed {
                group: id,
                reason: reason.clone(),
            },
        );
        self.shared
            .events
            .event(Event::GroupFailed { group: id, reason });
    }

    fn fail_host(&mut self, reason: &str) {
        if self.failed.is_some() {
            return;
        }
        tracing::error!(%reason, "host failed");
        self.failed = Some(reason.to_owned());
        self.timers.clear();
        let mut groups: Vec<_> = self.groups.values_mut().collect();
        groups.sort_unstable_by_key(|group| group.id);
        for group in groups {
            group.deadline_tick = None;
            refuse_waiting(
                group,
                &RequestError::HostFailed {
                    reason: reason.to_owned(),
                },
            );
        }
        self.shared.events.event(Event::HostFailed {
            reason: reason.to_owned(),
        });
    }
}

/// Steps one group: time, what was asked, then whatever the core wants done.
fn step_pass(shared: &StepShared, out: &mut Out, group: &mut Group, tick: u64, wall_ms: u64) {
    group.raft.set_leader_time_ms(wall_ms);
    group.raft.advance_to(tick);
    propose(group);
    start_round(group);
    while let Some(ready) = group.raft.poll_ready() {
        process(shared, out, group, ready);
    }
    settle_transfer(group);
}

fn propose(group: &mut Group) {
    let mut proposals = std::mem::take(&mut group.proposals);
    let mut rest = proposals.drain(..).peekable();
    let mut chunk = Vec::new();
    while rest.peek().is_some() {
        let mut bytes = 0;
        while let Some(proposal) =
            rest.next_if(|next| chunk.is_empty() || bytes + next.command.len() <= PROPOSE_BYTES_MAX)
        {
            bytes += proposal.command.len();
            chunk.push(proposal);
        }
        let proposed = group
            .raft
            .propose(chunk.iter().map(|proposal: &Proposal| CoreProposal {
                kind: raft_proto::EntryKind::Command,
                session: proposal.session,
                payload: &proposal.command,
            }));
        match proposed {
            Ok(proposed) => {
                let mut index = proposed.first;
                for proposal in chunk.drain(..) {
                    let id = EntryId::new(proposed.term, index);
                    add_waiter(
                        group,
                        Waiter {
                            id,
                            responder: proposal.responder,
                        },
                    );
                    index = index.next();
                }
            }
            Err(error) => {
                let error = propose_error(group, &error);
                for proposal in chunk.drain(..) {
                    proposal.responder.respond(Err(error.clone()));
                }
            }
        }
    }
    drop(rest);
    // Keeps the allocation for the next pass.
    group.proposals = proposals;
}

/// Adds a waiter behind the others. Waiters at or past its index were superseded: a leader of a
/// later term, which may be this replica again, has overwritten their entries.
fn add_waiter(group: &mut Group, waiter: Waiter) {
    while let Some(last) = group.waiters.back()
        && last.id.index >= waiter.id.index
    {
        let superseded = group.waiters.pop_back().expect("it was just seen");
        superseded.responder.respond(Err(RequestError::Superseded));
    }
    group.waiters.push_back(waiter);
}

fn propose_error(group: &Group, error: &ProposeError) -> RequestError {
    match error {
        ProposeError::NotLeader { leader } => RequestError::NotLeader {
            group: group.id,
            leader: leader.map(|leader| (leader, group.hosts.get(&leader).copied())),
        },
        ProposeError::TransferInProgress => RequestError::Busy {
            queue: "leadership transfer",
        },
        ProposeError::ChangePending => RequestError::Busy {
            queue: "membership change",
        },
        ProposeError::UncommittedFull => RequestError::Busy {
            queue: "uncommitted entries",
        },
        other => RequestError::MembershipRefused {
            reason: other.to_string(),
        },
    }
}

/// Starts one ReadIndex round for all reads of the pass.
fn start_round(group: &mut Group) {
    if group.reads.is_empty() {
        return;
    }
    let reads = std::mem::take(&mut group.reads);
    let round = group.next_round;
    group.next_round += 1;
    match group.raft.read_index(round) {
        Ok(()) => {
            group.rounds.insert(round, reads);
        }
        Err(_) => {
            let leader = group.raft.leader();
            let leader = leader.map(|leader| (leader, group.hosts.get(&leader).copied()));
            for read in reads {
                let error = RequestError::NotLeader {
                    group: group.id,
                    leader,
                };
                read.responder.respond(Err(error));
            }
        }
    }
}

fn change_membership(group: &mut Group, change: MembershipChange, responder: Responder<Applied>) {
    match group.raft.propose_membership(change) {
        Ok(id) => add_waiter(group, Waiter { id, responder }),
        Err(error) => responder.respond(Err(propose_error(group, &error))),
    }
}

fn transfer(group: &mut Group, to: ReplicaId, responder: Responder<()>) {
    if group.raft.role() != Role::Leader {
        let leader = group.raft.leader();
        let leader = leader.map(|leader| (leader, group.hosts.get(&leader).copied()));
        return responder.respond(Err(RequestError::NotLeader {
            group: group.id,
            leader,
        }));
    }
    if to == group.replica {
        return responder.respond(Ok(()));
    }
    match group.raft.transfer_leader(to) {
        Ok(()) => group.transfer = Some((to, responder)),
        Err(error) => {
            let reason = error.to_string();
            responder.respond(Err(RequestError::Invalid { reason }));
        }
    }
}

/// Answers a transfer once another leads, or once the core gave it up.
fn settle_transfer(group: &mut Group) {
    let Some((to, _)) = &group.transfer else {
        return;
    };
    let outcome = if group.raft.leader() == Some(*to) {
        Ok(())
    } else if group.raft.transferee().is_none() && group.raft.role() == Role::Leader {
        Err(RequestError::Invalid {
            reason: format!("replica {to} did not take over in time"),
        })
    } else {
        return;
    };
    if let Some((_, responder)) = group.transfer.take() {
        responder.respond(outcome);
    }
}

fn request_snapshot(
    group: &mut Group,
    request: SnapshotRequest,
    overhead: u64,
    responder: Option<Responder<SnapshotOutcome>>,
) -> Option<Task> {
    let is_export = request.export.is_some();
    let newest = group
        .snapshots
        .last()
        .map_or(BOOTSTRAP_INDEX, |meta| meta.id.index);
    let rejected = if group.saving.is_some() {
        Some(SnapshotRejected::AlreadySaving)
    } else if group.handed.index <= newest && !is_export {
        Some(SnapshotRejected::NothingNew)
    } else {
        None
    };
    if let Some(rejected) = rejected {
        if let Some(responder) = responder {
            responder.respond(Ok(SnapshotOutcome::Rejected(rejected)));
        }
        return None;
    }
    group.saving = Some(Saving {
        index: group.handed.index,
        responder,
        overhead: request.compaction_overhead.unwrap_or(overhead),
        is_export,
    });
    let membership = group.raft.membership().clone();
    Some(Task::Save(Box::new(SaveJob {
        group: group.id,
        epoch: group.epoch,
        meta: SnapshotMeta {
            id: group.handed,
            membership,
        },
        env: group.env.clone(),
        export: request.export,
        machine: None,
        cursor: crate::state_machine::SaveCursor::default(),
        writer: None,
        buffer: bytes::BytesMut::new(),
    })))
}

/// Does what one `Ready` asks.
fn process(shared: &StepShared, out: &mut Out, group: &mut Group, ready: Ready) {
    if let Some(soft) = ready.soft_state {
        shared.events.event(Event::LeaderChanged {
            group: group.id,
            term: group.raft.term(),
            leader: soft.leader,
        });
    }
    for message in ready.messages {
        dispatch(shared, out, group, message);
    }
    if let Some(submission) = ready.submission {
        let hard_state = group.raft.hard_state();
        let is_vote_news =
            (hard_state.term, hard_state.vote) != (group.hard_state.term, group.hard_state.vote);
        let install = ready.snapshot;
        let must_write = is_vote_news || !ready.entries.is_empty() || install.is_some();
        let sequence = must_write.then(|| {
            let hard_state_news = (hard_state != group.hard_state).then_some(hard_state);
            group.hard_state = hard_state;
            group.sequence += 1;
            let mut written = Submission {
                hard_state: hard_state_news,
                entries: ready.entries,
                ..Submission::new(group.id, group.replica, group.sequence)
            };
            if let Some(meta) = &install {
                group.snapshots.push(meta.clone());
                let excess = group
                    .snapshots
                    .len()
                    .saturating_sub(shared.config.snapshot_retention);
                group.snapshots.drain(..excess);
                written.snapshots = Some(group.snapshots_record());
                written.restart_after = Some(meta.id);
            }
            out.submissions.push(written);
            group.sequence
        });
        let outstanding = Outstanding {
            sequence,
            submission: Some(submission),
            release: ready
                .messages_after_sync
                .into_iter()
                .map(|held| held.release())
                .collect(),
            then: install.map(|meta| OnDurable::Installed { meta }),
        };
        if shared.config.test_ack_before_sync
            || (outstanding.sequence.is_none() && group.outstanding.is_empty())
        {
            complete(shared, out, group, outstanding);
        } else {
            group.outstanding.push_back(outstanding);
        }
    }
    if !ready.committed.is_empty() {
        hand_to_apply(out, group, ready.committed);
    }
    for fetch in ready.fetch {
        shared.jobs.push(Job::Fetch {
            group: group.id,
            replica: group.replica,
            first: fetch.first,
            last: fetch.last,
            bytes_max: fetch.bytes_max,
        });
    }
    for read in ready.reads {
        if let Some(reads) = group.rounds.remove(&read.user) {
            out.tasks.push((
                group.id,
                Task::Read {
                    at: read.index,
                    reads,
                },
            ));
        }
    }
    for round in ready.reads_dropped {
        for read in group.rounds.remove(&round).into_iter().flatten() {
            read.responder.respond(Err(RequestError::ReadDropped));
        }
    }
}

/// Acts on what has become durable.
fn complete(shared: &StepShared, out: &mut Out, group: &mut Group, done: Outstanding) {
    for message in done.release {
        dispatch(shared, out, group, message);
    }
    if let Some(submission) = done.submission {
        group.raft.persisted(submission);
    }
    match done.then {
        None | Some(OnDurable::Founded { responder: None }) => {}
        Some(OnDurable::Founded {
            responder: Some(responder),
        }) => responder.respond(Ok(())),
        Some(OnDurable::Recorded { index }) => {
            shared.jobs.push(recorded(group, index));
            shared.events.event(Event::SnapshotSaved {
                group: group.id,
                index,
            });
            if let Some(saving) = group.saving.take_if(|saving| saving.index == index)
                && let Some(responder) = saving.responder
            {
                responder.respond(Ok(SnapshotOutcome::Completed(index)));
            }
        }
        Some(OnDurable::Installed { meta }) => {
            let index = meta.id.index;
            shared.jobs.push(recorded(group, index));
            shared.events.event(Event::SnapshotInstalled {
                group: group.id,
                index,
            });
            group.is_installed_from_stream = true;
            group.handed = meta.id;
            group.learn_hosts();
            out.tasks.push((group.id, group.restore_task(index)));
        }
    }
}

fn recorded(group: &Group, index: Index) -> Job {
    let retained = group.snapshots.iter().map(|meta| meta.id.index).collect();
    Job::Recorded {
        env: group.env.clone(),
        index,
        retained,
    }
}

/// Switches membership at once, behind no user code, and passes entries and proposers on.
fn hand_to_apply(out: &mut Out, group: &mut Group, batches: Vec<Batch>) {
    for batch in &batches {
        for entry in batch.iter().filter(|entry| entry.kind().is_membership()) {
            match MembershipChange::decode(entry.payload()) {
                Ok(change) => {
                    // A change that makes no sense any more is an entry without effect.
                    if let Err(error) = group.raft.apply_membership(entry.index(), &change) {
                        tracing::warn!(group = group.id.get(), %error, "membership unchanged");
                    }
                    group.learn_hosts();
                }
                Err(error) => {
                    tracing::error!(group = group.id.get(), %error, "unreadable membership entry");
                }
            }
        }
    }
    let last = batches.last().expect("the caller looked").last();
    assert!(
        last.index > group.handed.index,
        "committed entries come once, in order"
    );
    group.handed = last;
    let due = group
        .waiters
        .partition_point(|waiter| waiter.id.index <= last.index);
    let waiters = group.waiters.drain(..due).collect();
    out.tasks
        .push((group.id, Task::Entries { batches, waiters }));
}

/// Sends a message on its way; a snapshot becomes a stream.
fn dispatch(shared: &StepShared, out: &mut Out, group: &mut Group, message: Message) {
    let Some(&host) = group.hosts.get(&message.to) else {
        tracing::debug!(
            group = group.id.get(),
            to = message.to.get(),
            "host unknown"
        );
        return;
    };
    if let Body::Snapshot { meta } = &message.body {
        let stored = group
            .snapshots
            .iter()
            .rev()
            .find(|stored| stored.id == meta.id);
        let is_of_use = |stored: &SnapshotMeta| {
            stored.id.index > BOOTSTRAP_INDEX && stored.membership.replicas().contains(&message.to)
        };
        if !stored.is_some_and(is_of_use) {
            // Nothing lies in a directory yet, or it is older than the membership of its receiver,
            // who would refuse it: save one, and let the core try again.
            let overhead = shared.config.compaction_overhead;
            let task = request_snapshot(group, SnapshotRequest::default(), overhead, None);
            out.tasks.extend(task.map(|task| (group.id, task)));
            group
                .raft
                .report_snapshot(message.to, SnapshotStatus::Failed);
            return;
        }
        let transfer = SnapshotTransfer {
            group: group.id,
            epoch: group.epoch,
            from: message.from,
            to: message.to,
            term: message.term,
            meta: meta.clone(),
            env: group.env.clone(),
            report: SnapshotReport {
                group: group.id,
                to: message.to,
                inbox: Some(Arc::clone(
                    &shared.steps[route(group.id, shared.steps.len())],
                )),
            },
        };
        return shared.outbound.send_snapshot(host, transfer);
    }
    out.message(
        host,
        Envelope {
            group: group.id,
            epoch: group.epoch,
            message,
        },
    );
}

/// The log keeps what a follower in reach still needs.
fn keep_for_followers(group: &Group, first: Index) -> Index {
    group
        .raft
        .lowest_needed_by_followers()
        .map_or(first, |needed| needed.min(first))
}

fn refuse_waiting(group: &mut Group, error: &RequestError) {
    for proposal in group.proposals.drain(..) {
        proposal.responder.respond(Err(error.clone()));
    }
    for waiter in group.waiters.drain(..) {
        waiter.responder.respond(Err(error.clone()));
    }
    let rounds = std::mem::take(&mut group.rounds);
    for read in group.reads.drain(..).chain(rounds.into_values().flatten()) {
        read.responder.respond(Err(error.clone()));
    }
    if let Some((_, responder)) = group.transfer.take() {
        responder.respond(Err(error.clone()));
    }
    if let Some(responder) = group.saving.take().and_then(|saving| saving.responder) {
        responder.respond(Err(error.clone()));
    }
    group.outstanding.clear();
}
