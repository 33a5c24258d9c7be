//! A record that is lost stops those who were in it, whatever of it is lost, and nobody else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use raft_log::vfs::SimVfs;
use raft_log::{Health, Submission};
use raft_proto::{GroupId, HardState, Index, ReplicaId, Term};

use crate::damage::{content, records, segments};
use crate::record;
use crate::workload::{Driven, Key, Rng, batch, disk, key, open, options};

const GROUPS: u64 = 12;

/// Whose items a table holds.
fn owners(table: &[u8]) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    let mut rest = table;
    while !rest.is_empty() {
        let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("eight"));
        let (group, replica) = (GroupId::new(number(8)), ReplicaId::new(number(16)));
        found.extend(group.zip(replica));
        let len = u32::from_le_bytes(rest[4..8].try_into().expect("four"));
        rest = &rest[24 + usize::try_from(len).expect("small")..];
    }
    found
}

/// A record of a log: where it begins, where its table ends, where it ends, whose it is.
struct Written {
    start: usize,
    table_end: usize,
    end: usize,
    owners: BTreeSet<Key>,
}

struct Log {
    disk: Arc<SimVfs>,
    path: PathBuf,
    records: Vec<Written>,
}

/// A closed log: records of one group and of several, small and large.
fn log(payload_max: u64) -> Log {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(payload_max);
    let mut next = vec![1_u64; usize::try_from(GROUPS).expect("small") + 1];
    for round in 0..40 {
        for _ in 0..1 + rng.below(3) {
            let group = 1 + rng.below(GROUPS);
            let at = &mut next[usize::try_from(group).expect("small")];
            let (group, replica) = key(group);
            let mut submission = Submission::new(group, replica, *at);
            let (term, from) = (Term::new(1), Index::new(*at));
            submission.entries = vec![batch(&mut rng, group, term, from, 1, payload_max)];
            submission.hard_state = Some(HardState {
                term,
                ..HardState::default()
            });
            *at += 1;
            driven.lane.submit(submission).expect("taken");
        }
        driven.settle();
        if round % 10 == 9 {
            driven.pass(300_000_000);
        }
    }
    driven.lane.close().expect("it closes");
    let path = segments(&disk)[0].clone();
    let whole = content(&disk, &path);
    let records = records(&whole).into_iter();
    let records = records.map(|(start, kind, table, data)| {
        let table_end = start + 64 + table;
        let owners = match kind {
            1 | 3 => owners(&whole[start + 64..table_end]),
            _ => BTreeSet::new(),
        };
        Written {
            start,
            table_end,
            end: (table_end + data).next_multiple_of(64),
            owners,
        }
    });
    Log {
        records: records.collect(),
        path,
        disk,
    }
}

/// Who is stopped.
fn stopped(disk: &Arc<SimVfs>, what: &str) -> BTreeSet<Key> {
    let (_, recovery) = open(disk, &options()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(recovery.report.torn_bytes(), 0, "{what}: nothing is cut");
    let report = &recovery.report;
    let is_told = !report.damaged.is_empty() || !report.mended.is_empty();
    assert!(is_told, "{what}: it is told");
    let replicas = recovery.replicas.into_iter();
    let stopped = replicas.filter(|(_, state)| state.health != Health::Sound);
    stopped.map(|(key, _)| key).collect()
}

/// Wrecks of an even and of an odd number of bits: the checksum tells the first from one flipped
/// bit for sure.
const WRECKS: [u8; 2] = [0x35, 0x07];

/// More than one bit is gone, of three bytes at most.
fn wreck(disk: &SimVfs, path: &std::path::Path, range: std::ops::Range<usize>, bits: u8) {
    disk.damage(path, |content| {
        range.take(3).for_each(|byte| content[byte] ^= bits);
    });
}

/// A bit alone is known by what it does to the checksum.
#[test]
fn fault_3_one_flipped_bit_of_a_header_or_a_table_is_told_and_stops_nobody() {
    let mut flips = 0;
    for payload_max in [0, 900] {
        let log = log(payload_max);
        // Behind the last two lies nothing that vouches for them.
        let proven = &log.records[..log.records.len() - 2];
        for (at, hit) in proven.iter().enumerate() {
            for byte in (hit.start..hit.table_end).step_by(1 + at % 5) {
                let disk = Arc::new(log.disk.fork());
                let bit = u8::try_from(byte % 8).expect("of eight");
                disk.flip_bit(&log.path, byte, bit);
                let before = content(&disk, &log.path);
                let what = format!("payload {payload_max} record {at} byte {byte} bit {bit}");
                assert_eq!(stopped(&disk, &what), BTreeSet::new(), "{what}");
                let end = hit.end;
                assert!(content(&disk, &log.path)[..end] == before[..end], "{what}");
                // Verifying all says the same.
                let strict = raft_log::LaneOptions {
                    verify_all: true,
                    ..options()
                };
                let (_, recovery) = open(&disk, &strict).expect("it opens");
                let health = recovery.replicas.values().map(|state| &state.health);
                assert!(
                    health.into_iter().all(|health| *health == Health::Sound),
                    "{what}"
                );
                flips += 1;
            }
        }
    }
    record("log bits of tables flipped and mended", "bits", flips);
    assert!(flips > 1_000, "{flips}");
}

/// It is no loss: a vote slot that cannot be read beside it is mended from the log, as beside a log
/// without a word to say, at every open.
#[test]
fn fault_20_a_mended_bit_makes_no_vote_unknown() {
    let log = log(60);
    let proven = &log.records[1..log.records.len() - 2];
    let votes = std::path::Path::new(crate::workload::DATA).join("votes");
    for hit in proven {
        for byte in [hit.start + 17, hit.start + 64 + 9] {
            let disk = Arc::new(log.disk.fork());
            disk.flip_bit(&log.path, byte, 4);
            for _ in 0..2 {
                disk.flip_bit(&votes, 4_096 + 11, 1);
                let (lane, recovery) = open(&disk, &options()).expect("it opens");
                let mended = recovery.report.mended.iter();
                let offsets: Vec<u64> = mended.map(|mended| mended.offset).collect();
                assert_eq!(offsets, [u64::try_from(hit.start).expect("small")]);
                let segments = recovery.report.damaged.iter().map(|found| found.segment);
                assert_eq!(segments.collect::<Vec<_>>(), [0], "the vote slot alone");
                for state in recovery.replicas.values() {
                    assert_eq!(state.health, Health::Sound);
                    assert_eq!(state.hard_state.term, Term::new(1));
                }
                lane.close().expect("it closes");
            }
        }
    }
}

/// In a segment that is gone through record by record, the table of a record in which one bit was
/// flipped is not believed if its header is not the one that is due.
#[test]
fn fault_3_a_table_is_mended_only_under_the_header_that_is_due() {
    let sealed = sealed();
    let whole = content(&sealed, &segments(&sealed)[0]);
    let records = records(&whole);
    let (footer, kind, ..) = records[records.len() - 1];
    assert_eq!(kind, 4);
    let incarnation = &whole[32..40];
    for is_due in [true, false] {
        let mut told = (0, 0);
        for (at, _, table, _) in &records[2..records.len() - 1] {
            let disk = Arc::new(sealed.fork());
            disk.damage(&segments(&sealed)[0], |content| {
                // It is gone through record by record for lack of a footer.
                content[footer..footer + 64].fill(0);
                content[at + 64 + table / 2] ^= 8;
                if !is_due {
                    content[at + 8] ^= 0x40;
                }
                let crc = raft_proto::crc32c_append(0, &content[*at..at + 60]);
                let crc = raft_proto::crc32c_append(crc, incarnation);
                let place = u64::try_from(*at).expect("small").to_le_bytes();
                let crc = raft_proto::crc32c_append(crc, &place).to_le_bytes();
                content[at + 60..at + 64].copy_from_slice(&crc);
            });
            let (_, recovery) = open(&disk, &options()).expect("it opens");
            let lost = recovery.report.damaged.iter();
            let lost = lost.filter(|found| found.reason.contains("table is lost"));
            told = (told.0 + recovery.report.mended.len(), told.1 + lost.count());
        }
        let count = records.len() - 3;
        let want = if is_due { (count, 0) } else { (0, count) };
        assert_eq!(told, want, "due: {is_due}");
    }
}

/// A closed log whose first segment is sealed.
fn sealed() -> Arc<SimVfs> {
    let disk = disk(5);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(5);
    for index in 1..=20 {
        let mut submission = Submission::new(key(1).0, key(1).1, index);
        let (term, from) = (Term::new(1), Index::new(index));
        submission.entries = vec![batch(&mut rng, key(1).0, term, from, 1, 9_000)];
        driven.write(submission);
    }
    driven.lane.close().expect("it closes");
    disk.crash();
    disk
}

#[test]
fn fault_4_a_lost_record_stops_those_who_were_in_it_and_nobody_else() {
    let mut cases = 0;
    for payload_max in [0, 60, 900] {
        let log = log(payload_max);
        assert_eq!(segments(&log.disk).len(), 2, "all in one, and a spare");
        let begins_in = |sector: usize, written: &&Written| written.start / 512 == sector;
        for (at, lost) in log.records.iter().enumerate().skip(1) {
            let rest = &log.records[at + 1..];
            if rest.len() < 2 {
                break;
            }
            let what = format!("payload {payload_max} record {at}");
            // Bits of its table: its header tells whose it is.
            for byte in (lost.start + 64..lost.table_end).step_by(17) {
                for bits in WRECKS {
                    let disk = Arc::new(log.disk.fork());
                    wreck(&disk, &log.path, byte..lost.table_end, bits);
                    assert_eq!(stopped(&disk, &what), lost.owners, "{what}: table");
                    cases += 1;
                }
            }
            // Its header: the next one tells of it, and of what began beside it.
            let beside = log.records[..=at].iter();
            let beside = beside.filter(|other| begins_in(lost.start / 512, other));
            let beside: BTreeSet<Key> = beside.flat_map(|other| &other.owners).copied().collect();
            for byte in (lost.start..lost.start + 64).step_by(7) {
                for bits in WRECKS {
                    let disk = Arc::new(log.disk.fork());
                    wreck(&disk, &log.path, byte..lost.start + 64, bits);
                    let stopped = stopped(&disk, &what);
                    assert!(stopped.is_superset(&lost.owners), "{what}: {stopped:?}");
                    assert!(stopped.is_subset(&beside), "{what}: {stopped:?}");
                    cases += 1;
                }
            }
        }
        // All that lies in a sector.
        let last = log.records.last().expect("records").start;
        let whole = content(&log.disk, &log.path);
        for sector in log.records[1].start / 512 + 1..last / 512 - 1 {
            let disk = Arc::new(log.disk.fork());
            let (from, to) = (sector * 512, sector * 512 + 512);
            if whole[from..to].iter().all(|byte| *byte == 0) {
                // Of what fills the page of a watermark nothing can be lost.
                continue;
            }
            disk.damage(&log.path, |content| content[from..to].fill(0));
            let what = format!("payload {payload_max} sector {sector}");
            let hit = log.records.iter();
            let hit = hit.filter(|other| other.start < to && from < other.end);
            let hit: BTreeSet<Key> = hit.flat_map(|other| &other.owners).copied().collect();
            let stopped = stopped(&disk, &what);
            assert!(stopped.is_subset(&hit), "{what}: {stopped:?} of {hit:?}");
            cases += 1;
        }
    }
    record("log records lost, and whose they were", "cases", cases);
    assert!(cases > 500, "{cases}");
}
