//! A write-ahead log for thousands of groups that can tell a torn tail from damage.
//!
//! Many groups append into one *lane*: a chain of segment files with one writer. Whatever was
//! submitted while the last sync ran becomes one vectored write and one `fdatasync` for all of
//! them, from the very bytes in which the entries came; what is read back are slices of the files
//! themselves, checked. Every byte carries a checksum over its place, every record says up to where
//! the lane had been durable: so that what a crash interrupted is cut off, what had been durable
//! and is gone is *reported*, by replica and index, and everybody else goes on.
//!
//! It is *not* a database: entries are found by index alone. It does not know what a command means,
//! elects nobody and sends nothing. One process opens a lane at a time; a second one is refused. The
//! bytes are described in `FORMAT.md`.
//!
//! ```text
//!  submit ──▶ staging ──▶ one write, one fdatasync ──▶ completions     Lane: a value, polled
//!    (group, entries,              │                                   LaneThread: on its thread
//!     term and vote, ...)          ▼                                   Wal: streams, nothing else
//!                     ┌────────┬────────┬────────┬──────────┐
//!                     │ sealed │ sealed │ active │ prepared │  log/<lane>/<segment>.seg
//!                     └────────┴────────┴────────┴──────────┘
//!     entries, ◀── LogReader: slices       ▲
//!     any thread      of read-only maps    └── what is dead is recycled; the few live entries of
//!                                              laggards are moved by the log itself
//! ```
//!
//! # Example
//!
//! A lane driven by hand, a group's first entry, and what a restart finds. [`Wal`] shows the same
//! without a word of Raft.
//!
//! ```
//! use std::sync::Arc;
//!
//! use raft_log::vfs::StdVfs;
//! use raft_log::{Lane, LaneOptions, Submission};
//! use raft_proto::{BatchBuilder, EntryKind, GroupId, HardState, Index, ReplicaId, Term, Time};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//! # let options = || LaneOptions { segment_size_bytes: 1 << 20, ..LaneOptions::default() };
//! let (group, replica) = (GroupId::new(7).unwrap(), ReplicaId::new(1).unwrap());
//! let (mut lane, recovery) = Lane::open(Arc::new(StdVfs::new()), dir, options())?;
//! assert!(recovery.replicas.is_empty()); // Nothing yet.
//!
//! let mut entries = BatchBuilder::new(group, Term::new(1), Index::new(1), 0);
//! entries.push(EntryKind::Command, 0, None, b"set a 1");
//! let mut submission = Submission::new(group, replica, 1);
//! submission.hard_state = Some(HardState { term: Term::new(1), ..HardState::default() });
//! submission.entries.extend(entries.finish());
//! lane.submit(submission)?;
//! // Here whoever owns the lane passes the time; a thread would park until there is more to do.
//! let done = loop {
//!     lane.poll(Time(0));
//!     if let Some(done) = lane.take_completions().pop() {
//!         break done;
//!     }
//! };
//! done.result?; // It is durable, and may be acknowledged.
//! lane.close()?;
//!
//! let (lane, recovery) = Lane::open(Arc::new(StdVfs::new()), dir, options())?;
//! assert!(recovery.report.damaged.is_empty());
//! let state = &recovery.replicas[&(group, replica)];
//! let first = state.first;
//! let read = lane.reader().entries(group, replica, first, state.last.index, 1 << 20)?;
//! assert_eq!(read[0].iter().next().unwrap().payload(), b"set a 1");
//! # Ok(())
//! # }
//! ```
//!
//! The types to know: [`Lane`], the writer, driven by [`Lane::poll`]; [`Submission`], what one
//! replica wants durable; [`LogReader`], which reads from any thread. [`LaneThread`] drives a lane
//! for those who use the log alone, and calls back or lets its callers wait. [`tools`] look into the log of a host that is stopped; a scrub
//! ([`Lane::scrub`]) verifies one that runs.
//!
//! What the size of a segment costs, in descriptors and in memory, is said where it is chosen:
//! [`LaneOptions::segment_size_bytes`].
//!
//! One feature: `sim` adds the simulated file system, [`vfs`]' other half, for tests.

mod config;
mod error;
mod flip;
mod hard_state;
mod identity;
mod index;
mod item;
mod lane;
mod owners;
mod pieces;
mod pool;
mod read;
mod record;
mod recovery;
mod scrub;
mod segment;
mod staging;
mod state;
mod sync;
mod thread;
pub mod tools;
pub mod vfs;
mod wal;

pub use config::LaneOptions;
pub use error::{Contradiction, LogError};
pub use lane::{AtDisk, FromDisk, Lane, LaneStats, Progress, ScrubStatus};
pub use read::{Batches, LaneSpace, LogReader};
pub use recovery::{DamageReport, MendedReport, Recovery, RecoveryReport, TornReport};
pub use state::{
    Completion, Damage, Health, ReplicaState, SNAPSHOTS_BYTES_MAX, SnapshotRecord, SnapshotsRecord,
    Submission,
};
pub use thread::LaneThread;
pub use vfs::install_sigbus_handler;
pub use wal::{Records, Wal};
