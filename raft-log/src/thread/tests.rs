//! Tests of what submitters and the lane's thread share.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use raft_proto::{GroupId, HardState, ReplicaId, Term, Time};

use super::desk::{Desk, Tenure};
use crate::config::LaneOptions;
use crate::error::LogError;
use crate::lane::Lane;
use crate::state::Submission;
use crate::vfs::StdVfs;

fn submission(group: u64) -> Submission {
    let group = GroupId::new(group).expect("not 0");
    let mut submission = Submission::new(group, ReplicaId::new(1).expect("not 0"), 0);
    submission.hard_state = Some(HardState {
        term: Term::new(1),
        ..HardState::default()
    });
    submission
}

fn desk(dir: &Path) -> Desk {
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        ..LaneOptions::default()
    };
    let (lane, _) = Lane::open(Arc::new(StdVfs::new()), dir, options).expect("it opens");
    Desk::new(lane, LaneOptions::default().pending_bytes_max)
}

#[test]
fn when_the_thread_ends_in_a_panic_all_are_told_those_it_had_taken_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let desk = desk(dir.path());
    let (done, told) = channel();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let done = done.clone();
            let on_done = Box::new(move |result| drop(done.send(result)));
            desk.push(submission(1), 1, on_done).expect("there is room");
        }
        let waiter = scope.spawn(|| desk.push_and_wait(submission(1), 1));
        while desk.inbox.fresh() < 3 {
            std::thread::yield_now();
        }
        let (at_disk, _) = desk.begin(Time(0)).expect("nobody has panicked");
        let late = scope.spawn(|| desk.push_and_wait(submission(1), 1));
        while desk.inbox.fresh() < 1 {
            std::thread::yield_now();
        }
        let lane = scope.spawn(|| {
            let _tenure = Tenure(&desk);
            let _at_disk = at_disk;
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
    let refused = desk.push_and_wait(submission(1), 1);
    assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
    desk.inbox.lock().ask_for_scrub();
    assert!(!desk.inbox.lock().wants_scrub, "nobody would do it");
}

#[test]
fn while_the_disk_works_the_next_batch_is_encoded_by_those_who_submit_it() {
    const NEXT: u64 = 5;
    let dir = tempfile::tempdir().expect("a directory");
    let desk = desk(dir.path());
    let (done, told) = channel();
    let push = |group| {
        let done = done.clone();
        let on_done = Box::new(move |result: Result<(), LogError>| {
            result.expect("it is durable");
            done.send(group).expect("the test listens");
        });
        let submission = submission(group);
        let bytes = submission.bytes();
        desk.push(submission, bytes, on_done).expect("room");
    };
    let stats = || desk.stats().expect("there is a lane");
    let before = stats();
    push(1);
    assert_eq!(stats().encoded, before.encoded, "left to the lane's thread");
    let (at_disk, _) = desk.begin(Time(0)).expect("nobody has panicked");
    assert_eq!(stats().encoded, before.encoded + 1, "it is on its way");
    // Write and sync of the first are not done yet.
    (0..NEXT).for_each(|at| push(2 + at));
    assert_eq!(stats().encoded, before.encoded + 1 + NEXT);
    assert!(told.try_recv().is_err(), "nothing is durable");
    let mut ended = Vec::new();
    desk.end(at_disk.wait(), &mut ended).expect("no panic");
    super::tell_all(ended.drain(..));
    assert_eq!(told.try_recv(), Ok(1));
    let (at_disk, _) = desk.begin(Time(0)).expect("nobody has panicked");
    desk.end(at_disk.wait(), &mut ended).expect("no panic");
    super::tell_all(ended.drain(..));
    assert_eq!(told.try_iter().collect::<Vec<u64>>(), [2, 3, 4, 5, 6]);
    assert_eq!(stats().records, before.records + 2, "one record a batch");
}
