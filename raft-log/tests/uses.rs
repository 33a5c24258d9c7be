//! What the log is used for besides appending: verifying, looking into it, reading while it goes on.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]
#![expect(clippy::print_stdout, reason = "what was done is said")]

#[path = "uses/filled.rs"]
mod filled;
#[path = "uses/gate.rs"]
mod gate;
#[path = "uses/lives.rs"]
mod lives;
#[path = "uses/reads.rs"]
mod reads;
#[path = "uses/scrub.rs"]
mod scrub;
#[path = "uses/threads.rs"]
mod threads;
#[path = "uses/told.rs"]
mod told;
#[path = "log/workload.rs"]
#[expect(dead_code, reason = "shared with the other suites, which use the rest")]
mod workload;

use std::io::Write;

/// Adds a line to the file named by `RAFT_TEST_REPORT`.
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
