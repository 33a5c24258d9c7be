//! A segmented write-ahead log for many groups.
#![forbid(unsafe_code)]

mod error;
mod index;
mod lane;
mod record;
mod recovery;
pub mod vfs;

pub use error::LogError;
pub use index::LogReader;
pub use lane::{
    Completion, Health, Lane, LaneOptions, LaneStats, Progress, Recovery, RecoveryReport,
    ReplicaState, SnapshotRecord, SnapshotsRecord, Submission,
};
