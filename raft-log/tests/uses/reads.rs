//! Reading while the log goes on, on the real file system; and what an index takes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use raft_log::vfs::{ReadMode, SimVfs, StdVfs, Vfs};
use raft_log::{LaneOptions, LaneThread, LogError, LogReader, Submission, Wal};
use raft_proto::{Batch, BatchBuilder, EntryKind, Index, Term};

use crate::filled::{filled, quiet, read_all};
use crate::record;
use crate::workload::{Driven, Key, disk, key, open, options};

/// What entry `index` of a group holds.
fn payload(key: Key, index: u64) -> Vec<u8> {
    let seed = key.0.get().wrapping_mul(31) + index;
    let len = 500 + usize::try_from(seed % 1500).expect("small");
    vec![u8::try_from(seed % 251).expect("below 251"); len]
}

fn run_of(key: Key, first: u64, count: u64) -> Batch {
    let mut builder = BatchBuilder::new(key.0, Term::new(1), Index::new(first), 0);
    for index in first..first + count {
        builder.push(EntryKind::Command, 0, None, &payload(key, index));
    }
    builder.finish().expect("at least one")
}

fn check(key: Key, batches: &[Batch]) {
    for entry in batches.iter().flatten() {
        assert!(entry.payload() == payload(key, entry.index().get()));
    }
}

/// Writes, compacts, and so recycles and unlinks, while others read and hold what they read.
fn read_while_it_goes_on(mode: ReadMode) -> (u64, raft_log::LaneStats) {
    const ROUNDS: u64 = 200;
    const PER_ROUND: u64 = 8;
    const KEPT: u64 = 60;
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 128 << 10,
        record_bytes_max: 64 << 10,
        tail_cache_bytes_max: 0,
        footer_cache_bytes_max: 1 << 10,
        ..LaneOptions::default()
    };
    let vfs = Arc::new(StdVfs::with_read_mode(mode));
    let (log, _) = LaneThread::open(vfs, dir.path(), options).expect("it opens");
    let is_over = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for group in 1..=2 {
            let (reader, is_over, reads) = (log.reader(), &is_over, &reads);
            scope.spawn(move || {
                let mut held: Vec<Vec<Batch>> = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let key = key(group);
                    let Some((first, last)) = reader.range(key.0, key.1) else {
                        std::thread::yield_now();
                        continue;
                    };
                    match reader.entries(key.0, key.1, first, last, 64 << 10) {
                        Ok(batches) => {
                            check(key, &batches);
                            reads.fetch_add(1, Ordering::Relaxed);
                            held.push(batches);
                        }
                        // Compacted since it was asked for.
                        Err(LogError::NotFound { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if held.len() == 32 {
                        // Whatever has become of their segments, they are what they were.
                        held.iter().for_each(|batches| check(key, batches));
                        held.clear();
                    }
                }
                held.iter().for_each(|batches| check(key(group), batches));
            });
        }
        for round in 0..ROUNDS {
            let (done, durable) = channel();
            for group in 1..=2 {
                let key = key(group);
                let first = 1 + round * PER_ROUND;
                let mut submission = Submission::new(key.0, key.1, 0);
                submission.entries.push(run_of(key, first, PER_ROUND));
                let before = first.saturating_sub(KEPT).max(1);
                submission.compact_before = Some(Index::new(before));
                let done = done.clone();
                let told = log.submit(submission, move |result| drop(done.send(result)));
                told.expect("there is room");
            }
            for _ in 1..=2 {
                let result = durable.recv().expect("it is told");
                result.expect("it is durable");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stats = log.stats();
    log.close().expect("it closes");
    (reads.into_inner(), stats)
}

#[test]
fn a_term_is_told_of_each_entry_held_and_of_the_one_before_them() {
    let disk = disk(21);
    let (mut driven, _) = Driven::open(&disk, &options());
    let key = key(1);
    let terms = |driven: &Driven| -> Vec<Option<u64>> {
        let reader = driven.lane.reader();
        let term = |index| reader.term(key.0, key.1, Index::new(index));
        (0..8).map(|index| term(index).map(Term::get)).collect()
    };
    assert_eq!(terms(&driven), [None; 8], "nothing is known of it");
    let run = |term: u64, first: u64, count: u64| {
        let mut builder = BatchBuilder::new(key.0, Term::new(term), Index::new(first), 0);
        for _ in 0..count {
            builder.push(EntryKind::Command, 0, None, b"x");
        }
        builder.finish().expect("some")
    };
    let mut submission = Submission::new(key.0, key.1, 1);
    submission.entries = vec![run(1, 1, 3), run(2, 4, 3)];
    driven.write(submission);
    let want = [0, 1, 1, 1, 2, 2, 2].map(Some);
    assert_eq!(terms(&driven)[..7], want);
    assert_eq!(terms(&driven)[7], None, "past the last");
    let mut submission = Submission::new(key.0, key.1, 2);
    submission.compact_before = Some(Index::new(3));
    driven.write(submission);
    let want = [
        None,
        None,
        Some(1),
        Some(1),
        Some(2),
        Some(2),
        Some(2),
        None,
    ];
    assert_eq!(terms(&driven), want);
    // Another leader overwrites, and it is told once it is durable.
    let mut submission = Submission::new(key.0, key.1, 3);
    submission.entries = vec![run(4, 5, 1)];
    driven.lane.submit(submission).expect("taken");
    assert_eq!(terms(&driven), want);
    driven.settle();
    let want = [None, None, Some(1), Some(1), Some(2), Some(4), None, None];
    assert_eq!(terms(&driven), want);
    disk.crash();
    drop(driven);
    let (driven, _) = Driven::open(&disk, &options());
    assert_eq!(terms(&driven), want, "as the next open finds it");
}

#[test]
fn reads_hold_while_segments_rotate_are_recycled_and_unlinked() {
    let (reads, stats) = read_while_it_goes_on(ReadMode::Map);
    record("reads of a log that goes on", "cases", reads);
    assert!(reads > 10, "{reads}");
    // 4 MB in segments of 128 KiB: most of them have come and gone, some while they were held.
    assert!(stats.live_segments < 8, "{stats:?}");
    assert!(stats.held_segments > 0, "{stats:?}");
}

#[test]
fn reads_by_pread_hold_as_well() {
    let (reads, stats) = read_while_it_goes_on(ReadMode::Pread);
    record("reads of a log that goes on, by pread", "cases", reads);
    assert!(reads > 10, "{reads}");
    assert!(stats.live_segments < 8, "{stats:?}");
}

#[test]
fn batches_come_in_order_and_end_with_the_last_or_with_an_error() {
    let disk = filled(11, 20);
    let (mut lane, _) = open(&disk, &quiet()).expect("it opens");
    let reader = lane.reader();
    let (group, replica) = key(1);
    let all = |reader: &LogReader, from, to| -> Vec<Result<Batch, LogError>> {
        let (from, to) = (Index::new(from), Index::new(to));
        reader.batches(group, replica, from, to).collect()
    };
    let found = all(&reader, 1, 1_000);
    let bytes: Vec<u8> = found
        .iter()
        .flat_map(|batch| batch.as_ref().expect("it is whole").bytes().to_vec())
        .collect();
    assert!(bytes == read_all(&reader, key(1)).expect("it is whole"));
    let part = all(&reader, 8, 9);
    let indexes = part.iter().flatten().flat_map(Batch::iter);
    let indexes: Vec<u64> = indexes.map(|entry| entry.index().get()).collect();
    assert_eq!(indexes, [8, 9]);
    assert!(all(&reader, 41, 50).is_empty());
    let mut submission = Submission::new(group, replica, 99);
    submission.compact_before = Some(Index::new(5));
    lane.submit(submission).expect("taken");
    while lane.take_completions().is_empty() {
        lane.poll(raft_proto::Time(u64::MAX / 2));
        disk.set_now(raft_proto::Time(u64::MAX / 2));
    }
    assert!(matches!(
        all(&reader, 4, 9)[..],
        [Err(LogError::NotFound { .. })]
    ));
    assert_eq!(all(&reader, 5, 9).len(), 3);
}

#[test]
fn the_index_takes_half_a_byte_an_entry_at_most_and_less_when_sealed() {
    const GROUPS: u64 = 8;
    let options = LaneOptions {
        segment_size_bytes: 8 << 20,
        record_bytes_max: 4 << 20,
        ..options()
    };
    let disk = disk(12);
    let (mut driven, _) = Driven::open(&disk, &options);
    let reader = driven.lane.reader();
    let mut entries = 0;
    let mut per_entry = Vec::new();
    let mut first = 1;
    while driven.lane.stats().live_segments < 4 {
        for group in 1..=GROUPS {
            let key = key(group);
            let mut builder = BatchBuilder::new(key.0, Term::new(1), Index::new(first), 0);
            for _ in 0..256 {
                builder.push(EntryKind::Command, 0, None, &[1; 16]);
            }
            let mut submission = Submission::new(key.0, key.1, first);
            submission.entries.extend(builder.finish());
            driven.write(submission);
            entries += 256_u32;
        }
        first += 256;
        if entries > 50_000 {
            let bytes = u32::try_from(reader.index_bytes()).expect("small");
            per_entry.push(f64::from(bytes) / f64::from(entries));
        }
    }
    let most = per_entry.iter().copied().fold(0.0, f64::max);
    assert!(most <= 0.5, "{most} bytes an entry");
    assert!(most > 0.05, "{most} bytes an entry: it counts nothing");
    // Sealed segments cost by replica, not by entry: three of four here.
    let last = per_entry.last().copied().expect("there were some");
    assert!(last < 0.05, "{last} bytes an entry");
}

#[test]
fn what_a_stream_refuses_leaves_no_gap() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        record_bytes_max: 16 << 10,
        segment_size_bytes: 64 << 10,
        ..LaneOptions::default()
    };
    let open = || {
        let vfs = Arc::new(StdVfs::new());
        Wal::open(vfs, dir.path(), options.clone())
            .expect("it opens")
            .0
    };
    let wal = open();
    assert_eq!(wal.append(5, &["a"]).expect("durable"), 1..=1);
    let large = vec![0_u8; 17 << 10];
    assert!(matches!(
        wal.append(5, &[&large]),
        Err(LogError::TooLarge { .. })
    ));
    for nobody in [0, u64::MAX] {
        assert!(matches!(
            wal.append(nobody, &["x"]),
            Err(LogError::Config {
                field: "stream",
                ..
            })
        ));
    }
    assert!(matches!(
        wal.append(8, &[&large]),
        Err(LogError::TooLarge { .. })
    ));
    let none: [&str; 0] = [];
    assert!(wal.append(9, &none).expect("nothing to do").is_empty());
    assert_eq!(wal.streams(), [5], "nothing was appended to the others");
    assert!(wal.append(5, &none).expect("nothing to do").is_empty());
    assert_eq!(wal.append(5, &["b", ""]).expect("durable"), 2..=3);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    wal.append(6, &["x"]).expect("durable");
                }
            });
        }
    });
    wal.trim(5, 3).expect("durable");
    assert_eq!(wal.append(4, &["y"]).expect("durable"), 1..=1);
    // Once more, and one that never was.
    for stream in [4, 4, 17] {
        wal.remove(stream).expect("durable");
    }
    assert_eq!((wal.range(4), wal.streams()), (None, vec![5, 6]));
    let again = wal.append(4, &["z"]);
    assert!(matches!(again, Err(LogError::Gone { .. })), "{again:?}");
    let passes = wal.scrub_status().passes;
    wal.scrub();
    while wal.scrub_status().passes == passes {
        std::thread::yield_now();
    }
    assert_eq!(wal.take_damage(), []);
    assert!(wal.stats().records > 20 && wal.scrub_status().verified_bytes > 0);
    wal.close().expect("it closes");
    let wal = open();
    assert_eq!(wal.streams(), [5, 6]);
    assert_eq!(wal.range(5), Some(3..=3));
    assert_eq!(wal.range(6), Some(1..=20));
    assert_eq!(wal.range(7), None);
    let read = |stream, from| -> Vec<u64> {
        let records = wal.read(stream, from);
        records
            .map(|record| record.expect("it is whole").0)
            .collect()
    };
    assert_eq!(read(5, 3), [3]);
    assert_eq!(read(6, 15), [15, 16, 17, 18, 19, 20]);
    assert_eq!(read(9, 1), Vec::<u64>::new());
    assert_eq!(wal.append(5, &["c"]).expect("durable"), 4..=4);
}

/// The last batches are read from memory, whatever has become of the disk; those before them are
/// not kept.
#[test]
fn the_tail_is_read_from_memory_and_no_more_of_it_than_is_allowed() {
    let options = LaneOptions {
        tail_cache_bytes_max: 8 << 10,
        segment_size_bytes: 256 << 10,
        ..options()
    };
    let disk = disk(21);
    let (mut driven, _) = Driven::open(&disk, &options);
    let (group, replica) = key(1);
    let write = |driven: &mut Driven, index: u64, byte: u8| {
        let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(index), 0);
        builder.push(EntryKind::Command, 0, None, &[byte; 1_000]);
        let mut submission = Submission::new(group, replica, index);
        submission.entries.extend(builder.finish());
        driven.write(submission);
    };
    for index in 1..=40 {
        write(&mut driven, index, 1);
    }
    let reader = driven.lane.reader();
    let read = |index: u64| {
        let at = Index::new(index);
        let found = reader.entries(group, replica, at, at, usize::MAX)?;
        let entry = found[0].iter().next().expect("one entry");
        Ok::<u8, LogError>(entry.payload()[0])
    };
    // All payloads on the disk are lost: what is still read lies in memory.
    let path = crate::filled::segments(&disk).remove(0);
    disk.damage(&path, |content| {
        let lost = |window: &mut [u8]| window.iter().all(|byte| *byte == 1);
        for chunk in content.chunks_mut(64) {
            if lost(chunk) {
                chunk.fill(9);
            }
        }
    });
    let kept: Vec<u64> = (1..=40).filter(|&index| read(index).is_ok()).collect();
    assert!(kept.len() >= 4, "some are kept: {kept:?}");
    assert!(kept.len() <= 8, "8 KiB of them: {kept:?}");
    assert_eq!(kept.last(), Some(&40), "the last: {kept:?}");
    assert!(
        kept.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{kept:?}"
    );
    assert!(matches!(read(1), Err(LogError::Damaged { .. })));
    // One that is overwritten is not read any more, and what is in its place is.
    for byte in 2..5 {
        write(&mut driven, 39, byte);
        assert_eq!(read(39).expect("it is in memory"), byte);
        assert!(matches!(read(40), Err(LogError::NotFound { .. })));
    }
}

/// A batch that is larger than what is read at a time.
fn large_batch(first: u64, count: u64) -> Batch {
    let mut builder = BatchBuilder::new(key(1).0, Term::new(1), Index::new(first), 0);
    for index in first..first + count {
        let byte = u8::try_from(index % 251).expect("below 251");
        builder.push(EntryKind::Command, 0, None, &[byte; 1_000]);
    }
    builder.finish().expect("some")
}

/// Reading a batch piece by piece reads it once, whatever the piece; what lies before an entry is
/// looked through for its length alone.
#[test]
fn a_read_of_a_part_of_a_batch_costs_that_part() {
    const COUNT: u64 = 1_000;
    let options = LaneOptions {
        segment_size_bytes: 4 << 20,
        record_bytes_max: 2 << 20,
        ..quiet()
    };
    let disk = disk(22);
    let (mut driven, _) = Driven::open(&disk, &options);
    let (group, replica) = key(1);
    for number in 0..6 {
        let mut submission = Submission::new(group, replica, number);
        submission
            .entries
            .push(large_batch(1 + number * COUNT, COUNT));
        driven.write(submission);
    }
    assert!(driven.lane.stats().sealed_segments > 0);
    let reader = driven.lane.reader();
    let whole: u64 = 1_032 * COUNT;
    for first in [1, 1 + 5 * COUNT] {
        let last = Index::new(first + COUNT - 1);
        for window in [16 << 10, 64 << 10, 256 << 10, 4 << 20] {
            let before = disk.bytes_read();
            let (mut next, mut found) = (Index::new(first), Vec::new());
            while next <= last {
                let read = reader.entries(group, replica, next, last, window);
                let read = read.expect("it reads");
                assert!(read.iter().map(Batch::size_bytes).sum::<usize>() <= window);
                next = read.last().expect("some").last().index.next();
                found.extend(read);
            }
            let bytes: Vec<u8> = found
                .iter()
                .flat_map(|part| part.bytes().to_vec())
                .collect();
            assert!(bytes == *large_batch(first, COUNT).bytes());
            let read = disk.bytes_read() - before;
            assert!(read < whole * 5 / 4, "{read} of {whole} by {window}");
        }
        // One alone.
        for index in [0, COUNT / 2, COUNT - 1] {
            let at = Index::new(first + index);
            let before = disk.bytes_read();
            let read = reader
                .entries(group, replica, at, at, usize::MAX)
                .expect("it reads");
            assert_eq!((read.len(), read[0].len()), (1, 1));
            assert_eq!(read[0].first().index, at);
            let read = disk.bytes_read() - before;
            assert!(read < index * 1_032 + (256 << 10), "{read} for {index}");
        }
    }
}

/// What the log moves it reads once, in pieces, however large the batches are.
#[test]
fn moving_a_large_batch_reads_it_once() {
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        record_bytes_max: 512 << 10,
        ..quiet()
    };
    let disk = disk(23);
    let (mut driven, _) = Driven::open(&disk, &options);
    let before = disk.bytes_read();
    for index in 0..400 {
        if index % 100 == 0 {
            // Each in a segment of its own, most of which dies.
            let mut submission = Submission::new(key(1).0, key(1).1, index);
            submission.entries.push(large_batch(1 + index * 4, 400));
            driven.write(submission);
        }
        let mut submission = Submission::new(key(2).0, key(2).1, index);
        submission.entries.push(run_of(key(2), index * 10 + 1, 10));
        submission.compact_before = Some(Index::new(index * 10 + 11));
        driven.write(submission);
    }
    driven.pass(1_000_000_000);
    let moved = driven.lane.stats().moved_bytes;
    assert!(moved > 400 * 1_000, "{moved}");
    let read = disk.bytes_read() - before;
    assert!(read < 2 * moved, "{read} to move {moved}");
    let read = read_all(&driven.lane.reader(), key(1)).expect("it is whole");
    assert!(read == *large_batch(1, 1_600).bytes());
}

#[test]
fn a_stream_that_lost_a_record_is_removed() {
    let disk = Arc::new(SimVfs::new(8));
    let dir = Path::new("/data");
    disk.create_dir_all(dir).expect("made");
    let open = || {
        let options = LaneOptions {
            segment_size_bytes: 64 << 10,
            record_bytes_max: 16 << 10,
            verify_all: true,
            ..LaneOptions::default()
        };
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        Wal::open(vfs, dir, options).expect("it opens")
    };
    let (wal, _) = open();
    for (stream, word) in [(1, "sound"), (2, "to be lost")] {
        wal.append(stream, &[word]).expect("durable");
    }
    wal.close().expect("it closes");
    disk.damage(&dir.join("log/0/0000000000000001.seg"), |bytes| {
        let word = b"to be lost";
        let mut places = bytes.windows(word.len());
        let at = places.position(|window| window == word).expect("there");
        bytes[at] ^= 1;
    });
    let (wal, report) = open();
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    let refused = wal.append(2, &["more"]);
    assert!(
        matches!(refused, Err(LogError::Damaged { .. })),
        "{refused:?}"
    );
    wal.remove(2).expect("durable");
    let refused = wal.append(2, &["more"]);
    assert!(matches!(refused, Err(LogError::Gone { .. })), "{refused:?}");
    wal.close().expect("it closes");
    let (wal, _) = open();
    assert_eq!(wal.streams(), [1]);
    assert_eq!(wal.append(1, &["more"]).expect("durable"), 2..=2);
    wal.close().expect("it closes");
}
