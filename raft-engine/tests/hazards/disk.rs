//! Disks that fail, fill, and give back other bytes than they were given.

use std::io::ErrorKind;
use std::path::Path;

use raft_engine::{Event, RequestError};
use raft_proto::{GroupId, Role};

use crate::world::{MILLISECOND, World, command, find, group, replica, segments};

#[test]
fn hazard_47_fault_14_one_failed_sync_latches_the_host_and_nothing_more_is_acknowledged() {
    let mut latched = 0;
    for operation in 1..=8 {
        let mut world = World::running(14, 3, 2);
        let leader = world.leader(group(1));
        let mut acknowledged = Vec::new();
        for number in 1..=10 {
            world.propose(leader, group(1), number).expect("it serves");
            acknowledged.push(number);
        }
        // Once, then the disk is as good as ever.
        let vfs = &world.hosts[leader].vfs;
        vfs.fail_at(vfs.calls() + operation, ErrorKind::Other);
        let outcome = world.propose(leader, group(1), 11);
        let has_failed = |event: &Event| matches!(event, Event::HostFailed { .. });
        if !world.events(leader).iter().any(has_failed) {
            // It was no write and no sync.
            outcome.expect("the group serves");
            continue;
        }
        latched += 1;
        assert!(
            matches!(outcome, Err(RequestError::OutcomeUnknown { .. })),
            "{outcome:?}"
        );
        let sent = [1, 2].map(|id| world.sent_by(leader, group(id)));
        let again = world.propose(leader, group(2), 12);
        assert!(
            matches!(again, Err(RequestError::HostFailed { .. })),
            "{again:?}"
        );
        // The others see a dead host, elect, and serve both groups.
        world.run_for(3_000 * MILLISECOND);
        assert_eq!(sent, [1, 2].map(|id| world.sent_by(leader, group(id))));
        let failures = world.events(leader).into_iter().filter(has_failed).count();
        assert_eq!(failures, 1, "it is said once");
        world.cut.insert(world.hosts[leader].id);
        let next = world.leader(group(1));
        assert_ne!(next, leader);
        world.propose(next, group(1), 13).expect("the others serve");
        acknowledged.push(13);
        // A new life: what the disk holds is trusted again only after it was synced again.
        world.cut.clear();
        world.crash(leader);
        world.start_all();
        world.await_leaders();
        world.await_level(group(1));
        for at in 0..3 {
            let list = world.list(at, group(1));
            let missing: Vec<_> = acknowledged.iter().filter(|n| !list.contains(n)).collect();
            assert!(missing.is_empty(), "operation {operation}: {missing:?}");
        }
        world.check();
    }
    assert!(
        latched >= 2,
        "a write and a sync are among the next eight operations"
    );
}

/// Opening reads footers, not payloads: damage to an entry of a sealed segment is found by whoever
/// reads it first, here the replica that applies its log again.
#[test]
fn fault_3_damage_in_a_sealed_segment_stops_the_replica_that_reads_it() {
    let mut world = World::running(3, 3, 2);
    let leaders = [1, 2].map(|id| world.leader(group(id)));
    let victim = (0..3)
        .find(|at| !leaders.contains(at))
        .expect("three hosts, two leaders");
    let mut number = 0;
    while segments(&world.hosts[victim].vfs).len() < 5 {
        number += 1;
        assert!(number < 10_000, "segments fill");
        world
            .propose(leaders[0], group(1), number)
            .expect("it serves");
    }
    world
        .propose(leaders[1], group(2), 10_001)
        .expect("it serves");
    world.await_level(group(1));
    world.kill(victim);
    // One that lies in sealed segments alone: the log may have moved others forward.
    let find = |number| find(&world.hosts[victim].vfs, &command(number));
    let newest = |number| find(number).into_iter().map(|(path, _)| path).max();
    let active = newest(number);
    let sealed = (100..number).find(|&number| newest(number) < active);
    let sealed = sealed.expect("segments were sealed");
    let places = find(sealed);
    assert!(!places.is_empty(), "the log holds the command");
    for (path, at) in places {
        world.hosts[victim].vfs.flip_bit(&path, at + 50, 2);
    }
    for (id, outcome) in world.start(victim) {
        outcome.unwrap_or_else(|error| panic!("group {id}: {error}"));
    }
    world.run_until("the damage is told", |world| {
        let told = |event: &Event| {
            matches!(event, Event::GroupFailed { group: failed, reason }
                if *failed == group(1) && reason.contains("damage") && reason.contains("remove"))
        };
        world.events(victim).iter().any(told)
    });
    let sent = world.sent_by(victim, group(1));
    world.run_for(2_000 * MILLISECOND);
    assert_eq!(
        world.sent_by(victim, group(1)),
        sent,
        "it neither votes nor acknowledges"
    );
    let refused = world.propose(victim, group(1), 1);
    assert!(
        matches!(refused, Err(RequestError::GroupFailed { .. })),
        "{refused:?}"
    );
    // Nobody else notices.
    world.await_level(group(2));
    for id in [1, 2] {
        let leader = world.leader(group(id));
        assert_ne!((leader, id), (victim, 1));
        world
            .propose(leader, group(id), 20_000)
            .expect("the others serve");
    }
}

#[test]
fn fault_4_damage_in_the_active_segment_stops_that_replica_and_nobody_else() {
    let mut world = World::running(4, 3, 2);
    let leaders = [1, 2].map(|id| world.leader(group(id)));
    for number in 1..=30 {
        for id in [1, 2] {
            let number = id * 1_000 + number;
            world
                .propose(leaders[usize::from(id == 2)], group(id), number)
                .expect("it serves");
        }
    }
    world.await_level(group(1));
    let victim = (0..3)
        .find(|at| !leaders.contains(at))
        .expect("three hosts, two leaders");
    world.kill(victim);
    // In the middle of what was durable long ago.
    let places = find(&world.hosts[victim].vfs, &command(1_010));
    let (path, at) = places.first().expect("the log holds the command");
    world.hosts[victim].vfs.flip_bit(path, at + 50, 2);

    for _ in 0..2 {
        // Opened twice: the damage is not cut away by the first time.
        let outcomes = world.start(victim);
        let damaged = world.engine(victim).recovered();
        for (id, outcome) in &outcomes {
            if *id == group(1) {
                let Err(RequestError::Damaged {
                    replica: which,
                    reason,
                    ..
                }) = outcome
                else {
                    panic!("{outcome:?}");
                };
                assert_eq!(*which, replica(world.hosts[victim].id.get()));
                assert!(
                    reason.contains("remove") && reason.contains("add"),
                    "{reason}"
                );
                assert!(
                    damaged
                        .iter()
                        .any(|found| found.group == *id && found.damage.is_some())
                );
            }
        }
        let sent = world.sent_by(victim, group(1));
        world.run_for(2_000 * MILLISECOND);
        assert_eq!(
            world.sent_by(victim, group(1)),
            sent,
            "it neither votes nor acknowledges"
        );
        world.kill(victim);
    }
    let _ = world.start(victim);
    world.cut.insert(world.hosts[victim].id);
    for id in [1, 2] {
        let leader = world.leader(group(id));
        world
            .propose(leader, group(id), 5_000 + id)
            .expect("the others serve");
    }
    world.check();
}

#[test]
fn fault_16_a_full_disk_refuses_proposals_hands_leadership_on_and_recovers_by_itself() {
    let mut world = World::running(16, 3, 1);
    let full = world.leader(group(1));
    let mut acknowledged = Vec::new();
    let used = world.hosts[full].vfs.used_bytes();
    world.hosts[full].vfs.set_capacity(Some(used));
    let mut number = 0;
    let refused = loop {
        number += 1;
        assert!(number < 20_000, "the disk never fills");
        match world.propose(full, group(1), number) {
            Ok(_) => acknowledged.push(number),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, RequestError::StorageFull);
    // It hands its leadership to a host that has room, and that one serves.
    world.run_for(1_000 * MILLISECOND);
    let next = world.leader(group(1));
    assert_ne!(next, full, "the leadership went to a host with room");
    for number in 30_000..30_050 {
        world
            .propose(next, group(1), number)
            .expect("two of three have room");
        acknowledged.push(number);
    }
    // It still votes: without it there is no majority.
    let votes = world.promises.votes();
    world.kill(next);
    world.run_for(3_000 * MILLISECOND);
    let last = (0..3)
        .find(|&at| at != full && at != next)
        .expect("three hosts");
    let roles = [full, last].map(|at| world.status(at, group(1)).role);
    assert!(roles.contains(&Role::Leader), "{roles:?}");
    assert!(world.promises.votes() >= votes + 2, "both voted");
    // Room again: no restart is needed.
    world.hosts[full].vfs.set_capacity(None);
    let leader = world.leader(group(1));
    world
        .propose(leader, group(1), 40_000)
        .expect("there is room");
    acknowledged.push(40_000);
    world.start_all();
    world.await_level(group(1));
    for at in 0..3 {
        let list = world.list(at, group(1));
        assert!(
            acknowledged.iter().all(|number| list.contains(number)),
            "host {at}"
        );
    }
    assert!(
        world
            .events(full)
            .iter()
            .all(|event| !matches!(event, Event::HostFailed { .. }))
    );
    world.check();
}

#[test]
fn fault_20_one_bad_copy_of_a_vote_changes_nothing() {
    let votes = Path::new("/data/votes");
    for half in 0..2_u64 {
        let mut world = World::running(20 + half, 3, 1);
        let leader = world.leader(group(1));
        world.propose(leader, group(1), 1).expect("it serves");
        world.await_level(group(1));
        let terms: Vec<_> = (0..3).map(|at| world.status(at, group(1)).term).collect();
        for at in 0..3 {
            world.kill(at);
            world.hosts[at].vfs.damage(votes, |bytes| {
                let middle = bytes.len() / 2;
                let range = if half == 0 {
                    0..middle
                } else {
                    middle..bytes.len()
                };
                bytes[range].fill(0xA5);
            });
        }
        world.start_all();
        for (at, &term) in terms.iter().enumerate() {
            assert!(
                world.status(at, group(1)).term >= term,
                "the term did not roll back"
            );
        }
        let leader = world.leader(group(1));
        world.propose(leader, group(1), 2).expect("it serves");
        world.check();
    }
}

#[test]
fn fault_20_all_copies_of_a_vote_bad_stop_the_replica_for_ever() {
    let mut world = World::running(27, 3, 1);
    let leader = world.leader(group(1));
    for number in 1..=5 {
        world.propose(leader, group(1), number).expect("it serves");
    }
    world.await_level(group(1));
    let victim = (leader + 1) % 3;
    world.kill(victim);
    let vfs = &world.hosts[victim].vfs;
    vfs.damage(Path::new("/data/votes"), |bytes| bytes.fill(0xA5));
    let places = find(vfs, &command(3));
    let (path, at) = places.first().expect("the log holds the command");
    vfs.flip_bit(path, at + 50, 2);
    for _ in 0..2 {
        let outcomes = world.start(victim);
        let Err(RequestError::Damaged { reason, .. }) = &outcomes[0].1 else {
            panic!("{outcomes:?}");
        };
        assert!(
            reason.contains("remove") && reason.contains("add"),
            "{reason}"
        );
        let sent = world.sent_by(victim, group(1));
        world.run_for(1_500 * MILLISECOND);
        assert_eq!(world.sent_by(victim, group(1)), sent);
        world.kill(victim);
    }
    let leader = world.leader(group(1));
    world
        .propose(leader, group(1), 6)
        .expect("the others serve");
    world.check();
}

#[test]
fn fault_3_a_scrub_that_is_asked_for_finds_what_lies_unread() {
    let mut world = World::new(31, 3, 2);
    // Nothing is verified unasked.
    world.lane.scrub_bytes_per_s = 0;
    world.start_all();
    world.await_leaders();
    let leader = world.leader(group(1));
    let mut number = 0;
    while segments(&world.hosts[leader].vfs).len() < 3 {
        number += 1;
        assert!(number < 20_000, "segments fill up");
        world
            .propose(leader, group(1), number)
            .expect("the group serves");
    }
    world.await_level(group(1));
    let victim = (leader + 1) % 3;
    let vfs = &world.hosts[victim].vfs;
    let (path, at) = find(vfs, &command(number / 2)).remove(0);
    vfs.flip_bit(&path, at + 3, 6);
    let failed = |world: &World, at: usize| -> Vec<GroupId> {
        let events = world.events(at).into_iter();
        let failed = events.filter_map(|event| match event {
            Event::GroupFailed { group, .. } => Some(group),
            _ => None,
        });
        failed.collect()
    };
    let scrubbed = |world: &World, at: usize| {
        let running = world.hosts[at].running.as_ref();
        running.map(|(_, workers)| workers.stats().scrub)
    };
    world.run_for(5_000 * MILLISECOND);
    assert_eq!(failed(&world, victim), []);
    assert_eq!(scrubbed(&world, victim).map(|scrub| scrub.passes), Some(0));
    for at in [leader, victim] {
        world.engine(at).scrub();
        world.run_until("the end of a pass", |world| {
            scrubbed(world, at).is_some_and(|scrub| scrub.passes == 1)
        });
    }
    assert_eq!(failed(&world, victim), [group(1)]);
    assert_eq!(failed(&world, leader), []);
    let found = scrubbed(&world, victim).expect("it runs");
    assert!(found.damaged == 1 && found.verified_bytes > 0, "{found:?}");
    world.check();
}

#[test]
fn fault_3_a_scrub_stops_the_one_replica_that_lost_something_and_the_host_goes_on() {
    let mut world = World::new(3, 3, 2);
    // A segment a second: slower than the groups take in what they had.
    world.lane.scrub_bytes_per_s = 64 << 10;
    world.start_all();
    world.await_leaders();
    let leader = world.leader(group(1));
    let (mut number, victim) = (0, (leader + 1) % 3);
    while segments(&world.hosts[victim].vfs).len() < 6 {
        number += 1;
        assert!(number < 20_000, "segments fill up");
        world
            .propose(leader, group(1), number)
            .expect("the group serves");
    }
    world.await_level(group(1));
    world.kill(victim);
    world.start(victim);
    world.await_level(group(1));
    let has_failed = |world: &World| {
        let mut events = world.events(victim).into_iter();
        events.any(|event| matches!(event, Event::GroupFailed { group: id, .. } if id == group(1)))
    };
    assert!(!has_failed(&world));
    let vfs = &world.hosts[victim].vfs;
    // Of the first one the scrub may have read all.
    let later = &segments(vfs)[3];
    let (path, at) = (1..=number)
        .flat_map(|number| find(vfs, &command(number)))
        .find(|(path, _)| path == later)
        .expect("each holds some");
    vfs.flip_bit(&path, at + 3, 6);
    world.run_until("the scrub finds it", |world| has_failed(world));
    // Its other replica serves, and so does the group elsewhere.
    let reason = world.ask(victim, |engine, responder| {
        engine.propose(group(1), command(30_000), None, responder);
    });
    assert!(
        matches!(&reason, Err(RequestError::GroupFailed { reason, .. }) if reason.contains("remove")),
        "{reason:?}"
    );
    for id in [1, 2] {
        let leader = world.leader(group(id));
        world
            .propose(leader, group(id), 20_000 + id)
            .expect("it serves");
    }
    world.await_level(group(2));
    // The next life knows.
    world.kill(victim);
    let outcomes = world.start(victim);
    assert!(
        matches!(outcomes[0].1, Err(RequestError::Damaged { .. })),
        "{outcomes:?}"
    );
    assert!(outcomes[1].1.is_ok(), "{outcomes:?}");
    world.check();
}
