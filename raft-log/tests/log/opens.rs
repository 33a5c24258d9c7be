//! Opens: on a full disk, behind a torn first write, below a directory that was made just now.

use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Health, Lane, Submission};
use raft_proto::{HardState, Index, Term, Time};

use crate::damage::content;
use crate::tail::kept_aside;
use crate::workload::{DATA, Driven, Rng, batch, disk, key, open, options};

fn append(rng: &mut Rng, group: u64, index: u64, bytes: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, index);
    let first = Index::new(index);
    submission.entries = vec![batch(rng, key(group).0, Term::new(1), first, 1, bytes)];
    submission
}

fn vote(group: u64, term: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, 100 + term);
    submission.hard_state = Some(HardState {
        term: Term::new(term),
        vote: Some(key(group).1),
        ..HardState::default()
    });
    submission
}

#[test]
fn fault_16_a_full_disk_with_a_torn_tail_opens_and_says_that_it_was_not_kept() {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    driven.write(append(&mut rng, 1, 1, 3_000));
    let mut large = append(&mut rng, 1, 2, 3_000);
    let mut builder = raft_proto::BatchBuilder::new(key(1).0, Term::new(1), Index::new(2), 0);
    builder.push(raft_proto::EntryKind::Command, 0, None, &[7; 9_000]);
    large.entries = builder.finish().into_iter().collect();
    driven.lane.submit(large).expect("taken");
    driven.lane.poll(driven.now);
    drop(driven);
    let units = disk.unsynced();
    assert!(units > 4, "the record spans sectors");
    disk.crash_keeping(|unit| unit + 1 < units);
    let with_room = Arc::new(disk.fork());
    disk.set_capacity(Some(disk.used_bytes()));
    let (mut driven, recovery) = Driven::open(&disk, &options());
    let report = recovery.report;
    assert!(report.torn_bytes() > 0 && report.damaged.is_empty());
    assert!(report.torn[0].kept.is_none(), "{report:?}");
    assert_eq!(kept_aside(&disk), [[0_u8; 0]; 0]);
    assert_eq!(recovery.replicas[&key(1)].last.index, Index::new(1));
    driven.write(vote(1, 3));
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &options()).expect("it opens again");
    assert_eq!(recovery.report, raft_log::RecoveryReport::default());
    assert_eq!(recovery.replicas[&key(1)].hard_state.term, Term::new(3));
    let (_, recovery) = open(&with_room, &options()).expect("it opens");
    assert!(recovery.report.torn[0].kept.is_some());
    assert_eq!(kept_aside(&with_room).len(), 1);
}

#[test]
fn fault_16_a_full_disk_with_slots_of_those_who_are_gone_opens() {
    let disk = disk(2);
    let (mut driven, _) = Driven::open(&disk, &options());
    for group in 1..=4 {
        driven.write(vote(group, 2));
    }
    let mut gone = Submission::new(key(2).0, key(2).1, 200);
    gone.tombstone = true;
    driven.write(gone);
    disk.crash();
    drop(driven);
    disk.set_capacity(Some(disk.used_bytes()));
    for round in 3..6 {
        let (mut driven, recovery) = Driven::open(&disk, &options());
        assert!(recovery.report.damaged.is_empty());
        let health = |group| {
            recovery
                .replicas
                .get(&key(group))
                .map(|found| &found.health)
        };
        assert!(matches!(health(2), None | Some(Health::Tombstone)));
        let term = recovery.replicas[&key(3)].hard_state.term;
        assert_eq!(term, Term::new(round - 1));
        driven.write(vote(3, round));
        if round == 4 {
            disk.set_capacity(None);
        }
        disk.crash();
        drop(driven);
    }
    let votes = content(&disk, &Path::new(DATA).join("votes"));
    let slots = votes[4096..].chunks(64).take(8);
    let used = slots.filter(|slot| slot.iter().any(|&byte| byte != 0));
    assert_eq!(used.count(), 3, "with room it is made without them");
}

/// Votes that the log has and the vote file has not take no new places in it.
#[test]
fn fault_16_a_full_disk_opens_after_a_crash_in_an_election_storm() {
    // More than half of the places.
    const GROUPS: u64 = 700;
    let disk = disk(4);
    let (mut driven, _) = Driven::open(&disk, &options());
    for term in [2, 3] {
        if term == 3 {
            disk.record_crash_points();
        }
        for group in 1..=GROUPS {
            driven.lane.submit(vote(group, term)).expect("taken");
        }
        driven.settle();
    }
    let mut newer = std::collections::BTreeSet::new();
    for point in disk.take_crash_points() {
        let disk = Arc::new(point);
        disk.crash();
        disk.set_capacity(Some(disk.used_bytes()));
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let terms = recovery.replicas.values();
        let terms = terms.map(|found| found.hard_state.term.get());
        assert!(terms.clone().all(|term| term == 2 || term == 3));
        newer.insert(terms.filter(|term| *term == 3).count());
    }
    assert!(newer.contains(&700), "{newer:?}");
}

/// The first write of a segment, of which not all reached the disk, is kept aside like any other.
#[test]
fn fault_1_a_torn_first_write_of_a_segment_is_kept_aside() {
    let disk = disk(3);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(3);
    // So many that a checkpoint takes more than a sector.
    for group in 1..=12 {
        driven.write(append(&mut rng, group, 1, 300));
    }
    disk.record_crash_points();
    for index in 2..=60 {
        driven.write(append(&mut rng, 1, index, 6_000));
    }
    let mut firsts = 0;
    for point in disk.take_crash_points() {
        let units = point.unsynced();
        if units < 4 {
            continue;
        }
        // The beginning is lost, and what lies behind it is whole.
        point.crash_keeping(|unit| unit > 0);
        let disk = Arc::new(point);
        let before = disk.fork();
        let (lane, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        drop(lane);
        let torn = &recovery.report.torn;
        assert_eq!(kept_aside(&disk).len(), torn.len(), "{torn:?}");
        for torn in torn {
            // It says where it was, and under which name it is kept.
            let dir = Path::new(DATA).join("log/0");
            let name = torn.kept.as_ref().expect("there is room");
            let kept = content(&disk, &dir.join(name));
            let segment = content(&before, &dir.join(format!("{:016x}.seg", torn.segment)));
            let at = usize::try_from(torn.offset).expect("small");
            assert_eq!(kept.len() as u64, torn.bytes);
            assert!(segment[at..].starts_with(&kept), "{torn:?}");
        }
        let entries = disk.list(&Path::new(DATA).join("log/0")).expect("it lists");
        let is_first = |name: &str| name.ends_with(".cut") && name[17..].starts_with("00000400");
        firsts += entries.iter().filter(|entry| is_first(&entry.name)).count();
        disk.crash();
        let (_, recovery) = open(&disk, &options()).expect("it opens");
        assert_eq!(recovery.report, raft_log::RecoveryReport::default());
    }
    assert!(firsts > 1, "{firsts} first writes were torn");
}

/// Nobody but the log has made the directory, nor the one above it: a crash takes neither.
#[test]
fn the_names_of_directories_that_an_open_makes_are_durable() {
    let disk = Arc::new(SimVfs::new(9));
    let options = options();
    let open = || {
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        Lane::open(vfs, Path::new("/new/host/data"), options.clone()).expect("it opens")
    };
    let (lane, _) = open();
    let mut driven = Driven {
        vfs: Arc::clone(&disk),
        lane,
        now: Time(0),
    };
    driven.write(append(&mut Rng(9), 1, 1, 100));
    disk.crash();
    drop(driven);
    let (_, recovery) = open();
    assert_eq!(recovery.replicas[&key(1)].last.index, Index::new(1));
}
