//! Bits flipped, sectors lost, files missing: detected, always, and nobody else is concerned.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Health, LogError, Submission};
use raft_proto::{HardState, Term};

use crate::record;
use crate::workload::{
    DATA, Driven, Key, Model, Rng, Workload, agrees, batch, disk, key, open, options, seen,
};

/// A closed log, and what it holds.
pub struct Closed {
    pub disk: Arc<SimVfs>,
    pub model: Model,
    pub segments: Vec<PathBuf>,
    pub votes: PathBuf,
    /// What sectors held before: path, sector, content.
    older: BTreeSet<(PathBuf, usize, Vec<u8>)>,
}

impl Closed {
    pub fn new(disk: &SimVfs, model: Model) -> Self {
        Self {
            model,
            segments: segments(disk),
            votes: Path::new(DATA).join("votes"),
            older: BTreeSet::new(),
            disk: Arc::new(disk.fork()),
        }
    }
}

pub fn segments(disk: &SimVfs) -> Vec<PathBuf> {
    let dir = Path::new(DATA).join("log/0");
    let entries = disk.list(&dir).expect("it lists");
    let names = entries.iter().map(|entry| dir.join(&entry.name));
    names
        .filter(|path| path.extension().is_some_and(|found| found == "seg"))
        .collect()
}

/// Small records of every kind, then, with `sealed`, enough to seal segments.
fn closed(seed: u64, sealed: bool) -> Closed {
    let disk = disk(seed);
    disk.record_crash_points();
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(seed, 3, 40);
    for _ in 0..12 {
        driven.write(workload.draw());
    }
    driven.pass(300_000_000);
    if sealed {
        let mut rng = Rng(seed);
        for round in 0..25 {
            for group in 1..=3 {
                let (group, replica) = key(group);
                let model = workload.model.replicas.get(&(group, replica)).cloned();
                let model = model.unwrap_or_default();
                let mut submission = Submission::new(group, replica, 1_000 + round);
                let term = model.hard_state.term.max(Term::new(1));
                let from = model.last.index.next();
                submission.entries = vec![batch(&mut rng, group, term, from, 2, 3_000)];
                submission.hard_state = Some(HardState {
                    term,
                    ..model.hard_state
                });
                workload.model.apply(&submission);
                driven.write(submission);
            }
        }
    }
    driven.lane.close().expect("it closes");
    disk.set_now(raft_proto::Time(0));
    let history = disk.take_crash_points();
    let mut closed = Closed::new(&disk, workload.model);
    for path in closed.segments.iter().chain([&closed.votes]) {
        let whole = content(&disk, path);
        for before in &history {
            let Some(before) = maybe_content(before, path) else {
                continue;
            };
            let pairs = before.chunks_exact(512).zip(whole.chunks_exact(512));
            for (sector, (before, now)) in pairs.enumerate() {
                if before != now {
                    let older = (path.clone(), sector, before.to_vec());
                    closed.older.insert(older);
                }
            }
        }
    }
    closed
}

/// What an open of a damaged copy gave.
pub struct Found {
    pub is_reported: bool,
    pub torn_bytes: u64,
    has_ignored: bool,
    foreign: Vec<String>,
    /// Replicas that are not sound, or cannot be read whole.
    pub hurt: Vec<Key>,
}

/// Opens a damaged disk and holds every sound replica against the model.
pub fn look(disk: &Arc<SimVfs>, closed: &Closed, what: &str, twice: bool) -> Found {
    let (lane, recovery) = match open(disk, &options()) {
        Ok(opened) => opened,
        Err(LogError::NeedsVersion { .. }) => {
            return Found {
                is_reported: true,
                torn_bytes: 0,
                has_ignored: false,
                foreign: Vec::new(),
                hurt: Vec::new(),
            };
        }
        Err(error) => panic!("{what}: {error}"),
    };
    let report = &recovery.report;
    let mut found = Found {
        is_reported: report.torn_bytes() > 0
            || !report.damaged.is_empty()
            || !report.mended.is_empty()
            || !report.missing.is_empty()
            || !report.foreign.is_empty(),
        torn_bytes: report.torn_bytes(),
        has_ignored: !report.ignored.is_empty(),
        foreign: report.foreign.clone(),
        hurt: Vec::new(),
    };
    let reader = lane.reader();
    for (key, model) in &closed.model.replicas {
        let Some(state) = recovery.replicas.get(key) else {
            assert!(found.is_reported, "{what}: {key:?} is gone without a word");
            found.hurt.push(*key);
            continue;
        };
        if matches!(state.health, Health::Damaged(_) | Health::VoteUnknown) {
            found.hurt.push(*key);
            continue;
        }
        match seen(&reader, *key, state) {
            Ok(seen) => assert_eq!(&seen, model, "{what}: {key:?} is sound and wrong"),
            Err(LogError::Damaged { .. } | LogError::Io(_)) => found.hurt.push(*key),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    drop(lane);
    if !twice {
        return found;
    }
    // Opened again, it says the same of every replica.
    let (_, again) = open(disk, &options()).expect("it opened before");
    for (key, state) in &recovery.replicas {
        assert_eq!(
            again.replicas.get(key).map(|found| &found.health),
            Some(&state.health),
            "{what}: {key:?} changed with the second open"
        );
    }
    found
}

/// A checkpoint in the chain repeats what the records before it said: damage to it is told, and
/// stops nobody.
#[test]
fn fault_3_a_damaged_checkpoint_that_others_cover_hurts_nobody() {
    let closed = closed(7, true);
    let mut used = closed.segments.iter().filter(|path| {
        let content = content(&closed.disk, path);
        content[1_024..].iter().any(|byte| *byte != 0)
    });
    let newest = used.next_back().expect("there are records");
    for bit in 0..8 {
        let disk = Arc::new(closed.disk.fork());
        // The table of the first record, behind the headers of segment and record.
        disk.damage(newest, |content| content[1_024 + 64 + 40] ^= 1 << bit);
        let found = look(&disk, &closed, "a checkpoint", true);
        assert!(found.is_reported);
        assert_eq!(found.hurt, []);
    }
}

/// A name at the end of all numbers is no segment, and counting on from it overflows nothing.
#[test]
fn fault_11_a_name_beyond_all_numbers_is_ignored() {
    let closed = closed(8, false);
    let stray = Path::new(DATA).join("log/0/ffffffffffffffff.seg");
    let bytes = content(&closed.disk, &closed.segments[0]);
    let file = closed.disk.open(&stray, true).expect("it is made");
    closed.disk.write(file, 0, &bytes).expect("it is written");
    let found = look(&closed.disk, &closed, "a stray file", true);
    assert!(found.has_ignored);
    assert_eq!(found.hurt, []);
}

pub fn is_found_strictly(disk: &Arc<SimVfs>) -> bool {
    let options = raft_log::LaneOptions {
        verify_all: true,
        ..options()
    };
    let (_, recovery) = open(disk, &options).expect("it opened before");
    !recovery.report.damaged.is_empty() || !recovery.report.mended.is_empty()
}

pub fn content(disk: &SimVfs, path: &Path) -> Vec<u8> {
    maybe_content(disk, path).expect("it is there")
}

fn maybe_content(disk: &SimVfs, path: &Path) -> Option<Vec<u8>> {
    let file = disk.open(path, false).ok()?;
    let len = usize::try_from(disk.len(file).expect("a length")).expect("small");
    let bytes = disk.read(file, 0, len).expect("it reads");
    disk.close(file);
    Some(bytes.to_vec())
}

/// The records of a segment by their magic: offset, kind, table length, data length.
pub fn records(content: &[u8]) -> Vec<(usize, u8, usize, usize)> {
    let mut found = Vec::new();
    let mut at = 1024;
    while at + 64 <= content.len() && content[at..].starts_with(b"FRL1") {
        let len = |from: usize| {
            let bytes = content[at + from..at + from + 4].try_into().expect("four");
            usize::try_from(u32::from_le_bytes(bytes)).expect("small")
        };
        let (table, data) = (len(24), len(28));
        found.push((at, content[at + 5], table, data));
        at += (64 + table + data).next_multiple_of(64);
    }
    found
}

/// Bytes to be flipped, and in each all bits or one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bits {
    All,
    One,
    /// One, and it hurts one replica at most.
    OneOfEntries,
}

/// The bytes of a segment that say something: all bits of the first record of each kind and of
/// trailers, one bit of every other byte, and of large data of every 41st. In a small log each is
/// flipped: see `every_bit`.
fn telling_bytes(whole: &[u8], kinds: &mut BTreeSet<u8>) -> Vec<(usize, Bits)> {
    let records = records(whole);
    let mut bytes: Vec<(usize, Bits)> = (0..1024).map(|at| (at, Bits::One)).collect();
    for (at, kind, table, data) in &records {
        let bits = if kinds.insert(*kind) {
            Bits::All
        } else {
            Bits::One
        };
        let data_at = at + 64 + table;
        let data_end = data_at + data;
        let end = data_end.next_multiple_of(64);
        let step = if data_at + 2_000 < end { 41 } else { 1 };
        bytes.extend((*at..data_at).map(|at| (at, bits)));
        bytes.extend((data_at..end).step_by(step).map(|at| {
            let is_entry = *kind == 1 && at < data_end;
            (at, if is_entry { Bits::OneOfEntries } else { bits })
        }));
    }
    if records.last().is_some_and(|last| last.1 == 4) {
        bytes.extend((whole.len() - 64..whole.len()).map(|at| (at, Bits::All)));
    }
    bytes
}

#[test]
fn fault_3_flipped_bits_of_every_kind_of_record_in_a_large_log_are_found() {
    let mut flips = 0;
    let mut alone = 0;
    let mut kinds = BTreeSet::new();
    let closed = closed(2, true);
    for path in &closed.segments {
        let whole = content(&closed.disk, path);
        if records(&whole).is_empty() {
            continue;
        }
        for (byte, bits) in telling_bytes(&whole, &mut kinds) {
            let some = u8::try_from(Rng(byte as u64).below(8)).expect("a bit");
            let all = match bits {
                Bits::All => 0..8,
                Bits::One | Bits::OneOfEntries => some..some + 1,
            };
            for bit in all {
                let disk = Arc::new(closed.disk.fork());
                disk.flip_bit(path, byte, bit);
                let what = format!("{path:?} byte {byte} bit {bit}");
                let found = look(&disk, &closed, &what, flips % 16 == 0);
                // What no live entry needs is found by the strict mode.
                assert!(
                    found.is_reported || !found.hurt.is_empty() || is_found_strictly(&disk),
                    "{what}: not found"
                );
                if bits == Bits::OneOfEntries {
                    assert!(found.hurt.len() <= 1, "{what}: hurts {:?}", found.hurt);
                    alone += found.hurt.len();
                }
                flips += 1;
            }
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(alone > 100, "a flip in entries hurts its replica: {alone}");
    record("log bits flipped", "bits", flips);
}

#[test]
fn fault_20_every_flipped_bit_of_the_vote_file_is_mended_from_the_log() {
    let closed = closed(1, false);
    let whole = content(&closed.disk, &closed.votes);
    let half_b = 4096 + (whole.len() - 4096) / 2;
    let slots = 64 * closed.model.replicas.len();
    let used = (0..512)
        .chain(4096..4096 + slots)
        .chain(half_b..half_b + slots);
    let mut flips = 0;
    for byte in used {
        for bit in 0..8 {
            let disk = Arc::new(closed.disk.fork());
            disk.flip_bit(&closed.votes, byte, bit);
            let what = format!("votes byte {byte} bit {bit}");
            let found = look(&disk, &closed, &what, flips % 16 == 0);
            assert!(found.hurt.is_empty(), "{what}: {:?}", found.hurt);
            assert!(found.is_reported, "{what}");
            assert_eq!(content(&disk, &closed.votes).len(), whole.len());
            flips += 1;
        }
    }
    record("log bits of votes flipped", "bits", flips);
    assert!(flips > 0);
}

#[test]
fn fault_4_damage_below_the_watermark_is_reported_and_never_cut() {
    let closed = closed(3, false);
    let path = &closed.segments[0];
    let whole = content(&closed.disk, path);
    let records = records(&whole);
    let (last, _, last_table, last_data) = records[records.len() - 1];
    let end = last + 64 + last_table + last_data;
    for (at, kind, table, _) in &records[..records.len() - 2] {
        for byte in [*at + 10, *at + 64, *at + 64 + table] {
            let disk = Arc::new(closed.disk.fork());
            disk.flip_bit(path, byte, 3);
            let damaged = content(&disk, path);
            let (lane, recovery) = open(&disk, &options()).expect("it opens");
            let report = &recovery.report;
            assert_eq!(
                report.torn_bytes(),
                0,
                "kind {kind} byte {byte}: {report:?}"
            );
            let is_told = !report.damaged.is_empty() || !report.mended.is_empty();
            assert!(is_told, "kind {kind} byte {byte}");
            drop(lane);
            let now = content(&disk, path);
            assert!(now[..end] == damaged[..end], "nothing there is touched");
        }
    }
}

/// What happens to a sector: how it is called, the sector, and what is there afterwards.
type Change<'a> = (&'a str, usize, Vec<(usize, Vec<u8>)>);

/// Where the second half of a small vote file begins.
pub const HALF_B: usize = 4096 + 64 * 1024;

#[test]
fn fault_6_sectors_zeroed_swapped_duplicated_or_fallen_back_are_found() {
    let mut cases = 0;
    for (number, closed) in [closed(4, false), closed(5, true)].iter().enumerate() {
        for path in closed.segments.iter().chain([&closed.votes]) {
            let whole = content(&closed.disk, path);
            let is_votes = path == &closed.votes;
            let is_spare = !is_votes && records(&whole).is_empty();
            let sectors = whole.len() / 512;
            let of = |sector: usize| whole[sector * 512..(sector + 1) * 512].to_vec();
            let is_used = |sector: usize| of(sector).iter().any(|&byte| byte != 0);
            let mut changes: Vec<Change<'_>> = Vec::new();
            for sector in (0..sectors).filter(|&sector| is_used(sector)) {
                changes.push(("zeroed", sector, vec![(sector, vec![0; 512])]));
                // With any other in a small log; in a large one with the next one, and one further
                // away.
                let others = match number {
                    0 => (0..sectors)
                        .filter(|&other| other < 48 || is_used(other))
                        .collect(),
                    _ => vec![sector + 1, (sector * 7 + 3) % sectors],
                };
                for other in others {
                    if other < sectors && other != sector {
                        let swap = vec![(sector, of(other)), (other, of(sector))];
                        changes.push(("swapped", sector, swap));
                        if is_used(other) {
                            changes.push(("duplicated", sector, vec![(other, of(sector))]));
                        }
                    }
                }
            }
            for (_, sector, before) in closed.older.iter().filter(|older| older.0 == *path) {
                changes.push(("fallen back", *sector, vec![(*sector, before.clone())]));
            }
            for (kind, sector, change) in changes {
                let disk = Arc::new(closed.disk.fork());
                disk.damage(path, |content| {
                    for (at, bytes) in &change {
                        content[at * 512..(at + 1) * 512].copy_from_slice(bytes);
                    }
                });
                if content(&disk, path) == whole {
                    continue;
                }
                let what = format!("log {number} {path:?} sector {sector} {kind}");
                let found = look(&disk, closed, &what, cases % 4 == 0);
                cases += 1;
                if is_votes || is_spare {
                    // The log says the same, or there is nothing to say: it is written anew.
                    assert!(found.hurt.is_empty(), "{what}: hurts {:?}", found.hurt);
                    // Half B without half A, and a file without a header, are never left by a crash.
                    let is_certain = kind == "zeroed" && sector * 512 < HALF_B;
                    assert!(!is_votes || !is_certain || found.is_reported, "{what}");
                } else {
                    let is_found = found.is_reported || !found.hurt.is_empty();
                    assert!(is_found || is_found_strictly(&disk), "{what}: not found");
                }
            }
        }
    }
    record("log sectors damaged", "cases", cases);
    assert!(cases > 3_000, "{cases}");
}

#[test]
fn fault_7_exchanged_renamed_and_foreign_segments_are_named_and_left_alone() {
    let closed = closed(6, true);
    let used = used(&closed);
    assert!(used.len() >= 3, "{used:?}");
    let free = Path::new(DATA).join("log/0/00000000000000ff.seg");
    for (at, path) in used.iter().enumerate() {
        for other in used[at + 1..].iter().chain([&free]) {
            let disk = Arc::new(closed.disk.fork());
            disk.misplace(path, Some(other));
            let what = format!("{path:?} under the name {other:?}");
            let found = look(&disk, &closed, &what, true);
            let mut foreign = found.foreign.clone();
            foreign.sort();
            // Two that are exchanged are both under a wrong name.
            let both = [name(path), name(other)];
            assert_eq!(foreign, both[usize::from(other == &free)..], "{what}");
            assert!(
                content(&disk, other) == content(&closed.disk, path),
                "{what}"
            );
        }
    }
    // A segment of another log under the right name.
    let other = disk(1);
    let options = raft_log::LaneOptions {
        identity: Some(8),
        ..options()
    };
    let (mut driven, _) = Driven::open(&other, &options);
    driven.write(Workload::new(1, 3, 40).draw());
    driven.lane.close().expect("it closes");
    let foreign = content(&other, &segments(&other)[0]);
    for path in &used {
        let disk = Arc::new(closed.disk.fork());
        disk.damage(path, |content| content.clone_from(&foreign));
        let what = format!("{path:?} foreign");
        let found = look(&disk, &closed, &what, true);
        assert_eq!(found.foreign, [name(path)], "{what}");
        assert_eq!(content(&disk, path), foreign, "it is left alone");
    }
}

#[test]
fn fault_9_missing_segments_are_named_and_the_others_serve() {
    for closed in [closed(6, false), closed(6, true)] {
        let used = used(&closed);
        for (at, path) in used.iter().enumerate() {
            let disk = Arc::new(closed.disk.fork());
            disk.misplace(path, None);
            let what = format!("{path:?} missing");
            let found = look(&disk, &closed, &what, true);
            assert!(found.is_reported, "{what}");
            if at + 1 < used.len() {
                let (_, recovery) =
                    open(&Arc::new(closed_without(&closed, path)), &options()).expect("it opens");
                let number = u64::try_from(at).expect("small") + 1;
                assert_eq!(recovery.report.missing, [number], "{what}");
            }
        }
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().and_then(|name| name.to_str());
    name.expect("a name").to_owned()
}

fn closed_without(closed: &Closed, path: &Path) -> SimVfs {
    let disk = closed.disk.fork();
    disk.misplace(path, None);
    disk
}

/// The segments that hold records.
fn used(closed: &Closed) -> Vec<PathBuf> {
    let is_used = |path: &&PathBuf| !records(&content(&closed.disk, path)).is_empty();
    closed.segments.iter().filter(is_used).cloned().collect()
}

#[test]
fn fault_10_files_of_any_length_open_or_are_reported() {
    let mut cases = 0;
    for closed in [closed(7, false), closed(8, true)] {
        for path in closed.segments.iter().chain([&closed.votes]) {
            let whole = content(&closed.disk, path);
            let records = records(&whole);
            let is_votes = path == &closed.votes;
            let is_spare = !is_votes && records.is_empty();
            // Every length of a small log; around everything that begins or ends of a large one.
            let dense = if closed.segments.len() == 2 {
                6_000
            } else {
                1_100
            };
            let mut lengths: BTreeSet<usize> = (0..dense).collect();
            for (at, _, table, data) in &records {
                for edge in [*at, at + 64, at + 64 + table, at + 64 + table + data] {
                    lengths.extend(edge - 1..=edge + 1);
                }
            }
            lengths.extend((0..whole.len()).step_by(1_021));
            lengths.extend(whole.len() - 66..whole.len());
            lengths.insert(whole.len() + 4096);
            for len in lengths {
                if is_spare && len > 1_100 && len < whole.len() && len % 4_099 != 0 {
                    continue;
                }
                let disk = Arc::new(closed.disk.fork());
                disk.damage(path, |content| content.resize(len, 0));
                let what = format!("{path:?} of {len} bytes");
                let found = look(&disk, &closed, &what, cases % 8 == 0);
                if is_spare || is_votes {
                    assert!(found.hurt.is_empty(), "{what}: {:?}", found.hurt);
                    let is_told = !is_votes || len >= whole.len() || found.is_reported;
                    assert!(is_told, "{what}");
                } else {
                    let is_longer = len > whole.len();
                    assert_eq!(found.is_reported, !is_longer, "{what}");
                    assert_eq!(found.has_ignored, is_longer, "{what}");
                }
                cases += 1;
            }
        }
    }
    record("log files cut", "cases", cases);
    assert!(cases > 6_000, "{cases}");
}

#[test]
fn fault_11_unknown_files_are_left_alone() {
    let closed = closed(9, false);
    let dir = Path::new(DATA).join("log/0");
    let names = ["lost+found", "0000000000000001.seg~", "notes.txt", "1.seg"];
    for name in names {
        let file = closed.disk.open(&dir.join(name), true).expect("made");
        closed.disk.write(file, 0, b"whatever").expect("written");
        closed.disk.close(file);
    }
    let (lane, recovery) = open(&closed.disk, &options()).expect("it opens");
    let mut ignored = recovery.report.ignored.clone();
    ignored.sort();
    let mut want: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    want.sort();
    assert_eq!(ignored, want);
    drop(lane);
    for name in names {
        assert_eq!(content(&closed.disk, &dir.join(name)), b"whatever");
    }
}

#[test]
fn fault_13_a_record_of_a_later_version_is_refused_and_nothing_is_touched() {
    let closed = closed(10, false);
    let path = &closed.segments[0];
    // A later version's segment header: whole, and unknown.
    closed.disk.damage(path, |content| {
        for at in [0, 512] {
            content[at + 8] = 9;
            let crc = raft_proto::crc32c_append(0, &content[at..at + 508]);
            content[at + 508..at + 512].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let before = content(&closed.disk, path);
    let refused = open(&closed.disk, &options()).map(|_| ());
    assert!(
        matches!(&refused, Err(LogError::NeedsVersion { version: 9, .. })),
        "{refused:?}"
    );
    assert_eq!(content(&closed.disk, path), before);
}

/// The first write of a recycled segment, a checkpoint and a record, loses the beginning of the
/// checkpoint. The record behind the hole is whole, and so are those of the segment's life before:
/// none of them may ever follow what is appended in that place.
#[test]
fn fault_5_and_8_what_lies_behind_a_hole_never_comes_back() {
    let disk = disk(11);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(11, 4, 3_000);
    workload.has_laggard = true;
    disk.record_crash_points();
    let (point, want) = (0..2_000)
        .find_map(|_| {
            let want = workload.model.clone();
            let before = disk.fork();
            driven.write(workload.draw());
            let points = disk.take_crash_points();
            let torn = points
                .into_iter()
                .find(|point| is_first_of_a_life(&before, point));
            torn.map(|point| (point, want))
        })
        .expect("a recycled segment is written");
    drop(driven);
    // The write is the first that is not synced.
    point.crash_keeping(|unit| unit > 0);
    let disk = Arc::new(point);
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert_eq!(recovery.report.damaged, []);
    assert!(
        recovery.report.torn_bytes() > 0,
        "the record behind the hole is cut"
    );
    let found = crate::workload::seen_all(&driven.lane, &recovery).expect("it reads");
    assert!(agrees(&found, &want), "{found:#?}");
    let mut workload = Workload::new(12, 4, 300);
    workload.resume(found);
    for _ in 0..60 {
        driven.write(workload.draw());
        let disk = Arc::new(disk.fork());
        disk.crash();
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let found = crate::workload::seen_all(&lane, &recovery).expect("it reads");
        assert!(agrees(&found, &workload.model));
    }
}

/// Whether what is written and not synced is two records at the beginning of a segment that held
/// whole ones, the second not in the first sector.
fn is_first_of_a_life(before: &SimVfs, point: &SimVfs) -> bool {
    point.unsynced() > 2
        && segments(point).iter().any(|path| {
            let Some(older) = maybe_content(before, path) else {
                return false;
            };
            let (old, new) = (records(&older), records(&content(point, path)));
            let is_new = older[1_024..1_536] != content(point, path)[1_024..1_536];
            let kinds: Vec<u8> = new.iter().map(|record| record.1).collect();
            is_new && old.len() > 2 && kinds.starts_with(&[2, 1]) && new[1].0 >= 1_536
        })
}

/// A sector that the medium does not give back is damage of whoever had something in it: the lane
/// opens, and nothing is cut.
#[test]
fn fault_4_a_sector_that_cannot_be_read_is_damage_and_never_a_cut() {
    let mut cases = 0;
    for closed in [closed(14, false), closed(15, true)] {
        for path in closed.segments.iter().chain([&closed.votes]) {
            let whole = content(&closed.disk, path);
            let is_segment = path != &closed.votes && !records(&whole).is_empty();
            let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) / 512;
            for sector in 0..=(used + 2).min(whole.len() / 512 - 1) {
                let disk = Arc::new(closed.disk.fork());
                disk.lose_sector(path, sector);
                let what = format!("{path:?} sector {sector}");
                let found = look(&disk, &closed, &what, cases % 4 == 0);
                assert_eq!(found.torn_bytes, 0, "{what}");
                let is_used = whole[sector * 512..(sector + 1) * 512]
                    .iter()
                    .any(|byte| *byte != 0);
                if is_segment && is_used {
                    let is_found = found.is_reported || !found.hurt.is_empty();
                    assert!(is_found || is_found_strictly(&disk), "{what}: not found");
                } else {
                    assert_eq!(found.hurt, [], "{what}: there was nothing in it");
                }
                cases += 1;
            }
        }
    }
    record("log sectors that cannot be read", "cases", cases);
    assert!(cases > 300, "{cases}");
}

/// What lies in no record, header or slot: behind the last record, between a footer and its trailer,
/// in a spare, between the vote file's header and its slots. Nothing there is read as anything.
pub fn nowhere(closed: &Closed, path: &Path) -> std::ops::Range<usize> {
    let whole = content(&closed.disk, path);
    if path == closed.votes {
        return 512..4_096;
    }
    let records = records(&whole);
    let end = records.last().map_or(1_024, |(at, _, table, data)| {
        (at + 64 + table + data).next_multiple_of(64)
    });
    let is_sealed = records.last().is_some_and(|last| last.1 == 4);
    let trailer = if is_sealed { 64 } else { 0 };
    end..whole.len() - trailer
}

/// These are all the bits that nothing vouches for: whatever they are, everything is there, before
/// and after it was written on, and nobody is concerned.
#[test]
fn fault_3_bits_that_belong_to_nothing_concern_nobody() {
    let mut flips = 0;
    for closed in [closed(17, false), closed(18, true)] {
        let names: Vec<&PathBuf> = closed.segments.iter().chain([&closed.votes]).collect();
        for path in names {
            let range = nowhere(&closed, path);
            // All of what is close to a record, a bit in each sector of the rest.
            let near = (range.start..range.end.min(range.start + 192))
                .chain((range.start..range.end).rev().take(64));
            let near = near.flat_map(|byte| (0..8).map(move |bit| (byte, bit)));
            let far = range.clone().step_by(509).map(|byte| (byte, 5));
            for (byte, bit) in near.chain(far) {
                let disk = Arc::new(closed.disk.fork());
                disk.flip_bit(path, byte, bit);
                let what = format!("{path:?} byte {byte} bit {bit}");
                let found = look(&disk, &closed, &what, flips % 16 == 0);
                assert_eq!(found.hurt, [], "{what}");
                assert_eq!(found.torn_bytes, 0, "{what}");
                if flips % 16 == 0 {
                    is_written_on(&disk, &closed, &what);
                }
                flips += 1;
            }
        }
    }
    record("log bits that belong to nothing flipped", "bits", flips);
    assert!(flips > 5_000, "{flips}");
}

/// Appends until the next segment is in use, loses power, and finds all there.
fn is_written_on(disk: &Arc<SimVfs>, closed: &Closed, what: &str) {
    disk.set_now(raft_proto::Time(0));
    let (mut driven, recovery) = Driven::open(disk, &options());
    let found = crate::workload::seen_all(&driven.lane, &recovery).expect("it reads");
    assert!(agrees(&found, &closed.model), "{what}");
    let mut workload = Workload::new(1, 3, 3_000);
    workload.resume(found);
    for _ in 0..24 {
        driven.write(workload.draw());
    }
    disk.crash();
    drop(driven);
    let (lane, recovery) = open(disk, &options()).expect("it opens");
    assert_eq!(recovery.report.damaged, [], "{what}");
    let found = crate::workload::seen_all(&lane, &recovery).expect("it reads");
    assert!(agrees(&found, &workload.model), "{what}");
}

/// Places of the vote file that were never used: what lies there is somebody's slot that is lost.
#[test]
fn fault_20_every_flipped_bit_of_an_unused_slot_is_told_and_zeroed() {
    let closed = closed(1, false);
    let whole = content(&closed.disk, &closed.votes);
    let used = 64 * closed.model.replicas.len();
    let mut flips = 0;
    for half in [4_096, HALF_B] {
        let first = half + used..half + used + 64;
        let rest = (first.end..half + 65_536).step_by(509);
        for byte in first.chain(rest) {
            let bits = if byte < half + used + 64 { 0..8 } else { 3..4 };
            for bit in bits {
                let disk = Arc::new(closed.disk.fork());
                disk.flip_bit(&closed.votes, byte, bit);
                let what = format!("votes byte {byte} bit {bit}");
                let found = look(&disk, &closed, &what, false);
                assert!(found.hurt.is_empty() && found.is_reported, "{what}");
                assert!(content(&disk, &closed.votes) == whole, "{what}: zeroed");
                flips += 1;
            }
        }
    }
    record("log bits of votes flipped", "bits", flips);
}

/// A segment made ahead whose header is lost has no use, and whatever lies in it is kept aside.
#[test]
fn fault_3_a_spare_that_cannot_be_read_is_kept_aside() {
    let disk = disk(16);
    let options = raft_log::LaneOptions {
        spare_segments: 3,
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut workload = Workload::new(16, 3, 40);
    driven.write(workload.draw());
    driven.pass(3_000_000_000);
    driven.lane.close().expect("it closes");
    let spares = segments(&disk).split_off(1);
    assert_eq!(spares.len(), 3);
    for path in &spares {
        let disk = Arc::new(disk.fork());
        disk.damage(path, |content| {
            content[..1_024].fill(0x55);
            content[5_000] = 1;
        });
        let before = content(&disk, path);
        let (_, recovery) = open(&disk, &options).expect("it opens");
        let damaged = &recovery.report.damaged;
        assert_eq!(damaged.len(), 1, "{damaged:?}");
        assert_eq!(damaged[0].replicas, []);
        assert!(damaged[0].reason.contains("kept aside"));
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        assert!(content(&disk, Path::new(&aside)) == before);
        let (_, recovery) = open(&disk, &options).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
    }
}
