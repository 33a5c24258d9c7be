//! What the log is used for besides appending: verifying, looking into it, reading while it goes on.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "uses/filled.rs"]
mod filled;
#[path = "uses/gate.rs"]
mod gate;
#[path = "uses/lives.rs"]
mod lives;
#[path = "uses/reads.rs"]
mod reads;
#[path = "log/report.rs"]
mod report;
#[path = "uses/scrub.rs"]
mod scrub;
#[path = "uses/threads.rs"]
mod threads;
#[path = "uses/told.rs"]
mod told;
#[path = "log/workload.rs"]
#[expect(dead_code, reason = "shared with the other suites, which use the rest")]
mod workload;

use report::record;
