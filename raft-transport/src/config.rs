//! What a transport is told when it starts, checked once.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use raft_proto::HostId;

/// What a transport is and how much it may use.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// This host.
    pub host: HostId,
    /// The deployment: one label of a DNS name, 1 to 63 of `a-z`, `0-9` and `-`.
    pub deployment: String,
    /// Where to listen. Port 0 takes a free one: see
    /// [`Transport::local_addr`](crate::Transport::local_addr).
    pub listen: SocketAddr,
    /// The identity of the data directory, made once when it was created.
    pub uuid: [u8; 16],
    /// How often the data directory was opened, raised and synced at each open.
    pub open_count: u64,
    /// What this host tells every peer of itself in Hello, such as where its clients find it. The
    /// transport does not look into it. At most 256 bytes.
    pub advertised: Bytes,
    /// Bounds of memory and time.
    pub limits: Limits,
}

/// Bounds of memory and time. All have a sane default.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of one message. Default 16 MiB, at most 256 MiB.
    pub frame_bytes_max: usize,
    /// Bytes of messages waiting for one peer. Default 64 MiB, 64 KiB to 16 GiB.
    pub queue_bytes_max: u64,
    /// Bulk lanes of a connection. Default 2, 1 to 15.
    pub bulk_lanes: usize,
    /// Handshakes under way at once before senders must prove their address. Default 64, 1 to
    /// 65,536.
    pub handshakes_max: usize,
    /// From the first packet to the end of Hello. Default 5 s; this and the other waits: 1 ms to
    /// 24 h.
    pub handshake_timeout: Duration,
    /// A connection silent for so long is lost. Default 4 s.
    pub idle_timeout: Duration,
    /// Sends something at least so often. Default 1 s, below `idle_timeout`.
    pub keep_alive: Duration,
    /// First pause after a failed connection. Default 20 ms.
    pub backoff_min: Duration,
    /// Longest pause after failed connections. Default 2 s, at least `backoff_min`.
    pub backoff_max: Duration,
    /// How long messages wait for a peer that must dial us. Default 1 s.
    pub queue_age_max: Duration,
    /// Snapshot streams at once, each way. Default 4, at least 1.
    pub snapshot_streams_max: usize,
    /// Snapshots waiting for their turn to be sent. Default 1,024.
    pub snapshot_waiting_max: usize,
    /// Bytes of one block of a snapshot stream. Default 1 MiB + 64 KiB.
    pub snapshot_block_bytes_max: usize,
    /// Bytes of a snapshot's offer, manifest included. Default 16 MiB.
    pub snapshot_offer_bytes_max: usize,
    /// A snapshot stream without progress for so long is given up, on both sides. Default 10 s.
    pub snapshot_silence: Duration,
    /// How long the receiver may take to answer an offer and to commit. Default 120 s.
    pub snapshot_commit_timeout: Duration,
    /// Largest UDP payload that is probed for. Default 6,500: above about 6,550 ten segments no
    /// longer fit one send, and throughput collapses. 1,200 to 6,500.
    pub mtu_max: u16,
    /// Socket buffers asked of the kernel, which may grant less. Default 4 MiB, 64 KiB to 1 GiB.
    pub socket_buffer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 16 << 20,
            queue_bytes_max: 64 << 20,
            bulk_lanes: 2,
            handshakes_max: 64,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(4),
            keep_alive: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            queue_age_max: Duration::from_secs(1),
            snapshot_streams_max: 4,
            snapshot_waiting_max: 1_024,
            snapshot_block_bytes_max: (1 << 20) + (64 << 10),
            snapshot_offer_bytes_max: 16 << 20,
            snapshot_silence: Duration::from_secs(10),
            snapshot_commit_timeout: Duration::from_secs(120),
            mtu_max: 6_500,
            socket_buffer_bytes: 4 << 20,
        }
    }
}

/// A value out of its bounds. Correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}: it must be {bound}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it was.
    pub value: String,
    /// What it may be.
    pub bound: &'static str,
}

impl TransportConfig {
    /// Checks every bound.
    ///
    /// # Errors
    ///
    /// The first field that is out of its bound.
    pub fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        let ensure = |is_good: bool, field, value: &dyn ToString, bound| {
            let value = || value.to_string();
            if is_good {
                Ok(())
            } else {
                Err(ConfigError {
                    field,
                    value: value(),
                    bound,
                })
            }
        };
        ensure(
            is_dns_label(&self.deployment),
            "deployment",
            &self.deployment,
            "1 to 63 of a-z, 0-9 and -, without - at either end",
        )?;
        ensure(
            self.advertised.len() <= ADVERTISED_BYTES_MAX,
            "advertised",
            &format!("{} bytes", self.advertised.len()),
            "at most 256 bytes",
        )?;
        ensure(
            (1_024..=256 << 20).contains(&limits.frame_bytes_max),
            "frame_bytes_max",
            &limits.frame_bytes_max,
            "1 KiB to 256 MiB",
        )?;
        ensure(
            (64 << 10..=16 << 30).contains(&limits.queue_bytes_max),
            "queue_bytes_max",
            &limits.queue_bytes_max,
            "64 KiB to 16 GiB",
        )?;
        ensure(
            (1..=1 << 16).contains(&limits.handshakes_max),
            "handshakes_max",
            &limits.handshakes_max,
            "1 to 65,536",
        )?;
        let waits = [
            ("handshake_timeout", limits.handshake_timeout),
            ("queue_age_max", limits.queue_age_max),
            ("snapshot_silence", limits.snapshot_silence),
            ("snapshot_commit_timeout", limits.snapshot_commit_timeout),
        ];
        for (field, wait) in waits {
            ensure(
                (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&wait),
                field,
                &format!("{wait:?}"),
                "1 ms to 24 h",
            )?;
        }
        ensure(
            (64 << 10..=1 << 30).contains(&limits.socket_buffer_bytes),
            "socket_buffer_bytes",
            &limits.socket_buffer_bytes,
            "64 KiB to 1 GiB",
        )?;
        ensure(
            (1..=BULK_LANES_MAX).contains(&limits.bulk_lanes),
            "bulk_lanes",
            &limits.bulk_lanes,
            "1 to 15",
        )?;
        ensure(
            (1..=1 << 16).contains(&limits.snapshot_streams_max),
            "snapshot_streams_max",
            &limits.snapshot_streams_max,
            "1 to 65,536",
        )?;
        ensure(
            limits.snapshot_waiting_max <= 1 << 20,
            "snapshot_waiting_max",
            &limits.snapshot_waiting_max,
            "at most 1,048,576",
        )?;
        ensure(
            (1..=256 << 20).contains(&limits.snapshot_block_bytes_max),
            "snapshot_block_bytes_max",
            &limits.snapshot_block_bytes_max,
            "1 B to 256 MiB",
        )?;
        ensure(
            (1_024..=256 << 20).contains(&limits.snapshot_offer_bytes_max),
            "snapshot_offer_bytes_max",
            &limits.snapshot_offer_bytes_max,
            "1 KiB to 256 MiB",
        )?;
        ensure(
            (1_200..=6_500).contains(&limits.mtu_max),
            "mtu_max",
            &limits.mtu_max,
            "1,200 to 6,500",
        )?;
        ensure(
            limits.idle_timeout <= Duration::from_secs(3_600)
                && limits.keep_alive < limits.idle_timeout,
            "keep_alive",
            &limits.keep_alive.as_millis(),
            "below idle_timeout, which is at most an hour",
        )?;
        ensure(
            !limits.backoff_min.is_zero() && limits.backoff_min <= limits.backoff_max,
            "backoff_min",
            &limits.backoff_min.as_millis(),
            "above zero and at most backoff_max",
        )
    }
}

/// Bytes a host may say of itself; Hello as a whole takes 512.
pub(crate) const ADVERTISED_BYTES_MAX: usize = 256;
/// Lanes are told apart by one byte; a connection grants 16 streams.
pub(crate) const BULK_LANES_MAX: usize = 15;

fn is_dns_label(label: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&label.len())
        && label.bytes().all(is_allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> TransportConfig {
        TransportConfig {
            host: HostId::new(1).expect("an id"),
            deployment: "demo".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            uuid: [0; 16],
            open_count: 1,
            advertised: Bytes::new(),
            limits: Limits::default(),
        }
    }

    #[test]
    fn defaults_are_within_bounds() {
        assert_eq!(config().check(), Ok(()));
    }

    #[test]
    fn a_value_out_of_bounds_names_its_field() {
        let refused = |change: fn(&mut TransportConfig)| {
            let mut config = config();
            change(&mut config);
            config.check().expect_err("refused").field
        };
        assert_eq!(refused(|c| c.deployment = "A.b".into()), "deployment");
        assert_eq!(
            refused(|c| c.advertised = vec![0; 257].into()),
            "advertised"
        );
        assert_eq!(refused(|c| c.limits.mtu_max = 9_000), "mtu_max");
        assert_eq!(refused(|c| c.limits.bulk_lanes = 0), "bulk_lanes");
        assert_eq!(
            refused(|c| c.limits.frame_bytes_max = usize::MAX),
            "frame_bytes_max"
        );
        assert_eq!(
            refused(|c| c.limits.queue_bytes_max = u64::MAX),
            "queue_bytes_max"
        );
        for handshakes in [0, usize::MAX] {
            let mut config = config();
            config.limits.handshakes_max = handshakes;
            let error = config.check().expect_err("refused");
            assert_eq!(error.field, "handshakes_max");
        }
        assert_eq!(
            refused(|c| c.limits.queue_age_max = Duration::ZERO),
            "queue_age_max"
        );
        assert_eq!(
            refused(|c| c.limits.snapshot_silence = Duration::MAX),
            "snapshot_silence"
        );
        assert_eq!(
            refused(|c| c.limits.socket_buffer_bytes = 0),
            "socket_buffer_bytes"
        );
        assert_eq!(
            refused(|c| c.limits.keep_alive = c.limits.idle_timeout),
            "keep_alive"
        );
        assert_eq!(
            refused(|c| c.limits.snapshot_streams_max = 0),
            "snapshot_streams_max"
        );
    }
}
