//! A lane on a thread of its own, for those who use the log alone.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_proto::Time;

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::lane::{Lane, LaneStats, Progress, ScrubStatus};
use crate::read::LogReader;
use crate::recovery::{DamageReport, Recovery};
use crate::state::Submission;
use crate::vfs::Vfs;

/// Bytes that may wait for the disk before submitters are told [`LogError::Busy`].
const PENDING_BYTES_MAX: usize = 64 << 20;
/// An idle thread looks around this often, whatever happens.
const PARK_MAX: Duration = Duration::from_millis(500);

/// Damage reports kept until somebody takes them.
const DAMAGE_MAX: usize = 1_024;

type Callback = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// A lane driven by its own thread. While a batch is synced, submissions gather; the next write
/// takes all of them.
///
/// Completions are reported by callback, in the order of submission, on a thread of the log's own: a
/// callback must not wait. Where many end at once, a second thread calls back while the next batch
/// is on its way already.
#[derive(Debug)]
pub struct LaneThread {
    inbox: Arc<Inbox>,
    reader: LogReader,
    thread: Option<JoinHandle<Result<(), LogError>>>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    wake: Condvar,
}

#[derive(Default)]
struct InboxState {
    waiting: Vec<(Submission, Callback)>,
    /// Of submissions not completed.
    bytes: usize,
    is_asleep: bool,
    is_closing: bool,
    /// A scrub was asked for and has not begun.
    wants_scrub: bool,
    stats: LaneStats,
    scrub: ScrubStatus,
    /// Damage found that nobody has taken yet.
    damage: Vec<DamageReport>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneThread {
    /// Opens the lane below `data_dir`, or makes it, and starts its thread.
    ///
    /// # Errors
    ///
    /// As [`Lane::open`].
    ///
    /// # Panics
    ///
    /// If the system refuses a thread.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        data_dir: &Path,
        options: LaneOptions,
    ) -> Result<(Self, Recovery), LogError> {
        let (lane, recovery) = Lane::open(vfs, data_dir, options)?;
        let reader = lane.reader();
        let inbox = Arc::<Inbox>::default();
        let thread = {
            let inbox = Arc::clone(&inbox);
            std::thread::Builder::new()
                .name("raft-log-lane".to_owned())
                .spawn(move || drive(lane, &inbox))
                .expect("the system starts a thread")
        };
        let this = Self {
            inbox,
            reader,
            thread: Some(thread),
        };
        Ok((this, recovery))
    }

    /// Takes a submission; its number is given by the lane. `on_done` hears when it is durable, or
    /// that it never will be.
    ///
    /// # Errors
    ///
    /// Nothing was taken: [`LogError::Busy`], [`LogError::StorageFull`] for entries while the disk
    /// is full.
    pub fn submit(
        &self,
        submission: Submission,
        on_done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let bytes = submission.entries_bytes() + SUBMISSION_BYTES;
        if !submission.entries.is_empty() && self.reader.space().is_full() {
            return Err(LogError::StorageFull);
        }
        let mut state = self.inbox.lock();
        if state.bytes > 0 && state.bytes + bytes > PENDING_BYTES_MAX {
            return Err(LogError::Busy {
                pending: state.bytes,
                bound: PENDING_BYTES_MAX,
            });
        }
        state.bytes += bytes;
        state.waiting.push((submission, Box::new(on_done)));
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.inbox.wake.notify_one();
        }
        Ok(())
    }

    /// A handle for reading.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Counters, as of the last batch.
    #[must_use]
    pub fn stats(&self) -> LaneStats {
        self.inbox.lock().stats
    }

    /// Begins to verify everything durable, as [`Lane::scrub`].
    pub fn scrub(&self) {
        self.inbox.lock().wants_scrub = true;
        self.inbox.wake.notify_one();
    }

    /// How far verifying has come, as of the last step of it.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        let state = self.inbox.lock();
        ScrubStatus {
            is_running: state.scrub.is_running || state.wants_scrub,
            ..state.scrub
        }
    }

    /// Takes the damage found since the last call, as [`Lane::take_damage`].
    #[must_use]
    pub fn take_damage(&self) -> Vec<DamageReport> {
        std::mem::take(&mut self.inbox.lock().damage)
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
        self.inbox.lock().is_closing = true;
        self.inbox.wake.notify_one();
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

/// What a submission counts for besides its entries.
const SUBMISSION_BYTES: usize = 128;

fn drive(mut lane: Lane, inbox: &Inbox) -> Result<(), LogError> {
    let origin = Instant::now();
    let clock = || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    let mut callbacks: VecDeque<(usize, Callback)> = VecDeque::new();
    let mut taken = Vec::new();
    let mut ticket = 0;
    let mut notifier = Notifier::start();
    loop {
        let is_closing = {
            let mut state = inbox.lock();
            std::mem::swap(&mut state.waiting, &mut taken);
            if std::mem::take(&mut state.wants_scrub) {
                lane.scrub();
                state.scrub = lane.scrub_status();
            }
            state.is_closing
        };
        for (mut submission, on_done) in taken.drain(..) {
            ticket += 1;
            submission.submission = ticket;
            let bytes = submission.entries_bytes() + SUBMISSION_BYTES;
            match lane.submit(submission) {
                Ok(()) => callbacks.push_back((bytes, on_done)),
                Err(error) => {
                    inbox.lock().bytes -= bytes;
                    on_done(Err(error));
                }
            }
        }
        let progress = lane.poll(clock());
        complete(&mut lane, inbox, &mut callbacks, &mut notifier);
        tell_scrub(&mut lane, inbox);
        if is_closing && callbacks.is_empty() && inbox.lock().waiting.is_empty() {
            // Who was promised an answer has it before the log is closed.
            notifier.stop();
            return lane.close();
        }
        if let Progress::Idle { until } = progress {
            let timeout = until
                .map_or(PARK_MAX, |until| Duration::from_nanos(until.since(clock())))
                .min(PARK_MAX);
            let mut state = inbox.lock();
            let may_sleep = state.waiting.is_empty() && !state.is_closing && !state.wants_scrub;
            if may_sleep && !timeout.is_zero() {
                state.is_asleep = true;
                let (mut state, _) = inbox
                    .wake
                    .wait_timeout(state, timeout)
                    .unwrap_or_else(PoisonError::into_inner);
                state.is_asleep = false;
            }
        }
    }
}

/// Passes on how verifying goes, while it does.
fn tell_scrub(lane: &mut Lane, inbox: &Inbox) {
    if lane.is_scrub_news() {
        let (status, mut damage) = (lane.scrub_status(), lane.take_damage());
        let mut state = inbox.lock();
        state.scrub = status;
        let room = DAMAGE_MAX.saturating_sub(state.damage.len());
        damage.truncate(room);
        state.damage.append(&mut damage);
    }
}

/// Completions come in the order of submission, over all replicas: so do the callbacks.
fn complete(
    lane: &mut Lane,
    inbox: &Inbox,
    callbacks: &mut VecDeque<(usize, Callback)>,
    notifier: &mut Notifier,
) {
    let done = lane.take_completions();
    if done.is_empty() {
        return;
    }
    let mut bytes = 0;
    let ended: Vec<Ended> = callbacks
        .drain(..done.len())
        .zip(done)
        .map(|((size, on_done), completion)| {
            bytes += size;
            (on_done, completion.result)
        })
        .collect();
    {
        let mut state = inbox.lock();
        state.bytes -= bytes;
        state.stats = lane.stats();
    }
    notifier.tell(ended);
}

type Ended = (Callback, Result<(), LogError>);

/// From so many on, callbacks are handed over: to wake this many threads takes as long as a sync.
const HANDED_OVER_MIN: usize = 8;

/// Calls back in order: few at once here and now, many on a thread of its own.
struct Notifier {
    /// `None`: there is no such thread.
    sender: Option<Sender<Vec<Ended>>>,
    /// What was handed over and is not done.
    pending: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    fn start() -> Self {
        let (sender, receiver) = channel::<Vec<Ended>>();
        let pending = Arc::<AtomicUsize>::default();
        let thread = {
            let pending = Arc::clone(&pending);
            std::thread::Builder::new()
                .name("raft-log-notify".to_owned())
                .spawn(move || {
                    while let Ok(ended) = receiver.recv() {
                        call_all(ended);
                        pending.fetch_sub(1, Ordering::Release);
                    }
                })
                .ok()
        };
        Self {
            sender: thread.is_some().then_some(sender),
            pending,
            thread,
        }
    }

    fn tell(&mut self, ended: Vec<Ended>) {
        let is_idle = self.pending.load(Ordering::Acquire) == 0;
        let sender = self.sender.as_ref();
        let Some(sender) = sender.filter(|_| !is_idle || ended.len() >= HANDED_OVER_MIN) else {
            return call_all(ended);
        };
        self.pending.fetch_add(1, Ordering::Relaxed);
        if let Err(refused) = sender.send(ended) {
            // A callback panicked, and the thread is gone with it.
            call_all(refused.0);
        }
    }

    /// Waits until all callbacks have been called.
    fn stop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A callback's panic was reported by its thread; the log has no part in it.
            drop(thread.join());
        }
    }
}

fn call_all(ended: Vec<Ended>) {
    for (on_done, result) in ended {
        on_done(result);
    }
}
