//! How long groups cannot be written to when the host that leads them is killed.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::{Client, Hosts, Operation};
use crate::slots;

/// A group that has not come back by then has not survived.
const PATIENCE: Duration = Duration::from_secs(30);
/// Probes that run at once; with more groups each probes several, one after the other.
const THREADS_MAX: usize = 64;

/// What the probes found.
pub(super) struct Failover {
    /// The longest time from the kill to a group's next acknowledged write.
    pub(super) longest: Duration,
    /// The keys that were written.
    pub(super) acked: Vec<String>,
}

/// Writes to each of `groups` until it answers; `hosts` are those that are left.
pub(super) fn measure(hosts: &Hosts, groups: &[u64], killed_at: Instant) -> Result<Failover> {
    let tags = slots::tags(hosts.groups);
    let keys: Vec<String> = groups
        .iter()
        .filter_map(|group| tags.get(usize::try_from(group - 1).ok()?))
        .map(|tag| format!("{{{tag}}}:failover"))
        .collect();
    let longest = thread::scope(|scope| {
        let threads: Vec<_> = keys
            .chunks(keys.len().div_ceil(THREADS_MAX).max(1))
            .map(|keys| scope.spawn(move || probe(hosts, keys, killed_at)))
            .collect();
        let mut longest = Duration::ZERO;
        for thread in threads {
            longest = longest.max(
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a probe panicked"))?,
            );
        }
        anyhow::Ok(longest)
    })?;
    Ok(Failover {
        longest,
        acked: keys,
    })
}

/// Writes each key once, all pipelined, and returns when the last was acknowledged.
fn probe(hosts: &Hosts, keys: &[String], killed_at: Instant) -> Result<Duration> {
    let mut last = Duration::ZERO;
    Client::new(hosts.clone())
        .run(Operation::Set, keys, PATIENCE, |_, _| {
            last = killed_at.elapsed()
        })
        .context("a group did not come back")?;
    Ok(last)
}
