//! Every crash point: after each operation, with every subset of what is not durable.

use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, Submission};
use raft_proto::HardState;

use crate::record;
use crate::workload::{DATA, Driven, Model, Rng, Workload, agrees, disk, open, options, seen_all};

/// What had been submitted and acknowledged when a copy of the disk was taken.
struct Point {
    disk: SimVfs,
    /// All submissions up to this many are acknowledged.
    acknowledged: usize,
    submitted: usize,
    /// A vote may be that of any submission up to this many.
    voted: usize,
}

/// What a run of a workload leaves.
struct History {
    /// The state after each number of submissions.
    models: Vec<Model>,
    points: Vec<Point>,
    options: LaneOptions,
}

/// What a workload is made of.
#[derive(Clone, Copy)]
struct Kind {
    steps: usize,
    payload_max: u64,
    has_laggard: bool,
}

const SMALL: Kind = Kind {
    steps: 30,
    payload_max: 60,
    has_laggard: false,
};
const LARGE: Kind = Kind {
    steps: 60,
    payload_max: 5_000,
    has_laggard: false,
};
const TURNOVER: Kind = Kind {
    steps: 90,
    payload_max: 5_000,
    has_laggard: true,
};

/// A log in use, and what is known of it.
struct Run {
    history: History,
    driven: Driven,
    /// Submissions in flight, in order, by group and number; completed ones leave from the front.
    waiting: Vec<(u64, u64, bool)>,
    acknowledged: usize,
    /// Bytes of laggards moved in the lives before.
    moved_bytes: u64,
}

impl Run {
    fn submit(&mut self, workload: &mut Workload) {
        let submission: Submission = workload.draw();
        self.waiting
            .push((submission.group.get(), submission.submission, false));
        self.history.models.push(workload.model.clone());
        self.driven.lane.submit(submission).expect("it is taken");
    }

    fn step(&mut self) {
        self.driven.step();
        take_points(&mut self.history, &self.driven.vfs, self.acknowledged);
        for done in self.driven.lane.take_completions() {
            done.result.expect("nothing fails here");
            let of = (done.group.get(), done.submission);
            let found = self
                .waiting
                .iter_mut()
                .find(|(group, number, _)| (*group, *number) == of)
                .expect("it was submitted");
            found.2 = true;
        }
        while self.waiting.first().is_some_and(|first| first.2) {
            self.waiting.remove(0);
            self.acknowledged += 1;
        }
    }

    /// The burst ends.
    fn rest(&mut self) {
        self.driven.pass(300_000_000);
        take_points(&mut self.history, &self.driven.vfs, self.acknowledged);
        self.driven.lane.take_completions();
        self.acknowledged += self.waiting.len();
        self.waiting.clear();
    }

    /// A clean close, and another life.
    fn reopen(mut self) -> Self {
        self.rest();
        let (vfs, now) = (Arc::clone(&self.driven.vfs), self.driven.now);
        self.moved_bytes += self.driven.lane.stats().moved_bytes;
        self.driven.lane.close().expect("it closes");
        let (mut driven, _) = Driven::open(&vfs, &self.history.options);
        driven.now = now;
        take_points(&mut self.history, &vfs, self.acknowledged);
        Self { driven, ..self }
    }
}

fn run(seed: u64, groups: u64, kind: Kind) -> History {
    let options = LaneOptions {
        spare_segments: 1 + usize::try_from(seed % 2).expect("small"),
        collect_bytes_max: 8 << 10,
        tail_cache_bytes_max: [0, 32 << 10][usize::try_from(seed / 2 % 2).expect("small")],
        ..options()
    };
    let vfs = disk(seed);
    vfs.record_crash_points();
    let mut workload = Workload::new(seed, groups, kind.payload_max);
    workload.has_tombstones = seed.is_multiple_of(3);
    workload.has_laggard = kind.has_laggard;
    let mut rng = Rng(seed ^ 1);
    let (driven, _) = Driven::open(&vfs, &options);
    let mut run = Run {
        history: History {
            models: vec![Model::default()],
            points: Vec::new(),
            options,
        },
        driven,
        waiting: Vec::new(),
        acknowledged: 0,
        moved_bytes: 0,
    };
    take_points(&mut run.history, &vfs, 0);
    for _ in 0..kind.steps {
        for _ in 0..1 + rng.below(4) {
            run.submit(&mut workload);
        }
        for _ in 0..1 + rng.below(8) {
            run.step();
        }
        if rng.one_in(12) {
            run.rest();
        }
        if rng.one_in(30) {
            run = run.reopen();
        }
    }
    if kind.has_laggard {
        let moved_bytes = run.moved_bytes + run.driven.lane.stats().moved_bytes;
        assert!(moved_bytes > 0, "laggards are collected");
        assert!(has_recycled(&vfs), "segments are recycled");
    }
    run.history
}

/// Whether a segment has its second life.
fn has_recycled(vfs: &SimVfs) -> bool {
    let dir = Path::new(DATA).join("log/0");
    let entries = vfs.list(&dir).expect("it lists");
    entries.iter().any(|entry| {
        let file = vfs.open(&dir.join(&entry.name), false).expect("it opens");
        let flags = vfs.read(file, 14, 2).expect("it reads");
        vfs.close(file);
        flags[..] == [1, 0]
    })
}

fn take_points(history: &mut History, vfs: &SimVfs, acknowledged: usize) {
    let submitted = history.models.len() - 1;
    history
        .points
        .extend(vfs.take_crash_points().into_iter().map(|disk| Point {
            disk,
            acknowledged,
            submitted,
            voted: submitted,
        }));
}

/// The subsets to try: all when there are ten units or fewer, else 64 random ones.
fn subsets(units: usize, rng: &mut Rng) -> Vec<Vec<bool>> {
    if units <= 10 {
        (0..1_usize << units)
            .map(|bits| (0..units).map(|unit| bits >> unit & 1 == 1).collect())
            .collect()
    } else {
        let mut all = vec![vec![false; units], vec![true; units]];
        all.extend((0..62).map(|_| (0..units).map(|_| rng.one_in(2)).collect()));
        all
    }
}

fn crashed(point: &Point, subset: &[bool]) -> Arc<SimVfs> {
    let disk = point.disk.fork();
    disk.crash_keeping(|unit| subset[unit]);
    Arc::new(disk)
}

/// The number of submissions that the disk holds; panics if it holds anything else.
fn check(history: &History, point: &Point, disk: &Arc<SimVfs>, what: &str) -> usize {
    let (lane, recovery) =
        open(disk, &history.options).unwrap_or_else(|error| panic!("{what}: {error}"));
    let report = &recovery.report;
    assert!(
        report.damaged.is_empty() && report.missing.is_empty() && report.foreign.is_empty(),
        "{what}: a crash is no damage: {report:?}"
    );
    let found = seen_all(&lane, &recovery).unwrap_or_else(|error| panic!("{what}: {error}"));
    let prefix = (point.acknowledged..=point.submitted)
        .find(|&count| agrees(&found, &history.models[count]))
        .unwrap_or_else(|| {
            panic!(
                "{what}: {} of {} acknowledged, found {found:#?}\nexpected {:#?}",
                point.acknowledged, point.submitted, history.models[point.acknowledged]
            )
        });
    // A vote may be ahead of the record that was cut, never behind.
    for (key, replica) in &history.models[prefix].replicas {
        let term_and_vote = |model: &Model| {
            let replica = model.replicas.get(key);
            let hard_state = replica.map_or_else(HardState::default, |found| found.hard_state);
            (hard_state.term, hard_state.vote)
        };
        let found = term_and_vote(&found);
        let is_known = replica.is_gone
            || history.models[prefix..=point.voted]
                .iter()
                .any(|model| term_and_vote(model) == found);
        assert!(is_known, "{what}: {key:?} votes {found:?}");
    }
    prefix
}

/// Goes on after the crash, crashes again, and looks whether anything came back.
fn check_resurrection(history: &History, disk: &Arc<SimVfs>, prefix: usize, seed: u64, what: &str) {
    let (mut driven, recovery) = Driven::open(disk, &history.options);
    let found = seen_all(&driven.lane, &recovery).expect("it reads");
    assert!(agrees(&found, &history.models[prefix]), "{what}: changed");
    let mut workload = Workload::new(seed, 3, 300);
    workload.resume(found);
    for _ in 0..6 {
        let submission = workload.draw();
        driven.write(submission);
    }
    let want = workload.model.clone();
    drop(driven);
    disk.crash();
    let (lane, recovery) = open(disk, &history.options).expect("it opens");
    let found = seen_all(&lane, &recovery).expect("it reads");
    assert!(
        agrees(&found, &want),
        "{what}: {found:#?}\nis not what was written after the crash: {want:#?}"
    );
}

fn every_crash(suite: &str, seeds: std::ops::Range<u64>, kind: Kind) {
    let mut states = 0_u64;
    let mut rng = Rng(seeds.start);
    for seed in seeds {
        let groups = 2 + seed % 4;
        let history = run(seed, groups, kind);
        for (number, point) in history.points.iter().enumerate() {
            for (at, subset) in subsets(point.disk.unsynced(), &mut rng).iter().enumerate() {
                let what = format!("seed {seed} point {number} subset {at}");
                let disk = crashed(point, subset);
                let prefix = check(&history, point, &disk, &what);
                states += 1;
                if rng.one_in(8) {
                    // Recovering twice changes nothing, and what comes after stays.
                    check_resurrection(&history, &disk, prefix, rng.next(), &what);
                }
            }
        }
    }
    record(suite, "crash_states", states);
    assert!(states > 5_000, "{states}");
}

#[test]
fn every_crash_point_of_small_records() {
    every_crash("log crashes, small records", 0..8, SMALL);
}

#[test]
fn every_crash_point_across_segments() {
    every_crash("log crashes, many segments", 100..102, LARGE);
}

#[test]
fn fault_25_every_crash_point_of_compaction_collection_and_recycling() {
    every_crash(
        "log crashes, segments collected and recycled",
        300..302,
        TURNOVER,
    );
}

#[test]
fn fault_2_a_crash_during_recovery_ends_in_the_same_state() {
    let mut states = 0_u64;
    let mut rng = Rng(77);
    for seed in 200..206 {
        let kind = [SMALL, LARGE, TURNOVER][usize::try_from(seed % 3).expect("small")];
        let history = run(seed, 3, kind);
        for (number, point) in history.points.iter().enumerate().step_by(5) {
            let all = subsets(point.disk.unsynced(), &mut rng);
            let at = usize::try_from(rng.below(64)).expect("small") % all.len();
            let disk = crashed(point, &all[at]);
            let what = format!("seed {seed} point {number} subset {at}");
            let prefix = check(&history, point, &Arc::new(disk.fork()), &what);
            disk.record_crash_points();
            drop(open(&disk, &history.options).expect("it opens"));
            for (within, during) in disk.take_crash_points().into_iter().enumerate() {
                let during = Point {
                    disk: during,
                    acknowledged: prefix,
                    submitted: prefix,
                    voted: point.voted,
                };
                let all = subsets(during.disk.unsynced(), &mut rng);
                let some = all.len().min(6);
                for _ in 0..some {
                    let at = usize::try_from(rng.below(1 << 20)).expect("small") % all.len();
                    let disk = crashed(&during, &all[at]);
                    let what = format!("{what}, recovery point {within} subset {at}");
                    let again = check(&history, &during, &disk, &what);
                    assert_eq!(again, prefix);
                    states += 1;
                }
            }
        }
    }
    record("log crashes during recovery", "crash_states", states);
    assert!(states > 1_000, "{states}");
}
