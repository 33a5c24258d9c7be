//! One writer, group commit: gather, write, sync, complete.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_proto::{Batch, EntryId, GroupId, HardState, Index, ReplicaId, Term, TermRun, Time};

use crate::error::LogError;
use crate::index::{Key, LogReader, Run, add_run, add_terms};
use crate::record::{
    ENTRIES_ITEM_HEADER_BYTES, ENTRIES_ITEM_KIND, Item, RECORD_HEADER_BYTES, RecordHeader,
    RecordKind, payload_crc, put_item, put_item_header,
};
use crate::recovery;
use crate::vfs::{FileId, Op, OpId, Vfs, VfsError};

pub(crate) const SEGMENT_HEADER_BYTES: u64 = 512;

/// Settings of a lane.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// The lane's number.
    pub lane: u16,
    /// Size of a segment file. 64 KiB to 4 GiB, default 64 MiB.
    pub segment_size_bytes: u64,
    /// Size of a record. 16 KiB to 64 MiB and less than half a segment; default 8 MiB.
    pub record_bytes_max: usize,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            lane: 0,
            segment_size_bytes: 64 << 20,
            record_bytes_max: 8 << 20,
        }
    }
}

/// A snapshot the log knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its place.
    pub id: EntryId,
    /// The membership there, encoded.
    pub membership: Bytes,
}

/// All snapshots retained, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotsRecord {
    /// The snapshots.
    pub retained: Vec<SnapshotRecord>,
}

/// What one replica wants durable.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its number, one more each time.
    pub submission: u64,
    /// Term, vote and commit.
    pub hard_state: Option<HardState>,
    /// Entries; the first one's index overwrites from there.
    pub entries: Vec<Batch>,
    /// The snapshots retained.
    pub snapshots: Option<SnapshotsRecord>,
    /// The log starts anew behind this entry.
    pub restart_after: Option<EntryId>,
    /// Entries before this one may go.
    pub compact_before: Option<Index>,
    /// The replica is gone for ever.
    pub tombstone: bool,
}

impl Submission {
    /// An empty one.
    #[must_use]
    pub const fn new(group: GroupId, replica: ReplicaId, submission: u64) -> Self {
        Self {
            group,
            replica,
            submission,
            hard_state: None,
            entries: Vec::new(),
            snapshots: None,
            restart_after: None,
            compact_before: None,
            tombstone: false,
        }
    }
}

/// A submission that is durable, or will never be.
#[derive(Debug)]
pub struct Completion {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// The submission's number.
    pub submission: u64,
    /// How it ended.
    pub result: Result<(), LogError>,
}

/// What a poll leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Poll again.
    More,
    /// Nothing to do before `until`.
    Idle {
        /// The next deadline.
        until: Option<Time>,
    },
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Syncs done.
    pub fdatasyncs: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Segments that hold live records.
    pub live_segments: u64,
    /// Their bytes.
    pub live_segment_bytes: u64,
}

/// What a replica's records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// Term, vote and commit.
    pub hard_state: HardState,
    /// The first index.
    pub first: Index,
    /// The last entry.
    pub last: EntryId,
    /// The terms of `first - 1` to `last`.
    pub terms: Vec<TermRun>,
    /// Indexes of membership entries.
    pub membership_entries: Vec<Index>,
    /// Snapshots retained, oldest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// Whether it may be used.
    pub health: Health,
}

/// Whether a replica may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// It may.
    Sound,
    /// Records are lost that had been durable.
    Damaged(String),
    /// It was removed.
    Tombstone,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sound => f.write_str("sound"),
            Self::Damaged(what) => write!(f, "damaged: {what}; rebuild it under a new replica id"),
            Self::Tombstone => f.write_str("removed"),
        }
    }
}

/// What an open found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The replicas.
    pub replicas: BTreeMap<Key, ReplicaState>,
    /// What was amiss.
    pub report: RecoveryReport,
}

/// What was amiss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Bytes cut from the tail.
    pub torn_bytes: u64,
    /// Damage that was found.
    pub damaged: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) file: FileId,
    pub(crate) path: PathBuf,
    pub(crate) incarnation: u64,
}

struct InFlight {
    sync: OpId,
    write: OpId,
    lsn: u64,
    done: Vec<(Key, u64)>,
    failed: Option<VfsError>,
    runs: Vec<(Key, RunOrMark)>,
}

enum RunOrMark {
    Run(Run),
    Restart,
    Compact(Index),
}

/// The log's one writer.
pub struct Lane {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: LaneOptions,
    reader: LogReader,
    replicas: BTreeMap<Key, ReplicaState>,
    segments: VecDeque<Segment>,
    offset: u64,
    lsn: u64,
    synced_lsn: u64,
    gathered: Vec<Submission>,
    in_flight: Option<InFlight>,
    completions: Vec<Completion>,
    latched: Option<String>,
    stats: LaneStats,
}

impl Lane {
    /// Opens the lane below `data_dir`, or makes it.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn open(
        vfs: Arc<dyn Vfs>,
        data_dir: &Path,
        options: LaneOptions,
    ) -> Result<(Self, Recovery), LogError> {
        let dir = data_dir.join("log").join(options.lane.to_string());
        vfs.create_dir_all(&dir)?;
        for path in [&dir, &data_dir.join("log"), &data_dir.to_owned()] {
            vfs.sync_dir(path)?;
        }
        let reader = LogReader {
            vfs: Arc::clone(&vfs),
            tables: Arc::default(),
        };
        let found = recovery::recover(vfs.as_ref(), &dir, &options, &reader)?;
        let mut lane = Self {
            vfs,
            dir,
            options,
            reader,
            replicas: found.replicas.clone(),
            segments: found.segments.into(),
            offset: 0,
            lsn: found.last_lsn,
            synced_lsn: found.last_lsn,
            gathered: Vec::new(),
            in_flight: None,
            completions: Vec::new(),
            latched: None,
            stats: LaneStats::default(),
        };
        lane.rotate()?;
        let recovery = Recovery {
            replicas: found.replicas,
            report: found.report,
        };
        Ok((lane, recovery))
    }

    /// A handle for reading.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    /// Takes a submission; it becomes durable with the next write.
    ///
    /// # Errors
    ///
    /// [`LogError::Latched`].
    pub fn submit(&mut self, submission: Submission) -> Result<(), LogError> {
        if let Some(reason) = &self.latched {
            return Err(LogError::Latched(reason.clone()));
        }
        self.gathered.push(submission);
        Ok(())
    }

    /// Does the work at hand.
    pub fn poll(&mut self, now: Time) -> Progress {
        let mut progress = Progress::Idle { until: None };
        if self.in_flight.is_none() && !self.gathered.is_empty() && self.latched.is_none() {
            if let Err(error) = self.begin() {
                self.latch(&error.to_string());
            }
            progress = Progress::More;
        }
        for done in self.vfs.completions(now) {
            let Some(flight) = &mut self.in_flight else {
                continue;
            };
            if done.op != flight.write && done.op != flight.sync {
                continue;
            }
            if let Err(error) = done.result {
                flight.failed.get_or_insert(error);
            }
            if done.op == flight.sync {
                self.end();
            }
            progress = Progress::More;
        }
        progress
    }

    fn begin(&mut self) -> Result<(), LogError> {
        let bound = self.options.record_bytes_max;
        let mut parts: Vec<Bytes> = Vec::new();
        let mut head = BytesMut::new();
        let mut len = 0;
        let mut done = Vec::new();
        let mut runs = Vec::new();
        let mut taken = 0;
        for submission in &self.gathered {
            let size: usize = submission
                .entries
                .iter()
                .map(Batch::size_bytes)
                .sum::<usize>()
                + 512;
            if taken > 0 && len + size > bound {
                break;
            }
            taken += 1;
            let key = (submission.group, submission.replica);
            let before = head.len();
            let mut put = |item: &Item| put_item(&mut head, key.0, key.1, item);
            if let Some(id) = submission.restart_after {
                put(&Item::RestartAfter(id));
                runs.push((key, RunOrMark::Restart));
            }
            if let Some(hard_state) = submission.hard_state {
                put(&Item::HardState(hard_state));
            }
            if let Some(snapshots) = &submission.snapshots {
                put(&Item::Snapshots(snapshots.clone()));
            }
            if let Some(index) = submission.compact_before {
                put(&Item::CompactBefore(index));
                runs.push((key, RunOrMark::Compact(index)));
            }
            if submission.tombstone {
                put(&Item::Tombstone);
            }
            len += head.len() - before;
            for batch in &submission.entries {
                put_item_header(
                    &mut head,
                    ENTRIES_ITEM_KIND,
                    batch.size_bytes(),
                    key.0,
                    key.1,
                );
                len += ENTRIES_ITEM_HEADER_BYTES;
                runs.push((
                    key,
                    RunOrMark::Run(Run {
                        first: batch.first().index,
                        last: batch.last(),
                        segment: 0,
                        offset: u64::try_from(len).expect("a length fits"),
                        len: batch.size_bytes(),
                    }),
                ));
                if batch.size_bytes() < 16 << 10 {
                    head.extend_from_slice(batch.bytes());
                } else {
                    parts.push(head.split().freeze());
                    parts.push(batch.bytes().clone());
                }
                len += batch.size_bytes();
            }
            done.push((key, submission.submission));
        }
        let submissions: Vec<Submission> = self.gathered.drain(..taken).collect();
        parts.push(head.freeze());
        let total = u64::try_from(RECORD_HEADER_BYTES + len).expect("a length fits");
        if self.offset + total > self.options.segment_size_bytes {
            self.rotate()?;
        }
        let segment = self.segments.back().expect("there is always one");
        let (number, file) = (segment.number, segment.file);
        let payload_at = self.offset + u64::try_from(RECORD_HEADER_BYTES).expect("small");
        for (_, run) in &mut runs {
            if let RunOrMark::Run(run) = run {
                run.segment = number;
                run.offset += payload_at;
            }
        }
        for submission in &submissions {
            apply(&mut self.replicas, submission);
        }
        let buffers = self.frame(RecordKind::Data, parts, len);
        let write = self.vfs.submit(Op::Write {
            file,
            offset: self.offset,
            buffers,
        });
        let sync = self.vfs.submit(Op::Sync { file });
        self.offset += total;
        self.stats.written_bytes += total;
        self.in_flight = Some(InFlight {
            sync,
            write,
            lsn: self.lsn,
            done,
            failed: None,
            runs,
        });
        Ok(())
    }

    /// Puts the header before the parts; the record gets the next lsn.
    fn frame(&mut self, kind: RecordKind, parts: Vec<Bytes>, len: usize) -> Vec<Bytes> {
        let incarnation = self
            .segments
            .back()
            .expect("there is always one")
            .incarnation;
        self.lsn += 1;
        let header = RecordHeader {
            kind,
            len,
            lsn: self.lsn,
            synced_lsn: self.synced_lsn,
            payload_crc: payload_crc(incarnation, self.offset, &parts),
        };
        let mut buffers = vec![header.encode(self.options.lane, incarnation, self.offset)];
        buffers.extend(parts);
        buffers
    }

    fn end(&mut self) {
        let flight = self.in_flight.take().expect("one was under way");
        self.stats.fdatasyncs += 1;
        if let Some(error) = flight.failed {
            self.latch(&error.to_string());
            for ((group, replica), submission) in flight.done {
                let result = Err(LogError::Latched(error.to_string()));
                self.completions.push(Completion {
                    group,
                    replica,
                    submission,
                    result,
                });
            }
            return;
        }
        self.synced_lsn = flight.lsn;
        let mut may_collect = false;
        {
            let mut tables = self.reader.write();
            for (key, run) in flight.runs {
                let runs = tables.runs.entry(key).or_default();
                match run {
                    RunOrMark::Run(run) => add_run(runs, run),
                    RunOrMark::Restart => runs.clear(),
                    RunOrMark::Compact(index) => {
                        while runs.front().is_some_and(|run| run.last.index < index) {
                            runs.pop_front();
                        }
                        may_collect = true;
                    }
                }
            }
        }
        if may_collect {
            self.collect();
        }
        for ((group, replica), submission) in flight.done {
            let result = Ok(());
            self.completions.push(Completion {
                group,
                replica,
                submission,
                result,
            });
        }
    }

    fn latch(&mut self, reason: &str) {
        self.latched.get_or_insert_with(|| reason.to_owned());
        for submission in self.gathered.drain(..) {
            self.completions.push(Completion {
                group: submission.group,
                replica: submission.replica,
                submission: submission.submission,
                result: Err(LogError::Latched(reason.to_owned())),
            });
        }
    }

    /// Drops segments that no replica's entries lie in.
    fn collect(&mut self) {
        let needed = {
            let tables = self.reader.read();
            tables
                .runs
                .values()
                .filter_map(|runs| Some(runs.front()?.segment))
                .min()
        };
        let active = self.segments.back().expect("there is always one").number;
        let needed = needed.unwrap_or(active);
        while self.segments.len() > 1 && self.segments[0].number < needed {
            let segment = self.segments.pop_front().expect("it was just seen");
            self.reader.write().files.remove(&segment.number);
            self.vfs.close(segment.file);
            // One after the other: were an older one to outlive a newer, recovery would find a
            // hole between them.
            let removed = self
                .vfs
                .remove_file(&segment.path)
                .and_then(|()| self.vfs.sync_dir(&self.dir));
            if removed.is_err() {
                // A dead segment that stays costs space, nothing else; the rest goes with the
                // next open.
                break;
            }
        }
    }

    /// Starts a new segment with all replicas' state.
    fn rotate(&mut self) -> Result<(), LogError> {
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let segment = recovery::create(
            self.vfs.as_ref(),
            &self.dir,
            number,
            self.lsn,
            self.options.segment_size_bytes,
        )?;
        self.reader.write().files.insert(number, segment.file);
        let file = segment.file;
        self.segments.push_back(segment);
        self.offset = SEGMENT_HEADER_BYTES;
        let mut payload = BytesMut::new();
        for (&(group, replica), state) in &self.replicas {
            let term_before = state.terms.first().map_or(Term::ZERO, |run| run.term);
            let start = Item::Start {
                first: state.first,
                term_before,
                last: state.last,
            };
            put_item(&mut payload, group, replica, &start);
            put_item(
                &mut payload,
                group,
                replica,
                &Item::HardState(state.hard_state),
            );
            let retained = state.snapshots.clone();
            put_item(
                &mut payload,
                group,
                replica,
                &Item::Snapshots(SnapshotsRecord { retained }),
            );
            if state.health == Health::Tombstone {
                put_item(&mut payload, group, replica, &Item::Tombstone);
            }
        }
        let len = payload.len();
        let buffers = self.frame(RecordKind::Checkpoint, vec![payload.freeze()], len);
        for buffer in buffers {
            self.vfs.write(file, self.offset, &buffer)?;
            self.offset += u64::try_from(buffer.len()).expect("a length fits");
        }
        self.vfs.sync(file)?;
        self.synced_lsn = self.lsn;
        Ok(())
    }

    /// Takes what has ended since the last call.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.completions)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LaneStats {
        let live = u64::try_from(self.segments.len()).unwrap_or(u64::MAX);
        LaneStats {
            live_segments: live,
            live_segment_bytes: live * self.options.segment_size_bytes,
            ..self.stats
        }
    }

    /// Writes what is gathered and ends.
    ///
    /// # Errors
    ///
    /// [`LogError`].
    pub fn close(mut self) -> Result<(), LogError> {
        while self.latched.is_none() && (self.in_flight.is_some() || !self.gathered.is_empty()) {
            self.poll(Time(u64::MAX));
        }
        self.latched
            .take()
            .map_or(Ok(()), |reason| Err(LogError::Latched(reason)))
    }
}

/// What a submission does to a replica's state.
pub(crate) fn apply(replicas: &mut BTreeMap<Key, ReplicaState>, submission: &Submission) {
    let key = (submission.group, submission.replica);
    let state = replicas.entry(key).or_insert_with(empty);
    if let Some(id) = submission.restart_after {
        state.restart_after(id);
    }
    if let Some(hard_state) = submission.hard_state {
        state.hard_state = hard_state;
    }
    if let Some(snapshots) = &submission.snapshots {
        state.snapshots.clone_from(&snapshots.retained);
    }
    for batch in &submission.entries {
        state.append(batch);
    }
    if let Some(index) = submission.compact_before {
        state.compact_before(index);
    }
    if submission.tombstone {
        state.health = Health::Tombstone;
    }
}

pub(crate) fn empty() -> ReplicaState {
    ReplicaState {
        hard_state: HardState::default(),
        first: Index::new(1),
        last: EntryId::ZERO,
        terms: vec![TermRun {
            first: Index::ZERO,
            term: Term::ZERO,
        }],
        membership_entries: Vec::new(),
        snapshots: Vec::new(),
        health: Health::Sound,
    }
}

impl ReplicaState {
    pub(crate) fn restart_after(&mut self, id: EntryId) {
        self.first = id.index.next();
        self.last = id;
        self.terms = vec![TermRun {
            first: id.index,
            term: id.term,
        }];
        self.membership_entries.clear();
    }

    pub(crate) fn append(&mut self, batch: &Batch) {
        self.membership_entries
            .retain(|&index| index < batch.first().index);
        add_terms(&mut self.terms, batch);
        for entry in batch {
            if entry.kind().is_membership() {
                self.membership_entries.push(entry.index());
            }
        }
        self.last = batch.last();
    }

    pub(crate) fn compact_before(&mut self, index: Index) {
        if index <= self.first {
            return;
        }
        self.first = index;
        let before = index.previous().unwrap_or_default();
        while self.terms.len() > 1 && self.terms[1].first <= before {
            self.terms.remove(0);
        }
        self.membership_entries.retain(|&entry| entry >= index);
    }
}
