//! Proves that raft-proto without its default features needs no standard library.
//!
//! A small `#![no_std]` library with a panic handler of its own is built over it: if anything below
//! pulled in `std`, there would be two panic handlers and the build would fail.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::workspace;

const PROBE: &str = "\
#![no_std]
extern crate alloc;
pub use raft_proto::{Index, Term};

struct NoMemory;
unsafe impl core::alloc::GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 { core::ptr::null_mut() }
    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}
#[global_allocator]
static MEMORY: NoMemory = NoMemory;

#[panic_handler]
fn on_panic(_: &core::panic::PanicInfo) -> ! { loop {} }
";

pub(super) fn run() -> Result<()> {
    let directory = workspace::target_dir().join("no-std-probe");
    build(&directory, PROBE, "default-features = false")?;
    println!("raft-proto builds without std");
    Ok(())
}

fn build(directory: &Path, source: &str, features: &str) -> Result<()> {
    fs::create_dir_all(directory.join("src"))?;
    let proto = workspace::root().join("raft-proto");
    let manifest = format!(
        "[package]\nname = \"no-std-probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [lib]\ncrate-type = [\"staticlib\"]\n\n\
         [dependencies]\nraft-proto = {{ path = {:?}, {features} }}\n\n\
         [profile.dev]\npanic = \"abort\"\ndebug = false\n\n[workspace]\n",
        proto
            .to_str()
            .context("the workspace's path is not UTF-8")?,
    );
    fs::write(directory.join("Cargo.toml"), manifest)?;
    fs::write(directory.join("src/lib.rs"), source)?;
    // The same versions as the workspace's.
    fs::copy(
        workspace::root().join("Cargo.lock"),
        directory.join("Cargo.lock"),
    )?;
    let status = workspace::cargo()
        .args(["build", "--manifest-path"])
        .arg(directory.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(directory.join("target"))
        .status()?;
    ensure!(
        status.success(),
        "raft-proto pulls in std, or does not build without its default features"
    );
    Ok(())
}
