//! Snapshots over a simulated disk: every operation fails once, power is lost at every operation,
//! every bit is flipped.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "snapshots/crash.rs"]
mod crash;
#[path = "snapshots/damage.rs"]
mod damage;
#[path = "snapshots/dying.rs"]
mod dying;
#[path = "snapshots/failure.rs"]
mod failure;
#[path = "snapshots/life.rs"]
mod life;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raft_log::vfs::{SimVfs, Vfs};
use raft_proto::{EntryId, GroupId, Index, Membership, ReplicaId, Term};
use raft_snapshot::{Manifest, SnapshotEnv, SnapshotError, SnapshotFileMeta, SnapshotReader};

/// Small enough that a state of some hundred bytes has several blocks.
const BLOCK_BYTES: usize = 512;

/// An empty disk with an empty data directory.
fn disk(seed: u64) -> Arc<SimVfs> {
    let vfs = SimVfs::new(seed);
    vfs.create_dir_all("/data".as_ref())
        .expect("an empty disk takes a directory");
    vfs.sync_dir("/".as_ref()).expect("and syncs it");
    Arc::new(vfs)
}

fn group() -> GroupId {
    GroupId::new(5).expect("not 0")
}

fn env(vfs: Arc<dyn Vfs>) -> Result<SnapshotEnv, SnapshotError> {
    let replica = ReplicaId::new(2).expect("not 0");
    let env = SnapshotEnv::open(vfs, Path::new("/data/snapshots"), group(), replica)?;
    Ok(env.with_block_bytes(BLOCK_BYTES))
}

fn meta(index: u64) -> SnapshotFileMeta {
    SnapshotFileMeta {
        group: group(),
        epoch: 1,
        id: EntryId::new(Term::new(3), Index::new(index)),
        membership: Membership::default().encode().into(),
    }
}

/// The state of which the snapshot at `index` is taken: two blocks and a half.
fn state(index: u64) -> Vec<u8> {
    let byte = |at: usize| (index.wrapping_mul(31).wrapping_add(at as u64) % 251) as u8;
    (0..BLOCK_BYTES * 5 / 2).map(byte).collect()
}

fn save(env: &SnapshotEnv, index: u64) -> Result<Manifest, SnapshotError> {
    let mut writer = env.begin_save(Index::new(index))?;
    for part in state(index).chunks(100) {
        writer.write(part)?;
    }
    writer.finish(meta(index))
}

fn read(mut reader: SnapshotReader) -> Result<Vec<u8>, SnapshotError> {
    let mut all = Vec::new();
    while let Some(block) = reader.next()? {
        all.extend_from_slice(&block);
    }
    Ok(all)
}

/// What a sender offers: the manifest and the blocks of the snapshot at `index`.
fn offer(index: u64) -> (Manifest, Vec<Bytes>) {
    let env = env(disk(0)).expect("a sound disk");
    let manifest = save(&env, index).expect("a sound disk");
    let mut reader = env.open_snapshot(Index::new(index)).expect("just saved");
    let blocks = std::iter::from_fn(|| reader.next().expect("just saved")).collect();
    (manifest, blocks)
}

fn receive(
    env: &SnapshotEnv,
    manifest: &Manifest,
    blocks: &[Bytes],
) -> Result<Manifest, SnapshotError> {
    let mut receiver = env.begin_receive(manifest.clone())?;
    for (at, block) in blocks.iter().enumerate() {
        receiver.block(at, block.clone())?;
    }
    receiver.finish()
}

fn indexes(values: &[u64]) -> Vec<Index> {
    values.iter().copied().map(Index::new).collect()
}

/// Everything that lies in the replica's directory.
fn names(vfs: &dyn Vfs) -> Vec<String> {
    let entries = vfs.list("/data/snapshots/5/2".as_ref());
    entries
        .expect("a sound disk lists")
        .into_iter()
        .map(|entry| entry.name)
        .collect()
}

/// Adds a line to the file named by `RAFT_TEST_REPORT`.
fn record(line: &serde_json::Value) {
    if let Some(path) = std::env::var_os("RAFT_TEST_REPORT") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the report file opens");
        writeln!(file, "{line}").expect("the report file is written");
    }
}
