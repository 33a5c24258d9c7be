//! What the log allocates: a read gives out slices, an open keeps what does not grow with the log,
//! and nobody's claim is allocated. Alone in their program and one after the other, as the counts are
//! the program's.
#![allow(missing_docs, reason = "a test, not an interface")]

use std::alloc::System;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_log::vfs::{SimVfs, StdVfs, Vfs};
use raft_log::{Lane, LaneOptions, Submission};
use raft_proto::{BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time, crc32c_append};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MEBIBYTE: usize = 1 << 20;

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_read_of_a_mebibyte_allocates_less_than_4_kib() {
    let _alone = alone();
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

/// A log of so many mebibytes, closed.
fn filled(dir: &Path, mebibytes: u64) {
    let options = kept();
    let (mut lane, _) = Lane::open(Arc::new(StdVfs::new()), dir, options).expect("it opens");
    let replica = ReplicaId::new(1).expect("not 0");
    let mut next = 1;
    for round in 0..mebibytes * 16 {
        let group = GroupId::new(1 + round % 4).expect("not 0");
        let first = 1 + (round / 4) * 64;
        let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(first), 0);
        for _ in 0..64 {
            builder.push(EntryKind::Command, 0, None, &[3; 1_000]);
        }
        let mut submission = Submission::new(group, replica, next);
        submission.entries.extend(builder.finish());
        next += 1;
        lane.submit(submission).expect("taken");
        while lane.take_completions().is_empty() {
            lane.poll(Time(next));
        }
    }
    lane.close().expect("it closes");
}

fn kept() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 1 << 20,
        record_bytes_max: 256 << 10,
        scrub_bytes_per_s: 0,
        ..LaneOptions::default()
    }
}

/// Bytes that an open lane keeps, all of its log read once.
fn kept_bytes(dir: &Path) -> usize {
    let region = Region::new(GLOBAL);
    let (lane, recovery) = Lane::open(Arc::new(StdVfs::new()), dir, kept()).expect("it opens");
    let reader = lane.reader();
    for (key, state) in &recovery.replicas {
        let batches = reader.batches(key.0, key.1, state.first, state.last.index);
        let read: usize = batches.map(|batch| batch.expect("whole").len()).sum();
        assert!(read > 100);
    }
    let change = region.change();
    let kept = change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated);
    drop((lane, recovery));
    kept
}

#[test]
fn an_open_log_keeps_the_same_memory_whatever_its_size() {
    let _alone = alone();
    let sizes = [4, 16, 48].map(|mebibytes| {
        let dir = tempfile::tempdir().expect("a directory");
        filled(dir.path(), mebibytes);
        // The thread that prepares files allocates and frees beside it: the median of a few.
        let mut kept: Vec<usize> = (0..9).map(|_| kept_bytes(dir.path())).collect();
        kept.sort_unstable();
        kept[kept.len() / 2]
    });
    let [small, middle, large] = sizes;
    assert!(small > 1_000, "it is counted: {sizes:?}");
    // By segment, a span of each group, the file's name and handle, and the runs of its footer in a
    // bounded cache: some thousandth of what is in it, as segments here are small.
    assert!(middle - small.min(middle) < 12 * 1_800, "{sizes:?}");
    assert!(large - small.min(large) < 44 * 1_800, "{sizes:?}");
}

/// A log in which so many groups append one entry each in every round, closed. What an open of it
/// keeps, and how many segments it has.
fn kept_with_groups(groups: u64, rounds: u64) -> (usize, u64) {
    let vfs: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
    let path = Path::new("/data");
    vfs.create_dir_all(path).expect("made");
    let open = || Lane::open(Arc::clone(&vfs), path, kept()).expect("it opens");
    let (mut lane, _) = open();
    let replica = ReplicaId::new(1).expect("not 0");
    let mut now = 0;
    for round in 1..=rounds {
        for group in (1..=groups).filter_map(GroupId::new) {
            let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(round), 0);
            builder.push(EntryKind::Command, 0, None, &[3; 400]);
            let mut submission = Submission::new(group, replica, round);
            submission.entries.extend(builder.finish());
            lane.submit(submission).expect("taken");
        }
        while lane.pending_bytes() > 0 {
            now += 1_000_000;
            lane.poll(Time(now));
        }
        drop(lane.take_completions());
    }
    lane.close().expect("it closes");
    let region = Region::new(GLOBAL);
    let (lane, recovery) = open();
    drop(recovery);
    let change = region.change();
    let kept = change.bytes_allocated - change.bytes_deallocated;
    (kept, lane.stats().live_segments)
}

/// As the settings say where the size of a segment is chosen.
#[test]
fn the_index_takes_170_bytes_for_each_group_in_each_segment_at_most() {
    const GROUPS: u64 = 1_000;
    let _alone = alone();
    let (few, fewer) = kept_with_groups(GROUPS, 8);
    let (many, segments) = kept_with_groups(GROUPS, 40);
    let more = segments - fewer;
    assert!(more > 10, "{segments} after {fewer} segments");
    let spans = usize::try_from(more * GROUPS).expect("small");
    let of_each = (many - few) / spans;
    assert!((40..=170).contains(&of_each), "{of_each} bytes");
}

#[test]
fn fault_12_a_length_that_claims_too_much_is_not_allocated() {
    let _alone = alone();
    let vfs = Arc::new(SimVfs::new(1));
    vfs.create_dir_all("/data".as_ref()).expect("made");
    vfs.sync_dir("/".as_ref()).expect("it syncs");
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        ..LaneOptions::default()
    };
    let open = |disk: &Arc<SimVfs>| {
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(disk);
        Lane::open(vfs, "/data".as_ref(), options.clone()).expect("it opens")
    };
    drop(open(&vfs));
    vfs.crash();
    let path = Path::new("/data/log/0/0000000000000001.seg");
    let allocated = |disk: &Arc<SimVfs>| {
        let region = Region::new(GLOBAL);
        drop(open(disk));
        region.change().bytes_allocated
    };
    let usual = allocated(&Arc::new(vfs.fork()));
    // The header of the last record, which nothing proves, claims as much as any may, and more.
    let mut cases = 0;
    for field in [24, 28] {
        for len in [0x0FFF_FFC0_u32, 0x1000_0000, 0x7FFF_FFFF, u32::MAX] {
            let disk = Arc::new(vfs.fork());
            disk.damage(path, |content| {
                let used = content.iter().rposition(|byte| *byte != 0).expect("used");
                let at = (0..=used)
                    .rev()
                    .find(|at| content[*at..].starts_with(b"FRL1"));
                let at = at.expect("a record");
                content[at + field..at + field + 4].copy_from_slice(&len.to_le_bytes());
                let crc = crc32c_append(0, &content[at..at + 60]);
                let crc = crc32c_append(crc, &content[32..40]);
                let place = u64::try_from(at).expect("small").to_le_bytes();
                let crc = crc32c_append(crc, &place);
                content[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
            });
            let found = allocated(&disk);
            assert!(
                found < usual + (4 << 20),
                "{len:#x}: {found}, usually {usual}"
            );
            cases += 1;
        }
    }
    assert_eq!(cases, 8);
}
