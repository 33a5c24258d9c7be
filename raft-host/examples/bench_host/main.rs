//! One host of the cluster benchmark: `cargo xtask bench cluster` starts several.
//!
//! Its state machine counts and does nothing else. It prints a `ready` line once it leads its share
//! of the groups, waits for `go SECONDS`, runs the clients of the groups that it leads, prints a
//! `result` line, and ends when its standard input closes. An operation counts when its future has
//! returned the applied result.
#![expect(
    clippy::print_stdout,
    reason = "it answers on standard output, a JSON line each"
)]
#![expect(
    clippy::print_stderr,
    reason = "a program that does not start says why"
)]

#[path = "../common/args.rs"]
mod args;
mod clients;
mod leaders;
mod machine;
mod usage;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use clap::Parser;
use raft_host::{GroupHandle, GroupId, GroupStart, HostConfig, HostId, NodeHost, ReplicaId, Start};
use tokio::sync::mpsc;

use self::args::{HostArgs, host_id};
use self::clients::Load;
use self::machine::Counter;

#[derive(Parser)]
#[command(about = "One host of the cluster benchmark", version)]
struct Args {
    #[command(flatten)]
    host: HostArgs,
    /// Number of groups; group g is led by the voter at place (g - 1) modulo their number.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    groups: u64,
    /// The hosts, each with a replica of every group.
    #[arg(long, value_delimiter = ',', value_parser = host_id, required = true)]
    voters: Vec<HostId>,
    /// Bytes of a command.
    #[arg(long)]
    payload: usize,
    /// Operations in flight from this host.
    #[arg(long)]
    outstanding: usize,
    /// How many of a hundred operations are linearizable reads.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// Step workers of the engine.
    #[arg(long, default_value_t = 1)]
    step_workers: usize,
    /// Apply workers of the engine.
    #[arg(long, default_value_t = 1)]
    apply_workers: usize,
    /// Ends when standard input closes; it always does.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    args::start_log();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(&args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<()> {
    let host = Arc::new(NodeHost::open(config(args)).await?);
    let groups = start_groups(args, &host).await?;
    let handing_on = tokio::spawn(leaders::hand_on(
        Arc::clone(&host),
        groups.clone(),
        args.voters.clone(),
    ));
    let own = leaders::settled(&host, &groups, &args.voters).await?;
    println!(
        "{}",
        serde_json::json!({
            "event": "ready",
            "host": args.host.id.get(),
            "pid": std::process::id(),
            "raft": host.raft_addr(),
            "leads": own.len(),
        })
    );
    let mut lines = stdin_lines();
    while let Some(line) = lines.recv().await {
        let seconds = line
            .strip_prefix("go ")
            .and_then(|seconds| seconds.parse().ok())
            .with_context(|| format!("not understood: {line:?}"))?;
        let load = Load {
            payload_bytes: args.payload,
            outstanding: args.outstanding,
            read_percent: args.read_percent,
            seconds,
        };
        tokio::select! {
            result = clients::measure(&host, &own, &load) => println!("{}", result?),
            reason = host.failed() => bail!("the host has failed: {reason}"),
        }
    }
    handing_on.abort();
    host.close().await?;
    Ok(())
}

fn config(args: &Args) -> HostConfig {
    let mut config = args.host.config();
    config.engine.step_workers = args.step_workers;
    config.engine.apply_workers = args.apply_workers;
    config
}

async fn start_groups(args: &Args, host: &NodeHost) -> Result<Vec<GroupHandle>> {
    let members: BTreeMap<ReplicaId, HostId> = args
        .voters
        .iter()
        .map(|&voter| (leaders::replica_on(voter), voter))
        .collect();
    let mut groups = Vec::new();
    for id in 1..=args.groups {
        let start = GroupStart {
            group: GroupId::new(id).context("0 is no group")?,
            replica: leaders::replica_on(args.host.id),
            start: Start::Bootstrap {
                members: members.clone(),
            },
            machine: Box::<Counter>::default(),
        };
        groups.push(host.start_group(start).await?);
    }
    Ok(groups)
}

/// The lines of standard input, read on a thread of their own.
fn stdin_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
