//! Going through a segment's records: what is whole, what is torn, what is damaged.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::Bytes;

use super::segment_bytes::{Record, SegmentBytes};
use super::{Cut, End, LostTable, SegmentFile, Walk};
use crate::error::LogError;
use crate::index::{AtSeal, SegmentInfo};
use crate::item::{Item, items};
use crate::lane::Active;
use crate::record::{RECORD_ALIGN, RECORD_HEADER_BYTES, RecordKind};
use crate::segment::SEGMENT_HEADER_BYTES;

/// Where the records stand while they are gone through in order.
pub(super) struct Cursor {
    pub(super) expected: Option<u64>,
    last_lsn: u64,
    /// Records of the segment at hand that no later one proves durable.
    unproven: VecDeque<(u64, usize)>,
    newest: u64,
    /// Which segment follows the newest, by its footer.
    successor: Option<u64>,
    pub(super) is_closed: bool,
    /// The first record of a clean close was the last one: the second follows, or did not get so
    /// far.
    is_closing: bool,
    pub(super) has_damage: bool,
    /// The first record is a checkpoint that was taken before.
    pub(super) has_base: bool,
    /// The synced lsn of a watermark record whose second one, of the same write, is not there yet.
    pub(super) lone_watermark: Option<u64>,
}

impl Cursor {
    fn passed(&mut self, record: &Record) {
        let header = &record.header;
        while self
            .unproven
            .front()
            .is_some_and(|(lsn, _)| *lsn <= header.synced_lsn)
        {
            self.unproven.pop_front();
        }
        self.unproven.push_back((header.lsn, record.offset));
        let is_watermark = header.kind == RecordKind::Watermark;
        let is_second = is_watermark && self.lone_watermark == Some(header.synced_lsn);
        self.lone_watermark = (is_watermark && !is_second).then_some(header.synced_lsn);
        self.last_lsn = header.lsn;
        self.expected = Some(header.lsn + 1);
        (self.is_closed, self.is_closing) = (false, false);
    }
}

/// How going through one segment ended.
enum Ended {
    /// With its footer at `offset`, which ends at `at`: the next segment follows.
    Sealed { at: usize, offset: usize },
    /// Nothing is appended here any more, and what follows is in a later segment.
    Left,
    /// With the last record of the lane.
    Here { at: usize, cut: Cut },
}

impl Walk<'_> {
    /// Goes through all records from the base segment on.
    pub(super) fn records_from(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        base: Option<u64>,
    ) -> Result<End, LogError> {
        let start = match base {
            Some(base) => Some(base),
            None => self.first_used(dir, files)?,
        };
        let mut cursor = Cursor {
            expected: None,
            last_lsn: 0,
            unproven: VecDeque::new(),
            newest: start.map_or(0, |start| start - 1),
            successor: None,
            is_closed: false,
            is_closing: false,
            has_damage: false,
            has_base: base.is_some(),
            lone_watermark: None,
        };
        let mut end = End {
            active: None,
            cut: Cut {
                offset: 0,
                bytes: 0,
                is_dirty: false,
            },
            torn_first: None,
            unproven_at: 0,
            is_closed: false,
            footer: None,
            newest: 0,
            successor: None,
            last_lsn: 0,
            has_damage: false,
        };
        let mut active: Option<Active> = None;
        let mut is_first_behind = true;
        for (number, file) in files.range(start.unwrap_or_default()..) {
            if file.is_apart() {
                continue;
            }
            let is_next = match cursor.successor {
                // What lies between was made ahead and not used.
                Some(successor) if *number < successor => continue,
                Some(successor) => *number == successor,
                None => is_first_behind || cursor.newest == 0,
            };
            is_first_behind = false;
            // A segment is sealed only when the next one is whole, and the second one is made only
            // when the first is.
            let was_whole =
                is_next && (end.footer.is_some() || (start.is_none() && files.len() > 1));
            let Some(header) = file.header else {
                if is_next {
                    self.unreadable(dir, file, was_whole, &mut cursor)?;
                }
                continue;
            };
            if header.number != *number {
                // What it means is settled when all segments are known.
                continue;
            }
            if start.is_none() {
                self.first_missing(*number, &cursor);
                break;
            }
            let mut segment =
                SegmentBytes::open(self.vfs, dir, file, header.incarnation, self.options)?;
            if Some(*number) != start && !self.follows(&mut segment, &cursor)? {
                if was_whole && file.is_short {
                    self.lose_all_of(*number, &mut cursor);
                } else {
                    end.torn_first = self.note_fragments(&mut segment)?;
                }
                break;
            }
            cursor.newest = *number;
            cursor.successor = None;
            is_first_behind = true;
            cursor.unproven.clear();
            self.tables.segments.insert(
                *number,
                SegmentInfo {
                    file: file.file,
                    len: file.len,
                    incarnation: header.incarnation,
                    live_spans: 0,
                    live_bytes: 0,
                    is_sealed: false,
                    at_seal: AtSeal::default(),
                    before: None,
                },
            );
            let mut at_hand = Active {
                number: *number,
                file: file.file,
                len: file.len,
                incarnation: header.incarnation,
                offset: to_u64(SEGMENT_HEADER_BYTES),
                is_sealed: false,
                touched: rustc_hash::FxHashMap::default(),
                runs: 0,
                moved_runs: 0,
            };
            let later = (dir, files);
            let ended = self.records_of(
                &mut segment,
                later,
                header.is_recycled,
                &mut cursor,
                &mut at_hand,
            )?;
            let is_here = matches!(ended, Ended::Here { .. });
            end.footer = None;
            let unproven = cursor.unproven.front().map(|(_, at)| *at);
            match ended {
                Ended::Here { at, cut } => {
                    at_hand.offset = to_u64(at);
                    end.cut = cut;
                    end.unproven_at = to_u64(unproven.unwrap_or(at));
                }
                Ended::Sealed { at, offset } => {
                    at_hand.offset = to_u64(at);
                    end.unproven_at = to_u64(unproven.unwrap_or(at));
                    end.footer = Some((to_u64(offset), cursor.last_lsn));
                }
                Ended::Left => {}
            }
            if !is_here && let Some(info) = self.tables.segments.get_mut(number) {
                info.is_sealed = true;
                at_hand.is_sealed = true;
            }
            active = Some(at_hand);
            if is_here {
                break;
            }
        }
        if cursor.has_damage
            && let Some(active) = &mut active
        {
            // Nothing is appended behind damage.
            active.is_sealed = true;
            end.cut.is_dirty = false;
            if let Some(info) = self.tables.segments.get_mut(&active.number) {
                info.is_sealed = true;
            }
        }
        end.active = active;
        end.is_closed = cursor.is_closed && !cursor.has_damage;
        end.newest = cursor.newest;
        end.successor = cursor.successor;
        end.last_lsn = cursor.last_lsn;
        end.has_damage = cursor.has_damage;
        Ok(end)
    }

    /// The first segment with a record in it, when no checkpoint is whole.
    fn first_used(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
    ) -> Result<Option<u64>, LogError> {
        for (number, file) in files {
            let Some(header) = file.header else { continue };
            let mut segment =
                SegmentBytes::open(self.vfs, dir, file, header.incarnation, self.options)?;
            if let Some(record) = segment.next_record(SEGMENT_HEADER_BYTES)? {
                // A first write that was torn proves nothing; one behind it does.
                let mut next = Some(record);
                while let Some(record) = next {
                    if record.header.synced_lsn > 0 {
                        return Ok(Some(*number));
                    }
                    next = segment.next_record(record.end())?;
                }
            }
        }
        Ok(None)
    }

    /// Whether a segment behind the one just gone through holds something that counts: a record
    /// that follows, or one that says that records before it were durable.
    fn follows(&self, segment: &mut SegmentBytes<'_>, cursor: &Cursor) -> Result<bool, LogError> {
        let expected = cursor.expected.unwrap_or(1);
        let mut at = SEGMENT_HEADER_BYTES;
        let reach = self.reach();
        while let Some(record) = segment.next_record_before(at, at + reach)? {
            let is_first = record.offset == SEGMENT_HEADER_BYTES && record.header.lsn == expected;
            if is_first || record.header.synced_lsn >= expected {
                return Ok(true);
            }
            at = record.end();
        }
        // One that cannot be read may be the first.
        let first = SEGMENT_HEADER_BYTES..SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES;
        segment.bytes(first.start, first.len())?;
        Ok(segment.is_unreadable(first))
    }

    /// A first write that left fragments behind is a cut like any other.
    fn note_fragments(
        &mut self,
        segment: &mut SegmentBytes<'_>,
    ) -> Result<Option<(u64, Cut)>, LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        let reach = self.reach();
        while let Some(record) = segment.next_record_before(at, at + reach)? {
            at = record.end();
        }
        let bytes = to_u64(at - SEGMENT_HEADER_BYTES);
        let cut = Cut {
            offset: to_u64(SEGMENT_HEADER_BYTES),
            bytes,
            is_dirty: false,
        };
        if bytes == 0 {
            return Ok(None);
        }
        self.report.note_torn(segment.number, cut.offset, bytes);
        Ok(Some((segment.number, cut)))
    }

    /// A file behind the base whose header cannot be read: not finished, or destroyed.
    fn unreadable(
        &mut self,
        dir: &Path,
        file: &SegmentFile,
        was_whole: bool,
        cursor: &mut Cursor,
    ) -> Result<(), LogError> {
        let segment = SegmentBytes::open(self.vfs, dir, file, 0, self.options)?;
        // A segment in the making holds zeroes alone.
        if was_whole
            || segment
                .last_used(SEGMENT_HEADER_BYTES, segment.len())?
                .is_some()
        {
            self.lose_all_of(file.number, cursor);
        }
        Ok(())
    }

    /// Nobody can say what was in a segment.
    fn lose_all_of(&mut self, segment: u64, cursor: &mut Cursor) {
        cursor.newest = segment;
        cursor.successor = None;
        cursor.has_damage = true;
        self.aside.insert(segment);
        self.lost_tables.push(LostTable::of_anybody(segment, 0));
    }

    /// No segment holds a record, and the lowest that is there is `number`: it is the first, or
    /// those before it are gone.
    fn first_missing(&mut self, number: u64, cursor: &Cursor) {
        let first = cursor.newest + 1;
        if first < number {
            self.report.missing.push(first);
            self.lost_tables.push(LostTable::of_anybody(first, 0));
        }
    }

    fn records_of(
        &mut self,
        segment: &mut SegmentBytes<'_>,
        later: (&Path, &BTreeMap<u64, SegmentFile>),
        is_recycled: bool,
        cursor: &mut Cursor,
        active: &mut Active,
    ) -> Result<Ended, LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        loop {
            let expected = cursor.expected;
            let record = segment.record(at)?.ok();
            let record = record
                .filter(|record| expected.is_none_or(|expected| record.header.lsn == expected));
            let record = match self.mended(segment, later, at, expected)? {
                None => record,
                mended => mended,
            };
            if let Some(record) = &record
                && let Some(table) = &record.table
                && segment.data(record)?.is_some()
                && self.take(later, segment.number, record, Some(&mut *active), cursor)?
            {
                self.note_mended(segment.number, record);
                cursor.passed(record);
                self.note_closed(table, cursor);
                at = record.end();
                if record.header.kind == RecordKind::Footer {
                    cursor.successor = Some(successor_of(segment.number, table));
                    let offset = record.offset;
                    return Ok(Ended::Sealed { at, offset });
                }
                continue;
            }
            let lsn = expected
                .or_else(|| record.as_ref().map(|record| record.header.lsn))
                .unwrap_or(1);
            let behind = record.as_ref().map_or(at + RECORD_ALIGN, Record::end);
            let mut found = self.look_behind(segment, later, behind, lsn)?;
            // After a clean close nothing was written that nothing behind it tells of.
            let was_closed = (cursor.is_closed || cursor.is_closing) && !found.is_proof;
            found.is_proof =
                found.is_proof || segment.has_displaced_proof(at, lsn, self.reach())?;
            let head_end = record
                .as_ref()
                .map_or(at + RECORD_HEADER_BYTES, Record::end);
            if segment.is_unreadable(at..head_end) {
                // What cannot be read was there, or may have been: it is not torn.
                found.is_proof = true;
                found.is_nobodys = was_closed;
            }
            if let Some(record) = &record
                && record.table.is_some()
                && segment.data(record)?.is_some()
            {
                // All of it is there, and it makes no sense: that is no torn write.
                found.is_proof = true;
            }
            let cut = self.cut(segment, at, record.as_ref(), &found, is_recycled, cursor)?;
            let is_too_large = self.is_too_large(segment, cut, active)?;
            if !found.is_proof && !is_too_large && !segment.is_short {
                return Ok(Ended::Here { at, cut });
            }
            cursor.has_damage = true;
            match record {
                Some(record) if record.table.is_some() => {
                    self.take_damaged(later, segment, &record, active, cursor)?;
                    cursor.passed(&record);
                    at = record.end();
                    if record.header.kind == RecordKind::Footer {
                        return Ok(Ended::Left);
                    }
                }
                Some(record) => {
                    self.lose_table(segment.number, &record, cursor);
                    cursor.passed(&record);
                    at = record.end();
                    if record.header.kind == RecordKind::Footer {
                        return Ok(Ended::Left);
                    }
                }
                None => {
                    self.lost_tables.push(LostTable {
                        segment: segment.number,
                        offset: to_u64(at),
                        owners: found.owners_from(expected),
                    });
                    let Some(next) = found.next else {
                        return Ok(Ended::Left);
                    };
                    cursor.expected = Some(next.lsn);
                    if next.segment != segment.number {
                        return Ok(Ended::Left);
                    }
                    at = next.offset;
                }
            }
        }
    }

    /// The record that is to begin at `at`, with a flipped bit put right, if it is known to have
    /// been durable.
    fn mended(
        &self,
        segment: &mut SegmentBytes<'_>,
        later: (&Path, &BTreeMap<u64, SegmentFile>),
        at: usize,
        lsn: Option<u64>,
    ) -> Result<Option<Record>, LogError> {
        let Some(record) = segment.mended(at, lsn)? else {
            return Ok(None);
        };
        let behind = self.look_behind(segment, later, record.end(), record.header.lsn)?;
        Ok(behind.is_proof.then_some(record))
    }

    fn note_closed(&self, table: &Bytes, cursor: &mut Cursor) {
        let says_so = items(table).any(|item| matches!(item, Some((None, Item::Closed))));
        let is_second = cursor.lone_watermark.is_none();
        cursor.is_closed = says_so && is_second;
        cursor.is_closing = says_so && !is_second;
    }
}

/// The segment that follows one with this footer.
fn successor_of(segment: u64, table: &Bytes) -> u64 {
    let named = items(table).find_map(|item| match item {
        Some((None, Item::Successor(number))) => Some(number),
        _ => None,
    });
    // In version 1 each number followed the one before.
    named.unwrap_or(segment + 1)
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
