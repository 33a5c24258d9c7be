//! What the Raft thesis (Ongaro, 2014) claims of the core, claim by claim; each test bears the
//! section in its name.
//!
//! Not here: section 6.3 (sessions are the engine's), chapters 7 and 8 (no claims on an
//! implementation), 9.3 to 9.5 (measurements; what follows from them is under 3.4 and 9.6).
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "thesis/basics.rs"]
mod basics;
#[path = "thesis/elections.rs"]
mod elections;
#[path = "thesis/log.rs"]
mod log;
#[path = "thesis/membership.rs"]
mod membership;
#[path = "net/net.rs"]
mod net;
#[path = "thesis/performance.rs"]
mod performance;
#[path = "thesis/reads.rs"]
mod reads;
#[path = "thesis/snapshots.rs"]
mod snapshots;

use net::{Net, index, message};
use raft_proto::{Body, EntryId, Message, Raft, Role, Term};

/// Lets a replica do at once all that it wants done, and returns what it says.
pub(crate) fn drain(raft: &mut Raft) -> Vec<Message> {
    let mut said = Vec::new();
    while let Some(ready) = raft.poll_ready() {
        said.extend(ready.messages);
        if let Some(id) = ready.submission {
            let durable = raft.persisted(id);
            let held = ready.messages_after_sync.into_iter();
            said.extend(held.map(|held| held.release(durable)));
        }
        if let Some(batch) = ready.committed.last() {
            raft.applied(batch.last().index);
        }
    }
    said
}

/// Gives a replica a message and returns what it says.
pub(crate) fn tell(raft: &mut Raft, message: Message) -> Vec<Message> {
    raft.handle_message(message).ok();
    drain(raft)
}

pub(crate) fn vote(last: EntryId) -> Body {
    Body::Vote {
        last,
        is_transfer: false,
    }
}

pub(crate) fn accepted(at: u64) -> Body {
    Body::AppendResponse {
        index: index(at),
        rejected: None,
    }
}

pub(crate) fn heartbeat(commit: u64) -> Body {
    Body::Heartbeat {
        commit: index(commit),
        round: 0,
    }
}

/// Whether the one answer among `said` is a yes.
pub(crate) fn granted(said: &[Message]) -> bool {
    let answers: Vec<bool> = said
        .iter()
        .filter_map(|message| match message.body {
            Body::VoteResponse { is_rejected } | Body::PreVoteResponse { is_rejected } => {
                Some(!is_rejected)
            }
            _ => None,
        })
        .collect();
    assert_eq!(answers.len(), 1, "{said:?}");
    answers[0]
}

/// Makes a replica of three a leader by hand.
pub(crate) fn lead(raft: &mut Raft) {
    raft.campaign().expect("it may stand");
    drain(raft);
    let term = raft.term().get();
    let me = raft.config().id.get();
    let other = if me == 1 { 2 } else { 1 };
    raft.handle_message(message(
        other,
        me,
        term,
        Body::VoteResponse { is_rejected: false },
    ))
    .expect("it counts");
    assert_eq!(raft.role(), Role::Leader);
    drain(raft);
}

pub(crate) fn term(term: u64) -> Term {
    Term::new(term)
}

/// A group of three of which the first leads.
pub(crate) fn led_group() -> Net {
    let mut net = Net::new(&[1, 2, 3], net::plain);
    net.elect(1);
    net
}
