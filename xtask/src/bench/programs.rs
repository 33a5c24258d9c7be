//! The programs that measure: ours are examples of their crate, the peers' a workspace of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Builds the peers' programs and returns the folder that they lie in.
///
/// They have a lock file and a target folder of their own: what they pull in never reaches the
/// library's.
pub(super) fn build_peers() -> Result<PathBuf> {
    let manifest = workspace::root().join("xtask/peers/Cargo.toml");
    let target = workspace::target_dir().join("peers");
    let status = workspace::cargo()
        .args(["build", "--release", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target)
        .status()?;
    ensure!(status.success(), "the peers' programs do not build");
    Ok(target.join("release"))
}

/// Runs a program to its end and returns the words of its one line.
pub(super) fn words(program: &Path, arguments: &[String]) -> Result<Vec<String>> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{} {} failed",
        program.display(),
        arguments.join(" ")
    );
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The number in place `at` of what a program printed.
pub(super) fn number(words: &[String], at: usize) -> Result<f64> {
    let word = words.get(at).context("the program printed too little")?;
    word.parse()
        .with_context(|| format!("{word:?} is no number"))
}

/// The median of some measurements, the lower one of an even number.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_one_of_the_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn numbers_are_read_by_place() {
        let words: Vec<String> = ["12", "0.5"].map(str::to_owned).into();
        assert_eq!(number(&words, 1).expect("a number"), 0.5);
        assert!(number(&words, 2).is_err());
    }
}
