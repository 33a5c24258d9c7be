//! A snapshot's life on a sound disk, and names that are none of ours.

use std::sync::Arc;

use raft_log::vfs::{StdVfs, Vfs};
use raft_proto::{EntryId, Index, ReplicaId, Term};
use raft_snapshot::{SnapshotEnv, SnapshotError, SnapshotFileMeta, verify};

use crate::{disk, env, group, indexes, meta, names, offer, read, receive, save, state};

#[test]
fn a_state_of_any_size_is_read_back_whatever_the_pieces() {
    let disk = disk(1);
    let env = env(disk as Arc<dyn Vfs>).expect("a sound disk");
    let mut index = 0;
    for size in [0_usize, 1, 511, 512, 513, 1_024, 5_000] {
        for piece in [1, 7, 512, 2_000, 5_000] {
            index += 1;
            let content: Vec<u8> = (0..=252).cycle().take(size).collect();
            let mut writer = env.begin_save(Index::new(index)).expect("nothing is here");
            for part in content.chunks(piece) {
                writer.write(part).expect("a sound disk");
            }
            let manifest = writer.finish(meta(index)).expect("a sound disk");
            assert_eq!(manifest.blocks.len(), size.div_ceil(512));
            let reader = env.open_snapshot(Index::new(index)).expect("just saved");
            assert!(
                read(reader).expect("just saved") == content,
                "{size} by {piece}"
            );
        }
    }
}

#[test]
fn a_taken_index_is_out_of_date_before_and_after_the_writing() {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    let (manifest, blocks) = offer(20);
    // Both begin, the save commits first.
    let mut receiver = env
        .begin_receive(manifest.clone())
        .expect("nothing is here");
    for (at, block) in blocks.iter().enumerate() {
        receiver.block(at, block.clone()).expect("as announced");
    }
    save(&env, 20).expect("nothing is here");
    let late = receiver.finish();
    assert!(matches!(late, Err(SnapshotError::OutOfDate(index)) if index == Index::new(20)));
    let again = save(&env, 20);
    assert!(
        matches!(again, Err(SnapshotError::OutOfDate(_))),
        "{again:?}"
    );
    let again = receive(&env, &manifest, &blocks);
    assert!(
        matches!(again, Err(SnapshotError::OutOfDate(_))),
        "{again:?}"
    );
    assert_eq!(names(disk.as_ref()), ["snapshot-0000000000000014"]);
    let reader = env.open_snapshot(Index::new(20)).expect("untouched");
    assert_eq!(read(reader).expect("untouched"), state(20));
}

#[test]
fn a_snapshot_of_another_index_than_begun_is_refused() {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    let writer = env.begin_save(Index::new(20)).expect("nothing is here");
    let wrong = writer.finish(meta(21));
    assert!(matches!(
        wrong,
        Err(SnapshotError::Mismatch { field: "index", .. })
    ));
    assert_eq!(names(disk.as_ref()), Vec::<String>::new());
    let missing = env.open_snapshot(Index::new(20));
    assert!(matches!(missing, Err(SnapshotError::Missing { .. })));
}

#[test]
fn retention_removes_what_lies_before_the_newest_named_and_nothing_else() {
    let disk = disk(1);
    let env = env(disk as Arc<dyn Vfs>).expect("a sound disk");
    for index in [10, 20, 30, 40, 50] {
        save(&env, index).expect("a sound disk");
    }
    env.retain(&[]).expect("a sound disk");
    assert_eq!(
        env.committed().expect("it lists"),
        indexes(&[10, 20, 30, 40, 50])
    );
    // A call that comes late knows nothing of 40 and 50.
    env.retain(&indexes(&[20, 30])).expect("a sound disk");
    assert_eq!(
        env.committed().expect("it lists"),
        indexes(&[20, 30, 40, 50])
    );
    env.retain(&indexes(&[30, 50])).expect("a sound disk");
    assert_eq!(env.committed().expect("it lists"), indexes(&[30, 50]));
    // And one that comes later still.
    env.retain(&indexes(&[20, 30])).expect("a sound disk");
    assert_eq!(env.committed().expect("it lists"), indexes(&[30, 50]));
}

#[test]
fn a_damaged_log_lets_the_sweep_remove_temporary_directories_only() {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    save(&env, 10).expect("a sound disk");
    let unfinished = env.begin_save(Index::new(20)).expect("a sound disk");
    let report = env.sweep(&[], true).expect("a sound disk");
    assert_eq!(report.removed, ["snapshot-0000000000000014-2.generating"]);
    assert_eq!(env.committed().expect("it lists"), indexes(&[10]));
    drop(unfinished);
}

#[test]
fn an_open_snapshot_is_read_to_its_end_though_it_is_removed() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let replica = ReplicaId::new(2).expect("not 0");
    let env = SnapshotEnv::open(Arc::new(StdVfs::new()), scratch.path(), group(), replica);
    let env = env.expect("a sound disk").with_block_bytes(512);
    save(&env, 10).expect("a sound disk");
    let mut reader = env.open_snapshot(Index::new(10)).expect("just saved");
    let mut all = reader.next().expect("sound").expect("there").to_vec();
    env.remove(Index::new(10)).expect("a sound disk");
    assert_eq!(env.committed().expect("it lists"), []);
    all.extend(read(reader).expect("still open"));
    assert_eq!(all, state(10));
}

#[test]
fn an_exported_copy_is_whole_by_itself_and_changes_nothing_here() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    let replica = ReplicaId::new(2).expect("not 0");
    let root = scratch.path().join("snapshots");
    let env = SnapshotEnv::open(Arc::clone(&vfs), &root, group(), replica).expect("a sound disk");
    let target = scratch.path().join("exported");
    let missing = env.begin_export(&target, Index::new(10));
    assert!(
        matches!(&missing, Err(SnapshotError::NoSuchDirectory { path }) if *path == target),
        "{missing:?}"
    );
    std::fs::create_dir(&target).expect("a sound disk");
    std::fs::write(target.join("mine"), b"untouched").expect("a sound disk");
    let mut writer = env
        .begin_export(&target, Index::new(10))
        .expect("it exists now");
    writer.write(&state(10)).expect("a sound disk");
    writer.finish(meta(10)).expect("a sound disk");
    assert_eq!(env.committed().expect("it lists"), []);
    let copy = target.join("snapshot-000000000000000a");
    let inside: Vec<String> = vfs
        .list(&copy)
        .expect("it lists")
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(inside, ["data"]);
    // It can be moved.
    let moved = scratch.path().join("elsewhere");
    std::fs::rename(&copy, &moved).expect("a sound disk");
    assert_eq!(
        verify(vfs, &moved).expect("sound").size_bytes(),
        state(10).len() as u64
    );
    assert_eq!(
        std::fs::read(target.join("mine")).expect("it is there"),
        b"untouched"
    );
}

#[cfg(unix)]
#[test]
fn fault_56_links_and_foreign_names_are_neither_followed_nor_removed() {
    use std::os::unix::fs::symlink;

    let scratch = tempfile::tempdir().expect("a scratch directory");
    let precious = scratch.path().join("precious");
    std::fs::create_dir(&precious).expect("a sound disk");
    std::fs::write(precious.join("data"), b"precious").expect("a sound disk");
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    let replica = ReplicaId::new(2).expect("not 0");
    let root = scratch.path().join("snapshots");
    let env = SnapshotEnv::open(Arc::clone(&vfs), &root, group(), replica).expect("a sound disk");
    let dir = root.join("5").join("2");
    // A committed name, the temporary name about to be used, and one in a temporary directory.
    symlink(&precious, dir.join("snapshot-0000000000000009")).expect("a sound disk");
    symlink(
        &precious,
        dir.join("snapshot-000000000000000a-2.generating"),
    )
    .expect("a sound disk");
    let planted = dir.join("snapshot-000000000000000b-2.generating");
    std::fs::create_dir(&planted).expect("a sound disk");
    symlink(precious.join("data"), planted.join("data")).expect("a sound disk");
    for foreign in ["lost+found", "snapshot-00000000000000AB", "notes~", "..."] {
        std::fs::create_dir(dir.join(foreign)).expect("a sound disk");
    }

    assert!(
        matches!(
            env.open_snapshot(Index::new(9)),
            Err(SnapshotError::Missing { .. })
        ) || matches!(
            env.open_snapshot(Index::new(9)),
            Err(SnapshotError::Damaged { .. })
        )
    );
    assert_eq!(env.committed().expect("it lists"), []);
    save(&env, 10).expect("the link in its way is replaced");
    save(&env, 11).expect("the link in its way is replaced");
    env.retain(&indexes(&[11])).expect("a sound disk");
    let _ = env.sweep(&indexes(&[11]), false).expect("a sound disk");
    assert_eq!(
        std::fs::read(precious.join("data")).expect("it is there"),
        b"precious"
    );
    let left: Vec<String> = vfs
        .list(&dir)
        .expect("it lists")
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    assert_eq!(
        left,
        [
            "...",
            "lost+found",
            "notes~",
            "snapshot-0000000000000009",
            "snapshot-000000000000000b",
            "snapshot-00000000000000AB",
        ]
    );
}

#[test]
fn a_membership_out_of_bounds_is_not_written() {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    let writer = env.begin_save(Index::new(20)).expect("nothing is here");
    let large = SnapshotFileMeta {
        id: EntryId::new(Term::new(1), Index::new(20)),
        membership: vec![0; 70_000].into(),
        ..meta(20)
    };
    let refused = writer.finish(large);
    assert!(
        matches!(
            refused,
            Err(SnapshotError::TooLarge {
                size: 70_000,
                bound: 65_537,
                ..
            })
        ),
        "{refused:?}"
    );
    assert_eq!(names(disk.as_ref()), Vec::<String>::new());
}
