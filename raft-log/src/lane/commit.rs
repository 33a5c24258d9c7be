//! From the staged record to its completion.

use std::collections::BTreeSet;

use raft_proto::HardState;

use crate::error::LogError;
use crate::hard_state::Half;
use crate::index::{AtSeal, SegmentInfo};
use crate::item::{ApartItem, ITEM_HEADER_BYTES, Item, Key, Limits, put_state};
use crate::lane::held::HeldFor;
use crate::lane::{Flight, FlightKind, Lane};
use crate::pool::{Dead, RETRY_NANOS};
use crate::record::{Place, RECORD_ALIGN, RECORD_BYTES_HARD_MAX, RECORD_HEADER_BYTES, RecordKind};
use crate::recovery::Opening;
use crate::segment::{SECTOR_BYTES, SEGMENT_HEADER_BYTES, TRAILER_BYTES, segment_path};
use crate::staging::{Change, Staging, VoteChange};
use crate::state::Health;
use crate::vfs::{FileId, Op, OpId};
use bytes::Bytes;

/// What file systems and most devices write at a time, and lose at a time.
const PAGE_BYTES: usize = 4096;
static FILLER: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// What a watermark's filler and second record take at least, and at most where there is no room
/// for more.
pub(super) const WATERMARK_BYTES: usize = SECTOR_BYTES + 2 * RECORD_ALIGN;

/// Released segments that one record names, at most.
const RELEASED_MAX: usize = 16;

/// What of the last reserve a record that names released segments takes, at most.
pub(crate) const RELEASE_BYTES: u64 = {
    let bytes = RECORD_HEADER_BYTES + ITEM_HEADER_BYTES + RECORD_ALIGN + 8 * RELEASED_MAX;
    aligned(bytes) as u64
};

/// What a checkpoint says of limits.
const LIMITS_ITEM_BYTES: usize = ITEM_HEADER_BYTES + 16;

/// A record, or two, ready to be written in one go.
struct Written {
    file: FileId,
    offset: u64,
    buffers: Vec<Bytes>,
    bytes: u64,
    /// Where the second record's data begins in the segment.
    data_at: u64,
}

const fn aligned(len: usize) -> usize {
    len.next_multiple_of(RECORD_ALIGN)
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}

impl Lane {
    /// Remembers a changed term or vote for the vote file.
    pub(super) fn note_vote(&mut self, key: Key, hard_state: HardState) {
        let change = VoteChange::new(key, hard_state);
        // What is on its way or queued may say the same already: one slot written twice is no
        // harm, one not written would be.
        if self.votes.is_news(&change) {
            if self.is_new_to_votes(key) {
                self.staging.new_slots.insert(key);
            }
            self.staging.votes.push(change);
        }
    }

    /// Whether entries of `bytes` fit, the reserve aside: in the active segment, where they pass those
    /// that wait for another one, or in the next one if it is there, behind all that waits.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let beside = self.footer_bytes(16) + self.options.reserve();
        let len = to_u64(self.pending_bytes() + bytes + 1024) + beside;
        let here = self.active.offset + len - to_u64(self.no_room.len());
        let is_here = !self.active.is_sealed && here <= self.active.len;
        let start = || to_u64(SEGMENT_HEADER_BYTES + self.checkpoint_bytes());
        let is_in = |next: u64| start() + len <= next;
        is_here || self.pool.front_len().is_some_and(is_in)
    }

    /// An upper bound of what sealing writes if `more` batches come, the trailer included.
    pub(super) fn footer_bytes(&self, more: usize) -> u64 {
        self.active.footer_bytes(more)
    }

    /// Begins the next write, if there is something to write and room for it.
    pub(super) fn begin(&mut self) -> Result<bool, LogError> {
        self.grow_votes_ahead()?;
        self.release_urgent();
        self.stage_watermark();
        self.settle_votes_before_close();
        if self.seal_apart() {
            return Ok(true);
        }
        let next = self.queue.front().unwrap_or(&self.staging);
        if next.is_empty() {
            return Ok(false);
        }
        if self.votes.is_short(&next.votes) {
            let votes = next.votes.clone();
            if !self.grow_votes(&votes)? {
                self.hold(HeldFor::Slot, &self.lacking_slots());
                return Ok(true);
            }
        }
        let next = self.queue.front().unwrap_or(&self.staging);
        if self.has_room_for(next) {
            self.begin_record()?;
            return Ok(true);
        }
        let (len, batches) = (self.record_bytes(next), next.batches);
        if !self.make_room(len, batches) {
            return Ok(self.lacks_segment && self.set_aside());
        }
        let (size, bound) = (self.checkpoint_bytes(), RECORD_BYTES_HARD_MAX);
        if size > bound {
            // It would not be read back.
            return Err(LogError::TooLarge { size, bound });
        }
        if self.active.is_sealed {
            self.open_segment()?;
            self.begin_record()?;
        } else {
            if self.queue.is_empty() {
                // The next segment was made for this record: it must not grow while the footer is
                // on its way, as a segment behind a sealed one is not made again.
                self.enqueue();
            }
            self.begin_seal();
        }
        Ok(true)
    }

    /// Second vote slots are written before the record of a close: in a log that was closed none is
    /// torn, and one that cannot be read is damage.
    fn settle_votes_before_close(&mut self) {
        let next = self.queue.front().unwrap_or(&self.staging);
        if next.is_close && !self.votes.behind_except(&[]).is_empty() {
            let mut watermark = Staging::default();
            watermark.item(None, &Item::Released(Vec::new()));
            self.queue_bytes += watermark.len();
            if self.queue.is_empty() {
                self.enqueue();
            }
            self.queue.push_front(watermark);
        }
    }

    /// Makes a larger vote file, before the record that needs it is taken from where it waits.
    /// `false`: there is no room or no descriptor now; the record waits, and this is tried again.
    fn grow_votes(&mut self, votes: &[VoteChange]) -> Result<bool, LogError> {
        if self.now < self.votes_grow_at {
            return Ok(false);
        }
        let gone = self.tables().tombstones();
        // Every slot is durable in half A, and in the log but for these.
        let ahead = match self.is_second_half_late {
            true => self.votes.keys_behind(),
            false => BTreeSet::new(),
        };
        match self.votes.grow(&self.vfs, votes, &gone, &ahead) {
            Ok(()) => {
                self.is_votes_full = false;
                self.note_full();
                self.unhold(HeldFor::Slot);
                Ok(true)
            }
            Err(LogError::Io(error)) if error.may_pass() => {
                self.votes_grow_at = self.now.plus_nanos(RETRY_NANOS);
                // In peace nobody is refused anything for it.
                self.is_votes_full |= error.is_storage_full() && !votes.is_empty();
                self.note_full();
                self.lacking = Some(error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a larger vote file when somebody waits for a place in it, or in peace when there are
    /// few left: while the disk is full it cannot be made.
    fn grow_votes_ahead(&mut self) -> Result<(), LogError> {
        let is_awaited = !self.no_slot.is_empty();
        let is_peace = || {
            let is_over = self.now >= self.last_record_at.plus_nanos(self.options.burst_end_nanos);
            is_over && self.is_drained() && !self.owes_watermark() && !self.is_closing
        };
        if is_awaited || (self.votes.is_low() && is_peace()) {
            let votes = self.no_slot.votes();
            self.grow_votes(&votes)?;
        }
        Ok(())
    }

    /// Whether what is next waits for a larger vote file.
    pub(super) fn lacks_slots(&self) -> bool {
        let next = self.queue.front().unwrap_or(&self.staging);
        self.votes.is_short(&next.votes)
    }

    /// At the end of a burst, and when the release of segments must not wait.
    fn stage_watermark(&mut self) {
        let is_over = self.now >= self.last_record_at.plus_nanos(self.options.burst_end_nanos);
        let is_pressing = self.shared.is_full() && !self.to_release.is_empty();
        if (is_over || is_pressing)
            && self.owes_watermark()
            && let Some(watermark) = self.watermark()
        {
            self.staging = watermark;
        }
    }

    /// Whether a watermark record is owed, and nothing else is gathered. On a full disk without room
    /// for it, it is owed on, and segments are released without.
    pub(super) fn owes_watermark(&self) -> bool {
        let is_owed = self.watermark_lsn < self.synced_lsn
            || self.votes.has_behind()
            || !self.to_release.is_empty();
        is_owed && self.is_drained() && (!self.lacks_next_segment() || self.watermark().is_some())
    }

    /// A watermark record, or the plain one that takes its place; `None`: there is no room.
    fn watermark(&self) -> Option<Staging> {
        let mut watermark = Staging::default();
        watermark.item(None, &Item::Released(Vec::new()));
        if self.lacks_next_segment() && !self.has_room_for(&watermark) {
            watermark.is_plain = true;
            if self.to_release.is_empty() || !self.has_room_for(&watermark) {
                return None;
            }
        }
        Some(watermark)
    }

    fn lacks_next_segment(&self) -> bool {
        self.lacks_segment && !self.has_next_segment()
    }

    /// Whether the segment behind the active one is made, and holds more than its checkpoint.
    pub(super) fn has_next_segment(&self) -> bool {
        let least = to_u64(SEGMENT_HEADER_BYTES + self.checkpoint_bytes()) + self.options.reserve();
        self.pool.front_len().is_some_and(|len| len >= least)
    }

    /// Whether the active segment has room for a record, and for what others need more.
    pub(super) fn has_room_for(&self, record: &Staging) -> bool {
        let (len, batches) = (self.record_bytes(record), record.batches);
        let has = |kept| self.has_bytes(len, batches, kept);
        // Whatever it is, or as much as it is.
        has(self.options.reserve()) || has(0) && has(self.kept_behind(record))
    }

    /// Whether a record may say so much, and the active segment has room for it beside what is `kept`.
    pub(super) fn has_place(&self, bytes: usize, batches: usize, kept: u64) -> bool {
        let len = RECORD_HEADER_BYTES + bytes + self.released_bytes();
        bytes <= self.gather_max() && self.has_bytes(len, batches, kept)
    }

    /// Whether the active segment has room for `len` bytes, for the footer then, and for what is
    /// `kept`.
    fn has_bytes(&self, len: usize, batches: usize, kept: u64) -> bool {
        let end = self.active.offset + to_u64(aligned(len)) + self.footer_bytes(batches);
        !self.active.is_sealed && end + kept <= self.active.len
    }

    /// What a record takes, and what is added to it when it is written.
    fn record_bytes(&self, record: &Staging) -> usize {
        let is_watermark = record.is_lanes() && !record.is_plain;
        // In peace as much is left behind any record.
        let has_watermark = is_watermark || !self.lacks_segment;
        let watermark = if has_watermark { WATERMARK_BYTES } else { 0 };
        record.len() + self.released_bytes() + watermark
    }

    fn released_bytes(&self) -> usize {
        RECORD_ALIGN + 8 * self.to_release.len().min(RELEASED_MAX)
    }

    /// What a record leaves to others while there is no next segment: to votes, to watermarks, to what
    /// makes room, to its release, in this order.
    fn kept_behind(&self, record: &Staging) -> u64 {
        let (all, last) = (self.options.reserve(), self.options.last_reserve());
        match () {
            () if self.has_next_segment() => 0,
            () if record.has_entries && record.is_urgent => all / 2,
            () if record.has_entries => all,
            () if record.names_apart => self.kept_for_release(),
            () if record.is_lanes() && !self.to_release.is_empty() => 0,
            () if record.is_lanes() => last / 2,
            () if record.makes_room() => self.kept_for_release(),
            () => last,
        }
    }

    /// What is left for the release of the segments that a record frees.
    pub(super) fn kept_for_release(&self) -> u64 {
        (self.options.last_reserve() / 2).min(RELEASE_BYTES)
    }

    /// Whether the next segment is there and holds a checkpoint, `len` bytes and a footer.
    fn make_room(&mut self, len: usize, batches: usize) -> bool {
        let checkpoint = self.checkpoint_bytes();
        self.checkpoint_asked = checkpoint;
        let footer = RECORD_HEADER_BYTES
            + super::seal::SUCCESSOR_ITEM_BYTES
            + batches * (super::seal::RUNS_ITEM_BYTES + crate::index::LIST_RUN_BYTES);
        let needed = SEGMENT_HEADER_BYTES
            + checkpoint
            + aligned(len)
            + aligned(footer)
            + TRAILER_BYTES
            + 512;
        self.pool.has(to_u64(needed.next_multiple_of(512)))
    }

    pub(super) fn checkpoint_bytes(&self) -> usize {
        let tables = self.tables();
        let replicas = tables.replicas.values().map(|replica| {
            let state = &replica.state;
            let snapshots = state
                .snapshots
                .iter()
                .map(|snapshot| 20 + snapshot.membership.len());
            160 + 16 * state.terms.len()
                + 8 * state.membership_entries.len()
                + snapshots.sum::<usize>()
        });
        let segments = 2 * ITEM_HEADER_BYTES + 32 * (tables.segments.len() + 1);
        let lane = segments + LIMITS_ITEM_BYTES;
        aligned(RECORD_HEADER_BYTES + lane + replicas.sum::<usize>())
    }

    /// Turns to the next spare. Its checkpoint is written with its first record.
    pub(super) fn open_segment(&mut self) -> Result<(), LogError> {
        let (spare, file) = self.pool.take()?;
        let info = SegmentInfo {
            file,
            len: spare.len,
            incarnation: spare.incarnation,
            live_spans: 0,
            live_bytes: 0,
            is_sealed: false,
            at_seal: AtSeal::default(),
            before: None,
        };
        self.shared.write().segments.insert(spare.number, info);
        self.active = super::Active {
            number: spare.number,
            file,
            len: spare.len,
            incarnation: spare.incarnation,
            offset: to_u64(SEGMENT_HEADER_BYTES),
            is_sealed: false,
            touched: rustc_hash::FxHashMap::default(),
            runs: 0,
            moved_runs: 0,
        };
        Ok(())
    }

    fn begin_record(&mut self) -> Result<(), LogError> {
        let mut staging = match self.queue.pop_front() {
            Some(front) => {
                self.queue_bytes -= front.len();
                front
            }
            None => std::mem::take(&mut self.staging),
        };
        let kind = if staging.is_lanes() && !staging.is_plain {
            RecordKind::Watermark
        } else {
            RecordKind::Data
        };
        let changes = std::mem::take(&mut staging.votes);
        let votes_first = self.votes.set_all(&changes);
        let is_burst_end = kind == RecordKind::Watermark;
        let has_none = votes_first.is_empty() && !is_burst_end;
        let votes_second = if has_none || self.is_second_half_late {
            Vec::new()
        } else {
            self.votes.behind_except(&votes_first)
        };
        let written = self.write_out(kind, &mut staging);
        let data_at = written.data_at;
        let mut ops = vec![self.vfs.submit(Op::Write {
            file: written.file,
            offset: written.offset,
            buffers: written.buffers,
        })];
        let mut syncs = 1;
        let votes = [(&votes_first, Half::A), (&votes_second, Half::B)];
        for (slots, half) in votes {
            for write in self.votes.writes(slots, half, &votes_first) {
                self.stats.written_bytes += to_u64(write.data.len());
                ops.push(self.vfs.submit(Op::Write {
                    file: self.votes.file(),
                    offset: write.offset,
                    buffers: vec![write.data],
                }));
            }
        }
        ops.push(self.vfs.submit(Op::Sync { file: written.file }));
        if !votes_first.is_empty() || !votes_second.is_empty() {
            let file = self.votes.file();
            ops.push(self.vfs.submit(Op::Sync { file }));
            syncs += 1;
        }
        self.fly(
            ops,
            syncs,
            FlightKind::Record {
                kind,
                staging: Box::new(staging),
                data_at,
            },
        );
        let flight = self.flight.as_mut().expect("it was just begun");
        (flight.votes_first, flight.votes_second) = (votes_first, votes_second);
        Ok(())
    }

    /// A watermark that shares its page with what it vouches for would be lost with it: the first
    /// record, so far of `len` bytes, fills the page, and a second one lies in the next. In a
    /// segment that has little room left it is the sector.
    fn watermark_filler(&self, len: usize) -> usize {
        let start = usize::try_from(self.active.offset).expect("a segment fits in memory");
        let end = start + aligned(len);
        let second = to_u64(end.next_multiple_of(PAGE_BYTES) + 2 * RECORD_ALIGN);
        let taken = second + self.footer_bytes(0) + self.options.reserve();
        let unit = match taken <= self.active.len {
            true => PAGE_BYTES,
            false => SECTOR_BYTES,
        };
        end.next_multiple_of(unit) - end
    }

    pub(super) fn fly(&mut self, ops: Vec<OpId>, syncs: u64, kind: FlightKind) {
        self.flight = Some(Flight {
            ops,
            syncs,
            failed: None,
            last_lsn: self.lsn,
            votes_first: Vec::new(),
            votes_second: Vec::new(),
            kind,
        });
    }

    /// Gives the record its place and number; at the start of a segment the checkpoint goes first.
    fn write_out(&mut self, kind: RecordKind, staging: &mut Staging) -> Written {
        let start = self.active.offset;
        let mut record_at = start;
        let mut buffers = Vec::new();
        if start == to_u64(SEGMENT_HEADER_BYTES) {
            let mut checkpoint = self.checkpoint(&mut staging.forgotten);
            buffers.append(&mut self.frame(RecordKind::Checkpoint, &mut checkpoint).0);
            record_at = self.active.offset;
            self.checkpoint_len = record_at - start;
        }
        if !self.to_release.is_empty() {
            let count = self.to_release.len().min(RELEASED_MAX);
            let released: Vec<u64> = self.to_release.drain(..count).collect();
            staging.item(None, &Item::Released(released.clone()));
            staging.released = released;
        }
        if staging.is_close {
            // In both records: the loss of the last sector leaves no doubt that nothing followed.
            staging.item(None, &Item::Closed);
        }
        if kind == RecordKind::Watermark {
            let filler = self.watermark_filler(staging.len());
            staging.data(Bytes::from_static(&FILLER[..filler]));
        }
        let (mut record, data_at) = self.frame(kind, staging);
        buffers.append(&mut record);
        if kind == RecordKind::Watermark {
            let mut last = Staging::default();
            let item = match self.apart_item().filter(|_| staging.names_apart) {
                Some(item) => item,
                None if staging.is_close => Item::Closed,
                None => Item::Released(Vec::new()),
            };
            last.item(None, &item);
            buffers.append(&mut self.frame(kind, &mut last).0);
        }
        debug_assert!(
            self.active.offset - record_at <= self.options.write_bytes_max(),
            "what a crash may cut off has its bound"
        );
        Written {
            file: self.active.file,
            offset: start,
            buffers,
            bytes: self.active.offset - start,
            data_at,
        }
    }

    /// Frames a record at the end of the active segment. Returns its buffers and where its data
    /// begins in the segment.
    pub(super) fn frame(&mut self, kind: RecordKind, staging: &mut Staging) -> (Vec<Bytes>, u64) {
        let place = Place {
            incarnation: self.active.incarnation,
            offset: self.active.offset,
        };
        self.lsn += 1;
        let lsns = (self.lsn, self.synced_lsn);
        let (buffers, header) =
            staging.frame(kind, self.options.lane, lsns, place, &mut self.lately);
        let data_at = place.offset + to_u64(RECORD_HEADER_BYTES + header.table_len);
        self.active.offset += to_u64(header.total());
        assert!(
            self.active.offset <= self.active.len,
            "a record fits its segment"
        );
        self.stats.records += 1;
        self.stats.written_bytes += to_u64(header.total());
        (buffers, data_at)
    }

    /// What holds from the next record on.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            write_bytes_max: self.options.write_bytes_max(),
            numbers_end: self.pool.numbers_end(self.is_closing),
        }
    }

    /// All that is durable of each replica, and the live segments. Who is gone, and has no slot in
    /// the vote file any more, is `forgotten`: what older segments hold of a replica that a
    /// checkpoint does not name counts for nothing.
    fn checkpoint(&mut self, forgotten: &mut Vec<Key>) -> Staging {
        let limits = self.limits();
        let mut staging = Staging::default();
        let tables = self.tables();
        let (mut segments, mut apart) = (Vec::new(), Vec::new());
        for (number, info) in &tables.segments {
            match info.before {
                None => segments.push((*number, info.incarnation)),
                before => apart.push(ApartItem {
                    number: *number,
                    incarnation: info.incarnation,
                    before,
                    free_bytes: info.at_seal.other_bytes,
                }),
            }
        }
        staging.item(None, &Item::Segments(segments));
        if !apart.is_empty() {
            staging.item(None, &Item::Apart(apart));
        }
        staging.item(None, &Item::Limits(limits));
        for key in tables.keys() {
            let state = &tables.replicas[&key].state;
            if state.health == Health::Tombstone {
                if self.votes.has_slot(key) {
                    staging.item(Some(key), &Item::Tombstone);
                } else {
                    forgotten.push(key);
                }
                continue;
            }
            staging.raw(|out| put_state(out, key, state));
            if state.health != Health::Sound {
                staging.item(Some(key), &Item::Health(state.health.clone()));
            }
        }
        staging
    }

    /// The flight has landed: what it carried is durable, or will never be.
    pub(super) fn end(&mut self) {
        let flight = self.flight.take().expect("one was under way");
        self.stats.fdatasyncs += flight.syncs;
        if let Some(error) = flight.failed {
            if let FlightKind::Record { staging, .. } = flight.kind {
                let reason = error.to_string();
                self.latched.get_or_insert_with(|| reason.clone());
                self.complete(staging.done, Some(&reason));
            }
            self.latch(&error.to_string());
            return;
        }
        self.synced_lsn = flight.last_lsn;
        self.votes.first_half_done(&flight.votes_first);
        self.votes.second_half_done(&flight.votes_second);
        let was_apart = matches!(flight.kind, FlightKind::Apart);
        match flight.kind {
            FlightKind::Record {
                kind,
                staging,
                data_at,
            } => {
                self.is_second_half_late = false;
                if kind == RecordKind::Watermark {
                    self.watermark_lsn = flight.last_lsn;
                    // At rest no segment is sealed.
                    self.moves.look_afresh();
                } else {
                    self.last_record_at = self.now;
                }
                // What was moved earns nothing: moving would feed itself for ever.
                self.earn_written(to_u64(staging.submitted_bytes()));
                self.landed(*staging, data_at);
            }
            FlightKind::Seal(sealed) => {
                self.sealed(&sealed);
                self.moves.look_afresh();
            }
            FlightKind::Apart => {}
            FlightKind::SealApart(sealed) => self.sealed_apart(sealed),
        }
        // In turns: who submits waits for one piece at most.
        if !was_apart || self.is_drained() {
            self.collect();
        }
    }

    fn landed(&mut self, mut staging: Staging, data_at: u64) {
        let mut may_free = false;
        let mut freed = 0;
        let mut recent = Vec::new();
        {
            let mut tables = self.shared.write();
            for key in staging.forgotten.drain(..) {
                tables.reset(key);
                tables.replicas.remove(&key);
            }
            for (key, change) in staging.changes.drain(..) {
                may_free |= !matches!(change, Change::HardState(_) | Change::Snapshots(_));
                let is_end = matches!(
                    change,
                    Change::Reset(_) | Change::Compact(_) | Change::Tombstone
                );
                let before = if is_end { tables.live_bytes(key) } else { 0 };
                match change {
                    Change::Entries { item, at, batch } => {
                        let offset = data_at + to_u64(at);
                        tables.append(key, &item, self.active.number, offset);
                        self.active.note(key, &item);
                        recent.push(((self.active.number, offset), batch));
                    }
                    Change::Reset(id) => {
                        tables.reset(key);
                        tables
                            .replicas
                            .entry(key)
                            .or_default()
                            .state
                            .restart_after(id);
                    }
                    Change::HardState(hard_state) => {
                        tables.replicas.entry(key).or_default().state.hard_state = hard_state;
                    }
                    Change::Snapshots(record) => {
                        tables.replicas.entry(key).or_default().state.snapshots = record.retained;
                    }
                    Change::Compact(index) => {
                        let state = &mut tables.replicas.entry(key).or_default().state;
                        state.compact_before(index);
                        tables.clip(key);
                    }
                    Change::Tombstone => {
                        self.buried.remove(&key);
                        tables.reset(key);
                        tables.replicas.entry(key).or_default().state.bury();
                    }
                    Change::Health(health) => {
                        tables.replicas.entry(key).or_default().state.health = health;
                    }
                }
                if is_end {
                    let gave_up = before - tables.live_bytes(key);
                    freed += gave_up;
                    if let Some(replica) = tables.replicas.get_mut(&key).filter(|_| gave_up > 0) {
                        replica.compacted_in = Some(self.active.number);
                    }
                }
            }
        }
        self.earn_freed(freed);
        self.shared.tail.insert_all(recent);
        let released = std::mem::take(&mut staging.released);
        self.release(&released);
        if staging.names_apart {
            self.publish_apart();
            self.moves.look_afresh();
        }
        if !released.is_empty() {
            self.moves.look_anew();
        }
        if may_free || staging.names_apart {
            self.moves.look_again();
            self.find_dead();
            self.forget_unmovable();
        }
        self.complete(staging.done, None);
    }

    /// The record that releases these segments is durable: readers lose them, the pool gets them.
    fn release(&mut self, released: &[u64]) {
        for number in released {
            self.releasing.remove(number);
            let Some(info) = self.shared.write().segments.remove(number) else {
                continue;
            };
            let is_held = self.vfs.retire(info.file);
            self.stats.held_segments += u64::from(is_held);
            let dead = Dead {
                path: segment_path(&self.dir, *number),
                len: info.len,
                incarnation: info.incarnation,
            };
            self.pool.give_back(dead, is_held);
        }
    }

    /// Marks segments that hold nothing live for release.
    fn find_dead(&mut self) {
        let dead: Vec<u64> = {
            let tables = self.tables();
            let is_dead = |number: u64, info: &SegmentInfo| {
                info.live_spans == 0
                    && number != self.active.number
                    && !self.releasing.contains(&number)
            };
            tables
                .segments
                .iter()
                .filter(|(number, info)| is_dead(**number, info))
                .map(|(number, _)| *number)
                .collect()
        };
        self.releasing.extend(&dead);
        self.to_release.extend(dead);
    }

    /// Writes the record that ends an open, if there is room for it, and waits until it is durable.
    pub(super) fn finish_open(&mut self, opening: Opening) -> Result<(), LogError> {
        // Before the log has them, the vote file's second half may not.
        let must_say = !opening.hard_states.is_empty();
        for (key, hard_state) in opening.hard_states {
            self.staging.change(key, Change::HardState(hard_state));
        }
        for (key, health) in opening.healths {
            self.staging.change(key, Change::Health(health));
        }
        let (segment, offset, cut_bytes) = opening.cut;
        let opened = Item::Opened {
            segment,
            offset,
            cut_bytes,
        };
        self.staging.item(None, &opened);
        let limits = self.limits();
        self.staging.item(None, &Item::Limits(limits));
        self.find_dead();
        let mut staging = std::mem::take(&mut self.staging);
        if !self.make_room_for_open(&staging, must_say)? {
            return Ok(());
        }
        let written = self.write_out(RecordKind::Watermark, &mut staging);
        let mut offset = written.offset;
        for buffer in &written.buffers {
            self.vfs.write(written.file, offset, buffer)?;
            offset += to_u64(buffer.len());
        }
        assert_eq!(
            offset - written.offset,
            written.bytes,
            "all of it is written"
        );
        self.vfs.sync(written.file)?;
        self.stats.fdatasyncs += 1;
        self.synced_lsn = self.lsn;
        self.watermark_lsn = self.lsn;
        self.landed(staging, written.data_at);
        Ok(())
    }

    /// Whether there is room for the record that ends an open, in the active segment or in the next
    /// one. On a full disk an open goes without it, if there is nothing that it must say: opens would
    /// use up what others need. Behind damage nothing may be written before there is a new segment;
    /// what is there can be read.
    fn make_room_for_open(&mut self, record: &Staging, must_say: bool) -> Result<bool, LogError> {
        let len = record.len() + self.released_bytes() + WATERMARK_BYTES;
        let kept = match self.has_next_segment() {
            true => 0,
            false => self.options.last_reserve() / 2,
        };
        if self.has_bytes(len, 0, kept) {
            return Ok(true);
        }
        drop(self.pool.open_next());
        if !self.make_room(len, 0)
            && let Err(error) = self.pool.make_now()
        {
            let is_first = self.active.number == 0;
            if is_first || !error.is_storage_full() {
                return Err(error.into());
            }
            (self.lacks_segment, self.is_pool_full) = (true, true);
            self.note_full();
            self.pool.try_again(self.now);
            // A new segment begins with a checkpoint, which says it too.
            self.is_second_half_late = must_say && self.active.is_sealed;
            return match self.has_bytes(len, 0, 0) {
                _ if !must_say || self.active.is_sealed => Ok(false),
                true => Ok(true),
                false => Err(error.into()),
            };
        }
        if !self.active.is_sealed {
            // A sealed segment always has a next one.
            let sealed = self.seal_now()?;
            self.sealed(&sealed);
        }
        self.open_segment()?;
        Ok(true)
    }
}
