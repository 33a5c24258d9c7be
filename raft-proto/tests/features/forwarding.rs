//! Proposals and reads that followers and learners pass on; reads by lease.

use bytes::Bytes;

use crate::dropped;
use crate::net::{Net, change, index, message, plain, replica, voters};
use raft_proto::{
    Body, ChangeKind, Config, DropReason, EntryKind, Forwarded, Membership, MembershipChange,
    Proposal, ReadState, Session, Term,
};

fn command(text: &str) -> Forwarded {
    Forwarded::from(Proposal::command(text.as_bytes()))
}

fn with_learner(set: impl Fn(&mut Config)) -> Net {
    let mut membership = voters(&[1, 2, 3]);
    membership.learners.insert(replica(4));
    let mut net = Net::with_membership(&[1, 2, 3, 4], &membership, set);
    net.elect(1);
    net.settle();
    net.tick_all(1);
    net
}

#[test]
fn a_follower_and_a_learner_pass_proposals_on() {
    let mut net = with_learner(plain);
    let session = Session {
        client: 5,
        serial: 6,
    };
    let with_session = Forwarded {
        session: Some(session),
        ..command("b")
    };
    for (from, entries) in [
        (2, vec![command("a"), with_session]),
        (4, vec![command("c")]),
    ] {
        let leader = net.raft(from).forward(entries).expect("a leader is known");
        assert_eq!(leader, replica(1));
        net.settle();
    }
    net.tick_all(1);
    for id in 1..=4 {
        assert_eq!(net.node(id).texts(), ["a", "b", "c"], "replica {id}");
    }
    let log = net.node(3).disk.log.clone();
    let sessions: Vec<_> = log
        .iter()
        .flat_map(raft_proto::Batch::iter)
        .map(|entry| entry.session())
        .collect();
    assert_eq!(sessions, [None, None, Some(session), None]);
}

#[test]
fn a_change_passed_on_goes_the_same_way_as_at_the_leader() {
    let mut net = with_learner(plain);
    let forwarded = |change: &MembershipChange| Forwarded {
        kind: EntryKind::Membership,
        session: None,
        payload: change.encode().into(),
    };
    let promote = change(ChangeKind::AddVoter, 4);
    let pair = vec![forwarded(&promote), forwarded(&promote)];
    net.raft(3).forward(pair).expect("a leader is known");
    net.settle();
    net.tick_all(1);
    // The second of them came while the first was pending: an empty command stands in its place.
    assert!(net.raft(2).membership().voters.contains(&replica(4)));
    assert_eq!(net.raft(2).membership().index, index(2));
    assert_eq!(net.raft(2).last_index(), index(3));
    // One that does not parse is no reason to stumble.
    let garbage = Forwarded {
        kind: EntryKind::Membership,
        session: None,
        payload: Bytes::from_static(b"\xFFnonsense"),
    };
    let before = net.raft(2).membership().clone();
    net.raft(3)
        .forward(vec![garbage])
        .expect("a leader is known");
    net.settle();
    net.tick_all(1);
    assert_eq!(*net.raft(2).membership(), before);
    assert_eq!(net.raft(2).commit(), index(4));
    assert!(net.node(2).texts().is_empty());
}

#[test]
fn what_is_passed_on_and_refused_is_dropped_with_a_reason() {
    let mut net = with_learner(|config| config.uncommitted_bytes_max = 8);
    assert_eq!(
        net.raft(1).forward(vec![command("own")]),
        dropped(DropReason::NotForThisRole)
    );
    let proposal = |term: u64, text: &str| {
        let entries = vec![command(text)];
        message(2, 1, term, Body::Propose { entries })
    };
    // Too many uncommitted bytes, and a transfer in progress.
    net.raft(1)
        .handle_message(proposal(0, "eight by"))
        .expect("any size is taken when nothing is uncommitted");
    let last = net.raft(1).last_index();
    assert_eq!(
        net.raft(1).handle_message(proposal(0, "x")),
        dropped(DropReason::ProposalRefused)
    );
    net.settle();
    net.raft(1).transfer_leader(replica(3)).expect("it leads");
    assert_eq!(
        net.raft(1).handle_message(proposal(0, "x")),
        dropped(DropReason::ProposalRefused)
    );
    assert_eq!(net.raft(1).last_index(), last);
    // To one that knows no leader.
    let mut net = with_learner(plain);
    net.raft(3).forget_leader().expect("it follows");
    let entries = vec![command("x")];
    let lost = message(2, 3, 0, Body::Propose { entries });
    assert_eq!(
        net.raft(3).handle_message(lost),
        dropped(DropReason::NoLeader)
    );
    assert_eq!(net.raft(3).forward(vec![command("x")]), {
        dropped(DropReason::NoLeader)
    });
}

#[test]
fn one_that_no_longer_leads_passes_on_to_the_next_leader() {
    let mut net = with_learner(plain);
    net.raft(4)
        .forward(vec![command("late")])
        .expect("one is known");
    net.pump(4);
    let late = net.take(|message| matches!(message.body, Body::Propose { .. }));
    net.elect(2);
    assert_eq!(net.raft(1).leader(), Some(replica(2)));
    for message in late {
        net.deliver(message);
    }
    net.settle();
    net.tick_all(1);
    assert_eq!(net.node(1).texts(), ["late"]);
    assert_eq!(net.raft(1).term(), Term::new(2));
}

#[test]
fn a_read_that_waits_is_answered_when_only_those_are_left_who_confirmed() {
    let mut net = Net::new(&[1, 2], plain);
    net.elect(1);
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 2))
        .expect("nothing is pending");
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    // The round never reaches two; the entry that removes it does.
    net.take(|message| matches!(message.body, Body::Heartbeat { .. }));
    net.settle();
    assert_eq!(
        net.raft(1).membership(),
        &Membership {
            index: index(2),
            ..voters(&[1])
        }
    );
    let state = ReadState {
        user: 7,
        index: index(1),
    };
    assert_eq!(net.node(1).reads, [state]);
}

fn leased() -> Net {
    with_learner(|config| {
        config.check_quorum = true;
        config.lease_ticks = 8;
    })
}

fn read_at(net: &mut Net, id: u64) -> usize {
    net.mail.clear();
    net.raft(id).read_index(id).expect("there is a leader");
    for id in [id, 1] {
        net.pump(id);
        let asked = net.take(|message| matches!(message.body, Body::ReadIndex { .. }));
        asked.into_iter().for_each(|message| net.deliver(message));
        net.pump(1);
    }
    let heartbeats = net
        .mail
        .iter()
        .filter(|message| matches!(message.body, Body::Heartbeat { .. }))
        .count();
    net.settle();
    heartbeats
}

#[test]
fn within_the_lease_nobodys_reads_take_a_round() {
    let mut net = leased();
    assert!(net.raft(1).has_lease());
    for id in [1, 2, 4] {
        assert_eq!(read_at(&mut net, id), 0, "asked at {id}");
        let state = ReadState {
            user: id,
            index: index(1),
        };
        assert_eq!(net.node(id).reads, [state]);
    }
    // Only the leader has one; who asks has none.
    assert!(!net.raft(2).has_lease() && !net.raft(4).has_lease());
}

#[test]
fn without_a_lease_every_read_takes_a_round() {
    let mut net = with_learner(plain);
    for id in [1, 2, 4] {
        assert_eq!(read_at(&mut net, id), 3, "asked at {id}");
        assert_eq!(net.node(id).reads.len(), 1);
    }
}

#[test]
fn a_membership_change_ends_the_lease_until_a_round_of_the_new_one() {
    let mut net = leased();
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 4))
        .expect("nothing is pending");
    while net.raft(1).membership().index != index(2) {
        assert!(net.raft(1).has_lease());
        for id in 1..=4 {
            net.pump(id);
        }
        net.deliver_one();
    }
    assert!(!net.raft(1).has_lease());
    net.settle();
    net.tick_all(1);
    assert!(net.raft(1).has_lease());
}

#[test]
fn while_a_transfer_waits_for_its_target_there_is_no_lease() {
    let mut net = leased();
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert!(net.raft(1).has_lease());
    // Three lacks an entry, so it was not told to stand yet.
    net.raft(1).transfer_leader(replica(3)).expect("it leads");
    assert!(!net.raft(1).has_lease());
    net.tick_all(9);
    assert_eq!(net.raft(1).transferee(), Some(replica(3)));
    assert!(!net.raft(1).has_lease());
    // It is given up, and as nobody was told, nobody stands: the lease is as good as before.
    net.tick_all(1);
    assert_eq!(net.raft(1).transferee(), None);
    assert!(net.raft(1).has_lease());
}

#[test]
fn a_restarted_replica_votes_for_nobody_for_one_lease() {
    let mut net = leased();
    net.restart(2);
    net.cut_off(1);
    let ask = |term: u64| {
        let last = crate::net::entry_id(1, 1);
        let is_transfer = false;
        message(3, 2, term, Body::Vote { last, is_transfer })
    };
    let before = net.raft(2).hard_state();
    for _ in 0..8 {
        assert_eq!(
            net.raft(2).handle_message(ask(2)),
            dropped(DropReason::LeaseHeld)
        );
        assert_eq!(net.raft(2).hard_state(), before);
        net.tick(2, 1);
    }
    net.raft(2)
        .handle_message(ask(2))
        .expect("the lease is over");
    assert_eq!(net.raft(2).hard_state().vote, Some(replica(3)));
}
