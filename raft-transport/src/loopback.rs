//! Transports that are joined in memory: the same interface without a network.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use raft_proto::{Envelope, HostId};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::delivery::{
    Delivery, SnapshotAbort, SnapshotFailure, SnapshotOffer, SnapshotOutcome, SnapshotRefusal,
    SnapshotSource,
};
use crate::endpoint::{SnapshotDone, Transport};
use crate::error::ConnectionEnd;
use crate::stats::{Counters, TransportStats};

/// A network in memory, for tests and for several hosts in one process.
///
/// Messages are delivered on the sender's thread, before [`Transport::send`] returns. There are
/// no identities and there is no Hello.
#[derive(Clone, Debug, Default)]
pub struct LoopbackMesh {
    state: Arc<Mutex<Mesh>>,
}

#[derive(Default)]
struct Mesh {
    hosts: FxHashMap<HostId, Arc<dyn Delivery>>,
    /// Pairs, lower id first, between which nothing passes.
    cut: FxHashSet<(HostId, HostId)>,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("hosts", &self.hosts.keys())
            .field("cut", &self.cut)
            .finish()
    }
}

impl LoopbackMesh {
    /// Makes an empty mesh.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a host, or replaces one, until its transport is closed.
    pub fn join(&self, host: HostId, delivery: Arc<dyn Delivery>) -> Transport {
        self.lock().hosts.insert(host, Arc::clone(&delivery));
        let counters = Arc::new(Counters::default());
        Transport::loopback(LoopbackLink {
            mesh: self.clone(),
            host,
            delivery,
            counters,
        })
    }

    /// Lets nothing pass between two hosts any more, or again.
    pub fn set_cut(&self, a: HostId, b: HostId, is_cut: bool) {
        let pair = (a.min(b), a.max(b));
        if is_cut {
            self.lock().cut.insert(pair);
        } else {
            self.lock().cut.remove(&pair);
        }
    }

    fn delivery(&self, from: HostId, to: HostId) -> Option<Arc<dyn Delivery>> {
        let mesh = self.lock();
        let is_cut = mesh.cut.contains(&(from.min(to), from.max(to)));
        if is_cut {
            None
        } else {
            mesh.hosts.get(&to).cloned()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Mesh> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One host's place in a mesh.
pub(crate) struct LoopbackLink {
    mesh: LoopbackMesh,
    host: HostId,
    delivery: Arc<dyn Delivery>,
    counters: Arc<Counters>,
}

impl fmt::Debug for LoopbackLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopbackLink")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl LoopbackLink {
    pub(crate) fn send(&self, to: HostId, batch: Vec<Envelope>) {
        match self.mesh.delivery(self.host, to) {
            Some(delivery) => {
                self.counters.messages_sent.add(batch.len());
                delivery.messages(self.host, batch);
            }
            None => {
                self.counters.messages_dropped.add(batch.len());
                let lost: FxHashSet<_> = batch.iter().map(|it| (it.group, it.message.to)).collect();
                self.delivery.unreachable(to, lost.into_iter().collect());
            }
        }
    }

    pub(crate) fn send_snapshot(
        &self,
        to: HostId,
        offer: SnapshotOffer,
        mut source: Box<dyn SnapshotSource>,
        done: SnapshotDone,
    ) {
        let Some(delivery) = self.mesh.delivery(self.host, to) else {
            let end = ConnectionEnd::NoAddress;
            return done(SnapshotOutcome::Failed(SnapshotFailure::Connection(end)));
        };
        let (from, counters) = (self.host, Arc::clone(&self.counters));
        thread::spawn(move || done(stream(&*delivery, from, offer, &mut *source, &counters)));
    }

    pub(crate) fn stats(&self) -> TransportStats {
        self.counters.read()
    }

    pub(crate) fn close(&self) {
        let mut mesh = self.mesh.lock();
        if mesh
            .hosts
            .get(&self.host)
            .is_some_and(|it| Arc::ptr_eq(it, &self.delivery))
        {
            mesh.hosts.remove(&self.host);
        }
    }
}

fn stream(
    delivery: &dyn Delivery,
    from: HostId,
    offer: SnapshotOffer,
    source: &mut dyn SnapshotSource,
    counters: &Counters,
) -> SnapshotOutcome {
    let mut sink = match delivery.snapshot_offered(from, offer) {
        Ok(sink) => sink,
        Err(refusal) => return SnapshotOutcome::Refused(refusal),
    };
    loop {
        match source.next_block() {
            Ok(Some(block)) => {
                counters.snapshot_bytes_sent.add(block.len());
                if let Err(error) = sink.block(block) {
                    let detail = error.to_string();
                    sink.abort(SnapshotAbort::Sink {
                        detail: detail.clone(),
                    });
                    return SnapshotOutcome::Refused(SnapshotRefusal::Other(detail));
                }
            }
            Ok(None) => break,
            Err(error) => {
                sink.abort(SnapshotAbort::ConnectionLost);
                let detail = error.to_string();
                return SnapshotOutcome::Failed(SnapshotFailure::Source { detail });
            }
        }
    }
    match sink.finish() {
        Ok(()) => SnapshotOutcome::Finished,
        Err(error) => SnapshotOutcome::Refused(SnapshotRefusal::Other(error.to_string())),
    }
}
