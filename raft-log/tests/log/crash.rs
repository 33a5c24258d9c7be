//! Every crash point: after each operation, with every subset of what is not durable.

use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, LogError, RecoveryReport, Submission};
use raft_proto::{HardState, Index, ReplicaId, Term, Time};

use crate::record;
use crate::tracked::Tracks;
use crate::workload::{
    DATA, Driven, Model, ModelReplica, Rng, Workload, agrees, batch, disk, is_split, key, open,
    options, seen_all,
};

/// What had been submitted and acknowledged when a copy of the disk was taken.
struct Point {
    disk: SimVfs,
    /// The state of which all is acknowledged.
    acknowledged: usize,
    /// The last that may be found.
    submitted: usize,
    /// A vote may be that of any state up to this one.
    voted: usize,
}

/// What a run of a workload leaves.
struct History {
    /// The state after each submission, and after each part of one that takes several records.
    models: Vec<Model>,
    /// Which of them is the state after so many submissions.
    ends: Vec<usize>,
    points: Vec<Point>,
    options: LaneOptions,
    seen: Seen,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    overwrites: u64,
    tombstones: u64,
    split: u64,
    sealed: u64,
    moved_bytes: u64,
    apart: u64,
}

impl Seen {
    fn take(&mut self, submission: &Submission, model: &Model, options: &LaneOptions) {
        let before = model.replicas.get(&(submission.group, submission.replica));
        let last = before.map_or(Index::ZERO, |replica| replica.last.index);
        let first = submission.entries.first().map(|batch| batch.first().index);
        let is_over = submission.restart_after.is_none() && first.is_some_and(|it| it <= last);
        self.overwrites += u64::from(is_over);
        self.tombstones += u64::from(submission.tombstone);
        self.split += u64::from(is_split(submission, options));
    }

    fn end_life(&mut self, driven: &Driven) {
        let stats = driven.lane.stats();
        self.sealed += stats.sealed_segments;
        self.moved_bytes += stats.moved_bytes;
        self.apart += stats.segments_apart;
    }
}

/// What a workload is made of.
#[derive(Clone, Copy)]
struct Kind {
    steps: usize,
    payload_max: u64,
    has_tombstones: bool,
    has_split: bool,
    has_laggard: bool,
}

const SMALL: Kind = Kind {
    steps: 30,
    payload_max: 60,
    has_tombstones: true,
    has_split: false,
    has_laggard: false,
};
const LARGE: Kind = Kind {
    steps: 40,
    payload_max: 5_000,
    has_tombstones: false,
    has_split: true,
    has_laggard: false,
};
const TURNOVER: Kind = Kind {
    steps: 90,
    payload_max: 5_000,
    has_tombstones: false,
    has_split: false,
    has_laggard: true,
};

/// A log in use, and what is known of it.
struct Run {
    history: History,
    driven: Driven,
    /// Submissions in flight, in order, by group and number; completed ones leave from the front.
    waiting: Vec<(u64, u64, bool)>,
    acknowledged: usize,
}

impl Run {
    fn submit(&mut self, workload: &mut Workload) {
        let submission: Submission = workload.draw();
        self.waiting
            .push((submission.group.get(), submission.submission, false));
        let history = &mut self.history;
        let before = history.models[history.models.len() - 1].clone();
        history.seen.take(&submission, &before, &history.options);
        if is_split(&submission, &history.options) {
            let key = (submission.group, submission.replica);
            let replica = before.replicas.get(&key).cloned();
            let replica = replica.unwrap_or_else(ModelReplica::blank);
            for part in replica.parts(&submission) {
                let mut model = before.clone();
                model.replicas.insert(key, part);
                history.models.push(model);
            }
        }
        history.models.push(workload.model.clone());
        history.ends.push(history.models.len() - 1);
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
        self.history.seen.end_life(&self.driven);
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
    workload.has_tombstones = kind.has_tombstones;
    workload.has_split = kind.has_split;
    workload.has_laggard = kind.has_laggard;
    let mut rng = Rng(seed ^ 1);
    let (driven, _) = Driven::open(&vfs, &options);
    let mut run = Run {
        history: History {
            models: vec![Model::default()],
            ends: vec![0],
            points: Vec::new(),
            options,
            seen: Seen::default(),
        },
        driven,
        waiting: Vec::new(),
        acknowledged: 0,
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
    run.history.seen.end_life(&run.driven);
    if kind.has_laggard {
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
            acknowledged: history.ends[acknowledged],
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

/// The state that the disk holds, and what was found; panics if it holds anything else.
fn check(history: &History, point: &Point, disk: &Arc<SimVfs>, what: &str) -> (usize, Model) {
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
            replica.map(ModelReplica::term_and_vote).unwrap_or_default()
        };
        let found = term_and_vote(&found);
        let is_known = replica.is_gone
            || history.models[prefix..=point.voted]
                .iter()
                .any(|model| term_and_vote(model) == found);
        assert!(is_known, "{what}: {key:?} votes {found:?}");
    }
    (prefix, found)
}

/// Whether both say the same, votes too.
fn is_same(found: &Model, model: &Model) -> bool {
    let votes = |model: &Model| {
        let living = model
            .replicas
            .iter()
            .filter(|(_, replica)| !replica.is_gone);
        let voted = living.map(|(key, replica)| (*key, replica.term_and_vote()));
        let voted = voted.filter(|(_, vote)| *vote != Default::default());
        voted.collect::<Vec<_>>()
    };
    agrees(found, model) && votes(found) == votes(model)
}

/// Opens once more, with a crash before or without: that changes nothing, and there is nothing to
/// report. Goes on, crashes again, and looks whether anything came back.
fn check_later(options: &LaneOptions, disk: &Arc<SimVfs>, first: &Model, seed: u64, what: &str) {
    if seed.is_multiple_of(2) {
        disk.crash();
    } else {
        disk.kill_process();
    }
    disk.set_now(Time(0));
    let (mut driven, recovery) = Driven::open(disk, options);
    let report = &recovery.report;
    assert_eq!(report, &RecoveryReport::default(), "{what}: opened twice");
    let found = seen_all(&driven.lane, &recovery).expect("it reads");
    assert!(
        is_same(&found, first),
        "{what}: opened twice: {found:#?}\nwas {first:#?}"
    );
    let mut workload = Workload::new(seed, 3, 300);
    workload.resume(found);
    for _ in 0..2 {
        driven.write(workload.draw());
        assert_eq!(driven.lane.pending_bytes(), 0, "{what}: it is durable");
    }
    let want = workload.model;
    disk.crash();
    drop(driven);
    let (lane, recovery) = open(disk, options).expect("it opens");
    let found = seen_all(&lane, &recovery).expect("it reads");
    assert!(
        is_same(&found, &want),
        "{what}: {found:#?}\nis not what was written after the crash: {want:#?}"
    );
}

/// What happened in all the runs.
fn every_crash(suite: &str, seeds: std::ops::Range<u64>, kind: Kind) -> Seen {
    let mut states = 0_u64;
    let mut rng = Rng(seeds.start);
    let mut seen = Seen::default();
    for seed in seeds {
        let groups = 2 + seed % 4;
        let history = run(seed, groups, kind);
        seen.overwrites += history.seen.overwrites;
        seen.tombstones += history.seen.tombstones;
        seen.split += history.seen.split;
        seen.sealed += history.seen.sealed;
        seen.moved_bytes += history.seen.moved_bytes;
        seen.apart += history.seen.apart;
        for (number, point) in history.points.iter().enumerate() {
            for (at, subset) in subsets(point.disk.unsynced(), &mut rng).iter().enumerate() {
                let what = format!("seed {seed} point {number} subset {at}");
                let disk = crashed(point, subset);
                let (_, found) = check(&history, point, &disk, &what);
                check_later(&history.options, &disk, &found, rng.next(), &what);
                states += 1;
            }
        }
    }
    record(suite, "crash_states", states);
    assert!(states > 5_000, "{states}");
    seen
}

#[test]
fn every_crash_point_of_small_records() {
    let seen = every_crash("log crashes, small records", 0..8, SMALL);
    assert!(seen.tombstones > 0 && seen.overwrites > 0, "{seen:?}");
}

#[test]
fn every_crash_point_across_segments() {
    let seen = every_crash("log crashes, many segments", 100..102, LARGE);
    assert!(seen.sealed > 0 && seen.overwrites > 0, "{seen:?}");
    assert!(seen.split > 0, "some take several records: {seen:?}");
}

#[test]
fn fault_25_every_crash_point_of_compaction_collection_and_recycling() {
    let suite = "log crashes, segments collected and recycled";
    let seen = every_crash(suite, 300..302, TURNOVER);
    assert!(seen.moved_bytes > 0, "laggards are collected: {seen:?}");
    assert!(seen.apart > 3, "{seen:?}");
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
            let (prefix, _) = check(&history, point, &Arc::new(disk.fork()), &what);
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
                let some = all.len().min(4);
                for _ in 0..some {
                    let at = usize::try_from(rng.below(1 << 20)).expect("small") % all.len();
                    let disk = crashed(&during, &all[at]);
                    let what = format!("{what}, recovery point {within} subset {at}");
                    let (again, found) = check(&history, &during, &disk, &what);
                    assert_eq!(again, prefix);
                    check_later(&history.options, &disk, &found, rng.next(), &what);
                    states += 1;
                }
            }
        }
    }
    record("log crashes during recovery", "crash_states", states);
    assert!(states > 1_000, "{states}");
}

/// Every crash of these copies of a disk, of each of which is known what may be found.
fn every_crash_of(suite: &str, points: &[(SimVfs, Tracks)], options: &LaneOptions) {
    let mut states = 0_u64;
    let mut rng = Rng(5);
    for (number, (point, tracks)) in points.iter().enumerate() {
        for (at, subset) in subsets(point.unsynced(), &mut rng).iter().enumerate() {
            let what = format!("point {number} subset {at}");
            let disk = Arc::new(point.fork());
            disk.crash_keeping(|unit| subset[unit]);
            if at % 2 == 0 {
                disk.set_capacity(None);
            }
            let (lane, recovery) = match open(&disk, options) {
                Err(LogError::Io(error)) if error.is_storage_full() => {
                    // It needs room, and says so; then it opens.
                    disk.kill_process();
                    disk.set_capacity(None);
                    open(&disk, options).unwrap_or_else(|error| panic!("{what}: {error}"))
                }
                opened => opened.unwrap_or_else(|error| panic!("{what}: {error}")),
            };
            let report = &recovery.report;
            assert!(report.damaged.is_empty(), "{what}: {report:?}");
            let found = seen_all(&lane, &recovery).expect("it reads");
            tracks.check(&found, &what);
            drop(lane);
            disk.set_capacity(None);
            check_later(options, &disk, &found, rng.next(), &what);
            states += 1;
        }
    }
    record(suite, "crash_states", states);
    assert!(states > 1_000, "{states}");
}

#[test]
fn fault_16_every_crash_point_while_entries_wait_for_room() {
    let options = LaneOptions {
        collect_bytes_max: 8 << 10,
        ..options()
    };
    let mut points = Vec::new();
    let (mut held, mut others) = (0, 0);
    for seed in 0..2 {
        let vfs = disk(seed);
        let (mut driven, _) = Driven::open(&vfs, &options);
        let mut workload = Workload::new(seed, 4, 3_000);
        workload.has_split = true;
        for _ in 0..20 {
            driven.write(workload.draw());
        }
        let mut tracks = Tracks::new(&workload.model);
        vfs.set_capacity(Some(vfs.used_bytes()));
        vfs.record_crash_points();
        for round in 0..50 {
            if round == 40 {
                vfs.set_capacity(None);
                driven.pass(2_000_000_000);
            }
            for _ in 0..3 {
                let before = workload.model.clone();
                let submission = workload.draw();
                tracks.submit(&submission, &options);
                let copy = submission.clone();
                match driven.lane.submit(submission) {
                    Ok(()) => {}
                    Err(LogError::StorageFull) => {
                        tracks.refuse(&copy, &options);
                        workload.model = before;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            for _ in 0..6 {
                driven.step();
                let is_held = driven.lane.stats().is_full && driven.lane.pending_bytes() > 0;
                for point in vfs.take_crash_points() {
                    if is_held {
                        held += 1;
                    } else {
                        others += 1;
                    }
                    // The others have tests of their own.
                    if is_held || others % 4 == 0 {
                        points.push((point, tracks.clone()));
                    }
                }
                for done in driven.lane.take_completions() {
                    tracks.complete(&done);
                }
            }
        }
        driven.pass(2_000_000_000);
        for done in driven.lane.take_completions() {
            tracks.complete(&done);
        }
        assert!(tracks.is_acknowledged(), "what waited is durable at last");
    }
    assert!(held > 20, "something waits at {held} points");
    every_crash_of("log crashes, entries waiting for room", &points, &options);
}

/// The vote file is made anew beside itself: in peace, ahead of need, and when a burst of new
/// replicas has filled it.
#[test]
fn every_crash_point_while_the_vote_file_grows() {
    const ROOM: u64 = 1_024;
    let options = options();
    let mut points = Vec::new();
    for is_in_peace in [true, false] {
        let vfs = disk(3);
        let (mut driven, _) = Driven::open(&vfs, &options);
        let mut tracks = Tracks::default();
        let before = if is_in_peace { ROOM - 140 } else { ROOM - 3 };
        let vote = |driven: &mut Driven, tracks: &mut Tracks, group: u64, number: u64| {
            let mut submission = Submission::new(key(group).0, key(group).1, number);
            submission.hard_state = Some(HardState {
                term: Term::new(number),
                vote: ReplicaId::new(3),
                ..HardState::default()
            });
            if group.is_multiple_of(100) {
                let (term, from) = (Term::new(number), Index::new(number));
                submission.entries = vec![batch(&mut Rng(group), key(group).0, term, from, 1, 50)];
            }
            tracks.submit(&submission, &options);
            driven.lane.submit(submission).expect("it is taken");
        };
        for group in 1..=before {
            vote(&mut driven, &mut tracks, group, 1);
        }
        for done in driven.settle() {
            tracks.complete(&done);
        }
        assert!(tracks.is_acknowledged());
        let votes = Path::new(DATA).join("votes");
        let len = || {
            let file = vfs.open(&votes, false).expect("it is there");
            let len = vfs.len(file).expect("it has a length");
            vfs.close(file);
            len
        };
        let len_before = len();
        vfs.record_crash_points();
        for round in 0..6 {
            for at in 0..3 {
                vote(&mut driven, &mut tracks, before + 1 + round * 3 + at, 1);
            }
            vote(&mut driven, &mut tracks, 1 + round, 2);
            for _ in 0..40 {
                driven.step();
                let new = vfs.take_crash_points().into_iter();
                points.extend(new.map(|point| (point, tracks.clone())));
                for done in driven.lane.take_completions() {
                    tracks.complete(&done);
                }
            }
        }
        assert!(tracks.is_acknowledged());
        assert!(len() > len_before, "it has grown");
    }
    every_crash_of("log crashes, the vote file growing", &points, &options);
}
