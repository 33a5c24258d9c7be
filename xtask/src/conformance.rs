//! `cargo xtask conformance`: raft-proto's runners over etcd-raft's scripts.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::workspace;

/// The families of scripts; each is a test of raft-proto of that name.
const FAMILIES: &[&str] = &["interaction", "confchange", "quorum"];

#[derive(clap::Args, Default)]
pub(crate) struct Conformance {
    /// The folder with the families' folders; else the runners look where their docs say.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Conformance {
    pub(crate) fn run(self) -> Result<()> {
        let failed = run(self.dir, "release")?;
        if failed > 0 {
            bail!("{failed} of {} families failed", FAMILIES.len());
        }
        Ok(())
    }
}

/// Runs all families, prints each one's summary line, and returns how many failed.
pub(crate) fn run(dir: Option<PathBuf>, profile: &str) -> Result<usize> {
    let dir = dir.map(std::path::absolute).transpose()?;
    let mut failed = 0;
    for family in FAMILIES {
        let mut command = workspace::cargo();
        command.args([
            "test",
            "--quiet",
            "--package",
            "raft-proto",
            "--profile",
            profile,
            "--locked",
        ]);
        command.args(["--test", family]);
        if let Some(dir) = &dir {
            command.env("RAFT_CONFORMANCE_DIR", dir);
        }
        let mut output = Vec::new();
        let ended_well = workspace::run_lines(&mut command, |line| output.push(line.to_owned()))?;
        for line in output.iter().filter(|line| is_notice(line, family)) {
            println!("{line}");
        }
        let summary = output.iter().rev().find(|line| is_summary(line, family));
        match summary {
            Some(line) if ended_well && !is_zero(line, family) => println!("{line}"),
            _ => {
                failed += 1;
                for line in &output {
                    println!("{line}");
                }
                println!("{family}: failed");
            }
        }
    }
    Ok(failed)
}

/// A runner ends with a line such as `interaction: 14 of 14 scripts, 289 directives`.
fn is_summary(line: &str, family: &str) -> bool {
    line.strip_prefix(family)
        .and_then(|rest| rest.strip_prefix(": "))
        .is_some_and(|rest| rest.contains(" of ") && rest.contains("script"))
}

/// A runner without scripts of etcd-raft says so in one line, or our own would pass for theirs.
fn is_notice(line: &str, family: &str) -> bool {
    line.strip_prefix(family)
        .is_some_and(|rest| rest.starts_with(": no scripts"))
}

fn is_zero(line: &str, family: &str) -> bool {
    line[family.len()..].starts_with(": 0 ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_lines_are_told_from_others() {
        assert!(is_summary(
            "quorum: 2 of 2 scripts, 55 directives",
            "quorum"
        ));
        assert!(!is_summary("quorum: starting", "quorum"));
        assert!(!is_summary("test quorum: 2 of 2 scripts", "quorum"));
        assert!(is_notice(
            "quorum: no scripts of etcd-raft here, our own are run",
            "quorum"
        ));
        assert!(is_zero("quorum: 0 of 0 scripts, 0 directives", "quorum"));
        assert!(!is_zero("quorum: 10 of 10 scripts, 0 directives", "quorum"));
    }
}
