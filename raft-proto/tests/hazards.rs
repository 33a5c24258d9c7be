//! Bugs that real systems had, by their numbers in the project's list of hazards (part A).
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "hazards/elections.rs"]
mod elections;
#[path = "hazards/flow_and_reads.rs"]
mod flow_and_reads;
#[path = "hazards/membership.rs"]
mod membership;
#[path = "net/net.rs"]
mod net;
#[path = "hazards/replication.rs"]
mod replication;

use net::{entry_id, group, index, replica, voters};
use raft_proto::{Config, DropReason, HardState, Index, Raft, Refused, Restored, Term, TermRun};

pub(crate) fn plain(_: &mut Config) {}

pub(crate) fn stale(found: u64, current: u64) -> Refused {
    Refused::Dropped {
        reason: DropReason::StaleTerm {
            found: Term::new(found),
            current: Term::new(current),
        },
    }
}

/// A replica of voters 1, 2, 3 with `log` entries of the given terms, all durable.
pub(crate) fn follower(id: u64, term: u64, terms: &[u64], commit: u64) -> Raft {
    let config = Config {
        pre_vote: false,
        check_quorum: false,
        ..Config::new(group(), replica(id), id)
    };
    let mut runs = vec![TermRun {
        first: Index::ZERO,
        term: Term::ZERO,
    }];
    for (at, &term) in terms.iter().enumerate() {
        if runs.last().is_some_and(|run| run.term != Term::new(term)) {
            runs.push(TermRun {
                first: Index::new(u64::try_from(at).expect("few") + 1),
                term: Term::new(term),
            });
        }
    }
    let last = u64::try_from(terms.len()).expect("few");
    let restored = Restored {
        hard_state: HardState {
            term: Term::new(term),
            vote: None,
            commit: index(commit),
        },
        last: entry_id(terms.last().copied().unwrap_or(0), last),
        terms: runs,
        membership: voters(&[1, 2, 3]),
        ..Restored::default()
    };
    Raft::new(config, restored).expect("valid settings")
}
