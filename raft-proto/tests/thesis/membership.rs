//! §4.1 (one change at a time), §4.2.1 (catching up), §4.2.2 (removing the leader), §4.3 (joint
//! consensus), §11.7.2 (witnesses).
//!
//! A membership takes effect here when it is committed, not when it is appended as the thesis has
//! it: see PROTOCOL.md.

use std::collections::BTreeSet;

use crate::led_group;
use crate::net::{Net, change, changes, index, message, plain, replica, voters};
use raft_proto::{
    Body, Change, ChangeKind, Index, MembershipError, ProposeError, ReplicaId, Role, WhyNoLeader,
};

/// Every set of voters out of `voters` that is a majority.
fn majorities(voters: &BTreeSet<ReplicaId>) -> Vec<BTreeSet<ReplicaId>> {
    let all: Vec<ReplicaId> = voters.iter().copied().collect();
    (0..1_u32 << all.len())
        .map(|bits| {
            let chosen = all.iter().enumerate().filter(|(at, _)| bits >> at & 1 == 1);
            chosen.map(|(_, &id)| id).collect::<BTreeSet<_>>()
        })
        .filter(|chosen| 2 * chosen.len() > all.len())
        .collect()
}

/// Thesis Figure 4.3.
#[test]
fn thesis_4_1_majorities_before_and_after_one_change_share_a_voter() {
    for size in 1..=5_u64 {
        let ids: Vec<u64> = (1..=size).collect();
        let before = voters(&ids);
        let add = |id| (ChangeKind::AddVoter, id);
        let one = (1..=size)
            .map(|id| (ChangeKind::Remove, id))
            .chain([add(size + 1)]);
        for (kind, id) in one {
            let change = Change {
                kind,
                replica: replica(id),
                host: None,
            };
            let Ok(after) = before.simple(Index::new(1), &[change]) else {
                assert_eq!(
                    (size, kind),
                    (1, ChangeKind::Remove),
                    "only the last one stays"
                );
                continue;
            };
            for old in majorities(&before.voters) {
                for new in majorities(&after.membership.voters) {
                    assert!(!old.is_disjoint(&new), "{old:?} and {new:?}");
                }
            }
        }
    }
}

#[test]
fn thesis_4_1_two_voters_at_once_are_no_simple_change() {
    let two = [ChangeKind::AddVoter, ChangeKind::AddVoter];
    let change = |(kind, id)| Change {
        kind,
        replica: replica(id),
        host: None,
    };
    let both: Vec<Change> = two.into_iter().zip([4, 5]).map(change).collect();
    assert_eq!(
        voters(&[1, 2, 3]).simple(Index::new(1), &both),
        Err(MembershipError::NotSimple)
    );
}

#[test]
fn thesis_4_1_the_next_change_waits_for_the_last() {
    let mut net = led_group();
    net.add(4, voters(&[1, 2, 3]), plain);
    net.add(5, voters(&[1, 2, 3]), plain);
    let add = |id| change(ChangeKind::AddVoter, id);
    net.raft(1).propose_membership(add(4)).expect("it leads");
    let second = net.raft(1).propose_membership(add(5));
    assert_eq!(second, Err(ProposeError::ChangePending));
    net.settle();
    net.raft(1).propose_membership(add(5)).expect("four is in");
    net.settle();
    for id in 1..=5 {
        assert_eq!(
            net.raft(id).membership().voters,
            voters(&[1, 2, 3, 4, 5]).voters
        );
    }
}

#[test]
fn thesis_4_2_1_a_new_server_catches_up_before_it_counts() {
    let mut net = led_group();
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.add(4, voters(&[1, 2, 3]), plain);
    assert_eq!(net.raft(4).why_no_leader(), Some(WhyNoLeader::MayNotLead));
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("it leads");
    net.settle();
    assert_eq!(net.node(4).texts(), ["a"]);
    // It holds everything and makes no majority with the leader.
    net.cut_off(2);
    net.cut_off(3);
    net.propose(1, "b").expect("it leads");
    net.settle();
    assert_eq!(net.raft(4).last_index(), net.raft(1).last_index());
    assert!(net.raft(1).commit() < net.raft(1).last_index());
    net.tick(4, 100);
    assert_eq!(net.raft(4).role(), Role::Follower, "nor does it stand");
    // Caught up, it is made a voter.
    net.heal();
    net.tick_all(2);
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 4))
        .expect("it leads");
    net.settle();
    net.cut_off(2);
    net.propose(1, "c").expect("it leads");
    net.settle();
    assert_eq!(
        net.raft(1).commit(),
        net.raft(1).last_index(),
        "three of four"
    );
}

#[test]
fn thesis_4_2_2_departs_a_leader_commits_its_removal_with_its_own_voice_and_steps_down() {
    let mut net = led_group();
    // It is a member until it switches, when the removal is committed: by itself and one other.
    net.cut_off(3);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 1))
        .expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).role(), Role::Follower);
    assert_eq!(net.raft(2).membership().voters, voters(&[2, 3]).voters);
    net.tick(1, 100);
    assert_eq!(net.raft(1).role(), Role::Follower, "it never stands again");
    net.heal();
    net.elect(2);
    net.propose(2, "a").expect("it leads");
    net.settle();
    assert_eq!(net.node(3).texts(), ["a"]);
    assert!(net.node(1).texts().is_empty());
}

#[test]
fn thesis_4_2_2_a_removed_leader_that_stays_takes_no_more_commands() {
    let mut net = Net::new(&[1, 2, 3], |config| config.step_down_on_removal = false);
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 1))
        .expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).role(), Role::Leader);
    assert_eq!(net.propose(1, "a"), Err(ProposeError::Removed));
    // It manages the others until one of them takes over.
    net.tick_all(2);
    let held = net.raft(1).last_index();
    assert_eq!(net.raft(3).commit(), held);
    net.elect(2);
    assert_eq!(net.raft(1).membership().voters, voters(&[2, 3]).voters);
}

#[test]
fn thesis_4_2_3_removed_servers_do_not_depose_the_leader() {
    let mut net = Net::new(&[1, 2, 3, 4], |config| {
        config.pre_vote = true;
        config.check_quorum = true;
    });
    net.elect(1);
    net.cut_off(4);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 4))
        .expect("it leads");
    net.settle();
    let before = net.raft(1).term();
    // Four does not know of it, and asks and asks.
    net.heal();
    net.cut.insert((1, 4));
    net.tick_all(200);
    assert_eq!(net.leaders(), [1]);
    assert_eq!(net.raft(1).term(), before);
}

/// Replicas 1 to 3, on the way to 1, 4 and 5: the entry that makes it joint is committed.
fn joint() -> Net {
    let mut net = led_group();
    for id in [4, 5] {
        net.add(id, voters(&[1, 2, 3]), plain);
    }
    let mut change = changes(&[
        (ChangeKind::AddVoter, 4),
        (ChangeKind::AddVoter, 5),
        (ChangeKind::Remove, 2),
        (ChangeKind::Remove, 3),
    ]);
    change.transition = raft_proto::Transition::Explicit;
    net.raft(1).propose_membership(change).expect("it leads");
    net.settle();
    assert!(net.raft(1).membership().is_joint());
    net
}

#[test]
fn thesis_4_3_a_joint_membership_commits_by_both_majorities() {
    for lost in [[2, 3], [4, 5]] {
        let mut net = joint();
        for id in lost {
            net.cut_off(id);
        }
        net.propose(1, "a").expect("it leads");
        net.settle();
        assert!(
            net.raft(1).commit() < net.raft(1).last_index(),
            "three of five, but of one half a minority, without {lost:?}"
        );
        net.heal();
        net.cut_off(lost[0]);
        net.tick_all(2);
        assert_eq!(net.raft(1).commit(), net.raft(1).last_index());
    }
}

#[test]
fn thesis_4_3_a_joint_membership_elects_by_both_majorities() {
    for (yes, wins) in [
        (vec![2, 3], false),
        (vec![4, 5], false),
        (vec![2], false),
        (vec![2, 4], true),
        (vec![3, 5], true),
    ] {
        let mut net = joint();
        net.restart(1);
        net.raft(1).campaign().expect("it may stand");
        net.pump(1);
        let term = net.raft(1).term().get();
        for id in yes.clone() {
            net.deliver(message(
                id,
                1,
                term,
                Body::VoteResponse { is_rejected: false },
            ));
        }
        assert_eq!(net.raft(1).role() == Role::Leader, wins, "{yes:?}");
    }
}

#[test]
fn thesis_4_3_leaving_the_joint_membership_ends_the_old_one() {
    let mut net = joint();
    net.raft(1)
        .propose_membership(Default::default())
        .expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).membership().voters, voters(&[1, 4, 5]).voters);
    assert!(!net.raft(1).membership().is_joint());
    for id in [2, 3] {
        net.cut_off(id);
    }
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert_eq!(net.node(4).texts(), ["a"]);
}

#[test]
fn thesis_11_7_2_a_witness_votes_and_holds_places_but_no_commands() {
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(replica(3));
    let mut net = Net::with_membership(&[1, 2, 3], &membership, plain);
    net.elect(1);
    net.node(2).is_down = true;
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert_eq!(
        net.raft(1).commit(),
        index(2),
        "one and the witness are two of three"
    );
    let held = &net.node(3).disk.log;
    let entry = held
        .last()
        .expect("it holds the place")
        .iter()
        .next()
        .expect("an entry");
    assert!(entry.is_without_command() && entry.payload().is_empty());
    assert_eq!(entry.index(), index(2));
    // It never leads, and lets nobody lead who lacks what it vouched for.
    net.tick(3, 100);
    assert_eq!(net.raft(3).role(), Role::Follower);
    net.restart(2);
    net.node(1).is_down = true;
    net.raft(2).campaign().expect("it may stand");
    net.settle();
    assert_eq!(net.raft(2).role(), Role::Candidate);
    net.node(1).is_down = false;
    net.tick_all(40);
    assert_eq!(net.node(2).texts(), ["a"]);
}

#[test]
fn thesis_11_7_2_no_quorum_consists_of_witnesses_alone() {
    let mut membership = voters(&[1]);
    for (id, is_taken) in [(2, true), (3, false)] {
        let kind = ChangeKind::AddWitness;
        let change = Change {
            kind,
            replica: replica(id),
            host: None,
        };
        match membership.simple(Index::new(id), &[change]) {
            Ok(changed) if is_taken => membership = changed.membership,
            Err(MembershipError::TooManyWitnesses) if !is_taken => {}
            other => panic!("{other:?}"),
        }
    }
}
