//! Stored snapshots on their way from one host's directory to another's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use raft_engine::{Engine, ReceivedSnapshot, SnapshotTransfer};
use raft_proto::{GroupId, HostId, Membership, ReplicaId, SnapshotMeta};
use raft_snapshot::{Manifest, SnapshotError, SnapshotReader, SnapshotReceiver};
use raft_transport::{
    BoxError, SnapshotAbort, SnapshotOffer, SnapshotOutcome, SnapshotRefusal, SnapshotSink,
    SnapshotSource,
};
use tokio::task;

use super::Way;

/// Streams a stored snapshot; the group hears how it went.
pub(super) async fn send(way: &Arc<Way>, to: HostId, transfer: SnapshotTransfer) {
    // The semaphore is never closed.
    let Ok(turn) = Arc::clone(&way.sending).acquire_owned().await else {
        return;
    };
    let (group, replica) = (transfer.group, transfer.to);
    let opened = task::spawn_blocking(move || {
        let reader = transfer.env.open_snapshot(transfer.meta.id.index);
        (transfer, reader)
    });
    let (transfer, reader) = match opened.await {
        Ok((transfer, Ok(reader))) => (transfer, reader),
        Ok((transfer, Err(error))) => {
            tracing::warn!(group = group.get(), %error, "a snapshot cannot be sent");
            return transfer.report.failed();
        }
        // The runtime is shutting down; the report says so by being dropped.
        Err(_) => return,
    };
    let Some(transport) = way.transport() else {
        return transfer.report.failed();
    };
    let offer = SnapshotOffer {
        group,
        epoch: transfer.epoch,
        from: transfer.from,
        to: replica,
        term: transfer.term,
        meta: transfer.meta.membership.encode().into(),
        manifest: reader.manifest().encode(),
    };
    let report = transfer.report;
    let done = Box::new(move |outcome| {
        drop(turn);
        match outcome {
            // One that has it already, or something newer, needs no other.
            SnapshotOutcome::Finished | SnapshotOutcome::Refused(SnapshotRefusal::OutOfDate) => {
                report.finished();
            }
            SnapshotOutcome::Refused(refusal) => {
                tracing::info!(group = group.get(), to = replica.get(), %refusal, "snapshot refused");
                report.failed();
            }
            SnapshotOutcome::Failed(failure) => {
                tracing::info!(group = group.get(), to = replica.get(), %failure, "snapshot not sent");
                report.failed();
            }
        }
    });
    transport.send_snapshot(to, offer, Box::new(Source { reader }), done);
}

struct Source {
    reader: SnapshotReader,
}

impl SnapshotSource for Source {
    fn next_block(&mut self) -> Result<Option<Bytes>, BoxError> {
        Ok(self.reader.next()?)
    }
}

/// The replicas that receive a snapshot now: one stream each, so that two leaders' streams never
/// share a directory.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Mutex<BTreeSet<(GroupId, ReplicaId)>>);

impl Receiving {
    fn begin(self: &Arc<Self>, group: GroupId, replica: ReplicaId) -> Option<Place> {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert((group, replica)).then(|| Place {
            receiving: Arc::clone(self),
            key: (group, replica),
        })
    }
}

/// The right to receive for one replica, given back when dropped.
struct Place {
    receiving: Arc<Receiving>,
    key: (GroupId, ReplicaId),
}

impl Drop for Place {
    fn drop(&mut self) {
        let busy = &self.receiving.0;
        busy.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

/// Decides about an offered snapshot.
pub(super) fn receive(
    engine: &Engine,
    receiving: &Arc<Receiving>,
    from: HostId,
    offer: SnapshotOffer,
) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal> {
    let malformed = |what: &str| SnapshotRefusal::Malformed(what.to_owned());
    let manifest = Manifest::decode(&offer.manifest).ok_or_else(|| malformed("manifest"))?;
    let found = (manifest.meta.group, manifest.meta.epoch);
    if found != (offer.group, offer.epoch) || manifest.meta.membership != offer.meta {
        return Err(malformed("the manifest is of another snapshot"));
    }
    let membership = Membership::decode(&offer.meta).map_err(|_| malformed("membership"))?;
    let meta = SnapshotMeta {
        id: manifest.meta.id,
        membership,
    };
    let env = engine
        .receive_env(offer.group, offer.epoch, offer.to)
        .map_err(|error| {
            tracing::debug!(group = offer.group.get(), %error, "snapshot refused");
            SnapshotRefusal::UnknownReplica
        })?;
    let place = receiving
        .begin(offer.group, offer.to)
        .ok_or(SnapshotRefusal::Busy)?;
    let receiver = env.begin_receive(manifest).map_err(|error| match error {
        SnapshotError::OutOfDate(_) => SnapshotRefusal::OutOfDate,
        SnapshotError::Io(error) if error.source.kind() == std::io::ErrorKind::StorageFull => {
            SnapshotRefusal::NoSpace
        }
        other => SnapshotRefusal::Other(other.to_string()),
    })?;
    tracing::debug!(
        group = offer.group.get(),
        from = from.get(),
        index = meta.id.index.get(),
        "receives a snapshot"
    );
    Ok(Box::new(Sink {
        receiver,
        block: 0,
        engine: engine.clone(),
        host: from,
        offer,
        meta,
        _place: place,
    }))
}

struct Sink {
    receiver: SnapshotReceiver,
    block: usize,
    engine: Engine,
    host: HostId,
    offer: SnapshotOffer,
    meta: SnapshotMeta,
    _place: Place,
}

impl SnapshotSink for Sink {
    fn block(&mut self, block: Bytes) -> Result<(), BoxError> {
        self.receiver.block(self.block, block)?;
        self.block += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BoxError> {
        self.receiver.finish()?;
        // Only what is committed on disk is shown to the core.
        let offer = &self.offer;
        self.engine.snapshot_received(ReceivedSnapshot {
            group: offer.group,
            host: self.host,
            from: offer.from,
            to: offer.to,
            term: offer.term,
            meta: self.meta,
        });
        Ok(())
    }

    fn abort(self: Box<Self>, reason: SnapshotAbort) {
        // The receiver, dropped, removes what was taken.
        tracing::info!(group = self.offer.group.get(), %reason, "snapshot given up");
    }
}
