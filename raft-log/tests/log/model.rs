//! Many lives of one log against a map: random operations, crashes and errors, on one lane and on
//! two, read back in every way there is.

use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{Fault, ReadMode, SimVfs, StdVfs, Vfs};
use raft_log::{Lane, LaneOptions, LogError, Progress};
use raft_proto::Time;

use crate::lanes::OfLane;
use crate::record;
use crate::tally::{OPERATIONS, READS, Tally, end_life};
use crate::tracked::{Tracks, read_back};
use crate::workload::{DATA, Rng, Workload, disk, options, seen_all};

/// As the system says them.
const FAULTS: [(&str, Fault); 5] = [
    ("EIO", Fault::Errno(5)),
    ("ENOSPC", Fault::Errno(28)),
    ("EMFILE", Fault::Errno(24)),
    ("EINTR", Fault::Errno(4)),
    ("short count", Fault::Short),
];

/// One lane in use.
struct Used {
    lane: Lane,
    workload: Workload,
    tracks: Tracks,
}

/// What is known of each lane between two lives.
type Known = Vec<(Workload, Tracks)>;

/// Lanes of one directory, in use at a time.
struct World {
    /// The simulated disk, if it is one.
    disk: Option<Arc<SimVfs>>,
    lanes: Vec<Used>,
    now: Time,
}

/// The vfs of each lane.
fn each_lane(disk: &Arc<SimVfs>, lanes: usize) -> Vec<Arc<dyn Vfs>> {
    let all = OfLane::all(disk, lanes).into_iter();
    all.map(|vfs| -> Arc<dyn Vfs> { vfs }).collect()
}

fn of_lane(options: &LaneOptions, lane: usize) -> LaneOptions {
    LaneOptions {
        lane: u16::try_from(lane).expect("few"),
        ..options.clone()
    }
}

impl World {
    /// Opens all lanes and holds what they found against what is known.
    fn open(
        vfs: &[Arc<dyn Vfs>],
        dir: &Path,
        options: &LaneOptions,
        known: Known,
        what: &str,
    ) -> Result<Self, (LogError, Known)> {
        let mut opened = Vec::new();
        for (at, vfs) in vfs.iter().enumerate() {
            match Lane::open(Arc::clone(vfs), dir, of_lane(options, at)) {
                Ok(lane) => opened.push(lane),
                Err(error) => return Err((error, known)),
            }
        }
        let mut lanes = Vec::new();
        for ((lane, recovery), (mut workload, tracks)) in opened.into_iter().zip(known) {
            let report = &recovery.report;
            let is_sound = report.damaged.is_empty() && report.missing.is_empty();
            assert!(is_sound, "{what}: no crash is damage: {report:?}");
            let found = seen_all(&lane, &recovery).expect("it reads");
            tracks.check(&found, what);
            let tracks = Tracks::new(&found);
            workload.resume(found);
            lanes.push(Used {
                lane,
                workload,
                tracks,
            });
        }
        Ok(Self {
            disk: None,
            lanes,
            now: Time(0),
        })
    }

    /// One poll of each lane, and on to the next moment at which something happens.
    fn step(&mut self) {
        let mut next: Option<Time> = None;
        let mut is_busy = false;
        for used in &mut self.lanes {
            match used.lane.poll(self.now) {
                Progress::More => is_busy = true,
                Progress::Idle { until } => next = [next, until].into_iter().flatten().min(),
            }
        }
        if is_busy {
            return;
        }
        match &self.disk {
            Some(disk) => {
                let due = disk.next_completion_time();
                let next = [next, due].into_iter().flatten().min();
                self.now = self.now.max(next.unwrap_or(self.now));
                disk.set_now(self.now);
            }
            None => {
                self.now = self.now.plus_nanos(1_000_000);
                std::thread::yield_now();
            }
        }
    }

    /// Takes what has ended.
    fn take(&mut self) {
        for used in &mut self.lanes {
            for done in used.lane.take_completions() {
                used.tracks.complete(&done);
            }
        }
    }

    /// Until all that was submitted has ended, or nothing more can for now. Whether it has.
    fn settle(&mut self) -> bool {
        for _ in 0..2_000 {
            self.step();
            self.take();
            if self.lanes.iter().all(|used| used.tracks.is_settled()) {
                return true;
            }
        }
        false
    }

    /// A submission to one of the lanes. `false`: it is latched.
    fn submit(&mut self, at: usize, options: &LaneOptions, tally: &mut Tally, what: &str) -> bool {
        let used = &mut self.lanes[at];
        let before = used.workload.model.clone();
        let is_full = used.lane.reader().space().is_full();
        let submission = used.workload.draw();
        used.tracks.submit(&submission, options);
        let copy = submission.clone();
        match used.lane.submit(submission) {
            Ok(()) => {
                let key = (copy.group, copy.replica);
                tally.operations(&copy, before.replicas.get(&key));
                tally.add("taken on a full disk", u64::from(is_full));
                true
            }
            Err(LogError::Latched(_)) => {
                used.tracks.refuse(&copy, options);
                used.workload.model = before;
                false
            }
            Err(LogError::StorageFull) => {
                tally.add("refused on a full disk", 1);
                used.tracks.refuse(&copy, options);
                used.workload.model = before;
                true
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// Reads all that is durable, in every way there is, when nothing else is on its way.
    fn check_reads(&self, rng: &mut Rng, tally: &mut Tally, what: &str) {
        for used in self
            .lanes
            .iter()
            .filter(|used| used.tracks.is_acknowledged())
        {
            let reader = used.lane.reader();
            for (key, replica) in &used.tracks.newest().replicas {
                let way = usize::try_from(rng.below(4)).expect("small");
                let bytes_max = [None, Some(1), Some(3_000), Some(usize::MAX)][way];
                match read_back(&reader, *key, replica, bytes_max, what) {
                    Ok(read) => tally.reads(read),
                    // The call that was to fail.
                    Err(LogError::Io(_)) => tally.add("reads that failed", 1),
                    Err(error) => panic!("{what}: {key:?}: {error}"),
                }
            }
        }
    }

    /// Ends the life. A clean close makes all durable that was submitted.
    fn end(self, is_clean: bool, tally: &mut Tally) -> Known {
        let mut known = Vec::new();
        for mut used in self.lanes {
            tally.add("bytes of laggards moved", used.lane.stats().moved_bytes);
            if is_clean {
                for done in used.lane.take_completions() {
                    used.tracks.complete(&done);
                }
                if used.lane.close().is_ok() {
                    tally.add("clean closes", 1);
                    used.tracks.acknowledge_all();
                }
            }
            known.push((used.workload, used.tracks));
        }
        known
    }
}

fn blank_lanes(seed: u64, lanes: usize, payload_max: u64) -> Known {
    let one = |at: usize| {
        let at = u64::try_from(at).expect("few");
        let mut workload = Workload::new(seed ^ at << 32, 4, payload_max);
        // The second lane always has a laggard, the first now and then.
        workload.has_laggard = at == 1 || seed % 4 == 1;
        workload.has_tombstones = true;
        workload.has_split = true;
        (workload, Tracks::default())
    };
    (0..lanes).map(one).collect()
}

fn drawn_options(seed: u64) -> LaneOptions {
    let small = |number: u64| usize::try_from(number).expect("small");
    LaneOptions {
        collect_bytes_max: 4 << 10,
        spare_segments: 1 + small(seed % 3),
        verify_all: seed.is_multiple_of(2),
        tail_cache_bytes_max: [0, 16 << 10, 1 << 20][small(seed / 3 % 3)],
        ..options()
    }
}

#[test]
fn fault_29_many_lives_lose_nothing_acknowledged() {
    const SEEDS: u64 = 300;
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        live(seed, &mut tally);
    }
    record("log lives against a map", "seeds", SEEDS);
    let suite = "log operations against a map";
    record(suite, "operations", tally.sum(&OPERATIONS));
    record(suite, "crashes", tally.sum(&["crashes", "kills"]));
    tally.demand(&OPERATIONS);
    tally.demand(&READS);
    tally.demand(&FAULTS.map(|(name, _)| name));
    tally.demand(&[
        "taken on a full disk",
        "refused on a full disk",
        "bytes of laggards moved",
        "clean closes",
        "crashes",
        "kills",
        "opens that failed",
        "lives of two lanes",
        "lives with a tail cache",
        "lives without a tail cache",
        "lives that latched",
    ]);
    assert!(tally.of("lives") > SEEDS * 4, "{tally:?}");
    assert!(tally.of("bytes of laggards moved") > 100_000, "{tally:?}");
}

/// The lives of one log on the simulated disk.
fn live(seed: u64, tally: &mut Tally) {
    let mut rng = Rng(seed);
    let options = drawn_options(seed);
    let disk = disk(seed);
    let lanes = 1 + usize::from(seed % 3 == 2);
    let payload_max = [30, 500, 5_000][usize::try_from(rng.below(3)).expect("small")];
    let mut known = blank_lanes(seed, lanes, payload_max);
    for life in 0..8 {
        let what = format!("seed {seed} life {life}");
        if rng.one_in(4) {
            let (_, fault) = FAULTS[usize::try_from(rng.below(5)).expect("small")];
            disk.fault_at(disk.calls() + 1 + rng.below(30), fault);
        }
        let vfs = each_lane(&disk, lanes);
        let opened = World::open(&vfs, DATA.as_ref(), &options, known, &what);
        disk.fault_at(u64::MAX, Fault::Short);
        let mut world = match opened {
            Ok(world) => world,
            Err((error, before)) => {
                // An open that failed is done again.
                let is_damage = matches!(error, LogError::Damaged { .. });
                assert!(!is_damage, "{what}: {error}");
                tally.add("opens that failed", 1);
                disk.set_capacity(None);
                end_life(&disk, &mut rng, tally);
                known = before;
                continue;
            }
        };
        world.disk = Some(Arc::clone(&disk));
        tally.add("lives", 1);
        tally.add("lives of two lanes", u64::from(lanes == 2));
        let has_cache = options.tail_cache_bytes_max > 0;
        tally.add("lives with a tail cache", u64::from(has_cache));
        tally.add("lives without a tail cache", u64::from(!has_cache));
        let mut failing = None;
        if rng.one_in(3) {
            let (name, fault) = FAULTS[usize::try_from(rng.below(5)).expect("small")];
            let call = disk.calls() + 1 + rng.below(150);
            disk.fault_at(call, fault);
            failing = Some((name, call));
        }
        let is_latched = !use_it(&mut world, &disk, &options, &mut rng, tally, &what);
        tally.add("lives that latched", u64::from(is_latched));
        if let Some((name, _)) = failing.filter(|(_, call)| *call <= disk.calls()) {
            tally.add(name, 1);
        }
        let is_clean = rng.one_in(4);
        known = world.end(is_clean, tally);
        disk.fault_at(u64::MAX, Fault::Short);
        if rng.one_in(2) {
            disk.set_capacity(None);
        }
        end_life(&disk, &mut rng, tally);
    }
    // The last word.
    disk.set_capacity(None);
    let vfs = each_lane(&disk, lanes);
    let what = format!("seed {seed} at the end");
    let opened = World::open(&vfs, DATA.as_ref(), &options, known, &what);
    drop(opened.unwrap_or_else(|(error, _)| panic!("{what}: {error}")));
}

/// One life: submissions, and a full disk now and then. `false`: a lane latched.
fn use_it(
    world: &mut World,
    disk: &SimVfs,
    options: &LaneOptions,
    rng: &mut Rng,
    tally: &mut Tally,
    what: &str,
) -> bool {
    let has_laggard = world.lanes.iter().any(|used| used.workload.has_laggard);
    for round in 0..rng.below(if has_laggard { 90 } else { 40 }) {
        if rng.one_in(30) {
            disk.set_capacity(Some(disk.used_bytes() + rng.below(2) * (64 << 10)));
        }
        if rng.one_in(30) {
            disk.set_capacity(None);
        }
        for _ in 0..1 + rng.below(3) {
            let at = usize::try_from(round).expect("small") % world.lanes.len();
            if !world.submit(at, options, tally, what) {
                return false;
            }
        }
        for _ in 0..rng.below(12) {
            world.step();
            world.take();
        }
        if rng.one_in(8) && world.settle() {
            world.check_reads(rng, tally, what);
        }
    }
    true
}

/// The same on a real file system, read over maps and by `pread`, from the cache of the tail and
/// without: each life ends with a close, or in the middle.
#[test]
fn lives_on_a_real_file_system_are_read_back_in_every_mode() {
    let mut tally = Tally::default();
    for seed in 0..12 {
        let mut rng = Rng(seed);
        let mode = [ReadMode::Map, ReadMode::Pread][usize::from(seed % 2 == 1)];
        let options = drawn_options(seed);
        let dir = tempfile::tempdir().expect("a directory");
        let lanes = 1 + usize::from(seed % 3 == 2);
        let mut known = blank_lanes(seed, lanes, 5_000);
        for life in 0..4 {
            let what = format!("seed {seed} life {life} {mode:?}");
            let vfs =
                (0..lanes).map(|_| -> Arc<dyn Vfs> { Arc::new(StdVfs::with_read_mode(mode)) });
            let vfs: Vec<_> = vfs.collect();
            let opened = World::open(&vfs, dir.path(), &options, known, &what);
            let mut world = opened.unwrap_or_else(|(error, _)| panic!("{what}: {error}"));
            for round in 0..60 {
                let at = round % lanes;
                assert!(world.submit(at, &options, &mut tally, &what), "{what}");
                world.step();
                world.take();
                if rng.one_in(6) {
                    while !world.settle() {}
                    world.check_reads(&mut rng, &mut tally, &what);
                }
            }
            let name = ["lives over maps", "lives by pread"][usize::from(mode == ReadMode::Pread)];
            tally.add(name, 1);
            known = world.end(life % 2 == 0, &mut tally);
        }
    }
    tally.demand(&OPERATIONS);
    tally.demand(&READS);
    tally.demand(&["lives over maps", "lives by pread", "clean closes"]);
    let suite = "log operations on a real file system";
    record(suite, "operations", tally.sum(&OPERATIONS));
}
