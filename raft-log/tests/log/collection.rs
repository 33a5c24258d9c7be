//! What the log moves by itself is paid for by what was appended, and leaves no more behind than
//! was promised.

use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Lane, LaneOptions, LaneStats, Progress, Submission};
use raft_proto::{BatchBuilder, EntryKind, Index, Term, Time};

use crate::lanes::OfLane;
use crate::workload::{DATA, Driven, disk, key, options};

const GROUPS: u64 = 16;

fn append(group: u64, index: u64, bytes: usize) -> Submission {
    let (id, replica) = key(group);
    let mut submission = Submission::new(id, replica, index);
    let mut batch = BatchBuilder::new(id, Term::new(1), Index::new(index), bytes);
    batch.push(EntryKind::Command, 1, None, &vec![7; bytes]);
    submission.entries = vec![batch.finish().expect("one entry")];
    submission
}

/// One small entry at a time, each in a record of its own, a pause behind each, nothing compacted:
/// headers and footers outweigh the entries, and there is nothing to be won but those, once.
#[test]
fn small_records_that_stay_are_not_moved_again_and_again() {
    let options = LaneOptions {
        record_bytes_max: 16 << 10,
        ..options()
    };
    let (mut driven, _) = Driven::open(&disk(1), &options);
    for n in 0..6_000 {
        let submission = append(n % GROUPS + 1, n / GROUPS + 1, 40);
        driven.lane.submit(submission).expect("it is taken");
        // Longer than a burst lasts.
        driven.pass(200_000_000);
        for done in driven.lane.take_completions() {
            done.result.expect("it is durable");
        }
    }
    let stats = driven.lane.stats();
    let (moved, written) = (stats.moved_bytes, stats.written_bytes);
    assert!(moved > 0, "the headers of old segments are won back");
    assert!(2 * moved <= written, "{moved} of {written} bytes moved");
}

/// Lanes of one disk, in use at a time.
struct Lanes {
    disk: Arc<SimVfs>,
    lanes: Vec<Lane>,
    now: Time,
}

impl Lanes {
    fn open(count: usize, options: &LaneOptions) -> Self {
        let disk = disk(1);
        let vfs = OfLane::all(&disk, count).into_iter().enumerate();
        let lanes = vfs.map(|(at, vfs)| {
            let vfs: Arc<dyn Vfs> = vfs;
            let options = LaneOptions {
                lane: u16::try_from(at).expect("few"),
                ..options.clone()
            };
            Lane::open(vfs, DATA.as_ref(), options).expect("it opens").0
        });
        Self {
            lanes: lanes.collect(),
            disk,
            now: Time(0),
        }
    }

    /// Lets a span pass; whatever ends in it is durable. Returns how many did.
    fn pass(&mut self, nanos: u64) -> usize {
        let end = self.now.plus_nanos(nanos);
        let mut ended = 0;
        while self.now < end {
            let mut next = Some(end);
            for lane in &mut self.lanes {
                match lane.poll(self.now) {
                    Progress::More => next = None,
                    Progress::Idle { until } => {
                        next = next.map(|next| until.unwrap_or(next).min(next));
                    }
                }
                for done in lane.take_completions() {
                    done.result.expect("it is durable");
                    ended += 1;
                }
            }
            if let Some(next) = next {
                let next = self.disk.next_completion_time().unwrap_or(next).min(next);
                self.now = Time(self.now.0 + 1).max(next).min(end);
                self.disk.set_now(self.now);
            }
        }
        ended
    }

    fn stats(&self) -> LaneStats {
        self.lanes.iter().fold(LaneStats::default(), |sum, lane| {
            let stats = lane.stats();
            LaneStats {
                live_segment_bytes: sum.live_segment_bytes + stats.live_segment_bytes,
                moved_bytes: sum.moved_bytes + stats.moved_bytes,
                sealed_segments: sum.sealed_segments + stats.sealed_segments,
                ..sum
            }
        })
    }
}

/// How much is written, and of what.
#[derive(Clone, Copy)]
struct Turnover {
    rounds: u64,
    /// A round's entry of the group that keeps three.
    bytes: usize,
    /// An entry, each so many rounds, of the group that keeps all.
    laggard_bytes: usize,
    laggard_every: u64,
}

/// Turns each lane over. Returns what that leaves, and what those hold who never compact.
fn turned_over(
    lanes: usize,
    options: &LaneOptions,
    turnover: Turnover,
    has_laggard: bool,
) -> (LaneStats, u64) {
    let Turnover {
        rounds,
        bytes,
        laggard_bytes,
        laggard_every,
    } = turnover;
    let mut all = Lanes::open(lanes, options);
    let (mut own, mut laggard) = (0, 0);
    for round in 1..=rounds {
        let mut waiting = 0;
        for lane in &mut all.lanes {
            let mut submission = append(1, round, bytes);
            submission.compact_before = Some(Index::new(round.saturating_sub(3).max(1)));
            lane.submit(submission).expect("it is taken");
            waiting += 1;
        }
        if has_laggard && round % laggard_every == 0 {
            laggard += 1;
            for lane in &mut all.lanes {
                let submission = append(2, laggard, laggard_bytes);
                own += u64::try_from(submission.entries_bytes()).expect("small");
                lane.submit(submission).expect("it is taken");
                waiting += 1;
            }
        }
        while waiting > 0 {
            waiting -= all.pass(1_000_000);
        }
    }
    all.pass(10_000_000_000);
    for lane in all.lanes.iter().filter(|_| has_laggard) {
        let last = Index::new(laggard);
        let range = lane.reader().range(key(2).0, key(2).1);
        assert_eq!(range, Some((Index::new(1), last)), "it is all there");
        let batches = lane
            .reader()
            .batches(key(2).0, key(2).1, Index::new(1), last);
        let read: usize = batches.map(|batch| batch.expect("it reads").len()).sum();
        assert_eq!(u64::try_from(read).expect("small"), laggard);
    }
    (all.stats(), own)
}

/// Those who never compact pin their own bytes, and one segment in each lane.
fn check_bound(lanes: usize, options: &LaneOptions, turnover: Turnover) {
    let (without, _) = turned_over(lanes, options, turnover, false);
    let (stats, own) = turned_over(lanes, options, turnover, true);
    assert!(stats.moved_bytes > 0, "{stats:?}");
    assert!(stats.sealed_segments > 4, "{stats:?}");
    // What the others take without them is not their doing.
    let pinned = stats
        .live_segment_bytes
        .saturating_sub(without.live_segment_bytes);
    let count = u64::try_from(lanes).expect("few");
    let bound = own + count * options.segment_size_bytes;
    assert!(
        pinned <= bound,
        "{lanes} lanes: {pinned} bytes pinned by {own}: {stats:?}, {without:?} without"
    );
}

#[test]
fn groups_that_never_compact_pin_their_own_bytes_and_one_segment_a_lane() {
    let options = LaneOptions {
        collect_bytes_max: 16 << 10,
        ..options()
    };
    let turnover = Turnover {
        rounds: 2_000,
        bytes: 4_000,
        laggard_bytes: 500,
        laggard_every: 20,
    };
    for lanes in [1, 2] {
        check_bound(lanes, &options, turnover);
    }
}

/// As a host opens it.
#[test]
fn groups_that_never_compact_pin_no_more_by_default() {
    let turnover = Turnover {
        rounds: 150,
        bytes: 4 << 20,
        laggard_bytes: 30_000,
        laggard_every: 4,
    };
    check_bound(2, &LaneOptions::default(), turnover);
}
