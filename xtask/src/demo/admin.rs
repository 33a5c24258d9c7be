//! What hosts say of themselves, and what they are told to do: `RAFT ...` and `INFO`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::client::Hosts;
use crate::resp::{Connection, Value};

/// Longer than any command's own deadline.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// One group as one host sees it: a row of `RAFT STATUS`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    pub(super) group: u64,
    role: String,
    term: u64,
    pub(super) first: u64,
    pub(super) commit: u64,
    pub(super) applied: u64,
    pub(super) voters: Vec<u64>,
    pub(super) learners: Vec<u64>,
    pub(super) state_hash: serde_json::Value,
    installed_from_stream: serde_json::Value,
}

impl Row {
    fn leads(&self) -> bool {
        self.role.eq_ignore_ascii_case("leader")
    }

    /// Whether this replica began from a snapshot that a peer streamed.
    pub(super) fn came_by_stream(&self) -> bool {
        match &self.installed_from_stream {
            serde_json::Value::Bool(came) => *came,
            serde_json::Value::Number(index) => index.as_u64().is_some_and(|index| index > 0),
            _ => false,
        }
    }
}

/// Rows by group, by host.
pub(super) type Statuses = BTreeMap<u64, BTreeMap<u64, Row>>;

/// A connection for commands to one host.
fn connect(address: SocketAddr) -> Result<Connection> {
    Connection::open(address, PATIENCE).with_context(|| format!("cannot reach {address}"))
}

/// Sends a command that must simply succeed.
pub(super) fn command(address: SocketAddr, words: &[&str]) -> Result<Value> {
    match connect(address)?
        .call(words)
        .with_context(|| words.join(" "))?
    {
        Value::Error(error) => bail!("{}: {error}", words.join(" ")),
        value => Ok(value),
    }
}

/// Asks every host for all its groups.
pub(super) fn status_of_all(hosts: &Hosts) -> Result<Statuses> {
    hosts
        .redis
        .iter()
        .map(|(host, address)| Ok((*host, status(*address)?)))
        .collect()
}

/// Asks a host for all its groups. One that gave no answer is as if it were not there.
pub(super) fn status(address: SocketAddr) -> Result<BTreeMap<u64, Row>> {
    let answer = command(address, &["RAFT", "STATUS"])?;
    let text = answer
        .text()
        .with_context(|| format!("RAFT STATUS was answered {answer:?}"))?;
    parse_rows(&text).with_context(|| format!("RAFT STATUS is not understood: {text}"))
}

fn parse_rows(text: &str) -> Result<BTreeMap<u64, Row>> {
    let rows: Vec<serde_json::Value> = serde_json::from_str(text)?;
    rows.into_iter()
        .filter(|row| row.get("error").is_none())
        .map(|row| {
            let row: Row = serde_json::from_value(row)?;
            Ok((row.group, row))
        })
        .collect()
}

/// The host that says that it leads the group; of several, the one with the newest term.
pub(super) fn leader(statuses: &Statuses, group: u64) -> Option<u64> {
    statuses
        .iter()
        .filter_map(|(host, rows)| {
            rows.get(&group)
                .filter(|row| row.leads())
                .map(|row| (host, row))
        })
        .max_by_key(|(_, row)| row.term)
        .map(|(host, _)| *host)
}

/// Whether each group has a host that leads it.
pub(super) fn all_led(statuses: &Statuses, groups: u64) -> bool {
    (1..=groups).all(|group| leader(statuses, group).is_some())
}

/// How far the replicas of all groups are: the sum of applied indexes, and what it must come to.
///
/// A host that does not report a group counts as one that has applied nothing of it.
fn applied_of(statuses: &Statuses, groups: u64) -> (u64, u64) {
    let mut sums = (0, 0);
    for group in 1..=groups {
        let rows: Vec<Option<&Row>> = statuses.values().map(|rows| rows.get(&group)).collect();
        let commit = rows
            .iter()
            .flatten()
            .map(|row| row.commit)
            .max()
            .unwrap_or(1)
            .max(1);
        for row in rows {
            sums.0 += row.map_or(0, |row| row.applied.min(commit));
            sums.1 += commit;
        }
    }
    sums
}

/// Waits until every host has applied all that any host knows to be committed, with a leader for all.
///
/// Writes must have stopped, or this may never end well.
pub(super) fn wait_settled(
    hosts: &Hosts,
    patience: Duration,
    mut progress: impl FnMut(u64, u64),
) -> Result<Statuses> {
    let deadline = Instant::now() + patience;
    loop {
        let statuses = status_of_all(hosts)?;
        let (applied, wanted) = applied_of(&statuses, hosts.groups);
        progress(applied, wanted);
        if applied == wanted && all_led(&statuses, hosts.groups) {
            return Ok(statuses);
        }
        ensure!(
            Instant::now() < deadline,
            "after {patience:?} the replicas have applied {applied} of {wanted} entries"
        );
        thread::sleep(POLL);
    }
}

/// Sends a command to the leader of each group until each is done.
///
/// `is_done` looks at the leader's row: a command whose outcome is unknown may have happened, and
/// what was answered may still have to be applied.
pub(super) fn command_leaders(
    hosts: &Hosts,
    patience: Duration,
    words: impl Fn(u64) -> Vec<String>,
    is_done: impl Fn(&Row) -> bool,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut trouble = "no leader".to_owned();
    let mut asked = BTreeMap::new();
    loop {
        let statuses = status_of_all(hosts)?;
        let mut done = 0;
        for group in 1..=hosts.groups {
            let Some(host) = leader(&statuses, group) else {
                continue;
            };
            if is_done(&statuses[&host][&group]) {
                done += 1;
            } else if asked.get(&group) != Some(&host) {
                let words = words(group);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                match command(hosts.redis[&host], &words) {
                    // It is on its way: ask again only if another host comes to lead.
                    Ok(_) => drop(asked.insert(group, host)),
                    Err(error) => trouble = format!("{error:#}"),
                }
            }
        }
        progress(done);
        if done == hosts.groups {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "done in {done} of {} groups: {trouble}",
            hosts.groups
        );
        thread::sleep(POLL);
    }
}

/// Counters of a host's `INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) fdatasyncs: u64,
    pub(super) snapshot_bytes_received: u64,
    pub(super) log_bytes: u64,
}

pub(super) fn info(address: SocketAddr) -> Result<Info> {
    let answer = command(address, &["INFO"])?;
    parse_info(
        &answer
            .text()
            .with_context(|| format!("INFO was answered {answer:?}"))?,
    )
}

fn parse_info(text: &str) -> Result<Info> {
    let counter = |name: &str| {
        text.lines()
            .find_map(|line| {
                line.trim_end()
                    .strip_prefix(name)?
                    .strip_prefix(':')?
                    .parse()
                    .ok()
            })
            .with_context(|| format!("INFO has no {name}"))
    };
    Ok(Info {
        fdatasyncs: counter("fdatasyncs")?,
        snapshot_bytes_received: counter("snapshot_bytes_received")?,
        log_bytes: counter("log_bytes")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[(u64, &str, u64, u64)]) -> BTreeMap<u64, Row> {
        let row = |(group, role, commit, applied): &(u64, &str, u64, u64)| Row {
            group: *group,
            role: (*role).to_owned(),
            term: 1,
            first: 1,
            commit: *commit,
            applied: *applied,
            voters: vec![1, 2],
            learners: Vec::new(),
            state_hash: serde_json::Value::Null,
            installed_from_stream: serde_json::Value::Bool(false),
        };
        all.iter().map(|it| (it.0, row(it))).collect()
    }

    #[test]
    fn a_replica_that_lags_or_is_missing_is_not_settled() {
        let leader = rows(&[(1, "leader", 9, 9)]);
        let with = |second| applied_of(&Statuses::from([(1, leader.clone()), (2, second)]), 1);
        assert_eq!(with(rows(&[(1, "follower", 9, 9)])), (18, 18));
        assert_eq!(with(rows(&[(1, "follower", 9, 8)])), (17, 18));
        assert_eq!(with(BTreeMap::new()), (9, 18));
        let (applied, wanted) = applied_of(&Statuses::from([(1, leader)]), 2);
        assert!(
            applied < wanted,
            "a group that nobody reports is not settled"
        );
    }

    #[test]
    fn a_group_without_a_leader_is_found() {
        let statuses = Statuses::from([(1, rows(&[(1, "Leader", 1, 1), (2, "follower", 1, 1)]))]);
        assert_eq!(leader(&statuses, 1), Some(1));
        assert!(all_led(&statuses, 1));
        assert!(!all_led(&statuses, 2));
    }

    #[test]
    fn a_group_that_gave_no_answer_is_not_there() {
        let answered = r#"{"group": 1, "role": "leader", "term": 2, "first": 1, "commit": 3,
            "applied": 3, "voters": [1], "learners": [], "state_hash": "0",
            "installed_from_stream": false}"#;
        let silent = r#"{"group": 2, "replica": 1, "error": "no answer within 5s"}"#;
        let rows = parse_rows(&format!("[{answered}, {silent}]")).expect("it parses");
        assert_eq!(rows.keys().copied().collect::<Vec<_>>(), [1]);
        assert!(parse_rows(r#"[{"group": 1}]"#).is_err());
    }

    #[test]
    fn info_lines_are_read_and_missed() {
        let text = "# Raft\r\nfdatasyncs:7\r\nsnapshot_bytes_received:0\r\nlog_bytes:1048576\r\n";
        let info = parse_info(text).expect("all are there");
        assert_eq!(
            info,
            Info {
                fdatasyncs: 7,
                snapshot_bytes_received: 0,
                log_bytes: 1_048_576
            }
        );
        assert!(parse_info("# Raft\r\nfdatasyncs:7\r\n").is_err());
    }
}
