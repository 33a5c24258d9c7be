//! Proposals, appends, commitment, flow control, and snapshots in place of a log.
//!
//! Source: thesis §3.5 (log replication), §3.6.2 (committing entries from previous terms), chapter
//! 5 (compaction), §10.2 (pipelining, and writing to the leader's disk in parallel); etcd `raft.go`.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::entries::Entries;
use crate::entry::{Batch, BatchBuilder, EntryKind, Session};
use crate::error::{DropReason, ProposeError, Refused};
use crate::membership::{Change, MembershipChange, MembershipError};
use crate::message::{Body, Forwarded};
use crate::output::gather_at_hand;
use crate::progress::ProgressState;
use crate::raft::Raft;
use crate::ready::Underway;
use crate::roles::{Leader, State};
use crate::types::{EntryId, Index, ReplicaId, Term};

/// Beside `uncommitted_bytes_max`, for what uncommitted entries take without their commands.
const UNCOMMITTED_FRAMES_ROOM_BYTES: usize = 64 << 10;

/// Bytes of commands that are taken at once: the length of an entry has 32 bits.
pub const COMMANDS_BYTES_MAX: usize = 1 << 30;

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

impl<'a> Proposal<'a> {
    /// A command without a session.
    #[must_use]
    pub const fn command(payload: &'a [u8]) -> Self {
        Self {
            kind: EntryKind::Command,
            session: None,
            payload,
        }
    }
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

/// Proposing.
impl Raft {
    /// Appends commands as leader: one buffer for all. A change of membership is no command:
    /// [`Raft::propose_membership`].
    ///
    /// # Errors
    ///
    /// [`ProposeError`]: nothing was appended.
    pub fn propose<'a>(
        &mut self,
        proposals: impl IntoIterator<Item = Proposal<'a>, IntoIter: Clone>,
    ) -> Result<Proposed, ProposeError> {
        self.wake();
        let leader = self.may_propose()?;
        let proposals = proposals.into_iter();
        let (mut count, mut bytes) = (0, 0);
        for proposal in proposals.clone() {
            if proposal.kind.is_membership() {
                return Err(ProposeError::MembershipKind);
            }
            count += 1;
            bytes = proposal.payload.len().saturating_add(bytes);
        }
        if bytes > COMMANDS_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes });
        }
        if self.is_full(leader, count, bytes) {
            return Err(ProposeError::UncommittedFull);
        }
        let proposed = self.append(proposals, count, bytes);
        self.broadcast_append();
        self.assert_invariants();
        Ok(proposed)
    }

    /// What it holds as leader, if it takes proposals now.
    fn may_propose(&self) -> Result<&Leader, ProposeError> {
        let Some(leader) = self.leading() else {
            return Err(ProposeError::NotLeader {
                leader: self.leader(),
            });
        };
        if self.members.get(self.config.id).is_none() {
            return Err(ProposeError::Removed);
        }
        if leader.transferee.is_some() {
            return Err(ProposeError::TransferInProgress);
        }
        Ok(leader)
    }

    /// Whether so many commands of so many bytes are too much now.
    fn is_full(&self, leader: &Leader, count: usize, bytes: usize) -> bool {
        self.is_uncommitted_full(leader, bytes) || self.is_memory_full(leader, count, bytes)
    }

    /// Any size is taken when nothing is uncommitted, and nothing at all is always taken.
    const fn is_uncommitted_full(&self, leader: &Leader, bytes: usize) -> bool {
        leader.uncommitted_bytes > 0
            && bytes > 0
            && leader.uncommitted_bytes.saturating_add(bytes) > self.config.uncommitted_bytes_max
    }

    /// The same for what entries take besides their commands, of whatever size those are. The
    /// empty entry of a new leader and a change of membership are not asked.
    fn is_memory_full(&self, leader: &Leader, count: usize, bytes: usize) -> bool {
        let first_uncommitted = self.log.committed.next().get();
        let uncommitted = self.log.last().next().get() - first_uncommitted;
        let entries = usize::try_from(uncommitted)
            .unwrap_or(usize::MAX)
            .saturating_add(count);
        let commands = if leader.uncommitted_bytes > 0 {
            leader.uncommitted_bytes.saturating_add(bytes)
        } else {
            0
        };
        let held = entries.saturating_mul(BatchBuilder::frame_bytes(0, false));
        let room = self.config.uncommitted_bytes_max;
        held.saturating_add(commands) > room.saturating_add(UNCOMMITTED_FRAMES_ROOM_BYTES)
    }

    /// Proposes a membership change of the general form.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]: nothing was appended.
    pub fn propose_membership(
        &mut self,
        change: MembershipChange,
    ) -> Result<EntryId, ProposeError> {
        self.propose_change(EntryKind::Membership, &change)
    }

    /// Proposes one membership change of the simple form (thesis §4.1).
    ///
    /// # Errors
    ///
    /// [`ProposeError`]: nothing was appended.
    pub fn propose_simple_membership(&mut self, change: Change) -> Result<EntryId, ProposeError> {
        let change = MembershipChange {
            changes: alloc::vec![change],
            ..MembershipChange::default()
        };
        self.propose_change(EntryKind::MembershipSimple, &change)
    }

    /// Proposes a membership change that is meant for the membership of index `expected` and no
    /// other, so that of two who change it at once one looks again.
    ///
    /// # Errors
    ///
    /// [`ProposeError::MembershipMoved`], and as [`Raft::propose_membership`].
    pub fn propose_membership_at(
        &mut self,
        expected: Index,
        change: MembershipChange,
    ) -> Result<EntryId, ProposeError> {
        self.may_propose()?;
        let current = self.membership.index;
        if current != expected {
            return Err(ProposeError::MembershipMoved { expected, current });
        }
        self.propose_membership(change)
    }

    fn propose_change(
        &mut self,
        kind: EntryKind,
        change: &MembershipChange,
    ) -> Result<EntryId, ProposeError> {
        self.wake();
        let leader = self.may_propose()?;
        let payload = change.encode();
        if MembershipChange::decode(&payload).is_err() {
            return Err(MembershipError::TooLarge.into());
        }
        self.check_change(leader, change)?;
        if self.is_uncommitted_full(leader, payload.len()) {
            return Err(ProposeError::UncommittedFull);
        }
        let proposed = self.append_change(kind, &payload);
        self.broadcast_append();
        self.assert_invariants();
        Ok(proposed)
    }

    fn append_change(&mut self, kind: EntryKind, payload: &[u8]) -> EntryId {
        #[cfg(feature = "trace")]
        if let Ok(change) = MembershipChange::decode(payload) {
            trace!(self, ChangeMembership(change));
        }
        let proposal = Proposal {
            kind,
            session: None,
            payload,
        };
        let proposed = self.append(core::iter::once(proposal), 1, payload.len());
        if let Some(leader) = self.leading_mut() {
            leader.pending_change = proposed.first;
        }
        EntryId::new(proposed.term, proposed.first)
    }

    /// One change at a time, each from the membership before it (thesis §4.1 and hazards 1, 3).
    fn check_change(&self, leader: &Leader, change: &MembershipChange) -> Result<(), ProposeError> {
        if !self.config.validate_changes {
            return Ok(());
        }
        if leader.pending_change > self.changes_done()
            || (self.config.change_after_own_commit && !self.has_committed_in_term())
        {
            return Err(ProposeError::ChangePending);
        }
        if change.changes.is_empty() && !self.membership.is_joint() {
            // Whatever its transition: a joint membership that changes nobody is no use.
            return Err(MembershipError::NotJoint.into());
        }
        self.membership.changed(self.log.last().next(), change)?;
        Ok(())
    }

    /// Passes commands on to the leader. What became of them only their effect tells, and on the
    /// leader's side what it dropped.
    ///
    /// # Errors
    ///
    /// This replica leads itself, or knows of no leader; [`DropReason::BatchSize`]: nothing is to
    /// be passed on, or more than one message carries.
    pub fn forward(&mut self, entries: Vec<Forwarded>) -> Result<ReplicaId, Refused> {
        if !Forwarded::may_travel(&entries) {
            return Refused::dropped(DropReason::BatchSize);
        }
        let State::Follower(follower) = &self.state else {
            return Refused::dropped(DropReason::NotForThisRole);
        };
        let Some(leader) = follower.leader else {
            return Refused::dropped(DropReason::NoLeader);
        };
        self.wake();
        self.send(leader, Body::Propose { entries });
        Ok(leader)
    }

    /// Appends what a follower passed on; a membership change that is refused leaves an empty
    /// command in its place.
    pub(crate) fn on_forwarded_proposals(
        &mut self,
        from: ReplicaId,
        entries: Vec<Forwarded>,
    ) -> Result<(), Refused> {
        match self.state {
            State::Leader(_) => {}
            State::Follower(_) => return self.forward(entries).map(drop),
            _ => return Refused::dropped(DropReason::NoLeader),
        }
        let lengths = entries.iter().map(|entry| entry.payload.len());
        let bytes = lengths.fold(0, usize::saturating_add);
        let has_room =
            |leader| bytes <= COMMANDS_BYTES_MAX && !self.is_full(leader, entries.len(), bytes);
        if !self.may_propose().is_ok_and(has_room) {
            return Refused::dropped(DropReason::ProposalRefused);
        }
        for entry in entries {
            let is_change = entry.kind.is_membership();
            if is_change && !self.is_change_allowed(&entry.payload) {
                let index = self.log.last().next();
                let what = Underway::ChangeOf { from, index };
                self.out.drop(what, DropReason::ProposalRefused);
                self.append_empty();
            } else if is_change {
                self.append_change(entry.kind, &entry.payload);
            } else {
                let proposal = Proposal {
                    kind: entry.kind,
                    session: entry.session,
                    payload: &entry.payload,
                };
                self.append(core::iter::once(proposal), 1, entry.payload.len());
            }
        }
        self.broadcast_append();
        Ok(())
    }

    fn is_change_allowed(&self, payload: &[u8]) -> bool {
        let change = MembershipChange::decode(payload);
        let leader = self.leading();
        leader
            .zip(change.ok())
            .is_some_and(|(leader, change)| self.check_change(leader, &change).is_ok())
    }

    pub(crate) fn append_empty(&mut self) {
        self.append(core::iter::once(Proposal::command(b"")), 1, 0);
    }

    pub(crate) fn append_leave_joint(&mut self) {
        let payload = MembershipChange::default().encode();
        self.append_change(EntryKind::Membership, &payload);
        self.broadcast_append();
    }

    fn append<'a>(
        &mut self,
        proposals: impl Iterator<Item = Proposal<'a>>,
        count: usize,
        bytes: usize,
    ) -> Proposed {
        let first = self.log.last().next();
        let capacity = bytes + count * BatchBuilder::frame_bytes(0, false);
        let buffer = self
            .leading_mut()
            .map(|leader| leader.chunk.take(capacity))
            .unwrap_or_default();
        let mut builder = BatchBuilder::within(self.frame_seed, self.term, first, buffer);
        for proposal in proposals {
            let index = builder.push(
                proposal.kind,
                self.leader_time_ms,
                proposal.session,
                proposal.payload,
            );
            if proposal.kind.is_membership() {
                self.membership_entries.push_back(index);
            } else {
                trace!(self, Replicate);
            }
        }
        let (batch, rest) = builder.finish_within();
        if let Some(leader) = self.leading_mut() {
            leader.chunk.put(rest);
            if let Some(batch) = &batch
                && bytes > 0
            {
                leader.uncommitted_bytes += bytes;
                leader.uncommitted.push_back((batch.last().index, bytes));
            }
        }
        if let Some(batch) = batch {
            let index = batch.last().index;
            self.log.append(batch);
            // The leader's own disk counts like any other (thesis §10.2.1).
            let me = self.config.id;
            self.send(
                me,
                Body::AppendResponse {
                    index,
                    rejected: None,
                },
            );
        }
        Proposed {
            first,
            count,
            term: self.term,
        }
    }
}

/// The leader's side.
impl Raft {
    pub(crate) fn broadcast_append(&mut self) {
        self.for_each_other(|raft, to| {
            raft.maybe_send_append(to, true);
        });
    }

    /// Sends what the follower needs next; whether anything was sent.
    pub(crate) fn maybe_send_append(&mut self, to: ReplicaId, may_be_empty: bool) -> bool {
        let max = self.config.inflight_max();
        let (last, commit) = (self.log.last(), self.log.committed);
        let State::Leader(leader) = &mut self.state else {
            return false;
        };
        let Some(peer) = leader.peers.peer_mut(to) else {
            return false;
        };
        let (progress, is_witness) = (&mut peer.progress, peer.member.is_witness);
        let (next, prev_index) = (progress.next, progress.prev());
        if progress.is_paused() || (next > last && !may_be_empty) {
            return false;
        }
        let Some(prev_term) = self.log.term_at(prev_index) else {
            return self.send_snapshot(to);
        };
        let mut entries = Entries::new();
        // A full window may have been lost whole: an empty append will find out.
        if next <= last && !progress.is_window_full(max) {
            let bytes_max = self.config.message_bytes_max;
            let (log, fetched) = (&self.log, &self.fetched);
            if let Some(newest) = log.newest(next, last, bytes_max) {
                entries = Entries::from(newest.clone());
            } else if !gather_at_hand(log, fetched, (next, last), bytes_max, &mut entries) {
                self.fetch(next, last, bytes_max);
                return false;
            }
        }
        if entries.is_empty() && !may_be_empty {
            return false;
        }
        let sent = entries.last().map(|batch| batch.last().index);
        let bytes = entries.iter().map(Batch::size_bytes).sum();
        progress.on_sent(sent, bytes, max);
        progress.on_sent_commit(commit);
        if is_witness {
            let group = self.config.group;
            for batch in &mut entries {
                *batch = batch.without_commands(group);
            }
        }
        let prev = EntryId::new(prev_term, prev_index);
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

    pub(crate) fn maybe_commit(&mut self) -> bool {
        let State::Leader(leader) = &mut self.state else {
            return false;
        };
        let index = leader.peers.committed();
        // Only entries of the own term are committed by counting (thesis §3.6.2, Figure 3.7).
        if index <= self.log.committed || self.log.term_at(index) != Some(self.term) {
            return false;
        }
        self.log.committed = index;
        while let Some(&(last, bytes)) = leader.uncommitted.front()
            && last <= index
        {
            leader.uncommitted.pop_front();
            leader.uncommitted_bytes -= bytes;
        }
        trace!(self, Commit);
        true
    }

    pub(crate) fn on_append_response(
        &mut self,
        from: ReplicaId,
        index: Index,
        rejected: Option<EntryId>,
    ) -> Result<(), Refused> {
        let is_own = self.is_me(from);
        let State::Leader(leader) = &mut self.state else {
            return Refused::dropped(DropReason::NotLeader);
        };
        let first = self.log.first();
        let Some(peer) = leader.peers.peer_mut(from) else {
            return Refused::dropped(DropReason::UnknownPeer);
        };
        let progress = &mut peer.progress;
        progress.is_recent_active = true;
        if let Some(hint) = rejected {
            return self.on_append_rejected(from, index, hint);
        }
        // That the match point is found is news too.
        let is_found = progress.matched == index && progress.is_probe();
        if !progress.on_accepted(index) && !is_found {
            return Refused::dropped(DropReason::Stale);
        }
        match &progress.state {
            ProgressState::Probe { .. } => progress.become_replicate(),
            // Wherever it got its snapshot: what counts is that the log continues there.
            ProgressState::Snapshot { .. } if progress.matched.next() >= first => {
                progress.become_probe();
                progress.become_replicate();
            }
            ProgressState::Snapshot { .. } => {}
            ProgressState::Replicate { .. } => progress.free_inflight(index),
        }
        let can_bump = progress.can_bump_commit(self.log.committed);
        let is_behind = progress.next <= self.log.last();
        // Who holds no more than what is committed commits no more.
        if index > self.log.committed && self.maybe_commit() {
            self.broadcast_append();
        } else if !is_own && can_bump {
            self.maybe_send_append(from, true);
        }
        if is_behind && !is_own {
            while self.maybe_send_append(from, false) {}
        }
        self.let_go_of_fetched();
        if self.transferee() == Some(from)
            && self
                .peer(from)
                .is_some_and(|peer| peer.progress.matched == self.log.last())
        {
            self.send_timeout_now(from);
        }
        Ok(())
    }

    fn on_append_rejected(
        &mut self,
        from: ReplicaId,
        index: Index,
        hint: EntryId,
    ) -> Result<(), Refused> {
        // Where this log has later terms than the follower's hint, they cannot match.
        let next = if hint.term > Term::ZERO {
            self.log.conflict_hint(hint.index, hint.term).index
        } else {
            hint.index
        };
        let Some(peer) = self.peer_mut(from) else {
            return Refused::dropped(DropReason::UnknownPeer);
        };
        if !peer.progress.on_rejected(index, next) {
            return Refused::dropped(DropReason::Stale);
        }
        if peer.progress.is_replicate() {
            peer.progress.become_probe();
        }
        self.maybe_send_append(from, true);
        Ok(())
    }

    pub(crate) fn on_heartbeat_response(
        &mut self,
        from: ReplicaId,
        round: u64,
    ) -> Result<(), Refused> {
        let last = self.log.last();
        let State::Leader(leader) = &mut self.state else {
            return Refused::dropped(DropReason::NotLeader);
        };
        let Some(peer) = leader.peers.peer_mut(from) else {
            return Refused::dropped(DropReason::UnknownPeer);
        };
        let progress = &mut peer.progress;
        progress.is_recent_active = true;
        progress.set_paused(false);
        // Whatever was in flight may be lost; and a probe that is caught up is freed by an
        // empty append.
        if progress.matched < last || progress.is_probe() {
            self.maybe_send_append(from, true);
        }
        if round > 0 {
            self.confirm_round(from, round);
        }
        Ok(())
    }

    /// A message to `to` was dropped: what was in flight is probably lost with it. A group that has
    /// fallen quiet under `to` wakes, to find out whether it still leads.
    pub fn report_unreachable(&mut self, to: ReplicaId) {
        if self.is_quiet() && self.leader() == Some(to) {
            self.wake();
        }
        if let Some(peer) = self.peer_mut(to)
            && peer.progress.is_replicate()
        {
            peer.progress.become_probe();
        }
        self.assert_invariants();
    }
}

/// The follower's side.
impl Raft {
    pub(crate) fn on_append(
        &mut self,
        from: ReplicaId,
        prev: EntryId,
        commit: Index,
        entries: &mut Entries,
    ) -> Result<(), Refused> {
        if prev.index < self.log.committed {
            // Old: everything it could bring below is here already, and nothing is truncated.
            self.accept(from, self.log.committed);
            return Ok(());
        }
        if !self.log.matches(prev) {
            let index = prev.index.min(self.log.last());
            let hint = self.log.conflict_hint(index, prev.term);
            self.send(
                from,
                Body::AppendResponse {
                    index: prev.index,
                    rejected: Some(hint),
                },
            );
            return Ok(());
        }
        let last = entries
            .last()
            .map_or(prev.index, |batch| batch.last().index);
        entries.take_each(|batch| self.take_news(batch));
        self.commit_to(commit.min(last));
        self.accept(from, last);
        Ok(())
    }

    /// Appends what of `batch` is not here as it is, over what contradicts it.
    #[inline]
    fn take_news(&mut self, mut batch: Batch) {
        let Some(news) = self.first_news(&batch) else {
            return;
        };
        if news <= self.log.last() {
            self.log.truncate(news);
            self.last_bare = self.last_bare.min(self.log.last());
            self.fetched.clear();
            while self
                .membership_entries
                .back()
                .is_some_and(|&index| index >= news)
            {
                self.membership_entries.pop_back();
            }
        }
        if news > batch.first().index {
            batch = batch
                .from_index(news)
                .expect("the news lies within the batch");
        }
        for entry in &batch {
            self.leader_time_ms = self.leader_time_ms.max(entry.leader_time_ms());
            if entry.kind().is_membership() {
                self.membership_entries.push_back(entry.index());
            }
            if entry.is_without_command() {
                self.last_bare = entry.index();
            }
        }
        self.log.append(batch);
    }

    /// The first entry of `batch` that this log does not hold as it is.
    fn first_news(&self, batch: &Batch) -> Option<Index> {
        let (first, last) = (batch.first(), batch.last());
        if first.index > self.log.last() {
            return Some(first.index);
        }
        // What matches at its end matches all along (thesis §3.5, log matching).
        if self.log.matches(last) {
            return None;
        }
        batch
            .iter()
            .find(|entry| !self.log.matches(entry.id()))
            .map(|entry| entry.index())
    }

    #[inline]
    pub(crate) fn accept(&mut self, to: ReplicaId, index: Index) {
        self.send(
            to,
            Body::AppendResponse {
                index,
                rejected: None,
            },
        );
    }

    pub(crate) fn commit_to(&mut self, commit: Index) {
        if commit > self.log.committed {
            self.log.committed = commit;
        }
    }
}

/// Copies forwarded entries out of borrowed proposals.
impl<'a> From<Proposal<'a>> for Forwarded {
    fn from(proposal: Proposal<'a>) -> Self {
        Self {
            kind: proposal.kind,
            session: proposal.session,
            payload: Bytes::copy_from_slice(proposal.payload),
        }
    }
}
