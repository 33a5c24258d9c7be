//! The end of a log: a write that was interrupted, headers that claim too much, a watermark that
//! is there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Health, LaneOptions, LogError, RecoveryReport, Submission};
use raft_proto::{EntryId, HardState, Index, Term, crc32c_append};

use crate::damage::{content, records, segments};
use crate::record;
use crate::workload::{
    DATA, Driven, Key, Model, Rng, Workload, agrees, batch, disk, key, open, options, seen_all,
};

/// A log whose last record is durable and proven by nothing.
struct Unproven {
    disk: Arc<SimVfs>,
    path: PathBuf,
    /// The record.
    start: usize,
    end: usize,
    before: Model,
    after: Model,
    /// Whose it is.
    owner: Key,
}

fn unproven(seed: u64) -> Unproven {
    unproven_of(seed, 60)
}

fn unproven_of(seed: u64, payload_max: u64) -> Unproven {
    let disk = disk(seed);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(seed, 3, payload_max);
    for _ in 0..6 {
        driven.write(workload.draw());
    }
    let (before, owner) = loop {
        let before = workload.model.clone();
        let submission = workload.draw();
        let has_entries = !submission.entries.is_empty();
        let owner = (submission.group, submission.replica);
        driven.write(submission);
        if has_entries {
            break (before, owner);
        }
    };
    disk.crash();
    drop(driven);
    let path = segments(&disk)[0].clone();
    let (start, kind, table, data) = *records(&content(&disk, &path)).last().expect("records");
    assert_eq!(kind, 1);
    Unproven {
        disk,
        path,
        start,
        end: (start + 64 + table + data).next_multiple_of(64),
        before,
        after: workload.model,
        owner,
    }
}

fn found(disk: &Arc<SimVfs>, what: &str) -> (Model, RecoveryReport) {
    let (lane, recovery) = open(disk, &options()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = seen_all(&lane, &recovery).expect("it reads");
    (found, recovery.report)
}

/// What was kept aside, all of it.
pub fn kept_aside(disk: &SimVfs) -> Vec<Vec<u8>> {
    let dir = Path::new(DATA).join("log/0");
    let entries = disk.list(&dir).expect("it lists");
    let cuts = entries.iter().filter(|entry| entry.name.ends_with(".cut"));
    cuts.map(|entry| content(disk, &dir.join(&entry.name)))
        .collect()
}

/// Where the opens cut off a tail, as their records say.
fn cuts_recorded(content: &[u8]) -> Vec<usize> {
    const OPENED: u8 = 11;
    let mut cuts = Vec::new();
    for (at, kind, table, _) in records(content) {
        let mut rest = &content[at + 64..at + 64 + table];
        while kind == 3 && !rest.is_empty() {
            let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("8"));
            let small = |number: u64| usize::try_from(number).expect("small");
            let len = u32::from_le_bytes(rest[4..8].try_into().expect("four"));
            if rest[0] == OPENED && number(24 + 16) > 0 {
                cuts.push(small(number(24 + 8)));
            }
            rest = &rest[24 + small(u64::from(len))..];
        }
    }
    cuts
}

#[test]
fn fault_1_a_tail_cut_at_every_byte_loses_that_record_alone() {
    let mut cases = 0;
    for seed in 0..4 {
        let log = unproven(seed);
        let whole = content(&log.disk, &log.path);
        for cut in log.start..=log.end {
            let disk = Arc::new(log.disk.fork());
            disk.damage(&log.path, |content| content[cut..log.end].fill(0));
            let left = content(&disk, &log.path);
            let is_whole = left == whole;
            let what = format!("seed {seed} cut at {cut}");
            let (first, report) = found(&disk, &what);
            let want = if is_whole { &log.after } else { &log.before };
            assert!(agrees(&first, want), "{what}");
            assert!(report.damaged.is_empty(), "{what}: {report:?}");
            let is_torn = !is_whole && whole[log.start..cut].iter().any(|&byte| byte != 0);
            assert_eq!(report.torn_bytes() > 0, is_torn, "{what}: {report:?}");
            if is_torn {
                let kept = kept_aside(&disk);
                assert_eq!(kept.len(), 1, "{what}");
                let kept = &kept[0];
                assert_eq!(*kept, left[log.start..log.start + kept.len()], "{what}");
                let rest = &left[log.start + kept.len()..log.end];
                assert!(rest.iter().all(|&byte| byte == 0), "{what}");
            }
            assert_eq!(
                cuts_recorded(&content(&disk, &log.path)),
                if is_torn { vec![log.start] } else { vec![] },
                "{what}"
            );
            // The cut is durable, and recorded: the next open finds nothing amiss.
            disk.crash();
            let (second, report) = found(&disk, &what);
            assert!(agrees(&second, want), "{what}");
            assert_eq!(report, RecoveryReport::default(), "{what}");
            cases += 1;
        }
    }
    record("log tails cut", "cases", cases);
    assert!(cases > 400, "{cases}");
}

/// Makes a record's header whole again after a change, as a later version would write it.
fn seal_header(content: &mut [u8], at: usize) {
    let crc = crc32c_append(0, &content[at..at + 60]);
    let crc = crc32c_append(crc, &content[32..40]);
    let offset = u64::try_from(at).expect("small").to_le_bytes();
    let crc = crc32c_append(crc, &offset);
    content[at + 60..at + 64].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn fault_12_lengths_that_claim_too_much_are_no_record_and_read_nothing() {
    for seed in 0..2 {
        let log = unproven(seed);
        for field in [24, 28] {
            for len in [
                0,
                1,
                1 << 16,
                0x1000_0000,
                0x1000_0001,
                u32::MAX - 63,
                u32::MAX,
            ] {
                for is_sealed in [false, true] {
                    let disk = Arc::new(log.disk.fork());
                    disk.damage(&log.path, |content| {
                        let at = log.start + field;
                        content[at..at + 4].copy_from_slice(&len.to_le_bytes());
                        if is_sealed {
                            seal_header(content, log.start);
                        }
                    });
                    let what = format!("field {field} of {len}, sealed {is_sealed}");
                    let (first, report) = found(&disk, &what);
                    assert!(agrees(&first, &log.before), "{what}");
                    assert!(report.torn_bytes() > 0, "{what}");
                    assert!(report.torn_bytes() < 64 << 10, "{what}: {report:?}");
                }
            }
        }
    }
}

#[test]
fn fault_13_a_record_of_a_later_version_or_kind_is_refused_and_nothing_is_touched() {
    let log = unproven(1);
    for (byte, value) in [(4, 4_u8), (5, 9)] {
        let disk = Arc::new(log.disk.fork());
        disk.damage(&log.path, |content| {
            content[log.start + byte] = value;
            seal_header(content, log.start);
        });
        let before = content(&disk, &log.path);
        let refused = open(&disk, &options()).map(|_| ());
        let Err(error @ LogError::NeedsVersion { version: 4, .. }) = refused else {
            panic!("byte {byte}: {refused:?}");
        };
        assert!(error.to_string().contains("needs version 4"), "{error}");
        assert_eq!(content(&disk, &log.path), before);
    }
}

#[test]
fn the_watermark_is_there_from_the_first_sync_on_and_covers_it() {
    let mut configurations = 0;
    for spare_segments in [1, 3] {
        for segment_size_bytes in [64 << 10, 1 << 20] {
            for record_bytes_max in [16 << 10, 4 << 20] {
                for verify_all in [false, true] {
                    for payload_max in [0, 20, 9_000] {
                        let options = LaneOptions {
                            spare_segments,
                            segment_size_bytes,
                            record_bytes_max,
                            verify_all,
                            ..options()
                        };
                        covers_the_first_sync(&options, payload_max);
                        configurations += 1;
                    }
                }
            }
        }
    }
    assert_eq!(configurations, 48);
}

fn covers_the_first_sync(options: &LaneOptions, payload_max: u64) {
    let disk = disk(13);
    let (mut driven, _) = Driven::open(&disk, options);
    let (group, replica) = key(1);
    let mut submission = Submission::new(group, replica, 1);
    let (term, from) = (Term::new(1), Index::new(1));
    submission.entries = vec![batch(&mut Rng(1), group, term, from, 1, payload_max)];
    driven.write(submission);
    // The burst ends: a watermark vouches for the one record there is.
    driven.pass(300_000_000);
    drop(driven);
    let path = segments(&disk)[0].clone();
    let whole = content(&disk, &path);
    let records = records(&whole);
    let data = records.iter().find(|record| record.1 == 1);
    let (at, _, table, data) = *data.expect("the record is there");
    let number = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().expect("eight"));
    let lsn = number(at + 8);
    let last = records.last().expect("the watermark").0;
    assert!(
        number(last + 16) >= lsn && lsn > 0,
        "the watermark is {}",
        number(last + 16)
    );
    // Each sector that holds a part of the record is lost with whatever else lies in it.
    for sector in at / 512..=(at + 63 + table + data) / 512 {
        let disk = Arc::new(disk.fork());
        disk.damage(&path, |content| {
            content[sector * 512..(sector + 1) * 512].fill(0)
        });
        let (_, recovery) = open(&disk, options).expect("it opens");
        let report = &recovery.report;
        assert!(!report.damaged.is_empty(), "sector {sector}: {report:?}");
        assert_eq!(report.torn_bytes(), 0);
    }
}

#[test]
fn hazard_30_a_submission_over_many_records_is_durable_in_order() {
    // Term before entries, entries before the commit index that names them, wherever it ends.
    let mut states = 0;
    let mut lasts = std::collections::BTreeSet::new();
    for seed in 0..3 {
        let disk = disk(seed);
        let (mut driven, _) = Driven::open(&disk, &options());
        let (group, replica) = key(1);
        let mut submission = Submission::new(group, replica, 1);
        let term = Term::new(7);
        for at in 0..5 {
            let from = Index::new(1 + at * 4);
            let one = batch(&mut Rng(seed + at), group, term, from, 4, 6_000);
            submission.entries.push(one);
        }
        assert!(submission.entries_bytes() > options().record_bytes_max);
        let hard_state = HardState {
            term,
            vote: None,
            commit: Index::new(20),
        };
        submission.hard_state = Some(hard_state);
        disk.record_crash_points();
        driven.write(submission);
        let mut rng = Rng(seed);
        for point in disk.take_crash_points() {
            for _ in 0..8 {
                let disk = Arc::new(point.fork());
                disk.crash_keeping(|_| rng.one_in(2));
                let (_, recovery) = open(&disk, &options()).expect("it opens");
                let report = &recovery.report;
                assert!(report.damaged.is_empty(), "{report:?}");
                states += 1;
                let Some(state) = recovery.replicas.get(&(group, replica)) else {
                    continue;
                };
                let (last, found) = (state.last, state.hard_state);
                assert!(found.commit <= last.index, "{state:?}");
                assert!(last.index == Index::ZERO || found.term == term, "{state:?}");
                assert_eq!(last.index.get() % 4, 0, "batches are whole");
                lasts.insert(last.index.get());
            }
        }
    }
    record(
        "log crashes, a submission of many records",
        "crash_states",
        states,
    );
    assert!(lasts.len() > 2, "it ended in between: {lasts:?}");
}

/// The last record is acknowledged, and nothing behind it tells of it: a sector of it that cannot be
/// read is no torn write. Its header says whose it is; where that is lost, too, or where more may have
/// followed in the same sector, it may be anybody's.
#[test]
fn fault_4_a_tail_that_cannot_be_read_is_not_cut_and_stops_its_owner_alone() {
    let (mut stops_one, mut stops_all) = (0, 0);
    for seed in 0..6 {
        let log = unproven_of(seed, [60, 2_000][usize::from(seed % 2 == 1)]);
        for sector in log.start / 512..=(log.end - 1) / 512 {
            let disk = Arc::new(log.disk.fork());
            disk.lose_sector(&log.path, sector);
            let what = format!("seed {seed} sector {sector}");
            let (lane, recovery) = open(&disk, &options()).expect("it opens");
            assert_eq!(recovery.report.torn_bytes(), 0, "{what}");
            assert!(!recovery.report.damaged.is_empty(), "{what}");
            assert_eq!(kept_aside(&disk), Vec::<Vec<u8>>::new(), "{what}");
            // Whoever is sound has all that was acknowledged.
            let reader = lane.reader();
            let mut stopped = Vec::new();
            for (key, state) in &recovery.replicas {
                if state.health == Health::Sound {
                    let found = crate::workload::seen(&reader, *key, state).expect("it reads");
                    assert_eq!(Some(&found), log.after.replicas.get(key), "{what}");
                } else {
                    stopped.push(*key);
                }
            }
            // Where it begins others begin, too, or may; and others may begin where it ends.
            if log.start < sector * 512 && (sector + 1) * 512 <= log.end {
                assert_eq!(stopped, [log.owner], "{what}");
                stops_one += 1;
            } else {
                assert!(stopped.contains(&log.owner), "{what}: {stopped:?}");
                stops_all += usize::from(stopped.len() > 1);
            }
        }
    }
    assert!(stops_one > 1, "{stops_one} sectors within the record");
    assert!(stops_all > 0, "{stops_all} sectors at its ends");
}

/// Appends until so many segments hold records. Returns what is next.
fn fill(
    driven: &mut Driven,
    disk: &SimVfs,
    group: u64,
    mut next: u64,
    segments_used: usize,
) -> u64 {
    let mut rng = Rng(next);
    let used = || {
        let used = segments(disk).into_iter();
        used.filter(|path| !records(&content(disk, path)).is_empty())
            .count()
    };
    while used() < segments_used {
        let (id, replica) = key(group);
        let mut submission = Submission::new(id, replica, next);
        let (term, from) = (Term::new(1), Index::new(next));
        submission.entries = vec![batch(&mut rng, id, term, from, 1, 9_000)];
        driven.write(submission);
        next += 1;
    }
    next
}

/// A segment in the middle is gone: whose entries lay there is stopped, and whoever has a snapshot or
/// a compaction behind them starts.
#[test]
fn fault_9_whoever_needs_nothing_of_a_missing_segment_starts() {
    let disk = disk(21);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(21);
    for group in 1..=3 {
        let (id, replica) = key(group);
        let mut submission = Submission::new(id, replica, 1);
        let (term, from) = (Term::new(1), Index::new(1));
        submission.entries = vec![batch(&mut rng, id, term, from, 2, 100)];
        driven.write(submission);
    }
    // The first keeps what it has, in all of them.
    let next = fill(&mut driven, &disk, 1, 3, 2);
    for group in 2..=3 {
        let (id, replica) = key(group);
        let mut submission = Submission::new(id, replica, 2);
        let (term, from) = (Term::new(1), Index::new(3));
        submission.entries = vec![batch(&mut rng, id, term, from, 2, 100)];
        driven.write(submission);
    }
    let next = fill(&mut driven, &disk, 1, next, 3);
    let (id, replica) = key(2);
    let mut received = Submission::new(id, replica, 3);
    received.restart_after = Some(EntryId::new(Term::new(2), Index::new(10)));
    driven.write(received);
    let (id, replica) = key(3);
    let mut compacted = Submission::new(id, replica, 3);
    compacted.compact_before = Some(Index::new(5));
    driven.write(compacted);
    fill(&mut driven, &disk, 1, next, 4);
    disk.crash();
    drop(driven);
    let middle = segments(&disk)[1].clone();
    disk.misplace(&middle, None);
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert_eq!(recovery.report.missing, [2], "{:?}", recovery.report);
    let health = |group: u64| &recovery.replicas[&key(group)].health;
    let Health::Damaged(damage) = health(1) else {
        panic!("it lost entries: {:?}", health(1));
    };
    assert!(
        damage.first <= damage.last,
        "the range is named: {damage:?}"
    );
    assert_eq!([health(2), health(3)], [&Health::Sound, &Health::Sound]);
    for (group, next) in [(2, 11), (3, 5)] {
        let (id, replica) = key(group);
        let mut submission = Submission::new(id, replica, 4);
        let (term, from) = (Term::new(2), Index::new(next));
        submission.entries = vec![batch(&mut rng, id, term, from, 2, 100)];
        driven.write(submission);
        let range = driven.lane.reader().range(id, replica);
        assert_eq!(range, Some((Index::new(next), Index::new(next + 1))));
    }
}

/// The newest segment is a spare, of any length that holds no more than a header: it is made again,
/// and used.
#[test]
fn fault_10_a_newest_segment_cut_within_its_header_is_made_again() {
    let whole = disk(22);
    let (mut driven, _) = Driven::open(&whole, &options());
    let next = fill(&mut driven, &whole, 1, 1, 2);
    driven.pass(1_000_000_000);
    whole.crash();
    drop(driven);
    let newest = segments(&whole).pop().expect("a spare");
    let size = content(&whole, &newest).len();
    for len in (0..=1_024).step_by(64).chain([1, 511, 513, 1_023]) {
        let disk = Arc::new(whole.fork());
        disk.damage(&newest, |content| content.truncate(len));
        let what = format!("{len} bytes");
        let (mut driven, recovery) = Driven::open(&disk, &options());
        assert!(
            recovery.report.damaged.is_empty(),
            "{what}: {:?}",
            recovery.report
        );
        let next = fill(&mut driven, &disk, 1, next, 3);
        driven.pass(1_000_000_000);
        for path in segments(&disk) {
            assert_eq!(content(&disk, &path).len(), size, "{what}: {path:?}");
        }
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        let last = recovery.replicas[&key(1)].last.index;
        assert_eq!(last, Index::new(next - 1), "{what}");
    }
}

/// A recovery that was interrupted while it kept a tail aside does it again: nothing of the first
/// time is left in the file.
#[test]
fn fault_2_what_is_kept_aside_is_the_tail_alone() {
    let log = unproven(3);
    log.disk.damage(&log.path, |content| {
        content[log.end - 1..log.end].fill(0xFF)
    });
    let disk = Arc::new(log.disk.fork());
    found(&disk, "a torn tail");
    let kept = kept_aside(&disk);
    assert_eq!(kept.len(), 1);
    let dir = Path::new(DATA).join("log/0");
    let entries = disk.list(&dir).expect("it lists").into_iter();
    let mut names = entries.map(|entry| entry.name);
    let name = names.find(|name| name.ends_with(".cut")).expect("one");
    let file = log.disk.open(&dir.join(name), true).expect("made");
    log.disk.write(file, 0, &[0xAA; 9_000]).expect("written");
    log.disk.close(file);
    found(&log.disk, "a torn tail, again");
    assert_eq!(kept_aside(&log.disk), kept);
}

/// What file systems write at a time lies in one page: the last of them, or the one before, is lost
/// after a burst's end and after a clean close. Who had acknowledged entries there is told.
#[test]
fn fault_4_the_loss_of_a_whole_page_at_the_end_is_damage() {
    const PAGE: usize = 4096;
    let (mut cases, mut lost) = (0, 0);
    for is_closed in [false, true] {
        for last in 1..40 {
            let disk = disk(31);
            let (mut driven, _) = Driven::open(&disk, &options());
            let (group, replica) = key(1);
            for index in 1..=last {
                let mut submission = Submission::new(group, replica, index);
                let (term, from) = (Term::new(1), Index::new(index));
                submission.entries = vec![batch(&mut Rng(index), group, term, from, 1, 600)];
                driven.write(submission);
            }
            driven.pass(300_000_000);
            if is_closed {
                driven.lane.close().expect("it closes");
            } else {
                disk.crash();
                drop(driven);
            }
            disk.set_now(raft_proto::Time(0));
            let path = segments(&disk)[0].clone();
            let whole = content(&disk, &path);
            let used = whole.iter().rposition(|byte| *byte != 0);
            let end = used.expect("there are records") / PAGE;
            for page in end.saturating_sub(2).max(1)..=end {
                let disk = Arc::new(disk.fork());
                disk.damage(&path, |content| {
                    content[page * PAGE..(page + 1) * PAGE].fill(0);
                });
                let (_, recovery) = open(&disk, &options()).expect("it opens");
                let state = recovery.replicas.get(&key(1));
                // Of one whose only record is lost, not even the name is known.
                let is_told = match state {
                    Some(state) => state.health != Health::Sound,
                    None => !recovery.report.damaged.is_empty(),
                };
                let found = state.map(|state| state.last.index);
                assert!(
                    is_told || found == Some(Index::new(last)),
                    "closed {is_closed}, page {page} of {last} records: {:?}",
                    recovery.report
                );
                lost += u64::from(is_told);
                cases += 1;
            }
        }
    }
    record("log pages lost at the end", "cases", cases);
    assert!(lost > 50, "{lost} of {cases}");
}
