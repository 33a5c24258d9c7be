//! `cargo xtask ci`: exactly what CI runs.

mod no_std;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{Table, presets};

use crate::programs::{self, BuildProfile};
use crate::{conformance, demo, test, tidy, trace, workspace};

#[derive(clap::Args)]
pub(crate) struct Ci {
    /// Runs only the steps of these names.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// What a step came to, beside having passed or failed itself.
#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
}

/// A script in which a leader is elected and replicates.
const TRACED_SCRIPT: &str = "raft-proto/tests/data/interaction/lost_append_is_sent_again.txt";

/// Groups of the cluster that the Redis programs meet.
const REDIS_GROUPS: u64 = 16;

type Step = (&'static str, fn(&mut Counts) -> Result<()>);

/// The steps, cheapest verdicts first.
const STEPS: &[Step] = &[
    ("fmt", |_| cargo(&["fmt", "--all", "--check"])),
    ("tidy", |_| tidy::run()),
    ("clippy", |_| clippy(&[])),
    ("clippy-features", |_| clippy(&["--all-features"])),
    ("docs", |_| docs()),
    ("no-std", |_| no_std::run()),
    ("test", tests),
    ("loom", |_| loom()),
    ("conformance", |_| conformance()),
    ("trace", |_| trace()),
    ("demo", |_| demo::Demo::for_ci().run()),
    ("redis", |_| redis()),
];

impl Ci {
    pub(crate) fn run(self) -> Result<()> {
        for name in &self.only {
            ensure!(
                STEPS.iter().any(|(step, _)| step == name),
                "there is no step {name:?}"
            );
        }
        let mut counts = Counts::default();
        let mut rows = Vec::new();
        for (name, step) in STEPS {
            if !self.only.is_empty() && !self.only.iter().any(|only| only == name) {
                continue;
            }
            eprintln!("== {name}");
            let begin = Instant::now();
            let outcome = step(&mut counts);
            match &outcome {
                Ok(()) => counts.passed += 1,
                Err(error) => {
                    counts.failed += 1;
                    eprintln!("== {name} failed: {error:#}");
                }
            }
            rows.push((*name, outcome.is_ok(), begin.elapsed()));
        }
        println!("\n{}", summary(&rows));
        println!("{} passed, {} failed", counts.passed, counts.failed);
        if counts.failed > 0 {
            std::process::exit(1);
        }
        Ok(())
    }
}

fn summary(rows: &[(&str, bool, Duration)]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, passed, duration) in rows {
        let verdict = if *passed { "passed" } else { "FAILED" };
        table.add_row([*name, verdict, &format!("{:.1} s", duration.as_secs_f64())]);
    }
    table
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = workspace::cargo().args(arguments).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

fn clippy(more: &[&str]) -> Result<()> {
    let mut arguments = vec![
        "clippy",
        "--workspace",
        "--all-targets",
        "--profile",
        "ci",
        "--locked",
    ];
    arguments.extend(more);
    arguments.extend(["--", "-D", "warnings"]);
    cargo(&arguments)
}

fn docs() -> Result<()> {
    let status = workspace::cargo()
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .args(["--profile", "ci", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .status()?;
    ensure!(status.success(), "the docs have warnings");
    Ok(())
}

fn tests(counts: &mut Counts) -> Result<()> {
    let outcome = test::run(&[])?;
    counts.passed += outcome.passed;
    counts.failed += outcome.failed;
    ensure!(outcome.ok, "the tests did not pass");
    Ok(())
}

fn conformance() -> Result<()> {
    match conformance::run(None, "ci")? {
        0 => Ok(()),
        failed => bail!("{failed} families failed"),
    }
}

/// Every interleaving of what raft-log's threads share. A build of its own: the flag exchanges the
/// locks and counters of everything below.
fn loom() -> Result<()> {
    let mut passed = 0;
    let mut command = workspace::cargo();
    command
        .args([
            "test",
            "--package",
            "raft-log",
            "--profile",
            "ci",
            "--locked",
        ])
        .args(["--lib", "interleavings"])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", workspace::target_dir().join("loom"));
    let ended_well = workspace::run_lines(&mut command, |line| {
        println!("{line}");
        passed += test::result_line(line).map_or(0, |(passed, _)| passed);
    })?;
    ensure!(ended_well, "an interleaving breaks a promise");
    ensure!(passed > 0, "there was no interleaving to go through");
    Ok(())
}

/// A trace of one script: it is written, and holds what the specification is to check.
fn trace() -> Result<()> {
    let script = workspace::root().join(TRACED_SCRIPT);
    let out = workspace::target_dir().join("trace.ndjson");
    trace::write(&script, &out, BuildProfile::Ci)?;
    let text = std::fs::read_to_string(&out)?;
    let mut leads = 0;
    for line in text.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("not an event: {line}"))?;
        let name = event.pointer("/event/name").and_then(|name| name.as_str());
        leads += u64::from(name == Some("BecomeLeader"));
    }
    println!("trace: {} events of {TRACED_SCRIPT}", text.lines().count());
    ensure!(leads > 0, "nobody leads in the trace of {TRACED_SCRIPT}");
    Ok(())
}

/// Stock Redis programs against a running cluster.
fn redis() -> Result<()> {
    let kv = programs::example("raft-host", "kv", BuildProfile::Ci)?;
    let cluster = demo::Cluster::start(kv, REDIS_GROUPS, 0)?;
    let port = cluster.any_redis_port()?.to_string();
    let cli = ["redis-cli", "-c", "-p", &port];
    for (arguments, wanted) in [
        (&["ping"][..], "PONG"),
        (&["set", "boat", "raft"], "OK"),
        (&["get", "boat"], "raft"),
        (&["incr", "count"], "1"),
        (&["del", "boat"], "1"),
        (&["get", "boat"], ""),
        (&["cluster", "keyslot", "123456789"], "12739"),
    ] {
        let answer = output(&[&cli[..], arguments].concat())?;
        ensure!(
            answer.trim() == wanted,
            "{arguments:?} was answered {answer:?}, not {wanted:?}"
        );
    }
    let requests = "100000";
    let report = output(&[
        "redis-benchmark",
        "-p",
        &port,
        "-t",
        "set,get",
        "-c",
        "50",
        "-n",
        requests,
        "--cluster",
        "-q",
    ])?;
    for test in ["SET: ", "GET: "] {
        let done = report
            .split(['\r', '\n'])
            .rfind(|line| line.starts_with(test) && line.contains("requests per second"));
        println!(
            "{}",
            done.with_context(|| format!("redis-benchmark did not end {test}: {report}"))?
        );
    }
    cluster.finish()
}

/// Runs a program to its end and returns what it printed.
fn output(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", words[0]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {text}{error}",
        words.join(" ")
    );
    Ok(text)
}
