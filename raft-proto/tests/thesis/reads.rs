//! §6.4 (reads that bypass the log), §6.4.1 (leases).

use crate::led_group;
use crate::net::{Net, index, plain, read_dropped, replica};
use raft_proto::{Body, DropReason, ReadState, Role};

#[test]
fn thesis_6_4_a_read_is_served_at_the_commit_index_of_when_it_was_asked() {
    let mut net = led_group();
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    net.propose(1, "b").expect("it leads");
    net.settle();
    let user = 7;
    assert_eq!(
        net.node(1).reads,
        [ReadState {
            user,
            index: index(2)
        }]
    );
}

#[test]
fn thesis_6_4_a_read_waits_for_the_first_commit_of_the_term() {
    let mut net = led_group();
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.elect_unheard(2);
    net.raft(2).read_index(7).expect("it leads");
    net.pump(2);
    assert!(
        !net.mail
            .iter()
            .any(|said| matches!(said.body, Body::Heartbeat { .. }))
    );
    assert!(net.node(2).reads.is_empty());
    net.tick(2, 1);
    net.settle();
    let user = 7;
    assert_eq!(
        net.node(2).reads,
        [ReadState {
            user,
            index: index(3)
        }]
    );
}

#[test]
fn thesis_6_4_a_leader_that_was_deposed_serves_no_read() {
    let mut net = led_group();
    net.cut_off(1);
    net.elect(2);
    net.propose(2, "new").expect("it leads");
    net.settle();
    net.raft(1).read_index(7).expect("it thinks that it leads");
    net.tick(1, 5);
    net.settle();
    assert_eq!(net.raft(1).role(), Role::Leader);
    assert!(net.node(1).reads.is_empty());
    net.heal();
    net.tick_all(2);
    assert_eq!(net.raft(1).role(), Role::Follower);
    assert!(net.node(1).reads.is_empty());
    let lost = read_dropped(7, DropReason::NotLeader);
    assert_eq!(net.node(1).dropped, [lost]);
}

#[test]
fn thesis_6_4_one_round_serves_all_reads_that_wait() {
    let mut net = led_group();
    for user in 0..100 {
        net.raft(1).read_index(user).expect("it leads");
    }
    net.pump(1);
    let heartbeats = net
        .mail
        .iter()
        .filter(|said| matches!(said.body, Body::Heartbeat { .. }));
    assert_eq!(heartbeats.count(), 2, "one to each follower");
    net.settle();
    let users: Vec<u64> = net.node(1).reads.iter().map(|read| read.user).collect();
    assert_eq!(users, (0..100).collect::<Vec<u64>>());
}

#[test]
fn thesis_6_4_a_follower_asks_the_leader_for_the_index_and_serves_the_read_itself() {
    let mut net = led_group();
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.raft(3).read_index(7).expect("it knows the leader");
    net.settle();
    let user = 7;
    assert_eq!(
        net.node(3).reads,
        [ReadState {
            user,
            index: index(2)
        }]
    );
    assert!(net.node(1).reads.is_empty());
}

fn leased() -> Net {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.check_quorum = true;
        config.lease_ticks = 8;
    });
    net.elect(1);
    net.tick_all(2);
    net
}

#[test]
fn thesis_6_4_1_within_its_lease_a_leader_serves_reads_alone() {
    let mut net = leased();
    assert!(net.raft(1).has_lease());
    net.cut_off(1);
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    assert_eq!(net.node(1).reads.len(), 1);
}

#[test]
fn thesis_6_4_1_a_lease_counts_from_the_sending_of_its_round_and_ends() {
    let mut net = leased();
    net.cut_off(1);
    net.tick(1, 7);
    assert!(net.raft(1).has_lease());
    net.tick(1, 1);
    assert!(
        !net.raft(1).has_lease(),
        "eight ticks after the round was sent"
    );
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    assert!(net.node(1).reads.is_empty());
}

#[test]
fn thesis_6_4_1_nobody_else_is_elected_within_a_lease() {
    let mut net = leased();
    net.cut_off(1);
    for _ in 0..8 {
        for id in [2, 3] {
            net.raft(id).campaign().ok();
            net.settle();
        }
        let other = net.leaders().iter().any(|&id| id != 1);
        assert!(!(net.raft(1).has_lease() && other));
        net.tick_all(1);
    }
    assert!(!net.raft(1).has_lease());
}

#[test]
fn thesis_6_4_1_a_lease_ends_with_the_handing_over() {
    let mut net = leased();
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    assert!(!net.raft(1).has_lease());
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.tick_all(2);
    assert!(!net.raft(1).has_lease(), "no lease where none is set");
}
