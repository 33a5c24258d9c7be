//! Bytes as entry frames: refused, or what they say, whole and in every part.

use bytes::Bytes;
use raft_proto::{Batch, BatchBuilder, ENTRY_HEADER_BYTES, GroupId, Index, crc32c_append};

/// The first byte chooses the group, and whether checksums are put right before; whether the rest
/// were frames.
pub(crate) fn run(data: &[u8]) -> bool {
    let Some((&how, rest)) = data.split_first() else {
        return false;
    };
    let group = GroupId::new(u64::from(how >> 1) + 1).expect("neither 0 nor large");
    let mut bytes = rest.to_vec();
    if how & 1 == 1 {
        repair(group, &mut bytes);
    }
    let bytes = Bytes::from(bytes);
    let Ok(batch) = Batch::decode(group, bytes.clone()) else {
        return false;
    };
    assert_eq!(batch.bytes(), &bytes, "without a copy, and all of it");
    let mut next = batch.first().index;
    for entry in &batch {
        assert_eq!(entry.index(), next, "one after the other");
        next = next.next();
        if !entry.is_without_command() {
            let mut builder = BatchBuilder::new(group, entry.term(), entry.index(), 0);
            let time = entry.leader_time_ms();
            builder.push(entry.kind(), time, entry.session(), entry.payload());
            let again = builder.finish().expect("one entry");
            assert_eq!(again.bytes(), entry.frame(), "written again it is the same");
        }
        assert_eq!(batch.term_at(entry.index()), Some(entry.term()));
    }
    assert_eq!(batch.last().index.next(), next);
    parts(group, &batch);
    true
}

/// Every part of a batch is one.
fn parts(group: GroupId, batch: &Batch) {
    let (first, last) = (batch.first().index, batch.last().index);
    let middle = Index::new(first.get() + (last.get() - first.get()) / 2);
    let sound = |part: Batch| {
        assert_eq!(Batch::decode(group, part.bytes().clone()), Ok(part));
    };
    let head = batch.up_to_index(middle).expect("it holds the middle");
    let size = head.size_bytes();
    sound(head);
    match batch.from_index(middle.next()) {
        Some(tail) => {
            assert_eq!(size + tail.size_bytes(), batch.size_bytes());
            sound(tail);
        }
        None => assert_eq!(size, batch.size_bytes()),
    }
    for bound in [0, size, batch.size_bytes()] {
        let part = batch.up_to_size(bound);
        assert!(part.size_bytes() <= bound || part.len() == 1);
        sound(part);
    }
}

/// Puts the checksums of what looks like frames right, so that what lies behind them is reached.
pub(crate) fn repair(group: GroupId, bytes: &mut [u8]) {
    let mut rest = bytes;
    while rest.len() >= ENTRY_HEADER_BYTES {
        let length = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < ENTRY_HEADER_BYTES || length > rest.len() {
            return;
        }
        let (frame, behind) = rest.split_at_mut(length);
        let mut seed = group.get().to_le_bytes().to_vec();
        seed.extend_from_slice(&frame[..4]);
        let crc = crc32c_append(crc32c_append(0, &seed), &frame[8..]);
        frame[4..8].copy_from_slice(&crc.to_le_bytes());
        rest = behind;
    }
}
