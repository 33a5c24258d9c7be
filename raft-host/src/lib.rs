//! NodeHost: the replicas of thousands of Raft groups in one process.
//!
//! A service author writes a [`StateMachine`] and opens a [`NodeHost`]; the host carries the
//! replicas of many groups over one log, one QUIC endpoint and a few worker threads, and gives out
//! a [`GroupHandle`] for each. It holds neither protocol nor storage logic of its own: it opens the
//! data directory, joins engine and transport, and turns their answers into errors that say what
//! the caller does next.
//!
//! ```text
//!   propose, read, snapshot, ...          events, failed()
//!               │                               ▲
//!        ┌──────▼───────────────────────────────┴──────┐
//!        │ NodeHost: data directory, registry, handles │
//!        └──────┬─────────────────────┬────────────────┘
//!            Engine ── Outbound ─▶ Transport ── QUIC ──▶ other hosts
//!               ▲                     │
//!               └───── Delivery ──────┘
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod config;
mod data_dir;
mod error;
mod events;
mod group_handle;
mod host;
mod pending;
mod registry;

pub use config::{CertificateFiles, ConfigError, HostConfig};
pub use data_dir::{DataDirError, Identity};
pub use error::{
    CloseError, NextStep, OpenError, ProposeError, ReadError, SnapshotError, StartError,
};
pub use events::HostEvent;
pub use group_handle::GroupHandle;
pub use host::{GroupStart, HostStats, NodeHost};
pub use registry::Registry;

pub use bytes::{Bytes, BytesMut};
pub use raft_engine::{
    Applied, Command, EngineConfig, Event, GroupStatus, RecoveredReplica, SaveCursor, SaveStep,
    SnapshotOutcome, SnapshotRead, SnapshotRejected, SnapshotRequest, Start, StateMachine,
    StateMachineError,
};
pub use raft_log::{LaneOptions, LaneStats, RecoveryReport};
pub use raft_proto::{
    Change, ChangeKind, EntryId, GroupId, HostId, Index, Membership, MembershipChange, ReplicaId,
    Role, Session, Term, Transition,
};
pub use raft_transport::{
    ConnectionEnd, Limits, Refusal, RefusalKind, TransportError, TransportEvent, TransportIdentity,
    TransportStats,
};
