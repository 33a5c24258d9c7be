//! How fast snapshots are saved, verified, read and received on this disk.
//!
//! `cargo run --release -p raft-snapshot --example bench_snapshot -- DIR [MIB]` writes a snapshot of
//! `MIB` (256 unless given) below `DIR` with real syncs, and prints one JSON line.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program that prints rates"
)]

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use raft_log::vfs::{StdVfs, Vfs};
use raft_proto::{EntryId, GroupId, Index, Membership, ReplicaId, Term};
use raft_snapshot::{BLOCK_BYTES, SnapshotEnv, SnapshotFileMeta, verify};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match &arguments[..] {
        [dir] => Some((dir, 256)),
        [dir, mib] => mib.parse().ok().map(|mib| (dir, mib)),
        _ => None,
    };
    let Some((dir, mib)) = parsed else {
        eprintln!("usage: bench_snapshot DIR [MIB]");
        return ExitCode::from(2);
    };
    match run(Path::new(dir), mib) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path, mib: usize) -> Result<serde_json::Value, Box<dyn Error>> {
    let scratch = tempfile::tempdir_in(dir)?;
    let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::new());
    let group = GroupId::new(1).ok_or("1 is an id")?;
    let env = |id| {
        let replica = ReplicaId::new(id).ok_or("an id is not 0")?;
        let env = SnapshotEnv::open(Arc::clone(&vfs), scratch.path(), group, replica)?;
        Ok::<_, Box<dyn Error>>(env)
    };
    let (from, to) = (env(1)?, env(2)?);
    let index = Index::new(100);
    let meta = SnapshotFileMeta {
        group,
        epoch: 1,
        id: EntryId::new(Term::new(1), index),
        membership: Membership::default().encode().into(),
    };
    let block = noise(BLOCK_BYTES);
    let rate = |begin: Instant| mib as f64 / begin.elapsed().as_secs_f64();

    let begin = Instant::now();
    let mut writer = from.begin_save(index)?;
    for _ in 0..mib {
        writer.write(&block)?;
    }
    let manifest = writer.finish(meta)?;
    let save = rate(begin);

    let begin = Instant::now();
    let mut reader = from.open_snapshot(index)?;
    while reader.next()?.is_some() {}
    let read = rate(begin);

    let begin = Instant::now();
    verify(Arc::clone(&vfs), &from.path(index))?;
    let verified = rate(begin);

    let begin = Instant::now();
    let mut reader = from.open_snapshot(index)?;
    let mut receiver = to.begin_receive(manifest)?;
    while let Some(bytes) = reader.next()? {
        receiver.block(receiver.blocks_taken(), bytes)?;
    }
    receiver.finish()?;
    let receive = rate(begin);

    Ok(serde_json::json!({
        "mib": mib,
        "save_mib_per_s": save.round(),
        "read_mib_per_s": read.round(),
        "verify_mib_per_s": verified.round(),
        "read_and_receive_mib_per_s": receive.round(),
    }))
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.rotate_left(20).to_le_bytes()
    });
    words.flatten().take(len).collect()
}
