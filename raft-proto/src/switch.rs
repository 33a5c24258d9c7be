//! Taking on a membership, once its entry is committed, and leaving a joint one.
//!
//! Source: thesis §4.1 (single changes), §4.2.2 (a leader that is removed), §4.3 (joint consensus).

use alloc::vec::Vec;

use crate::entry::Batch;
use crate::error::DropReason;
use crate::membership::{Changed, Membership, MembershipChange, MembershipError};
use crate::progress::Members;
use crate::raft::Raft;
use crate::ready::Underway;
use crate::roles::State;
use crate::types::Index;

impl Raft {
    /// Switches the membership: the entry at `index` is committed. Returns the membership as of that
    /// entry. The one in force may be later: where so much waits for the state machine that nothing
    /// is handed out, this replica switches by itself, and this call changes nothing more.
    ///
    /// # Errors
    ///
    /// [`MembershipError`]: the entry has no effect.
    pub fn apply_membership(
        &mut self,
        index: Index,
        change: &MembershipChange,
    ) -> Result<Membership, MembershipError> {
        if index <= self.switched_to
            && let Some(handed) = &mut self.membership_handed
        {
            *handed = handed.changed(index, change)?.membership;
            return Ok(handed.clone());
        }
        self.membership_handed = None;
        let changed = self.membership.changed(index, change)?;
        self.switch(changed);
        self.assert_invariants();
        Ok(self.membership.clone())
    }

    /// Switches to what is committed and durable here while nothing is handed out: no quorum waits
    /// for a slow state machine (hazard 2).
    pub(crate) fn switch_ahead(&mut self) {
        let to = self.log.committed.min(self.log.stable());
        while let Some(&index) = self.membership_entries.front()
            && index <= to
        {
            let bytes_max = self.config.message_bytes_max;
            let mut entries: Vec<Batch> = Vec::new();
            self.entries_at_hand(index, index, bytes_max, &mut entries);
            let Some(entry) = entries.first().and_then(|batch| batch.iter().next()) else {
                return self.fetch(index, index, bytes_max);
            };
            self.membership_entries.pop_front();
            self.switched_to = index;
            if self.membership_handed.is_none() {
                self.membership_handed = Some(self.membership.clone());
            }
            let payload = entry.payload();
            if let Ok(change) = MembershipChange::decode(payload)
                && let Ok(changed) = self.membership.changed(index, &change)
            {
                self.switch(changed);
            }
        }
        // Past the last change too: there is none up to there that a leader would wait for.
        self.switched_to = self.switched_to.max(to);
    }

    pub(crate) fn forget_done_changes(&mut self) {
        let done = self.changes_done();
        while self
            .membership_entries
            .front()
            .is_some_and(|&entry| entry <= done)
        {
            self.membership_entries.pop_front();
        }
    }

    /// Takes on a membership. Source: thesis §4.1, §4.2.2 (a leader that is removed), §4.3.
    pub(crate) fn switch(&mut self, changed: Changed) {
        trace!(self, ApplyMembership(changed.membership.clone()));
        let next = self.log.last().max(Index::new(1));
        self.membership = changed.membership;
        self.members = Members::of(&self.membership);
        self.patience.reset();
        let members = &self.members;
        let leader = match &mut self.state {
            State::Follower(_) => return,
            State::PreCandidate(votes) | State::Candidate(votes) => {
                return votes.switch(members, &changed.added);
            }
            State::Leader(leader) => leader,
        };
        let admitted = self.membership.index;
        leader.peers.switch(members, &changed.added, next, admitted);
        leader.snapshot_requests.retain(|&from, _| {
            let is_member = members.get(from).is_some();
            if !is_member {
                let what = Underway::SnapshotRequestOf { from };
                self.out.drop(what, DropReason::UnknownPeer);
            }
            is_member
        });
        leader.reads.end_lease(self.round);
        let own = members.get(self.config.id);
        let may_lead = own.is_some_and(|own| !own.is_learner);
        if !may_lead {
            if self.config.step_down_on_removal {
                self.become_follower(self.term, None);
            }
            return;
        }
        // Who is left may be all who confirmed; and one alone is never answered.
        self.settle_rounds();
        if self.maybe_commit() {
            self.broadcast_append();
        } else {
            // Whoever is new need not wait for a heartbeat.
            self.for_each_other(|raft, to| {
                raft.maybe_send_append(to, false);
            });
        }
        if self
            .transferee()
            .is_some_and(|to| !self.membership.is_voter(to))
        {
            self.give_up_transfer(DropReason::NotPromotable);
        }
    }

    /// Proposes to leave a joint membership that leaves by itself, when it is time to.
    #[inline]
    pub(crate) fn leave_joint_if_due(&mut self) {
        if self.membership.auto_leave {
            self.leave_joint_if_settled();
        }
    }

    #[cold]
    fn leave_joint_if_settled(&mut self) {
        let is_due = self.leading().is_some_and(|leader| {
            self.changes_done() >= leader.pending_change
                && leader.transferee.is_none()
                && self.members.get(self.config.id).is_some()
        });
        if is_due {
            self.append_leave_joint();
        }
    }
}
