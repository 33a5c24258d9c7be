//! Bugs that real systems had, by their numbers in the project's list of hazards (part A).
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "../fuzz/bodies/replica.rs"]
mod drain;
#[path = "hazards/elections.rs"]
mod elections;
#[path = "hazards/flow_and_reads.rs"]
mod flow_and_reads;
#[path = "hazards/limits.rs"]
mod limits;
#[path = "hazards/membership.rs"]
mod membership;
#[path = "net/net.rs"]
mod net;
#[path = "hazards/replication.rs"]
mod replication;
#[path = "support/report.rs"]
mod report;

pub(crate) use net::{follower, plain, restarted};
use raft_proto::{DropReason, Refused, Term};

pub(crate) fn stale(found: u64, current: u64) -> Refused {
    Refused::Dropped {
        reason: DropReason::StaleTerm {
            found: Term::new(found),
            current: Term::new(current),
        },
    }
}
