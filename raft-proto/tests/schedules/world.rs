//! A group of replicas, the network between them, and everything that can be done to them.

use std::collections::VecDeque;

use bytes::BytesMut;
use raft_proto::{
    Body, EntryId, Envelope, Fetched, GroupId, Index, MembershipChange, Message, Raft, Ready,
    Refused, ReplicaId, Role, SnapshotMeta, SnapshotStatus, Underway,
};

use crate::defects::Defect;
use crate::oracle::{Oracle, Violation, is_on_disk};
use crate::replica::{Replica, Write};
use crate::rng::Rng;

/// What a network does to messages, in percent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Network {
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) reordering: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) oracle: Oracle,
    pub(crate) flying: Vec<Message>,
    /// How the snapshots fared that leaders sent, not yet reported to them.
    pub(crate) reports: Vec<(ReplicaId, ReplicaId, SnapshotStatus)>,
    /// Links that carry nothing, from and to.
    cut: [[bool; REPLICAS_MAX]; REPLICAS_MAX],
    pub(crate) network: Network,
    /// All clocks show the same; else each goes as it likes.
    pub(crate) is_clock_shared: bool,
    pub(crate) now: u64,
    /// Timers fire when a replica is polled, after all that was handed to it; else with each input.
    pub(crate) fires_last: bool,
    pub(crate) defect: Option<Defect>,
    /// Whether promises and commits are held against the disks directly, or only what follows
    /// from them.
    pub(crate) checks_disks: bool,
    next_user: u64,
    next_command: u64,
    pub(crate) trace: Option<VecDeque<String>>,
}

pub(crate) const REPLICAS_MAX: usize = 9;
const FLYING_MAX: usize = 300;
/// More than this without anything from outside is a circle.
const POLLS_MAX: usize = 64;
const TRACE_LINES: usize = 60;

pub(crate) fn group() -> GroupId {
    GroupId::new(1).expect("a valid id")
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("a valid id")
}

pub(crate) fn place(id: ReplicaId) -> usize {
    usize::try_from(id.get()).expect("ids are small here") - 1
}

type Checked = Result<(), Violation>;

impl World {
    pub(crate) fn new(rng: Rng, replicas: Vec<Replica>, oracle: Oracle) -> Self {
        Self {
            rng,
            replicas,
            oracle,
            flying: Vec::new(),
            reports: Vec::new(),
            cut: [[false; REPLICAS_MAX]; REPLICAS_MAX],
            network: Network::default(),
            is_clock_shared: true,
            now: 0,
            fires_last: true,
            defect: None,
            checks_disks: true,
            next_user: 0,
            next_command: 0,
            trace: None,
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= TRACE_LINES {
                trace.pop_front();
            }
            trace.push_back(line());
        }
    }

    pub(crate) fn raft(&self, at: usize) -> Option<&Raft> {
        self.replicas[at].raft.as_ref()
    }

    /// The leader of the highest term that is up.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.replicas.len())
            .filter(|&at| {
                self.raft(at)
                    .is_some_and(|raft| raft.role() == Role::Leader)
            })
            .max_by_key(|&at| self.raft(at).map(Raft::term))
    }

    pub(crate) fn set_cut(&mut self, from: usize, to: usize, is_cut: bool) {
        self.cut[from][to] = is_cut;
    }

    pub(crate) fn heal(&mut self) {
        self.cut = [[false; REPLICAS_MAX]; REPLICAS_MAX];
    }

    /// Calls `command` on a replica that is up, with its clock set, and looks at it afterwards.
    pub(crate) fn with(&mut self, at: usize, command: impl FnOnce(&mut Raft)) -> Checked {
        self.set_clock(at);
        if let Some(raft) = &mut self.replicas[at].raft {
            command(raft);
            self.look(at)?;
        }
        Ok(())
    }

    fn set_clock(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        if self.is_clock_shared {
            replica.now = self.now;
        }
        if let Some(raft) = &mut replica.raft {
            raft.set_tick(replica.now);
            if !self.fires_last {
                raft.advance_to(replica.now);
            }
        }
    }

    fn look(&mut self, at: usize) -> Checked {
        let mut seen = std::mem::take(&mut self.replicas[at].seen);
        let Some(raft) = &self.replicas[at].raft else {
            return Ok(());
        };
        let on_disk = |voter, id| is_on_disk(&self.replicas[place(voter)].disk, id);
        let result = self
            .oracle
            .look(raft, &mut seen, on_disk, self.checks_disks);
        self.replicas[at].seen = seen;
        result
    }

    fn check_memory(&self, at: usize) -> Checked {
        let Some(raft) = self.raft(at) else {
            return Ok(());
        };
        let config = raft.config();
        let peers = raft.membership().replicas().len().max(1);
        // What may not be let go of: not durable, or not committed yet.
        let kept = raft.commit().min(self.replicas[at].disk.last().index);
        let held = raft.last_index().distance_from(kept);
        let held = usize::try_from(held).expect("it fits");
        let fetched = (peers + 1) * config.message_bytes_max.min(FRAME_BYTES_MAX * 300);
        let bound = config.cache_bytes_max.min(1 << 20)
            + (held + 64) * FRAME_BYTES_MAX
            + fetched
            + config.committed_bytes_per_ready_max.min(1 << 20)
            + self.oracle.reads_waiting() * 64
            + 16_384;
        let bytes = raft.memory_bytes();
        if bytes > bound {
            return Err(Violation::Memory { bytes, bound });
        }
        Ok(())
    }

    /// Takes from the core what it wants done, until it wants nothing more.
    pub(crate) fn poll(&mut self, at: usize) -> Checked {
        self.set_clock(at);
        if let Replica {
            raft: Some(raft),
            now,
            ..
        } = &mut self.replicas[at]
        {
            raft.advance_to(*now);
        }
        for _ in 0..POLLS_MAX {
            let Some(raft) = &mut self.replicas[at].raft else {
                return Ok(());
            };
            let Some(ready) = raft.poll_ready() else {
                self.look(at)?;
                return self.check_memory(at);
            };
            self.handle(at, ready)?;
            self.look(at)?;
        }
        let why = format!("replica {} wants something again and again", at + 1);
        Err(Violation::NoProgress { why })
    }

    fn handle(&mut self, at: usize, mut ready: Ready) -> Checked {
        self.note(|| format!("{} ready {ready:?}", at + 1));
        let committed = std::mem::take(&mut ready.committed);
        let is_missed = |change: &MembershipChange| self.is_change_missed(at, change);
        let missed: Vec<bool> = committed
            .iter()
            .flatten()
            .map(|entry| {
                let change = MembershipChange::decode(entry.payload());
                entry.kind().is_membership() && change.is_ok_and(|change| is_missed(&change))
            })
            .collect();
        let mut missed = missed.into_iter();
        let replica = &mut self.replicas[at];
        let raft = replica.raft.as_mut().expect("it gave a ready");
        if let Some(first) = ready.entries.first() {
            let before = first.first().index.previous().unwrap_or_default();
            let before = raft.term_at(before).unwrap_or_default();
            self.oracle.appended(&ready.entries, before)?;
        }
        for batch in committed {
            for entry in &batch {
                self.oracle.handed_out(entry)?;
                let is_missed = missed.next().unwrap_or_default();
                if entry.kind().is_membership()
                    && !is_missed
                    && let Ok(change) = MembershipChange::decode(entry.payload())
                {
                    // One that makes no sense any more has no effect, on any replica.
                    raft.apply_membership(entry.index(), &change).ok();
                }
            }
            replica.applies.push_back((batch, true));
        }
        if self.defect == Some(Defect::ApplyUncommitted) {
            let uncommitted = ready.entries.iter().cloned().map(|batch| (batch, false));
            replica.applies.extend(uncommitted);
        }
        replica.fetches.extend(ready.fetch.iter().copied());
        replica.wants_snapshot |= ready.snapshot_wanted.is_some();
        for read in ready.reads {
            replica.reads.remove(&read.user);
            let is_fresh = replica.reads_fresh.remove(&read.user);
            if is_fresh && raft.has_lease() && raft.membership().voters.len() > 1 {
                self.oracle.counts.add("lease reads", 1);
            }
            self.oracle.read_answered(read)?;
        }
        for dropped in ready.dropped {
            if let Underway::Read { user } = dropped.what {
                replica.reads.remove(&user);
                self.oracle.read_dropped(user)?;
            }
        }
        if ready.snapshot_offered.is_some() {
            self.oracle.counts.add("snapshots offered", 1);
        }
        let is_sync = replica.config.applies_after_sync;
        let id = replica.config.id;
        let is_witness = |meta: &SnapshotMeta| meta.membership.is_witness(id);
        if let Some(id) = ready.submission {
            replica.writes.push_back(Write {
                id,
                hard: ready.hard_state,
                is_metadata: ready.snapshot.as_ref().is_some_and(is_witness),
                snapshot: ready.snapshot,
                entries: ready.entries,
                messages: ready.messages_after_sync,
            });
        }
        for message in ready.messages {
            self.say(at, message)?;
        }
        if self.defect == Some(Defect::AckBeforeSync) {
            self.vouch_too_early(at)?;
        } else if is_sync {
            self.persist(at, usize::MAX)?;
        }
        Ok(())
    }

    fn vouch_too_early(&mut self, at: usize) -> Checked {
        let replica = &mut self.replicas[at];
        let Some(write) = replica.writes.back_mut() else {
            return Ok(());
        };
        let (id, messages) = (write.id, std::mem::take(&mut write.messages));
        if write.snapshot.is_some() {
            // Not a matter of this defect.
            return self.persist(at, usize::MAX);
        }
        let Some(raft) = &mut replica.raft else {
            return Ok(());
        };
        let durable = raft.persisted(id);
        for message in messages {
            self.say(at, message.release(durable))?;
        }
        Ok(())
    }

    /// Up to `count` writes become durable, in order, and the core is told of the last.
    pub(crate) fn persist(&mut self, at: usize, count: usize) -> Checked {
        self.set_clock(at);
        let mut last = None;
        let mut installed = None;
        let mut held = Vec::new();
        for _ in 0..count {
            let Some(write) = self.replicas[at].writes.pop_front() else {
                break;
            };
            self.replicas[at].disk.take(&write);
            last = Some(write.id);
            installed = write.snapshot.or(installed);
            held.extend(write.messages);
        }
        let Some(id) = last else {
            return Ok(());
        };
        self.note(|| format!("{} persisted {id:?}", at + 1));
        let mut durable = None;
        self.with(at, |raft| durable = Some(raft.persisted(id)))?;
        let durable = durable.expect("who runs writes");
        for message in held {
            self.say(at, message.release(durable))?;
        }
        if let Some(meta) = installed {
            self.install(at, meta)?;
        }
        Ok(())
    }

    /// A received snapshot is durable: the state machine takes it on.
    fn install(&mut self, at: usize, meta: SnapshotMeta) -> Checked {
        let index = meta.id.index;
        self.oracle.counts.add("snapshots installed", 1);
        self.oracle.configured(&meta.membership)?;
        let state = self.oracle.state(index);
        let replica = &mut self.replicas[at];
        replica.machine = crate::replica::Machine {
            applied: meta.id,
            state,
            membership: meta.membership.clone(),
        };
        replica
            .applies
            .retain(|(batch, _)| batch.last().index > index);
        let time = self.oracle.time(meta.id);
        self.with(at, |raft| {
            raft.set_leader_time_ms(time);
            raft.applied(index);
        })
    }

    /// The state machine applies up to `count` batches.
    pub(crate) fn apply(&mut self, at: usize, count: usize) -> Checked {
        for _ in 0..count {
            let Some((batch, is_committed)) = self.replicas[at].applies.pop_front() else {
                break;
            };
            for entry in &batch {
                let machine = &mut self.replicas[at].machine;
                let next = machine.applied.index.next();
                let is_strict = self.defect != Some(Defect::ApplyUncommitted);
                if is_strict || entry.index() == next {
                    self.oracle.applied(machine, entry)?;
                }
            }
            if is_committed {
                let last = batch.last().index;
                self.note(|| format!("{} applied {last}", at + 1));
                self.with(at, |raft| raft.applied(last))?;
            }
        }
        Ok(())
    }

    /// Reads from disk what the core asked for.
    pub(crate) fn fetch(&mut self, at: usize, is_failing: bool) -> Checked {
        let replica = &mut self.replicas[at];
        let Some(fetch) = replica.fetches.pop_front() else {
            return Ok(());
        };
        let first = fetch.first;
        let batches = replica.disk.fetch(&fetch);
        let fetched = if is_failing || batches.is_empty() {
            Fetched::Failed { first }
        } else {
            self.oracle.counts.add("fetches", 1);
            Fetched::Entries { first, batches }
        };
        self.with(at, |raft| raft.entries_fetched(fetched))
    }

    /// Takes a snapshot where the state machine stands, and compacts the log up to `overhead`
    /// entries before it.
    pub(crate) fn snapshot(&mut self, at: usize, overhead: u64) -> Checked {
        let replica = &mut self.replicas[at];
        let id = replica.machine.applied;
        replica.wants_snapshot = false;
        let is_new = replica.disk.snapshot.as_ref().is_none_or(|old| old.id < id);
        // Else the log does not hold what the snapshot stands for yet.
        let is_on_disk = replica.disk.term_at(id.index) == Some(id.term);
        let is_honest = self.defect != Some(Defect::ApplyUncommitted);
        if replica.raft.is_none() || !is_new || !is_on_disk || id == EntryId::ZERO || !is_honest {
            return Ok(());
        }
        let meta = SnapshotMeta {
            id,
            membership: replica.machine.membership.clone(),
        };
        replica.disk.snapshot = Some(meta.clone());
        let first = Index::new(id.index.get().saturating_sub(overhead)).next();
        replica.disk.compact(first);
        let first = replica.disk.first();
        self.oracle.counts.add("snapshots taken", 1);
        self.note(|| format!("{} snapshot {id}, log from {first}", at + 1));
        self.with(at, |raft| {
            raft.snapshot_stored(meta);
            raft.compacted(first);
        })
    }

    pub(crate) fn start(&mut self, at: usize) {
        if self.replicas[at].raft.is_some() {
            return;
        }
        if self.is_clock_shared {
            self.replicas[at].now = self.now;
        }
        let seed = self.rng.draw();
        let oracle = &self.oracle;
        let (state, time) = (|index| oracle.state(index), |id| oracle.time(id));
        self.replicas[at].start(seed, state, time);
        self.note(|| format!("{} starts", at + 1));
    }

    pub(crate) fn crash(&mut self, at: usize) {
        if self.replicas[at].raft.is_none() {
            return;
        }
        self.oracle.counts.add("crashes", 1);
        let mut survives = 0;
        while survives < self.replicas[at].writes.len() && self.rng.chance(50) {
            survives += 1;
        }
        if matches!(self.defect, Some(Defect::AckBeforeSync)) {
            survives = 0;
        }
        let replica = &mut self.replicas[at];
        self.oracle.reads_forgotten(&replica.reads);
        replica.crash(survives);
        if self.defect == Some(Defect::ForgetHardState) {
            replica.disk.hard.vote = None;
            // An earlier one would be seen at the start.
            replica.disk.hard.term = replica.disk.last().term;
        }
        if self.defect == Some(Defect::ForgetTail) {
            let last = replica.disk.last().index.get();
            let from = last.saturating_sub(self.rng.below(4));
            replica.disk.lose_tail(Index::new(from));
        }
        self.note(|| format!("{} crashes, {survives} writes survive", at + 1));
    }

    /// Time goes on for one replica, or for all.
    pub(crate) fn tick(&mut self, at: usize, ticks: u64) -> Checked {
        if self.is_clock_shared {
            self.now += ticks;
        } else {
            self.replicas[at].now += ticks;
        }
        self.with(at, |_| {})
    }

    pub(crate) fn propose(&mut self, at: usize) -> Checked {
        self.next_command += 1;
        let payload = self.next_command.to_le_bytes();
        let length = self.rng.index(payload.len() + 1);
        let count = self.rng.range(1, 3);
        let mut is_taken = false;
        // No two hosts agree on the time of day, and some have theirs set back.
        let wall_ms = self.rng.below(1 << 20);
        self.with(at, |raft| {
            raft.set_leader_time_ms(wall_ms);
            let proposal = raft_proto::Proposal::command(&payload[..length]);
            let proposals = (0..count).map(|_| proposal);
            is_taken = raft.propose(proposals).is_ok();
        })?;
        if is_taken {
            self.oracle.counts.add("proposals", count);
            self.note(|| format!("{} proposes {count}", at + 1));
        }
        Ok(())
    }

    pub(crate) fn forward(&mut self, at: usize) -> Checked {
        let mut is_sent = false;
        self.with(at, |raft| {
            let entry = raft_proto::Proposal::command(b"forward").into();
            is_sent = raft.forward(vec![entry]).is_ok();
        })?;
        if is_sent {
            self.oracle.counts.add("forwarded", 1);
        }
        Ok(())
    }

    pub(crate) fn change(&mut self, at: usize, change: MembershipChange) -> Checked {
        self.note(|| format!("{} proposes {change:?}", at + 1));
        self.with(at, |raft| {
            raft.propose_membership(change).ok();
        })
    }

    pub(crate) fn read(&mut self, at: usize) -> Checked {
        self.next_user += 1;
        let user = self.next_user;
        self.oracle.read_asked(user);
        if let Some(raft) = self.raft(at)
            && raft.role() == Role::Leader
            && match self.defect {
                Some(Defect::ReadWithoutRound) => true,
                Some(Defect::ReadBeforeOwnCommit) => {
                    raft.term_at(raft.commit()) != Some(raft.term())
                }
                _ => false,
            }
        {
            let index = raft.commit();
            return self
                .oracle
                .read_answered(raft_proto::ReadState { user, index });
        }
        let mut is_taken = false;
        self.with(at, |raft| is_taken = raft.read_index(user).is_ok())?;
        if is_taken {
            self.replicas[at].reads.insert(user);
            self.replicas[at].reads_fresh.insert(user);
            Ok(())
        } else {
            self.oracle.read_dropped(user)
        }
    }

    /// Reports to the leader how a snapshot fared that it sent.
    pub(crate) fn report(&mut self) -> Checked {
        let Some((leader, to, status)) = self.reports.pop() else {
            return Ok(());
        };
        self.with(place(leader), |raft| raft.report_snapshot(to, status))
    }

    fn say(&mut self, at: usize, message: Message) -> Checked {
        self.check_promise(at, &message)?;
        if self.rng.chance(self.network.loss) {
            self.lost(&message);
            return Ok(());
        }
        if self.rng.chance(self.network.duplication) {
            self.oracle.counts.add("duplicates", 1);
            self.flying.push(message.clone());
        }
        self.flying.push(message);
        if self.flying.len() > FLYING_MAX {
            let at = self.rng.index(self.flying.len());
            let message = self.flying.swap_remove(at);
            self.lost(&message);
        }
        Ok(())
    }

    /// What leaves must not be forgotten: terms, votes and acknowledgements are durable.
    fn check_promise(&mut self, at: usize, message: &Message) -> Checked {
        let disk = &self.replicas[at].disk;
        let term = message.term;
        let is_checked = self.checks_disks;
        let check = |holds: bool, what| {
            if holds || !is_checked {
                Ok(())
            } else {
                Err(Violation::Promise { what })
            }
        };
        let is_pre_vote = matches!(
            message.body,
            Body::PreVote { .. } | Body::PreVoteResponse { is_rejected: false }
        );
        check(is_pre_vote || term <= disk.hard.term, "term")?;
        let is_newest = disk.hard.term == term;
        match message.body {
            Body::Vote { .. } => {
                let is_kept = !is_newest || disk.hard.vote == Some(message.from);
                check(is_kept, "vote request")?;
                self.oracle.voted(message.from, term, message.from)
            }
            Body::VoteResponse { is_rejected: false } => {
                let is_kept = !is_newest || disk.hard.vote == Some(message.to);
                check(is_kept, "vote")?;
                self.oracle.voted(message.from, term, message.to)
            }
            Body::AppendResponse {
                index,
                rejected: None,
            } => check(!is_newest || index <= disk.last().index, "acknowledgement"),
            _ => Ok(()),
        }
    }

    fn lost(&mut self, message: &Message) {
        self.oracle.counts.add("lost", 1);
        if matches!(message.body, Body::Snapshot { .. }) {
            self.reports
                .push((message.from, message.to, SnapshotStatus::Failed));
        }
    }

    /// Delivers one of the messages in flight, the oldest unless the network reorders.
    pub(crate) fn deliver(&mut self) -> Checked {
        if self.flying.is_empty() {
            return Ok(());
        }
        let chosen = if self.rng.chance(self.network.reordering) {
            self.rng.index(self.flying.len())
        } else {
            0
        };
        let message = self.flying.remove(chosen);
        let (from, to) = (place(message.from), place(message.to));
        if self.cut[from][to] || self.replicas[to].raft.is_none() {
            self.lost(&message);
            if self.rng.chance(30) && matches!(message.body, Body::Append { .. }) {
                let lost_to = message.to;
                self.with(from, |raft| raft.report_unreachable(lost_to))?;
            }
            return Ok(());
        }
        let message = if self.rng.chance(10) {
            through_bytes(message)
        } else {
            message
        };
        for message in self.with_defect(message) {
            self.hand_over(message)?;
        }
        Ok(())
    }

    /// Gives a message to its replica.
    pub(crate) fn hand_over(&mut self, message: Message) -> Checked {
        let to = place(message.to);
        if matches!(message.body, Body::Snapshot { .. }) {
            self.reports
                .push((message.from, message.to, SnapshotStatus::Finished));
        }
        if matches!(message.body, Body::Quiesce { .. }) {
            self.oracle.counts.add("words of quiet", 1);
        }
        if matches!(message.body, Body::TimeoutNow) {
            self.oracle.counts.add("transfers", 1);
        }
        self.note(|| format!("{} takes {message:?}", to + 1));
        let mut result = Ok(());
        self.replicas[to].reads_fresh.clear();
        self.with(to, |raft| result = raft.handle_message(message))?;
        match result {
            Err(refused @ Refused::Violation { .. }) => Err(Violation::Refused { refused }),
            Err(Refused::Dropped { .. }) => {
                self.oracle.counts.add("dropped", 1);
                Ok(())
            }
            _ => {
                self.oracle.counts.add("messages", 1);
                Ok(())
            }
        }
    }
}

const FRAME_BYTES_MAX: usize = 160;

/// A message as the other side reads it from the wire.
fn through_bytes(message: Message) -> Message {
    let envelope = Envelope {
        group: group(),
        epoch: 0,
        message,
    };
    let mut bytes = BytesMut::new();
    envelope.encode_into(&mut bytes);
    assert_eq!(bytes.len(), envelope.encoded_bytes(), "the size is told");
    let decoded = Envelope::decode(bytes.freeze()).expect("what was encoded is decoded");
    decoded.message
}
