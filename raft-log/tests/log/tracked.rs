//! What is known of each replica while a log runs, and what may be found of it after a crash: one of
//! the states since the last that was acknowledged, each replica for itself, as on a full disk
//! what waits for room is passed by what others submit.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft_log::{Completion, LaneOptions, LogError, LogReader, Submission};
use raft_proto::{EntryId, EntryRef, Index};

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

    /// A compaction makes room: it passes what the replica itself has waiting for it, with the
    /// snapshots that came with it or before it.
    fn is_compacted_early(&self, found: Option<&ModelReplica>, at: usize) -> bool {
        let Some(found) = found else {
            return false;
        };
        let state = &self.states[at];
        let mut later = self.states[at..].iter();
        let is_asked_for = later.any(|later| later.first >= found.first);
        let end = state.last.index.next();
        if !is_asked_for || found.first <= state.first || found.first > end {
            return false;
        }
        let mut compacted = ModelReplica::clone(state);
        let mut later = self.states[at..].iter();
        let holds = |id: EntryId| {
            let entry = state.entries.get(&id.index);
            id.index < state.first || entry.is_some_and(|(term, _)| *term == id.term)
        };
        if later.any(|later| later.snapshots == found.snapshots)
            && found.snapshots.iter().all(|snapshot| holds(snapshot.id))
        {
            compacted.snapshots.clone_from(&found.snapshots);
        }
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

    /// A replica as it was submitted last.
    pub fn last_of(&self, key: Key) -> ModelReplica {
        let track = self.of.get(&key);
        track.map_or_else(ModelReplica::blank, |track| track.last().clone())
    }

    /// Each replica as it was acknowledged last.
    pub fn acknowledged(&self) -> impl Iterator<Item = (&Key, &ModelReplica)> {
        let of = self.of.iter();
        of.map(|(key, track)| (key, &*track.states[track.acknowledged]))
    }

    /// Each replica as it was submitted last.
    pub fn newest(&self) -> Model {
        let of = self.of.iter();
        let replicas = of.map(|(key, track)| (*key, track.last().clone()));
        Model {
            replicas: replicas.collect(),
        }
    }

    /// What was found is something that may be. Returns of how many replicas it is a state with a
    /// compaction ahead of what waited before it.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub fn check(&self, found: &Model, what: &str) -> u64 {
        let mut ahead = 0;
        for (key, track) in &self.of {
            let found = found.replicas.get(key);
            let Some(at) = track.find(found) else {
                panic!(
                    "{what}: {key:?}: found {found:#?}\nacknowledged {} of {:#?}",
                    track.acknowledged, track.states
                );
            };
            ahead += u64::from(!replica_agrees(found, &track.states[at]));
        }
        for (key, found) in &found.replicas {
            let is_known = self.of.contains_key(key);
            assert!(is_known, "{what}: {key:?} comes from nowhere: {found:#?}");
        }
        ahead
    }
}

/// How much was read, in which way.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadBack {
    pub entries: u64,
    pub iterated: u64,
    pub terms: u64,
    /// Of the entry before the first.
    pub terms_before: u64,
}

/// Reads a replica by `entries`, so many bytes at a time, or with `None` by the iterator; its terms
/// and its range, too. All of it is durable.
///
/// # Errors
///
/// What a read says.
///
/// # Panics
///
/// If something else is read than `replica` holds.
pub fn read_back(
    reader: &LogReader,
    key: Key,
    replica: &ModelReplica,
    bytes_max: Option<usize>,
    what: &str,
) -> Result<ReadBack, LogError> {
    let mut read = ReadBack::default();
    let ends = replica.entries.keys().next().copied();
    let ends = ends.zip(replica.entries.keys().next_back().copied());
    assert_eq!(reader.range(key.0, key.1), ends, "{what}: {key:?}");
    let Some((first, last)) = ends else {
        return Ok(read);
    };
    let mut want = replica.entries.iter();
    let mut check = |entry: EntryRef<'_>| {
        let (index, (term, payload)) = want.next().expect("no more than there are");
        let found = (entry.index(), entry.term(), entry.payload());
        assert!(found == (*index, *term, &payload[..]), "{what}: {key:?}");
    };
    match bytes_max {
        Some(bytes_max) => {
            let mut next = first;
            while next <= last {
                let batches = reader.entries(key.0, key.1, next, last, bytes_max)?;
                for entry in batches.iter().flatten() {
                    check(entry);
                    next = entry.index().next();
                    read.entries += 1;
                }
            }
        }
        None => {
            for batch in reader.batches(key.0, key.1, first, last) {
                for entry in &batch? {
                    check(entry);
                    read.iterated += 1;
                }
            }
        }
    }
    assert_eq!(want.next(), None, "{what}: {key:?}: all of them");
    for (index, (term, _)) in &replica.entries {
        assert_eq!(reader.term(key.0, key.1, *index), Some(*term), "{what}");
        read.terms += 1;
    }
    // Of the one before the first the term is known where that was held once.
    let before = first.previous().unwrap_or(Index::ZERO);
    read.terms_before = u64::from(reader.term(key.0, key.1, before).is_some());
    assert_eq!(reader.term(key.0, key.1, last.next()), None, "{what}");
    Ok(read)
}
