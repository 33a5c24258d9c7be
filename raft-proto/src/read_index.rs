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

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::error::{DropReason, Refused};
use crate::message::Body;
use crate::quorum::VoteResult;
use crate::raft::Raft;
use crate::ready::ReadState;
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
struct Forwarded {
    user: u64,
    give_up_at: u64,
}

/// Reads on their way, and the lease.
///
/// Invariant: numbers of rounds rise, and none is past `round`.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Not in a round yet.
    waiting: Vec<Read>,
    rounds: VecDeque<Round>,
    /// The latest round begun.
    round: u64,
    count: usize,

    /// When rounds that are not confirmed were sent.
    sent_at: VecDeque<(u64, u64)>,
    /// When the latest confirmed round was sent.
    lease_from: Option<u64>,
    /// Rounds up to this one give no lease.
    lease_floor: u64,
    /// No lease for the rest of this leadership.
    is_lease_lost: bool,

    forwarded: BTreeMap<u64, Forwarded>,
    next_id: u64,
}

impl Reads {
    pub(crate) const fn round(&self) -> u64 {
        self.round
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.count == 0 && self.forwarded.is_empty()
    }

    /// Whether reads wait for their round to begin.
    pub(crate) const fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn next_give_up(&self) -> Option<u64> {
        self.forwarded.values().map(|read| read.give_up_at).min()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.count * size_of::<Read>()
            + self.rounds.len() * size_of::<Round>()
            + self.sent_at.len() * size_of::<(u64, u64)>()
            + self.forwarded.len() * size_of::<(u64, Forwarded)>()
    }
}

/// Asking.
impl Raft {
    /// Asks for an index at which a read is linearizable. The answer comes as
    /// [`Ready::reads`](crate::Ready::reads) with the caller's number, or
    /// [`Ready::reads_dropped`](crate::Ready::reads_dropped).
    ///
    /// # Errors
    ///
    /// [`DropReason::NoLeader`], or [`DropReason::ReadsFull`]: ask again later, or elsewhere.
    pub fn read_index(&mut self, user: u64) -> Result<(), Refused> {
        self.wake();
        if self.is_leader() {
            return self.add_read(Read::Own { user });
        }
        let Some(leader) = self.leader else {
            return Refused::dropped(DropReason::NoLeader);
        };
        if self.reads.forwarded.len() >= self.config.reads_max {
            return Refused::dropped(DropReason::ReadsFull);
        }
        self.reads.next_id += 1;
        let id = self.reads.next_id;
        let give_up_at = self
            .tick
            .saturating_add(self.config.election_timeout_ticks_min);
        self.reads
            .forwarded
            .insert(id, Forwarded { user, give_up_at });
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
        if !self.is_leader() {
            return Refused::dropped(DropReason::NotLeader);
        }
        self.add_read(Read::Forwarded { from, life, id })
    }

    fn add_read(&mut self, read: Read) -> Result<(), Refused> {
        if self.reads.count >= self.config.reads_max {
            return Refused::dropped(DropReason::ReadsFull);
        }
        self.reads.count += 1;
        self.reads.waiting.push(read);
        Ok(())
    }

    pub(crate) fn on_read_answered(
        &mut self,
        from: ReplicaId,
        life: u64,
        id: u64,
        index: Index,
    ) -> Result<(), Refused> {
        if self.leader != Some(from) {
            return Refused::dropped(DropReason::NotLeader);
        }
        if life != self.config.life {
            return Refused::dropped(DropReason::UnknownRead);
        }
        let Some(read) = self.reads.forwarded.remove(&id) else {
            return Refused::dropped(DropReason::UnknownRead);
        };
        let user = read.user;
        self.out.reads.push(ReadState { user, index });
        Ok(())
    }

    pub(crate) fn give_up_reads(&mut self) {
        let (tick, out) = (self.tick, &mut self.out);
        self.reads.forwarded.retain(|_, read| {
            let is_over = read.give_up_at <= tick;
            if is_over {
                out.reads_dropped.push(read.user);
            }
            !is_over
        });
    }

    /// Whatever waited for this leadership, or for this leader, must be asked again.
    pub(crate) fn drop_reads(&mut self) {
        let waiting = core::mem::take(&mut self.reads.waiting);
        let rounds = core::mem::take(&mut self.reads.rounds);
        let own = rounds.into_iter().flat_map(|round| round.reads);
        let own = own.chain(waiting).filter_map(|read| match read {
            Read::Own { user } => Some(user),
            Read::Forwarded { .. } => None,
        });
        self.out.reads_dropped.extend(own);
        let forwarded = core::mem::take(&mut self.reads.forwarded);
        self.out
            .reads_dropped
            .extend(forwarded.into_values().map(|read| read.user));
        self.reads.count = 0;
        self.reads.sent_at.clear();
        self.reads.lease_from = None;
        self.reads.lease_floor = self.reads.round;
        self.reads.is_lease_lost = false;
    }
}

/// Confirming.
impl Raft {
    /// Whether an entry of this leadership is committed. The term of the commit index does not tell:
    /// a group that begins from a snapshot may have it before anybody led.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.is_leader() && self.log.committed >= self.led_from
    }

    /// Answers or puts into one round all reads of this pass.
    pub(crate) fn begin_read_round(&mut self) {
        // Before the first commit of the term this leader may not know of entries that an earlier
        // one acknowledged (thesis §6.4, hazard 38).
        if self.reads.waiting.is_empty() || !self.is_leader() || !self.has_committed_in_term() {
            return;
        }
        let index = self.log.committed;
        let me = self.config.id;
        let is_alone = self
            .peers
            .vote_result(|peer| (peer.id == me).then_some(true));
        let reads = core::mem::take(&mut self.reads.waiting);
        if is_alone == VoteResult::Won || self.has_lease() {
            return self.answer(reads, index);
        }
        self.reads.round += 1;
        let number = self.reads.round;
        self.reads.rounds.push_back(Round {
            number,
            index,
            reads,
        });
        self.broadcast_heartbeat();
    }

    /// The heartbeat that time asks for.
    pub(crate) fn beat(&mut self) {
        self.chunk.rest();
        if self.config.lease_ticks > 0 {
            self.reads.round += 1;
        }
        self.broadcast_heartbeat();
    }

    fn broadcast_heartbeat(&mut self) {
        if self.config.lease_ticks > 0 {
            // A round counts from when it was first sent.
            let is_new = self
                .reads
                .sent_at
                .back()
                .is_none_or(|&(round, _)| round < self.reads.round);
            if is_new {
                self.reads.sent_at.push_back((self.reads.round, self.tick));
                let bound = self.config.election_timeout_ticks_max;
                while self.reads.sent_at.len() > 1
                    && self.reads.sent_at[0].1.saturating_add(bound) < self.tick
                {
                    self.reads.sent_at.pop_front();
                }
            }
        }
        let needs_round = self.config.lease_ticks > 0 || !self.reads.rounds.is_empty();
        let round = if needs_round { self.reads.round } else { 0 };
        let committed = self.log.committed;
        self.for_each_other(|raft, to| {
            let Some(peer) = raft.peers.peer_mut(to) else {
                return;
            };
            // Never past what is known to match (hazard 25).
            let commit = peer.progress.matched.min(committed);
            peer.progress.on_sent_commit(commit);
            raft.send(to, Body::Heartbeat { commit, round });
        });
    }

    /// Takes note that `from` confirmed rounds up to `round`.
    pub(crate) fn confirm_round(&mut self, from: ReplicaId, round: u64) {
        let Some(peer) = self.peers.peer_mut(from) else {
            return;
        };
        peer.acked_round = peer.acked_round.max(round);
        self.settle_rounds();
    }

    /// Answers the rounds that a quorum has confirmed.
    pub(crate) fn settle_rounds(&mut self) {
        let confirmed = self.peers.confirmed_round(self.config.id, self.reads.round);
        while let Some(&(number, sent_at)) = self.reads.sent_at.front()
            && number <= confirmed
        {
            if number > self.reads.lease_floor {
                self.reads.lease_from = Some(sent_at);
            }
            self.reads.sent_at.pop_front();
        }
        while self
            .reads
            .rounds
            .front()
            .is_some_and(|round| round.number <= confirmed)
        {
            if let Some(round) = self.reads.rounds.pop_front() {
                self.answer(round.reads, round.index);
            }
        }
    }

    fn answer(&mut self, reads: Vec<Read>, index: Index) {
        self.reads.count -= reads.len();
        for read in reads {
            match read {
                Read::Own { user } => self.out.reads.push(ReadState { user, index }),
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
        self.config.lease_ticks > 0
            && self.is_leader()
            && !self.reads.is_lease_lost
            && self.transferee.is_none()
            && self
                .reads
                .lease_from
                .is_some_and(|from| self.tick < from.saturating_add(self.config.lease_ticks))
    }

    /// Only rounds begun from now on give a lease again.
    pub(crate) const fn end_lease(&mut self) {
        self.reads.lease_from = None;
        self.reads.lease_floor = self.reads.round;
    }

    /// No lease any more in this leadership.
    pub(crate) const fn lose_lease(&mut self) {
        self.reads.is_lease_lost = true;
    }
}
