//! Snapshot directories that are there whole or not at all.
//!
//! A replica's snapshots are directories. One is written under a temporary name, synced, renamed,
//! recorded in the log by whoever uses this crate, retained while it is wanted, and removed; after
//! a crash at any moment, [`SnapshotEnv::sweep`] leaves exactly those that the log names. It is
//! *not* a state machine's serialisation, and it knows no network and no engine: it stores bytes
//! that are given to it in order, and gives them back in order, every block checked. Files are
//! reached through [`raft_log::vfs`] alone, so that a simulated disk can stand in. The bytes are
//! described in `FORMAT.md`.
//!
//! ```text
//!   save:     begin_save ──> write, write, ... ──> finish(meta)
//!   export:   begin_export(dir) ───┘                  │
//!   receive:  begin_receive(manifest) ──> block ──> finish
//!                                                     │  data, flag, temporary directory synced,
//!                                                     │  rename, parent synced
//!                                                     ▼
//!                                          snapshot-<index>/   ──> your log records it, durably
//!                                                     │                        │
//!             open_snapshot ──> next, next, ... <─────┤        remove_flag, retain(named) <─┘
//!                                                     │
//!             after a crash:  sweep(named) <──────────┘
//! ```
//!
//! # Example
//!
//! Save, commit, record, read back:
//!
//! ```
//! use std::sync::Arc;
//!
//! use raft_log::vfs::{StdVfs, Vfs};
//! use raft_proto::{EntryId, GroupId, Index, Membership, ReplicaId, Term};
//! use raft_snapshot::{SnapshotEnv, SnapshotFileMeta};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let root = scratch.path();
//! let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
//! let (group, replica) = (GroupId::new(7).unwrap(), ReplicaId::new(1).unwrap());
//! let env = SnapshotEnv::open(vfs, root, group, replica)?;
//! assert_eq!(env.committed()?, []); // Nothing yet.
//!
//! let index = Index::new(1_000);
//! let mut writer = env.begin_save(index)?;
//! writer.write(b"the state machine's ")?;
//! writer.write(b"whole state")?;
//! let manifest = writer.finish(SnapshotFileMeta {
//!     group,
//!     epoch: 1,
//!     id: EntryId::new(Term::new(3), index),
//!     membership: Membership::default().encode().into(),
//! })?;
//! assert_eq!(manifest.size_bytes(), 31);
//!
//! // Here the log records the snapshot, durably. Only then:
//! env.remove_flag(index)?;
//! env.retain(&[index])?;
//!
//! let mut reader = env.open_snapshot(index)?;
//! assert_eq!(&reader.next()?.unwrap()[..], b"the state machine's whole state");
//! assert!(reader.next()?.is_none());
//! # Ok(())
//! # }
//! ```
//!
//! The types to know: [`SnapshotEnv`], a replica's directory; [`SnapshotWriter`], a snapshot being
//! written; [`Manifest`], what names a snapshot's content. [`verify`] checks a directory by itself.
//! There are no features.
#![forbid(unsafe_code)]

mod dir_name;
mod env;
mod error;
mod layout;
mod manifest;
mod reader;
mod receiver;
mod writer;

pub use env::{SnapshotEnv, SweepReport};
pub use error::{BlockReason, Damage, SnapshotError};
pub use manifest::{
    BLOCK_BYTES, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BlockEntry, MANIFEST_BYTES_MAX, Manifest,
    SnapshotFileMeta,
};
pub use reader::{SnapshotReader, verify};
pub use receiver::SnapshotReceiver;
pub use writer::SnapshotWriter;
