//! The pure protocol core of a multi-group Raft library: types, codec and state machine.
//!
//! No clock, no randomness but a seed, no thread, no lock and no I/O.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod checksum;
mod config;
mod entry;
mod membership;
mod message;
mod progress;
mod raft;
mod raft_log;
mod ready;
mod types;

pub use checksum::crc32c_append;
pub use entry::{
    Batch, BatchBuilder, ENTRY_HEADER_BYTES, EntryKind, EntryRef, FrameError, Iter as BatchIter,
    Session,
};
pub use types::{EntryId, GroupId, HardState, HostId, Index, InvalidId, ReplicaId, Term, Time};

pub use config::{Config, ConfigError};
pub use membership::{
    Change, ChangeKind, MEMBERSHIP_BYTES_MAX, MEMBERSHIP_REPLICAS_MAX, Membership,
    MembershipChange, MembershipDecodeError, MembershipError, Transition,
};
pub use message::{Body, DecodeError, ENVELOPE_HEADER_BYTES, Envelope, Message, SnapshotMeta};
pub use raft::{Proposal, ProposeError, Proposed, Raft, Refused, SnapshotStatus};
pub use ready::{
    AfterSync, Fetch, Fetched, ReadState, Ready, Restored, Role, SoftState, SubmissionId, TermRun,
};
