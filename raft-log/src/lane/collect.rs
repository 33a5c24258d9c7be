//! Laggards: the few live entries of old segments are moved by the log itself, so that the segments
//! die. See [`apart`](super::apart) for where they go.

use raft_proto::Index;

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::index::{LIST_RUN_BYTES, Replica, SegmentInfo};
use crate::item::{ENTRIES_ITEM_BYTES, Key};
use crate::lane::Lane;
use crate::lane::apart::{Apart, RUN_BYTES, joined};
use crate::lane::seal::RUNS_ITEM_BYTES;
use crate::read::LogReader;

/// What a span takes beside its entries once it is moved: its item in a record, its part of a
/// footer.
const SPAN_OVERHEAD_BYTES: u64 = 64 + RUNS_ITEM_BYTES as u64 + LIST_RUN_BYTES as u64;

/// What pays for moves.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Bytes that may be moved: what was written, and what died since.
    credit: u64,
    /// What the next move costs, as far as is known; nothing if there is nothing to do. Nobody looks
    /// again before so much is paid for, or something dies.
    wanted: Option<u64>,
    /// What the last record held of what was submitted.
    last_bytes: u64,
}

/// Which segments are emptied next.
struct Plan {
    /// The emptiest first.
    victims: Vec<u64>,
    /// What lives there would take elsewhere.
    moved_bytes: u64,
}

impl SegmentInfo {
    /// What its live entries would take elsewhere.
    fn moved_bytes(&self) -> u64 {
        let spans = u64::try_from(self.live_spans).expect("a count fits");
        (self.live_bytes + spans * SPAN_OVERHEAD_BYTES).min(self.len)
    }

    /// What moving its live entries would win for ever: the share that has died of what was put
    /// into it, or was never put into one apart. What lies beside those that live, and the end that
    /// was too small for a record, they would take elsewhere as well.
    fn garbage_bytes(&self) -> u64 {
        if self.at_seal.live_bytes == 0 {
            return self.len - self.moved_bytes();
        }
        let put = self.at_seal.live_bytes + self.at_seal.other_bytes;
        let died = put.saturating_sub(self.live_bytes);
        let share = u128::from(self.len) * u128::from(died) / u128::from(put);
        u64::try_from(share).unwrap_or(self.len)
    }

    /// The share of it that is garbage, in millionths.
    fn garbage_share(&self) -> u128 {
        u128::from(self.garbage_bytes()) * 1_000_000 / u128::from(self.len.max(1))
    }
}

impl Moves {
    /// What died in earlier lives pays for a segment.
    pub(super) fn new(options: &LaneOptions) -> Self {
        Self {
            credit: options.segment_size_bytes,
            wanted: Some(0),
            last_bytes: 0,
        }
    }

    /// Something died, or a segment was sealed: there may be more to do.
    pub(super) const fn look_again(&mut self) {
        self.wanted = Some(0);
    }

    pub(super) const fn spend(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_sub(bytes);
    }
}

impl Lane {
    /// Moves a piece, if the sealed segments hold more than a segment's worth of garbage. Only when
    /// nothing is on its way.
    ///
    /// It is paid for by what was appended, and by what died. On a full disk it is what makes room: if
    /// there is no segment apart then, what lives in one is moved to the end of the active one.
    pub(super) fn collect(&mut self) {
        let has_ended = self.is_closing || self.latched.is_some();
        if has_ended || self.flight.is_some() {
            return;
        }
        let is_full = self.shared.is_full();
        if self.apart.is_none() && is_full {
            self.collect_in_place();
            return;
        }
        if self.apart.is_none() {
            self.begin_apart();
        }
        self.fill_apart(self.collect_budget());
    }

    /// Takes a spare segment for what is to be moved, if that frees more than it takes, and is paid for.
    fn begin_apart(&mut self) {
        let is_busy = self.has_held() || self.lacks_segment || self.active.is_sealed;
        let credit = self.moves.credit;
        let may_pay = self.moves.wanted.is_some_and(|wanted| wanted <= credit);
        if !may_pay || is_busy || !self.spares_one() {
            return;
        }
        let plan = self.plan();
        let segment = self.options.segment_size_bytes;
        self.moves.wanted = plan.as_ref().map(|plan| plan.moved_bytes.min(segment));
        let plan = plan.filter(|plan| plan.moved_bytes.min(segment) <= credit);
        let Some(mut plan) = plan else {
            return;
        };
        if let Some((spare, file)) = self.pool.take_apart() {
            plan.victims.reverse();
            self.apart = Some(Apart::new(spare, file, plan.victims));
            self.moves.look_again();
        }
    }

    /// Whether the next segment will hardly be needed before another one is made.
    fn spares_one(&self) -> bool {
        let left = self.active.len.saturating_sub(self.active.offset);
        left >= self.active.len / 4 || self.is_drained()
    }

    /// The emptiest segments, as few as will do: what lives in them fits into fewer. And those that
    /// fit in as well.
    ///
    /// There are some as soon as there is a segment's worth of garbage, however thin it lies: or a
    /// group that never compacts would pin what lies beside its entries in a long log.
    fn plan(&self) -> Option<Plan> {
        let tables = self.tables();
        let sealed = tables
            .segments
            .iter()
            .filter(|(number, info)| info.is_sealed && !self.releasing.contains(number));
        let sealed: Vec<(u64, &SegmentInfo)> =
            sealed.map(|(number, info)| (*number, info)).collect();
        let segment = self.options.segment_size_bytes;
        let garbage: u64 = sealed.iter().map(|(_, info)| info.garbage_bytes()).sum();
        if garbage <= segment {
            return None;
        }
        let may_move = |number: &u64, info: &SegmentInfo| {
            info.live_spans > 0 && info.garbage_bytes() > 0 && !self.unmovable.contains_key(number)
        };
        let mut emptiest: Vec<(u64, &SegmentInfo)> = sealed
            .into_iter()
            .filter(|(number, info)| may_move(number, info))
            .collect();
        emptiest.sort_by_key(|(number, info)| (std::cmp::Reverse(info.garbage_share()), *number));
        let room = self.apart_room();
        let (mut taken, mut moved_bytes) = (0, 0);
        let mut victims = Vec::new();
        let mut is_enough = false;
        for (number, info) in emptiest {
            let fits_in = (moved_bytes + info.moved_bytes()).div_ceil(room);
            if is_enough && fits_in > u64::div_ceil(moved_bytes, room) {
                break;
            }
            taken += info.len;
            moved_bytes += info.moved_bytes();
            victims.push(number);
            is_enough |= taken >= (fits_in + 1) * segment;
        }
        is_enough.then_some(Plan {
            victims,
            moved_bytes,
        })
    }

    /// What a segment apart holds, about.
    fn apart_room(&self) -> u64 {
        let segment = self.options.segment_size_bytes;
        segment - segment / 64 - 4096
    }

    /// Moves a little to the end of the active segment: on a full disk there may be no other place.
    /// Only when nothing is gathered: what is read is then what counts.
    fn collect_in_place(&mut self) {
        if self.active.is_sealed || !self.is_drained() {
            return;
        }
        let room = self.room_to_collect();
        let Some(victim) = self.victim(room) else {
            return;
        };
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let moved = to_u64(self.move_some(victim, self.collect_budget().min(room)));
        self.moves.spend(moved);
        self.stats.moved_bytes += moved;
    }

    /// Stages up to `budget` bytes of what lives in a segment. Returns how many.
    fn move_some(&mut self, victim: u64, budget: usize) -> usize {
        let reader = LogReader::new(std::sync::Arc::clone(&self.shared));
        let mut moved = 0;
        for key in self.keys_in(victim).into_iter().rev() {
            for (first, last) in self.ranges_in(key, victim) {
                let mut next = first;
                while next <= last {
                    let most = budget.saturating_sub(moved).min(RUN_BYTES);
                    if most == 0 {
                        return moved;
                    }
                    let batches = match reader.entries(key.0, key.1, next, last, most) {
                        Err(LogError::Io(error)) if !error.is_of_medium() => return moved,
                        batches => batches.ok(),
                    };
                    let Some(batch) = batches.and_then(|batches| joined(key, batches)) else {
                        self.unmovable.insert(victim, (key, next));
                        return moved;
                    };
                    next = batch.last().index.next();
                    moved += batch.size_bytes() + ENTRIES_ITEM_BYTES;
                    self.staging.entries(key, &batch, true);
                }
            }
        }
        moved
    }

    /// What was written pays for as many bytes moved, up to four segments. So moving costs at most
    /// twice what is written, and a segment that others have left can be emptied.
    pub(super) fn earn_written(&mut self, bytes: u64) {
        let most = 4 * self.options.segment_size_bytes;
        let credit = self.moves.credit;
        self.moves.credit = credit.max(most.min(credit + bytes));
        self.moves.last_bytes = bytes;
    }

    /// What died of it pays once more, however much it is; what had been moved before takes as much
    /// away instead: groups that keep a window of their log are not laggards.
    pub(super) fn earn_freed(&mut self, bytes: u64) {
        self.moves.credit = self.moves.credit.saturating_add(bytes);
    }

    /// What may be moved on a full disk: as much as fits beside what compactions need, and only if a
    /// segment is free then.
    fn room_to_collect(&self) -> u64 {
        let kept = self.options.last_reserve() + self.footer_bytes(16) + 1024;
        let left = self.active.len.saturating_sub(self.active.offset);
        left.saturating_sub(kept)
    }

    /// How much is moved in one go: more if the load's records are large, or it would not keep up.
    fn collect_budget(&self) -> usize {
        let beside = usize::try_from(2 * self.moves.last_bytes).unwrap_or(usize::MAX);
        let quarter = usize::try_from(self.options.segment_size_bytes / 4).unwrap_or(usize::MAX);
        let most = quarter.min(self.options.record_bytes_max);
        self.options.collect_bytes_max.max(beside).min(most)
    }

    /// The sealed segment with the largest part of it dead, if more than a segment's worth is in
    /// all of them, and if there is `room` for what is alive: nothing pays for it but the reserve,
    /// which others need.
    fn victim(&self, room: u64) -> Option<u64> {
        const LEAST_SHARE: u128 = 100_000;
        let tables = self.tables();
        let sealed: Vec<_> = tables
            .segments
            .iter()
            .filter(|(number, info)| info.is_sealed && !self.releasing.contains(number))
            .collect();
        let garbage: u64 = sealed.iter().map(|(_, info)| info.garbage_bytes()).sum();
        if garbage <= self.options.segment_size_bytes {
            return None;
        }
        sealed
            .iter()
            .filter(|(number, info)| info.live_spans > 0 && !self.unmovable.contains_key(number))
            .filter(|(_, info)| info.garbage_share() >= LEAST_SHARE)
            .filter(|(_, info)| info.moved_bytes() <= room)
            .max_by_key(|(number, info)| (info.garbage_share(), std::cmp::Reverse(**number)))
            .map(|(number, _)| **number)
    }

    /// What could not be moved may be gone now.
    pub(super) fn forget_unmovable(&mut self) {
        let mut unmovable = std::mem::take(&mut self.unmovable);
        unmovable.retain(|segment, (key, index)| {
            let mut here = self.ranges_in(*key, *segment).into_iter();
            here.any(|(first, last)| first <= *index && *index <= last)
        });
        self.unmovable = unmovable;
    }

    /// Who has something in a segment, last first.
    pub(super) fn keys_in(&self, segment: u64) -> Vec<Key> {
        let tables = self.tables();
        let has = |replica: &Replica| replica.spans.iter().any(|span| span.segment == segment);
        let owners = tables.replicas.iter().filter(|(_, replica)| has(replica));
        let mut keys: Vec<Key> = owners.map(|(key, _)| *key).collect();
        keys.sort_unstable_by(|one, other| other.cmp(one));
        keys
    }

    /// What a replica has in a segment.
    pub(super) fn ranges_in(&self, key: Key, segment: u64) -> Vec<(Index, Index)> {
        let tables = self.tables();
        let replica = tables.replicas.get(&key);
        let spans = replica.into_iter().flat_map(|replica| &replica.spans);
        let here = spans.filter(|span| span.segment == segment);
        here.map(|span| (span.first, span.last)).collect()
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
