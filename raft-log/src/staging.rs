//! A record being gathered: submissions are encoded when they arrive, so that only the header is
//! left to fill in when the write begins.

use bytes::{Bytes, BytesMut};
use raft_proto::{Batch, EntryId, HardState, Index, ReplicaId, Term, TermRun, crc32c_append};
use rustc_hash::FxHashSet;

use crate::item::{
    ENTRIES_ITEM_BYTES, EntriesItem, ITEM_HEADER_BYTES, Item, Key, Owner, put_entries, put_item,
};
use crate::owners::{Lately, OwnerSet};
use crate::record::{Place, RECORD_HEADER_BYTES, RecordHeader, RecordKind, padding};
use crate::state::{Health, SnapshotsRecord, Submission};

/// Batches from this size on are written from where they lie; smaller ones are cheaper to copy.
const COPY_BELOW_BYTES: usize = 1024;

/// What a record changes, in order, once it is durable.
#[derive(Debug)]
pub(crate) enum Change {
    Entries {
        item: EntriesItem,
        /// In the record's data part.
        at: usize,
        batch: Batch,
    },
    Reset(EntryId),
    HardState(HardState),
    Snapshots(SnapshotsRecord),
    Compact(Index),
    Tombstone,
    Health(Health),
}

impl Change {
    /// What it takes of a record.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Entries { item, batch, .. } => {
                let terms = 16 * item.term_changes.len();
                let memberships = 8 * item.membership_entries.len();
                ENTRIES_ITEM_BYTES + terms + memberships + batch.size_bytes()
            }
            Self::Reset(_) => ITEM_HEADER_BYTES + 16,
            Self::HardState(_) => ITEM_HEADER_BYTES + 24,
            Self::Snapshots(record) => ITEM_HEADER_BYTES + record.bytes(),
            Self::Compact(_) => ITEM_HEADER_BYTES + 8,
            Self::Tombstone => ITEM_HEADER_BYTES,
            Self::Health(_) => ITEM_HEADER_BYTES + 40,
        }
    }

    /// Whether it is the log's own move.
    pub(crate) const fn is_moved(&self) -> bool {
        matches!(self, Self::Entries { item, .. } if item.is_moved)
    }

    /// Whether what it says may free a segment.
    pub(crate) const fn makes_room(&self) -> bool {
        match self {
            Self::Entries { item, .. } => item.is_moved,
            Self::Reset(_) | Self::Compact(_) | Self::Tombstone => true,
            Self::HardState(_) | Self::Snapshots(_) | Self::Health(_) => false,
        }
    }
}

/// A term and vote to be written beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VoteChange {
    pub(crate) key: Key,
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    /// The replica never votes again.
    pub(crate) is_fenced: bool,
}

impl VoteChange {
    /// What a replica's slots are to say.
    pub(crate) const fn new(key: Key, hard_state: HardState) -> Self {
        Self {
            key,
            term: hard_state.term,
            vote: hard_state.vote,
            is_fenced: false,
        }
    }
}

/// A record being gathered.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    /// Room for the header, then the table.
    head: BytesMut,
    parts: Vec<Bytes>,
    /// Small batches, not yet a part.
    copied: BytesMut,
    data_len: usize,
    /// Of the data so far.
    data_crc: u32,
    pub(crate) changes: Vec<(Key, Change)>,
    pub(crate) done: Vec<(Key, u64)>,
    pub(crate) votes: Vec<VoteChange>,
    /// Whose of them had no place in the vote file when they came.
    pub(crate) new_slots: FxHashSet<Key>,
    pub(crate) released: Vec<u64>,
    /// Replicas that the checkpoint before this record does not name any more.
    pub(crate) forgotten: Vec<Key>,
    /// Who is in it.
    owners: OwnerSet,
    pub(crate) has_entries: bool,
    /// How many batches: each may want a place in the footer.
    pub(crate) batches: usize,
    pub(crate) is_close: bool,
    /// Its entries go in half of the reserve, for what depends on them.
    pub(crate) is_urgent: bool,
    /// The lane's own, but no watermark record: a full disk has no room for one.
    pub(crate) is_plain: bool,
    /// Whether it holds entries that the log itself moves.
    has_moved: bool,
    /// It names the segment apart that was sealed just now.
    pub(crate) names_apart: bool,
}

impl Staging {
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.data_len == 0
    }

    /// The bytes the record will take, padding aside.
    pub(crate) fn len(&self) -> usize {
        self.head.len().max(RECORD_HEADER_BYTES) + self.data_len
    }

    /// Whether it holds entries that the log itself moves.
    pub(crate) const fn has_moved(&self) -> bool {
        self.has_moved
    }

    /// Bytes of all that was submitted.
    pub(crate) fn submitted_bytes(&self) -> usize {
        let changes = self.changes.iter().filter(|(_, change)| !change.is_moved());
        changes.map(|(_, change)| change.bytes()).sum()
    }

    /// The term that it gives the entry at `index`, if it writes it.
    pub(crate) fn term_at(&self, key: Key, index: Index) -> Option<Term> {
        let of_replica = self.changes.iter().rev().filter(|(owner, _)| *owner == key);
        let mut terms = of_replica.map(|(_, change)| match change {
            Change::Entries { batch, .. } => batch.term_at(index),
            Change::Reset(id) => (id.index == index).then_some(id.term),
            _ => None,
        });
        terms.find_map(|term| term)
    }

    fn head(&mut self) -> &mut BytesMut {
        if self.head.is_empty() {
            self.head.resize(RECORD_HEADER_BYTES, 0);
        }
        &mut self.head
    }

    /// Stages everything of a submission but its entries and what comes after them.
    pub(crate) fn begin(&mut self, key: Key, submission: &Submission) {
        if let Some(id) = submission.restart_after {
            self.change(key, Change::Reset(id));
        }
        if let Some(hard_state) = submission.hard_state {
            self.change(key, Change::HardState(hard_state));
        }
        if let Some(snapshots) = &submission.snapshots {
            self.change(key, Change::Snapshots(snapshots.clone()));
        }
    }

    /// Stages what comes after the entries.
    pub(crate) fn end(&mut self, key: Key, submission: &Submission) {
        if let Some(index) = submission.compact_before {
            self.change(key, Change::Compact(index));
        }
        if submission.tombstone {
            self.change(key, Change::Tombstone);
        }
        self.done(key, submission.submission);
    }

    /// A submission ends with this record.
    fn done(&mut self, key: Key, submission: u64) {
        self.head();
        self.done.push((key, submission));
    }

    /// Stages a change with its item.
    pub(crate) fn change(&mut self, key: Key, change: Change) {
        let item = match &change {
            Change::Entries { item, batch, .. } => return self.entries(key, batch, item.is_moved),
            Change::Reset(id) => Item::RestartAfter(*id),
            Change::HardState(hard_state) => Item::HardState(*hard_state),
            Change::Snapshots(record) => Item::Snapshots(record.clone()),
            Change::Compact(index) => Item::CompactBefore(*index),
            Change::Tombstone => Item::Tombstone,
            Change::Health(health) => Item::Health(health.clone()),
        };
        self.head();
        let before = self.len();
        self.item(Some(key), &item);
        debug_assert_eq!(self.len() - before, change.bytes(), "{change:?}");
        self.changes.push((key, change));
    }

    /// The same as two records: what concerns the replicas that are `taken`, and the rest. What the
    /// log itself moves is in neither.
    pub(crate) fn split(self, taken: impl Fn(Key) -> bool) -> (Self, Self) {
        let mut parts = (Self::default(), Self::default());
        self.deal(taken, &mut parts.0, &mut parts.1);
        parts
    }

    /// As [`Staging::split`], behind what the two records hold.
    pub(crate) fn deal(self, taken: impl Fn(Key) -> bool, ours: &mut Self, others: &mut Self) {
        let parts = [ours, others];
        let of = |key| usize::from(!taken(key));
        for (key, change) in self.changes {
            if !change.is_moved() {
                parts[of(key)].change(key, change);
            }
        }
        for vote in self.votes {
            parts[of(vote.key)].votes.push(vote);
        }
        for (key, submission) in self.done {
            parts[of(key)].done(key, submission);
        }
    }

    /// Whose it is, each as often as it says something of him.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> {
        let done = self.done.iter().map(|(key, _)| *key);
        done.chain(self.changes.iter().map(|(key, _)| *key))
    }

    /// Whether it is the log's own, and concerns no replica.
    pub(crate) fn is_lanes(&self) -> bool {
        self.done.is_empty() && self.changes.is_empty()
    }

    /// Whether all whom it concerns free something by it.
    pub(crate) fn makes_room(&self) -> bool {
        let makers = self
            .changes
            .iter()
            .filter(|(_, change)| change.makes_room());
        let makers: FxHashSet<Key> = makers.map(|(key, _)| *key).collect();
        !self.has_entries && self.keys().all(|key| makers.contains(&key))
    }

    /// The replicas whose own entries are in it.
    pub(crate) fn appended_to(&self) -> impl Iterator<Item = Key> {
        self.changes.iter().filter_map(|(key, change)| {
            matches!(change, Change::Entries { item, .. } if !item.is_moved).then_some(*key)
        })
    }

    pub(crate) fn item(&mut self, owner: Owner, item: &Item) {
        owner.into_iter().for_each(|key| self.owners.insert(key));
        put_item(self.head(), owner, item);
    }

    /// Stages what `put` writes into the table.
    pub(crate) fn raw(&mut self, put: impl FnOnce(&mut BytesMut)) {
        put(self.head());
    }

    /// Stages a batch: its frames by reference, or by copy if they are few.
    pub(crate) fn entries(&mut self, key: Key, batch: &Batch, is_moved: bool) {
        let item = EntriesItem {
            first: batch.first(),
            last: batch.last(),
            len: batch.size_bytes(),
            is_moved,
            term_changes: term_changes(batch),
            membership_entries: membership_entries(batch),
        };
        self.owners.insert(key);
        self.head();
        let before = self.len();
        put_entries(self.head(), key, &item);
        self.data_crc = crc32c_append(self.data_crc, batch.bytes());
        if batch.size_bytes() < COPY_BELOW_BYTES {
            self.copied.extend_from_slice(batch.bytes());
        } else {
            self.flush_copied();
            self.parts.push(batch.bytes().clone());
        }
        let at = self.data_len;
        self.data_len += batch.size_bytes();
        self.has_entries |= !is_moved;
        self.has_moved |= is_moved;
        self.batches += 1;
        let batch = batch.clone();
        let change = Change::Entries { item, at, batch };
        debug_assert_eq!(self.len() - before, change.bytes(), "{change:?}");
        self.changes.push((key, change));
    }

    /// Stages bytes as they are: a footer's lists.
    pub(crate) fn data(&mut self, bytes: Bytes) {
        self.head();
        self.data_crc = crc32c_append(self.data_crc, &bytes);
        self.data_len += bytes.len();
        self.flush_copied();
        self.parts.push(bytes);
    }

    fn flush_copied(&mut self) {
        if !self.copied.is_empty() {
            self.parts.push(self.copied.split().freeze());
        }
    }

    /// Fills in the header and gives the record out, ready to be written at `place`. Returns the
    /// buffers and where in the record the data begins; the changes stay.
    pub(crate) fn frame(
        &mut self,
        kind: RecordKind,
        lane: u16,
        (lsn, synced_lsn): (u64, u64),
        place: Place,
        lately: &mut Lately,
    ) -> (Vec<Bytes>, RecordHeader) {
        let owners = match kind {
            RecordKind::Data | RecordKind::Watermark => self.owners,
            // Other records say the same.
            RecordKind::Checkpoint | RecordKind::Footer => OwnerSet::default(),
        };
        let mut head = std::mem::take(self.head());
        self.flush_copied();
        let table_len = head.len() - RECORD_HEADER_BYTES;
        let pad = padding(table_len + self.data_len);
        let header = RecordHeader {
            kind,
            lane,
            lsn,
            synced_lsn,
            table_len,
            data_len: self.data_len,
            table_crc: place.checksum(&head[RECORD_HEADER_BYTES..]),
            data_crc: place.seal(crc32c_append(self.data_crc, pad)),
            owners: Some(lately.next(owners, place)),
        };
        head[..RECORD_HEADER_BYTES].copy_from_slice(&header.encode(place));
        let mut buffers = Vec::with_capacity(self.parts.len() + 2);
        buffers.push(head.freeze());
        buffers.append(&mut self.parts);
        if !pad.is_empty() {
            buffers.push(Bytes::from_static(pad));
        }
        (buffers, header)
    }
}

/// Where terms change behind the first entry; a batch of one term, the usual kind, is not walked.
fn term_changes(batch: &Batch) -> Vec<TermRun> {
    let mut changes = Vec::new();
    if batch.first().term != batch.last().term {
        let mut term = batch.first().term;
        for entry in batch {
            if entry.term() != term {
                term = entry.term();
                let first = entry.index();
                changes.push(TermRun { first, term });
            }
        }
    }
    changes
}

fn membership_entries(batch: &Batch) -> Vec<Index> {
    if !batch.may_hold_membership() {
        return Vec::new();
    }
    batch
        .iter()
        .filter(|entry| entry.kind().is_membership())
        .map(|entry| entry.index())
        .collect()
}
