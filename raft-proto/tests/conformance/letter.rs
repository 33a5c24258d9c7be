//! What travels in the one queue of messages, and the work of the two threads.

use raft_proto::{Batch, EntryId, Index, Message, ReplicaId, SnapshotMeta, SubmissionId, Term};

use crate::describe::{self, Party, Shown};
use crate::storage::Entry;

/// What lies in the one queue of messages.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
    /// From one replica to another.
    Peer(Message),
    /// A proposal that is passed on for another replica, which etcd-raft goes on to name as its
    /// sender.
    PassedOn { message: Message, origin: ReplicaId },
    /// From a replica to itself: the core has it already and waits for this.
    Own {
        message: Message,
        submission: SubmissionId,
    },
    /// From the append thread.
    Appended(Appended),
    /// From the apply thread.
    Applied {
        to: ReplicaId,
        entries: Vec<Entry>,
        last: Index,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Appended {
    pub(crate) to: ReplicaId,
    pub(crate) term: Term,
    /// The end of the log, if some of it was not durable.
    pub(crate) log: Option<EntryId>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) submission: SubmissionId,
}

impl Letter {
    pub(crate) fn to(&self) -> u64 {
        match self {
            Self::Peer(message) | Self::PassedOn { message, .. } | Self::Own { message, .. } => {
                message.to.get()
            }
            Self::Appended(appended) => appended.to.get(),
            Self::Applied { to, .. } => to.get(),
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Peer(message) | Self::PassedOn { message, .. } | Self::Own { message, .. } => {
                describe::kind_of(&message.body)
            }
            Self::Appended(_) => "MsgStorageAppendResp",
            Self::Applied { .. } => "MsgStorageApplyResp",
        }
    }

    /// What etcd-raft takes for a message of a replica to itself is never dropped.
    pub(crate) fn may_be_dropped(&self) -> bool {
        match self {
            Self::Peer(_) | Self::PassedOn { .. } => {
                let shown = self.shown();
                shown.from != shown.to
            }
            Self::Own { .. } | Self::Appended(_) | Self::Applied { .. } => false,
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        match self {
            Self::Peer(message) | Self::Own { message, .. } => Shown::of(message),
            Self::PassedOn { message, origin } => {
                let mut shown = Shown::of(message);
                shown.from = Party::Replica(origin.get());
                shown
            }
            Self::Appended(appended) => {
                let to = Party::Replica(appended.to.get());
                let mut shown = Shown::new(Party::AppendThread, to, "MsgStorageAppendResp");
                shown.term = appended.term.get();
                if let Some(id) = appended.log {
                    shown.log = (id.term.get(), id.index.get());
                }
                shown.snapshot = appended.snapshot.as_ref().map(describe::snapshot);
                shown
            }
            Self::Applied { to, entries, .. } => {
                let to = Party::Replica(to.get());
                let mut shown = Shown::new(Party::ApplyThread, to, "MsgStorageApplyResp");
                shown.entries = entries.iter().map(describe::entry).collect();
                shown
            }
        }
    }
}

/// Work for the append thread.
#[derive(Debug)]
pub(crate) struct AppendWork {
    pub(crate) shown: Shown,
    pub(crate) entries: Vec<Batch>,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) responses: Vec<Letter>,
}

/// Work for the apply thread.
#[derive(Debug)]
pub(crate) struct ApplyWork {
    pub(crate) shown: Shown,
    pub(crate) committed: Vec<Batch>,
    pub(crate) response: Letter,
}
