//! A replicated key-value store that speaks the Redis protocol: the example a service author starts
//! from, and the program that `cargo xtask demo` drives.
//!
//! Keys are spread over the groups by their Redis Cluster slot. A write is answered when it is
//! durable on a majority and applied; a read asks the leader's machine after a ReadIndex round.
//! Elsewhere the answer is `-MOVED`, so that stock cluster clients find their way.
#![expect(
    clippy::print_stdout,
    reason = "one line says that the host serves, one that it has failed"
)]
#![expect(
    clippy::print_stderr,
    reason = "a program that does not start says why"
)]

mod admin;
#[path = "../common/args.rs"]
mod args;
mod commands;
mod connection;
mod machine;
mod node;
mod reply;
mod slots;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use raft_host::{HostConfig, HostId, NodeHost};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use self::args::{HostArgs, host_id};
use self::node::Node;

/// The exit code of a host whose log could not be written: it needs an operator, not a restart.
const EXIT_HOST_FAILED: u8 = 70;

#[derive(Parser)]
#[command(
    about = "A replicated key-value store over Flotilla, with the Redis protocol",
    version
)]
struct Args {
    #[command(flatten)]
    host: HostArgs,
    /// Where to listen for clients (TCP).
    #[arg(long)]
    redis: SocketAddr,
    /// Number of groups, with the ids 1 to N; the same on every host, for ever.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=4096))]
    groups: u64,
    /// The hosts that found the groups, the same on each of them.
    #[arg(long, value_delimiter = ',', value_parser = host_id, required_unless_present = "join", conflicts_with = "join")]
    voters: Vec<HostId>,
    /// Joins groups that exist, once their leaders have added this host.
    #[arg(long)]
    join: bool,
    /// Ends when standard input closes.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    args::start_log();
    if let Err(error) = raft_log::install_sigbus_handler() {
        tracing::warn!(%error, "a log file taken away will end in a plain SIGBUS");
    }
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(args)));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until told to end.
async fn run(args: Args) -> Result<ExitCode> {
    ensure!(
        args.join || args.voters.contains(&args.host.id),
        "--voters must name host {} itself; a host that comes later says --join",
        args.host.id
    );
    let listener = TcpListener::bind(args.redis)
        .await
        .with_context(|| format!("cannot listen on {}", args.redis))?;
    let redis = listener.local_addr()?;
    let host = NodeHost::open(config(&args, redis)).await?;
    let node = Node::start(host, redis, args.groups, &args.voters).await?;
    let node = Arc::new(node);
    println!(
        "{}",
        serde_json::json!({
            "event": "ready",
            "host": args.host.id.get(),
            "pid": std::process::id(),
            "raft": node.host().raft_addr(),
            "redis": redis,
        })
    );
    let serving = tokio::spawn(connection::accept_all(listener, Arc::clone(&node)));
    let mut terminate = signal(SignalKind::terminate())?;
    let failure = tokio::select! {
        reason = node.host().failed() => Some(reason),
        () = stdin_closed(), if args.exit_with_stdin => None,
        _ = tokio::signal::ctrl_c() => None,
        _ = terminate.recv() => None,
    };
    serving.abort();
    if let Some(reason) = failure {
        println!(
            "{}",
            serde_json::json!({"event": "failed", "host": args.host.id.get(), "reason": reason})
        );
        return Ok(ExitCode::from(EXIT_HOST_FAILED));
    }
    node.host().close().await?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: &Args, redis: SocketAddr) -> HostConfig {
    let mut config = args.host.config();
    // The others learn where clients find this host: what `-MOVED` names.
    config.advertised = redis.to_string().into();
    config.log.segment_size_bytes = 1 << 20;
    config.log.record_bytes_max = 448 << 10;
    config.engine.compaction_overhead = 100;
    config.engine.proposal_bytes_max = machine::COMMAND_BYTES_MAX;
    config.engine.message_bytes_max = 256 << 10;
    config.engine.cache_bytes_max = 1 << 20;
    config
}

/// Returns when standard input has ended. It is read on a thread of its own, which a process that
/// ends for another reason does not wait for.
async fn stdin_closed() {
    let (closed, waiting) = oneshot::channel::<()>();
    thread::spawn(move || {
        // An error ends the input, too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        drop(closed);
    });
    let _ = waiting.await;
}
