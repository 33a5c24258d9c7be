//! The messages that wait for one peer, bounded in bytes over all its lanes.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_proto::{Envelope, GroupId, ReplicaId};
use tokio::sync::Notify;

/// A replica that a message was meant for.
pub(crate) type Destination = (GroupId, ReplicaId);

/// The lane for votes, heartbeats and their replies. The others are bulk lanes.
pub(crate) const CONTROL_LANE: usize = 0;

#[derive(Debug)]
pub(crate) struct PeerQueue {
    lanes: Box<[Lane]>,
    /// Bytes waiting, or taken and not yet handed to QUIC.
    bytes: AtomicU64,
    bytes_max: u64,
    message_bytes_max: u64,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: Vec<Envelope>,
    bytes: u64,
}

impl PeerQueue {
    pub(crate) fn new(bulk_lanes: usize, bytes_max: u64, message_bytes_max: usize) -> Self {
        Self {
            lanes: (0..=bulk_lanes).map(|_| Lane::default()).collect(),
            bytes: AtomicU64::new(0),
            bytes_max,
            message_bytes_max: as_u64(message_bytes_max),
        }
    }

    pub(crate) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// Puts each message into its lane and returns whose messages found no room.
    pub(crate) fn push(&self, batch: Vec<Envelope>) -> Vec<Destination> {
        let mut dropped = Vec::new();
        let mut held: Option<(usize, MutexGuard<'_, Waiting>)> = None;
        for envelope in batch {
            let bytes = as_u64(envelope.encoded_bytes());
            if bytes > self.message_bytes_max || !self.reserve(bytes) {
                dropped.push((envelope.group, envelope.message.to));
                continue;
            }
            let lane = self.lane_of(&envelope);
            // Runs of messages for one lane take its lock and wake its writer once.
            let waiting = match &mut held {
                Some((index, waiting)) if *index == lane => waiting,
                _ => {
                    self.wake(held.take());
                    &mut held.insert((lane, lock(&self.lanes[lane].waiting))).1
                }
            };
            waiting.bytes += bytes;
            waiting.messages.push(envelope);
        }
        self.wake(held);
        dropped
    }

    fn wake(&self, held: Option<(usize, MutexGuard<'_, Waiting>)>) {
        if let Some((lane, waiting)) = held {
            drop(waiting);
            self.lanes[lane].wake.notify_one();
        }
    }

    fn reserve(&self, bytes: u64) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = before + bytes <= self.bytes_max;
        if !has_room {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        has_room
    }

    /// A group is always on the same bulk lane.
    fn lane_of(&self, envelope: &Envelope) -> usize {
        if envelope.message.is_control() {
            return CONTROL_LANE;
        }
        let hash = envelope.group.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let bulk_lanes = as_u64(self.lanes.len() - 1);
        1 + usize::try_from(hash % bulk_lanes).expect("below the number of lanes")
    }

    /// Waits for messages of `lane` and takes all of them.
    pub(crate) async fn take(self: &Arc<Self>, lane: usize) -> Taken {
        loop {
            let waiting = mem::take(&mut *lock(&self.lanes[lane].waiting));
            if !waiting.messages.is_empty() {
                return Taken {
                    messages: waiting.messages,
                    bytes: waiting.bytes,
                    queue: Arc::clone(self),
                };
            }
            self.lanes[lane].wake.notified().await;
        }
    }

    /// Drops everything that waits and returns whose messages that were.
    pub(crate) fn drain(&self) -> Vec<Destination> {
        let mut dropped = Vec::new();
        for lane in &self.lanes {
            let waiting = mem::take(&mut *lock(&lane.waiting));
            self.bytes.fetch_sub(waiting.bytes, Ordering::Relaxed);
            dropped.extend(waiting.messages.iter().map(|it| (it.group, it.message.to)));
        }
        dropped
    }
}

/// Messages taken from a queue. Their room is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) messages: Vec<Envelope>,
    bytes: u64,
    queue: Arc<PeerQueue>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.queue.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// No code panics while it holds these locks, and a queue is sound after each step anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a usize has at most 64 bits")
}
