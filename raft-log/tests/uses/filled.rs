//! A log of a few sealed segments, and what it holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, LogError, LogReader, Submission};
use raft_proto::{HardState, Index, Term};

use crate::workload::{DATA, Driven, Key, Rng, batch, disk, key, options};

pub const GROUPS: u64 = 3;

/// No scrub but one that is asked for.
pub fn quiet() -> LaneOptions {
    LaneOptions {
        scrub_bytes_per_s: 0,
        ..options()
    }
}

/// Appends one batch to each group.
pub fn append_round(driven: &mut Driven, rng: &mut Rng, round: u64) {
    for group in 1..=GROUPS {
        let (group, replica) = key(group);
        let mut submission = Submission::new(group, replica, round);
        let from = Index::new(2 * round - 1);
        submission.entries = vec![batch(rng, group, Term::new(1), from, 2, 3_000)];
        submission.hard_state = Some(HardState {
            term: Term::new(1),
            vote: Some(replica),
            commit: Index::new(2 * round - 2),
        });
        driven.write(submission);
    }
}

/// A log closed after `rounds` of appends: 30 of them seal some four segments.
pub fn filled(seed: u64, rounds: u64) -> Arc<SimVfs> {
    let disk = disk(seed);
    let (mut driven, _) = Driven::open(&disk, &quiet());
    let mut rng = Rng(seed);
    for round in 1..=rounds {
        append_round(&mut driven, &mut rng, round);
    }
    driven.lane.close().expect("it closes");
    disk.set_now(raft_proto::Time(0));
    disk
}

pub fn segments(disk: &SimVfs) -> Vec<PathBuf> {
    let dir = Path::new(DATA).join("log/0");
    let entries = disk.list(&dir).expect("it lists");
    let names = entries.iter().map(|entry| dir.join(&entry.name));
    names
        .filter(|path| path.extension().is_some_and(|found| found == "seg"))
        .collect()
}

pub fn content(disk: &SimVfs, path: &Path) -> Vec<u8> {
    let file = disk.open(path, false).expect("it is there");
    let len = usize::try_from(disk.len(file).expect("a length")).expect("small");
    let bytes = disk.read(file, 0, len).expect("it reads");
    disk.close(file);
    bytes.to_vec()
}

/// All entries of a replica, their bytes one after the other.
pub fn read_all(reader: &LogReader, key: Key) -> Result<Vec<u8>, LogError> {
    let (first, last) = reader.range(key.0, key.1).expect("it has entries");
    let mut next = first;
    let mut bytes = Vec::new();
    while next <= last {
        for batch in reader.entries(key.0, key.1, next, last, usize::MAX)? {
            next = batch.last().index.next();
            bytes.extend_from_slice(batch.bytes());
        }
    }
    Ok(bytes)
}
