//! Groups that fail alone, that start and stop, and callers that ask too much.

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use raft_engine::{
    Command, Completion, Event, RequestError, Responder, SaveCursor, SaveStep, SnapshotRead, Start,
    StartGroup, StateMachine, StateMachineError,
};
use raft_proto::{Body, Envelope, GroupId, HostId, Index, Message, Role, Term};

use crate::machine::ListMachine;
use crate::oracle::Slot;
use crate::world::{MILLISECOND, World, command, group, host, replica};

/// Panics on one host at one command or query, and gives up at another.
struct Fragile {
    inner: ListMachine,
    host: HostId,
}

const PANICS_AT: u64 = 666;
const GIVES_UP_AT: u64 = 667;
const PANICKING_QUERY: &[u8] = b"the machine's own bug";

impl StateMachine for Fragile {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        let number = command
            .payload
            .first_chunk()
            .map(|bytes| u64::from_le_bytes(*bytes));
        if self.host == host(1) {
            assert_ne!(number, Some(PANICS_AT), "the machine's own bug");
            if number == Some(GIVES_UP_AT) {
                return Err(StateMachineError("no more".to_owned()));
            }
        }
        self.inner.apply(command)
    }

    fn query(&mut self, query: &[u8]) -> Result<Bytes, StateMachineError> {
        if self.host == host(1) {
            assert_ne!(query, PANICKING_QUERY, "the machine's own bug");
        }
        self.inner.query(query)
    }

    fn save_next(
        &mut self,
        cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        self.inner.save_next(cursor, out)
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        self.inner.restore(source)
    }
}

#[test]
fn fault_41_a_machine_that_panics_or_gives_up_stops_its_group_there_and_nothing_else() {
    for (number, says) in [(PANICS_AT, "panicked"), (GIVES_UP_AT, "no more")] {
        let mut world = World::new(41, 3, 3);
        world.machines(|host, _, inner| Box::new(Fragile { inner, host }));
        world.start_all();
        world.await_leaders();
        // Host 1 leads the first group.
        let leader = world.leader(group(1));
        if leader != 0 {
            world
                .ask(leader, |engine, responder| {
                    engine.transfer_leadership(group(1), replica(1), responder);
                })
                .expect("host 1 takes over");
        }
        assert_eq!(world.leader(group(1)), 0);
        let failed = world.propose(0, group(1), number);
        let Err(RequestError::OutcomeUnknown { reason }) = &failed else {
            panic!("{failed:?}");
        };
        assert!(reason.contains(says), "{reason}");
        let is_said = |event: &Event| matches!(event, Event::GroupFailed { group: of, .. } if *of == group(1));
        assert!(world.events(0).iter().any(is_said));
        // What is asked of it there is refused, at once and with the reason.
        let again = world.propose(0, group(1), 1);
        assert!(
            matches!(again, Err(RequestError::GroupFailed { .. })),
            "{again:?}"
        );
        let status = world.status(0, group(1));
        assert!(status.failed.is_some());
        // The other replicas elect and go on; so do host 1's other groups.
        let next = world.leader(group(1));
        assert_ne!(next, 0);
        world.propose(next, group(1), 2).expect("the others serve");
        for id in [2, 3] {
            let leader = world.leader(group(id));
            world
                .propose(leader, group(id), 10 + id)
                .expect("other groups serve");
            world.await_level(group(id));
            assert!(world.list(0, group(id)).contains(&(10 + id)));
        }
        world.check();
    }
}

struct PanickingCompletion;

impl<T: Send> Completion<T> for PanickingCompletion {
    fn complete(&self, _outcome: Result<T, RequestError>) {
        panic!("the caller's own bug");
    }
}

#[test]
fn fault_41_a_completion_that_panics_is_its_callers_loss_alone() {
    let mut world = World::running(42, 3, 1);
    for at in 0..3 {
        // Refused by followers, acknowledged by the leader; and a question to a group unknown.
        let engine = world.engine(at);
        let completion = Arc::new(PanickingCompletion);
        engine.propose(
            group(1),
            command(1),
            None,
            Responder::new(completion.clone()),
        );
        engine.read(group(1), Bytes::new(), Responder::new(completion.clone()));
        engine.status(group(9), Responder::new(completion));
    }
    world.run_for(200 * MILLISECOND);
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 2).expect("it serves");
    world.await_level(group(1));
    assert_eq!(world.list(leader, group(1)), [1, 2]);
    world.check();
}

#[test]
fn starts_that_contradict_what_is_on_the_disk_are_refused_by_name() {
    let mut world = World::new(1, 3, 1);
    let members = (1..=3).map(|id| (replica(id), host(id))).collect();
    let bootstrap = Start::Bootstrap { members };
    world.open(0);
    let outcome = world.start_group(0, group(1), Some(Start::Restart));
    assert_eq!(outcome, Err(RequestError::NoState(group(1))));
    let stranger = Start::Bootstrap {
        members: [(replica(2), host(2))].into(),
    };
    let outcome = world.start_group(0, group(1), Some(stranger));
    assert!(
        matches!(outcome, Err(RequestError::Invalid { .. })),
        "{outcome:?}"
    );
    world
        .start_group(0, group(1), Some(bootstrap.clone()))
        .expect("nothing is there");
    let outcome = world.start_group(0, group(1), Some(bootstrap.clone()));
    assert_eq!(outcome, Err(RequestError::AlreadyRunning(group(1))));
    world.kill(0);
    world.open(0);
    for start in [bootstrap, Start::Join] {
        let outcome = world.start_group(0, group(1), Some(start));
        assert_eq!(outcome, Err(RequestError::StateExists(group(1))));
    }
    world
        .start_group(0, group(1), Some(Start::Restart))
        .expect("the state is there");
    let outcome = world.ask(0, |engine, responder| engine.status(group(2), responder));
    assert_eq!(
        outcome.map(|status| status.group),
        Err(RequestError::UnknownGroup(group(2)))
    );
}

#[test]
fn a_group_that_was_stopped_starts_again_from_what_is_durable() {
    let mut world = World::running(2, 3, 2);
    let leader = world.leader(group(1));
    for round in 0..5 {
        for number in 1..=10 {
            let number = round * 10 + number;
            let at = world.leader(group(1));
            world.propose(at, group(1), number).expect("it serves");
        }
        // With work under way.
        let engine = world.engine(leader);
        let waiting: Vec<_> = (0..5)
            .map(|more| {
                world.ask_later(leader, |engine, responder| {
                    engine.propose(
                        group(1),
                        command(1_000 + round * 10 + more),
                        None,
                        responder,
                    );
                })
            })
            .collect();
        world
            .ask(leader, |engine, responder| {
                engine.stop_group(group(1), responder)
            })
            .expect("it ran");
        assert_eq!(engine.groups().len(), 1);
        for slot in waiting {
            assert!(slot.take().is_some(), "whoever waited has an answer");
        }
        let outcome = world.start_group(leader, group(1), Some(Start::Join));
        assert_eq!(outcome, Err(RequestError::StateExists(group(1))));
        world
            .start_group(leader, group(1), Some(Start::Restart))
            .expect("its state is there");
    }
    world.leader(group(1));
    world.await_level(group(1));
    for at in 0..3 {
        let list = world.list(at, group(1));
        assert!(
            (1..=50).all(|number| list.contains(&number)),
            "host {at}: {list:?}"
        );
    }
    world.check();
}

/// Whoever starts it again reads what is durable: less than it has said would contradict that.
#[test]
fn a_group_has_stopped_when_all_that_it_submitted_is_durable() {
    let mut world = World::running(6, 3, 2);
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 1).expect("it serves");
    world.hosts[leader].vfs.set_hung(true);
    let waits = world.ask_later(leader, |engine, responder| {
        engine.propose(group(1), command(2), None, responder);
    });
    world.pass();
    let stopped = world.ask_later(leader, |engine, responder| {
        engine.stop_group(group(1), responder);
    });
    world.run_for(100 * MILLISECOND);
    assert!(waits.take().is_some(), "whoever waited has an answer");
    assert!(stopped.take().is_none(), "its entry is not durable");
    let outcome = world.start_group(leader, group(1), Some(Start::Restart));
    assert_eq!(outcome, Err(RequestError::AlreadyRunning(group(1))));
    world.hosts[leader].vfs.set_hung(false);
    world.run_for(100 * MILLISECOND);
    stopped.take().expect("it is durable").expect("it stops");
    world
        .start_group(leader, group(1), Some(Start::Restart))
        .expect("its state is there");
    world.leader(group(1));
    world.await_level(group(1));
    world.check();
}

/// Hosts whose first one's groups can be made to fail.
fn fragile(seed: u64, groups: u64) -> World {
    let mut world = World::new(seed, 3, groups);
    world.machines(|host, _, inner| Box::new(Fragile { inner, host }));
    world.start_all();
    world.await_leaders();
    world
}

fn transfer(world: &mut World, of: GroupId, to: usize) {
    let target = replica(world.hosts[to].id.get());
    for _ in 0..10 {
        let leader = world.leader(of);
        if leader == to {
            return;
        }
        let _ = world.ask(leader, |engine, responder| {
            engine.transfer_leadership(of, target, responder);
        });
    }
    panic!("host {to} does not take over");
}

/// Its state machine panics, on host 1.
fn fail_group(world: &mut World, of: GroupId) {
    let query = Bytes::from_static(PANICKING_QUERY);
    let failed = world.ask(0, |engine, responder| {
        engine.read_stale(of, query, responder);
    });
    assert!(failed.is_err(), "{failed:?}");
    world.run_until("the group fails", |world| {
        world.status(0, of).failed.is_some()
    });
}

fn stop_later(world: &mut World, at: usize, of: GroupId) -> Arc<Slot<()>> {
    let stopped = world.ask_later(at, |engine, responder| engine.stop_group(of, responder));
    world.pass();
    stopped
}

/// It voted, and may be started again to vote otherwise.
#[test]
fn a_group_that_failed_has_stopped_when_all_that_it_submitted_is_durable() {
    let mut world = fragile(7, 2);
    transfer(&mut world, group(1), 1);
    world.await_level(group(1));
    let term = world.status(0, group(1)).term;
    // A vote of the first host, or a term, is on its way.
    world.hosts[0].vfs.set_hung(true);
    transfer(&mut world, group(1), 2);
    let voted = world.status(0, group(1)).term;
    assert!(voted > term);
    fail_group(&mut world, group(1));
    let stopped = stop_later(&mut world, 0, group(1));
    world.run_for(100 * MILLISECOND);
    assert!(stopped.take().is_none(), "its vote is not durable");
    let outcome = world.start_group(0, group(1), Some(Start::Restart));
    assert_eq!(outcome, Err(RequestError::AlreadyRunning(group(1))));
    world.hosts[0].vfs.set_hung(false);
    world.answer(&stopped).expect("it is durable");
    world
        .start_group(0, group(1), Some(Start::Restart))
        .expect("its state is there");
    assert!(world.status(0, group(1)).term >= voted);
    // It votes again, and serves.
    transfer(&mut world, group(1), 0);
    world.propose(0, group(1), 1).expect("it serves");
    world.await_level(group(1));
    world.check();
}

/// What a group puts out before it fails, in the same pass, never reaches the log: nobody waits for it.
#[test]
fn a_group_that_fails_before_anything_leaves_it_stops_at_once() {
    let mut world = World::new(8, 3, 1);
    world.open(0);
    let engine = world.engine(0);
    for _ in 0..2 {
        let machine = ListMachine::new(host(1), group(1), Arc::clone(&world.applications));
        let members = (1..=3).map(|id| (replica(id), host(id))).collect();
        let start = StartGroup {
            group: group(1),
            replica: replica(1),
            epoch: 1,
            start: Start::Bootstrap { members },
            machine: Box::new(machine),
        };
        let founded = world.ask_later(0, |engine, responder| engine.start_group(start, responder));
        // Two lead one term: what is here must not vouch for anything.
        for id in [2, 3] {
            let claim = Message {
                from: replica(id),
                to: replica(1),
                term: Term::new(2),
                body: Body::Heartbeat {
                    commit: Index::new(1),
                    round: 0,
                },
            };
            let claim = Envelope {
                group: group(1),
                epoch: 1,
                message: claim,
            };
            engine.deliver(host(id), vec![claim]);
        }
        let failed = world.answer(&founded);
        let Err(RequestError::GroupFailed { reason, .. }) = &failed else {
            panic!("{failed:?}");
        };
        assert!(reason.contains("safety violation"), "{reason}");
        let stopped = stop_later(&mut world, 0, group(1));
        stopped.take().expect("it has stopped").expect("it ran");
    }
}

#[test]
fn whoever_stops_a_group_is_answered_when_the_host_fails() {
    let mut latched = 0;
    for operation in 1..=8 {
        let mut world = fragile(9, 3);
        for id in 1..=3 {
            transfer(&mut world, group(id), 0);
        }
        world.hosts[0].vfs.set_hung(true);
        for id in 1..=2 {
            let command = command(id);
            world.ask_later(0, |engine, responder| {
                engine.propose(group(id), command, None, responder);
            });
            world.pass();
        }
        fail_group(&mut world, group(2));
        let slots = [1, 2].map(|id| stop_later(&mut world, 0, group(id)));
        assert!(slots.iter().all(|slot| slot.take().is_none()));
        let vfs = &world.hosts[0].vfs;
        vfs.fail_at(vfs.calls() + operation, ErrorKind::Other);
        vfs.set_hung(false);
        for slot in slots {
            world.answer(&slot).expect("it ran");
        }
        world.run_for(1_000 * MILLISECOND);
        let has_failed = |event: &Event| matches!(event, Event::HostFailed { .. });
        latched += usize::from(world.events(0).iter().any(has_failed));
        let stopped = stop_later(&mut world, 0, group(3));
        world.answer(&stopped).expect("it ran");
        assert_eq!(world.engine(0).groups(), []);
    }
    assert!(latched >= 2, "of the next eight operations some are needed");
}

#[test]
fn reads_without_an_answer_are_bounded() {
    let mut world = World::new(3, 3, 1);
    world.config.reads_bytes_max = 1 << 20;
    world.start_all();
    let leader = world.leader(group(1));
    // Nobody confirms the leader any more: reads gather.
    let others: Vec<HostId> = (0..3)
        .filter(|&at| at != leader)
        .map(|at| world.hosts[at].id)
        .collect();
    world.cut.extend(others);
    let query = Bytes::from(vec![0; 10_000]);
    let slots: Vec<_> = (0..200)
        .map(|_| {
            let slot = world.ask_later(leader, |engine, responder| {
                engine.read(group(1), query.clone(), responder);
            });
            world.pass();
            slot
        })
        .collect();
    let mut busy = 0;
    let mut waiting = 0;
    for slot in &slots {
        match slot.take() {
            Some(Err(RequestError::Busy { queue: "read" })) => busy += 1,
            None => waiting += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        (95..=105).contains(&waiting) && busy == 200 - waiting,
        "{waiting} wait"
    );
    // The leader learns that it is one no longer; the room comes back with the answers.
    world.run_for(3_000 * MILLISECOND);
    world.cut.clear();
    let leader = world.leader(group(1));
    let answer = world.ask(leader, |engine, responder| {
        engine.read(group(1), query.clone(), responder);
    });
    assert!(answer.is_ok(), "{answer:?}");
}

#[test]
fn a_transfer_is_answered_whoever_leads_in_the_end() {
    let mut world = World::running(44, 3, 1);
    let leader = world.leader(group(1));
    let to = (leader + 1) % 3;
    let target = replica(world.hosts[to].id.get());
    let transfer = |world: &mut World, at: usize| {
        world.ask_later(at, |engine, responder| {
            engine.transfer_leadership(group(1), target, responder);
        })
    };
    // To a target that is gone: the leader leads on, and says so.
    world.cut.insert(world.hosts[to].id);
    let first = transfer(&mut world, leader);
    let second = transfer(&mut world, leader);
    let busy = world.answer(&second);
    assert!(matches!(busy, Err(RequestError::Busy { .. })), "{busy:?}");
    let failed = world.answer(&first);
    assert_eq!(
        failed,
        Err(RequestError::TransferFailed {
            group: group(1),
            to: target
        })
    );
    world.propose(leader, group(1), 1).expect("it leads on");
    // To one that is there.
    world.cut.clear();
    world.await_level(group(1));
    let leader = world.leader(group(1));
    if leader != to {
        let slot = transfer(&mut world, leader);
        world.answer(&slot).expect("it takes over");
    }
    assert_eq!(world.status(to, group(1)).role, Role::Leader);
    let slot = transfer(&mut world, leader);
    let outcome = world.answer(&slot);
    assert!(
        matches!(outcome, Err(RequestError::NotLeader { .. }) | Ok(())),
        "{outcome:?}"
    );
    world.check();
}
