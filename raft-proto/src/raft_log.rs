//! A replica's log as the core holds it: terms of all entries, the recent entries themselves, and
//! how far they are durable, committed and applied.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::entries::Gather;
use crate::entry::Batch;
use crate::ready::{SubmissionId, TermRun};
use crate::types::{EntryId, Index, Term};

/// Something given out to be made durable.
#[derive(Debug)]
struct Given {
    id: SubmissionId,
    /// The term given out with it, or before it.
    term: Term,
    /// The last entry of it that no later submission overwrote.
    last: Option<Index>,
    /// The received snapshot that the log was to begin behind.
    snapshot: Option<Index>,
}

/// Invariant: `applied <= applying <= committed <= last`, `first - 1 <= applying` (a received snapshot
/// is applied later than its log begins), `stable <= given <= last`.
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
    stable: Index,
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

    /// Durable up to here.
    pub(crate) const fn stable(&self) -> Index {
        self.stable
    }

    pub(crate) const fn last(&self) -> Index {
        self.last
    }

    pub(crate) fn last_id(&self) -> EntryId {
        EntryId::new(self.term_at(self.last).unwrap_or_default(), self.last)
    }

    /// The term at `index`, if the log knows it: from `first - 1` to `last`.
    #[inline]
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last || index.next() < self.first {
            return None;
        }
        // Most questions are about the newest entries.
        match self.terms.back() {
            Some(newest) if newest.first <= index => Some(newest.term),
            _ => self.older_term_at(index),
        }
    }

    fn older_term_at(&self, index: Index) -> Option<Term> {
        let after = self.terms.partition_point(|run| run.first <= index);
        after.checked_sub(1).map(|at| self.terms[at].term)
    }

    #[inline]
    pub(crate) fn matches(&self, id: EntryId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// Appends behind `last`.
    #[inline]
    pub(crate) fn append(&mut self, batch: Batch) {
        assert_eq!(
            batch.first().index,
            self.last.next(),
            "entries follow the last one"
        );
        if batch.first().term == batch.last().term {
            self.note_term(batch.first());
        } else {
            for entry in &batch {
                self.note_term(entry.id());
            }
        }
        self.last = batch.last().index;
        self.cache_bytes += held_bytes(&batch);
        self.cache.push_back(batch);
    }

    fn note_term(&mut self, id: EntryId) {
        if self.terms.back().is_none_or(|run| run.term != id.term) {
            self.terms.push_back(TermRun {
                first: id.index,
                term: id.term,
            });
        }
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
            self.cache_bytes -= held_bytes(&batch);
            if let Some(head) = batch.up_to_index(keep) {
                self.cache_bytes += held_bytes(&head);
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

    /// The highest index at or below `index` whose term may be at most `term`, and its term if
    /// this log knows it: where two logs may still match, as far as one entry tells.
    pub(crate) fn conflict_hint(&self, index: Index, term: Term) -> EntryId {
        let mut index = index;
        while index > Index::ZERO {
            match self.term_at(index) {
                None => return EntryId::new(Term::ZERO, index),
                Some(own) if own <= term => return EntryId::new(own, index),
                // Whole runs of later terms are skipped.
                Some(_) => {
                    let after = self.terms.partition_point(|run| run.first <= index);
                    let run = self.terms[after - 1].first;
                    let floor = self.first.previous().unwrap_or_default();
                    index = run.max(floor).previous().unwrap_or_default();
                }
            }
        }
        EntryId::ZERO
    }

    /// Storage dropped everything before `first`.
    pub(crate) fn compact(&mut self, first: Index) {
        if first <= self.first {
            return;
        }
        assert!(
            first <= self.applying.next(),
            "only entries given to the state machine are compacted"
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
            self.cache_bytes -= held_bytes(&batch);
        }
    }

    /// Keeps the cache within its bound. What is durable can be read back, so that a state machine
    /// that is slow, or stands still, holds nothing in memory. But what is wanted soon stays a while:
    /// `committed_bytes_max` more of what is to be applied, `uncommitted_bytes_max` of what is to be
    /// committed.
    #[inline]
    pub(crate) fn bound_cache(&mut self, committed_bytes_max: usize, uncommitted_bytes_max: usize) {
        if self.cache_bytes > self.cache_bytes_max {
            self.shed_cache(committed_bytes_max, uncommitted_bytes_max);
        }
    }

    fn shed_cache(&mut self, committed_bytes_max: usize, uncommitted_bytes_max: usize) {
        while let Some(oldest) = self.cache.front() {
            let last = oldest.last().index;
            let more = if last <= self.applying {
                0
            } else if last <= self.committed {
                committed_bytes_max
            } else {
                uncommitted_bytes_max
            };
            if last > self.stable || self.cache_bytes <= self.cache_bytes_max.saturating_add(more) {
                return;
            }
            self.cache_bytes -= held_bytes(oldest);
            self.cache.pop_front();
        }
    }

    /// The newest batch, if it begins at `from`, ends by `to`, and has at most `bytes_max`: most often
    /// that is all that is wanted, and what [`Self::entries`] would give.
    #[inline]
    pub(crate) fn newest(&self, from: Index, to: Index, bytes_max: usize) -> Option<&Batch> {
        self.cache.back().filter(|newest| {
            newest.first().index == from
                && newest.last().index <= to
                && newest.size_bytes() <= bytes_max
        })
    }

    /// Puts entries from `from` to at most `to` into `out`: at most `bytes_max`, but at least one.
    /// Returns whether they are still in memory.
    pub(crate) fn entries(
        &self,
        from: Index,
        to: Index,
        bytes_max: usize,
        out: &mut impl Gather,
    ) -> bool {
        if from > to {
            return true;
        }
        let start = self
            .cache
            .partition_point(|batch| batch.last().index < from);
        if self
            .cache
            .get(start)
            .is_none_or(|batch| batch.first().index > from)
        {
            return false;
        }
        let mut room = bytes_max;
        for batch in self.cache.range(start..) {
            let Some(part) = batch.within(from, to) else {
                break;
            };
            if part.size_bytes() <= room {
                room -= part.size_bytes();
                out.gather(part);
                continue;
            }
            let head = part.up_to_size(room);
            if out.has_none() || head.size_bytes() <= room {
                out.gather(head);
            }
            break;
        }
        true
    }

    pub(crate) fn has_unstable(&self) -> bool {
        self.given < self.last
    }

    /// The number that [`Self::give`] gives next.
    pub(crate) const fn next_submission(&self) -> SubmissionId {
        SubmissionId(self.next_submission)
    }

    /// What was appended since the last call, numbered, into `entries`.
    #[inline]
    pub(crate) fn give(
        &mut self,
        term: Term,
        snapshot: Option<Index>,
        entries: &mut Vec<Batch>,
    ) -> SubmissionId {
        let id = self.next_submission();
        self.next_submission += 1;
        let last = (self.given < self.last).then_some(self.last);
        if last.is_some() {
            let first = self.given.next();
            if let Some(newest) = self.newest(first, self.last, usize::MAX) {
                entries.push(newest.clone());
            } else {
                let is_in_memory = self.entries(first, self.last, usize::MAX, entries);
                assert!(is_in_memory, "entries that are not durable stay in memory");
            }
        }
        self.given = self.last;
        self.in_progress.push_back(Given {
            id,
            term,
            last,
            snapshot,
        });
        id
    }

    /// Counts everything up to `id` as durable; returns the term that became so, if any.
    #[inline]
    pub(crate) fn persisted(&mut self, id: SubmissionId) -> Option<Term> {
        let mut term = None;
        while let Some(given) = self.in_progress.front()
            && given.id <= id
        {
            if let Some(last) = given.last {
                self.stable = self.stable.max(last);
            }
            term = Some(given.term);
            // A later one may have come meanwhile: that is not durable with this.
            if let Some(index) = given.snapshot
                && self.installing == Some(index)
            {
                self.installing = None;
                self.stable = self.stable.max(index);
            }
            self.in_progress.pop_front();
        }
        term
    }

    #[inline]
    pub(crate) fn assert_invariants(&self) {
        assert!(self.applied <= self.applying, "applied <= applying");
        assert!(self.applying <= self.committed, "applying <= committed");
        assert!(self.committed <= self.last, "committed <= last");
        assert!(self.first <= self.applying.next(), "first - 1 <= applying");
        assert!(self.stable <= self.given, "stable <= given");
        assert!(self.given <= self.last, "given <= last");
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.cache_bytes
            + self.terms.len() * size_of::<TermRun>()
            + self.in_progress.len() * size_of::<Given>()
    }
}

/// What a batch in the cache takes.
pub(crate) const fn held_bytes(batch: &Batch) -> usize {
    batch.size_bytes() + size_of::<Batch>()
}
