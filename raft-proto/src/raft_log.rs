//! A replica's log as the core holds it: terms of all entries, the recent entries themselves, and
//! how far they are durable, committed and applied.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::entry::Batch;
use crate::ready::{SubmissionId, TermRun};
use crate::types::{EntryId, Index, Term};

/// Something given out to be made durable.
#[derive(Debug)]
struct Given {
    id: SubmissionId,
    /// The last entry of it that no later submission overwrote.
    last: Option<Index>,
    is_snapshot: bool,
}

/// Invariant: `first - 1 <= applied <= applying <= committed <= last`, `stable <= given <= last`.
#[derive(Debug)]
pub(crate) struct RaftLog {
    /// The first index that storage holds, or will hold.
    first: Index,
    last: Index,
    /// Covers `first - 1` to `last`.
    terms: VecDeque<TermRun>,
    /// The recent entries, consecutive, up to `last`.
    cache: VecDeque<Batch>,
    cache_bytes: usize,
    cache_bytes_max: usize,
    pub(crate) committed: Index,
    pub(crate) applying: Index,
    pub(crate) applied: Index,
    /// Durable up to here.
    pub(crate) stable: Index,
    /// Given out to be made durable up to here.
    given: Index,
    in_progress: VecDeque<Given>,
    next_submission: u64,
    /// A received snapshot that is not durable yet.
    pub(crate) installing: Option<Index>,
}

impl RaftLog {
    pub(crate) fn new(
        first: Index,
        last: Index,
        terms: &[TermRun],
        committed: Index,
        applied: Index,
        cache_bytes_max: usize,
    ) -> Self {
        let mut terms: VecDeque<TermRun> = terms.iter().copied().collect();
        if terms.is_empty() {
            terms.push_back(TermRun {
                first: Index::ZERO,
                term: Term::ZERO,
            });
        }
        Self {
            first,
            last,
            terms,
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_bytes_max,
            committed,
            applying: applied,
            applied,
            stable: last,
            given: last,
            in_progress: VecDeque::new(),
            next_submission: 1,
            installing: None,
        }
    }

    pub(crate) const fn first(&self) -> Index {
        self.first
    }

    pub(crate) const fn last(&self) -> Index {
        self.last
    }

    pub(crate) fn last_id(&self) -> EntryId {
        EntryId::new(self.term_at(self.last).unwrap_or_default(), self.last)
    }

    /// The term at `index`, if the log knows it: from `first - 1` to `last`.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last || index.next() < self.first {
            return None;
        }
        let after = self.terms.partition_point(|run| run.first <= index);
        after.checked_sub(1).map(|at| self.terms[at].term)
    }

    pub(crate) fn matches(&self, id: EntryId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// Appends behind `last`.
    pub(crate) fn append(&mut self, batch: Batch) {
        assert_eq!(
            batch.first().index,
            self.last.next(),
            "entries follow the last one"
        );
        for entry in terms_of(&batch) {
            if self.terms.back().is_none_or(|run| run.term != entry.term) {
                self.terms.push_back(TermRun {
                    first: entry.index,
                    term: entry.term,
                });
            }
        }
        self.last = batch.last().index;
        self.cache_bytes += batch.size_bytes();
        self.cache.push_back(batch);
    }

    /// Drops everything from `from` on: another leader's entries come there. What was given out
    /// and is not durable yet no longer counts for the entries dropped.
    pub(crate) fn truncate(&mut self, from: Index) {
        assert!(from > self.committed, "committed entries are never dropped");
        let keep = from.previous().unwrap_or_default();
        while self.terms.len() > 1 && self.terms.back().is_some_and(|run| run.first >= from) {
            self.terms.pop_back();
        }
        while let Some(batch) = self.cache.pop_back() {
            self.cache_bytes -= batch.size_bytes();
            if let Some(head) = batch.up_to_index(keep) {
                self.cache_bytes += head.size_bytes();
                self.cache.push_back(head);
                break;
            }
        }
        self.last = keep;
        self.stable = self.stable.min(keep);
        self.given = self.given.min(keep);
        for given in &mut self.in_progress {
            given.last = given.last.map(|last| last.min(keep));
        }
    }

    /// Starts the log anew behind a received snapshot.
    pub(crate) fn restart_after(&mut self, id: EntryId) {
        self.first = id.index.next();
        self.last = id.index;
        self.terms.clear();
        self.terms.push_back(TermRun {
            first: id.index,
            term: id.term,
        });
        self.cache.clear();
        self.cache_bytes = 0;
        self.committed = id.index;
        self.applying = id.index;
        self.stable = self.stable.min(id.index);
        self.given = id.index;
        for given in &mut self.in_progress {
            given.last = None;
        }
        self.installing = Some(id.index);
    }

    /// Storage dropped everything before `first`.
    pub(crate) fn compact(&mut self, first: Index) {
        if first <= self.first {
            return;
        }
        assert!(
            first <= self.applied.next(),
            "only applied entries are compacted"
        );
        self.first = first;
        let before = first.previous().unwrap_or_default();
        while self.terms.len() > 1 && self.terms[1].first <= before {
            self.terms.pop_front();
        }
        self.shrink_cache(first);
    }

    /// Drops cached entries before `index`, whole batches at a time.
    fn shrink_cache(&mut self, index: Index) {
        while self
            .cache
            .front()
            .is_some_and(|batch| batch.last().index < index)
        {
            let batch = self.cache.pop_front().expect("it was just seen");
            self.cache_bytes -= batch.size_bytes();
        }
    }

    /// Keeps the cache within its bound: entries handed to apply and durable may go.
    pub(crate) fn bound_cache(&mut self) {
        while self.cache_bytes > self.cache_bytes_max
            && self
                .cache
                .front()
                .is_some_and(|batch| batch.last().index <= self.applying.min(self.stable))
        {
            let batch = self.cache.pop_front().expect("it was just seen");
            self.cache_bytes -= batch.size_bytes();
        }
    }

    /// Entries from `from` to at most `to`, at most `bytes_max` but at least one. `None` if they
    /// are no longer in memory.
    pub(crate) fn entries(&self, from: Index, to: Index, bytes_max: usize) -> Option<Vec<Batch>> {
        let mut entries = Vec::new();
        if from > to {
            return Some(entries);
        }
        let start = self
            .cache
            .partition_point(|batch| batch.last().index < from);
        if self
            .cache
            .get(start)
            .is_none_or(|batch| batch.first().index > from)
        {
            return None;
        }
        let mut room = bytes_max;
        for batch in self.cache.range(start..) {
            let Some(part) = batch.from_index(from).and_then(|part| part.up_to_index(to)) else {
                break;
            };
            if part.size_bytes() <= room {
                room -= part.size_bytes();
                entries.push(part);
                continue;
            }
            if entries.is_empty() || part.up_to_size(room).size_bytes() <= room {
                entries.push(part.up_to_size(room));
            }
            break;
        }
        Some(entries)
    }

    pub(crate) fn has_unstable(&self) -> bool {
        self.given < self.last
    }

    /// What was appended since the last call, numbered.
    pub(crate) fn give(&mut self, is_snapshot: bool) -> (SubmissionId, Vec<Batch>) {
        let id = SubmissionId(self.next_submission);
        self.next_submission += 1;
        let entries = self
            .entries(self.given.next(), self.last, usize::MAX)
            .expect("entries that are not durable stay in memory");
        let last = (self.given < self.last).then_some(self.last);
        self.given = self.last;
        self.in_progress.push_back(Given {
            id,
            last,
            is_snapshot,
        });
        (id, entries)
    }

    /// Counts everything up to `id` as durable. Returns whether entries or a snapshot became so.
    pub(crate) fn persisted(&mut self, id: SubmissionId) -> bool {
        let before = (self.stable, self.installing);
        while let Some(given) = self.in_progress.front()
            && given.id <= id
        {
            let given = self.in_progress.pop_front().expect("it was just seen");
            if let Some(last) = given.last {
                self.stable = self.stable.max(last);
            }
            if given.is_snapshot
                && !self.in_progress.iter().any(|given| given.is_snapshot)
                && let Some(index) = self.installing.take()
            {
                self.stable = self.stable.max(index);
            }
        }
        before != (self.stable, self.installing)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.cache_bytes + self.terms.len() * size_of::<TermRun>()
    }
}

fn terms_of(batch: &Batch) -> Vec<EntryId> {
    if batch.first().term == batch.last().term {
        return alloc::vec![batch.first()];
    }
    let mut changes: Vec<EntryId> = Vec::new();
    for entry in batch {
        if changes.last().is_none_or(|last| last.term != entry.term()) {
            changes.push(entry.id());
        }
    }
    changes
}
