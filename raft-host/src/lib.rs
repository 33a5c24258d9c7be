//! NodeHost: the replicas of thousands of Raft groups in one process.
//!
//! A service author writes a [`StateMachine`] and opens a [`NodeHost`]; the host carries the
//! replicas of many groups over one log, one QUIC endpoint and a few worker threads, and gives out
//! a [`GroupHandle`] for each. It is *not* where protocol or storage live: it opens the data
//! directory, joins engine and transport, and turns their answers into errors that say what the
//! caller does next. It installs no signal handler, starts no runtime and never ends the process.
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
//!
//! # Example
//!
//! A replicated, durable counter. This is all of it; three processes that run it with the ids 1, 2
//! and 3 are a service that survives the loss of any one of them.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::error::Error;
//! use std::net::SocketAddr;
//!
//! use raft_host::*;
//!
//! struct Counter(u64);
//!
//! impl StateMachine for Counter {
//!     fn apply(&mut self, _: Command<'_>) -> Result<Bytes, StateMachineError> {
//!         self.0 += 1;
//!         Ok(self.0.to_string().into())
//!     }
//!     fn query(&mut self, _: &[u8]) -> Result<Bytes, StateMachineError> {
//!         Ok(self.0.to_string().into())
//!     }
//!     fn save_next(
//!         &mut self,
//!         _: &mut SaveCursor,
//!         out: &mut BytesMut,
//!     ) -> Result<SaveStep, StateMachineError> {
//!         out.extend_from_slice(&self.0.to_le_bytes());
//!         Ok(SaveStep::Done)
//!     }
//!     fn restore(&mut self, from: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
//!         let saved = from.next()?.as_deref().and_then(|bytes| bytes.try_into().ok());
//!         let saved = saved.ok_or(StateMachineError("not a counter".into()))?;
//!         self.0 = u64::from_le_bytes(saved);
//!         Ok(())
//!     }
//! }
//!
//! async fn serve(
//!     id: HostId,
//!     hosts: BTreeMap<HostId, SocketAddr>,
//! # dir: std::path::PathBuf,
//! ) -> Result<(), Box<dyn Error + Send + Sync>> {
//!     let mut config = HostConfig::new(format!("data-{id}"), id, "demo");
//! #   config = HostConfig::new(dir.join(format!("data-{id}")), id, "demo");
//! #   config.certificates = CertificateFiles::in_dir(dir, id);
//!     config.listen = hosts[&id];
//!     config.addresses = hosts.clone();
//!     let host = NodeHost::open(config).await?;
//!
//!     let (group, replica) = (GroupId::try_from(1)?, ReplicaId::try_from(id.get())?);
//!     let members = hosts.keys().map(|&host| (ReplicaId::try_from(host.get()).unwrap(), host));
//!     let start = match host.recovered_replica(group) {
//!         Some(_) => Start::Restart,
//!         None => Start::Bootstrap { members: members.collect() },
//!     };
//!     let machine = Box::new(Counter(0));
//!     let counter = host.start_group(GroupStart { group, replica, start, machine }).await?;
//!
//!     // Durable on a majority and applied, or an error that says what to do next.
//!     if counter.wait_for_leader().await? == replica {
//!         let applied = counter.propose("count").await?;
//!         assert_eq!(applied.result, "1");
//!     }
//!     // On any host, this sees what was acknowledged before.
//!     let now = counter.read("").await?;
//!     println!("{}", String::from_utf8_lossy(&now));
//! #   // Whoever is slower still needs a majority.
//! #   while counter.read("").await? != "1" {
//! #       tokio::task::yield_now().await;
//! #   }
//! #   done(&counter).await;
//!     host.close().await?;
//!     Ok(())
//! }
//! # async fn done(counter: &GroupHandle) {
//! #     static ENDED: std::sync::LazyLock<tokio::sync::Barrier> =
//! #         std::sync::LazyLock::new(|| tokio::sync::Barrier::new(3));
//! #     ENDED.wait().await;
//! # }
//! # fn certificates(dir: &std::path::Path) -> Result<(), Box<dyn Error>> {
//! #     use rcgen::*;
//! #     let mut params = CertificateParams::default();
//! #     params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
//! #     let key = KeyPair::generate()?;
//! #     std::fs::write(dir.join("ca.pem"), params.self_signed(&key)?.pem())?;
//! #     let issuer = Issuer::new(params, key);
//! #     for host in [1, 2, 3] {
//! #         let key = KeyPair::generate()?;
//! #         let params = CertificateParams::new(vec![format!("h{host}.demo.raft")])?;
//! #         let pem = params.signed_by(&key, &issuer)?.pem();
//! #         std::fs::write(dir.join(format!("host-{host}.pem")), pem)?;
//! #         std::fs::write(dir.join(format!("host-{host}.key")), key.serialize_pem())?;
//! #     }
//! #     Ok(())
//! # }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn Error>> {
//! #     let dir = tempfile::tempdir()?;
//! #     certificates(dir.path())?;
//! #     let sockets = [1, 2, 3].map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
//! #     let hosts: BTreeMap<_, _> = (1..)
//! #         .map(|id| HostId::try_from(id).unwrap())
//! #         .zip(sockets.iter().map(|socket| socket.local_addr().unwrap()))
//! #         .collect();
//! #     drop(sockets);
//! #     let mut serving = tokio::task::JoinSet::new();
//! #     for &id in hosts.keys() {
//! #         serving.spawn(serve(id, hosts.clone(), dir.path().to_owned()));
//! #     }
//! #     while let Some(ended) = serving.join_next().await {
//! #         ended?.map_err(|error| error.to_string())?;
//! #     }
//! #     Ok(())
//! # }
//! ```
//!
//! `cargo xtask certs` makes certificates to begin with. `examples/kv` is a whole service: a
//! key-value store with the Redis protocol.
//!
//! # The three types to know
//!
//! - [`NodeHost`]: open, start groups, close; addresses, events, failure.
//! - [`GroupHandle`]: propose, read, snapshot, membership, leadership.
//! - [`StateMachine`]: what you write.
//!
//! Every error has a `next_step`: [`NextStep`] says whether to retry, where, or to find out first.
//!
//! # The data directory
//!
//! `LOCK` is held while the directory is open; a second process is refused before it writes
//! anything. `IDENTITY` says whose it is and counts how often it was opened. `PEERS` remembers of
//! each other host which directory it had and how often that was opened: a host that comes back
//! with a wiped, swapped or rolled-back directory has forgotten what it promised, and is refused
//! until an operator says [`NodeHost::forget`]. `votes` and `log/` are raft-log's, `snapshots/` is
//! raft-snapshot's. No path in it is absolute: a closed directory can be moved.
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

pub use config::{CertificateFiles, HostConfig};
pub use data_dir::{DataDirError, Identity};
pub use error::{
    CloseError, NextStep, OpenError, ProposeError, ReadError, SnapshotError, StartError,
};
pub use events::HostEvent;
pub use group_handle::GroupHandle;
pub use host::{GroupStart, HostParts, HostStats, NodeHost};
pub use registry::Registry;

pub use bytes::{Bytes, BytesMut};
pub use raft_engine::{
    Applied, Command, EngineConfig, Event, GroupStatus, RecoveredReplica, SaveCursor, SaveStep,
    SnapshotOutcome, SnapshotRead, SnapshotRejected, SnapshotRequest, Start, StateMachine,
    StateMachineError,
};
pub use raft_log::{LaneOptions, LaneStats, RecoveryReport, ScrubStatus};
pub use raft_proto::{
    Change, ChangeKind, EntryId, GroupId, HostId, Index, Membership, MembershipChange, ReplicaId,
    Role, Session, Term, Transition,
};
pub use raft_transport::{
    ConfigError, ConnectionEnd, Limits, Refusal, RefusalKind, TransportError, TransportEvent,
    TransportIdentity, TransportStats,
};
