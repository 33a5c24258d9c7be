//! What has happened in lives drawn at random, so that a test can demand that it did.

use std::collections::BTreeMap;

use raft_log::Submission;
use raft_log::vfs::SimVfs;
use raft_proto::Batch;

use crate::tracked::ReadBack;
use crate::workload::{ModelReplica, Rng};

/// How often what happened.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }

    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// Sums of all that is named.
    pub fn sum(&self, names: &[&str]) -> u64 {
        names.iter().map(|name| self.of(name)).sum()
    }

    /// Fails on what never happened.
    pub fn demand(&self, names: &[&str]) {
        for name in names {
            assert!(self.of(name) > 0, "no {name}: {self:?}");
        }
    }

    /// What was read, and how.
    pub fn reads(&mut self, read: ReadBack) {
        self.add("entries read", read.entries);
        self.add("entries iterated", read.iterated);
        self.add("terms", read.terms);
        self.add("terms before", read.terms_before);
    }

    /// What a submission asks of a replica.
    pub fn operations(&mut self, submission: &Submission, before: Option<&ModelReplica>) {
        let blank = ModelReplica::blank();
        let before = before.unwrap_or(&blank);
        let state = submission.hard_state;
        self.add(
            "votes",
            u64::from(state.is_some_and(|it| it.vote.is_some())),
        );
        let commits = state.is_some_and(|it| it.commit > before.hard_state.commit);
        self.add("commits", u64::from(commits));
        let is_over = |batch: &Batch| batch.first().index <= before.last.index;
        let restarts = submission.restart_after.is_some();
        let overwrites = !restarts && submission.entries.first().is_some_and(is_over);
        self.add("overwrites", u64::from(overwrites));
        let appends = submission.entries.len() - usize::from(overwrites);
        self.add("appends", u64::try_from(appends).expect("small"));
        self.add("restarts behind a snapshot", u64::from(restarts));
        self.add("snapshots", u64::from(submission.snapshots.is_some()));
        let compacts = submission.compact_before.is_some();
        self.add("compactions", u64::from(compacts));
        self.add("removals", u64::from(submission.tombstone));
        let is_second = !submission.replica.get().is_multiple_of(10);
        let is_new = submission.submission == 1;
        self.add("creations after a removal", u64::from(is_second && is_new));
    }
}

pub const OPERATIONS: [&str; 9] = [
    "votes",
    "commits",
    "overwrites",
    "appends",
    "restarts behind a snapshot",
    "snapshots",
    "compactions",
    "removals",
    "creations after a removal",
];
pub const READS: [&str; 4] = ["entries read", "entries iterated", "terms", "terms before"];

/// The process alone is gone, or the power.
pub fn end_life(disk: &SimVfs, rng: &mut Rng, tally: &mut Tally) {
    if rng.one_in(3) {
        disk.kill_process();
        tally.add("kills", 1);
    } else {
        disk.crash();
        tally.add("crashes", 1);
    }
}
