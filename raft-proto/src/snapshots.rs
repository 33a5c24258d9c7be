//! Snapshots in place of a log, and those that are asked for.
//!
//! Source: thesis chapter 5 (compaction); etcd `raft.go`.

use alloc::boxed::Box;

use crate::error::{DropReason, Refused};
use crate::membership::Changed;
use crate::message::{Body, SnapshotMeta};
use crate::progress::ProgressState;
use crate::raft::Raft;
use crate::roles::State;
use crate::types::{Index, ReplicaId};

/// How a snapshot transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// The follower has it.
    Finished,
    /// It has not.
    Failed,
}

/// Sending one to a follower that needs entries the log no longer has.
impl Raft {
    /// Sends the newest snapshot to a follower whose next entry is gone; whether it did.
    pub(crate) fn send_snapshot(&mut self, to: ReplicaId) -> bool {
        // One from before `to` was a member would be refused, and one that ends before the log
        // begins would leave a gap: either would be sent again, without end.
        let snapshot = self.snapshot.as_ref();
        let before = self.log.first().previous().unwrap_or_default();
        let Some(meta) = snapshot
            .filter(|meta| meta.membership.is_member(to) && meta.id.index >= before)
            .cloned()
        else {
            let joined = snapshot.map_or(Index::ZERO, |_| self.membership.index);
            self.want_snapshot(before.max(joined));
            return false;
        };
        // To one that is not there it would be a waste, and would stop the log (hazard 33).
        let Some(peer) = self
            .peer_mut(to)
            .filter(|peer| peer.progress.is_recent_active)
        else {
            return false;
        };
        peer.progress.become_snapshot(meta.id.index);
        let meta = Box::new(meta);
        self.send(to, Body::Snapshot { meta });
        true
    }

    /// How the snapshot for `to` fared.
    pub fn report_snapshot(&mut self, to: ReplicaId, status: SnapshotStatus) {
        if let Some(peer) = self.peer_mut(to)
            && let ProgressState::Snapshot { pending } = &mut peer.progress.state
        {
            if status == SnapshotStatus::Failed {
                *pending = Index::ZERO;
            }
            peer.progress.become_probe();
            // The follower's own word, or the next heartbeat's answer, goes on from here.
            peer.progress.set_paused(true);
        }
        self.assert_invariants();
    }
}

/// Taking one in.
impl Raft {
    pub(crate) fn on_snapshot(
        &mut self,
        from: ReplicaId,
        meta: SnapshotMeta,
    ) -> Result<(), Refused> {
        let id = meta.id;
        let refused = if id.index <= self.log.committed {
            Some(DropReason::SnapshotOutdated)
        } else if !meta.membership.replicas().contains(&self.config.id) {
            Some(DropReason::SnapshotWithoutUs)
        } else if self.log.matches(id) {
            // The log holds all of it: it tells a commit index and nothing else.
            self.commit_to(id.index);
            Some(DropReason::Stale)
        } else {
            None
        };
        if let Some(reason) = refused {
            self.accept(from, self.log.committed);
            return Refused::dropped(reason);
        }
        self.log.restart_after(id);
        self.fetched.clear();
        self.membership_entries.clear();
        self.membership_handed = None;
        self.applying.clear();
        self.applying_bytes = 0;
        self.is_applying_paused = false;
        self.snapshot = Some(meta.clone());
        let replicas = meta.membership.replicas().into_iter().collect();
        self.switch(Changed {
            membership: meta.membership.clone(),
            added: replicas,
        });
        // To a witness it brings no content; to any other, all that it lacked.
        self.last_bare = if self.membership.is_witness(self.config.id) {
            id.index
        } else {
            Index::ZERO
        };
        self.installing = Some(meta);
        self.accept(from, self.log.last());
        Ok(())
    }
}

/// Snapshots that followers ask for: theirs is lost, their log is not.
impl Raft {
    /// Asks the leader for a snapshot at or past `index`. The answer is
    /// [`Ready::snapshot_offered`](crate::Ready::snapshot_offered), once. If the leader changes,
    /// [`Ready::dropped`](crate::Ready::dropped) tells that it will not come. Request or answer may be
    /// lost too, and a snapshot past this log comes in place of the log instead. Ask again after some
    /// election timeouts; a later request replaces an earlier one.
    ///
    /// # Errors
    ///
    /// There is no leader to ask, or this replica leads; or [`DropReason::PastEnd`]: `index` lies
    /// past the next entry.
    pub fn request_snapshot(&mut self, index: Index) -> Result<(), Refused> {
        if self.is_leader() {
            return Refused::dropped(DropReason::NotForThisRole);
        }
        let Some(leader) = self.leader() else {
            return Refused::dropped(DropReason::NoLeader);
        };
        if index > self.log.last().next() {
            return Refused::dropped(DropReason::PastEnd);
        }
        self.wake();
        let request = self.draw() >> 2;
        if let Some(follower) = self.following_mut() {
            follower.snapshot_request = Some(request);
        }
        self.send(leader, Body::SnapshotRequest { index, request });
        Ok(())
    }

    pub(crate) fn on_snapshot_request(
        &mut self,
        from: ReplicaId,
        index: Index,
        request: u64,
    ) -> Result<(), Refused> {
        let State::Leader(leader) = &mut self.state else {
            return Refused::dropped(DropReason::NotLeader);
        };
        // The asker's log may be longer, by entries that never were committed.
        if index > self.log.last().next() {
            return Refused::dropped(DropReason::PastEnd);
        }
        leader.snapshot_requests.insert(from, (index, request));
        self.answer_snapshot_requests();
        Ok(())
    }

    /// Asks the driver for a snapshot at or past `index`. Of several wishes the lowest counts: what
    /// it does not answer is asked for again.
    fn want_snapshot(&mut self, index: Index) {
        let wanted = &mut self.out.notices().snapshot_wanted;
        *wanted = Some(wanted.map_or(index, |old| old.min(index)));
    }

    pub(crate) fn answer_snapshot_requests(&mut self) {
        let Some(leader) = self.leading_mut() else {
            return;
        };
        let mut requests = core::mem::take(&mut leader.snapshot_requests);
        requests.retain(|&to, &mut (index, request)| {
            let stored = self.snapshot.as_ref();
            let Some(meta) = stored.filter(|meta| meta.id.index >= index).cloned() else {
                return true;
            };
            let meta = Box::new(meta);
            self.send(to, Body::SnapshotOffer { meta, request });
            false
        });
        if let Some(index) = requests.values().map(|&(index, _)| index).min() {
            self.want_snapshot(index);
        }
        if let Some(leader) = self.leading_mut() {
            leader.snapshot_requests = requests;
        }
    }

    pub(crate) fn on_snapshot_offer(
        &mut self,
        from: ReplicaId,
        meta: SnapshotMeta,
        request: u64,
    ) -> Result<(), Refused> {
        let follower = match &mut self.state {
            State::Follower(follower)
                if follower.leader == Some(from) && follower.snapshot_request == Some(request) =>
            {
                follower
            }
            _ => return Refused::dropped(DropReason::Stale),
        };
        if meta.id.index > self.log.committed {
            // Past what this log holds it comes by itself, in place of the log.
            if !self.log.matches(meta.id) {
                return Refused::dropped(DropReason::Stale);
            }
        }
        follower.snapshot_request = None;
        // What the leader has applied is committed.
        self.commit_to(meta.id.index);
        self.out.notices().snapshot_offered = Some(meta);
        Ok(())
    }
}
