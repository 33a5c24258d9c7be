//! Laggards: the few live entries of an old segment are moved forward by the log itself, so that
//! the segment dies.

use bytes::{Bytes, BytesMut};
use raft_proto::{Batch, Index};
use rustc_hash::FxHashMap;

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::index::{LIST_RUN_BYTES, Replica, SegmentInfo};
use crate::item::{ENTRIES_ITEM_BYTES, Key};
use crate::lane::Lane;
use crate::lane::commit::WATERMARK_BYTES;
use crate::lane::seal::RUNS_ITEM_BYTES;
use crate::read::LogReader;
use crate::staging::Change;

/// Segments younger than this many others are left alone: most of what lives there dies soon.
const YOUNG: usize = 1;
/// Small batches of a replica are joined up to here: each run costs an item and a place in a
/// footer, and each read checks a whole run.
const RUN_BYTES: usize = 64 << 10;
/// What a span takes beside its entries once it is moved: its item in a record, its part of a
/// footer.
const SPAN_OVERHEAD_BYTES: u64 = 64 + RUNS_ITEM_BYTES as u64 + LIST_RUN_BYTES as u64;

/// What pays for moves, and what became of the last ones.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Bytes that may be moved: what was written, and what died since.
    credit: u64,
    /// They go on until half of the garbage that is too much is gone.
    are_on: bool,
    /// Bytes moved since the log was last at rest, and bytes submitted while it was at it.
    moved: u64,
    beside: u64,
    /// What the last record held of what was submitted.
    last_bytes: u64,
    /// The segment that is emptied, and who may still have something there, last first.
    victim: u64,
    keys: Vec<Key>,
}

/// Which entries of a replica live on once what is gathered is durable.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    from: Index,
    /// All, if none is named.
    last: Option<Index>,
}

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

impl Moves {
    /// What died in earlier lives pays for a segment.
    pub(super) fn new(options: &LaneOptions) -> Self {
        Self {
            credit: options.segment_size_bytes,
            ..Self::default()
        }
    }
}

impl Lane {
    /// Moves a little, if the sealed segments hold more than a segment's worth of garbage. Only when
    /// nothing is on its way: what is read is then what counts. What is gathered is written before
    /// it: what it ends is not moved.
    ///
    /// Moving is paid for by what was appended, and in advance: a small append does not buy a big
    /// move. It begins when much is paid for, and goes on until half of the garbage is gone, so that
    /// what is moved fills segments of its own: beside young entries, which die, it would have to be
    /// moved again. On a full disk it is what makes room, and what waits for room is written behind it.
    pub(super) fn collect(&mut self) {
        let is_busy = self.flight.is_some() || self.gathered().any(|record| record.has_moved());
        let has_ended = self.is_closing || self.latched.is_some();
        if is_busy || has_ended || self.active.is_sealed {
            return;
        }
        let budget = self.collect_budget();
        let room = match self.shared.is_full() {
            true if !self.is_drained() => return,
            true => self.room_to_collect(),
            false if self.has_held() || !self.can_pay(budget) => return,
            false => u64::MAX,
        };
        let victim = self.victim(room);
        self.moves.are_on = victim.is_some();
        let Some(victim) = victim else {
            return;
        };
        let moved = self.move_some(victim, budget);
        // An attempt in vain is not made again for each record.
        let cost = if moved == 0 { budget } else { moved };
        self.moves.credit = self.moves.credit.saturating_sub(to_u64(cost));
        self.moves.moved += to_u64(moved);
        self.stats.moved_bytes += to_u64(moved);
    }

    /// Stages up to `budget` bytes of what lives in a segment. Returns how many.
    fn move_some(&mut self, victim: u64, budget: usize) -> usize {
        let reader = LogReader::new(std::sync::Arc::clone(&self.shared));
        let bounds = self.gathered_bounds();
        let fitted = self.fitted(budget);
        let budget = fitted.unwrap_or(budget);
        let is_joined = fitted.is_some() && self.staging.len() + budget <= self.gather_max();
        if !self.staging.is_empty() && !is_joined {
            self.enqueue();
        }
        if self.moves.victim != victim || self.moves.keys.is_empty() {
            self.moves.victim = victim;
            self.moves.keys = self.keys_in(victim);
        }
        let mut moved = 0;
        while let Some(key) = self.moves.keys.last().copied() {
            let left = bounds.get(&key).copied().unwrap_or_default();
            for (first, last) in self.ranges_in(key, victim) {
                let mut next = first.max(left.from);
                let last = left.last.map_or(last, |end| last.min(end));
                while next <= last {
                    let most = budget.saturating_sub(moved).min(RUN_BYTES);
                    if most == 0 {
                        return moved;
                    }
                    // Damage is found here before anybody else reads it: the entries stay where
                    // they are, and whoever reads them is told.
                    let batches = match reader.entries(key.0, key.1, next, last, most) {
                        Err(LogError::Io(error)) if !error.is_of_medium() => return moved,
                        batches => batches.ok(),
                    };
                    let Some(batch) = batches.and_then(|batches| joined(key, batches)) else {
                        self.unmovable.insert(victim);
                        return moved;
                    };
                    next = batch.last().index.next();
                    moved += batch.size_bytes() + ENTRIES_ITEM_BYTES;
                    self.staging.entries(key, &batch, true);
                }
            }
            self.moves.keys.pop();
        }
        moved
    }

    /// What the records that are gathered leave of the replicas they concern.
    fn gathered_bounds(&self) -> FxHashMap<Key, Left> {
        let mut bounds = FxHashMap::<Key, Left>::default();
        for (key, change) in self.gathered().flat_map(|record| &record.changes) {
            let left = bounds.entry(*key).or_default();
            match change {
                Change::Entries { item, .. } => {
                    let last = item.first.index.previous().unwrap_or_default();
                    left.last = Some(left.last.map_or(last, |lowest| lowest.min(last)));
                }
                Change::Compact(index) => left.from = left.from.max(*index),
                Change::Reset(_) | Change::Tombstone => left.last = Some(Index::default()),
                Change::HardState(_) | Change::Snapshots(_) | Change::Health(_) => {}
            }
        }
        bounds
    }

    /// Whether enough was written to pay for moves: to go on, or to begin.
    fn can_pay(&mut self, budget: usize) -> bool {
        let budget = to_u64(budget);
        let least = match self.moves.are_on {
            true => budget,
            false => budget.max(self.options.segment_size_bytes),
        };
        self.moves.are_on &= self.moves.credit >= least;
        self.moves.credit >= least
    }

    /// What was written pays for as many bytes moved, up to four segments. So moving costs at most
    /// twice what is written, and a segment that others have left can be emptied.
    pub(super) fn earn_written(&mut self, bytes: u64) {
        let most = 4 * self.options.segment_size_bytes;
        let credit = self.moves.credit;
        self.moves.credit = credit.max(most.min(credit + bytes));
        self.moves.beside += if self.moves.are_on { bytes } else { 0 };
        self.moves.last_bytes = bytes;
    }

    /// What died of it pays once more, however much it is.
    pub(super) fn earn_freed(&mut self, bytes: u64) {
        self.moves.credit = self.moves.credit.saturating_add(bytes);
    }

    /// A burst is over: what is moved now is on its own.
    pub(super) const fn note_rest(&mut self) {
        (self.moves.moved, self.moves.beside) = (0, 0);
    }

    /// How much garbage may be left. Under a load that never ends young entries come to lie beside
    /// what is moved, and will die there: to move it for less would be in vain.
    fn garbage_max(&self, live: u64) -> u64 {
        let segment = self.options.segment_size_bytes;
        let (moved, beside) = (self.moves.moved, u128::from(self.moves.beside));
        let diluted = 2 * u128::from(live) * beside / (u128::from(moved) + u128::from(segment));
        let most = segment.max(u64::try_from(diluted).unwrap_or(u64::MAX));
        if self.moves.are_on { most / 2 } else { most }
    }

    /// What may be moved on a full disk: as much as fits beside what compactions need, and only if a
    /// segment is free then.
    fn room_to_collect(&self) -> u64 {
        let kept = self.options.last_reserve() + self.footer_bytes(16) + 1024;
        let left = self.active.len.saturating_sub(self.active.offset);
        left.saturating_sub(kept)
    }

    /// As much of it as the active segment has room for behind what is gathered, if that is worth a
    /// record: or segments end where the next move was too large for them.
    fn fitted(&self, budget: usize) -> Option<usize> {
        let left = self.active.len.saturating_sub(self.active.offset);
        let beside = self.pending_bytes() + WATERMARK_BYTES + 1024;
        let taken = self.footer_bytes(16) + to_u64(beside);
        let left = usize::try_from(left.saturating_sub(taken)).unwrap_or(usize::MAX);
        (left >= budget / 8).then_some(budget.min(left))
    }

    /// How much is moved in one go: more if the load's records are large, or they would be most of
    /// what is written; no more than what a record may be, as a crash may cut it off, or than what leaves
    /// little of a segment unused.
    fn collect_budget(&self) -> usize {
        let beside = usize::try_from(4 * self.moves.last_bytes).unwrap_or(usize::MAX);
        let quarter = usize::try_from(self.options.segment_size_bytes / 4).unwrap_or(usize::MAX);
        let most = quarter.min(self.options.record_bytes_max);
        self.options.collect_bytes_max.max(beside).min(most)
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
        let live: u64 = sealed.iter().map(|(_, info, _)| info.live_bytes).sum();
        if garbage <= self.garbage_max(live) {
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

    /// Who has something in a segment, last first.
    fn keys_in(&self, segment: u64) -> Vec<Key> {
        let tables = self.tables();
        let has = |replica: &Replica| replica.spans.iter().any(|span| span.segment == segment);
        let owners = tables.replicas.iter().filter(|(_, replica)| has(replica));
        let mut keys: Vec<Key> = owners.map(|(key, _)| *key).collect();
        keys.sort_unstable_by(|one, other| other.cmp(one));
        keys
    }

    /// What a replica has in a segment.
    fn ranges_in(&self, key: Key, segment: u64) -> Vec<(Index, Index)> {
        let tables = self.tables();
        let replica = tables.replicas.get(&key);
        let spans = replica.into_iter().flat_map(|replica| &replica.spans);
        let here = spans.filter(|span| span.segment == segment);
        here.map(|span| (span.first, span.last)).collect()
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
