//! `cargo xtask bench proto`: the core against TiKV's `raft` crate, each in a program of its own.
//!
//! Three replicas in one thread, in memory. The two programs run alternately, so that a change of
//! the machine's speed meets both; the medians are printed. What each side does, and where the two
//! differ, is said at the head of raft-proto's `examples/bench_proto.rs`.
//!
//! With the defaults the runs take two and a half minutes, besides building. Before them, 10,000
//! groups fall quiet, and those that still ask to be called are counted: there must be none.

use anyhow::Result;
use serde::Serialize;

use super::programs::{build_peers, median, number, words};
use crate::programs::{BuildProfile, example};
use crate::report::Step;

const FORMS: [&str; 2] = ["reference", "bytes"];
const PAYLOADS: [u64; 2] = [16, 1_024];
const BATCHES: [u64; 3] = [1, 16, 256];
const QUIET_GROUPS: u64 = 10_000;

#[derive(clap::Args)]
pub(crate) struct ProtoBench {
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Runs of each program, alternately.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=99))]
    runs: u64,
    /// Prints the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// One way of running the core.
#[derive(Debug, Serialize)]
struct Point {
    form: &'static str,
    payload_bytes: u64,
    batch: u64,
    ours_proposals_per_s: f64,
    raft_rs_proposals_per_s: f64,
    ours_allocs_per_entry: f64,
}

impl ProtoBench {
    pub(crate) fn run(self) -> Result<()> {
        let step = Step::begin("build", 2);
        let ours = example("raft-proto", "bench_proto", BuildProfile::Release)?;
        step.add(1);
        let theirs = build_peers()?.join("raft_rs");
        step.end("bench_proto of raft-proto, raft_rs of the peers");

        let printed = words(&ours, &["quiet".to_owned(), QUIET_GROUPS.to_string()])?;
        let (quiet_replicas, quiet_calls) = (number(&printed, 0)?, number(&printed, 3)?);

        let total = FORMS.len() * PAYLOADS.len() * BATCHES.len();
        let step = Step::begin("measure", u64::try_from(total)?);
        let mut points = Vec::new();
        for form in FORMS {
            for payload_bytes in PAYLOADS {
                for batch in BATCHES {
                    let arguments = [
                        form.to_owned(),
                        payload_bytes.to_string(),
                        batch.to_string(),
                        self.seconds.to_string(),
                    ];
                    let (mut our_rates, mut their_rates, mut allocs) =
                        (Vec::new(), Vec::new(), Vec::new());
                    for _ in 0..self.runs {
                        let printed = words(&ours, &arguments)?;
                        our_rates.push(number(&printed, 0)?);
                        allocs.push(number(&printed, 1)?);
                        their_rates.push(number(&words(&theirs, &arguments)?, 0)?);
                    }
                    points.push(Point {
                        form,
                        payload_bytes,
                        batch,
                        ours_proposals_per_s: median(our_rates),
                        raft_rs_proposals_per_s: median(their_rates),
                        ours_allocs_per_entry: median(allocs),
                    });
                    step.add(1);
                }
            }
        }
        step.end(&format!("{total} points, {} runs each", self.runs));
        if self.json {
            let quiet = serde_json::json!({
                "groups": QUIET_GROUPS, "replicas": quiet_replicas, "calls": quiet_calls,
            });
            let outcome = serde_json::json!({ "points": points, "quiet": quiet });
            println!("{outcome}");
        } else {
            println!("{}", table(&points));
            println!("{quiet_replicas} quiet replicas, {quiet_calls} calls");
        }
        Ok(())
    }
}

fn table(points: &[Point]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "form", "bytes", "batch", "ours/s", "raft/s", "ratio", "allocs",
    ]);
    for point in points {
        let ratio = point.ours_proposals_per_s / point.raft_rs_proposals_per_s;
        table.add_row([
            point.form.to_owned(),
            point.payload_bytes.to_string(),
            point.batch.to_string(),
            format!("{:.0}", point.ours_proposals_per_s),
            format!("{:.0}", point.raft_rs_proposals_per_s),
            format!("{ratio:.2}"),
            format!("{:.3}", point.ours_allocs_per_entry),
        ]);
    }
    table
}
