//! Reads that see everything acknowledged before they were asked for.
//!
//! ```text
//!  read_index ----> waiting --(entry of own term committed)--> round --(quorum confirms)--> reads
//!                      ^                                         |
//!  ReadIndex from a follower                                     +--> ReadIndexResponse
//! ```
//!
//! One heartbeat round serves all reads of a pass. Rounds are numbered by the core and never
//! reused, so that no confirmation of an older round can vouch for a newer read, whatever numbers
//! the caller gives its reads (hazard 39).
//!
//! Source: thesis §6.4 (ReadIndex), §6.4.1 (leases); etcd `read_only.go`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::{DropReason, Refused};
use crate::message::Body;
use crate::output::Outbox;
use crate::quorum::VoteResult;
use crate::raft::Raft;
use crate::ready::{ReadState, Underway};
use crate::roles::State;
use crate::types::{Index, ReplicaId};

/// Who asked.
#[derive(Clone, Copy, Debug)]
enum Read {
    /// This replica's own caller.
    Own { user: u64 },
    /// A follower, with its life and its number for it.
    Forwarded { from: ReplicaId, life: u64, id: u64 },
}

/// A heartbeat round, and the reads it will serve.
#[derive(Debug)]
struct Round {
    number: u64,
    index: Index,
    reads: Vec<Read>,
}

/// A read that was passed on to the leader.
#[derive(Debug)]
pub(crate) struct ForwardedRead {
    user: u64,
    give_up_at: u64,
}

/// A leader's reads on their way, and its lease.
///
/// Invariant: numbers of rounds rise, and none is past the latest that was begun.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Not in a round yet.
    waiting: Vec<Read>,
    rounds: VecDeque<Round>,
    count: usize,

    /// When rounds that are not confirmed were sent.
    sent_at: VecDeque<(u64, u64)>,
    /// When the latest confirmed round was sent.
    lease_from: Option<u64>,
    /// Rounds up to this one give no lease.
    lease_floor: u64,
    /// No lease for the rest of this leadership.
    is_lease_lost: bool,
}

impl Reads {
    /// Of a leader that begins when `round` was the latest.
    pub(crate) const fn after(round: u64) -> Self {
        Self {
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            count: 0,
            sent_at: VecDeque::new(),
            lease_from: None,
            lease_floor: round,
            is_lease_lost: false,
        }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        self.count == 0
    }

    /// Whether reads wait for their round to begin.
    pub(crate) const fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Only rounds after `round` give a lease again.
    pub(crate) const fn end_lease(&mut self, round: u64) {
        self.lease_from = None;
        self.lease_floor = round;
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.count * size_of::<Read>()
            + self.rounds.len() * size_of::<Round>()
            + self.sent_at.len() * size_of::<(u64, u64)>()
    }
}

/// Asking.
impl Raft {
    /// Asks for an index at which a read is linearizable. The answer comes as
    /// [`Ready::reads`](crate::Ready::reads) with the caller's number, or
    /// [`Ready::dropped`](crate::Ready::dropped).
    ///
    /// # Errors
    ///
    /// [`DropReason::NoLeader`], or [`DropReason::ReadsFull`]: ask again later, or elsewhere; or
    /// [`DropReason::LogWithoutCommands`].
    pub fn read_index(&mut self, user: u64) -> Result<(), Refused> {
        if self.lacks_commands() {
            return Refused::dropped(DropReason::LogWithoutCommands);
        }
        self.wake();
        let follower = match &mut self.state {
            State::Leader(leader) => {
                return leader.reads.add(Read::Own { user }, self.config.reads_max);
            }
            State::Follower(follower) => follower,
            State::PreCandidate(_) | State::Candidate(_) => {
                return Refused::dropped(DropReason::NoLeader);
            }
        };
        let Some(leader) = follower.leader else {
            return Refused::dropped(DropReason::NoLeader);
        };
        if follower.forwarded.len() >= self.config.reads_max {
            return Refused::dropped(DropReason::ReadsFull);
        }
        self.last_read += 1;
        let id = self.last_read;
        let give_up_at = self
            .tick
            .saturating_add(self.config.election_timeout_ticks_min);
        let read = ForwardedRead { user, give_up_at };
        follower.forwarded.insert(id, read);
        let life = self.config.life;
        self.send(leader, Body::ReadIndex { life, id });
        Ok(())
    }

    pub(crate) fn on_forwarded_read(
        &mut self,
        from: ReplicaId,
        life: u64,
        id: u64,
    ) -> Result<(), Refused> {
        let State::Leader(leader) = &mut self.state else {
            return Refused::dropped(DropReason::NotLeader);
        };
        let read = Read::Forwarded { from, life, id };
        leader.reads.add(read, self.config.reads_max)
    }

    pub(crate) fn on_read_answered(
        &mut self,
        from: ReplicaId,
        life: u64,
        id: u64,
        index: Index,
    ) -> Result<(), Refused> {
        let follower = match &mut self.state {
            State::Follower(follower) if follower.leader == Some(from) => follower,
            _ => return Refused::dropped(DropReason::NotLeader),
        };
        if life != self.config.life {
            return Refused::dropped(DropReason::UnknownRead);
        }
        let Some(read) = follower.forwarded.remove(&id) else {
            return Refused::dropped(DropReason::UnknownRead);
        };
        let user = read.user;
        self.out.notices().reads.push(ReadState { user, index });
        Ok(())
    }

    /// When the first of the reads that were passed on is given up.
    pub(crate) fn read_give_up_at(&self) -> Option<u64> {
        let State::Follower(follower) = &self.state else {
            return None;
        };
        let reads = follower.forwarded.values();
        reads.map(|read| read.give_up_at).min()
    }

    pub(crate) fn give_up_reads(&mut self) {
        let State::Follower(follower) = &mut self.state else {
            return;
        };
        let (tick, out) = (self.tick, &mut self.out);
        follower.forwarded.retain(|_, read| {
            let is_over = read.give_up_at <= tick;
            if is_over {
                let user = read.user;
                out.drop(Underway::Read { user }, DropReason::NoAnswer);
            }
            !is_over
        });
    }
}

/// What waits for an answer in a role that ends is told as dropped.
impl ForwardedRead {
    pub(crate) fn drop(self, out: &mut Outbox) {
        let user = self.user;
        out.drop(Underway::Read { user }, DropReason::LeaderChanged);
    }
}

impl Reads {
    pub(crate) fn drop(self, out: &mut Outbox) {
        let in_rounds = self.rounds.into_iter().flat_map(|round| round.reads);
        for read in in_rounds.chain(self.waiting) {
            let what = match read {
                Read::Own { user } => Underway::Read { user },
                Read::Forwarded { from, id, .. } => Underway::ReadOf { from, id },
            };
            out.drop(what, DropReason::NotLeader);
        }
    }

    fn add(&mut self, read: Read, reads_max: usize) -> Result<(), Refused> {
        if self.count >= reads_max {
            return Refused::dropped(DropReason::ReadsFull);
        }
        self.count += 1;
        self.waiting.push(read);
        Ok(())
    }
}

/// Confirming.
impl Raft {
    /// Whether an entry of this leadership is committed. The term of the commit index does not tell:
    /// a group that begins from a snapshot may have it before anybody led.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.leading()
            .is_some_and(|leader| self.log.committed >= leader.led_from)
    }

    /// Answers or puts into one round all reads of this pass.
    pub(crate) fn begin_read_round(&mut self) {
        let index = self.log.committed;
        let State::Leader(leader) = &mut self.state else {
            return;
        };
        // Before the first commit of the term this leader may not know of entries that an earlier
        // one acknowledged (thesis §6.4, hazard 38).
        if !leader.reads.is_waiting() || index < leader.led_from {
            return;
        }
        let reads = core::mem::take(&mut leader.reads.waiting);
        let me = self.config.id;
        let is_alone = self.members.vote_result(|id| (id == me).then_some(true));
        if is_alone == VoteResult::Won || self.has_lease() {
            return self.answer(reads, index);
        }
        self.round += 1;
        let number = self.round;
        if let State::Leader(leader) = &mut self.state {
            leader.reads.rounds.push_back(Round {
                number,
                index,
                reads,
            });
        }
        self.broadcast_heartbeat();
    }

    /// The heartbeat that time asks for.
    pub(crate) fn beat(&mut self) {
        if let State::Leader(leader) = &mut self.state {
            leader.chunk.rest();
        }
        if self.config.lease_ticks > 0 {
            self.round += 1;
        }
        self.broadcast_heartbeat();
    }

    fn broadcast_heartbeat(&mut self) {
        let (tick, round, committed) = (self.tick, self.round, self.log.committed);
        let has_leases = self.config.lease_ticks > 0;
        let State::Leader(leader) = &mut self.state else {
            return;
        };
        let reads = &mut leader.reads;
        if has_leases {
            // A round counts from when it was first sent.
            if reads.sent_at.back().is_none_or(|&(sent, _)| sent < round) {
                reads.sent_at.push_back((round, tick));
                let bound = self.config.election_timeout_ticks_max;
                while reads.sent_at.len() > 1 && reads.sent_at[0].1.saturating_add(bound) < tick {
                    reads.sent_at.pop_front();
                }
            }
        }
        let needs_round = has_leases || !reads.rounds.is_empty();
        let round = if needs_round { round } else { 0 };
        self.for_each_other(|raft, to| {
            let Some(peer) = raft.peer_mut(to) else {
                return;
            };
            // Never past what is known to match (hazard 25).
            let commit = peer.progress.vouched().min(committed);
            peer.progress.on_sent_commit(commit);
            raft.send(to, Body::Heartbeat { commit, round });
        });
    }

    /// Takes note that `from` confirmed rounds up to `round`.
    pub(crate) fn confirm_round(&mut self, from: ReplicaId, round: u64) {
        let Some(peer) = self.peer_mut(from) else {
            return;
        };
        peer.acked_round = peer.acked_round.max(round);
        self.settle_rounds();
    }

    /// Answers the rounds that a quorum has confirmed.
    pub(crate) fn settle_rounds(&mut self) {
        let (me, latest) = (self.config.id, self.round);
        let Some(leader) = self.leading_mut() else {
            return;
        };
        let confirmed = leader.peers.confirmed_round(me, latest);
        let reads = &mut leader.reads;
        while let Some(&(number, sent_at)) = reads.sent_at.front()
            && number <= confirmed
        {
            if number > reads.lease_floor {
                reads.lease_from = Some(sent_at);
            }
            reads.sent_at.pop_front();
        }
        while let Some(round) = self.next_confirmed(confirmed) {
            self.answer(round.reads, round.index);
        }
    }

    fn next_confirmed(&mut self, confirmed: u64) -> Option<Round> {
        let rounds = &mut self.leading_mut()?.reads.rounds;
        let is_next = rounds
            .front()
            .is_some_and(|round| round.number <= confirmed);
        is_next.then(|| rounds.pop_front()).flatten()
    }

    fn answer(&mut self, reads: Vec<Read>, index: Index) {
        if let Some(leader) = self.leading_mut() {
            leader.reads.count -= reads.len();
        }
        for read in reads {
            match read {
                Read::Own { user } => self.out.notices().reads.push(ReadState { user, index }),
                Read::Forwarded { from, life, id } => {
                    self.send(from, Body::ReadIndexResponse { life, id, index });
                }
            }
        }
    }
}

/// The lease: for so long after a confirmed round was *sent* no other can have been elected.
impl Raft {
    /// Whether reads may be served without a round now.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        let Some(leader) = self.leading() else {
            return false;
        };
        self.config.lease_ticks > 0
            && !leader.reads.is_lease_lost
            && leader.transferee.is_none()
            && leader
                .reads
                .lease_from
                .is_some_and(|from| self.tick < from.saturating_add(self.config.lease_ticks))
    }

    /// No lease any more in this leadership.
    pub(crate) fn lose_lease(&mut self) {
        if let Some(leader) = self.leading_mut() {
            leader.reads.is_lease_lost = true;
        }
    }
}
