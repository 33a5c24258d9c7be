//! Bits flip, files are cut, blocks are exchanged: all of it is noticed.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::Index;
use raft_snapshot::{BlockReason, Damage, SnapshotError, SnapshotReader, verify};

use crate::{BLOCK_BYTES, disk, env, meta, names, offer, read, receive, record, save, state};

/// A disk with the snapshot at 20, and its data file.
fn saved() -> (Arc<SimVfs>, PathBuf, Vec<u8>) {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    save(&env, 20).expect("a sound disk");
    let path = env.path(Index::new(20)).join("data");
    let file = disk.open(&path, false).expect("just saved");
    let bytes = disk.read(file, 0, 1 << 20).expect("just saved").to_vec();
    disk.close(file);
    (disk, path, bytes)
}

/// Replaces the data file's content.
fn rewrite(disk: &SimVfs, path: &std::path::Path, bytes: &[u8]) {
    disk.remove_file(path).expect("it is there");
    let file = disk.open(path, true).expect("a sound disk");
    disk.write(file, 0, bytes).expect("a sound disk");
    disk.close(file);
}

#[test]
fn fault_26_every_flipped_bit_is_noticed() {
    let (disk, path, bytes) = saved();
    let dir = path.parent().expect("it lies in a directory");
    let vfs = Arc::clone(&disk) as Arc<dyn Vfs>;
    let mut flipped = 0_u64;
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            disk.flip_bit(&path, byte, bit);
            // Reading alone notices, not only the full verification.
            let outcome = SnapshotReader::open(Arc::clone(&vfs), dir).and_then(read);
            match outcome {
                Err(SnapshotError::Damaged { offset_bytes, .. }) => {
                    assert!(offset_bytes <= bytes.len() as u64);
                }
                other => panic!("bit {bit} of byte {byte}: {other:?}"),
            }
            assert!(verify(Arc::clone(&vfs), dir).is_err());
            disk.flip_bit(&path, byte, bit);
            flipped += 1;
        }
    }
    verify(vfs, dir).expect("as it was");
    record(&serde_json::json!({"suite": "snapshot bits", "bits": flipped}));
}

#[test]
fn every_truncation_and_every_addition_is_noticed() {
    let (disk, path, bytes) = saved();
    let dir = path.parent().expect("it lies in a directory");
    let mut cases = 0_u64;
    let long = [&bytes[..], &[0]].concat();
    let twice = [&bytes[..], &bytes[..]].concat();
    let doubled_tail = [&bytes[..], &bytes[bytes.len() - 24..]].concat();
    let cut = (0..bytes.len()).map(|end| bytes[..end].to_vec());
    for content in cut.chain([long, twice, doubled_tail]) {
        rewrite(&disk, &path, &content);
        let outcome = verify(Arc::clone(&disk) as Arc<dyn Vfs>, dir);
        assert!(
            matches!(outcome, Err(SnapshotError::Damaged { .. })),
            "{} bytes: {outcome:?}",
            content.len()
        );
        cases += 1;
    }
    rewrite(&disk, &path, &bytes);
    verify(Arc::clone(&disk) as Arc<dyn Vfs>, dir).expect("as it was");
    record(&serde_json::json!({"suite": "snapshot truncations", "cases": cases}));
}

#[test]
fn fault_26_a_snapshot_with_a_bad_block_is_read_up_to_it_and_no_further() {
    let (disk, path, _) = saved();
    disk.flip_bit(&path, 64 + BLOCK_BYTES + 7, 3);
    let env = env(disk as Arc<dyn Vfs>).expect("a sound directory");
    let mut reader = env
        .open_snapshot(Index::new(20))
        .expect("its manifest is sound");
    assert_eq!(
        reader.next().expect("sound").expect("there")[..],
        state(20)[..BLOCK_BYTES]
    );
    for _ in 0..2 {
        match reader.next() {
            Err(SnapshotError::Damaged {
                offset_bytes,
                damage: Damage::Block { block },
                ..
            }) => assert_eq!((offset_bytes, block), (64 + BLOCK_BYTES as u64, 1)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn blocks_that_were_not_announced_are_refused_with_their_reason() {
    let (manifest, blocks) = offer(20);
    let (_, others) = offer(21);
    let disk = disk(2);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    let mut flipped = blocks[0].to_vec();
    flipped[9] ^= 1;
    let cases: [(usize, Bytes, BlockReason); 7] = [
        (1, blocks[1].clone(), BlockReason::OutOfOrder),
        (usize::MAX, blocks[1].clone(), BlockReason::OutOfOrder),
        (0, blocks[1].clone(), BlockReason::Hash),
        (0, others[0].clone(), BlockReason::Hash),
        (0, flipped.into(), BlockReason::Hash),
        (0, blocks[0].slice(1..), BlockReason::Length),
        (0, Bytes::new(), BlockReason::Length),
    ];
    let mut receiver = env
        .begin_receive(manifest.clone())
        .expect("nothing is here");
    for (at, bytes, wanted) in cases {
        match receiver.block(at, bytes) {
            Err(SnapshotError::Block { block, reason }) => {
                assert_eq!((block, reason), (at, wanted))
            }
            other => panic!("{wanted}: {other:?}"),
        }
    }
    // None of them was written: the right ones still make the right file.
    for (at, block) in blocks.iter().enumerate() {
        receiver.block(at, block.clone()).expect("as announced");
    }
    match receiver.block(blocks.len(), blocks[0].clone()) {
        Err(SnapshotError::Block { reason, .. }) => assert_eq!(reason, BlockReason::PastTheEnd),
        other => panic!("{other:?}"),
    }
    assert_eq!(receiver.finish().expect("all are there"), manifest);
    let reader = env.open_snapshot(Index::new(20)).expect("just received");
    assert_eq!(read(reader).expect("just received"), state(20));
}

#[test]
fn a_transfer_that_ends_early_or_is_of_another_group_leaves_nothing() {
    let (manifest, blocks) = offer(20);
    let disk = disk(3);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    match receive(&env, &manifest, &blocks[..2]) {
        Err(SnapshotError::Block { block, reason }) => {
            assert_eq!((block, reason), (2, BlockReason::Missing));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(names(disk.as_ref()), Vec::<String>::new());
    let mut foreign = manifest;
    foreign.meta.group = raft_proto::GroupId::new(6).expect("not 0");
    match env.begin_receive(foreign) {
        Err(SnapshotError::Mismatch {
            field,
            wanted,
            found,
        }) => {
            assert_eq!((field, wanted, found), ("group", 5, 6));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_under_the_name_of_another_index_is_refused() {
    let (disk, path, _) = saved();
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    let from = path.parent().expect("it lies in a directory");
    disk.rename(from, &env.path(Index::new(21)))
        .expect("a sound disk");
    match env.open_snapshot(Index::new(21)) {
        Err(SnapshotError::Mismatch {
            field,
            wanted,
            found,
        }) => {
            assert_eq!((field, wanted, found), ("index", 21, 20));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_later_version_is_refused_by_number() {
    let (disk, path, bytes) = saved();
    let mut later = bytes;
    later[8] = 2;
    let crc = raft_proto::crc32c_append(0, &later[..60]);
    later[60..64].copy_from_slice(&crc.to_le_bytes());
    rewrite(&disk, &path, &later);
    let dir = path.parent().expect("it lies in a directory");
    match verify(disk, dir) {
        Err(SnapshotError::Version {
            found, supported, ..
        }) => {
            assert_eq!((found, supported), (2, 1));
        }
        other => panic!("{other:?}"),
    }
}

/// The file of version 1, as it was when the version was made.
const GOLDEN: &[u8] = include_bytes!("../data/golden-v1/data");

#[test]
fn the_golden_file_is_read_and_is_what_is_written_today() {
    let (disk, path, written) = saved();
    rewrite(&disk, &path, GOLDEN);
    let dir = path.parent().expect("it lies in a directory");
    let vfs = disk as Arc<dyn Vfs>;
    let manifest = verify(Arc::clone(&vfs), dir).expect("it is sound for ever");
    assert_eq!(manifest.meta, meta(20));
    let reader = SnapshotReader::open(vfs, dir).expect("sound");
    assert_eq!(read(reader).expect("sound"), state(20));
    assert!(written == GOLDEN, "the bytes of version 1 have changed");
}
