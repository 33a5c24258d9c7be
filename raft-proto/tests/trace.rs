//! What the core did in scripts, as events of etcd-raft's TLA+ trace specification.
//!
//! Each trace is written to a file, read back, and checked twice: against the schema of the events,
//! and for what no run of Raft may show. `java -jar tla2tools.jar` with etcd-raft's
//! `Traceetcdraft.tla` and `JSON=<file>` checks it against the specification itself.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a test that uses its part of the script runner"
)]

#[path = "conformance/changes.rs"]
mod changes;
#[path = "conformance/describe.rs"]
mod describe;
#[path = "conformance/env.rs"]
mod env;
#[path = "trace/events.rs"]
mod events;
#[path = "conformance/letter.rs"]
mod letter;
#[path = "conformance/node.rs"]
mod node;
#[path = "conformance/own.rs"]
mod own;
#[path = "trace/replay.rs"]
mod replay;
#[path = "trace/schema.rs"]
mod schema;
#[path = "conformance/script.rs"]
mod script;
#[path = "conformance/storage.rs"]
mod storage;

use std::fs;
use std::path::{Path, PathBuf};

use raft_proto::{
    Config, GroupId, Membership, Proposal, Raft, ReplicaId, Restored, TRACE_EVENTS_MAX,
    TraceTransition,
};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("data/trace.schema.json");

/// Our own scripts, and etcd-raft's where they are at hand.
fn scripts() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/interaction");
    let mut paths = script::scripts_in(&own);
    if let (theirs, true) = script::dir_of("interaction") {
        paths.extend(script::scripts_in(&theirs));
    }
    paths
}

/// A script in which three replicas elect a leader and commit.
fn one_script() -> PathBuf {
    let name = "lost_append_is_sent_again.txt";
    let found = scripts().into_iter().find(|path| path.ends_with(name));
    found.expect("it lies there")
}

fn trace_of(script: &Path) -> String {
    let text = fs::read_to_string(script).expect("a script can be read");
    events::trace(&text)
}

fn values(trace: &str) -> Vec<Value> {
    trace
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is an event"))
        .collect()
}

#[test]
fn the_traces_of_scripts_match_the_schema_and_replay() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("traces");
    fs::create_dir_all(&folder).expect("the folder can be made");
    let (mut scripts_count, mut events_count) = (0, 0);
    for script in scripts() {
        let name = script.file_stem().expect("a script has a name");
        let path = folder.join(name).with_extension("ndjson");
        fs::write(&path, trace_of(&script)).expect("the trace can be written");
        let events = values(&fs::read_to_string(&path).expect("it can be read back"));
        for (at, event) in events.iter().enumerate() {
            if let Err(error) = schema::check(&schema, event) {
                panic!("{}:{}: {error}: {event}", path.display(), at + 1);
            }
        }
        if let Err(error) = replay::check(&events) {
            panic!("{}: {error}", path.display());
        }
        scripts_count += 1;
        events_count += events.len();
    }
    assert!(scripts_count >= 10, "{scripts_count} scripts");
    assert!(events_count > 10 * scripts_count, "{events_count} events");
    script::record(&json!({
        "suite": "traces", "scripts": scripts_count, "cases": events_count,
    }));
}

#[test]
fn every_kind_of_event_occurs() {
    let mut missing = vec![
        "InitState",
        "BecomeFollower",
        "BecomeCandidate",
        "BecomeLeader",
        "Commit",
        "Replicate",
        "ChangeConf",
        "ApplyConfChange",
        "Ready",
        "SendAppendEntriesRequest",
        "ReceiveAppendEntriesRequest",
        "SendAppendEntriesResponse",
        "ReceiveAppendEntriesResponse",
        "SendRequestVoteRequest",
        "ReceiveRequestVoteRequest",
        "SendRequestVoteResponse",
        "ReceiveRequestVoteResponse",
    ];
    for script in scripts() {
        for event in values(&trace_of(&script)) {
            missing.retain(|name| event["event"]["name"] != *name);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_does_not_match_the_schema_is_found() {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema is JSON");
    let events = values(&trace_of(&one_script()));
    let mut changes = 0;
    for event in &events {
        let object = event["event"].as_object().expect("an event is an object");
        for key in object.keys().filter(|key| *key != "prop") {
            let mut without = event.clone();
            without["event"]
                .as_object_mut()
                .expect("an object")
                .remove(key);
            let mut other = event.clone();
            other["event"][key] = json!(null);
            for broken in [without, other] {
                assert!(schema::check(&schema, &broken).is_err(), "{broken}");
                changes += 1;
            }
        }
        let mut more = event.clone();
        more["event"]["more"] = json!(1);
        assert!(schema::check(&schema, &more).is_err());
    }
    assert!(changes > 100, "{changes} changes");
}

#[test]
fn what_no_run_may_show_is_found() {
    let events = values(&trace_of(&one_script()));
    replay::check(&events).expect("the run is sound");
    let position = |name: &str| {
        let found = events
            .iter()
            .position(|event| event["event"]["name"] == name);
        found.expect("it occurs")
    };
    // Nothing was sent; nothing was handed out; a second leader; a commit that was taken back.
    let mut unsent = events.clone();
    unsent.remove(position("SendRequestVoteRequest"));
    let mut unready = events.clone();
    unready.retain(|event| event["event"]["name"] != "Ready");
    let mut twice = events.clone();
    let leader = position("BecomeLeader");
    let mut other = twice[leader].clone();
    other["event"]["nid"] = json!("99");
    twice.insert(leader + 1, other);
    let mut back = events.clone();
    let mut last = back[position("Commit")].clone();
    last["event"]["state"]["commit"] = json!(0);
    back.push(last);
    for broken in [unsent, unready, twice, back] {
        replay::check(&broken).expect_err("it is no run");
    }
}

#[test]
fn a_trace_that_nobody_takes_is_bounded() {
    let id = ReplicaId::new(1).expect("a valid id");
    let group = GroupId::new(1).expect("a valid id");
    let membership = Membership {
        voters: [id].into(),
        ..Membership::default()
    };
    let restored = Restored {
        membership,
        ..Restored::default()
    };
    let mut raft = Raft::new(Config::new(group, id, 1), restored, 0).expect("valid settings");
    raft.campaign().expect("it may stand");
    while let Some(ready) = raft.poll_ready() {
        raft.persisted(ready.submission.expect("something is to be made durable"));
    }
    // At least two events each: it appends, and says so to itself.
    for _ in 0..TRACE_EVENTS_MAX {
        raft.propose([Proposal::command(b"x")]).expect("it leads");
    }
    let events = raft.take_trace();
    assert_eq!(events.len(), TRACE_EVENTS_MAX);
    let last = events.last().expect("there are many");
    assert!(
        matches!(last.transition, TraceTransition::Send(_)),
        "{last:?}"
    );
    assert!(raft.take_trace().is_empty());
}
