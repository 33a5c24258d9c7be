//! What can be set, with units and bounds.

use crate::types::{GroupId, ReplicaId};

/// Settings of one replica's core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The group.
    pub group: GroupId,
    /// This replica.
    pub id: ReplicaId,
    /// What election timeouts are drawn from.
    pub seed: u64,
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
    /// Step down when removed. Default on.
    pub step_down_on_removal: bool,
    /// Bytes of entries in one message. Default 1 MiB.
    pub message_bytes_max: usize,
    /// Messages in flight to one follower, at least 1. Default 256.
    pub inflight_messages_max: usize,
    /// Bytes in flight to one follower, at least 1. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of uncommitted commands. Default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of committed entries in one `Ready`. Default 16 MiB.
    pub committed_bytes_per_ready_max: usize,
    /// Entries handed out and not yet reported as applied. Default 1 Mi.
    pub applying_entries_max: u64,
    /// Bytes of recent entries kept in memory. Default 4 MiB.
    pub cache_bytes_max: usize,
}

/// A setting that contradicts another or itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is out of bounds")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub const fn new(group: GroupId, id: ReplicaId, seed: u64) -> Self {
        Self {
            group,
            id,
            seed,
            election_timeout_ticks_min: 30,
            election_timeout_ticks_max: 60,
            heartbeat_ticks: 5,
            pre_vote: true,
            check_quorum: true,
            step_down_on_removal: true,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 64 << 20,
            committed_bytes_per_ready_max: 16 << 20,
            applying_entries_max: 1 << 20,
            cache_bytes_max: 4 << 20,
        }
    }

    pub(crate) const fn check(&self) -> Result<(), ConfigError> {
        let field = if self.heartbeat_ticks == 0 {
            "heartbeat_ticks"
        } else if self.election_timeout_ticks_min <= self.heartbeat_ticks {
            "election_timeout_ticks_min"
        } else if self.election_timeout_ticks_max < self.election_timeout_ticks_min {
            "election_timeout_ticks_max"
        } else if self.inflight_messages_max == 0 {
            "inflight_messages_max"
        } else if self.inflight_bytes_max == 0 {
            "inflight_bytes_max"
        } else {
            return Ok(());
        };
        Err(ConfigError { field })
    }
}
