//! What the transport asks of its user: addresses, and a place to deliver to.

use std::net::SocketAddr;

use bytes::Bytes;
use raft_proto::{Envelope, GroupId, HostId, ReplicaId, Term};
use serde::{Deserialize, Serialize};

use crate::error::ConnectionEnd;

/// The address book. It may change at any time; the next attempt to connect reads it anew.
pub trait Addresses: Send + Sync {
    /// Where `host` listens, if known.
    fn address(&self, host: HostId) -> Option<SocketAddr>;
}

/// Takes what arrives.
pub trait Delivery: Send + Sync {
    /// Takes messages of the replicas of `from`. Called on a network task; must not block.
    ///
    /// The transport vouches for the host, not for the replicas: the receiver checks that the
    /// sending replica lives on `from`.
    fn messages(&self, from: HostId, batch: Vec<Envelope>);

    /// Learns of replicas for which messages were or may have been lost. May be called from
    /// within [`Transport::send`](crate::Transport::send); must not block.
    fn unreachable(&self, to: HostId, replicas: Vec<(GroupId, ReplicaId)>);

    /// Decides about a peer that introduces itself, and records it durably before it agrees.
    /// Called on a blocking thread.
    ///
    /// # Errors
    ///
    /// Why the peer is refused.
    fn hello(&self, hello: PeerHello) -> Result<(), HelloRefusal>;

    /// Decides about a snapshot that a peer wants to stream. Called on a blocking thread.
    ///
    /// # Errors
    ///
    /// Why it is refused; the sender learns it.
    fn snapshot_offered(
        &self,
        from: HostId,
        offer: SnapshotOffer,
    ) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal>;

    /// Learns what happened. Must not block.
    fn event(&self, event: TransportEvent);
}

/// What a peer says of itself. That it is this host, its certificate has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerHello {
    /// The peer.
    pub host: HostId,
    /// The identity of its data directory.
    pub uuid: [u8; 16],
    /// How often that directory was opened.
    pub open_count: u64,
    /// Whatever else it tells of itself, at most 256 bytes.
    pub advertised: Bytes,
}

/// Why a peer's Hello is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloRefusal {
    /// The peer's directory was wiped, swapped or rolled back. An operator must say `forget`.
    #[error("the host's data directory was replaced")]
    HostReplaced,
    /// The record could not be read or written. The peer tries again.
    #[error("Hello cannot be recorded: {detail}")]
    Unavailable {
        /// What failed.
        detail: String,
    },
}

/// What happened to connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportEvent {
    /// A peer is connected.
    Connected {
        /// The peer.
        host: HostId,
    },
    /// A peer is no longer connected. If it is this host that dials, it tries again.
    Disconnected {
        /// The peer.
        host: HostId,
        /// Why.
        end: ConnectionEnd,
    },
    /// A peer was dialled in vain. It is tried again after a pause.
    ConnectFailed {
        /// The peer.
        host: HostId,
        /// Why.
        end: ConnectionEnd,
    },
    /// A connection from outside came to nothing.
    AcceptFailed {
        /// Where it came from.
        remote: SocketAddr,
        /// The host of its certificate, if it got so far.
        host: Option<HostId>,
        /// Why.
        end: ConnectionEnd,
    },
}

/// A snapshot that one replica wants to send to another of its group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOffer {
    /// The group.
    pub group: GroupId,
    /// The group's epoch.
    pub epoch: u64,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// Place and membership, encoded.
    #[serde(with = "crate::byte_string")]
    pub meta: Bytes,
    /// The manifest, encoded.
    #[serde(with = "crate::byte_string")]
    pub manifest: Bytes,
}

/// Any error of the user's own code.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Yields a snapshot's blocks. Called on a blocking thread.
pub trait SnapshotSource: Send {
    /// The next block, not empty and within `snapshot_block_bytes_max`; `None` after the last.
    ///
    /// # Errors
    ///
    /// Ends the transfer as [`SnapshotFailure::Source`].
    fn next_block(&mut self) -> Result<Option<Bytes>, BoxError>;
}

/// Takes a snapshot's blocks, in order. Called on a blocking thread.
///
/// Exactly one of [`finish`](Self::finish) and [`abort`](Self::abort) ends it.
pub trait SnapshotSink: Send {
    /// Takes the next block.
    ///
    /// # Errors
    ///
    /// Ends the transfer; [`abort`](Self::abort) follows.
    fn block(&mut self, block: Bytes) -> Result<(), BoxError>;

    /// Commits. The sender learns that the snapshot is durable here.
    ///
    /// # Errors
    ///
    /// Ends the transfer; the sender learns the error's text.
    fn finish(self: Box<Self>) -> Result<(), BoxError>;

    /// Throws away what was taken.
    fn abort(self: Box<Self>, reason: SnapshotAbort);
}

/// Why the receiver of a snapshot does not take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// Too many streams at once. Try later.
    #[error("too many snapshot streams")]
    Busy,
    /// The group or replica does not run there.
    #[error("no such replica")]
    UnknownReplica,
    /// It has this snapshot or a newer one, or its term is newer.
    #[error("out of date")]
    OutOfDate,
    /// Its disk is full.
    #[error("no space")]
    NoSpace,
    /// The stream broke its rules.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Why a snapshot that was being received is given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotAbort {
    /// The connection ended.
    #[error("connection lost")]
    ConnectionLost,
    /// Nothing came for `snapshot_silence`.
    #[error("silence")]
    Silent,
    /// A block's checksum or length is wrong.
    #[error("malformed block {block}")]
    Malformed {
        /// Which, counted from 0.
        block: u64,
    },
    /// The sink itself failed.
    #[error("sink failed: {detail}")]
    Sink {
        /// What it said.
        detail: String,
    },
}

/// How sending a snapshot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The receiver has committed it.
    Finished,
    /// The receiver refused it.
    Refused(SnapshotRefusal),
    /// It did not arrive.
    Failed(SnapshotFailure),
}

/// Why a snapshot did not arrive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFailure {
    /// Too many are waiting to be sent.
    #[error("too many snapshots wait")]
    Busy,
    /// The connection failed.
    #[error(transparent)]
    Connection(ConnectionEnd),
    /// The receiver is silent.
    #[error("silence")]
    Silent,
    /// The source failed.
    #[error("source failed: {detail}")]
    Source {
        /// What it said.
        detail: String,
    },
    /// An offer or block is larger than the limits allow.
    #[error("{bytes} bytes where {bytes_max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The receiver's answer makes no sense.
    #[error("malformed answer")]
    Malformed,
}
