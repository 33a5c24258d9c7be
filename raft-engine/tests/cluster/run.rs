//! One run: three hosts, some groups, clients, and a world that fails, all from one seed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes, BytesMut};
use raft_engine::{
    Engine, EngineConfig, Event, Events, GroupStatus, Parts, Progress, ReceivedSnapshot,
    RequestError, Responder, SnapshotOutcome, SnapshotRequest, Start, StartGroup, WorkerId,
    Workers,
};
use raft_log::LaneOptions;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{ChangeKind, Envelope, GroupId, HostId, MembershipChange, ReplicaId, Role, Time};

use crate::machine::{Applications, ListMachine, filler, mix};
use crate::network::{Network, Outbox, outbox};
use crate::oracle::{Book, Slot, WriteSlot};
use crate::rng::Rng;

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

struct PendingRead {
    replica: ReplicaId,
    group: GroupId,
    must_contain: std::collections::BTreeSet<u64>,
    slot: Arc<Slot<Bytes>>,
}

/// A snapshot stream between two hosts, one block an event.
struct Stream {
    from: HostId,
    to: HostId,
    next_at: Time,
    transfer: Option<raft_engine::SnapshotTransfer>,
    reader: raft_snapshot::SnapshotReader,
    receiver: Option<raft_snapshot::SnapshotReceiver>,
    block: usize,
}

pub struct Run {
    rng: Rng,
    now: Time,
    options: Options,
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

/// What is to become of a group's membership: host 4 joins, is promoted, and somebody leaves.
struct Plan {
    group: GroupId,
    /// Who leaves in the end, host 4 perhaps.
    victim: ReplicaId,
    done: usize,
}

const PLAN_STEPS: usize = 3;

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
        Self {
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
                next_client = self.now.plus_nanos(self.rng.below(12 * MILLISECOND));
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

    fn open_stream(&mut self, from: HostId, to: HostId, transfer: raft_engine::SnapshotTransfer) {
        let Ok(reader) = transfer.env.open_snapshot(transfer.meta.id.index) else {
            return transfer.report.failed();
        };
        let engine = self.hosts.iter().find(|host| host.id == to);
        let env = engine
            .and_then(|host| host.running.as_ref())
            .and_then(|(engine, _)| {
                engine
                    .receive_env(transfer.group, transfer.epoch, transfer.to)
                    .ok()
            });
        let receiver = env.and_then(|env| env.begin_receive(reader.manifest().clone()).ok());
        let Some(receiver) = receiver.filter(|_| !self.network.is_cut(from, to)) else {
            return transfer.report.failed();
        };
        let next_at = self.now.plus_nanos(self.rng.below(5 * MILLISECOND));
        let (transfer, receiver) = (Some(transfer), Some(receiver));
        self.streams.push(Stream {
            from,
            to,
            next_at,
            transfer,
            reader,
            receiver,
            block: 0,
        });
    }

    fn carry_streams(&mut self) -> bool {
        let mut is_idle = true;
        let mut streams = std::mem::take(&mut self.streams);
        streams.retain_mut(|stream| {
            if stream.next_at > self.now {
                return true;
            }
            is_idle = false;
            stream.next_at = self.now.plus_nanos(self.rng.below(5 * MILLISECOND));
            self.stream_block(stream)
        });
        self.streams.append(&mut streams);
        is_idle
    }

    /// Carries one block; whether there is more to carry.
    fn stream_block(&mut self, stream: &mut Stream) -> bool {
        let is_cut = self.network.is_cut(stream.from, stream.to);
        let block = if is_cut {
            Err(())
        } else {
            stream.reader.next().map_err(|_| ())
        };
        let receiver = stream
            .receiver
            .as_mut()
            .expect("an open stream has its receiver");
        match block {
            Ok(Some(bytes)) => {
                let sum = bytes.iter().fold(0, |sum, byte| mix(sum, u64::from(*byte)));
                self.network.trace = mix(self.network.trace, sum);
                if receiver.block(stream.block, bytes).is_ok() {
                    stream.block += 1;
                    return true;
                }
            }
            Ok(None) => {
                let receiver = stream.receiver.take().expect("it was just there");
                let transfer = stream
                    .transfer
                    .take()
                    .expect("an open stream has its transfer");
                if receiver.finish().is_ok() {
                    let target = self.hosts.iter().find(|host| host.id == stream.to);
                    if let Some((engine, _)) = target.and_then(|host| host.running.as_ref()) {
                        self.report.streamed += 1;
                        engine.snapshot_received(ReceivedSnapshot {
                            group: transfer.group,
                            host: stream.from,
                            from: transfer.from,
                            to: transfer.to,
                            term: transfer.term,
                            meta: transfer.meta.clone(),
                        });
                    }
                    transfer.report.finished();
                    return false;
                }
                transfer.report.failed();
                return false;
            }
            Err(()) => {}
        }
        stream.receiver = None;
        if let Some(transfer) = stream.transfer.take() {
            transfer.report.failed();
        }
        false
    }

    /// Brings each group's membership one step further, through whoever leads.
    fn administer(&mut self) {
        if self.now < self.next_admin {
            return;
        }
        let pause = 100 * MILLISECOND + self.rng.below(400 * MILLISECOND);
        self.next_admin = self.now.plus_nanos(pause);
        let mut plans = std::mem::take(&mut self.plans);
        for plan in &mut plans {
            self.administer_group(plan);
        }
        self.plans = plans;
    }

    fn administer_group(&mut self, plan: &mut Plan) {
        let joiner = replica(HOSTS);
        if plan.done == PLAN_STEPS {
            return;
        }
        let leaders = self.statuses(plan.group).into_iter();
        let leader = leaders
            .filter(|status| status.role == Role::Leader)
            .max_by_key(|status| status.term);
        let Some(leader) = leader else { return };
        let membership = &leader.membership;
        let is_in_force = match plan.done {
            0 => membership.learners.contains(&joiner),
            1 => membership.voters.contains(&joiner),
            _ => !membership.replicas().contains(&plan.victim),
        };
        if is_in_force {
            plan.done += 1;
            self.report.changes += 1;
            return;
        }
        let (kind, replica, on) = match plan.done {
            0 => (ChangeKind::AddLearner, joiner, Some(host(HOSTS))),
            1 => (ChangeKind::AddVoter, joiner, None),
            _ => (ChangeKind::Remove, plan.victim, None),
        };
        let leader = self
            .hosts
            .iter()
            .find(|host| host.id.get() == leader.replica.get());
        if let Some((engine, _)) = leader.and_then(|host| host.running.as_ref()) {
            let change = MembershipChange::single(kind, replica, on);
            engine.change_membership(plan.group, change, Responder::new(Slot::new()));
        }
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

    /// Asks for the snapshots that are due, so that whoever was away must be fed by a stream.
    fn squeeze(&mut self) {
        let due = self.squeezes.len();
        self.squeezes.retain(|&at| at > self.now);
        if self.squeezes.len() == due {
            return;
        }
        for host in &self.hosts {
            let Some((engine, _)) = &host.running else {
                continue;
            };
            for number in 1..=self.options.groups {
                request_snapshot(engine, group(number), 0, &self.book);
            }
        }
    }

    fn fault(&mut self) {
        match self.rng.below(13) {
            0..=2 => {
                let at = self.pick_host();
                let away = self.rng.below(1_500 * MILLISECOND);
                self.crash(at, away);
            }
            10.. => {
                // Away for so long that its leader stops to reckon with it, and compacts.
                let at = self.pick_host();
                let away = 1_500 * MILLISECOND + self.rng.below(SECOND);
                self.crash(at, away);
                self.squeezes
                    .push(self.now.plus_nanos(away - 50 * MILLISECOND));
            }
            3 => {
                for at in 0..self.hosts.len() {
                    if self.rng.one_in(2) {
                        let away = self.rng.below(1_500 * MILLISECOND);
                        self.crash(at, away);
                    }
                }
            }
            4 | 5 => {
                let at = self.pick_host();
                let alone = self.hosts[at].id;
                let is_one_way = self.rng.one_in(3);
                for at in 0..self.hosts.len() {
                    let other = self.hosts[at].id;
                    if other != alone {
                        self.network.cut(alone, other);
                        if !is_one_way {
                            self.network.cut(other, alone);
                        }
                    }
                }
            }
            6 => self.network.heal(),
            7 => {
                let at = self.pick_host();
                let latency = MILLISECOND * self.rng.below(300);
                self.hosts[at].vfs.set_sync_latency(latency);
            }
            _ => {
                let at = self.pick_host();
                let group = self.pick_group();
                let to = replica(1 + self.rng.below(HOSTS));
                if let Some((engine, _)) = &self.hosts[at].running {
                    if self.rng.one_in(3) {
                        engine.transfer_leadership(group, to, Responder::new(Slot::new()));
                    } else {
                        request_snapshot(engine, group, 5, &self.book);
                    }
                }
            }
        }
    }

    fn client(&mut self) {
        let at = self.pick_host();
        let group = self.pick_group();
        let Some((engine, _)) = &self.hosts[at].running else {
            return;
        };
        if self.rng.one_in(6) {
            let must_contain = self
                .book
                .lock()
                .expect("no panic under it")
                .acknowledged_of(group);
            let slot = Slot::new();
            let completion: Arc<Slot<Bytes>> = Arc::clone(&slot);
            engine.read(group, Bytes::new(), Responder::new(completion));
            self.reads.push(PendingRead {
                replica: replica(self.hosts[at].id.get()),
                group,
                must_contain,
                slot,
            });
            return;
        }
        for _ in 0..1 + self.rng.below(4) {
            let number = self.next_number;
            self.next_number += 1;
            self.book
                .lock()
                .expect("no panic under it")
                .open(number, group);
            let mut command = BytesMut::new();
            command.put_u64_le(number);
            // Now and then a big one: segments fill, and bounds in bytes are met.
            let len_max = if self.rng.one_in(8) { 12_000 } else { 600 };
            let len = usize::try_from(self.rng.below(len_max)).expect("small");
            command.put_bytes(filler(number), len);
            let slot = Arc::new(WriteSlot {
                number,
                book: Arc::clone(&self.book),
            });
            engine.propose(group, command.freeze(), None, Responder::new(slot));
        }
    }

    fn finish_reads(&mut self) {
        let mut wrong = Vec::new();
        let report = &mut self.report;
        self.reads.retain(|read| match read.slot.take() {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(list)) => {
                report.reads += 1;
                let list = numbers(&list);
                for number in &read.must_contain {
                    if !list.contains(number) {
                        wrong.push(format!(
                            "group {}: a read missed write {number}, acknowledged before it",
                            read.group
                        ));
                    }
                }
                false
            }
        });
        self.report.violations.append(&mut wrong);
    }

    fn crash(&mut self, at: usize, away_nanos: u64) {
        let restart_at = self.now.plus_nanos(away_nanos);
        self.count_log(at);
        let host = &mut self.hosts[at];
        if host.running.take().is_none() {
            return;
        }
        self.report.crashes += 1;
        let id = host.id;
        host.vfs.crash();
        host.restart_at = Some(restart_at);
        host.outbox
            .messages
            .lock()
            .expect("no panic under it")
            .clear();
        let lost = std::mem::take(&mut *host.outbox.snapshots.lock().expect("no panic under it"));
        drop(lost);
        self.streams
            .retain(|stream| stream.from != id && stream.to != id);
    }

    fn restart_due(&mut self) {
        for at in 0..self.hosts.len() {
            if self.hosts[at].restart_at.is_some_and(|due| due <= self.now) {
                self.hosts[at].restart_at = None;
                self.start(at);
            }
        }
    }

    fn start(&mut self, at: usize) {
        let id = self.hosts[at].id;
        let vfs = Arc::clone(&self.hosts[at].vfs);
        vfs.set_now(self.now);
        self.hosts[at].opens += 1;
        let config = EngineConfig {
            job_workers: 1,
            seed: self.hosts[at].seed,
            open_count: self.hosts[at].opens,
            compaction_overhead: 20,
            cache_bytes_max: CACHE_BYTES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
            test_ack_before_sync: self.options.test_ack_before_sync,
            ..EngineConfig::default()
        };
        let parts = Parts {
            vfs: vfs as Arc<dyn Vfs>,
            data_dir: PathBuf::from("/data"),
            lane: LaneOptions {
                segment_size_bytes: 64 << 10,
                ..LaneOptions::default()
            },
            outbound: Arc::clone(&self.hosts[at].outbox) as Arc<_>,
            events: Arc::new(NoEvents),
        };
        let (engine, workers) = match Engine::open(config, parts) {
            Ok(opened) => opened,
            Err(error) => {
                return self.violation(format!("host {id} does not open: {error}"));
            }
        };
        let recovered = engine.recovered();
        for number in 1..=self.options.groups {
            let group = group(number);
            let replica = replica(id.get());
            let start = if recovered.iter().any(|found| found.group == group) {
                Start::Restart
            } else if id.get() > FOUNDERS {
                Start::Join
            } else {
                Start::Bootstrap {
                    members: (1..=FOUNDERS)
                        .map(|id| (self::replica(id), host(id)))
                        .collect(),
                }
            };
            let machine = ListMachine::new(id, group, Arc::clone(&self.applications));
            let machine = Box::new(machine);
            let slot = Slot::new();
            let completion: Arc<Slot<()>> = Arc::clone(&slot);
            engine.start_group(
                StartGroup {
                    group,
                    replica,
                    epoch: 1,
                    start,
                    machine,
                },
                Responder::new(completion),
            );
            if let Some(Err(error)) = slot.take() {
                self.violation(format!("host {id} group {group} does not start: {error}"));
            }
        }
        self.hosts[at].running = Some((engine, workers));
    }

    fn heal(&mut self) {
        self.is_calm = true;
        self.network.heal();
        self.network.loss_percent = 0;
        for host in &mut self.hosts {
            host.vfs.set_sync_latency(MILLISECOND);
            if host.running.is_none() {
                host.restart_at = Some(self.now);
            }
        }
    }

    /// Whether every member of every group, as planned, has applied all there is, under one
    /// leader.
    fn has_settled(&mut self) -> bool {
        let mut is_settled =
            self.streams.is_empty() && self.plans.iter().all(|plan| plan.done == PLAN_STEPS);
        for number in 1..=self.options.groups {
            let members = self.members(group(number));
            // A replica that was removed and never heard of it waits for entries that do not come:
            // its callers' deadlines end that.
            is_settled &= self.reads.iter().all(|read| {
                let is_member = |status: &GroupStatus| status.replica == read.replica;
                read.group != group(number) || !members.iter().any(is_member)
            });
            is_settled &= !members.is_empty()
                && members
                    .iter()
                    .filter(|status| status.role == Role::Leader)
                    .count()
                    == 1
                && members
                    .iter()
                    .all(|status| status.applied == status.last && status.last == members[0].last);
        }
        is_settled
    }

    /// The members of a group as its leader knows them; nobody, if they are not all there.
    fn members(&mut self, group: GroupId) -> Vec<GroupStatus> {
        let statuses = self.statuses(group);
        let leaders = statuses.iter().filter(|status| status.role == Role::Leader);
        let Some(leader) = leaders.max_by_key(|status| status.term) else {
            return Vec::new();
        };
        let wanted = leader.membership.replicas();
        let members: Vec<GroupStatus> = statuses
            .iter()
            .filter(|status| wanted.contains(&status.replica))
            .cloned()
            .collect();
        if members.len() == wanted.len() {
            members
        } else {
            Vec::new()
        }
    }

    fn statuses(&mut self, group: GroupId) -> Vec<GroupStatus> {
        let slots: Vec<Arc<Slot<GroupStatus>>> = self
            .hosts
            .iter()
            .filter_map(|host| host.running.as_ref())
            .map(|(engine, _)| {
                let slot = Slot::new();
                let completion: Arc<Slot<GroupStatus>> = Arc::clone(&slot);
                engine.status(group, Responder::new(completion));
                slot
            })
            .collect();
        self.pass();
        let statuses: Vec<GroupStatus> =
            slots.iter().filter_map(|slot| slot.take()?.ok()).collect();
        for status in &statuses {
            let held = status.memory_bytes;
            self.report.memory_bytes = self.report.memory_bytes.max(held);
            if held > GROUP_MEMORY_BYTES_MAX {
                self.violation(format!("group {group} holds {held} bytes"));
            }
        }
        statuses
    }

    /// What the log of a running host has done in this life.
    fn count_log(&mut self, at: usize) {
        if let Some((_, workers)) = &self.hosts[at].running {
            let stats = workers.stats().lane;
            self.report.sealed += stats.sealed_segments;
            self.report.moved_bytes += stats.moved_bytes;
        }
    }

    fn finish(mut self) -> Report {
        for at in 0..self.hosts.len() {
            self.count_log(at);
        }
        for number in 1..=self.options.groups {
            let group = group(number);
            for status in &self.statuses(group) {
                if let Some(reason) = &status.failed {
                    self.violation(format!("group {group} failed: {reason}"));
                }
            }
            let statuses = self.members(group);
            for status in &statuses {
                if status.applied == statuses[0].applied
                    && status.state_hash != statuses[0].state_hash
                {
                    self.violation(format!("group {group}: state hashes differ"));
                }
            }
            let members: Vec<ReplicaId> = statuses.iter().map(|status| status.replica).collect();
            let lists = self.lists(group, &members);
            if lists.is_empty() || lists.len() != members.len() {
                self.violation(format!("group {group}: not every member was read"));
            }
            for list in lists {
                let wrong = self
                    .book
                    .lock()
                    .expect("no panic under it")
                    .check(group, &list);
                self.report.violations.extend(wrong);
            }
        }
        let applications = self.applications.lock().expect("no panic under it");
        self.report
            .violations
            .extend(applications.violations.iter().cloned());
        let promises = &self.network.promises;
        self.report
            .violations
            .extend(promises.violations.iter().cloned());
        self.report.votes = promises.votes();
        self.report.applied = applications.count;
        let mut trace = mix(self.network.trace, applications.trace);
        for host in &self.hosts {
            trace = mix(trace, host.vfs.trace_hash());
        }
        self.report.trace = trace;
        let book = self.book.lock().expect("no panic under it");
        self.report.acknowledged = book.acknowledged;
        self.report.snapshots = book.snapshots;
        drop(book);
        drop(applications);
        self.report
    }

    fn lists(&mut self, group: GroupId, members: &[ReplicaId]) -> Vec<Vec<u64>> {
        let slots: Vec<Arc<Slot<Bytes>>> = self
            .hosts
            .iter()
            .filter(|host| members.contains(&replica(host.id.get())))
            .filter_map(|host| host.running.as_ref())
            .map(|(engine, _)| {
                let slot = Slot::new();
                let completion: Arc<Slot<Bytes>> = Arc::clone(&slot);
                engine.read_stale(group, Bytes::new(), Responder::new(completion));
                slot
            })
            .collect();
        self.pass();
        slots
            .iter()
            .filter_map(|slot| slot.take()?.ok())
            .map(|list| numbers(&list))
            .collect()
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

fn request_snapshot(engine: &Engine, group: GroupId, overhead: u64, book: &Arc<Mutex<Book>>) {
    let request = SnapshotRequest {
        compaction_overhead: Some(overhead),
        ..Default::default()
    };
    let book = Arc::clone(book);
    let slot = Arc::new(SnapshotSlot { book });
    engine.request_snapshot(group, request, Responder::new(slot));
}

struct SnapshotSlot {
    book: Arc<Mutex<Book>>,
}

impl raft_engine::Completion<SnapshotOutcome> for SnapshotSlot {
    fn complete(&self, outcome: Result<SnapshotOutcome, RequestError>) {
        if let Ok(SnapshotOutcome::Completed(_)) = outcome {
            self.book.lock().expect("no panic under it").snapshots += 1;
        }
    }
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn numbers(list: &[u8]) -> Vec<u64> {
    list.chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect()
}

pub fn host(id: u64) -> HostId {
    HostId::new(id).expect("not 0")
}

pub fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("not 0")
}

pub fn group(id: u64) -> GroupId {
    GroupId::new(id).expect("not 0")
}
