//! Streams of records in one write-ahead log, for those who want no more than that.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use bytes::Bytes;
use raft_proto::{Batch, BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term};

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::lane::{LaneStats, ScrubStatus};
use crate::read::{Batches, LogReader};
use crate::recovery::{DamageReport, RecoveryReport};
use crate::state::{Damage, Health, Submission};
use crate::thread::LaneThread;
use crate::vfs::Vfs;

/// A write-ahead log of many streams. A stream is named by a number and holds records, numbered
/// from 1. All share one file and its syncs: threads that append to different streams at the same
/// time wait for the same `fdatasync`.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use std::sync::Arc;
///
/// use raft_log::{LaneOptions, Wal, vfs::StdVfs};
///
/// let (wal, report) = Wal::open(Arc::new(StdVfs::new()), dir.path(), LaneOptions::default())?;
/// assert!(report.damaged.is_empty());
/// let numbers = wal.append(7, &["one", "two"])?; // durable when it returns
/// assert_eq!(numbers, 1..=2);
/// let second = wal.read(7, 2).next().expect("it is there")?;
/// assert_eq!((second.0, &second.1[..]), (2, &b"two"[..]));
/// wal.trim(7, 2)?; // the first is not needed any more
/// wal.close()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Wal {
    log: LaneThread,
    reader: LogReader,
    record_bytes_max: usize,
    streams: Mutex<BTreeMap<GroupId, Arc<Mutex<Stream>>>>,
}

/// What is known of a stream that may be appended to: held while an append is under way.
#[derive(Debug)]
struct Stream {
    next: Index,
}

impl Wal {
    /// Opens the log below `dir`, or makes it. What was amiss is reported: damage stops the
    /// streams that it hit, all others serve.
    ///
    /// # Errors
    ///
    /// As [`LaneThread::open`].
    pub fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        options: LaneOptions,
    ) -> Result<(Self, RecoveryReport), LogError> {
        let record_bytes_max = options.record_bytes_max;
        let (log, recovery) = LaneThread::open(vfs, dir, options)?;
        let known = recovery.replicas.into_iter();
        let streams = known.map(|((stream, _), state)| {
            let found = Stream {
                next: state.last.index.next(),
            };
            (stream, Arc::new(Mutex::new(found)))
        });
        let this = Self {
            reader: log.reader(),
            log,
            record_bytes_max,
            streams: Mutex::new(streams.collect()),
        };
        Ok((this, recovery.report))
    }

    /// The streams to which something was appended, ascending, as the next open will find them.
    #[must_use]
    pub fn streams(&self) -> Vec<u64> {
        let streams = lock(&self.streams);
        let is_there = |id: &&GroupId| {
            let health = self.reader.health(**id, only());
            health.is_some_and(|health| health != Health::Tombstone)
        };
        streams.keys().filter(is_there).map(|id| id.get()).collect()
    }

    /// The first and the last record of a stream, if it has any.
    #[must_use]
    pub fn range(&self, stream: u64) -> Option<RangeInclusive<u64>> {
        let (first, last) = self.reader.range(GroupId::new(stream)?, only())?;
        Some(first.get()..=last.get())
    }

    /// Appends records, all or none, and returns their numbers when they are durable. Waits for
    /// other appends to the same stream first.
    ///
    /// # Errors
    ///
    /// Nothing was appended: [`LogError::Config`] for a stream that is 0 or above 2^64-3,
    /// [`LogError::TooLarge`], [`LogError::StorageFull`], [`LogError::Busy`], [`LogError::Damaged`]
    /// for a stream that lost records, [`LogError::Gone`] for one that was removed. Nothing will be until the log is opened again:
    /// [`LogError::Latched`]; then the records may be there, or not.
    pub fn append(
        &self,
        stream: u64,
        records: &[impl AsRef<[u8]>],
    ) -> Result<RangeInclusive<u64>, LogError> {
        let id = stream_id(stream)?;
        let handle = self.stream(id);
        let mut stream = lock(&handle);
        let first = stream.next;
        self.check_health(id)?;
        let frame = |record: &[u8]| BatchBuilder::frame_bytes(record.len(), false);
        let sizes = records.iter().map(|record| frame(record.as_ref()));
        let size = sizes.fold(0, usize::saturating_add);
        if size > self.record_bytes_max {
            let bound = self.record_bytes_max;
            return Err(LogError::TooLarge { size, bound });
        }
        let mut batch = BatchBuilder::new(id, Term::new(1), first, size);
        for record in records {
            batch.push(EntryKind::Command, 0, None, record.as_ref());
        }
        let mut append = Submission::new(id, only(), 0);
        if let Some(batch) = batch.finish() {
            stream.next = batch.last().index.next();
            append.entries.push(batch);
            if let Err(error) = self.log.append(append) {
                stream.next = first;
                return Err(error);
            }
        }
        let last = stream.next.get() - 1;
        Ok(first.get()..=last)
    }

    /// The records of a stream from `from` on, each with its number, as far as they are durable:
    /// slices of the log itself, checked. Ends after the last, or after an error.
    pub fn read(&self, stream: u64, from: u64) -> Records {
        let id = GroupId::new(stream);
        let last = id.and_then(|id| self.reader.range(id, only()));
        let batches = id.zip(last).map(|(id, (_, last))| {
            let from = Index::new(from);
            self.reader.batches(id, only(), from, last)
        });
        Records {
            batches,
            batch: None,
            next: Index::ZERO,
        }
    }

    /// Records before this one may go: the room they take is used again. That is durable on return,
    /// unless an append to the stream is under way: that may wait for this very room, so it is not
    /// waited for, and a record that is not durable yet stays.
    ///
    /// # Errors
    ///
    /// As [`Wal::append`].
    pub fn trim(&self, stream: u64, before: u64) -> Result<(), LogError> {
        let id = stream_id(stream)?;
        self.check_health(id)?;
        // No further than what is durable: an append under way, which may wait for the very room
        // that this makes, is not waited for.
        let Some((_, last)) = self.reader.range(id, only()) else {
            return Ok(());
        };
        let mut trim = Submission::new(id, only(), 0);
        trim.compact_before = Some(Index::new(before).min(last.next()));
        let handle = self.stream(id);
        match handle.try_lock() {
            Err(TryLockError::WouldBlock) => self.log.submit(trim, |_| ()),
            Ok(_) | Err(TryLockError::Poisoned(_)) => self.log.append(trim),
        }
    }

    /// Removes a stream, one that is damaged too: its records go, and its place in the log's own tables.
    /// That is durable on return. Waits for appends to it that are under way. Its number is not to be used
    /// again: appends are refused as [`LogError::Gone`] until the log has forgotten it.
    ///
    /// # Errors
    ///
    /// [`LogError::Config`] for a stream that is 0 or above 2^64-3, [`LogError::Busy`],
    /// [`LogError::Latched`]: then it may be gone after the next open, or not.
    pub fn remove(&self, stream: u64) -> Result<(), LogError> {
        let id = stream_id(stream)?;
        let handle = self.stream(id);
        let mut stream = lock(&handle);
        if self.reader.health(id, only()).is_some() {
            let mut removal = Submission::new(id, only(), 0);
            removal.tombstone = true;
            self.log.append(removal)?;
        }
        stream.next = Index::new(1);
        lock(&self.streams).remove(&id);
        Ok(())
    }

    /// Begins to verify everything durable, in the background; one pass runs after each open by itself.
    pub fn scrub(&self) {
        self.log.scrub();
    }

    /// How far verifying has come.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        self.log.scrub_status()
    }

    /// Takes the damage that verifying has found since the last call: the streams named are stopped, all
    /// others serve. A stream is named as a group, its records as entries.
    #[must_use]
    pub fn take_damage(&self) -> Vec<DamageReport> {
        self.log.take_damage()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> LaneStats {
        self.log.stats()
    }

    /// Whether the disk is full: appends are refused, and trims are not.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.reader.space().is_full()
    }

    /// Closes the log.
    ///
    /// # Errors
    ///
    /// As [`Lane::close`](crate::Lane::close).
    pub fn close(self) -> Result<(), LogError> {
        self.log.close()
    }

    fn stream(&self, id: GroupId) -> Arc<Mutex<Stream>> {
        let mut streams = lock(&self.streams);
        let new = || {
            Arc::new(Mutex::new(Stream {
                next: Index::new(1),
            }))
        };
        Arc::clone(streams.entry(id).or_insert_with(new))
    }

    /// Whether a stream may be written to, by what an open found and what was found since.
    fn check_health(&self, id: GroupId) -> Result<(), LogError> {
        match self.reader.health(id, only()) {
            None | Some(Health::Sound) => Ok(()),
            Some(Health::Tombstone) => Err(LogError::Gone {
                group: id,
                replica: only(),
            }),
            Some(health) => {
                let damage = match health {
                    Health::Damaged(damage) => damage,
                    _ => Damage::default(),
                };
                Err(LogError::Damaged {
                    segment: damage.segment,
                    offset: damage.offset,
                    reason: health.to_string(),
                })
            }
        }
    }
}

/// Reads a stream: see [`Wal::read`].
#[derive(Debug)]
pub struct Records {
    batches: Option<Batches>,
    batch: Option<Batch>,
    /// The next record of the batch at hand.
    next: Index,
}

impl Iterator for Records {
    type Item = Result<(u64, Bytes), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = &self.batch
                && self.next <= batch.last().index
                && let Some(rest) = batch.from_index(self.next)
                && let Some(entry) = rest.iter().next()
            {
                self.next = self.next.next();
                return Some(Ok((entry.index().get(), rest.payload_bytes(entry))));
            }
            match self.batches.as_mut()?.next()? {
                Ok(batch) => {
                    self.next = batch.first().index;
                    self.batch = Some(batch);
                }
                Err(error) => {
                    self.batches = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A stream has one writer: this.
fn only() -> ReplicaId {
    ReplicaId::new(1).expect("1 is an id")
}

fn stream_id(stream: u64) -> Result<GroupId, LogError> {
    GroupId::new(stream).ok_or(LogError::Config {
        field: "stream",
        value: stream,
        min: 1,
        max: u64::MAX - 2,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
