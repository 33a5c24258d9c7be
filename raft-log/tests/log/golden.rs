//! Logs of all versions stay readable, and what is written today is the last one, byte for byte.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};

use crate::workload::{DATA, Driven, Workload, disk, open, options, seen_all};

fn golden(version: u32, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/data/v{version}"))
        .join(name)
}

/// The files, without the zeroes at their ends.
const FILES: [(&str, &str); 2] = [
    ("votes", "votes"),
    ("log/0/0000000000000001.seg", "0000000000000001.seg"),
];

fn written() -> (Arc<SimVfs>, Workload) {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(42, 3, 60);
    workload.has_tombstones = true;
    for _ in 0..25 {
        driven.write(workload.draw());
    }
    driven.lane.close().expect("it closes");
    (disk, workload)
}

fn content(disk: &SimVfs, path: &Path) -> Vec<u8> {
    let file = disk.open(path, false).expect("it is there");
    let len = usize::try_from(disk.len(file).expect("a length")).expect("small");
    let mut bytes = disk.read(file, 0, len).expect("it reads").to_vec();
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

/// `UPDATE_GOLDEN=1` writes the files anew: only for a new version of the format, under a new name.
#[test]
fn version_2_is_what_is_written_today() {
    let (disk, _) = written();
    for (path, name) in FILES {
        let today = content(&disk, &Path::new(DATA).join(path));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(golden(2, "")).expect("a directory");
            std::fs::write(golden(2, name), &today).expect("written");
        }
        let then = std::fs::read(golden(2, name)).expect("the golden file is there");
        assert!(then == today, "{name} differs from what is written today");
    }
}

#[test]
fn version_1_and_2_are_read() {
    for version in 1..=2 {
        is_read(version);
    }
}

fn is_read(version: u32) {
    let disk = disk(2);
    disk.create_dir_all(&Path::new(DATA).join("log/0"))
        .expect("made");
    for ((path, name), len) in FILES.into_iter().zip([4096 + 2 * 64 * 1024, 64 << 10]) {
        let bytes = std::fs::read(golden(version, name)).expect("the golden file is there");
        let file = disk.open(&Path::new(DATA).join(path), true).expect("made");
        disk.prepare(file, len).expect("there is room");
        disk.write(file, 0, &bytes).expect("written");
        disk.close(file);
    }
    let (lane, recovery) = open(&disk, &options()).expect("it opens");
    assert_eq!(recovery.report, raft_log::RecoveryReport::default());
    let found = seen_all(&lane, &recovery).expect("it reads");
    assert_eq!(found, written().1.model);
}
