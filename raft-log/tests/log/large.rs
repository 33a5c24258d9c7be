//! Writes larger than most: what a crash leaves of one is a torn tail, whatever its size.

use std::path::Path;
use std::sync::Arc;

use raft_log::tools::StoppedLane;
use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, Submission};
use raft_proto::{Index, Term};

use crate::workload::{DATA, Driven, Rng, batch, disk, key, open, options};

fn append(rng: &mut Rng, next: &mut u64, payload_max: u64) -> Submission {
    let (group, replica) = key(1);
    let mut submission = Submission::new(group, replica, *next);
    let from = Index::new(*next);
    submission.entries = vec![batch(rng, group, Term::new(1), from, 1, payload_max)];
    *next += 1;
    submission
}

/// Goes through every set of sectors that begins or ends a write under way.
fn torn(disk: &SimVfs, parts: usize) -> Vec<Arc<SimVfs>> {
    let units = disk.unsynced();
    assert!(units > 2 * parts, "{units} sectors are on their way");
    let crashed = |keep: &dyn Fn(usize) -> bool| {
        let disk = disk.fork();
        disk.crash_keeping(keep);
        Arc::new(disk)
    };
    let mut found = vec![crashed(&|unit| unit % 2 == 0)];
    for part in 1..parts {
        let edge = units * part / parts;
        found.push(crashed(&|unit| unit < edge));
        found.push(crashed(&|unit| unit >= edge));
        found.push(crashed(&|unit| unit != edge));
    }
    found
}

fn is_torn(disk: &Arc<SimVfs>, options: &LaneOptions, last: u64) {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.fork());
    let checked = StoppedLane::new(vfs, Path::new(DATA), 0).check();
    let checked = checked.expect("it looks");
    assert_eq!(checked.report.damaged, [], "the tools see it too");
    let (_, recovery) = open(disk, options).expect("it opens");
    assert_eq!(recovery.report.damaged, []);
    let found = recovery.replicas[&key(1)].last.index.get();
    assert!(found == last || found == last + 1, "{found} of {last}");
}

/// A footer lists a run for each batch: of many small ones it is larger than any record, and larger
/// than what is allowed for one.
#[test]
fn fault_1_a_footer_that_is_torn_is_no_damage() {
    let options = LaneOptions {
        segment_size_bytes: 6 << 20,
        record_bytes_max: 16 << 10,
        ..options()
    };
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut rng = Rng(1);
    let mut next = 1;
    let sealed = driven.lane.stats().sealed_segments;
    // Records of many batches, until the footer is on its way.
    let mut taken = 0;
    while disk.unsynced() < 2_200 {
        assert!(taken < 200_000, "a footer of a megabyte comes");
        for _ in 0..100 {
            driven
                .lane
                .submit(append(&mut rng, &mut next, 0))
                .expect("taken");
        }
        taken += 100;
        while driven.lane.pending_bytes() > 8 << 10 && disk.unsynced() < 2_200 {
            driven.step();
        }
    }
    assert_eq!(driven.lane.stats().sealed_segments, sealed);
    drop(driven);
    // More than any record, which is all that had been allowed for.
    assert!(disk.unsynced() * 512 > (1 << 20) + 2 * options.record_bytes_max);
    for disk in torn(&disk, 6) {
        let (_, recovery) = open(&disk, &options).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
    }
}

/// What the log itself moves in one go is bounded like a record, however much may be moved.
#[test]
fn fault_1_a_move_that_is_torn_is_no_damage() {
    let options = LaneOptions {
        segment_size_bytes: 8 << 20,
        record_bytes_max: 16 << 10,
        collect_bytes_max: 8 << 20,
        ..options()
    };
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut rng = Rng(3);
    let (mut next, mut other) = (1, 1);
    let (group, replica) = key(2);
    while driven.lane.stats().moved_bytes == 0 {
        assert!(next < 10_000, "laggards are moved");
        driven
            .lane
            .submit(append(&mut rng, &mut next, 8_000))
            .expect("taken");
        let mut garbage = Submission::new(group, replica, other);
        garbage.entries = vec![batch(
            &mut rng,
            group,
            Term::new(1),
            Index::new(other),
            1,
            15_000,
        )];
        other += 1;
        garbage.compact_before = Some(Index::new(other));
        driven.lane.submit(garbage).expect("taken");
        while driven.lane.pending_bytes() > 0 || disk.next_completion_time().is_some() {
            driven.step();
            if driven.lane.stats().moved_bytes > 0 {
                break;
            }
        }
    }
    driven.lane.take_completions();
    let before = disk.unsynced();
    while disk.unsynced() <= before {
        driven.step();
    }
    drop(driven);
    for disk in torn(&disk, 4) {
        is_torn(&disk, &options, next - 1);
    }
}

/// What was written under a larger bound is torn under it, whatever the bound is when it is found.
#[test]
fn fault_1_a_record_that_is_torn_is_no_damage_when_the_bound_was_lowered_since() {
    let large = LaneOptions {
        segment_size_bytes: 32 << 20,
        record_bytes_max: 24 << 20,
        ..options()
    };
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &large);
    let mut rng = Rng(2);
    let mut next = 1;
    driven.write(append(&mut rng, &mut next, 100));
    let (group, replica) = key(1);
    let mut submission = Submission::new(group, replica, next);
    let mut builder =
        raft_proto::BatchBuilder::new(group, Term::new(1), Index::new(next), 20 << 20);
    builder.push(raft_proto::EntryKind::Command, 0, None, &vec![7; 20 << 20]);
    submission.entries = builder.finish().into_iter().collect();
    driven.lane.submit(submission).expect("taken");
    driven.lane.poll(driven.now);
    drop(driven);
    let small = LaneOptions {
        record_bytes_max: 16 << 10,
        ..large
    };
    for disk in torn(&disk, 3) {
        is_torn(&disk, &small, next - 1);
    }
}
