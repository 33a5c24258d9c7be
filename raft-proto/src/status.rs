//! What a person asks of a replica when nothing moves.

use alloc::vec::Vec;
use core::fmt;

use crate::raft::Raft;
use crate::roles::{State, Votes};
use crate::types::{Index, ReplicaId, Term};

/// What a replica waits for while it knows of no leader.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyNoLeader {
    /// It has no membership yet: a leader has to find it.
    NoMembership,
    /// It is not a voter, or a witness: others have to elect one.
    MayNotLead,
    /// It was a witness: up to this index it has no commands to lead with. A snapshot in place of its
    /// log would bring them; or remove it, and add another replica under another id.
    LogWithoutCommands {
        /// The last entry without its command.
        index: Index,
    },
    /// It takes in a snapshot first.
    InstallingSnapshot {
        /// The snapshot's index.
        index: Index,
    },
    /// A committed membership change must be switched to first.
    ChangeNotApplied {
        /// The change's index.
        index: Index,
    },
    /// The group is quiet: the next message, proposal or read wakes it.
    Quiet,
    /// A lease that it granted may still run: it stands at the first election timeout after that.
    LeaseHeld {
        /// How many ticks are left.
        ticks: u64,
    },
    /// Its election timeout has not passed.
    Waiting {
        /// How many ticks are left.
        ticks: u64,
        /// Rounds already passed in favour of replicas of higher priority.
        rounds_left_to_others: u32,
    },
    /// It asks whether an election could be won, or stands in one.
    Asking {
        /// Whether it only asks.
        is_pre_vote: bool,
        /// The term it stands in, or would.
        term: Term,
        /// Who said yes.
        granted: Vec<ReplicaId>,
        /// Who said no: their logs are newer, they hear of a leader, or they voted for another.
        rejected: Vec<ReplicaId>,
        /// Who has not answered: dead, cut off, slow, or this replica's own disk.
        missing: Vec<ReplicaId>,
    },
}

impl Raft {
    /// What this replica waits for, or `None` if it knows the leader.
    #[must_use]
    pub fn why_no_leader(&self) -> Option<WhyNoLeader> {
        if self.leader().is_some() {
            return None;
        }
        if self.members.len() == 0 {
            return Some(WhyNoLeader::NoMembership);
        }
        if let Some(index) = self.log.installing {
            return Some(WhyNoLeader::InstallingSnapshot { index });
        }
        if self.lacks_commands() {
            let index = self.last_bare;
            return Some(WhyNoLeader::LogWithoutCommands { index });
        }
        if !self.is_promotable() {
            return Some(WhyNoLeader::MayNotLead);
        }
        if self.has_undone_change() {
            let index = self.membership_entries.front().copied();
            return Some(WhyNoLeader::ChangeNotApplied {
                index: index.unwrap_or_default(),
            });
        }
        if self.is_quiet() {
            return Some(WhyNoLeader::Quiet);
        }
        let asking = |is_pre_vote, term, votes: &Votes| {
            let voters = |answer: Option<bool>| -> Vec<ReplicaId> {
                let voters = self.members.iter().filter(|member| member.is_voter());
                let ids = voters.map(|voter| voter.id);
                ids.filter(|&id| votes.of(id) == answer).collect()
            };
            WhyNoLeader::Asking {
                is_pre_vote,
                term,
                granted: voters(Some(true)),
                rejected: voters(Some(false)),
                missing: voters(None),
            }
        };
        Some(match &self.state {
            State::PreCandidate(votes) => asking(true, self.term.next(), votes),
            State::Candidate(votes) => asking(false, self.term, votes),
            State::Follower(_) | State::Leader(_) if self.is_fenced() => WhyNoLeader::LeaseHeld {
                ticks: self.no_vote_before.saturating_sub(self.tick),
            },
            State::Follower(_) | State::Leader(_) => WhyNoLeader::Waiting {
                ticks: self.timeout.saturating_sub(self.elapsed()),
                rounds_left_to_others: self.patience.rounds(),
            },
        })
    }
}

impl fmt::Display for WhyNoLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMembership => f.write_str("it has no membership; a leader has to find it"),
            Self::MayNotLead => f.write_str("it may not lead; the voters have to elect a leader"),
            Self::LogWithoutCommands { index } => {
                write!(
                    f,
                    "it was a witness and has no commands up to {index}: replace it"
                )
            }
            Self::InstallingSnapshot { index } => {
                write!(f, "it takes in the snapshot at {index} first")
            }
            Self::ChangeNotApplied { index } => {
                write!(
                    f,
                    "it has to switch to the membership of entry {index} first"
                )
            }
            Self::Quiet => f.write_str("the group is quiet; any request wakes it"),
            Self::LeaseHeld { ticks } => write!(
                f,
                "a lease that it granted may run for {ticks} more ticks; it stands after that"
            ),
            Self::Waiting {
                ticks,
                rounds_left_to_others,
            } => {
                write!(f, "it stands in {ticks} ticks unless it hears of a leader")?;
                if *rounds_left_to_others > 0 {
                    write!(
                        f,
                        ", having left {rounds_left_to_others} rounds to others of higher priority"
                    )?;
                }
                Ok(())
            }
            Self::Asking {
                is_pre_vote,
                term,
                granted,
                rejected,
                missing,
            } => {
                let what = if *is_pre_vote {
                    "asks whether it could win"
                } else {
                    "stands in"
                };
                write!(
                    f,
                    "it {what} term {term}: yes {granted:?}, no {rejected:?}, no answer {missing:?}"
                )
            }
        }
    }
}
