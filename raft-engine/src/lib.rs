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
//! # Example
//!
//! A durable register on one host: a group whose only voter is this replica, real files, the
//! engine's own threads. Two more hosts and an [`Outbound`] that reaches them make it replicated.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::error::Error;
//! use std::sync::{Arc, mpsc};
//!
//! use bytes::{Bytes, BytesMut};
//! use raft_engine::*;
//! use raft_log::{LaneOptions, vfs::StdVfs};
//! use raft_proto::{Envelope, GroupId, HostId, ReplicaId};
//!
//! struct Register(Bytes);
//!
//! impl StateMachine for Register {
//!     fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
//!         Ok(std::mem::replace(&mut self.0, Bytes::copy_from_slice(command.payload)))
//!     }
//!     fn query(&mut self, _: &[u8]) -> Result<Bytes, StateMachineError> {
//!         Ok(self.0.clone())
//!     }
//!     fn save_next(
//!         &mut self,
//!         _: &mut SaveCursor,
//!         out: &mut BytesMut,
//!     ) -> Result<SaveStep, StateMachineError> {
//!         out.extend_from_slice(&self.0);
//!         Ok(SaveStep::Done)
//!     }
//!     fn restore(&mut self, from: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
//!         self.0 = from.next()?.unwrap_or_default();
//!         Ok(())
//!     }
//! }
//!
//! /// A completion: here the outcome goes to a channel.
//! struct To<T>(mpsc::Sender<Result<T, RequestError>>);
//!
//! impl<T: Send> Completion<T> for To<T> {
//!     fn complete(&self, outcome: Result<T, RequestError>) {
//!         // Whoever asked may have gone.
//!         let _ = self.0.send(outcome);
//!     }
//! }
//!
//! fn ask<T: Send + 'static>(call: impl FnOnce(Responder<T>)) -> Result<T, Box<dyn Error>> {
//!     let (sender, outcome) = mpsc::channel();
//!     call(Responder::new(Arc::new(To(sender))));
//!     Ok(outcome.recv()??)
//! }
//!
//! /// No other hosts; and an ear for who leads.
//! struct World(mpsc::Sender<Event>);
//!
//! impl Outbound for World {
//!     fn send(&self, _: HostId, _: Vec<Envelope>) {}
//!     fn send_snapshot(&self, _: HostId, transfer: SnapshotTransfer) {
//!         transfer.report.failed();
//!     }
//! }
//!
//! impl Events for World {
//!     fn event(&self, event: Event) {
//!         let _ = self.0.send(event);
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn Error>> {
//! let dir = tempfile::tempdir()?;
//! let (heard, events) = mpsc::channel();
//! let world = Arc::new(World(heard));
//! let parts = Parts {
//!     vfs: Arc::new(StdVfs::default()),
//!     data_dir: dir.path().to_owned(),
//!     lane: LaneOptions::default(),
//!     outbound: world.clone(),
//!     events: world,
//! };
//! let (engine, workers) = Engine::open(EngineConfig::default(), parts)?;
//! let running = workers.spawn();
//!
//! let (group, replica) = (GroupId::try_from(1)?, ReplicaId::try_from(1)?);
//! let start = StartGroup {
//!     group,
//!     replica,
//!     epoch: 1,
//!     start: Start::Bootstrap { members: BTreeMap::from([(replica, HostId::try_from(1)?)]) },
//!     machine: Box::new(Register(Bytes::new())),
//! };
//! ask(|responder| engine.start_group(start, responder))?;
//! events
//!     .iter()
//!     .find(|event| matches!(event, Event::LeaderChanged { leader: Some(_), .. }));
//!
//! // Answered once the command is on disk and applied.
//! let applied: Applied = ask(|answer| engine.propose(group, "sail".into(), None, answer))?;
//! assert_eq!(applied.result, "");
//! assert_eq!(ask(|answer| engine.read(group, Bytes::new(), answer))?, "sail");
//! drop(running);
//! # Ok(())
//! # }
//! ```
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
mod prepared;
mod request;
mod state_machine;
mod status;
mod step;
mod workers;

pub use config::{ConfigError, EngineConfig};
pub use engine::{Engine, OpenError, Parts, ReceivedSnapshot, RecoveredReplica, Start, StartGroup};
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
