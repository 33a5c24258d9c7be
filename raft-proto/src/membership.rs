//! Who belongs to a group, and how that changes.
//!
//! Source: thesis §4.1 (single changes), §4.3 (joint consensus); etcd-raft's `confchange`, whose
//! learners-next rule is kept: a voter demoted inside a joint configuration stays a voter of the
//! outgoing one and becomes a learner only when the joint configuration is left.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::quorum::{VoteResult, both_reached, majority_reached, majority_vote};
use crate::types::{HostId, Index, ReplicaId};

/// How many replicas a membership may name; bounds what a decoder takes.
pub const MEMBERSHIP_REPLICAS_MAX: usize = 1_024;
/// How many bytes an encoded membership or change may take.
pub const MEMBERSHIP_BYTES_MAX: usize = 64 << 10;
const VERSION: u8 = 1;
const VERSION_WITH_WITNESSES: u8 = 2;

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
    /// Voters that hold the places of entries but no commands, and never lead.
    #[serde(skip)]
    pub witnesses: BTreeSet<ReplicaId>,
    /// How much each replica wants to lead, where it was set; 1 elsewhere.
    #[serde(skip)]
    pub priorities: BTreeMap<ReplicaId, u8>,
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
    /// Makes the replica a voter that receives entries without their commands.
    AddWitness,
    /// Sets how much the replica wants to lead; 1 where nothing is set.
    Prioritise(u8),
}

impl ChangeKind {
    /// Whether it would make a witness of a member that is none, or the other way round.
    const fn turns_witness(self, is_witness: bool) -> bool {
        match self {
            Self::AddWitness => !is_witness,
            Self::AddVoter | Self::AddLearner => is_witness,
            Self::Remove | Self::Update | Self::Prioritise(_) => false,
        }
    }
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
    /// A joint configuration must be left first.
    #[error("can't apply simple config change in joint config")]
    SimpleInJoint,
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
    /// More bytes than a membership or a change may take: a shorter context, or fewer at once.
    #[error("more than {MEMBERSHIP_BYTES_MAX} bytes")]
    TooLarge,
    /// A member's log has either all commands or none. Remove it and add a new replica.
    #[error("replica {0} is a witness for life or not at all")]
    WitnessForLife(ReplicaId),
    /// Some quorum would consist of witnesses alone: no copy of its commands would be certain.
    #[error("a quorum could consist of witnesses alone")]
    TooManyWitnesses,
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

    /// Whether the replica belongs to the group at all.
    #[must_use]
    pub fn is_member(&self, replica: ReplicaId) -> bool {
        self.is_voter(replica) || self.learners.contains(&replica)
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

    /// Whether the replica is a witness.
    #[must_use]
    pub fn is_witness(&self, replica: ReplicaId) -> bool {
        self.witnesses.contains(&replica)
    }

    /// The replica's priority in elections; 1 where none was set.
    #[must_use]
    pub fn priority(&self, replica: ReplicaId) -> u8 {
        self.priorities.get(&replica).copied().unwrap_or(1)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let sets = [
            &self.voters,
            &self.voters_outgoing,
            &self.learners,
            &self.learners_next,
            &self.witnesses,
        ];
        sets.map(BTreeSet::len).iter().sum::<usize>() * size_of::<ReplicaId>()
            + self.hosts.len() * size_of::<(ReplicaId, HostId)>()
            + self.priorities.len() * size_of::<(ReplicaId, u8)>()
    }

    /// The highest index that a quorum has reached, where `acked` gives each voter's, if known.
    ///
    /// Without voters nothing stands in the way: the highest index there is.
    #[must_use]
    pub fn committed(&self, acked: impl Fn(ReplicaId) -> Option<Index>) -> Index {
        let of = |voters: &BTreeSet<ReplicaId>| {
            majority_reached(voters.iter().map(|&voter| acked(voter).unwrap_or_default()))
        };
        both_reached(of(&self.voters), of(&self.voters_outgoing))
    }

    /// How a vote stands, where `vote` gives each voter's answer, if there is one.
    #[must_use]
    pub fn vote_result(&self, vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
        let of = |voters: &BTreeSet<ReplicaId>| majority_vote(voters.iter().map(|&id| vote(id)));
        of(&self.voters).and(of(&self.voters_outgoing))
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

/// A membership as a change leaves it, and whom the change brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The membership from then on.
    pub membership: Membership,
    /// Replicas that were no members before, or that the change removed and added again: nothing
    /// is known about their logs.
    pub added: Vec<ReplicaId>,
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
    ) -> Result<Changed, MembershipError> {
        if change.is_leave() {
            self.leave_joint(index)
        } else if let Some(auto_leave) = change.enters_joint() {
            self.enter_joint(index, auto_leave, &change.changes)
        } else {
            self.simple(index, &change.changes)
        }
    }

    /// The membership after changes of which at most one concerns a voter (thesis §4.1).
    ///
    /// # Errors
    ///
    /// [`MembershipError`]: this membership stays.
    pub fn simple(&self, index: Index, changes: &[Change]) -> Result<Changed, MembershipError> {
        if self.is_joint() {
            return Err(MembershipError::SimpleInJoint);
        }
        let mut next = self.clone();
        let added = next.apply(changes, self)?;
        if next.voters.symmetric_difference(&self.voters).count() > 1 {
            return Err(MembershipError::NotSimple);
        }
        next.checked(index, added)
    }

    /// The joint membership that leads from this one to this one with `changes` (thesis §4.3).
    ///
    /// # Errors
    ///
    /// [`MembershipError`]: this membership stays.
    pub fn enter_joint(
        &self,
        index: Index,
        auto_leave: bool,
        changes: &[Change],
    ) -> Result<Changed, MembershipError> {
        if self.is_joint() {
            return Err(MembershipError::AlreadyJoint);
        }
        if self.voters.is_empty() {
            return Err(MembershipError::ZeroVoters);
        }
        let mut next = self.clone();
        next.voters_outgoing = next.voters.clone();
        let added = next.apply(changes, self)?;
        next.auto_leave = auto_leave;
        next.checked(index, added)
    }

    /// The membership that a joint one leads to.
    ///
    /// # Errors
    ///
    /// [`MembershipError::NotJoint`]: this membership stays.
    pub fn leave_joint(&self, index: Index) -> Result<Changed, MembershipError> {
        if !self.is_joint() {
            return Err(MembershipError::NotJoint);
        }
        let mut next = self.clone();
        next.learners.append(&mut next.learners_next);
        next.voters_outgoing.clear();
        next.auto_leave = false;
        next.checked(index, Vec::new())
    }

    /// Bounds and prunes what a change made.
    fn checked(mut self, index: Index, added: Vec<ReplicaId>) -> Result<Changed, MembershipError> {
        self.index = index;
        let members = self.replicas();
        if members.len() > MEMBERSHIP_REPLICAS_MAX {
            return Err(MembershipError::TooMany);
        }
        self.hosts.retain(|replica, _| members.contains(replica));
        self.priorities
            .retain(|replica, _| members.contains(replica));
        self.witnesses.retain(|replica| members.contains(replica));
        if !self.has_enough_full_voters() {
            return Err(MembershipError::TooManyWitnesses);
        }
        // One that nobody could read back could not be part of a snapshot.
        if self.encode().len() > MEMBERSHIP_BYTES_MAX {
            return Err(MembershipError::TooLarge);
        }
        Ok(Changed {
            membership: self,
            added,
        })
    }

    /// Whether every quorum holds a voter that has commands and not just their places.
    fn has_enough_full_voters(&self) -> bool {
        [&self.voters, &self.voters_outgoing].iter().all(|voters| {
            voters.is_empty() || self.witnesses.intersection(voters).count() < voters.len() / 2 + 1
        })
    }

    /// Makes the changes one after the other, to what was `before`.
    fn apply(
        &mut self,
        changes: &[Change],
        before: &Self,
    ) -> Result<Vec<ReplicaId>, MembershipError> {
        let mut added = Vec::new();
        for change in changes {
            let id = change.replica;
            let was_member = self.is_member(id);
            // Who is removed and added again in one change has kept its log.
            let turns_witness = [before, &*self]
                .iter()
                .any(|old| old.is_member(id) && change.kind.turns_witness(old.is_witness(id)));
            if turns_witness {
                return Err(MembershipError::WitnessForLife(id));
            }
            match change.kind {
                ChangeKind::AddVoter | ChangeKind::AddWitness => {
                    self.learners.remove(&id);
                    self.learners_next.remove(&id);
                    self.voters.insert(id);
                    if change.kind == ChangeKind::AddWitness {
                        self.witnesses.insert(id);
                    }
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
                    if !self.voters_outgoing.contains(&id) {
                        self.witnesses.remove(&id);
                    }
                }
                ChangeKind::Update => {}
                ChangeKind::Prioritise(priority) => {
                    if was_member {
                        self.priorities.insert(id, priority);
                    }
                }
            }
            if !was_member && (self.is_voter(id) || self.learners.contains(&id)) {
                added.push(id);
            }
            if let Some(host) = change.host.filter(|_| change.kind != ChangeKind::Remove) {
                self.hosts.insert(id, host);
            }
        }
        if self.voters.is_empty() {
            Err(MembershipError::NoVoters)
        } else {
            Ok(added)
        }
    }
}

fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, alloc::vec![version]).expect("writing to a vector does not fail")
}

/// The version byte and what follows it.
fn versioned(bytes: &[u8]) -> Result<(u8, &[u8]), MembershipDecodeError> {
    match bytes {
        [version, rest @ ..] if rest.len() <= MEMBERSHIP_BYTES_MAX => Ok((*version, rest)),
        _ => Err(MembershipDecodeError::Malformed),
    }
}

fn take<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), MembershipDecodeError> {
    postcard::take_from_bytes(bytes).map_err(|_| MembershipDecodeError::Malformed)
}

impl Membership {
    /// The bytes of it: a version byte, then postcard. Version 2 adds witnesses and priorities, and
    /// is written where there are any.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.witnesses.is_empty() && self.priorities.is_empty() {
            return encode(VERSION, self);
        }
        let more = (&self.witnesses, &self.priorities);
        encode(VERSION_WITH_WITNESSES, &(self, more))
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`MembershipDecodeError`]: a later version, or damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipDecodeError> {
        let (version, rest) = versioned(bytes)?;
        let (mut membership, rest): (Self, _) = match version {
            VERSION | VERSION_WITH_WITNESSES => take(rest)?,
            _ => return Err(MembershipDecodeError::Version(version)),
        };
        let rest = if version == VERSION_WITH_WITNESSES {
            let (more, rest) = take(rest)?;
            (membership.witnesses, membership.priorities) = more;
            rest
        } else {
            rest
        };
        if !rest.is_empty() {
            return Err(MembershipDecodeError::Malformed);
        }
        let is_joint = membership.is_joint();
        let members = membership.replicas();
        let is_sound = members.len() <= MEMBERSHIP_REPLICAS_MAX
            && membership
                .witnesses
                .iter()
                .all(|&witness| membership.is_voter(witness))
            && membership
                .learners
                .iter()
                .all(|&learner| !membership.is_voter(learner))
            && membership
                .learners_next
                .is_subset(&membership.voters_outgoing)
            && membership.learners_next.is_disjoint(&membership.voters)
            && membership.has_enough_full_voters()
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
        encode(VERSION, self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`MembershipDecodeError`]: a later version, or damage.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipDecodeError> {
        let (version, rest) = versioned(bytes)?;
        if version != VERSION {
            return Err(MembershipDecodeError::Version(version));
        }
        let (change, rest): (Self, _) = take(rest)?;
        if !rest.is_empty() || change.changes.len() > MEMBERSHIP_REPLICAS_MAX {
            return Err(MembershipDecodeError::Malformed);
        }
        Ok(change)
    }
}
