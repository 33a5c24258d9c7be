//! Falling quiet when nothing is to be done, and waking.
//!
//! A quiet group costs nothing: no heartbeats, no election timeouts, no deadline. Whatever
//! happens wakes it: a message, a proposal, a read. A follower that wakes and hears nothing
//! stands for election as ever, so a leader that died quietly is found by the next request.

use crate::error::{DropReason, Refused};
use crate::message::Body;
use crate::raft::Raft;
use crate::roles::{Leader, State};
use crate::types::{EntryId, Index, ReplicaId};

impl Raft {
    /// Whether the group is quiet here: no deadline, no heartbeats, until something happens.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        match &self.state {
            State::Follower(follower) => follower.is_quiet,
            State::Leader(leader) => leader.is_quiet,
            State::PreCandidate(_) | State::Candidate(_) => false,
        }
    }

    /// Takes note of work, and wakes.
    #[inline]
    pub(crate) fn wake(&mut self) {
        if let State::Leader(leader) = &mut self.state {
            leader.worked_at = self.tick;
        }
        if self.is_quiet() {
            self.wake_from_quiet();
        }
    }

    #[cold]
    fn wake_from_quiet(&mut self) {
        let (tick, me) = (self.tick, self.config.id);
        // The time in between counts for nobody: neither as silence nor as a lease.
        match &mut self.state {
            State::Follower(follower) => {
                follower.is_quiet = false;
                self.elapsed_from = tick;
            }
            State::Leader(leader) => {
                leader.is_quiet = false;
                leader.heartbeat_from = tick;
                leader.check_put_off_at = None;
                let others = leader.peers.iter_mut();
                for peer in others.filter(|peer| peer.member.id != me) {
                    peer.progress.is_recent_active = true;
                }
                self.elapsed_from = tick;
                self.beat();
            }
            State::PreCandidate(_) | State::Candidate(_) => {}
        }
    }

    /// Takes note of the work that a message brings, and wakes by it. A heartbeat is no work, and
    /// wakes all the same.
    #[inline]
    pub(crate) fn wake_by(&mut self, body: &Body) {
        if self.is_quiet() {
            self.wake_from_quiet_by(body);
        } else if let State::Leader(leader) = &mut self.state
            && !matches!(
                body,
                Body::Quiesce { .. } | Body::Heartbeat { .. } | Body::HeartbeatResponse { .. }
            )
        {
            leader.worked_at = self.tick;
        }
    }

    #[cold]
    fn wake_from_quiet_by(&mut self, body: &Body) {
        match body {
            Body::Quiesce { .. } => {}
            // The last answers to a leader that fell quiet must not wake it again.
            Body::HeartbeatResponse { .. } | Body::AppendResponse { .. }
                if self.leading().is_some_and(|leader| self.is_idle(leader)) => {}
            _ => self.wake(),
        }
    }

    /// Whether nothing at all is under way. Only a leader can tell.
    fn is_idle(&self, leader: &Leader) -> bool {
        let last = self.log.last();
        let is_settled = self.log.committed == last
            && self.log.applied == last
            && self.log.stable() == last
            && leader.transferee.is_none()
            && !self.membership.is_joint()
            && self.membership_entries.is_empty()
            && leader.reads.is_idle()
            && leader.snapshot_requests.is_empty();
        is_settled
            && leader.peers.iter().all(|peer| {
                peer.progress.matched == last
                    && (self.is_me(peer.member.id) || peer.progress.is_replicate())
            })
    }

    /// Falls quiet if there was no work for long enough; whether it did.
    pub(crate) fn maybe_quiesce(&mut self) -> bool {
        let after = self.config.quiesce_timeouts;
        let idle_ticks = after.saturating_mul(self.config.election_timeout_ticks_min);
        let is_due = |leader: &Leader| {
            self.tick.saturating_sub(leader.worked_at) >= idle_ticks && self.is_idle(leader)
        };
        if after == 0 || !self.leading().is_some_and(is_due) {
            return false;
        }
        let round = self.round;
        if let Some(leader) = self.leading_mut() {
            leader.is_quiet = true;
            leader.reads.end_lease(round);
            leader.chunk.clear();
        }
        let last = self.log.last_id();
        self.for_each_other(|raft, to| raft.send(to, Body::Quiesce { last }));
        true
    }

    pub(crate) fn on_quiesce(&mut self, from: ReplicaId, last: EntryId) -> Result<(), Refused> {
        match &mut self.state {
            State::Follower(follower)
                if follower.leader == Some(from)
                    && self.config.quiesce_timeouts > 0
                    && self.log.last_id() == last
                    && self.log.stable() == last.index
                    && self.log.committed == last.index
                    && follower.forwarded.is_empty()
                    && last.index > Index::ZERO =>
            {
                follower.is_quiet = true;
                Ok(())
            }
            _ => Refused::dropped(DropReason::Stale),
        }
    }
}
