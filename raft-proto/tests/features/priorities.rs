//! Priorities in elections: they delay a candidacy and deny nobody a vote.

use crate::net::{Net, change, index, plain, replica, voters};
use raft_proto::{ChangeKind, Membership, Role, WhyNoLeader};

fn with_priorities(priorities: &[(u64, u8)]) -> Membership {
    let ids: Vec<u64> = priorities.iter().map(|&(id, _)| id).collect();
    let mut membership = voters(&ids);
    membership.priorities = priorities
        .iter()
        .map(|&(id, priority)| (replica(id), priority))
        .collect();
    membership
}

/// After how many election timeouts in a row, nobody else being there, the replica stands.
fn timeouts_until_it_stands(id: u64, priorities: &[(u64, u8)]) -> u64 {
    let membership = with_priorities(priorities);
    let mut net = Net::with_membership(&[id], &membership, |config| {
        config.election_timeout_ticks_max = config.election_timeout_ticks_min;
    });
    let timeout = 10;
    for count in 1..=20 {
        net.tick(id, timeout - 1);
        assert_eq!(net.raft(id).role(), Role::Follower, "within a timeout");
        net.tick(id, 1);
        if net.raft(id).role() == Role::Candidate {
            return count;
        }
    }
    panic!("it never stands");
}

#[test]
fn one_more_timeout_for_each_step_below_the_highest() {
    let three = [(1, 10), (2, 9), (3, 8)];
    assert_eq!(timeouts_until_it_stands(1, &three), 1);
    assert_eq!(timeouts_until_it_stands(2, &three), 2);
    // Two steps below; and what counts is steps, not how far they are apart.
    assert_eq!(timeouts_until_it_stands(3, &three), 3);
    assert_eq!(timeouts_until_it_stands(2, &[(1, 250), (2, 1)]), 2);
    // Equals do not wait for each other, nor does anybody where no priorities are set.
    assert_eq!(timeouts_until_it_stands(2, &[(1, 7), (2, 7)]), 1);
    assert_eq!(timeouts_until_it_stands(2, &[(1, 1), (2, 1)]), 1);
}

#[test]
fn after_two_rounds_the_target_falls_by_a_fifth() {
    // Four steps below 100; after two rounds the target is 80, with two steps left.
    let wide = [(1, 100), (2, 90), (3, 80), (4, 70), (5, 10)];
    assert_eq!(timeouts_until_it_stands(5, &wide), 3);
    // Six steps below 100: two rounds, then 80 (four steps), then 64 (two), which are passed.
    let steps = [
        (1, 100),
        (2, 90),
        (3, 80),
        (4, 70),
        (5, 60),
        (6, 50),
        (7, 10),
    ];
    assert_eq!(timeouts_until_it_stands(7, &steps), 4);
    // However many there are, it ends.
    let many: Vec<(u64, u8)> = (1..=60)
        .map(|id| (id, 200 - u8::try_from(id).expect("small")))
        .collect();
    assert!(timeouts_until_it_stands(60, &many) < 20);
}

#[test]
fn a_vote_is_never_denied_for_a_priority() {
    let membership = with_priorities(&[(1, 100), (2, 50), (3, 1)]);
    let mut net = Net::with_membership(&[1, 2, 3], &membership, |config| {
        config.pre_vote = true;
        config.check_quorum = true;
    });
    net.elect(3);
    assert_eq!(net.raft(1).leader(), Some(replica(3)));
    // It keeps the leadership: priorities take none away.
    net.tick_all(100);
    assert_eq!(net.leaders(), [3]);
}

/// A replica that leaves the candidacy to others gives them its vote, though it is early for it to
/// hear of a candidate: its own timeout has passed.
#[test]
fn one_that_waits_for_a_higher_priority_does_not_hold_it_up() {
    let membership = with_priorities(&[(1, 5), (2, 9), (3, 1)]);
    let mut net = Net::with_membership(&[1, 2, 3], &membership, |config| {
        config.pre_vote = true;
        config.check_quorum = true;
    });
    net.elect(1);
    net.node(1).is_down = true;
    let min = net.raft(2).config().election_timeout_ticks_min;
    net.raft(2).set_election_timeout_ticks(min + 3);
    net.raft(3).set_election_timeout_ticks(min);
    for _ in 0..min + 4 {
        net.tick_all(1);
    }
    assert_eq!(net.leaders(), [2]);
}

#[test]
fn the_highest_that_is_there_leads_first() {
    for lost in [vec![], vec![1]] {
        let membership = with_priorities(&[(1, 9), (2, 6), (3, 3), (4, 2), (5, 1)]);
        let mut net = Net::with_membership(&[1, 2, 3, 4, 5], &membership, |config| {
            config.election_timeout_ticks_max = config.election_timeout_ticks_min + 3;
            config.pre_vote = true;
        });
        for &id in &lost {
            net.node(id).is_down = true;
        }
        for _ in 0..200 {
            net.tick_all(1);
            if !net.leaders().is_empty() {
                break;
            }
        }
        let highest = (1..=5)
            .find(|id| !lost.contains(id))
            .expect("some are left");
        assert_eq!(net.leaders(), [highest], "without {lost:?}");
    }
}

#[test]
fn hearing_of_a_leader_begins_the_waiting_anew() {
    let membership = with_priorities(&[(1, 9), (2, 1)]);
    let mut net = Net::with_membership(&[1, 2], &membership, |config| {
        config.election_timeout_ticks_max = config.election_timeout_ticks_min;
    });
    let rounds = |net: &mut Net| match net.raft(2).why_no_leader() {
        Some(WhyNoLeader::Waiting {
            rounds_left_to_others,
            ..
        }) => rounds_left_to_others,
        other => panic!("{other:?}"),
    };
    net.tick(2, 10);
    assert_eq!(rounds(&mut net), 1);
    net.elect(1);
    net.raft(2).forget_leader().expect("it follows");
    assert_eq!(rounds(&mut net), 0);
}

#[test]
fn a_priority_is_set_by_a_membership_change_and_survives_a_restart() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    for (id, priority) in [(2, 5), (3, 7)] {
        net.raft(1)
            .propose_membership(change(ChangeKind::Prioritise(priority), id))
            .expect("nothing is pending");
        net.settle();
    }
    net.tick_all(1);
    net.restart(3);
    for id in 1..=3 {
        let membership = net.raft(id).membership();
        assert_eq!(membership.priority(replica(1)), 1, "where none was set");
        assert_eq!(membership.priority(replica(2)), 5);
        assert_eq!(membership.priority(replica(3)), 7);
    }
    assert_eq!(net.raft(1).commit(), index(3));
}

#[test]
fn nobody_waits_for_a_witness_which_never_stands() {
    let mut membership = with_priorities(&[(1, 0), (2, 0), (3, 1)]);
    membership.witnesses.insert(replica(3));
    let mut net = Net::with_membership(&[1], &membership, |config| {
        config.election_timeout_ticks_max = config.election_timeout_ticks_min;
    });
    net.tick(1, 10);
    assert_eq!(net.raft(1).role(), Role::Candidate);
}
