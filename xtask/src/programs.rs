//! Builds the examples and finds them where cargo says that they are.

use std::io::BufReader;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
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
    let profile = match profile {
        BuildProfile::Release => "release",
        BuildProfile::Ci => "ci",
    };
    let mut child = workspace::cargo()
        .args([
            "build",
            "--package",
            package,
            "--example",
            name,
            "--profile",
            profile,
            "--locked",
            "--features",
            &features.join(","),
        ])
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child
        .stdout
        .take()
        .context("cargo has no standard output")?;
    let mut executable = None;
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.target.name == name
            && artifact.target.is_example()
        {
            executable = artifact.executable;
        }
    }
    ensure!(
        child.wait()?.success(),
        "cannot build the example {name} of {package}"
    );
    executable
        .map(PathBuf::from)
        .with_context(|| format!("cargo built no executable {name}"))
}
