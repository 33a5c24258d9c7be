//! Measures three engines in one process: real files and syncs, links in memory.
//!
//! `cargo run --release -p raft-engine --example bench_engine -- --help`
//!
//! A closed loop without client threads: whoever completes a command proposes the next. What is
//! left out against a cluster of three processes is the network stack, the encoding of messages
//! and the futures; what is in is everything else. The conditions are part of the output.

#![expect(clippy::print_stdout, reason = "a program that prints")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Parser;
use hdrhistogram::Histogram;
use raft_engine::{
    Applied, Command, Completion, Engine, EngineConfig, Event, Events, Outbound, Parts,
    RequestError, Responder, SaveCursor, SaveStep, SnapshotRead, SnapshotTransfer, Start,
    StartGroup, StateMachine, StateMachineError,
};
use raft_log::LaneOptions;
use raft_log::vfs::StdVfs;
use raft_proto::{Envelope, GroupId, HostId, ReplicaId};

const HOSTS: u64 = 3;
const WARM_UP: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let temporary = tempfile::tempdir()?;
    let dir = options
        .dir
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    let links: Arc<Links> = Arc::default();
    let (led, leaders) = mpsc::channel();
    let mut running = Vec::new();
    for id in 1..=HOSTS {
        let host = HostId::new(id).ok_or("no id")?;
        let parts = Parts {
            vfs: Arc::new(StdVfs::default()),
            data_dir: host_dir(&dir, id)?,
            lane: LaneOptions::default(),
            outbound: Arc::new(Link {
                from: host,
                links: Arc::clone(&links),
            }),
            events: Arc::new(Ear {
                host: id,
                led: Mutex::new(led.clone()),
            }),
        };
        let config = EngineConfig {
            seed: id,
            ..EngineConfig::default()
        };
        let (engine, workers) = Engine::open(config, parts)?;
        links.engines[slot(id)]
            .set(engine.clone())
            .map_err(|_| "opened twice")?;
        running.push((engine, workers.spawn()));
    }
    for (at, (engine, _)) in running.iter().enumerate() {
        for group in 1..=options.groups {
            start(engine, u64::try_from(at)? + 1, group)?;
        }
    }
    let mut leader_of: BTreeMap<u64, u64> = BTreeMap::new();
    while leader_of.len() < usize::try_from(options.groups)? {
        let (host, group) = leaders.recv_timeout(Duration::from_secs(30))?;
        leader_of.insert(group, host);
    }
    spread(&running, &leaders, &mut leader_of)?;

    let bench = Arc::new(Bench::new(&options)?);
    for n in 0..options.outstanding {
        let group = 1 + n % options.groups;
        let (engine, _) = &running[slot(leader_of[&group])];
        let client = Arc::new(Client {
            bench: Arc::clone(&bench),
            engine: engine.clone(),
            group: GroupId::new(group).ok_or("no id")?,
            began_nanos: AtomicU64::new(0),
        });
        client.next();
    }
    std::thread::sleep(WARM_UP);
    let before = syncs(&running);
    let cpu_before = cpu_micros()?;
    bench.is_counting.store(true, Ordering::Release);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    bench.is_counting.store(false, Ordering::Release);
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_micros()? - cpu_before;
    let syncs = syncs(&running) - before;
    bench.is_over.store(true, Ordering::Release);
    drop(running);
    report(&options, &bench, seconds, cpu, syncs)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn report(
    options: &Options,
    bench: &Bench,
    seconds: f64,
    cpu_micros: u64,
    syncs: u64,
) -> Result<(), Box<dyn Error>> {
    let micros = bench.micros.lock().map_err(|_| "a client panicked")?;
    let writes = micros.len();
    let outcome = serde_json::json!({
        "hosts": HOSTS, "groups": options.groups, "payload_bytes": options.payload,
        "outstanding": options.outstanding, "seconds": seconds,
        "writes_per_s": writes as f64 / seconds,
        "p50_us": micros.value_at_quantile(0.5), "p99_us": micros.value_at_quantile(0.99),
        "us_cpu_per_write": cpu_micros as f64 / writes as f64,
        "fdatasync_per_s_and_host": syncs as f64 / seconds / HOSTS as f64,
        "errors": bench.errors.load(Ordering::Relaxed),
        "conditions": "one process, links in memory, no client threads, default settings",
    });
    if options.is_json {
        println!("{outcome}");
    } else {
        println!("{outcome:#}");
    }
    Ok(())
}

#[derive(Parser)]
#[command(about = "Measures three engines in one process: real files and syncs, links in memory")]
struct Options {
    /// Number of groups.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=4096))]
    groups: u64,
    /// Bytes of a command.
    #[arg(long, default_value_t = 16)]
    payload: usize,
    /// Commands under way at once, over all groups.
    #[arg(long, default_value_t = 20_000)]
    outstanding: u64,
    /// How long to measure, after two seconds that are not counted.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where the hosts keep their data; a temporary directory unless given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Prints one line of JSON.
    #[arg(long = "json")]
    is_json: bool,
}

fn slot(host: u64) -> usize {
    usize::try_from(host - 1).expect("three hosts")
}

fn host_dir(dir: &Path, host: u64) -> Result<PathBuf, Box<dyn Error>> {
    let dir = dir.join(format!("host-{host}"));
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn syncs(running: &[(Engine, raft_engine::RunningWorkers)]) -> u64 {
    let of = |(_, workers): &(Engine, raft_engine::RunningWorkers)| workers.stats().lane.fdatasyncs;
    running.iter().map(of).sum()
}

/// User and system time of this process so far; Linux counts it in hundredths of a second.
fn cpu_micros() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("unreadable stat")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(ticks * 10_000)
}

fn start(engine: &Engine, host: u64, group: u64) -> Result<(), Box<dyn Error>> {
    let members = (1..=HOSTS)
        .map(|id| Some((ReplicaId::new(id)?, HostId::new(id)?)))
        .collect::<Option<BTreeMap<_, _>>>()
        .ok_or("no id")?;
    let started = Arc::new(Answer::<()>::default());
    let completion: Arc<Answer<()>> = Arc::clone(&started);
    engine.start_group(
        StartGroup {
            group: GroupId::new(group).ok_or("no id")?,
            replica: ReplicaId::new(host).ok_or("no id")?,
            epoch: 1,
            start: Start::Bootstrap { members },
            machine: Box::new(Counter::default()),
        },
        Responder::new(completion),
    );
    started.wait()?;
    Ok(())
}

/// Moves leaderships until group g is led by host (g - 1) % 3 + 1.
fn spread(
    running: &[(Engine, raft_engine::RunningWorkers)],
    leaders: &mpsc::Receiver<(u64, u64)>,
    leader_of: &mut BTreeMap<u64, u64>,
) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        while let Ok((host, group)) = leaders.try_recv() {
            leader_of.insert(group, host);
        }
        let wanted = |group: u64| (group - 1) % HOSTS + 1;
        let mut is_spread = true;
        for (&group, &leader) in leader_of.iter() {
            if leader == wanted(group) {
                continue;
            }
            is_spread = false;
            let moved = Arc::new(Answer::<()>::default());
            let completion: Arc<Answer<()>> = Arc::clone(&moved);
            running[slot(leader)].0.transfer_leadership(
                GroupId::new(group).ok_or("no id")?,
                ReplicaId::new(wanted(group)).ok_or("no id")?,
                Responder::new(completion),
            );
            // Refused or lost to another change of leader: the next round sees.
            drop(moved.wait());
        }
        if is_spread {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("the leaders did not spread".into());
        }
    }
}

/// A one-time answer that a thread can wait for.
struct Answer<T> {
    outcome: Mutex<Option<Result<T, RequestError>>>,
    changed: std::sync::Condvar,
}

impl<T> Default for Answer<T> {
    fn default() -> Self {
        Self {
            outcome: Mutex::new(None),
            changed: std::sync::Condvar::new(),
        }
    }
}

impl<T: Send> Completion<T> for Answer<T> {
    fn complete(&self, outcome: Result<T, RequestError>) {
        if let Ok(mut held) = self.outcome.lock() {
            *held = Some(outcome);
        }
        self.changed.notify_all();
    }
}

impl<T> Answer<T> {
    fn wait(&self) -> Result<T, Box<dyn Error>> {
        let mut held = self.outcome.lock().map_err(|_| "a worker panicked")?;
        loop {
            if let Some(outcome) = held.take() {
                return Ok(outcome?);
            }
            held = self.changed.wait(held).map_err(|_| "a worker panicked")?;
        }
    }
}

#[derive(Default)]
struct Links {
    engines: [OnceLock<Engine>; 3],
}

/// Hands messages straight to the other engine's inbox.
struct Link {
    from: HostId,
    links: Arc<Links>,
}

impl Outbound for Link {
    fn send(&self, to: HostId, messages: Vec<Envelope>) {
        if let Some(engine) = self.links.engines[slot(to.get())].get() {
            engine.deliver(self.from, messages);
        }
    }

    fn send_snapshot(&self, _to: HostId, transfer: SnapshotTransfer) {
        transfer.report.failed();
    }
}

/// Hears who leads what.
struct Ear {
    host: u64,
    led: Mutex<mpsc::Sender<(u64, u64)>>,
}

impl Events for Ear {
    fn event(&self, event: Event) {
        if let Event::LeaderChanged { group, leader, .. } = event
            && leader.is_some_and(|leader| leader.get() == self.host)
            && let Ok(led) = self.led.lock()
        {
            // Nobody listens any more once the clients run.
            let _ = led.send((self.host, group.get()));
        }
    }
}

struct Bench {
    began: Instant,
    payload: Bytes,
    micros: Mutex<Histogram<u64>>,
    errors: AtomicU64,
    is_counting: AtomicBool,
    is_over: AtomicBool,
}

impl Bench {
    fn new(options: &Options) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            began: Instant::now(),
            payload: Bytes::from(vec![7; options.payload]),
            micros: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
            errors: AtomicU64::new(0),
            is_counting: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        })
    }

    fn now_nanos(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// One command at a time, for ever.
struct Client {
    bench: Arc<Bench>,
    engine: Engine,
    group: GroupId,
    began_nanos: AtomicU64,
}

impl Client {
    fn next(self: &Arc<Self>) {
        self.began_nanos
            .store(self.bench.now_nanos(), Ordering::Relaxed);
        let completion = Arc::new(Again(Arc::clone(self)));
        self.engine.propose(
            self.group,
            self.bench.payload.clone(),
            None,
            Responder::new(completion),
        );
    }
}

struct Again(Arc<Client>);

impl Completion<Applied> for Again {
    fn complete(&self, outcome: Result<Applied, RequestError>) {
        let client = &self.0;
        let bench = &client.bench;
        if bench.is_over.load(Ordering::Relaxed) {
            return;
        }
        match outcome {
            Ok(_) if bench.is_counting.load(Ordering::Relaxed) => {
                let nanos = bench.now_nanos() - client.began_nanos.load(Ordering::Relaxed);
                if let Ok(mut micros) = bench.micros.lock() {
                    micros.saturating_record(nanos / 1_000);
                }
            }
            Ok(_) => {}
            Err(_) => {
                // A client that lost its leader stops; the figure below says how many.
                bench.errors.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        client.next();
    }
}

/// Counts its commands.
#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _command: Command<'_>) -> Result<Bytes, StateMachineError> {
        self.0 += 1;
        Ok(Bytes::new())
    }

    fn query(&mut self, _query: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn save_next(
        &mut self,
        _cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        out.extend_from_slice(&self.0.to_le_bytes());
        Ok(SaveStep::Done)
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        let bytes = source.next()?.unwrap_or_default();
        let bytes = bytes
            .as_ref()
            .try_into()
            .map_err(|_| StateMachineError("a counter has eight bytes".to_owned()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}
