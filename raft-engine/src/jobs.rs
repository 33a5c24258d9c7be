//! The job pool: snapshots saved and restored, log entries read back, directories cleaned up.
//!
//! A poll handles one block of one job; a job that has more goes to the back of its queue, so that
//! a big one cannot starve the small ones.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_log::LogReader;
use raft_proto::{GroupId, Index, ReplicaId, SnapshotMeta};
use raft_snapshot::{SnapshotEnv, SnapshotError, SnapshotFileMeta, SnapshotReader, SnapshotWriter};

use crate::apply::{ApplyInput, RestoredFrom, panic_text};
use crate::inbox::Inbox;
use crate::state_machine::{SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError};
use crate::step::StepInput;
use crate::{Progress, route};

/// Bytes a fetch reads at most in one go.
const FETCH_BYTES_MAX: usize = 4 << 20;

/// A state machine being written to a snapshot.
pub(crate) struct SaveJob {
    pub(crate) group: GroupId,
    /// Which of the group's saves it is.
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) meta: SnapshotMeta,
    pub(crate) env: SnapshotEnv,
    /// Where an exported copy goes, instead of the group's own directory.
    pub(crate) export: Option<PathBuf>,
    pub(crate) abort: Abort,
    pub(crate) machine: Option<Box<dyn StateMachine>>,
    pub(crate) cursor: SaveCursor,
    pub(crate) writer: Option<SnapshotWriter>,
    pub(crate) buffer: BytesMut,
}

/// Says to a save that nobody wants it any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Abort(Arc<AtomicBool>);

impl Abort {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a save ended.
pub(crate) enum SaveEnd {
    /// It lies in its final directory, flagged, and is to be recorded.
    Saved(Box<SnapshotMeta>),
    /// The final name is taken.
    OutOfDate,
    /// It was given up.
    Aborted,
    /// The disk refused.
    Failed(String),
}

/// A state machine being replaced by a snapshot's state.
pub(crate) struct RestoreJob {
    pub(crate) group: GroupId,
    pub(crate) env: SnapshotEnv,
    pub(crate) index: Index,
    /// It takes a lost one's place: entries up to it are still on their way.
    pub(crate) is_fill: bool,
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

/// The queue all job workers draw from: reads of the log first, then short jobs and restores, then
/// saves, a bounded number at a time.
pub(crate) struct JobQueue {
    queues: Mutex<Queues>,
    changed: Condvar,
    saves_max: usize,
}

#[derive(Default)]
struct Queues {
    fetches: VecDeque<Job>,
    others: VecDeque<Job>,
    /// Saves not begun.
    saves: VecDeque<Box<SaveJob>>,
    /// Saves begun that no worker is at.
    begun: VecDeque<Box<SaveJob>>,
    /// Saves begun and not ended.
    begun_count: usize,
}

impl JobQueue {
    pub(crate) fn new(saves_max: usize) -> Self {
        Self {
            queues: Mutex::default(),
            changed: Condvar::new(),
            saves_max,
        }
    }

    pub(crate) fn push(&self, job: Job) {
        let mut queues = self.lock();
        match job {
            Job::Fetch { .. } => queues.fetches.push_back(job),
            Job::Save(save) => queues.saves.push_back(save),
            job => queues.others.push_back(job),
        }
        drop(queues);
        self.changed.notify_one();
    }

    /// Puts a save back that has more to write, behind the others begun.
    fn put_back(&self, save: Box<SaveJob>) {
        self.lock().begun.push_back(save);
        self.changed.notify_one();
    }

    /// A save has ended: another may begin.
    fn save_ended(&self) {
        self.lock().begun_count -= 1;
        self.changed.notify_one();
    }

    fn pop(&self) -> Option<Job> {
        let mut queues = self.lock();
        if let Some(job) = queues.fetches.pop_front() {
            return Some(job);
        }
        if let Some(job) = queues.others.pop_front() {
            return Some(job);
        }
        if queues.begun_count < self.saves_max
            && let Some(save) = queues.saves.pop_front()
        {
            queues.begun_count += 1;
            return Some(Job::Save(save));
        }
        queues.begun.pop_front().map(Job::Save)
    }

    /// Parks the calling worker until there may be a job.
    pub(crate) fn wait(&self, timeout: Duration) {
        let queues = self.lock();
        let may_begin = queues.begun_count < self.saves_max && !queues.saves.is_empty();
        if queues.fetches.is_empty()
            && queues.others.is_empty()
            && queues.begun.is_empty()
            && !may_begin
        {
            drop(self.changed.wait_timeout(queues, timeout));
        }
    }

    pub(crate) fn wake_all(&self) {
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
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
                let batches = self.reader.entries(group, replica, first, last, bytes_max);
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
        let end = match catch_unwind(AssertUnwindSafe(|| save_block(&mut job))) {
            Ok(Ok(SaveStep::More)) => return self.jobs.put_back(job),
            Ok(Ok(SaveStep::Done)) => finish_save(&mut job).unwrap_or_else(|end| end),
            Ok(Err(SaveFailure::Ended(end))) => end,
            Ok(Err(SaveFailure::Machine(error))) => {
                return self.lose_saving(job, error.to_string());
            }
            Err(panic) => {
                let reason = format!("panicked: {}", panic_text(&*panic));
                return self.lose_saving(job, reason);
            }
        };
        // Removes what was written of a save that has failed.
        drop(job.writer.take());
        self.jobs.save_ended();
        // The step worker first: once the machine is back the group may stop, and start anew.
        let saved = StepInput::Saved {
            group,
            number: job.number,
            is_export: job.export.is_some(),
            end,
        };
        self.step(group).notice(saved);
        self.give_back(group, job.machine, None);
    }

    fn lose_saving(&self, job: Box<SaveJob>, reason: String) {
        let group = job.group;
        drop(job);
        self.jobs.save_ended();
        self.lose(group, reason);
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
            Ok(Ok(())) => {
                let (index, is_fill) = (job.index, job.is_fill);
                self.give_back(group, job.machine, Some(RestoredFrom { index, is_fill }));
            }
            Ok(Err(error)) => self.lose(group, error.to_string()),
            Err(panic) => self.lose(group, format!("panicked: {}", panic_text(&*panic))),
        }
    }

    fn give_back(
        &self,
        group: GroupId,
        machine: Option<Box<dyn StateMachine>>,
        restored: Option<RestoredFrom>,
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
    Ended(SaveEnd),
}

fn ended(error: SnapshotError) -> SaveEnd {
    match error {
        SnapshotError::OutOfDate(_) => SaveEnd::OutOfDate,
        error => SaveEnd::Failed(error.to_string()),
    }
}

fn save_block(job: &mut SaveJob) -> Result<SaveStep, SaveFailure> {
    let storage = |error| SaveFailure::Ended(ended(error));
    if job.abort.is_set() {
        return Err(SaveFailure::Ended(SaveEnd::Aborted));
    }
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

fn finish_save(job: &mut SaveJob) -> Result<SaveEnd, SaveEnd> {
    if job.abort.is_set() {
        return Err(SaveEnd::Aborted);
    }
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
    writer.finish(meta).map_err(ended)?;
    Ok(SaveEnd::Saved(Box::new(job.meta.clone())))
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
