//! Submissions that take more than one record.

use std::sync::Arc;

use raft_log::{LaneOptions, LogError, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{Batch, BatchBuilder, EntryId, EntryKind, HardState, Index, Term};

use crate::workload::{Driven, Rng, batch, disk, key, open, options};

fn append(rng: &mut Rng, group: u64, number: u64, first: u64, commit: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.entries = vec![batch(
        rng,
        key(group).0,
        Term::new(1),
        Index::new(first),
        60,
        20,
    )];
    submission.hard_state = Some(HardState {
        term: Term::new(1),
        vote: None,
        commit: Index::new(commit),
    });
    submission
}

/// A crash between the records of a large submission, behind one that was acknowledged.
#[test]
fn a_commit_index_that_was_acknowledged_does_not_fall_back_with_a_large_submission() {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    driven.write(append(&mut rng, 1, 1, 1, 40));
    // While another's is on its way, two gather: the second takes several records.
    driven
        .lane
        .submit(append(&mut rng, 2, 1, 1, 0))
        .expect("taken");
    driven.lane.poll(driven.now);
    let mut small = Submission::new(key(1).0, key(1).1, 2);
    small.hard_state = Some(HardState {
        term: Term::new(1),
        vote: None,
        commit: Index::new(50),
    });
    driven.lane.submit(small).expect("taken");
    let mut large = append(&mut rng, 1, 3, 61, 60);
    let mut builder = BatchBuilder::new(key(1).0, Term::new(1), Index::new(121), 0);
    builder.push(EntryKind::Command, 0, None, &[7; 20_000]);
    large.entries.extend(builder.finish());
    let mut builder = BatchBuilder::new(key(1).0, Term::new(1), Index::new(122), 0);
    builder.push(EntryKind::Command, 0, None, &[8; 20_000]);
    large.entries.extend(builder.finish());
    driven.lane.submit(large).expect("taken");
    let (mut done, mut between) = (Vec::new(), 0);
    while done.len() < 3 {
        driven.step();
        for ended in driven.lane.take_completions() {
            ended.result.expect("it is durable");
            done.push((ended.group.get(), ended.submission));
        }
        let acknowledged = match done.last() {
            None | Some((2, _)) => 40,
            Some((_, 2)) => 50,
            Some(_) => 60,
        };
        let crashed = Arc::new(disk.fork());
        crashed.crash();
        let (_, recovery) = open(&crashed, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let state = &recovery.replicas[&key(1)];
        let commit = state.hard_state.commit.get();
        assert!(commit >= acknowledged, "{commit} of {acknowledged}");
        between += u64::from(commit == 50 && state.last.index > Index::new(60));
    }
    assert!(between > 0, "a crash between the large one's records");
}

fn memberships(bytes: usize) -> SnapshotsRecord {
    SnapshotsRecord {
        retained: vec![SnapshotRecord {
            id: EntryId::new(Term::new(1), Index::new(1)),
            membership: vec![7; bytes].into(),
        }],
    }
}

#[test]
fn memberships_that_no_write_has_room_for_are_refused() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    for bytes in [513 << 10, 20 << 20] {
        let mut submission = Submission::new(key(1).0, key(1).1, 1);
        submission.snapshots = Some(memberships(bytes));
        let refused = driven.lane.submit(submission);
        let is_named = matches!(refused, Err(LogError::TooLarge { size, .. }) if size > bytes);
        assert!(is_named, "{refused:?}");
    }
    assert_eq!(driven.lane.pending_bytes(), 0);
}

/// Empty membership entries, each of a term of its own: no table is longer for its batch.
#[test]
fn fault_1_a_record_of_nothing_but_memberships_that_is_torn_is_no_damage() {
    const BYTES: usize = 4 << 20;
    let options = LaneOptions {
        segment_size_bytes: 16 << 20,
        record_bytes_max: BYTES,
        ..options()
    };
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.pass(1_000_000_000);
    let (group, replica) = key(1);
    let mut frames = Vec::with_capacity(BYTES);
    for number in 1..=BYTES as u64 / 32 {
        let (term, index) = (Term::new(number), Index::new(number));
        let mut one = BatchBuilder::new(group, term, index, 32);
        one.push(EntryKind::Membership, 0, None, &[]);
        frames.extend_from_slice(one.finish().expect("an entry").bytes());
    }
    assert_eq!(frames.len(), BYTES);
    let batch = Batch::decode(group, frames.into()).expect("it is whole");
    let last = batch.last().index;
    let mut submission = Submission::new(group, replica, 1);
    submission.entries = vec![batch];
    submission.snapshots = Some(memberships(500 << 10));
    driven.lane.submit(submission).expect("it is taken");
    driven.lane.poll(driven.now);
    let units = disk.unsynced();
    let written = 512 * units;
    assert!(written > BYTES * 7 / 4 + (500 << 10), "{written} bytes");
    let keeps: [&dyn Fn(usize) -> bool; 4] = [
        &|unit| unit + 1 < units,
        &|unit| unit > 0,
        &|unit| unit % 2 == 0,
        &|_| true,
    ];
    let mut found = Vec::new();
    for keep in keeps {
        let crashed = Arc::new(disk.fork());
        crashed.crash_keeping(keep);
        let (_, recovery) = open(&crashed, &options).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let state = recovery.replicas.get(&key(1));
        found.push(state.map_or(Index::ZERO, |state| state.last.index));
    }
    assert_eq!(found, [Index::ZERO, Index::ZERO, Index::ZERO, last]);
}
