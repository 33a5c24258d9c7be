//! Where submitters and the lane's thread meet.
//!
//! ```text
//!  submitter ──▶ inbox ──▶ lane      by the lane's thread, when it looks, or while the disk works
//!                                    by whoever has just submitted
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use raft_proto::Time;

use super::inbox::{Callback, Inbox, OnDone, tell_all};
use super::intake::Intake;
use crate::error::LogError;
use crate::lane::{AtDisk, FromDisk, Lane, LaneStats, Progress};
use crate::state::Submission;

/// How often one submitter encodes what came while it did.
const ROUNDS_MAX: usize = 4;

/// The inbox, and the lane itself.
pub(super) struct Desk {
    pub(super) inbox: Inbox,
    /// Nobody waits for the disk with it. `None`: the lane's thread has ended.
    core: Mutex<Option<Core>>,
    /// The lane's thread waits for the disk, so that submitters encode themselves.
    is_at_disk: AtomicBool,
}

/// The lane, and who is to be told of what was submitted to it.
struct Core {
    lane: Lane,
    intake: Intake,
    taken: Vec<(Submission, OnDone)>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

/// A submission that has ended: who is to be told what.
pub(super) type Ended = (OnDone, Result<(), LogError>);

impl Core {
    fn submit_taken(&mut self) {
        self.intake.take(&mut self.lane, self.taken.drain(..));
    }
}

impl Desk {
    pub(super) fn new(lane: Lane, pending_bytes_max: usize) -> Self {
        let core = Core {
            intake: Intake::default(),
            lane,
            taken: Vec::new(),
        };
        Self {
            inbox: Inbox::new(pending_bytes_max),
            core: Mutex::new(Some(core)),
            is_at_disk: AtomicBool::new(false),
        }
    }

    /// Puts a submission in; `on_done` hears how it ended.
    pub(super) fn push(
        &self,
        submission: Submission,
        bytes: usize,
        on_done: Callback,
    ) -> Result<(), LogError> {
        self.inbox.push(submission, bytes, on_done)?;
        self.encode_meanwhile();
        Ok(())
    }

    /// Puts a submission in and waits until it has ended.
    pub(super) fn push_and_wait(
        &self,
        submission: Submission,
        bytes: usize,
    ) -> Result<(), LogError> {
        let waiting = self.inbox.push_waiter(submission, bytes)?;
        self.encode_meanwhile();
        waiting.wait()
    }

    /// Counters, while there is a lane.
    pub(super) fn stats(&self) -> Option<LaneStats> {
        let core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        core.as_ref().map(|core| core.lane.stats())
    }

    /// While the disk works, what waits is encoded for the next record by those who submit. It is
    /// left to the lane's thread if that does not wait for the disk, or somebody else is at it.
    fn encode_meanwhile(&self) {
        for _ in 0..ROUNDS_MAX {
            if !self.is_at_disk.load(Ordering::Acquire) || self.inbox.is_empty() {
                return;
            }
            let mut core = match self.core.try_lock() {
                Ok(core) => core,
                // Who panicked with it has left it in no state to go on from.
                Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => return,
            };
            let Some(core) = core.as_mut() else {
                return;
            };
            self.inbox.lock().take(&mut core.taken);
            core.submit_taken();
        }
    }

    fn core(&self) -> Result<MutexGuard<'_, Option<Core>>, LogError> {
        self.core
            .lock()
            .map_err(|_| LogError::Latched("a submitter panicked within the log".to_owned()))
    }

    /// The lane's thread looks at what there is and begins the next write. Returns whether the log
    /// is being closed, too.
    pub(super) fn begin(&self, now: Time) -> Result<(AtDisk, bool), LogError> {
        let mut core = self.core()?;
        let core = core.as_mut().expect("its own thread has not ended");
        let is_closing = {
            let mut state = self.inbox.lock();
            self.inbox.look(&mut state, &mut core.taken);
            if state.take_scrub() {
                core.lane.scrub();
                state.scrub = core.lane.scrub_status();
            }
            state.is_closing
        };
        core.submit_taken();
        let at_disk = core.lane.poll_begin(now);
        self.is_at_disk.store(true, Ordering::Release);
        Ok((at_disk, is_closing))
    }

    /// The disk has answered. What has ended is added to `ended`.
    pub(super) fn end(
        &self,
        from_disk: FromDisk,
        ended: &mut Vec<Ended>,
    ) -> Result<Progress, LogError> {
        self.is_at_disk.store(false, Ordering::Release);
        let mut core = self.core()?;
        let core = core.as_mut().expect("its own thread has not ended");
        let progress = core.lane.poll_end(from_disk);
        let bytes = core.intake.take_ended(&mut core.lane, ended);
        if bytes > 0 {
            self.inbox.lock().bytes -= bytes;
        }
        self.tell_scrub(&mut core.lane);
        Ok(progress)
    }

    /// Passes on how verifying goes, while it does.
    fn tell_scrub(&self, lane: &mut Lane) {
        if lane.is_scrub_news() {
            let (status, damage) = (lane.scrub_status(), lane.take_damage());
            self.inbox.lock().add_damage(status, damage);
        }
    }

    /// Writes what was taken, and closes. Who was promised an answer has it before that.
    pub(super) fn close(&self) -> Result<(), LogError> {
        let Some(mut core) = self.core()?.take() else {
            return Ok(());
        };
        let closed = core.lane.finish();
        let mut ended = Vec::new();
        core.intake.take_ended(&mut core.lane, &mut ended);
        self.inbox.lock().stats = core.lane.stats();
        tell_all(ended.into_iter());
        let why = || match &closed {
            Err(LogError::Latched(reason)) => LogError::Latched(reason.clone()),
            Err(LogError::Io(error)) => LogError::Latched(error.to_string()),
            _ => LogError::StorageFull,
        };
        tell_all(core.intake.take_all().map(|on_done| (on_done, Err(why()))));
        closed
    }
}

/// The lane's thread holds this: when it ends, however it does, nobody is left waiting.
pub(super) struct Tenure<'a>(pub(super) &'a Desk);

impl Drop for Tenure<'_> {
    fn drop(&mut self) {
        let core = {
            let mut core = self.0.core.lock().unwrap_or_else(PoisonError::into_inner);
            core.take()
        };
        let stats = core.as_ref().map(|core| core.lane.stats());
        let left = self.0.inbox.close(stats);
        drop(core);
        drop(left);
    }
}
