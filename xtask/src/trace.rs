//! `cargo xtask trace`: what the core does in a script, for etcd-raft's TLA+ trace specification.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::programs::{BuildProfile, example_with};

#[derive(clap::Args)]
pub(crate) struct Trace {
    /// An interaction script, of etcd-raft's or of ours.
    #[arg(long)]
    script: PathBuf,
    /// Where the events go, a line of JSON each.
    #[arg(long)]
    out: PathBuf,
}

impl Trace {
    pub(crate) fn run(self) -> Result<()> {
        write(&self.script, &self.out, BuildProfile::Release)
    }
}

/// Writes the trace of a script.
pub(crate) fn write(script: &Path, out: &Path, profile: BuildProfile) -> Result<()> {
    let program = example_with("raft-proto", "trace", profile, &["trace"])?;
    let status = Command::new(&program)
        .args([script, out])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "no trace was written");
    Ok(())
}
