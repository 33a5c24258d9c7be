//! Segments apart over several lives: what becomes of their files and numbers, and of what was copied
//! and ended before they were named.

use std::sync::Arc;

use raft_log::LaneOptions;
use raft_proto::{BatchBuilder, EntryKind, Index, Term};

use super::{Used, is_sealed_apart};
use crate::damage::{Closed, content, look, records, segments};
use crate::workload::{Driven, Key, Rng, disk, key, options};

impl Used {
    fn with(disk: &Arc<raft_log::vfs::SimVfs>, options: &LaneOptions) -> Self {
        let (driven, _) = Driven::open(disk, options);
        Self {
            disk: Arc::clone(disk),
            driven,
            model: crate::workload::Model::default(),
            rng: Rng(3),
            number: 0,
        }
    }

    pub(super) fn settle(&mut self) {
        for done in self.driven.settle() {
            done.result.expect("it is durable");
        }
    }

    pub(super) fn step(&mut self, steps: u64) {
        for _ in 0..steps {
            self.driven.step();
        }
        self.take();
    }

    fn put(&mut self, group: u64, bytes: u64) {
        let next = self.last(group).next();
        let replica = self.model.replicas.get(&key(group));
        let term = replica.map_or(1, |replica| replica.hard_state.term.get().max(1));
        let entries = self.entries(group, term, next, bytes);
        self.submit(entries);
        self.settle();
    }

    /// One entry of each of two groups, so many times.
    pub(super) fn put_both(&mut self, (one, other): (u64, u64), times: u64) {
        for _ in 0..times {
            self.put(one, 2_800);
            self.put(other, 2_800);
        }
    }

    /// A group keeps nothing of what it has.
    pub(super) fn compact(&mut self, group: u64) {
        let mut submission = self.submission(group);
        submission.compact_before = Some(self.last(group).next());
        self.submit(submission);
        self.settle();
    }

    /// Opened again, when what could not be made was tried once more.
    fn again(mut self, is_clean: bool, what: &str) -> Self {
        self.driven.pass(3_000_000_000);
        self.take();
        self.reopened(is_clean, what)
    }
}

/// Copies that ended before their segment was named: the loss of its trailer, or of the footer as well,
/// brings none of them back, and stops nobody whose entries are there.
#[test]
fn what_ended_while_it_was_copied_does_not_come_back_with_a_lost_footer() {
    let mut lost = 0;
    for (is_compacted, is_later) in [(false, false), (false, true), (true, false), (true, true)] {
        for steps in [0, 4, 8, 12] {
            let mut used = Used::new(steps);
            used.fill_until_moving();
            for _ in 0..steps {
                used.driven.step();
            }
            used.take();
            if used.counts().0 > 0 {
                continue;
            }
            let mut submission = used.entries(1, 2, Index::new(2), 100);
            if is_compacted {
                submission = used.submission(1);
                submission.compact_before = Some(used.last(1));
            }
            used.submit(submission);
            used.fill_until_named();
            if is_later {
                // A later checkpoint names it.
                (0..20).for_each(|_| used.fill());
            }
            used.driven.pass(300_000_000);
            used.driven.lane.close().expect("it closes");
            used.disk.set_now(raft_proto::Time(0));
            let closed = Closed::new(&used.disk, used.model);
            for path in segments(&closed.disk) {
                let whole = content(&closed.disk, &path);
                if !is_sealed_apart(&whole) {
                    continue;
                }
                let footer = records(&whole).last().map_or(0, |last| last.0);
                for (what, from) in [("trailer", whole.len() - 64), ("footer", footer)] {
                    let disk = Arc::new(closed.disk.fork());
                    disk.damage(&path, |content| content[from..].fill(0));
                    let what =
                        format!("{what} of {path:?}, {steps} steps, {is_compacted} {is_later}");
                    let found = look(&disk, &closed, &what, true);
                    assert!(found.is_reported, "{what}");
                    assert_eq!(found.hurt, Vec::<Key>::new(), "{what}");
                    lost += 1;
                }
            }
        }
    }
    assert!(lost > 20, "{lost}");
}

/// One is released while its number is above that of the active segment, and its file is still there:
/// that number names no other one.
#[test]
fn the_number_of_a_released_segment_apart_is_not_given_out_again() {
    for is_clean in [true, false] {
        let mut used = Used::new(5);
        used.put_both((1, 2), 150);
        used.put_both((3, 4), 150);
        for group in [2, 1] {
            used.compact(group);
            used.driven.pass(2_000_000_000);
        }
        assert!(used.counts().0 > 1);
        let mut used = used.again(is_clean, "the first time");
        used.compact(4);
        used.again(is_clean, "the second time");
    }
}

#[test]
fn fault_25_every_crash_point_while_a_segment_apart_is_recycled() {
    let mut states = 0;
    for spare_segments in [1, 2, 3] {
        for steps in (0..40).step_by(4) {
            let options = LaneOptions {
                spare_segments,
                ..options()
            };
            let disk = disk(5);
            let mut used = Used::with(&disk, &options);
            // What is moved first is of group 1, then of group 3.
            used.put_both((1, 2), 60);
            used.put_both((3, 2), 90);
            let mut submission = used.submission(2);
            submission.compact_before = Some(used.last(2).next());
            used.submit(submission);
            while used.counts().0 == 0 {
                used.driven.step();
            }
            for _ in 0..steps {
                used.driven.step();
            }
            disk.record_crash_points();
            let mut submission = used.submission(1);
            submission.compact_before = Some(used.last(1).next());
            used.submit(submission);
            used.driven.pass(2_000_000_000);
            for (at, point) in disk.take_crash_points().iter().enumerate() {
                for is_kept in [false, true] {
                    let disk = Arc::new(point.fork());
                    disk.crash_keeping(|_| is_kept);
                    disk.set_now(raft_proto::Time(0));
                    let (_, recovery) = Driven::open(&disk, &options);
                    let report = &recovery.report;
                    let is_amiss = !report.damaged.is_empty()
                        || !report.foreign.is_empty()
                        || !report.missing.is_empty();
                    assert!(
                        !is_amiss,
                        "{spare_segments} {steps} {at} {is_kept}: {report:?}"
                    );
                    states += 1;
                }
            }
        }
    }
    crate::record(
        "log crashes, segments apart recycled",
        "crash_states",
        states,
    );
}

/// An entry that is too large for any segment apart stays where it is, and the others of its segment
/// are not moved into one each.
#[test]
fn an_entry_too_large_for_a_segment_apart_stays_where_it_is() {
    let options = LaneOptions {
        record_bytes_max: 256 << 10,
        reserve_bytes: Some(32 << 10),
        ..options()
    };
    let disk = disk(3);
    let mut used = Used::with(&disk, &options);
    let write = |used: &mut Used, group: u64, index: u64, bytes: usize, is_young: bool| {
        let mut submission = used.submission(group);
        let mut builder = BatchBuilder::new(key(group).0, Term::new(1), Index::new(index), 0);
        builder.push(EntryKind::Command, 0, None, &vec![7; bytes]);
        submission.entries.extend(builder.finish());
        if is_young {
            submission.compact_before = Some(Index::new(index + 1));
        }
        used.driven.lane.submit(submission).expect("taken");
        used.settle();
    };
    let (mut own, mut young) = (0, 0);
    for huge in 1..=4 {
        write(&mut used, 2, huge, 200_000, false);
        own += 200_100;
        for _ in 0..7 {
            young += 1;
            write(&mut used, 9, young, 4_000, true);
        }
    }
    for index in 1..=600 {
        write(&mut used, 1, index, 200, false);
        own += 300;
        for _ in 0..2 {
            young += 1;
            write(&mut used, 9, young, 3_000, true);
        }
    }
    let stats = used.driven.lane.stats();
    let most = own + 4 * (40 << 10) + 5 * (64 << 10);
    assert!(
        stats.segments_apart > 0 && stats.live_segment_bytes < most,
        "{most}: {stats:?}"
    );
}

/// One life of a log that is written, compacted, overwritten and left alone, as it is drawn.
fn live(used: &mut Used, draw: &mut Rng) {
    for _ in 0..draw.below(8) {
        let group = 1 + draw.below(4);
        match draw.below(8) {
            0..=2 => {
                let other = 1 + draw.below(4);
                used.put_both((group, other), draw.below(60));
            }
            3 => {
                let last = used.last(group).get();
                let at = last.saturating_sub(draw.below(1 + last / 2));
                let first = used.model.replicas.get(&key(group));
                let first = first.map_or(1, |replica| replica.first.get());
                let mut submission = used.submission(group);
                submission.compact_before = (at > first).then(|| Index::new(at));
                used.submit(submission);
                used.step(draw.below(60));
            }
            4 => used.compact(group),
            5 | 6 => {
                let Some(replica) = used.model.replicas.get(&key(group)) else {
                    continue;
                };
                let (first, last) = (replica.first.get(), replica.last.index.get());
                let term = replica.hard_state.term.get() + 1;
                if first <= last {
                    let from = first + draw.below(last - first + 1);
                    let submission = used.entries(group, term, Index::new(from), 2_000);
                    used.submit(submission);
                    used.step(draw.below(60));
                }
            }
            _ => {
                used.driven.pass(1 + draw.below(1_000_000_000));
                used.take();
            }
        }
    }
}

#[test]
fn fault_29_many_lives_with_segments_apart_lose_nothing() {
    const SEEDS: u64 = 60;
    let mut apart = 0;
    for seed in 0..SEEDS {
        let mut used = Used::new(seed);
        let mut draw = Rng(seed + 77);
        for life in 0..6 {
            live(&mut used, &mut draw);
            apart += used.counts().0;
            used = used.again(draw.one_in(2), &format!("seed {seed} life {life}"));
        }
    }
    assert!(apart > SEEDS, "{apart}");
    crate::record("log lives with segments apart", "seeds", SEEDS);
}
