//! Hosts that stand still, groups that come late, leases.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use raft_engine::{
    Command, Event, Responder, SaveCursor, SaveStep, SnapshotRead, Start, StateMachine,
    StateMachineError, WorkerId,
};
use raft_proto::Role;

use crate::machine::ListMachine;
use crate::oracle::Slot;
use crate::world::{MILLISECOND, World, command, group, host, numbers, replica};

const LEASE_TICKS: u64 = 20;

fn has_lost_its_leader(world: &World, at: usize) -> bool {
    let mut events = world.events(at).into_iter();
    events.any(|event| matches!(event, Event::LeaderChanged { leader: None, .. }))
}

#[test]
fn a_host_that_stood_still_hears_its_leader_before_it_counts_the_time() {
    let mut world = World::running(50, 3, 2);
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 1).expect("it serves");
    world.await_level(group(1));
    let still = (leader + 1) % 3;
    // It leads no group: what it leads others take over meanwhile.
    for id in [1, 2] {
        let at = world.leader(group(id));
        if at == still {
            let to = replica(leader as u64 + 1);
            world
                .ask(at, |engine, responder| {
                    engine.transfer_leadership(group(id), to, responder);
                })
                .expect("the other takes over");
        }
    }
    world.run_for(500 * MILLISECOND);
    let terms = [1, 2].map(|id| world.status(leader, group(id)).term);
    world.hosts[still]
        .ear
        .events
        .lock()
        .expect("no panic under it")
        .clear();
    let id = world.hosts[still].id;
    world.paused.insert(id);
    // Many election timeouts; the leader's heartbeats lie in the inbox.
    world.run_for(5_000 * MILLISECOND);
    world.paused.clear();
    world.run_for(1_000 * MILLISECOND);
    assert!(
        !has_lost_its_leader(&world, still),
        "{:?}",
        world.events(still)
    );
    assert_eq!([1, 2].map(|id| world.status(still, group(id)).term), terms);
    world.check();
}

#[test]
fn a_group_that_starts_late_waits_as_long_as_any_other() {
    let mut world = World::running(51, 3, 1);
    world.run_for(60_000 * MILLISECOND);
    for at in 0..3 {
        world.start_group(at, group(2), None).expect("it is new");
    }
    // The least election timeout is 300 ms.
    world.run_for(250 * MILLISECOND);
    for at in 0..3 {
        assert_eq!(world.sent_by(at, group(2)), 0, "host {at} stands too early");
    }
    world.groups.push(group(2));
    let leader = world.leader(group(2));
    world.propose(leader, group(2), 1).expect("it serves");
}

fn leased(seed: u64) -> (World, usize) {
    let mut world = World::new(seed, 3, 1);
    world.config.lease_ticks = LEASE_TICKS;
    world.start_all();
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 1).expect("it serves");
    world.await_level(group(1));
    // A round of heartbeats.
    world.run_for(100 * MILLISECOND);
    (world, leader)
}

/// What a read is answered before a message can come or go.
fn read_at_once(world: &mut World, at: usize) -> Option<Vec<u64>> {
    let slot = world.ask_later(at, |engine, responder| {
        engine.read(group(1), Bytes::new(), responder);
    });
    world.pass();
    slot.take()?.ok().map(|list| numbers(&list))
}

#[test]
fn a_leader_with_a_lease_answers_reads_without_asking_anybody() {
    let (mut world, leader) = leased(52);
    for _ in 0..100 {
        assert_eq!(read_at_once(&mut world, leader), Some(vec![1]));
        world.run_for(MILLISECOND);
    }
    // Without one, each is a round.
    let mut world = World::running(52, 3, 1);
    let leader = world.leader(group(1));
    assert_eq!(read_at_once(&mut world, leader), None);
}

#[test]
fn hazard_36_a_leader_that_stood_still_past_its_lease_answers_no_stale_read() {
    let (mut world, old) = leased(53);
    let within_the_lease = world.now;
    let id = world.hosts[old].id;
    world.paused.insert(id);
    // Nor does it hear of anything.
    world.cut.insert(id);
    let next = world.leader(group(1));
    assert_ne!(next, old);
    world.propose(next, group(1), 2).expect("it serves");
    // Its thread looks at the clock, stands still for all that time, and only then does a read come:
    // it is not for this pass.
    let engine = world.engine(old);
    let slot = Slot::new();
    let late: Arc<Slot<Bytes>> = Arc::clone(&slot);
    let (_, workers) = world.hosts[old].running.as_mut().expect("it runs");
    workers.poll_by(WorkerId::Step(0), || {
        engine.read(group(1), Bytes::new(), Responder::new(late));
        within_the_lease
    });
    let waited = world.ask_later(old, |engine, responder| {
        engine.read(group(1), Bytes::new(), responder);
    });
    world.paused.clear();
    world.cut.clear();
    for slot in [waited, slot] {
        let answer = world.answer(&slot);
        assert!(
            answer.as_ref().map_or(true, |list| numbers(list) == [1, 2]),
            "{answer:?}"
        );
    }
    assert_ne!(world.status(old, group(1)).role, Role::Leader);
    world.check();
}

#[test]
fn hazard_7_a_replica_that_starts_again_grants_no_vote_while_a_lease_may_hold() {
    for seed in 540..560 {
        let (mut world, leader) = leased(seed);
        let (granter, loner) = ((leader + 1) % 3, (leader + 2) % 3);
        let ids = [leader, loner].map(|at| world.hosts[at].id);
        // One stands for election all the time and is heard by nobody; the other's word alone
        // carries the lease.
        world.cut.insert(ids[1]);
        world.run_for(20_000 * MILLISECOND);
        // That one starts again, late in the life of its process, and hears only the loner.
        world.cut = [ids[0]].into();
        world
            .ask(granter, |engine, responder| {
                engine.stop_group(group(1), responder)
            })
            .expect("it ran");
        world
            .start_group(granter, group(1), Some(Start::Restart))
            .expect("its state is there");
        let mut written = 0;
        for number in 2..200 {
            let at = [granter, loner][usize::from(number % 2 == 0)];
            let wrote = world.ask_later(at, |engine, responder| {
                engine.propose(group(1), command(number), None, responder);
            });
            world.run_for(5 * MILLISECOND);
            if let Some(Ok(_)) = wrote.take() {
                written += 1;
                assert_eq!(
                    read_at_once(&mut world, leader),
                    None,
                    "seed {seed}: a read by a lease misses what another leader has committed"
                );
            }
        }
        assert!(written > 0, "seed {seed}: the two elect a leader");
    }
}

/// Keeps the times of the commands that it applies.
struct Timed {
    inner: ListMachine,
    times: Arc<Mutex<Vec<u64>>>,
}

impl StateMachine for Timed {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        let mut times = self.times.lock().expect("no panic under it");
        times.push(command.leader_time_ms);
        drop(times);
        self.inner.apply(command)
    }

    fn query(&mut self, query: &[u8]) -> Result<Bytes, StateMachineError> {
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
fn commands_carry_times_that_never_fall_though_the_hosts_clocks_are_set_back() {
    let mut world = World::new(53, 3, 1);
    let times = Arc::<Mutex<Vec<u64>>>::default();
    let seen = Arc::clone(&times);
    world.machines(move |at, _, inner| {
        let times = if at == host(1) {
            Arc::clone(&seen)
        } else {
            Arc::default()
        };
        Box::new(Timed { inner, times })
    });
    world.config.wall_ms_at_start = 1_000_000_000;
    world.start_all();
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 1).expect("it serves");
    world.await_level(group(1));
    for at in 0..3 {
        world.kill(at);
    }
    times.lock().expect("no panic under it").clear();
    world.config.wall_ms_at_start = 0;
    world.start_all();
    let leader = world.leader(group(1));
    world.propose(leader, group(1), 2).expect("it serves");
    world.await_level(group(1));
    let times = times.lock().expect("no panic under it");
    assert!(
        times.len() >= 2,
        "applied again, and the new one: {times:?}"
    );
    assert!(times.is_sorted(), "{times:?}");
}
