//! The environment of the interaction scripts: replicas, their disks and state machines, and one
//! queue of messages between them.
//!
//! Two disks are played. One is written as each `Ready` is handled. The other is a thread that a
//! script lets work one step at a time; there it matters when the core hears of what: entries
//! count as durable when etcd-raft would count them, which may be later than our core would.

use std::collections::{BTreeSet, VecDeque};

use raft_proto::{
    Body, Config, EntryId, EntryKind, GroupId, Index, Membership, MembershipChange, Message, Raft,
    ReplicaId, Restored, SnapshotMeta, StartError, Term, TermRun, Transition,
};

use crate::changes;
use crate::describe::{self, Shown};
use crate::letter::Letter;
use crate::node::{Node, replica};
use crate::script::{Directive, Interpreter, parse_bool};
use crate::storage::{State, Storage};

pub(crate) struct Env {
    pub(crate) nodes: Vec<Node>,
    pub(crate) letters: Vec<Letter>,
    out: String,
    level: usize,
    cache_bytes_max: usize,
    /// What happened, in the order in which it did.
    #[cfg(feature = "trace")]
    events: Vec<raft_proto::TraceEvent>,
}

const LEVELS: [&str; 6] = ["debug", "info", "warn", "error", "fatal", "none"];
const ELECTION_TICKS: u64 = 3;
const HEARTBEAT_TICKS: u64 = 1;

impl Interpreter for Env {
    fn answer(&mut self, directive: &Directive) -> String {
        self.out.clear();
        let result = self.run(directive);
        for node in &mut self.nodes {
            node.supply();
        }
        if let Err(error) = result {
            if self.is_quiet() {
                return error;
            }
            self.out.push_str(&error);
        }
        if self.out.is_empty() {
            "ok".to_owned()
        } else {
            self.out.clone()
        }
    }
}

impl Env {
    pub(crate) fn new(cache_bytes_max: usize) -> Self {
        Self {
            nodes: Vec::new(),
            letters: Vec::new(),
            out: String::new(),
            level: 0,
            cache_bytes_max,
            #[cfg(feature = "trace")]
            events: Vec::new(),
        }
    }

    /// Everything that has happened.
    #[cfg(feature = "trace")]
    #[allow(dead_code, reason = "the runner of the scripts takes none")]
    pub(crate) fn take_events(&mut self) -> Vec<raft_proto::TraceEvent> {
        self.gather_events();
        std::mem::take(&mut self.events)
    }

    /// Only one replica has done anything since the last call.
    #[cfg(feature = "trace")]
    fn gather_events(&mut self) {
        for node in &mut self.nodes {
            self.events.extend(node.raft.take_trace());
        }
    }

    fn is_quiet(&self) -> bool {
        self.level == LEVELS.len() - 1
    }

    fn put(&mut self, text: &str) {
        if !self.is_quiet() {
            self.out.push_str(text);
        }
    }

    pub(crate) fn put_line(&mut self, text: &str) {
        self.put(text);
        self.put("\n");
    }

    fn indented<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::take(&mut self.out);
        let result = run(self);
        let inner = std::mem::replace(&mut self.out, before);
        for line in inner.lines() {
            self.out.push_str("  ");
            self.out.push_str(line);
            self.out.push('\n');
        }
        result
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        #[cfg(feature = "trace")]
        self.gather_events();
        let at = usize::try_from(id - 1).expect("an id is small");
        &mut self.nodes[at]
    }

    fn run(&mut self, directive: &Directive) -> Result<(), String> {
        let ids = directive.ids();
        match directive.command.as_str() {
            "_breakpoint" => Ok(()),
            "add-nodes" => self.add_nodes(directive),
            "campaign" => {
                self.node(ids[0]).raft.campaign().ok();
                Ok(())
            }
            "compact" => self.compact(ids[0], ids[1]),
            "deliver-msgs" => {
                self.deliver_command(directive);
                Ok(())
            }
            "process-ready" => self.each(&ids, "handling Ready", Self::process_ready),
            "process-append-thread" => {
                self.each(&ids, "processing append thread", Self::process_append)
            }
            "process-apply-thread" => {
                self.each(&ids, "processing apply thread", Self::process_apply)
            }
            "log-level" => self.set_level(&directive.args[0].key),
            "raft-log" => {
                self.raft_log(ids[0]);
                Ok(())
            }
            "raft-state" => {
                self.raft_state();
                Ok(())
            }
            "set-randomized-election-timeout" => {
                let timeout = directive.numbers("timeout")[0];
                self.node(ids[0]).raft.set_election_timeout_ticks(timeout);
                Ok(())
            }
            "stabilize" => {
                let level = self.level;
                if let Some(name) = directive.value("log-level") {
                    self.set_level(name)?;
                }
                let result = self.stabilize(&ids);
                self.level = level;
                result
            }
            "status" => {
                let lines: Vec<String> = self
                    .node(ids[0])
                    .raft
                    .peer_statuses()
                    .map(|peer| format!("{}: {peer}", peer.id))
                    .collect();
                for line in lines {
                    self.put_line(&line);
                }
                Ok(())
            }
            "tick-election" => {
                self.node(ids[0]).tick(ELECTION_TICKS);
                Ok(())
            }
            "tick-heartbeat" => {
                self.node(ids[0]).tick(HEARTBEAT_TICKS);
                Ok(())
            }
            "transfer-leadership" => {
                let (from, to) = (directive.numbers("from")[0], directive.numbers("to")[0]);
                self.node(from).raft.transfer_leader(replica(to)).ok();
                Ok(())
            }
            "forget-leader" => {
                self.node(ids[0]).raft.forget_leader().ok();
                Ok(())
            }
            "send-snapshot" => {
                self.send_snapshot(ids[0], ids[1]);
                Ok(())
            }
            "propose" => {
                let data = directive.args[1].key.as_bytes();
                self.node(ids[0]).propose(EntryKind::Command, data)
            }
            "propose-conf-change" => self.propose_change(ids[0], directive),
            "report-unreachable" => {
                let [on, of] = ids[..] else {
                    return Err("must specify exactly two node indexes: node on which to report, and reported node".to_owned());
                };
                self.node(on).raft.report_unreachable(replica(of));
                Ok(())
            }
            _ => self.run_own(directive),
        }
    }

    fn each(
        &mut self,
        ids: &[u64],
        title: &str,
        run: fn(&mut Self, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        for &id in ids {
            if ids.len() > 1 {
                self.put_line(&format!("> {id} {title}"));
                self.indented(|env| run(env, id))?;
            } else {
                run(self, id)?;
            }
        }
        Ok(())
    }

    fn set_level(&mut self, name: &str) -> Result<(), String> {
        let found = LEVELS
            .iter()
            .position(|level| level.eq_ignore_ascii_case(name));
        self.level = found.ok_or_else(|| {
            let names: Vec<String> = LEVELS.iter().map(|level| level.to_uppercase()).collect();
            format!("log levels must be either of [{}]", names.join(" "))
        })?;
        Ok(())
    }

    fn add_nodes(&mut self, directive: &Directive) -> Result<(), String> {
        let count = directive.ids()[0];
        let index = Index::new(directive.numbers("index").first().copied().unwrap_or(0));
        let ids = |key: &str| -> BTreeSet<ReplicaId> {
            directive.numbers(key).into_iter().map(replica).collect()
        };
        let content = directive.value("content").unwrap_or_default();
        let membership = Membership {
            voters: ids("voters"),
            learners: ids("learners"),
            witnesses: ids("witnesses"),
            priorities: Self::priorities(directive),
            ..Membership::default()
        };
        let has_snapshot =
            membership != Membership::default() || index > Index::ZERO || !content.is_empty();
        let is_async = directive.flag("async-storage-writes").unwrap_or(false);
        for _ in 0..count {
            if has_snapshot && index <= Index::new(1) {
                return Err("index must be specified as > 1 due to bootstrap".to_owned());
            }
            let term = Term::new(u64::from(has_snapshot));
            let id = EntryId::new(term, index);
            let meta = SnapshotMeta {
                id,
                membership: membership.clone(),
            };
            let own = replica(u64::try_from(self.nodes.len()).expect("few") + 1);
            let config = self.config(own, directive, is_async)?;
            let restored = Restored {
                snapshot: has_snapshot.then(|| meta.clone()),
                first: index.next(),
                last: id,
                terms: vec![TermRun { first: index, term }],
                applied: index,
                membership: membership.clone(),
                ..Restored::default()
            };
            let raft = Raft::new(config, restored, 0).map_err(|error| match error {
                StartError::Config(error) if error.field == "lease_ticks" => {
                    "CheckQuorum must be enabled when ReadOnlyOption is ReadOnlyLeaseBased"
                        .to_owned()
                }
                error => error.to_string(),
            })?;
            self.nodes.push(Node {
                id: own,
                hard_state: raft.hard_state(),
                raft,
                tick: 0,
                is_async,
                storage: Storage::new(id),
                history: vec![State {
                    meta,
                    data: content.as_bytes().to_vec(),
                }],
                append_work: VecDeque::new(),
                apply_work: VecDeque::new(),
                unstable_from: index.next(),
                ready: None,
                origins: VecDeque::new(),
                installed: None,
            });
        }
        Ok(())
    }

    /// No limits but those that the script sets, and etcd-raft's rules where ours are stricter.
    pub(crate) fn config(
        &self,
        own: ReplicaId,
        directive: &Directive,
        is_async: bool,
    ) -> Result<Config, String> {
        let lease_ticks = match directive.value("read-only") {
            None | Some("safe") => directive.numbers("lease").first().copied().unwrap_or(0),
            Some("lease-based") => ELECTION_TICKS - 1,
            Some(other) => return Err(format!("invalid read-only option {other:?}")),
        };
        let flag = |key: &str| directive.flag(key).unwrap_or(false);
        let size = |key: &str| {
            directive
                .numbers(key)
                .first()
                .map(|&size| usize::try_from(size).expect("a size fits"))
        };
        let group = GroupId::new(1).expect("a valid id");
        Ok(Config {
            election_timeout_ticks_min: ELECTION_TICKS,
            election_timeout_ticks_max: 2 * ELECTION_TICKS - 1,
            heartbeat_ticks: HEARTBEAT_TICKS,
            pre_vote: flag("prevote"),
            check_quorum: flag("checkquorum"),
            step_down_on_removal: flag("step-down-on-removal"),
            lease_ticks,
            campaign_within_lease: true,
            validate_changes: !flag("disable-conf-change-validation"),
            change_after_own_commit: flag("own-commit-first"),
            change_done_when_applied: true,
            applies_after_sync: !is_async,
            quiesce_timeouts: directive
                .numbers("quiesce")
                .first()
                .copied()
                .unwrap_or_default(),
            message_bytes_max: size("max-message-bytes").unwrap_or(usize::MAX),
            inflight_messages_max: size("inflight").unwrap_or(0x7FFF_FFFF),
            inflight_bytes_max: size("inflight-bytes").unwrap_or(usize::MAX),
            uncommitted_bytes_max: size("max-uncommitted-bytes").unwrap_or(usize::MAX),
            committed_bytes_per_ready_max: size("max-committed-size-per-ready")
                .unwrap_or(usize::MAX),
            cache_bytes_max: self.cache_bytes_max,
            ..Config::new(group, own, own.get())
        })
    }

    fn compact(&mut self, id: u64, index: u64) -> Result<(), String> {
        let node = self.node(id);
        node.storage.compact(Index::new(index))?;
        let first = node.storage.first();
        node.raft.compacted(first);
        self.raft_log(id);
        Ok(())
    }

    fn raft_log(&mut self, id: u64) {
        let storage = &self.node(id).storage;
        let lines: Vec<String> = storage.entries().iter().map(describe::entry).collect();
        if lines.is_empty() {
            let text = format!(
                "log is empty: first index={}, last index={}",
                storage.first(),
                storage.last()
            );
            self.put(&text);
        }
        for line in lines {
            self.put_line(&line);
        }
    }

    fn raft_state(&mut self) {
        let lines: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                let raft = &node.raft;
                let voter = if raft.membership().is_voter(node.id) {
                    "(Voter)"
                } else {
                    "(Non-Voter)"
                };
                format!(
                    "{}: {} {voter} Term:{} Lead:{}",
                    node.id,
                    describe::role(raft.role()),
                    raft.term(),
                    raft.leader().map_or(0, ReplicaId::get)
                )
            })
            .collect();
        for line in lines {
            self.put_line(&line);
        }
    }

    fn propose_change(&mut self, id: u64, directive: &Directive) -> Result<(), String> {
        let (mut is_simple, mut transition) = (false, Transition::Auto);
        for arg in directive.args.iter().skip(1) {
            for value in &arg.values {
                match arg.key.as_str() {
                    "v1" => is_simple = parse_bool(value)?,
                    "transition" => {
                        transition = match value.as_str() {
                            "auto" => Transition::Auto,
                            "implicit" => Transition::Implicit,
                            "explicit" => Transition::Explicit,
                            other => return Err(format!("unknown transition {other}")),
                        }
                    }
                    other => return Err(format!("unknown command {other}")),
                }
            }
        }
        let changes = changes::parse(&directive.input)?;
        if is_simple && (changes.len() > 1 || transition != Transition::Auto) {
            return Err("v1 conf change can only have one operation and no transition".to_owned());
        }
        let kind = if is_simple {
            EntryKind::MembershipSimple
        } else {
            EntryKind::Membership
        };
        let change = MembershipChange {
            transition,
            changes,
            ..MembershipChange::default()
        };
        self.node(id).propose_change(kind, change)
    }

    fn send_snapshot(&mut self, from: u64, to: u64) {
        let node = self.node(from);
        let message = Message {
            from: replica(from),
            to: replica(to),
            term: node.raft.term(),
            body: Body::Snapshot {
                meta: Box::new(node.state().meta.clone()),
            },
        };
        let text = Shown::of(&message).show();
        self.letters.push(Letter::Peer(message));
        self.put(&text);
    }
}

/// Handling what a replica wants done.
impl Env {
    fn process_ready(&mut self, id: u64) -> Result<(), String> {
        let node = self.node(id);
        let Some(ready) = node.ready.take().or_else(|| node.poll()) else {
            self.put("<empty Ready>");
            return Ok(());
        };
        let said = node.sort(&ready);
        let mut text = node.describe(&ready);
        let mut messages = said.now;
        let mut work = (None, None);
        let node = self.node(id);
        if node.is_async {
            work = node.thread_work(&ready, said.after);
        } else {
            messages.extend(
                said.after
                    .into_iter()
                    .filter(|letter| letter.may_be_dropped()),
            );
        }
        let shown = messages.iter().map(Letter::shown);
        let shown: Vec<Shown> = shown
            .chain(work.0.iter().map(|work| {
                let mut shown = work.shown.clone();
                shown.responses = work.responses.iter().map(Letter::shown).collect();
                shown
            }))
            .chain(work.1.iter().map(|work| {
                let mut shown = work.shown.clone();
                shown.responses = vec![work.response.shown()];
                shown
            }))
            .collect();
        if !shown.is_empty() {
            text.push_str("Messages:\n");
        }
        for shown in &shown {
            text.push_str(&shown.show());
            text.push('\n');
        }
        if text.is_empty() {
            self.put("<empty Ready>");
        } else {
            let node = self.node(id);
            let must_sync = !ready.entries.is_empty()
                || (node.hard_state.term, node.hard_state.vote)
                    != (node.raft.hard_state().term, node.raft.hard_state().vote);
            // What etcd's rule says is what the core says, but that ours syncs a snapshot with it.
            assert_eq!(ready.must_sync, must_sync || ready.snapshot.is_some());
            let text = format!("Ready MustSync={must_sync}:\n{text}");
            self.put(&text);
        }
        let node = self.node(id);
        node.hard_state = node.raft.hard_state();
        if node.is_async {
            node.append_work.extend(work.0);
            node.apply_work.extend(work.1);
            self.letters.extend(messages);
            return Ok(());
        }
        node.store(&ready.entries, ready.snapshot.as_ref())?;
        node.apply(&ready.committed)?;
        self.letters.extend(messages);
        self.node(id).advance(&ready);
        Ok(())
    }

    fn process_append(&mut self, id: u64) -> Result<(), String> {
        let Some(work) = self.node(id).append_work.pop_front() else {
            self.put("no append work to perform");
            return Ok(());
        };
        self.put_line("Processing:");
        self.put_line(&work.shown.show());
        self.node(id).store(&work.entries, work.snapshot.as_ref())?;
        self.put_line("Responses:");
        for response in work.responses {
            self.put_line(&response.shown().show());
            self.letters.push(response);
        }
        Ok(())
    }

    fn process_apply(&mut self, id: u64) -> Result<(), String> {
        let Some(work) = self.node(id).apply_work.pop_front() else {
            self.put("no apply work to perform");
            return Ok(());
        };
        self.put_line("Processing:");
        self.put_line(&work.shown.show());
        self.node(id).apply(&work.committed)?;
        self.put_line("Responses:");
        self.put_line(&work.response.shown().show());
        self.letters.push(work.response);
        Ok(())
    }

    fn stabilize(&mut self, ids: &[u64]) -> Result<(), String> {
        let all: Vec<u64> = self.nodes.iter().map(|node| node.id.get()).collect();
        let ids = if ids.is_empty() { all } else { ids.to_vec() };
        loop {
            let mut is_done = true;
            for &id in &ids {
                let node = self.node(id);
                if node.ready.is_none() {
                    node.ready = node.poll();
                }
                if node.ready.is_some() {
                    self.put_line(&format!("> {id} handling Ready"));
                    self.indented(|env| env.process_ready(id))?;
                    is_done = false;
                }
            }
            for &id in &ids {
                if self.letters.iter().any(|letter| letter.to() == id) {
                    self.put_line(&format!("> {id} receiving messages"));
                    self.indented(|env| env.deliver(id, None, false));
                    is_done = false;
                }
            }
            for &id in &ids {
                if !self.node(id).append_work.is_empty() {
                    self.put_line(&format!("> {id} processing append thread"));
                    while !self.node(id).append_work.is_empty() {
                        self.indented(|env| env.process_append(id))?;
                    }
                    is_done = false;
                }
            }
            for &id in &ids {
                if !self.node(id).apply_work.is_empty() {
                    self.put_line(&format!("> {id} processing apply thread"));
                    while !self.node(id).apply_work.is_empty() {
                        self.indented(|env| env.process_apply(id))?;
                    }
                    is_done = false;
                }
            }
            if is_done {
                return Ok(());
            }
        }
    }

    fn deliver_command(&mut self, directive: &Directive) {
        let kind = directive.value("type");
        let mut handled = 0;
        // In the order in which they are named.
        for arg in &directive.args {
            if let (true, Ok(id)) = (arg.values.is_empty(), arg.key.parse()) {
                handled += self.deliver(id, kind, false);
            } else if arg.key == "drop" {
                for id in &arg.values {
                    let id = id.parse().expect("a script drops what is for an id");
                    handled += self.deliver(id, kind, true);
                }
            }
        }
        if handled == 0 {
            self.put_line("no messages");
        }
    }

    fn deliver(&mut self, to: u64, kind: Option<&str>, is_drop: bool) -> usize {
        let (taken, rest): (Vec<Letter>, Vec<Letter>) = std::mem::take(&mut self.letters)
            .into_iter()
            .partition(|letter| {
                letter.to() == to
                    && (!is_drop || letter.may_be_dropped())
                    && kind.is_none_or(|kind| letter.kind() == kind)
            });
        self.letters = rest;
        let count = taken.len();
        for letter in taken {
            if is_drop {
                self.put("dropped: ");
            }
            self.put_line(&letter.shown().show());
            if is_drop {
                continue;
            }
            let node = self.node(to);
            let error = node.receive(letter);
            node.supply();
            if let Some(error) = error {
                self.put_line(&error);
            }
        }
        count
    }
}
