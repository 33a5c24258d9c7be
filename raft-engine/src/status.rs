//! What a group looks like from outside.

use raft_proto::{EntryId, GroupId, HostId, Index, Membership, ReplicaId, Role, Term};

/// One replica's view of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// This host's replica.
    pub replica: ReplicaId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader it knows.
    pub leader: Option<ReplicaId>,
    /// The host of that leader.
    pub leader_host: Option<HostId>,
    /// The first index its log holds, or would hold.
    pub first: Index,
    /// The last index of its log.
    pub last: Index,
    /// The highest index it knows to be committed.
    pub commit: Index,
    /// The highest index its state machine has applied.
    pub applied: Index,
    /// Its newest recorded snapshot; [`EntryId::ZERO`] without one.
    pub snapshot: EntryId,
    /// Who belongs to the group.
    pub membership: Membership,
    /// Bytes of its live entries in the log.
    pub log_bytes: u64,
    /// The state machine's hash at `applied`.
    pub state_hash: u64,
    /// Whether the replica took its state from a streamed snapshot since the process started.
    pub installed_from_stream: bool,
    /// The place of the snapshot that is lost here, while nothing has come in its stead: the replica
    /// votes and acknowledges, for its log is whole, and applies nothing.
    pub awaits_snapshot: Option<Index>,
    /// Whether the group has fallen quiet here: nothing is sent and nothing is awaited until somebody
    /// needs it.
    pub is_quiet: bool,
    /// Memory the core holds for it.
    pub memory_bytes: usize,
    /// Why the replica has failed, if it has.
    pub failed: Option<String>,
}
