//! Whether what is submitted fits what was submitted before: what does not would be acknowledged, and
//! read back as damage.

use raft_proto::{EntryId, HardState, Index, ReplicaId, Term};

use crate::error::{Contradiction, LogError};
use crate::item::Key;
use crate::lane::{FlightKind, Lane};
use crate::staging::Staging;
use crate::state::{Health, SnapshotRecord, Submission};

/// What a replica's log holds once everything submitted is durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// The first entry held, or to be held.
    first: Index,
    last: EntryId,
    commit: Index,
    term: Term,
    vote: Option<ReplicaId>,
    /// The newest snapshot retained; 0: none.
    snapshot: Index,
}

impl Extent {
    fn vote_as(&mut self, hard_state: HardState) -> Result<(), Contradiction> {
        let (term, before) = (hard_state.term, self.term);
        if term < before {
            return Err(Contradiction::HardStateFalls { term, before });
        }
        if let Some(vote) = self.vote.filter(|_| term == before)
            && hard_state.vote != Some(vote)
        {
            return Err(Contradiction::VoteChanges { term, vote });
        }
        (self.term, self.vote, self.commit) = (term, hard_state.vote, hard_state.commit);
        Ok(())
    }
}

impl Lane {
    /// What the replica's log holds after a submission, too. `None`: the replica is gone.
    pub(super) fn extent_after(&self, submission: &Submission) -> Result<Option<Extent>, LogError> {
        let key = (submission.group, submission.replica);
        let Some(mut extent) = self.extent(key) else {
            return Ok(None);
        };
        if let Some(id) = submission.restart_after {
            (extent.first, extent.last) = (id.index.next(), id);
        }
        if let [first, .., last] | [first @ last] = &submission.entries[..] {
            let (first, next) = (first.first(), extent.last.index.next());
            if first.index > next {
                let found = first.index;
                return Err(submission.contradicts(Contradiction::Gap { found, next }));
            }
            if first.index < extent.first {
                return Err(submission.contradicts(Contradiction::Compacted {
                    found: first.index,
                    first: extent.first,
                }));
            }
            let before = if first.index == next {
                extent.last.term
            } else {
                self.term_before(key, first.index)
            };
            if first.term < before {
                let found = first;
                return Err(submission.contradicts(Contradiction::TermFalls { found, before }));
            }
            extent.last = last.last();
        }
        if let Some(hard_state) = submission.hard_state {
            let voted = extent.vote_as(hard_state);
            voted.map_err(|reason| submission.contradicts(reason))?;
        }
        let (commit, last) = (extent.commit, extent.last.index);
        if commit > last {
            return Err(submission.contradicts(Contradiction::CommitPastLast { commit, last }));
        }
        if let Some(record) = &submission.snapshots {
            extent.snapshot = newest(&record.retained);
        }
        let snapshot = extent.snapshot;
        if snapshot > last {
            return Err(submission.contradicts(Contradiction::SnapshotPastLast { snapshot, last }));
        }
        if let Some(index) = submission.compact_before {
            extent.first = extent.first.max(index.min(last.next()));
        }
        Ok(Some(extent))
    }

    /// The commit index submitted last; 0 for one that is gone.
    pub(super) fn committed(&self, key: Key) -> Index {
        self.extent(key).map_or(Index::ZERO, |extent| extent.commit)
    }

    fn extent(&self, key: Key) -> Option<Extent> {
        if let Some(extent) = self.extents.get(&key) {
            return Some(*extent);
        }
        if self.buried.contains(&key) {
            return None;
        }
        // Nothing of it was submitted since the open.
        let tables = self.tables();
        let Some(found) = tables.replicas.get(&key) else {
            return Some(Extent {
                first: Index::new(1),
                last: EntryId::ZERO,
                commit: Index::ZERO,
                term: Term::ZERO,
                vote: None,
                snapshot: Index::ZERO,
            });
        };
        let state = &found.state;
        (state.health != Health::Tombstone).then_some(Extent {
            first: state.first,
            last: state.last,
            // Of a damaged replica more may be committed than is left.
            commit: state.hard_state.commit.min(state.last.index),
            term: state.hard_state.term,
            vote: state.hard_state.vote,
            snapshot: newest(&state.snapshots).min(state.last.index),
        })
    }

    /// The term of the entry before `index`, which overwrites others; what is not durable yet is
    /// looked through, newest first.
    pub(super) fn term_before(&self, key: Key, index: Index) -> Term {
        let before = index.previous().unwrap_or_default();
        let flying = self.flight.as_ref().and_then(|flight| match &flight.kind {
            FlightKind::Record { staging, .. } => Some(&**staging),
            FlightKind::Seal(_) | FlightKind::Apart | FlightKind::SealApart(_) => None,
        });
        let held = self.no_slot.records().chain(self.no_room.records());
        let oldest_first: Vec<&Staging> = flying
            .into_iter()
            .chain(self.gathered())
            .chain(held)
            .collect();
        let mut newest_first = oldest_first.into_iter().rev();
        let staged = newest_first.find_map(|record| record.term_at(key, before));
        staged.unwrap_or_else(|| {
            let tables = self.tables();
            let found = tables.replicas.get(&key);
            let term = found.and_then(|found| found.state.term_at(before));
            term.unwrap_or_default()
        })
    }
}

/// The index of the newest snapshot; 0: there is none.
fn newest(retained: &[SnapshotRecord]) -> Index {
    let indexes = retained.iter().map(|snapshot| snapshot.id.index);
    indexes.max().unwrap_or_default()
}
