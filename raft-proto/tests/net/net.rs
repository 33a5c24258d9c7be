//! Replicas side by side in one thread: their disks, their state machines and the mail between
//! them, all moved by hand.
//!
//! A disk may be slow: what a replica wants durable then waits until the test lets it be, and a
//! crash loses it.
#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft_proto::{
    AfterSync, Batch, Body, Change, ChangeKind, Config, DropReason, Dropped, EntryId, EntryKind,
    Fetch, Fetched, GroupId, HardState, Index, Membership, MembershipChange, Message, Proposal,
    ProposeError, Raft, ReadState, Ready, Refused, ReplicaId, Restored, Role, SnapshotMeta,
    SubmissionId, Term, TermRun, Underway,
};

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("tests use valid ids")
}

pub(crate) fn index(index: u64) -> Index {
    Index::new(index)
}

pub(crate) fn entry_id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term::new(term), Index::new(index))
}

pub(crate) fn group() -> GroupId {
    GroupId::new(7).expect("a valid id")
}

pub(crate) fn voters(ids: &[u64]) -> Membership {
    Membership {
        voters: ids.iter().map(|&id| replica(id)).collect(),
        ..Membership::default()
    }
}

pub(crate) fn change(kind: ChangeKind, id: u64) -> MembershipChange {
    MembershipChange::single(kind, replica(id), None)
}

pub(crate) fn changes(list: &[(ChangeKind, u64)]) -> MembershipChange {
    MembershipChange {
        changes: list
            .iter()
            .map(|&(kind, id)| Change {
                kind,
                replica: replica(id),
                host: None,
            })
            .collect(),
        ..MembershipChange::default()
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    /// The snapshot that the log follows.
    pub(crate) base: SnapshotMeta,
    pub(crate) log: Vec<Batch>,
    /// What the state machine has made durable: the membership and index it restarts from.
    pub(crate) applied: SnapshotMeta,
}

impl Disk {
    pub(crate) fn last(&self) -> EntryId {
        self.log.last().map_or(self.base.id, Batch::last)
    }

    /// As many entries as `fetch` asks for, at least one.
    fn read(&self, fetch: Fetch) -> Vec<Batch> {
        let (mut read, mut room) = (Vec::new(), fetch.bytes_max);
        let wanted = self
            .log
            .iter()
            .filter_map(|batch| batch.from_index(fetch.first)?.up_to_index(fetch.last));
        for batch in wanted {
            let part = batch.up_to_size(room);
            if !read.is_empty() && part.size_bytes() > room {
                break;
            }
            let is_cut = part.last() != batch.last();
            room = room.saturating_sub(part.size_bytes());
            read.push(part);
            if is_cut {
                break;
            }
        }
        read
    }

    fn append(&mut self, batches: &[Batch]) {
        for batch in batches {
            let before = batch.first().index.previous().unwrap_or_default();
            self.log = self
                .log
                .iter()
                .filter_map(|stored| stored.up_to_index(before))
                .collect();
            assert_eq!(self.last().index.next(), batch.first().index, "no gap");
            self.log.push(batch.clone());
        }
    }

    pub(crate) fn restored(&self) -> Restored {
        let mut terms = vec![TermRun {
            first: self.base.id.index,
            term: self.base.id.term,
        }];
        let mut membership_entries = Vec::new();
        for entry in self.log.iter().flat_map(Batch::iter) {
            if terms.last().is_some_and(|run| run.term != entry.term()) {
                terms.push(TermRun {
                    first: entry.index(),
                    term: entry.term(),
                });
            }
            if entry.kind().is_membership() {
                membership_entries.push(entry.index());
            }
        }
        Restored {
            hard_state: self.hard,
            snapshot: (self.base.id != EntryId::ZERO).then(|| self.base.clone()),
            first: self.base.id.index.next(),
            last: self.last(),
            terms,
            applied: self.applied.id.index,
            membership: self.applied.membership.clone(),
            membership_entries,
            leader_time_ms: self
                .log
                .last()
                .and_then(|batch| Some(batch.iter().last()?.leader_time_ms()))
                .unwrap_or_default(),
            last_without_command: self
                .log
                .iter()
                .flat_map(Batch::iter)
                .filter(|entry| entry.is_without_command())
                .last()
                .map_or(Index::ZERO, |entry| entry.index()),
            lease_ticks: 0,
        }
    }
}

/// What waits for the disk.
#[derive(Debug)]
pub(crate) struct Write {
    submission: SubmissionId,
    hard: Option<HardState>,
    entries: Vec<Batch>,
    snapshot: Option<SnapshotMeta>,
    release: Vec<AfterSync<Message>>,
}

pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) disk: Disk,
    pub(crate) writes: VecDeque<Write>,
    pub(crate) is_disk_slow: bool,
    /// Whether `applied` waits for the test.
    pub(crate) is_apply_slow: bool,
    pub(crate) handed: Index,
    pub(crate) commands: Vec<(EntryId, Vec<u8>)>,
    pub(crate) reads: Vec<ReadState>,
    pub(crate) dropped: Vec<Dropped>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) offered: Vec<SnapshotMeta>,
    pub(crate) wanted: Vec<Index>,
    pub(crate) is_down: bool,
    pub(crate) tick: u64,
    config: Config,
}

pub(crate) struct Net {
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) mail: VecDeque<Message>,
    /// Links that lose everything, as (from, to).
    pub(crate) cut: BTreeSet<(u64, u64)>,
}

impl Net {
    /// A group of `ids`, all voters, with ten ticks of election timeout and pre-votes off, as the
    /// thesis' basic algorithm has it, unless `set` says otherwise.
    pub(crate) fn new(ids: &[u64], set: impl Fn(&mut Config)) -> Self {
        Self::with_membership(ids, &voters(ids), set)
    }

    pub(crate) fn with_membership(
        ids: &[u64],
        membership: &Membership,
        set: impl Fn(&mut Config),
    ) -> Self {
        let mut net = Self {
            nodes: BTreeMap::new(),
            mail: VecDeque::new(),
            cut: BTreeSet::new(),
        };
        for &id in ids {
            net.add(id, membership.clone(), &set);
        }
        net
    }

    /// Adds a replica that holds nothing but what it was told of the membership.
    pub(crate) fn add(&mut self, id: u64, membership: Membership, set: impl Fn(&mut Config)) {
        let mut config = Config {
            election_timeout_ticks_min: 10,
            election_timeout_ticks_max: 20,
            heartbeat_ticks: 1,
            pre_vote: false,
            check_quorum: false,
            ..Config::new(group(), replica(id), id)
        };
        set(&mut config);
        let applied = SnapshotMeta {
            id: EntryId::ZERO,
            membership,
        };
        let disk = Disk {
            applied,
            ..Disk::default()
        };
        let raft = Raft::new(config.clone(), disk.restored(), 0).expect("tests use valid settings");
        self.nodes.insert(
            id,
            Node {
                raft,
                disk,
                writes: VecDeque::new(),
                is_disk_slow: false,
                is_apply_slow: false,
                handed: Index::ZERO,
                commands: Vec::new(),
                reads: Vec::new(),
                dropped: Vec::new(),
                refused: Vec::new(),
                offered: Vec::new(),
                wanted: Vec::new(),
                is_down: false,
                tick: 0,
                config,
            },
        );
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("the replica exists")
    }

    pub(crate) fn raft(&mut self, id: u64) -> &mut Raft {
        &mut self.node(id).raft
    }

    /// Comes back with what its disk holds. The state machine holds what was applied.
    pub(crate) fn restart(&mut self, id: u64) {
        let node = self.node(id);
        node.writes.clear();
        // The seed stays: nothing may depend on its luck.
        node.config.life += 1;
        node.raft = Raft::new(node.config.clone(), node.disk.restored(), node.tick)
            .expect("settings are as before");
        node.handed = node.disk.applied.id.index;
        let handed = node.handed;
        node.commands.retain(|(id, _)| id.index <= handed);
        node.is_down = false;
        self.mail.retain(|message| message.to.get() != id);
    }

    pub(crate) fn cut_off(&mut self, id: u64) {
        let others: Vec<u64> = self.nodes.keys().copied().collect();
        for other in others {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Handles all that the replica wants done, but for its disk if that is slow.
    pub(crate) fn pump(&mut self, id: u64) -> bool {
        let mut is_busy = false;
        while !self.node(id).is_down {
            let Some(ready) = self.node(id).raft.poll_ready() else {
                break;
            };
            is_busy = true;
            self.handle(id, ready);
        }
        is_busy
    }

    fn handle(&mut self, id: u64, ready: Ready) {
        let node = self.node(id);
        node.reads.extend(ready.reads);
        node.dropped.extend(ready.dropped);
        node.offered.extend(ready.snapshot_offered);
        node.wanted.extend(ready.snapshot_wanted);
        let release = ready.messages_after_sync;
        match ready.submission {
            Some(submission) => node.writes.push_back(Write {
                submission,
                hard: ready.hard_state,
                entries: ready.entries,
                snapshot: ready.snapshot,
                release,
            }),
            None => assert!(release.is_empty(), "what waits has something to wait for"),
        }
        node.apply(&ready.committed);
        for fetch in ready.fetch {
            let batches = node.disk.read(fetch);
            let first = fetch.first;
            node.raft
                .entries_fetched(Fetched::Entries { first, batches });
        }
        let is_slow = node.is_disk_slow;
        self.mail.extend(ready.messages);
        if !is_slow {
            self.sync(id);
        }
    }

    /// The disk finishes all that it was given.
    pub(crate) fn sync(&mut self, id: u64) {
        while self.sync_one(id) {}
    }

    pub(crate) fn sync_one(&mut self, id: u64) -> bool {
        let node = self.node(id);
        let Some(write) = node.writes.pop_front() else {
            return false;
        };
        let durable = if let Some(meta) = write.snapshot {
            node.disk.base = meta.clone();
            node.disk.log.clear();
            node.disk.applied = meta.clone();
            node.handed = meta.id.index;
            node.disk.append(&write.entries);
            node.disk.hard = write.hard.unwrap_or(node.disk.hard);
            let durable = node.raft.persisted(write.submission);
            node.raft.applied(meta.id.index);
            durable
        } else {
            node.disk.append(&write.entries);
            node.disk.hard = write.hard.unwrap_or(node.disk.hard);
            node.raft.persisted(write.submission)
        };
        let release = write.release.into_iter();
        self.mail.extend(release.map(|held| held.release(durable)));
        true
    }

    /// Delivers the oldest message that is for a replica in reach.
    pub(crate) fn deliver_one(&mut self) -> bool {
        let Some(message) = self.mail.pop_front() else {
            return false;
        };
        self.deliver(message);
        true
    }

    pub(crate) fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from.get(), message.to.get());
        if self.cut.contains(&(from, to)) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&to).filter(|node| !node.is_down) else {
            return;
        };
        if let Err(refused) = node.raft.handle_message(message) {
            node.refused.push(refused);
        }
    }

    /// Runs until nothing moves any more.
    pub(crate) fn settle(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for _ in 0..10_000 {
            let mut is_busy = false;
            for &id in &ids {
                is_busy |= self.pump(id);
            }
            is_busy |= self.deliver_one();
            if !is_busy {
                return;
            }
        }
        panic!("it never settles");
    }

    /// Takes messages out of the mail.
    pub(crate) fn take(&mut self, take: impl Fn(&Message) -> bool) -> Vec<Message> {
        let (taken, rest) = std::mem::take(&mut self.mail).into_iter().partition(take);
        self.mail = rest;
        taken.into_iter().collect::<Vec<Message>>()
    }

    pub(crate) fn elect(&mut self, id: u64) {
        self.raft(id).campaign().expect("it may stand");
        self.settle();
        assert_eq!(self.raft(id).role(), Role::Leader, "replica {id} leads");
    }

    /// Makes `id` the leader of the next term by the votes of whom it reaches, and loses all that it
    /// says as leader.
    pub(crate) fn elect_unheard(&mut self, id: u64) {
        self.raft(id).campaign().expect("it may stand");
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        while self.raft(id).role() != Role::Leader {
            for &id in &ids {
                self.pump(id);
            }
            assert!(self.deliver_one(), "nobody votes for {id}");
        }
        self.pump(id);
        self.mail.clear();
    }

    pub(crate) fn propose(&mut self, id: u64, data: &str) -> Result<EntryId, ProposeError> {
        let proposal = Proposal::command(data.as_bytes());
        let proposed = self.raft(id).propose([proposal])?;
        Ok(EntryId::new(proposed.term, proposed.first))
    }

    /// Moves one replica's time on, tick by tick, handling what comes of it.
    pub(crate) fn tick(&mut self, id: u64, ticks: u64) {
        for _ in 0..ticks {
            let node = self.node(id);
            node.tick += 1;
            let tick = node.tick;
            node.raft.advance_to(tick);
            self.pump(id);
        }
    }

    /// Moves everyone's time on, and settles after each tick.
    pub(crate) fn tick_all(&mut self, ticks: u64) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for _ in 0..ticks {
            for &id in &ids {
                if !self.node(id).is_down {
                    self.tick(id, 1);
                }
            }
            self.settle();
        }
    }

    pub(crate) fn leaders(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .filter(|(_, node)| !node.is_down && node.raft.role() == Role::Leader)
            .map(|(&id, _)| id)
            .collect()
    }

    /// The state machine's snapshot of all it has applied, recorded; the log is cut before it.
    pub(crate) fn snapshot(&mut self, id: u64) -> SnapshotMeta {
        let node = self.node(id);
        let at = node.disk.applied.clone();
        node.raft.snapshot_stored(at.clone());
        node.raft.compacted(at.id.index.next());
        node.disk.log = node
            .disk
            .log
            .iter()
            .filter_map(|batch| batch.from_index(at.id.index.next()))
            .collect();
        node.disk.base = at.clone();
        at
    }
}

/// A read of the replica's own caller that will not be answered.
pub(crate) fn read_dropped(user: u64, reason: DropReason) -> Dropped {
    let what = Underway::Read { user };
    Dropped { what, reason }
}

impl Node {
    fn apply(&mut self, committed: &[Batch]) {
        for entry in committed.iter().flat_map(Batch::iter) {
            assert_eq!(
                entry.index(),
                self.handed.next(),
                "each entry once, in order"
            );
            self.handed = entry.index();
            if entry.kind() == EntryKind::Command {
                self.commands.push((entry.id(), entry.payload().to_vec()));
            } else {
                let change = MembershipChange::decode(entry.payload()).expect("our own change");
                if let Ok(membership) = self.raft.apply_membership(entry.index(), &change) {
                    self.disk.applied.membership = membership;
                }
            }
            self.disk.applied.id = entry.id();
        }
        if !committed.is_empty() && !self.is_apply_slow {
            self.raft.applied(self.handed);
        }
    }

    /// The commands applied, without the empty ones.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.commands
            .iter()
            .filter(|(_, command)| !command.is_empty())
            .map(|(_, command)| String::from_utf8_lossy(command).into_owned())
            .collect()
    }
}

/// A batch of commands of one term.
pub(crate) fn batch(term: u64, first: u64, commands: &[&str]) -> Batch {
    let mut builder =
        raft_proto::BatchBuilder::new(group(), Term::new(term), Index::new(first), 256);
    for command in commands {
        builder.push(EntryKind::Command, 0, None, command.as_bytes());
    }
    builder.finish().expect("there is one")
}

pub(crate) fn message(from: u64, to: u64, term: u64, body: Body) -> Message {
    Message {
        from: replica(from),
        to: replica(to),
        term: Term::new(term),
        body,
    }
}

pub(crate) fn append(prev: EntryId, commit: u64, entries: Vec<Batch>) -> Body {
    Body::Append {
        prev,
        commit: Index::new(commit),
        entries: entries.into(),
    }
}

/// Settings as they are.
pub(crate) fn plain(_: &mut Config) {}

/// A replica of voters 1, 2, 3 with `log` entries of the given terms, all durable.
pub(crate) fn follower(id: u64, term: u64, terms: &[u64], commit: u64) -> Raft {
    let config = Config {
        pre_vote: false,
        check_quorum: false,
        ..Config::new(group(), replica(id), id)
    };
    restarted(config, term, terms, commit)
}

/// The same with other settings.
pub(crate) fn restarted(config: Config, term: u64, terms: &[u64], commit: u64) -> Raft {
    let mut runs = vec![TermRun {
        first: Index::ZERO,
        term: Term::ZERO,
    }];
    for (at, &term) in terms.iter().enumerate() {
        if runs.last().is_some_and(|run| run.term != Term::new(term)) {
            runs.push(TermRun {
                first: Index::new(u64::try_from(at).expect("few") + 1),
                term: Term::new(term),
            });
        }
    }
    let last = u64::try_from(terms.len()).expect("few");
    let restored = Restored {
        hard_state: HardState {
            term: Term::new(term),
            vote: None,
            commit: index(commit),
        },
        last: entry_id(terms.last().copied().unwrap_or(0), last),
        terms: runs,
        membership: voters(&[1, 2, 3]),
        ..Restored::default()
    };
    Raft::new(config, restored, 0).expect("valid settings")
}
