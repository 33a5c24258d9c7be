//! The vote file.

use std::path::Path;
use std::sync::Arc;

use raft_log::{Health, Submission};
use raft_proto::{HardState, Term};

use crate::workload::{DATA, Driven, Key, disk, key, open, options};

pub fn vote(key: Key, number: u64, term: u64) -> Submission {
    let mut submission = Submission::new(key.0, key.1, number);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        vote: Some(key.1),
        ..HardState::default()
    });
    submission
}

#[test]
fn ten_thousand_votes_cost_one_write_and_one_sync() {
    let options = raft_log::LaneOptions {
        segment_size_bytes: 16 << 20,
        record_bytes_max: 4 << 20,
        ..options()
    };
    // All of so many, every second one, every fourth.
    for step in [1, 2, 4] {
        let disk = disk(1);
        let (mut driven, _) = Driven::open(&disk, &options);
        for group in 1..=10_000 * step {
            driven.lane.submit(vote(key(group), 1, 1)).expect("taken");
        }
        driven.pass(1_000_000_000);
        drop(driven.lane.take_completions());
        let voters = || (1..=10_000 * step).step_by(usize::try_from(step).expect("small"));
        let (syncs, calls) = (driven.lane.stats().fdatasyncs, disk.calls());
        for group in voters() {
            driven.lane.submit(vote(key(group), 2, 2)).expect("taken");
        }
        assert_eq!(driven.settle().len(), 10_000);
        // One record with its padding, one write of slots a half; a sync of each file.
        assert_eq!(driven.lane.stats().fdatasyncs - syncs, 2);
        let storm = disk.calls() - calls;
        assert!(storm <= 6, "{storm} calls");
        // The second halves, at the end of the burst.
        driven.pass(1_000_000_000);
        let end = disk.calls() - calls - storm;
        assert!(end <= 8, "{end} calls");
        disk.crash();
        drop(driven);
        let (_, recovery) = open(&disk, &options).expect("it opens");
        for group in voters() {
            let state = &recovery.replicas[&key(group)];
            assert_eq!(state.hard_state.term, Term::new(2));
        }
    }
}

/// A log in which two replicas have voted, closed; the last record is a vote of the first.
pub fn voted() -> Arc<raft_log::vfs::SimVfs> {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    driven.write(vote(key(1), 1, 3));
    driven.write(vote(key(2), 1, 4));
    driven.pass(300_000_000);
    driven.write(vote(key(1), 2, 9));
    disk
}

pub const HALF_A: usize = 4096;
pub const HALF_B: usize = 4096 + 64 * 1024;

fn flip(disk: &raft_log::vfs::SimVfs, byte: usize) {
    disk.flip_bit(&Path::new(DATA).join("votes"), byte, 2);
}

#[test]
fn fault_20_one_bad_slot_beside_a_whole_log_is_mended() {
    for slot in [HALF_A, HALF_A + 64, HALF_B, HALF_B + 64] {
        for byte in 0..64 {
            let disk = Arc::new(voted().fork());
            {
                // Closed cleanly: the log is whole and says so.
                let (driven, _) = Driven::open(&disk, &options());
                driven.lane.close().expect("it closes");
            }
            flip(&disk, slot + byte);
            for is_first in [true, false] {
                let (lane, recovery) = open(&disk, &options()).expect("it opens");
                let told = recovery.report.damaged.iter().map(|found| found.offset);
                let slots: Vec<u64> = told.collect();
                let slot = u64::try_from(slot).expect("small");
                assert_eq!(slots, vec![slot; usize::from(is_first)], "byte {byte}");
                let states = &recovery.replicas;
                assert_eq!(states[&key(1)].hard_state.term, Term::new(9), "byte {byte}");
                assert_eq!(states[&key(2)].hard_state.term, Term::new(4), "byte {byte}");
                assert_eq!(states[&key(1)].health, Health::Sound);
                lane.close().expect("it closes");
            }
        }
    }
}

#[test]
fn fault_20_a_bad_slot_beside_a_cut_log_is_an_unknown_vote_for_ever() {
    let disk = voted();
    // A write was on its way when the power went, and left something.
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut submission = vote(key(2), 2, 5);
    let mut rng = crate::workload::Rng(1);
    let (term, from) = (Term::new(5), raft_proto::Index::new(1));
    submission.entries = vec![crate::workload::batch(
        &mut rng,
        key(2).0,
        term,
        from,
        3,
        2_000,
    )];
    driven.lane.submit(submission).expect("taken");
    driven.step();
    drop(driven);
    let units = disk.unsynced();
    assert!(units > 4, "the record spans sectors");
    // All but the record's last sector reach the disk.
    disk.crash_keeping(|unit| unit + 1 < units);
    flip(&disk, HALF_A + 8);
    for _ in 0..3 {
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        let states = &recovery.replicas;
        assert_eq!(states[&key(1)].health, Health::VoteUnknown);
        assert!(states[&key(1)].health.to_string().contains("new id"));
        assert_eq!(states[&key(2)].health, Health::Sound);
        lane.close().expect("it closes");
    }
}

#[test]
fn fault_20_damage_of_the_log_rolls_no_term_back() {
    let disk = voted();
    let (driven, _) = Driven::open(&disk, &options());
    driven.lane.close().expect("it closes");
    let path = Path::new(DATA).join("log/0/0000000000000001.seg");
    for byte in (1024..4096).step_by(3) {
        let disk = Arc::new(disk.fork());
        disk.flip_bit(&path, byte, 1);
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        for (key, term) in [(key(1), 9), (key(2), 4)] {
            if let Some(state) = recovery.replicas.get(&key) {
                let is_kept = state.hard_state.term == Term::new(term);
                let is_stopped = state.health != Health::Sound;
                assert!(is_kept || is_stopped, "byte {byte}: {state:?}");
            }
        }
    }
}

#[test]
fn a_lost_vote_file_beside_a_whole_log_is_made_again() {
    let disk = voted();
    let (driven, _) = Driven::open(&disk, &options());
    driven.lane.close().expect("it closes");
    disk.misplace(&Path::new(DATA).join("votes"), None);
    for _ in 0..2 {
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.replicas[&key(1)].hard_state.term, Term::new(9));
        assert_eq!(recovery.replicas[&key(1)].health, Health::Sound);
        lane.close().expect("it closes");
    }
}

/// The votes of another data directory are not ours, and not thrown away.
#[test]
fn fault_7_a_vote_file_of_another_log_is_named_and_kept_aside() {
    let ours = voted();
    let other = disk(3);
    let options_of_other = raft_log::LaneOptions {
        identity: Some(8),
        ..options()
    };
    let (mut driven, _) = Driven::open(&other, &options_of_other);
    driven.write(vote(key(1), 1, 70));
    driven.lane.close().expect("it closes");
    let path = Path::new(DATA).join("votes");
    let foreign = crate::damage::content(&other, &path);
    ours.damage(&path, |content| content.clone_from(&foreign));
    for is_first in [true, false] {
        let (lane, recovery) = open(&ours, &options()).expect("it opens");
        let named = if is_first { vec!["votes"] } else { Vec::new() };
        assert_eq!(recovery.report.foreign, named);
        assert_eq!(recovery.report.damaged, []);
        assert_eq!(recovery.replicas[&key(1)].hard_state.term, Term::new(9));
        assert_eq!(recovery.replicas[&key(1)].health, Health::Sound);
        lane.close().expect("it closes");
    }
    let aside = Path::new(DATA).join("votes.foreign");
    assert_eq!(crate::damage::content(&ours, &aside), foreign);
    assert_ne!(crate::damage::content(&ours, &path), foreign);
}

/// Replicas come and go: neither the vote file nor a checkpoint holds more of those that are gone
/// than their names.
#[test]
fn what_is_gone_takes_no_slot_and_little_else() {
    const LIVE: u64 = 200;
    let disk = disk(5);
    let (mut driven, _) = Driven::open(&disk, &options());
    let file_bytes = |disk: &raft_log::vfs::SimVfs| {
        crate::damage::content(disk, &Path::new(DATA).join("votes")).len()
    };
    let before = file_bytes(&disk);
    for round in 0..20 {
        for at in 0..LIVE {
            let born = key(1 + round * LIVE + at);
            driven.lane.submit(vote(born, 1, 7)).expect("taken");
            if round > 0 {
                let gone = key(1 + (round - 1) * LIVE + at);
                let mut submission = Submission::new(gone.0, gone.1, 2);
                submission.tombstone = true;
                driven.lane.submit(submission).expect("taken");
            }
        }
        for done in driven.settle() {
            done.result.expect("it is durable");
        }
    }
    // 4,000 have voted, 200 at a time.
    assert_eq!(file_bytes(&disk), before);
    disk.crash();
    drop(driven);
    for _ in 0..2 {
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        for group in 1..=20 * LIVE {
            let is_live = group > 19 * LIVE;
            let Some(state) = recovery.replicas.get(&key(group)) else {
                assert!(!is_live, "{group} is lost");
                continue;
            };
            let want = if is_live {
                Health::Sound
            } else {
                Health::Tombstone
            };
            assert_eq!(state.health, want, "{group}");
            let term = if is_live { Term::new(7) } else { Term::ZERO };
            assert_eq!(state.hard_state.term, term, "{group}");
        }
        assert_eq!(file_bytes(&disk), before);
        disk.crash();
        drop(lane);
    }
    // A checkpoint holds the names, and the states of those who live.
    let newest = crate::damage::segments(&disk)
        .into_iter()
        .map(|path| crate::damage::content(&disk, &path))
        .rfind(|content| !crate::damage::records(content).is_empty());
    let records = crate::damage::records(&newest.expect("one is in use"));
    let (_, kind, table, _) = records[0];
    assert_eq!(kind, 2);
    let most = usize::try_from(24 * 20 * LIVE + 160 * LIVE).expect("small") + 1_000;
    assert!(table <= most, "{table} bytes");
}

/// Whoever never votes again does not, whatever is said of its term later.
#[test]
fn fault_20_a_fence_stays_when_a_term_is_recorded_behind_it() {
    let disk = voted();
    let (driven, _) = Driven::open(&disk, &options());
    drop(driven);
    // A bad slot, and a write that was on its way.
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut submission = vote(key(2), 2, 5);
    let mut rng = crate::workload::Rng(1);
    let (term, from) = (Term::new(5), raft_proto::Index::new(1));
    let batch = crate::workload::batch(&mut rng, key(2).0, term, from, 3, 2_000);
    submission.entries = vec![batch];
    driven.lane.submit(submission).expect("taken");
    driven.step();
    drop(driven);
    let units = disk.unsynced();
    disk.crash_keeping(|unit| unit + 1 < units);
    flip(&disk, HALF_A + 8);
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert_eq!(recovery.replicas[&key(1)].health, Health::VoteUnknown);
    driven.write(vote(key(1), 3, 30));
    driven.pass(300_000_000);
    disk.crash();
    drop(driven);
    let votes = crate::damage::content(&disk, &Path::new(DATA).join("votes"));
    for half in [HALF_A, HALF_B] {
        assert_eq!(votes[half + 4], 1, "the slot at {half} is fenced");
        assert_eq!(votes[half + 32], 30, "its term is written");
    }
}
