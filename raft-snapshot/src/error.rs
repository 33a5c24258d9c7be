//! What can go wrong, and what to do then.

use std::path::PathBuf;

use raft_log::vfs::VfsError;
use raft_proto::Index;

/// Why a snapshot could not be written, read or received.
///
/// After any of them nothing that was committed has changed, and what was being written is
/// removed, or is swept at the next start if the disk refuses even that.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refused. With [`VfsError`]'s kind `StorageFull`, retry when there is space;
    /// else look at the disk. The log must not be compacted for the sake of this snapshot.
    #[error(transparent)]
    Io(#[from] VfsError),
    /// The final name is taken: a snapshot of this index is there already. Use that one.
    #[error("snapshot {0} exists already")]
    OutOfDate(Index),
    /// There is no such snapshot here. Use another, or a peer's.
    #[error("there is no snapshot in {path:?}")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// What was read is not what was written. Use an older snapshot, or a peer's; never this one.
    #[error("damage in {path:?} at byte {offset_bytes}: {damage}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset_bytes: u64,
        /// What is wrong.
        damage: Damage,
    },
    /// The file was written by a later version of this library. Use that version.
    #[error("{path:?} has format version {found}; this library reads up to {supported}")]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What is understood here.
        supported: u32,
    },
    /// The snapshot is another group's, or of another place, than was asked for. Refuse it.
    #[error("the snapshot's {field} is {found}, not {wanted}")]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// What was asked for.
        wanted: u64,
        /// What the snapshot says.
        found: u64,
    },
    /// A received block is not the one announced. Give up this transfer; another may follow.
    #[error("block {block} is not the one announced: {reason}")]
    Block {
        /// Its number, from 0.
        block: usize,
        /// What is wrong.
        reason: BlockReason,
    },
    /// A bound of the format is met. Make the state smaller, or split the group.
    #[error("{what} of {size} is over the bound of {bound}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The bound.
        bound: u64,
    },
    /// The directory for an exported copy does not exist. Make it, or name another.
    #[error("there is no directory {path:?} to export to")]
    NoSuchDirectory {
        /// What was named.
        path: PathBuf,
    },
}

impl SnapshotError {
    /// Whether the device is full: the same call may succeed once there is space.
    #[must_use]
    pub fn is_storage_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io(error) if matches!(error.source.kind(), StorageFull | QuotaExceeded))
    }
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// Its length cannot be that of a snapshot file.
    #[error("cut short")]
    CutShort,
    /// The header is not one, or fails its checksum.
    #[error("the header is damaged")]
    Header,
    /// The trailer is not one, or fails its checksum.
    #[error("the trailer is damaged")]
    Trailer,
    /// The manifest fails its checksum, or breaks a rule of the format.
    #[error("the manifest is damaged")]
    Manifest,
    /// Header and manifest name different snapshots.
    #[error("header and manifest disagree")]
    Disagreement,
    /// A block fails its checksum or its hash.
    #[error("block {block} fails its checksum")]
    Block {
        /// Its number, from 0.
        block: usize,
    },
}

/// What is wrong with a received block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockReason {
    /// Its number is not the next one.
    #[error("out of order")]
    OutOfOrder,
    /// The manifest has no such block.
    #[error("past the end")]
    PastTheEnd,
    /// Its length is another.
    #[error("its length differs")]
    Length,
    /// Its content is another.
    #[error("its hash differs")]
    Hash,
    /// The transfer ended before it.
    #[error("missing")]
    Missing,
}
