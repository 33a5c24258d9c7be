//! What the core has beyond etcd-raft's, feature by feature, and what it refuses.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "features/bad_input.rs"]
mod bad_input;
#[path = "features/changes.rs"]
mod changes;
#[path = "features/every_message.rs"]
mod every_message;
#[path = "features/forwarding.rs"]
mod forwarding;
#[path = "features/leases.rs"]
mod leases;
#[path = "net/net.rs"]
mod net;
#[path = "features/priorities.rs"]
mod priorities;
#[path = "features/proposals.rs"]
mod proposals;
#[path = "features/quiet.rs"]
mod quiet;
#[path = "features/reasons.rs"]
mod reasons;
#[path = "features/reports.rs"]
mod reports;
#[path = "features/starts.rs"]
mod starts;
#[path = "features/time.rs"]
mod time;
#[path = "features/why_no_leader.rs"]
mod why_no_leader;
#[path = "features/witnesses.rs"]
mod witnesses;

use net::Net;
use raft_proto::{DropReason, PeerStatus, Raft, Refused};

pub(crate) fn dropped<T>(reason: DropReason) -> Result<T, Refused> {
    Err(Refused::Dropped { reason })
}

/// How the leader `id` sees `of`.
pub(crate) fn status(net: &mut Net, id: u64, of: u64) -> PeerStatus {
    net.raft(id)
        .peer_statuses()
        .find(|peer| peer.id.get() == of)
        .expect("it leads, and that is a member")
}

/// A replica of voters 1, 2, 3 with entries of these terms, which has nothing to do or to say.
pub(crate) fn holding(id: u64, term: u64, terms: &[u64], commit: u64) -> Raft {
    let mut raft = net::follower(id, term, terms, commit);
    // It asks for what is committed and not applied, once.
    while raft.poll_ready().is_some() {}
    raft
}
