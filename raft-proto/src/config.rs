//! What can be set, with units and bounds.

use crate::inflight::InflightMax;
use crate::ready::RestoredError;
use crate::types::{GroupId, ReplicaId};

/// Settings of one replica's core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The group.
    pub group: GroupId,
    /// This replica.
    pub id: ReplicaId,
    /// The group's epoch, which every envelope carries: raised when a group is rebuilt from an
    /// exported snapshot, so that its old majority cannot rejoin. Default 0.
    pub epoch: u64,
    /// What election timeouts are drawn from. Give each start of a replica another one.
    pub seed: u64,
    /// Which life of the replica this is: a number that no other start of it has. Answers to reads
    /// carry it, so that none meant for an earlier life serves a read of this one (hazard 39).
    /// Default: the seed.
    pub life: u64,
    /// Lower bound of the election timeout; more than `heartbeat_ticks`. Default 30.
    pub election_timeout_ticks_min: u64,
    /// Upper bound of the election timeout. Default 60.
    pub election_timeout_ticks_max: u64,
    /// Ticks between heartbeats, at least 1. Default 5.
    pub heartbeat_ticks: u64,
    /// Ask before an election whether it can be won (thesis §9.6). Default on.
    pub pre_vote: bool,
    /// Step down when no quorum is heard of for an election timeout (thesis §6.2). Default on.
    pub check_quorum: bool,
    /// Step down when removed or demoted. Default on.
    pub step_down_on_removal: bool,
    /// Length of the leader's lease, from the sending of a heartbeat round that a quorum confirmed
    /// (thesis §6.4.1); at most `election_timeout_ticks_min`, less what clocks may drift apart in
    /// that time; needs `check_quorum`. 0, the default: reads take a round each pass.
    ///
    /// All replicas of a group need the same. Raising it, stop them all first, or raise
    /// [`Restored::lease_ticks`](crate::Restored::lease_ticks) of all before: what a follower
    /// promises its leader is as long as its own setting. Lowering it, name the earlier one there
    /// until all were started with the lower one.
    pub lease_ticks: u64,
    /// As in etcd-raft, [`Raft::campaign`](crate::Raft::campaign) stands within a lease that this
    /// replica granted. Reads by lease may then be stale. Default off.
    pub campaign_within_lease: bool,
    /// Check membership changes against the membership in force, and take one at a time. Off only
    /// for a caller that orders changes by itself. Default on.
    pub validate_changes: bool,
    /// Take membership changes only when an entry of the own term is committed. etcd does without:
    /// there the switch at commit makes up for it. Default on.
    pub change_after_own_commit: bool,
    /// A membership entry is done with when [`Raft::applied`](crate::Raft::applied) passes it, as in
    /// etcd, and not already when [`Raft::apply_membership`](crate::Raft::apply_membership) switched
    /// to it. Default off.
    pub change_done_when_applied: bool,
    /// The driver makes each [`Ready`](crate::Ready) durable before it applies that same one's
    /// `committed`: entries are then handed out for both at once. Default off: what is handed out
    /// as committed is durable already.
    pub applies_after_sync: bool,
    /// Election timeouts without any work after which a group falls quiet; 0, the default: never.
    pub quiesce_timeouts: u64,
    /// Bytes of entries in one message. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Messages in flight to one follower, at least 1. Default 256.
    pub inflight_messages_max: usize,
    /// Bytes in flight to one follower, at least 1. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of uncommitted commands; with 32 for each uncommitted entry at most 64 KiB more.
    /// Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of committed entries handed out and not yet reported as applied; one entry may pass
    /// it. Default 16 MiB.
    pub committed_bytes_per_ready_max: usize,
    /// Reads that may wait for an answer. Default 65,536.
    pub reads_max: usize,
    /// Bytes of recent entries kept in memory, with what it takes to keep them; with what is durable
    /// but not handed out or not committed yet up to `committed_bytes_per_ready_max` or
    /// `uncommitted_bytes_max` more. Default 4 MiB.
    pub cache_bytes_max: usize,
}

/// A setting out of its bounds. Give another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, which is not {bound}")]
pub struct ConfigError {
    /// The setting.
    pub field: &'static str,
    /// What it is.
    pub value: u64,
    /// What it has to be.
    pub bound: &'static str,
}

/// Why a replica cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A setting out of its bounds.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What its disk holds contradicts itself.
    #[error(transparent)]
    Restored(#[from] RestoredError),
}

impl Config {
    /// The defaults.
    #[must_use]
    pub const fn new(group: GroupId, id: ReplicaId, seed: u64) -> Self {
        Self {
            group,
            id,
            epoch: 0,
            seed,
            life: seed,
            election_timeout_ticks_min: 30,
            election_timeout_ticks_max: 60,
            heartbeat_ticks: 5,
            pre_vote: true,
            check_quorum: true,
            step_down_on_removal: true,
            lease_ticks: 0,
            campaign_within_lease: false,
            validate_changes: true,
            change_after_own_commit: true,
            change_done_when_applied: false,
            applies_after_sync: false,
            quiesce_timeouts: 0,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_per_ready_max: 16 << 20,
            reads_max: 1 << 16,
            cache_bytes_max: 4 << 20,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let count = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let checks = [
            (
                self.heartbeat_ticks >= 1,
                "heartbeat_ticks",
                self.heartbeat_ticks,
                "at least 1",
            ),
            (
                self.election_timeout_ticks_min > self.heartbeat_ticks,
                "election_timeout_ticks_min",
                self.election_timeout_ticks_min,
                "more than heartbeat_ticks",
            ),
            (
                self.election_timeout_ticks_max >= self.election_timeout_ticks_min,
                "election_timeout_ticks_max",
                self.election_timeout_ticks_max,
                "at least election_timeout_ticks_min",
            ),
            (
                self.lease_ticks == 0 || self.check_quorum,
                "lease_ticks",
                self.lease_ticks,
                "0, as it must be without check_quorum",
            ),
            (
                self.lease_ticks <= self.election_timeout_ticks_min,
                "lease_ticks",
                self.lease_ticks,
                "at most election_timeout_ticks_min",
            ),
            (
                self.inflight_messages_max >= 1,
                "inflight_messages_max",
                count(self.inflight_messages_max),
                "at least 1",
            ),
            (
                self.inflight_bytes_max >= 1,
                "inflight_bytes_max",
                count(self.inflight_bytes_max),
                "at least 1",
            ),
            (
                self.committed_bytes_per_ready_max >= 1,
                "committed_bytes_per_ready_max",
                count(self.committed_bytes_per_ready_max),
                "at least 1",
            ),
        ];
        match checks.into_iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, field, value, bound)) => Err(ConfigError {
                field,
                value,
                bound,
            }),
        }
    }

    pub(crate) const fn inflight_max(&self) -> InflightMax {
        InflightMax {
            messages: self.inflight_messages_max,
            bytes: self.inflight_bytes_max,
        }
    }
}
