//! Who submits is told of its own submission, whatever passes it.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, LaneThread, LogError, Submission};
use raft_proto::{HardState, Index, Term};

use crate::workload::{DATA, Rng, batch, disk, key};

fn open(disk: &Arc<SimVfs>, segment_size_bytes: u64) -> LaneThread {
    let options = LaneOptions {
        segment_size_bytes,
        record_bytes_max: 32 << 10,
        // In peace a larger vote file would be made ahead.
        burst_end_nanos: 60_000_000_000,
        ..LaneOptions::default()
    };
    let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(disk);
    let (log, _) = LaneThread::open(vfs, DATA.as_ref(), options).expect("it opens");
    log
}

fn append(rng: &mut Rng, group: u64, index: u64, bytes: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, 0);
    let first = Index::new(index);
    submission.entries = vec![batch(rng, key(group).0, Term::new(1), first, 1, bytes)];
    submission
}

fn term(group: u64, term: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, 0);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        ..HardState::default()
    });
    submission
}

/// What was told: of which group, and whether the entry up to `index` could be read then.
type Told = (u64, Result<(), LogError>, bool);

/// Submits; when it is told, it is looked at whether the log has the entry.
fn submit(
    log: &LaneThread,
    submission: Submission,
    index: u64,
    told: &Sender<Told>,
) -> Result<(), LogError> {
    let (group, replica) = (submission.group, submission.replica);
    let (reader, told) = (log.reader(), told.clone());
    log.submit(submission, move |result| {
        let last = reader.range(group, replica).map(|(_, last)| last);
        let is_there = last.is_some_and(|last| last >= Index::new(index));
        told.send((group.get(), result, is_there)).ok();
    })
}

#[test]
fn what_waits_for_room_is_not_told_what_became_of_a_compaction_that_passed_it() {
    const OTHERS: u64 = 9;
    let disk = disk(1);
    let log = open(&disk, 64 << 10);
    let mut rng = Rng(1);
    let (done, told) = channel();
    for group in 1..=OTHERS {
        log.append(append(&mut rng, group, 1, 100))
            .expect("it is durable");
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let mut taken = 1;
    // Submitted without a wait, until the lane says that it is full.
    loop {
        assert!(taken < 10_000, "it fills up");
        let submission = append(&mut rng, 1, taken + 1, 3_000);
        match submit(&log, submission, taken + 1, &done) {
            Ok(()) => taken += 1,
            Err(LogError::StorageFull) => break,
            Err(LogError::Busy { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    // One that is gathered with what waits, waits too: the next one passes.
    let mut durable = 1;
    let mut passed = 0;
    for other in 2..=OTHERS {
        let mut compact = Submission::new(key(other).0, key(other).1, 0);
        compact.compact_before = Some(Index::new(2));
        submit(&log, compact, 0, &done).expect("it is taken");
        while let Ok((group, result, is_there)) = told.recv_timeout(Duration::from_millis(100)) {
            result.expect("nothing failed");
            passed += u64::from(group > 1);
            durable += u64::from(group == 1);
            let is_durable = is_there || group > 1;
            assert!(is_durable, "the {durable}. of {taken} is not there");
        }
        if passed > 0 {
            break;
        }
    }
    assert!(passed > 0, "a compaction passes what waits");
    assert!(durable < taken, "some of them wait");
    disk.set_capacity(None);
    while durable < taken {
        let (group, result, is_there) = told.recv().expect("each is told");
        durable += u64::from(group == 1);
        result.expect("there was room again");
        assert!(is_there || group > 1);
    }
    log.close().expect("it closes");
}

#[test]
fn a_vote_that_waits_for_a_place_is_not_told_what_became_of_those_that_passed_it() {
    const PLACES: u64 = 1_024;
    let disk = disk(2);
    let log = open(&disk, 1 << 20);
    let (done, told) = channel();
    // In one burst, twice each: a replica takes one place.
    for group in (1..=PLACES).flat_map(|group| [group; 2]) {
        submit(&log, term(group, 1), 0, &done).expect("it is taken");
    }
    disk.set_capacity(Some(disk.used_bytes()));
    submit(&log, term(PLACES + 1, 1), 0, &done).expect("it waits");
    submit(&log, term(1, 2), 0, &done).expect("it is taken");
    submit(&log, term(2, 2), 0, &done).expect("it is taken");
    submit(&log, term(PLACES + 1, 2), 0, &done).expect("it waits");
    let mut order = Vec::new();
    for _ in 0..2 * PLACES + 2 {
        let (group, result, _) = told.recv().expect("somebody is told");
        result.expect("nothing failed");
        order.push(group);
    }
    let all = (1..=PLACES).flat_map(|group| [group; 2]);
    let wanted: Vec<u64> = all.chain([1, 2]).collect();
    assert_eq!(order, wanted, "the others, in their order");
    disk.set_capacity(None);
    for _ in 0..2 {
        let (group, result, _) = told.recv().expect("each is told");
        assert_eq!(group, PLACES + 1);
        result.expect("there is a place");
    }
    log.close().expect("it closes");
}

#[test]
fn a_close_tells_each_who_still_waits_that_it_is_not_durable() {
    let disk = disk(3);
    let log = open(&disk, 64 << 10);
    let mut rng = Rng(3);
    let (done, told) = channel();
    disk.set_capacity(Some(disk.used_bytes()));
    let mut taken = 0;
    loop {
        match submit(
            &log,
            append(&mut rng, 1, taken + 1, 3_000),
            taken + 1,
            &done,
        ) {
            Ok(()) => taken += 1,
            Err(LogError::StorageFull) => break,
            Err(LogError::Busy { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    drop(done);
    let closed = log.close();
    let (mut durable, mut refused) = (0, 0);
    for (_, result, is_there) in &told {
        match result {
            Ok(()) => {
                assert!(is_there, "told, and not there");
                durable += 1;
            }
            Err(LogError::StorageFull) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(durable + refused, taken);
    let is_refused = matches!(closed, Err(LogError::StorageFull));
    assert_eq!(refused > 0, is_refused, "{closed:?}");
}
