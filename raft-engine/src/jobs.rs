//! The job pool: snapshots saved and restored, log entries read back, directories cleaned up.
//!
//! A poll handles one block of one job; a job that has more goes to the back of its queue, so that
//! a big one cannot starve the small ones.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_log::LogReader;
use raft_proto::{Batch, GroupId, Index, ReplicaId, SnapshotMeta};
use raft_snapshot::{SnapshotEnv, SnapshotFileMeta, SnapshotReader, SnapshotWriter};

use crate::apply::{ApplyInput, panic_text};
use crate::inbox::Inbox;
use crate::state_machine::{SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError};
use crate::step::StepInput;
use crate::{Progress, route};

/// Bytes a fetch reads at most in one go.
const FETCH_BYTES_MAX: usize = 4 << 20;

/// A state machine being written to a snapshot.
pub(crate) struct SaveJob {
    pub(crate) group: GroupId,
    pub(crate) epoch: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) env: SnapshotEnv,
    /// Where an exported copy goes, instead of the group's own directory.
    pub(crate) export: Option<PathBuf>,
    pub(crate) machine: Option<Box<dyn StateMachine>>,
    pub(crate) cursor: SaveCursor,
    pub(crate) writer: Option<SnapshotWriter>,
    pub(crate) buffer: BytesMut,
}

/// A state machine being replaced by a snapshot's state.
pub(crate) struct RestoreJob {
    pub(crate) group: GroupId,
    pub(crate) env: SnapshotEnv,
    pub(crate) index: Index,
    pub(crate) machine: Option<Box<dyn StateMachine>>,
}

/// What the pool can do.
pub(crate) enum Job {
    Save(Box<SaveJob>),
    Restore(Box<RestoreJob>),
    /// Entries the core no longer holds.
    Fetch {
        group: GroupId,
        replica: ReplicaId,
        first: Index,
        last: Index,
        bytes_max: usize,
    },
    /// After a snapshot was recorded: its flag goes, and so do the ones no longer retained.
    Recorded {
        env: SnapshotEnv,
        index: Index,
        retained: Vec<Index>,
    },
    /// A received snapshot that the core refused.
    Discard {
        env: SnapshotEnv,
        index: Index,
    },
}

impl Job {
    const fn priority(&self) -> usize {
        match self {
            Self::Fetch { .. } => 0,
            Self::Restore(_) | Self::Recorded { .. } | Self::Discard { .. } => 1,
            Self::Save(_) => 2,
        }
    }
}

/// The queue all job workers draw from.
#[derive(Default)]
pub(crate) struct JobQueue {
    queues: Mutex<[VecDeque<Job>; 3]>,
    changed: Condvar,
}

impl JobQueue {
    pub(crate) fn push(&self, job: Job) {
        self.lock()[job.priority()].push_back(job);
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Job> {
        self.lock().iter_mut().find_map(VecDeque::pop_front)
    }

    /// Parks the calling worker until there may be a job.
    pub(crate) fn wait(&self, timeout: Duration) {
        let queues = self.lock();
        if queues.iter().all(VecDeque::is_empty) {
            drop(self.changed.wait_timeout(queues, timeout));
        }
    }

    pub(crate) fn wake_all(&self) {
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, [VecDeque<Job>; 3]> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs jobs, one block a poll.
pub(crate) struct JobWorker {
    pub(crate) jobs: Arc<JobQueue>,
    pub(crate) reader: LogReader,
    pub(crate) steps: Vec<Arc<Inbox<StepInput>>>,
    pub(crate) applies: Vec<Arc<Inbox<ApplyInput>>>,
}

impl JobWorker {
    pub(crate) fn poll(&mut self) -> Progress {
        match self.jobs.pop() {
            None => return Progress::Idle { until: None },
            Some(Job::Save(job)) => self.save(job),
            Some(Job::Restore(job)) => self.restore(*job),
            Some(Job::Fetch {
                group,
                replica,
                first,
                last,
                bytes_max,
            }) => {
                let bytes_max = bytes_max.min(FETCH_BYTES_MAX);
                let result = self.reader.entries(group, replica, first, last, bytes_max);
                let batches = check_fetched(group, result);
                self.step(group).notice(StepInput::Fetched {
                    group,
                    first,
                    batches,
                });
            }
            Some(Job::Recorded {
                env,
                index,
                retained,
            }) => {
                // Left-overs of a failure here are swept at the next start.
                if let Err(error) = env.remove_flag(index).and_then(|()| env.retain(&retained)) {
                    tracing::warn!(%error, "cannot clean up behind a snapshot");
                }
            }
            Some(Job::Discard { env, index }) => {
                if let Err(error) = env.remove(index) {
                    tracing::warn!(%error, "cannot remove a refused snapshot");
                }
            }
        }
        Progress::More
    }

    fn save(&self, mut job: Box<SaveJob>) {
        let group = job.group;
        match catch_unwind(AssertUnwindSafe(|| save_block(&mut job))) {
            Ok(Ok(SaveStep::More)) => self.jobs.push(Job::Save(job)),
            Ok(Ok(SaveStep::Done)) => {
                let result = finish_save(&mut job);
                self.give_back(group, job.machine, None);
                self.step(group).notice(StepInput::Saved { group, result });
            }
            Ok(Err(SaveFailure::Storage(reason))) => {
                drop(job.writer.take());
                self.give_back(group, job.machine, None);
                self.step(group).notice(StepInput::Saved {
                    group,
                    result: Err(reason),
                });
            }
            Ok(Err(SaveFailure::Machine(error))) => self.lose(group, error.to_string()),
            Err(panic) => self.lose(group, format!("panicked: {}", panic_text(&*panic))),
        }
    }

    fn restore(&self, mut job: RestoreJob) {
        let group = job.group;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let reader = job.env.open_snapshot(job.index).map_err(|error| {
                StateMachineError(format!("cannot open snapshot {}: {error}", job.index))
            })?;
            let machine = job.machine.as_mut().expect("the apply worker put it in");
            machine.restore(&mut Blocks { reader })
        }));
        match outcome {
            Ok(Ok(())) => self.give_back(group, job.machine, Some(job.index)),
            Ok(Err(error)) => self.lose(group, error.to_string()),
            Err(panic) => self.lose(group, format!("panicked: {}", panic_text(&*panic))),
        }
    }

    fn give_back(
        &self,
        group: GroupId,
        machine: Option<Box<dyn StateMachine>>,
        restored: Option<Index>,
    ) {
        let machine = machine.expect("a job holds its machine until it gives it back");
        self.apply(group).notice(ApplyInput::MachineBack {
            group,
            machine,
            restored,
        });
    }

    fn lose(&self, group: GroupId, reason: String) {
        self.apply(group)
            .notice(ApplyInput::MachineLost { group, reason });
    }

    fn step(&self, group: GroupId) -> &Inbox<StepInput> {
        &self.steps[route(group, self.steps.len())]
    }

    fn apply(&self, group: GroupId) -> &Inbox<ApplyInput> {
        &self.applies[route(group, self.applies.len())]
    }
}

enum SaveFailure {
    Machine(StateMachineError),
    Storage(String),
}

fn save_block(job: &mut SaveJob) -> Result<SaveStep, SaveFailure> {
    let storage = |error: raft_snapshot::SnapshotError| SaveFailure::Storage(error.to_string());
    if job.writer.is_none() {
        let writer = match &job.export {
            None => job.env.begin_save(job.meta.id.index),
            Some(path) => job.env.begin_export(path, job.meta.id.index),
        };
        job.writer = Some(writer.map_err(storage)?);
    }
    let machine = job.machine.as_mut().expect("the apply worker put it in");
    job.buffer.clear();
    let step = machine
        .save_next(&mut job.cursor, &mut job.buffer)
        .map_err(SaveFailure::Machine)?;
    let writer = job.writer.as_mut().expect("it was just begun");
    writer.write(&job.buffer).map_err(storage)?;
    Ok(step)
}

fn finish_save(job: &mut SaveJob) -> Result<SnapshotMeta, String> {
    let meta = SnapshotFileMeta {
        group: job.group,
        epoch: job.epoch,
        id: job.meta.id,
        membership: job.meta.membership.encode().into(),
    };
    let writer = job
        .writer
        .take()
        .expect("it was begun with the first block");
    writer.finish(meta).map_err(|error| error.to_string())?;
    Ok(job.meta.clone())
}

/// Checked again here, because what a log returns goes straight to peers.
fn check_fetched(
    group: GroupId,
    result: Result<Vec<Batch>, raft_log::LogError>,
) -> Result<Vec<Batch>, String> {
    let batches = result.map_err(|error| format!("group {group}: {error}"))?;
    if batches.is_empty() {
        return Err(format!("group {group}: the log returned nothing"));
    }
    Ok(batches)
}

struct Blocks {
    reader: SnapshotReader,
}

impl SnapshotRead for Blocks {
    fn next(&mut self) -> Result<Option<Bytes>, StateMachineError> {
        self.reader
            .next()
            .map_err(|error| StateMachineError(error.to_string()))
    }
}
