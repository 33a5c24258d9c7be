//! Reads every byte of a snapshot directory, exported or not, and says what it holds.
//!
//! `cargo run -p raft-snapshot --example verify -- DIR` prints one JSON line. It exits with 1 and
//! the reason on standard error if the snapshot must not be used.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people and scripts"
)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use raft_log::vfs::StdVfs;
use raft_proto::Membership;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(dir), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: verify DIR");
        return ExitCode::from(2);
    };
    let manifest = match raft_snapshot::verify(Arc::new(StdVfs::new()), Path::new(&dir)) {
        Ok(manifest) => manifest,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let meta = &manifest.meta;
    let hash: String = manifest
        .hash()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let membership = Membership::decode(&meta.membership).unwrap_or_default();
    let ids = |ids: &std::collections::BTreeSet<raft_proto::ReplicaId>| {
        ids.iter().map(|id| id.get()).collect::<Vec<_>>()
    };
    let line = serde_json::json!({
        "group": meta.group.get(),
        "epoch": meta.epoch,
        "term": meta.id.term.get(),
        "index": meta.id.index.get(),
        "voters": ids(&membership.voters),
        "learners": ids(&membership.learners),
        "blocks": manifest.blocks.len(),
        "bytes": manifest.size_bytes(),
        "manifest_hash": hash,
    });
    println!("{line}");
    ExitCode::SUCCESS
}
