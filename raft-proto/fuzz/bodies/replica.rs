//! A replica that is driven by nobody but a peer.

use raft_proto::{Fetched, Raft, Ready};

/// Taking this often what it wants done, without anything from outside, is a circle.
const POLLS_MAX: usize = 64;

/// Does what the core wants done; there is no log to fetch from.
pub(crate) fn drain(raft: &mut Raft) {
    let mut ready = Ready::default();
    for _ in 0..POLLS_MAX {
        if !raft.poll_ready_into(&mut ready) {
            return;
        }
        if let Some(id) = ready.submission {
            raft.persisted(id);
        }
        if let Some(meta) = &ready.snapshot {
            raft.applied(meta.id.index);
        }
        if let Some(batch) = ready.committed.last() {
            raft.applied(batch.last().index);
        }
        for fetch in &ready.fetch {
            let first = fetch.first;
            raft.entries_fetched(Fetched::Failed { first });
        }
    }
    panic!("it wants something again and again");
}

/// What a refused message must leave as it was.
pub(crate) fn state(raft: &Raft) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        raft.hard_state(),
        raft.role(),
        raft.leader(),
        raft.last_index(),
        raft.membership().clone(),
    )
}
