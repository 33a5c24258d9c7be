//! Laggards: the few live entries of old segments are moved by the log itself, so that the segments
//! die. See [`apart`](super::apart) for where they go.

use raft_proto::Index;

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::index::{LIST_RUN_BYTES, Replica, SegmentInfo, Tables, Windows};
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
    /// again before so much is paid for, or more has died.
    wanted: Option<u64>,
    /// Something has died, or a segment was sealed, since garbage was counted.
    has_news: bool,
    /// As long as there is less garbage, there is nothing new to be found.
    quiet_below: u64,
    /// Who compacts as they go, as of the last seal, naming or watermark.
    windows: Option<Windows>,
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
            wanted: None,
            has_news: true,
            quiet_below: 0,
            windows: None,
            last_bytes: 0,
        }
    }

    /// Something died: there may be more to do.
    pub(super) const fn look_again(&mut self) {
        self.has_news = true;
    }

    /// There may be more to do, however little has died.
    pub(super) const fn look_anew(&mut self) {
        self.has_news = true;
        self.quiet_below = 0;
    }

    /// Where things lie has changed, or time has passed: those who compact as they go may be others.
    pub(super) fn look_afresh(&mut self) {
        self.windows = None;
        self.look_anew();
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
        if is_busy || !self.spares_one() || !self.pool.may_take_apart() {
            return;
        }
        let credit = self.moves.credit;
        let may_pay = |wanted: u64| wanted <= credit;
        if !self.has_more_garbage() && !self.moves.wanted.is_some_and(may_pay) {
            return;
        }
        let segment = self.options.segment_size_bytes;
        let plan = self.plan();
        self.moves.wanted = plan.as_ref().map(|plan| plan.moved_bytes.min(segment));
        if !self.moves.wanted.is_some_and(may_pay) {
            return;
        }
        if let (Some(mut plan), Some((spare, file))) = (plan, self.pool.take_apart()) {
            plan.victims.reverse();
            self.apart = Some(Apart::new(spare, file, plan.victims));
            self.moves.look_anew();
        }
    }

    /// Whether so much has died since the last look that it may have been missed.
    fn has_more_garbage(&mut self) -> bool {
        std::mem::take(&mut self.moves.has_news) && self.garbage_bytes() >= self.moves.quiet_below
    }

    /// Whether the next segment will hardly be needed before another one is made.
    fn spares_one(&self) -> bool {
        let left = self.active.len.saturating_sub(self.active.offset);
        left >= self.active.len / 4 || self.is_drained()
    }

    /// The sealed segments that are not released yet.
    fn sealed_segments<'a>(
        &'a self,
        tables: &'a Tables,
    ) -> impl Iterator<Item = (u64, &'a SegmentInfo)> {
        let segments = tables.segments.iter().map(|(number, info)| (*number, info));
        segments.filter(|(number, info)| info.is_sealed && !self.releasing.contains(number))
    }

    fn garbage_bytes(&self) -> u64 {
        let tables = self.tables();
        let sealed = self.sealed_segments(&tables);
        sealed.map(|(_, info)| info.garbage_bytes()).sum()
    }

    /// What is emptied next, if there is too much garbage, however thin it lies: a segment's worth
    /// beside those that never compact, or they would pin it in a long log. Those that compact as they
    /// go will leave by themselves, so beside them there may be as much again as they keep.
    fn plan(&mut self) -> Option<Plan> {
        let segment = self.options.segment_size_bytes;
        // There is no look for less.
        let step = segment / 16;
        let most = segment - step;
        let garbage = self.garbage_bytes();
        self.moves.quiet_below = garbage + step;
        if garbage <= most {
            self.moves.quiet_below = most;
            return None;
        }
        let windows = self.moves.windows.take();
        let windows = windows.unwrap_or_else(|| self.tables().windows(self.active.number));
        let plan = self.plan_beside(&windows, garbage, most);
        self.moves.windows = Some(windows);
        plan
    }

    fn plan_beside(&self, windows: &Windows, garbage: u64, most: u64) -> Option<Plan> {
        let tables = self.tables();
        let sealed: Vec<(u64, &SegmentInfo)> = self.sealed_segments(&tables).collect();
        let beside_none = sealed.iter().copied();
        let beside_none: Vec<(u64, &SegmentInfo)> = beside_none
            .filter(|(number, _)| !windows.segments.contains(number))
            .collect();
        let pinned: u64 = beside_none
            .iter()
            .map(|(_, info)| info.garbage_bytes())
            .sum();
        let for_keepers = (pinned > most)
            .then(|| self.emptiest(beside_none))
            .flatten();
        let has_too_much = garbage > most + windows.live_bytes;
        for_keepers.or_else(|| has_too_much.then(|| self.emptiest(sealed)).flatten())
    }

    /// The emptiest segments, as few as will do: what lives in them fits into fewer. And those that
    /// fit in as well.
    fn emptiest(&self, mut segments: Vec<(u64, &SegmentInfo)>) -> Option<Plan> {
        segments.retain(|(number, info)| {
            info.live_spans > 0 && info.garbage_bytes() > 0 && !self.unmovable.contains_key(number)
        });
        segments.sort_by_key(|(number, info)| (std::cmp::Reverse(info.garbage_share()), *number));
        let segment = self.options.segment_size_bytes;
        let room = self.apart_room();
        let (mut taken, mut moved_bytes) = (0, 0);
        let mut victims = Vec::new();
        let mut is_enough = false;
        for (number, info) in segments {
            let fits_in = (moved_bytes + info.moved_bytes()).div_ceil(room);
            victims.push(number);
            if is_enough && fits_in > u64::div_ceil(moved_bytes, room) {
                // It fills the rest.
                break;
            }
            taken += info.len;
            moved_bytes += info.moved_bytes();
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
        segment - segment / 512 - 2048
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

    /// What died of it pays once more, however much it is.
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
        if self.garbage_bytes() <= self.options.segment_size_bytes {
            return None;
        }
        let tables = self.tables();
        self.sealed_segments(&tables)
            .filter(|(number, info)| info.live_spans > 0 && !self.unmovable.contains_key(number))
            .filter(|(_, info)| info.garbage_share() >= LEAST_SHARE)
            .filter(|(_, info)| info.moved_bytes() <= room)
            .max_by_key(|(number, info)| (info.garbage_share(), std::cmp::Reverse(*number)))
            .map(|(number, _)| number)
    }

    /// What could not be moved may be gone now.
    pub(super) fn forget_unmovable(&mut self) {
        let mut unmovable = std::mem::take(&mut self.unmovable);
        let before = unmovable.len();
        unmovable.retain(|segment, (key, index)| {
            let mut here = self.ranges_in(*key, *segment).into_iter();
            here.any(|(first, last)| first <= *index && *index <= last)
        });
        if unmovable.len() < before {
            self.moves.look_anew();
        }
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
