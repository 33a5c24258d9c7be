//! What a full disk keeps waiting holds up nobody else.

use raft_log::vfs::Vfs;
use raft_log::{LaneOptions, LogError, Submission};
use raft_proto::{HardState, Index, ReplicaId, Term};

use crate::workload::{Driven, Rng, batch, disk, key, open, options};

const SECOND: u64 = 1_000_000_000;

fn vote(group: u64, term: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, term);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        vote: ReplicaId::new(group * 10),
        ..HardState::default()
    });
    submission
}

fn append(rng: &mut Rng, group: u64, index: u64, bytes: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, index);
    let first = Index::new(index);
    submission.entries = vec![batch(rng, key(group).0, Term::new(1), first, 1, bytes)];
    submission
}

fn compact(group: u64, number: u64, before: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.compact_before = Some(Index::new(before));
    submission
}

/// The groups whose submissions have become durable, in order.
fn done(driven: &mut Driven) -> Vec<u64> {
    let done = driven.lane.take_completions().into_iter();
    done.map(|done| {
        done.result.expect("it is durable");
        done.group.get()
    })
    .collect()
}

#[test]
fn fault_16_a_full_vote_file_holds_up_new_replicas_alone() {
    const PLACES: u64 = 1_024;
    let disk = disk(1);
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut rng = Rng(1);
    driven.write(append(&mut rng, 1, 1, 3_000));
    // In one burst: in peace a larger file would be made ahead.
    for group in 1..=PLACES {
        driven.lane.submit(vote(group, 2)).expect("it is taken");
    }
    driven.settle();
    disk.set_capacity(Some(disk.used_bytes()));
    driven.lane.submit(vote(PLACES + 1, 1)).expect("it waits");
    driven.lane.submit(vote(1, 3)).expect("it is taken");
    driven.lane.submit(compact(1, 4, 2)).expect("it is taken");
    driven.lane.submit(vote(PLACES + 1, 2)).expect("it waits");
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [1, 1], "the others go on");
    assert!(driven.lane.stats().is_full);
    assert!(driven.lane.pending_bytes() > 0, "what waits is counted");
    let used = disk.used_bytes();
    driven.pass(3 * SECOND);
    assert_eq!(disk.used_bytes(), used, "an attempt leaves nothing behind");
    disk.set_capacity(None);
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [PLACES + 1, PLACES + 1]);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
    drop(driven);
    disk.crash();
    let (_, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let term = |group| recovery.replicas[&key(group)].hard_state.term;
    assert_eq!(term(1), Term::new(3));
    assert_eq!(term(PLACES), Term::new(2));
    assert_eq!(term(PLACES + 1), Term::new(2));
}

#[test]
fn fault_16_the_vote_file_grows_ahead_in_peace() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    for group in 1..=1_000 {
        driven.lane.submit(vote(group, 1)).expect("it is taken");
    }
    driven.pass(SECOND);
    disk.set_capacity(Some(disk.used_bytes()));
    done(&mut driven);
    for group in 1_001..=1_100 {
        driven.lane.submit(vote(group, 1)).expect("it is taken");
    }
    driven.pass(SECOND);
    assert_eq!(done(&mut driven).len(), 100);
}

/// The disk is found to be full when more was taken than there is room for.
#[test]
fn fault_16_entries_without_room_hold_up_neither_votes_nor_compaction() {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(3);
    driven.write(append(&mut rng, 2, 1, 3_000));
    driven.write(append(&mut rng, 1, 1, 3_000));
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 2..=40 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
    }
    driven.pass(3 * SECOND);
    let durable = done(&mut driven).len();
    assert!(durable < 39, "{durable} of them had room");
    driven.lane.submit(vote(2, 5)).expect("it is taken");
    driven.lane.submit(compact(2, 6, 2)).expect("it is taken");
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [2, 2], "in the reserve");
    assert!(driven.lane.stats().is_full);
    // What waits for room may wait for the compaction behind it.
    driven.lane.submit(compact(1, 41, 41)).expect("it waits");
    driven.pass(60 * SECOND);
    assert_eq!(done(&mut driven).len(), 39 - durable + 1);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
    assert_eq!(driven.lane.pending_bytes(), 0);
    drop(driven);
    disk.crash();
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert_eq!(recovery.replicas[&key(2)].hard_state.term, Term::new(5));
    let state = &recovery.replicas[&key(1)];
    assert_eq!(state.last.index, Index::new(40));
    assert_eq!(state.first, Index::new(41));
}

/// The compaction came before it was known that there is no room, in one gathering with entries.
#[test]
fn fault_16_a_compaction_gathered_with_entries_without_room_makes_it() {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(3);
    for index in 1..=12 {
        driven.write(append(&mut rng, 1, index, 6_000));
    }
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 13..=60 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
    }
    driven.lane.submit(compact(1, 61, 61)).expect("it is taken");
    driven.pass(60 * SECOND);
    assert_eq!(done(&mut driven).len(), 49);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
}

/// What was gathered into one record with entries for which there is no room, and concerns others.
#[test]
fn fault_16_votes_beside_entries_without_room_go_on() {
    let disk = disk(6);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(6);
    for group in 1..=5 {
        driven.write(append(&mut rng, group, 1, 3_000));
    }
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 2..=40 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
        if index % 10 == 0 {
            let group = index / 10 + 1;
            driven.lane.submit(vote(group, 7)).expect("it is taken");
            driven
                .lane
                .submit(compact(group, 8, 2))
                .expect("it is taken");
        }
    }
    driven.pass(3 * SECOND);
    assert!(driven.lane.stats().is_full);
    let done = done(&mut driven);
    let others: Vec<u64> = done.iter().copied().filter(|&group| group > 1).collect();
    assert_eq!(others, [2, 2, 3, 3, 4, 4, 5, 5], "in the reserve");
    assert!(done.len() < 39 + 8, "some wait");
    let durable = u64::try_from(done.len() - 8).expect("small");
    drop(driven);
    disk.crash();
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    for group in 2..=5 {
        let state = &recovery.replicas[&key(group)];
        assert_eq!(state.hard_state.term, Term::new(7));
        assert_eq!(state.first, Index::new(2));
    }
    let last = recovery.replicas[&key(1)].last.index;
    assert_eq!(last, Index::new(1 + durable));
}

/// Votes of one whose own entries wait: these go before them, in the reserve, while they are few.
#[test]
fn fault_16_a_vote_behind_few_entries_without_room_takes_them_along() {
    let disk = disk(7);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(7);
    driven.write(append(&mut rng, 1, 1, 3_000));
    driven.write(append(&mut rng, 2, 1, 300));
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 2..=40 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
    }
    for index in 2..=3 {
        let submission = append(&mut rng, 2, index, 300);
        driven.lane.submit(submission).expect("it is taken");
    }
    driven.pass(3 * SECOND);
    assert!(driven.lane.stats().is_full);
    assert!(!done(&mut driven).contains(&2), "they wait");
    driven.lane.submit(vote(2, 4)).expect("it is taken");
    driven.lane.submit(vote(2, 5)).expect("it is taken");
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [2, 2, 2, 2]);
    assert!(driven.lane.stats().is_full);
    drop(driven);
    disk.crash();
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let state = &recovery.replicas[&key(2)];
    assert_eq!(state.hard_state.term, Term::new(5));
    assert_eq!(state.last.index, Index::new(3));
    let all = lane
        .reader()
        .entries(key(2).0, key(2).1, Index::new(1), Index::new(3), 1 << 20);
    all.expect("they are there");
}

/// A file system that cannot rename to a name that is free, and one that fails now and then.
#[test]
fn a_segment_that_cannot_be_recycled_leaves_no_file_behind() {
    for every in [1, 40] {
        let disk = disk(5);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut rng = Rng(5);
        let mut files = 0;
        for index in 1..=300 {
            if index % every == 0 {
                disk.fail_next("rename", std::io::ErrorKind::Unsupported);
            }
            let mut submission = append(&mut rng, 1, index, 4_000);
            submission.compact_before = Some(Index::new(index.saturating_sub(3).max(1)));
            driven.lane.submit(submission).expect("it is taken");
            driven.pass(2 * SECOND);
            done(&mut driven);
            let dir = std::path::Path::new("/data/log/0");
            files = files.max(disk.list(dir).expect("it is there").len());
        }
        assert!(files <= 8, "{files} files at once");
        driven.lane.close().expect("all is durable");
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        let report = recovery.report;
        assert!(report.foreign.is_empty(), "{:?}", report.foreign);
    }
}

#[test]
fn a_close_hears_of_what_still_waits() {
    let disk = disk(4);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(4);
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 1..=40 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
    }
    driven.pass(3 * SECOND);
    let durable = driven.lane.take_completions().len();
    driven.lane.submit(vote(2, 5)).expect("it is taken");
    driven.pass(SECOND);
    let closed = driven.lane.close();
    assert!(matches!(closed, Err(LogError::StorageFull)), "{closed:?}");
    disk.set_capacity(None);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    let last = recovery.replicas[&key(1)].last.index.get();
    assert_eq!(usize::try_from(last).expect("small"), durable);
    assert_eq!(recovery.replicas[&key(2)].hard_state.term, Term::new(5));
}
