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
use crate::read::{LaneSpace, LogReader};
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
    record_bytes_max: usize,
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
        let record_bytes_max = options.record_bytes_max;
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
    /// Nothing was taken: [`LogError::Busy`], [`LogError::TooLarge`], [`LogError::StorageFull`] for
    /// entries while the disk is full. What was taken before it became full waits for room, so that
    /// what a group submitted behind it leaves no gap.
    pub fn submit(
        &self,
        submission: Submission,
        on_done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let bytes = submission.entries_bytes() + SUBMISSION_BYTES;
        let largest = submission.entries.iter().map(raft_proto::Batch::size_bytes);
        let bound = self.record_bytes_max;
        if let Some(size) = largest.max().filter(|&size| size > bound) {
            return Err(LogError::TooLarge { size, bound });
        }
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
    let mut taken = Vec::new();
    let mut notifier = Notifier::start();
    let mut intake = Intake::new(&lane);
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
        intake.take(&mut lane, taken.drain(..), |bytes| {
            inbox.lock().bytes -= bytes
        });
        let progress = lane.poll(clock());
        let ended = complete(&mut lane, inbox, &mut intake.callbacks, &mut notifier);
        if ended > 1 && ended < HANDED_OVER_MIN {
            gather(inbox, ended);
        }
        tell_scrub(&mut lane, inbox);
        if is_closing && intake.callbacks.is_empty() && inbox.lock().waiting.is_empty() {
            // Who was promised an answer has it before the log is closed.
            let refused = intake.held.into_iter();
            notifier.tell(
                refused
                    .map(|(_, on_done)| (on_done, Err(LogError::StorageFull)))
                    .collect(),
            );
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

/// What the lane's thread has taken and not completed.
struct Intake {
    space: LaneSpace,
    /// Number of the last submission that the lane took.
    ticket: u64,
    /// Of what the lane took, in that order: bytes and who is told.
    callbacks: VecDeque<(usize, Callback)>,
    /// What found no room, in order: entries taken while there was some, and whatever their groups
    /// submitted after them. To refuse them would leave a gap before those behind.
    held: VecDeque<(Submission, Callback)>,
}

impl Intake {
    fn new(lane: &Lane) -> Self {
        Self {
            space: lane.reader().space(),
            ticket: 0,
            callbacks: VecDeque::new(),
            held: VecDeque::new(),
        }
    }

    /// Submits what was held back, then what is new. `refused` hears the bytes of what never will
    /// be taken.
    fn take(
        &mut self,
        lane: &mut Lane,
        new: impl Iterator<Item = (Submission, Callback)>,
        refused: impl Fn(usize),
    ) {
        let held = std::mem::take(&mut self.held);
        for (submission, on_done) in held.into_iter().chain(new) {
            let group = submission.group;
            if self.held.iter().any(|(other, _)| other.group == group) {
                self.held.push_back((submission, on_done));
                continue;
            }
            let bytes = submission.entries_bytes() + SUBMISSION_BYTES;
            // Only a full lane refuses for lack of room, and whether it is full changes in its own
            // poll alone.
            let spare = self.space.is_full().then(|| submission.clone());
            let numbered = Submission {
                submission: self.ticket + 1,
                ..submission
            };
            match (lane.submit(numbered), spare) {
                (Ok(()), _) => {
                    self.ticket += 1;
                    self.callbacks.push_back((bytes, on_done));
                }
                (Err(LogError::StorageFull), Some(spare)) => self.held.push_back((spare, on_done)),
                (Err(error), _) => {
                    refused(bytes);
                    on_done(Err(error));
                }
            }
        }
    }
}

/// How long a sync is put off so that those who were just told are in it: less than half of it.
const GATHER: Duration = Duration::from_micros(40);

/// Waits a moment until all who were just told have submitted again, beside those who wait already.
/// Who does so at once, as most do, would else find the next sync begun without it, and wait for
/// two: the submitters fall into two halves, and each sync carries one of them.
fn gather(inbox: &Inbox, ended: usize) {
    let begin = Instant::now();
    let all = ended + inbox.lock().waiting.len();
    while begin.elapsed() < GATHER && inbox.lock().waiting.len() < all {
        for _ in 0..32 {
            std::hint::spin_loop();
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
) -> usize {
    let done = lane.take_completions();
    let count = done.len();
    if done.is_empty() {
        return 0;
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
    count
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

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::vfs::SimVfs;
    use raft_proto::{BatchBuilder, EntryKind, GroupId, HardState, Index, ReplicaId, Term};

    fn submission(group: u64, first: u64, size: usize) -> Submission {
        let group = GroupId::new(group).expect("not 0");
        let mut batch = BatchBuilder::new(group, Term::new(1), Index::new(first), 0);
        batch.push(EntryKind::Command, 0, None, &vec![1; size]);
        let replica = ReplicaId::new(1).expect("not 0");
        let mut submission = Submission::new(group, replica, 0);
        submission.entries.extend(batch.finish());
        submission
    }

    fn nobody() -> Callback {
        Box::new(|result| result.expect("nothing is refused"))
    }

    #[test]
    fn what_finds_no_room_is_held_with_all_that_its_group_submitted_behind_it() {
        let disk = Arc::new(SimVfs::new(1));
        let path = Path::new("/data");
        disk.create_dir_all(path).expect("an empty disk");
        let options = LaneOptions {
            segment_size_bytes: 64 << 10,
            record_bytes_max: 32 << 10,
            ..LaneOptions::default()
        };
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (mut lane, _) = Lane::open(vfs, path, options).expect("it opens");
        let mut intake = Intake::new(&lane);
        let mut now = Time(0);
        let mut run = |lane: &mut Lane, span: u64| {
            for _ in 0..100 {
                now = now.plus_nanos(span / 100);
                disk.set_now(now);
                lane.poll(now);
            }
        };
        disk.set_capacity(Some(disk.used_bytes()));
        let mut first = 1;
        while intake.held.is_empty() {
            assert!(first < 1_000, "it fills up");
            let new = (submission(1, first, 6_000), nobody());
            intake.take(&mut lane, std::iter::once(new), |_| {
                panic!("nothing is refused")
            });
            run(&mut lane, 10_000_000);
            first += 1;
        }
        let taken = intake.ticket;
        let mut vote = submission(1, 1, 1);
        vote.entries.clear();
        vote.hard_state = Some(HardState::default());
        let other = Submission {
            group: GroupId::new(2).expect("not 0"),
            ..vote.clone()
        };
        let small = submission(1, first, 1);
        let new = [small, vote, other].map(|new| (new, nobody()));
        intake.take(&mut lane, new.into_iter(), |_| panic!("nothing is refused"));
        assert_eq!(intake.held.len(), 3, "all of group 1, in order");
        assert_eq!(intake.ticket, taken + 1, "the other group goes on");
        disk.set_capacity(None);
        run(&mut lane, 5_000_000_000);
        assert!(!intake.space.is_full());
        intake.take(&mut lane, std::iter::empty(), |_| {
            panic!("nothing is refused")
        });
        assert!(intake.held.is_empty());
        run(&mut lane, 1_000_000_000);
        let done = lane.take_completions();
        assert_eq!(u64::try_from(done.len()), Ok(intake.ticket));
        assert!(done.iter().all(|done| done.result.is_ok()));
        let (group, replica) = (done[0].group, done[0].replica);
        let range = lane.reader().range(group, replica);
        assert_eq!(range, Some((Index::new(1), Index::new(first))));
    }
}
