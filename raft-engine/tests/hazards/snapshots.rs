//! A snapshot request's ways, none of them taken for another.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft_engine::{Event, RequestError, SnapshotOutcome, SnapshotRejected, SnapshotRequest, Start};
use raft_log::vfs::Vfs;
use raft_proto::{Body, ChangeKind, Envelope, Index, MembershipChange, Message};

use crate::world::{MILLISECOND, World, command, group, host, replica};

const ORDINARY: SnapshotRequest = SnapshotRequest {
    export: None,
    compaction_overhead: Some(0),
};

fn written(seed: u64, count: u64) -> World {
    let mut world = World::running(seed, 1, 1);
    for number in 1..=count {
        world.propose(0, group(1), number).expect("it serves");
    }
    world
}

#[test]
fn outcomes_are_told_apart() {
    let mut world = written(1, 20);
    let handed = world.status(0, group(1)).applied;
    // Three in one go: one saves, two are told that there will be nothing new.
    let slots: Vec<_> = (0..3)
        .map(|_| {
            world.ask_later(0, |engine, responder| {
                engine.request_snapshot(group(1), ORDINARY, responder);
            })
        })
        .collect();
    let outcomes: Vec<_> = slots.iter().map(|slot| world.answer(slot)).collect();
    assert_eq!(outcomes[0], Ok(SnapshotOutcome::Completed(handed)));
    let nothing_new = Ok(SnapshotOutcome::Rejected(SnapshotRejected::NothingNew));
    assert_eq!(outcomes[1], nothing_new);
    assert_eq!(outcomes[2], nothing_new);
    assert_eq!(world.snapshot(0, group(1), ORDINARY), nothing_new);
    let status = world.status(0, group(1));
    assert_eq!(
        (status.snapshot.index, status.first),
        (handed, handed.next())
    );

    // With something new behind the one under way, it is one at a time.
    world.propose(0, group(1), 21).expect("it serves");
    let first = world.ask_later(0, |engine, responder| {
        engine.request_snapshot(group(1), ORDINARY, responder);
    });
    let export = SnapshotRequest {
        export: Some(PathBuf::from("/data")),
        ..ORDINARY
    };
    let second = world.snapshot(0, group(1), export);
    assert_eq!(
        second,
        Ok(SnapshotOutcome::Rejected(SnapshotRejected::AlreadySaving))
    );
    assert!(matches!(
        world.answer(&first),
        Ok(SnapshotOutcome::Completed(_))
    ));
    assert_eq!(
        world.snapshot(0, group(9), ORDINARY),
        Err(RequestError::UnknownGroup(group(9)))
    );
}

#[test]
fn an_export_is_never_nothing_new_and_changes_nothing() {
    let mut world = written(2, 20);
    assert!(matches!(
        world.snapshot(0, group(1), ORDINARY),
        Ok(SnapshotOutcome::Completed(_))
    ));
    let before = world.status(0, group(1));
    let export = SnapshotRequest {
        export: Some(PathBuf::from("/exports/of group 1")),
        ..ORDINARY
    };
    let missing = world.snapshot(0, group(1), export.clone());
    let Ok(SnapshotOutcome::Failed(reason)) = missing else {
        panic!("{missing:?}");
    };
    assert!(reason.contains("/exports/of group 1"), "{reason}");
    let vfs = Arc::clone(&world.hosts[0].vfs);
    vfs.create_dir_all("/exports/of group 1".as_ref())
        .expect("a sound disk");
    vfs.sync_dir("/".as_ref()).expect("a sound disk");
    vfs.sync_dir("/exports".as_ref()).expect("a sound disk");
    let done = world.snapshot(0, group(1), export.clone());
    let Ok(SnapshotOutcome::Completed(index)) = done else {
        panic!("{done:?}");
    };
    assert_eq!(index, before.applied);
    let dir = format!("/exports/of group 1/snapshot-{:016x}", index.get());
    let manifest = raft_snapshot::verify(vfs, dir.as_ref()).expect("it is whole");
    assert_eq!(manifest.meta.id, before.snapshot);
    assert_eq!(manifest.size_bytes(), 20 * 8);
    let after = world.status(0, group(1));
    assert_eq!(
        (after.snapshot, after.first),
        (before.snapshot, before.first)
    );
    // Its name is taken there now.
    let again = world.snapshot(0, group(1), export);
    assert_eq!(
        again,
        Ok(SnapshotOutcome::Rejected(SnapshotRejected::OutOfDate))
    );
}

#[test]
fn fault_17_a_save_that_the_disk_refuses_fails_alone_and_the_log_stays() {
    let mut failures = 0;
    for operation in 1.. {
        let mut world = written(17, 20);
        let first = world.status(0, group(1)).first;
        let vfs = Arc::clone(&world.hosts[0].vfs);
        let calls = vfs.calls();
        let slot = world.ask_later(0, |engine, responder| {
            engine.request_snapshot(group(1), ORDINARY, responder);
        });
        vfs.fail_at(calls + operation, ErrorKind::StorageFull);
        let outcome = world.answer(&slot);
        let has_failed = |event: &Event| matches!(event, Event::HostFailed { .. });
        if world.events(0).iter().any(has_failed) {
            // The log's own write failed: another matter (fault 14).
            assert!(
                matches!(outcome, Err(RequestError::HostFailed { .. })),
                "{outcome:?}"
            );
            break;
        }
        match outcome {
            Ok(SnapshotOutcome::Failed(_)) => {
                failures += 1;
                assert_eq!(
                    world.status(0, group(1)).first,
                    first,
                    "the log is not compacted"
                );
                let dir = vfs.list("/data/snapshots/1/1".as_ref()).expect("it lists");
                assert!(dir.is_empty(), "operation {operation}: {dir:?}");
            }
            Ok(SnapshotOutcome::Completed(_)) => {}
            other => panic!("operation {operation}: {other:?}"),
        }
        // The group goes on, and the next request is served.
        world.propose(0, group(1), 21).expect("it serves");
        let again = world.snapshot(0, group(1), ORDINARY);
        assert!(
            matches!(again, Ok(SnapshotOutcome::Completed(_))),
            "{again:?}"
        );
        if operation > 40 {
            break;
        }
    }
    assert!(
        failures >= 8,
        "{failures} operations of a save were made to fail"
    );
}

#[test]
fn a_cancelled_save_leaves_nothing_and_is_not_taken_for_the_next() {
    for rounds in 0..12 {
        let mut world = written(5, 20);
        let slot = world.ask_later(0, |engine, responder| {
            engine.request_snapshot(group(1), ORDINARY, responder);
        });
        for _ in 0..rounds {
            world.round();
        }
        let cancelled = world.ask(0, |engine, responder| {
            engine.cancel_snapshot(group(1), responder)
        });
        cancelled.expect("the group serves");
        let outcome = world.answer(&slot);
        world.run_for(50 * MILLISECOND);
        match outcome {
            Ok(SnapshotOutcome::Aborted) => {
                let vfs = &world.hosts[0].vfs;
                let dir = vfs.list("/data/snapshots/1/1".as_ref()).expect("it lists");
                assert!(dir.is_empty(), "after {rounds} rounds: {dir:?}");
            }
            // It was too late.
            Ok(SnapshotOutcome::Completed(_)) => {
                world.propose(0, group(1), 21).expect("it serves");
            }
            other => panic!("{other:?}"),
        }
        let again = world.snapshot(0, group(1), ORDINARY);
        assert!(
            matches!(again, Ok(SnapshotOutcome::Completed(_))),
            "{rounds}: {again:?}"
        );
    }
}

#[test]
fn a_stop_aborts_the_save_under_way() {
    let mut world = written(6, 20);
    let slot = world.ask_later(0, |engine, responder| {
        engine.request_snapshot(group(1), ORDINARY, responder);
    });
    world
        .ask(0, |engine, responder| {
            engine.stop_group(group(1), responder)
        })
        .expect("it ran");
    assert_eq!(world.answer(&slot), Ok(SnapshotOutcome::Aborted));
    world
        .start_group(0, group(1), Some(Start::Restart))
        .expect("its state is there");
    world.leader(group(1));
    assert_eq!(world.list(0, group(1)), (1..=20).collect::<Vec<_>>());
}

#[test]
fn fault_26_a_damaged_newest_snapshot_falls_back_where_the_log_reaches() {
    for local_fallback in [true, false] {
        let mut world = World::new(26, 1, 1);
        world.config.local_fallback = local_fallback;
        world.start_all();
        world.leader(group(1));
        let mut indexes = Vec::new();
        for round in 0..2 {
            for number in 1..=10 {
                world
                    .propose(0, group(1), round * 10 + number)
                    .expect("it serves");
            }
            let Ok(SnapshotOutcome::Completed(index)) = world.snapshot(0, group(1), ORDINARY)
            else {
                panic!("it is saved");
            };
            indexes.push(index);
        }
        world.propose(0, group(1), 21).expect("it serves");
        world.run_for(50 * MILLISECOND);
        world.kill(0);
        let newest = format!(
            "/data/snapshots/1/1/snapshot-{:016x}/data",
            indexes[1].get()
        );
        world.hosts[0].vfs.flip_bit(newest.as_ref(), 70, 0);
        let outcome = world.start(0).remove(0).1;
        if local_fallback {
            outcome.expect("the older one and the log hold everything");
            world.leader(group(1));
            assert_eq!(world.list(0, group(1)), (1..=21).collect::<Vec<_>>());
        } else {
            let Err(RequestError::Damaged { reason, .. }) = outcome else {
                panic!("{outcome:?}");
            };
            assert!(reason.contains("checksum"), "{reason}");
        }
    }
}

#[test]
fn fault_26_a_replica_that_lost_its_snapshot_and_not_its_log_is_given_one_by_its_leader() {
    for (is_gone, tail) in [(true, 0), (false, 0), (true, 2_000)] {
        let mut world = World::new(260, 3, 1);
        // What is handed out and not applied is bounded.
        world.config.applying_bytes_max = 64 << 10;
        world.config.message_bytes_max = 8 << 10;
        world.config.compaction_overhead = 0;
        world.start_all();
        let leader = world.leader(group(1));
        let victim = (leader + 1) % 3;
        let mut number = 0;
        let mut write = |world: &mut World, count: u64| {
            for _ in 0..count {
                number += 1;
                let at = world.leader(group(1));
                world.propose(at, group(1), number).expect("it serves");
            }
            number
        };
        write(&mut world, 20);
        world.await_level(group(1));
        let Ok(SnapshotOutcome::Completed(index)) = world.snapshot(victim, group(1), ORDINARY)
        else {
            panic!("it is saved");
        };
        let written = write(&mut world, 5 + tail);
        world.await_level(group(1));
        if tail > 0 {
            // The leader's is far past what the victim may hand out before it gets it.
            let at = world.leader(group(1));
            world.snapshot(at, group(1), ORDINARY).expect("it is saved");
        }
        world.kill(victim);
        let dir = format!(
            "/data/snapshots/1/{}/snapshot-{:016x}",
            victim + 1,
            index.get()
        );
        let vfs = Arc::clone(&world.hosts[victim].vfs);
        if is_gone {
            vfs.remove_dir_all(dir.as_ref()).expect("it was there");
            vfs.sync_dir(dir.rsplit_once('/').expect("a path").0.as_ref())
                .expect("it is durable");
        } else {
            vfs.flip_bit(format!("{dir}/data").as_ref(), 70, 0);
        }
        world.start(victim).remove(0).1.expect("its log is whole");
        world.run_until("the leader's snapshot", |world| {
            world.status(victim, group(1)).awaits_snapshot.is_none()
        });
        world.await_level(group(1));
        assert_eq!(
            world.list(victim, group(1)),
            (1..=written).collect::<Vec<_>>()
        );
        let status = world.status(victim, group(1));
        assert!(
            status.snapshot.index >= index && status.installed_from_stream,
            "{status:?}"
        );
        assert!(status.first <= index.next(), "the log stays: {status:?}");
        // It is one like any other: it serves, saves, and starts again by itself.
        let last = write(&mut world, 5);
        world.await_level(group(1));
        let saved = world.snapshot(victim, group(1), ORDINARY);
        assert!(
            matches!(saved, Ok(SnapshotOutcome::Completed(_))),
            "{saved:?}"
        );
        world.kill(victim);
        world.start(victim).remove(0).1.expect("all is there");
        world.await_level(group(1));
        assert_eq!(world.list(victim, group(1)), (1..=last).collect::<Vec<_>>());
        world.check();
    }
}

#[test]
fn fault_26_a_replica_that_lost_its_snapshot_waits_for_one_and_leads_nobody() {
    let mut world = World::new(270, 3, 1);
    world.start_all();
    let leader = world.leader(group(1));
    for number in 1..=10 {
        world.propose(leader, group(1), number).expect("it serves");
    }
    world.await_level(group(1));
    let Ok(SnapshotOutcome::Completed(index)) = world.snapshot(leader, group(1), ORDINARY) else {
        panic!("it is saved");
    };
    world.run_for(100 * MILLISECOND);
    for at in 0..3 {
        world.kill(at);
    }
    let dir = format!("/data/snapshots/1/{}", leader + 1);
    let vfs = Arc::clone(&world.hosts[leader].vfs);
    vfs.remove_dir_all(format!("{dir}/snapshot-{:016x}", index.get()).as_ref())
        .expect("it was there");
    vfs.sync_dir(dir.as_ref()).expect("it is durable");
    // Alone it asks nobody; what it cannot answer it refuses.
    world.start(leader).remove(0).1.expect("its log is whole");
    world.run_for(2_000 * MILLISECOND);
    let status = world.status(leader, group(1));
    assert_eq!(status.awaits_snapshot, Some(index));
    let stale = world.ask(leader, |engine, responder| {
        engine.read_stale(group(1), Bytes::new(), responder);
    });
    assert!(
        matches!(stale, Err(RequestError::GroupFailed { .. })),
        "{stale:?}"
    );
    let saved = world.snapshot(leader, group(1), ORDINARY);
    assert!(matches!(saved, Ok(SnapshotOutcome::Failed(_))), "{saved:?}");
    // With one more there is a majority, and that one leads: its log is no longer.
    world.start_all();
    world.run_until("a snapshot for it", |world| {
        world.status(leader, group(1)).awaits_snapshot.is_none()
    });
    world.await_level(group(1));
    assert_eq!(world.list(leader, group(1)), (1..=10).collect::<Vec<_>>());
    world.check();
}

#[test]
fn planned_snapshots_fall_on_the_same_indexes_on_every_replica() {
    let mut world = World::new(8, 3, 2);
    world.config.snapshot_every_entries = 10;
    world.config.snapshot_retention = 16;
    world.start_all();
    for number in 1..=60 {
        for id in [1, 2] {
            let at = world.leader(group(id));
            world
                .propose(at, group(id), id * 1_000 + number)
                .expect("it serves");
        }
    }
    world.run_for(500 * MILLISECOND);
    for id in [1, 2] {
        let saved = |world: &World, at: usize| -> Vec<Index> {
            let of_group = world
                .events(at)
                .into_iter()
                .filter_map(|event| match event {
                    Event::SnapshotSaved { group: of, index } if of == group(id) => Some(index),
                    _ => None,
                });
            of_group.collect()
        };
        let first = saved(&world, 0);
        assert!(first.len() >= 5, "{first:?}");
        assert!(
            first
                .windows(2)
                .all(|pair| pair[1].get() - pair[0].get() == 10)
        );
        assert_eq!(first, saved(&world, 1));
        assert_eq!(first, saved(&world, 2));
        let status = world.status(0, group(id));
        assert_eq!(Some(&status.snapshot.index), first.last());
    }
    world.check();
}

#[test]
fn a_fresh_host_is_fed_by_a_stream_is_promoted_and_carries_the_majority() {
    let mut world = World::new(9, 4, 1);
    world.founders = 3;
    world.start_all();
    let leader = world.leader(group(1));
    for number in 1..=50 {
        world.propose(leader, group(1), number).expect("it serves");
    }
    let change = |world: &mut World, kind, host| {
        let at = world.leader(group(1));
        world.ask(at, |engine, responder| {
            let change = MembershipChange::single(kind, replica(4), host);
            engine.change_membership(group(1), change, responder);
        })
    };
    assert!(matches!(
        world.snapshot(leader, group(1), ORDINARY),
        Ok(SnapshotOutcome::Completed(_))
    ));
    change(&mut world, ChangeKind::AddLearner, Some(host(4))).expect("it is added");
    world.run_until("stream", |world| {
        world.status(3, group(1)).installed_from_stream
    });
    change(&mut world, ChangeKind::AddVoter, None).expect("it is promoted");
    world.await_level(group(1));
    assert_eq!(world.list(3, group(1)), (1..=50).collect::<Vec<_>>());
    // Three of four: with one host gone the new one is needed.
    let gone = (world.leader(group(1)) + 1) % 3;
    world.kill(gone);
    let leader = world.leader(group(1));
    world
        .propose(leader, group(1), 51)
        .expect("the new one counts");
    world.await_level(group(1));
    assert!(world.list(3, group(1)).contains(&51));
    world.check();
}

/// How many snapshots a host has saved.
fn saves(world: &World, at: usize) -> usize {
    let events = world.events(at);
    let saved = |event: &&Event| matches!(event, Event::SnapshotSaved { .. });
    events.iter().filter(saved).count()
}

#[test]
fn a_snapshot_from_before_a_learner_joined_is_followed_by_one_that_names_it() {
    let mut failures = 0;
    for operation in 0..8 {
        let mut world = World::new(11, 4, 1);
        world.founders = 3;
        world.start_all();
        let leader = world.leader(group(1));
        for number in 1..=20 {
            world.propose(leader, group(1), number).expect("it serves");
        }
        let before = world.snapshot(leader, group(1), ORDINARY);
        let Ok(SnapshotOutcome::Completed(before)) = before else {
            panic!("{before:?}");
        };
        world.cut.insert(host(4));
        let change = MembershipChange::single(ChangeKind::AddLearner, replica(4), Some(host(4)));
        world
            .ask(leader, |engine, responder| {
                engine.change_membership(group(1), change, responder);
            })
            .expect("it is added");
        world.run_for(200 * MILLISECOND);
        assert_eq!(saves(&world, leader), 1, "nobody has asked yet");

        let vfs = Arc::clone(&world.hosts[leader].vfs);
        let calls = vfs.calls();
        if operation > 0 {
            vfs.fail_at(calls + operation, ErrorKind::StorageFull);
        }
        world.cut.clear();
        world.run_for(700 * MILLISECOND);
        if !world.status(3, group(1)).installed_from_stream {
            // It failed: tried again, but not on and on.
            failures += 1;
            assert!(operation > 0, "with a sound disk it is there at once");
            assert!(vfs.calls() < calls + 60, "{} calls", vfs.calls() - calls);
            world.run_until("stream", |world| {
                world.status(3, group(1)).installed_from_stream
            });
        }
        world.await_level(group(1));
        let status = world.status(leader, group(1));
        assert!(status.snapshot.index > before);
        assert_eq!(saves(&world, leader), 2, "one, and not one each heartbeat");
        assert_eq!(world.list(3, group(1)), (1..=20).collect::<Vec<_>>());
        world.check();
    }
    assert!(failures >= 3, "{failures} operations were made to fail");
}

#[test]
fn a_snapshot_that_a_follower_asks_for_is_saved_once_so_much_is_applied() {
    let mut world = World::running(12, 3, 1);
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 1).expect("it serves");
    let status = world.status(leader, group(1));
    let asker = (leader + 1) % 3;
    let (from, to) = (replica(asker as u64 + 1), replica(leader as u64 + 1));
    let ask = |world: &mut World, index| {
        let body = Body::SnapshotRequest { index, request: 7 };
        let message = Message {
            from,
            to,
            term: status.term,
            body,
        };
        let envelope = Envelope {
            group: group(1),
            epoch: 1,
            message,
        };
        let host = world.hosts[asker].id;
        world.engine(leader).deliver(host, vec![envelope]);
        world.run_for(100 * MILLISECOND);
    };
    // Three entries stand in the leader's log, and nobody else hears of them.
    let wanted = status.applied.plus(3);
    let others: Vec<_> = [1, 2]
        .map(|step| world.hosts[(leader + step) % 3].id)
        .into();
    world.cut.extend(others);
    let slots: Vec<_> = (2..=4)
        .map(|number| {
            world.ask_later(leader, |engine, responder| {
                engine.propose(group(1), command(number), None, responder);
            })
        })
        .collect();
    world.pass();
    ask(&mut world, wanted);
    assert_eq!(world.status(leader, group(1)).last, wanted);
    assert_eq!(saves(&world, leader), 0, "so much is not applied yet");
    world.cut.clear();
    for slot in slots {
        world.answer(&slot).expect("it serves");
    }
    world.run_for(100 * MILLISECOND);
    assert_eq!(saves(&world, leader), 1);
    assert_eq!(world.status(leader, group(1)).snapshot.index, wanted);
    // What is there already, and what never will be, costs nothing.
    ask(&mut world, Index::new(1));
    ask(&mut world, Index::new(u64::MAX));
    world.propose(leader, group(1), 5).expect("it serves");
    world.run_for(100 * MILLISECOND);
    assert_eq!(saves(&world, leader), 1);
    world.check();
}
