//! What a host is told when it opens, checked once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use raft_engine::EngineConfig;
use raft_log::LaneOptions;
use raft_proto::HostId;
use raft_transport::{ConfigError, Limits, TransportConfig};

use crate::data_dir::Identity;

/// What a host is, where its data lies, and how much it may use.
///
/// [`HostConfig::new`] fills in everything that has a sane default.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The data directory. Made if it is not there; one process at a time may have it open.
    pub data_dir: PathBuf,
    /// This host. A data directory belongs to one host for ever.
    pub host: HostId,
    /// The deployment that this host belongs to: one label of a DNS name, 1 to 63 of `a-z`, `0-9`
    /// and `-`. Hosts of another deployment are refused.
    pub deployment: String,
    /// Where to listen for other hosts (QUIC over UDP). Port 0 takes a free one: see
    /// [`NodeHost::raft_addr`](crate::NodeHost::raft_addr).
    pub listen: SocketAddr,
    /// Certificate, key and trusted authorities.
    pub certificates: CertificateFiles,
    /// Where other hosts listen, as far as known now. It can be changed at run time: see
    /// [`Registry`](crate::Registry).
    pub addresses: BTreeMap<HostId, SocketAddr>,
    /// What this host tells every other of itself when they connect, such as where its clients find
    /// it: see [`NodeHost::advertised_by`](crate::NodeHost::advertised_by). At most 256 bytes.
    pub advertised: Bytes,
    /// How long a request waits for its outcome unless its handle says otherwise. 1 ms to 1 h,
    /// default 5 s.
    pub request_timeout: Duration,
    /// Events kept for a subscriber that does not read them; older ones are lost to it. 1 to
    /// 1,048,576, default 1,024.
    pub events_max: usize,
    /// The log.
    pub log: LaneOptions,
    /// Workers, timers and bounds of the groups. `seed` and `wall_ms_at_start` are set by the host.
    pub engine: EngineConfig,
    /// Bounds of the network.
    pub network: Limits,
}

/// Where a host's certificate lies, each a PEM file.
///
/// The certificate carries the DNS name `h<host>.<deployment>.raft` and serves both ways of a
/// connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those between it and the authority if there are any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities whose certificates are trusted.
    pub authorities: PathBuf,
}

impl CertificateFiles {
    /// The files `host-<id>.pem`, `host-<id>.key` and `ca.pem` in one directory, as
    /// `cargo xtask certs` makes them.
    #[must_use]
    pub fn in_dir(dir: impl Into<PathBuf>, host: HostId) -> Self {
        let dir = dir.into();
        Self {
            certificate: dir.join(format!("host-{host}.pem")),
            key: dir.join(format!("host-{host}.key")),
            authorities: dir.join("ca.pem"),
        }
    }
}

impl HostConfig {
    /// A configuration with defaults for everything that has one: it listens on a free port of the
    /// loopback interface, knows no other host, and looks for its certificate in
    /// `<data_dir>/certs`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, host: HostId, deployment: impl Into<String>) -> Self {
        let data_dir = data_dir.into();
        Self {
            certificates: CertificateFiles::in_dir(data_dir.join("certs"), host),
            data_dir,
            host,
            deployment: deployment.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            addresses: BTreeMap::new(),
            advertised: Bytes::new(),
            request_timeout: Duration::from_secs(5),
            events_max: 1_024,
            log: LaneOptions::default(),
            engine: EngineConfig::default(),
            network: Limits::default(),
        }
    }

    /// Checks the bounds of the host and its network. Log and engine check theirs when they open,
    /// before anything is written.
    ///
    /// # Errors
    ///
    /// The first field out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let error = |field, value: String, bound| ConfigError {
            field,
            value,
            bound,
        };
        self.transport(None).check()?;
        if !(Duration::from_millis(1)..=Duration::from_secs(3_600)).contains(&self.request_timeout)
        {
            return Err(error(
                "request_timeout",
                format!("{:?}", self.request_timeout),
                "1 ms to 1 h",
            ));
        }
        if !(1..=1 << 20).contains(&self.events_max) {
            return Err(error(
                "events_max",
                self.events_max.to_string(),
                "1 to 1,048,576",
            ));
        }
        // A record must fit a message with room for its header, or a follower could never get it.
        let frame = self.network.frame_bytes_max;
        let message = self
            .engine
            .message_bytes_max
            .max(self.engine.proposal_bytes_max);
        if frame < message.saturating_add(FRAME_OVERHEAD_BYTES) {
            return Err(error(
                "network.frame_bytes_max",
                frame.to_string(),
                "at least 64 KiB more than the largest message and the largest proposal",
            ));
        }
        // And a batch must fit a record of the log, which fails the host over its bound.
        let record = self.log.record_bytes_max;
        if record < message.saturating_add(RECORD_OVERHEAD_BYTES) {
            return Err(error(
                "log.record_bytes_max",
                record.to_string(),
                "at least 4 KiB more than the largest message and the largest proposal",
            ));
        }
        Ok(())
    }

    /// What the transport is told, with or without the identity of the data directory.
    pub(crate) fn transport(&self, identity: Option<&Identity>) -> TransportConfig {
        TransportConfig {
            host: self.host,
            deployment: self.deployment.clone(),
            listen: self.listen,
            uuid: identity.map_or([0; 16], |identity| identity.uuid),
            open_count: identity.map_or(0, |identity| identity.open_count),
            advertised: self.advertised.clone(),
            limits: self.network.clone(),
        }
    }
}

/// What a record holds besides a batch.
const RECORD_OVERHEAD_BYTES: usize = 4 << 10;
/// What a frame holds besides the entries of a message.
const FRAME_OVERHEAD_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: fn(&mut HostConfig)) -> &'static str {
        let host = HostId::new(1).expect("an id");
        let mut config = HostConfig::new("data", host, "demo");
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        config.check().expect_err("refused").field
    }

    #[test]
    fn a_value_out_of_bounds_names_its_field() {
        assert_eq!(
            refused(|config| config.deployment = "A".into()),
            "deployment"
        );
        assert_eq!(
            refused(|config| config.deployment = "a-".into()),
            "deployment"
        );
        assert_eq!(
            refused(|config| config.advertised = vec![0; 257].into()),
            "advertised"
        );
        assert_eq!(
            refused(|config| config.request_timeout = Duration::ZERO),
            "request_timeout"
        );
        assert_eq!(refused(|config| config.events_max = 0), "events_max");
        assert_eq!(
            refused(|config| config.network.frame_bytes_max = 1 << 20),
            "network.frame_bytes_max"
        );
        assert_eq!(
            refused(|config| config.log.record_bytes_max = 1 << 20),
            "log.record_bytes_max"
        );
    }
}
