//! Pending calls: how a caller hears what became of its request.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use raft_proto::{GroupId, HostId, Index, ReplicaId};

use crate::apply::panic_text;

/// Where an outcome goes. The caller implements it: a oneshot, a counter, a test's list.
///
/// The engine calls it once, from one of its workers; it must not block. A panic in it is logged
/// and ends there.
pub trait Completion<T>: Send + Sync {
    /// Takes the outcome.
    fn complete(&self, outcome: Result<T, RequestError>);
}

/// The right and the duty to answer one request.
///
/// Dropped without an answer, it answers [`RequestError::Terminated`], so that no caller waits
/// for ever.
pub struct Responder<T> {
    completion: Option<Arc<dyn Completion<T>>>,
}

impl<T> Responder<T> {
    /// Wraps where the outcome goes.
    #[must_use]
    pub fn new(completion: Arc<dyn Completion<T>>) -> Self {
        Self {
            completion: Some(completion),
        }
    }

    /// Answers.
    pub fn respond(mut self, outcome: Result<T, RequestError>) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Result<T, RequestError>) {
        let Some(completion) = self.completion.take() else {
            return;
        };
        // The caller's code: should it panic, that is the caller's loss alone.
        let called = catch_unwind(AssertUnwindSafe(|| completion.complete(outcome)));
        if let Err(panic) = called {
            tracing::error!(text = panic_text(&*panic), "a completion panicked");
        }
    }
}

impl<T> Drop for Responder<T> {
    fn drop(&mut self) {
        self.answer(Err(RequestError::Terminated));
    }
}

impl<T> std::fmt::Debug for Responder<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Responder")
    }
}

/// Why a request was not fulfilled, and what the caller can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Another replica leads. Retry there; without a known leader, retry after an election timeout.
    #[error("not the leader of group {group}")]
    NotLeader {
        /// The group.
        group: GroupId,
        /// The leader and its host, when known.
        leader: Option<(ReplicaId, Option<HostId>)>,
    },
    /// A queue is full. Nothing was done: retry later, more slowly.
    #[error("busy: the {queue} queue is full; retry later")]
    Busy {
        /// Which bound was met.
        queue: &'static str,
    },
    /// The entry was overwritten by another leader's and will never be applied. Retry.
    #[error("the entry was superseded by another leader's; retry")]
    Superseded,
    /// The read lost its round, to a change of leader most likely. Retry.
    #[error("the read was dropped; retry")]
    ReadDropped,
    /// The request breaks a bound. Do not retry it as it is.
    #[error("{what} of {size} is over the bound of {bound}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound.
        bound: usize,
    },
    /// The group does not run on this host. Retry elsewhere.
    #[error("group {0} does not run on this host")]
    UnknownGroup(GroupId),
    /// The group runs on this host already. Stop it first.
    #[error("group {0} runs on this host already")]
    AlreadyRunning(GroupId),
    /// `Bootstrap` or `Join` over state that exists. Start with `Restart`.
    #[error("group {0} has state on this host; start it with Restart")]
    StateExists(GroupId),
    /// `Restart` without state. Start with `Bootstrap` or `Join`.
    #[error("group {0} has no state on this host; start it with Bootstrap or Join")]
    NoState(GroupId),
    /// The membership change is not possible now: one is pending, or it makes no sense.
    #[error("membership change refused: {reason}")]
    MembershipRefused {
        /// Why.
        reason: String,
    },
    /// The state machine, or the replica's own state, failed. The group serves no more here.
    #[error("group {group} failed on this host: {reason}")]
    GroupFailed {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// What the disk holds of this replica is damaged, or known to lack what it acknowledged. It
    /// neither votes nor acknowledges any more: remove it from its group and add a new replica,
    /// under a new id.
    #[error("replica {replica} of group {group} is damaged on this host: {reason}")]
    Damaged {
        /// The group.
        group: GroupId,
        /// The replica.
        replica: ReplicaId,
        /// Where and how.
        reason: String,
    },
    /// The file system refused the replica's directories. Nothing was started: look at the disk,
    /// then retry.
    #[error("the replica's directory cannot be used: {reason}")]
    Storage {
        /// What it said.
        reason: String,
    },
    /// The leadership was not taken over in time, or by another. Retry if it still matters.
    #[error("replica {to} did not take over group {group}")]
    TransferFailed {
        /// The group.
        group: GroupId,
        /// Who should have led.
        to: ReplicaId,
    },
    /// The command was taken, and whether it is or will be committed is not known here. Find out,
    /// or make the command such that it can be repeated.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// What came between.
        reason: String,
    },
    /// The host failed: nothing is acknowledged by it any more. The request was not taken. Restart
    /// the host.
    #[error("the host has failed: {reason}")]
    HostFailed {
        /// The first failure.
        reason: String,
    },
    /// The disk is full. Retry when there is space; reads go on.
    #[error("storage is full; retry when there is space")]
    StorageFull,
    /// The request's arguments contradict each other or what exists.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What to mend.
        reason: String,
    },
    /// The group or the engine stopped first. The outcome is unknown.
    #[error("stopped before the outcome was known")]
    Terminated,
}

impl RequestError {
    /// What the proposer of a command hears whose entry is in the log already.
    pub(crate) fn of_what_was_taken(&self) -> Self {
        Self::OutcomeUnknown {
            reason: self.to_string(),
        }
    }
}

/// A proposal's result: it is durable on a majority and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Where in the log it lies.
    pub index: Index,
    /// What the state machine returned.
    pub result: Bytes,
}

/// What to snapshot and what to drop behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// An existing directory that receives a self-contained copy. An exported snapshot moves no
    /// counter and compacts nothing.
    pub export: Option<std::path::PathBuf>,
    /// How many entries before the snapshot stay in the log. `None`: the group's setting.
    pub compaction_overhead: Option<u64>,
}

/// What became of a snapshot request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotOutcome {
    /// Saved, recorded, and the log compacted behind it.
    Completed(Index),
    /// Not done, for good reason.
    Rejected(SnapshotRejected),
    /// Given up: it was cancelled, or the group was stopped. Nothing is left of it.
    Aborted,
    /// The disk refused, for the reason given. Nothing is left of it, the log was not compacted,
    /// and the group goes on.
    Failed(String),
}

/// Why a snapshot request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotRejected {
    /// The last completed snapshot, or the one being saved, is of the same applied index.
    NothingNew,
    /// One is being saved.
    AlreadySaving,
    /// One at or past this index exists already.
    OutOfDate,
}
