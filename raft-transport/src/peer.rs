//! One peer: a queue, and a task that keeps a connection under it.

use std::sync::Arc;

use quinn::Connection;
use raft_proto::HostId;
use rustc_hash::FxHashSet;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time;

use crate::backoff::Backoff;
use crate::delivery::TransportEvent;
use crate::endpoint::{self, Purpose, Shared};
use crate::error::ConnectionEnd;
use crate::message_stream::{self, Written};
use crate::queue::{Destination, PeerQueue};

/// Newer connections that wait to replace the one in use. More are turned away.
const ACCEPTED_MAX: usize = 4;

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) queue: Arc<PeerQueue>,
    /// Takes connections that the peer dialled, Hello done.
    pub(crate) accepted: mpsc::Sender<Connection>,
    /// Ends the task when it is dropped with the peer.
    _stop: watch::Sender<()>,
}

impl Peer {
    /// Starts the task of a peer. It ends when the peer is dropped.
    pub(crate) fn start(shared: &Arc<Shared>, host: HostId) -> Self {
        let limits = &shared.config.limits;
        let queue = Arc::new(PeerQueue::new(
            limits.bulk_lanes,
            limits.queue_bytes_max,
            limits.frame_bytes_max,
        ));
        let (accepted, newer) = mpsc::channel(ACCEPTED_MAX);
        let (stop, mut stopped) = watch::channel(());
        let shared = Arc::clone(shared);
        let task = PeerTask {
            shared: Arc::clone(&shared),
            host,
            queue: Arc::clone(&queue),
            newer,
        };
        shared.runtime.spawn(async move {
            tokio::select! {
                () = task.run() => {}
                _ = stopped.changed() => {}
            }
        });
        Self {
            queue,
            accepted,
            _stop: stop,
        }
    }
}

struct PeerTask {
    shared: Arc<Shared>,
    host: HostId,
    queue: Arc<PeerQueue>,
    newer: mpsc::Receiver<Connection>,
}

impl PeerTask {
    async fn run(mut self) {
        let limits = &self.shared.config.limits;
        // Two hosts never draw the same pauses.
        let seed = self.shared.config.host.get() ^ self.host.get().rotate_left(32);
        let mut backoff = Backoff::new(seed, limits.backoff_min, limits.backoff_max);
        let is_dialler = self.shared.config.host < self.host;
        let mut next = None;
        loop {
            let connection = match next.take() {
                Some(newer) => newer,
                None if is_dialler => self.dial(&mut backoff).await,
                None => match self.wait_for_dial().await {
                    Some(accepted) => accepted,
                    None => return,
                },
            };
            backoff.on_connected(self.shared.now());
            self.shared.counters.connections.add(1);
            self.shared
                .delivery
                .event(TransportEvent::Connected { host: self.host });
            let written = Arc::new(Written::default());
            let end = self.converse(&connection, &written, &mut next).await;
            self.shared.close(&connection, &end);
            let mut lost = written.take();
            if next.is_none() {
                lost.extend(self.drain());
            }
            self.report_lost(lost);
            self.shared.delivery.event(TransportEvent::Disconnected {
                host: self.host,
                end,
            });
            if is_dialler {
                self.pause(&mut backoff).await;
            }
        }
    }

    /// Dials until a connection stands.
    async fn dial(&self, backoff: &mut Backoff) -> Connection {
        loop {
            match endpoint::dial(&self.shared, self.host, Purpose::Messages).await {
                Ok(established) => return established.connection,
                Err(end) => {
                    self.report_lost(self.drain().into_iter().collect());
                    let event = TransportEvent::ConnectFailed {
                        host: self.host,
                        end,
                    };
                    self.shared.delivery.event(event);
                }
            }
            self.pause(backoff).await;
        }
    }

    async fn pause(&self, backoff: &mut Backoff) {
        let until = backoff.on_failure(self.shared.now());
        time::sleep_until(self.shared.instant(until)).await;
    }

    /// Waits for the peer to dial, and lets no message grow old meanwhile.
    async fn wait_for_dial(&mut self) -> Option<Connection> {
        loop {
            let age_max = self.shared.config.limits.queue_age_max;
            match time::timeout(age_max, self.newer.recv()).await {
                Ok(accepted) => return accepted,
                Err(_) => self.report_lost(self.drain().into_iter().collect()),
            }
        }
    }

    /// Runs the lanes of a connection until it ends or a newer one replaces it.
    async fn converse(
        &mut self,
        connection: &Connection,
        written: &Arc<Written>,
        next: &mut Option<Connection>,
    ) -> ConnectionEnd {
        let mut tasks = JoinSet::new();
        let shared = || Arc::clone(&self.shared);
        tasks.spawn(message_stream::read_all(
            shared(),
            connection.clone(),
            self.host,
        ));
        for lane in 0..self.queue.lanes() {
            let queue = Arc::clone(&self.queue);
            let written = Arc::clone(written);
            tasks.spawn(message_stream::write(
                shared(),
                connection.clone(),
                queue,
                lane,
                written,
            ));
        }
        let end = tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(Err(end)) => end,
                Ok(Ok(())) => ConnectionEnd::Closed,
                Err(panic) => ConnectionEnd::Failed { detail: panic.to_string() },
            },
            Some(newer) = self.newer.recv() => {
                *next = Some(newer);
                ConnectionEnd::Replaced
            }
        };
        tasks.shutdown().await;
        end
    }

    fn drain(&self) -> Vec<Destination> {
        let dropped = self.queue.drain();
        self.shared.counters.messages_dropped.add(dropped.len());
        dropped
    }

    fn report_lost(&self, lost: FxHashSet<Destination>) {
        if !lost.is_empty() {
            self.shared
                .delivery
                .unreachable(self.host, lost.into_iter().collect());
        }
    }
}
