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
    assert_eq!(recovery.report.torn_bytes, 0, "{what}: nothing is cut");
    assert!(!recovery.report.damaged.is_empty(), "{what}: it is told");
    let replicas = recovery.replicas.into_iter();
    let stopped = replicas.filter(|(_, state)| state.health != Health::Sound);
    stopped.map(|(key, _)| key).collect()
}

/// More than one bit is gone, of three bytes at most.
fn wreck(disk: &SimVfs, path: &std::path::Path, range: std::ops::Range<usize>) {
    disk.damage(path, |content| {
        range.take(3).for_each(|byte| content[byte] ^= 0x35);
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
                let disk = Arc::new(log.disk.fork());
                wreck(&disk, &log.path, byte..lost.table_end);
                assert_eq!(stopped(&disk, &what), lost.owners, "{what}: table");
                cases += 1;
            }
            // Its header: the next one tells of it, and of what began beside it.
            let beside = log.records[..=at].iter();
            let beside = beside.filter(|other| begins_in(lost.start / 512, other));
            let beside: BTreeSet<Key> = beside.flat_map(|other| &other.owners).copied().collect();
            for byte in (lost.start..lost.start + 64).step_by(7) {
                let disk = Arc::new(log.disk.fork());
                wreck(&disk, &log.path, byte..lost.start + 64);
                let stopped = stopped(&disk, &what);
                assert!(stopped.is_superset(&lost.owners), "{what}: {stopped:?}");
                assert!(stopped.is_subset(&beside), "{what}: {stopped:?}");
                cases += 1;
            }
        }
        // All that lies in a sector.
        let last = log.records.last().expect("records").start;
        for sector in log.records[1].start / 512 + 1..last / 512 - 1 {
            let disk = Arc::new(log.disk.fork());
            let (from, to) = (sector * 512, sector * 512 + 512);
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
