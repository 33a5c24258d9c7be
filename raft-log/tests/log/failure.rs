//! Every operation failing, one after the other.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use raft_log::tools::StoppedLane;
use raft_log::vfs::{Fault, SimVfs, Vfs};
use raft_log::{LaneOptions, LogError, Submission};
use raft_proto::{HardState, Index, ReplicaId, Term};

use crate::damage::segments;
use crate::record;
use crate::tracked::{Tracks, read_back};
use crate::workload::{
    DATA, Driven, Model, Rng, Workload, agrees, batch, disk, key, open, options, seen_all,
};

const EINTR: i32 = 4;
const EIO: i32 = 5;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
/// As the system says them.
const FAULTS: [Fault; 5] = [
    Fault::Errno(EIO),
    Fault::Errno(ENOSPC),
    Fault::Errno(EMFILE),
    Fault::Errno(EINTR),
    Fault::Short,
];

/// What a life is made of whose calls fail, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Appends, overwrites, votes, compactions; segments are filled.
    Usual,
    /// Laggards are moved forward, and segments are recycled.
    Turnover,
    /// More replicas than the vote file has room for.
    Votes,
}

/// What became of a life.
struct Life {
    /// Whether the call that was to fail came.
    is_reached: bool,
    is_latched: bool,
    sealed: u64,
    moved_bytes: u64,
    entries_read: u64,
    votes_len: u64,
}

#[test]
fn every_operation_failing_loses_nothing_acknowledged() {
    let (mut cases, mut latched, mut refused) = (0, 0, 0);
    for kind in [Kind::Usual, Kind::Turnover, Kind::Votes] {
        let base = base(kind);
        // What there is to fail.
        let whole = run_with(kind, &base, u64::MAX, Fault::Short, &mut refused);
        assert!(!whole.is_latched && whole.entries_read > 0, "{kind:?}");
        assert!(whole.sealed > 0 || kind == Kind::Votes, "{kind:?}");
        assert!(whole.moved_bytes > 0 || kind != Kind::Turnover, "{kind:?}");
        let grows = whole.votes_len > votes_len(&base);
        assert!(grows || kind != Kind::Votes, "{kind:?}");
        for fault in FAULTS {
            for call in 1.. {
                let life = run_with(kind, &base, call, fault, &mut refused);
                if !life.is_reached {
                    break;
                }
                cases += 1;
                latched += u64::from(life.is_latched);
            }
        }
    }
    record("log operations failing", "cases", cases);
    assert!(cases > 5_000, "{cases}");
    assert!(latched > 500 && latched < cases - 500, "{latched}");
    assert!(refused > 0, "some are refused for want of room");
}

/// Whatever fails of an open, what it had opened is closed: else each attempt would leave a
/// descriptor for each segment, and nothing of them would be recycled in this process.
#[test]
fn fault_18_an_open_leaves_no_file_open_that_the_log_has_no_use_for() {
    let (mut refused, mut opened) = (0, 0);
    for kind in [Kind::Usual, Kind::Turnover] {
        let disk = base(kind);
        let (mut driven, _) = Driven::open(&disk, &options_of(kind));
        let mut workload = Workload::new(2, 3, 4_000);
        workload.has_laggard = kind == Kind::Turnover;
        while driven.lane.stats().live_segments < 3 {
            driven.write(workload.draw());
        }
        driven.lane.submit(workload.draw()).expect("taken");
        driven.step();
        drop(driven);
        // A torn tail, a segment under a wrong name, and one that cannot be read.
        disk.crash_keeping(|unit| unit % 2 == 1);
        let segments = segments(&disk);
        let number = |at: usize| Path::new(DATA).join(format!("log/0/{at:016x}.seg"));
        disk.misplace(&segments[0], Some(&number(99)));
        for (at, byte) in [(97, 0x55), (98, 0)] {
            let file = disk.open(&number(at), true).expect("made");
            disk.write(file, 0, &[byte; 5_000]).expect("written");
            disk.close(file);
        }
        for fault in [Fault::Errno(EIO), Fault::Errno(EMFILE), Fault::Short] {
            for call in 1.. {
                let disk = Arc::new(disk.fork());
                let reached = disk.calls() + call;
                disk.fault_at(reached, fault);
                match open(&disk, &options_of(kind)) {
                    Err(_) => refused += 1,
                    Ok((lane, _)) => {
                        opened += 1;
                        let live = lane.stats().live_segments;
                        // The vote file is one.
                        assert_eq!(disk.open_files() as u64, live + 1, "call {call}");
                    }
                }
                assert_eq!(disk.open_files(), 0, "{kind:?} call {call} {fault:?}");
                let is_reached = disk.calls() >= reached;
                disk.fault_at(u64::MAX, fault);
                let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
                let lane = StoppedLane::new(vfs, Path::new(DATA), 0);
                lane.check().expect("it can be looked at");
                assert_eq!(disk.open_files(), 0, "{kind:?} call {call} {fault:?}");
                if !is_reached {
                    break;
                }
            }
        }
    }
    assert!(refused > 200 && opened > 6, "{refused} {opened}");
}

/// The disk that a life begins on.
fn base(kind: Kind) -> Arc<SimVfs> {
    let disk = disk(1);
    if kind == Kind::Votes {
        let (mut driven, _) = Driven::open(&disk, &options_of(kind));
        for group in 1..=ROOM - 20 {
            driven.lane.submit(vote(group, 1)).expect("it is taken");
        }
        assert_eq!(
            driven.settle().len() + 20,
            usize::try_from(ROOM).expect("small")
        );
        disk.kill_process();
        drop(driven);
    }
    disk
}

/// Slots of a new vote file.
const ROOM: u64 = 1_024;

fn vote(group: u64, number: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.hard_state = Some(HardState {
        term: Term::new(number),
        vote: ReplicaId::new(3),
        ..HardState::default()
    });
    if group.is_multiple_of(8) {
        let (term, from) = (Term::new(number), Index::new(1));
        submission.entries = vec![batch(&mut Rng(group), key(group).0, term, from, 1, 50)];
    }
    submission
}

fn votes_len(disk: &SimVfs) -> u64 {
    let Ok(file) = disk.open(&Path::new(DATA).join("votes"), false) else {
        return 0;
    };
    let len = disk.len(file).expect("it has a length");
    disk.close(file);
    len
}

fn options_of(kind: Kind) -> LaneOptions {
    LaneOptions {
        tail_cache_bytes_max: if kind == Kind::Usual { 0 } else { 32 << 10 },
        collect_bytes_max: 8 << 10,
        ..options()
    }
}

/// A life with a clean close whose n-th call fails.
fn run_with(kind: Kind, base: &SimVfs, call: u64, fault: Fault, refused: &mut u64) -> Life {
    let what = format!("{kind:?} call {call} {fault:?}");
    let options = options_of(kind);
    let disk = Arc::new(base.fork());
    let reached = disk.calls().saturating_add(call);
    disk.fault_at(reached, fault);
    let mut tracks = Tracks::default();
    if kind == Kind::Votes {
        (1..=ROOM - 20).for_each(|group| tracks.submit(&vote(group, 1), &options));
        tracks.acknowledge_all();
    }
    let mut life = Life {
        is_reached: false,
        is_latched: false,
        sealed: 0,
        moved_bytes: 0,
        entries_read: 0,
        votes_len: 0,
    };
    match open(&disk, &options) {
        Err(error) => assert!(!matches!(error, LogError::Damaged { .. }), "{what}"),
        Ok((lane, _)) => {
            let mut driven = Driven {
                vfs: Arc::clone(&disk),
                lane,
                now: raft_proto::Time(0),
            };
            let reason = use_it(kind, &mut driven, &mut tracks, fault, refused, &what);
            let stats = driven.lane.stats();
            (life.sealed, life.moved_bytes) = (stats.sealed_segments, stats.moved_bytes);
            life.entries_read = check_acknowledged(&driven, &tracks, &what);
            life.is_latched = reason.is_some();
            match reason {
                Some(reason) => check_latched(&mut driven, fault, &reason, &what),
                None => {
                    assert!(tracks.is_acknowledged(), "{what}: something waits for ever");
                    drop(driven.lane.close());
                }
            }
        }
    }
    life.is_reached = disk.calls() >= reached;
    disk.fault_at(u64::MAX, Fault::Short);
    life.votes_len = votes_len(&disk);
    // The process alone is gone, or the power: what is found is the same and stays. A thousand
    // replicas take their time: then it is one or the other.
    let is_either = kind == Kind::Votes;
    for is_power in [false, true] {
        if is_either && is_power == call.is_multiple_of(2) {
            continue;
        }
        let disk = Arc::new(disk.fork());
        if is_power {
            disk.crash();
        } else {
            disk.kill_process();
        }
        let (lane, recovery) =
            open(&disk, &options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(recovery.report.damaged.is_empty(), "{what}: {recovery:?}");
        let found = seen_all(&lane, &recovery).expect("it reads");
        tracks.check(&found, &what);
        disk.crash();
        drop(lane);
        let (lane, recovery) = open(&disk, &options).expect("it opens");
        let again = seen_all(&lane, &recovery).expect("it reads");
        assert!(agrees(&again, &found), "{what}: what was found is durable");
    }
    life
}

/// Submissions until one fails. Returns why.
fn use_it(
    kind: Kind,
    driven: &mut Driven,
    tracks: &mut Tracks,
    fault: Fault,
    refused: &mut u64,
    what: &str,
) -> Option<String> {
    let options = options_of(kind);
    let mut workload = Workload::new(1, 3, 4_000);
    workload.has_laggard = kind == Kind::Turnover;
    let mut reason = None;
    let rounds = if kind == Kind::Votes { 28 } else { 60 };
    for round in 0..rounds {
        let before = workload.model.clone();
        let submission = match kind {
            Kind::Votes => vote(ROOM - 19 + round, 1),
            Kind::Usual | Kind::Turnover => workload.draw(),
        };
        tracks.submit(&submission, &options);
        match driven.lane.submit(submission.clone()) {
            Ok(()) => {}
            Err(LogError::Latched(why)) => {
                tracks.refuse(&submission, &options);
                return Some(why);
            }
            Err(LogError::StorageFull) => {
                // Nothing was taken; the disk has room again when this is tried again.
                assert_eq!(fault, Fault::Errno(ENOSPC), "{what}");
                *refused += 1;
                tracks.refuse(&submission, &options);
                workload.model = before;
                driven.pass(2_000_000_000);
            }
            Err(error) => panic!("{what}: {error}"),
        }
        if kind == Kind::Votes && round % 4 < 3 {
            continue;
        }
        if round % 20 == 19 {
            driven.pass(300_000_000);
        }
        for done in driven.settle() {
            tracks.complete(&done);
            match done.result {
                Ok(()) => assert!(reason.is_none(), "{what}: acknowledged after a failure"),
                Err(LogError::Latched(why)) => reason = Some(why),
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    if reason.is_none() {
        // What could not be made at first is made by now.
        driven.pass(3_000_000_000);
        for done in driven.lane.take_completions() {
            tracks.complete(&done);
            reason = done.result.err().map(|error| error.to_string());
        }
    }
    reason
}

/// Nothing more is taken, ever; and what may pass is no reason.
fn check_latched(driven: &mut Driven, fault: Fault, reason: &str, what: &str) {
    let refused = driven.lane.submit(vote(1, 99));
    assert!(matches!(refused, Err(LogError::Latched(_))), "{what}");
    let may_pass = [Fault::Errno(EMFILE), Fault::Errno(ENOSPC)].contains(&fault);
    let is_of_files = ["open", "prepare"].iter().any(|op| reason.starts_with(op));
    assert!(!(may_pass && is_of_files), "{what}: {reason}");
}

/// Whatever has become of the log, what was acknowledged is read back. Returns how many entries.
fn check_acknowledged(driven: &Driven, tracks: &Tracks, what: &str) -> u64 {
    let reader = driven.lane.reader();
    let mut entries = 0;
    for (key, replica) in tracks.acknowledged() {
        match read_back(&reader, *key, replica, Some(3_000), what) {
            Ok(read) => entries += read.entries,
            // The call that was to fail.
            Err(LogError::Io(_)) => {}
            Err(error) => panic!("{what}: {error}"),
        }
    }
    entries
}

#[test]
fn every_operation_of_a_recovery_failing_changes_nothing() {
    let mut cases = 0;
    for seed in 0..4 {
        let whole = disk(seed);
        let (mut driven, _) = Driven::open(&whole, &options());
        let mut workload = Workload::new(seed, 3, 4_000);
        workload.has_laggard = seed % 2 == 0;
        // Who is gone has no slot in the vote file that the open makes.
        workload.has_tombstones = seed == 3;
        for _ in 0..30 {
            driven.write(workload.draw());
        }
        let before = workload.model.clone();
        let tail = workload.draw();
        driven.lane.submit(tail).expect("taken");
        driven.lane.poll(driven.now);
        drop(driven);
        // A write was on its way.
        whole.crash();
        for fault in FAULTS {
            for call in 1.. {
                let disk = Arc::new(whole.fork());
                let reached = disk.calls() + call;
                disk.fault_at(reached, fault);
                let what = format!("seed {seed} call {call} {fault:?}");
                let failed = open(&disk, &options()).map(|_| ());
                assert!(!matches!(failed, Err(LogError::Damaged { .. })), "{what}");
                let is_reached = disk.calls() >= reached;
                disk.fault_at(u64::MAX, Fault::Short);
                if call % 2 == 0 {
                    disk.crash();
                } else {
                    disk.kill_process();
                }
                let (lane, recovery) =
                    open(&disk, &options()).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(recovery.report.damaged.is_empty(), "{what}: {recovery:?}");
                let found = seen_all(&lane, &recovery).expect("it reads");
                let is_known = agrees(&found, &before) || agrees(&found, &workload.model);
                assert!(is_known, "{what}");
                disk.crash();
                drop(lane);
                let (lane, recovery) = open(&disk, &options()).expect("it opens");
                let again = seen_all(&lane, &recovery).expect("it reads");
                assert!(agrees(&again, &found), "{what}: what was found is durable");
                if !is_reached {
                    break;
                }
                cases += 1;
            }
        }
    }
    record("log operations of a recovery failing", "cases", cases);
    assert!(cases > 300, "{cases}");
}

#[test]
fn fault_14_hazard_47_a_failed_write_or_sync_is_final_and_what_was_acknowledged_stays_readable() {
    for (op, fault) in [
        ("sync", Fault::Errno(EIO)),
        ("write", Fault::Errno(EIO)),
        ("sync", Fault::Error(ErrorKind::StorageFull)),
        ("write", Fault::Short),
    ] {
        let disk = disk(1);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut workload = Workload::new(5, 2, 100);
        for _ in 0..10 {
            driven.write(workload.draw());
        }
        let acknowledged = workload.model.clone();
        disk.fault_next(op, fault);
        driven.lane.submit(workload.draw()).expect("taken");
        let submitted = workload.model.clone();
        let done = driven.settle();
        assert_eq!(done.len(), 1, "{op}");
        let Err(LogError::Latched(reason)) = &done[0].result else {
            panic!("{op}: {done:?}");
        };
        assert!(reason.starts_with(op), "{op} failed: {reason}");
        let syncs = driven.lane.stats().fdatasyncs;
        for _ in 0..3 {
            // The disk is well again; the log stays latched, and asks it for nothing.
            let refused = driven.lane.submit(workload.draw());
            assert!(matches!(refused, Err(LogError::Latched(_))));
            driven.pass(2_000_000_000);
            assert!(driven.lane.take_completions().is_empty());
        }
        assert_eq!(driven.lane.stats().fdatasyncs, syncs, "none is tried again");
        check_readable(&driven, &acknowledged);
        drop(driven);
        // The process ends; what the system still has in memory was never made durable, and counts
        // as clean. The next open writes it again before it trusts it: then power is lost.
        let read = |disk: &Arc<SimVfs>| {
            let (lane, recovery) = open(disk, &options()).expect("it opens");
            seen_all(&lane, &recovery).expect("it reads")
        };
        let killed = Arc::new(disk.fork());
        killed.kill_process();
        let found = read(&killed);
        killed.crash_keeping(|_| false);
        assert!(agrees(&read(&killed), &found), "{op}: it was written again");
        let is_whole = op == "sync";
        assert_eq!(agrees(&found, &submitted), is_whole, "{op}");
        disk.crash();
        let found = read(&disk);
        assert!(agrees(&found, &acknowledged) || agrees(&found, &submitted));
    }
}

/// What was acknowledged can be read, whatever has become of the log since.
fn check_readable(driven: &Driven, acknowledged: &Model) {
    let reader = driven.lane.reader();
    let mut read = 0;
    for (key, model) in &acknowledged.replicas {
        for (index, (_, payload)) in &model.entries {
            let found = reader.entries(key.0, key.1, *index, *index, usize::MAX);
            let found = found.expect("it is readable");
            let entry = found[0].iter().next().expect("one entry");
            assert_eq!(entry.payload(), &payload[..]);
            read += 1;
        }
    }
    assert!(read > 0, "there are entries");
}

#[test]
fn fault_15_a_hung_disk_acknowledges_nothing_and_goes_on_when_it_wakes() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(6, 2, 100);
    driven.write(workload.draw());
    disk.set_hung(true);
    for _ in 0..20 {
        driven.lane.submit(workload.draw()).expect("taken");
        driven.pass(3_000_000_000);
        assert!(driven.lane.take_completions().is_empty());
    }
    disk.set_hung(false);
    assert_eq!(driven.settle().len(), 20);
}

#[test]
fn fault_27_a_file_system_that_turns_read_only_latches() {
    for before in 1..40 {
        let disk = disk(3);
        let (mut driven, _) = Driven::open(&disk, &options());
        let mut workload = Workload::new(7, 2, 4_000);
        for _ in 0..before {
            driven.write(workload.draw());
        }
        let acknowledged = workload.model.clone();
        disk.set_read_only(true);
        driven.lane.submit(workload.draw()).expect("taken");
        let done = driven.settle();
        assert!(!done.is_empty() && done.iter().all(|done| done.result.is_err()));
        let refused = driven.lane.submit(workload.draw());
        assert!(matches!(refused, Err(LogError::Latched(_))), "{refused:?}");
        if before > 20 {
            check_readable(&driven, &acknowledged);
        }
        assert!(driven.lane.close().is_err());
        // At open it is an error, not a panic, and the next one finds all that there was.
        disk.kill_process();
        assert!(matches!(open(&disk, &options()), Err(LogError::Io(_))));
        disk.set_read_only(false);
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        let found = seen_all(&lane, &recovery).expect("it reads");
        assert!(agrees(&found, &acknowledged) || agrees(&found, &workload.model));
    }
}

/// The file system turns read-only during an open, before each of its calls.
#[test]
fn fault_27_an_open_on_a_file_system_that_turns_read_only_is_an_error() {
    let mut refused = 0;
    for is_new in [false, true] {
        let whole = disk(4);
        let mut workload = Workload::new(8, 2, 100);
        if !is_new {
            let (mut driven, _) = Driven::open(&whole, &options());
            for _ in 0..12 {
                driven.write(workload.draw());
            }
            whole.crash();
            drop(driven);
        }
        for call in 1.. {
            let disk = Arc::new(whole.fork());
            let at = disk.calls() + call;
            disk.read_only_from(at);
            let outcome = open(&disk, &options());
            if disk.calls() < at {
                assert!(outcome.is_ok());
                break;
            }
            match outcome {
                Err(LogError::Io(_)) => refused += 1,
                Err(error) => panic!("call {call}: {error}"),
                // Nothing but reads was left to do.
                Ok(_) => {}
            }
            disk.set_read_only(false);
            disk.kill_process();
            let (lane, recovery) = open(&disk, &options()).expect("it opens");
            assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
            let found = seen_all(&lane, &recovery).expect("it reads");
            assert!(agrees(&found, &workload.model), "call {call}");
        }
    }
    assert!(refused > 30, "{refused}");
}

#[test]
fn hazard_12_a_vote_is_acknowledged_only_when_log_and_slot_are_durable() {
    // Power is cut right after each acknowledgement: the vote is there, whichever copy survives.
    let disk = disk(8);
    let (mut driven, _) = Driven::open(&disk, &options());
    let (group, replica) = key(1);
    for term in 1..30 {
        let mut submission = Submission::new(group, replica, term);
        let hard_state = HardState {
            term: Term::new(term),
            vote: ReplicaId::new(1 + term % 3),
            ..HardState::default()
        };
        submission.hard_state = Some(hard_state);
        driven.write(submission);
        for keep in [false, true] {
            let after = Arc::new(disk.fork());
            after.crash_keeping(|_| keep);
            let (_, recovery) = open(&after, &options()).expect("it opens");
            let found = &recovery.replicas[&(group, replica)];
            assert_eq!(found.hard_state, hard_state);
        }
    }
}

#[test]
fn a_batch_over_the_bound_is_refused_and_one_that_fills_a_segment_is_taken() {
    let disk = disk(9);
    let (mut driven, _) = Driven::open(&disk, &options());
    let (group, replica) = key(1);
    let large = |bytes: usize| {
        let mut builder = raft_proto::BatchBuilder::new(group, Term::new(1), Index::new(1), bytes);
        builder.push(raft_proto::EntryKind::Command, 0, None, &vec![7; bytes]);
        let mut submission = Submission::new(group, replica, 1);
        submission.entries = vec![builder.finish().expect("one")];
        submission
    };
    let refused = driven.lane.submit(large(33 << 10));
    assert!(matches!(refused, Err(LogError::TooLarge { .. })));
    driven.write(large(31 << 10));
    // With a larger bound a record may need a segment of its own size.
    let options = LaneOptions {
        record_bytes_max: 1 << 20,
        ..options()
    };
    let disk = crate::workload::disk(10);
    let (mut driven, _) = Driven::open(&disk, &options);
    driven.write(large(300 << 10));
    drop(driven);
    let (lane, _) = open(&disk, &options).expect("it opens");
    let one = Index::new(1);
    let read = lane.reader().entries(group, replica, one, one, 1);
    assert_eq!(read.expect("it reads")[0].size_bytes(), (300 << 10) + 32);
}

#[test]
fn fault_15_a_slow_disk_gathers_and_completes_in_order() {
    const SUBMISSIONS: u64 = 100;
    let disk = disk(11);
    let (mut driven, _) = Driven::open(&disk, &options());
    disk.set_sync_latency(500_000_000);
    let (group, replica) = key(1);
    let submission = |number: u64| {
        let mut submission = Submission::new(group, replica, number);
        submission.hard_state = Some(HardState {
            term: Term::new(number),
            ..HardState::default()
        });
        submission
    };
    let syncs = driven.lane.stats().fdatasyncs;
    driven.lane.submit(submission(1)).expect("taken");
    driven.lane.poll(driven.now);
    for number in 2..=SUBMISSIONS {
        // The first write is on its way: these wait for it, together.
        driven.lane.submit(submission(number)).expect("taken");
        driven.lane.poll(driven.now);
        assert!(driven.lane.take_completions().is_empty());
    }
    driven.pass(10_000_000_000);
    let done = driven.lane.take_completions();
    let numbers: Vec<u64> = done.iter().map(|done| done.submission).collect();
    assert_eq!(numbers, (1..=SUBMISSIONS).collect::<Vec<_>>());
    assert!(done.iter().all(|done| done.result.is_ok()));
    // Log and votes, for the first, for all the others, and for the end of the burst.
    let syncs = driven.lane.stats().fdatasyncs - syncs;
    assert!(syncs <= 6, "{syncs} syncs");
}
