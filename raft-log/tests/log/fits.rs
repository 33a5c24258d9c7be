//! What is submitted and does not fit is refused by name, and leaves no trace.

use std::sync::Arc;

use raft_log::vfs::SimVfs;
use raft_log::{Contradiction, LogError, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{Batch, BatchBuilder, EntryId, EntryKind, HardState, Index, ReplicaId, Term};

use crate::workload::{Driven, disk, key, open, options};

fn batch(group: u64, term: u64, first: u64, count: u64) -> Batch {
    let first = Index::new(first);
    let mut builder = BatchBuilder::new(key(group).0, Term::new(term), first, 0);
    for _ in 0..count {
        builder.push(EntryKind::Command, 0, None, b"something");
    }
    builder.finish().expect("some")
}

fn of(entries: &[Batch]) -> Submission {
    let mut submission = Submission::new(key(1).0, key(1).1, 1);
    submission.entries = entries.to_vec();
    submission
}

fn committed(entries: &[Batch], commit: u64) -> Submission {
    let mut submission = of(entries);
    submission.hard_state = Some(HardState {
        term: Term::new(9),
        vote: None,
        commit: Index::new(commit),
    });
    submission
}

fn restarted(entries: &[Batch], term: u64, index: u64) -> Submission {
    let mut submission = of(entries);
    submission.restart_after = Some(id(term, index));
    submission
}

fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term::new(term), Index::new(index))
}

const fn gap(found: u64, next: u64) -> Contradiction {
    let (found, next) = (Index::new(found), Index::new(next));
    Contradiction::Gap { found, next }
}

const fn past(commit: u64, last: u64) -> Contradiction {
    let (commit, last) = (Index::new(commit), Index::new(last));
    Contradiction::CommitPastLast { commit, last }
}

fn falls(term: u64, index: u64, before: u64) -> Contradiction {
    let (found, before) = (id(term, index), Term::new(before));
    Contradiction::TermFalls { found, before }
}

/// Behind entries 1 to 10 of term 2 and 11 to 20 of term 5, committed up to 12 and held from 4 on.
fn refused() -> Vec<(Submission, Contradiction)> {
    let compacted = |found: u64| Contradiction::Compacted {
        found: Index::new(found),
        first: Index::new(4),
    };
    let apart = |found: u64, before: u64| Contradiction::NotConsecutive {
        found: Index::new(found),
        before: Index::new(before),
    };
    let foreign = |first| Contradiction::OtherGroup { first };
    let next = batch(1, 5, 21, 3);
    vec![
        (of(&[batch(2, 5, 21, 1)]), foreign(id(5, 21))),
        (of(&[next.clone(), batch(2, 5, 24, 1)]), foreign(id(5, 24))),
        (
            of(&[batch(1, 5, 0, 3)]),
            Contradiction::Zero { id: id(5, 0) },
        ),
        (
            of(&[batch(1, 0, 21, 3)]),
            Contradiction::Zero { id: id(0, 21) },
        ),
        (of(&[batch(1, 5, 22, 1)]), gap(22, 21)),
        (of(&[batch(1, 5, u64::MAX - 2, 1)]), gap(u64::MAX - 2, 21)),
        (of(&[batch(1, 5, 3, 20)]), compacted(3)),
        (of(&[next.clone(), batch(1, 5, 25, 1)]), apart(25, 23)),
        (of(&[next.clone(), batch(1, 5, 23, 1)]), apart(23, 23)),
        (
            of(&[batch(1, 5, 21, 1), batch(1, 4, 22, 1)]),
            falls(4, 22, 5),
        ),
        (of(&[batch(1, 4, 21, 1)]), falls(4, 21, 5)),
        (of(&[batch(1, 4, 15, 9)]), falls(4, 15, 5)),
        (of(&[batch(1, 1, 11, 9)]), falls(1, 11, 2)),
        (committed(&[], 21), past(21, 20)),
        (committed(&[next], 24), past(24, 23)),
        (of(&[batch(1, 5, 5, 7)]), past(12, 11)),
        (committed(&[batch(1, 6, 14, 2)], 16), past(16, 15)),
        (restarted(&[], 6, 11), past(12, 11)),
        (restarted(&[batch(1, 6, 32, 1)], 6, 30), gap(32, 31)),
        (restarted(&[batch(1, 5, 31, 1)], 6, 30), falls(5, 31, 6)),
    ]
}

/// Whether what it was given before is durable or is still gathered.
#[test]
fn what_would_be_read_back_as_damage_is_refused_by_name() {
    for is_durable in [true, false] {
        let disk = disk(1);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut before = committed(&[batch(1, 2, 1, 10)], 10);
        before.compact_before = Some(Index::new(4));
        let older = of(&[batch(1, 4, 11, 20)]);
        // It overwrites.
        let newer = committed(&[batch(1, 5, 11, 10)], 12);
        for submission in [before, older, newer] {
            driven.lane.submit(submission).expect("it fits");
            if is_durable {
                driven.settle();
            }
        }
        for (submission, want) in refused() {
            match driven.lane.submit(submission) {
                Err(LogError::Contradiction { reason, .. }) => assert_eq!(reason, want),
                other => panic!("{want} instead of {other:?}"),
            }
        }
        for (index, count) in [(u64::MAX - 1, 1), (u64::MAX - 3, 3)] {
            let refused = driven.lane.submit(of(&[batch(1, 5, index, count)]));
            let is_named = matches!(refused, Err(LogError::NumberTooHigh { .. }));
            assert!(is_named, "{refused:?}");
        }
        // What fits is taken: an overwrite, what follows it, and a new beginning.
        driven.lane.submit(of(&[batch(1, 5, 13, 1)])).expect("fits");
        driven.lane.submit(of(&[batch(1, 5, 14, 2)])).expect("fits");
        driven.settle();
        disk.crash();
        drop(driven);
        let (mut lane, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let state = &recovery.replicas[&key(1)];
        assert_eq!((state.first, state.last), (Index::new(4), id(5, 15)));
        let last = state.last.index;
        let read = lane
            .reader()
            .entries(key(1).0, key(1).1, state.first, last, 1 << 20);
        assert_eq!(
            read.expect("it reads")
                .iter()
                .map(Batch::len)
                .sum::<usize>(),
            12
        );
        // As an open finds it.
        let refused = lane.submit(of(&[batch(1, 5, 17, 1)]));
        assert!(
            matches!(refused, Err(LogError::Contradiction { reason, .. }) if reason == gap(17, 16))
        );
        lane.submit(restarted(&[batch(1, 6, 31, 1)], 6, 30))
            .expect("fits");
    }
}

/// Nothing is asked of one that is gone, whatever still comes of it; another under its name begins
/// at 1.
#[test]
fn what_follows_a_tombstone_is_refused_as_such() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.write(of(&[batch(1, 1, 1, 3)]));
    let mut gone = of(&[]);
    gone.tombstone = true;
    driven.write(gone);
    // As long as it is known to be gone.
    let refused = driven.lane.submit(of(&[batch(1, 1, 9, 1)]));
    assert!(matches!(refused, Err(LogError::Gone { .. })), "{refused:?}");
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report.damaged, []);
}

/// Snapshots retained at these indexes, each with a membership of `len` bytes.
fn retaining(indexes: &[u64], len: usize) -> SnapshotsRecord {
    let retained = indexes.iter().map(|&index| SnapshotRecord {
        id: id(1, index),
        membership: vec![7; len].into(),
    });
    SnapshotsRecord {
        retained: retained.collect(),
    }
}

fn voting(term: u64, vote: Option<u64>) -> Submission {
    let mut submission = of(&[]);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        vote: vote.and_then(ReplicaId::new),
        commit: Index::ZERO,
    });
    submission
}

/// A log that holds entries 1 to 5 of replica 1.
fn begun() -> (Arc<SimVfs>, Driven) {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.write(of(&[batch(1, 1, 1, 5)]));
    (disk, driven)
}

#[test]
fn a_vote_is_not_taken_back_nor_given_twice() {
    for is_durable in [true, false] {
        let (disk, mut driven) = begun();
        let changes = |vote: u64| Contradiction::VoteChanges {
            term: Term::new(4),
            vote: ReplicaId::new(vote).expect("not 0"),
        };
        let falls = |term: u64| Contradiction::HardStateFalls {
            term: Term::new(term),
            before: Term::new(4),
        };
        for taken in [voting(3, Some(1)), voting(4, None), voting(4, Some(2))] {
            driven.lane.submit(taken).expect("it fits");
            if is_durable {
                driven.settle();
            }
        }
        let mut refused =
            |submission: Submission, want: Contradiction| match driven.lane.submit(submission) {
                Err(LogError::Contradiction { reason, .. }) => assert_eq!(reason, want),
                other => panic!("{want} instead of {other:?}"),
            };
        refused(voting(3, Some(1)), falls(3));
        refused(voting(4, Some(1)), changes(2));
        refused(voting(4, None), changes(2));
        driven.lane.submit(voting(4, Some(2))).expect("the same");
        driven.settle();
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let found = recovery.replicas[&key(1)].hard_state;
        assert_eq!((found.term, found.vote), (Term::new(4), ReplicaId::new(2)));
    }
}

#[test]
fn a_snapshot_past_the_last_entry_is_not_retained() {
    let (disk, mut driven) = begun();
    let with = |mut submission: Submission, indexes: &[u64]| {
        submission.snapshots = Some(retaining(indexes, 10));
        submission
    };
    let past = |snapshot: u64, last: u64| {
        let (snapshot, last) = (Index::new(snapshot), Index::new(last));
        Contradiction::SnapshotPastLast { snapshot, last }
    };
    driven.write(with(of(&[]), &[2, 4]));
    for (submission, want) in [
        (with(of(&[]), &[4, 6]), past(6, 5)),
        (of(&[batch(1, 2, 3, 1)]), past(4, 3)),
        (restarted(&[], 2, 3), past(4, 3)),
    ] {
        match driven.lane.submit(submission) {
            Err(LogError::Contradiction { reason, .. }) => assert_eq!(reason, want),
            other => panic!("{want} instead of {other:?}"),
        }
    }
    // With the entries that it covers, with a log that begins anew, and none at all.
    for submission in [
        with(of(&[batch(1, 2, 4, 4)]), &[7]),
        with(restarted(&[], 3, 30), &[30]),
        with(of(&[]), &[]),
    ] {
        driven.write(submission);
    }
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report.damaged, []);
    assert_eq!(recovery.replicas[&key(1)].last, id(3, 30));
}
