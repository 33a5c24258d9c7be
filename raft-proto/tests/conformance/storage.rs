//! A replica's storage in memory: its log, and the snapshots of its state machine.

use raft_proto::{Batch, EntryId, EntryKind, Index, SnapshotMeta, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) kind: EntryKind,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn entries_of(batches: &[Batch]) -> Vec<Entry> {
    batches
        .iter()
        .flat_map(Batch::iter)
        .map(|entry| Entry {
            id: entry.id(),
            kind: entry.kind(),
            payload: entry.payload().to_vec(),
        })
        .collect()
}

/// The state machine appends: its state is the bytes of all commands.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Storage {
    /// The entry before the first.
    before: EntryId,
    entries: Vec<Entry>,
    /// What was appended, as it was appended; for reading back.
    batches: Vec<Batch>,
}

impl Storage {
    pub(crate) fn new(before: EntryId) -> Self {
        Self {
            before,
            entries: Vec::new(),
            batches: Vec::new(),
        }
    }

    pub(crate) fn first(&self) -> Index {
        self.before.index.next()
    }

    pub(crate) fn last(&self) -> Index {
        self.entries
            .last()
            .map_or(self.before.index, |entry| entry.id.index)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn append(&mut self, batches: &[Batch]) {
        for batch in batches {
            let first = batch.first().index;
            self.entries.retain(|entry| entry.id.index < first);
            let before = first.previous().unwrap_or_default();
            self.batches = self
                .batches
                .iter()
                .filter_map(|stored| stored.up_to_index(before))
                .filter(|stored| stored.first().index <= before)
                .collect();
            self.entries.extend(entries_of(std::slice::from_ref(batch)));
            self.batches.push(batch.clone());
        }
    }

    pub(crate) fn restore(&mut self, id: EntryId) {
        *self = Self::new(id);
    }

    /// Drops all up to and with `index`.
    pub(crate) fn compact(&mut self, index: Index) -> Result<(), String> {
        if index <= self.before.index {
            return Err("requested index is unavailable due to compaction".to_owned());
        }
        let at = self
            .entries
            .iter()
            .position(|entry| entry.id.index == index)
            .expect("a script compacts what is there");
        self.before = self.entries[at].id;
        self.entries.drain(..=at);
        Ok(())
    }

    pub(crate) fn read(&self, from: Index, to: Index, bytes_max: usize) -> Vec<Batch> {
        let mut out: Vec<Batch> = Vec::new();
        let mut room = bytes_max;
        for batch in &self.batches {
            let Some(part) = batch.from_index(from).and_then(|part| part.up_to_index(to)) else {
                continue;
            };
            let part = part.up_to_size(room);
            if part.size_bytes() > room && !out.is_empty() {
                break;
            }
            room = room.saturating_sub(part.size_bytes());
            out.push(part);
        }
        out
    }

    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index == self.before.index {
            return Some(self.before.term);
        }
        self.entries
            .iter()
            .find(|entry| entry.id.index == index)
            .map(|entry| entry.id.term)
    }
}
