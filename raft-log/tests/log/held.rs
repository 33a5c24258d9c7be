//! What a full disk keeps waiting holds up nobody else.

use std::collections::BTreeSet;
use std::sync::Arc;

use raft_log::vfs::{Fault, SimVfs, Vfs};
use raft_log::{LaneOptions, LogError, Progress, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{EntryId, HardState, Index, ReplicaId, Term};

use crate::damage::{content, records, segments};
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

/// Groups that the vote file has places for, before it is made larger.
const PLACES: u64 = 1_024;

/// Each of so many has voted in term 2, in one burst: in peace a larger file would be made ahead.
fn without_places() -> (Arc<SimVfs>, Driven, LaneOptions) {
    let disk = disk(1);
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.write(append(&mut Rng(1), 1, 1, 3_000));
    for group in 1..=PLACES {
        driven.lane.submit(vote(group, 2)).expect("it is taken");
    }
    driven.settle();
    (disk, driven, options)
}

#[test]
fn fault_16_a_full_vote_file_holds_up_new_replicas_alone() {
    let (disk, mut driven, options) = without_places();
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
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let term = |group| recovery.replicas[&key(group)].hard_state.term;
    assert_eq!(term(1), Term::new(3));
    assert_eq!(term(PLACES), Term::new(2));
    assert_eq!(term(PLACES + 1), Term::new(2));
}

#[test]
fn fault_18_a_vote_file_that_cannot_be_made_holds_up_new_replicas_alone() {
    let (disk, mut driven, _) = without_places();
    disk.fault_every("open", Some(Fault::Errno(24)));
    driven.lane.submit(vote(PLACES + 1, 1)).expect("it waits");
    driven.lane.submit(vote(1, 3)).expect("it is taken");
    driven.lane.submit(vote(PLACES + 1, 2)).expect("it waits");
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [1], "the others go on");
    assert!(!driven.lane.stats().is_full);
    disk.fault_every("open", None);
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [PLACES + 1, PLACES + 1]);
}

/// Entries of a new replica wait for a segment, and its first vote behind them takes them along: only
/// then it turns out that it has no place.
#[test]
fn fault_18_a_first_vote_behind_entries_waits_alone_for_a_vote_file_that_cannot_be_made() {
    const NEW: u64 = PLACES + 1;
    let (disk, mut driven, _) = without_places();
    disk.fault_every("open", Some(Fault::Errno(24)));
    let mut rng = Rng(2);
    let mut fill = |driven: &mut Driven, group, first, bytes| {
        let before = driven.lane.pending_bytes();
        let mut next = first;
        while driven.lane.pending_bytes() == before {
            assert!(next < 10_000, "it fills up");
            let append = append(&mut rng, group, next, bytes);
            driven.lane.submit_admitted(append).expect("it is taken");
            driven.pass(SECOND / 100);
            next += 1;
        }
    };
    fill(&mut driven, 1, 2, 20_000);
    fill(&mut driven, NEW, 1, 300);
    driven.lane.take_completions();
    driven.lane.submit(vote(NEW, 1)).expect("it waits");
    driven.pass(SECOND / 2);
    driven.lane.submit(vote(2, 3)).expect("it is taken");
    driven.pass(3 * SECOND);
    assert_eq!(done(&mut driven), [2], "the others go on");
    disk.fault_every("open", None);
    driven.pass(5 * SECOND);
    let mut done = done(&mut driven);
    done.sort_unstable();
    assert_eq!(done, [1, NEW, NEW]);
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
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert_eq!(recovery.replicas[&key(2)].hard_state.term, Term::new(5));
    let state = &recovery.replicas[&key(1)];
    assert_eq!(state.last.index, Index::new(40));
    assert_eq!(state.first, Index::new(41));
}

fn snapshot(group: u64, number: u64, index: u64) -> Submission {
    let mut submission = compact(group, number, index + 1);
    submission.snapshots = Some(SnapshotsRecord {
        retained: vec![SnapshotRecord {
            id: EntryId::new(Term::new(1), Index::new(index)),
            membership: vec![7; 100].into(),
        }],
    });
    submission
}

/// A compaction comes with the snapshot that it needs; the next one of the same replica takes few
/// entries along.
#[test]
fn fault_16_snapshots_behind_entries_without_room_make_it() {
    let options = LaneOptions {
        reserve_bytes: Some(16 << 10),
        ..options()
    };
    for bytes in [300, 12_000] {
        let (disk, mut driven) = filled(20, &options);
        let reader = driven.lane.reader();
        let last = || reader.range(key(1).0, key(1).1).expect("it has some").1;
        let mut rng = Rng(20);
        while driven.lane.stats().is_full && driven.lane.pending_bytes() == 0 {
            let next = append(&mut rng, 1, last().get() + 1, 300);
            driven.lane.submit_admitted(next).expect("it is taken");
            driven.pass(SECOND / 100);
        }
        let waiting = driven.lane.pending_bytes();
        done(&mut driven);
        let durable = last().get();
        disk.record_crash_points();
        for index in 2..=3 {
            let append = append(&mut rng, 1, durable + index, bytes);
            driven.lane.submit_admitted(append).expect("it waits");
        }
        driven.pass(SECOND / 2);
        assert!(driven.lane.pending_bytes() > waiting, "they wait");
        assert_eq!(last().get(), durable);
        // The first one frees nothing.
        for (number, index) in [(1, 1), (2, durable)] {
            let saved = snapshot(1, number, index);
            driven.lane.submit(saved).expect("it is taken");
            driven.pass(3 * SECOND);
        }
        let first = reader.range(key(1).0, key(1).1).expect("it has some").0;
        let is_few = bytes < 1_000;
        assert_eq!(first.get(), if is_few { durable + 1 } else { 2 });
        assert_eq!(driven.lane.stats().is_full, !is_few);
        if !is_few {
            disk.set_capacity(None);
        }
        driven.pass(5 * SECOND);
        assert_eq!(done(&mut driven), [1; 5]);
        assert_eq!(last().get(), durable + 3);
        for point in disk.take_crash_points() {
            point.crash();
            let (_, recovery) = open(&Arc::new(point), &options).expect("it opens");
            assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
            let state = &recovery.replicas[&key(1)];
            let saved = state.snapshots.last().map(|saved| saved.id.index);
            let saved = saved.unwrap_or_default();
            assert!(state.first <= saved.next(), "no snapshot up to the log");
        }
    }
}

/// What waits will overwrite the entries that are durable: what is compacted is not those.
#[test]
fn fault_16_a_compaction_of_what_waits_does_not_pass_it() {
    let (disk, mut driven) = filled(21, &options());
    let reader = driven.lane.reader();
    let (_, last) = reader.range(key(1).0, key(1).1).expect("it has some");
    let mut rng = Rng(21);
    let mut over = Submission::new(key(1).0, key(1).1, 1);
    over.entries = vec![batch(&mut rng, key(1).0, Term::new(2), last, 1, 12_000)];
    driven.lane.submit_admitted(over).expect("it waits");
    let compaction = compact(1, 2, last.get() + 1);
    driven.lane.submit(compaction).expect("it waits");
    driven.pass(SECOND);
    let (first, _) = reader.range(key(1).0, key(1).1).expect("it has some");
    assert_eq!(first, Index::new(1));
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [1, 1]);
    assert_eq!(reader.range(key(1).0, key(1).1), None);
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
    disk.crash();
    drop(driven);
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
    disk.crash();
    drop(driven);
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

/// A small append of the same replica is what no room is left for: half of the reserve is there for
/// the vote behind it.
#[test]
fn fault_16_a_vote_behind_an_append_that_just_lacks_room_takes_it_along() {
    let disk = disk(8);
    // Entries wait from the want of descriptors on, so that a watermark is written meanwhile.
    let options = LaneOptions {
        reserve_bytes: Some(16 << 10),
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut rng = Rng(8);
    disk.set_capacity(Some(disk.used_bytes()));
    // Whether it is full is not known yet.
    disk.fault_every("open", Some(Fault::Errno(24)));
    let mut taken = 0;
    while driven.lane.pending_bytes() < 1_000 {
        assert!(taken < 1_000, "it fills up");
        taken += 1;
        let submission = append(&mut rng, 1, taken, 300);
        driven.lane.submit(submission).expect("it is taken");
        driven.pass(SECOND / 100);
    }
    done(&mut driven);
    disk.fault_every("open", None);
    driven.pass(3 * SECOND);
    done(&mut driven);
    assert!(driven.lane.stats().is_full);
    assert!(driven.lane.pending_bytes() > 0, "it waits for room");
    for term in [4, 5] {
        driven.lane.submit(vote(1, term)).expect("it is taken");
    }
    driven.pass(SECOND / 10);
    assert!(done(&mut driven).len() > 2);
    assert_eq!(driven.lane.pending_bytes(), 0);
    assert!(driven.lane.stats().is_full);
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let state = &recovery.replicas[&key(1)];
    assert_eq!(state.hard_state.term, Term::new(5));
    assert_eq!(state.last.index, Index::new(taken));
}

/// The vote came before it was known that there is no room, in one gathering with its entries.
#[test]
fn fault_16_a_vote_gathered_with_few_entries_without_room_takes_them_along() {
    let disk = disk(9);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(9);
    driven.write(append(&mut rng, 1, 1, 3_000));
    disk.set_capacity(Some(disk.used_bytes()));
    for index in 2..=40 {
        let submission = append(&mut rng, 1, index, 6_000);
        driven.lane.submit(submission).expect("it is taken");
    }
    driven
        .lane
        .submit(append(&mut rng, 2, 1, 300))
        .expect("taken");
    driven.lane.submit(vote(2, 5)).expect("it is taken");
    driven
        .lane
        .submit(append(&mut rng, 3, 1, 300))
        .expect("taken");
    driven.pass(SECOND);
    assert!(driven.lane.stats().is_full);
    let done = done(&mut driven);
    let others: Vec<u64> = done.into_iter().filter(|&group| group > 1).collect();
    assert_eq!(
        others,
        [2, 2],
        "who votes does not wait, who does not waits"
    );
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    let state = &recovery.replicas[&key(2)];
    assert_eq!(state.hard_state.term, Term::new(5));
    assert_eq!(state.last.index, Index::new(1));
}

/// A disk with room for three segments, and as many entries of one group as there is room for.
fn filled(seed: u64, options: &LaneOptions) -> (Arc<SimVfs>, Driven) {
    let disk = disk(seed);
    let (mut driven, _) = Driven::open(&disk, options);
    let mut rng = Rng(seed);
    let mut index = 0;
    disk.set_capacity(Some(disk.used_bytes() + 2 * options.segment_size_bytes));
    loop {
        index += 1;
        let submission = append(&mut rng, 1, index, 6_000);
        if driven.lane.submit(submission).is_err() {
            break;
        }
        driven.pass(SECOND / 100);
    }
    driven.pass(SECOND);
    driven.lane.take_completions();
    assert_eq!(driven.lane.pending_bytes(), 0);
    (disk, driven)
}

/// A full disk, and as many votes as there is room for: 16 KiB at most are left for what makes room.
fn exhausted(seed: u64, options: &LaneOptions) -> (Arc<SimVfs>, Driven, u64) {
    let (disk, mut driven) = filled(seed, options);
    let mut term = 0;
    while driven.lane.pending_bytes() == 0 {
        assert!(term < 10_000, "it fills up");
        term += 1;
        driven.lane.submit(vote(2, term)).expect("it is taken");
        driven.pass(SECOND / 10);
    }
    assert_eq!(done(&mut driven).len() as u64, term - 1, "one waits");
    assert!(driven.lane.stats().is_full);
    (disk, driven, term - 1)
}

#[test]
fn fault_16_where_votes_have_no_room_left_a_compaction_makes_it() {
    for reserve in [4 << 10, 16 << 10, 32 << 10] {
        let options = LaneOptions {
            reserve_bytes: Some(reserve),
            ..options()
        };
        let (disk, mut driven, term) = exhausted(10, &options);
        // It passes the vote that waits, of its own replica too.
        driven.lane.submit(compact(2, 1, 1)).expect("it is taken");
        driven
            .lane
            .submit(compact(1, 1_000, 1_000))
            .expect("it is taken");
        driven.pass(5 * SECOND);
        assert_eq!(driven.lane.pending_bytes(), 0, "reserve {reserve}");
        assert!(!driven.lane.stats().is_full, "it resumes by itself");
        let mut done = done(&mut driven);
        done.sort_unstable();
        assert_eq!(done, [1, 2, 2]);
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        let state = &recovery.replicas[&key(2)];
        assert_eq!(state.hard_state.term, Term::new(term + 1));
    }
}

/// What a host does whose supervisor starts it again and again.
#[test]
fn fault_16_where_votes_have_no_room_left_it_opens_without_end() {
    const LIVES: u64 = 1_000;
    for is_closed in [false, true] {
        let options = options();
        let (disk, mut driven, term) = exhausted(11, &options);
        let used = disk.used_bytes();
        for life in 0..LIVES {
            if is_closed {
                let closed = driven.lane.close();
                assert_eq!(closed.is_err(), life == 0, "a vote waits: {closed:?}");
            } else {
                drop(driven);
            }
            disk.crash();
            let recovery;
            (driven, recovery) = Driven::open(&disk, &options);
            assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
            let state = &recovery.replicas[&key(2)];
            assert_eq!(state.hard_state.term, Term::new(term), "life {life}");
            assert_eq!(disk.used_bytes(), used);
            if life % 100 == 0 {
                // It writes what an idle lane does.
                driven.pass(SECOND);
            }
        }
        let refused = driven.lane.submit(append(&mut Rng(1), 3, 1, 10));
        assert!(matches!(refused, Err(LogError::StorageFull)), "{refused:?}");
        driven
            .lane
            .submit(compact(1, 1, 1_000))
            .expect("it is taken");
        driven.pass(5 * SECOND);
        assert_eq!(done(&mut driven), [1]);
        assert!(!driven.lane.stats().is_full, "it resumes by itself");
        driven.write(append(&mut Rng(1), 3, 1, 10));
    }
    crate::record("log opens of a full disk", "opens", 2 * LIVES);
}

/// A vote whose first slot was written, and its record was not, has to be recorded by the open.
#[test]
fn fault_16_a_crash_at_any_of_the_last_votes_leaves_room_to_open() {
    let options = options();
    let (disk, mut driven) = filled(13, &options);
    let mut term = 0;
    let mut found = BTreeSet::new();
    disk.record_crash_points();
    while driven.lane.pending_bytes() == 0 {
        term += 1;
        driven.lane.submit(vote(2, term)).expect("it is taken");
        driven.pass(SECOND / 10);
    }
    let durable = done(&mut driven).len() as u64;
    let points = disk.take_crash_points();
    assert!(points.len() > 20, "{}", points.len());
    for point in points {
        for keeps_odd in [false, true] {
            let disk = Arc::new(point.fork());
            disk.crash_keeping(|unit| (unit % 2 == 1) == keeps_odd);
            disk.set_capacity(Some(disk.used_bytes()));
            for _ in 0..2 {
                let (_, recovery) = open(&disk, &options).expect("it opens");
                assert_eq!(recovery.report.damaged, []);
                let state = recovery.replicas.get(&key(2));
                let term = state.map_or(0, |state| state.hard_state.term.get());
                found.insert(term);
                disk.crash();
            }
        }
    }
    assert!(found.contains(&durable), "{found:?} of {durable}");
}

/// The last vote that had room is proven durable when its burst ends, and by opens: damage to it is
/// no torn tail.
#[test]
fn fault_16_where_votes_have_no_room_left_the_last_one_is_proven() {
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        reserve_bytes: Some(64 << 10),
        ..options()
    };
    let (disk, mut driven, _) = exhausted(15, &options);
    driven.pass(SECOND);
    drop(driven);
    for life in 0..30 {
        let damaged = Arc::new(disk.fork());
        damaged.crash();
        let newest = segments(&damaged).pop().expect("there is one");
        let records = records(&content(&damaged, &newest));
        let last = records.iter().rfind(|(_, kind, ..)| *kind == 1);
        let (at, ..) = *last.expect("the last vote's");
        damaged.damage(&newest, |content| content[at + 64..at + 90].fill(0x55));
        // Nothing is written behind damage, and there is no room for a segment: it opens.
        for _ in 0..2 {
            let (mut driven, recovery) = Driven::open(&damaged, &options);
            let mut found = recovery.report.damaged.iter();
            let is_told = found.any(|found| found.segment > 0);
            assert!(is_told, "life {life}: {:?}", recovery.report);
            driven.lane.submit(vote(3, 1)).expect("it waits");
            driven.pass(SECOND);
            assert_eq!(done(&mut driven), [0; 0]);
            damaged.crash();
            drop(driven);
        }
        damaged.set_capacity(None);
        let (mut driven, _) = Driven::open(&damaged, &options);
        driven.write(vote(3, 1));
        disk.crash();
        drop(driven);
        open(&disk, &options).expect("it opens");
    }
}

/// A compaction that needs more than there is, and votes behind it that do not.
#[test]
fn fault_16_what_fits_passes_what_does_not() {
    let (_, mut driven) = filled(12, &options());
    let mut large = compact(3, 1, 1);
    large.snapshots = Some(SnapshotsRecord {
        retained: vec![SnapshotRecord {
            id: EntryId::ZERO,
            membership: vec![7; 20_000].into(),
        }],
    });
    driven.lane.submit(large).expect("it waits");
    driven.lane.submit(vote(2, 1)).expect("it is taken");
    driven.pass(SECOND);
    assert_eq!(done(&mut driven), [2]);
    driven.lane.submit(vote(2, 2)).expect("it is taken");
    driven
        .lane
        .submit(compact(1, 1, 1_000))
        .expect("it is taken");
    driven.pass(5 * SECOND);
    let mut done = done(&mut driven);
    done.sort_unstable();
    assert_eq!(done, [1, 2, 3]);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
}

/// Laggards in three sealed segments, all else of which is dead once group 9 compacts; those of group
/// 1, its entries to 20 of term 1, are the cheapest to move. The disk is full, and the last
/// entry of group 9 has no room. Returns what is next of group 9, too.
fn pinned(seed: u64, options: &LaneOptions) -> (Arc<SimVfs>, Driven, u64) {
    let disk = disk(seed);
    let (mut driven, _) = Driven::open(&disk, options);
    let mut rng = Rng(seed);
    disk.set_capacity(Some(disk.used_bytes() + 3 * options.segment_size_bytes));
    for index in 1..=20 {
        driven.write(append(&mut rng, 1, index, 20));
    }
    driven.write(vote(1, 2));
    let mut next = 1;
    for laggard in 2..=4 {
        let sealed = driven.lane.stats().sealed_segments;
        for index in 1..=10 {
            let bytes = if laggard == 2 { 20 } else { 1_000 };
            driven.write(append(&mut rng, laggard, index, bytes));
        }
        while laggard < 4 && driven.lane.stats().sealed_segments == sealed {
            driven.write(append(&mut rng, 9, next, 6_000));
            next += 1;
        }
    }
    while driven.lane.pending_bytes() == 0 {
        let is_full = driven.lane.stats().is_full;
        let bytes = if is_full { 300 } else { 6_000 };
        let append = append(&mut rng, 9, next, bytes);
        driven.lane.submit_admitted(append).expect("it is taken");
        next += 1;
        driven.pass(SECOND / 10);
    }
    driven.lane.take_completions();
    (disk, driven, next)
}

/// What waits overwrites what the log moves at that moment: it must not go before it.
#[test]
fn fault_16_what_the_log_moves_is_not_put_over_what_waited_for_room() {
    let options = LaneOptions {
        reserve_bytes: Some(16 << 10),
        ..options()
    };
    let (disk, mut driven, next) = pinned(22, &options);
    let mut rng = Rng(22);
    for index in 10..=12 {
        let mut over = Submission::new(key(1).0, key(1).1, index);
        let first = Index::new(index);
        over.entries = vec![batch(&mut rng, key(1).0, Term::new(2), first, 1, 600)];
        driven.lane.submit_admitted(over).expect("it waits");
    }
    driven.pass(SECOND);
    assert_eq!(done(&mut driven), [0; 0], "they wait");
    let moved = driven.lane.stats().moved_bytes;
    driven
        .lane
        .submit(compact(9, 1, next))
        .expect("it is taken");
    while driven.lane.stats().moved_bytes == moved {
        assert!(driven.step(), "laggards are moved");
    }
    driven.lane.submit(vote(1, 3)).expect("it is taken");
    driven.pass(5 * SECOND);
    assert_eq!(driven.lane.pending_bytes(), 0);
    let check = |reader: raft_log::LogReader| {
        let found = reader.entries(key(1).0, key(1).1, Index::new(9), Index::new(12), 1 << 20);
        let found = found.expect("they are there");
        let terms: Vec<u64> = found
            .iter()
            .flatten()
            .map(|entry| entry.term().get())
            .collect();
        assert_eq!(terms, [1, 2, 2, 2]);
        let range = reader.range(key(1).0, key(1).1);
        assert_eq!(range, Some((Index::new(1), Index::new(12))));
    };
    check(driven.lane.reader());
    disk.crash();
    drop(driven);
    let (lane, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    check(lane.reader());
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

/// Nobody waits for the time of the next attempt.
#[test]
fn a_close_tries_once_more_and_says_what_was_in_the_way() {
    for passes in [true, false] {
        let disk = disk(4);
        let (mut driven, _) = Driven::open(&disk, &options());
        driven.pass(SECOND);
        disk.fault_every("prepare", Some(Fault::Errno(24)));
        let mut rng = Rng(4);
        for index in 1..=60 {
            let submission = append(&mut rng, 1, index, 6_000);
            driven.lane.submit(submission).expect("it is taken");
        }
        driven.pass(SECOND / 2);
        let durable = driven.lane.take_completions().len();
        assert!(durable < 60, "the others wait");
        if passes {
            disk.fault_every("prepare", None);
        }
        let closed = driven.lane.close();
        match closed {
            Ok(()) => assert!(passes),
            Err(LogError::Io(error)) => assert!(!passes && error.op == "prepare", "{error}"),
            Err(error) => panic!("{error}"),
        }
        disk.crash();
        disk.fault_every("prepare", None);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        let last = recovery.replicas[&key(1)].last.index.get();
        assert_eq!(last == 60, passes, "{last}");
    }
}

/// A compaction that even the reserve has no room for waits, and is not tried again and again.
#[test]
fn fault_16_a_compaction_without_any_room_waits() {
    let options = LaneOptions {
        reserve_bytes: Some(0),
        ..options()
    };
    let (_, mut driven, _) = exhausted(13, &options);
    let before = driven.lane.pending_bytes();
    let mut polls = 0;
    for number in 1..=12 {
        let compaction = compact(1, number, 1 + number);
        driven.lane.submit(compaction).expect("it is taken");
        while driven.lane.poll(driven.now) == Progress::More {
            polls += 1;
            assert!(polls < 1_000, "it comes to an end");
        }
    }
    let pending = driven.lane.pending_bytes() - before;
    assert!(pending > 0, "the last ones wait");
    assert!(pending < 4_096, "{pending} bytes wait");
    drop(driven.lane.close());
}
