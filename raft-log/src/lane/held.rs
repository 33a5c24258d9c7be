//! What cannot be written now, and must not hold up what can.
//!
//! On a full disk a replica that is new to the vote file waits for a larger one, and entries that
//! were taken before the disk was known to be full wait for a segment: here, and nowhere else. Whoever
//! has something waiting goes on behind it, in order; all others go on in the reserve.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft_proto::{EntryId, Index};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::index::Tables;
use crate::item::Key;
use crate::lane::Lane;
use crate::staging::{Change, Staging, VoteChange};
use crate::state::{SnapshotsRecord, Submission};

/// Records that wait, in order, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Held {
    staging: Staging,
    queue: VecDeque<Staging>,
    queue_bytes: usize,
    keys: FxHashMap<Key, Waiting>,
    /// Of whom a term or vote waits, or what makes room and cannot go first, perhaps behind entries.
    urgent: BTreeSet<Key>,
}

/// What waits of one replica.
#[derive(Debug, Default)]
struct Waiting {
    early: Early,
    /// What it takes of a record, at most.
    bytes: usize,
    batches: usize,
}

/// What may go before all else that waits of a replica, and is said again in its turn: the furthest
/// compaction, and the snapshots that it needs. Of these one record alone, or the second said of them
/// would be an older one.
#[derive(Clone, Debug, Default)]
struct Early {
    snapshots: Option<SnapshotsRecord>,
    compact_before: Option<Index>,
    is_over: bool,
}

impl Early {
    fn note(&mut self, change: &Change) {
        match change {
            Change::Reset(_) | Change::Tombstone => self.is_over = true,
            Change::Snapshots(record) => {
                self.is_over |= self.snapshots.as_ref().is_some_and(|early| early != record);
                if !self.is_over {
                    self.snapshots = Some(record.clone());
                }
            }
            Change::Compact(index) if !self.is_over => {
                self.compact_before = self.compact_before.max(Some(*index));
            }
            _ => {}
        }
    }
}

/// What is gathered of one replica.
#[derive(Clone, Copy, Debug, Default)]
struct Gathered {
    bytes: usize,
    makes_room: bool,
}

/// For what a record waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeldFor {
    /// A place in the vote file.
    Slot,
    /// A segment.
    Room,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.staging.is_empty()
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.keys.contains_key(&key)
    }

    pub(super) fn len(&self) -> usize {
        let staged = if self.staging.is_empty() {
            0
        } else {
            self.staging.len()
        };
        self.queue_bytes + staged
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Staging> {
        self.queue.iter().chain([&self.staging])
    }

    /// The changed terms and votes of all that waits.
    pub(super) fn votes(&self) -> Vec<VoteChange> {
        let votes = self.records().flat_map(|record| &record.votes);
        votes.copied().collect()
    }

    /// Puts whole records before those that wait.
    fn put_first(&mut self, records: Vec<Staging>) {
        for record in &records {
            for (key, change) in &record.changes {
                let waiting = self.keys.entry(*key).or_default();
                waiting.early.note(change);
                waiting.bytes += change.bytes();
                waiting.batches += usize::from(matches!(change, Change::Entries { .. }));
            }
            for (key, _) in &record.done {
                self.keys.entry(*key).or_default();
            }
            // What was let go on for this, and comes back, does not go on for it again.
            if !record.is_urgent {
                let changes = record.changes.iter();
                let ends = changes.filter(|(_, change)| is_end(change));
                self.urgent.extend(ends.map(|(key, _)| *key));
                self.urgent.extend(record.votes.iter().map(|vote| vote.key));
            }
        }
        self.put_back(records);
    }

    /// Puts back records that were taken from here.
    fn put_back(&mut self, records: Vec<Staging>) {
        for record in records.into_iter().rev() {
            self.queue_bytes += record.len();
            self.queue.push_front(record);
        }
    }

    /// Takes all that waits.
    fn take(&mut self) -> Vec<Staging> {
        self.keys.clear();
        self.urgent.clear();
        self.take_records()
    }

    /// Takes the records; whose they are is still known.
    fn take_records(&mut self) -> Vec<Staging> {
        self.queue_bytes = 0;
        let last = std::mem::take(&mut self.staging);
        let last = (!last.is_empty()).then_some(last);
        self.queue.drain(..).chain(last).collect()
    }

    /// Takes the submissions of all that waits.
    pub(super) fn take_done(&mut self) -> Vec<(Key, u64)> {
        let held = self.take().into_iter();
        held.flat_map(|record| record.done).collect()
    }
}

/// Whether all that a replica's log held is dropped.
const fn is_end(change: &Change) -> bool {
    matches!(change, Change::Reset(_) | Change::Tombstone)
}

impl Lane {
    const fn held(&mut self, reason: HeldFor) -> &mut Held {
        match reason {
            HeldFor::Slot => &mut self.no_slot,
            HeldFor::Room => &mut self.no_room,
        }
    }

    /// Whether nothing is gathered that could be written at once.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty() && self.staging.is_empty()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.no_slot.is_empty() || !self.no_room.is_empty()
    }

    pub(super) fn gathered(&self) -> impl Iterator<Item = &Staging> {
        self.queue.iter().chain([&self.staging])
    }

    /// Whether a replica has no place in the vote file, and nothing gathered takes one for it.
    pub(super) fn is_new_to_votes(&self, key: Key) -> bool {
        !self.votes.has_slot(key)
            && !self
                .gathered()
                .any(|record| record.new_slots.contains(&key))
    }

    /// For what a submission has to wait, if it has to.
    pub(super) fn is_held_for(&self, submission: &Submission) -> Option<HeldFor> {
        let key = (submission.group, submission.replica);
        if self.no_slot.has(key) {
            return Some(HeldFor::Slot);
        }
        if self.no_room.has(key) {
            return Some(HeldFor::Room);
        }
        let lacks_slot = submission.hard_state.is_some() && self.is_new_to_votes(key) && {
            let pending: usize = self.gathered().map(|record| record.new_slots.len()).sum();
            !self.votes.has_room(pending + 1)
        };
        lacks_slot.then_some(HeldFor::Slot)
    }

    /// Stages a submission behind what waits for the same.
    pub(super) fn stage_held(&mut self, reason: HeldFor, submission: &Submission) {
        let key = (submission.group, submission.replica);
        let is_end = submission.restart_after.is_some() || submission.tombstone;
        let votes = submission.hard_state.into_iter();
        let mut votes = votes.map(|hard_state| VoteChange::new(key, hard_state));
        let mut is_urgent = is_end || votes.any(|vote| self.votes.is_news(&vote));
        let before = self.held(reason).len();
        self.swap_held(reason);
        self.stage(submission);
        self.swap_held(reason);
        let held = self.held(reason);
        let bytes = held.len() - before;
        let waiting = held.keys.entry(key).or_default();
        waiting.bytes += bytes;
        waiting.batches += submission.entries.len();
        let changes = [
            submission.restart_after.map(Change::Reset),
            submission.snapshots.clone().map(Change::Snapshots),
            submission.compact_before.map(Change::Compact),
            submission.tombstone.then_some(Change::Tombstone),
        ];
        for change in changes.iter().flatten() {
            waiting.early.note(change);
        }
        if submission.compact_before.is_some() {
            is_urgent |= !self.compact_early(reason, key);
        }
        if is_urgent {
            self.held(reason).urgent.insert(key);
        }
    }

    /// What waits may wait for the very room that a compaction behind it makes: what of that
    /// concerns durable entries alone goes first. Whether that is all that there is to compact.
    fn compact_early(&mut self, reason: HeldFor, key: Key) -> bool {
        let waiting = self.held(reason).keys.get(&key);
        let early = waiting.map(|waiting| waiting.early.clone());
        let state = |tables: &Tables| Some(tables.replicas.get(&key)?.state.clone());
        let (Some(early), Some(state)) = (early, state(&self.tables())) else {
            return true;
        };
        let Some(index) = early.compact_before else {
            return !early.is_over;
        };
        let index = index.min(state.last.index.next());
        if index <= state.first {
            return !early.is_over;
        }
        // Entries that wait may overwrite durable ones.
        let before = index.previous().unwrap_or_default();
        let before = EntryId::new(self.term_before(key, index), before);
        let snapshots = early.snapshots.iter().flat_map(|record| &record.retained);
        let mut named = snapshots.map(|snapshot| snapshot.id).chain([before]);
        let is_durable =
            |id: EntryId| id.index < state.first || state.term_at(id.index) == Some(id.term);
        if !named.all(is_durable) {
            return false;
        }
        let snapshots = early.snapshots.map(Change::Snapshots);
        for change in snapshots.into_iter().chain([Change::Compact(index)]) {
            if !self.staging.is_empty() && self.staging.len() + change.bytes() > self.gather_max() {
                self.enqueue();
            }
            self.staging.change(key, change);
        }
        !early.is_over
    }

    fn swap_held(&mut self, reason: HeldFor) {
        let mut held = std::mem::take(self.held(reason));
        std::mem::swap(&mut held.staging, &mut self.staging);
        std::mem::swap(&mut held.queue, &mut self.queue);
        std::mem::swap(&mut held.queue_bytes, &mut self.queue_bytes);
        *self.held(reason) = held;
    }

    /// There is no room for what is next. Whose entries lack it waits with all that he submitted;
    /// if there are none, what fits goes first. Whether anything else is next now.
    pub(super) fn set_aside(&mut self) -> bool {
        let gathered = || self.gathered();
        if gathered().any(|record| record.has_entries || record.has_moved()) {
            self.hold(HeldFor::Room, &self.lacking_room());
            return true;
        }
        if gathered().all(Staging::is_lanes) {
            return false;
        }
        let mut of = BTreeMap::<Key, Gathered>::new();
        for record in gathered() {
            for (key, change) in &record.changes {
                let all = of.entry(*key).or_default();
                all.bytes += change.bytes();
                all.makes_room |= change.makes_room();
            }
            for (key, _) in &record.done {
                of.entry(*key).or_default();
            }
        }
        let taken = self.fitting(&of, true);
        if !taken.is_empty() {
            let others = self.join(&taken);
            others
                .into_iter()
                .for_each(|other| self.enqueue_part(other));
            return true;
        }
        let taken = self.fitting(&of, false);
        let others = self.join(&taken);
        self.hold_all(HeldFor::Room, others);
        true
    }

    /// Those of whom all goes into one record now: of whoever makes room, or of the others.
    fn fitting(&self, of: &BTreeMap<Key, Gathered>, makes_room: bool) -> FxHashSet<Key> {
        let kept = match makes_room {
            true => self.kept_for_release(),
            false => self.options.last_reserve(),
        };
        let mut bytes = 0;
        let mut taken = FxHashSet::default();
        for (key, gathered) in of {
            let is_asked_for = gathered.makes_room == makes_room;
            if is_asked_for && self.has_place(bytes + gathered.bytes, 0, kept) {
                bytes += gathered.bytes;
                taken.insert(*key);
            }
        }
        taken
    }

    /// Joins all that is gathered of those who are `taken` into one record, which is next. Returns
    /// the records of the others; what the lane says of itself is dropped, and said again.
    fn join(&mut self, taken: &FxHashSet<Key>) -> Vec<Staging> {
        if !self.staging.is_empty() {
            self.enqueue();
        }
        self.queue_bytes = 0;
        let mut ours = Staging::default();
        let mut others = Vec::new();
        for record in std::mem::take(&mut self.queue) {
            let mut other = Staging::default();
            record.deal(|key| taken.contains(&key), &mut ours, &mut other);
            others.extend((!other.is_empty()).then_some(other));
        }
        self.enqueue_part(ours);
        others
    }

    /// Whose entries wait when what is next lacks room: all, or if there is a next segment, which is too
    /// small for it, the one who has most of it.
    fn lacking_room(&self) -> FxHashSet<Key> {
        let next = self.queue.front().unwrap_or(&self.staging);
        if !(next.has_entries || next.has_moved()) || !self.has_next_segment() {
            return self.gathered().flat_map(Staging::appended_to).collect();
        }
        let mut bytes = BTreeMap::<Key, usize>::new();
        for (key, change) in &next.changes {
            *bytes.entry(*key).or_default() += change.bytes();
        }
        let appended_to = next.appended_to().max_by_key(|key| bytes.get(key));
        appended_to.into_iter().collect()
    }

    /// Who has voted, and has no place in the vote file.
    pub(super) fn lacking_slots(&self) -> FxHashSet<Key> {
        let votes = self.gathered().flat_map(|record| &record.votes);
        let lacks_slot = |vote: &&VoteChange| !self.votes.has_slot(vote.key);
        votes.filter(lacks_slot).map(|vote| vote.key).collect()
    }

    /// Those who lack something wait, with all that they submitted; what comes from others is written
    /// before it. What the log itself would move stays where it is.
    pub(super) fn hold(&mut self, reason: HeldFor, waits: &FxHashSet<Key>) {
        if !self.staging.is_empty() {
            self.enqueue();
        }
        self.queue_bytes = 0;
        let gathered = std::mem::take(&mut self.queue);
        let mut records = Vec::new();
        for record in gathered {
            let is_urgent = record.is_urgent;
            let (mut held, mut free) = record.split(|key| waits.contains(&key));
            (held.is_urgent, free.is_urgent) = (is_urgent, is_urgent);
            records.extend((!held.is_empty()).then_some(held));
            self.enqueue_part(free);
        }
        let new = records.iter().filter(|record| !record.is_urgent);
        let changes = new.flat_map(|record| &record.changes);
        let compactions = changes.filter(|(_, change)| matches!(change, Change::Compact(_)));
        let compacted: BTreeSet<Key> = compactions.map(|(key, _)| *key).collect();
        self.hold_all(reason, records);
        for key in compacted {
            if !self.compact_early(reason, key) {
                self.held(reason).urgent.insert(key);
            }
        }
    }

    /// What is gathered of some replicas waits.
    fn hold_all(&mut self, reason: HeldFor, mut records: Vec<Staging>) {
        let other = match reason {
            HeldFor::Slot => &mut self.no_room,
            HeldFor::Room => &mut self.no_slot,
        };
        let is_of_both = records
            .iter()
            .flat_map(|record| &record.done)
            .any(|(key, _)| other.has(*key));
        if is_of_both {
            // Its later ones wait for something else: all wait together, or the order is lost.
            records.append(&mut other.take());
        }
        self.held(reason).put_first(records);
    }

    /// Queues what was split off.
    fn enqueue_part(&mut self, mut record: Staging) {
        if record.is_empty() {
            return;
        }
        let keys = record.votes.iter().map(|vote| vote.key);
        record.new_slots = keys.filter(|key| !self.votes.has_slot(*key)).collect();
        self.queue_bytes += record.len();
        self.queue.push_back(record);
    }

    /// Whose term or vote waits for room, behind few entries perhaps, goes on in the reserve: half
    /// of it is left to others.
    pub(super) fn release_urgent(&mut self) {
        if self.no_room.urgent.is_empty() {
            return;
        }
        let mut taken = self.urgent_fitting(false);
        let has_entries = taken.is_empty();
        if has_entries {
            taken = self.urgent_fitting(true);
        }
        if taken.is_empty() {
            return;
        }
        for key in &taken {
            self.no_room.keys.remove(key);
            self.no_room.urgent.remove(key);
        }
        let mut ours = Staging::default();
        let mut left = Vec::new();
        for record in self.no_room.take_records() {
            if !record.keys().any(|key| taken.contains(&key)) {
                left.push(record);
                continue;
            }
            let mut other = Staging::default();
            other.is_urgent = record.is_urgent;
            record.deal(|key| taken.contains(&key), &mut ours, &mut other);
            left.extend((!other.is_empty()).then_some(other));
        }
        self.no_room.put_back(left);
        ours.is_urgent = true;
        let behind = std::mem::take(&mut self.queue);
        self.enqueue_part(ours);
        self.queue.extend(behind);
    }

    /// Of those who are urgent, with entries or without, as many as one record has room for.
    fn urgent_fitting(&self, has_entries: bool) -> FxHashSet<Key> {
        let kept = match has_entries {
            true => self.options.reserve() / 2,
            false => self.options.last_reserve(),
        };
        // What is gathered of them is what went before, or what the log moves: it is older, and is
        // written first.
        let gathered: FxHashSet<Key> = self.gathered().flat_map(Staging::keys).collect();
        let (mut bytes, mut batches) = (0, 0);
        let mut taken = FxHashSet::default();
        let may_go = |key: &&Key| !gathered.contains(key);
        for key in self.no_room.urgent.iter().filter(may_go) {
            let Some(waiting) = self.no_room.keys.get(key) else {
                continue;
            };
            let more = (bytes + waiting.bytes, batches + waiting.batches);
            let is_asked_for = (waiting.batches > 0) == has_entries;
            if is_asked_for && self.has_place(more.0, more.1, kept) {
                (bytes, batches) = more;
                taken.insert(*key);
            }
        }
        taken
    }

    /// What waited is written next, behind what is gathered.
    pub(super) fn unhold(&mut self, reason: HeldFor) {
        if self.held(reason).is_empty() {
            return;
        }
        if !self.staging.is_empty() {
            self.enqueue();
        }
        for record in self.held(reason).take() {
            self.queue_bytes += record.len();
            self.queue.push_back(record);
        }
    }
}
