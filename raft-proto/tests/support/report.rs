//! What a suite did, for `cargo xtask test` to add up.

use std::io::Write;

/// Adds a line to the file named by `RAFT_TEST_REPORT`.
pub(crate) fn record(line: &serde_json::Value) {
    if let Some(path) = std::env::var_os("RAFT_TEST_REPORT") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}
