//! The tools, on the command line.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::StdVfs;
use raft_log::{LaneOptions, Wal};
use raft_proto::{Batch, GroupId, Index};
use serde_json::Value;

use crate::{run, text};

const STREAMS: u64 = 2;
const RECORDS: u64 = 60;

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        identity: Some(99),
        ..LaneOptions::default()
    }
}

fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (wal, _) = Wal::open(vfs, dir.path(), options()).expect("it opens");
    for number in 1..=RECORDS {
        for stream in 1..=STREAMS {
            wal.append(stream, &[payload(stream, number)])
                .expect("durable");
        }
    }
    wal.close().expect("it closes");
    dir
}

fn payload(stream: u64, number: u64) -> String {
    format!("{stream}.{number} ").repeat(200)
}

fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it lists") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("it reads");
                found.insert(path, bytes);
            }
        }
    }
    found
}

fn json(arguments: &[&str], code: i32) -> Vec<Value> {
    let output = run("tool", arguments);
    let said = text(&output.stdout);
    let error = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {said}{error}"
    );
    said.lines()
        .map(|line| serde_json::from_str(line).expect("an object"))
        .collect()
}

pub fn each_tool_tells_what_it_finds_and_changes_nothing() {
    let dir = filled();
    let path = dir.path().to_str().expect("a name");
    let before = content(dir.path());

    let stat = json(&["stat", path, "--json"], 0).remove(0);
    assert_eq!(stat["identity"], "0000000000000063");
    assert_eq!(stat["is_closed"], true);
    let segments = stat["segments"].as_array().expect("a list");
    let of = |purpose: &str| segments.iter().filter(|s| s["purpose"] == purpose).count();
    assert_eq!(of("active"), 1);
    assert!(of("sealed") >= 2, "{stat}");
    for (at, stream) in (1..=STREAMS).enumerate() {
        let replica = &stat["replicas"][at];
        assert_eq!(replica["group"], stream);
        assert_eq!(
            (&replica["first"], &replica["last"]),
            (&1.into(), &RECORDS.into())
        );
        assert_eq!(replica["health"], "sound");
    }
    let words = text(&run("tool", &["stat", path]).stdout);
    assert!(
        words.contains("group 2 replica 1: entries 1 to 60"),
        "{words}"
    );

    let asked = [
        "dump", path, "--group", "2", "--from", "7", "--to", "9", "--json",
    ];
    let dump = json(&asked, 0);
    let indexes: Vec<u64> = dump.iter().filter_map(|e| e["index"].as_u64()).collect();
    assert_eq!(indexes, [7, 8, 9]);
    let want: String = payload(2, 8).bytes().map(|b| format!("{b:02x}")).collect();
    assert_eq!(dump[1]["payload_hex"], want);
    let all = text(&run("tool", &["dump", path, "--group", "1"]).stdout);
    assert_eq!(u64::try_from(all.lines().count()), Ok(RECORDS));
    for (group, to) in [("3", "1"), ("1", "61")] {
        let output = run("tool", &["dump", path, "--group", group, "--to", to]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "what is not there is an error"
        );
    }

    for verb in ["check", "scrub"] {
        let checked = json(&[verb, path, "--json"], 0).remove(0);
        assert_eq!(checked["is_sound"], true, "{checked}");
        assert_eq!(checked["damaged"], Value::Array(Vec::new()));
        let words = text(&run("tool", &[verb, path]).stdout);
        assert!(words.ends_with("sound\n"), "{words}");
    }

    let out = tempfile::tempdir().expect("a directory");
    let file = out.path().join("frames");
    let file_name = file.to_str().expect("a name");
    let asked = ["export", path, "--group", "1", "--out", file_name, "--json"];
    let exported = json(&asked, 0).remove(0);
    assert_eq!(exported["entries"], RECORDS);
    let bytes = Bytes::from(fs::read(&file).expect("it is there"));
    let group = GroupId::new(1).expect("not 0");
    let batch = Batch::decode(group, bytes).expect("they are frames");
    assert_eq!(batch.first().index, Index::new(1));
    for (entry, number) in batch.iter().zip(1..) {
        assert_eq!(entry.payload(), payload(1, number).as_bytes());
    }
    assert_eq!(u64::try_from(batch.len()), Ok(RECORDS));
    let again = run("tool", &asked);
    assert_eq!(again.status.code(), Some(1), "no file is overwritten");

    assert!(content(dir.path()) == before, "they only read");

    // A payload of a sealed segment: only the scrub reads it.
    let segment = dir.path().join("log/0/0000000000000001.seg");
    let mut bytes = fs::read(&segment).expect("it reads");
    let needle = payload(2, 3);
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle.as_bytes());
    bytes[at.expect("it is there") + 5] ^= 1;
    fs::write(&segment, &bytes).expect("written");
    let before = content(dir.path());
    json(&["check", path, "--json"], 0);
    let found = json(&["scrub", path, "--json"], 2).remove(0);
    assert_eq!(found["is_sound"], false);
    let damaged = &found["damaged"][0];
    assert_eq!(damaged["segment"], 1);
    let hit = serde_json::json!([{ "group": 2, "replica": 1, "first": 3, "last": 3 }]);
    assert_eq!(damaged["replicas"], hit);
    let output = run("tool", &["scrub", path]);
    assert_eq!(output.status.code(), Some(2));
    let words = text(&output.stdout);
    assert!(
        words.contains("group 2 replica 1: entries 3 to 3"),
        "{words}"
    );
    let output = run("tool", &["dump", path, "--group", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("damage in segment 1"));
    assert!(content(dir.path()) == before, "they only read");
}

pub fn a_directory_in_use_is_left_alone() {
    let dir = filled();
    let path = dir.path().to_str().expect("a name");
    let lock = File::create(dir.path().join("LOCK")).expect("made");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let output = run("tool", &["stat", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("stop it first"));
    drop(lock);
    assert!(run("tool", &["stat", path]).status.success());
    // The log's own lock, for those who use it without a host.
    let vfs = Arc::new(StdVfs::new());
    let (wal, _) = Wal::open(vfs, dir.path(), options()).expect("it opens");
    let output = run("tool", &["stat", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("in use"));
    wal.close().expect("it closes");
    assert!(run("tool", &["stat", path]).status.success());
    let empty = tempfile::tempdir().expect("a directory");
    let path = empty.path().to_str().expect("a name");
    for verb in ["stat", "check", "scrub"] {
        let output = run("tool", &[verb, path, "--lane", "0"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("there is no log"), "{verb}");
    }
    assert_eq!(fs::read_dir(empty.path()).expect("it lists").count(), 0);
}

/// Each mistake is an error that says so, with exit code 1, and nothing is written or left behind.
pub fn what_cannot_be_done_is_said_and_nothing_is_touched() {
    let dir = filled();
    let path = dir.path().to_str().expect("a name");
    let before = content(dir.path());
    let log = dir.path().join("log");
    let log_name = log.to_str().expect("a name");
    let within = log.join("0/0000000000000009.seg");
    let within = within.to_str().expect("a name");
    let end = u64::MAX.to_string();
    let cases: [(&[&str], &str); 12] = [
        (&["stat", "/nowhere/at/all"], "no log"),
        (&["check", "/proc/self/exe"], "exe"),
        (&["stat", log_name], "no log"),
        (&["stat", path, "--lane", "7"], "no log of lane 7"),
        (&["dump", path, "--group", "0"], "no group"),
        (&["dump", path, "--group", "9"], "no such replica"),
        (&["dump", path, "--group", "1", "--replica", "9"], "no such"),
        (
            &["dump", path, "--group", "1", "--from", "0"],
            "not in the log",
        ),
        (
            &["dump", path, "--group", "1", "--from", "61"],
            "has 1 to 60",
        ),
        (
            &["dump", path, "--group", "1", "--from", "9", "--to", "7"],
            "from 9 to 7",
        ),
        (
            &["dump", path, "--group", "1", "--from", "60", "--to", &end],
            "from 61",
        ),
        (
            &["export", path, "--group", "1", "--out", within],
            "elsewhere",
        ),
    ];
    for (arguments, says) in cases {
        for json in [&[][..], &["--json"]] {
            let output = run("tool", &[arguments, json].concat());
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
            assert!(error.contains(says), "{arguments:?}: {error}");
            assert!(!error.contains("panicked"), "{arguments:?}: {error}");
        }
    }
    assert!(content(dir.path()) == before, "they only read");
}

/// As a process that was killed leaves it, with leftovers and a lane's name that is none.
pub fn a_log_that_was_killed_is_left_byte_for_byte_as_it_is() {
    let dir = filled();
    let copy = tempfile::tempdir().expect("a directory");
    let vfs = Arc::new(StdVfs::new());
    let (wal, _) = Wal::open(vfs, dir.path(), options()).expect("it opens");
    wal.append(1, &[payload(1, 61)]).expect("durable");
    for (from, bytes) in content(dir.path()) {
        let to = copy
            .path()
            .join(from.strip_prefix(dir.path()).expect("below it"));
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::write(to, bytes).expect("written");
    }
    wal.close().expect("it closes");
    let lane = copy.path().join("log/0");
    for name in [
        "00000000000000ff.seg.new",
        "0000000000000001-00000400-01.cut",
        "notes",
    ] {
        fs::write(lane.join(name), b"FRL1 whatever").expect("written");
    }
    fs::write(copy.path().join("votes.new"), b"half of one").expect("written");
    fs::create_dir(copy.path().join("log/+0")).expect("made");
    fs::create_dir(copy.path().join("log/00")).expect("made");
    // A write that was torn.
    let active = content(&lane).into_iter().rev().find(|(path, bytes)| {
        path.extension().is_some_and(|found| found == "seg") && bytes[1_024..].starts_with(b"FRL1")
    });
    let (active, mut bytes) = active.expect("one is in use");
    let end = bytes.len()
        - bytes
            .iter()
            .rev()
            .position(|byte| *byte != 0)
            .expect("used");
    let offset = end.next_multiple_of(64);
    bytes[offset + 3] = 1;
    let number = active.file_stem().and_then(|name| name.to_str());
    let number = u64::from_str_radix(number.expect("a name"), 16).expect("a number");
    fs::write(&active, bytes).expect("written");
    let path = copy.path().to_str().expect("a name");
    let out = tempfile::tempdir().expect("a directory");
    let file = out.path().join("frames");
    let file = file.to_str().expect("a name");
    let before = content(copy.path());
    let stat = json(&["stat", path, "--json"], 0);
    assert_eq!(stat.len(), 1, "one lane");
    assert_eq!(stat[0]["is_closed"], false);
    assert_eq!(stat[0]["replicas"][0]["last"], 61);
    for verb in ["check", "scrub"] {
        let checked = json(&[verb, path, "--json"], 0).remove(0);
        assert!(checked["torn_bytes"].as_u64() > Some(0), "{checked}");
        let torn = serde_json::json!([{ "segment": number, "offset": offset, "bytes": 4 }]);
        assert_eq!(checked["torn"], torn, "{checked}");
        assert_eq!(checked["ignored"], serde_json::json!(["notes"]));
    }
    json(&["dump", path, "--group", "1", "--json"], 0);
    json(
        &["export", path, "--group", "2", "--out", file, "--json"],
        0,
    );
    assert!(content(copy.path()) == before, "they only read");
    // Not one header is whole: there is a log all the same, and it is damaged.
    for (path, mut bytes) in content(&lane) {
        if path.extension().is_some_and(|found| found == "seg") {
            bytes[..1_024].fill(0x11);
            fs::write(path, bytes).expect("written");
        }
    }
    fs::remove_file(copy.path().join("votes")).expect("removed");
    let before = content(copy.path());
    for verb in ["check", "scrub"] {
        let checked = json(&[verb, path, "--json"], 2).remove(0);
        assert_ne!(checked["damaged"], serde_json::json!([]), "{checked}");
    }
    json(&["stat", path, "--json"], 0);
    assert!(content(copy.path()) == before, "they only read");
}

/// Whoever reads may stop: the tool ends at once, with the code it would have ended with.
pub fn output_that_nobody_reads_is_no_error() {
    let dir = filled();
    let path = dir.path().to_str().expect("a name");
    let closed = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = crate::program("tool", arguments);
        let output = command.stdout(writer).stderr(std::process::Stdio::piped());
        let output = output.spawn().expect("it starts").wait_with_output();
        let output = output.expect("it ends");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        output.status.code()
    };
    for verb in ["stat", "check", "scrub"] {
        assert_eq!(closed(&[verb, path]), Some(0));
        assert_eq!(closed(&[verb, path, "--json"]), Some(0));
    }
    assert_eq!(closed(&["dump", path, "--group", "1"]), Some(0));
    let lane = dir.path().join("log/0/0000000000000001.seg");
    let mut bytes = fs::read(&lane).expect("it reads");
    bytes[20] ^= 1;
    fs::write(&lane, bytes).expect("written");
    assert_eq!(
        closed(&["check", path]),
        Some(2),
        "it is damaged all the same"
    );
}
