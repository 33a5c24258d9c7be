//! The tour: what the cluster goes through, and what must hold after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use super::export::{self, Verifier};
use super::traffic::{self, Traffic};
use super::{Cluster, HOSTS, admin, failover};
use crate::client;
use crate::report::{self, Step};

const PATIENCE: Duration = Duration::from_secs(120);
/// For what follows an answer by itself, such as dropping dead segments.
const SOON: Duration = Duration::from_secs(30);

/// What the tour came to.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    hosts: u64,
    groups: u64,
    keys: u64,
    acked_lost: u64,
    failover_ms_max: u64,
    log_bytes_before: u64,
    log_bytes_after: u64,
    snapshot_bytes_streamed: u64,
    snapshot_joined_groups: u64,
    state_hash_equal: bool,
    fdatasync_per_host: Vec<u64>,
    pids: Vec<u32>,
    ok: bool,
}

/// The tour's state.
struct Tour {
    cluster: Cluster,
    outcome: Outcome,
    /// Every key whose write was acknowledged.
    acked: Vec<String>,
    /// Those that a read did not find as they were written.
    lost: BTreeSet<String>,
    /// What did not hold.
    broken: Vec<String>,
}

/// Takes the cluster through the tour and prints what it came to.
pub(super) fn run(cluster: Cluster, keys: u64, verifier: &Verifier, json: bool) -> Result<()> {
    let groups = cluster.groups;
    let mut tour = Tour {
        cluster,
        outcome: Outcome {
            groups,
            keys,
            ..Outcome::default()
        },
        acked: Vec::new(),
        lost: BTreeSet::new(),
        broken: Vec::new(),
    };
    if let Err(error) = tour.steps(verifier) {
        tour.broken
            .push(format!("the tour could not go on: {error:#}"));
    }
    let Tour {
        cluster,
        mut outcome,
        broken,
        ..
    } = tour;
    outcome.ok = broken.is_empty();
    for what in &broken {
        eprintln!("FAILED: {what}");
    }
    let ended = if outcome.ok {
        cluster.finish()
    } else {
        Err(cluster.abandon())
    };
    outcome.ok &= ended.is_ok();
    if json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{}", report::table(&outcome)?);
    }
    ended
}

impl Tour {
    fn steps(&mut self, verifier: &Verifier) -> Result<()> {
        self.load()?;
        self.read_everywhere()?;
        self.kill_and_restart()?;
        self.snapshot()?;
        self.join()?;
        self.compare()?;
        self.read_back("read back all")?;
        self.export(verifier)?;
        self.count()
    }

    /// Records that something does not hold; the tour goes on.
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.push(what());
        }
    }

    fn load(&mut self) -> Result<()> {
        let keys: Vec<String> = (0..self.outcome.keys)
            .map(|at| format!("load:{at}"))
            .collect();
        let step = Step::begin("load", self.outcome.keys);
        let begin = Instant::now();
        traffic::write_all(&self.cluster.hosts(), &keys, || step.add(1))?;
        let rate = keys.len() as f64 / begin.elapsed().as_secs_f64();
        step.end(&format!(
            "{} unique values acknowledged, {rate:.0}/s",
            keys.len()
        ));
        self.acked.extend(keys);
        Ok(())
    }

    fn read_everywhere(&mut self) -> Result<()> {
        let hosts = self.cluster.hosts();
        let step = Step::begin("read on every host", self.outcome.keys * HOSTS);
        admin::wait_settled(&hosts, PATIENCE, |_, _| {})?;
        let mut wrong = BTreeMap::new();
        for (host, address) in &hosts.redis {
            client::read_locally(*address, &self.acked, |at, answer| {
                if !traffic::holds(&answer, &self.acked[at], hosts.value_bytes) {
                    *wrong.entry(*host).or_insert(0_u64) += 1;
                }
                step.add(1);
            })?;
        }
        step.end(&format!(
            "{} values on each of {} hosts",
            self.acked.len(),
            hosts.redis.len()
        ));
        self.check(wrong.is_empty(), || {
            format!("values wrong or missing, by host: {wrong:?}")
        });
        Ok(())
    }

    /// Reads all acknowledged writes linearizably.
    fn read_back(&mut self, name: &'static str) -> Result<()> {
        let step = Step::begin(name, self.acked.len() as u64);
        let lost = traffic::find_lost(&self.cluster.hosts(), &self.acked, || step.add(1))?;
        step.end(&format!(
            "{} acknowledged writes, {} lost",
            self.acked.len(),
            lost.len()
        ));
        self.check(lost.is_empty(), || {
            format!("acknowledged and lost: {:?}", sample(&lost))
        });
        self.lost.extend(lost);
        self.outcome.acked_lost = self.lost.len() as u64;
        Ok(())
    }

    fn kill_and_restart(&mut self) -> Result<()> {
        let statuses = admin::status_of_all(&self.cluster.hosts())?;
        let led = |host: u64| -> Vec<u64> {
            (1..=self.cluster.groups)
                .filter(|group| admin::leader(&statuses, *group) == Some(host))
                .collect()
        };
        let victim = (1..=HOSTS)
            .max_by_key(|host| led(*host).len())
            .context("there are hosts")?;
        let groups = led(victim);

        let step = Step::begin("kill -9", groups.len() as u64);
        let during = Traffic::start(&self.cluster.hosts(), "kill");
        // The kill must meet writes in flight.
        thread::sleep(Duration::from_millis(500));
        let killed_at = Instant::now();
        self.cluster.kill(victim)?;
        let found = failover::measure(&self.cluster.hosts(), &groups, killed_at)?;
        self.outcome.failover_ms_max = u64::try_from(found.longest.as_millis())?;
        self.acked.extend(found.acked);
        step.end(&format!(
            "host {victim} led {} groups; all took writes again within {} ms",
            groups.len(),
            self.outcome.failover_ms_max
        ));

        let step = Step::begin("restart", 1);
        self.cluster.spawn(victim)?;
        self.cluster.wait_ready(victim)?;
        self.acked.extend(during.stop()?);
        admin::wait_settled(&self.cluster.hosts(), PATIENCE, |applied, _| {
            step.set(applied)
        })?;
        step.end(&format!("host {victim} has caught up"));
        self.read_back("read back after the crash")
    }

    fn log_bytes(&self) -> Result<u64> {
        let hosts = self.cluster.hosts();
        hosts
            .redis
            .values()
            .map(|address| Ok(admin::info(*address)?.log_bytes))
            .sum()
    }

    fn snapshot(&mut self) -> Result<()> {
        let hosts = self.cluster.hosts();
        let step = Step::begin("snapshot every group", hosts.groups * HOSTS);
        self.outcome.log_bytes_before = self.log_bytes()?;
        let begin = admin::status_of_all(&hosts)?;
        for address in hosts.redis.values() {
            for group in 1..=hosts.groups {
                admin::command(*address, &["RAFT", "SNAPSHOT", &group.to_string()])?;
                step.add(1);
            }
        }
        let deadline = Instant::now() + SOON;
        loop {
            self.outcome.log_bytes_after = self.log_bytes()?;
            let late = Instant::now() >= deadline;
            if late || self.outcome.log_bytes_after * 4 < self.outcome.log_bytes_before {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let (before, after) = (self.outcome.log_bytes_before, self.outcome.log_bytes_after);
        step.end(&format!("logs shrank from {before} to {after} bytes"));
        self.check(after * 4 < before, || {
            format!("the logs are not under a quarter: {after} of {before} bytes")
        });
        let end = admin::status_of_all(&hosts)?;
        let uncompacted: Vec<(u64, u64)> = hosts
            .redis
            .keys()
            .flat_map(|host| (1..=hosts.groups).map(move |group| (*host, group)))
            .filter(|(host, group)| {
                let first = |of: &admin::Statuses| of.get(host)?.get(group).map(|row| row.first);
                first(&end).is_none_or(|now| now <= 1) || first(&end) <= first(&begin)
            })
            .collect();
        self.check(uncompacted.is_empty(), || {
            format!(
                "logs that begin where they began, by host and group: {:?}",
                sample(&uncompacted)
            )
        });
        Ok(())
    }

    /// A fourth, empty host joins every group while writes go on.
    fn join(&mut self) -> Result<()> {
        let groups = self.cluster.groups;
        let host = HOSTS + 1;
        let old = self.cluster.hosts();
        let (raft, redis) = self.cluster.addresses[&host];

        let step = Step::begin("a fourth host learns", groups);
        self.cluster.spawn(host)?;
        self.cluster.wait_ready(host)?;
        let all = self.cluster.hosts();
        let during = Traffic::start(&all, "join");
        for address in old.redis.values() {
            admin::command(
                *address,
                &["RAFT", "HOST", &host.to_string(), &raft.to_string()],
            )?;
        }
        // Learners are counted where the leader says so: there are none before.
        let words = |name: &'static str| {
            move |group: u64| {
                vec![
                    "RAFT".to_owned(),
                    name.to_owned(),
                    group.to_string(),
                    host.to_string(),
                ]
            }
        };
        let members = |row: &admin::Row| (row.voters.len() + row.learners.len()) as u64;
        admin::command_leaders(
            &all,
            PATIENCE,
            words("ADD"),
            |row| members(row) > HOSTS,
            |_| {},
        )?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = admin::status(redis)?;
            let fed = rows
                .values()
                .filter(|row| row.came_by_stream() && row.applied > 0)
                .count() as u64;
            step.set(fed);
            self.outcome.snapshot_joined_groups = fed;
            if fed == groups || Instant::now() >= deadline {
                break;
            }
            self.cluster.check_alive()?;
            thread::sleep(Duration::from_millis(100));
        }
        self.outcome.snapshot_bytes_streamed = admin::info(redis)?.snapshot_bytes_received;
        let (fed, bytes) = (
            self.outcome.snapshot_joined_groups,
            self.outcome.snapshot_bytes_streamed,
        );
        step.end(&format!(
            "{fed} groups from streamed snapshots, {bytes} bytes"
        ));
        self.check(fed == groups, || {
            format!("only {fed} of {groups} groups came by a stream")
        });
        self.check(bytes > 0, || "no snapshot bytes were received".to_owned());

        let step = Step::begin("promote it", groups);
        let promoted = |row: &admin::Row| row.voters.len() as u64 > HOSTS;
        admin::command_leaders(&all, PATIENCE, words("PROMOTE"), promoted, |done| {
            step.set(done)
        })?;
        let written = during.stop()?;
        step.end(&format!(
            "a voter of every group; {} writes went on meanwhile",
            written.len()
        ));
        self.check(!written.is_empty(), || {
            "no write was acknowledged while the host joined".to_owned()
        });
        self.acked.extend(written);
        Ok(())
    }

    /// With writes stopped, all replicas of a group must have the same state at the same index.
    fn compare(&mut self) -> Result<()> {
        let step = Step::begin("compare replicas", 1);
        let hosts = self.cluster.hosts();
        let statuses = admin::wait_settled(&hosts, PATIENCE, |applied, _| step.set(applied))?;
        let mut unequal = Vec::new();
        for group in 1..=hosts.groups {
            let states: Vec<(u64, String)> = statuses
                .values()
                .filter_map(|rows| rows.get(&group))
                .map(|row| (row.applied, row.state_hash.to_string()))
                .collect();
            let are_equal = states
                .iter()
                .all(|state| *state == states[0] && state.1 != "null");
            if states.len() != hosts.redis.len() || !are_equal {
                unequal.push((group, states));
            }
        }
        self.outcome.state_hash_equal = unequal.is_empty();
        step.end(&format!(
            "{} groups on {} hosts",
            hosts.groups,
            hosts.redis.len()
        ));
        self.check(unequal.is_empty(), || {
            format!(
                "groups whose replicas differ (applied index, hash): {:?}",
                sample(&unequal)
            )
        });
        Ok(())
    }

    fn export(&mut self, verifier: &Verifier) -> Result<()> {
        let step = Step::begin("export a snapshot", 1);
        let dir = self.cluster.path().join("export");
        fs::create_dir_all(&dir)?;
        let statuses = admin::status_of_all(&self.cluster.hosts())?;
        let host = admin::leader(&statuses, 1).context("group 1 has no leader")?;
        let address = self.cluster.addresses[&host].1;
        let dir_word = dir.to_str().context("the folder's path is not UTF-8")?;
        admin::command(address, &["RAFT", "SNAPSHOT", "1", "EXPORT", dir_word])?;
        let exported = export::find(&dir)?;
        let facts = verifier.verify(&exported)?;
        let damaged = self.cluster.path().join("export-damaged");
        export::damage_a_copy(&exported, &damaged)?;
        self.check(verifier.verify(&damaged).is_err(), || {
            "a snapshot with a damaged byte verifies".to_owned()
        });
        step.end(&format!("of group 1, verified from outside: {facts}"));
        Ok(())
    }

    /// What is counted at the end.
    fn count(&mut self) -> Result<()> {
        let hosts = self.cluster.hosts();
        self.outcome.hosts = hosts.redis.len() as u64;
        self.outcome.pids = self
            .cluster
            .processes
            .values()
            .map(|process| process.pid())
            .collect();
        for (host, address) in &hosts.redis {
            let syncs = admin::info(*address)?.fdatasyncs;
            self.outcome.fdatasync_per_host.push(syncs);
            self.check(syncs > 0, || format!("host {host} has never synced"));
        }
        Ok(())
    }
}

/// The first few of many.
fn sample<T: std::fmt::Debug>(all: &[T]) -> &[T] {
    &all[..all.len().min(5)]
}
