//! Bytes as a life: a replica takes arbitrary messages, proposals, time and news of its disk, in
//! any order. Nothing of it may panic, take back what is committed, or hold more memory than the
//! settings and what waits for the disk can account for.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_proto::{
    Batch, BatchBuilder, Body, Change, ChangeKind, Config, Entries, EntryId, EntryKind, Fetch,
    Fetched, Forwarded, GroupId, Index, Membership, MembershipChange, Message, Proposal, Raft,
    Ready, Refused, ReplicaId, Restored, Role, Session, SnapshotMeta, SnapshotStatus, SubmissionId,
    Term, TermRun, Transition,
};

use super::replica::state;

const POLLS_MAX: usize = 64;
/// What a log holds that is there from the start.
const LOG_ENTRIES: u64 = 8;
/// What a replica with these settings may hold besides: a leader up to 64 KiB to write entries into.
const MEMORY_BYTES: usize = 72 << 10;

/// How far a life came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) is_leader: bool,
    pub(crate) commit: u64,
    pub(crate) has_installed: bool,
    pub(crate) has_fetched: bool,
    pub(crate) violations: u64,
}

/// Lives through `data`, or up to a violation after which a replica must be stopped.
pub(crate) fn run(data: &[u8]) -> Reached {
    let mut source = Source(data);
    let mut life = Life::new(source.byte());
    while !source.0.is_empty() {
        if !life.act(&mut source) {
            break;
        }
        life.take_out();
        life.check();
    }
    life.reached
}

/// Bytes to draw from; zeros when they are used up.
struct Source<'a>(&'a [u8]);

impl Source<'_> {
    const fn byte(&mut self) -> u8 {
        match self.0 {
            [byte, rest @ ..] => {
                self.0 = rest;
                *byte
            }
            [] => 0,
        }
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number at or near one that matters.
    fn number(&mut self, raft: &Raft) -> u64 {
        let last = raft.last_index().get();
        match self.byte() % 16 {
            0 => 0,
            1 => 1,
            2 | 3 => last,
            4 => last + 1,
            5 => raft.commit().get(),
            6 => raft.commit().get() + 1,
            7 => raft.first_index().get(),
            8 => raft.first_index().get().saturating_sub(1),
            9 => raft.applied_index().get(),
            10 => last + u64::from(self.byte()),
            11 => (1 << 63) - 1,
            12 => u64::MAX - u64::from(self.byte() % 4),
            _ => u64::from(self.byte()),
        }
    }

    fn index(&mut self, raft: &Raft) -> Index {
        Index::new(self.number(raft))
    }

    /// An entry that is in the log, or is not.
    fn id(&mut self, raft: &Raft) -> EntryId {
        let index = self.index(raft);
        let known = raft
            .term_at(index)
            .filter(|_| !self.byte().is_multiple_of(4));
        EntryId::new(known.unwrap_or_else(|| self.term(raft)), index)
    }

    fn term(&mut self, raft: &Raft) -> Term {
        let term = raft.term().get();
        Term::new(match self.byte() % 16 {
            0..8 => term,
            8 => term + 1,
            9 => term.saturating_sub(1),
            10 => 0,
            11 => term + u64::from(self.byte()),
            12 => match self.byte() % 8 {
                0 => u64::MAX - u64::from(self.byte() % 4),
                1 => 1 << 63,
                2 => (1 << 63) - 1,
                _ => 1,
            },
            _ => term.max(1),
        })
    }

    fn replica(&mut self) -> ReplicaId {
        let id = u64::from(self.byte() % 7) + 1;
        ReplicaId::new(id).expect("neither 0 nor large")
    }

    fn change(&mut self) -> MembershipChange {
        let transition = match self.byte() % 4 {
            0 => Transition::Implicit,
            1 => Transition::Explicit,
            _ => Transition::Auto,
        };
        let count = self.byte() % 4;
        let changes = (0..count).map(|_| Change {
            kind: match self.byte() % 8 {
                0 => ChangeKind::Remove,
                1 => ChangeKind::AddLearner,
                2 => ChangeKind::AddWitness,
                3 => ChangeKind::Prioritise(self.byte()),
                4 => ChangeKind::Update,
                _ => ChangeKind::AddVoter,
            },
            replica: self.replica(),
            host: None,
        });
        MembershipChange {
            transition,
            changes: changes.collect(),
            context: Bytes::new(),
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let length = usize::from(self.byte() % 64);
        vec![self.byte(); length]
    }
}

/// What waits for the disk.
struct Write {
    id: SubmissionId,
    entries: Vec<Batch>,
    snapshot: Option<SnapshotMeta>,
}

impl Write {
    /// What a core may hold until it is durable: entries, and messages that wait for it.
    fn bytes(&self) -> usize {
        let entries = self.entries.iter();
        1_024
            + entries
                .map(|batch| 2 * (64 + batch.size_bytes()))
                .sum::<usize>()
    }
}

/// A replica with its disk and its state machine.
struct Life {
    raft: Raft,
    ready: Ready,
    tick: u64,
    writes: VecDeque<Write>,
    /// By index: what is durable.
    disk: BTreeMap<Index, Batch>,
    applies: VecDeque<Batch>,
    /// The membership as of what is applied.
    membership: Membership,
    fetches: VecDeque<Fetch>,
    acts: usize,
    /// Whether its state machine never says that it has applied anything.
    stands_still: bool,
    term: Term,
    commit: Index,
    reached: Reached,
}

fn group() -> GroupId {
    GroupId::new(7).expect("a valid id")
}

const fn me() -> ReplicaId {
    ReplicaId::new(1).expect("a valid id")
}

impl Life {
    fn new(flags: u8) -> Self {
        let is_set = |bit: u8| flags & (1 << bit) != 0;
        let config = Config {
            pre_vote: is_set(0),
            check_quorum: is_set(1),
            lease_ticks: if is_set(1) && is_set(2) { 8 } else { 0 },
            quiesce_timeouts: u64::from(is_set(3)) * 2,
            change_after_own_commit: is_set(4),
            election_timeout_ticks_min: 10,
            election_timeout_ticks_max: 20,
            heartbeat_ticks: 2,
            message_bytes_max: 200,
            inflight_messages_max: 3,
            inflight_bytes_max: 500,
            uncommitted_bytes_max: 500,
            committed_bytes_per_ready_max: 300,
            reads_max: 8,
            cache_bytes_max: 16,
            ..Config::new(group(), me(), u64::from(flags))
        };
        let voters = [1, 2, 3, 5].map(|id| ReplicaId::new(id).expect("a valid id"));
        let membership = Membership {
            voters: voters.into(),
            learners: ReplicaId::new(4).into_iter().collect(),
            witnesses: voters.into_iter().skip(3).collect(),
            ..Membership::default()
        };
        let mut restored = Restored {
            terms: vec![TermRun {
                first: Index::ZERO,
                term: Term::ZERO,
            }],
            membership: membership.clone(),
            ..Restored::default()
        };
        let mut disk = BTreeMap::new();
        if is_set(6) {
            // It comes back with a log, of which it has applied nothing.
            for at in 1..=LOG_ENTRIES {
                let index = Index::new(at);
                let mut builder = BatchBuilder::new(group(), Term::new(1), index, 0);
                builder.push(EntryKind::Command, 0, None, &[0; 9]);
                disk.extend(builder.finish().map(|batch| (index, batch)));
            }
            restored.hard_state.term = Term::new(1);
            restored.hard_state.commit = Index::new(LOG_ENTRIES / 2);
            restored.last = EntryId::new(Term::new(1), Index::new(LOG_ENTRIES));
            restored.terms.push(TermRun {
                first: Index::new(1),
                term: Term::new(1),
            });
        }
        Self {
            raft: Raft::new(config, restored, 0).expect("the settings are sound"),
            ready: Ready::default(),
            tick: 0,
            writes: VecDeque::new(),
            disk,
            applies: VecDeque::new(),
            membership,
            fetches: VecDeque::new(),
            acts: 0,
            stands_still: is_set(7),
            term: Term::ZERO,
            commit: Index::ZERO,
            reached: Reached::default(),
        }
    }

    /// Does one thing; false after a violation that must stop the replica.
    fn act(&mut self, source: &mut Source<'_>) -> bool {
        self.acts += 1;
        match source.byte() % 16 {
            0..6 => return self.message(source),
            6 => {
                self.tick += u64::from(source.byte() % 40);
                self.raft.advance_to(self.tick);
            }
            7 | 8 => self.persist(usize::from(source.byte() % 4) + 1),
            9 if !self.stands_still => self.apply(),
            10 => self.fetch(source.byte().is_multiple_of(8)),
            11 => self.snapshot(source),
            12 | 13 => self.propose(source),
            _ => self.command(source),
        }
        true
    }

    fn message(&mut self, source: &mut Source<'_>) -> bool {
        let body = self.body(source);
        let message = Message {
            from: source.replica(),
            to: if source.byte() == u8::MAX {
                source.replica()
            } else {
                me()
            },
            term: source.term(&self.raft),
            body,
        };
        let before = state(&self.raft);
        match self.raft.handle_message(message) {
            Err(Refused::Violation { kind, .. }) => {
                assert_eq!(state(&self.raft), before, "a violation changes nothing");
                self.reached.violations += 1;
                !kind.is_fatal()
            }
            _ => true,
        }
    }

    fn body(&mut self, source: &mut Source<'_>) -> Body {
        let raft = &self.raft;
        match source.byte() % 24 {
            0 => Body::PreVote {
                last: source.id(raft),
            },
            1 | 2 => Body::PreVoteResponse {
                is_rejected: source.flag(),
            },
            3 => Body::Vote {
                last: source.id(raft),
                is_transfer: source.flag(),
            },
            4 | 5 => Body::VoteResponse {
                is_rejected: source.byte().is_multiple_of(8),
            },
            6..10 => {
                let prev = source.id(raft);
                let entries = self.entries(source, prev);
                Body::Append {
                    prev,
                    commit: source.index(&self.raft),
                    entries,
                }
            }
            10..13 => Body::AppendResponse {
                index: source.index(raft),
                rejected: if source.byte().is_multiple_of(4) {
                    Some(source.id(raft))
                } else {
                    None
                },
            },
            13 => Body::Heartbeat {
                commit: source.index(raft),
                round: source.number(raft),
            },
            14 => Body::HeartbeatResponse {
                round: source.number(raft),
            },
            15 => Body::Snapshot {
                meta: Box::new(self.meta(source)),
            },
            16 => Body::TimeoutNow,
            17 => Body::TransferLeader {
                to: source.replica(),
            },
            18 => Body::ReadIndex {
                life: source.number(raft),
                id: source.number(raft),
            },
            19 => Body::ReadIndexResponse {
                life: raft.config().life,
                id: source.number(raft),
                index: source.index(raft),
            },
            20 => Body::Propose {
                entries: self.forwarded(source),
            },
            21 => Body::Quiesce {
                last: source.id(raft),
            },
            22 => Body::SnapshotRequest {
                index: source.index(raft),
                request: source.number(raft),
            },
            _ => Body::SnapshotOffer {
                meta: Box::new(self.meta(source)),
                request: source.number(&self.raft),
            },
        }
    }

    /// Batches that follow `prev` and one another, most often.
    fn entries(&mut self, source: &mut Source<'_>, prev: EntryId) -> Entries {
        let mut entries = Entries::new();
        let mut before = prev;
        for _ in 0..source.byte() % 3 {
            let first = before
                .index
                .get()
                .saturating_add(1 + u64::from(source.byte() == 0));
            if first > u64::MAX - 8 {
                break;
            }
            let term = if source.byte().is_multiple_of(4) {
                source.term(&self.raft)
            } else {
                before.term.max(Term::new(1))
            };
            // What decodes has a term in range.
            let term = term.min(Term::new(u64::MAX - 2)).max(Term::new(1));
            let mut builder = BatchBuilder::new(group(), term, Index::new(first), 0);
            for _ in 0..=source.byte() % 3 {
                if source.byte().is_multiple_of(4) {
                    let change = source.change().encode();
                    builder.push(EntryKind::Membership, 0, None, &change);
                } else {
                    builder.push(EntryKind::Command, 0, None, &source.payload());
                }
            }
            if let Some(batch) = builder.finish() {
                before = batch.last();
                entries.push(batch);
            }
        }
        entries
    }

    fn meta(&self, source: &mut Source<'_>) -> SnapshotMeta {
        let id = source.id(&self.raft);
        let set = source.byte();
        let chosen = (1..=5).filter(|bit| set & (1 << bit) != 0);
        let membership = if source.byte().is_multiple_of(4) {
            Membership {
                index: source.index(&self.raft),
                voters: chosen.filter_map(ReplicaId::new).collect(),
                ..Membership::default()
            }
        } else {
            self.membership.clone()
        };
        SnapshotMeta { id, membership }
    }

    fn forwarded(&mut self, source: &mut Source<'_>) -> Vec<Forwarded> {
        let forwarded = (0..=source.byte() % 3).map(|_| {
            let is_change = source.byte().is_multiple_of(4);
            let payload = if is_change && source.flag() {
                source.change().encode()
            } else {
                source.payload()
            };
            Forwarded {
                kind: if is_change {
                    EntryKind::Membership
                } else {
                    EntryKind::Command
                },
                session: None,
                payload: payload.into(),
            }
        });
        forwarded.collect()
    }

    fn propose(&mut self, source: &mut Source<'_>) {
        if source.byte().is_multiple_of(4) {
            let change = source.change();
            self.raft.propose_membership(change).ok();
            return;
        }
        let session = source.flag().then_some(Session {
            client: 1,
            serial: 2,
        });
        let payload = source.payload();
        let proposal = Proposal {
            kind: EntryKind::Command,
            session,
            payload: &payload,
        };
        let count = usize::from(source.byte() % 4);
        self.raft.propose((0..count).map(|_| proposal)).ok();
    }

    fn command(&mut self, source: &mut Source<'_>) {
        let raft = &mut self.raft;
        match source.byte() % 8 {
            0 => {
                raft.read_index(u64::from(source.byte())).ok();
            }
            1 => {
                raft.transfer_leader(source.replica()).ok();
            }
            2 | 3 => {
                raft.campaign().ok();
            }
            4 => {
                let index = source.index(raft);
                raft.request_snapshot(index).ok();
            }
            5 => {
                let entry = Proposal::command(&[1, 2, 3]).into();
                raft.forward(vec![entry]).ok();
            }
            6 => {
                raft.forget_leader().ok();
            }
            _ => {
                let to = source.replica();
                match source.byte() % 3 {
                    0 => raft.report_unreachable(to),
                    1 => raft.report_snapshot(to, SnapshotStatus::Failed),
                    _ => raft.report_snapshot(to, SnapshotStatus::Finished),
                }
            }
        }
    }

    /// The first `count` writes are durable.
    fn persist(&mut self, count: usize) {
        let mut done = None;
        let mut installed = None;
        for _ in 0..count {
            let Some(write) = self.writes.pop_front() else {
                break;
            };
            if let Some(meta) = write.snapshot {
                self.disk.clear();
                installed = Some(meta);
            }
            if let Some(first) = write.entries.first() {
                self.disk.split_off(&first.first().index);
            }
            for batch in &write.entries {
                for entry in batch {
                    let index = entry.index();
                    let one = batch
                        .from_index(index)
                        .and_then(|part| part.up_to_index(index));
                    self.disk.insert(index, one.expect("it is in the batch"));
                }
            }
            done = Some(write.id);
        }
        if let Some(id) = done {
            self.raft.persisted(id);
        }
        if let Some(meta) = installed {
            self.reached.has_installed = true;
            self.applies
                .retain(|batch| batch.first().index > meta.id.index);
            self.membership = meta.membership;
            self.raft.applied(meta.id.index);
        }
    }

    fn apply(&mut self) {
        let Some(batch) = self.applies.pop_front() else {
            return;
        };
        for entry in batch.iter().filter(|entry| entry.kind().is_membership()) {
            if let Ok(change) = MembershipChange::decode(entry.payload())
                && let Ok(changed) = self.membership.changed(entry.index(), &change)
            {
                self.membership = changed.membership;
            }
        }
        self.raft.applied(batch.last().index);
    }

    fn fetch(&mut self, is_failing: bool) {
        let Some(fetch) = self.fetches.pop_front() else {
            return;
        };
        let first = fetch.first;
        let mut room = fetch.bytes_max;
        let mut batches = Vec::new();
        for (&index, batch) in self.disk.range(first..=fetch.last) {
            let follows = index.get() == first.get() + batches.len() as u64;
            let fits = batches.is_empty() || batch.size_bytes() <= room;
            if !follows || !fits {
                break;
            }
            room = room.saturating_sub(batch.size_bytes());
            batches.push(batch.clone());
        }
        let fetched = if is_failing || batches.is_empty() {
            Fetched::Failed { first }
        } else {
            self.reached.has_fetched = true;
            Fetched::Entries { first, batches }
        };
        self.raft.entries_fetched(fetched);
    }

    /// A snapshot of what is applied; the log goes up to some place before it.
    fn snapshot(&mut self, source: &mut Source<'_>) {
        let index = self.raft.applied_index();
        let Some(term) = self.raft.term_at(index).filter(|_| index > Index::ZERO) else {
            return;
        };
        self.raft.snapshot_stored(SnapshotMeta {
            id: EntryId::new(term, index),
            membership: self.membership.clone(),
        });
        let keep = u64::from(source.byte() % 8);
        let first = Index::new(index.get().saturating_sub(keep) + 1);
        self.raft.compacted(first);
        self.disk = self.disk.split_off(&first);
    }

    /// Takes what the core wants done.
    fn take_out(&mut self) {
        for _ in 0..POLLS_MAX {
            let mut ready = std::mem::take(&mut self.ready);
            if !self.raft.poll_ready_into(&mut ready) {
                self.ready = ready;
                return;
            }
            for batch in ready.committed.drain(..) {
                for entry in batch.iter().filter(|entry| entry.kind().is_membership()) {
                    if let Ok(change) = MembershipChange::decode(entry.payload()) {
                        self.raft.apply_membership(entry.index(), &change).ok();
                    }
                }
                self.applies.push_back(batch);
            }
            self.fetches.extend(ready.fetch.drain(..));
            if let Some(id) = ready.submission {
                self.writes.push_back(Write {
                    id,
                    entries: std::mem::take(&mut ready.entries),
                    snapshot: ready.snapshot.take(),
                });
            }
            self.ready = ready;
        }
        panic!("it wants something again and again");
    }

    fn check(&mut self) {
        let (term, commit) = (self.raft.term(), self.raft.commit());
        assert!(term >= self.term && commit >= self.commit, "neither falls");
        (self.term, self.commit) = (term, commit);
        let bytes = self.raft.memory_bytes();
        // What is durable can be read back: only what is on its way to the disk is held for longer.
        let unsynced: usize = self.writes.iter().map(Write::bytes).sum();
        let terms = self.acts * size_of::<TermRun>();
        let bound = MEMORY_BYTES + unsynced + terms;
        assert!(bytes <= bound, "{bytes} bytes, of {bound} at most");
        self.reached.is_leader |= self.raft.role() == Role::Leader;
        // Up to where nobody has taken it by a snapshot from afar.
        if commit.get() < 1 << 32 {
            self.reached.commit = self.reached.commit.max(commit.get());
        }
    }
}
