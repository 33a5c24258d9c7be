//! Laggards: the few live entries of an old segment are moved forward by the log itself, so that
//! the segment dies.

use raft_proto::Index;

use crate::item::Key;
use crate::lane::Lane;
use crate::read::LogReader;

/// Segments younger than this many others are left alone: most of what lives there dies soon.
const YOUNG: usize = 1;

impl Lane {
    /// Moves a little, if the sealed segments hold more than a segment's worth of garbage. Called
    /// only when nothing is staged or on its way: what is read is then what counts, and nothing
    /// staged before can be overwritten by it.
    pub(super) fn collect(&mut self) {
        let may_not = self.is_closing || self.shared.is_full() || self.active.is_sealed;
        if self.collect_credit == 0 || may_not {
            return;
        }
        let Some(victim) = self.victim() else {
            return;
        };
        let spans = self.spans_in(victim);
        let reader = LogReader::new(std::sync::Arc::clone(&self.shared));
        let mut moved = 0;
        let budget = self.options.collect_bytes_max;
        'spans: for (key, first, last) in spans {
            let mut next = first;
            while next <= last {
                let left = budget.saturating_sub(moved);
                if left == 0 {
                    break 'spans;
                }
                // Damage is found here before anybody else reads it: the entries stay where they
                // are, and whoever reads them is told.
                let Ok(batches) = reader.entries(key.0, key.1, next, last, left) else {
                    self.unmovable.insert(victim);
                    break 'spans;
                };
                for batch in batches {
                    next = batch.last().index.next();
                    moved += batch.size_bytes();
                    self.staging.entries(key, &batch, true);
                }
            }
        }
        self.staging.has_moved |= moved > 0;
        let moved = u64::try_from(moved).expect("a length fits");
        self.collect_credit = self.collect_credit.saturating_sub(moved.max(1));
        self.stats.moved_bytes += moved;
    }

    /// The sealed segment with the smallest part of it alive, if there is too much garbage.
    fn victim(&self) -> Option<u64> {
        let tables = self.tables();
        let sealed: Vec<_> = tables
            .segments
            .iter()
            .filter(|(number, info)| info.is_sealed && !self.releasing.contains(number))
            .collect();
        let total: u64 = sealed.iter().map(|(_, info)| info.len).sum();
        let live: u64 = sealed.iter().map(|(_, info)| info.live_bytes).sum();
        if total <= live + self.options.segment_size_bytes {
            return None;
        }
        let old = sealed.len().saturating_sub(YOUNG);
        let share = |info: &crate::index::SegmentInfo| {
            u128::from(info.live_bytes) * 1_000_000 / u128::from(info.len.max(1))
        };
        sealed[..old]
            .iter()
            .filter(|(number, info)| info.live_spans > 0 && !self.unmovable.contains(number))
            .min_by_key(|(number, info)| (share(info), **number))
            .filter(|(_, info)| share(info) < 900_000)
            .map(|(number, _)| **number)
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
