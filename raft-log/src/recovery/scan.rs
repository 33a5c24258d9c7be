//! Going through a segment's records: what is whole, what is torn, what is damaged.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use bytes::Bytes;
use raft_proto::Index;

use super::segment_bytes::{BadBatch, Record, SegmentBytes};
use super::{Cut, End, LostTable, SegmentFile, Walk};
use crate::error::LogError;
use crate::index::{At, SegmentInfo, Span};
use crate::item::{Item, Key, Limits, items};
use crate::lane::Active;
use crate::owners::{OwnerSet, Owners};
use crate::record::{RECORD_ALIGN, RECORD_HEADER_BYTES, RecordKind};
use crate::segment::{SEGMENT_HEADER_BYTES, TRAILER_BYTES, Trailer};
use crate::state::Health;

/// Where the records stand while they are gone through in order.
struct Cursor {
    expected: Option<u64>,
    last_lsn: u64,
    /// Records of the segment at hand that no later one proves durable.
    unproven: VecDeque<(u64, usize)>,
    newest: u64,
    /// Which segment follows the newest, by its footer.
    successor: Option<u64>,
    is_closed: bool,
    /// The first record of a clean close was the last one: the second follows, or did not get so
    /// far.
    is_closing: bool,
    has_damage: bool,
    /// The synced lsn of a watermark record whose second one, of the same write, is not there yet.
    lone_watermark: Option<u64>,
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
        };
        let mut active: Option<Active> = None;
        let mut is_first_behind = true;
        for (number, file) in files.range(start.unwrap_or_default()..) {
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
        self.report.torn_bytes += bytes;
        let cut = Cut {
            offset: to_u64(SEGMENT_HEADER_BYTES),
            bytes,
            is_dirty: false,
        };
        Ok((bytes > 0).then_some((segment.number, cut)))
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
        self.unreadable.insert(segment);
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
                && self.take(segment.number, record, table, Some(&mut *active), cursor)
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
            let cut = self.cut(segment, at, record.as_ref(), &found, is_recycled, cursor)?;
            let is_too_large = self.is_too_large(segment, cut, active)?;
            if !found.is_proof && !is_too_large && !segment.is_short {
                return Ok(Ended::Here { at, cut });
            }
            cursor.has_damage = true;
            match record {
                Some(record) if record.table.is_some() => {
                    self.take_damaged(segment, &record, active, cursor)?;
                    cursor.passed(&record);
                    at = record.end();
                    if record.header.kind == RecordKind::Footer {
                        return Ok(Ended::Left);
                    }
                }
                Some(record) => {
                    // In its place in the chain, a checkpoint or a footer says nothing that the
                    // records before it have not said.
                    let says_again = expected.is_some()
                        && matches!(
                            record.header.kind,
                            RecordKind::Checkpoint | RecordKind::Footer
                        );
                    if says_again {
                        let reason = "a table that repeats what other records say";
                        self.damage(segment.number, to_u64(at), reason, &[]);
                    } else {
                        self.lose_table(segment.number, &record);
                    }
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

    /// A flipped bit that was mended is told, and stops nobody.
    fn note_mended(&mut self, segment: u64, record: &Record) {
        if record.is_mended {
            let reason = "a flipped bit in a record's header or table, which is read as written";
            self.damage(segment, to_u64(record.offset), reason, &[]);
        }
    }

    /// The table of a record is lost, its header is not.
    fn lose_table(&mut self, segment: u64, record: &Record) {
        self.lost_tables.push(LostTable {
            segment,
            offset: to_u64(record.offset),
            owners: record.header.owners.map(|owners| owners.own),
        });
    }

    fn note_closed(&self, table: &Bytes, cursor: &mut Cursor) {
        let says_so = items(table).any(|item| matches!(item, Some((None, Item::Closed))));
        let is_second = cursor.lone_watermark.is_none();
        cursor.is_closed = says_so && is_second;
        cursor.is_closing = says_so && !is_second;
    }

    /// Whether more is to be cut than one write may leave behind when it is interrupted.
    fn is_too_large(
        &self,
        segment: &SegmentBytes<'_>,
        cut: Cut,
        active: &Active,
    ) -> Result<bool, LogError> {
        let most = self.write_max().max(active.footer_bytes(0));
        if cut.bytes <= most {
            return Ok(false);
        }
        // A footer's write ends with the trailer, at the end of the file.
        let at = usize::try_from(cut.offset).unwrap_or(usize::MAX);
        let end = segment.len().saturating_sub(TRAILER_BYTES);
        let last_used = segment.last_used(at, end)?;
        Ok(last_used.is_some_and(|last| to_u64(last + 1 - at) > most))
    }

    /// The most that one write takes, footers aside.
    fn write_max(&self) -> u64 {
        let replicas = self.tables.replicas.values().map(|replica| {
            let state = &replica.state;
            200 + 16 * state.terms.len()
                + 8 * state.membership_entries.len()
                + state
                    .snapshots
                    .iter()
                    .map(|snapshot| 20 + snapshot.membership.len())
                    .sum::<usize>()
        });
        let checkpoint = to_u64(2 * replicas.sum::<usize>());
        match self.limits.write_bytes_max {
            // A log of before this was said.
            0 => self.options.write_bytes_max() + checkpoint,
            most => most + checkpoint,
        }
    }

    /// How far behind the end of a record, or the start of a segment, the next record may begin.
    fn reach(&self) -> usize {
        usize::try_from(self.write_max()).unwrap_or(usize::MAX / 2)
    }

    /// Looks for whole headers behind an invalid record, in this segment and in all later ones.
    fn look_behind(
        &self,
        segment: &mut SegmentBytes<'_>,
        (dir, files): (&Path, &BTreeMap<u64, SegmentFile>),
        from: usize,
        lsn: u64,
    ) -> Result<Behind, LogError> {
        let mut behind = Behind::default();
        let mut at = from;
        while let Some(record) = segment.next_record(at)? {
            behind.see(segment.number, &record, lsn);
            behind.end_here = behind.end_here.max(record.end());
            at = record.end().max(at + RECORD_ALIGN);
            if behind.is_proof {
                return Ok(behind);
            }
        }
        for (number, file) in files.range(segment.number + 1..) {
            let Some(header) = file.header.filter(|header| header.number == *number) else {
                continue;
            };
            let mut later =
                SegmentBytes::open(self.vfs, dir, file, header.incarnation, self.options)?;
            let mut at = SEGMENT_HEADER_BYTES;
            let reach = self.reach();
            while let Some(record) = later.next_record_before(at, at + reach)? {
                behind.see(*number, &record, lsn);
                at = record.end();
                if behind.is_proof {
                    return Ok(behind);
                }
            }
        }
        Ok(behind)
    }

    /// What of the segment's end would have to go.
    fn cut(
        &mut self,
        segment: &SegmentBytes<'_>,
        at: usize,
        record: Option<&Record>,
        behind: &Behind,
        is_recycled: bool,
        cursor: &Cursor,
    ) -> Result<Cut, LogError> {
        let mut cut = Cut {
            offset: to_u64(at),
            bytes: 0,
            is_dirty: false,
        };
        if behind.is_proof || cursor.has_damage {
            // Nothing is cut.
            return Ok(cut);
        }
        // All of it was read by now.
        let is_unreadable = segment.is_unreadable(at..segment.len());
        if cursor.is_closed && record.is_none() && behind.end_here == 0 && !is_unreadable {
            // Nothing was written after the close, and the close left nothing behind it.
            return Ok(cut);
        }
        let last_used = segment.last_used(at, segment.len())?;
        let is_stale = is_recycled || cursor.is_closed;
        let mut end = behind.end_here.max(record.map_or(at, Record::end));
        if !is_stale && let Some(used) = last_used {
            end = end.max(used + 1);
        }
        if end > at {
            cut.bytes = to_u64(end - at);
            self.report.torn_bytes += cut.bytes;
        } else if cursor.lone_watermark.is_some() {
            // Its second record, of which nothing reached the disk.
            self.report.torn_bytes += to_u64(RECORD_HEADER_BYTES);
        }
        self.may_be_cut |= last_used.is_some() && !cursor.is_closed;
        let is_kept = cursor.is_closed && cut.bytes == 0 && !is_unreadable;
        cut.is_dirty = last_used.is_some() && !is_kept;
        Ok(cut)
    }

    /// Takes what a whole record says. `false` if its table makes no sense.
    fn take(
        &mut self,
        segment: u64,
        record: &Record,
        table: &Bytes,
        mut active: Option<&mut Active>,
        cursor: &Cursor,
    ) -> bool {
        // The base's checkpoint was taken before, and a footer says nothing new of records that
        // are gone through.
        let is_told = matches!(
            record.header.kind,
            RecordKind::Checkpoint | RecordKind::Footer
        );
        if is_told && cursor.expected.is_none() {
            return true;
        }
        let makes_sense = |item: Option<(_, Item)>| match item {
            None => false,
            // What is released lies before.
            Some((_, Item::Released(numbers))) => numbers.iter().all(|number| *number < segment),
            Some(_) => true,
        };
        if !items(table).all(makes_sense) {
            return false;
        }
        if let Some(limits) = limits_in(table) {
            self.limits = limits;
        }
        if is_told {
            return true;
        }
        let mut at = record.data_at();
        for (owner, item) in items(table).flatten() {
            let Some(key) = owner else {
                if let Item::Released(numbers) = item {
                    self.released.extend(numbers);
                }
                continue;
            };
            match item {
                Item::Entries(item) => {
                    self.tables.append(key, &item, segment, to_u64(at));
                    if let Some(active) = active.as_deref_mut() {
                        active.note(key, &item);
                    }
                    at += item.len;
                }
                other => self.apply(key, other),
            }
        }
        true
    }

    fn apply(&mut self, key: Key, item: Item) {
        let tables = &mut self.tables;
        if let Item::RestartAfter(_) | Item::Tombstone = item {
            tables.reset(key);
        }
        let state = &mut tables.replicas.entry(key).or_default().state;
        match item {
            Item::HardState(hard_state) => state.hard_state = hard_state,
            Item::Snapshots(record) => state.snapshots = record.retained,
            Item::RestartAfter(id) => state.restart_after(id),
            Item::CompactBefore(index) => {
                state.compact_before(index);
                tables.clip(key);
            }
            Item::Tombstone => state.bury(),
            Item::Health(health) => state.health = health,
            _ => {}
        }
    }

    /// Takes a record whose table holds and whose data does not: whoever's entries hold loses
    /// nothing.
    fn take_damaged(
        &mut self,
        segment: &SegmentBytes<'_>,
        record: &Record,
        active: &mut Active,
        cursor: &Cursor,
    ) -> Result<(), LogError> {
        let table = record.table.clone().unwrap_or_default();
        let bad = segment.bad_batches(record)?;
        if !self.take(segment.number, record, &table, Some(active), cursor) {
            self.lose_table(segment.number, record);
            return Ok(());
        }
        self.report_bad(segment.number, record, bad);
        Ok(())
    }

    fn report_bad(&mut self, segment: u64, record: &Record, bad: Vec<BadBatch>) {
        let offset = bad
            .first()
            .map_or_else(|| to_u64(record.offset), |batch| batch.offset);
        let lost: Vec<(Key, Index, Index)> = bad
            .iter()
            .filter(|batch| self.is_live(batch))
            .map(|batch| (batch.key, batch.first, batch.last))
            .collect();
        self.damage(segment, offset, "a record's data fails its checksum", &lost);
    }

    /// Whether what a batch held still counts, as far as the records gone through say.
    fn is_live(&self, batch: &BadBatch) -> bool {
        let Some(replica) = self.tables.replicas.get(&batch.key) else {
            return false;
        };
        replica.state.health == Health::Sound
            && replica.spans.iter().any(|span| {
                span.segment == batch.segment
                    && span.first <= batch.last
                    && span.last >= batch.first
            })
    }

    /// Takes a sealed segment by its footer. `false` if there is none that holds.
    pub(super) fn take_footer(&mut self, segment: &mut SegmentBytes<'_>) -> Result<bool, LogError> {
        let Some(trailer_at) = segment.len().checked_sub(TRAILER_BYTES) else {
            return Ok(false);
        };
        let bytes = segment.bytes(trailer_at, TRAILER_BYTES)?;
        let Some(trailer) = Trailer::decode(&bytes, segment.place(trailer_at)) else {
            return Ok(false);
        };
        let offset = usize::try_from(trailer.footer_offset).unwrap_or(usize::MAX);
        let Some(record) = segment.durable(offset, Some(trailer.footer_lsn))? else {
            return Ok(false);
        };
        let is_footer =
            record.header.kind == RecordKind::Footer && record.header.lsn == trailer.footer_lsn;
        let Some(table) = record.table.clone().filter(|_| is_footer) else {
            return Ok(false);
        };
        if segment.data(&record)?.is_none() || items(&table).any(|item| item.is_none()) {
            return Ok(false);
        }
        self.note_mended(segment.number, &record);
        let data_at = to_u64(record.data_at());
        for (owner, item) in items(&table).flatten() {
            let (key, runs) = match (owner, item) {
                (Some(key), Item::Runs(runs)) => (key, runs),
                (None, Item::Successor(_)) => continue,
                _ => return Ok(false),
            };
            let list_end = u64::from(runs.list_at)
                + u64::from(runs.list_count) * to_u64(crate::index::LIST_RUN_BYTES);
            let is_within =
                runs.bytes <= to_u64(segment.len()) && list_end <= to_u64(record.header.data_len);
            if runs.first > runs.last || !is_within {
                return Ok(false);
            }
            let span = Span {
                first: runs.first,
                last: runs.last,
                segment: segment.number,
                bytes: runs.bytes,
                at: At::List {
                    offset: data_at + u64::from(runs.list_at),
                    count: runs.list_count,
                    crc: runs.list_crc,
                },
            };
            self.take_older(key, runs.overwrites_from, span);
        }
        Ok(true)
    }

    /// Takes what lies in a segment before the base, whose checkpoint names every replica there is.
    fn take_older(&mut self, key: Key, overwrites_from: Option<Index>, span: Span) {
        if self.tables.replicas.contains_key(&key) {
            self.tables.take_list(key, overwrites_from, &[span]);
        }
    }

    /// Goes through a sealed segment record by record: for lack of a footer, or to verify all.
    pub(super) fn take_records(
        &mut self,
        segment: &mut SegmentBytes<'_>,
        by_footer: bool,
    ) -> Result<(), LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        let mut is_whole = true;
        let mut has_footer = false;
        while let Some(record) = segment.durable_from(at)? {
            self.note_mended(segment.number, &record);
            if record.offset != at {
                is_whole = false;
                self.damage(segment.number, to_u64(at), "records are lost", &[]);
            }
            at = record.end();
            has_footer = record.header.kind == RecordKind::Footer;
            let Some(table) = &record.table else {
                is_whole = false;
                let offset = to_u64(record.offset);
                self.damage(segment.number, offset, "a record's table is lost", &[]);
                continue;
            };
            if !by_footer {
                self.take_spans(segment.number, &record, table);
            }
            if segment.data(&record)?.is_none() {
                is_whole = false;
                let bad = segment.bad_batches(&record)?;
                self.report_bad(segment.number, &record, bad);
            }
            if has_footer {
                break;
            }
        }
        if !by_footer && is_whole {
            let reason = if has_footer {
                "the trailer is lost; the records are whole"
            } else {
                "the footer is lost; the records before it are whole"
            };
            self.damage(segment.number, to_u64(at), reason, &[]);
        }
        Ok(())
    }

    /// Takes the places of entries alone: what the replicas are, the checkpoint has said.
    fn take_spans(&mut self, segment: u64, record: &Record, table: &Bytes) {
        if record.header.kind != RecordKind::Data {
            return;
        }
        let mut at = record.data_at();
        for (owner, item) in items(table).flatten() {
            if let (Some(key), Item::Entries(item)) = (owner, item) {
                let span = Span {
                    first: item.first.index,
                    last: item.last.index,
                    segment,
                    bytes: to_u64(item.len),
                    at: At::Batch {
                        offset: to_u64(at),
                        len: item.len,
                    },
                };
                let overwrites = (!item.is_moved).then_some(span.first);
                self.take_older(key, overwrites, span);
                at += item.len;
            }
        }
    }
}

/// What a table says of limits.
fn limits_in(table: &Bytes) -> Option<Limits> {
    items(table).find_map(|item| match item {
        Some((None, Item::Limits(limits))) => Some(limits),
        _ => None,
    })
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

/// What lies behind an invalid record.
#[derive(Debug, Default)]
struct Behind {
    /// A header says that the invalid record had been durable.
    is_proof: bool,
    /// There was no record, and its place is lost all the same.
    is_nobodys: bool,
    /// The first record with a higher lsn.
    next: Option<Next>,
    /// Where the last record seen in the same segment ends.
    end_here: usize,
}

/// A record behind one that is lost.
#[derive(Clone, Copy, Debug)]
struct Next {
    segment: u64,
    offset: usize,
    lsn: u64,
    owners: Option<Owners>,
}

impl Behind {
    fn see(&mut self, segment: u64, record: &Record, lsn: u64) {
        let header = &record.header;
        if header.lsn > lsn && self.next.is_none() {
            self.next = Some(Next {
                segment,
                offset: record.offset,
                lsn: header.lsn,
                owners: header.owners,
            });
        }
        self.is_proof |= header.synced_lsn >= lsn && header.lsn > lsn;
    }

    /// Who may have been in the records from `expected` on that are lost, if the one behind them
    /// tells of all of them.
    fn owners_from(&self, expected: Option<u64>) -> Option<OwnerSet> {
        if self.is_nobodys {
            return Some(OwnerSet::default());
        }
        let next = self.next?;
        let owners = next.owners?;
        let lost = next.lsn.checked_sub(expected?)?;
        (lost <= u64::from(owners.reach)).then_some(owners.before)
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
