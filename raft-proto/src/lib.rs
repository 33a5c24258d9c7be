//! The pure protocol core of a multi-group Raft library: types, codec and state machine.
//!
//! It reads no clock, draws no randomness but from a seed, starts no thread, takes no lock and does
//! no I/O. Whoever drives it tells it what happened, and is told what to do. So it runs as well
//! over a real disk and network as over simulated ones, where the same seed gives the same run.
//! It is no server: the log, the snapshots, the workers and the network are crates beside this one,
//! or yours.
//!
//! ```text
//!   propose, read_index,           +--------------------+           entries, hard_state, snapshot
//!   transfer_leader, campaign ---> |                    | --------> to the disk
//!   handle_message             --> |        Raft        | --------> messages: to peers, now
//!   set_tick, advance_to       --> |  one replica of    | --------> messages_after_sync: then
//!   persisted, applied,            |  one group         | --------> committed: to the state machine
//!   entries_fetched            --> |                    | --------> reads, fetch, soft_state
//!                                  +--------------------+  Ready
//! ```
//!
//! # A whole cluster
//!
//! Three replicas in memory, in one thread. This is `examples/three.rs`.
//!
//! ```
#![doc = include_str!("../examples/three.rs")]
//! ```
//!
//! # The life of a proposal
//!
//! ```text
//!  leader                                    follower
//!  ------                                    --------
//!  propose: one buffer of frames, with
//!    index, term, checksum
//!  poll_ready:
//!    entries ----------> disk
//!    messages: Append ------------------>  handle_message: does `prev` match?
//!      (at once, beside the own write)       drop what contradicts, append the rest
//!    own AppendResponse: held                poll_ready:
//!                                              entries ----------> disk
//!  persisted: counts itself                    messages_after_sync: AppendResponse, held
//!                                            persisted: the driver releases it
//!  handle_message <-----------------------------'
//!    a majority holds it, in this term:
//!    commit moves on
//!  poll_ready:
//!    committed --------> state machine
//!    messages: Append with the commit ---->  commit moves on
//!  applied                                   committed ----------> state machine, applied
//! ```
//!
//! The frame is encoded and summed once, by the leader: those bytes are what every log stores and
//! every message carries ([`Batch`]). Nothing is acknowledged before it is durable: what has to wait
//! for a sync comes as [`AfterSync`]; to take it out needs a [`Durable`], which only [`Raft::persisted`]
//! gives.
//!
//! # Three types to know
//!
//! - [`Raft`] is a replica's state machine. Its documentation gives the order of calls.
//! - [`Ready`] is what it wants done.
//! - [`Message`] is what replicas say to each other; [`Envelope`] gives it a group and bytes.
//!
//! # Where to go next
//!
//! - [`protocol`] is the page of the protocol: states, messages, what waits for what, why a witness
//!   is safe.
//! - [`Config`] lists all that can be set, with defaults and bounds.
//! - [`Raft::propose_membership`] and [`Membership`]: who belongs to a group, and how that changes.
//! - [`Raft::read_index`]: reads that see every write acknowledged before them.
//! - [`Refused`], [`ProposeError`]: why something was not done. [`Raft::why_no_leader`] says what
//!   a replica without a leader waits for.
//!
//! # Features
//!
//! - `std` (default): the checksum by hardware. Without it the crate is `no_std` with `alloc`.
//! - `trace`: each transition as a value (`TraceEvent`), in the words of etcd-raft's TLA+ trace
//!   specification. Without it none of that code is there. `cargo xtask trace` writes one.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

/// Notes a transition; without the feature `trace` it is no code at all.
macro_rules! trace {
    ($raft:expr, $transition:ident $(($value:expr))?) => {
        #[cfg(feature = "trace")]
        $raft.note(crate::trace::Transition::$transition $(($value))?);
    };
}

mod check;
mod checksum;
mod chunk;
mod config;
mod election;
mod entries;
mod entry;
mod error;
mod inflight;
mod invariants;
mod membership;
mod message;
mod output;
mod progress;
mod quiesce;
mod quorum;
mod raft;
mod raft_log;
mod read_index;
mod ready;
mod replication;
mod roles;
mod snapshots;
mod status;
#[cfg(feature = "__steps")]
mod steps;
mod switch;
#[cfg(feature = "trace")]
mod trace;
mod types;

#[doc = include_str!("../PROTOCOL.md")]
pub mod protocol {}

pub use checksum::crc32c_append;
pub use config::{Config, ConfigError, StartError};
pub use entries::Entries;
pub use entry::{
    Batch, BatchBuilder, ENTRY_HEADER_BYTES, EntryKind, EntryRef, FrameError, Iter as BatchIter,
    Session,
};
pub use error::{DropReason, ProposeError, Refused, ViolationKind};
pub use membership::{
    Change, ChangeKind, Changed, MEMBERSHIP_BYTES_MAX, MEMBERSHIP_REPLICAS_MAX, Membership,
    MembershipChange, MembershipDecodeError, MembershipError, Transition,
};
pub use message::{
    Body, DecodeError, ENVELOPE_HEADER_BYTES, Envelope, Forwarded, Message, SnapshotMeta,
};
pub use progress::{PeerState, PeerStatus};
pub use quorum::VoteResult;
pub use raft::Raft;
pub use ready::{
    AfterSync, Dropped, Durable, Fetch, Fetched, ReadState, Ready, Restored, RestoredError, Role,
    SoftState, SubmissionId, TermRun, Underway,
};
pub use replication::{COMMANDS_BYTES_MAX, Proposal, Proposed};
pub use snapshots::SnapshotStatus;
pub use status::WhyNoLeader;
#[cfg(feature = "trace")]
pub use trace::{TRACE_EVENTS_MAX, TraceEvent, Transition as TraceTransition};
pub use types::{EntryId, GroupId, HardState, HostId, Index, InvalidId, ReplicaId, Term, Time};
