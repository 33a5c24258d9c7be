//! Promotion and demotion in both directions, and changes in order.

use std::collections::BTreeSet;

use crate::net::{Net, change, changes, index, plain, replica, voters};
use raft_proto::{
    ChangeKind, Index, MEMBERSHIP_BYTES_MAX, Membership, MembershipChange, MembershipError,
    ProposeError, Role,
};

fn ids(set: &BTreeSet<raft_proto::ReplicaId>) -> Vec<u64> {
    set.iter().map(|id| id.get()).collect()
}

fn with_learner() -> Membership {
    let mut membership = voters(&[1, 2, 3]);
    membership.learners.insert(replica(4));
    membership
}

fn change_all(net: &mut Net, leader: u64, change: MembershipChange) {
    net.raft(leader)
        .propose_membership(change)
        .expect("nothing is pending");
    net.settle();
    net.tick_all(2);
}

#[test]
fn a_learner_is_promoted_and_a_voter_demoted_one_at_a_time() {
    let mut net = Net::with_membership(&[1, 2, 3, 4], &with_learner(), plain);
    net.elect(1);
    change_all(&mut net, 1, change(ChangeKind::AddVoter, 4));
    for id in 1..=4 {
        assert_eq!(ids(&net.raft(id).membership().voters), [1, 2, 3, 4]);
        assert!(net.raft(id).membership().learners.is_empty());
    }
    change_all(&mut net, 1, change(ChangeKind::AddLearner, 2));
    for id in 1..=4 {
        assert_eq!(ids(&net.raft(id).membership().voters), [1, 3, 4]);
        assert_eq!(ids(&net.raft(id).membership().learners), [2]);
    }
    // What each may do follows: four leads, two never.
    assert!(net.raft(2).campaign().is_err());
    net.elect(4);
    net.propose(4, "by the promoted one").expect("it leads");
    net.settle();
    net.tick_all(1);
    assert_eq!(net.node(2).texts(), ["by the promoted one"]);
    // And back again.
    change_all(&mut net, 4, change(ChangeKind::AddVoter, 2));
    change_all(&mut net, 4, change(ChangeKind::AddLearner, 1));
    assert_eq!(ids(&net.raft(2).membership().voters), [2, 3, 4]);
    net.elect(2);
}

#[test]
fn both_directions_at_once_go_by_way_of_a_joint_membership() {
    let mut net = Net::with_membership(&[1, 2, 3, 4], &with_learner(), plain);
    net.elect(1);
    change_all(
        &mut net,
        1,
        changes(&[(ChangeKind::AddVoter, 4), (ChangeKind::AddLearner, 3)]),
    );
    for id in 1..=4 {
        let membership = net.raft(id).membership();
        assert_eq!(ids(&membership.voters), [1, 2, 4]);
        assert_eq!(ids(&membership.learners), [3]);
        assert!(!membership.is_joint());
    }
}

#[test]
fn a_leader_that_is_demoted_steps_down_and_follows_as_a_learner() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    change_all(&mut net, 1, change(ChangeKind::AddLearner, 1));
    assert_eq!(net.raft(1).role(), Role::Follower);
    assert_eq!(ids(&net.raft(1).membership().learners), [1]);
    net.elect(2);
    net.propose(2, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    assert_eq!(net.node(1).texts(), ["a"], "as a learner");
    assert!(net.raft(1).next_deadline().is_none(), "it never stands");
}

#[test]
fn of_two_who_change_the_same_membership_one_looks_again() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let seen = net.raft(1).membership().index;
    let entry = net
        .raft(1)
        .propose_membership_at(seen, change(ChangeKind::AddLearner, 4))
        .expect("it is the current one");
    // Not applied yet: the second is told to wait.
    assert_eq!(
        net.raft(1)
            .propose_membership_at(seen, change(ChangeKind::AddLearner, 5)),
        Err(ProposeError::ChangePending)
    );
    net.settle();
    assert_eq!(net.raft(1).membership().index, entry.index);
    // Applied: what it was made for is no longer there, and nothing is appended.
    let last = net.raft(1).last_index();
    assert_eq!(
        net.raft(1)
            .propose_membership_at(seen, change(ChangeKind::AddLearner, 5)),
        Err(ProposeError::MembershipMoved {
            expected: seen,
            current: entry.index
        })
    );
    assert_eq!(
        net.raft(1)
            .propose_membership_at(Index::new(99), change(ChangeKind::AddLearner, 5)),
        Err(ProposeError::MembershipMoved {
            expected: Index::new(99),
            current: entry.index
        })
    );
    assert_eq!(net.raft(1).last_index(), last);
    net.raft(1)
        .propose_membership_at(entry.index, change(ChangeKind::AddLearner, 5))
        .expect("it looked again");
    net.settle();
    assert_eq!(ids(&net.raft(1).membership().learners), [4, 5]);
}

#[test]
fn each_index_of_a_membership_is_that_of_its_entry_on_every_replica() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let mut seen = vec![Index::ZERO];
    for id in [4, 5, 6] {
        let entry = net
            .raft(1)
            .propose_membership(change(ChangeKind::AddLearner, id))
            .expect("nothing is pending");
        net.settle();
        net.tick_all(1);
        assert!(entry.index > *seen.last().expect("there is a first one"));
        for replica in 1..=3 {
            assert_eq!(net.raft(replica).membership().index, entry.index);
        }
        seen.push(entry.index);
    }
    net.restart(2);
    net.settle();
    net.tick_all(1);
    assert_eq!(net.raft(2).membership().index, index(4));
}

#[test]
fn a_change_that_nobody_could_read_back_is_refused() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let large = |context_bytes: usize| MembershipChange {
        context: vec![0; context_bytes].into(),
        ..change(ChangeKind::AddLearner, 4)
    };
    let last = net.raft(1).last_index();
    let refused = net
        .raft(1)
        .propose_membership(large(MEMBERSHIP_BYTES_MAX + 1));
    assert_eq!(
        refused,
        Err(ProposeError::Change(MembershipError::TooLarge))
    );
    assert_eq!(net.raft(1).last_index(), last, "nothing was appended");
    let fits = large(MEMBERSHIP_BYTES_MAX - 64);
    net.raft(1).propose_membership(fits).expect("it fits");
    net.settle();
    assert!(net.raft(2).membership().learners.contains(&replica(4)));
}
