//! Why the log could not do what was asked.

use std::path::PathBuf;

use raft_proto::{EntryId, GroupId, Index, ReplicaId, Term};

use crate::vfs::VfsError;

/// Why the log could not serve a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A setting is out of bounds: mend it.
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
    /// An earlier write or sync failed, so what is durable is unknown. Nothing is acknowledged
    /// any more; what was can still be read. Reopen the log.
    #[error("the log is latched by an earlier failure: {0}")]
    Latched(String),
    /// There is no room for entries. Votes and compaction go on; retry when there is space.
    #[error("the disk is full: entries are refused until there is space")]
    StorageFull,
    /// More is waiting for the disk than the bound allows. Retry when completions have come.
    #[error("{pending} bytes wait for the disk, over the bound of {bound}")]
    Busy {
        /// What waits.
        pending: usize,
        /// The bound.
        bound: usize,
    },
    /// The entries are not in the log: never written, compacted, or lost.
    #[error("group {group}: entries from {from} are not in the log")]
    NotFound {
        /// The group.
        group: GroupId,
        /// The first one asked for.
        from: Index,
    },
    /// What was read back is not what was written. The replica must be rebuilt.
    #[error("damage in segment {segment} at byte {offset}: {reason}")]
    Damaged {
        /// The segment.
        segment: u64,
        /// Where.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file was written by a later version. Run that version.
    #[error("{path:?} at byte {offset} needs version {version} or later")]
    NeedsVersion {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// The format version it names.
        version: u32,
    },
    /// There is no log here: name the data directory, the one above `log`.
    #[error("there is no log of lane {lane} below {path:?}")]
    NoLog {
        /// The data directory.
        path: PathBuf,
        /// The lane.
        lane: u16,
    },
    /// Another process has the log open, or another part of this one: stop it first.
    #[error("{path:?} is locked: the log is in use, stop whoever has it open first")]
    InUse {
        /// The lock's file.
        path: PathBuf,
    },
    /// What an export goes to could not be written.
    #[error("export: {0}")]
    Export(std::io::Error),
    /// All segments here belong to another log: another data directory's was put in this place.
    /// Nothing was written: put the right one back, or move these files away to begin anew.
    #[error("{path:?} holds the log of another data directory: {files:?}")]
    Foreign {
        /// Where they lie.
        path: PathBuf,
        /// The segments.
        files: Vec<String>,
    },
    /// A term or an index is above all that the log reads back. Nothing was taken: mend whoever
    /// submits it.
    #[error("the term or index {number} is above {max}")]
    NumberTooHigh {
        /// What was found.
        number: u64,
        /// The highest there is.
        max: u64,
    },
    /// What was submitted contradicts itself, or what was submitted before, and would be read back
    /// as damage. Nothing was taken: mend whoever submits it.
    #[error("group {group}, replica {replica}: {reason}")]
    Contradiction {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// What is wrong.
        reason: Contradiction,
    },
    /// The replica was removed, by a tombstone submitted before. Nothing was taken: submit no more
    /// for it.
    #[error("group {group}, replica {replica} is gone for ever: submit no more for it")]
    Gone {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
    },
    /// A batch is larger than a record may be, or the memberships of the snapshots retained than
    /// [`SNAPSHOTS_BYTES_MAX`](crate::SNAPSHOTS_BYTES_MAX). Nothing was taken: cut the batch, or retain
    /// fewer.
    #[error("a batch, or memberships, of {size} bytes are over the bound of {bound}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The bound.
        bound: usize,
    },
}

/// Why a submission cannot follow what a replica has submitted before, durable or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Contradiction {
    /// A batch was made for another group: its checksums say so.
    #[error("the batch from {first} is another group's: submit it as that group's")]
    OtherGroup {
        /// Its first entry.
        first: EntryId,
    },
    /// Entries begin at 1, their terms too.
    #[error("there is no entry {id}: indexes and terms begin at 1")]
    Zero {
        /// The entry.
        id: EntryId,
    },
    /// Entries are missing before the first one.
    #[error("entry {found} leaves a gap: the next one is {next}, submit what lies between first")]
    Gap {
        /// The first entry submitted, or the first of a later batch.
        found: Index,
        /// What would follow.
        next: Index,
    },
    /// Entries that were compacted, or lie before a snapshot, are not written again.
    #[error("entry {found} is before {first}, the first that the log holds: submit from there on")]
    Compacted {
        /// The first entry submitted.
        found: Index,
        /// The first one held.
        first: Index,
    },
    /// Within one batch, or from one to the next, indexes rise by one.
    #[error("the batch from {found} does not follow {before}: batches are consecutive")]
    NotConsecutive {
        /// The first entry of the batch.
        found: Index,
        /// The last one of the batch before it.
        before: Index,
    },
    /// Terms never fall from one entry to the next.
    #[error("entry {found} follows one of term {before}: terms never fall")]
    TermFalls {
        /// The entry.
        found: EntryId,
        /// The term of the one before it.
        before: Term,
    },
    /// A replica's term never falls.
    #[error("term {term} is below {before}, the term submitted before")]
    HardStateFalls {
        /// The term submitted.
        term: Term,
        /// The one before it.
        before: Term,
    },
    /// A replica votes once in a term (Raft thesis, section 3.4).
    #[error("the vote of term {term} is for replica {vote} already: it cannot change")]
    VoteChanges {
        /// The term.
        term: Term,
        /// The vote submitted before.
        vote: ReplicaId,
    },
    /// A retained snapshot covers entries that would not be there: the log ends, or begins anew, before
    /// it.
    #[error(
        "the retained snapshot at {snapshot} is past {last}, the last entry: retain none past it"
    )]
    SnapshotPastLast {
        /// The snapshot's index.
        snapshot: Index,
        /// The last entry.
        last: Index,
    },
    /// The commit index names an entry that is not there.
    #[error("the commit index {commit} is past {last}, the last entry: submit the entries first")]
    CommitPastLast {
        /// The commit index.
        commit: Index,
        /// The last entry.
        last: Index,
    },
}
