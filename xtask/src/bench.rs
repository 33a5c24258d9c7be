//! `cargo xtask bench`: measurements.

mod cluster;
mod log;
mod programs;
mod proto;

use anyhow::Result;
use clap::Subcommand;

#[derive(clap::Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Replicated writes and reads of whole processes over QUIC, with real syncs.
    Cluster(cluster::ClusterBench),
    /// The protocol core, in memory, beside TiKV's `raft` crate.
    Proto(proto::ProtoBench),
    /// The log beside TiKV's `raft-engine` crate and the bare device.
    Log(log::LogBench),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Cluster(cluster) => cluster.run(),
            What::Proto(proto) => proto.run(),
            What::Log(log) => log.run(),
        }
    }
}
