//! What an open does: scan the segments, tell a torn tail from damage, make the end durable.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{Batch, EntryId, TermRun, crc32c_append};

use crate::error::LogError;
use crate::index::{Key, LogReader, Run, add_run};
use crate::lane::{
    Health, LaneOptions, RecoveryReport, ReplicaState, SEGMENT_HEADER_BYTES, Segment, empty,
};
use crate::record::{Item, RECORD_HEADER_BYTES, RecordHeader, RecordKind, items, payload_crc};
use crate::vfs::{FileId, Vfs};

const MAGIC: u64 = 0x3147_4553_464C_5446;
const VERSION: u32 = 1;

pub(crate) struct Found {
    pub(crate) replicas: BTreeMap<Key, ReplicaState>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) last_lsn: u64,
    pub(crate) report: RecoveryReport,
}

/// Makes a prepared segment: zeroed, headed, durable.
pub(crate) fn create(
    vfs: &dyn Vfs,
    dir: &Path,
    number: u64,
    lsn: u64,
    len: u64,
) -> Result<Segment, LogError> {
    let path = dir.join(format!("{number:016x}.seg"));
    let file = vfs.open(&path, true)?;
    vfs.prepare(file, len)?;
    // Never the same twice for one place: the number rises, and the lsn with every attempt.
    let incarnation = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ lsn.rotate_left(32);
    let mut header = BytesMut::new();
    header.put_u64_le(MAGIC);
    header.put_u32_le(VERSION);
    header.put_u64_le(number);
    header.put_u64_le(incarnation);
    let crc = crc32c_append(0, &header);
    header.put_u32_le(crc);
    vfs.write(file, 0, &header)?;
    vfs.sync(file)?;
    vfs.sync_dir(dir)?;
    Ok(Segment {
        number,
        file,
        path,
        incarnation,
    })
}

fn incarnation(vfs: &dyn Vfs, file: FileId, number: u64) -> Result<Option<u64>, LogError> {
    let bytes = vfs.read(file, 0, 32)?;
    if bytes.len() < 32 {
        return Ok(None);
    }
    let crc = crc32c_append(0, &bytes[..28]);
    let mut fields = &bytes[..];
    let is_ours = fields.get_u64_le() == MAGIC
        && fields.get_u32_le() == VERSION
        && fields.get_u64_le() == number;
    let incarnation = fields.get_u64_le();
    Ok((is_ours && fields.get_u32_le() == crc).then_some(incarnation))
}

pub(crate) fn recover(
    vfs: &dyn Vfs,
    dir: &Path,
    options: &LaneOptions,
    reader: &LogReader,
) -> Result<Found, LogError> {
    let mut found = Found {
        replicas: BTreeMap::new(),
        segments: Vec::new(),
        last_lsn: 0,
        report: RecoveryReport::default(),
    };
    for entry in vfs.list(dir)? {
        let number = entry.name.strip_suffix(".seg").filter(|_| entry.is_file);
        let Some(number) = number.and_then(|name| u64::from_str_radix(name, 16).ok()) else {
            continue;
        };
        let path = dir.join(&entry.name);
        let file = vfs.open(&path, false)?;
        match incarnation(vfs, file, number)? {
            Some(incarnation) => {
                found.segments.push(Segment {
                    number,
                    file,
                    path,
                    incarnation,
                });
            }
            None => {
                // Made and not finished: nothing was ever written behind its header.
                vfs.close(file);
                vfs.remove_file(&path)?;
            }
        }
    }
    let segments = std::mem::take(&mut found.segments);
    let count = segments.len();
    let mut runs = BTreeMap::new();
    for (at, segment) in segments.iter().enumerate() {
        scan(
            vfs,
            segment,
            at + 1 == count,
            options,
            &mut found,
            &mut runs,
        )?;
    }
    for (key, runs) in &mut runs {
        let first = found
            .replicas
            .get(key)
            .map(|state: &ReplicaState| state.first);
        while runs
            .front()
            .is_some_and(|run: &Run| Some(run.last.index) < first)
        {
            runs.pop_front();
        }
    }
    let mut tables = reader.write();
    tables.files.extend(
        segments
            .iter()
            .map(|segment| (segment.number, segment.file)),
    );
    tables.runs.extend(runs);
    drop(tables);
    found.segments = segments;
    Ok(found)
}

fn scan(
    vfs: &dyn Vfs,
    segment: &Segment,
    is_last: bool,
    options: &LaneOptions,
    found: &mut Found,
    runs: &mut BTreeMap<Key, std::collections::VecDeque<Run>>,
) -> Result<(), LogError> {
    let len = usize::try_from(vfs.len(segment.file)?).unwrap_or(usize::MAX);
    let content = vfs.read(segment.file, 0, len)?;
    let mut at = usize::try_from(SEGMENT_HEADER_BYTES).expect("small");
    let mut is_first = true;
    while let Some((header, payload)) = record(&content, at, segment.incarnation, options) {
        let is_checkpoint = header.kind == RecordKind::Checkpoint && is_first;
        is_first = false;
        take(found, runs, segment, at, &payload, is_checkpoint)?;
        found.last_lsn = header.lsn;
        at += RECORD_HEADER_BYTES + header.len;
    }
    // A later record that says this place was durable: damage. Else a torn tail.
    for later in at + 1..content.len().saturating_sub(RECORD_HEADER_BYTES) {
        let offset = u64::try_from(later).expect("an offset fits");
        if let Some(header) = RecordHeader::decode(&content[later..], segment.incarnation, offset)
            && header.synced_lsn > found.last_lsn
        {
            let what = format!("segment {} at byte {at}", segment.number);
            found.report.damaged.push(what.clone());
            for state in found.replicas.values_mut() {
                state.health = Health::Damaged(what.clone());
            }
            return Ok(());
        }
    }
    let tail = content.get(at..).unwrap_or_default();
    if let Some(last) = tail.iter().rposition(|&byte| byte != 0) {
        found.report.torn_bytes += u64::try_from(last + 1).expect("a length fits");
        vfs.write(
            segment.file,
            u64::try_from(at).expect("fits"),
            &vec![0; last + 1],
        )?;
    }
    if is_last {
        // A process that died may have left pages that were never on the disk.
        vfs.write(segment.file, 0, &content[..at.min(content.len())])?;
    }
    vfs.sync(segment.file)?;
    Ok(())
}

fn record(
    content: &Bytes,
    at: usize,
    incarnation: u64,
    options: &LaneOptions,
) -> Option<(RecordHeader, Bytes)> {
    let offset = u64::try_from(at).expect("an offset fits");
    let header = RecordHeader::decode(content.get(at..)?, incarnation, offset)?;
    let start = at + RECORD_HEADER_BYTES;
    let end = start.checked_add(header.len)?;
    if end > content.len() || header.len > options.record_bytes_max * 2 {
        return None;
    }
    let payload = content.slice(start..end);
    let crc = payload_crc(incarnation, offset, std::slice::from_ref(&payload));
    (crc == header.payload_crc).then_some((header, payload))
}

fn take(
    found: &mut Found,
    runs: &mut BTreeMap<Key, std::collections::VecDeque<Run>>,
    segment: &Segment,
    at: usize,
    payload: &Bytes,
    is_checkpoint: bool,
) -> Result<(), LogError> {
    let damaged = |reason: &str| LogError::Damaged {
        segment: segment.number,
        offset: u64::try_from(at).expect("an offset fits"),
        reason: reason.to_owned(),
    };
    let items =
        items(payload).ok_or_else(|| damaged("a record with sound checksums is unreadable"))?;
    for (group, replica, item) in items {
        let state = found.replicas.entry((group, replica)).or_insert_with(empty);
        match item {
            Item::Start {
                first,
                term_before,
                last,
            } if is_checkpoint => {
                if state.last.index == raft_proto::Index::ZERO && first.get() > 1 {
                    let before = first.previous().unwrap_or_default();
                    state.restart_after(EntryId::new(term_before, before));
                }
                state.compact_before(first);
                // Entries that only a dropped segment held were compacted later on; what is left
                // of them is the term of the place where they ended.
                if last.index > state.last.index {
                    if state.terms.last().is_none_or(|run| run.term != last.term) {
                        state.terms.push(TermRun {
                            first: last.index,
                            term: last.term,
                        });
                    }
                    state.last = last;
                }
            }
            Item::Start { .. } => return Err(damaged("a start outside a checkpoint")),
            Item::HardState(hard_state) => state.hard_state = hard_state,
            Item::Snapshots(record) => state.snapshots = record.retained,
            Item::RestartAfter(id) => {
                state.restart_after(id);
                runs.remove(&(group, replica));
            }
            Item::CompactBefore(index) => state.compact_before(index),
            Item::Tombstone => state.health = Health::Tombstone,
            Item::Entries {
                bytes,
                offset_in_payload,
            } => {
                let batch =
                    Batch::decode(group, bytes).map_err(|error| damaged(&error.to_string()))?;
                let offset = at + RECORD_HEADER_BYTES + offset_in_payload;
                add_run(
                    runs.entry((group, replica)).or_default(),
                    Run {
                        first: batch.first().index,
                        last: batch.last(),
                        segment: segment.number,
                        offset: u64::try_from(offset).expect("an offset fits"),
                        len: batch.size_bytes(),
                    },
                );
                state.append(&batch);
            }
        }
    }
    Ok(())
}
