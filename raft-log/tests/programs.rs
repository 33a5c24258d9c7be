//! The examples, run as programs; and what becomes of a process whose mapped file is taken away.
//!
//! Each program is this one, started again with a role: so it is always there and always new.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]
#![expect(clippy::print_stdout, reason = "programs say what they do")]

use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Trial};

#[path = "programs/killed.rs"]
mod killed;
#[path = "programs/sigbus.rs"]
mod sigbus;
#[path = "programs/tool.rs"]
mod tool;
#[path = "programs/wal.rs"]
mod wal;

#[path = "../examples/raft_log_tool.rs"]
mod raft_log_tool;
#[path = "../examples/wal.rs"]
mod wal_example;

const ROLE: &str = "RAFT_LOG_TEST_ROLE";

fn main() -> ExitCode {
    let Ok(role) = std::env::var(ROLE) else {
        return run_tests();
    };
    match role.as_str() {
        "tool" => raft_log_tool::main(),
        "wal" => {
            wal_example::main().expect("the example runs");
            ExitCode::SUCCESS
        }
        "sigbus" => sigbus::child(),
        "killed" => killed::child(),
        "no thread" => wal::without_threads(),
        other => panic!("{other} is no role"),
    }
}

fn run_tests() -> ExitCode {
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let trials = vec![
        trial(
            "each_tool_tells_what_it_finds_and_changes_nothing",
            tool::each_tool_tells_what_it_finds_and_changes_nothing,
        ),
        trial(
            "what_cannot_be_done_is_said_and_nothing_is_touched",
            tool::what_cannot_be_done_is_said_and_nothing_is_touched,
        ),
        trial(
            "a_log_that_was_killed_is_left_byte_for_byte_as_it_is",
            tool::a_log_that_was_killed_is_left_byte_for_byte_as_it_is,
        ),
        trial(
            "output_that_nobody_reads_is_no_error",
            tool::output_that_nobody_reads_is_no_error,
        ),
        trial(
            "a_directory_in_use_is_left_alone",
            tool::a_directory_in_use_is_left_alone,
        ),
        trial(
            "a_log_without_a_thread_is_an_error_that_says_so",
            wal::a_log_without_a_thread_is_an_error_that_says_so,
        ),
        trial(
            "the_example_of_streams_goes_on_where_it_ended",
            wal::the_example_of_streams_goes_on_where_it_ended,
        ),
        trial(
            "fault_19_a_file_truncated_under_a_live_map_ends_the_process_with_71",
            sigbus::fault_19_a_file_truncated_under_a_live_map_ends_the_process_with_71,
        ),
        trial(
            "fault_28_a_process_killed_under_load_loses_nothing_acknowledged",
            killed::fault_28_a_process_killed_under_load_loses_nothing_acknowledged,
        ),
        trial(
            "fault_19_pread_mode_needs_no_handler",
            sigbus::fault_19_pread_mode_needs_no_handler,
        ),
        trial(
            "fault_19_without_the_handler_it_is_a_signal_like_any_other",
            sigbus::fault_19_without_the_handler_it_is_a_signal_like_any_other,
        ),
        trial(
            "fault_19_a_sigbus_from_elsewhere_goes_to_whoever_handled_it_before",
            sigbus::fault_19_a_sigbus_from_elsewhere_goes_to_whoever_handled_it_before,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// This program in a role.
pub fn program(role: &str, arguments: &[&str]) -> Command {
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(this);
    command.args(arguments).env(ROLE, role);
    command
}

/// Runs it to its end.
pub fn run(role: &str, arguments: &[&str]) -> Output {
    program(role, arguments).output().expect("it starts")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
