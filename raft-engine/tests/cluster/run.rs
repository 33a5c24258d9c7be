//! One run: three hosts, some groups, clients, and a world that fails, all from one seed.

use std::sync::{Arc, Mutex};

use raft_engine::{Engine, Event, Events, Progress, WorkerId, Workers};
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{Envelope, GroupId, HostId, Time};

use crate::ids::{group, host, numbers, replica};
use crate::machine::Applications;
use crate::network::{Network, Outbox, outbox};
use crate::oracle::Book;
use crate::rng::Rng;

#[path = "run/checks.rs"]
mod checks;
#[path = "run/clients.rs"]
mod clients;
#[path = "run/faults.rs"]
mod faults;
#[path = "run/plans.rs"]
mod plans;
#[path = "run/streams.rs"]
mod streams;

use clients::PendingRead;
use plans::Plan;
use streams::Stream;

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;
/// The founders, and one that joins.
const FOUNDERS: u64 = 3;
const HOSTS: u64 = 4;
const CACHE_BYTES_MAX: usize = 64 << 10;
const UNCOMMITTED_BYTES_MAX: usize = 128 << 10;
/// A group's core may hold no more than this, whatever happens: its cache, what is not committed
/// or not durable yet, and as much again for what is on its way.
const GROUP_MEMORY_BYTES_MAX: usize = 2 * (CACHE_BYTES_MAX + UNCOMMITTED_BYTES_MAX);

/// A moment of simulated time that takes more rounds of polls than this never ends.
const PASS_ROUNDS_MAX: usize = 100_000;

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub groups: u64,
    pub chaos_seconds: u64,
    pub test_ack_before_sync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            groups: 2,
            chaos_seconds: 6,
            test_ack_before_sync: false,
        }
    }
}

/// What a run did and found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub trace: u64,
    pub violations: Vec<String>,
    pub acknowledged: u64,
    pub applied: u64,
    pub crashes: u64,
    pub snapshots: u64,
    pub streamed: u64,
    pub reads: u64,
    /// Membership changes seen to be in force.
    pub changes: u64,
    /// Votes given, each replica's once a term.
    pub votes: u64,
    /// Segments of logs that were filled.
    pub sealed: u64,
    /// Bytes that logs moved forward.
    pub moved_bytes: u64,
    /// Snapshots taken away from a replica that was down.
    pub lost_snapshots: u64,
    /// Groups that were found quiet.
    pub quiet: u64,
    /// The most that a group's core held.
    pub memory_bytes: usize,
}

struct NoEvents;

impl Events for NoEvents {
    fn event(&self, _event: Event) {}
}

struct Host {
    id: HostId,
    vfs: Arc<SimVfs>,
    outbox: Arc<Outbox>,
    running: Option<(Engine, Workers)>,
    /// The same in all its lives.
    seed: u64,
    /// How often its data directory was opened.
    opens: u64,
    /// When a crashed host comes back.
    restart_at: Option<Time>,
    /// Each worker's next deadline, as it said itself.
    deadline: Option<Time>,
}

pub struct Run {
    rng: Rng,
    now: Time,
    options: Options,
    /// The same on every host: how soon groups fall quiet, if ever, and how long a lease is.
    quiesce_timeouts: u64,
    lease_ticks: u64,
    hosts: Vec<Host>,
    network: Network,
    applications: Arc<Mutex<Applications>>,
    book: Arc<Mutex<Book>>,
    next_number: u64,
    reads: Vec<PendingRead>,
    streams: Vec<Stream>,
    /// When every group of every running host is asked for a snapshot that leaves no log behind.
    squeezes: Vec<Time>,
    /// How far the plan of each group's membership has come.
    plans: Vec<Plan>,
    next_admin: Time,
    report: Report,
    is_calm: bool,
}

impl Run {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let hosts = (1..=HOSTS)
            .map(|id| Host {
                id: host(id),
                vfs: disk(rng.next()),
                outbox: outbox(),
                running: None,
                seed: rng.next(),
                opens: 0,
                restart_at: Some(Time(0)),
                deadline: None,
            })
            .collect();
        let groups = 1..=options.groups;
        let plans = groups.map(|number| Plan {
            group: group(number),
            victim: replica(1 + rng.below(HOSTS)),
            done: 0,
        });
        let plans = plans.collect();
        let next_admin = Time(rng.below(2 * SECOND));
        let mut network = Network::default();
        network.loss_percent = rng.below(6);
        network.delay_max_nanos = MILLISECOND * (1 + rng.below(20));
        let quiesce_timeouts = rng.below(3);
        let lease_ticks = if rng.one_in(2) { 25 } else { 0 };
        Self {
            quiesce_timeouts,
            lease_ticks,
            rng,
            now: Time(0),
            options,
            hosts,
            network,
            applications: Arc::default(),
            book: Arc::default(),
            next_number: 1,
            reads: Vec::new(),
            streams: Vec::new(),
            squeezes: Vec::new(),
            plans,
            next_admin,
            report: Report::default(),
            is_calm: false,
        }
    }

    /// Lets the world fail for a while, then heals it, waits for calm, and checks.
    pub fn go(mut self) -> Report {
        let chaos_end = Time(self.options.chaos_seconds * SECOND);
        let mut next_fault = Time(self.rng.below(SECOND));
        let mut next_client = Time(0);
        while self.now < chaos_end {
            if self.now >= next_fault {
                self.fault();
                next_fault = self
                    .now
                    .plus_nanos(50 * MILLISECOND + self.rng.below(400 * MILLISECOND));
            }
            if self.now >= next_client {
                self.client();
                // Now and then nobody asks for anything, for so long that groups fall quiet.
                let pause_max = if self.rng.one_in(300) {
                    2 * SECOND
                } else {
                    12 * MILLISECOND
                };
                next_client = self.now.plus_nanos(self.rng.below(pause_max));
            }
            self.squeeze();
            self.administer();
            self.pass();
            self.advance(next_fault.min(next_client).min(self.next_admin));
        }
        self.heal();
        let deadline = self.now.plus_nanos(60 * SECOND);
        let mut calm_until = None;
        loop {
            self.administer();
            self.pass();
            if calm_until.is_none_or(|at| self.now >= at) {
                if self.has_settled() {
                    break;
                }
                calm_until = Some(self.now.plus_nanos(500 * MILLISECOND));
            }
            if self.now >= deadline {
                self.violation("the cluster did not settle within 60 s of calm".to_owned());
                break;
            }
            let at = calm_until.unwrap_or(deadline).min(self.next_admin);
            self.advance(at);
        }
        self.finish()
    }

    /// Everything that can be done now, in an order drawn from the seed.
    fn pass(&mut self) {
        self.restart_due();
        for host in &self.hosts {
            host.vfs.set_now(self.now);
        }
        for _ in 0..PASS_ROUNDS_MAX {
            let mut order = Vec::new();
            for (at, host) in self.hosts.iter().enumerate() {
                if let Some((_, workers)) = &host.running {
                    order.extend(workers.ids().into_iter().map(|worker| (at, worker)));
                }
            }
            self.shuffle(&mut order);
            let mut is_idle = true;
            for host in &mut self.hosts {
                host.deadline = None;
            }
            for (at, worker) in order {
                is_idle &= self.poll(at, worker);
            }
            is_idle &= self.carry();
            self.finish_reads();
            if is_idle {
                return;
            }
        }
        panic!("at {:?} the engines never come to rest", self.now);
    }

    fn poll(&mut self, at: usize, worker: WorkerId) -> bool {
        let host = &mut self.hosts[at];
        let Some((_, workers)) = &mut host.running else {
            return true;
        };
        match workers.poll(worker, self.now) {
            Progress::More => false,
            Progress::Idle { until } => {
                host.deadline = earliest(host.deadline, until);
                true
            }
        }
    }

    /// Moves what was sent onto the network, and what is due off it.
    fn carry(&mut self) -> bool {
        let mut is_idle = true;
        for at in 0..self.hosts.len() {
            let from = self.hosts[at].id;
            let outbox = Arc::clone(&self.hosts[at].outbox);
            let sent = std::mem::take(&mut *outbox.messages.lock().expect("no panic under it"));
            for (to, envelopes) in sent {
                is_idle = false;
                self.network
                    .send(self.now, &mut self.rng, from, to, &envelopes);
            }
            let streams = std::mem::take(&mut *outbox.snapshots.lock().expect("no panic under it"));
            for (to, transfer) in streams {
                is_idle = false;
                self.open_stream(from, to, transfer);
            }
        }
        while let Some(packet) = self.network.take_due(self.now) {
            is_idle = false;
            let target = self.hosts.iter().find(|host| host.id == packet.to);
            if let Some((engine, _)) = target.and_then(|host| host.running.as_ref()) {
                let envelopes = packet
                    .messages
                    .into_iter()
                    .map(|bytes| Envelope::decode(bytes).expect("our own encoding decodes"))
                    .collect();
                engine.deliver(packet.from, envelopes);
            }
        }
        self.carry_streams() && is_idle
    }

    /// Moves time to the next thing that happens.
    fn advance(&mut self, limit: Time) {
        let mut next = limit;
        for host in &self.hosts {
            if host.running.is_some() {
                next = next.min(host.deadline.unwrap_or(limit));
                next = next.min(host.vfs.next_completion_time().unwrap_or(limit));
            }
            next = next.min(host.restart_at.unwrap_or(limit));
        }
        next = next.min(self.network.next_time().unwrap_or(limit));
        for stream in &self.streams {
            next = next.min(stream.next_at);
        }
        self.now = next.max(self.now.plus_nanos(1_000));
    }

    fn violation(&mut self, text: String) {
        self.report.violations.push(text);
    }

    fn pick_host(&mut self) -> usize {
        usize::try_from(self.rng.below(HOSTS)).expect("small")
    }

    fn pick_group(&mut self) -> GroupId {
        group(1 + self.rng.below(self.options.groups))
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = self.rng.below(at as u64 + 1);
            items.swap(at, usize::try_from(other).expect("small"));
        }
    }
}

/// A disk with an empty data directory.
fn disk(seed: u64) -> Arc<SimVfs> {
    let vfs = SimVfs::new(seed);
    vfs.create_dir_all("/data".as_ref())
        .expect("an empty disk takes a directory");
    vfs.sync_dir("/".as_ref()).expect("and syncs it");
    Arc::new(vfs)
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
