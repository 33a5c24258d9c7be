//! Who writes and reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use raft_engine::Responder;
use raft_proto::{GroupId, ReplicaId};

use super::{Run, numbers, replica};
use crate::machine::filler;
use crate::oracle::{Slot, WriteSlot};

pub(super) struct PendingRead {
    pub(super) replica: ReplicaId,
    pub(super) group: GroupId,
    pub(super) must_contain: BTreeSet<u64>,
    pub(super) slot: Arc<Slot<Bytes>>,
}

impl Run {
    pub(super) fn client(&mut self) {
        let at = self.pick_host();
        let group = self.pick_group();
        let Some((engine, _)) = &self.hosts[at].running else {
            return;
        };
        if self.rng.one_in(6) {
            let must_contain = self
                .book
                .lock()
                .expect("no panic under it")
                .acknowledged_of(group);
            let slot = Slot::new();
            let completion: Arc<Slot<Bytes>> = Arc::clone(&slot);
            engine.read(group, Bytes::new(), Responder::new(completion));
            self.reads.push(PendingRead {
                replica: replica(self.hosts[at].id.get()),
                group,
                must_contain,
                slot,
            });
            return;
        }
        for _ in 0..1 + self.rng.below(4) {
            let number = self.next_number;
            self.next_number += 1;
            self.book
                .lock()
                .expect("no panic under it")
                .open(number, group);
            let mut command = BytesMut::new();
            command.put_u64_le(number);
            // Now and then a big one: segments fill, and bounds in bytes are met.
            let len_max = if self.rng.one_in(8) { 12_000 } else { 600 };
            let len = usize::try_from(self.rng.below(len_max)).expect("small");
            command.put_bytes(filler(number), len);
            let slot = Arc::new(WriteSlot {
                number,
                book: Arc::clone(&self.book),
            });
            engine.propose(group, command.freeze(), None, Responder::new(slot));
        }
    }

    pub(super) fn finish_reads(&mut self) {
        let mut wrong = Vec::new();
        let report = &mut self.report;
        self.reads.retain(|read| match read.slot.take() {
            None => true,
            Some(Err(_)) => false,
            Some(Ok(list)) => {
                report.reads += 1;
                let list = numbers(&list);
                for number in &read.must_contain {
                    if !list.contains(number) {
                        wrong.push(format!(
                            "group {}: a read missed write {number}, acknowledged before it",
                            read.group
                        ));
                    }
                }
                false
            }
        });
        self.report.violations.append(&mut wrong);
    }
}
