//! `cargo xtask bench cluster`: starts `raft-host/examples/bench_host` processes and sums them up.
//!
//! Each process prints a `ready` line, waits for `go SECONDS`, runs the clients of the groups that it
//! leads, prints a `result` line, and ends when its standard input closes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::certs;
use crate::cluster::{Process, RunDir, free_addresses};
use crate::programs::{self, BuildProfile};
use crate::report::Step;

const DEPLOYMENT: &str = "bench";
/// What a process may take beyond the measured time: warm-up, the end of what is in flight.
const SLACK: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct ClusterBench {
    /// Processes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    hosts: u64,
    /// Raft groups, each with a replica on every host; group g is led by host (g - 1) % hosts + 1.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    groups: u64,
    /// Bytes of a command.
    #[arg(long, default_value_t = 16)]
    payload: u64,
    /// Operations in flight over the whole cluster.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    outstanding: u64,
    /// How many of a hundred operations are linearizable reads.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    read_percent: u64,
    /// Measured seconds, after a warm-up that is not counted.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Prints the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// What one process measured.
#[derive(Debug, Deserialize)]
struct HostResult {
    writes: u64,
    reads: u64,
    seconds: f64,
    /// Pairs of a latency and how many operations had it.
    latency_us_histogram: Vec<(u64, u64)>,
    cpu_us: u64,
    fdatasyncs: u64,
    written_bytes: u64,
    rss_bytes: u64,
}

/// What the cluster came to.
#[derive(Debug, Serialize)]
struct Outcome {
    hosts: u64,
    groups: u64,
    payload_bytes: u64,
    outstanding: u64,
    read_percent: u64,
    seconds: u64,
    writes_per_s: f64,
    reads_per_s: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    us_cpu_per_op: f64,
    fdatasync_per_s: f64,
    written_bytes_per_s: f64,
    rss_bytes: u64,
}

impl ClusterBench {
    pub(crate) fn run(self) -> Result<()> {
        let step = Step::begin("build", 1);
        let program = programs::example("raft-host", "bench_host", BuildProfile::Release)?;
        step.end("the example bench_host of raft-host");

        let dir = RunDir::new("bench")?;
        let results = self.measure(&program, &dir).inspect_err(|_| {
            eprintln!("data and logs are kept in {}", dir.path().display());
        })?;
        dir.remove()?;
        let outcome = self.sum_up(&results)?;
        if self.json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            println!("{}", crate::report::table(&outcome)?);
        }
        Ok(())
    }

    fn measure(&self, program: &Path, dir: &RunDir) -> Result<Vec<HostResult>> {
        let step = Step::begin("start", self.hosts);
        let addresses = free_addresses(usize::try_from(self.hosts)?)?;
        let hosts: Vec<u64> = (1..=self.hosts).collect();
        let certs = dir.path().join("certs");
        certs::make(&certs, DEPLOYMENT, &hosts, 30)?;
        let peers: Vec<String> = hosts
            .iter()
            .zip(&addresses)
            .map(|(host, (raft, _))| format!("{host}={raft}"))
            .collect();
        let voters: Vec<String> = hosts.iter().map(u64::to_string).collect();
        let mut processes = Vec::new();
        for (host, (raft, _)) in hosts.iter().zip(&addresses) {
            let data = dir.path().join(format!("host-{host}"));
            std::fs::create_dir_all(&data)?;
            let mut arguments: Vec<String> = [
                ("--data", data.display().to_string()),
                ("--host", host.to_string()),
                ("--deployment", DEPLOYMENT.to_owned()),
                ("--certs", certs.display().to_string()),
                ("--raft", raft.to_string()),
                ("--groups", self.groups.to_string()),
                ("--peers", peers.join(",")),
                ("--voters", voters.join(",")),
                ("--payload", self.payload.to_string()),
                ("--outstanding", self.outstanding_of(*host).to_string()),
                ("--read-percent", self.read_percent.to_string()),
            ]
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
            arguments.push("--exit-with-stdin".to_owned());
            let log = dir.path().join(format!("host-{host}.log"));
            processes.push(Process::start(*host, program, &arguments, log)?);
        }
        for process in &mut processes {
            process.wait_ready()?;
            step.add(1);
        }
        step.end(&format!("{} hosts, {} groups", self.hosts, self.groups));

        let step = Step::begin("measure", 1);
        for process in &mut processes {
            process.send_line(&format!("go {}", self.seconds))?;
        }
        let patience = Duration::from_secs(self.seconds) + SLACK;
        let mut results = Vec::new();
        for process in &mut processes {
            let event = process.wait_event("result", patience)?;
            results.push(serde_json::from_value(event).context("a result is not understood")?);
        }
        step.end(&format!("{} s", self.seconds));
        for process in &mut processes {
            ensure!(process.stop()?, "host {} did not end well", process.host());
        }
        Ok(results)
    }

    /// A host's share of what is in flight: in proportion to the groups that it leads.
    fn outstanding_of(&self, host: u64) -> u64 {
        let led_by = |host: u64| (self.groups + self.hosts - host) / self.hosts;
        let led_before: u64 = (1..host).map(led_by).sum();
        let share = |led: u64| {
            u64::try_from(u128::from(self.outstanding) * u128::from(led) / u128::from(self.groups))
                .expect("a share is at most the whole")
        };
        // Differences of running sums, so that the shares come to the whole.
        share(led_before + led_by(host)) - share(led_before)
    }

    fn sum_up(&self, results: &[HostResult]) -> Result<Outcome> {
        let per_second = |count: fn(&HostResult) -> u64| -> f64 {
            results
                .iter()
                .map(|result| count(result) as f64 / result.seconds)
                .sum()
        };
        let operations: u64 = results
            .iter()
            .map(|result| result.writes + result.reads)
            .sum();
        ensure!(operations > 0, "no operation was completed");
        ensure!(
            results.iter().all(|result| result.seconds > 0.0),
            "a host measured no time"
        );
        let cpu_us: u64 = results.iter().map(|result| result.cpu_us).sum();
        let mut latencies = BTreeMap::new();
        for (latency_us, count) in results
            .iter()
            .flat_map(|result| &result.latency_us_histogram)
        {
            *latencies.entry(*latency_us).or_insert(0) += count;
        }
        Ok(Outcome {
            hosts: self.hosts,
            groups: self.groups,
            payload_bytes: self.payload,
            outstanding: self.outstanding,
            read_percent: self.read_percent,
            seconds: self.seconds,
            writes_per_s: per_second(|result| result.writes).round(),
            reads_per_s: per_second(|result| result.reads).round(),
            p50_us: percentile(&latencies, 500),
            p99_us: percentile(&latencies, 990),
            p999_us: percentile(&latencies, 999),
            us_cpu_per_op: (cpu_us as f64 / operations as f64 * 100.0).round() / 100.0,
            fdatasync_per_s: per_second(|result| result.fdatasyncs).round(),
            written_bytes_per_s: per_second(|result| result.written_bytes).round(),
            rss_bytes: results.iter().map(|result| result.rss_bytes).sum(),
        })
    }
}

/// The smallest latency that at least `permille` of a thousand operations did not exceed.
fn percentile(latencies: &BTreeMap<u64, u64>, permille: u64) -> u64 {
    let total: u64 = latencies.values().sum();
    let wanted = (total * permille).div_ceil(1000);
    let mut seen = 0;
    for (latency_us, count) in latencies {
        seen += count;
        if seen >= wanted {
            return *latency_us;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(hosts: u64, groups: u64, outstanding: u64) -> ClusterBench {
        ClusterBench {
            hosts,
            groups,
            payload: 16,
            outstanding,
            read_percent: 0,
            seconds: 10,
            json: true,
        }
    }

    #[test]
    fn shares_come_to_the_whole_and_follow_the_leaders() {
        let shares = |bench: ClusterBench| -> Vec<u64> {
            (1..=bench.hosts)
                .map(|host| bench.outstanding_of(host))
                .collect()
        };
        assert_eq!(shares(bench(3, 1, 64)), [64, 0, 0]);
        assert_eq!(shares(bench(3, 48, 20_000)).iter().sum::<u64>(), 20_000);
        assert_eq!(shares(bench(3, 16, 16)), [6, 5, 5]);
    }

    #[test]
    fn percentiles_are_the_smallest_that_suffice() {
        let latencies = BTreeMap::from([(10, 500), (20, 490), (30, 9), (40, 1)]);
        assert_eq!(percentile(&latencies, 500), 10);
        assert_eq!(percentile(&latencies, 990), 20);
        assert_eq!(percentile(&latencies, 999), 30);
        assert_eq!(percentile(&BTreeMap::from([(7, 1)]), 999), 7);
    }

    #[test]
    fn results_of_hosts_are_summed() {
        let line = r#"{"event":"result","writes":100,"reads":10,"seconds":2.0,
            "latency_us_histogram":[[5,109],[9,1]],"cpu_us":220,"fdatasyncs":8,
            "written_bytes":4000,"rss_bytes":7}"#;
        let results: Vec<HostResult> = (0..2)
            .map(|_| serde_json::from_str(line).expect("a result"))
            .collect();
        let outcome = bench(2, 2, 2)
            .sum_up(&results)
            .expect("operations were done");
        assert_eq!(outcome.writes_per_s, 100.0);
        assert_eq!(outcome.reads_per_s, 10.0);
        assert_eq!(outcome.us_cpu_per_op, 2.0);
        assert_eq!(outcome.rss_bytes, 14);
        assert_eq!((outcome.p50_us, outcome.p999_us), (5, 9));
    }
}
