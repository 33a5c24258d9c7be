//! The lane on its own thread.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};

use raft_log::tools::StoppedLane;
use raft_log::vfs::{SimVfs, StdVfs, Vfs};
use raft_log::{
    LaneOptions, LaneThread, LogError, SnapshotRecord, SnapshotsRecord, Submission, Wal,
};
use raft_proto::{BatchBuilder, EntryId, EntryKind, HardState, Index, Term};

use crate::filled::read_all;
use crate::gate::{Gate, Place, place};
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

/// A submission without entries: a term.
fn term(group: u64, term: u64) -> Submission {
    let (group, replica) = key(group);
    let mut submission = Submission::new(group, replica, 0);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        ..HardState::default()
    });
    submission
}

#[test]
fn threads_that_wait_share_syncs_and_each_is_told() {
    const THREADS: u64 = 16;
    const APPENDS: u64 = 50;
    let dir = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options()).expect("it opens");
    let before = log.stats();
    std::thread::scope(|scope| {
        for thread in 1..=THREADS {
            let log = &log;
            scope.spawn(move || {
                let (group, replica) = key(thread);
                let mut rng = Rng(thread);
                for index in 1..=APPENDS {
                    let mut submission = Submission::new(group, replica, 0);
                    let first = Index::new(index);
                    submission.entries = vec![batch(&mut rng, group, Term::new(1), first, 1, 64)];
                    log.append(submission).expect("it is durable");
                    let range = log.reader().range(group, replica);
                    assert_eq!(range, Some((Index::new(1), first)), "it can be read");
                }
            });
        }
    });
    let records = log.stats().records - before.records;
    assert!(
        records < THREADS * APPENDS / 2,
        "{records} records: those who wait at the same time go into one"
    );
    log.close().expect("it closes");
}

/// A log whose syncs can be held up, and of which no watermark comes in between.
fn gated(dir: &Path) -> (Arc<Gate>, LaneThread) {
    let disk = Arc::<Gate>::default();
    let vfs: Arc<dyn Vfs> = Arc::<Gate>::clone(&disk);
    let options = LaneOptions {
        burst_end_nanos: 60_000_000_000,
        ..options()
    };
    let (log, _) = LaneThread::open(vfs, dir, options).expect("it opens");
    (disk, log)
}

#[test]
fn while_a_sync_runs_the_next_batch_is_gathered_and_encoded() {
    const NEXT: u64 = 8;
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, log) = gated(dir.path());
    let before = log.stats();
    let (done, ended) = channel();
    let submit = |group: u64| {
        let done = done.clone();
        let told = move |result: Result<(), LogError>| {
            result.expect("it is durable");
            done.send(group).expect("the test listens");
        };
        log.submit(term(group, 1), told).expect("there is room");
    };
    let shut = disk.shut();
    submit(1);
    disk.wait_until_somebody_waits();
    assert_eq!(log.stats().encoded, before.encoded + 1);
    for at in 0..NEXT {
        submit(2 + at);
        let encoded = log.stats().encoded;
        assert_eq!(encoded, before.encoded + 2 + at, "by the time it was taken");
    }
    assert!(ended.try_recv().is_err(), "nothing is durable yet");
    drop(shut);
    let order: Vec<u64> = ended.iter().take(9).collect();
    assert_eq!(order, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(log.stats().records, before.records + 2, "one record a sync");
    log.close().expect("it closes");
}

/// One write for a batch, and in it the very bytes in which larger entries came.
#[test]
fn one_write_takes_what_was_gathered_from_where_it_lies() {
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, log) = gated(dir.path());
    let mut rng = Rng(3);
    let (done, ended) = channel();
    let mut submit = |group: u64| {
        let (group, replica) = key(group);
        let mut submission = Submission::new(group, replica, 0);
        let entries = loop {
            let batch = batch(&mut rng, group, Term::new(1), Index::new(1), 4, 1_500);
            if batch.size_bytes() >= 1_024 {
                break batch;
            }
        };
        let place = place(entries.bytes());
        submission.entries = vec![entries];
        let done = done.clone();
        let told = move |result| drop(done.send((group.get(), result)));
        log.submit(submission, told).expect("there is room");
        place
    };
    let shut = disk.shut();
    submit(1);
    disk.wait_until_somebody_waits();
    disk.take_writes();
    let places: Vec<Place> = (2..=9).map(&mut submit).collect();
    assert!(
        disk.take_writes().is_empty(),
        "none before the sync is over"
    );
    drop(shut);
    for group in 1..=9 {
        let (told, result) = ended.recv().expect("it is told");
        let result: Result<(), LogError> = result;
        result.expect("it is durable");
        assert_eq!(told, group, "in order");
    }
    let writes = disk.take_writes();
    assert_eq!(writes.len(), 1, "{writes:?}");
    let written = writes[0].iter().filter(|place| places.contains(place));
    assert!(written.eq(&places), "copied: {writes:?} of {places:?}");
    log.close().expect("it closes");
}

/// Chains of callbacks, each submitting its next when it hears of the last: all of them are in each
/// sync.
#[test]
fn all_who_submit_again_are_in_the_next_sync() {
    const CHAINS: u64 = 16;
    const EACH: u64 = 50;
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        burst_end_nanos: 60_000_000_000,
        ..options()
    };
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options).expect("it opens");
    let log = Arc::new(log);
    let before = log.stats().records;
    let (done, ended) = channel();
    for group in 1..=CHAINS {
        chain(&Arc::downgrade(&log), group, EACH, &done);
    }
    drop(done);
    assert_eq!(ended.iter().count(), usize::try_from(CHAINS).expect("few"));
    let records = log.stats().records - before;
    // The first records hold those who were there first.
    assert!(records <= EACH + CHAINS, "{records} of {EACH}");
    assert!(records >= EACH);
}

fn chain(log: &Weak<LaneThread>, group: u64, left: u64, done: &Sender<()>) {
    let Some(running) = log.upgrade() else {
        return;
    };
    let (log, done) = (Weak::clone(log), done.clone());
    let told = move |result: Result<(), LogError>| {
        result.expect("it is durable");
        match left {
            1 => done.send(()).expect("the test listens"),
            left => chain(&log, group, left - 1, &done),
        }
    };
    running.submit(term(group, 1), told).expect("there is room");
}

#[test]
fn a_failed_sync_is_told_to_all_who_wait_and_to_all_who_come_later() {
    let disk = disk(5);
    let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
    let (log, _) = LaneThread::open(vfs, DATA.as_ref(), options()).expect("it opens");
    log.append(term(1, 1)).expect("it is durable");
    disk.fail_next("sync", std::io::ErrorKind::Other);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4)
            .map(|group| {
                let log = &log;
                scope.spawn(move || log.append(term(group, 2)))
            })
            .collect();
        for thread in threads {
            let refused = thread.join().expect("nobody panics");
            assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
        }
    });
    let refused = log.append(term(1, 3));
    assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
}

#[test]
fn a_callback_that_panics_harms_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options()).expect("it opens");
    log.submit(term(1, 1), |_| panic!("on purpose"))
        .expect("there is room");
    log.append(term(2, 1)).expect("it is durable");
    log.close().expect("it closes");
}

#[test]
fn a_callback_may_submit_and_may_drop_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (log, _) = LaneThread::open(vfs, dir.path(), options()).expect("it opens");
    let log = Arc::new(log);
    let (done, ended) = channel();
    let inner = Arc::clone(&log);
    log.submit(term(1, 1), move |result| {
        result.expect("it is durable");
        let last = done.clone();
        inner
            .submit(term(1, 2), move |result| drop(last.send(result)))
            .expect("there is room");
        // The other owner is gone by now, or goes with this one.
        drop((inner, done));
    })
    .expect("there is room");
    drop(log);
    ended
        .recv()
        .expect("it is told before the thread ends")
        .expect("it is durable");
}

#[test]
fn fault_23_whoever_comes_second_is_refused_before_anything_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = || LaneThread::open(Arc::new(StdVfs::new()), dir.path(), options());
    let (first, _) = open().expect("it opens");
    let is_refused = |error: Option<LogError>| {
        let error = error.expect("it is in use");
        assert!(matches!(error, LogError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("stop whoever has it open"));
    };
    is_refused(open().err());
    is_refused(Wal::open(Arc::new(StdVfs::new()), dir.path(), options()).err());
    let look = || {
        let vfs = Arc::new(StdVfs::read_only());
        StoppedLane::new(vfs, dir.path(), 0).stat()
    };
    is_refused(look().err());
    // Another lane of the same directory is another's to open.
    let other = LaneOptions {
        lane: 1,
        ..options()
    };
    let vfs = Arc::new(StdVfs::new());
    let (other, _) = LaneThread::open(vfs, dir.path(), other).expect("it opens");
    other.close().expect("it closes");
    first.close().expect("it closes");
    look().expect("it is stopped");
    let (again, recovery) = open().expect("it opens");
    assert!(recovery.report.ignored.is_empty(), "{:?}", recovery.report);
    drop(again);
    open().expect("it opens, however the last one ended");
}

#[test]
fn a_stream_that_is_damaged_takes_nothing_more_and_the_others_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        scrub_bytes_per_s: 1 << 30,
        ..options()
    };
    let open = || Wal::open(Arc::new(StdVfs::new()), dir.path(), options.clone());
    let (wal, _) = open().expect("it opens");
    for number in 1..=40_u8 {
        for stream in 1..=2 {
            wal.append(stream, &[[number; 2_000]]).expect("durable");
        }
    }
    let lost = wal
        .read(2, 3)
        .next()
        .expect("it is there")
        .expect("whole")
        .1;
    wal.close().expect("it closes");
    // A payload in a sealed segment: an open reads none of it, and the scrub behind it all.
    let path = dir.path().join("log/0/0000000000000001.seg");
    let mut bytes = std::fs::read(&path).expect("it reads");
    let mut places = bytes.windows(lost.len()).enumerate();
    let places = places.by_ref().filter(|(_, window)| *window == &lost[..]);
    let at = places
        .map(|(at, _)| at)
        .nth(1)
        .expect("stream 2 comes second");
    bytes[at + 7] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let (wal, report) = open().expect("it opens");
    assert!(report.damaged.is_empty(), "{report:?}");
    let mut appends = 0;
    let error = loop {
        assert!(appends < 10_000, "the scrub ends");
        appends += 1;
        wal.append(1, &["goes on"]).expect("durable");
        match wal.append(2, &["to be lost"]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, LogError::Damaged { segment: 1, .. }),
        "{error}"
    );
    assert!(matches!(wal.trim(2, 2), Err(LogError::Damaged { .. })));
    wal.append(1, &["goes on"]).expect("durable");
    wal.close().expect("it closes");
    let (wal, _) = open().expect("it opens");
    assert!(matches!(
        wal.append(2, &["x"]),
        Err(LogError::Damaged { .. })
    ));
}

#[test]
fn a_log_on_a_full_disk_closes_and_tells_those_who_wait() {
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        ..options()
    };
    for seed in 0..20 {
        let disk = disk(seed);
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (log, _) = LaneThread::open(vfs, DATA.as_ref(), options.clone()).expect("it opens");
        disk.set_capacity(Some(disk.used_bytes()));
        let (group, replica) = key(1);
        let mut rng = Rng(seed);
        let (done, told) = channel();
        let mut taken = 0;
        loop {
            let mut submission = Submission::new(group, replica, 0);
            let from = Index::new(taken + 1);
            submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 1, 3_000)];
            let done = done.clone();
            match log.submit(submission, move |result| {
                done.send(result.is_ok()).ok();
            }) {
                Ok(()) => taken += 1,
                Err(LogError::StorageFull) => break,
                Err(LogError::Busy { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
        drop(done);
        let closed = log.close();
        let durable: Vec<bool> = told.iter().collect();
        assert_eq!(u64::try_from(durable.len()), Ok(taken), "each is told");
        let refused = durable.iter().any(|is_durable| !is_durable);
        assert!(
            !refused || matches!(closed, Err(LogError::StorageFull)),
            "{closed:?}"
        );
    }
}

#[test]
fn numbers_that_could_not_be_read_back_are_refused_and_harm_nobody() {
    let disk = disk(9);
    let open = || {
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        LaneThread::open(vfs, DATA.as_ref(), options()).expect("it opens")
    };
    let (log, _) = open();
    log.append(term(3, 7)).expect("it is durable");
    for number in [u64::MAX, u64::MAX - 1] {
        let mut bad = [term(1, 1), term(1, number), term(1, 1), term(1, 1)];
        bad[0].compact_before = Some(Index::new(number));
        bad[2].restart_after = Some(EntryId::new(Term::new(1), Index::new(number)));
        bad[3].hard_state = Some(HardState {
            term: Term::new(1),
            commit: Index::new(number),
            vote: None,
        });
        for bad in bad {
            let refused = log.append(bad.clone());
            let is_named = matches!(refused, Err(LogError::NumberTooHigh { .. }));
            assert!(is_named, "{bad:?}: {refused:?}");
        }
    }
    // A commit index without an entry is found by the lane itself.
    let mut bad = term(3, 8);
    bad.hard_state.as_mut().expect("it has one").commit = Index::new(1);
    let refused = log.append(bad);
    let is_named = matches!(refused, Err(LogError::Contradiction { .. }));
    assert!(is_named, "{refused:?}");
    log.close().expect("it closes");
    let (log, recovery) = open();
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert_eq!(recovery.replicas[&key(3)].hard_state.term, Term::new(7));
    log.close().expect("it closes");
}

/// While the disk does not answer, what waits for it is bounded.
#[test]
fn submissions_over_the_bound_are_busy_until_the_disk_answers() {
    let default = LaneOptions::default().pending_bytes_max;
    assert_eq!(default, 64 << 20);
    for bound in [default, 3 << 20] {
        submissions_over_the_bound_are_busy(false, bound);
        submissions_over_the_bound_are_busy(true, bound);
    }
}

/// What each of them takes.
const BYTES: usize = 500 << 10;

fn submissions_over_the_bound_are_busy(are_memberships: bool, limit: usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 8 << 20,
        record_bytes_max: 1 << 20,
        pending_bytes_max: limit,
        ..LaneOptions::default()
    };
    let gate = Arc::new(Gate::default());
    let vfs: Arc<dyn Vfs> = Arc::<Gate>::clone(&gate);
    let (log, _) = LaneThread::open(vfs, dir.path(), options.clone()).expect("it opens");
    let (group, replica) = key(1);
    let submission = |index: u64| {
        if are_memberships && index > 1 {
            let mut submission = Submission::new(group, replica, 0);
            let id = EntryId::new(Term::new(1), Index::new(1));
            let membership = vec![7; BYTES].into();
            submission.snapshots = Some(SnapshotsRecord {
                retained: vec![SnapshotRecord { id, membership }],
            });
            return submission;
        }
        let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(index), BYTES + 64);
        builder.push(EntryKind::Command, 0, None, &vec![7; BYTES]);
        let mut submission = Submission::new(group, replica, 0);
        submission.entries.extend(builder.finish());
        submission
    };
    let (done, ended) = channel();
    let submit = |index: u64| {
        let done = done.clone();
        log.submit(submission(index), move |result| drop(done.send(result)))
    };
    let shut = gate.shut();
    submit(1).expect("there is room");
    gate.wait_until_somebody_waits();
    let mut next = 2;
    let refused = loop {
        match submit(next) {
            Ok(()) => next += 1,
            Err(refused) => break refused,
        }
        assert!(next < 1_000, "it is bounded");
    };
    let LogError::Busy { pending, bound } = refused else {
        panic!("{refused}");
    };
    assert_eq!(bound, limit);
    assert!(
        pending <= limit && pending + BYTES + 1_024 > limit,
        "{pending}"
    );
    let again = log.append(submission(next));
    assert!(matches!(again, Err(LogError::Busy { .. })), "{again:?}");
    drop(shut);
    for _ in 1..next {
        ended.recv().expect("it is told").expect("it is durable");
    }
    // What was refused left no trace: the same entry is taken now.
    log.append(submission(next)).expect("there is room");
    log.close().expect("it closes");
    let (log, recovery) = LaneThread::open(gate, dir.path(), options).expect("it opens");
    let last = if are_memberships { 1 } else { next };
    assert_eq!(recovery.replicas[&key(1)].last.index, Index::new(last));
    log.close().expect("it closes");
}

/// On a full disk what has room goes before what has none: whoever is told of an end is the one
/// whose it is.
#[test]
fn fault_16_nobody_is_told_of_what_still_waits_for_room() {
    const ENTRIES: u64 = 40;
    let disk = disk(1);
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        ..LaneOptions::default()
    };
    let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
    let (log, _) = LaneThread::open(vfs, DATA.as_ref(), options).expect("it opens");
    let mut rng = Rng(1);
    let mut entry = |group: u64, index: u64| {
        let (group, replica) = key(group);
        let mut submission = Submission::new(group, replica, 0);
        let from = Index::new(index);
        submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 1, 8_000)];
        submission
    };
    log.append(entry(1, 1)).expect("there is room");
    disk.set_capacity(Some(disk.used_bytes()));
    // All are taken before it is known that there is no room.
    disk.set_hung(true);
    let (done, told) = channel();
    for index in 2..=ENTRIES {
        let done = done.clone();
        let on_done = move |result| drop(done.send((index, result)));
        log.submit(entry(1, index), on_done).expect("it is taken");
    }
    disk.set_hung(false);
    while !log.reader().space().is_full() {
        std::thread::yield_now();
    }
    let mut vote = Submission::new(key(2).0, key(2).1, 0);
    vote.hard_state = Some(HardState {
        term: Term::new(9),
        ..HardState::default()
    });
    log.append(vote).expect("there is a reserve");
    let (group, replica) = key(1);
    let (_, last) = log
        .reader()
        .range(group, replica)
        .expect("some are durable");
    let durable: Vec<u64> = told.try_iter().map(|(index, _)| index).collect();
    assert!(last < Index::new(ENTRIES), "some wait");
    assert_eq!(durable, (2..=last.get()).collect::<Vec<_>>());
    // A compaction makes room for the others, however many wait in front of it.
    let mut compact = Submission::new(group, replica, 0);
    compact.compact_before = Some(last.next());
    log.append(compact).expect("it goes in the reserve");
    for index in last.get() + 1..=ENTRIES {
        let (told, result) = told.recv().expect("told");
        result.expect("it is durable");
        assert_eq!(told, index, "in order");
    }
    log.close().expect("it closes");
}

/// A trim waits for no append: not for one that waits for the very room that the trim makes.
#[test]
fn fault_16_a_trim_makes_the_room_that_appends_wait_for() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const STREAMS: u64 = 40;
    let options = LaneOptions {
        segment_size_bytes: 256 << 10,
        record_bytes_max: 32 << 10,
        // For three times as many trims, each in a record of its own.
        reserve_bytes: Some(64 << 10),
        ..LaneOptions::default()
    };
    let mut waited = 0;
    for seed in 0..50 {
        let disk = disk(seed);
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (wal, _) = Wal::open(vfs, DATA.as_ref(), options.clone()).expect("it opens");
        for stream in 1..=STREAMS {
            wal.append(stream, &[[7; 8_000]]).expect("there is room");
        }
        disk.set_capacity(Some(disk.used_bytes()));
        // Most come in before it is known that there is no room for all.
        disk.set_hung(true);
        let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for stream in 1..=STREAMS {
                let (wal, begun, ended) = (&wal, &begun, &ended);
                scope.spawn(move || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    match wal.append(stream, &[[8; 24_000]]) {
                        Ok(_) | Err(LogError::StorageFull) => {}
                        Err(error) => panic!("{error}"),
                    }
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
            while begun.load(Ordering::Relaxed) < STREAMS {
                std::thread::yield_now();
            }
            disk.set_hung(false);
            while !wal.is_full() && ended.load(Ordering::Relaxed) < STREAMS {
                std::thread::yield_now();
            }
            let mut trimmed = BTreeMap::new();
            let mut trim_all = || {
                // A stream that was trimmed and not appended to since has none.
                let ranges = (1..=STREAMS).map(|stream| (stream, wal.range(stream)));
                for (stream, range) in ranges {
                    let last = range.map(|range| *range.end());
                    if let Some(last) = last
                        && trimmed.insert(stream, last) != Some(last)
                    {
                        wal.trim(stream, last + 1).expect("it goes in the reserve");
                    }
                }
            };
            trim_all();
            waited += STREAMS - ended.load(Ordering::Relaxed);
            // What became durable since takes room in its turn.
            while ended.load(Ordering::Relaxed) < STREAMS {
                trim_all();
                std::thread::yield_now();
            }
        });
        if waited > 0 {
            break;
        }
    }
    assert!(waited > 0, "some waited until all was trimmed");
}
