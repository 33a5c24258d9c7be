//! Reading entries back, from any thread.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use raft_proto::{Batch, GroupId, Index, ReplicaId, Term};

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::index::{At, LIST_RUN_BYTES, ListCache, Span, Tables, TailCache, decode_list, find_run};
use crate::item::Key;
use crate::pieces::{Ends, Piece};
use crate::record::Place;
use crate::state::{Health, ReplicaState};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::vfs::{FileId, Vfs};

/// What the lane shares with its readers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) vfs: Arc<dyn Vfs>,
    tables: RwLock<Tables>,
    lists: ListCache,
    pub(crate) tail: TailCache,
    ends: Ends,
    is_full: AtomicBool,
}

impl Shared {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, options: &LaneOptions, tables: Tables) -> Self {
        Self {
            vfs,
            tables: RwLock::new(tables),
            lists: ListCache::new(options.footer_cache_bytes_max),
            tail: TailCache::new(options.tail_cache_bytes_max),
            ends: Ends::default(),
            is_full: AtomicBool::new(false),
        }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Release);
    }
}

impl Drop for Shared {
    /// Lane and readers are gone; what was read may live on.
    fn drop(&mut self) {
        let segments = std::mem::take(&mut self.write().segments);
        for info in segments.values() {
            self.vfs.close(info.file);
        }
    }
}

/// Whether the lane has room for entries; cheap to clone and to ask.
///
/// Ask before an entry gets an index: what was given an index is to be submitted.
#[derive(Clone, Debug)]
pub struct LaneSpace {
    shared: Arc<Shared>,
}

impl LaneSpace {
    /// Whether the disk is full: propose nothing, take no entries. Votes and compaction go on, and
    /// when there is room again this turns by itself.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }
}

/// Reads entries back; cheap to clone, usable from any thread. Only what is durable is seen.
#[derive(Clone, Debug)]
pub struct LogReader {
    pub(crate) shared: Arc<Shared>,
}

/// Where one batch lies.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Location {
    segment: u64,
    file: FileId,
    offset: u64,
    len: usize,
    /// What of the batch counts: its beginning may be compacted, its end overwritten.
    first: Index,
    last: Index,
}

/// What is wanted of a batch.
#[derive(Clone, Copy)]
struct Wanted {
    from: Index,
    to: Index,
    /// At most so much, at least one entry.
    bytes_max: usize,
    /// A batch that is longer is left for the next read.
    batch_bytes_max: usize,
}

impl LogReader {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A handle that says whether there is room for entries.
    #[must_use]
    pub fn space(&self) -> LaneSpace {
        LaneSpace {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes of the replica's live entries, about: a batch cut short counts by its share.
    #[must_use]
    pub fn log_bytes(&self, group: GroupId, replica: ReplicaId) -> u64 {
        let tables = self.shared.read();
        let spans = tables.replicas.get(&(group, replica));
        spans.map_or(0, |found| found.spans.iter().map(|span| span.bytes).sum())
    }

    /// The replicas of a group that the log knows, ascending, and what is durable of each: what a
    /// stopped replica starts from again.
    #[must_use]
    pub fn replicas_of(&self, group: GroupId) -> Vec<(ReplicaId, ReplicaState)> {
        let tables = self.shared.read();
        let of_group = tables.replicas.iter().filter(|(key, _)| key.0 == group);
        let mut found: Vec<_> = of_group
            .map(|(&(_, replica), found)| (replica, found.state.clone()))
            .collect();
        found.sort_unstable_by_key(|&(replica, _)| replica);
        found
    }

    /// The first index held and the last, if there are entries.
    #[must_use]
    pub fn range(&self, group: GroupId, replica: ReplicaId) -> Option<(Index, Index)> {
        let tables = self.shared.read();
        let state = &tables.replicas.get(&(group, replica))?.state;
        (state.first <= state.last.index).then_some((state.first, state.last.index))
    }

    /// Whether the replica may be used, as far as is known by now; `None` if there is none.
    #[must_use]
    pub fn health(&self, group: GroupId, replica: ReplicaId) -> Option<Health> {
        let tables = self.shared.read();
        let found = tables.replicas.get(&(group, replica));
        found.map(|found| found.state.health.clone())
    }

    /// The term of an entry that is held, or of the one before the first.
    #[must_use]
    pub fn term(&self, group: GroupId, replica: ReplicaId, index: Index) -> Option<Term> {
        let tables = self.shared.read();
        let state = &tables.replicas.get(&(group, replica))?.state;
        state.term_at(index)
    }

    /// Entries from `from` to `to`, inclusive; at most `bytes_max`, at least one.
    ///
    /// The bytes are slices of the log itself where the file system can give them, checked before
    /// this returns; they stay valid whatever becomes of the segment. Of a batch that is larger
    /// than what is asked for only that is read and checked, and the lengths of the entries before
    /// it if the read before did not end there.
    ///
    /// # Errors
    ///
    /// [`LogError::NotFound`], [`LogError::Damaged`], [`LogError::Io`].
    pub fn entries(
        &self,
        group: GroupId,
        replica: ReplicaId,
        from: Index,
        to: Index,
        bytes_max: usize,
    ) -> Result<Vec<Batch>, LogError> {
        let key = (group, replica);
        let mut found = Vec::new();
        let mut next = from;
        let mut room = bytes_max;
        while next <= to {
            // A batch that would be cut short is left for the next read, unless it is the first.
            let wanted = Wanted {
                from: next,
                to,
                bytes_max: room,
                batch_bytes_max: if found.is_empty() { usize::MAX } else { room },
            };
            let Some(part) = self.batch_at(key, wanted)? else {
                break;
            };
            let Some(part) = part.up_to_index(to) else {
                break;
            };
            let part = part.up_to_size(room);
            room = room.saturating_sub(part.size_bytes());
            next = part.last().index.next();
            found.push(part);
            if room == 0 {
                break;
            }
        }
        if found.is_empty() {
            Err(LogError::NotFound { group, from })
        } else {
            Ok(found)
        }
    }

    /// The entries from `from` to `to`, inclusive, batch by batch: each step reads as
    /// [`LogReader::entries`] does, a mebibyte at most. Ends behind `to` or the last entry held,
    /// or after an error.
    #[must_use]
    pub fn batches(&self, group: GroupId, replica: ReplicaId, from: Index, to: Index) -> Batches {
        Batches {
            reader: self.clone(),
            key: (group, replica),
            next: from,
            to,
            ready: Vec::new().into_iter(),
        }
    }

    /// The bytes of memory that finding entries takes, about, caches aside: what is held for each
    /// batch of the active segment, and for each replica's part of a sealed one.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.shared.read().index_bytes()
    }

    /// Entries that lie together, from the first wanted on; `None` if that is not held, or they lie
    /// in too large a batch.
    fn batch_at(&self, key: Key, wanted: Wanted) -> Result<Option<Batch>, LogError> {
        let mut tried = None;
        loop {
            let (location, result) = match self.locate(key, wanted.from) {
                Ok(None) => return Ok(None),
                Ok(Some(location)) if location.len > wanted.batch_bytes_max => return Ok(None),
                Ok(Some(location)) => (Some(location), self.read_batch(key, wanted, location)),
                Err(error) => (None, Err(error)),
            };
            match result {
                Ok(batch) => return Ok(Some(batch)),
                // The segment may have been released or sealed in between: look again.
                Err(_) if tried != Some(location) => tried = Some(location),
                Err(error) => return Err(error),
            }
        }
    }

    fn read_batch(&self, key: Key, wanted: Wanted, at: Location) -> Result<Batch, LogError> {
        let damaged = |reason: String| LogError::Damaged {
            segment: at.segment,
            offset: at.offset,
            reason,
        };
        let batch = match self.shared.tail.find(at.segment, at.offset) {
            Some(batch) => batch,
            None => {
                let piece = Piece {
                    vfs: self.shared.vfs.as_ref(),
                    file: at.file,
                    offset: at.offset,
                    len: at.len,
                    first: at.first,
                    last: at.last,
                };
                let (id, ends) = ((at.segment, at.offset), &self.shared.ends);
                let known = match wanted.from == at.first {
                    true => None,
                    false => ends.before(id, wanted.from),
                };
                let range = (wanted.from, wanted.to.min(at.last));
                let (bytes, end) = piece.read(range, wanted.bytes_max, known)?;
                let batch = Batch::decode(key.0, bytes);
                let batch = batch.map_err(|error| damaged(error.to_string()))?;
                if end < at.len {
                    ends.note(id, batch.last().index.next(), end);
                }
                batch
            }
        };
        let part = batch
            .from_index(wanted.from)
            .filter(|part| part.first().index == wanted.from)
            .and_then(|part| part.up_to_index(at.last));
        let part = part.filter(|part| self.is_due(key, part));
        part.ok_or_else(|| damaged("other entries than recorded".to_owned()))
    }

    /// Whether entries are of the terms that the replica's state gives them: those that others have
    /// overwritten are not.
    fn is_due(&self, key: Key, part: &Batch) -> bool {
        let tables = self.shared.read();
        let Some(replica) = tables.replicas.get(&key) else {
            return true;
        };
        [part.first(), part.last()].into_iter().all(|id| {
            let due = replica.state.term_at(id.index);
            due.is_none_or(|due| due == id.term)
        })
    }

    fn locate(&self, key: Key, index: Index) -> Result<Option<Location>, LogError> {
        let (span, file, incarnation) = {
            let tables = self.shared.read();
            let Some(span) = tables.find(key, index).copied() else {
                return Ok(None);
            };
            let Some(info) = tables.segments.get(&span.segment) else {
                return Ok(None);
            };
            (span, info.file, info.incarnation)
        };
        let (offset, len) = match span.at {
            At::Batch { offset, len } => (offset, len),
            At::List { offset, count, crc } => {
                let place = Place {
                    incarnation,
                    offset,
                };
                let run = self.list_run(span, file, place, (count, crc), index)?;
                let last = run.first.plus(u64::from(run.count) - 1);
                let len = usize::try_from(run.len).expect("usize has at least 32 bits");
                return Ok(Some(Location {
                    segment: span.segment,
                    file,
                    offset: run.offset,
                    len,
                    first: run.first,
                    last: last.min(span.last),
                }));
            }
        };
        Ok(Some(Location {
            segment: span.segment,
            file,
            offset,
            len,
            first: span.first,
            last: span.last,
        }))
    }

    fn list_run(
        &self,
        span: Span,
        file: FileId,
        place: Place,
        (count, crc): (u32, u32),
        index: Index,
    ) -> Result<crate::index::ListRun, LogError> {
        let damaged = |reason: &str| LogError::Damaged {
            segment: span.segment,
            offset: place.offset,
            reason: reason.to_owned(),
        };
        let key = (place.incarnation, place.offset);
        let list = match self.shared.lists.find(key) {
            Some(list) => list,
            None => {
                let len = usize::try_from(count).expect("usize has at least 32 bits");
                let bytes = self.shared.vfs.read_shared(
                    file,
                    place.offset,
                    len.saturating_mul(LIST_RUN_BYTES),
                )?;
                let list = decode_list(&bytes, place, crc)
                    .ok_or_else(|| damaged("a footer's list fails its checksum"))?;
                let list = Arc::from(list);
                self.shared.lists.insert(key, &list);
                list
            }
        };
        find_run(&list, index).ok_or_else(|| damaged("a footer's list lacks an entry"))
    }
}

/// Reads a replica's entries in order: see [`LogReader::batches`].
#[derive(Debug)]
pub struct Batches {
    reader: LogReader,
    key: Key,
    next: Index,
    to: Index,
    ready: std::vec::IntoIter<Batch>,
}

/// How much [`Batches`] reads in one go.
const BATCHES_BYTES: usize = 1 << 20;

impl Iterator for Batches {
    type Item = Result<Batch, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(batch) = self.ready.next() {
            return Some(Ok(batch));
        }
        let (group, replica) = self.key;
        let (first, last) = self.reader.range(group, replica)?;
        let to = self.to.min(last);
        if self.next > to {
            return None;
        }
        if self.next < first {
            let from = std::mem::replace(&mut self.next, to.next());
            return Some(Err(LogError::NotFound { group, from }));
        }
        let (reader, next) = (&self.reader, self.next);
        match reader.entries(group, replica, next, to, BATCHES_BYTES) {
            Ok(batches) => {
                if let Some(last) = batches.last() {
                    self.next = last.last().index.next();
                }
                self.ready = batches.into_iter();
                self.ready.next().map(Ok)
            }
            Err(error) => {
                self.next = to.next();
                Some(Err(error))
            }
        }
    }
}

/// What a lane's owner locks.
pub(crate) fn lock_path(data_dir: &Path, lane: u16) -> std::path::PathBuf {
    data_dir.join("log").join(format!("{lane}.lock"))
}

/// The directory of a lane's segments.
pub(crate) fn lane_dir(data_dir: &Path, lane: u16) -> std::path::PathBuf {
    data_dir.join("log").join(lane.to_string())
}
