//! The numbers of segments: none is given out twice, and a gap between two is no loss.

use std::collections::BTreeSet;
use std::sync::Arc;

use raft_log::vfs::SimVfs;
use raft_log::{RecoveryReport, Submission};
use raft_proto::{Index, Term};

use crate::damage::{content, records, segments};
use crate::workload::{Driven, Rng, batch, disk, key, open, options};

fn number(path: &std::path::Path) -> u64 {
    let name = path.file_stem().and_then(|name| name.to_str());
    u64::from_str_radix(name.expect("a name"), 16).expect("a number")
}

fn numbers(disk: &SimVfs) -> BTreeSet<u64> {
    segments(disk).iter().map(|path| number(path)).collect()
}

/// Appends as much as fills some segments.
fn fill(driven: &mut Driven, next: &mut u64, rounds: u64) {
    let (group, replica) = key(1);
    let mut rng = Rng(*next);
    for _ in 0..rounds {
        let mut submission = Submission::new(group, replica, *next);
        let from = Index::new(*next);
        submission.entries = vec![batch(&mut rng, group, Term::new(1), from, 1, 9_000)];
        *next += 1;
        driven.write(submission);
    }
}

/// A log of some segments, closed or left as it is.
fn filled(is_closed: bool) -> Arc<SimVfs> {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    fill(&mut driven, &mut 1, 60);
    if is_closed {
        driven.lane.close().expect("it closes");
        disk.set_now(raft_proto::Time(0));
    } else {
        disk.crash_keeping(|_| true);
        drop(driven);
    }
    disk
}

#[test]
fn a_number_that_was_given_out_is_not_given_again() {
    for is_closed in [false, true] {
        let whole = filled(is_closed);
        let paths = segments(&whole);
        let given = numbers(&whole);
        // The newest ones are gone: spares alone, and segments in use with them.
        for gone in 1..=4 {
            let disk = Arc::new(whole.fork());
            for path in &paths[paths.len() - gone..] {
                disk.misplace(path, None);
            }
            let left = numbers(&disk);
            let (mut driven, recovery) = Driven::open(&disk, &options());
            let what = format!("closed {is_closed}, {gone} gone: {:?}", recovery.report);
            let is_lost = given.len() - gone < used(&whole).len();
            assert_eq!(!recovery.report.missing.is_empty(), is_lost, "{what}");
            assert!(
                recovery
                    .report
                    .missing
                    .iter()
                    .all(|number| given.contains(number))
            );
            let state = recovery.replicas.get(&key(1)).expect("it is known");
            let mut next = state.last.index.get() + 1;
            fill(&mut driven, &mut next, 20);
            let new: Vec<u64> = numbers(&disk).difference(&left).copied().collect();
            assert!(!new.is_empty(), "{what}");
            assert!(
                new.iter().all(|number| !given.contains(number)),
                "{what}: {new:?}"
            );
            // Said once: what follows goes on from there.
            disk.crash();
            drop(driven);
            let (_, recovery) = open(&disk, &options()).expect("it opens");
            assert_eq!(recovery.report.missing, [0_u64; 0], "{what}");
        }
    }
}

/// The segments that hold records.
fn used(disk: &SimVfs) -> Vec<u64> {
    let paths = segments(disk).into_iter();
    let used = paths.filter(|path| !records(&content(disk, path)).is_empty());
    used.map(|path| number(&path)).collect()
}

#[test]
fn fault_9_a_gap_in_the_numbers_is_no_missing_segment() {
    let disk = filled(false);
    let spare = segments(&disk).pop().expect("a spare");
    disk.misplace(&spare, None);
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert_eq!(recovery.report.missing, [0_u64; 0]);
    fill(&mut driven, &mut 61, 30);
    disk.crash();
    drop(driven);
    let used = used(&disk);
    let gap = used.windows(2).position(|pair| pair[1] > pair[0] + 1);
    let gap = gap.unwrap_or_else(|| panic!("{used:?} has a gap"));
    assert!(gap + 3 < used.len(), "{used:?}: some more behind it");
    let (_, recovery) = open(&Arc::new(disk.fork()), &options()).expect("it opens");
    assert_eq!(recovery.report, RecoveryReport::default());
    // One that is missing beside the gap is named for what it is.
    for at in [gap, gap + 1, used.len() - 1] {
        let disk = Arc::new(disk.fork());
        let paths = segments(&disk);
        let path = paths.iter().find(|path| number(path) == used[at]);
        disk.misplace(path.expect("it is there"), None);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.missing, [used[at]], "of {used:?}");
    }
}
