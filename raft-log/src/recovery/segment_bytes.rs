//! A segment file, read piece by piece: its records one by one, and what lies between them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_proto::{Batch, Index};

use super::SegmentFile;
use crate::config::LaneOptions;
use crate::error::LogError;
use crate::flip::find_flip;
use crate::item::{Item, Key, items};
use crate::owners::OwnerSet;
use crate::record::{
    NoHeader, PLACE_BYTES, Place, RECORD_ALIGN, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader,
    RecordKind, is_zero,
};
use crate::segment::{SECTOR_BYTES, SEGMENT_HEADER_BYTES, segment_path};
use crate::vfs::{FileId, Vfs, read_through};

/// How much of a segment is looked at in one go.
const WINDOW_BYTES: usize = 1 << 20;
/// The same where the records are not gone through: a header, and most tables.
const GLIMPSE_BYTES: usize = 4 << 10;
/// Headers that may belong elsewhere, looked at closely.
const DISPLACED_MAX: usize = 64;

/// A segment file, to be read piece by piece.
pub(crate) struct SegmentBytes<'a> {
    vfs: &'a dyn Vfs,
    pub(crate) number: u64,
    pub(crate) file: FileId,
    path: PathBuf,
    len: usize,
    pub(super) is_short: bool,
    incarnation: u64,
    /// How much is read at least.
    window_bytes: usize,
    /// What was read last, and where it begins: neighbours are mostly in it.
    window: RefCell<(usize, Bytes)>,
    /// Sectors that the medium did not give back.
    unreadable: RefCell<BTreeSet<usize>>,
}

/// A record whose header is whole.
pub(crate) struct Record {
    pub(crate) offset: usize,
    pub(crate) header: RecordHeader,
    /// `None` if its checksum fails.
    pub(crate) table: Option<Bytes>,
    /// One bit of header or table was flipped: here they are as they were written.
    pub(crate) is_mended: bool,
}

impl Record {
    pub(crate) const fn end(&self) -> usize {
        self.offset + self.header.total()
    }

    pub(super) const fn data_at(&self) -> usize {
        self.offset + RECORD_HEADER_BYTES + self.header.table_len
    }
}

/// There is no record here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop;

impl<'a> SegmentBytes<'a> {
    pub(crate) fn open(
        vfs: &'a dyn Vfs,
        dir: &Path,
        file: &SegmentFile,
        incarnation: u64,
        _options: &LaneOptions,
    ) -> Result<Self, LogError> {
        Ok(Self {
            vfs,
            number: file.number,
            file: file.file,
            path: segment_path(dir, file.number),
            len: usize::try_from(file.len).unwrap_or(usize::MAX),
            is_short: file.is_short,
            incarnation,
            window_bytes: WINDOW_BYTES,
            window: RefCell::new((0, Bytes::new())),
            unreadable: RefCell::default(),
        })
    }

    /// Reads little more than what is asked for, or again what mostly follows.
    pub(super) const fn glimpse(&mut self, is_glimpse: bool) {
        self.window_bytes = if is_glimpse {
            GLIMPSE_BYTES
        } else {
            WINDOW_BYTES
        };
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn place(&self, offset: usize) -> Place {
        Place {
            incarnation: self.incarnation,
            offset: offset as u64,
        }
    }

    /// Bytes within the file; fewer than asked for if it ends before.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> Result<Bytes, LogError> {
        let len = len.min(self.len.saturating_sub(offset));
        if len == 0 {
            return Ok(Bytes::new());
        }
        {
            let window = self.window.borrow();
            let (at, bytes) = &*window;
            if let Some(start) = offset.checked_sub(*at)
                && start + len <= bytes.len()
            {
                return Ok(bytes.slice(start..start + len));
            }
        }
        let more = len.max(self.window_bytes).min(self.len - offset);
        let (bytes, unreadable) = read_through(self.vfs, self.file, to_u64(offset), more)?;
        let sectors = unreadable.into_iter().filter_map(|at| at.try_into().ok());
        self.unreadable
            .borrow_mut()
            .extend::<Vec<usize>>(sectors.collect());
        let found = bytes.slice(..len.min(bytes.len()));
        self.window.replace((offset, bytes));
        Ok(found)
    }

    /// Whether a sector of a range that was read before could not be.
    pub(super) fn is_unreadable(&self, range: Range<usize>) -> bool {
        let sectors = range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES);
        self.unreadable.borrow().range(sectors).next().is_some()
    }

    /// The record at `offset`, its data not looked at.
    pub(crate) fn record(&self, offset: usize) -> Result<Result<Record, Stop>, LogError> {
        let head = self.bytes(offset, RECORD_HEADER_BYTES)?;
        match RecordHeader::decode(&head, self.place(offset)) {
            Ok(header) => self.record_of(offset, header),
            Err(NoHeader::Invalid) => Ok(Err(Stop)),
            Err(NoHeader::Newer { version, .. }) => {
                let version = u32::from(version).max(u32::from(crate::record::VERSION) + 1);
                Err(LogError::NeedsVersion {
                    path: self.path.clone(),
                    offset: to_u64(offset),
                    version,
                })
            }
        }
    }

    fn record_of(
        &self,
        offset: usize,
        header: RecordHeader,
    ) -> Result<Result<Record, Stop>, LogError> {
        let end = offset.checked_add(header.total());
        if end.is_none_or(|end| end > self.len) {
            return Ok(Err(Stop));
        }
        let table = self.bytes(offset + RECORD_HEADER_BYTES, header.table_len)?;
        let is_whole = self.place(offset).checksum(&table) == header.table_crc;
        let table = is_whole.then_some(table);
        Ok(Ok(Record {
            offset,
            header,
            table,
            is_mended: false,
        }))
    }

    /// The record that is to begin at `offset`, and to have this lsn if it is known, if one bit of
    /// its header or its table was flipped. Only for one that was durable: what a torn write leaves
    /// may lack one bit too.
    pub(super) fn mended(
        &self,
        offset: usize,
        lsn: Option<u64>,
    ) -> Result<Option<Record>, LogError> {
        let mut record = match self.record(offset)? {
            Ok(record)
                if record.table.is_none() && lsn.is_none_or(|lsn| record.header.lsn == lsn) =>
            {
                record
            }
            Ok(_) => return Ok(None),
            Err(Stop) => {
                let head = self.bytes(offset, RECORD_HEADER_BYTES)?;
                let header = RecordHeader::mend(&head, self.place(offset));
                let Some(header) = header else {
                    return Ok(None);
                };
                let record = self.record_of(offset, header)?.ok();
                let is_due = |record: &Record| lsn.is_none_or(|lsn| record.header.lsn == lsn);
                let record = record.filter(|record| record.table.is_some() && is_due(record));
                return Ok(record.map(|record| Record {
                    is_mended: true,
                    ..record
                }));
            }
        };
        let header = &record.header;
        let table = self.bytes(offset + RECORD_HEADER_BYTES, header.table_len)?;
        let difference = self.place(offset).checksum(&table) ^ header.table_crc;
        record.table = mended_table(&table, header, difference);
        record.is_mended = record.table.is_some();
        Ok(Some(record).filter(|record| record.is_mended))
    }

    /// The record that is to begin at `offset`, in a segment of which all was durable.
    pub(super) fn durable(
        &self,
        offset: usize,
        lsn: Option<u64>,
    ) -> Result<Option<Record>, LogError> {
        match self.mended(offset, lsn)? {
            None => Ok(self.record(offset)?.ok()),
            mended => Ok(mended),
        }
    }

    /// The record's data and padding; `None` if its checksum fails.
    pub(crate) fn data(&self, record: &Record) -> Result<Option<Bytes>, LogError> {
        let data = self.raw_data(record)?;
        let is_whole = self.place(record.offset).checksum(&data) == record.header.data_crc;
        Ok(is_whole.then_some(data))
    }

    fn raw_data(&self, record: &Record) -> Result<Bytes, LogError> {
        self.bytes(record.data_at(), record.end() - record.data_at())
    }

    /// The batches of a record that do not hold, each for itself.
    pub(super) fn bad_batches(&self, record: &Record) -> Result<Vec<BadBatch>, LogError> {
        let data = self.raw_data(record)?;
        let mut bad = Vec::new();
        let mut at = 0_usize;
        for item in items(record.table.as_deref().unwrap_or_default()) {
            let Some((Some(key), Item::Entries(item))) = item else {
                continue;
            };
            let end = at.saturating_add(item.len).min(data.len());
            let found = Batch::decode(key.0, data.slice(at.min(end)..end));
            let is_whole =
                found.is_ok_and(|batch| batch.first() == item.first && batch.last() == item.last);
            if !is_whole {
                bad.push(BadBatch {
                    key,
                    first: item.first.index,
                    last: item.last.index,
                    segment: self.number,
                    offset: to_u64(record.data_at() + at),
                });
            }
            at = end;
        }
        Ok(bad)
    }

    /// The record that is to begin at `from`, and to have this lsn if it is known, or else the next
    /// whole one behind, in a segment of which all was durable.
    pub(super) fn durable_from(
        &mut self,
        from: usize,
        lsn: Option<u64>,
    ) -> Result<Option<Record>, LogError> {
        match self.durable(from, lsn)? {
            None => self.next_record(from),
            found => Ok(found),
        }
    }

    /// Whether a whole footer lies in it.
    pub(super) fn has_footer(&mut self) -> Result<bool, LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some(record) = self.durable_from(at, None)? {
            at = record.end();
            if record.header.kind == RecordKind::Footer {
                return Ok(record.table.is_some() && self.data(&record)?.is_some());
            }
        }
        Ok(false)
    }

    /// The next whole header at or behind `from`.
    pub(crate) fn next_record(&mut self, from: usize) -> Result<Option<Record>, LogError> {
        self.next_record_before(from, self.len)
    }

    /// The next whole header at or behind `from` and before `end`.
    pub(super) fn next_record_before(
        &mut self,
        from: usize,
        end: usize,
    ) -> Result<Option<Record>, LogError> {
        let magic = RECORD_MAGIC.to_le_bytes();
        let end = end.min(self.len);
        let mut at = from.next_multiple_of(RECORD_ALIGN);
        while at < end {
            let window = self.bytes(at, WINDOW_BYTES)?;
            for (step, chunk) in window.chunks(RECORD_ALIGN).enumerate() {
                if chunk.starts_with(&magic)
                    && let Ok(record) = self.record(at + step * RECORD_ALIGN)?
                {
                    return Ok(Some(record));
                }
            }
            at += WINDOW_BYTES;
        }
        Ok(None)
    }

    /// Whether a later record of the segment says that this one was durable.
    pub(crate) fn proves(&mut self, record: &Record) -> Result<bool, LogError> {
        let mut at = record.end();
        while let Some(later) = self.next_record(at)? {
            if later.header.synced_lsn >= record.header.lsn && later.header.lsn > record.header.lsn
            {
                return Ok(true);
            }
            at = later.end();
        }
        Ok(false)
    }

    /// Whether within `reach` of `from` lies the header of a record that belongs elsewhere in this
    /// segment and says that `lsn` was durable: a crash loses sectors, and exchanges none.
    pub(super) fn has_displaced_proof(
        &self,
        from: usize,
        lsn: u64,
        reach: usize,
    ) -> Result<bool, LogError> {
        let end = self.len.min(from.saturating_add(reach));
        let mut at = from;
        // Headers of earlier lives have lower numbers, so that few are looked at closely.
        let mut candidates = 0;
        while at < end && candidates < DISPLACED_MAX {
            let window = self.bytes(at, WINDOW_BYTES.min(end - at))?;
            for (step, chunk) in window.chunks_exact(RECORD_HEADER_BYTES).enumerate() {
                if !RecordHeader::claims_to_prove(chunk, lsn) {
                    continue;
                }
                candidates += 1;
                let in_sector = (at + step * RECORD_ALIGN) % SECTOR_BYTES;
                let places = (SEGMENT_HEADER_BYTES + in_sector..self.len).step_by(SECTOR_BYTES);
                if places
                    .map(|offset| self.place(offset))
                    .any(|place| RecordHeader::decode(chunk, place).is_ok())
                {
                    return Ok(true);
                }
            }
            at += WINDOW_BYTES;
        }
        Ok(false)
    }

    /// Where the last byte that is not zero lies, at or behind `from` and before `end`.
    pub(super) fn last_used(&self, from: usize, end: usize) -> Result<Option<usize>, LogError> {
        let mut last = None;
        let mut at = from;
        while at < end {
            let window = self.bytes(at, WINDOW_BYTES.min(end - at))?;
            let used = window.chunks(SECTOR_BYTES).rposition(|part| !is_zero(part));
            let end = used.map(|part| window.len().min((part + 1) * SECTOR_BYTES));
            if let Some(used) = window[..end.unwrap_or(0)]
                .iter()
                .rposition(|&byte| byte != 0)
            {
                last = Some(at + used);
            }
            at += WINDOW_BYTES;
        }
        Ok(last)
    }
}

/// A table of which one bit was flipped, if it then says what the rest of the record does.
fn mended_table(table: &[u8], header: &RecordHeader, difference: u32) -> Option<Bytes> {
    let (byte, bit) = find_flip(difference, table.len(), PLACE_BYTES)?;
    let mut mended = table.to_vec();
    mended[byte] ^= 1 << bit;
    let mut owners = OwnerSet::default();
    let mut data_len = 0_usize;
    for item in items(&mended) {
        let (owner, item) = item?;
        owner.into_iter().for_each(|key| owners.insert(key));
        if let Item::Entries(item) = item {
            data_len = data_len.saturating_add(item.len);
        }
    }
    let says_owners = matches!(header.kind, RecordKind::Data | RecordKind::Watermark);
    let is_theirs = header
        .owners
        .is_none_or(|told| !says_owners || told.own == owners);
    (is_theirs && data_len <= header.data_len).then(|| mended.into())
}

/// A batch whose frames do not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct BadBatch {
    pub(super) key: Key,
    pub(super) first: Index,
    pub(super) last: Index,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
