//! `cargo xtask bench`: measurements.

mod cluster;

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
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self.what {
            What::Cluster(cluster) => cluster.run(),
        }
    }
}
