//! What the engine asks of the world around it: a way to other hosts, and an ear for events.

use std::sync::Arc;

use raft_proto::{Envelope, GroupId, HostId, Index, ReplicaId, SnapshotMeta, Term};
use raft_snapshot::SnapshotEnv;

use crate::inbox::Inbox;
use crate::step::StepInput;

/// The way to other hosts. Called by step workers; must not block.
pub trait Outbound: Send + Sync {
    /// Takes messages for `to`. May drop them: Raft tolerates it. Whoever drops says so through
    /// [`Engine::unreachable`](crate::Engine::unreachable).
    fn send(&self, to: HostId, messages: Vec<Envelope>);

    /// Takes a stored snapshot to stream to `to`.
    fn send_snapshot(&self, to: HostId, transfer: SnapshotTransfer);
}

/// A stored snapshot on its way to a replica that needs it.
#[derive(Debug)]
pub struct SnapshotTransfer {
    /// The group.
    pub group: GroupId,
    /// The group's epoch.
    pub epoch: u64,
    /// The sending replica.
    pub from: ReplicaId,
    /// The receiving replica.
    pub to: ReplicaId,
    /// The sender's term.
    pub term: Term,
    /// Place and membership of the snapshot.
    pub meta: SnapshotMeta,
    /// Where it lies: open `meta.id.index` there.
    pub env: SnapshotEnv,
    /// Says how it went.
    pub report: SnapshotReport,
}

/// Tells the group how a transfer ended. Dropped unused, it reports a failure.
pub struct SnapshotReport {
    pub(crate) group: GroupId,
    pub(crate) to: ReplicaId,
    pub(crate) inbox: Option<Arc<Inbox<StepInput>>>,
}

impl SnapshotReport {
    /// The receiver has committed the snapshot to its disk.
    pub fn finished(mut self) {
        self.report(true);
    }

    /// It has not, or refused it.
    pub fn failed(mut self) {
        self.report(false);
    }

    fn report(&mut self, is_finished: bool) {
        if let Some(inbox) = self.inbox.take() {
            let (group, to) = (self.group, self.to);
            inbox.notice(StepInput::SnapshotSent {
                group,
                to,
                is_finished,
            });
        }
    }
}

impl std::fmt::Debug for SnapshotReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "SnapshotReport(group {} replica {})",
            self.group, self.to
        )
    }
}

impl Drop for SnapshotReport {
    fn drop(&mut self) {
        self.report(false);
    }
}

/// Takes events. Called by workers; must not block.
pub trait Events: Send + Sync {
    /// Something a person or the host wants to know.
    fn event(&self, event: Event);
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A group has another leader, or none, as this replica sees it.
    LeaderChanged {
        /// The group.
        group: GroupId,
        /// The term.
        term: Term,
        /// The leader.
        leader: Option<ReplicaId>,
    },
    /// A group failed on this host. The others go on.
    GroupFailed {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
    /// The log failed: the host acknowledges nothing any more. Close the transport and restart.
    HostFailed {
        /// Why.
        reason: String,
    },
    /// A snapshot was saved and recorded.
    SnapshotSaved {
        /// The group.
        group: GroupId,
        /// Its index.
        index: Index,
    },
    /// A streamed snapshot was installed.
    SnapshotInstalled {
        /// The group.
        group: GroupId,
        /// Its index.
        index: Index,
    },
    /// Messages were refused.
    Refused {
        /// The group.
        group: GroupId,
        /// Why.
        reason: String,
    },
}
