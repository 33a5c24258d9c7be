//! An exported snapshot, verified by a program that knows nothing of the cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The example `verify` of raft-snapshot: reads every byte of a snapshot and says what it holds.
pub(super) struct Verifier(PathBuf);

impl Verifier {
    pub(super) fn new(program: PathBuf) -> Self {
        Self(program)
    }

    /// What the verifier says of a sound snapshot; an error with its reason for another.
    pub(super) fn verify(&self, snapshot: &Path) -> Result<String> {
        let output = Command::new(&self.0)
            .arg(snapshot)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The snapshot in a folder that a host exported to: the folder itself, or the one folder in it.
pub(super) fn find(dir: &Path) -> Result<PathBuf> {
    let inside: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    ensure!(
        !inside.is_empty(),
        "nothing was exported to {}",
        dir.display()
    );
    match &inside[..] {
        [only] if only.is_dir() => Ok(only.clone()),
        _ => Ok(dir.to_path_buf()),
    }
}

/// Copies a snapshot and flips one bit in the middle of its largest file.
pub(super) fn damage_a_copy(snapshot: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(snapshot)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        let size = fs::copy(entry.path(), &copy)?;
        if largest.as_ref().is_none_or(|(most, _)| size > *most) {
            largest = Some((size, copy));
        }
    }
    let (_, path) = largest.context("the snapshot has no files")?;
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    *bytes
        .get_mut(middle)
        .context("the snapshot's files are empty")? ^= 1;
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_differs_from_the_original_in_its_largest_file_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).expect("a folder");
        fs::write(from.join("large"), [7; 100]).expect("a file");
        fs::write(from.join("small"), [7; 3]).expect("a file");
        damage_a_copy(&from, &to).expect("it copies");
        assert_ne!(fs::read(to.join("large")).expect("a file"), [7; 100]);
        assert_eq!(fs::read(to.join("small")).expect("a file"), [7; 3]);
    }

    #[test]
    fn a_snapshot_is_found_in_its_folder_or_just_below() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(find(dir.path()).is_err());
        let below = dir.path().join("snapshot");
        fs::create_dir(&below).expect("a folder");
        assert_eq!(find(dir.path()).expect("found"), below);
        fs::write(dir.path().join("file"), []).expect("a file");
        assert_eq!(find(dir.path()).expect("found"), dir.path());
    }
}
