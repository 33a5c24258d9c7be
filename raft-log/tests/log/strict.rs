//! The strict mode: whatever sector or page is lost, nobody who cannot be read is called sound.

use std::path::Path;
use std::sync::Arc;

use raft_log::tools::StoppedLane;
use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{DamageReport, Health, LaneOptions, LogError, Recovery};
use raft_proto::Index;

use crate::damage::{content, segments};
use crate::record;
use crate::workload::{DATA, Driven, Key, Model, Workload, disk, open, options, seen};

fn strict() -> LaneOptions {
    LaneOptions {
        verify_all: true,
        ..options()
    }
}

/// A log of a few segments, closed or not, in which others have overwritten and compacted.
fn grown(seed: u64, is_closed: bool) -> (Arc<SimVfs>, Model) {
    let disk = disk(seed);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(seed, 4, 1_200);
    for round in 1..=280 {
        driven.write(workload.draw());
        if round % 70 == 0 {
            driven.pass(300_000_000);
        }
    }
    driven.pass(300_000_000);
    if is_closed {
        driven.lane.close().expect("it closes");
    } else {
        disk.crash();
        drop(driven);
    }
    disk.set_now(raft_proto::Time(0));
    (disk, workload.model)
}

/// What becomes of a piece of a file.
#[derive(Clone, Copy, Debug)]
enum How {
    Zeroed,
    Garbled,
    /// With the next one.
    Swapped,
    /// In place of the one behind it.
    Duplicated,
}

impl How {
    const ALL: [Self; 4] = [Self::Zeroed, Self::Garbled, Self::Swapped, Self::Duplicated];

    fn apply(self, content: &mut [u8], piece: usize, size: usize) {
        let pieces = content.len() / size;
        let range = |piece: usize| piece % pieces * size..piece % pieces * size + size;
        let (here, next) = (range(piece), range(piece + 1));
        let was = content[here.clone()].to_vec();
        match self {
            Self::Zeroed => content[here].fill(0),
            Self::Garbled => {
                let bytes = content[here]
                    .iter_mut()
                    .zip((13_u8..=255).step_by(7).cycle());
                bytes.for_each(|(byte, garbage)| *byte = garbage);
            }
            Self::Swapped => {
                content.copy_within(next.clone(), here.start);
                content[next].copy_from_slice(&was);
            }
            Self::Duplicated => content[next].copy_from_slice(&was),
        }
    }
}

/// Opens strictly; who is sound is what he was, and of who is not, every entry that cannot be read
/// is named. Returns who is not.
fn check(disk: &Arc<SimVfs>, model: &Model, what: &str) -> Option<Vec<Key>> {
    let (lane, recovery) = match open(disk, &strict()) {
        Ok(opened) => opened,
        Err(LogError::NeedsVersion { .. }) => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let reader = lane.reader();
    let mut stopped = Vec::new();
    for (key, model) in &model.replicas {
        let Some(state) = recovery.replicas.get(key) else {
            panic!("{what}: {key:?} is gone: {:?}", recovery.report);
        };
        if state.health == Health::Sound {
            match seen(&reader, *key, state) {
                Ok(seen) => assert!(
                    &seen == model,
                    "{what}: {key:?} is sound and wrong: {:?}",
                    recovery.report
                ),
                Err(error) => panic!("{what}: {key:?} is sound: {error}: {:?}", recovery.report),
            }
            continue;
        }
        stopped.push(*key);
        for index in model.entries.keys() {
            let read = reader.entries(key.0, key.1, *index, *index, usize::MAX);
            assert!(
                read.is_ok() || is_named(&recovery, *key, *index),
                "{what}: {key:?} {index} cannot be read and is not named: {:?}",
                recovery.report
            );
        }
    }
    Some(stopped)
}

fn is_named(recovery: &Recovery, key: Key, index: Index) -> bool {
    let damaged = &recovery.report.damaged;
    let mut named = damaged.iter().flat_map(|report| &report.replicas);
    named.any(|&(group, replica, first, last)| {
        let is_all = last == Index::ZERO;
        (group, replica) == key && (is_all || (first <= index && index <= last))
    })
}

/// What `scrub` says of a copy, without opening it.
fn scrubbed(disk: &SimVfs) -> (Vec<Key>, Vec<DamageReport>) {
    let vfs: Arc<dyn Vfs> = Arc::new(disk.fork());
    let checked = StoppedLane::new(vfs, Path::new(DATA), 0).scrub();
    let checked = checked.expect("it reads");
    let stopped = checked.stopped.iter();
    let stopped = stopped.map(|(group, replica, _)| (*group, *replica));
    (stopped.collect(), checked.report.damaged)
}

/// Each piece of each file, in each way. Returns how many there were, and how many stop somebody.
fn each_piece(size: usize, seed: u64) -> (u64, u64) {
    let (mut cases, mut stops) = (0, 0);
    for is_closed in [false, true] {
        let (disk, model) = grown(seed, is_closed);
        let votes = Path::new(DATA).join("votes");
        for path in segments(&disk).iter().chain([&votes]) {
            let whole = content(&disk, path);
            for piece in 0..whole.len() / size {
                for how in How::ALL {
                    let mut lost = whole.clone();
                    how.apply(&mut lost, piece, size);
                    if lost == whole {
                        continue;
                    }
                    let disk = Arc::new(disk.fork());
                    disk.damage(path, |content| content.clone_from(&lost));
                    let what = format!("closed {is_closed} {path:?} {size} x {piece} {how:?}");
                    let before = (cases % 8 == 0).then(|| scrubbed(&disk));
                    let stopped = check(&disk, &model, &what);
                    if let (Some(before), Some(stopped)) = (before, &stopped) {
                        assert_eq!(&before.0, stopped, "{what}: {:?}", before.1);
                    }
                    stops += u64::from(stopped.is_some_and(|stopped| !stopped.is_empty()));
                    cases += 1;
                }
            }
        }
    }
    (cases, stops)
}

#[test]
fn fault_6_the_strict_mode_misses_no_sector_that_is_lost() {
    let (cases, stops) = each_piece(512, 41);
    record("log sectors damaged, opened strictly", "cases", cases);
    assert!(cases > 2_000, "{cases}");
    assert!(stops > cases / 8, "{stops} of {cases} stop somebody");
}

#[test]
fn fault_6_the_strict_mode_misses_no_page_that_is_lost() {
    let (cases, stops) = each_piece(4096, 42);
    record("log pages damaged, opened strictly", "cases", cases);
    assert!(cases > 250, "{cases}");
    assert!(stops > cases / 8, "{stops} of {cases} stop somebody");
}
