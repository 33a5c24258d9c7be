//! What a crash, or a call that fails, leaves behind of a segment on its way to its second life.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{Fault, SimVfs, Vfs};
use raft_log::{RecoveryReport, Submission};
use raft_proto::{Index, Term};

use crate::damage::{content, segments};
use crate::workload::{Driven, Rng, batch, disk, key, open, options};

/// Appends one entry and keeps three.
fn turn_over(driven: &mut Driven, rng: &mut Rng, index: u64) {
    let mut submission = Submission::new(key(1).0, key(1).1, index);
    let from = Index::new(index);
    submission.entries = vec![batch(rng, key(1).0, Term::new(1), from, 1, 4_000)];
    submission.compact_before = Some(Index::new(index.saturating_sub(3).max(1)));
    driven.lane.submit(submission).expect("it is taken");
    driven.pass(2_000_000_000);
    for done in driven.lane.take_completions() {
        done.result.expect("it is durable");
    }
}

fn number(path: &Path) -> u64 {
    let name = path.file_stem().and_then(|name| name.to_str());
    u64::from_str_radix(name.expect("a name"), 16).expect("a number")
}

/// The files whose header names another segment.
fn misnamed(disk: &SimVfs) -> BTreeSet<PathBuf> {
    let is_misnamed = |path: &PathBuf| {
        let head = content(disk, path);
        u64::from_le_bytes(head[24..32].try_into().expect("eight")) != number(path)
    };
    segments(disk).into_iter().filter(is_misnamed).collect()
}

/// A log in which a recycled segment has its new header and kept its old name, `more` appends ago.
fn left_over(more: u64) -> Arc<SimVfs> {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    let mut index = 0;
    // It can be neither renamed nor, then, removed.
    disk.fault_every("remove", Some(Fault::Error(ErrorKind::Other)));
    while misnamed(&disk).is_empty() {
        disk.fail_next("rename", ErrorKind::Unsupported);
        index += 1;
        assert!(index < 200, "one is recycled");
        turn_over(&mut driven, &mut rng, index);
    }
    disk.fault_next("rename", Fault::Short);
    disk.fault_every("remove", None);
    for _ in 0..more {
        index += 1;
        turn_over(&mut driven, &mut rng, index);
    }
    disk.crash();
    drop(driven);
    disk
}

#[test]
fn fault_8_a_segment_that_kept_its_old_name_is_nobodys_and_goes() {
    for more in [0, 1, 10, 40, 200] {
        let disk = left_over(more);
        let what = format!("{more} appends later");
        assert_eq!(misnamed(&disk).len(), 1, "{what}");
        // Whatever is lost of the removal, the next open does the same.
        for life in 0..3 {
            let (_, recovery) = open(&disk, &options()).expect("it opens");
            assert_eq!(
                recovery.report,
                RecoveryReport::default(),
                "{what}, life {life}"
            );
            assert_eq!(misnamed(&disk), BTreeSet::new(), "{what}, life {life}");
            disk.crash_keeping(|_| false);
        }
    }
}

/// What a lane has begun to make or to remove it waits for, as it does on a real disk, however it ends:
/// nothing of one life is done in the next. Where power is lost instead, it is not done at all.
#[test]
fn nothing_of_one_life_is_done_in_the_next() {
    let mut busy = 0;
    for (is_closed, steps) in [(true, 0), (false, 4), (false, 8), (false, 12), (false, 16)] {
        let disk = disk(3);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut rng = Rng(3);
        let mut submission = |from: u64| {
            let mut submission = Submission::new(key(1).0, key(1).1, from);
            let index = Index::new(from);
            submission.entries = vec![batch(&mut rng, key(1).0, Term::new(1), index, 1, 8_000)];
            submission
        };
        for from in 1..100 {
            driven.write(submission(from));
        }
        // All but the last of its segments die at once.
        let mut last = submission(100);
        last.compact_before = Some(Index::new(100));
        driven.lane.submit(last).expect("it is taken");
        for _ in 0..steps {
            driven.step();
        }
        let before = segments(&disk).len();
        assert!(before > 6 || steps > 8, "{before}");
        if is_closed {
            driven.lane.close().expect("it closes");
        } else {
            busy += u64::from(disk.next_completion_time().is_some());
            drop(driven);
        }
        let at_end = segments(&disk);
        if is_closed {
            assert_eq!(disk.next_completion_time(), None);
            // The active one, a spare, and two that are kept to become others.
            assert!(at_end.len() <= 4, "{at_end:?}");
        }
        // Of an earlier life's there are writes at most, to a file that nobody has open.
        disk.completions(raft_proto::Time(u64::MAX));
        assert_eq!(segments(&disk), at_end, "closed {is_closed}, {steps} steps");
    }
    assert!(busy > 1, "{busy}");
}

/// Whatever bit of its two headers is flipped, or of what lies behind them, it concerns nobody.
#[test]
fn fault_3_every_flipped_bit_of_a_segment_that_kept_its_old_name_concerns_nobody() {
    let disk = left_over(10);
    let path = misnamed(&disk).pop_first().expect("one");
    let (lane, whole) = open(&Arc::new(disk.fork()), &options()).expect("it opens");
    drop(lane);
    let len = content(&disk, &path).len();
    let mut flips = 0;
    let headers = (0..1_024).flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
    let rest = (1_024..len).step_by(127).map(|byte| (byte, 3));
    for (byte, bit) in headers.chain(rest) {
        let disk = Arc::new(disk.fork());
        disk.flip_bit(&path, byte, bit);
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        let what = format!("byte {byte} bit {bit}: {:?}", recovery.report);
        assert_eq!(recovery.replicas, whole.replicas, "{what}");
        assert_eq!(recovery.report.torn_bytes(), 0, "{what}");
        drop(lane);
        flips += 1;
    }
    crate::record("log bits of leftovers flipped", "bits", flips);
    assert!(flips > 8_192, "{flips}");
}

/// The same in the place of a segment that is missed: it may be that one, and is left alone.
#[test]
fn fault_7_a_misnamed_segment_that_is_missed_is_not_taken_for_a_leftover() {
    let disk = left_over(40);
    let (driven, _) = Driven::open(&disk, &options());
    disk.crash();
    drop(driven);
    let mut missed = 0;
    for path in segments(&disk) {
        let without = Arc::new(disk.fork());
        without.misplace(&path, None);
        let (_, recovery) = open(&without, &options()).expect("it opens");
        if recovery.report.missing.is_empty() {
            continue;
        }
        missed += 1;
        let disk = Arc::new(disk.fork());
        let before = content(&disk, &path);
        let free = path.with_file_name("0000000000000001.seg");
        disk.misplace(&path, Some(&free));
        for _ in 0..2 {
            let (_, recovery) = open(&disk, &options()).expect("it opens");
            let report = recovery.report;
            let is_told = !report.missing.is_empty() || report.foreign.len() == 1;
            assert!(is_told, "{path:?}: {report:?}");
            assert!(content(&disk, &free) == before, "{path:?}: it is kept");
            disk.crash();
        }
    }
    assert!(missed > 0, "there are segments in use");
}
