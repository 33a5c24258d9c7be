//! What is known of each replica while a log runs, and what may be found of it after a crash: one of
//! the states since the last that was acknowledged, each replica for itself, as on a full disk
//! what waits for room is passed by what others submit.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft_log::{Completion, LaneOptions, Submission};

use crate::workload::{Key, Model, ModelReplica, is_split, replica_agrees};

/// The states of one replica.
#[derive(Clone, Debug)]
struct Track {
    /// After each submission, and after each part of one that takes several records.
    states: Vec<Arc<ModelReplica>>,
    /// Where those submissions end that have not ended yet, by their numbers.
    waiting: BTreeMap<u64, usize>,
    /// The last acknowledged of them.
    acknowledged: usize,
}

impl Track {
    fn new(begin: ModelReplica) -> Self {
        Self {
            states: vec![Arc::new(begin)],
            waiting: BTreeMap::new(),
            acknowledged: 0,
        }
    }

    fn last(&self) -> &ModelReplica {
        &self.states[self.states.len() - 1]
    }

    /// Which of the states was found, if it is one that may be.
    fn find(&self, found: Option<&ModelReplica>) -> Option<usize> {
        let may_be = self.acknowledged..self.states.len();
        let mut candidates = may_be.clone().filter(|&at| {
            let state = &self.states[at];
            replica_agrees(found, state) || self.is_compacted_early(found, at)
        });
        candidates.find(|&at| {
            // A vote may be ahead of the record that was cut, never behind.
            let votes = self.states[at..].iter().map(|state| state.term_and_vote());
            let found = found.map(ModelReplica::term_and_vote).unwrap_or_default();
            self.states[at].is_gone || votes.into_iter().any(|vote| vote == found)
        })
    }

    /// A compaction makes room: it passes what the replica itself has waiting for it.
    fn is_compacted_early(&self, found: Option<&ModelReplica>, at: usize) -> bool {
        let Some(found) = found else {
            return false;
        };
        let state = &self.states[at];
        let later = self.states[at..].iter();
        let is_asked_for = later.into_iter().any(|later| later.first >= found.first);
        let end = state.last.index.next();
        if !is_asked_for || found.first <= state.first || found.first > end {
            return false;
        }
        let mut compacted = ModelReplica::clone(state);
        compacted.compact(found.first);
        replica_agrees(Some(found), &compacted)
    }
}

/// The replicas of a log.
#[derive(Clone, Debug, Default)]
pub struct Tracks {
    of: BTreeMap<Key, Track>,
}

impl Tracks {
    /// A log in which `model` was found.
    pub fn new(model: &Model) -> Self {
        let of = model.replicas.iter();
        let of = of.map(|(key, replica)| (*key, Track::new(replica.clone())));
        Self { of: of.collect() }
    }

    /// A submission that the log may take: what is found next may be what it leaves.
    pub fn submit(&mut self, submission: &Submission, options: &LaneOptions) {
        let key = (submission.group, submission.replica);
        let track = self.of.entry(key);
        let track = track.or_insert_with(|| Track::new(ModelReplica::blank()));
        let before = track.last().clone();
        if is_split(submission, options) {
            let parts = before.parts(submission).into_iter();
            track.states.extend(parts.map(Arc::new));
        }
        let mut after = before;
        after.apply(submission);
        track.states.push(Arc::new(after));
        let end = track.states.len() - 1;
        track.waiting.insert(submission.submission, end);
    }

    /// The log refused what was submitted last: nothing was taken.
    pub fn refuse(&mut self, submission: &Submission, options: &LaneOptions) {
        let key = (submission.group, submission.replica);
        let track = self.of.get_mut(&key).expect("it was submitted");
        let parts = if is_split(submission, options) {
            submission.entries.len() + 1
        } else {
            0
        };
        track.states.truncate(track.states.len() - 1 - parts);
        track.waiting.remove(&submission.submission);
    }

    /// A submission has ended. Those of one replica end in order.
    pub fn complete(&mut self, done: &Completion) {
        let track = self.of.get_mut(&(done.group, done.replica));
        let track = track.expect("it was submitted");
        let (number, end) = track.waiting.pop_first().expect("it waits");
        assert_eq!(number, done.submission, "in order");
        if done.result.is_ok() {
            assert!(end > track.acknowledged, "in order");
            track.acknowledged = end;
        }
    }

    /// All that was submitted is durable.
    pub fn acknowledge_all(&mut self) {
        for track in self.of.values_mut() {
            track.waiting.clear();
            track.acknowledged = track.states.len() - 1;
        }
    }

    /// Whether all that was submitted has ended, well or not.
    pub fn is_settled(&self) -> bool {
        self.of.values().all(|track| track.waiting.is_empty())
    }

    /// Whether all that was submitted is acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        let mut of = self.of.values();
        of.all(|track| track.acknowledged == track.states.len() - 1)
    }

    /// Each replica as it was submitted last.
    pub fn newest(&self) -> Model {
        let of = self.of.iter();
        let replicas = of.map(|(key, track)| (*key, track.last().clone()));
        Model {
            replicas: replicas.collect(),
        }
    }

    /// What was found is something that may be.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub fn check(&self, found: &Model, what: &str) {
        for (key, track) in &self.of {
            let found = found.replicas.get(key);
            assert!(
                track.find(found).is_some(),
                "{what}: {key:?}: found {found:#?}\nacknowledged {} of {:#?}",
                track.acknowledged,
                track.states
            );
        }
        for (key, found) in &found.replicas {
            let is_known = self.of.contains_key(key);
            assert!(is_known, "{what}: {key:?} comes from nowhere: {found:#?}");
        }
    }
}
