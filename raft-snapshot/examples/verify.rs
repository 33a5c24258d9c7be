//! Reads every byte of a snapshot directory, checks it, and says what it holds.
//!
//! `cargo run -p raft-snapshot --example verify -- DIR`
#![expect(clippy::print_stdout, reason = "it says what a snapshot holds")]
#![expect(clippy::print_stderr, reason = "it says what is wrong with one")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use raft_log::vfs::StdVfs;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: verify DIR");
        return ExitCode::FAILURE;
    };
    match raft_snapshot::verify(Arc::new(StdVfs::new()), &dir) {
        Ok(manifest) => {
            let bytes: u64 = manifest
                .blocks
                .iter()
                .map(|block| u64::from(block.len))
                .sum();
            let (meta, blocks) = (&manifest.meta, manifest.blocks.len());
            println!(
                "group {}, epoch {}, entry {}, {blocks} blocks, {bytes} bytes",
                meta.group, meta.epoch, meta.id
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}: {error}", dir.display());
            ExitCode::FAILURE
        }
    }
}
