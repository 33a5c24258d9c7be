//! Why the core did not do what it was asked: one type per kind of question.

use core::fmt;

use crate::membership::MembershipError;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// Why a message or a command was not acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Nothing is wrong: it is old, or not for now. Whoever sent it will say more. What a message
    /// tells besides, such as a later term, counts all the same
    /// ([`Raft::handle_message`](crate::Raft::handle_message)); a command leaves nothing behind.
    #[error("dropped: {reason}")]
    Dropped {
        /// Why.
        reason: DropReason,
    },
    /// It claims what no correct replica claims; nothing was changed by it. Where [`ViolationKind::is_fatal`], this group's
    /// replica must be stopped: what it holds can no longer be trusted to be what others hold.
    #[error("violation by replica {from}: {kind}")]
    Violation {
        /// What it claims.
        kind: ViolationKind,
        /// Who.
        from: ReplicaId,
    },
}

impl Refused {
    pub(crate) const fn dropped<T>(reason: DropReason) -> Result<T, Self> {
        Err(Self::Dropped { reason })
    }

    pub(crate) const fn violation<T>(from: ReplicaId, kind: ViolationKind) -> Result<T, Self> {
        Err(Self::Violation { kind, from })
    }
}

/// Why something was dropped without being wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// It is addressed to another replica.
    NotForThisReplica,
    /// It belongs to another group.
    OtherGroup,
    /// It belongs to another epoch of the group: another life of it.
    OtherEpoch,
    /// From a replica that is no member, here and now, nor the leader of this term: only appends,
    /// heartbeats, snapshots and requests for votes are taken from such.
    UnknownPeer,
    /// It is of a term that is over.
    StaleTerm {
        /// Its term.
        found: Term,
        /// The current one.
        current: Term,
    },
    /// A vote was asked for while the leader is heard of (thesis §6.2 and §4.2.3).
    LeaderAlive,
    /// It is meant for a leader, and this replica does not lead.
    NotLeader,
    /// There is no leader to pass it on to.
    NoLeader,
    /// The leader that was asked leads no more, or was not heard of.
    LeaderChanged,
    /// No answer came within an election timeout.
    NoAnswer,
    /// It is meant for a role that this replica no longer has.
    NotForThisRole,
    /// The replica may not lead: it is no voter, or a witness.
    NotPromotable,
    /// This replica's log lacks commands, from when it was a witness: its state machine would answer
    /// wrongly. Remove it, and add an empty one under another id.
    LogWithoutCommands,
    /// Leadership is already being handed over.
    TransferInProgress,
    /// It tells what is known already.
    Stale,
    /// Entries without their commands, to a replica that is no witness: they were meant for the one
    /// that it was before it was removed and added again, or its leader does not know yet.
    WithoutCommand,
    /// A received snapshot does not reach past the commit index.
    SnapshotOutdated,
    /// A received snapshot's membership does not name this replica.
    SnapshotWithoutUs,
    /// A read's answer nobody waits for any more.
    UnknownRead,
    /// Too many reads wait for an answer.
    ReadsFull,
    /// What was forwarded was refused by the leader's own rules.
    ProposalRefused,
    /// No commands to pass on, more than 65,536, or 4 GiB of them. Pass on fewer at once.
    BatchSize,
    /// A snapshot past the next entry is asked for. Ask again when the log is so long.
    PastEnd,
    /// Reads may rely on a lease that this replica granted, in an earlier term or life too: meanwhile
    /// it votes for nobody, forgets no leader, and does not stand unasked. Try again when an election
    /// timeout has passed.
    LeaseHeld,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotForThisReplica => "addressed to another replica",
            Self::OtherGroup => "of another group",
            Self::OtherEpoch => "of another epoch of the group",
            Self::UnknownPeer => "from a replica that is no member",
            Self::StaleTerm { found, current } => {
                return write!(f, "of term {found}, which is over: it is term {current}");
            }
            Self::LeaderAlive => "the leader is alive",
            Self::NotLeader => "this replica does not lead",
            Self::NoLeader => "no leader is known",
            Self::LeaderChanged => "the leader that was asked leads no more",
            Self::NoAnswer => "no answer came in time",
            Self::NotForThisRole => "the role it is meant for is over",
            Self::NotPromotable => "the replica may not lead",
            Self::LogWithoutCommands => "the log lacks commands, from when it was a witness's",
            Self::TransferInProgress => "leadership is being handed over",
            Self::Stale => "nothing new",
            Self::WithoutCommand => "entries without commands, and this is no witness",
            Self::SnapshotOutdated => "the snapshot is older than the commit index",
            Self::SnapshotWithoutUs => "the snapshot's membership does not name this replica",
            Self::UnknownRead => "nobody waits for this read",
            Self::ReadsFull => "too many reads wait",
            Self::ProposalRefused => "the forwarded proposal was refused",
            Self::BatchSize => "no commands to pass on, or more than one message carries",
            Self::PastEnd => "past the next entry",
            Self::LeaseHeld => "reads may rely on a lease that this replica granted",
        })
    }
}

/// What no correct replica claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ViolationKind {
    /// It speaks in this replica's own name.
    OwnName,
    /// It claims to lead a term that another leads. Fatal.
    SecondLeader {
        /// The term.
        term: Term,
        /// The leader this replica knows.
        leader: ReplicaId,
    },
    /// Its log contradicts an entry that is committed here. Fatal.
    CommittedConflict {
        /// What it claims.
        claimed: EntryId,
        /// The term of the entry here.
        committed: Term,
    },
    /// It says that entries past this log's end are known to be here.
    CommitPastEnd {
        /// What it says is committed.
        commit: Index,
        /// Where the log ends.
        last: Index,
    },
    /// It acknowledges what was never sent.
    AckPastEnd {
        /// What it acknowledges.
        acked: Index,
        /// Where the log ends.
        last: Index,
    },
    /// Its entries do not follow one another, or are of a later term than their leader's.
    EntryOrder {
        /// The first that is wrong.
        found: EntryId,
    },
    /// A membership change that does not parse. No leader appends one: this is another version's, and a
    /// replica that took it for no change would have another membership than the rest. Upgrade it.
    Change {
        /// The entry.
        found: EntryId,
    },
    /// A term or index where none like it can be: of zero, too high to be counted on from, or of a
    /// later term than its sender's.
    OutOfRange,
    /// It confirms a heartbeat round that was never begun.
    RoundNeverBegun {
        /// The round.
        round: u64,
    },
    /// A snapshot's membership contradicts itself or names nobody.
    Membership,
}

impl ViolationKind {
    /// Whether the group's replica here must be stopped: somewhere safety is lost already.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::SecondLeader { .. } | Self::CommittedConflict { .. }
        )
    }
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnName => f.write_str("it speaks in our name"),
            Self::SecondLeader { term, leader } => {
                write!(
                    f,
                    "it claims to lead term {term}, which replica {leader} leads"
                )
            }
            Self::CommittedConflict { claimed, committed } => write!(
                f,
                "it claims entry {claimed}, which is committed here with term {committed}"
            ),
            Self::CommitPastEnd { commit, last } => {
                write!(f, "commit {commit} lies past our last entry {last}")
            }
            Self::AckPastEnd { acked, last } => {
                write!(f, "it acknowledges {acked}, past our last entry {last}")
            }
            Self::EntryOrder { found } => write!(f, "entry {found} is out of order"),
            Self::Change { found } => {
                write!(f, "the membership change of entry {found} does not parse")
            }
            Self::OutOfRange => f.write_str("a term or index is out of range"),
            Self::RoundNeverBegun { round } => write!(f, "round {round} was never begun"),
            Self::Membership => f.write_str("the membership contradicts itself"),
        }
    }
}

/// Why a proposal was not taken. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another replica leads, or none. Ask the leader.
    #[error("not the leader")]
    NotLeader {
        /// The leader, when known.
        leader: Option<ReplicaId>,
    },
    /// The leadership is being handed over. Retry.
    #[error("a leadership transfer is in progress")]
    TransferInProgress,
    /// Too many uncommitted bytes, or entries. Retry when some are committed.
    #[error("too many uncommitted bytes")]
    UncommittedFull,
    /// More than 1 GiB of commands ([`COMMANDS_BYTES_MAX`](crate::COMMANDS_BYTES_MAX)). Propose fewer at
    /// once, or smaller ones.
    #[error("{bytes} bytes of commands are more than are taken at once")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// A membership change among the commands. Use
    /// [`Raft::propose_membership`](crate::Raft::propose_membership), which checks it.
    #[error("a membership change is no command: use propose_membership")]
    MembershipKind,
    /// This replica is no longer a member. Ask another.
    #[error("this replica was removed")]
    Removed,
    /// A membership change is pending, or nothing of this term is committed yet. Retry.
    #[error("a membership change is pending, or the term has no committed entry yet")]
    ChangePending,
    /// The membership is no longer the one the change was made for. Look again.
    #[error("the membership is of index {current}, not {expected}")]
    MembershipMoved {
        /// What the caller took as the current membership.
        expected: Index,
        /// The index of the current membership.
        current: Index,
    },
    /// The change makes no sense now.
    #[error(transparent)]
    Change(#[from] MembershipError),
}
