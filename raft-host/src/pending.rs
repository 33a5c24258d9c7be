//! A request on its way: where a worker puts the outcome, and the future that takes it from there.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use raft_engine::{Completion, RequestError, Responder};

/// A oneshot that is completed by reference, in one allocation.
pub(crate) struct Slot<T>(Mutex<State<T>>);

enum State<T> {
    Waiting(Option<Waker>),
    Done(Result<T, RequestError>),
    Taken,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing under this lock panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> Completion<T> for Slot<T> {
    fn complete(&self, outcome: Result<T, RequestError>) {
        let before = std::mem::replace(&mut *self.lock(), State::Done(outcome));
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

/// Waits for the outcome. Dropped, it withdraws nothing.
pub(crate) struct Outcome<T>(Arc<Slot<T>>);

impl<T> Future for Outcome<T> {
    type Output = Result<T, RequestError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting(Some(waker)) => waker.clone_from(context.waker()),
            State::Waiting(waker) => *waker = Some(context.waker().clone()),
            State::Done(_) => {
                if let State::Done(outcome) = std::mem::replace(&mut *state, State::Taken) {
                    return Poll::Ready(outcome);
                }
            }
            State::Taken => {}
        }
        Poll::Pending
    }
}

/// Both ends of a request.
pub(crate) fn request<T: Send + 'static>() -> (Responder<T>, Outcome<T>) {
    let slot = Arc::new(Slot(Mutex::new(State::Waiting(None))));
    (Responder::new(Arc::clone(&slot) as _), Outcome(slot))
}

/// How a wait ended.
pub(crate) enum Waited<T> {
    Done(Result<T, RequestError>),
    /// Nothing came within this time.
    Timeout(Duration),
}

/// Waits for the outcome, but not for ever.
pub(crate) async fn within<T>(timeout: Duration, outcome: Outcome<T>) -> Waited<T> {
    match tokio::time::timeout(timeout, outcome).await {
        Ok(outcome) => Waited::Done(outcome),
        Err(_) => Waited::Timeout(timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outcome_is_had_before_and_after_it_is_waited_for() {
        let (responder, outcome) = request::<u8>();
        responder.respond(Ok(1));
        assert_eq!(outcome.await, Ok(1));
        let (responder, outcome) = request::<u8>();
        let waiting = tokio::spawn(outcome);
        tokio::task::yield_now().await;
        responder.respond(Ok(2));
        assert_eq!(waiting.await.expect("no panic"), Ok(2));
        let (responder, outcome) = request::<u8>();
        drop(responder);
        assert_eq!(outcome.await, Err(RequestError::Terminated));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_not_the_request() {
        let (responder, outcome) = request::<u8>();
        let waited = within(Duration::from_secs(1), outcome).await;
        assert!(matches!(waited, Waited::Timeout(_)));
        responder.respond(Ok(3));
    }
}
