//! Where a replica starts from: founded, or what its log and snapshots hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_log::ReplicaState;
use raft_log::vfs::Vfs;
use raft_proto::{
    EntryId, GroupId, HardState, HostId, Index, Membership, ReplicaId, Restored, RestoredError,
    SnapshotMeta, Term, TermRun,
};
use raft_snapshot::{SnapshotEnv, SnapshotError};

use crate::group::BOOTSTRAP_INDEX;
use crate::request::RequestError;

/// Where a replica starts from.
#[derive(Default)]
pub(super) struct Origin {
    pub(super) restored: Restored,
    pub(super) snapshots: Vec<SnapshotMeta>,
    pub(super) handed: EntryId,
    /// The snapshot that is lost, if one is: a peer is to give it, or a later one.
    pub(super) lost: Option<Index>,
}

impl Origin {
    pub(super) fn founded(
        group: GroupId,
        replica: ReplicaId,
        members: &BTreeMap<ReplicaId, HostId>,
    ) -> Result<Self, RequestError> {
        let hosts: BTreeSet<HostId> = members.values().copied().collect();
        if !members.contains_key(&replica) || hosts.len() != members.len() {
            let reason = format!(
                "the founding members of group {group} must name replica {replica}, \
                 and each a host of its own"
            );
            return Err(RequestError::Invalid { reason });
        }
        let membership = Membership {
            index: BOOTSTRAP_INDEX,
            voters: members.keys().copied().collect(),
            hosts: members.clone(),
            ..Membership::default()
        };
        let id = EntryId::new(Term::new(1), BOOTSTRAP_INDEX);
        let meta = SnapshotMeta {
            id,
            membership: membership.clone(),
        };
        let restored = Restored {
            hard_state: HardState {
                term: id.term,
                vote: None,
                commit: id.index,
            },
            snapshot: Some(meta.clone()),
            first: id.index.next(),
            last: id,
            terms: vec![TermRun {
                first: id.index,
                term: id.term,
            }],
            applied: id.index,
            membership,
            membership_entries: Vec::new(),
            ..Restored::default()
        };
        Ok(Self {
            restored,
            snapshots: vec![meta],
            handed: id,
            lost: None,
        })
    }

    /// Reads the newest stored snapshot through, and falls back to an older one if it cannot be used
    /// and the log goes back that far. Nothing is restored from, or sent to a peer, that was not
    /// found whole. Returns which one is lost, and why, if nothing here stands in for it.
    pub(super) fn fall_back_to_sound(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        env: &SnapshotEnv,
    ) -> Option<(Index, SnapshotError)> {
        let mut lost = None;
        while let Some(meta) = self.snapshots.last() {
            let index = meta.id.index;
            if index > BOOTSTRAP_INDEX
                && let Err(error) = raft_snapshot::verify(Arc::clone(vfs), &env.path(index))
            {
                tracing::error!(index = index.get(), %error, "a stored snapshot cannot be used");
                lost.get_or_insert((index, error));
                self.snapshots.pop();
                continue;
            }
            if lost.is_some() && self.restored.first <= index.next() {
                self.restored.snapshot = Some(meta.clone());
                self.restored.applied = index;
                self.restored.membership = meta.membership.clone();
                self.handed = meta.id;
                return None;
            }
            break;
        }
        lost
    }

    pub(super) fn recovered(group: GroupId, state: &ReplicaState) -> Result<Self, RequestError> {
        let unreadable = |error: &dyn std::fmt::Display| RequestError::GroupFailed {
            group,
            reason: format!("a snapshot record holds an unreadable membership: {error}"),
        };
        let mut snapshots = Vec::new();
        for record in &state.snapshots {
            let membership =
                Membership::decode(&record.membership).map_err(|error| unreadable(&error))?;
            snapshots.push(SnapshotMeta {
                id: record.id,
                membership,
            });
        }
        let newest = snapshots.last().cloned();
        let contradicts = |error: RestoredError| RequestError::GroupFailed {
            group,
            reason: format!("what its log holds contradicts itself: {error}"),
        };
        let base = newest.as_ref().map_or(EntryId::ZERO, |meta| meta.id);
        let mut hard_state = state.hard_state;
        hard_state.commit = hard_state
            .commit
            .max(base.index)
            .min(state.last.index.max(base.index));
        let restored = Restored {
            hard_state,
            snapshot: newest.clone(),
            first: state.first,
            last: state.last,
            terms: state.terms.clone(),
            applied: base.index,
            membership: newest.map(|meta| meta.membership).unwrap_or_default(),
            membership_entries: state.membership_entries.clone(),
            ..Restored::default()
        };
        restored.check().map_err(contradicts)?;
        Ok(Self {
            restored,
            snapshots,
            handed: base,
            lost: None,
        })
    }
}
