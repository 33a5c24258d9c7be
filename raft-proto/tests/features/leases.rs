//! Leases, and what would break one.

use crate::dropped;
use crate::net::{Net, message, replica};
use raft_proto::{Body, Config, DropReason, Raft, Role, WhyNoLeader};

const LEASE: u64 = 8;

fn leased(set: impl Fn(&mut Config)) -> Net {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.check_quorum = true;
        config.pre_vote = true;
        config.lease_ticks = LEASE;
        set(config);
    });
    net.elect(1);
    net.tick_all(1);
    assert!(net.raft(1).has_lease());
    net
}

/// Replicas 2 and 3, cut off from the leader within its lease, are told to stand one after the
/// other. Whether one of them was elected.
fn both_stand(net: &mut Net) -> bool {
    net.cut_off(1);
    for id in [3, 2] {
        net.raft(id).campaign().ok();
        net.settle();
    }
    assert!(net.raft(1).has_lease());
    net.raft(2).role() == Role::Leader
}

#[test]
fn nobody_stands_against_a_lease_that_it_granted() {
    for pre_vote in [true, false] {
        let mut net = leased(|config| config.pre_vote = pre_vote);
        assert!(!both_stand(&mut net), "a second leader within the lease");
        for id in [2, 3] {
            let before = net.raft(id).hard_state();
            assert_eq!(
                net.raft(id).campaign(),
                dropped(DropReason::LeaseHeld),
                "replica {id}"
            );
            assert_eq!(net.raft(id).hard_state(), before);
            assert_eq!(net.raft(id).leader(), Some(replica(1)));
        }
        // It ends as they hear nothing more.
        net.tick(2, LEASE);
        net.raft(2).campaign().expect("the lease is over");
    }
}

#[test]
fn standing_within_a_lease_as_etcd_raft_does_breaks_it() {
    let mut net = leased(|config| config.campaign_within_lease = true);
    assert!(both_stand(&mut net), "why it is off by default");
}

#[test]
fn who_is_told_to_stand_by_its_leader_breaks_no_lease() {
    let mut net = leased(|_| {});
    net.raft(1).transfer_leader(replica(3)).expect("a voter");
    assert!(!net.raft(1).has_lease());
    net.settle();
    assert_eq!(net.leaders(), [3]);
}

#[test]
fn a_restarted_replica_stands_when_what_it_granted_is_over() {
    let mut net = leased(|_| {});
    net.restart(2);
    for _ in 0..LEASE {
        assert_eq!(net.raft(2).campaign(), dropped(DropReason::LeaseHeld));
        net.tick(2, 1);
    }
    net.raft(2).campaign().expect("the lease is over");
}

#[test]
fn a_lowered_lease_is_waited_for_as_long_as_it_was() {
    let mut net = leased(|_| {});
    net.cut_off(1);
    let mut config = net.raft(2).config().clone();
    config.lease_ticks = 0;
    let mut restored = net.node(2).disk.restored();
    restored.lease_ticks = LEASE;
    let mut raft = Raft::new(config, restored, 100).expect("valid settings");
    let ask = || {
        let last = crate::net::entry_id(1, 1);
        message(3, 2, 2, Body::PreVote { last })
    };
    raft.advance_to(100 + LEASE - 1);
    let lease = dropped(DropReason::LeaseHeld);
    assert_eq!(raft.handle_message(ask()), lease);
    assert_eq!(raft.campaign(), dropped(DropReason::LeaseHeld));
    raft.advance_to(100 + LEASE);
    assert_eq!(raft.handle_message(ask()), Ok(()));
}

#[test]
fn a_lease_longer_than_the_election_timeout_only_delays_the_next_leader() {
    const OLD: u64 = 30;
    let mut net = leased(|config| {
        config.election_timeout_ticks_min = 10;
        config.election_timeout_ticks_max = 20;
    });
    // The settings were lowered, and what the last life granted was longer than a timeout is now.
    for id in 1..=3 {
        let config = net.raft(id).config().clone();
        let mut restored = net.node(id).disk.restored();
        restored.lease_ticks = OLD;
        *net.raft(id) = Raft::new(config, restored, 0).expect("valid settings");
    }
    net.tick_all(OLD);
    net.elect(1);
    net.tick_all(1);
    net.cut_off(1);
    for _ in 1..OLD {
        net.tick_all(1);
        for id in [2, 3] {
            assert_ne!(net.raft(id).role(), Role::Leader, "within the lease");
            let last = crate::net::entry_id(1, 1);
            let stranger = message(9, id, 9, Body::PreVote { last });
            net.raft(id)
                .handle_message(stranger)
                .expect_err("it is held");
        }
    }
    assert_eq!(net.raft(2).leader(), None, "it knows that it hears nothing");
    assert!(matches!(
        net.raft(2).why_no_leader(),
        Some(WhyNoLeader::LeaseHeld { .. })
    ));
    for _ in 0..200 {
        net.tick_all(1);
    }
    assert!(
        [2, 3].iter().any(|&id| net.raft(id).role() == Role::Leader),
        "the lease is over at some time: {:?}",
        net.raft(2).why_no_leader()
    );
}

#[test]
fn a_word_of_rest_that_comes_late_breaks_no_lease() {
    let mut net = leased(|config| config.quiesce_timeouts = 2);
    net.cut.insert((1, 3));
    net.cut.insert((3, 1));
    let mut late = Vec::new();
    while !net.raft(1).is_quiet() {
        for id in 1..=3 {
            net.tick(id, 1);
        }
        late.extend(net.take(|sent| matches!(sent.body, Body::Quiesce { .. })));
        net.settle();
    }
    net.raft(1).read_index(1).expect("it leads");
    net.settle();
    assert!(net.raft(1).has_lease(), "it woke, and 2 confirmed");
    for sent in late.into_iter().filter(|sent| sent.to == replica(2)) {
        net.raft(2).handle_message(sent).ok();
    }
    net.cut_off(1);
    assert_eq!(net.raft(2).campaign(), dropped(DropReason::LeaseHeld));
    assert!(net.raft(1).has_lease());
}

#[test]
fn a_leader_in_touch_keeps_its_term_at_the_tick_of_its_quorum_check() {
    for pre_vote in [true, false] {
        for ticks in 0..60 {
            let mut net = Net::new(&[1, 2, 3], |config| {
                config.check_quorum = true;
                config.pre_vote = pre_vote;
            });
            net.elect(1);
            net.tick_all(ticks);
            let tick = net.node(1).tick + 1;
            let leader = net.raft(1);
            leader.set_tick(tick);
            let last = crate::net::entry_id(1, 1);
            let is_transfer = false;
            let ask = message(9, 1, 2, Body::Vote { last, is_transfer });
            let refused = leader.handle_message(ask);
            assert_eq!(refused, dropped(DropReason::LeaderAlive), "at tick {tick}");
            leader.advance_to(tick);
            assert_eq!(leader.role(), Role::Leader, "at tick {tick}");
        }
    }
}
