//! Each transition of the core as a value, so that what it did can be checked against a
//! specification.
//!
//! The transitions are those of etcd-raft's trace specification (`tla/Traceetcdraft.tla`), noted
//! where etcd-raft notes them (`state_trace.go`). `tests/trace.rs` writes them as its events.

use alloc::vec::Vec;

use crate::membership::{Membership, MembershipChange};
use crate::message::Message;
use crate::raft::Raft;
use crate::ready::Role;
use crate::types::{HardState, Index, ReplicaId};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transition {
    /// The replica was made from what its disk held.
    Init,
    /// It follows.
    BecomeFollower,
    /// It stands for election.
    BecomeCandidate,
    /// It leads.
    BecomeLeader,
    /// As leader it counted entries as committed.
    Commit,
    /// As leader it is about to append a command.
    Replicate,
    /// As leader it is about to append a membership change.
    ChangeMembership(MembershipChange),
    /// It is about to take on a membership.
    ApplyMembership(Membership),
    /// It handed out what is to be done.
    Ready,
    /// It says something, to another or to itself. What has to wait for the disk is said here too.
    Send(Message),
    /// It is about to act on something that was said.
    Receive(Message),
}

/// A transition, and the state right then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// Whose.
    pub replica: ReplicaId,
    /// What happened.
    pub transition: Transition,
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The role.
    pub role: Role,
    /// The last entry's index.
    pub last: Index,
    /// The voters, ascending; of a joint membership the incoming ones.
    pub voters: Vec<ReplicaId>,
    /// The outgoing voters of a joint membership.
    pub voters_outgoing: Vec<ReplicaId>,
    /// What a leader knows to be durable of its own log, and the index behind it that comes next.
    pub own_progress: Option<(Index, Index)>,
}

/// How many transitions are kept.
pub const TRACE_EVENTS_MAX: usize = 1 << 16;

impl Raft {
    /// The transitions since the last call, oldest first: the latest [`TRACE_EVENTS_MAX`]. For a
    /// trace without a gap call this after each call that changes something.
    pub fn take_trace(&mut self) -> Vec<TraceEvent> {
        core::mem::take(&mut self.trace).into()
    }

    pub(crate) fn note(&mut self, transition: Transition) {
        let own = self.peer(self.config.id).map(|own| &own.progress);
        let own_progress = own.map(|own| (own.matched, own.next));
        if self.trace.len() >= TRACE_EVENTS_MAX {
            self.trace.pop_front();
        }
        self.trace.push_back(TraceEvent {
            replica: self.config.id,
            transition,
            hard_state: self.hard_state(),
            role: self.role(),
            last: self.log.last(),
            voters: self.membership.voters.iter().copied().collect(),
            voters_outgoing: self.membership.voters_outgoing.iter().copied().collect(),
            own_progress,
        });
    }
}
