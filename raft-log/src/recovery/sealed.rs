//! Segments before the base: by their footers, or record by record.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use raft_proto::Index;

use super::segment_bytes::{Record, SegmentBytes};
use super::{Named, SegmentFile, Walk};
use crate::error::LogError;
use crate::index::{At, AtSeal, SegmentInfo, Span};
use crate::item::{EntriesItem, Item, Key, items};
use crate::record::RecordKind;
use crate::segment::{SEGMENT_HEADER_BYTES, TRAILER_BYTES, Trailer};

impl Walk<'_> {
    /// Takes a segment that was sealed before what the records at hand say: by its footer, or record
    /// by record where there is none.
    pub(super) fn take_sealed(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        number: u64,
        named: Named,
    ) -> Result<(), LogError> {
        let Named {
            incarnation,
            before,
            free_bytes,
        } = named;
        let Some(file) = files.get(&number).copied() else {
            self.report.missing.push(number);
            return Ok(());
        };
        let is_other = file.header.is_some_and(|header| {
            (header.number, header.incarnation) != (number, incarnation)
                || header.is_apart != before.is_some()
        });
        if is_other {
            self.misnamed.insert(number);
            return Ok(());
        }
        if file.header.is_none() {
            self.damage(number, 0, "the header and its copy are unreadable", &[]);
        }
        self.tables.segments.insert(
            number,
            SegmentInfo {
                file: file.file,
                len: file.len,
                incarnation,
                live_spans: 0,
                live_bytes: 0,
                is_sealed: true,
                at_seal: AtSeal::default(),
                before,
            },
        );
        let mut segment = SegmentBytes::open(self.vfs, dir, &file, incarnation, self.options)?;
        segment.glimpse(true);
        let footer_at = self.take_footer(&mut segment)?;
        segment.glimpse(false);
        if before.is_some()
            && let Some(info) = self.tables.segments.get_mut(&number)
        {
            // No more is believed than there can be.
            info.at_seal.other_bytes = free_bytes.min(file.len);
        }
        match footer_at {
            Some(footer_at) if self.options.verify_all => {
                self.verify_records(&mut segment, footer_at)?;
            }
            Some(_) => {}
            None => self.take_records(&mut segment)?,
        }
        Ok(())
    }

    /// Takes a sealed segment by its footer, and says where that lies; `None` if there is none
    /// that holds.
    pub(super) fn take_footer(
        &mut self,
        segment: &mut SegmentBytes<'_>,
    ) -> Result<Option<usize>, LogError> {
        let Some(trailer_at) = segment.len().checked_sub(TRAILER_BYTES) else {
            return Ok(None);
        };
        let bytes = segment.bytes(trailer_at, TRAILER_BYTES)?;
        let Some(trailer) = Trailer::decode(&bytes, segment.place(trailer_at)) else {
            return Ok(None);
        };
        let offset = usize::try_from(trailer.footer_offset).unwrap_or(usize::MAX);
        let Some(record) = segment.durable(offset, Some(trailer.footer_lsn))? else {
            return Ok(None);
        };
        let is_taken =
            record.header.lsn == trailer.footer_lsn && self.take_lists(segment, &record)?;
        Ok(is_taken.then_some(offset))
    }

    /// Takes what a footer lists. `false` if it is none, or does not hold.
    fn take_lists(
        &mut self,
        segment: &SegmentBytes<'_>,
        record: &Record,
    ) -> Result<bool, LogError> {
        let is_footer = record.header.kind == RecordKind::Footer;
        let Some(table) = record.table.clone().filter(|_| is_footer) else {
            return Ok(false);
        };
        if segment.data(record)?.is_none() || items(&table).any(|item| item.is_none()) {
            return Ok(false);
        }
        self.note_mended(segment.number, record);
        let data_at = to_u64(record.data_at());
        let (mut live_bytes, mut batches) = (0_u64, 0_u64);
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
            live_bytes = live_bytes.saturating_add(runs.bytes);
            batches += u64::from(runs.list_count);
            self.take_older(key, runs.overwrites_from, span);
        }
        if let Some(info) = self.tables.segments.get_mut(&segment.number) {
            // About as long as the last one.
            let end = to_u64(record.end()).saturating_sub(self.checkpoint_len);
            info.at_seal = AtSeal::new(end, live_bytes, batches);
        }
        Ok(true)
    }

    /// Takes what lies in a segment before the base, whose checkpoint names every replica there is.
    fn take_older(&mut self, key: Key, overwrites_from: Option<Index>, span: Span) {
        if self.tables.replicas.contains_key(&key) {
            self.tables.take_list(key, overwrites_from, &[span]);
        }
    }

    /// Goes through a sealed segment record by record, for lack of a footer.
    ///
    /// Of one apart the footer counts, if it is whole and the trailer alone is lost: its records hold
    /// copies that had died before it was named, too. If there is none, a copy counts if it is what the
    /// state of its replica says.
    pub(super) fn take_records(&mut self, segment: &mut SegmentBytes<'_>) -> Result<(), LogError> {
        let info = self.tables.segments.get(&segment.number);
        let is_apart = info.is_some_and(|info| info.before.is_some());
        if is_apart && self.take_lists_without_trailer(segment)? {
            return Ok(());
        }
        let mut at = SEGMENT_HEADER_BYTES;
        let mut is_whole = true;
        let mut has_footer = false;
        let mut due = None;
        while let Some(record) = segment.durable_from(at, due)? {
            due = record.header.lsn.checked_add(1);
            self.note_mended(segment.number, &record);
            if record.offset != at {
                is_whole = false;
                self.may_count_overwritten |= !is_apart;
                self.damage(segment.number, to_u64(at), "records are lost", &[]);
            }
            at = record.end();
            has_footer = record.header.kind == RecordKind::Footer;
            let Some(table) = &record.table else {
                is_whole = false;
                self.may_count_overwritten |= !is_apart;
                let offset = to_u64(record.offset);
                self.damage(segment.number, offset, "a record's table is lost", &[]);
                continue;
            };
            self.take_spans(segment.number, &record, table, is_apart);
            if segment.data(&record)?.is_none() {
                is_whole = false;
                let bad = segment.bad_batches(&record)?;
                self.report_bad(segment.number, &record, bad);
            }
            if has_footer {
                break;
            }
        }
        // The last of them may be lost with the footer.
        self.may_count_overwritten |= !has_footer && !is_apart;
        if is_whole {
            let reason = if has_footer {
                "the trailer is lost; the records are whole"
            } else {
                "the footer is lost; the records found before it are whole"
            };
            self.damage(segment.number, to_u64(at), reason, &[]);
        }
        Ok(())
    }

    /// Takes the footer of a segment whose trailer is lost. `false` if there is none that is whole.
    fn take_lists_without_trailer(
        &mut self,
        segment: &mut SegmentBytes<'_>,
    ) -> Result<bool, LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some(record) = segment.durable_from(at, None)? {
            at = record.end();
            if record.header.kind == RecordKind::Footer {
                let is_taken = self.take_lists(segment, &record)?;
                if is_taken {
                    let reason = "the trailer is lost; the footer is whole";
                    self.damage(segment.number, to_u64(at), reason, &[]);
                    if self.options.verify_all {
                        self.verify_records(segment, record.offset)?;
                    }
                }
                return Ok(is_taken);
            }
        }
        Ok(false)
    }

    /// How far copied entries are those that their replica's log holds now: of the others the terms
    /// differ.
    fn as_due(&self, key: Key, item: &EntriesItem) -> Option<Index> {
        if item.last.index.distance_from(item.first.index) > to_u64(item.len) {
            // More entries than bytes.
            return None;
        }
        let state = &self.tables.replicas.get(&key)?.state;
        let is_due = |index: Index| {
            let due = state.term_at(index);
            due.is_none_or(|due| due == item.term_at(index))
        };
        let mut last = item.last.index.min(state.last.index);
        while last >= item.first.index && !is_due(last) {
            last = last.previous()?;
        }
        (last >= item.first.index).then_some(last)
    }

    /// Takes the places of entries alone: what the replicas are, the checkpoint has said.
    fn take_spans(&mut self, segment: u64, record: &Record, table: &Bytes, is_apart: bool) {
        if record.header.kind != RecordKind::Data {
            return;
        }
        let mut at = record.data_at();
        for (owner, item) in items(table).flatten() {
            if let (Some(key), Item::Entries(item)) = (owner, item) {
                if at.saturating_add(item.len) > record.end() {
                    return;
                }
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
                let due = match is_apart {
                    true => self.as_due(key, &item),
                    false => Some(item.last.index),
                };
                if let Some(last) = due {
                    self.take_older(key, overwrites, Span { last, ..span });
                }
                at += item.len;
            }
        }
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
