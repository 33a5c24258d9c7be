//! What lies behind a record that is not whole: proof that it had been durable, or a tail to cut.

use std::collections::BTreeMap;
use std::path::Path;

use super::scan::Cursor;
use super::segment_bytes::{Record, SegmentBytes};
use super::{Cut, SegmentFile, Walk};
use crate::error::LogError;
use crate::lane::Active;
use crate::owners::{OwnerSet, Owners};
use crate::record::{RECORD_ALIGN, RECORD_HEADER_BYTES};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES};

/// What lies behind an invalid record.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// A header says that the invalid record had been durable.
    pub(super) is_proof: bool,
    /// There was no record, and its place is lost all the same.
    pub(super) is_nobodys: bool,
    /// The first record with a higher lsn.
    pub(super) next: Option<Next>,
    /// Where the last record seen in the same segment ends.
    pub(super) end_here: usize,
}

/// A record behind one that is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub(super) segment: u64,
    pub(super) offset: usize,
    pub(super) lsn: u64,
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
    pub(super) fn owners_from(&self, expected: Option<u64>) -> Option<OwnerSet> {
        if self.is_nobodys {
            return Some(OwnerSet::default());
        }
        let next = self.next?;
        let owners = next.owners?;
        let lost = next.lsn.checked_sub(expected?)?;
        (lost <= u64::from(owners.reach)).then_some(owners.before)
    }
}

impl Walk<'_> {
    /// Whether more is to be cut than one write may leave behind when it is interrupted.
    pub(super) fn is_too_large(
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
    pub(super) fn write_max(&self) -> u64 {
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
    pub(super) fn reach(&self) -> usize {
        usize::try_from(self.write_max()).unwrap_or(usize::MAX / 2)
    }

    /// Looks for whole headers behind an invalid record, in this segment and in all later ones.
    pub(super) fn look_behind(
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
            let is_one = |header: &SegmentHeader| header.number == *number && !header.is_apart;
            let Some(header) = file.header.filter(is_one) else {
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
    pub(super) fn cut(
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
            self.report.note_torn(segment.number, cut.offset, cut.bytes);
        } else if cursor.lone_watermark.is_some() {
            // Its second record, of which nothing reached the disk.
            let bytes = to_u64(RECORD_HEADER_BYTES);
            self.report.note_torn(segment.number, cut.offset, bytes);
        }
        self.may_be_cut |= last_used.is_some() && !cursor.is_closed;
        let is_kept = cursor.is_closed && cut.bytes == 0 && !is_unreadable;
        cut.is_dirty = last_used.is_some() && !is_kept;
        Ok(cut)
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
