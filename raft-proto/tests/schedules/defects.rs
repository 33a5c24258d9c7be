//! Mistakes of a core, a driver or a network, switched on in turn to see whether the checks catch
//! them.
//!
//! The core itself has no switches: what a wrong one would do is done to its messages, its disk or
//! its calls. The list of seeded defects, part C, numbers them; of those of the core,
//!
//! - 6 (a pre-vote raises the term) breaks no property, it disturbs: hazards 7 and 14;
//! - 7 (leases without the check of a quorum) is refused as a setting;
//! - 14 (changes before an own commit) is made up for by the switch at commit: hazards 1 and 3;
//! - 1, 9, 11 and 19 (entries committed by counting, answers of older rounds or terms that count, a
//!   transfer that keeps a lease) take too rare a run of events to be met by chance: the tests of
//!   hazards 22, 39, 27, 16 and 17 bring it about;
//! - 16 (a snapshot drops a longer log that matches) shows as 10 does: [`Defect::TruncateByOldAppend`].

use bytes::{Bytes, BytesMut};
use raft_proto::{
    Batch, BatchBuilder, Body, ChangeKind, EntryId, Index, Membership, MembershipChange, Message,
    ReplicaId,
};

use crate::world::{World, group, place};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Promises leave, and the core is told that they may, before anything is durable (2, 4).
    AckBeforeSync,
    /// A restart finds term and vote gone (3).
    ForgetHardState,
    /// A restart finds the end of the durable log gone.
    ForgetTail,
    /// Entries are applied when they are appended.
    ApplyUncommitted,
    /// A leader answers reads without asking whether it still leads.
    ReadWithoutRound,
    /// An entry changes on its way, and its checksum with it.
    RewriteOnWire,
    /// Votes are given whatever the candidate's log holds (5).
    IgnoreFreshness,
    /// A leader answers reads before it has committed in its term (8).
    ReadBeforeOwnCommit,
    /// An old append cuts the log behind it (10, 16).
    TruncateByOldAppend,
    /// What a learner holds counts (12).
    CountLearners,
    /// In a joint membership the new quorum decides alone (13).
    IncomingAlone,
    /// Some do not switch to a removal: the removed one goes on counting (15).
    KeepRemoved,
    /// A snapshot carries the first membership (17).
    SnapshotWithFirstMembership,
    /// Acknowledgements never arrive, and no window opens again (18).
    LoseAcks,
}

impl World {
    /// What a defect makes of a message that arrives: nothing, itself, or two.
    pub(crate) fn with_defect(&mut self, mut message: Message) -> Vec<Message> {
        let Some(defect) = self.defect else {
            return vec![message];
        };
        let to = place(message.to);
        let mut twin = None;
        match (defect, &mut message.body) {
            (Defect::RewriteOnWire, Body::Append { entries, .. }) if self.rng.chance(10) => {
                for batch in entries.iter_mut() {
                    *batch = rewritten(batch);
                }
            }
            (Defect::IgnoreFreshness, Body::Vote { last, .. } | Body::PreVote { last }) => {
                *last = EntryId::new(message.term, Index::new(1 << 40));
            }
            (Defect::TruncateByOldAppend, Body::Append { prev, entries, .. }) => {
                let last = entries.last().map_or(*prev, Batch::last);
                self.truncate(to, *prev, last.index);
            }
            (Defect::CountLearners, Body::AppendResponse { rejected: None, .. }) => {
                twin =
                    self.voter_beside(to, |membership| membership.learners.contains(&message.from));
            }
            (
                Defect::IncomingAlone,
                Body::AppendResponse { rejected: None, .. }
                | Body::VoteResponse { is_rejected: false },
            ) => {
                twin = self.outgoing_beside(to, message.from);
            }
            (Defect::SnapshotWithFirstMembership, Body::Snapshot { meta }) => {
                meta.membership = Membership {
                    index: meta.membership.index,
                    ..self.oracle.first_membership().clone()
                };
            }
            (Defect::LoseAcks, Body::AppendResponse { .. }) => return Vec::new(),
            _ => {}
        }
        let twin = twin.map(|from| Message {
            from,
            ..message.clone()
        });
        let mut arrive = vec![message];
        arrive.extend(twin);
        arrive
    }

    /// Whether a defect keeps replica `at` from switching to this change.
    pub(crate) fn is_change_missed(&self, at: usize, change: &MembershipChange) -> bool {
        let removes = |kind| matches!(kind, ChangeKind::Remove);
        self.defect == Some(Defect::KeepRemoved)
            && at.is_multiple_of(2)
            && change.changes.iter().any(|change| removes(change.kind))
    }

    /// A voter of the leader's membership, not itself, if `is_case` says so of that.
    fn voter_beside(
        &mut self,
        leader: usize,
        is_case: impl Fn(&Membership) -> bool,
    ) -> Option<ReplicaId> {
        let membership = self.raft(leader)?.membership().clone();
        let me = self.replicas[leader].config.id;
        let voters = membership.voters.iter().copied();
        let voters: Vec<ReplicaId> = voters.filter(|&voter| voter != me).collect();
        let is_case = is_case(&membership) && !voters.is_empty();
        is_case.then(|| self.rng.pick(&voters))
    }

    /// An outgoing voter that is no incoming one, if `from` is an incoming one.
    fn outgoing_beside(&self, leader: usize, from: ReplicaId) -> Option<ReplicaId> {
        let membership = self.raft(leader)?.membership();
        let mut old = membership.voters_outgoing.difference(&membership.voters);
        let is_new = membership.voters.contains(&from);
        old.next().copied().filter(|_| is_new)
    }

    fn truncate(&mut self, at: usize, prev: EntryId, last: Index) {
        let disk = &self.replicas[at].disk;
        let is_old = disk.term_at(prev.index) == Some(prev.term) && last < disk.last().index;
        if is_old && self.raft(at).is_some() {
            self.crash(at);
            self.replicas[at].disk.lose_tail(last.next());
            self.start(at);
        }
    }
}

/// The same places with other commands, and good checksums.
fn rewritten(batch: &Batch) -> Batch {
    let mut bytes = BytesMut::new();
    for entry in batch {
        let mut builder = BatchBuilder::new(group(), entry.term(), entry.index(), 0);
        let is_command = !entry.kind().is_membership();
        let payload: &[u8] = if is_command {
            b"other"
        } else {
            entry.payload()
        };
        builder.push(entry.kind(), entry.leader_time_ms(), None, payload);
        let frame = builder.finish().expect("one entry");
        bytes.extend_from_slice(frame.bytes());
    }
    Batch::decode(group(), Bytes::from(bytes)).expect("the frames are sound")
}
