//! Transitions as the events that etcd-raft's `state_trace.go` writes, a line of JSON each.

use raft_proto::{
    Batch, Body, Change, ChangeKind, Message, ReplicaId, Role, TraceEvent, TraceTransition,
};
use serde_json::{Map, Value, json};

use crate::describe;
use crate::env::Env;
use crate::script::{self, Interpreter};

/// Runs a script and returns its trace.
pub(crate) fn trace(text: &str) -> String {
    let mut env = Env::new(usize::MAX);
    for directive in script::parse(text) {
        env.answer(&directive);
    }
    let mut out = String::new();
    for event in env.take_events().iter().filter_map(event) {
        out.push_str(&json!({ "tag": "trace", "event": event }).to_string());
        out.push('\n');
    }
    out
}

/// The event of a transition; `None` for what the specification does not know.
fn event(trace: &TraceEvent) -> Option<Value> {
    let mut prop = Map::new();
    let mut said = None;
    let name = match &trace.transition {
        TraceTransition::Init => "InitState",
        TraceTransition::BecomeFollower => "BecomeFollower",
        TraceTransition::BecomeCandidate => "BecomeCandidate",
        TraceTransition::BecomeLeader => "BecomeLeader",
        TraceTransition::Commit => "Commit",
        TraceTransition::Replicate => "Replicate",
        TraceTransition::ChangeMembership(change) => {
            let changes: Vec<Value> = change.changes.iter().filter_map(single).collect();
            if changes.is_empty() {
                return None;
            }
            prop.insert("cc".to_owned(), json!({ "changes": changes }));
            "ChangeConf"
        }
        TraceTransition::ApplyMembership(membership) => {
            let voters: Vec<String> = membership.voters.iter().map(ToString::to_string).collect();
            let cc = if voters.is_empty() {
                json!({})
            } else {
                json!({ "newconf": voters })
            };
            prop.insert("cc".to_owned(), cc);
            "ApplyConfChange"
        }
        TraceTransition::Ready => "Ready",
        TraceTransition::Send(message) => {
            if let (Body::Append { .. }, Some((matched, next))) =
                (&message.body, trace.own_progress)
            {
                prop.insert("match".to_owned(), matched.get().into());
                prop.insert("next".to_owned(), next.get().into());
            }
            said = Some(message);
            match message.body {
                Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
                    "SendAppendEntriesRequest"
                }
                Body::AppendResponse { .. } | Body::HeartbeatResponse { .. } => {
                    "SendAppendEntriesResponse"
                }
                Body::Vote { .. } => "SendRequestVoteRequest",
                Body::VoteResponse { .. } => "SendRequestVoteResponse",
                _ => return None,
            }
        }
        TraceTransition::Receive(message) => {
            said = Some(message);
            match message.body {
                Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
                    "ReceiveAppendEntriesRequest"
                }
                Body::AppendResponse { .. } | Body::HeartbeatResponse { .. } => {
                    "ReceiveAppendEntriesResponse"
                }
                Body::Vote { .. } => "ReceiveRequestVoteRequest",
                Body::VoteResponse { .. } => "ReceiveRequestVoteResponse",
                _ => return None,
            }
        }
        _ => return None,
    };
    let ids = |ids: &[ReplicaId]| -> Vec<String> { ids.iter().map(ToString::to_string).collect() };
    let mut event = json!({
        "name": name,
        "nid": trace.replica.to_string(),
        "state": {
            "term": trace.hard_state.term.get(),
            "vote": trace.hard_state.vote.map_or(0, ReplicaId::get).to_string(),
            "commit": trace.hard_state.commit.get(),
        },
        "role": role(trace.role),
        "log": trace.last.get(),
        "conf": [ids(&trace.voters), ids(&trace.voters_outgoing)],
    });
    if let Some(message) = said {
        event["msg"] = message_of(message);
    }
    if !prop.is_empty() {
        event["prop"] = prop.into();
    }
    Some(event)
}

const fn role(role: Role) -> &'static str {
    describe::role(role)
}

fn single(change: &Change) -> Option<Value> {
    let action = match change.kind {
        ChangeKind::AddVoter | ChangeKind::AddWitness => "AddNewServer",
        ChangeKind::Remove => "RemoveServer",
        ChangeKind::AddLearner => "AddLearner",
        ChangeKind::Update | ChangeKind::Prioritise(_) => return None,
    };
    Some(json!({ "nid": change.replica.to_string(), "action": action }))
}

fn message_of(message: &Message) -> Value {
    let (mut entries, mut log_term, mut index, mut commit) = (0, 0, 0, 0);
    let mut rejected = None;
    match &message.body {
        Body::Append {
            prev,
            commit: committed,
            entries: batches,
        } => {
            entries = batches.iter().map(Batch::len).sum();
            (log_term, index) = (prev.term.get(), prev.index.get());
            commit = committed.get();
        }
        Body::AppendResponse {
            index: at,
            rejected: hint,
        } => {
            index = at.get();
            log_term = hint.map_or(0, |hint| hint.term.get());
            rejected = hint.map(|hint| hint.index.get());
        }
        Body::Vote { last, .. } => (log_term, index) = (last.term.get(), last.index.get()),
        Body::VoteResponse { is_rejected: true } => rejected = Some(0),
        Body::Heartbeat {
            commit: committed, ..
        } => commit = committed.get(),
        // As if it were an append of all that it covers.
        Body::Snapshot { meta } => {
            entries = usize::try_from(meta.id.index.get()).expect("a script's logs are short");
        }
        _ => {}
    }
    json!({
        "type": describe::kind_of(&message.body),
        "term": message.term.get(),
        "from": message.from.to_string(),
        "to": message.to.to_string(),
        "entries": entries,
        "logTerm": log_term,
        "index": index,
        "commit": commit,
        "vote": "0",
        "reject": rejected.is_some(),
        "rejectHint": rejected.unwrap_or(0),
    })
}
