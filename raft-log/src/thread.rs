//! A lane on a thread of its own, for those who use the log alone.

mod desk;
mod inbox;
mod intake;
#[cfg(all(test, loom))]
mod interleavings;
#[cfg(all(test, not(loom)))]
mod tests;

use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_proto::Time;

use self::desk::{Desk, Tenure};
use self::inbox::{Inbox, tell_all};
use crate::config::LaneOptions;
use crate::error::LogError;
use crate::lane::{Lane, LaneStats, Progress, ScrubStatus};
use crate::read::LogReader;
use crate::recovery::{DamageReport, Recovery};
use crate::state::Submission;
use crate::vfs::{Vfs, VfsError};

/// An idle thread looks around this often, whatever happens.
const PARK_MAX: Duration = Duration::from_millis(500);

/// Damage reports kept until somebody takes them.
const DAMAGE_MAX: usize = 1_024;

/// A lane driven by its own thread. While a batch is synced, submissions gather, each encoded on
/// the thread that brought it; the next write takes all of them.
///
/// [`LaneThread::append`] waits until what it was given is durable. [`LaneThread::submit`] does
/// not: completions are reported by callback, on the lane's thread. They come in the order of
/// submission, save that what a full disk keeps waiting is passed by what other replicas submit.
/// Those of one replica come in order always; only what was refused hears so at once, while what was
/// taken before it may be on its way still. A callback must not wait, as the next write does until it
/// returns; it may submit.
#[derive(Debug)]
pub struct LaneThread {
    desk: Arc<Desk>,
    reader: LogReader,
    record_bytes_max: usize,
    thread: Option<JoinHandle<Result<(), LogError>>>,
}

impl LaneThread {
    /// Opens the lane below `data_dir`, or makes it, and starts its thread.
    ///
    /// # Errors
    ///
    /// As [`Lane::open`]; [`LogError::Io`] too if the system refuses a thread.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        data_dir: &Path,
        options: LaneOptions,
    ) -> Result<(Self, Recovery), LogError> {
        let (record_bytes_max, pending_bytes_max) =
            (options.record_bytes_max, options.pending_bytes_max);
        let (mut lane, recovery) = Lane::open(vfs, data_dir, options)?;
        let reader = lane.reader();
        let desk = Arc::new_cyclic(|desk: &Weak<Desk>| {
            let desk = Weak::clone(desk);
            lane.wake_by(Arc::new(move || {
                if let Some(desk) = desk.upgrade() {
                    desk.inbox.nudge();
                }
            }));
            Desk::new(lane, pending_bytes_max)
        });
        let thread = {
            let desk = Arc::clone(&desk);
            std::thread::Builder::new()
                .name("raft-log-lane".to_owned())
                .spawn(move || drive(&desk))
                .map_err(|source| VfsError {
                    op: "start a thread",
                    path: data_dir.to_owned(),
                    source,
                })?
        };
        let this = Self {
            desk,
            reader,
            record_bytes_max,
            thread: Some(thread),
        };
        Ok((this, recovery))
    }

    /// Takes a submission; its number is given by the lane. `on_done` hears when it is durable, or
    /// that it never will be.
    ///
    /// # Errors
    ///
    /// Nothing was taken: [`LogError::Busy`] over
    /// [`LaneOptions::pending_bytes_max`], [`LogError::TooLarge`], [`LogError::NumberTooHigh`],
    /// [`LogError::Contradiction`] for what contradicts itself, [`LogError::Latched`] if the lane's
    /// thread has ended, [`LogError::StorageFull`] for entries while the disk is full. What was
    /// taken before it became full waits for room, so that what a group submitted behind it leaves
    /// no gap. What does not follow what its replica submitted before is found later: `on_done`
    /// hears of the [`LogError::Contradiction`] or [`LogError::Gone`], and nothing of it is written.
    pub fn submit(
        &self,
        submission: Submission,
        on_done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let bytes = self.admit(&submission)?;
        self.desk.push(submission, bytes, Box::new(on_done))
    }

    /// Takes a submission and returns when it is durable. Many threads that wait at a time share
    /// writes and syncs, and are woken together. Not for the lane's own thread: a callback that
    /// calls this waits for itself.
    ///
    /// # Errors
    ///
    /// As [`LaneThread::submit`]; [`LogError::Latched`] also when a write or sync failed: then the
    /// entries may be there after the next open, or not.
    pub fn append(&self, submission: Submission) -> Result<(), LogError> {
        let bytes = self.admit(&submission)?;
        self.desk.push_and_wait(submission, bytes)
    }

    /// What the submission counts for, if it may come in.
    fn admit(&self, submission: &Submission) -> Result<usize, LogError> {
        submission.check(self.record_bytes_max)?;
        if !submission.entries.is_empty() && self.reader.space().is_full() {
            return Err(LogError::StorageFull);
        }
        Ok(submission.bytes())
    }

    /// A handle for reading.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LaneStats {
        let stats = self.desk.stats();
        stats.unwrap_or_else(|| self.desk.inbox.lock().stats)
    }

    /// Begins to verify everything durable, as [`Lane::scrub`].
    pub fn scrub(&self) {
        self.desk.inbox.lock().ask_for_scrub();
        self.desk.inbox.notify();
    }

    /// How far verifying has come, as of the last step of it.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        let state = self.desk.inbox.lock();
        ScrubStatus {
            is_running: state.scrub.is_running || state.wants_scrub,
            ..state.scrub
        }
    }

    /// Takes the damage found since the last call, as [`Lane::take_damage`].
    #[must_use]
    pub fn take_damage(&self) -> Vec<DamageReport> {
        std::mem::take(&mut self.desk.inbox.lock().damage)
    }

    /// Completes what was submitted and closes the lane.
    ///
    /// # Errors
    ///
    /// As [`Lane::close`].
    pub fn close(mut self) -> Result<(), LogError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), LogError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.desk.inbox.lock().is_closing = true;
        self.desk.inbox.notify();
        if thread.thread().id() == std::thread::current().id() {
            // Dropped by a callback: a thread cannot wait for itself, and ends when this returns.
            return Ok(());
        }
        thread
            .join()
            .unwrap_or_else(|_| Err(LogError::Latched("the lane's thread panicked".to_owned())))
    }
}

impl Drop for LaneThread {
    fn drop(&mut self) {
        // Who wants to know how it ended calls `close`.
        drop(self.stop());
    }
}

fn drive(desk: &Desk) -> Result<(), LogError> {
    let _tenure = Tenure(desk);
    let inbox = &desk.inbox;
    let origin = Instant::now();
    let clock = || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let mut ended = Vec::new();
    loop {
        let (at_disk, is_closing) = desk.begin(clock())?;
        let begin = Instant::now();
        let from_disk = at_disk.wait();
        let span = begin.elapsed();
        let before = inbox.fresh();
        let progress = desk.end(from_disk, &mut ended)?;
        let count = ended.len();
        if count > 0 {
            tell_all(ended.drain(..));
            gather(inbox, before + count, span / 2);
        }
        if is_closing && inbox.is_empty() {
            return desk.close();
        }
        if let Progress::Idle { until } = progress {
            let timeout = until
                .map_or(PARK_MAX, |until| Duration::from_nanos(until.since(clock())))
                .min(PARK_MAX);
            inbox.sleep(timeout);
        }
    }
}

/// How long the first of those who were just told may take to submit again: about what it takes
/// to wake a thread on a processor that sleeps too.
const FIRST_GAP: Duration = Duration::from_micros(80);
/// How long the next one may take: about what it takes to turn from one thread to another, twice.
const NEXT_GAP: Duration = Duration::from_micros(40);

/// Waits while those who were just told submit again, until `all` are there, `longest` at most:
/// who does so at once, as most do, would else find the next sync begun without it, and wait for
/// two. The submitters would fall into two halves, and each sync would carry one of them.
fn gather(inbox: &Inbox, all: usize, longest: Duration) {
    if all < 2 {
        return;
    }
    let begin = Instant::now();
    let mut quiet_until = begin + FIRST_GAP;
    let mut seen = inbox.fresh();
    while seen < all {
        std::thread::yield_now();
        let now = Instant::now();
        let waiting = inbox.fresh();
        if waiting > seen {
            seen = waiting;
            quiet_until = now + NEXT_GAP;
        }
        if now >= quiet_until.min(begin + longest) {
            return;
        }
    }
}
