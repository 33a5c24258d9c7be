//! Many lives on a disk that is full and has room again, over and over, held against a map. What
//! several groups submit overlaps, and what was let in before the disk was known to be full waits.

use std::sync::Arc;

use raft_log::vfs::{Fault, SimVfs};
use raft_log::{Lane, LaneOptions, LogError, Recovery, Submission};
use raft_proto::{HardState, Term, Time};

use crate::record;
use crate::tally::{OPERATIONS, READS, Tally, end_life};
use crate::tracked::{Tracks, read_back};
use crate::workload::{
    Driven, Key, Model, Rng, Workload, disk, is_split, key, open, options, seen_all,
};

const SECOND: u64 = 1_000_000_000;

/// What nothing can be made without, and how it fails that passes by itself: as the system says
/// `EMFILE`, `ENOMEM`, `ENOSPC`.
const CALLS: [&str; 3] = ["open", "prepare", "rename"];
const ERRNOS: [i32; 3] = [24, 12, 28];

/// More polls in so many seconds are no work.
const POLLS_MAX: u64 = 40_000;

/// Seeds behind the others that failed once. 1278: the lane spun, and what waited for a larger segment
/// than the next one waited on. 1134: what was just over the bound of a record was taken for one.
const FOUND: [u64; 2] = [1_134, 1_278];

/// What must have happened, beside all operations.
const EVENTS: [&str; 26] = [
    "submissions of several records",
    "times it was full",
    "times it was full by a lasting fault",
    "times it had room again without more space",
    "refused on a full disk",
    "taken on a full disk",
    "entries let in on a full disk",
    "bytes moved on a full disk",
    "votes that passed entries",
    "compactions that passed entries",
    "entries that passed larger ones",
    "first votes that waited for a place",
    "compactions ahead of what waited",
    "crashes while entries waited",
    "crashes while votes waited",
    "spans passed on a full disk",
    "times all that waited was done",
    "clean closes",
    "closes that failed",
    "crashes",
    "kills",
    "opens of a full disk",
    "lives",
    "lives with all but a few places in the vote file taken",
    "lives without a reserve",
    "lives with a laggard",
];

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    let count = u64::try_from(of.len()).expect("few");
    of[usize::try_from(rng.below(count)).expect("few")]
}

#[test]
fn fault_16_many_lives_on_a_full_disk_lose_nothing_and_keep_the_order() {
    const SEEDS: u64 = 60;
    let mut tally = Tally::default();
    for seed in (0..SEEDS).chain(FOUND) {
        live(seed, &mut tally);
    }
    record("log lives on a full disk", "seeds", SEEDS + 2);
    let suite = "log operations on a full disk";
    record(suite, "operations", tally.sum(&OPERATIONS));
    record(suite, "crashes", tally.sum(&["crashes", "kills"]));
    tally.demand(&OPERATIONS);
    tally.demand(&READS);
    tally.demand(&CALLS);
    tally.demand(&EVENTS);
}

fn drawn_options(rng: &mut Rng) -> LaneOptions {
    LaneOptions {
        collect_bytes_max: 4 << 10,
        reserve_bytes: pick(rng, &[None, Some(0), Some(2 << 10), Some(16 << 10)]),
        segment_size_bytes: pick(rng, &[64 << 10, 96 << 10]),
        spare_segments: pick(rng, &[1, 2]),
        verify_all: rng.one_in(2),
        ..options()
    }
}

/// The lives of one log.
fn live(seed: u64, tally: &mut Tally) {
    let mut rng = Rng(seed);
    let options = drawn_options(&mut rng);
    let disk = disk(seed);
    let payload_max = pick(&mut rng, &[200, 3_000, 9_000]);
    let mut workload = Workload::new(seed, 3 + rng.below(5), payload_max);
    workload.has_laggard = rng.one_in(4);
    workload.has_tombstones = true;
    workload.has_split = rng.one_in(2);
    let mut tracks = Tracks::default();
    for at in 0..6 {
        let what = format!("seed {seed} life {at}");
        disk.set_now(Time(0));
        let (lane, recovery) = opened(&disk, &options, &what);
        let is_full = lane.reader().space().is_full();
        tally.add("opens of a full disk", u64::from(is_full));
        let found = found(&lane, &recovery, &tracks, tally, &what);
        tracks = Tracks::new(&found);
        workload.resume(found);
        tally.add("lives", 1);
        let has_reserve = options.reserve_bytes != Some(0);
        tally.add("lives without a reserve", u64::from(!has_reserve));
        tally.add("lives with a laggard", u64::from(workload.has_laggard));
        let driven = Driven {
            vfs: Arc::clone(&disk),
            lane,
            now: Time(0),
        };
        let mut life = Life {
            driven,
            workload,
            tracks,
            options: &options,
            waiting: Vec::new(),
            rng: &mut rng,
            tally,
            what: &what,
            was_full: false,
            is_bounded: false,
            has_fault: false,
        };
        if seed.is_multiple_of(3) && at == 0 {
            life.fill_votes();
        }
        life.use_it();
        (workload, tracks) = life.end();
        // The fault is gone with it, and there may be room.
        disk.fault_every(CALLS[0], None);
        if rng.one_in(2) {
            disk.set_capacity(None);
        }
        end_life(&disk, &mut rng, tally);
    }
    // The last word.
    disk.set_capacity(None);
    let what = format!("seed {seed} at the end");
    let (lane, recovery) = opened(&disk, &options, &what);
    found(&lane, &recovery, &tracks, tally, &what);
}

/// Full or not, it opens.
fn opened(disk: &Arc<SimVfs>, options: &LaneOptions, what: &str) -> (Lane, Recovery) {
    open(disk, options).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// What is found is what may be.
fn found(
    lane: &Lane,
    recovery: &Recovery,
    tracks: &Tracks,
    tally: &mut Tally,
    what: &str,
) -> Model {
    let report = &recovery.report;
    let is_sound = report.damaged.is_empty() && report.missing.is_empty();
    assert!(is_sound, "{what}: no crash is damage: {report:?}");
    let found = seen_all(lane, recovery).expect("it reads");
    let ahead = tracks.check(&found, what);
    tally.add("compactions ahead of what waited", ahead);
    found
}

/// A submission that has not ended.
struct Waiting {
    key: Key,
    number: u64,
    entries_bytes: usize,
    is_vote: bool,
    is_first: bool,
    is_compaction: bool,
}

/// A log from its open to its end.
struct Life<'a> {
    driven: Driven,
    workload: Workload,
    tracks: Tracks,
    options: &'a LaneOptions,
    /// In the order in which they were submitted.
    waiting: Vec<Waiting>,
    rng: &'a mut Rng,
    tally: &'a mut Tally,
    what: &'a str,
    was_full: bool,
    is_bounded: bool,
    has_fault: bool,
}

impl Life<'_> {
    fn is_full(&self) -> bool {
        self.driven.lane.reader().space().is_full()
    }

    /// All but a few places of the vote file are taken, and there is no room for a larger one.
    fn fill_votes(&mut self) {
        const PLACES: u64 = 1_024;
        for group in 1_000..1_000 + PLACES - 4 {
            let (group, replica) = key(group);
            let mut vote = Submission::new(group, replica, 1);
            vote.hard_state = Some(HardState {
                term: Term::new(1),
                ..HardState::default()
            });
            self.workload.model.apply(&vote);
            self.submit(vote, true);
        }
        self.bound(64 << 10);
        let what = "lives with all but a few places in the vote file taken";
        self.tally.add(what, 1);
    }

    fn bound(&mut self, bytes: u64) {
        let disk = &self.driven.vfs;
        disk.set_capacity(Some(disk.used_bytes() + bytes));
        self.is_bounded = true;
    }

    fn use_it(&mut self) {
        for _ in 0..20 + self.rng.below(120) {
            self.change_room();
            for _ in 0..1 + self.rng.below(5) {
                self.submit_drawn();
            }
            for _ in 0..self.rng.below(14) {
                self.driven.step();
                self.take();
            }
            if self.rng.one_in(10) {
                self.wait();
            }
        }
    }

    fn change_room(&mut self) {
        if self.rng.one_in(8) {
            let bytes = self.rng.below(2) * (64 << 10);
            self.bound(bytes);
        }
        if self.rng.one_in(14) {
            self.driven.vfs.set_capacity(None);
            self.is_bounded = false;
        }
        if self.rng.one_in(16) {
            let (call, errno) = (pick(self.rng, &CALLS), pick(self.rng, &ERRNOS));
            let fault = Some(Fault::Errno(errno));
            self.driven.vfs.fault_every(call, fault);
            self.has_fault = true;
            self.tally.add(call, 1);
        }
        if self.rng.one_in(10) {
            self.mend();
        }
    }

    fn mend(&mut self) {
        self.driven.vfs.fault_every(CALLS[0], None);
        self.has_fault = false;
    }

    /// Whoever submits asks first whether it is full; sometimes it was let in before.
    fn submit_drawn(&mut self) {
        let is_little = self.driven.lane.pending_bytes() < 300_000;
        let is_admitted = !self.is_full() || is_little && self.rng.one_in(3);
        let submission = self.workload.draw();
        self.submit(submission, is_admitted);
    }

    /// Submits what the workload has applied.
    fn submit(&mut self, submission: Submission, is_admitted: bool) {
        let key = (submission.group, submission.replica);
        let before = self.tracks.last_of(key);
        let is_full = self.is_full();
        self.tracks.submit(&submission, self.options);
        let result = match is_admitted {
            true => self.driven.lane.submit_admitted(submission.clone()),
            false => self.driven.lane.submit(submission.clone()),
        };
        match result {
            Ok(()) => {}
            Err(LogError::StorageFull) => {
                self.tracks.refuse(&submission, self.options);
                self.workload.model.replicas.insert(key, before);
                self.tally.add("refused on a full disk", 1);
                return;
            }
            Err(error) => panic!("{}: {error}", self.what),
        }
        let entries_bytes = submission.entries_bytes();
        self.tally.operations(&submission, Some(&before));
        let name = "submissions of several records";
        let count = u64::from(is_split(&submission, self.options));
        self.tally.add(name, count);
        if is_full {
            self.tally.add("taken on a full disk", 1);
            let count = u64::from(is_admitted && entries_bytes > 0);
            self.tally.add("entries let in on a full disk", count);
        }
        let term = submission.hard_state.map(|state| state.term);
        self.waiting.push(Waiting {
            key,
            number: submission.submission,
            entries_bytes,
            is_vote: term.is_some_and(|term| term > before.hard_state.term),
            is_first: term.is_some() && before.hard_state.term == Term::ZERO,
            is_compaction: submission.compact_before.is_some(),
        });
    }

    /// Takes what has ended: nothing fails for want of room.
    fn take(&mut self) {
        let is_full = self.is_full();
        if is_full && !self.was_full {
            self.tally.add("times it was full", 1);
            let by_fault = self.has_fault && !self.is_bounded;
            let name = "times it was full by a lasting fault";
            self.tally.add(name, u64::from(by_fault));
        }
        if self.was_full && !is_full && self.is_bounded {
            let name = "times it had room again without more space";
            self.tally.add(name, 1);
        }
        self.was_full = is_full;
        for done in self.driven.lane.take_completions() {
            assert!(done.result.is_ok(), "{}: {done:?}", self.what);
            self.tracks.complete(&done);
            let key = (done.group, done.replica);
            let is_it = |it: &Waiting| (it.key, it.number) == (key, done.submission);
            let at = self.waiting.iter().position(is_it).expect("it waits");
            let ended = self.waiting.remove(at);
            self.count_passed(&ended, at);
        }
    }

    /// What was submitted before and waits on was passed.
    fn count_passed(&mut self, ended: &Waiting, at: usize) {
        let passed = &self.waiting[..at];
        let has_entries = ended.entries_bytes > 0;
        let entries = passed.iter().any(|it| it.entries_bytes > 0);
        let larger = passed
            .iter()
            .any(|it| it.entries_bytes > ended.entries_bytes);
        let first = |it: &Waiting| it.is_first && it.entries_bytes == 0;
        let first = ended.is_vote && !ended.is_first && passed.iter().any(first);
        let counts = [
            (
                "votes that passed entries",
                !has_entries && ended.is_vote && entries,
            ),
            (
                "compactions that passed entries",
                !has_entries && ended.is_compaction && entries,
            ),
            ("entries that passed larger ones", has_entries && larger),
            ("first votes that waited for a place", first),
        ];
        for (name, is_so) in counts {
            self.tally.add(name, u64::from(is_so));
        }
    }

    /// A while passes, and the lane does not spin. If nothing waits then, all is read back.
    fn wait(&mut self) {
        let is_full = self.is_full();
        let moved = self.driven.lane.stats().moved_bytes;
        let polls = self.driven.pass(3 * SECOND);
        assert!(polls < POLLS_MAX, "{}: {polls} polls", self.what);
        self.take();
        if is_full && self.is_full() {
            self.tally.add("spans passed on a full disk", 1);
            let moved = self.driven.lane.stats().moved_bytes - moved;
            self.tally.add("bytes moved on a full disk", moved);
        }
        if !self.tracks.is_acknowledged() {
            return;
        }
        let reader = self.driven.lane.reader();
        for (key, replica) in &self.tracks.newest().replicas {
            let bytes_max = pick(self.rng, &[None, Some(1), Some(3_000)]);
            let read = read_back(&reader, *key, replica, bytes_max, self.what);
            let read = read.unwrap_or_else(|error| panic!("{}: {key:?}: {error}", self.what));
            self.tally.reads(read);
        }
    }

    /// Once there is room, all that waits is done.
    fn make_room(&mut self) {
        self.driven.vfs.set_capacity(None);
        self.is_bounded = false;
        let waited = !self.tracks.is_settled();
        for _ in 0..20 {
            self.driven.pass(SECOND);
            self.take();
        }
        let stats = self.driven.lane.stats();
        assert!(self.tracks.is_settled(), "{}: {stats:?}", self.what);
        self.tally
            .add("times all that waited was done", u64::from(waited));
    }

    /// Ends it with a close, or in the middle. A clean close makes all durable that was submitted.
    fn end(mut self) -> (Workload, Tracks) {
        let has_room = !self.rng.one_in(8);
        if has_room {
            self.mend();
            if self.rng.one_in(3) {
                self.make_room();
            }
        }
        let waits = |is_so: fn(&Waiting) -> bool| u64::from(self.waiting.iter().any(is_so));
        let entries = waits(|it| it.entries_bytes > 0);
        let votes = waits(|it| it.is_vote);
        if self.rng.one_in(4) {
            self.take();
            match self.driven.lane.close() {
                Ok(()) => {
                    self.tally.add("clean closes", 1);
                    self.tracks.acknowledge_all();
                }
                Err(LogError::StorageFull | LogError::Io(_)) => {
                    self.tally.add("closes that failed", 1);
                }
                Err(error) => panic!("{}: {error}", self.what),
            }
        } else {
            self.tally.add("crashes while entries waited", entries);
            self.tally.add("crashes while votes waited", votes);
        }
        (self.workload, self.tracks)
    }
}
