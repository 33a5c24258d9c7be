//! What fails, and comes back: power, links, disks.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use raft_engine::{
    Completion, Engine, EngineConfig, Parts, RequestError, Responder, SnapshotOutcome,
    SnapshotRequest, Start, StartGroup,
};
use raft_log::LaneOptions;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{GroupId, HostId};

use super::{
    CACHE_BYTES_MAX, FOUNDERS, HOSTS, MILLISECOND, NoEvents, Run, SECOND, UNCOMMITTED_BYTES_MAX,
    group, host, replica,
};
use crate::machine::ListMachine;
use crate::oracle::{Book, Slot};

/// The host that loses snapshots, now and then: the others hold theirs.
const CARELESS: u64 = 2;

impl Run {
    /// Asks for the snapshots that are due, so that whoever was away must be fed by a stream.
    pub(super) fn squeeze(&mut self) {
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

    pub(super) fn fault(&mut self) {
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
                        self.disconnected(alone, other);
                        self.disconnected(other, alone);
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

    fn crash(&mut self, at: usize, away_nanos: u64) {
        let restart_at = self.now.plus_nanos(away_nanos);
        self.count_log(at);
        let host = &mut self.hosts[at];
        let Some(running) = host.running.take() else {
            return;
        };
        // Power goes before what is dropped waits for anything.
        host.vfs.set_hung(true);
        drop(running);
        self.report.crashes += 1;
        let id = host.id;
        host.vfs.crash();
        if id.get() == CARELESS && self.rng.one_in(3) {
            for number in 1..=self.options.groups {
                self.report.lost_snapshots += u64::from(lose_newest(&host.vfs, number, id.get()));
            }
        }
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
        for at in 0..self.hosts.len() {
            self.disconnected(self.hosts[at].id, id);
        }
    }

    /// A host's transport tells its engine that the connection to another has ended.
    fn disconnected(&self, at: HostId, from: HostId) {
        let host = self.hosts.iter().find(|host| host.id == at);
        if let Some((engine, _)) = host.and_then(|host| host.running.as_ref()) {
            engine.host_lost(from);
        }
    }

    pub(super) fn restart_due(&mut self) {
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
            quiesce_timeouts: self.quiesce_timeouts,
            lease_ticks: self.lease_ticks,
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

    pub(super) fn heal(&mut self) {
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
}

/// Takes a replica's newest snapshot away; whether there was one.
fn lose_newest(vfs: &SimVfs, group: u64, replica: u64) -> bool {
    let dir = PathBuf::from(format!("/data/snapshots/{group}/{replica}"));
    let entries = vfs.list(&dir).unwrap_or_default().into_iter();
    let committed = entries.filter(|entry| entry.name.len() == "snapshot-".len() + 16);
    let Some(newest) = committed.map(|entry| entry.name).max() else {
        return false;
    };
    vfs.remove_dir_all(&dir.join(newest)).expect("it is there");
    vfs.sync_dir(&dir).expect("it is there");
    true
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

impl Completion<SnapshotOutcome> for SnapshotSlot {
    fn complete(&self, outcome: Result<SnapshotOutcome, RequestError>) {
        if let Ok(SnapshotOutcome::Completed(_)) = outcome {
            self.book.lock().expect("no panic under it").snapshots += 1;
        }
    }
}
