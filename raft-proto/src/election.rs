//! Time, elections and the handing over of leadership.
//!
//! Source: thesis §3.4 (elections), §3.6.1 (the election restriction), §3.10 (transfer), §6.2
//! (a leader that hears of no quorum steps down), §9.6 (pre-vote); etcd `raft.go`.

use crate::error::{DropReason, Refused};
use crate::message::Body;
use crate::quorum::VoteResult;
use crate::raft::Raft;
use crate::ready::{Role, Underway};
use crate::roles::{Leader, State};
use crate::types::{EntryId, Index, ReplicaId, Term};

/// Why a replica stands for election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// To ask whether it could be won.
    PreElection,
    /// Because the leader was not heard of.
    Election,
    /// Because the leader asked for it.
    Transfer,
}

/// How long a replica of low priority lets others go first.
///
/// Priorities only delay a candidacy: no vote is ever denied for one.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    /// Election timeouts that passed without a leader.
    rounds: u32,
    /// The priority to reach; none: the highest there is.
    target: Option<u8>,
}

impl Patience {
    pub(crate) const fn reset(&mut self) {
        self.rounds = 0;
        self.target = None;
    }

    pub(crate) const fn rounds(&self) -> u32 {
        self.rounds
    }
}

/// After so many rounds without a leader the target priority falls.
const ROUNDS_BEFORE_TARGET_FALLS: u32 = 2;

/// Time.
impl Raft {
    /// The wall time, in milliseconds, that entries appended from now on carry. It never falls, not
    /// over a change of leader either: every entry taken in raises it. Of what a received snapshot
    /// covers only the driver can tell the time, with this.
    pub fn set_leader_time_ms(&mut self, ms: u64) {
        self.leader_time_ms = self.leader_time_ms.max(ms);
    }

    /// The tick at which time alone changes something; `None` while nothing does.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let read = self.read_give_up_at();
        let own = if self.is_quiet() {
            None
        } else if let Some(leader) = self.leading() {
            let heartbeat = leader
                .heartbeat_from
                .saturating_add(self.config.heartbeat_ticks);
            let timeout = self.config.election_timeout_ticks_min;
            let check = self.config.check_quorum.then_some(self.elapsed_from);
            let transfer = leader.transferee.map(|_| leader.transfer_from);
            let since = check.into_iter().chain(transfer).min();
            let due = since.map(|from| from.saturating_add(timeout));
            Some(due.map_or(heartbeat, |due| due.min(heartbeat)))
        } else {
            self.is_promotable()
                .then(|| self.elapsed_from.saturating_add(self.timeout))
        };
        let fetch = self.fetch_retry_at();
        read.into_iter().chain(own).chain(fetch).min()
    }

    /// Tells the present tick, and fires nothing: what comes in from now on is stamped with it. A
    /// tick before the present one changes nothing.
    ///
    /// The driver takes the inputs of a pass from where they wait, then reads its clock, then calls
    /// this, hands the inputs over and calls [`Raft::advance_to`]. In this order what was heard
    /// during a pause counts before a timer that it would have held back; and no read that is
    /// answered by a lease was asked for later than the lease is looked at.
    pub fn set_tick(&mut self, tick: u64) {
        self.tick = self.tick.max(tick);
    }

    /// Moves time on, as [`Raft::set_tick`] does, and fires the timers that are due by then: after
    /// a gap each of them once.
    pub fn advance_to(&mut self, tick: u64) {
        self.set_tick(tick);
        self.give_up_reads();
        self.retry_fetches();
        if self.is_quiet() {
            return;
        }
        if self.is_leader() {
            self.advance_leader();
        } else if self.is_promotable() && self.elapsed() >= self.timeout {
            self.elapsed_from = self.tick;
            // Whoever leaves the candidacy to replicas of higher priority must not hold their votes
            // up by a leader that it would itself have stood against.
            if !self.is_patience_over() || self.is_fenced() {
                if let Some(follower) = self.following_mut() {
                    follower.leader = None;
                }
            } else {
                self.hup(self.first_campaign()).ok();
            }
        }
        self.assert_invariants();
    }

    fn advance_leader(&mut self) {
        let (tick, timeout) = (self.tick, self.config.election_timeout_ticks_min);
        if self.elapsed() >= timeout {
            self.elapsed_from = tick;
            if let Some(leader) = self.leading_mut() {
                leader.check_put_off_at = None;
            }
            if self.config.check_quorum {
                self.check_quorum();
            }
        }
        // A transfer that takes so long has failed (thesis §3.10).
        let has_failed = |leader: &Leader| tick.saturating_sub(leader.transfer_from) >= timeout;
        if self.leading().is_some_and(has_failed) {
            self.give_up_transfer(DropReason::NoAnswer);
        }
        let every = self.config.heartbeat_ticks;
        if let Some(leader) = self.leading_mut()
            && tick.saturating_sub(leader.heartbeat_from) >= every
        {
            leader.heartbeat_from = tick;
            if !self.maybe_quiesce() {
                self.beat();
            }
        }
    }

    /// Steps down if no quorum was heard of since the last check (thesis §6.2).
    fn check_quorum(&mut self) {
        let me = self.config.id;
        let State::Leader(leader) = &mut self.state else {
            return;
        };
        if !leader.peers.is_quorum_active() {
            return self.become_follower(self.term, None);
        }
        let others = leader.peers.iter_mut();
        for peer in others.filter(|peer| peer.member.id != me) {
            peer.progress.is_recent_active = false;
        }
    }

    /// Ticks since the leader was heard of; for a leader, since it last checked its quorum.
    pub(crate) const fn elapsed(&self) -> u64 {
        self.tick.saturating_sub(self.elapsed_from)
    }

    pub(crate) fn draw_timeout(&mut self) {
        let (min, max) = (
            self.config.election_timeout_ticks_min,
            self.config.election_timeout_ticks_max,
        );
        let span = (max - min).saturating_add(1);
        self.timeout = min.saturating_add(self.draw() % span);
    }

    /// Whether a replica of this priority stands now: it waits one more timeout for each step of
    /// priority between it and the target, which falls by a fifth after two rounds.
    fn is_patience_over(&mut self) -> bool {
        let own = self.membership.priority(self.config.id);
        let voters = || {
            let full = self.members.iter().filter(|member| !member.is_witness);
            full.filter(|member| member.is_voter())
        };
        let highest = voters()
            .map(|voter| self.membership.priority(voter.id))
            .max()
            .unwrap_or(own);
        let mut target = self.patience.target.unwrap_or(highest);
        if self.patience.rounds >= ROUNDS_BEFORE_TARGET_FALLS {
            target = target.saturating_sub((target / 5).max(1));
        }
        let mut steps = 0_u32;
        let mut level = own;
        while let Some(above) = voters()
            .map(|voter| self.membership.priority(voter.id))
            .filter(|&priority| priority > level && priority <= target)
            .min()
        {
            steps += 1;
            level = above;
        }
        self.patience.target = Some(target);
        let is_over = self.patience.rounds >= steps;
        self.patience.rounds = self.patience.rounds.saturating_add(1);
        is_over
    }
}

/// Elections.
impl Raft {
    /// Stands for election now, if it may.
    ///
    /// # Errors
    ///
    /// It may not: it leads, is no voter, is a witness, takes in a snapshot, or has committed
    /// membership changes to switch to first; or [`DropReason::LeaseHeld`]: a lease that it granted
    /// may still run. Wait for the election timeout, or ask the leader to hand over.
    pub fn campaign(&mut self) -> Result<(), Refused> {
        self.wake();
        let result = self.hup(self.first_campaign());
        self.assert_invariants();
        result
    }

    pub(crate) fn campaign_by_transfer(&mut self) -> Result<(), Refused> {
        // No pre-vote: this replica is known to be in touch, and the lease must not stop it.
        self.hup(Campaign::Transfer)
    }

    const fn first_campaign(&self) -> Campaign {
        if self.config.pre_vote {
            Campaign::PreElection
        } else {
            Campaign::Election
        }
    }

    pub(crate) fn is_promotable(&self) -> bool {
        self.log.installing.is_none()
            && self.last_bare == Index::ZERO
            && self
                .members
                .get(self.config.id)
                .is_some_and(|own| !own.is_learner && !own.is_witness)
    }

    /// A committed change that is not switched to: an election could use the wrong quorum
    /// (hazard 2).
    pub(crate) fn has_undone_change(&self) -> bool {
        let done = self.changes_done();
        self.membership_entries
            .iter()
            .any(|&index| index > done && index <= self.log.committed)
    }

    fn hup(&mut self, campaign: Campaign) -> Result<(), Refused> {
        if self.is_leader() {
            return Refused::dropped(DropReason::NotForThisRole);
        }
        if !self.is_promotable() || self.has_undone_change() {
            return Refused::dropped(DropReason::NotPromotable);
        }
        // Its own vote counts too. Who was told to stand by the leader breaks no lease.
        if self.is_fenced() && campaign != Campaign::Transfer {
            return Refused::dropped(DropReason::LeaseHeld);
        }
        self.start(campaign);
        Ok(())
    }

    /// Keeps in mind until when a lease may run that this replica grants by answering its leader.
    pub(crate) fn grant_lease(&mut self) {
        if self.fence_ticks > 0 && !self.config.campaign_within_lease {
            let until = self.tick.saturating_add(self.fence_ticks);
            self.no_vote_before = self.no_vote_before.max(until);
        }
    }

    /// Whether it would break a lease that it granted, were it to stand.
    pub(crate) const fn is_fenced(&self) -> bool {
        self.tick < self.no_vote_before && !self.config.campaign_within_lease
    }

    fn start(&mut self, campaign: Campaign) {
        let me = self.config.id;
        let term = if campaign == Campaign::PreElection {
            self.become_pre_candidate();
            self.term.next()
        } else {
            self.become_candidate();
            self.term
        };
        let last = self.log.last_id();
        for at in 0..self.members.len() {
            let member = self.members.at(at);
            let id = member.id;
            if !member.is_voter() {
                continue;
            }
            let body = match campaign {
                // The own vote counts like any other, once it is durable.
                Campaign::PreElection if id == me => Body::PreVoteResponse { is_rejected: false },
                _ if id == me => Body::VoteResponse { is_rejected: false },
                Campaign::PreElection => Body::PreVote { last },
                Campaign::Election | Campaign::Transfer => Body::Vote {
                    last,
                    is_transfer: campaign == Campaign::Transfer,
                },
            };
            self.send_in(term, id, body);
        }
    }

    pub(crate) fn check_lease(&self) -> Result<(), Refused> {
        let is_check_due = self.elapsed() >= self.config.election_timeout_ticks_min;
        let is_in_touch = if let Some(leader) = self.leading() {
            // Messages come before the timers of their tick, so before a check that is due.
            !is_check_due || leader.peers.is_quorum_active()
        } else {
            self.leader().is_some() && !is_check_due
        };
        if self.config.check_quorum && is_in_touch {
            Refused::dropped(DropReason::LeaderAlive)
        } else if self.tick < self.no_vote_before {
            Refused::dropped(DropReason::LeaseHeld)
        } else {
            Ok(())
        }
    }

    pub(crate) fn on_vote_request(
        &mut self,
        from: ReplicaId,
        term: Term,
        last: EntryId,
        is_pre: bool,
    ) {
        // A vote cast is repeated; a first one is cast if no leader is known; a pre-vote for a
        // later term promises nothing. Learners vote: they may be voters and not know it yet.
        let may_vote = self.vote == Some(from)
            || (self.vote.is_none() && self.leader().is_none())
            || (is_pre && term > self.term);
        // The election restriction: ids order by term, then by index (thesis §3.6.1).
        let is_rejected = !(may_vote && last >= self.log.last_id());
        let body = if is_pre {
            Body::PreVoteResponse { is_rejected }
        } else {
            Body::VoteResponse { is_rejected }
        };
        // The asked term, not ours: the asker ignores what is older than its own.
        let term = if is_rejected { self.term } else { term };
        self.send_in(term, from, body);
        if !is_rejected && !is_pre {
            self.elapsed_from = self.tick;
            self.vote = Some(from);
        }
    }

    pub(crate) fn on_vote_response(&mut self, from: ReplicaId, is_rejected: bool) {
        let (State::PreCandidate(votes) | State::Candidate(votes)) = &mut self.state else {
            return;
        };
        if self.members.get(from).is_some() {
            votes.note(from, !is_rejected);
        }
        match self.members.vote_result(|id| votes.of(id)) {
            VoteResult::Won if self.role() == Role::PreCandidate => self.start(Campaign::Election),
            VoteResult::Won => {
                self.become_leader();
                self.broadcast_append();
            }
            VoteResult::Lost => self.become_follower(self.term, None),
            VoteResult::Pending => {}
        }
    }

    /// Hands the leadership to `to`, or asks the leader to.
    ///
    /// It has failed when an election timeout has passed and this replica still leads: told as
    /// [`Ready::dropped`](crate::Ready::dropped). Another member takes the place of the one before; the
    /// leader itself ends the transfer, and is an error.
    ///
    /// # Errors
    ///
    /// `to` may not lead, leads already, or there is no leader to ask.
    pub fn transfer_leader(&mut self, to: ReplicaId) -> Result<(), Refused> {
        self.wake();
        let is_me = self.is_me(to);
        let State::Leader(own) = &mut self.state else {
            let Some(leader) = self.leader() else {
                return Refused::dropped(DropReason::NoLeader);
            };
            self.send(leader, Body::TransferLeader { to });
            return Ok(());
        };
        let Some(peer) = own.peers.peer(to) else {
            return Refused::dropped(DropReason::UnknownPeer);
        };
        if peer.member.is_learner || peer.member.is_witness {
            return Refused::dropped(DropReason::NotPromotable);
        }
        let is_caught_up = peer.progress.matched == self.log.last();
        if own.transferee == Some(to) {
            return Refused::dropped(DropReason::TransferInProgress);
        }
        // Whoever else was to lead is not waited for any more.
        let reason = DropReason::TransferInProgress;
        self.give_up_transfer(if is_me {
            DropReason::NotForThisRole
        } else {
            reason
        });
        if is_me {
            return Refused::dropped(DropReason::NotForThisRole);
        }
        let (tick, timeout) = (self.tick, self.config.election_timeout_ticks_min);
        if let State::Leader(own) = &mut self.state {
            own.transferee = Some(to);
            own.transfer_from = tick;
            // It has an election timeout, as in etcd; but transfer after transfer must not put off
            // the check of the quorum for ever.
            let first = *own.check_put_off_at.get_or_insert(tick);
            if tick.saturating_sub(first) < timeout {
                self.elapsed_from = tick;
            }
        }
        if is_caught_up {
            self.send_timeout_now(to);
        } else {
            self.maybe_send_append(to, true);
        }
        Ok(())
    }

    pub(crate) fn give_up_transfer(&mut self, reason: DropReason) {
        if let Some(to) = self
            .leading_mut()
            .and_then(|leader| leader.transferee.take())
        {
            self.out.drop(Underway::Transfer { to }, reason);
        }
    }

    pub(crate) fn send_timeout_now(&mut self, to: ReplicaId) {
        // Whoever was told may stand at any later time, against any lease.
        self.lose_lease();
        self.send(to, Body::TimeoutNow);
    }

    /// Forgets the leader: the next vote request is not held off, and this replica's own
    /// candidacy is not hastened.
    ///
    /// # Errors
    ///
    /// [`DropReason::LeaseHeld`] where reads rely on a lease.
    pub fn forget_leader(&mut self) -> Result<(), Refused> {
        let has_leases = self.fence_ticks > 0;
        let Some(follower) = self.following_mut() else {
            return Refused::dropped(DropReason::NotForThisRole);
        };
        if has_leases {
            return Refused::dropped(DropReason::LeaseHeld);
        }
        follower.forgotten = follower.leader.take().or(follower.forgotten);
        self.wake();
        Ok(())
    }
}
