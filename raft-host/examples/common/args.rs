//! Arguments that the examples share.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use raft_host::{CertificateFiles, HostConfig, HostId};

/// Who a host is, and where it and the others are.
#[derive(clap::Args)]
pub(crate) struct HostArgs {
    /// The data directory.
    #[arg(long)]
    data: PathBuf,
    /// This host's id.
    #[arg(long = "host", value_parser = host_id)]
    pub(crate) id: HostId,
    /// The deployment's name, as in the certificates.
    #[arg(long)]
    deployment: String,
    /// The folder of ca.pem, host-N.pem and host-N.key, as `cargo xtask certs` makes them.
    #[arg(long)]
    certs: PathBuf,
    /// Where to listen for other hosts (UDP).
    #[arg(long)]
    raft: SocketAddr,
    /// Where hosts listen for each other; this one may be among them.
    #[arg(long, value_delimiter = ',', value_parser = peer)]
    peers: Vec<(HostId, SocketAddr)>,
}

impl HostArgs {
    /// A host's settings, with defaults for all else.
    pub(crate) fn config(&self) -> HostConfig {
        let others = self.peers.iter().filter(|(host, _)| *host != self.id);
        let mut config = HostConfig::new(&self.data, self.id, &self.deployment);
        config.certificates = CertificateFiles::in_dir(&self.certs, self.id);
        config.listen = self.raft;
        config.addresses = others.copied().collect();
        config
    }
}

pub(crate) fn host_id(text: &str) -> Result<HostId, String> {
    text.parse()
        .ok()
        .and_then(HostId::new)
        .ok_or_else(|| "not a host id: 1 or more".to_owned())
}

/// `HOST=ADDRESS`.
fn peer(text: &str) -> Result<(HostId, SocketAddr), String> {
    let (host, address) = text
        .split_once('=')
        .ok_or_else(|| "not of the form HOST=ADDRESS".to_owned())?;
    let address = address
        .parse()
        .map_err(|_| format!("not an address: {address}"))?;
    Ok((host_id(host)?, address))
}

/// What is said on standard error: warnings, or what `RUST_LOG` names.
pub(crate) fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
}
