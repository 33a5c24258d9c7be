//! Processes that are killed, and power that is lost.

use raft_engine::{SnapshotOutcome, SnapshotRequest};
use raft_proto::{Role, Term};

use crate::world::{MILLISECOND, World, group};

#[test]
fn hazard_12_no_vote_leaves_before_it_is_durable() {
    // Every host's disk takes longer than an election: nobody is elected, and nobody says so.
    let mut world = World::running(1, 3, 1);
    let before: Vec<Term> = (0..3).map(|at| world.status(at, group(1)).term).collect();
    let leader = world.leader(group(1));
    let votes = world.promises.votes();
    for host in &world.hosts {
        host.vfs.set_sync_latency(u64::MAX / 4);
    }
    world.kill(leader);
    world.run_for(3_000 * MILLISECOND);
    assert_eq!(
        world.promises.votes(),
        votes,
        "a vote left that no disk holds"
    );
    let mut has_campaigned = false;
    for at in (0..3).filter(|&at| at != leader) {
        has_campaigned |= world.status(at, group(1)).term > before[at];
    }
    assert!(has_campaigned, "somebody stood for election in memory");
    world.check();
}

#[test]
fn a_candidate_that_crashes_before_its_first_sync_cannot_lead_the_same_term_twice() {
    for seed in 0..10 {
        let mut world = World::running(seed, 3, 1);
        let leader = world.leader(group(1));
        let term = world.status(leader, group(1)).term;
        let others: Vec<usize> = (0..3).filter(|&at| at != leader).collect();
        world.kill(leader);
        // Both others campaign and sync nothing; then their power goes, at some moment.
        for &at in &others {
            world.hosts[at].vfs.set_sync_latency(u64::MAX / 4);
        }
        world.run_for((600 + 150 * seed) * MILLISECOND);
        for &at in &others {
            world.crash(at);
            world.hosts[at].vfs.set_sync_latency(MILLISECOND);
        }
        world.start_all();
        let leader = world.leader(group(1));
        assert!(world.status(leader, group(1)).term > term);
        world
            .propose(leader, group(1), 7)
            .expect("the group serves");
        // One vote a term and replica, one leader a term, over all lives.
        world.check();
    }
}

/// All hosts go at once, a hundred times, under load.
fn all_at_once(seed: u64, is_power_lost: bool) {
    let mut world = World::new(seed, 3, 2);
    world.start_all();
    let mut acknowledged = [Vec::new(), Vec::new()];
    let mut number = 0;
    for round in 0..100_u64 {
        let mut waiting = Vec::new();
        for _ in 0..6 {
            for at in 0..3 {
                for group_at in 0..2 {
                    number += 1;
                    let group = world.groups[group_at];
                    let slot = world.ask_later(at, |engine, responder| {
                        engine.propose(group, crate::world::command(number), None, responder);
                    });
                    waiting.push((group_at, number, slot));
                }
            }
            // Most rounds end before or within an election, some after it.
            world.run_for((20 + (round * 37) % 140) * MILLISECOND);
        }
        for (group_at, number, slot) in waiting {
            if let Some(Ok(_)) = slot.take() {
                acknowledged[group_at].push(number);
            }
        }
        for at in 0..3 {
            if is_power_lost {
                world.crash(at);
            } else {
                world.kill(at);
            }
        }
        world.start_all();
    }
    for (group_at, acknowledged) in acknowledged.iter().enumerate() {
        let group = world.groups[group_at];
        world.leader(group);
        world.await_level(group);
        assert!(
            acknowledged.len() > 100,
            "{} acknowledged",
            acknowledged.len()
        );
        for at in 0..3 {
            let list = world.list(at, group);
            for number in acknowledged {
                let times = list.iter().filter(|found| *found == number).count();
                assert_eq!(times, 1, "write {number} on host {at}");
            }
        }
    }
    world.check();
}

#[test]
fn fault_28_all_processes_killed_at_once_a_hundred_times_lose_nothing() {
    all_at_once(28, false);
}

#[test]
fn fault_29_all_hosts_without_power_at_once_a_hundred_times_lose_nothing() {
    all_at_once(29, true);
}

#[test]
fn fault_24_power_lost_at_every_step_of_a_snapshot_leaves_the_replica_whole() {
    let mut steps = 0;
    let mut outcomes = std::collections::BTreeSet::new();
    for cut_after in 0.. {
        let mut world = World::running(24, 1, 1);
        for number in 1..=40 {
            world.propose(0, group(1), number).expect("it serves");
        }
        let first = world.status(0, group(1)).first;
        let request = SnapshotRequest {
            compaction_overhead: Some(3),
            ..SnapshotRequest::default()
        };
        let slot = world.ask_later(0, |engine, responder| {
            engine.request_snapshot(group(1), request, responder);
        });
        let mut answer = None;
        for _ in 0..cut_after {
            // One worker at a time; time moves when nobody has anything to do.
            if !world.round() {
                world.run_for(MILLISECOND);
            }
            answer = answer.or_else(|| slot.take());
        }
        world.crash(0);
        world.start_all();
        world.leader(group(1));
        assert_eq!(world.list(0, group(1)), (1..=40).collect::<Vec<_>>());
        let status = world.status(0, group(1));
        match &answer {
            Some(Ok(SnapshotOutcome::Completed(index))) => {
                assert_eq!(status.snapshot.index, *index, "what was answered is there");
                assert!(status.first > first, "and the log is compacted");
            }
            None => assert!(status.first == first || status.snapshot.index.get() > 1),
            other => panic!("{other:?}"),
        }
        outcomes.insert((answer.is_some(), status.snapshot.index.get() > 1));
        assert_eq!(status.role, Role::Leader);
        world.check();
        steps += 1;
        // Some steps more, so that the cleaning up is cut too.
        if answer.is_some() && outcomes.contains(&(true, true)) && cut_after > 60 {
            break;
        }
        assert!(cut_after < 400, "the snapshot never completes");
    }
    assert!(steps > 5);
    assert!(
        outcomes.contains(&(false, false)),
        "cut before the record: {outcomes:?}"
    );
}
