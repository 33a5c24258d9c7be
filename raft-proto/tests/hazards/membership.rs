//! Membership: hazards 1 to 6.

use crate::net::{Net, change, changes, index, replica, voters};
use crate::plain;
use raft_proto::{
    ChangeKind, Config, DropReason, EntryId, Index, Membership, MembershipChange, ProposeError,
    Refused, Role, SnapshotMeta, Transition,
};

#[test]
fn hazard_1_no_change_before_an_entry_of_the_own_term_is_committed() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    // Two takes over, and nothing of its term reaches anybody.
    net.elect_unheard(2);
    let refused = net
        .raft(2)
        .propose_membership(change(ChangeKind::AddVoter, 4));
    assert_eq!(refused, Err(ProposeError::ChangePending));
    net.tick(2, 1);
    net.settle();
    net.raft(2)
        .propose_membership(change(ChangeKind::AddVoter, 4))
        .expect("the term has a committed entry now");
}

#[test]
fn hazard_2_a_slow_state_machine_does_not_delay_the_switch() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.node(1).is_apply_slow = true;
    let joint = changes(&[(ChangeKind::AddVoter, 4), (ChangeKind::Remove, 3)]);
    net.raft(1)
        .propose_membership(joint)
        .expect("nothing is pending");
    net.add(4, voters(&[1, 2, 3]), plain);
    net.settle();
    // The joint configuration was entered and left without a word from the state machine.
    assert_eq!(net.raft(1).applied_index(), Index::new(1));
    assert_eq!(net.raft(1).membership().voters, voters(&[1, 2, 4]).voters);
    assert!(!net.raft(1).membership().is_joint());
}

#[test]
fn hazard_2_a_state_machine_far_behind_does_not_delay_the_switch_either() {
    // With nothing in memory either: the entry that is switched to is asked for by itself.
    for cache_bytes_max in [1 << 20, 0] {
        let narrow = |config: &mut Config| {
            plain(config);
            config.committed_bytes_per_ready_max = 1;
            config.cache_bytes_max = cache_bytes_max;
        };
        let mut net = Net::new(&[1, 2, 3], narrow);
        net.elect(1);
        net.node(1).is_apply_slow = true;
        for command in ["a", "b", "c"] {
            net.propose(1, command).expect("it leads");
        }
        net.settle();
        let handed = net.node(1).handed;
        let joint = changes(&[(ChangeKind::AddVoter, 4), (ChangeKind::Remove, 3)]);
        net.raft(1)
            .propose_membership(joint)
            .expect("nothing is pending");
        net.add(4, voters(&[1, 2, 3]), plain);
        net.settle();
        // Entered and left, though not one more entry was handed out.
        assert_eq!(
            net.node(1).handed,
            handed,
            "it waits for what was handed out"
        );
        assert_eq!(net.raft(1).membership().voters, voters(&[1, 2, 4]).voters);
        assert!(!net.raft(1).membership().is_joint());
        net.raft(1)
            .propose_membership(change(ChangeKind::AddLearner, 3))
            .expect("the last change is done with");
        net.settle();
        // The state machine comes after, entry by entry, with the membership of each.
        let mut seen = Vec::new();
        let last = net.raft(1).last_index();
        while net.node(1).handed < last {
            let handed = net.node(1).handed;
            net.raft(1).applied(handed);
            net.settle();
            let membership = &net.node(1).disk.applied.membership;
            seen.push((membership.is_joint(), membership.replicas().len()));
        }
        seen.dedup();
        assert_eq!(seen, [(false, 3), (true, 4), (false, 3), (false, 4)]);
        let applied = net.node(1).disk.applied.membership.clone();
        assert_eq!(*net.raft(1).membership(), applied);
    }
}

#[test]
fn hazard_2_no_campaign_while_a_committed_change_is_not_switched_to() {
    // etcd's rule, where a change is done with when the state machine has passed it.
    let mut net = Net::new(&[1, 2, 3], |config| config.change_done_when_applied = true);
    net.elect(1);
    net.node(2).is_apply_slow = true;
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("nothing is pending");
    net.settle();
    assert_eq!(
        net.raft(2).campaign(),
        Err(Refused::Dropped {
            reason: DropReason::NotPromotable
        })
    );
    let handed = net.node(2).handed;
    net.raft(2).applied(handed);
    net.raft(2).campaign().expect("it is done with");
}

#[test]
fn hazard_2_elections_in_each_phase_of_a_joint_change_need_both_majorities() {
    for explicit_leave in [false, true] {
        let mut net = Net::new(&[1, 2, 3], plain);
        for id in [4, 5] {
            net.add(id, voters(&[1, 2, 3]), plain);
        }
        net.elect(1);
        let mut joint = changes(&[
            (ChangeKind::AddVoter, 4),
            (ChangeKind::AddVoter, 5),
            (ChangeKind::Remove, 2),
            (ChangeKind::Remove, 3),
        ]);
        joint.transition = Transition::Explicit;
        net.raft(1)
            .propose_membership(joint)
            .expect("nothing is pending");
        net.settle();
        net.tick_all(2);
        assert!(net.raft(1).membership().is_joint());
        if explicit_leave {
            net.raft(1)
                .propose_membership(MembershipChange::default())
                .expect("it is joint");
            net.settle();
            net.tick_all(2);
            assert!(!net.raft(4).membership().is_joint());
        }
        // The old majority alone elects nobody while the change is joint or done.
        net.cut_off(4);
        net.cut_off(5);
        net.cut_off(1);
        net.raft(2).campaign().ok();
        net.settle();
        assert!(!net.leaders().contains(&2), "left: {explicit_leave}");
        // The new majority alone does, once the joint configuration is left.
        net.heal();
        for id in [1, 2, 3] {
            net.cut_off(id);
        }
        net.raft(4).campaign().expect("it is a voter");
        net.settle();
        assert_eq!(net.leaders().contains(&4), explicit_leave);
    }
}

#[test]
fn hazard_3_a_new_leader_takes_every_entry_it_found_for_a_change() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut.insert((1, 3));
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("nothing is pending");
    // Two has the change and nobody has committed it.
    net.pump(1);
    let to_two: Vec<_> = net.take(|message| message.to == replica(2));
    for message in to_two {
        net.deliver(message);
    }
    net.pump(2);
    net.mail.clear();
    net.heal();
    net.cut_off(1);
    net.raft(2).campaign().expect("it may stand");
    net.pump(2);
    while net.raft(2).role() != Role::Leader {
        assert!(net.deliver_one());
        net.pump(2);
        net.pump(3);
    }
    assert_eq!(
        net.raft(2)
            .propose_membership(change(ChangeKind::AddLearner, 5)),
        Err(ProposeError::ChangePending)
    );
    net.settle();
    assert!(net.raft(2).membership().learners.contains(&replica(4)));
    net.raft(2)
        .propose_membership(change(ChangeKind::AddLearner, 5))
        .expect("the found one is done with");
}

#[test]
fn hazard_4_an_overwritten_change_leaves_no_trace() {
    for restart in [false, true] {
        let mut net = Net::new(&[1, 2, 3], plain);
        net.elect(1);
        net.cut_off(1);
        net.raft(1)
            .propose_membership(change(ChangeKind::Remove, 3))
            .expect("nothing is pending");
        net.settle();
        if restart {
            net.restart(1);
        }
        net.elect(2);
        net.propose(2, "x").expect("two leads");
        net.settle();
        net.heal();
        net.tick_all(2);
        assert_eq!(net.node(1).texts(), ["x"]);
        assert_eq!(net.raft(1).membership().voters, voters(&[1, 2, 3]).voters);
        if restart {
            net.restart(1);
        }
        // And it does not stand in the way of a candidacy.
        net.elect(1);
        assert_eq!(net.raft(1).membership().voters, voters(&[1, 2, 3]).voters);
    }
}

#[test]
fn hazard_5_a_learner_that_is_a_voter_and_does_not_know_it_votes() {
    let start = Membership {
        learners: [replica(3)].into(),
        ..voters(&[1, 2])
    };
    let mut net = Net::with_membership(&[1, 2, 3], &start, plain);
    net.elect(1);
    // Three is promoted, and hears nothing of it.
    net.cut_off(3);
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 3))
        .expect("nothing is pending");
    net.settle();
    net.tick_all(1);
    assert!(net.raft(2).membership().is_voter(replica(3)));
    assert!(!net.raft(3).membership().is_voter(replica(3)));
    // One dies. Two needs three's vote, and gets it.
    net.heal();
    net.cut_off(1);
    net.elect(2);
    assert!(net.raft(3).membership().is_voter(replica(3)));
}

#[test]
fn hazard_6_a_leader_removed_commits_its_removal_and_steps_down() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 1))
        .expect("nothing is pending");
    net.settle();
    assert_eq!(net.raft(1).role(), Role::Follower);
    assert_eq!(net.raft(2).membership().voters, voters(&[2, 3]).voters);
    // It does not stand again, and the others elect one of themselves.
    net.tick_all(100);
    let leaders = net.leaders();
    assert_eq!(leaders.len(), 1);
    assert_ne!(leaders, [1]);
}

#[test]
fn hazard_6_a_removed_leader_does_not_count_itself() {
    let mut net = Net::new(&[1, 2, 3], |config| config.step_down_on_removal = false);
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 1))
        .expect("nothing is pending");
    net.settle();
    assert_eq!(net.raft(1).role(), Role::Leader, "it was told to stay");
    assert_eq!(net.propose(1, "x"), Err(ProposeError::Removed));
    // What was proposed before its removal needs both of the others.
    let mut net = Net::new(&[1, 2, 3], |config| config.step_down_on_removal = false);
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 1))
        .expect("nothing is pending");
    net.propose(1, "late").expect("it leads");
    net.cut_off(3);
    // Two alone cannot commit the late entry once one is gone from the configuration.
    net.pump(1);
    net.settle();
    assert_eq!(net.raft(1).commit(), Index::new(2));
    net.heal();
    net.tick_all(2);
    assert_eq!(net.node(2).texts(), ["late"]);
}

#[test]
fn hazard_6_the_leader_crashes_at_each_message_of_its_removal() {
    for delivered in 0..40 {
        let mut net = Net::new(&[1, 2, 3], plain);
        net.elect(1);
        net.raft(1)
            .propose_membership(change(ChangeKind::Remove, 1))
            .expect("nothing is pending");
        for _ in 0..delivered {
            for id in 1..=3 {
                net.pump(id);
            }
            net.deliver_one();
        }
        net.node(1).is_down = true;
        net.mail.clear();
        net.tick_all(60);
        let leaders = net.leaders();
        assert_eq!(leaders.len(), 1, "after {delivered} messages");
        net.propose(leaders[0], "x").expect("it leads");
        net.settle();
        net.tick_all(2);
        assert_eq!(net.node(leaders[0]).texts(), ["x"]);
        let of_two = net.raft(2).membership().voters.clone();
        assert_eq!(of_two, net.raft(3).membership().voters);
    }
}

#[test]
fn hazard_2_the_commit_index_kept_with_the_entries_holds_off_an_old_majority() {
    let mut net = Net::new(&[1, 2, 3], plain);
    for id in [4, 5] {
        net.add(id, voters(&[1, 2, 3]), plain);
    }
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 4))
        .expect("nothing is pending");
    net.settle();
    net.tick_all(2);
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 5))
        .expect("nothing is pending");
    net.pump(1);
    for _ in 0..3 {
        net.deliver_one();
    }
    for id in [2, 3, 4] {
        net.pump(id);
    }
    // The change is committed; two and three hold its entry and do not hear that.
    let to_old = [1, 4, 5].map(|from| [(from, 2), (from, 3)]);
    net.cut.extend(to_old.into_iter().flatten());
    net.settle();
    net.tick_all(2);
    net.cut
        .extend([1, 4, 5].map(|to| [(2, to), (3, to)]).into_iter().flatten());
    net.propose(1, "x").expect("it leads");
    net.settle();
    assert_eq!(net.node(1).texts(), ["x"], "committed by 1, 4 and 5");
    for id in [2, 3] {
        // The state machine kept nothing, the log all: of the first change the replica knows that it
        // is committed, because that came with the entry of the second.
        net.node(id).disk.applied = SnapshotMeta {
            id: EntryId::ZERO,
            membership: voters(&[1, 2, 3]),
        };
        net.restart(id);
        assert_eq!(net.raft(id).commit(), index(2));
        net.raft(id)
            .campaign()
            .expect_err("the first change is to be switched to");
    }
    net.settle();
    net.raft(2).campaign().expect("it has switched");
    net.settle();
    assert_eq!(
        net.raft(2).role(),
        Role::Candidate,
        "two of four are no quorum"
    );
    assert_eq!(net.node(1).texts(), ["x"]);
}

#[test]
fn hazard_2_a_new_leader_with_a_slow_state_machine_leaves_a_joint_membership() {
    let narrow = |config: &mut Config| config.committed_bytes_per_ready_max = 1;
    let mut net = Net::new(&[1, 2, 3], narrow);
    net.add(4, voters(&[1, 2, 3]), narrow);
    net.elect(1);
    for id in 1..=3 {
        net.node(id).is_apply_slow = true;
    }
    for command in ["a", "b"] {
        net.propose(1, command).expect("it leads");
    }
    net.settle();
    // The membership is joint, and a command follows; the leader is lost before it leaves it.
    let both = changes(&[(ChangeKind::AddVoter, 4), (ChangeKind::Remove, 3)]);
    net.raft(1).propose_membership(both).expect("none pending");
    let joint = net.raft(1).last_index();
    net.propose(1, "c").expect("it leads");
    for _ in 0..200 {
        for id in 1..=4 {
            if id != 1 || net.raft(1).commit() < joint {
                net.pump(id);
            }
        }
        if net.mail.is_empty() {
            break;
        }
        net.deliver_one();
    }
    net.node(1).is_down = true;
    net.mail.clear();
    net.raft(2).campaign().expect("it may stand");
    net.settle();
    net.tick_all(30);
    assert_eq!(net.leaders(), [2]);
    assert!(net.raft(2).applied_index() < joint, "it is slow");
    let membership = net.raft(2).membership();
    assert!(membership.index > joint && !membership.is_joint());
}
