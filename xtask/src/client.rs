//! A client of the whole cluster: it sends each command to the host that leads the key's group.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::resp::{Connection, Value};
use crate::slots;

/// How long a host may take to answer; longer than its own deadlines.
const PATIENCE: Duration = Duration::from_secs(15);
/// Commands in flight of one client.
const WINDOW: usize = 512;
/// What to wait before asking again where nobody could serve.
const PAUSE: Duration = Duration::from_millis(3);

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Sets the key to [`value_of`] it.
    Set,
    /// Reads the key, linearizably.
    Get,
}

/// The value that a key is given: unique, and known to whoever reads the key.
pub(crate) fn value_of(key: &str, bytes: usize) -> Vec<u8> {
    let mut value = format!("{key}=").into_bytes();
    // FNV-1a, then a linear congruence for filler that differs from key to key.
    let mut state = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    while value.len() < bytes {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        value.extend_from_slice(format!("{:016x}", state).as_bytes());
    }
    value.truncate(bytes.max(key.len() + 1));
    value
}

/// The Redis addresses of a cluster's hosts.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// By host id.
    pub(crate) redis: BTreeMap<u64, SocketAddr>,
    /// Number of groups.
    pub(crate) groups: u64,
    /// Size of the values that clients write.
    pub(crate) value_bytes: usize,
}

/// A client. It remembers who leads what, as it was told.
pub(crate) struct Client {
    hosts: Hosts,
    ids: Vec<u64>,
    leaders: BTreeMap<u64, u64>,
    connections: BTreeMap<u64, Connection>,
}

impl Client {
    pub(crate) fn new(hosts: Hosts) -> Self {
        let ids = hosts.redis.keys().copied().collect();
        Self {
            hosts,
            ids,
            leaders: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// Runs an operation on every key, whatever leader changes it takes.
    ///
    /// `done` hears each answer that settles an operation: `OK` for a set, the value for a read.
    /// An operation without a certain answer is tried again; sets may be repeated, as a key is only
    /// ever given one value.
    ///
    /// # Errors
    ///
    /// When an answer is none that the protocol knows, or `patience` passes with no progress at all.
    pub(crate) fn run(
        &mut self,
        operation: Operation,
        keys: &[String],
        patience: Duration,
        mut done: impl FnMut(usize, Value),
    ) -> Result<()> {
        let mut pending: Vec<usize> = (0..keys.len()).rev().collect();
        let mut last_progress = Instant::now();
        let mut trouble = String::new();
        while !pending.is_empty() {
            let window = pending.split_off(pending.len().saturating_sub(WINDOW));
            let size = window.len();
            let again = self.round(operation, keys, window, &mut done, &mut trouble)?;
            if again.len() < size {
                last_progress = Instant::now();
            } else if last_progress.elapsed() > patience {
                bail!(
                    "no progress for {patience:?} with {} operations: {trouble}",
                    pending.len() + size
                );
            }
            if !again.is_empty() {
                thread::sleep(PAUSE);
            }
            pending.extend(again);
        }
        Ok(())
    }

    /// Sends a window of operations and returns those to be tried again.
    fn round(
        &mut self,
        operation: Operation,
        keys: &[String],
        window: Vec<usize>,
        done: &mut impl FnMut(usize, Value),
        trouble: &mut String,
    ) -> Result<Vec<usize>> {
        let mut by_host: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for at in window.into_iter().rev() {
            by_host
                .entry(self.leader_of(&keys[at]))
                .or_default()
                .push(at);
        }
        let mut again = Vec::new();
        let mut sent = Vec::new();
        for (host, places) in by_host {
            match self.send(host, operation, keys, &places) {
                Ok(()) => sent.push((host, places)),
                Err(error) => {
                    *trouble = format!("host {host}: {error}");
                    self.on_lost(host, keys, &places);
                    again.extend(places);
                }
            }
        }
        for (host, places) in sent {
            for (answered, at) in places.iter().enumerate() {
                let answer = self
                    .connections
                    .get_mut(&host)
                    .context("a connection was lost")?
                    .receive();
                match answer {
                    Ok(Value::Error(error)) => {
                        self.on_error(host, &keys[*at], &error)?;
                        *trouble = format!("host {host}: {error}");
                        again.push(*at);
                    }
                    Ok(value) => done(*at, value),
                    Err(error) => {
                        *trouble = format!("host {host}: {error}");
                        let rest = &places[answered..];
                        self.on_lost(host, keys, rest);
                        again.extend(rest);
                        break;
                    }
                }
            }
        }
        Ok(again)
    }

    fn send(
        &mut self,
        host: u64,
        operation: Operation,
        keys: &[String],
        places: &[usize],
    ) -> io::Result<()> {
        let connection = match self.connections.entry(host) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let address = self.hosts.redis[&host];
                entry.insert(Connection::open(address, PATIENCE)?)
            }
        };
        for at in places {
            let key = &keys[*at];
            match operation {
                Operation::Set => connection.push(&[
                    b"SET",
                    key.as_bytes(),
                    &value_of(key, self.hosts.value_bytes),
                ]),
                Operation::Get => connection.push(&[b"GET", key.as_bytes()]),
            }
        }
        connection.flush()
    }

    fn leader_of(&mut self, key: &str) -> u64 {
        let group = slots::group_of_key(key.as_bytes(), self.hosts.groups);
        *self.leaders.entry(group).or_insert(self.ids[0])
    }

    /// The host cannot be reached: its groups are asked for elsewhere.
    fn on_lost(&mut self, host: u64, keys: &[String], places: &[usize]) {
        self.connections.remove(&host);
        for at in places {
            self.ask_another(host, &keys[*at]);
        }
    }

    fn ask_another(&mut self, host: u64, key: &str) {
        let next = self
            .ids
            .iter()
            .copied()
            .find(|id| *id > host)
            .unwrap_or(self.ids[0]);
        self.leaders
            .insert(slots::group_of_key(key.as_bytes(), self.hosts.groups), next);
    }

    /// An answer that is not final says where or when to ask again.
    fn on_error(&mut self, host: u64, key: &str, error: &str) -> Result<()> {
        let mut words = error.split_whitespace();
        match words.next() {
            Some("MOVED") => {
                let address: SocketAddr = words
                    .nth(1)
                    .and_then(|address| address.parse().ok())
                    .with_context(|| format!("not a redirection: {error:?}"))?;
                let group = slots::group_of_key(key.as_bytes(), self.hosts.groups);
                let moved = self
                    .hosts
                    .redis
                    .iter()
                    .find(|(_, redis)| **redis == address);
                match moved {
                    Some((leader, _)) => drop(self.leaders.insert(group, *leader)),
                    // To a host that is gone, as long as the others do not know better.
                    None => self.ask_another(host, key),
                }
            }
            Some("CLUSTERDOWN") => self.ask_another(host, key),
            Some("TRYAGAIN" | "TIMEOUT") => {}
            _ => bail!("host {host} answered {error:?} for key {key}"),
        }
        Ok(())
    }
}

/// Reads every key from one host's own copy, and hands the answers to `done`.
pub(crate) fn read_locally(
    address: SocketAddr,
    keys: &[String],
    mut done: impl FnMut(usize, Value),
) -> Result<()> {
    let mut connection = Connection::open(address, PATIENCE)?;
    let answer = connection.call(&["READONLY"])?;
    if answer != Value::Simple("OK".to_owned()) {
        bail!("READONLY was answered {answer:?}");
    }
    for (window, keys) in keys.chunks(WINDOW).enumerate() {
        for key in keys {
            connection.push(&[b"GET", key.as_bytes()]);
        }
        connection.flush()?;
        for at in 0..keys.len() {
            done(window * WINDOW + at, connection.receive()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn values_differ_by_key_and_have_one_size() {
        assert_ne!(value_of("a", 64), value_of("b", 64));
        assert_eq!(value_of("a", 64), value_of("a", 64));
        assert_eq!(value_of("a", 64).len(), 64);
        assert!(
            value_of("a", 0) != value_of("b", 0),
            "whatever the size, values differ"
        );
    }

    /// Answers every read of a connection with the next of `answers`, then closes it.
    fn serve(answers: Vec<String>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut buffer = [0; 4096];
            for answer in answers {
                if stream.read(&mut buffer).expect("a command") == 0 {
                    return;
                }
                stream.write_all(answer.as_bytes()).expect("an open stream");
            }
        });
        address
    }

    fn set_one(redis: BTreeMap<u64, SocketAddr>) -> Result<Vec<(usize, Value)>> {
        let mut client = Client::new(Hosts {
            redis,
            groups: 4,
            value_bytes: 64,
        });
        let mut answers = Vec::new();
        client.run(
            Operation::Set,
            &["k".to_owned()],
            Duration::from_millis(300),
            |at, value| {
                answers.push((at, value));
            },
        )?;
        Ok(answers)
    }

    #[test]
    fn a_redirection_is_followed() {
        let second = serve(vec!["+OK\r\n".to_owned()]);
        let first = serve(vec![format!("-MOVED 3 {second}\r\n")]);
        let answers = set_one(BTreeMap::from([(1, first), (2, second)])).expect("it is set");
        assert_eq!(answers, vec![(0, Value::Simple("OK".to_owned()))]);
    }

    #[test]
    fn a_closed_connection_and_a_missing_leader_lead_to_the_next_host() {
        let second = serve(vec!["-CLUSTERDOWN no leader\r\n".to_owned()]);
        let third = serve(vec!["-TRYAGAIN busy\r\n".to_owned(), "+OK\r\n".to_owned()]);
        let first = serve(vec![String::new()]);
        let hosts = BTreeMap::from([(1, first), (2, second), (3, third)]);
        assert_eq!(set_one(hosts).expect("it is set").len(), 1);
    }

    #[test]
    fn a_redirection_to_a_host_that_is_gone_leads_to_the_next() {
        let second = serve(vec!["+OK\r\n".to_owned()]);
        let first = serve(vec!["-MOVED 3 127.0.0.1:1\r\n".to_owned()]);
        assert_eq!(
            set_one(BTreeMap::from([(1, first), (2, second)]))
                .expect("it is set")
                .len(),
            1
        );
    }

    #[test]
    fn an_unknown_answer_and_no_progress_are_errors() {
        let first = serve(vec!["-ERR what\r\n".to_owned()]);
        assert!(set_one(BTreeMap::from([(1, first)])).is_err());
        let nobody = TcpListener::bind("127.0.0.1:0")
            .and_then(|it| it.local_addr())
            .expect("a port");
        assert!(set_one(BTreeMap::from([(1, nobody)])).is_err());
    }
}
