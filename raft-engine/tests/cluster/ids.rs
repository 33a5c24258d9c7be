//! Ids by their numbers, and the numbers that a list machine answers with.

use raft_proto::{GroupId, HostId, ReplicaId};

pub fn host(id: u64) -> HostId {
    HostId::new(id).expect("not 0")
}

pub fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("not 0")
}

pub fn group(id: u64) -> GroupId {
    GroupId::new(id).expect("not 0")
}

pub fn numbers(list: &[u8]) -> Vec<u64> {
    list.chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect()
}
