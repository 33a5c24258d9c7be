//! The links between the hosts: delays, losses, repetitions and partitions, drawn from the seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use raft_engine::{Outbound, SnapshotTransfer};
use raft_proto::{Envelope, HostId, Time};

use crate::machine::mix;
use crate::promises::Promises;
use crate::rng::Rng;

/// What a host's engine sends gathers here until the cluster takes it up.
#[derive(Default)]
pub struct Outbox {
    pub messages: Mutex<VecDeque<(HostId, Vec<Envelope>)>>,
    pub snapshots: Mutex<VecDeque<(HostId, SnapshotTransfer)>>,
}

impl Outbound for Outbox {
    fn send(&self, to: HostId, messages: Vec<Envelope>) {
        self.messages
            .lock()
            .expect("no test panics under this lock")
            .push_back((to, messages));
    }

    fn send_snapshot(&self, to: HostId, transfer: SnapshotTransfer) {
        self.snapshots
            .lock()
            .expect("no test panics under this lock")
            .push_back((to, transfer));
    }
}

/// One burst of messages on its way, as bytes: every message passes the codec.
pub struct Packet {
    pub from: HostId,
    pub to: HostId,
    pub messages: Vec<Bytes>,
}

#[derive(Default)]
pub struct Network {
    in_flight: BTreeMap<(Time, u64), Packet>,
    sequence: u64,
    /// Directed links that are cut.
    cut: BTreeSet<(HostId, HostId)>,
    pub loss_percent: u64,
    pub delay_max_nanos: u64,
    /// Covers every byte sent.
    pub trace: u64,
    pub delivered: u64,
    pub promises: Promises,
}

impl Network {
    pub fn send(
        &mut self,
        now: Time,
        rng: &mut Rng,
        from: HostId,
        to: HostId,
        envelopes: &[Envelope],
    ) {
        let mut messages = Vec::new();
        for envelope in envelopes {
            self.promises.note(envelope);
            let mut bytes = BytesMut::new();
            envelope.encode_into(&mut bytes);
            self.trace = mix(self.trace, u64::from(raft_proto::crc32c_append(0, &bytes)));
            messages.push(bytes.freeze());
        }
        self.trace = mix(self.trace, now.0);
        if self.cut.contains(&(from, to)) || rng.below(100) < self.loss_percent {
            return;
        }
        let copies = if rng.below(50) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            let delay = 50_000 + rng.below(self.delay_max_nanos);
            self.sequence += 1;
            let packet = Packet {
                from,
                to,
                messages: messages.clone(),
            };
            self.in_flight
                .insert((now.plus_nanos(delay), self.sequence), packet);
        }
    }

    pub fn next_time(&self) -> Option<Time> {
        self.in_flight.keys().next().map(|key| key.0)
    }

    pub fn take_due(&mut self, now: Time) -> Option<Packet> {
        let entry = self.in_flight.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let packet = entry.remove();
        if self.cut.contains(&(packet.from, packet.to)) {
            return self.take_due(now);
        }
        self.delivered += 1;
        Some(packet)
    }

    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// Cuts one directed link.
    pub fn cut(&mut self, from: HostId, to: HostId) {
        self.cut.insert((from, to));
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }
}

/// A handle for the engine and one for the cluster.
pub fn outbox() -> Arc<Outbox> {
    Arc::default()
}
