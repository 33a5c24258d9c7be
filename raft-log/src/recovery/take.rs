//! Taking what a record says into the tables, and noting what is wrong with it.

use bytes::Bytes;
use raft_proto::Index;

use super::scan::Cursor;
use super::segment_bytes::{BadBatch, Record, SegmentBytes};
use super::{LostTable, MendedReport, Walk};
use crate::error::LogError;
use crate::item::{Item, Key, Limits, items};
use crate::lane::Active;
use crate::record::RecordKind;

impl Walk<'_> {
    /// Takes what a whole record says. `false` if its table makes no sense.
    pub(super) fn take(
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
    pub(super) fn lose_table(&mut self, segment: u64, record: &Record) {
        self.lost_tables.push(LostTable {
            segment,
            offset: to_u64(record.offset),
            owners: record.header.owners.map(|owners| owners.own),
        });
    }
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
