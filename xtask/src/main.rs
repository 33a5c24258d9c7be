//! The commands of this repository: `cargo xtask <command>`.
//!
//! One module per command; `main` only dispatches. xtask links none of the crates it builds: it looks
//! at a cluster from outside, by process and by port.

#![expect(clippy::print_stdout, reason = "a command answers on standard output")]
#![expect(
    clippy::print_stderr,
    reason = "a command reports its progress on standard error"
)]

mod bench;
mod certs;
mod ci;
mod client;
mod cluster;
mod conformance;
mod demo;
mod programs;
mod report;
mod resp;
mod slots;
mod test;
mod tidy;
mod trace;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Development, test and release commands",
    version
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a cluster, takes it through a crash, snapshots and a joining host, and checks all.
    Demo(demo::Demo),
    /// Runs every test of the workspace and sums what the suites did.
    Test(test::Test),
    /// Runs what CI runs: format, lints, tests, docs, tidy, conformance, demo.
    Ci(ci::Ci),
    /// Checks the rules that a compiler does not know: layers, sources, manifests.
    Tidy,
    /// Makes a CA and a certificate for each host.
    Certs(certs::Certs),
    /// Measures.
    Bench(bench::Bench),
    /// Runs raft-proto's conformance suites and prints a line for each.
    Conformance(conformance::Conformance),
    /// Writes what the core does in a script, for etcd-raft's TLA+ trace specification.
    Trace(trace::Trace),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(demo) => demo.run(),
        Command::Test(test) => test.run(),
        Command::Ci(ci) => ci.run(),
        Command::Tidy => tidy::run(),
        Command::Certs(certs) => certs.run(),
        Command::Bench(bench) => bench.run(),
        Command::Conformance(conformance) => conformance.run(),
        Command::Trace(trace) => trace.run(),
    }
}
