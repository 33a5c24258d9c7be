//! The state machine of one replica.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

use crate::config::Config;
use crate::entry::{Batch, BatchBuilder, EntryKind, Session};
use crate::membership::{Membership, MembershipChange, MembershipError, VoteResult};
use crate::message::{Body, Message, SnapshotMeta};
use crate::progress::{Progress, ProgressState};
use crate::raft_log::RaftLog;
use crate::ready::{
    AfterSync, Fetch, Fetched, ReadState, Ready, Restored, Role, SoftState, SubmissionId,
};
use crate::types::{EntryId, HardState, Index, ReplicaId, Term};

/// A command to propose.
#[derive(Clone, Copy, Debug)]
pub struct Proposal<'a> {
    /// What kind of entry.
    pub kind: EntryKind,
    /// The client session, if any.
    pub session: Option<Session>,
    /// The command.
    pub payload: &'a [u8],
}

/// Where proposals went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The first one's index.
    pub first: Index,
    /// How many.
    pub count: usize,
    /// Their term.
    pub term: Term,
}

/// Why a proposal was not taken. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another replica leads, or none.
    #[error("not the leader")]
    NotLeader {
        /// The leader, when known.
        leader: Option<ReplicaId>,
    },
    /// The leadership is being handed over; retry.
    #[error("a leadership transfer is in progress")]
    TransferInProgress,
    /// Too many uncommitted bytes; retry when some are committed.
    #[error("too many uncommitted bytes")]
    UncommittedFull,
    /// This replica is no longer a member.
    #[error("this replica was removed")]
    Removed,
    /// A membership change is pending, or nothing of this term is committed yet; retry.
    #[error("a membership change is pending, or the term has no committed entry yet")]
    ChangePending,
    /// The change makes no sense now.
    #[error(transparent)]
    Change(#[from] MembershipError),
}

/// What became of a message that was not acted on. The state is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Nothing is wrong: it is old, or not for now.
    #[error("dropped: {0}")]
    Dropped(&'static str),
    /// It claims what cannot be.
    #[error("violation by replica {from}: {what}")]
    Violation {
        /// The sender.
        from: ReplicaId,
        /// What it claims.
        what: &'static str,
    },
}

/// How a snapshot transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// The follower has it.
    Finished,
    /// It has not.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Campaign {
    PreElection,
    Election,
    Transfer,
}

#[derive(Debug)]
struct PendingRead {
    from: Option<ReplicaId>,
    user: u64,
}

#[derive(Debug)]
struct ReadRound {
    id: u64,
    index: Index,
    reads: Vec<PendingRead>,
    acks: BTreeSet<ReplicaId>,
}

/// One replica's Raft state machine.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    tick: u64,
    rng: u64,
    term: Term,
    vote: Option<ReplicaId>,
    role: Role,
    leader: Option<ReplicaId>,
    log: RaftLog,
    membership: Membership,
    membership_entries: VecDeque<Index>,
    progress: BTreeMap<ReplicaId, Progress>,
    votes: BTreeMap<ReplicaId, bool>,
    heard_at: u64,
    timeout: u64,
    heartbeat_at: u64,
    check_at: u64,
    transferee: Option<ReplicaId>,
    transfer_deadline: u64,
    pending_change: Index,
    uncommitted_bytes: usize,
    uncommitted: VecDeque<(Index, usize)>,
    leader_time_ms: u64,
    snapshot: Option<SnapshotMeta>,
    installing: Option<SnapshotMeta>,
    rounds: VecDeque<ReadRound>,
    next_round: u64,
    waiting_reads: Vec<PendingRead>,
    /// Reads sent to the leader, and when they are given up.
    forwarded_reads: BTreeMap<u64, u64>,
    messages: Vec<Message>,
    after_sync: Vec<Message>,
    reads: Vec<ReadState>,
    reads_dropped: Vec<u64>,
    fetching: Option<Fetch>,
    fetch_out: Option<Fetch>,
    fetched: VecDeque<Batch>,
    hard_out: HardState,
    soft_out: SoftState,
    /// Messages to this replica itself, due when their submission is durable.
    own: VecDeque<(SubmissionId, Message)>,
}

const TRANSFER_NOTHING: u64 = u64::MAX;

/// Making one, and looking at it.
impl Raft {
    /// Makes a replica's state machine from what its disk holds.
    ///
    /// # Errors
    ///
    /// A setting out of bounds, or state that contradicts itself.
    pub fn new(config: Config, restored: Restored) -> Result<Self, crate::config::ConfigError> {
        config.check()?;
        let first = restored.first.max(Index::new(1));
        let last = restored.last.index.max(Index::new(first.get() - 1));
        let applied = restored.applied.max(Index::new(first.get() - 1)).min(last);
        let commit = restored.hard_state.commit.max(applied).min(last);
        let log = RaftLog::new(
            first,
            last,
            &restored.terms,
            commit,
            applied,
            config.cache_bytes_max,
        );
        let hard_state = HardState {
            commit,
            ..restored.hard_state
        };
        let seed = config.seed;
        let mut raft = Self {
            config,
            tick: 0,
            rng: seed,
            term: hard_state.term,
            vote: hard_state.vote,
            role: Role::Follower,
            leader: None,
            log,
            membership: restored.membership,
            membership_entries: restored.membership_entries.into(),
            progress: BTreeMap::new(),
            votes: BTreeMap::new(),
            heard_at: 0,
            timeout: 0,
            heartbeat_at: 0,
            check_at: 0,
            transferee: None,
            transfer_deadline: TRANSFER_NOTHING,
            pending_change: Index::ZERO,
            uncommitted_bytes: 0,
            uncommitted: VecDeque::new(),
            leader_time_ms: 0,
            snapshot: restored.snapshot,
            installing: None,
            rounds: VecDeque::new(),
            next_round: 1,
            waiting_reads: Vec::new(),
            forwarded_reads: BTreeMap::new(),
            messages: Vec::new(),
            after_sync: Vec::new(),
            reads: Vec::new(),
            reads_dropped: Vec::new(),
            fetching: None,
            fetch_out: None,
            fetched: VecDeque::new(),
            hard_out: hard_state,
            soft_out: SoftState {
                role: Role::Follower,
                leader: None,
            },
            own: VecDeque::new(),
        };
        raft.reset_progress();
        raft.draw_timeout();
        Ok(raft)
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The leader it knows.
    #[must_use]
    pub const fn leader(&self) -> Option<ReplicaId> {
        self.leader
    }

    /// The commit index.
    #[must_use]
    pub const fn commit(&self) -> Index {
        self.log.committed
    }

    /// What the driver reported as applied.
    #[must_use]
    pub const fn applied_index(&self) -> Index {
        self.log.applied
    }

    /// The first index of the log.
    #[must_use]
    pub const fn first_index(&self) -> Index {
        self.log.first()
    }

    /// The last index of the log.
    #[must_use]
    pub const fn last_index(&self) -> Index {
        self.log.last()
    }

    /// The membership in force.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Term, vote and commit as they are now.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed,
        }
    }

    /// To whom the leadership is being handed.
    #[must_use]
    pub const fn transferee(&self) -> Option<ReplicaId> {
        self.transferee
    }

    /// Whether a received snapshot at `index` was taken and is not applied yet.
    #[must_use]
    pub fn is_installing(&self, index: Index) -> bool {
        self.installing
            .as_ref()
            .is_some_and(|meta| meta.id.index == index)
            || self.log.installing == Some(index)
    }

    /// Memory held for entries and terms.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.log.memory_bytes() + self.fetched.iter().map(Batch::size_bytes).sum::<usize>()
    }

    /// The lowest index that a follower in reach still needs, if this replica leads.
    #[must_use]
    pub fn lowest_needed_by_followers(&self) -> Option<Index> {
        if !self.is_leader() {
            return None;
        }
        self.progress
            .iter()
            .filter(|(id, progress)| {
                **id != self.config.id
                    && progress.is_recent_active
                    && !matches!(progress.state, ProgressState::Snapshot { .. })
                    && progress.matched > Index::ZERO
            })
            .map(|(_, progress)| progress.matched.next())
            .min()
    }

    const fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader)
    }

    fn is_promotable(&self) -> bool {
        self.membership.is_voter(self.config.id) && self.log.installing.is_none()
    }

    fn has_unapplied_change(&self) -> bool {
        self.membership_entries.iter().any(|&index| {
            index > self.membership.index && index <= self.log.committed && index > self.log.applied
        })
    }

    fn bounds(&self) -> (usize, usize) {
        (
            self.config.inflight_messages_max,
            self.config.inflight_bytes_max,
        )
    }
}

/// Time.
impl Raft {
    /// The wall time that entries appended from now on carry.
    pub fn set_leader_time_ms(&mut self, ms: u64) {
        self.leader_time_ms = self.leader_time_ms.max(ms);
    }

    /// The tick at which time alone changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.is_leader() {
            let check = if self.config.check_quorum {
                self.check_at
            } else {
                u64::MAX
            };
            return Some(self.heartbeat_at.min(check).min(self.transfer_deadline));
        }
        let read = self.forwarded_reads.values().copied().min();
        let election = self.is_promotable().then(|| self.heard_at + self.timeout);
        read.into_iter().chain(election).min()
    }

    /// Moves time on. After a gap each timer fires once.
    pub fn advance_to(&mut self, tick: u64) {
        if tick <= self.tick {
            return;
        }
        self.tick = tick;
        let dropped = &mut self.reads_dropped;
        self.forwarded_reads.retain(|&user, give_up_at| {
            if *give_up_at <= tick {
                dropped.push(user);
            }
            *give_up_at > tick
        });
        if self.is_leader() {
            if self.transfer_deadline <= tick {
                self.abort_transfer();
            }
            if self.check_at <= tick {
                self.check_at = tick + self.config.election_timeout_ticks_min;
                if self.config.check_quorum && !self.has_active_quorum() {
                    self.become_follower(self.term, None);
                    return;
                }
            }
            if self.heartbeat_at <= tick {
                self.heartbeat_at = tick + self.config.heartbeat_ticks;
                self.broadcast_heartbeat(self.rounds.back().map_or(0, |round| round.id));
            }
        } else if self.is_promotable() && tick >= self.heard_at + self.timeout {
            self.heard_at = tick;
            self.hup(false);
        }
    }

    fn has_active_quorum(&mut self) -> bool {
        let me = self.config.id;
        let result = self.membership.vote_result(|id| {
            Some(
                id == me
                    || self
                        .progress
                        .get(&id)
                        .is_some_and(|peer| peer.is_recent_active),
            )
        });
        for (id, progress) in &mut self.progress {
            progress.is_recent_active = *id == me;
        }
        result == VoteResult::Won
    }

    fn draw_timeout(&mut self) {
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let (min, max) = (
            self.config.election_timeout_ticks_min,
            self.config.election_timeout_ticks_max,
        );
        self.timeout = min + z % (max - min + 1);
    }
}

/// Elections. Source: thesis §3.4, §3.6.1, §9.6 (pre-vote), §3.10 (transfer).
impl Raft {
    /// Stands for election now, if it may.
    pub fn campaign(&mut self) {
        self.hup(false);
    }

    fn hup(&mut self, is_transfer: bool) {
        if self.is_leader() || !self.is_promotable() || self.has_unapplied_change() {
            return;
        }
        let campaign = if is_transfer {
            Campaign::Transfer
        } else if self.config.pre_vote {
            Campaign::PreElection
        } else {
            Campaign::Election
        };
        self.start(campaign);
    }

    fn start(&mut self, campaign: Campaign) {
        let me = self.config.id;
        self.votes.clear();
        self.leader = None;
        if campaign == Campaign::PreElection {
            self.role = Role::PreCandidate;
        } else {
            self.reset(self.term.next());
            self.vote = Some(me);
            self.role = Role::Candidate;
        }
        let last = self.log.last_id();
        let voters: Vec<ReplicaId> = self
            .membership
            .replicas()
            .into_iter()
            .filter(|&id| self.membership.is_voter(id))
            .collect();
        for id in voters {
            if campaign == Campaign::PreElection {
                if id == me {
                    // Nothing is promised by a pre-vote: it counts at once.
                    self.on_vote_response(me, false);
                    continue;
                }
                let term = self.term.next();
                let body = Body::PreVote { last };
                self.messages.push(Message {
                    from: me,
                    to: id,
                    term,
                    body,
                });
            } else if id == me {
                // A vote for itself counts when it is durable.
                self.send(me, Body::VoteResponse { is_rejected: false });
            } else {
                self.send(
                    id,
                    Body::Vote {
                        last,
                        is_transfer: campaign == Campaign::Transfer,
                    },
                );
            }
        }
    }

    fn reset(&mut self, term: Term) {
        if self.term != term {
            self.term = term;
            self.vote = None;
        }
        self.leader = None;
        self.heard_at = self.tick;
        self.draw_timeout();
        self.abort_transfer();
        self.votes.clear();
        self.pending_change = Index::ZERO;
        self.uncommitted_bytes = 0;
        self.uncommitted.clear();
        self.drop_reads();
        self.reset_progress();
    }

    fn reset_progress(&mut self) {
        let next = self.log.last().next();
        let me = self.config.id;
        self.progress = self
            .membership
            .replicas()
            .into_iter()
            .map(|id| (id, Progress::new(next)))
            .collect();
        if let Some(own) = self.progress.get_mut(&me) {
            own.matched = self.log.stable;
            own.is_recent_active = true;
        }
    }

    fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>) {
        self.reset(term);
        self.role = Role::Follower;
        self.leader = leader;
    }

    fn become_leader(&mut self) {
        self.reset(self.term);
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.heartbeat_at = self.tick + self.config.heartbeat_ticks;
        self.check_at = self.tick + self.config.election_timeout_ticks_min;
        for progress in self.progress.values_mut() {
            progress.is_recent_active = true;
        }
        // Every uncommitted entry may be a membership change.
        self.pending_change = self.log.last();
        let empty = Proposal {
            kind: EntryKind::Command,
            session: None,
            payload: &[],
        };
        self.append([empty].into_iter(), 0);
        self.broadcast_append();
    }

    fn on_vote_response(&mut self, from: ReplicaId, is_rejected: bool) {
        self.votes.entry(from).or_insert(!is_rejected);
        match self
            .membership
            .vote_result(|id| self.votes.get(&id).copied())
        {
            VoteResult::Won if self.role == Role::PreCandidate => self.start(Campaign::Election),
            VoteResult::Won => self.become_leader(),
            VoteResult::Lost => self.become_follower(self.term, None),
            VoteResult::Pending => {}
        }
    }

    /// Hands the leadership to `to`.
    ///
    /// # Errors
    ///
    /// `to` is no voter.
    pub fn transfer_leader(&mut self, to: ReplicaId) -> Result<(), Refused> {
        if !self.membership.is_voter(to) {
            return Err(Refused::Dropped("the target is no voter"));
        }
        if !self.is_leader() {
            let Some(leader) = self.leader else {
                return Err(Refused::Dropped("no leader"));
            };
            self.send(leader, Body::TransferLeader { to });
            return Ok(());
        }
        if to == self.config.id || self.transferee == Some(to) {
            return Ok(());
        }
        self.transferee = Some(to);
        self.transfer_deadline = self.tick + self.config.election_timeout_ticks_min;
        if self
            .progress
            .get(&to)
            .is_some_and(|peer| peer.matched == self.log.last())
        {
            self.send(to, Body::TimeoutNow);
        } else {
            self.send_append(to, true);
        }
        Ok(())
    }

    const fn abort_transfer(&mut self) {
        self.transferee = None;
        self.transfer_deadline = TRANSFER_NOTHING;
    }

    /// Forgets the leader, so that another may be elected at once.
    pub fn forget_leader(&mut self) {
        if !self.is_leader() {
            self.leader = None;
        }
    }
}
impl Raft {
    fn send(&mut self, to: ReplicaId, body: Body) {
        let message = Message {
            from: self.config.id,
            to,
            term: self.term,
            body,
        };
        let must_wait = matches!(
            message.body,
            Body::Vote { .. }
                | Body::VoteResponse { .. }
                | Body::PreVoteResponse { .. }
                | Body::AppendResponse { .. }
        );
        if must_wait {
            self.after_sync.push(message)
        } else {
            self.messages.push(message)
        }
    }
}

/// Proposals and replication. Source: thesis §3.5, §3.6.2, §10.2.1; etcd `raft.go`.
impl Raft {
    /// Appends commands as leader: one buffer for all.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]: nothing was appended.
    pub fn propose<'a>(
        &mut self,
        proposals: impl IntoIterator<Item = Proposal<'a>, IntoIter: Clone>,
    ) -> Result<Proposed, ProposeError> {
        self.may_propose()?;
        let proposals = proposals.into_iter();
        let bytes: usize = proposals
            .clone()
            .map(|proposal| proposal.payload.len())
            .sum();
        if self.uncommitted_bytes > 0
            && bytes > 0
            && self.uncommitted_bytes + bytes > self.config.uncommitted_bytes_max
        {
            return Err(ProposeError::UncommittedFull);
        }
        let proposed = self.append(proposals, bytes);
        self.broadcast_append();
        Ok(proposed)
    }

    fn may_propose(&self) -> Result<(), ProposeError> {
        if !self.is_leader() {
            return Err(ProposeError::NotLeader {
                leader: self.leader,
            });
        }
        if !self.progress.contains_key(&self.config.id) {
            return Err(ProposeError::Removed);
        }
        if self.transferee.is_some() {
            return Err(ProposeError::TransferInProgress);
        }
        Ok(())
    }

    /// Proposes a membership change.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]: nothing was appended.
    pub fn propose_membership(
        &mut self,
        change: MembershipChange,
    ) -> Result<EntryId, ProposeError> {
        self.may_propose()?;
        let applied = self.log.applied.max(self.membership.index);
        if self.pending_change > applied || !self.has_committed_in_term() {
            return Err(ProposeError::ChangePending);
        }
        self.membership.changed(self.log.last().next(), &change)?;
        let payload = change.encode();
        let proposal = Proposal {
            kind: EntryKind::Membership,
            session: None,
            payload: &payload,
        };
        let proposed = self.append([proposal].into_iter(), payload.len());
        self.pending_change = proposed.first;
        self.broadcast_append();
        Ok(EntryId::new(proposed.term, proposed.first))
    }

    fn append<'a>(
        &mut self,
        proposals: impl Iterator<Item = Proposal<'a>> + Clone,
        bytes: usize,
    ) -> Proposed {
        let first = self.log.last().next();
        let count = proposals.clone().count();
        let capacity = bytes + count * BatchBuilder::frame_bytes(0, true);
        let mut builder = BatchBuilder::new(self.config.group, self.term, first, capacity);
        for proposal in proposals {
            let index = builder.push(
                proposal.kind,
                self.leader_time_ms,
                proposal.session,
                proposal.payload,
            );
            if proposal.kind.is_membership() {
                self.membership_entries.push_back(index);
            }
        }
        if let Some(batch) = builder.finish() {
            self.uncommitted_bytes += bytes;
            self.uncommitted.push_back((batch.last().index, bytes));
            self.log.append(batch);
        }
        Proposed {
            first,
            count,
            term: self.term,
        }
    }

    fn has_committed_in_term(&self) -> bool {
        self.log.term_at(self.log.committed) == Some(self.term)
    }

    fn broadcast_append(&mut self) {
        for id in self.peers() {
            self.send_append(id, true);
        }
    }

    fn peers(&self) -> Vec<ReplicaId> {
        self.progress
            .keys()
            .copied()
            .filter(|&id| id != self.config.id)
            .collect()
    }

    /// Sends what the follower needs next; whether anything was sent.
    fn send_append(&mut self, to: ReplicaId, may_be_empty: bool) -> bool {
        let Some(progress) = self.progress.get_mut(&to) else {
            return false;
        };
        if progress.is_paused() {
            return false;
        }
        let prev_index = progress.next.previous().unwrap_or_default();
        let Some(prev_term) = self.log.term_at(prev_index) else {
            return self.send_snapshot(to);
        };
        let last = self.log.last();
        let next = progress.next;
        let entries = match self.log.entries(next, last, self.config.message_bytes_max) {
            Some(entries) => entries,
            None if next < self.log.first() => return self.send_snapshot(to),
            None => {
                let cached = self.fetched.iter().find_map(|batch| {
                    batch
                        .from_index(next)
                        .filter(|part| part.first().index == next)
                });
                match cached {
                    Some(part) => alloc::vec![part.up_to_size(self.config.message_bytes_max)],
                    None => {
                        if self.fetching.is_none() {
                            let fetch = Fetch {
                                first: next,
                                last,
                                bytes_max: self.config.message_bytes_max,
                            };
                            self.fetching = Some(fetch);
                            self.fetch_out = Some(fetch);
                        }
                        return false;
                    }
                }
            }
        };
        let progress = self.progress.get_mut(&to).expect("it was just there");
        let is_news = progress.sent_commit < self.log.committed
            && progress.sent_commit < prev_index.max(progress.matched);
        if entries.is_empty() && !(may_be_empty || is_news) {
            return false;
        }
        let sent = entries.last().map(|batch| batch.last().index);
        let bytes = entries.iter().map(Batch::size_bytes).sum();
        let bounds = (
            self.config.inflight_messages_max,
            self.config.inflight_bytes_max,
        );
        progress.on_sent(sent, bytes, bounds);
        progress.sent_commit = self.log.committed;
        let prev = EntryId::new(prev_term, prev_index);
        let commit = self.log.committed;
        self.send(
            to,
            Body::Append {
                prev,
                commit,
                entries,
            },
        );
        true
    }

    fn send_snapshot(&mut self, to: ReplicaId) -> bool {
        let Some(meta) = self.snapshot.clone() else {
            return false;
        };
        let Some(progress) = self.progress.get_mut(&to) else {
            return false;
        };
        if !progress.is_recent_active {
            return false;
        }
        progress.become_snapshot(meta.id.index);
        self.send(to, Body::Snapshot { meta });
        true
    }

    fn broadcast_heartbeat(&mut self, round: u64) {
        for id in self.peers() {
            let matched = self
                .progress
                .get(&id)
                .map_or(Index::ZERO, |peer| peer.matched);
            let commit = matched.min(self.log.committed);
            self.send(id, Body::Heartbeat { commit, round });
        }
    }

    fn maybe_commit(&mut self) -> bool {
        let index = self.membership.committed(|id| {
            self.progress
                .get(&id)
                .map_or(Index::ZERO, |peer| peer.matched)
        });
        // Only entries of the own term are committed by counting (thesis §3.6.2, Figure 3.7).
        if index <= self.log.committed || self.log.term_at(index) != Some(self.term) {
            return false;
        }
        self.log.committed = index;
        while self
            .uncommitted
            .front()
            .is_some_and(|&(last, _)| last <= index)
        {
            let (_, bytes) = self.uncommitted.pop_front().expect("it was just seen");
            self.uncommitted_bytes -= bytes;
        }
        self.release_waiting_reads();
        true
    }

    /// What is durable of what was given out, up to and with `id`.
    pub fn persisted(&mut self, id: SubmissionId) {
        let had_snapshot = self.log.installing;
        let is_news = self.log.persisted(id);
        while self.own.front().is_some_and(|(own, _)| *own <= id) {
            let (_, message) = self.own.pop_front().expect("it was just seen");
            // A vote of an older term no longer counts; nothing else goes wrong.
            drop(self.handle_message(message));
        }
        if !is_news {
            return;
        }
        if had_snapshot.is_some() && self.log.installing.is_none() {
            self.installing = None;
        }
        if self.is_leader() {
            let stable = self.log.stable;
            if let Some(own) = self.progress.get_mut(&self.config.id)
                && own.on_accepted(stable)
                && self.maybe_commit()
            {
                self.broadcast_append();
            }
        }
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: Index) {
        if index <= self.log.applied {
            return;
        }
        assert!(
            index <= self.log.applying,
            "applied {index} was never handed out"
        );
        self.log.applied = index;
        while self
            .membership_entries
            .front()
            .is_some_and(|&entry| entry <= index)
        {
            self.membership_entries.pop_front();
        }
        self.leave_joint_if_due();
    }

    fn leave_joint_if_due(&mut self) {
        let applied = self.log.applied.max(self.membership.index);
        if self.membership.auto_leave
            && self.is_leader()
            && applied >= self.pending_change
            && self.transferee.is_none()
        {
            let payload = MembershipChange::default().encode();
            let proposal = Proposal {
                kind: EntryKind::Membership,
                session: None,
                payload: &payload,
            };
            self.pending_change = self.append([proposal].into_iter(), 0).first;
            self.broadcast_append();
        }
    }

    /// A newer snapshot of this replica's own lies in its directory.
    pub fn snapshot_stored(&mut self, meta: SnapshotMeta) {
        if self.snapshot.as_ref().is_none_or(|old| old.id < meta.id) {
            self.snapshot = Some(meta);
        }
    }

    /// The log was compacted: it begins at `first` now.
    pub fn compacted(&mut self, first: Index) {
        self.log.compact(first);
    }

    /// Switches the membership: the entry at `index` is committed.
    ///
    /// # Errors
    ///
    /// [`MembershipError`]: the entry has no effect.
    pub fn apply_membership(
        &mut self,
        index: Index,
        change: &MembershipChange,
    ) -> Result<Membership, MembershipError> {
        let next = self.membership.changed(index, change)?;
        self.switch(next);
        Ok(self.membership.clone())
    }

    fn switch(&mut self, next: Membership) {
        self.membership = next;
        let replicas = self.membership.replicas();
        self.progress.retain(|id, _| replicas.contains(id));
        let fresh = self
            .log
            .last()
            .next()
            .previous()
            .unwrap_or_default()
            .max(Index::new(1));
        for id in replicas {
            self.progress.entry(id).or_insert_with(|| Progress {
                // Time to show itself before it counts as lost.
                is_recent_active: true,
                ..Progress::new(fresh)
            });
        }
        if !self.is_leader() {
            return;
        }
        if !self.progress.contains_key(&self.config.id) {
            if self.config.step_down_on_removal {
                self.become_follower(self.term, None);
            }
            return;
        }
        if self.maybe_commit() {
            self.broadcast_append();
        } else {
            for id in self.peers() {
                self.send_append(id, false);
            }
        }
        if self
            .transferee
            .is_some_and(|to| !self.membership.is_voter(to))
        {
            self.abort_transfer();
        }
        self.leave_joint_if_due();
    }

    /// A message to `to` was dropped.
    pub fn report_unreachable(&mut self, to: ReplicaId) {
        if self.is_leader()
            && let Some(progress) = self.progress.get_mut(&to)
            && matches!(progress.state, ProgressState::Replicate { .. })
        {
            progress.become_probe();
        }
    }

    /// How the snapshot for `to` fared.
    pub fn report_snapshot(&mut self, to: ReplicaId, status: SnapshotStatus) {
        if !self.is_leader() {
            return;
        }
        if let Some(progress) = self.progress.get_mut(&to)
            && let ProgressState::Snapshot { pending } = &mut progress.state
        {
            if status == SnapshotStatus::Failed {
                *pending = Index::ZERO;
            }
            progress.become_probe();
            if let ProgressState::Probe { is_sent } = &mut progress.state {
                *is_sent = true;
            }
        }
    }

    /// The answer to a fetch.
    pub fn entries_fetched(&mut self, fetched: Fetched) {
        let fetch = self.fetching.take();
        self.fetched.clear();
        if let Fetched::Entries { first, batches } = fetched
            && fetch.is_some_and(|fetch| fetch.first == first)
        {
            self.fetched.extend(batches.into_iter().filter(|batch| {
                batch.last().index <= self.log.last()
                    && self.log.matches(batch.first())
                    && self.log.matches(batch.last())
            }));
        }
        if self.is_leader() {
            for id in self.peers() {
                self.send_append(id, false);
            }
        }
    }
}

/// Messages.
impl Raft {
    /// Takes a message.
    ///
    /// # Errors
    ///
    /// [`Refused`]: it changed nothing.
    pub fn handle_message(&mut self, message: Message) -> Result<(), Refused> {
        let Message { from, term, .. } = message;
        if message.to != self.config.id {
            return Err(Refused::Dropped("not for this replica"));
        }
        if from == self.config.id && !matches!(message.body, Body::VoteResponse { .. }) {
            return Err(Refused::Violation {
                from,
                what: "it speaks in our name",
            });
        }
        if term > self.term {
            if let Body::Vote { is_transfer, .. } = message.body
                && !is_transfer
                && self.is_lease_held()
            {
                return Err(Refused::Dropped("the leader is alive"));
            }
            match message.body {
                Body::PreVote { .. } if self.is_lease_held() => {
                    return Err(Refused::Dropped("the leader is alive"));
                }
                Body::PreVote { .. } | Body::PreVoteResponse { is_rejected: false } => {}
                Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
                    self.become_follower(term, Some(from));
                }
                _ => self.become_follower(term, None),
            }
        } else if term < self.term {
            match message.body {
                Body::Append { .. } | Body::Heartbeat { .. }
                    if self.config.pre_vote || self.config.check_quorum =>
                {
                    // Frees a stuck leader of an older term.
                    self.send(
                        from,
                        Body::AppendResponse {
                            index: Index::ZERO,
                            rejected: None,
                        },
                    );
                }
                Body::PreVote { .. } => {
                    self.send(from, Body::PreVoteResponse { is_rejected: true });
                }
                _ => {}
            }
            return Err(Refused::Dropped("of an older term"));
        }
        match message.body {
            Body::PreVote { last } => self.on_vote_request(from, term, last, true),
            Body::Vote { last, .. } => self.on_vote_request(from, term, last, false),
            Body::PreVoteResponse { is_rejected } => {
                if self.role == Role::PreCandidate {
                    self.on_vote_response(from, is_rejected);
                }
            }
            Body::VoteResponse { is_rejected } => {
                if self.role == Role::Candidate {
                    self.on_vote_response(from, is_rejected);
                }
            }
            Body::Append {
                prev,
                commit,
                entries,
            } => {
                self.hear_leader(from)?;
                return self.on_append(from, prev, commit, entries);
            }
            Body::Heartbeat { commit, round } => {
                if commit > self.log.last() {
                    return Err(Refused::Violation {
                        from,
                        what: "commit past our log",
                    });
                }
                self.hear_leader(from)?;
                self.commit_to(commit);
                self.send(from, Body::HeartbeatResponse { round });
            }
            Body::Snapshot { meta } => {
                self.hear_leader(from)?;
                self.on_snapshot(from, meta);
            }
            Body::AppendResponse { index, rejected } => {
                return self.on_append_response(from, index, rejected);
            }
            Body::HeartbeatResponse { round } => self.on_heartbeat_response(from, round),
            Body::TimeoutNow => {
                if self.membership.is_voter(self.config.id) {
                    self.hup(true);
                }
            }
            Body::TransferLeader { to } => {
                if self.is_leader() {
                    return self.transfer_leader(to);
                }
            }
            Body::ReadIndex { user } => self.on_read(Some(from), user),
            Body::ReadIndexResponse { user, index } => {
                if self.forwarded_reads.remove(&user).is_some() {
                    self.reads.push(ReadState { user, index });
                }
            }
        }
        Ok(())
    }

    fn is_lease_held(&self) -> bool {
        self.config.check_quorum
            && self.leader.is_some()
            && self.tick.saturating_sub(self.heard_at) < self.config.election_timeout_ticks_min
    }

    /// A message that only the leader of this term sends.
    fn hear_leader(&mut self, from: ReplicaId) -> Result<(), Refused> {
        if self.is_leader() {
            return Err(Refused::Violation {
                from,
                what: "a second leader of our term",
            });
        }
        if self.role != Role::Follower {
            self.become_follower(self.term, Some(from));
        }
        self.heard_at = self.tick;
        self.leader = Some(from);
        Ok(())
    }

    fn on_vote_request(&mut self, from: ReplicaId, term: Term, last: EntryId, is_pre: bool) {
        let may_vote = self.vote == Some(from)
            || (self.vote.is_none() && self.leader.is_none())
            || (is_pre && term > self.term);
        let is_granted = may_vote && last >= self.log.last_id();
        if is_pre {
            // A granted pre-vote answers in the term asked about, a refusal in our own.
            let body = Body::PreVoteResponse {
                is_rejected: !is_granted,
            };
            let term = if is_granted { term } else { self.term };
            self.after_sync.push(Message {
                from: self.config.id,
                to: from,
                term,
                body,
            });
            return;
        }
        if is_granted {
            self.heard_at = self.tick;
            self.vote = Some(from);
        }
        self.send(
            from,
            Body::VoteResponse {
                is_rejected: !is_granted,
            },
        );
    }

    fn on_append(
        &mut self,
        from: ReplicaId,
        prev: EntryId,
        commit: Index,
        entries: Vec<Batch>,
    ) -> Result<(), Refused> {
        let mut expected = prev;
        for batch in &entries {
            if batch.first().index != expected.index.next() || batch.first().term < expected.term {
                return Err(Refused::Violation {
                    from,
                    what: "entries do not follow each other",
                });
            }
            expected = batch.last();
        }
        if expected.term > self.term {
            return Err(Refused::Violation {
                from,
                what: "entries of a later term",
            });
        }
        if prev.index < self.log.committed && self.log.term_at(prev.index).is_none()
            || expected.index < self.log.committed
        {
            let index = self.log.committed;
            self.send(
                from,
                Body::AppendResponse {
                    index,
                    rejected: None,
                },
            );
            return Ok(());
        }
        if !self.log.matches(prev) {
            // The largest index that may match: nothing past it has a term as low as asked for.
            let mut index = prev.index.min(self.log.last());
            while index > Index::ZERO
                && self.log.term_at(index).is_some_and(|term| term > prev.term)
            {
                index = index.previous().unwrap_or_default();
            }
            let term = self.log.term_at(index).unwrap_or_default();
            let rejected = Some(EntryId::new(term, index));
            self.send(
                from,
                Body::AppendResponse {
                    index: prev.index,
                    rejected,
                },
            );
            return Ok(());
        }
        for batch in entries {
            let Some(news) = self.first_news(&batch) else {
                continue;
            };
            if news <= self.log.committed {
                return Err(Refused::Violation {
                    from,
                    what: "conflict below the commit index",
                });
            }
            if news <= self.log.last() {
                self.log.truncate(news);
                while self
                    .membership_entries
                    .back()
                    .is_some_and(|&index| index >= news)
                {
                    self.membership_entries.pop_back();
                }
            }
            let batch = batch
                .from_index(news)
                .expect("the news lies within the batch");
            for entry in &batch {
                if entry.kind().is_membership() {
                    self.membership_entries.push_back(entry.index());
                }
            }
            self.log.append(batch);
        }
        self.commit_to(commit.min(expected.index));
        self.send(
            from,
            Body::AppendResponse {
                index: expected.index,
                rejected: None,
            },
        );
        Ok(())
    }

    /// The first entry of `batch` that this log does not hold as it is.
    fn first_news(&self, batch: &Batch) -> Option<Index> {
        if self.log.matches(batch.last()) {
            return None;
        }
        if batch.first().index > self.log.last() {
            return Some(batch.first().index);
        }
        batch
            .iter()
            .find(|entry| !self.log.matches(entry.id()))
            .map(|entry| entry.index())
    }

    fn commit_to(&mut self, commit: Index) {
        self.log.committed = self.log.committed.max(commit);
    }

    fn on_snapshot(&mut self, from: ReplicaId, meta: SnapshotMeta) {
        let id = meta.id;
        let is_old = id.index <= self.log.committed;
        let is_known = !is_old && self.log.matches(id);
        if is_known {
            self.log.committed = id.index;
        }
        if is_old || is_known || !meta.membership.replicas().contains(&self.config.id) {
            let index = self.log.committed;
            self.send(
                from,
                Body::AppendResponse {
                    index,
                    rejected: None,
                },
            );
            return;
        }
        self.log.restart_after(id);
        self.membership_entries.clear();
        self.membership = meta.membership.clone();
        self.snapshot = Some(meta.clone());
        self.installing = Some(meta);
        self.reset_progress();
        self.send(
            from,
            Body::AppendResponse {
                index: id.index,
                rejected: None,
            },
        );
    }

    fn on_append_response(
        &mut self,
        from: ReplicaId,
        index: Index,
        rejected: Option<EntryId>,
    ) -> Result<(), Refused> {
        if !self.is_leader() {
            return Err(Refused::Dropped("we do not lead"));
        }
        let bounds = self.bounds();
        let last = self.log.last();
        let first = self.log.first();
        let Some(progress) = self.progress.get_mut(&from) else {
            return Err(Refused::Dropped("no member"));
        };
        if index > last {
            return Err(Refused::Violation {
                from,
                what: "it acknowledges what was never sent",
            });
        }
        progress.is_recent_active = true;
        if let Some(hint) = rejected {
            let mut next = hint.index;
            if hint.term > Term::ZERO {
                while next > Index::ZERO
                    && self.log.term_at(next).is_some_and(|term| term > hint.term)
                {
                    next = next.previous().unwrap_or_default();
                }
            }
            let progress = self.progress.get_mut(&from).expect("it was just there");
            if progress.on_rejected(index, next) {
                if matches!(progress.state, ProgressState::Replicate { .. }) {
                    progress.become_probe();
                }
                self.send_append(from, true);
            }
            return Ok(());
        }
        let was_paused = progress.is_paused();
        let is_news = progress.on_accepted(index)
            || (progress.matched == index && matches!(progress.state, ProgressState::Probe { .. }));
        if !is_news {
            return Ok(());
        }
        match progress.state {
            ProgressState::Probe { .. } => progress.become_replicate(),
            ProgressState::Snapshot { .. } if progress.matched.next() >= first => {
                progress.become_probe();
                progress.become_replicate();
            }
            ProgressState::Replicate { .. } => progress.free_inflight(index, bounds),
            ProgressState::Snapshot { .. } => {}
        }
        if self.maybe_commit() {
            self.broadcast_append();
        } else if was_paused {
            self.send_append(from, true);
        }
        while self.send_append(from, false) {}
        if self.transferee == Some(from)
            && self
                .progress
                .get(&from)
                .is_some_and(|peer| peer.matched == self.log.last())
        {
            self.send(from, Body::TimeoutNow);
        }
        Ok(())
    }

    fn on_heartbeat_response(&mut self, from: ReplicaId, round: u64) {
        let last = self.log.last();
        let bounds = self.bounds();
        let Some(progress) = self.progress.get_mut(&from) else {
            return;
        };
        progress.is_recent_active = true;
        match &mut progress.state {
            ProgressState::Probe { is_sent } => *is_sent = false,
            ProgressState::Replicate {
                is_paused,
                inflight,
                ..
            } => {
                // A full window whose messages were all lost must not stay shut.
                if inflight.len() >= bounds.0 {
                    *is_paused = false;
                }
            }
            ProgressState::Snapshot { .. } => {}
        }
        if progress.matched < last || matches!(progress.state, ProgressState::Probe { .. }) {
            self.send_append(from, true);
        }
        if round == 0 || !self.membership.is_voter(from) {
            return;
        }
        let me = self.config.id;
        let mut confirmed = 0;
        for (at, pending) in self.rounds.iter_mut().enumerate() {
            if pending.id <= round {
                pending.acks.insert(from);
            }
            let acks = &pending.acks;
            let result = self
                .membership
                .vote_result(|id| (id == me || acks.contains(&id)).then_some(true));
            if result == VoteResult::Won {
                confirmed = at + 1;
            }
        }
        for round in self.rounds.drain(..confirmed).collect::<Vec<_>>() {
            self.answer(round.reads, round.index);
        }
    }
}

/// Reads. Source: thesis §6.4.
impl Raft {
    /// Asks for an index at which a read is linearizable.
    ///
    /// # Errors
    ///
    /// There is no leader to ask.
    pub fn read_index(&mut self, user: u64) -> Result<(), Refused> {
        if self.is_leader() {
            self.on_read(None, user);
            return Ok(());
        }
        let Some(leader) = self.leader else {
            return Err(Refused::Dropped("no leader"));
        };
        let give_up_at = self.tick + self.config.election_timeout_ticks_min;
        self.forwarded_reads.insert(user, give_up_at);
        self.send(leader, Body::ReadIndex { user });
        Ok(())
    }

    fn on_read(&mut self, from: Option<ReplicaId>, user: u64) {
        if !self.is_leader() {
            return;
        }
        let read = PendingRead { from, user };
        if !self.has_committed_in_term() {
            self.waiting_reads.push(read);
            return;
        }
        self.begin_round(alloc::vec![read]);
    }

    fn begin_round(&mut self, reads: Vec<PendingRead>) {
        let index = self.log.committed;
        let me = self.config.id;
        if self.membership.vote_result(|id| (id == me).then_some(true)) == VoteResult::Won {
            return self.answer(reads, index);
        }
        let id = self.next_round;
        self.next_round += 1;
        self.rounds.push_back(ReadRound {
            id,
            index,
            reads,
            acks: BTreeSet::new(),
        });
        self.broadcast_heartbeat(id);
    }

    fn release_waiting_reads(&mut self) {
        if !self.waiting_reads.is_empty() && self.has_committed_in_term() {
            let reads = core::mem::take(&mut self.waiting_reads);
            self.begin_round(reads);
        }
    }

    fn answer(&mut self, reads: Vec<PendingRead>, index: Index) {
        for read in reads {
            match read.from {
                None => self.reads.push(ReadState {
                    user: read.user,
                    index,
                }),
                Some(to) => self.send(
                    to,
                    Body::ReadIndexResponse {
                        user: read.user,
                        index,
                    },
                ),
            }
        }
    }

    fn drop_reads(&mut self) {
        let rounds = core::mem::take(&mut self.rounds);
        let waiting = core::mem::take(&mut self.waiting_reads);
        let own = rounds
            .into_iter()
            .flat_map(|round| round.reads)
            .chain(waiting);
        self.reads_dropped
            .extend(own.filter(|read| read.from.is_none()).map(|read| read.user));
        self.reads_dropped
            .extend(core::mem::take(&mut self.forwarded_reads).into_keys());
    }
}

/// Output.
impl Raft {
    /// What is to be done, if anything is.
    pub fn poll_ready(&mut self) -> Option<Ready> {
        let mut ready = Ready::default();
        let soft = SoftState {
            role: self.role,
            leader: self.leader,
        };
        if soft != self.soft_out {
            self.soft_out = soft;
            ready.soft_state = Some(soft);
        }
        let hard = self.hard_state();
        let is_vote_news = (hard.term, hard.vote) != (self.hard_out.term, self.hard_out.vote);
        if hard != self.hard_out {
            self.hard_out = hard;
            ready.hard_state = Some(hard);
        }
        ready.snapshot = self
            .installing
            .take_if(|meta| self.log.installing == Some(meta.id.index));
        ready.must_sync = is_vote_news || self.log.has_unstable() || ready.snapshot.is_some();
        if ready.must_sync || ready.hard_state.is_some() || !self.after_sync.is_empty() {
            let (id, entries) = self.log.give(ready.snapshot.is_some());
            ready.submission = Some(id);
            ready.entries = entries;
        }
        ready.messages = core::mem::take(&mut self.messages);
        let held = core::mem::take(&mut self.after_sync);
        for message in held {
            match ready.submission {
                Some(id) if message.to == self.config.id => self.own.push_back((id, message)),
                _ => ready.messages_after_sync.push(AfterSync::new(message)),
            }
        }
        self.hand_out_committed(&mut ready);
        ready.fetch.extend(self.fetch_out.take());
        ready.reads = core::mem::take(&mut self.reads);
        ready.reads_dropped = core::mem::take(&mut self.reads_dropped);
        let is_empty = ready.submission.is_none()
            && ready.soft_state.is_none()
            && ready.messages.is_empty()
            && ready.committed.is_empty()
            && ready.fetch.is_empty()
            && ready.reads.is_empty()
            && ready.reads_dropped.is_empty();
        (!is_empty).then_some(ready)
    }

    fn hand_out_committed(&mut self, ready: &mut Ready) {
        let to = self.log.committed.min(self.log.stable);
        if self.log.installing.is_some() || to <= self.log.applying {
            return;
        }
        // Bounds what lies between the core and the state machine.
        if self.log.applying.distance_from(self.log.applied) > self.config.applying_entries_max {
            return;
        }
        let from = self.log.applying.next();
        let bytes_max = self.config.committed_bytes_per_ready_max;
        let batches = match self.log.entries(from, to, bytes_max) {
            Some(batches) => batches,
            None => {
                let cached = self.fetched.iter().find_map(|batch| {
                    let part = batch.from_index(from)?.up_to_index(to)?;
                    (part.first().index == from).then_some(part)
                });
                match cached {
                    Some(part) => alloc::vec![part],
                    None => {
                        if self.fetching.is_none() {
                            let fetch = Fetch {
                                first: from,
                                last: to,
                                bytes_max,
                            };
                            self.fetching = Some(fetch);
                            self.fetch_out = Some(fetch);
                        }
                        return;
                    }
                }
            }
        };
        if let Some(last) = batches.last() {
            self.log.applying = last.last().index;
            ready.committed = batches;
            self.log.bound_cache();
        }
    }
}
