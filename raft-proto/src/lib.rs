//! The pure protocol core of a multi-group Raft library: types, codec and state machine.
//!
//! No clock, no randomness but a seed, no thread, no lock and no I/O.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

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
mod status;
mod trace;
mod types;

pub use checksum::crc32c_append;
pub use config::{Config, ConfigError};
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
    AfterSync, Fetch, Fetched, ReadState, Ready, Restored, Role, SoftState, SubmissionId, TermRun,
};
pub use replication::{Proposal, Proposed, SnapshotStatus};
pub use status::WhyNoLeader;
pub use types::{EntryId, GroupId, HardState, HostId, Index, InvalidId, ReplicaId, Term, Time};
