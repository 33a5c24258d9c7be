//! How memberships change.

use raft_engine::Responder;
use raft_proto::{ChangeKind, GroupId, MembershipChange, ReplicaId, Role};

use super::{HOSTS, MILLISECOND, Run, host, replica};
use crate::oracle::Slot;

/// What is to become of a group's membership: host 4 joins, is promoted, and somebody leaves.
pub(super) struct Plan {
    pub(super) group: GroupId,
    /// Who leaves in the end, host 4 perhaps.
    pub(super) victim: ReplicaId,
    pub(super) done: usize,
}

pub(super) const PLAN_STEPS: usize = 3;

impl Run {
    /// Brings each group's membership one step further, through whoever leads.
    pub(super) fn administer(&mut self) {
        if self.now < self.next_admin {
            return;
        }
        let pause = 100 * MILLISECOND + self.rng.below(400 * MILLISECOND);
        self.next_admin = self.now.plus_nanos(pause);
        let mut plans = std::mem::take(&mut self.plans);
        for plan in &mut plans {
            self.administer_group(plan);
        }
        self.plans = plans;
    }

    fn administer_group(&mut self, plan: &mut Plan) {
        let joiner = replica(HOSTS);
        if plan.done == PLAN_STEPS {
            return;
        }
        let leaders = self.statuses(plan.group).into_iter();
        let leader = leaders
            .filter(|status| status.role == Role::Leader)
            .max_by_key(|status| status.term);
        let Some(leader) = leader else { return };
        let membership = &leader.membership;
        let is_in_force = match plan.done {
            0 => membership.learners.contains(&joiner),
            1 => membership.voters.contains(&joiner),
            _ => !membership.replicas().contains(&plan.victim),
        };
        if is_in_force {
            plan.done += 1;
            self.report.changes += 1;
            return;
        }
        let (kind, replica, on) = match plan.done {
            0 => (ChangeKind::AddLearner, joiner, Some(host(HOSTS))),
            1 => (ChangeKind::AddVoter, joiner, None),
            _ => (ChangeKind::Remove, plan.victim, None),
        };
        let leader = self
            .hosts
            .iter()
            .find(|host| host.id.get() == leader.replica.get());
        if let Some((engine, _)) = leader.and_then(|host| host.running.as_ref()) {
            let change = MembershipChange::single(kind, replica, on);
            engine.change_membership(plan.group, change, Responder::new(Slot::new()));
        }
    }
}
