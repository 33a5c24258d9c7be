//! The worker engine of a multi-group Raft library: steps many groups, keeps their log, runs their
//! state machines, saves and restores their snapshots.
//!
//! It is not a server and knows no network: messages leave through [`Outbound`] and arrive through
//! [`Engine::deliver`]. It reads no clock but in the loops of [`Workers::spawn`]: every worker is a
//! value with a `poll`, so that the very same engine runs under simulation, one thread, one seed.
//!
//! ```text
//!   propose, read, snapshot, ...      deliver(messages)
//!               |                            |
//!               v                            v
//!        +-------------------- inbox --------------------+
//!        |  step worker: cores of its groups, one pass   |----> Outbound: appends, heartbeats
//!        +-----------------------------------------------+ <--+
//!            | submissions      | committed entries   |       | persisted, applied, saved
//!            v                  v                     v       |
//!       lane worker        apply worker           job pool ---+
//!       one write, one     state machines         snapshots, log reads
//!       sync for all       answer proposers
//! ```
//!
//! Nothing waits for a disk but the lane worker and the job pool. What must wait for a sync (vote
//! requests, votes, acknowledgements) leaves when the lane has reported it durable.
//!
//! The types to know: [`Engine`], the handle; [`Workers`], what drives it; [`StateMachine`], what
//! you write.
#![forbid(unsafe_code)]

mod apply;
mod config;
mod engine;
mod group;
mod inbox;
mod jobs;
mod lane;
mod outbound;
mod request;
mod state_machine;
mod status;
mod step;
mod workers;

pub use config::{ConfigError, EngineConfig};
pub use engine::{Engine, OpenError, Parts, RecoveredReplica, Start, StartGroup};
pub use outbound::{Event, Events, Outbound, SnapshotReport, SnapshotTransfer};
pub use request::{
    Applied, Completion, RequestError, Responder, SnapshotOutcome, SnapshotRejected,
    SnapshotRequest,
};
pub use state_machine::{
    Command, SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError,
};
pub use status::GroupStatus;
pub use workers::{EngineStats, Progress, RunningWorkers, WorkerId, Workers};

use raft_proto::GroupId;

/// The worker of `count` that owns `group`: a stable hash, the same in every process.
fn route(group: GroupId, count: usize) -> usize {
    // Fibonacci hashing: neighbouring ids go to different workers.
    let hash = group.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    usize::try_from(hash).unwrap_or(0) % count
}
