//! Messages, entries and the rest as etcd-raft prints them.

use std::fmt::Write;

use raft_proto::{
    Body, EntryId, EntryKind, HardState, Index, Membership, MembershipChange, Message, Role,
    SnapshotMeta,
};

use crate::changes;
use crate::storage::{Entry, entries_of};

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Replica(u64),
    AppendThread,
    ApplyThread,
}

impl Party {
    fn show(self) -> String {
        match self {
            Self::Replica(0) => "None".to_owned(),
            Self::Replica(id) => format!("{id:x}"),
            Self::AppendThread => "AppendThread".to_owned(),
            Self::ApplyThread => "ApplyThread".to_owned(),
        }
    }
}

/// A message as etcd-raft has it: one flat record for all kinds.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) from: Party,
    pub(crate) to: Party,
    pub(crate) kind: &'static str,
    pub(crate) term: u64,
    pub(crate) log: (u64, u64),
    pub(crate) rejected: Option<u64>,
    pub(crate) commit: u64,
    pub(crate) vote: u64,
    pub(crate) entries: Vec<String>,
    pub(crate) snapshot: Option<String>,
    pub(crate) responses: Vec<Self>,
}

impl Shown {
    pub(crate) fn new(from: Party, to: Party, kind: &'static str) -> Self {
        Self {
            from,
            to,
            kind,
            term: 0,
            log: (0, 0),
            rejected: None,
            commit: 0,
            vote: 0,
            entries: Vec::new(),
            snapshot: None,
            responses: Vec::new(),
        }
    }

    pub(crate) fn of(message: &Message) -> Self {
        let (mut from, to) = (message.from.get(), message.to.get());
        if let Body::TransferLeader { to } = message.body {
            // etcd-raft names the target as the sender.
            from = to.get();
        }
        let kind = kind_of(&message.body);
        let mut shown = Self::new(Party::Replica(from), Party::Replica(to), kind);
        shown.term = message.term.get();
        let log = |id: &EntryId| (id.term.get(), id.index.get());
        match &message.body {
            Body::PreVote { last } | Body::Vote { last, .. } | Body::Quiesce { last } => {
                shown.log = log(last);
            }
            Body::PreVoteResponse { is_rejected } | Body::VoteResponse { is_rejected } => {
                shown.rejected = is_rejected.then_some(0);
            }
            Body::Append {
                prev,
                commit,
                entries,
            } => {
                shown.log = log(prev);
                shown.commit = commit.get();
                shown.entries = entries_of(entries).iter().map(entry).collect();
            }
            Body::AppendResponse { index, rejected } => {
                shown.log = (0, index.get());
                if let Some(hint) = rejected {
                    shown.log.0 = hint.term.get();
                    shown.rejected = Some(hint.index.get());
                }
            }
            Body::Heartbeat { commit, .. } => shown.commit = commit.get(),
            Body::Snapshot { meta } | Body::SnapshotOffer { meta, .. } => {
                let is_one = meta.id.index > Index::ZERO;
                shown.snapshot = is_one.then(|| snapshot(meta));
            }
            Body::ReadIndexResponse { index, .. } | Body::SnapshotRequest { index, .. } => {
                shown.log = (0, index.get());
            }
            Body::Propose { entries } => {
                shown.entries = entries
                    .iter()
                    .map(|forwarded| {
                        entry(&Entry {
                            id: EntryId::ZERO,
                            kind: forwarded.kind,
                            payload: forwarded.payload.to_vec(),
                        })
                    })
                    .collect();
            }
            Body::HeartbeatResponse { .. }
            | Body::TimeoutNow
            | Body::TransferLeader { .. }
            | Body::ReadIndex { .. } => {}
        }
        shown
    }

    pub(crate) fn show(&self) -> String {
        self.show_indented("")
    }

    fn show_indented(&self, indent: &str) -> String {
        let mut out = format!(
            "{indent}{}->{} {} Term:{} Log:{}/{}",
            self.from.show(),
            self.to.show(),
            self.kind,
            self.term,
            self.log.0,
            self.log.1
        );
        let mut put = |text: String| out.push_str(&text);
        if let Some(hint) = self.rejected {
            put(format!(" Rejected (Hint: {hint})"));
        }
        if self.commit != 0 {
            put(format!(" Commit:{}", self.commit));
        }
        if self.vote != 0 {
            put(format!(" Vote:{}", self.vote));
        }
        match &self.entries[..] {
            [] => {}
            [one] => put(format!(" Entries:[{one}]")),
            several => {
                put(" Entries:[".to_owned());
                for entry in several {
                    put(format!("\n{indent}  {entry}"));
                }
                put(format!("\n{indent}]"));
            }
        }
        if let Some(snapshot) = &self.snapshot {
            put(format!("\n{indent}  Snapshot: {snapshot}"));
        }
        if !self.responses.is_empty() {
            put(" Responses:[".to_owned());
            for response in &self.responses {
                put(format!(
                    "\n{}",
                    response.show_indented(&format!("{indent}  "))
                ));
            }
            put(format!("\n{indent}]"));
        }
        out
    }
}

pub(crate) fn kind_of(body: &Body) -> &'static str {
    match body {
        Body::PreVote { .. } => "MsgPreVote",
        Body::PreVoteResponse { .. } => "MsgPreVoteResp",
        Body::Vote { .. } => "MsgVote",
        Body::VoteResponse { .. } => "MsgVoteResp",
        Body::Append { .. } => "MsgApp",
        Body::AppendResponse { .. } => "MsgAppResp",
        Body::Heartbeat { .. } => "MsgHeartbeat",
        Body::HeartbeatResponse { .. } => "MsgHeartbeatResp",
        Body::Snapshot { .. } => "MsgSnap",
        Body::TimeoutNow => "MsgTimeoutNow",
        Body::TransferLeader { .. } => "MsgTransferLeader",
        Body::ReadIndex { .. } => "MsgReadIndex",
        Body::ReadIndexResponse { .. } => "MsgReadIndexResp",
        Body::Propose { .. } => "MsgProp",
        Body::Quiesce { .. } => "MsgQuiesce",
        Body::SnapshotRequest { .. } => "MsgSnapRequest",
        Body::SnapshotOffer { .. } => "MsgSnapOffer",
    }
}

/// `1/11 EntryNormal "data"`
pub(crate) fn entry(entry: &Entry) -> String {
    let (kind, text) = match entry.kind {
        EntryKind::Command => ("EntryNormal", quoted(&entry.payload)),
        EntryKind::MembershipSimple => ("EntryConfChange", change(&entry.payload)),
        EntryKind::Membership => ("EntryConfChangeV2", change(&entry.payload)),
    };
    let space = if text.is_empty() { "" } else { " " };
    format!("{}/{} {kind}{space}{text}", entry.id.term, entry.id.index)
}

fn change(payload: &[u8]) -> String {
    match MembershipChange::decode(payload) {
        Ok(change) => changes::show(&change.changes),
        Err(error) => error.to_string(),
    }
}

/// As Go's `%q` writes bytes.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() => {
                    write!(out, "\\x{:02x}", u32::from(c)).expect("a string takes it");
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            write!(out, "\\x{byte:02x}").expect("a string takes it");
        }
    }
    out.push('"');
    out
}

pub(crate) fn snapshot(meta: &SnapshotMeta) -> String {
    format!(
        "Index:{} Term:{} ConfState:{}",
        meta.id.index,
        meta.id.term,
        conf_state(&meta.membership)
    )
}

fn conf_state(membership: &Membership) -> String {
    let set = |ids: &std::collections::BTreeSet<raft_proto::ReplicaId>| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        format!("[{}]", ids.join(" "))
    };
    format!(
        "Voters:{} VotersOutgoing:{} Learners:{} LearnersNext:{} AutoLeave:{}",
        set(&membership.voters),
        set(&membership.voters_outgoing),
        set(&membership.learners),
        set(&membership.learners_next),
        membership.auto_leave
    )
}

pub(crate) fn hard_state(hard: &HardState) -> String {
    let vote = hard
        .vote
        .map_or_else(String::new, |vote| format!(" Vote:{vote}"));
    format!("Term:{}{vote} Commit:{}", hard.term, hard.commit)
}

pub(crate) const fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "StateFollower",
        Role::PreCandidate => "StatePreCandidate",
        Role::Candidate => "StateCandidate",
        Role::Leader => "StateLeader",
    }
}
