//! A file truncated under a live map.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::Arc;

use raft_log::vfs::{ReadMode, StdVfs};
use raft_log::{Lane, LaneOptions, Submission, install_sigbus_handler};
use raft_proto::{BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time};

use crate::{program, run, text};

const SIGBUS: i32 = 7;

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 256 << 10,
        record_bytes_max: 64 << 10,
        tail_cache_bytes_max: 0,
        ..LaneOptions::default()
    }
}

fn key() -> (GroupId, ReplicaId) {
    let (group, replica) = (GroupId::new(1), ReplicaId::new(1));
    (group.expect("not 0"), replica.expect("not 0"))
}

/// Fills a segment and a half, holds entries of the first, and has the file truncated under them.
/// Arguments: directory, `map` or `pread`, `handler`, `bare` or `elsewhere`.
pub fn child() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, mode, handler] = &arguments[..] else {
        panic!("{arguments:?}");
    };
    let mode = match mode.as_str() {
        "map" => ReadMode::Map,
        _ => ReadMode::Pread,
    };
    if handler != "bare" {
        install_sigbus_handler().expect("it installs");
        install_sigbus_handler().expect("twice is once");
    }
    let vfs = Arc::new(StdVfs::with_read_mode(mode));
    let (mut lane, _) = Lane::open(vfs, Path::new(dir), options()).expect("it opens");
    for n in 1..=12 {
        let mut builder = BatchBuilder::new(key().0, Term::new(1), Index::new(n), 0);
        builder.push(EntryKind::Command, 0, None, &vec![9; 30_000]);
        let mut submission = Submission::new(key().0, key().1, n);
        submission.entries.extend(builder.finish());
        lane.submit(submission).expect("taken");
        let mut done = Vec::new();
        while done.is_empty() {
            lane.poll(Time(n));
            done = lane.take_completions();
        }
        done.remove(0).result.expect("durable");
    }
    let third = Index::new(3);
    let batches = lane
        .reader()
        .entries(key().0, key().1, third, third, usize::MAX)
        .expect("it reads");
    if handler == "elsewhere" {
        println!("ready");
        while std::io::stdin().lock().read(&mut [0]).is_err() {}
        return ExitCode::FAILURE;
    }
    let path = Path::new(dir).join("log/0/0000000000000001.seg");
    let file = OpenOptions::new().write(true).open(path).expect("open");
    file.set_len(4096).expect("cut");
    let bytes = batches[0].bytes();
    let nines = bytes.iter().filter(|&&byte| byte == 9).count();
    println!("{nines} bytes are whole");
    ExitCode::SUCCESS
}

fn outcome(mode: &str, handler: &str) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    (run("sigbus", &[path, mode, handler]), dir)
}

pub fn fault_19_a_file_truncated_under_a_live_map_ends_the_process_with_71() {
    let (output, dir) = outcome("map", "handler");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(71), "{said}");
    let rest = said
        .strip_prefix("raft-log: SIGBUS: segment 1 of lane 0 cannot be read at byte ")
        .unwrap_or_else(|| panic!("{said}"));
    let digits = rest.split(':').next().expect("a number");
    let byte: u64 = digits.parse().expect("a number");
    assert!((60_000..100_000).contains(&byte), "{said}");
    // The next life finds damage: the entries were acknowledged.
    let vfs = Arc::new(StdVfs::new());
    let (_, recovery) = Lane::open(vfs, dir.path(), options()).expect("it opens");
    assert!(!recovery.report.damaged.is_empty());
    let health = &recovery.replicas[&key()].health;
    assert!(matches!(health, raft_log::Health::Damaged(_)), "{health}");
}

pub fn fault_19_pread_mode_needs_no_handler() {
    let (output, _dir) = outcome("pread", "bare");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("30000 bytes are whole"));
}

pub fn fault_19_without_the_handler_it_is_a_signal_like_any_other() {
    let (output, _dir) = outcome("map", "bare");
    assert_eq!(output.status.signal(), Some(SIGBUS));
}

pub fn fault_19_a_sigbus_from_elsewhere_goes_to_whoever_handled_it_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    let mut child = program("sigbus", &[path, "map", "elsewhere"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let _open = child.stdin.take().expect("it was asked for");
    let stdout = child.stdout.take().expect("it was asked for");
    let mut lines = BufReader::new(stdout).lines();
    let said = lines.next().expect("it says something");
    assert_eq!(said.expect("it reads"), "ready");
    // The standard library's own handler lets the first one pass, and is gone then.
    let mut sent = 0;
    while child.try_wait().expect("it is ours").is_none() {
        let kill = ["-BUS", &child.id().to_string()];
        Command::new("kill")
            .args(kill)
            .status()
            .expect("it is there");
        sent += 1;
        assert!(sent < 1_000, "the handler keeps what is not its own");
    }
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.signal(), Some(SIGBUS));
    assert_eq!(text(&output.stderr), "");
}
