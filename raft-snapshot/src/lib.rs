//! Snapshot directories: temporary, commit, retention, orphans.
#![forbid(unsafe_code)]

mod env;
mod file;

pub use env::{SnapshotEnv, SnapshotReceiver, SnapshotWriter, SweepReport};
pub use file::{BlockEntry, Manifest, SnapshotError, SnapshotFileMeta, SnapshotReader, verify};
