//! Why the log could not do what was asked.

use raft_proto::{GroupId, Index};

use crate::vfs::VfsError;

/// Why the log could not serve a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A setting is out of bounds.
    #[error("{field} is {value}, outside {min} to {max}")]
    Config {
        /// Which.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] VfsError),
    /// An earlier write or sync failed, so what is durable is unknown. Reopen the log.
    #[error("the log is latched by an earlier failure: {0}")]
    Latched(String),
    /// The entries are not in the log.
    #[error("group {group}: entries from {from} are not in the log")]
    NotFound {
        /// The group.
        group: GroupId,
        /// The first one asked for.
        from: Index,
    },
    /// What was read back is not what was written.
    #[error("damage in segment {segment} at byte {offset}: {reason}")]
    Damaged {
        /// The segment.
        segment: u64,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A submission is larger than a record may be.
    #[error("a submission of {size} bytes is over the bound of {bound}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The bound.
        bound: usize,
    },
}
