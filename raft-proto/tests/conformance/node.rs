//! One replica with its disk and its state machine.

use std::collections::VecDeque;

use raft_proto::{
    Batch, Body, DropReason, EntryId, EntryKind, Fetched, Forwarded, HardState, Index,
    MembershipChange, Message, Proposal, ProposeError, Raft, Ready, Refused, ReplicaId, Role,
    SnapshotMeta, Underway,
};

use crate::describe::{self, Party, Shown};
use crate::letter::{AppendWork, Appended, ApplyWork, Letter};
use crate::storage::{State, Storage, entries_of};

pub(crate) struct Node {
    pub(crate) id: ReplicaId,
    pub(crate) raft: Raft,
    pub(crate) tick: u64,
    pub(crate) is_async: bool,
    pub(crate) storage: Storage,
    pub(crate) history: Vec<State>,
    /// The snapshot taken in last. As in etcd-raft's harness it is not part of the history.
    pub(crate) installed: Option<SnapshotMeta>,
    pub(crate) append_work: VecDeque<AppendWork>,
    pub(crate) apply_work: VecDeque<ApplyWork>,
    pub(crate) hard_state: HardState,
    /// Entries from here on are not durable, as etcd-raft counts.
    pub(crate) unstable_from: Index,
    /// A `Ready` that was looked at and is to be handled next.
    pub(crate) ready: Option<Ready>,
    /// Of each proposal on its way to the leader, in order, whose it is, if it is passed on.
    pub(crate) origins: VecDeque<Option<ReplicaId>>,
}

/// What a `Ready` says, in the order in which etcd-raft says it.
pub(crate) struct Said {
    pub(crate) now: Vec<Letter>,
    pub(crate) after: Vec<Letter>,
}

impl Node {
    pub(crate) fn tick(&mut self, count: u64) {
        for _ in 0..count {
            self.tick += 1;
            self.raft.advance_to(self.tick);
            self.supply();
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Ready> {
        self.supply();
        // etcd-raft has no word for what else is dropped.
        let mut ready = self.raft.poll_ready();
        while ready.as_ref().is_some_and(tells_of_drops_alone) {
            ready = self.raft.poll_ready();
        }
        if let Some(ready) = &ready {
            assert!(ready.fetch.is_empty(), "fetches are answered before");
            if let Some(meta) = &ready.snapshot {
                self.unstable_from = meta.id.index.next();
            }
            if let Some(batch) = ready.entries.first() {
                self.unstable_from = self.unstable_from.min(batch.first().index);
            }
        }
        ready
    }

    /// Reads what the core asks for.
    pub(crate) fn supply(&mut self) {
        loop {
            let fetches = self.raft.take_fetches();
            if fetches.is_empty() {
                return;
            }
            for fetch in fetches {
                let batches = self.storage.read(fetch.first, fetch.last, fetch.bytes_max);
                let first = fetch.first;
                self.raft
                    .entries_fetched(Fetched::Entries { first, batches });
            }
        }
    }

    pub(crate) fn state(&self) -> &State {
        self.history.last().expect("there is a first one")
    }

    pub(crate) fn propose(&mut self, kind: EntryKind, data: &[u8]) -> Result<(), String> {
        let proposal = Proposal {
            kind,
            session: None,
            payload: data,
        };
        let result = self.raft.propose([proposal]);
        self.supply();
        match result {
            Ok(_) => Ok(()),
            Err(ProposeError::NotLeader { .. }) => self.forward(proposal),
            Err(_) => Err(dropped()),
        }
    }

    pub(crate) fn forward(&mut self, proposal: Proposal<'_>) -> Result<(), String> {
        let forwarded = Forwarded::from(proposal);
        self.raft
            .forward(vec![forwarded])
            .map(|_| self.origins.push_back(None))
            .map_err(|_| dropped())
    }

    /// Where our core refuses a change, etcd-raft appends an empty entry in its place.
    pub(crate) fn propose_change(
        &mut self,
        kind: EntryKind,
        change: MembershipChange,
    ) -> Result<(), String> {
        let payload = change.encode();
        let result = if kind == EntryKind::MembershipSimple {
            self.raft.propose_simple_membership(change.changes[0])
        } else {
            self.raft.propose_membership(change)
        };
        match result {
            Ok(_) => Ok(()),
            Err(ProposeError::ChangePending | ProposeError::Change(_)) => {
                self.propose(EntryKind::Command, b"")
            }
            Err(ProposeError::NotLeader { .. }) => self.forward(Proposal {
                kind,
                session: None,
                payload: &payload,
            }),
            Err(_) => Err(dropped()),
        }
    }

    /// The error of a message that etcd-raft's `RawNode` or `raft` would return.
    pub(crate) fn receive(&mut self, letter: Letter) -> Option<String> {
        match letter {
            Letter::PassedOn { message, origin } => self.receive_proposal(message, origin),
            Letter::Peer(message) if matches!(message.body, Body::Propose { .. }) => {
                let origin = message.from;
                self.receive_proposal(message, origin)
            }
            Letter::Peer(message) => {
                let body_is_response = message.body.is_response();
                match self.raft.handle_message(message) {
                    Err(Refused::Dropped {
                        reason: DropReason::UnknownPeer,
                    }) if body_is_response => Some(unknown_peer()),
                    Err(violation @ Refused::Violation { .. }) => Some(violation.to_string()),
                    _ => None,
                }
            }
            Letter::Own {
                submission,
                message,
            } => {
                let is_member = self.raft.membership().replicas().contains(&self.id);
                self.raft.step_own_message(submission, &message);
                (!is_member).then(unknown_peer)
            }
            Letter::Appended(appended) => {
                self.on_appended(&appended);
                None
            }
            Letter::Applied { last, .. } => {
                self.raft.applied(last);
                None
            }
        }
    }

    fn receive_proposal(&mut self, message: Message, origin: ReplicaId) -> Option<String> {
        match self.raft.handle_message(message) {
            Ok(()) => {
                if self.raft.role() != Role::Leader {
                    self.origins.push_back(Some(origin));
                }
                None
            }
            Err(Refused::Dropped { .. }) => Some(dropped()),
            Err(violation) => Some(violation.to_string()),
        }
    }

    fn with_origin(&mut self, letter: Letter) -> Letter {
        let Letter::Peer(message) = letter else {
            return letter;
        };
        let is_proposal = matches!(message.body, Body::Propose { .. });
        let origin = is_proposal.then(|| self.origins.pop_front()).flatten();
        match origin.flatten() {
            Some(origin) => Letter::PassedOn { message, origin },
            None => Letter::Peer(message),
        }
    }

    /// etcd-raft counts entries as durable only if the term is still that of the append, and the
    /// last of them is still there (its answer to the ABA problem).
    pub(crate) fn on_appended(&mut self, appended: &Appended) {
        let is_current = appended.term >= self.raft.term();
        let counts = appended.log.is_some_and(|id| {
            id.index >= self.unstable_from && self.raft.term_at(id.index) == Some(id.term)
        });
        if let Some(id) = appended.log
            && is_current
            && counts
        {
            self.unstable_from = id.index.next();
            self.raft.entries_persisted(appended.submission);
        }
        if let Some(meta) = &appended.snapshot {
            self.raft.entries_persisted(appended.submission);
            self.raft.applied(meta.id.index);
        }
    }

    /// Sorts messages by whether etcd-raft holds them until the append is durable. Our core holds
    /// more: vote requests, and whatever names a term that is not durable.
    pub(crate) fn sort(&mut self, ready: &Ready) -> Said {
        let mut said = Said {
            now: Vec::new(),
            after: Vec::new(),
        };
        let own = ready
            .submission
            .into_iter()
            .flat_map(|id| self.raft.own_messages(id).map(move |own| (id, own)));
        let mut own = own.peekable();
        let mut held = ready.messages_after_sync.iter().enumerate().peekable();
        for position in 0..=ready.messages.len() {
            while let Some((at, held)) = held.next_if(|(_, held)| held.follows() == position) {
                while let Some((submission, (_, message))) =
                    own.next_if(|(_, (follows, _))| *follows <= at)
                {
                    said.after.push(Letter::Own {
                        message: message.clone(),
                        submission,
                    });
                }
                let message = held.held().clone();
                let is_held = matches!(
                    message.body,
                    Body::AppendResponse { .. }
                        | Body::VoteResponse { .. }
                        | Body::PreVoteResponse { .. }
                );
                let side = if is_held {
                    &mut said.after
                } else {
                    &mut said.now
                };
                side.push(Letter::Peer(message));
            }
            let now = ready.messages.get(position).cloned();
            said.now.extend(now.map(Letter::Peer));
        }
        said.after
            .extend(own.map(|(submission, (_, message))| Letter::Own {
                message: message.clone(),
                submission,
            }));
        said.now = std::mem::take(&mut said.now)
            .into_iter()
            .map(|letter| self.with_origin(letter))
            .collect();
        said
    }

    /// All of a `Ready` but its messages.
    pub(crate) fn describe(&self, ready: &Ready) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        if let Some(soft) = ready.soft_state {
            line(format!(
                "Lead:{} State:{}",
                soft.leader.map_or(0, ReplicaId::get),
                describe::role(soft.role)
            ));
        }
        if let Some(hard) = &ready.hard_state {
            line(format!("HardState {}", describe::hard_state(hard)));
        }
        if !ready.reads.is_empty() {
            let reads: Vec<String> = ready
                .reads
                .iter()
                .map(|read| format!("{{{} {}}}", read.index, read.user))
                .collect();
            line(format!("ReadStates [{}]", reads.join(" ")));
        }
        let reads_dropped: Vec<u64> = reads_dropped(ready).collect();
        if !reads_dropped.is_empty() {
            line(format!("ReadsDropped {reads_dropped:?}"));
        }
        if !ready.entries.is_empty() {
            line("Entries:".to_owned());
            for entry in entries_of(&ready.entries) {
                line(describe::entry(&entry));
            }
        }
        if let Some(meta) = &ready.snapshot {
            line(format!("Snapshot {}", describe::snapshot(meta)));
        }
        if let Some(meta) = &ready.snapshot_offered {
            line(format!("SnapshotOffered {}", describe::snapshot(meta)));
        }
        if let Some(index) = ready.snapshot_wanted {
            line(format!("SnapshotWanted Index:{index}"));
        }
        if !ready.committed.is_empty() {
            line("CommittedEntries:".to_owned());
            for entry in entries_of(&ready.committed) {
                line(describe::entry(&entry));
            }
        }
        out
    }

    /// What etcd-raft would hand to its two threads.
    pub(crate) fn thread_work(
        &self,
        ready: &Ready,
        after: Vec<Letter>,
    ) -> (Option<AppendWork>, Option<ApplyWork>) {
        let me = Party::Replica(self.id.get());
        let last = self.raft.last_index();
        let has_unstable = self.unstable_from <= last;
        let is_needed = !ready.entries.is_empty()
            || ready.hard_state.is_some()
            || ready.snapshot.is_some()
            || !after.is_empty();
        let append = is_needed.then(|| {
            let mut shown = Shown::new(me, Party::AppendThread, "MsgStorageAppend");
            if let Some(hard) = ready.hard_state {
                shown.term = hard.term.get();
                shown.vote = hard.vote.map_or(0, ReplicaId::get);
                shown.commit = hard.commit.get();
            }
            shown.entries = entries_of(&ready.entries)
                .iter()
                .map(describe::entry)
                .collect();
            shown.snapshot = ready.snapshot.as_ref().map(describe::snapshot);
            let mut responses = after;
            if has_unstable || ready.snapshot.is_some() {
                let term = self.raft.term_at(last).unwrap_or_default();
                responses.push(Letter::Appended(Appended {
                    to: self.id,
                    term: self.raft.term(),
                    log: has_unstable.then_some(EntryId::new(term, last)),
                    snapshot: ready.snapshot.clone(),
                    submission: ready.submission.expect("something is to be made durable"),
                }));
            }
            AppendWork {
                shown,
                entries: ready.entries.clone(),
                snapshot: ready.snapshot.clone(),
                responses,
            }
        });
        let apply = ready.committed.last().map(|batch| {
            let mut shown = Shown::new(me, Party::ApplyThread, "MsgStorageApply");
            let entries = entries_of(&ready.committed);
            shown.entries = entries.iter().map(describe::entry).collect();
            ApplyWork {
                shown,
                committed: ready.committed.clone(),
                response: Letter::Applied {
                    to: self.id,
                    entries,
                    last: batch.last().index,
                },
            }
        });
        (append, apply)
    }

    pub(crate) fn store(
        &mut self,
        entries: &[Batch],
        snapshot: Option<&SnapshotMeta>,
    ) -> Result<(), String> {
        if let Some(meta) = snapshot {
            if !entries.is_empty() {
                return Err("can't apply snapshot and entries at the same time".to_owned());
            }
            self.storage.restore(meta.id);
            self.installed = Some(meta.clone());
        }
        self.storage.append(entries);
        Ok(())
    }

    pub(crate) fn apply(&mut self, committed: &[Batch]) -> Result<(), String> {
        for batch in committed {
            for entry in batch {
                let mut state = self.state().clone();
                if entry.kind().is_membership() {
                    let change = MembershipChange::decode(entry.payload())
                        .map_err(|error| error.to_string())?;
                    state.meta.membership = self
                        .raft
                        .apply_membership(entry.index(), &change)
                        .map_err(|error| error.to_string())?;
                    state.data.extend_from_slice(&change.context);
                } else {
                    state.data.extend_from_slice(entry.payload());
                }
                state.meta.id = entry.id();
                self.raft.snapshot_stored(state.meta.clone());
                self.history.push(state);
            }
        }
        self.supply();
        Ok(())
    }

    /// Everything of a `Ready` is done at once.
    pub(crate) fn advance(&mut self, ready: &Ready) {
        if let Some(submission) = ready.submission {
            self.raft.persisted(submission);
            self.unstable_from = self.raft.last_index().next();
            if let Some(entries) = ready.entries.last() {
                self.unstable_from = entries.last().index.next();
            }
        }
        if let Some(meta) = &ready.snapshot {
            self.raft.applied(meta.id.index);
        }
        if let Some(batch) = ready.committed.last() {
            self.raft.applied(batch.last().index);
        }
        self.supply();
    }
}

pub(crate) fn dropped() -> String {
    "raft proposal dropped".to_owned()
}

pub(crate) fn unknown_peer() -> String {
    "raft: cannot step as peer not found".to_owned()
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("a script uses valid ids")
}

fn reads_dropped(ready: &Ready) -> impl Iterator<Item = u64> + '_ {
    ready
        .dropped
        .iter()
        .filter_map(|dropped| match dropped.what {
            Underway::Read { user } => Some(user),
            _ => None,
        })
}

/// Whether a `Ready` tells of nothing but what was under way and no read.
fn tells_of_drops_alone(ready: &Ready) -> bool {
    ready.submission.is_none()
        && ready.soft_state.is_none()
        && ready.messages.is_empty()
        && ready.committed.is_empty()
        && ready.fetch.is_empty()
        && ready.reads.is_empty()
        && reads_dropped(ready).next().is_none()
        && ready.snapshot_offered.is_none()
        && ready.snapshot_wanted.is_none()
}
