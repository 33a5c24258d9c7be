//! What cannot be written now, and must not hold up what can.
//!
//! On a full disk a replica that is new to the vote file waits for a larger one, and entries that
//! were taken before the disk was known to be full wait for a segment. Whoever has something
//! waiting goes on behind it, in order; all others go on in the reserve.

use std::collections::{BTreeSet, VecDeque};

use raft_proto::Index;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::item::Key;
use crate::lane::Lane;
use crate::staging::{Change, Staging, VoteChange};
use crate::state::Submission;

/// Records that wait, in order, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Held {
    staging: Staging,
    queue: VecDeque<Staging>,
    queue_bytes: usize,
    /// Whether a compaction of the replica says nothing of what waits.
    keys: FxHashMap<Key, bool>,
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
        for record in records.into_iter().rev() {
            for (key, change) in &record.changes {
                let may_pass = !matches!(
                    change,
                    Change::Snapshots(_) | Change::Reset(_) | Change::Tombstone
                );
                *self.keys.entry(*key).or_insert(true) &= may_pass;
            }
            for (key, _) in &record.done {
                self.keys.entry(*key).or_insert(true);
            }
            self.queue_bytes += record.len();
            self.queue.push_front(record);
        }
    }

    /// Takes all that waits.
    fn take(&mut self) -> Vec<Staging> {
        let held = std::mem::take(self);
        let last = (!held.staging.is_empty()).then_some(held.staging);
        held.queue.into_iter().chain(last).collect()
    }

    /// Takes the submissions of all that waits.
    pub(super) fn take_done(&mut self) -> Vec<(Key, u64)> {
        let held = self.take().into_iter();
        held.flat_map(|record| record.done).collect()
    }
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
        let is_vote = submission.hard_state.is_some();
        if reason == HeldFor::Room && is_vote && self.release_little(key) {
            return self.stage(submission);
        }
        let may_pass = submission.snapshots.is_none()
            && submission.restart_after.is_none()
            && !submission.tombstone;
        let held = self.held(reason);
        let may_pass_all = *held
            .keys
            .entry(key)
            .and_modify(|all| *all &= may_pass)
            .or_insert(may_pass);
        if let Some(index) = submission.compact_before.filter(|_| may_pass_all) {
            self.compact_early(key, index);
        }
        self.swap_held(reason);
        self.stage(submission);
        self.swap_held(reason);
    }

    /// What waits may wait for the very room that a compaction behind it makes: what of it concerns
    /// durable entries alone goes first, and is said again in its turn.
    fn compact_early(&mut self, key: Key, index: Index) {
        let last = {
            let tables = self.tables();
            let found = tables.replicas.get(&key);
            let state = found.map(|replica| &replica.state);
            let state = state.filter(|state| state.first < index);
            state.map(|state| state.last.index)
        };
        if let Some(last) = last {
            let index = index.min(last.next());
            self.staging.change(key, Change::Compact(index));
        }
    }

    fn swap_held(&mut self, reason: HeldFor) {
        let mut held = std::mem::take(self.held(reason));
        std::mem::swap(&mut held.staging, &mut self.staging);
        std::mem::swap(&mut held.queue, &mut self.queue);
        std::mem::swap(&mut held.queue_bytes, &mut self.queue_bytes);
        *self.held(reason) = held;
    }

    /// Those wait for whom something gathered lacks room, with all that they submitted; what comes
    /// from others is written before it. What the log itself would move stays where it is.
    pub(super) fn hold(&mut self, reason: HeldFor) {
        if !self.staging.is_empty() {
            self.enqueue();
        }
        self.queue_bytes = 0;
        let gathered = std::mem::take(&mut self.queue);
        let waits: FxHashSet<Key> = match reason {
            HeldFor::Room => gathered.iter().flat_map(Staging::appended_to).collect(),
            HeldFor::Slot => {
                let votes = gathered.iter().flat_map(|record| &record.votes);
                let lacks_slot = |vote: &&VoteChange| !self.votes.has_slot(vote.key);
                votes.filter(lacks_slot).map(|vote| vote.key).collect()
            }
        };
        let mut records = Vec::new();
        for record in gathered {
            let (held, free) = record.split(|key| waits.contains(&key));
            records.extend((!held.is_empty()).then_some(held));
            self.enqueue_part(free);
        }
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
        let changes = records.iter().flat_map(|record| &record.changes);
        let compactions: Vec<(Key, Index)> = changes
            .filter_map(|(key, change)| match change {
                Change::Compact(index) => Some((*key, *index)),
                _ => None,
            })
            .collect();
        self.held(reason).put_first(records);
        for (key, index) in compactions {
            if self.held(reason).keys.get(&key) == Some(&true) {
                self.compact_early(key, index);
            }
        }
    }

    /// What is next is too long for what is left of the reserve, and may make the room for what is
    /// behind it: it goes as two records. `false` if it is of one replica.
    pub(super) fn halve_next(&mut self) -> bool {
        if !self.staging.is_empty() {
            self.enqueue();
        }
        let Some(next) = self.queue.pop_front() else {
            return false;
        };
        let done = next.done.iter().map(|(key, _)| *key);
        let changed = next.changes.iter().map(|(key, _)| *key);
        let keys: BTreeSet<Key> = done.chain(changed).collect();
        let middle = keys.iter().nth(keys.len() / 2).filter(|_| keys.len() > 1);
        let Some(middle) = middle else {
            self.queue.push_front(next);
            return false;
        };
        let behind = std::mem::take(&mut self.queue);
        self.queue_bytes = 0;
        let (first, second) = next.split(|key| key < *middle);
        for record in [first, second].into_iter().chain(behind) {
            self.enqueue_part(record);
        }
        true
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

    /// Whether what a replica has waiting for room is so little that it goes in the reserve, half of
    /// which is left to others.
    fn is_little(&self, key: Key) -> bool {
        let waiting = self.no_room.queue.iter().chain([&self.no_room.staging]);
        let changes = waiting.flat_map(|record| &record.changes);
        let (mut count, mut bytes) = (2, self.queue_bytes + self.staging.len());
        for (_, change) in changes.filter(|(of, _)| *of == key) {
            count += 1;
            bytes += 128;
            if let Change::Entries { batch, .. } = change {
                bytes += batch.size_bytes();
            }
        }
        let taken = self.active.offset
            + u64::try_from(bytes).unwrap_or(u64::MAX / 2)
            + self.footer_bytes(count)
            + self.options.reserve() / 2;
        !self.active.is_sealed && taken <= self.active.len
    }

    /// Lets a replica whose term or vote waits behind a few entries of its own go on.
    fn release_little(&mut self, key: Key) -> bool {
        if !self.is_little(key) {
            return false;
        }
        if !self.staging.is_empty() {
            self.enqueue();
        }
        let mut left = Vec::new();
        for record in self.no_room.take() {
            let (ours, rest) = record.split(|of| of == key);
            left.extend((!rest.is_empty()).then_some(rest));
            self.enqueue_part(ours);
        }
        self.no_room.put_first(left);
        true
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
