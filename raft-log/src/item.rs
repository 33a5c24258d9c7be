//! What a record's table says, item by item. See FORMAT.md, "Tables".

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{EntryId, GroupId, HardState, Index, ReplicaId, Term, TermRun};

use crate::record::RECORD_BYTES_HARD_MAX;
use crate::segment::NUMBER_MAX;
use crate::state::{Damage, Health, ReplicaState, SnapshotRecord, SnapshotsRecord};

/// Terms and indexes are below this: one more can always be counted.
pub(crate) const NUMBER_END: u64 = u64::MAX - 1;

/// A group's replica.
pub(crate) type Key = (GroupId, ReplicaId);

/// The largest bound of a write that is believed.
const WRITE_BYTES_HARD_MAX: u64 = 4 * RECORD_BYTES_HARD_MAX as u64;
pub(crate) const ITEM_HEADER_BYTES: usize = 24;
/// A batch's item, if it is of one term and changes no membership.
pub(crate) const ENTRIES_ITEM_BYTES: usize = ITEM_HEADER_BYTES + 40;
const ENTRIES: u8 = 1;
const HARD_STATE: u8 = 2;
const SNAPSHOTS: u8 = 3;
const RESTART_AFTER: u8 = 4;
const COMPACT_BEFORE: u8 = 5;
const TOMBSTONE: u8 = 6;
const STATE: u8 = 7;
const HEALTH: u8 = 8;
const SEGMENTS: u8 = 9;
const RELEASED: u8 = 10;
const OPENED: u8 = 11;
const RUNS: u8 = 12;
const CLOSED: u8 = 13;
const LIMITS: u8 = 14;
const SUCCESSOR: u8 = 15;
const APART: u8 = 16;

/// Entries in the record's data part, in the order of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EntriesItem {
    pub(crate) first: EntryId,
    pub(crate) last: EntryId,
    pub(crate) len: usize,
    /// Copied forward by the log: replaces the same entries elsewhere and overwrites nothing.
    pub(crate) is_moved: bool,
    /// Where terms change behind the first entry.
    pub(crate) term_changes: Vec<TermRun>,
    pub(crate) membership_entries: Vec<Index>,
}

impl EntriesItem {
    /// The term of one of them.
    pub(crate) fn term_at(&self, index: Index) -> Term {
        let before = self.term_changes.iter().rev();
        let mut runs = before.filter(|run| run.first <= index);
        runs.next().map_or(self.first.term, |run| run.term)
    }
}

/// A replica's entries in a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunsItem {
    /// The lowest index appended here, moved entries aside: older segments hold nothing valid from
    /// there on. `None` if only moved entries lie here.
    pub(crate) overwrites_from: Option<Index>,
    pub(crate) first: Index,
    pub(crate) last: Index,
    /// Bytes of the entries.
    pub(crate) bytes: u64,
    /// The list of runs: where it begins in the record's data part.
    pub(crate) list_at: u32,
    pub(crate) list_count: u32,
    /// Of the list alone, sealed with the place of its first byte.
    pub(crate) list_crc: u32,
}

/// One thing a table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Entries(EntriesItem),
    HardState(HardState),
    Snapshots(SnapshotsRecord),
    RestartAfter(EntryId),
    CompactBefore(Index),
    Tombstone,
    /// All there is to know of a replica but its health, in checkpoints.
    State(Box<ReplicaState>),
    Health(Health),
    Runs(RunsItem),
    /// The lane's live segments: numbers and incarnations.
    Segments(Vec<(u64, u64)>),
    /// Segments that nothing needs any more.
    Released(Vec<u64>),
    /// An open, and what it cut off.
    Opened {
        segment: u64,
        offset: u64,
        cut_bytes: u64,
    },
    /// A clean close.
    Closed,
    /// What holds from here on.
    Limits(Limits),
    /// The segment that follows a sealed one.
    Successor(u64),
    /// Segments that lie apart, and are sealed.
    Apart(Vec<ApartItem>),
}

/// A segment that holds moved entries alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApartItem {
    pub(crate) number: u64,
    pub(crate) incarnation: u64,
    /// Its entries count as if they lay just before this segment; `None`: before the one in which
    /// this is said.
    pub(crate) before: Option<u64>,
    /// What others could take in it: an end left free, and copies that had died before its footer.
    pub(crate) free_bytes: u64,
}

/// What holds until it is said anew: in checkpoints, and when a lane is opened or closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The most that one write takes, checkpoint and footer aside: what a crash may cut off.
    pub(crate) write_bytes_max: u64,
    /// No segment's number was given out from here on.
    pub(crate) numbers_end: u64,
}

/// Whose item it is; `None` is the lane's own.
pub(crate) type Owner = Option<Key>;

fn header(out: &mut BytesMut, kind: u8, flags: u8, len: usize, owner: Owner) {
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u16_le(0);
    out.put_u32_le(u32::try_from(len).expect("an item is smaller than a record"));
    out.put_u64_le(owner.map_or(0, |key| key.0.get()));
    out.put_u64_le(owner.map_or(0, |key| key.1.get()));
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a list is smaller than a record")
}

/// The item of a batch that lies in the data part.
pub(crate) fn put_entries(out: &mut BytesMut, key: Key, item: &EntriesItem) {
    let changes = item.term_changes.len();
    let len = 40 + 16 * changes + 8 * item.membership_entries.len();
    out.reserve(ITEM_HEADER_BYTES + len);
    header(out, ENTRIES, u8::from(item.is_moved), len, Some(key));
    put_id(out, item.first);
    put_id(out, item.last);
    out.put_u32_le(count(item.len));
    out.put_u32_le(count(changes));
    for run in &item.term_changes {
        out.put_u64_le(run.first.get());
        out.put_u64_le(run.term.get());
    }
    for index in &item.membership_entries {
        out.put_u64_le(index.get());
    }
}

fn put_id(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
}

fn put_hard_state(out: &mut BytesMut, hard_state: &HardState) {
    out.put_u64_le(hard_state.term.get());
    out.put_u64_le(hard_state.vote.map_or(0, ReplicaId::get));
    out.put_u64_le(hard_state.commit.get());
}

fn put_snapshots(out: &mut BytesMut, snapshots: &[SnapshotRecord]) {
    out.put_u32_le(count(snapshots.len()));
    for snapshot in snapshots {
        put_id(out, snapshot.id);
        out.put_u32_le(count(snapshot.membership.len()));
        out.put_slice(&snapshot.membership);
    }
}

/// A replica's state, as checkpoints hold it.
pub(crate) fn put_state(out: &mut BytesMut, key: Key, state: &ReplicaState) {
    let at = out.len();
    header(out, STATE, 0, 0, Some(key));
    put_hard_state(out, &state.hard_state);
    out.put_u64_le(state.first.get());
    put_id(out, state.last);
    out.put_u32_le(count(state.terms.len()));
    for run in &state.terms {
        out.put_u64_le(run.first.get());
        out.put_u64_le(run.term.get());
    }
    out.put_u32_le(count(state.membership_entries.len()));
    for index in &state.membership_entries {
        out.put_u64_le(index.get());
    }
    put_snapshots(out, &state.snapshots);
    let len = count(out.len() - at - ITEM_HEADER_BYTES);
    out[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
}

pub(crate) fn put_item(out: &mut BytesMut, owner: Owner, item: &Item) {
    let at = out.len();
    let (kind, flags) = match item {
        Item::Entries(_) => unreachable!("entries are written from their batch"),
        Item::State(state) => {
            return put_state(out, owner.expect("a state is a replica's"), state);
        }
        Item::HardState(_) => (HARD_STATE, 0),
        Item::Snapshots(_) => (SNAPSHOTS, 0),
        Item::RestartAfter(_) => (RESTART_AFTER, 0),
        Item::CompactBefore(_) => (COMPACT_BEFORE, 0),
        Item::Tombstone => (TOMBSTONE, 0),
        Item::Health(_) => (HEALTH, 0),
        Item::Runs(_) => (RUNS, 0),
        Item::Segments(_) => (SEGMENTS, 0),
        Item::Released(_) => (RELEASED, 0),
        Item::Opened { .. } => (OPENED, 0),
        Item::Closed => (CLOSED, 0),
        Item::Limits(_) => (LIMITS, 0),
        Item::Successor(_) => (SUCCESSOR, 0),
        Item::Apart(_) => (APART, 0),
    };
    header(out, kind, flags, 0, owner);
    match item {
        Item::HardState(hard_state) => put_hard_state(out, hard_state),
        Item::Snapshots(record) => put_snapshots(out, &record.retained),
        Item::RestartAfter(id) => put_id(out, *id),
        Item::CompactBefore(index) => out.put_u64_le(index.get()),
        Item::Health(health) => {
            let (what, damage) = match health {
                Health::Sound => (0, None),
                Health::Tombstone => (1, None),
                Health::VoteUnknown => (2, None),
                Health::Damaged(damage) => (3, Some(*damage)),
            };
            let damage = damage.unwrap_or_default();
            out.put_u64_le(what);
            out.put_u64_le(damage.segment);
            out.put_u64_le(damage.offset);
            out.put_u64_le(damage.first.get());
            out.put_u64_le(damage.last.get());
        }
        Item::Runs(runs) => {
            out.put_u64_le(runs.overwrites_from.map_or(0, Index::get));
            out.put_u64_le(runs.first.get());
            out.put_u64_le(runs.last.get());
            out.put_u64_le(runs.bytes);
            out.put_u32_le(runs.list_at);
            out.put_u32_le(runs.list_count);
            out.put_u32_le(runs.list_crc);
        }
        Item::Segments(segments) => {
            for (number, incarnation) in segments {
                out.put_u64_le(*number);
                out.put_u64_le(*incarnation);
            }
        }
        Item::Released(segments) => segments.iter().for_each(|number| out.put_u64_le(*number)),
        Item::Opened {
            segment,
            offset,
            cut_bytes,
        } => {
            out.put_u64_le(*segment);
            out.put_u64_le(*offset);
            out.put_u64_le(*cut_bytes);
        }
        Item::Limits(limits) => {
            out.put_u64_le(limits.write_bytes_max);
            out.put_u64_le(limits.numbers_end);
        }
        Item::Successor(number) => out.put_u64_le(*number),
        Item::Apart(segments) => {
            for segment in segments {
                out.put_u64_le(segment.number);
                out.put_u64_le(segment.incarnation);
                out.put_u64_le(segment.before.unwrap_or_default());
                out.put_u64_le(segment.free_bytes);
            }
        }
        Item::Entries(_) | Item::State(_) | Item::Tombstone | Item::Closed => {}
    }
    let len = count(out.len() - at - ITEM_HEADER_BYTES);
    out[at + 4..at + 8].copy_from_slice(&len.to_le_bytes());
}

/// Reads a table, whose checksum holds, item by item; `None` in place of an item that makes no
/// sense, after which nothing more is read.
pub(crate) struct Items<'a> {
    rest: &'a [u8],
}

pub(crate) const fn items(table: &[u8]) -> Items<'_> {
    Items { rest: table }
}

impl Iterator for Items<'_> {
    type Item = Option<(Owner, Item)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let item = self.take();
        if item.is_none() {
            self.rest = &[];
        }
        Some(item)
    }
}

impl Items<'_> {
    fn take(&mut self) -> Option<(Owner, Item)> {
        let mut fields = self.rest.get(..ITEM_HEADER_BYTES)?;
        let (kind, flags, reserved) = (fields.get_u8(), fields.get_u8(), fields.get_u16_le());
        let len = usize::try_from(fields.get_u32_le()).ok()?;
        let (group, replica) = (fields.get_u64_le(), fields.get_u64_le());
        let end = ITEM_HEADER_BYTES.checked_add(len)?;
        let mut body = self.rest.get(ITEM_HEADER_BYTES..end)?;
        self.rest = &self.rest[end..];
        if reserved != 0 || flags > 1 {
            return None;
        }
        let is_lanes = matches!(
            kind,
            SEGMENTS | RELEASED | OPENED | CLOSED | LIMITS | SUCCESSOR | APART
        );
        let owner = match (group, replica) {
            (0, 0) if is_lanes => None,
            _ if is_lanes => return None,
            _ => Some((GroupId::new(group)?, ReplicaId::new(replica)?)),
        };
        let item = decode(kind, flags == 1, &mut body)?;
        body.is_empty().then_some((owner, item))
    }
}

fn decode(kind: u8, flag: bool, body: &mut &[u8]) -> Option<Item> {
    Some(match kind {
        ENTRIES => Item::Entries(decode_entries(flag, body)?),
        HARD_STATE => Item::HardState(hard_state(body)?),
        SNAPSHOTS => Item::Snapshots(SnapshotsRecord {
            retained: snapshots(body)?,
        }),
        RESTART_AFTER => Item::RestartAfter(id(body)?),
        COMPACT_BEFORE => Item::CompactBefore(index(body)?),
        TOMBSTONE => Item::Tombstone,
        STATE => Item::State(Box::new(decode_state(body)?)),
        HEALTH => {
            let what = number(body)?;
            let damage = Damage {
                segment: number(body)?,
                offset: number(body)?,
                first: index(body)?,
                last: index(body)?,
            };
            Item::Health(match what {
                0 => Health::Sound,
                1 => Health::Tombstone,
                2 => Health::VoteUnknown,
                3 => Health::Damaged(damage),
                _ => return None,
            })
        }
        RUNS => Item::Runs(RunsItem {
            overwrites_from: index(body).map(|from| (from > Index::ZERO).then_some(from))?,
            first: index(body)?,
            last: index(body)?,
            bytes: number(body)?,
            list_at: body.try_get_u32_le().ok()?,
            list_count: body.try_get_u32_le().ok()?,
            list_crc: body.try_get_u32_le().ok()?,
        }),
        SEGMENTS => {
            let mut segments = Vec::new();
            while !body.is_empty() {
                segments.push((number(body)?, number(body)?));
            }
            Item::Segments(segments)
        }
        RELEASED => {
            let mut segments = Vec::new();
            while !body.is_empty() {
                segments.push(number(body)?);
            }
            Item::Released(segments)
        }
        OPENED => Item::Opened {
            segment: number(body)?,
            offset: number(body)?,
            cut_bytes: number(body)?,
        },
        CLOSED => Item::Closed,
        LIMITS => {
            let limits = Limits {
                write_bytes_max: number(body)?,
                numbers_end: number(body)?,
            };
            // No setting allows so much, and no log gets so far.
            let makes_sense = limits.write_bytes_max <= WRITE_BYTES_HARD_MAX
                && limits.numbers_end <= NUMBER_MAX + 1;
            Item::Limits(makes_sense.then_some(limits)?)
        }
        SUCCESSOR => {
            let number = number(body)?;
            Item::Successor((1..=NUMBER_MAX).contains(&number).then_some(number)?)
        }
        APART => {
            let mut segments = Vec::new();
            while !body.is_empty() {
                segments.push(ApartItem {
                    number: number(body)?,
                    incarnation: number(body)?,
                    before: Some(number(body)?).filter(|before| *before > 0),
                    free_bytes: number(body)?,
                });
            }
            Item::Apart(segments)
        }
        _ => return None,
    })
}

fn decode_entries(is_moved: bool, body: &mut &[u8]) -> Option<EntriesItem> {
    let (first, last) = (id(body)?, id(body)?);
    let len = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
    let term_changes = term_runs(body)?;
    let mut membership_entries = Vec::new();
    while !body.is_empty() {
        membership_entries.push(index(body)?);
    }
    let in_range = |index: Index| first.index <= index && index <= last.index;
    let makes_sense = first.index > Index::ZERO
        && last.index >= first.index
        && last.index.get() < NUMBER_END
        && last.term >= first.term
        && len > 0
        && term_changes.iter().all(|run| in_range(run.first))
        && membership_entries.iter().copied().all(in_range);
    makes_sense.then_some(EntriesItem {
        first,
        last,
        len,
        is_moved,
        term_changes,
        membership_entries,
    })
}

fn decode_state(body: &mut &[u8]) -> Option<ReplicaState> {
    let hard_state = hard_state(body)?;
    let (first, last) = (index(body)?, id(body)?);
    let terms = term_runs(body)?;
    let mut membership_entries = Vec::new();
    for _ in 0..body.try_get_u32_le().ok()? {
        membership_entries.push(index(body)?);
    }
    let snapshots = snapshots(body)?;
    let makes_sense = !terms.is_empty()
        && first > Index::ZERO
        && first.get() < NUMBER_END
        && last.index.next() >= first;
    makes_sense.then_some(ReplicaState {
        hard_state,
        first,
        last,
        terms,
        membership_entries,
        snapshots,
        health: Health::Sound,
    })
}

fn number(body: &mut &[u8]) -> Option<u64> {
    body.try_get_u64_le().ok()
}

fn index(body: &mut &[u8]) -> Option<Index> {
    let index = number(body)?;
    (index < NUMBER_END).then_some(Index::new(index))
}

fn id(body: &mut &[u8]) -> Option<EntryId> {
    let term = Term::new(number(body)?);
    Some(EntryId::new(term, index(body)?))
}

fn hard_state(body: &mut &[u8]) -> Option<HardState> {
    let term = Term::new(number(body)?);
    let vote = number(body)?;
    let vote = match vote {
        0 => None,
        vote => Some(ReplicaId::new(vote)?),
    };
    let commit = index(body)?;
    Some(HardState { term, vote, commit })
}

/// Nothing is allocated from the count itself: the list grows with what is there.
fn term_runs(body: &mut &[u8]) -> Option<Vec<TermRun>> {
    let mut runs = Vec::new();
    for _ in 0..body.try_get_u32_le().ok()? {
        let first = index(body)?;
        let term = Term::new(number(body)?);
        runs.push(TermRun { first, term });
    }
    Some(runs)
}

fn snapshots(body: &mut &[u8]) -> Option<Vec<SnapshotRecord>> {
    let mut retained = Vec::new();
    for _ in 0..body.try_get_u32_le().ok()? {
        let id = id(body)?;
        let len = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
        let membership = Bytes::copy_from_slice(body.get(..len)?);
        body.advance(len);
        retained.push(SnapshotRecord { id, membership });
    }
    Some(retained)
}
