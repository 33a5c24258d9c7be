//! Laggards: the few live entries of an old segment are moved forward by the log itself, so that
//! the segment dies.

use bytes::{Bytes, BytesMut};
use raft_proto::{Batch, Index};

use crate::error::LogError;
use crate::index::{LIST_RUN_BYTES, SegmentInfo};
use crate::item::{ENTRIES_ITEM_BYTES, Key};
use crate::lane::Lane;
use crate::lane::seal::RUNS_ITEM_BYTES;
use crate::read::LogReader;

/// Segments younger than this many others are left alone: most of what lives there dies soon.
const YOUNG: usize = 1;
/// Small batches of a replica are joined up to here: each run costs an item and a place in a
/// footer, and each read checks a whole run.
const RUN_BYTES: usize = 64 << 10;
/// What a span takes beside its entries once it is moved: its item in a record, its part of a
/// footer.
const SPAN_OVERHEAD_BYTES: u64 = 64 + RUNS_ITEM_BYTES as u64 + LIST_RUN_BYTES as u64;

impl SegmentInfo {
    /// What its live entries would take elsewhere.
    fn moved_bytes(&self) -> u64 {
        let spans = u64::try_from(self.live_spans).expect("a count fits");
        (self.live_bytes + spans * SPAN_OVERHEAD_BYTES).min(self.len)
    }

    /// What moving its live entries would win for ever: the share that has died of what was put
    /// into it. What lies beside those that live, and the end that was too small for a record, they
    /// would take elsewhere as well.
    fn garbage_bytes(&self) -> u64 {
        if self.at_seal.live_bytes == 0 {
            return self.len - self.moved_bytes();
        }
        let put = self.at_seal.live_bytes + self.at_seal.other_bytes;
        let died = put.saturating_sub(self.live_bytes);
        let share = u128::from(self.len) * u128::from(died) / u128::from(put);
        u64::try_from(share).unwrap_or(self.len)
    }
}

impl Lane {
    /// Moves a little, if the sealed segments hold more than a segment's worth of garbage. Only when
    /// nothing is staged or on its way: what is read is then what counts, and nothing staged before
    /// can be overwritten by it.
    ///
    /// Moving is paid for by what was appended, and in advance: a small append does not buy a big
    /// move. On a full disk it is what makes room, and what waits for room is written behind it.
    pub(super) fn collect(&mut self) {
        let is_idle = self.is_drained() && self.flight.is_none() && self.latched.is_none();
        if !is_idle || self.is_closing || self.active.is_sealed {
            return;
        }
        let budget = self.collect_budget();
        let room = if self.shared.is_full() {
            self.room_to_collect()
        } else if self.has_held() || self.collect_credit < to_u64(budget) {
            return;
        } else {
            u64::MAX
        };
        let Some(victim) = self.victim(room) else {
            return;
        };
        let reader = LogReader::new(std::sync::Arc::clone(&self.shared));
        let mut moved = 0;
        'spans: for (key, first, last) in self.spans_in(victim) {
            let mut next = first;
            while next <= last {
                let left = budget.saturating_sub(moved).min(RUN_BYTES);
                if left == 0 {
                    break 'spans;
                }
                // Damage is found here before anybody else reads it: the entries stay where they
                // are, and whoever reads them is told.
                let batches = match reader.entries(key.0, key.1, next, last, left) {
                    Err(LogError::Io(error)) if !error.is_of_medium() => break 'spans,
                    batches => batches.ok(),
                };
                let Some(batch) = batches.and_then(|batches| joined(key, batches)) else {
                    self.unmovable.insert(victim);
                    break 'spans;
                };
                next = batch.last().index.next();
                moved += batch.size_bytes() + ENTRIES_ITEM_BYTES;
                self.staging.entries(key, &batch, true);
            }
        }
        self.staging.has_moved |= moved > 0;
        self.collect_credit = self.collect_credit.saturating_sub(to_u64(moved.max(1)));
        self.stats.moved_bytes += to_u64(moved);
    }

    /// What was written, and later what of it died, pays for as many bytes moved. So moving costs
    /// at most twice what is written, and a segment that others have left can be emptied.
    pub(super) fn earn(&mut self, bytes: u64) {
        let most = 4 * self.options.segment_size_bytes;
        self.collect_credit = (self.collect_credit + bytes).min(most);
    }

    /// What may be moved on a full disk: as much as fits beside what compactions need, and only if a
    /// segment is free then.
    fn room_to_collect(&self) -> u64 {
        let kept = self.options.last_reserve() + self.footer_bytes(16) + 1024;
        let left = self.active.len.saturating_sub(self.active.offset);
        left.saturating_sub(kept)
    }

    /// How much is moved in one go: no more than what a record may be, as a crash may cut it off.
    fn collect_budget(&self) -> usize {
        let quarter = usize::try_from(self.options.segment_size_bytes / 4).unwrap_or(usize::MAX);
        let most = quarter.min(self.options.record_bytes_max);
        self.options.collect_bytes_max.min(most)
    }

    /// The sealed segment with the largest part of it dead, if more than a segment's worth is in
    /// all of them, and if there is `room` for what is alive.
    ///
    /// However small that part is: or a group that never compacts would pin what lies beside its
    /// entries in a long log. What it costs is bounded by what was written.
    fn victim(&self, room: u64) -> Option<u64> {
        let tables = self.tables();
        let sealed: Vec<_> = tables
            .segments
            .iter()
            .filter(|(number, info)| info.is_sealed && !self.releasing.contains(number))
            .map(|(number, info)| (*number, info, info.garbage_bytes()))
            .collect();
        let garbage: u64 = sealed.iter().map(|(.., garbage)| garbage).sum();
        if garbage <= self.options.segment_size_bytes {
            return None;
        }
        // On a full disk nothing pays for it but the reserve, which others need.
        let least = if self.shared.is_full() { 100_000 } else { 0 };
        let old = sealed.len().saturating_sub(YOUNG);
        let share = |info: &SegmentInfo, garbage: u64| {
            u128::from(garbage) * 1_000_000 / u128::from(info.len.max(1))
        };
        sealed[..old]
            .iter()
            .filter(|(number, info, _)| info.live_spans > 0 && !self.unmovable.contains(number))
            .filter(|(_, info, garbage)| *garbage > 0 && share(info, *garbage) >= least)
            .filter(|(_, info, _)| info.moved_bytes() <= room)
            .max_by_key(|(number, info, garbage)| {
                (share(info, *garbage), std::cmp::Reverse(*number))
            })
            .map(|(number, ..)| *number)
    }

    fn spans_in(&self, segment: u64) -> Vec<(Key, Index, Index)> {
        let tables = self.tables();
        let mut found = Vec::new();
        for key in tables.keys() {
            let spans = tables.replicas[&key].spans.iter();
            found.extend(
                spans
                    .filter(|span| span.segment == segment)
                    .map(|span| (key, span.first, span.last)),
            );
        }
        found
    }
}

/// Consecutive batches as one; `None` if they do not hold what their frames say.
fn joined(key: Key, mut batches: Vec<Batch>) -> Option<Batch> {
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
