//! The test: starts the hosts, kills them, and asks what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::authority::Authority;

const HOSTS: u64 = 3;
/// How often they are killed, unless `FLOTILLA_KILLS` says otherwise.
const KILLS: u64 = 20;
/// Numbers that must be acknowledged between two kills, over all hosts.
const ACKNOWLEDGED_MIN: usize = 300;
/// Numbers of one life of one host.
const NUMBERS: u64 = 1 << 32;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::in_dir(dir.path());
    for host in 1..=HOSTS {
        authority.certify(host, &format!("h{host}.kill.raft"));
    }
    let addresses = free_addresses();
    let kills = std::env::var("FLOTILLA_KILLS").map_or(KILLS, |kills| {
        kills.parse().expect("FLOTILLA_KILLS is a number")
    });
    let mut acknowledged = BTreeSet::new();
    for life in 0..kills {
        let mut fleet = Fleet::start(dir.path(), &addresses, life);
        let mut fresh = 0;
        while fresh < ACKNOWLEDGED_MIN {
            if let Said::Acknowledged(number) = fleet.next(life) {
                fresh += 1;
                assert!(
                    acknowledged.insert(number),
                    "{number} was acknowledged twice"
                );
            }
        }
        // What was said before the end counts as well.
        acknowledged.extend(fleet.kill());
    }
    let mut fleet = Fleet::start(dir.path(), &addresses, kills);
    fleet.tell("quiet");
    // Numbers of this life may still be under way; those of earlier ones are settled.
    for at in 0..usize::try_from(HOSTS).expect("three") {
        let found = fleet.read(at);
        let unique: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(found.len(), unique.len(), "a number was applied twice");
        let lost: Vec<&u64> = acknowledged.difference(&unique).take(5).collect();
        assert!(
            lost.is_empty(),
            "host {}: acknowledged and lost: {lost:?}",
            at + 1
        );
    }
    fleet.stop();
    println!(
        "{kills} kills, {} acknowledged numbers, none lost",
        acknowledged.len()
    );
    report(&serde_json::json!({
        "suite": "kill -9 of all hosts", "cases": kills, "acknowledged": acknowledged.len(),
    }));
}

/// What a host says.
enum Said {
    Acknowledged(u64),
    All(Vec<u64>),
    Again,
}

struct Fleet {
    children: Vec<Child>,
    inputs: Vec<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    said: Receiver<(usize, Said)>,
}

impl Fleet {
    fn start(dir: &Path, addresses: &BTreeMap<u64, SocketAddr>, life: u64) -> Self {
        let program = std::env::current_exe().expect("this program");
        let all: Vec<String> = addresses
            .iter()
            .map(|(host, address)| format!("{host}={address}"))
            .collect();
        let (sender, said) = channel();
        let mut fleet = Self {
            children: Vec::new(),
            inputs: Vec::new(),
            readers: Vec::new(),
            said,
        };
        for host in 1..=HOSTS {
            let mut child = Command::new(&program)
                .env(super::super::HOST, host.to_string())
                .env("FLOTILLA_TEST_DIR", dir)
                .env("FLOTILLA_TEST_ADDRESSES", all.join(","))
                .env(
                    "FLOTILLA_TEST_FIRST",
                    ((life * HOSTS + host) * NUMBERS).to_string(),
                )
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a process");
            fleet.inputs.push(child.stdin.take().expect("piped"));
            let out = BufReader::new(child.stdout.take().expect("piped"));
            let (sender, at) = (sender.clone(), fleet.children.len());
            fleet.readers.push(std::thread::spawn(move || {
                for said in whole_lines(out).map(|line| parse(&line)) {
                    if sender.send((at, said)).is_err() {
                        return;
                    }
                }
            }));
            fleet.children.push(child);
        }
        fleet
    }

    fn next(&mut self, life: u64) -> Said {
        match self.said.recv_timeout(PATIENCE) {
            Ok((_, said)) => said,
            Err(error) => panic!("life {life}: no host says anything: {error}"),
        }
    }

    /// Kills all at once and returns what they had acknowledged that was not yet looked at.
    fn kill(mut self) -> Vec<u64> {
        for child in &mut self.children {
            child.kill().expect("it is killed");
        }
        for child in &mut self.children {
            child.wait().expect("it has ended");
        }
        for reader in self.readers.drain(..) {
            reader.join().expect("no panic");
        }
        let numbers = self.said.try_iter().filter_map(|(_, said)| match said {
            Said::Acknowledged(number) => Some(number),
            Said::All(_) | Said::Again => None,
        });
        numbers.collect()
    }

    fn tell(&mut self, line: &str) {
        for input in &mut self.inputs {
            writeln!(input, "{line}").expect("it listens");
        }
    }

    /// Reads linearizably through one host, until it answers.
    fn read(&mut self, at: usize) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            writeln!(self.inputs[at], "read").expect("it listens");
            loop {
                match self.said.recv_timeout(PATIENCE).expect("an answer") {
                    (from, Said::All(found)) if from == at => return found,
                    (from, Said::Again) if from == at => break,
                    _ => {}
                }
            }
        }
        panic!("host {} does not answer a read", at + 1);
    }

    fn stop(mut self) {
        self.inputs.clear();
        for child in &mut self.children {
            assert!(child.wait().expect("it has ended").success());
        }
    }
}

/// Lines with their end: what a killed process began to say is not said.
fn whole_lines(mut from: impl BufRead) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let mut line = String::new();
        from.read_line(&mut line).ok()?;
        line.strip_suffix('\n').map(str::to_owned)
    })
}

fn parse(line: &str) -> Said {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    match line.split_once(' ') {
        Some(("acknowledged", text)) => Said::Acknowledged(number(text)),
        Some(("all", text)) => Said::All(text.split_whitespace().map(number).collect()),
        _ => Said::Again,
    }
}

fn free_addresses() -> BTreeMap<u64, SocketAddr> {
    let held: Vec<UdpSocket> = (0..HOSTS)
        .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let addresses = held
        .iter()
        .map(|socket| socket.local_addr().expect("bound"));
    (1..).zip(addresses).collect()
}

/// Adds a line to the file named by `RAFT_TEST_REPORT`.
fn report(line: &serde_json::Value) {
    if let Some(path) = std::env::var_os("RAFT_TEST_REPORT") {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        let mut file = file.expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}
