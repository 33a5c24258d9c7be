//! Time without faults of its own: everything that can be delivered, written and applied, is.

use raft_proto::{EntryId, Raft, Role, VoteResult, WhyNoLeader};

use crate::oracle::Violation;
use crate::world::{World, place};

type Checked = Result<(), Violation>;

/// Rounds of doing all that can be done before it is called a circle.
const SETTLE_MAX: usize = 400;

impl World {
    /// Does all that can be done without time going on: one replica after the other, messages in
    /// their order.
    pub(crate) fn settle(&mut self) -> Checked {
        for _ in 0..SETTLE_MAX {
            for at in 0..self.replicas.len() {
                if self.replicas[at].raft.is_none() {
                    continue;
                }
                self.poll(at)?;
                self.persist(at, usize::MAX)?;
                while !self.replicas[at].fetches.is_empty() {
                    self.fetch(at, false)?;
                }
                self.apply(at, usize::MAX)?;
                if self.replicas[at].wants_snapshot {
                    self.snapshot(at, 0)?;
                }
            }
            while !self.reports.is_empty() {
                self.report()?;
            }
            if self.flying.is_empty() && !self.is_anything_wanted() {
                return Ok(());
            }
            let in_flight = self.flying.len();
            for _ in 0..in_flight {
                self.deliver()?;
            }
        }
        let why = "messages without end".to_owned();
        Err(Violation::NoProgress { why })
    }

    fn is_anything_wanted(&mut self) -> bool {
        self.replicas.iter().any(|replica| {
            !replica.writes.is_empty() || !replica.applies.is_empty() || !replica.fetches.is_empty()
        }) || !self.reports.is_empty()
    }

    /// One tick for all, and all that follows from it.
    pub(crate) fn round(&mut self) -> Checked {
        if self.is_clock_shared {
            self.now += 1;
        }
        for at in 0..self.replicas.len() {
            if !self.is_clock_shared {
                self.replicas[at].now += 1;
            }
            self.with(at, |_| {})?;
        }
        self.settle()
    }

    pub(crate) fn rounds(&mut self, count: u64) -> Checked {
        for _ in 0..count {
            self.round()?;
        }
        Ok(())
    }

    /// Heals everything, and holds the group to what a healthy one does: it elects a leader, all
    /// members come to hold and apply the same, a new command is committed and reads are answered.
    pub(crate) fn recover(&mut self) -> Checked {
        self.heal();
        self.network = crate::world::Network::default();
        for at in 0..self.replicas.len() {
            self.start(at);
        }
        let patience = 40 * self.replicas[0].config.election_timeout_ticks_max;
        let mut proposed_at = None;
        for round in 0..patience {
            self.run_members_alone();
            self.round()?;
            if round % 16 == 15 {
                self.wake()?;
            }
            if proposed_at.is_none()
                && let Some(leader) = self.leader()
                && self.is_settled()
            {
                let before = self.oracle.counts.of("proposals");
                self.propose(leader)?;
                let is_taken = self.oracle.counts.of("proposals") > before;
                proposed_at = is_taken.then(|| self.oracle.committed_index());
            } else if let Some(before) = proposed_at
                && self.oracle.committed_index() > before
                && self.is_settled()
            {
                return self.read_everywhere();
            }
        }
        if self.is_stuck_behind_a_change() {
            self.oracle.counts.add("stuck behind a change", 1);
            return Ok(());
        }
        let why = (0..self.replicas.len())
            .filter_map(|at| self.raft(at))
            .map(|raft| {
                format!(
                    "{} {:?} term {} last {} commit {} applied {} membership {:?} asked {:?}: {:?}",
                    raft.config().id,
                    raft.role(),
                    raft.term(),
                    raft.last_index(),
                    raft.commit(),
                    raft.applied_index(),
                    raft.membership(),
                    raft.transferee(),
                    raft.why_no_leader().map(|why| why.to_string())
                )
            })
            .collect::<Vec<_>>()
            .join("; ");
        Err(Violation::NoProgress { why })
    }

    /// Whether nobody can win an election for one of two reasons that are known.
    ///
    /// The price of switching memberships at commit: some who are left in the newest one never
    /// heard that it is committed, and without those who know and left nobody can win. etcd-raft
    /// has the same limit, and the same advice: keep three voters or more. And the price of
    /// witnesses: one alone may hold the end of a log whose leader is gone, and cannot lead.
    fn is_stuck_behind_a_change(&self) -> bool {
        let newest = self.oracle.membership();
        let last = |raft: &Raft| {
            let index = raft.last_index();
            EntryId::new(raft.term_at(index).unwrap_or_default(), index)
        };
        // One that was a witness has such a log until a snapshot comes.
        let is_bare = |raft: &Raft| {
            let why = raft.why_no_leader();
            matches!(why, Some(WhyNoLeader::LogWithoutCommands { .. }))
        };
        let can_win = |raft: &Raft| {
            let own = last(raft);
            let would_grant = |id| {
                let other = self.raft(place(id))?;
                Some(last(other) <= own)
            };
            // Who knows of no membership stands in no election, whatever a vote of nobody comes to.
            let id = raft.config().id;
            !newest.is_witness(id)
                && !is_bare(raft)
                && raft.membership().is_voter(id)
                && raft.membership().vote_result(would_grant) == VoteResult::Won
        };
        let voters = || newest.voters.iter().filter_map(|&id| self.raft(place(id)));
        let longest = voters().max_by_key(|raft| last(raft));
        let has_reason = voters().any(|raft| raft.membership().index < newest.index)
            || longest.is_some_and(|raft| newest.is_witness(raft.config().id) || is_bare(raft));
        has_reason && !voters().any(can_win)
    }

    fn run_members_alone(&mut self) {
        let members = self.oracle.membership().replicas();
        for at in 0..self.replicas.len() {
            let id = self.replicas[at].config.id;
            if members.contains(&id) {
                // It may be let in again only now.
                self.start(at);
            } else if self.oracle.members_ever.contains(&id) {
                self.crash(at);
            }
        }
    }

    /// A quiet group is woken by whoever wants something of it. So is a leader that was let in again
    /// while it led: it counts its own disk from its next entry on, as in etcd.
    fn wake(&mut self) -> Checked {
        if let Some(leader) = self.leader()
            && self
                .raft(leader)
                .is_some_and(|raft| raft.last_index() > raft.commit())
        {
            self.oracle.counts.add("leaders waiting", 1);
            self.propose(leader)?;
        }
        for at in 0..self.replicas.len() {
            if self.raft(at).is_some_and(Raft::is_quiet) {
                self.read(at)?;
            }
        }
        Ok(())
    }

    fn members(&self) -> Vec<usize> {
        let members = self.oracle.membership().replicas();
        (0..self.replicas.len())
            .filter(|&at| members.contains(&self.replicas[at].config.id))
            .collect()
    }

    /// Whether all members are in one place: same leader, all committed and applied.
    fn is_settled(&self) -> bool {
        let Some(leader) = self.leader() else {
            return false;
        };
        let (Some(leader), committed) = (self.raft(leader), self.oracle.committed_index()) else {
            return false;
        };
        leader.transferee().is_none()
            && leader.last_index() == leader.commit()
            && self.members().into_iter().all(|at| {
                let machine = &self.replicas[at].machine;
                self.raft(at).is_some_and(|raft| {
                    raft.commit() == committed
                        && raft.term() == leader.term()
                        && raft.leader() == Some(leader.config().id)
                        && machine.applied.index == committed
                        && *raft.membership() == machine.membership
                })
            })
    }

    /// Each member gets a read answered, at the latest when reads that were lost are given up.
    fn read_everywhere(&mut self) -> Checked {
        for at in self.members() {
            let before = self.oracle.counts.of("reads");
            let patience = self.replicas[at].config.election_timeout_ticks_max;
            for _ in 0..=patience {
                self.read(at)?;
                self.settle()?;
                if self.oracle.counts.of("reads") > before {
                    break;
                }
                self.round()?;
            }
            if self.oracle.counts.of("reads") == before {
                let why = format!("no read of replica {} is answered", at + 1);
                return Err(Violation::NoProgress { why });
            }
        }
        Ok(())
    }

    /// Rounds until there is a leader that all its followers in reach know; which one it is.
    pub(crate) fn rounds_until_led(&mut self, rounds_max: u64) -> Result<usize, Violation> {
        for _ in 0..rounds_max {
            self.round()?;
            if let Some(leader) = self.leader()
                && self.raft(leader).is_some_and(|raft| {
                    raft.role() == Role::Leader && raft.term_at(raft.commit()) == Some(raft.term())
                })
            {
                return Ok(leader);
            }
        }
        let why = format!("no leader after {rounds_max} ticks");
        Err(Violation::NoProgress { why })
    }
}
