//! What submitters and the lane's thread share: submissions on their way in, answers on their way
//! out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::DAMAGE_MAX;
use crate::error::LogError;
use crate::lane::{LaneStats, ScrubStatus};
use crate::recovery::DamageReport;
use crate::state::Submission;
use crate::sync::{Condvar, Counter, Mutex, MutexGuard};

pub(super) type Callback = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// What is taken from an inbox together wakes together; two takes in a row do not.
const EPOCHS: usize = 4;

pub(super) struct Inbox {
    /// Bytes of submissions that are not completed, at most.
    pending_bytes_max: usize,
    state: Mutex<State>,
    wake: Condvar,
    /// How many submissions came since the lane's thread last looked: read without the lock.
    fresh: AtomicUsize,
    epochs: Arc<Epochs>,
}

#[derive(Default)]
pub(super) struct State {
    waiting: Vec<(Submission, OnDone)>,
    /// How often the lane's thread looked.
    looks: usize,
    /// Something came since it last did.
    has_news: bool,
    /// Of submissions not completed.
    pub(super) bytes: usize,
    is_asleep: bool,
    pub(super) is_closing: bool,
    /// The lane's thread has ended.
    is_gone: bool,
    /// A scrub was asked for and has not begun.
    pub(super) wants_scrub: bool,
    /// The lane's last, when there is none any more.
    pub(super) stats: LaneStats,
    pub(super) scrub: ScrubStatus,
    /// Damage found that nobody has taken yet.
    pub(super) damage: Vec<DamageReport>,
}

impl Inbox {
    pub(super) fn new(pending_bytes_max: usize) -> Self {
        Self {
            pending_bytes_max,
            state: Mutex::default(),
            wake: Condvar::default(),
            fresh: AtomicUsize::default(),
            epochs: Arc::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submissions that came since the lane's thread last looked, as of a moment ago.
    pub(super) fn fresh(&self) -> usize {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Puts a submission in; `on_done` hears how it ended.
    pub(super) fn push(
        &self,
        submission: Submission,
        bytes: usize,
        on_done: Callback,
    ) -> Result<(), LogError> {
        self.put(submission, bytes, |_| OnDone::Call(Caller::new(on_done)))
    }

    /// Puts a submission in whose end is waited for.
    pub(super) fn push_waiter(
        &self,
        submission: Submission,
        bytes: usize,
    ) -> Result<Waiting<'_>, LogError> {
        let answer = Arc::<Answer>::default();
        let mut epoch = 0;
        self.put(submission, bytes, |looks| {
            epoch = looks % EPOCHS;
            OnDone::Wake(Waiter {
                answer: Arc::clone(&answer),
                epochs: Arc::clone(&self.epochs),
                epoch,
                is_told: false,
            })
        })?;
        Ok(Waiting {
            epochs: &self.epochs,
            epoch,
            answer,
        })
    }

    fn put(
        &self,
        submission: Submission,
        bytes: usize,
        on_done: impl FnOnce(usize) -> OnDone,
    ) -> Result<(), LogError> {
        let mut state = self.lock();
        if state.is_gone {
            return Err(gone());
        }
        if state.bytes > 0 && state.bytes + bytes > self.pending_bytes_max {
            return Err(LogError::Busy {
                pending: state.bytes,
                bound: self.pending_bytes_max,
            });
        }
        state.bytes += bytes;
        let on_done = on_done(state.looks);
        state.waiting.push((submission, on_done));
        state.has_news = true;
        self.fresh.fetch_add(1, Ordering::Relaxed);
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// The lane's thread looks: takes what waits, into `taken`, which is empty.
    pub(super) fn look(&self, state: &mut State, taken: &mut Vec<(Submission, OnDone)>) {
        state.take(taken);
        state.looks = state.looks.wrapping_add(1);
        state.has_news = false;
        self.fresh.store(0, Ordering::Relaxed);
    }

    /// Something other than a submission is to be looked at.
    pub(super) fn notify(&self) {
        self.wake.notify_one();
    }

    /// The lane itself is to be looked at.
    pub(super) fn nudge(&self) {
        self.lock().has_news = true;
        self.wake.notify_one();
    }

    /// Sleeps until there is something to do, for `timeout` at most.
    pub(super) fn sleep(&self, timeout: Duration) {
        let mut state = self.lock();
        let may_sleep = !state.has_news && !state.is_closing && !state.wants_scrub;
        if may_sleep && !timeout.is_zero() {
            state.is_asleep = true;
            let (mut state, _) = self
                .wake
                .wait_timeout(state, timeout)
                .unwrap_or_else(PoisonError::into_inner);
            state.is_asleep = false;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// The lane's thread has ended: nothing comes in any more. Returns what waits, which hears so
    /// when it is dropped.
    pub(super) fn close(&self, stats: Option<LaneStats>) -> Vec<(Submission, OnDone)> {
        let mut state = self.lock();
        state.is_gone = true;
        state.wants_scrub = false;
        state.scrub.is_running = false;
        state.stats = stats.unwrap_or(state.stats);
        std::mem::take(&mut state.waiting)
    }
}

impl State {
    /// Takes what waits, into `taken`, which is empty.
    pub(super) const fn take(&mut self, taken: &mut Vec<(Submission, OnDone)>) {
        std::mem::swap(&mut self.waiting, taken);
    }

    pub(super) const fn ask_for_scrub(&mut self) {
        self.wants_scrub = !self.is_gone;
    }

    pub(super) const fn take_scrub(&mut self) -> bool {
        std::mem::replace(&mut self.wants_scrub, false)
    }

    /// How verifying goes, and what it found.
    pub(super) fn add_damage(&mut self, status: ScrubStatus, mut damage: Vec<DamageReport>) {
        self.scrub = status;
        let room = DAMAGE_MAX.saturating_sub(self.damage.len());
        damage.truncate(room);
        self.damage.append(&mut damage);
    }
}

fn gone() -> LogError {
    LogError::Latched("the lane's thread has ended; open the log again".to_owned())
}

/// Who hears how a submission ended: in any case, as dropping it tells it too.
pub(super) enum OnDone {
    Call(Caller),
    Wake(Waiter),
}

/// A callback that was not called yet.
pub(super) struct Caller(Option<Callback>);

impl Caller {
    pub(super) const fn new(callback: Callback) -> Self {
        Self(Some(callback))
    }

    fn call(&mut self, result: Result<(), LogError>) {
        if let Some(callback) = self.0.take()
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| callback(result)))
        {
            // The panic's hook has reported it; the log has no part in it, nor in what its payload
            // does when it goes.
            std::mem::forget(panic);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.call(Err(gone()));
    }
}

/// Tells them in order. Those who wait together are woken together: one call of the system for
/// all of them.
pub(super) fn tell_all(ended: impl Iterator<Item = (OnDone, Result<(), LogError>)>) {
    let mut to_wake: Option<(Arc<Epochs>, usize)> = None;
    for (on_done, result) in ended {
        match on_done {
            OnDone::Call(mut caller) => caller.call(result),
            OnDone::Wake(mut waiter) => {
                match &to_wake {
                    Some((_, epoch)) if *epoch == waiter.epoch => {}
                    Some((epochs, epoch)) => {
                        epochs.wake(*epoch);
                        to_wake = Some((Arc::clone(&waiter.epochs), waiter.epoch));
                    }
                    None => to_wake = Some((Arc::clone(&waiter.epochs), waiter.epoch)),
                }
                waiter.is_told = true;
                waiter.answer.set(result);
            }
        }
    }
    if let Some((epochs, epoch)) = to_wake {
        epochs.wake(epoch);
    }
}

#[derive(Default)]
struct Answer(Mutex<Option<Result<(), LogError>>>);

impl Answer {
    fn set(&self, result: Result<(), LogError>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }

    fn take(&self) -> Option<Result<(), LogError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The end of a submission, waited for.
pub(super) struct Waiting<'a> {
    epochs: &'a Epochs,
    epoch: usize,
    answer: Arc<Answer>,
}

impl Waiting<'_> {
    pub(super) fn wait(self) -> Result<(), LogError> {
        self.epochs.wait(self.epoch, || self.answer.take())
    }
}

/// A thread that waits for the end of its submission.
pub(super) struct Waiter {
    answer: Arc<Answer>,
    epochs: Arc<Epochs>,
    epoch: usize,
    is_told: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.is_told {
            self.answer.set(Err(gone()));
            self.epochs.wake(self.epoch);
        }
    }
}

/// Counters that change when answers are there: all who wait at one of them look again.
#[derive(Default)]
struct Epochs([Counter; EPOCHS]);

impl Epochs {
    fn wait<T>(&self, epoch: usize, mut found: impl FnMut() -> Option<T>) -> T {
        let counter = &self.0[epoch];
        loop {
            let seen = counter.now();
            if let Some(found) = found() {
                return found;
            }
            counter.wait(seen);
        }
    }

    fn wake(&self, epoch: usize) {
        self.0[epoch].advance();
    }
}
