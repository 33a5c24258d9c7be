//! Random schedules: 3 to 7 replicas with loss, duplication, reordering, delays, restarts, slow
//! disks, slow state machines, partitions, membership changes, transfers, snapshots and reads,
//! everything drawn from one seed; after each step all that Raft promises is checked.
//!
//! `RAFT_SCHEDULE=n cargo test -p raft-proto --test schedules` runs the schedule of one seed alone
//! and prints what happened last.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a test that prints what happened, not an interface"
)]

#[path = "schedules/calm.rs"]
mod calm;
#[path = "schedules/defects.rs"]
mod defects;
#[path = "schedules/hazards.rs"]
mod hazards;
#[path = "schedules/oracle.rs"]
mod oracle;
#[path = "schedules/plan.rs"]
mod plan;
#[path = "schedules/replica.rs"]
mod replica;
#[path = "support/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;
#[path = "schedules/world.rs"]
mod world;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use defects::Defect;
use oracle::{Counts, Violation};
use plan::Plan;

const SCHEDULES: u64 = 20_000;

/// What a schedule broke, if anything, what happened in it, and its last events if asked for.
struct Outcome {
    broken: Option<Violation>,
    counts: Counts,
    trace: VecDeque<String>,
}

fn run(seed: u64, defect: Option<Defect>, checks_disks: bool, is_traced: bool) -> Outcome {
    let mut plan = Plan::new(seed, defect, checks_disks);
    plan.world.trace = is_traced.then(VecDeque::new);
    let broken = match catch_unwind(AssertUnwindSafe(|| plan.run())) {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            let message = text.unwrap_or_default();
            Some(Violation::Panic { message })
        }
    };
    Outcome {
        broken,
        counts: plan.world.oracle.counts.clone(),
        trace: plan.world.trace.take().unwrap_or_default(),
    }
}

/// Runs the schedules of seeds from `first` on, on all cores, until one is broken.
fn run_all(first: u64, count: u64) -> (Counts, Option<(u64, Violation)>) {
    let next = AtomicU64::new(first);
    let total = Mutex::new((Counts::default(), None::<(u64, Violation)>));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(8) {
            scope.spawn(|| {
                let mut counts = Counts::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let outcome = run(seed, None, true, false);
                    counts.add_all(&outcome.counts);
                    if let Some(violation) = outcome.broken {
                        next.store(first + count, Ordering::Relaxed);
                        let mut total = total.lock().expect("no thread panics");
                        if total.1.as_ref().is_none_or(|(known, _)| seed < *known) {
                            total.1 = Some((seed, violation));
                        }
                    }
                }
                total.lock().expect("no thread panics").0.add_all(&counts);
            });
        }
    });
    total.into_inner().expect("no thread panics")
}

fn explain(seed: u64, defect: Option<Defect>, checks_disks: bool) -> String {
    let outcome = run(seed, defect, checks_disks, true);
    let trace: Vec<String> = outcome.trace.into_iter().collect();
    format!(
        "{}\n\nRAFT_SCHEDULE={seed} breaks {:?}",
        trace.join("\n"),
        outcome.broken
    )
}

#[test]
fn random_schedules_break_nothing() {
    if let Some(seed) = seed_from("RAFT_SCHEDULE") {
        let outcome = run(seed, None, true, false);
        assert!(outcome.broken.is_none(), "{}", explain(seed, None, true));
        return;
    }
    let count = seed_from("RAFT_SCHEDULES").unwrap_or(SCHEDULES);
    let (counts, broken) = run_all(0, count);
    if let Some((seed, violation)) = broken {
        panic!("{}\n{violation:?}", explain(seed, None, true));
    }
    report::record(&serde_json::json!({
        "suite": "proto schedules", "seeds": count, "happened": counts.by_name,
    }));
    println!("{count} schedules: {:?}", counts.by_name);
    // A run in which too little happened proves nothing.
    for (name, per_hundred) in EXPECTED {
        assert!(
            counts.of(name) * 100 >= count * per_hundred,
            "too few {name}: {counts:?}"
        );
    }
}

/// How much of what must have happened, in a hundred schedules.
const EXPECTED: [(&str, u64); 19] = [
    ("elections", 100),
    ("commits", 1_000),
    ("memberships", 50),
    ("joint", 20),
    ("reads", 300),
    ("lease reads", 20),
    ("crashes", 150),
    ("snapshots installed", 20),
    ("fetches", 200),
    ("partitions", 80),
    ("transfers", 10),
    ("with witnesses", 10),
    ("with learners", 10),
    ("priorities", 10),
    ("readmissions", 1),
    ("words of quiet", 10),
    ("snapshots offered", 5),
    ("forwarded", 50),
    ("duplicates", 100),
];

/// Asserts that some schedule with `defect` is broken in a way that `is_expected` names.
fn assert_caught(defect: Defect, checks_disks: bool, is_expected: fn(&Violation) -> bool) {
    let is_caught = (0..DEFECT_SCHEDULES).any(|seed| {
        let broken = run(seed, Some(defect), checks_disks, false).broken;
        broken.as_ref().is_some_and(is_expected)
    });
    assert!(
        is_caught,
        "{DEFECT_SCHEDULES} schedules with {defect:?} found nothing"
    );
}

const DEFECT_SCHEDULES: u64 = 2_000;

#[test]
fn promises_before_the_sync_are_caught() {
    assert_caught(Defect::AckBeforeSync, true, |broken| {
        matches!(broken, Violation::Promise { .. })
    });
    // And by what follows from it: a committed entry, or a vote, is gone.
    assert_caught(Defect::AckBeforeSync, false, is_safety);
}

#[test]
fn a_hard_state_lost_in_a_restart_is_caught() {
    assert_caught(Defect::ForgetHardState, false, is_safety);
}

#[test]
fn a_durable_tail_lost_in_a_restart_is_caught() {
    assert_caught(Defect::ForgetTail, false, is_safety);
}

#[test]
fn applying_what_is_not_committed_is_caught() {
    assert_caught(Defect::ApplyUncommitted, false, |broken| {
        matches!(broken, Violation::StateMachineSafety { .. })
    });
}

#[test]
fn reads_without_a_round_are_caught() {
    assert_caught(Defect::ReadWithoutRound, false, is_stale_read);
}

#[test]
fn entries_changed_on_the_wire_are_caught() {
    assert_caught(Defect::RewriteOnWire, false, |broken| {
        matches!(broken, Violation::LogMatching { .. })
    });
}

#[test]
fn votes_for_stale_logs_are_caught() {
    assert_caught(Defect::IgnoreFreshness, false, is_safety);
}

#[test]
fn reads_before_the_first_own_commit_are_caught() {
    assert_caught(Defect::ReadBeforeOwnCommit, false, is_stale_read);
}

#[test]
fn old_appends_that_cut_the_log_are_caught() {
    assert_caught(Defect::TruncateByOldAppend, false, is_safety);
}

#[test]
fn learners_that_count_are_caught() {
    assert_caught(Defect::CountLearners, false, is_safety);
    assert_caught(Defect::CountLearners, true, is_short_of_a_quorum);
}

#[test]
fn a_joint_membership_decided_by_one_half_is_caught() {
    assert_caught(Defect::IncomingAlone, true, |broken| {
        is_short_of_a_quorum(broken) || is_safety(broken)
    });
}

#[test]
fn removed_replicas_that_count_are_caught() {
    assert_caught(Defect::KeepRemoved, true, |broken| {
        matches!(broken, Violation::Configurations { .. }) || is_safety(broken)
    });
}

#[test]
fn a_snapshot_with_a_wrong_membership_is_caught() {
    assert_caught(Defect::SnapshotWithFirstMembership, false, |broken| {
        matches!(broken, Violation::Configurations { .. }) || is_safety(broken)
    });
}

#[test]
fn windows_that_never_open_are_caught() {
    assert_caught(Defect::LoseAcks, false, |broken| {
        matches!(broken, Violation::NoProgress { .. })
    });
}

const fn is_stale_read(violation: &Violation) -> bool {
    matches!(violation, Violation::StaleRead { .. })
}

const fn is_short_of_a_quorum(violation: &Violation) -> bool {
    matches!(violation, Violation::CommitWithoutQuorum { .. })
}

/// Whether it is one of the properties of the thesis, or a correct core that sees one broken.
const fn is_safety(violation: &Violation) -> bool {
    matches!(
        violation,
        Violation::ElectionSafety { .. }
            | Violation::TwoVotes { .. }
            | Violation::LogMatching { .. }
            | Violation::LeaderCompleteness { .. }
            | Violation::StateMachineSafety { .. }
            | Violation::Refused { .. }
    )
}

/// A number from the environment, to replay one seed.
fn seed_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
