//! The lane on its own thread.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use raft_log::vfs::{SimVfs, StdVfs, Vfs};
use raft_log::{LaneOptions, LaneThread, LogError, Submission};
use raft_proto::{HardState, Index, Term};

use crate::filled::read_all;
use crate::workload::{DATA, Rng, batch, disk, key};

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
fn fault_16_what_was_taken_before_the_disk_was_full_waits_for_room_and_leaves_no_gap() {
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        ..options()
    };
    let disk = disk(16);
    let open = || {
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        LaneThread::open(vfs, DATA.as_ref(), options.clone()).expect("it opens")
    };
    let (log, _) = open();
    disk.set_capacity(Some(disk.used_bytes()));
    let (group, replica) = key(1);
    let mut rng = Rng(16);
    let (done, durable) = channel();
    let mut taken = 0;
    // Submitted without a wait, until the lane says that it is full.
    loop {
        assert!(taken < 10_000, "it fills up");
        let mut submission = Submission::new(group, replica, 0);
        let from = Index::new(taken + 1);
        submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 1, 3_000)];
        let done = done.clone();
        match log.submit(submission, move |result| drop(done.send(result))) {
            Ok(()) => taken += 1,
            Err(LogError::StorageFull) => break,
            Err(LogError::Busy { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    disk.set_capacity(None);
    for _ in 0..taken {
        let result = durable.recv().expect("each is told");
        result.expect("there was room again");
    }
    let range = log.reader().range(group, replica);
    assert_eq!(range, Some((Index::new(1), Index::new(taken))));
    let whole = read_all(&log.reader(), key(1)).expect("it is whole");
    log.close().expect("it closes");
    let (log, recovery) = open();
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert!(read_all(&log.reader(), key(1)).expect("it is whole") == whole);
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
        let from = from.map_or(Index::new(1), |(_, last)| last.next());
        submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 2, 30_000)];
        let (done, durable) = channel();
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
