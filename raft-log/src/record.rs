//! The record: header, checksums, items. See FORMAT.md.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{EntryId, GroupId, HardState, Index, ReplicaId, Term, crc32c_append};

use crate::lane::{SnapshotRecord, SnapshotsRecord};

pub(crate) const RECORD_HEADER_BYTES: usize = 40;
const MAGIC: u32 = 0x314C_5246;
const VERSION: u8 = 1;
const ITEM_HEADER_BYTES: usize = 24;

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Submissions.
    Data,
    /// All replicas' state, at the start of a segment.
    Checkpoint,
    /// Nothing but a watermark.
    Watermark,
}

/// A record's header, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) len: usize,
    pub(crate) lsn: u64,
    pub(crate) synced_lsn: u64,
    pub(crate) payload_crc: u32,
}

fn seed(incarnation: u64, offset: u64) -> u32 {
    crc32c_append(
        crc32c_append(0, &incarnation.to_le_bytes()),
        &offset.to_le_bytes(),
    )
}

pub(crate) fn payload_crc(incarnation: u64, offset: u64, parts: &[Bytes]) -> u32 {
    parts.iter().fold(seed(incarnation, offset), |crc, part| {
        crc32c_append(crc, part)
    })
}

impl RecordHeader {
    pub(crate) fn encode(&self, lane: u16, incarnation: u64, offset: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(RECORD_HEADER_BYTES);
        out.put_u32_le(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(match self.kind {
            RecordKind::Data => 1,
            RecordKind::Checkpoint => 2,
            RecordKind::Watermark => 3,
        });
        out.put_u16_le(lane);
        out.put_u64_le(u64::try_from(self.len).expect("a length fits"));
        out.put_u64_le(self.lsn);
        out.put_u64_le(self.synced_lsn);
        out.put_u32_le(self.payload_crc);
        let crc = crc32c_append(seed(incarnation, offset), &out);
        out.put_u32_le(crc);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: &[u8], incarnation: u64, offset: u64) -> Option<Self> {
        let all = bytes.get(..RECORD_HEADER_BYTES)?;
        let crc = crc32c_append(seed(incarnation, offset), &all[..RECORD_HEADER_BYTES - 4]);
        if bytes.get_u32_le() != MAGIC || bytes.get_u8() != VERSION {
            return None;
        }
        let kind = match bytes.get_u8() {
            1 => RecordKind::Data,
            2 => RecordKind::Checkpoint,
            3 => RecordKind::Watermark,
            _ => return None,
        };
        let _lane = bytes.get_u16_le();
        let len = usize::try_from(bytes.get_u64_le()).ok()?;
        let (lsn, synced_lsn) = (bytes.get_u64_le(), bytes.get_u64_le());
        let payload_crc = bytes.get_u32_le();
        (bytes.get_u32_le() == crc).then_some(Self {
            kind,
            len,
            lsn,
            synced_lsn,
            payload_crc,
        })
    }
}

/// One thing a record says of one replica.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Entries {
        bytes: Bytes,
        offset_in_payload: usize,
    },
    HardState(HardState),
    Snapshots(SnapshotsRecord),
    RestartAfter(EntryId),
    CompactBefore(Index),
    Tombstone,
    /// The first index, the term before it and the last entry, in checkpoints.
    Start {
        first: Index,
        term_before: Term,
        last: EntryId,
    },
}

pub(crate) fn put_item_header(
    out: &mut BytesMut,
    kind: u8,
    len: usize,
    group: GroupId,
    replica: ReplicaId,
) {
    out.put_u8(kind);
    out.put_bytes(0, 3);
    out.put_u32_le(u32::try_from(len).expect("an item is smaller than a record"));
    out.put_u64_le(group.get());
    out.put_u64_le(replica.get());
}

pub(crate) fn put_item(out: &mut BytesMut, group: GroupId, replica: ReplicaId, item: &Item) {
    let mut body = BytesMut::new();
    let kind = match item {
        Item::Entries { bytes, .. } => {
            body.put_slice(bytes);
            1
        }
        Item::HardState(hard_state) => {
            body.put_u64_le(hard_state.term.get());
            body.put_u64_le(hard_state.vote.map_or(0, ReplicaId::get));
            body.put_u64_le(hard_state.commit.get());
            2
        }
        Item::Snapshots(record) => {
            for snapshot in &record.retained {
                body.put_u64_le(snapshot.id.term.get());
                body.put_u64_le(snapshot.id.index.get());
                body.put_u32_le(u32::try_from(snapshot.membership.len()).expect("bounded"));
                body.put_slice(&snapshot.membership);
            }
            3
        }
        Item::RestartAfter(id) => {
            body.put_u64_le(id.term.get());
            body.put_u64_le(id.index.get());
            4
        }
        Item::CompactBefore(index) => {
            body.put_u64_le(index.get());
            5
        }
        Item::Tombstone => 6,
        Item::Start {
            first,
            term_before,
            last,
        } => {
            body.put_u64_le(first.get());
            body.put_u64_le(term_before.get());
            body.put_u64_le(last.term.get());
            body.put_u64_le(last.index.get());
            7
        }
    };
    put_item_header(out, kind, body.len(), group, replica);
    out.put_slice(&body);
}

pub(crate) const ENTRIES_ITEM_KIND: u8 = 1;
pub(crate) const ENTRIES_ITEM_HEADER_BYTES: usize = ITEM_HEADER_BYTES;

/// Reads all items of a payload whose checksum holds.
pub(crate) fn items(payload: &Bytes) -> Option<Vec<(GroupId, ReplicaId, Item)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let mut header = payload.get(at..at + ITEM_HEADER_BYTES)?;
        let kind = header.get_u8();
        header.advance(3);
        let len = usize::try_from(header.get_u32_le()).ok()?;
        let group = GroupId::new(header.get_u64_le())?;
        let replica = ReplicaId::new(header.get_u64_le())?;
        let start = at + ITEM_HEADER_BYTES;
        let mut body = payload.get(start..start.checked_add(len)?)?;
        let numbers = |body: &mut &[u8]| (body.len() >= 8).then(|| body.get_u64_le());
        let item = match kind {
            1 => Item::Entries {
                bytes: payload.slice(start..start + len),
                offset_in_payload: start,
            },
            2 => Item::HardState(HardState {
                term: Term::new(numbers(&mut body)?),
                vote: ReplicaId::new(numbers(&mut body)?),
                commit: Index::new(numbers(&mut body)?),
            }),
            3 => {
                let mut retained = Vec::new();
                while !body.is_empty() {
                    let term = Term::new(numbers(&mut body)?);
                    let index = Index::new(numbers(&mut body)?);
                    let len = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
                    let membership = Bytes::copy_from_slice(body.get(..len)?);
                    body.advance(len);
                    retained.push(SnapshotRecord {
                        id: EntryId::new(term, index),
                        membership,
                    });
                }
                Item::Snapshots(SnapshotsRecord { retained })
            }
            4 => {
                let term = Term::new(numbers(&mut body)?);
                Item::RestartAfter(EntryId::new(term, Index::new(numbers(&mut body)?)))
            }
            5 => Item::CompactBefore(Index::new(numbers(&mut body)?)),
            6 => Item::Tombstone,
            7 => Item::Start {
                first: Index::new(numbers(&mut body)?),
                term_before: Term::new(numbers(&mut body)?),
                last: EntryId::new(
                    Term::new(numbers(&mut body)?),
                    Index::new(numbers(&mut body)?),
                ),
            },
            _ => return None,
        };
        found.push((group, replica, item));
        at = start + len;
    }
    Some(found)
}
