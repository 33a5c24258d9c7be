//! Where the entries lie: spans of each replica's log, and the runs of sealed segments through a
//! bounded cache.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, BytesMut};
use raft_proto::{Batch, Index};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::item::{EntriesItem, Key};
use crate::record::Place;
use crate::state::{Health, ReplicaState};
use crate::vfs::FileId;

pub(crate) const LIST_RUN_BYTES: usize = 24;

/// Consecutive entries in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) segment: u64,
    /// What the entries take, about: a span cut short counts by its share.
    pub(crate) bytes: u64,
    pub(crate) at: At,
}

/// How to find a span's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// One batch. What the span covers is a part of it, or all.
    Batch { offset: u64, len: usize },
    /// A list of batches in the segment's footer.
    List { offset: u64, count: u32, crc: u32 },
}

impl Span {
    fn count(&self) -> u64 {
        self.last.distance_from(self.first) + 1
    }

    fn cut_to(mut self, first: Index, last: Index) -> Self {
        let before = self.count();
        (self.first, self.last) = (first, last);
        let share = u128::from(self.bytes) * u128::from(self.count()) / u128::from(before);
        self.bytes = u64::try_from(share).unwrap_or(self.bytes).max(1);
        self
    }
}

/// One batch in a footer's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListRun {
    pub(crate) first: Index,
    pub(crate) offset: u64,
    pub(crate) count: u32,
    pub(crate) len: u32,
}

impl ListRun {
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.first.get());
        out.put_u64_le(self.offset);
        out.put_u32_le(self.count);
        out.put_u32_le(self.len);
    }

    fn last(&self) -> u64 {
        self.first.get().saturating_add(u64::from(self.count)) - 1
    }

    /// What of it lies within `first..=last`: of its batch only so much counts then.
    pub(crate) fn part(&self, first: Index, last: Index) -> Option<Self> {
        let first = first.max(self.first);
        let last = last.min(Index::new(self.last()));
        let count = (first <= last).then(|| last.distance_from(first) + 1)?;
        Some(Self {
            first,
            count: u32::try_from(count).ok()?,
            ..*self
        })
    }
}

/// Reads a list whose checksum must hold.
pub(crate) fn decode_list(mut bytes: &[u8], place: Place, crc: u32) -> Option<Vec<ListRun>> {
    if !bytes.len().is_multiple_of(LIST_RUN_BYTES) || place.checksum(bytes) != crc {
        return None;
    }
    let mut runs = Vec::with_capacity(bytes.len() / LIST_RUN_BYTES);
    while !bytes.is_empty() {
        let run = ListRun {
            first: Index::new(bytes.get_u64_le()),
            offset: bytes.get_u64_le(),
            count: bytes.get_u32_le(),
            len: bytes.get_u32_le(),
        };
        let end = run.first.get().checked_add(u64::from(run.count));
        let ends_at = run.offset.checked_add(u64::from(run.len));
        if run.count == 0 || end.is_none_or(|end| end >= u64::MAX - 1) || ends_at.is_none() {
            return None;
        }
        runs.push(run);
    }
    Some(runs)
}

/// The run that holds `index`.
pub(crate) fn find_run(runs: &[ListRun], index: Index) -> Option<ListRun> {
    let at = runs.partition_point(|run| run.last() < index.get());
    runs.get(at).filter(|run| run.first <= index).copied()
}

/// What a sealed segment held when it was sealed, beside what every batch takes anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AtSeal {
    /// Bytes of the entries that counted.
    pub(crate) live_bytes: u64,
    /// Other bytes: entries that had died, fillers, what is no entry.
    pub(crate) other_bytes: u64,
}

impl AtSeal {
    /// What a batch takes at most beside its entries, in headers, tables and the footer.
    const BATCH_BYTES: u64 = 256;
    /// What a segment takes whatever it holds, but for its checkpoint: headers, trailer, watermark.
    const SEGMENT_BYTES: u64 = 4096;

    /// Of a segment whose footer, which ends at `end` without the checkpoint, lists so many
    /// batches.
    pub(crate) fn new(end: u64, live_bytes: u64, batches: u64) -> Self {
        let beside = batches.saturating_mul(Self::BATCH_BYTES);
        let beside = beside.saturating_add(Self::SEGMENT_BYTES);
        let known = live_bytes.saturating_add(beside);
        Self {
            live_bytes,
            other_bytes: end.saturating_sub(known),
        }
    }
}

/// A segment as readers and collection see it.
#[derive(Clone, Debug)]
pub(crate) struct SegmentInfo {
    pub(crate) file: FileId,
    pub(crate) len: u64,
    pub(crate) incarnation: u64,
    pub(crate) live_spans: usize,
    pub(crate) live_bytes: u64,
    pub(crate) is_sealed: bool,
    /// Nothing where a recovery sealed it.
    pub(crate) at_seal: AtSeal,
    /// It holds moved entries alone, which count as if they lay just before this one.
    pub(crate) before: Option<u64>,
}

/// A replica as far as it is durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replica {
    pub(crate) state: ReplicaState,
    /// Ascending, without overlap.
    pub(crate) spans: VecDeque<Span>,
    /// Which segment was appended to when it last gave up entries, in this life of the lane.
    pub(crate) compacted_in: Option<u64>,
}

impl Replica {
    /// Where the entries from `first` on lie.
    pub(crate) fn spans_from(&self, first: Index) -> impl Iterator<Item = &Span> {
        let at = self.spans.partition_point(|span| span.last < first);
        self.spans.range(at..)
    }
}

/// What is kept by replicas that compact as they go.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    pub(crate) live_bytes: u64,
    /// Where some of it lies.
    pub(crate) segments: FxHashSet<u64>,
}

/// Everything readers need: what is durable, and where.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) replicas: FxHashMap<Key, Replica>,
    pub(crate) segments: BTreeMap<u64, SegmentInfo>,
}

type Segments = BTreeMap<u64, SegmentInfo>;

fn count_in(segments: &mut Segments, span: &Span) {
    if let Some(segment) = segments.get_mut(&span.segment) {
        segment.live_spans += 1;
        segment.live_bytes += span.bytes;
    }
}

fn count_out(segments: &mut Segments, span: &Span) {
    if let Some(segment) = segments.get_mut(&span.segment) {
        segment.live_spans -= 1;
        segment.live_bytes = segment.live_bytes.saturating_sub(span.bytes);
    }
}

impl Tables {
    /// The replicas' keys, ascending: the map's own order is nobody's.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let mut keys: Vec<Key> = self.replicas.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The replicas that are gone for ever.
    pub(crate) fn tombstones(&self) -> BTreeSet<Key> {
        let all = self.replicas.iter();
        let gone = all.filter(|(_, replica)| replica.state.health == Health::Tombstone);
        gone.map(|(key, _)| *key).collect()
    }

    /// Entries were appended: they overwrite what lies at their first index and behind.
    pub(crate) fn append(&mut self, key: Key, item: &EntriesItem, segment: u64, offset: u64) {
        let replica = self.replicas.entry(key).or_default();
        let span = Span {
            first: item.first.index,
            last: item.last.index,
            segment,
            bytes: u64::try_from(item.len).expect("a length fits"),
            at: At::Batch {
                offset,
                len: item.len,
            },
        };
        if item.is_moved {
            replace(&mut replica.spans, &mut self.segments, span);
        } else {
            replica.state.append_item(item);
            truncate(&mut replica.spans, &mut self.segments, span.first);
            count_in(&mut self.segments, &span);
            replica.spans.push_back(span);
        }
    }

    /// Nothing before counts any more.
    pub(crate) fn reset(&mut self, key: Key) {
        if let Some(replica) = self.replicas.get_mut(&key) {
            for span in replica.spans.drain(..) {
                count_out(&mut self.segments, &span);
            }
        }
    }

    /// Entries before the state's first and behind its last are gone.
    pub(crate) fn clip(&mut self, key: Key) {
        let Some(replica) = self.replicas.get_mut(&key) else {
            return;
        };
        let (first, end) = (replica.state.first, replica.state.last.index.next());
        compact(&mut replica.spans, &mut self.segments, first);
        truncate(&mut replica.spans, &mut self.segments, end);
    }

    /// What a sealed segment's footer says of a replica.
    pub(crate) fn take_list(&mut self, key: Key, overwrites_from: Option<Index>, spans: &[Span]) {
        let replica = self.replicas.entry(key).or_default();
        if let Some(from) = overwrites_from {
            truncate(&mut replica.spans, &mut self.segments, from);
        }
        for span in spans {
            replace(&mut replica.spans, &mut self.segments, *span);
        }
    }

    /// Replaces a sealed segment's batches by spans over its footer's lists.
    pub(crate) fn seal(&mut self, key: Key, segment: u64, lists: &[Span]) {
        let Some(replica) = self.replicas.get_mut(&key) else {
            return;
        };
        for span in lists {
            replace(&mut replica.spans, &mut self.segments, *span);
        }
        // A span for each batch has become one for all of them.
        let wanted = 2 * replica.spans.len().max(4);
        if replica.spans.capacity() > 2 * wanted {
            replica.spans.shrink_to(wanted);
        }
        debug_assert!(
            replica
                .spans
                .iter()
                .all(|span| span.segment != segment || matches!(span.at, At::List { .. })),
            "a sealed segment's spans are lists"
        );
    }

    /// These segments are gone, with whatever lay there.
    pub(crate) fn forget(&mut self, segments: &BTreeSet<u64>) {
        if segments.is_empty() {
            return;
        }
        for replica in self.replicas.values_mut() {
            let is_there = |span: &Span| !segments.contains(&span.segment);
            replica.spans.retain(is_there);
        }
        self.segments.retain(|number, _| !segments.contains(number));
    }

    /// What is kept by those that compact as they go, while segment `now` is appended to.
    pub(crate) fn windows(&self, now: u64) -> Windows {
        let mut windows = Windows::default();
        for replica in self.replicas.values() {
            if !self.has_window(replica, now) {
                continue;
            }
            for span in &replica.spans {
                windows.live_bytes += span.bytes;
                windows.segments.insert(span.segment);
            }
        }
        windows
    }

    /// Whether a replica compacts as it goes: it has done so in the newer half of the time that what
    /// it keeps spans, which is counted in segments. Or it may keep all for ever.
    fn has_window(&self, replica: &Replica, now: u64) -> bool {
        let oldest = replica.spans.front();
        let Some((oldest, compacted_in)) = oldest.zip(replica.compacted_in) else {
            return false;
        };
        let info = self.segments.get(&oldest.segment);
        let written_in = info.and_then(|info| info.before).unwrap_or(oldest.segment);
        now.saturating_sub(compacted_in) <= now.saturating_sub(written_in) / 2
    }

    /// Bytes of a replica's entries, wherever they lie.
    pub(crate) fn live_bytes(&self, key: Key) -> u64 {
        let spans = self.replicas.get(&key).map(|replica| &replica.spans);
        spans.into_iter().flatten().map(|span| span.bytes).sum()
    }

    /// The span that holds `index`.
    pub(crate) fn find(&self, key: Key, index: Index) -> Option<&Span> {
        let spans = &self.replicas.get(&key)?.spans;
        let at = spans.partition_point(|span| span.last < index);
        spans.get(at).filter(|span| span.first <= index)
    }

    /// What is allocated for finding entries.
    pub(crate) fn index_bytes(&self) -> usize {
        let of_replicas = self.replicas.values().map(|replica| {
            let state = &replica.state;
            replica.spans.capacity() * size_of::<Span>()
                + state.terms.capacity() * size_of::<raft_proto::TermRun>()
                + state.membership_entries.capacity() * size_of::<Index>()
        });
        of_replicas.sum::<usize>()
            + self.replicas.capacity() * size_of::<(Key, Replica)>()
            + self.segments.len() * size_of::<(u64, SegmentInfo)>()
    }

    /// The ranges of `first..=last` that no span holds, ascending.
    pub(crate) fn gaps(&self, key: Key) -> Vec<(Index, Index)> {
        let Some(replica) = self.replicas.get(&key) else {
            return Vec::new();
        };
        let mut next = replica.state.first;
        let mut gaps = Vec::new();
        for span in &replica.spans {
            if let Some(before) = span.first.previous().filter(|before| *before >= next) {
                gaps.push((next, before));
            }
            next = span.last.next();
        }
        let last = replica.state.last.index;
        if next <= last {
            gaps.push((next, last));
        }
        gaps
    }
}

fn truncate(spans: &mut VecDeque<Span>, segments: &mut Segments, from: Index) {
    while let Some(span) = spans.back().filter(|span| span.last >= from).copied() {
        spans.pop_back();
        count_out(segments, &span);
        if span.first < from {
            let kept = span.cut_to(span.first, from.previous().unwrap_or_default());
            count_in(segments, &kept);
            spans.push_back(kept);
        }
    }
}

fn compact(spans: &mut VecDeque<Span>, segments: &mut Segments, first: Index) {
    while let Some(span) = spans.front().filter(|span| span.first < first).copied() {
        spans.pop_front();
        count_out(segments, &span);
        if span.last >= first {
            let kept = span.cut_to(first, span.last);
            count_in(segments, &kept);
            spans.push_front(kept);
        }
    }
}

/// Puts a span where it belongs, in place of what covered the same entries.
fn replace(spans: &mut VecDeque<Span>, segments: &mut Segments, span: Span) {
    count_in(segments, &span);
    let start = spans.partition_point(|old| old.last < span.first);
    let end = spans.partition_point(|old| old.first <= span.last);
    let mut put = vec![span];
    if start < end {
        let (head, tail) = (spans[start], spans[end - 1]);
        if head.first < span.first {
            let last = span.first.previous().unwrap_or_default();
            put.insert(0, head.cut_to(head.first, last));
        }
        if tail.last > span.last {
            put.push(tail.cut_to(span.last.next(), tail.last));
        }
    }
    for kept in put.iter().filter(|kept| **kept != span) {
        count_in(segments, kept);
    }
    let behind = spans.split_off(end);
    for old in spans.drain(start..) {
        count_out(segments, &old);
    }
    spans.extend(put);
    spans.extend(behind);
}

/// The lists of sealed segments that were read lately, bounded in bytes; the oldest go first.
#[derive(Debug)]
pub(crate) struct ListCache {
    inner: Mutex<CacheInner>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct CacheInner {
    lists: BTreeMap<(u64, u64), Arc<[ListRun]>>,
    order: VecDeque<(u64, u64)>,
    bytes: usize,
}

impl ListCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            bytes_max,
        }
    }

    /// A list by incarnation and offset.
    pub(crate) fn find(&self, key: (u64, u64)) -> Option<Arc<[ListRun]>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.lists.get(&key).cloned()
    }

    pub(crate) fn insert(&self, key: (u64, u64), list: &Arc<[ListRun]>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.lists.insert(key, Arc::clone(list)).is_none() {
            inner.order.push_back(key);
            inner.bytes += list.len() * size_of::<ListRun>();
        }
        while inner.bytes > self.bytes_max
            && let Some(oldest) = inner.order.pop_front()
        {
            if let Some(list) = inner.lists.remove(&oldest) {
                inner.bytes -= list.len() * size_of::<ListRun>();
            }
        }
    }
}

/// The most recent batches, bounded in bytes: reads of the tail touch neither disk nor checksum.
///
/// A batch may lie in a far larger buffer, which it keeps alive: small ones are copied.
#[derive(Debug)]
pub(crate) struct TailCache {
    inner: Mutex<TailInner>,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct TailInner {
    /// Ascending by segment and offset, as they are written: these never mean two things while the
    /// segment lives.
    batches: VecDeque<(Position, Batch)>,
    bytes: usize,
}

type Position = (u64, u64);

/// Batches from this size on stay in the buffers they came in.
const COPY_BELOW_BYTES: usize = 16 << 10;

impl TailCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            bytes_max,
        }
    }

    pub(crate) fn find(&self, segment: u64, offset: u64) -> Option<Batch> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let at = inner
            .batches
            .binary_search_by_key(&(segment, offset), |(position, _)| *position)
            .ok()?;
        Some(inner.batches[at].1.clone())
    }

    /// Takes batches in the order in which they lie on the disk, behind those of earlier calls.
    pub(crate) fn insert_all(&self, mut batches: Vec<(Position, Batch)>) {
        let mut room = self.bytes_max;
        let fits = |(_, batch): &&(Position, Batch)| {
            let left = room.checked_sub(cached_bytes(batch));
            room = left.unwrap_or(room);
            left.is_some()
        };
        let newest = batches.iter().rev().take_while(fits).count();
        batches.drain(..batches.len() - newest);
        if batches.is_empty() {
            return;
        }
        let copied = |batch: &Batch| batch.size_bytes() < COPY_BELOW_BYTES;
        let small = batches.iter().filter(|(_, batch)| copied(batch));
        let mut buffer = BytesMut::with_capacity(small.map(|(_, batch)| batch.size_bytes()).sum());
        for (_, batch) in batches.iter_mut().filter(|(_, batch)| copied(batch)) {
            *batch = batch.copy_into(&mut buffer);
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (position, batch) in batches {
            debug_assert!(
                inner.batches.back().is_none_or(|last| last.0 < position),
                "batches come in order"
            );
            inner.bytes += cached_bytes(&batch);
            inner.batches.push_back((position, batch));
        }
        while inner.bytes > self.bytes_max
            && let Some((_, oldest)) = inner.batches.pop_front()
        {
            inner.bytes -= cached_bytes(&oldest);
        }
    }
}

/// What a cached batch takes.
fn cached_bytes(batch: &Batch) -> usize {
    batch.size_bytes() + size_of::<(Position, Batch)>()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use raft_proto::{BatchBuilder, EntryId, EntryKind, GroupId, ReplicaId, Term};

    use super::*;

    fn key() -> Key {
        let (group, replica) = (GroupId::new(1), ReplicaId::new(1));
        (group.expect("not 0"), replica.expect("not 0"))
    }

    fn tables() -> Tables {
        let mut tables = Tables::default();
        for number in 1..=4 {
            let info = SegmentInfo {
                file: FileId(number),
                len: 65_536,
                incarnation: number,
                live_spans: 0,
                live_bytes: 0,
                is_sealed: true,
                at_seal: AtSeal::default(),
                before: None,
            };
            tables.segments.insert(number, info);
        }
        tables
    }

    fn item(first: u64, last: u64, is_moved: bool) -> EntriesItem {
        EntriesItem {
            first: EntryId::new(Term::new(1), Index::new(first)),
            last: EntryId::new(Term::new(1), Index::new(last)),
            len: usize::try_from((last - first + 1) * 10).expect("small"),
            is_moved,
            term_changes: Vec::new(),
            membership_entries: Vec::new(),
        }
    }

    fn shown(tables: &Tables) -> Vec<(u64, u64, u64)> {
        let spans = &tables.replicas[&key()].spans;
        spans
            .iter()
            .map(|span| (span.first.get(), span.last.get(), span.segment))
            .collect()
    }

    /// The counters say what the spans say.
    fn check(tables: &Tables) {
        for (number, info) in &tables.segments {
            let spans: Vec<&Span> = tables
                .replicas
                .values()
                .flat_map(|replica| &replica.spans)
                .filter(|span| span.segment == *number)
                .collect();
            assert_eq!(info.live_spans, spans.len());
            assert_eq!(
                info.live_bytes,
                spans.iter().map(|span| span.bytes).sum::<u64>()
            );
        }
    }

    #[test]
    fn overwriting_and_moving_leave_what_counts() {
        let mut tables = tables();
        tables.append(key(), &item(1, 10, false), 1, 0);
        tables.append(key(), &item(11, 20, false), 2, 0);
        tables.append(key(), &item(15, 16, false), 3, 0);
        assert_eq!(shown(&tables), [(1, 10, 1), (11, 14, 2), (15, 16, 3)]);
        check(&tables);
        tables.append(key(), &item(3, 5, true), 4, 0);
        assert_eq!(
            shown(&tables),
            [(1, 2, 1), (3, 5, 4), (6, 10, 1), (11, 14, 2), (15, 16, 3)]
        );
        check(&tables);
        tables.append(key(), &item(8, 14, true), 4, 500);
        assert_eq!(
            shown(&tables),
            [(1, 2, 1), (3, 5, 4), (6, 7, 1), (8, 14, 4), (15, 16, 3)]
        );
        check(&tables);
        assert_eq!(tables.segments[&2].live_spans, 0, "segment 2 is dead");
        let replica = tables.replicas.get_mut(&key()).expect("it is there");
        replica.state.compact_before(Index::new(7));
        tables.clip(key());
        assert_eq!(shown(&tables), [(7, 7, 1), (8, 14, 4), (15, 16, 3)]);
        check(&tables);
        assert_eq!(tables.gaps(key()), []);
        tables.reset(key());
        check(&tables);
        assert_eq!(
            tables.gaps(key()),
            [(Index::new(7), Index::new(16))],
            "all is gone"
        );
    }

    #[test]
    fn a_list_is_found_by_any_of_its_indexes() {
        let runs: Vec<ListRun> = (0..10)
            .map(|n| ListRun {
                first: Index::new(1 + n * 3),
                offset: n * 100,
                count: 3,
                len: 100,
            })
            .collect();
        let mut bytes = BytesMut::new();
        runs.iter().for_each(|run| run.encode(&mut bytes));
        let place = Place {
            incarnation: 4,
            offset: 640,
        };
        let crc = place.checksum(&bytes);
        let found = decode_list(&bytes, place, crc).expect("whole");
        assert_eq!(found, runs);
        for index in 1..=30 {
            let run = find_run(&found, Index::new(index)).expect("held");
            assert_eq!(run.offset, (index - 1) / 3 * 100);
        }
        assert_eq!(find_run(&found, Index::new(31)), None);
        // One that claims to lie past all bytes there could be.
        let mut beyond = bytes.to_vec();
        beyond[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(decode_list(&beyond, place, place.checksum(&beyond)), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_list(&flipped, place, crc), None, "bit {bit}");
        }
    }

    #[test]
    fn the_caches_stay_within_their_bounds() {
        let cache = ListCache::new(10 * size_of::<ListRun>());
        let run = ListRun {
            first: Index::new(1),
            offset: 0,
            count: 1,
            len: 1,
        };
        for at in 0..20 {
            cache.insert((1, at), &Arc::from(vec![run; 4]));
        }
        assert!(cache.find((1, 19)).is_some());
        assert!(cache.find((1, 0)).is_none());
        let inner = cache.inner.lock().expect("no panic");
        assert!(inner.bytes <= 10 * size_of::<ListRun>());
        assert_eq!(inner.order.len(), inner.lists.len());
    }

    #[test]
    fn a_small_part_of_a_large_buffer_does_not_keep_it() {
        struct Counted(Vec<u8>, Arc<AtomicUsize>);
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Counted {
            fn drop(&mut self) {
                self.1.fetch_sub(self.0.len(), Ordering::Relaxed);
            }
        }
        let kept = Arc::new(AtomicUsize::new(0));
        let cache = TailCache::new(1 << 20);
        let group = key().0;
        let received = |index: u64, len: usize| {
            let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(index), 0);
            builder.push(EntryKind::Command, 0, None, &vec![7; len]);
            let batch = builder.finish().expect("one");
            let mut buffer = vec![0; 64 << 10];
            buffer[..batch.size_bytes()].copy_from_slice(batch.bytes());
            kept.fetch_add(buffer.len(), Ordering::Relaxed);
            let buffer = Bytes::from_owner(Counted(buffer, Arc::clone(&kept)));
            Batch::decode(group, buffer.slice(..batch.size_bytes())).expect("as it was")
        };
        for index in 1..=3_000 {
            let small = ((1, 2 * index), received(index, 100));
            let large = ((1, 2 * index + 1), received(index, 20 << 10));
            cache.insert_all(vec![small, large]);
        }
        let found = cache.find(1, 6_000).expect("the last but one is kept");
        assert_eq!(found.first().index, Index::new(3_000));
        let kept = kept.load(Ordering::Relaxed);
        assert!(kept > 0, "large ones stay where they are");
        assert!(kept <= 4 << 20, "1 MiB of batches keeps {kept} bytes alive");
    }
}
