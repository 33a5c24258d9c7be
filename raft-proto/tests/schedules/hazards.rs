//! Hazards that need a whole group to show, by their numbers.

use raft_proto::{
    Body, Change, ChangeKind, Config, HostId, MembershipChange, Message, Refused, Role, Term,
    Transition, ViolationKind,
};

use crate::oracle::{Oracle, Violation};
use crate::plan::first_membership;
use crate::replica::{Disk, Replica};
use crate::rng::Rng;
use crate::world::{World, group, place, replica};

const SEEDS: u64 = 40;
const ELECTION_MIN: u64 = 10;
const ELECTION_MAX: u64 = 20;

/// A group of `voters`, and `spare` replicas that belong to it later; clocks agree.
fn cluster(seed: u64, voters: u64, spare: u64, edit: impl Fn(&mut Config)) -> World {
    let membership = first_membership(voters, 0);
    let meta = raft_proto::SnapshotMeta {
        id: raft_proto::EntryId::new(Term::new(1), membership.index),
        membership: membership.clone(),
    };
    let replicas = (1..=voters + spare).map(|id| {
        let mut config = Config {
            election_timeout_ticks_min: ELECTION_MIN,
            election_timeout_ticks_max: ELECTION_MAX,
            heartbeat_ticks: 2,
            ..Config::new(group(), replica(id), 0)
        };
        edit(&mut config);
        let disk = if id <= voters {
            Disk::starting_from(meta.clone())
        } else {
            Disk::default()
        };
        Replica::new(config, disk, false)
    });
    let mut world = World::new(Rng::new(seed), replicas.collect(), Oracle::new(&membership));
    for at in 0..world.replicas.len() {
        world.start(at);
    }
    world
}

/// A group with a leader whose first entries are committed everywhere.
fn led(world: &mut World) -> Result<usize, Violation> {
    let leader = world.rounds_until_led(10 * ELECTION_MAX)?;
    world.propose(leader)?;
    world.rounds(4)?;
    Ok(leader)
}

fn term(world: &World, at: usize) -> Term {
    world.raft(at).map_or(Term::ZERO, raft_proto::Raft::term)
}

/// A command proposed at `leader` is committed within `rounds`.
fn commits(world: &mut World, leader: usize, rounds: u64) -> Result<bool, Violation> {
    let before = world.oracle.committed_index();
    world.propose(leader)?;
    for _ in 0..rounds {
        world.round()?;
        if world.oracle.committed_index() > before {
            return Ok(true);
        }
    }
    Ok(false)
}

fn cut_both(world: &mut World, a: usize, b: usize) {
    world.set_cut(a, b, true);
    world.set_cut(b, a, true);
}

/// Cuts every link but those that `keeps` names, in either direction.
fn keep_only(world: &mut World, keeps: &[(usize, usize)]) {
    for a in 0..world.replicas.len() {
        for b in 0..a {
            if !keeps.contains(&(a, b)) && !keeps.contains(&(b, a)) {
                cut_both(world, a, b);
            }
        }
    }
}

fn change(kind: ChangeKind, id: u64) -> Change {
    Change {
        kind,
        replica: replica(id),
        host: HostId::new(id),
    }
}

/// Runs `test` with many seeds.
fn seeds(mut test: impl FnMut(u64) -> Result<(), Violation>) {
    for seed in 0..SEEDS {
        if let Err(violation) = test(seed) {
            panic!("seed {seed}: {violation:?}");
        }
    }
}

#[test]
fn hazard_7_a_removed_replica_with_its_old_disk_disturbs_nobody() {
    for pre_vote in [true, false] {
        seeds(|seed| {
            let mut world = cluster(seed, 4, 0, |config| config.pre_vote = pre_vote);
            let leader = led(&mut world)?;
            let removed = (leader + 1) % 4;
            for other in (0..4).filter(|&other| other != removed) {
                cut_both(&mut world, removed, other);
            }
            let id = world.replicas[removed].config.id;
            let remove = MembershipChange::single(ChangeKind::Remove, id, None);
            world.change(leader, remove)?;
            world.rounds(4)?;
            assert!(!world.oracle.membership().is_member(id));
            // It comes back, and knows of nothing.
            world.crash(removed);
            world.heal();
            world.start(removed);
            let before = term(&world, leader);
            world.rounds(10 * ELECTION_MAX)?;
            assert_eq!(world.leader(), Some(leader), "seed {seed}");
            assert_eq!(term(&world, leader), before, "seed {seed}");
            assert!(commits(&mut world, leader, 4)?, "seed {seed}");
            Ok(())
        });
    }
}

#[test]
fn hazard_8_a_failure_during_a_replacement_keeps_the_quorum() {
    // One of three is replaced by a fourth; the old one, or the new one, fails at each point.
    for failing in [3, 4] {
        for deliveries in 0..60 {
            let mut world = cluster(deliveries, 3, 1, |_| {});
            let result = replace(&mut world, failing, deliveries);
            assert_eq!(result, Ok(()), "{failing} fails after {deliveries}");
        }
    }
}

fn replace(world: &mut World, failing: u64, deliveries: u64) -> Result<(), Violation> {
    let leader = led(world)?;
    // Replica 3 is the one to go: let another lead.
    if leader == 2 {
        world.with(leader, |raft| {
            raft.transfer_leader(replica(1)).ok();
        })?;
    }
    let leader = world.rounds_until_led(10 * ELECTION_MAX)?;
    assert_ne!(leader, 2, "the leadership was handed over");
    let exchange = MembershipChange {
        transition: Transition::Implicit,
        changes: vec![
            change(ChangeKind::AddVoter, 4),
            change(ChangeKind::Remove, 3),
        ],
        ..MembershipChange::default()
    };
    world.change(leader, exchange)?;
    for _ in 0..deliveries {
        for at in 0..4 {
            world.poll(at)?;
            world.persist(at, 1)?;
            world.apply(at, 1)?;
            if world.replicas[at].wants_snapshot {
                world.snapshot(at, 0)?;
            }
        }
        world.deliver()?;
    }
    world.crash(place(replica(failing)));
    assert!(commits(world, leader, 2 * ELECTION_MAX)?, "with one failed");
    world.rounds(2 * ELECTION_MAX)?;
    let membership = world.oracle.membership();
    assert!(!membership.is_joint(), "the change came to its end");
    assert!(membership.is_voter(replica(4)) && !membership.is_member(replica(3)));
    Ok(())
}

/// A leader that can commit is there within ten election timeouts, and stays.
fn emerges_and_stays(world: &mut World, who: &[usize]) -> Result<(), Violation> {
    let mut leader = None;
    for _ in 0..10 {
        world.rounds(ELECTION_MAX)?;
        leader = world.leader();
        if let Some(leader) = leader
            && who.contains(&leader)
            && commits(world, leader, 4)?
        {
            break;
        }
    }
    let leader = leader.filter(|leader| who.contains(leader));
    let Some(leader) = leader else {
        let why = format!("none of {who:?} leads");
        return Err(Violation::NoProgress { why });
    };
    let before = term(world, leader);
    for _ in 0..30 {
        world.rounds(ELECTION_MAX)?;
        let is_leading = world
            .raft(leader)
            .is_some_and(|raft| raft.role() == Role::Leader);
        assert!(is_leading, "the leader stays");
        assert_eq!(term(world, leader), before, "without elections");
    }
    assert!(commits(world, leader, 4)?, "it is a leader to the end");
    Ok(())
}

#[test]
fn hazard_15_quorum_loss_the_hub_takes_over() {
    // Only the hub sees a majority, and the leader sees only the hub.
    seeds(|seed| {
        let mut world = cluster(seed, 5, 0, |_| {});
        let leader = led(&mut world)?;
        let hub = (leader + 1) % 5;
        let spokes: Vec<_> = (0..5).map(|other| (hub, other)).collect();
        keep_only(&mut world, &spokes);
        emerges_and_stays(&mut world, &[hub])
    });
}

#[test]
fn hazard_15_constrained_the_hub_is_elected() {
    // The leader is gone, and only the hub sees a majority.
    seeds(|seed| {
        let mut world = cluster(seed, 5, 0, |_| {});
        let leader = led(&mut world)?;
        let hub = (leader + 1) % 5;
        let others = (0..5).filter(|&other| other != leader);
        let spokes: Vec<_> = others.map(|other| (hub, other)).collect();
        keep_only(&mut world, &spokes);
        emerges_and_stays(&mut world, &[hub])
    });
}

#[test]
fn hazard_15_chained_the_leader_stays() {
    // The leader and one follower see only the third.
    seeds(|seed| {
        let mut world = cluster(seed, 3, 0, |_| {});
        let leader = led(&mut world)?;
        let (middle, end) = ((leader + 1) % 3, (leader + 2) % 3);
        let before = term(&world, leader);
        keep_only(&mut world, &[(leader, middle), (middle, end)]);
        emerges_and_stays(&mut world, &[leader, middle])?;
        assert_eq!(world.leader(), Some(leader), "seed {seed}");
        assert_eq!(term(&world, leader), before, "seed {seed}");
        Ok(())
    });
}

#[test]
fn hazard_15_one_way_links_leave_a_leader() {
    // The leader can send and not hear.
    seeds(|seed| {
        let count = 3 + 2 * (seed % 2);
        let mut world = cluster(seed, count, 0, |_| {});
        let leader = led(&mut world)?;
        let others: Vec<usize> = (0..world.replicas.len())
            .filter(|&other| other != leader)
            .collect();
        for &other in &others {
            world.set_cut(other, leader, true);
        }
        emerges_and_stays(&mut world, &others)
    });
    // One follower hears and cannot send, or sends and cannot hear.
    for is_mute in [true, false] {
        seeds(|seed| {
            let mut world = cluster(seed, 3, 0, |_| {});
            let leader = led(&mut world)?;
            let odd = (leader + 1) % 3;
            for other in (0..3).filter(|&other| other != odd) {
                if is_mute {
                    world.set_cut(odd, other, true);
                } else {
                    world.set_cut(other, odd, true);
                }
            }
            emerges_and_stays(&mut world, &[leader])
        });
    }
}

fn with_lease(config: &mut Config) {
    config.lease_ticks = ELECTION_MIN;
}

#[test]
fn hazard_16_a_leader_whose_process_was_paused_serves_no_stale_read() {
    seeds(|seed| {
        let mut world = cluster(seed, 3, 0, with_lease);
        let leader = led(&mut world)?;
        assert!(world.raft(leader).is_some_and(raft_proto::Raft::has_lease));
        world.read(leader)?;
        world.poll(leader)?;
        assert!(
            world.oracle.counts.of("lease reads") > 0,
            "the lease serves"
        );
        // It neither hears, nor sends, nor looks at its clock, for a while; reads arrive.
        let pause = world.rng.range(1, 6 * ELECTION_MAX);
        let mut paused = world.replicas[leader].raft.take();
        let mut others = None;
        for _ in 0..pause {
            world.round()?;
            others = world.leader();
            if let Some(other) = others {
                world.propose(other)?;
            }
        }
        std::mem::swap(&mut world.replicas[leader].raft, &mut paused);
        // The driver reads its clock before it serves what waited; the oracle holds it to what
        // the others have committed meanwhile.
        for _ in 0..4 {
            world.read(leader)?;
            world.poll(leader)?;
            world.round()?;
        }
        let had_others = others.is_some();
        assert_eq!(had_others, world.leader() != Some(leader), "seed {seed}");
        Ok(())
    });
}

/// A leader whose clock counts `kept` ticks of each ten of its followers' is cut off and asked for
/// reads, while the others elect another and commit. No two clocks begin at the same number.
fn reads_by_a_slow_clock(seed: u64, lease: u64, kept: u64) -> Result<World, Violation> {
    let mut world = cluster(seed, 3, 0, |config| config.lease_ticks = lease);
    world.is_clock_shared = false;
    for at in 0..3 {
        world.replicas[at].now += world.rng.below(1_000);
    }
    let leader = led(&mut world)?;
    for other in (0..3).filter(|&other| other != leader) {
        cut_both(&mut world, leader, other);
    }
    for round in 0..4 * ELECTION_MAX {
        if round % 10 >= kept {
            // The round that follows takes it on again.
            world.replicas[leader].now -= 1;
        }
        // Whoever can stands as soon as it may.
        for other in (0..3).filter(|&other| other != leader) {
            world.with(other, |raft| {
                raft.campaign().ok();
            })?;
        }
        world.round()?;
        if let Some(other) = world.leader().filter(|&other| other != leader) {
            world.propose(other)?;
            world.settle()?;
        }
        world.read(leader)?;
        world.poll(leader)?;
    }
    assert_ne!(world.leader(), Some(leader), "seed {seed}");
    Ok(world)
}

#[test]
fn hazard_16_clocks_that_drift_within_the_bound_break_no_lease() {
    // Seven tenths of the least election timeout bear a clock that loses three ticks of ten.
    let mut served = 0;
    seeds(|seed| {
        let world = reads_by_a_slow_clock(seed, ELECTION_MIN * 7 / 10, 7)?;
        served += world.oracle.counts.of("lease reads");
        Ok(())
    });
    assert!(served > 0, "no read was served by a lease");
}

#[test]
fn hazard_16_clocks_that_drift_past_the_bound_are_caught() {
    let is_stale = |seed| {
        matches!(
            reads_by_a_slow_clock(seed, ELECTION_MIN, 3),
            Err(Violation::StaleRead { .. })
        )
    };
    assert!((0..SEEDS).any(is_stale), "the check above cannot fail");
}

#[test]
fn hazard_16_a_transfer_ends_the_lease() {
    seeds(|seed| {
        let mut world = cluster(seed, 3, 0, with_lease);
        let leader = led(&mut world)?;
        let target = (leader + 1) % 3;
        let to = world.replicas[target].config.id;
        assert!(world.raft(leader).is_some_and(raft_proto::Raft::has_lease));
        world.with(leader, |raft| {
            raft.transfer_leader(to).ok();
        })?;
        assert!(!world.raft(leader).is_some_and(raft_proto::Raft::has_lease));
        world.poll(leader)?;
        // From here the old leader hears nothing; the others elect the target at once.
        for other in (0..3).filter(|&other| other != leader) {
            world.set_cut(other, leader, true);
        }
        for _ in 0..2 * ELECTION_MAX {
            world.read(leader)?;
            world.poll(leader)?;
            assert!(!world.raft(leader).is_some_and(raft_proto::Raft::has_lease));
            world.round()?;
            if world.leader() == Some(target) {
                world.propose(target)?;
            }
        }
        assert_eq!(world.leader(), Some(target), "seed {seed}");
        Ok(())
    });
}

#[test]
fn hazard_16_a_lease_outlives_the_term_in_which_it_was_granted() {
    // A follower that granted a lease hears of a later term by an answer that was long on its way.
    // It is in that term then, without a leader; but its word holds.
    for answer in [
        Body::PreVoteResponse { is_rejected: true },
        Body::VoteResponse { is_rejected: true },
    ] {
        seeds(|seed| {
            let mut world = cluster(seed, 3, 0, with_lease);
            let leader = led(&mut world)?;
            let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
            cut_both(&mut world, leader, third);
            world.rounds(2)?;
            cut_both(&mut world, leader, follower);
            let late = Message {
                from: world.replicas[third].config.id,
                to: world.replicas[follower].config.id,
                term: term(&world, leader).plus(3),
                body: answer.clone(),
            };
            world.hand_over(late)?;
            for _ in 0..2 * ELECTION_MAX {
                world.with(third, |raft| {
                    raft.campaign().ok();
                })?;
                world.read(leader)?;
                world.round()?;
                if let Some(other) = world.leader().filter(|&other| other != leader) {
                    world.propose(other)?;
                }
            }
            assert_ne!(world.leader(), Some(leader), "seed {seed}");
            Ok(())
        });
    }
}

#[test]
fn hazard_18_a_leader_of_a_minority_serves_no_reads() {
    for check_quorum in [true, false] {
        seeds(|seed| {
            let mut world = cluster(seed, 5, 0, |config| config.check_quorum = check_quorum);
            let leader = led(&mut world)?;
            let beside = (leader + 1) % 5;
            for a in [leader, beside] {
                for b in (0..5).filter(|&b| b != leader && b != beside) {
                    cut_both(&mut world, a, b);
                }
            }
            let before = world.oracle.counts.of("reads");
            for _ in 0..4 * ELECTION_MAX {
                world.read(leader)?;
                world.read(beside)?;
                world.round()?;
                if let Some(other) = world.leader().filter(|&other| other != leader) {
                    world.propose(other)?;
                }
            }
            let is_stale = world
                .raft(leader)
                .is_some_and(|raft| raft.role() == Role::Leader);
            assert_eq!(is_stale, !check_quorum, "seed {seed}");
            let answered = world.oracle.counts.of("reads") - before;
            assert_eq!(answered, 0, "seed {seed}: the minority serves");
            assert_ne!(world.leader(), Some(leader), "seed {seed}");
            world.recover()
        });
    }
}

#[test]
fn hazard_26_a_follower_that_forgot_what_it_acknowledged_is_seen() {
    seeds(|seed| {
        let mut world = cluster(seed, 3, 0, |_| {});
        let leader = led(&mut world)?;
        assert!(commits(&mut world, leader, 4)?);
        world.rounds(4)?;
        let forgetful = (leader + 1) % 3;
        world.crash(forgetful);
        let kept = world.replicas[forgetful].disk.last().index;
        world.replicas[forgetful].disk.lose_tail(kept);
        world.start(forgetful);
        let last = world.replicas[forgetful].disk.last().index;
        assert!(last < kept);
        let leader_id = world.replicas[leader].config.id;
        let mut refused = 0;
        for _ in 0..4 * ELECTION_MAX {
            // Refused as what it is, without a panic, and without harm to the others.
            match world.round() {
                Ok(()) => {}
                Err(Violation::Refused {
                    refused: Refused::Violation { kind, from },
                }) => {
                    let is_seen =
                        matches!(kind, ViolationKind::CommitPastEnd { last: at, .. } if at == last);
                    assert!(is_seen && from == leader_id, "seed {seed}: {kind:?}");
                    refused += 1;
                }
                Err(other) => return Err(other),
            }
        }
        assert!(refused > 0, "seed {seed}: nobody saw it");
        let raft = world.raft(forgetful).expect("it is up");
        assert!(
            raft.last_index() <= last,
            "nothing is taken on top of a gap"
        );
        Ok(())
    });
}
