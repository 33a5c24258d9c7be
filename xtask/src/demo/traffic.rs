//! Clients that write and read: the load at the start, and writes that go on while things happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::client::{Client, Hosts, Operation, value_of};
use crate::resp::Value;

/// Clients that share a job.
const CLIENTS: usize = 8;
/// Keys that a client takes on at once while traffic goes on.
const BATCH: usize = 32;
/// How long a job may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes all keys; returns when each is acknowledged.
pub(super) fn write_all(hosts: &Hosts, keys: &[String], on_ack: impl Fn() + Sync) -> Result<()> {
    in_parallel(hosts, keys, |client, keys| {
        let mut refused = None;
        client.run(Operation::Set, keys, PATIENCE, |_, answer| {
            if is_ok(&answer) {
                on_ack()
            } else {
                refused = Some(answer)
            }
        })?;
        match refused {
            Some(answer) => bail!("SET was answered {answer:?}"),
            None => Ok(()),
        }
    })
    .map(drop)
}

/// Reads all keys linearizably; returns those that do not have the value they were given.
pub(super) fn find_lost(
    hosts: &Hosts,
    keys: &[String],
    on_read: impl Fn() + Sync,
) -> Result<Vec<String>> {
    let lost = in_parallel(hosts, keys, |client, keys| {
        let mut lost = Vec::new();
        client.run(Operation::Get, keys, PATIENCE, |at, answer| {
            if !holds(&answer, &keys[at], hosts.value_bytes) {
                lost.push(keys[at].clone());
            }
            on_read();
        })?;
        Ok(lost)
    })?;
    Ok(lost.into_iter().flatten().collect())
}

/// Whether the answer to a read is the value that the key was given.
pub(super) fn holds(answer: &Value, key: &str, bytes: usize) -> bool {
    matches!(answer, Value::Bulk(Some(value)) if *value == value_of(key, bytes))
}

fn is_ok(answer: &Value) -> bool {
    matches!(answer, Value::Simple(text) if text == "OK")
}

fn in_parallel<T: Send>(
    hosts: &Hosts,
    keys: &[String],
    job: impl Fn(&mut Client, &[String]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let job = &job;
    thread::scope(|scope| {
        let threads: Vec<_> = keys
            .chunks(keys.len().div_ceil(CLIENTS).max(1))
            .map(|keys| scope.spawn(move || job(&mut Client::new(hosts.clone()), keys)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a client panicked")))
            .collect()
    })
}

/// Clients that write until they are told to stop.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<String>>>>,
}

impl Traffic {
    /// Starts the clients; `name` keeps the keys of one time apart from those of another.
    pub(super) fn start(hosts: &Hosts, name: &str) -> Self {
        /// Few: the machine has more to do than to write.
        const CLIENTS: usize = 2;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS)
            .map(|client| {
                let (hosts, stop) = (hosts.clone(), Arc::clone(&stop));
                let name = format!("{name}:{client}");
                thread::spawn(move || write_until(&stop, &hosts, &name))
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends the clients and returns the keys whose writes were acknowledged.
    pub(super) fn stop(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acked = Vec::new();
        for thread in self.threads.drain(..) {
            acked.extend(thread.join().ok().context("a client panicked")??);
        }
        Ok(acked)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write_until(stop: &AtomicBool, hosts: &Hosts, name: &str) -> Result<Vec<String>> {
    let mut client = Client::new(hosts.clone());
    let mut acked = Vec::new();
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let keys: Vec<String> = (number..)
            .take(BATCH)
            .map(|at| format!("{name}:{at}"))
            .collect();
        number += BATCH as u64;
        client.run(Operation::Set, &keys, PATIENCE, |at, answer| {
            if is_ok(&answer) {
                acked.push(keys[at].clone());
            }
        })?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(acked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_value_of_a_key_holds() {
        assert!(holds(&Value::Bulk(Some(value_of("k", 9))), "k", 9));
        assert!(!holds(&Value::Bulk(Some(value_of("l", 9))), "k", 9));
        assert!(!holds(&Value::Bulk(None), "k", 9));
    }
}
