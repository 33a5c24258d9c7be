//! What the core wants done, gathered while it steps and handed out by `poll_ready`.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::entries::Gather;
use crate::entry::Batch;
use crate::error::DropReason;
use crate::message::{Body, Message, SnapshotMeta};
use crate::raft::Raft;
use crate::raft_log::RaftLog;
use crate::ready::{
    AfterSync, Dropped, Durable, Fetch, Fetched, ReadState, Ready, SoftState, SubmissionId,
    Underway,
};
use crate::roles::State;
use crate::types::{Index, ReplicaId, Term};

/// A message of this replica to itself, due when its submission is durable.
#[derive(Debug)]
pub(crate) struct Own {
    /// `None` until it is handed out.
    pub(crate) submission: Option<SubmissionId>,
    /// How many of the same `messages_after_sync` were said before it.
    #[cfg(feature = "__steps")]
    pub(crate) follows: usize,
    pub(crate) message: Message,
}

/// What has been said since the last `poll_ready`.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    messages: Vec<Message>,
    after_sync: Vec<AfterSync<Message>>,
    pub(crate) own: VecDeque<Own>,
    /// How many of `own`, at its end, were not handed out.
    own_new: usize,
    pub(crate) notices: Notices,
    /// Whether there may be any of them.
    has_notices: bool,
}

/// What is said to the driver itself, more seldom than anything to another replica.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    pub(crate) reads: Vec<ReadState>,
    pub(crate) dropped: Vec<Dropped>,
    pub(crate) fetch: Vec<Fetch>,
    pub(crate) snapshot_offered: Option<SnapshotMeta>,
    pub(crate) snapshot_wanted: Option<Index>,
}

impl Outbox {
    /// Tells that something under way will not be finished.
    pub(crate) fn drop(&mut self, what: Underway, reason: DropReason) {
        self.notices().dropped.push(Dropped { what, reason });
    }

    /// Where a notice is put.
    pub(crate) const fn notices(&mut self) -> &mut Notices {
        self.has_notices = true;
        &mut self.notices
    }

    /// The next own message due with submissions up to `id`.
    pub(crate) fn next_own(&mut self, id: SubmissionId) -> Option<Message> {
        let is_due = |own: &Own| own.submission.is_some_and(|own| own <= id);
        self.own.front().is_some_and(is_due).then_some(())?;
        self.own.pop_front().map(|own| own.message)
    }

    #[inline]
    pub(crate) fn has_own(&self) -> bool {
        !self.own.is_empty()
    }

    #[inline]
    const fn has_something(&self) -> bool {
        (self.messages.len() | self.after_sync.len() | self.own_new) > 0 || self.has_notices
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let held = self.after_sync.iter().map(AfterSync::held);
        let own = self.own.iter().map(|own| &own.message);
        let messages = self.messages.iter().chain(held).chain(own);
        let notices = &self.notices;
        let offered = notices.snapshot_offered.as_ref();
        messages
            .map(|message| size_of::<Own>() + message.body.memory_bytes())
            .sum::<usize>()
            + offered.map_or(0, |meta| meta.membership.memory_bytes())
            + notices.reads.len() * size_of::<ReadState>()
            + notices.dropped.len() * size_of::<Dropped>()
            + notices.fetch.len() * size_of::<Fetch>()
    }
}

/// Sending.
impl Raft {
    #[inline]
    pub(crate) fn send(&mut self, to: ReplicaId, body: Body) {
        let term = match body {
            // Both are as good in any term.
            Body::Propose { .. } | Body::ReadIndex { .. } => Term::ZERO,
            _ => self.term,
        };
        self.send_in(term, to, body);
    }

    /// Sends what may leave now, and holds what must wait for this replica's disk. Inlined, so that
    /// a message is made where it is to lie.
    #[inline(always)]
    pub(crate) fn send_in(&mut self, term: Term, to: ReplicaId, body: Body) {
        let message = Message {
            from: self.config.id,
            to,
            term,
            body,
        };
        trace!(self, Send(message.clone()));
        if self.is_me(to) {
            self.out.own.push_back(Own {
                submission: None,
                #[cfg(feature = "__steps")]
                follows: self.out.after_sync.len(),
                message,
            });
            self.out.own_new += 1;
            return;
        }
        // A vote, or an acknowledgement, is a promise; a request for a vote is one too, since who
        // forgot that it asked could lead the same term twice. And nothing but a pre-vote, which
        // promises nothing, names a term that this replica could forget.
        let must_wait = message.body.is_promise()
            || (self.term > self.durable_term && !matches!(message.body, Body::PreVote { .. }));
        if must_wait {
            let follows = self.out.messages.len();
            let durable = Durable::up_to(self.life(), self.log.next_submission());
            let held = AfterSync::new(message, durable, follows);
            self.out.after_sync.push(held);
        } else {
            self.out.messages.push(message);
        }
    }

    /// Calls `visit` with every other member, by ascending id.
    pub(crate) fn for_each_other(&mut self, mut visit: impl FnMut(&mut Self, ReplicaId)) {
        let mut at = 0;
        while at < self.members.len() {
            let id = self.members.at(at).id;
            if !self.is_me(id) {
                visit(self, id);
            }
            at += 1;
        }
    }
}

/// An id is no zero, and two numbers compare faster than two options.
#[inline]
pub(crate) fn number(id: Option<ReplicaId>) -> u64 {
    id.map_or(0, ReplicaId::get)
}

/// Handing out.
impl Raft {
    /// What is to be done, if anything is.
    pub fn poll_ready(&mut self) -> Option<Ready> {
        let mut ready = Ready::default();
        self.poll_ready_into(&mut ready).then_some(ready)
    }

    /// Like [`Raft::poll_ready`], into a [`Ready`] whose memory is used again: what it held is gone
    /// if this returns true. Returns false if nothing is to be done.
    #[inline]
    pub fn poll_ready_into(&mut self, ready: &mut Ready) -> bool {
        // Most calls find nothing, and those cost little.
        self.may_be_ready() && self.fill(ready)
    }

    fn fill(&mut self, ready: &mut Ready) -> bool {
        ready.clear();
        if !self.config.change_done_when_applied {
            if self.is_applying_paused || self.lacks_commands() {
                self.switch_ahead();
            }
            // Else it is due when something was applied, and at no other time.
            self.leave_joint_if_due();
        }
        self.begin_read_round();

        let soft = self.soft_state();
        if (soft.role != self.soft_out.role) | (number(soft.leader) != number(self.soft_out.leader))
        {
            self.soft_out = soft;
            ready.soft_state = Some(soft);
        }
        let hard = self.hard_state();
        let is_vote_news =
            (hard.term != self.hard_out.term) | (number(hard.vote) != number(self.hard_out.vote));
        if is_vote_news | (hard.commit != self.hard_out.commit) {
            self.hard_out = hard;
            ready.hard_state = Some(hard);
        }
        // Metadata is large: it is moved only where there is any.
        let snapshot = self.installing.as_ref().map(|meta| meta.id.index);
        if snapshot.is_some() {
            ready.snapshot = self.installing.take();
        }
        ready.must_sync = is_vote_news || snapshot.is_some() || self.log.has_unstable();
        let is_waited_for = !self.out.after_sync.is_empty() || self.out.own_new > 0;
        if ready.must_sync || ready.hard_state.is_some() || is_waited_for {
            let id = self.log.give(self.term, snapshot, &mut ready.entries);
            ready.submission = Some(id);
            if self.out.own_new > 0 {
                let first_new = self.out.own.len() - self.out.own_new;
                for own in self.out.own.range_mut(first_new..) {
                    own.submission = Some(id);
                }
                self.out.own_new = 0;
            }
        }
        core::mem::swap(&mut ready.messages, &mut self.out.messages);
        core::mem::swap(&mut ready.messages_after_sync, &mut self.out.after_sync);
        self.hand_out_committed(&mut ready.committed);
        self.log.bound_cache(
            self.config.committed_bytes_per_ready_max,
            self.config.uncommitted_bytes_max,
        );
        if core::mem::take(&mut self.out.has_notices) {
            let notices = &mut self.out.notices;
            core::mem::swap(&mut ready.fetch, &mut notices.fetch);
            core::mem::swap(&mut ready.reads, &mut notices.reads);
            core::mem::swap(&mut ready.dropped, &mut notices.dropped);
            ready.snapshot_offered = notices.snapshot_offered.take();
            ready.snapshot_wanted = notices.snapshot_wanted.take();
        }
        let is_something = ready.is_something();
        if is_something {
            trace!(self, Ready);
        }
        is_something
    }

    /// Whether anything may be to be done; quick, and wrong only by saying so.
    #[inline]
    fn may_be_ready(&self) -> bool {
        let (hard, soft) = (&self.hard_out, &self.soft_out);
        let is_reading = matches!(&self.state, State::Leader(leader) if leader.reads.is_waiting());
        // No branch can be foretold here, where many replicas are asked in turn: so there is none.
        let differs = (hard.term.get() ^ self.term.get())
            | (hard.commit.get() ^ self.log.committed.get())
            | (number(hard.vote) ^ number(self.vote))
            | (number(soft.leader) ^ number(self.leader()));
        self.out.has_something()
            | self.log.has_unstable()
            | (self.log.committed > self.log.applying)
            | (differs != 0)
            | (soft.role != self.role())
            | is_reading
            | self.installing.is_some()
            | self.membership.auto_leave
    }

    const fn soft_state(&self) -> SoftState {
        SoftState {
            role: self.role(),
            leader: self.leader(),
        }
    }

    /// What may be handed out now: from and to which index, and how many bytes of it.
    pub(crate) fn next_to_apply(&self) -> Option<(Index, Index, usize)> {
        let to = self.appliable();
        if self.is_applying_paused
            || self.log.installing.is_some()
            || to <= self.log.applying
            || self.lacks_commands()
        {
            return None;
        }
        let quota = self.config.committed_bytes_per_ready_max;
        let room = quota.saturating_sub(self.applying_bytes);
        Some((self.log.applying.next(), to, room))
    }

    fn hand_out_committed(&mut self, committed: &mut Vec<Batch>) {
        let Some((from, to, room)) = self.next_to_apply() else {
            return;
        };
        if let Some(newest) = self.log.newest(from, to, room) {
            committed.push(newest.clone());
        } else if !self.entries_at_hand(from, to, room, committed) {
            self.fetch(from, to, room);
            return;
        }
        let Some(last) = committed.last().map(|batch| batch.last().index) else {
            return;
        };
        let bytes = committed.iter().map(Batch::size_bytes).sum();
        self.log.applying = last;
        self.applying.push_back((last, bytes));
        self.applying_bytes += bytes;
        // What did not fit now waits until some of it is applied.
        let quota = self.config.committed_bytes_per_ready_max;
        self.is_applying_paused = self.applying_bytes >= quota || last < to;
        if !self.config.change_done_when_applied {
            self.forget_done_changes();
        }
        self.let_go_of_fetched();
    }

    /// Up to where entries may be applied: committed and, unless the driver sees to it, durable.
    fn appliable(&self) -> Index {
        if self.config.applies_after_sync {
            self.log.committed
        } else {
            self.log.committed.min(self.log.stable())
        }
    }
}

/// Puts entries from the first to at most the last of `range` into `out`: at most `bytes_max`, but at
/// least one, from memory and from what was fetched. Returns whether there are any at hand.
pub(crate) fn gather_at_hand(
    log: &RaftLog,
    fetched: &VecDeque<Vec<Batch>>,
    range: (Index, Index),
    bytes_max: usize,
    out: &mut impl Gather,
) -> bool {
    let (mut from, to) = range;
    let mut room = bytes_max;
    while from <= to && !log.entries(from, to, room, out) {
        let holds = |batch: &&Batch| batch.first().index <= from && from <= batch.last().index;
        let Some(part) = fetched
            .iter()
            .flatten()
            .find(holds)
            .and_then(|batch| batch.within(from, to))
        else {
            break;
        };
        let head = part.up_to_size(room);
        if head.size_bytes() > room && !out.has_none() {
            break;
        }
        room = room.saturating_sub(head.size_bytes());
        from = head.last().index.next();
        let is_cut = head.last() != part.last();
        out.gather(head);
        if is_cut {
            break;
        }
    }
    !out.has_none()
}

/// Reading back what is no longer in memory.
impl Raft {
    /// Asks the driver for entries, once for each place.
    pub(crate) fn fetch(&mut self, first: Index, last: Index, bytes_max: usize) {
        let is_asked = self.fetching.iter().any(|fetch| fetch.first == first);
        if !is_asked && !self.fetch_failed.contains(&first) {
            let fetch = Fetch {
                first,
                last,
                bytes_max,
            };
            self.fetching.push(fetch);
            self.out.notices().fetch.push(fetch);
        }
    }

    /// When what could not be read is asked for again.
    pub(crate) fn fetch_retry_at(&self) -> Option<u64> {
        (!self.fetch_failed.is_empty()).then(|| self.fetch_failed_at.saturating_add(1))
    }

    /// Asks again for what could not be read: at once for the followers, and with the next
    /// `poll_ready` for the state machine here.
    pub(crate) fn retry_fetches(&mut self) {
        if self.fetch_retry_at().is_none_or(|due| due > self.tick) {
            return;
        }
        self.fetch_failed.clear();
        if self.is_leader() {
            self.for_each_other(|raft, to| while raft.maybe_send_append(to, false) {});
        }
    }

    pub(crate) fn entries_at_hand(
        &self,
        from: Index,
        to: Index,
        bytes_max: usize,
        out: &mut impl Gather,
    ) -> bool {
        gather_at_hand(&self.log, &self.fetched, (from, to), bytes_max, out)
    }

    /// Lets go of what was fetched and lies behind every reader: the followers, and the state machine
    /// here.
    #[inline]
    pub(crate) fn let_go_of_fetched(&mut self) {
        if !self.fetched.is_empty() {
            self.let_go_of_read();
        }
    }

    #[cold]
    fn let_go_of_read(&mut self) {
        let me = self.config.id;
        let peers = self
            .leading()
            .into_iter()
            .flat_map(|leader| leader.peers.iter());
        let others = peers.filter(|peer| peer.member.id != me);
        let followers = others.map(|peer| peer.progress.next).min();
        let own = self.log.applying.next();
        let needed = followers.map_or(own, |next| next.min(own));
        self.fetched.retain(|batches| {
            let last = batches.last();
            last.is_some_and(|batch| batch.last().index >= needed)
        });
    }

    /// The answer to a fetch. What it brings is used where it is still wanted; what was truncated
    /// in between is not.
    pub fn entries_fetched(&mut self, fetched: Fetched) {
        let (Fetched::Entries { first, .. } | Fetched::Failed { first }) = &fetched;
        let first = *first;
        let before = self.fetching.len();
        self.fetching.retain(|fetch| fetch.first != first);
        if self.fetching.len() == before {
            return;
        }
        if let Fetched::Entries { batches, .. } = fetched {
            let fits = |batch: &Batch| {
                batch.last().index <= self.log.last()
                    && self.log.matches(batch.first())
                    && self.log.matches(batch.last())
            };
            self.fetched
                .push_back(batches.into_iter().filter(fits).collect());
            // One answer for each reader: the followers, the state machine here, and who switches
            // the membership ahead of it.
            while self.fetched.len() > self.members.len() + 2 {
                self.fetched.pop_front();
            }
        }
        let is_there = self
            .fetched
            .iter()
            .flatten()
            .any(|batch| batch.first().index <= first && first <= batch.last().index);
        if !is_there {
            // Asked again when time has moved on, not in a circle.
            self.fetch_failed.push(first);
            self.fetch_failed_at = self.tick;
        }
        if self.is_leader() {
            self.for_each_other(|raft, to| while raft.maybe_send_append(to, false) {});
        }
        self.let_go_of_fetched();
        self.assert_invariants();
    }
}
