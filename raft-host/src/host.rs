//! A host: a data directory, an engine over it, and a transport beside it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use raft_engine::{
    Engine, EngineConfig, EngineStats, Parts, RecoveredReplica, RunningWorkers, Start,
    StateMachine, Workers,
};
use raft_log::vfs::{StdVfs, Vfs};
use raft_log::{LaneOptions, LaneStats, RecoveryReport, ScrubStatus};
use raft_proto::{GroupId, HostId, ReplicaId};
use raft_transport::{Transport, TransportError, TransportIdentity, TransportStats};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio::task;

use crate::adapter::{Inward, Outward, Way};
use crate::config::HostConfig;
use crate::data_dir::{DataDir, DataDirError, Identity};
use crate::error::{CloseError, OpenError, StartError};
use crate::events::{Ear, HostEvent};
use crate::group_handle::GroupHandle;
use crate::pending;
use crate::registry::{Book, Registry};

/// How long [`NodeHost::close`] waits for the workers.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for the peers to be told.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(2);

/// What a group's start needs.
pub struct GroupStart {
    /// The group. Its id is the same on every host.
    pub group: GroupId,
    /// This host's replica. An id is never used again once it was removed from the group.
    pub replica: ReplicaId,
    /// How it comes to be here.
    pub start: Start,
    /// The state machine, empty: stored snapshots and the log fill it.
    pub machine: Box<dyn StateMachine>,
}

impl std::fmt::Debug for GroupStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupStart")
            .field("group", &self.group)
            .field("replica", &self.replica)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// What a host stands on, for those who bring their own.
#[derive(Debug)]
pub struct HostParts {
    /// Certificate, key and trusted authorities.
    pub identity: TransportIdentity,
    /// The file system of log and snapshots. `IDENTITY`, `PEERS` and `LOCK` lie in the real one in
    /// any case.
    pub vfs: Arc<dyn Vfs>,
}

/// What a host has done since it opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    /// The log's counters.
    pub log: LaneStats,
    /// How far verifying what the log holds has come.
    pub scrub: ScrubStatus,
    /// Messages that arrived and found no room in a worker's inbox; Raft sends them again.
    pub inbox_messages_dropped: u64,
    /// The network's counters.
    pub network: TransportStats,
}

/// A process's part in a deployment: carries the replicas of many groups over one log, one QUIC
/// endpoint and a few worker threads.
///
/// [`NodeHost::close`] ends it in good order. Dropped instead, it does the same but blocks the
/// dropping thread until the workers have ended, and says goodbye to nobody.
pub struct NodeHost {
    shared: Arc<HostShared>,
    workers: Mutex<Option<RunningWorkers>>,
    data_dir: Arc<DataDir>,
    registry: Registry,
    raft_addr: SocketAddr,
}

/// What handles share with their host.
pub(crate) struct HostShared {
    pub(crate) engine: Engine,
    pub(crate) ear: Arc<Ear>,
    pub(crate) way: Arc<Way>,
    pub(crate) request_timeout: Duration,
    is_closed: AtomicBool,
}

impl HostShared {
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for NodeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHost")
            .field("identity", &self.data_dir.identity)
            .field("raft_addr", &self.raft_addr)
            .finish_non_exhaustive()
    }
}

impl NodeHost {
    /// Opens a data directory and begins to serve, on the caller's tokio runtime. Groups do not
    /// run yet: [`NodeHost::start_group`] starts each.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: nothing runs. A setting out of bounds, a certificate that is another host's
    /// and an address that is taken are found before the directory is touched; a directory that is
    /// open elsewhere before anything in it is.
    pub async fn open(config: HostConfig) -> Result<Self, OpenError> {
        config.check()?;
        let files = &config.certificates;
        let identity =
            TransportIdentity::from_pem_files(&files.certificate, &files.key, &files.authorities)?;
        let parts = HostParts {
            identity,
            vfs: Arc::new(StdVfs::new()),
        };
        Self::open_with(config, parts).await
    }

    /// Opens with an identity that does not lie in files, or over another file system;
    /// `config.certificates` is not looked at.
    ///
    /// # Errors
    ///
    /// As [`NodeHost::open`].
    pub async fn open_with(config: HostConfig, parts: HostParts) -> Result<Self, OpenError> {
        let HostParts { identity, vfs } = parts;
        config.check()?;
        config.log.check().map_err(raft_engine::OpenError::from)?;
        config
            .engine
            .check()
            .map_err(raft_engine::OpenError::from)?;
        identity.check(config.host, &config.deployment)?;

        // An address that is taken is found before the directory is touched. Whoever takes it
        // between this and the transport's own attempt is found then.
        drop(UdpSocket::bind(config.listen).map_err(TransportError::Listen)?);

        let ear = Arc::new(Ear::new(config.events_max));
        let runtime = Handle::current();
        let way = Arc::new(Way::new(
            runtime.clone(),
            config.network.snapshot_streams_max,
        ));
        let opening = {
            let (config, ear, way) = (config.clone(), Arc::clone(&ear), Arc::clone(&way));
            task::spawn_blocking(move || open_storage(&config, vfs, &ear, &way))
        };
        let (data_dir, engine, workers) = opening.await.map_err(|_| OpenError::ShuttingDown)??;

        let book = Arc::new(Book::new(config.addresses.clone()));
        let inward = Inward {
            engine: engine.clone(),
            data_dir: Arc::clone(&data_dir),
            ear: Arc::clone(&ear),
            receiving: Arc::default(),
        };
        let transport = Transport::start(
            &runtime,
            config.transport(Some(&data_dir.identity)),
            identity,
            Arc::clone(&book) as _,
            Arc::new(inward),
        )?;
        let raft_addr = transport.local_addr().unwrap_or(config.listen);
        way.open(Arc::new(transport));
        for host in config.addresses.keys() {
            way.connect(*host);
        }
        tracing::info!(
            host = config.host.get(),
            %raft_addr,
            open_count = data_dir.identity.open_count,
            "open"
        );
        Ok(Self {
            shared: Arc::new(HostShared {
                engine,
                ear,
                way: Arc::clone(&way),
                request_timeout: config.request_timeout,
                is_closed: AtomicBool::new(false),
            }),
            workers: Mutex::new(Some(workers.spawn())),
            data_dir,
            registry: Registry::new(book, way),
            raft_addr,
        })
    }

    /// This host.
    #[must_use]
    pub fn host(&self) -> HostId {
        self.data_dir.identity.host
    }

    /// Who the data directory is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.data_dir.identity
    }

    /// Where this host listens for others.
    #[must_use]
    pub const fn raft_addr(&self) -> SocketAddr {
        self.raft_addr
    }

    /// Where other hosts listen; it can be changed at any time.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// What opening the log found amiss, if anything.
    #[must_use]
    pub fn recovery_report(&self) -> &RecoveryReport {
        self.shared.engine.recovery_report()
    }

    /// The replicas whose state lies here and which were not started since the host opened: those
    /// to [`Start::Restart`].
    #[must_use]
    pub fn recovered(&self) -> Vec<RecoveredReplica> {
        self.shared.engine.recovered()
    }

    /// This host's replica of a group whose state lies here and which was not started since the host
    /// opened. With one, the group is started by [`Start::Restart`].
    #[must_use]
    pub fn recovered_replica(&self, group: GroupId) -> Option<ReplicaId> {
        self.shared.engine.recovered_replica(group)
    }

    /// Starts a group's replica on this host; it is durable when this returns.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing was started.
    pub async fn start_group(&self, start: GroupStart) -> Result<GroupHandle, StartError> {
        let GroupStart {
            group,
            replica,
            start,
            machine,
        } = start;
        self.check_serving()?;
        let is_new = self.shared.ear.hint(group).is_none();
        let hint = self.shared.ear.add_hint(group);
        let (responder, outcome) = pending::request();
        let engine = self.shared.engine.clone();
        // Reads and syncs directories.
        let starting = task::spawn_blocking(move || {
            let start = raft_engine::StartGroup {
                group,
                replica,
                epoch: 1,
                start,
                machine,
            };
            engine.start_group(start, responder);
        });
        let started = match starting.await {
            Ok(()) => outcome.await.map_err(StartError::of),
            Err(_) => Err(StartError::HostDown {
                reason: "the runtime is shutting down".to_owned(),
            }),
        };
        match started {
            Ok(()) => Ok(GroupHandle::new(
                Arc::clone(&self.shared),
                group,
                replica,
                hint,
            )),
            Err(error) => {
                if is_new && error != StartError::AlreadyRunning(group) {
                    self.shared.ear.remove_hint(group);
                }
                Err(error)
            }
        }
    }

    /// The handle of a group that runs here.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<GroupHandle> {
        let replica = self.shared.engine.replica_of(group)?;
        let hint = self.shared.ear.hint(group)?;
        Some(GroupHandle::new(
            Arc::clone(&self.shared),
            group,
            replica,
            hint,
        ))
    }

    /// The groups that run here, and their replicas.
    #[must_use]
    pub fn groups(&self) -> Vec<(GroupId, ReplicaId)> {
        self.shared.engine.groups()
    }

    /// Stops a group on this host; its state stays on disk. Returns when its state machine is gone.
    ///
    /// # Errors
    ///
    /// [`StartError::NotRunning`], [`StartError::HostDown`].
    pub async fn stop_group(&self, group: GroupId) -> Result<(), StartError> {
        self.check_serving()?;
        let (responder, outcome) = pending::request();
        self.shared.engine.stop_group(group, responder);
        outcome.await.map_err(StartError::of)?;
        self.shared.ear.remove_hint(group);
        Ok(())
    }

    /// Forgets which data directory `host` had: whoever comes next under this id is taken as it is.
    ///
    /// Say so only when the old directory is gone for good and every replica that lived there has
    /// been removed from its group: what it voted and acknowledged is not remembered by the new
    /// one.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`]: not forgotten.
    pub async fn forget(&self, host: HostId) -> Result<(), DataDirError> {
        let data_dir = Arc::clone(&self.data_dir);
        match task::spawn_blocking(move || data_dir.peers.forget(host)).await {
            Ok(forgotten) => forgotten,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Uses another certificate, key and authorities for all connections made from now on.
    ///
    /// # Errors
    ///
    /// The identity cannot be used, or is another host's: the old one stays in use.
    pub fn replace_identity(&self, identity: &TransportIdentity) -> Result<(), TransportError> {
        self.shared
            .way
            .with(|transport| transport.replace_identity(identity))
            .unwrap_or(Ok(()))
    }

    /// What happens from now on. A subscriber that reads too slowly loses the oldest events and is
    /// told how many; it never holds up the host.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.shared.ear.subscribe()
    }

    /// Waits until the host has failed: its log could not be written or synced. Returns why.
    ///
    /// A failed host acknowledges nothing any more and has closed its connections. End the process,
    /// mend the disk, and open again.
    pub async fn failed(&self) -> String {
        let mut failure: watch::Receiver<Option<String>> = self.shared.ear.failure();
        let failed = failure.wait_for(Option::is_some).await;
        let reason = failed.map(|reason| reason.clone());
        // The sender lives as long as the host.
        reason.ok().flatten().unwrap_or_default()
    }

    /// Begins to verify everything durable in the log, the payloads too, at the rate that
    /// `config.log.scrub_bytes_per_s` allows; a pass under way begins again. A replica that lost
    /// something fails, alone, and [`NodeHost::events`] says so; how far it has come is among
    /// [`NodeHost::stats`].
    pub fn scrub(&self) {
        self.shared.engine.scrub();
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> HostStats {
        let engine = self.workers().as_ref().map(RunningWorkers::stats);
        let EngineStats { lane, scrub } = engine.unwrap_or_default();
        HostStats {
            log: lane,
            scrub,
            inbox_messages_dropped: self.shared.engine.messages_dropped(),
            network: self.shared.way.stats(),
        }
    }

    /// What `host` said of itself when it last connected, if it has since this host opened.
    #[must_use]
    pub fn advertised_by(&self, host: HostId) -> Option<Bytes> {
        self.shared.ear.advertised_by(host)
    }

    /// Ends it: tells the peers, stops the workers, syncs what was submitted to the log, and gives
    /// the directory back. Handles answer from then on that the host stopped. A second call does
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`CloseError`]: a worker hangs.
    pub async fn close(&self) -> Result<(), CloseError> {
        self.shared.is_closed.store(true, Ordering::Release);
        self.shared.way.close();
        if let Some(transport) = self.shared.way.take_closed() {
            // Peers that are not told find out by themselves.
            let _ = tokio::time::timeout(FAREWELL_PATIENCE, transport.closed()).await;
        }
        let (workers, data_dir) = (self.workers().take(), Arc::clone(&self.data_dir));
        let ending = task::spawn_blocking(move || {
            if workers.is_some() {
                drop(workers);
                data_dir.unlock();
            }
        });
        match tokio::time::timeout(CLOSE_PATIENCE, ending).await {
            Ok(_) => Ok(()),
            Err(_) => Err(CloseError::StillRunning {
                waited: CLOSE_PATIENCE,
            }),
        }
    }

    fn workers(&self) -> MutexGuard<'_, Option<RunningWorkers>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_serving(&self) -> Result<(), StartError> {
        match &*self.shared.ear.failure().borrow() {
            Some(reason) => Err(StartError::HostDown {
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Drop for NodeHost {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        self.shared.way.close();
        drop(self.shared.way.take_closed());
        drop(self.workers().take());
        self.data_dir.unlock();
    }
}

fn open_storage(
    config: &HostConfig,
    vfs: Arc<dyn Vfs>,
    ear: &Arc<Ear>,
    way: &Arc<Way>,
) -> Result<(Arc<DataDir>, Engine, Workers), OpenError> {
    let data_dir = DataDir::open(&config.data_dir, config.host, &config.deployment)?;
    let outward = Arc::new(Outward {
        way: Arc::clone(way),
        ear: Arc::clone(ear),
    });
    let parts = Parts {
        vfs,
        data_dir: config.data_dir.clone(),
        lane: LaneOptions {
            identity: Some(log_identity(&data_dir.identity)),
            ..config.log.clone()
        },
        outbound: Arc::clone(&outward) as _,
        events: outward,
    };
    let engine_config = EngineConfig {
        seed: seed(&data_dir.identity),
        open_count: data_dir.identity.open_count,
        wall_ms_at_start: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
        ..config.engine.clone()
    };
    let (engine, workers) = Engine::open(engine_config, parts)?;
    Ok((Arc::new(data_dir), engine, workers))
}

/// Names the log, so that one of another data directory is told apart.
fn log_identity(identity: &Identity) -> u64 {
    let (low, _) = identity.uuid.split_at(8);
    u64::from_le_bytes(low.try_into().expect("eight bytes"))
}

/// Another one for each host, so that election timeouts differ.
fn seed(identity: &Identity) -> u64 {
    let (low, high) = identity.uuid.split_at(8);
    let word = |half: &[u8]| {
        half.iter()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    };
    word(low) ^ word(high).rotate_left(32)
}
