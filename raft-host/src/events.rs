//! What a host tells those who listen, and what it remembers of it.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use raft_engine::Event;
use raft_proto::{GroupId, HostId, ReplicaId};
use raft_transport::TransportEvent;
use rustc_hash::FxHashMap;
use tokio::sync::{broadcast, watch};

/// Something that an operator or a program may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostEvent {
    /// Of a group, or of the log.
    Engine(Event),
    /// Of a connection.
    Network(TransportEvent),
    /// A peer came with a wiped, swapped or rolled-back directory and was refused. If it is to
    /// take part again, remove its replicas from their groups, say
    /// [`NodeHost::forget`](crate::NodeHost::forget), and add it anew.
    HostReplaced {
        /// The peer.
        host: HostId,
    },
}

/// Takes events from workers and network tasks without ever waiting for a listener.
#[derive(Debug)]
pub(crate) struct Ear {
    events: broadcast::Sender<HostEvent>,
    failed: watch::Sender<Option<String>>,
    leaders: RwLock<FxHashMap<GroupId, Arc<LeaderHint>>>,
    /// What each peer that was ever connected says of itself.
    advertised: RwLock<FxHashMap<HostId, Bytes>>,
}

impl Ear {
    pub(crate) fn new(events_max: usize) -> Self {
        Self {
            events: broadcast::Sender::new(events_max),
            failed: watch::Sender::new(None),
            leaders: RwLock::default(),
            advertised: RwLock::default(),
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<HostEvent> {
        self.events.subscribe()
    }

    pub(crate) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    pub(crate) fn tell(&self, event: HostEvent) {
        // An error only says that nobody listens.
        let _ = self.events.send(event);
    }

    /// Takes an event of the engine; whether it says that the host has failed.
    pub(crate) fn on_engine_event(&self, event: Event) -> bool {
        let mut is_failure = false;
        match &event {
            Event::LeaderChanged { group, leader, .. } => {
                if let Some(hint) = self.hint(*group) {
                    hint.set(*leader);
                }
            }
            Event::GroupFailed { group, .. } => {
                if let Some(hint) = self.hint(*group) {
                    hint.set(None);
                }
            }
            Event::HostFailed { reason } => {
                is_failure = true;
                let leaders = self.leaders.read().unwrap_or_else(PoisonError::into_inner);
                leaders.values().for_each(|hint| hint.set(None));
                drop(leaders);
                self.failed.send_if_modified(|failed| {
                    let is_first = failed.is_none();
                    failed.get_or_insert_with(|| reason.clone());
                    is_first
                });
            }
            _ => {}
        }
        self.tell(HostEvent::Engine(event));
        is_failure
    }

    /// Remembers what a peer that was admitted says of itself. There are no more of them than the
    /// record of peers takes.
    pub(crate) fn advertises(&self, host: HostId, advertised: Bytes) {
        let mut all = self
            .advertised
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        all.insert(host, advertised);
    }

    pub(crate) fn advertised_by(&self, host: HostId) -> Option<Bytes> {
        let all = self
            .advertised
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        all.get(&host).cloned()
    }

    /// The hint of a group that starts.
    pub(crate) fn add_hint(&self, group: GroupId) -> Arc<LeaderHint> {
        let mut leaders = self.leaders.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(leaders.entry(group).or_default())
    }

    pub(crate) fn remove_hint(&self, group: GroupId) {
        let mut leaders = self.leaders.write().unwrap_or_else(PoisonError::into_inner);
        leaders.remove(&group);
    }

    pub(crate) fn hint(&self, group: GroupId) -> Option<Arc<LeaderHint>> {
        let leaders = self.leaders.read().unwrap_or_else(PoisonError::into_inner);
        leaders.get(&group).cloned()
    }
}

/// Who leads a group, as the replica here last heard.
#[derive(Debug, Default)]
pub(crate) struct LeaderHint(watch::Sender<Option<ReplicaId>>);

impl LeaderHint {
    fn set(&self, leader: Option<ReplicaId>) {
        self.0.send_replace(leader);
    }

    pub(crate) fn leader(&self) -> Option<ReplicaId> {
        *self.0.borrow()
    }

    /// Waits until somebody leads.
    pub(crate) async fn known(&self) -> ReplicaId {
        let mut news = self.0.subscribe();
        loop {
            if let Some(leader) = *news.borrow_and_update() {
                return leader;
            }
            if news.changed().await.is_err() {
                // The sender lives as long as this does.
                std::future::pending::<()>().await;
            }
        }
    }
}
