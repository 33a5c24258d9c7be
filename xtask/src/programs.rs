//! Builds the examples and finds them where cargo says that they are.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, ensure};
use cargo_metadata::Message;

use crate::workspace;

/// The profiles that programs are built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BuildProfile {
    /// For people and for measurements.
    Release,
    /// For CI: optimised, with debug assertions, shared with the tests.
    Ci,
}

/// Builds one example of a package and returns its executable.
pub(crate) fn example(package: &str, name: &str, profile: BuildProfile) -> Result<PathBuf> {
    example_with(package, name, profile, &[])
}

/// Builds one example of a package with features and returns its executable.
pub(crate) fn example_with(
    package: &str,
    name: &str,
    profile: BuildProfile,
    features: &[&str],
) -> Result<PathBuf> {
    let [program] = build([(package, name)], profile, features)?;
    Ok(program)
}

/// Builds examples of several packages in one go, so that what they share is built once.
pub(crate) fn examples<const N: usize>(
    wanted: [(&str, &str); N],
    profile: BuildProfile,
) -> Result<[PathBuf; N]> {
    build(wanted, profile, &[])
}

fn build<const N: usize>(
    wanted: [(&str, &str); N],
    profile: BuildProfile,
    features: &[&str],
) -> Result<[PathBuf; N]> {
    let profile = match profile {
        BuildProfile::Release => "release",
        BuildProfile::Ci => "ci",
    };
    let mut child = workspace::cargo()
        .args(["build", "--profile", profile, "--locked", "--features"])
        .arg(features.join(","))
        .args(
            wanted
                .iter()
                .flat_map(|(package, name)| ["--package", package, "--example", name]),
        )
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut built = BTreeMap::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.target.is_example()
            && let Some(executable) = artifact.executable
        {
            built.insert(artifact.target.name, PathBuf::from(executable));
        }
    }
    ensure!(child.wait()?.success(), "cannot build {wanted:?}");
    let mut programs = Vec::with_capacity(N);
    for (_, name) in wanted {
        let program = built.remove(name);
        programs.push(program.with_context(|| format!("cargo built no executable {name}"))?);
    }
    programs
        .try_into()
        .map_err(|_| anyhow!("a program for each that was wanted"))
}
