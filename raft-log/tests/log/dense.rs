//! What is moved comes to lie densely: what dies of it, early or thinly spread, is not kept for ever.

use raft_log::{LaneOptions, LaneStats, Submission};
use raft_proto::{BatchBuilder, EntryKind, Index, Term};

use crate::workload::{Driven, disk, key, options};

/// A lane that is never idle, and what its groups hold.
struct Load {
    driven: Driven,
    segment_size_bytes: u64,
    groups: Vec<Group>,
}

#[derive(Clone, Copy, Default)]
struct Group {
    last: u64,
    compacted: u64,
    bytes_of_each: u64,
}

impl Load {
    fn new(segment_size_bytes: u64, groups: usize) -> Self {
        let options = LaneOptions {
            segment_size_bytes,
            record_bytes_max: 64 << 10,
            ..options()
        };
        let (driven, _) = Driven::open(&disk(17), &options);
        Self {
            driven,
            segment_size_bytes,
            groups: vec![Group::default(); groups],
        }
    }

    /// Appends an entry, of a size that is always the same for a group.
    fn append(&mut self, group: usize, bytes: u64, term: u64) {
        let (submission, _) = self.entry(group, bytes, term);
        self.submit(submission);
    }

    /// The same, and gives up all that lies before.
    fn append_alone(&mut self, group: usize, bytes: u64) {
        let (mut submission, last) = self.entry(group, bytes, 1);
        submission.compact_before = Some(Index::new(last));
        self.groups[group].compacted = last - 1;
        self.submit(submission);
    }

    fn entry(&mut self, group: usize, bytes: u64, term: u64) -> (Submission, u64) {
        let (id, replica) = key(u64::try_from(group).expect("small") + 1);
        let held = &mut self.groups[group];
        held.last += 1;
        held.bytes_of_each = bytes + 40;
        let len = usize::try_from(bytes).expect("small");
        let mut batch = BatchBuilder::new(id, Term::new(term), Index::new(held.last), len);
        batch.push(EntryKind::Command, 0, None, &vec![7; len]);
        let mut submission = Submission::new(id, replica, held.last);
        submission.entries.extend(batch.finish());
        (submission, held.last)
    }

    fn give_up(&mut self, group: usize) {
        let (id, replica) = key(u64::try_from(group).expect("small") + 1);
        let held = &mut self.groups[group];
        held.compacted = held.last;
        let mut submission = Submission::new(id, replica, 1_000_000 + held.last);
        submission.compact_before = Some(Index::new(held.last + 1));
        self.submit(submission);
    }

    fn submit(&mut self, submission: Submission) {
        self.driven.lane.submit(submission).expect("taken");
        while self.driven.lane.pending_bytes() > 8_000 {
            self.driven.step();
        }
        for done in self.driven.lane.take_completions() {
            done.result.expect("it is durable");
        }
    }

    fn held(&self, group: usize) -> u64 {
        self.groups[group].last - self.groups[group].compacted
    }

    /// What is kept, where nearly all was moved and small batches were joined; what lies beside it in a
    /// segment of which the `end` was too small for more; and two segments.
    fn bound(&self, end: u64) -> u64 {
        let of = |held: &Group| (held.last - held.compacted) * held.bytes_of_each;
        let kept: u64 = self.groups.iter().map(of).sum();
        let live_segments = self.stats().live_segments;
        kept + live_segments * (4096 + end) + 2 * self.segment_size_bytes
    }

    fn stats(&self) -> LaneStats {
        self.driven.lane.stats()
    }

    fn rest_within(&mut self, end: u64, what: &str) {
        self.driven.pass(2_000_000_000);
        let (most, stats) = (self.bound(end), self.stats());
        assert!(
            stats.live_segment_bytes <= most,
            "{what}: {most}, {stats:?}"
        );
    }
}

/// A group gives up all that it has each time when a part of that is on its way to a segment apart:
/// what was copied in vain is garbage there like any other.
#[test]
fn copies_that_die_before_their_segment_is_named_are_not_kept() {
    let mut load = Load::new(256 << 10, 3);
    let (mut aparts, mut moved_before, mut given_up) = (0, 0, 0);
    for _ in 0..6_000 {
        load.append(0, 300, 1);
        load.append(1, 2_000, 1);
        load.append_alone(2, 4_000);
        let stats = load.stats();
        if stats.segments_apart > aparts {
            (aparts, moved_before) = (stats.segments_apart, stats.moved_bytes);
        }
        let is_under_way = stats.moved_bytes > moved_before + 60_000;
        if is_under_way && load.held(1) > 150 {
            load.give_up(1);
            given_up += 1;
        }
    }
    assert!(given_up > 10, "{given_up}");
    load.give_up(1);
    for _ in 0..500 {
        load.append_alone(2, 4_000);
    }
    load.rest_within(4_000, "one group is left");
}

/// Its terms change often, and what is said of that takes room beside its entries.
#[test]
fn a_group_whose_term_changes_often_is_moved_as_densely_as_others() {
    for segment_size_bytes in [64 << 10, 256 << 10] {
        let mut live = Vec::new();
        for rounds_of_a_term in [10, 1_000_000] {
            let mut load = Load::new(segment_size_bytes, 2);
            for round in 0..3_000 {
                load.append(0, 1_000, 1 + round / rounds_of_a_term);
                load.append_alone(1, 2_000);
            }
            load.rest_within(2_000, "terms");
            live.push(load.stats().live_segments);
        }
        assert!(live[0] <= live[1] * 9 / 8, "{live:?}");
    }
}

/// One of many groups gives up what it has: a little in each of many dense segments.
#[test]
fn thin_garbage_in_dense_segments_is_one_segment_at_most() {
    const GROUPS: usize = 25;
    let mut load = Load::new(64 << 10, GROUPS + 1);
    for _ in 0..60 {
        for group in 0..GROUPS {
            for _ in 0..5 {
                load.append(group, 500, 1);
                load.append_alone(GROUPS, 1_000);
            }
        }
    }
    let thirty_segments = 30 * (64 << 10) / 4_000;
    for _ in 0..thirty_segments {
        load.append_alone(GROUPS, 4_000);
    }
    load.give_up(5);
    for _ in 0..thirty_segments {
        load.append_alone(GROUPS, 4_000);
    }
    load.rest_within(600, "one gave up");
}
