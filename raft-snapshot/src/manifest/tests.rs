use std::collections::{BTreeMap, BTreeSet};

use raft_proto::{HostId, ReplicaId};

use super::*;

fn manifest(blocks: usize) -> Manifest {
    let replica = |id| ReplicaId::new(id).expect("not 0");
    let membership = Membership {
        index: Index::new(3),
        voters: (1..=3).map(replica).collect::<BTreeSet<_>>(),
        hosts: (1..=3)
            .map(|id| (replica(id), HostId::new(id).expect("not 0")))
            .collect::<BTreeMap<_, _>>(),
        ..Membership::default()
    };
    let mut offset = HEADER_BYTES;
    let table = (0..blocks).map(|number| {
        let block = BlockEntry::of(offset, &vec![1; 100 + number]);
        offset = block.end().expect("small");
        block
    });
    let blocks = table.collect();
    Manifest {
        meta: SnapshotFileMeta {
            group: GroupId::new(9).expect("not 0"),
            epoch: 1,
            id: EntryId::new(Term::new(4), Index::new(77)),
            membership: membership.encode().into(),
        },
        blocks,
    }
}

#[test]
fn a_manifest_is_read_back() {
    for count in [0, 1, 5] {
        let manifest = manifest(count);
        let bytes = manifest.encode();
        assert_eq!(bytes.len(), manifest.encoded_bytes());
        assert_eq!(Manifest::decode(&bytes).as_ref(), Some(&manifest));
        assert_eq!(manifest.size_bytes() + HEADER_BYTES, manifest.blocks_end());
    }
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let bytes = manifest(3).encode();
    for end in 0..bytes.len() {
        assert_eq!(Manifest::decode(&bytes[..end]), None, "cut at {end}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Manifest::decode(&longer), None);
}

#[test]
fn counts_that_the_bytes_do_not_bear_out_are_refused_before_anything_is_allocated() {
    let sound = manifest(2).encode();
    let membership_len_at = 5 * 8;
    let membership_len = manifest(2).meta.membership.len();
    let count_at = membership_len_at + 4 + membership_len;
    for at in [membership_len_at, count_at, count_at + 4] {
        for lie in [1_u32, 3, 1 << 20, u32::MAX / 56, u32::MAX] {
            let mut bytes = sound.to_vec();
            bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
            assert_eq!(Manifest::decode(&bytes), None, "{lie} at {at}");
        }
    }
}

#[test]
fn a_table_with_gaps_overlaps_or_sizes_out_of_bounds_is_refused() {
    let changes: [fn(&mut Manifest); 6] = [
        |manifest| manifest.blocks[0].offset = 0,
        |manifest| manifest.blocks[1].offset += 1,
        |manifest| manifest.blocks[1].offset -= 1,
        |manifest| manifest.blocks[1].len = 0,
        |manifest| manifest.blocks[2].len = u32::MAX,
        |manifest| manifest.blocks.swap(0, 1),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = manifest(3);
        change(&mut changed);
        assert_eq!(Manifest::decode(&changed.encode()), None, "change {number}");
    }
}

#[test]
fn places_that_no_entry_can_have_are_refused() {
    let changes: [fn(&mut Manifest); 4] = [
        |manifest| manifest.meta.id.index = Index::ZERO,
        |manifest| manifest.meta.id.index = Index::new(u64::MAX - 1),
        |manifest| manifest.meta.id.term = Term::new(u64::MAX),
        |manifest| manifest.meta.membership = Bytes::from_static(b"nonsense"),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut changed = manifest(1);
        change(&mut changed);
        assert_eq!(Manifest::decode(&changed.encode()), None, "change {number}");
    }
}

#[test]
fn a_manifest_out_of_bounds_is_not_written() {
    let mut large = manifest(1);
    large.meta.membership = vec![0; MEMBERSHIP_BYTES_MAX + 2].into();
    assert!(matches!(
        large.try_encode(),
        Err(SnapshotError::TooLarge {
            what: "membership",
            ..
        })
    ));
    let mut long = manifest(1);
    long.blocks = vec![long.blocks[0]; MANIFEST_BYTES_MAX / BLOCK_ENTRY_BYTES];
    assert!(matches!(
        long.try_encode(),
        Err(SnapshotError::TooLarge {
            what: "manifest",
            ..
        })
    ));
}
