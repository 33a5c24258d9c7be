//! What happens in a schedule, drawn from its seed.

use raft_proto::{
    Change, ChangeKind, Config, EntryId, HostId, Index, Membership, MembershipChange, ReplicaId,
    SnapshotMeta, Term, Transition,
};

use crate::defects::Defect;
use crate::oracle::{Oracle, Violation};
use crate::replica::{Disk, Replica};
use crate::rng::Rng;
use crate::world::{Network, World, group, replica};

type Checked = Result<(), Violation>;

const STEPS: u64 = 320;

/// How often what happens; the first numbers of a step's draw.
#[derive(Clone, Copy, Debug)]
struct Moods {
    deliver: u64,
    tick: u64,
    persist: u64,
    apply: u64,
    work: u64,
    members: u64,
    faults: u64,
    /// In percent: whether a replica is polled right after each input, and its disk is quick.
    polls: u64,
    quick_disk: u64,
}

/// A group of the seed's own making.
pub(crate) struct Plan {
    pub(crate) world: World,
    moods: Moods,
    spare: Vec<ReplicaId>,
}

impl Plan {
    pub(crate) fn new(seed: u64, defect: Option<Defect>, checks_disks: bool) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.range(3, 7);
        let voters = rng.range(1, count);
        let learners = if rng.chance(25) {
            rng.range(0, count - voters)
        } else {
            0
        };
        let mut membership = first_membership(voters, learners);
        if rng.chance(30) {
            for id in membership.replicas() {
                membership.priorities.insert(id, rng.pick(&[0, 1, 2, 5]));
            }
        }
        let meta = SnapshotMeta {
            id: EntryId::new(Term::new(1), Index::new(1)),
            membership: membership.clone(),
        };
        // A lease holds only among clocks that agree, and where all keep to it.
        let has_lease = rng.chance(25);
        let traits = Traits::draw(&mut rng, has_lease);
        let mut replicas = Vec::new();
        for id in 1..=count {
            let config = traits.config(&mut rng, replica(id), has_lease);
            let disk = if id <= voters + learners {
                Disk::starting_from(meta.clone())
            } else {
                Disk::default()
            };
            let is_machine_durable = rng.chance(30);
            replicas.push(Replica::new(config, disk, is_machine_durable));
        }
        let network = if rng.chance(20) {
            Network::default()
        } else {
            Network {
                loss: rng.pick(&[0, 2, 10, 25]),
                duplication: rng.pick(&[0, 5, 15]),
                reordering: rng.pick(&[0, 10, 50, 100]),
            }
        };
        let moods = Moods {
            deliver: rng.range(30, 60),
            tick: rng.pick(&[4, 8, 16]),
            persist: rng.pick(&[4, 12, 20]),
            apply: rng.pick(&[4, 10]),
            work: rng.pick(&[5, 15]),
            members: rng.pick(&[0, 2, 6]),
            faults: rng.pick(&[1, 3, 7]),
            polls: rng.pick(&[40, 80, 100]),
            quick_disk: rng.pick(&[0, 30, 100]),
        };
        let mut world = World::new(rng, replicas, Oracle::new(&membership));
        world.network = network;
        world.is_clock_shared = has_lease || world.rng.chance(50);
        world.fires_last = world.rng.chance(50);
        world.defect = defect;
        world.checks_disks = checks_disks;
        let spare = (voters + learners + 1..=count).map(replica).collect();
        Self {
            world,
            moods,
            spare,
        }
    }

    /// The whole schedule: faults, then recovery.
    pub(crate) fn run(&mut self) -> Checked {
        for at in 0..self.world.replicas.len() {
            self.world.start(at);
        }
        if self.world.rng.chance(70) {
            let network = std::mem::take(&mut self.world.network);
            let ticks = self.world.replicas[0].config.election_timeout_ticks_max;
            self.world.rounds(2 * ticks)?;
            self.world.network = network;
        }
        for _ in 0..STEPS {
            self.step()?;
        }
        self.world.recover()
    }

    fn step(&mut self) -> Checked {
        let moods = self.moods;
        let kinds = [
            moods.deliver,
            moods.tick,
            moods.persist,
            moods.apply,
            moods.work,
            moods.members,
            moods.faults,
            3,
        ];
        let mut draw = self.world.rng.below(kinds.iter().sum());
        let mut kind = 0;
        while draw >= kinds[kind] {
            draw -= kinds[kind];
            kind += 1;
        }
        let world = &mut self.world;
        let at = world.rng.index(world.replicas.len());
        match kind {
            0 => {
                for _ in 0..world.rng.range(1, 3) {
                    world.deliver()?;
                }
            }
            1 => {
                let ticks = world.rng.range(1, 2);
                if world.is_clock_shared || world.rng.chance(50) {
                    for at in 0..world.replicas.len() {
                        world.tick(at, u64::from(at == 0 || !world.is_clock_shared))?;
                    }
                } else {
                    world.tick(at, ticks)?;
                }
            }
            2 => {
                let count = world.rng.index(4);
                world.persist(at, count)?;
            }
            3 => {
                let count = world.rng.index(4);
                world.apply(at, count)?;
                let is_failing = world.rng.chance(10);
                world.fetch(at, is_failing)?;
            }
            4 => self.work(at)?,
            5 => self.members()?,
            6 => self.fault(at)?,
            _ => {
                world.report()?;
                if world.replicas[at].wants_snapshot {
                    world.snapshot(at, 2)?;
                }
            }
        }
        let world = &mut self.world;
        for at in 0..world.replicas.len() {
            if world.rng.chance(moods.polls) {
                world.poll(at)?;
                if world.rng.chance(moods.quick_disk) {
                    world.persist(at, usize::MAX)?;
                    world.apply(at, usize::MAX)?;
                }
            }
        }
        Ok(())
    }

    fn work(&mut self, at: usize) -> Checked {
        let world = &mut self.world;
        match world.rng.below(12) {
            0..=4 => match world.leader() {
                Some(leader) => world.propose(leader),
                None => world.propose(at),
            },
            5 => world.forward(at),
            6..=8 => world.read(at),
            9 => match world.leader() {
                Some(leader) => world.read(leader),
                None => Ok(()),
            },
            10 => {
                let overhead = world.rng.below(6);
                world.snapshot(at, overhead)
            }
            _ => {
                let index = world.replicas[at].machine.applied.index;
                let what = world.rng.below(4);
                world.with(at, |raft| {
                    match what {
                        0 => raft.forget_leader().ok(),
                        1 => raft.campaign().ok(),
                        _ => raft.request_snapshot(index).ok(),
                    };
                })
            }
        }
    }

    fn members(&mut self) -> Checked {
        let world = &mut self.world;
        let Some(leader) = world.leader() else {
            return Ok(());
        };
        if world.rng.chance(25) {
            let by = world.rng.index(world.replicas.len());
            let to = world.rng.index(world.replicas.len());
            let to = world.replicas[to].config.id;
            return world.with(by, |raft| {
                raft.transfer_leader(to).ok();
            });
        }
        let Some(raft) = world.raft(leader) else {
            return Ok(());
        };
        let membership = raft.membership().clone();
        let change = self.draw_change(&membership);
        self.world.change(leader, change)
    }

    fn draw_change(&mut self, membership: &Membership) -> MembershipChange {
        let rng = &mut self.world.rng;
        if membership.is_joint() && rng.chance(70) {
            return MembershipChange::default();
        }
        let transition = rng.pick(&[
            Transition::Auto,
            Transition::Auto,
            Transition::Implicit,
            Transition::Explicit,
        ]);
        let count = if transition == Transition::Auto && rng.chance(60) {
            1
        } else {
            rng.range(1, 3)
        };
        let members = membership.replicas();
        let gone = self.world.oracle.members_ever.difference(&members);
        let removed: Vec<ReplicaId> = gone.copied().collect();
        let members: Vec<ReplicaId> = members.into_iter().collect();
        let rng = &mut self.world.rng;
        let mut changes = Vec::new();
        for _ in 0..count {
            let newcomer = self.spare.last().copied();
            let is_new = newcomer.is_some() && rng.chance(40);
            let priority = rng.pick(&[0, 2, 5]);
            let returns = !removed.is_empty() && rng.chance(25);
            let kind = if is_new || returns {
                rng.pick(&[
                    ChangeKind::AddVoter,
                    ChangeKind::AddVoter,
                    ChangeKind::AddLearner,
                    ChangeKind::AddWitness,
                ])
            } else {
                rng.pick(&[
                    ChangeKind::AddVoter,
                    ChangeKind::AddVoter,
                    ChangeKind::AddLearner,
                    ChangeKind::Remove,
                    ChangeKind::Prioritise(priority),
                ])
            };
            let id = match newcomer.filter(|_| is_new) {
                Some(id) => {
                    // Asked for once: who was never let in has nothing on its disk yet.
                    self.spare.pop();
                    id
                }
                // With the disk it had: one that forgot its votes would be another.
                None if returns => rng.pick(&removed),
                None => rng.pick(&members),
            };
            // Who had commands, and thinks that it has, takes no entries without them.
            let is_new = newcomer == Some(id);
            let kind = match kind {
                ChangeKind::AddWitness if !is_new && !self.world.oracle.was_witness(id) => {
                    ChangeKind::AddVoter
                }
                kind => kind,
            };
            changes.push(Change {
                kind,
                replica: id,
                host: HostId::new(id.get()),
            });
        }
        MembershipChange {
            transition,
            changes,
            ..MembershipChange::default()
        }
    }

    fn fault(&mut self, at: usize) -> Checked {
        let world = &mut self.world;
        let count = world.replicas.len();
        match world.rng.below(10) {
            0..=2 => world.crash(at),
            3..=5 => {
                for at in 0..count {
                    if world.rng.chance(60) {
                        world.start(at);
                    }
                }
            }
            6 => {
                // One link, in one direction or both.
                let to = world.rng.index(count);
                world.set_cut(at, to, at != to);
                if world.rng.chance(50) {
                    world.set_cut(to, at, at != to);
                }
            }
            7 => {
                // One side against the other.
                let side = world.rng.draw();
                for from in 0..count {
                    for to in 0..count {
                        let is_cut = (side >> from) & 1 != (side >> to) & 1;
                        world.set_cut(from, to, is_cut);
                    }
                }
                world.oracle.counts.add("partitions", 1);
            }
            _ => world.heal(),
        }
        Ok(())
    }
}

pub(crate) fn first_membership(voters: u64, learners: u64) -> Membership {
    let ids = || (1..=voters + learners).map(replica);
    Membership {
        index: Index::new(1),
        voters: ids().take_while(|id| id.get() <= voters).collect(),
        learners: ids().skip_while(|id| id.get() <= voters).collect(),
        hosts: ids()
            .filter_map(|id| Some((id, HostId::new(id.get())?)))
            .collect(),
        ..Membership::default()
    }
}

/// Settings that all replicas of a schedule share, or that each draws for itself.
struct Traits {
    election_min: u64,
    election_max: u64,
    heartbeat: u64,
    lease: u64,
    quiesce: u64,
    step_down: bool,
    is_mixed: bool,
    pre_vote: bool,
    check_quorum: bool,
    is_sync: bool,
    own_commit_first: bool,
    done_when_applied: bool,
    message_bytes: usize,
    inflight: usize,
    inflight_bytes: usize,
    uncommitted_bytes: usize,
    committed_bytes: usize,
    cache_bytes: usize,
    reads: usize,
}

impl Traits {
    fn draw(rng: &mut Rng, has_lease: bool) -> Self {
        let election_min = rng.range(4, 10);
        Self {
            election_min,
            election_max: election_min + rng.range(2, 10),
            heartbeat: rng.range(1, 2),
            lease: if has_lease {
                rng.range(1, election_min)
            } else {
                0
            },
            quiesce: if rng.chance(20) { rng.range(1, 2) } else { 0 },
            step_down: rng.chance(70),
            is_mixed: rng.chance(20),
            pre_vote: rng.chance(60),
            check_quorum: has_lease || rng.chance(60),
            is_sync: rng.chance(25),
            own_commit_first: rng.chance(80),
            done_when_applied: rng.chance(20),
            message_bytes: rng.pick(&[1, 100, 1 << 20]),
            inflight: rng.pick(&[1, 3, 256]),
            inflight_bytes: rng.pick(&[1, 300, 8 << 20]),
            uncommitted_bytes: rng.pick(&[16, 200, 64 << 20]),
            committed_bytes: rng.pick(&[1, 200, 16 << 20]),
            cache_bytes: rng.pick(&[0, 200, 4 << 20]),
            reads: rng.pick(&[2, 1 << 16]),
        }
    }

    fn config(&self, rng: &mut Rng, id: ReplicaId, has_lease: bool) -> Config {
        Config {
            election_timeout_ticks_min: self.election_min,
            election_timeout_ticks_max: self.election_max,
            heartbeat_ticks: self.heartbeat,
            pre_vote: if self.is_mixed && !self.pre_vote {
                rng.chance(50)
            } else {
                self.pre_vote
            },
            // As in etcd-raft, a replica that does neither cannot find back to a group in which
            // others check their quorum.
            check_quorum: if self.is_mixed && self.pre_vote && !has_lease {
                rng.chance(50)
            } else {
                self.check_quorum
            },
            step_down_on_removal: self.step_down,
            lease_ticks: self.lease,
            applies_after_sync: self.is_sync,
            change_after_own_commit: self.own_commit_first,
            change_done_when_applied: self.done_when_applied,
            quiesce_timeouts: self.quiesce,
            message_bytes_max: self.message_bytes,
            inflight_messages_max: self.inflight,
            inflight_bytes_max: self.inflight_bytes,
            uncommitted_bytes_max: self.uncommitted_bytes,
            committed_bytes_per_ready_max: self.committed_bytes,
            cache_bytes_max: self.cache_bytes,
            reads_max: self.reads,
            ..Config::new(group(), id, 0)
        }
    }
}
