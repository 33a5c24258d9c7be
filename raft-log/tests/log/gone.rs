//! Replicas that are gone: their names are kept as long as something of them could come back.

use std::sync::Arc;

use raft_log::vfs::SimVfs;
use raft_log::{Health, LogError, SnapshotsRecord, Submission};
use raft_proto::{EntryId, HardState, Index, ReplicaId, Term};

use crate::damage::{content, records, segments};
use crate::workload::{Driven, Rng, batch, disk, key, open, options};

fn born(rng: &mut Rng, group: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, 1);
    let term = Term::new(3);
    submission.hard_state = Some(HardState {
        term,
        vote: ReplicaId::new(7),
        ..HardState::default()
    });
    submission.entries = vec![batch(rng, key(group).0, term, Index::new(1), 1, 40)];
    submission
}

fn gone(group: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, 2);
    submission.tombstone = true;
    submission
}

/// The table of the newest checkpoint.
fn checkpoint_bytes(disk: &SimVfs) -> usize {
    let contents = segments(disk).into_iter().map(|path| content(disk, &path));
    let newest = contents.rev().find(|content| !records(content).is_empty());
    let (_, kind, table, _) = records(&newest.expect("one is in use"))[0];
    assert_eq!(kind, 2);
    table
}

/// As many as come and go in the life of a host: neither memory nor checkpoints grow with them.
#[test]
fn a_hundred_thousand_that_are_gone_leave_a_bounded_table() {
    const BATCH: u64 = 100;
    const BATCHES: u64 = 1_000;
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    // One that stays, and whose entries lie in the oldest segment.
    driven.write(born(&mut rng, 1));
    let mut most = 0;
    for round in 0..BATCHES {
        for at in 0..BATCH {
            let group = 2 + round * BATCH + at;
            driven.lane.submit(born(&mut rng, group)).expect("taken");
            if round > 0 {
                driven.lane.submit(gone(group - BATCH)).expect("taken");
            }
        }
        for done in driven.settle() {
            done.result.expect("it is durable");
        }
        most = most.max(driven.lane.reader().index_bytes());
    }
    let table = checkpoint_bytes(&disk);
    assert!(table < 100_000, "{table} bytes of a checkpoint");
    assert!(most < 1_000_000, "{most} bytes of an index");
    disk.crash();
    drop(driven);
    for _ in 0..2 {
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        let health = |group: u64| {
            let state = recovery.replicas.get(&key(group));
            state.map(|state| state.health.clone())
        };
        assert_eq!(health(1), Some(Health::Sound));
        for group in 2..2 + (BATCHES - 1) * BATCH {
            let is_gone = matches!(health(group), None | Some(Health::Tombstone));
            assert!(is_gone, "{group} has come back: {:?}", health(group));
        }
        for group in 2 + (BATCHES - 1) * BATCH..2 + BATCHES * BATCH {
            assert_eq!(health(group), Some(Health::Sound), "{group}");
        }
        let known = recovery.replicas.len();
        assert!(known < 3_000, "{known} are known");
        disk.crash();
        drop(lane);
    }
    crate::record("log replicas gone", "replicas", BATCHES * BATCH);
}

/// What comes late, by itself or in one gathering with the tombstone, is refused, and pins nothing.
#[test]
fn what_is_submitted_for_one_that_is_gone_is_refused_and_not_written() {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(3);
    driven.write(born(&mut rng, 1));
    // One with a slot in the vote file, and one without.
    driven.write(born(&mut rng, 2));
    let mut entries = Submission::new(key(3).0, key(3).1, 1);
    let first = Index::new(1);
    entries.entries = vec![batch(&mut rng, key(3).0, Term::new(3), first, 1, 40)];
    driven.write(entries);
    let late = |group: u64, rng: &mut Rng| {
        let mut all = vec![Submission::new(key(group).0, key(group).1, 3); 5];
        let next = Index::new(2);
        all[0].entries = vec![batch(rng, key(group).0, Term::new(3), next, 1, 40)];
        all[1].compact_before = Some(next);
        all[2].hard_state = Some(HardState {
            term: Term::new(9),
            ..HardState::default()
        });
        all[3].restart_after = Some(EntryId::new(Term::new(3), Index::new(9)));
        all[4].snapshots = Some(SnapshotsRecord::default());
        all
    };
    let refuse = |driven: &mut Driven, group: u64| {
        for late in late(group, &mut Rng(4)) {
            let refused = driven.lane.submit(late);
            assert!(matches!(refused, Err(LogError::Gone { .. })), "{refused:?}");
        }
    };
    for group in [2, 3] {
        driven.lane.submit(gone(group)).expect("it is taken");
        refuse(&mut driven, group);
        // It is on its way.
        driven.lane.poll(driven.now);
        refuse(&mut driven, group);
        driven.settle();
        let records = driven.lane.stats().records;
        refuse(&mut driven, group);
        driven.settle();
        assert_eq!(driven.lane.stats().records, records);
        // That it is gone may be said again, and whoever says nothing is told in its turn.
        driven.write(gone(group));
        driven.write(Submission::new(key(group).0, key(group).1, 4));
        driven.write(born(&mut rng, 1));
    }
    // The segment that it began in is released, with its name.
    for index in 2..=60 {
        let mut submission = Submission::new(key(1).0, key(1).1, index);
        let from = Index::new(index);
        submission.entries = vec![batch(&mut rng, key(1).0, Term::new(3), from, 1, 6_000)];
        submission.compact_before = Some(from);
        driven.write(submission);
        if index % 10 == 0 {
            refuse(&mut driven, 2);
        }
    }
    driven.pass(1_000_000_000);
    let live = driven.lane.stats().live_segments;
    assert!(live <= 2, "{live} segments");
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report.damaged, []);
    let health = |group| {
        recovery
            .replicas
            .get(&key(group))
            .map(|state| &state.health)
    };
    assert_eq!(health(2), Some(&Health::Tombstone));
    assert_eq!(health(3), None, "it is forgotten");
}

/// Its records lie in segments that others keep alive: neither they nor its votes bring it back,
/// whichever checkpoint an open goes by.
#[test]
fn one_that_is_forgotten_does_not_come_back_from_older_segments() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(2);
    driven.write(born(&mut rng, 1));
    for group in 2..=20 {
        driven.write(born(&mut rng, group));
    }
    for group in 2..=20 {
        driven.write(gone(group));
    }
    disk.crash();
    drop(driven);
    // An open makes the vote file anew without them.
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut next = 2;
    let mut left = 4;
    while left > 0 {
        let mut submission = Submission::new(key(1).0, key(1).1, next);
        let from = Index::new(next);
        submission.entries = vec![batch(&mut rng, key(1).0, Term::new(3), from, 1, 9_000)];
        driven.write(submission);
        next += 1;
        left -= u64::from(segments(&disk).len() >= 6);
    }
    disk.crash();
    drop(driven);
    let paths = segments(&disk);
    let used = paths.iter().rfind(|path| {
        let content = content(&disk, path);
        !records(&content).is_empty()
    });
    let newest = used.expect("one is in use").clone();
    let mut most = 0;
    for is_damaged in [false, true] {
        let disk = Arc::new(disk.fork());
        if is_damaged {
            // The newest checkpoint is lost: an open goes by the one before it.
            disk.damage(&newest, |content| {
                content[1_024 + 64..1_024 + 80].fill(0x55)
            });
        }
        for _ in 0..2 {
            let (lane, recovery) = open(&disk, &options()).expect("it opens");
            for group in 2..=20 {
                let state = recovery.replicas.get(&key(group));
                let health = state.map(|state| &state.health);
                let is_gone = matches!(health, None | Some(Health::Tombstone));
                assert!(is_gone, "damaged {is_damaged}: {group} is back: {health:?}");
            }
            most = most.max(recovery.replicas.len());
            let first = lane.reader().range(key(1).0, key(1).1);
            let want = (Index::new(1), Index::new(next - 1));
            assert_eq!(first, Some(want), "damaged {is_damaged}");
            disk.crash();
            drop(lane);
        }
    }
    assert_eq!(most, 1, "they are forgotten");
}
