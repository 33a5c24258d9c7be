//! Arguments that the examples share.

use std::io;
use std::net::SocketAddr;

use raft_host::HostId;

pub(crate) fn host_id(text: &str) -> Result<HostId, String> {
    text.parse()
        .ok()
        .and_then(HostId::new)
        .ok_or_else(|| "not a host id: 1 or more".to_owned())
}

/// `HOST=ADDRESS`.
pub(crate) fn peer(text: &str) -> Result<(HostId, SocketAddr), String> {
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
