//! Room: a full disk, recycling, laggards.

use std::io::ErrorKind;

use raft_log::vfs::Fault;
use raft_log::{LaneOptions, LogError, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{BatchBuilder, EntryId, EntryKind, HardState, Index, ReplicaId, Term};

use crate::workload::{Driven, Key, Rng, batch, disk, key, open, options};

fn append(rng: &mut Rng, key: Key, next: &mut u64, bytes: u64) -> Submission {
    let mut submission = Submission::new(key.0, key.1, *next);
    let from = Index::new(*next);
    submission.entries = vec![batch(rng, key.0, Term::new(1), from, 1, bytes)];
    *next += 1;
    submission
}

#[test]
fn fault_16_a_full_disk_refuses_entries_keeps_voting_and_resumes_by_itself() {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    let (mut next, mut vote) = (1, 0);
    driven.write(append(&mut rng, key(1), &mut next, 4_000));
    driven.settle();
    disk.set_capacity(Some(disk.used_bytes()));
    let mut refused = 0;
    for _ in 0..80 {
        let submission = append(&mut rng, key(1), &mut next, 6_000);
        match driven.lane.submit(submission) {
            Ok(()) => {
                for done in driven.settle() {
                    done.result.expect("what was taken is durable");
                }
            }
            Err(LogError::StorageFull) => {
                next -= 1;
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        if refused > 0 {
            // Votes and compaction go on.
            vote += 1;
            let mut submission = Submission::new(key(2).0, key(2).1, vote);
            submission.hard_state = Some(HardState {
                term: Term::new(vote),
                vote: ReplicaId::new(20),
                ..HardState::default()
            });
            driven.write(submission);
        }
        if refused == 8 {
            break;
        }
    }
    assert_eq!(refused, 8);
    assert!(driven.lane.reader().space().is_full());
    assert!(driven.lane.stats().is_full);
    // Compaction alone makes room: dead segments come back as new ones.
    let mut submission = Submission::new(key(1).0, key(1).1, 1_000);
    submission.compact_before = Some(Index::new(next));
    driven.write(submission);
    driven.pass(3_000_000_000);
    assert!(!driven.lane.reader().space().is_full());
    driven.write(append(&mut rng, key(1), &mut next, 6_000));
    disk.set_capacity(None);
    drop(driven);
    disk.crash();
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.replicas[&key(2)].hard_state.term, Term::new(vote));
    let last = recovery.replicas[&key(1)].last.index;
    assert_eq!(last, Index::new(next - 1));
}

#[test]
fn fault_16_more_space_alone_is_enough() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(2);
    let mut next = 1;
    disk.set_capacity(Some(disk.used_bytes()));
    while let Ok(()) = driven
        .lane
        .submit(append(&mut rng, key(1), &mut next, 6_000))
    {
        driven.settle();
        assert!(next < 100, "it fills up");
    }
    next -= 1;
    disk.set_capacity(None);
    driven.pass(3_000_000_000);
    driven.write(append(&mut rng, key(1), &mut next, 6_000));
}

/// Compactions of all groups at once take seven times the reserve: they go in parts, each of which
/// frees what the next one needs. (The watermarks of the last burst take 8 KiB of it.)
#[test]
fn fault_16_compactions_beyond_the_reserve_go_on_in_what_they_free() {
    const GROUPS: u64 = 400;
    let options = LaneOptions {
        reserve_bytes: Some(24 << 10),
        ..options()
    };
    let disk = disk(14);
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut rng = Rng(14);
    for group in 1..=GROUPS {
        let mut next = 1;
        driven.write(append(&mut rng, key(group), &mut next, 6_000));
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let mut next = 2;
    while driven
        .lane
        .submit(append(&mut rng, key(1), &mut next, 6_000))
        .is_ok()
    {
        driven.settle();
    }
    next -= 1;
    driven.pass(2_000_000_000);
    driven.lane.take_completions();
    assert!(driven.lane.stats().is_full);
    let written = driven.lane.stats().written_bytes;
    for group in 1..=GROUPS {
        let before = if group == 1 { next } else { 2 };
        let mut submission = Submission::new(key(group).0, key(group).1, 1_000);
        submission.compact_before = Some(Index::new(before));
        submission.snapshots = Some(SnapshotsRecord {
            retained: vec![SnapshotRecord {
                id: EntryId::new(Term::new(1), Index::new(before - 1)),
                membership: vec![7; 300].into(),
            }],
        });
        driven.lane.submit(submission).expect("it is taken");
    }
    driven.pass(10_000_000_000);
    let done = driven.lane.take_completions().into_iter();
    let compacted = done.filter(|done| done.submission == 1_000 && done.result.is_ok());
    assert_eq!(compacted.count() as u64, GROUPS, "each is durable");
    assert!(driven.lane.stats().written_bytes - written > 6 * (24 << 10));
    assert!(!driven.lane.stats().is_full, "it resumes by itself");
    drop(driven);
    disk.crash();
    let (_, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    for group in 1..=GROUPS {
        let state = &recovery.replicas[&key(group)];
        assert_eq!(state.first, state.last.index.next(), "group {group}");
        assert_eq!(state.snapshots.len(), 1);
    }
}

/// Each segment holds a little that is needed: moving it, in the reserve, is what makes room.
#[test]
fn fault_16_a_full_disk_is_collected() {
    let disk = disk(12);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(12);
    let (mut next, mut laggard) = (1, 1);
    disk.set_capacity(Some(disk.used_bytes() + 5 * (64 << 10)));
    loop {
        let submission = append(&mut rng, key(1), &mut next, 6_000);
        if driven.lane.submit(submission).is_err() {
            next -= 1;
            break;
        }
        if next % 8 == 0 {
            let submission = append(&mut rng, key(2), &mut laggard, 100);
            if driven.lane.submit(submission).is_err() {
                laggard -= 1;
                break;
            }
        }
        driven.pass(2_000_000_000);
        for done in driven.lane.take_completions() {
            done.result.expect("what was taken is durable");
        }
        assert!(next < 200, "it fills up");
    }
    driven.pass(2_000_000_000);
    driven.lane.take_completions();
    assert!(driven.lane.stats().is_full && laggard > 4);
    let moved = driven.lane.stats().moved_bytes;
    let mut compact = Submission::new(key(1).0, key(1).1, 1_000);
    compact.compact_before = Some(Index::new(next));
    driven.write(compact);
    driven.pass(5_000_000_000);
    let stats = driven.lane.stats();
    assert!(!stats.is_full, "there is room: {stats:?}");
    assert!(stats.moved_bytes > moved);
    driven.write(append(&mut rng, key(1), &mut next, 6_000));
    drop(driven);
    disk.crash();
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let read = |group: u64, first: u64, last: u64| {
        let (first, last) = (Index::new(first), Index::new(last));
        lane.reader()
            .entries(key(group).0, key(group).1, first, last, 1 << 20)
    };
    read(2, 1, laggard - 1).expect("it is all there");
    read(1, next - 1, next - 1).expect("it is there");
}

const EMFILE: Fault = Fault::Errno(24);

#[test]
fn fault_18_out_of_file_descriptors_is_tried_again() {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(3);
    let mut next = 1;
    let mut segments = std::collections::BTreeSet::new();
    for _ in 0..60 {
        // Whatever is opened next, a segment to be made or one to be written, is refused once.
        disk.fault_next("open", EMFILE);
        driven
            .lane
            .submit(append(&mut rng, key(1), &mut next, 6_000))
            .expect("it is taken");
        driven.pass(3_000_000_000);
        for done in driven.lane.take_completions() {
            done.result.expect("it is durable");
        }
        assert_eq!(driven.lane.pending_bytes(), 0);
        segments.insert(driven.lane.stats().live_segments);
    }
    assert!(segments.len() > 2, "{segments:?}");
}

/// While there are none, the segment at hand is filled; then what is submitted waits, counted, and
/// nothing is acknowledged or lost, until there are some again.
#[test]
fn fault_18_out_of_file_descriptors_for_long_holds_submitters_back() {
    let disk = disk(4);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(4);
    let mut next = 1;
    disk.fault_every("open", Some(EMFILE));
    let (mut taken, mut done) = (0, 0);
    let mut pending = 0;
    for _ in 0..40 {
        let submission = append(&mut rng, key(1), &mut next, 6_000);
        driven.lane.submit(submission).expect("it is taken");
        taken += 1;
        driven.pass(3_000_000_000);
        for ended in driven.lane.take_completions() {
            ended.result.expect("it is durable");
            done += 1;
        }
        let waits = driven.lane.pending_bytes();
        assert!(
            waits >= pending,
            "what waits is counted: {waits} after {pending}"
        );
        assert_eq!(waits > 0, done < taken);
        pending = waits;
    }
    assert!(done > 3, "the segment at hand was filled: {done}");
    assert!(pending > 64 << 10, "the others wait: {pending} bytes");
    assert!(!driven.lane.stats().is_full, "the disk is not");
    disk.fault_every("open", None);
    driven.pass(3_000_000_000);
    for ended in driven.lane.take_completions() {
        ended.result.expect("it is durable");
        done += 1;
        assert_eq!(ended.submission, done, "in order");
    }
    assert_eq!(done, taken);
    assert_eq!(driven.lane.pending_bytes(), 0);
}

#[test]
fn dead_segments_are_recycled_and_the_disk_does_not_grow() {
    let disk = disk(5);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(5);
    let mut next = 1;
    let mut most = 0;
    for round in 0..400 {
        let mut submission = append(&mut rng, key(1), &mut next, 4_000);
        submission.compact_before = Some(Index::new(next.saturating_sub(3).max(1)));
        driven.write(submission);
        driven.settle();
        if round > 50 {
            most = most.max(disk.used_bytes());
        }
    }
    assert!(most < 9 * (64 << 10) + (200 << 10), "{most} bytes");
    assert!(driven.lane.stats().live_segments <= 3);
}

/// A log that is turned over, with a group that keeps all it has or without. Returns the lane, what
/// that group holds, in bytes and in entries.
fn turned_over(
    disk: &std::sync::Arc<raft_log::vfs::SimVfs>,
    options: &LaneOptions,
    has_laggard: bool,
) -> (Driven, u64, u64) {
    let (mut driven, _) = Driven::open(disk, options);
    let mut rng = Rng(6);
    let (mut next, mut laggard, mut own) = (1, 1, 0);
    for round in 0..2_000 {
        let mut submission = append(&mut rng, key(1), &mut next, 4_000);
        submission.compact_before = Some(Index::new(next.saturating_sub(3).max(1)));
        driven.write(submission);
        if has_laggard && round % 20 == 0 {
            let submission = append(&mut rng, key(2), &mut laggard, 500);
            own += u64::try_from(submission.entries_bytes()).expect("small");
            driven.write(submission);
        }
    }
    driven.pass(10_000_000_000);
    (driven, own, laggard)
}

#[test]
fn a_group_that_never_compacts_pins_its_own_bytes_and_one_segment() {
    let options = LaneOptions {
        collect_bytes_max: 16 << 10,
        ..options()
    };
    let (without, ..) = turned_over(&disk(6), &options, false);
    let disk = disk(6);
    let (driven, own, laggard) = turned_over(&disk, &options, true);
    let stats = driven.lane.stats();
    assert!(stats.moved_bytes > 0);
    // What the others take without it is not its doing.
    let others = without.lane.stats().live_segment_bytes;
    let pinned = stats.live_segment_bytes.saturating_sub(others);
    assert!(
        pinned <= own + options.segment_size_bytes,
        "{pinned} bytes pinned by {own} of its own: {stats:?}, {others} without it"
    );
    let reader = driven.lane.reader();
    let read = |reader: &raft_log::LogReader| {
        let last = Index::new(laggard - 1);
        let mut found = Vec::new();
        let mut next = Index::new(1);
        while next <= last {
            let batches = reader.entries(key(2).0, key(2).1, next, last, usize::MAX);
            for batch in batches.expect("it reads") {
                next = batch.last().index.next();
                found.push(batch.bytes().clone());
            }
        }
        found.concat()
    };
    let before = read(&reader);
    drop(driven);
    disk.crash();
    let (lane, recovery) = open(&disk, &options).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert_eq!(read(&lane.reader()), before);
}

/// The vote file is made anew when more replicas vote than it has room for. Whatever fails while it
/// is made, those who wait hear of it, or it is tried again.
#[test]
fn fault_16_a_vote_file_that_cannot_grow_loses_nobody() {
    let vote = |group: u64, term: u64| {
        let mut submission = Submission::new(key(group).0, key(group).1, term);
        submission.hard_state = Some(HardState {
            term: Term::new(term),
            vote: ReplicaId::new(group * 10),
            ..HardState::default()
        });
        submission
    };
    const ROOM: u64 = 1_024;
    for (op, kind, may_pass) in [
        ("prepare", ErrorKind::StorageFull, true),
        ("write", ErrorKind::StorageFull, true),
        ("write", ErrorKind::Other, false),
        ("sync", ErrorKind::Other, false),
        ("rename", ErrorKind::Other, false),
    ] {
        let disk = disk(9);
        let (mut driven, _) = Driven::open(&disk, &options());
        for group in 1..=ROOM {
            driven.lane.submit(vote(group, 1)).expect("it is taken");
        }
        for done in driven.settle() {
            done.result.expect("it is durable");
        }
        disk.fail_next(op, kind);
        driven.lane.submit(vote(ROOM + 1, 1)).expect("it is taken");
        driven.pass(3_000_000_000);
        let done = driven.lane.take_completions();
        assert_eq!(done.len(), 1, "{op} {kind}: its submitter hears");
        assert_eq!(done[0].result.is_ok(), may_pass, "{op} {kind}");
        drop(driven);
        disk.crash();
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        for group in 1..=ROOM {
            let term = recovery.replicas[&key(group)].hard_state.term;
            assert_eq!(term, Term::new(1), "{op} {kind}: group {group}");
        }
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    }
}

/// Appends one entry of so many bytes.
pub fn one(group: u64, index: u64, bytes: usize) -> Submission {
    let (group, replica) = key(group);
    let mut submission = Submission::new(group, replica, index);
    let mut batch = BatchBuilder::new(group, Term::new(1), Index::new(index), bytes);
    batch.push(EntryKind::Command, 0, None, &vec![7; bytes]);
    submission.entries.extend(batch.finish());
    submission
}

/// A long log in which one group keeps all of its entries, and another one none of those that it
/// writes beside each, if any.
fn long_log(options: &LaneOptions, own: usize, beside: Option<usize>) -> raft_log::LaneStats {
    let disk = disk(12);
    let (mut driven, _) = Driven::open(&disk, options);
    let rounds = 24 * options.segment_size_bytes / u64::try_from(own).expect("small");
    for index in 1..=rounds {
        driven.lane.submit(one(1, index, own)).expect("taken");
        if let Some(bytes) = beside {
            let mut submission = one(2, index, bytes);
            submission.compact_before = Some(Index::new(index + 1));
            driven.lane.submit(submission).expect("taken");
        }
        for done in driven.settle() {
            done.result.expect("it is durable");
        }
    }
    driven.pass(10_000_000_000);
    driven.lane.stats()
}

/// However small the part is that others leave behind in each segment of a long log, it comes to no
/// more than a segment in all, and moving costs no more than was written.
#[test]
fn what_others_leave_beside_a_group_that_never_compacts_is_one_segment_in_a_long_log_too() {
    let options = LaneOptions {
        segment_size_bytes: 512 << 10,
        collect_bytes_max: 16 << 10,
        ..options()
    };
    for (own, beside) in [
        (15_000, 1_300),
        (15_000, 700),
        (15_000, 3_000),
        (1_000, 1_000),
    ] {
        let alone = long_log(&options, own, None);
        assert_eq!(alone.moved_bytes, 0, "nothing has died");
        let stats = long_log(&options, own, Some(beside));
        assert!(stats.moved_bytes > 0, "{own} beside {beside}: {stats:?}");
        assert!(
            stats.moved_bytes < stats.written_bytes * 2 / 3,
            "{own} beside {beside}: {stats:?}"
        );
        // The one appended to may hold some as well.
        let most = alone.live_segment_bytes + 2 * options.segment_size_bytes;
        assert!(
            stats.live_segment_bytes <= most,
            "{own} beside {beside}: {stats:?}, alone {alone:?}"
        );
    }
}

#[test]
fn nothing_is_moved_where_nothing_has_died() {
    for (segment_size_bytes, bytes, groups) in [
        (64 << 10, 9_000, 3),
        (64 << 10, 1_000, 3),
        (256 << 10, 1_000, 64),
        (256 << 10, 100, 64),
        (256 << 10, 16, 64),
    ] {
        let options = LaneOptions {
            segment_size_bytes,
            ..options()
        };
        let disk = disk(11);
        let (mut driven, _) = Driven::open(&disk, &options);
        let mut index = 0;
        while driven.lane.stats().live_segments < 20 {
            index += 1;
            for group in 1..=groups {
                let submission = one(group, index, bytes);
                driven.lane.submit(submission).expect("taken");
            }
            for done in driven.settle() {
                done.result.expect("it is durable");
            }
        }
        let stats = driven.lane.stats();
        assert_eq!(stats.moved_bytes, 0, "{groups} x {bytes}: {stats:?}");
    }
}

/// There is always more to write when the disk has answered: what a laggard has in old segments is
/// moved all the same, even if its next entries are gathered just then.
#[test]
fn laggards_are_moved_while_the_log_is_never_idle() {
    for every in [1, 8] {
        let disk = disk(13);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut laggard = 0;
        for index in 1..=600 {
            let mut submission = one(2, index, 6_000);
            submission.compact_before = Some(Index::new(index));
            driven.lane.submit(submission).expect("taken");
            if index % every == 0 {
                laggard += 1;
                driven.lane.submit(one(1, laggard, 100)).expect("taken");
            }
            // What is gathered then waits for the disk to answer.
            while driven.lane.pending_bytes() > 8_000 {
                driven.step();
            }
            for completion in driven.lane.take_completions() {
                completion.result.expect("it is durable");
            }
        }
        let stats = driven.lane.stats();
        assert!(stats.moved_bytes > 0, "every {every}: {stats:?}");
        let own = laggard * (100 + 256) + u64::from(every == 1) * 4096;
        let segments = 2 + own.div_ceil(64 << 10) + 2;
        assert!(
            stats.live_segments <= segments,
            "every {every}: {segments}, {stats:?}"
        );
        driven.settle();
        drop(driven);
        disk.crash();
        let (lane, _) = open(&disk, &options()).expect("it opens");
        let (group, replica) = key(1);
        let (first, last) = (Index::new(1), Index::new(laggard));
        let read = lane.reader().entries(group, replica, first, last, 1 << 20);
        let entries: u64 = read
            .expect("all")
            .iter()
            .map(|batch| batch.iter().count() as u64)
            .sum();
        assert_eq!(entries, laggard);
    }
}

/// What a group may pin: its own bytes, what lies beside them (in a segment, watermarks and the end
/// that was too small for the next entry), one segment, and the one appended to.
fn bound(own: u64, batches: u64, live_segments: u64, segment_size_bytes: u64) -> u64 {
    own + 256 * batches + (live_segments << 14) + 2 * segment_size_bytes
}

/// Young entries come to lie beside what is moved, as the log is never idle: it is not moved again
/// and again for them, and a moment of peace is enough to get rid of them.
#[test]
fn what_is_moved_under_a_load_without_end_is_not_moved_for_ever() {
    let options = LaneOptions {
        segment_size_bytes: 256 << 10,
        record_bytes_max: 64 << 10,
        ..options()
    };
    let disk = disk(15);
    let (mut driven, _) = Driven::open(&disk, &options);
    for index in 1..=480 {
        driven.write(one(1, index, 7_000));
        driven.write(one(2, index, 3_000));
    }
    let mut compact = Submission::new(key(2).0, key(2).1, 1_000);
    compact.compact_before = Some(Index::new(481));
    driven.lane.submit(compact).expect("taken");
    for index in 1..=3_000 {
        let mut submission = one(3, index, 7_000);
        submission.compact_before = Some(Index::new(index + 1));
        driven.lane.submit(submission).expect("taken");
        while driven.lane.pending_bytes() > 8_000 {
            driven.step();
        }
        driven.lane.take_completions();
    }
    let own = 480 * 7_040;
    let busy = driven.lane.stats();
    assert!(busy.moved_bytes < 2 * own, "{busy:?}");
    driven.pass(10_000_000_000);
    let stats = driven.lane.stats();
    let most = bound(own, 480, stats.live_segments, options.segment_size_bytes);
    assert!(stats.live_segment_bytes <= most, "{most}, {stats:?}");
}

/// Much dies at once in a log that is at rest: that pays for all that must be moved.
#[test]
fn what_dies_at_once_is_collected_though_nothing_is_written() {
    let options = options();
    let disk = disk(16);
    let (mut driven, _) = Driven::open(&disk, &options);
    for index in 1..=200 {
        for group in 1..=4 {
            driven.write(one(group, index, 2_000));
        }
    }
    for group in 1..=3 {
        let mut compact = Submission::new(key(group).0, key(group).1, 1_000);
        compact.compact_before = Some(Index::new(201));
        driven.lane.submit(compact).expect("taken");
    }
    driven.pass(20_000_000_000);
    let stats = driven.lane.stats();
    let most = bound(
        200 * 2_040,
        200,
        stats.live_segments,
        options.segment_size_bytes,
    );
    assert!(stats.live_segment_bytes <= most, "{most}, {stats:?}");
    assert!(stats.moved_bytes <= 200 * 2_300, "once: {stats:?}");
}

/// There is always more to write: a group keeps all that it writes, and lies beside others that keep
/// nothing, whatever its part of the load is. It pins its own bytes and a segment, beside the one
/// appended to; one more at the times when what lives in it is moved. Moving costs less than was written.
#[test]
fn a_load_without_end_leaves_a_group_that_never_compacts_its_own_bytes_and_one_segment() {
    for (own, beside, segment_size_bytes) in [
        (500, 9_500, 64 << 10),
        (2_000, 6_000, 256 << 10),
        (5_000, 5_000, 256 << 10),
        (8_000, 2_000, 256 << 10),
        (15_000, 1_000, 256 << 10),
        (100, 100, 256 << 10),
    ] {
        let options = LaneOptions {
            segment_size_bytes,
            record_bytes_max: 64 << 10,
            ..options()
        };
        let what = format!("{own} beside {beside}");
        let disk = disk(17);
        let (mut driven, _) = Driven::open(&disk, &options);
        let to_u64 = |bytes: usize| u64::try_from(bytes).expect("small");
        let rounds = 40 * segment_size_bytes / to_u64(own + beside + 300);
        let mut above = 0;
        for index in 1..=rounds {
            let laggards = one(1, index, own);
            let mut others = one(2, index, beside);
            others.compact_before = Some(Index::new(index + 1));
            for submission in [laggards, others] {
                driven.lane.submit(submission).expect("taken");
            }
            while driven.lane.pending_bytes() > 8_000 {
                driven.step();
            }
            for done in driven.lane.take_completions() {
                done.result.expect("it is durable");
            }
            let stats = driven.lane.stats();
            let held = index * (to_u64(own) + 40);
            let most = bound(held, index, stats.live_segments, segment_size_bytes);
            let pinned = stats.live_segment_bytes;
            assert!(
                pinned <= most + segment_size_bytes,
                "{what}, {index} of {rounds}: {most}, {stats:?}"
            );
            above += u64::from(pinned > most);
        }
        let stats = driven.lane.stats();
        assert!(stats.segments_apart > 10, "{what}: {stats:?}");
        assert!(above < rounds / 10, "{what}: {above} of {rounds}");
        let for_load = stats.written_bytes - stats.moved_bytes;
        assert!(stats.moved_bytes < for_load, "{what}: {stats:?}");
    }
}
