//! What the messages of a whole run may not contradict: one grant per term, one leader per term.

use std::collections::BTreeMap;

use raft_proto::{Body, Envelope, GroupId, ReplicaId, Term};

/// Every vote given and every leadership claimed, over crashes and restarts.
#[derive(Debug, Default)]
pub struct Promises {
    /// For whom a replica voted in a term. A vote that was sent for is a vote for oneself.
    votes: BTreeMap<(GroupId, Term, ReplicaId), ReplicaId>,
    leaders: BTreeMap<(GroupId, Term), ReplicaId>,
    pub violations: Vec<String>,
}

impl Promises {
    /// Notes a message as it leaves.
    pub fn note(&mut self, envelope: &Envelope) {
        let (group, message) = (envelope.group, &envelope.message);
        let (from, to, term) = (message.from, message.to, message.term);
        match &message.body {
            Body::Vote { .. } => self.vote(group, term, from, from),
            Body::VoteResponse { is_rejected: false } => self.vote(group, term, from, to),
            Body::Append { .. } | Body::Heartbeat { .. } => {
                let leader = *self.leaders.entry((group, term)).or_insert(from);
                if leader != from {
                    self.violations.push(format!(
                        "group {group} term {term}: replicas {leader} and {from} both lead"
                    ));
                }
            }
            _ => {}
        }
    }

    fn vote(&mut self, group: GroupId, term: Term, voter: ReplicaId, candidate: ReplicaId) {
        let first = *self.votes.entry((group, term, voter)).or_insert(candidate);
        if first != candidate {
            self.violations.push(format!(
                "group {group} term {term}: replica {voter} voted for {first} and {candidate}"
            ));
        }
    }

    /// How many votes were given.
    pub fn votes(&self) -> u64 {
        self.votes.len() as u64
    }
}
