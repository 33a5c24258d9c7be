//! What can be asked of a group through this host.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_engine::{Applied, GroupStatus, RequestError, SnapshotOutcome, SnapshotRequest};
use raft_proto::{ChangeKind, GroupId, HostId, MembershipChange, ReplicaId};

use crate::error::{ProposeError, ReadError, SnapshotError};
use crate::events::LeaderHint;
use crate::host::HostShared;
use crate::pending::{self, Outcome, Waited};

/// A group, as one host serves it. Cheap to clone.
///
/// Every request is submitted when the method is called, in the order of the calls, and not only
/// when its future is polled: a client may call many times and await later. Dropping a future
/// withdraws nothing. A future waits no longer than the handle's timeout, see
/// [`GroupHandle::with_timeout`].
#[derive(Clone)]
pub struct GroupHandle {
    host: Arc<HostShared>,
    group: GroupId,
    replica: ReplicaId,
    leader: Arc<LeaderHint>,
    timeout: Duration,
}

impl std::fmt::Debug for GroupHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupHandle")
            .field("group", &self.group)
            .field("replica", &self.replica)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl GroupHandle {
    pub(crate) fn new(
        host: Arc<HostShared>,
        group: GroupId,
        replica: ReplicaId,
        leader: Arc<LeaderHint>,
    ) -> Self {
        let timeout = host.request_timeout;
        Self {
            host,
            group,
            replica,
            leader,
            timeout,
        }
    }

    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }

    /// This host's replica of it.
    #[must_use]
    pub const fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// The same group, with another timeout for its requests.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Who leads, as the replica here last heard. It costs nothing and may be out of date.
    #[must_use]
    pub fn leader(&self) -> Option<ReplicaId> {
        self.leader.leader()
    }

    /// Whether the replica here leads, as it last heard.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.replica)
    }

    /// Waits until somebody leads, and returns who, as the replica here has heard.
    ///
    /// # Errors
    ///
    /// [`ReadError::Timeout`]: nobody leads; most likely there is no majority.
    pub async fn wait_for_leader(&self) -> Result<ReplicaId, ReadError> {
        let waited = self.timeout;
        let known = tokio::time::timeout(waited, self.leader.known()).await;
        known.map_err(|_| ReadError::Timeout { waited })
    }

    /// Proposes a command. `Ok` means: durable on a majority and applied here; it carries what the
    /// state machine returned.
    ///
    /// # Errors
    ///
    /// [`ProposeError`]; its [`next_step`](ProposeError::next_step) says what to do. After
    /// [`Timeout`](ProposeError::Timeout) and [`OutcomeUnknown`](ProposeError::OutcomeUnknown) the
    /// command may still take effect.
    pub fn propose(
        &self,
        command: impl Into<Bytes>,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.propose(self.group, command.into(), None, responder);
        });
        self.proposed(outcome)
    }

    /// Queries the state machine linearizably: the answer reflects every write that was
    /// acknowledged, on any host, before this call.
    ///
    /// The leader confirms by a round of heartbeats that it leads (ReadIndex); nothing is written.
    /// On a follower the round is asked of the leader and the answer read here. With
    /// [`EngineConfig::lease_ticks`](crate::EngineConfig) a leader that holds a lease needs no round.
    /// Source: thesis §6.4.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; a read has no effect and may be repeated.
    pub fn read(
        &self,
        query: impl Into<Bytes>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.read(self.group, query.into(), responder);
        });
        self.answered(outcome)
    }

    /// Queries whatever state the replica here has, however old.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn read_stale(
        &self,
        query: impl Into<Bytes>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.read_stale(self.group, query.into(), responder);
        });
        self.answered(outcome)
    }

    /// How the group stands, as the replica here sees it.
    ///
    /// # Errors
    ///
    /// [`ReadError`].
    pub fn status(&self) -> impl Future<Output = Result<GroupStatus, ReadError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| engine.status(self.group, responder));
        self.answered(outcome)
    }

    /// Saves the replica's state as a snapshot, or exports a copy of it, and compacts the log
    /// behind it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]. That there is nothing new to save is an outcome, not an error.
    pub fn request_snapshot(
        &self,
        request: SnapshotRequest,
    ) -> impl Future<Output = Result<SnapshotOutcome, SnapshotError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.request_snapshot(self.group, request, responder);
        });
        self.saved(outcome)
    }

    /// Gives up the save under way, if there is one: whoever asked for it hears
    /// [`SnapshotOutcome::Aborted`], and nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn cancel_snapshot(
        &self,
    ) -> impl Future<Output = Result<(), SnapshotError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.cancel_snapshot(self.group, responder);
        });
        self.saved(outcome)
    }

    /// Adds a replica that receives entries and does not count. Its host starts the group with
    /// [`Start::Join`](crate::Start::Join), before or after this.
    ///
    /// # Errors
    ///
    /// [`ProposeError`], as for each membership change; [`ProposeError::Busy`] while another change
    /// is pending, or before the leader has committed an entry of its term;
    /// [`ProposeError::Refused`] if the change makes no sense.
    pub fn add_learner(
        &self,
        replica: ReplicaId,
        host: HostId,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        self.change(ChangeKind::AddLearner, replica, Some(host))
    }

    /// Makes a learner a voter. See that it has caught up first, or the group waits for it.
    ///
    /// # Errors
    ///
    /// As [`GroupHandle::add_learner`].
    pub fn promote(
        &self,
        replica: ReplicaId,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        self.change(ChangeKind::AddVoter, replica, None)
    }

    /// Removes a replica from the group, for ever: its id is never used again.
    ///
    /// # Errors
    ///
    /// As [`GroupHandle::add_learner`].
    pub fn remove(
        &self,
        replica: ReplicaId,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        self.change(ChangeKind::Remove, replica, None)
    }

    /// Changes the membership; `Ok` means that the change is committed and in force here.
    ///
    /// # Errors
    ///
    /// As [`GroupHandle::add_learner`].
    pub fn change_membership(
        &self,
        change: MembershipChange,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.change_membership(self.group, change, responder);
        });
        self.proposed(outcome)
    }

    fn change(
        &self,
        kind: ChangeKind,
        replica: ReplicaId,
        host: Option<HostId>,
    ) -> impl Future<Output = Result<Applied, ProposeError>> + Send + 'static {
        self.change_membership(MembershipChange::single(kind, replica, host))
    }

    /// Hands the leadership to another voter; `Ok` means that it leads. Source: thesis §3.10.
    ///
    /// # Errors
    ///
    /// [`ProposeError::NotLeader`] if the replica here does not lead; [`ProposeError::Refused`] if
    /// the other is no voter; [`ProposeError::TransferFailed`] if it did not take over in time.
    pub fn transfer_leadership(
        &self,
        to: ReplicaId,
    ) -> impl Future<Output = Result<(), ProposeError>> + Send + 'static {
        let outcome = self.submit(|engine, responder| {
            engine.transfer_leadership(self.group, to, responder);
        });
        self.proposed(outcome)
    }

    /// Hands a request to the engine now. A host that was closed answers at once.
    fn submit<T: Send + 'static>(
        &self,
        hand_over: impl FnOnce(&raft_engine::Engine, raft_engine::Responder<T>),
    ) -> Outcome<T> {
        let (responder, outcome) = pending::request();
        if self.host.is_closed() {
            let reason = "it was closed".to_owned();
            responder.respond(Err(RequestError::HostFailed { reason }));
        } else {
            hand_over(&self.host.engine, responder);
        }
        outcome
    }

    fn saved<T: Send + 'static>(
        &self,
        outcome: Outcome<T>,
    ) -> impl Future<Output = Result<T, SnapshotError>> + Send + 'static + use<T> {
        let waiting = pending::within(self.timeout, outcome);
        async move {
            match waiting.await {
                Waited::Done(outcome) => outcome.map_err(SnapshotError::of),
                Waited::Timeout(waited) => Err(SnapshotError::Timeout { waited }),
            }
        }
    }

    fn proposed<T: Send + 'static>(
        &self,
        outcome: Outcome<T>,
    ) -> impl Future<Output = Result<T, ProposeError>> + Send + 'static + use<T> {
        let waiting = pending::within(self.timeout, outcome);
        async move {
            match waiting.await {
                Waited::Done(outcome) => outcome.map_err(ProposeError::of),
                Waited::Timeout(waited) => Err(ProposeError::Timeout { waited }),
            }
        }
    }

    fn answered<T: Send + 'static>(
        &self,
        outcome: Outcome<T>,
    ) -> impl Future<Output = Result<T, ReadError>> + Send + 'static + use<T> {
        let waiting = pending::within(self.timeout, outcome);
        async move {
            match waiting.await {
                Waited::Done(outcome) => outcome.map_err(ReadError::of),
                Waited::Timeout(waited) => Err(ReadError::Timeout { waited }),
            }
        }
    }
}
