//! What a suite did, for whoever runs it.

use std::io::Write;

/// Says it, and adds a line to the file named by `RAFT_TEST_REPORT`.
#[expect(clippy::print_stdout, reason = "what was done is said")]
pub fn record(suite: &str, kind: &str, count: u64) {
    println!("{suite}: {count} {kind}");
    if let Some(path) = std::env::var_os("RAFT_TEST_REPORT") {
        let line = serde_json::json!({ "suite": suite, kind: count });
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}
