//! etcd-raft's interaction scripts, run on our core, message by message.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a test that prints what it ran, not an interface"
)]

#[path = "conformance/changes.rs"]
mod changes;
#[path = "conformance/describe.rs"]
mod describe;
#[path = "conformance/env.rs"]
mod env;
#[path = "conformance/letter.rs"]
mod letter;
#[path = "conformance/node.rs"]
mod node;
#[path = "conformance/own.rs"]
mod own;
#[path = "conformance/script.rs"]
mod script;
#[path = "conformance/storage.rs"]
mod storage;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without a cache every entry that is sent or applied late is asked for.
    let mut more = script::again("interaction", "uncached", || Box::new(env::Env::new(0)));
    more.extend(script::own_tests());
    script::run_family("interaction", || Box::new(env::Env::new(usize::MAX)), more)
}
