//! Segments apart, to which the log moves what laggards keep: whatever comes in between, and whatever
//! becomes of their files.

#[path = "lies.rs"]
mod lies;
#[path = "apart_lives.rs"]
mod lives;

use std::path::PathBuf;
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LogError, RecoveryReport, Submission};
use raft_proto::{EntryId, HardState, Index, Term};

use crate::damage::{Closed, content, is_found_strictly, look, records, segments};
use crate::record;
use crate::workload::{Driven, Model, Rng, agrees, batch, disk, key, open, options, seen_all};

const LAGGARDS: u64 = 3;

/// A log in which some groups keep what they have, and another one next to nothing.
struct Used {
    disk: Arc<SimVfs>,
    driven: Driven,
    model: Model,
    rng: Rng,
    number: u64,
}

impl Used {
    fn new(seed: u64) -> Self {
        let disk = disk(seed);
        let (driven, _) = Driven::open(&disk, &options());
        Self {
            disk,
            driven,
            model: Model::default(),
            rng: Rng(seed),
            number: 0,
        }
    }

    /// The last entry of a group.
    fn last(&self, group: u64) -> Index {
        let replica = self.model.replicas.get(&key(group));
        replica.map_or(Index::ZERO, |replica| replica.last.index)
    }

    fn submission(&mut self, group: u64) -> Submission {
        self.number += 1;
        Submission::new(key(group).0, key(group).1, self.number)
    }

    fn entries(&mut self, group: u64, term: u64, from: Index, bytes: u64) -> Submission {
        let mut submission = self.submission(group);
        let term = Term::new(term);
        submission.entries = vec![batch(&mut self.rng, key(group).0, term, from, 1, bytes)];
        submission.hard_state = Some(HardState {
            term,
            ..HardState::default()
        });
        submission
    }

    fn submit(&mut self, submission: Submission) {
        self.model.apply(&submission);
        self.driven.lane.submit(submission).expect("taken");
    }

    /// Writes what fills the log on, up to the next piece that is moved.
    fn fill(&mut self) {
        let last = self.last(9);
        let mut young = self.entries(9, 1, last.next(), 4_000);
        young.compact_before = Some(last.next());
        self.submit(young);
        if self.number.is_multiple_of(3) {
            let group = 1 + self.rng.below(LAGGARDS);
            let replica = self.model.replicas.get(&key(group));
            let term = replica.map_or(1, |replica| replica.hard_state.term.get());
            if replica.is_none_or(|replica| !replica.is_gone) {
                let next = self.last(group).next();
                let entries = self.entries(group, term, next, 1_500);
                self.submit(entries);
            }
        }
        let moved = self.counts().1;
        while self.driven.lane.pending_bytes() > 6_000 && self.counts().1 == moved {
            self.driven.step();
        }
        self.take();
    }

    fn take(&mut self) {
        for done in self.driven.lane.take_completions() {
            done.result.expect("it is durable");
        }
    }

    /// Fills it until something is on its way to a segment apart.
    fn fill_until_moving(&mut self) {
        let (apart, moved) = self.counts();
        while self.counts().1 == moved {
            assert!(self.number < 2_000, "laggards are moved");
            self.fill();
        }
        assert_eq!(self.counts().0, apart, "it is not named yet");
    }

    /// Fills it until one more segment apart is named.
    fn fill_until_named(&mut self) {
        let (apart, _) = self.counts();
        while self.counts().0 == apart {
            assert!(self.number < 2_000, "it is named");
            self.fill();
        }
        for done in self.driven.settle() {
            done.result.expect("it is durable");
        }
    }

    /// Segments apart, and bytes moved.
    fn counts(&self) -> (u64, u64) {
        let stats = self.driven.lane.stats();
        (stats.segments_apart, stats.moved_bytes)
    }

    /// Waits for what was submitted, loses what is not durable, and opens it again: it is all there.
    fn crash(mut self, what: &str) -> Self {
        for done in self.driven.settle() {
            done.result.expect("it is durable");
        }
        self.reopened(false, what)
    }

    /// After a clean close or a crash nothing is amiss.
    fn reopened(self, is_clean: bool, what: &str) -> Self {
        let Self {
            disk,
            driven,
            model,
            rng,
            number,
        } = self;
        if is_clean {
            driven.lane.close().expect("it closes");
        } else {
            disk.crash();
            drop(driven);
        }
        disk.set_now(raft_proto::Time(0));
        let (driven, recovery) = Driven::open(&disk, &options());
        let report = &recovery.report;
        let is_amiss = !report.damaged.is_empty()
            || !report.missing.is_empty()
            || !report.foreign.is_empty()
            || is_clean && *report != RecoveryReport::default();
        assert!(!is_amiss, "{what}: {report:?}");
        let found = seen_all(&driven.lane, &recovery).expect("it reads");
        assert!(
            agrees(&found, &model),
            "{what}: {found:#?}\nis not {model:#?}"
        );
        Self {
            disk,
            driven,
            model,
            rng,
            number,
        }
    }
}

/// How a group ends what it has.
#[derive(Clone, Copy, Debug)]
enum End {
    Overwritten,
    Restarted,
    Compacted,
    Gone,
}

/// What is copied may end before its segment is named, and behind that: it does not come back.
#[test]
fn what_ends_while_it_is_moved_does_not_come_back() {
    let mut unnamed = 0;
    for end in [End::Overwritten, End::Restarted, End::Compacted, End::Gone] {
        for steps in (0..60).step_by(3) {
            let what = format!("{end:?} after {steps} steps");
            let mut used = Used::new(steps);
            used.fill_until_moving();
            for _ in 0..steps {
                used.driven.step();
            }
            used.take();
            let last = used.last(1);
            let submission = match end {
                // From a low index on, in a new term.
                End::Overwritten => used.entries(1, 2, Index::new(2), 100),
                End::Restarted => {
                    let mut submission = used.submission(1);
                    submission.restart_after = Some(EntryId::new(Term::new(1), last.plus(5)));
                    submission
                }
                End::Compacted => {
                    let mut submission = used.submission(1);
                    submission.compact_before = Some(last);
                    submission
                }
                End::Gone => {
                    let mut submission = used.submission(1);
                    submission.tombstone = true;
                    submission
                }
            };
            used.submit(submission);
            if used.counts().0 == 0 {
                used.fill_until_named();
                unnamed += 1;
            }
            let mut used = used.crash(&what);
            // Once more, from segments that were named by a checkpoint.
            used.fill_until_moving();
            used.fill_until_named();
            used.crash(&what);
        }
    }
    assert!((20..60).contains(&unnamed), "{unnamed}");
}

/// A clean close does not wait for a segment apart: what was copied counts for nothing, and its file is
/// a segment made ahead, as any.
#[test]
fn a_close_while_a_segment_apart_is_filled_leaves_nothing_of_it() {
    let mut unnamed = 0;
    for steps in (0..60).step_by(3) {
        let what = format!("closed after {steps} steps");
        let mut used = Used::new(20);
        used.fill_until_moving();
        for _ in 0..steps {
            used.driven.step();
        }
        unnamed += u64::from(used.counts().0 == 0);
        let mut used = used.reopened(true, &what);
        // Its file is written to, and a crash finds nothing of what was copied there.
        for life in 0..3 {
            for _ in 0..12 {
                used.fill();
            }
            used = used.crash(&format!("{what}, life {life}"));
        }
    }
    assert!((4..20).contains(&unnamed), "{unnamed}");
}

fn is_sealed_apart(content: &[u8]) -> bool {
    content[14] & 2 != 0 && records(content).last().is_some_and(|last| last.1 == 4)
}

/// A closed log with a segment apart, and that one.
fn closed() -> (Closed, PathBuf) {
    let mut used = Used::new(30);
    used.fill_until_moving();
    used.fill_until_named();
    for _ in 0..4 {
        used.fill();
    }
    used.driven.pass(300_000_000);
    used.driven.lane.close().expect("it closes");
    used.disk.set_now(raft_proto::Time(0));
    let closed = Closed::new(&used.disk, used.model);
    let is_apart = |path: &&PathBuf| is_sealed_apart(&content(&closed.disk, path));
    let apart: Vec<PathBuf> = segments(&used.disk)
        .iter()
        .filter(is_apart)
        .cloned()
        .collect();
    let [apart] = &apart[..] else {
        panic!("one is apart: {apart:?}");
    };
    (closed, apart.clone())
}

/// Every bit of headers, tables, footer and trailer, and of entries one of each byte.
#[test]
fn fault_3_every_bit_of_a_segment_apart_is_found() {
    let (closed, path) = closed();
    let whole = content(&closed.disk, &path);
    let mut telling: Vec<(usize, bool)> = (0..1_024).map(|byte| (byte, false)).collect();
    for (at, kind, table, data) in records(&whole) {
        let data_at = at + 64 + table;
        let end = (data_at + data).next_multiple_of(64);
        telling.extend((at..data_at).map(|byte| (byte, false)));
        telling.extend((data_at..end).map(|byte| (byte, kind == 1 && byte < data_at + data)));
    }
    telling.extend((whole.len() - 64..whole.len()).map(|byte| (byte, false)));
    let (mut flips, mut hurt) = (0, 0);
    for (byte, is_entry) in telling {
        let some = u8::try_from(Rng(byte as u64).below(8)).expect("a bit");
        let bits = if is_entry { some..some + 1 } else { 0..8 };
        for bit in bits {
            let disk = Arc::new(closed.disk.fork());
            disk.flip_bit(&path, byte, bit);
            let what = format!("{path:?} byte {byte} bit {bit}");
            let found = look(&disk, &closed, &what, flips % 16 == 0);
            let is_found = found.is_reported || !found.hurt.is_empty();
            assert!(is_found || is_found_strictly(&disk), "{what}: not found");
            assert!(
                !is_entry || found.hurt.len() <= 1,
                "{what}: {:?}",
                found.hurt
            );
            hurt += found.hurt.len();
            flips += 1;
        }
    }
    assert!(hurt > 500, "{hurt}");
    record("log bits of a segment apart flipped", "bits", flips);
}

/// Who has something in a segment apart that is lost is damaged, and the report names it; nobody else is.
#[test]
fn fault_9_a_segment_apart_that_is_gone_is_missing() {
    let (closed, path) = closed();
    let found = look(&Arc::new(closed.disk.fork()), &closed, "whole", true);
    assert!(!found.is_reported && found.hurt.is_empty());
    let disk = Arc::new(closed.disk.fork());
    disk.remove_file(&path).expect("it is there");
    disk.sync_dir(path.parent().expect("a directory"))
        .expect("durable");
    let gone = Arc::new(disk.fork());
    let (_, recovery) = open(&gone, &options()).expect("it opens");
    let name = path.file_stem().and_then(|name| name.to_str());
    let number = name.and_then(|name| u64::from_str_radix(name, 16).ok());
    assert_eq!(recovery.report.missing, Vec::from_iter(number));
    let found = look(&disk, &closed, "gone", true);
    assert!(
        !found.hurt.is_empty() && !found.hurt.contains(&key(9)),
        "{:?}",
        found.hurt
    );
}

/// Where records that name a segment apart lie, checkpoints aside.
fn namings(content: &[u8]) -> Vec<usize> {
    let says_apart = |at: usize, table: usize| {
        let mut items = &content[at + 64..at + 64 + table];
        while let Some(len) = items.get(4..8) {
            if items[0] == 16 {
                return true;
            }
            let len = u32::from_le_bytes(len.try_into().expect("four"));
            items = &items[24 + usize::try_from(len).expect("small")..];
        }
        false
    };
    let of_lane = records(content).into_iter();
    let of_lane = of_lane.filter(|&(at, kind, table, _)| kind != 2 && says_apart(at, table));
    of_lane.map(|(at, ..)| at).collect()
}

/// What was moved may have its only copy there: if both records that name it are lost, its file is no
/// spare, and is kept for the operator. In a log without damage it is one: it was not named yet.
#[test]
fn fault_4_a_segment_apart_is_kept_aside_when_the_records_that_name_it_are_lost() {
    let (closed, path) = closed();
    let whole = content(&closed.disk, &path);
    let dir = path.parent().expect("a directory");
    let aside = path.with_extension("seg.damaged");
    let all = segments(&closed.disk);
    let mut named = all
        .iter()
        .map(|path| (path, namings(&content(&closed.disk, path))))
        .filter(|(_, namings)| !namings.is_empty());
    let (active, namings) = named.next().expect("it is named");
    assert_eq!((namings.len(), named.next()), (2, None), "twice");
    let number = u64::from_str_radix(&path.file_stem().expect("a name").to_string_lossy(), 16);
    let number = number.expect("a number");
    let is_kept = |disk: &SimVfs| {
        let entries = disk.list(dir).expect("it lists");
        let is_there = |path: &PathBuf| entries.iter().any(|entry| dir.join(&entry.name) == *path);
        let is_whole = is_there(&aside) && content(disk, &aside) == whole;
        assert!(!is_whole || !is_there(&path), "it has one name");
        is_whole
    };
    for (lost, is_both) in [
        (&namings[..1], false),
        (&namings[1..], false),
        (&namings, true),
    ] {
        for is_strict in [false, true] {
            let what = format!("{lost:?} {is_strict}");
            let disk = Arc::new(closed.disk.fork());
            for at in lost {
                disk.damage(active, |content| content[at + 64..at + 128].fill(0xA5));
            }
            let options = raft_log::LaneOptions {
                verify_all: is_strict,
                ..options()
            };
            let looked = Arc::new(disk.fork());
            let (lane, recovery) = open(&looked, &options).expect("it opens");
            let report = &recovery.report;
            let names_it = |damage: &&raft_log::DamageReport| damage.segment == number;
            let told = report.damaged.iter().filter(names_it).count();
            assert_eq!(told, usize::from(is_both), "{what}: {report:?}");
            assert_eq!(is_kept(&looked), is_both, "{what}: {report:?}");
            drop(lane);
            // Nothing that comes later takes its name, or its place.
            for _ in 0..3 {
                let (mut driven, _) = Driven::open(&looked, &options);
                driven.pass(300_000_000);
                driven.lane.close().expect("it closes");
                looked.set_now(raft_proto::Time(0));
            }
            assert_eq!(is_kept(&looked), is_both, "{what}");
            let found = look(&disk, &closed, &what, true);
            // Of those who have entries there nothing else has a copy.
            assert_eq!(found.hurt.is_empty(), !is_both, "{what}: {:?}", found.hurt);
            assert!(!found.hurt.contains(&key(9)), "{what}: {:?}", found.hurt);
        }
    }
}

/// Behind a crash alone one that nothing names had none that was copied released for it: its file is
/// used again, sealed or not.
#[test]
fn a_segment_apart_that_a_crash_left_unnamed_is_a_spare_again() {
    let mut sealed = 0;
    for steps in 0..40 {
        let mut used = Used::new(20);
        used.fill_until_moving();
        for _ in 0..steps {
            used.driven.step();
        }
        used.take();
        if used.counts().0 > 0 {
            continue;
        }
        let disk = Arc::new(used.disk.fork());
        disk.crash_keeping(|_| false);
        let is_left = |path: &PathBuf| is_sealed_apart(&content(&disk, path));
        let left: Vec<PathBuf> = segments(&disk).into_iter().filter(is_left).collect();
        sealed += left.len();
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        for path in left {
            assert!(!is_sealed_apart(&content(&disk, &path)), "{path:?}");
        }
    }
    assert!(sealed > 0);
}

/// What cannot be read stays where it is, and whoever reads it is told; the rest is moved, and the spare
/// that was taken for nothing is one again.
#[test]
fn what_cannot_be_read_is_not_moved_and_holds_up_nobody() {
    let mut used = Used::new(40);
    while used.driven.lane.stats().sealed_segments < 2 {
        used.fill();
    }
    assert_eq!(used.counts(), (0, 0), "nothing is moved yet");
    let bad: Vec<PathBuf> = segments(&used.disk).into_iter().take(2).collect();
    for path in &bad {
        let whole = content(&used.disk, path);
        for (at, kind, table, _) in records(&whole) {
            let mut items = &whole[at + 64..at + 64 + table];
            let mut data_at = at + 64 + table;
            while kind == 1 && !items.is_empty() {
                let len = |at: usize| {
                    let bytes = items[at..at + 4].try_into().expect("four");
                    usize::try_from(u32::from_le_bytes(bytes)).expect("small")
                };
                if items[0] == 1 {
                    // All but what group 3 has.
                    if items[8] != 3 {
                        used.disk.flip_bit(path, data_at + 16, 3);
                    }
                    data_at += len(24 + 32);
                }
                items = &items[24 + len(4)..];
            }
        }
    }
    let mut most = 0;
    for _ in 0..400 {
        used.fill();
        most = most.max(used.disk.used_bytes());
    }
    let stayed = segments(&used.disk);
    assert!(bad.iter().all(|path| stayed.contains(path)), "{stayed:?}");
    let stats = used.driven.lane.stats();
    assert!(stats.segments_apart > 3, "{stats:?}");
    let reader = used.driven.lane.reader();
    let (group, replica) = key(1);
    let (first, last) = (Index::new(1), used.last(1));
    let read = reader.entries(group, replica, first, last, usize::MAX);
    assert!(matches!(read, Err(LogError::Damaged { .. })), "{read:?}");
    // What is kept, two segments that stay, and those that are ever at work.
    let kept = 400 * 2_000;
    assert!(most < kept + 10 * (64 << 10), "{most}");
    // When those who have something there go on, none is left that cannot be moved.
    for group in [1, 2] {
        let mut submission = used.submission(group);
        submission.compact_before = Some(used.last(group));
        used.submit(submission);
    }
    for _ in 0..100 {
        used.fill();
    }
    let left = segments(&used.disk);
    assert!(bad.iter().all(|path| !left.contains(path)), "{left:?}");
}
