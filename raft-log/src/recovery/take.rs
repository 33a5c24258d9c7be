//! Taking what a record says into the tables, and noting what is wrong with it.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use raft_proto::Index;

use super::scan::Cursor;
use super::segment_bytes::{BadBatch, Record, SegmentBytes};
use super::{LostTable, MendedReport, Named, SegmentFile, Walk};
use crate::error::LogError;
use crate::item::{ApartItem, Item, Key, Limits, items};
use crate::lane::Active;
use crate::owners::OwnerSet;
use crate::record::RecordKind;

impl Walk<'_> {
    /// Takes what a whole record says. `false` if its table makes no sense.
    pub(super) fn take(
        &mut self,
        (dir, files): (&Path, &BTreeMap<u64, SegmentFile>),
        segment: u64,
        record: &Record,
        mut active: Option<&mut Active>,
        cursor: &Cursor,
    ) -> Result<bool, LogError> {
        let Some(table) = &record.table else {
            return Ok(false);
        };
        // The base's checkpoint was taken before, and a footer says nothing new of records that
        // are gone through.
        let is_told = matches!(
            record.header.kind,
            RecordKind::Checkpoint | RecordKind::Footer
        );
        if is_told && cursor.expected.is_none() {
            return Ok(cursor.has_base);
        }
        let makes_sense = |item: Option<(_, Item)>| match item {
            None => false,
            Some((_, Item::Released(numbers))) => numbers
                .iter()
                .all(|number| may_release(files, segment, *number)),
            Some((_, Item::Apart(found))) => found.iter().all(|apart| self.may_name(apart)),
            Some(_) => true,
        };
        if !items(table).all(makes_sense) {
            return Ok(false);
        }
        if let Some(limits) = limits_in(table) {
            self.limits = limits;
        }
        if is_told {
            return Ok(true);
        }
        let mut at = record.data_at();
        for (owner, item) in items(table).flatten() {
            let Some(key) = owner else {
                match item {
                    Item::Released(numbers) => self.released.extend(numbers),
                    Item::Apart(found) => {
                        for apart in found {
                            // It is said twice.
                            if !self.is_named(&apart) {
                                let named = Named::apart(&apart, segment);
                                self.named.insert(apart.number, named);
                                self.misnamed.remove(&apart.number);
                                self.take_sealed(dir, files, apart.number, named)?;
                            }
                        }
                    }
                    _ => {}
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
        Ok(true)
    }

    /// Whether a record may name a segment apart, which counts before its own: one that nothing else is
    /// known of, or no such one as was named, or the same again.
    fn may_name(&self, apart: &ApartItem) -> bool {
        let is_known = self.tables.segments.contains_key(&apart.number);
        apart.before.is_none() && (!is_known || self.is_named(apart))
    }

    fn is_named(&self, apart: &ApartItem) -> bool {
        let named = self.named.get(&apart.number);
        named.is_some_and(|it| it.before.is_some() && it.incarnation == apart.incarnation)
    }

    pub(super) fn apply(&mut self, key: Key, item: Item) {
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
    pub(super) fn take_damaged(
        &mut self,
        later: (&Path, &BTreeMap<u64, SegmentFile>),
        segment: &SegmentBytes<'_>,
        record: &Record,
        active: &mut Active,
        cursor: &Cursor,
    ) -> Result<(), LogError> {
        let bad = segment.bad_batches(record)?;
        if !self.take(later, segment.number, record, Some(active), cursor)? {
            self.lose_table(segment.number, record, cursor);
            return Ok(());
        }
        self.report_bad(segment.number, record, bad);
        Ok(())
    }

    pub(super) fn report_bad(&mut self, segment: u64, record: &Record, bad: Vec<BadBatch>) {
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
    pub(super) fn is_live(&self, batch: &BadBatch) -> bool {
        let Some(replica) = self.tables.replicas.get(&batch.key) else {
            return false;
        };
        self.was_sound(batch.key)
            && replica.spans.iter().any(|span| {
                span.segment == batch.segment
                    && span.first <= batch.last
                    && span.last >= batch.first
            })
    }

    /// A flipped bit that was mended is told, and stops nobody.
    pub(super) fn note_mended(&mut self, segment: u64, record: &Record) {
        let mended = MendedReport {
            segment,
            offset: to_u64(record.offset),
        };
        // Verifying all comes to it twice.
        if record.is_mended && !self.report.mended.contains(&mended) {
            self.report.mended.push(mended);
        }
    }

    /// The table of a record is lost, its header is not.
    pub(super) fn lose_table(&mut self, segment: u64, record: &Record, cursor: &Cursor) {
        let offset = to_u64(record.offset);
        let header = &record.header;
        let owners = match header.kind {
            RecordKind::Data | RecordKind::Watermark => header.owners.map(|owners| owners.own),
            // In its place in the chain it says nothing that the records before it have not said.
            _ if cursor.expected.is_some() => {
                let reason = "a table that repeats what other records say";
                return self.damage(segment, offset, reason, &[]);
            }
            // Those before it are gone.
            _ if header.lsn > 1 => None,
            _ => Some(OwnerSet::default()),
        };
        self.lost_tables.push(LostTable {
            segment,
            offset,
            owners,
        });
    }
}

/// Whether a record of a segment may release another one: that lies before it, or apart.
fn may_release(files: &BTreeMap<u64, SegmentFile>, segment: u64, number: u64) -> bool {
    let is_in_turn = |file: &SegmentFile| {
        let header = file.header;
        header.is_some_and(|header| header.number == number && !header.is_apart)
    };
    number < segment || number > segment && !files.get(&number).is_some_and(is_in_turn)
}

/// What a table says of limits.
fn limits_in(table: &Bytes) -> Option<Limits> {
    items(table).find_map(|item| match item {
        Some((None, Item::Limits(limits))) => Some(limits),
        _ => None,
    })
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
