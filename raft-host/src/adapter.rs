//! Joins engine and transport: the engine's way out, and what arrives on its way in.

mod snapshots;

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use raft_engine::{Engine, Event, Events, Outbound, SnapshotTransfer};
use raft_proto::{Envelope, GroupId, HostId, ReplicaId};
use raft_transport::{
    Delivery, HelloRefusal, PeerHello, SnapshotOffer, SnapshotRefusal, SnapshotSink, Transport,
    TransportEvent, TransportStats,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use self::snapshots::Receiving;
use crate::data_dir::{DataDir, PeerRefused};
use crate::events::{Ear, HostEvent};

/// The way to other hosts. It leads nowhere before the transport has started and after it was
/// closed: what is sent then is dropped, as Raft tolerates.
#[derive(Debug)]
pub(crate) struct Way {
    transport: RwLock<Option<Arc<Transport>>>,
    /// Closed, and perhaps not yet heard by the peers.
    closed: Mutex<Option<Arc<Transport>>>,
    runtime: Handle,
    /// Snapshots that are read from disk at once; those that wait have no file open.
    sending: Arc<Semaphore>,
}

impl Way {
    pub(crate) fn new(runtime: Handle, snapshots_max: usize) -> Self {
        Self {
            transport: RwLock::default(),
            closed: Mutex::default(),
            runtime,
            sending: Arc::new(Semaphore::new(snapshots_max)),
        }
    }

    pub(crate) fn open(&self, transport: Arc<Transport>) {
        *self
            .transport
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(transport);
    }

    /// Closes the transport: nothing leaves any more.
    pub(crate) fn close(&self) {
        let transport = self
            .transport
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(transport) = transport {
            transport.close();
            *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = Some(transport);
        }
    }

    /// Takes the transport that was closed, so that nothing here holds what holds this.
    pub(crate) fn take_closed(&self) -> Option<Arc<Transport>> {
        self.closed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn connect(&self, host: HostId) {
        self.with(|transport| transport.connect(host));
    }

    pub(crate) fn disconnect(&self, host: HostId) {
        self.with(|transport| transport.disconnect(host));
    }

    pub(crate) fn stats(&self) -> TransportStats {
        self.with(Transport::stats).unwrap_or_default()
    }

    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&Transport) -> T) -> Option<T> {
        let transport = self
            .transport
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        transport.as_deref().map(use_it)
    }

    fn transport(&self) -> Option<Arc<Transport>> {
        self.transport
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What the engine calls.
pub(crate) struct Outward {
    pub(crate) way: Arc<Way>,
    pub(crate) ear: Arc<Ear>,
}

impl Outbound for Outward {
    fn send(&self, to: HostId, messages: Vec<Envelope>) {
        self.way.with(|transport| transport.send(to, messages));
    }

    fn send_snapshot(&self, to: HostId, transfer: SnapshotTransfer) {
        let way = Arc::clone(&self.way);
        // Opening it reads a file: not on the step worker.
        self.way
            .runtime
            .spawn(async move { snapshots::send(&way, to, transfer).await });
    }
}

impl Events for Outward {
    fn event(&self, event: Event) {
        if self.ear.on_engine_event(event) {
            // Nothing leaves a host any more that cannot know what it has stored.
            self.way.close();
        }
    }
}

/// What the transport calls.
pub(crate) struct Inward {
    pub(crate) engine: Engine,
    pub(crate) data_dir: Arc<DataDir>,
    pub(crate) ear: Arc<Ear>,
    pub(crate) receiving: Arc<Receiving>,
}

impl Delivery for Inward {
    fn messages(&self, from: HostId, batch: Vec<Envelope>) {
        self.engine.deliver(from, batch);
    }

    fn unreachable(&self, _to: HostId, replicas: Vec<(GroupId, ReplicaId)>) {
        self.engine.unreachable(replicas);
    }

    fn hello(&self, hello: PeerHello) -> Result<(), HelloRefusal> {
        let PeerHello {
            host,
            uuid,
            open_count,
            advertised,
            ..
        } = hello;
        match self.data_dir.peers.admit(host, uuid, open_count) {
            Ok(()) => {
                self.ear.advertises(host, advertised);
                Ok(())
            }
            Err(PeerRefused::Replaced) => {
                tracing::warn!(
                    host = host.get(),
                    open_count,
                    "refused: its data directory is not the one that was known"
                );
                self.ear.tell(HostEvent::HostReplaced { host });
                Err(HelloRefusal::HostReplaced)
            }
            Err(PeerRefused::NotRecorded(error)) => Err(HelloRefusal::Unavailable {
                detail: error.to_string(),
            }),
        }
    }

    fn snapshot_offered(
        &self,
        from: HostId,
        offer: SnapshotOffer,
    ) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal> {
        snapshots::receive(&self.engine, &self.receiving, from, offer)
    }

    fn event(&self, event: TransportEvent) {
        tracing::debug!(?event, "network");
        if let TransportEvent::Disconnected { host, .. } = &event {
            self.engine.host_lost(*host);
        }
        self.ear.tell(HostEvent::Network(event));
    }
}
