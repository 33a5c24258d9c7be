//! What a transport has done since it started.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Messages handed to QUIC.
    pub messages_sent: u64,
    /// Messages delivered.
    pub messages_received: u64,
    /// Messages dropped before they reached QUIC.
    pub messages_dropped: u64,
    /// Bytes of messages handed to QUIC, frames included.
    pub bytes_sent: u64,
    /// Bytes of messages received, frames included.
    pub bytes_received: u64,
    /// Bytes of snapshot blocks sent.
    pub snapshot_bytes_sent: u64,
    /// Bytes of snapshot blocks received.
    pub snapshot_bytes_received: u64,
    /// Connections established, either way.
    pub connections: u64,
    /// Peers refused, by us.
    pub refusals: u64,
    /// The largest datagram payload in bytes that a path to a peer was found to carry; 0 before
    /// the first message. On large messages it decides the cost of a byte.
    pub path_mtu_bytes_max: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages_sent: Counter,
    pub(crate) messages_received: Counter,
    pub(crate) messages_dropped: Counter,
    pub(crate) bytes_sent: Counter,
    pub(crate) bytes_received: Counter,
    pub(crate) snapshot_bytes_sent: Counter,
    pub(crate) snapshot_bytes_received: Counter,
    pub(crate) connections: Counter,
    pub(crate) refusals: Counter,
    pub(crate) path_mtu_bytes_max: Counter,
}

impl Counters {
    pub(crate) fn read(&self) -> TransportStats {
        TransportStats {
            messages_sent: self.messages_sent.read(),
            messages_received: self.messages_received.read(),
            messages_dropped: self.messages_dropped.read(),
            bytes_sent: self.bytes_sent.read(),
            bytes_received: self.bytes_received.read(),
            snapshot_bytes_sent: self.snapshot_bytes_sent.read(),
            snapshot_bytes_received: self.snapshot_bytes_received.read(),
            connections: self.connections.read(),
            refusals: self.refusals.read(),
            path_mtu_bytes_max: self.path_mtu_bytes_max.read(),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        self.0
            .fetch_add(count.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Keeps the highest.
    pub(crate) fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
