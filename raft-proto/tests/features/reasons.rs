//! A reason for everything that is dropped: each one there is, where it comes from.

use crate::net::{Net, change, entry_id, group, index, message, plain, replica, voters};
use crate::{dropped, holding};
use raft_proto::{
    Body, ChangeKind, DropReason, Dropped, EntryKind, Envelope, Forwarded, GroupId, Membership,
    Message, Proposal, Raft, Refused, Role, SnapshotMeta, Term, Underway,
};

fn led() -> Net {
    let mut net = Net::new(&[1, 2, 3], |config| config.reads_max = 2);
    net.elect(1);
    net.settle();
    net.tick_all(1);
    net
}

fn vote(term: u64) -> Body {
    Body::Vote {
        last: entry_id(term, 9),
        is_transfer: false,
    }
}

fn snapshot(at: u64, membership: Membership) -> Body {
    let meta = SnapshotMeta {
        id: entry_id(1, at),
        membership,
    };
    let meta = meta.into();
    Body::Snapshot { meta }
}

/// Has the replica refuse the message, and checks that nothing changed by it.
fn refuse(raft: &mut Raft, message: Message, reason: DropReason) {
    let look = |raft: &Raft| {
        (
            raft.hard_state(),
            raft.role(),
            raft.leader(),
            (raft.first_index(), raft.last_index()),
            raft.membership().clone(),
        )
    };
    let before = look(raft);
    assert_eq!(raft.handle_message(message), dropped(reason));
    assert_eq!(look(raft), before);
}

#[test]
fn where_it_was_meant_to_go() {
    let mut net = led();
    let envelope = |group, epoch| Envelope {
        group,
        epoch,
        message: message(1, 2, 9, vote(9)),
    };
    let other = GroupId::new(8).expect("a valid id");
    let hard = net.raft(2).hard_state();
    assert_eq!(
        net.raft(2).handle_envelope(envelope(other, 0)),
        dropped(DropReason::OtherGroup)
    );
    assert_eq!(
        net.raft(2).handle_envelope(envelope(group(), 1)),
        dropped(DropReason::OtherEpoch)
    );
    assert_eq!(net.raft(2).hard_state(), hard);
    let misdirected = message(1, 3, 9, vote(9));
    refuse(net.raft(2), misdirected, DropReason::NotForThisReplica);
}

#[test]
fn who_it_came_from() {
    let mut net = led();
    let answers = [
        Body::PreVoteResponse { is_rejected: false },
        Body::VoteResponse { is_rejected: false },
        Body::AppendResponse {
            index: index(1),
            rejected: None,
        },
        Body::HeartbeatResponse { round: 0 },
        Body::ReadIndexResponse {
            life: 1,
            id: 1,
            index: index(1),
        },
    ];
    for body in answers {
        for term in [1, 2] {
            let answer = message(9, 1, term, body.clone());
            refuse(net.raft(1), answer, DropReason::UnknownPeer);
        }
    }
    let entries = vec![Forwarded::from(Proposal::command(b"x"))];
    let requests = [
        (0, Body::Propose { entries }),
        (0, Body::ReadIndex { life: 1, id: 1 }),
        (2, Body::TransferLeader { to: replica(2) }),
    ];
    for (term, body) in requests {
        let request = message(9, 1, term, body);
        refuse(net.raft(1), request, DropReason::UnknownPeer);
    }
}

#[test]
fn when_it_was_said() {
    let mut raft = holding(2, 5, &[1, 2], 1);
    let (found, current) = (Term::new(4), Term::new(5));
    let stale = DropReason::StaleTerm { found, current };
    let bodies = [
        vote(4),
        Body::Heartbeat {
            commit: index(1),
            round: 0,
        },
        crate::net::append(entry_id(2, 2), 2, vec![]),
        snapshot(9, voters(&[1, 2, 3])),
        Body::TimeoutNow,
        Body::VoteResponse { is_rejected: false },
        Body::AppendResponse {
            index: index(9),
            rejected: None,
        },
        Body::Quiesce {
            last: entry_id(2, 2),
        },
    ];
    for body in bodies {
        refuse(&mut raft, message(1, 2, 4, body), stale);
        assert!(raft.poll_ready().is_none());
    }
    // Two are answered, so that who asks learns of the term.
    let pre_vote = Body::PreVote {
        last: entry_id(2, 2),
    };
    refuse(&mut raft, message(1, 2, 4, pre_vote), stale);
    let ready = raft.poll_ready().expect("an answer");
    let answer = ready.messages_after_sync[0].held();
    assert_eq!(answer.term, current);
    assert_eq!(answer.body, Body::PreVoteResponse { is_rejected: true });
}

#[test]
fn votes_that_a_leader_or_a_lease_stands_against() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.check_quorum = true;
        config.lease_ticks = 5;
    });
    net.elect(1);
    net.settle();
    refuse(
        net.raft(2),
        message(3, 2, 2, vote(2)),
        DropReason::LeaderAlive,
    );
    let pre_vote = Body::PreVote {
        last: entry_id(1, 9),
    };
    refuse(
        net.raft(2),
        message(3, 2, 2, pre_vote),
        DropReason::LeaderAlive,
    );
    net.restart(2);
    let lease = DropReason::LeaseHeld;
    refuse(net.raft(2), message(3, 2, 2, vote(2)), lease);
    net.tick_all(1);
    assert_eq!(net.raft(2).forget_leader(), dropped(DropReason::LeaseHeld));
    assert_eq!(net.raft(2).leader(), Some(replica(1)));
}

#[test]
fn what_is_meant_for_another_role() {
    let mut net = led();
    let to_leader = [
        Body::AppendResponse {
            index: index(1),
            rejected: None,
        },
        Body::HeartbeatResponse { round: 0 },
        Body::ReadIndex { life: 3, id: 1 },
        Body::SnapshotRequest {
            index: index(1),
            request: 1,
        },
    ];
    for body in to_leader {
        let term = u64::from(!matches!(body, Body::ReadIndex { .. }));
        let request = message(3, 2, term, body);
        refuse(net.raft(2), request, DropReason::NotLeader);
    }
    let not_from_leader = Body::ReadIndexResponse {
        life: 2,
        id: 1,
        index: index(1),
    };
    let answer = message(3, 2, 1, not_from_leader);
    refuse(net.raft(2), answer, DropReason::NotLeader);
    for is_rejected in [true, false] {
        let late = [
            Body::VoteResponse { is_rejected },
            Body::PreVoteResponse { is_rejected },
        ];
        for body in late {
            let answer = message(3, 1, 1, body);
            refuse(net.raft(1), answer, DropReason::NotForThisRole);
        }
    }
    let role = dropped(DropReason::NotForThisRole);
    assert_eq!(net.raft(1).campaign(), role);
    assert_eq!(net.raft(1).forget_leader(), role);
    assert_eq!(net.raft(1).transfer_leader(replica(1)), role);
    net.raft(3).campaign().expect("it may stand");
    assert_eq!(net.raft(3).role(), Role::Candidate);
    refuse(
        net.raft(3),
        message(1, 3, 2, Body::TimeoutNow),
        DropReason::NotForThisRole,
    );
    let transfer = Body::TransferLeader { to: replica(3) };
    refuse(
        net.raft(3),
        message(1, 3, 2, transfer),
        DropReason::NotForThisRole,
    );
}

#[test]
fn where_there_is_no_leader_to_ask() {
    let mut net = Net::new(&[1, 2, 3], plain);
    let none = dropped(DropReason::NoLeader);
    let raft = net.raft(1);
    assert_eq!(raft.read_index(1), none);
    assert_eq!(raft.transfer_leader(replica(2)), none);
    assert_eq!(raft.request_snapshot(index(1)), none);
    let command = || vec![Forwarded::from(Proposal::command(b"x"))];
    assert_eq!(raft.forward(command()), dropped(DropReason::NoLeader));
    let entries = command();
    let proposal = message(2, 1, 0, Body::Propose { entries });
    refuse(raft, proposal, DropReason::NoLeader);
}

#[test]
fn transfers_to_who_may_not_lead_or_is_being_handed_it() {
    let mut membership = voters(&[1, 2]);
    membership.learners.insert(replica(3));
    let mut net = Net::with_membership(&[1, 2, 3], &membership, plain);
    net.elect(1);
    net.settle();
    let transfer = |net: &mut Net, to| net.raft(1).transfer_leader(replica(to));
    assert_eq!(transfer(&mut net, 3), dropped(DropReason::NotPromotable));
    assert_eq!(transfer(&mut net, 9), dropped(DropReason::UnknownPeer));
    assert_eq!(net.raft(3).campaign(), dropped(DropReason::NotPromotable));
    transfer(&mut net, 2).expect("it may lead");
    assert_eq!(
        transfer(&mut net, 2),
        dropped(DropReason::TransferInProgress)
    );
    assert_eq!(net.raft(1).transferee(), Some(replica(2)));
}

#[test]
fn what_is_known_already() {
    let mut net = led();
    let matched = net.raft(1).last_index();
    for rejected in [None, Some(entry_id(0, 0))] {
        let body = Body::AppendResponse {
            index: matched,
            rejected,
        };
        refuse(net.raft(1), message(2, 1, 1, body), DropReason::Stale);
    }
    let offer = Body::SnapshotOffer {
        meta: SnapshotMeta {
            id: entry_id(1, 1),
            membership: voters(&[1, 2, 3]),
        }
        .into(),
        request: 77,
    };
    refuse(net.raft(2), message(1, 2, 1, offer), DropReason::Stale);
    let quiesce = Body::Quiesce {
        last: entry_id(1, 1),
    };
    refuse(net.raft(2), message(1, 2, 1, quiesce), DropReason::Stale);
}

#[test]
fn snapshots_that_are_old_or_not_for_it() {
    let mut raft = holding(2, 1, &[1, 1, 1], 2);
    let old = snapshot(2, voters(&[1, 2, 3]));
    let without = snapshot(9, voters(&[1, 3]));
    for (body, reason) in [
        (old, DropReason::SnapshotOutdated),
        (without, DropReason::SnapshotWithoutUs),
    ] {
        // The leader that sent it is noted, and answered with the commit index: nothing else.
        let held = |raft: &Raft| {
            let log: Vec<_> = (0..=raft.last_index().get())
                .map(|at| raft.term_at(index(at)))
                .collect();
            let first = raft.first_index();
            (raft.hard_state(), first, log, raft.membership().clone())
        };
        let before = held(&raft);
        let refused = raft.handle_message(message(1, 2, 1, body));
        assert_eq!(refused, dropped(reason));
        assert_eq!(held(&raft), before);
        let ready = raft.poll_ready().expect("an answer");
        assert!(ready.snapshot.is_none() && ready.entries.is_empty());
        let answer = &ready.messages_after_sync[0].held().body;
        assert!(matches!(
            answer,
            Body::AppendResponse { index, rejected: None } if *index == raft.commit()
        ));
        if let Some(submission) = ready.submission {
            raft.persisted(submission);
        }
    }
}

#[test]
fn reads_too_many_or_not_waited_for() {
    let mut net = led();
    for user in [1, 2] {
        net.raft(1).read_index(user).expect("there is room");
        net.raft(3).read_index(user).expect("there is room");
    }
    let full = dropped(DropReason::ReadsFull);
    assert_eq!(net.raft(1).read_index(3), full);
    assert_eq!(net.raft(3).read_index(3), full);
    let read = message(2, 1, 0, Body::ReadIndex { life: 2, id: 3 });
    assert_eq!(net.raft(1).handle_message(read), full);
    let answer = Body::ReadIndexResponse {
        life: 3,
        id: 9,
        index: index(1),
    };
    refuse(
        net.raft(3),
        message(1, 3, 1, answer),
        DropReason::UnknownRead,
    );
    net.settle();
    assert_eq!(
        net.node(1).reads.len(),
        2,
        "and those that had room are answered"
    );
}

/// What was dropped of what was under way, at this replica.
fn told(net: &mut Net, id: u64) -> Vec<Dropped> {
    std::mem::take(&mut net.node(id).dropped)
}

const fn because(what: Underway, reason: DropReason) -> Dropped {
    Dropped { what, reason }
}

#[test]
fn reads_and_requests_under_way_when_the_leader_changes() {
    let mut net = led();
    let requested = index(9);
    for text in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        net.propose(1, text).expect("it leads");
    }
    net.settle();
    // The followers' words reach the leader, and nothing of its comes back.
    for to in [2, 3] {
        net.cut.insert((1, to));
    }
    net.raft(1).read_index(7).expect("it leads");
    net.raft(2).read_index(8).expect("there is a leader");
    net.raft(3).request_snapshot(requested).expect("the same");
    net.settle();
    net.cut.clear();
    net.cut.insert((1, 2));
    net.raft(3).campaign().expect("it may stand");
    net.settle();
    assert_eq!(net.leaders(), [3]);
    let (user, from) = (7, replica(2));
    assert_eq!(
        told(&mut net, 1),
        [
            because(Underway::Read { user }, DropReason::NotLeader),
            because(Underway::ReadOf { from, id: 1 }, DropReason::NotLeader),
            because(
                Underway::SnapshotRequestOf { from: replica(3) },
                DropReason::NotLeader
            ),
        ]
    );
    let lost = because(Underway::Read { user: 8 }, DropReason::LeaderChanged);
    assert_eq!(told(&mut net, 2), [lost]);
    let lost = because(Underway::SnapshotRequest, DropReason::LeaderChanged);
    assert_eq!(told(&mut net, 3), [lost]);
}

#[test]
fn a_request_for_a_snapshot_of_who_is_removed() {
    let mut net = led();
    net.settle();
    told(&mut net, 1);
    net.cut.insert((1, 3));
    net.raft(3).request_snapshot(index(2)).expect("it follows");
    net.settle();
    let remove = change(ChangeKind::Remove, 3);
    net.raft(1).propose_membership(remove).expect("it leads");
    net.settle();
    assert!(!net.raft(1).membership().is_member(replica(3)));
    let what = Underway::SnapshotRequestOf { from: replica(3) };
    let gone = because(what, DropReason::UnknownPeer);
    assert_eq!(told(&mut net, 1), [gone]);
}

#[test]
fn transfers_that_are_given_up() {
    let to_two = Underway::Transfer { to: replica(2) };
    let to_three = Underway::Transfer { to: replica(3) };
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    net.cut_off(2);
    net.propose(1, "a").expect("it leads");
    net.settle();
    // Replaced by another, which takes too long.
    net.raft(1).transfer_leader(replica(2)).expect("a voter");
    net.cut_off(3);
    net.propose(1, "b").expect_err("it hands over");
    net.raft(1).transfer_leader(replica(3)).expect("a voter");
    let replaced = because(to_two, DropReason::TransferInProgress);
    net.pump(1);
    assert_eq!(told(&mut net, 1), [replaced]);
    net.tick(1, 10);
    let late = because(to_three, DropReason::NoAnswer);
    assert_eq!(told(&mut net, 1), [late]);
    // Cut short, because no quorum was heard of.
    net.raft(1).transfer_leader(replica(2)).expect("a voter");
    net.tick(1, 10);
    assert_eq!(net.raft(1).role(), Role::Follower);
    let lost = because(to_two, DropReason::NotLeader);
    assert_eq!(told(&mut net, 1), [lost]);
    // To one that is removed meanwhile.
    let mut net = led();
    net.cut.insert((1, 3));
    net.propose(1, "a").expect("it leads");
    net.raft(1)
        .propose_membership(change(ChangeKind::Remove, 3))
        .expect("nothing is pending");
    net.raft(1).transfer_leader(replica(3)).expect("a voter");
    net.settle();
    let removed = because(to_three, DropReason::NotPromotable);
    assert_eq!(told(&mut net, 1), [removed]);
    // One that comes about is none of them.
    net.raft(1).transfer_leader(replica(2)).expect("a voter");
    net.settle();
    assert_eq!(net.leaders(), [2]);
    assert!(told(&mut net, 1).is_empty());
}

#[test]
fn transfer_after_transfer_puts_off_no_check_of_the_quorum() {
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    net.tick_all(1);
    net.cut_off(1);
    net.propose(1, "a").expect("it leads");
    for round in 0..10 {
        if net.raft(1).role() == Role::Follower {
            return;
        }
        let to = replica(2 + round % 2);
        net.raft(1).transfer_leader(to).ok();
        net.tick(1, 9);
    }
    panic!("it leads though it heard of nobody");
}

#[test]
fn a_change_passed_on_and_refused() {
    let mut net = led();
    let removal = change(ChangeKind::Remove, 9).encode();
    let passed_on = Proposal {
        kind: EntryKind::Membership,
        ..Proposal::command(&removal[..1])
    };
    let entries = vec![Forwarded::from(passed_on)];
    net.raft(2).forward(entries).expect("there is a leader");
    net.settle();
    let index = net.raft(1).last_index();
    let what = Underway::ChangeOf {
        from: replica(2),
        index,
    };
    let refused = because(what, DropReason::ProposalRefused);
    assert_eq!(told(&mut net, 1), [refused]);
}

#[test]
fn each_of_them_is_a_sentence() {
    let reason = DropReason::StaleTerm {
        found: Term::new(3),
        current: Term::new(4),
    };
    let refused = Refused::Dropped { reason };
    assert_eq!(
        refused.to_string(),
        "dropped: of term 3, which is over: it is term 4"
    );
    let refused = Refused::Dropped {
        reason: DropReason::LeaderAlive,
    };
    assert_eq!(refused.to_string(), "dropped: the leader is alive");
}
