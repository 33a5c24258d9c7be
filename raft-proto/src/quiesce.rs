//! Falling quiet when nothing is to be done, and waking.
//!
//! A quiet group costs nothing: no heartbeats, no election timeouts, no deadline. Whatever
//! happens wakes it: a message, a proposal, a read. A follower that wakes and hears nothing
//! stands for election as ever, so a leader that died quietly is found by the next request.

use crate::chunk::Chunk;
use crate::error::{DropReason, Refused};
use crate::message::Body;
use crate::raft::Raft;
use crate::ready::Role;
use crate::types::{EntryId, Index, ReplicaId};

/// Whether the group is quiet here, and since when it has had no work.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    is_quiet: bool,
    /// The tick of the last work.
    worked_at: u64,
}

impl Quiet {
    pub(crate) const fn awake_at(tick: u64) -> Self {
        Self {
            is_quiet: false,
            worked_at: tick,
        }
    }

    pub(crate) const fn is_quiet(&self) -> bool {
        self.is_quiet
    }
}

impl Raft {
    /// Whether the group is quiet here: no deadline, no heartbeats, until something happens.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.quiet.is_quiet
    }

    /// Takes note of work, and wakes.
    pub(crate) fn wake(&mut self) {
        self.quiet.worked_at = self.tick;
        if self.quiet.is_quiet {
            self.quiet.is_quiet = false;
            // The time in between counts for nobody: neither as silence nor as a lease.
            self.elapsed_from = self.tick;
            self.heartbeat_from = self.tick;
            if self.is_leader() {
                let me = self.config.id;
                for peer in self.peers.iter_mut().filter(|peer| peer.id != me) {
                    peer.progress.is_recent_active = true;
                }
                self.beat();
            }
        }
    }

    pub(crate) fn wake_by(&mut self, body: &Body) {
        match body {
            Body::Quiesce { .. } => {}
            // The last answers to a leader that fell quiet must not wake it again.
            Body::HeartbeatResponse { .. } | Body::AppendResponse { .. }
                if self.quiet.is_quiet && self.is_leader() && self.is_idle() => {}
            Body::Heartbeat { .. } | Body::HeartbeatResponse { .. } if !self.quiet.is_quiet => {}
            _ => self.wake(),
        }
    }

    /// Whether nothing at all is under way. Only a leader can tell.
    fn is_idle(&self) -> bool {
        let last = self.log.last();
        let is_settled = self.log.committed == last
            && self.log.applied == last
            && self.log.stable() == last
            && self.transferee.is_none()
            && !self.membership.is_joint()
            && self.membership_entries.is_empty()
            && self.reads.is_idle()
            && self.snapshot_requests.is_empty();
        is_settled
            && self.peers.iter().all(|peer| {
                peer.progress.matched == last
                    && (self.is_me(peer.id) || peer.progress.is_replicate())
            })
    }

    /// Falls quiet if there was no work for long enough; whether it did.
    pub(crate) fn maybe_quiesce(&mut self) -> bool {
        let after = self.config.quiesce_timeouts;
        let idle_ticks = after.saturating_mul(self.config.election_timeout_ticks_min);
        if after == 0
            || self.tick.saturating_sub(self.quiet.worked_at) < idle_ticks
            || !self.is_idle()
        {
            return false;
        }
        self.quiet.is_quiet = true;
        self.end_lease();
        self.chunk = Chunk::default();
        let last = self.log.last_id();
        self.for_each_other(|raft, to| raft.send(to, Body::Quiesce { last }));
        true
    }

    pub(crate) fn on_quiesce(&mut self, from: ReplicaId, last: EntryId) -> Result<(), Refused> {
        let is_settled = self.role == Role::Follower
            && self.leader == Some(from)
            && self.config.quiesce_timeouts > 0
            && self.log.last_id() == last
            && self.log.stable() == last.index
            && self.log.committed == last.index
            && self.reads.is_idle()
            && last.index > Index::ZERO;
        if !is_settled {
            return Refused::dropped(DropReason::Stale);
        }
        self.quiet.is_quiet = true;
        Ok(())
    }
}
