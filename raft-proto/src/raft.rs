//! The state machine of one replica: what it holds, its inputs, and its changes of role.
//!
//! The rest of it lies beside: [`crate::check`], [`crate::election`], [`crate::replication`],
//! [`crate::snapshots`], [`crate::read_index`], [`crate::output`], [`crate::invariants`].

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use crate::chunk::Chunk;
use crate::config::{Config, StartError};
use crate::election::Patience;
use crate::entry::{Batch, FrameSeed};
use crate::error::{DropReason, Refused};
use crate::membership::{Changed, Membership};
use crate::message::{Body, Envelope, Message, SnapshotMeta};
use crate::output::Outbox;
use crate::progress::{Members, Peer, PeerStatus, Peers};
use crate::raft_log::{RaftLog, held_bytes};
use crate::read_index::Reads;
use crate::ready::{Durable, Fetch, Life, Restored, Role, SoftState, SubmissionId};
use crate::roles::{Follower, Leader, State, Votes};
use crate::types::{HardState, Index, ReplicaId, Term};

/// One replica's Raft state machine: no clock, no disk, no network, no randomness but a seed.
///
/// Whoever drives it works in passes. A pass takes its inputs from wherever they wait, reads the
/// clock, and says so with [`Raft::set_tick`]; hands over, in any order, the inputs
/// ([`Raft::handle_message`], [`Raft::persisted`], [`Raft::applied`], [`Raft::entries_fetched`], and
/// the reports) and the commands ([`Raft::propose`], [`Raft::read_index`],
/// [`Raft::transfer_leader`], ...); has the timers fire with [`Raft::advance_to`] the same tick; and
/// takes what is to be done from [`Raft::poll_ready`] until there is nothing more:
///
/// 1. make `hard_state`, `snapshot` and `entries` durable, in the order of submissions, and say
///    so with [`Raft::persisted`];
/// 2. send `messages` at once, and `messages_after_sync` with what that call answers;
/// 3. call [`Raft::apply_membership`] for each membership entry of `committed` before the next
///    call of anything else, hand `committed` to the state machine, and say so with
///    [`Raft::applied`];
/// 4. read what `fetch` names and answer with [`Raft::entries_fetched`].
///
/// Source: thesis chapter 3; etcd `raft.go`.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,

    pub(crate) tick: u64,
    pub(crate) rng: u64,
    /// The start of the checksum of this group's frames.
    pub(crate) frame_seed: FrameSeed,
    /// The tick from which the election timeout counts; for a leader, from which it counts the
    /// time to the next check of its quorum.
    pub(crate) elapsed_from: u64,
    /// The election timeout drawn for this term.
    pub(crate) timeout: u64,
    /// No vote is granted before this tick: a lease that was granted may still run.
    pub(crate) no_vote_before: u64,
    /// The longest lease that this replica may have granted, in this life or the one before.
    pub(crate) fence_ticks: u64,

    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    /// The highest term known to be durable here.
    pub(crate) durable_term: Term,
    /// The role, with what only it needs.
    pub(crate) state: State,

    pub(crate) log: RaftLog,
    pub(crate) membership: Membership,
    /// The indexes of membership entries that are not done with, ascending.
    pub(crate) membership_entries: VecDeque<Index>,
    /// Up to where this replica switched ahead of what was handed out, and what was in force for that.
    pub(crate) switched_to: Index,
    pub(crate) membership_handed: Option<Membership>,
    /// What `membership` says of each replica.
    pub(crate) members: Members,

    pub(crate) leader_time_ms: u64,
    /// The last entry held here without its command, from when this replica was a witness; 0: none.
    pub(crate) last_bare: Index,

    /// The newest snapshot this replica holds.
    pub(crate) snapshot: Option<SnapshotMeta>,
    /// A received one that was not yet handed out.
    pub(crate) installing: Option<SnapshotMeta>,

    /// The latest heartbeat round that this replica began, in whatever term.
    pub(crate) round: u64,
    /// Its number for the latest read that it passed on.
    pub(crate) last_read: u64,
    pub(crate) patience: Patience,

    pub(crate) fetching: Vec<Fetch>,
    /// What the driver could not read, and the tick at which it said so last.
    pub(crate) fetch_failed: Vec<Index>,
    pub(crate) fetch_failed_at: u64,
    /// What was fetched, an element for each answer, the latest last.
    pub(crate) fetched: VecDeque<Vec<Batch>>,
    /// Where what was handed out to be applied ends, and its bytes.
    pub(crate) applying: VecDeque<(Index, usize)>,
    pub(crate) applying_bytes: usize,
    pub(crate) is_applying_paused: bool,

    pub(crate) out: Outbox,
    pub(crate) hard_out: HardState,
    pub(crate) soft_out: SoftState,
    #[cfg(feature = "trace")]
    pub(crate) trace: VecDeque<crate::trace::TraceEvent>,
}

/// Making one, and looking at it.
impl Raft {
    /// Makes a replica's state machine from what its disk holds.
    ///
    /// `tick` is the present tick of the clock that [`Raft::set_tick`] and [`Raft::advance_to`] go
    /// on with: election timeouts, and the time in which no vote is given after a restart, count
    /// from it. An earlier one, such as 0 on a clock that runs already, would have them end at once.
    ///
    /// # Errors
    ///
    /// A setting out of its bounds, or what the disk holds contradicts itself.
    pub fn new(config: Config, restored: Restored, tick: u64) -> Result<Self, StartError> {
        config.check()?;
        restored.check()?;
        let first = restored.first.max(Index::new(1));
        let (last, applied) = (restored.last.index, restored.applied);
        let covered = restored.snapshot.as_ref().map(|meta| meta.id.index);
        let commit = restored.hard_state.commit.max(applied);
        let commit = commit.max(covered.unwrap_or_default());
        let log = RaftLog::new(
            first,
            last,
            &restored.terms,
            commit,
            applied,
            config.cache_bytes_max,
        );
        let hard_state = HardState {
            commit,
            ..restored.hard_state
        };
        let rng = config.seed;
        let frame_seed = FrameSeed::new(config.group);
        // Who never knew a term never granted a lease.
        let fence_ticks = config.lease_ticks.max(restored.lease_ticks);
        let no_vote_before = if hard_state.term == Term::ZERO {
            tick
        } else {
            tick.saturating_add(fence_ticks)
        };
        let mut raft = Self {
            config,
            tick,
            rng,
            frame_seed,
            elapsed_from: tick,
            timeout: 0,
            no_vote_before,
            fence_ticks,
            term: hard_state.term,
            vote: hard_state.vote,
            durable_term: hard_state.term,
            state: State::Follower(Follower::default()),
            log,
            membership: Membership::default(),
            membership_entries: restored
                .membership_entries
                .into_iter()
                .filter(|&index| index > applied && index <= last)
                .collect(),
            switched_to: Index::ZERO,
            membership_handed: None,
            members: Members::default(),
            leader_time_ms: restored.leader_time_ms,
            last_bare: restored.last_without_command.min(last),
            snapshot: restored.snapshot,
            installing: None,
            round: 0,
            last_read: 0,
            patience: Patience::default(),
            fetching: Vec::new(),
            fetch_failed: Vec::new(),
            fetch_failed_at: tick,
            fetched: VecDeque::new(),
            applying: VecDeque::new(),
            applying_bytes: 0,
            is_applying_paused: false,
            out: Outbox::default(),
            hard_out: hard_state,
            soft_out: SoftState {
                role: Role::Follower,
                leader: None,
            },
            #[cfg(feature = "trace")]
            trace: VecDeque::new(),
        };
        trace!(raft, Init);
        raft.switch(Changed {
            membership: restored.membership,
            added: Vec::new(),
        });
        if raft.membership.is_witness(raft.config.id) {
            raft.last_bare = last;
        }
        raft.become_follower(raft.term, None);
        raft.assert_invariants();
        Ok(raft)
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.state.role()
    }

    /// The term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The leader it knows.
    #[must_use]
    pub const fn leader(&self) -> Option<ReplicaId> {
        if let State::Follower(follower) = &self.state {
            follower.leader
        } else if let State::Leader(_) = &self.state {
            Some(self.config.id)
        } else {
            None
        }
    }

    /// Who leads this term for all it heard, forgotten or not.
    pub(crate) const fn led_by(&self) -> Option<ReplicaId> {
        match &self.state {
            State::Follower(Follower {
                leader: None,
                forgotten,
                ..
            }) => *forgotten,
            _ => self.leader(),
        }
    }

    /// The commit index.
    #[must_use]
    pub const fn commit(&self) -> Index {
        self.log.committed
    }

    /// What the driver reported as applied.
    #[must_use]
    pub const fn applied_index(&self) -> Index {
        self.log.applied
    }

    /// The first index of the log.
    #[must_use]
    pub const fn first_index(&self) -> Index {
        self.log.first()
    }

    /// The last index of the log.
    #[must_use]
    pub const fn last_index(&self) -> Index {
        self.log.last()
    }

    /// The term of the entry at `index`, from the one before the first to the last.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The membership in force.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// Term, vote and commit as they are now.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed,
        }
    }

    /// To whom the leadership is being handed.
    #[must_use]
    pub const fn transferee(&self) -> Option<ReplicaId> {
        match self.leading() {
            Some(leader) => leader.transferee,
            None => None,
        }
    }

    /// Whether a received snapshot at `index` was taken and is not durable yet.
    #[must_use]
    pub fn is_installing(&self, index: Index) -> bool {
        self.log.installing == Some(index)
    }

    /// Memory held beyond the value itself, in bytes: entries, terms, flow control, reads,
    /// memberships, and what waits to be handed out or answered. What two places share counts
    /// twice, and what an allocator adds does not count.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let metas = self.snapshot.iter().chain(&self.installing);
        let fetches = self.fetching.len() * size_of::<Fetch>();
        let handed = self.membership_handed.as_ref();
        self.log.memory_bytes()
            + self.fetched.iter().flatten().map(held_bytes).sum::<usize>()
            + self.state.memory_bytes()
            + self.out.memory_bytes()
            + self.members.memory_bytes()
            + self.membership.memory_bytes()
            + handed.map_or(0, Membership::memory_bytes)
            + metas
                .map(|meta| meta.membership.memory_bytes())
                .sum::<usize>()
            + self.membership_entries.len() * size_of::<Index>()
            + self.applying.len() * size_of::<(Index, usize)>()
            + fetches
            + self.fetch_failed.len() * size_of::<Index>()
    }

    /// The members as this leader sees them, by ascending id; nothing unless it leads.
    pub fn peer_statuses(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        let max = self.config.inflight_max();
        self.leading()
            .into_iter()
            .flat_map(|leader| leader.peers.iter())
            .map(move |peer| PeerStatus::of(peer, max))
    }

    /// The lowest index that a follower in reach still needs, if this replica leads.
    #[must_use]
    pub fn lowest_needed_by_followers(&self) -> Option<Index> {
        self.leading()?
            .peers
            .iter()
            .filter(|peer| {
                !self.is_me(peer.member.id)
                    && peer.progress.is_recent_active
                    && !peer.progress.is_snapshot()
                    && peer.progress.matched > Index::ZERO
            })
            .map(|peer| peer.progress.matched.next())
            .min()
    }

    pub(crate) const fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// What it holds as leader, if it leads.
    pub(crate) const fn leading(&self) -> Option<&Leader> {
        match &self.state {
            State::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub(crate) const fn leading_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.state {
            State::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    /// What it holds as follower, if it follows.
    pub(crate) const fn following_mut(&mut self) -> Option<&mut Follower> {
        match &mut self.state {
            State::Follower(follower) => Some(follower),
            _ => None,
        }
    }

    /// A member as it sees it, if it leads.
    pub(crate) fn peer(&self, id: ReplicaId) -> Option<&Peer> {
        self.leading()?.peers.peer(id)
    }

    pub(crate) fn peer_mut(&mut self, id: ReplicaId) -> Option<&mut Peer> {
        self.leading_mut()?.peers.peer_mut(id)
    }

    pub(crate) const fn life(&self) -> Life {
        Life {
            group: self.config.group,
            replica: self.config.id,
            number: self.config.life,
        }
    }

    pub(crate) const fn is_me(&self, id: ReplicaId) -> bool {
        id.get() == self.config.id.get()
    }

    /// Whether it is a full member with the log of the witness that it was: what follows the last
    /// entry without its command is no use to its state machine, nor its state to anybody.
    pub(crate) fn lacks_commands(&self) -> bool {
        self.last_bare > Index::ZERO
            && (self.members.get(self.config.id)).is_some_and(|own| !own.is_witness)
    }

    /// Up to where membership entries are done with.
    pub(crate) fn changes_done(&self) -> Index {
        if self.config.change_done_when_applied {
            self.log.applied
        } else {
            self.log.applying.max(self.switched_to)
        }
    }

    /// The next number drawn from the seed (splitmix64).
    pub(crate) const fn draw(&mut self) -> u64 {
        self.rng = self.rng.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.rng;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Changes of role. Source: thesis §3.3, Figure 3.3.
impl Raft {
    /// Begins a role, in this term or a later one. What the role before held goes with it.
    fn enter(&mut self, term: Term, state: State) {
        let is_term_over = self.term != term;
        if is_term_over {
            self.term = term;
            self.vote = None;
        }
        self.elapsed_from = self.tick;
        self.draw_timeout();
        let before = core::mem::replace(&mut self.state, state);
        before.drop(is_term_over, &mut self.out);
    }

    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>) {
        let follower = Follower {
            leader,
            ..Follower::default()
        };
        self.enter(term, State::Follower(follower));
        trace!(self, BecomeFollower);
    }

    pub(crate) fn become_pre_candidate(&mut self) {
        assert!(!self.is_leader(), "a leader does not campaign");
        let state = State::PreCandidate(Votes::default());
        let before = core::mem::replace(&mut self.state, state);
        before.drop(false, &mut self.out);
    }

    pub(crate) fn become_candidate(&mut self) {
        assert!(!self.is_leader(), "a leader does not campaign");
        let term = self.term.next();
        self.enter(term, State::Candidate(Votes::default()));
        self.vote = Some(self.config.id);
        trace!(self, BecomeCandidate);
    }

    pub(crate) fn become_leader(&mut self) {
        assert!(
            matches!(self.state, State::Candidate(_)),
            "only a candidate becomes leader"
        );
        let last = self.log.last();
        let mut peers = Peers::new(&self.members, last.next());
        let own = peers
            .peer_mut(self.config.id)
            .expect("a candidate is among its voters");
        own.progress.matched = last;
        own.progress.become_replicate();
        own.progress.is_recent_active = true;
        // While entries are committed and applied apace, those not in the cache take no more.
        let full_bytes_max = self.config.cache_bytes_max.saturating_mul(2);
        let leader = Leader {
            peers,
            transferee: None,
            transfer_from: self.tick,
            // Every entry that is not done with may be a membership change (hazard 3).
            pending_change: last,
            led_from: last.next(),
            uncommitted_bytes: 0,
            uncommitted: VecDeque::new(),
            chunk: Chunk::new(full_bytes_max),
            snapshot_requests: BTreeMap::new(),
            reads: Reads::after(self.round),
            heartbeat_from: self.tick,
            check_put_off_at: None,
            is_quiet: false,
            worked_at: self.tick,
        };
        self.enter(self.term, State::Leader(Box::new(leader)));
        trace!(self, BecomeLeader);
        // Only entries of the own term are committed by counting: begin with one (thesis §6.4).
        self.append_empty();
    }
}

/// Messages.
impl Raft {
    /// Takes a message with its group: one of another group or epoch is dropped.
    ///
    /// # Errors
    ///
    /// [`Refused`], as [`Raft::handle_message`].
    pub fn handle_envelope(&mut self, envelope: Envelope) -> Result<(), Refused> {
        if envelope.group != self.config.group {
            return Refused::dropped(DropReason::OtherGroup);
        }
        if envelope.epoch != self.config.epoch {
            return Refused::dropped(DropReason::OtherEpoch);
        }
        self.handle_message(envelope.message)
    }

    /// Takes a message.
    ///
    /// # Errors
    ///
    /// [`Refused::Violation`]: nothing was done. After a fatal one this replica must be stopped.
    /// [`Refused::Dropped`]: what it asks for was not done. What it tells by the way may have been
    /// taken: a later term is followed, a leader is heard of, a quiet replica wakes, a sender of an
    /// older term is told. So ask [`Raft::poll_ready`] after it as after any other.
    pub fn handle_message(&mut self, mut message: Message) -> Result<(), Refused> {
        self.check_message(&message)?;
        self.wake_by(&message.body);
        let result = self.step(&mut message);
        self.assert_invariants();
        result
    }

    /// Acts on a message that was checked, or that this replica sent to itself. What it carries is
    /// taken out of it: a message is large, and moved no more often than it must be.
    pub(crate) fn step(&mut self, message: &mut Message) -> Result<(), Refused> {
        trace!(self, Receive(message.clone()));
        let (from, term) = (message.from, message.term);
        if term > self.term {
            self.meet_later_term(from, term, &message.body)?;
        } else if term < self.term
            && !matches!(message.body, Body::Propose { .. } | Body::ReadIndex { .. })
        {
            return self.on_stale(from, term, &message.body);
        }
        match message.body {
            Body::PreVote { last } => {
                self.on_vote_request(from, term, last, true);
                Ok(())
            }
            Body::Vote { last, is_transfer } => {
                if !is_transfer && self.vote.is_none() && self.tick < self.no_vote_before {
                    return Refused::dropped(DropReason::LeaseHeld);
                }
                self.on_vote_request(from, term, last, false);
                Ok(())
            }
            Body::PreVoteResponse { is_rejected } if self.role() == Role::PreCandidate => {
                self.on_vote_response(from, is_rejected);
                Ok(())
            }
            Body::VoteResponse { is_rejected } if self.role() == Role::Candidate => {
                self.on_vote_response(from, is_rejected);
                Ok(())
            }
            Body::PreVoteResponse { .. } | Body::VoteResponse { .. } => {
                Refused::dropped(DropReason::NotForThisRole)
            }
            Body::Append {
                prev,
                commit,
                ref mut entries,
            } => {
                self.hear_leader(from);
                self.on_append(from, prev, commit, entries)
            }
            Body::Heartbeat { commit, round } => {
                self.hear_leader(from);
                self.commit_to(commit);
                self.send(from, Body::HeartbeatResponse { round });
                Ok(())
            }
            Body::Snapshot { ref mut meta } => {
                self.hear_leader(from);
                self.on_snapshot(from, core::mem::take(&mut **meta))
            }
            Body::AppendResponse { index, rejected } => {
                self.on_append_response(from, index, rejected)
            }
            Body::HeartbeatResponse { round } => self.on_heartbeat_response(from, round),
            Body::TimeoutNow => {
                if self.role() != Role::Follower {
                    return Refused::dropped(DropReason::NotForThisRole);
                }
                self.campaign_by_transfer()
            }
            Body::TransferLeader { to } => {
                if matches!(self.role(), Role::Candidate | Role::PreCandidate) {
                    return Refused::dropped(DropReason::NotForThisRole);
                }
                self.transfer_leader(to)
            }
            Body::ReadIndex { life, id } => self.on_forwarded_read(from, life, id),
            Body::ReadIndexResponse { life, id, index } => {
                self.on_read_answered(from, life, id, index)
            }
            Body::Propose { ref mut entries } => {
                self.on_forwarded_proposals(from, core::mem::take(entries))
            }
            Body::Quiesce { last } => self.on_quiesce(from, last),
            Body::SnapshotRequest { index, request } => {
                self.on_snapshot_request(from, index, request)
            }
            Body::SnapshotOffer {
                ref mut meta,
                request,
            } => self.on_snapshot_offer(from, core::mem::take(&mut **meta), request),
        }
    }

    /// A later term is followed, unless a promise stands against it.
    #[cold]
    fn meet_later_term(&mut self, from: ReplicaId, term: Term, body: &Body) -> Result<(), Refused> {
        match body {
            Body::Vote { is_transfer, .. } if !is_transfer => self.check_lease()?,
            Body::PreVote { .. } => self.check_lease()?,
            _ => {}
        }
        match body {
            // A pre-vote promises nothing; its yes carries the term that was asked for.
            Body::PreVote { .. } | Body::PreVoteResponse { is_rejected: false } => {}
            Body::Append { .. } | Body::Heartbeat { .. } | Body::Snapshot { .. } => {
                self.become_follower(term, Some(from));
            }
            _ => self.become_follower(term, None),
        }
        Ok(())
    }

    /// A message of a term that is over: its sender may have to be told.
    fn on_stale(&mut self, from: ReplicaId, term: Term, body: &Body) -> Result<(), Refused> {
        match body {
            Body::Append { .. } | Body::Heartbeat { .. }
                if self.config.pre_vote || self.config.check_quorum =>
            {
                // Frees a stuck leader of an older term, or this replica from its lonely term.
                self.send(
                    from,
                    Body::AppendResponse {
                        index: Index::ZERO,
                        rejected: None,
                    },
                );
            }
            // Else a group that begins to use pre-votes could deadlock (hazard 14).
            Body::PreVote { .. } => {
                self.send(from, Body::PreVoteResponse { is_rejected: true });
            }
            _ => {}
        }
        Refused::dropped(DropReason::StaleTerm {
            found: term,
            current: self.term,
        })
    }

    /// A message that only the leader of this term sends.
    fn hear_leader(&mut self, from: ReplicaId) {
        if let State::Follower(follower) = &mut self.state {
            self.elapsed_from = self.tick;
            follower.leader = Some(from);
        } else {
            assert!(!self.is_leader(), "a second leader was refused before");
            self.become_follower(self.term, Some(from));
        }
        self.grant_lease();
        self.patience.reset();
    }
}

/// What the driver has done.
impl Raft {
    /// Everything of submission `id` and of all before it is durable. What waited for it may leave:
    /// [`AfterSync::release`](crate::AfterSync::release) takes the answer.
    ///
    /// # Panics
    ///
    /// If `id` was never handed out.
    pub fn persisted(&mut self, id: SubmissionId) -> Durable {
        assert!(
            id < self.log.next_submission(),
            "submission {id:?} was never handed out"
        );
        if self.out.has_own() {
            while self.take_own_message(id) {}
        }
        self.count_entries(id);
        Durable::up_to(self.life(), id)
    }

    #[inline(never)]
    fn take_own_message(&mut self, id: SubmissionId) -> bool {
        let Some(mut message) = self.out.next_own(id) else {
            return false;
        };
        // What is of an older term or role no longer counts; nothing else can be wrong with it.
        self.step(&mut message).ok();
        true
    }

    /// Counts what submissions up to `id` hold as durable.
    pub(crate) fn count_entries(&mut self, id: SubmissionId) {
        if let Some(term) = self.log.persisted(id) {
            self.durable_term = self.durable_term.max(term);
        }
        self.assert_invariants();
    }

    /// The state machine has applied everything up to `index`.
    ///
    /// # Panics
    ///
    /// If that was never handed out.
    pub fn applied(&mut self, index: Index) {
        if index > self.log.applied {
            assert!(
                index <= self.log.applying,
                "applied {index} was never handed out"
            );
            self.log.applied = index;
            while let Some(&(last, bytes)) = self.applying.front()
                && last <= index
            {
                self.applying.pop_front();
                self.applying_bytes -= bytes;
            }
            self.is_applying_paused =
                self.applying_bytes >= self.config.committed_bytes_per_ready_max;
        }
        self.forget_done_changes();
        self.leave_joint_if_due();
        self.assert_invariants();
    }

    /// A newer snapshot of this replica's own lies in its directory.
    pub fn snapshot_stored(&mut self, meta: SnapshotMeta) {
        if self.snapshot.as_ref().is_none_or(|old| old.id < meta.id) {
            self.snapshot = Some(meta);
            self.answer_snapshot_requests();
        }
    }

    /// The log was compacted: it begins at `first` now.
    ///
    /// # Panics
    ///
    /// If entries that were not handed out to be applied are gone.
    pub fn compacted(&mut self, first: Index) {
        self.log.compact(first);
        self.assert_invariants();
    }
}
