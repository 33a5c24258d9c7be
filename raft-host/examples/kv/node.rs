//! This process's part in the cluster: its host, its groups, and who leads what.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use raft_host::{
    GroupHandle, GroupId, GroupStart, GroupStatus, HostId, NodeHost, ReadError, ReplicaId, Start,
};
use tokio::task::JoinSet;

use crate::machine::KeyValues;
use crate::slots;

/// A host with all its groups running.
pub(crate) struct Node {
    host: Arc<NodeHost>,
    /// Group g at place g - 1.
    groups: Vec<GroupHandle>,
    redis: SocketAddr,
    started: Instant,
}

/// Each host has one replica a group, with the host's own number. A host that was removed from a
/// group and is to come back does so under a new id.
pub(crate) fn replica_on(host: HostId) -> ReplicaId {
    ReplicaId::new(host.get()).expect("what is a host id is a replica id")
}

/// The host of a replica.
pub(crate) fn host_of(replica: ReplicaId) -> HostId {
    HostId::new(replica.get()).expect("what is a replica id is a host id")
}

impl Node {
    /// Starts all groups: again if their state is here, else as founders or as joiners.
    pub(crate) async fn start(
        host: NodeHost,
        redis: SocketAddr,
        groups: u64,
        voters: &[HostId],
    ) -> Result<Self> {
        let host = Arc::new(host);
        let known: BTreeSet<GroupId> = host
            .recovered()
            .into_iter()
            .map(|found| found.group)
            .collect();
        let founders: BTreeMap<ReplicaId, HostId> = voters
            .iter()
            .map(|&voter| (replica_on(voter), voter))
            .collect();
        let mut starting = JoinSet::new();
        for id in 1..=groups {
            let group = GroupId::new(id).context("0 is no group")?;
            let start = if known.contains(&group) {
                Start::Restart
            } else if founders.is_empty() {
                Start::Join
            } else {
                Start::Bootstrap {
                    members: founders.clone(),
                }
            };
            let start = GroupStart {
                group,
                replica: replica_on(host.host()),
                start,
                machine: Box::<KeyValues>::default(),
            };
            let host = Arc::clone(&host);
            starting.spawn(async move { host.start_group(start).await });
        }
        let mut started = BTreeMap::new();
        while let Some(group) = starting.join_next().await {
            let group = group??;
            started.insert(group.group(), group);
        }
        Ok(Self {
            host,
            groups: started.into_values().collect(),
            redis,
            started: Instant::now(),
        })
    }

    pub(crate) fn host(&self) -> &NodeHost {
        &self.host
    }

    pub(crate) fn groups(&self) -> &[GroupHandle] {
        &self.groups
    }

    pub(crate) fn group_count(&self) -> u64 {
        u64::try_from(self.groups.len()).expect("a few thousand at most")
    }

    pub(crate) fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// The group with this number.
    pub(crate) fn group(&self, id: u64) -> Option<&GroupHandle> {
        self.groups.get(usize::try_from(id.checked_sub(1)?).ok()?)
    }

    /// The group that owns a slot.
    pub(crate) fn group_of_slot(&self, slot: u16) -> &GroupHandle {
        let id = slots::group_of_slot(slot, self.group_count());
        self.group(id.get()).expect("every slot has its group")
    }

    /// Where clients find a host, if it has ever been connected.
    pub(crate) fn redis_of(&self, host: HostId) -> Option<SocketAddr> {
        if host == self.host.host() {
            return Some(self.redis);
        }
        let advertised = self.host.advertised_by(host)?;
        std::str::from_utf8(&advertised).ok()?.parse().ok()
    }

    /// All hosts that clients can be sent to, by id.
    pub(crate) fn reachable(&self) -> BTreeMap<HostId, SocketAddr> {
        self.host
            .registry()
            .all()
            .into_keys()
            .chain([self.host.host()])
            .filter_map(|host| Some((host, self.redis_of(host)?)))
            .collect()
    }

    /// The host that leads a group and where clients find it.
    pub(crate) fn leader_of(&self, group: &GroupHandle) -> Option<(HostId, SocketAddr)> {
        let host = host_of(group.leader()?);
        Some((host, self.redis_of(host)?))
    }

    /// How all groups stand, in their order.
    pub(crate) async fn statuses(&self) -> Vec<Result<GroupStatus, ReadError>> {
        // All are asked before the first is waited for.
        let asked: Vec<_> = self.groups.iter().map(GroupHandle::status).collect();
        let mut statuses = Vec::with_capacity(asked.len());
        for status in asked {
            statuses.push(status.await);
        }
        statuses
    }
}
