//! Snapshot streams between hosts.

use raft_engine::{ReceivedSnapshot, SnapshotTransfer};
use raft_proto::{HostId, Time};

use super::{MILLISECOND, Run};
use crate::machine::mix;

/// A snapshot stream between two hosts, one block an event.
pub(super) struct Stream {
    pub(super) from: HostId,
    pub(super) to: HostId,
    pub(super) next_at: Time,
    pub(super) transfer: Option<SnapshotTransfer>,
    pub(super) reader: raft_snapshot::SnapshotReader,
    pub(super) receiver: Option<raft_snapshot::SnapshotReceiver>,
    pub(super) block: usize,
}

impl Run {
    pub(super) fn open_stream(&mut self, from: HostId, to: HostId, transfer: SnapshotTransfer) {
        // A host takes in one for a replica at a time.
        let is_busy = |stream: &Stream| {
            let other = stream.transfer.as_ref();
            other.is_some_and(|other| (other.group, other.to) == (transfer.group, transfer.to))
        };
        if self.streams.iter().any(is_busy) {
            return transfer.report.failed();
        }
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

    pub(super) fn carry_streams(&mut self) -> bool {
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
}
