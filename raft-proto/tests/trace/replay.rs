//! What the trace specification asks of any trace, as far as it can be told without a model.
//!
//! - What is received was sent before, as often, and its sender has handed it out (`Ready`) since.
//!   Snapshots are excepted: a script may send one by hand.
//! - A term has one leader. Terms and commit indexes rise, but that a restart may forget the latter.
//! - A replica acts as what its last change of role made it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

#[derive(Default)]
struct Replica {
    term: u64,
    commit: u64,
    said: Vec<Value>,
    handed_out: Vec<Value>,
}

/// Checks a trace; the error names the event.
pub(crate) fn check(events: &[Value]) -> Result<(), String> {
    let mut replicas: BTreeMap<String, Replica> = BTreeMap::new();
    let mut leaders: BTreeMap<u64, String> = BTreeMap::new();
    let mut led = BTreeSet::new();
    for (at, event) in events.iter().enumerate() {
        let event = &event["event"];
        let wrong = |why: &str| Err(format!("event {}: {why}: {event}", at + 1));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, id) = (text(&event["name"]), text(&event["nid"]));
        let number = |key: &str| event["state"][key].as_u64().unwrap_or_default();
        let (term, commit) = (number("term"), number("commit"));
        let own = replicas.entry(id.clone()).or_default();
        if name == "InitState" {
            // What was said and not handed out is lost with the process.
            own.said.clear();
            (own.term, own.commit) = (term, commit);
            led.remove(&id);
        }
        if term < own.term || commit < own.commit {
            return wrong("the term or the commit index fell");
        }
        (own.term, own.commit) = (term, commit);
        match name.as_str() {
            "Ready" => own.handed_out.append(&mut own.said),
            "BecomeLeader" => {
                let leader = leaders.entry(term).or_insert_with(|| id.clone());
                if *leader != id {
                    return wrong("a second leader of a term");
                }
                led.insert(id);
            }
            "BecomeFollower" | "BecomeCandidate" => {
                led.remove(&id);
            }
            "Commit" | "Replicate" | "ChangeConf" if !led.contains(&id) => {
                return wrong("it does not lead");
            }
            name if name.starts_with("Send") => own.said.push(event["msg"].clone()),
            name if name.starts_with("Receive") && event["msg"]["type"] != "MsgSnap" => {
                let message = &event["msg"];
                if message["to"] != event["nid"] {
                    return wrong("it is for another");
                }
                let sender = replicas.entry(text(&message["from"])).or_default();
                match sender.handed_out.iter().position(|said| said == message) {
                    Some(found) => drop(sender.handed_out.remove(found)),
                    None => return wrong("it was never handed out"),
                }
            }
            _ => {}
        }
    }
    Ok(())
}
