//! Each transition of the core as a value, for checking against a specification.

use crate::message::{Body, Message};
use crate::raft::Raft;
use crate::types::{ReplicaId, Term};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    BecomeFollower,
    BecomeCandidate,
    BecomeLeader,
    ApplyMembership,
    Replicate,
    Commit,
    Ready,
}

impl Raft {
    #[inline]
    pub(crate) const fn trace(&mut self, _transition: Transition) {}

    #[inline]
    pub(crate) const fn trace_received(&mut self, _from: ReplicaId, _term: Term, _body: &Body) {}

    #[inline]
    pub(crate) const fn trace_sent(&mut self, _message: &Message) {}
}
