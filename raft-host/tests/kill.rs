//! All hosts killed at once, again and again, under load: what was acknowledged is there.
//!
//! The program is its own host process: run with [`HOST`] set, it serves and proposes, and prints
//! each number that was acknowledged; the test itself starts three of these and kills them. That a
//! process dies loses no page cache; what a power loss does is shown over simulated disks.
//!
//! `FLOTILLA_KILLS=n` kills them so often.

#![expect(clippy::print_stdout, reason = "a test says what it did")]
#![expect(clippy::print_stderr, reason = "a host process says what went wrong")]

#[path = "common/authority.rs"]
mod authority;
mod kill {
    pub(crate) mod host;
    pub(crate) mod parent;
}

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Names the host that this process is to be.
const HOST: &str = "FLOTILLA_TEST_HOST";

fn main() -> ExitCode {
    if std::env::var_os(HOST).is_some() {
        return match kill::host::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("host process: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let trial = Trial::test("fault_28_all_hosts_killed_at_once_under_load", || {
        kill::parent::run();
        Ok(())
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}
