//! The apply worker: hands committed entries to the state machines and answers their proposers.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use raft_proto::{Batch, EntryId, EntryKind, GroupId, Index};
use raft_snapshot::SnapshotEnv;
use rustc_hash::FxHashMap;

use crate::inbox::{Inbox, Room};
use crate::jobs::{Job, JobQueue, RestoreJob, SaveJob};
use crate::request::{Applied, RequestError, Responder};
use crate::state_machine::{Command, StateMachine, StateMachineError};
use crate::status::GroupStatus;
use crate::step::StepInput;
use crate::{Progress, route};

/// How many applied groups are reported to the step workers in one notice.
const NOTICE_GROUPS_MAX: usize = 64;

/// A proposer that waits for the entry with this id.
pub(crate) struct Waiter {
    pub(crate) id: EntryId,
    pub(crate) responder: Responder<Applied>,
}

/// A query and who asked.
pub(crate) struct Read {
    pub(crate) query: Bytes,
    pub(crate) responder: Responder<Bytes>,
    /// Given back with the answer.
    pub(crate) _room: Room,
}

/// What an apply worker is told.
pub(crate) enum ApplyInput {
    /// A group starts; its state machine has applied everything up to `applied`.
    Start {
        group: GroupId,
        machine: Box<dyn StateMachine>,
        applied: Index,
        /// Its snapshot is lost: nothing but statuses goes before one is restored.
        awaits_snapshot: bool,
    },
    /// What comes next for a group, behind what came before.
    Task { group: GroupId, task: Task },
    /// The machine comes back from a job.
    MachineBack {
        group: GroupId,
        machine: Box<dyn StateMachine>,
        restored: Option<RestoredFrom>,
    },
    /// The machine was lost to an error or a panic in a job.
    MachineLost { group: GroupId, reason: String },
    /// The group stops here; answered when nothing of it is left.
    Stop {
        group: GroupId,
        responder: Responder<()>,
    },
}

/// What a machine was restored from.
#[derive(Clone, Copy)]
pub(crate) struct RestoredFrom {
    pub(crate) index: Index,
    pub(crate) is_fill: bool,
}

/// One piece of work of a group, done in the order given.
pub(crate) enum Task {
    /// Committed entries, durable here, and the proposers that wait for some of them.
    Entries {
        batches: Vec<Batch>,
        waiters: Vec<Waiter>,
    },
    /// Queries to answer once `at` is applied.
    Read { at: Index, reads: Vec<Read> },
    /// The replica was removed: what its queries wait for may never come.
    DropReads,
    /// A query to answer from whatever state there is.
    StaleRead(Read),
    /// Save the state; the machine is away until the job returns it.
    Save(Box<SaveJob>),
    /// Replace the state by a stored snapshot's.
    Restore(Box<RestoreJob>),
    /// Complete a status with what only this worker knows.
    Status {
        status: Box<GroupStatus>,
        responder: Responder<GroupStatus>,
    },
}

impl Task {
    /// Replaces the machine's state by the stored snapshot at `index`.
    pub(crate) fn restore(group: GroupId, env: SnapshotEnv, index: Index, is_fill: bool) -> Self {
        Self::Restore(Box::new(RestoreJob {
            group,
            env,
            index,
            is_fill,
            machine: None,
        }))
    }
}

struct ApplyGroup {
    /// `None` while a job has it.
    machine: Option<Box<dyn StateMachine>>,
    applied: Index,
    awaits_snapshot: bool,
    /// Entries up to here are in the snapshot that ended the wait for one: they may come yet, and
    /// are passed over.
    covered: Index,
    queue: VecDeque<Task>,
    /// Proposers of the entries being applied; should the machine fail, they are still here.
    answering: VecDeque<Waiter>,
    /// Queries that wait for their read index.
    waiting: BTreeMap<Index, Vec<Read>>,
    is_runnable: bool,
    failed: Option<String>,
    stopping: Option<Responder<()>>,
}

impl ApplyGroup {
    /// Takes a task while the machine waits for a snapshot: that goes ahead of all others.
    fn wait_with(&mut self, group: GroupId, task: Task) {
        match task {
            Task::Restore(job) => {
                self.awaits_snapshot = false;
                self.covered = job.index;
                self.queue.push_front(Task::Restore(job));
            }
            Task::Status { status, responder } => responder.respond(Ok(GroupStatus {
                applied: self.applied,
                ..*status
            })),
            Task::StaleRead(read) => read.responder.respond(Err(RequestError::GroupFailed {
                group,
                reason: "its snapshot is lost, and none has come from a peer yet".to_owned(),
            })),
            task => self.queue.push_back(task),
        }
    }
}

/// Runs user code for its groups, one task of one group a poll.
pub(crate) struct ApplyWorker {
    inbox: Arc<Inbox<ApplyInput>>,
    steps: Vec<Arc<Inbox<StepInput>>>,
    jobs: Arc<JobQueue>,
    groups: FxHashMap<GroupId, ApplyGroup>,
    runnable: VecDeque<GroupId>,
    applied: Vec<Vec<(GroupId, Index)>>,
    applied_count: usize,
    drained: Vec<ApplyInput>,
}

impl Drop for ApplyWorker {
    /// What still lies in the inbox answers its callers now.
    fn drop(&mut self) {
        self.inbox.close();
    }
}

impl ApplyWorker {
    pub(crate) fn new(
        inbox: Arc<Inbox<ApplyInput>>,
        steps: Vec<Arc<Inbox<StepInput>>>,
        jobs: Arc<JobQueue>,
    ) -> Self {
        let applied = steps.iter().map(|_| Vec::new()).collect();
        Self {
            inbox,
            steps,
            jobs,
            groups: FxHashMap::default(),
            runnable: VecDeque::new(),
            applied,
            applied_count: 0,
            drained: Vec::new(),
        }
    }

    /// Takes in what has gathered and runs one task.
    pub(crate) fn poll(&mut self) -> Progress {
        let mut drained = std::mem::take(&mut self.drained);
        self.inbox.drain(&mut drained);
        for input in drained.drain(..) {
            self.take_in(input);
        }
        self.drained = drained;
        if let Some(id) = self.runnable.pop_front() {
            self.run_one(id);
        }
        if self.runnable.is_empty() || self.applied_count >= NOTICE_GROUPS_MAX {
            self.flush_applied();
        }
        if self.runnable.is_empty() {
            Progress::Idle { until: None }
        } else {
            Progress::More
        }
    }

    fn take_in(&mut self, input: ApplyInput) {
        match input {
            ApplyInput::Start {
                group,
                machine,
                applied,
                awaits_snapshot,
            } => {
                let state = ApplyGroup {
                    machine: Some(machine),
                    applied,
                    awaits_snapshot,
                    covered: Index::ZERO,
                    queue: VecDeque::new(),
                    answering: VecDeque::new(),
                    waiting: BTreeMap::new(),
                    is_runnable: false,
                    failed: None,
                    stopping: None,
                };
                let earlier = self.groups.insert(group, state);
                assert!(earlier.is_none(), "group {group} was started twice");
            }
            ApplyInput::Task { group, task } => {
                // A task of a group that has stopped: its responders answer by themselves.
                if let Some(state) = self.groups.get_mut(&group) {
                    if state.awaits_snapshot {
                        state.wait_with(group, task);
                    } else {
                        state.queue.push_back(task);
                    }
                    self.make_runnable(group);
                }
            }
            ApplyInput::MachineBack {
                group,
                machine,
                restored,
            } => {
                let Some(state) = self.groups.get_mut(&group) else {
                    return;
                };
                state.machine = Some(machine);
                if let Some(RestoredFrom { index, is_fill }) = restored {
                    state.applied = index;
                    // The core has not handed out all entries up to there: theirs is the word.
                    if !is_fill {
                        self.note_applied(group, index);
                    }
                }
                self.make_runnable(group);
            }
            ApplyInput::MachineLost { group, reason } => {
                if let Some(state) = self.groups.get_mut(&group) {
                    state.failed = Some(reason.clone());
                    self.make_runnable(group);
                    self.step(group)
                        .notice(StepInput::GroupFailed { group, reason });
                }
            }
            ApplyInput::Stop { group, responder } => match self.groups.get_mut(&group) {
                Some(state) => {
                    state.stopping = Some(responder);
                    self.make_runnable(group);
                }
                None => responder.respond(Ok(())),
            },
        }
    }

    fn make_runnable(&mut self, id: GroupId) {
        if let Some(state) = self.groups.get_mut(&id)
            && !state.is_runnable
        {
            state.is_runnable = true;
            self.runnable.push_back(id);
        }
    }

    fn run_one(&mut self, id: GroupId) {
        let Some(state) = self.groups.get_mut(&id) else {
            return;
        };
        state.is_runnable = false;
        if state.stopping.is_some() {
            if state.machine.is_some() || state.failed.is_some() {
                let stopped = self.groups.remove(&id).expect("it was just found");
                if let Some(responder) = stopped.stopping {
                    responder.respond(Ok(()));
                }
            }
            return;
        }
        if let Some(reason) = &state.failed {
            let error = RequestError::GroupFailed {
                group: id,
                reason: reason.clone(),
            };
            refuse_all(state, &error);
            return;
        }
        if state.machine.is_none() || state.awaits_snapshot {
            return;
        }
        // A restored snapshot may have brought the index that a read waits for.
        let has_due_read = state
            .waiting
            .first_key_value()
            .is_some_and(|(&at, _)| at <= state.applied);
        let task = state.queue.pop_front();
        if task.is_none() && !has_due_read {
            return;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if has_due_read {
                answer_due_reads(state)?;
            }
            task.map_or(Ok(After::Nothing), |task| run_task(id, state, task))
        }));
        let failure = match outcome {
            Ok(Ok(after)) => {
                let has_more = !state.queue.is_empty() && state.machine.is_some();
                match after {
                    After::Nothing => {}
                    After::Applied(index) => self.note_applied(id, index),
                    After::Job(job) => self.jobs.push(job),
                }
                if has_more {
                    self.make_runnable(id);
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("panicked: {}", panic_text(&*panic)),
        };
        state.failed = Some(failure.clone());
        let error = RequestError::GroupFailed {
            group: id,
            reason: failure.clone(),
        };
        refuse_all(state, &error);
        self.step(id).notice(StepInput::GroupFailed {
            group: id,
            reason: failure,
        });
    }

    fn note_applied(&mut self, group: GroupId, index: Index) {
        let worker = route(group, self.steps.len());
        self.applied[worker].push((group, index));
        self.applied_count += 1;
    }

    fn flush_applied(&mut self) {
        if self.applied_count == 0 {
            return;
        }
        self.applied_count = 0;
        for (applied, step) in self.applied.iter_mut().zip(&self.steps) {
            if !applied.is_empty() {
                step.notice(StepInput::Applied(std::mem::take(applied)));
            }
        }
    }

    fn step(&self, group: GroupId) -> &Inbox<StepInput> {
        &self.steps[route(group, self.steps.len())]
    }
}

enum After {
    Nothing,
    Applied(Index),
    Job(Job),
}

fn run_task(id: GroupId, state: &mut ApplyGroup, task: Task) -> Result<After, StateMachineError> {
    match task {
        Task::Entries { batches, waiters } => {
            state.answering = waiters.into();
            apply_entries(id, state, &batches)?;
            // Entries that a snapshot or another leader took the place of.
            state.answering.clear();
            answer_due_reads(state)?;
            let last = batches
                .last()
                .map_or(state.applied, |batch| batch.last().index);
            Ok(After::Applied(last))
        }
        Task::Read { at, reads } => {
            state.waiting.entry(at).or_default().extend(reads);
            answer_due_reads(state)?;
            Ok(After::Nothing)
        }
        Task::DropReads => {
            for read in std::mem::take(&mut state.waiting).into_values().flatten() {
                read.responder.respond(Err(RequestError::ReadDropped));
            }
            Ok(After::Nothing)
        }
        Task::StaleRead(read) => {
            answer(state, read)?;
            Ok(After::Nothing)
        }
        Task::Save(mut job) => {
            assert_eq!(
                job.meta.id.index, state.applied,
                "a save stands behind its entries"
            );
            job.machine = state.machine.take();
            Ok(After::Job(Job::Save(job)))
        }
        Task::Restore(mut job) => {
            job.machine = state.machine.take();
            Ok(After::Job(Job::Restore(job)))
        }
        Task::Status {
            mut status,
            responder,
        } => {
            status.applied = state.applied;
            status.state_hash = machine(state).state_hash();
            responder.respond(Ok(*status));
            Ok(After::Nothing)
        }
    }
}

fn apply_entries(
    id: GroupId,
    state: &mut ApplyGroup,
    batches: &[Batch],
) -> Result<(), StateMachineError> {
    for batch in batches {
        // The last check before the state changes for good: the leader's own checksums.
        Batch::decode(id, batch.bytes().clone())
            .map_err(|error| StateMachineError(format!("entries damaged in memory: {error}")))?;
        for entry in batch {
            if entry.index() <= state.covered {
                refuse_covered(state, entry.index());
                continue;
            }
            assert_eq!(
                entry.index(),
                state.applied.next(),
                "entries are applied in order"
            );
            let is_command = entry.kind() == EntryKind::Command
                && (!entry.payload().is_empty() || entry.session().is_some());
            let result = if is_command {
                machine(state).apply(Command {
                    index: entry.index(),
                    term: entry.term(),
                    leader_time_ms: entry.leader_time_ms(),
                    session: entry.session(),
                    payload: entry.payload(),
                })?
            } else {
                Bytes::new()
            };
            state.applied = entry.index();
            while let Some(waiter) = state.answering.front()
                && waiter.id.index <= entry.index()
            {
                let is_of_entry = waiter.id == entry.id();
                let waiter = state.answering.pop_front().expect("it was just seen");
                waiter.responder.respond(if is_of_entry {
                    Ok(Applied {
                        index: entry.index(),
                        result: result.clone(),
                    })
                } else {
                    Err(RequestError::Superseded)
                });
            }
        }
    }
    Ok(())
}

/// Answers who waits for an entry that came with a snapshot: what it returned is not known here.
fn refuse_covered(state: &mut ApplyGroup, index: Index) {
    while let Some(waiter) = state.answering.front()
        && waiter.id.index <= index
    {
        let waiter = state.answering.pop_front().expect("it was just seen");
        let reason = "a snapshot covers the entry".to_owned();
        let error = RequestError::OutcomeUnknown { reason };
        waiter.responder.respond(Err(error));
    }
}

fn answer_due_reads(state: &mut ApplyGroup) -> Result<(), StateMachineError> {
    while let Some(due) = state
        .waiting
        .first_entry()
        .filter(|due| *due.key() <= state.applied)
    {
        for read in due.remove() {
            answer(state, read)?;
        }
    }
    Ok(())
}

fn answer(state: &mut ApplyGroup, read: Read) -> Result<(), StateMachineError> {
    match machine(state).query(&read.query) {
        Ok(answer) => read.responder.respond(Ok(answer)),
        Err(error) => {
            // With the rest of the group's.
            state.waiting.entry(Index::ZERO).or_default().push(read);
            return Err(error);
        }
    }
    Ok(())
}

fn machine(state: &mut ApplyGroup) -> &mut dyn StateMachine {
    state
        .machine
        .as_deref_mut()
        .expect("tasks run only while the machine is here")
}

fn refuse_all(state: &mut ApplyGroup, error: &RequestError) {
    let refuse_reads = |reads: Vec<Read>| {
        for read in reads {
            read.responder.respond(Err(error.clone()));
        }
    };
    for (_, reads) in std::mem::take(&mut state.waiting) {
        refuse_reads(reads);
    }
    for waiter in state.answering.drain(..) {
        waiter.responder.respond(Err(error.of_what_was_taken()));
    }
    for task in state.queue.drain(..) {
        match task {
            Task::Entries { waiters, .. } => {
                for waiter in waiters {
                    waiter.responder.respond(Err(error.of_what_was_taken()));
                }
            }
            Task::Read { reads, .. } => refuse_reads(reads),
            Task::StaleRead(read) => refuse_reads(vec![read]),
            Task::Status {
                mut status,
                responder,
            } => {
                status.applied = state.applied;
                status.failed = Some(error.to_string());
                responder.respond(Ok(*status));
            }
            Task::Save(_) | Task::Restore(_) | Task::DropReads => {}
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
