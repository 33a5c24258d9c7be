//! Logs of all versions stay readable, and what is written today is the last one, byte for byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::Submission;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{BatchBuilder, EntryKind, HardState, Index, Term};

use crate::damage::{content, records};
use crate::workload::{DATA, Driven, Model, Workload, agrees, disk, key, open, options, seen_all};

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/v{version}"))
}

/// Where a golden file lies in a data directory.
fn path_of(name: &str) -> PathBuf {
    match name {
        "votes" => Path::new(DATA).join(name),
        _ => Path::new(DATA).join("log/0").join(name),
    }
}

/// What the log of version 1 holds: some records of every kind but footers.
fn small() -> Model {
    let mut workload = Workload::new(42, 3, 60);
    workload.has_tombstones = true;
    for _ in 0..25 {
        workload.draw();
    }
    workload.model
}

/// A log of records of every kind: sealed segments with footers and trailers, recycled ones, entries
/// that were moved.
fn turned_over() -> (Arc<SimVfs>, Model) {
    let options = raft_log::LaneOptions {
        collect_bytes_max: 8 << 10,
        ..options()
    };
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options);
    let mut model = Model::default();
    let mut workload = Workload::new(42, 3, 60);
    workload.has_tombstones = true;
    for _ in 0..25 {
        driven.write(workload.draw());
    }
    model.replicas.extend(workload.model.replicas);
    // One that keeps all of its small entries, and one that keeps next to none of its large ones.
    for number in 1..=70 {
        for (group, bytes) in [(8, 100), (9, 6_000)] {
            let (group, replica) = key(group);
            let mut batch = BatchBuilder::new(group, Term::new(3), Index::new(number), bytes);
            batch.push(EntryKind::Command, 0, None, &vec![7; bytes]);
            let mut submission = Submission::new(group, replica, number);
            submission.entries.extend(batch.finish());
            submission.hard_state = Some(HardState {
                term: Term::new(3),
                vote: Some(replica),
                commit: Index::new(number - 1),
            });
            if bytes > 1_000 {
                submission.compact_before = Some(Index::new(number));
            }
            model.apply(&submission);
            driven.write(submission);
        }
        if number % 10 == 0 {
            driven.pass(300_000_000);
        }
    }
    assert!(driven.lane.stats().moved_bytes > 0);
    driven.lane.close().expect("it closes");
    (disk, model)
}

/// The files of a log, without the zeroes at their ends.
fn files(disk: &SimVfs) -> Vec<(String, Vec<u8>)> {
    let entries = disk.list(&Path::new(DATA).join("log/0")).expect("it lists");
    let names = entries.into_iter().map(|entry| entry.name);
    let names = names.chain(["votes".to_owned()]);
    names
        .map(|name| {
            let mut bytes = content(disk, &path_of(&name));
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            (name, bytes)
        })
        .collect()
}

/// `UPDATE_GOLDEN=1` writes the files anew: only for a new version of the format, under a new name.
#[test]
fn version_3_is_what_is_written_today() {
    let (disk, _) = turned_over();
    let files = files(&disk);
    // Footers with their trailers, recycled segments, one apart, moved entries: all of it is in them.
    let segments = files.iter().filter(|(name, _)| name != "votes");
    let (mut footers, mut recycled, mut apart, mut moved) = (0, 0, 0, 0);
    for (_, bytes) in segments {
        recycled += usize::from(bytes[14] & 1);
        apart += usize::from(bytes[14] >> 1 & 1);
        let records = records(bytes);
        footers += records.iter().filter(|(_, kind, ..)| *kind == 4).count();
        let tables = records.iter().filter(|(_, kind, ..)| *kind == 1);
        moved += tables
            .filter(|(at, ..)| bytes[at + 64..at + 66] == [1, 1])
            .count();
    }
    assert!(footers > 0 && recycled > 0 && apart > 0 && moved > 0);
    for (name, today) in files {
        let path = golden(3).join(&name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(golden(3)).expect("a directory");
            std::fs::write(&path, &today).expect("written");
        }
        let then = std::fs::read(&path).expect("the golden file is there");
        assert!(then == today, "{name} differs from what is written today");
    }
}

#[test]
fn version_1_is_read() {
    is_read(1, &small());
}

#[test]
fn version_2_is_read() {
    is_read(2, &turned_over().1);
}

#[test]
fn version_3_is_read() {
    is_read(3, &turned_over().1);
}

/// What is written behind records of version 1 is read together with them.
#[test]
fn version_1_is_appended_to() {
    let disk = put_back(1);
    let mut model = small();
    for life in 0..2 {
        let (mut driven, recovery) = Driven::open(&disk, &options());
        assert!(recovery.report.damaged.is_empty(), "{:?}", recovery.report);
        let found = seen_all(&driven.lane, &recovery).expect("it reads");
        assert!(agrees(&found, &model), "{found:#?}");
        let mut workload = Workload::new(life, 3, 9_000);
        workload.resume(found);
        for _ in 0..30 {
            driven.write(workload.draw());
        }
        model = workload.model;
        disk.crash();
        drop(driven);
    }
}

fn put_back(version: u32) -> Arc<SimVfs> {
    let disk = disk(2);
    disk.create_dir_all(&Path::new(DATA).join("log/0"))
        .expect("made");
    for entry in std::fs::read_dir(golden(version)).expect("it is there") {
        let entry = entry.expect("a file");
        let bytes = std::fs::read(entry.path()).expect("it reads");
        let name = entry.file_name().into_string().expect("a name");
        let len = if name == "votes" {
            4096 + 2 * 64 * 1024
        } else {
            64 << 10
        };
        let file = disk.open(&path_of(&name), true).expect("made");
        disk.prepare(file, len).expect("there is room");
        disk.write(file, 0, &bytes).expect("written");
        disk.close(file);
    }
    disk
}

fn is_read(version: u32, model: &Model) {
    let disk = put_back(version);
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report, raft_log::RecoveryReport::default());
    let found = seen_all(&lane, &recovery).expect("it reads");
    assert!(agrees(&found, model), "{found:#?}");
}
