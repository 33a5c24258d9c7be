//! Holding the entries that count against their own frames: to verify all, or because records that
//! are lost may have overwritten some.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use raft_proto::{Batch, Index};

use super::segment_bytes::SegmentBytes;
use super::{SegmentFile, Walk};
use crate::error::LogError;
use crate::index::{At, LIST_RUN_BYTES, Span, decode_list};
use crate::item::Key;
use crate::record::RecordKind;
use crate::segment::SEGMENT_HEADER_BYTES;
use crate::state::{Health, ReplicaState};

/// Bytes of a segment that do not hold. Whom they concern, the entries say.
pub(super) struct Lost {
    segment: u64,
    range: Range<usize>,
    reason: &'static str,
}

/// Entries that count and lie together.
struct Part {
    key: Key,
    first: Index,
    last: Index,
    offset: usize,
    len: usize,
}

impl Part {
    fn is_in(&self, range: &Range<usize>) -> bool {
        self.offset < range.end && range.start < self.offset.saturating_add(self.len)
    }

    /// Whether its frames hold, and are of the terms that the replica's state gives them.
    fn is_whole(&self, segment: &SegmentBytes<'_>, state: &ReplicaState) -> Result<bool, LogError> {
        let bytes = segment.bytes(self.offset, self.len)?;
        let Ok(batch) = Batch::decode(self.key.0, bytes) else {
            return Ok(false);
        };
        let is_due = |index| {
            let term = batch.term_at(index);
            term.is_some() && state.term_at(index).is_none_or(|due| term == Some(due))
        };
        Ok(is_due(self.first) && is_due(self.last))
    }
}

impl Walk<'_> {
    /// Goes through the records of a segment that was taken by its footer, which lies at
    /// `footer_at`: what of it does not hold is noted.
    pub(super) fn verify_records(
        &mut self,
        segment: &mut SegmentBytes<'_>,
        footer_at: usize,
    ) -> Result<(), LogError> {
        let number = segment.number;
        let mut at = SEGMENT_HEADER_BYTES;
        let mut due = None;
        while at < footer_at {
            let record = segment.durable_from(at, due)?;
            let next = record.as_ref().map_or(footer_at, |record| record.offset);
            if next > at {
                self.lose(number, at..next, "records are lost");
            }
            let Some(record) = record else {
                return Ok(());
            };
            if record.header.kind == RecordKind::Footer {
                return Ok(());
            }
            due = record.header.lsn.checked_add(1);
            self.note_mended(number, &record);
            let (data_at, end) = (record.data_at(), record.end());
            if record.table.is_none() {
                let range = record.offset..data_at;
                self.lose(number, range, "a record's table fails its checksum");
            }
            if segment.data(&record)?.is_none() {
                self.lose(number, data_at..end, "a record's data fails its checksum");
            }
            at = end;
        }
        Ok(())
    }

    fn lose(&mut self, segment: u64, range: Range<usize>, reason: &'static str) {
        self.lost.push(Lost {
            segment,
            range,
            reason,
        });
    }

    /// Checks every entry that counts and lies in a segment before the base, or in one apart, and
    /// names those that fail beside what was lost there.
    pub(super) fn verify_entries(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        base: u64,
    ) -> Result<(), LogError> {
        let mut lost = std::mem::take(&mut self.lost);
        for (number, spans) in self.spans_by_segment(base) {
            let here = lost.extract_if(.., |lost| lost.segment == number);
            let here = here.collect();
            let info = self.tables.segments.get(&number);
            let (Some(file), Some(info)) = (files.get(&number), info) else {
                continue;
            };
            let incarnation = info.incarnation;
            let segment = SegmentBytes::open(self.vfs, dir, file, incarnation, self.options)?;
            let bad = self.bad_parts(&segment, &spans)?;
            self.report_parts(number, here, &bad);
        }
        for Lost {
            segment,
            range,
            reason,
        } in lost
        {
            self.damage(segment, to_u64(range.start), reason, &[]);
        }
        Ok(())
    }

    fn spans_by_segment(&self, base: u64) -> BTreeMap<u64, Vec<(Key, Span)>> {
        let is_apart = |number: u64| {
            let info = self.tables.segments.get(&number);
            info.is_some_and(|info| info.before.is_some())
        };
        let mut found: BTreeMap<u64, Vec<(Key, Span)>> = BTreeMap::new();
        for key in self.tables.keys() {
            let replica = &self.tables.replicas[&key];
            let is_sound = replica.state.health == Health::Sound;
            for span in &replica.spans {
                // Those of a segment without a footer were checked as its records were gone
                // through; here it is for their terms.
                let is_told = !is_sound && matches!(span.at, At::Batch { .. });
                let is_concerned = span.segment < base || is_apart(span.segment);
                if is_concerned && !is_told {
                    found.entry(span.segment).or_default().push((key, *span));
                }
            }
        }
        found
    }

    /// What does not hold of the entries in a segment, in the order in which they lie there.
    fn bad_parts(
        &self,
        segment: &SegmentBytes<'_>,
        spans: &[(Key, Span)],
    ) -> Result<Vec<Part>, LogError> {
        let mut parts = Vec::new();
        let mut bad = Vec::new();
        for (key, span) in spans {
            match parts_of(segment, *key, span)? {
                Some(found) => parts.extend(found),
                None => bad.push(Part {
                    key: *key,
                    first: span.first,
                    last: span.last,
                    offset: SEGMENT_HEADER_BYTES,
                    len: 0,
                }),
            }
        }
        parts.sort_by_key(|part| part.offset);
        for part in parts {
            let state = &self.tables.replicas[&part.key].state;
            if !part.is_whole(segment, state)? {
                bad.push(part);
            }
        }
        Ok(bad)
    }

    fn report_parts(&mut self, segment: u64, lost: Vec<Lost>, bad: &[Part]) {
        let named = |part: &Part| (part.key, part.first, part.last);
        for Lost { range, reason, .. } in &lost {
            let hit = bad.iter().filter(|part| part.is_in(range)).map(named);
            let hit: Vec<_> = hit.collect();
            self.damage(segment, to_u64(range.start), reason, &hit);
        }
        for part in bad {
            if !lost.iter().any(|lost| part.is_in(&lost.range)) {
                let reason = "other entries than recorded";
                self.damage(segment, to_u64(part.offset), reason, &[named(part)]);
            }
        }
    }
}

/// Where the entries of a span lie; `None` if its list does not say so of all of them.
fn parts_of(
    segment: &SegmentBytes<'_>,
    key: Key,
    span: &Span,
) -> Result<Option<Vec<Part>>, LogError> {
    let (offset, count, crc) = match span.at {
        At::List { offset, count, crc } => (to_usize(offset), count, crc),
        At::Batch { offset, len } => {
            return Ok(Some(vec![Part {
                key,
                first: span.first,
                last: span.last,
                offset: to_usize(offset),
                len,
            }]));
        }
    };
    let len = to_usize(u64::from(count)).saturating_mul(LIST_RUN_BYTES);
    let list = segment.bytes(offset, len)?;
    let Some(list) = decode_list(&list, segment.place(offset), crc) else {
        return Ok(None);
    };
    let mut parts = Vec::new();
    let mut next = span.first;
    for run in list {
        let last = run.first.plus(u64::from(run.count) - 1);
        if last < next || run.first > span.last {
            continue;
        }
        if run.first > next {
            return Ok(None);
        }
        parts.push(Part {
            key,
            first: next,
            last: last.min(span.last),
            offset: to_usize(run.offset),
            len: to_usize(u64::from(run.len)),
        });
        next = last.next();
    }
    Ok((next > span.last).then_some(parts))
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}

/// An offset past all memory lies past every file, too.
fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
