//! `RAFT ...`: what an operator asks of groups and hosts.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use raft_host::{
    Bytes, GroupHandle, GroupId, GroupStatus, HostId, Index, ProposeError, ReadError, ReplicaId,
    SnapshotOutcome, SnapshotRejected, SnapshotRequest,
};
use serde_json::json;

use crate::commands::role_name;
use crate::node::{Node, host_of, replica_on};
use crate::reply;

/// Longer than for a key: a snapshot is written, a transfer waits for a follower.
const PATIENCE: Duration = Duration::from_secs(30);

const USAGE: &str = "ERR RAFT knows STATUS [g], LEADER g, TRANSFER g host, ADD g host, \
    PROMOTE g host, REMOVE g host, SNAPSHOT g [EXPORT dir], SCRUB, HOST id addr";

pub(crate) async fn run(node: &Node, words: &[Bytes]) -> Bytes {
    let Some((name, rest)) = words.split_first() else {
        return reply::error(USAGE);
    };
    let rest: Vec<&str> = match rest.iter().map(|word| std::str::from_utf8(word)).collect() {
        Ok(rest) => rest,
        Err(_) => return reply::error("ERR an argument is not text"),
    };
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    let outcome = match (name.as_str(), &rest[..]) {
        ("STATUS", []) => Ok(all(node).await),
        ("STATUS", [group]) => status(node, group).await,
        ("LEADER", [group]) => leader(node, group),
        ("TRANSFER", [group, host]) => transfer(node, group, host).await,
        ("ADD" | "PROMOTE" | "REMOVE", [group, host]) => change(node, &name, group, host).await,
        ("SNAPSHOT", [group]) => snapshot(node, group, None).await,
        ("SNAPSHOT", [group, export, dir]) if export.eq_ignore_ascii_case("EXPORT") => {
            snapshot(node, group, Some(PathBuf::from(dir))).await
        }
        ("SCRUB", []) => {
            node.host().scrub();
            Ok(reply::OK)
        }
        ("HOST", [host, address]) => introduce(node, host, address),
        _ => Err(reply::error(USAGE)),
    };
    outcome.unwrap_or_else(|refusal| refusal)
}

fn group<'a>(node: &'a Node, text: &str) -> Result<&'a GroupHandle, Bytes> {
    text.parse()
        .ok()
        .and_then(|id| node.group(id))
        .ok_or_else(|| {
            let groups = node.group_count();
            reply::error(&format!("ERR no such group; there are 1 to {groups}"))
        })
}

fn host(text: &str) -> Result<HostId, Bytes> {
    text.parse()
        .ok()
        .and_then(HostId::new)
        .ok_or_else(|| reply::error("ERR not a host id"))
}

async fn status(node: &Node, text: &str) -> Result<Bytes, Bytes> {
    let status = group(node, text)?.status().await;
    let status = status.map_err(|error| reply::error(&format!("ERR {error}")))?;
    Ok(reply::bulk(json!([row(&status)]).to_string().as_bytes()))
}

/// A JSON array, a row a group. Members are named by their hosts. A group that does not answer has
/// its error in its row, and nothing else.
async fn all(node: &Node) -> Bytes {
    let statuses = node.statuses().await;
    let rows = statuses.iter().zip(node.groups());
    let rows = rows.map(|(status, group)| match status {
        Ok(status) => row(status),
        Err(error) => error_row(group.group(), group.replica(), error),
    });
    reply::bulk(json!(rows.collect::<Vec<_>>()).to_string().as_bytes())
}

fn error_row(group: GroupId, replica: ReplicaId, error: &ReadError) -> serde_json::Value {
    json!({
        "group": group.get(),
        "replica": replica.get(),
        "error": error.to_string(),
    })
}

fn row(status: &GroupStatus) -> serde_json::Value {
    let hosts = |replicas: &BTreeSet<ReplicaId>| -> Vec<u64> {
        let known = &status.membership.hosts;
        let host = |id: &ReplicaId| known.get(id).map_or_else(|| id.get(), |host| host.get());
        replicas.iter().map(host).collect()
    };
    json!({
        "group": status.group.get(),
        "replica": status.replica.get(),
        "role": role_name(status.role),
        "term": status.term.get(),
        "leader_host": status.leader_host.map(HostId::get),
        "first": status.first.get(),
        "last": status.last.get(),
        "commit": status.commit.get(),
        "applied": status.applied.get(),
        "snapshot": status.snapshot.index.get(),
        "voters": hosts(&status.membership.voters),
        "learners": hosts(&status.membership.learners),
        "log_bytes": status.log_bytes,
        // As text: not every reader of JSON has 64 bits for a number.
        "state_hash": format!("{:016x}", status.state_hash),
        "installed_from_stream": status.installed_from_stream,
        "awaits_snapshot": status.awaits_snapshot.map(Index::get),
        "is_quiet": status.is_quiet,
        "failed": status.failed,
    })
}

fn leader(node: &Node, text: &str) -> Result<Bytes, Bytes> {
    Ok(match group(node, text)?.leader() {
        Some(replica) => reply::bulk(host_of(replica).to_string().as_bytes()),
        None => reply::NIL,
    })
}

async fn transfer(node: &Node, text: &str, to: &str) -> Result<Bytes, Bytes> {
    let group = group(node, text)?.with_timeout(PATIENCE);
    let done = group.transfer_leadership(replica_on(host(to)?)).await;
    done.map(|()| reply::OK)
        .map_err(|error| refused(node, &error))
}

async fn change(node: &Node, name: &str, text: &str, of: &str) -> Result<Bytes, Bytes> {
    let group = group(node, text)?.with_timeout(PATIENCE);
    let host = host(of)?;
    let replica = replica_on(host);
    let changed = match name {
        "ADD" => group.add_learner(replica, host).await,
        "PROMOTE" => group.promote(replica).await,
        _ => group.remove(replica).await,
    };
    changed
        .map(|_| reply::OK)
        .map_err(|error| refused(node, &error))
}

fn refused(node: &Node, error: &ProposeError) -> Bytes {
    reply::error(&match error {
        ProposeError::NotLeader {
            leader: Some(host), ..
        } => match node.redis_of(*host) {
            Some(address) => format!("ERR {error}; host {host} leads, at {address}"),
            None => format!("ERR {error}; host {host} leads"),
        },
        ProposeError::NotLeader { leader: None, .. } => format!("CLUSTERDOWN {error}"),
        ProposeError::Busy { .. } => format!("TRYAGAIN {error}"),
        ProposeError::Timeout { .. } | ProposeError::OutcomeUnknown { .. } => {
            format!("TIMEOUT {error}")
        }
        other => format!("ERR {other}"),
    })
}

async fn snapshot(node: &Node, text: &str, export: Option<PathBuf>) -> Result<Bytes, Bytes> {
    let group = group(node, text)?.with_timeout(PATIENCE);
    let request = SnapshotRequest {
        export,
        ..SnapshotRequest::default()
    };
    match group.request_snapshot(request).await {
        Ok(SnapshotOutcome::Completed(index)) => Ok(reply::integer(
            i64::try_from(index.get()).unwrap_or(i64::MAX),
        )),
        Ok(SnapshotOutcome::Rejected(SnapshotRejected::NothingNew)) => {
            Ok(reply::simple("NOTHINGNEW"))
        }
        Ok(SnapshotOutcome::Rejected(SnapshotRejected::AlreadySaving)) => {
            Err(reply::error("TRYAGAIN one is being saved"))
        }
        Ok(SnapshotOutcome::Rejected(SnapshotRejected::OutOfDate)) => {
            Err(reply::error("TRYAGAIN a newer one has come in between"))
        }
        Ok(SnapshotOutcome::Failed(reason)) => Err(reply::error(&format!("ERR {reason}"))),
        Ok(_) => Err(reply::error("ERR it was given up")),
        Err(error) => Err(reply::error(&format!("ERR {error}"))),
    }
}

fn introduce(node: &Node, of: &str, address: &str) -> Result<Bytes, Bytes> {
    let address: SocketAddr = address
        .parse()
        .map_err(|_| reply::error("ERR not an address"))?;
    let host = host(of)?;
    if host == node.host().host() {
        return Err(reply::error("ERR that is this host"));
    }
    node.host().registry().set(host, address);
    Ok(reply::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_gives_no_answer_is_listed_as_such() {
        let waited = Duration::from_secs(5);
        let (group, replica) = (GroupId::try_from(7), ReplicaId::try_from(2));
        let row = error_row(
            group.expect("an id"),
            replica.expect("an id"),
            &ReadError::Timeout { waited },
        );
        assert_eq!(
            (row["group"].as_u64(), row["replica"].as_u64()),
            (Some(7), Some(2))
        );
        assert!(
            row["error"]
                .as_str()
                .is_some_and(|error| error.contains("5s")),
            "{row}"
        );
        assert!(row.get("role").is_none());
    }
}
