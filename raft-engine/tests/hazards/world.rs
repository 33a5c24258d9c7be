//! Some hosts in one thread: real engines, simulated disks, links and time, and hands on all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use raft_engine::{
    Applied, Completion, Engine, EngineConfig, Event, Events, GroupStatus, Outbound, Parts,
    Progress, ReceivedSnapshot, RequestError, Responder, SnapshotOutcome, SnapshotRequest,
    SnapshotTransfer, Start, StartGroup, StateMachine, Workers,
};
use raft_log::LaneOptions;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{Body, Envelope, GroupId, HostId, Role, Time};

pub use crate::ids::{group, host, numbers, replica};
use crate::machine::{Applications, ListMachine, filler};
use crate::oracle::Slot;
use crate::promises::Promises;

pub const MILLISECOND: u64 = 1_000_000;
const DELAY_NANOS: u64 = 200_000;

/// What a host sent, and what it said.
#[derive(Default)]
pub struct Ear {
    messages: Mutex<Vec<(HostId, Vec<Envelope>)>>,
    transfers: Mutex<VecDeque<(HostId, SnapshotTransfer)>>,
    pub events: Mutex<Vec<Event>>,
}

impl Outbound for Ear {
    fn send(&self, to: HostId, messages: Vec<Envelope>) {
        self.messages
            .lock()
            .expect("no panic under it")
            .push((to, messages));
    }

    fn send_snapshot(&self, to: HostId, transfer: SnapshotTransfer) {
        self.transfers
            .lock()
            .expect("no panic under it")
            .push_back((to, transfer));
    }
}

impl Events for Ear {
    fn event(&self, event: Event) {
        self.events.lock().expect("no panic under it").push(event);
    }
}

pub struct Host {
    pub id: HostId,
    pub vfs: Arc<SimVfs>,
    pub ear: Arc<Ear>,
    pub running: Option<(Engine, Workers)>,
    /// How often its data directory was opened.
    opens: u64,
    deadline: Option<Time>,
}

type Machines = Box<dyn Fn(HostId, GroupId, ListMachine) -> Box<dyn StateMachine>>;

/// The hosts and what lies between them. Host `n` has replica `n` of every group.
pub struct World {
    pub now: Time,
    pub hosts: Vec<Host>,
    pub groups: Vec<GroupId>,
    /// How many of the hosts found the groups; others join.
    pub founders: u64,
    pub config: EngineConfig,
    pub lane: LaneOptions,
    pub applications: Arc<Mutex<Applications>>,
    pub promises: Promises,
    /// Hosts that hear and are heard of nothing.
    pub cut: BTreeSet<HostId>,
    /// Hosts whose threads stand still: what comes gathers in their inboxes.
    pub paused: BTreeSet<HostId>,
    /// Messages sent by each host for each group.
    sent: BTreeMap<(HostId, GroupId), u64>,
    /// The lives in which hosts forwarded reads.
    pub reading_lives: BTreeSet<(HostId, GroupId, u64)>,
    /// Where snapshots are said to come from, if not from where they come from.
    pub snapshots_from: Option<HostId>,
    machines: Machines,
    in_flight: BTreeMap<(Time, u64), (HostId, HostId, Vec<Envelope>)>,
    sequence: u64,
}

pub fn command(number: u64) -> Bytes {
    let mut command = BytesMut::new();
    command.put_u64_le(number);
    command.put_bytes(filler(number), 100);
    command.freeze()
}

impl World {
    /// Hosts with empty disks, not running.
    pub fn new(seed: u64, hosts: u64, groups: u64) -> Self {
        let hosts_made = (1..=hosts).map(|id| {
            let vfs = SimVfs::new(seed.wrapping_mul(31).wrapping_add(id));
            vfs.create_dir_all("/data".as_ref()).expect("an empty disk");
            vfs.sync_dir("/".as_ref()).expect("an empty disk");
            Host {
                id: host(id),
                vfs: Arc::new(vfs),
                ear: Arc::default(),
                running: None,
                opens: 0,
                deadline: None,
            }
        });
        Self {
            now: Time(0),
            hosts: hosts_made.collect(),
            groups: (1..=groups).map(group).collect(),
            founders: hosts,
            config: EngineConfig {
                job_workers: 1,
                seed,
                ..EngineConfig::default()
            },
            lane: LaneOptions {
                segment_size_bytes: 64 << 10,
                record_bytes_max: 16 << 10,
                ..LaneOptions::default()
            },
            applications: Arc::default(),
            promises: Promises::default(),
            cut: BTreeSet::new(),
            paused: BTreeSet::new(),
            sent: BTreeMap::new(),
            reading_lives: BTreeSet::new(),
            snapshots_from: None,
            machines: Box::new(|_, _, machine| Box::new(machine)),
            in_flight: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Hosts that run, with a leader for each group.
    pub fn running(seed: u64, hosts: u64, groups: u64) -> Self {
        let mut world = Self::new(seed, hosts, groups);
        world.start_all();
        world.await_leaders();
        world
    }

    /// Wraps the state machines of groups started from now on.
    pub fn machines(
        &mut self,
        make: impl Fn(HostId, GroupId, ListMachine) -> Box<dyn StateMachine> + 'static,
    ) {
        self.machines = Box::new(make);
    }

    pub fn start_all(&mut self) {
        for at in 0..self.hosts.len() {
            if self.hosts[at].running.is_none() {
                for (group, outcome) in self.start(at) {
                    outcome.unwrap_or_else(|error| panic!("group {group}: {error}"));
                }
            }
        }
    }

    /// Opens a host and starts its groups; what came of each group.
    pub fn start(&mut self, at: usize) -> Vec<(GroupId, Result<(), RequestError>)> {
        self.open(at);
        let groups = self.groups.clone();
        groups
            .into_iter()
            .map(|group| (group, self.start_group(at, group, None)))
            .collect()
    }

    pub fn open(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        host.vfs.set_now(self.now);
        host.ear = Arc::default();
        host.opens += 1;
        let parts = Parts {
            vfs: Arc::clone(&host.vfs) as Arc<dyn Vfs>,
            data_dir: PathBuf::from("/data"),
            lane: self.lane.clone(),
            outbound: Arc::clone(&host.ear) as Arc<_>,
            events: Arc::clone(&host.ear) as Arc<_>,
        };
        let config = EngineConfig {
            seed: self.config.seed.wrapping_add(host.id.get()),
            open_count: host.opens,
            ..self.config.clone()
        };
        host.running = Some(Engine::open(config, parts).expect("the host opens"));
    }

    /// Starts a group, as fits what is on the disk unless it is said how; waits for the answer.
    pub fn start_group(
        &mut self,
        at: usize,
        group: GroupId,
        start: Option<Start>,
    ) -> Result<(), RequestError> {
        let id = self.hosts[at].id;
        let start = start.unwrap_or_else(|| {
            let known = self.engine(at).recovered();
            if known.iter().any(|known| known.group == group) {
                Start::Restart
            } else if id.get() <= self.founders {
                let members = 1..=self.founders;
                Start::Bootstrap {
                    members: members.map(|id| (replica(id), host(id))).collect(),
                }
            } else {
                Start::Join
            }
        });
        let machine = ListMachine::new(id, group, Arc::clone(&self.applications));
        let start = StartGroup {
            group,
            replica: replica(id.get()),
            epoch: 1,
            start,
            machine: (self.machines)(id, group, machine),
        };
        self.ask(at, |engine, responder| engine.start_group(start, responder))
    }

    /// Kills the process: what it had not synced is in the page cache still.
    pub fn kill(&mut self, at: usize) {
        self.end(at);
        self.hosts[at].vfs.kill_process();
    }

    fn end(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        // It ends before what is dropped waits for anything.
        host.vfs.set_hung(true);
        host.running = None;
        let id = host.id;
        self.in_flight.retain(|_, (_, to, _)| *to != id);
    }

    /// Cuts the power: what was not synced is lost, or not, or half.
    pub fn crash(&mut self, at: usize) {
        self.end(at);
        self.hosts[at].vfs.crash();
    }

    pub fn engine(&self, at: usize) -> Engine {
        let running = self.hosts[at].running.as_ref();
        running.expect("the host runs").0.clone()
    }

    /// Asks a host something and waits for the answer, ten simulated seconds at most.
    pub fn ask<T: Send + 'static>(
        &mut self,
        at: usize,
        ask: impl FnOnce(&Engine, Responder<T>),
    ) -> Result<T, RequestError> {
        let slot = self.ask_later(at, ask);
        self.answer(&slot)
    }

    pub fn ask_later<T: Send + 'static>(
        &mut self,
        at: usize,
        ask: impl FnOnce(&Engine, Responder<T>),
    ) -> Arc<Slot<T>> {
        let slot: Arc<Slot<T>> = Slot::new();
        let completion: Arc<dyn Completion<T>> = Arc::clone(&slot) as Arc<_>;
        ask(&self.engine(at), Responder::new(completion));
        slot
    }

    pub fn answer<T: Send + 'static>(&mut self, slot: &Arc<Slot<T>>) -> Result<T, RequestError> {
        let mut answer = None;
        self.run_until("an answer", |_| {
            answer = slot.take();
            answer.is_some()
        });
        answer.expect("it was just there")
    }

    pub fn propose(
        &mut self,
        at: usize,
        group: GroupId,
        number: u64,
    ) -> Result<Applied, RequestError> {
        self.ask(at, |engine, responder| {
            engine.propose(group, command(number), None, responder);
        })
    }

    pub fn snapshot(
        &mut self,
        at: usize,
        group: GroupId,
        request: SnapshotRequest,
    ) -> Result<SnapshotOutcome, RequestError> {
        self.ask(at, |engine, responder| {
            engine.request_snapshot(group, request, responder);
        })
    }

    pub fn status(&mut self, at: usize, group: GroupId) -> GroupStatus {
        self.ask(at, |engine, responder| engine.status(group, responder))
            .expect("the group runs")
    }

    /// What the host's machine holds.
    pub fn list(&mut self, at: usize, group: GroupId) -> Vec<u64> {
        let list = self.ask(at, |engine, responder| {
            engine.read_stale(group, Bytes::new(), responder);
        });
        numbers(&list.expect("the group runs"))
    }

    /// Waits for a leader of every group and returns the first group's place.
    pub fn await_leaders(&mut self) -> usize {
        let groups = self.groups.clone();
        let leaders: Vec<usize> = groups.into_iter().map(|group| self.leader(group)).collect();
        leaders[0]
    }

    /// Waits for a leader of `group` that has committed in its term.
    pub fn leader(&mut self, group: GroupId) -> usize {
        for _ in 0..400 {
            for at in 0..self.hosts.len() {
                if !self.is_there(at) {
                    continue;
                }
                let status = self.ask(at, |engine, responder| engine.status(group, responder));
                if let Ok(status) = status
                    && status.role == Role::Leader
                    && status.failed.is_none()
                    && status.commit == status.last
                {
                    return at;
                }
            }
            self.run_for(25 * MILLISECOND);
        }
        panic!("group {group} has no leader within ten seconds");
    }

    /// Waits until all running, uncut replicas of `group` have applied the same.
    pub fn await_level(&mut self, group: GroupId) {
        for _ in 0..400 {
            let mut applied = BTreeSet::new();
            for at in 0..self.hosts.len() {
                if self.is_there(at) {
                    let status = self.status(at, group);
                    applied.insert(status.applied);
                    applied.insert(status.last);
                }
            }
            if applied.len() == 1 {
                return;
            }
            self.run_for(25 * MILLISECOND);
        }
        panic!("group {group} is not level within ten seconds");
    }

    /// Whether a host runs and is heard of.
    fn is_there(&self, at: usize) -> bool {
        let host = &self.hosts[at];
        host.running.is_some() && !self.cut.contains(&host.id) && !self.paused.contains(&host.id)
    }

    /// When a worker of a host has something to do by itself, as it said at its last poll.
    pub fn deadline(&self, at: usize) -> Option<Time> {
        self.hosts[at].deadline
    }

    /// What all hosts have sent.
    pub fn sent(&self) -> u64 {
        self.sent.values().sum()
    }

    pub fn events(&self, at: usize) -> Vec<Event> {
        self.hosts[at]
            .ear
            .events
            .lock()
            .expect("no panic under it")
            .clone()
    }

    /// How many messages a host has sent for a group.
    pub fn sent_by(&self, at: usize, group: GroupId) -> u64 {
        let key = (self.hosts[at].id, group);
        self.sent.get(&key).copied().unwrap_or(0)
    }

    pub fn run_for(&mut self, nanos: u64) {
        let end = self.now.plus_nanos(nanos);
        while self.now < end {
            self.pass();
            self.advance(end);
        }
        self.pass();
    }

    /// Runs until `is_reached`, ten simulated seconds at most.
    pub fn run_until(&mut self, what: &str, mut is_reached: impl FnMut(&mut Self) -> bool) {
        let end = self.now.plus_nanos(10_000 * MILLISECOND);
        loop {
            self.pass();
            if is_reached(self) {
                return;
            }
            assert!(self.now < end, "no {what} within ten seconds");
            self.advance(end);
        }
    }

    /// Everything that can be done now.
    pub fn pass(&mut self) {
        for host in &self.hosts {
            host.vfs.set_now(self.now);
        }
        for _ in 0..100_000 {
            if !self.round() {
                return;
            }
        }
        panic!("at {:?} the engines never come to rest", self.now);
    }

    /// Polls every worker once and carries what was sent; whether there was anything to do.
    pub fn round(&mut self) -> bool {
        let mut is_busy = false;
        for host in &mut self.hosts {
            host.deadline = None;
            let Some((_, workers)) = &mut host.running else {
                continue;
            };
            if self.paused.contains(&host.id) {
                continue;
            }
            for worker in workers.ids() {
                match workers.poll(worker, self.now) {
                    Progress::More => is_busy = true,
                    Progress::Idle { until } => {
                        let both = host.deadline.into_iter().chain(until);
                        host.deadline = both.min();
                    }
                }
            }
        }
        self.carry() || is_busy
    }

    fn carry(&mut self) -> bool {
        let mut is_busy = false;
        for at in 0..self.hosts.len() {
            let from = self.hosts[at].id;
            let ear = Arc::clone(&self.hosts[at].ear);
            let sent = std::mem::take(&mut *ear.messages.lock().expect("no panic under it"));
            for (to, envelopes) in sent {
                is_busy = true;
                for envelope in &envelopes {
                    *self.sent.entry((from, envelope.group)).or_default() += 1;
                    self.promises.note(envelope);
                    if let Body::ReadIndex { life, .. } = envelope.message.body {
                        self.reading_lives.insert((from, envelope.group, life));
                    }
                }
                self.sequence += 1;
                let due = self.now.plus_nanos(DELAY_NANOS);
                self.in_flight
                    .insert((due, self.sequence), (from, to, envelopes));
            }
            let transfers = std::mem::take(&mut *ear.transfers.lock().expect("no panic under it"));
            for (to, transfer) in transfers {
                is_busy = true;
                self.stream(from, to, transfer);
            }
        }
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (from, to, envelopes) = entry.remove();
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            is_busy = true;
            let target = self.hosts.iter().find(|host| host.id == to);
            if let Some((engine, _)) = target.and_then(|host| host.running.as_ref()) {
                engine.deliver(from, envelopes);
            }
        }
        is_busy
    }

    /// Carries a whole snapshot at once.
    fn stream(&mut self, from: HostId, to: HostId, transfer: SnapshotTransfer) {
        let target = self.hosts.iter().find(|host| host.id == to);
        let engine = target.and_then(|host| host.running.as_ref());
        let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
        let Some((engine, _)) = engine.filter(|_| !is_cut) else {
            return transfer.report.failed();
        };
        let carry = || -> Option<()> {
            let env = engine
                .receive_env(transfer.group, transfer.epoch, transfer.to)
                .ok()?;
            let mut reader = transfer.env.open_snapshot(transfer.meta.id.index).ok()?;
            let mut receiver = env.begin_receive(reader.manifest().clone()).ok()?;
            while let Some(block) = reader.next().ok()? {
                receiver.block(receiver.blocks_taken(), block).ok()?;
            }
            receiver.finish().ok().map(drop)
        };
        if carry().is_some() {
            engine.snapshot_received(ReceivedSnapshot {
                group: transfer.group,
                host: self.snapshots_from.unwrap_or(from),
                from: transfer.from,
                to: transfer.to,
                term: transfer.term,
                meta: transfer.meta.clone(),
            });
            transfer.report.finished();
        } else {
            transfer.report.failed();
        }
    }

    fn advance(&mut self, limit: Time) {
        let mut next = limit;
        for host in self.hosts.iter().filter(|host| host.running.is_some()) {
            let due = host
                .deadline
                .into_iter()
                .chain(host.vfs.next_completion_time());
            next = due.fold(next, Time::min);
        }
        if let Some(&(due, _)) = self.in_flight.keys().next() {
            next = next.min(due);
        }
        self.now = next.max(self.now.plus_nanos(1_000));
    }

    /// Nothing contradicts itself.
    pub fn check(&self) {
        assert_eq!(self.promises.violations, Vec::<String>::new());
        let applications = self.applications.lock().expect("no panic under it");
        assert_eq!(applications.violations, Vec::<String>::new());
    }
}

/// The files of the log, newest last.
pub fn segments(vfs: &SimVfs) -> Vec<PathBuf> {
    let dir = Path::new("/data/log/0");
    let entries = vfs.list(dir).expect("the log is there");
    entries
        .into_iter()
        .filter(|entry| entry.name.ends_with(".seg"))
        .map(|entry| dir.join(entry.name))
        .collect()
}

/// Every place of `wanted` in the log: the file and the byte.
pub fn find(vfs: &SimVfs, wanted: &[u8]) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for path in segments(vfs) {
        let file = vfs.open(&path, false).expect("it was listed");
        let content = vfs.read(file, 0, 1 << 30).expect("it is readable");
        vfs.close(file);
        let places = content.windows(wanted.len()).enumerate();
        let places = places.filter(|(_, window)| *window == wanted);
        found.extend(places.map(|(at, _)| (path.clone(), at)));
    }
    found
}
