//! A read gives out slices of the log: what it allocates does not grow with what it reads. Alone in
//! its program, as the counts are the program's.
#![allow(missing_docs, reason = "a test, not an interface")]

use std::alloc::System;
use std::sync::Arc;

use raft_log::vfs::StdVfs;
use raft_log::{Lane, LaneOptions, Submission};
use raft_proto::{BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MEBIBYTE: usize = 1 << 20;

#[test]
fn a_read_of_a_mebibyte_allocates_less_than_4_kib() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 4 << 20,
        // Nothing is served from memory of the log's own.
        tail_cache_bytes_max: 0,
        ..LaneOptions::default()
    };
    let (group, replica) = (GroupId::new(1), ReplicaId::new(1));
    let (group, replica) = (group.expect("not 0"), replica.expect("not 0"));
    let (mut lane, _) = Lane::open(Arc::new(StdVfs::new()), dir.path(), options).expect("it opens");
    // 1 MiB in one batch, in sixteen, and the same in a segment that is sealed by then.
    let mut next = 1;
    for batch in 0..64 {
        let entries = if batch % 16 == 0 { 1024 } else { 64 };
        let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(next), 0);
        for n in 0..entries {
            let byte = u8::try_from((next + n) % 251).expect("below 251");
            builder.push(EntryKind::Command, 0, None, &[byte; 1024]);
        }
        next += entries;
        let mut submission = Submission::new(group, replica, batch + 1);
        submission.entries.extend(builder.finish());
        lane.submit(submission).expect("taken");
        while lane.take_completions().is_empty() {
            lane.poll(Time(batch));
        }
    }
    assert!(lane.stats().live_segments > 1);
    let reader = lane.reader();
    let mut reads = 0;
    for from in [1, 1025, 2500, next - 1100] {
        let read = || {
            let (from, to) = (Index::new(from), Index::new(next));
            reader.entries(group, replica, from, to, MEBIBYTE)
        };
        // The first maps the file and reads the footer.
        drop(read().expect("it is there"));
        let region = Region::new(GLOBAL);
        let batches = read().expect("it is there");
        let change = region.change();
        let bytes: usize = batches.iter().map(raft_proto::Batch::size_bytes).sum();
        assert!(bytes > MEBIBYTE * 9 / 10 && bytes <= MEBIBYTE, "{bytes}");
        assert!(change.bytes_allocated < 4096, "from {from}: {change:?}");
        for entry in batches.iter().flatten() {
            let byte = u8::try_from(entry.index().get() % 251).expect("below 251");
            assert!(entry.payload().iter().all(|&found| found == byte));
        }
        reads += 1;
    }
    assert_eq!(reads, 4);
}
