//! Runs a script of the conformance suites and writes what the core did, as events of etcd-raft's
//! TLA+ trace specification: `trace SCRIPT OUT`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a program that uses its part of the script runner"
)]

#[path = "../tests/conformance/changes.rs"]
mod changes;
#[path = "../tests/conformance/describe.rs"]
mod describe;
#[path = "../tests/conformance/env.rs"]
mod env;
#[path = "../tests/trace/events.rs"]
mod events;
#[path = "../tests/conformance/letter.rs"]
mod letter;
#[path = "../tests/conformance/node.rs"]
mod node;
#[path = "../tests/conformance/own.rs"]
mod own;
#[path = "../tests/conformance/script.rs"]
mod script;
#[path = "../tests/conformance/storage.rs"]
mod storage;

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [script, out] = &arguments[..] else {
        return Err("usage: trace SCRIPT OUT".into());
    };
    let text = fs::read_to_string(script).map_err(|error| format!("{script}: {error}"))?;
    let trace = events::trace(&text);
    fs::write(out, &trace).map_err(|error| format!("{out}: {error}"))?;
    println!("{} events", trace.lines().count());
    Ok(())
}
