//! A segmented write-ahead log for many groups.

mod config;
mod error;
mod hard_state;
mod index;
mod item;
mod lane;
mod pool;
mod read;
mod record;
mod recovery;
mod scrub;
mod segment;
mod staging;
mod state;
mod thread;
pub mod tools;
pub mod vfs;
mod wal;

pub use config::LaneOptions;
pub use error::LogError;
pub use lane::{Lane, LaneStats, Progress, ScrubStatus};
pub use read::{Batches, LaneSpace, LogReader};
pub use recovery::{DamageReport, Recovery, RecoveryReport};
pub use state::{
    Completion, Damage, Health, ReplicaState, SnapshotRecord, SnapshotsRecord, Submission,
};
pub use thread::LaneThread;
pub use vfs::install_sigbus_handler;
pub use wal::{Records, Wal};
