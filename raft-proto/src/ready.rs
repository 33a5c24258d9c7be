//! What the core wants done.

use alloc::vec::Vec;

use crate::entry::Batch;
use crate::error::DropReason;
use crate::membership::Membership;
use crate::message::{Message, SnapshotMeta};
use crate::types::{EntryId, GroupId, HardState, Index, ReplicaId, Term};

/// Numbers what was given out to be made durable: one more each time, complete in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmissionId(pub u64);

/// Entries of one term, from `first` to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRun {
    /// The first index of the run.
    pub first: Index,
    /// Its term.
    pub term: Term,
}

/// One life of one replica: its submissions are numbered by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) number: u64,
}

/// The word that all up to a submission of a replica is durable; only
/// [`Raft::persisted`](crate::Raft::persisted) gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    life: Life,
    submission: SubmissionId,
}

impl Durable {
    pub(crate) const fn up_to(life: Life, submission: SubmissionId) -> Self {
        Self { life, submission }
    }
}

/// A value that must not leave before its submission is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct AfterSync<T> {
    held: T,
    durable: Durable,
    follows: usize,
}

impl<T> AfterSync<T> {
    pub(crate) const fn new(held: T, durable: Durable, follows: usize) -> Self {
        Self {
            held,
            durable,
            follows,
        }
    }

    /// Lets it go: the same replica was told that the submission it came with is durable.
    ///
    /// # Panics
    ///
    /// If `durable` is of an earlier submission, or of another replica or another life of it: what it
    /// promises could be forgotten.
    pub fn release(self, durable: Durable) -> T {
        let waits_for = self.durable;
        assert!(
            waits_for.life == durable.life,
            "it waits for the disk of {:?}, and {:?} has written",
            waits_for.life,
            durable.life
        );
        assert!(
            waits_for.submission <= durable.submission,
            "it waits for {:?}, and no more than {:?} is durable",
            waits_for.submission,
            durable.submission
        );
        self.held
    }

    /// Looks at it. A copy that is sent before its time breaks the promise it makes.
    pub const fn held(&self) -> &T {
        &self.held
    }

    /// How many of the same [`Ready::messages`] were said before it; for tracing.
    #[must_use]
    pub const fn follows(&self) -> usize {
        self.follows
    }
}

/// A replica's part in its term. Source: thesis §3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// Role and leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftState {
    /// This replica's role.
    pub role: Role,
    /// The leader it knows.
    pub leader: Option<ReplicaId>,
}

/// A read that may be served once `index` is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// The caller's number.
    pub user: u64,
    /// What must be applied first.
    pub index: Index,
}

/// What was under way here and will not be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Underway {
    /// A read of this replica's caller. Ask again.
    Read {
        /// The caller's number.
        user: u64,
    },
    /// A read that a follower passed on.
    ReadOf {
        /// The follower.
        from: ReplicaId,
        /// The follower's number for it.
        id: u64,
    },
    /// The handing over of the leadership. Ask again, or another.
    Transfer {
        /// To whom.
        to: ReplicaId,
    },
    /// A membership change that a follower passed on: an empty command is in its place.
    ChangeOf {
        /// The follower.
        from: ReplicaId,
        /// The empty command's index.
        index: Index,
    },
    /// This replica's request for a snapshot. Ask again.
    SnapshotRequest,
    /// A follower's request for a snapshot.
    SnapshotRequestOf {
        /// The follower.
        from: ReplicaId,
    },
}

/// Something under way that will not be finished, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// What.
    pub what: Underway,
    /// Why.
    pub reason: DropReason,
}

/// Entries the core needs and no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// From here.
    pub first: Index,
    /// To here, inclusive.
    pub last: Index,
    /// At most so much, but at least one entry.
    pub bytes_max: usize,
}

/// The answer to a [`Fetch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The entries.
    Entries {
        /// Where the fetch began.
        first: Index,
        /// What the log holds from there.
        batches: Vec<Batch>,
    },
    /// The log could not give them.
    Failed {
        /// Where the fetch began.
        first: Index,
    },
}

/// What the core wants done, in this order of importance: make `hard_state`, `snapshot` and
/// `entries` durable and call `persisted(submission)`; send `messages` now and
/// `messages_after_sync` when that is done; apply `committed`.
#[derive(Debug, Default)]
pub struct Ready {
    /// The number to report when what must be durable is.
    pub submission: Option<SubmissionId>,
    /// Changed term, vote or commit.
    pub hard_state: Option<HardState>,
    /// Whether term, vote, entries or a snapshot are among what must be durable. If not, `hard_state`
    /// brings a commit index alone: it is written all the same, before what comes later, and needs no
    /// sync of its own.
    pub must_sync: bool,
    /// Entries to append; the first one's index overwrites the log from there.
    pub entries: Vec<Batch>,
    /// A received snapshot: the log restarts behind it.
    pub snapshot: Option<SnapshotMeta>,
    /// May leave now.
    pub messages: Vec<Message>,
    /// May leave when `submission` is durable.
    pub messages_after_sync: Vec<AfterSync<Message>>,
    /// Committed and durable here; each entry once, in order.
    pub committed: Vec<Batch>,
    /// Entries wanted from the log.
    pub fetch: Vec<Fetch>,
    /// Reads that may be served.
    pub reads: Vec<ReadState>,
    /// What was under way and will not be finished, such as reads that nobody answers.
    pub dropped: Vec<Dropped>,
    /// Changed role or leader.
    pub soft_state: Option<SoftState>,
    /// The leader's answer to [`Raft::request_snapshot`](crate::Raft::request_snapshot): it holds
    /// this snapshot, which lies within the log here; fetch it, the log stays as it is.
    pub snapshot_offered: Option<SnapshotMeta>,
    /// A follower needs a snapshot at or past this index, and none is stored: take one, as soon as
    /// so much is applied, and say so with [`Raft::snapshot_stored`](crate::Raft::snapshot_stored).
    /// A later word replaces an earlier one.
    pub snapshot_wanted: Option<Index>,
}

impl Ready {
    /// Empties it, keeping its memory.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.submission = None;
        self.hard_state = None;
        self.must_sync = false;
        self.entries.clear();
        if self.snapshot.is_some() {
            self.snapshot = None;
        }
        self.messages.clear();
        self.messages_after_sync.clear();
        self.committed.clear();
        self.fetch.clear();
        self.reads.clear();
        self.dropped.clear();
        self.soft_state = None;
        if self.snapshot_offered.is_some() {
            self.snapshot_offered = None;
        }
        self.snapshot_wanted = None;
    }

    /// Whether anything is to be done.
    pub(crate) const fn is_something(&self) -> bool {
        let said = self.messages.len() | self.committed.len() | self.fetch.len();
        let read = self.reads.len() | self.dropped.len();
        self.submission.is_some()
            | self.soft_state.is_some()
            | ((said | read) > 0)
            | self.snapshot_offered.is_some()
            | self.snapshot_wanted.is_some()
    }
}

/// Where a replica starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The last durable one.
    pub hard_state: HardState,
    /// The newest recorded snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// The first index the log holds or will hold; 0 counts as 1.
    pub first: Index,
    /// The last entry.
    pub last: EntryId,
    /// The terms of `first - 1` to `last`.
    pub terms: Vec<TermRun>,
    /// What the state machine has applied.
    pub applied: Index,
    /// The membership as of `applied`. The founding one is in no log: a replica that joins later and
    /// replays the log from its first entry must be told it here.
    pub membership: Membership,
    /// The indexes of membership entries in the log.
    pub membership_entries: Vec<Index>,
    /// The leader's time of the last entry, in milliseconds, or of the last that the newest snapshot
    /// covers: no entry appended here carries an earlier one.
    pub leader_time_ms: u64,
    /// The last entry of the log that is without its command, or the last index that a snapshot of
    /// metadata covers; 0: none. Of a witness it is all of its log, and need not be told. It is of
    /// one that was a witness, was removed, and may be added again as a full member: with such a log
    /// it never leads.
    pub last_without_command: Index,
    /// [`Config::lease_ticks`](crate::Config::lease_ticks) of the life before, if it was lowered
    /// since: leases that were granted then are waited for.
    pub lease_ticks: u64,
}

/// What a disk cannot hold, if it holds all that it was told to: it is damaged, or whoever read it is
/// wrong. Start no replica from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoredError {
    /// The log ends before the entry before its first.
    #[error("the log ends at {last} and begins at {first}")]
    LogEndsBeforeItBegins {
        /// Its first index.
        first: Index,
        /// Its last.
        last: Index,
    },
    /// The terms do not ascend from the entry before the first, or are not those of the log.
    #[error("the terms are not those of entries {first} to {last}")]
    Terms {
        /// The first index of the log.
        first: Index,
        /// Its last entry.
        last: EntryId,
    },
    /// The log holds an entry of a later term than the durable one.
    #[error("entry {last} is of a later term than {term}, the durable one")]
    TermBehindLog {
        /// The durable term.
        term: Term,
        /// The last entry.
        last: EntryId,
    },
    /// Entries are committed that the log does not hold.
    #[error("{commit} is committed and the log ends at {last}")]
    CommitPastEnd {
        /// The commit index.
        commit: Index,
        /// The last index of the log.
        last: Index,
    },
    /// The state machine has applied what the log does not hold yet, or lacks what it holds no more.
    #[error("{applied} is applied, and the log holds {first} to {last}")]
    AppliedOutsideLog {
        /// What is applied.
        applied: Index,
        /// The first index of the log.
        first: Index,
        /// The last.
        last: Index,
    },
    /// The log ends before the newest snapshot. Begin it anew after the snapshot.
    #[error("the newest snapshot is of {snapshot}, and the log ends at {last}")]
    SnapshotPastEnd {
        /// The last entry that the snapshot covers.
        snapshot: EntryId,
        /// The last index of the log.
        last: Index,
    },
    /// The newest snapshot is not of the entry that the log holds there, or of a membership to come.
    #[error("the newest snapshot, of {snapshot} and membership {membership}, is not of this log")]
    SnapshotOfAnother {
        /// The last entry that the snapshot covers.
        snapshot: EntryId,
        /// The index of its membership.
        membership: Index,
    },
    /// The indexes of membership entries do not ascend.
    #[error("the indexes of membership entries do not ascend")]
    MembershipEntries,
    /// The membership is later than what is applied.
    #[error("the membership is of {membership}, and {applied} is applied")]
    MembershipAhead {
        /// The membership's index.
        membership: Index,
        /// What is applied.
        applied: Index,
    },
}

impl Restored {
    /// Checks what it says against itself.
    ///
    /// # Errors
    ///
    /// [`RestoredError`], as [`Raft::new`](crate::Raft::new) gives it.
    pub fn check(&self) -> Result<(), RestoredError> {
        let first = self.first.max(Index::new(1));
        let before = first.previous().unwrap_or_default();
        let (last, applied) = (self.last.index, self.applied);
        if last < before {
            return Err(RestoredError::LogEndsBeforeItBegins { first, last });
        }
        if !self.has_terms_of(before) {
            let last = self.last;
            return Err(RestoredError::Terms { first, last });
        }
        let HardState { term, commit, .. } = self.hard_state;
        if last > before && self.last.term > term {
            let last = self.last;
            return Err(RestoredError::TermBehindLog { term, last });
        }
        if commit > last {
            return Err(RestoredError::CommitPastEnd { commit, last });
        }
        if applied < before || applied > last {
            return Err(RestoredError::AppliedOutsideLog {
                applied,
                first,
                last,
            });
        }
        self.check_snapshot(before)?;
        let entries = &self.membership_entries;
        if !entries.is_sorted_by(|earlier, later| earlier < later) {
            return Err(RestoredError::MembershipEntries);
        }
        let membership = self.membership.index;
        if membership > applied {
            return Err(RestoredError::MembershipAhead {
                membership,
                applied,
            });
        }
        Ok(())
    }

    /// Checks the newest snapshot against the log, which knows terms from the entry `before` its first.
    fn check_snapshot(&self, before: Index) -> Result<(), RestoredError> {
        let Some(meta) = &self.snapshot else {
            return Ok(());
        };
        let (snapshot, membership) = (meta.id, meta.membership.index);
        let last = self.last.index;
        if snapshot.index > last {
            return Err(RestoredError::SnapshotPastEnd { snapshot, last });
        }
        let mut runs = self.terms.iter().rev();
        let run = runs.find(|run| run.first <= snapshot.index);
        let is_of_log = snapshot.index < before || run.is_none_or(|run| run.term == snapshot.term);
        if !is_of_log || membership > snapshot.index {
            return Err(RestoredError::SnapshotOfAnother {
                snapshot,
                membership,
            });
        }
        Ok(())
    }

    /// Whether the runs of terms cover the log from the entry `before` its first, and ascend.
    fn has_terms_of(&self, before: Index) -> bool {
        let (Some(oldest), Some(newest)) = (self.terms.first(), self.terms.last()) else {
            return self.last == EntryId::ZERO;
        };
        let ascend =
            |pair: &[TermRun]| pair[0].first < pair[1].first && pair[0].term <= pair[1].term;
        oldest.first <= before
            && self.terms.windows(2).all(ascend)
            && newest.first <= self.last.index
            && newest.term == self.last.term
    }
}
