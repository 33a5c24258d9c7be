//! Who waits for the end of a submission, and the lane's thread that sleeps while there is nothing
//! to do, in every interleaving: nobody sleeps for ever, as no wake-up is lost.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p raft-log --release --lib
//! ```

use std::sync::Arc;
use std::time::Duration;

use raft_proto::{GroupId, ReplicaId};

use super::inbox::{Inbox, tell_all};
use crate::error::LogError;
use crate::state::Submission;

fn submission(group: u64) -> Submission {
    let group = GroupId::new(group).expect("not 0");
    Submission::new(group, ReplicaId::new(1).expect("not 0"), 0)
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(body);
}

/// Threads that submit one after the other and wait.
fn submitters(inbox: &Arc<Inbox>) -> [loom::thread::JoinHandle<Result<(), LogError>>; 2] {
    [1, 2].map(|group| {
        let inbox = Arc::clone(inbox);
        loom::thread::spawn(move || inbox.push_waiter(submission(group), 1)?.wait())
    })
}

#[test]
fn whoever_waits_is_told_and_the_thread_that_sleeps_is_woken() {
    model(3, || {
        let inbox = Arc::new(Inbox::new(1 << 20));
        let waiting = submitters(&inbox);
        let mut told = 0;
        while told < waiting.len() {
            let mut taken = Vec::new();
            inbox.look(&mut inbox.lock(), &mut taken);
            told += taken.len();
            if taken.is_empty() {
                // Here no time passes: it is woken, or the model finds nobody left to run.
                inbox.sleep(Duration::from_secs(1));
            }
            tell_all(taken.into_iter().map(|(_, on_done)| (on_done, Ok(()))));
        }
        for thread in waiting {
            thread.join().expect("no panic").expect("it is durable");
        }
    });
}

#[test]
fn when_the_thread_ends_nobody_is_left_waiting() {
    model(3, || {
        let inbox = Arc::new(Inbox::new(1 << 20));
        let waiting = submitters(&inbox);
        let mut taken = Vec::new();
        inbox.look(&mut inbox.lock(), &mut taken);
        drop(inbox.close(None));
        // What it had taken ends with it.
        drop(taken);
        for thread in waiting {
            let answer = thread.join().expect("no panic");
            assert!(matches!(answer, Err(LogError::Latched(_))), "{answer:?}");
        }
    });
}

#[test]
fn a_nudge_is_not_slept_through() {
    model(3, || {
        let inbox = Arc::new(Inbox::new(1 << 20));
        let beside = {
            let inbox = Arc::clone(&inbox);
            loom::thread::spawn(move || inbox.nudge())
        };
        let mut taken = Vec::new();
        // The first may find it in time; whoever comes between is seen by the second.
        inbox.sleep(Duration::from_secs(1));
        inbox.look(&mut inbox.lock(), &mut taken);
        beside.join().expect("no panic");
    });
}
