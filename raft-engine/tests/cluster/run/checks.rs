//! When a run is over, and what it must have come to.

use std::sync::Arc;

use bytes::Bytes;
use raft_engine::{GroupStatus, Responder};
use raft_proto::{GroupId, ReplicaId, Role};

use super::plans::PLAN_STEPS;
use super::{GROUP_MEMORY_BYTES_MAX, Report, Run, group, numbers, replica};
use crate::machine::mix;
use crate::oracle::Slot;

impl Run {
    /// Whether every member of every group, as planned, has applied all there is, under one
    /// leader.
    pub(super) fn has_settled(&mut self) -> bool {
        let mut is_settled =
            self.streams.is_empty() && self.plans.iter().all(|plan| plan.done == PLAN_STEPS);
        for number in 1..=self.options.groups {
            let members = self.members(group(number));
            // A replica that was removed and never heard of it waits for entries that do not come:
            // its callers' deadlines end that.
            is_settled &= self.reads.iter().all(|read| {
                let is_member = |status: &GroupStatus| status.replica == read.replica;
                read.group != group(number) || !members.iter().any(is_member)
            });
            is_settled &= !members.is_empty()
                && members
                    .iter()
                    .filter(|status| status.role == Role::Leader)
                    .count()
                    == 1
                && members
                    .iter()
                    .all(|status| status.applied == status.last && status.last == members[0].last);
        }
        is_settled
    }

    /// The members of a group as its leader knows them; nobody, if they are not all there.
    fn members(&mut self, group: GroupId) -> Vec<GroupStatus> {
        let statuses = self.statuses(group);
        let leaders = statuses.iter().filter(|status| status.role == Role::Leader);
        let Some(leader) = leaders.max_by_key(|status| status.term) else {
            return Vec::new();
        };
        let wanted = leader.membership.replicas();
        let members: Vec<GroupStatus> = statuses
            .iter()
            .filter(|status| wanted.contains(&status.replica))
            .cloned()
            .collect();
        if members.len() == wanted.len() {
            members
        } else {
            Vec::new()
        }
    }

    pub(super) fn statuses(&mut self, group: GroupId) -> Vec<GroupStatus> {
        let slots: Vec<Arc<Slot<GroupStatus>>> = self
            .hosts
            .iter()
            .filter_map(|host| host.running.as_ref())
            .map(|(engine, _)| {
                let slot = Slot::new();
                let completion: Arc<Slot<GroupStatus>> = Arc::clone(&slot);
                engine.status(group, Responder::new(completion));
                slot
            })
            .collect();
        self.pass();
        let statuses: Vec<GroupStatus> =
            slots.iter().filter_map(|slot| slot.take()?.ok()).collect();
        for status in &statuses {
            self.report.quiet += u64::from(status.is_quiet);
            let held = status.memory_bytes;
            self.report.memory_bytes = self.report.memory_bytes.max(held);
            if held > GROUP_MEMORY_BYTES_MAX {
                self.violation(format!("group {group} holds {held} bytes"));
            }
        }
        statuses
    }

    /// What the log of a running host has done in this life.
    pub(super) fn count_log(&mut self, at: usize) {
        if let Some((_, workers)) = &self.hosts[at].running {
            let stats = workers.stats().lane;
            self.report.sealed += stats.sealed_segments;
            self.report.moved_bytes += stats.moved_bytes;
        }
    }

    pub(super) fn finish(mut self) -> Report {
        for at in 0..self.hosts.len() {
            self.count_log(at);
        }
        for number in 1..=self.options.groups {
            let group = group(number);
            for status in &self.statuses(group) {
                if let Some(reason) = &status.failed {
                    self.violation(format!("group {group} failed: {reason}"));
                }
            }
            let statuses = self.members(group);
            for status in &statuses {
                if status.applied == statuses[0].applied
                    && status.state_hash != statuses[0].state_hash
                {
                    self.violation(format!("group {group}: state hashes differ"));
                }
            }
            let members: Vec<ReplicaId> = statuses.iter().map(|status| status.replica).collect();
            let lists = self.lists(group, &members);
            if lists.is_empty() || lists.len() != members.len() {
                self.violation(format!("group {group}: not every member was read"));
            }
            for list in lists {
                let wrong = self
                    .book
                    .lock()
                    .expect("no panic under it")
                    .check(group, &list);
                self.report.violations.extend(wrong);
            }
        }
        let applications = self.applications.lock().expect("no panic under it");
        self.report
            .violations
            .extend(applications.violations.iter().cloned());
        let promises = &self.network.promises;
        self.report
            .violations
            .extend(promises.violations.iter().cloned());
        self.report.votes = promises.votes();
        self.report.applied = applications.count;
        let mut trace = mix(self.network.trace, applications.trace);
        for host in &self.hosts {
            trace = mix(trace, host.vfs.trace_hash());
        }
        self.report.trace = trace;
        let book = self.book.lock().expect("no panic under it");
        self.report.acknowledged = book.acknowledged;
        self.report.snapshots = book.snapshots;
        drop(book);
        drop(applications);
        self.report
    }

    fn lists(&mut self, group: GroupId, members: &[ReplicaId]) -> Vec<Vec<u64>> {
        let slots: Vec<Arc<Slot<Bytes>>> = self
            .hosts
            .iter()
            .filter(|host| members.contains(&replica(host.id.get())))
            .filter_map(|host| host.running.as_ref())
            .map(|(engine, _)| {
                let slot = Slot::new();
                let completion: Arc<Slot<Bytes>> = Arc::clone(&slot);
                engine.read_stale(group, Bytes::new(), Responder::new(completion));
                slot
            })
            .collect();
        self.pass();
        slots
            .iter()
            .filter_map(|slot| slot.take()?.ok())
            .map(|list| numbers(&list))
            .collect()
    }
}
