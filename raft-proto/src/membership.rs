//! Who belongs to a group, and how that changes.
//!
//! Source: thesis §4.1 (single changes), §4.3 (joint consensus); etcd-raft's `confchange`, whose
//! learners-next rule is kept: a voter demoted inside a joint configuration stays a voter of the
//! outgoing one and becomes a learner only when the joint configuration is left.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{HostId, Index, ReplicaId};

/// How many replicas a membership may name; bounds what a decoder takes.
pub const MEMBERSHIP_REPLICAS_MAX: usize = 1_024;
/// How many bytes an encoded membership or change may take.
pub const MEMBERSHIP_BYTES_MAX: usize = 64 << 10;
const VERSION: u8 = 1;

/// A configuration of a group.
///
/// Invariant: `learners` is disjoint from both sets of voters; `learners_next` is part of
/// `voters_outgoing`; outside a joint configuration `voters_outgoing` and `learners_next` are empty
/// and `auto_leave` is false.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The index of the entry that made it.
    pub index: Index,
    /// The voters; in a joint configuration the incoming ones.
    pub voters: BTreeSet<ReplicaId>,
    /// The outgoing voters of a joint configuration.
    pub voters_outgoing: BTreeSet<ReplicaId>,
    /// Replicas that receive entries and do not count.
    pub learners: BTreeSet<ReplicaId>,
    /// Outgoing voters that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<ReplicaId>,
    /// Whether the leader leaves the joint configuration by itself.
    pub auto_leave: bool,
    /// The host of each replica.
    pub hosts: BTreeMap<ReplicaId, HostId>,
}

/// What one change does to one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// Makes the replica a voter; promotes a learner.
    AddVoter,
    /// Makes the replica a learner; demotes a voter.
    AddLearner,
    /// Removes the replica.
    Remove,
    /// Changes nothing but the host the replica is known by.
    Update,
}

/// One replica's part in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happens to it.
    pub kind: ChangeKind,
    /// The replica.
    pub replica: ReplicaId,
    /// Its host; needed when a replica is added.
    pub host: Option<HostId>,
}

/// Whether a joint configuration is used, and who leaves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transition {
    /// Simple if possible, else joint and left by the leader.
    #[default]
    Auto,
    /// Joint, left by the leader.
    Implicit,
    /// Joint, left by an explicit empty change.
    Explicit,
}

/// A membership change; without changes it leaves a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipChange {
    /// How.
    pub transition: Transition,
    /// What.
    pub changes: Vec<Change>,
    /// Bytes of the caller's own.
    pub context: Bytes,
}

/// Why a change was refused; the membership is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// A joint configuration must be left first.
    #[error("config is already joint")]
    AlreadyJoint,
    /// There is no joint configuration to leave.
    #[error("can't leave a non-joint config")]
    NotJoint,
    /// More than one voter would change without a joint configuration.
    #[error("more than one voter changed without entering joint config")]
    NotSimple,
    /// No voter would be left.
    #[error("removed all voters")]
    NoVoters,
    /// The group has no voters yet, so it cannot go joint.
    #[error("can't make a zero-voter config joint")]
    ZeroVoters,
    /// More replicas than a membership may name.
    #[error("more than {MEMBERSHIP_REPLICAS_MAX} replicas")]
    TooMany,
}

/// Bytes that are no membership, or no change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipDecodeError {
    /// The first byte names a version that this build does not know.
    #[error("version {0} is unknown")]
    Version(u8),
    /// Cut short, overlong or inconsistent.
    #[error("not a membership")]
    Malformed,
}

impl Membership {
    /// Whether two sets of voters are in force.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether the replica votes.
    #[must_use]
    pub fn is_voter(&self, replica: ReplicaId) -> bool {
        self.voters.contains(&replica) || self.voters_outgoing.contains(&replica)
    }

    /// Every replica, ascending.
    #[must_use]
    pub fn replicas(&self) -> BTreeSet<ReplicaId> {
        let mut all = self.voters.clone();
        all.extend(&self.voters_outgoing);
        all.extend(&self.learners);
        all.extend(&self.learners_next);
        all
    }

    /// The highest index acknowledged by a quorum, where `acked` gives each voter's.
    pub(crate) fn committed(&self, acked: impl Fn(ReplicaId) -> Index) -> Index {
        let incoming = majority_index(&self.voters, &acked);
        let outgoing = majority_index(&self.voters_outgoing, &acked);
        match (incoming, outgoing) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b).unwrap_or(Index::new(u64::MAX)),
        }
    }

    /// The outcome of a vote so far.
    pub(crate) fn vote_result(&self, vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
        let a = majority_vote(&self.voters, &vote);
        let b = majority_vote(&self.voters_outgoing, &vote);
        if a == b {
            a
        } else if a == VoteResult::Lost || b == VoteResult::Lost {
            VoteResult::Lost
        } else {
            VoteResult::Pending
        }
    }
}

/// The outcome of a vote. Source: etcd `quorum/quorum.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteResult {
    Pending,
    Lost,
    Won,
}

fn majority_index(
    voters: &BTreeSet<ReplicaId>,
    acked: &impl Fn(ReplicaId) -> Index,
) -> Option<Index> {
    let mut indexes: Vec<Index> = voters.iter().map(|&voter| acked(voter)).collect();
    indexes.sort_unstable();
    // With n voters, n - n/2 - 1 of them may lie below what a majority has.
    indexes
        .get(indexes.len().checked_sub(indexes.len() / 2 + 1)?)
        .copied()
}

fn majority_vote(
    voters: &BTreeSet<ReplicaId>,
    vote: &impl Fn(ReplicaId) -> Option<bool>,
) -> VoteResult {
    let quorum = voters.len() / 2 + 1;
    let yes = voters
        .iter()
        .filter(|&&voter| vote(voter) == Some(true))
        .count();
    let missing = voters
        .iter()
        .filter(|&&voter| vote(voter).is_none())
        .count();
    if voters.is_empty() || yes >= quorum {
        VoteResult::Won
    } else if yes + missing >= quorum {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}

impl MembershipChange {
    /// One change to one replica.
    #[must_use]
    pub fn single(kind: ChangeKind, replica: ReplicaId, host: Option<HostId>) -> Self {
        let changes = alloc::vec![Change {
            kind,
            replica,
            host
        }];
        Self {
            changes,
            ..Self::default()
        }
    }

    /// Whether it leaves a joint configuration.
    #[must_use]
    pub fn is_leave(&self) -> bool {
        self.transition == Transition::Auto && self.changes.is_empty()
    }

    /// Whether it enters a joint configuration, and if so, whether the leader leaves it by itself.
    #[must_use]
    pub fn enters_joint(&self) -> Option<bool> {
        if self.transition != Transition::Auto || self.changes.len() > 1 {
            Some(self.transition != Transition::Explicit)
        } else {
            None
        }
    }
}

impl Membership {
    /// The membership after `change`, which is committed at `index`.
    ///
    /// # Errors
    ///
    /// [`MembershipError`]: the entry has no effect.
    pub fn changed(
        &self,
        index: Index,
        change: &MembershipChange,
    ) -> Result<Self, MembershipError> {
        let mut next = self.clone();
        next.index = index;
        if change.is_leave() {
            next.leave()?;
        } else if let Some(auto_leave) = change.enters_joint() {
            if self.is_joint() {
                return Err(MembershipError::AlreadyJoint);
            }
            if self.voters.is_empty() {
                return Err(MembershipError::ZeroVoters);
            }
            next.voters_outgoing = next.voters.clone();
            next.apply(&change.changes)?;
            next.auto_leave = auto_leave;
        } else {
            if self.is_joint() {
                return Err(MembershipError::AlreadyJoint);
            }
            next.apply(&change.changes)?;
            if next.voters.symmetric_difference(&self.voters).count() > 1 {
                return Err(MembershipError::NotSimple);
            }
        }
        let members = next.replicas();
        if members.len() > MEMBERSHIP_REPLICAS_MAX {
            return Err(MembershipError::TooMany);
        }
        next.hosts.retain(|replica, _| members.contains(replica));
        Ok(next)
    }

    fn leave(&mut self) -> Result<(), MembershipError> {
        if !self.is_joint() {
            return Err(MembershipError::NotJoint);
        }
        self.learners.append(&mut self.learners_next);
        self.voters_outgoing.clear();
        self.auto_leave = false;
        Ok(())
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), MembershipError> {
        for change in changes {
            let id = change.replica;
            match change.kind {
                ChangeKind::AddVoter => {
                    self.learners.remove(&id);
                    self.learners_next.remove(&id);
                    self.voters.insert(id);
                }
                ChangeKind::AddLearner if self.learners.contains(&id) => {}
                ChangeKind::AddLearner => {
                    self.voters.remove(&id);
                    self.learners_next.remove(&id);
                    if self.voters_outgoing.contains(&id) {
                        self.learners_next.insert(id);
                    } else {
                        self.learners.insert(id);
                    }
                }
                ChangeKind::Remove => {
                    self.voters.remove(&id);
                    self.learners.remove(&id);
                    self.learners_next.remove(&id);
                }
                ChangeKind::Update => {}
            }
            if let Some(host) = change.host.filter(|_| change.kind != ChangeKind::Remove) {
                self.hosts.insert(id, host);
            }
        }
        if self.voters.is_empty() {
            Err(MembershipError::NoVoters)
        } else {
            Ok(())
        }
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, alloc::vec![VERSION]).expect("writing to a vector does not fail")
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MembershipDecodeError> {
    match bytes {
        [VERSION, rest @ ..] if rest.len() <= MEMBERSHIP_BYTES_MAX => {
            match postcard::take_from_bytes(rest) {
                Ok((value, [])) => Ok(value),
                _ => Err(MembershipDecodeError::Malformed),
            }
        }
        [version, ..] if *version != VERSION => Err(MembershipDecodeError::Version(*version)),
        _ => Err(MembershipDecodeError::Malformed),
    }
}

impl Membership {
    /// The bytes of it: a version byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`MembershipDecodeError`]: a later version, or damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipDecodeError> {
        let membership: Self = decode(bytes)?;
        let is_joint = membership.is_joint();
        let is_sound = membership.replicas().len() <= MEMBERSHIP_REPLICAS_MAX
            && membership
                .learners
                .iter()
                .all(|&learner| !membership.is_voter(learner))
            && membership
                .learners_next
                .is_subset(&membership.voters_outgoing)
            && (is_joint || !membership.auto_leave);
        if is_sound {
            Ok(membership)
        } else {
            Err(MembershipDecodeError::Malformed)
        }
    }
}

impl MembershipChange {
    /// The payload of its entry: a version byte, then postcard.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`MembershipDecodeError`]: a later version, or damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipDecodeError> {
        let change: Self = decode(bytes)?;
        if change.changes.len() > MEMBERSHIP_REPLICAS_MAX {
            return Err(MembershipDecodeError::Malformed);
        }
        Ok(change)
    }
}
