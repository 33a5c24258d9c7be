//! The next segment cannot be made.

use raft_log::vfs::Fault;
use raft_log::{LaneOptions, LogError, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{BatchBuilder, EntryId, EntryKind, HardState, Index, ReplicaId, Term};

use crate::workload::{Driven, Rng, batch, disk, key, open, options};

const SECOND: u64 = 1_000_000_000;

/// Whether it passes by itself.
const ERRNOS: [(i32, bool); 7] = [
    (5, false),
    (30, false),
    (2, false),
    (13, false),
    (24, true),
    (12, true),
    (28, true),
];

/// Enough for three segments.
const ALL: u64 = 60;

fn told(count: usize) -> u64 {
    u64::try_from(count).expect("few")
}

fn vote(group: u64, term: u64) -> Submission {
    let (group, replica) = key(group);
    let mut submission = Submission::new(group, replica, term);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        vote: ReplicaId::new(1),
        commit: Index::ZERO,
    });
    submission
}

fn append(rng: &mut Rng, index: u64) -> Submission {
    let (group, replica) = key(1);
    let mut submission = Submission::new(group, replica, index);
    let from = Index::new(index);
    submission.entries = vec![batch(rng, group, Term::new(1), from, 1, 8_000)];
    submission
}

/// Those of others go on meanwhile; in the end everybody is told why, or it goes on.
#[test]
fn fault_18_nobody_waits_unheard_for_a_segment_that_cannot_be_made() {
    for (errno, passes) in ERRNOS {
        let disk = disk(41);
        let (mut driven, _) = Driven::open(&disk, &options());
        driven.write(vote(2, 1));
        driven.pass(SECOND);
        disk.fault_every("prepare", Some(Fault::Errno(errno)));
        let mut rng = Rng(1);
        let mut taken = 0;
        // All at once: nothing is known of the next segment yet.
        while taken < ALL {
            taken += 1;
            let submitted = driven.lane.submit(append(&mut rng, taken));
            submitted.expect("it is taken");
        }
        driven.pass(SECOND / 2);
        driven.lane.submit(vote(2, 2)).expect("it is taken");
        driven.pass(SECOND / 2);
        let done = driven.lane.take_completions();
        let voted = done.iter().find(|done| done.group == key(2).0);
        let voted = voted.expect("a vote waits for no segment");
        assert!(voted.result.is_ok(), "errno {errno}: {voted:?}");
        let appended = done.len() - 1;
        assert!((1..ALL).contains(&told(appended)), "{appended}");
        driven.pass(10 * SECOND);
        let refused = driven.lane.submit(append(&mut rng, taken + 1));
        let done = driven.lane.take_completions();
        if passes {
            let is_refused = matches!(refused, Err(LogError::StorageFull));
            assert!(is_refused == (errno == 28), "errno {errno}: {refused:?}");
            assert!(done.is_empty(), "errno {errno}: they wait");
            disk.fault_every("prepare", None);
            driven.pass(10 * SECOND);
            let done = driven.lane.take_completions();
            assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
            let all = ALL + u64::from(!is_refused);
            assert_eq!(told(appended + done.len()), all, "errno {errno}");
            continue;
        }
        let Err(LogError::Latched(reason)) = refused else {
            panic!("errno {errno}: {refused:?}");
        };
        assert!(
            reason.contains("the next segment cannot be made"),
            "{reason}"
        );
        assert_eq!(told(appended + done.len()), ALL, "all are told");
        assert!(done.iter().all(|done| done.result.is_err()), "{done:?}");
        disk.fault_every("prepare", None);
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        let last = recovery.replicas[&key(1)].last.index;
        assert_eq!(last, Index::new(told(appended)));
    }
}

/// Who waits for no segment goes on, as long as the one at hand lasts.
#[test]
fn fault_18_a_segment_that_nobody_waits_for_is_tried_for_ever() {
    let disk = disk(45);
    let (mut driven, _) = Driven::open(&disk, &options());
    disk.fault_every("prepare", Some(Fault::Errno(5)));
    for term in 1..=10 {
        driven.write(vote(2, term));
        driven.pass(SECOND);
    }
}

/// The end comes when a record is on its way: what is behind it does not hear before it.
#[test]
fn fault_18_a_lane_that_cannot_go_on_tells_each_in_order() {
    let disk = disk(46);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.pass(SECOND);
    disk.fault_every("prepare", Some(Fault::Errno(5)));
    disk.set_sync_latency(SECOND / 10);
    let mut rng = Rng(1);
    for index in 1..=ALL {
        let submitted = driven.lane.submit(append(&mut rng, index));
        submitted.expect("it is taken");
    }
    let mut told = Vec::new();
    let mut term = 0;
    while driven.lane.submit(vote(2, term + 1)).is_ok() {
        term += 1;
        assert!(term < 1_000, "it comes to an end");
        driven.pass(SECOND / 20);
        told.append(&mut driven.lane.take_completions());
    }
    driven.pass(SECOND);
    told.append(&mut driven.lane.take_completions());
    let votes = told.iter().filter(|done| done.group == key(2).0);
    let votes: Vec<u64> = votes.map(|done| done.submission).collect();
    let all: Vec<u64> = (1..=term).collect();
    assert_eq!(votes, all);
}

/// The next segment is there, and there is no descriptor for it.
#[test]
fn fault_18_a_segment_that_cannot_be_opened_holds_up_no_votes() {
    let disk = disk(47);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.write(vote(2, 1));
    disk.fault_every("open", Some(Fault::Errno(24)));
    driven.pass(SECOND);
    let mut rng = Rng(1);
    for index in 1..=ALL {
        let submitted = driven.lane.submit(append(&mut rng, index));
        submitted.expect("it is taken");
    }
    driven.pass(3 * SECOND);
    let durable = driven.lane.take_completions().len();
    for term in 2..=5 {
        driven.lane.submit(vote(2, term)).expect("it is taken");
        driven.pass(SECOND);
        assert_eq!(driven.lane.take_completions().len(), 1, "term {term}");
    }
    disk.fault_every("open", None);
    driven.pass(5 * SECOND);
    let done = driven.lane.take_completions().len();
    assert_eq!(told(durable + done), ALL);
}

/// A batch that needs a larger segment than the spare, which cannot be made.
#[test]
fn fault_18_whom_the_next_segment_suffices_goes_on() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        ..options()
    };
    let disk = disk(43);
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.write(vote(2, 1));
    driven.pass(SECOND);
    disk.set_capacity(Some(disk.used_bytes()));
    let mut rng = Rng(1);
    let mut large = Submission::new(key(1).0, key(1).1, 1);
    large.entries = vec![batch(
        &mut rng,
        key(1).0,
        Term::new(1),
        Index::new(1),
        40,
        8_000,
    )];
    assert!(large.entries_bytes() > 128 << 10);
    driven.lane.submit(large).expect("it is taken");
    for group in 2..=3 {
        let mut small = Submission::new(key(group).0, key(group).1, 2);
        small.entries = vec![batch(
            &mut rng,
            key(group).0,
            Term::new(1),
            Index::new(1),
            1,
            8_000,
        )];
        driven.lane.submit(small).expect("it is taken");
    }
    driven.lane.submit(vote(2, 3)).expect("it is taken");
    driven.pass(5 * SECOND);
    let done = |driven: &mut Driven| {
        let done = driven.lane.take_completions().into_iter();
        let mut groups: Vec<u64> = done.map(|done| done.group.get()).collect();
        groups.sort_unstable();
        groups
    };
    assert_eq!(done(&mut driven), [2, 2, 3]);
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [1]);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
}

fn of_size(group: u64, index: u64, bytes: usize) -> Submission {
    let (group, replica) = key(group);
    let mut submission = Submission::new(group, replica, index);
    let mut batch = BatchBuilder::new(group, Term::new(1), Index::new(index), bytes);
    batch.push(EntryKind::Command, 0, None, &vec![7; bytes]);
    submission.entries.extend(batch.finish());
    submission
}

/// A batch of group 1 waits for a larger segment than the spare. While one is tried to be made, somebody
/// else asks for less.
fn asked_for_less(driven: &mut Driven) {
    driven.vfs.set_capacity(Some(driven.vfs.used_bytes()));
    driven.lane.submit(of_size(1, 1, 150_000)).expect("taken");
    driven.pass(SECOND / 2);
    assert!(driven.lane.stats().is_full);
    while driven.vfs.next_completion_time().is_none() {
        assert!(driven.step(), "it is tried again");
    }
    let small = of_size(2, 2, 48_000);
    driven.lane.submit_admitted(small).expect("it is taken");
    driven.lane.take_completions();
}

/// Whose submissions have become durable, in order.
fn done(driven: &mut Driven) -> Vec<u64> {
    let done = driven.lane.take_completions().into_iter();
    let groups = done.map(|done| {
        done.result.expect("it is durable");
        done.group.get()
    });
    groups.collect()
}

/// Whoever needs the larger one asks for it again, and it cannot be made then either.
#[test]
fn fault_16_it_is_full_until_what_is_waited_for_can_be_made() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        ..options()
    };
    let disk = disk(43);
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.write(of_size(2, 1, 12_000));
    driven.pass(SECOND);
    asked_for_less(&mut driven);
    let end = driven.now.plus_nanos(5 * SECOND);
    while driven.now < end {
        driven.step();
        assert!(driven.lane.stats().is_full, "at {:?}", driven.now);
    }
    assert_eq!(done(&mut driven), [2], "the spare is enough for it");
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [1]);
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
}

/// Entries of others go on in the room that is left meanwhile, and in that alone: whoever waits for a
/// larger segment is next when there is room for it.
#[test]
fn fault_16_who_waits_for_a_larger_segment_holds_up_nobody_else() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        ..options()
    };
    let disk = disk(44);
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.write(of_size(2, 1, 1_000));
    driven.pass(SECOND);
    disk.set_capacity(Some(disk.used_bytes()));
    driven.lane.submit(of_size(1, 1, 150_000)).expect("taken");
    driven.pass(SECOND / 2);
    assert!(driven.lane.stats().is_full);
    let mut next = 2;
    while driven.lane.submit(of_size(2, next, 4_000)).is_ok() {
        driven.pass(SECOND / 10);
        assert_eq!(done(&mut driven), [2], "its own waits for nothing");
        next += 1;
        assert!(next < 100, "it fills up");
    }
    assert!(next > 10, "{next}");
    let own = driven.lane.submit(of_size(1, 2, 10));
    assert!(matches!(own, Err(LogError::StorageFull)), "{own:?}");
    assert_eq!(driven.lane.stats().sealed_segments, 0);
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [1]);
}

/// A segment that is free then leaves nothing to be made: they ask again nevertheless.
#[test]
fn fault_16_who_waits_asks_again_when_a_segment_is_free() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        ..options()
    };
    let disk = disk(48);
    let (mut driven, _) = Driven::open(&disk, &options);
    for index in 1..=3 {
        driven.write(of_size(3, index, 22_000));
    }
    driven.write(of_size(2, 1, 100));
    driven.pass(SECOND);
    assert_eq!(driven.lane.stats().sealed_segments, 1);
    asked_for_less(&mut driven);
    while driven.vfs.next_completion_time().is_some() {
        driven.step();
    }
    let mut compaction = Submission::new(key(3).0, key(3).1, 4);
    compaction.compact_before = Some(Index::new(4));
    driven.lane.submit(compaction).expect("it is taken");
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [3, 2], "the spare is enough for it");
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [1]);
}

/// Of two spares one alone can be made: it is there for entries, its reserve for the others.
#[test]
fn fault_16_entries_are_taken_as_long_as_a_spare_has_room_for_them() {
    let options = LaneOptions {
        spare_segments: 2,
        ..options()
    };
    let disk = disk(50);
    let (mut driven, _) = Driven::open(&disk, &options);
    disk.set_capacity(Some(disk.used_bytes() + options.segment_size_bytes));
    driven.write(vote(2, 1));
    driven.pass(SECOND);
    assert!(driven.lane.stats().is_full, "for want of the second one");
    let mut next = 1;
    while driven.lane.submit(of_size(1, next, 1_000)).is_ok() {
        next += 1;
        assert!(next < 1_000, "it fills up");
        driven.pass(SECOND / 100);
        assert_eq!(driven.lane.pending_bytes(), 0, "nothing waits");
    }
    assert_eq!(driven.lane.stats().sealed_segments, 1);
    assert!(next > 85, "both are used: {next}");
    driven.lane.take_completions();
    for term in 2..=5 {
        driven.write(vote(2, term));
    }
    assert_eq!(driven.lane.pending_bytes(), 0, "in the reserve");
}

fn snapshot_of(group: u64, number: u64, bytes: usize) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.snapshots = Some(SnapshotsRecord {
        retained: vec![SnapshotRecord {
            id: EntryId::ZERO,
            membership: vec![7; bytes].into(),
        }],
    });
    submission
}

/// What waited for a larger segment than the spare has gone on in the reserve, with votes: the disk is
/// not full for want of a segment that nobody asks for.
#[test]
fn fault_16_it_is_not_full_when_nobody_waits_and_there_is_a_spare() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        reserve_bytes: Some(32 << 10),
        ..options()
    };
    let disk = disk(49);
    let (mut driven, _) = Driven::open(&disk, &options);
    // Beside this checkpoint the spare has room for next to nothing.
    driven.write(snapshot_of(4, 1, 26_000));
    driven.write(snapshot_of(5, 1, 26_000));
    driven.write(of_size(1, 1, 150_000));
    driven.pass(SECOND);
    disk.set_capacity(Some(disk.used_bytes()));
    let wait = |driven: &mut Driven, append| {
        driven.lane.submit_admitted(append).expect("it is taken");
        while driven.vfs.next_completion_time().is_some() {
            driven.step();
        }
        driven.pass(SECOND / 10);
        assert!(driven.lane.stats().is_full);
        assert!(driven.lane.pending_bytes() > 0, "it waits");
    };
    wait(&mut driven, of_size(2, 1, 12_000));
    driven.write(vote(2, 2));
    driven.write(snapshot_of(4, 2, 10));
    driven.pass(SECOND / 2);
    assert_eq!(driven.lane.pending_bytes(), 0);
    while driven.vfs.next_completion_time().is_none() {
        assert!(driven.step(), "it is tried again");
    }
    wait(&mut driven, of_size(3, 1, 300));
    driven.write(vote(3, 2));
    assert_eq!(driven.lane.pending_bytes(), 0);
    assert!(driven.lane.stats().is_full, "nobody has asked since");
    driven.pass(SECOND);
    assert!(!driven.lane.stats().is_full);
}

/// The checkpoint of many replicas takes more than the spare: that is no next segment, and what
/// there is is left to votes.
#[test]
fn fault_18_a_spare_too_small_for_a_checkpoint_is_no_next_segment() {
    let disk = disk(44);
    let (mut driven, _) = Driven::open(&disk, &options());
    for group in 1..=450 {
        driven.lane.submit(vote(group, 1)).expect("it is taken");
    }
    driven.pass(SECOND);
    driven.lane.take_completions();
    disk.set_capacity(Some(disk.used_bytes()));
    let mut rng = Rng(1);
    let mut taken = 0;
    while driven.lane.pending_bytes() == 0 {
        taken += 1;
        assert!(taken < 1_000, "it fills up");
        let mut append = append(&mut rng, taken);
        let (group, term, from) = (key(1).0, Term::new(1), Index::new(taken));
        append.entries = vec![batch(&mut rng, group, term, from, 1, 200)];
        driven.lane.submit_admitted(append).expect("it is taken");
        driven.pass(SECOND / 10);
    }
    driven.pass(3 * SECOND);
    driven.lane.take_completions();
    for term in 2..=5 {
        driven.lane.submit(vote(2, term)).expect("it is taken");
        driven.pass(SECOND);
        assert_eq!(driven.lane.take_completions().len(), 1, "term {term}");
    }
    disk.set_capacity(None);
    driven.pass(5 * SECOND);
    assert_eq!(driven.lane.pending_bytes(), 0);
}

/// A spare that could not be made twice, and then could, is none.
#[test]
fn fault_18_a_segment_that_can_be_made_in_the_end_is_enough() {
    let disk = disk(42);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(2);
    for index in 1..=40 {
        if index % 10 == 0 {
            disk.fault_next("prepare", Fault::Errno(5));
        }
        driven.lane.submit(append(&mut rng, index)).expect("taken");
        driven.pass(2 * SECOND);
        let done = driven.lane.take_completions();
        assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    }
    assert_eq!(driven.lane.pending_bytes(), 0);
}

fn compaction(group: u64, number: u64, before: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.compact_before = Some(Index::new(before));
    submission
}

/// The checkpoint shrinks while entries wait for a larger segment on its account: the spare that is there
/// is enough for them then.
#[test]
fn fault_16_who_waits_asks_again_when_the_checkpoint_has_shrunk() {
    let disk = disk(52);
    let (mut driven, _) = Driven::open(&disk, &options());
    // Nothing of the log becomes free: there is something of group 4 in each segment.
    driven.write(of_size(4, 1, 100));
    for group in [5, 6] {
        driven.write(snapshot_of(group, 1, 30_000));
    }
    let mut next = 1;
    while driven.lane.stats().sealed_segments < 1 {
        driven.write(of_size(4, next + 1, 4_000));
        next += 1;
    }
    driven.pass(SECOND);
    disk.set_capacity(Some(disk.used_bytes()));
    let mut waiting = 0;
    while waiting == 0 {
        next += 1;
        driven.lane.submit(of_size(4, next, 4_000)).expect("taken");
        driven.pass(SECOND / 100);
        waiting = driven.lane.pending_bytes();
    }
    driven.pass(5 * SECOND);
    done(&mut driven);
    assert!(driven.lane.pending_bytes() > 0, "a larger one is needed");
    for group in [5, 6] {
        let mut submission = Submission::new(key(group).0, key(group).1, 2);
        submission.tombstone = true;
        driven.lane.submit(submission).expect("taken");
    }
    driven.pass(5 * SECOND);
    assert_eq!(done(&mut driven), [5, 6, 4]);
}

/// A full disk: entries have taken what they could of the room that was left, then so many compactions
/// that free nothing, or as many as found room. How many did; and whether one that frees segments did
/// then, and left the disk full.
fn compacted_at_last(reserve: u64, pad: usize, small: u64) -> (u64, bool, bool) {
    let disk = disk(53);
    let options = LaneOptions {
        reserve_bytes: Some(reserve),
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk, &options);
    // Two segments of group 2 alone.
    for index in 1..=40 {
        driven.write(of_size(2, index, 4_000));
    }
    for index in 1..=100 {
        driven.write(of_size(3, index, 10));
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let mut index = 1;
    while driven.lane.submit(of_size(1, index, 1_000 + pad)).is_ok() {
        driven.pass(SECOND / 100);
        index += 1;
        assert!(index < 200, "it fills up");
    }
    driven.lane.take_completions();
    let mut written = 0;
    for before in 2..2 + small {
        let compaction = compaction(3, 100 + before, before);
        driven.lane.submit(compaction).expect("taken");
        driven.pass(SECOND / 100);
        if driven.lane.take_completions().is_empty() {
            break;
        }
        written += 1;
    }
    driven.lane.submit(compaction(2, 41, 41)).expect("taken");
    driven.pass(5 * SECOND);
    let done = driven.lane.take_completions();
    let is_compacted = done.iter().any(|done| done.group == key(2).0);
    (written, is_compacted, driven.lane.stats().is_full)
}

/// What one compaction leaves is enough for the release of what it frees, however small the reserve: the
/// disk would stay full otherwise, before somebody else makes room.
#[test]
fn fault_16_a_compaction_leaves_room_for_the_release_of_what_it_frees() {
    for reserve in [1 << 10, 1 << 11, 4 << 10] {
        let mut compacted = 0;
        for pad in (0..512).step_by(64) {
            let (most, ..) = compacted_at_last(reserve, pad, 90);
            assert!(most < 90, "the disk is full");
            for small in most.saturating_sub(4)..=most {
                let (_, is_compacted, is_full) = compacted_at_last(reserve, pad, small);
                let what = format!("reserve {reserve}, {pad} bytes more, {small} compactions");
                assert!(!(is_compacted && is_full), "{what}");
                compacted += u64::from(is_compacted);
            }
        }
        assert!(compacted > 0, "{reserve}");
    }
}
