//! `cargo xtask tidy`: the rules that a compiler does not know.
//!
//! Each rule is a function from text or metadata to problems, so that its own tests can show that it
//! finds what it is there to find.

mod code;
mod layers;
mod manifests;
mod sources;

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use cargo_metadata::MetadataCommand;
use xshell::{Shell, cmd};

use crate::workspace;

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// A path relative to the workspace's root, or a crate's name.
    place: String,
    /// 1-based, where a line is to blame.
    line: Option<usize>,
    what: String,
}

impl Problem {
    fn of(place: &str, what: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            line: None,
            what: what.into(),
        }
    }

    fn at(place: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            line: Some(line),
            what: what.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place, self.what),
            None => write!(f, "{}: {}", self.place, self.what),
        }
    }
}

/// A file of the repository.
pub(crate) struct SourceFile {
    /// Relative to the workspace's root, with `/`.
    path: String,
    text: String,
}

pub(crate) fn run() -> Result<()> {
    let problems = problems()?;
    for problem in &problems {
        println!("{problem}");
    }
    if !problems.is_empty() {
        bail!("{} things are not tidy", problems.len());
    }
    println!("tidy");
    Ok(())
}

fn problems() -> Result<Vec<Problem>> {
    let root = workspace::root();
    let metadata = MetadataCommand::new()
        .current_dir(&root)
        .other_options(vec!["--locked".to_owned(), "--all-features".to_owned()])
        .exec()
        .context("cargo metadata")?;
    let files = files()?;
    let mut problems = layers::check(&metadata);
    problems.extend(manifests::check(&files));
    problems.extend(sources::check(&files, &machine_words(&root)));
    Ok(problems)
}

/// Every text file that git tracks or would track.
fn files() -> Result<Vec<SourceFile>> {
    let shell = Shell::new()?;
    shell.change_dir(workspace::root());
    let names = cmd!(shell, "git ls-files --cached --others --exclude-standard")
        .quiet()
        .read()?;
    let mut files = Vec::new();
    for path in names.lines() {
        // A tracked file that is deleted but not yet committed has no bytes to judge.
        let Ok(bytes) = fs::read(workspace::root().join(path)) else {
            continue;
        };
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    if files.is_empty() {
        bail!("git lists no files: nothing would be checked");
    }
    Ok(files)
}

/// Paths of this very machine, which must not be written down.
fn machine_words(root: &std::path::Path) -> Vec<String> {
    let mut folders: Vec<PathBuf> = vec![root.to_path_buf()];
    folders.extend(root.parent().map(PathBuf::from));
    folders.extend(std::env::var_os("HOME").map(PathBuf::from));
    folders
        .iter()
        .filter_map(|folder| folder.to_str())
        .map(|folder| format!("{}/", folder.trim_end_matches('/')))
        // `/` and `/tmp/` belong to no machine.
        .filter(|folder| folder.len() > 1 && folder != "/tmp/")
        .collect()
}
