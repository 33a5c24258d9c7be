//! What the log knows of a replica, and what it is asked to make durable.

use bytes::Bytes;
use raft_proto::{Batch, EntryId, GroupId, HardState, Index, ReplicaId, Term, TermRun};

use crate::error::{Contradiction, LogError};
use crate::item::{ENTRIES_ITEM_BYTES, EntriesItem, NUMBER_END};

/// What the snapshots retained take, at most: the memberships, with 20 bytes for each. Each submission of
/// them is one item, and so are those of each replica in a checkpoint.
pub const SNAPSHOTS_BYTES_MAX: usize = 512 << 10;

/// What a submission counts for besides entries and snapshots.
const SUBMISSION_BYTES: usize = 256;

/// A snapshot the log knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its place.
    pub id: EntryId,
    /// The membership there, encoded: bytes to the log.
    pub membership: Bytes,
}

/// All snapshots retained, oldest first: [`SNAPSHOTS_BYTES_MAX`] at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotsRecord {
    /// The snapshots.
    pub retained: Vec<SnapshotRecord>,
}

impl SnapshotsRecord {
    /// What its item says.
    pub(crate) fn bytes(&self) -> usize {
        let retained = self.retained.iter();
        4 + retained
            .map(|snapshot| 20 + snapshot.membership.len())
            .sum::<usize>()
    }
}

/// What one replica wants durable, all of it at once: one record holds it. What takes more than
/// [`LaneOptions::record_bytes_max`](crate::LaneOptions::record_bytes_max), or than half a segment,
/// takes several: then term and vote are durable first, the entries batch by batch, and the commit
/// index last. Beside the entries' bytes 256 count, 64 for each batch, and what is said of snapshots.
///
/// Takes effect in this order: `restart_after`, `hard_state`, `snapshots`, `entries`,
/// `compact_before`, `tombstone`.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its number: one more each time, completed in that order.
    pub submission: u64,
    /// Term, vote and commit: terms never fall, a vote does not change within its term, and the
    /// commit index never passes the last entry.
    pub hard_state: Option<HardState>,
    /// Entries, consecutive, of this group; the first one's index overwrites the log from there. It
    /// leaves no gap, lies behind what was compacted, and its term is no lower than that of the entry
    /// before it.
    pub entries: Vec<Batch>,
    /// The snapshots retained, in place of those recorded before: none past the last entry.
    pub snapshots: Option<SnapshotsRecord>,
    /// The log starts anew behind this entry: all entries held are dropped.
    pub restart_after: Option<EntryId>,
    /// Entries before this one may go.
    pub compact_before: Option<Index>,
    /// The replica is gone for ever: whatever is submitted for it behind this is refused as
    /// [`LogError::Gone`]. Its name is kept, 24 bytes in a checkpoint, as long as the vote
    /// file has a slot of it; then it is forgotten.
    pub tombstone: bool,
}

impl Submission {
    /// An empty one.
    #[must_use]
    pub const fn new(group: GroupId, replica: ReplicaId, submission: u64) -> Self {
        Self {
            group,
            replica,
            submission,
            hard_state: None,
            entries: Vec::new(),
            snapshots: None,
            restart_after: None,
            compact_before: None,
            tombstone: false,
        }
    }

    /// What the log could not take, or could not read back, by itself: whether it follows what was
    /// submitted before is another question. Looks at each batch, and at none of its entries, which
    /// are consecutive by what a batch is.
    pub(crate) fn check(&self, record_bytes_max: usize) -> Result<(), LogError> {
        let largest = self.entries.iter().map(Batch::size_bytes).max();
        if let Some(size) = largest.filter(|&size| size > record_bytes_max) {
            let bound = record_bytes_max;
            return Err(LogError::TooLarge { size, bound });
        }
        let size = self.snapshots.as_ref().map_or(0, SnapshotsRecord::bytes);
        if size > SNAPSHOTS_BYTES_MAX {
            let bound = SNAPSHOTS_BYTES_MAX;
            return Err(LogError::TooLarge { size, bound });
        }
        self.check_numbers()?;
        let mut before: Option<EntryId> = None;
        for batch in &self.entries {
            if let Some(reason) = contradiction(batch, before, self.group) {
                return Err(self.contradicts(reason));
            }
            before = Some(batch.last());
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), LogError> {
        let id = |id: EntryId| [id.term.get(), id.index.get()];
        let hard_state = self
            .hard_state
            .map(|state| [state.term.get(), state.commit.get()]);
        let snapshots = self.snapshots.iter().flat_map(|record| &record.retained);
        let entries = self.entries.iter().map(Batch::last);
        let numbers = hard_state
            .into_iter()
            .chain(self.restart_after.map(id))
            .chain(entries.map(id))
            .flatten()
            .chain(self.compact_before.map(Index::get))
            .chain(snapshots.flat_map(|snapshot| id(snapshot.id)));
        match numbers.max().filter(|&number| number >= NUMBER_END) {
            Some(number) => Err(LogError::NumberTooHigh {
                number,
                max: NUMBER_END - 1,
            }),
            None => Ok(()),
        }
    }

    pub(crate) const fn contradicts(&self, reason: Contradiction) -> LogError {
        LogError::Contradiction {
            group: self.group,
            replica: self.replica,
            reason,
        }
    }

    /// What it takes of records, about, and of memory until then.
    pub(crate) fn bytes(&self) -> usize {
        let items = self.entries.len() * ENTRIES_ITEM_BYTES;
        let snapshots = self.snapshots.as_ref().map_or(0, SnapshotsRecord::bytes);
        SUBMISSION_BYTES + items + snapshots + self.entries_bytes()
    }

    /// The bytes of its entries.
    #[must_use]
    pub fn entries_bytes(&self) -> usize {
        self.entries.iter().map(Batch::size_bytes).sum()
    }
}

/// What is wrong with a batch behind one that ends with `before`.
fn contradiction(batch: &Batch, before: Option<EntryId>, group: GroupId) -> Option<Contradiction> {
    let id = batch.first();
    if id.index == Index::ZERO || id.term == Term::ZERO {
        return Some(Contradiction::Zero { id });
    }
    if !batch.is_of(group) {
        return Some(Contradiction::OtherGroup { first: id });
    }
    let before = before?;
    if id.index != before.index.next() {
        return Some(Contradiction::NotConsecutive {
            found: id.index,
            before: before.index,
        });
    }
    let falls = Contradiction::TermFalls {
        found: id,
        before: before.term,
    };
    (id.term < before.term).then_some(falls)
}

/// A submission that is durable, or will never be.
#[derive(Debug)]
pub struct Completion {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// The submission's number.
    pub submission: u64,
    /// How it ended.
    pub result: Result<(), LogError>,
}

/// What a replica's records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The first index held, or to be held.
    pub first: Index,
    /// The last entry.
    pub last: EntryId,
    /// The terms of `first - 1` to `last`.
    pub terms: Vec<TermRun>,
    /// Indexes of membership entries.
    pub membership_entries: Vec<Index>,
    /// Snapshots retained, oldest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// Whether it may be used.
    pub health: Health,
}

/// Where a replica lost what had been durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The segment; 0 if it is not known.
    pub segment: u64,
    /// The byte in it where the damage begins.
    pub offset: u64,
    /// The first index that is lost, or may be; 0 if entries are not concerned.
    pub first: Index,
    /// The last one.
    pub last: Index,
}

/// Whether a replica may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It may.
    Sound,
    /// Records are lost that had been durable. It must neither vote nor acknowledge: remove it
    /// from its group and add a new one.
    Damaged(Damage),
    /// Its vote is lost: this replica id never votes again. Remove it from its group and add a
    /// new one.
    VoteUnknown,
    /// It was removed.
    Tombstone,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sound => f.write_str("sound"),
            Self::Damaged(damage) => write!(
                f,
                "damaged in segment {} at byte {}, entries {} to {}: remove this replica and add \
                 one with a new id",
                damage.segment, damage.offset, damage.first, damage.last
            ),
            Self::VoteUnknown => f.write_str(
                "its vote is lost, so it never votes again: remove this replica and add one with \
                 a new id",
            ),
            Self::Tombstone => f.write_str("removed"),
        }
    }
}

impl Default for ReplicaState {
    /// A replica of which nothing is recorded.
    fn default() -> Self {
        Self {
            hard_state: HardState::default(),
            first: Index::new(1),
            last: EntryId::ZERO,
            terms: vec![TermRun {
                first: Index::ZERO,
                term: Term::ZERO,
            }],
            membership_entries: Vec::new(),
            snapshots: Vec::new(),
            health: Health::Sound,
        }
    }
}

impl ReplicaState {
    /// The term of the entry at `index`, from `first - 1` to `last`.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index > self.last.index || index.next() < self.first {
            return None;
        }
        let after = self.terms.partition_point(|run| run.first <= index);
        after.checked_sub(1).map(|at| self.terms[at].term)
    }

    pub(crate) fn restart_after(&mut self, id: EntryId) {
        self.first = id.index.next();
        self.last = id;
        self.terms = vec![TermRun {
            first: id.index,
            term: id.term,
        }];
        self.membership_entries.clear();
    }

    /// Takes entries that were appended.
    pub(crate) fn append_item(&mut self, item: &EntriesItem) {
        self.begin_append(item.first);
        for run in &item.term_changes {
            self.push_term(run.first, run.term);
        }
        self.membership_entries
            .extend_from_slice(&item.membership_entries);
        self.last = item.last;
    }

    /// The replica is gone: nothing but its name is kept.
    pub(crate) fn bury(&mut self) {
        *self = Self {
            terms: Vec::new(),
            health: Health::Tombstone,
            ..Self::default()
        };
    }

    fn begin_append(&mut self, first: EntryId) {
        if first.index <= self.last.index {
            while self.terms.len() > 1
                && self
                    .terms
                    .last()
                    .is_some_and(|run| run.first >= first.index)
            {
                self.terms.pop();
            }
            self.membership_entries.retain(|&entry| entry < first.index);
        }
        self.push_term(first.index, first.term);
    }

    fn push_term(&mut self, first: Index, term: Term) {
        if self.terms.last().is_none_or(|run| run.term != term) {
            self.terms.push(TermRun { first, term });
        }
    }

    pub(crate) fn compact_before(&mut self, index: Index) {
        // Never past the place behind the last entry.
        let index = index.min(self.last.index.next());
        if index <= self.first {
            return;
        }
        self.first = index;
        let before = index.previous().unwrap_or_default();
        let gone = self.terms.partition_point(|run| run.first <= before);
        self.terms.drain(..gone.saturating_sub(1));
        self.membership_entries.retain(|&entry| entry >= index);
    }
}
