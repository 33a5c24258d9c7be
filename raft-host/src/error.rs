//! Why a host did not open, a group did not start, or a request was not fulfilled, and what the
//! caller does next.

use std::time::Duration;

use raft_engine::RequestError;
use raft_proto::{GroupId, HostId, ReplicaId};
use raft_transport::{ConfigError, TransportError};

use crate::data_dir::DataDirError;

/// What a caller does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NextStep {
    /// Nothing was done: try the same again, after a pause.
    Retry,
    /// Nothing was done: try on another host; on this one, if it is known who leads.
    RetryElsewhere {
        /// The leader's host, as far as this host knows.
        leader: Option<HostId>,
    },
    /// It may have been done or may still be: find out before doing it again, unless doing it twice
    /// makes no difference.
    FindOut,
    /// It will fail each time: change the request.
    GiveUp,
}

/// Why a host did not open. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting of the host or its network is out of bounds: correct it. Nothing was written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used; its own words say what to do.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A setting of engine or log is out of bounds, or the log does not open.
    #[error(transparent)]
    Engine(#[from] raft_engine::OpenError),
    /// The address is taken, or the certificate cannot
    /// be used or is another host's.
    #[error(transparent)]
    Network(#[from] TransportError),
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// Why a host did not close well. What was acknowledged is durable all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// A worker does not end: a disk or a state machine hangs. The directory stays locked until
    /// the process ends.
    #[error("the workers have not ended within {waited:?}")]
    StillRunning {
        /// How long they were waited for.
        waited: Duration,
    },
}

/// Why a group did not start or stop on this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It runs here already: use its handle, or stop it first.
    #[error("group {0} runs on this host already")]
    AlreadyRunning(GroupId),
    /// `Bootstrap` or `Join` over state that exists: start it with `Restart`.
    #[error("group {0} has state on this host; start it with Restart")]
    StateExists(GroupId),
    /// `Restart` without state: `Bootstrap` a new group, or `Join` one under a new replica id.
    #[error("group {0} has no state on this host; start it with Bootstrap or Join")]
    NoState(GroupId),
    /// The replica's state is damaged. Remove the replica from its group and join again under a new
    /// replica id.
    #[error("group {group} cannot start on this host: {reason}")]
    Damaged {
        /// The group.
        group: GroupId,
        /// What is damaged.
        reason: String,
    },
    /// It does not run here.
    #[error("group {0} does not run on this host")]
    NotRunning(GroupId),
    /// The file system refused the replica's directories: look at the disk, then try again.
    #[error("the replica's directory cannot be used: {reason}")]
    Storage {
        /// What it said.
        reason: String,
    },
    /// The members make no sense.
    #[error("invalid start: {reason}")]
    Invalid {
        /// What to mend.
        reason: String,
    },
    /// The host has failed or was closed: open it again.
    #[error("the host does not serve: {reason}")]
    HostDown {
        /// Why.
        reason: String,
    },
}

impl StartError {
    pub(crate) fn of(error: RequestError) -> Self {
        match error {
            RequestError::AlreadyRunning(group) => Self::AlreadyRunning(group),
            RequestError::StateExists(group) => Self::StateExists(group),
            RequestError::NoState(group) => Self::NoState(group),
            RequestError::Damaged { group, reason, .. }
            | RequestError::GroupFailed { group, reason } => Self::Damaged { group, reason },
            RequestError::Storage { reason } => Self::Storage { reason },
            RequestError::UnknownGroup(group) => Self::NotRunning(group),
            RequestError::Invalid { reason } => Self::Invalid { reason },
            other => Self::HostDown {
                reason: other.to_string(),
            },
        }
    }
}

/// Why a proposal, a membership change or a transfer was not fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another replica leads. Nothing was done: ask there, or, if nobody is known to lead, again
    /// after an election timeout.
    #[error("not the leader of group {group}")]
    NotLeader {
        /// The group.
        group: GroupId,
        /// The leader's host, if known.
        leader: Option<HostId>,
    },
    /// A bound is met. Nothing was done: try again later, with less at once.
    #[error("busy: the {queue} queue is full")]
    Busy {
        /// Which.
        queue: &'static str,
    },
    /// The disk is full. Nothing was done: try again when there is space.
    #[error("storage is full")]
    StorageFull,
    /// Another leader overwrote the entry. It never took effect: try again.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// The request breaks a bound and always will.
    #[error("{what} of {size} is over the bound of {bound}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound.
        bound: usize,
    },
    /// The group or its membership does not allow it as it stands. Nothing was done: look at the
    /// group's status.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The leadership was not taken over in time, or by another: try again if it still matters.
    #[error("replica {to} did not take over")]
    TransferFailed {
        /// Who should have led.
        to: ReplicaId,
    },
    /// The group does not run here: ask another host.
    #[error("group {0} does not run on this host")]
    UnknownGroup(GroupId),
    /// The deadline passed. Whether it takes effect is not known.
    #[error("no outcome within {waited:?}; it may take effect yet")]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The group has failed on this host. Nothing was done: ask another host.
    #[error("group {group} has failed on this host: {reason}")]
    GroupFailed {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// This host has failed or was closed. Nothing was done: ask another one.
    #[error("the host does not serve: {reason}")]
    HostDown {
        /// Why.
        reason: String,
    },
    /// The group or host stopped or failed while it was under way. Whether it took or takes effect
    /// is not known: find out on another host.
    #[error("the outcome is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: String,
    },
}

impl ProposeError {
    /// What the caller does next.
    #[must_use]
    pub const fn next_step(&self) -> NextStep {
        match self {
            Self::NotLeader { leader, .. } => NextStep::RetryElsewhere { leader: *leader },
            Self::UnknownGroup(_) | Self::GroupFailed { .. } | Self::HostDown { .. } => {
                NextStep::RetryElsewhere { leader: None }
            }
            Self::Busy { .. }
            | Self::StorageFull
            | Self::Superseded
            | Self::TransferFailed { .. } => NextStep::Retry,
            Self::TooLarge { .. } | Self::Refused { .. } => NextStep::GiveUp,
            Self::Timeout { .. } | Self::OutcomeUnknown { .. } => NextStep::FindOut,
        }
    }

    pub(crate) fn of(error: RequestError) -> Self {
        match error {
            RequestError::NotLeader { group, leader } => Self::NotLeader {
                group,
                leader: leader.and_then(|(_, host)| host),
            },
            RequestError::Busy { queue } => Self::Busy { queue },
            RequestError::StorageFull => Self::StorageFull,
            RequestError::Superseded => Self::Superseded,
            RequestError::TransferFailed { to, .. } => Self::TransferFailed { to },
            RequestError::TooLarge { what, size, bound } => Self::TooLarge { what, size, bound },
            RequestError::MembershipRefused { reason } | RequestError::Invalid { reason } => {
                Self::Refused { reason }
            }
            RequestError::UnknownGroup(group) => Self::UnknownGroup(group),
            RequestError::GroupFailed { group, reason } => Self::GroupFailed { group, reason },
            RequestError::HostFailed { reason } => Self::HostDown { reason },
            RequestError::OutcomeUnknown { reason } => Self::OutcomeUnknown { reason },
            other => Self::OutcomeUnknown {
                reason: other.to_string(),
            },
        }
    }
}

/// Why a read or a question was not answered. It has no effect in any case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader confirmed the read: ask the leader, or, if nobody is known to lead, again after an
    /// election timeout.
    #[error("not the leader of group {group}")]
    NotLeader {
        /// The group.
        group: GroupId,
        /// The leader's host, if known.
        leader: Option<HostId>,
    },
    /// A bound is met: try again later, with less at once.
    #[error("busy: the {queue} queue is full")]
    Busy {
        /// Which.
        queue: &'static str,
    },
    /// The round that should confirm it was lost, to a change of leader most likely: try again.
    #[error("the read was dropped")]
    Dropped,
    /// The deadline passed: try again.
    #[error("no answer within {waited:?}")]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The group does not run here, or the group or the host has failed or stopped: ask another
    /// host.
    #[error("not served here: {reason}")]
    NotServed {
        /// Why.
        reason: String,
    },
}

impl ReadError {
    /// What the caller does next.
    #[must_use]
    pub const fn next_step(&self) -> NextStep {
        match self {
            Self::NotLeader { leader, .. } => NextStep::RetryElsewhere { leader: *leader },
            Self::NotServed { .. } => NextStep::RetryElsewhere { leader: None },
            Self::Busy { .. } | Self::Dropped | Self::Timeout { .. } => NextStep::Retry,
        }
    }

    pub(crate) fn of(error: RequestError) -> Self {
        match error {
            RequestError::NotLeader { group, leader } => Self::NotLeader {
                group,
                leader: leader.and_then(|(_, host)| host),
            },
            RequestError::Busy { queue } => Self::Busy { queue },
            RequestError::ReadDropped => Self::Dropped,
            other => Self::NotServed {
                reason: other.to_string(),
            },
        }
    }
}

/// Why a snapshot request has no outcome. What was begun goes on or is cleaned up by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The options contradict each other or what exists: mend them.
    #[error("invalid request: {reason}")]
    Invalid {
        /// What to mend.
        reason: String,
    },
    /// A bound is met. Nothing was done: try again later.
    #[error("busy: the {queue} queue is full")]
    Busy {
        /// Which.
        queue: &'static str,
    },
    /// The deadline passed. The save goes on; a request for the same state is then *nothing new*.
    #[error("not saved within {waited:?}")]
    Timeout {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The group does not run here, or the group or the host has failed or stopped.
    #[error("not served here: {reason}")]
    NotServed {
        /// Why.
        reason: String,
    },
}

impl SnapshotError {
    /// What the caller does next.
    #[must_use]
    pub const fn next_step(&self) -> NextStep {
        match self {
            Self::Invalid { .. } => NextStep::GiveUp,
            Self::Busy { .. } | Self::Timeout { .. } => NextStep::Retry,
            Self::NotServed { .. } => NextStep::RetryElsewhere { leader: None },
        }
    }

    pub(crate) fn of(error: RequestError) -> Self {
        match error {
            RequestError::Busy { queue } => Self::Busy { queue },
            RequestError::Invalid { reason } => Self::Invalid { reason },
            other => Self::NotServed {
                reason: other.to_string(),
            },
        }
    }
}
