//! `cargo xtask test`: every test of the workspace, and what the suites did.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Every kind of work that suites report. A sum of zero means that a suite silently did nothing.
///
/// This is the one place that lists them; a suite that brings a new kind adds it here.
const KINDS: &[&str] = &[
    "scripts",
    "seeds",
    "crash_states",
    "bits",
    "cases",
    "operations",
    "crashes",
];

/// What a run of all tests promises to have done.
struct Promise {
    kind: &'static str,
    /// The names of the suites that count begin so.
    suites: &'static str,
    least: u64,
}

const PROMISES: &[Promise] = &[
    Promise {
        kind: "seeds",
        suites: "proto schedules",
        least: 20_000,
    },
    Promise {
        kind: "cases",
        suites: "proto commit index",
        least: 50_000,
    },
    Promise {
        kind: "cases",
        suites: "proto vote result",
        least: 50_000,
    },
    Promise {
        kind: "crash_states",
        suites: "log ",
        least: 100_000,
    },
    Promise {
        kind: "bits",
        suites: "log ",
        least: 100_000,
    },
    Promise {
        kind: "cases",
        suites: "log operations failing",
        least: 5_000,
    },
    Promise {
        kind: "operations",
        suites: "log ",
        least: 100_000,
    },
    Promise {
        kind: "crashes",
        suites: "log ",
        least: 1_000,
    },
    Promise {
        kind: "seeds",
        suites: "deterministic cluster",
        least: 200,
    },
];

/// Tests that need a feature which the others are to do without.
const WITH_FEATURES: &[&[&str]] = &[&[
    "--package",
    "raft-proto",
    "--features",
    "trace",
    "--test",
    "trace",
]];

#[derive(clap::Args)]
pub(crate) struct Test {
    /// Arguments for `cargo test`, such as a filter; sums are then printed but not demanded.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// What a run of all tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Tests and doctests that passed.
    pub(crate) passed: u64,
    /// Those that failed.
    pub(crate) failed: u64,
    /// Whether cargo ended well and no expected sum was zero.
    pub(crate) ok: bool,
}

impl Test {
    pub(crate) fn run(self) -> Result<()> {
        let outcome = run(&self.arguments)?;
        println!(
            "tests: {} passed, {} failed",
            outcome.passed, outcome.failed
        );
        if !outcome.ok {
            bail!("the tests did not pass");
        }
        Ok(())
    }
}

/// Runs all tests and doctests, echoing cargo's output.
pub(crate) fn run(arguments: &[String]) -> Result<Outcome> {
    let directory = workspace::target_dir().join("test-report");
    fs::create_dir_all(&directory)?;
    let report = directory.join("report.jsonl");
    fs::write(&report, "")?;

    let mut outcome = Outcome {
        ok: true,
        ..Outcome::default()
    };
    let whole = [&["--workspace"][..]];
    let more = if arguments.is_empty() {
        WITH_FEATURES
    } else {
        &[]
    };
    for chosen in whole.iter().chain(more) {
        let mut command = workspace::cargo();
        command.arg("test").args(*chosen);
        command.args(["--profile", "ci", "--locked", "--no-fail-fast"]);
        command.args(arguments).env("RAFT_TEST_REPORT", &report);
        outcome.ok &= workspace::run_lines(&mut command, |line| {
            println!("{line}");
            if let Some((passed, failed)) = result_line(line) {
                outcome.passed += passed;
                outcome.failed += failed;
            }
        })?;
    }

    let sums = sums(&fs::read_to_string(&report)?)?;
    print_sums(&sums, &report);
    if arguments.is_empty() {
        for shortfall in shortfalls(&sums) {
            eprintln!("{shortfall}");
            outcome.ok = false;
        }
    }
    Ok(outcome)
}

/// Work by kind, and by suite within it.
type Sums = BTreeMap<String, BTreeMap<String, u64>>;

fn sums(report: &str) -> Result<Sums> {
    let mut sums = Sums::new();
    for line in report.lines().filter(|line| !line.trim().is_empty()) {
        let value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).with_context(|| format!("not a report line: {line}"))?;
        let suite = value
            .get("suite")
            .and_then(|suite| suite.as_str())
            .unwrap_or("?");
        for key in KINDS {
            if let Some(value) = value.get(*key) {
                let count = value
                    .as_u64()
                    .with_context(|| format!("not a count: {line}"))?;
                *sums
                    .entry((*key).to_owned())
                    .or_default()
                    .entry(suite.to_owned())
                    .or_default() += count;
            }
        }
    }
    Ok(sums)
}

/// What was promised and not done: kinds whose sum is zero, and suites that did too little.
fn shortfalls(sums: &Sums) -> Vec<String> {
    let done = |kind: &str, suites: &str| -> u64 {
        let by_suite = sums.get(kind).into_iter().flatten();
        by_suite
            .filter(|(suite, _)| suite.starts_with(suites))
            .map(|(_, count)| count)
            .sum()
    };
    let zeros = KINDS
        .iter()
        .filter(|kind| done(kind, "") == 0)
        .map(|kind| format!("no suite did any work of the kind `{kind}`"));
    let broken = PROMISES.iter().filter_map(|promise| {
        let Promise {
            kind,
            suites,
            least,
        } = promise;
        let done = done(kind, suites);
        (done < *least).then(|| format!("{done} {kind} of suites `{suites}`, not {least}"))
    });
    zeros.chain(broken).collect()
}

fn print_sums(sums: &Sums, report: &Path) {
    println!("\nwhat the suites did ({}):", report.display());
    for (key, suites) in sums {
        let by_suite: Vec<String> = suites
            .iter()
            .map(|(suite, count)| format!("{suite} {count}"))
            .collect();
        println!(
            "  {key}: {} ({})",
            suites.values().sum::<u64>(),
            by_suite.join(", ")
        );
    }
}

/// Reads `test result: ok. 3 passed; 1 failed; ...`.
pub(crate) fn result_line(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim_start().strip_prefix("test result: ")?;
    let count = |word: &str| {
        rest.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_gives_its_counts() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(result_line(line), Some((12, 3)));
        assert_eq!(result_line("test hazard_1_refused ... ok"), None);
    }

    #[test]
    fn report_lines_sum_by_kind_and_suite() {
        let sums = sums("{\"suite\":\"a\",\"seeds\":2}\n{\"suite\":\"b\",\"seeds\":3,\"bits\":7}\n\n{\"suite\":\"a\",\"seeds\":1}\n").expect("it parses");
        assert_eq!(sums["seeds"]["a"], 3);
        assert_eq!(sums["seeds"]["b"], 3);
        assert_eq!(sums["bits"]["b"], 7);
    }

    #[test]
    fn a_reported_zero_fails() {
        let sums = sums("{\"suite\":\"a\",\"seeds\":0}\n").expect("it parses");
        assert!(shortfalls(&sums)[1].contains("`seeds`"));
    }

    #[test]
    fn a_suite_that_did_less_than_was_promised_fails() {
        let line = |kind: &str, suite: &str, count: u64| {
            serde_json::json!({"suite": suite, kind: count}).to_string()
        };
        let whole: Vec<String> = PROMISES
            .iter()
            .map(|promise| line(promise.kind, &format!("{}x", promise.suites), promise.least))
            .chain([line("scripts", "s", 1)])
            .collect();
        let shortfalls_of =
            |lines: &[String]| shortfalls(&sums(&lines.join("\n")).expect("it parses"));
        assert_eq!(shortfalls_of(&whole), Vec::<String>::new());
        for (at, promise) in PROMISES.iter().enumerate() {
            let mut less = whole.clone();
            less[at] = line(promise.kind, promise.suites, promise.least - 1);
            assert_eq!(shortfalls_of(&less).len(), 1, "{less:?}");
        }
    }

    #[test]
    fn a_broken_report_line_is_an_error() {
        assert!(sums("{\"suite\":\"a\",\"seeds\":\"many\"}").is_err());
        assert!(sums("seeds").is_err());
    }
}
