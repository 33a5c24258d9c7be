//! Segments before the base: by their footers, or record by record.

use bytes::Bytes;
use raft_proto::Index;

use super::Walk;
use super::segment_bytes::{Record, SegmentBytes};
use crate::error::LogError;
use crate::index::{At, AtSeal, Span};
use crate::item::{Item, Key, items};
use crate::record::RecordKind;
use crate::segment::{SEGMENT_HEADER_BYTES, TRAILER_BYTES, Trailer};

impl Walk<'_> {
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
        let is_footer =
            record.header.kind == RecordKind::Footer && record.header.lsn == trailer.footer_lsn;
        let Some(table) = record.table.clone().filter(|_| is_footer) else {
            return Ok(None);
        };
        if segment.data(&record)?.is_none() || items(&table).any(|item| item.is_none()) {
            return Ok(None);
        }
        self.note_mended(segment.number, &record);
        let data_at = to_u64(record.data_at());
        let (mut live_bytes, mut batches) = (0_u64, 0_u64);
        for (owner, item) in items(&table).flatten() {
            let (key, runs) = match (owner, item) {
                (Some(key), Item::Runs(runs)) => (key, runs),
                (None, Item::Successor(_)) => continue,
                _ => return Ok(None),
            };
            let list_end = u64::from(runs.list_at)
                + u64::from(runs.list_count) * to_u64(crate::index::LIST_RUN_BYTES);
            let is_within =
                runs.bytes <= to_u64(segment.len()) && list_end <= to_u64(record.header.data_len);
            if runs.first > runs.last || !is_within {
                return Ok(None);
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
        // About as long as the last one.
        let end = to_u64(record.end()).saturating_sub(self.checkpoint_len);
        if let Some(info) = self.tables.segments.get_mut(&segment.number) {
            info.at_seal = AtSeal::new(end, live_bytes, batches);
        }
        Ok(Some(offset))
    }

    /// Takes what lies in a segment before the base, whose checkpoint names every replica there is.
    fn take_older(&mut self, key: Key, overwrites_from: Option<Index>, span: Span) {
        if self.tables.replicas.contains_key(&key) {
            self.tables.take_list(key, overwrites_from, &[span]);
        }
    }

    /// Goes through a sealed segment record by record, for lack of a footer.
    pub(super) fn take_records(&mut self, segment: &mut SegmentBytes<'_>) -> Result<(), LogError> {
        let mut at = SEGMENT_HEADER_BYTES;
        let mut is_whole = true;
        let mut has_footer = false;
        let mut due = None;
        while let Some(record) = segment.durable_from(at, due)? {
            due = record.header.lsn.checked_add(1);
            self.note_mended(segment.number, &record);
            if record.offset != at {
                is_whole = false;
                self.may_count_overwritten = true;
                self.damage(segment.number, to_u64(at), "records are lost", &[]);
            }
            at = record.end();
            has_footer = record.header.kind == RecordKind::Footer;
            let Some(table) = &record.table else {
                is_whole = false;
                self.may_count_overwritten = true;
                let offset = to_u64(record.offset);
                self.damage(segment.number, offset, "a record's table is lost", &[]);
                continue;
            };
            self.take_spans(segment.number, &record, table);
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
        self.may_count_overwritten |= !has_footer;
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

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
