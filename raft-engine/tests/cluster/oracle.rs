//! What clients were told, to be held against what the cluster knows in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use raft_engine::{Applied, Completion, RequestError};
use raft_proto::{GroupId, Index};

/// What became of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Durable on a majority and applied, at this index.
    Acknowledged(Index),
    /// Said to have no effect, ever.
    Refused,
    /// May have happened.
    Unknown,
}

/// The book of all writes of a run.
#[derive(Debug, Default)]
pub struct Book {
    fates: BTreeMap<u64, (GroupId, Fate)>,
    pub acknowledged: u64,
    pub snapshots: u64,
}

impl Book {
    pub fn open(&mut self, number: u64, group: GroupId) {
        self.fates.insert(number, (group, Fate::Unknown));
    }

    fn settle(&mut self, number: u64, fate: Fate) {
        if matches!(fate, Fate::Acknowledged(_)) {
            self.acknowledged += 1;
        }
        let entry = self
            .fates
            .get_mut(&number)
            .expect("only writes in the book settle");
        entry.1 = fate;
    }

    /// The numbers acknowledged so far for `group`: a read that starts now must see them.
    pub fn acknowledged_of(&self, group: GroupId) -> BTreeSet<u64> {
        self.fates
            .iter()
            .filter(|(_, (of, fate))| *of == group && matches!(fate, Fate::Acknowledged(_)))
            .map(|(&number, _)| number)
            .collect()
    }

    /// Holds the final list of a group against the book.
    pub fn check(&self, group: GroupId, list: &[u64]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut seen = BTreeSet::new();
        for &number in list {
            if !seen.insert(number) {
                wrong.push(format!("group {group}: write {number} was applied twice"));
            }
            match self.fates.get(&number) {
                None => wrong.push(format!("group {group}: write {number} was never made")),
                Some((of, _)) if *of != group => {
                    wrong.push(format!("group {group}: write {number} is of group {of}"));
                }
                Some((_, Fate::Refused)) => {
                    wrong.push(format!("group {group}: refused write {number} was applied"));
                }
                Some(_) => {}
            }
        }
        for number in self.acknowledged_of(group).difference(&seen) {
            wrong.push(format!(
                "group {group}: acknowledged write {number} is lost"
            ));
        }
        wrong
    }
}

/// A write's completion.
pub struct WriteSlot {
    pub number: u64,
    pub book: Arc<Mutex<Book>>,
}

impl Completion<Applied> for WriteSlot {
    fn complete(&self, outcome: Result<Applied, RequestError>) {
        let fate = match outcome {
            Ok(applied) => Fate::Acknowledged(applied.index),
            Err(
                RequestError::NotLeader { .. }
                | RequestError::Busy { .. }
                | RequestError::Superseded
                | RequestError::UnknownGroup(_),
            ) => Fate::Refused,
            Err(_) => Fate::Unknown,
        };
        self.book
            .lock()
            .expect("no test panics under this lock")
            .settle(self.number, fate);
    }
}

/// Any other completion: the outcome is kept.
pub struct Slot<T>(pub Mutex<Option<Result<T, RequestError>>>);

impl<T> Slot<T> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    pub fn take(&self) -> Option<Result<T, RequestError>> {
        self.0
            .lock()
            .expect("no test panics under this lock")
            .take()
    }
}

impl<T: Send> Completion<T> for Slot<T> {
    fn complete(&self, outcome: Result<T, RequestError>) {
        *self.0.lock().expect("no test panics under this lock") = Some(outcome);
    }
}
