//! What can be said against a message before it is acted on.
//!
//! Source: thesis §3.6.3 (what is committed is in every later leader's log); PROTOCOL.md, messages.

use crate::entry::{Batch, EntryRef};
use crate::error::{DropReason, Refused, ViolationKind};
use crate::membership::MembershipChange;
use crate::message::{Body, Message, SnapshotMeta};
use crate::raft::Raft;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// No term and no index of a message reaches this: a replica could not count on from there.
const NUMBER_LIMIT: u64 = 1 << 63;

/// Whether the numbers of a message can be: whoever sends it.
#[inline]
fn is_in_range(message: &Message) -> bool {
    let term = message.term;
    let is_index = |index: Index| index.get() < NUMBER_LIMIT;
    // Of a log whose newest term is at most `newest`; nothing at all has neither term nor index.
    let is_place = |id: EntryId, newest: Term| {
        is_index(id.index) && id.term <= newest && (id.index > Index::ZERO || id == EntryId::ZERO)
    };
    let is_snapshot = |meta: &SnapshotMeta| is_place(meta.id, term) && meta.id.term > Term::ZERO;
    let has_term = match message.body {
        // Both are as good in any term, and none may move one by them.
        Body::Propose { .. } | Body::ReadIndex { .. } => term == Term::ZERO,
        Body::PreVoteResponse { is_rejected: true } => true,
        _ => term > Term::ZERO,
    };
    has_term
        && term.get() < NUMBER_LIMIT
        && match &message.body {
            Body::PreVote { last } | Body::Vote { last, .. } | Body::Quiesce { last } => {
                is_place(*last, term)
            }
            Body::Append { prev, commit, .. } => is_place(*prev, term) && is_index(*commit),
            Body::AppendResponse { index, rejected } => {
                is_index(*index) && rejected.is_none_or(|hint| is_place(hint, term))
            }
            Body::Heartbeat { commit: index, .. }
            | Body::ReadIndexResponse { index, .. }
            | Body::SnapshotRequest { index, .. } => is_index(*index),
            Body::Snapshot { meta } | Body::SnapshotOffer { meta, .. } => is_snapshot(meta),
            _ => true,
        }
}

/// What can be said against an entry by itself. A witness gets the content of changes too.
fn check_entry(entry: EntryRef<'_>) -> Option<ViolationKind> {
    let found = entry.id();
    let is_sound =
        !entry.kind().is_membership() || MembershipChange::decode(entry.payload()).is_ok();
    (!is_sound).then_some(ViolationKind::Change { found })
}

impl Raft {
    /// What can be said against a message before anything is changed by it.
    pub(crate) fn check_message(&self, message: &Message) -> Result<(), Refused> {
        let (from, term) = (message.from, message.term);
        if message.to != self.config.id {
            return Refused::dropped(DropReason::NotForThisReplica);
        }
        if from == self.config.id {
            return Refused::violation(from, ViolationKind::OwnName);
        }
        let is_known = message.body.is_from_anybody()
            || self.members.get(from).is_some()
            || (term == self.term && self.led_by() == Some(from) && !message.body.is_of_member());
        if !is_known {
            return Refused::dropped(DropReason::UnknownPeer);
        }
        if !is_in_range(message) {
            return Refused::violation(from, ViolationKind::OutOfRange);
        }
        if term < self.term {
            return Ok(());
        }
        match &message.body {
            Body::Append { prev, entries, .. } => {
                self.check_leader(from, term)?;
                self.check_append(from, term, *prev, entries)
            }
            Body::Heartbeat { commit, .. } => {
                self.check_leader(from, term)?;
                if *commit <= self.log.last() {
                    return Ok(());
                }
                Refused::violation(
                    from,
                    ViolationKind::CommitPastEnd {
                        commit: *commit,
                        last: self.log.last(),
                    },
                )
            }
            Body::Snapshot { meta } => {
                self.check_leader(from, term)?;
                self.check_snapshot(from, meta)
            }
            Body::TimeoutNow | Body::Quiesce { .. } => self.check_leader(from, term),
            Body::SnapshotOffer { meta, .. } => self.check_snapshot(from, meta),
            Body::AppendResponse { index, .. }
                if self.is_leader() && term == self.term && *index > self.log.last() =>
            {
                Refused::violation(
                    from,
                    ViolationKind::AckPastEnd {
                        acked: *index,
                        last: self.log.last(),
                    },
                )
            }
            Body::HeartbeatResponse { round }
                if self.is_leader() && term == self.term && *round > self.round =>
            {
                Refused::violation(from, ViolationKind::RoundNeverBegun { round: *round })
            }
            _ => Ok(()),
        }
    }

    /// Of what only the leader of its term says: whether another is known to lead that term.
    #[inline]
    fn check_leader(&self, from: ReplicaId, term: Term) -> Result<(), Refused> {
        match self.leader() {
            Some(leader) if leader != from && term == self.term => {
                Refused::violation(from, ViolationKind::SecondLeader { term, leader })
            }
            _ => Ok(()),
        }
    }

    fn check_append(
        &self,
        from: ReplicaId,
        term: Term,
        prev: EntryId,
        entries: &[Batch],
    ) -> Result<(), Refused> {
        // Who is no member here may be a witness by an entry that is still to come.
        let is_full = !entries.is_empty()
            && self
                .members
                .get(self.config.id)
                .is_some_and(|own| !own.is_witness);
        let mut before = prev;
        for batch in entries {
            let (first, last) = (batch.first(), batch.last());
            let follows =
                first.index == before.index.next() && first.term >= before.term.max(Term::new(1));
            if !follows || last.term > term || last.index.get() >= NUMBER_LIMIT {
                let found = if follows { last } else { first };
                return Refused::violation(from, ViolationKind::EntryOrder { found });
            }
            if let Some(kind) = batch.iter().find_map(check_entry) {
                return Refused::violation(from, kind);
            }
            if is_full && batch.iter().any(|entry| entry.is_without_command()) {
                return Refused::dropped(DropReason::WithoutCommand);
            }
            before = last;
        }
        // What is committed is in the log of every later leader (thesis §3.6.3).
        if prev.index > self.log.committed {
            return Ok(());
        }
        let conflict = |claimed: EntryId| {
            let committed = self.log.term_at(claimed.index)?;
            (claimed.index <= self.log.committed && committed != claimed.term)
                .then_some(ViolationKind::CommittedConflict { claimed, committed })
        };
        if prev.index == self.log.committed {
            return match conflict(prev) {
                Some(kind) => Refused::violation(from, kind),
                None => Ok(()),
            };
        }
        let below = entries
            .iter()
            .take_while(|batch| batch.first().index <= self.log.committed)
            .flat_map(Batch::iter)
            .map(|entry| entry.id());
        match core::iter::once(prev).chain(below).find_map(conflict) {
            Some(kind) => Refused::violation(from, kind),
            None => Ok(()),
        }
    }

    fn check_snapshot(&self, from: ReplicaId, meta: &SnapshotMeta) -> Result<(), Refused> {
        let id = meta.id;
        if meta.membership.voters.is_empty() || meta.membership.index > id.index {
            return Refused::violation(from, ViolationKind::Membership);
        }
        match self.log.term_at(id.index) {
            Some(committed) if id.index <= self.log.committed && committed != id.term => {
                let claimed = id;
                Refused::violation(
                    from,
                    ViolationKind::CommittedConflict { claimed, committed },
                )
            }
            _ => Ok(()),
        }
    }
}
