//! Peers that come back, that are not who they say, and that are set up otherwise.

use bytes::{BufMut, Bytes, BytesMut};
use raft_engine::{Event, RequestError, SnapshotOutcome, SnapshotRequest, Start};
use raft_proto::{Body, ChangeKind, EntryKind, Envelope, Forwarded, MembershipChange, Message};

use crate::machine::filler;
use crate::world::{MILLISECOND, World, group, host, numbers, replica};

#[test]
fn hazard_39_reads_of_a_replicas_lives_are_told_apart() {
    let mut world = World::running(39, 3, 2);
    let leader = world.leader(group(1));
    let follower = (leader + 1) % 3;
    let id = world.hosts[follower].id;
    let read = |world: &mut World| {
        let answer = world.ask(follower, |engine, responder| {
            engine.read(group(1), Bytes::new(), responder);
        });
        numbers(&answer.expect("a follower reads"))
    };
    assert_eq!(read(&mut world), []);
    // The group starts anew in the same process, then in another one. The seed is always the same.
    world
        .ask(follower, |engine, responder| {
            engine.stop_group(group(1), responder);
        })
        .expect("it ran");
    world
        .start_group(follower, group(1), Some(Start::Restart))
        .expect("its state is there");
    for number in 1..=2 {
        let at = world.leader(group(1));
        world.propose(at, group(1), number).expect("it serves");
        world.await_level(group(1));
        assert_eq!(read(&mut world), (1..=number).collect::<Vec<_>>());
        if number == 1 {
            world.kill(follower);
            world.start_all();
        }
    }
    assert_ne!(world.leader(group(1)), follower, "all were forwarded");
    let of_follower = |(host, of, _): &&_| (*host, *of) == (id, group(1));
    let lives: Vec<u64> = world
        .reading_lives
        .iter()
        .filter(of_follower)
        .map(|&(.., life)| life)
        .collect();
    assert_eq!(lives.len(), 3, "a number for each life: {lives:?}");
    world.check();
}

#[test]
fn a_snapshot_from_where_its_sender_does_not_live_is_not_installed() {
    let mut world = World::new(40, 4, 1);
    world.founders = 3;
    world.start_all();
    let leader = world.leader(group(1));
    for number in 1..=20 {
        world.propose(leader, group(1), number).expect("it serves");
    }
    let compacted = world.snapshot(leader, group(1), SnapshotRequest::default());
    assert!(matches!(compacted, Ok(SnapshotOutcome::Completed(_))));
    let liar = world.hosts[(leader + 1) % 3].id;
    world.snapshots_from = Some(liar);
    let change = MembershipChange::single(ChangeKind::AddLearner, replica(4), Some(host(4)));
    world
        .ask(leader, |engine, responder| {
            engine.change_membership(group(1), change, responder);
        })
        .expect("it is added");
    world.run_for(1_000 * MILLISECOND);
    assert!(!world.status(3, group(1)).installed_from_stream);
    let refusal = format!("snapshot: replica {} does not live", leader + 1);
    let is_refusal = |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.starts_with(&refusal));
    assert!(
        world.events(3).iter().any(is_refusal),
        "{:?}",
        world.events(3)
    );
    let dir = "/data/snapshots/1/4";
    let kept = raft_log::vfs::Vfs::list(&*world.hosts[3].vfs, dir.as_ref()).expect("it lists");
    assert!(kept.is_empty(), "{kept:?}");
    // From where the leader lives it is taken.
    world.snapshots_from = None;
    world.run_until("stream", |world| {
        world.status(3, group(1)).installed_from_stream
    });
    world.await_level(group(1));
    assert_eq!(world.list(3, group(1)), (1..=20).collect::<Vec<_>>());
    world.check();
}

/// A command of so many bytes.
fn big(number: u64, size: usize) -> Bytes {
    let mut command = BytesMut::new();
    command.put_u64_le(number);
    command.put_bytes(filler(number), size - 8);
    command.freeze()
}

#[test]
fn a_log_of_smaller_records_takes_what_fits_and_refuses_the_rest_alone() {
    let mut world = World::new(42, 3, 2);
    // The first two hosts take records twice as large as the third, whose replicas never lead.
    let small = world.lane.record_bytes_max;
    world.lane.record_bytes_max = 2 * small;
    for at in [0, 1] {
        world.open(at);
        for id in [1, 2] {
            world.start_group(at, group(id), None).expect("it starts");
        }
    }
    for id in [1, 2] {
        world.leader(group(id));
    }
    world.lane.record_bytes_max = small;
    world.start_all();
    let propose = |world: &mut World, id, size| {
        let at = world.leader(group(id));
        assert_ne!(at, 2);
        world.ask(at, |engine, responder| {
            engine.propose(group(id), big(7, size), None, responder);
        })
    };
    // Many at once, in batches that only the first two could write in one piece.
    let at = world.leader(group(1));
    let slots: Vec<_> = (0..40)
        .map(|number| {
            world.ask_later(at, |engine, responder| {
                engine.propose(group(1), big(number, small / 10), None, responder);
            })
        })
        .collect();
    for slot in slots {
        world.answer(&slot).expect("it serves");
    }
    world.await_level(group(1));

    // One that the third cannot take at all: it says so, and falls behind in this group alone.
    propose(&mut world, 1, small + 1).expect("two of three take it");
    world.run_for(300 * MILLISECOND);
    let is_refusal = |event: &Event| matches!(event, Event::Refused { reason, .. } if reason.contains("record_bytes_max"));
    assert!(world.events(2).iter().any(is_refusal));
    propose(&mut world, 2, 100).expect("it serves");
    world.await_level(group(2));
    assert_eq!(world.list(2, group(2)), [7]);
    assert_eq!(world.list(2, group(1)).len(), 40);
    assert_eq!(world.status(2, group(1)).failed, None);

    // What no log takes is refused before it has a place in it.
    let too_large = propose(&mut world, 1, 2 * small);
    assert!(
        matches!(too_large, Err(RequestError::TooLarge { size, bound, .. }) if size == 2 * small && bound < size),
        "{too_large:?}"
    );
    let leader = world.leader(group(2));
    let context = Bytes::from(vec![0; 2 * small]);
    let change = MembershipChange {
        context,
        ..MembershipChange::single(ChangeKind::Update, replica(3), Some(host(3)))
    };
    let refused = world.ask(leader, |engine, responder| {
        engine.change_membership(group(2), change, responder);
    });
    assert!(
        matches!(refused, Err(RequestError::TooLarge { .. })),
        "{refused:?}"
    );
    // Nor does a peer get it in.
    let other = 1 - leader;
    let forwarded = Forwarded {
        kind: EntryKind::Command,
        session: None,
        payload: big(8, 2 * small),
    };
    let envelope = Envelope {
        group: group(2),
        epoch: 1,
        message: Message {
            from: replica(other as u64 + 1),
            to: replica(leader as u64 + 1),
            term: raft_proto::Term::ZERO,
            body: Body::Propose {
                entries: vec![forwarded],
            },
        },
    };
    let from = world.hosts[other].id;
    world.engine(leader).deliver(from, vec![envelope]);
    world.run_for(50 * MILLISECOND);
    assert!(world.events(leader).iter().any(is_refusal));

    // With its bound raised it takes what it missed.
    world.kill(2);
    world.lane.record_bytes_max = 2 * small;
    world.start_all();
    world.await_level(group(1));
    assert_eq!(world.list(2, group(1)).len(), 41);
    world.check();
}
