//! The log on a real file system: ext4 that is full, a device that fails under it, files cut short
//! under live maps.
//!
//! The first two mount a small image, which takes root and a loop device; where the machine has
//! them not, one printed line says so.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_log::vfs::{Op, ReadMode, StdVfs, Vfs};
use raft_log::{Completion, Lane, LaneOptions, LogError, Progress, Recovery, Submission};
use raft_proto::{
    Batch, BatchBuilder, EntryKind, GroupId, HardState, Index, ReplicaId, Term, Time,
};

const MIB: u64 = 1 << 20;

/// ext4 on a loop device whose image lies on a tmpfs of bounded size; unmounted when dropped.
struct Mounted {
    dir: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Mounted {
    /// `None` where the machine does not allow it; says so once.
    fn new(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let mut this = Self {
            dir,
            mounted: Vec::new(),
        };
        let (below, above) = (this.below(), this.above());
        for path in [&below, &above] {
            std::fs::create_dir(path).expect("made");
        }
        let image = this.image();
        let result = run(
            "mount",
            &["-t", "tmpfs", "-o", "size=48m", "tmpfs"],
            &[&below],
        )
        .map(|()| this.mounted.push(below))
        .and_then(|()| {
            let made = File::create(&image).and_then(|file| file.set_len(40 * MIB));
            made.map_err(|error| error.to_string())
        })
        .and_then(|()| run("mkfs.ext4", &["-q", "-F"], &[&image]))
        .and_then(|()| run("mount", &["-o", "loop"], &[&image, &above]));
        match result {
            Ok(()) => {
                this.mounted.push(above);
                Some(this)
            }
            Err(why) => {
                skipped(test, &why);
                None
            }
        }
    }

    fn below(&self) -> PathBuf {
        self.dir.path().join("below")
    }

    fn above(&self) -> PathBuf {
        self.dir.path().join("above")
    }

    fn image(&self) -> PathBuf {
        self.below().join("image")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for path in self.mounted.iter().rev() {
            drop(run("umount", &["-l"], &[path]));
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the one line that says what was not tested"
)]
fn skipped(test: &str, why: &str) {
    eprintln!(
        "{test}: not tested, this machine mounts no image: {}",
        why.trim()
    );
}

fn run(program: &str, options: &[&str], paths: &[&Path]) -> Result<(), String> {
    let output = Command::new(program)
        .args(options)
        .args(paths)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Fills a file system. Returns what is to be removed to give the room back.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = File::create(&path).expect("made");
    for size in [MIB, 4096, 512] {
        let block = vec![1; usize::try_from(size).expect("small")];
        while file.write_all(&block).is_ok() && file.sync_data().is_ok() {}
    }
    path
}

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: MIB,
        record_bytes_max: 256 << 10,
        tail_cache_bytes_max: 0,
        identity: Some(7),
        ..LaneOptions::default()
    }
}

struct Log {
    lane: Lane,
    now: Time,
}

fn open(dir: &Path, mode: ReadMode) -> (Log, Recovery) {
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::with_read_mode(mode));
    let (lane, recovery) = Lane::open(vfs, dir, options()).expect("it opens");
    let now = Time(0);
    (Log { lane, now }, recovery)
}

fn key(group: u64) -> (GroupId, ReplicaId) {
    let replica = ReplicaId::new(1).expect("not 0");
    (GroupId::new(group).expect("not 0"), replica)
}

fn entry(index: u64, bytes: usize) -> Batch {
    let byte = index.to_le_bytes()[0];
    let mut builder = BatchBuilder::new(key(1).0, Term::new(1), Index::new(index), bytes);
    builder.push(EntryKind::Command, 0, None, &vec![byte; bytes]);
    builder.finish().expect("one entry")
}

fn append(index: u64, bytes: usize) -> Submission {
    let mut submission = Submission::new(key(1).0, key(1).1, index);
    submission.entries = vec![entry(index, bytes)];
    submission.hard_state = Some(HardState {
        term: Term::new(1),
        ..HardState::default()
    });
    submission
}

impl Log {
    /// Submits and waits for the disk.
    fn write(&mut self, submission: Submission) -> Result<(), LogError> {
        self.lane.submit(submission)?;
        self.drive_until(|_| false).expect("it ends").result
    }

    /// Drives until something ends, or `is_over`.
    fn drive_until(&mut self, is_over: impl Fn(&Self) -> bool) -> Option<Completion> {
        // Far more polls than any disk takes.
        let end = self.now.plus_nanos(10_000_000_000_000);
        loop {
            self.lane.poll(self.now);
            self.now = self.now.plus_nanos(1_000_000);
            if let Some(done) = self.lane.take_completions().pop() {
                return Some(done);
            }
            if is_over(self) {
                return None;
            }
            let (stats, pending) = (self.lane.stats(), self.lane.pending_bytes());
            assert!(self.now < end, "{pending} bytes wait: {stats:?}");
            std::thread::yield_now();
        }
    }

    /// What can be read from `first` to `last`.
    fn check(&self, first: u64, last: u64, bytes: usize) {
        for index in first..=last {
            let at = Index::new(index);
            let read = self.lane.reader().entries(key(1).0, key(1).1, at, at, 1);
            let read = read.expect("what was acknowledged stays readable");
            assert_eq!(read[0].bytes(), entry(index, bytes).bytes());
        }
    }
}

#[test]
fn fault_16_a_full_ext4_refuses_entries_keeps_voting_and_resumes() {
    const BYTES: usize = 100_000;
    let Some(mounted) = Mounted::new("a full ext4") else {
        return;
    };
    let data = mounted.above().join("data");
    std::fs::create_dir(&data).expect("made");
    let (mut log, _) = open(&data, ReadMode::Map);
    log.write(append(1, BYTES)).expect("there is room");
    let ballast = fill(&mounted.above());
    let mut last = 1;
    let space = log.lane.reader().space();
    let mut waits = false;
    loop {
        match log.lane.submit(append(last + 1, BYTES)) {
            Ok(()) => {}
            Err(LogError::StorageFull) => break,
            Err(error) => panic!("entry {last}: {error}"),
        }
        // Taken just before it was known that there is no room, it waits for some.
        let done = log.drive_until(|log| space.is_full() && log.lane.pending_bytes() > BYTES);
        let Some(done) = done else {
            waits = true;
            break;
        };
        done.result.expect("it is durable");
        last += 1;
        assert!(last < 100, "it fills up");
    }
    // Votes go on.
    for term in 2..40 {
        let mut submission = Submission::new(key(2).0, key(2).1, term);
        submission.hard_state = Some(HardState {
            term: Term::new(term),
            vote: ReplicaId::new(1),
            ..HardState::default()
        });
        log.write(submission).expect("there is a reserve");
    }
    log.check(1, last, BYTES);
    std::fs::remove_file(ballast).expect("removed");
    if waits {
        let done = log.drive_until(|_| false).expect("it has room");
        done.result.expect("it is durable");
        last += 1;
    }
    // By itself, when the next attempt is due.
    for _ in 0..1_000_000 {
        if !log.lane.reader().space().is_full() {
            break;
        }
        log.lane.poll(log.now);
        log.now = log.now.plus_nanos(10_000_000);
        std::thread::yield_now();
    }
    log.write(append(last + 1, BYTES)).expect("there is room");
    drop(log);
    let (log, recovery) = open(&data, ReadMode::Map);
    assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
    assert_eq!(recovery.replicas[&key(2)].hard_state.term, Term::new(39));
    log.check(1, last + 1, BYTES);
}

#[test]
fn fault_14_hazard_47_a_device_that_fails_under_ext4_latches() {
    const BYTES: usize = 10_000;
    let Some(mounted) = Mounted::new("a failing device") else {
        return;
    };
    let data = mounted.above().join("data");
    std::fs::create_dir(&data).expect("made");
    let (mut log, _) = open(&data, ReadMode::Map);
    for index in 1..=5 {
        log.write(append(index, BYTES)).expect("it is durable");
    }
    // The image loses its blocks, and what it lies on has no room for new ones: what is written
    // from now on goes to the page cache and no further.
    let image = OpenOptions::new().write(true).open(mounted.image());
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(image.expect("it is there"), punch, 0, 40 * MIB).expect("punched");
    fill(&mounted.below());
    let refused = log.write(append(6, BYTES));
    assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
    // The next sync may well succeed: nobody asks.
    std::fs::remove_file(mounted.below().join("ballast")).expect("removed");
    let refused = log.write(append(7, BYTES));
    assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
    log.check(1, 5, BYTES);
}

#[test]
fn fault_19_a_file_cut_under_a_live_map_is_an_error_and_damage_after_a_restart() {
    const BYTES: usize = 10_000;
    for mode in [ReadMode::Map, ReadMode::Pread] {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut log, _) = open(dir.path(), mode);
        for index in 1..=20 {
            log.write(append(index, BYTES)).expect("it is durable");
        }
        log.check(1, 20, BYTES);
        let segment = dir.path().join("log/0/0000000000000001.seg");
        let file = OpenOptions::new().write(true).open(&segment);
        file.and_then(|file| file.set_len(100_000)).expect("cut");
        log.check(1, 5, BYTES);
        for index in 15..=20 {
            let at = Index::new(index);
            let read = log.lane.reader().entries(key(1).0, key(1).1, at, at, 1);
            assert!(
                matches!(
                    read,
                    Err(LogError::Damaged { segment: 1, .. } | LogError::Io(_))
                ),
                "{read:?}"
            );
        }
        drop(log);
        let (_, recovery) = open(dir.path(), mode);
        let damaged = &recovery.report.damaged;
        assert!(
            damaged
                .iter()
                .any(|damage| damage.segment == 1 && damage.reason.contains("short")),
            "{damaged:?}"
        );
        let health = &recovery.replicas[&key(1)].health;
        assert!(matches!(health, raft_log::Health::Damaged(_)), "{health:?}");
    }
}

/// A segment is on its way when the lane is closed or dropped: what comes after finds the directory
/// at rest.
#[test]
fn a_close_and_a_drop_wait_for_the_segment_that_is_on_its_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log/0");
    let options = LaneOptions {
        segment_size_bytes: 16 * MIB,
        ..options()
    };
    for round in 0..10 {
        let opened = Lane::open(Arc::new(StdVfs::new()), dir.path(), options.clone());
        let (mut lane, _) = opened.expect("the directory is at rest");
        // It begins to make the next segment.
        lane.poll(Time(0));
        if round % 2 == 0 {
            lane.close().expect("it closes");
        } else {
            drop(lane);
        }
        let entries = std::fs::read_dir(&log).expect("it is there");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert!(
            names.iter().all(|name| !name.ends_with(".new")),
            "{round}: {names:?}"
        );
        assert_eq!(names.len(), 2, "{round}: {names:?}");
        // The next round makes another.
        std::fs::remove_file(log.join(&names[1])).expect("removed");
    }
}

/// The same by threads that turn the log over: segments are recycled and removed meanwhile.
#[test]
fn a_log_opens_at_once_after_each_close() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        spare_segments: 2,
        ..options()
    };
    let mut index = 0;
    for round in 0..60 {
        let vfs = Arc::new(StdVfs::new());
        let opened = raft_log::LaneThread::open(vfs, dir.path(), options.clone());
        let (lane, recovery) = opened.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let report = &recovery.report;
        assert_eq!(report, &raft_log::RecoveryReport::default(), "{round}");
        for _ in 0..round % 12 {
            index += 1;
            let mut submission = append(index, 20_000);
            submission.compact_before = Some(Index::new(index));
            lane.append(submission).expect("it is durable");
        }
        if round % 3 == 0 {
            drop(lane);
        } else {
            lane.close().expect("it closes");
        }
    }
}

/// What waits for a segment is told when it is there: nobody looks for it in between.
#[test]
fn a_record_that_waits_for_a_segment_is_woken_by_it() {
    const BYTES: usize = 200_000;
    let dir = tempfile::tempdir().expect("a directory");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    // Spares are made one after the other, and behind this.
    vfs.submit(Op::Prepare {
        path: dir.path().join("large"),
        len: 64 * MIB,
        head: Bytes::new(),
    });
    let (lane, _) = Lane::open(vfs, dir.path(), options()).expect("it opens");
    let mut log = Log { lane, now: Time(0) };
    let (wake, woken) = std::sync::mpsc::channel();
    log.lane.wake_by(Arc::new(move || {
        wake.send(()).ok();
    }));
    for index in 1..=60 {
        log.lane.submit(append(index, BYTES)).expect("it is taken");
    }
    let (mut done, mut waits) = (0, 0);
    while done < 60 {
        let progress = log.lane.poll(log.now);
        done += log.lane.take_completions().len();
        if let Progress::Idle { until } = progress
            && done < 60
        {
            assert_eq!(until, None, "an event comes");
            woken.recv().expect("it is told");
            waits += 1;
        }
    }
    assert!(waits > 0, "each spare is made while records wait");
    log.check(1, 60, BYTES);
}

/// A spare that is too small for what comes is made again, and that is told too.
#[test]
fn a_record_larger_than_a_segment_is_woken_by_its_own() {
    const BYTES: usize = 100_000;
    let dir = tempfile::tempdir().expect("a directory");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        ..options()
    };
    let (lane, _) = Lane::open(vfs, dir.path(), options).expect("it opens");
    let mut log = Log { lane, now: Time(0) };
    let (wake, woken) = std::sync::mpsc::channel();
    log.lane.wake_by(Arc::new(move || {
        wake.send(()).ok();
    }));
    // Polls until `is_there`; in between, an event is waited for, and nothing else.
    let until = |log: &mut Log, is_there: &dyn Fn(&mut Log) -> bool| loop {
        // What was told before the poll is no reason for another one.
        while woken.try_recv().is_ok() {}
        let progress = log.lane.poll(log.now);
        if is_there(log) {
            break;
        }
        if matches!(progress, Progress::Idle { .. }) {
            let told = woken.recv_timeout(Duration::from_secs(20));
            told.expect("an event comes");
        }
    };
    for index in 1..=8 {
        // A spare of the usual size is there, and known to be: nothing is under way.
        let is_spare = |log: &mut Log| {
            let is_idle = matches!(log.lane.poll(log.now), Progress::Idle { .. });
            let newest = segments(dir.path()).pop().expect("there is one");
            let len = newest.metadata().expect("it is there").len();
            is_idle && len == 64 << 10 && segments(dir.path()).len() > 1
        };
        until(&mut log, &is_spare);
        log.lane.submit(append(index, BYTES)).expect("it is taken");
        until(&mut log, &|log| !log.lane.take_completions().is_empty());
    }
    log.check(1, 8, BYTES);
}

/// The segments of lane 0, in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.join("log/0")).expect("it is there");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|found| found == "seg"))
        .collect();
    paths.sort();
    paths
}

/// Extents that are allocated and not written, as `filefrag` tells them; `None` if it cannot.
fn unwritten_extents(path: &Path) -> Option<usize> {
    let output = Command::new("filefrag").arg("-v").arg(path).output().ok()?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_told = output.status.success() && told.contains("logical_offset");
    is_told.then(|| {
        told.lines()
            .filter(|line| line.contains("unwritten"))
            .count()
    })
}

/// Transactions that the journal of a mounted image has committed.
fn journal_commits(mounted: &Path) -> Option<u64> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let device = lines.find_map(|mut words| {
        let device = words.next()?;
        (words.next()? == mounted.to_str()?).then(|| device.to_owned())
    })?;
    let name = Path::new(&device).file_name()?.to_str()?.to_owned();
    let info = std::fs::read_to_string(format!("/proc/fs/jbd2/{name}-8/info")).ok()?;
    info.split(' ').next()?.parse().ok()
}

/// An append overwrites what is there: it allocates nothing, converts no extent, changes no length,
/// and so commits no transaction of the journal.
#[test]
fn an_append_changes_no_metadata() {
    use std::os::unix::fs::MetadataExt;
    const APPENDS: u64 = 400;
    let mounted = Mounted::new("the journal of an ext4");
    let scratch = tempfile::tempdir().expect("a directory");
    let data = match &mounted {
        Some(mounted) => mounted.above().join("data"),
        None => scratch.path().join("data"),
    };
    std::fs::create_dir(&data).expect("made");
    let (mut log, _) = open(&data, ReadMode::Map);
    log.write(append(1, 100)).expect("there is room");
    // Until the next segment is there too.
    while segments(&data).len() < 2 {
        log.lane.poll(log.now);
        log.now = log.now.plus_nanos(1_000_000);
        std::thread::yield_now();
    }
    let shape = || -> Vec<(u64, u64)> {
        let paths = segments(&data).into_iter();
        let metadata = paths.map(|path| std::fs::metadata(path).expect("it is there"));
        metadata.map(|file| (file.len(), file.blocks())).collect()
    };
    let before = shape();
    for (len, blocks) in &before {
        assert!(blocks * 512 >= *len, "{len} bytes in {blocks} blocks");
    }
    for path in segments(&data) {
        match unwritten_extents(&path) {
            Some(unwritten) => assert_eq!(unwritten, 0, "{path:?} is written"),
            None => skipped("whether extents are written", "filefrag tells nothing"),
        }
    }
    let commits = || {
        mounted
            .as_ref()
            .and_then(|mounted| journal_commits(&mounted.above()))
    };
    let first = commits();
    for index in 2..=APPENDS {
        log.write(append(index, 100)).expect("it is durable");
    }
    assert_eq!(shape(), before, "neither length nor blocks change");
    match first.zip(commits()) {
        // The clock commits now and then what times of files were changed.
        Some((first, last)) => assert!(
            last - first < APPENDS / 10,
            "{} transactions for {APPENDS} appends",
            last - first
        ),
        None => skipped("the journal's transactions", "it tells of none"),
    }
}

/// The records of a segment: where each begins, its kind, its lsn, and the one that it says is
/// durable.
fn records(content: &[u8]) -> Vec<(usize, u8, u64, u64)> {
    let number = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&content[at..at + len]);
        u64::from_le_bytes(bytes)
    };
    let mut found: Vec<(usize, u8, u64, u64)> = Vec::new();
    let mut at = 1024;
    while content.len() >= at + 64 && content[at..].starts_with(b"FRL1") {
        let lsn = number(at + 8, 8);
        if found.last().is_some_and(|(.., last, _)| lsn != last + 1) {
            // Of the file's life before.
            break;
        }
        found.push((at, content[at + 5], lsn, number(at + 16, 8)));
        let len = number(at + 24, 4) + number(at + 28, 4) + 64;
        at += usize::try_from(len.next_multiple_of(64)).expect("small");
    }
    found
}

/// Who drives the lane, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    /// Whoever submits polls, one submission at a time.
    Inline,
    /// The same, and the burst ends: a watermark record is last.
    BurstEnd,
    /// A thread, for one submitter.
    Thread,
    /// A thread; the next record is gathered while one is written.
    Pipelined,
    /// Streams.
    Wal,
}

/// In every configuration the second sync says what the first made durable, and damage below that
/// is damage.
#[test]
fn the_watermark_moves_in_every_configuration() {
    let mut configurations = 0;
    for mode in [ReadMode::Map, ReadMode::Pread] {
        for lane in [0, 1, 3] {
            for driver in [
                Driver::Inline,
                Driver::BurstEnd,
                Driver::Thread,
                Driver::Pipelined,
                Driver::Wal,
            ] {
                for is_recycled in [false, true] {
                    let what = format!("{mode:?} lane {lane} {driver:?} recycled {is_recycled}");
                    let dir = tempfile::tempdir().expect("a directory");
                    check_watermark(dir.path(), mode, lane, driver, is_recycled, &what);
                    configurations += 1;
                }
            }
        }
    }
    assert_eq!(configurations, 60);
}

/// Appends of one group, the first `turned` of them large and compacted at once.
fn drive(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    options: LaneOptions,
    driver: Driver,
    turned: u64,
) -> Result<(), LogError> {
    let bytes = |index: u64| if index <= turned { 9_000 } else { 100 };
    let submission = |index: u64| {
        let mut submission = append(index, bytes(index));
        submission.compact_before = (index <= turned).then(|| Index::new(index));
        submission
    };
    let all = 1..=turned + 3;
    match driver {
        Driver::Inline | Driver::BurstEnd => {
            let burst_end_nanos = options.burst_end_nanos;
            let (lane, _) = Lane::open(vfs, dir, options)?;
            let mut log = Log { lane, now: Time(0) };
            for index in all {
                log.write(submission(index))?;
            }
            if driver == Driver::BurstEnd {
                let records = log.lane.stats().records;
                log.now = log.now.plus_nanos(burst_end_nanos);
                while log.lane.poll(log.now) == Progress::More {}
                assert!(log.lane.stats().records > records, "a watermark record");
            }
            Ok(())
        }
        Driver::Thread => {
            let (log, _) = raft_log::LaneThread::open(vfs, dir, options)?;
            for index in all {
                log.append(submission(index))?;
            }
            log.close()
        }
        Driver::Pipelined => {
            let (log, _) = raft_log::LaneThread::open(vfs, dir, options)?;
            let (told, ended) = std::sync::mpsc::channel();
            for index in all.clone() {
                let told = told.clone();
                log.submit(submission(index), move |result| {
                    told.send(result).ok();
                })?;
            }
            for _ in all {
                ended.recv().expect("each is told")?;
            }
            log.close()
        }
        Driver::Wal => {
            let (wal, _) = raft_log::Wal::open(vfs, dir, options)?;
            for index in all {
                wal.append(1, &[vec![7; bytes(index)]])?;
                if index <= turned {
                    wal.trim(1, index)?;
                }
            }
            wal.close()
        }
    }
}

fn check_watermark(
    dir: &Path,
    mode: ReadMode,
    lane: u16,
    driver: Driver,
    is_recycled: bool,
    what: &str,
) {
    let options = LaneOptions {
        lane,
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        // No watermark record in between.
        burst_end_nanos: 60_000_000_000,
        ..options()
    };
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::with_read_mode(mode));
    let turned = if is_recycled { 80 } else { 0 };
    drive(vfs, dir, options.clone(), driver, turned).expect("it is durable");
    let dir_of_lane = dir.join(format!("log/{lane}"));
    let mut used = Vec::new();
    for entry in std::fs::read_dir(&dir_of_lane).expect("it is there") {
        let path = entry.expect("an entry").path();
        let content = std::fs::read(&path).expect("it reads");
        let records = records(&content);
        let is_second_life = content.len() > 16 && content[14] == 1;
        if let Some((.., last, _)) = records.last() {
            used.push((*last, path, records, is_second_life));
        }
    }
    used.sort();
    let (_, path, records, is_second_life) = used.pop().expect("one is in use");
    assert_eq!(is_second_life, is_recycled, "{what}");
    let kind = records.last().expect("it holds some").1;
    let ends_in_data = driver == Driver::Inline;
    assert_eq!(kind, if ends_in_data { 1 } else { 3 }, "{what}");
    // The first sync is of what a new log's open writes.
    for (.., lsn, synced) in records.iter().filter(|(.., lsn, _)| *lsn > 3) {
        assert!(*synced > 0 && synced < lsn, "{what}: {records:?}");
    }
    let mut pairs = records.windows(2).rev();
    let pair = pairs.find(|pair| pair[0].1 == 1 && pair[1].3 >= pair[0].2);
    let at = pair.unwrap_or_else(|| panic!("{what}: {records:?}"))[0].0;
    // Three bytes of the table of one that the next one vouches for: an odd number of bits.
    let mut content = std::fs::read(&path).expect("it reads");
    content[at + 70..at + 73]
        .iter_mut()
        .for_each(|byte| *byte ^= 0x57);
    std::fs::write(&path, &content).expect("it is written");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::with_read_mode(mode));
    let (_, recovery) = Lane::open(vfs, dir, options).expect("it opens");
    assert!(!recovery.report.damaged.is_empty(), "{what}");
    assert_eq!(recovery.report.torn_bytes(), 0, "{what}");
}
