//! The Redis commands, each begun in the order it came in.

use std::fmt::Write as _;
use std::sync::Arc;

use raft_host::{Bytes, BytesMut, GroupHandle, HostId, ProposeError, ReadError, Role};

use crate::admin;
use crate::connection::{Begun, Session};
use crate::machine::{self, COMMAND_BYTES_MAX, WORD_BYTES_MAX};
use crate::node::Node;
use crate::{reply, slots};

/// What a command has to do with those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Changes keys.
    Write,
    /// Reads keys.
    Read,
    /// Manages groups: stands alone.
    Admin,
    /// Touches no key and no group.
    Plain,
}

pub(crate) fn kind(words: &[Bytes]) -> Kind {
    match name(words).as_str() {
        "SET" | "DEL" | "INCR" => Kind::Write,
        "GET" => Kind::Read,
        "RAFT" | "CLUSTER" => Kind::Admin,
        _ => Kind::Plain,
    }
}

/// Begins a command. What it asks of a group is submitted before this returns.
pub(crate) fn begin(node: &Arc<Node>, session: &mut Session, words: Vec<Bytes>) -> Begun {
    let name = name(&words);
    match (name.as_str(), &words[..]) {
        ("SET", [_, key, value]) => match checked(&[key, value]) {
            Ok(()) => write(node, slots::slot(key), machine::set(key, value)),
            Err(refusal) => Begun::Done(refusal),
        },
        ("SET", [_, _, _, ..]) => Begun::Done(reply::error("ERR options of SET are not supported")),
        ("DEL", [_, keys @ ..]) if !keys.is_empty() => match one_slot(keys) {
            Ok(slot) => write(node, slot, machine::delete(keys)),
            Err(refusal) => Begun::Done(refusal),
        },
        ("INCR", [_, key]) => match checked(&[key]) {
            Ok(()) => write(node, slots::slot(key), machine::increment(key)),
            Err(refusal) => Begun::Done(refusal),
        },
        ("GET", [_, key]) => read(node, session, key.clone()),
        ("READONLY", [_]) => {
            session.reads_locally = true;
            Begun::Done(reply::OK)
        }
        ("READWRITE", [_]) => {
            session.reads_locally = false;
            Begun::Done(reply::OK)
        }
        ("PING", [_]) => Begun::Done(reply::simple("PONG")),
        ("PING", [_, text]) => Begun::Done(reply::bulk(text)),
        ("ECHO", [_, text]) => Begun::Done(reply::bulk(text)),
        ("INFO", _) => Begun::Done(reply::bulk(info(node).as_bytes())),
        ("COMMAND", _) => Begun::Done(reply::EMPTY),
        ("CONFIG", [_, what, parameter]) if what.eq_ignore_ascii_case(b"GET") => {
            Begun::Done(config(parameter))
        }
        ("CLUSTER", [_, what, rest @ ..]) => cluster(node, what, rest),
        ("RAFT", [_, rest @ ..]) => {
            let (node, rest) = (Arc::clone(node), rest.to_vec());
            Begun::Waiting(Box::pin(async move { admin::run(&node, &rest).await }))
        }
        (
            "SET" | "DEL" | "INCR" | "GET" | "READONLY" | "READWRITE" | "PING" | "ECHO" | "CONFIG"
            | "CLUSTER",
            _,
        ) => Begun::Done(reply::error(&format!(
            "ERR wrong number of arguments for '{}' command",
            name.to_ascii_lowercase()
        ))),
        _ => Begun::Done(reply::error(&format!(
            "ERR unknown command '{name}'; this store knows GET, SET, DEL, INCR, CLUSTER, RAFT \
             and a few more"
        ))),
    }
}

/// The command's name in capitals; what is no name is cut.
fn name(words: &[Bytes]) -> String {
    let name = words
        .first()
        .map_or(&[][..], |name| &name[..name.len().min(32)]);
    String::from_utf8_lossy(name).to_ascii_uppercase()
}

fn checked(words: &[&Bytes]) -> Result<(), Bytes> {
    if words.iter().any(|word| word.len() > WORD_BYTES_MAX) {
        return Err(reply::error(&format!(
            "ERR a key or value is longer than {WORD_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// The slot that all keys share.
fn one_slot(keys: &[Bytes]) -> Result<u16, Bytes> {
    let words: Vec<&Bytes> = keys.iter().collect();
    checked(&words)?;
    let bytes: usize = keys.iter().map(|key| key.len() + 4).sum();
    if bytes >= COMMAND_BYTES_MAX {
        return Err(reply::error("ERR the keys are too many or too long"));
    }
    let slot = slots::slot(&keys[0]);
    if keys.iter().any(|key| slots::slot(key) != slot) {
        return Err(reply::error(
            "CROSSSLOT Keys in request don't hash to the same slot",
        ));
    }
    Ok(slot)
}

fn write(node: &Arc<Node>, slot: u16, command: Bytes) -> Begun {
    let group = node.group_of_slot(slot);
    if !group.is_leader() {
        return Begun::Done(elsewhere(node, group, slot, None));
    }
    let outcome = group.propose(command);
    let (node, group) = (Arc::clone(node), group.clone());
    Begun::Waiting(Box::pin(async move {
        match outcome.await {
            Ok(applied) => applied.result,
            Err(error) => write_refused(&node, &group, slot, &error),
        }
    }))
}

fn write_refused(node: &Node, group: &GroupHandle, slot: u16, error: &ProposeError) -> Bytes {
    match error {
        ProposeError::NotLeader { leader, .. } => elsewhere(node, group, slot, *leader),
        other => reply::error(&format!("{} {other}", refusal_word(other))),
    }
}

/// What a client of a Redis cluster makes of it: whether to ask again, later, or to find out first.
fn refusal_word(error: &ProposeError) -> &'static str {
    match error {
        ProposeError::UnknownGroup(_)
        | ProposeError::GroupFailed { .. }
        | ProposeError::HostDown { .. } => "CLUSTERDOWN",
        ProposeError::Busy { .. } | ProposeError::StorageFull | ProposeError::Superseded => {
            "TRYAGAIN"
        }
        ProposeError::Timeout { .. } | ProposeError::OutcomeUnknown { .. } => "TIMEOUT",
        _ => "ERR",
    }
}

fn read(node: &Arc<Node>, session: &Session, key: Bytes) -> Begun {
    let slot = slots::slot(&key);
    let group = node.group_of_slot(slot);
    if session.reads_locally {
        let answer = group.read_stale(key);
        return Begun::Waiting(Box::pin(async move {
            answer
                .await
                .unwrap_or_else(|error| reply::error(&format!("CLUSTERDOWN {error}")))
        }));
    }
    if !group.is_leader() {
        return Begun::Done(elsewhere(node, group, slot, None));
    }
    let answer = group.read(key);
    let (node, group) = (Arc::clone(node), group.clone());
    Begun::Waiting(Box::pin(async move {
        match answer.await {
            Ok(answer) => answer,
            Err(ReadError::NotLeader { leader, .. }) => elsewhere(&node, &group, slot, leader),
            Err(error @ ReadError::NotServed { .. }) => {
                reply::error(&format!("CLUSTERDOWN {error}"))
            }
            Err(error) => reply::error(&format!("TRYAGAIN {error}")),
        }
    }))
}

/// Sends the client to the leader, if one is known.
fn elsewhere(node: &Node, group: &GroupHandle, slot: u16, told: Option<HostId>) -> Bytes {
    let me = node.host().host();
    let leader = told
        .and_then(|host| Some((host, node.redis_of(host)?)))
        .or_else(|| node.leader_of(group));
    match leader {
        Some((host, address)) if host != me => reply::error(&format!("MOVED {slot} {address}")),
        // It may have come to lead in this very moment: the client will find out.
        Some(_) => reply::error("TRYAGAIN the leadership has just changed"),
        None => reply::error(&format!(
            "CLUSTERDOWN group {} has no leader",
            group.group()
        )),
    }
}

/// What `redis-benchmark` asks for before it begins.
fn config(parameter: &[u8]) -> Bytes {
    let value = match &parameter.to_ascii_lowercase()[..] {
        b"save" => "",
        b"appendonly" => "yes",
        _ => return reply::EMPTY,
    };
    let mut out = BytesMut::new();
    reply::put_array(&mut out, 2);
    reply::put_bulk(&mut out, parameter);
    reply::put_bulk(&mut out, value.as_bytes());
    out.freeze()
}

fn info(node: &Node) -> String {
    let stats = node.host().stats();
    let led = node
        .groups()
        .iter()
        .filter(|group| group.is_leader())
        .count();
    let (log, network) = (stats.log, stats.network);
    let sections = [
        (
            "Server",
            vec![
                ("redis_version", "7.0.0".to_owned()),
                ("flotilla_version", env!("CARGO_PKG_VERSION").to_owned()),
                ("redis_mode", "cluster".to_owned()),
                ("process_id", std::process::id().to_string()),
                ("uptime_in_seconds", node.uptime_seconds().to_string()),
            ],
        ),
        ("Cluster", vec![("cluster_enabled", "1".to_owned())]),
        (
            "Raft",
            vec![
                ("host", node.host().host().to_string()),
                ("open_count", node.host().identity().open_count.to_string()),
                ("groups", node.group_count().to_string()),
                ("groups_led", led.to_string()),
                ("fdatasyncs", log.fdatasyncs.to_string()),
                ("written_bytes", log.written_bytes.to_string()),
                ("log_bytes", log.live_segment_bytes.to_string()),
                ("log_segments", log.live_segments.to_string()),
                ("moved_bytes", log.moved_bytes.to_string()),
                ("scrub_passes", stats.scrub.passes.to_string()),
                ("scrubbed_bytes", stats.scrub.verified_bytes.to_string()),
                ("scrub_damaged", stats.scrub.damaged.to_string()),
            ],
        ),
        (
            "Network",
            vec![
                ("connections", network.connections.to_string()),
                ("messages_sent", network.messages_sent.to_string()),
                ("messages_received", network.messages_received.to_string()),
                ("messages_dropped", network.messages_dropped.to_string()),
                (
                    "inbox_messages_dropped",
                    stats.inbox_messages_dropped.to_string(),
                ),
                ("bytes_sent", network.bytes_sent.to_string()),
                ("bytes_received", network.bytes_received.to_string()),
                (
                    "snapshot_bytes_sent",
                    network.snapshot_bytes_sent.to_string(),
                ),
                (
                    "snapshot_bytes_received",
                    network.snapshot_bytes_received.to_string(),
                ),
                ("peers_refused", network.refusals.to_string()),
            ],
        ),
    ];
    let mut text = String::new();
    for (section, lines) in sections {
        let _ = write!(text, "# {section}\r\n");
        for (name, value) in lines {
            let _ = write!(text, "{name}:{value}\r\n");
        }
        text.push_str("\r\n");
    }
    text
}

fn cluster(node: &Arc<Node>, what: &[u8], rest: &[Bytes]) -> Begun {
    match (&what.to_ascii_uppercase()[..], rest) {
        (b"KEYSLOT", [key]) => Begun::Done(reply::integer(i64::from(slots::slot(key)))),
        (b"MYID", []) => Begun::Done(reply::bulk(name_of(node.host().host()).as_bytes())),
        (b"INFO", []) => Begun::Done(reply::bulk(cluster_info(node).as_bytes())),
        (b"NODES", []) => Begun::Done(reply::bulk(cluster_nodes(node).as_bytes())),
        (b"SLOTS", []) => {
            let node = Arc::clone(node);
            Begun::Waiting(Box::pin(async move { cluster_slots(&node).await }))
        }
        _ => Begun::Done(reply::error(
            "ERR CLUSTER knows SLOTS, NODES, KEYSLOT, INFO and MYID",
        )),
    }
}

/// The forty digits that cluster clients know a host by.
fn name_of(host: HostId) -> String {
    format!("{:040x}", host.get())
}

fn cluster_info(node: &Node) -> String {
    let has_leader = |group: &&GroupHandle| group.leader().is_some();
    let led = node.groups().iter().filter(has_leader).count();
    let is_up = led == node.groups().len();
    format!(
        "cluster_enabled:1\r\ncluster_state:{}\r\ncluster_slots_assigned:{}\r\n\
         cluster_known_nodes:{}\r\ncluster_size:{}\r\n",
        if is_up { "ok" } else { "fail" },
        slots::SLOTS,
        node.reachable().len(),
        node.reachable().len(),
    )
}

/// A line for each host: it is the master of the slots of the groups that it leads.
fn cluster_nodes(node: &Node) -> String {
    let mut text = String::new();
    for (host, address) in node.reachable() {
        let myself = if host == node.host().host() {
            "myself,"
        } else {
            ""
        };
        let port = address.port();
        let _ = write!(
            text,
            "{} {address}@{port} {myself}master - 0 0 0 connected",
            name_of(host)
        );
        for (first, last) in slots_led_by(node, host) {
            let _ = write!(text, " {first}-{last}");
        }
        text.push('\n');
    }
    text
}

/// Slots of the groups that a host leads; ranges that touch are one.
fn slots_led_by(node: &Node, host: HostId) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for group in node.groups() {
        if node
            .leader_of(group)
            .is_none_or(|(leader, _)| leader != host)
        {
            continue;
        }
        let (first, last) = slots::slots_of_group(group.group(), node.group_count());
        match ranges.last_mut() {
            Some(range) if range.1 + 1 == first => range.1 = last,
            _ => ranges.push((first, last)),
        }
    }
    ranges
}

/// For each group its slots, its leader, and its other members.
async fn cluster_slots(node: &Node) -> Bytes {
    let mut ranges = Vec::new();
    for status in node.statuses().await.into_iter().flatten() {
        let Some(leader) = status.leader_host else {
            continue;
        };
        let others = status.membership.hosts.values().copied();
        let others = others.filter(|host| *host != leader);
        let hosts: Vec<_> = [leader]
            .into_iter()
            .chain(others)
            .filter_map(|host| Some((host, node.redis_of(host)?)))
            .collect();
        if hosts.first().is_some_and(|(host, _)| *host == leader) {
            let slots = slots::slots_of_group(status.group, node.group_count());
            ranges.push((slots, hosts));
        }
    }
    let mut out = BytesMut::new();
    reply::put_array(&mut out, ranges.len());
    for ((first, last), hosts) in ranges {
        reply::put_array(&mut out, 2 + hosts.len());
        reply::put_integer(&mut out, first);
        reply::put_integer(&mut out, last);
        for (host, address) in hosts {
            reply::put_array(&mut out, 3);
            reply::put_bulk(&mut out, address.ip().to_string().as_bytes());
            reply::put_integer(&mut out, u64::from(address.port()));
            reply::put_bulk(&mut out, name_of(host).as_bytes());
        }
    }
    out.freeze()
}

/// A role in words.
pub(crate) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Candidate => "candidate",
        Role::PreCandidate => "pre-candidate",
        Role::Follower => "follower",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raft_host::NextStep;

    use super::*;

    #[test]
    fn the_word_says_what_the_error_says_to_do_next() {
        let reason = || "for a reason".to_owned();
        let errors = [
            (ProposeError::Busy { queue: "proposal" }, "TRYAGAIN"),
            (ProposeError::StorageFull, "TRYAGAIN"),
            (ProposeError::Superseded, "TRYAGAIN"),
            (ProposeError::HostDown { reason: reason() }, "CLUSTERDOWN"),
            (ProposeError::OutcomeUnknown { reason: reason() }, "TIMEOUT"),
            (
                ProposeError::Timeout {
                    waited: Duration::from_secs(5),
                },
                "TIMEOUT",
            ),
            (ProposeError::Refused { reason: reason() }, "ERR"),
        ];
        for (error, word) in errors {
            assert_eq!(refusal_word(&error), word, "{error}");
            let expected = match word {
                "TRYAGAIN" => NextStep::Retry,
                "TIMEOUT" => NextStep::FindOut,
                "ERR" => NextStep::GiveUp,
                _ => NextStep::RetryElsewhere { leader: None },
            };
            assert_eq!(error.next_step(), expected, "{error}");
        }
    }
}
