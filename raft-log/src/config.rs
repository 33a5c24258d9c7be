//! What can be set, with units, defaults and bounds.

use crate::error::LogError;
use crate::record::RECORD_BYTES_HARD_MAX;
use crate::state::SNAPSHOTS_BYTES_MAX;

/// Some hundred compactions.
const LAST_RESERVE_BYTES: u64 = 16 << 10;
/// A vote or two, a compaction, and the release of what it frees.
const RESERVE_LEAST_BYTES: u64 = 1 << 10;

/// Settings of a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneOptions {
    /// The lane's number.
    pub lane: u16,
    /// Names the whole log, so that a segment of another one is told apart. Default `None`: what its
    /// files bear; a new log draws one ([`Vfs::random`](crate::vfs::Vfs::random)).
    pub identity: Option<u64>,
    /// Size of a segment file. 64 KiB to 4 GiB, default 64 MiB. A record that does not fit gets a
    /// segment of its own size.
    ///
    /// Choose it so that what is live fits in some hundred segments. Each one keeps a descriptor open: at
    /// the usual limit of 1,024 (`RLIMIT_NOFILE`), which is the process's to raise, a log of 64 GiB
    /// cannot be opened at the default. And each keeps 110 to 170 bytes in memory for each group with
    /// entries in it: with 10,000 groups 1.1 to 1.7 MB a segment, 2 % of the log at the default and 10 % at
    /// 16 MiB. Larger segments are given free later, and are prepared and opened more slowly.
    pub segment_size_bytes: u64,
    /// The largest batch of entries, and the most that is gathered into one record. 16 KiB to
    /// 64 MiB, default 8 MiB. Also the bound of what a crash may cut off.
    pub record_bytes_max: usize,
    /// Segments kept prepared ahead. 1 to 16, default 1.
    pub spare_segments: usize,
    /// What of the active segment is kept for votes, terms and compaction while the disk is full:
    /// the last quarter of it, 640 bytes at least and 16 KiB at most, for what makes room alone. 1 KiB
    /// to half a segment, default a sixteenth of one. 0: nothing is kept, and a full disk may wait for
    /// room that somebody else makes.
    pub reserve_bytes: Option<u64>,
    /// How long after the last append a burst counts as ended, in nanoseconds: a watermark record
    /// is written then. 1 ms to 60 s, default 100 ms.
    pub burst_end_nanos: u64,
    /// Whether opening verifies the payload of every record, not only of the active segment: the
    /// strict mode. Default off: a scrub does it in the background.
    pub verify_all: bool,
    /// Bytes a second that a scrub reads, in the lane's own polls; appends go first. 64 KiB to
    /// 16 GiB, default 16 MiB. 0: nothing is verified after an open, and a scrub that is asked for
    /// goes at the default rate.
    pub scrub_bytes_per_s: u64,
    /// Bytes that may wait for the disk before whoever submits to a [`LaneThread`](crate::LaneThread)
    /// or [`Wal`](crate::Wal) is told [`LogError::Busy`]; a [`Lane`](crate::Lane) alone takes what it
    /// is given. 64 KiB to 16 GiB, default 64 MiB. One submission is taken however large it is.
    pub pending_bytes_max: usize,
    /// Bytes of recent entries kept in memory. Up to 1 GiB, default 4 MiB. Batches of 16 KiB and more
    /// are kept in the buffers in which they were submitted: one that is a small part of its buffer
    /// keeps all of that.
    pub tail_cache_bytes_max: usize,
    /// Bytes of footers kept in memory. Up to 1 GiB, default 4 MiB.
    pub footer_cache_bytes_max: usize,
    /// Bytes moved in one go when laggards are collected, or twice what the load's last record held if
    /// that is more; never more than a quarter of a segment, or than `record_bytes_max`. Whoever submits
    /// waits for one such piece at most. 4 KiB to 8 MiB, default 256 KiB.
    pub collect_bytes_max: usize,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            lane: 0,
            identity: None,
            segment_size_bytes: 64 << 20,
            record_bytes_max: 8 << 20,
            spare_segments: 1,
            reserve_bytes: None,
            burst_end_nanos: 100_000_000,
            verify_all: false,
            scrub_bytes_per_s: crate::lane::DEFAULT_BYTES_PER_S,
            pending_bytes_max: 64 << 20,
            tail_cache_bytes_max: 4 << 20,
            footer_cache_bytes_max: 4 << 20,
            collect_bytes_max: 256 << 10,
        }
    }
}

impl LaneOptions {
    /// The log's identity; that of an open lane was found or drawn.
    pub(crate) fn log_identity(&self) -> u64 {
        self.identity.unwrap_or_default()
    }

    /// Checks every bound.
    ///
    /// # Errors
    ///
    /// [`LogError::Config`] names the first field out of bounds.
    pub fn check(&self) -> Result<(), LogError> {
        let size = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        const {
            assert!(64 << 20 <= RECORD_BYTES_HARD_MAX);
        }
        let checks = [
            (
                "segment_size_bytes",
                self.segment_size_bytes,
                64 << 10,
                4 << 30,
            ),
            (
                "record_bytes_max",
                size(self.record_bytes_max),
                16 << 10,
                64 << 20,
            ),
            ("spare_segments", size(self.spare_segments), 1, 16),
            (
                "reserve_bytes",
                match self.reserve() {
                    0 => RESERVE_LEAST_BYTES,
                    reserve => reserve,
                },
                RESERVE_LEAST_BYTES,
                self.segment_size_bytes / 2,
            ),
            (
                "burst_end_nanos",
                self.burst_end_nanos,
                1_000_000,
                60_000_000_000,
            ),
            (
                "scrub_bytes_per_s",
                match self.scrub_bytes_per_s {
                    0 => crate::lane::DEFAULT_BYTES_PER_S,
                    rate => rate,
                },
                64 << 10,
                16 << 30,
            ),
            (
                "pending_bytes_max",
                size(self.pending_bytes_max),
                64 << 10,
                16 << 30,
            ),
            (
                "tail_cache_bytes_max",
                size(self.tail_cache_bytes_max),
                0,
                1 << 30,
            ),
            (
                "footer_cache_bytes_max",
                size(self.footer_cache_bytes_max),
                0,
                1 << 30,
            ),
            (
                "collect_bytes_max",
                size(self.collect_bytes_max),
                4 << 10,
                8 << 20,
            ),
        ];
        for (field, value, min, max) in checks {
            if value < min || value > max {
                return Err(LogError::Config {
                    field,
                    value,
                    min,
                    max,
                });
            }
        }
        if !self.segment_size_bytes.is_multiple_of(512) {
            return Err(LogError::Config {
                field: "segment_size_bytes modulo 512",
                value: self.segment_size_bytes % 512,
                min: 0,
                max: 0,
            });
        }
        Ok(())
    }

    /// The most that one write takes, checkpoint and footer aside: a record is closed when it is
    /// over the bound with its next batch. What its table says of entries is less than they are; what
    /// else one submission says is bounded.
    pub(crate) fn write_bytes_max(&self) -> u64 {
        const {
            assert!(16 + 8 < raft_proto::ENTRY_HEADER_BYTES);
            assert!(SNAPSHOTS_BYTES_MAX <= (1 << 20) / 2);
        }
        2 * u64::try_from(self.record_bytes_max).unwrap_or(u64::MAX / 4) + (1 << 20)
    }

    pub(crate) fn reserve(&self) -> u64 {
        self.reserve_bytes.unwrap_or(self.segment_size_bytes / 16)
    }

    /// What of the reserve is kept for watermarks, opens and closes, half of it, and for what makes room
    /// and its release.
    pub(crate) fn last_reserve(&self) -> u64 {
        let least = self.reserve().min(2 * crate::lane::RELEASE_BYTES);
        (self.reserve() / 4).clamp(least, LAST_RESERVE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_within_bounds_and_a_step_outside_names_the_field() {
        assert!(LaneOptions::default().check().is_ok());
        let options = LaneOptions {
            segment_size_bytes: 1 << 10,
            ..LaneOptions::default()
        };
        let refused = options.check();
        assert!(matches!(
            refused,
            Err(LogError::Config {
                field: "segment_size_bytes",
                ..
            })
        ));
        let reserve = |bytes| {
            let options = LaneOptions {
                reserve_bytes: Some(bytes),
                ..LaneOptions::default()
            };
            options.check()
        };
        let refused = reserve(1_023).expect_err("too small for what a full disk needs");
        let says = "reserve_bytes is 1023, outside 1024 to 33554432";
        assert!(refused.to_string().contains(says), "{refused}");
        for bytes in [0, 1 << 10, 32 << 20] {
            reserve(bytes).expect("within bounds");
        }
    }
}
