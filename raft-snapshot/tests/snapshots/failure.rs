//! Every operation of every call fails once; the disk is full.

use std::io;
use std::sync::Arc;

use raft_log::vfs::Vfs;
use raft_proto::Index;
use raft_snapshot::{SnapshotEnv, SnapshotError};

use crate::{disk, env, indexes, names, offer, read, receive, record, save, state};

/// A call that a disk error may end.
type Act<'a> = dyn Fn(&SnapshotEnv) -> Result<(), SnapshotError> + 'a;

/// Lets each operation of `act` fail in turn, with each kind of error; then the same call, on the
/// same disk, must succeed.
fn fail_everywhere(suite: &str, act: &Act<'_>) {
    let mut cases = 0_u64;
    for kind in [
        io::ErrorKind::StorageFull,
        io::ErrorKind::Other,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::ReadOnlyFilesystem,
    ] {
        for operation in 1.. {
            let disk = disk(operation);
            let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
            save(&env, 10).expect("a sound disk");
            env.remove_flag(Index::new(10)).expect("a sound disk");
            let last = disk.calls() + operation;
            disk.fail_at(last, kind);
            let outcome = act(&env);
            if disk.calls() < last {
                outcome.expect("nothing failed");
                break;
            }
            let error = outcome.expect_err("an operation failed");
            cases += 1;
            let SnapshotError::Io(cause) = &error else {
                panic!("{suite}: {error} is not what the disk said");
            };
            assert_eq!(cause.source.kind(), kind);
            assert_eq!(error.is_storage_full(), kind == io::ErrorKind::StorageFull);
            let reader = env.open_snapshot(Index::new(10)).expect("untouched");
            assert_eq!(read(reader).expect("untouched"), state(10));
            act(&env).unwrap_or_else(|error| panic!("{suite}, operation {operation}: {error}"));
        }
    }
    record(&serde_json::json!({"suite": suite, "cases": cases}));
}

#[test]
fn fault_17_a_save_that_fails_anywhere_leaves_nothing_and_can_be_repeated() {
    fail_everywhere("snapshot save failures", &|env| save(env, 20).map(drop));
}

#[test]
fn fault_17_a_transfer_that_fails_anywhere_leaves_nothing_and_can_be_repeated() {
    let (manifest, blocks) = offer(20);
    fail_everywhere("snapshot receive failures", &|env| {
        receive(env, &manifest, &blocks).map(drop)
    });
}

#[test]
fn fault_17_housekeeping_that_fails_anywhere_can_be_repeated() {
    fail_everywhere("snapshot housekeeping failures", &|env| {
        env.remove_flag(Index::new(10))?;
        env.retain(&indexes(&[10]))?;
        env.sweep(&indexes(&[10]), false)?;
        env.committed().map(drop)
    });
}

#[test]
fn fault_17_a_full_disk_is_told_apart_and_the_temporary_directory_goes() {
    let disk = disk(1);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    save(&env, 10).expect("there is space");
    // Room for some blocks of the next, not for all.
    for room in [0, 1, 600, 1_100] {
        disk.set_capacity(Some(1_600 + room));
        let error = save(&env, 20).expect_err("there is no space");
        assert!(error.is_storage_full(), "{error}");
        assert_eq!(
            names(disk.as_ref()),
            ["snapshot-000000000000000a"],
            "room {room}"
        );
    }
    disk.set_capacity(None);
    save(&env, 20).expect("there is space again");
}
