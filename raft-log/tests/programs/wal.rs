//! The example that knows nothing of Raft.

use std::process::ExitCode;
use std::sync::Arc;

use raft_log::vfs::StdVfs;
use raft_log::{LaneOptions, LogError, Wal};

use crate::{program, run, text};

/// Opens a log where the system starts no thread.
pub fn without_threads() -> ExitCode {
    let dir = std::env::args().nth(1).expect("a directory");
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 16 << 10,
        ..LaneOptions::default()
    };
    match Wal::open(Arc::new(StdVfs::new()), dir.as_ref(), options) {
        Err(LogError::Io(error)) => {
            println!("{error}");
            ExitCode::SUCCESS
        }
        other => panic!("{other:?}"),
    }
}

pub fn a_log_without_a_thread_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    // More stack than there are addresses: each thread is refused.
    let stack = (1_u64 << 50).to_string();
    let output = program("no thread", &[path])
        .env("RUST_MIN_STACK", stack)
        .output()
        .expect("it starts");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("start a thread"), "{said}");
    // Nothing is locked or lost by it.
    assert!(run("wal", &[path]).status.success());
}

pub fn the_example_of_streams_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    for (life, numbers) in [(1, "1..=2"), (2, "3..=4"), (3, "5..=6")] {
        let output = run("wal", &[path]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut want = String::new();
        for stream in 1..=3 {
            want += &format!("stream {stream} has got {numbers}\n");
            for number in (1..=life * 2).step_by(2) {
                want += &format!("{number}: ordered\n{}: paid\n", number + 1);
            }
        }
        assert_eq!(text(&output.stdout), want);
    }
    let source = include_str!("../../examples/wal.rs").to_lowercase();
    for word in [
        "raft_proto",
        "group",
        "replica",
        "term",
        "index",
        "vote",
        "leader",
    ] {
        assert!(!source.contains(word), "the example speaks of a {word}");
    }
    let code = source.lines().filter(|line| !line.starts_with("//"));
    assert!(code.count() <= 35, "some thirty lines");
}
