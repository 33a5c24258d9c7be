//! The step worker: owns its groups' cores, and turns what they ask for into work for the lane,
//! the apply workers, the job pool and the network.
//!
//! One pass: drain the inbox, step every touched group once, hand on what came out. A group that
//! panics on the way fails alone, and nothing it put out in that pass leaves.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use raft_log::{LaneSpace, LogError, LogReader};
use raft_proto::{
    Batch, BatchBuilder, Body, Entries, EntryId, Envelope, Fetched, GroupId, HostId, Index,
    MembershipChange, Message, Refused, ReplicaId, SnapshotStatus, Time,
};
use rustc_hash::FxHashMap;

use crate::apply::{ApplyInput, Read, Task, panic_text};
use crate::config::EngineConfig;
use crate::engine::ReceivedSnapshot;
use crate::group::{Group, Proposal};
use crate::inbox::Inbox;
use crate::jobs::{JobQueue, SaveEnd};
use crate::lane::LaneDesk;
use crate::outbound::{Event, Events, Outbound};
use crate::prepared::Prepared;
use crate::request::{Applied, RequestError, Responder, SnapshotOutcome, SnapshotRequest};
use crate::status::GroupStatus;
use crate::{Progress, route};

mod out;
mod pass;
mod requests;
mod saves;

use out::Out;
use requests::refuse_waiting;

/// What to do about a replica whose log is damaged.
const REBUILD: &str = "remove this replica from its group and add a new one under a new id";

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
        prepared: Box<Prepared>,
        responder: Responder<()>,
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
        responder: Responder<SnapshotOutcome>,
    },
    CancelSnapshot {
        group: GroupId,
        responder: Responder<()>,
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
    HostLost {
        host: HostId,
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
    /// It lost what it had, or the log takes no more of it.
    ReplicaFailed {
        group: GroupId,
        replica: ReplicaId,
        reason: String,
    },
    Fetched {
        group: GroupId,
        first: Index,
        batches: Result<Vec<Batch>, LogError>,
    },
    Saved {
        group: GroupId,
        number: u64,
        is_export: bool,
        end: SaveEnd,
    },
    SnapshotSent {
        group: GroupId,
        to: ReplicaId,
        is_finished: bool,
    },
    SnapshotReceived(Box<ReceivedSnapshot>),
}

/// What all step workers share.
pub(crate) struct StepShared {
    pub(crate) config: EngineConfig,
    /// The log takes no batch over this.
    pub(crate) record_bytes_max: usize,
    pub(crate) lane: Arc<LaneDesk>,
    pub(crate) steps: Vec<Arc<Inbox<StepInput>>>,
    pub(crate) applies: Vec<Arc<Inbox<ApplyInput>>>,
    pub(crate) jobs: Arc<JobQueue>,
    pub(crate) reader: LogReader,
    pub(crate) space: LaneSpace,
    pub(crate) outbound: Arc<dyn Outbound>,
    pub(crate) events: Arc<dyn Events>,
}

pub(crate) struct StepWorker {
    shared: Arc<StepShared>,
    inbox: Arc<Inbox<StepInput>>,
    groups: FxHashMap<GroupId, Box<Group>>,
    stopping: BTreeMap<GroupId, Stopping>,
    /// Each group's next deadline, in ticks.
    timers: BTreeSet<(u64, GroupId)>,
    touched: Vec<GroupId>,
    drained: Vec<StepInput>,
    out: Out,
    failed: Option<String>,
}

/// A group that is gone from here, and whose last submission has not ended at the lane yet. It counts
/// as running until then: whoever starts it again reads what is durable, and must not say less than that.
struct Stopping {
    replica: ReplicaId,
    sequence: u64,
    responder: Responder<()>,
}

impl Drop for StepWorker {
    /// What still lies in the inbox answers its callers now: handles keep the inbox alive.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl StepWorker {
    pub(crate) fn new(shared: Arc<StepShared>, inbox: Arc<Inbox<StepInput>>) -> Self {
        Self {
            shared,
            inbox,
            groups: FxHashMap::default(),
            stopping: BTreeMap::new(),
            timers: BTreeSet::new(),
            touched: Vec::new(),
            drained: Vec::new(),
            out: Out::default(),
            failed: None,
        }
    }

    /// One pass. The clock is read when the inbox has been taken in: what comes later is not judged
    /// by an older time, in which a lease may have held.
    pub(crate) fn poll(&mut self, clock: impl FnOnce() -> Time) -> Progress {
        let mut drained = std::mem::take(&mut self.drained);
        self.inbox.drain(&mut drained);
        let now = clock();
        let tick_nanos = self.shared.config.tick_ms * 1_000_000;
        self.out.tick = now.0 / tick_nanos;
        let has_input = !drained.is_empty();
        for input in drained.drain(..) {
            self.take_in(input);
        }
        self.drained = drained;
        while let Some(&(due, group)) = self.timers.first()
            && due <= self.out.tick
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
            self.step_group(id, wall_ms);
        }
        self.touched = touched;
        self.out.hand_on(&self.shared);
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

    fn take_in(&mut self, input: StepInput) {
        match input {
            StepInput::Start {
                prepared,
                responder,
            } => self.start(*prepared, responder),
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
            } => self.request(group, responder, |shared, _, group, responder| {
                requests::change_membership(shared, group, change, responder);
            }),
            StepInput::Transfer {
                group,
                to,
                responder,
            } => self.request(group, responder, |_, _, group, responder| {
                requests::transfer(group, to, responder);
            }),
            StepInput::Snapshot {
                group,
                request,
                responder,
            } => self.request(group, responder, |shared, out, group, responder| {
                saves::request_snapshot(shared, out, group, request, Some(responder));
            }),
            StepInput::CancelSnapshot { group, responder } => {
                self.request(group, responder, |shared, out, group, responder| {
                    requests::abort_save(group);
                    // Nor is one begun at once that nobody asked for.
                    saves::back_off(shared, out, group);
                    responder.respond(Ok(()));
                });
            }
            StepInput::Status { group, responder } => self.status(group, responder),
            StepInput::Messages { from, envelopes } => {
                for envelope in envelopes {
                    self.message(from, envelope);
                }
            }
            StepInput::Unreachable { replicas } => {
                for (group, replica) in replicas {
                    self.isolated(group, |_, _, group| group.raft.report_unreachable(replica));
                }
            }
            StepInput::HostLost { host } => self.host_lost(host),
            StepInput::Persisted(done) => {
                for done in done {
                    self.persisted(done);
                }
            }
            StepInput::Applied(applied) => {
                for (group, index) in applied {
                    self.isolated(group, |_, _, group| group.applied(index));
                }
            }
            StepInput::HostFailed { reason } => self.fail_host(&reason),
            StepInput::GroupFailed { group, reason } => self.fail_group(group, reason),
            StepInput::ReplicaFailed {
                group,
                replica,
                reason,
            } => {
                // An earlier replica's entries are nobody's loss.
                let found = self.groups.get(&group);
                if found.is_some_and(|found| found.replica == replica) {
                    self.fail_group(group, reason);
                }
            }
            StepInput::Fetched {
                group,
                first,
                batches,
            } => self.fetched(group, first, batches),
            StepInput::Saved {
                group,
                number,
                is_export,
                end,
            } => {
                self.isolated(group, |shared, out, group| {
                    match group.saving.as_ref() {
                        Some(saving) if saving.number == number => {
                            saves::saved(shared, out, group, end);
                        }
                        // Given up, but too late to be stopped.
                        _ if !is_export => saves::discard_unrecorded(out, group, &end),
                        _ => {}
                    }
                });
            }
            StepInput::SnapshotSent {
                group,
                to,
                is_finished,
            } => {
                let status = if is_finished {
                    SnapshotStatus::Finished
                } else {
                    SnapshotStatus::Failed
                };
                self.isolated(group, |_, _, group| group.raft.report_snapshot(to, status));
            }
            StepInput::SnapshotReceived(received) => {
                self.isolated(received.group, |shared, out, group| {
                    saves::received(shared, out, group, *received);
                });
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

    /// Lets `act` work on a group that serves, and has the group stepped in this pass.
    fn isolated<T>(
        &mut self,
        id: GroupId,
        act: impl FnOnce(&StepShared, &mut Out, &mut Group) -> T,
    ) -> Option<T> {
        self.guarded(id, |shared, out, touched, group| {
            if !std::mem::replace(&mut group.is_touched, true) {
                touched.push(id);
            }
            act(shared, out, group)
        })
    }

    /// Lets `act` work on a group that serves. Should it panic, the group fails, alone, and
    /// nothing it put out in this pass leaves.
    fn guarded<T>(
        &mut self,
        id: GroupId,
        act: impl FnOnce(&StepShared, &mut Out, &mut Vec<GroupId>, &mut Group) -> T,
    ) -> Option<T> {
        if self.failed.is_some() {
            return None;
        }
        let group = self.groups.get_mut(&id)?;
        if group.failed.is_some() {
            return None;
        }
        let (shared, out, touched) = (&*self.shared, &mut self.out, &mut self.touched);
        group.raft.set_tick(out.tick);
        match catch_unwind(AssertUnwindSafe(|| act(shared, out, touched, group))) {
            Ok(done) => Some(done),
            Err(panic) => {
                let reason = format!("panicked: {}", panic_text(&*panic));
                self.out.take_back(group);
                self.fail_group(id, reason);
                None
            }
        }
    }

    /// The same for a caller, who hears why if the group does not serve.
    fn request<T>(
        &mut self,
        id: GroupId,
        responder: Responder<T>,
        act: impl FnOnce(&StepShared, &mut Out, &mut Group, Responder<T>),
    ) {
        if let Err(error) = self.serving(id) {
            return responder.respond(Err(error));
        }
        self.isolated(id, |shared, out, group| act(shared, out, group, responder));
    }

    fn start(&mut self, prepared: Prepared, responder: Responder<()>) {
        if let Some(reason) = &self.failed {
            return responder.respond(Err(RequestError::HostFailed {
                reason: reason.clone(),
            }));
        }
        let (mut group, founding) = prepared.into_group(self.out.tick, responder);
        let id = group.id;
        if let Some(founding) = founding {
            self.out.submit(&mut group, founding);
        }
        let earlier = self.groups.insert(id, group);
        assert!(
            earlier.is_none(),
            "the engine refuses to start group {id} twice"
        );
        self.touch(id);
    }

    fn stop(&mut self, id: GroupId, responder: Responder<()>) {
        let Some(mut group) = self.groups.remove(&id) else {
            return responder.respond(Err(RequestError::UnknownGroup(id)));
        };
        if let Some(tick) = group.deadline_tick {
            self.timers.remove(&(tick, id));
        }
        requests::abort_save(&mut group);
        if group.ended == group.sequence || self.failed.is_some() {
            return self.stop_machine(id, responder);
        }
        let stopping = Stopping {
            replica: group.replica,
            sequence: group.sequence,
            responder,
        };
        self.stopping.insert(id, stopping);
    }

    fn stop_machine(&self, id: GroupId, responder: Responder<()>) {
        let worker = route(id, self.shared.applies.len());
        self.shared.applies[worker].notice(ApplyInput::Stop {
            group: id,
            responder,
        });
    }

    fn message(&mut self, from: HostId, mut envelope: Envelope) {
        let id = envelope.group;
        let refusal = self.isolated(id, |shared, _, group| {
            if envelope.epoch != group.epoch {
                return Err(Refusal::Other(format!(
                    "epoch {} is not ours, {}",
                    envelope.epoch, group.epoch
                )));
            }
            let sender = envelope.message.from;
            if envelope.message.to != group.replica {
                let to = envelope.message.to;
                return Err(Refusal::Other(format!("meant for replica {to}")));
            }
            if !group.lives_on(sender, from) {
                return Err(Refusal::Other(format!(
                    "replica {sender} does not live on host {from}"
                )));
            }
            if has_entries(&envelope.message) && shared.space.is_full() {
                // The leader sends them again; whoever has space leads on meanwhile.
                return Err(Refusal::StorageFull);
            }
            fit(&mut envelope.message.body, shared.record_bytes_max)?;
            let handled = group.raft.handle_message(envelope.message);
            handled.map_err(Refusal::Core)
        });
        let Some(Err(refusal)) = refusal else { return };
        let reason = refusal.to_string();
        tracing::debug!(group = id.get(), %reason, "message refused");
        if matches!(refusal, Refusal::Core(Refused::Violation { kind, .. }) if kind.is_fatal()) {
            // Somewhere safety is lost already: what is here must not vouch for anything more.
            if let Some(group) = self.groups.get_mut(&id) {
                self.out.take_back(group);
            }
            return self.fail_group(id, format!("safety violation: {reason}"));
        }
        self.out
            .events
            .push((id, Event::Refused { group: id, reason }));
    }

    /// Groups that fell quiet under a leader on `host` wake, or nobody would miss it.
    fn host_lost(&mut self, host: HostId) {
        let led_there = |group: &Group| {
            let leader = group.raft.leader().filter(|_| group.raft.is_quiet())?;
            (group.hosts.get(&leader) == Some(&host)).then_some((group.id, leader))
        };
        let mut led: Vec<_> = self
            .groups
            .values()
            .filter_map(|group| led_there(group))
            .collect();
        led.sort_unstable();
        for (id, leader) in led {
            self.isolated(id, |_, _, group| group.raft.report_unreachable(leader));
        }
    }

    fn persisted(&mut self, done: LaneDone) {
        let ends = |stopping: &Stopping| {
            stopping.replica == done.replica && stopping.sequence <= done.sequence
        };
        if let Entry::Occupied(stopping) = self.stopping.entry(done.group)
            && ends(stopping.get())
        {
            let responder = stopping.remove().responder;
            return self.stop_machine(done.group, responder);
        }
        let Some(group) = self.groups.get_mut(&done.group) else {
            return;
        };
        if group.replica != done.replica || done.sequence <= group.ended {
            return;
        }
        // Of one that has failed, too: whoever stops it waits for that.
        group.ended = done.sequence;
        self.isolated(done.group, |shared, out, group| {
            while let Some(front) = group.next_durable(done.sequence) {
                pass::complete(shared, out, group, front);
            }
        });
    }

    fn step_group(&mut self, id: GroupId, wall_ms: u64) {
        let due = self.guarded(id, |shared, out, _, group| {
            group.is_touched = false;
            pass::step_pass(shared, out, group, wall_ms);
            let oldest_round = group.rounds.first_key_value().map(|(_, round)| round.0);
            let due = group
                .raft
                .next_deadline()
                .into_iter()
                .chain(oldest_round)
                .chain(saves::retry_tick(group))
                .chain(saves::ask_tick(group))
                .min();
            let was_due = std::mem::replace(&mut group.deadline_tick, due);
            (was_due != due).then_some((was_due, due))
        });
        let Some(Some((was_due, due))) = due else {
            return;
        };
        if let Some(tick) = was_due {
            self.timers.remove(&(tick, id));
        }
        if let Some(tick) = due {
            self.timers.insert((tick, id));
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
            awaits_snapshot: group.awaits.as_ref().map(|awaited| awaited.index),
            is_quiet: raft.is_quiet(),
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

    /// Entries read from the log, or why not. A replica that cannot read what it holds stops here:
    /// it could neither apply nor feed others, and would not say so.
    fn fetched(&mut self, id: GroupId, first: Index, batches: Result<Vec<Batch>, LogError>) {
        let fetched = match batches {
            Ok(batches) => Fetched::Entries { first, batches },
            Err(error @ LogError::Damaged { .. }) => {
                return self.fail_group(id, format!("{error}; {REBUILD}"));
            }
            Err(error) => {
                tracing::warn!(group = id.get(), %first, %error, "entries cannot be read");
                Fetched::Failed { first }
            }
        };
        self.isolated(id, |_, _, group| group.raft.entries_fetched(fetched));
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
        for (id, stopping) in std::mem::take(&mut self.stopping) {
            self.stop_machine(id, stopping.responder);
        }
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

/// Why a message was not acted on.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Other(String),
    #[error("storage is full: entries are not taken")]
    StorageFull,
    #[error("an entry of {size} bytes is over the {bound} of a log record: raise record_bytes_max")]
    TooLarge { size: usize, bound: usize },
    #[error(transparent)]
    Core(Refused),
}

fn has_entries(message: &Message) -> bool {
    match &message.body {
        Body::Append { entries, .. } => !entries.is_empty(),
        Body::Propose { .. } => true,
        _ => false,
    }
}

/// Cuts what came with a message into batches that fit a record of this log, which would fail
/// for good over one that does not. The sender's own bound may be higher.
fn fit(body: &mut Body, bound: usize) -> Result<(), Refusal> {
    match body {
        Body::Append { entries, .. } => {
            if entries.iter().any(|batch| batch.size_bytes() > bound) {
                *entries = cut(entries, bound)?;
            }
            Ok(())
        }
        Body::Propose { entries } => {
            let sizes = entries.iter().map(|entry| {
                BatchBuilder::frame_bytes(entry.payload.len(), entry.session.is_some())
            });
            match sizes.max().filter(|&size| size > bound) {
                Some(size) => Err(Refusal::TooLarge { size, bound }),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn cut(batches: &[Batch], bound: usize) -> Result<Entries, Refusal> {
    let mut pieces = Entries::new();
    for batch in batches {
        let mut rest = Some(batch.clone());
        while let Some(batch) = rest {
            let piece = batch.up_to_size(bound);
            let size = piece.size_bytes();
            if size > bound {
                return Err(Refusal::TooLarge { size, bound });
            }
            rest = batch.from_index(piece.last().index.next());
            pieces.push(piece);
        }
    }
    Ok(pieces)
}
