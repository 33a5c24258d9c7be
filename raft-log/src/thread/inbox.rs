//! What submitters and the lane's thread share: submissions on their way in, answers on their way
//! out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::futex::{self, Flags};

use super::PENDING_BYTES_MAX;
use crate::error::LogError;
use crate::lane::{LaneStats, ScrubStatus};
use crate::recovery::DamageReport;
use crate::state::Submission;

pub(super) type Callback = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// As many as a call of the system wakes at most.
const ALL: u32 = i32::MAX.unsigned_abs();
/// What is taken from an inbox together wakes together; two takes in a row do not.
const EPOCHS: usize = 4;

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
    /// How many submissions wait to be taken: read without the lock.
    waiting: AtomicUsize,
    epochs: Arc<Epochs>,
}

#[derive(Default)]
pub(super) struct State {
    waiting: Vec<(Submission, OnDone)>,
    /// How often `waiting` was taken.
    takes: usize,
    /// Of submissions not completed.
    pub(super) bytes: usize,
    is_asleep: bool,
    pub(super) is_closing: bool,
    /// The lane's thread has ended.
    is_gone: bool,
    /// A scrub was asked for and has not begun.
    pub(super) wants_scrub: bool,
    pub(super) stats: LaneStats,
    pub(super) scrub: ScrubStatus,
    /// Damage found that nobody has taken yet.
    pub(super) damage: Vec<DamageReport>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Inbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submissions that wait to be taken, as of a moment ago.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
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

    /// Puts a submission in and waits until it has ended.
    pub(super) fn push_and_wait(
        &self,
        submission: Submission,
        bytes: usize,
    ) -> Result<(), LogError> {
        let answer = Arc::<Answer>::default();
        let mut epoch = 0;
        self.put(submission, bytes, |takes| {
            epoch = takes % EPOCHS;
            OnDone::Wake(Waiter {
                answer: Arc::clone(&answer),
                epochs: Arc::clone(&self.epochs),
                epoch,
                is_told: false,
            })
        })?;
        self.epochs.wait(epoch, || answer.take())
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
        if state.bytes > 0 && state.bytes + bytes > PENDING_BYTES_MAX {
            return Err(LogError::Busy {
                pending: state.bytes,
                bound: PENDING_BYTES_MAX,
            });
        }
        state.bytes += bytes;
        let on_done = on_done(state.takes);
        state.waiting.push((submission, on_done));
        self.waiting.store(state.waiting.len(), Ordering::Relaxed);
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes what waits, into `taken`, which is empty.
    pub(super) fn take(&self, state: &mut State, taken: &mut Vec<(Submission, OnDone)>) {
        std::mem::swap(&mut state.waiting, taken);
        state.takes = state.takes.wrapping_add(1);
        self.waiting.store(0, Ordering::Relaxed);
    }

    /// Something other than a submission is to be looked at.
    pub(super) fn notify(&self) {
        self.wake.notify_one();
    }

    /// Sleeps until there is something to do, for `timeout` at most.
    pub(super) fn sleep(&self, timeout: Duration) {
        let mut state = self.lock();
        let may_sleep = state.waiting.is_empty() && !state.is_closing && !state.wants_scrub;
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
}

impl State {
    pub(super) const fn ask_for_scrub(&mut self) {
        self.wants_scrub = !self.is_gone;
    }
}

/// The lane's thread holds this: when it ends, however it does, nobody is left waiting.
pub(super) struct Tenure<'a>(pub(super) &'a Inbox);

impl Drop for Tenure<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_gone = true;
        state.wants_scrub = false;
        state.scrub.is_running = false;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
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

impl OnDone {
    pub(super) fn tell(self, result: Result<(), LogError>) {
        tell_all(std::iter::once((self, result)));
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
struct Epochs([AtomicU32; EPOCHS]);

impl Epochs {
    fn wait<T>(&self, epoch: usize, mut found: impl FnMut() -> Option<T>) -> T {
        let counter = &self.0[epoch];
        loop {
            let seen = counter.load(Ordering::Acquire);
            if let Some(found) = found() {
                return found;
            }
            // Whatever it says, interrupted too: look again.
            futex::wait(counter, Flags::PRIVATE, seen, None).ok();
        }
    }

    fn wake(&self, epoch: usize) {
        self.0[epoch].fetch_add(1, Ordering::Release);
        futex::wake(&self.0[epoch], Flags::PRIVATE, ALL).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use raft_proto::{GroupId, ReplicaId};

    use super::*;

    fn submission() -> Submission {
        let group = GroupId::new(1).expect("not 0");
        Submission::new(group, ReplicaId::new(1).expect("not 0"), 0)
    }

    #[test]
    fn when_the_thread_ends_in_a_panic_all_are_told_those_it_had_taken_too() {
        let inbox = Inbox::default();
        let (done, told) = channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let done = done.clone();
                let on_done = Box::new(move |result| drop(done.send(result)));
                inbox.push(submission(), 1, on_done).expect("there is room");
            }
            let waiter = scope.spawn(|| inbox.push_and_wait(submission(), 1));
            while inbox.waiting() < 3 {
                std::thread::yield_now();
            }
            let mut taken = Vec::new();
            inbox.take(&mut inbox.lock(), &mut taken);
            let late = scope.spawn(|| inbox.push_and_wait(submission(), 1));
            while inbox.waiting() < 1 {
                std::thread::yield_now();
            }
            let lane = scope.spawn(|| {
                let _tenure = Tenure(&inbox);
                let _taken = taken;
                panic!("on purpose");
            });
            lane.join().expect_err("it panicked");
            let answers = [waiter, late].map(|thread| thread.join().expect("it returns"));
            for answer in answers
                .into_iter()
                .chain([(); 2].map(|()| told.recv().expect("told")))
            {
                assert!(matches!(answer, Err(LogError::Latched(_))), "{answer:?}");
            }
        });
        let refused = inbox.push_and_wait(submission(), 1);
        assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
        inbox.lock().ask_for_scrub();
        assert!(!inbox.lock().wants_scrub, "nobody would do it");
    }
}
