//! What a replica holds in one role and in no other.
//!
//! Source: thesis §3.3, Figure 3.2 (volatile state).

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::chunk::Chunk;
use crate::error::DropReason;
use crate::output::Outbox;
use crate::progress::{Members, Peers};
use crate::read_index::{ForwardedRead, Reads};
use crate::ready::{Role, Underway};
use crate::types::{Index, ReplicaId};

/// The role, with what only it needs.
#[derive(Debug)]
pub(crate) enum State {
    Follower(Follower),
    PreCandidate(Votes),
    Candidate(Votes),
    /// Large: boxed, since most replicas follow.
    Leader(Box<Leader>),
}

impl State {
    pub(crate) const fn role(&self) -> Role {
        match self {
            Self::Follower(_) => Role::Follower,
            Self::PreCandidate(_) => Role::PreCandidate,
            Self::Candidate(_) => Role::Candidate,
            Self::Leader(_) => Role::Leader,
        }
    }

    /// Tells what was under way in a role that ends. A transfer that ends with its term may have
    /// come about: who leads the next one tells.
    pub(crate) fn drop(self, is_term_over: bool, out: &mut Outbox) {
        match self {
            Self::Follower(follower) => {
                for read in follower.forwarded.into_values() {
                    read.drop(out);
                }
                if follower.snapshot_request.is_some() {
                    out.drop(Underway::SnapshotRequest, DropReason::LeaderChanged);
                }
            }
            Self::PreCandidate(_) | Self::Candidate(_) => {}
            Self::Leader(leader) => {
                leader.reads.drop(out);
                for from in leader.snapshot_requests.into_keys() {
                    let what = Underway::SnapshotRequestOf { from };
                    out.drop(what, DropReason::NotLeader);
                }
                if let Some(to) = leader.transferee.filter(|_| !is_term_over) {
                    out.drop(Underway::Transfer { to }, DropReason::NotLeader);
                }
            }
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Follower(follower) => {
                follower.forwarded.len() * size_of::<(u64, ForwardedRead)>()
            }
            Self::PreCandidate(votes) | Self::Candidate(votes) => {
                votes.0.len() * size_of::<(ReplicaId, bool)>()
            }
            Self::Leader(leader) => size_of::<Leader>() + leader.memory_bytes(),
        }
    }
}

/// A follower's.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    /// The leader it knows.
    pub(crate) leader: Option<ReplicaId>,
    /// The leader of this term that it was told to forget.
    pub(crate) forgotten: Option<ReplicaId>,
    /// Whether the group is quiet here.
    pub(crate) is_quiet: bool,
    /// The request for a snapshot that is not answered yet.
    pub(crate) snapshot_request: Option<u64>,
    /// Reads that were passed on to the leader, by this replica's number for them.
    pub(crate) forwarded: BTreeMap<u64, ForwardedRead>,
}

/// What the others answered to one who stands for election, or asks whether it should.
#[derive(Debug, Default)]
pub(crate) struct Votes(Vec<(ReplicaId, bool)>);

impl Votes {
    /// Notes an answer; the first one counts.
    pub(crate) fn note(&mut self, from: ReplicaId, is_granted: bool) {
        if self.of(from).is_none() {
            self.0.push((from, is_granted));
        }
    }

    pub(crate) fn of(&self, id: ReplicaId) -> Option<bool> {
        let answer = self.0.iter().find(|&&(from, _)| from == id);
        answer.map(|&(_, is_granted)| is_granted)
    }

    /// Forgets what was said by who is no member any more, or is a member anew.
    pub(crate) fn switch(&mut self, members: &Members, renewed: &[ReplicaId]) {
        self.0
            .retain(|&(id, _)| members.get(id).is_some() && !renewed.contains(&id));
    }
}

/// A leader's.
#[derive(Debug)]
pub(crate) struct Leader {
    /// All members, as their leader sees them.
    pub(crate) peers: Peers,
    /// To whom the leadership is being handed.
    pub(crate) transferee: Option<ReplicaId>,
    /// The tick at which that began.
    pub(crate) transfer_from: u64,
    /// At or past the last membership entry that may not be done with.
    pub(crate) pending_change: Index,
    /// The first entry of this leadership.
    pub(crate) led_from: Index,
    pub(crate) uncommitted_bytes: usize,
    /// Where each append of this leadership ends, and how many command bytes it holds.
    pub(crate) uncommitted: VecDeque<(Index, usize)>,
    /// Where it encodes its entries.
    pub(crate) chunk: Chunk,
    /// What followers asked for and is not there yet; at most one each.
    pub(crate) snapshot_requests: BTreeMap<ReplicaId, (Index, u64)>,
    pub(crate) reads: Reads,
    /// The tick of the last heartbeat.
    pub(crate) heartbeat_from: u64,
    /// The tick of the first transfer that put off the next check of the quorum.
    pub(crate) check_put_off_at: Option<u64>,
    /// Whether the group is quiet here.
    pub(crate) is_quiet: bool,
    /// The tick of the last work.
    pub(crate) worked_at: u64,
}

impl Leader {
    fn memory_bytes(&self) -> usize {
        self.peers.memory_bytes()
            + self.chunk.memory_bytes()
            + self.reads.memory_bytes()
            + self.uncommitted.len() * size_of::<(Index, usize)>()
            + self.snapshot_requests.len() * size_of::<(ReplicaId, (Index, u64))>()
    }
}
