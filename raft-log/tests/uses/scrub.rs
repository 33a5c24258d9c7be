//! Verifying in the background.

use std::sync::Arc;

use raft_log::vfs::{Fault, SimVfs};
use raft_log::{DamageReport, Health, LaneOptions, LogError, ScrubStatus};
use raft_proto::Index;

use crate::filled::{GROUPS, append_round, content, filled, quiet, read_all, segments};
use crate::record;
use crate::workload::{Driven, Key, Rng, key, open, options};

const SECOND: u64 = 1_000_000_000;
const ROUNDS: u64 = 30;

/// Opens and lets a pass asked for go to its end.
fn scrubbed(disk: &Arc<SimVfs>) -> (Driven, Vec<DamageReport>) {
    let (mut driven, _) = Driven::open(disk, &quiet());
    driven.lane.scrub();
    driven.pass(SECOND);
    assert_eq!(driven.lane.scrub_status().passes, 1, "it came to its end");
    let found = driven.lane.take_damage();
    (driven, found)
}

/// A byte of a payload of group 2, in the oldest segment.
fn payload_of_group_2(disk: &SimVfs) -> usize {
    let (lane, _) = open(&Arc::new(disk.fork()), &quiet()).expect("it opens");
    let batches = lane
        .reader()
        .entries(key(2).0, key(2).1, Index::new(3), Index::new(4), usize::MAX)
        .expect("it reads");
    let wanted = batches[0].bytes();
    let found = content(disk, &segments(disk)[0]);
    let at = found
        .windows(wanted.len())
        .position(|window| window == &wanted[..])
        .expect("the frames lie in the segment as they are");
    at + wanted.len() - 1
}

#[test]
fn fault_3_a_flipped_payload_bit_of_a_sealed_segment_is_found_after_open_and_others_go_on() {
    let disk = filled(1, ROUNDS);
    let path = segments(&disk).remove(0);
    disk.flip_bit(&path, payload_of_group_2(&disk), 5);
    let (mut driven, recovery) = Driven::open(&disk, &options());
    assert!(recovery.report.damaged.is_empty(), "opening reads no more");
    driven.pass(SECOND);
    let found = driven.lane.take_damage();
    let (group, replica) = key(2);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].segment, 1);
    assert_eq!(
        found[0].replicas,
        [(group, replica, Index::new(3), Index::new(4))]
    );
    assert!(driven.lane.take_damage().is_empty(), "told once");
    // Everybody else appends and reads.
    let mut rng = Rng(9);
    append_round(&mut driven, &mut rng, ROUNDS + 1);
    let reader = driven.lane.reader();
    for group in [1, 3] {
        read_all(&reader, key(group)).expect("it is whole");
    }
    assert!(matches!(
        read_all(&reader, key(2)),
        Err(LogError::Damaged { segment: 1, .. })
    ));
    // It is on record, whatever an open finds by itself.
    disk.crash();
    drop(driven);
    let (_, recovery) = open(&disk, &quiet()).expect("it opens");
    for group in 1..=GROUPS {
        let health = &recovery.replicas[&key(group)].health;
        match health {
            Health::Damaged(damage) if group == 2 => {
                assert_eq!(damage.segment, 1);
                assert_eq!((damage.first, damage.last), (Index::new(3), Index::new(4)));
            }
            Health::Sound if group != 2 => {}
            other => panic!("group {group}: {other}"),
        }
    }
}

#[test]
fn the_strict_mode_finds_at_open_what_a_scrub_finds_later() {
    let disk = filled(2, ROUNDS);
    let path = segments(&disk).remove(0);
    disk.flip_bit(&path, payload_of_group_2(&disk), 0);
    let (_, later) = scrubbed(&Arc::new(disk.fork()));
    let strict = LaneOptions {
        verify_all: true,
        ..options()
    };
    let (mut driven, recovery) = Driven::open(&disk, &strict);
    let at_open = &recovery.report.damaged;
    assert_eq!(at_open.len(), 1);
    assert_eq!(at_open[0].segment, later[0].segment);
    assert_eq!(at_open[0].replicas, later[0].replicas);
    assert!(matches!(
        recovery.replicas[&key(2)].health,
        Health::Damaged(_)
    ));
    // What was verified at open is not verified again.
    driven.pass(SECOND);
    assert_eq!(driven.lane.scrub_status(), ScrubStatus::default());
}

#[test]
fn a_whole_log_is_verified_at_the_rate_asked_for() {
    let rate = 256 << 10;
    let slow = LaneOptions {
        scrub_bytes_per_s: rate,
        ..options()
    };
    let run = || {
        let disk = filled(3, ROUNDS);
        let (mut driven, _) = Driven::open(&disk, &slow);
        let mut seen = Vec::new();
        for tenth in 1..=40 {
            driven.pass(SECOND / 10);
            let status = driven.lane.scrub_status();
            let most = rate * tenth / 10 + (128 << 10);
            assert!(status.verified_bytes <= most, "{status:?} by {tenth}");
            seen.push(status);
        }
        assert!(driven.lane.take_damage().is_empty());
        seen
    };
    let seen = run();
    let last = seen.last().expect("forty");
    assert!(!last.is_running && last.passes == 1 && last.damaged == 0);
    assert!(last.verified_bytes > 3 * (50 << 10), "{last:?}");
    assert!(seen[0].is_running && seen[0].waiting_bytes > 0);
    assert_eq!(seen, run(), "the same polls verify the same bytes");
}

#[test]
fn appends_go_first_and_a_scrub_still_ends() {
    let disk = filled(4, ROUNDS);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(4);
    let mut round = ROUNDS;
    while driven.lane.scrub_status().is_running {
        round += 1;
        assert!(round < 5_000, "it ends");
        append_round(&mut driven, &mut rng, round);
        assert_eq!(driven.lane.take_damage(), []);
    }
    assert_eq!(driven.lane.scrub_status().passes, 1);
}

#[test]
fn a_scrub_that_is_asked_for_verifies_the_active_segment_too() {
    let disk = filled(5, ROUNDS);
    let (mut driven, _) = Driven::open(&disk, &quiet());
    let mut rng = Rng(5);
    append_round(&mut driven, &mut rng, ROUNDS + 1);
    assert!(!driven.lane.scrub_status().is_running);
    let last = Index::new(2 * ROUNDS + 2);
    let reader = driven.lane.reader();
    let (group, replica) = key(3);
    let batches = reader.entries(group, replica, last, last, usize::MAX);
    let wanted = batches.expect("it reads")[0].bytes().clone();
    let (path, at) = segments(&disk)
        .into_iter()
        .find_map(|path| {
            let content = content(&disk, &path);
            let mut windows = content.windows(wanted.len());
            let at = windows.position(|window| window == &wanted[..])?;
            Some((path, at))
        })
        .expect("it is somewhere");
    disk.flip_bit(&path, at + 40, 1);
    driven.lane.scrub();
    driven.pass(SECOND);
    let found = driven.lane.take_damage();
    assert_eq!(found.len(), 1, "{found:?}");
    let named: Vec<Key> = found[0].replicas.iter().map(|hit| (hit.0, hit.1)).collect();
    assert_eq!(named, [key(3)]);
    let first_of_batch = last.previous().expect("not the first");
    assert_eq!(found[0].replicas[0].2, first_of_batch);
}

/// Whatever bit of a sealed segment flips, the scrub tells, and who is not named reads as before.
#[test]
fn every_kind_of_byte_of_a_sealed_segment_is_verified() {
    let disk = filled(6, ROUNDS);
    let path = segments(&disk).remove(0);
    let (lane, _) = open(&Arc::new(disk.fork()), &quiet()).expect("it opens");
    let whole: Vec<Vec<u8>> = (1..=GROUPS)
        .map(|group| read_all(&lane.reader(), key(group)).expect("it is whole"))
        .collect();
    drop(lane);
    let bytes = content(&disk, &path);
    let trailer_at = bytes.len() - 64;
    let used = bytes[..trailer_at].iter().rposition(|&byte| byte != 0);
    let used = used.expect("it is full").next_multiple_of(64);
    let dense = (0..1024).step_by(37).chain((1024..2048).step_by(11));
    let tail = (used - 1200..used)
        .step_by(7)
        .chain(trailer_at..bytes.len());
    let middle = (2048..used - 1200).step_by(487);
    let mut bits = 0;
    for at in dense.chain(middle).chain(tail) {
        let what = format!("byte {at}");
        let disk = Arc::new(disk.fork());
        disk.flip_bit(&path, at, u8::try_from(at % 8).expect("below 8"));
        let Ok((mut driven, recovery)) = opened(&disk) else {
            panic!("{what}: it does not open");
        };
        let mut found = recovery;
        driven.lane.scrub();
        driven.pass(SECOND);
        assert_eq!(driven.lane.scrub_status().passes, 1, "{what}");
        let scrubbed = driven.lane.take_damage();
        assert!(!scrubbed.is_empty(), "{what} is not found");
        found.extend(scrubbed);
        let named: Vec<Key> = found
            .iter()
            .flat_map(|report| &report.replicas)
            .map(|hit| (hit.0, hit.1))
            .collect();
        for (group, whole) in (1..=GROUPS).zip(&whole) {
            if !named.contains(&key(group)) {
                let read = read_all(&driven.lane.reader(), key(group));
                assert!(
                    read.is_ok_and(|read| read == *whole),
                    "{what}: group {group}"
                );
            }
        }
        bits += 1;
    }
    record("bits of a sealed segment, scrubbed", "bits", bits);
}

fn opened(disk: &Arc<SimVfs>) -> Result<(Driven, Vec<DamageReport>), LogError> {
    let (lane, recovery) = open(disk, &quiet())?;
    let driven = Driven {
        vfs: Arc::clone(disk),
        lane,
        now: raft_proto::Time(0),
    };
    Ok((driven, recovery.report.damaged))
}

/// EIO.
const OF_MEDIUM: Fault = Fault::Errno(5);

#[test]
fn a_read_that_fails_once_is_tried_again_and_one_that_keeps_failing_is_damage() {
    let disk = filled(7, ROUNDS);
    let (mut driven, _) = Driven::open(&disk, &quiet());
    disk.fault_next("read", OF_MEDIUM);
    driven.lane.scrub();
    driven.pass(10 * SECOND);
    let status = driven.lane.scrub_status();
    assert_eq!((status.passes, status.damaged), (1, 0), "{status:?}");
    for _ in 0..3 {
        disk.fault_next("read", OF_MEDIUM);
        if !driven.lane.scrub_status().is_running {
            driven.lane.scrub();
        }
        driven.pass(SECOND);
    }
    driven.pass(10 * SECOND);
    let found = driven.lane.take_damage();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].reason, "the segment cannot be read");
    // Its batches can be read: nobody is hurt.
    assert_eq!(found[0].replicas, []);
    for group in 1..=GROUPS {
        read_all(&driven.lane.reader(), key(group)).expect("it is whole");
    }
}

/// Memory or descriptors that are wanting for a while say nothing of what lies there.
#[test]
fn no_want_of_memory_or_descriptors_is_damage() {
    for errno in [12, 24, 23] {
        let disk = filled(7, ROUNDS);
        let (mut driven, _) = Driven::open(&disk, &quiet());
        // While it looks at damage, too: whom that hits is told when it can be.
        let at = payload_of_group_2(&disk);
        disk.damage(&segments(&disk)[0], |content| content[at] ^= 1);
        driven.lane.scrub();
        for _ in 0..20 {
            disk.fault_every("read", Some(Fault::Errno(errno)));
            driven.pass(20 * SECOND);
            disk.fault_every("read", None);
            driven.step();
        }
        driven.pass(60 * SECOND);
        let status = driven.lane.scrub_status();
        assert_eq!(status.passes, 1, "{status:?}");
        let found = driven.lane.take_damage();
        let hit = found.iter().flat_map(|report| &report.replicas);
        let hit: Vec<Key> = hit.map(|hit| (hit.0, hit.1)).collect();
        assert_eq!(hit, [key(2)], "errno {errno}");
        for group in 1..=GROUPS {
            let key = key(group);
            let health = driven.lane.reader().health(key.0, key.1);
            assert_eq!(health == Some(Health::Sound), group != 2, "errno {errno}");
        }
    }
}
