//! What can be set, with units, defaults and bounds.

/// Settings of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Step workers; groups are spread over them by a stable hash. 1 to 64, default 1.
    pub step_workers: usize,
    /// Apply workers. 1 to 64, default 1.
    pub apply_workers: usize,
    /// Threads for snapshot jobs and log reads. 1 to 64, default 2.
    pub job_workers: usize,
    /// Length of a tick. 1 ms to 10 s, default 10 ms.
    pub tick_ms: u64,
    /// Ticks between heartbeats. 1 to 1,000, default 5.
    pub heartbeat_ticks: u64,
    /// Lower bound of the election timeout, drawn anew each term. More than twice
    /// `heartbeat_ticks`, up to 100,000; default 30.
    pub election_timeout_ticks_min: u64,
    /// Upper bound of the election timeout. At least the lower bound; default 60.
    pub election_timeout_ticks_max: u64,
    /// Length of a leader's lease, in which it answers reads without asking anybody: counted from
    /// the sending of a heartbeat round that a majority confirmed. The same on every host. At most
    /// `election_timeout_ticks_min`, less what the clocks of two hosts may drift apart in that time;
    /// 0, the default: no lease, each read waits for a round. With a lease, a replica that has
    /// started grants no vote for as long. Source: thesis §6.4.1.
    pub lease_ticks: u64,
    /// Election timeouts without any work after which a group falls quiet: no heartbeat, no timer,
    /// no wake-up until somebody asks it something, a message comes, or its leader's host is lost.
    /// The same on every host. Up to 1,000; 0, the default: never.
    pub quiesce_timeouts: u64,
    /// Size of one command. 1 byte to 8 MiB less 64 KiB, default 4 MiB.
    pub proposal_bytes_max: usize,
    /// Bytes of requests and messages that may wait for a step worker. 1 MiB to 4 GiB,
    /// default 64 MiB.
    pub inbox_bytes_max: usize,
    /// Uncommitted bytes a group. 64 KiB to 4 GiB, default 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Messages in flight to one follower. 1 to 65,536, default 256.
    pub inflight_messages_max: usize,
    /// Bytes in flight to one follower. 64 KiB to 1 GiB, default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of entries in one message. 4 KiB to 4 MiB, default 1 MiB.
    pub message_bytes_max: usize,
    /// Bytes of recent entries a group keeps in memory. 64 KiB to 1 GiB, default 4 MiB.
    pub cache_bytes_max: usize,
    /// Committed bytes handed to the apply worker and not yet applied. 64 KiB to 1 GiB,
    /// default 16 MiB.
    pub applying_bytes_max: usize,
    /// Snapshots kept. 1 to 16, default 2; fewer, 7 at least, while their memberships are over
    /// [`raft_log::SNAPSHOTS_BYTES_MAX`].
    pub snapshot_retention: usize,
    /// Snapshots written at once; further ones wait. 1 to 64, default 4.
    pub saves_max: usize,
    /// A snapshot is saved unasked every so many entries of a group, at indexes that the group's
    /// id decides: groups are spread, and the replicas of one agree. Up to 2^32; 0, the default:
    /// only when somebody asks, or a peer needs one.
    pub snapshot_every_entries: u64,
    /// Entries kept in the log before a snapshot. Up to 2^32, default 1,000.
    pub compaction_overhead: u64,
    /// Keep the log back to the oldest retained snapshot, so that a replica whose newest one is
    /// damaged recovers from that. Default off.
    pub local_fallback: bool,
    /// Bytes of a group's log up to which compaction waits for followers in reach; one that needs
    /// more is fed by a snapshot. Up to 1 TiB, default 256 MiB.
    pub follower_log_bytes_max: u64,
    /// Bytes of queries that have no answer yet. 1 MiB to 4 GiB, default 64 MiB.
    pub reads_bytes_max: usize,
    /// The wall clock, in milliseconds since the Unix epoch, at `Time(0)` of the engine's
    /// monotonic time: what entries carry as leader time counts from it.
    pub wall_ms_at_start: u64,
    /// What draws election timeouts come from. Give each host another.
    pub seed: u64,
    /// Which opening of the data directory this is: one more each time, made durable before. It
    /// tells the lives of a replica apart, so that no answer to a read of an earlier one serves a
    /// read of this. Below 2^40, default 0.
    pub open_count: u64,
    /// Acknowledge before the sync: a seeded defect that the deterministic cluster must catch.
    /// Never set it.
    #[doc(hidden)]
    pub test_ack_before_sync: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            step_workers: 1,
            apply_workers: 1,
            job_workers: 2,
            tick_ms: 10,
            heartbeat_ticks: 5,
            election_timeout_ticks_min: 30,
            election_timeout_ticks_max: 60,
            lease_ticks: 0,
            quiesce_timeouts: 0,
            proposal_bytes_max: 4 << 20,
            inbox_bytes_max: 64 << 20,
            uncommitted_bytes_max: 64 << 20,
            inflight_messages_max: 256,
            inflight_bytes_max: 8 << 20,
            message_bytes_max: 1 << 20,
            cache_bytes_max: 4 << 20,
            applying_bytes_max: 16 << 20,
            snapshot_retention: 2,
            saves_max: 4,
            snapshot_every_entries: 0,
            compaction_overhead: 1_000,
            local_fallback: false,
            follower_log_bytes_max: 256 << 20,
            reads_bytes_max: 64 << 20,
            wall_ms_at_start: 0,
            seed: 0,
            open_count: 0,
            test_ack_before_sync: false,
        }
    }
}

/// A setting is out of its bounds. Nothing was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, outside {min} to {max}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it holds.
    pub value: u64,
    /// The least it may hold.
    pub min: u64,
    /// The most it may hold.
    pub max: u64,
}

impl EngineConfig {
    /// Checks every bound.
    ///
    /// # Errors
    ///
    /// The first field out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        let election_min = self.heartbeat_ticks.saturating_mul(2).saturating_add(1);
        let checks = [
            ("step_workers", size(self.step_workers), 1, 64),
            ("apply_workers", size(self.apply_workers), 1, 64),
            ("job_workers", size(self.job_workers), 1, 64),
            ("tick_ms", self.tick_ms, 1, 10_000),
            ("heartbeat_ticks", self.heartbeat_ticks, 1, 1_000),
            (
                "election_timeout_ticks_min",
                self.election_timeout_ticks_min,
                election_min,
                100_000,
            ),
            (
                "election_timeout_ticks_max",
                self.election_timeout_ticks_max,
                self.election_timeout_ticks_min,
                200_000,
            ),
            (
                "lease_ticks",
                self.lease_ticks,
                0,
                self.election_timeout_ticks_min,
            ),
            ("quiesce_timeouts", self.quiesce_timeouts, 0, 1_000),
            (
                "proposal_bytes_max",
                size(self.proposal_bytes_max),
                1,
                (8 << 20) - (64 << 10),
            ),
            (
                "inbox_bytes_max",
                size(self.inbox_bytes_max),
                1 << 20,
                4 << 30,
            ),
            (
                "uncommitted_bytes_max",
                size(self.uncommitted_bytes_max),
                64 << 10,
                4 << 30,
            ),
            (
                "inflight_messages_max",
                size(self.inflight_messages_max),
                1,
                65_536,
            ),
            (
                "inflight_bytes_max",
                size(self.inflight_bytes_max),
                64 << 10,
                1 << 30,
            ),
            (
                "message_bytes_max",
                size(self.message_bytes_max),
                4 << 10,
                4 << 20,
            ),
            (
                "cache_bytes_max",
                size(self.cache_bytes_max),
                64 << 10,
                1 << 30,
            ),
            (
                "applying_bytes_max",
                size(self.applying_bytes_max),
                64 << 10,
                1 << 30,
            ),
            ("snapshot_retention", size(self.snapshot_retention), 1, 16),
            ("saves_max", size(self.saves_max), 1, 64),
            (
                "snapshot_every_entries",
                self.snapshot_every_entries,
                0,
                1 << 32,
            ),
            ("compaction_overhead", self.compaction_overhead, 0, 1 << 32),
            (
                "follower_log_bytes_max",
                self.follower_log_bytes_max,
                0,
                1 << 40,
            ),
            (
                "reads_bytes_max",
                size(self.reads_bytes_max),
                1 << 20,
                4 << 30,
            ),
            ("open_count", self.open_count, 0, (1 << 40) - 1),
        ];
        for (field, value, min, max) in checks {
            if value < min || value > max {
                return Err(ConfigError {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_bounds_and_a_step_outside_names_the_field() {
        assert_eq!(EngineConfig::default().check(), Ok(()));
        let config = EngineConfig {
            tick_ms: 0,
            ..EngineConfig::default()
        };
        assert_eq!(config.check().map_err(|error| error.field), Err("tick_ms"));
        let config = EngineConfig {
            election_timeout_ticks_min: 10,
            ..EngineConfig::default()
        };
        assert_eq!(
            config.check().map_err(|error| error.field),
            Err("election_timeout_ticks_min")
        );
    }
}
