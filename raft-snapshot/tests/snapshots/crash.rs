//! Power is lost at every operation of every call, and of the sweep that follows.

use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::Index;
use raft_snapshot::{SnapshotEnv, SnapshotError, verify};

use crate::dying::Dying;
use crate::{disk, env, indexes, names, offer, read, receive, record, save, state};

/// Draws of what an unsynced disk keeps, for each operation.
const SEEDS: u64 = 24;

/// What a scenario does between a sound start and the crash. Returns what the log names then.
type Act<'a> = dyn Fn(&SnapshotEnv, &mut Vec<u64>) -> Result<(), SnapshotError> + 'a;

/// Crashes `act` at every operation. `before` are the snapshots that are there and named.
fn crash_everywhere(suite: &str, before: &[u64], act: &Act<'_>) {
    let mut crash_states = 0_u64;
    for seed in 0..SEEDS {
        let mut operations = 0;
        loop {
            let disk = prepared(seed, before);
            let dying = Dying::after(&disk, operations);
            let mut named = before.to_vec();
            let outcome =
                env(Arc::clone(&dying) as Arc<dyn Vfs>).and_then(|env| act(&env, &mut named));
            let is_over = !dying.is_dead();
            assert_eq!(
                outcome.is_ok(),
                is_over,
                "only the power fails: {outcome:?}"
            );
            disk.crash();
            crash_states += 1 + sweep_and_crash_again(&disk, &named, seed);
            if is_over {
                break;
            }
            operations += 1;
        }
        assert!(operations > 3, "{suite} makes more than three operations");
    }
    record(&serde_json::json!({"suite": suite, "crash_states": crash_states}));
}

fn prepared(seed: u64, before: &[u64]) -> Arc<SimVfs> {
    let disk = disk(seed);
    let env = env(Arc::clone(&disk) as Arc<dyn Vfs>).expect("a sound disk");
    for &index in before {
        save(&env, index).expect("a sound disk");
        env.remove_flag(Index::new(index)).expect("a sound disk");
    }
    disk
}

/// Sweeps, losing power once more at every operation of the sweep; then checks what is left.
/// Returns how often the power was lost.
fn sweep_and_crash_again(disk: &Arc<SimVfs>, named: &[u64], seed: u64) -> u64 {
    let mut crashes = 0;
    // A sweep has no state of its own: each try starts from what the last crash left.
    for operations in 0.. {
        let dying = Dying::after(disk, operations);
        let swept = env(Arc::clone(&dying) as Arc<dyn Vfs>)
            .and_then(|env| env.sweep(&indexes(named), false));
        if swept.is_ok() {
            break;
        }
        disk.crash();
        crashes += 1;
    }
    check(disk, named, seed);
    // What the sweep did is durable as far as it matters: one more crash, one more sweep.
    disk.crash();
    let env = env(Arc::clone(disk) as Arc<dyn Vfs>).expect("a sound disk");
    env.sweep(&indexes(named), false).expect("a sound disk");
    check(disk, named, seed);
    let again = env.sweep(&indexes(named), false).expect("a sound disk");
    assert_eq!(again.removed, Vec::<String>::new(), "a second sweep");
    crashes + 1
}

/// Exactly the named snapshots are there, whole, without flags; and life goes on.
fn check(disk: &Arc<SimVfs>, named: &[u64], seed: u64) {
    let vfs = Arc::clone(disk) as Arc<dyn Vfs>;
    let env = env(Arc::clone(&vfs)).expect("a sound disk");
    assert_eq!(
        env.committed().expect("it lists"),
        indexes(named),
        "seed {seed}"
    );
    assert_eq!(
        names(disk.as_ref()).len(),
        named.len(),
        "seed {seed}: nothing else lies there"
    );
    for &index in named {
        let dir = env.path(Index::new(index));
        assert_eq!(
            vfs.list(&dir).expect("it lists").len(),
            1,
            "seed {seed}: the data file alone"
        );
        verify(Arc::clone(&vfs), &dir).expect("a named snapshot is whole");
        let reader = env.open_snapshot(Index::new(index)).expect("it is whole");
        assert_eq!(
            read(reader).expect("it is whole"),
            state(index),
            "seed {seed}"
        );
    }
}

#[test]
fn fault_24_a_save_is_there_whole_or_not_at_all() {
    // Recorded, and the crash comes anywhere up to the end.
    crash_everywhere("snapshot save crash states", &[10], &|env, named| {
        save(env, 20)?;
        *named = vec![10, 20];
        env.remove_flag(Index::new(20))?;
        env.retain(&indexes(named))
    });
    // The crash comes after the rename and before the record.
    crash_everywhere("snapshot unrecorded save crash states", &[10], &|env, _| {
        save(env, 20).map(drop)
    });
}

#[test]
fn fault_24_a_received_snapshot_is_there_whole_or_not_at_all() {
    let (manifest, blocks) = offer(20);
    crash_everywhere("snapshot receive crash states", &[10], &|env, named| {
        receive(env, &manifest, &blocks)?;
        *named = vec![10, 20];
        env.remove_flag(Index::new(20))?;
        env.retain(&indexes(named))
    });
    crash_everywhere(
        "snapshot unrecorded receive crash states",
        &[],
        &|env, _| receive(env, &manifest, &blocks).map(drop),
    );
}

#[test]
fn fault_24_retention_interrupted_anywhere_loses_nothing_named() {
    crash_everywhere(
        "snapshot retention crash states",
        &[10, 20, 30],
        &|env, named| {
            *named = vec![30];
            env.retain(&indexes(named))
        },
    );
    crash_everywhere("snapshot refusal crash states", &[10], &|env, named| {
        named.clear();
        env.remove(Index::new(10))
    });
}
