//! What an open reads: tables and footers of what is sealed, whatever lies between.

use std::io::ErrorKind;

use raft_log::vfs::Fault;
use raft_log::{LaneOptions, RecoveryReport, Submission};
use raft_proto::{Index, Term};

use crate::workload::{Driven, Rng, batch, disk, key, open};

const SEGMENT: u64 = 256 << 10;

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: SEGMENT,
        ..crate::workload::options()
    }
}

/// The bytes that an open of a log of so many sealed segments reads, and all there are.
fn bytes_read(sealed: u64, entry_bytes: u64) -> (u64, u64) {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    let mut next = 1;
    while driven.lane.stats().sealed_segments < sealed {
        let mut submission = Submission::new(key(1).0, key(1).1, next);
        let (term, from) = (Term::new(1), Index::new(next));
        submission.entries = vec![batch(&mut rng, key(1).0, term, from, 8, entry_bytes)];
        next = submission.entries[0].last().index.next().get();
        driven.write(submission);
    }
    driven.lane.close().expect("it closes");
    let before = disk.bytes_read();
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    let read = disk.bytes_read() - before;
    assert_eq!(recovery.replicas[&key(1)].last.index, Index::new(next - 1));
    drop(lane);
    (read, disk.used_bytes())
}

#[test]
fn an_open_reads_tables_and_footers_alone() {
    for entry_bytes in [1_000, 3_500] {
        let (few, _) = bytes_read(10, entry_bytes);
        let (many, all) = bytes_read(40, entry_bytes);
        // Headers, trailer and footer: of each sealed segment a part that does not grow with it.
        let of_each = (many - few) / 30;
        assert!(
            of_each < SEGMENT / 16,
            "{of_each} bytes of each sealed segment"
        );
        // The newest is gone through, and what is free behind it.
        assert!(few < 4 * SEGMENT, "{few} bytes");
        assert!(many < all / 5, "{many} of {all} bytes");
    }
}

#[test]
fn segments_that_died_before_a_close_become_others_after_the_open() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(2);
    let mut next = 1;
    let mut turn_over = |driven: &mut Driven, segments: u64| {
        let end = driven.lane.stats().sealed_segments + segments;
        while driven.lane.stats().sealed_segments < end {
            let mut submission = Submission::new(key(1).0, key(1).1, next);
            let (term, from) = (Term::new(1), Index::new(next));
            submission.entries = vec![batch(&mut rng, key(1).0, term, from, 1, 4_000)];
            next = submission.entries[0].last().index.next().get();
            submission.compact_before = Some(from);
            driven.write(submission);
            driven.settle();
        }
    };
    turn_over(&mut driven, 5);
    driven.lane.close().expect("it closes");
    let used = disk.used_bytes();
    disk.fault_every("remove", Some(Fault::Error(ErrorKind::Other)));
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert_eq!(recovery.report, RecoveryReport::default());
    turn_over(&mut driven, 5);
    assert_eq!(disk.used_bytes(), used, "no file more, and none less");
}
