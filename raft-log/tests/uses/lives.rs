//! Several lives of a log in one process, on the real file system: what was read in one holds in the
//! next, no file stays open behind one, and another log's segments are not taken for its own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{StdVfs, Vfs};
use raft_log::{LaneOptions, LaneThread, LogReader, Submission, Wal};
use raft_proto::{Batch, BatchBuilder, EntryKind, Index, Term};

use crate::workload::key;

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        tail_cache_bytes_max: 0,
        ..LaneOptions::default()
    }
}

fn open(vfs: &Arc<dyn Vfs>, dir: &Path) -> LaneThread {
    let opened = LaneThread::open(Arc::clone(vfs), dir, options());
    opened.expect("it opens").0
}

/// Entries of 20,000 bytes, each durable before the next; all before `keep_from` is dropped.
fn append(log: &LaneThread, indexes: std::ops::RangeInclusive<u64>, byte: u8, keep_all: bool) {
    let (group, replica) = key(1);
    for index in indexes.map(Index::new) {
        let mut builder = BatchBuilder::new(group, Term::new(1), index, 0);
        builder.push(EntryKind::Command, 0, None, &[byte; 20_000]);
        let mut submission = Submission::new(group, replica, 0);
        submission.entries.extend(builder.finish());
        submission.compact_before = (!keep_all).then_some(index);
        log.append(submission).expect("it is durable");
    }
}

fn read(reader: &LogReader, last: u64) -> Vec<Batch> {
    let (group, replica) = key(1);
    let (first, last) = (Index::new(1), Index::new(last));
    let found = reader.entries(group, replica, first, last, usize::MAX);
    found.expect("they are there")
}

/// Files below `dir` that this process has open.
fn open_files(dir: &Path) -> usize {
    let dir = dir.canonicalize().expect("it is there");
    let files = std::fs::read_dir("/proc/self/fd").expect("it is Linux");
    let paths = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    paths.filter(|path| path.starts_with(&dir)).count()
}

#[test]
fn slices_outlive_the_log_that_gave_them() {
    for is_same_vfs in [true, false] {
        for keeps_reader in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let first_vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
            let log = open(&first_vfs, dir.path());
            append(&log, 1..=6, 1, true);
            let reader = log.reader();
            let held = read(&reader, 6);
            let kept = keeps_reader.then_some(reader);
            log.close().expect("it closes");
            let second_vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
            let vfs = if is_same_vfs { first_vfs } else { second_vfs };
            let log = open(&vfs, dir.path());
            append(&log, 7..=60, 2, false);
            let recycled = log.stats().held_segments;
            let old = kept.map(|reader| read(&reader, 6)).unwrap_or_default();
            append(&log, 61..=120, 3, false);
            for batch in held.iter().chain(&old) {
                let entries = batch.iter();
                let holds = |payload: &[u8]| payload.iter().all(|byte| *byte == 1);
                assert!(
                    entries.map(|entry| entry.payload()).all(holds),
                    "written over: same vfs {is_same_vfs}, reader kept {keeps_reader}"
                );
            }
            assert!(recycled > 0, "some were held");
            log.close().expect("it closes");
        }
    }
}

#[test]
fn what_is_held_of_a_segment_found_dead_by_an_open_is_not_written_over() {
    let (dir, aside) = (tempfile::tempdir(), tempfile::tempdir());
    let (dir, aside) = (dir.expect("a directory"), aside.expect("a directory"));
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    let log = open(&vfs, dir.path());
    append(&log, 1..=6, 1, true);
    let held = read(&log.reader(), 6);
    let lane = dir.path().join("log/0");
    let segments: Vec<_> = std::fs::read_dir(&lane).expect("it is there").collect();
    for segment in segments {
        let segment = segment.expect("it is there");
        let kept = aside.path().join(segment.file_name());
        std::fs::hard_link(segment.path(), kept).expect("linked");
    }
    append(&log, 7..=20, 2, false);
    log.close().expect("it closes");
    // As a process leaves them that died before it removed what was released.
    let mut dead = 0;
    for kept in std::fs::read_dir(aside.path()).expect("it is there") {
        let kept = kept.expect("it is there");
        if kept.metadata().expect("it is there").nlink() == 1 {
            std::fs::rename(kept.path(), lane.join(kept.file_name())).expect("renamed");
            dead += 1;
        }
    }
    assert!(dead > 0, "some died, and were held");
    let log = open(&vfs, dir.path());
    append(&log, 21..=60, 3, false);
    for batch in &held {
        let holds = |payload: &[u8]| payload.iter().all(|byte| *byte == 1);
        assert!(batch.iter().map(|entry| entry.payload()).all(holds));
    }
    log.close().expect("it closes");
}

#[test]
fn a_log_that_is_closed_leaves_no_file_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    for life in 0..3 {
        let log = open(&vfs, dir.path());
        append(&log, 1 + 20 * life..=20 + 20 * life, 1, true);
        assert!(open_files(dir.path()) > 3, "while it runs");
        let reader = log.reader();
        log.close().expect("it closes");
        assert_eq!(read(&reader, 20).len(), 20, "it is read all the same");
        drop(reader);
        assert_eq!(open_files(dir.path()), 0, "after life {life}");
    }
}

#[test]
fn fault_7_a_segment_of_another_log_made_at_defaults_is_foreign() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let vfs = || Arc::new(StdVfs::new());
    for (dir, word) in dirs.iter().zip(["mine", "theirs"]) {
        // Two lives: what was drawn is found again.
        for life in 0..2 {
            let (wal, report) = Wal::open(vfs(), dir.path(), options()).expect("it opens");
            assert!(report.foreign.is_empty(), "life {life}: {report:?}");
            wal.append(1, &[word]).expect("durable");
            wal.close().expect("it closes");
        }
    }
    let [mine, theirs] = dirs.map(|dir| (dir.path().join("log/0"), dir));
    let mut names: Vec<_> = std::fs::read_dir(&mine.0).expect("a directory").collect();
    names.retain(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        Path::new(&name).extension().is_some_and(|end| end == "seg")
    });
    let names = names
        .into_iter()
        .map(|entry| entry.expect("an entry").file_name());
    let first = names.min().expect("a segment");
    std::fs::copy(theirs.0.join(&first), mine.0.join(&first)).expect("copied");
    let (wal, report) = Wal::open(vfs(), mine.1.path(), options()).expect("it opens");
    assert_eq!(report.foreign.len(), 1, "{report:?}");
    let read: Vec<_> = wal.read(1, 1).filter_map(Result::ok).collect();
    assert!(
        read.iter().all(|(_, record)| record != "theirs"),
        "{read:?}"
    );
}
