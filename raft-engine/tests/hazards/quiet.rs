//! Groups that fall quiet: they cost nothing, and wake whenever somebody needs them.

use bytes::Bytes;
use raft_engine::RequestError;
use raft_proto::Role;

use crate::world::{MILLISECOND, World, group, numbers};

/// Falls quiet after two election timeouts without work: 600 ms.
const QUIET_AFTER: u64 = 2;
const LONG: u64 = 5_000 * MILLISECOND;

/// Hosts whose groups have led, written and fallen quiet.
fn quiet(seed: u64, groups: u64) -> World {
    let mut world = World::new(seed, 3, groups);
    world.config.quiesce_timeouts = QUIET_AFTER;
    world.start_all();
    world.await_leaders();
    for id in 1..=groups {
        let at = world.leader(group(id));
        world.propose(at, group(id), id).expect("it serves");
        world.await_level(group(id));
    }
    world.run_for(LONG);
    world
}

#[test]
fn fault_43_quiet_groups_send_nothing_and_wake_nobody() {
    let mut world = quiet(43, 20);
    let sent = world.sent();
    for at in 0..3 {
        assert_eq!(
            world.deadline(at),
            None,
            "host {at} has nothing to wake for"
        );
    }
    world.run_for(12 * LONG);
    assert_eq!(world.sent(), sent, "a minute of silence");
    // Those of a deployment that never falls quiet go on.
    let mut awake = World::running(43, 3, 1);
    awake.run_for(LONG);
    let sent = awake.sent();
    awake.run_for(LONG);
    assert!(awake.sent() > sent && awake.deadline(0).is_some());
}

#[test]
fn fault_43_a_quiet_group_wakes_for_a_proposal_and_for_a_read_anywhere() {
    let mut world = quiet(44, 3);
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 100).expect("it wakes");
    world.await_level(group(1));
    for at in 0..3 {
        world.run_for(LONG);
        let sent = world.sent();
        let read = world.ask(at, |engine, responder| {
            engine.read(group(1), Bytes::new(), responder);
        });
        assert_eq!(numbers(&read.expect("it wakes")), [1, 100], "host {at}");
        assert!(world.sent() > sent);
    }
    // The others slept on, and this one falls asleep again.
    world.run_for(LONG);
    let sent = world.sent();
    world.run_for(LONG);
    assert_eq!(world.sent(), sent);
    world.check();
}

#[test]
fn fault_43_a_group_that_fell_quiet_under_a_lost_leader_finds_another() {
    for is_told in [true, false] {
        let mut world = quiet(45, 2);
        let lost = world.leader(group(1));
        let id = world.hosts[lost].id;
        world.kill(lost);
        world.run_for(LONG);
        let others = [(lost + 1) % 3, (lost + 2) % 3];
        for at in others {
            assert_eq!(world.status(at, group(1)).role, Role::Follower, "it sleeps");
        }
        if is_told {
            for at in others {
                world.engine(at).host_lost(id);
            }
        } else {
            // Nobody saw the connection end: whoever asks is sent to the lost one at first.
            let refused = world.propose(others[0], group(1), 50);
            assert!(
                matches!(
                    refused,
                    Err(RequestError::NotLeader {
                        leader: Some(_),
                        ..
                    })
                ),
                "{refused:?}"
            );
        }
        let next = world.leader(group(1));
        world.propose(next, group(1), 51).expect("it serves");
        world.start(lost);
        world.await_level(group(1));
        world.check();
    }
}
