//! The lane on its own thread.

use std::sync::{Arc, Mutex};

use raft_log::vfs::StdVfs;
use raft_log::{LaneOptions, LaneThread, Submission};
use raft_proto::{HardState, Term};

use crate::filled::read_all;
use crate::workload::{Rng, batch, key};

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 256 << 10,
        record_bytes_max: 64 << 10,
        ..LaneOptions::default()
    }
}

#[test]
fn callbacks_come_in_order_and_all_of_them_before_the_log_is_closed() {
    const SUBMISSIONS: u64 = 600;
    let dir = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options()).expect("it opens");
    let told = Arc::new(Mutex::new(Vec::new()));
    for number in 0..SUBMISSIONS {
        let (group, replica) = key(1 + number % 4);
        let mut submission = Submission::new(group, replica, 0);
        submission.hard_state = Some(HardState {
            term: Term::new(1 + number),
            ..HardState::default()
        });
        let told = Arc::clone(&told);
        log.submit(submission, move |result| {
            result.expect("it is durable");
            told.lock().expect("nobody panics").push(number);
        })
        .expect("there is room");
    }
    log.close().expect("it closes");
    let told = told.lock().expect("nobody panics");
    assert_eq!(*told, (0..SUBMISSIONS).collect::<Vec<_>>());
}

#[test]
fn a_scrub_is_asked_for_and_told_from_outside() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        scrub_bytes_per_s: 1 << 30,
        ..options()
    };
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options).expect("it opens");
    let mut rng = Rng(3);
    for number in 0..8 {
        let (group, replica) = key(1 + number % 2);
        let mut submission = Submission::new(group, replica, 0);
        let from = log.reader().range(group, replica);
        let from = from.map_or(raft_proto::Index::new(1), |(_, last)| last.next());
        submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 2, 30_000)];
        let (done, durable) = std::sync::mpsc::channel();
        log.submit(submission, move |result| drop(done.send(result)))
            .expect("there is room");
        durable.recv().expect("it is told").expect("it is durable");
    }
    // Whoever owns the disk has changed a byte.
    let wanted = read_all(&log.reader(), key(2)).expect("it is whole");
    let path = dir.path().join("log/0/0000000000000001.seg");
    let mut bytes = std::fs::read(&path).expect("it reads");
    let needle = &wanted[..64];
    let at = bytes.windows(64).position(|window| window == needle);
    bytes[at.expect("the frames lie there as they are") + 50] ^= 4;
    std::fs::write(&path, &bytes).expect("written");
    log.scrub();
    while log.scrub_status().passes == 0 {
        std::thread::yield_now();
    }
    let status = log.scrub_status();
    assert!(
        !status.is_running && status.verified_bytes > 0,
        "{status:?}"
    );
    let damage = log.take_damage();
    assert_eq!(damage.len(), 1, "{damage:?}");
    let named: Vec<_> = damage[0]
        .replicas
        .iter()
        .map(|hit| (hit.0, hit.1))
        .collect();
    assert_eq!(named, [key(2)]);
    assert!(log.take_damage().is_empty());
    read_all(&log.reader(), key(1)).expect("it is whole");
    log.close().expect("it closes");
}
