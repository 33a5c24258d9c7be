//! Submissions drawn from a seed, the model they are held against, and a lane driven in simulated
//! time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{
    Completion, Health, Lane, LaneOptions, LogError, LogReader, Progress, Recovery, ReplicaState,
    SnapshotRecord, SnapshotsRecord, Submission,
};
use raft_proto::{
    Batch, BatchBuilder, EntryId, EntryKind, GroupId, HardState, Index, ReplicaId, Term, Time,
};

pub type Key = (GroupId, ReplicaId);

pub const DATA: &str = "/data";

pub fn key(group: u64) -> Key {
    life(group, 0)
}

/// The replica of a group that comes after so many that are gone.
fn life(group: u64, before: u64) -> Key {
    let replica = ReplicaId::new(group * 10 + before).expect("not 0");
    (GroupId::new(group).expect("not 0"), replica)
}

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A replica as it ought to be.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ModelReplica {
    pub hard_state: HardState,
    pub first: Index,
    pub last: EntryId,
    pub entries: BTreeMap<Index, (Term, Bytes)>,
    pub snapshots: Vec<SnapshotRecord>,
    pub membership_entries: Vec<Index>,
    pub is_gone: bool,
}

/// All replicas as they ought to be after a number of submissions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub replicas: BTreeMap<Key, ModelReplica>,
}

/// On a line, the entries by term and length alone.
impl std::fmt::Debug for ModelReplica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.entries.iter();
        let entries: Vec<String> = entries
            .map(|(index, (term, payload))| format!("{index}@{term}:{}", payload.len()))
            .collect();
        let snapshots: Vec<EntryId> = self.snapshots.iter().map(|it| it.id).collect();
        let (first, last, state) = (self.first, self.last, self.hard_state);
        write!(
            f,
            "gone {} first {first} last {last} {state:?} snapshots {snapshots:?} memberships {:?} \
             entries {entries:?}",
            self.is_gone, self.membership_entries,
        )
    }
}

impl ModelReplica {
    /// One of which nothing is known.
    pub fn blank() -> Self {
        Self {
            first: Index::new(1),
            ..Self::default()
        }
    }

    pub fn apply(&mut self, submission: &Submission) {
        self.begin(submission);
        for batch in &submission.entries {
            self.append(batch);
        }
        self.end(submission);
    }

    /// What a crash may leave of a submission that takes several records, but for all or nothing of
    /// it: term and vote come first, then the batches, the commit index last.
    pub fn parts(&self, submission: &Submission) -> Vec<Self> {
        let mut part = self.clone();
        let commit = self.hard_state.commit;
        part.begin(submission);
        part.hard_state.commit = commit.min(part.hard_state.commit);
        let mut parts = vec![part.clone()];
        for batch in &submission.entries {
            part.append(batch);
            parts.push(part.clone());
        }
        parts
    }

    fn begin(&mut self, submission: &Submission) {
        if let Some(id) = submission.restart_after {
            self.entries.clear();
            self.membership_entries.clear();
            self.first = id.index.next();
            self.last = id;
        }
        if let Some(hard_state) = submission.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(snapshots) = &submission.snapshots {
            self.snapshots.clone_from(&snapshots.retained);
        }
    }

    fn append(&mut self, batch: &Batch) {
        let first = batch.first().index;
        self.entries.split_off(&first);
        self.membership_entries.retain(|&index| index < first);
        for entry in batch {
            let payload = Bytes::copy_from_slice(entry.payload());
            self.entries.insert(entry.index(), (entry.term(), payload));
            if entry.kind().is_membership() {
                self.membership_entries.push(entry.index());
            }
        }
        self.last = batch.last();
    }

    fn end(&mut self, submission: &Submission) {
        if let Some(index) = submission.compact_before {
            self.compact(index);
        }
        if submission.tombstone {
            self.is_gone = true;
            self.entries.clear();
        }
    }

    pub fn compact(&mut self, before: Index) {
        self.first = self.first.max(before);
        self.entries = self.entries.split_off(&self.first);
        self.membership_entries.retain(|&entry| entry >= self.first);
    }

    pub fn term_and_vote(&self) -> (Term, Option<ReplicaId>) {
        (self.hard_state.term, self.hard_state.vote)
    }
}

impl Model {
    pub fn apply(&mut self, submission: &Submission) {
        let key = (submission.group, submission.replica);
        let replica = self.replicas.entry(key);
        replica
            .or_insert_with(ModelReplica::blank)
            .apply(submission);
    }
}

/// Whether a submission may be over the bound of a record, and take several.
pub fn is_split(submission: &Submission, options: &LaneOptions) -> bool {
    let beside = 512 + submission.entries.len() * 128;
    submission.entries_bytes() + beside > options.record_bytes_max
}

/// Draws submissions that make sense.
#[derive(Clone, Debug)]
pub struct Workload {
    pub rng: Rng,
    pub groups: u64,
    /// Bytes of a command, at most.
    pub payload_max: u64,
    /// The state after all submissions drawn.
    pub model: Model,
    numbers: BTreeMap<Key, u64>,
    pub has_tombstones: bool,
    /// Some submissions are larger than a record.
    pub has_split: bool,
    /// The first group appends a little, overwrites some of it, and compacts even less; the others
    /// keep next to nothing.
    pub has_laggard: bool,
}

impl Workload {
    pub fn new(seed: u64, groups: u64, payload_max: u64) -> Self {
        Self {
            rng: Rng(seed),
            groups,
            payload_max,
            model: Model::default(),
            numbers: BTreeMap::new(),
            has_tombstones: false,
            has_split: false,
            has_laggard: false,
        }
    }

    /// Goes on from what a recovery found. Who is gone stays so, though the log forgets its name.
    pub fn resume(&mut self, mut model: Model) {
        let known = std::mem::take(&mut self.model).replicas.into_iter();
        for (key, replica) in known.filter(|(_, replica)| replica.is_gone) {
            model.replicas.entry(key).or_insert(replica);
        }
        self.model = model;
    }

    /// The replica of a group: a new one when the last is gone.
    fn living(&self, group: u64) -> Key {
        let is_gone = |key: &Key| self.model.replicas.get(key).is_some_and(|it| it.is_gone);
        let mut lives = (0..).map(|before| life(group, before));
        lives.find(|key| !is_gone(key)).expect("there are many")
    }

    /// Submissions that leave much garbage and a few live entries in each segment.
    fn draw_turnover(&mut self) -> Submission {
        let is_laggard = self.rng.one_in(6);
        let group = if is_laggard {
            1
        } else {
            2 + self.rng.below(self.groups - 1)
        };
        let key = self.living(group);
        let replica = self.model.replicas.get(&key).cloned().unwrap_or_default();
        let number = self.numbers.entry(key).or_default();
        *number += 1;
        let mut submission = Submission::new(key.0, key.1, *number);
        let mut hard_state = replica.hard_state;
        let payload_max = self.payload_max;
        if is_laggard {
            self.payload_max = payload_max.min(200);
        }
        let mut from = replica.last.index.next();
        if is_laggard && self.rng.one_in(4) {
            // Another leader's, over what may be moved just then.
            hard_state.term = hard_state.term.next();
            hard_state.vote = None;
            let first = replica.first.max(hard_state.commit.next());
            let span = from.distance_from(first);
            from = first.plus(span - self.rng.below(span.min(12) + 1));
        }
        self.append(&mut submission, from, &mut hard_state);
        self.payload_max = payload_max;
        if !is_laggard {
            hard_state.commit = replica.last.index;
            submission.compact_before = Some(replica.last.index.next());
        } else if self.rng.one_in(8) && replica.first < from {
            hard_state.commit = hard_state.commit.max(replica.first);
            submission.compact_before = Some(replica.first.next());
        }
        submission.hard_state = Some(hard_state);
        self.model.apply(&submission);
        submission
    }

    pub fn draw(&mut self) -> Submission {
        if self.has_laggard {
            return self.draw_turnover();
        }
        let group = 1 + self.rng.below(self.groups);
        let key = self.living(group);
        let replica = self.model.replicas.get(&key).cloned();
        let replica = replica.unwrap_or_else(ModelReplica::blank);
        let number = self.numbers.entry(key).or_default();
        *number += 1;
        let mut submission = Submission::new(key.0, key.1, *number);
        let mut hard_state = replica.hard_state;
        let last = replica.last;
        match self.rng.below(20) {
            0..=8 => self.append(&mut submission, last.index.next(), &mut hard_state),
            9..=10 => {
                // Another leader overwrites what is not committed.
                hard_state.term = hard_state.term.next();
                hard_state.vote = None;
                let snapshot = replica.snapshots.last().map(|snapshot| snapshot.id.index);
                let committed = hard_state.commit.max(snapshot.unwrap_or_default());
                let lowest = replica.first.max(committed.next());
                let span = last.index.next().distance_from(lowest);
                let from = lowest.plus(self.rng.below(span + 1));
                self.append(&mut submission, from, &mut hard_state);
            }
            11..=13 => {
                hard_state.term = hard_state.term.next();
                hard_state.vote = ReplicaId::new(1 + self.rng.below(3));
            }
            14..=16 => {
                let ahead = last.index.distance_from(hard_state.commit);
                hard_state.commit = hard_state.commit.plus(self.rng.below(ahead + 1));
                let held = replica.entries.get(&hard_state.commit);
                if let Some((term, _)) = held {
                    let id = EntryId::new(*term, hard_state.commit);
                    submission.snapshots = Some(snapshots(id));
                    let back = self.rng.below(4);
                    let before = hard_state.commit.get().saturating_sub(back) + 1;
                    submission.compact_before = Some(Index::new(before).max(replica.first));
                }
            }
            17 => {
                // A received snapshot.
                hard_state.term = hard_state.term.next();
                hard_state.vote = None;
                let id = EntryId::new(hard_state.term, last.index.plus(1 + self.rng.below(5)));
                hard_state.commit = id.index;
                submission.restart_after = Some(id);
                submission.snapshots = Some(snapshots(id));
            }
            18 if self.has_tombstones && self.rng.one_in(2) => submission.tombstone = true,
            19 if self.has_split => {
                let mut from = last.index.next();
                for _ in 0..2 + self.rng.below(6) {
                    self.append(&mut submission, from, &mut hard_state);
                    let last = submission.entries.last().expect("just appended").last();
                    hard_state.commit = last.index;
                    from = last.index.next();
                }
            }
            _ => {
                self.append(&mut submission, last.index.next(), &mut hard_state);
                let from = submission.entries[0].last().index.next();
                self.append(&mut submission, from, &mut hard_state);
            }
        }
        if hard_state != replica.hard_state {
            submission.hard_state = Some(hard_state);
        }
        self.model.apply(&submission);
        submission
    }

    fn append(&mut self, submission: &mut Submission, from: Index, hard_state: &mut HardState) {
        if hard_state.term == Term::ZERO {
            hard_state.term = Term::new(1);
        }
        let count = 1 + self.rng.below(3);
        let batch = batch(
            &mut self.rng,
            submission.group,
            hard_state.term,
            from,
            count,
            self.payload_max,
        );
        submission.entries.push(batch);
    }
}

pub fn batch(
    rng: &mut Rng,
    group: GroupId,
    term: Term,
    from: Index,
    count: u64,
    payload_max: u64,
) -> Batch {
    let mut builder = BatchBuilder::new(group, term, from, 0);
    for _ in 0..count {
        let len = usize::try_from(rng.below(payload_max + 1)).expect("small");
        let payload: Vec<u8> = (0..len).map(|_| rng.next().to_le_bytes()[0]).collect();
        let kind = if rng.one_in(8) {
            EntryKind::Membership
        } else {
            EntryKind::Command
        };
        builder.push(kind, 1, None, &payload);
    }
    builder.finish().expect("at least one entry")
}

fn snapshots(id: EntryId) -> SnapshotsRecord {
    SnapshotsRecord {
        retained: vec![SnapshotRecord {
            id,
            membership: Bytes::from_static(b"who belongs to it"),
        }],
    }
}

pub fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        tail_cache_bytes_max: 0,
        identity: Some(7),
        ..LaneOptions::default()
    }
}

pub fn disk(seed: u64) -> Arc<SimVfs> {
    let vfs = SimVfs::new(seed);
    vfs.create_dir_all(DATA.as_ref()).expect("an empty disk");
    vfs.sync_dir("/".as_ref()).expect("it syncs");
    Arc::new(vfs)
}

pub fn open(vfs: &Arc<SimVfs>, options: &LaneOptions) -> Result<(Lane, Recovery), LogError> {
    let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(vfs);
    Lane::open(vfs, Path::new(DATA), options.clone())
}

/// A lane in simulated time.
pub struct Driven {
    pub vfs: Arc<SimVfs>,
    pub lane: Lane,
    pub now: Time,
}

impl Driven {
    pub fn open(vfs: &Arc<SimVfs>, options: &LaneOptions) -> (Self, Recovery) {
        let (lane, recovery) = open(vfs, options).expect("it opens");
        let driven = Self {
            vfs: Arc::clone(vfs),
            lane,
            now: Time(0),
        };
        (driven, recovery)
    }

    /// One poll, and on to the next moment at which something happens. Returns whether there is
    /// one.
    pub fn step(&mut self) -> bool {
        match self.lane.poll(self.now) {
            Progress::More => true,
            Progress::Idle { until } => {
                let next = [until, self.vfs.next_completion_time()];
                let Some(next) = next.into_iter().flatten().min() else {
                    return false;
                };
                self.now = self.now.max(next);
                self.vfs.set_now(self.now);
                true
            }
        }
    }

    /// Lets a span pass. Returns how often the lane was polled.
    ///
    /// # Panics
    ///
    /// If it spins.
    pub fn pass(&mut self, nanos: u64) -> u64 {
        let end = self.now.plus_nanos(nanos);
        let mut polls = 0;
        while self.now < end {
            polls += 1;
            assert!(polls < 1_000_000, "it spins");
            match self.lane.poll(self.now) {
                Progress::More => {}
                Progress::Idle { until } => {
                    let next = [until, self.vfs.next_completion_time(), Some(end)];
                    let next = next.into_iter().flatten().min().unwrap_or(end);
                    self.now = Time(self.now.0 + 1).max(next).min(end);
                    self.vfs.set_now(self.now);
                }
            }
        }
        polls
    }

    /// Until all that was submitted has completed.
    pub fn settle(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        let deadline = self.now.plus_nanos(50_000_000);
        while self.now < deadline && self.step() {
            done.append(&mut self.lane.take_completions());
            if self.lane.pending_bytes() == 0 && self.vfs.next_completion_time().is_none() {
                break;
            }
        }
        done.append(&mut self.lane.take_completions());
        done
    }

    /// Submits and waits; what was submitted must succeed.
    pub fn write(&mut self, submission: Submission) {
        self.lane.submit(submission).expect("it is taken");
        for done in self.settle() {
            done.result.expect("it is durable");
        }
    }
}

/// What the log says of a replica, in the model's words.
pub fn seen(reader: &LogReader, key: Key, state: &ReplicaState) -> Result<ModelReplica, LogError> {
    let mut replica = ModelReplica {
        hard_state: state.hard_state,
        first: state.first,
        last: state.last,
        entries: BTreeMap::new(),
        snapshots: state.snapshots.clone(),
        membership_entries: state.membership_entries.clone(),
        is_gone: state.health == Health::Tombstone,
    };
    if state.first <= state.last.index && !replica.is_gone {
        let (first, last) = (state.first, state.last.index);
        let mut next = first;
        while next <= last {
            for batch in reader.entries(key.0, key.1, next, last, usize::MAX)? {
                for entry in &batch {
                    assert_eq!(state.term_at(entry.index()), Some(entry.term()));
                    let payload = Bytes::copy_from_slice(entry.payload());
                    replica
                        .entries
                        .insert(entry.index(), (entry.term(), payload));
                }
                next = batch.last().index.next();
            }
        }
    }
    Ok(replica)
}

/// All sound replicas.
pub fn seen_all(lane: &Lane, recovery: &Recovery) -> Result<Model, LogError> {
    let reader = lane.reader();
    let mut model = Model::default();
    for (key, state) in &recovery.replicas {
        model.replicas.insert(*key, seen(&reader, *key, state)?);
    }
    Ok(model)
}

/// Whether a recovered state is what `model` says, votes aside. Replicas that only the vote file
/// knows are none.
pub fn agrees(found: &Model, model: &Model) -> bool {
    let mut keys: Vec<&Key> = found.replicas.keys().chain(model.replicas.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let blank = ModelReplica::blank();
    keys.into_iter().all(|key| {
        let model = model.replicas.get(key).unwrap_or(&blank);
        replica_agrees(found.replicas.get(key), model)
    })
}

/// The same of one replica; `None` if the log does not know it.
pub fn replica_agrees(found: Option<&ModelReplica>, model: &ModelReplica) -> bool {
    let blank = ModelReplica::blank();
    // The name of one that is gone is forgotten some time.
    let is_unknown = found.is_none();
    let found = found.unwrap_or(&blank);
    if model.is_gone || found.is_gone {
        return model.is_gone && (found.is_gone || is_unknown);
    }
    found.first == model.first
        && found.last == model.last
        && found.hard_state.commit == model.hard_state.commit
        && found.entries == model.entries
        && found.snapshots == model.snapshots
        && found.membership_entries == model.membership_entries
}
