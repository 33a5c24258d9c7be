//! Segments apart: what laggards have in old segments is moved into segments that hold nothing
//! else. So what the load writes, most of which dies soon, does not come to lie beside it.
//!
//! ```text
//! old segments ──▶ records of one that is apart ──▶ footer ──▶ a record of the lane names it ──▶ index
//! ```
//!
//! Until a record of the lane names it, a segment apart counts for nothing: a crash loses copies.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use raft_proto::{Batch, Index};

use crate::error::LogError;
use crate::index::{AtSeal, LIST_RUN_BYTES, ListRun, SegmentInfo, Tables};
use crate::item::{ApartItem, ENTRIES_ITEM_BYTES, Item, Key};
use crate::lane::seal::{RUNS_ITEM_BYTES, Range, SealedReplica};
use crate::lane::{FlightKind, Lane};
use crate::owners::Lately;
use crate::pool::{Dead, Spare};
use crate::read::LogReader;
use crate::record::{Place, RECORD_ALIGN, RECORD_HEADER_BYTES, RecordKind};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES, Trailer, segment_path};
use crate::staging::Staging;
use crate::vfs::{FileId, Op};

/// Small batches of a replica are joined up to here: each run costs an item and a place in a
/// footer, and each read checks a whole run.
pub(super) const RUN_BYTES: usize = 64 << 10;
/// What a run takes of a footer.
const RUN_IN_FOOTER_BYTES: usize = RUNS_ITEM_BYTES + LIST_RUN_BYTES;

/// A segment that moved entries are written to.
#[derive(Debug)]
pub(super) struct Apart {
    number: u64,
    file: FileId,
    len: u64,
    incarnation: u64,
    offset: u64,
    /// Its records are counted by themselves.
    lsn: u64,
    lately: Lately,
    /// The segments that are emptied, next last.
    victims: Vec<u64>,
    /// Who may still have something in the next of them, last first; nothing once all was copied.
    keys: Option<Vec<Key>>,
    /// What the last of them has before this is copied.
    next: Index,
    runs: Vec<Copied>,
    /// What came next had no room in it.
    is_full: bool,
    stage: Stage,
}

/// How far it has come.
#[derive(Debug)]
enum Stage {
    /// More is to be copied.
    Open,
    /// All is, or it is full.
    Full,
    /// Its footer is durable, and says what counts now; the next record of the lane names it.
    Sealed(Vec<SealedReplica>),
}

/// How copying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copying {
    Done,
    /// It is enough for now.
    Later,
    /// There is no room for more.
    Full,
    /// It cannot be read, or is too large for any.
    Impossible,
}

/// A batch, and from where it was copied.
#[derive(Clone, Copy, Debug)]
struct Copied {
    key: Key,
    from: u64,
    run: ListRun,
}

impl Apart {
    pub(super) fn new(spare: Spare, file: FileId, victims: Vec<u64>) -> Self {
        Self {
            number: spare.number,
            file,
            len: spare.len,
            incarnation: spare.incarnation,
            offset: to_u64(SEGMENT_HEADER_BYTES),
            lsn: 0,
            lately: Lately::default(),
            victims,
            keys: None,
            next: Index::ZERO,
            runs: Vec::new(),
            is_full: false,
            stage: Stage::Open,
        }
    }

    pub(super) const fn file(&self) -> FileId {
        self.file
    }

    /// How large a batch more may be behind what is staged, with the footer then: what it says of
    /// terms and memberships is less than its entries are.
    fn room(&self, staged: &Staging) -> usize {
        room_behind(
            self.len,
            self.offset + to_u64(staged.len()),
            self.runs.len(),
        )
    }

    /// What others could take in its place: what could have been put into it if there had been more,
    /// and what died before its footer. Little of it is nothing, and so is an end that was too small
    /// for what came next: it would be left elsewhere as well.
    fn free_bytes(&self) -> u64 {
        let end = match self.is_full {
            true => 0,
            false => to_u64(self.room(&Staging::default())),
        };
        let free = end + self.died_bytes();
        if free > self.len / 32 { free } else { 0 }
    }

    /// What of the copies died before the footer was written.
    fn died_bytes(&self) -> u64 {
        let Stage::Sealed(sealed) = &self.stage else {
            return 0;
        };
        let copied: u64 = self
            .runs
            .iter()
            .map(|copied| u64::from(copied.run.len))
            .sum();
        let spans = sealed.iter().flat_map(|replica| &replica.spans);
        copied.saturating_sub(spans.map(|span| span.bytes).sum())
    }

    /// Copies what a replica has in a segment, from where it stands on.
    fn copy(
        &mut self,
        reader: &LogReader,
        (key, from): (Key, u64),
        ranges: &[(Index, Index)],
        staging: &mut Staging,
        budget: usize,
    ) -> Copying {
        for (first, last) in ranges {
            let mut next = self.next.max(*first);
            while next <= *last {
                let most = budget.saturating_sub(staging.len()).min(RUN_BYTES);
                if most == 0 {
                    return Copying::Later;
                }
                let room = self.room(staging);
                let most = most.min(room);
                // Damage is found here before anybody else reads it: the entries stay where
                // they are, and whoever reads them is told.
                self.next = next;
                let read = |most| reader.entries(key.0, key.1, next, *last, most);
                // What lies before a damaged entry can be read.
                let batches = match read(most) {
                    Err(LogError::Damaged { .. }) => read(1),
                    batches => batches,
                };
                let batches = match batches {
                    Err(LogError::Io(error)) if !error.is_of_medium() => return Copying::Later,
                    batches => batches.ok(),
                };
                let Some(batch) = batches.and_then(|batches| joined(key, batches)) else {
                    return Copying::Impossible;
                };
                let takes = batch.size_bytes() + table_bytes(&batch);
                if takes > room {
                    let start = to_u64(SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES);
                    return match takes > room_behind(self.len, start, 0) {
                        true => Copying::Impossible,
                        false => Copying::Full,
                    };
                }
                next = batch.last().index.next();
                self.next = next;
                staging.entries(key, &batch, true);
                let run = run_of(&batch);
                self.runs.push(Copied { key, from, run });
            }
        }
        Copying::Done
    }

    const fn place(&self, offset: u64) -> Place {
        Place {
            incarnation: self.incarnation,
            offset,
        }
    }

    /// Frames a record at its end. Returns where it begins, its buffers, and where its data does.
    fn frame(&mut self, kind: RecordKind, lane: u16, staging: &mut Staging) -> Framed {
        self.lsn += 1;
        let at = self.offset;
        // It says of no record of the lane that it is durable.
        let lsns = (self.lsn, 0);
        let place = self.place(at);
        let (buffers, header) = staging.frame(kind, lane, lsns, place, &mut self.lately);
        self.offset += to_u64(header.total());
        assert!(self.offset <= self.len, "a record fits its segment");
        Framed {
            at,
            buffers,
            data_at: at + to_u64(RECORD_HEADER_BYTES + header.table_len),
            bytes: to_u64(header.total()),
        }
    }

    /// What of the copies counts: that of which the original does. By replica, in order.
    fn ranges(&mut self, tables: &Tables) -> Vec<Range> {
        self.runs
            .sort_unstable_by_key(|copied| (copied.key, copied.run.first, copied.from));
        let mut counts: BTreeMap<(Key, Index), (ListRun, u64)> = BTreeMap::new();
        for Copied { key, from, run } in &self.runs {
            let replica = tables.replicas.get(key);
            let spans = replica.map(|replica| replica.spans_from(run.first));
            for span in spans.into_iter().flatten() {
                let Some(part) = run.part(span.first, span.last) else {
                    break;
                };
                if span.segment == *from {
                    let share = u64::from(run.len) * u64::from(part.count) / u64::from(run.count);
                    counts.insert((*key, part.first), (part, share.max(1)));
                }
            }
        }
        let mut ranges: Vec<Range> = Vec::new();
        for ((key, _), (run, bytes)) in counts {
            match ranges.last_mut() {
                Some(range) if range.is_followed_by(key, run.first) => {
                    range.bytes += bytes;
                    range.runs.push(run);
                }
                _ => ranges.push(Range {
                    key,
                    overwrites_from: None,
                    bytes,
                    runs: vec![run],
                }),
            }
        }
        ranges
    }
}

/// A record, ready to be written.
struct Framed {
    at: u64,
    buffers: Vec<Bytes>,
    data_at: u64,
    bytes: u64,
}

impl Lane {
    /// Copies the next piece.
    pub(super) fn fill_apart(&mut self, budget: usize) {
        let Some(mut apart) = self.apart.take() else {
            return;
        };
        if matches!(apart.stage, Stage::Open) {
            let mut staging = Staging::default();
            let has_more = self.copy_some(&mut apart, &mut staging, budget);
            if !has_more {
                apart.stage = Stage::Full;
            }
            if !staging.is_empty() {
                self.write_apart(&mut apart, &mut staging);
            }
        }
        if matches!(apart.stage, Stage::Full) && apart.runs.is_empty() {
            self.give_back(&apart);
        } else {
            self.apart = Some(apart);
        }
    }

    /// Nothing was there to be copied, or nothing could be.
    fn give_back(&mut self, apart: &Apart) {
        let dead = Dead {
            path: segment_path(&self.dir, apart.number),
            len: apart.len,
            incarnation: apart.incarnation,
        };
        let is_held = self.vfs.retire(apart.file);
        self.pool.give_back(dead, is_held);
    }

    /// Stages up to `budget` bytes of what is to be copied. Whether there is more, and room for it.
    fn copy_some(&mut self, apart: &mut Apart, staging: &mut Staging, budget: usize) -> bool {
        let reader = LogReader::new(std::sync::Arc::clone(&self.shared));
        while let Some(victim) = apart.victims.last().copied() {
            let keys = apart.keys.get_or_insert_with(|| self.keys_in(victim));
            let Some(key) = keys.last().copied() else {
                apart.keys = None;
                apart.victims.pop();
                continue;
            };
            let ranges = self.ranges_in(key, victim);
            match apart.copy(&reader, (key, victim), &ranges, staging, budget) {
                Copying::Done => {
                    apart.next = Index::ZERO;
                    apart.keys.as_mut().and_then(Vec::pop);
                }
                Copying::Later => return true,
                Copying::Full => {
                    apart.is_full = true;
                    return false;
                }
                Copying::Impossible => {
                    self.unmovable.insert(victim, (key, apart.next));
                    apart.next = Index::ZERO;
                    apart.keys = Some(Vec::new());
                }
            }
        }
        false
    }

    /// Begins to write a piece; the first one together with the segment's header.
    fn write_apart(&mut self, apart: &mut Apart, staging: &mut Staging) {
        let is_first = apart.lsn == 0;
        let framed = apart.frame(RecordKind::Data, self.options.lane, staging);
        let mut at = framed.data_at;
        let count = staging.batches;
        let new = apart.runs.len() - count;
        for copied in &mut apart.runs[new..] {
            copied.run.offset = at;
            at += u64::from(copied.run.len);
        }
        let (mut offset, mut buffers) = (framed.at, framed.buffers);
        if is_first {
            let header = SegmentHeader {
                lane: self.options.lane,
                identity: self.options.log_identity(),
                number: apart.number,
                incarnation: apart.incarnation,
                len: apart.len,
                is_recycled: true,
                is_apart: true,
            };
            buffers.insert(0, header.encode());
            offset = 0;
        }
        let moved = framed.bytes;
        self.moves.spend(moved);
        self.stats.moved_bytes += moved;
        self.stats.written_bytes += moved;
        self.stats.records += 1;
        let file = apart.file;
        let write = Op::Write {
            file,
            offset,
            buffers,
        };
        let ops = vec![self.vfs.submit(write), self.vfs.submit(Op::Sync { file })];
        self.fly(ops, 1, FlightKind::Apart);
    }

    /// Begins to write the footer of a segment apart to which nothing is added any more, or takes
    /// care that the record that names it is next. Whether something was begun.
    pub(super) fn seal_apart(&mut self) -> bool {
        if self.apart.is_none() {
            return false;
        }
        let names_it = self.queue.front().is_some_and(|record| record.names_apart);
        let may_name = !self.is_closing && self.has_room_to_name();
        let Some(mut apart) = self.apart.take() else {
            return false;
        };
        if matches!(apart.stage, Stage::Sealed(_)) && !(names_it && may_name) {
            // What is written before the record that names it may end what its footer lists. And where
            // that has no room it keeps nobody.
            apart.stage = Stage::Full;
            self.queue.retain(|record| !record.names_apart);
            self.queue_bytes = self.queue.iter().map(Staging::len).sum();
        }
        let is_due = matches!(apart.stage, Stage::Full) && may_name;
        if is_due {
            self.write_apart_footer(&mut apart);
        }
        self.apart = Some(apart);
        is_due
    }

    /// Whether the active segment has room for the record that names a segment apart, or there is a
    /// next one.
    fn has_room_to_name(&self) -> bool {
        !self.lacks_segment || self.has_next_segment() || self.has_room_for(&self.naming(true))
    }

    /// The record that names a segment apart: twice, as a watermark record is, or but once if the disk
    /// is full.
    fn naming(&self, is_plain: bool) -> Staging {
        let mut record = Staging::default();
        record.names_apart = true;
        record.is_plain = is_plain;
        if let Some(item) = self.apart_item() {
            record.item(None, &item);
        }
        // Many numbers may be given out beside one active segment.
        record.item(None, &Item::Limits(self.limits()));
        record
    }

    /// What is said of the segment apart that was sealed.
    pub(super) fn apart_item(&self) -> Option<Item> {
        let apart = self.apart.as_ref()?;
        Some(Item::Apart(vec![ApartItem {
            number: apart.number,
            incarnation: apart.incarnation,
            before: None,
            free_bytes: apart.free_bytes(),
        }]))
    }

    fn write_apart_footer(&mut self, apart: &mut Apart) {
        let ranges = apart.ranges(&self.tables());
        let mut staging = Staging::default();
        let table_len = ranges.len() * RUNS_ITEM_BYTES;
        let data_at = apart.offset + to_u64(RECORD_HEADER_BYTES + table_len);
        let sealed = super::seal::list(&mut staging, ranges, apart.number, apart.place(data_at));
        // It may have to be written again, in the same place.
        let (offset, lsn) = (apart.offset, apart.lsn);
        let framed = apart.frame(RecordKind::Footer, self.options.lane, &mut staging);
        assert_eq!(
            framed.data_at, data_at,
            "a footer's table is as long as its items"
        );
        (apart.offset, apart.lsn) = (offset, lsn);
        let trailer_at = apart.len - to_u64(TRAILER_BYTES);
        let trailer = Trailer {
            footer_offset: framed.at,
            footer_lsn: lsn + 1,
        };
        let file = apart.file;
        let writes = [
            (framed.at, framed.buffers),
            (trailer_at, vec![trailer.encode(apart.place(trailer_at))]),
        ];
        let writes = writes.map(|(offset, buffers)| Op::Write {
            file,
            offset,
            buffers,
        });
        let ops = writes.into_iter().chain([Op::Sync { file }]);
        let ops = ops.map(|op| self.vfs.submit(op)).collect();
        self.stats.written_bytes += framed.bytes;
        self.fly(ops, 1, FlightKind::SealApart(sealed));
    }

    /// The footer is durable: the next record names the segment.
    pub(super) fn sealed_apart(&mut self, sealed: Vec<SealedReplica>) {
        let Some(apart) = &mut self.apart else {
            return;
        };
        apart.stage = Stage::Sealed(sealed);
        let mut record = self.naming(false);
        record.is_plain = self.lacks_segment && !self.has_room_for(&record);
        self.queue_bytes += record.len();
        self.queue.push_front(record);
    }

    /// The record that names it is durable: readers go by it.
    pub(super) fn publish_apart(&mut self) {
        let Some(apart) = self.apart.take() else {
            return;
        };
        let Stage::Sealed(sealed) = &apart.stage else {
            return;
        };
        self.stats.segments_apart += 1;
        let mut tables = self.shared.write();
        let live_bytes = sealed.iter().flat_map(|replica| &replica.spans);
        let live_bytes = live_bytes.map(|span| span.bytes).sum();
        let info = SegmentInfo {
            file: apart.file,
            len: apart.len,
            incarnation: apart.incarnation,
            live_spans: 0,
            live_bytes: 0,
            is_sealed: true,
            at_seal: AtSeal {
                live_bytes,
                other_bytes: apart.free_bytes(),
            },
            before: Some(self.active.number),
        };
        tables.segments.insert(apart.number, info);
        for SealedReplica { key, spans } in sealed {
            if tables.replicas.contains_key(key) {
                tables.take_list(*key, None, spans);
            }
        }
    }
}

/// How large a batch may be in a segment of `len` bytes, with the footer then, behind what ends at
/// `offset` and holds so many runs.
fn room_behind(len: u64, offset: u64, runs: usize) -> usize {
    let footer = RECORD_HEADER_BYTES + (runs + 1) * RUN_IN_FOOTER_BYTES;
    let beside = ENTRIES_ITEM_BYTES + footer + TRAILER_BYTES + 2 * RECORD_ALIGN;
    let left = len.saturating_sub(offset + to_u64(beside));
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// What a batch's item takes at most for each entry: a change of term, and the index of a membership.
const TABLE_BYTES_MAX: u64 = 16 + 8;

/// What a batch's item takes at most, if it changes terms or memberships often.
fn table_bytes(batch: &Batch) -> usize {
    match batch.first().term == batch.last().term && !batch.may_hold_membership() {
        true => 0,
        false => {
            let count = batch.last().index.distance_from(batch.first().index) + 1;
            let table = count.saturating_mul(TABLE_BYTES_MAX);
            usize::try_from(table).unwrap_or(usize::MAX)
        }
    }
}

fn run_of(batch: &Batch) -> ListRun {
    let (first, last) = (batch.first().index, batch.last().index);
    let count = last.distance_from(first) + 1;
    ListRun {
        first,
        offset: 0,
        count: u32::try_from(count).expect("a batch holds fewer than 2^32 entries"),
        len: u32::try_from(batch.size_bytes()).expect("a batch is smaller than 4 GiB"),
    }
}

/// Consecutive batches as one; `None` if they do not hold what their frames say.
pub(super) fn joined(key: Key, mut batches: Vec<Batch>) -> Option<Batch> {
    if batches.len() == 1 {
        return batches.pop();
    }
    let mut bytes = BytesMut::with_capacity(batches.iter().map(Batch::size_bytes).sum());
    for batch in &batches {
        bytes.extend_from_slice(batch.bytes());
    }
    Batch::decode(key.0, Bytes::from(bytes)).ok()
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
