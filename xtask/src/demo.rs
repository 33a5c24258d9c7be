//! `cargo xtask demo`: a cluster on this machine, taken through its paces from outside.
//!
//! Nothing here links a host: every fact comes over a host's Redis port or from its process.

mod admin;
mod export;
mod failover;
mod tour;
mod traffic;

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::export::Verifier;
use crate::certs;
use crate::client::Hosts;
use crate::cluster::{Process, RunDir, free_addresses};
use crate::programs::{self, BuildProfile};
use crate::report::Step;

/// Hosts at the start; one more joins.
const HOSTS: u64 = 3;
const DEPLOYMENT: &str = "demo";
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Groups and keys of `--small`.
const SMALL: (u64, u64) = (16, 40_000);
/// Each group keeps 100 entries behind its snapshot; these must be well under a quarter of all.
const KEYS_PER_GROUP_MIN: u64 = 600;
/// A host's log has at least some thirty segments of 1 MiB, so that one more or less decides nothing.
const LOG_BYTES_MIN: u64 = 32 << 20;
const VALUE_BYTES_MIN: usize = 256;

#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Prints the outcome as JSON, as it does anyway where standard output is no terminal.
    #[arg(long)]
    json: bool,
    /// Skips the tour and leaves the cluster running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Number of Raft groups.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    groups: u64,
    /// Number of unique values to load.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    keys: u64,
    /// Small numbers: 16 groups and 40,000 keys.
    #[arg(long, conflicts_with_all = ["groups", "keys"])]
    small: bool,
    /// How the hosts are built.
    #[arg(long, value_enum, default_value_t = BuildProfile::Release)]
    build_profile: BuildProfile,
}

impl Demo {
    /// The tour as CI runs it.
    pub(crate) fn for_ci() -> Self {
        let (groups, keys) = SMALL;
        Self {
            json: true,
            keep: false,
            groups,
            keys,
            small: false,
            build_profile: BuildProfile::Ci,
        }
    }

    pub(crate) fn run(mut self) -> Result<()> {
        if self.small {
            (self.groups, self.keys) = SMALL;
        }
        let keys_min = self.groups * KEYS_PER_GROUP_MIN;
        ensure!(
            self.keep || self.keys >= keys_min,
            "{} keys are too few for {} groups: what each keeps behind its snapshot would outweigh \
             what goes; at least {keys_min} are needed",
            self.keys,
            self.groups,
        );
        let value_bytes = usize::try_from(LOG_BYTES_MIN / self.keys)?.max(VALUE_BYTES_MIN);
        let step = Step::begin("build", 1);
        let wanted = [("raft-host", "kv"), ("raft-snapshot", "verify")];
        let [kv, verify] = programs::examples(wanted, self.build_profile)?;
        step.end("the examples kv of raft-host and verify of raft-snapshot");
        let cluster = Cluster::start(kv, self.groups, value_bytes)?;
        cluster.explain();
        if self.keep {
            return cluster.keep();
        }
        let verifier = Verifier::new(verify);
        let json = self.json || !std::io::stdout().is_terminal();
        tour::run(cluster, self.keys, &verifier, json)
    }
}

/// A running cluster of `kv` processes.
pub(crate) struct Cluster {
    groups: u64,
    value_bytes: usize,
    program: PathBuf,
    dir: Option<RunDir>,
    addresses: BTreeMap<u64, (SocketAddr, SocketAddr)>,
    processes: BTreeMap<u64, Process>,
}

impl Cluster {
    /// Makes certificates and starts three hosts, which run `program`; returns when every group has
    /// a leader.
    pub(crate) fn start(program: PathBuf, groups: u64, value_bytes: usize) -> Result<Self> {
        let step = Step::begin("start", HOSTS);
        let dir = RunDir::new("demo")?;
        // One address more than there are hosts: a fourth will join.
        let addresses: BTreeMap<_, _> = (1..)
            .zip(free_addresses(usize::try_from(HOSTS)? + 1)?)
            .collect();
        let hosts: Vec<u64> = addresses.keys().copied().collect();
        certs::make(&dir.path().join("certs"), DEPLOYMENT, &hosts, 30)?;
        let mut cluster = Self {
            groups,
            value_bytes,
            program,
            dir: Some(dir),
            addresses,
            processes: BTreeMap::new(),
        };
        cluster
            .bring_up(&step)
            .inspect_err(|_| cluster.say_kept())?;
        step.end(&format!(
            "{HOSTS} hosts, {groups} groups, each with a leader"
        ));
        Ok(cluster)
    }

    fn bring_up(&mut self, step: &Step) -> Result<()> {
        for host in 1..=HOSTS {
            self.spawn(host)?;
        }
        for host in 1..=HOSTS {
            self.wait_ready(host)?;
            step.add(1);
        }
        let deadline = Instant::now() + START_PATIENCE;
        while !admin::all_led(&admin::status_of_all(&self.hosts())?, self.groups) {
            self.check_alive()?;
            ensure!(
                Instant::now() < deadline,
                "not every group has a leader after {START_PATIENCE:?}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Starts a host's process. One that was not there from the start joins.
    fn spawn(&mut self, host: u64) -> Result<()> {
        let (raft, redis) = self.addresses[&host];
        let root = self.path();
        // Hosts hear of the one that joins later by `RAFT HOST`.
        let known = if host > HOSTS { host } else { HOSTS };
        let peers: Vec<String> = self
            .addresses
            .iter()
            .filter(|(id, _)| **id <= known)
            .map(|(id, (raft, _))| format!("{id}={raft}"))
            .collect();
        let mut arguments: Vec<String> = [
            (
                "--data",
                root.join(format!("host-{host}")).display().to_string(),
            ),
            ("--host", host.to_string()),
            ("--deployment", DEPLOYMENT.to_owned()),
            ("--certs", root.join("certs").display().to_string()),
            ("--raft", raft.to_string()),
            ("--redis", redis.to_string()),
            ("--groups", self.groups.to_string()),
            ("--peers", peers.join(",")),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if host > HOSTS {
            arguments.push("--join".to_owned());
        } else {
            let voters: Vec<String> = (1..=HOSTS).map(|id| id.to_string()).collect();
            arguments.extend(["--voters".to_owned(), voters.join(",")]);
        }
        arguments.push("--exit-with-stdin".to_owned());
        fs::create_dir_all(root.join(format!("host-{host}")))?;
        let log = root.join(format!("host-{host}.log"));
        let process = Process::start(host, &self.program, &arguments, log)?;
        self.processes.insert(host, process);
        Ok(())
    }

    fn wait_ready(&mut self, host: u64) -> Result<()> {
        match self.processes.get_mut(&host) {
            Some(process) => process.wait_ready().map(drop),
            None => bail!("host {host} was not started"),
        }
    }

    /// Ends a host's process by SIGKILL and forgets it.
    fn kill(&mut self, host: u64) -> Result<()> {
        match self.processes.remove(&host) {
            Some(mut process) => process.kill(),
            None => bail!("host {host} does not run"),
        }
    }

    fn check_alive(&mut self) -> Result<()> {
        self.processes
            .values_mut()
            .try_for_each(Process::check_alive)
    }

    /// The hosts that run.
    pub(crate) fn hosts(&self) -> Hosts {
        let redis = self
            .processes
            .keys()
            .map(|host| (*host, self.addresses[host].1))
            .collect();
        Hosts {
            redis,
            groups: self.groups,
            value_bytes: self.value_bytes,
        }
    }

    /// The Redis port of one of the hosts.
    pub(crate) fn any_redis_port(&self) -> Result<u16> {
        let hosts = self.hosts();
        hosts
            .redis
            .values()
            .next()
            .map(SocketAddr::port)
            .context("no host runs")
    }

    fn path(&self) -> PathBuf {
        self.dir
            .as_ref()
            .map_or_else(PathBuf::new, |dir| dir.path().to_path_buf())
    }

    fn explain(&self) {
        for (host, process) in &self.processes {
            let (raft, redis) = self.addresses[host];
            eprintln!(
                "host {host}: redis {redis}, raft {raft} (QUIC), pid {}",
                process.pid()
            );
        }
        if let Ok(port) = self.any_redis_port() {
            eprintln!("try: redis-cli -c -p {port} set boat 1");
            eprintln!("     redis-cli -p {port} raft status 1");
            eprintln!("     redis-benchmark -p {port} -t set,get -c 50 -n 100000 --cluster");
        }
    }

    fn keep(mut self) -> Result<()> {
        eprintln!(
            "running until Ctrl-C; data and logs are in {}",
            self.path().display()
        );
        let (asked, is_asked) = mpsc::channel();
        ctrlc::set_handler(move || {
            // Asked twice, it ends no faster.
            let _ = asked.send(());
        })
        .context("cannot listen for Ctrl-C")?;
        while is_asked.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            self.processes.retain(|_, process| {
                let ended = process.check_alive();
                if let Err(error) = &ended {
                    eprintln!("{error:#}; the others go on");
                }
                ended.is_ok()
            });
            ensure!(!self.processes.is_empty(), "no host runs any more");
        }
        self.finish()
    }

    /// Ends all hosts and removes what they left; fails if one does not end well.
    pub(crate) fn finish(mut self) -> Result<()> {
        let mut stubborn = Vec::new();
        for (host, process) in &mut self.processes {
            if !process.stop()? {
                stubborn.push(*host);
            }
        }
        if !stubborn.is_empty() {
            self.say_kept();
            bail!("hosts {stubborn:?} did not end well when their standard input closed");
        }
        self.dir.take().map_or(Ok(()), RunDir::remove)
    }

    /// Ends all hosts and keeps what they left.
    fn abandon(mut self) -> anyhow::Error {
        self.say_kept();
        self.processes.clear();
        anyhow!("not every check held")
    }

    fn say_kept(&self) {
        eprintln!("data and logs are kept in {}", self.path().display());
    }
}
