//! The deterministic cluster: the production engine, core, log and snapshots over a simulated disk
//! and network, everything drawn from one seed. The proof of durability.
//!
//! `SEED=n cargo test -p raft-engine --test cluster one_seed -- --nocapture` replays one run.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]
#![expect(clippy::print_stdout, reason = "what a run found is printed")]

#[path = "cluster/ids.rs"]
mod ids;
#[path = "cluster/machine.rs"]
mod machine;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/oracle.rs"]
mod oracle;
#[path = "cluster/promises.rs"]
mod promises;
#[path = "cluster/rng.rs"]
mod rng;
#[path = "cluster/run.rs"]
mod run;

use std::io::Write;

use run::{Options, Report, Run};

const SEEDS: u64 = 200;

#[test]
fn two_hundred_seeds_lose_nothing() {
    let mut total = Report::default();
    let mut failed = Vec::new();
    for seed in 0..SEEDS {
        let report = Run::new(seed, Options::default()).go();
        if !report.violations.is_empty() {
            failed.push((seed, report.violations.clone()));
        }
        total.acknowledged += report.acknowledged;
        total.applied += report.applied;
        total.crashes += report.crashes;
        total.snapshots += report.snapshots;
        total.streamed += report.streamed;
        total.reads += report.reads;
        total.changes += report.changes;
        total.votes += report.votes;
        total.sealed += report.sealed;
        total.moved_bytes += report.moved_bytes;
        total.quiet += report.quiet;
        total.lost_snapshots += report.lost_snapshots;
        total.memory_bytes = total.memory_bytes.max(report.memory_bytes);
    }
    record(&serde_json::json!({
        "suite": "deterministic cluster", "seeds": SEEDS, "acknowledged": total.acknowledged,
        "applied": total.applied, "crashes": total.crashes, "snapshots": total.snapshots,
        "streamed": total.streamed, "reads": total.reads, "membership_changes": total.changes,
        "votes": total.votes, "sealed_segments": total.sealed, "moved_bytes": total.moved_bytes,
        "found_quiet": total.quiet, "lost_snapshots": total.lost_snapshots, "memory_bytes_most": total.memory_bytes,
    }));
    println!("{total:?}");
    assert!(
        failed.is_empty(),
        "{} seeds failed, the first: {:#?}",
        failed.len(),
        failed[0]
    );
    // A run in which nothing happened proves nothing.
    for count in [
        total.acknowledged,
        total.crashes,
        total.snapshots,
        total.streamed,
        total.reads,
        total.applied,
        total.changes,
        total.votes,
        total.sealed,
        total.moved_bytes,
        total.quiet,
        // Of one host in four, and not each time.
        total.lost_snapshots * 4,
    ] {
        assert!(count > SEEDS, "too little happened: {total:?}");
    }
}

#[test]
fn one_seed_gives_one_trace_and_two_seeds_give_two() {
    let mut traces = std::collections::BTreeSet::new();
    for seed in 1_000..1_005 {
        let first = Run::new(seed, Options::default()).go();
        let second = Run::new(seed, Options::default()).go();
        assert_eq!(first, second, "seed {seed} gave two runs");
        assert!(first.applied > 0);
        traces.insert(first.trace);
    }
    assert_eq!(traces.len(), 5, "two seeds gave the same trace");
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    let options = Options {
        test_ack_before_sync: true,
        ..Options::default()
    };
    let caught = (0..SEEDS).find(|&seed| {
        let run = Run::new(seed, options.clone());
        // The core's own asserts may find it first; what counts is that a loss is seen as one.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.go()));
        outcome.is_ok_and(|report| {
            report
                .violations
                .iter()
                .any(|text| text.contains("is lost"))
        })
    });
    assert!(
        caught.is_some(),
        "{SEEDS} seeds with the defect switched on found nothing"
    );
    println!("caught by seed {}", caught.unwrap_or_default());
}

#[test]
fn one_seed() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    let report = Run::new(seed, Options::default()).go();
    let shown: Vec<&String> = report.violations.iter().take(12).collect();
    println!("{shown:#?}");
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {} violations",
        report.violations.len()
    );
    println!("{report:?}");
}

/// Adds a line to the file named by `RAFT_TEST_REPORT`.
fn record(line: &serde_json::Value) {
    if let Some(path) = std::env::var_os("RAFT_TEST_REPORT") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}
