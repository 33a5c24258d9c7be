//! Groups that fall quiet when nothing is to be done, and wake.

use std::collections::VecDeque;

use crate::net::{Net, change, group, index, read_dropped, replica, voters};
use crate::status;
use raft_proto::{
    Body, ChangeKind, Config, DropReason, GroupId, MembershipChange, Message, Raft, ReadState,
    Restored, Role, Transition,
};

const TIMEOUT: u64 = 10;

fn set(config: &mut Config) {
    config.quiesce_timeouts = 2;
    config.pre_vote = true;
    config.check_quorum = true;
}

fn led() -> Net {
    let mut net = Net::new(&[1, 2, 3], set);
    net.elect(1);
    net
}

fn quiet() -> Net {
    let mut net = led();
    net.tick_all(2 * TIMEOUT + 1);
    assert!(is_all_quiet(&mut net), "two election timeouts without work");
    net
}

fn is_all_quiet(net: &mut Net) -> bool {
    (1..=3).all(|id| net.raft(id).is_quiet())
}

#[test]
fn a_group_falls_quiet_after_two_timeouts_without_work_and_not_before() {
    let mut net = led();
    net.tick_all(2 * TIMEOUT - 1);
    assert!((1..=3).all(|id| !net.raft(id).is_quiet()));
    net.tick_all(1);
    assert!(is_all_quiet(&mut net));
    for id in 1..=3 {
        assert_eq!(net.raft(id).next_deadline(), None, "time has nothing to do");
    }
    // Nobody says anything however long it is, and nobody stands.
    net.tick_all(50 * TIMEOUT);
    assert!(net.mail.is_empty() && is_all_quiet(&mut net));
    assert_eq!(net.leaders(), [1]);
}

#[test]
fn work_puts_it_off() {
    let mut net = led();
    for _ in 0..6 {
        net.tick_all(TIMEOUT);
        net.propose(1, "work").expect("it leads");
        net.settle();
        assert!(!net.raft(1).is_quiet());
    }
    net.tick_all(2 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
}

#[test]
fn a_proposal_wakes_it() {
    let mut net = quiet();
    net.propose(1, "a").expect("it leads");
    assert!(!net.raft(1).is_quiet());
    net.settle();
    assert!((1..=3).all(|id| !net.raft(id).is_quiet()));
    net.tick_all(1);
    assert_eq!(net.node(3).texts(), ["a"]);
    net.tick_all(2 * TIMEOUT);
    assert!(is_all_quiet(&mut net), "and it falls quiet again");
}

#[test]
fn a_read_wakes_it_wherever_it_is_asked() {
    for at in [1, 3] {
        let mut net = quiet();
        net.raft(at).read_index(7).expect("there is a leader");
        assert!(!net.raft(at).is_quiet());
        net.settle();
        let state = ReadState {
            user: 7,
            index: index(1),
        };
        assert_eq!(net.node(at).reads, [state]);
        assert!(!net.raft(1).is_quiet());
    }
}

#[test]
fn a_membership_change_a_transfer_and_a_request_for_a_snapshot_wake_it() {
    let mut net = quiet();
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("nothing is pending");
    assert!(!net.raft(1).is_quiet());
    let mut net = quiet();
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    assert!(!net.raft(1).is_quiet());
    net.settle();
    assert_eq!(net.leaders(), [2]);
    let mut net = quiet();
    net.raft(3).request_snapshot(index(1)).expect("it follows");
    assert!(!net.raft(3).is_quiet());
    net.settle();
    assert!(!net.raft(1).is_quiet(), "the message woke the leader");
}

#[test]
fn a_leader_that_died_quietly_is_found_by_the_next_request() {
    let mut net = quiet();
    net.node(1).is_down = true;
    net.tick_all(20 * TIMEOUT);
    assert!(net.raft(2).is_quiet() && net.raft(3).is_quiet());
    net.raft(2).read_index(1).expect("it knows a leader");
    net.settle();
    let mut timeouts = 0;
    while net.leaders().is_empty() {
        net.tick_all(TIMEOUT);
        timeouts += 1;
        assert!(timeouts <= 10, "a leader within ten election timeouts");
    }
    let lost = read_dropped(1, DropReason::NoAnswer);
    assert_eq!(net.node(2).dropped, [lost]);
    let leader = net.leaders()[0];
    net.raft(leader).read_index(2).expect("it leads");
    net.settle();
    assert_eq!(net.node(leader).reads.len(), 1);
}

#[test]
fn a_follower_that_did_not_hear_of_it_wakes_the_rest() {
    let mut net = led();
    net.tick_all(2 * TIMEOUT - 1);
    net.cut.insert((1, 3));
    net.tick_all(1);
    assert!(net.raft(1).is_quiet() && net.raft(2).is_quiet() && !net.raft(3).is_quiet());
    net.heal();
    net.tick_all(6 * TIMEOUT);
    assert!(is_all_quiet(&mut net), "they are of one mind again");
    assert_eq!(net.leaders().len(), 1);
}

#[test]
fn not_while_a_follower_lags() {
    let mut net = led();
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(10 * TIMEOUT);
    assert!(!net.raft(1).is_quiet() && !net.raft(2).is_quiet());
    net.heal();
    net.tick_all(4 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
    assert_eq!(net.raft(3).commit(), net.raft(1).commit());
}

#[test]
fn not_while_a_learner_lags() {
    let mut membership = voters(&[1, 2]);
    membership.learners.insert(replica(3));
    let mut net = Net::with_membership(&[1, 2, 3], &membership, set);
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(10 * TIMEOUT);
    assert!(!net.raft(1).is_quiet());
    net.heal();
    net.tick_all(4 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
}

#[test]
fn not_while_a_change_is_pending_or_joint() {
    let mut net = led();
    let explicit = MembershipChange {
        transition: Transition::Explicit,
        ..change(ChangeKind::AddLearner, 3)
    };
    net.raft(1)
        .propose_membership(explicit)
        .expect("nothing is pending");
    net.settle();
    net.tick_all(10 * TIMEOUT);
    assert!(net.raft(1).membership().is_joint());
    assert!(!net.raft(1).is_quiet() && !net.raft(2).is_quiet());
    net.raft(1)
        .propose_membership(MembershipChange::default())
        .expect("out of it");
    net.settle();
    net.tick_all(3 * TIMEOUT);
    assert!(net.raft(1).is_quiet());
}

#[test]
fn not_while_anything_is_not_durable_not_applied_or_asked_for() {
    // Its own disk.
    let mut net = led();
    net.node(1).is_disk_slow = true;
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).commit(), index(2), "by the others");
    net.tick_all(10 * TIMEOUT);
    assert!(!net.raft(1).is_quiet());
    net.node(1).is_disk_slow = false;
    net.sync(1);
    net.tick_all(3 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
    // Its own state machine.
    let mut net = led();
    net.node(1).is_apply_slow = true;
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(10 * TIMEOUT);
    assert!(!net.raft(1).is_quiet());
    let handed = net.node(1).handed;
    net.raft(1).applied(handed);
    net.tick_all(3 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
    // A snapshot that a follower waits for.
    let mut net = led();
    net.raft(3).request_snapshot(index(1)).expect("it follows");
    net.settle();
    net.tick_all(10 * TIMEOUT);
    assert!(!net.raft(1).is_quiet());
    net.snapshot(1);
    net.settle();
    net.tick_all(3 * TIMEOUT);
    assert!(is_all_quiet(&mut net));
}

#[test]
fn not_while_a_transfer_runs() {
    // A transfer runs for one election timeout at most; here a group would fall quiet within one.
    let mut net = Net::new(&[1, 2, 3], |config| config.quiesce_timeouts = 1);
    net.elect(1);
    net.tick_all(TIMEOUT - 1);
    net.cut.insert((1, 2));
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).transferee(), Some(replica(2)));
    net.tick_all(TIMEOUT - 1);
    assert!(!net.raft(1).is_quiet());
}

#[test]
fn a_follower_that_is_elsewhere_does_not_fall_quiet_when_told_to() {
    let mut net = led();
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    let quiesce = |term: u64, at: u64| {
        let last = crate::net::entry_id(term, at);
        crate::net::message(1, 2, 1, Body::Quiesce { last })
    };
    for (term, at) in [(1, 1), (1, 3)] {
        let stale = crate::dropped(DropReason::Stale);
        assert_eq!(net.raft(2).handle_message(quiesce(term, at)), stale);
        assert!(!net.raft(2).is_quiet());
    }
    net.raft(2)
        .handle_message(quiesce(1, 2))
        .expect("that is where it is");
    assert!(net.raft(2).is_quiet());
}

#[test]
fn a_quiet_leader_has_no_lease() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        set(config);
        config.lease_ticks = 8;
    });
    net.elect(1);
    net.tick_all(3);
    assert!(net.raft(1).has_lease());
    net.tick_all(2 * TIMEOUT);
    assert!(is_all_quiet(&mut net) && !net.raft(1).has_lease());
    net.raft(1).read_index(1).expect("it leads");
    assert!(!net.raft(1).has_lease(), "waking gives none");
    net.settle();
    assert_eq!(net.node(1).reads.len(), 1);
    assert!(net.raft(1).has_lease(), "a confirmed round does");
}

#[test]
fn waking_counts_nobody_as_lost() {
    let mut net = quiet();
    net.tick_all(30 * TIMEOUT);
    net.propose(1, "a").expect("it leads");
    // Its quorum is checked from now on, not for the time in between.
    net.tick(1, TIMEOUT);
    assert_eq!(net.raft(1).role(), Role::Leader);
    assert!(status(&mut net, 1, 2).next > index(1));
}

/// One replica of many groups: what it says goes to the others of its group.
fn replica_of(group: u64, id: u64) -> Raft {
    let mut config = Config {
        election_timeout_ticks_min: TIMEOUT,
        election_timeout_ticks_max: TIMEOUT,
        heartbeat_ticks: 1,
        ..Config::new(GroupId::new(group).expect("a valid id"), replica(id), id)
    };
    set(&mut config);
    let restored = Restored {
        membership: voters(&[1, 2, 3]),
        ..Restored::default()
    };
    Raft::new(config, restored, 0).expect("valid settings")
}

fn settle(rafts: &mut [Raft; 3]) -> usize {
    let mut mail: VecDeque<Message> = VecDeque::new();
    let mut calls = 0;
    loop {
        for raft in rafts.iter_mut() {
            while let Some(ready) = raft.poll_ready() {
                calls += 1;
                mail.extend(ready.messages);
                if let Some(submission) = ready.submission {
                    let durable = raft.persisted(submission);
                    let held = ready.messages_after_sync.into_iter();
                    mail.extend(held.map(|held| held.release(durable)));
                }
                if let Some(batch) = ready.committed.last() {
                    raft.applied(batch.last().index);
                }
            }
        }
        let Some(message) = mail.pop_front() else {
            return calls;
        };
        calls += 1;
        let to = usize::try_from(message.to.get() - 1).expect("small");
        rafts[to].handle_message(message).ok();
    }
}

#[test]
fn ten_thousand_quiet_groups_ask_for_no_call_at_all() {
    let mut quiet = 0_u64;
    for id in 1..=10_000 {
        let mut rafts = [1, 2, 3].map(|replica| replica_of(id, replica));
        rafts[0].campaign().expect("it may stand");
        settle(&mut rafts);
        // Its driver calls it at its deadlines, and at no other time.
        let mut calls = 0;
        while let Some(tick) = rafts.iter().filter_map(Raft::next_deadline).min() {
            calls += 1;
            assert!(calls < 100, "group {id} never falls quiet");
            for raft in &mut rafts {
                raft.advance_to(tick);
            }
            settle(&mut rafts);
        }
        assert!(rafts.iter().all(Raft::is_quiet));
        // No deadline, nothing to be done, nothing to be sent: no call is due, whatever time it is.
        assert_eq!(settle(&mut rafts), 0);
        quiet += 1;
        if id % 100 == 0 {
            // Nor do the calls of a driver that does not know it change anything.
            for raft in &mut rafts {
                raft.advance_to(1_000_000);
            }
            assert_eq!(settle(&mut rafts), 0);
            assert!(rafts.iter().all(Raft::is_quiet));
            assert_eq!(rafts[0].role(), Role::Leader);
        }
    }
    assert_eq!(quiet, 10_000);
    assert_ne!(group().get(), 0);
}
