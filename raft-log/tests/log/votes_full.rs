//! The vote file on a full disk, and while it is mended: an open needs no room for what the log
//! proves, and forgets nothing that is unknown, wherever it is interrupted.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{Fault, SimVfs};
use raft_log::{Health, LaneOptions, LogError, Recovery};
use raft_proto::{Index, Term, Time};

use crate::damage::{content, records, segments};
use crate::votes::{HALF_A, HALF_B, vote, voted};
use crate::workload::{DATA, Driven, Rng, batch, disk, key, open, options};

fn file() -> PathBuf {
    Path::new(DATA).join("votes")
}

fn fill(disk: &SimVfs) {
    disk.set_capacity(Some(disk.used_bytes()));
}

/// Both slots of the first replica are lost.
fn lose_both(disk: &SimVfs) {
    disk.damage(&file(), |content| {
        content[HALF_A + 9] ^= 7;
        content[HALF_B + 9] ^= 7;
    });
}

/// A log that was closed: the first replica voted in term 9, the second in 4.
fn closed() -> Arc<SimVfs> {
    let disk = voted();
    let (driven, _) = Driven::open(&disk, &options());
    driven.lane.close().expect("it closes");
    // Nobody has a file open.
    disk.crash();
    disk
}

/// The same, and a write was on its way when the power went.
fn torn() -> Arc<SimVfs> {
    let disk = closed();
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut submission = vote(key(2), 2, 5);
    let (term, from) = (Term::new(5), Index::new(1));
    submission.entries = vec![batch(&mut Rng(1), key(2).0, term, from, 3, 2_000)];
    driven.lane.submit(submission).expect("taken");
    driven.step();
    drop(driven);
    let units = disk.unsynced();
    assert!(units > 4, "the record spans sectors");
    disk.crash_keeping(|unit| unit + 1 < units);
    disk
}

/// Opens, interrupted behind each step, with all, none or some of what was not synced lost; then
/// opens again. `check` sees both.
fn opens_wherever_interrupted(disk: &Arc<SimVfs>, check: impl Fn(&Recovery, &str)) -> u64 {
    let first = Arc::new(disk.fork());
    first.record_crash_points();
    let (lane, recovery) = open(&first, &options()).expect("it opens");
    drop(lane);
    check(&recovery, "uninterrupted");
    let (mut cases, mut rng) = (0, Rng(1));
    for (step, point) in first.take_crash_points().into_iter().enumerate() {
        for draw in 0..8_u64 {
            let disk = Arc::new(point.fork());
            disk.crash_keeping(|_| match draw {
                0 => true,
                1 => false,
                _ => rng.one_in(2),
            });
            let what = format!("step {step} draw {draw}");
            for life in 0..2 {
                let found = open(&disk, &options());
                let (_, recovery) = found.unwrap_or_else(|error| panic!("{what}: {error}"));
                check(&recovery, &format!("{what} life {life}"));
                disk.crash();
            }
            cases += 1;
        }
    }
    crate::record("log opens of a vote file interrupted", "cases", cases);
    assert!(cases > 20, "{cases}");
    cases
}

fn terms_are_kept(recovery: &Recovery, what: &str) {
    for (group, term) in [(1, 9), (2, 4)] {
        let state = &recovery.replicas[&key(group)];
        assert_eq!(state.hard_state.term, Term::new(term), "{what}");
        assert_eq!(state.health, Health::Sound, "{what}");
    }
}

/// Of many first votes in one write, the later slots reached the disk and the earlier ones did not.
#[test]
fn fault_16_holes_among_the_slots_need_no_other_file() {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.write(vote(key(1), 1, 3));
    driven.pass(300_000_000);
    for group in 2..=40 {
        driven.lane.submit(vote(key(group), 1, 3)).expect("taken");
    }
    driven.step();
    drop(driven);
    let units = disk.unsynced();
    assert!(units > 8, "slots in several sectors: {units}");
    let mut rng = Rng(1);
    let mut holes = 0;
    for _ in 0..64 {
        let disk = Arc::new(disk.fork());
        disk.crash_keeping(|_| rng.one_in(2));
        let slots = content(&disk, &file());
        let is_used = |at: usize| slots[HALF_A + 64 * at] != 0;
        holes += usize::from((1..40).any(|at| !is_used(at) && (at..40).any(is_used)));
        fill(&disk);
        // No file is even tried to be put in its place.
        disk.fault_every("rename", Some(Fault::Error(ErrorKind::Other)));
        disk.set_now(Time(0));
        let (mut driven, recovery) = Driven::open(&disk, &options());
        disk.fault_every("rename", None);
        assert_eq!(recovery.report.damaged, []);
        for group in 1..=40 {
            driven.lane.submit(vote(key(group), 7, 8)).expect("taken");
        }
        let done = driven.settle();
        assert_eq!(done.len(), 40);
        assert!(done.iter().all(|done| done.result.is_ok()), "{:?}", done[0]);
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let terms = recovery.replicas.values();
        let terms = terms.filter(|state| state.hard_state.term == Term::new(8));
        assert_eq!(terms.count(), 40);
    }
    assert!(holes > 20, "{holes} with a hole");
}

#[test]
fn fault_16_lost_slots_on_a_full_disk_are_written_again_in_their_file() {
    let disk = closed();
    lose_both(&disk);
    fill(&disk);
    let renaming = Some(Fault::Error(ErrorKind::Other));
    disk.fault_every("rename", renaming);
    opens_wherever_interrupted(&disk, terms_are_kept);
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report.damaged.len(), 1, "{:?}", recovery.report);
    lane.close().expect("it closes");
    let (_, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report, raft_log::RecoveryReport::default());
}

/// Beside a log that was cut, the vote of whom both slots are lost is not known. Whatever of the
/// cut and the vote file an interrupted open has mended, it stays so.
#[test]
fn fault_20_an_unknown_vote_stays_so_wherever_an_open_is_interrupted() {
    for is_full in [false, true] {
        for lose in [lose_both, |disk: &SimVfs| {
            disk.flip_bit(&file(), HALF_A + 9, 2)
        }] {
            let disk = torn();
            lose(&disk);
            if is_full {
                fill(&disk);
            }
            opens_wherever_interrupted(&disk, |recovery, what| {
                let health = |group| &recovery.replicas[&key(group)].health;
                assert_eq!(*health(1), Health::VoteUnknown, "full {is_full}: {what}");
                assert_eq!(*health(2), Health::Sound, "full {is_full}: {what}");
            });
        }
    }
}

/// It says nothing: it leaves its room to the one that is made from the log.
#[test]
fn fault_16_a_vote_file_without_header_on_a_full_disk_is_made_anew() {
    let of_header = |disk: &SimVfs| disk.flip_bit(&file(), 20, 1);
    let of_end = |disk: &SimVfs| disk.damage(&file(), |content| content.truncate(HALF_B + 512));
    for lose in [of_header, of_end] {
        let disk = closed();
        fill(&disk);
        lose(&disk);
        opens_wherever_interrupted(&disk, terms_are_kept);
        disk.set_now(Time(0));
        let (mut driven, recovery) = Driven::open(&disk, &options());
        assert_eq!(recovery.report.damaged.len(), 1, "{:?}", recovery.report);
        driven.lane.submit(vote(key(1), 3, 12)).expect("taken");
        assert_eq!(driven.settle().len(), 1);
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report, raft_log::RecoveryReport::default());
        assert_eq!(recovery.replicas[&key(1)].hard_state.term, Term::new(12));
    }
}

/// A part of it cannot be read, and nothing can be put in its place.
#[test]
fn fault_16_a_vote_file_with_unreadable_sectors_on_a_full_disk_is_mended_in_place() {
    for sector in [HALF_A / 512, HALF_B / 512, HALF_A / 512 + 1] {
        let disk = closed();
        fill(&disk);
        disk.lose_sector(&file(), sector);
        opens_wherever_interrupted(&disk, terms_are_kept);
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert_ne!(recovery.report.damaged, [], "sector {sector}: it is told");
        lane.close().expect("it closes");
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report, raft_log::RecoveryReport::default());
    }
}

/// There is none, and no room for one: nothing could tell of a vote later. It is said, nothing is
/// lost by it, and room is all that it takes.
#[test]
fn fault_16_without_a_vote_file_and_room_for_one_the_log_says_so() {
    for (disk, health) in [(closed(), Health::Sound), (torn(), Health::VoteUnknown)] {
        disk.misplace(&file(), None);
        fill(&disk);
        for _ in 0..3 {
            match open(&disk, &options()) {
                Err(LogError::Io(error)) => assert!(error.is_storage_full(), "{error}"),
                other => panic!("{:?}", other.map(|(_, recovery)| recovery)),
            }
            disk.crash();
        }
        disk.set_capacity(None);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        for state in recovery.replicas.values() {
            assert_eq!(state.health, health);
        }
        assert_eq!(recovery.replicas[&key(1)].hard_state.term, Term::new(9));
    }
}

/// However often another data directory's vote file is put here, none is lost.
#[test]
fn fault_7_each_foreign_vote_file_is_kept_beside_those_before_it() {
    let ours = closed();
    let mut kept = Vec::new();
    for round in 0..9_u64 {
        let other = disk(30 + round);
        let options_of_other = LaneOptions {
            identity: Some(100 + round),
            ..options()
        };
        let (driven, _) = Driven::open(&other, &options_of_other);
        driven.lane.close().expect("it closes");
        let foreign = content(&other, &file());
        ours.damage(&file(), |content| content.clone_from(&foreign));
        kept.push(foreign);
        let before = names_and_contents(&ours);
        match open(&ours, &options()) {
            Ok((lane, recovery)) => {
                assert!(round < 8, "as many as are kept");
                assert_eq!(recovery.report.foreign, ["votes"]);
                terms_are_kept(&recovery, "foreign");
                lane.close().expect("it closes");
            }
            Err(LogError::Foreign { files, .. }) => {
                assert_eq!((round, files.len()), (8, 8));
                assert!(names_and_contents(&ours) == before, "nothing was written");
            }
            Err(error) => panic!("{error}"),
        }
    }
    let names = ["votes.foreign".to_owned()].into_iter();
    let names = names.chain((2..=8).map(|number| format!("votes.foreign.{number}")));
    for (name, content_then) in names.zip(kept) {
        assert!(
            content(&ours, &Path::new(DATA).join(&name)) == content_then,
            "{name}"
        );
    }
}

/// A vote that was on its way: half A has it, the log does not. Behind damage an open on a full disk
/// cannot say it in the log either, and the vote file grows before there is a segment for it: half B
/// goes on saying what the log does.
#[test]
fn fault_16_a_vote_file_that_grows_says_nothing_that_the_log_lacks() {
    let options = LaneOptions {
        segment_size_bytes: 1 << 20,
        ..options()
    };
    let disk = disk(21);
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut submission = vote(key(1), 1, 1);
    let (term, from) = (Term::new(1), Index::new(1));
    submission.entries = vec![batch(&mut Rng(1), key(1).0, term, from, 1, 3_000)];
    driven.write(submission);
    // Few places are left.
    for group in 2..=1_000 {
        driven.lane.submit(vote(key(group), 1, 6)).expect("taken");
    }
    driven.settle();
    fill(&disk);
    driven.pass(500_000_000);
    driven.lane.submit(vote(key(2), 2, 7)).expect("taken");
    driven.step();
    drop(driven);
    let has_vote = |disk: &SimVfs| content(disk, &file())[HALF_A + 64 + 32] == 7;
    let disk = (0..disk.unsynced())
        .map(|kept| {
            let disk = disk.fork();
            disk.crash_keeping(|unit| unit == kept);
            Arc::new(disk)
        })
        .find(|disk| has_vote(disk))
        .expect("one of what was on its way is the slot's sector");
    let segments = segments(&disk);
    let (at, ..) = *records(&content(&disk, &segments[0]))
        .iter()
        .find(|(_, kind, ..)| *kind == 1)
        .expect("the first one is that of the entries");
    disk.damage(&segments[0], |content| content[at + 64..at + 90].fill(0x55));
    for spare in &segments[1..] {
        disk.misplace(spare, None);
    }
    // Too little for a segment, and enough for a vote file.
    disk.set_capacity(Some(disk.used_bytes() + (400 << 10)));
    let before = content(&disk, &file()).len();
    for life in 0..3 {
        disk.set_now(Time(0));
        let (mut driven, recovery) = Driven::open(&disk, &options);
        let state = &recovery.replicas[&key(2)];
        let report = &recovery.report;
        assert_eq!(state.hard_state.term, Term::new(7), "life {life}");
        assert_eq!(state.health, Health::Sound, "life {life}: {report:?}");
        driven.pass(3_000_000_000);
        assert!(content(&disk, &file()).len() > before, "it has grown");
        disk.crash();
        drop(driven);
    }
}

fn names_and_contents(disk: &SimVfs) -> BTreeSet<(PathBuf, Vec<u8>)> {
    use raft_log::vfs::Vfs;
    let dirs = [Path::new(DATA).to_owned(), Path::new(DATA).join("log/0")];
    let mut found = BTreeSet::new();
    for dir in dirs {
        for entry in disk.list(&dir).expect("it lists") {
            if entry.is_file {
                let path = dir.join(entry.name);
                found.insert((path.clone(), content(disk, &path)));
            }
        }
    }
    found
}
