//! Calls for the runner of etcd-raft's scripts: it shows each step of a submission by itself, answers
//! fetches at once, and sets election timeouts. No other driver has a use for them.

use alloc::vec::Vec;

use crate::entry::Batch;
use crate::message::Message;
use crate::output::Own;
use crate::raft::Raft;
use crate::ready::{Fetch, SubmissionId};

impl Raft {
    /// The messages of this replica to itself that wait for `id`, and after how many of the same
    /// `messages_after_sync` each was said.
    #[doc(hidden)]
    pub fn own_messages(&self, id: SubmissionId) -> impl Iterator<Item = (usize, &Message)> {
        let waits = move |own: &&Own| own.submission == Some(id);
        let own = self.out.own.iter().filter(waits);
        own.map(|own| (own.follows, &own.message))
    }

    /// Takes this message of the replica to itself, which waited for submission `id`, whichever came
    /// before it; part of the first half of [`Raft::persisted`].
    #[doc(hidden)]
    pub fn step_own_message(&mut self, id: SubmissionId, message: &Message) -> bool {
        let is_meant = |own: &Own| own.submission == Some(id) && own.message == *message;
        let at = self.out.own.iter().position(is_meant);
        let taken = at.and_then(|at| self.out.own.remove(at));
        let is_taken = taken.is_some();
        if let Some(mut own) = taken {
            self.step(&mut own.message).ok();
        }
        self.assert_invariants();
        is_taken
    }

    /// Counts what submissions up to `id` hold as durable; the second half of
    /// [`Raft::persisted`].
    #[doc(hidden)]
    pub fn entries_persisted(&mut self, id: SubmissionId) {
        self.count_entries(id);
    }

    /// Takes what would come as [`Ready::fetch`](crate::Ready::fetch): what the next `Ready` could not
    /// hand out without it is asked for too.
    #[doc(hidden)]
    pub fn take_fetches(&mut self) -> Vec<Fetch> {
        if let Some((from, to, room)) = self.next_to_apply() {
            let mut batches: Vec<Batch> = Vec::new();
            self.entries_at_hand(from, to, room, &mut batches);
            let next = batches
                .last()
                .map_or(from, |batch| batch.last().index.next());
            let is_at_hand = self.entries_at_hand(next, next, usize::MAX, &mut Vec::<Batch>::new());
            if next <= to && !is_at_hand {
                self.fetch(next, to, room);
            }
        }
        core::mem::take(&mut self.out.notices.fetch)
    }

    /// Sets the election timeout until the role or the term changes.
    #[doc(hidden)]
    pub const fn set_election_timeout_ticks(&mut self, ticks: u64) {
        self.timeout = ticks;
    }
}
