//! One replica: its core, its disk, its state machine, and what is under way between them.

use std::collections::{BTreeSet, VecDeque};

use raft_proto::{
    AfterSync, Batch, Config, EntryId, EntryKind, Fetch, HardState, Index, Membership, Message,
    Raft, Restored, SnapshotMeta, SubmissionId, Term, TermRun,
};

use crate::oracle::Seen;

/// A state machine whose state is a hash over all entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) applied: EntryId,
    pub(crate) state: u64,
    /// As of `applied`.
    pub(crate) membership: Membership,
}

#[derive(Clone, Debug)]
struct Stored {
    id: EntryId,
    kind: EntryKind,
    frame: Batch,
}

impl Stored {
    fn is_bare(&self) -> bool {
        let entry = self.frame.iter().next();
        entry.is_some_and(|entry| entry.is_without_command())
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) snapshot: Option<SnapshotMeta>,
    /// The entry before the first.
    before: EntryId,
    /// What lies before it was without commands.
    pub(crate) bare_up_to: Index,
    entries: VecDeque<Stored>,
}

impl Disk {
    pub(crate) fn starting_from(meta: SnapshotMeta) -> Self {
        Self {
            hard: HardState {
                term: meta.id.term,
                vote: None,
                commit: meta.id.index,
            },
            before: meta.id,
            bare_up_to: Index::ZERO,
            snapshot: Some(meta),
            entries: VecDeque::new(),
        }
    }

    pub(crate) const fn first(&self) -> Index {
        self.before.index.next()
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.back().map_or(self.before, |stored| stored.id)
    }

    fn place(&self, index: Index) -> usize {
        usize::try_from(index.distance_from(self.first())).expect("it fits")
    }

    /// The term at `index`, from the entry before the first to the last.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.before.index {
            return Some(self.before.term);
        }
        if index < self.first() {
            return None;
        }
        self.entries
            .get(self.place(index))
            .map(|stored| stored.id.term)
    }

    /// Makes `write` durable.
    pub(crate) fn take(&mut self, write: &Write) {
        if let Some(hard) = write.hard {
            self.hard = hard;
        }
        if let Some(meta) = &write.snapshot {
            self.before = meta.id;
            self.bare_up_to = if write.is_metadata {
                meta.id.index
            } else {
                Index::ZERO
            };
            self.entries.clear();
            self.snapshot = Some(meta.clone());
        }
        let mut is_first = true;
        for batch in &write.entries {
            if is_first {
                let keep = self.place(batch.first().index);
                assert!(
                    batch.first().index >= self.first() && keep <= self.entries.len(),
                    "what is written follows what is there"
                );
                self.entries.truncate(keep);
                is_first = false;
            }
            for entry in batch {
                let frame = batch
                    .from_index(entry.index())
                    .and_then(|part| part.up_to_index(entry.index()))
                    .expect("the entry is part of the batch");
                self.entries.push_back(Stored {
                    id: entry.id(),
                    kind: entry.kind(),
                    frame,
                });
            }
        }
    }

    /// Loses everything from `from` on, as no disk may, and that it was committed: that alone would
    /// be seen at the start.
    pub(crate) fn lose_tail(&mut self, from: Index) {
        let keep = self.place(from.max(self.first()));
        self.entries.truncate(keep);
        self.hard.commit = self.hard.commit.min(self.last().index);
    }

    pub(crate) fn compact(&mut self, first: Index) {
        while self.first() < first
            && let Some(stored) = self.entries.pop_front()
        {
            self.before = stored.id;
            if stored.is_bare() {
                self.bare_up_to = stored.id.index;
            }
        }
    }

    pub(crate) fn fetch(&self, fetch: &Fetch) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut room = fetch.bytes_max;
        if fetch.first < self.first() {
            return batches;
        }
        for stored in self.entries.iter().skip(self.place(fetch.first)) {
            let size = stored.frame.size_bytes();
            if stored.id.index > fetch.last || (size > room && !batches.is_empty()) {
                break;
            }
            room = room.saturating_sub(size);
            batches.push(stored.frame.clone());
        }
        batches
    }

    /// As a driver finds it: an entry without its command, or a snapshot that brought none.
    fn last_without_command(&self) -> Index {
        let last = self.entries.iter().rev().find(|stored| stored.is_bare());
        last.map_or(self.bare_up_to, |stored| stored.id.index)
    }

    fn restored(&self, machine: &Machine, leader_time_ms: u64) -> Restored {
        let mut terms = vec![TermRun {
            first: self.before.index,
            term: self.before.term,
        }];
        for stored in &self.entries {
            if terms.last().is_none_or(|run| run.term != stored.id.term) {
                terms.push(TermRun {
                    first: stored.id.index,
                    term: stored.id.term,
                });
            }
        }
        Restored {
            hard_state: self.hard,
            snapshot: self.snapshot.clone(),
            first: self.first(),
            last: self.last(),
            terms,
            applied: machine.applied.index,
            membership: machine.membership.clone(),
            membership_entries: self
                .entries
                .iter()
                .filter(|stored| stored.kind.is_membership())
                .map(|stored| stored.id.index)
                .collect(),
            leader_time_ms,
            last_without_command: self.last_without_command(),
            ..Restored::default()
        }
    }
}

/// What was given out to be made durable.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) id: SubmissionId,
    pub(crate) hard: Option<HardState>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    /// Whether the snapshot names this replica as a witness.
    pub(crate) is_metadata: bool,
    pub(crate) entries: Vec<Batch>,
    pub(crate) messages: Vec<AfterSync<Message>>,
}

/// A replica, up or down.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) config: Config,
    pub(crate) raft: Option<Raft>,
    pub(crate) disk: Disk,
    pub(crate) machine: Machine,
    /// Whether the state machine's state survives a crash.
    pub(crate) is_machine_durable: bool,
    pub(crate) writes: VecDeque<Write>,
    /// What is to be applied, and whether it is committed, as it should be.
    pub(crate) applies: VecDeque<(Batch, bool)>,
    pub(crate) fetches: VecDeque<Fetch>,
    /// Numbers of reads it was asked for in this life.
    pub(crate) reads: BTreeSet<u64>,
    /// Those of them that came after the last message: no round can have confirmed them.
    pub(crate) reads_fresh: BTreeSet<u64>,
    pub(crate) wants_snapshot: bool,
    /// Ticks of its clock.
    pub(crate) now: u64,
    pub(crate) lives: u64,
    pub(crate) seen: Seen,
}

impl Replica {
    pub(crate) fn new(config: Config, disk: Disk, is_machine_durable: bool) -> Self {
        Self {
            config,
            raft: None,
            disk,
            machine: Machine::default(),
            is_machine_durable,
            writes: VecDeque::new(),
            applies: VecDeque::new(),
            fetches: VecDeque::new(),
            reads: BTreeSet::new(),
            reads_fresh: BTreeSet::new(),
            wants_snapshot: false,
            now: 0,
            lives: 0,
            seen: Seen::default(),
        }
    }

    /// Starts it from its disk. `state` gives the state that a snapshot holds, `time` the leader's
    /// time of an entry.
    pub(crate) fn start(
        &mut self,
        seed: u64,
        state: impl Fn(Index) -> u64,
        time: impl Fn(EntryId) -> u64,
    ) {
        if let Some(meta) = &self.disk.snapshot
            && (!self.is_machine_durable || meta.id.index > self.machine.applied.index)
        {
            self.machine = Machine {
                applied: meta.id,
                state: state(meta.id.index),
                membership: meta.membership.clone(),
            };
        }
        self.lives += 1;
        let config = Config {
            seed,
            life: self.lives,
            ..self.config.clone()
        };
        let restored = self.disk.restored(&self.machine, time(self.disk.last()));
        let raft =
            Raft::new(config, restored, self.now).expect("the settings are within their bounds");
        let before = self.disk.first().previous().unwrap_or_default();
        self.seen = Seen::restarted(self.disk.hard.term, before);
        self.raft = Some(raft);
    }

    /// Crashes: what was not durable is gone, except that the first `survives` writes under way
    /// had reached the disk and nobody was told.
    pub(crate) fn crash(&mut self, survives: usize) {
        let writes = std::mem::take(&mut self.writes);
        for write in writes.iter().take(survives) {
            self.disk.take(write);
        }
        self.raft = None;
        self.applies.clear();
        self.fetches.clear();
        self.reads.clear();
        self.reads_fresh.clear();
        self.wants_snapshot = false;
    }
}
