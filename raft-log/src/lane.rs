//! One writer, group commit: gather, write, sync, complete.
//!
//! ```text
//! submit ──▶ staging ──▶ queue ──▶ write k ──▶ sync k ──▶ tables ──▶ completions
//!            (k+1 is gathered while k is on its way)
//! ```
//!
//! With [`StdVfs`](crate::vfs::StdVfs) write and sync run on the thread that drives the lane. It
//! polls in two halves: between [`Lane::poll_begin`] and [`Lane::poll_end`] the disk works and does
//! not need the lane, so that others may have it meanwhile and submit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_proto::{HardState, Index, Time};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::hard_state::VoteFile;
use crate::identity;
use crate::index::Tables;
use crate::item::{Item, Key};
use crate::owners::Lately;
use crate::pool::{Made, Pool};
use crate::read::{LogReader, Shared, lane_dir, lock_path};
use crate::record::RecordKind;
use crate::recovery::{self, Recovery};
use crate::staging::{Change, Staging};
use crate::state::{Completion, Submission};
use held::HeldFor;

use crate::vfs::{FileId, FileLock, OpDone, OpId, Vfs, VfsError, Waker};

mod apart;
mod collect;
mod commit;
mod fits;
mod held;
#[cfg(all(test, loom))]
mod interleavings;
mod scrub;
mod seal;

pub(crate) use commit::RELEASE_BYTES;
pub(crate) use scrub::DEFAULT_BYTES_PER_S;
pub use scrub::ScrubStatus;

/// What a poll leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Poll again.
    More,
    /// Nothing to do before `until`, or before something is submitted.
    Idle {
        /// The next deadline.
        until: Option<Time>,
    },
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStats {
    /// Syncs done, of segments and of the vote file; preparing segments aside.
    pub fdatasyncs: u64,
    /// Bytes written, of records and votes.
    pub written_bytes: u64,
    /// Records written.
    pub records: u64,
    /// Segments that were filled and got their footer.
    pub sealed_segments: u64,
    /// Segments that hold live entries, and the active one.
    pub live_segments: u64,
    /// Their bytes.
    pub live_segment_bytes: u64,
    /// Segments that could not be recycled because bytes of them were still held.
    pub held_segments: u64,
    /// Bytes of laggards' entries moved, with what records say of them.
    pub moved_bytes: u64,
    /// Segments that they were moved to, and that hold nothing else.
    pub segments_apart: u64,
    /// Whether the disk is full: entries are refused.
    pub is_full: bool,
    /// Submissions encoded: those durable, on their way, and gathered for the next record.
    pub encoded: u64,
}

/// What is on its way to the disk, between the halves of a poll.
#[must_use = "the lane waits for it"]
#[derive(Debug)]
pub struct AtDisk {
    vfs: Arc<dyn Vfs>,
    now: Time,
    is_busy: bool,
}

impl AtDisk {
    /// Does what was begun: with [`StdVfs`](crate::vfs::StdVfs) it waits for the disk.
    pub fn wait(self) -> FromDisk {
        let Self { vfs, now, is_busy } = self;
        let done = vfs.completions(now);
        FromDisk { done, is_busy }
    }
}

/// What became of it.
#[must_use = "the lane waits for it"]
#[derive(Debug)]
pub struct FromDisk {
    done: Vec<OpDone>,
    is_busy: bool,
}

/// The segment that is written.
#[derive(Debug)]
pub(crate) struct Active {
    /// 0 if there is none yet.
    pub(crate) number: u64,
    pub(crate) file: FileId,
    pub(crate) len: u64,
    pub(crate) incarnation: u64,
    pub(crate) offset: u64,
    /// Nothing is appended any more; the next record opens a new segment.
    pub(crate) is_sealed: bool,
    /// The replicas with entries here, and the lowest index appended, moved entries aside.
    pub(crate) touched: FxHashMap<Key, Option<Index>>,
    /// Batches here, at most: what a footer may have to list.
    pub(crate) runs: usize,
    pub(crate) moved_runs: usize,
}

impl Active {
    /// There is none: the next record opens the segment behind `number`.
    pub(crate) fn none(number: u64) -> Self {
        Self {
            number,
            file: FileId(0),
            len: 0,
            incarnation: 0,
            offset: 0,
            is_sealed: true,
            touched: FxHashMap::default(),
            runs: 0,
            moved_runs: 0,
        }
    }
}

/// What is on its way to the disk.
struct Flight {
    ops: Vec<OpId>,
    syncs: u64,
    failed: Option<VfsError>,
    last_lsn: u64,
    votes_first: Vec<usize>,
    votes_second: Vec<usize>,
    kind: FlightKind,
}

enum FlightKind {
    Record {
        kind: RecordKind,
        staging: Box<Staging>,
        data_at: u64,
    },
    Seal(Vec<seal::SealedReplica>),
    /// A piece of what is moved, to a segment apart.
    Apart,
    SealApart(Vec<seal::SealedReplica>),
}

/// The log's one writer: a value that whoever owns it drives by [`Lane::poll`], on a thread that
/// may wait for the disk, or step by step under simulation.
///
/// Nothing is acknowledged before it is durable, and completions of one replica come in the order
/// of its submissions. A failed write or sync is final: the lane latches, completes nothing more
/// with success, and what was acknowledged stays readable.
///
/// The gathered bytes are not bounded here: whoever submits bounds what it has in flight, by
/// [`Lane::pending_bytes`] or otherwise.
pub struct Lane {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    options: LaneOptions,
    shared: Arc<Shared>,
    active: Active,
    pool: Pool,
    votes: VoteFile,
    lsn: u64,
    synced_lsn: u64,
    lately: Lately,
    /// The last record whose durability a later one states, or that states it itself.
    watermark_lsn: u64,
    staging: Staging,
    queue: VecDeque<Staging>,
    queue_bytes: usize,
    /// New replicas for which the vote file has no place.
    no_slot: held::Held,
    /// Entries for which a full disk has no segment.
    no_room: held::Held,
    /// The log has votes of the vote file's first half only when the next record is durable.
    is_second_half_late: bool,
    /// The next segment could not be made, for want of space or of anything else: entries wait for it.
    lacks_segment: bool,
    /// Why the next segment, or a larger vote file, could not be made when it was tried last.
    lacking: Option<VfsError>,
    /// What cannot be made will not be: the end, when nothing is on its way any more.
    doomed: Option<String>,
    /// For want of space the next segment, or a larger vote file, could not be made.
    is_pool_full: bool,
    is_votes_full: bool,
    flight: Option<Flight>,
    /// Dead segments whose release is not recorded yet.
    to_release: Vec<u64>,
    /// Dead segments, recorded or about to be.
    releasing: BTreeSet<u64>,
    completions: Vec<Completion>,
    latched: Option<String>,
    stats: LaneStats,
    now: Time,
    last_record_at: Time,
    /// Not before, the vote file is tried to be made larger.
    votes_grow_at: Time,
    moves: collect::Moves,
    /// The segment apart that is being filled.
    apart: Option<apart::Apart>,
    /// What the active segment's checkpoint takes.
    checkpoint_len: u64,
    /// What one took when a segment was asked for.
    checkpoint_asked: usize,
    is_closing: bool,
    /// Segments with an entry that cannot be moved, which is said: not tried before that one is gone.
    unmovable: BTreeMap<u64, (Key, Index)>,
    scrub: scrub::Scrub,
    /// Of whoever has submitted something since the open.
    extents: FxHashMap<Key, fits::Extent>,
    /// Whose tombstones are submitted, and not durable yet.
    buried: FxHashSet<Key>,
    waker: Option<Arc<Waker>>,
    /// Whoever drives the lane is told when a segment on its way is there.
    is_woken: bool,
    /// Held for as long as the lane lives.
    _lock: FileLock,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("dir", &self.dir)
            .field("segment", &self.active.number)
            .field("lsn", &self.lsn)
            .field("latched", &self.latched)
            .finish_non_exhaustive()
    }
}

/// Makes the lane's directory, and its name durable, and that of each directory above it: any of
/// them may have been made just now, or by an open that came no further.
fn make_dirs(vfs: &dyn Vfs, data_dir: &Path, dir: &Path) -> Result<(), LogError> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    vfs.create_dir_all(dir)?;
    for path in [dir, &data_dir.join("log"), data_dir] {
        vfs.sync_dir(path)?;
    }
    for above in data_dir.ancestors().skip(1) {
        let is_here = above == Path::new("");
        let above = if is_here { Path::new(".") } else { above };
        match vfs
            .sync_dir(above)
            .map_err(|error| (error.source.kind(), error))
        {
            Ok(()) => {}
            // Nobody has made anything in it.
            Err((PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported, _)) => {}
            Err((_, error)) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Drop for Lane {
    /// Whoever opens the lane next finds no file that is still made, renamed or removed.
    fn drop(&mut self) {
        if let Some(apart) = self.apart.take() {
            self.vfs.close(apart.file());
        }
        if self.pool.is_busy() {
            self.vfs.wait_for_all();
        }
    }
}

impl Lane {
    /// Opens the lane below `data_dir`, or makes it: finds what is durable, cuts off a torn tail,
    /// reports damage, and ends with a synced watermark record. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`LogError::Config`], [`LogError::Io`], [`LogError::NeedsVersion`], [`LogError::Foreign`];
    /// [`LogError::InUse`] while another has the lane open. Damage is none: it is reported, and the
    /// other replicas open.
    pub fn open(
        vfs: Arc<dyn Vfs>,
        data_dir: &Path,
        mut options: LaneOptions,
    ) -> Result<(Self, Recovery), LogError> {
        options.check()?;
        let dir = lane_dir(data_dir, options.lane);
        make_dirs(vfs.as_ref(), data_dir, &dir)?;
        let lock_path = lock_path(data_dir, options.lane);
        let lock = vfs.lock(&lock_path, false)?;
        let lock = lock.ok_or(LogError::InUse { path: lock_path })?;
        if options.identity.is_none() {
            let found = identity::of_files(vfs.as_ref(), data_dir, options.lane)?;
            options.identity = Some(found.map_or_else(|| vfs.random(), Ok)?);
        }
        let analysis = recovery::analyse(&vfs, data_dir, &options)?;
        let recovered = recovery::mend(&vfs, data_dir, &options, analysis)?;
        let shared = Arc::new(Shared::new(Arc::clone(&vfs), &options, recovered.tables));
        let scrub = scrub::Scrub::new(options.scrub_bytes_per_s);
        let moves = collect::Moves::new(&options);
        let mut lane = Self {
            pool: recovered.pool,
            votes: recovered.votes,
            active: recovered.active,
            lsn: recovered.last_lsn,
            synced_lsn: recovered.last_lsn,
            lately: Lately::default(),
            watermark_lsn: 0,
            vfs,
            dir,
            options,
            shared,
            staging: Staging::default(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            no_slot: held::Held::default(),
            no_room: held::Held::default(),
            is_second_half_late: false,
            lacks_segment: false,
            lacking: None,
            doomed: None,
            is_pool_full: false,
            is_votes_full: false,
            flight: None,
            to_release: Vec::new(),
            releasing: BTreeSet::new(),
            completions: Vec::new(),
            latched: None,
            stats: LaneStats::default(),
            now: Time(0),
            last_record_at: Time(0),
            votes_grow_at: Time(0),
            moves,
            apart: None,
            checkpoint_len: 0,
            checkpoint_asked: 0,
            is_closing: false,
            unmovable: BTreeMap::new(),
            scrub,
            extents: FxHashMap::default(),
            buried: FxHashSet::default(),
            waker: None,
            is_woken: false,
            _lock: lock,
        };
        lane.finish_open(recovered.opening)?;
        lane.scrub_after_open();
        let recovery = lane.recovery(recovered.report);
        Ok((lane, recovery))
    }

    fn recovery(&self, report: recovery::RecoveryReport) -> Recovery {
        let tables = self.shared.read();
        let replicas = tables
            .keys()
            .into_iter()
            .map(|key| (key, tables.replicas[&key].state.clone()))
            .collect();
        Recovery { replicas, report }
    }

    /// Has `waker` called, on any thread, when a segment that is on its way is there, or will not
    /// be: whoever drives the lane is to poll then, and need not look in between. Without it, or
    /// where the file system tells nobody, [`Lane::poll`] asks to be polled each millisecond while
    /// a record waits for a segment.
    pub fn wake_by(&mut self, waker: Arc<Waker>) {
        self.is_woken = self.vfs.wake_by(&Arc::downgrade(&waker));
        self.waker = Some(waker);
    }

    /// A handle for reading.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    /// Bytes that wait for the disk.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        let staged = if self.staging.is_empty() {
            0
        } else {
            self.staging.len()
        };
        self.queue_bytes + staged + self.no_slot.len() + self.no_room.len()
    }

    /// Takes a submission; it is encoded here and becomes durable with the next write.
    ///
    /// # Errors
    ///
    /// Nothing was taken: [`LogError::Latched`]; [`LogError::TooLarge`] for a single batch over
    /// the bound of a record; [`LogError::NumberTooHigh`]; [`LogError::Contradiction`] for what does
    /// not follow what the replica has submitted before; [`LogError::Gone`] for what a replica says
    /// behind its tombstone, as long as that is known; [`LogError::StorageFull`] for entries for
    /// which there is no prepared space while the disk is full.
    pub fn submit(&mut self, submission: Submission) -> Result<(), LogError> {
        self.take(&submission, false)
    }

    /// Takes what somebody was told to be taken before the disk was known to be full: entries, too,
    /// for which there is no space. They wait for it, with what their replica submits behind them;
    /// what must not wait goes on as far as the reserve has room.
    ///
    /// What waits is bounded by whoever lets it in, and asks [`LaneSpace::is_full`] before.
    ///
    /// # Errors
    ///
    /// As [`Lane::submit`], but for [`LogError::StorageFull`].
    ///
    /// [`LaneSpace::is_full`]: crate::LaneSpace::is_full
    pub fn submit_admitted(&mut self, submission: Submission) -> Result<(), LogError> {
        self.take(&submission, true)
    }

    fn take(&mut self, submission: &Submission, is_admitted: bool) -> Result<(), LogError> {
        if let Some(reason) = &self.latched {
            return Err(LogError::Latched(reason.clone()));
        }
        submission.check(self.options.record_bytes_max)?;
        let key = (submission.group, submission.replica);
        let Some(extent) = self.extent_after(submission)? else {
            return self.take_of_gone(submission);
        };
        let waits_for = self.is_held_for(submission);
        let has_room = || waits_for.is_none() && self.has_room(submission.entries_bytes());
        let may_wait = is_admitted || submission.entries.is_empty() || !self.shared.is_full();
        if !may_wait && !has_room() {
            return Err(LogError::StorageFull);
        }
        self.stage_or_hold(waits_for, submission);
        if submission.tombstone {
            self.extents.remove(&key);
            self.buried.insert(key);
        } else {
            self.extents.insert(key, extent);
        }
        Ok(())
    }

    /// Takes what says nothing, or once more that the replica is gone: it completes in its turn.
    fn take_of_gone(&mut self, submission: &Submission) -> Result<(), LogError> {
        let (group, replica) = (submission.group, submission.replica);
        let is_news = submission.hard_state.is_some()
            || !submission.entries.is_empty()
            || submission.snapshots.is_some()
            || submission.restart_after.is_some()
            || submission.compact_before.is_some();
        if is_news {
            return Err(LogError::Gone { group, replica });
        }
        let empty = Submission::new(group, replica, submission.submission);
        self.stage_or_hold(self.is_held_for(&empty), &empty);
        Ok(())
    }

    fn stage_or_hold(&mut self, waits_for: Option<HeldFor>, submission: &Submission) {
        match waits_for {
            Some(reason) => self.stage_held(reason, submission),
            None => self.stage(submission),
        }
    }

    fn stage(&mut self, submission: &Submission) {
        self.stats.encoded += 1;
        let key = (submission.group, submission.replica);
        let bound = self.gather_max();
        let bytes = submission.bytes();
        let is_over = self.staging.len() + bytes > bound;
        if !self.staging.is_empty() && is_over {
            self.enqueue();
        }
        let mut begun = submission.hard_state;
        let is_split = bytes > bound;
        if is_split && let Some(hard_state) = submission.hard_state {
            // Over more than one record: term and vote go first, as no entry may be durable before
            // its term; the commit index goes last, as it names entries, and never falls back behind
            // one that was submitted before and is durable first.
            let early = HardState {
                commit: hard_state.commit.min(self.committed(key)),
                ..hard_state
            };
            let mut first = submission.clone();
            first.hard_state = Some(early);
            self.staging.begin(key, &first);
            self.note_vote(key, early);
        } else {
            self.staging.begin(key, submission);
            if let Some(hard_state) = begun.take() {
                self.note_vote(key, hard_state);
            }
        }
        for batch in &submission.entries {
            let is_over = self.staging.len() + batch.size_bytes() + 256 > bound;
            if is_split && self.staging.has_entries && is_over {
                self.enqueue();
            }
            self.staging.entries(key, batch, false);
        }
        if let Some(hard_state) = begun {
            self.staging.change(key, Change::HardState(hard_state));
        }
        self.staging.end(key, submission);
    }

    /// Does the work at hand: begins a write if none is on its way, and takes what has ended.
    pub fn poll(&mut self, now: Time) -> Progress {
        let at_disk = self.poll_begin(now);
        self.poll_end(at_disk.wait())
    }

    /// The first half of [`Lane::poll`]: the header of what is gathered is filled in, and its write
    /// and sync are begun. Whoever shares the lane gives it free now, waits for the disk, and
    /// takes it back for the second half: what is submitted in between is encoded at once, for the
    /// next record.
    pub fn poll_begin(&mut self, now: Time) -> AtDisk {
        self.now = self.now.max(now);
        let mut is_busy = self.begin_or_latch();
        // Behind it, so that a spare that turned out too small is made again at once: of that an
        // event tells, of nothing none.
        is_busy |= self.latched.is_none() && self.maintain();
        AtDisk {
            vfs: Arc::clone(&self.vfs),
            now,
            is_busy,
        }
    }

    /// The second half of [`Lane::poll`].
    pub fn poll_end(&mut self, from_disk: FromDisk) -> Progress {
        let FromDisk { done, mut is_busy } = from_disk;
        for done in done {
            is_busy |= self.on_done(done);
        }
        self.scrub_poll();
        if is_busy {
            Progress::More
        } else {
            Progress::Idle {
                until: self.deadline(),
            }
        }
    }

    fn begin_or_latch(&mut self) -> bool {
        if self.flight.is_some() || self.latched.is_some() {
            return false;
        }
        let begun = match self.doomed.take() {
            Some(reason) => Err(reason),
            None => self.begin().map_err(|error| error.to_string()),
        };
        begun.unwrap_or_else(|reason| {
            self.latch(&reason);
            true
        })
    }

    fn maintain(&mut self) -> bool {
        let is_busy = match self.pool.open_again(self.now) {
            Some(made) => self.on_made(made),
            None => self.pool.maintain(self.now),
        };
        self.note_room();
        is_busy
    }

    /// Whoever was to ask again for a segment, and has not, needs none any more.
    fn note_room(&mut self) {
        let is_answered_later = self.pool.is_making() || self.pool.retry_at().is_some();
        let is_waiting = !self.is_drained() || !self.no_room.is_empty();
        if self.lacks_segment && !is_answered_later && !is_waiting {
            (self.lacks_segment, self.is_pool_full) = (false, false);
            self.note_full();
        }
    }

    fn on_done(&mut self, done: OpDone) -> bool {
        if let Some(flight) = &mut self.flight
            && let Some(at) = flight.ops.iter().position(|op| *op == done.op)
        {
            flight.ops.swap_remove(at);
            if let Err(error) = done.result {
                flight.failed.get_or_insert(error);
            }
            if flight.ops.is_empty() {
                self.end();
            }
            return true;
        }
        let made = self.pool.on_done(done.op, done.result, self.now);
        made.is_some_and(|made| self.on_made(made))
    }

    /// Always is there something to do then.
    fn on_made(&mut self, made: Made) -> bool {
        match made {
            Made::Spare => {
                (self.lacks_segment, self.is_pool_full) = (false, false);
                self.note_full();
                self.unhold(HeldFor::Room);
                // It may be what a move waits for.
                self.collect();
            }
            // They ask, and wait on: the answer says whether there is room.
            Made::AskAgain => self.unhold(HeldFor::Room),
            Made::NoRoom(error) => {
                self.lacks_segment = true;
                self.is_pool_full |= error.is_storage_full();
                self.note_full();
                self.lacking = Some(error);
                if self.checkpoint_asked != self.checkpoint_bytes() {
                    // They may need a smaller one now, and ask again.
                    self.unhold(HeldFor::Room);
                }
                self.collect();
            }
            Made::Failed(error) => {
                self.doomed = Some(format!("the next segment cannot be made: {error}"));
            }
            Made::Nothing => {}
        }
        true
    }

    fn note_full(&self) {
        self.shared
            .set_full(self.is_pool_full || self.is_votes_full);
    }

    fn deadline(&self) -> Option<Time> {
        if self.latched.is_some() || self.flight.is_some() {
            return None;
        }
        // A segment in the making is told of, or it is looked for soon if a record waits for it.
        let is_waiting = !self.is_drained() || self.has_held();
        let is_stalled = is_waiting && !self.is_woken;
        let lacks_slots = !self.no_slot.is_empty() || self.lacks_slots();
        let grows = (is_waiting && lacks_slots).then_some(self.votes_grow_at);
        let burst_end = self.last_record_at.plus_nanos(self.options.burst_end_nanos);
        let watermark = self.owes_watermark().then_some(burst_end);
        let stalled = is_stalled.then(|| self.now.plus_nanos(1_000_000));
        let due = [
            watermark,
            stalled,
            grows,
            self.pool.retry_at(),
            self.scrub_at(),
        ];
        due.into_iter().flatten().min()
    }

    fn latch(&mut self, reason: &str) {
        let reason = self
            .latched
            .get_or_insert_with(|| reason.to_owned())
            .clone();
        let mut waiting: Vec<(Key, u64)> = Vec::new();
        for staging in self.queue.drain(..) {
            waiting.extend(staging.done);
        }
        waiting.append(&mut std::mem::take(&mut self.staging).done);
        self.queue_bytes = 0;
        waiting.append(&mut self.no_slot.take_done());
        waiting.append(&mut self.no_room.take_done());
        self.complete(waiting, Some(&reason));
    }

    fn complete(&mut self, done: Vec<(Key, u64)>, failure: Option<&str>) {
        self.completions
            .extend(done.into_iter().map(|((group, replica), submission)| {
                let result = match failure {
                    None => Ok(()),
                    Some(reason) => Err(LogError::Latched(reason.to_owned())),
                };
                Completion {
                    group,
                    replica,
                    submission,
                    result,
                }
            }));
    }

    /// Takes what has ended since the last call.
    pub fn take_completions(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.completions)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LaneStats {
        let tables = self.shared.read();
        let is_live = |number: u64, info: &crate::index::SegmentInfo| {
            info.live_spans > 0 || number == self.active.number
        };
        let live = tables
            .segments
            .iter()
            .filter(|(number, info)| is_live(**number, info));
        let (mut live_segments, mut live_segment_bytes) = (0, 0);
        for (_, info) in live {
            live_segments += 1;
            live_segment_bytes += info.len;
        }
        LaneStats {
            live_segments,
            live_segment_bytes,
            is_full: self.shared.is_full(),
            ..self.stats
        }
    }

    /// Writes what is gathered, ends with a synced watermark record, and closes. Waits for the
    /// disk.
    ///
    /// # Errors
    ///
    /// [`LogError::Latched`]: some of it is not durable. [`LogError::StorageFull`]: there is no
    /// room for all that is gathered; what there is room for is durable. [`LogError::Io`]: as much,
    /// where the next segment or a larger vote file cannot be made for another reason. If a full disk has no room
    /// for the watermark record alone, it is left out, and the next open is one as behind a crash.
    pub fn close(mut self) -> Result<(), LogError> {
        self.finish()
    }

    /// As [`Lane::close`]; what ended meanwhile can still be taken.
    pub(crate) fn finish(&mut self) -> Result<(), LogError> {
        self.is_closing = true;
        // What could not be made is tried once more, now: nobody waits for the time of the next attempt.
        self.lacks_segment = false;
        self.pool.try_at_once();
        self.votes_grow_at = self.now;
        self.unhold(HeldFor::Room);
        self.unhold(HeldFor::Slot);
        self.drain();
        if self.latched.is_none() {
            self.stage_close();
            self.drain();
        }
        let is_left = self.has_held() || self.gathered().any(|record| !record.done.is_empty());
        match (self.latched.take(), self.lacking.take()) {
            (Some(reason), _) => Err(LogError::Latched(reason)),
            (None, _) if !is_left => Ok(()),
            (None, Some(error)) if !error.is_storage_full() => Err(LogError::Io(error)),
            (None, _) => Err(LogError::StorageFull),
        }
    }

    /// Writes what is gathered, as far as a full disk has room for it, and waits for the disk.
    fn drain(&mut self) {
        let is_awaited = |lane: &Self| {
            let may_go_on = lane.has_held() && lane.pool.is_making();
            lane.flight.is_some() || !lane.is_drained() || may_go_on
        };
        while self.latched.is_none() && is_awaited(self) {
            let mut is_begun = self.begin_or_latch();
            is_begun |= self.latched.is_none() && self.maintain();
            let done = self.vfs.completions(Time(u64::MAX));
            if done.is_empty() && self.flight.is_none() && !is_begun {
                if !self.pool.is_busy() {
                    return;
                }
                self.vfs.wait();
            }
            for done in done {
                self.on_done(done);
            }
        }
    }

    fn stage_close(&mut self) {
        if !self.staging.is_empty() {
            self.enqueue();
        }
        let limits = self.limits();
        self.staging.item(None, &Item::Limits(limits));
        self.staging.is_close = true;
    }

    fn enqueue(&mut self) {
        let full = std::mem::take(&mut self.staging);
        self.queue_bytes += full.len();
        self.queue.push_back(full);
    }

    /// How much is gathered into one record: a segment holds at least two such.
    fn gather_max(&self) -> usize {
        let half = usize::try_from(self.options.segment_size_bytes / 2).unwrap_or(usize::MAX);
        self.options.record_bytes_max.min(half)
    }

    fn tables(&self) -> crate::sync::RwLockReadGuard<'_, Tables> {
        self.shared.read()
    }
}
