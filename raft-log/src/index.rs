//! Where the entries lie: runs, one per appended batch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use raft_proto::{Batch, EntryId, GroupId, Index, ReplicaId, TermRun};

use crate::error::LogError;
use crate::vfs::{FileId, Vfs};

pub(crate) type Key = (GroupId, ReplicaId);

/// One batch in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first: Index,
    pub(crate) last: EntryId,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// Everything readers need.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) runs: BTreeMap<Key, VecDeque<Run>>,
    pub(crate) files: BTreeMap<u64, FileId>,
}

/// Reads entries back; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) tables: Arc<RwLock<Tables>>,
}

impl LogReader {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the replica's live entries.
    #[must_use]
    pub fn log_bytes(&self, group: GroupId, replica: ReplicaId) -> u64 {
        let tables = self.read();
        let bytes = tables
            .runs
            .get(&(group, replica))
            .map_or(0, |runs| runs.iter().map(|run| run.len).sum::<usize>());
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Entries from `from` to `to`, inclusive; at most `bytes_max`, at least one.
    ///
    /// # Errors
    ///
    /// [`LogError::NotFound`], [`LogError::Damaged`], [`LogError::Io`].
    pub fn entries(
        &self,
        group: GroupId,
        replica: ReplicaId,
        from: Index,
        to: Index,
        bytes_max: usize,
    ) -> Result<Vec<Batch>, LogError> {
        let mut found = Vec::new();
        let mut next = from;
        let mut room = bytes_max;
        while next <= to {
            let Some((run, file)) = self.locate(group, replica, next) else {
                break;
            };
            let bytes = self.vfs.read(file, run.offset, run.len)?;
            let damaged = |reason: String| LogError::Damaged {
                segment: run.segment,
                offset: run.offset,
                reason,
            };
            let batch = Batch::decode(group, bytes).map_err(|error| damaged(error.to_string()))?;
            let part = batch
                .from_index(next)
                .and_then(|part| part.up_to_index(run.last.index.min(to)));
            let part = part.ok_or_else(|| damaged("other entries than recorded".to_owned()))?;
            let part = part.up_to_size(room);
            if part.size_bytes() > room && !found.is_empty() {
                break;
            }
            room = room.saturating_sub(part.size_bytes());
            next = part.last().index.next();
            found.push(part);
            if room == 0 {
                break;
            }
        }
        if found.is_empty() {
            Err(LogError::NotFound { group, from })
        } else {
            Ok(found)
        }
    }

    fn locate(&self, group: GroupId, replica: ReplicaId, index: Index) -> Option<(Run, FileId)> {
        let tables = self.read();
        let runs = tables.runs.get(&(group, replica))?;
        let at = runs.partition_point(|run| run.last.index < index);
        let run = *runs.get(at).filter(|run| run.first <= index)?;
        Some((run, *tables.files.get(&run.segment)?))
    }
}

/// Adds a run, dropping what it overwrites.
pub(crate) fn add_run(runs: &mut VecDeque<Run>, run: Run) {
    while runs.back().is_some_and(|last| last.first >= run.first) {
        runs.pop_back();
    }
    if let Some(last) = runs.back_mut()
        && last.last.index >= run.first
    {
        last.last.index = run.first.previous().unwrap_or_default();
    }
    runs.push_back(run);
}

/// Adds the terms of a batch, dropping what it overwrites.
pub(crate) fn add_terms(terms: &mut Vec<TermRun>, batch: &Batch) {
    terms.retain(|run| run.first < batch.first().index);
    for entry in batch {
        if terms.last().is_none_or(|run| run.term != entry.term()) {
            terms.push(TermRun {
                first: entry.index(),
                term: entry.term(),
            });
        }
    }
}
