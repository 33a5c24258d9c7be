//! QUIC messages and snapshot streams between Raft hosts.
//!
//! A [`Transport`] keeps one connection to each peer host, over which the messages of all groups
//! travel in batches, and opens one more for each snapshot. Both sides prove who they are by
//! certificates; a host's name is in its certificate, not in what it says. It is *not* reliable:
//! what finds no room, or was under way when a connection was lost, is dropped and reported, as
//! Raft expects. It knows no state machine, no log and no engine, and it takes no address from a
//! peer. The bytes on the wire are described in `PROTOCOL.md`.
//!
//! ```text
//!   send(host, envelopes) ──> queue, bounded in bytes          messages(from, envelopes)
//!                               │ control lane (votes, heartbeats)     ▲
//!                               │ bulk lanes (appends, by group)       │
//!                               └──> frames ──> QUIC streams ──> frames┘
//!   send_snapshot(host, offer, source) ──> a connection of its own ──> snapshot_offered ──> sink
//! ```
//!
//! Of two hosts, the one with the lower id dials for messages. For a snapshot the sender dials.
//!
//! # Example
//!
//! ```
//! use std::net::SocketAddr;
//! use std::sync::{Arc, mpsc};
//!
//! use raft_proto::{Body, Envelope, GroupId, HostId, Message, ReplicaId, Term};
//! use raft_transport::*;
//! # fn certificates(dir: &std::path::Path) {
//! #     use rcgen::*;
//! #     let mut params = CertificateParams::default();
//! #     params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
//! #     let key = KeyPair::generate().unwrap();
//! #     std::fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
//! #     let issuer = Issuer::new(params, key);
//! #     for host in [1, 2] {
//! #         let key = KeyPair::generate().unwrap();
//! #         let params = CertificateParams::new(vec![format!("h{host}.demo.raft")]).unwrap();
//! #         let pem = params.signed_by(&key, &issuer).unwrap().pem();
//! #         std::fs::write(dir.join(format!("host-{host}.pem")), pem).unwrap();
//! #         std::fs::write(dir.join(format!("host-{host}.key")), key.serialize_pem()).unwrap();
//! #     }
//! # }
//!
//! /// Hands messages to a channel and agrees with everything else.
//! struct Inbox(mpsc::Sender<Vec<Envelope>>);
//!
//! impl Delivery for Inbox {
//!     fn messages(&self, _from: HostId, batch: Vec<Envelope>) {
//!         let _ = self.0.send(batch);
//!     }
//!     fn unreachable(&self, _to: HostId, _replicas: Vec<(GroupId, ReplicaId)>) {}
//!     fn hello(&self, _hello: PeerHello) -> Result<(), HelloRefusal> {
//!         Ok(()) // A real host compares with what it recorded of this peer.
//!     }
//!     fn snapshot_offered(
//!         &self,
//!         _from: HostId,
//!         _offer: SnapshotOffer,
//!     ) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal> {
//!         Err(SnapshotRefusal::UnknownReplica)
//!     }
//!     fn event(&self, _event: TransportEvent) {}
//! }
//!
//! /// Every host of this example listens at the same place: there is only one to dial.
//! struct At(SocketAddr);
//!
//! impl Addresses for At {
//!     fn address(&self, _host: HostId) -> Option<SocketAddr> {
//!         Some(self.0)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let certs = dir.path();
//! # certificates(certs);
//! let runtime = tokio::runtime::Runtime::new()?;
//! let start = |host: u64, dial: SocketAddr| {
//!     let (inbox, arrived) = mpsc::channel();
//!     let identity = TransportIdentity::from_pem_files(
//!         certs.join(format!("host-{host}.pem")),
//!         certs.join(format!("host-{host}.key")),
//!         certs.join("ca.pem"),
//!     )?;
//!     let config = TransportConfig {
//!         host: HostId::new(host).expect("an id"),
//!         deployment: "demo".into(),
//!         listen: "127.0.0.1:0".parse().expect("an address"),
//!         uuid: [0; 16],
//!         open_count: 1,
//!         advertised: Default::default(),
//!         limits: Limits::default(),
//!     };
//!     let (book, inbox) = (Arc::new(At(dial)), Arc::new(Inbox(inbox)));
//!     let transport = Transport::start(runtime.handle(), config, identity, book, inbox)?;
//!     Ok::<_, TransportError>((transport, arrived))
//! };
//! let (two, arrived) = start(2, "127.0.0.1:1".parse()?)?;
//! let (one, _) = start(1, two.local_addr().expect("QUIC has an address"))?;
//!
//! let hello = Envelope {
//!     group: GroupId::new(7).expect("an id"),
//!     epoch: 0,
//!     message: Message {
//!         from: ReplicaId::new(1).expect("an id"),
//!         to: ReplicaId::new(2).expect("an id"),
//!         term: Term::new(1),
//!         body: Body::TimeoutNow,
//!     },
//! };
//! one.send(HostId::new(2).expect("an id"), vec![hello.clone()]);
//! assert_eq!(arrived.recv()?, [hello]);
//! # Ok(())
//! # }
//! ```
//!
//! # The three types to know
//!
//! - [`Transport`]: send, stream, close.
//! - [`Delivery`]: what arrives, and every decision that is not the transport's.
//! - [`TransportIdentity`]: certificate, key and trusted authorities.
//!
//! [`LoopbackMesh`] joins transports in memory. [`Refusal`] lists why a peer is turned away.
//!
//! # Features
//!
//! `aws-lc-rs` (default) and `ring` choose the crypto provider; with both, aws-lc-rs is used.
#![forbid(unsafe_code)]

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("raft-transport needs a crypto provider: feature `aws-lc-rs` or `ring`");

mod config;
mod delivery;
mod endpoint;
mod peer;

mod backoff;
mod error;
mod frame;
mod hello;
mod message_stream;
mod queue;
mod reset;
mod snapshot_stream;
mod stats;
mod tls;

mod byte_string;
mod loopback;

pub use config::{ConfigError, Limits, TransportConfig};
pub use delivery::{
    Addresses, BoxError, Delivery, HelloRefusal, PeerHello, SnapshotAbort, SnapshotFailure,
    SnapshotOffer, SnapshotOutcome, SnapshotRefusal, SnapshotSink, SnapshotSource, TransportEvent,
};
pub use endpoint::{SnapshotDone, Transport};
pub use error::{ConnectionEnd, Refusal, RefusalKind, TransportError};
pub use loopback::LoopbackMesh;
pub use stats::TransportStats;
pub use tls::TransportIdentity;
