//! A follower's log as its leader sees it, and all of them side by side.
//!
//! ```text
//!                 +-----------+   accepted    +-------------+
//!   new leader -> |   Probe   | ------------> |  Replicate  |
//!                 +-----------+ <------------ +-------------+
//!                   |       ^     rejected, unreachable
//!      log compacted|       |
//!                   v       | snapshot reported, or accepted past the log's first index
//!                 +-----------+
//!                 | Snapshot  |
//!                 +-----------+
//! ```
//!
//! Source: thesis §3.5 (log replication), §10.2 (pipelining); etcd `tracker/progress.go`.

use alloc::vec::Vec;
use core::fmt;

use crate::inflight::{Inflight, InflightMax};
use crate::membership::Membership;
use crate::quorum::{VoteResult, both_reached, majority_reached, majority_vote};
use crate::types::{Index, ReplicaId};

/// What the leader may send. Each variant holds what only that state needs.
#[derive(Debug)]
pub(crate) enum ProgressState {
    /// The match point is unknown: one append at a time until a reply finds it.
    Probe { is_paused: bool },
    /// The match point is known: stream appends up to the window.
    Replicate { inflight: Inflight, is_paused: bool },
    /// The follower needs entries the log no longer has: wait for the snapshot at `pending`.
    Snapshot { pending: Index },
}

/// How far one follower is known to have replicated, and how to feed it next.
///
/// Invariant: `matched < next`.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The highest index known to match the leader's log.
    pub(crate) matched: Index,
    /// The index of the next entry to send. Entries in `(matched, next)` are in flight.
    pub(crate) next: Index,
    /// The commit index last sent.
    sent_commit: Index,
    pub(crate) state: ProgressState,
    /// Whether it was heard of since the last check of the quorum.
    pub(crate) is_recent_active: bool,
    /// The entry that made it a member during this leadership; 0 if it was one before. All up to
    /// there is committed, so that a match below counts for nothing: it may be what one acknowledged
    /// that bore this id before, and is taken back if the member refuses it (hazard 27).
    admitted: Index,
}

impl Progress {
    pub(crate) const fn new(next: Index) -> Self {
        Self {
            matched: Index::ZERO,
            next,
            sent_commit: Index::ZERO,
            state: ProgressState::Probe { is_paused: false },
            is_recent_active: false,
            admitted: Index::ZERO,
        }
    }

    /// Of a member that the entry at `admitted` adds. It has time to show itself before it counts as
    /// lost.
    fn admitted(next: Index, admitted: Index) -> Self {
        Self {
            is_recent_active: true,
            admitted,
            ..Self::new(next)
        }
    }

    /// The index before the next entry to send.
    pub(crate) const fn prev(&self) -> Index {
        match self.next.previous() {
            Some(prev) => prev,
            None => Index::ZERO,
        }
    }

    /// The highest index that the member itself is known to match: not one by its name alone.
    pub(crate) fn vouched(&self) -> Index {
        if self.matched < self.admitted {
            Index::ZERO
        } else {
            self.matched
        }
    }

    pub(crate) const fn is_probe(&self) -> bool {
        matches!(self.state, ProgressState::Probe { .. })
    }

    pub(crate) const fn is_replicate(&self) -> bool {
        matches!(self.state, ProgressState::Replicate { .. })
    }

    pub(crate) const fn is_snapshot(&self) -> bool {
        matches!(self.state, ProgressState::Snapshot { .. })
    }

    /// Looks for the match point from `matched`, or from behind the snapshot that was sent.
    pub(crate) fn become_probe(&mut self) {
        self.next = match self.state {
            ProgressState::Snapshot { pending } => self.matched.max(pending).next(),
            _ => self.matched.next(),
        };
        self.state = ProgressState::Probe { is_paused: false };
        self.sent_commit = self.sent_commit.min(self.prev());
    }

    pub(crate) fn become_replicate(&mut self) {
        self.next = self.matched.next();
        self.state = ProgressState::Replicate {
            inflight: Inflight::default(),
            is_paused: false,
        };
    }

    pub(crate) fn become_snapshot(&mut self, pending: Index) {
        self.state = ProgressState::Snapshot { pending };
        self.next = pending.next();
        self.sent_commit = pending;
    }

    pub(crate) const fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe { is_paused } | ProgressState::Replicate { is_paused, .. } => {
                is_paused
            }
            ProgressState::Snapshot { .. } => true,
        }
    }

    pub(crate) const fn set_paused(&mut self, paused: bool) {
        match &mut self.state {
            ProgressState::Probe { is_paused } | ProgressState::Replicate { is_paused, .. } => {
                *is_paused = paused;
            }
            ProgressState::Snapshot { .. } => {}
        }
    }

    pub(crate) fn is_window_full(&self, max: InflightMax) -> bool {
        matches!(&self.state, ProgressState::Replicate { inflight, .. } if inflight.is_full(max))
    }

    /// Records that the follower holds every entry up to `acked`, inclusive.
    ///
    /// Returns whether this was news; a reordered or repeated reply is not.
    #[inline]
    pub(crate) fn on_accepted(&mut self, acked: Index) -> bool {
        if acked <= self.matched {
            return false;
        }
        self.matched = acked;
        self.next = self.next.max(acked.next());
        self.set_paused(false);
        assert!(self.matched < self.next);
        true
    }

    /// Records that the follower refused entries behind `rejected`, and that its log may match up
    /// to `hint`. Returns whether this was news.
    pub(crate) fn on_rejected(&mut self, rejected: Index, hint: Index) -> bool {
        if rejected <= self.matched && self.matched < self.admitted {
            // The answer to the next heartbeat goes on from here.
            self.matched = Index::ZERO;
            self.next = rejected.min(hint.next()).max(Index::new(1));
            self.sent_commit = Index::ZERO;
            self.state = ProgressState::Probe { is_paused: true };
            return true;
        }
        if self.is_replicate() {
            if rejected <= self.matched {
                return false;
            }
            self.next = self.matched.next();
            self.sent_commit = self.sent_commit.min(self.prev());
            return true;
        }
        // A probe is one message: a reply to any other is old. Who refuses what it acknowledged has
        // forgotten it, or speaks out of turn; to ask again at once would never end.
        if self.prev() != rejected || rejected <= self.matched {
            return false;
        }
        self.next = rejected.min(hint.next()).max(self.matched.next());
        self.sent_commit = self.sent_commit.min(self.prev());
        self.set_paused(false);
        true
    }

    /// Notes an append whose last entry is `last`, of `bytes`; `None` for one without entries.
    #[inline]
    pub(crate) fn on_sent(&mut self, last: Option<Index>, bytes: usize, max: InflightMax) {
        match &mut self.state {
            ProgressState::Probe { is_paused } => *is_paused |= last.is_some(),
            ProgressState::Replicate {
                inflight,
                is_paused,
            } => {
                if let Some(last) = last {
                    self.next = last.next();
                    inflight.add(last, bytes);
                }
                *is_paused = inflight.is_full(max);
            }
            ProgressState::Snapshot { .. } => unreachable!("a follower in Snapshot is paused"),
        }
    }

    pub(crate) const fn on_sent_commit(&mut self, commit: Index) {
        self.sent_commit = commit;
    }

    /// Whether telling `commit` would let the follower commit more than it was told of.
    pub(crate) fn can_bump_commit(&self, commit: Index) -> bool {
        commit > self.sent_commit && self.sent_commit < self.prev()
    }

    #[inline]
    pub(crate) fn free_inflight(&mut self, acked: Index) {
        if let ProgressState::Replicate { inflight, .. } = &mut self.state {
            inflight.free_up_to(acked);
        }
    }
}

/// A replica of the group, as the membership has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) id: ReplicaId,
    pub(crate) is_incoming: bool,
    pub(crate) is_outgoing: bool,
    pub(crate) is_learner: bool,
    pub(crate) is_witness: bool,
}

impl Member {
    pub(crate) const fn is_voter(&self) -> bool {
        self.is_incoming || self.is_outgoing
    }
}

/// All replicas of the membership, by ascending id.
///
/// A sorted vector: groups are small, and every pass goes over all of it.
#[derive(Debug, Default)]
pub(crate) struct Members(Vec<Member>);

impl Members {
    pub(crate) fn of(membership: &Membership) -> Self {
        let member = |id| Member {
            id,
            is_incoming: membership.voters.contains(&id),
            is_outgoing: membership.voters_outgoing.contains(&id),
            is_learner: membership.learners.contains(&id),
            is_witness: membership.is_witness(id),
        };
        Self(membership.replicas().into_iter().map(member).collect())
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) const fn memory_bytes(&self) -> usize {
        self.0.len() * size_of::<Member>()
    }

    pub(crate) fn at(&self, at: usize) -> &Member {
        &self.0[at]
    }

    pub(crate) fn get(&self, id: ReplicaId) -> Option<&Member> {
        self.0.iter().find(|member| member.id == id)
    }

    pub(crate) fn iter(&self) -> core::slice::Iter<'_, Member> {
        self.0.iter()
    }

    pub(crate) fn vote_result(&self, vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
        joint_vote(self.iter().map(|member| (*member, vote(member.id))))
    }
}

/// The outcome of a vote among the voters of both halves of a membership.
fn joint_vote(votes: impl Iterator<Item = (Member, Option<bool>)> + Clone) -> VoteResult {
    let among = |is_one: fn(&Member) -> bool| {
        let votes = votes.clone().filter(move |(member, _)| is_one(member));
        majority_vote(votes.map(|(_, vote)| vote))
    };
    among(|member| member.is_incoming).and(among(|member| member.is_outgoing))
}

/// A member as its leader sees it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) member: Member,
    pub(crate) progress: Progress,
    /// The latest heartbeat round it confirmed.
    pub(crate) acked_round: u64,
}

/// All members as their leader sees them, by ascending id.
#[derive(Debug)]
pub(crate) struct Peers(Vec<Peer>);

impl Peers {
    /// Of a leader that begins: of nobody is known how much it holds.
    pub(crate) fn new(members: &Members, next: Index) -> Self {
        let peer = |member: &Member| Peer {
            member: *member,
            progress: Progress::new(next),
            acked_round: 0,
        };
        Self(members.iter().map(peer).collect())
    }

    /// Takes on `members`: new ones, and those in `renewed`, begin at `next`: the entry at
    /// `admitted` adds them.
    pub(crate) fn switch(
        &mut self,
        members: &Members,
        renewed: &[ReplicaId],
        next: Index,
        admitted: Index,
    ) {
        let mut before = core::mem::take(&mut self.0);
        for &member in members.iter() {
            let known = before
                .iter()
                .position(|peer| peer.member.id == member.id)
                .map(|at| before.swap_remove(at))
                .filter(|_| !renewed.contains(&member.id));
            let peer = known.unwrap_or_else(|| Peer {
                member,
                progress: Progress::admitted(next, admitted),
                acked_round: 0,
            });
            self.0.push(Peer { member, ..peer });
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let inflight = |peer: &Peer| match &peer.progress.state {
            ProgressState::Replicate { inflight, .. } => inflight.memory_bytes(),
            _ => 0,
        };
        let held = |peer| size_of::<Peer>() + inflight(peer);
        self.0.iter().map(held).sum()
    }

    pub(crate) fn peer(&self, id: ReplicaId) -> Option<&Peer> {
        self.0.iter().find(|peer| peer.member.id == id)
    }

    pub(crate) fn peer_mut(&mut self, id: ReplicaId) -> Option<&mut Peer> {
        self.0.iter_mut().find(|peer| peer.member.id == id)
    }

    pub(crate) fn iter(&self) -> core::slice::Iter<'_, Peer> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> core::slice::IterMut<'_, Peer> {
        self.0.iter_mut()
    }

    fn incoming(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.0.iter().filter(|peer| peer.member.is_incoming)
    }

    fn outgoing(&self) -> impl Iterator<Item = &Peer> + Clone {
        self.0.iter().filter(|peer| peer.member.is_outgoing)
    }

    /// The highest index that a quorum holds. Source: thesis §3.5, §4.3.
    pub(crate) fn committed(&self) -> Index {
        both_reached(
            majority_reached(self.incoming().map(|peer| peer.progress.matched)),
            majority_reached(self.outgoing().map(|peer| peer.progress.matched)),
        )
    }

    /// The latest heartbeat round that a quorum confirmed; `me` confirms all up to `own`.
    pub(crate) fn confirmed_round(&self, me: ReplicaId, own: u64) -> u64 {
        let acked = |peer: &Peer| {
            let is_me = peer.member.id == me;
            Index::new(if is_me { own } else { peer.acked_round })
        };
        both_reached(
            majority_reached(self.incoming().map(acked)),
            majority_reached(self.outgoing().map(acked)),
        )
        .get()
        .min(own)
    }

    /// Whether a quorum was heard of since the last check.
    pub(crate) fn is_quorum_active(&self) -> bool {
        let active = |peer: &Peer| (peer.member, Some(peer.progress.is_recent_active));
        joint_vote(self.0.iter().map(active)) == VoteResult::Won
    }
}

/// How an append stream to a follower stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Looking for the point up to which its log matches.
    Probe,
    /// Streaming.
    Replicate {
        /// Appends in flight.
        inflight: usize,
        /// Whether the window is full.
        is_full: bool,
    },
    /// Waiting for a snapshot to arrive.
    Snapshot {
        /// The snapshot's index.
        pending: Index,
    },
}

/// A member of the group as the leader sees it; for status pages and tests.
///
/// Shown as etcd-raft shows its progress: `StateReplicate match=4 next=5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The replica.
    pub id: ReplicaId,
    /// The highest index known to match.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// How the stream stands.
    pub state: PeerState,
    /// Whether nothing may be sent now.
    pub is_paused: bool,
    /// Whether it was heard of since the last check of the quorum.
    pub is_recent_active: bool,
    /// Whether it is a learner.
    pub is_learner: bool,
    /// Whether it is a witness.
    pub is_witness: bool,
}

impl PeerStatus {
    pub(crate) fn of(peer: &Peer, max: InflightMax) -> Self {
        let progress = &peer.progress;
        Self {
            id: peer.member.id,
            matched: progress.matched,
            next: progress.next,
            state: match &progress.state {
                ProgressState::Probe { .. } => PeerState::Probe,
                ProgressState::Replicate { inflight, .. } => PeerState::Replicate {
                    inflight: inflight.count(),
                    is_full: inflight.is_full(max),
                },
                ProgressState::Snapshot { pending } => PeerState::Snapshot { pending: *pending },
            },
            is_paused: progress.is_paused(),
            is_recent_active: progress.is_recent_active,
            is_learner: peer.member.is_learner,
            is_witness: peer.member.is_witness,
        }
    }
}

impl fmt::Display for PeerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            PeerState::Probe => "StateProbe",
            PeerState::Replicate { .. } => "StateReplicate",
            PeerState::Snapshot { .. } => "StateSnapshot",
        };
        write!(f, "{state} match={} next={}", self.matched, self.next)?;
        if self.is_learner {
            f.write_str(" learner")?;
        }
        if self.is_witness {
            f.write_str(" witness")?;
        }
        if self.is_paused {
            f.write_str(" paused")?;
        }
        if let PeerState::Snapshot { pending } = self.state
            && pending > Index::ZERO
        {
            write!(f, " pendingSnap={pending}")?;
        }
        if !self.is_recent_active {
            f.write_str(" inactive")?;
        }
        if let PeerState::Replicate { inflight, is_full } = self.state
            && inflight > 0
        {
            write!(
                f,
                " inflight={inflight}{}",
                if is_full { "[full]" } else { "" }
            )?;
        }
        Ok(())
    }
}
